//! `lib/vec.h`: sums of vectors and cursors over them.

use std::ffi::c_void;
use std::ptr;

use base::units::narrow;

use crate::abi::{BufVec, CVec};

/// `struct m0_vec_cursor`, and `struct m0_bufvec_cursor`, which consists of one.
#[repr(C)]
pub struct Cursor {
    vec: *const CVec,
    segment: u32,
    offset: u64,
}

const _: () = assert!(size_of::<Cursor>() == 24);

impl Cursor {
    /// Bytes left in the segment it stands in, `None` at the end. Skips empty segments.
    ///
    /// # Safety
    /// The vector lives and its array has `nr` members.
    unsafe fn step(&mut self) -> Option<u64> {
        // SAFETY: the caller's contract.
        let vec = unsafe { self.vec.as_ref() }?;
        while self.segment < vec.nr {
            // SAFETY: the caller's contract.
            let count = unsafe { *vec.count.add(narrow(u64::from(self.segment))) };
            if self.offset < count {
                return Some(count - self.offset);
            }
            self.offset -= count;
            self.segment += 1;
        }
        None
    }

    /// # Safety
    /// As `step`.
    unsafe fn advance(&mut self, mut bytes: u64) -> bool {
        // SAFETY: the caller's contract.
        while let Some(here) = unsafe { self.step() } {
            if bytes < here {
                self.offset += bytes;
                return false;
            }
            self.offset += here;
            bytes -= here;
            if bytes == 0 {
                // SAFETY: the caller's contract.
                return unsafe { self.step() }.is_none();
            }
        }
        true
    }

    /// # Safety
    /// As `step`, and the vector is that of a `struct m0_bufvec`.
    unsafe fn address(&mut self) -> *mut u8 {
        // SAFETY: the caller's contract.
        if unsafe { self.step() }.is_none() {
            return ptr::null_mut();
        }
        // SAFETY: the counts are the first member of a vector of buffers.
        let buffers = unsafe { (*self.vec.cast::<BufVec>()).buf };
        // SAFETY: an array of `nr` members; the offset lies in the segment.
        unsafe { (*buffers.add(narrow(u64::from(self.segment)))).cast::<u8>().add(narrow(self.offset)) }
    }
}

/// Copies up to `bytes` between what two closures give: address and length of the next piece, and moving on.
fn copy(mut bytes: u64, mut next: impl FnMut(u64) -> Option<u64>) -> u64 {
    let mut copied = 0;
    while bytes > 0 {
        let Some(count) = next(bytes) else { break };
        copied += count;
        bytes -= count;
    }
    copied
}

crate::export! {
    /// `m0_vec_count`
    fn m0_vec_count(vec: *const CVec) -> u64 [0] {
        // SAFETY: the header's contract.
        match unsafe { vec.as_ref() } {
            Some(vec) if !vec.count.is_null() => {
                // SAFETY: an array of `nr` members.
                (0..narrow(u64::from(vec.nr))).map(|index| unsafe { *vec.count.add(index) }).fold(0, u64::wrapping_add)
            }
            _ => 0,
        }
    }

    /// `m0_vec_cursor_init`
    fn m0_vec_cursor_init(cursor: *mut Cursor, vec: *const CVec) [()] {
        // SAFETY: the header's contract.
        if let Some(cursor) = unsafe { cursor.as_mut() } {
            *cursor = Cursor { vec, segment: 0, offset: 0 };
        }
    }

    /// `m0_vec_cursor_move`
    fn m0_vec_cursor_move(cursor: *mut Cursor, count: u64) -> bool [true] {
        // SAFETY: the header's contract.
        unsafe { cursor.as_mut().is_none_or(|cursor| cursor.advance(count)) }
    }

    /// `m0_vec_cursor_step`
    fn m0_vec_cursor_step(cursor: *const Cursor) -> u64 [0] {
        // SAFETY: the header's contract.
        let Some(cursor) = (unsafe { cursor.as_ref() }) else { return 0 };
        let mut copy = Cursor { ..*cursor };
        // SAFETY: the header's contract.
        unsafe { copy.step() }.unwrap_or(0)
    }

    /// `m0_bufvec_cursor_init`
    fn m0_bufvec_cursor_init(cursor: *mut Cursor, bufvec: *const BufVec) [()] {
        // SAFETY: the header's contract; the counts are the first member.
        unsafe { m0_vec_cursor_init(cursor, bufvec.cast()) };
    }

    /// `m0_bufvec_cursor_move`
    fn m0_bufvec_cursor_move(cursor: *mut Cursor, count: u64) -> bool [true] {
        // SAFETY: the header's contract.
        unsafe { m0_vec_cursor_move(cursor, count) }
    }

    /// `m0_bufvec_cursor_step`
    fn m0_bufvec_cursor_step(cursor: *const Cursor) -> u64 [0] {
        // SAFETY: the header's contract.
        unsafe { m0_vec_cursor_step(cursor) }
    }

    /// `m0_bufvec_cursor_addr`
    fn m0_bufvec_cursor_addr(cursor: *mut Cursor) -> *mut c_void [ptr::null_mut()] {
        // SAFETY: the header's contract.
        unsafe { cursor.as_mut().map_or(ptr::null_mut(), |cursor| cursor.address().cast()) }
    }

    /// `m0_bufvec_cursor_copy`
    fn m0_bufvec_cursor_copy(to: *mut Cursor, from: *mut Cursor, bytes: u64) -> u64 [0] {
        // SAFETY: the header's contract.
        let (Some(to), Some(from)) = (unsafe { to.as_mut() }, unsafe { from.as_mut() }) else { return 0 };
        // SAFETY: the header's contract: both vectors live, and do not overlap.
        copy(bytes, |left| unsafe {
            let count = to.step()?.min(from.step()?).min(left);
            ptr::copy(from.address(), to.address(), narrow(count));
            to.advance(count);
            from.advance(count);
            Some(count)
        })
    }

    /// `m0_bufvec_cursor_copyto`
    fn m0_bufvec_cursor_copyto(to: *mut Cursor, from: *mut c_void, bytes: u64) -> u64 [0] {
        // SAFETY: the header's contract.
        let Some(to) = (unsafe { to.as_mut() }) else { return 0 };
        let mut from = from.cast::<u8>();
        // SAFETY: the header's contract.
        copy(bytes, |left| unsafe {
            let count = to.step()?.min(left);
            ptr::copy(from, to.address(), narrow(count));
            to.advance(count);
            from = from.add(narrow(count));
            Some(count)
        })
    }

    /// `m0_bufvec_cursor_copyfrom`
    fn m0_bufvec_cursor_copyfrom(from: *mut Cursor, to: *mut c_void, bytes: u64) -> u64 [0] {
        // SAFETY: the header's contract.
        let Some(from) = (unsafe { from.as_mut() }) else { return 0 };
        let mut to = to.cast::<u8>();
        // SAFETY: the header's contract.
        copy(bytes, |left| unsafe {
            let count = from.step()?.min(left);
            ptr::copy(from.address(), to, narrow(count));
            from.advance(count);
            to = to.add(narrow(count));
            Some(count)
        })
    }
}
