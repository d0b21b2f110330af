//! Rails: the ways from one of our interfaces to one nid of a peer, their health, and which of them a message takes. No I/O.
//!
//! A machine has one interface per nid; a peer has one rail per nid that it has told (discovery.rs), at most `NIDS_MAX`. Each rail
//! has a connection of its own, with its own credits. The choice, in this order: health of our interface, health of the peer's
//! nid, free credits, and whose turn it is. Source of the order and of the classes: LNet's selection and health.
//!
//! | class | what lost health | sent again over another rail |
//! |---|---|---|
//! | local interrupt, dropped, aborted, no route, timeout | our interface | yes |
//! | local error | nothing | no: it would fail again |
//! | remote dropped | the peer's nid | yes |
//! | remote error, remote timeout | the peer's nid | no: it may have arrived |
//! | network timeout | both | no: it may have arrived |
//!
//! Without another rail nothing is sent again here: the layer above does that. At most `RESENDS_MAX` times for one message.

use std::fmt;
use std::io;

use base::{Instant, Nid};

use crate::connection::ConnectionId;
use crate::error::{LocalError, NetError};

/// Full health.
pub const HEALTH_MAX: u16 = 1000;
/// Health that one error costs, and that one answered ping brings back.
pub const HEALTH_STEP: u16 = 100;
/// Times that one message is sent again over another rail.
pub(crate) const RESENDS_MAX: u8 = 2;

/// What kind of error ended a message: LNet's classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ErrorClass {
    /// Our interface was interrupted.
    LocalInterrupt,
    /// Our interface dropped it.
    LocalDropped,
    /// It was given up before it left.
    LocalAborted,
    /// No way from our interface to the peer's nid.
    LocalNoRoute,
    /// It did not leave in time.
    LocalTimeout,
    /// The message or our use of it is wrong.
    LocalError,
    /// The peer's nid dropped it.
    RemoteDropped,
    /// The peer refused it.
    RemoteError,
    /// The peer took it and did not answer in time.
    RemoteTimeout,
    /// Nobody knows where it is.
    NetworkTimeout,
}

impl ErrorClass {
    const WORDS: [(ErrorClass, &'static str); 10] = [
        (ErrorClass::LocalInterrupt, "local-interrupt"),
        (ErrorClass::LocalDropped, "local-dropped"),
        (ErrorClass::LocalAborted, "local-aborted"),
        (ErrorClass::LocalNoRoute, "local-no-route"),
        (ErrorClass::LocalTimeout, "local-timeout"),
        (ErrorClass::LocalError, "local-error"),
        (ErrorClass::RemoteDropped, "remote-dropped"),
        (ErrorClass::RemoteError, "remote-error"),
        (ErrorClass::RemoteTimeout, "remote-timeout"),
        (ErrorClass::NetworkTimeout, "network-timeout"),
    ];

    /// All of them.
    pub fn all() -> impl Iterator<Item = ErrorClass> {
        ErrorClass::WORDS.into_iter().map(|(class, _)| class)
    }

    pub(crate) fn from_word(word: &str) -> Option<ErrorClass> {
        ErrorClass::WORDS.into_iter().find(|(_, known)| *known == word).map(|(class, _)| class)
    }

    /// True if the message is sent again over another rail.
    #[must_use]
    pub const fn may_resend(self) -> bool {
        matches!(
            self,
            ErrorClass::LocalInterrupt
                | ErrorClass::LocalDropped
                | ErrorClass::LocalAborted
                | ErrorClass::LocalNoRoute
                | ErrorClass::LocalTimeout
                | ErrorClass::RemoteDropped
        )
    }

    /// True if our interface loses health.
    #[must_use]
    pub const fn blames_local(self) -> bool {
        matches!(
            self,
            ErrorClass::LocalInterrupt
                | ErrorClass::LocalDropped
                | ErrorClass::LocalAborted
                | ErrorClass::LocalNoRoute
                | ErrorClass::LocalTimeout
                | ErrorClass::NetworkTimeout
        )
    }

    /// True if the peer's nid loses health.
    #[must_use]
    pub const fn blames_remote(self) -> bool {
        matches!(
            self,
            ErrorClass::RemoteDropped
                | ErrorClass::RemoteError
                | ErrorClass::RemoteTimeout
                | ErrorClass::NetworkTimeout
        )
    }
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = ErrorClass::WORDS.into_iter().find(|(class, _)| class == self).map(|(_, word)| word);
        f.write_str(word.unwrap_or("unknown"))
    }
}

impl NetError {
    /// The class of an error that ended a rail.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        use ErrorClass as C;
        match self {
            NetError::Local(LocalError::Completion { .. } | LocalError::DeviceRemoved) => C::LocalAborted,
            NetError::Local(LocalError::Socket { .. }) => C::LocalDropped,
            NetError::Unreachable { cause, .. } => match cause {
                io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::NetworkDown
                | io::ErrorKind::AddrNotAvailable => C::LocalNoRoute,
                _ => C::RemoteDropped,
            },
            NetError::RemoteDropped => C::RemoteDropped,
            NetError::RemoteTimeout => C::NetworkTimeout,
            NetError::RemoteError { .. }
            | NetError::Stale
            | NetError::Protocol(_)
            | NetError::Refused { .. }
            | NetError::BadInfo { .. } => C::RemoteError,
            NetError::Undelivered { class } => *class,
            NetError::Local(_) | NetError::Canceled | NetError::NoRdma { .. } => C::LocalError,
        }
    }
}

/// One of our nids.
#[derive(Clone, Debug)]
pub(crate) struct Interface {
    pub(crate) nid: Nid,
    pub(crate) health: u16,
    /// Messages sent over it that their peers have not consumed yet: its network credits in use.
    pub(crate) in_flight: u32,
}

impl Interface {
    pub(crate) fn new(nid: Nid) -> Interface {
        Interface { nid, health: HEALTH_MAX, in_flight: 0 }
    }
}

/// State of a rail's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    Idle,
    /// To be dialled at `Rail::not_before`.
    Scheduled,
    Dialing(ConnectionId),
    Up(ConnectionId),
}

/// One way to a peer.
#[derive(Clone, Debug)]
pub(crate) struct Rail {
    /// Ours.
    pub(crate) interface: usize,
    /// The peer's.
    pub(crate) nid: Nid,
    pub(crate) link: Link,
    pub(crate) failures: u32,
    pub(crate) not_before: Instant,
    pub(crate) health: u16,
    /// Turn of its last message.
    pub(crate) used: u64,
    /// The other side has said something over it since the hello: it knows that the rail stands. Else it waits while there are others.
    pub(crate) is_confirmed: bool,
    /// We dial it again when it is lost, while the peer has another.
    pub(crate) is_kept: bool,
}

impl Rail {
    pub(crate) fn new(interface: usize, nid: Nid) -> Rail {
        Rail {
            interface,
            nid,
            link: Link::Idle,
            failures: 0,
            not_before: Instant::ZERO,
            health: HEALTH_MAX,
            used: 0,
            is_confirmed: false,
            is_kept: false,
        }
    }

    pub(crate) fn up(&self) -> Option<ConnectionId> {
        match self.link {
            Link::Up(id) => Some(id),
            _ => None,
        }
    }

    /// Up, and known to be so by both sides.
    pub(crate) fn ready(&self) -> Option<ConnectionId> {
        self.up().filter(|_| self.is_confirmed)
    }

    pub(crate) fn is_on(&self, id: ConnectionId) -> bool {
        self.link == Link::Up(id) || self.link == Link::Dialing(id)
    }
}

/// What the choice between rails looks at; the greatest wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    pub(crate) local_health: u16,
    pub(crate) remote_health: u16,
    pub(crate) free_credits: u32,
    pub(crate) unused_since: std::cmp::Reverse<u64>,
}

/// The pairs of our interfaces and a peer's nids that become rails: on each net, as many as the side with more nids there has.
pub(crate) fn pair_up(ours: &[Interface], theirs: &[Nid]) -> Vec<(usize, Nid)> {
    let mut pairs = Vec::new();
    let mut nets: Vec<_> = theirs.iter().map(|nid| nid.net).collect();
    nets.sort_unstable();
    nets.dedup();
    for net in nets {
        let local: Vec<usize> = (0..ours.len()).filter(|index| ours[*index].nid.net == net).collect();
        let remote: Vec<Nid> = theirs.iter().copied().filter(|nid| nid.net == net).collect();
        if local.is_empty() {
            continue;
        }
        for index in 0..local.len().max(remote.len()) {
            pairs.push((local[index % local.len()], remote[index % remote.len()]));
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nid(text: &str) -> Nid {
        text.parse().unwrap()
    }

    #[test]
    fn classes_keep_lnets_rules() {
        use ErrorClass as C;
        for class in ErrorClass::all() {
            let word = class.to_string();
            assert_eq!(ErrorClass::from_word(&word), Some(class));
            let is_local = word.starts_with("local-") && class != C::LocalError;
            assert_eq!(class.may_resend(), is_local || class == C::RemoteDropped, "{class}");
            assert_eq!(class.blames_local(), is_local || class == C::NetworkTimeout, "{class}");
            assert_eq!(class.blames_remote(), word.starts_with("remote-") || class == C::NetworkTimeout);
        }
        assert_eq!(NetError::RemoteDropped.class(), C::RemoteDropped);
        assert_eq!(NetError::RemoteTimeout.class(), C::NetworkTimeout);
        assert_eq!(NetError::Local(LocalError::NoMemory).class(), C::LocalError);
        assert_eq!(NetError::Local(LocalError::DeviceRemoved).class(), C::LocalAborted);
        let endpoint = "10.0.0.1@tcp:1:34:0".parse().unwrap();
        let unreachable = |cause| NetError::Unreachable { endpoint, cause }.class();
        assert_eq!(unreachable(io::ErrorKind::HostUnreachable), C::LocalNoRoute);
        assert_eq!(unreachable(io::ErrorKind::ConnectionRefused), C::RemoteDropped);
    }

    #[test]
    fn rails_pair_nids_of_one_net() {
        let ours: Vec<Interface> =
            ["10.0.0.1@tcp", "10.1.0.1@tcp1", "10.1.0.2@tcp1"].map(|text| Interface::new(nid(text))).into();
        let theirs = ["10.0.0.7@tcp", "10.0.0.8@tcp", "10.1.0.7@tcp1", "10.2.0.7@tcp2"].map(nid);
        let wanted = [(0, theirs[0]), (0, theirs[1]), (1, theirs[2]), (2, theirs[2])];
        assert_eq!(pair_up(&ours, &theirs), wanted);
    }

    #[test]
    fn the_choice_is_health_then_credits_then_turns() {
        let rank = |local_health, remote_health, free_credits, used| Rank {
            local_health,
            remote_health,
            free_credits,
            unused_since: std::cmp::Reverse(used),
        };
        assert!(rank(1000, 900, 1, 9) > rank(900, 1000, 24, 1));
        assert!(rank(1000, 1000, 1, 9) > rank(1000, 900, 24, 1));
        assert!(rank(1000, 1000, 2, 9) > rank(1000, 1000, 1, 1));
        assert!(rank(1000, 1000, 2, 3) > rank(1000, 1000, 2, 4));
    }
}
