//! Bounds of the C interface, each with its arithmetic. docs/limits.md explains them to operators.

use std::time::Duration;

use base::units::{GIB, MIB};

/// Address space of one instance for bytes in flight; pages are taken as they are used. As much as a command of the binary has.
pub const ARENA_BYTES: u64 = 512 * MIB;

/// Address space of a process for `m0_bufvec_alloc`; pages are taken as they are used. What does not fit comes from the C library's heap.
pub const USER_ARENA_BYTES: u64 = 4 * GIB;

/// Letters to an instance's thread that wait. A launch that finds no room waits for some.
pub const LETTERS_MAX: usize = 1024;

/// Longest that `m0_clovis_init` waits for the control daemon.
pub const INIT_TIMEOUT: Duration = Duration::from_secs(20);

/// How long an operation may take: 60 resends, one a second. `CLOVIS_OP_TIMEOUT` (seconds) sets another.
pub const OP_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest that `m0_clovis_fini` waits for cancelled operations to give their buffers back.
pub const FINI_TIMEOUT: Duration = Duration::from_secs(10);

/// Extents of one operation that are read or written at the same time.
pub const RUNS_IN_FLIGHT: usize = 8;

/// Objects whose records an instance keeps; one that is not used is forgotten when another needs the place.
pub const OBJECTS_KEPT: usize = 1024;

/// Tasks of an instance that are kept for the next operations; more run while there are more operations.
pub const WORKERS_RESTING: usize = 64;

/// Block shift that an object begins with: 4 KiB.
pub const BLOCK_SHIFT_DEFAULT: u64 = 12;
/// Smallest block shift: 512 bytes.
pub const BLOCK_SHIFT_MIN: u64 = 9;
/// Largest block shift: 1 GiB. Above it no operation could hold a block.
pub const BLOCK_SHIFT_MAX: u64 = 30;

/// Longest text of an endpoint or a fid in a configuration.
pub const TEXT_BYTES_MAX: usize = 256;

const _: () = assert!(USER_ARENA_BYTES.is_multiple_of(MIB) && ARENA_BYTES.is_multiple_of(MIB));
const _: () = assert!(BLOCK_SHIFT_MIN <= BLOCK_SHIFT_DEFAULT && BLOCK_SHIFT_DEFAULT <= BLOCK_SHIFT_MAX);
