//! The one writer of a space: adds records over the oldest, raises counters, adds times to histograms.
//!
//! Nothing here allocates, locks or calls the system. A ring without memory (of zero records, or where there was no address space)
//! takes everything and keeps nothing. Thread: the owning locality.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use base::units::wide;
use base::{Endpoint, Instant};

use crate::addb::header::{COUNTERS_WORD, ENDED_WORD, HISTOGRAMS_WORD, Shape};
use crate::addb::histogram::{self, HISTOGRAM_WORDS, Histogram, Key, Side};
use crate::addb::phase::{Event, NUMBERS_MAX, Phase};
use crate::addb::record::{Place, RECORD_BYTES, RECORD_WORDS, Record, Steps, head, meaning};
use crate::addb::space::AddbSpace;

/// Opcodes with a histogram of their own, of each side; fops' numbers are below.
const OPCODES_MAX: usize = 128;
/// No histogram was given to an opcode yet.
const NONE_YET: u8 = u8::MAX;

/// A locality's ring.
#[derive(Debug)]
pub struct Ring {
    /// `None`: nothing is kept.
    space: Option<AddbSpace>,
    records_word: usize,
    mask: usize,
    /// Number of the next record.
    next: Cell<usize>,
    /// Which histogram an opcode has, of the server's side, then of the client's.
    histogram_of: [Cell<u8>; 2 * OPCODES_MAX],
    histograms_used: Cell<u8>,
}

impl Ring {
    /// The writer of `space`, or of memory of its own for `records_count` records if there is none, or if it has a writer already.
    #[must_use]
    pub fn new(space: Option<&AddbSpace>, records_count: usize, locality: u32, endpoint: Endpoint) -> Ring {
        if let Some(space) = space.filter(|space| space.claim(locality, endpoint)) {
            return Ring::writing(Some(space.clone()));
        }
        let own = match records_count {
            0 => None,
            _ => AddbSpace::in_memory(Shape::for_records(records_count)).ok(),
        };
        Ring::writing(own.filter(|own| own.claim(locality, endpoint)))
    }

    fn writing(space: Option<AddbSpace>) -> Ring {
        let shape = space.as_ref().map_or(Shape { records: 1, histograms: 1 }, AddbSpace::shape);
        let ring = Ring {
            space,
            records_word: shape.records_word(),
            mask: shape.records - 1,
            next: Cell::new(0),
            histogram_of: std::array::from_fn(|_| Cell::new(NONE_YET)),
            histograms_used: Cell::new(2),
        };
        // The first two are for what finds none of its own.
        for (index, side) in [Side::Server, Side::Client].into_iter().enumerate() {
            ring.begin_histogram(index, Key { side, opcode: None });
        }
        ring
    }

    /// The request enters a phase. `value`: see [`Phase`].
    #[inline]
    pub fn phase(&self, at: Instant, phase: Phase, request_id: u64, opcode: u16, value: u32) {
        self.add(at, phase as u8, &[], request_id, meaning(phase as u8, opcode, value));
    }

    /// The request passes several phases at one instant: one record for all of them. `value`: of the last, below 256.
    #[inline]
    pub fn steps(&self, at: Instant, steps: Steps, request_id: u64, opcode: u16, value: u32) {
        self.add(at, steps.last as u8, steps.passed, request_id, steps.meaning(opcode, value));
    }

    /// Something else happened; `request_id` and `opcode` are 0 if it belongs to no request.
    pub fn event(&self, at: Instant, event: Event, request_id: u64, opcode: u16, value: u32) {
        self.add(at, event as u8, &[], request_id, meaning(event as u8, opcode, value));
    }

    /// A record, and one more of `number` and of each that was passed.
    #[inline]
    fn add(&self, at: Instant, number: u8, passed: &[Phase], request_id: u64, meaning: u64) {
        let Some(words) = self.space.as_ref().map(AddbSpace::words) else { return };
        let sequence = self.next.get();
        self.next.set(sequence.wrapping_add(1));
        let start = self.records_word + (sequence & self.mask) * RECORD_WORDS;
        let body = [request_id, at.as_nanos(), meaning];
        if let Some([first, second, third, fourth, ..]) = words.get(start..) {
            // In any order: the check finds a record of which only some are stored.
            first.store(head(wide(sequence), body).to_le(), Ordering::Relaxed);
            second.store(body[0].to_le(), Ordering::Relaxed);
            third.store(body[1].to_le(), Ordering::Relaxed);
            fourth.store(body[2].to_le(), Ordering::Relaxed);
        }
        // One look at the length for all counters: numbers that are known when this is compiled need no other.
        let Some(counters) = words.first_chunk::<HISTOGRAMS_WORD>() else { return };
        passed.iter().for_each(|passed| count(counters, *passed as u8));
        count(counters, number);
    }

    /// A request of this opcode ended that began at `since`.
    #[inline]
    pub fn ended(&self, at: Instant, side: Side, opcode: u16, since: Instant) {
        let Some(space) = &self.space else { return };
        let place = place(side, opcode);
        let mut index = self.histogram_of[place].get();
        if index == NONE_YET {
            index = self.give_histogram(side, opcode);
            self.histogram_of[place].set(index);
        }
        let start = HISTOGRAMS_WORD + usize::from(index) * HISTOGRAM_WORDS;
        if let Some(words) = space.words().get(start..start + HISTOGRAM_WORDS) {
            histogram::add(words, at.as_nanos().saturating_sub(since.as_nanos()));
        }
    }

    /// A new histogram, or that of all others of this side.
    #[cold]
    fn give_histogram(&self, side: Side, opcode: u16) -> u8 {
        let others = if side == Side::Client { 1 } else { 0 };
        let next = self.histograms_used.get();
        let has_room = self.space.as_ref().is_some_and(|space| usize::from(next) < space.shape().histograms);
        if !has_room || next == NONE_YET || usize::from(opcode) >= OPCODES_MAX - 1 {
            return others;
        }
        self.histograms_used.set(next + 1);
        self.begin_histogram(next.into(), Key { side, opcode: Some(opcode) });
        next
    }

    fn begin_histogram(&self, index: usize, key: Key) {
        let Some(space) = &self.space else { return };
        if let Some(word) = space.words().get(HISTOGRAMS_WORD + index * HISTOGRAM_WORDS) {
            word.store(key.word().to_le(), Ordering::Relaxed);
        }
    }

    /// Records written, lost ones included.
    #[must_use]
    pub fn written(&self) -> usize {
        self.next.get()
    }

    /// How often a phase was entered.
    #[must_use]
    pub fn count(&self, phase: Phase) -> u64 {
        let Some(space) = &self.space else { return 0 };
        let word = space.words().get(COUNTERS_WORD + usize::from(phase as u8));
        word.map_or(0, |word| u64::from_le(word.load(Ordering::Relaxed)))
    }

    /// The times of an opcode's requests; `None` if there were none, or no room for a histogram of their own.
    #[must_use]
    pub fn histogram(&self, side: Side, opcode: u16) -> Option<Histogram> {
        let space = self.space.as_ref()?;
        let index = self.histogram_of.get(place(side, opcode))?.get();
        let start = HISTOGRAMS_WORD + usize::from(index) * HISTOGRAM_WORDS;
        let words = space.words().get(start..start + HISTOGRAM_WORDS).filter(|_| index != NONE_YET)?;
        let words: [u64; HISTOGRAM_WORDS] =
            std::array::from_fn(|word| u64::from_le(words[word].load(Ordering::Relaxed)));
        let (key, histogram) = Histogram::parse(&words).ok()??;
        (key.opcode == Some(opcode)).then_some(histogram)
    }

    /// The records, oldest first.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        let Some(space) = &self.space else { return Vec::new() };
        let next = self.next.get();
        let oldest = next.saturating_sub(self.mask + 1);
        (oldest..next)
            .filter_map(|sequence| {
                let index = sequence & self.mask;
                let start = self.records_word + index * RECORD_WORDS;
                match Record::parse(&record_bytes(space.words().get(start..)?)?, index, self.mask + 1) {
                    Place::Record(record, passed) => Some(record.with_passed(passed)),
                    _ => None,
                }
            })
            .flatten()
            .collect()
    }

    /// Its memory, to be read by others; `None` if it keeps nothing.
    #[must_use]
    pub fn space(&self) -> Option<&AddbSpace> {
        self.space.as_ref()
    }
}

/// One more of a phase or event.
#[inline]
fn count(counters: &[AtomicU64; HISTOGRAMS_WORD], number: u8) {
    let counter = &counters[COUNTERS_WORD + usize::from(number)];
    counter.store(histogram::raised(counter, 1), Ordering::Relaxed);
}

/// Where [`Ring::histogram_of`] tells the histogram of an opcode.
#[inline]
fn place(side: Side, opcode: u16) -> usize {
    usize::from(opcode).min(OPCODES_MAX - 1) + if side == Side::Client { OPCODES_MAX } else { 0 }
}

fn record_bytes(words: &[AtomicU64]) -> Option<[u8; RECORD_BYTES]> {
    let mut bytes = [0; RECORD_BYTES];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(words.get(..RECORD_WORDS)?) {
        chunk.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
    }
    Some(bytes)
}

impl Drop for Ring {
    fn drop(&mut self) {
        // A panic is a crash: whoever reads the file is told that the process did not end in order.
        if let Some(space) = self.space.as_ref().filter(|_| !std::thread::panicking())
            && let Some(word) = space.words().get(ENDED_WORD)
        {
            word.store(1_u64.to_le(), Ordering::Relaxed);
        }
    }
}

const _: () = assert!(Event::PeerLost as u8 <= NUMBERS_MAX);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addb::{Origin, Snapshot, What};
    use std::time::Duration;

    fn endpoint() -> Endpoint {
        "0@lo:12345:34:1".parse().unwrap()
    }

    fn at(us: u64) -> Instant {
        Instant::ZERO + Duration::from_micros(us)
    }

    #[test]
    fn the_oldest_records_are_overwritten_and_all_are_counted() {
        let ring = Ring::new(None, 4, 0, endpoint());
        for n in 0..6 {
            ring.phase(at(n), Phase::Run, n, 1, 0);
        }
        let ids: Vec<u64> = ring.records().iter().map(|record| record.request_id).collect();
        assert_eq!((ids, ring.written(), ring.count(Phase::Run)), (vec![2, 3, 4, 5], 6, 6));
        let snapshot = Snapshot::parse(&ring.space().unwrap().to_bytes()).unwrap();
        assert_eq!(snapshot.records, ring.records());
    }

    #[test]
    fn phases_of_one_instant_take_one_place_and_count_each() {
        let ring = Ring::new(None, 4, 0, endpoint());
        ring.phase(at(1), Phase::Authenticate, 7, 16, 0);
        ring.steps(at(2), Steps::new(&[Phase::Authorise, Phase::Decode], Phase::Run), 7, 16, 0);
        ring.steps(at(3), Steps::new(&[Phase::Reply], Phase::Done), 7, 16, 1);
        let found: Vec<_> = ring.records().iter().map(|one| (one.phase().unwrap(), one.value)).collect();
        let phases = [Phase::Authenticate, Phase::Authorise, Phase::Decode, Phase::Run, Phase::Reply];
        assert_eq!(found[..5], phases.map(|phase| (phase, 0)));
        assert_eq!((found[5], ring.written()), ((Phase::Done, 1), 3));
        assert!(phases.iter().all(|phase| ring.count(*phase) == 1));
        let snapshot = Snapshot::parse(&ring.space().unwrap().to_bytes()).unwrap();
        assert_eq!(snapshot.records, ring.records());
    }

    #[test]
    fn a_ring_without_memory_keeps_nothing() {
        let ring = Ring::new(None, 0, 0, endpoint());
        ring.phase(at(1), Phase::Run, 1, 1, 0);
        ring.ended(at(1), Side::Server, 1, at(0));
        assert!(ring.records().is_empty() && ring.space().is_none() && ring.count(Phase::Run) == 0);
    }

    #[test]
    fn a_space_has_one_writer() {
        let space = AddbSpace::in_memory(Shape::for_records(8)).unwrap();
        let (first, second) =
            (Ring::new(Some(&space), 8, 0, endpoint()), Ring::new(Some(&space), 8, 0, endpoint()));
        first.phase(at(1), Phase::Run, 1, 1, 0);
        second.phase(at(1), Phase::Run, 2, 1, 0);
        let ids = |ring: &Ring| ring.records().iter().map(|record| record.request_id).collect::<Vec<_>>();
        assert_eq!((ids(&first), ids(&second)), (vec![1], vec![2]));
        assert_eq!(Snapshot::parse(&space.to_bytes()).unwrap().records.len(), 1);
    }

    #[test]
    fn times_go_to_the_histogram_of_their_opcode_until_there_is_none_left() {
        let shape = Shape { records: 1, histograms: 3 };
        let space = AddbSpace::in_memory(shape).unwrap();
        let ring = Ring::new(Some(&space), 1, 0, endpoint());
        for opcode in [32, 33, 32, u16::MAX] {
            ring.ended(at(10), Side::Server, opcode, at(3));
        }
        ring.ended(at(3), Side::Client, 32, at(10)); // a clock that went back is no time
        let snapshot = Snapshot::parse(&space.to_bytes()).unwrap();
        let found: Vec<_> = snapshot
            .histograms
            .iter()
            .map(|(key, times)| (key.side, key.opcode, times.count(), times.longest().as_micros()))
            .collect();
        let wanted = [(Side::Server, None, 2, 7), (Side::Client, None, 1, 0), (Side::Server, Some(32), 2, 7)];
        assert_eq!(found, wanted);
        let own = ring.histogram(Side::Server, 32).unwrap();
        assert_eq!((own.count(), own.sum().as_micros()), (2, 14));
        // 33 found no room for one of its own, 34 was never asked for.
        assert!(ring.histogram(Side::Server, 33).is_none() && ring.histogram(Side::Server, 34).is_none());
    }

    #[test]
    fn a_file_has_it_all_when_the_process_is_gone_and_says_how_it_went() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ring.addb");
        let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let origin = Origin { name: "server-1".to_owned(), epoch: 9, ..Origin::default() };
        let space = AddbSpace::in_file(file, Shape::for_records(8), origin).unwrap();
        let ring = Ring::new(Some(&space), 0, 3, endpoint());
        ring.event(at(1), Event::Hung, 5, 16, Phase::Lock as u32);
        let killed = Snapshot::parse(&std::fs::read(&path).unwrap()).unwrap();
        drop((ring, space));
        let ended = Snapshot::parse(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!((killed.has_ended, ended.has_ended), (false, true));
        assert_eq!((killed.header.locality, killed.header.origin.name.as_str()), (3, "server-1"));
        assert_eq!(killed.records[0].what, What::Event(Event::Hung));
        assert_eq!(killed.counters[usize::from(Event::Hung as u8)], 1);
    }
}
