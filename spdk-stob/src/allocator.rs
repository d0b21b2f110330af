//! The free space of a device: which blocks of the data area nobody owns, one bit each, in groups.
//!
//! A **group** is [`GROUP_BLOCKS`] blocks with one page of bits. A request names its **lane** (a stob's, or a core's): each lane starts in
//! a group of its own, so that streams written at once stay contiguous and lanes do not meet. Contiguous space is preferred over
//! the lane's own group: a whole run in any group comes before pieces. Same history, same answers.
//!
//! Cost: 32 MiB of memory per TiB. A search reads the bits of a group only if its bound on the longest run allows success; the bound is
//! made exact by each search that fails. **Invariant**: a set bit is free; each group's count is that of its bits; its bound is
//! never below its longest run; no block before `first_free` is free.

use base::BlockExtent;
use base::units::{narrow, wide};

/// Blocks of a group: one block of 4096 bytes holds its bits.
pub const GROUP_BLOCKS: u64 = 32768;
const WORDS: usize = 512;
/// Lanes: more than a device's queue has writers that matter.
pub const LANES: u64 = 64;

#[derive(Debug)]
struct Group {
    /// A set bit is a free block.
    words: Box<[u64; WORDS]>,
    free: u32,
    longest_max: u32,
    /// No word before this one has a set bit.
    first_word: usize,
}

/// A run of set bits inside one group.
#[derive(Clone, Copy)]
struct Run {
    start: u32,
    count: u32,
}

impl Group {
    fn empty() -> Group {
        Group { words: Box::new([0; WORDS]), free: 0, longest_max: 0, first_word: 0 }
    }

    /// Runs of free blocks, in order.
    fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        let mut at = self.first_word * 64;
        std::iter::from_fn(move || {
            let start = self.next(at, true)?;
            let end = self.next(start, false).unwrap_or(WORDS * 64);
            at = end;
            // Below 32768.
            Some(Run {
                start: u32::try_from(start).unwrap_or(u32::MAX),
                count: u32::try_from(end - start).unwrap_or(0),
            })
        })
    }

    /// The first bit from `from` on that is set (or not set).
    fn next(&self, from: usize, is_set: bool) -> Option<usize> {
        let mut word = from / 64;
        let flip = |word: u64| if is_set { word } else { !word };
        let mut bits = flip(*self.words.get(word)?) & (u64::MAX << (from % 64));
        while bits == 0 {
            word += 1;
            bits = flip(*self.words.get(word)?);
        }
        Some(word * 64 + narrow(u64::from(bits.trailing_zeros())))
    }

    /// The first run of at least `count`, or else the longest there is; makes the bound exact if it fails.
    fn find(&mut self, count: u32) -> Option<Run> {
        let mut longest: Option<Run> = None;
        for run in self.runs() {
            if run.count >= count {
                return Some(Run { start: run.start, count });
            }
            if longest.is_none_or(|longest| run.count > longest.count) {
                longest = Some(run);
            }
        }
        self.longest_max = longest.map_or(0, |run| run.count);
        None
    }

    fn longest(&mut self) -> Option<Run> {
        let longest = self.runs().reduce(|best, run| if run.count > best.count { run } else { best });
        self.longest_max = longest.map_or(0, |run| run.count);
        longest
    }

    /// Calls `change` with each word of `run` and the bits of it.
    fn masks(run: Run) -> impl Iterator<Item = (usize, u64)> {
        let (start, end) =
            (narrow(u64::from(run.start)), narrow(u64::from(run.start) + u64::from(run.count)));
        (start / 64..end.div_ceil(64)).map(move |word| {
            let low = start.max(word * 64) - word * 64;
            let high = end.min(word * 64 + 64) - word * 64;
            let upper = if high == 64 { u64::MAX } else { (1 << high) - 1 };
            (word, upper & (u64::MAX << low))
        })
    }

    fn is_free(&self, run: Run) -> bool {
        Group::masks(run).all(|(word, mask)| self.words[word] & mask == mask)
    }

    fn is_owned(&self, run: Run) -> bool {
        Group::masks(run).all(|(word, mask)| self.words[word] & mask == 0)
    }

    fn take(&mut self, run: Run) {
        for (word, mask) in Group::masks(run) {
            self.words[word] &= !mask;
        }
        self.free -= run.count;
        while self.first_word < WORDS && self.words[self.first_word] == 0 {
            self.first_word += 1;
        }
    }

    fn give(&mut self, run: Run) {
        for (word, mask) in Group::masks(run) {
            self.words[word] |= mask;
        }
        self.free += run.count;
        self.first_word = self.first_word.min(narrow(u64::from(run.start)) / 64);
        // The run it became part of: walked outwards by words, so a cheap bound that is exact.
        let end = self.next(narrow(u64::from(run.start)), false).unwrap_or(WORDS * 64);
        let mut start = narrow(u64::from(run.start));
        while start > 0 {
            let word = (start - 1) / 64;
            let below = self.words[word] << (63 - (start - 1) % 64);
            let ones = narrow(u64::from(below.leading_ones()));
            start -= ones;
            if ones == 0 || !start.is_multiple_of(64) {
                break;
            }
        }
        self.longest_max = self.longest_max.max(u32::try_from(end - start).unwrap_or(u32::MAX));
    }
}

/// The free blocks of an area. See the module head.
#[derive(Debug)]
pub struct FreeSpace {
    area: BlockExtent,
    groups: Vec<Group>,
    free_blocks: u64,
}

impl FreeSpace {
    /// All of `area` is free.
    #[must_use]
    pub fn new(area: BlockExtent) -> FreeSpace {
        let mut space = FreeSpace::owned(area);
        if !area.is_empty() {
            for (group, run) in space.split(area) {
                space.groups[group].give(run);
            }
            space.free_blocks = area.count;
        }
        space
    }

    /// Nothing of `area` is free.
    #[must_use]
    pub fn owned(area: BlockExtent) -> FreeSpace {
        let groups = (0..area.count.div_ceil(GROUP_BLOCKS)).map(|_| Group::empty()).collect();
        FreeSpace { area, groups, free_blocks: 0 }
    }

    /// Blocks that nobody owns.
    #[must_use]
    pub fn free_blocks(&self) -> u64 {
        self.free_blocks
    }

    /// Groups.
    #[must_use]
    pub fn group_count(&self) -> usize {
        self.groups.len()
    }

    /// The group that a block of the area is in.
    #[must_use]
    pub fn group_of(&self, block: u64) -> usize {
        narrow(block.saturating_sub(self.area.start) / GROUP_BLOCKS)
    }

    /// The bits of a group as they stand on the device: little endian words, a set bit is free.
    pub fn group_bytes(&self, group: usize, into: &mut Vec<u8>) {
        if let Some(group) = self.groups.get(group) {
            group.words.iter().for_each(|word| into.extend_from_slice(&word.to_le_bytes()));
        }
    }

    /// Sets the bits of `extent` in the bytes of `group`: blocks that are free for those who come after a power cut.
    pub fn add_free(&self, group: usize, extent: BlockExtent, bytes: &mut [u8]) {
        for (_, run) in self.split(extent).filter(|(index, _)| *index == group) {
            for (word, mask) in Group::masks(run) {
                if let Some(bytes) = bytes.as_chunks_mut::<8>().0.get_mut(word) {
                    *bytes = (u64::from_le_bytes(*bytes) | mask).to_le_bytes();
                }
            }
        }
    }

    /// The blocks of a group.
    #[must_use]
    pub fn group_extent(&self, group: usize) -> BlockExtent {
        let start = wide(group) * GROUP_BLOCKS;
        let count = self.area.count.saturating_sub(start).min(GROUP_BLOCKS);
        BlockExtent { start: self.area.start + start, count }
    }

    /// Replaces the bits of a group. False, and nothing changed, if bits outside of the area are set or bytes are missing.
    #[must_use]
    pub fn set_group_bytes(&mut self, index: usize, bytes: &[u8]) -> bool {
        let blocks = self.area.count.saturating_sub(wide(index) * GROUP_BLOCKS).min(GROUP_BLOCKS);
        let Some(group) = self.groups.get_mut(index).filter(|_| bytes.len() == WORDS * 8) else {
            return false;
        };
        let mut new = Group::empty();
        for (word, bytes) in new.words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let beyond = Run {
            start: u32::try_from(blocks).unwrap_or(u32::MAX),
            count: u32::try_from(GROUP_BLOCKS - blocks).unwrap_or(0),
        };
        if beyond.count > 0 && !new.is_owned(beyond) {
            return false;
        }
        new.free = new.words.iter().map(|word| word.count_ones()).sum();
        new.longest_max = new.free; // a bound; the first search that fails makes it exact
        self.free_blocks = self.free_blocks - u64::from(group.free) + u64::from(new.free);
        *group = new;
        true
    }

    /// Free extents in order of place, cut at the ends of groups.
    pub fn extents(&self) -> impl Iterator<Item = BlockExtent> + '_ {
        (0..).zip(&self.groups).flat_map(|(index, group)| {
            let start: u64 = self.area.start + index * GROUP_BLOCKS;
            group.runs().map(move |run| BlockExtent {
                start: start + u64::from(run.start),
                count: u64::from(run.count),
            })
        })
    }

    /// Takes `count` blocks for `lane`: one run if any group has it, else several, largest first. `None`, and nothing taken, if
    /// fewer are free.
    pub fn allocate(&mut self, count: u64, lane: u64) -> Option<Vec<BlockExtent>> {
        if count == 0 {
            return Some(Vec::new());
        }
        if count > self.free_blocks {
            return None;
        }
        let groups = self.groups.len();
        let home = narrow((lane % LANES) * wide(groups) / LANES);
        let mut taken = Vec::with_capacity(1);
        let mut missing = count;
        while missing > 0 {
            let wanted = u32::try_from(missing.min(GROUP_BLOCKS)).unwrap_or(u32::MAX);
            let whole = (0..groups).map(|step| (home + step) % groups).find_map(|index| {
                let group = &mut self.groups[index];
                if group.longest_max < wanted {
                    return None;
                }
                group.find(wanted).map(|run| (index, run))
            });
            let (index, run) = match whole {
                Some(found) => found,
                // Bounds may be too high: look until the highest is true.
                None => loop {
                    let index = (0..groups).map(|step| (home + step) % groups).reduce(|best, index| {
                        if self.groups[index].longest_max > self.groups[best].longest_max {
                            index
                        } else {
                            best
                        }
                    })?;
                    let bound = self.groups[index].longest_max;
                    let run = self.groups[index].longest()?;
                    if run.count == bound {
                        break (index, run);
                    }
                },
            };
            self.groups[index].take(run);
            let extent = BlockExtent {
                start: self.area.start + wide(index) * GROUP_BLOCKS + u64::from(run.start),
                count: u64::from(run.count),
            };
            self.free_blocks -= extent.count;
            missing -= extent.count;
            taken.push(extent);
        }
        Some(taken)
    }

    /// Takes exactly `extent`. False, and nothing taken, if any block of it is not free.
    #[must_use]
    pub fn take(&mut self, extent: BlockExtent) -> bool {
        if extent.is_empty() {
            return true;
        }
        if !self.holds(extent) || !self.split(extent).all(|(group, run)| self.groups[group].is_free(run)) {
            return false;
        }
        for (group, run) in self.split(extent) {
            self.groups[group].take(run);
        }
        self.free_blocks -= extent.count;
        true
    }

    /// True if no block of `extent` is free; false also if it lies outside of the area.
    #[must_use]
    pub fn is_owned(&self, extent: BlockExtent) -> bool {
        self.holds(extent)
            && (extent.is_empty() || self.split(extent).all(|(group, run)| self.groups[group].is_owned(run)))
    }

    /// Gives `extent` back. False, and nothing changed, if any block of it is free already or outside of the area.
    #[must_use]
    pub fn release(&mut self, extent: BlockExtent) -> bool {
        if extent.is_empty() {
            return true;
        }
        if !self.holds(extent) || !self.split(extent).all(|(group, run)| self.groups[group].is_owned(run)) {
            return false;
        }
        for (group, run) in self.split(extent) {
            self.groups[group].give(run);
        }
        self.free_blocks += extent.count;
        true
    }

    /// True if the invariant of the module holds.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        let groups_agree = self.groups.iter().all(|group| {
            let free: u32 = group.words.iter().map(|word| word.count_ones()).sum();
            let longest = group.runs().map(|run| run.count).max().unwrap_or(0);
            let hidden = group.words[..group.first_word].iter().any(|word| *word != 0);
            free == group.free && longest <= group.longest_max && !hidden
        });
        let sum: u64 = self.groups.iter().map(|group| u64::from(group.free)).sum();
        groups_agree && sum == self.free_blocks
    }

    fn holds(&self, extent: BlockExtent) -> bool {
        self.area.intersection(&extent) == Some(extent)
    }

    /// The runs that `extent` (inside the area) has in each group.
    fn split(&self, extent: BlockExtent) -> impl Iterator<Item = (usize, Run)> + use<> {
        let start = extent.start - self.area.start;
        let end = start + extent.count;
        (start / GROUP_BLOCKS..end.div_ceil(GROUP_BLOCKS)).map(move |group| {
            let low = start.max(group * GROUP_BLOCKS) - group * GROUP_BLOCKS;
            let high = end.min((group + 1) * GROUP_BLOCKS) - group * GROUP_BLOCKS;
            let run = Run {
                start: u32::try_from(low).unwrap_or(u32::MAX),
                count: u32::try_from(high - low).unwrap_or(0),
            };
            (narrow(group), run)
        })
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
    fn one_run_is_preferred_and_pieces_come_largest_first() {
        let mut space = FreeSpace::new(extent(1000, 100));
        assert_eq!(space.allocate(10, 0), Some(vec![extent(1000, 10)]));
        assert_eq!(space.allocate(10, 5), Some(vec![extent(1010, 10)]));
        assert!(space.release(extent(1000, 10)));
        assert_eq!(space.allocate(4, 0), Some(vec![extent(1000, 4)]));
        assert_eq!(space.allocate(80, 0), Some(vec![extent(1020, 80)]));
        assert!(space.release(extent(1050, 2)));
        assert_eq!(space.allocate(7, 0), Some(vec![extent(1004, 6), extent(1050, 1)]));
        assert_eq!(space.allocate(2, 0), None);
        assert_eq!(space.free_blocks(), 1);
        assert!(!space.release(extent(1051, 2)), "block 1051 is free already");
        assert!(!space.release(extent(999, 1)) && !space.take(extent(1099, 2)), "outside of the area");
        assert!(space.is_consistent());
    }

    #[test]
    fn lanes_start_apart_and_a_long_request_spans_groups() {
        let mut space = FreeSpace::new(extent(7, 4 * GROUP_BLOCKS + 100));
        let homes: Vec<u64> = [0, 16, 32, 63].map(|lane| space.allocate(1, lane).unwrap()[0].start).to_vec();
        assert_eq!(homes, [7, 7 + GROUP_BLOCKS, 7 + 2 * GROUP_BLOCKS, 7 + 4 * GROUP_BLOCKS]);
        let long = space.allocate(2 * GROUP_BLOCKS, 0).unwrap();
        assert_eq!(long.iter().map(|extent| extent.count).sum::<u64>(), 2 * GROUP_BLOCKS);
        assert!(space.is_consistent());
        for extent in long {
            assert!(space.release(extent));
        }
        assert!(space.take(extent(8 + GROUP_BLOCKS, GROUP_BLOCKS - 1)));
        assert!(space.is_consistent());
    }

    #[test]
    fn bits_come_back_and_bits_outside_are_refused() {
        let area = extent(50, GROUP_BLOCKS + 70);
        let mut space = FreeSpace::new(area);
        space.allocate(1000, 3);
        assert!(space.take(extent(50 + GROUP_BLOCKS, 3)));
        let mut again = FreeSpace::owned(area);
        for group in 0..space.group_count() {
            let mut bytes = Vec::new();
            space.group_bytes(group, &mut bytes);
            assert!(again.set_group_bytes(group, &bytes));
        }
        assert!(again.extents().eq(space.extents()));
        assert_eq!(again.free_blocks(), space.free_blocks());
        assert!(again.is_consistent());
        assert!(!again.set_group_bytes(1, &[255; 4096]), "the second group has 70 blocks");
        assert!(!again.set_group_bytes(2, &[0; 4096]) && !again.set_group_bytes(0, &[0; 4095]));
    }

    proptest! {
        #[test]
        fn blocks_are_never_owned_twice(steps in prop::collection::vec((0u8..3, 0u64..200, 1u64..90), 1..200)) {
            let mut space = FreeSpace::new(extent(0, 200));
            let mut free = [true; 200];
            let mut owned: Vec<BlockExtent> = Vec::new();
            for (step, start, count) in steps {
                match step {
                    0 => match space.allocate(count, start) {
                        Some(taken) => {
                            prop_assert_eq!(taken.iter().map(|extent| extent.count).sum::<u64>(), count);
                            let longest = free.split(|free| !free).map(<[bool]>::len).max().unwrap_or(0);
                            prop_assert_eq!(taken.len() == 1, longest >= count as usize);
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
                        prop_assert!(!space.release(given));
                        free[given.start as usize..given.end() as usize].fill(true);
                    }
                    _ => {
                        let wanted = extent(start, count.min(200 - start));
                        let all_free = free[wanted.start as usize..wanted.end() as usize].iter().all(|free| *free);
                        prop_assert_eq!(space.take(wanted), all_free);
                        if all_free {
                            free[wanted.start as usize..wanted.end() as usize].fill(false);
                            owned.push(wanted);
                        }
                    }
                }
                prop_assert!(space.is_consistent());
                let extents: Vec<u64> = space.extents().flat_map(|extent| extent.start..extent.end()).collect();
                let expected: Vec<u64> = (0..200).filter(|block| free[*block as usize]).collect();
                prop_assert_eq!(extents, expected);
            }
        }
    }
}
