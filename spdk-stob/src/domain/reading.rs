//! The way of a read: look the map up (once its pages are in memory), read each contiguous run of the device, verify each block.
//!
//! A run that fills a whole part is read straight into the buffer that is returned; only parts that are scattered or
//! have holes are put together by a counted copy. A reader holds the blocks it looked up (they may be freed, not reused).

use std::rc::Rc;

use base::BlockExtent;
use base::checksum::crc32c;
use base::units::{BLOCK_BYTES, narrow, wide};
use runtime::{Buffer, copy_counted};

use super::{Domain, ReadOutcome, Shared};
use crate::error::{BadRequest, StobError};
use crate::limits::DEVICE_OPERATION_BLOCKS_MAX;
use crate::stob_id::StobId;

#[cfg(test)]
use super::mutation::Mutation;

/// CRC-32C of 4096 zero bytes: what a hole's blocks have.
pub const ZERO_BLOCK_CHECKSUM: u32 = 0x98f9_4189;

/// Blocks that are contiguous on the device and in the part.
struct Run {
    /// From the start of the part, in blocks.
    offset: u64,
    device_start: u64,
    count: u64,
}

struct PartPlan {
    extent: BlockExtent,
    runs: Vec<Run>,
}

/// Keeps freed blocks from being reused while it lives.
struct Reader {
    shared: Rc<Shared>,
    time: u64,
}

impl Drop for Reader {
    fn drop(&mut self) {
        let freed = self.shared.state.borrow_mut().reader_ends(self.time);
        if freed {
            self.shared.space_freed.notify_waiters();
        }
    }
}

impl Domain {
    /// Reads `extents`, each of 1 to 256 blocks: one part per extent, holes as zeros and listed in `absent`.
    ///
    /// Every block is verified. Sees what was acknowledged before the call; a write acknowledged during it may or may not be seen, block
    /// by block never a mixture. Waits for buffers of the arena. Errors: [`StobError::Checksum`], [`StobError::Device`],
    /// [`StobError::Damaged`] (a page of extents), [`StobError::BadRequest`], [`StobError::OutOfRange`]. A poisoned domain still reads.
    pub async fn read(&self, stob: StobId, extents: &[BlockExtent]) -> Result<ReadOutcome, StobError> {
        let shared = &self.shared;
        for extent in extents {
            if BlockExtent::new(extent.start, extent.count).is_none() {
                return Err(StobError::OutOfRange { start: extent.start, count: extent.count });
            }
            if extent.is_empty() || extent.count > DEVICE_OPERATION_BLOCKS_MAX {
                let (blocks, max) = (extent.count, DEVICE_OPERATION_BLOCKS_MAX);
                return Err(StobError::BadRequest(BadRequest::PartLength { blocks, max }));
            }
        }
        if shared.is_closed() {
            return Err(StobError::Closed);
        }
        let look = self.look_at(stob, extents).await?;
        let mut outcome = ReadOutcome::default();
        let plans: Vec<PartPlan> =
            extents.iter().map(|extent| self.plan(stob, *extent, &mut outcome)).collect();
        let reader = Reader { shared: Rc::clone(shared), time: shared.state.borrow_mut().reader_starts() };
        drop(look);
        let buffers = self.buffers(&plans).await;
        let mut reads = Vec::with_capacity(plans.len());
        for (plan, (assembled, run_buffers)) in plans.iter().zip(buffers) {
            let started: Vec<_> = plan
                .runs
                .iter()
                .zip(run_buffers)
                .map(|(run, buffer)| shared.device.read(run.device_start, buffer))
                .collect();
            reads.push((plan, assembled, started));
        }
        let mut checksums = outcome.checksums.iter();
        for (plan, assembled, started) in reads {
            let mut checksums = checksums.by_ref().take(narrow(plan.extent.count));
            let mut whole = assembled;
            let mut next_block = 0;
            for (run, read) in plan.runs.iter().zip(started) {
                let bytes = read.await?;
                // The checksums of the hole before this run, if there is one.
                checksums.by_ref().take(narrow(run.offset - next_block)).for_each(drop);
                self.verify_run(stob, plan.extent.start + run.offset, &bytes, &mut checksums)?;
                next_block = run.offset + run.count;
                match &mut whole {
                    None => whole = Some(bytes), // the run is the part
                    Some(whole) => {
                        let at = narrow(run.offset * BLOCK_BYTES);
                        let counters = shared.locality.counters();
                        copy_counted(counters, &mut whole[at..at + bytes.len()], &bytes);
                    }
                }
            }
            checksums.for_each(drop);
            // A plan has either a run that is the part, or a buffer to assemble it in.
            outcome.parts.extend(whole.map(Buffer::freeze));
        }
        drop(reader);
        Ok(outcome)
    }

    fn verify_run<'a>(
        &self,
        stob: StobId,
        first_block: u64,
        bytes: &[u8],
        checksums: &mut impl Iterator<Item = &'a u32>,
    ) -> Result<(), StobError> {
        #[cfg(test)]
        if self.shared.is_mutated(Mutation::SkipReadVerification) {
            checksums.take(bytes.len() / narrow(BLOCK_BYTES)).for_each(drop);
            return Ok(());
        }
        // The range comes second: it is not asked for a block after the last, which may not exist.
        for (bytes, block) in bytes.chunks_exact(narrow(BLOCK_BYTES)).zip(first_block..) {
            if checksums.next() != Some(&crc32c(bytes)) {
                self.shared.bad_blocks.set(self.shared.bad_blocks.get() + 1);
                return Err(StobError::Checksum { stob, block });
            }
        }
        Ok(())
    }

    /// Looks `extent` up: runs of the device, checksums of its blocks, and what is absent.
    fn plan(&self, stob: StobId, extent: BlockExtent, outcome: &mut ReadOutcome) -> PartPlan {
        let state = self.shared.state.borrow();
        let mut runs: Vec<Run> = Vec::new();
        let mut next_block = extent.start;
        let mut absent = |start: u64, end: u64, checksums: &mut Vec<u32>| {
            if start < end {
                outcome.absent.push(BlockExtent { start, count: end - start });
                checksums.extend((start..end).map(|_| ZERO_BLOCK_CHECKSUM));
            }
        };
        for found in state.metadata.lookup(stob, extent) {
            absent(next_block, found.start, &mut outcome.checksums);
            outcome.checksums.extend_from_slice(found.checksums);
            let (offset, count) = (found.start - extent.start, wide(found.checksums.len()));
            next_block = found.start + count;
            match runs.last_mut() {
                Some(run)
                    if run.offset + run.count == offset
                        && run.device_start + run.count == found.device_start =>
                {
                    run.count += count;
                }
                _ => runs.push(Run { offset, device_start: found.device_start, count }),
            }
        }
        absent(next_block, extent.end(), &mut outcome.checksums);
        PartPlan { extent, runs }
    }

    /// For each plan the buffer it is put together in (none if one run is the part) and one buffer per run.
    async fn buffers(&self, plans: &[PartPlan]) -> Vec<(Option<Buffer>, Vec<Buffer>)> {
        let arena = self.shared.locality.arena();
        // One reader at a time collects buffers: two that hold half each would wait for each other for ever.
        let _turn = self.shared.buffer_turn.acquire(1).await;
        let mut buffers = Vec::with_capacity(plans.len());
        for plan in plans {
            let is_one_run = matches!(plan.runs[..], [ref run] if run.count == plan.extent.count);
            let mut assembled = None;
            if !is_one_run {
                let mut buffer = arena.alloc(narrow(plan.extent.count * BLOCK_BYTES)).await;
                buffer.fill(0);
                assembled = Some(buffer);
            }
            let mut run_buffers = Vec::with_capacity(plan.runs.len());
            for run in &plan.runs {
                run_buffers.push(arena.alloc(narrow(run.count * BLOCK_BYTES)).await);
            }
            buffers.push((assembled, run_buffers));
        }
        buffers
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_checksum_of_zeros_is_right() {
        assert_eq!(super::ZERO_BLOCK_CHECKSUM, base::checksum::crc32c(&[0; 4096]));
    }
}
