//! What a node counts on its data path, and the one function that copies bulk or message bytes.
//!
//! A [`Counters`] is a value of its node, behind an `Arc`; nothing is global, so many nodes in one process count apart.
//! Relaxed atomics: each figure is exact, two figures read together may be a moment apart.

use std::sync::atomic::{AtomicU64, Ordering};

/// One figure that only grows. Any thread may add.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// A counter at zero.
    #[must_use]
    pub const fn new() -> Counter {
        Counter(AtomicU64::new(0))
    }

    /// Adds `count`; wraps at 2^64, which no counted thing reaches.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// The figure now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The figures that benchmarks and tests assert on (DESIGN.md section 3.5).
///
/// One for each thread of a data path, added up by whoever asks ([`Counters::sum`]): a line of the cache that several threads write to
/// costs each of them more than what they count, so these are alone on theirs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    /// Bytes of messages and bulk that the CPU copied in user space.
    pub copied_bytes: Counter,
    /// Memory regions registered with a device or a ring.
    pub registrations: Counter,
    /// System calls made by the data path: waits, submissions, socket reads and writes.
    pub syscalls: Counter,
    /// Submissions told to a device: one per batch, not one per operation.
    pub doorbells: Counter,
    /// Operations posted to a device's queues, receives included.
    pub work_requests: Counter,
    /// Completions taken from a device's queues.
    pub completions: Counter,
    /// Bytes of bulk moved.
    pub bulk_bytes: Counter,
    /// Messages sent.
    pub messages: Counter,
}

impl Counters {
    /// All figures at zero.
    #[must_use]
    pub const fn new() -> Counters {
        Counters {
            copied_bytes: Counter::new(),
            registrations: Counter::new(),
            syscalls: Counter::new(),
            doorbells: Counter::new(),
            work_requests: Counter::new(),
            completions: Counter::new(),
            bulk_bytes: Counter::new(),
            messages: Counter::new(),
        }
    }

    /// The figures of several, each as it is at its moment.
    #[must_use]
    pub fn sum<'a>(all: impl IntoIterator<Item = &'a Counters>) -> Counters {
        let sum = Counters::new();
        for one in all {
            sum.copied_bytes.add(one.copied_bytes.get());
            sum.registrations.add(one.registrations.get());
            sum.syscalls.add(one.syscalls.get());
            sum.doorbells.add(one.doorbells.get());
            sum.work_requests.add(one.work_requests.get());
            sum.completions.add(one.completions.get());
            sum.bulk_bytes.add(one.bulk_bytes.get());
            sum.messages.add(one.messages.get());
        }
        sum
    }
}

/// Copies `from` to `to` and counts the bytes: bulk and message bytes are copied nowhere else.
///
/// # Panics
/// If the lengths differ, as `copy_from_slice` does: the caller cut the slices wrongly.
pub fn copy_counted(counters: &Counters, to: &mut [u8], from: &[u8]) {
    to.copy_from_slice(from);
    counters.copied_bytes.add(base::units::wide(from.len()));
}

/// Several copies, counted together when this goes: an atomic addition for each would cost as much as a small copy.
#[derive(Debug)]
pub struct CountedCopies<'a> {
    counters: &'a Counters,
    bytes: u64,
}

impl<'a> CountedCopies<'a> {
    /// Nothing is copied yet.
    #[must_use]
    pub fn new(counters: &'a Counters) -> CountedCopies<'a> {
        CountedCopies { counters, bytes: 0 }
    }

    /// As [`copy_counted`].
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn copy(&mut self, to: &mut [u8], from: &[u8]) {
        to.copy_from_slice(from);
        self.bytes += base::units::wide(from.len());
    }
}

impl Drop for CountedCopies<'_> {
    fn drop(&mut self) {
        self.counters.copied_bytes.add(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_counted_in_bytes() {
        let counters = Counters::new();
        let mut to = [0; 5];
        copy_counted(&counters, &mut to, b"abcde");
        copy_counted(&counters, &mut to[..2], b"xy");
        let mut copies = CountedCopies::new(&counters);
        copies.copy(&mut [0; 3], b"abc");
        copies.copy(&mut [0; 1], b"d");
        drop(copies);
        assert_eq!(&to, b"xycde");
        assert_eq!(counters.copied_bytes.get(), 7 + 4);
    }

    #[test]
    #[should_panic(expected = "")]
    fn a_copy_of_unequal_lengths_is_a_bug() {
        copy_counted(&Counters::new(), &mut [0; 2], b"abc");
    }
}
