//! What clients and servers need of control: the configuration's types, a cached copy of it, registration and heartbeats.
//!
//! Must not know: how control stores the configuration, or who decides a device's state. Threads: everything that talks
//! ([`ConfClient`], [`Heartbeat`]) belongs to one locality; the types are plain values. Limits: [`limits`].
//!
//! Start at [`Configuration`] (what travels) and [`ClusterFile`] (what an operator writes), then [`ConfClient`].
#![forbid(unsafe_code)]

pub mod about;
mod cluster_check;
pub mod cluster_diff;
pub mod cluster_file;
pub mod cluster_tree;
pub mod conf_client;
pub mod conf_difference;
pub mod conf_parts;
pub mod configuration;
pub mod fences;
mod fid_order;
pub mod heartbeat;
pub mod held_lock;
pub mod later_store;
pub mod lease;
pub mod limits;
pub mod load;
pub mod pools;
pub mod repair;
pub mod rm;
pub mod spares;
pub mod tenure;
pub mod watcher;

pub use about::About;
pub use cluster_check::{ConfigError, ConfigProblem};
pub use cluster_diff::{Change, Effect, diff};
pub use cluster_file::{ClusterFile, ClusterId, Credential, SecurityKind, Transport};
pub use cluster_tree::{ClusterTree, Part, PartKind};
pub use conf_client::{ConfClient, ConfError};
pub use configuration::{
    Configuration, ConfigurationError, DeviceConfig, DeviceState, PoolConfig, ProcessConfig,
};
pub use fences::{Fences, Pass};
pub use heartbeat::{Heartbeat, Registrant};
pub use held_lock::{
    GrantedLock, HeldLock, HolderSaid, LockCall, LockError, LockWish, ReleaseCall, RunCall, TakeProgress,
};
pub use lease::Lease;
pub use load::{LoadReporter, MovedBytes};
pub use pools::{DeviceRun, FurtherPools, Moving, PoolVersionConfig};
pub use repair::{Copier, CopyEnd, Copying};
pub use spares::{NoSpare, SpareCopy, SparePhase, SpareSlot, Spares};
pub use watcher::{Notified, NotifyOutcome, Watch, WatchEvent, Watcher};
