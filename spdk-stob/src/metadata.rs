//! The metadata of a domain: extents of all stobs, who shares blocks, and the trees. Pure; changed only by [`Metadata::apply`]. Extents are
//! in pages, of which only some are in memory; everything else is.
//!
//! Who applies a change or looks extents up has the pages of [`Metadata::touch_for`] (or [`Metadata::touch`]) in memory before.
//! **Invariant**: what `apply` made of the durable changes, in order, is the state; nothing in here is not durable yet.
//! **Invariant**: a stob is listed exactly while it was created, or has a block written or space kept.
//! [`Metadata::checkpoint_bytes`] is exactly what [`Metadata::encode_from`] will produce, so a domain can refuse a
//! transaction whose state would not fit into a checkpoint.

use std::collections::BTreeMap;
use std::ops::Bound;

use base::units::wide;
use base::{BlockExtent, Fid};

use crate::bit_pages::BitPages;
use crate::extents::{ExtentKey, Extents, Found, Mapped, Missing, Place};
use crate::format::change::{
    ALLOCATE_BYTES, BITS_BYTES, Change, PAGE_BYTES, SHARED_BYTES, STOB_BLOCKS_BYTES, STOB_CREATE_BYTES,
    TOTALS_BYTES, encode_tree_put, tree_put_bytes,
};
use crate::format::page::{EXTENT_ROW_BYTES, STOB_ROW_BYTES};
use crate::format::regions::Regions;
use crate::limits::{CHANGE_GROWTH_BYTES, SLOTS_PER_CHANGE};
use crate::shared_blocks::SharedBlocks;
use crate::slots::Slots;
use crate::stob_id::{StobId, TreeId};
use crate::tree_key::{KeyRef, Ordered, TreeKey};

/// Both ends of an extent may be ends of shared blocks.
const SHARED_GROWTH_BYTES: u64 = 2 * SHARED_BYTES as u64;

type Tree = BTreeMap<TreeKey, Box<[u8]>>;

fn range_from<'a>(
    tree: &'a Tree,
    from: Bound<&[u8]>,
) -> std::collections::btree_map::Range<'a, TreeKey, Box<[u8]>> {
    let from = from.map(KeyRef::from);
    let from = from.as_ref().map(|key| -> &dyn Ordered { key });
    tree.range::<dyn Ordered, _>((from, Bound::Unbounded))
}

/// What is kept of a stob besides its extents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct StobInfo {
    is_created: bool,
    /// Written blocks.
    blocks: u64,
    /// Holes that space is kept for: first block to blocks. Disjoint, not adjacent.
    kept: BTreeMap<u64, u64>,
}

impl StobInfo {
    fn is_nothing(&self) -> bool {
        !self.is_created && self.blocks == 0 && self.kept.is_empty()
    }

    fn checkpoint_bytes(&self) -> u64 {
        let create = if self.is_created { STOB_CREATE_BYTES } else { 0 };
        let blocks = if self.blocks > 0 { STOB_BLOCKS_BYTES } else { 0 };
        wide(create + blocks + self.kept.len() * ALLOCATE_BYTES)
    }

    fn kept_inside(&self, extent: BlockExtent) -> impl Iterator<Item = BlockExtent> + '_ {
        let first = self.kept.range(..=extent.start).next_back().map_or(extent.start, |(&start, _)| start);
        self.kept
            .range(first..extent.end().max(first))
            .filter_map(move |(&start, &count)| BlockExtent { start, count }.intersection(&extent))
    }

    /// Nothing is kept for `extent` any more. Gives the blocks that were.
    fn unkeep(&mut self, extent: BlockExtent) -> u64 {
        let mut dropped = 0;
        loop {
            let inside = self.kept_inside(extent).next();
            let Some(common) = inside else { break };
            let Some((&start, &count)) = self.kept.range(..=common.start).next_back() else { break };
            self.kept.remove(&start);
            if start < common.start {
                self.kept.insert(start, common.start - start);
            }
            if common.end() < start + count {
                self.kept.insert(common.end(), start + count - common.end());
            }
            dropped += common.count;
        }
        dropped
    }

    /// Keeps space for `extent`, of which nothing is kept yet.
    fn keep(&mut self, extent: BlockExtent) {
        let mut whole = extent;
        if let Some((&start, &count)) = self.kept.range(..extent.start).next_back()
            && start + count == extent.start
        {
            self.kept.remove(&start);
            whole = BlockExtent { start, count: count + whole.count };
        }
        if let Some(count) = self.kept.remove(&extent.end()) {
            whole.count += count;
        }
        self.kept.insert(whole.start, whole.count);
    }
}

/// The state.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub struct Metadata {
    stobs: BTreeMap<StobId, StobInfo>,
    pub(crate) extents: Extents,
    pub(crate) bits: BitPages,
    shared: SharedBlocks,
    trees: BTreeMap<TreeId, Tree>,
    /// Blocks of the device with an owner, each counted once.
    used_blocks: u64,
    kept_blocks: u64,
    stob_bytes: u64,
    tree_bytes: u64,
}

/// Makes the state out of the changes of a checkpoint.
#[derive(Debug)]
pub struct Loader {
    metadata: Metadata,
    slots: Slots,
    slot_bytes: u64,
    is_old: bool,
}

impl Loader {
    /// For a device with these regions; `is_old`: the checkpoint is of version 2.
    #[must_use]
    pub fn new(regions: &Regions, page_bytes: u64, is_old: bool) -> Loader {
        Loader {
            metadata: Metadata::new(regions, page_bytes),
            slots: Slots::new(regions.slots()),
            slot_bytes: regions.slot_blocks * base::units::BLOCK_BYTES,
            is_old,
        }
    }

    /// Takes the next change of the checkpoint. False: it makes no sense there.
    #[must_use]
    pub fn push(&mut self, change: Change, freed: &mut Vec<BlockExtent>) -> bool {
        let metadata = &mut self.metadata;
        match change {
            Change::Map { stob, start, device_start, checksums } if self.is_old => {
                let blocks = wide(checksums.len());
                metadata.used_blocks += blocks;
                metadata.with_stob(stob, |info| info.blocks += blocks);
                let mapped = Mapped { device_start, checksums: checksums.into() };
                return metadata.extents.push(ExtentKey { stob, start }, mapped);
            }
            Change::Shared { extent, owners } if self.is_old => {
                // After the maps, each of which counted these blocks once.
                metadata.used_blocks = metadata
                    .used_blocks
                    .saturating_sub(extent.count.saturating_mul(u64::from(owners).saturating_sub(1)));
                metadata.shared.set(extent, owners);
            }
            Change::Shared { extent, owners } => metadata.shared.set(extent, owners),
            Change::Page { stob, start, slot, checksum, bytes, count } if !self.is_old => {
                let (bytes, place) = (u64::from(bytes), Place { slot, checksum });
                return bytes <= self.slot_bytes
                    && self.slots.take(slot)
                    && metadata.extents.push_place(
                        ExtentKey { stob, start },
                        place,
                        u64::from(count),
                        bytes,
                    );
            }
            Change::Bits { index, slot, checksum } if !self.is_old => {
                return self.slots.take(slot) && metadata.bits.set_place(index, Place { slot, checksum });
            }
            Change::StobBlocks { stob, blocks } if !self.is_old && blocks > 0 => {
                metadata.with_stob(stob, |info| info.blocks = blocks);
            }
            Change::Totals { used_blocks } if !self.is_old => metadata.used_blocks = used_blocks,
            // Extents are not looked at: those of version 3 are not here.
            Change::Allocate { stob, extent } => {
                if metadata.kept_inside(stob, extent).next().is_some() || extent.is_empty() {
                    return false;
                }
                metadata.kept_blocks = metadata.kept_blocks.saturating_add(extent.count);
                metadata.with_stob(stob, |info| info.keep(extent));
            }
            Change::StobCreate { .. } | Change::TreePut { .. } => metadata.apply(change, freed),
            _ => return false,
        }
        true
    }

    /// The state, and the slots that it takes.
    #[must_use]
    pub fn finish(self) -> (Metadata, Slots) {
        (self.metadata, self.slots)
    }
}

/// Where [`Metadata::encode_from`] goes on. Valid as long as nothing is applied.
#[derive(Clone, Debug, Default)]
pub enum Cursor {
    /// Nothing encoded yet.
    #[default]
    Start,
    /// Stobs up to this one are encoded, without their extents.
    Stob(StobId),
    /// Pages up to this one are encoded.
    Page(Option<ExtentKey>),
    /// Pages of bits up to this one are encoded, and before them the sum.
    Bits(usize),
    /// Shared blocks up to this one are encoded.
    Shared(u64),
    /// Keys up to this one are encoded.
    Tree(TreeId, Vec<u8>),
    /// All is encoded.
    End,
}

impl Metadata {
    /// Nothing, on a device with these regions. `page_bytes`: bytes of extents above which a page is split.
    #[must_use]
    pub fn new(regions: &Regions, page_bytes: u64) -> Metadata {
        Metadata { extents: Extents::new(page_bytes), bits: BitPages::new(regions), ..Metadata::default() }
    }

    /// Appends to `missing` the pages that `change` needs in memory.
    pub fn touch_for(&self, change: &Change, missing: &mut Vec<Missing>) {
        let whole = BlockExtent { start: 0, count: u64::MAX };
        match change {
            Change::Map { stob, start, checksums, .. } => {
                self.extents.touch(
                    *stob,
                    BlockExtent { start: *start, count: wide(checksums.len()) },
                    missing,
                );
            }
            Change::Punch { stob, extent } | Change::Allocate { stob, extent } => {
                self.extents.touch(*stob, *extent, missing);
            }
            Change::StobDelete { stob } => self.extents.touch(*stob, whole, missing),
            Change::Snapshot { from, to } => {
                self.extents.touch(*from, whole, missing);
                self.extents.touch(*to, whole, missing);
            }
            _ => {}
        }
    }

    /// Appends to `missing` the pages of `extent` that are not in memory.
    pub fn touch(&self, stob: StobId, extent: BlockExtent, missing: &mut Vec<Missing>) {
        self.extents.touch(stob, extent, missing);
    }

    /// Applies one durable change. Device blocks that nobody owns any more are appended to `freed`.
    pub fn apply(&mut self, change: Change, freed: &mut Vec<BlockExtent>) {
        let first_freed = freed.len();
        match change {
            Change::Map { stob, start, device_start, checksums } => {
                let extent = BlockExtent { start, count: wide(checksums.len()) };
                self.hole(stob, extent, freed);
                self.used_blocks += extent.count;
                self.with_stob(stob, |info| info.blocks = info.blocks.saturating_add(extent.count));
                self.bits.mark(BlockExtent { start: device_start, count: extent.count });
                self.extents.map(stob, start, device_start, checksums.into());
            }
            Change::Punch { stob, extent } => self.hole(stob, extent, freed),
            Change::StobCreate { stob } => self.with_stob(stob, |info| info.is_created = true),
            Change::StobDelete { stob } => self.delete(stob, freed),
            Change::Snapshot { from, to } => self.snapshot(from, to, freed),
            Change::Allocate { stob, extent } => {
                for hole in self.holes(stob, extent) {
                    self.kept_blocks += hole.count;
                    self.with_stob(stob, |info| info.keep(hole));
                }
            }
            // Only in checkpoints: see `Loader`.
            Change::Shared { .. }
            | Change::Page { .. }
            | Change::Bits { .. }
            | Change::StobBlocks { .. }
            | Change::Totals { .. } => {}
            Change::TreePut { tree, key, value } => {
                let key_bytes = key.len();
                self.tree_bytes += wide(tree_put_bytes(key_bytes, value.len()));
                if let Some(old) = self.trees.entry(tree).or_default().insert(key.into(), value.into()) {
                    self.tree_bytes -= wide(tree_put_bytes(key_bytes, old.len()));
                }
            }
            Change::TreeDelete { tree, key } => {
                let Some(content) = self.trees.get_mut(&tree) else { return };
                if let Some(old) = content.remove::<dyn Ordered>(&KeyRef::from(key.as_slice())) {
                    self.tree_bytes -= wide(tree_put_bytes(key.len(), old.len()));
                }
                if content.is_empty() {
                    self.trees.remove(&tree);
                }
            }
        }
        freed[first_freed..].iter().for_each(|extent| self.bits.mark(*extent));
    }

    fn with_stob(&mut self, stob: StobId, change: impl FnOnce(&mut StobInfo)) {
        let info = self.stobs.entry(stob).or_default();
        let before = info.checkpoint_bytes();
        change(info);
        self.stob_bytes = self.stob_bytes + info.checkpoint_bytes() - before;
        if info.is_nothing() {
            self.stobs.remove(&stob);
        }
    }

    /// Nothing is written in `extent` and no space is kept for it.
    fn hole(&mut self, stob: StobId, extent: BlockExtent, freed: &mut Vec<BlockExtent>) {
        let (shared, mut blocks) = (&mut self.shared, 0);
        let first_freed = freed.len();
        self.extents.punch(stob, extent, |dropped| {
            blocks += dropped.count;
            shared.remove_owner(dropped, freed);
        });
        // Saturating: a device whose counts are wrong must not end the process; opening compares the sums.
        let freed_blocks = freed[first_freed..].iter().map(|extent| extent.count).sum::<u64>();
        self.used_blocks = self.used_blocks.saturating_sub(freed_blocks);
        let mut unkept = 0;
        self.with_stob(stob, |info| {
            info.blocks = info.blocks.saturating_sub(blocks);
            unkept = info.unkeep(extent);
        });
        self.kept_blocks -= unkept;
    }

    fn delete(&mut self, stob: StobId, freed: &mut Vec<BlockExtent>) {
        self.hole(stob, BlockExtent { start: 0, count: u64::MAX }, freed);
        if self.stobs.contains_key(&stob) {
            self.with_stob(stob, |info| info.is_created = false);
        }
    }

    fn snapshot(&mut self, from: StobId, to: StobId, freed: &mut Vec<BlockExtent>) {
        if from == to {
            return;
        }
        self.delete(to, freed);
        let Some(blocks) = self.stobs.get(&from).map(|info| info.blocks) else { return };
        let copies: Vec<(u64, Mapped)> =
            self.extents.of_stob(from).map(|(start, mapped)| (start, mapped.clone())).collect();
        for (start, mapped) in copies {
            self.shared.add_owner(mapped.device_extent());
            self.extents.insert(ExtentKey { stob: to, start }, mapped);
        }
        self.with_stob(to, |info| {
            info.is_created = true;
            info.blocks = blocks;
        });
    }

    /// Parts of `extent` that are neither written nor have space kept.
    #[must_use]
    pub fn holes(&self, stob: StobId, extent: BlockExtent) -> Vec<BlockExtent> {
        let mut full: Vec<BlockExtent> = self.kept_inside(stob, extent).collect();
        full.extend(
            self.lookup(stob, extent)
                .map(|found| BlockExtent { start: found.start, count: wide(found.checksums.len()) }),
        );
        full.sort_unstable();
        let (mut holes, mut next) = (Vec::new(), extent.start);
        for full in full {
            if full.start > next {
                holes.push(BlockExtent { start: next, count: full.start - next });
            }
            next = full.end();
        }
        if next < extent.end() {
            holes.push(BlockExtent { start: next, count: extent.end() - next });
        }
        holes
    }

    /// Parts of `extent` that are holes with space kept.
    pub fn kept_inside(&self, stob: StobId, extent: BlockExtent) -> impl Iterator<Item = BlockExtent> + '_ {
        self.stobs.get(&stob).into_iter().flat_map(move |info| info.kept_inside(extent))
    }

    /// The parts of written extents inside `extent`, in order.
    pub fn lookup(&self, stob: StobId, extent: BlockExtent) -> impl Iterator<Item = Found<'_>> + '_ {
        self.extents.lookup(stob, extent)
    }

    /// Written extents from `from` on, in the order of stobs.
    pub fn extents_from(&self, from: ExtentKey) -> impl Iterator<Item = (ExtentKey, &Mapped)> + '_ {
        self.extents.range_from(from)
    }

    /// Blocks with more than one owner.
    #[must_use]
    pub fn shared(&self) -> &SharedBlocks {
        &self.shared
    }

    /// Replaces the owners of shared blocks, counted anew: the repair of a device whose counts are wrong.
    pub fn set_shared(&mut self, shared: SharedBlocks, used_blocks: u64) {
        self.shared = shared;
        self.used_blocks = used_blocks;
    }

    /// Extents of all stobs.
    #[must_use]
    pub fn extent_count(&self) -> u64 {
        self.extents.len()
    }

    /// Blocks of the device that stobs own; a shared one counts once.
    #[must_use]
    pub fn used_blocks(&self) -> u64 {
        self.used_blocks
    }

    /// Free blocks that are kept for holes.
    #[must_use]
    pub fn kept_blocks(&self) -> u64 {
        self.kept_blocks
    }

    /// Bytes of the state in a checkpoint's stream, once its pages stand on the device.
    #[must_use]
    pub fn checkpoint_bytes(&self) -> u64 {
        let bits = self.bits.places_from(0).count() * BITS_BYTES;
        let places = self.extents.page_count() * wide(PAGE_BYTES) + wide(bits);
        self.stob_bytes + places + wide(TOTALS_BYTES + self.shared.len() * SHARED_BYTES) + self.tree_bytes
    }

    /// Most that a checkpoint can come to without more extents: shared blocks that are one run now may fall apart, into no more parts
    /// than their owners have ends.
    #[must_use]
    pub fn checkpoint_bytes_max(&self) -> u64 {
        let shared = if self.shared.is_empty() { 0 } else { SHARED_GROWTH_BYTES * self.extents.len() };
        let counted = wide(self.shared.len() * SHARED_BYTES);
        self.checkpoint_bytes() - counted + shared.max(counted) + wide(self.bits.len() * BITS_BYTES)
    }

    /// Extents of `stob`, bytes of them in pages.
    fn size_of(&self, stob: StobId) -> (u64, u64) {
        self.extents.of_stob(stob).fold((0, 0), |(count, bytes), (_, mapped)| {
            (count + 1, bytes + STOB_ROW_BYTES + EXTENT_ROW_BYTES + mapped.blocks() * 4)
        })
    }

    /// Most pages that so many extents fill: each page that was split is at least a quarter full, or has one extent.
    fn pages_max(&self, count: u64, bytes: u64) -> u64 {
        count.min((bytes / self.extents.page_bytes().max(4)).saturating_mul(4).saturating_add(1))
            + SLOTS_PER_CHANGE
    }

    /// Most slots that `change` can need at the next checkpoint, beyond those of changed pages.
    #[must_use]
    pub fn slots_needed(&self, change: &Change) -> u64 {
        match change {
            Change::Map { .. } | Change::Punch { .. } => SLOTS_PER_CHANGE,
            Change::StobDelete { .. } => 2,
            Change::Snapshot { from, .. } => {
                let (count, bytes) = self.size_of(*from);
                self.pages_max(count, bytes)
            }
            _ => 0,
        }
    }

    /// Most that `change` can add to [`Metadata::checkpoint_bytes_max`], if changes before it add at most `before_bytes`.
    #[must_use]
    pub fn growth_bytes(&self, change: &Change, before_bytes: u64) -> u64 {
        let fixed = CHANGE_GROWTH_BYTES + 3 * SHARED_GROWTH_BYTES;
        match change {
            Change::TreePut { .. } | Change::TreeDelete { .. } => wide(change.encoded_bytes()),
            Change::Snapshot { from, .. } => {
                let (count, bytes) = self.size_of(*from);
                let copies = count.saturating_mul(SHARED_GROWTH_BYTES);
                let pages = self.pages_max(count, bytes) * wide(PAGE_BYTES);
                let first = if self.shared.is_empty() { SHARED_GROWTH_BYTES * self.extents.len() } else { 0 };
                fixed.saturating_add(copies + pages + first).saturating_add(before_bytes.saturating_mul(2))
            }
            Change::Allocate { stob, extent } => {
                fixed.saturating_add(wide(self.holes(*stob, *extent).len() * ALLOCATE_BYTES))
            }
            _ => fixed,
        }
    }

    /// Blocks written of a stob; `None` if it does not exist.
    #[must_use]
    pub fn stob_blocks(&self, stob: StobId) -> Option<u64> {
        self.stobs.get(&stob).map(|info| info.blocks)
    }

    /// Stobs after `after`, in order.
    pub fn stobs_after(&self, after: Option<StobId>) -> impl Iterator<Item = StobId> + '_ {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.stobs.range((from, Bound::Unbounded)).map(|(&stob, _)| stob)
    }

    /// All generations of `fid`, in order.
    pub fn stobs_of(&self, fid: Fid) -> impl Iterator<Item = StobId> + '_ {
        let generations = StobId { fid, generation: 0 }..=StobId { fid, generation: u64::MAX };
        self.stobs.range(generations).map(|(&stob, _)| stob)
    }

    /// Trees with at least one key.
    pub fn trees(&self) -> impl Iterator<Item = (TreeId, usize)> + '_ {
        self.trees.iter().map(|(&tree, content)| (tree, content.len()))
    }

    /// The value of a key.
    #[must_use]
    pub fn tree_get(&self, tree: TreeId, key: &[u8]) -> Option<&[u8]> {
        self.trees.get(&tree)?.get::<dyn Ordered>(&KeyRef::from(key)).map(AsRef::as_ref)
    }

    /// Keys and values from `from` on, in order of bytes.
    pub fn tree_range<'a>(
        &'a self,
        tree: TreeId,
        from: Bound<&'a [u8]>,
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + 'a {
        let tree = self.trees.get(&tree);
        tree.into_iter()
            .flat_map(move |tree| range_from(tree, from))
            .map(|(key, value)| (key.bytes(), value.as_ref()))
    }

    /// Checks the sums and lists against the extents: what [`Metadata::apply`] has to keep true. The error says what is wrong. What needs
    /// all extents is left out if some are not in memory.
    pub fn verify(&self) -> Result<(), String> {
        let is_whole = self.extents.is_all_in_memory();
        let mut blocks: BTreeMap<StobId, u64> = BTreeMap::new();
        let mut last = ExtentKey::default();
        for (key, mapped) in self.extents.range_from(ExtentKey::default()) {
            if key < last {
                return Err(format!("extents of {} overlap at block {}", key.stob, key.start));
            }
            last = ExtentKey { stob: key.stob, start: key.start + mapped.blocks() };
            *blocks.entry(key.stob).or_default() += mapped.blocks();
            if let Some(kept) =
                self.kept_inside(key.stob, BlockExtent { start: key.start, count: mapped.blocks() }).next()
            {
                return Err(format!("{kept} of {} are written, and space is kept for them", key.stob));
            }
        }
        let (mut kept, mut bytes) = (0, 0);
        for (stob, info) in &self.stobs {
            let written = blocks.remove(stob).unwrap_or(0);
            if (written != info.blocks && is_whole) || written > info.blocks || info.is_nothing() {
                return Err(format!("{stob} has {written} blocks, counted {}", info.blocks));
            }
            kept += info.kept.values().sum::<u64>();
            bytes += info.checkpoint_bytes();
        }
        if let Some((stob, _)) = blocks.first_key_value() {
            return Err(format!("{stob} has extents and is not listed"));
        }
        let tree_bytes: usize = self
            .trees
            .values()
            .flat_map(|tree| tree.iter().map(|(key, value)| tree_put_bytes(key.bytes().len(), value.len())))
            .sum();
        if (kept, bytes, wide(tree_bytes)) != (self.kept_blocks, self.stob_bytes, self.tree_bytes) {
            return Err("a sum over stobs or trees is wrong".to_owned());
        }
        Ok(())
    }

    /// Appends changes that make the state (its pages stand on the device) to `out`, until `out` has `enough_bytes` or all is encoded; moves `cursor`.
    pub fn encode_from(&self, cursor: &mut Cursor, out: &mut Vec<u8>, enough_bytes: usize) {
        loop {
            match cursor {
                Cursor::Start | Cursor::Stob(_) => {
                    let after = if let Cursor::Stob(stob) = cursor {
                        Bound::Excluded(*stob)
                    } else {
                        Bound::Unbounded
                    };
                    for (&stob, info) in self.stobs.range((after, Bound::Unbounded)) {
                        if out.len() >= enough_bytes {
                            return;
                        }
                        if info.is_created {
                            Change::StobCreate { stob }.encode(out);
                        }
                        if info.blocks > 0 {
                            Change::StobBlocks { stob, blocks: info.blocks }.encode(out);
                        }
                        for (&start, &count) in &info.kept {
                            Change::Allocate { stob, extent: BlockExtent { start, count } }.encode(out);
                        }
                        *cursor = Cursor::Stob(stob);
                    }
                    Change::Totals { used_blocks: self.used_blocks }.encode(out);
                    *cursor = Cursor::Bits(0);
                }
                Cursor::Bits(next) => {
                    for (index, place) in self.bits.places_from(*next) {
                        if out.len() >= enough_bytes {
                            return;
                        }
                        let (slot, checksum) = (place.slot, place.checksum);
                        Change::Bits { index: wide(index), slot, checksum }.encode(out);
                        *cursor = Cursor::Bits(index + 1);
                    }
                    *cursor = Cursor::Page(None);
                }
                Cursor::Page(last) => {
                    let after = last.map_or(Bound::Unbounded, Bound::Excluded);
                    for (bound, place, count, bytes) in self.extents.places_after(after) {
                        if out.len() >= enough_bytes {
                            return;
                        }
                        encode_page(out, bound, place, count, bytes);
                        *cursor = Cursor::Page(Some(bound));
                    }
                    *cursor = Cursor::Shared(0);
                }
                Cursor::Shared(next) => {
                    for (extent, owners) in self.shared.extents_from(*next) {
                        if out.len() >= enough_bytes {
                            return;
                        }
                        Change::Shared { extent, owners }.encode(out);
                        *cursor = Cursor::Shared(extent.end());
                    }
                    *cursor = Cursor::Tree(TreeId(0), Vec::new());
                }
                Cursor::Tree(tree, key) => {
                    let (first, after_key) = (*tree, std::mem::take(key));
                    for (&tree, content) in self.trees.range(first..) {
                        // No key is empty, so "after the empty key" is all of a tree.
                        let after: &[u8] = if tree == first { &after_key } else { &[] };
                        let mut last = after;
                        for (key, value) in range_from(content, Bound::Excluded(after)) {
                            if out.len() >= enough_bytes {
                                *cursor = Cursor::Tree(tree, last.to_vec());
                                return;
                            }
                            encode_tree_put(out, tree, key.bytes(), value);
                            last = key.bytes();
                        }
                    }
                    *cursor = Cursor::End;
                }
                Cursor::End => return,
            }
        }
    }
}

fn encode_page(out: &mut Vec<u8>, bound: ExtentKey, place: Place, count: u64, bytes: u64) {
    let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX); // both fit into a slot
    let change = Change::Page {
        stob: bound.stob,
        start: bound.start,
        slot: place.slot,
        checksum: place.checksum,
        bytes: number(bytes),
        count: number(count),
    };
    change.encode(out);
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // the numbers of tests are small
mod tests {
    use super::*;
    use crate::format::change::DecodeFault;
    use crate::shared_blocks::count_owners;

    fn regions() -> Regions {
        Regions::for_device(1 << 20).unwrap()
    }

    fn example(seed: u64, steps: u32) -> Metadata {
        let mut metadata = Metadata::new(&regions(), 500);
        let mut random = fastrand::Rng::with_seed(seed);
        let mut next_device = regions().data.start;
        for _ in 0..steps {
            let mut stob =
                || StobId { fid: Fid { container: random.u64(0..4), key: 0 }, generation: random.u64(0..2) };
            let (stob, other) = (stob(), stob());
            let extent = BlockExtent { start: random.u64(0..100), count: random.u64(0..40) };
            let change = match random.u8(0..12) {
                0..4 => {
                    // New blocks of the device, as a domain gives them.
                    let checksums: Vec<u32> = (0..random.u32(1..30)).collect();
                    let device_start = next_device;
                    next_device += checksums.len() as u64;
                    Change::Map { stob, start: extent.start, device_start, checksums }
                }
                4 => Change::Punch { stob, extent },
                5 if random.u8(0..8) == 0 => Change::StobDelete { stob },
                6 => Change::TreeDelete { tree: TreeId(random.u32(0..3)), key: vec![random.u8(0..20)] },
                7 if random.bool() => Change::Snapshot { from: stob, to: other },
                8 => Change::Allocate { stob, extent },
                9 if random.u8(0..4) == 0 => Change::StobCreate { stob },
                _ => Change::TreePut {
                    tree: TreeId(random.u32(0..3)),
                    key: vec![random.u8(0..20)],
                    value: vec![7; random.usize(0..50)],
                },
            };
            let growth = metadata.growth_bytes(&change, 0);
            let slots_needed = metadata.slots_needed(&change) + metadata.extents.dirty_pages();
            let before = (metadata.checkpoint_bytes_max(), metadata.used_blocks());
            let mapped = if let Change::Map { checksums, .. } = &change { checksums.len() as u64 } else { 0 };
            let mut freed = Vec::new();
            metadata.apply(change, &mut freed);
            assert!(metadata.checkpoint_bytes_max() <= before.0 + growth);
            assert!(metadata.extents.dirty_pages() <= slots_needed);
            if random.u8(0..20) == 0 {
                written(&mut metadata);
            }
            assert!(metadata.checkpoint_bytes() <= metadata.checkpoint_bytes_max());
            let freed: u64 = freed.iter().map(|extent| extent.count).sum();
            assert_eq!(metadata.used_blocks(), before.1 + mapped - freed);
            metadata.verify().unwrap();
            let all = metadata.extents_from(ExtentKey::default()).map(|(_, mapped)| mapped.device_extent());
            let counted = count_owners(all);
            assert_eq!(counted.used_blocks, metadata.used_blocks());
            assert_eq!(&counted.shared, metadata.shared());
        }
        metadata
    }

    /// As if a checkpoint had written all pages. Gives their content.
    fn written(metadata: &mut Metadata) -> BTreeMap<u64, Vec<(ExtentKey, Mapped)>> {
        metadata.extents.tidy();
        let mut next = 1000 * metadata.extents.len();
        let mut pages = BTreeMap::new();
        let mut from = Bound::Unbounded;
        while let Some((bound, items)) = metadata.extents.next_dirty(from) {
            pages.insert(next % regions().slots(), items.to_vec());
            let place = Place { slot: next % regions().slots(), checksum: 1 };
            metadata.extents.written(bound, place);
            next += 1;
            from = Bound::Excluded(bound);
        }
        while let Some(index) = metadata.bits.next_dirty(0) {
            metadata.bits.written(index, Some(Place { slot: next % regions().slots(), checksum: 2 }));
            next += 1;
        }
        pages
    }

    fn encode(metadata: &Metadata, enough_bytes: usize) -> Vec<u8> {
        let (mut all, mut cursor) = (Vec::new(), Cursor::Start);
        while !matches!(cursor, Cursor::End) {
            let mut out = Vec::new();
            metadata.encode_from(&mut cursor, &mut out, enough_bytes);
            all.append(&mut out);
        }
        all
    }

    #[test]
    fn a_checkpoint_makes_the_same_state_in_pieces_of_any_size() {
        let mut snapshots = 0;
        for seed in 0..6 {
            let mut metadata = example(seed, 300);
            snapshots += metadata.shared().len();
            // All pages are new.
            let extents = metadata.extents_from(ExtentKey::default());
            let extents: Vec<_> = extents.map(|(key, mapped)| (key, mapped.clone())).collect();
            metadata.extents = Extents::new(500);
            metadata.bits = BitPages::new(&regions());
            metadata.bits.mark_all();
            for (key, mapped) in extents {
                assert!(metadata.extents.push(key, mapped));
            }
            let pages = written(&mut metadata);
            let bytes = encode(&metadata, usize::MAX);
            assert_eq!(bytes.len() as u64, metadata.checkpoint_bytes());
            for enough in [1, 100, 1000] {
                assert_eq!(encode(&metadata, enough), bytes);
            }
            let mut loader = Loader::new(&regions(), 500, false);
            let mut rest = &bytes[..];
            let mut freed = Vec::new();
            loop {
                match Change::decode(rest) {
                    Ok((change, used)) => {
                        assert!(loader.push(change, &mut freed));
                        rest = &rest[used..];
                    }
                    Err(DecodeFault::Incomplete) if rest.is_empty() => break,
                    Err(fault) => panic!("{fault:?}"),
                }
            }
            let (mut again, slots) = loader.finish();
            assert!(freed.is_empty());
            assert_eq!(slots.total() - slots.free(), (pages.len() + again.bits.len()) as u64);
            for missing in again.extents.all_missing() {
                assert!(again.extents.install(missing, pages[&missing.place.slot].clone()));
            }
            again.verify().unwrap();
            assert_eq!(again.used_blocks(), metadata.used_blocks());
            assert_eq!(again.kept_blocks(), metadata.kept_blocks());
            assert_eq!(encode(&again, usize::MAX), bytes);
        }
        assert!(snapshots > 20);
    }

    #[test]
    fn an_emptied_state_costs_nothing() {
        let mut metadata = example(3, 500);
        let mut freed = Vec::new();
        let stobs: Vec<StobId> = metadata.stobs_after(None).collect();
        for stob in stobs {
            metadata.apply(Change::StobDelete { stob }, &mut freed);
        }
        for tree in 0..3 {
            for key in 0..20 {
                metadata.apply(Change::TreeDelete { tree: TreeId(tree), key: vec![key] }, &mut freed);
            }
        }
        metadata.extents.tidy();
        assert_eq!(
            (metadata.used_blocks(), metadata.kept_blocks(), metadata.extents.page_count()),
            (0, 0, 0)
        );
        let bits = metadata.bits.places_from(0).count() * BITS_BYTES;
        assert!(metadata.shared().is_empty());
        assert_eq!(metadata.checkpoint_bytes(), (TOTALS_BYTES + bits) as u64);
    }
}
