//! Bounds of this crate, each with its arithmetic. docs/disk.md says what they mean on the device, docs/limits.md for operators.

use std::time::Duration;

use base::limits::BUFFER_BYTES_MAX;
use base::units::{BLOCK_BYTES, KIB, MIB, narrow};

/// Blocks of one device operation: one buffer of the arena.
pub const DEVICE_OPERATION_BLOCKS_MAX: u64 = BUFFER_BYTES_MAX / BLOCK_BYTES;

/// Operations a backend holds at once. More wait in the domain, in order.
pub const DEVICE_QUEUE_DEPTH: usize = 128;

/// Helper threads of a file backend where io_uring is forbidden. Four keep a disk busy and a laptop usable.
pub const HELPER_THREADS: usize = 4;

/// How long an NVMe command may take before it is aborted: as long as a drive may spend on its own retries.
pub const NVME_COMMAND_TIME: Duration = Duration::from_secs(10);
/// How long an aborted command may take to come back before the controller is stopped.
pub const NVME_ABORT_TIME: Duration = Duration::from_secs(5);
/// How often the admin queue of an NVMe controller is looked at, also when idle: SPDK keeps a
/// remote controller alive from there, every 5 s.
pub const NVME_ADMIN_TIME: Duration = Duration::from_secs(1);

/// For how long a device that somebody lets go of may still be locked: five times the 1 s that the kernel was seen to take over a
/// killed process's io_uring beside a load on every core.
pub const DEVICE_LOCK_WAIT: Duration = Duration::from_secs(5);

/// Superblock copies: one in the first and one in the last block of the device.
pub const SUPERBLOCK_COPIES: usize = 2;

/// Blocks before the log: the superblock, and room to keep what follows aligned to 1 MiB.
pub const LEAD_BLOCKS: u64 = MIB / BLOCK_BYTES;

/// Smallest log: sixteen of the smallest groups' worth of the largest transaction never have to wait for each other.
pub const LOG_BYTES_MIN: u64 = 4 * MIB;
/// Largest log: bounds what is read when a device is opened (256 MiB at 1 GiB/s is a quarter of a second).
pub const LOG_BYTES_MAX: u64 = 256 * MIB;
/// The log is this part of the device, within its bounds.
pub const LOG_PART: u64 = 64;

/// Each of the two checkpoint areas is this part of the device: stobs, trees, shared blocks, and 56 bytes for each page.
pub const CHECKPOINT_PART: u64 = 128;
/// Smallest checkpoint area.
pub const CHECKPOINT_BYTES_MIN: u64 = 3 * MIB / 2;

/// Blocks of a slot, which holds a page of extents or bits of free space.
pub const SLOT_BLOCKS: u64 = 4;
/// Largest slot that a superblock may ask for.
pub const SLOT_BLOCKS_MAX: u64 = 64;
/// The region of pages is this part of the device. A block that is its own extent takes 20 bytes of a page, a part of 204 of
/// the block; so the worst map of few stobs fits into pages that are half full.
pub const PAGES_PART: u64 = 64;
/// Smallest region of pages.
pub const PAGES_BYTES_MIN: u64 = MIB;
/// Slots that only transactions which take away may use, or a full device could never be emptied.
pub const SLOTS_KEPT: u64 = 8;
/// Most slots that one change of an extent can need at the next checkpoint: both ends of what it touches, and two for splits.
pub const SLOTS_PER_CHANGE: u64 = 4;
/// Changed pages that bring a checkpoint: bounds the memory they take, and the time that commits wait.
pub const DIRTY_PAGES_MAX: u64 = 4096;
/// Memory of extents that are on the device too, in bytes: about two million of one block.
pub const PAGE_CACHE_BYTES: u64 = 128 * MIB;
/// The law of memory, which `tests/memory.rs` measures. Free space: a bit for each block of a device, per TiB, with 3 % for its groups.
pub const FREE_SPACE_BYTES_PER_TIB: u64 = 33 * MIB;
/// Memory of an open device besides free space, stobs, extents and trees: queues, the trace, bounds.
pub const DOMAIN_MEMORY_BYTES_MAX: u64 = 256 * KIB;
/// Buffers of an open device: one of a record, and one of each page that is read at once.
pub const DOMAIN_BUFFER_BYTES_MAX: u64 = 5 * MIB / 4;
/// Memory of a stob besides its extents. Nothing is kept for a stob that is in use: there is no opening and no closing.
pub const STOB_MEMORY_BYTES_MAX: u64 = 160;
/// Memory of an extent of up to four blocks while its page is in memory ([`PAGE_CACHE_BYTES`]); longer ones have 4 bytes a block.
pub const EXTENT_MEMORY_BYTES_MAX: u64 = 160;
/// Pages read at once.
pub const PAGE_READS_MAX: usize = 16;

/// Fewest blocks of data that make a device worth formatting.
pub const DATA_BYTES_MIN: u64 = 4 * MIB;

/// Smallest device that `format` takes: lead, log, two checkpoint areas, pages, data and the last superblock copy.
pub const DEVICE_BLOCKS_MIN: u64 = LEAD_BLOCKS
    + LOG_BYTES_MIN / BLOCK_BYTES
    + 2 * (CHECKPOINT_BYTES_MIN / BLOCK_BYTES)
    + PAGES_BYTES_MIN / BLOCK_BYTES
    + DATA_BYTES_MIN / BLOCK_BYTES
    + 1;

/// Bytes of one log record, header included: one buffer of the arena.
pub const RECORD_BYTES_MAX: usize = narrow_const(BUFFER_BYTES_MAX);
/// A record is at most this part of the log, so that after a checkpoint the next one always fits.
pub const RECORD_PART: u64 = 4;
/// A checkpoint is taken when the log is this part full (one half), so that recovery replays a bounded log.
pub const CHECKPOINT_AT_PART: u64 = 2;

/// Blocks of one extent of the map: bounds the cost of splitting it, and its entry in a record.
pub const EXTENT_BLOCKS_MAX: usize = 256;
/// Most that a change can add to a checkpoint beyond its own encoding: what is kept of its stob, and the places of two pages more.
pub const CHANGE_GROWTH_BYTES: u64 = 384;

/// Longest key of a tree.
pub const TREE_KEY_BYTES_MAX: usize = 1024;
/// Longest value of a tree.
pub const TREE_VALUE_BYTES_MAX: usize = narrow_const(256 * KIB);

/// Transactions that wait for their group at once. More wait their turn in `write` and `commit`, in order.
pub const TRANSACTIONS_WAITING_MAX: usize = 1024;

/// Events that a domain's trace keeps.
pub const TRACE_EVENTS_MAX: usize = 4096;

#[allow(clippy::cast_possible_truncation)] // asserted in it, when compiling
const fn narrow_const(count: u64) -> usize {
    assert!(count <= u32::MAX as u64);
    count as usize
}

/// Blocks of one device operation, for slices of memory.
pub(crate) fn operation_bytes_max() -> usize {
    narrow(DEVICE_OPERATION_BLOCKS_MAX * BLOCK_BYTES)
}

const _: () = assert!(EXTENT_BLOCKS_MAX as u64 <= DEVICE_OPERATION_BLOCKS_MAX);
const _: () = assert!(PAGES_PART * 2 * 20 < BLOCK_BYTES);
const _: () = assert!(LOG_BYTES_MIN / RECORD_PART >= RECORD_BYTES_MAX as u64);
const _: () = assert!(TREE_KEY_BYTES_MAX + TREE_VALUE_BYTES_MAX + 128 < RECORD_BYTES_MAX);
