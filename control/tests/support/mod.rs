//! What the tests of control have in common: a small world on virtual time, in one thread.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use base::Instant;
use runtime::SimulatedClock;

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
