//! Blocks of the device that several extents own: snapshots share extents, and each block knows how many owners it has.
//!
//! Only blocks with two or more owners are kept here: everything else that is mapped has one. **Invariant**: extents are disjoint,
//! have at least two owners, and neighbours with the same count are one extent. Memory: about 40 bytes an extent.

use std::collections::BTreeMap;

use base::BlockExtent;

/// Owners of shared blocks, by place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SharedBlocks {
    /// First block to (blocks, owners).
    by_start: BTreeMap<u64, (u64, u32)>,
}

impl SharedBlocks {
    /// Extents with their owners, in order of place.
    pub fn extents(&self) -> impl Iterator<Item = (BlockExtent, u32)> + '_ {
        self.extents_from(0)
    }

    /// Extents that start at `from` or later.
    pub fn extents_from(&self, from: u64) -> impl Iterator<Item = (BlockExtent, u32)> + '_ {
        self.by_start.range(from..).map(|(&start, &(count, owners))| (BlockExtent { start, count }, owners))
    }

    /// Extents.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_start.len()
    }

    /// True if no block is shared.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_start.is_empty()
    }

    /// Owners beyond the first, summed over all blocks. `None`: more than 2^64-1, which no device has.
    #[must_use]
    pub fn extra_owners(&self) -> Option<u64> {
        self.by_start.values().try_fold(0u64, |sum, &(count, owners)| {
            sum.checked_add(count.checked_mul(u64::from(owners).saturating_sub(1))?)
        })
    }

    /// The parts of `extent` in order, each with its owners (1 where nothing is shared).
    #[must_use]
    pub fn parts(&self, extent: BlockExtent) -> Vec<(BlockExtent, u32)> {
        let mut parts = Vec::with_capacity(1);
        if self.by_start.is_empty() {
            parts.push((extent, 1));
            return parts;
        }
        let first =
            self.by_start.range(..=extent.start).next_back().map_or(extent.start, |(&start, _)| start);
        let mut next = extent.start;
        for (&start, &(count, owners)) in self.by_start.range(first..extent.end().max(first)) {
            let Some(common) = BlockExtent { start, count }.intersection(&extent) else { continue };
            if common.start > next {
                parts.push((BlockExtent { start: next, count: common.start - next }, 1));
            }
            parts.push((common, owners));
            next = common.end();
        }
        if next < extent.end() {
            parts.push((BlockExtent { start: next, count: extent.end() - next }, 1));
        }
        parts
    }

    /// One more owner of each block of `extent`, which is owned already.
    pub fn add_owner(&mut self, extent: BlockExtent) {
        for (part, owners) in self.parts(extent) {
            self.set(part, owners.saturating_add(1));
        }
    }

    /// One owner less of each block of `extent`. Blocks without any owner now go to `freed`.
    pub fn remove_owner(&mut self, extent: BlockExtent, freed: &mut Vec<BlockExtent>) {
        if extent.is_empty() {
            return;
        }
        for (part, owners) in self.parts(extent) {
            if owners == 1 {
                freed.push(part);
            } else {
                self.set(part, owners - 1);
            }
        }
    }

    /// Sets the owners of `extent`; 0 and 1 mean that it is not shared.
    pub fn set(&mut self, extent: BlockExtent, owners: u32) {
        if extent.is_empty() {
            return;
        }
        self.cut(extent.start);
        self.cut(extent.end());
        let inside: Vec<u64> =
            self.by_start.range(extent.start..extent.end()).map(|(&start, _)| start).collect();
        for start in inside {
            self.by_start.remove(&start);
        }
        if owners < 2 {
            return;
        }
        let mut whole = extent;
        if let Some((&start, &(count, found))) = self.by_start.range(..extent.start).next_back()
            && found == owners
            && start + count == extent.start
        {
            self.by_start.remove(&start);
            whole = BlockExtent { start, count: count + whole.count };
        }
        if let Some(&(count, found)) = self.by_start.get(&extent.end())
            && found == owners
        {
            self.by_start.remove(&extent.end());
            whole.count += count;
        }
        self.by_start.insert(whole.start, (whole.count, owners));
    }

    /// Makes `at` a boundary.
    fn cut(&mut self, at: u64) {
        let Some((&start, &(count, owners))) = self.by_start.range(..at).next_back() else { return };
        if at < start + count {
            self.by_start.insert(start, (at - start, owners));
            self.by_start.insert(at, (start + count - at, owners));
        }
    }
}

/// What the owners of all blocks come to, from the list of all extents that own some.
#[derive(Debug, Default)]
pub struct OwnerCount {
    /// Blocks with at least one owner.
    pub used_blocks: u64,
    /// Blocks with two or more.
    pub shared: SharedBlocks,
    /// Runs with an owner, in order, as large as they are contiguous.
    pub used: Vec<BlockExtent>,
}

/// Counts owners by a sweep: sorts once, and takes 16 bytes for each end of an extent.
#[must_use]
pub fn count_owners(extents: impl Iterator<Item = BlockExtent>) -> OwnerCount {
    let mut ends: Vec<(u64, i32)> = Vec::new();
    for extent in extents.filter(|extent| !extent.is_empty()) {
        ends.push((extent.start, 1));
        ends.push((extent.end(), -1));
    }
    ends.sort_unstable();
    let mut counted = OwnerCount::default();
    let (mut owners, mut from) = (0i64, 0);
    for (at, change) in ends {
        if owners > 0 && at > from {
            let run = BlockExtent { start: from, count: at - from };
            counted.used_blocks += run.count;
            match counted.used.last_mut() {
                Some(last) if last.end() == run.start => last.count += run.count,
                _ => counted.used.push(run),
            }
            counted.shared.set(run, u32::try_from(owners).unwrap_or(u32::MAX));
        }
        from = at;
        owners += i64::from(change);
    }
    counted
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // the numbers of tests are small
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The model counts each block alone.
        #[test]
        fn owners_agree_with_a_count_per_block(steps in prop::collection::vec((any::<bool>(), 0u64..40, 1u64..12), 1..80)) {
            let mut shared = SharedBlocks::default();
            let mut model = [0u32; 64];
            let mut held: Vec<BlockExtent> = Vec::new();
            for (is_add, start, count) in steps {
                if is_add || held.is_empty() {
                    let extent = BlockExtent { start, count };
                    // What nobody owns yet is mapped; the rest gets one owner more.
                    for block in extent.start..extent.end() {
                        if model[block as usize] > 0 {
                            shared.add_owner(BlockExtent { start: block, count: 1 });
                        }
                        model[block as usize] += 1;
                    }
                    held.push(extent);
                } else {
                    let extent = held.swap_remove(start as usize % held.len());
                    let mut freed = Vec::new();
                    shared.remove_owner(extent, &mut freed);
                    let mut expected = Vec::new();
                    for block in extent.start..extent.end() {
                        model[block as usize] -= 1;
                        if model[block as usize] == 0 {
                            expected.push(block);
                        }
                    }
                    let freed: Vec<u64> = freed.iter().flat_map(|extent| extent.start..extent.end()).collect();
                    prop_assert_eq!(freed, expected);
                }
                for (block, owners) in (0..).zip(model) {
                    let found = shared.parts(BlockExtent { start: block, count: 1 });
                    prop_assert_eq!(found, vec![(BlockExtent { start: block, count: 1 }, owners.max(1))]);
                }
                let counted = count_owners(held.iter().copied());
                prop_assert_eq!(&counted.shared, &shared, "runs merge in one way only");
                prop_assert_eq!(counted.used_blocks, model.iter().filter(|owners| **owners > 0).count() as u64);
                let extra: u64 = model.iter().map(|owners| u64::from(owners.saturating_sub(1))).sum();
                prop_assert_eq!(shared.extra_owners(), Some(extra));
            }
        }
    }
}
