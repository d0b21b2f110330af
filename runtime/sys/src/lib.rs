//! The unsafe edge of the runtime: buffers in mapped memory, io_uring, epoll, affinity, counted allocations and resource figures.
//!
//! Every item here has a safe interface; the unsafe code stays inside this crate, one C call or one pointer step per block.
//! Must not know: futures beyond the one that waits for a buffer, localities, protocols, files' contents.
//!
//! Threads: [`Arena`], [`Buffer`], [`SharedBuffer`] and [`counters::Counters`] may be used from any thread. A
//! [`ring::Ring`] belongs to the thread that made it. A [`poller::Poller`] may be shared.
//!
//! **Invariant**: a buffer is ours or the device's, never both: it is moved into the ring at `try_*` and comes out of it
//! with the completion. **Invariant**: the memory of a buffer never moves and is never unmapped while a buffer,
//! a ring that uses it, or a handle of its arena lives.
//! Start reading at [`arena`], then [`ring`].

pub mod allocations;
pub mod arena;
pub mod buffer;
pub mod counters;
mod mapping;
pub mod poller;
pub mod process;
pub mod ring;
pub mod wall_clock;
pub mod words;

pub use allocations::{CountingAllocator, allocated_bytes, allocations};
pub use arena::{Alloc, Arena, ArenaConfig, Run};
pub use buffer::{Buffer, Lender, SharedBuffer};
pub use counters::{CountedCopies, Counter, Counters, copy_counted};
pub use words::Words;
