//! The extents of all stobs of a device in one order: which block of which stob is where, with a checksum for each.
//!
//! **Invariant**: extents of one stob are disjoint and have 1 to [`EXTENT_BLOCKS_MAX`] blocks, and [`Extents::encoded_bytes`] is
//! the sum of theirs. Memory: about 110 bytes an extent, and 4 bytes a block where an extent has more than four.

use std::collections::BTreeMap;

use base::BlockExtent;
use base::units::{narrow, wide};
use smallvec::SmallVec;

use crate::format::change::map_bytes;
use crate::limits::EXTENT_BLOCKS_MAX;
use crate::stob_id::StobId;

/// CRC-32C of each block of an extent. Small extents need no memory of their own.
pub type Checksums = SmallVec<[u32; 4]>;

/// The place of an extent: its stob and its first block there. Ordered so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ExtentKey {
    /// The stob.
    pub stob: StobId,
    /// First block of the stob.
    pub start: u64,
}

/// One extent, without its place in the stob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// First block of the device.
    pub device_start: u64,
    /// CRC-32C of each block.
    pub checksums: Checksums,
}

impl Mapped {
    /// Blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
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

/// Extents by place.
#[derive(Clone, Debug, Default)]
pub struct Extents {
    map: BTreeMap<ExtentKey, Mapped>,
    encoded_bytes: u64,
}

impl Extents {
    /// Bytes of these extents as map changes.
    #[must_use]
    pub fn encoded_bytes(&self) -> u64 {
        self.encoded_bytes
    }

    /// Extents.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Extents from `from` on, in order.
    pub fn range_from(&self, from: ExtentKey) -> impl Iterator<Item = (ExtentKey, &Mapped)> + '_ {
        self.map.range(from..).map(|(&key, mapped)| (key, mapped))
    }

    /// Extents of one stob that start at `from` or later, in order.
    pub fn of_stob(&self, stob: StobId, from: u64) -> impl Iterator<Item = (u64, &Mapped)> + '_ {
        self.map
            .range(ExtentKey { stob, start: from }..=ExtentKey { stob, start: u64::MAX })
            .map(|(key, mapped)| (key.start, mapped))
    }

    /// Where the extent starts that may cover the start of `extent`, or `extent.start`.
    fn first(&self, stob: StobId, start: u64) -> u64 {
        let before = ExtentKey { stob, start: 0 }..=ExtentKey { stob, start };
        self.map.range(before).next_back().map_or(start, |(key, _)| key.start)
    }

    /// The parts of extents of `stob` inside `extent`, in order.
    pub fn lookup(&self, stob: StobId, extent: BlockExtent) -> impl Iterator<Item = Found<'_>> + '_ {
        let first = self.first(stob, extent.start);
        let range = ExtentKey { stob, start: first }..ExtentKey { stob, start: extent.end().max(first) };
        self.map.range(range).filter_map(move |(&ExtentKey { start, .. }, mapped)| {
            let common = BlockExtent { start, count: mapped.blocks() }.intersection(&extent)?;
            let skipped = common.start - start;
            let checksums = &mapped.checksums[narrow(skipped)..narrow(skipped + common.count)];
            Some(Found { start: common.start, device_start: mapped.device_start + skipped, checksums })
        })
    }

    /// Maps `checksums.len()` blocks from `start`, which nothing maps now (see [`Extents::punch`]).
    pub fn map(&mut self, stob: StobId, start: u64, device_start: u64, mut checksums: Checksums) {
        let before = self.map.range_mut(ExtentKey { stob, start: 0 }..ExtentKey { stob, start }).next_back();
        if let Some((key, before)) = before
            && key.start + before.blocks() == start
            && before.device_extent().end() == device_start
            && before.checksums.len() + checksums.len() <= EXTENT_BLOCKS_MAX
        {
            self.encoded_bytes -= wide(map_bytes(before.checksums.len()));
            before.checksums.append(&mut checksums);
            self.encoded_bytes += wide(map_bytes(before.checksums.len()));
            return;
        }
        self.insert(ExtentKey { stob, start }, Mapped { device_start, checksums });
    }

    /// Makes holes of `extent`. Calls `dropped` with each run of device blocks that this extent does not own any more.
    pub fn punch(&mut self, stob: StobId, extent: BlockExtent, mut dropped: impl FnMut(BlockExtent)) {
        if extent.is_empty() {
            return;
        }
        let first = self.first(stob, extent.start);
        loop {
            let range = ExtentKey { stob, start: first }..ExtentKey { stob, start: extent.end().max(first) };
            let touched = self.map.range(range).find_map(|(key, mapped)| {
                let whole = BlockExtent { start: key.start, count: mapped.blocks() };
                Some((*key, whole.intersection(&extent)?))
            });
            let Some((key, common)) = touched else { return };
            let Some(mut mapped) = self.remove(key) else { return };
            dropped(BlockExtent {
                start: mapped.device_start + (common.start - key.start),
                count: common.count,
            });
            let after: Checksums = mapped.checksums[narrow(common.end() - key.start)..].into();
            mapped.checksums.truncate(narrow(common.start - key.start));
            if !after.is_empty() {
                let device_start = mapped.device_start + (common.end() - key.start);
                self.insert(
                    ExtentKey { stob, start: common.end() },
                    Mapped { device_start, checksums: after },
                );
            }
            if !mapped.checksums.is_empty() {
                self.insert(key, mapped);
            }
        }
    }

    /// The extents of a checkpoint, all at once: many times faster than one after the other. `None`: they are not in order, or overlap.
    #[must_use]
    pub fn from_sorted(extents: Vec<(ExtentKey, Mapped)>) -> Option<Extents> {
        let follows = |pair: &[(ExtentKey, Mapped)]| {
            let end = ExtentKey { stob: pair[0].0.stob, start: pair[0].0.start + pair[0].1.blocks() };
            pair[0].0 < pair[1].0 && end <= pair[1].0
        };
        let encoded_bytes = extents.iter().map(|(_, mapped)| wide(map_bytes(mapped.checksums.len()))).sum();
        extents.windows(2).all(follows).then(|| Extents { map: extents.into_iter().collect(), encoded_bytes })
    }

    /// Puts an extent in its place, where nothing is.
    pub fn insert(&mut self, key: ExtentKey, mapped: Mapped) {
        self.encoded_bytes += wide(map_bytes(mapped.checksums.len()));
        let replaced = self.map.insert(key, mapped);
        debug_assert!(replaced.is_none(), "two extents start at one block");
    }

    /// Takes an extent out.
    pub fn remove(&mut self, key: ExtentKey) -> Option<Mapped> {
        let mapped = self.map.remove(&key)?;
        self.encoded_bytes -= wide(map_bytes(mapped.checksums.len()));
        Some(mapped)
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // the numbers of tests are small
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STOB: StobId = StobId { fid: base::Fid { container: 1, key: 2 }, generation: 3 };

    proptest! {
        /// Each block is looked at alone: the model is a map from stob block to (device block, checksum).
        #[test]
        fn the_map_agrees_with_a_map_of_single_blocks(
            steps in prop::collection::vec((any::<bool>(), 0u64..40, 1u64..12), 1..120)
        ) {
            let mut map = Extents::default();
            // Neighbours in the order of stobs must never be touched.
            let around = [StobId { generation: 2, ..STOB }, StobId { generation: 4, ..STOB }];
            for other in around {
                map.map(other, 0, 9000, (0..100).collect());
            }
            let mut model: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
            let mut next_device = 1000;
            for (is_map, start, count) in steps {
                let mut dropped = Vec::new();
                let mut model_dropped = Vec::new();
                for block in start..start + count {
                    model_dropped.extend(model.remove(&block).map(|(device, _)| device));
                }
                map.punch(STOB, BlockExtent { start, count }, |extent| dropped.extend(extent.start..extent.end()));
                if is_map {
                    let checksums: Checksums = (0..count as u32).map(|block| block ^ next_device as u32).collect();
                    for (block, checksum) in (start..).zip(&checksums) {
                        model.insert(block, (next_device + block - start, *checksum));
                    }
                    map.map(STOB, start, next_device, checksums);
                    // Sometimes adjacent on the device to the extent before, so that merging is met.
                    next_device += count + (start % 2) * 7;
                }
                dropped.sort_unstable();
                model_dropped.sort_unstable();
                prop_assert_eq!(dropped, model_dropped);
                let mut seen = BTreeMap::new();
                for found in map.lookup(STOB, BlockExtent { start: 0, count: 100 }) {
                    for (index, checksum) in (0u64..).zip(found.checksums) {
                        seen.insert(found.start + index, (found.device_start + index, *checksum));
                    }
                }
                prop_assert_eq!(&seen, &model);
                let all = map.range_from(ExtentKey::default());
                let bytes: usize = all.map(|(_, mapped)| map_bytes(mapped.checksums.len())).sum();
                prop_assert_eq!(map.encoded_bytes(), bytes as u64);
                let inside = BlockExtent { start, count };
                let found: u64 = map.lookup(STOB, inside).map(|found| found.checksums.len() as u64).sum();
                prop_assert_eq!(found, model.range(inside.start..inside.end()).count() as u64);
                for other in around {
                    prop_assert_eq!(map.of_stob(other, 0).map(|(_, mapped)| mapped.blocks()).sum::<u64>(), 100);
                }
            }
        }
    }

    #[test]
    fn neighbours_merge_up_to_the_limit() {
        let mut map = Extents::default();
        for block in 0..600 {
            map.map(STOB, block, 5000 + block, [0].into_iter().collect());
        }
        let lengths: Vec<usize> = map.of_stob(STOB, 0).map(|(_, mapped)| mapped.checksums.len()).collect();
        assert_eq!(lengths, [256, 256, 88]);
        assert_eq!(map.lookup(STOB, BlockExtent { start: u64::MAX, count: 0 }).count(), 0);
    }
}
