//! Limits of the transfer machine, each with its arithmetic. docs/limits.md explains them to operators.

use std::time::Duration;

use base::limits::{BUFFER_BYTES_MAX, BULK_SEGMENTS_MAX, MESSAGE_BYTES_MAX};

/// Messages that one side may have in the other's queue. The memory behind a peer is at most
/// `CREDIT_WINDOW * MESSAGE_BYTES_MAX` = 2 MiB; ordinary requests are under 1 KiB, so 32 KiB.
pub const CREDIT_WINDOW: u32 = 32;
/// Part of [`CREDIT_WINDOW`] that only [`crate::Lane::Reply`] may use, so that no reply waits for a credit that a request holds.
pub const CREDIT_RESERVE: u32 = CREDIT_WINDOW / 4;
/// Largest window that a peer's hello may claim: above it the hello is malformed.
pub const CREDIT_WINDOW_CLAIM_MAX: u32 = 4096;
/// Messages that wait for one connection to come up. All of them fit into the window once it is up.
pub const WAITING_MESSAGES_MAX: usize = (CREDIT_WINDOW - CREDIT_RESERVE) as usize;

/// Frames (bulk answers mostly) that wait for one socket; above it we stop reading from that peer, so that it cannot
/// make us queue without bound by asking for pulls. 4 requests' worth of segments.
pub const OUTBOX_FRAMES_MAX: usize = 4 * BULK_SEGMENTS_MAX;

/// Payload of one bulk frame on tcp. A message waits behind at most one piece (0.3 ms at 3 GB/s).
pub const BULK_PIECE_BYTES: u32 = 1 << 20;

/// Transfers in flight of one machine. Server side: each holds at most `REQUEST_BULK_BYTES_MAX` of the arena, which fills first.
pub const TRANSFERS_MAX: usize = 16 * 1024;
/// Exposures of one machine: a request has at most two.
pub const EXPOSURES_MAX: usize = 64 * 1024;
/// Fault rules of one machine: each send looks at all of them.
pub const FAULT_RULES_MAX: usize = 64;
/// Messages in flight of one interface, over all its peers, besides one for each connection: 128 full windows.
pub const NET_CREDITS: u32 = 128 * CREDIT_WINDOW;
/// Part of [`NET_CREDITS`] that only replies may use.
pub const NET_CREDITS_RESERVE: u32 = NET_CREDITS / 4;
/// Exposures of peers of which a machine remembers over which rail pushes went, 32 bytes each. A reply or resend of an older one counts as if that rail were lost.
pub const PUSHES_REMEMBERED_MAX: usize = 16 * 1024;
/// Nids of one machine: rails to it are at most as many.
pub const NIDS_MAX: usize = 16;
/// Bytes that one GET may ask for, so that its REPLY is an eager frame on every net. Larger data is bulk.
pub const GET_BYTES_MAX: usize = 4096;
/// Match entries and memory descriptors of one machine, apart from exposures.
pub const DESCRIPTORS_MAX: usize = 4096;
/// Operations of one machine that wait for their ACK or REPLY.
pub const OPERATIONS_MAX: usize = 4096;
/// Exposures that one message may carry: a request has at most a source and a sink.
pub const EXPOSES_MAX: usize = 2;
/// Exposures of one peer that a connection remembers: four windows' worth of requests with both.
pub const REMOTE_EXPOSURES_MAX: usize = 4 * CREDIT_WINDOW as usize * EXPOSES_MAX;
/// Their segments, 16 bytes each: 64 KiB behind a connection.
pub const REMOTE_SEGMENTS_MAX: usize = 4096;
/// Connections of one machine, half-open ones included.
pub const CONNECTIONS_MAX: usize = 16 * 1024;
/// Accepted connections that have not completed their hello.
pub const HALF_OPEN_MAX: usize = 64;

/// Memory of one tcp machine for messages, apart from the bulk arena: a pull's data may stand behind a message in the same
/// stream, so a message must not wait for memory that the pull holds. 1024 of the largest messages; mapped when touched.
pub const MESSAGE_MEMORY_BYTES: u64 = 64 << 20;

/// Bytes that one read may take into a socket's staging area while no bulk is expected: 7 small messages of 1 KiB.
pub const STAGING_BYTES: usize = 8 * 1024;

/// From the begin of a read that has found nothing to the next one, while a locality spins. A read holds the socket's lock: who delivers at
/// that moment waits for it, and a segment that finds it held is seen by the read after the next.
pub const LOOK_EACH: Duration = Duration::from_micros(1);

const _: () = assert!(CREDIT_RESERVE >= 1 && CREDIT_RESERVE < CREDIT_WINDOW);
const _: () = assert!(BULK_PIECE_BYTES as u64 <= BUFFER_BYTES_MAX);
const _: () = assert!(MESSAGE_BYTES_MAX <= BUFFER_BYTES_MAX);
const _: () = assert!(BULK_SEGMENTS_MAX <= u8::MAX as usize);
const _: () = assert!(REMOTE_SEGMENTS_MAX >= EXPOSES_MAX * BULK_SEGMENTS_MAX);

/// Times of one machine. The defaults are for a LAN; tests and simulations may shorten them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetTimes {
    /// A connection whose hello is not complete after this is dropped.
    pub hello_ms_max: u64,
    /// Silence after which a ping goes out, if anything is outstanding at that peer.
    pub idle_ping_ms: u64,
    /// Further silence after which the peer counts as lost.
    pub ping_wait_ms_max: u64,
    /// Silence after which a sender without credits asks for them with a ping (a lossy net may have eaten the return).
    pub credit_ping_ms: u64,
    /// First pause before a reconnect; doubled at each failure, with jitter.
    pub reconnect_ms_min: u64,
    /// Longest pause before a reconnect.
    pub reconnect_ms_max: u64,
    /// Memory that a peer's hardware may still touch after its request was given up is waited for this long; then the
    /// connection is brought down, because only that proves that nothing comes any more.
    pub abandoned_ms_max: u64,
}

impl Default for NetTimes {
    fn default() -> NetTimes {
        NetTimes {
            hello_ms_max: 3_000,
            idle_ping_ms: 5_000,
            ping_wait_ms_max: 5_000,
            credit_ping_ms: 200,
            reconnect_ms_min: 50,
            reconnect_ms_max: 2_000,
            abandoned_ms_max: 30_000,
        }
    }
}

pub(crate) const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}
