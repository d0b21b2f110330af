//! A lock for each key that somebody uses: requests on one object's record run one after the other, others beside them.
//!
//! Fair: in the order of asking. Bound: one entry for each key in use, so at most one for each running fom.
//! Thread: one locality. Start at [`KeyedLocks::lock`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use runtime::sync::{Permit, Semaphore};

struct Entry {
    semaphore: Semaphore,
    /// Holders and waiters; the entry goes with the last.
    users: usize,
}

/// The locks. Clones share them.
#[derive(Clone)]
pub(crate) struct KeyedLocks<K: Ord + Copy> {
    entries: Rc<RefCell<BTreeMap<K, Entry>>>,
}

impl<K: Ord + Copy> Default for KeyedLocks<K> {
    fn default() -> KeyedLocks<K> {
        KeyedLocks { entries: Rc::default() }
    }
}

/// Counts as a user of a key while waiting and while holding: a future dropped in the middle leaves nothing behind.
struct Use<K: Ord + Copy> {
    locks: KeyedLocks<K>,
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
pub(crate) struct KeyGuard<K: Ord + Copy> {
    // Declared first, so dropped first: the next holder goes on before the entry may go.
    _permit: Permit,
    _use: Use<K>,
}

impl<K: Ord + Copy> KeyedLocks<K> {
    /// Waits for the key.
    pub(crate) async fn lock(&self, key: K) -> KeyGuard<K> {
        let (semaphore, user) = {
            let mut entries = self.entries.borrow_mut();
            let entry =
                entries.entry(key).or_insert_with(|| Entry { semaphore: Semaphore::new(1), users: 0 });
            entry.users += 1;
            (entry.semaphore.clone(), Use { locks: self.clone(), key })
        };
        let permit = semaphore.acquire(1).await;
        KeyGuard { _permit: permit, _use: user }
    }

    #[cfg(test)]
    fn keys(&self) -> usize {
        self.entries.borrow().len()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn one_holder_for_each_key_in_order_and_nothing_left_behind() {
        let locks = KeyedLocks::default();
        let first = locks.lock(7).now_or_never().expect("free");
        let other = locks.lock(8).now_or_never().expect("another key is free");
        let mut second = Box::pin(locks.lock(7));
        let mut third = Box::pin(locks.lock(7));
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
