//! The runtime's limits. Each bounds what one turn does, so that no source of work starves another, or how long a thread spins.

use std::time::Duration;

/// Events that one driver handles in one turn: about a completion queue's worth.
pub const DRIVER_EVENTS_PER_TURN: usize = 64;

/// Polls of tasks in one turn: at about a microsecond each, a few system calls' worth. What they made leaves then, and peers and devices work on
/// it while the rest of a large batch is polled here; with many more, two sides with 64 requests in flight take turns at waiting for each
/// other, with fewer a packet has too few items (docs/benchmarks.md#rpc).
pub const TASK_POLLS_PER_TURN: usize = 32;

/// Timers fired in one turn.
pub const TIMERS_PER_TURN: usize = 1024;

/// Shortest and longest spin without work before a thread sleeps. Source: NET.md section 4.3.
pub const SPIN_MIN: Duration = Duration::from_micros(5);
/// See [`SPIN_MIN`]: the longest.
pub const SPIN_MAX: Duration = Duration::from_micros(50);
/// Longest spin in a trial, or for work that is late: above the wake-up of a thread on a slow virtual machine (0.2 to 0.5 ms).
pub const SPIN_LONG: Duration = Duration::from_millis(1);

/// Jobs that wait for each helper thread, besides the one it runs.
pub const HELPER_QUEUE_PER_THREAD: usize = 64;

const _: () = assert!(SPIN_MIN.as_nanos() < SPIN_MAX.as_nanos());
