//! Replaces all bytes of an object at once: a new generation is written beside the old one, and one record update flips over.
//!
//! **Invariant**: until `commit` has flipped the record the object reads as before, whatever crashes; from then on it reads as the new
//! bytes. Left over after a crash: units of a generation that no record names. They take space until the object is replaced or
//! deleted the next time, which drops every older generation.
//!
//! Of two replacements that run at the same time one wins as a whole and the other's commit fails: the commit holds only for the
//! version that its replacement began with, and generations are ordered, so that dropping old ones never takes newer bytes.

use std::cell::Cell;
use std::ops::Range;

use base::units::wide;
use base::{ByteExtent, FidType, ObjectId};
use fops::component::ComponentDelete;
use fops::object::{ObjectRecord, generation_of};
use futures_util::future::join_all;
use rpc::Bulk;
use runtime::SharedBuffer;

use crate::bug::Bug;
use crate::error::{ClientError, Fault};
use crate::geometry::OBJECT_BYTES_MAX;
use crate::limits;
use crate::object::{Object, write_groups};
use crate::parts::Parts;
use crate::repair::restore_returned;
use crate::store::{Store, is_in_service};
use crate::view::View;

/// New bytes for an object, not in force before [`Replacement::commit`]. Dropping it leaves the object as it was.
pub struct Replacement {
    object: Object,
    view: View,
    /// Where the new bytes lie, and in which shape.
    target: ObjectRecord,
    /// The record that is being replaced.
    base: ObjectRecord,
    /// End of the one piece that ends inside a group, if it was written.
    tail_end: Cell<Option<u64>>,
    /// End of the highest piece.
    end: Cell<u64>,
}

impl Replacement {
    pub(crate) fn new(object: Object) -> Result<Replacement, ClientError> {
        let record = object.record();
        let store = object.store();
        let generation = generation_of(record.version + 1, store.locality.random_u64());
        // New bytes go to the newest version of the object's pool.
        let configuration = store.configuration();
        let pool = configuration.pool_version(record.pool_version).map(|version| version.pool);
        let target = match pool.and_then(|pool| configuration.newest_version(pool)) {
            Some(newest) => {
                ObjectRecord { generation, pool_version: newest.pool_version, width: newest.width, ..record }
            }
            None => ObjectRecord { generation, ..record },
        };
        Replacement::into(object, target)
    }

    /// One whose bytes are to lie as `target` says: its generation, pool version and shape.
    pub(crate) fn into(object: Object, target: ObjectRecord) -> Result<Replacement, ClientError> {
        let record = object.record();
        let store = object.store().clone();
        let view = View::new(&store, object.id(), &ObjectRecord { size_bytes: 0, ..target })?;
        Ok(Replacement { object, view, target, base: record, tail_end: Cell::new(None), end: Cell::new(0) })
    }

    /// The object that is being replaced.
    #[must_use]
    pub fn object(&self) -> &Object {
        &self.object
    }

    /// Bytes of a parity group: pieces start at multiples of it.
    #[must_use]
    pub fn group_bytes(&self) -> u64 {
        self.view.geometry.group_bytes()
    }

    /// Writes a piece: from a group's start, whole groups, except that the object's last piece may end anywhere (its last block
    /// is filled up with zeros). Pieces come in any order and may run at the same time; groups never written are holes.
    ///
    /// Durable when it returns. Errors: a piece that does not fit, [`ClientError::Write`].
    pub async fn write(&self, offset: u64, parts: Vec<SharedBuffer>) -> Result<(), ClientError> {
        let bytes: u64 = parts.iter().map(|part| wide(part.len())).sum();
        let piece = ByteExtent { start: offset, count: bytes };
        if bytes > limits::OPERATION_BYTES_MAX {
            let bytes_max = limits::OPERATION_BYTES_MAX;
            return Err(ClientError::TooLong { extent: piece, bytes_max, object_max: OBJECT_BYTES_MAX });
        }
        self.write_piece(piece, parts, true).await
    }

    /// [`Replacement::write`]; without `bounded` the caller holds memory for the parity.
    pub(crate) async fn write_piece(
        &self,
        piece: ByteExtent,
        parts: Vec<SharedBuffer>,
        bounded: bool,
    ) -> Result<(), ClientError> {
        let group_bytes = self.group_bytes();
        let misfit = || ClientError::Piece { object: self.object.id(), piece, group_bytes };
        if !piece.start.is_multiple_of(group_bytes)
            || piece.start.checked_add(piece.count).is_none_or(|end| end > OBJECT_BYTES_MAX)
        {
            return Err(misfit());
        }
        if piece.count == 0 {
            return Ok(());
        }
        let is_tail = !piece.count.is_multiple_of(group_bytes);
        // The tail is the last one: nothing behind it, and only one of them.
        let behind_tail = self.tail_end.get().is_some_and(|tail| piece.end() > tail || is_tail);
        if behind_tail || (is_tail && self.end.get() > piece.end()) {
            return Err(misfit());
        }
        if is_tail {
            self.tail_end.set(Some(piece.end()));
        }
        self.end.set(self.end.get().max(piece.end()));
        let store = &self.view.store;
        let parts = Parts::gather(parts, store.locality.arena(), store.locality.counters()).await;
        let extent = ByteExtent { start: piece.start, count: parts.byte_count() };
        let written = write_groups(&self.view, extent, &parts, None, (bounded, false)).await;
        written.map_err(|error| self.outrun(error))
    }

    /// What it is called if a generation after this one is in force by now: another replacement, or a delete, was faster.
    fn outrun(&self, error: ClientError) -> ClientError {
        match &error {
            ClientError::Write { failures, .. }
                if failures.0.iter().any(|failure| matches!(failure.fault, Fault::Moved)) =>
            {
                ClientError::Replaced { object: self.object.id() }
            }
            _ => error,
        }
    }

    /// Writes whole blocks of an object of `size_bytes`, wherever they stand; those beside them in their rows stay as they are, or zeros. The caller
    /// writes one run after the other, and holds memory for their parity.
    pub(crate) async fn write_run(
        &self,
        run: ByteExtent,
        size_bytes: u64,
        parts: Vec<SharedBuffer>,
    ) -> Result<(), ClientError> {
        let store = &self.view.store;
        let parts = Parts::gather(parts, store.locality.arena(), store.locality.counters()).await;
        let extent = ByteExtent { start: run.start, count: parts.byte_count() };
        let record = ObjectRecord { size_bytes, ..self.target };
        let view = View::new(store, self.object.id(), &record)?;
        let sizes = Some((size_bytes, size_bytes));
        let written = write_groups(&view, extent, &parts, sizes, (false, false)).await;
        written.map_err(|error| self.outrun(error))?;
        self.view.note_skipped(view.skipped());
        self.end.set(self.end.get().max(run.end()));
        Ok(())
    }

    /// Flips the object over to the new bytes, of which there are `size_bytes`, then drops the old generation.
    ///
    /// Await every `write` first. Errors: `size_bytes` is not where a tail piece ended, or below what was written; the record cannot be changed on
    /// every holder in service (then a reader may see either generation until one of them is written again).
    pub async fn commit(self, size_bytes: u64) -> Result<(), ClientError> {
        let tail_fits = self.tail_end.get().is_none_or(|tail| tail == size_bytes);
        if !tail_fits || size_bytes < self.end.get() || size_bytes > OBJECT_BYTES_MAX {
            let piece = ByteExtent { start: 0, count: size_bytes };
            return Err(ClientError::Piece {
                object: self.object.id(),
                piece,
                group_bytes: self.group_bytes(),
            });
        }
        let end = self.end.get();
        let Replacement { object, mut view, target, base, .. } = self;
        let generation = view.name.generation;
        if view.store.has_bug(Bug::DropBeforeCommit) {
            drop_components(&view.store, object.id(), 0..generation).await;
        }
        // A record that names our generation already is our own commit, of which an answer was lost.
        let flip = |record: &ObjectRecord| {
            let is_ours = record.version == base.version || record.generation == generation;
            // The same bytes, moved to another pool version meanwhile: a generation that only a mover makes (`crate::rebalance`).
            let is_moved = record.generation == base.generation + 1
                && record.pool_version != base.pool_version
                && !record.deleted;
            let ObjectRecord { pool_version, width, unit_bytes, .. } = target;
            (is_ours || is_moved).then_some(ObjectRecord {
                generation,
                size_bytes,
                pool_version,
                width,
                unit_bytes,
                ..*record
            })
        };
        // A device that came back in the meantime has to have what went past it, before the object is known by these bytes and, as it may
        // have come back just then, after.
        restore_returned(&mut view, end).await?;
        object.change_record(flip).await?;
        restore_returned(&mut view, end).await?;
        // Best effort: what stays is dropped by the next replacement or by the delete.
        drop_components(&view.store, object.id(), 0..generation).await;
        Ok(())
    }

    /// Gives up: what was written so far is deleted, the object keeps its content. Only dropping the replacement leaves its bytes on
    /// the devices until the next replacement or the delete. Await every `write` first. Best effort: a device that does not
    /// answer keeps its part until then.
    pub async fn abandon(self) {
        let generation = self.view.name.generation;
        drop_components(&self.view.store, self.object.id(), generation..generation + 1).await;
    }
}

/// Deletes a range of generations of the object's bytes, on all devices in service that were ever there. Best effort.
pub(crate) async fn drop_components(store: &Store, object: ObjectId, generations: Range<u64>) {
    let (from_generation, below_generation) = (generations.start, generations.end);
    let deadline = store.deadline();
    let configuration = store.configuration();
    // One without a size never registered, and holds nothing.
    let may_have = |device: &faces::DeviceConfig| is_in_service(device.state) && device.size_blocks > 0;
    let targets = (0u32..).zip(&configuration.pool.devices).filter(|(_, device)| may_have(device));
    join_all(targets.map(|(target, _)| async move {
        let make = async |device: &faces::DeviceConfig| {
            let component = object.fid().with_type(FidType::Component);
            let device = device.device;
            (ComponentDelete { device, component, from_generation, below_generation }, Bulk::none())
        };
        let _best_effort = store.change(target, make, store.request_deadline(deadline)).await;
    }))
    .await;
}
