//! How long requests took: counts in log-linear buckets, which can be added up over localities and processes.
//!
//! A bucket is 64 ns wide up to 512 ns, then an eighth of its power of two: a quantile is told to within 6.25 %. The last bucket takes all
//! from 515 s on. In memory and in a file a histogram is [`HISTOGRAM_WORDS`] words: key, count, sum, longest, buckets.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base::time::nanos;
use base::units::{narrow, wide};

/// Words of a histogram.
pub const HISTOGRAM_WORDS: usize = 256;
/// Buckets of a histogram.
pub const BUCKETS: usize = 248;

const KEY: usize = 0;
const COUNT: usize = 1;
const SUM: usize = 2;
const LONGEST: usize = 3;
const FIRST_BUCKET: usize = 4;
const _: () = assert!(FIRST_BUCKET + BUCKETS <= HISTOGRAM_WORDS);

/// Set in the key of a histogram in use.
const IN_USE: u64 = 1 << 63;
/// log2 of the width of the first buckets in nanoseconds.
const UNIT_BITS: u32 = 6;
/// log2 of the buckets for each power of two.
const SUB_BITS: u32 = 3;

/// Who saw the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// From its arrival to its reply.
    Server,
    /// From the call to its answer.
    Client,
}

impl Side {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Side::Server => "server",
            Side::Client => "client",
        }
    }
}

/// What a histogram is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Who saw it.
    pub side: Side,
    /// The fop's number; `None`: of all that found no histogram of their own.
    pub opcode: Option<u16>,
}

impl Key {
    pub(crate) fn word(self) -> u64 {
        let side = if self.side == Side::Client { 1 << 16 } else { 0 };
        IN_USE | side | self.opcode.map_or(1 << 17, u64::from)
    }

    fn parse(word: u64) -> Option<Key> {
        let side = if word & (1 << 16) == 0 { Side::Server } else { Side::Client };
        let opcode = u16::try_from(word & 0xffff).ok().filter(|_| word & (1 << 17) == 0);
        let key = Key { side, opcode };
        (key.word() == word).then_some(key)
    }
}

/// The bucket of a time.
fn bucket(time_ns: u64) -> usize {
    let units = time_ns >> UNIT_BITS;
    if units < 1 << SUB_BITS {
        return narrow(units);
    }
    let exponent = units.ilog2();
    let sub = (units >> (exponent - SUB_BITS)) & ((1 << SUB_BITS) - 1);
    narrow((u64::from(exponent - SUB_BITS + 1) << SUB_BITS) + sub).min(BUCKETS - 1)
}

/// First time of a bucket.
fn lower_ns(bucket: usize) -> u64 {
    let bucket = wide(bucket);
    let step = bucket >> SUB_BITS;
    if step == 0 {
        return bucket << UNIT_BITS;
    }
    ((1 << SUB_BITS) + (bucket & ((1 << SUB_BITS) - 1))) << (step - 1) << UNIT_BITS
}

/// Adds a time in nanoseconds to the histogram in `words`. One thread writes; others may read.
#[inline]
pub(crate) fn add(words: &[AtomicU64], time_ns: u64) {
    let Some(words) = words.get(..HISTOGRAM_WORDS) else { return };
    let bucket = &words[FIRST_BUCKET + bucket(time_ns)];
    bucket.store(raised(bucket, 1), Ordering::Relaxed);
    words[COUNT].store(raised(&words[COUNT], 1), Ordering::Relaxed);
    words[SUM].store(raised(&words[SUM], time_ns), Ordering::Relaxed);
    if time_ns > u64::from_le(words[LONGEST].load(Ordering::Relaxed)) {
        words[LONGEST].store(time_ns.to_le(), Ordering::Relaxed);
    }
}

/// A word, little endian, with `more` added.
#[inline]
pub(crate) fn raised(word: &AtomicU64, more: u64) -> u64 {
    u64::from_le(word.load(Ordering::Relaxed)).wrapping_add(more).to_le()
}

/// Times of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    count: u64,
    sum_ns: u64,
    longest_ns: u64,
    buckets: Vec<u64>,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { count: 0, sum_ns: 0, longest_ns: 0, buckets: vec![0; BUCKETS] }
    }
}

/// Buckets that may differ from the count: a request is being added, or was when the process died.
const TORN_MAX: u64 = 1;

impl Histogram {
    /// Reads the words of one histogram. `Ok(None)`: not in use. Errors: `()`, its parts contradict each other.
    #[allow(clippy::result_unit_err)] // there is one way to be wrong, and it is only counted
    pub fn parse(words: &[u64; HISTOGRAM_WORDS]) -> Result<Option<(Key, Histogram)>, ()> {
        if words[KEY] == 0 && words.iter().all(|word| *word == 0) {
            return Ok(None);
        }
        let key = Key::parse(words[KEY]).ok_or(())?;
        let buckets = words[FIRST_BUCKET..FIRST_BUCKET + BUCKETS].to_vec();
        let total = buckets.iter().try_fold(0_u64, |sum, one| sum.checked_add(*one)).ok_or(())?;
        let is_blank_behind = words[FIRST_BUCKET + BUCKETS..].iter().all(|word| *word == 0);
        if total.abs_diff(words[COUNT]) > TORN_MAX || !is_blank_behind {
            return Err(());
        }
        Ok(Some((key, Histogram { count: total, sum_ns: words[SUM], longest_ns: words[LONGEST], buckets })))
    }

    /// Adds one time.
    pub fn add(&mut self, time: Duration) {
        let time_ns = nanos(time);
        self.buckets[bucket(time_ns)] += 1;
        self.count += 1;
        self.sum_ns = self.sum_ns.saturating_add(time_ns);
        self.longest_ns = self.longest_ns.max(time_ns);
    }

    /// Adds the times of another.
    pub fn merge(&mut self, other: &Histogram) {
        self.count = self.count.saturating_add(other.count);
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
        self.longest_ns = self.longest_ns.max(other.longest_ns);
        for (mine, others) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine = mine.saturating_add(*others);
        }
    }

    /// The times that were added since `before`, an earlier state of the same histogram. Its longest is told as precisely as a bucket is wide.
    #[must_use]
    pub fn since(&self, before: &Histogram) -> Histogram {
        let mut since = Histogram::default();
        for (bucket, count) in self.buckets.iter().enumerate() {
            let more = count.saturating_sub(before.buckets[bucket]);
            since.buckets[bucket] = more;
            since.count = since.count.saturating_add(more);
            if more > 0 {
                since.longest_ns = lower_ns(bucket + 1).min(self.longest_ns);
            }
        }
        since.sum_ns = self.sum_ns.saturating_sub(before.sum_ns);
        since
    }

    /// How many times are shorter than 2^`power` nanoseconds: exact from 2^6 on, as no bucket has such a time inside.
    #[must_use]
    pub fn below_power(&self, power: u32) -> u64 {
        let end = 1_u64.checked_shl(power).map_or(BUCKETS, bucket);
        self.buckets[..end].iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The buckets that are not empty: number and count.
    pub fn filled(&self) -> impl Iterator<Item = (u8, u64)> + '_ {
        let filled = (0_u8..).zip(&self.buckets).filter(|(_, count)| **count > 0);
        filled.map(|(bucket, count)| (bucket, *count))
    }

    /// Of what [`Histogram::filled`] and the two figures gave, also of somebody else; buckets that there are not are left out.
    #[must_use]
    pub fn of_filled(filled: impl Iterator<Item = (u8, u64)>, sum: Duration, longest: Duration) -> Histogram {
        let mut histogram =
            Histogram { sum_ns: nanos(sum), longest_ns: nanos(longest), ..Histogram::default() };
        for (bucket, count) in filled {
            if let Some(found) = histogram.buckets.get_mut(usize::from(bucket)) {
                *found = found.saturating_add(count);
                histogram.count = histogram.count.saturating_add(count);
            }
        }
        histogram
    }

    /// Times in it.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// All times together.
    #[must_use]
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns)
    }

    /// The longest time.
    #[must_use]
    pub fn longest(&self) -> Duration {
        Duration::from_nanos(self.longest_ns)
    }

    /// The time that `percent` of all are not longer than: the middle of its bucket, at most the longest. Zero if there are none.
    #[must_use]
    pub fn percentile(&self, percent: u32) -> Duration {
        let wanted = u128::from(self.count) * u128::from(percent.min(100));
        let mut below = 0_u128;
        for (bucket, count) in self.buckets.iter().enumerate() {
            below += u128::from(*count);
            if *count > 0 && below * 100 >= wanted {
                let middle_ns = lower_ns(bucket).midpoint(lower_ns(bucket + 1));
                return Duration::from_nanos(middle_ns.min(self.longest_ns));
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_a_gap_and_are_narrow() {
        for index in 0..BUCKETS - 1 {
            let (first, next) = (lower_ns(index), lower_ns(index + 1));
            assert_eq!((bucket(first), bucket(next - 1), bucket(next)), (index, index, index + 1));
            assert!(next - first <= (first / 8).max(64), "bucket {index} is {first} to {next}");
        }
        assert_eq!((bucket(0), bucket(u64::MAX)), (0, BUCKETS - 1));
        assert_eq!(Duration::from_nanos(lower_ns(BUCKETS - 1)).as_secs(), 515);
    }

    #[test]
    fn quantiles_are_near_and_sums_are_exact() {
        let words: Vec<AtomicU64> = (0..HISTOGRAM_WORDS).map(|_| AtomicU64::new(0)).collect();
        let key = Key { side: Side::Client, opcode: Some(32) };
        words[KEY].store(key.word().to_le(), Ordering::Relaxed);
        let mut same = Histogram::default();
        for us in 1..=1000 {
            add(&words, us * 1000);
            same.add(Duration::from_micros(us));
        }
        let read: Vec<u64> = words.iter().map(|word| u64::from_le(word.load(Ordering::Relaxed))).collect();
        let mut read: [u64; HISTOGRAM_WORDS] = read.try_into().unwrap();
        let (found, histogram) = Histogram::parse(&read).unwrap().unwrap();
        assert_eq!((found, &histogram), (key, &same));
        assert_eq!((histogram.count(), histogram.sum()), (1000, Duration::from_micros(500_500)));
        for (percent, us) in [(50, 500), (99, 990), (100, 1000), (0, 1)] {
            let near = histogram.percentile(percent);
            let wanted = Duration::from_micros(us);
            assert!(near.abs_diff(wanted) <= wanted / 15, "p{percent}: {near:?}");
        }
        let (sum, longest) = (histogram.sum(), histogram.longest());
        assert_eq!(Histogram::of_filled(histogram.filled(), sum, longest), histogram);
        let hostile = [(3, u64::MAX), (3, 1), (250, 7)].into_iter();
        assert_eq!(Histogram::of_filled(hostile, sum, longest).count(), u64::MAX, "nothing overflows");

        let mut twice = histogram.clone();
        twice.merge(&histogram);
        assert_eq!((twice.count(), twice.percentile(50)), (2000, histogram.percentile(50)));
        assert_eq!(Histogram::default().percentile(99), Duration::ZERO);

        read[FIRST_BUCKET] += 1;
        assert!(Histogram::parse(&read).is_ok(), "one was being added");
        read[FIRST_BUCKET + 3] ^= 1 << 40;
        assert_eq!(Histogram::parse(&read), Err(()));
        assert_eq!(Histogram::parse(&[0; HISTOGRAM_WORDS]), Ok(None));
        assert_eq!(Histogram::parse(&[u64::MAX; HISTOGRAM_WORDS]), Err(()));
    }

    #[test]
    fn what_was_added_since_is_told_apart() {
        let mut before = Histogram::default();
        before.add(Duration::from_secs(3));
        let mut now = before.clone();
        assert_eq!(now.since(&before), Histogram::default());
        now.add(Duration::from_micros(10));
        now.add(Duration::from_micros(20));
        let since = now.since(&before);
        assert_eq!((since.count(), since.sum()), (2, Duration::from_micros(30)));
        assert!(since.longest() >= Duration::from_micros(20) && since.longest() < Duration::from_micros(23));
        assert_eq!(before.since(&now).count(), 0, "another process began the file again");
    }

    #[test]
    fn powers_of_two_part_a_histogram_exactly() {
        let mut histogram = Histogram::default();
        for ns in [0, 63, 64, 1023, 1024, 1 << 40] {
            histogram.add(Duration::from_nanos(ns));
        }
        assert_eq!([6, 7, 10, 11, 39, 64].map(|power| histogram.below_power(power)), [2, 3, 4, 5, 5, 6]);
    }

    #[test]
    fn keys_are_read_as_they_are_written() {
        for side in [Side::Server, Side::Client] {
            for opcode in [None, Some(0), Some(74), Some(u16::MAX)] {
                let key = Key { side, opcode };
                assert_eq!(Key::parse(key.word()), Some(key));
            }
        }
        assert_eq!((Key::parse(0), Key::parse(IN_USE | 1 << 18)), (None, None));
    }
}
