//! Where things are on a device: sizes by arithmetic from the device's size. docs/disk.md#regions.

use base::BlockExtent;
use base::units::BLOCK_BYTES;

use crate::error::StobError;
use crate::limits::{
    CHECKPOINT_BYTES_MIN, CHECKPOINT_PART, DEVICE_BLOCKS_MIN, LEAD_BLOCKS, LOG_BYTES_MAX, LOG_BYTES_MIN,
    LOG_PART, SUPERBLOCK_COPIES,
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
    /// What stobs are made of.
    pub data: BlockExtent,
}

impl Regions {
    /// The regions of a device of `size_blocks`. Error: [`StobError::TooSmall`].
    pub fn for_device(size_blocks: u64) -> Result<Regions, StobError> {
        if size_blocks < DEVICE_BLOCKS_MIN {
            return Err(StobError::TooSmall { needed_blocks: DEVICE_BLOCKS_MIN, found_blocks: size_blocks });
        }
        let log = (size_blocks / LOG_PART).clamp(LOG_BYTES_MIN / BLOCK_BYTES, LOG_BYTES_MAX / BLOCK_BYTES);
        let checkpoint = (size_blocks / CHECKPOINT_PART).max(CHECKPOINT_BYTES_MIN / BLOCK_BYTES);
        Regions::with_sizes(size_blocks, LEAD_BLOCKS, log, checkpoint)
    }

    /// Regions of chosen sizes; what is left is data. Tests use small ones, so that the log wraps often.
    pub fn with_sizes(size_blocks: u64, lead: u64, log: u64, checkpoint: u64) -> Result<Regions, StobError> {
        let fixed = lead.saturating_add(log).saturating_add(checkpoint.saturating_mul(2)).saturating_add(1);
        if size_blocks <= fixed || lead == 0 || log < 4 || checkpoint == 0 {
            return Err(StobError::TooSmall {
                needed_blocks: fixed.saturating_add(1),
                found_blocks: size_blocks,
            });
        }
        let after_log = lead + log;
        let data_start = after_log + 2 * checkpoint;
        Ok(Regions {
            size_blocks,
            log: BlockExtent { start: lead, count: log },
            checkpoints: [
                BlockExtent { start: after_log, count: checkpoint },
                BlockExtent { start: after_log + checkpoint, count: checkpoint },
            ],
            data: BlockExtent { start: data_start, count: size_blocks - 1 - data_start },
        })
    }

    /// These regions, if they are what [`Regions::with_sizes`] could have made.
    #[must_use]
    pub fn checked(self) -> Option<Regions> {
        let made =
            Regions::with_sizes(self.size_blocks, self.log.start, self.log.count, self.checkpoints[0].count);
        made.ok().filter(|made| *made == self)
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
        let mut odd = Regions::for_device(GIB / BLOCK_BYTES).unwrap();
        odd.data.start -= 1;
        assert_eq!(odd.checked(), None);
    }
}
