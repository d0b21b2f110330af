//! Component objects: write, read, delete. The server moves the data: it pulls a write's bytes and pushes a read's.
//!
//! Order of a write: admit, check the shape, pull, check lease and fences again, write (the domain verifies each block against the
//! requester's checksum, and returns when the blocks are durable), reply. Order of a read: admit, check, read (verified against
//! the stored checksums), push, reply. No byte is copied here. Start at [`write`].

use std::cell::Cell;
use std::rc::Rc;

use base::BlockExtent;
use base::units::{BLOCK_BYTES, wide};
use fops::FopError;
use fops::component::{
    ComponentDelete, ComponentDeleteReply, ComponentPunch, ComponentPunchReply, ComponentRead,
    ComponentReadReply, ComponentWrite, ComponentWriteReply,
};
use rpc::{Fom, Phase};
use spdk_stob::{StobId, WritePiece};

use crate::bug::Bug;
use crate::component_extents::{ComponentExtents, check_component};
use crate::slots::SlotChange;
use crate::state::{Access, State, Writer};

/// Generations that one transaction deletes; more take several, oldest first.
const DELETE_GENERATIONS_MAX: usize = 64;

pub(crate) async fn write(
    state: Rc<State>,
    (fom, writer): (Fom, Writer),
    request: ComponentWrite,
) -> Result<ComponentWriteReply, FopError> {
    let device = state.admit(&fom, request.device, Access::Change).await?;
    let extents = ComponentExtents::parse(request.component, request.extents)?;
    extents.check_checksums(&request.checksums)?;
    // Before the pull: what does not fit is not worth moving.
    extents.check_segments("source", fom.source_segment_lengths().iter().copied().map(u64::from))?;
    fom.phase(Phase::Pull);
    let parts = fom.pull().await?;
    extents.check_segments("source", parts.iter().map(|part| wide(part.len())))?;
    state.begin_change((&fom, &writer), &device)?;
    fom.phase(Phase::Write);
    let stob = StobId { fid: request.component, generation: request.generation };
    let pieces = extents
        .as_slice()
        .iter()
        .zip(parts)
        .map(|(extent, data)| WritePiece { start_block: extent.start, data })
        .collect();
    // Free blocks are a hint: those of before the write are as good as those after it.
    let reply = ComponentWriteReply { free_blocks: device.domain.info().blocks_free };
    let mut transaction = device.domain.begin();
    fom.record_in(&mut SlotChange(&mut transaction), &reply)?;
    match device.domain.write_with(transaction, stob, pieces, &request.checksums).await {
        Ok(()) => {
            add_bytes(&state.moved.written, extents.as_slice());
            fom.durable();
            Ok(reply)
        }
        Err(error) => Err(state.refuse(&device, &error, extents.as_slice())),
    }
}

pub(crate) async fn read(
    state: Rc<State>,
    fom: Fom,
    request: ComponentRead,
) -> Result<ComponentReadReply, FopError> {
    let device = state.admit(&fom, request.device, Access::Read).await?;
    let extents = ComponentExtents::parse(request.component, request.extents)?;
    extents.check_segments("sink", fom.sink_segment_lengths().iter().copied().map(u64::from))?;
    fom.phase(Phase::Read);
    let stob = StobId { fid: request.component, generation: request.generation };
    let outcome = device
        .domain
        .read(stob, extents.as_slice())
        .await
        .map_err(|error| state.refuse(&device, &error, extents.as_slice()))?;
    fom.phase(Phase::Push);
    state.reads.set(state.reads.get() + 1);
    if state.bug == Some(Bug::BufferLeaked) && state.reads.get().is_multiple_of(16) {
        outcome.parts.iter().for_each(|part| std::mem::forget(part.clone()));
    }
    fom.push(0, outcome.parts).await?;
    add_bytes(&state.moved.read, extents.as_slice());
    Ok(ComponentReadReply { checksums: outcome.checksums, absent: outcome.absent })
}

/// What was moved, for whoever watches the cluster.
fn add_bytes(sum: &Cell<u64>, extents: &[BlockExtent]) {
    let blocks: u64 = extents.iter().map(|extent| extent.count).sum();
    sum.set(sum.get().saturating_add(blocks.saturating_mul(BLOCK_BYTES)));
}

pub(crate) async fn delete(
    state: Rc<State>,
    (fom, writer): (Fom, Writer),
    request: ComponentDelete,
) -> Result<ComponentDeleteReply, FopError> {
    let device = state.admit(&fom, request.device, Access::Change).await?;
    check_component(request.component)?;
    let mut stobs = device.domain.stobs_of(request.component);
    stobs.retain(|stob| (request.from_generation..request.below_generation).contains(&stob.generation));
    let reply = ComponentDeleteReply { deleted: wide(stobs.len()) };
    let mut left = stobs.len();
    for part in stobs.chunks(DELETE_GENERATIONS_MAX) {
        left -= part.len();
        let mut transaction = device.domain.begin();
        for stob in part {
            transaction.stob_delete(*stob);
        }
        // It ran once its last part is durable; a part alone may be followed by all of it again.
        state.commit((&fom, &writer), &device, transaction, (left == 0).then_some(&reply)).await?;
    }
    Ok(reply)
}

/// Gives back blocks that stood in spare units.
pub(crate) async fn punch(
    state: Rc<State>,
    fom: Fom,
    request: ComponentPunch,
) -> Result<ComponentPunchReply, FopError> {
    let device = state.admit(&fom, request.device, Access::Change).await?;
    let extents = ComponentExtents::parse(request.component, request.extents)?;
    state.check_freeing(request.job)?;
    let stob = StobId { fid: request.component, generation: request.generation };
    let mut transaction = device.domain.begin();
    for extent in extents.as_slice() {
        transaction.punch(stob, *extent);
    }
    let reply = ComponentPunchReply { free_blocks: device.domain.info().blocks_free };
    state.commit((&fom, &Writer::FREE), &device, transaction, Some(&reply)).await?;
    Ok(reply)
}
