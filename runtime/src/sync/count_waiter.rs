//! "This count has reached N": a number that only grows, and tasks that wait for it to reach theirs.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

#[derive(Default)]
struct State {
    count: u64,
    next_ticket: u64,
    /// By wanted count, then by who came first.
    waiting: BTreeMap<(u64, u64), Waker>,
}

/// A growing count of one locality. Clones are one count.
#[derive(Clone, Default)]
pub struct CountWaiter {
    state: Rc<RefCell<State>>,
}

impl CountWaiter {
    /// A count that starts at `count`.
    #[must_use]
    pub fn new(count: u64) -> CountWaiter {
        CountWaiter { state: Rc::new(RefCell::new(State { count, ..State::default() })) }
    }

    /// The count now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.state.borrow().count
    }

    /// Raises the count to `count` and wakes those it reaches, the lowest wish first. A lower value changes nothing.
    pub fn advance_to(&self, count: u64) {
        let woken = {
            let mut state = self.state.borrow_mut();
            if count <= state.count {
                return;
            }
            state.count = count;
            match count.checked_add(1) {
                Some(above) => {
                    let rest = state.waiting.split_off(&(above, 0));
                    std::mem::replace(&mut state.waiting, rest)
                }
                None => std::mem::take(&mut state.waiting),
            }
        };
        woken.into_values().for_each(Waker::wake);
    }

    /// Raises the count by `count`.
    pub fn add(&self, count: u64) {
        self.advance_to(self.get().saturating_add(count));
    }

    /// Waits until the count is `count` or more.
    pub fn reached(&self, count: u64) -> Reached {
        Reached { state: Rc::clone(&self.state), count, key: None }
    }

    /// How many futures wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.state.borrow().waiting.len()
    }
}

impl fmt::Debug for CountWaiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CountWaiter(at {}, {} waiting)", self.get(), self.waiting())
    }
}

/// Waits for a [`CountWaiter`]. Dropping it leaves nothing behind.
#[must_use = "a future does nothing until awaited"]
pub struct Reached {
    state: Rc<RefCell<State>>,
    count: u64,
    key: Option<(u64, u64)>,
}

impl Future for Reached {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let state = Rc::clone(&self.state);
        let mut state = state.borrow_mut();
        if state.count >= self.count {
            return Poll::Ready(());
        }
        let key = self.key.unwrap_or_else(|| {
            state.next_ticket += 1;
            (self.count, state.next_ticket)
        });
        self.key = Some(key);
        let old = state.waiting.insert(key, context.waker().clone());
        drop(state);
        drop(old);
        Poll::Pending
    }
}

impl Drop for Reached {
    fn drop(&mut self) {
        let waker = self.key.and_then(|key| self.state.borrow_mut().waiting.remove(&key));
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn only_those_reached_go_on() {
        let count = CountWaiter::new(5);
        assert!(count.reached(5).now_or_never().is_some());
        let (mut six, mut nine) = (count.reached(6), count.reached(9));
        assert!((&mut six).now_or_never().is_none() && (&mut nine).now_or_never().is_none());
        count.add(3);
        assert_eq!((count.get(), count.waiting()), (8, 1));
        assert!(six.now_or_never().is_some() && (&mut nine).now_or_never().is_none());
        count.advance_to(2);
        assert_eq!(count.get(), 8, "never back");
        count.advance_to(u64::MAX);
        assert!(nine.now_or_never().is_some());
        count.add(1);
        assert_eq!(count.get(), u64::MAX);
    }

    #[test]
    fn a_cancelled_wait_leaves_nothing() {
        let count = CountWaiter::default();
        let mut waits: Vec<Reached> = (0..10).map(|_| count.reached(3)).collect();
        for wait in &mut waits {
            assert!(wait.now_or_never().is_none());
            assert!(wait.now_or_never().is_none(), "polled again it keeps its one place");
        }
        assert_eq!(count.waiting(), 10);
        drop(waits);
        assert_eq!((count.waiting(), Rc::strong_count(&count.state)), (0, 1));
    }
}
