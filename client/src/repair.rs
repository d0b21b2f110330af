//! What the copy machine of a server copies with: brings a device whose disk is new everything that it has to hold, while clients go on.
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
//! Bounds: [`limits::REPAIR_OBJECTS_IN_FLIGHT`] objects, one window of [`limits::PIECE_BYTES`] each. Called by the copy machine of the
//! device's server, which tells control how far it is. Start at [`Client::repair_device`]; [`copier`] is what a server gets.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use base::units::BLOCK_BYTES;
use base::{Blamed, Fid, FidType, Instant, ObjectId};
use faces::{Copier, CopyEnd, Copying};
use fops::lock::LockMode;
use fops::object::ObjectRecord;
use futures_util::stream::{self, StreamExt};
use rpc::RpcConfig;
use runtime::LocalityHandle;
use verbs_net::Fabric;

use crate::client::{Client, ClientConfig, Opened};
use crate::error::{ClientError, Fault, UnitFailures};
use crate::group_read::{GroupRequest, Origin, read_groups};
use crate::limits;
use crate::object::write_error;
use crate::replacement::drop_components;
use crate::store::Store;
use crate::targets::{self, WriteBody};
use crate::view::View;

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
                false => client.repair_device(subject, &copying).await,
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
    /// Brings everything that `device` has to hold to it, from the last object of `copying` on. It has to be in repair, and that heeded by
    /// all servers.
    ///
    /// Look at what is lost in the progress: while there is something the device must not be taken for whole. Errors: the device is not in repair
    /// (any more), it does not take what is written, a credit cannot be had; nothing is under way any more then.
    pub async fn repair_device(&self, device: Fid, copying: &Copying) -> Result<CopyEnd, ClientError> {
        let store = self.store().clone();
        store.fetch().await;
        let target = store.configuration().target_index(device).unwrap_or(u32::MAX);
        let check = || check_in_repair(&store, target);
        self.sweep(copying, check, async |record, run| self.restore(target, record, run).await).await
    }

    /// Goes through all records behind the last object of `copying`, [`limits::REPAIR_OBJECTS_IN_FLIGHT`] at a time, and notes how far that is.
    /// `check`: before each page, whether there is still something to do.
    pub(crate) async fn sweep(
        &self,
        copying: &Copying,
        check: impl Fn() -> Result<(), ClientError>,
        each: impl AsyncFn(&ObjectRecord, &Run<'_>) -> Result<Outcome, ClientError>,
    ) -> Result<CopyEnd, ClientError> {
        let store = self.store().clone();
        let run = Run { copying, is_over: Cell::new(false) };
        let mut after = copying.progress().last;
        loop {
            check()?;
            let (records, next) = store.list_page(after).await?;
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
                    .buffered(limits::REPAIR_OBJECTS_IN_FLIGHT)
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
        target: u32,
        record: &ObjectRecord,
        run: &Run<'_>,
    ) -> Result<Outcome, ClientError> {
        if run.must_end() {
            return Ok(Outcome::Stopped);
        }
        restore_record(self.store(), target, record).await?;
        self.restore_object(target, record, run).await
    }

    /// The units of one object on `target`.
    async fn restore_object(
        &self,
        target: u32,
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
            if !has_unit(&View::new(self.store(), object, record)?, record, target) {
                return Ok(Outcome::Complete);
            }
            // Before the object is held: a pause keeps nobody from it.
            run.pace(self.locality()).await;
            if run.must_end() {
                return Ok(Outcome::Stopped);
            }
            check_in_repair(self.store(), target)?;
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
                match restore_patiently(&view, target, window.clone()).await {
                    Ok(bytes) => run.copying.note_bytes(self.store().now(), bytes),
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

/// The device's replica of a record, if it is to have one.
async fn restore_record(store: &Store, target: u32, record: &ObjectRecord) -> Result<(), ClientError> {
    let Some(object) = ObjectId::from_fid(record.object) else { return Ok(()) };
    if !store.record_devices(object)?.contains(&target) {
        return Ok(());
    }
    let deadline = store.deadline();
    let mut wait = limits::RETRY_WAIT_MIN;
    loop {
        let Err(fault) = store.repair_at(target, *record, deadline).await else { return Ok(()) };
        if !fault.may_retry() || !store.wait_to_retry(&mut wait, deadline).await {
            let failures = UnitFailures(vec![store.failure(None, target, fault)]);
            return Err(ClientError::Record { object, verb: "written", failures });
        }
    }
}

/// True if any group of the object has a unit on `target`. In a pool that is much wider than the groups most small objects have none.
fn has_unit(view: &View, record: &ObjectRecord, target: u32) -> bool {
    let groups = record.size_bytes.div_ceil(view.geometry.group_bytes());
    (0..groups).any(|group| view.unit_on(group, target).is_some())
}

/// [`restore_groups`], again while servers are silent.
async fn restore_patiently(
    view: &View,
    target: u32,
    groups: std::ops::Range<u64>,
) -> Result<u64, ClientError> {
    let deadline = view.store.deadline();
    let mut wait = limits::RETRY_WAIT_MIN;
    loop {
        match restore_groups(view, target, groups.clone()).await {
            Err(error) if error.may_retry() && view.store.wait_to_retry(&mut wait, deadline).await => {}
            outcome => return outcome,
        }
    }
}

/// Computes the units of `groups` that stand on `target` from the others, and writes them; answers the bytes.
async fn restore_groups(view: &View, target: u32, groups: std::ops::Range<u64>) -> Result<u64, ClientError> {
    let deadline: Instant = view.store.deadline();
    let coded = u64::from(view.geometry.coded());
    let _memory =
        view.store.memory((groups.end - groups.start) * (coded + 1) * view.geometry.unit_bytes()).await;
    let rows = 0..view.geometry.unit_blocks();
    let units: Vec<(u64, u32)> =
        groups.filter_map(|group| Some((group, view.unit_on(group, target)?))).collect();
    let requests = units
        .iter()
        .map(|(group, unit)| GroupRequest { group: *group, wanted: vec![(*unit, rows.clone())] })
        .collect();
    let found = read_groups(view, requests, deadline).await?;
    let (mut pieces, mut bytes) = (Vec::new(), 0);
    for ((group, unit), rows) in units.into_iter().zip(found) {
        for piece in rows.into_iter().flatten().filter(|piece| piece.origin == Origin::Rebuilt) {
            bytes += (piece.rows.end - piece.rows.start) * BLOCK_BYTES;
            pieces.push(view.piece(group, unit, &piece.rows, WriteBody::new(piece.bytes, group, unit)));
        }
    }
    let sent = targets::write(&view.store, view.name, pieces, deadline).await;
    let skipped = sent.map_err(|failures| write_error(view, failures))?;
    if !skipped.is_empty() {
        check_in_repair(&view.store, target)?;
    }
    Ok(bytes)
}

/// Brings a replacement's new bytes, which end at `end`, to the devices that they went past and that take writes again.
pub(crate) async fn restore_returned(view: &View, end: u64) -> Result<(), ClientError> {
    view.store.refresh().await;
    for target in view.take_returned() {
        let groups = end.div_ceil(view.geometry.group_bytes());
        let mut from = 0;
        while from < groups {
            let window = window(view, from, groups);
            restore_groups(view, target, window.clone()).await?;
            from = window.end;
        }
    }
    Ok(())
}
