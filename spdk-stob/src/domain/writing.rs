//! The way of a write: verify, reserve extents, write the data there, then hand the transaction to the committer.
//!
//! Once the device has the first byte, the write goes on whether its future lives or not: the reservation belongs to
//! the [`DataWrite`], and ends only when the device is done.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use base::BlockExtent;
use base::checksum::crc32c;
use base::units::{BLOCK_BYTES, narrow, wide};
use runtime::SharedBuffer;

use super::commit::{Queued, Work};
use super::{Domain, Shared, WritePiece};
use crate::backend::{DeviceError, WriteParts};
use crate::error::{BadRequest, StobError};
use crate::format::change::Change;
use crate::limits::{EXTENT_BLOCKS_MAX, operation_bytes_max};
use crate::stob_id::StobId;
use crate::trace::TraceEvent;

/// Data on its way to the device, and the transaction that follows it.
pub(super) struct DataWrite {
    shared: Rc<Shared>,
    left: Cell<usize>,
    error: RefCell<Option<DeviceError>>,
    transaction: RefCell<Option<Queued>>,
}

impl DataWrite {
    /// One device operation of this write has completed.
    pub(super) fn on_done(&self, result: Result<(), DeviceError>) {
        if let Err(error) = result {
            self.error.borrow_mut().get_or_insert(error);
        }
        self.left.set(self.left.get().saturating_sub(1));
        if self.left.get() > 0 {
            return;
        }
        let Some(transaction) = self.transaction.take() else { return };
        match self.error.take() {
            None => {
                self.shared.note(TraceEvent::DataWritten { transaction: transaction.number });
                self.shared.enqueue(Work::Commit(transaction));
            }
            Some(error) => {
                // What the blocks hold is unknown, so they stay reserved until the device is opened again.
                self.shared.poison();
                transaction.answer(Err(error.into()));
            }
        }
    }
}

struct Layout {
    operations: Vec<(u64, WriteParts)>,
    changes: Vec<Change>,
}

/// Spreads `pieces`, in their order, over `extents` of the device.
fn lay_out(stob: StobId, pieces: &[WritePiece], checksums: &[u32], extents: &[BlockExtent]) -> Layout {
    let mut layout = Layout { operations: Vec::new(), changes: Vec::new() };
    let mut extents: VecDeque<BlockExtent> = extents.iter().copied().collect();
    let mut checksums = checksums;
    // Where the device operation, and the map change, end that may still grow.
    let (mut operation_end, mut operation_bytes) = (None, 0);
    let (mut map_end, mut map_blocks) = (None, 0);
    for piece in pieces {
        let mut done_bytes = 0;
        while done_bytes < piece.data.len() {
            // Reserved were exactly as many blocks as the pieces have.
            let Some(extent) = extents.front_mut() else { break };
            let starts_operation =
                operation_end != Some(extent.start) || operation_bytes == operation_bytes_max();
            if starts_operation {
                operation_bytes = 0;
            }
            let room_bytes = operation_bytes_max() - operation_bytes;
            let take_bytes =
                (piece.data.len() - done_bytes).min(narrow(extent.count * BLOCK_BYTES)).min(room_bytes);
            let part = piece.data.slice(done_bytes..done_bytes + take_bytes);
            match layout.operations.last_mut() {
                Some((_, parts)) if !starts_operation => parts.push(part),
                _ => layout.operations.push((extent.start, WriteParts::from_iter([part]))),
            }
            let (mut stob_start, mut device_start) =
                (piece.start_block + wide(done_bytes) / BLOCK_BYTES, extent.start);
            let mut blocks = narrow(wide(take_bytes) / BLOCK_BYTES);
            while blocks > 0 {
                let starts_map =
                    map_end != Some((stob_start, device_start)) || map_blocks == EXTENT_BLOCKS_MAX;
                if starts_map {
                    map_blocks = 0;
                }
                let count = blocks.min(EXTENT_BLOCKS_MAX - map_blocks);
                let (taken, rest) = checksums.split_at(count);
                checksums = rest;
                match layout.changes.last_mut() {
                    Some(Change::Map { checksums, .. }) if !starts_map => checksums.extend_from_slice(taken),
                    _ => layout.changes.push(Change::Map {
                        stob,
                        start: stob_start,
                        device_start,
                        checksums: taken.to_vec(),
                    }),
                }
                stob_start += wide(count);
                device_start += wide(count);
                blocks -= count;
                map_blocks += count;
                map_end = Some((stob_start, device_start));
            }
            done_bytes += take_bytes;
            operation_bytes += take_bytes;
            let taken_blocks = wide(take_bytes) / BLOCK_BYTES;
            extent.start += taken_blocks;
            extent.count -= taken_blocks;
            operation_end = Some(extent.start);
            if extent.is_empty() {
                extents.pop_front();
            }
        }
    }
    layout
}

/// Blocks of `pieces`, if they are well formed, apart from each other, and match `checksums`.
fn checked_blocks(stob: StobId, pieces: &[WritePiece], checksums: &[u32]) -> Result<u64, StobError> {
    let mut blocks = 0;
    let mut places = Vec::with_capacity(pieces.len());
    for (index, piece) in pieces.iter().enumerate() {
        let bytes = piece.data.len();
        if bytes == 0 || !wide(bytes).is_multiple_of(BLOCK_BYTES) {
            return Err(StobError::BadRequest(BadRequest::Unaligned { piece: index, bytes }));
        }
        let count = wide(bytes) / BLOCK_BYTES;
        let extent = BlockExtent::new(piece.start_block, count)
            .ok_or(StobError::OutOfRange { start: piece.start_block, count })?;
        places.push(extent);
        blocks += count;
    }
    if wide(checksums.len()) != blocks {
        return Err(StobError::BadRequest(BadRequest::ChecksumCount {
            given: checksums.len(),
            blocks: narrow(blocks),
        }));
    }
    places.sort_unstable();
    if let Some(pair) = places.windows(2).find(|pair| pair[0].end() > pair[1].start) {
        return Err(StobError::BadRequest(BadRequest::Overlap { block: pair[1].start }));
    }
    let mut checksums = checksums.iter();
    for piece in pieces {
        for ((bytes, block), checksum) in blocks_of(&piece.data).zip(piece.start_block..).zip(&mut checksums)
        {
            if crc32c(bytes) != *checksum {
                return Err(StobError::ChecksumGiven { stob, block });
            }
        }
    }
    Ok(blocks)
}

pub(super) fn blocks_of(data: &SharedBuffer) -> impl Iterator<Item = &[u8]> + '_ {
    data.chunks_exact(narrow(BLOCK_BYTES))
}

impl Domain {
    /// Writes `pieces` in one transaction: after `Ok` all of them are durable, after an error none of them will be seen (a
    /// device error leaves that open until the device was opened again).
    ///
    /// `checksums`: one CRC-32C per block, in the order of the pieces; verified against the bytes, stored, and verified again when
    /// read. Nothing is copied. Waits while too many transactions are under way, and for space that is about to be free.
    /// A future dropped early may or may not have its effect, as a whole. Errors: [`StobError::BadRequest`],
    /// [`StobError::ChecksumGiven`], [`StobError::NoSpace`] (nothing changed), [`StobError::Device`], [`StobError::Poisoned`].
    pub async fn write(
        &self,
        stob: StobId,
        pieces: Vec<WritePiece>,
        checksums: &[u32],
    ) -> Result<(), StobError> {
        let shared = &self.shared;
        let blocks = checked_blocks(stob, &pieces, checksums)?;
        if blocks == 0 {
            return shared.check_writable();
        }
        let permit = shared.permits.acquire(1).await;
        let extents = self.reserve(stob, &pieces, blocks).await?;
        let layout = lay_out(stob, &pieces, checksums, &extents);
        drop(pieces);
        let (transaction, receiver) = match Queued::new(shared, layout.changes, Vec::new(), extents, permit) {
            Ok(made) => made,
            Err((error, extents)) => {
                shared.unreserve(&extents);
                return Err(error);
            }
        };
        let data_write = Rc::new(DataWrite {
            shared: Rc::clone(shared),
            left: Cell::new(layout.operations.len()),
            error: RefCell::new(None),
            transaction: RefCell::new(Some(transaction)),
        });
        for (start_block, parts) in layout.operations {
            shared.device.submit_data(start_block, parts, &data_write);
        }
        drop(data_write);
        receiver.await.unwrap_or(Err(StobError::Closed))
    }

    async fn reserve(
        &self,
        stob: StobId,
        pieces: &[WritePiece],
        blocks: u64,
    ) -> Result<Vec<BlockExtent>, StobError> {
        let shared = &self.shared;
        loop {
            shared.check_writable()?;
            let (extents, may_become_free) = {
                let mut state = shared.state.borrow_mut();
                let kept = pieces.iter().flat_map(|piece| state.metadata.kept_inside(stob, piece.extent()));
                let kept_blocks = kept.map(|extent| extent.count).sum();
                let extents = state.reserve(blocks, kept_blocks, lane(stob));
                #[cfg(test)]
                if shared.is_mutated(super::mutation::Mutation::DoubledExtent) {
                    for extent in extents.iter().flatten() {
                        assert!(state.free.release(*extent));
                    }
                }
                let refusal = state.no_space(blocks);
                let is_busy = shared.in_flight.get() > 0 || state.limbo_blocks() > 0;
                (extents.ok_or(refusal), is_busy)
            };
            match extents {
                Ok(extents) => return Ok(extents),
                Err(_) if may_become_free => shared.space_freed.notified().await,
                Err(refusal) => return Err(refusal),
            }
        }
    }
}

/// Where a stob's blocks are looked for first: stobs written at once stay apart.
fn lane(stob: StobId) -> u64 {
    (stob.fid.container ^ stob.fid.key ^ stob.generation).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // the numbers of tests are small
mod tests {
    use super::*;
    use runtime::{Arena, ArenaConfig};

    #[test]
    fn pieces_spread_over_extents_and_neighbours_share_operations() {
        let arena = Arena::new(ArenaConfig { capacity_bytes: 16 << 20 }).unwrap();
        let piece = |start_block, blocks: usize| WritePiece {
            start_block,
            data: arena.try_alloc(blocks * 4096).unwrap().freeze(),
        };
        let stob = StobId::default();
        let pieces = [piece(10, 3), piece(13, 2), piece(40, 2)];
        let extents = [BlockExtent { start: 100, count: 4 }, BlockExtent { start: 200, count: 3 }];
        let layout = lay_out(stob, &pieces, &[0, 1, 2, 3, 4, 5, 6], &extents);
        let operations: Vec<_> = layout
            .operations
            .iter()
            .map(|(start, parts)| (*start, parts.iter().map(|p| p.len() / 4096).collect()))
            .collect();
        assert_eq!(operations, [(100, vec![3, 1]), (200, vec![1, 2])]);
        let map = |start, device_start, checksums: &[u32]| Change::Map {
            stob,
            start,
            device_start,
            checksums: checksums.to_vec(),
        };
        assert_eq!(layout.changes, [map(10, 100, &[0, 1, 2, 3]), map(14, 200, &[4]), map(40, 201, &[5, 6])]);
    }

    #[test]
    fn long_writes_are_cut_into_operations_of_a_mebibyte() {
        let arena = Arena::new(ArenaConfig { capacity_bytes: 16 << 20 }).unwrap();
        let pieces: Vec<WritePiece> = (0..3u64)
            .map(|index| WritePiece {
                start_block: index * 200,
                data: arena.try_alloc(200 * 4096).unwrap().freeze(),
            })
            .collect();
        let checksums: Vec<u32> = (0..600).collect();
        let layout =
            lay_out(StobId::default(), &pieces, &checksums, &[BlockExtent { start: 1000, count: 600 }]);
        let operations: Vec<(u64, usize)> = layout
            .operations
            .iter()
            .map(|(start, parts)| (*start, parts.iter().map(|part| part.len() / 4096).sum()))
            .collect();
        assert_eq!(operations, [(1000, 256), (1256, 256), (1512, 88)]);
        let mut all = Vec::new();
        for change in &layout.changes {
            let Change::Map { start, device_start, checksums, .. } = change else { panic!("{change:?}") };
            assert_eq!((*device_start - 1000, *start), (all.len() as u64, all.len() as u64));
            assert!(checksums.len() <= EXTENT_BLOCKS_MAX);
            all.extend_from_slice(checksums);
        }
        assert_eq!(all, checksums);
    }
}
