//! What is due when: times with names, of which the earliest is asked for again and again and most are called off before they come.
//!
//! A line for times that are set in their order, as those of one interval are, and a heap for all others. What is called off stays where it is until it
//! comes to the front or until more than half of all is of that kind: then all of it goes at once. So a time that is set and called off costs no
//! search, and in steady state nothing is allocated. Who sets a time keeps it: an entry counts while `is_set` says so.
//!
//! Bound: twice the times that are set, and [`SLACK`]. Deterministic: by time, then by name.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use base::Instant;

/// Entries that were called off and stay without being cleared away.
const SLACK: usize = 64;

/// Times with names.
#[derive(Debug)]
pub struct Deadlines<K> {
    /// Sorted.
    line: VecDeque<(Instant, K)>,
    heap: BinaryHeap<Reverse<(Instant, K)>>,
    /// Entries that count.
    set_count: usize,
}

impl<K: Copy + Ord> Deadlines<K> {
    /// Nothing is due.
    #[must_use]
    pub const fn new() -> Deadlines<K> {
        Deadlines { line: VecDeque::new(), heap: BinaryHeap::new(), set_count: 0 }
    }

    /// `name` is due at `at`. Nothing comes of it at [`Instant::NEVER`].
    pub fn set(&mut self, at: Instant, name: K) {
        if at == Instant::NEVER {
            return;
        }
        self.set_count += 1;
        if self.line.back().is_none_or(|last| *last <= (at, name)) {
            self.line.push_back((at, name));
        } else {
            self.heap.push(Reverse((at, name)));
        }
    }

    /// A time that was set is called off: `is_set` says so already.
    pub fn call_off(&mut self, at: Instant, is_set: impl Fn(Instant, K) -> bool) {
        if at == Instant::NEVER {
            return;
        }
        self.set_count = self.set_count.saturating_sub(1);
        while let Some((at, name)) = self.first()
            && !is_set(at, name)
        {
            self.pop_first();
        }
        if self.line.len() + self.heap.len() > 2 * self.set_count + SLACK {
            self.line.retain(|(at, name)| is_set(*at, *name));
            self.heap.retain(|Reverse((at, name))| is_set(*at, *name));
        }
    }

    /// Takes the earliest name that is due at `now`.
    pub fn take_due(&mut self, now: Instant, is_set: impl Fn(Instant, K) -> bool) -> Option<K> {
        while let Some((at, name)) = self.first()
            && at <= now
        {
            self.pop_first();
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
        self.first().map(|(at, _)| at)
    }

    fn first(&self) -> Option<(Instant, K)> {
        let (line, heap) = (self.line.front().copied(), self.heap.peek().map(|Reverse(first)| *first));
        match (line, heap) {
            (Some(line), Some(heap)) => Some(line.min(heap)),
            (line, heap) => line.or(heap),
        }
    }

    /// Takes out what [`Deadlines::first`] gives.
    fn pop_first(&mut self) {
        let heap = self.heap.peek().map(|Reverse(first)| first);
        if self.line.front().is_some_and(|line| heap.is_none_or(|heap| line <= heap)) {
            self.line.pop_front();
        } else {
            self.heap.pop();
        }
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
                deadlines.line.len() + deadlines.heap.len() <= 2 * set.len() + SLACK + 1,
                "{} and {} for {}",
                deadlines.line.len(),
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
