//! The clocks. Logic sees neither: it is handed a [`base::Instant`].

use std::cell::Cell;
use std::time::Duration;

use base::Instant;
use base::time::nanos;
use runtime_sys::process;

/// Real time since the clock was started. Copies tell the same time, on every thread.
#[derive(Clone, Copy, Debug)]
pub struct MonotonicClock {
    origin_nanos: u64,
    /// Time of day at the origin, in ns since 1970.
    origin_day_nanos: u64,
}

impl MonotonicClock {
    /// A clock that begins at [`Instant::ZERO`] now. A process starts one and hands copies to its localities.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one clock that the others are told by")]
    pub fn start() -> MonotonicClock {
        let day = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        MonotonicClock { origin_nanos: process::monotonic_nanos(), origin_day_nanos: nanos(day) }
    }

    /// Time now. Never goes back.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant::from_nanos(process::monotonic_nanos().saturating_sub(self.origin_nanos))
    }

    /// The time of day at `now` in ns since 1970, as told at the start: what hosts agree in, about. Never for an order of events.
    #[must_use]
    pub(crate) fn day_nanos(&self, now: Instant) -> u64 {
        self.origin_day_nanos.wrapping_add(now.as_nanos())
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

/// What a machine's own clock shows while true time runs: an offset, and a rate. Pure; the simulation gives every node one.
///
/// **Invariant**: what it shows never goes back, whatever the rate is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriftingClock {
    /// True time since which it runs at this rate.
    since: Instant,
    /// What it showed then.
    shown: Instant,
    /// Thousandths of true time's speed.
    rate_per_mille: u32,
}

impl DriftingClock {
    /// A clock that shows `offset` more than true time and runs as fast.
    #[must_use]
    pub fn ahead_by(offset: Duration) -> DriftingClock {
        DriftingClock { since: Instant::ZERO, shown: Instant::ZERO + offset, rate_per_mille: 1000 }
    }

    /// The same clock, at `rate_per_mille` (1 or more) from true time `now` on.
    #[must_use]
    pub fn at_rate(self, now: Instant, rate_per_mille: u32) -> DriftingClock {
        DriftingClock { since: now, shown: self.shows(now), rate_per_mille: rate_per_mille.max(1) }
    }

    /// Thousandths of true time's speed.
    #[must_use]
    pub fn rate_per_mille(self) -> u32 {
        self.rate_per_mille
    }

    /// What it shows at true time `now`.
    #[must_use]
    pub fn shows(self, now: Instant) -> Instant {
        if now == Instant::NEVER {
            return now;
        }
        let passed = now.as_nanos().saturating_sub(self.since.as_nanos());
        if self.rate_per_mille == 1000 {
            return self.shown + Duration::from_nanos(passed); // nearly always, and 128-bit division is slow
        }
        let passed = u128::from(passed);
        self.shown + duration_of(passed * u128::from(self.rate_per_mille) / 1000)
    }

    /// The first true time at which it shows `shown` or more.
    #[must_use]
    pub fn first_time_of(self, shown: Instant) -> Instant {
        if shown == Instant::NEVER {
            return shown;
        }
        let ahead = shown.as_nanos().saturating_sub(self.shown.as_nanos());
        if self.rate_per_mille == 1000 {
            return self.since + Duration::from_nanos(ahead);
        }
        let ahead = u128::from(ahead);
        self.since + duration_of((ahead * 1000).div_ceil(u128::from(self.rate_per_mille)))
    }

    /// The last true time at which it shows no more than `shown`.
    #[must_use]
    pub fn last_time_of(self, shown: Instant) -> Instant {
        let after = self.first_time_of(shown + Duration::from_nanos(1));
        Instant::from_nanos(after.as_nanos() - u64::from(after > Instant::ZERO))
    }
}

fn duration_of(count: u128) -> Duration {
    Duration::from_nanos(u64::try_from(count).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drifting_clock_and_true_time_lead_to_each_other() {
        let at = Instant::from_nanos;
        for rate in [1, 300, 799, 1000, 1001, 1250, 3000] {
            let clock = DriftingClock::ahead_by(Duration::from_secs(5)).at_rate(at(1000), rate);
            let mut before = Instant::ZERO;
            for now in (1000..3000).map(at) {
                let shown = clock.shows(now);
                assert!(shown >= before, "it goes back");
                before = shown;
                assert!(clock.first_time_of(shown) <= now && now <= clock.last_time_of(shown));
                assert_eq!(clock.shows(clock.first_time_of(shown)), shown);
                assert_eq!(clock.shows(clock.last_time_of(shown)), shown);
                assert!(clock.shows(clock.first_time_of(shown + Duration::from_nanos(7))) > shown);
            }
        }
        let slow = DriftingClock::ahead_by(Duration::from_nanos(50)).at_rate(at(100), 500);
        assert_eq!(slow.shows(at(300)), at(250));
        assert_eq!(
            slow.at_rate(at(300), 2000).shows(at(400)),
            at(450),
            "a new rate goes on from what it showed"
        );
        assert_eq!(slow.first_time_of(Instant::NEVER), Instant::NEVER);
        assert_eq!(slow.shows(Instant::NEVER), Instant::NEVER);
    }

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
