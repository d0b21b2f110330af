//! Between control daemons that replicate their state, and for those who run them: messages of the consensus, members, copies of the state.
//!
//! The bytes of a message are `control`'s own (docs/wire.md#control-daemons): this crate carries them.

use base::Endpoint;
use bincode::{Decode, Encode};

use crate::fop;

/// A message of the consensus. Its bytes are the request's bulk source. May be lost, doubled or late.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct MemberMessage {
    /// Id of the cluster: another one's messages are refused.
    pub cluster: u64,
    /// Number of the sender.
    pub from: u64,
    /// Number that the receiver should have: a daemon that took over an endpoint is another member.
    pub to: u64,
    /// Drawn for each message: long ones come in parts.
    pub message: u64,
    /// Where this part begins.
    pub offset: u64,
    /// Bytes of the whole message.
    pub total_bytes: u64,
}

/// It came; what it leads to comes as a message.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct MemberMessageReply;
fop!(MemberMessage, MemberMessageReply, MemberMessage, "member-message", Idempotent);

/// Asks a control daemon what it knows of the control daemons. Each answers for itself, whether it leads or not.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct MembersGet;

/// The control daemons as one of them sees them.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct MembersReply {
    /// Who answers: its number; 0 for a daemon that is alone and replicates nothing.
    pub own: u64,
    /// Its term.
    pub term: u64,
    /// Number of the member that leads, as far as it knows; 0 for none.
    pub leader: u64,
    /// Newest entry that it knows to be durable on a majority.
    pub committed: u64,
    /// Newest entry of which it has the effect.
    pub applied: u64,
    /// Newest entry of its log.
    pub last: u64,
    /// The members, by number.
    pub members: Vec<MemberStatus>,
}

/// A member as seen by the one that answers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct MemberStatus {
    /// Its number.
    pub number: u64,
    /// Where it listens, if the cluster file in force says so.
    pub endpoint: Option<Endpoint>,
    /// False: it is fed and does not count for a majority yet.
    pub is_voter: bool,
    /// Milliseconds since it was last heard; `None` if never, or for who answers.
    pub silent_ms: Option<u64>,
    /// Newest entry that it has, as far as a leader knows.
    pub last: Option<u64>,
}
fop!(MembersGet, MembersReply, MembersGet, "members-get", Idempotent);

/// Adds or removes a control daemon. Answered when a majority of those before and after has it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct MemberChange {
    /// Its number, as the cluster file in force has it.
    pub number: u64,
    /// False: it is to go.
    pub adds: bool,
}

/// Where the change stands.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct MemberChangeReply {
    /// It is done; else it is under way, and the same request looks again.
    pub is_done: bool,
}
fop!(MemberChange, MemberChangeReply, MemberChange, "member-change", Idempotent);

/// Asks for the state of control as a backup: as much as fits the request's sink, from `offset` on.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct BackupGet {
    /// Name of the copy that an earlier answer gave; 0 for a new one.
    pub copy: u64,
    /// First byte wanted.
    pub offset: u64,
}

/// A part of it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct BackupReply {
    /// Name of the copy: further parts are asked of it.
    pub copy: u64,
    /// Bytes of the whole.
    pub total_bytes: u64,
    /// The bytes from the offset on.
    pub part: Vec<u8>,
}
fop!(BackupGet, BackupReply, BackupGet, "backup-get", Idempotent);
