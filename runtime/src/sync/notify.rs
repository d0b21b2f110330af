//! A bell: tasks wait for it to ring.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

#[derive(Default)]
struct State {
    /// Set by a ring for one that found nobody waiting: the next to wait goes on at once.
    is_stored: bool,
    next_ticket: u64,
    /// `None`: rung, and the future has not been polled since.
    waiting: BTreeMap<u64, Option<Waker>>,
}

impl State {
    fn ring_one(&mut self) -> Option<Waker> {
        match self.waiting.values_mut().find(|waker| waker.is_some()) {
            Some(waker) => waker.take(),
            None => {
                self.is_stored = true;
                None
            }
        }
    }
}

/// A bell of one locality. Clones are one bell.
#[derive(Clone, Default)]
pub struct Notify {
    state: Rc<RefCell<State>>,
}

impl Notify {
    /// A bell that has not rung.
    #[must_use]
    pub fn new() -> Notify {
        Notify::default()
    }

    /// Wakes who waited longest. With nobody waiting, the next to wait goes on at once (one, however often this was called).
    pub fn notify_one(&self) {
        let waker = self.state.borrow_mut().ring_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Wakes all who wait now, in the order they came. Stores nothing for later.
    pub fn notify_waiters(&self) {
        let woken: Vec<Waker> =
            self.state.borrow_mut().waiting.values_mut().filter_map(Option::take).collect();
        woken.into_iter().for_each(Waker::wake);
    }

    /// Waits for the bell. The place in the queue counts from the first poll.
    pub fn notified(&self) -> Notified {
        Notified { state: Rc::clone(&self.state), ticket: None }
    }
}

impl fmt::Debug for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.borrow();
        write!(f, "Notify({} waiting, stored: {})", state.waiting.len(), state.is_stored)
    }
}

/// Waits for a [`Notify`]. Dropped after it was rung and before it knew, it passes the ring on to the next.
#[must_use = "a future does nothing until awaited"]
pub struct Notified {
    state: Rc<RefCell<State>>,
    ticket: Option<u64>,
}

impl Future for Notified {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let state = Rc::clone(&self.state);
        let mut state = state.borrow_mut();
        match self.ticket {
            None if state.is_stored => {
                state.is_stored = false;
                Poll::Ready(())
            }
            None => {
                let ticket = state.next_ticket;
                state.next_ticket += 1;
                state.waiting.insert(ticket, Some(context.waker().clone()));
                self.ticket = Some(ticket);
                Poll::Pending
            }
            Some(ticket) => match state.waiting.get_mut(&ticket) {
                Some(Some(waker)) => {
                    let old = std::mem::replace(waker, context.waker().clone());
                    drop(state);
                    drop(old);
                    Poll::Pending
                }
                _ => {
                    state.waiting.remove(&ticket);
                    self.ticket = None;
                    Poll::Ready(())
                }
            },
        }
    }
}

impl Drop for Notified {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let (removed, next) = {
            let mut state = self.state.borrow_mut();
            match state.waiting.remove(&ticket) {
                Some(None) => (None, state.ring_one()),
                removed => (removed, None),
            }
        };
        drop(removed);
        if let Some(waker) = next {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn one_ring_wakes_one_in_order_and_is_stored_once() {
        let bell = Notify::new();
        bell.notify_one();
        bell.notify_one();
        assert!(bell.notified().now_or_never().is_some());
        let (mut first, mut second) = (bell.notified(), bell.notified());
        assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
        bell.notify_one();
        assert!((&mut second).now_or_never().is_none());
        assert!(first.now_or_never().is_some());
        bell.notify_waiters();
        assert!(second.now_or_never().is_some());
        assert!(bell.notified().now_or_never().is_none(), "a ring for all is not stored");
    }

    #[test]
    fn a_cancelled_wait_passes_its_ring_on_and_leaves_nothing() {
        let bell = Notify::new();
        let (mut first, mut second) = (bell.notified(), bell.notified());
        assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
        bell.notify_one();
        drop(first);
        assert!(second.now_or_never().is_some());
        let mut third = bell.notified();
        assert!((&mut third).now_or_never().is_none());
        bell.notify_one();
        drop(third);
        assert!(bell.notified().now_or_never().is_some(), "stored for the next");
        assert!(bell.state.borrow().waiting.is_empty());
    }
}
