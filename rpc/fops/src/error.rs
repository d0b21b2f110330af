//! What a server answers instead of a reply: one enum for all services, sorted by blame.

use base::{Blame, Blamed, BlockExtent, Endpoint, Fid};
use bincode::{Decode, Encode};

/// A refusal or failure that travels back to the requester.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Encode, Decode)]
#[non_exhaustive]
pub enum FopError {
    /// The object has no record here.
    #[error("object {object:?} does not exist")]
    NoSuchObject {
        /// The object's fid.
        object: Fid,
    },
    /// The object is there already.
    #[error("object {object:?} exists already")]
    ObjectExists {
        /// The object's fid.
        object: Fid,
    },
    /// The record's version is not the one that the update expected.
    #[error("the record of object {object:?} has version {found}, not {expected}: another writer changed it")]
    VersionConflict {
        /// The object's fid.
        object: Fid,
        /// Version the request expected.
        expected: u64,
        /// Version on the device.
        found: u64,
    },
    /// This process does not serve the device.
    #[error("device {device:?} is not served here: refetch the configuration")]
    WrongServer {
        /// The device's fid.
        device: Fid,
    },
    /// The device failed the access.
    #[error("device {device:?} failed: {reason}")]
    Device {
        /// The device's fid.
        device: Fid,
        /// What the operating system or the fault rule said.
        reason: String,
    },
    /// Stored bytes do not match their checksum.
    #[error("device {device:?}: blocks {extent} do not match their checksums")]
    Checksum {
        /// The device's fid.
        device: Fid,
        /// Where, in blocks of the component object.
        extent: BlockExtent,
    },
    /// Bytes that arrived do not match the checksums that came with them.
    #[error("block {block} of the request does not match its checksum: damaged on the way")]
    DamagedInTransit {
        /// Index of the first such block in the request.
        block: u64,
    },
    /// No free extent is left.
    #[error("device {device:?} is full: {wanted_blocks} blocks wanted, {free_blocks} free")]
    NoSpace {
        /// The device's fid.
        device: Fid,
        /// Blocks the request needs.
        wanted_blocks: u64,
        /// Blocks free.
        free_blocks: u64,
    },
    /// The requester's epoch or configuration is older than one it must know.
    #[error("the request was made under configuration {have}, and {need} is needed: refetch it")]
    Stale {
        /// The requester's version.
        have: u64,
        /// The version needed.
        need: u64,
    },
    /// The request makes no sense.
    #[error("bad request: {reason}")]
    BadRequest {
        /// What is wrong and what is allowed.
        reason: String,
    },
    /// A bulk transfer failed.
    #[error("bulk transfer failed: {reason}")]
    Bulk {
        /// Cause.
        reason: String,
    },
    /// The process is shutting down or its lease is gone.
    #[error("the service is not serving: {reason}")]
    NotServing {
        /// Why.
        reason: String,
    },
    /// The peer may not do this.
    #[error("not permitted: {reason}")]
    NotPermitted {
        /// What is missing.
        reason: String,
    },
    /// The request ran, and its reply is gone; or it may have run before a restart, and the record of that is out of reach. It is not run again.
    #[error("the reply to this request is not kept: the request ran, or may have, and is not run again")]
    ReplyGone,
    /// A broken invariant of the server.
    #[error("internal error of the server: {reason}")]
    Internal {
        /// Which.
        reason: String,
    },
    /// The change carries the ticket of a lock that was broken.
    #[error("the ticket's epoch {epoch} is fenced, up to {fenced}: its lock was broken; take the lock again")]
    Fenced {
        /// The ticket's, as it came.
        epoch: u64,
        /// The newest epoch that is refused.
        fenced: u64,
    },
    /// One of several control daemons, and not the one that leads. It was not run.
    #[error("this control daemon does not lead{}", leader.map_or_else(|| ", and knows of none that does".to_owned(), |leader| format!(": {leader} does")))]
    NotLeader {
        /// Who does, as far as known.
        leader: Option<Endpoint>,
    },
}

impl Blamed for FopError {
    fn blame(&self) -> Blame {
        match self {
            FopError::NoSuchObject { .. }
            | FopError::ObjectExists { .. }
            | FopError::VersionConflict { .. }
            | FopError::BadRequest { .. }
            | FopError::NotPermitted { .. }
            | FopError::Fenced { .. } => Blame::Caller,
            FopError::WrongServer { .. }
            | FopError::Device { .. }
            | FopError::Checksum { .. }
            | FopError::DamagedInTransit { .. }
            | FopError::NoSpace { .. }
            | FopError::Stale { .. }
            | FopError::Bulk { .. }
            | FopError::NotServing { .. }
            | FopError::NotLeader { .. }
            | FopError::ReplyGone => Blame::Environment,
            FopError::Internal { .. } => Blame::Us,
        }
    }

    fn may_retry(&self) -> bool {
        matches!(
            self,
            FopError::WrongServer { .. }
                | FopError::Stale { .. }
                | FopError::Bulk { .. }
                | FopError::NotServing { .. }
                | FopError::NotLeader { .. }
                | FopError::DamagedInTransit { .. }
        )
    }
}
