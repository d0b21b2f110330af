//! The two clocks. Logic sees neither: it is handed a [`base::Instant`].

use std::cell::Cell;
use std::time::Duration;

use base::Instant;

/// Real time since the clock was started. Copies tell the same time, on every thread.
#[derive(Clone, Copy, Debug)]
pub struct MonotonicClock {
    origin: std::time::Instant,
}

impl MonotonicClock {
    /// A clock that begins at [`Instant::ZERO`] now. A process starts one and hands copies to its localities.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one clock that the others are told by")]
    pub fn start() -> MonotonicClock {
        MonotonicClock { origin: std::time::Instant::now() }
    }

    /// Time now. Never goes back.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant::ZERO + self.origin.elapsed()
    }
}

/// Time that stands still until it is advanced. For one thread.
#[derive(Debug, Default)]
pub struct SimulatedClock {
    now: Cell<Instant>,
}

impl SimulatedClock {
    /// A clock at [`Instant::ZERO`].
    #[must_use]
    pub fn new() -> SimulatedClock {
        SimulatedClock::default()
    }

    /// Time now.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.now.get()
    }

    /// Goes on to `at`; an earlier time changes nothing, as time never goes back.
    pub fn advance_to(&self, at: Instant) {
        self.now.set(self.now.get().max(at));
    }

    /// Goes on by `duration`.
    pub fn advance(&self, duration: Duration) {
        self.now.set(self.now.get() + duration);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simulated_time_never_goes_back() {
        let clock = SimulatedClock::new();
        clock.advance(Duration::from_secs(2));
        clock.advance_to(Instant::ZERO + Duration::from_secs(1));
        assert_eq!(clock.now(), Instant::ZERO + Duration::from_secs(2));
    }

    #[test]
    fn copies_of_the_real_clock_agree() {
        let clock = MonotonicClock::start();
        let copy = clock;
        let (first, second, third) = (clock.now(), copy.now(), clock.now());
        assert!(first <= second && second <= third);
    }
}
