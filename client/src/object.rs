//! An open object: read and write in place, its record, its replacement.
//!
//! One writer at a time: writes of one handle (and its clones) wait for each other, except that the next begins while the record of the
//! last one is changed; two clients that write the same object hold it in turn (`Client::holding`) or share a named lock. Reads run
//! beside anything.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use base::units::{BLOCK_BYTES, narrow, wide};
use base::{ByteExtent, ObjectId};
use faces::rm::Hold;
use fops::object::{ObjectRecord, OpenMode};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use runtime::SharedBuffer;
use runtime::sync::{Permit, Semaphore};

use crate::error::{ClientError, Fault, UnitFailures};
use crate::geometry::OBJECT_BYTES_MAX;
use crate::group_read::{GroupRequest, Origin, read_groups};
use crate::group_write::GroupWriter;
use crate::limits;
use crate::operation::{Operation, OperationEvent, Progress};
use crate::parts::Parts;
use crate::replacement::Replacement;
use crate::store::Store;
use crate::targets;
use crate::view::View;

/// What is known of an object without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectStat {
    /// Its id.
    pub object: ObjectId,
    /// Bytes from 0 to its end.
    pub size_bytes: u64,
    /// Shape of its groups.
    pub width: base::LayoutWidth,
    /// Unit size in bytes.
    pub unit_bytes: u32,
    /// Grows with each change of the record.
    pub version: u64,
    /// Which generation of component objects holds the bytes.
    pub generation: u64,
    /// The pool version that they lie in.
    pub pool_version: base::Fid,
}

impl ObjectStat {
    pub(crate) fn of(record: &ObjectRecord) -> Option<ObjectStat> {
        Some(ObjectStat {
            object: ObjectId::from_fid(record.object)?,
            size_bytes: record.size_bytes,
            width: record.width,
            unit_bytes: record.unit_bytes,
            version: record.version,
            generation: record.generation,
            pool_version: record.pool_version,
        })
    }
}

/// An open object. Clones are one object: they share its record and its turn to write.
#[derive(Clone)]
pub struct Object(Rc<Shared>);

struct Shared {
    store: Rc<Store>,
    object: ObjectId,
    record: Cell<ObjectRecord>,
    /// Configuration version before the record was read the last time.
    looked_at: Cell<u64>,
    created: bool,
    /// Made for the record's generation and size; renewed when those change.
    view: RefCell<Option<(ObjectRecord, Rc<View>)>>,
    writing: Semaphore,
    /// The turn to move the object's end. Taken while the turn to write is held, so whoever has both sees all earlier writes in the record.
    growing: Semaphore,
    /// Where the bytes end that this handle wrote, perhaps behind the record's size: generation, and end.
    written: Cell<(u64, u64)>,
}

impl Object {
    pub(crate) fn new(
        store: Rc<Store>,
        object: ObjectId,
        (record, looked_at): (ObjectRecord, u64),
        created: bool,
    ) -> Result<Object, ClientError> {
        let shared = Shared {
            store,
            object,
            record: Cell::new(record),
            looked_at: Cell::new(looked_at),
            created,
            view: RefCell::new(None),
            writing: Semaphore::new(1),
            growing: Semaphore::new(1),
            written: Cell::new((0, 0)),
        };
        let object = Object(Rc::new(shared));
        object.view()?;
        Ok(object)
    }

    pub(crate) fn store(&self) -> &Rc<Store> {
        &self.0.store
    }

    pub(crate) fn record(&self) -> ObjectRecord {
        self.0.record.get()
    }

    pub(crate) fn view(&self) -> Result<Rc<View>, ClientError> {
        let record = self.record();
        if let Some((of, view)) = &*self.0.view.borrow()
            && *of == record
            && view.is_current()
        {
            return Ok(view.clone());
        }
        let view = Rc::new(View::new(&self.0.store, self.0.object, &record)?);
        *self.0.view.borrow_mut() = Some((record, view.clone()));
        Ok(view)
    }

    /// The object's id.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        self.0.object
    }

    /// Its size in bytes, as this handle knows it; [`Object::reload`] asks again.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.record().size_bytes
    }

    /// What is known without its bytes.
    #[must_use]
    pub fn stat(&self) -> ObjectStat {
        let record = self.record();
        ObjectStat {
            object: self.0.object,
            size_bytes: record.size_bytes,
            width: record.width,
            unit_bytes: record.unit_bytes,
            version: record.version,
            generation: record.generation,
            pool_version: record.pool_version,
        }
    }

    /// True if the call that gave this handle made the object.
    #[must_use]
    pub fn was_created(&self) -> bool {
        self.0.created
    }

    /// Bytes of a parity group: writes of whole groups read nothing back.
    #[must_use]
    pub fn group_bytes(&self) -> u64 {
        let record = self.record();
        u64::from(record.unit_bytes) * u64::from(record.width.data())
    }

    /// How many handles of this object there are, this one included: clones, and operations that run.
    #[must_use]
    pub fn handles(&self) -> usize {
        Rc::strong_count(&self.0)
    }

    /// Reads the record again. Errors: as `Client::open`.
    pub async fn reload(&self) -> Result<(), ClientError> {
        let looked_at = self.0.store.configuration().version;
        let found = self.0.store.open_record(self.0.object, OpenMode::Open, self.record()).await?;
        match found {
            Some((record, _)) if !record.deleted => {
                self.0.looked_at.set(looked_at);
                if record > self.record() {
                    self.0.record.set(record);
                }
                Ok(())
            }
            _ => Err(ClientError::NotFound { object: self.0.object }),
        }
    }

    /// Reads `extent`, cut at the object's size: the parts' lengths add up to the bytes that are there, 0 past the end.
    ///
    /// The size is the one this handle knows: where another client may have moved it, [`Object::reload`] first. Any alignment; at
    /// most [`limits::OPERATION_BYTES_MAX`]. The parts are slices of the buffers in which the bytes arrived, unit by
    /// unit in order: nothing is copied. Units that cannot be read are rebuilt. Errors: too long; [`ClientError::Read`] with
    /// each lost unit; the object was deleted meanwhile.
    pub async fn read(&self, extent: ByteExtent) -> Result<Vec<SharedBuffer>, ClientError> {
        check_length(extent)?;
        self.0.store.refresh().await;
        let _memory = self.0.store.memory(extent.count).await;
        self.read_unbounded(extent).await
    }

    /// [`Object::read`], refused if any byte of `extent` was never written: [`ClientError::Hole`]. Holes are seen in whole blocks.
    pub async fn read_written(&self, extent: ByteExtent) -> Result<Vec<SharedBuffer>, ClientError> {
        check_length(extent)?;
        self.0.store.refresh().await;
        let _memory = self.0.store.memory(extent.count).await;
        let (parts, has_holes) = self.read_and_look(extent).await?;
        let found: u64 = parts.iter().map(|part| wide(part.len())).sum();
        if has_holes || found < extent.count {
            return Err(ClientError::Hole { object: self.0.object, extent });
        }
        Ok(parts)
    }

    /// [`Object::read`] for callers that hold the memory permit already.
    pub(crate) async fn read_unbounded(&self, extent: ByteExtent) -> Result<Vec<SharedBuffer>, ClientError> {
        Ok(self.read_and_look(extent).await?.0)
    }

    /// The bytes up to the object's end, and whether there were holes among them.
    async fn read_and_look(&self, extent: ByteExtent) -> Result<(Vec<SharedBuffer>, bool), ClientError> {
        let deadline = self.0.store.deadline();
        let mut wait = limits::RETRY_WAIT_MIN;
        loop {
            let view = self.view()?;
            let end = extent.end().min(view.size_bytes);
            let clipped = ByteExtent { start: extent.start.min(end), count: end - extent.start.min(end) };
            let outcome = read_view(&view, clipped, deadline).await;
            if !view.is_current() && self.0.store.now() < deadline {
                // It may have been looked for where it does not stand any more.
                continue;
            }
            let error = match outcome {
                Ok((parts, false)) => return Ok((parts, false)),
                // Holes, or what is left after another client replaced the object and dropped this generation?
                Ok((parts, true)) => {
                    self.reload().await?;
                    if self.record().generation == view.name.generation {
                        return Ok((parts, true));
                    }
                    continue;
                }
                Err(error) => error,
            };
            let ClientError::Read { failures, .. } = &error else { return Err(error) };
            let silent = failures.0.iter().any(|failure| failure.fault.may_retry());
            self.reload().await?;
            if self.record().generation == view.name.generation
                && (!silent || !self.0.store.wait_to_retry(&mut wait, deadline).await)
            {
                return Err(error);
            }
        }
    }

    /// Writes `parts` in place at `extent`: any alignment, but blocks that it covers in part are read first. Acknowledged means durable on every device in
    /// service. Whole groups are encoded and sent; of the others the old bytes are read first. The object grows if `extent`
    /// ends behind its size.
    ///
    /// Errors: parts of another length, too long; [`ClientError::Write`] with each device that did not acknowledge:
    /// then the extent holds old and new bytes in an unknown mixture, and writing it again is the way out.
    pub async fn write(&self, extent: ByteExtent, parts: Vec<SharedBuffer>) -> Result<(), ClientError> {
        self.write_with(extent, parts, None).await
    }

    /// The same as an operation whose states can be seen; not launched yet.
    #[must_use]
    pub fn write_operation(
        &self,
        extent: ByteExtent,
        parts: Vec<SharedBuffer>,
    ) -> Operation<(), ClientError> {
        let object = self.clone();
        Operation::new(&self.0.store.locality, |progress| async move {
            object.write_with(extent, parts, Some(progress)).await
        })
    }

    /// [`Object::read`] as an operation whose states can be seen; not launched yet.
    #[must_use]
    pub fn read_operation(&self, extent: ByteExtent) -> Operation<Vec<SharedBuffer>, ClientError> {
        let object = self.clone();
        Operation::new(&self.0.store.locality, |_| async move { object.read(extent).await })
    }

    async fn write_with(
        &self,
        extent: ByteExtent,
        parts: Vec<SharedBuffer>,
        progress: Option<Progress>,
    ) -> Result<(), ClientError> {
        let mut again = false;
        for _ in 1..limits::RECORD_TRIES_MAX {
            let lay_in = self.record().pool_version;
            let written = match self.write_once(extent, parts.clone(), progress.as_ref(), again).await {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    again = true;
                    continue;
                }
                Err(error) => Err(error),
            };
            let Err(ClientError::Write { failures, .. }) = &written else { return written };
            let has = |wanted: fn(&Fault) -> bool| failures.0.iter().any(|failure| wanted(&failure.fault));
            if has(|fault| matches!(fault, Fault::CreditEnded)) {
                again = true;
                continue;
            }
            if !has(|fault| matches!(fault, Fault::Moved)) {
                return written;
            }
            // A move began after this write had, and is over: what was written went to bytes that count no more.
            self.reload().await?;
            if self.record().pool_version == lay_in {
                return written;
            }
        }
        match self.write_once(extent, parts, progress.as_ref(), again).await? {
            true => Ok(()),
            false => Err(ClientError::Conflict { object: self.0.object, tries: limits::RECORD_TRIES_MAX }),
        }
    }

    /// False: units stand elsewhere since it began, or the credit beside which it was written was void before it ended; it has to be written again. `again`: so it was.
    async fn write_once(
        &self,
        extent: ByteExtent,
        parts: Vec<SharedBuffer>,
        progress: Option<&Progress>,
        again: bool,
    ) -> Result<bool, ClientError> {
        check_length(extent)?;
        let bytes: u64 = parts.iter().map(|part| wide(part.len())).sum();
        if bytes != extent.count {
            return Err(ClientError::PartsLength { extent, bytes });
        }
        let store = &self.0.store;
        let turn = self.0.writing.acquire(1).await;
        store.refresh().await;
        let beside_copies = self.writing_credit().await?;
        self.look_beyond(extent).await?;
        let end = extent.end();
        if !extent.is_block_aligned() {
            // What stands beside the ends is read: earlier writes have to be in the record.
            drop(self.0.growing.acquire(1).await);
        }
        let (extent, parts) = self.complete_blocks(extent, parts).await?;
        let parts = Parts::gather(parts, store.locality.arena(), store.locality.counters()).await;
        let view = self.writing_view()?;
        let known = self.record().size_bytes;
        let old = view.size_bytes;
        let new = if extent.count == 0 { old } else { old.max(end) };
        write_groups(&view, extent, &parts, Some((old, new)), (true, again)).await?;
        if !view.is_current() || targets::is_void(beside_copies.as_ref()) {
            return Ok(false);
        }
        if let Some(progress) = progress {
            // The only refusal would be a body that marks twice.
            let _executed = progress.on(OperationEvent::Execute);
        }
        if new <= known {
            return Ok(true);
        }
        self.0.written.set((view.name.generation, new));
        let growing = self.0.growing.acquire(1).await;
        // The next write may begin while the record is changed: it knows from `written` what stands there.
        drop(turn);
        let done = self.grow(&view, new).await;
        drop(growing);
        if targets::is_void(beside_copies.as_ref()) {
            return Ok(false);
        }
        done.map(|()| true)
    }

    /// The credit that a change in place is made beside, if something is copied. The record is what it is under that credit.
    async fn writing_credit(&self) -> Result<Option<Hold>, ClientError> {
        let store = &self.0.store;
        let credit = store.writing_credit(self.0.object.fid(), Some(&self.record())).await?;
        if store.may_have_moved(&self.record(), self.0.looked_at.get()) {
            // It may have been moved since this handle looked, and its old bytes count no more.
            self.reload().await?;
        }
        Ok(credit)
    }

    /// The view for a write: its size counts the bytes of earlier writes whose record is still on its way.
    fn writing_view(&self) -> Result<Rc<View>, ClientError> {
        let record = self.record();
        let (generation, end) = self.0.written.get();
        if generation != record.generation || end <= record.size_bytes {
            return self.view();
        }
        Ok(Rc::new(View::new(&self.0.store, self.0.object, &ObjectRecord { size_bytes: end, ..record })?))
    }

    /// Another client may have written behind the end that this handle knows. A write of part of a group there would take its bytes
    /// for bytes that were never written, so the record is read again first.
    async fn look_beyond(&self, extent: ByteExtent) -> Result<(), ClientError> {
        let group = self.group_bytes();
        let is_partial = !extent.start.is_multiple_of(group) || !extent.end().is_multiple_of(group);
        if is_partial && extent.end().next_multiple_of(group) > self.size() {
            self.reload().await?;
        }
        Ok(())
    }

    /// The write widened to whole blocks: what stands beside its ends in their blocks is read. The caller has the turn to write.
    async fn complete_blocks(
        &self,
        extent: ByteExtent,
        mut parts: Vec<SharedBuffer>,
    ) -> Result<(ByteExtent, Vec<SharedBuffer>), ClientError> {
        if extent.is_block_aligned() || extent.count == 0 {
            return Ok((extent, parts));
        }
        let start = extent.start - extent.start % BLOCK_BYTES;
        let end = extent.end().next_multiple_of(BLOCK_BYTES);
        let before = self.read_padded(ByteExtent { start, count: extent.start - start }).await?;
        parts.splice(0..0, before);
        parts.extend(self.read_padded(ByteExtent { start: extent.end(), count: end - extent.end() }).await?);
        Ok((ByteExtent { start, count: end - start }, parts))
    }

    /// Less than a block of the object, with zeros behind its end.
    async fn read_padded(&self, extent: ByteExtent) -> Result<Vec<SharedBuffer>, ClientError> {
        if extent.count == 0 {
            return Ok(Vec::new());
        }
        let mut parts = self.read_unbounded(extent).await?;
        let found: u64 = parts.iter().map(|part| wide(part.len())).sum();
        if found < extent.count {
            parts.push(self.0.store.zeros(narrow(extent.count - found)).await);
        }
        Ok(parts)
    }

    /// Moves the object's end to `new` in the record, if it is not there yet.
    async fn grow(&self, view: &View, new: u64) -> Result<(), ClientError> {
        let generation = view.name.generation;
        let record = self.record();
        if record.generation == generation && new <= record.size_bytes {
            return Ok(());
        }
        self.change_record(|record| {
            if record.generation != generation {
                return None;
            }
            Some(ObjectRecord { size_bytes: record.size_bytes.max(new), ..*record })
        })
        .await
        .map(drop)
    }

    /// Gives the never written bytes of `extent` blocks with zeros in them, and moves the object's end behind `extent`; bytes that
    /// were written stay. Start and count: multiples of 4096.
    ///
    /// Errors: as [`Object::write`]. A device writes new bytes beside old ones, so this does not keep a later write from [`NoSpace`](fops::FopError::NoSpace).
    pub async fn allocate(&self, extent: ByteExtent) -> Result<(), ClientError> {
        let (_writing, _growing, beside_copies) = self.blocks_turns(extent).await?;
        let mut view = self.view()?;
        let below = ByteExtent {
            start: extent.start.min(view.size_bytes),
            count: extent.end().min(view.size_bytes).saturating_sub(extent.start),
        };
        let mut unwritten = holes(&view, below, self.0.store.deadline()).await?;
        while !view.is_current() {
            view = self.view()?;
            unwritten = holes(&view, below, self.0.store.deadline()).await?;
        }
        // Behind the end nothing is written: from its block on, for the block that it lies in is.
        let tail = extent.start.max(view.size_bytes.next_multiple_of(BLOCK_BYTES));
        if tail < extent.end() {
            unwritten.push(ByteExtent { start: tail, count: extent.end() - tail });
        }
        for hole in unwritten {
            self.write_zeros(hole, beside_copies.as_ref()).await?;
        }
        Ok(())
    }

    /// Makes `extent` zeros; the object's size stays, and nothing is written behind it. Start and count: multiples of 4096.
    ///
    /// Zeros are written: the blocks stay allocated. Errors: as [`Object::write`].
    pub async fn free(&self, extent: ByteExtent) -> Result<(), ClientError> {
        let (_writing, _growing, beside_copies) = self.blocks_turns(extent).await?;
        let end = extent.end().min(self.size().next_multiple_of(BLOCK_BYTES));
        if end <= extent.start {
            return Ok(());
        }
        let extent = ByteExtent { start: extent.start, count: end - extent.start };
        self.write_zeros(extent, beside_copies.as_ref()).await
    }

    /// What changes whole blocks of any place begins with: the turn to write and that to grow, the credit that a copy asks for, and the object as
    /// it is now.
    async fn blocks_turns(&self, extent: ByteExtent) -> Result<(Permit, Permit, Option<Hold>), ClientError> {
        check_length(extent)?;
        if !extent.is_block_aligned() {
            return Err(ClientError::NotAligned { extent });
        }
        let writing = self.0.writing.acquire(1).await;
        let growing = self.0.growing.acquire(1).await;
        self.0.store.refresh().await;
        let beside_copies = self.writing_credit().await?;
        self.reload().await?;
        Ok((writing, growing, beside_copies))
    }

    /// Writes zeros at whole blocks. The caller has the turn to write and that to grow, and the credit that a copy asks for.
    async fn write_zeros(&self, extent: ByteExtent, credit: Option<&Hold>) -> Result<(), ClientError> {
        let store = &self.0.store;
        let mut view = self.view()?;
        let piece = store.zeros(narrow(view.geometry.unit_bytes())).await;
        let mut parts = Vec::new();
        let mut left = narrow(extent.count);
        while left > 0 {
            let count = left.min(piece.len());
            parts.push(piece.slice(0..count));
            left -= count;
        }
        let parts = Parts::gather(parts, store.locality.arena(), store.locality.counters()).await;
        let old = view.size_bytes;
        // The end lies inside the last block as before, or moves behind the extent.
        let new = if extent.end() <= old.next_multiple_of(BLOCK_BYTES) { old } else { extent.end() };
        let mut anew: Option<Option<Hold>> = None;
        loop {
            write_groups(&view, extent, &parts, Some((old, new)), (true, anew.is_some())).await?;
            let credit = anew.as_ref().map_or(credit, Option::as_ref);
            if view.is_current() && !targets::is_void(credit) {
                let done = if new > old { self.grow(&view, new).await } else { Ok(()) };
                if !targets::is_void(credit) {
                    return done;
                }
            }
            // Units stand elsewhere since it began, or may.
            anew = Some(self.writing_credit().await?);
            view = self.view()?;
        }
    }

    /// Starts a replacement: a new generation of the object's bytes beside the old one. See [`Replacement`].
    pub async fn replace(&self) -> Result<Replacement, ClientError> {
        self.0.store.refresh().await;
        Replacement::new(self.clone())
    }

    /// Changes the record on all holders; `change` gives the new one (its version is set here), or `None` if the object is not
    /// what it was.
    pub(crate) async fn change_record(
        &self,
        change: impl Fn(&ObjectRecord) -> Option<ObjectRecord>,
    ) -> Result<ObjectRecord, ClientError> {
        for _ in 0..limits::RECORD_TRIES_MAX {
            let current = self.record();
            let changed = change(&current).ok_or(ClientError::Replaced { object: self.0.object })?;
            let record = ObjectRecord { version: current.version + 1, ..changed };
            if self.0.store.update_record(self.0.object, current.version, record).await? {
                self.0.record.set(record);
                return Ok(record);
            }
            self.reload().await?;
        }
        Err(ClientError::Conflict { object: self.0.object, tries: limits::RECORD_TRIES_MAX })
    }
}

fn check_length(extent: ByteExtent) -> Result<(), ClientError> {
    let end = extent.start.checked_add(extent.count);
    if extent.count > limits::OPERATION_BYTES_MAX || end.is_none_or(|end| end > OBJECT_BYTES_MAX) {
        let bytes_max = limits::OPERATION_BYTES_MAX;
        return Err(ClientError::TooLong { extent, bytes_max, object_max: OBJECT_BYTES_MAX });
    }
    Ok(())
}

/// The parts of `extent` (inside the size, block-aligned start) that were never written, in whole blocks, in order.
pub(crate) async fn holes(
    view: &View,
    extent: ByteExtent,
    deadline: base::Instant,
) -> Result<Vec<ByteExtent>, ClientError> {
    let mut found: Vec<ByteExtent> = Vec::new();
    for group in view.geometry.groups(extent) {
        let pieces = view.geometry.group_pieces(group, view.geometry.positions(group, extent));
        let wanted: Vec<_> =
            pieces.map(|piece| (piece.unit, piece.first_row..piece.first_row + piece.row_count)).collect();
        let units: Vec<u32> = wanted.iter().map(|(unit, _)| *unit).collect();
        let groups = read_groups(view, vec![GroupRequest { group, wanted }], deadline).await?;
        for (unit, rows) in units.into_iter().zip(groups.into_iter().flatten()) {
            for piece in rows.iter().filter(|piece| piece.origin == Origin::Hole) {
                let position = u64::from(unit) * view.geometry.unit_blocks() + piece.rows.start;
                let start = view.geometry.byte_of(group, position);
                let count = (piece.rows.end - piece.rows.start) * BLOCK_BYTES;
                match found.last_mut() {
                    Some(last) if last.end() == start => last.count += count,
                    _ => found.push(ByteExtent { start, count }),
                }
            }
        }
    }
    Ok(found)
}

/// Reads `extent` (inside the size). The flag: some of it is holes.
pub(crate) async fn read_view(
    view: &View,
    extent: ByteExtent,
    deadline: base::Instant,
) -> Result<(Vec<SharedBuffer>, bool), ClientError> {
    let geometry = view.geometry;
    let requests = geometry
        .groups(extent)
        .map(|group| {
            let pieces = geometry.group_pieces(group, geometry.positions(group, extent));
            let wanted = pieces.map(|piece| (piece.unit, piece.first_row..piece.first_row + piece.row_count));
            GroupRequest { group, wanted: wanted.collect() }
        })
        .collect();
    let groups = read_groups(view, requests, deadline).await?;
    let mut holes = false;
    let mut parts = Vec::new();
    // The first and the last block may be wanted in part.
    let mut skip = narrow(extent.start % BLOCK_BYTES);
    let mut left = narrow(extent.count);
    for rows in groups.into_iter().flatten().flatten() {
        holes |= rows.origin == Origin::Hole;
        let end = rows.bytes.len().min(skip + left);
        if skip < end {
            left -= end - skip;
            parts.push(rows.bytes.slice(skip..end));
        }
        skip = skip.saturating_sub(rows.bytes.len());
    }
    Ok((parts, holes))
}

/// Writes all groups that `extent` touches, [`limits::PIECES_IN_FLIGHT`] pieces at a time: while one is encoded others are on their
/// way. `sizes`: see [`GroupWriter::sizes`]. `bounded`: takes room for parity and old bytes; without, the caller holds it. `again`: see
/// [`GroupWriter::again`].
pub(crate) async fn write_groups(
    view: &View,
    extent: ByteExtent,
    parts: &Parts,
    sizes: Option<(u64, u64)>,
    (bounded, again): (bool, bool),
) -> Result<(), ClientError> {
    let deadline = view.store.deadline();
    let geometry = &view.geometry;
    let mut chunks: Vec<std::ops::Range<u64>> = Vec::new();
    // Growing past a tail that the write does not touch: its rows have to be completed (docs/data-flow.md#rows).
    if let Some((old, new)) = sizes
        && new > old
        && old > 0
    {
        let tail = (old - 1) / geometry.group_bytes();
        if !geometry.groups(extent).contains(&tail) {
            chunks.push(tail..tail + 1);
        }
    }
    let step = (limits::PIECE_BYTES / geometry.group_bytes()).max(1);
    let groups = geometry.groups(extent);
    let mut start = groups.start;
    while start < groups.end {
        let end = groups.end.min(start + step);
        chunks.push(start..end);
        start = end;
    }
    let writer = GroupWriter { view, extent, parts, sizes, again };
    let writer = &writer;
    stream::iter(chunks)
        .map(Ok)
        .try_for_each_concurrent(limits::PIECES_IN_FLIGHT, async |groups| {
            view.check_writable(groups.clone())?;
            // Parity of each group; where old bytes are read, up to a whole group more at either end of the write.
            let read = if sizes.is_some() { u64::from(geometry.coded()) * 2 } else { 0 };
            let parity = u64::from(geometry.width().parity()) * (groups.end - groups.start);
            let _memory = match bounded {
                true => Some(view.store.memory((parity + read) * geometry.unit_bytes()).await),
                false => None,
            };
            let mut pieces = Vec::new();
            for group in groups.clone() {
                pieces.extend(writer.pieces(group, deadline).await?);
            }
            let sent = targets::write(&view.store, view.name, pieces, deadline).await;
            view.note_skipped(sent.map_err(|failures| write_error(view, failures))?);
            // Devices that left service meanwhile were skipped: no more than K of any group may have been.
            view.check_writable(groups)
        })
        .await
}

pub(crate) fn write_error(view: &View, failures: Vec<(u32, (u64, u32), Fault)>) -> ClientError {
    let failures =
        failures.into_iter().map(|(target, unit, fault)| view.store.failure(Some(unit), target, fault));
    ClientError::Write { object: view.object, failures: UnitFailures(failures.collect()) }
}
