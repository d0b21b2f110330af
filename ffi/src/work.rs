//! The instance's side of an operation: a worker's task on its locality drives the client and ends the operation.
//!
//! Thread: the instance's. Bound: one worker for each launched operation ([`crate::workers`]); [`limits::OBJECTS_KEPT`] objects whose records are kept, so
//! that all handles of one object in a process share its turn to write.
//! **Invariant**: an operation leaves [`Worker::running`] before it ends, so nobody cancels memory that its owner may free.

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
use runtime::{Counters, MailReceiver, SharedBuffer, copy_counted};

use crate::abi::{CFid, entity_opcode, entity_state};
use crate::errno;
use crate::instance::{Letter, Shared};
use crate::op::{Launched, OpRef, Outcome};
use crate::request::{self, EntityWork, Io, IoKind, Run, SyncTarget, Work};
use crate::workers::{Worker, Workers};
use crate::{layout_id, limits, memory, say};

/// One operation that runs.
#[derive(Clone, Copy)]
pub struct Running {
    op: OpRef,
    serial: u64,
    object: Option<ObjectId>,
}

/// An instance, seen from its thread.
pub struct Face {
    client: Client,
    shared: Arc<Shared>,
    workers: Workers,
    /// A worker's operation is over.
    left: Notify,
    /// Somebody waits for `left`.
    is_left_awaited: Cell<bool>,
    objects: RefCell<BTreeMap<ObjectId, Object>>,
    /// Whether memory that is in no arena has to be copied for the transport.
    copies_foreign: bool,
    operations: Cell<u64>,
    lent_bytes: Cell<u64>,
    foreign_copied_bytes: Cell<u64>,
}

impl Face {
    #[must_use]
    pub fn new(client: Client, shared: Arc<Shared>, receiver: MailReceiver<Letter>) -> Face {
        // TCP sends from any memory. `copy` is for transports that need registered memory, and for tests of that way.
        let copies_foreign = std::env::var_os("CLOVIS_FOREIGN_BUFFERS").is_some_and(|value| value == "copy");
        Face {
            client,
            shared,
            workers: Workers::new(receiver),
            left: Notify::new(),
            is_left_awaited: Cell::new(false),
            objects: RefCell::default(),
            copies_foreign,
            operations: Cell::new(0),
            lent_bytes: Cell::new(0),
            foreign_copied_bytes: Cell::new(0),
        }
    }

    /// Takes letters and runs operations until the instance ends.
    pub async fn serve(self: Rc<Face>) {
        self.add_worker();
        self.workers.stopped().await;
        self.end_all().await;
        self.workers.close();
    }

    fn add_worker(self: &Rc<Face>) {
        let task = Rc::clone(self).serve_in_turns(self.workers.add());
        // Detached: it ends with the locality, or when there are enough others.
        drop(self.client.locality().spawn("c-operations", task));
    }

    /// A worker's task.
    async fn serve_in_turns(self: Rc<Face>, worker: Rc<Worker>) {
        loop {
            let letter = poll_fn(|context| self.workers.poll_turn(&worker, &self.shared, context)).await;
            let Letter::Launch(launched) = letter else { return self.workers.stop() };
            if !self.workers.pass_on(&self.shared) {
                self.add_worker();
            }
            self.run(launched, &worker).await;
            if !self.workers.rest(&worker) {
                return;
            }
        }
    }

    async fn run(&self, launched: Launched, worker: &Worker) {
        let op = launched.op();
        self.operations.set(self.operations.get() + 1);
        worker.running.set(Some(Running { op, serial: launched.serial(), object: launched.work().object() }));
        let outcome = {
            let mut body = pin!(AssertUnwindSafe(self.perform(&launched)).catch_unwind());
            let mut is_first = true;
            poll_fn(|context| {
                if std::mem::take(&mut is_first) {
                    op.wake_when_cancelled(context.waker());
                }
                if op.is_cancelled() {
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
        op.loans_back().await;
        worker.running.set(None);
        if self.is_left_awaited.take() {
            self.left.notify_waiters();
        }
        launched.finish(outcome);
    }

    /// Cancels what runs and waits for its end, for a bounded time.
    pub async fn end_all(&self) {
        let locality = self.client.locality();
        let deadline = locality.now() + limits::FINI_TIMEOUT;
        loop {
            let running = self.workers.running();
            if running.is_empty() {
                return;
            }
            running.iter().for_each(|running| running.op.cancel());
            self.is_left_awaited.set(true);
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

    async fn perform(&self, launched: &Launched) -> Outcome {
        match launched.work() {
            Work::Refuse(number) => Outcome::failed(*number),
            Work::Sync(targets) => {
                self.wait_for(targets, launched.serial()).await;
                Outcome::stable(0, 0)
            }
            Work::Entity(work) => self.entity(*work).await,
            Work::Io(io) => {
                let done = match io.kind {
                    IoKind::Read => self.read(io).await,
                    IoKind::Write => self.write(launched.op(), io).await,
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
        let is_awaited = |running: Running| {
            running.serial < serial
                && targets.iter().any(|target| match target {
                    SyncTarget::All => true,
                    SyncTarget::Object(object) => running.object == Some(*object),
                    SyncTarget::Launch(launch) => running.serial == *launch,
                })
        };
        while self.workers.is_running(is_awaited) {
            self.is_left_awaited.set(true);
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

    /// The object of an open entity, unless its record was forgotten meanwhile.
    fn kept(&self, id: ObjectId) -> Option<Object> {
        self.objects.borrow().get(&id).cloned()
    }

    /// The object of an open entity whose record may have been forgotten: opened again then.
    async fn object(&self, id: ObjectId) -> Result<Object, ClientError> {
        if let Some(object) = self.kept(id) {
            return Ok(object);
        }
        let object = self.client.open(id).await?;
        // Another operation may have been faster: all share one.
        if let Some(kept) = self.kept(id) {
            return Ok(kept);
        }
        self.keep(id, object.clone());
        Ok(object)
    }

    async fn read(&self, io: &Io) -> Result<(), Failure> {
        let object = match self.kept(io.id) {
            Some(object) => object,
            None => self.object(io.id).await?,
        };
        // Most reads are one run: those pass through no more futures than this.
        match io.only_run(client::limits::OPERATION_BYTES_MAX) {
            Some(run) => self.read_run(&object, io, run).await,
            None => self.for_each_run(io, async |run| self.read_run(&object, io, run).await).await,
        }
    }

    async fn read_run(&self, object: &Object, io: &Io, run: Run) -> Result<(), Failure> {
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
