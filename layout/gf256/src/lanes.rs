//! What the inner loop asks of a CPU: load, store, add and multiply some bytes at once. One implementation per kernel.
//!
//! The loop (`dot`) is written once over this trait; the tests run it over a software model of the affine instruction
//! too ([`model`]), so its logic is checked on machines without GFNI. The scalar lanes are also every kernel's tail.

use crate::field::{NIBBLES, Nibbles};

/// Some bytes of a unit, as many as one register holds.
///
/// # Safety
/// `load` and `store` touch exactly `BYTES` bytes. The other methods touch no memory but their arguments.
pub(crate) unsafe trait Lanes: Copy {
    /// Bytes of one value.
    const BYTES: usize;
    /// A coefficient as it is kept in memory, ready for this kernel.
    type Prepared: Copy;
    /// A coefficient in registers.
    type Factor: Copy;
    /// A value made ready for several multiplications.
    type Split: Copy;

    /// `coefficient` as this kernel keeps it.
    fn prepare(coefficient: u8) -> Self::Prepared;

    /// All bytes zero. Safety: the CPU has what the kernel needs; so for all below.
    unsafe fn zero() -> Self;
    /// Safety: `from` is readable for `BYTES` bytes, at any alignment.
    unsafe fn load(from: *const u8) -> Self;
    /// Safety: `to` is writable for `BYTES` bytes, at any alignment.
    unsafe fn store(self, to: *mut u8);
    /// The sum, byte by byte.
    unsafe fn add(self, other: Self) -> Self;
    /// Brings a coefficient into registers. Safety: `from` is readable and aligned.
    unsafe fn factor(from: *const Self::Prepared) -> Self::Factor;
    /// Work that all products of one value share.
    unsafe fn split(self) -> Self::Split;
    /// `sum` plus the product of the split value and `factor`.
    unsafe fn add_product(sum: Self, split: Self::Split, factor: Self::Factor) -> Self;
}

/// `COUNT` bytes, multiplied one after the other by table look-up.
#[derive(Clone, Copy)]
pub(crate) struct Bytes<const COUNT: usize>([u8; COUNT]);

// SAFETY: load and store move one `[u8; COUNT]`, which is COUNT bytes.
unsafe impl<const COUNT: usize> Lanes for Bytes<COUNT> {
    const BYTES: usize = COUNT;
    type Prepared = u8;
    type Factor = &'static Nibbles;
    type Split = [u8; COUNT];

    fn prepare(coefficient: u8) -> u8 {
        coefficient
    }
    #[inline(always)]
    unsafe fn zero() -> Self {
        Bytes([0; COUNT])
    }
    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: COUNT readable bytes by contract; an array of bytes has alignment 1.
        Bytes(unsafe { from.cast::<[u8; COUNT]>().read() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: COUNT writable bytes by contract; an array of bytes has alignment 1.
        unsafe { to.cast::<[u8; COUNT]>().write(self.0) }
    }
    #[inline(always)]
    unsafe fn add(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(sum, byte)| *sum ^= byte);
        self
    }
    #[inline(always)]
    unsafe fn factor(from: *const u8) -> &'static Nibbles {
        // SAFETY: readable by contract.
        &NIBBLES[usize::from(unsafe { from.read() })]
    }
    #[inline(always)]
    unsafe fn split(self) -> [u8; COUNT] {
        self.0
    }
    #[inline(always)]
    unsafe fn add_product(mut sum: Self, split: [u8; COUNT], factor: &'static Nibbles) -> Self {
        for (sum, byte) in sum.0.iter_mut().zip(split) {
            *sum ^= factor[usize::from(byte & 15)] ^ factor[16 + usize::from(byte >> 4)];
        }
        sum
    }
}

#[cfg(test)]
pub(crate) mod model {
    //! The affine instruction in software, after the manual: checks matrices and loop where the CPU lacks GFNI.

    use super::Lanes;
    use crate::field::affine_matrix;

    /// 64 bytes, as an AVX-512 register.
    #[derive(Clone, Copy)]
    pub(crate) struct Affine([u8; 64]);

    // SAFETY: load and store move one `[u8; 64]`.
    unsafe impl Lanes for Affine {
        const BYTES: usize = 64;
        type Prepared = u64;
        type Factor = [u8; 8];
        type Split = [u8; 64];

        fn prepare(coefficient: u8) -> u64 {
            affine_matrix(coefficient)
        }
        unsafe fn zero() -> Self {
            Affine([0; 64])
        }
        unsafe fn load(from: *const u8) -> Self {
            // SAFETY: 64 readable bytes by contract.
            Affine(unsafe { from.cast::<[u8; 64]>().read() })
        }
        unsafe fn store(self, to: *mut u8) {
            // SAFETY: 64 writable bytes by contract.
            unsafe { to.cast::<[u8; 64]>().write(self.0) }
        }
        unsafe fn add(mut self, other: Self) -> Self {
            self.0.iter_mut().zip(other.0).for_each(|(sum, byte)| *sum ^= byte);
            self
        }
        unsafe fn factor(from: *const u64) -> [u8; 8] {
            // SAFETY: readable and aligned by contract.
            unsafe { from.read() }.to_le_bytes()
        }
        unsafe fn split(self) -> [u8; 64] {
            self.0
        }
        unsafe fn add_product(mut sum: Self, split: [u8; 64], matrix: [u8; 8]) -> Self {
            for (sum, byte) in sum.0.iter_mut().zip(split) {
                for bit in 0..8 {
                    let parity = (matrix[7 - bit] & byte).count_ones() & 1;
                    *sum ^= u8::from(parity == 1) << bit;
                }
            }
            sum
        }
    }
}
