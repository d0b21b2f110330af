//! The copy machine: brings a device whose disk is new everything that it has to hold, while clients go on.
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
//! Bounds: [`limits::REPAIR_OBJECTS_IN_FLIGHT`] objects, one window of [`limits::PIECE_BYTES`] each. Start at [`Client::repair_device`].

use std::cell::Cell;
use std::time::Duration;

use base::units::BLOCK_BYTES;
use base::{Blamed, Fid, Instant, ObjectId};
use fops::lock::LockMode;
use fops::object::ObjectRecord;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use layout::record_targets;

use crate::client::Client;
use crate::error::{ClientError, Fault, UnitFailures};
use crate::group_read::{GroupRequest, Origin, read_groups};
use crate::limits;
use crate::replacement::drop_components;
use crate::store::Store;
use crate::targets::{self, WriteBody};
use crate::view::View;

/// How to repair.
#[derive(Clone, Copy, Debug, Default)]
pub struct RepairOptions {
    /// Goes on behind this object: the last one that an earlier run reported complete.
    pub after: Option<ObjectId>,
    /// Bytes to write to the device in a second; `None`: as fast as it goes.
    pub bytes_per_second: Option<u64>,
}

/// How far a repair is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairProgress {
    /// Records looked at, tombstones included.
    pub records: u64,
    /// Objects whose bytes on the device are complete.
    pub objects: u64,
    /// Bytes written to the device.
    pub bytes: u64,
    /// All objects up to this one are complete.
    pub last: Option<ObjectId>,
    /// Objects with groups of which too many units are lost, each once: nothing can bring those back.
    pub lost: Vec<ObjectId>,
}

/// Keeps the copy at its rate.
struct Pace {
    started: Instant,
    bytes_per_second: Option<u64>,
    written: Cell<u64>,
}

impl Pace {
    /// When what is written is due at this rate; the past, without a rate.
    fn due(&self) -> Instant {
        let rate = self.bytes_per_second.unwrap_or(0).max(1);
        let ms = u128::from(self.written.get()) * 1000 / u128::from(rate);
        let late = Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX));
        if self.bytes_per_second.is_some() { self.started + late } else { Instant::ZERO }
    }
}

/// What came of one object.
enum Outcome {
    Complete(u64),
    Lost(u64),
}

impl Client {
    /// Brings everything that `device` has to hold to it. It has to be in repair, and its order heeded by all servers.
    ///
    /// Read [`RepairProgress::lost`] of the result: while it is not empty the device must not be taken for whole. `progress` is called after
    /// each object. Errors: the device is not in repair (any more), it does not take what is written, a credit cannot be had.
    pub async fn repair_device(
        &self,
        device: Fid,
        options: RepairOptions,
        mut progress: impl FnMut(&RepairProgress),
    ) -> Result<RepairProgress, ClientError> {
        let store = self.store().clone();
        store.fetch().await;
        let target = store.configuration().target_index(device).unwrap_or(u32::MAX);
        let pace =
            Pace { started: store.now(), bytes_per_second: options.bytes_per_second, written: Cell::new(0) };
        let mut done = RepairProgress { last: options.after, ..RepairProgress::default() };
        let mut after = options.after.map(ObjectId::fid);
        loop {
            check_in_repair(&store, target)?;
            let (records, next) = store.list_page(after).await?;
            done.records += u64::try_from(records.len()).unwrap_or(u64::MAX);
            let is_complete = |record: &&ObjectRecord| next.is_none_or(|next| record.object <= next);
            let mut outcomes = std::pin::pin!(
                stream::iter(records.iter().filter(is_complete))
                    .map(async |record| {
                        restore_record(&store, target, record).await?;
                        let outcome = self.restore_object(target, record, &pace).await?;
                        Ok::<_, ClientError>((record.object, outcome))
                    })
                    .buffered(limits::REPAIR_OBJECTS_IN_FLIGHT)
            );
            while let Some((object, outcome)) = outcomes.try_next().await? {
                let (Outcome::Complete(bytes) | Outcome::Lost(bytes)) = outcome;
                done.bytes += bytes;
                let object = ObjectId::from_fid(object);
                match outcome {
                    Outcome::Complete(_) => done.objects += 1,
                    Outcome::Lost(_) => done.lost.extend(object),
                }
                done.last = object.or(done.last);
                progress(&done);
            }
            after = match next {
                Some(next) => Some(next),
                None => return Ok(done),
            };
        }
    }

    /// The units of one object on `target`.
    async fn restore_object(
        &self,
        target: u32,
        record: &ObjectRecord,
        pace: &Pace,
    ) -> Result<Outcome, ClientError> {
        let (Some(object), false) = (ObjectId::from_fid(record.object), record.deleted) else {
            return Ok(Outcome::Complete(0));
        };
        let mut written = 0;
        // Each turn is one hold; a window is its least, so it ends.
        let mut from = 0;
        let mut generation = record.generation;
        loop {
            if !has_unit(&View::new(self.store(), object, record)?, record, target) {
                return Ok(Outcome::Complete(written));
            }
            // Before the object is held: a pause keeps nobody from it.
            self.locality().sleep_until(pace.due()).await;
            check_in_repair(self.store(), target)?;
            let wait = self.store().config.op_timeout;
            let holder = self.holding(object, LockMode::Exclusive, wait).await?;
            let found = match holder.open(object).await {
                Ok(found) => found.record(),
                // Deleted meanwhile: by somebody who knows that the device takes writes.
                Err(ClientError::NotFound { .. }) => return Ok(Outcome::Complete(written)),
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
                    Ok(bytes) => {
                        written += bytes;
                        pace.written.set(pace.written.get() + bytes);
                    }
                    Err(ClientError::Read { .. }) => return Ok(Outcome::Lost(written)),
                    Err(error) => return Err(error),
                }
                from = window.end;
                if from < groups && (holder.is_wanted()? == Some(true) || pace.due() > self.store().now()) {
                    break;
                }
            }
            if from < groups {
                continue;
            }
            // A replacement needs no hold: if it came while this was written, its old bytes are dropped once more, and the new ones looked at.
            match holder.open(object).await {
                Ok(now) if now.record().generation == generation => return Ok(Outcome::Complete(written)),
                Ok(now) => drop_components(holder.store(), object, 0..now.record().generation).await,
                Err(ClientError::NotFound { .. }) => {
                    drop_components(holder.store(), object, 0..generation + 1).await;
                    return Ok(Outcome::Complete(written));
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
    let configuration = store.configuration();
    let pool = store.layout(object, configuration.pool.width, configuration.pool.unit_bytes)?;
    if !record_targets(&pool, record.object).contains(&target) {
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
    match targets::write(&view.store, view.name, pieces, deadline).await {
        Ok(skipped) if skipped.is_empty() => Ok(bytes),
        Ok(_) => {
            check_in_repair(&view.store, target)?;
            Ok(bytes)
        }
        Err(failures) => {
            let failures = failures
                .into_iter()
                .map(|(target, unit, fault)| view.store.failure(Some(unit), target, fault))
                .collect();
            Err(ClientError::Write { object: view.object, failures: UnitFailures(failures) })
        }
    }
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
