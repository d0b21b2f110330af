//! Answered by the data services: object records. Each object's record is kept on K+1 devices (layout::record_targets).

use base::{Fid, LayoutWidth};
use bincode::{Decode, Encode};

use crate::fop;

/// Largest version of a record: versions are the upper half of generations.
pub const RECORD_VERSION_MAX: u64 = u32::MAX as u64;

/// The generation that a writer makes for record version `version`: the version above, 32 bits of the writer's own choice
/// below. So generations are ordered by the record that names them, and two writers of one version differ.
#[must_use]
pub const fn generation_of(version: u64, nonce: u64) -> u64 {
    (version << 32) | generation_nonce(nonce)
}

/// The part of a generation that its writer chose at random.
#[must_use]
pub const fn generation_nonce(generation: u64) -> u64 {
    generation & u32::MAX as u64
}

/// An object's own record. Ordered by (`version`, `generation`): the highest among the replicas is the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct ObjectRecord {
    /// Grows by one with each update.
    pub version: u64,
    /// Which generation of component objects holds the bytes: see [`generation_of`].
    pub generation: u64,
    /// The object.
    pub object: Fid,
    /// Bytes from 0 to the end of the object.
    pub size_bytes: u64,
    /// Shape of its parity groups.
    pub width: LayoutWidth,
    /// Unit size in bytes.
    pub unit_bytes: u32,
    /// Pool version that maps its units to devices.
    pub pool_version: Fid,
    /// True once the object is deleted: the record stays as a tombstone so that an older replica cannot bring it back.
    pub deleted: bool,
}

/// How to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[non_exhaustive]
pub enum OpenMode {
    /// Must exist.
    Open,
    /// Must not exist; is made.
    Create,
    /// Is made if it does not exist: one round trip for both.
    CreateOrOpen,
}

/// Opens or creates the record of an object on one device.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ObjectOpen {
    /// Device that keeps this replica.
    pub device: Fid,
    /// How.
    pub mode: OpenMode,
    /// The record to make (its `object` names the object even when only opened).
    pub record: ObjectRecord,
}

/// The record as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ObjectOpenReply {
    /// The record.
    pub record: ObjectRecord,
    /// True if this request made it.
    pub created: bool,
}
fop!(ObjectOpen, ObjectOpenReply, ObjectOpen, "object-open", AtMostOnce);

/// Replaces a record if its version is still `expected_version`, or if the new one is higher and `repair` is set.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ObjectUpdate {
    /// Device that keeps this replica.
    pub device: Fid,
    /// Version that must be there now; ignored for a repair.
    pub expected_version: u64,
    /// A reader brings an older replica up to date: taken if `record` is higher, harmless otherwise.
    pub repair: bool,
    /// The new record.
    pub record: ObjectRecord,
}

/// The record after the update.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ObjectUpdateReply {
    /// The record that is there now.
    pub record: ObjectRecord,
}
fop!(ObjectUpdate, ObjectUpdateReply, ObjectUpdate, "object-update", AtMostOnce);

/// Drops an object's record for good (after every component object is gone and every replica is a tombstone).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ObjectDelete {
    /// Device that keeps this replica.
    pub device: Fid,
    /// The object.
    pub object: Fid,
    /// Only a tombstone of this version is dropped.
    pub version: u64,
}

/// Done, or there was nothing.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ObjectDeleteReply {
    /// True if a record was dropped.
    pub existed: bool,
}
fop!(ObjectDelete, ObjectDeleteReply, ObjectDelete, "object-delete", AtMostOnce);

/// Lists records on one device in fid order.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ObjectList {
    /// The device.
    pub device: Fid,
    /// Start behind this object.
    pub after: Option<Fid>,
    /// At most so many; the server may give fewer, see `more`.
    pub limit: u32,
}

/// A page of records.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ObjectListReply {
    /// The records, in fid order, tombstones included.
    pub records: Vec<ObjectRecord>,
    /// True if there are more behind the last one.
    pub more: bool,
}
fop!(ObjectList, ObjectListReply, ObjectList, "object-list", Idempotent);

/// Drops a replica of a record that stood in for one of a device which has its own again. Carried out as [`crate::component::ComponentPunch`] is.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ObjectForget {
    /// The device that has the replica.
    pub device: Fid,
    /// The object.
    pub object: Fid,
    /// Number of the copy.
    pub job: u32,
}

/// Done, or there was nothing.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ObjectForgetReply {
    /// True if a replica was dropped.
    pub existed: bool,
}
fop!(ObjectForget, ObjectForgetReply, ObjectForget, "object-forget", AtMostOnce);
