//! Watch and notify: whoever watches an object is told of what others notify on it, and the notifier hears who acknowledged.
//! Answered by the control daemon, which keeps the watches. Rules: docs/watch.md.

use std::fmt;

use base::{Endpoint, Fid};
use bincode::{Decode, Encode};

use crate::fop;

/// A process (or a part of one) that watches: a number that it generated, the same over its reconnects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct WatcherId(pub u128);

impl fmt::Display for WatcherId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// One notify: a number that its sender generated, the same if it is asked for again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct NotifyId(pub u128);

impl fmt::Display for NotifyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Registers a watch; again: its lease begins anew.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct WatchRegister {
    /// The watch, as control keeps it.
    pub watch: WatchRecord,
}

/// Durable.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct WatchRegisterReply {
    /// The lease that counts: what was asked for, within the bounds.
    pub lease_ms: u32,
}
fop!(WatchRegister, WatchRegisterReply, WatchRegister, "watch-register", Idempotent);

/// A watch: what control's store keeps of it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct WatchRecord {
    /// Who.
    pub watcher: WatcherId,
    /// Which of its watches.
    pub cookie: u64,
    /// The object, whether it is there or not.
    pub object: Fid,
    /// The watcher's name, for people.
    pub name: String,
    /// It is forgotten when its watcher was silent for so long, and a grace on top.
    pub lease_ms: u32,
}

/// Ends a watch.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct WatchUnregister {
    /// Whose.
    pub watcher: WatcherId,
    /// Which.
    pub cookie: u64,
}

/// Durable.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct WatchUnregisterReply {
    /// False if there was no such watch.
    pub was_registered: bool,
}
fop!(WatchUnregister, WatchUnregisterReply, WatchUnregister, "watch-unregister", Idempotent);

/// A watcher lives, and asks for what came behind the last notification that it has.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct WatchPoll {
    /// Who.
    pub watcher: WatcherId,
    /// Of the last answer: numbers of another incarnation of control mean nothing to this one. 0 at first.
    pub incarnation: u64,
    /// Start behind this number.
    pub after: u64,
    /// How long control may wait for the next, in milliseconds.
    pub wait_ms: u32,
}

/// What came. The same again until the notify is over, for those who ask again.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct WatchPollReply {
    /// Of control, not 0.
    pub incarnation: u64,
    /// The watches of this watcher: one that is missing has to be registered again, and may have missed something.
    pub cookies: Vec<u64>,
    /// In the order of their numbers.
    pub notifications: Vec<Notification>,
}
fop!(WatchPoll, WatchPollReply, WatchPoll, "watch-poll", Idempotent);

/// What one watch is told.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Notification {
    /// Grows, in this incarnation of control.
    pub number: u64,
    /// The watch.
    pub cookie: u64,
    /// The notify: it may come twice over a restart of control.
    pub notify: NotifyId,
    /// The object.
    pub object: Fid,
    /// Who notified.
    pub from: Endpoint,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// A watch has done what the notification asked for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct WatchAck {
    /// Who.
    pub watcher: WatcherId,
    /// Which watch.
    pub cookie: u64,
    /// What it acknowledges.
    pub notify: NotifyId,
    /// Bytes for the notifier.
    pub payload: Vec<u8>,
}

/// Taken, or too late.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct WatchAckReply {
    /// False if nobody waits for it: the notify is over, or this acknowledgement was there already.
    pub counted: bool,
}
fop!(WatchAck, WatchAckReply, WatchAck, "watch-ack", Idempotent);

/// Tells all watches of an object something and collects their acknowledgements.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Notify {
    /// Asked again with the same number, it joins the first.
    pub id: NotifyId,
    /// The object.
    pub object: Fid,
    /// Bytes for the watchers.
    pub payload: Vec<u8>,
    /// How long to wait for acknowledgements, in milliseconds.
    pub wait_ms: u32,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum NotifyReply {
    /// Each watch that there was when it came is in one of the two.
    Done {
        /// Those that acknowledged, in the order of their answers.
        acks: Vec<NotifyAck>,
        /// Those that did not.
        missed: Vec<NotifyMissed>,
    },
    /// As many are under way as there may be; nobody was told. Ask again.
    Busy,
    /// It is over, and was for more watches than one answer names: [`NotifyOutcomesGet`] fetches them.
    Long {
        /// How many acknowledged.
        acks: u32,
        /// How many did not.
        missed: u32,
    },
}
fop!(Notify, NotifyReply, Notify, "notify", Idempotent);

/// Asks for a page of the outcomes of a notify that is over: those that acknowledged, then those that did not.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NotifyOutcomesGet {
    /// Which notify.
    pub id: NotifyId,
    /// Start behind so many.
    pub after: u32,
}

/// A page of outcomes.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum NotifyOutcomesReply {
    /// As many as a message carries; none at the end.
    Page {
        /// Those that acknowledged.
        acks: Vec<NotifyAck>,
        /// Those that did not.
        missed: Vec<NotifyMissed>,
    },
    /// Control no longer has them: notify again under the same number, and who acknowledged says so again.
    Forgotten,
}
fop!(NotifyOutcomesGet, NotifyOutcomesReply, NotifyOutcomesGet, "notify-outcomes-get", Idempotent);

/// A watch that a notify was for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct WatchPlace {
    /// Who.
    pub watcher: WatcherId,
    /// Which watch.
    pub cookie: u64,
    /// Its name.
    pub name: String,
    /// Where it was last heard.
    pub from: Endpoint,
}

/// A watch that acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NotifyAck {
    /// Which.
    pub watch: WatchPlace,
    /// What it said.
    pub payload: Vec<u8>,
}

/// A watch that did not.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NotifyMissed {
    /// Which.
    pub watch: WatchPlace,
    /// Why not.
    pub why: MissedWhy,
}

/// Why a watch did not acknowledge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum MissedWhy {
    /// It did not ask for notifications in time: its process is gone, stopped or cut off.
    NotReached,
    /// It was told, and did not answer in time.
    NoAnswer,
    /// Its lease ended meanwhile.
    LeaseEnded,
    /// It ended the watch meanwhile.
    Left,
}

/// Asks for a page of the watches, in the order of their watchers and cookies.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct WatchList {
    /// Only those of this object; `None`: all.
    pub object: Option<Fid>,
    /// Start behind this watch.
    pub after: Option<(WatcherId, u64)>,
}

/// A page of the watches.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct WatchListReply {
    /// One for each.
    pub watches: Vec<WatchEntry>,
    /// True if there are more behind the last one.
    pub more: bool,
}
fop!(WatchList, WatchListReply, WatchList, "watch-list", Idempotent);

/// A watch, as control sees it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct WatchEntry {
    /// Who, and where it was last heard.
    pub watch: WatchPlace,
    /// What it watches.
    pub object: Fid,
    /// It is forgotten when its watcher was silent for so long, and a grace on top.
    pub lease_ms: u32,
    /// Milliseconds since its watcher was heard.
    pub silent_ms: u64,
    /// Notifications that it has not acknowledged, or fetched where nobody waits for that.
    pub waiting: u32,
}
