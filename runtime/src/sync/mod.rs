//! Waiting inside one locality: `!Send`, no atomics, first come first served.
//!
//! Everything here is cancelled by dropping the future, which leaves nothing behind: no waker, no place in a queue, no permit.
//! **Invariant**: no borrow is held while a waker is woken or a value is dropped.

mod count_waiter;
mod long_lock;
mod notify;
pub mod oneshot;
mod semaphore;

pub use count_waiter::{CountWaiter, Reached};
pub use long_lock::{KeyGuard, LongAcquire, LongGuard, LongLock, LongLocks};
pub use notify::{Notified, Notify};
pub use semaphore::{Acquire, Permit, Semaphore};
