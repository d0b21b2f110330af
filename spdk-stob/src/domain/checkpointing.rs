//! Checkpoints: changed pages go to free slots, the rest of the metadata to the area that is not in use, then the superblock names it, then the
//! log is free, and the slots that were replaced.
//!
//! Crash cases: before the superblock in block 0 is durable, the old one names the old checkpoint, whose pages nobody touched, and the log it
//! needs is still there. Between the two superblock copies, the newer one wins; the older still works, for nothing it needs
//! was touched. After both, the log before the checkpoint is free. Commits wait meanwhile: the cost grows with what changed, and with trees
//! and shared blocks, which are written whole (docs/disk.md#costs). The checkpoint that makes a device of version 2 one of this version is the same: its
//! regions lie in the area that is not in use.

use std::ops::Bound;

use base::units::{BLOCK_BYTES, narrow, wide};

use super::commit::Committer;
use crate::backend::DeviceError;
use crate::error::{Space, StobError};
use crate::extents::Place;
use crate::format::checkpoint::{self, PIECE_BODY_BYTES, PIECE_HEADER_BYTES, PieceName, stream_bytes_max};
use crate::format::page::{self, PAGE_HEADER_BYTES, PageKind, PageName};
use crate::format::superblock::Superblock;
use crate::format::{FORMAT_VERSION, OLD_VERSION};
use crate::limits::RECORD_BYTES_MAX;
use crate::metadata::Cursor;
use crate::trace::TraceEvent;

#[cfg(test)]
use super::mutation::Mutation;

impl Committer {
    /// Takes a checkpoint of the state as it is applied; the log before it becomes free.
    ///
    /// Errors: [`StobError::Device`]; [`StobError::NoSpace`] only for a device of version 2 that has no room to become one of this
    /// version: admission keeps others within their regions.
    pub(super) async fn checkpoint(&mut self) -> Result<(), StobError> {
        let old = self.shared.superblock.get();
        let new = Superblock {
            sequence: old.sequence + 1,
            checkpoint_area: 1 - old.checkpoint_area,
            replay: self.next,
            ..old
        };
        let new = match old.version {
            OLD_VERSION => Superblock {
                version: FORMAT_VERSION,
                checkpoint_area: 0,
                regions: upgraded_regions(&old)?,
                ..new
            },
            _ => new,
        };
        #[cfg(test)]
        let new = match self.shared.mutation {
            Some(Mutation::CheckpointInPlace) => Superblock { checkpoint_area: old.checkpoint_area, ..new },
            Some(Mutation::ReplayTooLate) => {
                let replay = crate::format::superblock::LogPosition {
                    block: new.replay.block + 1,
                    sequence: new.replay.sequence + 1,
                    ..new.replay
                };
                Superblock { replay, ..new }
            }
            _ => new,
        };
        let replaced = self.write_pages(&new).await?;
        let checkpoint_bytes = self.shared.state.borrow().metadata.checkpoint_bytes();
        let area_blocks = new.regions.checkpoints[0].count;
        if checkpoint_bytes > stream_bytes_max(area_blocks) {
            return Err(no_room(checkpoint_bytes.div_ceil(BLOCK_BYTES), area_blocks));
        }
        let new = Superblock { checkpoint_bytes, ..new };
        self.write_pieces(&new).await?;
        #[cfg(test)]
        if self.shared.is_mutated(Mutation::ReleaseLogEarly) {
            self.tail_block = new.replay.block;
            self.shared.superblock.set(new);
            self.shared.device.flush().await?;
            return Ok(());
        }
        #[cfg(test)]
        let is_flushed = !self.shared.is_mutated(Mutation::CheckpointUnflushed);
        #[cfg(not(test))]
        let is_flushed = true;
        if is_flushed {
            self.flush().await?;
        }
        self.write_superblocks(&new).await?;
        self.shared.superblock.set(new);
        {
            let mut state = self.shared.state.borrow_mut();
            for slot in replaced {
                let was_used = state.slots.release(slot);
                debug_assert!(was_used, "slot {slot} was replaced and free");
            }
            state.evict(self.shared.page_cache_bytes);
        }
        self.shared.checkpoints.set(self.shared.checkpoints.get() + 1);
        self.tail_block = new.replay.block;
        self.is_doubtful = false;
        self.shared.note(TraceEvent::Checkpoint { sequence: new.sequence });
        Ok(())
    }

    /// Writes the pages that changed, each to a free slot. Gives the slots that are free when the superblock is durable.
    async fn write_pages(&mut self, new: &Superblock) -> Result<Vec<u64>, StobError> {
        let mut replaced = {
            let mut state = self.shared.state.borrow_mut();
            state.metadata.extents.tidy();
            state.metadata.extents.take_left_slots()
        };
        let (slot_blocks, regions) = (new.regions.slot_blocks, new.regions);
        let batch = RECORD_BYTES_MAX / narrow(slot_blocks * BLOCK_BYTES).max(1);
        let (mut next_extents, mut next_bits) = (Bound::Unbounded, Some(0));
        #[cfg(test)]
        if self.shared.is_mutated(Mutation::LostBits) {
            next_bits = None;
        }
        loop {
            let (mut extents, mut bits, mut slots) = (Vec::new(), Vec::new(), Vec::new());
            self.scratch.clear();
            {
                let state = &mut *self.shared.state.borrow_mut();
                while slots.len() < batch
                    && let Some((bound, items)) = state.metadata.extents.next_dirty(next_extents)
                {
                    let slot = state.slots.allocate().ok_or(no_room(slot_blocks, regions.pages.count))?;
                    #[cfg(test)]
                    let slot = match state.metadata.extents.slot_of(bound) {
                        Some(old) if self.shared.is_mutated(Mutation::PageInPlace) => {
                            let _ = state.slots.release(slot);
                            old
                        }
                        _ => slot,
                    };
                    let start = self.scratch.len();
                    self.scratch.resize(start + PAGE_HEADER_BYTES, 0);
                    page::encode_extents(items, &mut self.scratch);
                    let name = PageName { kind: PageKind::Extents, format_id: new.format_id, slot };
                    let checksum = page::seal(name, items.len(), slot_blocks, &mut self.scratch, start);
                    extents.push((bound, Place { slot, checksum }));
                    slots.push(slot);
                    next_extents = Bound::Excluded(bound);
                }
                while slots.len() < batch
                    && let Some(index) = next_bits.and_then(|from| state.metadata.bits.next_dirty(from))
                {
                    next_bits = Some(index + 1);
                    let Some(body) = state.bits_page(index) else {
                        replaced.extend(state.metadata.bits.written(index, None));
                        continue;
                    };
                    let slot = state.slots.allocate().ok_or(no_room(slot_blocks, regions.pages.count))?;
                    let start = self.scratch.len();
                    self.scratch.resize(start + PAGE_HEADER_BYTES, 0);
                    self.scratch.extend_from_slice(&body);
                    let name = PageName { kind: PageKind::Bits, format_id: new.format_id, slot };
                    let checksum = page::seal(name, index, slot_blocks, &mut self.scratch, start);
                    bits.push((index, Place { slot, checksum }));
                    slots.push(slot);
                }
            }
            if slots.is_empty() {
                return Ok(replaced);
            }
            #[cfg(test)]
            if self.shared.is_mutated(Mutation::LostPage) && !extents.is_empty() {
                slots.pop();
            }
            let runs = slots.chunk_by(|left, right| left + 1 == *right);
            let places: Vec<(u64, u64)> =
                runs.map(|run| (regions.slot(run[0]).start, wide(run.len()) * slot_blocks)).collect();
            self.write_scratch(&places, false, |_| ()).await?;
            let mut state = self.shared.state.borrow_mut();
            for (bound, place) in extents {
                let old = state.metadata.extents.written(bound, place);
                replaced.extend(old.filter(|old| *old != place.slot));
            }
            for (index, place) in bits {
                replaced.extend(state.metadata.bits.written(index, Some(place)));
            }
        }
    }

    async fn write_pieces(&mut self, new: &Superblock) -> Result<(), DeviceError> {
        let area = new.regions.checkpoints[usize::from(new.checkpoint_area == 1)];
        let (mut cursor, mut stream) = (Cursor::Start, Vec::new());
        let (mut place, mut index) = (area.start, 0);
        loop {
            self.shared.state.borrow().metadata.encode_from(&mut cursor, &mut stream, PIECE_BODY_BYTES);
            if stream.is_empty() {
                return Ok(());
            }
            let body_bytes = stream.len().min(PIECE_BODY_BYTES);
            self.scratch.clear();
            self.scratch.resize(PIECE_HEADER_BYTES, 0);
            self.scratch.extend_from_slice(&stream[..body_bytes]);
            stream.drain(..body_bytes);
            let name =
                PieceName { version: new.version, format_id: new.format_id, sequence: new.sequence, index };
            checkpoint::seal(name, &mut self.scratch);
            let blocks = checkpoint::piece_blocks(body_bytes);
            debug_assert!(place + blocks <= area.end(), "admission keeps the state within the area");
            self.write_scratch(&[(place, blocks)], false, |_| ()).await?;
            place += blocks;
            index += 1;
        }
    }

    /// Writes both copies through, the second after the first is durable: at each moment one of them is whole.
    pub(super) async fn write_superblocks(&mut self, superblock: &Superblock) -> Result<(), DeviceError> {
        for block in superblock.regions.superblocks() {
            self.scratch.clear();
            self.scratch.extend_from_slice(&superblock.to_bytes());
            self.scratch.resize(narrow(BLOCK_BYTES), 0);
            debug_assert_eq!(wide(self.scratch.len()), BLOCK_BYTES);
            #[cfg(test)]
            let is_through = !self.shared.is_mutated(Mutation::SkipFlush);
            #[cfg(not(test))]
            let is_through = true;
            self.write_scratch(&[(block, 1)], is_through, |_| ()).await?;
        }
        Ok(())
    }
}

fn no_room(needed_blocks: u64, total_blocks: u64) -> StobError {
    StobError::NoSpace { space: Space::Metadata, needed_blocks, free_blocks: 0, total_blocks }
}

/// Where a device of version 2 will have its regions. Error: [`StobError::NoSpace`].
pub(super) fn upgraded_regions(old: &Superblock) -> Result<crate::format::regions::Regions, StobError> {
    let used_area = usize::from(old.checkpoint_area == 1);
    let needed = 16 * crate::limits::SLOT_BLOCKS;
    old.regions.upgraded(used_area).ok_or(no_room(needed, old.regions.checkpoints[0].count))
}
