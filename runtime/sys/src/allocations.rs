//! Counts a thread's heap allocations and their bytes, so that "allocations per operation" and "bytes per stob" are figures and not beliefs.
//!
//! A program that wants the figures makes [`CountingAllocator`] its global allocator. The memory itself comes from the system's; the
//! counts are the thread's own, additions without a lock or an atomic.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use base::units::wide;

thread_local! {
    // Without a destructor and made without an allocation: it may be used inside the allocator, from the first to the last moment of a thread.
    static COUNT: Cell<u64> = const { Cell::new(0) };
    // Modulo 2^64: what one thread allocates another may free.
    static BYTES: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct CountingAllocator;

/// Allocations of this thread so far; one that grows or shrinks counts again. 0 where [`CountingAllocator`] is not the global one.
#[must_use]
pub fn allocations() -> u64 {
    COUNT.get()
}

/// Bytes that this thread allocated so far and did not free, as they were asked for: without what the allocator adds. Differences count, and they
/// are right where a thread keeps to itself (modulo 2^64). 0 where [`CountingAllocator`] is not the global one.
#[must_use]
pub fn allocated_bytes() -> u64 {
    BYTES.get()
}

fn count(bytes: usize) {
    COUNT.set(COUNT.get() + 1);
    BYTES.set(BYTES.get().wrapping_add(wide(bytes)));
}

fn uncount(bytes: usize) {
    BYTES.set(BYTES.get().wrapping_sub(wide(bytes)));
}

// SAFETY: every call goes to the system's allocator with what the caller gave and under the caller's promises; counting touches
// no memory but the thread's own cell, and does not unwind.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        uncount(layout.size());
        // SAFETY: the memory came from `System`, as all of ours does, with this layout.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(bytes);
        uncount(layout.size());
        // SAFETY: the memory came from `System`, with this layout.
        unsafe { System.realloc(memory, layout, bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static ALLOCATOR: CountingAllocator = CountingAllocator;

    #[test]
    fn a_thread_counts_its_own() {
        let (before, before_bytes) = (allocations(), allocated_bytes());
        let boxed = std::hint::black_box(Box::new(7_u64));
        assert_eq!((allocations(), allocated_bytes()), (before + 1, before_bytes.wrapping_add(8)));
        drop(boxed);
        assert_eq!((allocations(), allocated_bytes()), (before + 1, before_bytes));
        let elsewhere = std::thread::spawn(|| {
            let before = allocations();
            let mut list = std::hint::black_box(Vec::with_capacity(1));
            list.push(1_u64);
            let bytes = allocated_bytes();
            list.reserve_exact(1);
            list.push(2);
            (allocations() - before, allocated_bytes().wrapping_sub(bytes))
        });
        assert_eq!(elsewhere.join().unwrap(), (2, 8), "made, and grown once");
        let here = allocations();
        std::hint::black_box(3);
        assert_eq!(allocations(), here);
    }
}
