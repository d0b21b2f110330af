//! Steps of a request and events, each with its number. Numbers are in files: never reused, never renumbered.

use std::fmt;

/// Numbers from here on are steps of a call at its client.
pub const CLIENT_FIRST: u8 = 64;
/// Numbers of phases and events are below this: one counter each.
pub const NUMBERS_MAX: u8 = 128;
/// Numbers from here on are events.
pub const EVENT_FIRST: u8 = 96;

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$one_doc:meta])* $one:ident = $number:literal, $word:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$one_doc])* $one = $number,)*
        }

        impl $name {
            /// All of them, by number.
            pub const ALL: &[$name] = &[$($name::$one),*];

            /// The word for people and in JSON.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $($name::$one => $word,)* }
            }

            /// The one with this number.
            #[must_use]
            pub const fn from_number(number: u8) -> Option<$name> {
                match number { $($number => Some($name::$one),)* _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

numbered! {
    /// The step that a request entered: at its server below [`CLIENT_FIRST`], else at its client. A step lasts until the next one begins.
    Phase {
        /// It waits for a place among the foms.
        Resources = 1, "resources";
        /// Its fom begins; its peer was authenticated before the first byte.
        Authenticate = 2, "authenticate";
        /// May this peer do this?
        Authorise = 3, "authorise";
        /// Its body is read.
        Decode = 4, "decode";
        /// The handler begins.
        Run = 5, "run";
        /// May this be changed now: lease, ticket, epoch?
        Admit = 6, "admit";
        /// It waits for a lock on what it changes.
        Lock = 7, "lock";
        /// Bulk comes from the client.
        Pull = 8, "pull";
        /// The device writes.
        Write = 9, "write";
        /// The device reads.
        Read = 10, "read";
        /// Bulk goes to the client.
        Push = 11, "push";
        /// A transaction is on its way to the log.
        Commit = 12, "commit";
        /// What it changed is on the device.
        Durable = 13, "durable";
        /// The reply is made.
        Reply = 14, "reply";
        /// The reply was handed to the net. Value: 0 for done, 1 for an error.
        Done = 15, "done";
        /// Its time was over before it began.
        Expired = 16, "expired";
        /// It came again, and was answered without running.
        Answered = 17, "answered-again";
        /// It is held back on purpose: until there is news, or a lock is free.
        Hold = 18, "hold";
        /// It is not any more: the handler goes on. Not `run`, which counts how often handlers began.
        GoOn = 19, "go-on";
        /// It may have run before a restart, and the record of that is out of reach: it is told so, and does nothing.
        Doubted = 20, "doubted";

        /// The call is made.
        Submit = 64, "submit";
        /// It has a slot and leaves.
        Send = 65, "send";
        /// It leaves again.
        Resend = 66, "resend";
        /// The answer is there. Value: 0 for done, 1 for an error, 2 for dropped.
        Replied = 67, "replied";
        /// It ended without an answer. Value: 1 timed out, 2 unreachable, 3 session lost, 4 refused.
        Failed = 68, "failed";
        /// Nobody waits for it any more.
        Cancelled = 69, "cancelled";
        /// It leaves, and nobody will answer.
        OneWay = 70, "one-way";
        /// Its server says that it holds it: it is not sent again for a while.
        Held = 71, "held";
    }
}

numbered! {
    /// Something that is no step of a request.
    Event {
        /// A fom is at one phase for too long. Value: the phase's number.
        Hung = 96, "hung";
        /// A peer broke the protocol.
        Misbehaved = 97, "misbehaved";
        /// A message was given up; resends make up for it.
        Dropped = 98, "dropped";
        /// A peer's connection came up.
        PeerUp = 99, "peer-up";
        /// A peer's connection was lost.
        PeerLost = 100, "peer-lost";
    }
}

impl Phase {
    /// True for steps at the server.
    #[must_use]
    pub const fn is_at_server(self) -> bool {
        (self as u8) < CLIENT_FIRST
    }

    /// True if nothing comes behind it.
    #[must_use]
    pub const fn is_last(self) -> bool {
        matches!(
            self,
            Phase::Done
                | Phase::Expired
                | Phase::Answered
                | Phase::Replied
                | Phase::Failed
                | Phase::Cancelled
                | Phase::OneWay
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn numbers_lie_where_their_kind_does_and_names_differ() {
        let numbers: BTreeSet<u8> =
            Phase::ALL.iter().map(|one| *one as u8).chain(Event::ALL.iter().map(|one| *one as u8)).collect();
        assert_eq!(numbers.len(), Phase::ALL.len() + Event::ALL.len());
        assert!(Phase::ALL.iter().all(|one| (1..EVENT_FIRST).contains(&(*one as u8))));
        assert!(Event::ALL.iter().all(|one| (EVENT_FIRST..NUMBERS_MAX).contains(&(*one as u8))));
        let names: BTreeSet<&str> =
            Phase::ALL.iter().map(|one| one.name()).chain(Event::ALL.iter().map(|one| one.name())).collect();
        assert_eq!(names.len(), numbers.len());
        assert!(Phase::ALL.iter().all(|one| Phase::from_number(*one as u8) == Some(*one)));
        assert_eq!((Phase::from_number(0), Event::from_number(1)), (None, None));
        assert!(Phase::Done.is_at_server() && !Phase::Submit.is_at_server());
    }
}
