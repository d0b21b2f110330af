//! Why a control daemon does not start or stop as it should.

use base::{Blame, Blamed};
use faces::ConfigurationError;
use fops::codec::CodecError;
use spdk_stob::StobError;
use verbs_net::StartError;

use crate::reconcile::Difference;
use crate::transactions::ApplyRefusal;

/// Why [`crate::Control`] failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The configuration given, or the stored one, cannot be used.
    #[error("configuration: {0}")]
    Configuration(ConfigurationError),
    /// The cluster file is of another cluster than the store.
    #[error("the cluster file does not fit the store: {0}")]
    Difference(#[from] Difference),
    /// The lease is out of range.
    #[error("a lease of {lease_ms} ms is not from {min_ms} to {max_ms} ms")]
    Lease {
        /// As given.
        lease_ms: u128,
        /// Shortest.
        min_ms: u128,
        /// Longest.
        max_ms: u128,
    },
    /// The transport does not start.
    #[error("network: {0}")]
    Net(#[from] StartError),
    /// The store does not open, or refused a write.
    #[error("control's store: {0}")]
    Store(StobError),
    /// Requests did not end within the time of the drain.
    #[error("{0}")]
    Undrained(rpc::Undrained),
    /// The cluster file says something that it may not.
    #[error("the cluster file beside the daemon: {0}")]
    File(#[from] ApplyRefusal),
    /// A record of the store does not encode or decode.
    #[error("control's store: a transaction record: {0}")]
    Record(CodecError),
    /// The pieces of a transaction in the store do not fit together.
    #[error("control's store: pieces of its records do not fit together; put back a copy of the store")]
    StoreBroken,
    /// Written by another version of this program.
    #[error(
        "control's store has format version {found}, this program reads 1: use the program that wrote it"
    )]
    StoreFormat {
        /// As found.
        found: u32,
    },
}

impl Blamed for ControlError {
    fn blame(&self) -> Blame {
        match self {
            ControlError::Configuration(_)
            | ControlError::Difference(_)
            | ControlError::File(_)
            | ControlError::Lease { .. }
            | ControlError::Store(StobError::OtherCluster { .. }) => Blame::Caller,
            _ => Blame::Environment,
        }
    }
}
