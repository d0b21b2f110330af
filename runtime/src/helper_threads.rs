//! A few threads for calls that block: file I/O where io_uring is forbidden, and work at opening and closing.
//!
//! Bound: [`limits::HELPER_QUEUE_PER_THREAD`] jobs wait per thread; a full queue gives the job back. Order: jobs start as submitted.
//! Dropping the pool runs what is queued to its end, then joins the threads.
//! A job that panics ends neither the thread nor the queue; the panic goes on in the next [`HelperThreads::submit`] or in the drop.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::limits;

/// What a helper thread runs, once.
pub type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    is_closing: bool,
    panic: Option<Box<dyn Any + Send>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Jobs run outside the lock, and nothing under it panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                let outcome = catch_unwind(AssertUnwindSafe(job));
                state = self.state();
                if let Err(panic) = outcome {
                    state.panic.get_or_insert(panic);
                }
            } else if state.is_closing {
                return;
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// The pool. See the module head.
pub struct HelperThreads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    capacity: usize,
}

impl HelperThreads {
    /// Starts `count` threads (at least one).
    ///
    /// # Errors
    /// `EAGAIN`: no more threads may be started.
    pub fn new(count: usize) -> io::Result<HelperThreads> {
        let count = count.max(1);
        let mut pool = HelperThreads {
            shared: Arc::default(),
            threads: Vec::with_capacity(count),
            capacity: count * limits::HELPER_QUEUE_PER_THREAD,
        };
        for index in 0..count {
            let shared = Arc::clone(&pool.shared);
            let thread =
                std::thread::Builder::new().name(format!("helper-{index}")).spawn(move || shared.work())?;
            pool.threads.push(thread); // those started are joined by the drop if a later one fails
        }
        Ok(pool)
    }

    /// Queues a job.
    ///
    /// # Errors
    /// The job, if the queue is full now.
    ///
    /// # Panics
    /// With the panic of an earlier job.
    pub fn submit(&self, job: Job) -> Result<(), Job> {
        let mut state = self.shared.state();
        if let Some(panic) = state.panic.take() {
            drop(state);
            resume_unwind(panic);
        }
        if state.jobs.len() >= self.capacity {
            return Err(job);
        }
        state.jobs.push_back(job);
        drop(state);
        self.shared.changed.notify_one();
        Ok(())
    }
}

impl fmt::Debug for HelperThreads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "HelperThreads({} threads, {} jobs waiting)",
            self.threads.len(),
            self.shared.state().jobs.len()
        )
    }
}

impl Drop for HelperThreads {
    fn drop(&mut self) {
        self.shared.state().is_closing = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // The thread's own code does not panic: jobs are caught.
            let _ = thread.join();
        }
        let panic = self.shared.state().panic.take();
        if let Some(panic) = panic.filter(|_| !std::thread::panicking()) {
            resume_unwind(panic);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn jobs_run_a_full_queue_gives_back_and_the_drop_finishes() {
        let pool = HelperThreads::new(1).unwrap();
        let (started_tx, started) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let first: Job = Box::new(move || {
            started_tx.send(()).unwrap();
            released.recv().unwrap();
        });
        assert!(pool.submit(first).is_ok());
        started.recv().unwrap(); // the thread is busy: what follows stays queued
        let (sender, results) = mpsc::channel();
        for number in 0..limits::HELPER_QUEUE_PER_THREAD {
            let sender = sender.clone();
            assert!(pool.submit(Box::new(move || sender.send(number).unwrap())).is_ok());
        }
        assert!(pool.submit(Box::new(|| ())).is_err());
        release.send(()).unwrap();
        drop((pool, sender));
        assert!(results.iter().eq(0..limits::HELPER_QUEUE_PER_THREAD));
    }

    #[test]
    #[should_panic(expected = "a broken job")]
    fn a_panic_of_a_job_is_not_lost() {
        let pool = HelperThreads::new(2).unwrap();
        assert!(pool.submit(Box::new(|| panic!("a broken job"))).is_ok());
        drop(pool);
    }
}
