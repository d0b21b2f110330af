//! Reed-Solomon over GF(2^8): parity of a group of units, its update in place, and lost units back from the others.
//!
//! The matrix is part of the disk format (docs/layout.md#code): first parity row all ones, any N of the N + K units give
//! all the others. Every kernel gives the same bytes; which one runs is chosen once, from what the CPU has.
//!
//! Must not know: layouts, devices, I/O, clocks. Pure, no threads of its own; every type is `Send + Sync` and immutable
//! after it is made, so one [`Code`] serves all localities.
//!
//! **Invariant**: a [`Kernel`] inside a [`Code`] or [`Decoder`] is one this CPU has: the only makers check it.
//! **Invariant**: vector code touches bytes only inside slices whose lengths `matrix::Matrix::apply` has checked.
//!
//! One of the crates that may hold unsafe code: the SIMD loads, stores and intrinsics (`lanes`, `x86`, `dot`).
//! Start reading at [`Code`], then `matrix` (cache blocks, groups of rows), `dot` (the inner loop), `lanes` (one CPU's words).

mod code;
mod decoder;
mod dot;
pub mod field;
mod kernel;
mod lanes;
mod matrix;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use code::{Code, CodeError, UNITS_MAX};
pub use decoder::Decoder;
pub use kernel::{Kernel, ParseKernelError};
