//! Errors are sorted by blame, and blame decides what is done: tell the caller, end the peer's session, retry or report
//! the environment, or stop the locality.

/// Who has to act on an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Blame {
    /// The request was wrong: the same request fails again.
    Caller,
    /// A peer broke the protocol: its session ends and it is counted.
    Peer,
    /// A device, the network, space or time: another try or an operator may help.
    Environment,
    /// A broken invariant of ours.
    Us,
}

/// An error that says whom it blames.
pub trait Blamed {
    /// Who has to act.
    fn blame(&self) -> Blame;
    /// True if the same call may succeed later without anybody changing it.
    fn may_retry(&self) -> bool {
        false
    }
}
