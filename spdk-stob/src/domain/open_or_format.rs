//! Opens a device, or makes it a domain if it is blank: the one place where a backend is used twice.
//!
//! `open` and `format` each take their backend for good; here the first lends it, so that the second may have it. Only the
//! answer [`StobError::NotFormatted`] leads to formatting: nothing that holds anything is ever erased.

use std::cell::RefCell;
use std::os::fd::RawFd;
use std::rc::Rc;

use base::Instant;
use runtime::{Arena, LocalityHandle};

use super::{Domain, FormatParams};
use crate::backend::{Backend, BlockDone, BlockOp, Geometry};
use crate::error::StobError;

/// A backend that can be had again after its first user is gone.
#[derive(Clone)]
struct Lent(Rc<RefCell<Box<dyn Backend>>>);

impl Backend for Lent {
    fn geometry(&self) -> Geometry {
        self.0.borrow().geometry()
    }

    fn try_submit(&mut self, op: BlockOp, token: u64) -> Result<(), BlockOp> {
        self.0.borrow_mut().try_submit(op, token)
    }

    fn flush_queue(&mut self) {
        self.0.borrow_mut().flush_queue();
    }

    fn poll(&mut self, now: Instant, done: &mut Vec<BlockDone>) -> usize {
        self.0.borrow_mut().poll(now, done)
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.0.borrow().next_deadline()
    }

    fn wait_fd(&self) -> Option<RawFd> {
        self.0.borrow().wait_fd()
    }

    fn attach(&mut self, locality: &LocalityHandle) {
        self.0.borrow_mut().attach(locality);
    }

    fn register(&mut self, arena: &Arena) -> std::io::Result<()> {
        self.0.borrow_mut().register(arena)
    }
}

impl Domain {
    /// Opens the device, which has to be the one of `params`; a blank one is formatted.
    ///
    /// Errors: those of [`Domain::open`] except `NotFormatted`, and for a blank device those of [`Domain::format`].
    pub async fn open_or_format(
        locality: &LocalityHandle,
        backend: Box<dyn Backend>,
        params: FormatParams,
    ) -> Result<Domain, StobError> {
        let lent = Lent(Rc::new(RefCell::new(backend)));
        match Domain::open(locality, Box::new(lent.clone()), Some(params)).await {
            Err(StobError::NotFormatted) => Domain::format(locality, Box::new(lent), params).await,
            outcome => outcome,
        }
    }
}
