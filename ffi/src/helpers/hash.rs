//! `lib/misc.h`: a hash of a name, and counts with suffixes.

use std::ffi::{CStr, c_char, c_int};

use base::units::narrow;

use crate::errno;

crate::export! {
    /// `m0_full_name_hash`: FNV-1a, 64 bits.
    fn m0_full_name_hash(name: *const u8, length: u32) -> u64 [0] {
        const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0100_0000_01b3;
        if name.is_null() {
            return OFFSET;
        }
        // SAFETY: the header's contract.
        let bytes = unsafe { std::slice::from_raw_parts(name, narrow(u64::from(length))) };
        bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
    }

    /// `m0_bcount_get`
    fn m0_bcount_get(text: *const c_char, count: *mut u64) -> c_int [errno::EIO] {
        if text.is_null() || count.is_null() {
            return errno::EINVAL;
        }
        // SAFETY: the header's contract.
        let Ok(text) = (unsafe { CStr::from_ptr(text) }).to_str() else { return errno::EINVAL };
        let text = text.trim();
        let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
        let factor: u64 = match &text[digits.len()..] {
            "" => 1,
            "b" => 512,
            "k" | "K" => 1 << 10,
            "m" | "M" => 1 << 20,
            "g" | "G" => 1 << 30,
            _ => return errno::EINVAL,
        };
        let Ok(number) = digits.parse::<u64>() else { return errno::EINVAL };
        match number.checked_mul(factor) {
            Some(bytes) => {
                // SAFETY: the header's contract.
                unsafe { *count = bytes };
                0
            }
            None => -libc::EOVERFLOW,
        }
    }
}
