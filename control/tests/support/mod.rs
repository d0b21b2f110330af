//! What the tests of control have in common: a small world on virtual time, in one thread.
#![allow(dead_code)] // each test file uses a part of it

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use base::Instant;
use runtime::{Locality, SimulatedClock, Turn};

/// Longer than anything that ends takes.
const RUN_TIME_MAX: Duration = Duration::from_secs(300);

/// Localities that a test turns.
pub trait World {
    /// The true time.
    fn clock(&self) -> &SimulatedClock;

    /// Turns all until none has work, or else the clock on to the next deadline, at most to `end`.
    fn turn(&mut self, end: Instant);

    /// Turns until `future` is done.
    fn run<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        let end = self.clock().now() + RUN_TIME_MAX;
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return value;
            }
            assert!(self.clock().now() < end, "not done after {RUN_TIME_MAX:?} of virtual time");
            self.turn(end);
        }
    }

    /// Lets `duration` of virtual time pass.
    fn pass(&mut self, duration: Duration) {
        let end = self.clock().now() + duration;
        while self.clock().now() < end {
            self.turn(end);
        }
    }
}

/// One turn of [`World::turn`]: rounds until one has progress or the second has none, then the clock goes on. `round` turns every locality once, and says whether
/// any had work and when the first wants its next turn.
///
/// Twice, because what was sent outside of a turn leaves with the flush at a turn's end, which is no progress of that locality, and may reach one
/// whose turn in this round is over.
pub fn turn_rounds(clock: &SimulatedClock, end: Instant, mut round: impl FnMut(Instant) -> Turn) {
    let now = clock.now();
    let mut next = end;
    for _ in 0..2 {
        let turn = round(now);
        if turn.progressed {
            return;
        }
        next = turn.next_deadline.map_or(end, |deadline| deadline.min(end));
    }
    // A deadline that has passed is work for the next turn; one nanosecond keeps a stuck driver from standing still.
    clock.advance_to(next.max(now + Duration::from_nanos(1)));
}

/// A round of localities that go by one clock.
pub fn turn_each<'a>(localities: impl IntoIterator<Item = &'a mut Locality>, now: Instant) -> Turn {
    let idle = Turn { progressed: false, next_deadline: None };
    localities.into_iter().fold(idle, |round, locality| both(round, locality.turn(now)))
}

/// What two turns come to.
pub fn both(one: Turn, other: Turn) -> Turn {
    let next_deadline = one.next_deadline.into_iter().chain(other.next_deadline).min();
    Turn { progressed: one.progressed | other.progressed, next_deadline }
}
