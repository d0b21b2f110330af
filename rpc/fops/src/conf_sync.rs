//! Answered by the control daemon: the configuration of a large cluster in parts, or what changed of it; a long cluster file in parts; processes
//! and devices by pages.
//!
//! The older [`crate::conf::ConfGet`], [`crate::conf::ConfApply`] and [`crate::conf::ClusterStatus`] carry all of it in one message, and are
//! answered as long as that fits. Rules of versions and parts: docs/configuration.md#how-it-travels.

use bincode::{Decode, Encode};

use crate::conf::{ConfApplyReply, DeviceStatus, ProcessStatus};
use crate::fop;

/// Asks for the configuration in force: the newest, or the next part of one that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConfSync {
    /// The newest form of a configuration that the requester reads.
    pub format: u32,
    /// The version that it holds, 0 for none: what changed since is enough.
    pub known_version: u64,
    /// The version of which it has the first `offset` bytes; 0: it begins.
    pub version: u64,
    /// First byte wanted.
    pub offset: u64,
}

/// The configuration, or as much of it as a message carries.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ConfSyncReply {
    /// The requester has the newest.
    Current {
        /// Its version.
        version: u64,
    },
    /// What makes a newer one of the requester's.
    Changes {
        /// Version that it becomes.
        version: u64,
        /// The newest version: if that is another one, there is more to ask for.
        newest: u64,
        /// CRC-32C of all bytes that it then has.
        checksum: u32,
        /// One after the other; each by offsets in what the one before made.
        steps: Vec<Vec<ConfSplice>>,
    },
    /// A part of all of it.
    Part {
        /// Version that this is a part of: another one than asked for begins anew, with its first part.
        version: u64,
        /// The newest version.
        newest: u64,
        /// Bytes of the whole.
        total_bytes: u64,
        /// CRC-32C of the whole.
        checksum: u32,
        /// Where the part begins.
        offset: u64,
        /// The bytes from there on.
        part: Vec<u8>,
    },
}
fop!(ConfSync, ConfSyncReply, ConfSync, "conf-sync", Idempotent);

/// One change of an encoded configuration: some bytes go, others come in their place.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConfSplice {
    /// Where, in bytes of what there was; ascending from one to the next.
    pub at: u32,
    /// Bytes that go.
    pub gone: u32,
    /// Bytes that come.
    pub put: Vec<u8>,
}

/// Brings a part of a long cluster file, its credential left out; the part is the request's bulk source, the next one follows where it ended.
///
/// Control keeps one such file, the last that was begun. Idempotent: what is there already is not taken again.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConfUpload {
    /// Drawn for each file, not 0.
    pub upload: u64,
    /// Where the part begins.
    pub offset: u64,
    /// Bytes of the whole.
    pub total_bytes: u64,
}

/// The part is there.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConfUploadReply {
    /// Bytes that are there, from the first on.
    pub bytes: u64,
}
fop!(ConfUpload, ConfUploadReply, ConfUpload, "conf-upload", Idempotent);

/// Puts the cluster file of an upload in force, as [`crate::conf::ConfApply`] does that of its request.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConfApplyUpload {
    /// The upload, which has to be whole.
    pub upload: u64,
    /// CRC-32C of the whole.
    pub checksum: u32,
    /// Number of the transaction that the change was planned against.
    pub base: u64,
    /// When, in seconds since 1970, by the requester's clock.
    pub unix_s: u64,
    /// Why, in the operator's words.
    pub note: String,
}
fop!(ConfApplyUpload, ConfApplyReply, ConfApplyUpload, "conf-apply-upload", Idempotent);

/// Asks for a page of processes and devices, in the order of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StatusGet {
    /// Index of the first process wanted.
    pub processes_from: u32,
    /// Index of the first device wanted.
    pub devices_from: u32,
}

/// A page of processes and devices as control sees them now.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StatusGetReply {
    /// Configuration version in force.
    pub version: u64,
    /// Processes of the whole configuration.
    pub processes_total: u32,
    /// Devices of the whole configuration.
    pub devices_total: u32,
    /// From the first wanted on.
    pub processes: Vec<ProcessStatus>,
    /// From the first wanted on.
    pub devices: Vec<DeviceStatus>,
}
fop!(StatusGet, StatusGetReply, StatusGet, "status-get", Idempotent);
