//! What every handler of a server shares: its devices, its right to serve, and where evidence goes.
//!
//! **Invariant**: a request passes [`State::admit`] before it reads, and [`State::check_serving`] again before it changes
//! anything, so a server whose lease ended changes nothing. **Invariant**: a detached device is neither read nor changed (docs/ha.md#taking-a-device-out). **Invariant**: a change with a ticket passes [`State::admit_ticket`] first and
//! [`Writer::begin`] where the lease is checked again, so one that is fenced meanwhile changes nothing (docs/locks.md). The rule for old and new configuration versions is that of
//! docs/ha.md#configuration-versions-and-old-requests. **Invariant**: a change that may have run on a device before a restart, and whose record went with that
//! device, is told so and does not run (docs/wire.md#over-a-restart-of-the-server). Thread: one locality. Start at [`State::admit`].

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use base::{BlockExtent, Fid};
use faces::{
    ConfClient, Configuration, DeviceState, Heartbeat, LoadReporter, MovedBytes, Pass, SparePhase, SpareSlot,
};
use fops::conf::{DeviceEvidence, DeviceHealth, RegisteredDevice};
use fops::lock::Ticket;
use fops::{FopError, codec};
use rpc::{Fom, Phase, RpcMachine, ServiceState};
use runtime::Task;
use runtime::sync::Notify;
use spdk_stob::{Domain, StobError, Transaction};

use crate::bug::Bug;
use crate::device::Device;
use crate::slots::SlotChange;

/// How long a report of a lost device is tried; after that the heartbeat carries it, or for one that is not open another report, as much later.
const REPORT_TIME: Duration = Duration::from_secs(2);

/// The ticket of a change, let in by the fences; `None`: the requester holds no lock, and fences do not concern it.
pub(crate) struct Writer(Option<Pass>);

impl Writer {
    /// A change without a ticket.
    pub(crate) const FREE: Writer = Writer(None);

    /// The effect begins. Error: its owner was fenced since it was let in.
    pub(crate) fn begin(&self) -> Result<(), FopError> {
        self.0.as_ref().map_or(Ok(()), Pass::begin)
    }
}

/// The state of a server's locality.
pub(crate) struct State {
    pub(crate) rpc: RpcMachine,
    pub(crate) process: Fid,
    pub(crate) epoch: u64,
    pub(crate) conf: ConfClient,
    /// Those that are open: one whose disk is being replaced is not.
    pub(crate) devices: RefCell<BTreeMap<Fid, Rc<Device>>>,
    /// What control is being told of devices that are lost: the last report of each.
    pub(crate) reports: RefCell<BTreeMap<Fid, Task>>,
    /// None until registered.
    pub(crate) heartbeat: RefCell<Option<Heartbeat>>,
    /// What component reads and writes moved, for whoever watches the cluster.
    pub(crate) moved: Rc<MovedBytes>,
    /// None until registered.
    pub(crate) load: RefCell<Option<LoadReporter>>,
    /// A bug on purpose, for the simulation.
    pub(crate) bug: Option<Bug>,
    /// Reads so far, for [`Bug::BufferLeaked`].
    pub(crate) reads: Cell<u64>,
    pub(crate) shutdown: Cell<bool>,
    pub(crate) shutdown_rung: Notify,
}

impl State {
    /// May this request run on `device`? The device, if so.
    pub(crate) async fn admit(&self, fom: &Fom, device: Fid, access: Access) -> Result<Rc<Device>, FopError> {
        if access == Access::Change && fom.may_have_run() && self.lacks_slots(device) {
            return Err(fom.doubt());
        }
        fom.phase(Phase::Admit);
        self.check_serving()?;
        if fom.config_version() > self.conf.version() {
            self.conf.refresh_if_newer(fom.config_version(), fom.deadline()).await.map_err(|error| {
                FopError::NotServing {
                    reason: format!("configuration {} is not known here yet: {error}", fom.config_version()),
                }
            })?;
            self.check_serving()?;
        }
        self.check_knows(fom, access)?;
        let found = self.open_device(device)?;
        self.check_in_service(&found, fom.config_version(), access)?;
        Ok(found)
    }

    /// Those that are open.
    pub(crate) fn devices(&self) -> Vec<Rc<Device>> {
        self.devices.borrow().values().map(Rc::clone).collect()
    }

    /// Errors: not a device of this locality, or one whose disk is being replaced.
    pub(crate) fn open_device(&self, device: Fid) -> Result<Rc<Device>, FopError> {
        if let Some(found) = self.devices.borrow().get(&device) {
            return Ok(Rc::clone(found));
        }
        if !self.conf.current().is_some_and(|configuration| self.is_ours(&configuration, device)) {
            return Err(FopError::WrongServer { device });
        }
        Err(FopError::NotServing { reason: format!("the disk of device {device} is not open here") })
    }

    /// True of a device of this locality whose records of slots nobody has read: it did not open, or has another disk. What it was asked before the restart
    /// may have run there.
    fn lacks_slots(&self, device: Fid) -> bool {
        match self.devices.borrow().get(&device) {
            Some(found) => !found.has_slots,
            None => self.conf.current().is_some_and(|configuration| self.is_ours(&configuration, device)),
        }
    }

    /// True if a configuration gives the device to this locality.
    pub(crate) fn is_ours(&self, configuration: &Configuration, device: Fid) -> bool {
        let found = configuration.device(device);
        found.is_some_and(|found| found.process == self.process && found.endpoint == self.rpc.endpoint())
    }

    /// A change of somebody who takes a device for failed that takes writes again would go past it, and a read of somebody who looks for a unit in a
    /// spare one may find another's there. Error: `Stale`.
    fn check_knows(&self, fom: &Fom, access: Access) -> Result<(), FopError> {
        let need = self.conf.current().map_or(0, |configuration| match access {
            Access::Read => configuration.spares.reads_from,
            Access::Change => configuration.pool.changes_from.max(configuration.spares.reads_from),
        });
        let have = fom.config_version();
        if have < need { Err(FopError::Stale { have, need }) } else { Ok(()) }
    }

    /// May this server serve? Errors: shutting down, not registered yet, or its lease ended.
    pub(crate) fn check_serving(&self) -> Result<(), FopError> {
        let no = |reason: &str| Err(FopError::NotServing { reason: reason.to_owned() });
        if self.rpc.service_state() >= ServiceState::Draining {
            return no("the server is shutting down: come again, or ask another server");
        }
        match self.heartbeat.borrow().as_ref() {
            None => no("the server is not registered yet"),
            Some(_) if self.bug == Some(Bug::LeaseUnchecked) => Ok(()),
            Some(heartbeat) if !heartbeat.lease_holds(self.rpc.locality().now()) => {
                no("the server's lease ended: it does not hear from control")
            }
            Some(_) => Ok(()),
        }
    }

    /// Lets a change with a ticket in. Errors: not serving, fenced; or in doubt, where neither may be said of one that may have run.
    pub(crate) fn admit_ticket(&self, fom: &Fom, ticket: Ticket) -> Result<Writer, FopError> {
        let entered = self.check_serving().and_then(|()| match self.heartbeat.borrow().as_ref() {
            Some(heartbeat) => heartbeat.fences().enter(ticket).map(|pass| Writer(Some(pass))),
            None => Err(FopError::NotServing { reason: "the server is not registered yet".to_owned() }),
        });
        let lacks_some = || {
            let configuration = self.conf.current();
            let devices = configuration.iter().flat_map(|found| &found.pool.devices);
            devices.into_iter().any(|found| self.lacks_slots(found.device))
        };
        entered.map_err(|error| if fom.may_have_run() && lacks_some() { fom.doubt() } else { error })
    }

    /// Makes a request's effect durable, if the lease still holds and `writer` is not fenced. `reply`: what is answered once it is; it goes into the slot's
    /// record, in the same transaction. `None`: this is not the last part of the effect.
    pub(crate) async fn commit<R: codec::Encode>(
        self: &Rc<State>,
        (fom, writer): (&Fom, &Writer),
        device: &Device,
        mut transaction: Transaction,
        reply: Option<&R>,
    ) -> Result<(), FopError> {
        self.begin_change((fom, writer), device)?;
        fom.phase(Phase::Commit);
        if let Some(reply) = reply {
            fom.record_in(&mut SlotChange(&mut transaction), reply)?;
        }
        device.domain.commit(transaction).await.map_err(|error| self.refuse(device, &error, &[]))?;
        if reply.is_some() {
            fom.durable();
        }
        Ok(())
    }

    /// Looks again, right before something is changed. Errors: the lease ended, the device is out, the requester's configuration is too old,
    /// `writer` is fenced.
    pub(crate) fn begin_change(
        &self,
        (fom, writer): (&Fom, &Writer),
        device: &Device,
    ) -> Result<(), FopError> {
        self.check_serving()?;
        self.check_attached(device)?;
        self.check_knows(fom, Access::Change)?;
        writer.begin()
    }

    /// Error: this copy does not free spare units (any more), as far as is known here: the slot may be another device's by now. Looked at right before
    /// something is freed; who writes for another device knows a newer configuration, and is let in only once that is known here too.
    pub(crate) fn check_freeing(&self, job: u32) -> Result<(), FopError> {
        let configuration = self.conf.current();
        let is_freeing = |slot: &SpareSlot| slot.job == job && slot.phase == SparePhase::Freeing;
        if configuration.is_some_and(|configuration| configuration.spares.slots.iter().any(is_freeing)) {
            return Ok(());
        }
        Err(FopError::BadRequest { reason: format!("copy {job} does not free spare units now") })
    }

    /// Error: an operator took the device out. Whoever asked waits, or rebuilds: nothing goes past it.
    fn check_attached(&self, device: &Device) -> Result<(), FopError> {
        let configuration = self.conf.current();
        let found = configuration.as_ref().and_then(|configuration| configuration.device(device.fid));
        if found.is_some_and(|found| found.state == DeviceState::Detached) {
            let fid = device.fid;
            let reason =
                format!("an operator detached device {fid} (`clovis device attach {fid}` takes it back)");
            return Err(FopError::NotServing { reason });
        }
        Ok(())
    }

    fn check_in_service(
        &self,
        device: &Device,
        requester_version: u64,
        access: Access,
    ) -> Result<(), FopError> {
        self.check_attached(device)?;
        let Some(configuration) = self.conf.current() else { return Ok(()) };
        let state = configuration.device(device.fid).map(|device| device.state);
        // In repair, or on its way back from spare units, it takes changes, and a read would find what has not been copied yet missing.
        let is_out = match state {
            Some(DeviceState::Repair | DeviceState::Rebalance) => access == Access::Read,
            state => state.is_some_and(is_out_of_service),
        };
        if !is_out {
            device.out_of_service_since.set(None);
            return Ok(());
        }
        let since = device.out_of_service_since.get().unwrap_or(configuration.version);
        device.out_of_service_since.set(Some(since));
        if requester_version < since {
            return Err(FopError::Stale { have: requester_version, need: since });
        }
        let word = state.map_or("", DeviceState::word);
        let reason = format!("it is {word} since configuration {since}");
        Err(FopError::Device { device: device.fid, reason })
    }

    /// True if a device is not open here and the configuration does not know: writes wait for it.
    fn is_missed(&self, device: Fid) -> bool {
        let configuration = self.conf.current();
        let found = configuration.as_ref().and_then(|configuration| configuration.device(device));
        found.is_some_and(|found| !is_out_of_service(found.state))
            && !self.devices.borrow().contains_key(&device)
    }

    /// The configuration in force here.
    pub(crate) fn configuration(&self) -> Option<Rc<Configuration>> {
        self.conf.current()
    }

    /// What a registration carries.
    pub(crate) fn registered(&self) -> Vec<RegisteredDevice> {
        let endpoint = self.rpc.endpoint();
        self.devices.borrow().values().map(|device| device.registered(endpoint)).collect()
    }

    /// Takes a device in that was opened while the server runs, and registers it.
    pub(crate) fn take_in(&self, fid: Fid, domain: Domain, size_blocks: u64) {
        // Whatever is still being said of the disk before would be taken for this one's once control knows of it.
        if let Some(report) = self.reports.borrow_mut().remove(&fid) {
            report.cancel();
        }
        self.devices.borrow_mut().insert(fid, Rc::new(Device::new(fid, domain, size_blocks, false)));
        if let Some(heartbeat) = self.heartbeat.borrow().as_ref() {
            heartbeat.register_again(self.registered());
        }
    }

    /// What every heartbeat carries.
    pub(crate) fn health(&self) -> Vec<DeviceHealth> {
        self.devices.borrow().values().map(|device| device.health()).collect()
    }

    /// Turns an error of a domain into the answer; the first proof of loss is reported to control at once.
    pub(crate) fn refuse(
        self: &Rc<State>,
        device: &Device,
        error: &StobError,
        extents: &[BlockExtent],
    ) -> FopError {
        let (answer, newly_lost) = device.note(error, extents);
        if newly_lost {
            self.report_loss(device.fid);
        }
        answer
    }

    /// Tells control that a device is lost; the request that saw it does not wait for that.
    pub(crate) fn report_loss(self: &Rc<State>, device: Fid) {
        let task = self.rpc.locality().spawn("report-device", report(Rc::downgrade(self), device));
        self.reports.borrow_mut().insert(device, task);
    }
}

/// True for the states in which writes go past a device: nobody uses what stands there before it is replaced.
pub(crate) fn is_out_of_service(state: DeviceState) -> bool {
    matches!(state, DeviceState::Failed | DeviceState::Repaired)
}

/// What a request wants of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Change,
}

async fn report(state: Weak<State>, device: Fid) {
    loop {
        let Some(alive) = state.upgrade() else { return };
        let locality = alive.rpc.locality().clone();
        let deadline = locality.now() + REPORT_TIME;
        if let Ok(version) = alive.conf.report_device(device, DeviceEvidence::IoError, deadline).await {
            // Known here now, so requests with an older configuration are told so; else the next heartbeat brings it.
            let _refreshed = alive.conf.refresh_if_newer(version, deadline).await;
            return;
        }
        if alive.devices.borrow().contains_key(&device) {
            // The heartbeat says `failed` until control has heard it.
            if let Some(heartbeat) = alive.heartbeat.borrow().as_ref() {
                heartbeat.beat_now();
            }
            return;
        }
        drop(alive);
        // No heartbeat tells of one that is not open.
        locality.sleep(REPORT_TIME).await;
        if !state.upgrade().is_some_and(|alive| alive.is_missed(device)) {
            return;
        }
    }
}
