//! What rdma-cm and a device tell, as values.

use smallvec::SmallVec;

use crate::work::{ConnectionId, QueuePairId};

/// Why a connection could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionFailure {
    /// The address has no device or no neighbour. The kernel's error number.
    Address(i32),
    /// No route.
    Route(i32),
    /// Nobody answered.
    Unreachable(i32),
    /// The exchange failed half way.
    Connect(i32),
}

/// One event of the connection manager.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionEvent {
    /// The way to the peer is known: connect.
    RouteResolved(ConnectionId),
    /// A stranger wants to connect to `listener`.
    Requested {
        /// Our listening id.
        listener: ConnectionId,
        /// The new one.
        id: ConnectionId,
        /// What the stranger said; hostile, and often padded with zeros.
        private_data: SmallVec<[u8; 64]>,
    },
    /// The peer accepted: finish.
    Accepted {
        /// Which.
        id: ConnectionId,
        /// What the peer said.
        private_data: SmallVec<[u8; 64]>,
    },
    /// Both sides are ready.
    Established(ConnectionId),
    /// The peer said no, or nobody listens there.
    Rejected {
        /// Which.
        id: ConnectionId,
        /// The kernel's reason; 28 is a consumer's own no, with its private data.
        reason: i32,
        /// What the peer said.
        private_data: SmallVec<[u8; 64]>,
    },
    /// It could not be made.
    Failed(ConnectionId, ConnectionFailure),
    /// The peer ended it, or is gone.
    Disconnected(ConnectionId),
    /// The device under it is being removed: destroy everything on it.
    DeviceRemoved(ConnectionId),
    /// The address of the device changed.
    AddressChanged(ConnectionId),
}

/// One event of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AsyncEvent {
    /// The device is gone: destroy everything on it.
    DeviceFatal,
    /// A port lost its link.
    PortDown(u8),
    /// A port has its link back.
    PortUp(u8),
    /// The queue pair is in its error state.
    QueuePairFatal(QueuePairId),
    /// A queue pair in its error state takes no more receives.
    LastReceive(QueuePairId),
    /// The shared receive queue runs low.
    ReceivesLow,
    /// The completion queue or the shared receive queue is broken: nothing on this device works any more.
    QueueBroken,
    /// Something that needs no action, as its number.
    Other(u32),
}
