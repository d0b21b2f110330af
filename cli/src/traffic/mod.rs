//! Traffic between two transfer machines, without rpc: what `clovis bench net` and `clovis net selftest` measure.
//!
//! A requester exposes memory and names it in a message, as rpc does for a write or a read of an object; a responder pulls or pushes it and
//! answers. Both are [`side::Side`]s: no clock, no sockets of their own. Content can be checked on arrival ([`content`]).
//!
//! Bounds: a requester has `Work::concurrency` requests in flight with memory of their own; a responder holds what its peers'
//! credits allow, and its arena waits when it is full. **Invariant**: bytes of a peer are parsed once, by [`exchange`], and a
//! peer that breaks the form loses its connection, no more.
//! Start reading at [`requester`], then [`responder`].

pub mod content;
pub mod exchange;
pub mod outbox;
pub mod requester;
pub mod responder;
pub mod side;
pub mod station;
pub mod usage;

use std::time::Duration;

use base::units::MIB;
use runtime::Waiting;

pub use content::Check;
pub use requester::{Found, Requester};
pub use responder::Responder;
pub use station::{free_endpoint, in_one_process, start_machine};
pub use usage::{COUNT_NAMES, Usage};

/// Bytes of a request, a reply and a ping where nobody chooses: the smallest that names a bulk of one segment.
pub const MESSAGE_BYTES_DEFAULT: usize = 64;
/// Largest bulk of one request: a descriptor of 16 segments.
pub const BULK_BYTES_MAX: u64 = 16 * MIB;
/// Requests in flight at most.
pub const CONCURRENCY_MAX: u32 = 256;
/// Bulk in flight of one requester at most: half of a station's memory.
pub const IN_FLIGHT_BYTES_MAX: u64 = station::ARENA_BYTES / 2;
/// How long one request may take where nobody says otherwise.
pub const REQUEST_WITHIN: Duration = Duration::from_secs(30);

/// What the requester wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The responder reads the requester's memory, as for a write of an object.
    Write,
    /// The responder writes it, as for a read.
    Read,
    /// No bulk: a message there and back.
    Ping,
}

impl Kind {
    /// The word in errors.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Write => "write",
            Kind::Read => "read",
            Kind::Ping => "ping",
        }
    }
}

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// After this many requests under the clock.
    Count(u64),
    /// After this long.
    Time(Duration),
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// What each request asks for.
    pub kind: Kind,
    /// Bytes of a request and of an answer, at least what they have to hold.
    pub message_bytes: usize,
    /// Bytes of bulk of one request: blocks of 4 KiB, at most [`BULK_BYTES_MAX`]. Nothing for [`Kind::Ping`].
    pub bulk_bytes: u64,
    /// Requests in flight.
    pub concurrency: u32,
    /// Requests before the clock starts.
    pub untimed: u64,
    /// The end.
    pub until: Until,
    /// Whether content is checked on arrival.
    pub check: Check,
    /// How long one request may take.
    pub within: Duration,
    /// Count requests that failed and go on, over a new connection if need be, instead of ending at the first.
    pub goes_on: bool,
    /// What the localities of this process do without work.
    pub waiting: Waiting,
}
