//! What a server's copy machine and the client that copies for it have in common: how far it is, how fast it may, whether to stop.
//!
//! A server may not import a client (ARCHITECTURE.md), and the code that reads, rebuilds and writes groups is a client's. So whoever
//! starts a server hands it a [`Copier`], which `client::copier` makes (docs/rfd/0009).
//! Thread: one locality. Start at [`Copying`].

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use base::{Fid, Instant};
use fops::repair::RepairProgress;
use runtime::sync::{Notified, Notify};

use crate::limits::REPAIR_LOST_NAMED;

/// How a copy ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyEnd {
    /// Every object was looked at.
    Whole,
    /// It was asked to stop.
    Stopped,
}

/// A copy under way.
pub type CopyFuture = Pin<Box<dyn Future<Output = Result<CopyEnd, String>>>>;
/// Brings a device in repair everything behind what [`Copying`] says is there; of a pool's fid, moves the objects behind that to its newest version. Errors: in words; nothing of it is under way any more.
pub type Copier = Rc<dyn Fn(Fid, Rc<Copying>) -> CopyFuture>;

/// One copy, as seen by whoever copies and by whoever watches and orders.
#[derive(Debug)]
pub struct Copying {
    progress: RefCell<RepairProgress>,
    bytes_per_second: Cell<u64>,
    /// Written and not paid with time yet, and since when.
    debt: Cell<(u64, Instant)>,
    is_stopped: Cell<bool>,
    /// Rings when one of the orders changed.
    rung: Notify,
}

impl Copying {
    /// A copy that goes on from `progress`, with so many bytes in a second (0: no limit).
    #[must_use]
    pub fn new(progress: RepairProgress, bytes_per_second: u64) -> Copying {
        Copying {
            progress: RefCell::new(progress),
            bytes_per_second: Cell::new(bytes_per_second),
            debt: Cell::new((0, Instant::ZERO)),
            is_stopped: Cell::new(false),
            rung: Notify::new(),
        }
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> RepairProgress {
        self.progress.borrow().clone()
    }

    /// From now on so many bytes in a second; 0: no limit.
    pub fn set_rate(&self, bytes_per_second: u64) {
        if self.bytes_per_second.replace(bytes_per_second) != bytes_per_second {
            self.rung.notify_waiters();
        }
    }

    /// It is to stop where nothing is half done: at most a window further.
    pub fn stop(&self) {
        self.is_stopped.set(true);
        self.rung.notify_waiters();
    }

    /// True once it is to stop.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.is_stopped.get()
    }

    /// Resolves when it is to stop, or may go faster or slower.
    pub fn changed(&self) -> Notified {
        self.rung.notified()
    }

    /// So many records were read.
    pub fn note_records(&self, count: u64) {
        let mut progress = self.progress.borrow_mut();
        progress.records = progress.records.saturating_add(count);
    }

    /// So many bytes were written.
    pub fn note_bytes(&self, now: Instant, bytes: u64) {
        let mut progress = self.progress.borrow_mut();
        progress.bytes = progress.bytes.saturating_add(bytes);
        let left = self.debt_left(now);
        self.debt.set((left.saturating_add(bytes), now));
    }

    /// So many bytes are there already: they count, and cost no time.
    pub fn note_there(&self, bytes: u64) {
        let mut progress = self.progress.borrow_mut();
        progress.bytes = progress.bytes.saturating_add(bytes);
    }

    /// An object was looked at, and all before it; `is_lost`: too many of its units are.
    pub fn note_object(&self, object: Fid, is_lost: bool) {
        let mut progress = self.progress.borrow_mut();
        progress.last = Some(object);
        if !is_lost {
            progress.objects = progress.objects.saturating_add(1);
            return;
        }
        progress.lost_count = progress.lost_count.saturating_add(1);
        if progress.lost.len() < REPAIR_LOST_NAMED {
            progress.lost.push(object);
        }
    }

    fn debt_left(&self, now: Instant) -> u64 {
        let (bytes, since) = self.debt.get();
        let rate = u128::from(self.bytes_per_second.get());
        let paid = now.since(since).as_millis() * rate / 1000;
        match rate {
            0 => 0,
            _ => bytes.saturating_sub(u64::try_from(paid).unwrap_or(u64::MAX)),
        }
    }

    /// When the next bytes may be written, at the rate in force now.
    #[must_use]
    pub fn due(&self, now: Instant) -> Instant {
        let rate = u128::from(self.bytes_per_second.get()).max(1);
        let wait_ms = (u128::from(self.debt_left(now)) * 1000).div_ceil(rate);
        now + std::time::Duration::from_millis(u64::try_from(wait_ms).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_copy_pays_for_its_bytes_with_time_at_the_rate_in_force() {
        let at = |ms: u64| Instant::ZERO + Duration::from_millis(ms);
        let copying = Copying::new(RepairProgress::default(), 1000);
        assert_eq!(copying.due(at(5)), at(5), "nothing is owed");
        copying.note_bytes(at(100), 2000);
        assert_eq!(copying.due(at(100)), at(2100));
        assert_eq!(copying.due(at(1100)), at(2100), "half is paid");
        copying.note_bytes(at(1100), 500);
        assert_eq!(copying.due(at(1100)), at(2600));
        copying.set_rate(3000);
        assert_eq!(copying.due(at(1100)), at(1600), "faster at once");
        copying.set_rate(0);
        assert_eq!(copying.due(at(1100)), at(1100));
        copying.note_bytes(at(1100), u64::MAX);
        assert_eq!(copying.due(at(1200)), at(1200));
        assert_eq!(copying.progress().bytes, u64::MAX);
    }

    #[test]
    fn lost_objects_are_counted_and_the_first_of_them_named() {
        let copying = Copying::new(RepairProgress::default(), 0);
        for key in 0..100 {
            copying.note_object(Fid { container: 1, key }, key % 2 == 0);
        }
        let progress = copying.progress();
        assert_eq!((progress.objects, progress.lost_count), (50, 50));
        assert_eq!((progress.lost.len(), progress.lost[1].key), (REPAIR_LOST_NAMED, 2));
        assert_eq!(progress.last.unwrap().key, 99);
    }
}
