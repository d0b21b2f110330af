//! What the copy machine of a server copies with: brings a device whose disk is new everything that it has to hold, while clients go on. And
//! the same for spare units that are to stand for a device that is gone, and for a device that comes back from them (docs/rfd/0014).
//!
//! It runs once control says that the order is heeded: the device takes every write, and each server refuses the changes of whoever does
//! not know (docs/rfd/0009). Records first: the device's replica of each, tombstones too. Then the object's bytes: of each group the
//! unit that stands on the device is computed from the others and written, a window of groups at a time, with the object held
//! exclusively, so that no change in place is in the middle of a group that is read. Clients that change an object in place hold it
//! shared meanwhile ([`crate::store::Store::writing_credit`]); a window that others wait for gives the object up between two windows.
//!
//! **Invariant**: what is written is what the device would have, had it been there: with another generation, or without the hold, it is
//! not written at all. Copying twice is harmless. Left over when it stops: the device stays in repair, and the next run goes on from
//! any object at or before the last one that was complete.
//! Bounds: [`limits::REPAIR_OBJECTS_IN_FLIGHT`] objects and more in a wide pool, one window of [`limits::PIECE_BYTES`] each. Called by the copy machine of the
//! device's server, which tells control how far it is. Start at [`Client::repair_device`]; [`copier`] is what a server gets.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use base::units::BLOCK_BYTES;
use base::{Blamed, Fid, FidType, Instant, ObjectId};
use faces::{Copier, CopyEnd, Copying, SparePhase, SpareSlot};
use fops::lock::LockMode;
use fops::object::ObjectRecord;
use futures_util::stream::{self, StreamExt};
use layout::StandIns;
use rpc::RpcConfig;
use runtime::LocalityHandle;
use verbs_net::Fabric;

use crate::client::{Client, ClientConfig, Opened};
use crate::error::{ClientError, Fault, UnitFailures};
use crate::group_read::{GroupRequest, Origin, read_groups};
use crate::limits;
use crate::object::write_error;
use crate::records::Whose;
use crate::replacement::drop_components;
use crate::spares;
use crate::store::{Store, is_in_service};
use crate::targets::{self, WriteBody};
use crate::view::View;

/// What is brought where.
#[derive(Clone, Copy)]
struct Restoring {
    /// Device index.
    target: u32,
    /// Its slot, if its units go to spare units or come back from there.
    slot: Option<SpareSlot>,
}

impl Restoring {
    fn is_filling(&self) -> bool {
        self.slot.is_some_and(|slot| slot.phase == SparePhase::Filling)
    }

    /// Error: it is over, or another one by now.
    fn check(&self, store: &Store) -> Result<(), ClientError> {
        let Some(slot) = self.slot else { return check_in_repair(store, self.target) };
        store.adopt();
        let configuration = store.configuration();
        match configuration.spare_slot(self.target) {
            Some(now) if *now == slot => Ok(()),
            _ => {
                let device = configuration.target(self.target).map(|found| found.device);
                Err(ClientError::NotSparing { device: device.unwrap_or_default() })
            }
        }
    }

    /// The unit of a group that is to be brought somewhere, and all the places for it.
    fn places_for(&self, view: &View, group: u64) -> Option<(u32, StandIns)> {
        if self.is_filling() {
            let unit = view.unit_lost_with(group, self.target)?;
            return Some((unit, view.places(group, unit).written));
        }
        let (unit, place) = view.unit_on(group, self.target)?;
        Some((unit, StandIns::from_slice(&[place])))
    }
}

/// What came of one object.
pub(crate) enum Outcome {
    Complete,
    /// More than K units of a group are gone.
    Lost,
    /// It was asked to stop on the way.
    Stopped,
}

/// A copy, with what ends it early on this side.
pub(crate) struct Run<'a> {
    pub(crate) copying: &'a Copying,
    /// Another object failed: nothing more is begun, what is under way ends in order.
    is_over: Cell<bool>,
}

impl Run<'_> {
    pub(crate) fn must_end(&self) -> bool {
        self.is_over.get() || self.copying.is_stopped()
    }

    /// Waits until the rate allows more, or it is to end.
    pub(crate) async fn pace(&self, locality: &LocalityHandle) {
        while !self.must_end() && self.copying.due(locality.now()) > locality.now() {
            // Either way it is looked again: time is up, or an order changed.
            let _changed =
                locality.timeout_at(self.copying.due(locality.now()), self.copying.changed()).await;
        }
    }
}

/// What a server copies with: a client that connects when it is first needed, and stays.
///
/// `config`: of the client, with an incarnation of its own.
pub fn copier(locality: &LocalityHandle, fabric: &Fabric, config: ClientConfig) -> Copier {
    let place = Rc::new(Place {
        locality: locality.clone(),
        fabric: fabric.clone(),
        config,
        opened: RefCell::new(None),
        client: RefCell::new(None),
    });
    Rc::new(move |subject, copying| {
        let place = Rc::clone(&place);
        Box::pin(async move {
            let client = place.client().await.map_err(|error| error.to_string())?;
            let end = match subject.is(FidType::Pool) {
                true => client.rebalance_pool(subject, &copying).await,
                false => client.restore_device(subject, &copying).await,
            };
            end.map_err(|error| error.to_string())
        })
    })
}

/// Where a copier's client is, or is to be.
struct Place {
    locality: LocalityHandle,
    fabric: Fabric,
    config: ClientConfig,
    opened: RefCell<Option<Opened>>,
    client: RefCell<Option<Client>>,
}

impl Place {
    async fn client(&self) -> Result<Client, ClientError> {
        if let Some(client) = self.client.borrow().as_ref() {
            return Ok(client.clone());
        }
        let opened = self.opened.borrow().clone();
        let opened = match opened {
            Some(opened) => opened,
            None => Opened::new(&self.locality, &self.fabric, &self.config, RpcConfig::default())?,
        };
        *self.opened.borrow_mut() = Some(opened.clone());
        let client = opened.connect(&self.locality, self.config.clone(), None).await?;
        *self.client.borrow_mut() = Some(client.clone());
        Ok(client)
    }
}

impl Client {
    /// What is to be copied for a device: [`Client::repair_device`], or, if it has a slot of spare units, everything that it held to those, from those
    /// back to it, or off those. Heeded by all servers, as there. Errors: there is nothing to be copied (any more); as there.
    pub async fn restore_device(&self, device: Fid, copying: &Copying) -> Result<CopyEnd, ClientError> {
        let store = self.store().clone();
        store.fetch().await;
        let Some(slot) = store.configuration().spare_slot_of(device).copied() else {
            return self.repair_device(device, copying).await;
        };
        let restoring = Restoring { target: slot.device, slot: Some(slot) };
        let check = || restoring.check(&store);
        match slot.phase {
            SparePhase::Filling | SparePhase::Returning => {
                let in_flight = objects_in_flight(&store, slot.device);
                self.sweep(copying, (Whose::Holders, in_flight), check, async |record, run| {
                    self.restore(restoring, record, run).await
                })
                .await
            }
            SparePhase::Freeing => {
                let each = async |record: &ObjectRecord, run: &Run<'_>| {
                    if run.must_end() {
                        return Ok(Outcome::Stopped);
                    }
                    spares::free(&store, slot, record).await.map(|()| Outcome::Complete)
                };
                self.sweep(copying, (Whose::Anybody, objects_in_flight(&store, slot.device)), check, each)
                    .await
            }
            SparePhase::Standing | SparePhase::Leaving => Err(ClientError::NotSparing { device }),
        }
    }

    /// Brings everything that `device` has to hold to it, from the last object of `copying` on. It has to be in repair, and that heeded by
    /// all servers.
    ///
    /// Look at what is lost in the progress: while there is something the device must not be taken for whole. Errors: the device is not in repair
    /// (any more), it does not take what is written, a credit cannot be had; nothing is under way any more then.
    pub async fn repair_device(&self, device: Fid, copying: &Copying) -> Result<CopyEnd, ClientError> {
        let store = self.store().clone();
        store.fetch().await;
        let target = store.configuration().target_index(device).unwrap_or(u32::MAX);
        let restoring = Restoring { target, slot: None };
        let check = || restoring.check(&store);
        let in_flight = objects_in_flight(&store, target);
        self.sweep(copying, (Whose::Holders, in_flight), check, async |record, run| {
            self.restore(restoring, record, run).await
        })
        .await
    }

    /// Goes through all records behind the last object of `copying`, `in_flight` at a time, and notes how far that is.
    /// `whose`: records of which devices count. `check`: before each page, whether there is still something to do.
    pub(crate) async fn sweep(
        &self,
        copying: &Copying,
        (whose, in_flight): (Whose, usize),
        check: impl Fn() -> Result<(), ClientError>,
        each: impl AsyncFn(&ObjectRecord, &Run<'_>) -> Result<Outcome, ClientError>,
    ) -> Result<CopyEnd, ClientError> {
        let store = self.store().clone();
        let run = Run { copying, is_over: Cell::new(false) };
        let mut after = copying.progress().last;
        loop {
            check()?;
            let (records, next) = store.list_page(after, whose).await?;
            copying.note_records(u64::try_from(records.len()).unwrap_or(u64::MAX));
            let is_complete = |record: &&ObjectRecord| next.is_none_or(|next| record.object <= next);
            let mut outcomes = std::pin::pin!(
                stream::iter(records.iter().filter(is_complete))
                    .map(async |record| {
                        let outcome = each(record, &run).await;
                        if outcome.is_err() {
                            run.is_over.set(true);
                        }
                        (record.object, outcome)
                    })
                    .buffered(in_flight)
            );
            // To the end also after an error: a write that is dropped under way could land after its hold was given back.
            let mut ended = Ok(CopyEnd::Whole);
            while let Some((object, outcome)) = outcomes.next().await {
                match outcome {
                    Err(error) if ended.is_ok() => ended = Err(error),
                    Ok(Outcome::Stopped) if ended.is_ok() => ended = Ok(CopyEnd::Stopped),
                    Ok(outcome) if matches!(ended, Ok(CopyEnd::Whole)) => {
                        copying.note_object(object, matches!(outcome, Outcome::Lost));
                    }
                    _ => {}
                }
            }
            after = match (ended?, next) {
                (CopyEnd::Whole, Some(next)) => Some(next),
                (ended, _) => return Ok(ended),
            };
        }
    }

    async fn restore(
        &self,
        restoring: Restoring,
        record: &ObjectRecord,
        run: &Run<'_>,
    ) -> Result<Outcome, ClientError> {
        if run.must_end() {
            return Ok(Outcome::Stopped);
        }
        restore_record(self.store(), restoring, record).await?;
        self.restore_object(restoring, record, run).await
    }

    /// The units of one object.
    async fn restore_object(
        &self,
        restoring: Restoring,
        record: &ObjectRecord,
        run: &Run<'_>,
    ) -> Result<Outcome, ClientError> {
        let (Some(object), false) = (ObjectId::from_fid(record.object), record.deleted) else {
            return Ok(Outcome::Complete);
        };
        // Each turn is one hold; a window is its least, so it ends.
        let mut from = 0;
        let mut generation = record.generation;
        loop {
            if !has_unit(&View::new(self.store(), object, record)?, record, restoring) {
                return Ok(Outcome::Complete);
            }
            // Before the object is held: a pause keeps nobody from it.
            run.pace(self.locality()).await;
            if run.must_end() {
                return Ok(Outcome::Stopped);
            }
            restoring.check(self.store())?;
            let wait = self.store().config.op_timeout;
            let holder = self.holding(object, LockMode::Exclusive, wait).await?;
            let found = match holder.open(object).await {
                Ok(found) => found.record(),
                // Deleted meanwhile: by somebody who knows that the device takes writes.
                Err(ClientError::NotFound { .. }) => return Ok(Outcome::Complete),
                Err(error) => return Err(error),
            };
            if found.generation != generation {
                // Replaced meanwhile: what was written is of bytes that are gone.
                (from, generation) = (0, found.generation);
            }
            let view = View::new(holder.store(), object, &found)?;
            let groups = found.size_bytes.div_ceil(view.geometry.group_bytes());
            while from < groups {
                let window = window(&view, from, groups);
                match restore_patiently(&view, restoring, window.clone()).await {
                    // Slots of other devices changed: once more, to where it belongs now.
                    Ok(_) if !view.is_current() => break,
                    Ok(bytes) => run.copying.note_bytes(self.store().now(), bytes),
                    Err(_) if !view.is_current() => break,
                    Err(ClientError::Read { .. }) => return Ok(Outcome::Lost),
                    Err(error) => return Err(error),
                }
                from = window.end;
                let now = self.store().now();
                let gives_up = holder.is_wanted()? == Some(true) || run.copying.due(now) > now;
                if from < groups && (gives_up || run.must_end()) {
                    break;
                }
            }
            if from < groups {
                continue;
            }
            // A replacement needs no hold: if it came while this was written, its old bytes are dropped once more, and the new ones looked at.
            match holder.open(object).await {
                Ok(now) if now.record().generation == generation => return Ok(Outcome::Complete),
                Ok(now) => drop_components(holder.store(), object, 0..now.record().generation).await,
                Err(ClientError::NotFound { .. }) => {
                    drop_components(holder.store(), object, 0..generation + 1).await;
                    return Ok(Outcome::Complete);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Objects that are copied at a time for a device: more in a wider pool.
fn objects_in_flight(store: &Store, target: u32) -> usize {
    let configuration = store.configuration();
    let versions = configuration.pool_versions().filter(|version| version.has_device(target));
    let devices = versions.map(|version| version.device_indexes().count()).max().unwrap_or(0);
    let more = devices.saturating_sub(limits::REPAIR_DEVICES_FEW);
    (limits::REPAIR_OBJECTS_IN_FLIGHT + more).min(limits::REPAIR_OBJECTS_IN_FLIGHT_MAX)
}

/// Groups from `from` on that are read and written as one piece.
fn window(view: &View, from: u64, groups: u64) -> std::ops::Range<u64> {
    let step = (limits::PIECE_BYTES / view.geometry.group_bytes()).max(1);
    from..groups.min(from + step)
}

/// Error: the device is not in repair, or not a device.
fn check_in_repair(store: &Store, target: u32) -> Result<(), ClientError> {
    let state = store.device(target).map(|device| device.state);
    let fault = match state {
        Ok(faces::DeviceState::Repair) => return Ok(()),
        Ok(state) => Fault::State(state),
        Err(fault) => fault,
    };
    Err(ClientError::Repair { failures: UnitFailures(vec![store.failure(None, target, fault)]) })
}

/// The replica of a record that the device, or whoever stands for it, is to have, if it is to have one.
async fn restore_record(
    store: &Store,
    restoring: Restoring,
    record: &ObjectRecord,
) -> Result<(), ClientError> {
    let Some(object) = ObjectId::from_fid(record.object) else { return Ok(()) };
    for holder in store.record_holders(object)? {
        let is_meant = match restoring.is_filling() {
            true => holder.filling.contains(&restoring.target),
            false => holder.device == restoring.target,
        };
        if is_meant {
            bring_record(store, holder.device, object, record).await?;
        }
    }
    Ok(())
}

async fn bring_record(
    store: &Store,
    target: u32,
    object: ObjectId,
    record: &ObjectRecord,
) -> Result<(), ClientError> {
    let deadline = store.deadline();
    let mut wait = limits::RETRY_WAIT_MIN;
    loop {
        let Err(fault) = store.repair_at(target, *record, deadline).await else { return Ok(()) };
        if !store.device(target).is_ok_and(|device| is_in_service(device.state)) {
            // It is lost as well by now: whoever makes that good brings the record along.
            return Ok(());
        }
        if !fault.may_retry() || !store.wait_to_retry(&mut wait, deadline).await {
            let failures = UnitFailures(vec![store.failure(None, target, fault)]);
            return Err(ClientError::Record { object, verb: "written", failures });
        }
    }
}

/// True if any group of the object has a unit that is to be brought somewhere. In a pool that is much wider than the groups most small objects have none.
fn has_unit(view: &View, record: &ObjectRecord, restoring: Restoring) -> bool {
    let groups = record.size_bytes.div_ceil(view.geometry.group_bytes());
    (0..groups).any(|group| restoring.places_for(view, group).is_some())
}

/// [`restore_groups`], again while servers are silent.
async fn restore_patiently(
    view: &View,
    restoring: Restoring,
    groups: std::ops::Range<u64>,
) -> Result<u64, ClientError> {
    let deadline = view.store.deadline();
    let mut wait = limits::RETRY_WAIT_MIN;
    loop {
        match restore_groups(view, restoring, groups.clone()).await {
            Err(error) if error.may_retry() && view.store.wait_to_retry(&mut wait, deadline).await => {}
            outcome => return outcome,
        }
    }
}

/// Brings the units of `groups` where they are to be; answers the bytes.
async fn restore_groups(
    view: &View,
    restoring: Restoring,
    groups: std::ops::Range<u64>,
) -> Result<u64, ClientError> {
    let mut wanted: Vec<(u64, u32, StandIns)> = Vec::new();
    for group in groups {
        if let Some((unit, places)) = restoring.places_for(view, group) {
            wanted.push((group, unit, places));
        }
    }
    let (bytes, skipped) = bring(view, &wanted).await?;
    if skipped && restoring.slot.is_none() {
        restoring.check(&view.store)?;
    }
    Ok(bytes)
}

/// Reads or computes units, each of a group, and writes them to places of that group. Answers the bytes written, and whether a device that left
/// service was passed over.
async fn bring(view: &View, wanted: &[(u64, u32, StandIns)]) -> Result<(u64, bool), ClientError> {
    let deadline: Instant = view.store.deadline();
    let (coded, count) = (u64::from(view.geometry.coded()), u64::try_from(wanted.len()).unwrap_or(u64::MAX));
    if count == 0 {
        return Ok((0, false));
    }
    let _memory = view.store.memory(count * (coded + 1) * view.geometry.unit_bytes()).await;
    let rows = 0..view.geometry.unit_blocks();
    let requests = wanted
        .iter()
        .map(|(group, unit, _)| GroupRequest { group: *group, wanted: vec![(*unit, rows.clone())] })
        .collect();
    let found = read_groups(view, requests, deadline).await?;
    let (mut pieces, mut bytes) = (Vec::new(), 0);
    for ((group, unit, places), rows) in wanted.iter().zip(found) {
        for piece in rows.into_iter().flatten() {
            let home = view.places(*group, *unit).home;
            let body = WriteBody::new(piece.bytes.clone(), *group, *unit);
            for place in places {
                // What was read there is there.
                let is_missing =
                    piece.origin == Origin::Rebuilt || (piece.origin == Origin::Present && *place != home);
                if is_missing {
                    bytes += (piece.rows.end - piece.rows.start) * BLOCK_BYTES;
                    pieces.push(view.piece_at(*group, *place, &piece.rows, body.clone()));
                }
            }
        }
    }
    let sent = targets::write(&view.store, view.name, pieces, deadline).await;
    let skipped = sent.map_err(|failures| write_error(view, failures))?;
    Ok((bytes, !skipped.is_empty()))
}

/// Brings a replacement's new bytes, which end at `end`, to the devices that they went past and that take writes again, and to wherever units
/// stand by now beside where they stood when it began.
pub(crate) async fn restore_returned(view: &mut View, end: u64) -> Result<(), ClientError> {
    view.store.refresh().await;
    let groups = end.div_ceil(view.geometry.group_bytes());
    while !view.is_current() {
        let renewed = view.renewed();
        let mut from = 0;
        while from < groups {
            let window = window(&renewed, from, groups);
            let mut wanted = Vec::new();
            for group in window.clone() {
                let places = view.places_left_out(&renewed, group).into_iter();
                wanted.extend(places.map(|(unit, place)| (group, unit, StandIns::from_slice(&[place]))));
            }
            bring(&renewed, &wanted).await?;
            from = window.end;
        }
        *view = renewed;
    }
    for target in view.take_returned() {
        let mut from = 0;
        while from < groups {
            let window = window(view, from, groups);
            restore_groups(view, Restoring { target, slot: None }, window.clone()).await?;
            from = window.end;
        }
    }
    Ok(())
}
