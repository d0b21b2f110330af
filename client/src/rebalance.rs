//! What the copy machine of a server moves objects with: those that lie in older versions of a pool go to its newest one, one after the other.
//!
//! An object is held exclusively while it is moved. Its bytes are written beside the old ones, as a generation of their own in the newest pool
//! version; then one change of its record flips over, and the old ones are dropped. Holes stay holes. Clients that change an object in place
//! hold it shared while its pool is being rebalanced, and read its record again ([`crate::store::Store::writing_credit`]); replacements
//! write to the newest version anyway, and win over a move.
//! A rebalance that is given up ends for clients when no credit is lent any more that was lent before that was in force: of later ones the mover sees it
//! ([`is_over`]), so nobody moves an object whose writers do not hold it.
//!
//! **Invariant**: the generation of a move is the one above that of the bytes it moves, which nobody else makes. So whatever a mover that
//! died left behind has a name: it is dropped before the next one begins, once every record holder in service agrees on what is in force
//! ([`crate::store::Store::agree`]). **Invariant**: a generation is dropped only when no holder in service names it any more.
//! Left over when it stops: every object lies whole in one version or the other, and the next run goes on behind the last that was
//! looked at. Bounds: [`limits::REPAIR_OBJECTS_IN_FLIGHT`] objects, one window of [`limits::PIECE_BYTES`] each. Start at [`Client::rebalance_pool`].

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use base::{Blamed, ByteExtent, Fid, ObjectId};
use faces::{CopyEnd, Copying, PoolVersionConfig};
use fops::lock::LockMode;
use fops::object::{ObjectRecord, OpenMode};

use crate::client::Client;
use crate::error::ClientError;
use crate::limits;
use crate::object::{Object, holes, read_view};
use crate::records::Whose;
use crate::repair::{Outcome, Run};
use crate::replacement::{Replacement, drop_components};
use crate::store::Store;
use crate::view::View;

/// An object that others wait for is given up by a move that began so long ago; it is tried again later.
const YIELD_AFTER: Duration = Duration::from_secs(5);
/// Rest between two tries of an object that others wanted, so that they have it.
const YIELD_FOR: Duration = Duration::from_secs(1);
/// So often it is looked whether somebody waits for an object that waits for the rate.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Tries of an object that others go on wanting.
const TRIES_MAX: u32 = 8;

/// How one try at an object ended.
enum Try {
    /// It lies in the newest version, or is gone.
    Moved,
    /// More than K units of a group are gone.
    Lost,
    /// It was asked to stop.
    Stopped,
    /// Others want it, or changed it.
    Again,
}

/// A run through the objects of a pool.
struct Move<'a, 'b> {
    run: &'a Run<'b>,
    pool: Fid,
    newest: PoolVersionConfig,
    /// Objects in older versions that were met. Behind the first few nothing can be left of a run before this one.
    met: Cell<usize>,
}

impl Client {
    /// Moves every object of `pool` that lies in an older version to the newest one, from the last object of `copying` on. The pool has to be in
    /// rebalance, and that heeded by all servers.
    ///
    /// Errors: an object cannot be moved now (a device does not take what is written, a credit cannot be had); nothing is under way any more then.
    pub async fn rebalance_pool(&self, pool: Fid, copying: &Copying) -> Result<CopyEnd, ClientError> {
        let store = self.store().clone();
        store.fetch().await;
        let newest = store.configuration().newest_version(pool).ok_or(ClientError::NoPool { pool })?;
        let met = Cell::new(0);
        let check = || match store.configuration() {
            now if now.move_number(pool).is_none() || now.newest_version(pool).as_ref() != Some(&newest) => {
                Err(ClientError::NotMoving { pool })
            }
            _ => Ok(()),
        };
        let whose = (Whose::Holders, limits::REPAIR_OBJECTS_IN_FLIGHT);
        self.sweep(copying, whose, check, async |record, run| {
            let this = Move { run, pool, newest: newest.clone(), met: Cell::new(met.get()) };
            let outcome = self.move_record(&this, record).await;
            met.set(met.get().max(this.met.get()));
            outcome
        })
        .await
    }

    async fn move_record(&self, this: &Move<'_, '_>, record: &ObjectRecord) -> Result<Outcome, ClientError> {
        let run = this.run;
        if run.must_end() {
            return Ok(Outcome::Stopped);
        }
        let (Some(object), false) = (ObjectId::from_fid(record.object), record.deleted) else {
            return Ok(Outcome::Complete);
        };
        let lies_in = self.store().configuration().pool_version(record.pool_version);
        if lies_in.is_some_and(|version| version.pool != this.pool) {
            return Ok(Outcome::Complete);
        }
        if record.pool_version == this.newest.pool_version {
            // Perhaps the last deed of a mover that died before it had cleaned up.
            if this.met.get() < limits::REPAIR_OBJECTS_IN_FLIGHT {
                drop_components(self.store(), object, 0..record.generation).await;
            }
            run.copying.note_there(coded_bytes(record));
            return Ok(Outcome::Complete);
        }
        this.met.set(this.met.get() + 1);
        for _ in 0..TRIES_MAX {
            // Before the object is held: a pause keeps nobody from it.
            run.pace(self.locality()).await;
            if run.must_end() {
                return Ok(Outcome::Stopped);
            }
            match self.move_object(this, object).await? {
                Try::Moved => return Ok(Outcome::Complete),
                Try::Lost => return Ok(Outcome::Lost),
                Try::Stopped => return Ok(Outcome::Stopped),
                Try::Again => self.locality().sleep(YIELD_FOR).await,
            }
        }
        Err(ClientError::InUse { object, tries: TRIES_MAX })
    }

    /// One try, with the object held.
    async fn move_object(&self, this: &Move<'_, '_>, id: ObjectId) -> Result<Try, ClientError> {
        let wait = self.store().config.op_timeout;
        let holder = self.holding(id, LockMode::Exclusive, wait).await?;
        let store = holder.store();
        if is_over(store, this.pool).await {
            return Ok(Try::Stopped);
        }
        let Some(record) = in_force(&holder, id).await? else { return Ok(Try::Moved) };
        if record.pool_version == this.newest.pool_version {
            drop_components(store, id, 0..record.generation).await;
            return Ok(Try::Moved);
        }
        let Some(generation) = record.generation.checked_add(1) else { return Ok(Try::Lost) };
        // What a mover that died had written. No record names it: every holder has just said so.
        drop_components(store, id, generation..generation + 1).await;
        let object = Object::new(store.clone(), id, (record, store.configuration().version), false)?;
        let target = ObjectRecord {
            generation,
            pool_version: this.newest.pool_version,
            width: this.newest.width,
            ..record
        };
        let moving = Replacement::into(object, target)?;
        let ended = copy_bytes(&holder, this.run, &record, &moving).await;
        let ended = match ended {
            Ok(None) => match moving.commit(record.size_bytes).await {
                Ok(()) => return Ok(Try::Moved),
                // A replacement was faster, or the object is deleted.
                Err(ClientError::Replaced { .. } | ClientError::NotFound { .. }) => Ok(Try::Again),
                Err(error) => Err(error),
            },
            Ok(Some(end)) => Ok(end),
            Err(ClientError::Read { .. }) => Ok(Try::Lost),
            Err(ClientError::Replaced { .. }) => Ok(Try::Again),
            Err(error) => Err(error),
        };
        // Nothing of it stays, unless a holder may have taken the record that names it: then the next try finds out.
        match in_force(&holder, id).await {
            Ok(Some(now)) if now.generation == generation => return Ok(Try::Moved),
            Ok(_) => drop_components(store, id, generation..generation + 1).await,
            Err(_) => {}
        }
        ended
    }
}

/// True if the rebalance was given up before control lent the credit under which `store` works: what came with that shows which version was in force then.
async fn is_over(store: &Store, pool: Fid) -> bool {
    let lent_by = store.rpc.newest_seen_config_version();
    if store.configuration().version < lent_by {
        store.fetch().await;
    }
    let now = store.configuration();
    now.version < lent_by || now.move_number(pool).is_none()
}

/// The record that every holder in service has; `None`: the object is gone.
async fn in_force(holder: &Client, id: ObjectId) -> Result<Option<ObjectRecord>, ClientError> {
    let store = holder.store();
    // What is asked for when opening only names the object.
    let wish = ObjectRecord { object: id.fid(), ..holder.wish(id, None)? };
    let Some((record, _)) = store.open_record(id, OpenMode::Open, wish).await? else { return Ok(None) };
    let record = store.agree(id, record).await?;
    Ok((!record.deleted).then_some(record))
}

/// Data and parity bytes of an object, holes counted.
fn coded_bytes(record: &ObjectRecord) -> u64 {
    let (data, coded) = (u64::from(record.width.data()), u64::from(record.width.coded()));
    (record.size_bytes / data.max(1)).saturating_mul(coded)
}

/// Writes all of the object's bytes a second time. `Some`: it was left before the end.
async fn copy_bytes(
    holder: &Client,
    run: &Run<'_>,
    record: &ObjectRecord,
    moving: &Replacement,
) -> Result<Option<Try>, ClientError> {
    let store = holder.store();
    let step = (limits::PIECE_BYTES / moving.group_bytes()).max(1) * moving.group_bytes();
    let begun = store.now();
    let mut start = 0;
    while start < record.size_bytes {
        if run.must_end() {
            return Ok(Some(Try::Stopped));
        }
        if pace(holder, run).await? && store.now() >= begun + YIELD_AFTER {
            return Ok(Some(Try::Again));
        }
        let window = ByteExtent { start, count: step.min(record.size_bytes - start) };
        let bytes = copy_window(store, record, moving, window).await?;
        run.copying.note_bytes(store.now(), bytes);
        start = window.end();
    }
    Ok(None)
}

/// Waits until the rate allows more, it is to end, or somebody waits for the object: then nothing is paid here, but before the next one.
/// True if somebody does.
async fn pace(holder: &Client, run: &Run<'_>) -> Result<bool, ClientError> {
    let locality = holder.locality();
    loop {
        if holder.is_wanted()? == Some(true) {
            return Ok(true);
        }
        let (now, due) = (locality.now(), run.copying.due(locality.now()));
        if due <= now || run.must_end() {
            return Ok(false);
        }
        // Either way it is looked again.
        let _changed = locality.timeout_at(due.min(now + LOOK_AGAIN), run.copying.changed()).await;
    }
}

/// [`copy_once`], again while servers are silent; answers data and parity bytes.
async fn copy_window(
    store: &Rc<Store>,
    record: &ObjectRecord,
    moving: &Replacement,
    window: ByteExtent,
) -> Result<u64, ClientError> {
    let deadline = store.deadline();
    let mut wait = limits::RETRY_WAIT_MIN;
    loop {
        let view = View::new(store, moving.object().id(), record)?;
        match copy_once(&view, moving, window).await {
            // It may have been read where it does not stand any more.
            _ if !view.is_current() => {}
            Err(error) if error.may_retry() && store.wait_to_retry(&mut wait, deadline).await => {}
            outcome => return outcome,
        }
    }
}

async fn copy_once(view: &View, moving: &Replacement, window: ByteExtent) -> Result<u64, ClientError> {
    let (data, coded) = (u64::from(view.geometry.data()), u64::from(view.geometry.coded()));
    // What is read, and what is written with its parity.
    let _memory = view.store.memory(window.count + window.count / data * coded).await;
    let deadline = view.store.deadline();
    let (parts, has_holes) = read_view(view, window, deadline).await?;
    if !has_holes {
        moving.write_piece(window, parts, false).await?;
        return Ok(window.count / data * coded);
    }
    // Rows that were never written stay so: each run of those that were is written for itself.
    let mut bytes = 0;
    let mut from = window.start;
    let unwritten = holes(view, window, deadline).await?;
    let ends = unwritten.iter().map(|hole| (hole.start, hole.end())).chain([(window.end(), window.end())]);
    for (end, next) in ends {
        if end > from {
            let run = ByteExtent { start: from, count: end.min(window.end()) - from };
            let (parts, _) = read_view(view, run, deadline).await?;
            moving.write_run(run, view.size_bytes, parts).await?;
            bytes += run.count / data * coded;
        }
        from = from.max(next);
    }
    Ok(bytes)
}
