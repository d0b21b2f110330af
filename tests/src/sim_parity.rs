//! Parity of one row, worked out again from docs/layout.md#code: slow arithmetic of its own, which shares no code with the system. Pure.

/// x^8 + x^4 + x^3 + x^2 + 1.
const POLYNOMIAL: u16 = 0x11d;

/// Product in GF(2^8), bit by bit.
fn times(a: u8, b: u8) -> u8 {
    let (mut a, mut product) = (u16::from(a), 0u16);
    for bit in 0..8 {
        if (b >> bit) & 1 == 1 {
            product ^= a;
        }
        a <<= 1;
        if a & 0x100 != 0 {
            a ^= POLYNOMIAL;
        }
    }
    u8::try_from(product).expect("reduced in every step")
}

fn inverse(a: u8) -> u8 {
    (1..=255).find(|b| times(a, *b) == 1).expect("every number but 0 has one")
}

/// What data unit `unit` of `data_units` counts for in parity unit `parity`.
fn coefficient(data_units: u8, parity: u8, unit: u8) -> u8 {
    let over = times(data_units ^ unit, data_units + parity);
    let under = times((data_units + parity) ^ unit, data_units);
    times(over, inverse(under))
}

/// Bytes of parity unit `parity` of a row with these data units, all of one length (at most 128 units).
#[must_use]
pub fn parity(data: &[&[u8]], parity: u8) -> Vec<u8> {
    let count = u8::try_from(data.len()).expect("few units");
    let mut sum = vec![0; data.first().map_or(0, |unit| unit.len())];
    for (unit, bytes) in (0..count).zip(data) {
        let coefficient = coefficient(count, parity, unit);
        let table: Vec<u8> = (0..=255).map(|byte| times(coefficient, byte)).collect();
        for (sum, byte) in sum.iter_mut().zip(*bytes) {
            *sum ^= table[usize::from(*byte)];
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worked_example_of_the_layout() {
        let data: [&[u8]; 4] = [b"Clovis", b"parity", b"groups", b"endure"];
        assert_eq!(parity(&data, 0), [0x31, 0x11, 0x16, 0x1f, 0x1f, 0x1c]);
        assert_eq!(parity(&data, 1), [0x26, 0xb9, 0xd3, 0x5e, 0x1e, 0x8d]);
        let row: Vec<u8> = (0..8).map(|unit| coefficient(8, 2, unit)).collect();
        assert_eq!(row, [1, 39, 217, 161, 92, 60, 172, 90]);
    }
}
