//! What is due when: times with names, of which the earliest is asked for again and again and most are called off before they come.
//!
//! A heap. What is called off stays in it until it comes to the top or until more than half of the heap is of that kind: then all of it goes at once. So a
//! time that is set and called off costs no search, and in steady state nothing is allocated. Who sets a time keeps it: an entry counts
//! while `is_set` says so.
//!
//! Bound: twice the times that are set, and [`SLACK`]. Deterministic: by time, then by name.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use base::Instant;

/// Entries that were called off and stay without being cleared away.
const SLACK: usize = 64;

/// Times with names.
#[derive(Debug)]
pub struct Deadlines<K> {
    heap: BinaryHeap<Reverse<(Instant, K)>>,
    /// Entries of the heap that count.
    set_count: usize,
}

impl<K: Copy + Ord> Deadlines<K> {
    /// Nothing is due.
    #[must_use]
    pub const fn new() -> Deadlines<K> {
        Deadlines { heap: BinaryHeap::new(), set_count: 0 }
    }

    /// `name` is due at `at`. Nothing comes of it at [`Instant::NEVER`].
    pub fn set(&mut self, at: Instant, name: K) {
        if at != Instant::NEVER {
            self.heap.push(Reverse((at, name)));
            self.set_count += 1;
        }
    }

    /// A time that was set is called off: `is_set` says so already.
    pub fn call_off(&mut self, at: Instant, is_set: impl Fn(Instant, K) -> bool) {
        if at == Instant::NEVER {
            return;
        }
        self.set_count = self.set_count.saturating_sub(1);
        while let Some(Reverse((at, name))) = self.heap.peek().copied()
            && !is_set(at, name)
        {
            self.heap.pop();
        }
        if self.heap.len() > 2 * self.set_count + SLACK {
            self.heap.retain(|Reverse((at, name))| is_set(*at, *name));
        }
    }

    /// Takes the earliest name that is due at `now`.
    pub fn take_due(&mut self, now: Instant, is_set: impl Fn(Instant, K) -> bool) -> Option<K> {
        while let Some(Reverse((at, name))) = self.heap.peek().copied()
            && at <= now
        {
            self.heap.pop();
            if is_set(at, name) {
                self.set_count = self.set_count.saturating_sub(1);
                return Some(name);
            }
        }
        None
    }

    /// When something may be due next.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    /// Against a sorted set, with times that are set again and called off at random.
    #[test]
    fn it_gives_what_a_sorted_set_gives_and_keeps_its_bound() {
        let mut random = fastrand::Rng::with_seed(11);
        let (mut deadlines, mut set) = (Deadlines::new(), BTreeMap::<u32, Instant>::new());
        let mut now = at(0);
        for _ in 0..20_000 {
            let name = random.u32(0..200);
            if let Some(old) = set.remove(&name) {
                deadlines.call_off(old, |at, name| set.get(&name) == Some(&at));
            }
            if random.u32(0..4) > 0 {
                let due = now + Duration::from_millis(random.u64(1..1000));
                set.insert(name, due);
                deadlines.set(due, name);
            }
            if random.u32(0..8) == 0 {
                now = now + Duration::from_millis(random.u64(0..40));
                loop {
                    let wanted =
                        set.iter().map(|(name, due)| (*due, *name)).min().filter(|(due, _)| *due <= now);
                    let got = deadlines.take_due(now, |at, name| set.get(&name) == Some(&at));
                    assert_eq!(got, wanted.map(|(_, name)| name));
                    let Some(name) = got else { break };
                    set.remove(&name);
                }
            }
            assert!(
                deadlines.heap.len() <= 2 * set.len() + SLACK + 1,
                "{} for {}",
                deadlines.heap.len(),
                set.len()
            );
            assert_eq!(deadlines.set_count, set.len());
        }
    }

    #[test]
    fn one_at_a_time_leaves_nothing_behind() {
        let mut deadlines = Deadlines::new();
        for turn in 0..10 {
            deadlines.set(at(500 + turn), turn);
            assert_eq!(deadlines.next(), Some(at(500 + turn)));
            deadlines.call_off(at(500 + turn), |_, _| false);
            assert_eq!(deadlines.next(), None);
        }
        deadlines.set(Instant::NEVER, 7);
        assert_eq!((deadlines.next(), deadlines.take_due(at(1 << 40), |_, _| true)), (None, None));
    }
}
