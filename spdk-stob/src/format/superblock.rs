//! The superblock: what the device is, where its regions are, and from where recovery starts.
//!
//! 256 bytes at the start of its block, so that a 512-byte sector holds it whole; written to block 0, flushed, then
//! to the last block. docs/disk.md#superblock.

use base::checksum::crc32c;
use base::{BlockExtent, Fid};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::regions::Regions;
use super::{FORMAT_VERSION, OLD_VERSION};

/// The first eight bytes of a device of ours.
pub const SUPERBLOCK_MAGIC: [u8; 8] = *b"CLOVISSB";
/// Bytes of the superblock.
pub const SUPERBLOCK_BYTES: usize = 256;

/// A place in the log: what the next record has to say to be the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPosition {
    /// Blocks written since formatting; modulo the log's size it is the place in the ring.
    pub block: u64,
    /// Sequence number of the record there.
    pub sequence: u64,
    /// Header checksum of the record before.
    pub previous: u32,
}

/// The superblock, believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Version of the format.
    pub version: u32,
    /// Drawn when formatting: records and checkpoints of an older formatting never match.
    pub format_id: u64,
    /// The device.
    pub device: Fid,
    /// Its cluster.
    pub cluster: u64,
    /// Higher is newer.
    pub sequence: u64,
    /// Where things are.
    pub regions: Regions,
    /// Which checkpoint area holds the state, 0 or 1.
    pub checkpoint_area: u32,
    /// Bytes of the checkpoint's stream of changes.
    pub checkpoint_bytes: u64,
    /// From where the log continues that state.
    pub replay: LogPosition,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SuperblockBytes {
    magic: [u8; 8],
    version: U32,
    block_bytes: U32,
    format_id: U64,
    device_container: U64,
    device_key: U64,
    cluster: U64,
    sequence: U64,
    size_blocks: U64,
    log_start: U64,
    log_blocks: U64,
    checkpoint_starts: [U64; 2],
    checkpoint_blocks: U64,
    data_start: U64,
    data_blocks: U64,
    checkpoint_area: U32,
    replay_previous: U32,
    checkpoint_bytes: U64,
    replay_block: U64,
    replay_sequence: U64,
    pages_start: U64,
    pages_blocks: U64,
    slot_blocks: U32,
    reserved_slot: U32,
    reserved: [U64; 9],
    reserved_end: U32,
    checksum: U32,
}

const _: () = assert!(size_of::<SuperblockBytes>() == SUPERBLOCK_BYTES);

/// Why bytes are not a superblock that this program may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuperblockFault {
    /// All zero: never written.
    Blank,
    /// Another magic.
    Magic([u8; 8]),
    /// Ours, but the checksum fails.
    Checksum,
    /// Ours and whole, of another version.
    Version(u32),
    /// Ours and whole, but the regions make no sense.
    Regions,
}

impl Superblock {
    /// The bytes on the device.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; SUPERBLOCK_BYTES] {
        let regions = &self.regions;
        let mut bytes = SuperblockBytes {
            magic: SUPERBLOCK_MAGIC,
            version: self.version.into(),
            block_bytes: 4096.into(),
            format_id: self.format_id.into(),
            device_container: self.device.container.into(),
            device_key: self.device.key.into(),
            cluster: self.cluster.into(),
            sequence: self.sequence.into(),
            size_blocks: regions.size_blocks.into(),
            log_start: regions.log.start.into(),
            log_blocks: regions.log.count.into(),
            checkpoint_starts: [regions.checkpoints[0].start.into(), regions.checkpoints[1].start.into()],
            checkpoint_blocks: regions.checkpoints[0].count.into(),
            data_start: regions.data.start.into(),
            data_blocks: regions.data.count.into(),
            checkpoint_area: self.checkpoint_area.into(),
            replay_previous: self.replay.previous.into(),
            checkpoint_bytes: self.checkpoint_bytes.into(),
            replay_block: self.replay.block.into(),
            replay_sequence: self.replay.sequence.into(),
            pages_start: regions.pages.start.into(),
            pages_blocks: regions.pages.count.into(),
            // At most SLOT_BLOCKS_MAX.
            slot_blocks: u32::try_from(regions.slot_blocks).unwrap_or(u32::MAX).into(),
            reserved_slot: 0.into(),
            reserved: [0.into(); 9],
            reserved_end: 0.into(),
            checksum: 0.into(),
        };
        let checksum = crc32c(&bytes.as_bytes()[..SUPERBLOCK_BYTES - 4]);
        bytes.checksum = checksum.into();
        zerocopy::transmute!(bytes)
    }

    /// Reads a superblock from the start of a block.
    pub fn parse(block: &[u8]) -> Result<Superblock, SuperblockFault> {
        let Ok((bytes, _)) = SuperblockBytes::ref_from_prefix(block) else {
            return Err(SuperblockFault::Blank);
        };
        if bytes.magic != SUPERBLOCK_MAGIC {
            let blank = bytes.as_bytes().iter().all(|byte| *byte == 0);
            return Err(if blank { SuperblockFault::Blank } else { SuperblockFault::Magic(bytes.magic) });
        }
        if crc32c(&bytes.as_bytes()[..SUPERBLOCK_BYTES - 4]) != bytes.checksum.get() {
            return Err(SuperblockFault::Checksum);
        }
        let version = bytes.version.get();
        if version != FORMAT_VERSION && version != OLD_VERSION {
            return Err(SuperblockFault::Version(version));
        }
        let extent = |start: U64, count: U64| BlockExtent { start: start.get(), count: count.get() };
        let regions = Regions {
            size_blocks: bytes.size_blocks.get(),
            log: extent(bytes.log_start, bytes.log_blocks),
            checkpoints: bytes.checkpoint_starts.map(|start| extent(start, bytes.checkpoint_blocks)),
            pages: extent(bytes.pages_start, bytes.pages_blocks),
            slot_blocks: u64::from(bytes.slot_blocks.get()),
            data: extent(bytes.data_start, bytes.data_blocks),
        };
        if (version == OLD_VERSION) != (regions.slot_blocks == 0) {
            return Err(SuperblockFault::Regions);
        }
        let regions = regions.checked().ok_or(SuperblockFault::Regions)?;
        let superblock = Superblock {
            version,
            format_id: bytes.format_id.get(),
            device: Fid { container: bytes.device_container.get(), key: bytes.device_key.get() },
            cluster: bytes.cluster.get(),
            sequence: bytes.sequence.get(),
            regions,
            checkpoint_area: bytes.checkpoint_area.get(),
            checkpoint_bytes: bytes.checkpoint_bytes.get(),
            replay: LogPosition {
                block: bytes.replay_block.get(),
                sequence: bytes.replay_sequence.get(),
                previous: bytes.replay_previous.get(),
            },
        };
        let fits =
            superblock.checkpoint_bytes <= super::checkpoint::stream_bytes_max(regions.checkpoints[0].count);
        let numbers_have_room = superblock.sequence < u64::MAX / 2
            && superblock.replay.block < u64::MAX / 2
            && superblock.replay.sequence < u64::MAX / 2;
        if superblock.checkpoint_area > 1 || !fits || bytes.block_bytes.get() != 4096 || !numbers_have_room {
            return Err(SuperblockFault::Regions);
        }
        Ok(superblock)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use base::FidType;

    pub(crate) fn example() -> Superblock {
        Superblock {
            version: FORMAT_VERSION,
            format_id: 0x1122_3344_5566_7788,
            device: Fid::new(FidType::Device, 1, 2),
            cluster: 0xc1,
            sequence: 9,
            regions: Regions::for_device(16384).unwrap(),
            checkpoint_area: 1,
            checkpoint_bytes: 1000,
            replay: LogPosition { block: 77, sequence: 5, previous: 0xdead_beef },
        }
    }

    #[test]
    fn golden_bytes() {
        let bytes = example().to_bytes();
        let words: Vec<u64> =
            bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
        let mut expected = [0u64; 32];
        expected[..23].copy_from_slice(&[
            u64::from_le_bytes(*b"CLOVISSB"),
            0x0000_1000_0000_0003, // block bytes, version
            0x1122_3344_5566_7788,
            0x6b00_0000_0000_0001, // device: type 'k'
            2,
            0xc1,
            9,
            16384,
            256,  // log start
            1024, // log blocks: 4 MiB
            1280, // checkpoint A
            1664, // checkpoint B
            384,  // checkpoint blocks: 1.5 MiB
            2304, // data start
            14079,
            0xdead_beef_0000_0001, // previous checksum, area
            1000,
            77,
            5,
            2048, // pages
            256,
            4, // blocks of a slot
            0,
        ]);
        expected[31] = 0x7029_b8b3_0000_0000; // checksum
        assert_eq!(words, expected);
        assert_eq!(Superblock::parse(&bytes), Ok(example()));
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let good = example().to_bytes();
        for bit in 0..SUPERBLOCK_BYTES * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::parse(&bad).is_err(), "bit {bit}");
        }
        assert_eq!(Superblock::parse(&[0; 4096]), Err(SuperblockFault::Blank));
        assert_eq!(Superblock::parse(&[7; 10]), Err(SuperblockFault::Blank), "too short for anything");
        assert_eq!(Superblock::parse(&[7; 4096]), Err(SuperblockFault::Magic([7; 8])));
    }

    #[test]
    fn other_versions_are_told_apart_from_damage() {
        let mut bytes = example().to_bytes();
        bytes[8] = 4;
        let checksum = crc32c(&bytes[..SUPERBLOCK_BYTES - 4]);
        bytes[SUPERBLOCK_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(Superblock::parse(&bytes), Err(SuperblockFault::Version(4)));
    }
}
