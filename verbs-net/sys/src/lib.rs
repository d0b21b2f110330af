//! The unsafe edge of verbs-net: RDMA devices, queue pairs and rdma-cm as owned, bounded values.
//!
//! rdma-core is opened when the process asks for RDMA, not when it starts; without the feature `rdma` every item is here
//! too and [`Library::open`] answers [`RdmaError::NotBuilt`]. No protocol logic: what bytes mean is the caller's.
//!
//! **Invariant**: memory that the hardware may touch is owned by a [`Nic`]: a posted operation holds its buffers until its completion
//! or until its queue pair is destroyed; an exposed range holds its buffer until it is concealed, its window is invalidated,
//! or its queue pair is destroyed. Nothing else frees them. **Invariant**: a completion is matched by slot and generation,
//! so one that comes late names nothing.
//!
//! Threads: a [`Nic`] and a [`ConnectionManager`] belong to one locality. Bounds: [`NicConfig`].
//! Start reading at [`work`], then `real/nic.rs`.

pub mod device;
pub mod error;
pub mod event;
pub mod work;

#[cfg(not(feature = "rdma"))]
mod absent;
#[cfg(feature = "rdma")]
mod real;

#[cfg(not(feature = "rdma"))]
pub use absent::{ConnectionManager, Library, Nic};
#[cfg(feature = "rdma")]
pub use real::{ConnectionManager, Library, Nic};

pub use device::{
    Capabilities, DeviceInfo, GidChoice, GidInfo, GidKind, LinkLayer, PortInfo, PortState, Without,
    choose_gid,
};
pub use error::{CompletionError, PostError, RdmaError};
pub use event::{AsyncEvent, ConnectionEvent, ConnectionFailure};
pub use work::{
    Access, Completed, ConnectionId, ExposureId, Memory, NicConfig, NicCounts, QueuePairId, Remote, Segment,
    Work,
};

/// True if this binary was built with RDMA.
#[must_use]
pub const fn is_built() -> bool {
    cfg!(feature = "rdma")
}
