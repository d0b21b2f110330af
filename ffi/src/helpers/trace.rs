//! `lib/trace.h`: lines that a program traces. The headers format them, since Rust cannot take a variable number of arguments from C.

use std::ffi::{CStr, c_char, c_int};

use crate::{errno, log, say};

/// # Safety
/// `text` is null or a C string.
unsafe fn text_of<'a>(text: *const c_char) -> std::borrow::Cow<'a, str> {
    if text.is_null() {
        return "?".into();
    }
    // SAFETY: the caller's contract.
    unsafe { CStr::from_ptr(text) }.to_string_lossy()
}

crate::export! {
    /// `m0_trace_text`
    fn m0_trace_text(level: u32, file: *const c_char, line: c_int, function: *const c_char, text: *const c_char) [()] {
        if log::shows(level) {
            // SAFETY: the header's contract.
            unsafe { say!("{}:{line}: {}: {}", text_of(file), text_of(function), text_of(text).trim_end()) };
        }
    }

    /// `m0_trace_set_mmapped_buffer`
    fn m0_trace_set_mmapped_buffer(_wanted: bool) [()] {}

    /// `m0_trace_set_immediate_mask`
    fn m0_trace_set_immediate_mask(_mask: *const c_char) -> c_int [errno::EIO] {
        0
    }

    /// `m0_trace_set_level`
    fn m0_trace_set_level(_level: *const c_char) -> c_int [errno::EIO] {
        0
    }
}
