//! An object's bytes of one generation as the data path sees them: geometry, placement, codec and size, fixed for one operation.
//!
//! Where a unit stands follows from the layout, and from the slots of spare units as they were when the view was made ([`Places`],
//! docs/rfd/0014). **Invariant**: what was read or written counts only if [`View::is_current`] afterwards: then each request was sent, and judged by its
//! server, under a configuration with these slots.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;

use base::{BlockExtent, ObjectId};
use faces::{DeviceState, PoolVersionConfig, SparePhase, SpareSlot};
use fops::object::ObjectRecord;
use layout::{GroupCodec, ObjectLayout, PoolLayout, StandIns, stand_ins};
use smallvec::SmallVec;

use crate::batch::TargetPiece;
use crate::bug::Bug;
use crate::error::{ClientError, Fault, UnitFailures};
use crate::geometry::Geometry;
use crate::store::{ComponentName, Store, is_in_service};

/// Where one unit of a group stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Places {
    /// Unit of the group (itself, or a spare unit) that reads look at.
    pub home: u32,
    /// Devices whose loss is being made good there: not everything of theirs is there yet.
    pub filling: SmallVec<[u32; 2]>,
    /// All that writes go to, the home among them.
    pub written: StandIns,
}

impl Places {
    /// From the units that a chain has passed, with how far the device of each is. The last one has no slot, or there is no spare unit for it.
    pub(crate) fn of(chain: impl IntoIterator<Item = (u32, u32, Option<SparePhase>)>) -> Places {
        let mut places = Places { home: 0, filling: SmallVec::new(), written: StandIns::new() };
        let (mut home, mut last) = (None, 0);
        for (unit, device, phase) in chain {
            last = unit;
            if phase.is_none_or(SparePhase::takes_writes) {
                places.written.push(unit);
            }
            if home.is_none() {
                match phase {
                    None | Some(SparePhase::Leaving) => home = Some(unit),
                    Some(SparePhase::Filling) => places.filling.push(device),
                    _ => {}
                }
            }
        }
        places.home = home.unwrap_or(last);
        places
    }
}

/// The slots that reads and writes go by.
pub(crate) fn mapped_slots(slots: &[SpareSlot]) -> Vec<SpareSlot> {
    slots.iter().copied().filter(|slot| slot.phase.is_mapped()).collect()
}

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
    /// Slots of spare units when the view was made.
    spares: Vec<SpareSlot>,
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
            spares: mapped_slots(&configuration.spares.slots),
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

    /// True if the slots of spare units are what they were when the view was made, as far as this client knows.
    pub(crate) fn is_current(&self) -> bool {
        // What is known counts for requests from the moment on that it is known, also if nobody has asked for it here yet.
        self.store.adopt();
        mapped_slots(&self.store.configuration().spares.slots) == self.spares
    }

    /// Where a unit, data or parity, stands.
    pub(crate) fn places(&self, group: u64, unit: u32) -> Places {
        let spares = self.geometry.coded()..self.geometry.width().width();
        let slot_of = |device: u32| self.spares.iter().find(|slot| slot.device == device);
        let chain = match self.spares.is_empty() {
            true => std::iter::once(unit).collect(),
            false => stand_ins(
                unit,
                spares,
                |unit| self.device_of(group, unit),
                |device| Some(slot_of(device)?.slot),
            ),
        };
        Places::of(chain.into_iter().map(|unit| {
            let device = self.device_of(group, unit);
            (unit, device, slot_of(device).map(|slot| slot.phase))
        }))
    }

    /// The unit of a group, data or parity, that writes bring to the device of an index, and in the place of which unit of the group.
    pub(crate) fn unit_on(&self, group: u64, device: u32) -> Option<(u32, u32)> {
        (0..self.geometry.coded()).find_map(|unit| {
            let written = self.places(group, unit).written;
            let place = written.into_iter().find(|place| self.device_of(group, *place) == device)?;
            Some((unit, place))
        })
    }

    /// The unit of a group that spare units are to be filled with for a device that is gone.
    pub(crate) fn unit_lost_with(&self, group: u64, device: u32) -> Option<u32> {
        (0..self.geometry.coded()).find(|unit| self.places(group, *unit).filling.contains(&device))
    }

    /// Places of the group's units that writes of this view left out, as far as writes of another one bring something there: unit, and place.
    pub(crate) fn places_left_out(&self, now: &View, group: u64) -> Vec<(u32, u32)> {
        let mut left_out = Vec::new();
        for unit in 0..self.geometry.coded() {
            let before = self.places(group, unit).written;
            let places = now.places(group, unit).written.into_iter();
            left_out.extend(places.filter(|place| !before.contains(place)).map(|place| (unit, place)));
        }
        left_out
    }

    /// The same view with the slots as they are now.
    pub(crate) fn renewed(&self) -> View {
        let configuration = self.store.configuration();
        View {
            store: self.store.clone(),
            object: self.object,
            name: self.name,
            size_bytes: self.size_bytes,
            geometry: self.geometry,
            pool: self.pool,
            version: self.version.clone(),
            codec: self.codec.clone(),
            placement: self.placement.clone(),
            spares: mapped_slots(&configuration.spares.slots),
            skipped: self.skipped.clone(),
        }
    }

    /// Index of the device that a unit is read from.
    pub(crate) fn target(&self, group: u64, unit: u32) -> u32 {
        match self.spares.is_empty() {
            true => self.device_of(group, unit),
            false => self.device_of(group, self.places(group, unit).home),
        }
    }

    /// Index of the device that the layout gives a unit of a group, which may be a spare one.
    pub(crate) fn device_of(&self, group: u64, unit: u32) -> u32 {
        self.device_index(self.placement.borrow_mut().place(group, unit).target)
    }

    /// Why reads should pass over a unit.
    pub(crate) fn reads_pass_over(&self, group: u64, unit: u32) -> Option<Fault> {
        if !self.spares.is_empty() && !self.places(group, unit).filling.is_empty() {
            return Some(Fault::State(DeviceState::Failed));
        }
        self.store.reads_pass_over(self.target(group, unit))
    }

    fn device_index(&self, target: u32) -> u32 {
        // The layout has as many targets as the version has devices.
        self.version.device_index(target).unwrap_or(u32::MAX)
    }

    /// Where rows of a unit are read.
    pub(crate) fn piece<T>(&self, group: u64, unit: u32, rows: &Range<u64>, tag: T) -> TargetPiece<T> {
        let home = if self.spares.is_empty() { unit } else { self.places(group, unit).home };
        self.piece_at(group, home, rows, tag)
    }

    /// Everywhere that rows of a unit are written.
    pub(crate) fn pieces_to_write<T: Clone>(
        &self,
        group: u64,
        unit: u32,
        rows: &Range<u64>,
        tag: &T,
    ) -> impl Iterator<Item = TargetPiece<T>> {
        let mut places = self.places(group, unit).written;
        if self.store.has_bug(Bug::PastTheSpare) {
            places.retain(|place| *place < self.geometry.coded());
        }
        places.into_iter().map(move |place| self.piece_at(group, place, rows, tag.clone()))
    }

    /// Where rows of a unit that the layout knows, spare ones too, stand on their device.
    pub(crate) fn piece_at<T>(&self, group: u64, unit: u32, rows: &Range<u64>, tag: T) -> TargetPiece<T> {
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
                    let fault = Fault::State(device.state);
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
