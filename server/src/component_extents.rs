//! Extents, segments and checksums of a request on a component object: hostile until they are a [`ComponentExtents`]. Pure.

use base::limits::{BULK_SEGMENTS_MAX, REQUEST_BULK_BYTES_MAX};
use base::units::{BLOCK_BYTES, wide};
use base::{BlockExtent, Fid, FidType};
use fops::FopError;

/// Blocks that one request may name.
pub(crate) const REQUEST_BLOCKS_MAX: u64 = REQUEST_BULK_BYTES_MAX / BLOCK_BYTES;

/// Extents that are in bounds: 1 to `BULK_SEGMENTS_MAX`, none empty, none wraps, no two share a block, at most
/// [`REQUEST_BLOCKS_MAX`] blocks in all. In the request's order, which is that of the segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ComponentExtents {
    extents: Vec<BlockExtent>,
    blocks: u64,
}

fn bad(reason: String) -> FopError {
    FopError::BadRequest { reason }
}

/// Whether a fid names a component object.
pub(crate) fn check_component(component: Fid) -> Result<(), FopError> {
    if component.is(FidType::Component) {
        Ok(())
    } else {
        Err(bad(format!("{component} is not the fid of a component object (type byte 0x43)")))
    }
}

impl ComponentExtents {
    /// The only way from a request's fields to extents that a domain is given.
    pub(crate) fn parse(component: Fid, extents: Vec<BlockExtent>) -> Result<ComponentExtents, FopError> {
        check_component(component)?;
        if extents.is_empty() || extents.len() > BULK_SEGMENTS_MAX {
            return Err(bad(format!("{} extents; 1 to {BULK_SEGMENTS_MAX} are allowed", extents.len())));
        }
        let mut blocks = 0u64;
        for extent in &extents {
            if extent.is_empty() || BlockExtent::new(extent.start, extent.count).is_none() {
                return Err(bad(format!(
                    "{} blocks from {} are none, or end above 2^64-1",
                    extent.count, extent.start
                )));
            }
            blocks = blocks.saturating_add(extent.count);
        }
        if blocks > REQUEST_BLOCKS_MAX {
            return Err(bad(format!("{blocks} blocks; {REQUEST_BLOCKS_MAX} are allowed in one request")));
        }
        let mut sorted = extents.clone();
        sorted.sort_unstable();
        for pair in sorted.windows(2) {
            if let [low, high] = pair
                && low.intersection(high).is_some()
            {
                return Err(bad(format!("extents {low} and {high} overlap")));
            }
        }
        Ok(ComponentExtents { extents, blocks })
    }

    pub(crate) fn as_slice(&self) -> &[BlockExtent] {
        &self.extents
    }

    /// One checksum for each block.
    pub(crate) fn check_checksums(&self, checksums: &[u32]) -> Result<(), FopError> {
        if wide(checksums.len()) == self.blocks {
            Ok(())
        } else {
            Err(bad(format!("{} checksums for {} blocks", checksums.len(), self.blocks)))
        }
    }

    /// One segment for each extent, as long as the extent. `what`: source or sink.
    pub(crate) fn check_segments(
        &self,
        what: &'static str,
        lengths: impl ExactSizeIterator<Item = u64>,
    ) -> Result<(), FopError> {
        if lengths.len() != self.extents.len() {
            return Err(bad(format!("{} {what} segments for {} extents", lengths.len(), self.extents.len())));
        }
        for (index, (extent, length)) in self.extents.iter().zip(lengths).enumerate() {
            if extent.count * BLOCK_BYTES != length {
                return Err(bad(format!(
                    "{what} segment {index} has {length} bytes, its extent {}",
                    extent.count * BLOCK_BYTES
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(extents: &[(u64, u64)]) -> Result<ComponentExtents, FopError> {
        let component = Fid::new(FidType::Component, 1, 2);
        ComponentExtents::parse(
            component,
            extents.iter().map(|(start, count)| BlockExtent { start: *start, count: *count }).collect(),
        )
    }

    #[test]
    fn good_extents_keep_their_order() {
        let extents = parse(&[(8, 2), (0, 4), (4, 4)]).unwrap();
        assert_eq!(extents.blocks, 10);
        assert_eq!(extents.as_slice()[0].start, 8);
        extents.check_checksums(&[0; 10]).unwrap();
        extents.check_segments("source", [8192, 16384, 16384].into_iter()).unwrap();
        parse(&[(u64::MAX - 1, 1)]).unwrap();
        parse(&[(0, REQUEST_BLOCKS_MAX)]).unwrap();
    }

    #[test]
    fn hostile_extents_are_refused() {
        let many: Vec<(u64, u64)> = (0..=wide(BULK_SEGMENTS_MAX)).map(|index| (index, 1)).collect();
        for (extents, reason) in [
            (&[][..], "0 extents"),
            (&many[..], "65 extents"),
            (&[(5, 0)], "0 blocks from 5"),
            (&[(u64::MAX, 2)], "end above"),
            (&[(0, u64::MAX)], "are allowed in one request"),
            (&[(0, u64::MAX), (1, u64::MAX - 1)], "are allowed in one request"),
            (&[(0, REQUEST_BLOCKS_MAX + 1)], "257 blocks"),
            (&[(8, 4), (0, 9)], "overlap"),
            (&[(3, 1), (3, 1)], "overlap"),
        ] {
            let error = parse(extents).unwrap_err().to_string();
            assert!(error.contains(reason), "{extents:?}: {error}");
        }
        let object = Fid::new(FidType::Object, 1, 2);
        assert!(ComponentExtents::parse(object, vec![BlockExtent { start: 0, count: 1 }]).is_err());
        let extents = parse(&[(8, 2), (0, 4)]).unwrap();
        assert!(extents.check_checksums(&[0; 5]).is_err());
        assert!(extents.check_segments("sink", [8192].into_iter()).is_err());
        assert!(extents.check_segments("sink", [16384, 8192].into_iter()).is_err());
    }
}
