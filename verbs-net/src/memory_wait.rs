//! Waiting for the arena without an executor: the machine is polled, so a place in the arena's queue becomes a flag.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use base::units::wide;
use runtime::{Arena, Buffer, Unparker};

struct Flag {
    raised: AtomicBool,
    unparker: Unparker,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.raised.store(true, Ordering::Release);
        self.unparker.unpark();
    }
}

/// One place in the arena's queue, shared by everything in the machine that waits for a buffer.
pub(crate) struct MemoryWait {
    arena: Arena,
    flag: Arc<Flag>,
    /// For the next small message, taken ahead of it.
    spare: Option<Buffer>,
    waiting: Option<Pin<Box<dyn Future<Output = Buffer>>>>,
}

impl MemoryWait {
    pub(crate) fn new(arena: Arena, unparker: Unparker) -> MemoryWait {
        let flag = Arc::new(Flag { raised: AtomicBool::new(false), unparker });
        MemoryWait { arena, flag, spare: None, waiting: None }
    }

    /// A buffer of `len` bytes (at most `BUFFER_BYTES_MAX`), or `None`: then [`MemoryWait::is_over`] turns true once.
    pub(crate) fn alloc(&mut self, len: usize) -> Option<Buffer> {
        if let Some(mut spare) = self.spare.take_if(|spare| len <= spare.capacity()) {
            spare.resize(len);
            return Some(spare);
        }
        if let Some(buffer) = self.arena.try_alloc(len) {
            return Some(buffer);
        }
        if self.waiting.is_some() {
            return None;
        }
        let mut waiting: Pin<Box<dyn Future<Output = Buffer>>> = Box::pin(self.arena.alloc(len));
        if let Poll::Ready(buffer) = self.poll(&mut waiting) {
            return Some(buffer);
        }
        self.waiting = Some(waiting);
        None
    }

    /// Takes one of the smallest buffers ahead, for a time at which nobody waits for it.
    pub(crate) fn prepare(&mut self) {
        if self.spare.is_none() && self.waiting.is_none() {
            self.spare = self.arena.try_alloc(1);
        }
    }

    /// Bytes of the arena in use: what receives hold, and messages that the layer above has not given back.
    pub(crate) fn in_use_bytes(&self) -> u64 {
        self.arena.in_use_bytes() - self.spare.as_ref().map_or(0, |spare| wide(spare.capacity()))
    }

    /// A buffer if one is free; nobody waits for it.
    pub(crate) fn try_alloc(&self, len: usize) -> Option<Buffer> {
        self.arena.try_alloc(len)
    }

    fn poll(&self, waiting: &mut Pin<Box<dyn Future<Output = Buffer>>>) -> Poll<Buffer> {
        let waker = Waker::from(Arc::clone(&self.flag));
        waiting.as_mut().poll(&mut Context::from_waker(&waker))
    }

    /// True once after a buffer came free: everybody who was turned away tries again.
    pub(crate) fn is_over(&mut self) -> bool {
        // Asked in every turn: a look costs less than a swap.
        if !self.flag.raised.load(Ordering::Relaxed) || !self.flag.raised.swap(false, Ordering::AcqRel) {
            return false;
        }
        let Some(mut waiting) = self.waiting.take() else { return false };
        match self.poll(&mut waiting) {
            // Given back at once: the first to retry takes it.
            Poll::Ready(_buffer) => true,
            Poll::Pending => {
                self.waiting = Some(waiting);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::{ArenaConfig, Counters, Crowd, Locality, LocalityConfig};

    #[test]
    fn a_buffer_taken_ahead_goes_to_a_small_message_and_does_not_count_before() {
        let arena = Arena::new(ArenaConfig { capacity_bytes: 2 << 20 }).unwrap();
        let locality = Locality::new(LocalityConfig {
            index: 0,
            name: "test".to_owned(),
            seed: 1,
            counters: Arc::<Counters>::default(),
            arena: arena.clone(),
            crowd: Some(Crowd::new()),
        });
        let mut memory = MemoryWait::new(arena.clone(), locality.handle().unparker());
        memory.prepare();
        memory.prepare();
        assert_eq!((arena.in_use_bytes(), memory.in_use_bytes()), (4096, 0), "one");
        let large = memory.alloc(5000).unwrap();
        assert_eq!((large.len(), memory.in_use_bytes()), (5000, 8192));
        let small = memory.alloc(64).unwrap();
        assert_eq!((small.len(), arena.in_use_bytes()), (64, 4096 + 8192));
        drop((large, small));
        memory.prepare();
        drop(memory);
        assert_eq!(arena.in_use_bytes(), 0);
    }
}
