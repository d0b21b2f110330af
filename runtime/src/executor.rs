//! Tasks of a locality: a table of boxed futures, polled in the order they were woken.
//!
//! Deterministic: the same wakes in the same order give the same polls in the same order. A task that wakes itself goes to the
//! end of the queue. A panic in a task is not caught: it ends the turn, and so the locality, before damage spreads.
//!
//! **Invariant**: the table is never borrowed while a task's code runs (poll or drop), so tasks may spawn and cancel at will.
//! Bound: none of its own; who spawns for a peer's message bounds that. Thread: the locality's.

use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use base::Instant;

use crate::locality::LocalityShared;
use crate::parking::{Parking, TaskId, TaskWaker};

type BoxedTask = Pin<Box<dyn Future<Output = ()>>>;

/// Where a task's future is.
enum Stage {
    /// In the table, with its waker: lent to the poll, so that a poll counts no references.
    Waiting(BoxedTask, Waker),
    /// Being polled.
    Polling,
    /// Being polled, and cancelled meanwhile: dropped when the poll returns.
    Cancelled,
}

struct Entry {
    name: &'static str,
    stage: Stage,
    signal: Arc<TaskWaker>,
    polls: u64,
    since: Instant,
}

struct Place {
    generation: u64,
    entry: Option<Entry>,
}

/// The table of tasks.
#[derive(Default)]
pub(crate) struct Tasks {
    places: Vec<Place>,
    free: Vec<usize>,
    is_closed: bool,
}

/// One task, as a watchdog or a dump sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskInfo {
    /// As given to `spawn`.
    pub name: &'static str,
    /// When it was spawned.
    pub since: Instant,
    /// How often it was polled.
    pub polls: u64,
}

impl Tasks {
    fn insert(
        &mut self,
        name: &'static str,
        future: BoxedTask,
        now: Instant,
        parking: &Arc<Parking>,
    ) -> Result<Arc<TaskWaker>, BoxedTask> {
        if self.is_closed {
            return Err(future);
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { generation: 0, entry: None });
            self.places.len() - 1
        });
        let place = &mut self.places[index];
        let id = TaskId { index, generation: place.generation };
        let signal = TaskWaker::new(id, Arc::clone(parking));
        let waker = Waker::from(Arc::clone(&signal));
        place.entry = Some(Entry {
            name,
            stage: Stage::Waiting(future, waker),
            signal: Arc::clone(&signal),
            polls: 0,
            since: now,
        });
        Ok(signal)
    }

    fn entry(&mut self, id: TaskId) -> Option<&mut Entry> {
        let place = self.places.get_mut(id.index)?;
        if place.generation == id.generation { place.entry.as_mut() } else { None }
    }

    fn remove(&mut self, id: TaskId) -> Option<Entry> {
        let place = self.places.get_mut(id.index)?;
        if place.generation != id.generation {
            return None;
        }
        let entry = place.entry.take()?;
        place.generation += 1;
        self.free.push(id.index);
        Some(entry)
    }

    pub(crate) fn info(&self) -> Vec<TaskInfo> {
        let entries = self.places.iter().filter_map(|place| place.entry.as_ref());
        entries.map(|entry| TaskInfo { name: entry.name, since: entry.since, polls: entry.polls }).collect()
    }
}

/// Adds a task and queues it. If the locality is gone the future is dropped.
pub(crate) fn spawn(locality: &Rc<LocalityShared>, name: &'static str, future: BoxedTask) -> Task {
    let now = locality.now.get();
    let inserted = locality.tasks.borrow_mut().insert(name, future, now, &locality.parking);
    match inserted {
        Ok(signal) => {
            let id = signal.id;
            Waker::from(signal).wake();
            Task { id: Some(id), locality: Rc::downgrade(locality) }
        }
        Err(future) => {
            drop(future); // after the borrow ended: its drop may call us
            Task { id: None, locality: Weak::new() }
        }
    }
}

/// Polls one woken task. A task that is gone is skipped.
pub(crate) fn poll_task(locality: &LocalityShared, id: TaskId) {
    let (mut future, waker) = {
        let mut tasks = locality.tasks.borrow_mut();
        let Some(entry) = tasks.entry(id) else { return };
        // Before the poll: a wake from inside it queues the task again.
        entry.signal.queued.store(false, Ordering::SeqCst);
        entry.polls += 1;
        match std::mem::replace(&mut entry.stage, Stage::Polling) {
            Stage::Waiting(future, waker) => (future, waker),
            other => {
                entry.stage = other;
                return;
            }
        }
    };
    // If this panics the entry stays as `Polling`, and the future is dropped by the unwinding.
    let outcome = future.as_mut().poll(&mut Context::from_waker(&waker));
    let leftover = {
        let mut tasks = locality.tasks.borrow_mut();
        match (outcome, tasks.entry(id)) {
            (Poll::Pending, Some(entry)) if matches!(entry.stage, Stage::Polling) => {
                entry.stage = Stage::Waiting(future, waker);
                None
            }
            _ => Some((tasks.remove(id), future, waker)),
        }
    };
    drop(leftover); // outside the borrow: its drop may call us
}

/// Drops all tasks, and all that their drops spawn, and refuses more.
pub(crate) fn close(locality: &LocalityShared) {
    let places = {
        let mut tasks = locality.tasks.borrow_mut();
        tasks.is_closed = true;
        tasks.free.clear();
        std::mem::take(&mut tasks.places)
    };
    drop(places);
}

/// A handle of a spawned task. Dropping it lets the task run on.
#[derive(Debug)]
pub struct Task {
    id: Option<TaskId>,
    locality: Weak<LocalityShared>,
}

impl Task {
    /// Drops the task's future now; if it is the one that calls this, when its poll returns. Does nothing to a finished one.
    pub fn cancel(self) {
        let (Some(id), Some(locality)) = (self.id, self.locality.upgrade()) else { return };
        let removed = {
            let mut tasks = locality.tasks.borrow_mut();
            match tasks.entry(id) {
                Some(entry) if matches!(entry.stage, Stage::Waiting(..)) => tasks.remove(id),
                Some(entry) => {
                    entry.stage = Stage::Cancelled;
                    None
                }
                None => None,
            }
        };
        drop(removed); // outside the borrow: its drop may call us
    }

    /// True if it ran to its end or was cancelled.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        let (Some(id), Some(locality)) = (self.id, self.locality.upgrade()) else { return true };
        locality.tasks.borrow_mut().entry(id).is_none()
    }
}
