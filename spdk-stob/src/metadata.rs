//! The metadata of a domain in memory: extents of all stobs, who shares blocks, and the trees. Pure; changed only by [`Metadata::apply`].
//!
//! **Invariant**: what `apply` made of the durable changes, in order, is the state; nothing in here is not durable yet.
//! **Invariant**: a stob is listed exactly while it was created, or has a block written or space kept.
//! [`Metadata::checkpoint_bytes`] is exactly what [`Metadata::encode_from`] will produce, so a domain can refuse a
//! transaction whose state would not fit into a checkpoint.

use std::collections::BTreeMap;
use std::ops::Bound;

use base::units::wide;
use base::{BlockExtent, Fid};

use crate::extents::{ExtentKey, Extents, Found, Mapped};
use crate::format::change::{
    ALLOCATE_BYTES, Change, SHARED_BYTES, STOB_CREATE_BYTES, encode_map, encode_tree_put, tree_put_bytes,
};
use crate::limits::{CHANGE_GROWTH_BYTES, EXTENT_BYTES};
use crate::shared_blocks::SharedBlocks;
use crate::stob_id::{StobId, TreeId};

/// Both ends of an extent may be ends of shared blocks.
const SHARED_GROWTH_BYTES: u64 = 2 * SHARED_BYTES as u64;

type Tree = BTreeMap<Vec<u8>, Vec<u8>>;

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
        wide(create + self.kept.len() * ALLOCATE_BYTES)
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
    extents: Extents,
    shared: SharedBlocks,
    trees: BTreeMap<TreeId, Tree>,
    /// Blocks of the device with an owner, each counted once.
    used_blocks: u64,
    kept_blocks: u64,
    stob_bytes: u64,
    tree_bytes: u64,
}

/// Makes the state out of the changes of a checkpoint.
#[derive(Debug, Default)]
pub struct Loader {
    metadata: Metadata,
    extents: Vec<(ExtentKey, Mapped)>,
}

impl Loader {
    /// Takes the next change of the checkpoint.
    pub fn push(&mut self, change: Change, freed: &mut Vec<BlockExtent>) {
        match change {
            Change::Map { stob, start, device_start, checksums } => {
                let blocks = wide(checksums.len());
                self.metadata.used_blocks += blocks;
                self.metadata.stobs.entry(stob).or_default().blocks += blocks;
                self.extents
                    .push((ExtentKey { stob, start }, Mapped { device_start, checksums: checksums.into() }));
            }
            other => self.metadata.apply(other, freed),
        }
    }

    /// The state. `None`: the extents are not in order, or overlap.
    #[must_use]
    pub fn finish(self) -> Option<Metadata> {
        Some(Metadata { extents: Extents::from_sorted(self.extents)?, ..self.metadata })
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
    /// Extents up to this one are encoded.
    Extent(ExtentKey),
    /// Shared blocks up to this one are encoded.
    Shared(u64),
    /// Keys up to this one are encoded.
    Tree(TreeId, Vec<u8>),
    /// All is encoded.
    End,
}

impl Metadata {
    /// Applies one durable change. Device blocks that nobody owns any more are appended to `freed`.
    pub fn apply(&mut self, change: Change, freed: &mut Vec<BlockExtent>) {
        match change {
            Change::Map { stob, start, device_start, checksums } => {
                let extent = BlockExtent { start, count: wide(checksums.len()) };
                self.hole(stob, extent, freed);
                self.used_blocks += extent.count;
                self.with_stob(stob, |info| info.blocks += extent.count);
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
            Change::Shared { extent, owners } => {
                // Only in a checkpoint, after its maps, each of which counted these blocks once.
                self.used_blocks = self
                    .used_blocks
                    .saturating_sub(extent.count.saturating_mul(u64::from(owners).saturating_sub(1)));
                self.shared.set(extent, owners);
            }
            Change::TreePut { tree, key, value } => {
                let key_bytes = key.len();
                self.tree_bytes += wide(tree_put_bytes(key_bytes, value.len()));
                if let Some(old) = self.trees.entry(tree).or_default().insert(key, value) {
                    self.tree_bytes -= wide(tree_put_bytes(key_bytes, old.len()));
                }
            }
            Change::TreeDelete { tree, key } => {
                let Some(content) = self.trees.get_mut(&tree) else { return };
                if let Some(old) = content.remove(&key) {
                    self.tree_bytes -= wide(tree_put_bytes(key.len(), old.len()));
                }
                if content.is_empty() {
                    self.trees.remove(&tree);
                }
            }
        }
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
        if !self.stobs.contains_key(&stob) {
            return;
        }
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
            info.blocks -= blocks;
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
            self.extents.of_stob(from, 0).map(|(start, mapped)| (start, mapped.clone())).collect();
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

    /// Extents, and blocks written of all stobs; a shared one counts for each owner.
    #[must_use]
    pub fn extent_count(&self) -> u64 {
        wide(self.extents.len())
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

    /// Bytes of the state in a checkpoint.
    #[must_use]
    pub fn checkpoint_bytes(&self) -> u64 {
        self.stob_bytes
            + self.extents.encoded_bytes()
            + wide(self.shared.len() * SHARED_BYTES)
            + self.tree_bytes
    }

    /// Most that a checkpoint can come to without more extents: shared blocks that are one run now may fall apart, into no more parts
    /// than their owners have ends.
    #[must_use]
    pub fn checkpoint_bytes_max(&self) -> u64 {
        let shared = if self.shared.is_empty() { 0 } else { SHARED_GROWTH_BYTES * wide(self.extents.len()) };
        self.stob_bytes + self.extents.encoded_bytes() + shared + self.tree_bytes
    }

    /// Most that `change` can add to [`Metadata::checkpoint_bytes_max`], if changes before it add at most `before_bytes`.
    #[must_use]
    pub fn growth_bytes(&self, change: &Change, before_bytes: u64) -> u64 {
        let own = wide(change.encoded_bytes()) + CHANGE_GROWTH_BYTES + 2 * SHARED_GROWTH_BYTES;
        match change {
            Change::Snapshot { from, .. } => {
                let extents = self.extents.of_stob(*from, 0);
                let copies: u64 = extents
                    .map(|(_, mapped)| EXTENT_BYTES + 8 + mapped.blocks() * 4 + SHARED_GROWTH_BYTES)
                    .sum();
                let first =
                    if self.shared.is_empty() { SHARED_GROWTH_BYTES * wide(self.extents.len()) } else { 0 };
                own.saturating_add(copies + first).saturating_add(before_bytes.saturating_mul(2))
            }
            _ => own,
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
        self.trees.get(&tree)?.get(key).map(Vec::as_slice)
    }

    /// Keys and values from `from` on, in order of bytes.
    pub fn tree_range<'a>(
        &'a self,
        tree: TreeId,
        from: Bound<&'a [u8]>,
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + 'a {
        let range = (from, Bound::Unbounded);
        let tree = self.trees.get(&tree);
        tree.into_iter()
            .flat_map(move |tree| tree.range::<[u8], _>(range))
            .map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    /// Checks the sums and lists against the extents: what [`Metadata::apply`] has to keep true. The error says what is wrong.
    pub fn verify(&self) -> Result<(), String> {
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
            if written != info.blocks || info.is_nothing() {
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
            .flat_map(|tree| tree.iter().map(|(key, value)| tree_put_bytes(key.len(), value.len())))
            .sum();
        if (kept, bytes, wide(tree_bytes)) != (self.kept_blocks, self.stob_bytes, self.tree_bytes) {
            return Err("a sum over stobs or trees is wrong".to_owned());
        }
        Ok(())
    }

    /// Appends changes that make the state to `out`, until `out` has `enough_bytes` or all is encoded; moves `cursor`.
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
                        for (&start, &count) in &info.kept {
                            Change::Allocate { stob, extent: BlockExtent { start, count } }.encode(out);
                        }
                        *cursor = Cursor::Stob(stob);
                    }
                    *cursor = Cursor::Extent(ExtentKey::default());
                    // The first extent may be at the very first key.
                    if let Some((key, mapped)) = self.extents.range_from(ExtentKey::default()).next()
                        && key == ExtentKey::default()
                    {
                        encode_map(out, key.stob, key.start, mapped.device_start, &mapped.checksums);
                    }
                }
                Cursor::Extent(last) => {
                    let from = ExtentKey { start: last.start.saturating_add(1), ..*last };
                    for (key, mapped) in self.extents.range_from(from) {
                        if out.len() >= enough_bytes {
                            return;
                        }
                        encode_map(out, key.stob, key.start, mapped.device_start, &mapped.checksums);
                        *cursor = Cursor::Extent(key);
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
                        *cursor = Cursor::Tree(tree, after.to_vec());
                        for (key, value) in
                            content.range::<[u8], _>((Bound::Excluded(after), Bound::Unbounded))
                        {
                            if out.len() >= enough_bytes {
                                return;
                            }
                            encode_tree_put(out, tree, key, value);
                            *cursor = Cursor::Tree(tree, key.clone());
                        }
                    }
                    *cursor = Cursor::End;
                }
                Cursor::End => return,
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // the numbers of tests are small
mod tests {
    use super::*;
    use crate::format::change::DecodeFault;
    use crate::shared_blocks::count_owners;

    fn example(seed: u64, steps: u32) -> Metadata {
        let mut metadata = Metadata::default();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut next_device = 0;
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
            let before = (metadata.checkpoint_bytes_max(), metadata.used_blocks());
            let mapped = if let Change::Map { checksums, .. } = &change { checksums.len() as u64 } else { 0 };
            let mut freed = Vec::new();
            metadata.apply(change, &mut freed);
            assert!(metadata.checkpoint_bytes_max() <= before.0 + growth);
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
            let metadata = example(seed, 300);
            snapshots += metadata.shared().len();
            let bytes = encode(&metadata, usize::MAX);
            assert_eq!(bytes.len() as u64, metadata.checkpoint_bytes());
            for enough in [1, 100, 1000] {
                assert_eq!(encode(&metadata, enough), bytes);
            }
            let mut loader = Loader::default();
            let mut rest = &bytes[..];
            let mut freed = Vec::new();
            loop {
                match Change::decode(rest) {
                    Ok((change, used)) => {
                        loader.push(change, &mut freed);
                        rest = &rest[used..];
                    }
                    Err(DecodeFault::Incomplete) if rest.is_empty() => break,
                    Err(fault) => panic!("{fault:?}"),
                }
            }
            let again = loader.finish().unwrap();
            assert!(freed.is_empty());
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
        assert_eq!((metadata.used_blocks(), metadata.checkpoint_bytes(), metadata.kept_blocks()), (0, 0, 0));
        assert!(metadata.shared().is_empty() && encode(&metadata, usize::MAX).is_empty());
    }
}
