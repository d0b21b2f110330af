//! Packs the unit pieces of many groups into few requests: one list for each target, cut at a request's bytes and segments. Pure.

use std::collections::BTreeMap;

use base::limits::{BULK_SEGMENTS_MAX, REQUEST_BULK_BYTES_MAX};
use base::units::BLOCK_BYTES;

/// Where a piece goes: blocks of the component object on a target, and the caller's own mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetPiece<T> {
    /// Target index.
    pub target: u32,
    /// Blocks of the component object there.
    pub extent: base::BlockExtent,
    /// Whatever the caller needs to find the piece again.
    pub tag: T,
}

/// One request's worth of pieces, all of one target, in the order they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<T> {
    /// Target index.
    pub target: u32,
    /// At most [`BULK_SEGMENTS_MAX`], together at most [`REQUEST_BULK_BYTES_MAX`] bytes.
    pub pieces: Vec<TargetPiece<T>>,
}

/// Packs `pieces`. Each piece is at most [`REQUEST_BULK_BYTES_MAX`] long. Batches that fill up come first, in the order of
/// their last piece, then what is left by target: the start of an extent is on the wire first.
#[must_use]
pub fn pack<T>(pieces: impl IntoIterator<Item = TargetPiece<T>>) -> Vec<Batch<T>> {
    let blocks_max = REQUEST_BULK_BYTES_MAX / BLOCK_BYTES;
    let mut full = Vec::new();
    let mut open: BTreeMap<u32, (u64, Vec<TargetPiece<T>>)> = BTreeMap::new();
    for piece in pieces {
        let target = piece.target;
        let (blocks, waiting) = open.entry(target).or_default();
        if *blocks + piece.extent.count > blocks_max || waiting.len() == BULK_SEGMENTS_MAX {
            full.push(Batch { target, pieces: std::mem::take(waiting) });
            *blocks = 0;
        }
        *blocks += piece.extent.count;
        waiting.push(piece);
    }
    full.extend(open.into_iter().map(|(target, (_, pieces))| Batch { target, pieces }));
    full.retain(|batch| !batch.pieces.is_empty());
    full
}

#[cfg(test)]
mod tests {
    use base::BlockExtent;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn batches_hold_every_piece_once_within_the_bounds(pieces in proptest::collection::vec((0u32..4, 1u64..=256), 0..300)) {
            let tagged = pieces.iter().enumerate().map(|(tag, (target, count))| TargetPiece {
                target: *target,
                extent: BlockExtent { start: 0, count: *count },
                tag,
            });
            let batches = pack(tagged);
            let mut seen = Vec::new();
            for batch in &batches {
                prop_assert!(!batch.pieces.is_empty() && batch.pieces.len() <= BULK_SEGMENTS_MAX);
                let blocks: u64 = batch.pieces.iter().map(|piece| piece.extent.count).sum();
                prop_assert!(blocks * BLOCK_BYTES <= REQUEST_BULK_BYTES_MAX);
                prop_assert!(batch.pieces.iter().all(|piece| piece.target == batch.target));
                seen.extend(batch.pieces.iter().map(|piece| piece.tag));
            }
            // No more requests than a greedy packer needs: two neighbours of one target never fit into one.
            for target in 0..4 {
                let mine: Vec<_> = batches.iter().filter(|batch| batch.target == target).collect();
                for pair in mine.windows(2) {
                    let blocks: u64 = pair[0].pieces.iter().chain(&pair[1].pieces[..1]).map(|piece| piece.extent.count).sum();
                    prop_assert!(blocks * BLOCK_BYTES > REQUEST_BULK_BYTES_MAX || pair[0].pieces.len() == BULK_SEGMENTS_MAX);
                }
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..pieces.len()).collect::<Vec<_>>());
        }
    }
}
