//! Why a control daemon does not start or stop as it should.

use base::{Blame, Blamed};
use faces::ConfigurationError;
use fops::codec::CodecError;
use spdk_stob::StobError;
use verbs_net::StartError;

use crate::reconcile::Difference;
use crate::replication::batch::DamagedBatch;
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
        "control's store has format version {found}, this program reads 1 to 3: use the program that wrote it"
    )]
    StoreFormat {
        /// As found.
        found: u32,
    },
    /// Another of several control daemons leads now.
    #[error(
        "this control daemon does not lead, or lost the lead meanwhile; what was asked may have been done or not"
    )]
    NotLeading,
    /// The library of the consensus found a mistake of ours.
    #[error("the replicated log: {0}")]
    Consensus(String),
    /// An entry of the replicated log is not one.
    #[error("{0}")]
    Entry(DamagedBatch),
    /// A blank store among several control daemons.
    #[error(
        "the store of control daemon {number} is blank. If the cluster is new, say so with --first-start found; if it runs and this daemon is to join it, \
         with --first-start join. A daemon that was a member and lost its store must not come back under its number: take it out \
         (`clovis control member remove {number}`) and let it join under a new one"
    )]
    NotFounded {
        /// Of the daemon.
        number: u64,
    },
    /// A store that has what `--first-start` would make.
    #[error("the store of control daemon {number} is in use already: start it without --first-start")]
    Founded {
        /// Of the daemon.
        number: u64,
    },
    /// A store that a backup would go into.
    #[error("the store has a state already: a backup is put into a blank one")]
    NotBlank,
    /// The store of another one.
    #[error(
        "this is the store of control daemon {found} of cluster {cluster:#x}, not of daemon {number}: give each its own store"
    )]
    OtherMember {
        /// As wanted.
        number: u64,
        /// As found.
        found: u64,
        /// As found.
        cluster: u64,
    },
    /// One daemon by the cluster file, several by the store.
    #[error(
        "this is the store of control daemon {found} of several, and the cluster file has one alone: put the [[control.member]] sections back"
    )]
    NotAlone {
        /// As found.
        found: u64,
    },
}

impl Blamed for ControlError {
    fn blame(&self) -> Blame {
        match self {
            ControlError::Configuration(_)
            | ControlError::Difference(_)
            | ControlError::File(_)
            | ControlError::Lease { .. }
            | ControlError::NotFounded { .. }
            | ControlError::Founded { .. }
            | ControlError::OtherMember { .. }
            | ControlError::NotAlone { .. }
            | ControlError::Store(StobError::OtherCluster { .. }) => Blame::Caller,
            _ => Blame::Environment,
        }
    }
}
