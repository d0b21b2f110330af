//! Arithmetic of GF(2^8) with the polynomial x^8 + x^4 + x^3 + x^2 + 1 (0x11d), and the tables that the kernels use.
//!
//! Addition is XOR. 2 generates the multiplicative group, so every non-zero byte is a power of it. Tables are made when
//! compiling, about 8.8 KiB in all. Source: Plank, "A tutorial on Reed-Solomon coding" (1997); docs/layout.md#code.

/// The field's polynomial, bit i for x^i.
pub const POLYNOMIAL: u16 = 0x11d;

const fn powers() -> ([u8; 512], [u8; 256]) {
    let (mut exp, mut log) = ([0u8; 512], [0u8; 256]);
    let mut power = 1u16;
    let mut exponent = 0;
    while exponent < 255 {
        let byte = power.to_le_bytes()[0];
        exp[exponent] = byte;
        exp[exponent + 255] = byte; // twice, so that a sum of two logarithms needs no modulo
        log[byte as usize] = exponent.to_le_bytes()[0];
        power <<= 1;
        if power & 0x100 != 0 {
            power ^= POLYNOMIAL;
        }
        exponent += 1;
    }
    (exp, log)
}

const POWERS: ([u8; 512], [u8; 256]) = powers();
static EXP: [u8; 512] = POWERS.0;
static LOG: [u8; 256] = POWERS.1;

/// The product of two bytes by shift and add: the definition, used to make tables.
const fn multiply_slowly(left: u8, right: u8) -> u8 {
    let (mut product, mut shifted, mut rest) = (0u8, left, right);
    while rest != 0 {
        if rest & 1 != 0 {
            product ^= shifted;
        }
        let overflow = shifted & 0x80 != 0;
        shifted <<= 1;
        if overflow {
            shifted ^= POLYNOMIAL.to_le_bytes()[0];
        }
        rest >>= 1;
    }
    product
}

/// The product of two bytes.
#[must_use]
pub fn multiply(left: u8, right: u8) -> u8 {
    if left == 0 || right == 0 {
        return 0;
    }
    EXP[usize::from(LOG[usize::from(left)]) + usize::from(LOG[usize::from(right)])]
}

/// The byte whose product with `byte` is 1, or `None` for 0, which has none.
#[must_use]
pub fn inverse(byte: u8) -> Option<u8> {
    if byte == 0 { None } else { Some(EXP[255 - usize::from(LOG[usize::from(byte)])]) }
}

/// Products of one coefficient with all bytes, as two tables of 16: `[x & 15]` then `[16 + (x >> 4)]`, to be added.
pub(crate) type Nibbles = [u8; 32];

const fn all_nibbles() -> [Nibbles; 256] {
    let mut all = [[0u8; 32]; 256];
    let mut coefficient = 0usize;
    while coefficient < 256 {
        // Multiplication is linear, so the products of the eight powers of two give the rest by XOR.
        let mut bit = 0;
        while bit < 8 {
            let product = multiply_slowly(coefficient.to_le_bytes()[0], 1 << bit);
            let (table, step) = if bit < 4 { (0, 1 << bit) } else { (16, 1 << (bit - 4)) };
            let mut index = 0;
            while index < 16 {
                if index & step != 0 {
                    all[coefficient][table + index] ^= product;
                }
                index += 1;
            }
            bit += 1;
        }
        coefficient += 1;
    }
    all
}

pub(crate) static NIBBLES: [Nibbles; 256] = all_nibbles();

/// Multiplication by `coefficient` as the 8x8 bit matrix that GFNI's affine instruction takes.
///
/// Bit i of the product is the parity of (row i AND x); the instruction keeps row i in byte 7 - i of the quadword.
/// Its own multiplication is of no use here: it is fixed to the polynomial 0x11b. Source: Intel SDM, GF2P8AFFINEQB.
#[cfg(any(test, target_arch = "x86_64"))]
pub(crate) fn affine_matrix(coefficient: u8) -> u64 {
    let mut rows = [0u8; 8];
    for column in 0..8 {
        let product = multiply(coefficient, 1 << column);
        for (bit, row) in rows.iter_mut().rev().enumerate() {
            *row |= ((product >> bit) & 1) << column;
        }
    }
    u64::from_le_bytes(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use reed_solomon_erasure::galois_8;

    #[test]
    fn arithmetic_is_that_of_an_independent_library() {
        for left in 0..=255u8 {
            for right in 0..=255u8 {
                let product = galois_8::mul(left, right);
                assert_eq!(multiply(left, right), product, "{left} * {right}");
                assert_eq!(multiply_slowly(left, right), product, "{left} * {right}, slowly");
                let nibbles = &NIBBLES[usize::from(left)];
                let by_table = nibbles[usize::from(right & 15)] ^ nibbles[16 + usize::from(right >> 4)];
                assert_eq!(by_table, product, "{left} * {right}, by nibbles");
            }
            let by_division = (left != 0).then(|| galois_8::div(1, left));
            assert_eq!(inverse(left), by_division, "1 / {left}");
        }
    }

    #[test]
    fn affine_matrices_multiply_as_the_manual_says() {
        for coefficient in 0..=255u8 {
            let matrix = affine_matrix(coefficient).to_le_bytes();
            for byte in 0..=255u8 {
                let product = (0..8).fold(0u8, |product, bit| {
                    let parity = (matrix[7 - bit] & byte).count_ones() & 1;
                    product | (u8::from(parity == 1) << bit)
                });
                assert_eq!(product, multiply(coefficient, byte), "{coefficient} * {byte}");
            }
        }
    }
}
