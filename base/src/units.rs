//! Sizes in bytes, under names.

/// 2^10 bytes.
pub const KIB: u64 = 1 << 10;
/// 2^20 bytes.
pub const MIB: u64 = 1 << 20;
/// 2^30 bytes.
pub const GIB: u64 = 1 << 30;

/// Allocation unit of a device and of a stob, and the unit of checksums: 4 KiB.
pub const BLOCK_BYTES: u64 = 4096;
/// log2 of [`BLOCK_BYTES`].
pub const BLOCK_SHIFT: u32 = 12;

/// Widens a count to u64. Every target of Clovis has 64-bit or smaller `usize`.
#[must_use]
pub const fn wide(count: usize) -> u64 {
    count as u64
}

/// Narrows a byte count that is known to fit into memory; saturates on a smaller machine, so a later bound check fails.
#[must_use]
pub fn narrow(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

const _: () = assert!(BLOCK_BYTES == 1 << BLOCK_SHIFT);
