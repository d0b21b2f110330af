//! How long a locality looks for work before it sleeps.
//!
//! The spin lasts twice the usual idle time, within [`limits::SPIN_MIN`] and [`limits::SPIN_MAX`]. Where idle times are usually far
//! longer than the longest spin, spinning would seldom catch the next work, so the shortest is taken.
//!
//! That alone has a trap: two localities that answer each other and both sleep measure each other's wake-ups. Where a wake-up takes
//! longer than the longest spin, idle times look hopeless to both for ever, though they would be short if both spun. So there are long
//! spins, of up to [`limits::SPIN_LONG`], paid from a purse that fills with a small part of the time that passes:
//!
//! - while spinning usually catches the work, one that came late (the other side was asleep, or not running) is waited for, with what is in the purse above
//!   a reserve for the trials: else two sides whose wake-ups are a little too long would each spend all of it alone, and have nothing left when both spin;
//! - in a window of the time of day, the same on all hosts whose clocks agree, each locality that is not idle tries: a trial shows what
//!   spinning gives only if the other side spins as well.

use base::Instant;
use base::time::nanos;

use crate::limits;

/// The idle times of a locality, and what follows from them.
#[derive(Debug, Default)]
pub(crate) struct Spin {
    last_work: Instant,
    /// True from the first turn without work until the next with some.
    is_idle: bool,
    /// Moving average of the idle times between works, in ns; a new one weighs an eighth.
    gap_nanos: u64,
    /// The last idle time, in ns.
    last_gap_nanos: u64,
    /// What long spins may still use, in ns.
    purse_nanos: u64,
    /// What the spin that goes on has used of the purse, in ns.
    overspun_nanos: u64,
}

impl Spin {
    /// Idle times above this many times the longest spin are not worth a longer spin. Above 1, as a measured idle time that
    /// ended in a sleep has the wake-up in it.
    const HOPELESS_FACTOR: u64 = 4;

    /// The purse holds this many long spins.
    const PURSE_SPINS: u64 = 8;

    /// This part of a long spin stays in the purse for trials: enough for a few wake-ups of the other side.
    const RESERVE_PART: u64 = 2;

    /// This part of an idle time fills the purse: where a spin caught the work, so that the core was in use anyway, and else.
    const CAUGHT_PART: u64 = 4;
    const MISSED_PART: u64 = 64;

    /// A window for trials begins each 2^24 ns (17 ms) of the time of day and lasts 2^20 ns (1 ms).
    const WINDOW_EACH_BITS: u32 = 24;
    const WINDOW_BITS: u32 = 20;

    /// A turn had work at `now`.
    pub(crate) fn on_work(&mut self, now: Instant) {
        if std::mem::take(&mut self.is_idle) {
            let gap = now.as_nanos().saturating_sub(self.last_work.as_nanos());
            let (longest, purse) = (nanos(limits::SPIN_MAX), nanos(limits::SPIN_LONG) * Spin::PURSE_SPINS);
            let part = if gap <= longest { Spin::CAUGHT_PART } else { Spin::MISSED_PART };
            let spent = std::mem::take(&mut self.overspun_nanos);
            self.purse_nanos = (self.purse_nanos.saturating_sub(spent) + gap / part).min(purse);
            self.last_gap_nanos = gap;
            // Cut, or one long idle time would take a hundred short ones to forget.
            let gap = gap.min(longest * Spin::HOPELESS_FACTOR * 2);
            self.gap_nanos = self.gap_nanos - self.gap_nanos / 8 + gap / 8;
        }
        self.last_work = now;
    }

    fn is_hopeless(&self) -> bool {
        self.gap_nanos > nanos(limits::SPIN_MAX) * Spin::HOPELESS_FACTOR
    }

    fn budget_nanos(&self) -> u64 {
        let (min, max) = (nanos(limits::SPIN_MIN), nanos(limits::SPIN_MAX));
        if self.is_hopeless() { min } else { (self.gap_nanos * 2).clamp(min, max) }
    }

    /// After a turn without work at `now`, which is `day_nanos` in the time of day: true if another turn should look before a sleep.
    pub(crate) fn is_wanted(&mut self, now: Instant, day_nanos: u64) -> bool {
        self.is_idle = true;
        let elapsed = now.as_nanos().saturating_sub(self.last_work.as_nanos());
        let Some(over) = elapsed.checked_sub(self.budget_nanos()) else { return true };
        let long = nanos(limits::SPIN_LONG);
        let is_trial = (day_nanos % (1 << Spin::WINDOW_EACH_BITS)) >> Spin::WINDOW_BITS == 0
            && self.last_gap_nanos < 2 * long;
        let reserve = if is_trial { 0 } else { long / Spin::RESERVE_PART };
        let purse = self.purse_nanos.saturating_sub(reserve);
        let is_long = over < long.min(purse) && (is_trial || !self.is_hopeless());
        if is_long {
            self.overspun_nanos = over;
        }
        is_long
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Outside of any window for trials.
    const NO_TRIAL: u64 = 1 << Spin::WINDOW_BITS;

    /// A hundred idle times of this length, whether spun through or not.
    fn feed(spin: &mut Spin, now: &mut Instant, gap_nanos: u64) -> u64 {
        for _ in 0..100 {
            spin.is_wanted(*now, NO_TRIAL);
            *now = *now + Duration::from_nanos(gap_nanos);
            spin.on_work(*now);
            spin.on_work(*now); // busy turns in between count as no idle time
        }
        spin.budget_nanos()
    }

    /// How long `spin` spins if no work comes, in us.
    fn spun_micros(spin: &mut Spin, now: Instant, day_nanos: u64) -> u64 {
        (0..).find(|micros| !spin.is_wanted(now + Duration::from_micros(*micros), day_nanos)).unwrap()
    }

    #[test]
    fn the_spin_follows_the_idle_times() {
        let (mut spin, mut now) = (Spin::default(), Instant::ZERO);
        assert_eq!(feed(&mut spin, &mut now, 100), nanos(limits::SPIN_MIN));
        let budget = feed(&mut spin, &mut now, 10_000);
        assert!((19_000..=20_000).contains(&budget), "{budget}");
        assert_eq!(feed(&mut spin, &mut now, 40_000), nanos(limits::SPIN_MAX));
        assert_eq!(feed(&mut spin, &mut now, 10_000_000), nanos(limits::SPIN_MIN));
        let budget = feed(&mut spin, &mut now, 20_000);
        assert!((39_000..=41_000).contains(&budget), "{budget}");
    }

    #[test]
    fn work_that_comes_late_among_short_idle_times_is_waited_for_from_the_purse() {
        let (mut spin, mut now) = (Spin::default(), Instant::ZERO);
        for _ in 0..3 {
            feed(&mut spin, &mut now, 20_000);
        }
        let caught = 300 * 20_000 / Spin::CAUGHT_PART - nanos(limits::SPIN_LONG) / Spin::RESERVE_PART;
        let spun = spun_micros(&mut spin, now, NO_TRIAL);
        assert!((caught / 1000..=caught / 1000 + 45).contains(&spun), "{spun} us of {caught} ns and 40 us");
        // It was spent: the next spin is the usual one, as nothing has filled the purse since.
        now = now + Duration::from_micros(spun);
        spin.on_work(now);
        let spun = spun_micros(&mut spin, now, NO_TRIAL);
        assert!(spun < 100, "{spun} us with an empty purse");
    }

    #[test]
    fn idle_times_a_little_too_long_leave_a_reserve_for_the_trial() {
        let (mut spin, mut now) = (Spin::default(), Instant::ZERO);
        // Longer than the longest spin, not hopeless; each is spun for as long as the purse allows, and missed.
        for _ in 0..1000 {
            let begun = now;
            while now < begun + Duration::from_micros(110) && spin.is_wanted(now, NO_TRIAL) {
                now = now + Duration::from_micros(1);
            }
            now = begun + Duration::from_micros(110);
            spin.on_work(now);
        }
        let spun = spun_micros(&mut spin, now, 0);
        assert!(spun > 400, "{spun} us in the trial");
    }

    #[test]
    fn hopeless_idle_times_are_tried_in_the_window_if_they_are_no_idleness() {
        let (mut spin, mut now) = (Spin::default(), Instant::ZERO);
        feed(&mut spin, &mut now, 600_000);
        assert_eq!(spun_micros(&mut spin, now, NO_TRIAL), 5);
        let spun = spun_micros(&mut spin, now, 0);
        assert!((940..=945).contains(&spun), "{spun} us: the shortest spin and a 64th of 60 ms");
        feed(&mut spin, &mut now, 10_000_000);
        assert_eq!(spun_micros(&mut spin, now, 0), 5, "idle");
    }
}
