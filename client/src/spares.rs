//! Gives back what stood in spare units for a device that has its units again: blocks of component objects, and replicas of records.
//!
//! It runs once nobody reads or writes there any more (`faces::SparePhase::Freeing`). Each request names the copy that it is for, and its server
//! carries it out only while its configuration says the same: one that arrives late frees nothing of the device that has the slot next.
//! Left over when it stops: the rest, for the next run. Start at [`free`].

use base::{BlockExtent, FidType, ObjectId};
use faces::{DeviceConfig, SpareSlot};
use fops::component::ComponentPunch;
use fops::object::{ObjectForget, ObjectRecord};
use layout::record_and_spare_targets;
use rpc::Bulk;

use crate::batch::{Batch, TargetPiece, pack};
use crate::error::{ClientError, Fault, UnitFailures};
use crate::limits;
use crate::store::{Store, is_in_service};
use crate::view::View;

/// Frees the spare units of `slot` in one object, and the replica of its record in the slot's place. Devices that are failed are left out: they come back
/// formatted. Errors: a device that is in service does not answer.
pub(crate) async fn free(
    store: &std::rc::Rc<Store>,
    slot: SpareSlot,
    record: &ObjectRecord,
) -> Result<(), ClientError> {
    let Some(object) = ObjectId::from_fid(record.object) else { return Ok(()) };
    let configuration = store.configuration();
    if slot.device < configuration.pools.first_devices {
        let targets = record_and_spare_targets(&store.record_layout(object)?, object.fid());
        let place = configuration.pool.width.parity() + 1 + slot.slot;
        if let Some(holder) = targets.get(base::units::narrow(u64::from(place)))
            && targets.contains(&slot.device)
        {
            let make = async |device: &DeviceConfig| {
                let forget = ObjectForget { device: device.device, object: record.object, job: slot.job };
                (forget, Bulk::none())
            };
            patiently(store, *holder, async |deadline| {
                store.call(*holder, make, store.request_deadline(deadline)).await.map(drop)
            })
            .await?;
        }
    }
    let lies_in = configuration.pool_version(record.pool_version);
    if record.deleted || !lies_in.is_some_and(|version| version.has_device(slot.device)) {
        return Ok(());
    }
    let view = View::new(store, object, record)?;
    let width = view.geometry.width();
    let place = width.coded() + slot.slot;
    if place >= width.width() {
        return Ok(());
    }
    let rows = 0..view.geometry.unit_blocks();
    let groups = 0..record.size_bytes.div_ceil(view.geometry.group_bytes());
    // Nothing else ever stood there: what the device had of a group, if it had anything.
    let its_own = |group: &u64| (0..width.width()).any(|unit| view.device_of(*group, unit) == slot.device);
    let window = base::units::narrow(limits::PIECE_BYTES / view.geometry.unit_bytes()).max(1);
    let mut pieces: Vec<TargetPiece<()>> = Vec::with_capacity(window);
    for group in groups.filter(its_own) {
        pieces.push(view.piece_at(group, place, &rows, ()));
        if pieces.len() == window {
            punch(&view, slot, std::mem::take(&mut pieces)).await?;
        }
    }
    punch(&view, slot, pieces).await
}

async fn punch(view: &View, slot: SpareSlot, pieces: Vec<TargetPiece<()>>) -> Result<(), ClientError> {
    for Batch { target, pieces } in pack(pieces) {
        let extents: Vec<BlockExtent> = pieces.iter().map(|piece| piece.extent).collect();
        let store = &view.store;
        let make = async |device: &DeviceConfig| {
            let punch = ComponentPunch {
                device: device.device,
                component: view.name.component,
                generation: view.name.generation,
                extents: extents.clone(),
                job: slot.job,
            };
            (punch, Bulk::none())
        };
        debug_assert!(view.name.component.is(FidType::Component));
        patiently(store, target, async |deadline| {
            store.call(target, make, store.request_deadline(deadline)).await.map(drop)
        })
        .await?;
    }
    Ok(())
}

/// Asks a device, again while it is silent, unless it is out of service.
async fn patiently(
    store: &Store,
    target: u32,
    ask: impl AsyncFn(base::Instant) -> Result<(), Fault>,
) -> Result<(), ClientError> {
    let deadline = store.deadline();
    let mut wait = limits::RETRY_WAIT_MIN;
    loop {
        let is_there = || store.device(target).is_ok_and(|device| is_in_service(device.state));
        if !is_there() {
            return Ok(());
        }
        let Err(fault) = ask(deadline).await else { return Ok(()) };
        if is_there() && (!fault.may_retry() || !store.wait_to_retry(&mut wait, deadline).await) {
            let failures = UnitFailures(vec![store.failure(None, target, fault)]);
            return Err(ClientError::Repair { failures });
        }
    }
}
