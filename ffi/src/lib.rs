//! `libclovis.so`: the C interface that programs for Clovis were written against, over the Rust client.
//!
//! What it does: takes C structures apart into trusted values (`request`), keeps each operation's states (`op`), runs every instance on one
//! background thread of its own (`instance`, `work`), and brings the helpers that programs lean on (`memory`, `helpers`). Must not
//! know: layouts, requests, servers; anything below `client`. The headers in `ffi/include` are the source of truth, `abi` mirrors them.
//!
//! Threads: C calls come on any thread. They post to the instance's thread through a mailbox and wait on the
//! operation's own lock. Callbacks run on that thread, before or after the launch returns.
//!
//! Global state: only what the C interface forces, since those calls carry no instance: the memory of `m0_bufvec_alloc` (`memory`), the
//! process's `struct m0` and the thread's `struct m0_thread_tls` (`helpers::thread`), the level of the trace (`log`).
//!
//! **Invariant**: no panic leaves an exported function (`guard`); misuse gives an error number or a FAILED operation and one logged line.
//! **Invariant**: an operation that was launched ends, and the library does not touch its memory or its buffers afterwards.
//! **Invariant**: exported symbols = headers = version script = `ffi/MATRIX.md` (tests/tests/ffi).
//!
//! Unsafe code: C memory is read and written here and nowhere else. What C promises stands in the headers; the functions that rely on it
//! say `# Safety: the header's contract`. Start at `object`, then `op`.

mod abi;
mod absent;
mod errno;
mod guard;
mod helpers;
mod instance;
mod layout_id;
mod limits;
mod log;
mod memory;
mod object;
mod op;
mod request;
mod sync;
mod waiters;
mod work;
mod workers;
