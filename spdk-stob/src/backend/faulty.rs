//! Injected device loss: behind a switch, every access fails with EIO, whatever the backend is.
//!
//! Each [`crate::Domain`] wraps its backend in one; `Domain::set_failed` is the switch. Unlinking a device file proves
//! nothing about a lost device, since open files live on: this does.

use std::cell::Cell;
use std::os::fd::RawFd;
use std::rc::Rc;

use base::Instant;
use runtime::{Arena, LocalityHandle};

use super::{Backend, BlockDone, BlockOp, DeviceError, EIO, Geometry, Operation};

/// Turns the failure on and off. Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct FaultSwitch(Rc<Cell<bool>>);

impl FaultSwitch {
    /// True: each access fails from now on, those in flight included.
    pub fn set_failed(&self, is_failed: bool) {
        self.0.set(is_failed);
    }

    /// Whether accesses fail.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.0.get()
    }
}

/// A backend behind a [`FaultSwitch`].
pub struct Faulty {
    inner: Box<dyn Backend>,
    switch: FaultSwitch,
    refused: Vec<BlockDone>,
}

impl Faulty {
    /// `inner`, working, and the switch that ends that.
    #[must_use]
    pub fn new(inner: Box<dyn Backend>) -> (Faulty, FaultSwitch) {
        let switch = FaultSwitch::default();
        (Faulty { inner, switch: switch.clone(), refused: Vec::new() }, switch)
    }
}

impl Backend for Faulty {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn try_submit(&mut self, op: BlockOp, token: u64) -> Result<(), BlockOp> {
        if !self.switch.is_failed() {
            return self.inner.try_submit(op, token);
        }
        let error = DeviceError::Errno { operation: op.operation(), extent: op.extent(), errno: EIO };
        self.refused.push(BlockDone { token, result: Err(error), buffer: op.into_buffer() });
        Ok(())
    }

    fn flush_queue(&mut self) {
        self.inner.flush_queue();
    }

    fn poll(&mut self, now: Instant, done: &mut Vec<BlockDone>) -> usize {
        let before = done.len();
        done.append(&mut self.refused);
        let refused = done.len();
        self.inner.poll(now, done);
        if self.switch.is_failed() {
            for late in &mut done[refused..] {
                if late.result.is_ok() {
                    let operation = if late.buffer.is_some() { Operation::Read } else { Operation::Write };
                    late.result =
                        Err(DeviceError::Errno { operation, extent: Default::default(), errno: EIO });
                }
            }
        }
        done.len() - before
    }

    fn next_deadline(&self) -> Option<Instant> {
        if self.refused.is_empty() { self.inner.next_deadline() } else { Some(Instant::ZERO) }
    }

    fn wait_fd(&self) -> Option<RawFd> {
        self.inner.wait_fd()
    }

    fn attach(&mut self, locality: &LocalityHandle) {
        self.inner.attach(locality);
    }

    fn register(&mut self, arena: &Arena) -> std::io::Result<()> {
        self.inner.register(arena)
    }
}
