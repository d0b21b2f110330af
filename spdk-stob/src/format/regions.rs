//! Where things are on a device: sizes by arithmetic from the device's size. docs/disk.md#regions.

use base::BlockExtent;
use base::units::BLOCK_BYTES;

use crate::error::StobError;
use crate::limits::{
    CHECKPOINT_BYTES_MIN, CHECKPOINT_PART, DEVICE_BLOCKS_MIN, LEAD_BLOCKS, LOG_BYTES_MAX, LOG_BYTES_MIN,
    LOG_PART, PAGES_BYTES_MIN, PAGES_PART, SLOT_BLOCKS, SLOT_BLOCKS_MAX, SUPERBLOCK_COPIES,
};

/// The regions of a device, in blocks. Disjoint and inside the device by construction: see [`Regions::checked`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Regions {
    /// Blocks of the device. The superblock copies are in block 0 and in the last one.
    pub size_blocks: u64,
    /// The log ring.
    pub log: BlockExtent,
    /// The two checkpoint areas, of equal size.
    pub checkpoints: [BlockExtent; 2],
    /// The slots of pages; empty in version 2.
    pub pages: BlockExtent,
    /// Blocks of a slot; 0 in version 2.
    pub slot_blocks: u64,
    /// What stobs are made of.
    pub data: BlockExtent,
}

/// Sizes of regions, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Before the log.
    pub lead: u64,
    /// Of the log.
    pub log: u64,
    /// Of each checkpoint area.
    pub checkpoint: u64,
    /// Of all slots together.
    pub pages: u64,
    /// Of a slot.
    pub slot: u64,
}

impl Regions {
    /// The regions of a device of `size_blocks`. Error: [`StobError::TooSmall`].
    pub fn for_device(size_blocks: u64) -> Result<Regions, StobError> {
        if size_blocks < DEVICE_BLOCKS_MIN {
            return Err(StobError::TooSmall { needed_blocks: DEVICE_BLOCKS_MIN, found_blocks: size_blocks });
        }
        let pages = (size_blocks / PAGES_PART).max(PAGES_BYTES_MIN / BLOCK_BYTES);
        let sizes = Sizes {
            lead: LEAD_BLOCKS,
            log: (size_blocks / LOG_PART).clamp(LOG_BYTES_MIN / BLOCK_BYTES, LOG_BYTES_MAX / BLOCK_BYTES),
            checkpoint: (size_blocks / CHECKPOINT_PART).max(CHECKPOINT_BYTES_MIN / BLOCK_BYTES),
            pages: pages - pages % SLOT_BLOCKS,
            slot: SLOT_BLOCKS,
        };
        Regions::with_sizes(size_blocks, sizes)
    }

    /// Regions of chosen sizes; what is left is data. Tests use small ones, so that the log wraps often.
    pub fn with_sizes(size_blocks: u64, sizes: Sizes) -> Result<Regions, StobError> {
        let Sizes { lead, log, checkpoint, pages, slot } = sizes;
        let fixed = [lead, log, checkpoint, checkpoint, pages, 1];
        let fixed = fixed.into_iter().fold(0u64, u64::saturating_add);
        if size_blocks <= fixed {
            return Err(StobError::TooSmall {
                needed_blocks: fixed.saturating_add(1),
                found_blocks: size_blocks,
            });
        }
        let mut next = lead;
        let mut place = |count: u64| {
            next += count;
            BlockExtent { start: next - count, count }
        };
        let log = place(log);
        let checkpoints = [place(checkpoint), place(checkpoint)];
        let (pages, data) = (place(pages), place(size_blocks - fixed));
        Ok(Regions { size_blocks, log, checkpoints, pages, slot_blocks: slot, data })
    }

    /// The regions of a device of version 2 when it becomes one of version 3: pages and the first checkpoint area in the checkpoint area
    /// that is not in use, the second one in the other. `None`: there is no room.
    #[must_use]
    pub fn upgraded(self, used_area: usize) -> Option<Regions> {
        let (used, free) = (self.checkpoints[used_area.min(1)], self.checkpoints[1 - used_area.min(1)]);
        let checkpoint = free.count / 2;
        let pages = free.count - checkpoint;
        let regions = Regions {
            checkpoints: [
                BlockExtent { start: free.end() - checkpoint, count: checkpoint },
                BlockExtent { start: used.start, count: checkpoint },
            ],
            pages: BlockExtent { start: free.start, count: pages - pages % SLOT_BLOCKS },
            slot_blocks: SLOT_BLOCKS,
            ..self
        };
        regions.checked()
    }

    /// These regions, if they are disjoint, inside the device, and large enough to work with.
    #[must_use]
    pub fn checked(self) -> Option<Regions> {
        let mut all = vec![self.log, self.checkpoints[0], self.checkpoints[1], self.data];
        if self.slot_blocks > 0 {
            all.push(self.pages);
        } else if !self.pages.is_empty() {
            return None;
        }
        let superblocks = [
            BlockExtent { start: 0, count: 1 },
            BlockExtent { start: self.size_blocks.checked_sub(1)?, count: 1 },
        ];
        all.extend(superblocks);
        if all
            .iter()
            .any(|extent| extent.is_empty() || BlockExtent::new(extent.start, extent.count).is_none())
        {
            return None;
        }
        all.sort_unstable();
        let is_apart = all.windows(2).all(|pair| pair[0].end() <= pair[1].start);
        let is_inside = all.last()?.end() == self.size_blocks;
        let is_even = self.checkpoints[0].count == self.checkpoints[1].count;
        let has_slots = match self.slot_blocks {
            0 => true, // version 2
            slot => {
                (2..=SLOT_BLOCKS_MAX).contains(&slot)
                    && self.pages.count / slot >= 4
                    && self.pages.count.is_multiple_of(slot)
            }
        };
        (is_apart && is_inside && is_even && has_slots && self.log.count >= 4).then_some(self)
    }

    /// Slots of pages.
    #[must_use]
    pub fn slots(&self) -> u64 {
        self.pages.count.checked_div(self.slot_blocks).unwrap_or(0)
    }

    /// The blocks of a slot.
    #[must_use]
    pub fn slot(&self, slot: u64) -> BlockExtent {
        BlockExtent { start: self.pages.start + slot * self.slot_blocks, count: self.slot_blocks }
    }

    /// The blocks of the superblock copies.
    #[must_use]
    pub fn superblocks(&self) -> [u64; SUPERBLOCK_COPIES] {
        [0, self.size_blocks - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::units::{GIB, MIB};

    #[test]
    fn regions_follow_the_size_and_fill_the_device() {
        for size_bytes in [DEVICE_BLOCKS_MIN * BLOCK_BYTES, 64 * MIB, GIB, 1024 * GIB, 16 * 1024 * GIB] {
            let regions = Regions::for_device(size_bytes / BLOCK_BYTES).unwrap();
            assert_eq!(regions.checked(), Some(regions));
            assert_eq!(regions.data.end() + 1, regions.size_blocks);
            assert!(regions.log.count * BLOCK_BYTES >= LOG_BYTES_MIN);
            let overhead = regions.size_blocks - regions.data.count;
            assert!(size_bytes < GIB || overhead * 20 < regions.size_blocks, "at most a twentieth");
        }
        assert!(matches!(
            Regions::for_device(DEVICE_BLOCKS_MIN - 1),
            Err(StobError::TooSmall { needed_blocks: DEVICE_BLOCKS_MIN, .. })
        ));
        // A device of version 2 with either area in use.
        for used in [0, 1] {
            let mut old = Regions::for_device(GIB / BLOCK_BYTES).unwrap();
            old.checkpoints[1].count += old.pages.count;
            old.checkpoints = [
                BlockExtent { start: old.checkpoints[0].start, count: 4096 },
                BlockExtent { start: old.checkpoints[0].start + 4096, count: 4096 },
            ];
            (old.pages, old.slot_blocks) = (BlockExtent::default(), 0);
            let new = old.checked().and_then(|old| old.upgraded(used)).unwrap();
            let untouched = old.checkpoints[used];
            assert_eq!(new.pages.intersection(&untouched), None);
            assert_eq!(new.checkpoints[0].intersection(&untouched), None);
            assert_eq!((new.slots(), new.checkpoints[0].count), (512, 2048));
        }
        let mut odd = Regions::for_device(GIB / BLOCK_BYTES).unwrap();
        odd.data.start -= 1;
        assert_eq!(odd.checked(), None);
    }
}
