//! How many localities run in one process and how they wait for work, so that none spins while another wants its core.
//!
//! A value handed to each locality of the process, not a global: two nodes in one test count apart if they want to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a locality without work does before it sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Waiting {
    /// Spins as long as work usually takes to come, and not at all among more localities than cores.
    #[default]
    Adaptive,
    /// Never sleeps: a whole core for each locality, and no wake-up on the way of work. For measurements beside programs that poll.
    Polling,
    /// Sleeps at once: counting tools see work only.
    Sleeping,
}

/// Counts the localities that run now, against the cores that they may use.
#[derive(Debug)]
pub struct Crowd {
    running: AtomicUsize,
    cores: usize,
    waiting: Waiting,
}

impl Crowd {
    /// A crowd of nobody on the cores that this process may use (affinity and cgroup quota are seen).
    #[must_use]
    pub fn new() -> Arc<Crowd> {
        Crowd::that_waits(Waiting::default())
    }

    /// The same, of localities that wait in this way.
    #[must_use]
    pub fn that_waits(waiting: Waiting) -> Arc<Crowd> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Crowd { running: AtomicUsize::new(0), cores, waiting })
    }

    /// A crowd of nobody on `cores` cores.
    #[must_use]
    pub fn with_cores(cores: usize) -> Arc<Crowd> {
        Arc::new(Crowd { running: AtomicUsize::new(0), cores, waiting: Waiting::default() })
    }

    /// True if there are more running localities than cores: then spinning takes time from whoever has the work.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.running.load(Ordering::Relaxed) > self.cores
    }

    /// How its localities wait.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        self.waiting
    }

    /// Localities running now.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// Counts one locality until the guard is dropped.
    pub(crate) fn join(self: &Arc<Crowd>) -> Member {
        self.running.fetch_add(1, Ordering::Relaxed);
        Member(Arc::clone(self))
    }
}

/// One running locality.
pub(crate) struct Member(Arc<Crowd>);

impl Drop for Member {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_has_more_localities_than_cores() {
        let crowd = Crowd::with_cores(1);
        let first = crowd.join();
        assert!(!crowd.is_crowded());
        let second = crowd.join();
        assert!(crowd.is_crowded());
        drop(first);
        assert!(!crowd.is_crowded());
        drop(second);
        assert_eq!(crowd.running(), 0);
    }
}
