//! The metadata of a domain in memory: extent maps of all stobs, and the trees. Pure; changed only by [`Metadata::apply`].
//!
//! **Invariant**: what `apply` made of the durable changes, in order, is the state; nothing in here is not durable yet.
//! [`Metadata::checkpoint_bytes`] is exactly what [`Metadata::encode_from`] will produce, so a domain can refuse a
//! transaction whose state would not fit into a checkpoint. Issue 4 puts pages of a tree behind these same calls.

use std::collections::BTreeMap;
use std::ops::Bound;

use base::units::wide;
use base::{BlockExtent, Fid};

use crate::extent_map::ExtentMap;
use crate::format::change::{Change, encode_map, encode_tree_put, tree_put_bytes};
use crate::stob_id::{StobId, TreeId};

type Tree = BTreeMap<Vec<u8>, Vec<u8>>;

/// The state.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub struct Metadata {
    stobs: BTreeMap<StobId, ExtentMap>,
    trees: BTreeMap<TreeId, Tree>,
    mapped_blocks: u64,
    checkpoint_bytes: u64,
}

/// Where [`Metadata::encode_from`] goes on. Valid as long as nothing is applied.
#[derive(Clone, Debug, Default)]
pub enum Cursor {
    /// Nothing encoded yet.
    #[default]
    Start,
    /// Extents up to this one are encoded.
    Stob(StobId, u64),
    /// All stobs, and keys up to this one, are encoded.
    Tree(TreeId, Vec<u8>),
    /// All is encoded.
    End,
}

impl Metadata {
    /// Applies one durable change. Device blocks that nobody owns any more are appended to `freed`.
    pub fn apply(&mut self, change: Change, freed: &mut Vec<BlockExtent>) {
        match change {
            Change::Map { stob, start, device_start, checksums } => {
                self.with_stob(stob, |map| map.map(start, device_start, checksums, freed));
            }
            Change::Punch { stob, extent } => self.with_stob(stob, |map| map.punch(extent, freed)),
            Change::StobDelete { stob } => {
                if let Some(map) = self.stobs.remove(&stob) {
                    self.mapped_blocks -= map.blocks();
                    self.checkpoint_bytes -= map.encoded_bytes();
                    freed.extend(map.into_device_extents());
                }
            }
            Change::TreePut { tree, key, value } => {
                let key_bytes = key.len();
                self.checkpoint_bytes += wide(tree_put_bytes(key_bytes, value.len()));
                if let Some(old) = self.trees.entry(tree).or_default().insert(key, value) {
                    self.checkpoint_bytes -= wide(tree_put_bytes(key_bytes, old.len()));
                }
            }
            Change::TreeDelete { tree, key } => {
                let Some(content) = self.trees.get_mut(&tree) else { return };
                if let Some(old) = content.remove(&key) {
                    self.checkpoint_bytes -= wide(tree_put_bytes(key.len(), old.len()));
                }
                if content.is_empty() {
                    self.trees.remove(&tree);
                }
            }
        }
    }

    fn with_stob(&mut self, stob: StobId, change: impl FnOnce(&mut ExtentMap)) {
        let map = self.stobs.entry(stob).or_default();
        let before = (map.blocks(), map.encoded_bytes());
        change(map);
        self.mapped_blocks = self.mapped_blocks + map.blocks() - before.0;
        self.checkpoint_bytes = self.checkpoint_bytes + map.encoded_bytes() - before.1;
        if map.is_empty() {
            self.stobs.remove(&stob);
        }
    }

    /// Blocks of the device that stobs own.
    #[must_use]
    pub fn mapped_blocks(&self) -> u64 {
        self.mapped_blocks
    }

    /// Bytes of the state in a checkpoint.
    #[must_use]
    pub fn checkpoint_bytes(&self) -> u64 {
        self.checkpoint_bytes
    }

    /// The extent map of a stob, if any block of it is mapped.
    #[must_use]
    pub fn stob(&self, stob: StobId) -> Option<&ExtentMap> {
        self.stobs.get(&stob)
    }

    /// Stobs after `after`, in order.
    pub fn stobs_after(&self, after: Option<StobId>) -> impl Iterator<Item = (StobId, &ExtentMap)> + '_ {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.stobs.range((from, Bound::Unbounded)).map(|(&stob, map)| (stob, map))
    }

    /// All generations of `fid`, in order.
    pub fn stobs_of(&self, fid: Fid) -> impl Iterator<Item = StobId> + '_ {
        let generations = StobId { fid, generation: 0 }..=StobId { fid, generation: u64::MAX };
        self.stobs.range(generations).map(|(&stob, _)| stob)
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

    /// Appends changes that make the state to `out`, until `out` has `enough_bytes` or all is encoded; moves `cursor`.
    pub fn encode_from(&self, cursor: &mut Cursor, out: &mut Vec<u8>, enough_bytes: usize) {
        let stobs_from = match cursor {
            Cursor::Start => Some((StobId::default(), 0)),
            Cursor::Stob(stob, start) => Some((*stob, start.saturating_add(1))),
            Cursor::Tree(..) | Cursor::End => None,
        };
        if let Some((first, first_block)) = stobs_from {
            for (&stob, map) in self.stobs.range(first..) {
                let from = if stob == first { first_block } else { 0 };
                for (start, mapped) in map.extents_from(from) {
                    if out.len() >= enough_bytes {
                        return;
                    }
                    encode_map(out, stob, start, mapped.device_start, &mapped.checksums);
                    *cursor = Cursor::Stob(stob, start);
                }
            }
        }
        let trees_from = match cursor {
            Cursor::Start | Cursor::Stob(..) => Some((TreeId(0), Vec::new())),
            Cursor::Tree(tree, key) => Some((*tree, key.clone())),
            Cursor::End => None,
        };
        if let Some((first, after_key)) = trees_from {
            for (&tree, content) in self.trees.range(first..) {
                // No key is empty, so "after the empty key" is all of a tree.
                let after: &[u8] = if tree == first { &after_key } else { &[] };
                for (key, value) in content.range::<[u8], _>((Bound::Excluded(after), Bound::Unbounded)) {
                    if out.len() >= enough_bytes {
                        return;
                    }
                    encode_tree_put(out, tree, key, value);
                    *cursor = Cursor::Tree(tree, key.clone());
                }
            }
        }
        *cursor = Cursor::End;
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // the numbers of tests are small
mod tests {
    use super::*;
    use crate::format::change::DecodeFault;

    fn example() -> Metadata {
        let mut metadata = Metadata::default();
        let mut freed = Vec::new();
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..500 {
            let stob =
                StobId { fid: Fid { container: random.u64(0..4), key: 0 }, generation: random.u64(0..2) };
            let change = match random.u8(0..10) {
                0..4 => Change::Map {
                    stob,
                    start: random.u64(0..100),
                    device_start: random.u64(0..1 << 40),
                    checksums: (0..random.u32(1..30)).collect(),
                },
                4 => Change::Punch {
                    stob,
                    extent: BlockExtent { start: random.u64(0..100), count: random.u64(0..40) },
                },
                5 if random.u8(0..8) == 0 => Change::StobDelete { stob },
                6 => Change::TreeDelete { tree: TreeId(random.u32(0..3)), key: vec![random.u8(0..20)] },
                _ => Change::TreePut {
                    tree: TreeId(random.u32(0..3)),
                    key: vec![random.u8(0..20)],
                    value: vec![7; random.usize(0..50)],
                },
            };
            metadata.apply(change, &mut freed);
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
        let metadata = example();
        let bytes = encode(&metadata, usize::MAX);
        assert_eq!(bytes.len() as u64, metadata.checkpoint_bytes());
        for enough in [1, 100, 1000] {
            assert_eq!(encode(&metadata, enough), bytes);
        }
        let mut again = Metadata::default();
        let mut rest = &bytes[..];
        let mut freed = Vec::new();
        loop {
            match Change::decode(rest) {
                Ok((change, used)) => {
                    again.apply(change, &mut freed);
                    rest = &rest[used..];
                }
                Err(DecodeFault::Incomplete) if rest.is_empty() => break,
                Err(fault) => panic!("{fault:?}"),
            }
        }
        assert!(freed.is_empty());
        assert_eq!(again.mapped_blocks(), metadata.mapped_blocks());
        assert_eq!(encode(&again, usize::MAX), bytes);
    }

    #[test]
    fn an_emptied_state_costs_nothing() {
        let mut metadata = example();
        let mut freed = Vec::new();
        let stobs: Vec<StobId> = metadata.stobs_after(None).map(|(stob, _)| stob).collect();
        for stob in stobs {
            metadata.apply(Change::StobDelete { stob }, &mut freed);
        }
        for tree in 0..3 {
            for key in 0..20 {
                metadata.apply(Change::TreeDelete { tree: TreeId(tree), key: vec![key] }, &mut freed);
            }
        }
        assert_eq!((metadata.mapped_blocks(), metadata.checkpoint_bytes()), (0, 0));
        assert!(encode(&metadata, usize::MAX).is_empty());
    }
}
