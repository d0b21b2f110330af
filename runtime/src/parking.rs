//! How other threads reach a locality: the queue of woken tasks, and the protocol that lets it sleep without missing one.
//!
//! Two flags. `notified`: something was queued since the locality last looked. `sleeping`: the locality is about to wait, or waits.
//! A waker queues, sets `notified`, then looks at `sleeping`; the locality sets `sleeping`, then looks at `notified`. All four are
//! sequentially consistent, so at least one of the two sees the other: either the locality does not wait, or the waker writes the eventfd.
//! **Invariant**: whoever turns `notified` from false to true does the look at `sleeping`; others need not, as the locality clears
//! `notified` before it reads the queue.
//! What a locality's own code wakes while it is turned needs none of this: it goes into a list of the thread (`Turning`), without a lock, and into
//! the locality's queue in the order of the wakes.
//! **Invariant**: the eventfd exists before `sleeping` is ever set. A locality that never sleeps (a simulation) has none.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Wake;

use runtime_sys::Counters;
use runtime_sys::poller::EventFd;

/// Number of a task: its place, and how often the place was used before, so that a late waker wakes nobody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TaskId {
    pub(crate) index: usize,
    pub(crate) generation: u64,
}

impl TaskId {
    /// The future that `block_on` was called with: it lies outside the table of tasks.
    pub(crate) fn root(generation: u64) -> TaskId {
        TaskId { index: usize::MAX, generation }
    }

    pub(crate) fn is_root(self) -> bool {
        self.index == usize::MAX
    }
}

/// The locality that a thread turns now, and what it woke of itself. No state of a node: between turns it is empty.
#[derive(Default)]
struct Turning {
    /// The place of its [`Parking`], which lives as long as the turn; 0 between turns.
    whose: usize,
    woken: VecDeque<TaskId>,
}

thread_local! {
    static TURNING: RefCell<Turning> = const { RefCell::new(Turning { whose: 0, woken: VecDeque::new() }) };
}

/// While this lives, what the thread wakes of the locality stays on the thread.
pub(crate) struct OwnTurn<'a> {
    parking: &'a Parking,
    /// Of a locality in whose turn this one is turned.
    outer: Option<Turning>,
}

impl OwnTurn<'_> {
    /// Moves what was woken to the end of `into`; true if there was something.
    pub(crate) fn take(&self, into: &mut VecDeque<TaskId>) -> bool {
        TURNING.with_borrow_mut(|turning| {
            let is_any = !turning.woken.is_empty();
            if into.is_empty() {
                std::mem::swap(&mut turning.woken, into);
            } else {
                into.append(&mut turning.woken);
            }
            is_any
        })
    }
}

impl Drop for OwnTurn<'_> {
    fn drop(&mut self) {
        let left: Vec<TaskId> = TURNING.with_borrow_mut(|turning| {
            let left = turning.woken.drain(..).collect();
            turning.whose = 0;
            if let Some(outer) = self.outer.take() {
                *turning = outer;
            }
            left
        });
        // Only a turn that a panic ended leaves something.
        left.into_iter().for_each(|id| self.parking.push(id));
    }
}

/// What a locality shares with the threads that wake it.
pub(crate) struct Parking {
    ready: Mutex<VecDeque<TaskId>>,
    notified: AtomicBool,
    sleeping: AtomicBool,
    event: OnceLock<EventFd>,
    counters: Arc<Counters>,
}

impl Parking {
    pub(crate) fn new(counters: Arc<Counters>) -> Arc<Parking> {
        Arc::new(Parking {
            ready: Mutex::new(VecDeque::new()),
            notified: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
            event: OnceLock::new(),
            counters,
        })
    }

    /// The locality's turn begins, on this thread.
    pub(crate) fn own_turn(&self) -> OwnTurn<'_> {
        let outer = TURNING.with_borrow_mut(|turning| {
            let outer = (turning.whose != 0).then(|| std::mem::take(turning));
            turning.whose = self.place();
            outer
        });
        OwnTurn { parking: self, outer }
    }

    /// Names this one among all that live.
    fn place(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Queues a task. Any thread.
    fn push(&self, id: TaskId) {
        // Without the thread's list (the thread is ending) the lock does as well.
        let is_own = TURNING.try_with(|turning| {
            let mut turning = turning.borrow_mut();
            let is_own = turning.whose == self.place();
            if is_own {
                turning.woken.push_back(id);
            }
            is_own
        });
        if is_own == Ok(true) {
            return;
        }
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).push_back(id);
        self.notify();
    }

    /// Lets the locality turn once more, and wakes it if it sleeps. Any thread.
    fn notify(&self) {
        // A look first, as many are told at once: whoever is seen to have set it did so since the locality last looked.
        if self.is_notified() || self.notified.swap(true, Ordering::SeqCst) {
            return; // somebody else did, since the locality last looked: that one wakes it
        }
        if self.sleeping.swap(false, Ordering::SeqCst)
            && let Some(event) = self.event.get()
        {
            self.counters.syscalls.add(1);
            event.signal();
        }
    }

    /// Moves what was queued to the end of `into`. Gives whether there was any notice. The locality's thread only.
    pub(crate) fn take(&self, into: &mut VecDeque<TaskId>) -> bool {
        // Asked twice in every turn: a look costs less than a swap.
        if !self.is_notified() || !self.notified.swap(false, Ordering::SeqCst) {
            return false;
        }
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if into.is_empty() {
            std::mem::swap(&mut *ready, into);
        } else {
            into.append(&mut ready);
        }
        true
    }

    /// True if a notice waits to be taken.
    pub(crate) fn is_notified(&self) -> bool {
        self.notified.load(Ordering::SeqCst)
    }

    /// The descriptor that `notify` makes readable once the locality says that it sleeps.
    pub(crate) fn event_fd(&self) -> io::Result<RawFd> {
        if let Some(event) = self.event.get() {
            return Ok(event.as_raw_fd());
        }
        let event = EventFd::new()?;
        Ok(self.event.get_or_init(|| event).as_raw_fd())
    }

    /// Says that the locality is about to wait. False: a notice came, so it must not. The locality's thread, after `event_fd`.
    pub(crate) fn try_sleep(&self) -> bool {
        debug_assert!(self.event.get().is_some());
        self.sleeping.store(true, Ordering::SeqCst);
        if self.notified.load(Ordering::SeqCst) {
            self.sleeping.store(false, Ordering::SeqCst);
            return false;
        }
        true
    }

    /// The wait is over.
    pub(crate) fn end_sleep(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }

    /// Makes the descriptor quiet again.
    pub(crate) fn drain_event(&self) {
        if let Some(event) = self.event.get() {
            self.counters.syscalls.add(1);
            event.drain();
        }
    }
}

/// Wakes a locality from any thread; a system call only if it sleeps. Cheap to clone; outliving the locality is harmless.
#[derive(Clone)]
pub struct Unparker {
    pub(crate) parking: Arc<Parking>,
}

impl Unparker {
    /// Lets the locality turn at least once after this call.
    pub fn unpark(&self) {
        self.parking.notify();
    }

    /// True if both wake the same locality.
    #[must_use]
    pub fn is_same(&self, other: &Unparker) -> bool {
        Arc::ptr_eq(&self.parking, &other.parking)
    }
}

impl fmt::Debug for Unparker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unparker(notified: {})", self.parking.is_notified())
    }
}

/// The waker of one task.
pub(crate) struct TaskWaker {
    pub(crate) id: TaskId,
    /// True from the wake until the task's poll begins: a task stands in the queue once at most.
    pub(crate) queued: AtomicBool,
    pub(crate) parking: Arc<Parking>,
}

impl TaskWaker {
    pub(crate) fn new(id: TaskId, parking: Arc<Parking>) -> Arc<TaskWaker> {
        Arc::new(TaskWaker { id, queued: AtomicBool::new(false), parking })
    }
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            self.parking.push(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn a_notice_before_sleep_prevents_it_and_one_after_signals() {
        let parking = Parking::new(Arc::default());
        parking.event_fd().unwrap();
        let unparker = Unparker { parking: Arc::clone(&parking) };
        unparker.unpark();
        assert!(!parking.try_sleep());
        assert!(parking.take(&mut VecDeque::new()));
        assert!(parking.try_sleep());
        unparker.unpark();
        assert_eq!(parking.counters.syscalls.get(), 1, "the signal");
        unparker.unpark();
        assert_eq!(parking.counters.syscalls.get(), 1, "one is enough");
        parking.end_sleep();
        assert!(parking.event.get().unwrap().drain());
    }

    #[test]
    fn a_task_is_queued_once_until_it_is_polled() {
        let parking = Parking::new(Arc::default());
        let waker = TaskWaker::new(TaskId { index: 3, generation: 1 }, Arc::clone(&parking));
        waker.wake_by_ref();
        waker.wake_by_ref();
        let mut ready = VecDeque::new();
        parking.take(&mut ready);
        assert_eq!(ready, [TaskId { index: 3, generation: 1 }]);
        waker.wake_by_ref();
        assert!(!parking.take(&mut ready), "not yet polled");
        waker.queued.store(false, Ordering::SeqCst);
        waker.wake_by_ref();
        assert!(parking.take(&mut ready) && ready.len() == 2);
    }

    /// Lets two threads go at the same moment, round after round.
    fn meet(at: &AtomicUsize, round: usize) {
        at.fetch_add(1, Ordering::SeqCst);
        let mut looks = 0_u32;
        while at.load(Ordering::SeqCst) < 2 * round {
            looks += 1;
            // Where the other thread has no core it gets ours.
            if looks.is_multiple_of(256) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    }

    /// The heart of the protocol: of a notice and a sleep at the same moment at least one sees the other. Weaker orderings
    /// than those of `try_sleep` fail here within a few thousand rounds, on x86 too.
    #[test]
    fn a_notice_and_a_sleep_at_the_same_moment_never_miss_each_other() {
        const ROUNDS: usize = if cfg!(miri) { 50 } else { 100_000 };
        let parking = Parking::new(Arc::default());
        parking.event_fd().unwrap();
        let (start, end) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    meet(&start, round);
                    parking.notify();
                    meet(&end, round);
                }
            });
            let mut missed = Vec::new();
            for round in 1..=ROUNDS {
                meet(&start, round);
                let sleeps = parking.try_sleep();
                meet(&end, round);
                // Both are through. A sleep is only right if the other thread signalled.
                let is_signalled = parking.event.get().unwrap().drain();
                if sleeps && !is_signalled {
                    missed.push(round);
                }
                parking.end_sleep();
                assert!(parking.take(&mut VecDeque::new()));
            }
            assert_eq!(missed, [], "rounds in which the locality would have slept on");
        });
    }
}
