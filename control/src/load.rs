//! What the data services did in the last hour: sums of what they report, in periods of [`PERIOD`], for people to look at.
//!
//! Pure; kept in memory and not in the store: after a restart of control the hour begins anew. A report tells what a process did since it
//! started, so one that is lost or comes twice changes nothing but when its part is counted; the first of an incarnation is counted from the
//! second on, as it may tell of a long time.
//! Bounds: [`PERIODS_KEPT`] samples, one report kept for each locality of a registered server. Start at [`LoadBook::note`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use base::time::nanos;
use base::{Fid, Instant};
use faces::limits::{LOAD_PERIOD as PERIOD, LOAD_PERIODS_KEPT as PERIODS_KEPT};
use faces::load::histogram_of;
use fops::load::{LoadGet, LoadGetReply, LoadReport, LoadSample};
use rpc::addb::Histogram;

/// What a locality of one incarnation of a process did, in sum.
#[derive(Clone, Debug, Default)]
struct Done {
    epoch: u64,
    read_bytes: u64,
    written_bytes: u64,
    reads: Histogram,
    writes: Histogram,
}

impl Done {
    fn of(report: &LoadReport) -> Done {
        Done {
            epoch: report.epoch,
            read_bytes: report.read_bytes,
            written_bytes: report.written_bytes,
            reads: histogram_of(&report.reads),
            writes: histogram_of(&report.writes),
        }
    }
}

/// The period that runs.
#[derive(Debug, Default)]
struct Open {
    /// Counts from 1.
    number: u64,
    reporters: BTreeSet<Fid>,
    done: Done,
}

/// The samples, and what they are made of.
#[derive(Debug)]
pub struct LoadBook {
    began: Instant,
    open: Open,
    samples: VecDeque<LoadSample>,
    /// By process and locality.
    last: BTreeMap<(Fid, u32), Done>,
}

impl LoadBook {
    /// A book that begins at `now`.
    #[must_use]
    pub fn new(now: Instant) -> LoadBook {
        let open = Open { number: 1, ..Open::default() };
        LoadBook { began: now, open, samples: VecDeque::new(), last: BTreeMap::new() }
    }

    /// A registered process told what it did. `unix_s` tells the time that people know.
    pub fn note(&mut self, now: Instant, report: &LoadReport, unix_s: impl Fn(Instant) -> u64) {
        self.close(now, unix_s);
        let (key, done) = ((report.process, report.locality), Done::of(report));
        let before = self.last.get(&key).filter(|before| before.epoch == report.epoch);
        if let Some(before) = before {
            let sum = &mut self.open.done;
            sum.read_bytes = sum.read_bytes.saturating_add(done.read_bytes.saturating_sub(before.read_bytes));
            sum.written_bytes =
                sum.written_bytes.saturating_add(done.written_bytes.saturating_sub(before.written_bytes));
            sum.reads.merge(&done.reads.since(&before.reads));
            sum.writes.merge(&done.writes.since(&before.writes));
        }
        self.open.reporters.insert(report.process);
        self.last.insert(key, done);
    }

    /// Forgets processes that `stays` does not name.
    pub fn retain(&mut self, stays: impl Fn(Fid) -> bool) {
        self.last.retain(|(process, _), _| stays(*process));
    }

    /// Samples that are newer than the request's.
    #[must_use]
    pub fn get(&mut self, now: Instant, request: &LoadGet, unix_s: impl Fn(Instant) -> u64) -> LoadGetReply {
        self.close(now, unix_s);
        let most = usize::try_from(request.most).unwrap_or(usize::MAX);
        let newer = self.samples.iter().filter(|sample| sample.number > request.after);
        let left_out = newer.clone().count().saturating_sub(most);
        LoadGetReply {
            period_ms: u32::try_from(PERIOD.as_millis()).unwrap_or(u32::MAX),
            samples: newer.skip(left_out).copied().collect(),
        }
    }

    /// Ends the periods that are over at `now`. Of a long silence only as many are made as are kept.
    fn close(&mut self, now: Instant, unix_s: impl Fn(Instant) -> u64) {
        let now_number = nanos(now.since(self.began)) / nanos(PERIOD) + 1;
        while self.open.number < now_number {
            let open = std::mem::take(&mut self.open);
            let ended = self.began + PERIOD.saturating_mul(u32::try_from(open.number).unwrap_or(u32::MAX));
            self.samples.push_back(LoadSample {
                number: open.number,
                unix_s: unix_s(ended),
                processes: u32::try_from(open.reporters.len()).unwrap_or(u32::MAX),
                reads: open.done.reads.count(),
                writes: open.done.writes.count(),
                read_bytes: open.done.read_bytes,
                written_bytes: open.done.written_bytes,
                read_p50_ns: nanos(open.done.reads.percentile(50)),
                read_p99_ns: nanos(open.done.reads.percentile(99)),
                write_p50_ns: nanos(open.done.writes.percentile(50)),
                write_p99_ns: nanos(open.done.writes.percentile(99)),
            });
            if self.samples.len() > PERIODS_KEPT {
                self.samples.pop_front();
            }
            let kept = base::units::wide(PERIODS_KEPT);
            self.open.number = (open.number + 1).max(now_number.saturating_sub(kept));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use base::FidType;
    use faces::load::times_of;
    use fops::load::Times;

    use super::*;

    const PROCESS: Fid = Fid::new(FidType::Process, 0, 1);

    fn at(s: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(s)
    }

    fn unix_s(at: Instant) -> u64 {
        1_000_000 + at.since(Instant::ZERO).as_secs()
    }

    fn report(epoch: u64, reads: u64, read_bytes: u64) -> LoadReport {
        let mut times = Histogram::default();
        for n in 0..reads {
            times.add(Duration::from_micros(100 * (n + 1)));
        }
        let (reads, writes) = (times_of(&times), Times::default());
        LoadReport { process: PROCESS, locality: 0, epoch, read_bytes, written_bytes: 0, reads, writes }
    }

    fn all(book: &mut LoadBook, now: Instant) -> Vec<LoadSample> {
        book.get(now, &LoadGet { after: 0, most: u32::MAX }, unix_s).samples
    }

    #[test]
    fn a_period_holds_what_was_added_in_it_and_doubles_and_losses_change_no_sum() {
        let mut book = LoadBook::new(at(0));
        book.note(at(1), &report(7, 10, 1000), unix_s); // what was before counts for nothing
        book.note(at(5), &report(7, 14, 1400), unix_s);
        book.note(at(5), &report(7, 14, 1400), unix_s);
        assert!(all(&mut book, at(9)).is_empty(), "the period runs");
        // One report is lost; the next tells of both.
        book.note(at(19), &report(7, 20, 2000), unix_s);
        let samples = all(&mut book, at(20));
        let seen: Vec<_> =
            samples.iter().map(|one| (one.number, one.reads, one.read_bytes, one.processes)).collect();
        assert_eq!(seen, [(1, 4, 400, 1), (2, 6, 600, 1)]);
        assert_eq!(samples[0].unix_s, 1_000_010);
        // The reads of the first period took 1.1 to 1.4 ms.
        let p99 = Duration::from_nanos(samples[0].read_p99_ns);
        assert!((Duration::from_micros(1300)..=Duration::from_micros(1400)).contains(&p99), "{p99:?}");
        assert!(samples[0].read_p50_ns < samples[0].read_p99_ns && samples[0].write_p99_ns == 0);
    }

    #[test]
    fn a_process_that_starts_again_does_not_count_backwards() {
        let mut book = LoadBook::new(at(0));
        book.note(at(1), &report(7, 100, 1 << 30), unix_s);
        book.note(at(2), &report(8, 3, 300), unix_s);
        book.note(at(3), &report(8, 5, 500), unix_s);
        let samples = all(&mut book, at(10));
        assert_eq!((samples[0].reads, samples[0].read_bytes), (2, 200));
    }

    #[test]
    fn the_hour_is_bounded_and_a_long_silence_is_told_as_silence() {
        let mut book = LoadBook::new(at(0));
        book.note(at(1), &report(7, 0, 0), unix_s);
        book.note(at(2), &report(7, 5, 500), unix_s);
        let day = 24 * 3600;
        let samples = all(&mut book, at(day));
        assert!(samples.len() <= PERIODS_KEPT);
        assert_eq!(samples.last().map(|one| (one.number, one.unix_s)), Some((8640, 1_000_000 + day)));
        let newest: u64 = samples.iter().filter(|one| one.number > 1).map(|one| one.reads).sum();
        assert_eq!(newest, 0);
        let few = book.get(at(day), &LoadGet { after: 8600, most: 2 }, unix_s).samples;
        assert_eq!(few.iter().map(|one| one.number).collect::<Vec<_>>(), [8639, 8640]);
        book.retain(|_| false);
        assert!(book.last.is_empty());
    }
}
