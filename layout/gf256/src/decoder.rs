//! Lost units back from those that are left.
//!
//! With E the lost data units and F as many parity units, the lost data are `inverse(C[F][E]) (parity F - C[F][rest] rest)`,
//! so only a matrix as large as the loss is inverted. The rows are worked out once in [`Decoder::new`] and then applied
//! to any number of groups with the encoder's kernels.

use crate::code::{Code, CodeError};
use crate::field::{inverse, multiply};
use crate::matrix::Matrix;

/// Plan to compute some units of a group from others. Immutable; make it once for each pattern of loss.
#[derive(Clone, Debug)]
pub struct Decoder {
    present: usize,
    /// Position among the present units of each input of `matrix`.
    sources: Vec<usize>,
    rows: Vec<Vec<u8>>,
    matrix: Matrix,
}

impl Decoder {
    /// Works out how to make `wanted` from `present`.
    ///
    /// Units are numbered data 0..N, then parity N..N+K. `present`: at least N distinct ones, in any order; of more than N
    /// all data and then the first parity units are used. `wanted`: any, repeats allowed. Allocates; inverts a matrix as
    /// large as the number of data units not present. Errors: no such unit, one named twice, too few.
    pub fn new(code: &Code, present: &[usize], wanted: &[usize]) -> Result<Decoder, CodeError> {
        let (data, units) = (code.data_units(), code.data_units() + code.parity_units());
        let mut position = vec![None; units];
        for (at, &unit) in present.iter().enumerate() {
            let slot = position.get_mut(unit).ok_or(CodeError::NoSuchUnit { unit, units })?;
            if slot.replace(at).is_some() {
                return Err(CodeError::NamedTwice { unit });
            }
        }
        if let Some(&unit) = wanted.iter().find(|unit| **unit >= units) {
            return Err(CodeError::NoSuchUnit { unit, units });
        }
        if present.len() < data {
            return Err(CodeError::TooFewPresent { present: present.len(), needed: data });
        }
        // The first N present in unit order: data before parity.
        let used: Vec<(usize, usize)> =
            position.iter().enumerate().filter_map(|(unit, at)| at.map(|at| (unit, at))).take(data).collect();
        let data_rows = data_rows(code, &used.iter().map(|(unit, _)| *unit).collect::<Vec<_>>());
        let rows: Vec<Vec<u8>> = wanted
            .iter()
            .map(|&unit| match unit.checked_sub(data) {
                None => data_rows[unit].clone(),
                Some(parity) => combine(&code.coefficients()[parity], &data_rows),
            })
            .collect();
        // A unit that no wanted one depends on is not read.
        let needed: Vec<usize> = (0..data).filter(|&input| rows.iter().any(|row| row[input] != 0)).collect();
        let rows: Vec<Vec<u8>> =
            rows.iter().map(|row| needed.iter().map(|&input| row[input]).collect()).collect();
        let matrix = Matrix::new(code.kernel(), &rows, needed.len())?;
        let sources = needed.iter().map(|&input| used[input].1).collect();
        Ok(Decoder { present: present.len(), sources, rows, matrix })
    }

    /// Positions, among the units given as `present`, of those that are read. The others may be given as empty slices.
    #[must_use]
    pub fn sources(&self) -> &[usize] {
        &self.sources
    }

    /// The coefficients as `[wanted][source]`.
    #[must_use]
    pub fn coefficients(&self) -> &[Vec<u8>] {
        &self.rows
    }

    /// Computes the wanted units.
    ///
    /// `present_units`: as many and in the same order as `present` was; a shorter one counts as if zeros followed. `out`:
    /// the wanted units in their order, of equal length, overwritten. Does not allocate for groups of up to 32 units.
    /// Errors: other counts, outputs of unequal length, an input longer than them.
    pub fn decode(&self, present_units: &[&[u8]], out: &mut [&mut [u8]]) -> Result<(), CodeError> {
        if present_units.len() != self.present {
            return Err(CodeError::InputCount { needed: self.present, got: present_units.len() });
        }
        let mut few: [&[u8]; 32] = [&[]; 32];
        let mut many = Vec::new();
        let inputs = match few.get_mut(..self.sources.len()) {
            Some(few) => few,
            None => {
                many.resize(self.sources.len(), &[][..]);
                many.as_mut_slice()
            }
        };
        for (input, &source) in inputs.iter_mut().zip(&self.sources) {
            *input = present_units[source];
        }
        self.matrix.apply(0, inputs, out, false)
    }
}

/// All data units as combinations `[data unit][used unit]` of `used`: N distinct units, data first, each in order.
fn data_rows(code: &Code, used: &[usize]) -> Vec<Vec<u8>> {
    let data = code.data_units();
    let (kept, parity): (Vec<usize>, Vec<usize>) = used.iter().partition(|unit| **unit < data);
    let lost: Vec<usize> = (0..data).filter(|unit| kept.binary_search(unit).is_err()).collect();
    let chosen: Vec<&Vec<u8>> = parity.iter().map(|unit| &code.coefficients()[unit - data]).collect();
    let square = chosen.iter().map(|row| lost.iter().map(|&unit| row[unit]).collect()).collect();
    let inverted = invert(square);

    let mut rows = vec![vec![0; data]; data];
    for (at, &unit) in kept.iter().enumerate() {
        rows[unit][at] = 1;
    }
    for (row, &unit) in inverted.iter().zip(&lost) {
        for (&factor, (at, parity_row)) in row.iter().zip(chosen.iter().enumerate()) {
            rows[unit][kept.len() + at] = factor;
            for (kept_at, &kept_unit) in kept.iter().enumerate() {
                rows[unit][kept_at] ^= multiply(factor, parity_row[kept_unit]);
            }
        }
    }
    rows
}

/// The sum of `rows`, each times its factor.
fn combine(factors: &[u8], rows: &[Vec<u8>]) -> Vec<u8> {
    let mut sum = vec![0; factors.len()];
    for (&factor, row) in factors.iter().zip(rows) {
        for (sum, &byte) in sum.iter_mut().zip(row) {
            *sum ^= multiply(factor, byte);
        }
    }
    sum
}

/// The inverse of a square matrix by Gauss and Jordan. It has one: it is a submatrix of the code's.
fn invert(mut left: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let size = left.len();
    let mut right = vec![vec![0; size]; size];
    for (index, row) in right.iter_mut().enumerate() {
        row[index] = 1;
    }
    for column in 0..size {
        let pivot = (column..size)
            .find(|&row| left[row][column] != 0)
            .expect("every square submatrix of a Cauchy matrix is invertible");
        left.swap(column, pivot);
        right.swap(column, pivot);
        let scale = inverse(left[column][column]).expect("the pivot is not 0");
        for byte in left[column].iter_mut().chain(&mut right[column]) {
            *byte = multiply(*byte, scale);
        }
        for row in (0..size).filter(|row| *row != column) {
            let factor = left[row][column];
            for at in 0..size {
                left[row][at] ^= multiply(factor, left[column][at]);
                right[row][at] ^= multiply(factor, right[column][at]);
            }
        }
    }
    right
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::tests::{encode, unit};
    use crate::kernel::Kernel;

    fn decode(decoder: &Decoder, present: &[&[u8]], wanted: usize, bytes: usize) -> Vec<Vec<u8>> {
        let mut out = vec![vec![0xdd; bytes]; wanted];
        let mut outputs: Vec<&mut [u8]> = out.iter_mut().map(Vec::as_mut_slice).collect();
        decoder.decode(present, &mut outputs).unwrap();
        out
    }

    #[test]
    fn every_loss_that_leaves_enough_is_rebuilt() {
        const BYTES: usize = 75;
        for (data, parity) in [(1, 0), (1, 1), (1, 3), (2, 1), (2, 2), (3, 3), (4, 2), (5, 4), (8, 2)] {
            let units = data + parity;
            for kernel in Kernel::available() {
                let code = Code::with_kernel(data, parity, kernel).unwrap();
                let mut group: Vec<Vec<u8>> = (0..data).map(|seed| unit(seed, BYTES)).collect();
                group.extend(encode(&code, &group, BYTES));
                for left in 0..1usize << units {
                    let present: Vec<usize> = (0..units).rev().filter(|bit| left >> bit & 1 == 1).collect();
                    let wanted: Vec<usize> = (0..units).filter(|bit| left >> bit & 1 == 0).collect();
                    let decoder = Decoder::new(&code, &present, &wanted);
                    if present.len() < data {
                        let error = CodeError::TooFewPresent { present: present.len(), needed: data };
                        assert_eq!(decoder.unwrap_err(), error);
                        continue;
                    }
                    let decoder = decoder.unwrap();
                    // What is not a source is not read: it may be missing.
                    let mut inputs: Vec<&[u8]> = vec![&[]; present.len()];
                    for &source in decoder.sources() {
                        inputs[source] = &group[present[source]];
                    }
                    let rebuilt = decode(&decoder, &inputs, wanted.len(), BYTES);
                    for (unit, bytes) in wanted.iter().zip(&rebuilt) {
                        assert_eq!(
                            bytes, &group[*unit],
                            "{data}+{parity} {kernel} present {present:?} unit {unit}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn units_that_are_present_may_be_wanted_too() {
        let code = Code::new(3, 2).unwrap();
        let data: Vec<Vec<u8>> = (0..3).map(|seed| unit(seed, 40)).collect();
        let parity = encode(&code, &data, 40);
        let decoder = Decoder::new(&code, &[4, 0, 2], &[0, 1, 4, 1]).unwrap();
        let rebuilt = decode(&decoder, &[&parity[1], &data[0], &data[2]], 4, 40);
        assert_eq!(rebuilt, [&data[0], &data[1], &parity[1], &data[1]].map(Clone::clone));
    }

    #[test]
    fn one_lost_data_unit_of_an_intact_first_parity_is_plain_xor() {
        let code = Code::new(8, 2).unwrap();
        let decoder = Decoder::new(&code, &[0, 1, 2, 4, 5, 6, 7, 8, 9], &[3]).unwrap();
        assert_eq!(decoder.coefficients(), [[1; 8]]);
        assert_eq!(decoder.sources(), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn a_group_as_wide_as_the_field_is_rebuilt() {
        let (data, parity, bytes) = (200, 56, 33);
        let code = Code::new(data, parity).unwrap();
        let mut group: Vec<Vec<u8>> = (0..data).map(|seed| unit(seed, bytes)).collect();
        group.extend(encode(&code, &group, bytes));
        let wanted: Vec<usize> = (0..parity).map(|at| at * 3).collect();
        let present: Vec<usize> = (0..data + parity).filter(|unit| !wanted.contains(unit)).collect();
        let inputs: Vec<&[u8]> = present.iter().map(|&unit| group[unit].as_slice()).collect();
        let decoder = Decoder::new(&code, &present, &wanted).unwrap();
        let rebuilt = decode(&decoder, &inputs, wanted.len(), bytes);
        assert!(wanted.iter().zip(&rebuilt).all(|(&unit, bytes)| *bytes == group[unit]));
    }

    #[test]
    fn impossible_plans_are_refused() {
        let code = Code::new(2, 1).unwrap();
        let error = |present: &[usize], wanted: &[usize]| Decoder::new(&code, present, wanted).unwrap_err();
        assert_eq!(error(&[0, 3], &[1]), CodeError::NoSuchUnit { unit: 3, units: 3 });
        assert_eq!(error(&[0, 1], &[3]), CodeError::NoSuchUnit { unit: 3, units: 3 });
        assert_eq!(error(&[0, 0], &[1]), CodeError::NamedTwice { unit: 0 });
        assert_eq!(error(&[0], &[1]), CodeError::TooFewPresent { present: 1, needed: 2 });
        let decoder = Decoder::new(&code, &[0, 2], &[1]).unwrap();
        let mut out = [0; 4];
        let decoded = decoder.decode(&[&[0; 4]], &mut [&mut out]);
        assert_eq!(decoded.unwrap_err(), CodeError::InputCount { needed: 2, got: 1 });
    }
}
