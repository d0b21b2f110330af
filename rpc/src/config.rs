//! What an rpc machine and a call are made with.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use base::Instant;
use fops::FopError;
use runtime::{Buffer, SharedBuffer};
use verbs_net::PeerId;

use crate::addb::AddbSpace;
use crate::bug::Bug;
use crate::formation::{FormationLimits, Priority};
use crate::limits;
use crate::reply_cache::ReplyBounds;
use crate::requester::RequesterLimits;
use crate::responder::ResponderLimits;
use crate::watchdog::HungFom;

/// Asked before each request runs: may this peer do this (opcode)?
pub type Authorise = Rc<dyn Fn(PeerId, u16) -> Result<(), FopError>>;

/// Told of each request that was refused for want of a right: by whom, which, and what the peer is told.
pub type OnDenied = Rc<dyn Fn(PeerId, u16, &str)>;

/// Told of a fom that hangs.
pub type OnHung = Rc<dyn Fn(&HungFom)>;

/// How an rpc machine behaves. The default is right for servers and clients; tests shorten times and limits.
#[derive(Clone)]
pub struct RpcConfig {
    /// Version of the configuration that this process holds; travels in every item. Share it with the transfer machine, which
    /// says it in its hello.
    pub config_version: Rc<Cell<u64>>,
    /// Slots of a session.
    pub slots: u16,
    /// Sessions that this side answers.
    pub sessions_max: usize,
    /// How long a silent client's session lives.
    pub session_lifetime: Duration,
    /// Bounds of kept replies.
    pub replies: ReplyBounds,
    /// From a request to its first resend; doubles.
    pub resend_interval: Duration,
    /// Upper end of the doubling.
    pub resend_interval_max: Duration,
    /// Longest time for which a request that its server holds is not sent again.
    pub hold_max: Duration,
    /// From a lost connection to the first attempt at another; doubles.
    pub reconnect_interval: Duration,
    /// Upper end of the doubling.
    pub reconnect_interval_max: Duration,
    /// Time limit of the first try of a bulk transfer; doubles.
    pub bulk_try: Duration,
    /// Foms that run at once.
    pub foms_max: usize,
    /// Requests that wait for a fom.
    pub fom_queue_max: usize,
    /// Bulk of at most so many bytes travels inside of requests and replies; `None`: by net, [`crate::inline::cut_off`].
    pub inline_bytes: Option<usize>,
    /// Which items share a packet, and how many wait for the transport.
    pub formation: FormationLimits,
    /// Where ADDB goes: memory of the machine's own if there is none.
    pub addb: Option<AddbSpace>,
    /// Records of the machine's own ADDB memory; 0 keeps nothing, which is for measuring what the rest costs.
    pub addb_records: usize,
    /// Asked beside the rights of the peer's credential (`Opcode::needs`), which are always asked. `None`: those are enough.
    pub authorise: Option<Authorise>,
    /// Told of each refusal for want of a right: who runs the process shows it to its operator.
    pub on_denied: Option<OnDenied>,
    /// The service's handlers record slots in their transactions ([`crate::Fom::record_in`]), and it hands the records of
    /// before a restart to [`crate::RpcMachine::resume_sessions`].
    pub durable_slots: bool,
    /// The service begins as `Starting` and tells requests to come again until [`crate::RpcMachine::begin_serving`].
    pub is_starting: bool,
    /// How long [`crate::RpcMachine::drain`] waits for what runs.
    pub drain_within: Duration,
    /// How long a fom may be at one phase before it is told to hang.
    pub hung_after: Duration,
    /// Told of each fom that hangs, once for each phase: who runs the process shows it to its operator.
    pub on_hung: Option<OnHung>,
    /// For tests that show that tests can fail.
    pub bug: Option<Bug>,
}

impl Default for RpcConfig {
    fn default() -> RpcConfig {
        RpcConfig {
            config_version: Rc::new(Cell::new(0)),
            slots: limits::SLOTS,
            sessions_max: limits::SESSIONS_MAX,
            session_lifetime: limits::SESSION_LIFETIME,
            replies: ReplyBounds {
                count_max: limits::REPLIES_MAX,
                bytes_max: limits::REPLY_BYTES_MAX,
                lifetime: limits::REPLY_LIFETIME,
            },
            resend_interval: limits::RESEND_INTERVAL,
            resend_interval_max: limits::RESEND_INTERVAL_MAX,
            hold_max: limits::HOLD_MAX,
            reconnect_interval: limits::RECONNECT_INTERVAL,
            reconnect_interval_max: limits::RECONNECT_INTERVAL_MAX,
            bulk_try: limits::BULK_TRY,
            foms_max: limits::FOMS_MAX,
            fom_queue_max: limits::FOM_QUEUE_MAX,
            inline_bytes: None,
            formation: limits::FORMATION,
            addb: None,
            addb_records: limits::ADDB_RECORDS,
            authorise: None,
            on_denied: None,
            durable_slots: false,
            is_starting: false,
            drain_within: limits::DRAIN_WITHIN,
            hung_after: limits::HUNG_AFTER,
            on_hung: None,
            bug: None,
        }
    }
}

impl RpcConfig {
    pub(crate) fn requester(&self) -> RequesterLimits {
        RequesterLimits {
            slots_max: self.slots,
            resend_interval: self.resend_interval,
            resend_interval_max: self.resend_interval_max,
            hold_max: self.hold_max,
            reconnect_interval: self.reconnect_interval,
            reconnect_interval_max: self.reconnect_interval_max,
            bug: self.bug,
        }
    }

    pub(crate) fn responder(&self) -> ResponderLimits {
        ResponderLimits {
            slots: self.slots,
            sessions_max: self.sessions_max,
            session_lifetime: self.session_lifetime,
            replies: self.replies,
            durable_slots: self.durable_slots,
        }
    }
}

impl fmt::Debug for RpcConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcConfig")
            .field("slots", &self.slots)
            .field("sessions_max", &self.sessions_max)
            .field("foms_max", &self.foms_max)
            .finish_non_exhaustive()
    }
}

/// How a call behaves.
#[derive(Clone, Copy, Debug)]
pub struct CallOptions {
    /// When the caller gives up. Travels as time left, so that the server does not start what nobody waits for.
    pub deadline: Instant,
    /// Gives up earlier if no connection to the peer can be had for this long: for callers that have somewhere else to go.
    pub unreachable_max: Option<Duration>,
    /// Gives up earlier if there is no connection to the peer yet and none comes for this long. Apart from the one before, as a first connection may take its time (handshakes,
    /// many who start at once): for callers who lose nothing by asking somebody else first.
    pub connect_max: Option<Duration>,
    /// Among the items that leave for the same peer in the same turn.
    pub priority: Priority,
    /// How long the request may wait for others to share a packet with. Zero: it leaves in the turn in which it is made.
    pub formation_wait: Duration,
}

impl CallOptions {
    /// Tries until `deadline`, whatever the network does.
    #[must_use]
    pub fn until(deadline: Instant) -> CallOptions {
        CallOptions {
            deadline,
            unreachable_max: None,
            connect_max: None,
            priority: Priority::Normal,
            formation_wait: Duration::ZERO,
        }
    }

    /// As before, but gives up after `duration` without a connection.
    #[must_use]
    pub fn unreachable_max(self, duration: Duration) -> CallOptions {
        CallOptions { unreachable_max: Some(duration), ..self }
    }

    /// As before, but gives up after `duration` if no connection comes.
    #[must_use]
    pub fn connect_max(self, duration: Duration) -> CallOptions {
        CallOptions { connect_max: Some(duration), ..self }
    }

    /// As before, but ahead of or behind others.
    #[must_use]
    pub fn priority(self, priority: Priority) -> CallOptions {
        CallOptions { priority, ..self }
    }

    /// As before, but the request may wait this long for company.
    #[must_use]
    pub fn formation_wait(self, duration: Duration) -> CallOptions {
        CallOptions { formation_wait: duration, ..self }
    }
}

/// The bulk of a request: memory that the server may read or fill while the request lives.
#[derive(Debug, Default)]
pub struct Bulk {
    /// What the server may pull: a segment per buffer.
    pub source: Vec<SharedBuffer>,
    /// Where the server may push: a segment per buffer. Given back in [`Answer::sink`] on success.
    pub sink: Vec<Buffer>,
}

impl Bulk {
    /// No bulk.
    #[must_use]
    pub fn none() -> Bulk {
        Bulk::default()
    }

    /// True if there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.source.is_empty() && self.sink.is_empty()
    }

    /// Bytes for the server to pull.
    #[must_use]
    pub fn from_source(source: Vec<SharedBuffer>) -> Bulk {
        Bulk { source, sink: Vec::new() }
    }

    /// Room for the server to push into.
    #[must_use]
    pub fn into_sink(sink: Vec<Buffer>) -> Bulk {
        Bulk { source: Vec::new(), sink }
    }
}

/// A reply.
#[derive(Debug)]
pub struct Answer<R> {
    /// The body.
    pub reply: R,
    /// The content of the sink's segments. Over `lo` these are the buffers that the server pushed.
    pub sink: Vec<SharedBuffer>,
    /// The configuration version that the server holds.
    pub config_version: u64,
}
