//! What every handler of a server shares: its devices, its right to serve, and where evidence goes.
//!
//! **Invariant**: a request passes [`State::admit`] before it reads, and [`State::check_serving`] again before it changes
//! anything, so a server whose lease ended changes nothing. **Invariant**: a detached device is neither read nor changed (docs/ha.md#taking-a-device-out). **Invariant**: a change with a ticket passes [`State::admit_ticket`] first and
//! [`Writer::begin`] where the lease is checked again, so one that is fenced meanwhile changes nothing (docs/locks.md). The rule for old and new configuration versions is that of
//! docs/ha.md#configuration-versions-and-old-requests. Thread: one locality. Start at [`State::admit`].

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use base::{BlockExtent, Fid};
use faces::{ConfClient, Configuration, DeviceState, Heartbeat, LoadReporter, MovedBytes, Pass};
use fops::conf::{DeviceEvidence, DeviceHealth};
use fops::lock::Ticket;
use fops::{FopError, codec};
use rpc::{Fom, Phase, RpcMachine, ServiceState};
use runtime::sync::Notify;
use spdk_stob::{StobError, Transaction};

use crate::bug::Bug;
use crate::device::Device;
use crate::slots::SlotChange;

/// How long a report of a lost device is tried; after that the heartbeat carries it.
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
    pub(crate) devices: BTreeMap<Fid, Rc<Device>>,
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
    pub(crate) async fn admit(&self, fom: &Fom, device: Fid) -> Result<Rc<Device>, FopError> {
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
        let found = self.devices.get(&device).ok_or(FopError::WrongServer { device })?;
        self.check_in_service(found, fom.config_version())?;
        Ok(Rc::clone(found))
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

    /// Lets a change with a ticket in. Errors: not serving, fenced.
    pub(crate) fn admit_ticket(&self, ticket: Ticket) -> Result<Writer, FopError> {
        self.check_serving()?;
        match self.heartbeat.borrow().as_ref() {
            Some(heartbeat) => heartbeat.fences().enter(ticket).map(|pass| Writer(Some(pass))),
            None => Err(FopError::NotServing { reason: "the server is not registered yet".to_owned() }),
        }
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
        self.check_serving()?;
        self.check_attached(device)?;
        writer.begin()?;
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

    fn check_in_service(&self, device: &Device, requester_version: u64) -> Result<(), FopError> {
        self.check_attached(device)?;
        let Some(configuration) = self.conf.current() else { return Ok(()) };
        let state = configuration.device(device.fid).map(|device| device.state);
        if !state.is_some_and(is_out_of_service) {
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

    /// The configuration in force here.
    pub(crate) fn configuration(&self) -> Option<Rc<Configuration>> {
        self.conf.current()
    }

    /// What every heartbeat carries.
    pub(crate) fn health(&self) -> Vec<DeviceHealth> {
        self.devices.values().map(|device| device.health()).collect()
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
        self.rpc.locality().spawn("report-device", report(Rc::downgrade(self), device));
    }
}

/// True for the states in which writes go past a device.
pub(crate) fn is_out_of_service(state: DeviceState) -> bool {
    matches!(state, DeviceState::Failed | DeviceState::Repair | DeviceState::Repaired)
}

async fn report(state: Weak<State>, device: Fid) {
    let Some(state) = state.upgrade() else { return };
    let deadline = state.rpc.locality().now() + REPORT_TIME;
    match state.conf.report_device(device, DeviceEvidence::IoError, deadline).await {
        Ok(version) => {
            // Known here now, so requests with an older configuration are told so; else the next heartbeat brings it.
            let _refreshed = state.conf.refresh_if_newer(version, deadline).await;
        }
        Err(_) => {
            // The heartbeat says `failed` until control has heard it.
            if let Some(heartbeat) = state.heartbeat.borrow().as_ref() {
                heartbeat.beat_now();
            }
        }
    }
}
