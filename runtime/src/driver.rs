//! What a locality polls: a device, a transfer machine, anything that turns outside events into woken tasks.

use std::io;
use std::os::fd::RawFd;

use base::Instant;
use runtime_sys::Arena;

/// Something with events. Owned by its locality through `Rc<RefCell<..>>`; tasks may borrow it while they are polled.
///
/// While `poll` and `flush` run the driver is borrowed. It may wake tasks there: wakers only queue them.
pub trait Driver {
    /// Takes what arrived and wakes who waits for it, at most about `budget` events. Gives how many it handled.
    ///
    /// Never blocks. Zero means that nothing changed; a locality that hears only zeros goes to sleep.
    fn poll(&mut self, now: Instant, budget: usize) -> usize;

    /// A look between turns, while the locality spins: true if [`Driver::poll`] would find something.
    ///
    /// Cheaper than a turn, so that work is seen sooner. Nothing has changed since the last turn, and no deadline has passed. What it takes in is for the next
    /// `poll`, which follows at once. True by default: then each look is a turn.
    fn look(&mut self, now: Instant) -> bool {
        let _ = now;
        true
    }

    /// Sends what this turn produced: called once, at the end of each turn.
    fn flush(&mut self, now: Instant);

    /// When `poll` has to be called even if nothing arrives. A past time means at once, so it has to move on when handled.
    fn next_deadline(&self) -> Option<Instant>;

    /// A descriptor that is readable while `poll` has work, and quiet else. The same open file as long as the driver is added.
    fn wait_fd(&self) -> Option<RawFd>;

    /// Arms what makes `wait_fd` readable. False if work arrived meanwhile: then the locality does not sleep.
    fn before_sleep(&mut self) -> bool {
        true
    }
}

/// A device that wants to know an arena's memory before it uses buffers of it. Arenas are registered once, at start.
pub trait Registrar {
    /// Registers all memory of `arena`.
    ///
    /// # Errors
    /// What the device says; `ENOMEM` where too little memory may be locked.
    fn register(&self, arena: &Arena) -> io::Result<()>;
}
