//! The nodes of a simulated cluster: each one a locality with the real code of control, a server or a client, and what survives it.
//!
//! **Invariant**: what a crash takes away is in [`Life`], all of it; what survives (platters, names, the number of starts) is in
//! [`Node`]. A start that fails is seen by the world, which ends the node and starts it again, as a supervisor would.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::{Endpoint, Fid, Instant};
use client::{Client, ClientConfig};
use control::{Control, ControlConfig, ControlError, MemberConfig};
use faces::Configuration;
use rpc::{RpcConfig, RpcMachine};
use runtime::clock::{DriftingClock, SimulatedClock};
use runtime::{Arena, ArenaConfig, Counters, Locality, LocalityConfig, Turn};
use server::{Server, ServerConfig, ServerError};
use spdk_stob::{Domain, SimDisk, StobError};
use verbs_net::{Fabric, SimArrivals, SimFabric, Token};

use crate::cluster_file::{Acknowledged, ClusterText, Operator};
use crate::keys::KeyWorker;
use crate::mutation::{MutatedBackend, Mutation};
use crate::oracle::Oracle;
use crate::registers::RegisterWorker;
use crate::workload::Worker;

/// Buffers of one node.
const ARENA_BYTES: u64 = 48 << 20;
/// Lease of the simulated cluster.
pub const LEASE: Duration = Duration::from_millis(600);
/// Longest pause of a client between two operations on keys.
const KEYS_PAUSE_MAX: Duration = Duration::from_millis(150);
/// Logs of several control daemons are cut this soon, so that one that was away needs a copy of the state.
const LOG_ENTRIES_MAX: usize = 16;
/// What the number of a client is moved by, as owner of locks that it takes from single control daemons.
const DIRECT_OWNER: usize = 64;
/// Longest pause of one that asks single control daemons.
const DIRECT_PAUSE_MAX: Duration = Duration::from_millis(40);
/// How long a client's operation may take.
pub const OP_TIMEOUT: Duration = Duration::from_secs(4);

/// A device: its platters survive the node.
pub struct SimDevice {
    pub fid: Fid,
    pub disk: SimDisk,
    /// Which of its server's localities owns it.
    pub seat: usize,
}

/// Disks by the device that they are for.
type NewDisks = Rc<RefCell<BTreeMap<Fid, SimDisk>>>;

/// What a node is.
pub enum Role {
    /// `number`: among several.
    Control {
        number: u64,
        disk: SimDisk,
    },
    /// `seats`: where each of its localities listens.
    Server {
        process: Fid,
        seats: Vec<Endpoint>,
        devices: Vec<SimDevice>,
    },
    Client {
        workers: usize,
        think_max: Duration,
        read_verify: bool,
    },
}

/// What a node's tasks leave for the world to see.
#[derive(Default)]
pub struct Slot {
    pub control: RefCell<Option<Control>>,
    pub server: RefCell<Option<Server>>,
    pub client: RefCell<Option<Client>>,
    /// Why the start failed, and whether nothing excuses it.
    pub failed: RefCell<Option<(String, bool)>>,
    pub is_up: Cell<bool>,
    pub is_stopping: Cell<bool>,
    pub is_stopped: Cell<bool>,
}

impl Slot {
    /// Its rpc machine, if it is up.
    pub fn rpc(&self) -> Option<RpcMachine> {
        let rpc = self.server.borrow().as_ref().map(|server| server.rpc().clone());
        let rpc = rpc.or_else(|| self.control.borrow().as_ref().map(|control| control.rpc().clone()));
        rpc.or_else(|| self.client.borrow().as_ref().map(|client| client.rpc().clone()))
    }
}

/// One locality of a running node, with what is its own: an endpoint, devices, an rpc machine and its ADDB. A server may have several; whoever
/// else there is has one.
pub struct Seat {
    pub slot: Rc<Slot>,
    pub locality: Locality,
    /// What its last turn said, in its own time.
    next_deadline: Option<Instant>,
    /// The same in true time, as its clock runs now.
    due: Instant,
}

impl Seat {
    /// One turn at `now`, which `clock` shows in its own way.
    fn turn(&mut self, now: Instant, clock: DriftingClock) -> Turn {
        let turn = self.locality.turn(clock.shows(now));
        self.next_deadline = turn.next_deadline;
        self.set_clock(clock);
        turn
    }

    /// Its clock runs like this from now on.
    fn set_clock(&mut self, clock: DriftingClock) {
        self.due = self.next_deadline.map_or(Instant::NEVER, |at| clock.first_time_of(at));
    }

    fn is_serving(&self) -> bool {
        self.slot.server.borrow().as_ref().is_some_and(Server::is_serving)
    }
}

/// A running node: all of its localities start and end together.
pub struct Life {
    pub seats: Vec<Seat>,
}

impl Life {
    /// The only locality of a client or of control.
    pub fn first(&self) -> &Seat {
        self.seats.first().expect("every node has a locality")
    }
}

/// See the module head.
pub struct Node {
    pub name: String,
    pub endpoint: Endpoint,
    /// Everything on this machine that talks: of each locality of a server it and its copier, of others it.
    pub endpoints: Vec<Endpoint>,
    arrivals: Vec<SimArrivals>,
    pub role: Role,
    pub life: Option<Life>,
    pub starts: u64,
    /// Nobody starts it: it is not taken in yet, or not any more.
    pub is_out: bool,
    /// Its devices were formatted: from now on a blank one is a loss.
    pub was_up: bool,
    pub last_failure: Option<String>,
    /// Its machine's clock: survives the node, as a machine's does.
    pub clock: DriftingClock,
    /// Its thread does nothing before then, in true time: it is paused, or rests after a turn.
    pub held_until: Instant,
    /// How long it rests after each turn in which it did something.
    pub rest: Duration,
    /// Disks that an operator put in the places of others while it runs.
    pub new_disks: NewDisks,
}

/// Where the copy machine of a server has its client: on the same machine.
pub fn copier_endpoint(of: Endpoint) -> Endpoint {
    verbs_net::dynamic_endpoint(of.nid, 500, of.tmid)
}

/// What every start needs.
pub struct Surroundings<'a> {
    pub index: usize,
    pub fabric: &'a SimFabric,
    pub oracle: &'a Rc<RefCell<Oracle>>,
    pub configuration: &'a Configuration,
    /// Where the control daemons listen, by their number from 1 on.
    pub controls: &'a [Endpoint],
    /// So many of them found the cluster; another one joins them later.
    pub founders: usize,
    /// What operators make the cluster file of, where they change it.
    pub cluster_text: Option<&'a Rc<ClusterText>>,
    /// And whether they do all the time.
    pub is_file_changed: bool,
    /// What was acknowledged to them.
    pub acknowledged: &'a Rc<RefCell<Acknowledged>>,
    /// Sessions that a control daemon has room for, if they are few.
    pub sessions_max: Option<usize>,
    pub mutation: Option<Mutation>,
    pub seed: u64,
    pub epoch: u64,
    pub stop_work: &'a Rc<Cell<bool>>,
    /// True time.
    pub clock: &'a Rc<SimulatedClock>,
    /// Operations that clients may begin in all.
    pub operations_max: u64,
    /// And in a second.
    pub rate_max: Option<u64>,
    pub are_objects_small: bool,
}

impl Surroundings<'_> {
    fn further_controls(&self) -> Vec<Endpoint> {
        self.controls.iter().copied().filter(|control| *control != self.configuration.control).collect()
    }

    /// In a third of the seeds bulk of up to two blocks travels inside of its item, as over tcp; the seeded bugs are looked for without.
    fn inline_bytes(&self) -> Option<usize> {
        (self.mutation.is_none() && self.seed % 3 == 2).then_some(2 * 4096)
    }
}

/// The credential of every simulated cluster.
pub fn token() -> Token {
    Token::new([0x5a; 32])
}

impl Node {
    /// A node that is not started, on a machine whose clock is `ahead` of true time.
    pub fn new(name: String, endpoint: Endpoint, role: Role, ahead: Duration) -> Node {
        let endpoints = match &role {
            Role::Server { seats, .. } => seats.iter().flat_map(|at| [*at, copier_endpoint(*at)]).collect(),
            _ => vec![endpoint],
        };
        Node {
            name,
            endpoint,
            arrivals: Vec::new(),
            endpoints,
            role,
            life: None,
            starts: 0,
            is_out: false,
            was_up: false,
            last_failure: None,
            clock: DriftingClock::ahead_by(ahead),
            held_until: Instant::ZERO,
            rest: Duration::ZERO,
            new_disks: Rc::default(),
        }
    }

    /// Its machine stands in this net from now on.
    pub fn join(&mut self, fabric: &SimFabric) {
        self.arrivals = self.endpoints.iter().map(|at| fabric.arrivals(*at)).collect();
        self.set_clock(fabric, self.clock);
    }

    /// Its machine's clock is this one from now on.
    pub fn set_clock(&mut self, fabric: &SimFabric, clock: DriftingClock) {
        self.clock = clock;
        self.endpoints.iter().for_each(|at| fabric.set_clock(*at, clock));
        self.life.iter_mut().flat_map(|life| &mut life.seats).for_each(|seat| seat.set_clock(clock));
    }

    /// Localities of it while it lives.
    pub fn seat_count(&self) -> usize {
        match &self.role {
            Role::Server { seats, .. } => seats.len(),
            _ => 1,
        }
    }

    /// When a locality has to be turned, in true time, as things stand at `now`; [`Instant::NEVER`]: not before something happens elsewhere.
    ///
    /// As a sleeping thread: it wakes for its deadline, for a packet, or because somebody woke it.
    pub fn due(&self, seat: usize, now: Instant) -> Instant {
        let Some(life) = &self.life else { return Instant::NEVER };
        if self.held_until > now {
            return self.held_until; // it looks again when it is let go, whatever came meanwhile
        }
        let of_seat = &life.seats[seat];
        if of_seat.locality.is_woken() {
            return now;
        }
        self.arrivals_of(seat).iter().fold(of_seat.due, |due, arrivals| due.min(arrivals.next()))
    }

    /// Turns a locality, if the node lives.
    pub fn turn(&mut self, seat: usize, now: Instant) -> Option<Turn> {
        Some(self.life.as_mut()?.seats[seat].turn(now, self.clock))
    }

    fn arrivals_of(&self, seat: usize) -> &[SimArrivals] {
        let each = self.arrivals.len() / self.seat_count();
        &self.arrivals[seat * each..(seat + 1) * each]
    }

    /// True if a locality says now that its lease holds; that of `device`, or any. It may sleep: what it would say now is what counts,
    /// and not what it thought when it last looked at its clock. What is held does nothing, and looks at its lease again before it does.
    pub fn is_serving(&mut self, now: Instant, device: Option<Fid>) -> bool {
        if self.held_until > now {
            return false;
        }
        let seat = self.device(device).map(|device| device.seat);
        let asked = (0..self.seat_count()).filter(|index| seat.is_none_or(|seat| seat == *index));
        asked.into_iter().any(|seat| {
            self.turn(seat, now);
            self.life.as_ref().is_some_and(|life| life.seats[seat].is_serving())
        })
    }

    fn device(&self, fid: Option<Fid>) -> Option<&SimDevice> {
        match &self.role {
            Role::Server { devices, .. } => devices.iter().find(|device| Some(device.fid) == fid),
            _ => None,
        }
    }

    /// A packet is under way to one of its copiers.
    pub fn is_copying(&self) -> bool {
        let copiers = self.arrivals.iter().skip(1).step_by(2);
        copiers.into_iter().any(|arrivals| arrivals.next() != Instant::NEVER)
    }

    /// What its localities left to see, if it lives.
    pub fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.life.iter().flat_map(|life| &life.seats).map(|seat| &*seat.slot)
    }

    /// That of the only locality of a client or of control.
    pub fn slot(&self) -> Option<&Slot> {
        self.slots().next()
    }

    pub fn is_up(&self) -> bool {
        self.life.is_some() && self.slots().all(|slot| slot.is_up.get())
    }

    /// It is up, or is not to be.
    pub fn is_in_order(&self) -> bool {
        self.is_out || self.is_up()
    }

    /// It is down, and is not to be.
    pub fn is_missing(&self) -> bool {
        self.life.is_none() && !self.is_out
    }

    /// The rpc machines of its localities that are up.
    pub fn rpcs(&self) -> Vec<RpcMachine> {
        self.slots().filter_map(Slot::rpc).collect()
    }

    /// The domain of a device, while it is open.
    pub fn domain(&self, device: Fid) -> Option<Domain> {
        self.slots().find_map(|slot| slot.server.borrow().as_ref()?.domain(device))
    }

    pub fn disks(&self) -> Vec<&SimDisk> {
        match &self.role {
            Role::Control { disk, .. } => vec![disk],
            Role::Server { devices, .. } => devices.iter().map(|device| &device.disk).collect(),
            Role::Client { .. } => Vec::new(),
        }
    }

    /// Starts a new incarnation. The node must be down.
    pub fn start(&mut self, around: &Surroundings<'_>) {
        self.starts += 1;
        let seats = (0..self.seat_count()).map(|seat| self.start_seat(seat, around)).collect();
        self.life = Some(Life { seats });
    }

    fn start_seat(&self, seat: usize, around: &Surroundings<'_>) -> Seat {
        let config = LocalityConfig {
            index: u32::try_from(seat).expect("few localities"),
            name: self.name.clone(),
            seed: around.seed ^ around.epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (seat as u64) << 56,
            counters: Arc::new(Counters::default()),
            arena: Arena::new(ArenaConfig { capacity_bytes: ARENA_BYTES })
                .expect("address space for a simulated node"),
            crowd: None,
        };
        let mut locality = Locality::new(config);
        // The locality's time begins now, not at zero.
        locality.turn(self.clock.shows(around.clock.now()));
        let slot = Rc::new(Slot::default());
        match &self.role {
            Role::Control { number, disk } => {
                start_control(&locality, &slot, (*number, disk), !self.was_up, around);
            }
            Role::Server { process, seats, devices } => {
                let own = devices.iter().filter(|device| device.seat == seat).collect();
                let devices = (own, Rc::clone(&self.new_disks));
                start_server(&locality, &slot, (seats[seat], *process), devices, !self.was_up, around);
            }
            Role::Client { workers, think_max, read_verify } => {
                start_client(&locality, &slot, self.endpoint, (*workers, *think_max, *read_verify), around);
            }
        }
        Seat { slot, locality, next_deadline: None, due: Instant::ZERO }
    }
}

fn backend(disk: &SimDisk, mutation: Option<Mutation>) -> Box<MutatedBackend> {
    Box::new(MutatedBackend::new(disk.backend(), mutation))
}

fn start_control(
    locality: &Locality,
    slot: &Rc<Slot>,
    (number, disk): (u64, &SimDisk),
    is_first: bool,
    around: &Surroundings<'_>,
) {
    let handle = locality.handle();
    let fabric = Fabric::Sim(around.fabric.clone());
    let mut config = ControlConfig::new(
        token(),
        around.epoch,
        around.configuration.clone(),
        backend(disk, around.mutation),
    );
    config.lease = LEASE;
    config.bug = around.mutation.and_then(Mutation::control_bug);
    config.rpc.sessions_max = around.sessions_max.unwrap_or(config.rpc.sessions_max);
    let members: BTreeMap<u64, Endpoint> = (1..).zip(around.controls.iter().copied()).collect();
    let is_one_of_several = members.len() > 1;
    let is_founder = number <= around.founders as u64;
    // Founders hear of the one that joins by the cluster file; it is told by those who are there who they are.
    let members: BTreeMap<u64, Endpoint> =
        members.into_iter().take(if is_founder { around.founders } else { usize::MAX }).collect();
    let founders: Vec<u64> = if is_founder { members.keys().copied().collect() } else { Vec::new() };
    config.file = around.cluster_text.map(|text| text.first(around.founders));
    if is_one_of_several {
        config.endpoint = members[&number];
        config.member = Some(MemberConfig { number, members, first_start: None });
        config.log_entries_max = LOG_ENTRIES_MAX;
    }
    let store = backend(disk, around.mutation);
    let (slot, cluster) = (Rc::clone(slot), around.configuration.cluster);
    locality.handle().spawn("boot", async move {
        if is_first && is_one_of_several {
            // As `clovis cluster init` does; cut in the middle of it, again.
            let founded = control::found_store(&handle, store, (number, cluster), &founders).await;
            if let Err(error) = founded.or_else(|error| match error {
                ControlError::Founded { .. } => Ok(()),
                other => Err(other),
            }) {
                *slot.failed.borrow_mut() = Some((error.to_string(), true));
                return;
            }
        }
        match Control::start(&handle, &fabric, config).await {
            Ok(control) => {
                *slot.control.borrow_mut() = Some(control);
                slot.is_up.set(true);
            }
            Err(error) => {
                // Its disk never fails, so whatever is wrong with the store is our doing.
                *slot.failed.borrow_mut() = Some((error.to_string(), true));
            }
        }
    });
}

fn start_server(
    locality: &Locality,
    slot: &Rc<Slot>,
    (endpoint, process): (Endpoint, Fid),
    (devices, new_disks): (Vec<&SimDevice>, NewDisks),
    format: bool,
    around: &Surroundings<'_>,
) {
    let handle = locality.handle();
    let fabric = Fabric::Sim(around.fabric.clone());
    let backends = devices
        .iter()
        .map(|device| (device.fid, backend(&device.disk, around.mutation) as Box<dyn spdk_stob::Backend>))
        .collect();
    let control = around.configuration.control;
    let mut config = ServerConfig::new(endpoint, process, control, token(), around.epoch, backends);
    config.format = format;
    config.further_controls = around.further_controls();
    let mutation = around.mutation;
    config.disks = Some(Rc::new(move |device, _| match new_disks.borrow().get(&device) {
        Some(disk) => Ok(backend(disk, mutation)),
        None => Err("nobody put another disk in its place".to_owned()),
    }));
    let copies = ClientConfig {
        local: Some(copier_endpoint(endpoint)),
        control,
        further_controls: around.further_controls(),
        security: token().into(),
        epoch: around.epoch,
        op_timeout: OP_TIMEOUT,
        read_verify: false,
    };
    config.copier = Some(client::copier(&handle, &fabric, copies));
    config.start_timeout = Duration::from_secs(2);
    config.bug = around.mutation.and_then(Mutation::server_bug);
    let (bug, inline_bytes) = (around.mutation.and_then(Mutation::rpc_bug), around.inline_bytes());
    config.rpc = RpcConfig { bug, inline_bytes, ..RpcConfig::default() };
    let slot = Rc::clone(slot);
    locality.handle().spawn("boot", async move {
        match Server::start(&handle, &fabric, config).await {
            Ok(server) => {
                *slot.server.borrow_mut() = Some(server);
                slot.is_up.set(true);
            }
            Err(error) => {
                // A lost device is left out, not a reason to fail; anything else that a device says after a crash is our doing.
                let is_ours = match &error {
                    ServerError::Device { source, .. } => !matches!(source, StobError::Device(_)),
                    ServerError::Control(_) => false,
                    _ => true,
                };
                *slot.failed.borrow_mut() = Some((error.to_string(), is_ours));
            }
        }
    });
}

fn start_client(
    locality: &Locality,
    slot: &Rc<Slot>,
    endpoint: Endpoint,
    (workers, think_max, read_verify): (usize, Duration, bool),
    around: &Surroundings<'_>,
) {
    let handle = locality.handle();
    let fabric = Fabric::Sim(around.fabric.clone());
    let config = ClientConfig {
        local: Some(endpoint),
        control: around.configuration.control,
        further_controls: around.further_controls(),
        security: token().into(),
        epoch: around.epoch,
        op_timeout: OP_TIMEOUT,
        read_verify,
    };
    let (slot, oracle, stop) = (Rc::clone(slot), Rc::clone(around.oracle), Rc::clone(around.stop_work));
    let (node, seed, epoch) = (around.index, around.seed, around.epoch);
    let (control, controls) = (around.configuration.control, around.controls.to_vec());
    let (clock, operations_max) = (Rc::clone(around.clock), around.operations_max);
    let (rate_max, are_objects_small) = (around.rate_max, around.are_objects_small);
    let changed = around.cluster_text.filter(|_| around.is_file_changed);
    let cluster_file = changed.map(|text| (Rc::clone(text), Rc::clone(around.acknowledged)));
    let (bug, inline_bytes) = (around.mutation.and_then(Mutation::client_bug), around.inline_bytes());
    locality.handle().spawn("boot", async move {
        let client = match Client::connect_simulated(&handle, &fabric, config, bug, inline_bytes).await {
            Ok(client) => client,
            Err(error) => {
                let is_ours = !matches!(error, client::ClientError::NoConfiguration { .. });
                *slot.failed.borrow_mut() = Some((error.to_string(), is_ours));
                return;
            }
        };
        for number in 0..workers {
            let worker = Worker {
                oracle: Rc::clone(&oracle),
                locality: handle.clone(),
                client: client.clone(),
                clock: Rc::clone(&clock),
                operations_max,
                node,
                random: fastrand::Rng::with_seed(seed ^ (epoch << 8) ^ (number as u64 + 1)),
                stop: Rc::clone(&stop),
                think_max,
                rate_max,
                are_objects_small,
            };
            handle.spawn("worker", worker.run());
        }
        if workers > 0 {
            // One asks whoever leads; with several control daemons another one asks each of them.
            let each_itself =
                (controls.len() > 1).then_some((controls, 0x4eb, DIRECT_OWNER, DIRECT_PAUSE_MAX));
            let group = (Vec::new(), 0x4e7, 0, KEYS_PAUSE_MAX);
            for (daemons, stream, owner, pause_max) in [group].into_iter().chain(each_itself) {
                let worker = KeyWorker {
                    oracle: Rc::clone(&oracle),
                    locality: handle.clone(),
                    client: client.clone(),
                    clock: Rc::clone(&clock),
                    control,
                    daemons,
                    node,
                    owner: node + owner,
                    random: fastrand::Rng::with_seed(seed ^ (epoch << 8) ^ stream),
                    stop: Rc::clone(&stop),
                    operations_max,
                    pause_max,
                    is_calm: false,
                    running: Rc::new(Cell::new(1)),
                    held: BTreeMap::new(),
                    seen: BTreeMap::new(),
                };
                handle.spawn("keys", worker.run());
            }
            if let Some((text, acknowledged)) = cluster_file {
                let operator = Operator {
                    oracle: Rc::clone(&oracle),
                    locality: handle.clone(),
                    client: client.clone(),
                    clock: Rc::clone(&clock),
                    control,
                    text,
                    acknowledged,
                    name: format!("{node}-{epoch}"),
                    random: fastrand::Rng::with_seed(seed ^ (epoch << 8) ^ 0x4ec),
                    stop: Rc::clone(&stop),
                };
                handle.spawn("cluster file", operator.run());
            }
            let worker = RegisterWorker {
                oracle,
                locality: handle.clone(),
                client: client.clone(),
                clock,
                node,
                random: fastrand::Rng::with_seed(seed ^ (epoch << 8) ^ 0x4e9),
                stop,
                operations_max,
                is_calm: false,
                running: Rc::new(Cell::new(1)),
            };
            handle.spawn("registers", worker.run());
        }
        *slot.client.borrow_mut() = Some(client);
        slot.is_up.set(true);
    });
}
