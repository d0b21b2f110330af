//! The code of a parity group: N data units give K parity units, and any N of the N + K give the rest.
//!
//! Coefficient of parity r and data j: `(N ^ j)(N + r) / (((N + r) ^ j) N)` in GF(2^8), a Cauchy matrix whose rows and
//! columns are scaled so that row 0 and column 0 are all ones. Every square submatrix of a Cauchy matrix is
//! invertible, and scaling keeps that, so every pattern of K losses can be rebuilt. Row 0 is plain XOR (no
//! multiplication), and with N = 1 every parity unit is a copy (replication). Format: docs/layout.md#code.

use crate::field::{inverse, multiply};
use crate::kernel::Kernel;
use crate::matrix::Matrix;

/// Data and parity units together: a Cauchy matrix over GF(2^8) has 256 distinct points.
pub const UNITS_MAX: usize = 256;

/// Why a code is not made or not applied. All blame the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodeError {
    /// A code of no data.
    #[error("a code needs at least one data unit")]
    NoData,
    /// More units than the field has points.
    #[error("{data} data and {parity} parity units are more than {UNITS_MAX}, the limit of GF(2^8)")]
    TooManyUnits {
        /// Data units asked for.
        data: usize,
        /// Parity units asked for.
        parity: usize,
    },
    /// The CPU lacks the instructions.
    #[error("this CPU lacks what the kernel {kernel} needs: choose another one")]
    KernelUnavailable {
        /// The kernel asked for.
        kernel: Kernel,
    },
    /// More or fewer units were given than the code has.
    #[error("{got} units were given to read from, where {needed} belong")]
    InputCount {
        /// Units that belong here.
        needed: usize,
        /// Units given.
        got: usize,
    },
    /// More or fewer units are to be written than the code gives.
    #[error("{got} units were given to write to, where {needed} belong")]
    OutputCount {
        /// Units that belong here.
        needed: usize,
        /// Units given.
        got: usize,
    },
    /// A unit to read is longer than those to write.
    #[error(
        "unit {index} of those to read has {bytes} bytes, more than the {output_bytes} of those to write"
    )]
    InputLength {
        /// Position among the units given.
        index: usize,
        /// Its bytes.
        bytes: usize,
        /// Bytes of each unit to write.
        output_bytes: usize,
    },
    /// Units to write differ in length.
    #[error("unit {index} of those to write has {bytes} bytes, but the first has {first_bytes}")]
    OutputLength {
        /// Position among the units given.
        index: usize,
        /// Its bytes.
        bytes: usize,
        /// Bytes of the first.
        first_bytes: usize,
    },
    /// No such unit.
    #[error("there is no unit {unit} in a group of {units} units")]
    NoSuchUnit {
        /// The unit named.
        unit: usize,
        /// Units of the group, from 0.
        units: usize,
    },
    /// A unit is named twice.
    #[error("unit {unit} is named twice among those present")]
    NamedTwice {
        /// The unit.
        unit: usize,
    },
    /// Too little is left.
    #[error("only {present} units are present: {needed} are needed to rebuild the others")]
    TooFewPresent {
        /// Distinct units present.
        present: usize,
        /// Data units of the code.
        needed: usize,
    },
}

/// Coefficient of parity `row` for data unit `column` in a code of `data` data units.
///
/// Needs `column < data` and `data + row < 256`: then no factor is 0.
fn coefficient(data: u8, row: u8, column: u8) -> u8 {
    let point = data + row;
    let numerator = multiply(data ^ column, point);
    let denominator = multiply(point ^ column, data);
    let inverse = inverse(denominator).expect("two points of one Cauchy matrix are distinct, so not 0");
    multiply(numerator, inverse)
}

/// The code of one shape of parity group, ready for one kernel. Immutable; make it once and share it.
#[derive(Clone, Debug)]
pub struct Code {
    data: usize,
    parity: usize,
    rows: Vec<Vec<u8>>,
    matrix: Matrix,
}

impl Code {
    /// The code for `data_units` and `parity_units` with the CPU's best kernel.
    ///
    /// Errors: no data, more than [`UNITS_MAX`] units. Allocates about 33 bytes for each data and parity unit's pair.
    pub fn new(data_units: usize, parity_units: usize) -> Result<Code, CodeError> {
        Code::with_kernel(data_units, parity_units, Kernel::best())
    }

    /// The same code with a kernel of the caller's choice, for tests and benchmarks. Errors: as [`Code::new`], or the
    /// CPU lacks the kernel.
    pub fn with_kernel(data_units: usize, parity_units: usize, kernel: Kernel) -> Result<Code, CodeError> {
        if data_units == 0 {
            return Err(CodeError::NoData);
        }
        let too_many = CodeError::TooManyUnits { data: data_units, parity: parity_units };
        if data_units.saturating_add(parity_units) > UNITS_MAX {
            return Err(too_many);
        }
        let parity_rows = u8::try_from(parity_units).map_err(|_| too_many.clone())?;
        let rows: Vec<Vec<u8>> = match u8::try_from(data_units) {
            Ok(data) => (0..parity_rows)
                .map(|row| (0..data).map(|column| coefficient(data, row, column)).collect())
                .collect(),
            Err(_) => Vec::new(), // 256 data units leave no room for parity
        };
        let matrix = Matrix::new(kernel, &rows, data_units)?;
        Ok(Code { data: data_units, parity: parity_units, rows, matrix })
    }

    /// N.
    #[must_use]
    pub fn data_units(&self) -> usize {
        self.data
    }

    /// K.
    #[must_use]
    pub fn parity_units(&self) -> usize {
        self.parity
    }

    /// The kernel in use.
    #[must_use]
    pub fn kernel(&self) -> Kernel {
        self.matrix.kernel()
    }

    /// The matrix as `[parity][data]`: what docs/layout.md pins.
    #[must_use]
    pub fn coefficients(&self) -> &[Vec<u8>] {
        &self.rows
    }

    /// Computes all parity units.
    ///
    /// `data`: the N data units in order; one that is shorter than the parity (or empty) counts as if zeros followed.
    /// `parity`: K units of equal length, overwritten. Any lengths and alignments. Does not allocate.
    /// Errors: another count than N or K, parity units of unequal length, a data unit longer than them.
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<(), CodeError> {
        if data.len() != self.data {
            return Err(CodeError::InputCount { needed: self.data, got: data.len() });
        }
        self.matrix.apply(0, data, parity, false)
    }

    /// Brings all parity units up to date after one data unit changed.
    ///
    /// `delta`: old XOR new bytes of data unit `data_index`, at most as long as the parity units, which are the old ones
    /// and become the new ones. Does not allocate. Errors: no such data unit, and as [`Code::encode`].
    pub fn update(&self, data_index: usize, delta: &[u8], parity: &mut [&mut [u8]]) -> Result<(), CodeError> {
        if data_index >= self.data {
            return Err(CodeError::NoSuchUnit { unit: data_index, units: self.data });
        }
        self.matrix.apply(data_index, &[delta], parity, true)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use reed_solomon_erasure::galois_8;

    /// Deterministic bytes that differ between units.
    pub(crate) fn unit(seed: usize, bytes: usize) -> Vec<u8> {
        let mut state = seed as u64 + 1;
        let next = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            state.to_be_bytes()[0]
        };
        std::iter::repeat_with(next).take(bytes).collect()
    }

    /// Parity by the definition, with the arithmetic of an independent library.
    fn parity_by_definition(code: &Code, data: &[Vec<u8>], bytes: usize) -> Vec<Vec<u8>> {
        let sum = |row: &Vec<u8>, at: usize| {
            row.iter().zip(data).fold(0, |sum, (&coefficient, unit)| {
                galois_8::add(sum, galois_8::mul(coefficient, unit.get(at).copied().unwrap_or(0)))
            })
        };
        code.coefficients().iter().map(|row| (0..bytes).map(|at| sum(row, at)).collect()).collect()
    }

    pub(crate) fn encode(code: &Code, data: &[Vec<u8>], bytes: usize) -> Vec<Vec<u8>> {
        let mut parity = vec![vec![0xee; bytes]; code.parity_units()];
        let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        let mut outputs: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
        code.encode(&data, &mut outputs).unwrap();
        parity
    }

    /// Determinant over GF(2^8) by elimination with the independent library's arithmetic.
    fn is_invertible(mut square: Vec<Vec<u8>>) -> bool {
        for column in 0..square.len() {
            let Some(pivot) = (column..square.len()).find(|&row| square[row][column] != 0) else {
                return false;
            };
            square.swap(column, pivot);
            let (above, below) = square.split_at_mut(column + 1);
            let pivot_row = &above[column];
            for row in below {
                let factor = galois_8::div(row[column], pivot_row[column]);
                for (byte, &pivot_byte) in row.iter_mut().zip(pivot_row) {
                    *byte ^= galois_8::mul(factor, pivot_byte);
                }
            }
        }
        true
    }

    #[test]
    fn golden_coefficients_of_docs_layout() {
        let rows = |data, parity| Code::new(data, parity).unwrap().coefficients().to_vec();
        assert_eq!(rows(4, 2), [[1, 1, 1, 1], [1, 217, 92, 172]]);
        assert_eq!(
            rows(8, 3),
            [[1; 8], [1, 55, 39, 73, 84, 181, 225, 217], [1, 39, 217, 161, 92, 60, 172, 90]]
        );
        assert_eq!(rows(1, 3), [[1], [1], [1]]);
        assert_eq!(rows(3, 0), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn golden_parity_of_docs_layout() {
        let data: Vec<Vec<u8>> =
            vec![b"Clovis".to_vec(), b"parity".to_vec(), b"groups".to_vec(), b"endure".to_vec()];
        let parity = encode(&Code::new(4, 2).unwrap(), &data, 6);
        assert_eq!(parity[0], [0x31, 0x11, 0x16, 0x1f, 0x1f, 0x1c]);
        assert_eq!(parity[1], [0x26, 0xb9, 0xd3, 0x5e, 0x1e, 0x8d]);
    }

    #[test]
    fn first_row_and_column_are_ones_and_none_is_zero() {
        for data in 1..=255usize {
            let code = Code::new(data, 256 - data).unwrap();
            let rows = code.coefficients();
            assert!(rows[0].iter().all(|&coefficient| coefficient == 1));
            assert!(rows.iter().all(|row| row[0] == 1 && row.iter().all(|&coefficient| coefficient != 0)));
        }
    }

    #[test]
    fn every_square_submatrix_of_small_codes_is_invertible() {
        let subsets =
            |count: usize, size: u32| (0..1usize << count).filter(move |set| set.count_ones() == size);
        let members = |set: usize| (0..usize::BITS as usize).filter(move |bit| set >> bit & 1 == 1);
        for (data, parity) in [(1, 5), (2, 4), (3, 3), (4, 4), (5, 3), (8, 4), (10, 3)] {
            let code = Code::new(data, parity).unwrap();
            for size in 1..=data.min(parity) {
                let size_bits = u32::try_from(size).unwrap();
                for row_set in subsets(parity, size_bits) {
                    for column_set in subsets(data, size_bits) {
                        let square: Vec<Vec<u8>> = members(row_set)
                            .map(|row| members(column_set).map(|at| code.coefficients()[row][at]).collect())
                            .collect();
                        assert!(
                            is_invertible(square),
                            "{data}+{parity} rows {row_set:b} columns {column_set:b}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn impossible_codes_and_units_are_refused() {
        assert_eq!(Code::new(0, 2).unwrap_err(), CodeError::NoData);
        assert_eq!(Code::new(250, 7).unwrap_err(), CodeError::TooManyUnits { data: 250, parity: 7 });
        assert_eq!(
            Code::new(usize::MAX, 1).unwrap_err(),
            CodeError::TooManyUnits { data: usize::MAX, parity: 1 }
        );
        assert!(Code::new(256, 0).is_ok());
        for kernel in Kernel::ALL.into_iter().filter(|kernel| !kernel.is_available()) {
            assert_eq!(Code::with_kernel(4, 2, kernel).unwrap_err(), CodeError::KernelUnavailable { kernel });
        }
        let code = Code::new(2, 2).unwrap();
        let (mut long, mut other, mut short) = ([0; 8], [0; 8], [0; 7]);
        let data: [&[u8]; 3] = [&[1; 8], &[2; 8], &[3; 9]];
        let refused = |data: &[&[u8]], parity: &mut [&mut [u8]]| code.encode(data, parity).unwrap_err();
        assert_eq!(
            refused(&data[..1], &mut [&mut long, &mut other]),
            CodeError::InputCount { needed: 2, got: 1 }
        );
        assert_eq!(refused(&data[..2], &mut [&mut long]), CodeError::OutputCount { needed: 2, got: 1 });
        assert_eq!(
            refused(&data[..2], &mut [&mut long, &mut short]),
            CodeError::OutputLength { index: 1, bytes: 7, first_bytes: 8 }
        );
        assert_eq!(
            refused(&data[1..], &mut [&mut long, &mut other]),
            CodeError::InputLength { index: 1, bytes: 9, output_bytes: 8 }
        );
        let update = code.update(2, &[0; 8], &mut [&mut long, &mut other]);
        assert_eq!(update.unwrap_err(), CodeError::NoSuchUnit { unit: 2, units: 2 });
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn all_kernels_give_the_definition(
            data in 1usize..20, parity in 0usize..11, bytes in 0usize..700, offset in 0usize..64,
            cuts in proptest::collection::vec(0usize..2000, 20),
        ) {
            // Units start at odd addresses, some are shorter than the parity, and the bytes around parity are guards.
            let buffers: Vec<Vec<u8>> = (0..data).map(|seed| unit(seed, offset + bytes.min(cuts[seed]))).collect();
            let units: Vec<Vec<u8>> = buffers.iter().map(|buffer| buffer[offset..].to_vec()).collect();
            let slices: Vec<&[u8]> = buffers.iter().map(|buffer| &buffer[offset..]).collect();
            for kernel in Kernel::available() {
                let code = Code::with_kernel(data, parity, kernel).unwrap();
                let mut outputs = vec![vec![0xa5; offset + bytes + 70]; parity];
                {
                    let mut parity: Vec<&mut [u8]> =
                        outputs.iter_mut().map(|output| &mut output[offset..offset + bytes]).collect();
                    code.encode(&slices, &mut parity).unwrap();
                }
                for (output, expected) in outputs.iter().zip(parity_by_definition(&code, &units, bytes)) {
                    prop_assert_eq!(&output[offset..offset + bytes], &expected[..], "{}", kernel);
                    prop_assert!(output[..offset].iter().chain(&output[offset + bytes..]).all(|&byte| byte == 0xa5));
                }
            }
        }

        #[test]
        fn an_update_gives_what_encoding_anew_gives(
            data in 1usize..10, parity in 0usize..7, bytes in 0usize..400, changed in 0usize..10, delta_bytes in 0usize..400,
        ) {
            let (changed, delta_bytes) = (changed % data, delta_bytes.min(bytes));
            let before: Vec<Vec<u8>> = (0..data).map(|seed| unit(seed, bytes)).collect();
            let delta = unit(99, delta_bytes);
            let mut after = before.clone();
            after[changed].iter_mut().zip(&delta).for_each(|(byte, change)| *byte ^= change);
            for kernel in Kernel::available() {
                let code = Code::with_kernel(data, parity, kernel).unwrap();
                let mut updated = encode(&code, &before, bytes);
                let mut outputs: Vec<&mut [u8]> = updated.iter_mut().map(Vec::as_mut_slice).collect();
                code.update(changed, &delta, &mut outputs).unwrap();
                prop_assert_eq!(&updated, &encode(&code, &after, bytes), "{}", kernel);
            }
        }
    }

    #[test]
    fn units_that_span_several_cache_blocks() {
        let (data, parity, bytes) = (3, 9, 200_003);
        let units: Vec<Vec<u8>> = (0..data).map(|seed| unit(seed, bytes - seed * 70_000)).collect();
        let expected = parity_by_definition(&Code::new(data, parity).unwrap(), &units, bytes);
        for kernel in Kernel::available() {
            let code = Code::with_kernel(data, parity, kernel).unwrap();
            assert!(encode(&code, &units, bytes) == expected, "{kernel}");
        }
    }
}
