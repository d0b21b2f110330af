//! Waiting for the arena without an executor: the machine is polled, so a place in the arena's queue becomes a flag.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

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
    waiting: Option<Pin<Box<dyn Future<Output = Buffer>>>>,
}

impl MemoryWait {
    pub(crate) fn new(arena: Arena, unparker: Unparker) -> MemoryWait {
        let flag = Arc::new(Flag { raised: AtomicBool::new(false), unparker });
        MemoryWait { arena, flag, waiting: None }
    }

    /// A buffer of `len` bytes (at most `BUFFER_BYTES_MAX`), or `None`: then [`MemoryWait::is_over`] turns true once.
    pub(crate) fn alloc(&mut self, len: usize) -> Option<Buffer> {
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

    /// Bytes of the arena in use: what receives hold, and messages that the layer above has not given back.
    pub(crate) fn in_use_bytes(&self) -> u64 {
        self.arena.in_use_bytes()
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
