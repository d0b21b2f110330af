//! The one table from what a domain says to what a requester is told. Pure.

use base::{BlockExtent, Fid};
use fops::FopError;
use spdk_stob::StobError;

/// What a requester is told of `error` of `device`. `first_block`: where each block of the request lies in the component
/// object, to say which block of the request was damaged on its way.
pub(crate) fn refusal(device: Fid, error: &StobError, extents: &[BlockExtent]) -> FopError {
    let reason = || error.to_string();
    match error {
        StobError::NoSpace { needed_blocks, free_blocks, .. } => {
            FopError::NoSpace { device, wanted_blocks: *needed_blocks, free_blocks: *free_blocks }
        }
        StobError::Checksum { block, .. } => {
            FopError::Checksum { device, extent: BlockExtent { start: *block, count: 1 } }
        }
        StobError::ChecksumGiven { block, .. } => {
            FopError::DamagedInTransit { block: index_in_request(extents, *block) }
        }
        StobError::OutOfRange { .. } | StobError::BadRequest(_) => FopError::BadRequest { reason: reason() },
        StobError::Closed => FopError::NotServing { reason: reason() },
        // Everything else is the device's: the requester rebuilds from the others.
        _ => FopError::Device { device, reason: reason() },
    }
}

/// Whether `error` proves that the device lost or loses bytes: control is told, and marks it failed.
pub(crate) fn is_device_loss(error: &StobError) -> bool {
    matches!(error, StobError::Device(_) | StobError::Poisoned | StobError::Damaged { .. })
}

/// Index in the request of a block of the component object, by the order of the extents.
fn index_in_request(extents: &[BlockExtent], block: u64) -> u64 {
    let mut before = 0;
    for extent in extents {
        if (extent.start..extent.end()).contains(&block) {
            return before + (block - extent.start);
        }
        before += extent.count;
    }
    before
}

#[cfg(test)]
mod tests {
    use spdk_stob::{BadRequest, Space, StobId};

    use super::*;

    #[test]
    fn each_error_has_its_answer() {
        let device = Fid::new(base::FidType::Device, 1, 1);
        let stob = StobId::default();
        let extents = [BlockExtent { start: 100, count: 4 }, BlockExtent { start: 8, count: 2 }];
        let answer = |error: StobError| refusal(device, &error, &extents);
        assert_eq!(
            answer(StobError::NoSpace {
                space: Space::Data,
                needed_blocks: 9,
                free_blocks: 3,
                total_blocks: 90
            }),
            FopError::NoSpace { device, wanted_blocks: 9, free_blocks: 3 }
        );
        assert_eq!(
            answer(StobError::Checksum { stob, block: 9 }),
            FopError::Checksum { device, extent: BlockExtent { start: 9, count: 1 } }
        );
        assert_eq!(
            answer(StobError::ChecksumGiven { stob, block: 9 }),
            FopError::DamagedInTransit { block: 5 }
        );
        assert!(matches!(answer(StobError::BadRequest(BadRequest::Condition)), FopError::BadRequest { .. }));
        assert!(matches!(answer(StobError::Poisoned), FopError::Device { .. }));
        assert!(matches!(answer(StobError::Closed), FopError::NotServing { .. }));
        assert!(is_device_loss(&StobError::Poisoned));
        assert!(!is_device_loss(&StobError::Checksum { stob, block: 9 }), "one bad block is rebuilt alone");
        assert!(!is_device_loss(&StobError::Closed));
    }
}
