//! Counted permits, given in the order they were asked for.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

#[derive(Default)]
struct State {
    free: usize,
    next_ticket: u64,
    waiting: BTreeMap<u64, (usize, Waker)>,
    /// Set aside for a ticket, not yet fetched by its future.
    granted: BTreeMap<u64, usize>,
}

impl State {
    /// Grants from the front of the queue, as far as the free permits reach. Nobody overtakes, so a large wish is not starved.
    fn grant(&mut self) -> Vec<Waker> {
        let mut woken = Vec::new();
        while let Some(first) = self.waiting.first_entry() {
            let count = first.get().0;
            if count > self.free {
                break;
            }
            let (ticket, (count, waker)) = first.remove_entry();
            self.free -= count;
            self.granted.insert(ticket, count);
            woken.push(waker);
        }
        woken
    }
}

/// Permits of one locality. Clones share them.
#[derive(Clone)]
pub struct Semaphore {
    state: Rc<RefCell<State>>,
}

impl Semaphore {
    /// `permits` free ones.
    #[must_use]
    pub fn new(permits: usize) -> Semaphore {
        Semaphore { state: Rc::new(RefCell::new(State { free: permits, ..State::default() })) }
    }

    /// Waits for `count` permits at once. More than there ever are wait for ever.
    pub fn acquire(&self, count: usize) -> Acquire {
        Acquire { semaphore: self.clone(), count, ticket: None }
    }

    /// `count` permits now, or `None` if they are not free or somebody waits.
    #[must_use]
    pub fn try_acquire(&self, count: usize) -> Option<Permit> {
        let mut state = self.state.borrow_mut();
        if state.free < count || !state.waiting.is_empty() {
            return None;
        }
        state.free -= count;
        Some(Permit { semaphore: self.clone(), count })
    }

    /// Permits that nobody holds.
    #[must_use]
    pub fn available(&self) -> usize {
        self.state.borrow().free
    }

    /// Adds permits for good.
    pub fn add_permits(&self, count: usize) {
        let woken = {
            let mut state = self.state.borrow_mut();
            state.free += count;
            state.grant()
        };
        woken.into_iter().for_each(Waker::wake);
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.borrow();
        write!(f, "Semaphore({} free, {} waiting)", state.free, state.waiting.len())
    }
}

/// Permits held; they go back on drop.
#[derive(Debug)]
#[must_use = "the permits go back when this is dropped"]
pub struct Permit {
    semaphore: Semaphore,
    count: usize,
}

impl Permit {
    /// How many permits.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Takes `count` of them out into a permit of their own, or `None` if there are not so many.
    pub fn split(&mut self, count: usize) -> Option<Permit> {
        self.count = self.count.checked_sub(count)?;
        Some(Permit { semaphore: self.semaphore.clone(), count })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.semaphore.add_permits(self.count);
    }
}

/// Waits for permits. See [`Semaphore::acquire`].
#[must_use = "a future does nothing until awaited"]
pub struct Acquire {
    semaphore: Semaphore,
    count: usize,
    ticket: Option<u64>,
}

impl Future for Acquire {
    type Output = Permit;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Permit> {
        let count = self.count;
        let Some(ticket) = self.ticket else {
            if let Some(permit) = self.semaphore.try_acquire(count) {
                return Poll::Ready(permit);
            }
            let mut state = self.semaphore.state.borrow_mut();
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.waiting.insert(ticket, (count, context.waker().clone()));
            drop(state);
            self.ticket = Some(ticket);
            return Poll::Pending;
        };
        let semaphore = self.semaphore.clone();
        let mut state = semaphore.state.borrow_mut();
        if state.granted.remove(&ticket).is_some() {
            drop(state);
            self.ticket = None;
            return Poll::Ready(Permit { semaphore, count });
        }
        let old = state.waiting.insert(ticket, (count, context.waker().clone()));
        drop(state);
        drop(old);
        Poll::Pending
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let (removed, woken) = {
            let mut state = self.semaphore.state.borrow_mut();
            let removed = state.waiting.remove(&ticket);
            if let Some(count) = state.granted.remove(&ticket) {
                state.free += count;
            }
            // Also if it only waited: those behind it may have wanted less.
            (removed, state.grant())
        };
        drop(removed);
        woken.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn permits_come_back_on_drop_and_can_be_split() {
        let semaphore = Semaphore::new(3);
        let mut permit = semaphore.acquire(3).now_or_never().unwrap();
        assert!(semaphore.try_acquire(1).is_none());
        let part = permit.split(2).unwrap();
        assert!(permit.split(2).is_none());
        assert_eq!((part.count(), permit.count()), (2, 1));
        drop(part);
        assert_eq!(semaphore.available(), 2);
        drop(permit);
        assert_eq!(semaphore.available(), 3);
    }

    #[test]
    fn a_large_wish_is_not_overtaken() {
        let semaphore = Semaphore::new(2);
        let held = semaphore.try_acquire(1).unwrap();
        let (mut large, mut small) = (semaphore.acquire(2), semaphore.acquire(1));
        assert!((&mut large).now_or_never().is_none());
        assert!((&mut small).now_or_never().is_none(), "behind the large one");
        assert!(semaphore.try_acquire(1).is_none());
        drop(held);
        let large = large.now_or_never().unwrap();
        assert!((&mut small).now_or_never().is_none());
        drop(large);
        assert!(small.now_or_never().is_some());
    }

    #[test]
    fn a_cancelled_wait_leaves_nothing_granted_or_not() {
        let semaphore = Semaphore::new(1);
        let held = semaphore.try_acquire(1).unwrap();
        let (mut large, mut small, mut last) =
            (semaphore.acquire(2), semaphore.acquire(1), semaphore.acquire(1));
        for wait in [&mut large, &mut small, &mut last] {
            assert!(wait.now_or_never().is_none());
        }
        drop(held);
        assert!((&mut small).now_or_never().is_none());
        drop(large); // now the small one is granted
        drop(small); // with its permit unfetched
        assert!(last.now_or_never().is_some());
        let state = semaphore.state.borrow();
        assert_eq!((state.free, state.waiting.len(), state.granted.len()), (1, 0, 0));
    }
}
