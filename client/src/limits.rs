//! Bounds of the client, each with its arithmetic. docs/limits.md explains them to operators.

use base::limits::{BULK_SEGMENTS_MAX, REQUEST_BULK_BYTES_MAX};
use base::units::{GIB, MIB};
use std::time::Duration;

/// Requests of one client to one target at a time: two on the wire while two are on the device.
pub const REQUESTS_PER_TARGET_MAX: usize = 4;

/// Requests of one client in flight: as many as there may be to each of 64 targets. 256 MiB of bulk at most ([`REQUEST_BULK_BYTES_MAX`] each), and no more than
/// [`MEMORY_BYTES_MAX`] in all.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 64 * REQUESTS_PER_TARGET_MAX;

/// Bytes one `read` or `write` may name: its buffers are all held at once. Longer transfers go through `upload` and `download`.
pub const OPERATION_BYTES_MAX: u64 = 32 * MIB;

/// Object bytes that an upload or a download encodes, sends or waits for as one piece (rounded to whole groups): with 4+2 over 8
/// devices a piece is 12 units of 64 KiB for each device, close to one full request.
pub const PIECE_BYTES: u64 = 4 * MIB;

/// Pieces of an upload or download in flight: one being read, one being encoded, two on their way.
pub const PIECES_IN_FLIGHT: usize = 4;

/// Bytes of buffers that the operations of one client hold at most, half the arena if that is less: four operations of
/// [`OPERATION_BYTES_MAX`] with as much again for parity and old bytes. Whoever finds no room waits.
pub const MEMORY_BYTES_MAX: u64 = 4 * 2 * OPERATION_BYTES_MAX;

/// A server that cannot be connected to for this long is taken for silent: reads go round it, writes refetch the configuration.
pub const UNREACHABLE_MAX: Duration = Duration::from_secs(1);

/// Longest wait between two tries of a write to a server that does not answer.
pub const RETRY_WAIT_MAX: Duration = Duration::from_millis(400);
/// First wait between two tries.
pub const RETRY_WAIT_MIN: Duration = Duration::from_millis(25);

/// A target that did not answer a read is passed over by reads for this long, if the group can be rebuilt without it.
pub const SUSPECT_FOR: Duration = Duration::from_secs(2);

/// Tries of a record update against other writers.
pub const RECORD_TRIES_MAX: u32 = 8;

/// Objects that a rebalance moves at a time, and a repair copies at least, with one window of [`PIECE_BYTES`] each.
pub const REPAIR_OBJECTS_IN_FLIGHT: usize = 4;

/// A repair copies one object more for each device beyond so many: in a wider pool fewer groups of a window have a unit of the device that is lost, so that all the
/// others have something to do. Memory: a window takes less by as much, so that it is at most twice as much in all.
pub const REPAIR_DEVICES_FEW: usize = 8;

/// Objects that a repair copies at most at a time, each of them held.
pub const REPAIR_OBJECTS_IN_FLIGHT_MAX: usize = 64;

/// Records of one page that a client asks one device for: 64 of them are below 10 KiB, far inside a message.
pub const LIST_PAGE_RECORDS: u32 = 64;

/// Records one `list` returns at most.
pub const LIST_RECORDS_MAX: usize = 4096;

const _: () = assert!(PIECE_BYTES * PIECES_IN_FLIGHT as u64 <= OPERATION_BYTES_MAX);
const _: () = assert!(REQUESTS_IN_FLIGHT_MAX as u64 * REQUEST_BULK_BYTES_MAX < GIB);
const _: () = assert!(BULK_SEGMENTS_MAX > 0);
