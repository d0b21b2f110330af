//! The permutation of a tile: which column of the tile goes to which target, from the object's fid and the tile's number.
//!
//! Part of the disk format: a change here loses every object. Source: docs/layout.md#permutation (MOTR.md B14).

use base::Fid;

/// The 16 bytes that seed every permutation, as two big-endian numbers.
const SEED: [u8; 16] = *b"upjumpandpumpim,";

const fn seed_half(first: usize) -> u64 {
    let mut half = 0;
    let mut at = first;
    while at < first + 8 {
        half = half << 8 | SEED[at] as u64;
        at += 1;
    }
    half
}

const SEED_HI: u64 = seed_half(0);
const SEED_LO: u64 = seed_half(8);

/// Multiplies by 2^63 + 2^61 - 2^57 + 2^54 - 2^51 - 2^18 + 1, step by step; all modulo 2^64.
const fn hash(value: u64) -> u64 {
    let mut term = value << 18;
    let mut sum = value.wrapping_sub(term);
    term <<= 33;
    sum = sum.wrapping_sub(term);
    term <<= 3;
    sum = sum.wrapping_add(term);
    term <<= 3;
    sum = sum.wrapping_sub(term);
    term <<= 4;
    sum = sum.wrapping_add(term);
    term <<= 2;
    sum.wrapping_add(term)
}

/// The sequence of pseudo-random choices for one tile of one object.
struct Choices {
    state: u64,
}

impl Choices {
    fn new(object: Fid, tile: u64) -> Choices {
        let high = hash(SEED_HI.wrapping_add(object.key));
        let low = hash(SEED_LO.wrapping_add(tile).wrapping_add(object.container));
        Choices { state: high ^ low }
    }

    /// A number below `bound`, which is 1 to 2^16, so that the product fits into 64 bits.
    ///
    /// The quotient is below `bound`: its numerator is at most (2^48 - 1) bound, and equality needs 48 set bits in the
    /// state; then it would be `bound` itself, so that one state in 2^48 is brought back to the last choice.
    fn below(&mut self, bound: usize) -> usize {
        self.state = self.state.wrapping_mul(0x5_DEEC_E66D).wrapping_add(0xB);
        let product = (self.state >> 16).wrapping_mul(base::units::wide(bound));
        let choice = product / (u64::MAX >> 16);
        base::units::narrow(choice).min(bound - 1)
    }
}

/// The first `count` entries of the tile's permutation of `pool_width` targets: `[column] -> target`.
pub(crate) fn targets_of_tile(object: Fid, tile: u64, pool_width: u32, count: usize) -> Vec<u32> {
    if pool_width > WIDE && count > FEW {
        return targets_of_wide_tile(object, tile, pool_width, count);
    }
    let mut targets: Vec<u32> = (0..pool_width).collect();
    let mut choices = Choices::new(object, tile);
    // A Lehmer code, applied as it is drawn: entry i is taken from those not yet taken, which keep their order. The last
    // entry is what is left, so nothing is drawn for it.
    for column in 0..count.min(targets.len().saturating_sub(1)) {
        let choice = choices.below(targets.len() - column);
        targets[column..=column + choice].rotate_right(1);
    }
    targets.truncate(count);
    targets
}

/// From this width on moving all targets behind each choice costs more than a tree over them.
const WIDE: u32 = 1024;
/// So few columns are not worth a tree.
const FEW: usize = 64;

/// The same for many columns of a wide pool, in time P log P instead of P squared: 10,240 targets take a twentieth of it.
fn targets_of_wide_tile(object: Fid, tile: u64, pool_width: u32, count: usize) -> Vec<u32> {
    let mut left = Left::new(pool_width);
    let mut choices = Choices::new(object, tile);
    let width = base::units::narrow(u64::from(pool_width));
    let choice = |column: usize| if column + 1 < width { choices.below(width - column) } else { 0 };
    (0..count.min(width)).map(choice).map(|choice| left.take(choice)).collect()
}

/// The targets that are not taken yet, in their order: a binary indexed tree of how many there are (Fenwick, Software: Practice and
/// Experience 24(3), 1994).
struct Left {
    /// `[n]`: how many are left of the targets that end with the n-th, counted from 1, as many as the lowest set bit of n says.
    counts: Vec<u32>,
}

impl Left {
    fn new(pool_width: u32) -> Left {
        Left { counts: (0..=pool_width).map(|n| n & n.wrapping_neg()).collect() }
    }

    /// Takes the one that has `before` others in front of it. There are more than so many.
    fn take(&mut self, before: usize) -> u32 {
        let mut before = u32::try_from(before).unwrap_or(u32::MAX);
        let (mut found, mut step) = (0, self.counts.len().next_power_of_two() / 2);
        while step > 0 {
            if let Some(count) = self.counts.get_mut(found + step) {
                if *count <= before {
                    before -= *count;
                    found += step;
                } else {
                    *count -= 1;
                }
            }
            step /= 2;
        }
        u32::try_from(found).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_is_two_big_endian_numbers() {
        assert_eq!(SEED_HI, 0x7570_6a75_6d70_616e);
        assert_eq!(SEED_LO, 0x6470_756d_7069_6d2c);
    }

    #[test]
    fn the_hash_is_a_product() {
        for value in [0, 1, 2, 0xdead_beef, u64::MAX] {
            assert_eq!(hash(value), value.wrapping_mul(hash(1)));
        }
        let factor = (1i128 << 63) + (1 << 61) - (1 << 57) + (1 << 54) - (1 << 51) - (1 << 18) + 1;
        assert_eq!(i128::from(hash(1)), factor);
    }

    /// The rule as it stands in docs/layout.md.
    fn by_the_rule(object: Fid, tile: u64, pool_width: u32) -> Vec<u32> {
        let mut choices = Choices::new(object, tile);
        let mut left: Vec<u32> = (0..pool_width).collect();
        let mut targets = Vec::new();
        while left.len() > 1 {
            targets.push(left.remove(choices.below(left.len())));
        }
        targets.extend(left);
        targets
    }

    #[test]
    fn narrow_and_wide_pools_go_by_the_same_rule() {
        for pool_width in [1, 2, 9, 64, 65, 1000, WIDE, WIDE + 1, 2048, 5000, 10_240, 16_384] {
            for tile in [0, 77, u64::MAX] {
                let object = Fid { container: tile, key: u64::from(pool_width) };
                let expected = by_the_rule(object, tile, pool_width);
                for count in [expected.len(), expected.len() / 2, FEW.min(expected.len())] {
                    assert!(targets_of_tile(object, tile, pool_width, count) == expected[..count]);
                }
                let wide = targets_of_wide_tile(object, tile, pool_width, expected.len());
                assert!(wide == expected, "{pool_width} targets, tile {tile}");
            }
        }
    }

    #[test]
    fn every_tile_permutes_all_targets_and_prefixes_agree() {
        for pool_width in [1u32, 2, 3, 8, 11, 4096] {
            for tile in [0, 1, u64::MAX] {
                let count = base::units::narrow(u64::from(pool_width));
                let targets = targets_of_tile(Fid { container: u64::MAX, key: 3 }, tile, pool_width, count);
                let mut sorted = targets.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..pool_width).collect::<Vec<_>>());
                for prefix in 0..count.min(9) {
                    let first =
                        targets_of_tile(Fid { container: u64::MAX, key: 3 }, tile, pool_width, prefix);
                    assert_eq!(first, targets[..prefix]);
                }
            }
        }
    }
}
