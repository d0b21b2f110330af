//! One open device of a server: its domain, the locks of its records, and what was seen of its health.
//!
//! Thread: the locality that owns it. Start at [`Device`].

use std::cell::Cell;

use base::{BlockExtent, Endpoint, Fid};
use fops::FopError;
use fops::codec;
use fops::conf::{DeviceHealth, RegisteredDevice};
use fops::object::ObjectRecord;
use runtime::sync::LongLocks;
use spdk_stob::{Domain, StobError, TreeId};

use crate::refusal::{is_device_loss, refusal};

/// The tree of object records: key = the fid's 16 key bytes, value = format version, encoded record.
pub(crate) const RECORDS: TreeId = TreeId(1);
/// The tree of slots of sessions: what of a session outlives the process (`rpc::slot_record` has the bytes).
pub(crate) const SLOTS: TreeId = TreeId(2);
/// The tree of what the device says of itself.
pub(crate) const ABOUT: TreeId = TreeId(3);
/// In [`ABOUT`]: the number of the replacement that it was formatted for, little endian; a first disk has none.
const REPLACEMENT_KEY: &[u8] = b"replacement";
/// Format version, the first byte of each record.
const RECORD_FORMAT: u8 = 1;

/// A device that this locality serves.
pub(crate) struct Device {
    pub(crate) fid: Fid,
    pub(crate) domain: Domain,
    /// Size of the whole device in blocks.
    pub(crate) size_blocks: u64,
    /// Number of the replacement that it was formatted for; 0 for a first disk.
    pub(crate) replacement: u32,
    /// The records of slots that were read when this server started are all that there were for this device. Not so of a disk that came since, or
    /// shortly before: the one before it took its records with it.
    pub(crate) has_slots: bool,
    /// Held from reading a record to its commit.
    pub(crate) records: LongLocks<Fid>,
    /// Accesses that failed since the start.
    pub(crate) errors: Cell<u64>,
    /// Once an access proved the device lost; never unset before a restart.
    pub(crate) lost: Cell<bool>,
    /// First configuration version in which this server saw the device out of service.
    pub(crate) out_of_service_since: Cell<Option<u64>>,
}

impl Device {
    pub(crate) fn new(fid: Fid, domain: Domain, size_blocks: u64, has_slots: bool) -> Device {
        let replacement = domain
            .tree_get(ABOUT, REPLACEMENT_KEY)
            .and_then(|value| value.try_into().ok())
            .map_or(0, u32::from_le_bytes);
        Device {
            fid,
            domain,
            size_blocks,
            replacement,
            has_slots,
            records: LongLocks::default(),
            errors: Cell::new(0),
            lost: Cell::new(false),
            out_of_service_since: Cell::new(None),
        }
    }

    /// Makes a formatted disk that of replacement `number`, durably.
    pub(crate) async fn mark_replacement(domain: &Domain, number: u32) -> Result<(), StobError> {
        let mut transaction = domain.begin();
        transaction.tree_put(ABOUT, REPLACEMENT_KEY, &number.to_le_bytes());
        domain.commit(transaction).await
    }

    /// As it registers.
    pub(crate) fn registered(&self, endpoint: Endpoint) -> RegisteredDevice {
        let Device { fid, size_blocks, replacement, .. } = *self;
        RegisteredDevice { device: fid, endpoint, size_blocks, replacement }
    }

    pub(crate) fn health(&self) -> DeviceHealth {
        DeviceHealth {
            device: self.fid,
            free_blocks: self.domain.info().blocks_free,
            errors: self.errors.get(),
            failed: self.lost.get(),
        }
    }

    /// Counts an error. The answer to the requester, and true if this is the first proof that the device is lost.
    pub(crate) fn note(&self, error: &StobError, extents: &[BlockExtent]) -> (FopError, bool) {
        let loss = is_device_loss(error);
        if loss || matches!(error, StobError::Checksum { .. }) {
            self.errors.set(self.errors.get().saturating_add(1));
        }
        let first = loss && !self.lost.replace(self.lost.get() || loss);
        (refusal(self.fid, error, extents), first)
    }

    /// The record of an object. Errors: bytes in the tree that are no record.
    pub(crate) fn record(&self, object: Fid) -> Result<Option<ObjectRecord>, FopError> {
        match self.domain.tree_get(RECORDS, &object.to_key_bytes()) {
            None => Ok(None),
            Some(value) => self.decode_record(object, &value).map(Some),
        }
    }

    /// From a value of the tree. Errors: see [`Device::record`].
    pub(crate) fn decode_record(&self, object: Fid, value: &[u8]) -> Result<ObjectRecord, FopError> {
        let device = self.fid;
        let record = match value.split_first() {
            Some((&RECORD_FORMAT, bytes)) => codec::decode::<ObjectRecord>(bytes).ok(),
            _ => None,
        };
        record.filter(|record| record.object == object).ok_or_else(|| FopError::Device {
            device,
            reason: format!("the record of object {object} on the device makes no sense"),
        })
    }

    /// The value of a record in the tree.
    pub(crate) fn encode_record(record: &ObjectRecord) -> Result<Vec<u8>, FopError> {
        let mut value = vec![RECORD_FORMAT];
        let bytes = codec::encode(record)
            .map_err(|error| FopError::Internal { reason: format!("a record does not encode: {error}") })?;
        value.extend(bytes);
        Ok(value)
    }
}
