//! NET: LNet-like messaging between transfer machines, over one process (`lo`), TCP (`tcp`) or a simulation (`sim`).
//!
//! Promise: messages are unreliable in contract (rpc makes them at-most-once) and the sender hears of a lost peer; bulk
//! moves between a requester's exposed buffers and a server's, driven by the server, with no copy that is not counted.
//! Must not know: requests, replies, sessions (rpc), objects, devices.
//!
//! Threads: a [`TransferMachine`] belongs to its locality. Only [`LoFabric`] is shared between threads.
//! Bounds: limits.rs. Formats: docs/wire.md.
//!
//! **Invariant**: no byte of an incarnation that has been replaced reaches the layer above. **Invariant**: once
//! [`TransferMachine::retract`] has given the memory back, nothing writes into it. **Invariant**: a hostile peer costs its own connection, no more.
//!
//! Start reading at [`machine`], then `protocol` (the core, without I/O), then `backend`.
#![forbid(unsafe_code)]

mod admission;
mod backend;
#[cfg(test)]
mod conformance;
mod connection;
mod connection_table;
pub mod descriptor;
pub mod discovery;
pub mod error;
mod exposure;
pub mod fault;
pub mod frame;
mod free_port;
#[doc(hidden)]
pub mod fuzz;
pub mod hello;
pub mod limits;
pub mod machine;
mod memory_wait;
mod operation;
pub mod portal;
mod protocol;
pub mod rail;
mod rails;
mod remote;
pub mod security;
pub mod stats;
mod transfer;

pub use backend::lo::LoFabric;
pub use backend::sim::{SimArrivals, SimFabric, SimFaults, SimStats};
pub use backend::sim_hardware::SimKeys;
pub use backend::verbs::VerbsFabric;
pub use descriptor::{BulkCookie, BulkDescriptor, ParseDescriptorError};
pub use discovery::{Features, NidStatus, PeerInfo};
pub use error::{LocalError, NakReason, NetError, PeerMisbehaved, RefuseReason, Refused, StartError};
pub use exposure::{Retract, Retraction};
pub use fault::{FaultError, FaultId, FaultRule, FaultStatus};
pub use free_port::{bind_free, free_endpoint};
pub use hello::Token;
pub use limits::NetTimes;
pub use machine::{
    Event, Fabric, Lane, OperationId, OperationOptions, PeerId, PortalEvent, SendOptions, TmConfig,
    TransferId, TransferMachine, dynamic_endpoint, is_dynamic, local_nid_towards,
};
pub use portal::{
    AttachError, MatchEntry, MatchFrom, MdId, MdMemory, MdOptions, MemoryDescriptor, PORTAL_FIRST, Position,
};
pub use rail::{ErrorClass, HEALTH_MAX};
pub use security::{Credential, CredentialError, CredentialOptions, Identity, Revocations, Security};
pub use stats::NetStats;
pub use verbs_sys;
