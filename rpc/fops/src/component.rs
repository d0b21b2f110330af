//! Answered by the data services: component objects, the part of an object that one device holds.

use base::{BlockExtent, Fid};
use bincode::{Decode, Encode};

use crate::fop;

/// Writes blocks of a component object. The bytes are the request's bulk source: one segment per extent, in order.
/// Acknowledged means durable.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ComponentWrite {
    /// The device.
    pub device: Fid,
    /// The component object: the object's fid with type Component.
    pub component: Fid,
    /// Generation of the object's bytes.
    pub generation: u64,
    /// Where, in blocks of the component object; do not overlap.
    pub extents: Vec<BlockExtent>,
    /// CRC-32C of each block, in the order of the extents.
    pub checksums: Vec<u32>,
}

/// Durable.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ComponentWriteReply {
    /// Blocks free on the device after the write.
    pub free_blocks: u64,
}
fop!(ComponentWrite, ComponentWriteReply, ComponentWrite, "component-write", AtMostOnce);

/// Reads blocks of a component object into the request's bulk sink: one segment per extent, in order.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ComponentRead {
    /// The device.
    pub device: Fid,
    /// The component object.
    pub component: Fid,
    /// Generation of the object's bytes.
    pub generation: u64,
    /// Where, in blocks of the component object.
    pub extents: Vec<BlockExtent>,
}

/// What stands beside the bytes.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ComponentReadReply {
    /// CRC-32C of each block as stored, in the order of the extents; of absent blocks that of zeros.
    pub checksums: Vec<u32>,
    /// Blocks that were never written; their bytes are zeros.
    pub absent: Vec<BlockExtent>,
}
fop!(ComponentRead, ComponentReadReply, ComponentRead, "component-read", Idempotent);

/// Deletes the generations of a component object from `from_generation` up to below `below_generation`. Generations are ordered
/// ([`crate::object::generation_of`]), so a delete that arrives late never takes bytes that were written after it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ComponentDelete {
    /// The device.
    pub device: Fid,
    /// The component object.
    pub component: Fid,
    /// The oldest generation to delete; 0: from the first.
    pub from_generation: u64,
    /// The oldest generation to keep.
    pub below_generation: u64,
}

/// Durable.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ComponentDeleteReply {
    /// Generations that were deleted.
    pub deleted: u64,
}
fop!(ComponentDelete, ComponentDeleteReply, ComponentDelete, "component-delete", AtMostOnce);

/// Makes holes of blocks of a component object that stood in spare units for a device which has its units again.
///
/// Carried out only while the server's configuration says that this copy is to free them: one that arrives late frees nothing.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ComponentPunch {
    /// The device.
    pub device: Fid,
    /// The component object.
    pub component: Fid,
    /// Generation of the object's bytes.
    pub generation: u64,
    /// Where, in blocks of the component object; do not overlap.
    pub extents: Vec<BlockExtent>,
    /// Number of the copy.
    pub job: u32,
}

/// Durable.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ComponentPunchReply {
    /// Blocks free on the device.
    pub free_blocks: u64,
}
fop!(ComponentPunch, ComponentPunchReply, ComponentPunch, "component-punch", AtMostOnce);
