//! A lock that is held across waits: readers beside each other, a writer alone, in the order of asking.
//!
//! Fair: who asks later waits behind who asked before, also a reader behind a waiting writer, so that neither readers nor writers starve.
//! A guard frees on drop, and so does a future that is dropped while it waits or after its turn came and before it knew: no wake-up is lost.
//! Thread: one locality. Start at [`LongLock::read`] and [`LongLock::write`]; [`LongLocks`] has one for each key in use.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// How a lock is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Read,
    Write,
}

struct Waiting {
    ticket: u64,
    mode: Mode,
    waker: Waker,
}

#[derive(Default)]
struct State {
    readers: usize,
    has_writer: bool,
    next_ticket: u64,
    /// In the order of asking.
    waiting: VecDeque<Waiting>,
    /// Their turn came, and they do not know yet: they count as holders already.
    granted: BTreeMap<u64, Mode>,
}

impl State {
    fn is_free_for(&self, mode: Mode) -> bool {
        match mode {
            Mode::Read => !self.has_writer,
            Mode::Write => !self.has_writer && self.readers == 0,
        }
    }

    fn hold(&mut self, mode: Mode) {
        match mode {
            Mode::Read => self.readers += 1,
            Mode::Write => self.has_writer = true,
        }
    }

    fn free(&mut self, mode: Mode) {
        match mode {
            Mode::Read => self.readers -= 1,
            Mode::Write => self.has_writer = false,
        }
    }

    /// Gives the lock to those whose turn it is: the first in the queue, and readers right behind a reader.
    fn grant(&mut self) -> Vec<Waker> {
        let mut woken = Vec::new();
        while let Some(first) = self.waiting.front().filter(|first| self.is_free_for(first.mode)) {
            let mode = first.mode;
            let Some(Waiting { ticket, waker, .. }) = self.waiting.pop_front() else { break };
            self.hold(mode);
            self.granted.insert(ticket, mode);
            woken.push(waker);
        }
        woken
    }
}

/// A fair lock of one locality. Clones are the same lock.
#[derive(Clone, Default)]
pub struct LongLock {
    state: Rc<RefCell<State>>,
}

impl LongLock {
    /// A free lock.
    #[must_use]
    pub fn new() -> LongLock {
        LongLock::default()
    }

    /// Waits for the lock, to share it with other readers. The place in the queue counts from the first poll.
    pub fn read(&self) -> LongAcquire {
        LongAcquire { lock: self.clone(), mode: Mode::Read, ticket: None }
    }

    /// Waits for the lock, to have it alone.
    pub fn write(&self) -> LongAcquire {
        LongAcquire { lock: self.clone(), mode: Mode::Write, ticket: None }
    }

    /// Who waits now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.state.borrow().waiting.len()
    }

    fn release(&self, mode: Mode) {
        let woken = {
            let mut state = self.state.borrow_mut();
            state.free(mode);
            state.grant()
        };
        woken.into_iter().for_each(Waker::wake);
    }
}

impl fmt::Debug for LongLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.borrow();
        let (readers, writer, waiting) = (state.readers, state.has_writer, state.waiting.len());
        write!(f, "LongLock({readers} readers, writer: {writer}, {waiting} waiting)")
    }
}

/// The lock is held while this lives.
#[must_use = "the lock is free when this is dropped"]
pub struct LongGuard {
    lock: LongLock,
    mode: Mode,
}

impl Drop for LongGuard {
    fn drop(&mut self) {
        self.lock.release(self.mode);
    }
}

impl fmt::Debug for LongGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LongGuard({:?})", self.mode)
    }
}

/// Waits for a [`LongLock`].
#[must_use = "a future does nothing until awaited"]
pub struct LongAcquire {
    lock: LongLock,
    mode: Mode,
    ticket: Option<u64>,
}

impl Future for LongAcquire {
    type Output = LongGuard;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<LongGuard> {
        let lock = self.lock.clone();
        let mode = self.mode;
        let mut state = lock.state.borrow_mut();
        let Some(ticket) = self.ticket else {
            if state.waiting.is_empty() && state.is_free_for(mode) {
                state.hold(mode);
                drop(state);
                return Poll::Ready(LongGuard { lock, mode });
            }
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.waiting.push_back(Waiting { ticket, mode, waker: context.waker().clone() });
            self.ticket = Some(ticket);
            return Poll::Pending;
        };
        if state.granted.remove(&ticket).is_some() {
            self.ticket = None;
            drop(state);
            return Poll::Ready(LongGuard { lock, mode });
        }
        let place = state.waiting.iter_mut().find(|waiting| waiting.ticket == ticket);
        let old = place.map(|place| std::mem::replace(&mut place.waker, context.waker().clone()));
        drop(state);
        drop(old);
        Poll::Pending
    }
}

impl Drop for LongAcquire {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let (gone, woken) = {
            let mut state = self.lock.state.borrow_mut();
            if let Some(mode) = state.granted.remove(&ticket) {
                state.free(mode);
            }
            let place = state.waiting.iter().position(|waiting| waiting.ticket == ticket);
            let gone = place.and_then(|place| state.waiting.remove(place));
            // Readers behind a writer that gave up need not wait any more.
            (gone, state.grant())
        };
        drop(gone);
        woken.into_iter().for_each(Waker::wake);
    }
}

struct Entry {
    lock: LongLock,
    /// Holders and waiters; the entry goes with the last.
    users: usize,
}

/// A [`LongLock`] for each key that somebody uses. Clones share them.
///
/// Bound: one entry for each key in use, so at most one for each holder or waiter.
#[derive(Clone)]
pub struct LongLocks<K: Ord + Copy> {
    entries: Rc<RefCell<BTreeMap<K, Entry>>>,
}

impl<K: Ord + Copy> Default for LongLocks<K> {
    fn default() -> LongLocks<K> {
        LongLocks { entries: Rc::default() }
    }
}

impl<K: Ord + Copy> LongLocks<K> {
    /// Waits for the key, to share it with other readers.
    pub async fn read(&self, key: K) -> KeyGuard<K> {
        let (lock, user) = self.entry(key);
        let guard = lock.read().await;
        KeyGuard { _guard: guard, _use: user }
    }

    /// Waits for the key, to have it alone.
    pub async fn write(&self, key: K) -> KeyGuard<K> {
        let (lock, user) = self.entry(key);
        let guard = lock.write().await;
        KeyGuard { _guard: guard, _use: user }
    }

    /// Keys that somebody holds or waits for.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.entries.borrow().len()
    }

    fn entry(&self, key: K) -> (LongLock, Use<K>) {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.entry(key).or_insert_with(|| Entry { lock: LongLock::new(), users: 0 });
        entry.users += 1;
        (entry.lock.clone(), Use { locks: self.clone(), key })
    }
}

impl<K: Ord + Copy> fmt::Debug for LongLocks<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LongLocks({} keys)", self.keys())
    }
}

/// Counts as a user of a key while waiting and while holding: a future dropped in the middle leaves nothing behind.
struct Use<K: Ord + Copy> {
    locks: LongLocks<K>,
    key: K,
}

impl<K: Ord + Copy> Drop for Use<K> {
    fn drop(&mut self) {
        let mut entries = self.locks.entries.borrow_mut();
        if let Some(entry) = entries.get_mut(&self.key) {
            entry.users -= 1;
            if entry.users == 0 {
                entries.remove(&self.key);
            }
        }
    }
}

/// The key is ours until this is dropped.
#[must_use = "the lock is free when this is dropped"]
pub struct KeyGuard<K: Ord + Copy> {
    // Declared first, so dropped first: the next holder goes on before the entry may go.
    _guard: LongGuard,
    _use: Use<K>,
}

impl<K: Ord + Copy> fmt::Debug for KeyGuard<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyGuard({:?})", self._guard)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let lock = LongLock::new();
        let (one, two) = (lock.read().now_or_never().unwrap(), lock.read().now_or_never().unwrap());
        let mut writer = pin!(lock.write());
        assert!(writer.as_mut().now_or_never().is_none());
        drop(one);
        assert!(writer.as_mut().now_or_never().is_none());
        drop(two);
        let guard = writer.as_mut().now_or_never().unwrap();
        assert!(lock.read().now_or_never().is_none() && lock.write().now_or_never().is_none());
        drop(guard);
        assert!(lock.write().now_or_never().is_some());
    }

    #[test]
    fn who_asked_first_goes_first_and_nobody_starves() {
        let lock = LongLock::new();
        let held = lock.read().now_or_never().unwrap();
        let (mut writer, mut late_one, mut late_two, mut last) =
            (lock.write(), lock.read(), lock.read(), lock.write());
        for waiting in [&mut writer, &mut late_one, &mut late_two, &mut last] {
            assert!(waiting.now_or_never().is_none(), "a reader does not overtake a writer");
        }
        drop(held);
        assert!((&mut late_one).now_or_never().is_none());
        let guard = (&mut writer).now_or_never().unwrap();
        drop(guard);
        let guards = ((&mut late_one).now_or_never().unwrap(), (&mut late_two).now_or_never().unwrap());
        assert!((&mut last).now_or_never().is_none());
        drop(guards);
        assert!(last.now_or_never().is_some());
    }

    #[test]
    fn a_cancelled_wait_passes_its_turn_on() {
        let lock = LongLock::new();
        let held = lock.write().now_or_never().unwrap();
        let (mut first, mut second) = (lock.write(), lock.write());
        assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
        drop(held); // the first's turn, and it does not know yet
        drop(first);
        let guard = (&mut second).now_or_never().expect("the turn was passed on");
        // Readers that wait behind a writer go on when it gives up.
        drop(guard);
        let held = lock.read().now_or_never().unwrap();
        let (mut writer, mut reader) = (lock.write(), lock.read());
        assert!((&mut writer).now_or_never().is_none() && (&mut reader).now_or_never().is_none());
        drop(writer);
        assert!(reader.now_or_never().is_some());
        drop(held);
        assert_eq!(lock.waiting(), 0);
        assert!(lock.write().now_or_never().is_some(), "nothing is left behind");
    }

    /// Whatever is asked for, dropped and let go in whatever order: holders agree, everybody gets a turn, and at the end the lock is free.
    #[test]
    fn any_order_of_asking_and_giving_up() {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let lock = LongLock::new();
            let (mut waits, mut guards): (Vec<(bool, LongAcquire)>, Vec<LongGuard>) = Default::default();
            for _ in 0..60 {
                match random.u32(0..5) {
                    0 | 1 => {
                        let is_write = random.bool();
                        waits.push((is_write, if is_write { lock.write() } else { lock.read() }));
                    }
                    2 if !waits.is_empty() => drop(waits.swap_remove(random.usize(0..waits.len()))),
                    3 if !guards.is_empty() => drop(guards.swap_remove(random.usize(0..guards.len()))),
                    _ => {}
                }
                let mut still = Vec::new();
                for (is_write, mut wait) in waits {
                    match (&mut wait).now_or_never() {
                        Some(guard) => {
                            assert!(!is_write || guards.is_empty(), "seed {seed}: a writer beside others");
                            guards.push(guard);
                        }
                        None => still.push((is_write, wait)),
                    }
                }
                waits = still;
                let writers = guards.iter().filter(|guard| guard.mode == Mode::Write).count();
                assert!(writers == 0 || guards.len() == 1, "seed {seed}");
            }
            while !waits.is_empty() {
                assert!(!guards.is_empty(), "seed {seed}: all wait and nobody holds");
                guards.clear();
                waits.retain_mut(|(_, wait)| match wait.now_or_never() {
                    Some(guard) => {
                        guards.push(guard);
                        false
                    }
                    None => true,
                });
            }
            drop(guards);
            assert!(lock.write().now_or_never().is_some(), "seed {seed}: the lock is lost");
        }
    }

    #[test]
    fn one_holder_for_each_key_in_order_and_nothing_left_behind() {
        let locks = LongLocks::default();
        let first = locks.write(7).now_or_never().expect("free");
        let other = locks.write(8).now_or_never().expect("another key is free");
        let mut second = Box::pin(locks.write(7));
        let mut third = Box::pin(locks.read(7));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        let second = second.as_mut().now_or_never().expect("its turn");
        assert!(third.as_mut().now_or_never().is_none());
        drop(third);
        drop(second);
        assert_eq!(locks.keys(), 1);
        drop(other);
        assert_eq!(locks.keys(), 0);
    }
}
