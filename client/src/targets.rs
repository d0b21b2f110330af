//! Moves pieces of component objects between this client and many targets at once, packed into few requests.
//!
//! Reads: each piece's bytes land in a buffer of the arena, are checked against the stored checksums (end to end) and handed
//! on without a copy. Writes: the caller's slices go out as they are; acknowledged means durable on every device that is in
//! service. Bounds and windows: `Store::call`. Failures stay with the piece that they hit.

use std::collections::BTreeSet;

use base::checksum::crc32c;
use base::units::{BLOCK_BYTES, narrow, wide};
use base::{BlockExtent, FidType, Instant};
use faces::rm::Hold;
use fops::FopError;
use fops::component::{ComponentRead, ComponentWrite};
use fops::conf::DeviceEvidence;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rpc::Bulk;
use runtime::SharedBuffer;

use crate::batch::{Batch, TargetPiece, pack};
use crate::error::Fault;
use crate::limits;
use crate::store::{ComponentName, Store, is_in_service};

/// What a read of one piece brought.
pub(crate) enum PieceRead {
    /// Verified bytes, and for each block whether it was never written (then its bytes are zeros).
    Read {
        /// As long as the piece.
        bytes: SharedBuffer,
        /// By block.
        absent: Vec<bool>,
    },
    /// It cannot be had from this target.
    Lost(Fault),
    /// Another piece of the same request was damaged; ask for this one again.
    AskAgain,
}

/// A piece to write: its bytes, and which unit it is.
#[derive(Clone)]
pub(crate) struct WriteBody {
    /// As long as the piece's extent.
    pub bytes: SharedBuffer,
    /// CRC-32C by block, of these bytes.
    pub checksums: Vec<u32>,
    /// Parity group.
    pub group: u64,
    /// Unit of the group.
    pub unit: u32,
}

impl WriteBody {
    pub(crate) fn new(bytes: SharedBuffer, group: u64, unit: u32) -> WriteBody {
        WriteBody { checksums: checksums(&bytes), bytes, group, unit }
    }
}

/// CRC-32C of each block.
pub(crate) fn checksums(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(narrow(BLOCK_BYTES)).map(crc32c).collect()
}

/// Reads all pieces; outcomes come with their tags, in no particular order.
pub(crate) async fn read<T: Clone>(
    store: &Store,
    name: ComponentName,
    pieces: impl IntoIterator<Item = TargetPiece<T>>,
    deadline: Instant,
) -> Vec<(T, PieceRead)> {
    let mut batches = pack(pieces);
    // A short read is one request: it needs no set of futures and none of its allocations.
    if batches.len() == 1
        && let Some(only) = batches.pop()
    {
        return read_batch(store, name, only, deadline).await;
    }
    let mut requests: FuturesUnordered<_> =
        batches.into_iter().map(|batch| read_batch(store, name, batch, deadline)).collect();
    let mut outcomes = Vec::new();
    while let Some(outcome) = requests.next().await {
        outcomes.extend(outcome);
    }
    outcomes
}

async fn read_batch<T: Clone>(
    store: &Store,
    name: ComponentName,
    batch: Batch<T>,
    deadline: Instant,
) -> Vec<(T, PieceRead)> {
    let extents: Vec<BlockExtent> = batch.pieces.iter().map(|piece| piece.extent).collect();
    let answer = store
        .call(
            batch.target,
            async |device| {
                let mut sink = Vec::with_capacity(extents.len());
                for extent in &extents {
                    sink.push(store.locality.arena().alloc(narrow(extent.count * BLOCK_BYTES)).await);
                }
                let fop = ComponentRead {
                    device: device.device,
                    component: name.component,
                    generation: name.generation,
                    extents: extents.clone(),
                };
                (fop, Bulk { source: Vec::new(), sink })
            },
            store.request_deadline(deadline),
        )
        .await;
    let outcomes: Vec<PieceRead> = match answer {
        Ok(answer) => judge_answer(&extents, &answer.reply.checksums, &answer.reply.absent, answer.sink),
        Err(fault) => {
            if let Ok(device) = store.device(batch.target)
                && fault.is_device_error()
            {
                store.report(device.device, DeviceEvidence::IoError).await;
            }
            spread_fault(&extents, &fault)
        }
    };
    batch.pieces.into_iter().map(|piece| piece.tag).zip(outcomes).collect()
}

/// Takes a server's answer apart. It is a peer's word: counts are checked, checksums computed again.
fn judge_answer(
    extents: &[BlockExtent],
    stored: &[u32],
    absent: &[BlockExtent],
    sink: Vec<SharedBuffer>,
) -> Vec<PieceRead> {
    let blocks: u64 = extents.iter().map(|extent| extent.count).sum();
    let fits = wide(stored.len()) == blocks
        && sink.len() == extents.len()
        && extents.iter().zip(&sink).all(|(extent, bytes)| wide(bytes.len()) == extent.count * BLOCK_BYTES);
    if !fits {
        let fault = Fault::BadAnswer { reason: "it carries another number of blocks" };
        return extents.iter().map(|_| PieceRead::Lost(fault.clone())).collect();
    }
    let mut rest = stored;
    extents
        .iter()
        .zip(sink)
        .map(|(extent, bytes)| {
            let (expected, later) = rest.split_at(narrow(extent.count)); // as many as all extents have blocks
            rest = later;
            let mut blocks = expected.iter().zip(bytes.chunks(narrow(BLOCK_BYTES)));
            if let Some(index) = blocks.position(|(expected, block)| *expected != crc32c(block)) {
                return PieceRead::Lost(Fault::Checksum { block: extent.start + wide(index) });
            }
            PieceRead::Read { bytes, absent: absent_flags(*extent, absent) }
        })
        .collect()
}

/// One flag for each block of `extent`.
fn absent_flags(extent: BlockExtent, absent: &[BlockExtent]) -> Vec<bool> {
    let mut flags = vec![false; narrow(extent.count)];
    for hole in absent.iter().filter_map(|hole| hole.intersection(&extent)) {
        flags[narrow(hole.start - extent.start)..narrow(hole.end() - extent.start)].fill(true);
    }
    flags
}

/// A refused request hits all of its pieces, unless the server said which blocks are damaged: the others are asked for again.
fn spread_fault(extents: &[BlockExtent], fault: &Fault) -> Vec<PieceRead> {
    let damaged = match fault.refusal() {
        Some(FopError::Checksum { extent, .. }) => Some(*extent),
        _ => None,
    };
    let hits = |extent: &BlockExtent| damaged.is_none_or(|damaged| damaged.intersection(extent).is_some());
    let somebody = extents.iter().any(hits);
    extents
        .iter()
        .map(|extent| {
            // An answer that names blocks nobody asked for hits everybody, or the same request would go out for ever.
            if hits(extent) || !somebody { PieceRead::Lost(fault.clone()) } else { PieceRead::AskAgain }
        })
        .collect()
}

/// Writes all pieces. Returns once each device in service has them durable, with the targets that were out of service: their pieces are
/// skipped (the caller counts them against K). Errors: each request that failed for good, as (target, first piece's group and unit, fault).
pub(crate) async fn write(
    store: &Store,
    name: ComponentName,
    pieces: impl IntoIterator<Item = TargetPiece<WriteBody>>,
    deadline: Instant,
) -> Result<BTreeSet<u32>, Vec<(u32, (u64, u32), Fault)>> {
    let mut requests: FuturesUnordered<_> =
        pack(pieces).into_iter().map(|batch| write_batch(store, name, batch, deadline)).collect();
    let (mut failures, mut skipped) = (Vec::new(), BTreeSet::new());
    while let Some(outcome) = requests.next().await {
        match outcome {
            Ok(target) => skipped.extend(target),
            Err(failure) => failures.push(failure),
        }
    }
    if failures.is_empty() { Ok(skipped) } else { Err(failures) }
}

/// Answer: the target, if it was skipped.
async fn write_batch(
    store: &Store,
    name: ComponentName,
    batch: Batch<WriteBody>,
    deadline: Instant,
) -> Result<Option<u32>, (u32, (u64, u32), Fault)> {
    let mut wait = limits::RETRY_WAIT_MIN;
    let mut credit: Option<Hold> = None;
    loop {
        let fault = match write_once(store, name, &batch, deadline).await {
            Ok(done) => {
                // As for a whole write: it may have come too late for whoever copies.
                return match (is_void(credit.as_ref()), done) {
                    (true, _) => Err((batch.target, first_of(&batch), Fault::CreditEnded)),
                    (false, true) => Ok(None),
                    (false, false) => Ok(Some(batch.target)),
                };
            }
            Err(fault) => fault,
        };
        let first = first_of(&batch);
        if let Ok(device) = store.device(batch.target)
            && fault.is_device_error()
        {
            // If control agrees that the device is gone, the write goes on without it.
            store.report(device.device, DeviceEvidence::IoError).await;
        }
        let in_service = store.device(batch.target).is_ok_and(|device| is_in_service(device.state));
        if !in_service {
            return Ok(Some(batch.target));
        }
        if !fault.may_retry() || !store.wait_to_retry(&mut wait, deadline).await {
            return Err((batch.target, first, fault));
        }
        if credit.is_none() && matches!(fault.refusal(), Some(FopError::Stale { .. })) {
            // A repair, or a rebalance, began while this was under way. Its bytes stand, beside the credit that a change needs now.
            let object = name.component.with_type(FidType::Object);
            let asked = store.writing_credit(object, None).await;
            credit = asked.map_err(|_| (batch.target, first, Fault::HoldLost))?;
            // Or over by now, for whoever slept through it.
            let has_moves = !store.configuration().pools.versions.is_empty();
            if has_moves && store.has_left(object, name.generation).await {
                return Err((batch.target, first, Fault::Moved));
            }
        }
    }
}

/// True if the credit that a change was made beside ended before the change did: whoever copies may have read before it, and what was written is written where it
/// may count no more. Control lends what is lost to others at once, as nothing fences a shared credit.
pub(crate) fn is_void(beside_copies: Option<&Hold>) -> bool {
    beside_copies.is_some_and(|hold| hold.check().is_err())
}

/// Group and unit of the first piece.
fn first_of(batch: &Batch<WriteBody>) -> (u64, u32) {
    batch.pieces.first().map_or((0, 0), |piece| (piece.tag.group, piece.tag.unit))
}

/// One try. False: the device left service before the request went out.
async fn write_once(
    store: &Store,
    name: ComponentName,
    batch: &Batch<WriteBody>,
    deadline: Instant,
) -> Result<bool, Fault> {
    if !is_in_service(store.device(batch.target)?.state) {
        return Ok(false);
    }
    let make = async |device: &faces::DeviceConfig| {
        let fop = ComponentWrite {
            device: device.device,
            component: name.component,
            generation: name.generation,
            extents: batch.pieces.iter().map(|piece| piece.extent).collect(),
            checksums: batch.pieces.iter().flat_map(|piece| piece.tag.checksums.iter().copied()).collect(),
        };
        let source = batch.pieces.iter().map(|piece| piece.tag.bytes.clone()).collect();
        (fop, Bulk { source, sink: Vec::new() })
    };
    store.change(batch.target, make, store.request_deadline(deadline)).await.map(|_durable| true)
}

#[cfg(test)]
mod tests {
    use base::Fid;
    use runtime::{Arena, ArenaConfig};
    use std::sync::Arc;

    use super::*;

    const EXTENTS: [BlockExtent; 2] =
        [BlockExtent { start: 10, count: 2 }, BlockExtent { start: 40, count: 1 }];

    fn sink(arena: &Arena) -> Vec<SharedBuffer> {
        EXTENTS
            .iter()
            .map(|extent| {
                let mut buffer = arena.try_alloc(narrow(extent.count * BLOCK_BYTES)).unwrap();
                buffer.fill(7);
                buffer.freeze()
            })
            .collect()
    }

    #[test]
    fn answers_are_checked_block_by_block() {
        let arena = Arena::new(ArenaConfig { capacity_bytes: 4 << 20 }).unwrap();
        let good = crc32c(&[7; 4096]);
        let hole = [BlockExtent { start: 11, count: 29 }];
        let outcomes = judge_answer(&EXTENTS, &[good, good, good ^ 1], &hole, sink(&arena));
        assert!(matches!(&outcomes[0], PieceRead::Read { absent, .. } if *absent == [false, true]));
        assert!(matches!(outcomes[1], PieceRead::Lost(Fault::Checksum { block: 40 })));
        let short = judge_answer(&EXTENTS, &[good, good], &[], sink(&arena));
        assert!(short.iter().all(|outcome| matches!(outcome, PieceRead::Lost(Fault::BadAnswer { .. }))));
    }

    #[test]
    fn a_damaged_block_costs_only_its_own_piece() {
        let damage = |start| {
            let extent = BlockExtent { start, count: 1 };
            let refusal = FopError::Checksum { device: Fid::default(), extent };
            spread_fault(&EXTENTS, &Fault::Call(Arc::new(rpc::CallError::Fop(refusal))))
        };
        assert!(matches!(damage(40)[..], [PieceRead::AskAgain, PieceRead::Lost(_)]));
        assert!(matches!(damage(99)[..], [PieceRead::Lost(_), PieceRead::Lost(_)]));
    }
}
