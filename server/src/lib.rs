//! The data services of one locality: component objects and object records on its devices.
//!
//! Must not know: other servers, parity, who decides a device's state. A request is hostile until checked
//! ([`component_extents`], [`record`]), admitted by lease and configuration version ([`state`]), and run as a future on its
//! locality; the rpc machine bounds how many run. Errors of a device become answers in one table ([`refusal`]), and the first
//! that proves a device lost is evidence to control at once.
//!
//! **Invariant**: acknowledged is durable. **Invariant**: a server without a lease changes nothing. Thread: one locality, with its
//! own endpoint and devices. Rules: docs/ha.md. Start at [`Server::start`], then [`component_service`] and [`object_service`].
#![forbid(unsafe_code)]
#![allow(rustdoc::private_intra_doc_links)] // the map above names private modules on purpose

mod addition;
mod bug;
mod component_extents;
mod component_service;
mod copy_machine;
mod daemon;
mod device;
mod disks;
mod error;
mod object_service;
mod record;
mod refusal;
mod replacement;
mod slots;
mod state;

#[doc(hidden)]
pub use bug::Bug;
pub use daemon::{START_TIMEOUT_DEFAULT, Server, ServerConfig};
pub use disks::{DiskSource, DiskTeller, DiskWanted};
pub use error::ServerError;
