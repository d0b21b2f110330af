//! The first 512 bytes of an ADDB file: whose it is, on which clock, and how large its parts are.
//!
//! Written once, before the first record, and sealed with a checksum. docs/addb.md#bytes has the table.

use base::checksum::crc32c;
use base::{Endpoint, Fid};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::addb::histogram::HISTOGRAM_WORDS;
use crate::addb::phase::NUMBERS_MAX;
use crate::addb::record::{RECORD_BYTES, RECORD_WORDS};
use crate::addb::snapshot::SnapshotError;
use crate::limits::{ADDB_HISTOGRAMS_MAX, ADDB_RECORDS_MAX};

/// First bytes of a file.
pub const MAGIC: [u8; 8] = *b"ClovAddb";
/// The version that this code writes and reads.
pub const VERSION: u32 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 512;
/// Bytes of a name in it.
pub const NAME_BYTES: usize = 64;

/// The word behind the header: 1 once the process has ended in order.
pub(crate) const ENDED_WORD: usize = HEADER_BYTES / 8;
/// First word of the counters: one for each number of phases and events.
pub(crate) const COUNTERS_WORD: usize = 512;
/// First word of the histograms; what lies between is zero.
pub(crate) const HISTOGRAMS_WORD: usize = 1024;

const _: () = assert!(ENDED_WORD < COUNTERS_WORD);
const _: () = assert!(COUNTERS_WORD + NUMBERS_MAX as usize <= HISTOGRAMS_WORD);

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U32,
    record_bytes: U32,
    records: U32,
    histograms: U32,
    histogram_words: U32,
    counters: U32,
    locality: U32,
    process_id: U32,
    process_container: U64,
    process_key: U64,
    epoch: U64,
    unix_ns_at_zero: U64,
    boot_ns_at_zero: U64,
    boot: U64,
    name: [u8; NAME_BYTES],
    node: [u8; NAME_BYTES],
    endpoint: [u8; NAME_BYTES],
    unused: [u8; 228],
    crc32c: U32,
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);
const CRC_AT: usize = HEADER_BYTES - 4;

/// Whose records these are: what a process says of itself when it makes its ring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The machine's name; cut to 64 bytes.
    pub node: String,
    /// The process's: `server-1`, `control`, `client`; cut to 64 bytes.
    pub name: String,
    /// Its fid in the configuration; zero for a client.
    pub process: Fid,
    /// Its number on its machine.
    pub process_id: u32,
    /// Its incarnation.
    pub epoch: u64,
    /// Nanoseconds since 1970, by its machine's clock, when its own clock was at zero.
    pub unix_ns_at_zero: u64,
    /// Nanoseconds since its machine was booted when its own clock was at zero.
    pub boot_ns_at_zero: u64,
    /// Names the machine's boot: two files with the same one have comparable times since boot. 0: not known.
    pub boot: u64,
}

/// How many of what a ring has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Places for records: a power of two.
    pub records: usize,
    /// Histograms.
    pub histograms: usize,
}

impl Shape {
    /// Room for `records` at least (rounded up to a power of two, at most the limit), and the usual histograms.
    #[must_use]
    pub fn for_records(records: usize) -> Shape {
        let records = records.clamp(1, ADDB_RECORDS_MAX).next_power_of_two();
        Shape { records, histograms: crate::limits::ADDB_HISTOGRAMS }
    }

    /// First word of the records.
    #[must_use]
    pub const fn records_word(self) -> usize {
        HISTOGRAMS_WORD + self.histograms * HISTOGRAM_WORDS
    }

    /// Words of the whole.
    #[must_use]
    pub const fn words(self) -> usize {
        self.records_word() + self.records * RECORD_WORDS
    }
}

/// A header whose every field was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whose it is.
    pub origin: Origin,
    /// Which locality of the process.
    pub locality: u32,
    /// Where that locality is on the network; as text, since it is only shown.
    pub endpoint: String,
    /// How large its parts are.
    pub shape: Shape,
}

impl Header {
    /// A header of one locality's ring.
    #[must_use]
    pub fn new(origin: Origin, locality: u32, endpoint: Endpoint, shape: Shape) -> Header {
        Header { origin, locality, endpoint: endpoint.to_string(), shape }
    }

    /// Its bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let count = |count: usize| U32::new(u32::try_from(count).unwrap_or(u32::MAX));
        let origin = &self.origin;
        let mut raw = RawHeader {
            magic: MAGIC,
            version: U32::new(VERSION),
            record_bytes: count(RECORD_BYTES),
            records: count(self.shape.records),
            histograms: count(self.shape.histograms),
            histogram_words: count(HISTOGRAM_WORDS),
            counters: U32::new(NUMBERS_MAX.into()),
            locality: U32::new(self.locality),
            process_id: U32::new(origin.process_id),
            process_container: U64::new(origin.process.container),
            process_key: U64::new(origin.process.key),
            epoch: U64::new(origin.epoch),
            unix_ns_at_zero: U64::new(origin.unix_ns_at_zero),
            boot_ns_at_zero: U64::new(origin.boot_ns_at_zero),
            boot: U64::new(origin.boot),
            name: name_bytes(&origin.name),
            node: name_bytes(&origin.node),
            endpoint: name_bytes(&self.endpoint),
            unused: [0; 228],
            crc32c: U32::ZERO,
        };
        raw.crc32c = U32::new(crc32c(&raw.as_bytes()[..CRC_AT]));
        zerocopy::transmute!(raw)
    }

    /// Checks the first bytes of a file.
    ///
    /// # Errors
    /// It is no ADDB file, of another version, damaged, or of a shape that nobody writes.
    pub fn parse(bytes: &[u8]) -> Result<Header, SnapshotError> {
        let got: [u8; 8] = match bytes.first_chunk() {
            Some(got) => *got,
            None => return Err(SnapshotError::TooShort { bytes: bytes.len() }),
        };
        if got == [0; 8] {
            return Err(SnapshotError::NotBegun);
        }
        if got != MAGIC {
            return Err(SnapshotError::Foreign { got });
        }
        let Ok((raw, _)) = RawHeader::ref_from_prefix(bytes) else {
            return Err(SnapshotError::TooShort { bytes: bytes.len() });
        };
        // Before the checksum: another version may keep it elsewhere.
        if raw.version.get() != VERSION {
            return Err(SnapshotError::Version { got: raw.version.get(), known: VERSION });
        }
        let (claimed, computed) = (raw.crc32c.get(), crc32c(&raw.as_bytes()[..CRC_AT]));
        if claimed != computed {
            return Err(SnapshotError::Checksum { claimed, computed });
        }
        let shape = |name: &'static str, count: U32, is_right: bool| match is_right {
            true => Ok(base::units::narrow(count.get().into())),
            false => Err(SnapshotError::Shape { name, value: count.get() }),
        };
        let is = |count: U32, wanted: usize| usize::try_from(count.get()) == Ok(wanted);
        shape("record bytes", raw.record_bytes, is(raw.record_bytes, RECORD_BYTES))?;
        shape("histogram words", raw.histogram_words, is(raw.histogram_words, HISTOGRAM_WORDS))?;
        shape("counters", raw.counters, is(raw.counters, NUMBERS_MAX.into()))?;
        let at_most = |count: U32, most: usize| (1..=most).contains(&base::units::narrow(count.get().into()));
        let is_power = raw.records.get().is_power_of_two();
        let records = shape("records", raw.records, is_power && at_most(raw.records, ADDB_RECORDS_MAX))?;
        let histograms = shape("histograms", raw.histograms, at_most(raw.histograms, ADDB_HISTOGRAMS_MAX))?;
        Ok(Header {
            origin: Origin {
                node: name_text(&raw.node),
                name: name_text(&raw.name),
                process: Fid { container: raw.process_container.get(), key: raw.process_key.get() },
                process_id: raw.process_id.get(),
                epoch: raw.epoch.get(),
                unix_ns_at_zero: raw.unix_ns_at_zero.get(),
                boot_ns_at_zero: raw.boot_ns_at_zero.get(),
                boot: raw.boot.get(),
            },
            locality: raw.locality.get(),
            endpoint: name_text(&raw.endpoint),
            shape: Shape { records, histograms },
        })
    }
}

/// A name, cut at a letter's end.
fn name_bytes(name: &str) -> [u8; NAME_BYTES] {
    let mut bytes = [0; NAME_BYTES];
    let end = name.floor_char_boundary(NAME_BYTES);
    bytes[..end].copy_from_slice(&name.as_bytes()[..end]);
    bytes
}

/// A name for people: nothing in it moves a terminal's cursor.
fn name_text(bytes: &[u8; NAME_BYTES]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(NAME_BYTES);
    String::from_utf8_lossy(&bytes[..end]).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let origin = Origin {
            node: "n1".to_owned(),
            name: "server-1".to_owned(),
            process: Fid { container: 0x7200_0000_0000_0001, key: 1 },
            process_id: 4711,
            epoch: 5,
            unix_ns_at_zero: 1_800_000_000_000_000_000,
            boot_ns_at_zero: 77,
            boot: 9,
        };
        let endpoint = "10.0.0.7@tcp:12345:34:1".parse().unwrap();
        Header::new(origin, 2, endpoint, Shape { records: 8192, histograms: 64 })
    }

    #[test]
    fn golden_bytes() {
        let bytes = header().to_bytes();
        assert_eq!(&bytes[..8], b"ClovAddb");
        assert_eq!(bytes[8..24], [1, 0, 0, 0, 32, 0, 0, 0, 0, 32, 0, 0, 64, 0, 0, 0]);
        assert_eq!(bytes[24..40], [0, 1, 0, 0, 128, 0, 0, 0, 2, 0, 0, 0, 0x67, 0x12, 0, 0]);
        assert_eq!(bytes[40..56], [1, 0, 0, 0, 0, 0, 0, 0x72, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&bytes[88..97], b"server-1\0");
        assert_eq!(&bytes[152..155], b"n1\0");
        assert_eq!(&bytes[216..240], b"10.0.0.7@tcp:12345:34:1\0");
        assert_eq!(Header::parse(&bytes), Ok(header()));
    }

    #[test]
    fn every_flipped_bit_is_an_error_and_so_is_every_cut() {
        let whole = header().to_bytes();
        for bit in 0..HEADER_BYTES * 8 {
            let mut flipped = whole;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::parse(&flipped).is_err(), "bit {bit}");
        }
        for length in 0..HEADER_BYTES {
            assert!(Header::parse(&whole[..length]).is_err(), "{length} bytes");
        }
        assert_eq!(Header::parse(&[0; HEADER_BYTES]), Err(SnapshotError::NotBegun));
    }

    #[test]
    fn shapes_that_nobody_writes_are_refused() {
        for shape in [
            Shape { records: 0, histograms: 1 },
            Shape { records: 3, histograms: 1 },
            Shape { records: 2 * ADDB_RECORDS_MAX, histograms: 1 },
            Shape { records: 8, histograms: 0 },
            Shape { records: 8, histograms: ADDB_HISTOGRAMS_MAX + 1 },
        ] {
            let bytes = Header { shape, ..header() }.to_bytes();
            assert!(matches!(Header::parse(&bytes), Err(SnapshotError::Shape { .. })), "{shape:?}");
        }
        assert_eq!(Shape::for_records(5000).records, 8192);
        assert_eq!(Shape::for_records(0).records, 1);
        assert_eq!(Shape::for_records(usize::MAX).records, ADDB_RECORDS_MAX);
    }

    #[test]
    fn names_are_cut_and_cannot_play_with_a_terminal() {
        let mut long = header();
        long.origin.name = "ä".repeat(40);
        long.origin.node = "a\x1b[2Jb".to_owned();
        let read = Header::parse(&long.to_bytes()).unwrap();
        assert_eq!((read.origin.name, read.origin.node.as_str()), ("ä".repeat(32), "a?[2Jb"));
    }
}
