//! A device in memory: no faults, no cache, each operation done at the next poll. For tests and for tools without a disk.

use std::collections::VecDeque;
use std::os::fd::RawFd;

use base::Instant;
use base::units::{BLOCK_BYTES, MIB, narrow};

use super::{Backend, BlockDone, BlockOp, Geometry, check_range};
use crate::limits::DEVICE_QUEUE_DEPTH;

const CHUNK_BLOCKS: u64 = MIB / BLOCK_BYTES;

/// Blocks in memory, given by the megabyte when first written.
pub struct MemDevice {
    size_blocks: u64,
    chunks: Vec<Option<Box<[u8]>>>,
    queue: VecDeque<(BlockOp, u64)>,
}

impl MemDevice {
    /// A device of `size_blocks`, all zero.
    #[must_use]
    pub fn new(size_blocks: u64) -> MemDevice {
        let chunks = (0..size_blocks.div_ceil(CHUNK_BLOCKS)).map(|_| None).collect();
        MemDevice { size_blocks, chunks, queue: VecDeque::new() }
    }

    /// Calls `visit` with each run of bytes of `[start_block, ..)` that lies in one chunk: chunk, offset, range of the `len` bytes.
    fn runs(start_block: u64, len: usize) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
        let chunk_bytes = narrow(CHUNK_BLOCKS * BLOCK_BYTES);
        let mut done = 0;
        std::iter::from_fn(move || {
            let at = narrow(start_block * BLOCK_BYTES) + done;
            let (chunk, offset) = (at / chunk_bytes, at % chunk_bytes);
            let count = (len - done).min(chunk_bytes - offset);
            done += count;
            (count > 0).then_some((chunk, offset, done - count..done))
        })
    }

    fn execute(&mut self, op: BlockOp, token: u64) -> BlockDone {
        if let Err(error) = check_range(&op, self.size_blocks) {
            return BlockDone { token, result: Err(error), buffer: op.into_buffer() };
        }
        match op {
            BlockOp::Read { start_block, mut buffer } => {
                for (chunk, offset, range) in MemDevice::runs(start_block, buffer.len()) {
                    let count = range.len();
                    match &self.chunks[chunk] {
                        Some(bytes) => buffer[range].copy_from_slice(&bytes[offset..offset + count]),
                        None => buffer[range].fill(0),
                    }
                }
                BlockDone { token, result: Ok(()), buffer: Some(buffer) }
            }
            BlockOp::Write { mut start_block, parts } | BlockOp::WriteThrough { mut start_block, parts } => {
                for part in &parts {
                    for (chunk, offset, range) in MemDevice::runs(start_block, part.len()) {
                        let chunk = self.chunks[chunk].get_or_insert_with(|| {
                            vec![0; narrow(CHUNK_BLOCKS * BLOCK_BYTES)].into_boxed_slice()
                        });
                        chunk[offset..offset + range.len()].copy_from_slice(&part[range]);
                    }
                    start_block += base::units::wide(part.len()) / BLOCK_BYTES;
                }
                BlockDone { token, result: Ok(()), buffer: None }
            }
            BlockOp::Flush | BlockOp::Discard { .. } => BlockDone { token, result: Ok(()), buffer: None },
        }
    }
}

impl Backend for MemDevice {
    fn geometry(&self) -> Geometry {
        Geometry { size_blocks: self.size_blocks }
    }

    fn try_submit(&mut self, op: BlockOp, token: u64) -> Result<(), BlockOp> {
        if self.queue.len() >= DEVICE_QUEUE_DEPTH {
            return Err(op);
        }
        self.queue.push_back((op, token));
        Ok(())
    }

    fn flush_queue(&mut self) {}

    fn poll(&mut self, _now: Instant, done: &mut Vec<BlockDone>) -> usize {
        let count = self.queue.len();
        while let Some((op, token)) = self.queue.pop_front() {
            let finished = self.execute(op, token);
            done.push(finished);
        }
        count
    }

    fn next_deadline(&self) -> Option<Instant> {
        (!self.queue.is_empty()).then_some(Instant::ZERO)
    }

    fn wait_fd(&self) -> Option<RawFd> {
        None
    }
}
