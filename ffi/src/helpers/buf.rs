//! `lib/buf.h` and `m0_strdup`.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use base::units::{narrow, wide};

use crate::abi::CBuf;
use crate::errno;
use crate::memory::{m0_alloc, m0_alloc_aligned, m0_free};

/// # Safety
/// `buf` is null or a buffer as the header has it.
unsafe fn bytes<'a>(buf: *const CBuf) -> &'a [u8] {
    // SAFETY: the caller's contract.
    match unsafe { buf.as_ref() } {
        // SAFETY: `nob` bytes at `addr`.
        Some(buf) if !buf.addr.is_null() => unsafe {
            std::slice::from_raw_parts(buf.addr.cast::<u8>(), narrow(buf.nob))
        },
        _ => &[],
    }
}

/// # Safety
/// `to` is null or a buffer; `memory` holds as many bytes as `from`.
unsafe fn fill(to: *mut CBuf, from: &[u8], memory: *mut c_void) -> c_int {
    // SAFETY: the caller's contract.
    let Some(to) = (unsafe { to.as_mut() }) else { return errno::EINVAL };
    if memory.is_null() {
        return errno::ENOMEM;
    }
    // SAFETY: the caller's contract; new memory does not overlap.
    unsafe { ptr::copy_nonoverlapping(from.as_ptr(), memory.cast(), from.len()) };
    *to = CBuf { nob: wide(from.len()), addr: memory };
    0
}

crate::export! {
    /// `m0_buf_init`
    fn m0_buf_init(buf: *mut CBuf, address: *mut c_void, bytes: u32) [()] {
        // SAFETY: the header's contract.
        if let Some(buf) = unsafe { buf.as_mut() } {
            *buf = CBuf { nob: u64::from(bytes), addr: address };
        }
    }

    /// `m0_buf_alloc`
    fn m0_buf_alloc(buf: *mut CBuf, bytes: usize) -> c_int [errno::EIO] {
        // SAFETY: the header's contract.
        let Some(buf) = (unsafe { buf.as_mut() }) else { return errno::EINVAL };
        // SAFETY: any size.
        let memory = unsafe { m0_alloc(bytes) };
        if memory.is_null() {
            return errno::ENOMEM;
        }
        *buf = CBuf { nob: wide(bytes), addr: memory };
        0
    }

    /// `m0_buf_free`
    fn m0_buf_free(buf: *mut CBuf) [()] {
        // SAFETY: the header's contract.
        if let Some(buf) = unsafe { buf.as_mut() } {
            // SAFETY: the header's contract.
            unsafe { m0_free(buf.addr) };
            *buf = CBuf { nob: 0, addr: ptr::null_mut() };
        }
    }

    /// `m0_buf_cmp`
    fn m0_buf_cmp(left: *const CBuf, right: *const CBuf) -> c_int [0] {
        // SAFETY: the header's contract.
        let order = unsafe { bytes(left).cmp(bytes(right)) };
        c_int::from(order as i8)
    }

    /// `m0_buf_eq`
    fn m0_buf_eq(left: *const CBuf, right: *const CBuf) -> bool [false] {
        // SAFETY: the header's contract.
        unsafe { bytes(left) == bytes(right) }
    }

    /// `m0_buf_copy`
    fn m0_buf_copy(to: *mut CBuf, from: *const CBuf) -> c_int [errno::EIO] {
        // SAFETY: the header's contract.
        unsafe {
            let from = bytes(from);
            fill(to, from, m0_alloc(from.len()))
        }
    }

    /// `m0_buf_copy_aligned`
    fn m0_buf_copy_aligned(to: *mut CBuf, from: *const CBuf, shift: u32) -> c_int [errno::EIO] {
        // SAFETY: the header's contract.
        unsafe {
            let from = bytes(from);
            fill(to, from, m0_alloc_aligned(from.len(), shift))
        }
    }

    /// `m0_buf_is_set`
    fn m0_buf_is_set(buf: *const CBuf) -> bool [false] {
        // SAFETY: the header's contract.
        unsafe { buf.as_ref() }.is_some_and(|buf| buf.nob != 0 && !buf.addr.is_null())
    }

    /// `m0_buf_streq`
    fn m0_buf_streq(buf: *const CBuf, text: *const c_char) -> bool [false] {
        if text.is_null() {
            return false;
        }
        // SAFETY: the header's contract.
        unsafe { bytes(buf) == std::ffi::CStr::from_ptr(text).to_bytes() }
    }

    /// `m0_buf_strdup`
    fn m0_buf_strdup(buf: *const CBuf) -> *mut c_char [ptr::null_mut()] {
        // SAFETY: the header's contract; one byte more than is copied, and m0_alloc zeroes it.
        unsafe {
            let from = bytes(buf);
            let text = m0_alloc(from.len() + 1).cast::<u8>();
            if !text.is_null() {
                ptr::copy_nonoverlapping(from.as_ptr(), text, from.len());
            }
            text.cast()
        }
    }

    /// `m0_strdup`
    fn m0_strdup(text: *const c_char) -> *mut c_char [ptr::null_mut()] {
        if text.is_null() {
            return ptr::null_mut();
        }
        // SAFETY: a C string (the header's contract).
        unsafe { libc::strdup(text) }
    }
}
