//! Timers of a locality: ordered by time, then by the order they were set, so that two of the same instant fire as set.
//!
//! A [`Sleep`] that is dropped takes its timer with it. Bound: one timer per waiting future.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use base::Instant;

use crate::locality::LocalityShared;

/// Name of a timer in [`Timers`].
type TimerKey = (Instant, u64);

/// The timers of one locality.
#[derive(Default)]
pub(crate) struct Timers {
    pending: BTreeMap<TimerKey, Waker>,
    next_sequence: u64,
}

impl Timers {
    fn set(&mut self, at: Instant, waker: Waker) -> TimerKey {
        let key = (at, self.next_sequence);
        self.next_sequence += 1;
        self.pending.insert(key, waker);
        key
    }

    /// Takes the earliest timer that is due at `now`.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<Waker> {
        let first = self.pending.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    /// When the next timer is due.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.pending.first_key_value().map(|((at, _), _)| *at)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.pending.len()
    }
}

/// Waits until an instant. Made by `LocalityHandle::sleep_until` and `sleep`.
#[must_use = "a future does nothing until awaited"]
pub struct Sleep {
    locality: Rc<LocalityShared>,
    at: Instant,
    key: Option<TimerKey>,
}

impl Sleep {
    pub(crate) fn new(locality: Rc<LocalityShared>, at: Instant) -> Sleep {
        Sleep { locality, at, key: None }
    }

    /// The instant it waits for.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.at
    }

    fn unset(&mut self) {
        let waker = self.key.take().and_then(|key| self.locality.timers.borrow_mut().pending.remove(&key));
        drop(waker); // outside the borrow: the last waker of a task may be its last part
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.locality.now.get() >= self.at {
            self.unset();
            return Poll::Ready(());
        }
        if self.at == Instant::NEVER {
            return Poll::Pending; // no timer: it would only be the deadline of a locality with nothing to do
        }
        let locality = Rc::clone(&self.locality);
        let mut timers = locality.timers.borrow_mut();
        let old = match self.key.and_then(|key| timers.pending.get_mut(&key)) {
            Some(waker) if waker.will_wake(context.waker()) => None,
            Some(waker) => Some(std::mem::replace(waker, context.waker().clone())),
            None => {
                self.key = Some(timers.set(self.at, context.waker().clone()));
                None
            }
        };
        drop(timers);
        drop(old);
        Poll::Pending
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sleep(until {:?})", self.at)
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.unset();
    }
}

/// The deadline passed before the future was ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the deadline passed")]
pub struct Elapsed;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_timers_come_by_time_then_by_order() {
        let at = Instant::from_nanos;
        let mut timers = Timers::default();
        let mut set = |nanos| timers.set(at(nanos), Waker::noop().clone()).1;
        assert_eq!([set(20), set(10), set(10), set(30)], [0, 1, 2, 3]);
        let due = |timers: &mut Timers, now| {
            let key = timers.pending.first_key_value().map(|(key, _)| key.1);
            timers.take_due(at(now)).and(key)
        };
        assert_eq!(due(&mut timers, 9), None);
        assert_eq!(due(&mut timers, 20), Some(1));
        assert_eq!(due(&mut timers, 20), Some(2));
        assert_eq!(due(&mut timers, 20), Some(0));
        assert_eq!(due(&mut timers, 20), None);
        assert_eq!(timers.next_deadline(), Some(at(30)));
    }
}
