//! Named locks and fences: taken, released and broken at the control daemon; obeyed by the data services, which refuse changes
//! that carry a ticket older than the fence of its owner. Rules: docs/locks.md.

use std::fmt;
use std::str::FromStr;

use base::{Endpoint, Fid};
use bincode::{Decode, Encode};

use crate::component::{ComponentDelete, ComponentDeleteReply, ComponentWrite, ComponentWriteReply};
use crate::fop;
use crate::object::{
    ObjectDelete, ObjectDeleteReply, ObjectOpen, ObjectOpenReply, ObjectUpdate, ObjectUpdateReply,
};

/// Who holds a lock: a number that its user chose or had generated, the same in all of its processes. 0 is nobody's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct OwnerId(pub u128);

impl OwnerId {
    /// In a [`Fence`]: every owner.
    pub const EVERYONE: OwnerId = OwnerId(0);
}

impl fmt::Display for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A text that is not an owner id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an owner id: 1 to 32 hexadecimal digits, not all 0")]
pub struct BadOwnerId {
    /// As given.
    pub text: String,
}

impl FromStr for OwnerId {
    type Err = BadOwnerId;

    fn from_str(text: &str) -> Result<OwnerId, BadOwnerId> {
        let bad = || BadOwnerId { text: text.to_owned() };
        let digits = (1..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match u128::from_str_radix(text, 16) {
            Ok(number) if digits && number != 0 => Ok(OwnerId(number)),
            _ => Err(bad()),
        }
    }
}

/// The right to change things that a granted lock gives: valid until its owner is fenced at this epoch or a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Ticket {
    /// Who.
    pub owner: OwnerId,
    /// Number of the grant, one more with each grant of the cluster; not 0.
    pub epoch: u64,
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.owner, self.epoch)
    }
}

impl FromStr for Ticket {
    type Err = String;

    fn from_str(text: &str) -> Result<Ticket, String> {
        let (owner, epoch) =
            text.split_once(':').ok_or_else(|| format!("`{text}` is not a ticket: OWNER:EPOCH"))?;
        let owner = owner.parse().map_err(|error: BadOwnerId| error.to_string())?;
        match epoch.parse() {
            Ok(epoch) if epoch > 0 => Ok(Ticket { owner, epoch }),
            _ => Err(format!("`{epoch}` is not an epoch: a number from 1 on")),
        }
    }
}

/// Name of a lock: one of any number of an object, or of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct LockName {
    /// The object that it belongs to; `None`: the cluster.
    pub object: Option<Fid>,
    /// 1 to 64 bytes without control characters.
    pub name: String,
}

impl fmt::Display for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.object {
            Some(object) => write!(f, "{} of object {object}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// Who may hold a lock at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum LockMode {
    /// Any number of owners.
    Shared,
    /// One owner.
    Exclusive,
}

/// What happens to a lock whose holder died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum OnDeath {
    /// It stays until its owner releases it or an administrator breaks it. Nothing has to run meanwhile.
    Hold,
    /// The holder renews it; if it does not, it is fenced and then the lock passes on.
    Fence,
}

/// Takes a lock, or waits for it. Taken already by this owner: the same grant again.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LockTake {
    /// Which.
    pub lock: LockName,
    /// For whom.
    pub owner: OwnerId,
    /// How.
    pub mode: LockMode,
    /// What happens at the holder's death.
    pub on_death: OnDeath,
    /// What for, for people.
    pub why: String,
    /// How long control may wait until it is free, in milliseconds; 0: try once. Asking again keeps the place in the queue.
    pub wait_ms: u32,
}

/// Granted, and durable; or not now.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum LockTakeReply {
    /// It is held.
    Granted {
        /// Epoch of the ticket.
        epoch: u64,
        /// With `OnDeath::Fence`: renew it before this much time is over, counted from the sending; else 0.
        lease_ms: u64,
    },
    /// Others hold it, or wait before.
    Busy {
        /// Some of those who hold it.
        holders: Vec<OwnerId>,
        /// Those who wait before.
        ahead: u32,
    },
}
fop!(LockTake, LockTakeReply, LockTake, "lock-take", Idempotent);

/// Gives a lock back. Only its owner can.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LockRelease {
    /// Which.
    pub lock: LockName,
    /// Whose.
    pub owner: OwnerId,
    /// Only this grant; 0: whatever the epoch.
    pub epoch: u64,
}

/// Durable.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LockReleaseReply {
    /// False if it was not held so.
    pub released: bool,
}
fop!(LockRelease, LockReleaseReply, LockRelease, "lock-release", Idempotent);

/// The holder lives.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LockRenew {
    /// Which.
    pub lock: LockName,
    /// Its ticket.
    pub ticket: Ticket,
}

/// What became of the lock.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LockRenewReply {
    /// False: released, or its owner is fenced.
    pub held: bool,
    /// So many wait for it: who can do without it may release it.
    pub waiting: u32,
}
fop!(LockRenew, LockRenewReply, LockRenew, "lock-renew", Idempotent);

/// Takes a lock away from its owner, who is fenced first. Asked again: how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LockBreak {
    /// Which.
    pub lock: LockName,
    /// From whom.
    pub owner: OwnerId,
    /// Why, for people.
    pub why: String,
    /// How long control may wait until it is done, in milliseconds.
    pub wait_ms: u32,
}

/// How far a break is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum BreakState {
    /// That owner does not hold that lock; if it was being broken, it is done.
    NotHeld,
    /// Begun, durable: targets are missing.
    Waiting,
    /// The owner is fenced at every target, and the lock is free of it.
    Done,
}

/// How far it is, and whom it waits for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LockBreakReply {
    /// How far.
    pub state: BreakState,
    /// The targets that it waits for.
    pub waiting: Vec<FenceWait>,
}
fop!(LockBreak, LockBreakReply, LockBreak, "lock-break", Idempotent);

/// A target that has not acknowledged a fence and whose lease runs.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct FenceWait {
    /// The device.
    pub device: Fid,
    /// The process that serves it.
    pub process: Fid,
    /// Where.
    pub endpoint: Endpoint,
    /// Its lease counts as ended after so many milliseconds, unless it is heard again.
    pub lease_ends_ms: u64,
}

/// Asks for a page of the locks, in the order of their names.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LockList {
    /// Only those of this object; `None`: all.
    pub object: Option<Fid>,
    /// Start behind this lock and owner.
    pub after: Option<(LockName, OwnerId)>,
}

/// A page of the locks that are held.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LockListReply {
    /// One for each lock and owner.
    pub locks: Vec<LockEntry>,
    /// True if there are more behind the last one.
    pub more: bool,
}
fop!(LockList, LockListReply, LockList, "lock-list", Idempotent);

/// A held lock.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LockEntry {
    /// The grant as control keeps it.
    pub grant: LockGrant,
    /// With `OnDeath::Fence`: milliseconds since the holder was heard.
    pub silent_ms: Option<u64>,
    /// Those who wait for the lock.
    pub waiting: u32,
    /// Its ticket is refused by then: another lock of its owner was broken, or this one is being broken.
    pub fenced: bool,
}

/// Who holds a lock, since when, from where, why: what control's store keeps of it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LockGrant {
    /// Which.
    pub lock: LockName,
    /// Its ticket.
    pub ticket: Ticket,
    /// How.
    pub mode: LockMode,
    /// What happens at the holder's death.
    pub on_death: OnDeath,
    /// Where it was taken from.
    pub from: Endpoint,
    /// When, in seconds since 1970 by control's clock; 0 if it has none.
    pub since_unix_s: u64,
    /// What for.
    pub why: String,
    /// Its owner is being fenced.
    pub breaking: Option<LockBreaking>,
}

/// A break under way.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LockBreaking {
    /// Number of the fence that every target has to acknowledge.
    pub fence: u64,
    /// Who asked for it; control itself if the holder fell silent.
    pub by: Endpoint,
    /// Why.
    pub why: String,
}

/// Changes with a ticket of `owner` of this epoch or an older one are refused from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Fence {
    /// From 1, one more with each fence of the cluster.
    pub number: u64,
    /// Whose tickets; [`OwnerId::EVERYONE`]: all tickets of these epochs, and fences of these epochs may be forgotten.
    pub owner: OwnerId,
    /// The newest epoch that is refused.
    pub epoch: u64,
}

/// A data service asks for fences, and acknowledges those up to `known`: they are in force at these devices, and no change
/// that they refuse is still under way.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct FencesGet {
    /// The process.
    pub process: Fid,
    /// Its incarnation.
    pub epoch: u64,
    /// The devices of the asking locality.
    pub devices: Vec<Fid>,
    /// Number of the last fence that is in force and whose refused changes are over, 0 for none.
    pub known: u64,
    /// Start behind this number.
    pub after: u64,
    /// How long control may wait for a new one, in milliseconds.
    pub wait_ms: u32,
}

/// A page of fences, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct FencesReply {
    /// Those behind `after`.
    pub fences: Vec<Fence>,
    /// True if there are more behind the last one.
    pub more: bool,
}
fop!(FencesGet, FencesReply, FencesGet, "fences-get", Idempotent);

/// A change with the ticket that it is made under.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Ticketed<F> {
    /// The ticket.
    pub ticket: Ticket,
    /// The change.
    pub change: F,
}
fop!(Ticketed<ComponentWrite>, ComponentWriteReply, TicketedWrite, "ticketed-component-write", AtMostOnce);
fop!(
    Ticketed<ComponentDelete>,
    ComponentDeleteReply,
    TicketedComponentDelete,
    "ticketed-component-delete",
    AtMostOnce
);
fop!(Ticketed<ObjectOpen>, ObjectOpenReply, TicketedOpen, "ticketed-object-open", AtMostOnce);
fop!(Ticketed<ObjectUpdate>, ObjectUpdateReply, TicketedUpdate, "ticketed-object-update", AtMostOnce);
fop!(Ticketed<ObjectDelete>, ObjectDeleteReply, TicketedDelete, "ticketed-object-delete", AtMostOnce);
