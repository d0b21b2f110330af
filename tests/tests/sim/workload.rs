//! What the simulated clients do: a seeded mixture of all that the client can, over a few objects, each answer shown to the oracle.
//!
//! Every answer is judged, errors too: while faults happen an operation may fail for a reason of the environment, but a blame on
//! the caller, the peer or the client itself is a violation, because nothing here misuses anything.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use base::{Blame, Blamed, ByteExtent, Instant, ObjectId};
use client::{Client, ClientError, Object};
use clovis_tests::sim_bytes::{BLOCK, fill};
use clovis_tests::sim_model::{Change, Ending, Shape};
use runtime::clock::SimulatedClock;
use runtime::{LocalityHandle, SharedBuffer};

use crate::oracle::Oracle;
use crate::registers;

/// A copier that nothing came to for so long does nothing.
const COPIES_PAUSE: Duration = Duration::from_millis(20);

/// N of the layout N+2+1: groups of 5 make the client update parity from old bytes, groups of 4 never do.
pub fn data_units(seed: u64) -> u32 {
    if seed.is_multiple_of(2) { 5 } else { 4 }
}

/// The objects: ids that differ in both halves, and unit sizes from one block on.
pub fn objects(cluster: &crate::shape::Shape) -> impl Iterator<Item = (ObjectId, Shape)> + use<> {
    let (data_units, is_small) = (cluster.data_units, cluster.are_objects_small);
    (0..10u64).map(move |index| {
        let id = ObjectId::new(index / 4, 100 + index % 4).expect("below 2^56");
        let unit_blocks = if is_small { 1 } else { unit_blocks(index) };
        (id, Shape { data_units: u64::from(data_units), unit_blocks })
    })
}

fn unit_blocks(index: u64) -> u64 {
    [1, 2, 4, 2, 1, 3][usize::try_from(index % 6).expect("below 6")]
}

/// One worker of one client.
pub struct Worker {
    pub oracle: Rc<RefCell<Oracle>>,
    pub locality: LocalityHandle,
    pub client: Client,
    /// True time, which the oracle reckons in; the locality's own clock may drift.
    pub clock: Rc<SimulatedClock>,
    /// Nothing begins once all clients together have begun so many.
    pub operations_max: u64,
    pub node: usize,
    pub random: fastrand::Rng,
    /// Set: finish what runs and begin nothing.
    pub stop: Rc<Cell<bool>>,
    /// Longest pause between two operations.
    pub think_max: Duration,
    /// What all workers together begin in a second of true time, in turns; `None`: each thinks for itself.
    pub rate_max: Option<u64>,
    /// Objects of two groups at most.
    pub are_objects_small: bool,
}

impl Worker {
    pub async fn run(mut self) {
        while !self.stop.get() {
            let think = u64::try_from(self.think_max.as_nanos()).unwrap_or(u64::MAX);
            let think = Duration::from_nanos(self.random.u64(0..=think));
            let pause = match self.rate_max {
                None => think,
                // Its turn may be over by now: then it makes up for what somebody held up.
                Some(rate) => self.oracle.borrow_mut().next_turn(rate).since(self.now()),
            };
            self.locality.sleep(pause).await;
            if self.stop.get() || self.oracle.borrow().begun() >= self.operations_max {
                break;
            }
            self.one().await;
        }
    }

    /// Writes in place while a server copies to a new disk, `writes_max` times at most.
    pub async fn run_beside_copies(mut self, writes_max: u32) {
        let mut writes = 0;
        while !self.stop.get() && writes < writes_max {
            let is_copied = self.oracle.borrow().copied_at + COPIES_PAUSE >= self.now();
            let pause = if is_copied { Duration::from_millis(1) } else { COPIES_PAUSE / 2 };
            self.locality.sleep(pause).await;
            let is_allowed = self.oracle.borrow().begun() < self.operations_max;
            if is_copied && is_allowed && !self.stop.get() {
                let ids = self.oracle.borrow().ids();
                let id = ids[self.random.usize(0..ids.len())];
                self.write(id).await;
                writes += 1;
            }
        }
    }

    fn now(&self) -> Instant {
        self.clock.now()
    }

    async fn one(&mut self) {
        let ids = self.oracle.borrow().ids();
        let id = ids[self.random.usize(0..ids.len())];
        let is_kept = self.oracle.borrow().is_kept(id);
        match self.random.u32(0..100) {
            0..26 | 48..54 if is_kept => self.write(id).await,
            0..26 => self.put(id).await,
            26..48 => self.write(id).await,
            48..54 => self.delete(id).await,
            54..60 => self.list().await,
            60..66 => self.stat(id).await,
            66..70 => self.late_read(id).await,
            _ => self.read(id).await,
        }
    }

    fn size(&mut self, shape: Shape) -> u64 {
        let (unit, group) = (shape.unit_blocks * BLOCK, shape.group_bytes());
        let random = self.random.u64(1..BLOCK);
        match self.random.u32(0..12) {
            0 => 0,
            1 => 1,
            2 => BLOCK - 1,
            3 => BLOCK,
            4 => BLOCK + 1,
            5 => unit,
            6 => unit + random,
            7 => group,
            8 => group + 1,
            9.. if self.are_objects_small => self.random.u64(1..2 * group),
            9 => 2 * group + unit + random,
            10 => 3 * group,
            _ => self.random.u64(1..5 * group),
        }
    }

    /// Judges an error; its text.
    fn judge(&self, error: &ClientError) -> String {
        let text = error.to_string();
        let is_right = match error {
            ClientError::NotFound { .. } => true, // judged by whoever knows what was asked
            other => {
                other.blame() == Blame::Environment && !matches!(other, ClientError::ParityMismatch { .. })
            }
        };
        if !is_right {
            self.oracle
                .borrow_mut()
                .violate(self.now(), format!("an operation failed for no reason of the environment: {text}"));
        }
        text
    }

    async fn put(&mut self, id: ObjectId) {
        let shape = self.oracle.borrow().model(id).shape();
        let size = self.size(shape);
        let began = self.oracle.borrow_mut().begin_change(self.node, self.now(), id, Change::Put { size });
        let Some(writer) = began else { return self.read(id).await };
        let in_pieces = self.random.bool();
        let result = self.replace(id, shape, writer, size, in_pieces).await;
        let error = result.as_ref().err().map(|error| self.judge(error));
        let ending = if error.is_none() { Ending::Done } else { Ending::Unknown };
        self.oracle.borrow_mut().end(writer, self.now(), ending, error);
    }

    async fn replace(
        &mut self,
        id: ObjectId,
        shape: Shape,
        writer: u64,
        size: u64,
        in_pieces: bool,
    ) -> Result<(), ClientError> {
        let unit_bytes = u32::try_from(shape.unit_blocks * BLOCK).expect("small units");
        let object = self.client.create_or_open(id, Some(unit_bytes)).await?;
        let replacement = object.replace().await?;
        if in_pieces {
            // Back to front, so that the tail comes first.
            let group = shape.group_bytes();
            for index in (0..size.div_ceil(group)).rev() {
                let extent = ByteExtent { start: index * group, count: group.min(size - index * group) };
                let parts = self.parts(writer, extent).await;
                replacement.write(extent.start, parts).await?;
            }
            return replacement.commit(size).await;
        }
        let source = async |offset: u64, mut buffer: runtime::Buffer| {
            let count = usize::try_from((size - offset.min(size)).min(buffer.len() as u64))
                .expect("a buffer's bytes");
            buffer.resize(count);
            fill(writer, offset, &mut buffer);
            Ok(buffer)
        };
        let uploaded = self.client.upload(&replacement, source, |_| {}).await?;
        if uploaded != size {
            self.oracle
                .borrow_mut()
                .violate(self.now(), format!("an upload of {size} bytes took {uploaded}"));
        }
        replacement.commit(uploaded).await
    }

    /// Bytes of a writer in buffers of odd lengths.
    async fn parts(&mut self, writer: u64, extent: ByteExtent) -> Vec<SharedBuffer> {
        let mut parts = Vec::new();
        let mut at = extent.start;
        while at < extent.end() {
            let most = (extent.end() - at).min(256 << 10);
            let count = match self.random.u32(0..4) {
                0 if most > BLOCK => self.random.u64(1..most),
                1 if most > BLOCK => self.random.u64(1..=most / BLOCK) * BLOCK,
                _ => most,
            };
            let mut buffer = self.locality.arena().alloc(usize::try_from(count).expect("small")).await;
            fill(writer, at, &mut buffer);
            parts.push(buffer.freeze());
            at += count;
        }
        parts
    }

    async fn write(&mut self, id: ObjectId) {
        let (shape, size, may_exist) = {
            let oracle = self.oracle.borrow();
            let model = oracle.model(id);
            (model.shape(), model.size_max(), model.may_exist())
        };
        if !may_exist {
            return self.put(id).await;
        }
        let group_blocks = shape.data_units * shape.unit_blocks;
        let reach = size.div_ceil(BLOCK) + self.random.u64(0..=group_blocks);
        let start = self.random.u64(0..=reach.min(6 * group_blocks));
        let (start, count) = match self.random.u32(0..4) {
            0 => (start, 1),
            1 => (start / group_blocks * group_blocks, group_blocks),
            _ => (start, self.random.u64(1..=group_blocks + 2)),
        };
        let ticket = self.oracle.borrow().ticket(id);
        let began =
            self.oracle.borrow_mut().begin_change(self.node, self.now(), id, Change::Write { start, count });
        let Some(writer) = began else { return self.read(id).await };
        let object = match self.client.open(id).await {
            Ok(object) => object,
            Err(error) => {
                let text = self.judge(&error);
                if matches!(error, ClientError::NotFound { .. }) {
                    self.oracle.borrow_mut().saw_absent(self.now(), id, ticket);
                }
                return self.oracle.borrow_mut().end(writer, self.now(), Ending::Nothing, Some(text));
            }
        };
        let extent = ByteExtent { start: start * BLOCK, count: count * BLOCK };
        let parts = self.parts(writer, extent).await;
        let result = object.write(extent, parts).await;
        let error = result.as_ref().err().map(|error| self.judge(error));
        let ending = if error.is_none() { Ending::Done } else { Ending::Unknown };
        self.oracle.borrow_mut().end(writer, self.now(), ending, error);
    }

    async fn delete(&mut self, id: ObjectId) {
        let ticket = self.oracle.borrow().ticket(id);
        let began = self.oracle.borrow_mut().begin_change(self.node, self.now(), id, Change::Delete);
        let Some(op) = began else { return self.read(id).await };
        let (ending, error) = match self.client.delete(id).await {
            Ok(()) => (Ending::Done, None),
            Err(error @ ClientError::NotFound { .. }) => {
                self.oracle.borrow_mut().saw_absent(self.now(), id, ticket);
                (Ending::Nothing, Some(error.to_string()))
            }
            Err(error) => (Ending::Unknown, Some(self.judge(&error))),
        };
        self.oracle.borrow_mut().end(op, self.now(), ending, error);
    }

    async fn stat(&mut self, id: ObjectId) {
        let ticket = self.oracle.borrow().ticket(id);
        let op = self.oracle.borrow_mut().begin_look(self.node, self.now(), format!("stat of {id}"));
        let error = match self.client.stat(id).await {
            Ok(stat) => {
                self.oracle.borrow_mut().saw_size(self.now(), id, ticket, stat.size_bytes);
                None
            }
            Err(error @ ClientError::NotFound { .. }) => {
                self.oracle.borrow_mut().saw_absent(self.now(), id, ticket);
                Some(error.to_string())
            }
            Err(error) => Some(self.judge(&error)),
        };
        self.oracle.borrow_mut().end(op, self.now(), Ending::Nothing, error);
    }

    async fn list(&mut self) {
        let ids = self.oracle.borrow().ids();
        let after = self.random.bool().then(|| ids[self.random.usize(0..ids.len())]);
        let limit = if self.random.bool() { 100 } else { self.random.usize(1..6) };
        let tickets: Vec<_> = ids.iter().map(|id| (*id, self.oracle.borrow().ticket(*id))).collect();
        let op = self.oracle.borrow_mut().begin_look(self.node, self.now(), format!("list after {after:?}"));
        let result = self.client.list(after, limit).await;
        let now = self.now();
        let error = match result {
            Ok(found) => {
                let mut oracle = self.oracle.borrow_mut();
                let is_sorted = found.windows(2).all(|pair| pair[0].object < pair[1].object);
                let is_known = found
                    .iter()
                    .all(|stat| is_known(&ids, stat.object) && after.is_none_or(|id| stat.object > id));
                if !is_sorted || !is_known || found.len() > limit {
                    oracle.violate(now, format!("a list after {after:?} of at most {limit} gave {found:?}"));
                }
                // What it says about ids up to its end.
                let end = if found.len() == limit { found.last().map(|stat| stat.object) } else { None };
                for (id, ticket) in tickets {
                    if after.is_some_and(|after| id <= after) || end.is_some_and(|end| id > end) {
                        continue;
                    }
                    let listed = found.iter().find(|stat| stat.object == id).map(|stat| stat.size_bytes);
                    oracle.saw_listed(now, id, ticket, listed);
                }
                oracle.sometimes.reached("a list was complete");
                None
            }
            Err(error) => Some(self.judge(&error)),
        };
        self.oracle.borrow_mut().end(op, now, Ending::Nothing, error);
    }

    async fn read(&mut self, id: ObjectId) {
        let (ticket, size) = (self.oracle.borrow().ticket(id), self.oracle.borrow().model(id).size_max());
        let op = self.oracle.borrow_mut().begin_look(self.node, self.now(), format!("read of {id}"));
        let (offset, count) = match self.random.u32(0..3) {
            0 => {
                let offset = self.random.u64(0..=size);
                (offset, self.random.u64(0..=size + BLOCK))
            }
            1 => (self.random.u64(0..=size / BLOCK) * BLOCK, BLOCK),
            _ => (0, size + 1),
        };
        let streamed = self.random.u32(0..4) == 0;
        let error = match self.client.open(id).await {
            Ok(object) => read_and_show(self, &object, ticket, offset, count, streamed).await,
            Err(error) => Some(error),
        };
        let error = self.end_of_read(id, ticket, error);
        self.oracle.borrow_mut().end(op, self.now(), Ending::Nothing, error);
    }

    /// Reads through a handle that was opened a while ago.
    async fn late_read(&mut self, id: ObjectId) {
        let (ticket, size) = (self.oracle.borrow().ticket(id), self.oracle.borrow().model(id).size_max());
        let op = self.oracle.borrow_mut().begin_look(self.node, self.now(), format!("late read of {id}"));
        let error = match self.client.open(id).await {
            Ok(object) => {
                self.locality.sleep(Duration::from_millis(self.random.u64(0..300))).await;
                read_and_show(self, &object, ticket, 0, size + 100_000, false).await
            }
            Err(error) => Some(error),
        };
        let error = self.end_of_read(id, ticket, error);
        self.oracle.borrow_mut().end(op, self.now(), Ending::Nothing, error);
    }

    fn end_of_read(
        &self,
        id: ObjectId,
        ticket: clovis_tests::sim_model::Ticket,
        error: Option<ClientError>,
    ) -> Option<String> {
        let error = error?;
        if matches!(error, ClientError::NotFound { .. }) {
            self.oracle.borrow_mut().saw_absent(self.now(), id, ticket);
        }
        Some(self.judge(&error))
    }
}

/// An object of the workload's, or a register.
fn is_known(ids: &[ObjectId], id: ObjectId) -> bool {
    ids.contains(&id) || registers::ids().any(|register| register == id)
}

/// Reads and has the oracle look at the bytes; the error, if it failed.
async fn read_and_show(
    worker: &Worker,
    object: &Object,
    ticket: clovis_tests::sim_model::Ticket,
    offset: u64,
    count: u64,
    streamed: bool,
) -> Option<ClientError> {
    let id = object.id();
    worker.oracle.borrow_mut().saw_size(worker.now(), id, ticket, object.size());
    let extent = ByteExtent { start: offset, count };
    let bytes = match read_bytes(&worker.client, object, extent, streamed).await {
        Ok(bytes) => bytes,
        Err(error) => return Some(error),
    };
    worker.oracle.borrow_mut().saw_bytes(worker.now(), id, ticket, offset, count, &bytes);
    None
}

/// The bytes of an extent, as one piece.
pub async fn read_bytes(
    client: &Client,
    object: &Object,
    extent: ByteExtent,
    streamed: bool,
) -> Result<Vec<u8>, ClientError> {
    if streamed {
        let collected = Rc::new(RefCell::new(Vec::new()));
        let sink = |_offset: u64, part: SharedBuffer| {
            collected.borrow_mut().extend_from_slice(&part);
            std::future::ready(Ok(()))
        };
        client.download(object, extent, sink, |_| {}).await?;
        return Ok(collected.take());
    }
    let parts = object.read(extent).await?;
    let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    Ok(bytes)
}
