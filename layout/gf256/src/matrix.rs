//! A matrix of coefficients made ready for one kernel, and its product with units of bytes.
//!
//! Rows go in groups of at most [`ROWS_MAX`], each group in one pass; where there are several groups the units are cut into
//! blocks that stay in the cache between them. A unit shorter than the outputs counts as if zeros followed.

use std::ops::Range;

use crate::code::CodeError;
use crate::dot::{Pass, ROWS_MAX, run};
#[cfg(target_arch = "x86_64")]
use crate::field::Nibbles;
use crate::kernel::Kernel;
use crate::lanes::{Bytes, Lanes};
#[cfg(target_arch = "x86_64")]
use crate::x86;

/// Bytes of all units together that one block covers: half of a usual second-level cache.
const BLOCK_BYTES_ALL_UNITS: usize = 256 * 1024;
/// Blocks are multiples of this, so that only the last has a tail.
const BLOCK_BYTES_MIN: usize = 4096;

/// Coefficients as `[input][row]` for one group of rows, as the kernel wants them.
#[derive(Clone, Debug)]
enum Prepared {
    Bytes(Vec<u8>),
    #[cfg(target_arch = "x86_64")]
    Nibbles(Vec<Nibbles>),
    #[cfg(target_arch = "x86_64")]
    Affine(Vec<u64>),
}

/// Rows that are computed in one pass.
#[derive(Clone, Debug)]
struct Group {
    rows: Range<usize>,
    first_is_ones: bool,
    prepared: Prepared,
    /// The same coefficients for the tail of a few bytes.
    tail: Vec<u8>,
}

impl Group {
    fn new(kernel: Kernel, all: &[Vec<u8>], rows: Range<usize>, inputs: usize) -> Group {
        let first_is_ones = all[rows.start].iter().all(|coefficient| *coefficient == 1);
        let multiplied = &all[rows.start + usize::from(first_is_ones)..rows.end];
        let tail: Vec<u8> =
            (0..inputs).flat_map(|input| multiplied.iter().map(move |row| row[input])).collect();
        let prepared = match kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => Prepared::Nibbles(tail.iter().map(|byte| x86::Avx2::prepare(*byte)).collect()),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2Gfni | Kernel::Avx512Gfni => {
                Prepared::Affine(tail.iter().map(|byte| x86::Avx2Gfni::prepare(*byte)).collect())
            }
            _ => Prepared::Bytes(tail.iter().map(|byte| Bytes::<1>::prepare(*byte)).collect()),
        };
        Group { rows, first_is_ones, prepared, tail }
    }

    /// Coefficients of a run of inputs.
    fn items<'a, Item>(&self, all: &'a [Item], columns: &Range<usize>) -> &'a [Item] {
        let multiplied = self.rows.len() - usize::from(self.first_is_ones);
        &all[columns.start * multiplied..columns.end * multiplied]
    }
}

/// A matrix `[output][input]`, immutable. The kernel is one that the CPU has.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    kernel: Kernel,
    inputs: usize,
    outputs: usize,
    groups: Vec<Group>,
}

impl Matrix {
    /// `rows` as `[output][input]`, each of `inputs` coefficients. Errors: the CPU lacks `kernel`.
    pub(crate) fn new(kernel: Kernel, rows: &[Vec<u8>], inputs: usize) -> Result<Matrix, CodeError> {
        if !kernel.is_available() {
            return Err(CodeError::KernelUnavailable { kernel });
        }
        let group_count = rows.len().div_ceil(ROWS_MAX).max(1);
        // Groups of equal size: 5 rows are 3 and 2, not 4 and 1.
        let bounds = (0..group_count)
            .map(|group| rows.len() * group / group_count..rows.len() * (group + 1) / group_count);
        let groups = bounds.filter(|bounds| !bounds.is_empty());
        let groups = groups.map(|bounds| Group::new(kernel, rows, bounds, inputs)).collect();
        Ok(Matrix { kernel, inputs, outputs: rows.len(), groups })
    }

    pub(crate) fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Outputs become (or, with `add`, grow by) the matrix's columns `first_column..` times `inputs`.
    ///
    /// Inputs may be shorter than the outputs, and then count as followed by zeros. Does not allocate. Errors: too many
    /// inputs, another number of outputs than rows, outputs of unequal length, an input longer than the outputs.
    pub(crate) fn apply(
        &self,
        first_column: usize,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
        add: bool,
    ) -> Result<(), CodeError> {
        if first_column + inputs.len() > self.inputs {
            return Err(CodeError::InputCount { needed: self.inputs - first_column, got: inputs.len() });
        }
        if outputs.len() != self.outputs {
            return Err(CodeError::OutputCount { needed: self.outputs, got: outputs.len() });
        }
        let Some(length) = outputs.first().map(|output| output.len()) else { return Ok(()) };
        for (index, output) in outputs.iter().enumerate() {
            if output.len() != length {
                return Err(CodeError::OutputLength { index, bytes: output.len(), first_bytes: length });
            }
        }
        for (index, input) in inputs.iter().enumerate() {
            if input.len() > length {
                return Err(CodeError::InputLength { index, bytes: input.len(), output_bytes: length });
            }
        }
        // Where all units are whole, which is nearly always, this is one round.
        let mut start = 0;
        while start < length {
            let ends = inputs.iter().map(|input| input.len()).filter(|end| *end > start);
            let end = ends.min().unwrap_or(length);
            self.apply_range(first_column, inputs, outputs, start..end, add);
            start = end;
        }
        Ok(())
    }

    /// Every input either covers all of `range` or none of it; outputs cover it.
    fn apply_range(
        &self,
        first_column: usize,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
        range: Range<usize>,
        add: bool,
    ) {
        let block_bytes = if self.groups.len() > 1 {
            let share = BLOCK_BYTES_ALL_UNITS / (inputs.len() + ROWS_MAX);
            (share / BLOCK_BYTES_MIN * BLOCK_BYTES_MIN).max(BLOCK_BYTES_MIN)
        } else {
            range.len()
        };
        let mut start = range.start;
        while start < range.end {
            let block = start..range.end.min(start + block_bytes);
            for group in &self.groups {
                let outputs = &mut outputs[group.rows.clone()];
                // The inputs that have bytes here, as runs of neighbours: one run if all have.
                let (mut from, mut overwrite) = (0, !add);
                while from < inputs.len() {
                    let covers = |input: &&[u8]| input.len() >= block.end;
                    let count = inputs[from..].iter().take_while(|input| covers(input)).count();
                    if count > 0 {
                        let columns = first_column + from..first_column + from + count;
                        self.run_group(
                            group,
                            columns,
                            &inputs[from..from + count],
                            outputs,
                            &block,
                            !overwrite,
                        );
                        overwrite = false;
                    }
                    from += count;
                    from += inputs[from..].iter().take_while(|input| !covers(input)).count();
                }
                if overwrite {
                    outputs.iter_mut().for_each(|output| output[block.clone()].fill(0));
                }
            }
            start = block.end;
        }
    }

    fn run_group(
        &self,
        group: &Group,
        columns: Range<usize>,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
        range: &Range<usize>,
        add: bool,
    ) {
        let first_is_ones = group.first_is_ones;
        assert!(inputs.iter().all(|input| input.len() >= range.end), "inputs cover the block");
        assert!(outputs.iter().all(|output| output.len() >= range.end), "outputs cover the block");
        assert!(range.start <= range.end && columns.len() == inputs.len(), "one column for each input");
        let tail_coefficients = group.items(&group.tail, &columns);
        let at = match &group.prepared {
            #[cfg(target_arch = "x86_64")]
            Prepared::Nibbles(all) => {
                let coefficients = group.items(all, &columns);
                let pass = Pass { coefficients, inputs, range: range.clone(), first_is_ones, add };
                // SAFETY: only `Kernel::Avx2` keeps nibbles, and `new` saw that the CPU has it; the lengths are asserted
                // above, and `items` cuts one coefficient for each input and multiplied row.
                unsafe { x86::run_avx2(&pass, outputs) }
            }
            #[cfg(target_arch = "x86_64")]
            Prepared::Affine(all) => {
                let coefficients = group.items(all, &columns);
                let pass = Pass { coefficients, inputs, range: range.clone(), first_is_ones, add };
                if self.kernel == Kernel::Avx512Gfni {
                    // SAFETY: `new` saw that the CPU has this kernel; lengths as above.
                    unsafe { x86::run_avx512_gfni(&pass, outputs) }
                } else {
                    // SAFETY: the other kernel with matrices is `Avx2Gfni`, and `new` saw that the CPU has it; lengths as above.
                    unsafe { x86::run_avx2_gfni(&pass, outputs) }
                }
            }
            Prepared::Bytes(all) => {
                let coefficients = group.items(all, &columns);
                let pass = Pass { coefficients, inputs, range: range.clone(), first_is_ones, add };
                // SAFETY: scalar lanes run everywhere; lengths as above.
                unsafe { run::<Bytes<16>>(&pass, outputs) }
            }
        };
        if at == range.end {
            return;
        }
        let tail = Pass { coefficients: tail_coefficients, inputs, range: at..range.end, first_is_ones, add };
        // SAFETY: scalar lanes run everywhere; lengths as above; `at` is inside the range.
        let end = unsafe { run::<Bytes<1>>(&tail, outputs) };
        debug_assert_eq!(end, range.end, "steps of one byte leave no rest");
    }
}
