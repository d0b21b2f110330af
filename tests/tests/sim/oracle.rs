//! What the simulated clients did and saw, judged as it happens: a model for each object, who may change it, what is under way.
//!
//! One writer at a time for each object, as the client asks of its users until the resource manager has locks: the oracle
//! hands out the turn. A client that dies keeps its turn for [`FENCE`] (a lock manager would fence it for as long). The first
//! violation ends the run. Must not know: how the system works.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base::{Instant, ObjectId};
use clovis_tests::sim_bytes::{BLOCK, TraceHash, recognise};
use clovis_tests::sim_model::{Change, Ending, ObjectModel, Pending, Shape, Ticket};

use crate::keys::Keys;
use crate::registers::Registers;
use crate::sometimes::Sometimes;

/// How long a dead client's object stays locked: longer than any request of it lives.
pub const FENCE: Duration = Duration::from_secs(4);
/// An operation that runs for longer never ends.
pub const OPERATION_MAX: Duration = Duration::from_secs(90);

/// Something a client is doing.
pub struct Running {
    node: usize,
    what: String,
    started: Instant,
    change: Option<(ObjectId, Pending)>,
}

/// How many operations ended how.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub done: u64,
    pub failed: u64,
    pub abandoned: u64,
    pub by_exception: u64,
    pub bytes_checked: u64,
    /// Registers whose reads in troubled times have no single order.
    pub disordered: u64,
}

/// See the module head.
pub struct Oracle {
    objects: BTreeMap<ObjectId, ObjectModel>,
    locked_until: BTreeMap<ObjectId, Instant>,
    /// Requests whose change became durable at some server, over all its lives.
    pub durable_requests: BTreeSet<u64>,
    /// Histories of the registers.
    pub registers: Registers,
    /// And of the keys at control.
    pub keys: Keys,
    running: BTreeMap<u64, Running>,
    next: u64,
    /// Operations that were given their time.
    turns: u64,
    unknown_changes: BTreeMap<ObjectId, u64>,
    /// Rebuilt bytes are possible: a device is out, damaged or doubtful.
    pub may_rebuild: bool,
    /// When a copier was last seen at work.
    pub copied_at: Instant,
    /// Half of the objects are only written in place now: their bytes are to be moved by nobody but who moves them all.
    pub keeps_half: bool,
    /// A server is down, for the counters.
    pub servers_down: usize,
    /// Devices lost or rotted, for the counters.
    pub damaged: usize,
    pub violation: Option<String>,
    pub hash: TraceHash,
    pub sometimes: Sometimes,
    pub tally: Tally,
    /// The last errors of operations, for a failing run.
    pub last_errors: Vec<String>,
    /// Print everything that happens.
    pub is_loud: bool,
}

impl Oracle {
    pub fn new(objects: impl Iterator<Item = (ObjectId, Shape)>) -> Oracle {
        Oracle {
            objects: objects.map(|(id, shape)| (id, ObjectModel::new(shape))).collect(),
            locked_until: BTreeMap::new(),
            durable_requests: BTreeSet::new(),
            registers: Registers::default(),
            keys: Keys::default(),
            running: BTreeMap::new(),
            next: 1,
            turns: 0,
            unknown_changes: BTreeMap::new(),
            may_rebuild: true,
            copied_at: Instant::ZERO,
            keeps_half: false,
            servers_down: 0,
            damaged: 0,
            violation: None,
            hash: TraceHash::default(),
            sometimes: Sometimes::default(),
            tally: Tally::default(),
            last_errors: Vec::new(),
            is_loud: false,
        }
    }

    /// Prints a line of the story, if somebody listens.
    pub fn tell(&self, now: Instant, line: impl FnOnce() -> String) {
        if self.is_loud {
            println!("{now:?} {}", line());
        }
    }

    /// Operations begun so far.
    pub fn begun(&self) -> u64 {
        self.next - 1
    }

    /// When the next of `rate` operations in a second is to begin, from the first second on.
    pub fn next_turn(&mut self, rate: u64) -> Instant {
        self.turns += 1;
        Instant::from_nanos(1_000_000_000 + self.turns * (1_000_000_000 / rate))
    }

    /// Operations ended so far, in whatever way.
    pub fn ended(&self) -> u64 {
        self.tally.done + self.tally.failed + self.tally.abandoned
    }

    /// The object is neither put nor deleted now.
    pub fn is_kept(&self, id: ObjectId) -> bool {
        self.keeps_half && id.lo().is_multiple_of(2)
    }

    pub fn ids(&self) -> Vec<ObjectId> {
        self.objects.keys().copied().collect()
    }

    pub fn model(&self, id: ObjectId) -> &ObjectModel {
        &self.objects[&id]
    }

    /// The first violation counts.
    pub fn violate(&mut self, now: Instant, text: String) {
        self.violation.get_or_insert(format!("at {now:?}: {text}"));
    }

    fn start(&mut self, node: usize, now: Instant, what: String, change: Option<(ObjectId, Pending)>) -> u64 {
        let op = self.next;
        self.next += 1;
        self.hash.add(&[now.as_nanos(), node as u64, op]);
        self.hash.add_text(&what);
        self.tell(now, || format!("node {node} begins {op}: {what}"));
        self.running.insert(op, Running { node, what, started: now, change });
        op
    }

    /// Begins a change of `id`, if it is nobody else's turn. The number is the operation's and its writer's.
    pub fn begin_change(&mut self, node: usize, now: Instant, id: ObjectId, change: Change) -> Option<u64> {
        let is_taken =
            self.running.values().any(|running| running.change.as_ref().is_some_and(|(of, _)| *of == id));
        if is_taken || self.locked_until.get(&id).is_some_and(|until| now < *until) {
            return None;
        }
        let writer = self.next;
        let pending = self.objects.get_mut(&id)?.begin(writer, change);
        Some(self.start(node, now, format!("{change:?} of {id}"), Some((id, pending))))
    }

    /// Begins something that changes nothing.
    pub fn begin_look(&mut self, node: usize, now: Instant, what: String) -> u64 {
        self.start(node, now, what, None)
    }

    pub fn ticket(&self, id: ObjectId) -> Ticket {
        self.objects[&id].ticket()
    }

    /// Ends an operation. `ending`: of a change; ignored for looks.
    pub fn end(&mut self, op: u64, now: Instant, ending: Ending, error: Option<String>) {
        let Some(running) = self.running.remove(&op) else { return };
        self.hash.add(&[now.as_nanos(), op, ending as u64, u64::from(error.is_some())]);
        let end =
            || format!("ends {op}: {} {}", running.what, error.clone().unwrap_or_else(|| "well".to_owned()));
        self.tell(now, end);
        match &error {
            None => self.tally.done += 1,
            Some(error) => {
                self.tally.failed += 1;
                if self.last_errors.len() >= 12 {
                    self.last_errors.remove(0);
                }
                self.last_errors.push(format!("{now:?} {op} {}: {error}", running.what));
            }
        }
        if let Some((id, pending)) = running.change {
            self.finish(id, pending, ending);
        }
    }

    fn finish(&mut self, id: ObjectId, pending: Pending, ending: Ending) {
        if ending == Ending::Unknown {
            *self.unknown_changes.entry(id).or_default() += 1;
        }
        if let Some(model) = self.objects.get_mut(&id) {
            model.end(pending, ending);
            if ending == Ending::Unknown && model.is_torn() {
                self.sometimes.reached("a write in place left torn rows");
            }
        }
    }

    /// A client is dead: nobody knows what became of its operations.
    pub fn abandon(&mut self, node: usize, now: Instant) {
        let gone: Vec<u64> =
            self.running.iter().filter(|(_, running)| running.node == node).map(|(op, _)| *op).collect();
        for op in gone {
            let Some(running) = self.running.remove(&op) else { continue };
            self.tally.abandoned += 1;
            if let Some((id, pending)) = running.change {
                self.sometimes.reached("a client died with a change under way");
                self.locked_until.insert(id, now + FENCE);
                self.finish(id, pending, Ending::Unknown);
            }
        }
    }

    /// A device got another disk, and rebuilt bytes on it.
    pub fn rebuild(&mut self) {
        self.objects.values_mut().for_each(ObjectModel::rebuild);
        let changes = self.running.values_mut().filter_map(|running| running.change.as_mut());
        changes.for_each(|(_, pending)| pending.rebuild());
    }

    /// True if a row of the object may be torn. Registers are only ever replaced as a whole.
    pub fn may_be_torn(&self, id: ObjectId) -> bool {
        self.objects.get(&id).is_some_and(ObjectModel::is_torn)
    }

    pub fn changes_running(&self) -> usize {
        self.running.values().filter(|running| running.change.is_some()).count()
    }

    /// An operation that runs for too long, in words.
    pub fn hung(&self, now: Instant) -> Option<String> {
        // They are in the order of their beginning.
        let (op, running) = self.running.first_key_value()?;
        (now > running.started + OPERATION_MAX).then(|| {
            format!(
                "operation {op} ({}) of node {} runs since {:?}",
                running.what, running.node, running.started
            )
        })
    }

    /// Nobody does anything.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    pub fn running_lines(&self) -> Vec<String> {
        let line = |(op, running): (&u64, &Running)| {
            format!("operation {op} ({}) of node {} since {:?}", running.what, running.node, running.started)
        };
        self.running.iter().map(line).collect()
    }

    pub fn saw_absent(&mut self, now: Instant, id: ObjectId, ticket: Ticket) {
        match self.objects[&id].check_absent(ticket) {
            Ok(()) => self.sometimes.reached("an object was rightly absent"),
            Err(error) => self.violate(now, format!("object {id}: {error}")),
        }
    }

    pub fn saw_size(&mut self, now: Instant, id: ObjectId, ticket: Ticket, size: u64) {
        if let Err(error) = self.objects[&id].check_size(ticket, size) {
            self.violate(now, format!("object {id}: {error}"));
        }
    }

    pub fn saw_listed(&mut self, now: Instant, id: ObjectId, ticket: Ticket, listed: Option<u64>) {
        if let Err(error) = self.objects[&id].check_listed(ticket, listed) {
            self.violate(now, format!("object {id}: {error}"));
        }
    }

    pub fn saw_bytes(
        &mut self,
        now: Instant,
        id: ObjectId,
        ticket: Ticket,
        offset: u64,
        count: u64,
        bytes: &[u8],
    ) {
        self.hash.add(&[now.as_nanos(), offset, count, bytes.len() as u64]);
        self.tally.bytes_checked += bytes.len() as u64;
        match self.objects[&id].check_read(ticket, offset, count, bytes, self.may_rebuild) {
            Ok(accepted) => {
                self.tally.by_exception += u64::from(accepted.by_exception);
                if self.servers_down > 0 && !bytes.is_empty() {
                    self.sometimes.reached("a read was right while a server was down");
                }
                if self.damaged > 0 && !bytes.is_empty() {
                    self.sometimes.reached("a read was right with damaged devices");
                }
                if self.changes_running() > 0 {
                    self.sometimes.reached("a read met a change under way");
                }
                if self.unknown_changes.contains_key(&id) {
                    self.sometimes.reached("a change failed and the object was read later");
                }
            }
            Err(error) => {
                let origins = self.origins(offset, bytes);
                let text = format!(
                    "object {id}, read of {count} bytes at {offset}: {error}; the bytes are {origins}"
                );
                self.violate(now, text);
            }
        }
    }

    /// Where bytes came from, block by block, in words: `writer/block` as far as it can be told.
    fn origins(&self, offset: u64, bytes: &[u8]) -> String {
        let skip = usize::try_from(offset.next_multiple_of(BLOCK) - offset).unwrap_or(usize::MAX);
        let blocks = bytes.get(skip..).unwrap_or_default().chunks(4096);
        let words = blocks.map(|block| match recognise(block, self.next) {
            Some((writer, block)) => format!("{writer}/{block}"),
            None if block.iter().all(|byte| *byte == 0) => "zeros".to_owned(),
            None => "unknown".to_owned(),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    /// A read that had to succeed failed.
    pub fn saw_unreadable(&mut self, now: Instant, id: ObjectId, ticket: Ticket, error: &str) {
        match self.objects[&id].check_unreadable(ticket) {
            Ok(_) => self.tally.by_exception += 1,
            Err(why) => self.violate(now, format!("object {id}: {why}, and the client says: {error}")),
        }
    }
}
