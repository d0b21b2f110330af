//! The extent map of one stob: which of its blocks are where on the device, with a checksum for each.
//!
//! **Invariant**: extents are disjoint in the stob, have 1 to [`EXTENT_BLOCKS_MAX`] blocks, and the two sums
//! ([`ExtentMap::blocks`], [`ExtentMap::encoded_bytes`]) are those of the extents. Memory: about 100 bytes an extent
//! and 4 bytes a block.

use std::collections::BTreeMap;

use base::BlockExtent;
use base::units::{narrow, wide};

use crate::format::change::map_bytes;
use crate::limits::EXTENT_BLOCKS_MAX;

/// One extent, without its place in the stob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// First block of the device.
    pub device_start: u64,
    /// CRC-32C of each block.
    pub checksums: Vec<u32>,
}

impl Mapped {
    fn blocks(&self) -> u64 {
        wide(self.checksums.len())
    }

    /// Its blocks of the device.
    #[must_use]
    pub fn device_extent(&self) -> BlockExtent {
        BlockExtent { start: self.device_start, count: self.blocks() }
    }
}

/// A part of an extent that a lookup found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'map> {
    /// First block of the stob.
    pub start: u64,
    /// First block of the device.
    pub device_start: u64,
    /// CRC-32C of each block.
    pub checksums: &'map [u32],
}

/// Extents by their first block in the stob.
#[derive(Clone, Debug, Default)]
pub struct ExtentMap {
    extents: BTreeMap<u64, Mapped>,
    blocks: u64,
    encoded_bytes: u64,
}

impl ExtentMap {
    /// Blocks that are mapped.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Bytes of this map in a checkpoint.
    #[must_use]
    pub fn encoded_bytes(&self) -> u64 {
        self.encoded_bytes
    }

    /// True if nothing is mapped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Extents from stob block `from` on (those that start there or later), in order.
    pub fn extents_from(&self, from: u64) -> impl Iterator<Item = (u64, &Mapped)> + '_ {
        self.extents.range(from..).map(|(&start, mapped)| (start, mapped))
    }

    /// The parts of extents inside `extent`, in order.
    pub fn lookup(&self, extent: BlockExtent) -> impl Iterator<Item = Found<'_>> + '_ {
        let first = self.extents.range(..=extent.start).next_back().map_or(extent.start, |(&start, _)| start);
        self.extents.range(first..extent.end().max(first)).filter_map(move |(&start, mapped)| {
            let common = BlockExtent { start, count: mapped.blocks() }.intersection(&extent)?;
            let skipped = common.start - start;
            let checksums = &mapped.checksums[narrow(skipped)..narrow(skipped + common.count)];
            Some(Found { start: common.start, device_start: mapped.device_start + skipped, checksums })
        })
    }

    /// Maps `checksums.len()` blocks from `start`; what was there before goes to `freed`.
    pub fn map(&mut self, start: u64, device_start: u64, checksums: Vec<u32>, freed: &mut Vec<BlockExtent>) {
        self.punch(BlockExtent { start, count: wide(checksums.len()) }, freed);
        let (mut start, mut mapped) = (start, Mapped { device_start, checksums });
        let before = self.extents.range(..start).next_back().filter(|(before_start, before)| {
            *before_start + before.blocks() == start
                && before.device_extent().end() == mapped.device_start
                && before.checksums.len() + mapped.checksums.len() <= EXTENT_BLOCKS_MAX
        });
        if let Some(before_start) = before.map(|(&before_start, _)| before_start)
            && let Some(mut before) = self.remove(before_start)
        {
            before.checksums.append(&mut mapped.checksums);
            (start, mapped) = (before_start, before);
        }
        self.insert(start, mapped);
    }

    /// Makes holes of `extent`; its device blocks go to `freed`.
    pub fn punch(&mut self, extent: BlockExtent, freed: &mut Vec<BlockExtent>) {
        if extent.is_empty() {
            return;
        }
        let first = self.extents.range(..=extent.start).next_back().map_or(extent.start, |(&start, _)| start);
        let touched: Vec<u64> = self.extents.range(first..extent.end()).map(|(&start, _)| start).collect();
        for start in touched {
            let Some(whole) =
                self.extents.get(&start).map(|mapped| BlockExtent { start, count: mapped.blocks() })
            else {
                continue;
            };
            let Some(common) = whole.intersection(&extent) else { continue };
            let Some(mut mapped) = self.remove(start) else { continue };
            let after = mapped.checksums.split_off(narrow(common.end() - start));
            mapped.checksums.truncate(narrow(common.start - start));
            freed.push(BlockExtent {
                start: mapped.device_start + (common.start - start),
                count: common.count,
            });
            if !after.is_empty() {
                let device_start = mapped.device_start + (common.end() - start);
                self.insert(common.end(), Mapped { device_start, checksums: after });
            }
            if !mapped.checksums.is_empty() {
                self.insert(start, mapped);
            }
        }
    }

    /// All device blocks of the stob.
    pub fn into_device_extents(self) -> impl Iterator<Item = BlockExtent> {
        self.extents.into_values().map(|mapped| mapped.device_extent())
    }

    fn insert(&mut self, start: u64, mapped: Mapped) {
        self.blocks += mapped.blocks();
        self.encoded_bytes += wide(map_bytes(mapped.checksums.len()));
        let replaced = self.extents.insert(start, mapped);
        debug_assert!(replaced.is_none(), "two extents start at one block");
    }

    fn remove(&mut self, start: u64) -> Option<Mapped> {
        let mapped = self.extents.remove(&start)?;
        self.blocks -= mapped.blocks();
        self.encoded_bytes -= wide(map_bytes(mapped.checksums.len()));
        Some(mapped)
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // the numbers of tests are small
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Each block is looked at alone: the model is a map from stob block to (device block, checksum).
        #[test]
        fn the_map_agrees_with_a_map_of_single_blocks(
            steps in prop::collection::vec((any::<bool>(), 0u64..40, 1u64..12), 1..120)
        ) {
            let mut map = ExtentMap::default();
            let mut model: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
            let mut next_device = 1000;
            for (is_map, start, count) in steps {
                let mut freed = Vec::new();
                let mut model_freed = Vec::new();
                for block in start..start + count {
                    model_freed.extend(model.remove(&block).map(|(device, _)| device));
                }
                if is_map {
                    let checksums: Vec<u32> = (0..count as u32).map(|block| block ^ next_device as u32).collect();
                    for (block, checksum) in (start..).zip(&checksums) {
                        model.insert(block, (next_device + block - start, *checksum));
                    }
                    map.map(start, next_device, checksums, &mut freed);
                    // Sometimes adjacent on the device to the extent before, so that merging is met.
                    next_device += count + (start % 2) * 7;
                } else {
                    map.punch(BlockExtent { start, count }, &mut freed);
                }
                let mut freed: Vec<u64> = freed.iter().flat_map(|extent| extent.start..extent.end()).collect();
                freed.sort_unstable();
                model_freed.sort_unstable();
                prop_assert_eq!(freed, model_freed);
                let mut seen = BTreeMap::new();
                for found in map.lookup(BlockExtent { start: 0, count: 100 }) {
                    for (index, checksum) in (0u64..).zip(found.checksums) {
                        seen.insert(found.start + index, (found.device_start + index, *checksum));
                    }
                }
                prop_assert_eq!(&seen, &model);
                prop_assert_eq!(map.blocks(), model.len() as u64);
                let bytes: usize = map.extents_from(0).map(|(_, mapped)| map_bytes(mapped.checksums.len())).sum();
                prop_assert_eq!(map.encoded_bytes(), bytes as u64);
                let inside = BlockExtent { start, count };
                let found: u64 = map.lookup(inside).map(|found| found.checksums.len() as u64).sum();
                prop_assert_eq!(found, model.range(inside.start..inside.end()).count() as u64);
            }
        }
    }

    #[test]
    fn neighbours_merge_up_to_the_limit() {
        let mut map = ExtentMap::default();
        let mut freed = Vec::new();
        for block in 0..600 {
            map.map(block, 5000 + block, vec![0], &mut freed);
        }
        let lengths: Vec<usize> = map.extents_from(0).map(|(_, mapped)| mapped.checksums.len()).collect();
        assert_eq!(lengths, [256, 256, 88]);
        assert!(freed.is_empty());
        assert_eq!(map.lookup(BlockExtent { start: u64::MAX, count: 0 }).count(), 0);
    }
}
