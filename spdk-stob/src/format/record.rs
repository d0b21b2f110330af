//! Log records: a 64-byte header, then changes, padded with zeros to a whole block. docs/disk.md#log.
//!
//! A record belongs to the log only in its place: its position, its sequence number and the header checksum of the
//! record before it must be the expected ones. So nothing left over from an earlier lap, from a dropped tail or from an earlier
//! formatting is ever replayed.

use base::checksum::crc32c;
use base::units::{BLOCK_BYTES, narrow, wide};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::superblock::LogPosition;
use super::{FORMAT_VERSION, OLD_VERSION, padding};
use crate::limits::RECORD_BYTES_MAX;

/// The first eight bytes of a record.
pub const RECORD_MAGIC: [u8; 8] = *b"CLOVISLR";
/// Bytes of the header.
pub const RECORD_HEADER_BYTES: usize = 64;

/// What a record is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// The changes of one group of transactions.
    Group,
    /// Written and flushed at each open: what follows the recovered log is overwritten, never replayed later.
    Barrier,
    /// Written, unflushed, some time after the last group was flushed: its data need not be doubted any more.
    Confirm,
}

impl RecordKind {
    const fn to_number(self) -> u16 {
        match self {
            RecordKind::Group => 1,
            RecordKind::Barrier => 2,
            RecordKind::Confirm => 3,
        }
    }

    const fn from_number(number: u16) -> Option<RecordKind> {
        match number {
            1 => Some(RecordKind::Group),
            2 => Some(RecordKind::Barrier),
            3 => Some(RecordKind::Confirm),
            _ => None,
        }
    }
}

/// A record's header, believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Version of the format.
    pub version: u32,
    /// What it is for.
    pub kind: RecordKind,
    /// Which formatting of the device it belongs to.
    pub format_id: u64,
    /// Its place.
    pub position: LogPosition,
    /// Drawn at each open.
    pub incarnation: u64,
    /// Bytes of changes after the header.
    pub body_bytes: u32,
    /// Changes.
    pub change_count: u32,
    /// CRC-32C of the body and of the padding after it.
    pub body_checksum: u32,
    /// CRC-32C of the header: the next record carries it.
    pub checksum: u32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HeaderBytes {
    magic: [u8; 8],
    version: U16,
    kind: U16,
    body_bytes: U32,
    format_id: U64,
    sequence: U64,
    block: U64,
    previous: U32,
    body_checksum: U32,
    incarnation: U64,
    change_count: U32,
    checksum: U32,
}

const _: () = assert!(size_of::<HeaderBytes>() == RECORD_HEADER_BYTES);

impl RecordHeader {
    /// Blocks of the whole record.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        (wide(RECORD_HEADER_BYTES) + u64::from(self.body_bytes)).div_ceil(BLOCK_BYTES)
    }

    /// The place after this record.
    #[must_use]
    pub fn next(&self) -> LogPosition {
        LogPosition {
            block: self.position.block + self.blocks(),
            sequence: self.position.sequence + 1,
            previous: self.checksum,
        }
    }

    /// Reads a header from the start of a block: shape and checksum of the header only.
    #[must_use]
    pub fn parse(block: &[u8]) -> Option<RecordHeader> {
        let (bytes, _) = HeaderBytes::ref_from_prefix(block).ok()?;
        let version = u32::from(bytes.version.get());
        if bytes.magic != RECORD_MAGIC || (version != FORMAT_VERSION && version != OLD_VERSION) {
            return None;
        }
        let checksum = crc32c(&bytes.as_bytes()[..RECORD_HEADER_BYTES - 4]);
        let fits = narrow(u64::from(bytes.body_bytes.get())) <= RECORD_BYTES_MAX - RECORD_HEADER_BYTES;
        if checksum != bytes.checksum.get() || !fits {
            return None;
        }
        Some(RecordHeader {
            version,
            kind: RecordKind::from_number(bytes.kind.get())?,
            format_id: bytes.format_id.get(),
            position: LogPosition {
                block: bytes.block.get(),
                sequence: bytes.sequence.get(),
                previous: bytes.previous.get(),
            },
            incarnation: bytes.incarnation.get(),
            body_bytes: bytes.body_bytes.get(),
            change_count: bytes.change_count.get(),
            body_checksum: bytes.body_checksum.get(),
            checksum,
        })
    }

    /// The changes of a record whose bytes (all its blocks) are `record`, if its body is whole.
    #[must_use]
    pub fn body<'bytes>(&self, record: &'bytes [u8]) -> Option<&'bytes [u8]> {
        let padded = record.get(RECORD_HEADER_BYTES..narrow(self.blocks() * BLOCK_BYTES))?;
        (crc32c(padded) == self.body_checksum).then(|| &padded[..narrow(u64::from(self.body_bytes))])
    }
}

/// What the writer of a record knows before it is encoded.
#[derive(Clone, Copy, Debug)]
pub struct RecordStart {
    /// What it is for.
    pub kind: RecordKind,
    /// Which formatting.
    pub format_id: u64,
    /// Its place.
    pub position: LogPosition,
    /// Drawn at this open.
    pub incarnation: u64,
    /// Changes in the body.
    pub change_count: u32,
}

/// Completes `record`, which holds [`RECORD_HEADER_BYTES`] of anything and then the changes: pads it to blocks and fills the
/// header in. Returns the header.
pub fn seal(start: RecordStart, record: &mut Vec<u8>) -> RecordHeader {
    let body_bytes = record.len() - RECORD_HEADER_BYTES;
    record.resize(record.len() + padding(record.len(), narrow(BLOCK_BYTES)), 0);
    let mut bytes = HeaderBytes {
        magic: RECORD_MAGIC,
        // Both are small by construction: the version is 3 and a body is below RECORD_BYTES_MAX.
        version: u16::try_from(FORMAT_VERSION).unwrap_or(u16::MAX).into(),
        kind: start.kind.to_number().into(),
        body_bytes: u32::try_from(body_bytes).unwrap_or(u32::MAX).into(),
        format_id: start.format_id.into(),
        sequence: start.position.sequence.into(),
        block: start.position.block.into(),
        previous: start.position.previous.into(),
        body_checksum: crc32c(&record[RECORD_HEADER_BYTES..]).into(),
        incarnation: start.incarnation.into(),
        change_count: start.change_count.into(),
        checksum: 0.into(),
    };
    let checksum = crc32c(&bytes.as_bytes()[..RECORD_HEADER_BYTES - 4]);
    bytes.checksum = checksum.into();
    record[..RECORD_HEADER_BYTES].copy_from_slice(bytes.as_bytes());
    RecordHeader {
        version: FORMAT_VERSION,
        kind: start.kind,
        format_id: start.format_id,
        position: start.position,
        incarnation: start.incarnation,
        body_bytes: bytes.body_bytes.get(),
        change_count: start.change_count,
        body_checksum: bytes.body_checksum.get(),
        checksum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> (RecordHeader, Vec<u8>) {
        let start = RecordStart {
            kind: RecordKind::Group,
            format_id: 0x1122_3344_5566_7788,
            position: LogPosition { block: 10, sequence: 3, previous: 0xabcd },
            incarnation: 0x99,
            change_count: 1,
        };
        let mut record = vec![0; RECORD_HEADER_BYTES];
        record.extend_from_slice(&[5; 8]);
        (seal(start, &mut record), record)
    }

    #[test]
    fn golden_bytes() {
        let (header, record) = example();
        let words: Vec<u64> =
            record[..72].chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
        assert_eq!(
            words,
            [
                u64::from_le_bytes(*b"CLOVISLR"),
                0x0000_0008_0001_0003, // body bytes, kind, version
                0x1122_3344_5566_7788,
                3,
                10,
                0x0000_0000_0000_abcd | u64::from(header.body_checksum) << 32,
                0x99,
                1 | u64::from(header.checksum) << 32,
                0x0505_0505_0505_0505,
            ]
        );
        assert_eq!((header.body_checksum, header.checksum), (0x459f_dcc3, 0xe192f97d));
        assert_eq!(record.len(), 4096);
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let (header, record) = example();
        assert_eq!(RecordHeader::parse(&record), Some(header));
        assert_eq!(header.body(&record), Some(&[5; 8][..]));
        for bit in (0..record.len() * 8).step_by(7) {
            let mut bad = record.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let seen = RecordHeader::parse(&bad).is_none_or(|header| header.body(&bad).is_none());
            assert!(seen, "bit {bit}");
        }
        assert_eq!(header.body(&record[..4000]), None);
        assert_eq!(RecordHeader::parse(&record[..63]), None);
    }
}
