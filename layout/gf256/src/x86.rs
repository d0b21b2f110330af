//! The lanes of x86-64 and the functions compiled for each set of features.
//!
//! Each `run_*` is the generic loop inlined into a function that may use the instructions; calling one on a CPU without
//! them is undefined behaviour, and `matrix` is the only caller. Source: Plank, Greenan, Miller, "Screaming fast Galois
//! field arithmetic using Intel SIMD instructions" (FAST 2013) for the shuffles; Intel SDM for GF2P8AFFINEQB.

use core::arch::x86_64::*;

use crate::dot::{Pass, run};
use crate::field::{NIBBLES, Nibbles, affine_matrix};
use crate::lanes::Lanes;

/// 32 bytes; a product is two shuffles, one per nibble.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256i);

// SAFETY: load and store are the unaligned 32-byte forms.
unsafe impl Lanes for Avx2 {
    const BYTES: usize = 32;
    type Prepared = Nibbles;
    type Factor = (__m256i, __m256i);
    type Split = (__m256i, __m256i);

    fn prepare(coefficient: u8) -> Nibbles {
        NIBBLES[usize::from(coefficient)]
    }
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: AVX2 by contract.
        Avx2(unsafe { _mm256_setzero_si256() })
    }
    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: AVX2, and 32 readable bytes, by contract; the load is unaligned.
        Avx2(unsafe { _mm256_loadu_si256(from.cast()) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: AVX2, and 32 writable bytes, by contract; the store is unaligned.
        unsafe { _mm256_storeu_si256(to.cast(), self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: AVX2 by contract.
        Avx2(unsafe { _mm256_xor_si256(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn factor(from: *const Nibbles) -> (__m256i, __m256i) {
        let table = from.cast::<__m128i>();
        // SAFETY: AVX2 by contract; `from` has 32 readable bytes, and the loads are unaligned 16-byte ones.
        unsafe {
            (
                _mm256_broadcastsi128_si256(_mm_loadu_si128(table)),
                _mm256_broadcastsi128_si256(_mm_loadu_si128(table.add(1))),
            )
        }
    }
    #[inline(always)]
    unsafe fn split(self) -> (__m256i, __m256i) {
        // SAFETY: AVX2 by contract.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            (_mm256_and_si256(self.0, mask), _mm256_and_si256(_mm256_srli_epi64::<4>(self.0), mask))
        }
    }
    #[inline(always)]
    unsafe fn add_product(sum: Self, split: (__m256i, __m256i), factor: (__m256i, __m256i)) -> Self {
        // SAFETY: AVX2 by contract.
        unsafe {
            let low = _mm256_shuffle_epi8(factor.0, split.0);
            let high = _mm256_shuffle_epi8(factor.1, split.1);
            Avx2(_mm256_xor_si256(_mm256_xor_si256(sum.0, low), high))
        }
    }
}

/// 32 bytes; a product is one affine instruction.
#[derive(Clone, Copy)]
pub(crate) struct Avx2Gfni(__m256i);

// SAFETY: load and store are the unaligned 32-byte forms.
unsafe impl Lanes for Avx2Gfni {
    const BYTES: usize = 32;
    type Prepared = u64;
    type Factor = __m256i;
    type Split = __m256i;

    fn prepare(coefficient: u8) -> u64 {
        affine_matrix(coefficient)
    }
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: AVX2 by contract.
        Avx2Gfni(unsafe { _mm256_setzero_si256() })
    }
    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: AVX2, and 32 readable bytes, by contract; the load is unaligned.
        Avx2Gfni(unsafe { _mm256_loadu_si256(from.cast()) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: AVX2, and 32 writable bytes, by contract; the store is unaligned.
        unsafe { _mm256_storeu_si256(to.cast(), self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: AVX2 by contract.
        Avx2Gfni(unsafe { _mm256_xor_si256(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn factor(from: *const u64) -> __m256i {
        // SAFETY: AVX2 by contract; `from` is readable and aligned.
        unsafe { _mm256_set1_epi64x(from.read().cast_signed()) }
    }
    #[inline(always)]
    unsafe fn split(self) -> __m256i {
        self.0
    }
    #[inline(always)]
    unsafe fn add_product(sum: Self, split: __m256i, factor: __m256i) -> Self {
        // SAFETY: AVX2 and GFNI by contract.
        Avx2Gfni(unsafe { _mm256_xor_si256(sum.0, _mm256_gf2p8affine_epi64_epi8::<0>(split, factor)) })
    }
}

/// 64 bytes; a product is one affine instruction.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Gfni(__m512i);

// SAFETY: load and store are the unaligned 64-byte forms.
unsafe impl Lanes for Avx512Gfni {
    const BYTES: usize = 64;
    type Prepared = u64;
    type Factor = __m512i;
    type Split = __m512i;

    fn prepare(coefficient: u8) -> u64 {
        affine_matrix(coefficient)
    }
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: AVX-512 by contract.
        Avx512Gfni(unsafe { _mm512_setzero_si512() })
    }
    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: AVX-512, and 64 readable bytes, by contract; the load is unaligned.
        Avx512Gfni(unsafe { _mm512_loadu_si512(from.cast()) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: AVX-512, and 64 writable bytes, by contract; the store is unaligned.
        unsafe { _mm512_storeu_si512(to.cast(), self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: AVX-512 by contract.
        Avx512Gfni(unsafe { _mm512_xor_si512(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn factor(from: *const u64) -> __m512i {
        // SAFETY: AVX-512 by contract; `from` is readable and aligned.
        unsafe { _mm512_set1_epi64(from.read().cast_signed()) }
    }
    #[inline(always)]
    unsafe fn split(self) -> __m512i {
        self.0
    }
    #[inline(always)]
    unsafe fn add_product(sum: Self, split: __m512i, factor: __m512i) -> Self {
        // SAFETY: AVX-512 and GFNI by contract.
        Avx512Gfni(unsafe { _mm512_xor_si512(sum.0, _mm512_gf2p8affine_epi64_epi8::<0>(split, factor)) })
    }
}

/// [`run`] for AVX2. Safety: the CPU has AVX2, and what [`run`] asks.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn run_avx2(pass: &Pass<'_, Nibbles>, outputs: &mut [&mut [u8]]) -> usize {
    // SAFETY: passed on.
    unsafe { run::<Avx2>(pass, outputs) }
}

/// [`run`] for AVX2 with GFNI. Safety: the CPU has both, and what [`run`] asks.
#[target_feature(enable = "avx2,gfni")]
pub(crate) unsafe fn run_avx2_gfni(pass: &Pass<'_, u64>, outputs: &mut [&mut [u8]]) -> usize {
    // SAFETY: passed on.
    unsafe { run::<Avx2Gfni>(pass, outputs) }
}

/// [`run`] for AVX-512 with GFNI. Safety: the CPU has AVX-512 F and BW and GFNI, and what [`run`] asks.
#[target_feature(enable = "avx512f,avx512bw,gfni")]
pub(crate) unsafe fn run_avx512_gfni(pass: &Pass<'_, u64>, outputs: &mut [&mut [u8]]) -> usize {
    // SAFETY: passed on.
    unsafe { run::<Avx512Gfni>(pass, outputs) }
}
