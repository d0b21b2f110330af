//! Memory for C: `m0_bufvec_alloc` and friends from one arena of the process that every instance registers; `m0_alloc` from the C library.
//!
//! Global state: the arena, and which of its buffers are out. `m0_bufvec_alloc` has no argument that could name an instance, and may be
//! called before the first one is made.
//!
//! Segments of up to 1 MiB are buffers of the arena, longer ones are whole slabs in a row; what finds no room (or wants a stricter alignment than
//! 4 KiB) comes from the heap and works the same. [`free_segment`] finds out which it is, so segments of either kind, and those that a program
//! put into a vector by itself with `m0_alloc`, may be mixed.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::io;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use base::limits::BUFFER_BYTES_MAX;
use base::units::{narrow, wide};
use client::Client;
use runtime::{Arena, ArenaConfig, Buffer, Registrar, Run};

use crate::abi::{BufVec, CVec, IndexVec};
use crate::errno;
use crate::{limits, say};

/// Memory of the arena that C has.
enum Out {
    #[expect(dead_code, reason = "kept until it is given back")]
    Buffer(Buffer),
    #[expect(dead_code, reason = "kept until it is given back")]
    Run(Run),
}

struct UserMemory {
    arena: Arena,
    /// By address.
    out: Mutex<BTreeMap<usize, Out>>,
}

/// The arena, or `None` where the system gives no address space for it: then everything comes from the heap.
fn user_memory() -> Option<&'static UserMemory> {
    static MEMORY: OnceLock<Option<UserMemory>> = OnceLock::new();
    MEMORY
        .get_or_init(|| {
            let arena = Arena::new(ArenaConfig { capacity_bytes: limits::USER_ARENA_BYTES }).ok()?;
            Some(UserMemory { arena, out: Mutex::default() })
        })
        .as_ref()
}

impl UserMemory {
    fn out(&self) -> MutexGuard<'_, BTreeMap<usize, Out>> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the transport of a client know the arena. `Some`: why it cannot.
#[must_use]
pub fn register(client: &Client) -> Option<io::Error> {
    let memory = user_memory()?;
    client.rpc().with_transfer_machine(|machine| machine.register(&memory.arena)).err()
}

/// True if all of it lies in the registered arena.
#[must_use]
pub fn is_registered(data: NonNull<u8>, len: usize) -> bool {
    let Some(memory) = user_memory() else { return false };
    let start = data.addr().get().wrapping_sub(memory.arena.base_ptr().addr());
    wide(start).saturating_add(wide(len)) <= memory.arena.capacity_bytes()
}

/// Zeroed memory of `bytes` bytes at a multiple of `1 << shift`; null if there is none.
fn alloc_segment(bytes: usize, shift: u32) -> *mut c_void {
    if shift <= 12
        && let Some(memory) = user_memory()
        && let Some((address, out)) = from_arena(memory, bytes)
    {
        memory.out().insert(address.addr().get(), out);
        return address.as_ptr().cast();
    }
    alloc_aligned(bytes, shift)
}

fn from_arena(memory: &UserMemory, bytes: usize) -> Option<(NonNull<u8>, Out)> {
    if wide(bytes) <= BUFFER_BYTES_MAX {
        let mut buffer = memory.arena.try_alloc(bytes)?;
        buffer.fill(0); // it may hold what another program part left
        let address = NonNull::from(&mut buffer[..]).cast();
        return Some((address, Out::Buffer(buffer)));
    }
    let run = memory.arena.try_alloc_run(bytes)?;
    let address = run.as_ptr();
    // SAFETY: `bytes` bytes of a run that is ours alone.
    unsafe { ptr::write_bytes(address.as_ptr(), 0, bytes) };
    Some((address, Out::Run(run)))
}

fn free_segment(segment: *mut c_void) {
    if segment.is_null() {
        return;
    }
    if let Some(memory) = user_memory()
        && NonNull::new(segment.cast()).is_some_and(|data| is_registered(data, 1))
    {
        // Dropped outside the lock.
        let out = memory.out().remove(&segment.addr());
        if out.is_none() {
            say!("m0_bufvec_free: {segment:p} is inside a buffer, or was given back already");
        }
        return;
    }
    // SAFETY: the header's contract: segments that are not ours come from m0_alloc or malloc.
    unsafe { libc::free(segment) };
}

/// Zeroed heap memory at a multiple of `1 << shift`, or null.
fn alloc_aligned(bytes: usize, shift: u32) -> *mut c_void {
    if shift >= usize::BITS {
        return ptr::null_mut();
    }
    let alignment = (1usize << shift).max(size_of::<*const ()>());
    let mut memory = ptr::null_mut();
    // SAFETY: the alignment is a power of two and a multiple of a pointer's size.
    let failed = unsafe { libc::posix_memalign(&raw mut memory, alignment, bytes.max(1)) };
    if failed != 0 {
        return ptr::null_mut();
    }
    // SAFETY: `bytes` bytes that were just allocated.
    unsafe { ptr::write_bytes(memory.cast::<u8>(), 0, bytes) };
    memory
}

/// A zeroed array of `count` members, or null.
fn array<T>(count: u32) -> *mut T {
    // SAFETY: calloc checks the product; zeroed memory is what the callers want of integers and pointers.
    unsafe { libc::calloc(narrow(u64::from(count)).max(1), size_of::<T>()) }.cast()
}

const EMPTY: CVec = CVec { nr: 0, count: ptr::null_mut() };

/// Arrays of a vector, no buffers.
fn empty_vector(count: u32) -> Option<BufVec> {
    let vector = BufVec { vec: CVec { nr: count, count: array(count) }, buf: array(count) };
    if vector.vec.count.is_null() || vector.buf.is_null() {
        free_arrays(&vector);
        return None;
    }
    Some(vector)
}

fn free_arrays(vector: &BufVec) {
    // SAFETY: both are null or came from calloc (or, by the header's contract, from m0_alloc).
    unsafe {
        libc::free(vector.vec.count.cast());
        libc::free(vector.buf.cast());
    }
}

/// # Safety
/// `bufvec` is null or writable.
unsafe fn alloc_vector(call: &str, bufvec: *mut BufVec, count: u32, segment_bytes: u64, shift: u32) -> i32 {
    // SAFETY: the caller's contract.
    let Some(to) = (unsafe { bufvec.as_mut() }) else {
        say!("{call}: bufvec is NULL");
        return errno::EINVAL;
    };
    *to = BufVec { vec: EMPTY, buf: ptr::null_mut() };
    if count == 0 || segment_bytes == 0 || segment_bytes.checked_mul(u64::from(count)).is_none() {
        say!("{call}: {count} segments of {segment_bytes} bytes");
        return errno::EINVAL;
    }
    let Some(vector) = empty_vector(count) else { return errno::ENOMEM };
    for index in 0..narrow(u64::from(count)) {
        let segment = alloc_segment(narrow(segment_bytes), shift);
        // SAFETY: arrays of `count` members.
        unsafe {
            *vector.buf.add(index) = segment;
            *vector.vec.count.add(index) = segment_bytes;
        }
        if segment.is_null() {
            free_vector(&vector);
            return errno::ENOMEM;
        }
    }
    *to = vector;
    0
}

fn free_vector(vector: &BufVec) {
    if !vector.buf.is_null() {
        for index in 0..narrow(u64::from(vector.vec.nr)) {
            // SAFETY: arrays of `nr` members (the header's contract).
            free_segment(unsafe { *vector.buf.add(index) });
        }
    }
    free_arrays(vector);
}

/// # Safety
/// `bufvec` is null or a vector as the header has it.
unsafe fn take_vector(bufvec: *mut BufVec) -> Option<BufVec> {
    // SAFETY: the caller's contract.
    let bufvec = unsafe { bufvec.as_mut() }?;
    Some(std::mem::replace(bufvec, BufVec { vec: EMPTY, buf: ptr::null_mut() }))
}

crate::export! {
    /// `m0_bufvec_alloc`
    fn m0_bufvec_alloc(bufvec: *mut BufVec, num_segs: u32, seg_size: u64) -> i32 [errno::EIO] {
        // SAFETY: the header's contract.
        unsafe { alloc_vector("m0_bufvec_alloc", bufvec, num_segs, seg_size, 0) }
    }

    /// `m0_bufvec_alloc_aligned`
    fn m0_bufvec_alloc_aligned(bufvec: *mut BufVec, num_segs: u32, seg_size: u64, shift: u32) -> i32 [errno::EIO] {
        // SAFETY: the header's contract.
        unsafe { alloc_vector("m0_bufvec_alloc_aligned", bufvec, num_segs, seg_size, shift) }
    }

    /// `m0_bufvec_empty_alloc`
    fn m0_bufvec_empty_alloc(bufvec: *mut BufVec, num_segs: u32) -> i32 [errno::EIO] {
        // SAFETY: the header's contract.
        let Some(to) = (unsafe { bufvec.as_mut() }) else { return errno::EINVAL };
        *to = BufVec { vec: EMPTY, buf: ptr::null_mut() };
        match (num_segs, empty_vector(num_segs)) {
            (0, _) => errno::EINVAL,
            (_, None) => errno::ENOMEM,
            (_, Some(vector)) => {
                *to = vector;
                0
            }
        }
    }

    /// `m0_bufvec_free`
    fn m0_bufvec_free(bufvec: *mut BufVec) [()] {
        // SAFETY: the header's contract.
        if let Some(vector) = unsafe { take_vector(bufvec) } {
            free_vector(&vector);
        }
    }

    /// `m0_bufvec_free2`
    fn m0_bufvec_free2(bufvec: *mut BufVec) [()] {
        // SAFETY: the header's contract.
        if let Some(vector) = unsafe { take_vector(bufvec) } {
            free_arrays(&vector);
        }
    }

    /// `m0_bufvec_free_aligned`
    fn m0_bufvec_free_aligned(bufvec: *mut BufVec, _shift: u32) [()] {
        // SAFETY: the header's contract.
        if let Some(vector) = unsafe { take_vector(bufvec) } {
            free_vector(&vector);
        }
    }

    /// `m0_indexvec_alloc`
    fn m0_indexvec_alloc(ivec: *mut IndexVec, len: u32) -> i32 [errno::EIO] {
        // SAFETY: the header's contract.
        let Some(to) = (unsafe { ivec.as_mut() }) else { return errno::EINVAL };
        *to = IndexVec { vec: EMPTY, index: ptr::null_mut() };
        if len == 0 {
            return errno::EINVAL;
        }
        let (count, index) = (array::<u64>(len), array::<u64>(len));
        if count.is_null() || index.is_null() {
            // SAFETY: null or of calloc.
            unsafe {
                libc::free(count.cast());
                libc::free(index.cast());
            }
            return errno::ENOMEM;
        }
        *to = IndexVec { vec: CVec { nr: len, count }, index };
        0
    }

    /// `m0_indexvec_free`
    fn m0_indexvec_free(ivec: *mut IndexVec) [()] {
        // SAFETY: the header's contract.
        if let Some(ivec) = unsafe { ivec.as_mut() } {
            // SAFETY: arrays of `m0_indexvec_alloc`, or of m0_alloc.
            unsafe {
                libc::free(ivec.vec.count.cast());
                libc::free(ivec.index.cast());
            }
            *ivec = IndexVec { vec: EMPTY, index: ptr::null_mut() };
        }
    }

    /// `m0_alloc`
    fn m0_alloc(bytes: usize) -> *mut c_void [ptr::null_mut()] {
        // SAFETY: any size; at least a byte, so that a program may tell it from failure.
        unsafe { libc::calloc(1, bytes.max(1)) }
    }

    /// `m0_calloc`
    fn m0_calloc(count: usize, bytes: usize) -> *mut c_void [ptr::null_mut()] {
        // SAFETY: calloc checks the product.
        unsafe { libc::calloc(count.max(1), bytes.max(1)) }
    }

    /// `m0_free`
    fn m0_free(memory: *mut c_void) [()] {
        free_segment(memory);
    }

    /// `m0_alloc_aligned`
    fn m0_alloc_aligned(bytes: usize, shift: u32) -> *mut c_void [ptr::null_mut()] {
        alloc_aligned(bytes, shift)
    }

    /// `m0_free_aligned`
    fn m0_free_aligned(memory: *mut c_void, _bytes: usize, _shift: u32) [()] {
        free_segment(memory);
    }

    /// `m0_addr_is_aligned`
    fn m0_addr_is_aligned(address: *const c_void, shift: u32) -> bool [false] {
        shift < usize::BITS && address.addr().trailing_zeros() >= shift
    }

    /// `m0_pagesize_get`
    fn m0_pagesize_get() -> i32 [4096] {
        // SAFETY: no arguments that could be wrong.
        i32::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
    }

    /// `m0_pageshift_get`
    fn m0_pageshift_get() -> i32 [12] {
        // SAFETY: no arguments that could be wrong.
        i32::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.trailing_zeros()).unwrap_or(12)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector() -> BufVec {
        BufVec { vec: EMPTY, buf: ptr::null_mut() }
    }

    #[test]
    fn segments_of_any_size_lie_in_the_arena_and_come_back() {
        let mut vector = vector();
        for bytes in [1u64, 4096, 1 << 20, (1 << 20) + 1, 5 << 20] {
            // SAFETY: a vector of this test.
            unsafe {
                assert_eq!(m0_bufvec_alloc(&raw mut vector, 3, bytes), 0);
                for index in 0..3 {
                    let segment = NonNull::new((*vector.buf.add(index)).cast::<u8>()).unwrap();
                    assert!(is_registered(segment, narrow(bytes)), "{bytes}");
                    assert_eq!(*vector.vec.count.add(index), bytes);
                    let content = std::slice::from_raw_parts_mut(segment.as_ptr(), narrow(bytes));
                    assert!(content.iter().all(|byte| *byte == 0), "old bytes in {bytes}");
                    content.fill(0xff);
                }
                m0_bufvec_free(&raw mut vector);
                assert!(vector.buf.is_null() && vector.vec.nr == 0);
                m0_bufvec_free(&raw mut vector); // an empty one is harmless
            }
        }
    }

    #[test]
    fn heap_and_arena_may_be_mixed_and_bad_sizes_are_refused() {
        let mut vector = vector();
        // SAFETY: a vector of this test.
        unsafe {
            assert_eq!(m0_bufvec_empty_alloc(&raw mut vector, 2), 0);
            *vector.buf = m0_alloc(100);
            assert!(!is_registered(NonNull::new((*vector.buf).cast()).unwrap(), 100));
            m0_bufvec_free(&raw mut vector);
            assert_eq!(m0_bufvec_alloc(&raw mut vector, 0, 4096), errno::EINVAL);
            assert_eq!(m0_bufvec_alloc(&raw mut vector, 1, 0), errno::EINVAL);
            assert_eq!(m0_bufvec_alloc(&raw mut vector, u32::MAX, u64::MAX), errno::EINVAL);
            assert_eq!(m0_bufvec_alloc(ptr::null_mut(), 1, 1), errno::EINVAL);
            assert_eq!(m0_bufvec_alloc_aligned(&raw mut vector, 1, 100, 16), 0);
            assert!(m0_addr_is_aligned(*vector.buf, 16));
            m0_bufvec_free_aligned(&raw mut vector, 16);
        }
    }
}
