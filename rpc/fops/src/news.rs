//! What notifies carry between parts of Clovis: what control tells of locks and of the configuration, and what the holder of a lock is asked and
//! answers. Rules: docs/watch.md#news, docs/locks.md#cooperation.
//!
//! Such a notify is on a *topic*, a fid that names something to watch and is made from its name, so that everybody finds it. Two names with one topic (a
//! hash of 120 bits) would hear of each other; hence what is said names the lock too.

use base::{Endpoint, Fid, FidType};
use bincode::{Decode, Encode};

use crate::lock::{LockGrant, LockMode, LockName, OwnerId, Ticket};
use crate::watch::WatcherId;

/// Who watches it hears [`ConfigurationNews`].
pub const CONFIGURATION: Fid = Fid::new(FidType::Root, 0, 0);

/// Who watches it hears [`LockNews`] of this lock.
#[must_use]
pub fn of_lock(lock: &LockName) -> Fid {
    topic(FidType::LockNews, OwnerId::default(), lock)
}

/// The program that holds this lock for `owner` watches it, and is sent [`HolderAsk`] there.
#[must_use]
pub fn of_holder(lock: &LockName, owner: OwnerId) -> Fid {
    topic(FidType::LockHolder, owner, lock)
}

/// True if only control notifies there. Nobody waits for acknowledgements of that.
#[must_use]
pub fn is_controls(topic: Fid) -> bool {
    topic == CONFIGURATION || topic.is(FidType::LockNews)
}

/// Source: FNV-1a with 128 bits (draft-eastlake-fnv), without its top byte, over owner, object and name.
fn topic(fid_type: FidType, owner: OwnerId, lock: &LockName) -> Fid {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = (1 << 88) + 0x13b;
    let object = lock.object.map_or([0; 16], Fid::to_key_bytes);
    let bytes = owner.0.to_le_bytes().into_iter().chain(object).chain(lock.name.bytes());
    let hash = bytes.fold(BASIS, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME));
    Fid::from_key_bytes(hash.to_be_bytes()).with_type(fid_type)
}

/// What became of a lock. Told once it is durable.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum LockNews {
    /// It was granted; to its holder, if it was fenced: again, with a new ticket.
    Taken {
        /// As control keeps it.
        grant: LockGrant,
    },
    /// Its owner gave it back.
    Released {
        /// Which.
        lock: LockName,
        /// Its ticket.
        ticket: Ticket,
    },
    /// It is being taken from its owner, who is fenced.
    Breaking {
        /// Which.
        lock: LockName,
        /// Its ticket.
        ticket: Ticket,
        /// Who asked for it; control itself if the holder fell silent.
        by: Endpoint,
        /// Why.
        why: String,
    },
    /// The break is done.
    Broken {
        /// Which.
        lock: LockName,
        /// Its ticket.
        ticket: Ticket,
    },
}

impl LockNews {
    /// The lock that it is about.
    #[must_use]
    pub fn lock(&self) -> &LockName {
        match self {
            LockNews::Taken { grant } => &grant.lock,
            LockNews::Released { lock, .. }
            | LockNews::Breaking { lock, .. }
            | LockNews::Broken { lock, .. } => lock,
        }
    }
}

/// A configuration of this version is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConfigurationNews {
    /// Its version.
    pub version: u64,
}

/// What the holder of a lock is asked.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HolderAsk {
    /// Which lock.
    pub lock: LockName,
    /// The watch of the process that is meant: no other one answers, also if it holds the lock for the same owner later.
    pub to: (WatcherId, u64),
    /// What.
    pub wish: HolderWish,
}

/// What is wanted of a holder.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum HolderWish {
    /// Give the lock back.
    Release {
        /// Who wants it.
        owner: OwnerId,
        /// How.
        mode: LockMode,
        /// What for, for people.
        why: String,
    },
    /// Run a request under the lock.
    Run {
        /// Not to be begun later than this after its arrival, in milliseconds.
        within_ms: u32,
        /// The program's own.
        payload: Vec<u8>,
    },
}

/// What a holder answers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum HolderAnswer {
    /// It gives the lock back, when it is done with what it does.
    Releases,
    /// No. A request was not run.
    Refuses {
        /// Why.
        reason: String,
    },
    /// The request was run.
    Done {
        /// The program's own.
        answer: Vec<u8>,
    },
    /// The request was run, but the lock was lost by then: what it wrote may have been refused.
    Lost,
    /// Another process is meant.
    NotHere,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_made_of_the_whole_name_and_does_not_change() {
        let lock = |object, name: &str| LockName { object, name: name.to_owned() };
        let object = Fid::new(FidType::Object, 1, 7);
        let topics = [
            of_lock(&lock(None, "a")),
            of_lock(&lock(None, "b")),
            of_lock(&lock(Some(object), "a")),
            of_holder(&lock(None, "a"), OwnerId(1)),
            of_holder(&lock(None, "a"), OwnerId(2)),
            of_holder(&lock(None, "a"), OwnerId(1 << 127)),
        ];
        for (at, topic) in topics.iter().enumerate() {
            assert!(!topics[..at].contains(topic));
        }
        // On the wire: who made it and who watches it may be of different versions.
        assert_eq!(topics[2].to_string(), "0x6c55fe162a8bb333:0xd5359a079f9d2ff3");
        assert_eq!(topics[3].to_string(), "0x684dc5fb3a71e043:0x5100685da0b2889f");
        assert!(is_controls(topics[0]) && is_controls(CONFIGURATION));
        assert!(!is_controls(topics[3]) && !is_controls(object));
    }
}
