//! Limits of one verbs machine, each with its arithmetic; docs/limits.md explains them.

use base::limits::MESSAGE_BYTES_MAX;

use crate::frame::HEADER_BYTES;
use crate::limits::{BULK_PIECE_BYTES, CREDIT_WINDOW};
use crate::remote::{CLEAR_EXTENSION_BYTES_MAX, EXTENSION_BYTES_MAX};
use crate::security::TAG_BYTES;

/// One receive. A frame with its payload that is longer goes by rendezvous.
pub(super) const EAGER_BYTES: usize = 8192;
/// Receives posted for all connections together: 4 MiB, independent of how many there are. A window is 32, so 16 peers may fill
/// theirs at once; beyond that the transport holds senders back until we have posted more.
pub(super) const RECEIVES: u32 = 512;
/// Receives of one connection where the device cannot share them: the window, pings, and rendezvous that are done.
pub(super) const RECEIVES_WITHOUT_SHARED: u32 = 2 * CREDIT_WINDOW;
/// Receives posted at a time.
pub(super) const REFILL_BATCH: u32 = 32;
/// Connections of one machine. Completion queue: 256 * (96 + 0) + 512 = 25 088 entries, below soft-RoCE's 32 767.
pub(super) const QUEUE_PAIRS_MAX: u32 = 256;
/// Work requests in flight per connection: a request's 64 segments and a window of messages.
pub(super) const SENDS_PER_QUEUE_PAIR: u32 = 96;
/// Frames up to this length go inline: a header and a short message.
pub(super) const INLINE_BYTES: u32 = 220;
/// Memory windows: 32 requests of 64 segments, or 2048 of one.
pub(super) const WINDOWS_MAX: u32 = 2048;
/// Bytes of READs in flight of one device: 4 times what 100 Gb/s carry in 80 us.
pub(super) const READ_BYTES_MAX: usize = 4 << 20;
/// Completions per poll.
pub(super) const POLL_ENTRIES: usize = 32;
/// While busy, events of connections and of the device are looked for this often.
pub(super) const LOOK_MS: u64 = 1;
/// A device that was taken away is looked for this often.
pub(super) const REOPEN_MS: u64 = 1000;
/// A port that is down is looked at this often, while ends of connections wait for it.
pub(super) const UNPARK_MS: u64 = 100;
/// After a send that failed on our own side calls and farewells wait for so long: longer than a link takes to count as down.
pub(super) const DOUBT_MS: u64 = 1000;
/// A connection that ends waits this long for its last word to be acknowledged.
pub(super) const LINGER_MS: u64 = 500;

/// Memory for copies that are sealed, of a machine that seals bulk: what 64 requests expose or push at once. Mapped when touched,
/// pinned in pieces of 32 MiB.
pub(super) const SEALING_BYTES: u64 = 64 << 20;

const _: () = assert!(EXTENSION_BYTES_MAX + HEADER_BYTES + 64 + TAG_BYTES <= EAGER_BYTES);
const _: () = assert!(HEADER_BYTES + CLEAR_EXTENSION_BYTES_MAX <= verbs_sys::work::HEAD_BYTES_MAX);
// A segment is pushed as one piece, so a seal is of a segment.
const _: () = assert!(BULK_PIECE_BYTES as u64 == base::limits::BUFFER_BYTES_MAX);
const _: () = assert!(SEALING_BYTES >= 64 * base::limits::REQUEST_BULK_BYTES_MAX);
const _: () = assert!(MESSAGE_BYTES_MAX <= 1 << 20 && BULK_PIECE_BYTES <= 1 << 20);
