//! Judges a ratio by interleaved A/B pairs: median, 95 % interval, verdict. Pure: no clock, no I/O.
//!
//! The interval is that of the median by order statistics: with n pairs, the r-th smallest and the r-th largest ratio
//! enclose the true median unless r-1 or fewer of n fair coins show heads; r is the largest for which both sides together
//! are at most 5 % likely. No assumption about how ratios are spread. Below 6 pairs there is no such interval.
//! Source: DESIGN.md section 9 (when a ratio counts); David and Nagaraja, Order Statistics, 3rd edition, section 7.1.

use std::time::Duration;

use crate::failure::Failure;

/// Pairs that a ratio needs to count.
pub const PAIRS_MIN: usize = 11;
/// Bytes that a sample needs to count, unless it lasts [`SAMPLE_TIME_MIN`].
pub const SAMPLE_BYTES_MIN: u64 = 1 << 30;
/// How long a sample lasts to count, unless it moves [`SAMPLE_BYTES_MIN`].
pub const SAMPLE_TIME_MIN: Duration = Duration::from_secs(5);

/// One timed run of one side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Bytes moved or encoded.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
}

impl Sample {
    /// Bytes per second; 0 if it took no time (a clock that did not move shows nothing).
    // For a ratio of two of them: its precision is enough.
    #[allow(clippy::cast_precision_loss)]
    pub fn rate(&self) -> f64 {
        let seconds = self.took.as_secs_f64();
        if seconds > 0.0 { self.bytes as f64 / seconds } else { 0.0 }
    }

    /// Whether it is large or long enough to count.
    pub fn is_large(&self) -> bool {
        self.bytes >= SAMPLE_BYTES_MIN || self.took >= SAMPLE_TIME_MIN
    }
}

/// A sample of ours and one of the peer's, taken one right after the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// A.
    pub ours: Sample,
    /// B.
    pub peer: Sample,
}

impl Pair {
    /// Our rate by the peer's.
    pub fn ratio(&self) -> f64 {
        self.ours.rate() / self.peer.rate()
    }
}

/// The middle of `values`; `None` if there are none or one is not a number.
pub fn median(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values)?;
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        Some(sorted[middle])
    } else {
        Some(f64::midpoint(sorted[middle - 1], sorted[middle]))
    }
}

fn sorted(values: &[f64]) -> Option<Vec<f64>> {
    if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some(sorted)
}

/// Rank (from 1) of the order statistics that bound the median of `count` values at 95 %; `None` below 6.
fn interval_rank(count: usize) -> Option<usize> {
    let flips = u32::try_from(count).ok().filter(|flips| *flips <= 1000)?;
    let mut term = 0.5_f64.powi(i32::try_from(flips).ok()?); // P(no heads); 2^-1000 is still a normal f64
    let mut below = term;
    let mut rank = None;
    for heads in 1..=flips / 2 {
        if 2.0 * below > 0.05 {
            break;
        }
        rank = Some(usize::try_from(heads).ok()?);
        term *= f64::from(flips - heads + 1) / f64::from(heads);
        below += term;
    }
    rank
}

/// Median of some values with the interval that holds the true one with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The middle value.
    pub median: f64,
    /// Lower and upper bound; `None` with fewer than 6 values.
    pub interval: Option<(f64, f64)>,
}

impl Estimate {
    /// `None` without values, or if one is not a number.
    pub fn of(values: &[f64]) -> Option<Estimate> {
        let sorted = sorted(values)?;
        let interval =
            interval_rank(sorted.len()).map(|rank| (sorted[rank - 1], sorted[sorted.len() - rank]));
        Some(Estimate { median: median(values)?, interval })
    }
}

/// What a ratio says about its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The interval reaches the target.
    Met,
    /// The interval lies above the target and excludes it.
    Beaten,
    /// The interval lies below the target.
    Missed,
}

impl Verdict {
    /// Compares an interval with a target that is a lower bound.
    pub fn of((low, high): (f64, f64), target: f64) -> Verdict {
        if low > target {
            Verdict::Beaten
        } else if high >= target {
            Verdict::Met
        } else {
            Verdict::Missed
        }
    }

    /// The word in reports.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Met => "met",
            Verdict::Beaten => "beaten",
            Verdict::Missed => "missed",
        }
    }
}

/// Why these pairs do not count, as far as pairs themselves can say; empty if they do.
pub fn shortcomings(pairs: &[Pair]) -> Vec<String> {
    let mut reasons = Vec::new();
    if pairs.len() < PAIRS_MIN {
        reasons.push(format!("{} pairs, and {PAIRS_MIN} are needed", pairs.len()));
    }
    if pairs.iter().any(|pair| !pair.ours.is_large() || !pair.peer.is_large()) {
        reasons.push("a sample of less than 1 GiB and 5 s".to_owned());
    }
    reasons
}

/// Takes `count` pairs, A first in every other one, after one discarded run of each side that fills caches and pages.
pub fn interleave(
    count: u32,
    mut ours: impl FnMut() -> Result<Sample, Failure>,
    mut peer: impl FnMut() -> Result<Sample, Failure>,
) -> Result<Vec<Pair>, Failure> {
    ours()?;
    peer()?;
    let mut pairs = Vec::new();
    for index in 0..count {
        pairs.push(if index % 2 == 0 {
            let ours = ours()?;
            Pair { ours, peer: peer()? }
        } else {
            let peer = peer()?;
            Pair { ours: ours()?, peer }
        });
    }
    Ok(pairs)
}

/// What was measured: pairs where there is a peer, samples of our side alone where there is none.
#[derive(Debug, Default)]
pub struct Taken {
    /// With the peer.
    pub pairs: Vec<Pair>,
    /// Without.
    pub alone: Vec<Sample>,
}

/// Repeats a run until its sample is long enough to count, as the speed of a virtual machine varies; once only for a `quick` look.
pub fn long_enough(
    quick: bool,
    mut once: impl FnMut() -> Result<Sample, Failure>,
) -> Result<Sample, Failure> {
    let mut sum = once()?;
    while !quick && sum.took < SAMPLE_TIME_MIN {
        let more = once()?;
        sum = Sample { bytes: sum.bytes + more.bytes, took: sum.took + more.took };
    }
    Ok(sum)
}

/// As [`interleave`] if there is a peer; else `count` samples of our side.
pub fn take(
    count: u32,
    mut ours: impl FnMut() -> Result<Sample, Failure>,
    peer: Option<impl FnMut() -> Result<Sample, Failure>>,
) -> Result<Taken, Failure> {
    Ok(match peer {
        Some(peer) => Taken { pairs: interleave(count, ours, peer)?, alone: Vec::new() },
        None => Taken { pairs: Vec::new(), alone: (0..count).map(|_| ours()).collect::<Result<_, _>>()? },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(mib: u64, ms: u64) -> Sample {
        Sample { bytes: mib << 20, took: Duration::from_millis(ms) }
    }

    #[test]
    fn ranks_are_those_of_the_sign_test_tables() {
        // Two-sided 5 % points: n=6 -> 1, 8 -> 1, 9 -> 2, 11 -> 2, 12 -> 3, 20 -> 6, 50 -> 18, 100 -> 40.
        let table =
            [(0, None), (5, None), (6, Some(1)), (8, Some(1)), (9, Some(2)), (11, Some(2)), (12, Some(3))];
        let larger = [(20, Some(6)), (50, Some(18)), (100, Some(40))];
        for (count, rank) in table.into_iter().chain(larger) {
            assert_eq!(interval_rank(count), rank, "{count} values");
        }
        assert!(interval_rank(1000).is_some_and(|rank| (460..480).contains(&rank)));
    }

    #[test]
    fn an_estimate_is_the_median_and_two_order_statistics() {
        let values = [9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0, 10.0, 11.0];
        assert_eq!(Estimate::of(&values), Some(Estimate { median: 6.0, interval: Some((2.0, 10.0)) }));
        assert_eq!(Estimate::of(&values[..4]), Some(Estimate { median: 5.0, interval: None }));
        assert_eq!(Estimate::of(&[]), None);
        assert_eq!(Estimate::of(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn one_outlier_does_not_move_the_interval_of_eleven() {
        let mut values = [1.0; 11];
        values[3] = 100.0;
        assert_eq!(Estimate::of(&values).unwrap().interval, Some((1.0, 1.0)));
    }

    #[test]
    fn verdicts_follow_the_interval_and_not_the_median() {
        assert_eq!(Verdict::of((0.85, 0.95), 0.9), Verdict::Met);
        assert_eq!(Verdict::of((0.80, 0.90), 0.9), Verdict::Met, "it reaches the target");
        assert_eq!(Verdict::of((0.90, 0.99), 0.9), Verdict::Met, "it does not exclude the target");
        assert_eq!(Verdict::of((0.91, 0.99), 0.9), Verdict::Beaten);
        assert_eq!(Verdict::of((0.50, 0.89), 0.9), Verdict::Missed);
    }

    #[test]
    fn a_ratio_is_of_rates() {
        let pair = Pair { ours: sample(1024, 500), peer: sample(2048, 500) };
        assert!((pair.ratio() - 0.5).abs() < 1e-12);
        let nothing = Sample { bytes: 1, took: Duration::ZERO };
        assert_eq!(Estimate::of(&[Pair { ours: nothing, peer: nothing }.ratio()]), None);
    }

    #[test]
    fn small_or_few_pairs_do_not_count() {
        let large = Pair { ours: sample(1024, 10), peer: sample(1, 5000) };
        assert!(shortcomings(&[large; 11]).is_empty());
        assert_eq!(shortcomings(&[large; 10]).len(), 1);
        let small = Pair { peer: sample(1023, 4999), ..large };
        assert_eq!(shortcomings(&[large, small]).len(), 2);
    }

    #[test]
    fn sides_alternate_and_the_first_run_is_discarded() {
        let order = std::cell::RefCell::new(String::new());
        let run = |name: char| {
            order.borrow_mut().push(name);
            Ok(sample(1, 1))
        };
        assert_eq!(interleave(3, || run('a'), || run('b')).unwrap().len(), 3);
        assert_eq!(order.into_inner(), "ababbaab");
    }
}
