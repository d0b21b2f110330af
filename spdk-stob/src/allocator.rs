//! The free space of a device: which blocks of the data area nobody owns.
//!
//! Best fit: the smallest free extent that holds a request whole, so that objects stay contiguous; several of the
//! largest when none does. Same history, same answers. **Invariant**: both indices hold the same extents, which are
//! disjoint, not adjacent, and sum up to [`FreeSpace::free_blocks`].

use std::collections::{BTreeMap, BTreeSet};

use base::BlockExtent;

/// Free extents, by place and by size.
#[derive(Debug, Default)]
pub struct FreeSpace {
    by_start: BTreeMap<u64, u64>,
    by_count: BTreeSet<(u64, u64)>,
    free_blocks: u64,
}

impl FreeSpace {
    /// All of `area` is free.
    #[must_use]
    pub fn new(area: BlockExtent) -> FreeSpace {
        let mut space = FreeSpace::default();
        if !area.is_empty() {
            space.insert(area);
        }
        space
    }

    /// Blocks that nobody owns.
    #[must_use]
    pub fn free_blocks(&self) -> u64 {
        self.free_blocks
    }

    /// Free extents in order of place.
    pub fn extents(&self) -> impl Iterator<Item = BlockExtent> + '_ {
        self.by_start.iter().map(|(&start, &count)| BlockExtent { start, count })
    }

    /// Takes `count` blocks: one extent if any holds them, else several, largest first. `None`, and nothing taken, if
    /// fewer are free.
    pub fn allocate(&mut self, count: u64) -> Option<Vec<BlockExtent>> {
        if count == 0 {
            return Some(Vec::new());
        }
        if count > self.free_blocks {
            return None;
        }
        let mut taken = Vec::with_capacity(1);
        let mut missing = count;
        while missing > 0 {
            let fitting = self.by_count.range((missing, 0)..).next().or_else(|| self.by_count.last());
            let &(found, start) = fitting?; // free_blocks >= missing, so one is there
            let take = BlockExtent { start, count: found.min(missing) };
            self.remove(BlockExtent { start, count: found });
            if found > take.count {
                self.insert(BlockExtent { start: take.end(), count: found - take.count });
            }
            missing -= take.count;
            taken.push(take);
        }
        Some(taken)
    }

    /// Takes exactly `extent`. False, and nothing taken, if any block of it is not free.
    pub fn take(&mut self, extent: BlockExtent) -> bool {
        let Some((&start, &count)) = self.by_start.range(..=extent.start).next_back() else { return false };
        let whole = BlockExtent { start, count };
        if whole.intersection(&extent) != Some(extent) {
            return false;
        }
        self.remove(whole);
        if start < extent.start {
            self.insert(BlockExtent { start, count: extent.start - start });
        }
        if extent.end() < whole.end() {
            self.insert(BlockExtent { start: extent.end(), count: whole.end() - extent.end() });
        }
        true
    }

    /// Gives `extent` back. False, and nothing changed, if any block of it is free already.
    #[must_use]
    pub fn release(&mut self, extent: BlockExtent) -> bool {
        if extent.is_empty() {
            return true;
        }
        let before = self
            .by_start
            .range(..=extent.start)
            .next_back()
            .map(|(&start, &count)| BlockExtent { start, count });
        let after =
            self.by_start.range(extent.start..).next().map(|(&start, &count)| BlockExtent { start, count });
        let clash =
            |other: &Option<BlockExtent>| other.is_some_and(|other| other.intersection(&extent).is_some());
        if clash(&before) || clash(&after) {
            return false;
        }
        let mut whole = extent;
        if let Some(before) = before.filter(|before| before.end() == extent.start) {
            self.remove(before);
            whole = BlockExtent { start: before.start, count: before.count + whole.count };
        }
        if let Some(after) = after.filter(|after| after.start == extent.end()) {
            self.remove(after);
            whole.count += after.count;
        }
        self.insert(whole);
        true
    }

    /// True if the invariant of the module holds.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        let mut last_end = None;
        let mut sum = 0;
        for extent in self.extents() {
            if last_end.is_some_and(|end| extent.start <= end)
                || !self.by_count.contains(&(extent.count, extent.start))
            {
                return false;
            }
            last_end = Some(extent.end());
            sum += extent.count;
        }
        sum == self.free_blocks && self.by_count.len() == self.by_start.len()
    }

    fn insert(&mut self, extent: BlockExtent) {
        self.by_start.insert(extent.start, extent.count);
        self.by_count.insert((extent.count, extent.start));
        self.free_blocks += extent.count;
    }

    fn remove(&mut self, extent: BlockExtent) {
        self.by_start.remove(&extent.start);
        self.by_count.remove(&(extent.count, extent.start));
        self.free_blocks -= extent.count;
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // the numbers of tests are small
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn extent(start: u64, count: u64) -> BlockExtent {
        BlockExtent { start, count }
    }

    #[test]
    fn one_extent_is_preferred_and_the_smallest_that_fits() {
        let mut space = FreeSpace::new(extent(0, 100));
        assert_eq!(space.allocate(10), Some(vec![extent(0, 10)]));
        assert_eq!(space.allocate(10), Some(vec![extent(10, 10)]));
        assert!(space.release(extent(0, 10)));
        assert_eq!(
            space.allocate(4),
            Some(vec![extent(0, 4)]),
            "the hole of 10 fits better than the tail of 80"
        );
        assert_eq!(space.allocate(85), Some(vec![extent(20, 80), extent(4, 5)]));
        assert_eq!(space.allocate(2), None);
        assert_eq!(space.free_blocks(), 1);
        assert!(!space.release(extent(9, 2)), "block 9 is free already");
        assert!(space.is_consistent());
    }

    proptest! {
        #[test]
        fn blocks_are_never_owned_twice(steps in prop::collection::vec((0u8..3, 0u64..64, 1u64..20), 1..200)) {
            let mut space = FreeSpace::new(extent(0, 64));
            let mut free = [true; 64];
            let mut owned: Vec<BlockExtent> = Vec::new();
            for (step, start, count) in steps {
                match step {
                    0 => match space.allocate(count) {
                        Some(taken) => {
                            prop_assert_eq!(taken.iter().map(|extent| extent.count).sum::<u64>(), count);
                            for taken in taken {
                                for block in taken.start..taken.end() {
                                    prop_assert!(std::mem::replace(&mut free[block as usize], false));
                                }
                                owned.push(taken);
                            }
                        }
                        None => prop_assert!(free.iter().filter(|free| **free).count() < count as usize),
                    },
                    1 if !owned.is_empty() => {
                        let given = owned.swap_remove(start as usize % owned.len());
                        prop_assert!(space.release(given));
                        free[given.start as usize..given.end() as usize].fill(true);
                    }
                    _ => {
                        let wanted = extent(start, count.min(64 - start));
                        let all_free = free[wanted.start as usize..wanted.end() as usize].iter().all(|free| *free);
                        prop_assert_eq!(space.take(wanted), all_free);
                        if all_free {
                            free[wanted.start as usize..wanted.end() as usize].fill(false);
                            owned.push(wanted);
                        }
                    }
                }
                prop_assert!(space.is_consistent());
                prop_assert_eq!(space.free_blocks(), free.iter().filter(|free| **free).count() as u64);
            }
        }
    }
}
