//! The way from a domain to its backend: waits when the queue is full, and hands each completion to whoever waits for it.
//!
//! **Invariant**: an operation that was handed over is completed exactly once, or its waiter hears that the device was closed.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::RawFd;
use std::rc::{Rc, Weak};

use base::Instant;
use runtime::sync::oneshot;
use runtime::{Buffer, Driver, LocalityHandle};

use super::writing::DataWrite;
use crate::backend::{Backend, BlockDone, BlockOp, DeviceError, FaultSwitch, Faulty, Geometry, WriteParts};

/// Who hears of a completion.
enum Target {
    Waiter(oneshot::Sender<BlockDone>),
    Data(Rc<DataWrite>),
}

struct Queue {
    /// `None` once closed.
    backend: Option<Faulty>,
    /// Refused by a full backend, oldest first.
    waiting: VecDeque<(BlockOp, u64)>,
    targets: BTreeMap<u64, Target>,
    next_token: u64,
    /// Completions that nobody was told of yet.
    done: Vec<BlockDone>,
}

impl Queue {
    fn submit(&mut self, op: BlockOp, target: Target) {
        let Some(backend) = &mut self.backend else { return }; // the target is dropped, and so its waiter told
        let token = self.next_token;
        self.next_token += 1;
        self.targets.insert(token, target);
        if !self.waiting.is_empty() {
            self.waiting.push_back((op, token));
        } else if let Err(op) = backend.try_submit(op, token) {
            self.waiting.push_back((op, token));
        }
    }

    fn submit_waiting(&mut self) {
        let Some(backend) = &mut self.backend else { return };
        while let Some((op, token)) = self.waiting.pop_front() {
            if let Err(op) = backend.try_submit(op, token) {
                self.waiting.push_front((op, token));
                return;
            }
        }
    }

    fn look(&mut self, now: Instant) -> bool {
        let Some(backend) = &mut self.backend else { return false };
        backend.poll(now, &mut self.done);
        !self.done.is_empty()
    }

    fn poll(&mut self, now: Instant) -> Vec<(Target, BlockDone)> {
        let Some(backend) = &mut self.backend else { return Vec::new() };
        backend.poll(now, &mut self.done);
        if self.done.is_empty() {
            return Vec::new();
        }
        let targets = &mut self.targets;
        let finished =
            self.done.drain(..).filter_map(|done| targets.remove(&done.token).map(|target| (target, done)));
        let finished = finished.collect();
        self.submit_waiting();
        finished
    }
}

struct DeviceDriver(Weak<RefCell<Queue>>);

impl Driver for DeviceDriver {
    fn poll(&mut self, now: Instant, _budget: usize) -> usize {
        // Bounded by the backend's queue. The borrow ends before anybody is told.
        let Some(queue) = self.0.upgrade() else { return 0 };
        let finished = queue.borrow_mut().poll(now);
        let count = finished.len();
        for (target, done) in finished {
            match target {
                // A waiter that went away does not want it.
                Target::Waiter(sender) => drop(sender.send(done)),
                Target::Data(data_write) => data_write.on_done(done.result),
            }
        }
        count
    }

    fn look(&mut self, now: Instant) -> bool {
        self.0.upgrade().is_some_and(|queue| queue.borrow_mut().look(now))
    }

    fn flush(&mut self, _now: Instant) {
        if let Some(queue) = self.0.upgrade()
            && let Some(backend) = &mut queue.borrow_mut().backend
        {
            backend.flush_queue();
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.0.upgrade()?.borrow().backend.as_ref()?.next_deadline()
    }

    fn wait_fd(&self) -> Option<RawFd> {
        self.0.upgrade()?.borrow().backend.as_ref()?.wait_fd()
    }
}

/// A device as a domain uses it. Dropping it ends what is in flight.
pub(super) struct Device {
    queue: Rc<RefCell<Queue>>,
    driver: Rc<RefCell<dyn Driver>>,
    locality: LocalityHandle,
    switch: FaultSwitch,
    geometry: Geometry,
}

impl Device {
    /// Takes `backend` over and adds it to the locality's drivers.
    pub(super) fn start(locality: &LocalityHandle, mut backend: Box<dyn Backend>) -> Device {
        backend.attach(locality);
        // A device that cannot register memory works with memory that is not registered; its counters show it.
        let _ = backend.register(locality.arena());
        let geometry = backend.geometry();
        let (backend, switch) = Faulty::new(backend);
        let queue = Rc::new(RefCell::new(Queue {
            backend: Some(backend),
            waiting: VecDeque::new(),
            targets: BTreeMap::new(),
            next_token: 0,
            done: Vec::new(),
        }));
        let driver: Rc<RefCell<dyn Driver>> = Rc::new(RefCell::new(DeviceDriver(Rc::downgrade(&queue))));
        locality.add_driver(Rc::clone(&driver));
        Device { queue, driver, locality: locality.clone(), switch, geometry }
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub(super) fn switch(&self) -> &FaultSwitch {
        &self.switch
    }

    /// Ends what is in flight and lets go of the device and its lock.
    pub(super) fn close(&self) {
        let (backend, targets) = {
            let mut queue = self.queue.borrow_mut();
            queue.waiting.clear();
            (queue.backend.take(), std::mem::take(&mut queue.targets))
        };
        drop((backend, targets));
    }

    pub(super) fn submit_data(&self, start_block: u64, parts: WriteParts, data_write: &Rc<DataWrite>) {
        let target = Target::Data(Rc::clone(data_write));
        self.queue.borrow_mut().submit(BlockOp::Write { start_block, parts }, target);
    }

    /// Hands `op` over at once; the answer comes later.
    fn start_op(&self, op: BlockOp) -> oneshot::Receiver<BlockDone> {
        let (sender, receiver) = oneshot::channel();
        self.queue.borrow_mut().submit(op, Target::Waiter(sender));
        receiver
    }

    /// Fills `buffer` from `start_block`; submitted when called, not when polled.
    pub(super) fn read(
        &self,
        start_block: u64,
        buffer: Buffer,
    ) -> impl Future<Output = Result<Buffer, DeviceError>> + use<> {
        let receiver = self.start_op(BlockOp::Read { start_block, buffer });
        async move {
            let done = receiver.await.map_err(|_| DeviceError::Closed)?;
            done.result?;
            done.buffer.ok_or(DeviceError::Closed)
        }
    }

    /// Writes `parts`; submitted when called.
    pub(super) fn write(
        &self,
        start_block: u64,
        parts: WriteParts,
    ) -> impl Future<Output = Result<(), DeviceError>> + use<> {
        let receiver = self.start_op(BlockOp::Write { start_block, parts });
        async move { receiver.await.map_err(|_| DeviceError::Closed)?.result }
    }

    /// Tells the device now what was submitted, instead of at the end of the turn: for who has something else to do meanwhile.
    pub(super) fn start_now(&self) {
        if let Some(backend) = &mut self.queue.borrow_mut().backend {
            backend.flush_queue();
        }
    }

    /// Writes `parts`, durable when it completes; submitted when called.
    pub(super) fn write_through(
        &self,
        start_block: u64,
        parts: WriteParts,
    ) -> impl Future<Output = Result<(), DeviceError>> + use<> {
        let receiver = self.start_op(BlockOp::WriteThrough { start_block, parts });
        async move { receiver.await.map_err(|_| DeviceError::Closed)?.result }
    }

    /// Flushes what completed before this call; submitted when called.
    pub(super) fn flush(&self) -> impl Future<Output = Result<(), DeviceError>> + use<> {
        let receiver = self.start_op(BlockOp::Flush);
        async move { receiver.await.map_err(|_| DeviceError::Closed)?.result }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.locality.remove_driver(&self.driver);
        self.close();
    }
}
