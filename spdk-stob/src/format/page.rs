//! Pages: a header, then extents of stobs, or bits of free space. Each stands in a slot of the region of pages. docs/disk.md#pages.
//!
//! The checkpoint's stream names each page with its slot and its header's checksum, so a page that was written elsewhere, or is of an earlier
//! time, is never believed.

use base::Fid;
use base::checksum::crc32c;
use base::units::{BLOCK_BYTES, narrow, wide};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::FORMAT_VERSION;
use crate::extents::{Checksums, ExtentKey, Mapped};
use crate::limits::EXTENT_BLOCKS_MAX;
use crate::stob_id::StobId;

/// The first eight bytes of a page.
pub const PAGE_MAGIC: [u8; 8] = *b"CLOVISPG";
/// Bytes of a page's header.
pub const PAGE_HEADER_BYTES: usize = 48;
/// Bytes for each stob that has extents in a page.
pub const STOB_ROW_BYTES: u64 = 32;
/// Bytes of an extent in a page, without its checksums.
pub const EXTENT_ROW_BYTES: u64 = 16;

/// Blocks of a device are fewer than this; the bits above hold the extent's blocks.
const DEVICE_BLOCK_BITS: u32 = 48;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PageBytes {
    magic: [u8; 8],
    version: U32,
    kind: U32,
    format_id: U64,
    slot: U64,
    body_bytes: U32,
    count: U32,
    body_checksum: U32,
    checksum: U32,
}

const _: () = assert!(size_of::<PageBytes>() == PAGE_HEADER_BYTES);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct StobRow {
    container: U64,
    key: U64,
    generation: U64,
    count: U32,
    reserved: U32,
}

const _: () = assert!(size_of::<StobRow>() as u64 == STOB_ROW_BYTES);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ExtentRow {
    start: U64,
    /// Low 48 bits: first block of the device. Then 8: blocks less 1. Then 8 zero bits.
    device: U64,
}

const _: () = assert!(size_of::<ExtentRow>() as u64 == EXTENT_ROW_BYTES);

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// Extents.
    Extents,
    /// Bits of free blocks.
    Bits,
}

impl PageKind {
    const fn to_number(self) -> u32 {
        match self {
            PageKind::Extents => 1,
            PageKind::Bits => 2,
        }
    }
}

/// Which page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageName {
    /// What it holds.
    pub kind: PageKind,
    /// Which formatting.
    pub format_id: u64,
    /// Its slot.
    pub slot: u64,
}

/// Completes the page that starts at `start` of `out`: [`PAGE_HEADER_BYTES`] of anything, then its body; padded to `slot_blocks`. Gives the checksum of
/// the header.
pub fn seal(name: PageName, count: usize, slot_blocks: u64, out: &mut Vec<u8>, start: usize) -> u32 {
    let body_bytes = out.len() - start - PAGE_HEADER_BYTES;
    debug_assert!(
        wide(out.len() - start) <= slot_blocks * BLOCK_BYTES,
        "pages are split before they outgrow their slot"
    );
    out.resize(start + narrow(slot_blocks * BLOCK_BYTES), 0);
    let number = |count: usize| U32::from(u32::try_from(count).unwrap_or(u32::MAX)); // at most a slot's bytes
    let mut bytes = PageBytes {
        magic: PAGE_MAGIC,
        version: FORMAT_VERSION.into(),
        kind: name.kind.to_number().into(),
        format_id: name.format_id.into(),
        slot: name.slot.into(),
        body_bytes: number(body_bytes),
        count: number(count),
        body_checksum: crc32c(&out[start + PAGE_HEADER_BYTES..]).into(),
        checksum: 0.into(),
    };
    let checksum = crc32c(&bytes.as_bytes()[..PAGE_HEADER_BYTES - 4]);
    bytes.checksum = checksum.into();
    out[start..start + PAGE_HEADER_BYTES].copy_from_slice(bytes.as_bytes());
    checksum
}

/// The body of a page, and its count, if it is whole, the one named, and has this header.
#[must_use]
pub fn open(name: PageName, checksum: u32, page: &[u8]) -> Option<(&[u8], usize)> {
    let (bytes, padded) = PageBytes::ref_from_prefix(page).ok()?;
    let is_whole = crc32c(&bytes.as_bytes()[..PAGE_HEADER_BYTES - 4]) == bytes.checksum.get()
        && crc32c(padded) == bytes.body_checksum.get();
    let is_named = bytes.magic == PAGE_MAGIC
        && bytes.version.get() == FORMAT_VERSION
        && bytes.kind.get() == name.kind.to_number()
        && bytes.format_id.get() == name.format_id
        && bytes.slot.get() == name.slot
        && bytes.checksum.get() == checksum;
    if !is_whole || !is_named {
        return None;
    }
    let body = padded.get(..narrow(u64::from(bytes.body_bytes.get())))?;
    Some((body, narrow(u64::from(bytes.count.get()))))
}

/// Appends extents, which are in order.
pub fn encode_extents(items: &[(ExtentKey, Mapped)], out: &mut Vec<u8>) {
    for run in items.chunk_by(|left, right| left.0.stob == right.0.stob) {
        let stob = run[0].0.stob;
        let row = StobRow {
            container: stob.fid.container.into(),
            key: stob.fid.key.into(),
            generation: stob.generation.into(),
            count: u32::try_from(run.len()).unwrap_or(u32::MAX).into(), // at most a slot's
            reserved: 0.into(),
        };
        out.extend_from_slice(row.as_bytes());
        for (key, mapped) in run {
            let device = mapped.device_start | (mapped.blocks() - 1) << DEVICE_BLOCK_BITS;
            out.extend_from_slice(ExtentRow { start: key.start.into(), device: device.into() }.as_bytes());
        }
    }
    for (_, mapped) in items {
        mapped.checksums.iter().for_each(|checksum| out.extend_from_slice(&checksum.to_le_bytes()));
    }
}

/// The `count` extents of a page's body. Their order is not looked at. `None`: it makes no sense.
#[must_use]
pub fn decode_extents(body: &[u8], count: usize) -> Option<Vec<(ExtentKey, Mapped)>> {
    if count > body.len() / narrow(EXTENT_ROW_BYTES) {
        return None;
    }
    let (mut items, mut lengths) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let mut rest = body;
    while items.len() < count {
        let (row, after) = StobRow::ref_from_prefix(rest).ok()?;
        rest = after;
        let run = narrow(u64::from(row.count.get()));
        if run == 0 || run > count - items.len() || row.reserved.get() != 0 {
            return None;
        }
        let fid = Fid { container: row.container.get(), key: row.key.get() };
        let stob = StobId { fid, generation: row.generation.get() };
        for _ in 0..run {
            let (row, after) = ExtentRow::ref_from_prefix(rest).ok()?;
            rest = after;
            let (start, device) = (row.start.get(), row.device.get());
            let blocks = narrow(device >> DEVICE_BLOCK_BITS) + 1;
            if blocks > EXTENT_BLOCKS_MAX || start.checked_add(wide(blocks)).is_none() {
                return None;
            }
            let device_start = device & ((1 << DEVICE_BLOCK_BITS) - 1);
            items.push((ExtentKey { stob, start }, Mapped { device_start, checksums: Checksums::new() }));
            lengths.push(blocks);
        }
    }
    for (item, blocks) in items.iter_mut().zip(lengths) {
        let (bytes, after) = rest.split_at_checked(blocks * 4)?;
        rest = after;
        item.1.checksums = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    }
    rest.is_empty().then_some(items)
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // the numbers of tests are small
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> Vec<(ExtentKey, Mapped)> {
        let stob = |number| StobId { fid: Fid { container: 1, key: number }, generation: 3 };
        let item = |number, start, device_start, checksums: &[u32]| {
            (ExtentKey { stob: stob(number), start }, Mapped { device_start, checksums: checksums.into() })
        };
        vec![item(2, 4, 5, &[6, 7, 8]), item(2, 7, 90, &[9]), item(4, 0, 100, &[10])]
    }

    fn page(items: &[(ExtentKey, Mapped)], name: PageName) -> (Vec<u8>, u32) {
        let mut out = vec![0; 8 + PAGE_HEADER_BYTES];
        encode_extents(items, &mut out);
        let checksum = seal(name, items.len(), 2, &mut out, 8);
        (out.split_off(8), checksum)
    }

    const NAME: PageName = PageName { kind: PageKind::Extents, format_id: 0x11, slot: 9 };

    #[test]
    fn golden_bytes() {
        let (bytes, checksum) = page(&example(), NAME);
        let words: Vec<u64> =
            bytes[..168].chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
        let body_checksum = crc32c(&bytes[48..]);
        let expected = [
            u64::from_le_bytes(*b"CLOVISPG"),
            0x0000_0001_0000_0003, // kind, version
            0x11,
            9,
            0x0000_0003_0000_0084, // extents, bytes
            u64::from(body_checksum) | u64::from(checksum) << 32,
            1,
            2,
            3,
            2, // stob with two extents
            4,
            2 << 48 | 5,
            7,
            90,
            1,
            4,
            3,
            1, // stob with one
            0,
            100,
            0x0000_0007_0000_0006,
        ];
        assert_eq!(words, expected);
        assert_eq!(bytes.len(), 8192);
        let (body, count) = open(NAME, checksum, &bytes).unwrap();
        assert_eq!(decode_extents(body, count), Some(example()));
    }

    #[test]
    fn pages_open_only_under_their_name_and_whole() {
        let (bytes, checksum) = page(&example(), NAME);
        assert_eq!(open(PageName { slot: 8, ..NAME }, checksum, &bytes), None);
        assert_eq!(open(PageName { kind: PageKind::Bits, ..NAME }, checksum, &bytes), None);
        assert_eq!(open(PageName { format_id: 1, ..NAME }, checksum, &bytes), None);
        assert_eq!(open(NAME, checksum ^ 1, &bytes), None);
        for byte in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[byte] ^= 0x10;
            assert_eq!(open(NAME, checksum, &bad), None, "byte {byte}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(body in prop::collection::vec(any::<u8>(), 0..300), count in 0usize..20) {
            let _ = decode_extents(&body, count);
            let _ = open(NAME, 0, &body);
            let mut bytes = Vec::new();
            encode_extents(&example(), &mut bytes);
            let at = body.len() % bytes.len();
            bytes[at] ^= body.first().copied().unwrap_or(1);
            let _ = decode_extents(&bytes, count);
        }
    }
}
