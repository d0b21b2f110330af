//! rpc: items, sessions, resend and reply cache, request handler.
//!
//! What it does: a request is sent until it is answered or its deadline passes, and runs at most once while its session lives, over
//! restarts of the server too where it changes state ([`slot_record`]);
//! one machine per locality is client and server at once. What it must not know: storage, layouts, what any fop means.
//!
//! - [`item`]: the header of every message, and the one place where a peer's bytes become trusted values.
//! - [`formation`]: what leaves now, and which items share a [`packet`]; [`inline`]: which bulk travels in the item itself.
//! - [`requester`] and [`responder`] (with [`reply_cache`] and [`holds`]): the rules, as pure state machines; [`misbehaviour`] names what peers may not do.
//! - [`machine`]: both bound to a transfer machine and to futures; [`service`]: its life, from starting to stopped; [`fom`]: what a handler sees of its request;
//!   [`watchdog`]: which request is at which phase, and which hangs; [`addb`]: what each did and when.
//!
//! Threads: everything lives in one locality and is `!Send`. Limits, with their sums: [`limits`].
//! **Invariant**: a request that ran does not run again: its slot's number decides, and is kept as long as the session; a
//! session that ended is never taken for another.
//! Rights: the transfer machine knows who a peer is; each fom's `authorise` phase asks for the right that its opcode needs
//! (`Opcode::needs`), and [`RpcConfig::authorise`]. Where members share a secret, all of them have every right.
//! Start reading at [`RpcMachine::call`], then [`requester`], then [`responder`]; docs/wire.md#items has the bytes.
#![forbid(unsafe_code)]

pub mod addb;
mod afterwards;
pub mod bug;
pub mod config;
mod deadlines;
mod discovery;
pub mod error;
pub mod fom;
mod fom_tasks;
pub mod formation;
mod group;
pub mod holds;
pub mod inline;
pub mod item;
pub mod limits;
pub mod machine;
pub mod misbehaviour;
mod net_fault;
pub mod packet;
#[cfg(test)]
mod pair;
pub mod reply_cache;
pub mod requester;
pub mod responder;
pub mod service;
pub mod slot_record;
pub mod watchdog;

pub use addb::Phase;
pub use bug::Bug;
pub use config::{Answer, Authorise, Bulk, CallOptions, OnDenied, RpcConfig};
pub use discovery::DiscoverError;
pub use error::{CallError, Cause};
pub use fom::{Fom, Hold};
pub use formation::Priority;
pub use machine::{RpcMachine, RpcStats};
pub use misbehaviour::PeerMisbehaved;
pub use service::{ServiceState, Undrained};
pub use slot_record::{SessionName, SlotRecord};
pub use verbs_net::PeerId;
pub use watchdog::{HungFom, RunningFom};
