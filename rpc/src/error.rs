//! Errors of a call, sorted by blame, with everything an operator needs to see: whom, what, how long, how often, why.

use std::fmt;
use std::time::Duration;

use base::{Blame, Blamed, Endpoint};
use fops::FopError;
use verbs_net::{NetError, Refused};

use crate::requester::WaitedFor;

/// What stood in the way of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// What the call waited for when it ended.
    pub waited_for: WaitedFor,
    /// The last thing that the network said about the peer, if it is out of reach.
    pub net: Option<NetError>,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.net, self.waited_for) {
            (Some(net), WaitedFor::Connection) => write!(f, "{}: {net}", self.waited_for),
            _ => write!(f, "{}", self.waited_for),
        }
    }
}

/// Why a call has no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The server answered, and the answer is no.
    #[error(transparent)]
    Fop(FopError),
    /// The deadline passed.
    #[error(
        "{operation} at {peer} timed out after {:.1} s and {resends} resends ({cause}){}",
        age.as_secs_f64(),
        executed(*may_have_executed)
    )]
    TimedOut {
        /// Whom.
        peer: Endpoint,
        /// What: the fop's name.
        operation: &'static str,
        /// How long ago the call was made.
        age: Duration,
        /// Times the request was sent again.
        resends: u32,
        /// Whether the request was sent, and so may have run.
        may_have_executed: bool,
        /// What was missing.
        cause: Cause,
    },
    /// The peer is out of reach for longer than the call allows, or came back without memory of the request.
    #[error(
        "{operation} at {peer}: the peer was lost after {:.1} s and {resends} resends ({cause}){}",
        age.as_secs_f64(),
        executed(*may_have_executed)
    )]
    PeerLost {
        /// Whom.
        peer: Endpoint,
        /// What: the fop's name.
        operation: &'static str,
        /// How long ago the call was made.
        age: Duration,
        /// Times the request was sent again.
        resends: u32,
        /// Whether the request was sent, and so may have run.
        may_have_executed: bool,
        /// What was missing.
        cause: Cause,
    },
    /// The peer will not talk to us, and another try will not help.
    #[error("{operation} at {peer} failed after {:.1} s: {error}", age.as_secs_f64())]
    Net {
        /// Whom.
        peer: Endpoint,
        /// What: the fop's name.
        operation: &'static str,
        /// How long ago the call was made.
        age: Duration,
        /// Why not.
        error: NetError,
    },
    /// Our own transport cannot send to such a peer.
    #[error("{operation} at {peer}: {refused}")]
    NotSendable {
        /// Whom.
        peer: Endpoint,
        /// What: the fop's name.
        operation: &'static str,
        /// Why not.
        refused: Refused,
    },
    /// The call cannot be made as it is.
    #[error("{operation}: {reason}")]
    BadCall {
        /// What: the fop's name.
        operation: &'static str,
        /// What is wrong and what is allowed.
        reason: String,
    },
    /// The reply is not the one that belongs to the request.
    #[error("{operation} at {peer}: the reply makes no sense: {reason}")]
    BadReply {
        /// Whom.
        peer: Endpoint,
        /// What: the fop's name.
        operation: &'static str,
        /// What the decoder says.
        reason: String,
    },
    /// This machine was drained: the process is shutting down.
    #[error("this process is shutting down")]
    Draining,
}

fn executed(may_have_executed: bool) -> &'static str {
    if may_have_executed { "; it may have been executed" } else { "; it was not executed" }
}

impl CallError {
    /// Whether the request may have run although there is no reply.
    #[must_use]
    pub fn may_have_executed(&self) -> bool {
        match self {
            CallError::TimedOut { may_have_executed, .. } | CallError::PeerLost { may_have_executed, .. } => {
                *may_have_executed
            }
            CallError::Fop(error) => matches!(error, FopError::ReplyGone),
            CallError::BadReply { .. } => true,
            _ => false,
        }
    }

    /// True if the peer did not answer at all: another server may.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            CallError::TimedOut { .. }
                | CallError::PeerLost { .. }
                | CallError::Net { .. }
                | CallError::NotSendable { .. }
        )
    }
}

impl From<FopError> for CallError {
    fn from(error: FopError) -> CallError {
        CallError::Fop(error)
    }
}

impl Blamed for CallError {
    fn blame(&self) -> Blame {
        match self {
            CallError::Fop(error) => error.blame(),
            CallError::Net { error, .. } => error.blame(),
            CallError::BadCall { .. } | CallError::NotSendable { .. } => Blame::Caller,
            CallError::BadReply { .. } => Blame::Peer,
            _ => Blame::Environment,
        }
    }

    fn may_retry(&self) -> bool {
        match self {
            CallError::Fop(error) => error.may_retry(),
            CallError::TimedOut { may_have_executed, .. } | CallError::PeerLost { may_have_executed, .. } => {
                !may_have_executed
            }
            _ => false,
        }
    }
}
