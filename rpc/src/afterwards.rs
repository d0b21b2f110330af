//! What a turn puts off until its messages have left, as no peer waits for it: memory that goes back, and what is noted of requests that ended. A small
//! message is at its peer some 0.1 us earlier for it.
//!
//! Bound: what one turn makes. Thread: the owning locality. Nothing is allocated once the lists have grown.
//! **Invariant**: empty between turns.

use std::cell::{Cell, RefCell};

use base::Instant;
use runtime::SharedBuffer;

use crate::addb::Side;
use crate::requester::CallId;
use crate::watchdog::FomPlace;

/// A request that was answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    /// When it was.
    pub(crate) at: Instant,
    pub(crate) request_id: u64,
    pub(crate) opcode: u16,
    /// 0, or what ADDB says of its phase.
    pub(crate) status: u32,
    pub(crate) since: Instant,
    pub(crate) whose: Whose,
}

/// On which side it was.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Whose {
    /// It was a call of ours.
    Call,
    /// It was run here. `is_leaked`: a seeded bug keeps its place among those that run.
    Fom { place: FomPlace, is_leaked: bool },
}

impl Ended {
    pub(crate) fn side(&self) -> Side {
        match self.whose {
            Whose::Call => Side::Client,
            Whose::Fom { .. } => Side::Server,
        }
    }
}

/// Work of one turn.
#[derive(Default)]
pub(crate) struct Afterwards {
    spent: RefCell<Vec<SharedBuffer>>,
    calls: RefCell<Vec<CallId>>,
    ended: Cell<Vec<Ended>>,
}

impl Afterwards {
    /// Nobody here needs these bytes any more.
    pub(crate) fn let_go(&self, bytes: SharedBuffer) {
        self.spent.borrow_mut().push(bytes);
    }

    /// Its caller has what came of it.
    pub(crate) fn let_go_of_call(&self, call: CallId) {
        self.calls.borrow_mut().push(call);
    }

    pub(crate) fn note(&self, ended: Ended) {
        let mut all = self.ended.take();
        all.push(ended);
        self.ended.set(all);
    }

    /// The messages have left: memory goes back, `forget` is called for each call that its caller is done with, and `end` for each request in
    /// the order of their ends.
    pub(crate) fn settle(&self, forget: impl FnMut(CallId), end: impl FnMut(Ended)) {
        // What goes back may wake others; that calls nothing of ours.
        self.spent.borrow_mut().clear();
        self.calls.borrow_mut().drain(..).for_each(forget);
        let mut all = self.ended.take();
        all.drain(..).for_each(end);
        self.ended.set(all);
    }
}
