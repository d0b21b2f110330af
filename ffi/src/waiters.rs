//! Threads that wait for an operation: parked, and woken after its lock is free.
//!
//! A condition variable would lie in the operation's memory, which a thread that waited may free as soon as it sees the end: it would have to be rung
//! inside the lock, and every woken thread would run into that lock. A thread's handle is its own memory, so [`Waiters::wake`] needs neither.
//!
//! Bound: one entry for each thread that waits; the first lies in the operation, so waiting with one thread allocates nothing.
//! **Invariant**: whoever parks has looked at the state under the lock under which it was added, and looks again when it wakes: a wake too many is harmless.

use std::mem;
use std::thread::{Thread, ThreadId};

/// A thread, and the bits of states that it waits for. The end of the operation wakes it whatever they are.
#[derive(Debug)]
struct Waiter {
    thread: Thread,
    bits: u64,
}

/// Who waits for an operation.
#[derive(Debug, Default)]
pub struct Waiters {
    first: Option<Waiter>,
    more: Vec<Waiter>,
}

impl Waiters {
    /// Adds a thread, which then lets go of the lock and parks.
    pub fn add(&mut self, thread: Thread, bits: u64) {
        let waiter = Waiter { thread, bits };
        match self.first {
            None => self.first = Some(waiter),
            Some(_) => self.more.push(waiter),
        }
    }

    /// The thread waits no more, woken or not.
    pub fn remove(&mut self, thread: ThreadId) {
        if self.first.as_ref().is_some_and(|first| first.thread.id() == thread) {
            self.first = None;
        } else if !self.more.is_empty() {
            self.more.retain(|waiter| waiter.thread.id() != thread);
        }
    }

    /// True if nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first.is_none() && self.more.is_empty()
    }

    /// Those who wait for one of `bits`; to be woken once the lock is free.
    #[must_use]
    pub fn take(&mut self, bits: u64) -> Waiters {
        let first = self.first.take_if(|first| first.bits & bits != 0);
        Waiters { first, more: self.more.extract_if(.., |waiter| waiter.bits & bits != 0).collect() }
    }

    /// All of them; to be woken once the lock is free.
    #[must_use]
    pub fn take_all(&mut self) -> Waiters {
        mem::take(self)
    }

    /// Wakes them.
    pub fn wake(self) {
        self.first.iter().chain(&self.more).for_each(|waiter| waiter.thread.unpark());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many handles of threads that have ended.
    fn threads(count: usize) -> Vec<Thread> {
        (0..count)
            .map(|_| {
                let thread = std::thread::spawn(|| ());
                let handle = thread.thread().clone();
                thread.join().unwrap();
                handle
            })
            .collect()
    }

    fn ids(waiters: &Waiters) -> Vec<ThreadId> {
        waiters.first.iter().chain(&waiters.more).map(|waiter| waiter.thread.id()).collect()
    }

    #[test]
    fn those_are_woken_whose_state_is_reached_and_at_the_end_all() {
        let threads = threads(4);
        let id = |index: usize| threads[index].id();
        let mut waiters = Waiters::default();
        for (thread, bits) in threads.iter().zip([0b001, 0b010, 0b110, 0b000]) {
            waiters.add(thread.clone(), bits);
        }
        assert_eq!(ids(&waiters.take(0b010)), [id(1), id(2)]);
        assert_eq!(ids(&waiters), [id(0), id(3)]);
        waiters.remove(id(1)); // gone already
        assert_eq!(ids(&waiters.take(0b001)), [id(0)]);
        waiters.add(threads[0].clone(), 0b100);
        waiters.remove(id(3));
        assert_eq!(ids(&waiters.take_all()), [id(0)]);
        assert!(waiters.is_empty());
    }
}
