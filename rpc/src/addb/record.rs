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

/// A step or an event.
const KIND_STEP: u8 = 1;
/// A step, and others that the request passed at the same instant: the lowest byte of its value is that of the step, and bit 8 + n says that the phase
/// whose number is n + 1 lower was passed.
const KIND_STEPS: u8 = 2;
/// Phases below a step's that its record can say were passed.
const PASSED_MAX: u8 = 24;

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
    /// A record; the second value says what was passed at the same instant, see `Record::with_passed`.
    Record(Record, u32),
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
        let (value, passed) = match raw.kind {
            KIND_STEP => (raw.value.get(), 0),
            KIND_STEPS => (raw.value.get() & 0xff, raw.value.get() >> 8),
            _ => return Place::Unknown,
        };
        let record = Record {
            sequence,
            request_id: raw.request_id.get(),
            opcode: raw.opcode.get(),
            what,
            at: Instant::from_nanos(raw.at_ns.get()),
            value,
        };
        Place::Record(record, passed)
    }

    /// The steps that one record tells of, in their order: those that were `passed` at its instant, then its own. They have one number.
    pub(crate) fn with_passed(self, passed: u32) -> impl Iterator<Item = Record> {
        let number = self.what.number();
        let before = (1..=PASSED_MAX).rev().filter(move |back| passed >> (back - 1) & 1 == 1);
        let before = before.filter_map(move |back| {
            let phase = Phase::from_number(number.checked_sub(back)?)?;
            Some(Record { what: What::Phase(phase), value: 0, ..self })
        });
        before.chain([self])
    }
}

/// The last word of a record, as the ring's writer makes it.
#[inline]
pub(crate) fn meaning(number: u8, opcode: u16, value: u32) -> u64 {
    pack(KIND_STEP, number, opcode, value)
}

/// Steps of one instant that one record tells of.
#[derive(Clone, Copy, Debug)]
pub struct Steps {
    /// What was passed, in this order.
    pub(crate) passed: &'static [Phase],
    /// What was entered.
    pub(crate) last: Phase,
    mask: u32,
}

impl Steps {
    /// Each phase has a lower number than those behind it, by `PASSED_MAX` at most; anything else is a bug that the compiler finds.
    #[must_use]
    pub const fn new(passed: &'static [Phase], last: Phase) -> Steps {
        let (mut mask, mut index) = (0, 0);
        while index < passed.len() {
            let back = last as u8 - passed[index] as u8;
            assert!(back >= 1 && back <= PASSED_MAX);
            mask |= 1_u32 << (7 + back);
            index += 1;
        }
        Steps { passed, last, mask }
    }

    /// The last word of their record. `value`: of the last step, below 256.
    #[inline]
    pub(crate) fn meaning(self, opcode: u16, value: u32) -> u64 {
        debug_assert!(value < 256, "{value} with {self:?}");
        pack(KIND_STEPS, self.last as u8, opcode, value | self.mask)
    }
}

#[inline]
fn pack(kind: u8, number: u8, opcode: u16, value: u32) -> u64 {
    u64::from(kind) | u64::from(number) << 8 | u64::from(opcode) << 16 | u64::from(value) << 32
}

fn pack_meaning(raw: &RawRecord) -> u64 {
    pack(raw.kind, raw.number, raw.opcode.get(), raw.value.get())
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
        assert_eq!(Record::parse(&example(), 5, 8), Place::Record(expected, 0));
    }

    #[test]
    fn steps_of_one_instant_come_out_one_by_one() {
        const STEPS: Steps = Steps::new(&[Phase::Authorise, Phase::Decode], Phase::Run);
        let written = bytes(5, [7, 9, STEPS.meaning(32, 1)]);
        assert_eq!(written[24..], [2, 5, 32, 0, 1, 0b11, 0, 0]);
        let Place::Record(record, passed) = Record::parse(&written, 5, 8) else { panic!("no record") };
        let steps: Vec<_> = record.with_passed(passed).map(|step| (step.phase(), step.value)).collect();
        let wanted = [(Phase::Authorise, 0), (Phase::Decode, 0), (Phase::Run, 1)];
        assert_eq!(steps, wanted.map(|(phase, value)| (Some(phase), value)));
        // Bits that name no phase are passed over.
        assert_eq!(record.with_passed(u32::MAX).count(), 5);
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
        assert_eq!(Record::parse(&bytes(5, [1, 2, meaning(2, 3, 4) + 2]), 5, 8), Place::Unknown);
    }
}
