//! What a peer did that the protocol forbids. Counted; the peer's connection and sessions end; nothing of ours panics.

use base::{Blame, Blamed};

/// A breach of the item protocol, with the values compared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerMisbehaved {
    /// Less than a header.
    #[error("an item of {bytes} bytes has no room for a header")]
    TooShort {
        /// Bytes that came.
        bytes: usize,
    },
    /// Not an item.
    #[error("an item starts with {got:02x?}, which is not the magic of one")]
    Magic {
        /// The first bytes.
        got: [u8; 4],
    },
    /// A packet whose header or lengths do not add up.
    #[error("the field {name} of a packet cannot be {value}")]
    Packet {
        /// Which.
        name: &'static str,
        /// The value.
        value: u64,
    },
    /// Another version of the protocol.
    #[error("an item has version {got}, and this side speaks {known}")]
    Version {
        /// Theirs.
        got: u8,
        /// Ours.
        known: u8,
    },
    /// Damaged on the way.
    #[error("an item claims the checksum {claimed:#010x}, and its bytes have {computed:#010x}")]
    Checksum {
        /// In the header.
        claimed: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// Lengths in the header do not add up to the item.
    #[error("an item of {got} bytes claims to have {claimed}")]
    Length {
        /// Sum of the header's lengths.
        claimed: usize,
        /// Bytes that came.
        got: usize,
    },
    /// A field has a value that its kind of item cannot have.
    #[error("the field {name} of an item cannot be {value}")]
    Field {
        /// Which.
        name: &'static str,
        /// The value.
        value: u64,
    },
    /// A slot that the session does not have.
    #[error("slot {slot} is used in a session of {slots} slots")]
    NoSuchSlot {
        /// Used.
        slot: u16,
        /// There are.
        slots: u16,
    },
    /// A second request in a slot whose first still runs.
    #[error("slot {slot} got request {got} while {running} runs in it")]
    SlotBusy {
        /// The slot.
        slot: u16,
        /// The one that runs.
        running: u64,
        /// The new one.
        got: u64,
    },
    /// A number was left out.
    #[error("slot {slot} got request {got} after {last}")]
    SkippedXid {
        /// The slot.
        slot: u16,
        /// The last number.
        last: u64,
        /// The new one.
        got: u64,
    },
    /// A session that belongs to another peer or another incarnation.
    #[error("session {session:#x} belongs to another peer")]
    ForeignSession {
        /// The session.
        session: u64,
    },
    /// A reply to a request that was never sent.
    #[error("slot {slot} got a reply to request {got}, and only {last} was sent")]
    UnknownReply {
        /// The slot.
        slot: u16,
        /// The last number sent in it.
        last: u64,
        /// The number replied to.
        got: u64,
    },
    /// A bulk descriptor that is none.
    #[error("a bulk descriptor of {bytes} bytes makes no sense: {reason}")]
    Descriptor {
        /// Its size.
        bytes: usize,
        /// What the transport says of it.
        reason: String,
    },
}

impl Blamed for PeerMisbehaved {
    fn blame(&self) -> Blame {
        Blame::Peer
    }
}
