//! What a locality stands on: executor, timers, drivers, mailbox, clock, and the memory and devices of `runtime-sys`.
//!
//! A [`Locality`] is one thread's share of a node. Everything in it is `!Send` and waits as futures on its executor. It knows of the
//! world only [`Driver`]s (something that is polled, flushed, and can be slept on) and time, which is an argument of
//! [`Locality::turn`]: so a simulation turns many localities in one thread and gets the same order each time.
//!
//! Must not know: networks, protocols, storage, configuration.
//!
//! Threads: [`Unparker`], [`StopFlag`], [`MailSender`], [`Arena`], [`Buffer`] and [`Counters`] cross threads; nothing else does.
//! Limits: [`limits`].
//! **Invariant**: nothing here asks for the time but [`clock::MonotonicClock`]. **Invariant**: an idle locality makes no
//! system call until a deadline, a driver's descriptor or another thread wakes it.
//! Start reading at [`locality`], then [`executor`] and [`parking`].
#![forbid(unsafe_code)]

pub mod clock;
pub mod crowd;
pub mod driver;
pub mod executor;
pub mod helper_threads;
pub mod identity;
pub mod limits;
pub mod locality;
pub mod mailbox;
pub mod parking;
mod spin;
pub mod sync;
pub mod timers;

pub use clock::{MonotonicClock, SimulatedClock};
pub use crowd::{Crowd, Waiting};
pub use driver::{Driver, Registrar};
pub use executor::Task;
pub use helper_threads::HelperThreads;
pub use locality::{Locality, LocalityConfig, LocalityHandle, StopFlag, Turn};
pub use mailbox::{MailReceiver, MailSender, mailbox};
pub use parking::Unparker;
pub use runtime_sys::{
    Alloc, Arena, ArenaConfig, Buffer, CountedCopies, Counter, Counters, CountingAllocator, Lender, Run,
    SharedBuffer, Words, allocated_bytes, allocations, arena, copy_counted, counters, poller, process, ring,
    wall_clock,
};
pub use timers::{Elapsed, Sleep};
