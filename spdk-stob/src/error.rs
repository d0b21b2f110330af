//! What can go wrong with a domain, sorted by blame. Numbers are carried; the text says what to do.

use base::{Blame, Blamed, BlockExtent, Fid};

use crate::backend::DeviceError;
use crate::stob_id::StobId;

/// Which space ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Blocks for data.
    Data,
    /// Room in the checkpoint area for the extent map and the trees.
    Metadata,
}

impl std::fmt::Display for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Space::Data => "blocks of data",
            Space::Metadata => "blocks of metadata",
        })
    }
}

/// Why an operation on a domain failed. Clone: one failed group answers all its transactions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StobError {
    /// Not enough space; nothing was changed.
    #[error(
        "no space: {needed_blocks} {space} are needed, {free_blocks} of {total_blocks} are free; delete objects or add devices"
    )]
    NoSpace {
        /// Which space.
        space: Space,
        /// Blocks asked for.
        needed_blocks: u64,
        /// Blocks free.
        free_blocks: u64,
        /// Blocks in all.
        total_blocks: u64,
    },
    /// The bytes read are not those that were written.
    #[error("block {block} of stob {stob} does not match its checksum: rebuild it from parity")]
    Checksum {
        /// The stob.
        stob: StobId,
        /// Block of the stob.
        block: u64,
    },
    /// The bytes given to write do not match the checksums given with them: they were damaged on their way.
    #[error("block {block} given for stob {stob} does not match the checksum given with it: send it again")]
    ChecksumGiven {
        /// The stob.
        stob: StobId,
        /// Block of the stob.
        block: u64,
    },
    /// The device answered an error.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// An earlier write or flush failed, so nobody knows what is on the device.
    #[error("an earlier write or flush of this device failed; it takes no writes until it is opened again")]
    Poisoned,
    /// The domain was closed.
    #[error("the domain is closed")]
    Closed,
    /// An extent ends above the last block of a stob, 2^64-1.
    #[error("{count} blocks from block {start} end past the last block of a stob")]
    OutOfRange {
        /// First block.
        start: u64,
        /// Blocks.
        count: u64,
    },
    /// The request is malformed.
    #[error("bad request: {0}")]
    BadRequest(BadRequest),
    /// Neither superblock copy was ever written: not formatted, or cut short while formatting.
    #[error("the device is not formatted (or formatting was cut short): format it first")]
    NotFormatted,
    /// It holds something, but nothing of ours.
    #[error(
        "the device holds data that is not of Clovis (it begins with {first_bytes:02x?}): choose another or erase it"
    )]
    Foreign {
        /// What stands where the magic should.
        first_bytes: [u8; 8],
    },
    /// `format` does not erase a formatted device.
    #[error(
        "the device is formatted already, as {device} of cluster {cluster:#x}: erase it first if its data may go"
    )]
    AlreadyFormatted {
        /// The device's fid.
        device: Fid,
        /// Its cluster.
        cluster: u64,
    },
    /// Formatted by a version that this program does not read.
    #[error(
        "the device has format version {found}, this program reads {supported}: {}",
        if found > supported { "use a newer program" } else { "upgrade the device with the program that wrote it (docs/disk.md)" }
    )]
    Version {
        /// Version on the device.
        found: u32,
        /// The one version this program reads.
        supported: u32,
    },
    /// The device became smaller.
    #[error("the device has {found_blocks} blocks, its superblock says {expected_blocks}: it was truncated")]
    Truncated {
        /// Blocks in the superblock.
        expected_blocks: u64,
        /// Blocks there are.
        found_blocks: u64,
    },
    /// Too small to format.
    #[error("the device has {found_blocks} blocks of 4 KiB, at least {needed_blocks} are needed")]
    TooSmall {
        /// Blocks needed.
        needed_blocks: u64,
        /// Blocks there are.
        found_blocks: u64,
    },
    /// The device is another one than the configuration says.
    #[error("the device is {found}, expected {expected}: check which path belongs to which device")]
    WrongDevice {
        /// The fid asked for.
        expected: Fid,
        /// The fid on the device.
        found: Fid,
    },
    /// The device was formatted for another cluster.
    #[error(
        "the device belongs to cluster {found:#x}, not {expected:#x}: check its path, or erase it if its data may go"
    )]
    OtherCluster {
        /// The cluster asked for.
        expected: u64,
        /// The cluster on the device.
        found: u64,
    },
    /// Metadata on the device contradicts its checksums or itself.
    #[error("the device's metadata is damaged ({what}): take the device out and rebuild it")]
    Damaged {
        /// What was found.
        what: Damage,
    },
    /// Another process has the device open.
    #[error("{path} is in use by another process")]
    Busy {
        /// The path as given.
        path: String,
    },
    /// The device file cannot be opened or made.
    #[error("{path}: {reason}")]
    Open {
        /// The path as given.
        path: String,
        /// What the operating system said.
        reason: String,
    },
}

/// What is damaged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// No valid copy.
    #[error("both superblock copies fail their checksum")]
    Superblocks,
    /// The regions of the superblock overlap or end past the device.
    #[error("the superblock's regions contradict each other")]
    Regions,
    /// A piece of the checkpoint.
    #[error("piece {piece} of the checkpoint")]
    Checkpoint {
        /// Index of the piece.
        piece: u32,
    },
    /// A page of extents or of free space.
    #[error("the page in slot {slot}")]
    Page {
        /// Its slot.
        slot: u64,
    },
    /// A record is gone, though a later one proves that it was flushed.
    #[error("log record {sequence}, though record {later} was written after it was flushed")]
    Log {
        /// The record that is missing.
        sequence: u64,
        /// The record that proves it.
        later: u64,
    },
    /// A record or checkpoint passes its checksum but makes no sense.
    #[error("an entry of kind {kind} that makes no sense")]
    Entry {
        /// The kind as found.
        kind: u16,
    },
    /// Two owners of one block.
    #[error("device {extent} have two owners or lie outside the data area")]
    Owners {
        /// The blocks.
        extent: BlockExtent,
    },
}

/// What is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadRequest {
    /// Not a whole number of blocks.
    #[error("piece {piece} has {bytes} bytes, not a multiple of 4096 above 0")]
    Unaligned {
        /// Index of the piece.
        piece: usize,
        /// Its bytes.
        bytes: usize,
    },
    /// One checksum per block is needed.
    #[error("{given} checksums were given for {blocks} blocks")]
    ChecksumCount {
        /// Checksums given.
        given: usize,
        /// Blocks given.
        blocks: usize,
    },
    /// Two pieces of one write share a block.
    #[error("block {block} is in two pieces of one write")]
    Overlap {
        /// A shared block.
        block: u64,
    },
    /// More than one buffer holds.
    #[error("an extent of {blocks} blocks is more than the {max} that one part holds, or empty")]
    PartLength {
        /// Blocks asked for.
        blocks: u64,
        /// Most per part.
        max: u64,
    },
    /// Key or value too long.
    #[error(
        "a key of {key_bytes} or a value of {value_bytes} bytes is longer than allowed (1 to {key_max}, {value_max})"
    )]
    TreeEntry {
        /// Bytes of the key.
        key_bytes: usize,
        /// Bytes of the value.
        value_bytes: usize,
        /// Longest key.
        key_max: usize,
        /// Longest value.
        value_max: usize,
    },
    /// A transaction has to fit into one log record.
    #[error(
        "a transaction of {bytes} bytes is more than the {max} that one log record of this device holds: split it"
    )]
    TransactionBytes {
        /// Bytes of its changes.
        bytes: usize,
        /// Most a record holds.
        max: usize,
    },
    /// A condition of the transaction does not hold (any more).
    #[error("a key that the transaction requires unchanged has changed: read it again and decide again")]
    Condition,
}

impl Blamed for StobError {
    fn blame(&self) -> Blame {
        match self {
            StobError::OutOfRange { .. } | StobError::BadRequest(_) | StobError::ChecksumGiven { .. } => {
                Blame::Caller
            }
            _ => Blame::Environment,
        }
    }

    fn may_retry(&self) -> bool {
        matches!(self, StobError::Busy { .. } | StobError::ChecksumGiven { .. })
    }
}
