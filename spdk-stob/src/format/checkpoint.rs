//! Checkpoints: the metadata, and where its pages are, as a stream of changes, cut anywhere into pieces with a header each.
//! docs/disk.md#checkpoint.

use base::checksum::crc32c;
use base::units::{BLOCK_BYTES, narrow, wide};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::padding;
use crate::limits::DEVICE_OPERATION_BLOCKS_MAX;

/// The first eight bytes of a piece.
pub const CHECKPOINT_MAGIC: [u8; 8] = *b"CLOVISCP";
/// Bytes of a piece's header.
pub const PIECE_HEADER_BYTES: usize = 48;
/// Blocks of a whole piece.
pub const PIECE_BLOCKS: u64 = DEVICE_OPERATION_BLOCKS_MAX;
/// Bytes of the stream that a whole piece holds.
#[allow(clippy::cast_possible_truncation)] // one buffer of an arena
pub const PIECE_BODY_BYTES: usize = (PIECE_BLOCKS * BLOCK_BYTES) as usize - PIECE_HEADER_BYTES;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PieceBytes {
    magic: [u8; 8],
    version: U32,
    index: U32,
    format_id: U64,
    sequence: U64,
    body_bytes: U32,
    body_checksum: U32,
    reserved: U32,
    checksum: U32,
}

const _: () = assert!(size_of::<PieceBytes>() == PIECE_HEADER_BYTES);

/// Which piece of which checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceName {
    /// Version of the format.
    pub version: u32,
    /// Which formatting.
    pub format_id: u64,
    /// Sequence of the superblock that names the checkpoint.
    pub sequence: u64,
    /// Index of the piece.
    pub index: u32,
}

/// Bytes of stream that an area of `area_blocks` holds.
#[must_use]
pub const fn stream_bytes_max(area_blocks: u64) -> u64 {
    let whole = area_blocks / PIECE_BLOCKS * PIECE_BODY_BYTES as u64;
    let rest = (area_blocks % PIECE_BLOCKS * BLOCK_BYTES).saturating_sub(PIECE_HEADER_BYTES as u64);
    whole + rest
}

/// Blocks of a piece with `body_bytes` of the stream.
#[must_use]
pub const fn piece_blocks(body_bytes: usize) -> u64 {
    (PIECE_HEADER_BYTES as u64 + body_bytes as u64).div_ceil(BLOCK_BYTES)
}

/// Completes `piece`, which holds [`PIECE_HEADER_BYTES`] of anything and then at most [`PIECE_BODY_BYTES`] of the stream.
pub fn seal(name: PieceName, piece: &mut Vec<u8>) {
    let body_bytes = piece.len() - PIECE_HEADER_BYTES;
    piece.resize(piece.len() + padding(piece.len(), narrow(BLOCK_BYTES)), 0);
    let mut bytes = PieceBytes {
        magic: CHECKPOINT_MAGIC,
        version: name.version.into(),
        index: name.index.into(),
        format_id: name.format_id.into(),
        sequence: name.sequence.into(),
        // At most PIECE_BODY_BYTES, far below 4 GiB.
        body_bytes: u32::try_from(body_bytes).unwrap_or(u32::MAX).into(),
        body_checksum: crc32c(&piece[PIECE_HEADER_BYTES..]).into(),
        reserved: 0.into(),
        checksum: 0.into(),
    };
    let checksum = crc32c(&bytes.as_bytes()[..PIECE_HEADER_BYTES - 4]);
    bytes.checksum = checksum.into();
    piece[..PIECE_HEADER_BYTES].copy_from_slice(bytes.as_bytes());
}

/// The stream bytes of `piece`, if it is whole and the one named, and holds exactly `body_bytes`.
#[must_use]
pub fn open(name: PieceName, body_bytes: usize, piece: &[u8]) -> Option<&[u8]> {
    let (bytes, padded) = PieceBytes::ref_from_prefix(piece).ok()?;
    let is_whole = crc32c(&bytes.as_bytes()[..PIECE_HEADER_BYTES - 4]) == bytes.checksum.get()
        && crc32c(padded) == bytes.body_checksum.get();
    let is_named = bytes.magic == CHECKPOINT_MAGIC
        && bytes.version.get() == name.version
        && bytes.index.get() == name.index
        && bytes.format_id.get() == name.format_id
        && bytes.sequence.get() == name.sequence
        && u64::from(bytes.body_bytes.get()) == wide(body_bytes);
    if is_whole && is_named { padded.get(..body_bytes) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_open_only_under_their_name() {
        let name = PieceName { version: 3, format_id: 1, sequence: 2, index: 3 };
        let mut piece = vec![0; PIECE_HEADER_BYTES];
        piece.extend_from_slice(b"twelve bytes");
        seal(name, &mut piece);
        assert_eq!(wide(piece.len()), piece_blocks(12) * BLOCK_BYTES);
        assert_eq!(open(name, 12, &piece), Some(&b"twelve bytes"[..]));
        assert_eq!(open(PieceName { sequence: 1, ..name }, 12, &piece), None);
        assert_eq!(open(PieceName { version: 2, ..name }, 12, &piece), None);
        assert_eq!(open(PieceName { index: 0, ..name }, 12, &piece), None);
        assert_eq!(open(name, 13, &piece), None);
        for byte in 0..piece.len() {
            let mut bad = piece.clone();
            bad[byte] ^= 0x10;
            assert_eq!(open(name, 12, &bad), None, "byte {byte}");
        }
    }

    #[test]
    fn areas_hold_what_their_pieces_hold() {
        assert_eq!(stream_bytes_max(1), 4096 - 48);
        assert_eq!(stream_bytes_max(256), wide(PIECE_BODY_BYTES));
        assert_eq!(stream_bytes_max(257), wide(PIECE_BODY_BYTES) + 4096 - 48);
    }
}
