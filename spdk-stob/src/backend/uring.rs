//! A file behind an io_uring. Partial writes go on where they stopped; a read that stops before the end is an error.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use base::units::{BLOCK_BYTES, narrow, wide};
use base::{BlockExtent, Instant};
use runtime::ring::{Ring, RingCompletion};
use runtime::{Arena, LocalityHandle, SharedBuffer};

use super::{Backend, BlockDone, BlockOp, DeviceError, Geometry, Operation, WriteParts, check_range};
use crate::limits::DEVICE_QUEUE_DEPTH;

/// Operations that are told to the kernel at once when a turn has more: the device works on the first ones while the rest are made.
/// Measured: with 32 random reads in flight and no bound a device of this machine gave 0.89 of what `fio` got, with 4 as much.
const SUBMIT_BATCH: usize = 4;

/// Reads that are tried again after the kernel stopped in the middle, before the file counts as ended.
const SHORT_READS_MAX: u8 = 3;

struct InFlight {
    token: u64,
    operation: Operation,
    extent: BlockExtent,
    /// What a write still has to do, in case the kernel stops in the middle.
    left: WriteParts,
    is_through: bool,
    done_bytes: u64,
    short_reads: u8,
}

/// The ring and what is in it.
pub(super) struct RingQueue {
    file: Arc<File>,
    size_blocks: u64,
    ring: Ring,
    in_flight: Vec<Option<InFlight>>,
    free: Vec<usize>,
    finished: Vec<BlockDone>,
    completions: Vec<RingCompletion>,
    submit_error: Option<i32>,
}

impl RingQueue {
    /// Error: io_uring is forbidden or the kernel too old; the caller falls back to threads.
    pub(super) fn new(file: Arc<File>, size_blocks: u64) -> std::io::Result<RingQueue> {
        let ring = Ring::new(u32::try_from(DEVICE_QUEUE_DEPTH).unwrap_or(u32::MAX))?;
        Ok(RingQueue {
            file,
            size_blocks,
            ring,
            in_flight: (0..DEVICE_QUEUE_DEPTH).map(|_| None).collect(),
            free: (0..DEVICE_QUEUE_DEPTH).rev().collect(),
            finished: Vec::new(),
            completions: Vec::new(),
            submit_error: None,
        })
    }

    fn finish(&mut self, slot: usize, result: Result<(), DeviceError>, buffer: Option<runtime::Buffer>) {
        if let Some(entry) = self.in_flight[slot].take() {
            self.free.push(slot);
            self.finished.push(BlockDone { token: entry.token, result, buffer });
        }
    }

    fn complete(&mut self, completion: RingCompletion) {
        let slot = narrow(completion.token);
        let Some(entry) = self.in_flight.get_mut(slot).and_then(Option::as_mut) else { return };
        let (operation, extent) = (entry.operation, entry.extent);
        let wanted_bytes = extent.count * BLOCK_BYTES;
        let bytes = match completion.result {
            Ok(bytes) => u64::from(bytes),
            Err(error) => {
                return self.finish(
                    slot,
                    Err(DeviceError::from_io(operation, extent, &error)),
                    completion.buffer,
                );
            }
        };
        match (operation, completion.buffer) {
            (Operation::Read, Some(buffer)) if bytes < wanted_bytes => {
                entry.short_reads += 1;
                if bytes == 0 || entry.short_reads > SHORT_READS_MAX {
                    return self.finish(slot, Err(DeviceError::Short { operation, extent }), Some(buffer));
                }
                let offset_bytes = extent.start * BLOCK_BYTES;
                if let Err(buffer) = self.ring.try_read(&self.file, offset_bytes, buffer, completion.token) {
                    self.finish(slot, Err(DeviceError::Short { operation, extent }), Some(buffer));
                }
            }
            (Operation::Write, _) if entry.done_bytes + bytes < wanted_bytes => {
                if bytes == 0 {
                    return self.finish(slot, Err(DeviceError::Short { operation, extent }), None);
                }
                entry.done_bytes += bytes;
                entry.left = after(std::mem::take(&mut entry.left), narrow(bytes));
                let (parts, done_bytes) = (entry.left.clone(), entry.done_bytes);
                let offset_bytes = extent.start * BLOCK_BYTES + done_bytes;
                // The completion just freed a slot of the ring, so it has room.
                let again = match entry.is_through {
                    true => self.ring.try_write_through(&self.file, offset_bytes, parts, completion.token),
                    false => self.ring.try_write(&self.file, offset_bytes, parts, completion.token),
                };
                if again.is_err() {
                    self.finish(slot, Err(DeviceError::Short { operation, extent }), None);
                }
            }
            (_, buffer) => self.finish(slot, Ok(()), buffer),
        }
    }
}

/// `parts` without their first `bytes`.
fn after(parts: WriteParts, bytes: usize) -> WriteParts {
    let mut skipped = bytes;
    let cut = |part: SharedBuffer| {
        let skip = skipped.min(part.len());
        skipped -= skip;
        (skip < part.len()).then(|| part.slice(skip..part.len()))
    };
    parts.into_iter().filter_map(cut).collect()
}

impl Backend for RingQueue {
    fn geometry(&self) -> Geometry {
        Geometry { size_blocks: self.size_blocks }
    }

    fn try_submit(&mut self, op: BlockOp, token: u64) -> Result<(), BlockOp> {
        if let Err(error) = check_range(&op, self.size_blocks) {
            self.finished.push(BlockDone { token, result: Err(error), buffer: op.into_buffer() });
            return Ok(());
        }
        let Some(&slot) = self.free.last() else { return Err(op) };
        let (operation, extent) = (op.operation(), op.extent());
        let ring_token = wide(slot);
        let offset_bytes = extent.start * BLOCK_BYTES;
        let mut is_through = false;
        let left = match op {
            BlockOp::Read { start_block, buffer } => {
                if let Err(buffer) = self.ring.try_read(&self.file, offset_bytes, buffer, ring_token) {
                    return Err(BlockOp::Read { start_block, buffer });
                }
                WriteParts::new()
            }
            BlockOp::Write { start_block, parts } => {
                let left = parts.clone();
                if let Err(parts) = self.ring.try_write(&self.file, offset_bytes, parts, ring_token) {
                    return Err(BlockOp::Write { start_block, parts });
                }
                left
            }
            BlockOp::WriteThrough { start_block, parts } => {
                is_through = true;
                let left = parts.clone();
                if let Err(parts) = self.ring.try_write_through(&self.file, offset_bytes, parts, ring_token) {
                    return Err(BlockOp::WriteThrough { start_block, parts });
                }
                left
            }
            BlockOp::Flush => {
                if self.ring.try_flush(&self.file, ring_token).is_err() {
                    return Err(BlockOp::Flush);
                }
                WriteParts::new()
            }
            BlockOp::Discard { .. } => {
                // Punching holes into a preallocated file would give away space that the device needs again.
                self.finished.push(BlockDone { token, result: Ok(()), buffer: None });
                return Ok(());
            }
        };
        self.free.pop();
        self.in_flight[slot] =
            Some(InFlight { token, operation, extent, left, is_through, done_bytes: 0, short_reads: 0 });
        if self.ring.unsubmitted() >= SUBMIT_BATCH {
            self.flush_queue();
        }
        Ok(())
    }

    fn flush_queue(&mut self) {
        // An error is a broken ring: nothing queued will ever complete, so poll says so for each operation.
        if let Err(error) = self.ring.submit() {
            self.submit_error = Some(error.raw_os_error().unwrap_or(super::EIO));
        }
    }

    fn poll(&mut self, _now: Instant, done: &mut Vec<BlockDone>) -> usize {
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.poll(&mut completions);
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        self.completions = completions;
        if self.ring.unsubmitted() > 0 {
            self.flush_queue(); // what goes on after a short transfer, or what the kernel had no room for
        }
        if let Some(errno) = self.submit_error {
            for slot in 0..self.in_flight.len() {
                if let Some(entry) = &self.in_flight[slot] {
                    let error =
                        DeviceError::Errno { operation: entry.operation, extent: entry.extent, errno };
                    self.finish(slot, Err(error), None);
                }
            }
        }
        let count = self.finished.len();
        done.append(&mut self.finished);
        count
    }

    fn next_deadline(&self) -> Option<Instant> {
        (!self.finished.is_empty() || self.ring.unsubmitted() > 0).then_some(Instant::ZERO)
    }

    fn wait_fd(&self) -> Option<RawFd> {
        Some(self.ring.as_raw_fd())
    }

    fn attach(&mut self, locality: &LocalityHandle) {
        self.ring.count_into(Arc::clone(locality.counters()));
    }

    fn register(&mut self, arena: &Arena) -> std::io::Result<()> {
        // Refused registration (locked memory) is slower and otherwise the same.
        self.ring.register_arena(arena);
        Ok(())
    }
}
