//! The reading side: bytes of an ADDB file, of which nobody knows who wrote them, what is missing or what was being written.
//!
//! What is wrong with the header is an error, as nothing behind it means anything then. What is wrong behind it is left out and counted.
//! Never panics, whatever the bytes. Bound: [`crate::limits::ADDB_FILE_BYTES_MAX`], which the caller checks before it reads a file.

use crate::addb::header::{COUNTERS_WORD, ENDED_WORD, HISTOGRAMS_WORD, Header, VERSION};
use crate::addb::histogram::{HISTOGRAM_WORDS, Histogram, Key};
use crate::addb::phase::{Event, NUMBERS_MAX, Phase};
use crate::addb::record::{Place, RECORD_BYTES, Record};

/// Why bytes are no ADDB file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// Nothing was written yet, or the file was cut to nothing.
    #[error("its process has written nothing yet: it is starting, or died as it started")]
    NotBegun,
    /// Shorter than a header.
    #[error("{bytes} bytes are no ADDB file: it is cut short")]
    TooShort {
        /// Bytes that there are.
        bytes: usize,
    },
    /// Something else.
    #[error("not an ADDB file: it begins with {:?}", String::from_utf8_lossy(.got))]
    Foreign {
        /// Its first bytes.
        got: [u8; 8],
    },
    /// Of another version.
    #[error(
        "an ADDB file of version {got}, and this program reads version {known}: use the clovis that wrote it"
    )]
    Version {
        /// Its version.
        got: u32,
        /// Ours.
        known: u32,
    },
    /// The header is damaged.
    #[error("its header is damaged: checksum {claimed:#010x}, computed {computed:#010x}")]
    Checksum {
        /// As it says.
        claimed: u32,
        /// As it is.
        computed: u32,
    },
    /// A shape that nobody writes.
    #[error("its header is whole and makes no sense: {name} {value}")]
    Shape {
        /// Of what.
        name: &'static str,
        /// How many it says.
        value: u32,
    },
}

const _: () = assert!(VERSION == 1); // a second version needs a second reader, and a row in docs/addb.md

/// What a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Whose it is.
    pub header: Header,
    /// The process ended in order. False while it runs, and after a crash.
    pub has_ended: bool,
    /// How often each phase was entered and each event happened, by number.
    pub counters: Vec<u64>,
    /// Times of requests since the process began.
    pub histograms: Vec<(Key, Histogram)>,
    /// The last records, oldest first.
    pub records: Vec<Record>,
    /// Places whose bytes are no whole record: written halfway, being written, or damaged.
    pub damaged: usize,
    /// Whole records that this program does not know.
    pub unknown: usize,
    /// Histograms whose parts contradict each other.
    pub histograms_damaged: usize,
    /// Bytes that the header promises and the file has not.
    pub missing_bytes: usize,
}

impl Snapshot {
    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// The header is not one.
    pub fn parse(bytes: &[u8]) -> Result<Snapshot, SnapshotError> {
        let header = Header::parse(bytes)?;
        let shape = header.shape;
        // Words that the file has; a last half one counts as missing.
        let words = bytes.as_chunks::<8>().0;
        let word = |index: usize| words.get(index).map(|word| u64::from_le_bytes(*word));
        let counters =
            (0..usize::from(NUMBERS_MAX)).map(|index| word(COUNTERS_WORD + index).unwrap_or(0)).collect();
        let mut snapshot = Snapshot {
            has_ended: word(ENDED_WORD) == Some(1),
            counters,
            histograms: Vec::new(),
            records: Vec::new(),
            damaged: 0,
            unknown: 0,
            histograms_damaged: 0,
            missing_bytes: (8 * shape.words()).saturating_sub(bytes.len()),
            header,
        };
        let behind = words.get(HISTOGRAMS_WORD..).unwrap_or_default();
        for one in behind.as_chunks::<HISTOGRAM_WORDS>().0.iter().take(shape.histograms) {
            match Histogram::parse(&one.map(u64::from_le_bytes)) {
                Ok(found) => snapshot.histograms.extend(found),
                Err(()) => snapshot.histograms_damaged += 1,
            }
        }
        let records = bytes.get(8 * shape.records_word()..).unwrap_or_default();
        for (index, one) in records.as_chunks::<RECORD_BYTES>().0.iter().take(shape.records).enumerate() {
            match Record::parse(one, index, shape.records) {
                Place::Blank => {}
                Place::Record(record, passed) => snapshot.records.extend(record.with_passed(passed)),
                Place::Damaged => snapshot.damaged += 1,
                Place::Unknown => snapshot.unknown += 1,
            }
        }
        snapshot.sort();
        Ok(snapshot)
    }

    /// Puts the records into their order. Numbers go round at 2^32, which is far more than a ring holds: seen from any of them, the others
    /// are ahead or behind by less than half of that. Steps of one record keep theirs.
    fn sort(&mut self) {
        let from = self.records.first().map_or(0, |record| record.sequence);
        self.records.sort_by_key(|record| record.sequence.wrapping_sub(from).cast_signed());
    }

    /// How often a phase was entered.
    #[must_use]
    pub fn count(&self, phase: Phase) -> u64 {
        self.counters.get(usize::from(phase as u8)).copied().unwrap_or(0)
    }

    /// How often an event happened.
    #[must_use]
    pub fn event_count(&self, event: Event) -> u64 {
        self.counters.get(usize::from(event as u8)).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addb::header::{HEADER_BYTES, MAGIC, Shape};
    use crate::addb::{AddbSpace, Ring, Side};
    use base::Instant;

    const RECORDS: usize = 8;

    fn written() -> Vec<u8> {
        let shape = Shape { records: RECORDS, histograms: 4 };
        let space = AddbSpace::in_memory(shape).unwrap();
        let ring = Ring::new(Some(&space), 0, 0, "0@lo:12345:34:1".parse().unwrap());
        for n in 0..11_u64 {
            ring.phase(Instant::from_nanos(n), Phase::Run, n, 32, 0);
            ring.ended(Instant::from_nanos(n), Side::Server, 32, Instant::ZERO);
        }
        space.to_bytes()
    }

    fn ids(snapshot: &Snapshot) -> Vec<u64> {
        snapshot.records.iter().map(|record| record.request_id).collect()
    }

    #[test]
    fn records_come_in_their_order() {
        let snapshot = Snapshot::parse(&written()).unwrap();
        assert_eq!(ids(&snapshot), [3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!((snapshot.count(Phase::Run), snapshot.count(Phase::Done)), (11, 0));
        assert_eq!((snapshot.damaged, snapshot.unknown, snapshot.missing_bytes), (0, 0, 0));
        assert_eq!(snapshot.histograms.len(), 3);
        assert_eq!(snapshot.histograms[2].1.count(), 11);
    }

    #[test]
    fn what_is_damaged_is_left_out_and_counted() {
        let mut bytes = written();
        let records_at = bytes.len() - RECORDS * RECORD_BYTES;
        bytes[records_at + 9] ^= 4; // the record of place 0, number 8
        bytes[8 * (HISTOGRAMS_WORD + 2 * HISTOGRAM_WORDS + 1)] ^= 0x80; // the count of a histogram
        let snapshot = Snapshot::parse(&bytes).unwrap();
        assert_eq!(ids(&snapshot), [3, 4, 5, 6, 7, 9, 10]);
        assert_eq!((snapshot.damaged, snapshot.histograms_damaged), (1, 1));
    }

    #[test]
    fn each_cut_is_an_error_or_counted() {
        let whole = written();
        for length in 0..whole.len() {
            match Snapshot::parse(&whole[..length]) {
                Ok(snapshot) => {
                    assert!(length >= HEADER_BYTES);
                    assert_eq!(snapshot.missing_bytes, whole.len() - length);
                }
                Err(error) => assert!(length < HEADER_BYTES, "{length} bytes: {error}"),
            }
        }
    }

    #[test]
    fn foreign_files_are_told_by_name() {
        let said = |bytes: &[u8]| Snapshot::parse(bytes).unwrap_err().to_string();
        assert!(said(b"\x7fELF and more of it").contains("not an ADDB file: it begins with"));
        assert!(said(b"").contains("0 bytes"));
        assert!(said(&[0; 1000]).contains("nothing yet"));
        let mut newer = written();
        newer[8] = 2;
        assert!(said(&newer).contains("version 2"), "{}", said(&newer));
        assert!(said(&MAGIC).contains("cut short"));
    }

    #[test]
    fn numbers_go_round() {
        let record = |sequence: u32| Record {
            sequence,
            request_id: sequence.into(),
            opcode: 1,
            what: crate::addb::What::Phase(Phase::Run),
            at: Instant::ZERO,
            value: 0,
        };
        let mut snapshot = Snapshot::parse(&written()).unwrap();
        snapshot.records = [0, 1, u32::MAX - 1, u32::MAX].map(record).to_vec();
        snapshot.sort();
        assert_eq!(ids(&snapshot), [u64::from(u32::MAX) - 1, u32::MAX.into(), 0, 1]);
    }
}
