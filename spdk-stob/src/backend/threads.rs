//! A file behind helper threads with pread and pwrite, for machines where io_uring is forbidden (containers, old kernels).
//!
//! The locality never blocks: threads do, and wake it through its unparker. A flush is `fdatasync`, started after
//! the writes before it completed, as the domain asks.

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use base::Instant;
use base::units::{BLOCK_BYTES, wide};
use runtime::helper_threads::HelperThreads;
use runtime::{LocalityHandle, Unparker};
use smallvec::SmallVec;

use super::{Backend, BlockDone, BlockOp, DeviceError, Geometry, WriteParts, check_range};
use crate::limits::{DEVICE_QUEUE_DEPTH, HELPER_THREADS};

/// The threads and what they have not answered yet.
pub(super) struct ThreadQueue {
    file: Arc<File>,
    size_blocks: u64,
    threads: HelperThreads,
    answers: (Sender<BlockDone>, Receiver<BlockDone>),
    unparker: Option<Unparker>,
    in_flight: usize,
}

impl ThreadQueue {
    pub(super) fn new(file: Arc<File>, size_blocks: u64) -> std::io::Result<ThreadQueue> {
        Ok(ThreadQueue {
            file,
            size_blocks,
            threads: HelperThreads::new(HELPER_THREADS)?,
            answers: channel(),
            unparker: None,
            in_flight: 0,
        })
    }
}

/// Blocks until `op` is done. Its range is checked.
pub(super) fn execute(file: &File, op: BlockOp, token: u64) -> BlockDone {
    let (operation, extent) = (op.operation(), op.extent());
    let (result, buffer) = match op {
        BlockOp::Read { start_block, mut buffer } => {
            (file.read_exact_at(&mut buffer, start_block * BLOCK_BYTES), Some(buffer))
        }
        BlockOp::Write { start_block, parts } => (write_parts(file, start_block * BLOCK_BYTES, &parts), None),
        BlockOp::WriteThrough { start_block, parts } => {
            // All that is written, and more, is durable after it.
            let written = write_parts(file, start_block * BLOCK_BYTES, &parts);
            (written.and_then(|()| file.sync_data()), None)
        }
        BlockOp::Flush => (file.sync_data(), None),
        BlockOp::Discard { .. } => (Ok(()), None),
    };
    let result = result.map_err(|error| DeviceError::from_io(operation, extent, &error));
    BlockDone { token, result, buffer }
}

/// Writes all parts, in one call if the kernel takes them so.
fn write_parts(file: &File, offset_bytes: u64, parts: &WriteParts) -> std::io::Result<()> {
    let slices: SmallVec<[IoSlice<'_>; 16]> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut skip = rustix::io::pwritev(file, &slices, offset_bytes)?;
    let mut offset_bytes = offset_bytes;
    for part in parts {
        let written = skip.min(part.len());
        skip -= written;
        file.write_all_at(&part[written..], offset_bytes + wide(written))?;
        offset_bytes += wide(part.len());
    }
    Ok(())
}

impl Backend for ThreadQueue {
    fn geometry(&self) -> Geometry {
        Geometry { size_blocks: self.size_blocks }
    }

    fn try_submit(&mut self, op: BlockOp, token: u64) -> Result<(), BlockOp> {
        if self.in_flight >= DEVICE_QUEUE_DEPTH {
            return Err(op);
        }
        self.in_flight += 1;
        if let Err(error) = check_range(&op, self.size_blocks) {
            let done = BlockDone { token, result: Err(error), buffer: op.into_buffer() };
            let _ = self.answers.0.send(done); // we hold the receiver
            return Ok(());
        }
        let (file, sender, unparker) =
            (Arc::clone(&self.file), self.answers.0.clone(), self.unparker.clone());
        let queued = self.threads.submit(Box::new(move || {
            let done = execute(&file, op, token);
            // Nobody listens any more when the backend was dropped.
            if sender.send(done).is_ok()
                && let Some(unparker) = unparker
            {
                unparker.unpark();
            }
        }));
        // The threads' queue is longer than ours (asserted below), so this does not happen; if it did, slow is better than lost.
        if let Err(job) = queued {
            job();
        }
        Ok(())
    }

    fn flush_queue(&mut self) {}

    fn poll(&mut self, _now: Instant, done: &mut Vec<BlockDone>) -> usize {
        let before = done.len();
        done.extend(self.answers.1.try_iter());
        let count = done.len() - before;
        self.in_flight -= count;
        count
    }

    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    fn wait_fd(&self) -> Option<RawFd> {
        None
    }

    fn attach(&mut self, locality: &LocalityHandle) {
        self.unparker = Some(locality.unparker());
    }
}

const _: () = assert!(DEVICE_QUEUE_DEPTH <= HELPER_THREADS * runtime::limits::HELPER_QUEUE_PER_THREAD);
