//! The instance's side of an operation: a task on its locality that drives the client and ends the operation.
//!
//! Thread: the instance's. Bound: one task and one slot for each launched operation; [`limits::OBJECTS_KEPT`] objects whose records are kept, so that all
//! handles of one object in a process share its turn to write.
//! **Invariant**: an operation leaves [`Face::running`] before it ends, so nobody cancels memory that its owner may free.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use base::ObjectId;
use base::units::narrow;
use client::{Client, ClientError, Object};
use futures_util::future::FutureExt;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use runtime::sync::Notify;
use runtime::{Counters, SharedBuffer, copy_counted};

use crate::abi::{CFid, entity_opcode, entity_state};
use crate::errno;
use crate::instance::Shared;
use crate::op::{Launched, OpRef, Outcome};
use crate::request::{self, EntityWork, Io, IoKind, Run, SyncTarget, Work};
use crate::{layout_id, limits, memory, say};

/// One operation that runs.
#[derive(Clone, Copy)]
struct Running {
    op: OpRef,
    serial: u64,
    object: Option<ObjectId>,
}

/// An instance, seen from its thread.
pub struct Face {
    client: Client,
    shared: Arc<Shared>,
    running: RefCell<Vec<Option<Running>>>,
    free_slots: RefCell<Vec<usize>>,
    /// An operation left `running`.
    left: Notify,
    objects: RefCell<BTreeMap<ObjectId, Object>>,
    /// Whether memory that is in no arena has to be copied for the transport.
    copies_foreign: bool,
    operations: Cell<u64>,
    lent_bytes: Cell<u64>,
    foreign_copied_bytes: Cell<u64>,
}

impl Face {
    #[must_use]
    pub fn new(client: Client, shared: Arc<Shared>) -> Face {
        // TCP sends from any memory. `copy` is for transports that need registered memory, and for tests of that way.
        let copies_foreign = std::env::var_os("CLOVIS_FOREIGN_BUFFERS").is_some_and(|value| value == "copy");
        Face {
            client,
            shared,
            running: RefCell::default(),
            free_slots: RefCell::default(),
            left: Notify::new(),
            objects: RefCell::default(),
            copies_foreign,
            operations: Cell::new(0),
            lent_bytes: Cell::new(0),
            foreign_copied_bytes: Cell::new(0),
        }
    }

    #[must_use]
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Runs an operation in a task of its own.
    pub fn spawn(face: &Rc<Face>, launched: Launched) {
        let op = launched.op();
        let (Some(work), serial) = op.take_work() else {
            launched.finish(Outcome::failed(errno::EINVAL));
            return;
        };
        let object = match &work {
            Work::Entity(work) => Some(work.id),
            Work::Io(io) => Some(io.id),
            Work::Sync(_) | Work::Refuse(_) => None,
        };
        let slot = face.enter(Running { op, serial, object });
        let running = Rc::clone(face).run(launched, work, serial, slot);
        // Detached: it ends by itself, and `end_all` reaches it through `running`.
        drop(face.client.locality().spawn("c-operation", running));
    }

    async fn run(self: Rc<Face>, launched: Launched, work: Work, serial: u64, slot: usize) {
        let op = launched.op();
        self.operations.set(self.operations.get() + 1);
        let entity = match &work {
            Work::Entity(work) => Some(work.entity),
            _ => None,
        };
        let outcome = {
            let mut body = pin!(AssertUnwindSafe(self.perform(op, serial, &work)).catch_unwind());
            poll_fn(|context| {
                if op.poll_cancelled(context) {
                    return Poll::Ready(Outcome::failed(errno::ECANCELED));
                }
                body.as_mut().poll(context).map(|ended| {
                    ended.unwrap_or_else(|_panic| {
                        say!("an operation ended with an internal error");
                        Outcome::failed(errno::EIO)
                    })
                })
            })
            .await
        };
        if outcome.carried_out != 0
            && let Some(entity) = entity
        {
            entity.set_state(entity_state::INIT);
        }
        op.loans_back().await;
        self.leave(slot);
        launched.finish(outcome);
    }

    fn enter(&self, running: Running) -> usize {
        let mut all = self.running.borrow_mut();
        match self.free_slots.borrow_mut().pop() {
            Some(slot) => {
                all[slot] = Some(running);
                slot
            }
            None => {
                all.push(Some(running));
                all.len() - 1
            }
        }
    }

    fn leave(&self, slot: usize) {
        self.running.borrow_mut()[slot] = None;
        self.free_slots.borrow_mut().push(slot);
        self.left.notify_waiters();
    }

    /// Cancels what runs and waits for its end, for a bounded time.
    pub async fn end_all(&self) {
        let locality = self.client.locality();
        let deadline = locality.now() + limits::FINI_TIMEOUT;
        loop {
            let running: Vec<OpRef> =
                self.running.borrow().iter().flatten().map(|running| running.op).collect();
            if running.is_empty() {
                return;
            }
            running.iter().for_each(OpRef::cancel);
            let left = self.left.notified();
            if locality.timeout_at(deadline, left).await.is_err() {
                say!(
                    "m0_clovis_fini: {} operations did not end in {:?}",
                    running.len(),
                    limits::FINI_TIMEOUT
                );
                return;
            }
        }
    }

    async fn perform(&self, op: OpRef, serial: u64, work: &Work) -> Outcome {
        match work {
            Work::Refuse(number) => Outcome::failed(*number),
            Work::Sync(targets) => {
                self.wait_for(targets, serial).await;
                Outcome::stable(0, 0)
            }
            Work::Entity(work) => self.entity(*work).await,
            Work::Io(io) => {
                let done = match io.kind {
                    IoKind::Read => self.read(io).await,
                    IoKind::Write => self.write(op, io).await,
                    IoKind::Alloc | IoKind::Free => self.allocate(io).await,
                };
                match done {
                    Ok(()) => Outcome::stable(0, io.bytes),
                    Err(Failure::Client(error)) => {
                        say!("{:?} of object {}: {error}", io.kind, io.id);
                        if matches!(error, ClientError::NotFound { .. }) {
                            self.objects.borrow_mut().remove(&io.id);
                        }
                        Outcome::failed(errno::of(&error))
                    }
                    Err(Failure::Attribute { block }) => {
                        say!(
                            "write of object {}: block {block} of the data does not have the CRC-32C of its attribute",
                            io.id
                        );
                        Outcome::failed(errno::EILSEQ)
                    }
                }
            }
        }
    }

    /// Waits until none of the targets that was launched before `serial` runs any more.
    async fn wait_for(&self, targets: &[SyncTarget], serial: u64) {
        let is_awaited = |running: &Running| {
            running.serial < serial
                && targets.iter().any(|target| match target {
                    SyncTarget::All => true,
                    SyncTarget::Object(object) => running.object == Some(*object),
                    SyncTarget::Launch(launch) => running.serial == *launch,
                })
        };
        while self.running.borrow().iter().flatten().any(is_awaited) {
            self.left.notified().await;
        }
    }

    async fn entity(&self, work: EntityWork) -> Outcome {
        let EntityWork { code, id, unit_bytes, entity } = work;
        let done = match code {
            entity_opcode::CREATE => self.client.create(id, unit_bytes).await.map(Some),
            entity_opcode::OPEN => self.client.open(id).await.map(Some),
            _ => self.client.delete(id).await.map(|()| None),
        };
        match done {
            Ok(object) => {
                self.objects.borrow_mut().remove(&id);
                let state = match object {
                    Some(object) => {
                        self.fill_attributes(&work, &object);
                        self.keep(id, object);
                        entity_state::OPEN
                    }
                    None => entity_state::INIT,
                };
                entity.set_state(state);
                Outcome::stable(0, 0)
            }
            // What the operation is for: these are answers, not failures.
            Err(error @ (ClientError::NotFound { .. } | ClientError::Exists { .. })) => {
                entity.set_state(entity_state::INIT);
                Outcome::stable(errno::of(&error), 0)
            }
            Err(error) => {
                say!("object {id}: {error}");
                Outcome::failed(errno::of(&error))
            }
        }
    }

    /// `ob_attr` of an object that was just made or opened.
    fn fill_attributes(&self, work: &EntityWork, object: &Object) {
        let configuration = self.client.configuration();
        let stat = object.stat();
        let attr = work.entity.attr();
        // SAFETY: the object lives until its operations are over, and this is the one on its way.
        unsafe {
            if let Some(id) = layout_id::layout_id(u64::from(stat.unit_bytes)) {
                (*attr).layout_id = id;
            }
            (*attr).pool = CFid::from(configuration.pool.pool);
            (*attr).pver = CFid::from(configuration.pool.pool_version);
        }
    }

    fn keep(&self, id: ObjectId, object: Object) {
        let mut objects = self.objects.borrow_mut();
        if objects.len() >= limits::OBJECTS_KEPT {
            let idle = objects.iter().find(|(_, object)| object.handles() == 1).map(|(id, _)| *id);
            if let Some(idle) = idle {
                objects.remove(&idle);
            }
        }
        objects.insert(id, object);
    }

    /// The object of an open entity. Opened again if its record was forgotten meanwhile.
    async fn object(&self, id: ObjectId) -> Result<Object, ClientError> {
        let kept = self.objects.borrow().get(&id).cloned();
        if let Some(object) = kept {
            return Ok(object);
        }
        let object = self.client.open(id).await?;
        // Another operation may have been faster: all share one.
        if let Some(kept) = self.objects.borrow().get(&id) {
            return Ok(kept.clone());
        }
        self.keep(id, object.clone());
        Ok(object)
    }

    async fn read(&self, io: &Io) -> Result<(), Failure> {
        let object = self.object(io.id).await?;
        self.for_each_run(io, async |run| {
            // Behind the end that this handle knows: another client may have moved it.
            if run.extent.end() > object.size() {
                object.reload().await?;
            }
            let parts = if io.refuses_holes {
                object.read_written(run.extent).await?
            } else {
                object.read(run.extent).await?
            };
            // SAFETY: the operation's data until it ends; one run writes it at a time, here.
            unsafe { request::scatter(io, run, &parts, self.client.locality().counters()) };
            drop(parts);
            if io.has_attributes() {
                request::block_checksums(io, run, |block, checksum| {
                    if let Some(word) = io.attribute(block) {
                        // SAFETY: 4 bytes of the caller's for this operation.
                        unsafe { word.write_unaligned(checksum) };
                    }
                    true
                });
            }
            Ok(())
        })
        .await
    }

    async fn write(&self, op: OpRef, io: &Io) -> Result<(), Failure> {
        let object = self.object(io.id).await?;
        if io.has_attributes() {
            for run in io.runs(u64::MAX) {
                let mut wrong = 0;
                let fits = request::block_checksums(io, run, |block, checksum| {
                    wrong = block;
                    // SAFETY: 4 bytes of the caller's for this operation.
                    io.attribute(block).is_none_or(|word| unsafe { word.read_unaligned() } == checksum)
                });
                if !fits {
                    return Err(Failure::Attribute { block: wrong });
                }
            }
        }
        self.for_each_run(io, async |run| {
            let mut parts = Vec::new();
            for (data, len) in io.segments(run.place, run.extent.count) {
                self.add_part(op, data, len, &mut parts).await;
            }
            Ok(object.write(run.extent, parts).await?)
        })
        .await
    }

    /// The caller's bytes as a buffer: lent, or copied where the transport cannot take them (counted).
    async fn add_part(&self, op: OpRef, data: NonNull<u8>, len: usize, parts: &mut Vec<SharedBuffer>) {
        let count = |cell: &Cell<u64>| cell.set(cell.get() + base::units::wide(len));
        if !self.copies_foreign || memory::is_registered(data, len) {
            count(&self.lent_bytes);
            // SAFETY: the caller's memory for this operation.
            parts.push(unsafe { op.lend(data, len) }.freeze());
            return;
        }
        count(&self.foreign_copied_bytes);
        let locality = self.client.locality();
        let mut at = 0;
        while at < len {
            let piece = (len - at).min(narrow(base::limits::BUFFER_BYTES_MAX));
            let mut buffer = locality.arena().alloc(piece).await;
            // SAFETY: as above; copied at once.
            let bytes = unsafe { std::slice::from_raw_parts(data.as_ptr().add(at), piece) };
            copy_counted(locality.counters(), &mut buffer, bytes);
            parts.push(buffer.freeze());
            at += piece;
        }
    }

    async fn allocate(&self, io: &Io) -> Result<(), Failure> {
        let object = self.object(io.id).await?;
        self.for_each_run(io, async |run| {
            match io.kind {
                IoKind::Alloc => object.allocate(run.extent).await?,
                _ => object.free(run.extent).await?,
            }
            Ok(())
        })
        .await
    }

    async fn for_each_run(
        &self,
        io: &Io,
        each: impl AsyncFn(Run) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut runs = io.runs(client::limits::OPERATION_BYTES_MAX);
        let Some(first) = runs.next() else { return Ok(()) };
        if runs.is_over() {
            return each(first).await;
        }
        let runs = std::iter::once(first).chain(runs);
        stream::iter(runs).map(Ok).try_for_each_concurrent(limits::RUNS_IN_FLIGHT, |run| each(run)).await
    }

    /// With CLOVIS_STATS in the environment: what the instance did, as one line on standard error.
    pub fn report_figures(&self, counters: &Counters) {
        if std::env::var_os("CLOVIS_STATS").is_some() {
            say!(
                "instance: {} operations, {} bytes lent, {} foreign bytes copied, {} bytes copied in all, {} system calls, {} resends",
                self.operations.get(),
                self.lent_bytes.get(),
                self.foreign_copied_bytes.get(),
                counters.copied_bytes.get(),
                counters.syscalls.get(),
                self.client.rpc().stats().requester.resends
            );
        }
    }
}

/// Why a read or write failed.
enum Failure {
    Client(ClientError),
    /// A block of a write does not have the checksum that its attribute names.
    Attribute {
        block: u64,
    },
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        Failure::Client(error)
    }
}
