//! What all operations of one client share: its rpc machine, the configuration, windows of requests, what it knows of targets.
//!
//! Thread: one locality (`Rc` inside). Bounds: [`limits::REQUESTS_PER_TARGET_MAX`] requests to each target,
//! [`limits::REQUESTS_IN_FLIGHT_MAX`] in all, `memory` bytes of buffers held by operations; whoever finds no room waits.
//! **Invariant**: permits are taken in one order (memory, target, request), so waiting operations never form a circle.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::units::{BLOCK_BYTES, narrow};
use base::{Fid, FidType, Instant, LayoutWidth, ObjectId};
use faces::rm::{Borrower, Hold};
use faces::{ConfClient, Configuration, DeviceConfig, DeviceState, PoolVersionConfig, SparePhase};
use fops::conf::DeviceEvidence;
use fops::lock::{LockMode, Ticket, Ticketed};
use fops::object::ObjectRecord;
use fops::rm::{RmCredit, RmResource};
use layout::{GroupCodec, PoolLayout, record_and_spare_targets, record_targets, stand_ins};
use rpc::{Answer, Bulk, CallOptions, RpcMachine};
use runtime::sync::{Permit, Semaphore};
use runtime::{LocalityHandle, SharedBuffer};
use smallvec::SmallVec;

use crate::bug::Bug;
use crate::client::ClientConfig;
use crate::error::{ClientError, Fault, UnitFailure};
use crate::limits;
use crate::view::{Places, mapped_slots};

/// Which component objects: an object's bytes of one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ComponentName {
    /// The object's fid with type Component.
    pub component: Fid,
    /// Generation of its bytes.
    pub generation: u64,
}

impl ComponentName {
    pub(crate) fn new(object: Fid, generation: u64) -> ComponentName {
        ComponentName { component: object.with_type(FidType::Component), generation }
    }
}

/// A device that is to hold a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordHolder {
    /// Device index.
    pub device: u32,
    /// Devices that it stands for, as far as their records are being brought to it: that it has none means nothing then.
    pub filling: SmallVec<[u32; 2]>,
}

/// Clones share all but what changes are made under.
#[derive(Clone)]
pub(crate) struct Store {
    pub(crate) locality: LocalityHandle,
    pub(crate) rpc: RpcMachine,
    pub(crate) conf: ConfClient,
    pub(crate) config: ClientConfig,
    bug: Option<Bug>,
    configuration: Rc<RefCell<Rc<Configuration>>>,
    /// Highest configuration version that any answer showed.
    seen_version: Rc<Cell<u64>>,
    /// What changes are made under; `None`: no lock.
    pub(crate) ticket: Rc<Cell<Option<Ticket>>>,
    /// What changes are made under instead of the ticket, as long as it is held.
    hold: Option<Rc<Hold>>,
    pub(crate) borrower: Borrower,
    /// Where new objects go; `None`: the first pool.
    pool: Option<Fid>,
    requests: Semaphore,
    per_target: Rc<RefCell<BTreeMap<u32, Semaphore>>>,
    memory: Semaphore,
    memory_blocks: usize,
    suspects: Rc<RefCell<BTreeMap<u32, Instant>>>,
    codecs: Rc<RefCell<BTreeMap<LayoutWidth, Rc<GroupCodec>>>>,
    zeros: Rc<RefCell<Option<SharedBuffer>>>,
}

impl Store {
    pub(crate) fn new(
        locality: LocalityHandle,
        rpc: RpcMachine,
        conf: ConfClient,
        configuration: Rc<Configuration>,
        (config, bug): (ClientConfig, Option<Bug>),
    ) -> Store {
        // Half of the arena: the rest is for messages, bulk in flight and whoever shares the arena.
        let memory_bytes = (locality.arena().capacity_bytes() / 2).min(limits::MEMORY_BYTES_MAX);
        let memory_blocks = narrow(memory_bytes / BLOCK_BYTES);
        // Its name for people is its endpoint, which control sees.
        let borrower = Borrower::start(&conf, String::new(), config.op_timeout / 4);
        Store {
            locality,
            rpc,
            conf,
            config,
            seen_version: Rc::new(Cell::new(configuration.version)),
            ticket: Rc::default(),
            hold: None,
            pool: None,
            borrower,
            bug,
            configuration: Rc::new(RefCell::new(configuration)),
            requests: Semaphore::new(limits::REQUESTS_IN_FLIGHT_MAX),
            per_target: Rc::default(),
            memory: Semaphore::new(memory_blocks),
            memory_blocks,
            suspects: Rc::default(),
            codecs: Rc::default(),
            zeros: Rc::default(),
        }
    }

    /// The same, with changes made under a hold.
    pub(crate) fn under(&self, hold: Hold) -> Store {
        Store { hold: Some(Rc::new(hold)), ..self.clone() }
    }

    /// The same, with new objects in another pool.
    pub(crate) fn in_pool(&self, pool: Fid) -> Store {
        Store { pool: Some(pool), ..self.clone() }
    }

    /// The pool version that new objects go to.
    pub(crate) fn version_for_new(&self) -> PoolVersionConfig {
        let configuration = self.configuration.borrow();
        let wanted = self.pool.unwrap_or(configuration.pool.pool);
        // Pools stay.
        configuration.newest_version(wanted).unwrap_or_else(|| configuration.first_version())
    }

    /// What changes are made under, if it is a hold.
    pub(crate) fn hold(&self) -> Option<&Hold> {
        self.hold.as_deref()
    }

    /// What changes of an object in place are made beside: a shared credit on it, as long as any device is in repair, spare units are filled or copied back, or the object may be moved to
    /// another pool version, so that the machine that copies never reads a group in the middle of a change. `None`: nothing is copied, or the object
    /// is held already. `record`: what is known of the object; without one it may move wherever anything does.
    ///
    /// Kept by this client between uses, until the machine asks for it: the next change costs no message (docs/rm.md). Errors: control does
    /// not answer, or the object is held alone for too long.
    pub(crate) async fn writing_credit(
        &self,
        object: Fid,
        record: Option<&ObjectRecord>,
    ) -> Result<Option<Hold>, ClientError> {
        let resource = RmResource::Object(object);
        let is_repairing = {
            let configuration = self.configuration.borrow();
            let copies = |phase| matches!(phase, SparePhase::Filling | SparePhase::Returning);
            configuration.pool.devices.iter().any(|device| device.state == DeviceState::Repair)
                || configuration.spares.slots.iter().any(|slot| copies(slot.phase))
        };
        let is_held = self.hold.as_ref().is_some_and(|hold| *hold.resource() == resource);
        let may_move = match record {
            Some(record) => self.may_move(record),
            None => !self.configuration.borrow().pools.moving.is_empty(),
        };
        let is_repairing = is_repairing && !self.has_bug(Bug::RepairBesideWrites);
        let may_move = may_move && !self.has_bug(Bug::MoveBesideWrites);
        if !(is_repairing || may_move) || is_held {
            return Ok(None);
        }
        let credit = RmCredit::Whole { mode: LockMode::Shared };
        Ok(Some(self.borrower.hold(&resource, &credit, self.config.op_timeout).await?))
    }

    /// True if the object, which lay where `record` says at configuration `version`, may lie elsewhere now: a rebalance runs, began or ended since.
    pub(crate) fn may_have_moved(&self, record: &ObjectRecord, version: u64) -> bool {
        let configuration = self.configuration.borrow();
        let lies_in = configuration.pool_version(record.pool_version);
        let is_older = lies_in.is_none_or(|lies_in| !configuration.is_newest(&lies_in));
        is_older && (self.may_move(record) || version < configuration.pool.changes_from)
    }

    /// True if the object lies in an older version of a pool that is being rebalanced.
    pub(crate) fn may_move(&self, record: &ObjectRecord) -> bool {
        let configuration = self.configuration.borrow();
        let version = configuration.pool_version(record.pool_version);
        version.is_some_and(|version| {
            configuration.is_moving(version.pool) && !configuration.is_newest(&version)
        })
    }

    /// Only in the simulation's hands: see [`Bug`].
    pub(crate) fn has_bug(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    pub(crate) fn now(&self) -> Instant {
        self.locality.now()
    }

    /// When an operation that starts now has to be over.
    pub(crate) fn deadline(&self) -> Instant {
        self.now() + self.config.op_timeout
    }

    /// When one request of an operation has to be answered: early enough that the operation can still go another way.
    pub(crate) fn request_deadline(&self, operation: Instant) -> Instant {
        (self.now() + self.config.op_timeout / 4).min(operation)
    }

    pub(crate) fn configuration(&self) -> Rc<Configuration> {
        self.configuration.borrow().clone()
    }

    /// Fetches the configuration if an answer showed a newer one. A control daemon that does not answer is no reason to stop.
    pub(crate) async fn refresh(&self) {
        self.adopt();
        let known = self.configuration.borrow().version;
        if self.seen_version.get() > known {
            self.fetch().await;
        }
    }

    /// Takes over what was fetched because control asked the old one back.
    pub(crate) fn adopt(&self) {
        if let Some(newest) = self.conf.current()
            && newest.version > self.configuration.borrow().version
        {
            self.see_version(newest.version);
            *self.configuration.borrow_mut() = newest;
        }
    }

    /// Asks control for the configuration, for as long as one request may take.
    pub(crate) async fn fetch(&self) {
        let deadline = self.request_deadline(Instant::NEVER);
        if let Ok(configuration) = self.conf.fetch(deadline).await
            && configuration.version >= self.configuration.borrow().version
        {
            self.see_version(configuration.version);
            *self.configuration.borrow_mut() = configuration;
        }
    }

    fn see_version(&self, version: u64) {
        self.seen_version.set(self.seen_version.get().max(version));
    }

    /// Tells control what a device did; the configuration that follows is in force when this returns.
    pub(crate) async fn report(&self, device: Fid, evidence: DeviceEvidence) {
        // An unheard report changes nothing: the server sends the same evidence with its heartbeat.
        let _unheard = self.conf.report_device(device, evidence, self.request_deadline(Instant::NEVER)).await;
        self.fetch().await;
    }

    /// The layout of an object's units over `devices` targets. Errors: a shape that is not possible.
    pub(crate) fn layout(
        &self,
        object: ObjectId,
        devices: u32,
        (width, unit_bytes): (LayoutWidth, u32),
    ) -> Result<PoolLayout, ClientError> {
        PoolLayout::new(width, devices, unit_bytes).map_err(|error| ClientError::BadRecord {
            object,
            width,
            unit_bytes,
            reason: error.to_string(),
        })
    }

    /// The layout that says which devices hold an object's record. Its devices are the first ones of all, so that a target is a device index.
    pub(crate) fn record_layout(&self, object: ObjectId) -> Result<PoolLayout, ClientError> {
        let configuration = self.configuration.borrow().clone();
        let shape = (configuration.pool.width, configuration.pool.unit_bytes);
        self.layout(object, configuration.pools.first_devices, shape)
    }

    /// Who holds an object's record: K + 1 devices of the first pool version, whatever version its bytes lie in, or who stands for them.
    pub(crate) fn record_holders(&self, object: ObjectId) -> Result<Vec<RecordHolder>, ClientError> {
        let configuration = self.configuration.borrow().clone();
        let layout = self.record_layout(object)?;
        let slots = mapped_slots(&configuration.spares.slots);
        if slots.is_empty() {
            let targets = record_targets(&layout, object.fid()).into_iter();
            return Ok(targets.map(|device| RecordHolder { device, filling: SmallVec::new() }).collect());
        }
        let targets = record_and_spare_targets(&layout, object.fid());
        let replicas = layout.width().parity() + 1;
        let device_of = |replica: u32| targets[narrow(u64::from(replica))];
        let slot_of = |device: u32| slots.iter().find(|slot| slot.device == device);
        let mut holders = Vec::new();
        for replica in 0..replicas {
            let spares = replicas..replicas + layout.width().spare();
            let chain = stand_ins(replica, spares, device_of, |device| Some(slot_of(device)?.slot));
            let places = Places::of(chain.into_iter().map(|replica| {
                let device = device_of(replica);
                (replica, device, slot_of(device).map(|slot| slot.phase))
            }));
            for place in places.written {
                holders.push(RecordHolder { device: device_of(place), filling: places.filling.clone() });
            }
        }
        Ok(holders)
    }

    pub(crate) fn codec(&self, width: LayoutWidth) -> Rc<GroupCodec> {
        self.codecs.borrow_mut().entry(width).or_insert_with(|| Rc::new(GroupCodec::new(width))).clone()
    }

    /// Room for `bytes` in buffers, given back when the permit is dropped. More than all there is counts as all.
    pub(crate) async fn memory(&self, bytes: u64) -> Permit {
        let blocks = narrow(bytes.div_ceil(BLOCK_BYTES)).clamp(1, self.memory_blocks.max(1));
        self.memory.acquire(blocks).await
    }

    /// A buffer of at least `bytes` zeros (at most one unit), shared by everybody.
    pub(crate) async fn zeros(&self, bytes: usize) -> SharedBuffer {
        let kept = self.zeros.borrow().clone();
        if let Some(kept) = kept.filter(|kept| kept.len() >= bytes) {
            return kept.slice(0..bytes);
        }
        let mut buffer = self.locality.arena().alloc(bytes).await;
        buffer.fill(0);
        let zeros = buffer.freeze();
        *self.zeros.borrow_mut() = Some(zeros.clone());
        zeros
    }

    /// The device of a device index, or that there is none.
    pub(crate) fn device(&self, target: u32) -> Result<DeviceConfig, Fault> {
        self.configuration.borrow().target(target).cloned().ok_or(Fault::NoTarget)
    }

    /// Why reads should pass over a target: out of service, or silent a moment ago.
    pub(crate) fn reads_pass_over(&self, target: u32) -> Option<Fault> {
        match self.device(target) {
            Err(fault) => Some(fault),
            Ok(device) if !may_be_read(device.state) => Some(Fault::State(device.state)),
            Ok(_) => {
                let until = self.suspects.borrow().get(&target).copied()?;
                (self.now() < until).then_some(Fault::Suspect)
            }
        }
    }

    /// Sends the next read to a target even if it was silent.
    pub(crate) fn forgive(&self, target: u32) {
        self.suspects.borrow_mut().remove(&target);
    }

    /// What went wrong on a target, in words for an error.
    pub(crate) fn failure(&self, unit: Option<(u64, u32)>, target: u32, fault: Fault) -> UnitFailure {
        let (device, server) = match self.device(target) {
            Ok(device) => (device.device, device.endpoint),
            Err(_) => (Fid::default(), self.configuration.borrow().control),
        };
        UnitFailure { unit, device, server, fault }
    }

    /// One request to the server of a target, inside the windows. `bulk` is made once there is room.
    pub(crate) async fn call<F: fops::Fop>(
        &self,
        target: u32,
        make: impl AsyncFnOnce(&DeviceConfig) -> (F, Bulk),
        deadline: Instant,
    ) -> Result<Answer<F::Reply>, Fault> {
        let of_target = self
            .per_target
            .borrow_mut()
            .entry(target)
            .or_insert_with(|| Semaphore::new(limits::REQUESTS_PER_TARGET_MAX))
            .clone();
        let _of_target = of_target.acquire(1).await;
        let _of_all = self.requests.acquire(1).await;
        let device = self.device(target)?;
        if device.state == DeviceState::Detached {
            // Its server would say no; who has to have it waits, and looks at the configuration again.
            return Err(Fault::State(device.state));
        }
        let (fop, bulk) = make(&device).await;
        match self
            .rpc
            .call(
                device.endpoint,
                &fop,
                bulk,
                CallOptions::until(deadline).unreachable_max(limits::UNREACHABLE_MAX),
            )
            .await
        {
            Ok(answer) => {
                self.see_version(answer.config_version);
                self.suspects.borrow_mut().remove(&target);
                Ok(answer)
            }
            Err(error) => {
                let fault = Fault::Call(Arc::new(error));
                if let Some(fops::FopError::Stale { need, .. }) = fault.refusal() {
                    self.see_version(*need);
                }
                if fault.is_silence() {
                    self.suspects.borrow_mut().insert(target, self.now() + limits::SUSPECT_FOR);
                }
                Err(fault)
            }
        }
    }

    /// The same for a request that changes something: it carries the ticket of its hold or of the client, if there is one.
    pub(crate) async fn change<F: fops::Fop>(
        &self,
        target: u32,
        make: impl AsyncFnOnce(&DeviceConfig) -> (F, Bulk),
        deadline: Instant,
    ) -> Result<Answer<F::Reply>, Fault>
    where
        Ticketed<F>: fops::Fop<Reply = F::Reply>,
    {
        let ticket = match &self.hold {
            Some(hold) => {
                // Nothing leaves this side once it counts the lease as ended; what left before is refused by the fence.
                hold.check().map_err(|_| Fault::HoldLost)?;
                Some(hold.ticket())
            }
            None => self.ticket.get(),
        };
        let Some(ticket) = ticket else { return self.call(target, make, deadline).await };
        let make_ticketed = async |device: &DeviceConfig| {
            let (change, bulk) = make(device).await;
            (Ticketed { ticket, change }, bulk)
        };
        self.call(target, make_ticketed, deadline).await
    }

    /// Waits before another try; false if the deadline would pass.
    pub(crate) async fn wait_to_retry(&self, wait: &mut Duration, deadline: Instant) -> bool {
        if self.now() + *wait >= deadline {
            return false;
        }
        self.locality.sleep(*wait).await;
        *wait = (*wait * 2).min(limits::RETRY_WAIT_MAX);
        self.fetch().await;
        true
    }
}

/// True if a device in this state must acknowledge writes.
pub(crate) const fn is_in_service(state: DeviceState) -> bool {
    matches!(
        state,
        DeviceState::Unknown
            | DeviceState::Online
            | DeviceState::Transient
            | DeviceState::Detached
            | DeviceState::Repair
            | DeviceState::Rebalance
    )
}

/// True if a device in this state may have what is asked for.
const fn may_be_read(state: DeviceState) -> bool {
    matches!(state, DeviceState::Unknown | DeviceState::Online | DeviceState::Transient)
}

/// True if a device in this state has every record that it should: the absence of one means something.
pub(crate) const fn has_all_records(state: DeviceState) -> bool {
    is_in_service(state) && !matches!(state, DeviceState::Repair | DeviceState::Rebalance)
}
