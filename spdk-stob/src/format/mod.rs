//! The bytes on a device: superblock, log records, checkpoint pieces and pages, and the changes inside. Pure.
//!
//! docs/disk.md is the specification, 8 bytes a row, with the version ladder. All numbers are little endian; every
//! structure has magic, version and CRC-32C. Bytes from a device are untrusted: each `parse` turns them once into a type
//! that the rest of the crate may believe, and never panics.

pub mod change;
pub mod checkpoint;
pub mod page;
pub mod record;
pub mod regions;
pub mod superblock;

/// Version of every structure that is written. Steps of the ladder are in docs/disk.md.
pub const FORMAT_VERSION: u32 = 3;
/// The version before, which is still read: opening such a device makes it one of [`FORMAT_VERSION`].
pub const OLD_VERSION: u32 = 2;

/// Zero bytes up to the next multiple of `to`, a power of two.
pub(crate) const fn padding(len: usize, to: usize) -> usize {
    len.wrapping_neg() & (to - 1)
}
