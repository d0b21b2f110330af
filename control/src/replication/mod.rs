//! Several control daemons with one state: the log they share, the consensus about it, and the one daemon that needs none.
//!
//! docs/rfd/0012 says why it is so. Start at [`log::ReplicatedLog`]; [`member::Member`] is the one over several daemons.

pub(crate) mod batch;
pub(crate) mod journal;
pub(crate) mod log;
pub(crate) mod member;
mod message;
