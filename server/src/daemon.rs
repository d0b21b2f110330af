//! One locality's data services: starts them in order, and stops them in order.
//!
//! Start: network, configuration (which cluster is this, are these our devices), devices (recovery), handlers, registration.
//! Only then does the lease let requests in. Stop: no new requests, what runs is finished, heartbeats end, devices are closed with
//! a checkpoint. A process with several localities starts one `Server` in each, with the same process fid and epoch.
//! A device that fails its very opening with an I/O error does not keep the others from serving: it is reported and left out.
//! Thread: one locality. Start at [`Server::start`].

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use base::{Endpoint, Fid, Instant, Nid};
use faces::{
    About, ConfClient, Configuration, Copier, DeviceConfig, DeviceState, Heartbeat, LoadReporter, Registrant,
};
use fops::FopError;
use fops::admin::{DeviceFault, DeviceFaultReply, Ping, PingReply, Shutdown, ShutdownReply};
use fops::lock::Ticketed;
use futures_util::future::Either;
use rpc::{Fom, RpcConfig, RpcMachine};
use runtime::LocalityHandle;
use runtime::sync::Notify;
use spdk_stob::{Backend, Domain, FormatParams, StobError};
use verbs_net::{Fabric, Security, TmConfig, TransferMachine};

use crate::addition::is_new;
use crate::bug::Bug;
use crate::copy_machine::CopyMachine;
use crate::device::Device;
use crate::disks::{DiskSource, DiskTeller};
use crate::error::ServerError;
use crate::state::{State, Writer, is_out_of_service};
use crate::{component_service, disks, object_service, slots};

/// How long a server waits for control when it starts, where nobody chooses.
pub const START_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// What a server needs to start.
pub struct ServerConfig {
    /// Where this locality listens.
    pub endpoint: Endpoint,
    /// Further nids of this host: it listens there too, and peers learn of them.
    pub rails: Vec<Nid>,
    /// The process.
    pub process: Fid,
    /// The control daemon.
    pub control: Endpoint,
    /// Further control daemons with the same state, if there are several.
    pub further_controls: Vec<Endpoint>,
    /// How it proves what it is, and what it asks of others.
    pub security: Security,
    /// This start of the process, not 0; the same for all its localities.
    pub epoch: u64,
    /// The devices of this locality.
    pub devices: Vec<(Fid, Box<dyn Backend>)>,
    /// Opens the disk that stands in a device's place now, for `clovis device replace` and for devices that are new to the configuration and not among
    /// `devices`, also those that are added while the server runs; `None`: it has those of its start, and replaces none.
    pub disks: Option<DiskSource>,
    /// Told what becomes of a disk that comes while the server runs: the log's.
    pub on_disk: Option<DiskTeller>,
    /// Copies to this server's devices in repair (`client::copier`); `None`: this server copies to none.
    pub copier: Option<Copier>,
    /// True: a blank device is formatted. Without it only one that is new to the configuration, and only if there are `disks`; nothing else ever is.
    pub format: bool,
    /// How long to wait for control.
    pub start_timeout: Duration,
    /// What it says of itself.
    pub about: About,
    /// Limits of the rpc machine.
    pub rpc: RpcConfig,
    /// A bug on purpose, for the simulation.
    #[doc(hidden)]
    pub bug: Option<Bug>,
}

impl ServerConfig {
    /// A server with the default limits that formats nothing.
    #[must_use]
    pub fn new(
        endpoint: Endpoint,
        process: Fid,
        control: Endpoint,
        security: impl Into<Security>,
        epoch: u64,
        devices: Vec<(Fid, Box<dyn Backend>)>,
    ) -> ServerConfig {
        ServerConfig {
            endpoint,
            rails: Vec::new(),
            process,
            control,
            further_controls: Vec::new(),
            security: security.into(),
            epoch,
            devices,
            disks: None,
            on_disk: None,
            copier: None,
            format: false,
            start_timeout: START_TIMEOUT_DEFAULT,
            about: About::default(),
            rpc: RpcConfig::default(),
            bug: None,
        }
    }
}

/// A running server.
pub struct Server {
    state: Rc<State>,
    unopened: Vec<(Fid, StobError)>,
    copies: Option<CopyMachine>,
}

impl Server {
    /// Starts the services; registered and serving when it returns.
    ///
    /// Errors: the endpoint is taken, control does not answer within `start_timeout`, a device is not the configuration's, is
    /// foreign, truncated, or not formatted (and `format` is false).
    pub async fn start(
        locality: &LocalityHandle,
        fabric: &Fabric,
        config: ServerConfig,
    ) -> Result<Server, ServerError> {
        let deadline = locality.now() + config.start_timeout;
        let ServerConfig { process, control, epoch, .. } = config;
        let config_version = Rc::new(Cell::new(0));
        let rpc_config = RpcConfig {
            config_version: Rc::clone(&config_version),
            durable_slots: true,
            is_starting: true,
            ..config.rpc
        };
        let mut tm_config = TmConfig::new(config.endpoint, true, epoch, config.security, config_version);
        tm_config.rails = config.rails;
        let transfer_machine = TransferMachine::start(locality, fabric, tm_config)?;
        let rpc = RpcMachine::start(locality, transfer_machine, rpc_config);
        // Served from the first moment: until the state is there every request is told to come again. A client that knew the
        // server before must not take its start for a server that does not know the request.
        let slot = StateSlot::default();
        serve_all(&rpc, &slot);
        config.about.serve(&rpc, epoch);
        rpc.set_group(control, &config.further_controls);
        let conf = ConfClient::connect(&rpc, control);
        let configuration = conf.fetch(deadline).await?;
        if configuration.process(process).is_none() {
            return Err(ServerError::NotConfigured { process, control });
        }
        let mut devices = config.devices;
        if let Some(disks) = &config.disks {
            let new = new_devices(&configuration, (process, config.endpoint), &devices, disks)?;
            devices.extend(new);
        }
        // Nothing was ever stored on a new one; what is there all the same (another device, another cluster's) is refused.
        let may_format = |device: &DeviceConfig| config.format || (config.disks.is_some() && is_new(device));
        let (devices, unopened) =
            open_devices(locality, &configuration, process, devices, may_format).await?;
        let state = Rc::new(State {
            rpc,
            process,
            epoch,
            conf,
            devices: RefCell::new(devices),
            reports: RefCell::default(),
            heartbeat: RefCell::new(None),
            moved: Rc::default(),
            load: RefCell::new(None),
            bug: config.bug,
            reads: Cell::new(0),
            shutdown: Cell::new(false),
            shutdown_rung: Notify::new(),
        });
        *slot.borrow_mut() = Rc::downgrade(&state);
        register(&state, deadline).await?;
        state.rpc.begin_serving();
        // Only now: a request that comes again must find a server that can run it, not one that tells it to come later.
        state.rpc.resume_sessions(state.devices().iter().flat_map(|device| slots::read_all(&device.domain)));
        let forgetting = slots::forget(state.rpc.clone(), Rc::downgrade(&state));
        drop(locality.spawn("forget-slots", forgetting)); // it ends with the locality
        for (device, _) in &unopened {
            state.report_loss(*device);
        }
        if let Some(disks) = config.disks {
            let following = disks::follow(Rc::downgrade(&state), disks, config.on_disk);
            drop(locality.spawn("disks", following)); // it ends with the locality
        }
        let copies = config.copier.map(|copier| CopyMachine::start(&state, copier));
        Ok(Server { state, unopened, copies })
    }

    /// Where it serves.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        self.state.rpc.endpoint()
    }

    /// The process.
    #[must_use]
    pub fn process(&self) -> Fid {
        self.state.process
    }

    /// Devices that failed with an I/O error when they were opened: reported to control and not served.
    #[must_use]
    pub fn unopened(&self) -> &[(Fid, StobError)] {
        &self.unopened
    }

    /// The domain of a device, for statistics, traces and injected faults.
    #[must_use]
    pub fn domain(&self, device: Fid) -> Option<Domain> {
        self.state.devices.borrow().get(&device).map(|device| device.domain.clone())
    }

    /// The configuration in force here.
    #[must_use]
    pub fn configuration(&self) -> Option<Rc<Configuration>> {
        self.state.configuration()
    }

    /// True while its lease holds.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.state.check_serving().is_ok()
    }

    /// The rpc machine, for its statistics.
    #[must_use]
    pub fn rpc(&self) -> &RpcMachine {
        &self.state.rpc
    }

    /// Waits until somebody sent a `Shutdown` fop; then call [`Server::stop`].
    pub async fn shutdown_requested(&self) {
        while !self.state.shutdown.get() {
            self.state.shutdown_rung.notified().await;
        }
    }

    /// Refuses new requests (come again, or ask another server), finishes those that run within `RpcConfig::drain_within`, and closes the devices.
    ///
    /// Errors: the first device whose checkpoint failed (all are closed; nothing acknowledged is lost, its log has it), or requests that
    /// still ran when their time was over.
    pub async fn stop(self) -> Result<(), ServerError> {
        if let Some(copies) = self.copies {
            copies.stop().await;
        }
        let state = &self.state;
        let drained = state.rpc.drain().await;
        *state.heartbeat.borrow_mut() = None;
        *state.load.borrow_mut() = None;
        let mut outcome = Ok(());
        for device in state.devices() {
            let closed = device.domain.clone().close().await;
            // A device that was found lost cannot be closed in order, and control knows of it already.
            if device.lost.get() {
                continue;
            }
            if let (Ok(()), Err(source)) = (&outcome, closed) {
                outcome = Err(ServerError::Device { device: device.fid, source });
            }
        }
        outcome.and(drained.map_err(ServerError::Undrained))
    }
}

type OpenDevices = (BTreeMap<Fid, Rc<Device>>, Vec<(Fid, StobError)>);

/// What stands in the place of a device.
type Disk = (Fid, Box<dyn Backend>);

/// Disks of this locality's devices that are not in `given`, which are new to the configuration. Errors: none can be had; a device that is not new
/// has nothing in its place.
fn new_devices(
    configuration: &Configuration,
    (process, endpoint): (Fid, Endpoint),
    given: &[Disk],
    disks: &DiskSource,
) -> Result<Vec<Disk>, ServerError> {
    let ours = configuration.pool.devices.iter();
    let ours = ours.filter(|device| device.process == process && device.endpoint == endpoint);
    let mut new = Vec::new();
    for found in ours.filter(|device| given.iter().all(|(fid, _)| *fid != device.device)) {
        let device = found.device;
        if is_new(found) {
            let disk = disks(device, 0).map_err(|reason| ServerError::NoDisk { device, reason })?;
            new.push((device, disk));
        } else if !is_out_of_service(found.state) {
            let reason = "there is nothing in its place, and it has had bytes".to_owned();
            return Err(ServerError::NoDisk { device, reason });
        }
    }
    Ok(new)
}

async fn open_devices(
    locality: &LocalityHandle,
    configuration: &Configuration,
    process: Fid,
    backends: Vec<Disk>,
    may_format: impl Fn(&DeviceConfig) -> bool,
) -> Result<OpenDevices, ServerError> {
    let mut devices = BTreeMap::new();
    let mut unopened = Vec::new();
    for (fid, backend) in backends {
        if configuration.device(fid).is_none_or(|device| device.process != process) {
            return Err(ServerError::NotOurs { device: fid, process });
        }
        if devices.contains_key(&fid) || unopened.iter().any(|(other, _)| *other == fid) {
            return Err(ServerError::Doubled { device: fid });
        }
        let size_blocks = backend.geometry().size_blocks;
        let params = FormatParams { device: fid, cluster: configuration.cluster };
        let opened = if configuration.device(fid).is_some_and(&may_format) {
            Domain::open_or_format(locality, backend, params).await
        } else {
            Domain::open(locality, backend, Some(params)).await
        };
        match opened {
            Ok(domain) => {
                // One that is out, or does not have everything, may be another disk than the last server's.
                let is_whole = |found: &DeviceConfig| {
                    !is_out_of_service(found.state)
                        && !matches!(found.state, DeviceState::Repair | DeviceState::Rebalance)
                };
                let has_slots = configuration.device(fid).is_some_and(is_whole);
                devices.insert(fid, Rc::new(Device::new(fid, domain, size_blocks, has_slots)));
            }
            Err(error @ StobError::Device(_)) => unopened.push((fid, error)),
            // Nobody uses it: a blank disk in its place, or a broken one, keeps nobody else from serving.
            Err(error) if configuration.device(fid).is_some_and(|found| is_out_of_service(found.state)) => {
                unopened.push((fid, error));
            }
            Err(source) => return Err(ServerError::Device { device: fid, source }),
        }
    }
    Ok((devices, unopened))
}

async fn register(state: &Rc<State>, deadline: Instant) -> Result<(), ServerError> {
    let devices = state.registered();
    let registrant = Registrant { process: state.process, epoch: state.epoch, devices };
    // Weak: the heartbeat lives in the state.
    let weak = Rc::downgrade(state);
    let health = move || weak.upgrade().map_or_else(Vec::new, |state| state.health());
    let heartbeat = Heartbeat::start(&state.conf, registrant, health, deadline).await?;
    *state.heartbeat.borrow_mut() = Some(heartbeat);
    let reporter = LoadReporter::start(&state.conf, state.process, state.epoch, &state.moved);
    *state.load.borrow_mut() = Some(reporter);
    Ok(())
}

/// Where handlers find the state, once there is one. Weak: the machine owns its handlers, and the state owns the machine.
type StateSlot = Rc<RefCell<Weak<State>>>;

fn serve_all(rpc: &RpcMachine, slot: &StateSlot) {
    rpc.serve_net_faults();
    serve_change(rpc, slot, object_service::open);
    serve_change(rpc, slot, object_service::update);
    serve_change(rpc, slot, object_service::delete);
    serve(rpc, slot, object_service::list);
    serve(rpc, slot, object_service::forget);
    serve_change(rpc, slot, component_service::write);
    serve(rpc, slot, component_service::read);
    serve_change(rpc, slot, component_service::delete);
    serve(rpc, slot, component_service::punch);
    serve(
        rpc,
        slot,
        |state: Rc<State>, _fom, request: DeviceFault| async move { device_fault(&state, &request) },
    );
    serve(rpc, slot, |state: Rc<State>, _fom, request: Ping| async move {
        Ok(PingReply { payload: request.payload, epoch: state.epoch })
    });
    serve(rpc, slot, |state: Rc<State>, _fom, _request: Shutdown| async move {
        state.shutdown.set(true);
        state.shutdown_rung.notify_waiters();
        Ok(ShutdownReply)
    });
}

/// Sets or clears the fault rule. A lost device is evidence at once; clearing the rule does not take that back.
fn device_fault(state: &Rc<State>, request: &DeviceFault) -> Result<DeviceFaultReply, FopError> {
    let device = request.device;
    let found = state.open_device(device)?;
    found.domain.set_failed(request.failed);
    if request.failed && !found.lost.replace(true) {
        state.report_loss(device);
    }
    Ok(DeviceFaultReply)
}

/// Serves a change, with a ticket and without one.
fn serve_change<F, Handler, Answer>(rpc: &RpcMachine, slot: &StateSlot, handler: Handler)
where
    F: fops::Fop,
    Ticketed<F>: fops::Fop<Reply = F::Reply>,
    Handler: Fn(Rc<State>, (Fom, Writer), F) -> Answer + Copy + 'static,
    Answer: Future<Output = Result<F::Reply, FopError>> + 'static,
{
    serve(rpc, slot, move |state, fom, request: F| handler(state, (fom, Writer::FREE), request));
    serve(rpc, slot, move |state: Rc<State>, fom, request: Ticketed<F>| async move {
        let writer = state.admit_ticket(&fom, request.ticket)?;
        handler(state, (fom, writer), request.change).await
    });
}

/// Serves one fop with a handler that sees the state, as long as there is one.
fn serve<F, Handler, Answer>(rpc: &RpcMachine, slot: &StateSlot, handler: Handler)
where
    F: fops::Fop,
    Handler: Fn(Rc<State>, Fom, F) -> Answer + 'static,
    Answer: Future<Output = Result<F::Reply, FopError>> + 'static,
{
    let slot = Rc::clone(slot);
    rpc.serve(move |fom: Fom, request: F| match slot.borrow().upgrade() {
        Some(state) => Either::Left(handler(state, fom, request)),
        None => {
            let stopped = FopError::NotServing { reason: "the server is starting or stopped".to_owned() };
            Either::Right(std::future::ready(Err(stopped)))
        }
    });
}
