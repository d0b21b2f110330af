//! Helpers that programs lean on: time, locks, threads, fids, buffers, object ids, vectors' cursors, trace. Thin over the C library.

pub mod buf;
pub mod cursor;
pub mod fid;
pub mod hash;
pub mod lock;
pub mod thread;
pub mod time;
pub mod trace;
pub mod ufid;
