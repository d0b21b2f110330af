//! The bytes that simulated clients write: each block tells by its content who wrote it and where it belongs. Pure.
//!
//! A block of 4096 bytes is a keyed pseudo-random sequence, so a block that comes back from the wrong place, the wrong write or the
//! wrong object compares unequal with certainty for all practical purposes. Shares no code with the system under test.

/// Bytes of a block, stated here again on purpose.
pub const BLOCK: u64 = 4096;

/// What one block may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlockValue {
    /// Never written, or behind the bytes that were.
    Zero,
    /// `valid` bytes by a write, zeros behind them.
    Written {
        /// Which write; unique in a run.
        writer: u64,
        /// Bytes that it wrote, 1 to 4096.
        valid: u16,
    },
}

/// The generator of one block's bytes (the finaliser of a well-mixed counter).
fn word(writer: u64, block: u64, index: u64) -> u64 {
    let mut x = writer
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(block.wrapping_mul(0xd1b5_4a32_d192_ed03))
        .wrapping_add(index.wrapping_mul(0x8cb9_2ba7_2f3d_8dd7));
    x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^ (x >> 32)
}

/// Fills `bytes` with what `writer` puts at `offset` (bytes from the object's start; any alignment, any length).
pub fn fill(writer: u64, offset: u64, bytes: &mut [u8]) {
    let mut at = offset;
    let mut rest = bytes;
    while !rest.is_empty() {
        let (block, inside) = (at / BLOCK, at % BLOCK);
        let skip = usize::try_from(inside % 8).unwrap_or(0);
        let in_block = usize::try_from(BLOCK - inside).unwrap_or(usize::MAX).min(rest.len());
        // Whole words of one block at a time, where it begins and ends with one.
        let count =
            if skip == 0 && in_block >= 8 { in_block - in_block % 8 } else { (8 - skip).min(in_block) };
        let (now, later) = rest.split_at_mut(count);
        for (index, bytes) in (inside / 8..).zip(now.chunks_mut(8)) {
            bytes.copy_from_slice(&word(writer, block, index).to_le_bytes()[skip..skip + bytes.len()]);
        }
        at += count as u64;
        rest = later;
    }
}

/// True if all are zero.
fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|bytes| *bytes == ZEROS[..bytes.len()])
}

impl BlockValue {
    /// The value of block `block` after `writer` wrote `end` bytes from the object's start (the block begins below `end`).
    #[must_use]
    pub fn written(writer: u64, block: u64, end: u64) -> BlockValue {
        let valid = (end - block * BLOCK).min(BLOCK);
        BlockValue::Written { writer, valid: u16::try_from(valid).unwrap_or(u16::MAX) }
    }

    /// True if `bytes`, which stand at `inside` of block `block`, are this value's.
    #[must_use]
    pub fn matches(self, block: u64, inside: u64, bytes: &[u8]) -> bool {
        match self {
            BlockValue::Zero => is_zero(bytes),
            BlockValue::Written { writer, valid } => {
                let valid_here = u64::from(valid).saturating_sub(inside);
                let valid_here = usize::try_from(valid_here).unwrap_or(usize::MAX).min(bytes.len());
                let (ours, zeros) = bytes.split_at(valid_here);
                let mut expected = [0u8; 4096];
                let expected = &mut expected[..ours.len()];
                fill(writer, block * BLOCK + inside, expected);
                expected == ours && is_zero(zeros)
            }
        }
    }
}

/// Which write a piece of at least 8 bytes at the start of a block came from, if any of writers 1 to `writers`; for messages.
#[must_use]
pub fn recognise(bytes: &[u8], writers: u64) -> Option<(u64, u64)> {
    let head = u64::from_le_bytes(*bytes.first_chunk::<8>()?);
    let candidates = (1..=writers).flat_map(|writer| (0..512).map(move |block| (writer, block)));
    candidates.into_iter().find(|(writer, block)| word(*writer, *block, 0) == head)
}

/// Folds values into a hash that tells two runs apart: FNV-1a, of values word by word (with the upper half folded back), of text byte by byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceHash(pub u64);

impl Default for TraceHash {
    fn default() -> TraceHash {
        TraceHash(0xcbf2_9ce4_8422_2325)
    }
}

impl TraceHash {
    /// Adds values.
    pub fn add(&mut self, values: &[u64]) {
        for value in values {
            let product = (self.0 ^ value).wrapping_mul(0x0000_0100_0000_01b3);
            self.0 = product ^ (product >> 32);
        }
    }

    /// Adds a text.
    pub fn add_text(&mut self, text: &str) {
        self.add_bytes(text.as_bytes());
    }

    /// Adds bytes.
    pub fn add_bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_the_same_however_they_are_cut() {
        let mut whole = vec![0; 3 * 4096];
        fill(7, 4096, &mut whole);
        for (start, end) in [(0, 1), (5, 4099), (4095, 4097), (8191, 12288)] {
            let mut part = vec![0; end - start];
            fill(7, 4096 + start as u64, &mut part);
            assert_eq!(part, whole[start..end]);
        }
        let value = BlockValue::written(7, 2, 1 << 20);
        assert!(value.matches(2, 0, &whole[4096..8192]) && value.matches(2, 100, &whole[4196..5000]));
        assert_eq!(recognise(&whole[4096..], 20), Some((7, 2)));
        assert_eq!(recognise(&whole[4097..], 20), None);
        assert!(
            !value.matches(3, 0, &whole[4096..8192]) && !BlockValue::Zero.matches(2, 0, &whole[4096..8192])
        );
    }

    #[test]
    fn a_tail_block_is_zero_behind_its_bytes() {
        let mut block = vec![0; 4096];
        fill(9, 0, &mut block[..100]);
        let value = BlockValue::written(9, 0, 100);
        assert!(
            value.matches(0, 0, &block)
                && value.matches(0, 90, &block[90..200])
                && value.matches(0, 200, &block[200..])
        );
        block[100] = 1;
        assert!(!value.matches(0, 0, &block));
    }
}
