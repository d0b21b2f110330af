//! Bulk descriptors: what a requester puts into its request so that the server can move the bulk.
//!
//! On the wire: cookie (8), key (8), segment count (2), reserved (2), then 4 bytes of length per segment; little endian.

use base::limits::{BUFFER_BYTES_MAX, BULK_SEGMENTS_MAX};
use smallvec::SmallVec;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Names one exposure of one machine: slot and generation, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BulkCookie(pub(crate) u64);

/// Exposed memory of a requester, as a value that travels in its request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BulkDescriptor {
    pub(crate) cookie: BulkCookie,
    pub(crate) key: u64,
    pub(crate) segments: SmallVec<[u32; 16]>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawDescriptor {
    cookie: U64,
    key: U64,
    segment_count: U16,
    reserved: U16,
}

/// Bytes of a descriptor without its segment lengths.
pub const DESCRIPTOR_HEAD_BYTES: usize = 20;
/// Bytes of the longest descriptor.
pub const DESCRIPTOR_BYTES_MAX: usize = DESCRIPTOR_HEAD_BYTES + 4 * BULK_SEGMENTS_MAX;
const _: () = assert!(size_of::<RawDescriptor>() == DESCRIPTOR_HEAD_BYTES);

/// Why bytes are not a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseDescriptorError {
    /// Not the length that the segment count asks for.
    #[error("a bulk descriptor of {segment_count} segments in {bytes} bytes")]
    Length {
        /// Segments announced.
        segment_count: usize,
        /// Bytes given.
        bytes: usize,
    },
    /// No segment or too many.
    #[error("{segment_count} bulk segments: from 1 to {BULK_SEGMENTS_MAX} are allowed")]
    SegmentCount {
        /// Segments announced.
        segment_count: usize,
    },
    /// A segment of no bytes or more than a buffer.
    #[error("bulk segment {segment_index} has {bytes} bytes: from 1 to {BUFFER_BYTES_MAX} are allowed")]
    SegmentLength {
        /// Which one.
        segment_index: usize,
        /// Its length.
        bytes: u32,
    },
    /// Reserved bytes are not zero.
    #[error("reserved bytes of a bulk descriptor are not zero")]
    Reserved,
}

impl BulkDescriptor {
    /// What names the exposure to [`crate::TransferMachine::retract`].
    #[must_use]
    pub const fn cookie(&self) -> BulkCookie {
        self.cookie
    }

    /// Bytes of all segments.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.segments.iter().map(|bytes| u64::from(*bytes)).sum()
    }

    /// Length of each segment in bytes.
    #[must_use]
    pub fn segment_lengths(&self) -> &[u32] {
        &self.segments
    }

    /// The bytes on the wire.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let segment_count = u16::try_from(self.segments.len()).unwrap_or(u16::MAX);
        let head = RawDescriptor {
            cookie: self.cookie.0.into(),
            key: self.key.into(),
            segment_count: segment_count.into(),
            reserved: 0.into(),
        };
        let mut bytes = Vec::with_capacity(DESCRIPTOR_HEAD_BYTES + 4 * self.segments.len());
        bytes.extend_from_slice(head.as_bytes());
        for length in &self.segments {
            bytes.extend_from_slice(&length.to_le_bytes());
        }
        bytes
    }

    /// Parses a descriptor that fills `bytes` exactly. Hostile input gives an error.
    ///
    /// # Errors
    /// See [`ParseDescriptorError`].
    pub fn parse(bytes: &[u8]) -> Result<BulkDescriptor, ParseDescriptorError> {
        let (head, rest) = RawDescriptor::read_from_prefix(bytes)
            .map_err(|_| ParseDescriptorError::Length { segment_count: 0, bytes: bytes.len() })?;
        let segment_count = usize::from(head.segment_count.get());
        if segment_count == 0 || segment_count > BULK_SEGMENTS_MAX {
            return Err(ParseDescriptorError::SegmentCount { segment_count });
        }
        if rest.len() != 4 * segment_count {
            return Err(ParseDescriptorError::Length { segment_count, bytes: bytes.len() });
        }
        if head.reserved.get() != 0 {
            return Err(ParseDescriptorError::Reserved);
        }
        let mut segments = SmallVec::new();
        for (segment_index, raw) in rest.chunks_exact(4).enumerate() {
            let bytes = U32::read_from_bytes(raw).map_or(0, U32::get);
            if bytes == 0 || u64::from(bytes) > BUFFER_BYTES_MAX {
                return Err(ParseDescriptorError::SegmentLength { segment_index, bytes });
            }
            segments.push(bytes);
        }
        Ok(BulkDescriptor { cookie: BulkCookie(head.cookie.get()), key: head.key.get(), segments })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_bytes_of_a_descriptor() {
        let descriptor = BulkDescriptor {
            cookie: BulkCookie(0x0102_0304_0506_0708),
            key: 0x1112_1314_1516_1718,
            segments: SmallVec::from_slice(&[4096, 65536]),
        };
        let bytes = descriptor.to_bytes();
        let golden: [u8; 28] = [
            8, 7, 6, 5, 4, 3, 2, 1, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11, 2, 0, 0, 0, 0, 16, 0, 0,
            0, 0, 1, 0,
        ];
        assert_eq!(bytes, golden);
        assert_eq!(BulkDescriptor::parse(&bytes), Ok(descriptor));
    }

    #[test]
    fn wrong_descriptors_are_refused() {
        let good = BulkDescriptor { cookie: BulkCookie(1), key: 2, segments: SmallVec::from_slice(&[4096]) };
        let bytes = good.to_bytes();
        let refuse = |at: usize, value: u8| {
            let mut wrong = bytes.clone();
            wrong[at] = value;
            BulkDescriptor::parse(&wrong)
        };
        assert!(matches!(refuse(16, 0), Err(ParseDescriptorError::SegmentCount { .. })));
        assert!(matches!(refuse(16, 65), Err(ParseDescriptorError::SegmentCount { .. })));
        assert!(matches!(refuse(16, 2), Err(ParseDescriptorError::Length { .. })));
        assert!(matches!(refuse(18, 1), Err(ParseDescriptorError::Reserved)));
        assert!(matches!(refuse(21, 0), Err(ParseDescriptorError::SegmentLength { bytes: 0, .. })));
        assert!(matches!(refuse(23, 1), Err(ParseDescriptorError::SegmentLength { .. })));
        assert!(BulkDescriptor::parse(&bytes[..19]).is_err());
    }

    proptest! {
        #[test]
        fn random_descriptors_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(descriptor) = BulkDescriptor::parse(&bytes) {
                prop_assert_eq!(descriptor.to_bytes(), bytes);
            }
        }
    }
}
