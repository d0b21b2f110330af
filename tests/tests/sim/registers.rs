//! Objects of one block that several clients put, read and delete at once: registers, whose histories have to be linearizable.
//!
//! Clients ask nobody for a turn here: of two that replace an object at the same time one wins as a whole, and the other hears of it. A history
//! is judged at the end of a run by [`clovis_tests::sim_linear`], three times:
//! 1. each read by itself, with all the writes: it returns what was written last, or what is being written. Always.
//! 2. all reads of quiet times together (before the first fault, and after the last one when everybody is well): one order for all. Always.
//! 3. all reads together. A read needs one holder of a record to answer, so while holders are out of reach, two reads one after the other
//!    may see a change that is under way, and then not (docs/simulation.md#registers): counted.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use base::{Blame, Blamed, ByteExtent, ObjectId};
use client::{Client, ClientError};
use clovis_tests::sim_bytes::{BLOCK, BlockValue, fill};
use clovis_tests::sim_linear::{Did, Event, Register, Verdict, check};
use clovis_tests::sim_model::Ending;
use runtime::LocalityHandle;
use runtime::clock::SimulatedClock;

use crate::oracle::Oracle;
use crate::workload::read_bytes;

/// Registers of a run.
const REGISTERS: u64 = 2;
/// Nothing there, or nothing in it.
const ABSENT: u64 = 0;

/// The registers' ids: none of the workload's.
pub fn ids() -> impl Iterator<Item = ObjectId> {
    (0..REGISTERS).map(|index| ObjectId::new(900, index).expect("below 2^56"))
}

/// What was done to one register.
#[derive(Default)]
struct History {
    writes: Vec<Event<Did>>,
    reads: Vec<Event<Did>>,
    quiet_reads: Vec<Event<Did>>,
}

/// All histories of a run.
#[derive(Default)]
pub struct Registers {
    /// Counts beginnings and ends: an order of their own, finer than time.
    moment: u64,
    histories: BTreeMap<ObjectId, History>,
    /// Faults may be happening.
    pub is_troubled: bool,
}

impl Registers {
    fn moment(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    /// A write begins; its place in the history. Nobody knows its end until it is told.
    fn begin_write(&mut self, id: ObjectId, value: u64) -> usize {
        let began = self.moment();
        let writes = &mut self.histories.entry(id).or_default().writes;
        writes.push(Event { began, ended: None, did: Did::Write(value) });
        writes.len() - 1
    }

    fn end_write(&mut self, id: ObjectId, place: usize) {
        let ended = self.moment();
        if let Some(event) = self.histories.get_mut(&id).and_then(|history| history.writes.get_mut(place)) {
            event.ended = Some(ended);
        }
    }

    fn saw(&mut self, id: ObjectId, began: u64, was_troubled: bool, value: u64) {
        let event = Event { began, ended: Some(self.moment()), did: Did::Read(value) };
        let is_quiet = !was_troubled && !self.is_troubled;
        let history = self.histories.entry(id).or_default();
        history.reads.push(event);
        if is_quiet {
            history.quiet_reads.push(event);
        }
    }

    /// Judges all histories. Ok: how many read in one order only without the reads of troubled times.
    pub fn judge(&self) -> Result<Judged, String> {
        let mut judged = Judged::default();
        for (id, History { writes, reads, quiet_reads }) in &self.histories {
            judged.reads += reads.len() as u64;
            judged.quiet_reads += quiet_reads.len() as u64;
            judged.unknown += writes.iter().filter(|event| event.ended.is_none()).count() as u64;
            judged.overlaps += overlaps(writes);
            let with =
                |reads: &[Event<Did>]| check::<Register>(&ABSENT, &[writes.as_slice(), reads].concat());
            for read in reads {
                if let Verdict::Not(events) = with(&[*read]) {
                    return Err(format!(
                        "register {id}: a read that no order of the writes explains: {}",
                        told(&events)
                    ));
                }
            }
            match with(quiet_reads) {
                Verdict::Linearizable => {}
                Verdict::TooLong => judged.given_up += 1,
                Verdict::Not(events) => {
                    return Err(format!(
                        "register {id}: no order explains the reads of quiet times: {}",
                        told(&events)
                    ));
                }
            }
            match with(reads) {
                Verdict::Linearizable => {}
                Verdict::TooLong => judged.given_up += 1,
                Verdict::Not(_) => judged.disordered += 1,
            }
        }
        Ok(judged)
    }
}

/// What the histories of a run came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Judged {
    pub reads: u64,
    pub quiet_reads: u64,
    /// Writes whose end nobody knows.
    pub unknown: u64,
    /// Writes that began while another one was under way.
    pub overlaps: u64,
    /// Histories without one order for all of their reads.
    pub disordered: u64,
    /// Searches that were given up.
    pub given_up: u64,
}

fn overlaps(writes: &[Event<Did>]) -> u64 {
    let until = |event: &Event<Did>| event.ended.unwrap_or(event.began);
    writes.windows(2).filter(|pair| until(&pair[0]) > pair[1].began).count() as u64
}

/// The last operations of a history, in words.
pub fn told<D: std::fmt::Debug>(events: &[Event<D>]) -> String {
    let skipped = events.len().saturating_sub(40);
    let lines = events.iter().skip(skipped).map(|event| {
        let ended = event.ended.map_or("?".to_owned(), |at| at.to_string());
        format!("\n    {:>6} to {ended:>6} {:?}", event.began, event.did)
    });
    format!("{skipped} operations, then{}", lines.collect::<String>())
}

/// One client's worker on the registers.
pub struct RegisterWorker {
    pub oracle: Rc<RefCell<Oracle>>,
    pub locality: LocalityHandle,
    pub client: Client,
    pub clock: Rc<SimulatedClock>,
    pub node: usize,
    pub random: fastrand::Rng,
    pub stop: Rc<Cell<bool>>,
    pub operations_max: u64,
    /// Nothing excuses an error of the environment.
    pub is_calm: bool,
    /// Workers that run, this one too: one less at its end.
    pub running: Rc<Cell<usize>>,
}

impl RegisterWorker {
    pub async fn run(mut self) {
        while !self.stop.get() {
            let pause = Duration::from_micros(self.random.u64(0..60_000));
            self.locality.sleep(pause).await;
            if self.stop.get() || self.oracle.borrow().begun() >= self.operations_max {
                break;
            }
            let id = ids().nth(self.random.usize(0..2)).expect("one of the registers");
            match self.random.u32(0..20) {
                0..6 => self.put(id).await,
                6 => self.delete(id).await,
                _ => self.read(id).await,
            }
        }
        self.running.set(self.running.get() - 1);
    }

    /// True if the error is nobody's fault but another client's, or the environment's while that is excused.
    fn judge(&self, error: &ClientError) -> String {
        let is_ours_to_expect = matches!(
            error,
            ClientError::NotFound { .. } | ClientError::Replaced { .. } | ClientError::Conflict { .. }
        );
        let is_excused = error.blame() == Blame::Environment
            && !matches!(error, ClientError::ParityMismatch { .. })
            && !(self.is_calm && self.oracle.borrow().damaged == 0);
        if !is_ours_to_expect && !is_excused {
            let text = format!("an operation on a register failed without a reason: {error}");
            self.oracle.borrow_mut().violate(self.clock.now(), text);
        }
        error.to_string()
    }

    fn begin(&self, what: String) -> u64 {
        self.oracle.borrow_mut().begin_look(self.node, self.clock.now(), what)
    }

    fn end(&self, op: u64, error: Option<String>) {
        self.oracle.borrow_mut().end(op, self.clock.now(), Ending::Nothing, error);
    }

    async fn put(&mut self, id: ObjectId) {
        let value = self.begin(format!("put of register {id}"));
        let place = self.oracle.borrow_mut().registers.begin_write(id, value);
        let result = self.replace(id, value).await;
        if result.is_ok() {
            self.oracle.borrow_mut().registers.end_write(id, place);
        }
        self.end(value, result.err().map(|error| self.judge(&error)));
    }

    async fn replace(&self, id: ObjectId, value: u64) -> Result<(), ClientError> {
        let unit_bytes = u32::try_from(BLOCK).expect("a block");
        let object = self.client.create_or_open(id, Some(unit_bytes)).await?;
        let replacement = object.replace().await?;
        let mut buffer = self.locality.arena().alloc(4096).await;
        fill(value, 0, &mut buffer);
        replacement.write(0, vec![buffer.freeze()]).await?;
        replacement.commit(BLOCK).await
    }

    async fn delete(&mut self, id: ObjectId) {
        let op = self.begin(format!("delete of register {id}"));
        let place = self.oracle.borrow_mut().registers.begin_write(id, ABSENT);
        let result = self.client.delete(id).await;
        // Not found: it wrote what is there, a moment ago.
        if matches!(result, Ok(()) | Err(ClientError::NotFound { .. })) {
            self.oracle.borrow_mut().registers.end_write(id, place);
        }
        self.end(op, result.err().map(|error| self.judge(&error)));
    }

    async fn read(&mut self, id: ObjectId) {
        let op = self.begin(format!("read of register {id}"));
        let error = self.look(id).await.err().map(|error| self.judge(&error));
        self.end(op, error);
    }

    /// One read, shown to the oracle.
    async fn look(&self, id: ObjectId) -> Result<(), ClientError> {
        look(&self.oracle, &self.client, &self.clock, id).await
    }
}

/// Reads a register and shows what it held to the oracle. Errors: those of the client, but for an object that is not there.
pub async fn look(
    oracle: &Rc<RefCell<Oracle>>,
    client: &Client,
    clock: &SimulatedClock,
    id: ObjectId,
) -> Result<(), ClientError> {
    let (began, was_troubled) = {
        let registers = &mut oracle.borrow_mut().registers;
        (registers.moment(), registers.is_troubled)
    };
    let bytes = match client.open(id).await {
        Err(ClientError::NotFound { .. }) => Vec::new(),
        Err(error) => return Err(error),
        Ok(object) => read_bytes(client, &object, ByteExtent { start: 0, count: 2 * BLOCK }, false).await?,
    };
    let mut oracle = oracle.borrow_mut();
    let value = match bytes.len() {
        0 => Some(ABSENT),
        4096 => (1..=oracle.begun()).rev().find(|value| {
            // The first bytes tell most writers apart.
            let written = BlockValue::written(*value, 0, BLOCK);
            written.matches(0, 0, &bytes[..8]) && written.matches(0, 0, &bytes)
        }),
        _ => None,
    };
    match value {
        Some(value) => oracle.registers.saw(id, began, was_troubled, value),
        None => {
            let text = format!("register {id} holds {} bytes that nobody wrote as a whole", bytes.len());
            oracle.violate(clock.now(), text);
        }
    }
    Ok(())
}
