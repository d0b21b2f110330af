//! The tasks that run foms. One runs foms of one type, one after another: so the memory of the handler's future, of the fom and of the task is there when the
//! next request of the type comes, and a request in steady state allocates nothing.
//!
//! Bound: as many tasks as foms run; [`limits::IDLE_FOMS_MAX`] of a type stay for the next requests when theirs are answered. They go with their
//! locality. Thread: the owning locality; nothing is borrowed while a handler's code runs.
//! **Invariant**: a desk without a fom is in the list of idle ones, or its task has ended.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::task::{Poll, Waker};

use runtime::SharedBuffer;

use crate::fom::{Fom, FomInner, FomRoom};
use crate::limits;

/// A fom that a task has to run.
pub(crate) struct Assignment {
    pub(crate) fom: Fom,
    /// The request's bytes, and where in them its body is.
    pub(crate) item: SharedBuffer,
    pub(crate) body: Range<usize>,
}

/// Where a task finds its next fom.
#[derive(Default)]
pub(crate) struct Desk {
    next: RefCell<Option<Assignment>>,
    /// Memory for the next fom, which is put there as it is made.
    room: Cell<Option<FomRoom>>,
    waker: RefCell<Option<Waker>>,
}

impl Desk {
    /// Waits for a fom.
    pub(crate) async fn next(&self) -> Assignment {
        std::future::poll_fn(|context| match self.next.take() {
            Some(next) => Poll::Ready(next),
            None => {
                let mut waker = self.waker.borrow_mut();
                if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                    *waker = Some(context.waker().clone());
                }
                Poll::Pending
            }
        })
        .await
    }
}

/// The tasks of one type that have nothing to do.
#[derive(Default)]
pub(crate) struct FomTasks {
    idle: RefCell<Vec<Rc<Desk>>>,
}

impl FomTasks {
    /// Gives a fom to an idle task, the one that was busy last: its memory is warm. Without one: the desk, with the fom on it, of a task that is to be
    /// spawned.
    pub(crate) fn give(&self, fom: FomInner, item: SharedBuffer, body: Range<usize>) -> Option<Rc<Desk>> {
        let idle = self.idle.borrow_mut().pop();
        let (desk, is_new) = idle.map_or_else(|| (Rc::default(), true), |desk| (desk, false));
        let fom = Fom::in_room(fom, desk.room.take());
        *desk.next.borrow_mut() = Some(Assignment { fom, item, body });
        if let Some(waker) = &*desk.waker.borrow() {
            waker.wake_by_ref();
        }
        is_new.then_some(desk)
    }

    /// A fom is done. False if enough tasks are idle already: this one may end.
    pub(crate) fn is_kept(&self, desk: &Rc<Desk>, done: Fom) -> bool {
        desk.room.set(done.into_room());
        let mut idle = self.idle.borrow_mut();
        let is_kept = idle.len() < limits::IDLE_FOMS_MAX;
        if is_kept {
            idle.push(Rc::clone(desk));
        }
        is_kept
    }
}
