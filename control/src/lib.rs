//! The control daemon: the configuration, registration and leases of servers, and the states of devices.
//!
//! Must not know: objects, layouts of single objects, data. Pure and testable without I/O: [`transition`] (the table of device
//! states), [`core`] (decisions about servers and devices), [`locks`] (named locks and fences), [`loans`] (the root of the
//! resource manager), [`watches`] (watches and notifies), [`load`] (what the servers did in the last hour), [`conf_book`] (the configuration for those who fetch it, and its last changes), `reconcile` (a restart with an edited file), [`backup`] (the state in a file). Around it: `store` (durable, a tree of its own
//! domain), `replication` (the state on several daemons) and [`daemon`] (requests, store before answer, leases, the lead).
//!
//! **Invariant**: a version of the configuration that anybody was told of survives a restart. **Invariant**: a device that
//! became Failed stays so. **Invariant**: a lock that is broken is free only after its
//! owner's old ticket is refused everywhere. Threads: one locality. Rules for people: docs/ha.md, docs/configuration.md, docs/locks.md, docs/rm.md, docs/watch.md. Start at [`Control`].
#![forbid(unsafe_code)]

pub mod backup;
mod bug;
pub mod conf_book;
mod conf_service;
pub mod core;
pub mod daemon;
mod error;
pub mod load;
pub mod loans;
mod lock_service;
pub mod locks;
mod reconcile;
pub mod repairs;
mod replication;
mod rm_service;
mod store;
pub mod transactions;
pub mod transition;
mod watch_service;
pub mod watches;

#[doc(hidden)]
pub use bug::Bug;
pub use daemon::{Control, ControlConfig, FirstStart, MemberConfig, OperatorFile, found_store};
pub use error::ControlError;
pub use reconcile::Difference;
pub use replication::batch::DamagedBatch;
pub use replication::member::MemberCounts;
