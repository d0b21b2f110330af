//! One control daemon with many servers, devices and clients: real code over the simulated network, one thread, virtual time.
//!
//! It judges what virtual time tells (how soon a loss is found, how soon everybody knows) and what the daemon's memory is (the law in
//! docs/limits.md); CPU time of the host is printed, never judged. The small cluster runs with all tests; the whole one by hand:
//! `./dev bench control`. Time goes in steps of a millisecond. Servers are `faces::Heartbeat`, and some clients `faces::ConfClient` and
//! `faces::rm::Borrower`, each with a configuration of its own. The others say the same over machines of their own, at the same times, and share what they
//! learn: ten thousand copies of a large configuration would be 7 GiB.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // test code, helpers included

mod support;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::checksum::crc32c;
use base::{Endpoint, Fid, FidType, Instant};
use control::conf_book::ConfBytes;
use control::{Control, ControlConfig};
use faces::conf_difference::apply;
use faces::conf_parts::{Parts, Whole};
use faces::configuration::CONFIGURATION_FORMAT;
use faces::lease::{LEASE_DEFAULT, heartbeat_interval, lost_after};
use faces::limits::{
    CONFIGURATION_BYTES_MAX, CONTROL_BASE_BYTES, CONTROL_CLIENT_BYTES, CONTROL_DEVICE_BYTES,
    CONTROL_SERVER_BYTES, NOTIFIES_MAX, RM_POLLS_PER_LEASE, WATCH_TRIES_PER_LEASE,
};
use faces::rm::Borrower;
use faces::{
    ConfClient, Configuration, DeviceConfig, DeviceState, FurtherPools, Heartbeat, PoolConfig, ProcessConfig,
    Registrant, WatchEvent, Watcher,
};
use fops::codec;
use fops::conf::{DeviceHealth, RegisteredDevice};
use fops::conf_sync::{ConfSplice, ConfSync, ConfSyncReply};
use fops::lock::LockMode;
use fops::rm::{BorrowerId, RmBegin, RmBorrow, RmBorrowReply, RmCredit, RmPoll, RmResource};
use fops::watch::MissedWhy;
use rpc::{Bulk, CallOptions, RpcConfig, RpcMachine};
use runtime::process::thread_cpu_time;
use runtime::{
    Arena, ArenaConfig, Counters, CountingAllocator, Locality, LocalityConfig, LocalityHandle,
    SimulatedClock, Task, allocated_bytes,
};
use spdk_stob::{Domain, FormatParams, SimDisk, SimFaults as DiskFaults, TreeId};
use verbs_net::{Fabric, SimArrivals, SimFabric, TmConfig, Token, TransferMachine};

use support::World as _;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Virtual time goes in such steps.
const STEP: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const FIRST_CLIENT: usize = 100_000;

/// How large a cluster is.
#[derive(Clone, Copy)]
struct Shape {
    servers: usize,
    devices_each: usize,
    clients: usize,
    /// Of the clients, those that are whole.
    followers: usize,
}

fn endpoint(node: usize) -> Endpoint {
    format!("{node}@sim:12345:34:0").parse().unwrap()
}

fn process(server: usize) -> Fid {
    Fid::new(FidType::Process, 0, base::units::wide(server))
}

fn device(index: usize) -> Fid {
    Fid::new(FidType::Device, 0, base::units::wide(index))
}

impl Shape {
    fn devices(self) -> usize {
        self.servers * self.devices_each
    }

    /// The devices of a server, counted from 1.
    fn devices_of(self, server: usize) -> std::ops::Range<usize> {
        (server - 1) * self.devices_each..server * self.devices_each
    }

    fn configuration(self) -> Configuration {
        let processes = (1..=self.servers)
            .map(|server| ProcessConfig { process: process(server), endpoint: endpoint(server), epoch: 0 })
            .collect();
        let devices = (1..=self.servers).flat_map(|server| {
            self.devices_of(server).map(move |index| DeviceConfig {
                device: device(index),
                process: process(server),
                endpoint: endpoint(server),
                state: DeviceState::Unknown,
                size_blocks: 0,
                replaced: 0,
            })
        });
        Configuration {
            version: 1,
            cluster: 77,
            profile: Fid::new(FidType::Profile, 0, 1),
            control: endpoint(0),
            processes,
            pool: PoolConfig {
                pool: Fid::new(FidType::Pool, 0, 1),
                pool_version: Fid::new(FidType::PoolVersion, 0, 1),
                width: "8+2+1".parse().unwrap(),
                unit_bytes: 65536,
                devices: devices.collect(),
                awaited_disks: Vec::new(),
                changes_from: 0,
            },
            pools: FurtherPools::none(self.devices()),
            spares: faces::Spares::default(),
        }
    }
}

/// A locality that is turned when it has something to do.
struct Node {
    locality: Option<Locality>,
    arrivals: SimArrivals,
    /// When its timers want it.
    next: Instant,
    /// What it runs.
    tasks: Vec<Task>,
}

/// What clients know, for the test and for each other.
#[derive(Default)]
struct Board {
    /// The bytes of each version that came, checked by the first to whom it came.
    versions: BTreeMap<u64, Rc<[u8]>>,
    /// Steps from one version to another, checked by the first to whom they came.
    steps: BTreeMap<(u64, u64), Vec<Vec<ConfSplice>>>,
    polls: u64,
    /// Bytes of the differences that were told.
    difference_bytes: u64,
    differences: u64,
    wholes: u64,
}

struct World {
    shape: Shape,
    /// Devices of the first pool version, if it has not all of them.
    first_devices: Option<usize>,
    clock: SimulatedClock,
    net: SimFabric,
    disk: SimDisk,
    nodes: Vec<Node>,
    /// Shared by all nodes but control.
    arena: Arena,
    control_arena: Arena,
    control: Option<Control>,
    /// Host time of control's turns.
    cpu: Duration,
    beats: Rc<Cell<u64>>,
    /// Version that each server goes by.
    servers: Vec<Rc<Cell<u64>>>,
    /// The same of the clients.
    clients: Vec<Rc<Cell<u64>>>,
    failing: Rc<Cell<Option<usize>>>,
    /// A node that is turned always: the test itself waits for something there.
    watched: Option<usize>,
    board: Rc<RefCell<Board>>,
}

impl support::World for World {
    fn clock(&self) -> &SimulatedClock {
        &self.clock
    }

    fn turn(&mut self, end: Instant) {
        let now = self.clock.now();
        let (mut progressed, mut has_progressed) = (true, false);
        while progressed {
            progressed = false;
            for (index, node) in self.nodes.iter_mut().enumerate() {
                let is_due = node.next <= now
                    || node.arrivals.next() <= now
                    || index == 0
                    || self.watched == Some(index);
                let Some(locality) = node.locality.as_mut().filter(|_| is_due) else { continue };
                let turn = if index == 0 {
                    let cpu = thread_cpu_time();
                    let turn = locality.turn(now);
                    self.cpu += thread_cpu_time() - cpu;
                    turn
                } else {
                    locality.turn(now)
                };
                node.next = if turn.progressed { now } else { turn.next_deadline.unwrap_or(Instant::NEVER) };
                progressed |= turn.progressed;
            }
            has_progressed |= progressed;
        }
        // Whoever waits outside of the localities looks before time goes on.
        if has_progressed {
            return;
        }
        let next = self.nodes.iter().filter(|node| node.locality.is_some());
        let next = next.map(|node| node.next.min(node.arrivals.next())).min().unwrap_or(Instant::NEVER);
        self.clock.advance_to(next.min(end).max(now + STEP));
    }
}

fn arena(bytes: u64) -> Arena {
    Arena::new(ArenaConfig { capacity_bytes: bytes }).unwrap()
}

impl World {
    fn start(shape: Shape) -> World {
        let mut world = World {
            shape,
            first_devices: None,
            clock: SimulatedClock::default(),
            net: SimFabric::new(7),
            // Sparse. Its checkpoint areas hold 8 MiB each.
            disk: SimDisk::new(7, 262_144, DiskFaults::default()),
            nodes: Vec::new(),
            arena: arena(4 << 30),
            control_arena: arena(1 << 30),
            control: None,
            cpu: Duration::ZERO,
            beats: Rc::default(),
            servers: Vec::new(),
            clients: Vec::new(),
            failing: Rc::default(),
            watched: None,
            board: Rc::default(),
        };
        world.node(0, world.control_arena.clone());
        world.start_control(1);
        world
    }

    fn node(&mut self, number: usize, arena: Arena) -> (usize, LocalityHandle) {
        let mut locality = Locality::new(LocalityConfig {
            index: 0,
            name: format!("node-{number}"),
            seed: base::units::wide(number) + 1000,
            counters: Arc::new(Counters::default()),
            arena,
            crowd: None,
        });
        // It knows the time from the first moment on.
        locality.turn(self.clock.now());
        let handle = locality.handle();
        let arrivals = self.net.arrivals(endpoint(number));
        let place = self.nodes.len();
        let node = Node { locality: Some(locality), arrivals, next: Instant::ZERO, tasks: Vec::new() };
        self.nodes.push(node);
        (place, handle)
    }

    fn start_control(&mut self, epoch: u64) {
        let handle = self.nodes[0].locality.as_ref().unwrap().handle();
        let store = Box::new(self.disk.backend());
        let mut configuration = self.shape.configuration();
        if let Some(first_devices) = self.first_devices {
            configuration.pools.first_devices = u32::try_from(first_devices).unwrap();
        }
        let config = ControlConfig::new(Token::new([7; 32]), epoch, configuration, store);
        let control = self.run(Control::start(&handle, &Fabric::Sim(self.net.clone()), config)).unwrap();
        self.control = Some(control);
    }

    fn machine(&mut self, number: usize) -> (usize, LocalityHandle, RpcMachine) {
        let (place, handle) = self.node(number, self.arena.clone());
        // Nobody looks at what each of them did.
        let config = RpcConfig { addb_records: 0, ..RpcConfig::default() };
        let version = Rc::clone(&config.config_version);
        let tm = TmConfig::new(endpoint(number), false, 1, Token::new([7; 32]), version);
        let tm = TransferMachine::start(&handle, &Fabric::Sim(self.net.clone()), tm).unwrap();
        let rpc = RpcMachine::start(&handle, tm, config);
        (place, handle, rpc)
    }

    /// A server that begins after `pause`.
    fn add_server(&mut self, server: usize, pause: Duration) {
        let (place, handle, rpc) = self.machine(server);
        let registered = |index: usize| RegisteredDevice {
            device: device(index),
            endpoint: endpoint(server),
            size_blocks: 1000,
            replacement: 0,
        };
        let devices: Vec<RegisteredDevice> = self.shape.devices_of(server).map(registered).collect();
        let registrant = Registrant { process: process(server), epoch: 7, devices };
        let knows: Rc<Cell<u64>> = Rc::default();
        self.servers.push(Rc::clone(&knows));
        let (beats, failing) = (Rc::clone(&self.beats), Rc::clone(&self.failing));
        let fids: Vec<(usize, Fid)> =
            self.shape.devices_of(server).map(|index| (index, device(index))).collect();
        let health = move || {
            beats.set(beats.get() + 1);
            let health = |(index, device): &(usize, Fid)| DeviceHealth {
                device: *device,
                free_blocks: 900,
                errors: 0,
                failed: failing.get() == Some(*index),
            };
            fids.iter().map(health).collect()
        };
        let locality = handle.clone();
        let task = handle.spawn("server", async move {
            locality.sleep(pause).await;
            let conf = ConfClient::connect(&rpc, endpoint(0));
            let deadline = locality.now() + 60 * SECOND;
            let _heartbeat = Heartbeat::start(&conf, registrant, health, deadline).await.unwrap();
            loop {
                knows.set(conf.version());
                conf.newer_than(knows.get()).await;
            }
        });
        self.nodes[place].tasks.push(task);
    }

    /// A client with all of its code, that holds an object of its own.
    fn add_follower(&mut self, client: usize, pause: Duration) {
        let (place, handle, rpc) = self.machine(FIRST_CLIENT + client);
        let knows: Rc<Cell<u64>> = Rc::default();
        self.clients.push(Rc::clone(&knows));
        let locality = handle.clone();
        let task = handle.spawn("follower", async move {
            locality.sleep(pause).await;
            let conf = ConfClient::connect(&rpc, endpoint(0));
            let borrower = Borrower::start(&conf, format!("c{client}"), 30 * SECOND);
            let credit = RmCredit::Whole { mode: LockMode::Shared };
            let _hold = borrower.hold(&object(client), &credit, 30 * SECOND).await.unwrap();
            loop {
                knows.set(conf.version());
                conf.newer_than(knows.get()).await;
            }
        });
        self.nodes[place].tasks.push(task);
    }

    /// A client that says what one with all of its code says.
    fn add_client(&mut self, client: usize, pause: Duration) {
        let (place, handle, rpc) = self.machine(FIRST_CLIENT + client);
        let knows: Rc<Cell<u64>> = Rc::default();
        self.clients.push(Rc::clone(&knows));
        let light =
            LightClient { client, rpc, locality: handle.clone(), knows, board: Rc::clone(&self.board) };
        let task = handle.spawn("client", async move {
            light.locality.sleep(pause).await;
            light.run().await;
        });
        self.nodes[place].tasks.push(task);
    }

    /// A watcher with all of its code: it watches what all watch, acknowledges each notification with its number, and when it hears [`APART`] goes on with
    /// an object of its own. `watching` counts those that have begun with each.
    fn add_watcher(&mut self, watcher: usize, pause: Duration, watching: &[Rc<Cell<usize>>; 2]) {
        let (place, handle, rpc) = self.machine(FIRST_CLIENT + watcher);
        let (locality, watching) = (handle.clone(), watching.clone());
        let task = handle.spawn("watcher", async move {
            locality.sleep(pause).await;
            let conf = ConfClient::connect(&rpc, endpoint(0));
            let keeper = Watcher::start(&conf, format!("w{watcher}"), WATCH_LEASE);
            let deadline = || locality.now() + 60 * SECOND;
            let mut watch = keeper.watch(watched_by_all(), deadline()).await.unwrap();
            watching[0].set(watching[0].get() + 1);
            loop {
                let WatchEvent::Notified(notified) = watch.next().await else { panic!("{watcher}: a gap") };
                let goes = notified.payload() == APART;
                assert!(notified.ack(&base::units::wide(watcher).to_le_bytes()).await.unwrap(), "{watcher}");
                if goes {
                    watch.end(deadline()).await.unwrap();
                    watch = keeper.watch(watched_by(watcher), deadline()).await.unwrap();
                    watching[1].set(watching[1].get() + 1);
                }
            }
        });
        self.nodes[place].tasks.push(task);
    }

    fn control(&self) -> &Control {
        self.control.as_ref().unwrap()
    }

    fn seconds_of_cpu(&mut self, duration: Duration) -> f64 {
        let before = self.cpu;
        self.pass(duration);
        (self.cpu - before).as_secs_f64() / duration.as_secs_f64()
    }

    /// Ends control. Answer: the bytes that it had, of the allocator and of its arena.
    fn end_control(&mut self) -> u64 {
        let (buffers, before) = (self.control_arena.in_use_bytes(), allocated_bytes());
        self.control = None;
        self.nodes[0].locality = None;
        before - allocated_bytes() + buffers
    }

    /// Lets time pass until `is_so`. Answer: how long it took.
    fn until(&mut self, what: &str, is_so: impl FnMut(&World) -> bool) -> Duration {
        self.until_within(what, 120 * SECOND, is_so)
    }

    /// The same, within a time.
    fn until_within(
        &mut self,
        what: &str,
        within: Duration,
        mut is_so: impl FnMut(&World) -> bool,
    ) -> Duration {
        let started = self.clock.now();
        while !is_so(self) {
            assert!(self.clock.now() < started + within, "not so after {within:?}: {what}");
            let end = self.clock.now() + STEP;
            self.turn(end);
        }
        self.clock.now().since(started)
    }

    fn all_know(&self, version: u64) -> bool {
        let servers = self.servers.iter().zip(&self.nodes[1..]).filter(|(_, node)| node.locality.is_some());
        servers.map(|(knows, _)| knows).chain(&self.clients).all(|knows| knows.get() >= version)
    }

    fn state_of(&self, index: usize) -> DeviceState {
        self.control().configuration().device(device(index)).unwrap().state
    }

    /// Watcher `watcher`, of those that were the first nodes behind control.
    fn kill_watcher(&mut self, watcher: usize) {
        self.nodes[watcher].tasks.clear();
        self.nodes[watcher].locality = None;
        self.net.crash(endpoint(FIRST_CLIENT + watcher));
    }

    fn kill(&mut self, node: usize) {
        self.nodes[node].tasks.clear();
        self.nodes[node].locality = None;
        self.net.crash(endpoint(node));
    }
}

fn object(client: usize) -> RmResource {
    RmResource::Object(Fid::new(FidType::Object, 1, base::units::wide(client)))
}

const WATCH_LEASE: Duration = Duration::from_secs(10);
/// What a watcher hears that is to watch an object of its own from then on.
const APART: &[u8] = b"apart";

fn watched_by_all() -> Fid {
    Fid::new(FidType::Object, 2, 0)
}

fn watched_by(watcher: usize) -> Fid {
    Fid::new(FidType::Object, 3, base::units::wide(watcher))
}

/// What `ConfClient` and `Borrower` say, without a configuration of its own.
struct LightClient {
    client: usize,
    rpc: RpcMachine,
    locality: LocalityHandle,
    knows: Rc<Cell<u64>>,
    board: Rc<RefCell<Board>>,
}

impl LightClient {
    async fn call<F: fops::Fop>(&self, fop: &F, within: Duration) -> Option<F::Reply> {
        let options = CallOptions::until(self.locality.now() + within);
        self.rpc.call(endpoint(0), fop, Bulk::none(), options).await.ok().map(|answer| answer.reply)
    }

    async fn run(&self) {
        let borrower = BorrowerId(base::units::wide(self.client).into());
        let begin = RmBegin { borrower, name: format!("c{}", self.client) };
        let begun = self.call(&begin, 30 * SECOND).await.expect("a session");
        let credit = RmCredit::Whole { mode: LockMode::Shared };
        let resource = object(self.client);
        let borrow = RmBorrow { borrower, number: 1, resource, credit, wait_ms: 0 };
        let lent = self.call(&borrow, 30 * SECOND).await;
        assert!(matches!(lent, Some(RmBorrowReply::Lent { .. })), "client {}: {lent:?}", self.client);
        let lease = Duration::from_millis(begun.lease_ms);
        let wait = lease / RM_POLLS_PER_LEASE;
        loop {
            let asked_at = self.locality.now();
            let wait_ms = u32::try_from(wait.as_millis()).unwrap();
            let poll = RmPoll { borrower, version: self.knows.get(), known: Vec::new(), wait_ms };
            let reply = self.call(&poll, wait + wait / 3).await;
            let Some(reply) = reply else { continue };
            assert!(reply.has_session, "client {} was lost", self.client);
            self.board.borrow_mut().polls += 1;
            if reply.version > self.knows.get() {
                self.sync().await;
            } else if self.locality.now() < asked_at + wait {
                self.locality.sleep_until(asked_at + wait).await;
            }
        }
    }

    async fn sync(&self) {
        let mut parts: Option<Parts> = None;
        loop {
            let ask = ConfSync {
                format: CONFIGURATION_FORMAT,
                known_version: self.knows.get(),
                version: parts.as_ref().map_or(0, Parts::version),
                offset: parts.as_ref().map_or(0, Parts::offset),
            };
            let Some(reply) = self.call(&ask, 5 * SECOND).await else { return };
            let mut board = self.board.borrow_mut();
            let (version, newest) = match reply {
                ConfSyncReply::Current { version } => (version, version),
                ConfSyncReply::Changes { version, newest, checksum, steps } => {
                    let known = self.knows.get();
                    board.differences += 1;
                    board.difference_bytes += base::units::wide(codec::encode(&steps).unwrap().len());
                    match board.steps.get(&(known, version)) {
                        Some(checked) => assert!(*checked == steps, "{known} to {version} in two ways"),
                        None => {
                            let mut bytes = board.versions[&known].to_vec();
                            for step in &steps {
                                apply(&mut bytes, step, CONFIGURATION_BYTES_MAX).unwrap();
                            }
                            assert_eq!(crc32c(&bytes), checksum);
                            let same = board.versions.entry(version).or_insert_with(|| bytes.clone().into());
                            assert!(**same == bytes[..], "two of version {version}");
                            board.steps.insert((known, version), steps);
                        }
                    }
                    (version, newest)
                }
                ConfSyncReply::Part { version, newest, total_bytes, checksum, offset, part } => {
                    let whole = Whole { version, bytes: total_bytes, checksum };
                    let begun = parts.take().filter(|parts| parts.version() == version);
                    let mut so_far = begun.unwrap_or_else(|| Parts::begin(whole).unwrap());
                    if !so_far.take(whole, offset, &part).unwrap() {
                        parts = Some(so_far);
                        continue;
                    }
                    let bytes = so_far.into_bytes().unwrap();
                    let same = board.versions.entry(version).or_insert_with(|| bytes.clone().into());
                    assert!(**same == bytes[..], "two of version {version}");
                    board.wholes += 1;
                    (version, newest)
                }
            };
            self.knows.set(version);
            if version >= newest {
                return;
            }
        }
    }
}

fn spread(index: usize, count: usize, over: Duration) -> Duration {
    over * u32::try_from(index).unwrap() / u32::try_from(count).unwrap()
}

/// The daemon takes no more than the law in docs/limits.md says, and the law allows for no more than three times of that.
fn judge_memory(bytes: u64, shape: Shape) {
    judge(bytes, law(shape));
}

fn law(shape: Shape) -> u64 {
    let wide = base::units::wide;
    CONTROL_BASE_BYTES
        + wide(shape.devices()) * CONTROL_DEVICE_BYTES
        + wide(shape.servers) * CONTROL_SERVER_BYTES
        + wide(shape.clients) * CONTROL_CLIENT_BYTES
}

fn judge(bytes: u64, law: u64) {
    println!("memory: {:.1} MiB of {:.1}", mib(bytes), mib(law));
    assert!(bytes <= law, "control takes {bytes} bytes, and the law says {law}");
    assert!(bytes >= law / 3, "control takes {bytes} bytes, and the law allows {law}");
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn per(seconds: f64, count: u64) -> f64 {
    seconds * 1e6 / count.max(1) as f64
}

/// All come, all go on, a server dies, a device fails, a tenth of the clients die at once.
fn run_cluster(shape: Shape) {
    let mut world = World::start(shape);
    for server in 1..=shape.servers {
        world.add_server(server, spread(server, shape.servers, 2 * SECOND));
    }
    let started = world.cpu;
    let up = world.until("all devices are online", |world| {
        world.control().configuration().pool.devices.iter().all(|device| device.state == DeviceState::Online)
    });
    let version = world.control().configuration().version;
    let known = up + world.until("all servers know that", |world| world.all_know(version));
    println!(
        "{} servers with {} devices are up after {up:?} and know it after {known:?}, version {version}: {:.2} s of CPU",
        shape.servers,
        shape.devices(),
        (world.cpu - started).as_secs_f64()
    );
    world.pass(2 * SECOND);
    let beats = world.beats.get();
    let load = world.seconds_of_cpu(5 * SECOND);
    let beats = world.beats.get() - beats;
    println!(
        "{} heartbeats a second of {} devices each: {:.1} % of a core, {:.1} us each",
        beats / 5,
        shape.devices_each,
        load * 100.0,
        per(5.0 * load, beats)
    );

    for client in 1..=shape.clients {
        let pause = spread(client, shape.clients, 5 * SECOND);
        if client <= shape.followers {
            world.add_follower(client, pause)
        } else {
            world.add_client(client, pause)
        }
    }
    let started = world.cpu;
    let known = world.until("all clients know the configuration", |world| world.all_know(version));
    println!(
        "{} clients have the configuration after {known:?}, {} of them in parts: {:.2} s of CPU",
        shape.clients,
        world.board.borrow().wholes + base::units::wide(shape.followers),
        (world.cpu - started).as_secs_f64()
    );
    world.pass(5 * SECOND);
    let polls = world.board.borrow().polls;
    let clients_load = world.seconds_of_cpu(5 * SECOND) - load;
    let polls = world.board.borrow().polls - polls;
    println!(
        "{} polls of clients a second: {:.1} % of a core, {:.1} us each",
        polls / 5,
        clients_load * 100.0,
        per(5.0 * clients_load, polls)
    );

    // A server dies: found when its lease is over, and then told.
    let lost_after = lost_after(LEASE_DEFAULT);
    let (interval, poll) = (heartbeat_interval(LEASE_DEFAULT), LEASE_DEFAULT / RM_POLLS_PER_LEASE);
    let dead = shape.servers / 2;
    let before = (world.board.borrow().difference_bytes, world.board.borrow().differences);
    world.kill(dead);
    let lost = shape.devices_of(dead).start;
    let found =
        world.until("the dead server is found", |world| world.state_of(lost) == DeviceState::Transient);
    assert!(
        found <= lost_after + 10 * STEP && found + interval >= lost_after - 10 * STEP,
        "found after {found:?}"
    );
    let version = world.control().configuration().version;
    let told = world.until("everybody knows of the dead server", |world| world.all_know(version));
    let board = world.board.borrow();
    let (bytes, count) = (board.difference_bytes - before.0, board.differences - before.1);
    drop(board);
    println!(
        "a dead server is found after {found:?}, {} devices, and everybody knows it {told:?} later: {} bytes for each client",
        shape.devices_each,
        bytes / count.max(1)
    );
    assert!(told <= poll.max(interval) + SECOND / 4, "told after {told:?}");
    assert!(bytes / count.max(1) <= 64 + 32 * base::units::wide(shape.devices_each), "{bytes} for {count}");

    // A device fails: its server says so with its next heartbeat.
    let broken = shape.devices_of(shape.servers - 1).start;
    world.failing.set(Some(broken));
    let failed = world.until("the device failed", |world| world.state_of(broken) == DeviceState::Failed);
    assert!(failed <= interval + 10 * STEP, "{failed:?}");
    let version = world.control().configuration().version;
    let told = world.until("everybody knows of the device", |world| world.all_know(version));
    println!("a broken device is known to control after {failed:?}, and to everybody {told:?} later");
    assert!(told <= poll.max(interval) + SECOND / 4, "told after {told:?}");

    // A tenth of the clients die at once.
    let gone = shape.clients / 10;
    let places: Vec<usize> = (world.nodes.len() - gone..world.nodes.len()).collect();
    for place in places {
        world.nodes[place].tasks.clear();
        world.nodes[place].locality = None;
    }
    let kept = world.clients.len() - gone;
    world.clients.truncate(kept);
    world.pass(lost_after + 5 * SECOND);
    assert_eq!(world.control().store_failure(), None);
    let status = world.control().status();
    assert_eq!((status.processes.len(), status.devices.len()), (shape.servers, shape.devices()));
    judge_memory(world.end_control(), shape);
}

/// Many watchers of one object are told, and answer or are missed by name; then each watches an object of its own.
fn run_watchers(count: usize) {
    let shape = Shape { servers: 4, devices_each: 10, clients: 0, followers: 0 };
    let mut world = World::start(shape);
    let watching: [Rc<Cell<usize>>; 2] = Default::default();
    let started = world.cpu;
    for watcher in 1..=count {
        world.add_watcher(watcher, spread(watcher, count, 5 * SECOND), &watching);
    }
    let all = world.until("all watch", |_| watching[0].get() == count);
    println!(
        "{count} watchers of an object after {all:?}: {:.2} s of CPU",
        (world.cpu - started).as_secs_f64()
    );
    world.pass(WATCH_LEASE);
    println!("they take {:.1} % of a core", 100.0 * world.seconds_of_cpu(WATCH_LEASE));
    let (place, locality, rpc) = world.machine(FIRST_CLIENT - 1);
    world.watched = Some(place);
    let conf = ConfClient::connect(&rpc, endpoint(0));
    // A watcher for whom there is no room to wait at control asks so often, and then says what it has done.
    let pause = WATCH_LEASE / WATCH_TRIES_PER_LEASE;
    let notify = |world: &mut World, payload: &[u8], within: Duration| {
        let (began, cpu) = (locality.now(), world.cpu);
        let outcome = world.run(conf.notify(watched_by_all(), payload, within)).unwrap();
        let took = locality.now().since(began);
        println!(
            "a notify: {} acknowledged, {} missed it, after {took:?}: {:.2} s of CPU",
            outcome.acks.len(),
            outcome.missed.len(),
            (world.cpu - cpu).as_secs_f64()
        );
        for ack in &outcome.acks {
            let number = u64::from_le_bytes(ack.payload[..].try_into().unwrap());
            assert_eq!(ack.watch.name, format!("w{number}"));
        }
        let names = outcome.acks.iter().map(|ack| ack.watch.name.clone());
        let missed = outcome.missed.iter().map(|missed| (missed.watch.name.clone(), missed.why));
        (names.collect::<BTreeSet<String>>(), missed.collect::<BTreeMap<String, MissedWhy>>(), took)
    };
    let (acked, missed, took) = notify(&mut world, &[7; 100], 20 * SECOND);
    assert_eq!((acked.len(), missed.len()), (count, 0));
    assert!(took <= pause + SECOND, "{took:?}");
    // Some die: they are missed by name, and forgotten with their leases.
    let gone = count / 100;
    let dead: BTreeSet<String> = (1..=gone).map(|watcher| format!("w{watcher}")).collect();
    (1..=gone).for_each(|watcher| world.kill_watcher(watcher));
    let (acked, missed, took) = notify(&mut world, b"some are gone", 5 * SECOND);
    assert_eq!(acked.len(), count - gone);
    assert_eq!(missed, dead.iter().map(|name| (name.clone(), MissedWhy::NotReached)).collect());
    assert!(took <= 6 * SECOND, "{took:?}");
    world.pass(lost_after(WATCH_LEASE));
    let (acked, missed, _) = notify(&mut world, APART, 20 * SECOND);
    assert!(acked.len() == count - gone && missed.is_empty() && acked.is_disjoint(&dead));
    world.until("each watches its own", |_| watching[1].get() == count - gone);
    // Each of them, as many notifies at a time as there may be under way.
    let objects = count - gone;
    let (began, cpu) = (locality.now(), world.cpu);
    let done: Rc<Cell<usize>> = Rc::default();
    let next: Rc<Cell<usize>> = Rc::new(Cell::new(gone));
    for _ in 0..NOTIFIES_MAX {
        let (conf, done, next) = (conf.clone(), Rc::clone(&done), Rc::clone(&next));
        let notifying = locality.spawn("notifier", async move {
            while next.get() < gone + objects {
                next.set(next.get() + 1);
                let watcher = next.get();
                let outcome = conf.notify(watched_by(watcher), b"you alone", 20 * SECOND).await.unwrap();
                assert!(outcome.missed.is_empty() && outcome.acks.len() == 1, "{watcher}: {outcome:?}");
                assert_eq!(outcome.acks[0].watch.name, format!("w{watcher}"));
                done.set(done.get() + 1);
            }
        });
        world.nodes[place].tasks.push(notifying);
    }
    let rounds = u32::try_from(objects.div_ceil(NOTIFIES_MAX)).unwrap();
    world.until_within("each was told alone", (pause + SECOND / 2) * rounds, |_| done.get() == objects);
    let took = locality.now().since(began);
    println!(
        "{objects} notifies, each to one of {} watchers of other objects: {took:?}, {:.2} s of CPU",
        count - gone,
        (world.cpu - cpu).as_secs_f64()
    );
    assert_eq!(world.control().store_failure(), None);
    // What acknowledged is kept for who asks again; 300 bytes each with so short ones.
    let outcomes = base::units::wide(3 * count) * 300;
    judge(world.end_control(), law(Shape { clients: count, ..shape }) + outcomes);
}

#[test]
fn a_thousand_watchers() {
    run_watchers(1000);
}

#[test]
#[ignore = "takes minutes: ./dev bench control"]
fn ten_thousand_watchers() {
    run_watchers(10_000);
}

#[test]
fn a_thousand_clients_and_devices() {
    run_cluster(Shape { servers: 100, devices_each: 10, clients: 1000, followers: 8 });
}

#[test]
#[ignore = "takes minutes: ./dev bench control"]
fn ten_thousand_clients_and_devices() {
    run_cluster(Shape { servers: 1000, devices_each: 10, clients: 10_000, followers: 32 });
}

/// Control starts again with the largest configuration, of a store with pages, and of one of before.
#[test]
fn the_largest_configuration_is_stored_in_pages_and_an_older_store_is_read() {
    let shape = Shape { servers: 1024, devices_each: 10, clients: 0, followers: 0 };
    let mut world = World::start(shape);
    let configuration = world.control().configuration();
    let bytes = ConfBytes::of(&configuration).unwrap();
    // All but disks that are awaited, pools besides the first, and slots of spare units.
    let rest = 16 * faces::limits::AWAITED_DISKS_MAX
        + faces::limits::FURTHER_POOLS_BYTES_MAX
        + faces::limits::SPARES_BYTES_MAX;
    assert_eq!(bytes.bytes.len(), CONFIGURATION_BYTES_MAX - rest);
    world.add_server(1, Duration::ZERO);
    world.until("its devices are online", |world| world.state_of(9) == DeviceState::Online);
    world.failing.set(Some(3));
    world.until("a device failed", |world| world.state_of(3) == DeviceState::Failed);
    let stored = world.control().configuration();
    for epoch in 2..4 {
        world.control = None;
        world.nodes.truncate(0);
        world.net = SimFabric::new(epoch);
        world.disk.crash();
        world.node(0, world.control_arena.clone());
        world.start_control(epoch);
        assert_eq!(world.control().configuration().version, stored.version);
        assert_eq!(world.control().configuration().pool.devices[3], stored.pool.devices[3]);
    }
    // What people look at comes by pages, and what does not fit a message is refused to those who know of no parts.
    let (place, handle, rpc) = world.machine(FIRST_CLIENT);
    world.watched = Some(place);
    let conf = ConfClient::connect(&rpc, endpoint(0));
    let deadline = handle.now() + 60 * SECOND;
    let status = world.run(conf.cluster_status(deadline)).unwrap();
    assert_eq!((status.processes.len(), status.devices.len()), (shape.servers, shape.devices()));
    assert_eq!(status.devices[3].state, "failed");
    let fetched = world.run(conf.fetch(deadline)).unwrap();
    assert_eq!(*fetched, *world.control().configuration());
    let other = ConfClient::connect(&rpc, endpoint(0));
    let in_one = world.run(other.fetch_in_one(deadline)).map(|found| found.version).unwrap_err().to_string();
    assert!(in_one.contains("does not fit one message"), "{in_one}");
}

/// Everything is gone but the disk, which loses what was not flushed.
fn start_again(world: &mut World, epoch: u64) {
    world.control = None;
    world.nodes.clear();
    world.net = SimFabric::new(epoch);
    world.disk.crash();
    world.node(0, world.control_arena.clone());
    world.start_control(epoch);
}

/// Format of the store, and pages of the configuration, of a control daemon that is gone then.
fn format_of(world: &mut World, epoch: u64) -> (u32, usize) {
    world.control = None;
    world.nodes.clear();
    world.net = SimFabric::new(epoch);
    let (_, handle) = world.node(0, world.control_arena.clone());
    let store = Box::new(world.disk.backend());
    world.run(async move {
        let domain = Domain::open(&handle, store, None).await.unwrap();
        let value = domain.tree_get(TreeId(1), b"configuration").unwrap();
        let pages = domain.tree_range(TreeId(20), std::ops::Bound::Unbounded, usize::MAX);
        domain.close().await.unwrap();
        (u32::from_le_bytes(*value.first_chunk().unwrap()), pages.len())
    })
}

#[test]
fn a_store_of_format_2_stays_one_until_the_cluster_is_too_large_for_it() {
    let shape = Shape { servers: 4, devices_each: 10, clients: 0, followers: 0 };
    let mut world = World::start(shape);
    world.control = None;
    world.nodes.clear();
    world.net = SimFabric::new(9);
    world.disk = SimDisk::new(8, 262_144, DiskFaults::default());
    let (_, handle) = world.node(0, world.control_arena.clone());
    let mut old = shape.configuration();
    old.version = 41;
    old.pool.devices[7].state = DeviceState::Failed;
    let value = [&2u32.to_le_bytes()[..], &old.to_bytes().unwrap()].concat();
    let (store, params) = (
        Box::new(world.disk.backend()),
        FormatParams { device: Fid::new(FidType::Root, 0, 77), cluster: 77 },
    );
    world.run(async {
        let domain = Domain::open_or_format(&handle, store, params).await.unwrap();
        let mut transaction = domain.begin();
        transaction.tree_put(TreeId(1), b"configuration", &value);
        domain.commit(transaction).await.unwrap();
        domain.close().await.unwrap();
    });
    world.start_control(5);
    assert_eq!(*world.control().configuration(), old);
    world.add_server(1, Duration::ZERO);
    world.until("its devices are online", |world| world.state_of(9) == DeviceState::Online);
    let now = world.control().configuration();
    assert_eq!(now.pool.devices[7].state, DeviceState::Failed);
    start_again(&mut world, 6);
    assert_eq!(*world.control().configuration(), *now);
    assert_eq!(format_of(&mut world, 7), (2, 0));
    // More devices than a program takes that reads no format 3: 40 in the pool as ever, and 960 in none.
    world.shape = Shape { servers: 100, ..shape };
    world.first_devices = Some(shape.devices());
    start_again(&mut world, 8);
    let grown = world.control().configuration();
    assert!(grown.pool.devices.len() == 1000 && grown.pool.devices[7] == now.pool.devices[7]);
    start_again(&mut world, 9);
    assert_eq!(*world.control().configuration(), *grown);
    let pages = grown.to_bytes().unwrap().len().div_ceil(1024);
    assert_eq!(format_of(&mut world, 10), (3, pages));
}
