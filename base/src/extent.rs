//! Extents: a start and a count, in bytes of an object or in blocks of a stob or device.

use std::fmt;

use bincode::{Decode, Encode};

use crate::units::BLOCK_BYTES;

/// A run of bytes of an object: `[start, start + count)`. Never wraps: see [`ByteExtent::new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
pub struct ByteExtent {
    /// First byte.
    pub start: u64,
    /// Number of bytes.
    pub count: u64,
}

impl ByteExtent {
    /// The extent, or `None` if its end is above 2^64-1.
    #[must_use]
    pub const fn new(start: u64, count: u64) -> Option<ByteExtent> {
        match start.checked_add(count) {
            Some(_) => Some(ByteExtent { start, count }),
            None => None,
        }
    }

    /// One past the last byte.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.count)
    }

    /// True if start and count are multiples of the block size.
    #[must_use]
    pub const fn is_block_aligned(&self) -> bool {
        self.start.is_multiple_of(BLOCK_BYTES) && self.count.is_multiple_of(BLOCK_BYTES)
    }
}

/// A run of blocks of a stob or a device: `[start, start + count)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
pub struct BlockExtent {
    /// First block.
    pub start: u64,
    /// Number of blocks.
    pub count: u64,
}

impl BlockExtent {
    /// The extent, or `None` if its end is above 2^64-1.
    #[must_use]
    pub const fn new(start: u64, count: u64) -> Option<BlockExtent> {
        match start.checked_add(count) {
            Some(_) => Some(BlockExtent { start, count }),
            None => None,
        }
    }

    /// One past the last block.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.count)
    }

    /// True if no block is in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The blocks that both extents hold, if any.
    #[must_use]
    pub fn intersection(&self, other: &BlockExtent) -> Option<BlockExtent> {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        (start < end).then(|| BlockExtent { start, count: end - start })
    }
}

impl fmt::Display for ByteExtent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}) bytes", self.start, self.end())
    }
}

impl fmt::Display for BlockExtent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}) blocks", self.start, self.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intersections_and_ends() {
        let low = BlockExtent { start: 0, count: 10 };
        let high = BlockExtent { start: 8, count: 4 };
        assert_eq!(low.intersection(&high), Some(BlockExtent { start: 8, count: 2 }));
        assert_eq!(high.intersection(&low), low.intersection(&high));
        assert_eq!(low.intersection(&BlockExtent { start: 10, count: 1 }), None);
        assert_eq!(ByteExtent::new(u64::MAX, 1), None);
        assert_eq!(BlockExtent::new(u64::MAX - 1, 1).map(|extent| extent.end()), Some(u64::MAX));
    }
}
