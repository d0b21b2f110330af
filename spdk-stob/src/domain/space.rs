//! Who owns each block of the data area at this moment: the metadata, nobody, a write in flight, or a reader that still
//! looks at blocks which were freed meanwhile.
//!
//! **Invariant**: used + free + reserved + limbo = all blocks of the data area, and no block is in two of them. Of the free ones some are
//! kept for holes (`allocate`): only writes into those holes may have them.

use std::collections::{BTreeMap, VecDeque};

use base::BlockExtent;
use base::units::wide;

use crate::allocator::FreeSpace;
use crate::error::{Damage, Space, StobError};
use crate::extents::ExtentKey;
use crate::format::change::Change;
use crate::format::regions::Regions;
use crate::metadata::Metadata;
use crate::shared_blocks::count_owners;
use crate::slots::Slots;

/// Metadata and space, changed together.
pub(super) struct State {
    pub(super) metadata: Metadata,
    pub(super) free: FreeSpace,
    /// Slots of pages. Those of pages that a checkpoint replaced are free after it.
    pub(super) slots: Slots,
    /// Looks at pages that are under way, by the time they began at.
    looks: BTreeMap<u64, u32>,
    /// Blocks given to writes whose transaction is not durable yet: first block to blocks.
    reserved: BTreeMap<u64, u64>,
    pub(super) reserved_blocks: u64,
    /// True once a block was freed that nobody owned: the device's metadata contradicts itself.
    pub(super) is_contradicted: bool,
    /// Free blocks that a group on its way to the log is going to keep for holes.
    pub(super) promised_blocks: u64,
    /// Freed, but readers of that time may still be reading them. Oldest first.
    limbo: VecDeque<(u64, BlockExtent)>,
    limbo_blocks: u64,
    /// Readers by the time they started at.
    readers: BTreeMap<u64, u32>,
    time: u64,
    data_blocks: u64,
    /// A bug on purpose: freed blocks are free whoever reads them.
    #[cfg(test)]
    pub(super) skip_limbo: bool,
}

impl State {
    /// Error: [`Damage::Owners`] if the sums of blocks contradict each other.
    pub(super) fn new(
        metadata: Metadata,
        free: FreeSpace,
        slots: Slots,
        regions: &Regions,
    ) -> Result<State, StobError> {
        let used = regions.data.count - free.free_blocks();
        if used != metadata.used_blocks() || metadata.kept_blocks() > free.free_blocks() {
            return Err(StobError::Damaged { what: Damage::Owners { extent: regions.data } });
        }
        Ok(State {
            metadata,
            free,
            slots,
            looks: BTreeMap::new(),
            reserved: BTreeMap::new(),
            is_contradicted: false,
            reserved_blocks: 0,
            promised_blocks: 0,
            limbo: VecDeque::new(),
            limbo_blocks: 0,
            readers: BTreeMap::new(),
            time: 0,
            data_blocks: regions.data.count,
            #[cfg(test)]
            skip_limbo: false,
        })
    }

    /// Blocks that a write may have which has no space kept for it.
    pub(super) fn available_blocks(&self) -> u64 {
        self.free.free_blocks().saturating_sub(self.metadata.kept_blocks() + self.promised_blocks)
    }

    /// Takes `blocks` free ones for a write, of which `kept_blocks` are kept for it.
    pub(super) fn reserve(&mut self, blocks: u64, kept_blocks: u64, lane: u64) -> Option<Vec<BlockExtent>> {
        if blocks > self.available_blocks() + kept_blocks {
            return None;
        }
        let extents = self.free.allocate(blocks, lane)?;
        self.reserved_blocks += blocks;
        self.reserved.extend(extents.iter().map(|extent| (extent.start, extent.count)));
        Some(extents)
    }

    pub(super) fn no_space(&self, needed_blocks: u64) -> StobError {
        StobError::NoSpace {
            space: Space::Data,
            needed_blocks,
            free_blocks: self.available_blocks(),
            total_blocks: self.data_blocks,
        }
    }

    /// Ends a reservation whose blocks nobody will own.
    pub(super) fn unreserve(&mut self, extents: &[BlockExtent]) {
        for extent in extents {
            self.reserved_blocks -= extent.count;
            self.reserved.remove(&extent.start);
            let was_owned = self.free.release(*extent);
            debug_assert!(was_owned, "{extent} was reserved and free");
        }
    }

    /// Ends a reservation whose blocks the metadata owns now.
    pub(super) fn settle(&mut self, extents: &[BlockExtent]) {
        for extent in extents {
            self.reserved_blocks -= extent.count;
            self.reserved.remove(&extent.start);
        }
    }

    /// Takes back blocks that the metadata does not own any more.
    pub(super) fn free_later(&mut self, freed: Vec<BlockExtent>) {
        for extent in freed {
            self.limbo_blocks += extent.count;
            self.limbo.push_back((self.time, extent));
        }
        self.time += 1;
        self.leave_limbo();
    }

    pub(super) fn limbo_blocks(&self) -> u64 {
        self.limbo_blocks
    }

    pub(super) fn limbo_extents(&self) -> impl Iterator<Item = BlockExtent> + '_ {
        self.limbo.iter().map(|(_, extent)| *extent)
    }

    pub(super) fn reader_starts(&mut self) -> u64 {
        *self.readers.entry(self.time).or_default() += 1;
        self.time
    }

    /// True if blocks became free.
    pub(super) fn reader_ends(&mut self, time: u64) -> bool {
        if let Some(count) = self.readers.get_mut(&time) {
            *count -= 1;
            if *count == 0 {
                self.readers.remove(&time);
            }
        }
        self.leave_limbo()
    }

    /// A look at pages begins: what it touches from now on stays in memory until it ends.
    pub(super) fn look_starts(&mut self) -> u64 {
        let time = self.metadata.extents.tick();
        *self.looks.entry(time).or_default() += 1;
        time
    }

    pub(super) fn look_ends(&mut self, time: u64) {
        if let Some(count) = self.looks.get_mut(&time) {
            *count -= 1;
            if *count == 0 {
                self.looks.remove(&time);
            }
        }
    }

    /// Drops pages from memory that nobody looks at, if all take more than `limit_bytes`.
    pub(super) fn evict(&mut self, limit_bytes: u64) {
        let oldest = self.looks.first_key_value().map_or(u64::MAX, |(time, _)| *time);
        self.metadata.extents.evict(limit_bytes, oldest);
    }

    /// Free slots that pages of extents may have: not those that bits need at a checkpoint.
    pub(super) fn free_slots(&self) -> u64 {
        let bits = &self.metadata.bits;
        let for_bits = wide(2 * bits.len() - bits.places_from(0).count());
        self.slots.free().saturating_sub(for_bits)
    }

    /// The bits of a page of free space, for those who come after a power cut: what nobody owns is free, reserved or not. `None`: all is.
    pub(super) fn bits_page(&self, index: usize) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut is_all_free = true;
        for group in self.metadata.bits.groups(index) {
            let from = bytes.len();
            self.free.group_bytes(group, &mut bytes);
            let extent = self.free.group_extent(group);
            // A reservation that began before the group is at most a write's.
            let first =
                self.reserved.range(..extent.start).next_back().map_or(extent.start, |(start, _)| *start);
            let reserved = self.reserved.range(first..extent.end());
            let reserved = reserved.map(|(&start, &count)| BlockExtent { start, count });
            for free in reserved.chain(self.limbo_extents()).filter_map(|free| free.intersection(&extent)) {
                self.free.add_free(group, free, &mut bytes[from..]);
            }
            let free: u64 = bytes[from..].iter().map(|byte| u64::from(byte.count_ones())).sum();
            is_all_free &= free == extent.count;
        }
        (!is_all_free).then_some(bytes)
    }

    fn leave_limbo(&mut self) -> bool {
        let oldest = self.readers.first_key_value().map_or(u64::MAX, |(time, _)| *time);
        #[cfg(test)]
        let oldest = if self.skip_limbo { u64::MAX } else { oldest };
        let before = self.limbo_blocks;
        while let Some((time, extent)) = self.limbo.front().copied()
            && time < oldest
        {
            self.limbo.pop_front();
            self.limbo_blocks -= extent.count;
            self.is_contradicted |= !self.free.release(extent);
        }
        self.limbo_blocks < before
    }

    /// Checks the invariant, block by block. For tests and `check`; walks everything that is in memory, and compares sums only if all is.
    pub(super) fn verify(&self, regions: &Regions) -> Result<(), String> {
        if !self.free.is_consistent() {
            return Err("the indices of the free space disagree".to_owned());
        }
        if self.is_contradicted {
            return Err("a block was freed that nobody owned".to_owned());
        }
        self.metadata.verify()?;
        let extents = self.metadata.extents_from(ExtentKey::default());
        let counted = count_owners(extents.map(|(_, mapped)| mapped.device_extent()));
        let is_whole = self.metadata.extents.is_all_in_memory();
        if is_whole && counted.shared != *self.metadata.shared() {
            return Err(format!(
                "shared blocks are {:?}, their owners make {:?}",
                self.metadata.shared(),
                counted.shared
            ));
        }
        let mut owned: Vec<(BlockExtent, &str)> =
            counted.used.iter().map(|extent| (*extent, "used")).collect();
        owned.extend(self.free.extents().map(|extent| (extent, "free")));
        owned.extend(self.limbo_extents().map(|extent| (extent, "limbo")));
        owned.extend(self.reserved.iter().map(|(&start, &count)| (BlockExtent { start, count }, "reserved")));
        owned.sort_by_key(|(extent, _)| extent.start);
        for pair in owned.windows(2) {
            if pair[0].0.end() > pair[1].0.start {
                return Err(format!(
                    "{} ({}) and {} ({}) overlap",
                    pair[0].0, pair[0].1, pair[1].0, pair[1].1
                ));
            }
        }
        if let Some((extent, owner)) =
            owned.iter().find(|(extent, _)| regions.data.intersection(extent) != Some(*extent))
        {
            return Err(format!("{extent} ({owner}) is outside the data area"));
        }
        let used = self.metadata.used_blocks();
        let sum = used + self.free.free_blocks() + self.reserved_blocks + self.limbo_blocks;
        if (is_whole && counted.used_blocks != used)
            || counted.used_blocks > used
            || sum != regions.data.count
        {
            return Err(format!(
                "{} used (counted {}) + {} free + {} reserved + {} limbo are not {}",
                self.metadata.used_blocks(),
                counted.used_blocks,
                self.free.free_blocks(),
                self.reserved_blocks,
                self.limbo_blocks,
                regions.data.count
            ));
        }
        Ok(())
    }
}

/// The free space of a device whose extents are all in memory: what none of them owns. Error: [`Damage::Owners`] if a block is owned twice
/// without being shared, or lies outside of the data area.
pub(super) fn free_of(metadata: &Metadata, regions: &Regions) -> Result<FreeSpace, StobError> {
    let mut free = FreeSpace::new(regions.data);
    let damaged = |extent| StobError::Damaged { what: Damage::Owners { extent } };
    for (extent, _) in metadata.shared().extents() {
        if !free.take(extent) {
            return Err(damaged(extent));
        }
    }
    for (_, mapped) in metadata.extents_from(ExtentKey::default()) {
        if metadata.shared().is_empty() {
            if !free.take(mapped.device_extent()) {
                return Err(damaged(mapped.device_extent()));
            }
            continue;
        }
        for (part, owners) in metadata.shared().parts(mapped.device_extent()) {
            if owners == 1 && !free.take(part) {
                return Err(damaged(part));
            }
        }
    }
    Ok(free)
}

/// Applies a change of the log to a state that nobody uses yet. Error: [`Damage::Owners`] if it maps a block that has an owner.
pub(super) fn replay_change(
    metadata: &mut Metadata,
    free: &mut FreeSpace,
    change: Change,
) -> Result<(), StobError> {
    let damaged = |extent| StobError::Damaged { what: Damage::Owners { extent } };
    if let Change::Map { device_start, checksums, .. } = &change {
        let extent = BlockExtent { start: *device_start, count: wide(checksums.len()) };
        if !free.take(extent) {
            return Err(damaged(extent));
        }
    }
    let mut freed = Vec::new();
    metadata.apply(change, &mut freed);
    match freed.into_iter().find(|extent| !free.release(*extent)) {
        Some(extent) => Err(damaged(extent)),
        None => Ok(()),
    }
}
