//! A change of the metadata: the one language of log records and checkpoints. docs/disk.md#changes.
//!
//! A record is a list of changes to apply; a checkpoint is the list that makes the state out of nothing, with the places of its
//! pages. So there is one encoder and one decoder.

use base::checksum::crc32c;
use base::units::narrow;
use base::{BlockExtent, Fid};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::padding;
use crate::limits::{EXTENT_BLOCKS_MAX, TREE_KEY_BYTES_MAX, TREE_VALUE_BYTES_MAX};
use crate::stob_id::{StobId, TreeId};

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Blocks `[start, start + checksums.len())` of the stob are now at `device_start` on the device.
    Map {
        /// The stob.
        stob: StobId,
        /// First block of the stob.
        start: u64,
        /// First block of the device.
        device_start: u64,
        /// CRC-32C of each block; 1 to [`EXTENT_BLOCKS_MAX`].
        checksums: Vec<u32>,
    },
    /// Blocks of the stob are holes again.
    Punch {
        /// The stob.
        stob: StobId,
        /// Its blocks.
        extent: BlockExtent,
    },
    /// The stob is gone.
    StobDelete {
        /// The stob.
        stob: StobId,
    },
    /// The stob exists, even while nothing of it is written.
    StobCreate {
        /// The stob.
        stob: StobId,
    },
    /// `to` becomes what `from` is: it shares all of its blocks. What `to` was before is gone.
    Snapshot {
        /// The origin.
        from: StobId,
        /// The snapshot.
        to: StobId,
    },
    /// Space is kept for the holes of this extent; they stay holes.
    Allocate {
        /// The stob.
        stob: StobId,
        /// Its blocks.
        extent: BlockExtent,
    },
    /// A page of extents. Only in checkpoints.
    Page {
        /// No extent of it is before this: of which stob.
        stob: StobId,
        /// And from which block of it.
        start: u64,
        /// Where it stands.
        slot: u64,
        /// Checksum of its header.
        checksum: u32,
        /// Bytes of its extents.
        bytes: u32,
        /// Extents.
        count: u32,
    },
    /// A page of bits of free space. Only in checkpoints.
    Bits {
        /// Which one of the device.
        index: u64,
        /// Where it stands.
        slot: u64,
        /// Checksum of its header.
        checksum: u32,
    },
    /// What extents of a stob come to. Only in checkpoints.
    StobBlocks {
        /// The stob.
        stob: StobId,
        /// Blocks written.
        blocks: u64,
    },
    /// What all extents come to. Only in checkpoints.
    Totals {
        /// Blocks of the device with an owner.
        used_blocks: u64,
    },
    /// Blocks of the device that several extents own. Only in checkpoints.
    Shared {
        /// The blocks.
        extent: BlockExtent,
        /// Owners, 2 or more.
        owners: u32,
    },
    /// A key has a value.
    TreePut {
        /// The tree.
        tree: TreeId,
        /// 1 to [`TREE_KEY_BYTES_MAX`] bytes.
        key: Vec<u8>,
        /// At most [`TREE_VALUE_BYTES_MAX`] bytes.
        value: Vec<u8>,
    },
    /// A key is gone.
    TreeDelete {
        /// The tree.
        tree: TreeId,
        /// The key.
        key: Vec<u8>,
    },
}

const KIND_MAP: u16 = 1;
const KIND_PUNCH: u16 = 2;
const KIND_STOB_DELETE: u16 = 3;
const KIND_TREE_PUT: u16 = 4;
const KIND_TREE_DELETE: u16 = 5;
const KIND_STOB_CREATE: u16 = 6;
const KIND_SNAPSHOT: u16 = 7;
const KIND_ALLOCATE: u16 = 8;
const KIND_PAGE: u16 = 10;
const KIND_BITS: u16 = 11;
const KIND_STOB_BLOCKS: u16 = 12;
const KIND_TOTALS: u16 = 13;

/// Bytes of an encoded [`Change::StobCreate`].
pub const STOB_CREATE_BYTES: usize = 32;
/// Bytes of an encoded [`Change::Allocate`].
pub const ALLOCATE_BYTES: usize = 48;
/// Bytes of an encoded [`Change::Shared`].
pub const SHARED_BYTES: usize = 24;
/// Bytes of an encoded [`Change::Page`].
pub const PAGE_BYTES: usize = 56;
/// Bytes of an encoded [`Change::Bits`].
pub const BITS_BYTES: usize = 32;
/// Bytes of an encoded [`Change::StobBlocks`].
pub const STOB_BLOCKS_BYTES: usize = 40;
/// Bytes of an encoded [`Change::Totals`].
pub const TOTALS_BYTES: usize = 16;

/// The first eight bytes of every change.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Head {
    kind: U16,
    /// Bytes of the key of a tree change. Of a map: bytes that each block has beside its checksum, 0 (8 is kept for T10
    /// protection information). Else 0.
    key_bytes: U16,
    /// Blocks of a map, bytes of a value, owners of shared blocks, extents of a page, else 0.
    count: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct StobBytes {
    container: U64,
    key: U64,
    generation: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PairBytes {
    first: U64,
    second: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WordsBytes {
    first: U32,
    second: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct TreeBytes {
    tree: U32,
    reserved: U32,
}

/// Bytes of an encoded map of `blocks` blocks.
#[must_use]
pub const fn map_bytes(blocks: usize) -> usize {
    48 + blocks * 4 + padding(blocks * 4, 8)
}

/// Bytes of an encoded put.
#[must_use]
pub const fn tree_put_bytes(key_bytes: usize, value_bytes: usize) -> usize {
    16 + key_bytes + padding(key_bytes, 8) + value_bytes + padding(value_bytes, 8)
}

/// Why a change cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeFault {
    /// The bytes end inside it. More of the stream may follow.
    Incomplete,
    /// It makes no sense.
    Nonsense {
        /// The kind as found.
        kind: u16,
    },
}

/// A free name for matching.
const KIND_SHARED: u16 = Change::KIND_SHARED;

impl Change {
    /// The number of [`Change::Shared`] on the device.
    pub const KIND_SHARED: u16 = 9;

    /// Bytes that [`Change::encode`] appends, a multiple of 8.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        match self {
            Change::Map { checksums, .. } => map_bytes(checksums.len()),
            Change::Punch { .. } => 48,
            Change::StobDelete { .. } => 32,
            Change::StobCreate { .. } => STOB_CREATE_BYTES,
            Change::Snapshot { .. } => 56,
            Change::Allocate { .. } => ALLOCATE_BYTES,
            Change::Shared { .. } => SHARED_BYTES,
            Change::Page { .. } => PAGE_BYTES,
            Change::Bits { .. } => BITS_BYTES,
            Change::StobBlocks { .. } => STOB_BLOCKS_BYTES,
            Change::Totals { .. } => TOTALS_BYTES,
            Change::TreePut { key, value, .. } => tree_put_bytes(key.len(), value.len()),
            Change::TreeDelete { key, .. } => 16 + key.len() + padding(key.len(), 8),
        }
    }

    /// Appends the change.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Change::Map { stob, start, device_start, checksums } => {
                encode_map(out, *stob, *start, *device_start, checksums);
            }
            Change::Punch { stob, extent } => {
                put_head(out, KIND_PUNCH, 0, 0);
                put_stob(out, *stob);
                put_pair(out, extent.start, extent.count);
            }
            Change::StobDelete { stob } => {
                put_head(out, KIND_STOB_DELETE, 0, 0);
                put_stob(out, *stob);
            }
            Change::StobCreate { stob } => {
                put_head(out, KIND_STOB_CREATE, 0, 0);
                put_stob(out, *stob);
            }
            Change::Snapshot { from, to } => {
                put_head(out, KIND_SNAPSHOT, 0, 0);
                put_stob(out, *from);
                put_stob(out, *to);
            }
            Change::Allocate { stob, extent } => {
                put_head(out, KIND_ALLOCATE, 0, 0);
                put_stob(out, *stob);
                put_pair(out, extent.start, extent.count);
            }
            Change::Shared { extent, owners } => {
                put_head(out, KIND_SHARED, 0, narrow(u64::from(*owners)));
                put_pair(out, extent.start, extent.count);
            }
            Change::Page { stob, start, slot, checksum, bytes, count } => {
                put_head(out, KIND_PAGE, 0, narrow(u64::from(*count)));
                put_stob(out, *stob);
                put_pair(out, *start, *slot);
                put_words(out, *checksum, *bytes);
            }
            Change::Bits { index, slot, checksum } => {
                put_head(out, KIND_BITS, 0, 0);
                put_pair(out, *index, *slot);
                put_words(out, *checksum, 0);
            }
            Change::StobBlocks { stob, blocks } => {
                put_head(out, KIND_STOB_BLOCKS, 0, 0);
                put_stob(out, *stob);
                out.extend_from_slice(&blocks.to_le_bytes());
            }
            Change::Totals { used_blocks } => {
                put_head(out, KIND_TOTALS, 0, 0);
                out.extend_from_slice(&used_blocks.to_le_bytes());
            }
            Change::TreePut { tree, key, value } => encode_tree_put(out, *tree, key, value),
            Change::TreeDelete { tree, key } => {
                put_head(out, KIND_TREE_DELETE, key.len(), 0);
                put_tree(out, *tree);
                put_padded(out, key);
            }
        }
    }

    /// The change at the start of `bytes`, and how many bytes it has.
    pub fn decode(bytes: &[u8]) -> Result<(Change, usize), DecodeFault> {
        let mut rest = bytes;
        let head = take::<Head>(&mut rest)?;
        let kind = head.kind.get();
        let key_bytes = usize::from(head.key_bytes.get());
        let count = usize::try_from(head.count.get()).unwrap_or(usize::MAX);
        let nonsense = DecodeFault::Nonsense { kind };
        let shape_is_right = match kind {
            KIND_MAP => key_bytes == 0 && (1..=EXTENT_BLOCKS_MAX).contains(&count),
            KIND_PUNCH | KIND_STOB_DELETE | KIND_STOB_CREATE | KIND_SNAPSHOT | KIND_ALLOCATE | KIND_BITS
            | KIND_STOB_BLOCKS | KIND_TOTALS => key_bytes == 0 && count == 0,
            KIND_PAGE => key_bytes == 0 && count >= 1,
            KIND_SHARED => key_bytes == 0 && count >= 2,
            KIND_TREE_PUT => (1..=TREE_KEY_BYTES_MAX).contains(&key_bytes) && count <= TREE_VALUE_BYTES_MAX,
            KIND_TREE_DELETE => (1..=TREE_KEY_BYTES_MAX).contains(&key_bytes) && count == 0,
            _ => false,
        };
        if !shape_is_right {
            return Err(nonsense);
        }
        let change = match kind {
            KIND_MAP => {
                let stob = take_stob(&mut rest)?;
                let pair = take::<PairBytes>(&mut rest)?;
                let (start, device_start) = (pair.first.get(), pair.second.get());
                let blocks = base::units::wide(count);
                if start.checked_add(blocks).is_none() || device_start.checked_add(blocks).is_none() {
                    return Err(nonsense);
                }
                let bytes = take_padded(&mut rest, count * 4)?;
                let word = |word: &[u8]| u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                Change::Map {
                    stob,
                    start,
                    device_start,
                    checksums: bytes.chunks_exact(4).map(word).collect(),
                }
            }
            KIND_PUNCH => {
                let stob = take_stob(&mut rest)?;
                let pair = take::<PairBytes>(&mut rest)?;
                let extent = BlockExtent::new(pair.first.get(), pair.second.get()).ok_or(nonsense)?;
                Change::Punch { stob, extent }
            }
            KIND_ALLOCATE => {
                let stob = take_stob(&mut rest)?;
                let pair = take::<PairBytes>(&mut rest)?;
                let extent = BlockExtent::new(pair.first.get(), pair.second.get()).ok_or(nonsense)?;
                Change::Allocate { stob, extent }
            }
            KIND_SHARED => {
                let pair = take::<PairBytes>(&mut rest)?;
                let extent = BlockExtent::new(pair.first.get(), pair.second.get()).ok_or(nonsense)?;
                Change::Shared { extent, owners: head.count.get() }
            }
            KIND_PAGE => {
                let stob = take_stob(&mut rest)?;
                let pair = take::<PairBytes>(&mut rest)?;
                let words = take::<WordsBytes>(&mut rest)?;
                Change::Page {
                    stob,
                    start: pair.first.get(),
                    slot: pair.second.get(),
                    checksum: words.first.get(),
                    bytes: words.second.get(),
                    count: head.count.get(),
                }
            }
            KIND_BITS => {
                let pair = take::<PairBytes>(&mut rest)?;
                let words = take::<WordsBytes>(&mut rest)?;
                if words.second.get() != 0 {
                    return Err(nonsense);
                }
                Change::Bits { index: pair.first.get(), slot: pair.second.get(), checksum: words.first.get() }
            }
            KIND_STOB_BLOCKS => {
                Change::StobBlocks { stob: take_stob(&mut rest)?, blocks: take::<U64>(&mut rest)?.get() }
            }
            KIND_TOTALS => Change::Totals { used_blocks: take::<U64>(&mut rest)?.get() },
            KIND_STOB_DELETE => Change::StobDelete { stob: take_stob(&mut rest)? },
            KIND_STOB_CREATE => Change::StobCreate { stob: take_stob(&mut rest)? },
            KIND_SNAPSHOT => Change::Snapshot { from: take_stob(&mut rest)?, to: take_stob(&mut rest)? },
            _ => {
                let tree = TreeId(take::<TreeBytes>(&mut rest)?.tree.get());
                let key = take_padded(&mut rest, key_bytes)?.to_vec();
                if kind == KIND_TREE_PUT {
                    Change::TreePut { tree, key, value: take_padded(&mut rest, count)?.to_vec() }
                } else {
                    Change::TreeDelete { tree, key }
                }
            }
        };
        Ok((change, bytes.len() - rest.len()))
    }
}

/// Appends a [`Change::Map`] from its fields.
pub fn encode_map(out: &mut Vec<u8>, stob: StobId, start: u64, device_start: u64, checksums: &[u32]) {
    put_head(out, KIND_MAP, 0, checksums.len());
    put_stob(out, stob);
    put_pair(out, start, device_start);
    for checksum in checksums {
        out.extend_from_slice(&checksum.to_le_bytes());
    }
    out.resize(out.len() + padding(checksums.len() * 4, 8), 0);
}

/// Appends a [`Change::TreePut`] from its fields.
pub fn encode_tree_put(out: &mut Vec<u8>, tree: TreeId, key: &[u8], value: &[u8]) {
    put_head(out, KIND_TREE_PUT, key.len(), value.len());
    put_tree(out, tree);
    put_padded(out, key);
    put_padded(out, value);
}

// Lengths were checked against the limits when the change was made, and those fit; a saturated one would be refused on decoding.
fn put_head(out: &mut Vec<u8>, kind: u16, key_bytes: usize, count: usize) {
    let key_bytes = u16::try_from(key_bytes).unwrap_or(u16::MAX);
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    out.extend_from_slice(
        Head { kind: kind.into(), key_bytes: key_bytes.into(), count: count.into() }.as_bytes(),
    );
}

fn put_stob(out: &mut Vec<u8>, stob: StobId) {
    let bytes = StobBytes {
        container: stob.fid.container.into(),
        key: stob.fid.key.into(),
        generation: stob.generation.into(),
    };
    out.extend_from_slice(bytes.as_bytes());
}

fn put_pair(out: &mut Vec<u8>, first: u64, second: u64) {
    out.extend_from_slice(PairBytes { first: first.into(), second: second.into() }.as_bytes());
}

fn put_words(out: &mut Vec<u8>, first: u32, second: u32) {
    out.extend_from_slice(WordsBytes { first: first.into(), second: second.into() }.as_bytes());
}

fn put_tree(out: &mut Vec<u8>, tree: TreeId) {
    out.extend_from_slice(TreeBytes { tree: tree.0.into(), reserved: 0.into() }.as_bytes());
}

fn put_padded(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.resize(out.len() + padding(bytes.len(), 8), 0);
}

fn take<'bytes, T: FromBytes + KnownLayout + Immutable + Unaligned>(
    rest: &mut &'bytes [u8],
) -> Result<&'bytes T, DecodeFault> {
    let (value, after) = T::ref_from_prefix(rest).map_err(|_| DecodeFault::Incomplete)?;
    *rest = after;
    Ok(value)
}

fn take_stob(rest: &mut &[u8]) -> Result<StobId, DecodeFault> {
    let bytes = take::<StobBytes>(rest)?;
    Ok(StobId {
        fid: Fid { container: bytes.container.get(), key: bytes.key.get() },
        generation: bytes.generation.get(),
    })
}

fn take_padded<'bytes>(rest: &mut &'bytes [u8], len: usize) -> Result<&'bytes [u8], DecodeFault> {
    let padded = len.checked_add(padding(len, 8)).ok_or(DecodeFault::Incomplete)?;
    let (taken, after) = rest.split_at_checked(padded).ok_or(DecodeFault::Incomplete)?;
    *rest = after;
    Ok(&taken[..len])
}

/// CRC-32C of each 4096-byte block of `bytes`.
pub fn block_checksums(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes.chunks_exact(4096).map(crc32c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_change() -> impl Strategy<Value = Change> {
        let stob = (any::<u64>(), any::<u64>(), 0u64..5)
            .prop_map(|(container, key, generation)| StobId { fid: Fid { container, key }, generation });
        let bytes = |range| prop::collection::vec(any::<u8>(), range);
        let (stob2, stob3) = (stob.clone(), stob.clone());
        prop_oneof![
            (stob.clone(), 0..u64::MAX / 2, 0..u64::MAX / 2, prop::collection::vec(any::<u32>(), 1..20))
                .prop_map(|(stob, start, device_start, checksums)| Change::Map {
                    stob,
                    start,
                    device_start,
                    checksums
                }),
            (stob.clone(), 0..u64::MAX / 2, 0..u64::MAX / 2).prop_map(|(stob, start, count)| Change::Punch {
                stob,
                extent: BlockExtent { start, count }
            }),
            stob.clone().prop_map(|stob| Change::StobDelete { stob }),
            stob.clone().prop_map(|stob| Change::StobCreate { stob }),
            (stob.clone(), stob.clone()).prop_map(|(from, to)| Change::Snapshot { from, to }),
            (stob, 0..u64::MAX / 2, 0..u64::MAX / 2).prop_map(|(stob, start, count)| Change::Allocate {
                stob,
                extent: BlockExtent { start, count }
            }),
            (0..u64::MAX / 2, 0..u64::MAX / 2, 2..u32::MAX).prop_map(|(start, count, owners)| {
                Change::Shared { extent: BlockExtent { start, count }, owners }
            }),
            (stob2, any::<[u64; 2]>(), any::<[u32; 2]>(), 1..u32::MAX).prop_map(
                |(stob, [start, slot], [checksum, bytes], count)| Change::Page {
                    stob,
                    start,
                    slot,
                    checksum,
                    bytes,
                    count
                }
            ),
            (any::<[u64; 2]>(), any::<u32>()).prop_map(|([index, slot], checksum)| Change::Bits {
                index,
                slot,
                checksum
            }),
            (stob3, any::<u64>()).prop_map(|(stob, blocks)| Change::StobBlocks { stob, blocks }),
            any::<u64>().prop_map(|used_blocks| Change::Totals { used_blocks }),
            (any::<u32>(), bytes(1..40), bytes(0..40)).prop_map(|(tree, key, value)| Change::TreePut {
                tree: TreeId(tree),
                key,
                value
            }),
            (any::<u32>(), bytes(1..40))
                .prop_map(|(tree, key)| Change::TreeDelete { tree: TreeId(tree), key }),
        ]
    }

    proptest! {
        #[test]
        fn changes_come_back_and_prefixes_are_incomplete(change in any_change()) {
            let mut bytes = Vec::new();
            change.encode(&mut bytes);
            prop_assert_eq!(bytes.len(), change.encoded_bytes());
            prop_assert_eq!(bytes.len() % 8, 0);
            prop_assert_eq!(Change::decode(&bytes), Ok((change, bytes.len())));
            for cut in 0..bytes.len() {
                prop_assert_eq!(Change::decode(&bytes[..cut]), Err(DecodeFault::Incomplete));
            }
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0u8..16) {
            let _ = Change::decode(&bytes);
            let mut bytes = bytes;
            if bytes.len() > 2 {
                bytes[0] = kind;
                bytes[1] = 0;
                let _ = Change::decode(&bytes);
            }
        }
    }

    #[test]
    fn golden_bytes_of_a_map() {
        let stob = StobId { fid: Fid { container: 0x43 << 56 | 1, key: 2 }, generation: 3 };
        let mut bytes = Vec::new();
        Change::Map { stob, start: 4, device_start: 5, checksums: vec![6, 7, 8] }.encode(&mut bytes);
        let words: Vec<u64> =
            bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
        assert_eq!(
            words,
            [0x0000_0003_0000_0001, 0x4300_0000_0000_0001, 2, 3, 4, 5, 0x0000_0007_0000_0006, 8]
        );
    }
}
