//! Counts a thread's heap allocations, so that "allocations per operation" is a figure and not a belief.
//!
//! A program that wants the figure makes [`CountingAllocator`] its global allocator. The memory itself comes from the system's; the
//! count is the thread's own, an increment without a lock or an atomic.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    // Without a destructor and made without an allocation: it may be used inside the allocator, from the first to the last moment of a thread.
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct CountingAllocator;

/// Allocations of this thread so far; one that grows or shrinks counts again. 0 where [`CountingAllocator`] is not the global one.
#[must_use]
pub fn allocations() -> u64 {
    COUNT.get()
}

fn count() {
    COUNT.set(COUNT.get() + 1);
}

// SAFETY: every call goes to the system's allocator with what the caller gave and under the caller's promises; counting touches
// no memory but the thread's own cell, and does not unwind.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the memory came from `System`, as all of ours does, with this layout.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
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
        let before = allocations();
        let boxed = std::hint::black_box(Box::new(7_u64));
        assert_eq!(allocations(), before + 1);
        drop(boxed);
        let elsewhere = std::thread::spawn(|| {
            let before = allocations();
            let mut list = std::hint::black_box(Vec::with_capacity(1));
            list.push(1_u64);
            list.push(2);
            allocations() - before
        });
        assert_eq!(elsewhere.join().unwrap(), 2, "made, and grown once");
        let here = allocations();
        std::hint::black_box(3);
        assert_eq!(allocations(), here);
    }
}
