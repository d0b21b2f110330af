//! The unsafe edge of SPDK: NVMe controllers, queue pairs, and memory that devices may reach, behind a safe face.
//!
//! [`Spdk`] is a table of SPDK's functions and what SPDK keeps once per process; [`Spdk::linked`] is the installed SPDK
//! (feature `spdk`), `Spdk::stand_in` the same functions over files (feature `stand-in`, tests only). [`Namespace`] is one
//! namespace of a controller, [`Queue`] one queue pair of it: buffers move in with a command and come out with its completion.
//!
//! Must not know: blocks of 4096 bytes, stobs, deadlines, what to do about an error. Time does not occur.
//! Threads: a [`Queue`] stays on the thread that opened it; the rest goes anywhere. Limits: [`QUEUE_DEPTH_MAX`].
//!
//! **Invariant**: a buffer is ours or the device's, never both. A queue gives a buffer back only after SPDK said that the
//! command is over; what a device may still write to is leaked rather than given back.
//! **Invariant**: memory given to a device is registered, and stays so until its queue is gone.
//! Start reading at [`queue`], then [`environment`](Spdk).

mod address;
mod api;
mod controller;
mod environment;
mod error;
pub mod queue;
#[cfg(feature = "stand-in")]
pub mod stand_in;
mod status;

pub use address::{PciAddress, TransportAddress};
pub use controller::{Identity, Namespace};
pub use environment::{Registration, Spdk, StartOptions};
pub use error::SpdkError;
pub use queue::{Command, Completion, QUEUE_DEPTH_MAX, Queue, QueueLost, Refused};
pub use status::NvmeStatus;
