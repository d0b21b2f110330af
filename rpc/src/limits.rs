//! Limits of one locality's rpc machine, each with its arithmetic. All can be set in [`crate::RpcConfig`]; these are the defaults.

use std::time::Duration;

use base::limits::{BULK_SEGMENTS_MAX, MESSAGE_BYTES_MAX};
use base::units::wide;

use crate::addb::header::Shape;
use crate::formation::FormationLimits;
use crate::item::HEADER_BYTES;
use crate::packet::packet_bytes;

/// Requests that one session has in flight: one slow request holds its slot and no other.
pub const SLOTS: u16 = 64;

/// Sessions that a locality keeps. Each costs about 64 slots x 64 bytes = 4 KiB. When full, the one idle the longest gives
/// way (peers without a connection first): its client is told and opens another, nothing runs twice. A session with durable slot
/// records (at most 64 of 560 bytes on each device) is never evicted; it ends after its lifetime.
pub const SESSIONS_MAX: usize = 4096;

/// Replies kept for resends: the smallest arena buffer has 4 KiB, so 4096 small replies hold 16 MiB.
pub const REPLIES_MAX: usize = 4096;
/// Bytes of kept replies, counted as written (a reply is at most a message of 64 KiB).
pub const REPLY_BYTES_MAX: usize = 16 << 20;

/// Foms that run at once in a locality. Each holds at most `REQUEST_BULK_BYTES_MAX` (1 MiB) of bulk: 256 MiB.
pub const FOMS_MAX: usize = 256;
/// Tasks of one type of request that stay for the next ones when theirs are answered: their memory is used again.
pub const IDLE_FOMS_MAX: usize = 64;
/// Requests that wait for a fom. A message is at most 64 KiB: 32 MiB. When full, a request is dropped without an
/// answer, so that its resend tries again: back-pressure.
pub const FOM_QUEUE_MAX: usize = 512;

/// Items in a packet.
pub const PACKET_ITEMS_MAX: usize = 32;
/// Bytes of a packet: the smallest buffer of an arena, which its receiver holds until the last item in it is done.
pub const PACKET_BYTES_MAX: usize = 4096;
/// Bytes of the longest item that is copied into a packet; longer ones go alone, uncopied. 1 KiB is copied in less time than a message of
/// its own costs.
pub const PACKED_ITEM_BYTES_MAX: usize = 1024;
/// How long an item that nobody waits for (one-way, cancel) waits for company.
pub const FORMATION_WAIT: Duration = Duration::from_micros(500);
/// Bytes of waiting items that leave before their time: half a packet.
pub const FORMATION_WAITING_BYTES: usize = PACKET_BYTES_MAX / 2;
/// What formation goes by.
pub const FORMATION: FormationLimits = FormationLimits {
    packet_items_max: PACKET_ITEMS_MAX,
    packet_bytes_max: PACKET_BYTES_MAX,
    item_bytes_max: PACKED_ITEM_BYTES_MAX,
    items_max: PENDING_MESSAGES_MAX,
    waiting_bytes_max: FORMATION_WAITING_BYTES,
};
const _: () = assert!(packet_bytes(2, 2 * PACKED_ITEM_BYTES_MAX) <= PACKET_BYTES_MAX);
const _: () = assert!(packet_bytes(PACKET_ITEMS_MAX, PACKET_ITEMS_MAX * HEADER_BYTES) <= PACKET_BYTES_MAX);

/// Bytes of bulk that an item holds at most: a message less the header, heads and lengths of both descriptors, and a body of 14 KiB.
pub const INLINE_BYTES_MAX: usize = 48 * 1024;
const _: () = assert!(
    wide(
        INLINE_BYTES_MAX
            + HEADER_BYTES
            + (4 + 4 * BULK_SEGMENTS_MAX)
            + (20 + 4 * BULK_SEGMENTS_MAX)
            + 14 * 1024
    ) <= MESSAGE_BYTES_MAX
);
/// Bulk of at most so many bytes travels inside of its request or reply over tcp. Measured (docs/benchmarks.md): two copies cost less CPU time than a
/// transfer of its own up to 32 KiB; half of that, as an item that is under way holds up those behind it.
pub const INLINE_BYTES_TCP: usize = 16 * 1024;
/// Over lo none does: a segment changes hands by reference. Up to 8 KiB two copies are a tenth cheaper, which is not worth them.
pub const INLINE_BYTES_LO: usize = 0;
/// Over verbs none does: hardware moves it, and what it moves no processor copies. Not measured on hardware.
pub const INLINE_BYTES_O2IB: usize = 0;
/// Over the simulated net none does unless a test says so: its faults are of transfers.
pub const INLINE_BYTES_SIM: usize = 0;
const _: () = assert!(INLINE_BYTES_TCP <= INLINE_BYTES_MAX);

/// Items that wait for a packet or for the transport to take it, per peer and lane: each slot's item, four times. Beyond it the
/// item is dropped (a peer that does not read), and resends make up for it.
pub const PENDING_MESSAGES_MAX: usize = 4 * SLOTS as usize;

/// How long a fom may be at one phase before the watchdog names it: half of the longest time for which a request is resent.
pub const HUNG_AFTER: Duration = Duration::from_secs(30);

/// How long a service that is to stop waits for the requests that run: half of the 10 s that a daemon has to end.
pub const DRAIN_WITHIN: Duration = Duration::from_secs(5);

/// Records of a locality's ADDB ring, 32 bytes each: 256 KiB, about 1000 requests with 8 phases.
pub const ADDB_RECORDS: usize = 8192;
/// Histograms of a locality, 2 KiB each: 128 KiB; two for what finds none of its own, the others for one fop seen from one side.
pub const ADDB_HISTOGRAMS: usize = 64;
/// Most records of a ring that is made or read: 32 MiB.
pub const ADDB_RECORDS_MAX: usize = 1 << 20;
/// Most histograms of a ring that is read.
pub const ADDB_HISTOGRAMS_MAX: usize = 1024;
/// Bytes of the longest ADDB file that is read: 8 KiB, the most histograms, the most records.
pub const ADDB_FILE_BYTES_MAX: usize = 8192 + ADDB_HISTOGRAMS_MAX * 2048 + ADDB_RECORDS_MAX * 32;
const _: () = assert!(
    ADDB_FILE_BYTES_MAX == 8 * Shape { records: ADDB_RECORDS_MAX, histograms: ADDB_HISTOGRAMS_MAX }.words()
);

/// First interval from a request to its resend; doubles up to [`RESEND_INTERVAL_MAX`].
pub const RESEND_INTERVAL: Duration = Duration::from_millis(500);
/// Longest interval between two resends.
pub const RESEND_INTERVAL_MAX: Duration = Duration::from_secs(4);
/// A request that is held back for longer than this is told so: before its first resend, which it spares.
pub const HOLD_NOTICE: Duration = Duration::from_millis(250);
/// Longest time for which a requester that was told to wait does not ask again: its answer may be lost. Longer than the waits of watches, locks
/// and events usually last.
pub const HOLD_MAX: Duration = Duration::from_secs(15);
/// First wait before a lost connection is tried again; doubles up to [`RECONNECT_INTERVAL_MAX`].
pub const RECONNECT_INTERVAL: Duration = Duration::from_millis(20);
/// Longest wait before a lost connection is tried again.
pub const RECONNECT_INTERVAL_MAX: Duration = Duration::from_secs(1);

/// First time limit of one try of a bulk transfer; doubles, until the request's deadline. 256 foms x 1 MiB over a link of 1 Gbit/s
/// take 2.1 s.
pub const BULK_TRY: Duration = Duration::from_secs(2);
/// Pause before a bulk transfer that failed at once is tried again; doubles.
pub const BULK_PAUSE: Duration = Duration::from_millis(20);
/// Tries of a bulk transfer that ended with a lost connection: 20 ms doubled 6 times is 1.3 s, time for a peer to connect again.
pub const BULK_LOST_TRIES_MAX: u32 = 6;

/// The longest time for which a call is expected to be resent: deadlines of calls are below it.
pub const RESEND_HORIZON: Duration = Duration::from_secs(60);
/// How long a reply is kept: longer than any resend of it is expected.
pub const REPLY_LIFETIME: Duration = Duration::from_secs(90);
/// How long a session lives without a word from its client: longer than the replies in it.
pub const SESSION_LIFETIME: Duration = Duration::from_secs(120);

const _: () = assert!(HOLD_NOTICE.as_millis() * 2 <= RESEND_INTERVAL.as_millis());
const _: () = assert!(HOLD_MAX.as_millis() < RESEND_HORIZON.as_millis());
const _: () = assert!(RESEND_INTERVAL.as_millis() < RESEND_INTERVAL_MAX.as_millis());
const _: () = assert!(HUNG_AFTER.as_millis() < RESEND_HORIZON.as_millis());
const _: () = assert!(RESEND_HORIZON.as_millis() < REPLY_LIFETIME.as_millis());
const _: () = assert!(REPLY_LIFETIME.as_millis() < SESSION_LIFETIME.as_millis());
const _: () = assert!(REPLY_BYTES_MAX as u64 > MESSAGE_BYTES_MAX);
