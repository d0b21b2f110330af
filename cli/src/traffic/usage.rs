//! What a side has used: counters of its data path, and CPU time. Plain numbers that are subtracted.

use std::time::Duration;

use runtime::Counters;

/// Figures that only grow; [`Usage::since`] makes the difference of two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that the CPU copied in user space.
    pub copied_bytes: u64,
    /// Memory registrations.
    pub registrations: u64,
    /// System calls of our own on the data path. What a provider of verbs does inside its doorbell is not ours: see [`Usage::doorbells`].
    pub syscalls: u64,
    /// Submissions told to devices: batches.
    pub doorbells: u64,
    /// Operations in those batches, receives included.
    pub work_requests: u64,
    /// Completions taken; fewer than operations, because most operations do not ask for one.
    pub completions: u64,
    /// CPU time, user and system.
    pub cpu: Duration,
}

/// The names of the counts, in the order of [`Usage::counts`].
pub const COUNT_NAMES: [&str; 6] =
    ["copied_bytes", "registrations", "syscalls", "doorbells", "work_requests", "completions"];

impl Usage {
    /// The figures now.
    pub fn now(counters: &Counters, cpu: Duration) -> Usage {
        Usage {
            copied_bytes: counters.copied_bytes.get(),
            registrations: counters.registrations.get(),
            syscalls: counters.syscalls.get(),
            doorbells: counters.doorbells.get(),
            work_requests: counters.work_requests.get(),
            completions: counters.completions.get(),
            cpu,
        }
    }

    /// The counts, as [`COUNT_NAMES`] names them.
    pub fn counts(&self) -> [u64; COUNT_NAMES.len()] {
        [
            self.copied_bytes,
            self.registrations,
            self.syscalls,
            self.doorbells,
            self.work_requests,
            self.completions,
        ]
    }

    /// From counts in the same order, as they travel.
    pub fn from_counts(counts: [u64; COUNT_NAMES.len()], cpu: Duration) -> Usage {
        let [copied_bytes, registrations, syscalls, doorbells, work_requests, completions] = counts;
        Usage { copied_bytes, registrations, syscalls, doorbells, work_requests, completions, cpu }
    }

    /// What both sides used.
    pub fn plus(&self, other: &Usage) -> Usage {
        let mut counts = self.counts();
        for (count, more) in counts.iter_mut().zip(other.counts()) {
            *count += more;
        }
        Usage::from_counts(counts, self.cpu + other.cpu)
    }

    /// What was used since `before`. A peer that counts backwards used nothing.
    pub fn since(&self, before: &Usage) -> Usage {
        let (after, earlier) = (self.counts(), before.counts());
        let mut counts = [0; COUNT_NAMES.len()];
        for (count, (after, earlier)) in counts.iter_mut().zip(after.iter().zip(earlier)) {
            *count = after.saturating_sub(earlier);
        }
        Usage::from_counts(counts, self.cpu.saturating_sub(before.cpu))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_is_by_figure_and_never_negative() {
        let before = Usage::from_counts([1, 2, 30, 4, 5, 6], Duration::from_millis(5));
        let after = Usage::from_counts([10, 20, 3, 40, 50, 60], Duration::from_millis(50));
        let used = after.since(&before);
        assert_eq!((used.counts(), used.cpu), ([9, 18, 0, 36, 45, 54], Duration::from_millis(45)));
    }
}
