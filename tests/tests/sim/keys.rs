//! Single keys at control: named locks that clients take, try, renew, release and break, and the version of the configuration, which they
//! read and operators change. Their histories have to be linearizable, always and all of them: control tells nobody of anything before it is durable.
//!
//! Judged at the end of a run by [`clovis_tests::sim_linear`] with the models of [`clovis_tests::sim_keys`]. An operation without an answer may
//! have happened at any later time, or never. An owner is one client's on one lock, so that no lock's history hangs on another's fences.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use base::{Blame, Blamed, Endpoint, Fid, ObjectId};
use client::Client;
use clovis_tests::sim_bytes::TraceHash;
use clovis_tests::sim_keys::{LockDid, LockState, NamedLock, VersionDid, VersionState, Versions};
use clovis_tests::sim_linear::{Event, Model, Verdict, check};
use clovis_tests::sim_model::Ending;
use fops::Fop;
use fops::conf::{ConfGet, ConfGetReply, DeviceCommandReply};
use fops::lock::{
    BreakState, LockBreak, LockEntry, LockList, LockListReply, LockMode, LockName, LockRelease, LockRenew,
    LockTake, LockTakeReply, OnDeath, OwnerId, Ticket,
};
use rpc::{Bulk, CallOptions, RpcMachine};
use runtime::LocalityHandle;
use runtime::clock::SimulatedClock;

use crate::oracle::Oracle;
use crate::registers::told;

/// Locks of a run. The last one is shared by every second client.
const LOCKS: u64 = 2;
/// How long a client waits for an answer.
const ANSWER_TIME: Duration = Duration::from_millis(1200);
/// The same, where one control daemon is asked itself.
const DAEMON_TIME: Duration = Duration::from_millis(250);
/// How often a question may run once more. Each time takes a session or a lead of its own, of which there are few in the time of one question; most of
/// what [`repeats`] counts are other questions of the same client, and daemons that said that they do not lead.
const AGAIN_MAX: u64 = 3;
/// How long control may let it wait for a lock, or a break.
const WAIT_MS: u32 = 300;

fn name_of(lock: u64) -> LockName {
    LockName { object: Some(object_of(lock)), name: "writer".to_owned() }
}

/// None of the workload's.
fn object_of(lock: u64) -> Fid {
    ObjectId::new(901, lock).expect("below 2^56").fid()
}

fn owner_of(node: usize, lock: u64) -> u64 {
    (node as u64 + 1) << 8 | lock
}

/// Every second client takes the last lock with others.
fn is_shared(owner: u64, lock: u64) -> bool {
    lock + 1 == LOCKS && (owner >> 8).is_multiple_of(2)
}

/// An operation under way. Whatever becomes of it, also if its client dies: when this goes, the history has it as often as it may have run.
struct Begun {
    oracle: Rc<RefCell<Oracle>>,
    rpc: RpcMachine,
    control: Endpoint,
    lock: u64,
    /// In the history.
    place: usize,
    /// As it stands there as long as nobody knows its end.
    unknown: Event<LockDid>,
    /// What [`repeats`] counted by then.
    repeats: u64,
}

impl Drop for Begun {
    fn drop(&mut self) {
        // Asked once in a session, however often it is sent, it runs once; in another one it may run once more.
        let again = (repeats(&self.rpc, self.control) - self.repeats).min(AGAIN_MAX);
        let keys = &mut self.oracle.borrow_mut().keys;
        let History(events) = keys.lock(self.lock);
        events.extend((0..again).map(|_| self.unknown.clone()));
    }
}

/// Requests of a client that were sent again in another session, or to another control daemon: each may have run once more.
fn repeats(rpc: &RpcMachine, control: Endpoint) -> u64 {
    rpc.stats().requester.repeated + rpc.moved_in_group(control)
}

/// What was done to one key.
struct History<D>(Vec<Event<D>>);

impl<D> Default for History<D> {
    fn default() -> Self {
        History(Vec::new())
    }
}

/// All histories of a run.
#[derive(Default)]
pub struct Keys {
    /// Counts beginnings and ends.
    moment: u64,
    locks: BTreeMap<u64, History<LockDid>>,
    versions: History<VersionDid>,
    /// Grants and releases that somebody heard of.
    pub heard: u64,
}

/// What the histories of a run came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Judged {
    pub grants: u64,
    pub breaks: u64,
    /// Operations on locks whose end nobody knows.
    pub unknown: u64,
    /// Times that somebody was told a version.
    pub versions: u64,
    pub given_up: u64,
}

impl Keys {
    fn moment(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    fn lock(&mut self, lock: u64) -> &mut History<LockDid> {
        self.locks.entry(lock).or_default()
    }

    /// An order changes the configuration from now on; its beginning.
    pub fn begin_order(&mut self) -> u64 {
        self.moment()
    }

    /// What came of an order.
    pub fn end_order(&mut self, began: u64, reply: &DeviceCommandReply) {
        let ended = self.moment();
        let did = match reply.is_new {
            true => VersionDid::Changed(reply.version),
            false => VersionDid::WasSo(reply.version),
        };
        self.versions.0.push(Event { began, ended: Some(ended), did });
    }

    /// Somebody asked who has a lock, from `began` on, and was told now. Answer: the first of them.
    fn saw_list(&mut self, lock: u64, began: u64, reply: LockListReply) -> Option<u64> {
        let entry = |entry: LockEntry| {
            let ticket = entry.grant.ticket;
            (u64::try_from(ticket.owner.0).unwrap_or(u64::MAX), ticket.epoch, entry.grant.breaking.is_some())
        };
        let listed: Vec<_> = reply.locks.into_iter().map(entry).collect();
        let first = listed.first().map(|(owner, ..)| *owner);
        let ended = Some(self.moment());
        self.lock(lock).0.push(Event { began, ended, did: LockDid::Listed(listed) });
        first
    }

    /// Somebody asked for the configuration, from `began` on, and was told now.
    fn saw_version(&mut self, began: u64, reply: ConfGetReply) {
        let mut hash = TraceHash::default();
        hash.add_bytes(&reply.configuration.unwrap_or_default());
        let did = VersionDid::Read { version: reply.version, content: hash.0 };
        let ended = Some(self.moment());
        self.versions.0.push(Event { began, ended, did });
    }

    /// Judges all histories. Error: one that no order explains.
    pub fn judge(&self) -> Result<Judged, String> {
        let mut judged = Judged { versions: self.versions.0.len() as u64, ..Judged::default() };
        for (lock, History(events)) in &self.locks {
            let count =
                |is: fn(&Event<LockDid>) -> bool| events.iter().filter(|event| is(event)).count() as u64;
            judged.grants += count(|event| matches!(event.did, LockDid::Take { granted: Some(_), .. }));
            judged.breaks +=
                count(|event| event.ended.is_some() && matches!(event.did, LockDid::BreakDone { .. }));
            judged.unknown += count(|event| event.ended.is_none());
            let is_given_up =
                judge_one::<NamedLock>(&LockState::default(), events, &name_of(*lock).to_string())?;
            judged.given_up += u64::from(is_given_up);
        }
        let events = &self.versions.0;
        let is_given_up = judge_one::<Versions>(&VersionState::default(), events, "the configuration")?;
        judged.given_up += u64::from(is_given_up);
        Ok(judged)
    }
}

/// True if the search was given up.
fn judge_one<M: Model>(initial: &M::State, events: &[Event<M::Did>], key: &str) -> Result<bool, String> {
    match check::<M>(initial, events) {
        Verdict::Linearizable => Ok(false),
        Verdict::TooLong => Ok(true),
        Verdict::Not(events) => Err(format!("{key}: no order explains what was told: {}", told(&events))),
    }
}

/// One client's worker on the keys.
pub struct KeyWorker {
    pub oracle: Rc<RefCell<Oracle>>,
    pub locality: LocalityHandle,
    pub client: Client,
    pub clock: Rc<SimulatedClock>,
    pub control: Endpoint,
    /// If not empty, each operation goes to one of these control daemons itself, if it believes that it leads: what one of them says, or does, has to
    /// fit into the same order.
    pub daemons: Vec<Endpoint>,
    pub node: usize,
    /// Whose locks it takes.
    pub owner: usize,
    pub random: fastrand::Rng,
    pub stop: Rc<Cell<bool>>,
    pub operations_max: u64,
    pub pause_max: Duration,
    /// Nothing excuses that there is no answer.
    pub is_calm: bool,
    /// Workers that run, this one too: one less at its end.
    pub running: Rc<Cell<usize>>,
    /// Epochs of the grants that it knows it has, by lock.
    pub held: BTreeMap<u64, u64>,
    /// Who was last seen to hold what another one wants.
    pub seen: BTreeMap<u64, u64>,
}

impl KeyWorker {
    pub async fn run(mut self) {
        let pause_max = u64::try_from(self.pause_max.as_micros()).unwrap_or(u64::MAX);
        while !self.stop.get() {
            self.locality.sleep(Duration::from_micros(self.random.u64(0..pause_max))).await;
            if self.stop.get() || self.oracle.borrow().begun() >= self.operations_max {
                break;
            }
            if !self.daemons.is_empty() {
                self.control = self.daemons[self.random.usize(0..self.daemons.len())];
                if !self.read_version().await {
                    continue;
                }
                // Mostly what it can answer by itself: a change shows nothing before somebody else has it, and is waited for in vain.
                if self.random.u32(0..10) < 6 {
                    let lock = self.random.u64(0..LOCKS);
                    self.list(lock).await;
                    continue;
                }
            }
            let lock = self.random.u64(0..LOCKS);
            match (self.held.get(&lock).copied(), self.random.u32(0..10)) {
                (_, 0) => drop(self.read_version().await),
                (_, 1) => self.list(lock).await,
                (Some(epoch), 2..4) => self.renew(lock, epoch).await,
                (Some(epoch), _) => self.release(lock, epoch).await,
                (None, 2..4) => self.break_lock(lock).await,
                (None, 4..6) => self.take(lock, 0).await,
                (None, _) => self.take(lock, WAIT_MS).await,
            }
        }
        self.running.set(self.running.get() - 1);
    }

    /// One question to control. `None`: nobody knows what it did.
    async fn ask<F: Fop>(&self, what: String, fop: &F) -> Option<F::Reply> {
        let op = self.oracle.borrow_mut().begin_look(self.node, self.clock.now(), what);
        let answer_time = if self.daemons.is_empty() { ANSWER_TIME } else { DAEMON_TIME };
        let options = CallOptions::until(self.locality.now() + answer_time);
        let rpc = self.client.rpc();
        let result = match self.daemons.is_empty() {
            true => rpc.call(self.control, fop, Bulk::none(), options).await,
            false => rpc.call_itself(self.control, fop, Bulk::none(), options).await,
        };
        let (reply, error) = match result {
            Ok(answer) => (Some(answer.reply), None),
            Err(error) => (None, Some(error)),
        };
        let mut oracle = self.oracle.borrow_mut();
        if let Some(error) =
            error.as_ref().filter(|error| self.is_calm || error.blame() != Blame::Environment)
        {
            oracle.violate(self.clock.now(), format!("control does not answer, without a reason: {error}"));
        }
        oracle.end(op, self.clock.now(), Ending::Nothing, error.map(|error| error.to_string()));
        reply
    }

    /// Something begins that may change a lock; its place. It stays as it is here if nobody hears of its end: its client may die, too.
    fn begin(&self, lock: u64, did: LockDid) -> Begun {
        let rpc = self.client.rpc().clone();
        let repeats = repeats(&rpc, self.control);
        let keys = &mut self.oracle.borrow_mut().keys;
        let unknown = Event { began: keys.moment(), ended: None, did };
        let History(events) = keys.lock(lock);
        events.push(unknown.clone());
        let (oracle, control, place) = (Rc::clone(&self.oracle), self.control, events.len() - 1);
        Begun { oracle, rpc, control, lock, place, unknown, repeats }
    }

    /// It ended like this: what it was told is what came of the last time that it ran.
    fn end(&self, begun: Begun, did: LockDid) {
        let keys = &mut self.oracle.borrow_mut().keys;
        let ended = Some(keys.moment());
        let History(events) = keys.lock(begun.lock);
        events[begun.place] = Event { began: begun.unknown.began, ended, did };
    }

    /// Something that changes nothing began then and ends now.
    fn saw(&self, lock: u64, began: u64, did: LockDid) {
        let keys = &mut self.oracle.borrow_mut().keys;
        let ended = Some(keys.moment());
        keys.lock(lock).0.push(Event { began, ended, did });
    }

    fn moment(&self) -> u64 {
        self.oracle.borrow_mut().keys.moment()
    }

    async fn take(&mut self, lock: u64, wait_ms: u32) {
        let owner = owner_of(self.owner, lock);
        let is_shared = is_shared(owner, lock);
        let take = LockTake {
            lock: name_of(lock),
            owner: OwnerId(owner.into()),
            mode: if is_shared { LockMode::Shared } else { LockMode::Exclusive },
            on_death: OnDeath::Hold,
            why: String::new(),
            wait_ms,
        };
        let begun = self.begin(lock, LockDid::Take { owner, is_shared, granted: None });
        match self.ask(format!("take of lock {lock}"), &take).await {
            None => {}
            Some(LockTakeReply::Granted { epoch, .. }) => {
                self.held.insert(lock, epoch);
                self.oracle.borrow_mut().keys.heard += 1;
                self.end(begun, LockDid::Take { owner, is_shared, granted: Some(epoch) });
            }
            Some(LockTakeReply::Busy { holders, ahead }) => {
                let owners = holders.into_iter().map(|owner| u64::try_from(owner.0).unwrap_or(u64::MAX));
                let holders: Vec<u64> = owners.collect();
                self.seen.extend(holders.first().map(|first| (lock, *first)));
                let is_queued = ahead > 0;
                self.end(begun, LockDid::Refused { owner, is_shared, holders, is_queued });
            }
        }
    }

    async fn release(&mut self, lock: u64, epoch: u64) {
        let owner = owner_of(self.owner, lock);
        let release = LockRelease { lock: name_of(lock), owner: OwnerId(owner.into()), epoch };
        let begun = self.begin(lock, LockDid::Release { owner, epoch, released: None });
        let reply = self.ask(format!("release of lock {lock}"), &release).await;
        self.held.remove(&lock);
        if let Some(reply) = reply {
            self.oracle.borrow_mut().keys.heard += 1;
            self.end(begun, LockDid::Release { owner, epoch, released: Some(reply.released) });
        }
    }

    async fn renew(&mut self, lock: u64, epoch: u64) {
        let owner = owner_of(self.owner, lock);
        let ticket = Ticket { owner: OwnerId(owner.into()), epoch };
        let began = self.moment();
        let renew = LockRenew { lock: name_of(lock), ticket };
        let Some(reply) = self.ask(format!("renewal of lock {lock}"), &renew).await else { return };
        if !reply.held {
            self.held.remove(&lock);
        }
        self.saw(lock, began, LockDid::Renew { owner, epoch, is_held: reply.held });
    }

    async fn list(&mut self, lock: u64) {
        let began = self.moment();
        let question = LockList { object: Some(object_of(lock)), after: None };
        let Some(reply) = self.ask(format!("list of lock {lock}"), &question).await else { return };
        let first = self.oracle.borrow_mut().keys.saw_list(lock, began, reply);
        self.seen.extend(first.map(|owner| (lock, owner)));
    }

    /// Breaks the lock of whoever was last seen with it.
    async fn break_lock(&mut self, lock: u64) {
        let own = owner_of(self.owner, lock);
        let Some(owner) = self.seen.remove(&lock).filter(|owner| *owner != own) else {
            return self.list(lock).await;
        };
        let why = "a test".to_owned();
        let order = LockBreak { lock: name_of(lock), owner: OwnerId(owner.into()), why, wait_ms: WAIT_MS };
        let begun = self.begin(lock, LockDid::BreakBegun { owner, is_known: false });
        let done = self.begin(lock, LockDid::BreakDone { owner });
        let reply = self.ask(format!("break of lock {lock}"), &order).await;
        match reply.map(|reply| reply.state) {
            None => {}
            Some(BreakState::NotHeld) => {
                self.end(begun, LockDid::NotHeld { owner });
                self.end(done, LockDid::NotHeld { owner });
            }
            Some(state) => {
                self.end(begun, LockDid::BreakBegun { owner, is_known: true });
                if state == BreakState::Done {
                    self.end(done, LockDid::BreakDone { owner });
                }
            }
        }
    }

    /// True if there was an answer.
    async fn read_version(&mut self) -> bool {
        let began = self.moment();
        let question = ConfGet { known_version: 0 };
        let reply = self.ask("read of the configuration".to_owned(), &question).await;
        let is_told = reply.is_some();
        reply.into_iter().for_each(|reply| self.oracle.borrow_mut().keys.saw_version(began, reply));
        is_told
    }
}
