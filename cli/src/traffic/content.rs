//! Content that says where it belongs: each 8 bytes are a function of the request's seed and their place, so bytes of another
//! request, of another place, or old ones are found.

use base::units::{BLOCK_BYTES, narrow};
use runtime::SharedBuffer;

/// How much of the content is written and checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Nothing.
    None,
    /// The first and the last 8 bytes of each 4 KiB.
    Simple,
    /// Every byte.
    Full,
}

impl Check {
    /// As it travels.
    pub const fn to_byte(self) -> u8 {
        match self {
            Check::None => 0,
            Check::Simple => 1,
            Check::Full => 2,
        }
    }

    /// From a peer's byte.
    pub const fn from_byte(byte: u8) -> Option<Check> {
        match byte {
            0 => Some(Check::None),
            1 => Some(Check::Simple),
            2 => Some(Check::Full),
            _ => None,
        }
    }
}

const WORD_BYTES: usize = size_of::<u64>();

/// The word at `index` (in words from the start of the bulk).
const fn word(seed: u64, index: u64) -> u64 {
    // Multiplied by an odd number and folded: neighbours, and neighbouring seeds, differ in about half their bits.
    let mixed = (seed ^ index.rotate_left(32)).wrapping_add(index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

/// Offsets of the words that `check` is about, in a part of `bytes` bytes (a multiple of 8).
fn offsets(check: Check, bytes: usize) -> impl Iterator<Item = usize> {
    let block: usize = narrow(BLOCK_BYTES);
    let (step, last) = match check {
        Check::None => (block, None),
        Check::Simple => (block, Some(block - WORD_BYTES)),
        Check::Full => (WORD_BYTES, None),
    };
    let end = if check == Check::None { 0 } else { bytes - bytes % WORD_BYTES };
    (0..end).step_by(step).flat_map(move |at| {
        [Some(at), last.map(|last| at + last)].into_iter().flatten().filter(move |at| at + WORD_BYTES <= end)
    })
}

/// Writes the content of a part that begins `start_bytes` into the bulk.
pub fn fill(check: Check, seed: u64, start_bytes: u64, part: &mut [u8]) {
    let first = start_bytes / 8;
    for at in offsets(check, part.len()) {
        let value = word(seed, first + at as u64 / 8);
        part[at..at + WORD_BYTES].copy_from_slice(&value.to_le_bytes());
    }
}

/// The first place in the bulk, in bytes, where content is not what [`fill`] wrote.
pub fn first_wrong(check: Check, seed: u64, parts: &[SharedBuffer]) -> Option<u64> {
    let mut start_bytes = 0;
    for part in parts {
        let wrong = offsets(check, part.len()).find(|at| {
            let expected = word(seed, start_bytes / 8 + *at as u64 / 8).to_le_bytes();
            part[*at..*at + WORD_BYTES] != expected
        });
        if let Some(at) = wrong {
            return Some(start_bytes + at as u64);
        }
        start_bytes += part.len() as u64;
    }
    None
}

#[cfg(test)]
mod tests {
    use runtime::{Arena, ArenaConfig};

    use super::*;

    fn parts(check: Check, seed: u64) -> Vec<SharedBuffer> {
        let arena = Arena::new(ArenaConfig { capacity_bytes: 4 << 20 }).unwrap();
        let mut start = 0;
        let mut parts = Vec::new();
        for bytes in [8192, 4096] {
            let mut buffer = arena.try_alloc(bytes).unwrap();
            buffer.fill(0xaa);
            fill(check, seed, start, &mut buffer);
            start += bytes as u64;
            parts.push(buffer.freeze());
        }
        parts
    }

    fn damaged(parts: &[SharedBuffer], part: usize, at: usize) -> Vec<SharedBuffer> {
        let arena = Arena::new(ArenaConfig { capacity_bytes: 4 << 20 }).unwrap();
        let copy = |(index, bytes): (usize, &SharedBuffer)| {
            let mut buffer = arena.try_alloc(bytes.len()).unwrap();
            buffer.copy_from_slice(bytes);
            if index == part {
                buffer[at] ^= 0x10;
            }
            buffer.freeze()
        };
        parts.iter().enumerate().map(copy).collect()
    }

    #[test]
    fn full_finds_any_bit_and_says_where() {
        let whole = parts(Check::Full, 7);
        assert_eq!(first_wrong(Check::Full, 7, &whole), None);
        for (part, at, found) in [(0, 0, 0), (0, 4097, 4096), (0, 8191, 8184), (1, 100, 8192 + 96)] {
            assert_eq!(first_wrong(Check::Full, 7, &damaged(&whole, part, at)), Some(found));
        }
        assert!(first_wrong(Check::Full, 8, &whole).is_some(), "the content of another request");
        let swapped = [whole[1].clone(), whole[0].clone()];
        assert_eq!(first_wrong(Check::Full, 7, &swapped), Some(0), "the right bytes in the wrong place");
    }

    #[test]
    fn simple_looks_at_both_ends_of_each_block() {
        let whole = parts(Check::Simple, 7);
        assert_eq!(first_wrong(Check::Simple, 7, &whole), None);
        assert_eq!(first_wrong(Check::Simple, 7, &damaged(&whole, 0, 4095)), Some(4088));
        assert_eq!(first_wrong(Check::Simple, 7, &damaged(&whole, 1, 0)), Some(8192));
        assert_eq!(first_wrong(Check::Simple, 7, &damaged(&whole, 0, 100)), None, "that is what full is for");
        assert_eq!(first_wrong(Check::None, 9, &whole), None);
    }

    #[test]
    fn a_check_travels_as_a_byte() {
        for check in [Check::None, Check::Simple, Check::Full] {
            assert_eq!(Check::from_byte(check.to_byte()), Some(check));
        }
        assert_eq!(Check::from_byte(3), None);
    }
}
