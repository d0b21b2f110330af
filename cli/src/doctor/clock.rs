//! Clocks: what reading this machine's costs, whether something keeps its time of day right, and how far the others' are away.
//!
//! Nothing in the store is decided by the time of day: leases and deadlines count with clocks that never jump. It dates events and the
//! history of the configuration, for people.

use std::fs;
use std::hint::black_box;
use std::time::Duration;

use runtime::MonotonicClock;
use runtime::wall_clock::{self, Discipline};

use super::finding::Finding;
use super::processes::Seen;

/// Readings that are timed.
const READINGS: u32 = 20_000;
/// A reading that costs more was made by a system call or by a slow device.
const SLOW_READING: Duration = Duration::from_nanos(500);
/// Events carry seconds: clocks that are further apart put them in a wrong order.
const APART_MAX_US: u64 = 1_000_000;

pub fn all() -> Vec<Finding> {
    let source = fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    let source = source.map(|text| text.trim().to_owned()).map_err(|error| error.to_string());
    vec![
        reading(source.as_deref().map_err(String::as_str), time_of_a_reading()),
        discipline_of(wall_clock::discipline()),
    ]
}

fn time_of_a_reading() -> Duration {
    let clock = MonotonicClock::start();
    let begin = clock.now();
    for _ in 0..READINGS {
        black_box(clock.now());
    }
    clock.now().since(begin) / READINGS
}

fn reading(source: Result<&str, &str>, cost: Duration) -> Finding {
    const CHECK: &str = "clock source";
    const WHY: &str = "each request reads the clock several times";
    let named = match source {
        Ok(name) => name.to_owned(),
        Err(error) => format!("cannot tell which ({error})"),
    };
    let seen = format!("{named}; one reading took {} ns", cost.as_nanos());
    if cost <= SLOW_READING {
        return Finding::ok(CHECK, seen, WHY);
    }
    let todo = "look at /sys/devices/system/clocksource/clocksource0/available_clocksource: tsc (or kvm-clock in a guest) is fast; boot with \
                clocksource=tsc if the kernel gave it up without reason (dmesg says), and run this again on a quiet machine";
    Finding::warn(CHECK, seen, WHY, todo)
}

fn discipline_of(found: std::io::Result<Discipline>) -> Finding {
    const CHECK: &str = "time of day";
    const WHY: &str =
        "events and the configuration's history carry the time of day; nothing is decided by it";
    let todo = "run a time daemon, and look at what it says: `timedatectl`, `chronyc tracking` (chrony tells the kernel only with `rtcsync`)";
    match found {
        Ok(found) if found.is_synchronised => {
            let error = found.error_max.as_micros();
            Finding::ok(CHECK, format!("the kernel says that it is synchronised, within {error} us"), WHY)
        }
        Ok(_) => {
            Finding::warn(CHECK, "the kernel says that nothing keeps it synchronised (STA_UNSYNC)", WHY, todo)
        }
        Err(error) => Finding::warn(
            CHECK,
            format!("cannot tell whether it is synchronised: adjtimex: {error}"),
            WHY,
            todo,
        ),
    }
}

/// How far another clock is ahead of this one: behind, if below 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Apart {
    pub ahead_us: i64,
    /// The true difference is at most this further away: half of the time that question and answer took.
    pub error_us: u64,
}

impl Apart {
    /// From the times here when the question left and the answer came, and the time there in between.
    pub fn of(left_us: u64, there_us: u64, came_us: u64) -> Apart {
        let took = came_us.saturating_sub(left_us);
        let here = left_us + took / 2;
        let ahead_us = i64::try_from(i128::from(there_us) - i128::from(here)).unwrap_or(i64::MAX);
        Apart { ahead_us, error_us: took.div_ceil(2) }
    }

    fn is_far(self) -> bool {
        self.ahead_us.unsigned_abs().saturating_sub(self.error_us) > APART_MAX_US
    }

    fn text(self) -> String {
        let word = if self.ahead_us < 0 { "behind" } else { "ahead" };
        let ms = |us: u64| format!("{}.{:03} ms", us / 1000, us % 1000);
        format!("{} {word} (+- {})", ms(self.ahead_us.unsigned_abs()), ms(self.error_us))
    }
}

/// The clocks of the processes that answered, against this machine's.
pub fn differences(seen: &[Seen]) -> Vec<Finding> {
    const CHECK: &str = "clocks of the cluster";
    const WHY: &str = "events of several machines are compared by their time; none is decided by it";
    let todo = "let one time daemon keep both machines' clocks: `timedatectl` and `chronyc tracking` on each";
    let told: Vec<(&Seen, Apart)> =
        seen.iter().filter_map(|one| Some((one, one.answer.as_ref().ok()?.apart?))).collect();
    let Some((widest, apart)) = told.iter().max_by_key(|(_, apart)| apart.ahead_us.unsigned_abs()) else {
        return vec![Finding::warn(
            CHECK,
            "cannot tell: no process said what time it has",
            WHY,
            "see the findings on processes",
        )];
    };
    let far: Vec<_> = told.iter().filter(|(_, apart)| apart.is_far()).collect();
    if far.is_empty() {
        let seen = format!(
            "of {} processes, {} is furthest from this machine: {}",
            told.len(),
            widest.name,
            apart.text()
        );
        return vec![Finding::ok(CHECK, seen, WHY)];
    }
    let finding = |(one, apart): &&(&Seen, Apart)| {
        Finding::warn(
            format!("clock of {}", one.name),
            format!("{} of this machine's", apart.text()),
            WHY,
            todo,
        )
    };
    far.iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn the_difference_of_two_clocks_is_told_with_its_error() {
        let apart = Apart::of(1_000_000, 1_000_900, 1_001_000);
        assert_eq!(apart, Apart { ahead_us: 400, error_us: 500 });
        assert!(!apart.is_far());
        assert_eq!(Apart::of(5_000_000, 1_000_000, 5_000_100).text(), "4000.050 ms behind (+- 0.050 ms)");
        assert!(Apart::of(5_000_000, 1_000_000, 5_000_100).is_far());
        assert!(!Apart::of(5_000_000, 6_000_000, 11_000_000).is_far(), "the answer took too long to tell");
        assert_eq!(Apart::of(9, 5, 3).error_us, 0, "a clock that was set back meanwhile");
    }

    #[test]
    fn a_slow_clock_and_one_that_nobody_keeps_are_warnings() {
        assert_eq!(reading(Ok("tsc"), Duration::from_nanos(25)).verdict, Verdict::Ok);
        assert_eq!(reading(Ok("hpet"), Duration::from_nanos(2500)).verdict, Verdict::Warn);
        assert!(reading(Err("no file"), Duration::ZERO).seen.starts_with("cannot tell which (no file)"));
        let kept = |is_synchronised| Ok(Discipline { is_synchronised, error_max: Duration::from_millis(2) });
        assert_eq!(discipline_of(kept(true)).verdict, Verdict::Ok);
        assert_eq!(discipline_of(kept(false)).verdict, Verdict::Warn);
        let unknown = discipline_of(Err(std::io::Error::from(std::io::ErrorKind::Unsupported)));
        assert!(unknown.verdict == Verdict::Warn && unknown.seen.starts_with("cannot tell"), "{unknown:?}");
    }
}
