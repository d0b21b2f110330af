//! An object's bytes of one generation as the data path sees them: geometry, placement, codec and size, fixed for one operation.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;

use base::{BlockExtent, ObjectId};
use faces::PoolVersionConfig;
use fops::object::ObjectRecord;
use layout::{GroupCodec, ObjectLayout, PoolLayout};

use crate::batch::TargetPiece;
use crate::error::{ClientError, UnitFailures};
use crate::geometry::Geometry;
use crate::store::{ComponentName, Store, is_in_service};

pub(crate) struct View {
    pub(crate) store: Rc<Store>,
    pub(crate) object: ObjectId,
    pub(crate) name: ComponentName,
    pub(crate) size_bytes: u64,
    pub(crate) geometry: Geometry,
    pub(crate) pool: PoolLayout,
    /// Which devices its targets are.
    version: PoolVersionConfig,
    pub(crate) codec: Rc<GroupCodec>,
    placement: RefCell<ObjectLayout>,
    /// Devices, by index, that writes went past, as they were out of service.
    skipped: RefCell<BTreeSet<u32>>,
}

impl View {
    /// The view that a record gives. Errors: a record of another pool version, or one that makes no sense.
    pub(crate) fn new(
        store: &Rc<Store>,
        object: ObjectId,
        record: &ObjectRecord,
    ) -> Result<View, ClientError> {
        let configuration = store.configuration();
        let Some(version) = configuration.pool_version(record.pool_version) else {
            let (found, version) = (record.pool_version, configuration.version);
            return Err(ClientError::OtherPool { object, found, version });
        };
        let pool = store.layout(object, version.device_count(), (record.width, record.unit_bytes))?;
        let geometry = Geometry::new(record.width, u64::from(record.unit_bytes)).ok_or_else(|| {
            ClientError::BadRecord {
                object,
                width: record.width,
                unit_bytes: record.unit_bytes,
                reason: "no such unit size".to_owned(),
            }
        })?;
        Ok(View {
            store: store.clone(),
            object,
            name: ComponentName::new(record.object, record.generation),
            size_bytes: record.size_bytes.min(crate::geometry::OBJECT_BYTES_MAX),
            geometry,
            pool,
            version,
            codec: store.codec(record.width),
            placement: RefCell::new(pool.object(record.object)),
            skipped: RefCell::default(),
        })
    }

    pub(crate) fn note_skipped(&self, targets: BTreeSet<u32>) {
        self.skipped.borrow_mut().extend(targets);
    }

    /// Devices, by index, that writes went past.
    pub(crate) fn skipped(&self) -> BTreeSet<u32> {
        self.skipped.borrow().clone()
    }

    /// Takes out those that writes went past and that take writes now: what they missed has to be brought to them.
    pub(crate) fn take_returned(&self) -> Vec<u32> {
        let mut skipped = self.skipped.borrow_mut();
        let is_back =
            |target: &u32| self.store.device(*target).is_ok_and(|device| is_in_service(device.state));
        let returned: Vec<u32> = skipped.iter().copied().filter(is_back).collect();
        skipped.retain(|target| !returned.contains(target));
        returned
    }

    /// The unit of a group that stands on the device of an index, if one does.
    pub(crate) fn unit_on(&self, group: u64, device: u32) -> Option<u32> {
        (0..self.geometry.coded()).find(|unit| self.target(group, *unit) == device)
    }

    /// Index of the device of a unit.
    pub(crate) fn target(&self, group: u64, unit: u32) -> u32 {
        self.device_index(self.placement.borrow_mut().place(group, unit).target)
    }

    fn device_index(&self, target: u32) -> u32 {
        // The layout has as many targets as the version has devices.
        self.version.device_index(target).unwrap_or(u32::MAX)
    }

    /// Where rows of a unit stand on their device.
    pub(crate) fn piece<T>(&self, group: u64, unit: u32, rows: &Range<u64>, tag: T) -> TargetPiece<T> {
        let frame = self.placement.borrow_mut().place(group, unit);
        let start = frame.frame * self.geometry.unit_blocks() + rows.start;
        let extent = BlockExtent { start, count: rows.end - rows.start };
        TargetPiece { target: self.device_index(frame.target), extent, tag }
    }

    /// Refuses a write to a group with more than K devices out of service: it could not be read back.
    pub(crate) fn check_writable(&self, groups: impl Iterator<Item = u64>) -> Result<(), ClientError> {
        let configuration = self.store.configuration();
        let all_serve = configuration.pool.devices.iter().all(|device| is_in_service(device.state));
        if all_serve {
            return Ok(());
        }
        for group in groups {
            let mut failures = Vec::new();
            for unit in 0..self.geometry.coded() {
                let target = self.target(group, unit);
                if let Ok(device) = self.store.device(target)
                    && !is_in_service(device.state)
                {
                    let fault = crate::error::Fault::State(device.state);
                    failures.push(self.store.failure(Some((group, unit)), target, fault));
                }
            }
            if failures.len() > usize::try_from(self.geometry.width().parity()).unwrap_or(usize::MAX) {
                return Err(ClientError::Write { object: self.object, failures: UnitFailures(failures) });
            }
        }
        Ok(())
    }
}
