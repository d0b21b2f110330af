//! The backend trait: what a domain needs of a device, and the fault seam of every test.
//!
//! A backend is polled and never blocks: operations are submitted, leave together at [`Backend::flush_queue`], and come
//! back from [`Backend::poll`] in any order. **A buffer is the caller's or the device's, never both**: it moves in with
//! the operation and out with its completion. A completed write may still sit in the device's volatile cache; a
//! completed flush covers every write *completed before the flush was submitted*, and no other; a completed [`BlockOp::WriteThrough`]
//! is durable itself, and covers nothing else.
//! For SPDK: `try_submit` = queue the command, `flush_queue` = ring the doorbell, `poll` = `process_completions`,
//! [`Backend::register`] = `spdk_mem_register`.
//!
//! Thread: a backend belongs to one locality. Start reading at [`Backend`], then `sim` for what a device may do to us.

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // the numbers of tests are small
mod conformance;
mod faulty;
mod file;
mod inline;
mod mem;
mod sim;
mod spdk;
mod threads;
mod uring;

use std::os::fd::RawFd;
use std::time::Duration;

use base::units::BLOCK_BYTES;
use base::{BlockExtent, Instant};
use runtime::{Arena, Buffer, LocalityHandle, SharedBuffer};
use smallvec::SmallVec;
use spdk_sys::{NvmeStatus, SpdkError};

pub use faulty::{FaultSwitch, Faulty};
pub use file::{BackendKind, Direct, OpenOptions, UringFile, create_device_file};
pub use mem::MemDevice;
pub use sim::{SimBackend, SimDisk, SimFaults, SimStats};
pub use spdk::{NvmeAddress, NvmeAddressError, SpdkDevice, is_nvme_address, open_device};

/// The parts of a write: as many as a request has segments without an allocation.
pub type WriteParts = SmallVec<[SharedBuffer; 4]>;

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks of 4096 bytes.
    pub size_blocks: u64,
}

/// One operation on a device.
#[derive(Debug)]
pub enum BlockOp {
    /// Fills `buffer` (a multiple of 4096 bytes) from `start_block`.
    Read {
        /// First block.
        start_block: u64,
        /// Comes back with the completion.
        buffer: Buffer,
    },
    /// Writes `parts` (each a multiple of 4096 bytes) one after the other from `start_block`.
    Write {
        /// First block.
        start_block: u64,
        /// The bytes.
        parts: WriteParts,
    },
    /// Like `Write`, and complete only when these bytes are durable (force unit access). Says nothing of other writes.
    WriteThrough {
        /// First block.
        start_block: u64,
        /// The bytes.
        parts: WriteParts,
    },
    /// Makes every write that completed before this was submitted durable.
    Flush,
    /// Tells the device that the content of `extent` is not needed any more. A hint.
    Discard {
        /// The blocks.
        extent: BlockExtent,
    },
}

/// The kind of an operation, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Flush.
    Flush,
    /// Discard.
    Discard,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Flush => "flush",
            Operation::Discard => "discard",
        })
    }
}

impl BlockOp {
    /// Its kind.
    #[must_use]
    pub fn operation(&self) -> Operation {
        match self {
            BlockOp::Read { .. } => Operation::Read,
            BlockOp::Write { .. } | BlockOp::WriteThrough { .. } => Operation::Write,
            BlockOp::Flush => Operation::Flush,
            BlockOp::Discard { .. } => Operation::Discard,
        }
    }

    /// The blocks that it touches; empty for a flush.
    #[must_use]
    pub fn extent(&self) -> BlockExtent {
        let blocks = |bytes: usize| base::units::wide(bytes) / BLOCK_BYTES;
        match self {
            BlockOp::Read { start_block, buffer } => {
                BlockExtent { start: *start_block, count: blocks(buffer.len()) }
            }
            BlockOp::Write { start_block, parts } | BlockOp::WriteThrough { start_block, parts } => {
                BlockExtent { start: *start_block, count: blocks(parts.iter().map(|part| part.len()).sum()) }
            }
            BlockOp::Flush => BlockExtent::default(),
            BlockOp::Discard { extent } => *extent,
        }
    }

    fn into_buffer(self) -> Option<Buffer> {
        match self {
            BlockOp::Read { buffer, .. } => Some(buffer),
            _ => None,
        }
    }
}

/// A completion.
#[derive(Debug)]
pub struct BlockDone {
    /// The token given with the operation.
    pub token: u64,
    /// Whether all of it was done. After an error a write may have reached the device in part.
    pub result: Result<(), DeviceError>,
    /// The buffer of a read.
    pub buffer: Option<Buffer>,
}

/// Why a device did not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The device or the kernel answered an error number.
    #[error("the device failed a {operation} of {extent} with {} (errno {errno})", std::io::Error::from_raw_os_error(*errno))]
    Errno {
        /// What was asked.
        operation: Operation,
        /// Which blocks.
        extent: BlockExtent,
        /// Linux error number.
        errno: i32,
    },
    /// The device ended in the middle of a transfer.
    #[error("the device ended inside a {operation} of {extent}: was it truncated?")]
    Short {
        /// What was asked.
        operation: Operation,
        /// Which blocks.
        extent: BlockExtent,
    },
    /// The blocks are not on the device.
    #[error("a {operation} of {extent} is outside the device's {size_blocks} blocks")]
    OutOfRange {
        /// What was asked.
        operation: Operation,
        /// Which blocks.
        extent: BlockExtent,
        /// Blocks of the device.
        size_blocks: u64,
    },
    /// The NVMe controller answered an error.
    #[error("the device failed a {operation} of {extent}: {status}")]
    Nvme {
        /// What was asked.
        operation: Operation,
        /// Which blocks.
        extent: BlockExtent,
        /// What it answered.
        status: NvmeStatus,
    },
    /// The device did not answer in time, and gave the command up when asked.
    #[error(
        "the device did not finish a {operation} of {extent} in {after:?}: take it out if that happens again"
    )]
    TimedOut {
        /// What was asked.
        operation: Operation,
        /// Which blocks.
        extent: BlockExtent,
        /// How long it had.
        after: Duration,
    },
    /// The controller is gone, or did not answer at all and was stopped.
    #[error("the device is lost (a {operation} of {extent} did not come back): reopen it, or take it out")]
    Lost {
        /// What was asked.
        operation: Operation,
        /// Which blocks.
        extent: BlockExtent,
    },
    /// The bytes lie where the device does not reach.
    #[error("the device does not reach the memory of a {operation} of {extent}: {}", reason.as_ref().map_or_else(
        || "it is not of the locality's arena, or not aligned to 4096 bytes".to_owned(), ToString::to_string))]
    Memory {
        /// What was asked.
        operation: Operation,
        /// Which blocks.
        extent: BlockExtent,
        /// Why the arena is not registered, if that is the reason.
        reason: Option<SpdkError>,
    },
    /// The domain went away before the completion.
    #[error("the device was closed")]
    Closed,
}

/// The error number of a failed device.
pub(crate) const EIO: i32 = 5;

impl DeviceError {
    fn from_io(operation: Operation, extent: BlockExtent, error: &std::io::Error) -> DeviceError {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            return DeviceError::Short { operation, extent };
        }
        DeviceError::Errno { operation, extent, errno: error.raw_os_error().unwrap_or(EIO) }
    }
}

/// A device, as a domain sees it.
pub trait Backend {
    /// What the device is.
    fn geometry(&self) -> Geometry;

    /// Takes an operation, or gives it back when the queue is full: try again after a completion.
    fn try_submit(&mut self, op: BlockOp, token: u64) -> Result<(), BlockOp>;

    /// Sends what was submitted since the last call: one doorbell (or system call) for all.
    fn flush_queue(&mut self);

    /// Appends completions to `done`; returns how many.
    fn poll(&mut self, now: Instant, done: &mut Vec<BlockDone>) -> usize;

    /// When to poll again although nothing becomes readable; used by devices with virtual time.
    fn next_deadline(&self) -> Option<Instant>;

    /// Readable when [`Backend::poll`] has work.
    fn wait_fd(&self) -> Option<RawFd>;

    /// Learns its locality, before the first operation. For backends with threads, which have to wake it.
    fn attach(&mut self, locality: &LocalityHandle) {
        let _ = locality;
    }

    /// Registers the memory of `arena` with the device, once. Errors: the device's limit on memory.
    fn register(&mut self, arena: &Arena) -> std::io::Result<()> {
        let _ = arena;
        Ok(())
    }
}

/// Checks the range of `op`; the one place where a domain's arithmetic meets the device's end.
fn check_range(op: &BlockOp, size_blocks: u64) -> Result<(), DeviceError> {
    let extent = op.extent();
    match extent.start.checked_add(extent.count) {
        Some(end) if end <= size_blocks => Ok(()),
        _ => Err(DeviceError::OutOfRange { operation: op.operation(), extent, size_blocks }),
    }
}
