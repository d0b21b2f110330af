//! Why a control daemon does not start or stop as it should.

use base::{Blame, Blamed};
use faces::ConfigurationError;
use spdk_stob::StobError;
use verbs_net::StartError;

use crate::reconcile::Difference;

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
            | ControlError::Lease { .. }
            | ControlError::Store(StobError::OtherCluster { .. }) => Blame::Caller,
            _ => Blame::Environment,
        }
    }
}
