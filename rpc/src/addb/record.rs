//! One record: a step of one request, or an event. 32 bytes, which say by themselves whether they are whole.
//!
//! The check is a hash of the other 28 bytes: it finds a record that was half written when its process died, that is being written
//! over as it is read, and any flipped bit. It is no protection against somebody who means it.

use base::Instant;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::addb::phase::{Event, Phase};

/// Words of a record.
pub const RECORD_WORDS: usize = 4;
/// Bytes of a record.
pub const RECORD_BYTES: usize = 8 * RECORD_WORDS;

/// The one kind of record there is: a step or an event.
const KIND_STEP: u8 = 1;

/// A record as it stands in a file.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRecord {
    sequence: U32,
    check: U32,
    request_id: U64,
    at_ns: U64,
    kind: u8,
    number: u8,
    opcode: U16,
    value: U32,
}

const _: () = assert!(size_of::<RawRecord>() == RECORD_BYTES);

/// What a record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The request entered a phase.
    Phase(Phase),
    /// Something else.
    Event(Event),
}

impl What {
    /// Its number in a record.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            What::Phase(phase) => phase as u8,
            What::Event(event) => event as u8,
        }
    }

    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            What::Phase(phase) => phase.name(),
            What::Event(event) => event.name(),
        }
    }
}

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Lower half of its number in its ring: records follow each other by it, modulo 2^32.
    pub sequence: u32,
    /// The requester's name for the request: the same in client and servers. 0 in events that belong to none.
    pub request_id: u64,
    /// The fop's number; 0 in events that belong to no request.
    pub opcode: u16,
    /// What happened.
    pub what: What,
    /// When, on the clock of the ring's process: the turn's time.
    pub at: Instant,
    /// What it means depends on `what`.
    pub value: u32,
}

/// What the bytes of one place in a ring are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Never written.
    Blank,
    /// A record.
    Record(Record),
    /// Half written, overwritten just now, or damaged.
    Damaged,
    /// Whole, and of a kind or with a number that this program does not know.
    Unknown,
}

impl Record {
    /// True if it tells of this phase.
    #[must_use]
    pub fn is(&self, phase: Phase) -> bool {
        self.what == What::Phase(phase)
    }

    /// The phase that it tells of.
    #[must_use]
    pub fn phase(&self) -> Option<Phase> {
        match self.what {
            What::Phase(phase) => Some(phase),
            What::Event(_) => None,
        }
    }

    /// Reads what stands at a place of a ring. `index`: which place, of `places_count`, a power of two.
    #[must_use]
    pub fn parse(bytes: &[u8; RECORD_BYTES], index: usize, places_count: usize) -> Place {
        let raw: &RawRecord = zerocopy::transmute_ref!(bytes);
        if bytes == &[0; RECORD_BYTES] {
            return Place::Blank;
        }
        let words = [raw.request_id.get(), raw.at_ns.get(), pack_meaning(raw)];
        let sequence = raw.sequence.get();
        let belongs_here = base::units::narrow(u64::from(sequence)) & (places_count.wrapping_sub(1)) == index;
        if head(sequence.into(), words) >> 32 != u64::from(raw.check.get()) || !belongs_here {
            return Place::Damaged;
        }
        let what = match (Phase::from_number(raw.number), Event::from_number(raw.number)) {
            (Some(phase), _) => What::Phase(phase),
            (_, Some(event)) => What::Event(event),
            _ => return Place::Unknown,
        };
        if raw.kind != KIND_STEP {
            return Place::Unknown;
        }
        Place::Record(Record {
            sequence,
            request_id: raw.request_id.get(),
            opcode: raw.opcode.get(),
            what,
            at: Instant::from_nanos(raw.at_ns.get()),
            value: raw.value.get(),
        })
    }
}

/// The last word of a record, as the ring's writer makes it.
#[inline]
pub(crate) fn meaning(number: u8, opcode: u16, value: u32) -> u64 {
    u64::from(KIND_STEP) | u64::from(number) << 8 | u64::from(opcode) << 16 | u64::from(value) << 32
}

fn pack_meaning(raw: &RawRecord) -> u64 {
    u64::from(raw.kind)
        | u64::from(raw.number) << 8
        | u64::from(raw.opcode.get()) << 16
        | u64::from(raw.value.get()) << 32
}

/// The first word of a record: the lower half of its number, and the check above it. `words`: the other three.
#[inline]
pub(crate) fn head(sequence: u64, words: [u64; 3]) -> u64 {
    let low = sequence & 0xffff_ffff;
    // Odd constants; each word is spread over the upper half before the next comes in, so that no flip stays below it.
    let mut mixed = (words[0] ^ low).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed.rotate_left(32) ^ words[1]).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed.rotate_left(32) ^ words[2]).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed << 32; // the lower half counts too
    (mixed & 0xffff_ffff_0000_0000) | low
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(sequence: u64, words: [u64; 3]) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        let all = [head(sequence, words), words[0], words[1], words[2]];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(all) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn example() -> [u8; RECORD_BYTES] {
        bytes(0x1_0000_0005, [0x1122_3344_5566_7788, 1_000_000_007, meaning(Phase::Pull as u8, 32, 9)])
    }

    #[test]
    fn golden_bytes() {
        // docs/addb.md; the check is what the code of version 1 makes.
        assert_eq!(
            example()[8..],
            [
                0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, // request id
                0x07, 0xca, 0x9a, 0x3b, 0, 0, 0, 0, // nanoseconds
                1, 8, 32, 0, 9, 0, 0, 0, // kind, phase, opcode, value
            ]
        );
        assert_eq!(example()[..4], [5, 0, 0, 0]);
        assert_eq!(example()[4..8], GOLDEN_CHECK);
        let expected = Record {
            sequence: 5,
            request_id: 0x1122_3344_5566_7788,
            opcode: 32,
            what: What::Phase(Phase::Pull),
            at: Instant::from_nanos(1_000_000_007),
            value: 9,
        };
        assert_eq!(Record::parse(&example(), 5, 8), Place::Record(expected));
    }

    const GOLDEN_CHECK: [u8; 4] = [118, 71, 65, 192];

    #[test]
    fn every_flipped_bit_is_seen() {
        for whole in [example(), bytes(0, [0, 0, meaning(1, 0, 0)]), bytes(7, [u64::MAX; 3])] {
            for bit in 0..RECORD_BYTES * 8 {
                let mut flipped = whole;
                flipped[bit / 8] ^= 1 << (bit % 8);
                let place =
                    (0..8).map(|index| Record::parse(&flipped, index, 8)).find(|p| *p != Place::Damaged);
                assert_eq!(place, None, "bit {bit}");
            }
        }
    }

    #[test]
    fn a_record_between_two_is_neither() {
        let (old, new) = (bytes(5, [1, 2, meaning(2, 3, 4)]), bytes(13, [9, 10, meaning(5, 3, 0)]));
        // Killed after each of the four stores, in any order.
        for stored in 1..15_u8 {
            let mut torn = old;
            for word in (0..4).filter(|word| stored & (1 << word) != 0) {
                torn[8 * word..8 * word + 8].copy_from_slice(&new[8 * word..8 * word + 8]);
            }
            assert_eq!(Record::parse(&torn, 5, 8), Place::Damaged, "{stored:#b}");
        }
    }

    #[test]
    fn what_is_blank_elsewhere_or_unknown_is_told_apart() {
        assert_eq!(Record::parse(&[0; RECORD_BYTES], 3, 8), Place::Blank);
        assert_eq!(Record::parse(&example(), 4, 8), Place::Damaged, "it belongs to place 5");
        assert_eq!(Record::parse(&bytes(5, [1, 2, meaning(60, 3, 4)]), 5, 8), Place::Unknown);
        assert_eq!(Record::parse(&bytes(5, [1, 2, meaning(2, 3, 4) + 1]), 5, 8), Place::Unknown);
    }
}
