//! A file whose file system is memory (tmpfs): pread and pwrite on the locality's own thread, at its poll.
//!
//! Such a file never waits for a device; an operation is a copy by the CPU, whoever does it. io_uring hands each write to a
//! kernel worker thread there, and the two switches cost more than the copy (docs/rfd/0004-memory-files.md). Bounded: a poll
//! copies at most [`POLL_BYTES`] before it gives the other drivers their turn.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::RawFd;
use std::sync::Arc;

use base::Instant;
use base::units::{BLOCK_BYTES, MIB};
use runtime::{Counters, LocalityHandle};

use super::threads::execute;
use super::{Backend, BlockDone, BlockOp, Geometry, check_range};
use crate::limits::DEVICE_QUEUE_DEPTH;

/// Bytes copied in one poll: what one request may carry.
const POLL_BYTES: u64 = MIB;

/// Source: statfs(2), TMPFS_MAGIC and RAMFS_MAGIC.
const MEMORY_FILE_SYSTEMS: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// True if the file's file system is memory. False too if it cannot be asked: the other backends work everywhere.
pub(super) fn is_memory_file(file: &File) -> bool {
    rustix::fs::fstatfs(file)
        .is_ok_and(|stat| u64::try_from(stat.f_type).is_ok_and(|kind| MEMORY_FILE_SYSTEMS.contains(&kind)))
}

/// What waits for the next poll.
pub(super) struct InlineQueue {
    file: Arc<File>,
    size_blocks: u64,
    queue: VecDeque<(BlockOp, u64)>,
    counters: Option<Arc<Counters>>,
}

impl InlineQueue {
    pub(super) fn new(file: Arc<File>, size_blocks: u64) -> InlineQueue {
        InlineQueue { file, size_blocks, queue: VecDeque::new(), counters: None }
    }
}

impl Backend for InlineQueue {
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
        let before = done.len();
        let mut bytes = 0;
        while bytes < POLL_BYTES
            && let Some((op, token)) = self.queue.pop_front()
        {
            if let Err(error) = check_range(&op, self.size_blocks) {
                done.push(BlockDone { token, result: Err(error), buffer: op.into_buffer() });
                continue;
            }
            bytes += op.extent().count * BLOCK_BYTES;
            if let Some(counters) = &self.counters {
                counters.syscalls.add(1);
            }
            done.push(execute(&self.file, op, token));
        }
        done.len() - before
    }

    fn next_deadline(&self) -> Option<Instant> {
        (!self.queue.is_empty()).then_some(Instant::ZERO)
    }

    fn wait_fd(&self) -> Option<RawFd> {
        None
    }

    fn attach(&mut self, locality: &LocalityHandle) {
        self.counters = Some(Arc::clone(locality.counters()));
    }
}
