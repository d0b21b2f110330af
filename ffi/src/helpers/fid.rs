//! `fid/fid.h`: fids as text.

use std::ffi::{CStr, c_char, c_int};
use std::io::Write;

use base::Fid;

use crate::abi::CFid;
use crate::errno;
use crate::say;

/// Types that this library knows: the letter in the top byte. 0 is a fid without a type.
const TYPES: &[u8] = b"\0dGVxprsnovt/SieCcajklfRPQMTz_K";

/// `<c:k>` with hexadecimal numbers, `c:k` with decimal or 0x ones, or `T|c:k` with a type's letter. `None`: neither.
#[must_use]
pub fn parse(text: &str) -> Option<Fid> {
    let text = text.trim();
    if let Some(inside) = text.strip_prefix('<').and_then(|rest| rest.strip_suffix('>')) {
        let (container, key) = inside.split_once(':')?;
        return Some(Fid { container: hexadecimal(container)?, key: hexadecimal(key)? });
    }
    if let Some((letter, rest)) = text.split_once('|') {
        let mut letters = letter.trim().bytes();
        let (letter, None) = (letters.next()?, letters.next()) else { return None };
        let (container, key) = rest.split_once(':')?;
        let container = number(container)? & 0x00ff_ffff_ffff_ffff;
        return Some(Fid { container: u64::from(letter) << 56 | container, key: number(key)? });
    }
    let (container, key) = text.split_once(':')?;
    Some(Fid { container: number(container)?, key: number(key)? })
}

fn hexadecimal(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    if digits.starts_with('+') {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    if text.starts_with("0x") || text.starts_with("0X") {
        return hexadecimal(text);
    }
    if text.starts_with('+') { None } else { text.parse().ok() }
}

crate::export! {
    /// `m0_fid_is_valid`
    fn m0_fid_is_valid(fid: *const CFid) -> bool [false] {
        // SAFETY: the header's contract.
        unsafe { fid.as_ref() }.is_some_and(|fid| TYPES.contains(&fid.container.to_be_bytes()[0]))
    }

    /// `m0_fid_sscanf`
    fn m0_fid_sscanf(text: *const c_char, fid: *mut CFid) -> c_int [errno::EIO] {
        if text.is_null() || fid.is_null() {
            say!("m0_fid_sscanf: the text or the fid is NULL");
            return errno::EINVAL;
        }
        // SAFETY: the header's contract.
        let text = unsafe { CStr::from_ptr(text) };
        match text.to_str().ok().and_then(parse) {
            Some(found) => {
                // SAFETY: the header's contract.
                unsafe { *fid = found.into() };
                0
            }
            None => errno::EINVAL,
        }
    }

    /// `m0_fid_print`
    fn m0_fid_print(text: *mut c_char, bytes: usize, fid: *const CFid) -> c_int [errno::EIO] {
        // SAFETY: the header's contract.
        let Some(fid) = (unsafe { fid.as_ref() }) else { return errno::EINVAL };
        let printed = format!("<{:x}:{:x}>", fid.container, fid.key);
        if !text.is_null() && bytes > 0 {
            // SAFETY: the header's contract: `bytes` bytes to write.
            let mut to = unsafe { std::slice::from_raw_parts_mut(text.cast::<u8>(), bytes) };
            let kept = printed.len().min(bytes - 1);
            // Into memory that is large enough.
            let _written = to.write_all(&printed.as_bytes()[..kept]);
            to[0] = 0;
        }
        c_int::try_from(printed.len()).unwrap_or(c_int::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fids_are_read_in_each_form() {
        let fid = Fid { container: 0x7000_0000_0000_0001, key: 0x10 };
        assert_eq!(parse("<7000000000000001:10>"), Some(fid));
        assert_eq!(parse("<0x7000000000000001:0x10>"), Some(fid));
        assert_eq!(parse(" 0x7000000000000001:16 "), Some(fid));
        assert_eq!(parse("p|1:16"), Some(fid));
        for wrong in ["", "1", "1:", ":", "<1:2", "pp|1:2", "|1:2", "x:y", "1:2:3", "-1:2", "+1:2", "<+1:2>"]
        {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_printed_fid_is_cut_like_snprintf() {
        let fid = CFid { container: 1, key: 0xab };
        let mut text = [1; 8];
        // SAFETY: memory of this test.
        unsafe {
            assert_eq!(m0_fid_print(text.as_mut_ptr().cast(), 8, &raw const fid), 6);
            assert_eq!(&text[..7], b"<1:ab>\0");
            assert_eq!(m0_fid_print(text.as_mut_ptr().cast(), 4, &raw const fid), 6);
            assert_eq!(&text[..4], b"<1:\0");
            assert_eq!(m0_fid_print(std::ptr::null_mut(), 0, &raw const fid), 6);
        }
    }
}
