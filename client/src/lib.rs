//! The Rust client: objects striped over devices with parity, read and written without a copy, degraded I/O included.
//!
//! What it does: plans groups ([`geometry`]), packs their units into requests ([`batch`]), lets servers move the bytes, encodes and rebuilds,
//! keeps K + 1 replicas of each record in step, and shows the states of operations ([`operation`]). Must not know: how a server stores,
//! how control decides, sockets. Threads: a [`Client`] belongs to one locality; everything is `Rc` and futures on its executor.
//!
//! **Invariant**: a write is acknowledged only once every device in service has it durable, and no group lacks more than K units.
//! **Invariant**: bytes handed to a reader matched the checksum that the writer made of them, or were rebuilt from such bytes.
//! **Invariant**: an absent block is never taken for zeros while its row is written ([`rows`]).
//!
//! The rules and each step's owner and copies: docs/data-flow.md. Start at [`Client::connect`], [`Object::read`], [`Object::write`], [`Replacement`].
#![forbid(unsafe_code)]

pub mod batch;
mod bug;
mod client;
pub mod error;
pub mod geometry;
mod group_read;
mod group_write;
pub mod limits;
pub mod membership;
mod object;
pub mod operation;
pub mod parts;
mod rebalance;
mod records;
mod repair;
mod replacement;
pub mod rows;
mod spares;
mod store;
mod targets;
mod transfer;
mod view;

#[doc(hidden)]
pub use bug::Bug;
pub use client::{ALLOCATED_OBJECTS, Client, ClientConfig};
pub use error::{ClientError, Fault, UnitFailure, UnitFailures};
pub use faces::rm::HoldError;
pub use faces::tenure::TenureState;
pub use faces::{
    ConfError, GrantedLock, HeldLock, HolderSaid, LockCall, LockError, LockWish, Notified, NotifyOutcome,
    ReleaseCall, RunCall, TakeProgress, Watch, WatchEvent, Watcher,
};
pub use membership::security_of;
pub use object::{Object, ObjectStat};
pub use operation::{Operation, OperationEvent, OperationState};
pub use repair::copier;
pub use replacement::Replacement;
