//! The inner loop: several rows of a matrix times all units, in one pass over the units.
//!
//! Each step loads two registers of every unit once and keeps the sums of all rows in registers, so a byte of data is
//! read once for up to [`ROWS_MAX`] rows, and a sum is stored once.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::lanes::Lanes;

/// Rows of one pass: two registers a row, two of data split in two, a mask and two tables fit into 16 registers.
pub(crate) const ROWS_MAX: usize = 4;

/// One pass over a range of bytes.
pub(crate) struct Pass<'a, Prepared> {
    /// Coefficients as `[input][row]`; without the first row's if `first_is_ones`.
    pub(crate) coefficients: &'a [Prepared],
    /// The units that are read; each holds at least `range.end` bytes.
    pub(crate) inputs: &'a [&'a [u8]],
    /// The bytes of each unit that this pass covers.
    pub(crate) range: Range<usize>,
    /// True if the first row's coefficients are all 1: its sum needs no multiplication.
    pub(crate) first_is_ones: bool,
    /// True if the outputs' bytes are added to, not overwritten.
    pub(crate) add: bool,
}

/// Runs as much of `pass` as whole registers cover; returns where it stopped, at most `range.end`.
///
/// # Safety
/// The CPU has what `L` needs; `outputs` are 1 to [`ROWS_MAX`]; every input and output holds at least `range.end`
/// bytes; `coefficients` holds one for each input and multiplied row.
#[inline(always)]
pub(crate) unsafe fn run<L: Lanes>(pass: &Pass<'_, L::Prepared>, outputs: &mut [&mut [u8]]) -> usize {
    let multiplied = outputs.len() - usize::from(pass.first_is_ones);
    debug_assert!(pass.coefficients.len() == pass.inputs.len() * multiplied, "one coefficient each");
    debug_assert!(pass.inputs.iter().all(|input| input.len() >= pass.range.end), "inputs cover the range");
    debug_assert!(outputs.iter().all(|output| output.len() >= pass.range.end), "outputs cover the range");
    // SAFETY: all that `rows` asks is asked of our caller.
    unsafe {
        match outputs {
            [first] => rows::<L, 1>(pass, [first]),
            [first, second] => rows::<L, 2>(pass, [first, second]),
            [first, second, third] => rows::<L, 3>(pass, [first, second, third]),
            [first, second, third, fourth] => rows::<L, 4>(pass, [first, second, third, fourth]),
            _ => unreachable!("a pass has 1 to {ROWS_MAX} rows"),
        }
    }
}

#[inline(always)]
unsafe fn rows<L: Lanes, const ROWS: usize>(
    pass: &Pass<'_, L::Prepared>,
    outputs: [&mut &mut [u8]; ROWS],
) -> usize {
    let outputs = outputs.map(|output| output.as_mut_ptr());
    // SAFETY: passed on; the pointers are of distinct exclusive slices, which the caller lends until we return.
    unsafe {
        match (pass.first_is_ones, pass.add) {
            (false, false) => widths::<L, ROWS, false, false>(pass, outputs),
            (false, true) => widths::<L, ROWS, false, true>(pass, outputs),
            (true, false) => widths::<L, ROWS, true, false>(pass, outputs),
            (true, true) => widths::<L, ROWS, true, true>(pass, outputs),
        }
    }
}

/// Two registers of each unit a step, then the one that may be left.
#[inline(always)]
unsafe fn widths<L: Lanes, const ROWS: usize, const ONES: bool, const ADD: bool>(
    pass: &Pass<'_, L::Prepared>,
    outputs: [*mut u8; ROWS],
) -> usize {
    // SAFETY: passed on; the second starts where the first stopped, inside the range.
    unsafe {
        match pass.inputs {
            [input] if ADD => {
                let at = grow::<L, ROWS, 2, ONES>(pass, input, pass.range.start, outputs);
                grow::<L, ROWS, 1, ONES>(pass, input, at, outputs)
            }
            _ => {
                let at = dot::<L, ROWS, 2, ONES, ADD>(pass, pass.range.start, outputs);
                dot::<L, ROWS, 1, ONES, ADD>(pass, at, outputs)
            }
        }
    }
}

/// [`dot`] of one unit added to the outputs, as in an update: its coefficients stay in registers.
///
/// JUSTIFICATION: 1.1 to 1.3 times the speed of `dot` for two to four rows, which every small write pays for.
#[inline(always)]
unsafe fn grow<L: Lanes, const ROWS: usize, const WIDE: usize, const ONES: bool>(
    pass: &Pass<'_, L::Prepared>,
    input: &[u8],
    start: usize,
    outputs: [*mut u8; ROWS],
) -> usize {
    let mut at = start;
    if pass.range.end - at < WIDE * L::BYTES {
        return at;
    }
    // The first row's factor stays unset where that row is all ones. Not an Option: the compiler would test it in the loop.
    let multiplied = usize::from(ONES)..ROWS;
    let mut factors = [const { MaybeUninit::<L::Factor>::uninit() }; ROWS];
    for row in multiplied.clone() {
        // SAFETY: with one input `coefficients` holds one item for each multiplied row.
        factors[row].write(unsafe { L::factor(pass.coefficients.as_ptr().add(row - multiplied.start)) });
    }
    while pass.range.end - at >= WIDE * L::BYTES {
        // SAFETY: `at + WIDE * BYTES <= range.end`, which the input and every output hold; the factor of every multiplied row is
        // set above.
        unsafe {
            // All loads before all stores: units start at the same place of a page, and a load that follows a store to the
            // same place of another page waits for it on many CPUs.
            let mut values = [L::zero(); WIDE];
            let mut sums = [[L::zero(); WIDE]; ROWS];
            for (word, value) in values.iter_mut().enumerate() {
                *value = L::load(input.as_ptr().add(at + word * L::BYTES));
            }
            for (sum, output) in sums.iter_mut().zip(outputs) {
                for (word, sum) in sum.iter_mut().enumerate() {
                    *sum = L::load(output.add(at + word * L::BYTES));
                }
            }
            let splits = values.map(|value| value.split());
            if ONES {
                for (sum, value) in sums[0].iter_mut().zip(values) {
                    *sum = sum.add(value);
                }
            }
            for row in multiplied.clone() {
                let factor = factors[row].assume_init();
                for (sum, split) in sums[row].iter_mut().zip(splits) {
                    *sum = L::add_product(*sum, split, factor);
                }
            }
            for (sum, output) in sums.iter().zip(outputs) {
                for (word, sum) in sum.iter().enumerate() {
                    sum.store(output.add(at + word * L::BYTES));
                }
            }
        }
        at += WIDE * L::BYTES;
    }
    at
}

#[inline(always)]
unsafe fn dot<L: Lanes, const ROWS: usize, const WIDE: usize, const ONES: bool, const ADD: bool>(
    pass: &Pass<'_, L::Prepared>,
    start: usize,
    outputs: [*mut u8; ROWS],
) -> usize {
    let mut at = start;
    while pass.range.end - at >= WIDE * L::BYTES {
        // SAFETY: `at + WIDE * BYTES <= range.end`, which every input and output holds; `coefficient` walks over one
        // item for each input and multiplied row, which is the length of `coefficients`.
        unsafe {
            let mut sums = [[L::zero(); WIDE]; ROWS];
            if ADD {
                for (sum, output) in sums.iter_mut().zip(outputs) {
                    for (word, sum) in sum.iter_mut().enumerate() {
                        *sum = L::load(output.add(at + word * L::BYTES));
                    }
                }
            }
            let mut coefficient = pass.coefficients.as_ptr();
            for input in pass.inputs {
                let mut words = [L::zero(); WIDE];
                for (word, value) in words.iter_mut().enumerate() {
                    *value = L::load(input.as_ptr().add(at + word * L::BYTES));
                }
                if ONES {
                    for (sum, value) in sums[0].iter_mut().zip(words) {
                        *sum = sum.add(value);
                    }
                }
                let splits = words.map(|value| value.split());
                for sum in sums.iter_mut().skip(usize::from(ONES)) {
                    let factor = L::factor(coefficient);
                    coefficient = coefficient.add(1);
                    for (sum, split) in sum.iter_mut().zip(splits) {
                        *sum = L::add_product(*sum, split, factor);
                    }
                }
            }
            for (sum, output) in sums.iter().zip(outputs) {
                for (word, sum) in sum.iter().enumerate() {
                    sum.store(output.add(at + word * L::BYTES));
                }
            }
        }
        at += WIDE * L::BYTES;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::multiply;
    use crate::lanes::{Bytes, model};

    /// Runs a pass over `L` and compares each byte with the definition; returns where the pass stopped.
    fn check<L: Lanes>(
        row_count: usize,
        input_count: usize,
        range: Range<usize>,
        ones: bool,
        add: bool,
    ) -> usize {
        let byte = |seed: usize| (seed * 151 + 89).to_le_bytes()[0] ^ (seed >> 5).to_le_bytes()[0];
        let inputs: Vec<Vec<u8>> = (0..input_count)
            .map(|input| (0..range.end).map(|at| byte(at * 7 + input * 1013)).collect())
            .collect();
        let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
        let coefficient =
            |input: usize, row: usize| if ones && row == 0 { 1 } else { byte(input * 31 + row) };
        let prepared: Vec<L::Prepared> = (0..input_count)
            .flat_map(|input| (usize::from(ones)..row_count).map(move |row| coefficient(input, row)))
            .map(L::prepare)
            .collect();
        let old = |row: usize, at: usize| byte(at * 3 + row * 401);
        let mut outputs: Vec<Vec<u8>> =
            (0..row_count).map(|row| (0..range.end).map(|at| old(row, at)).collect()).collect();
        let mut outputs: Vec<&mut [u8]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
        let pass =
            Pass { coefficients: &prepared, inputs: &inputs, range: range.clone(), first_is_ones: ones, add };
        // SAFETY: the callers name lanes that need no feature; lengths are made equal above.
        let end = unsafe { run::<L>(&pass, &mut outputs) };
        for (row, output) in outputs.iter().enumerate() {
            for (at, &got) in output.iter().enumerate() {
                let sum = (0..input_count)
                    .fold(0, |sum, input| sum ^ multiply(coefficient(input, row), inputs[input][at]));
                let expected = match (range.start..end).contains(&at) {
                    true if add => old(row, at) ^ sum,
                    true => sum,
                    false => old(row, at),
                };
                assert_eq!(got, expected, "row {row}, byte {at}, ones {ones}, add {add}");
            }
        }
        end
    }

    #[test]
    fn every_shape_of_pass_gives_the_definition() {
        for rows in 1..=ROWS_MAX {
            for inputs in [0, 1, 3] {
                for (ones, add) in [(false, false), (false, true), (true, false), (true, true)] {
                    assert_eq!(
                        check::<model::Affine>(rows, inputs, 5..5 + 3 * 64 + 17, ones, add),
                        5 + 3 * 64
                    );
                    assert_eq!(check::<Bytes<16>>(rows, inputs, 3..90, ones, add), 3 + 80);
                    assert_eq!(check::<Bytes<1>>(rows, inputs, 3..20, ones, add), 20);
                    assert_eq!(check::<Bytes<1>>(rows, inputs, 4..4, ones, add), 4);
                }
            }
        }
    }
}
