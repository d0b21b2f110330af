//! A whole small cluster in one thread on virtual time: a control daemon, servers, and a raw rpc client, each on its own
//! locality, over one fabric, on simulated disks. Used by the tests of this crate; larger simulations may include it by path.
//!
//! [`Turner`] is the part that knows no cluster: it turns localities and advances the clock when nobody has work. A future is
//! driven by [`Turner::run`], which ends with it, or fails the test past a bound of virtual time or of turns.
#![allow(dead_code)] // each test file uses a part of it
#![allow(clippy::unwrap_used)] // all of it is test code

use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use base::units::narrow;
use base::{Endpoint, Fid, FidType, Instant};
use control::{Control, ControlConfig, ControlError, OperatorFile};
use faces::cluster_file::{ClusterSection, ControlSection, DeviceSection, PoolSection, ServerSection};
use faces::{ClusterFile, ClusterId, Configuration, Credential, DeviceState, Transport};
use fops::Fop;
use rpc::{Answer, Bulk, CallError, CallOptions, RpcConfig, RpcMachine};
use runtime::{
    Arena, ArenaConfig, Counters, Locality, LocalityConfig, LocalityHandle, SharedBuffer, SimulatedClock,
};
use server::{Server, ServerConfig, ServerError};
use spdk_stob::{Backend, SimDisk, SimFaults};
use verbs_net::{Fabric, LoFabric, SimFabric, TmConfig, Token, TransferMachine};

/// Longest virtual time of one [`Turner::run`].
pub const RUN_TIME_MAX: Duration = Duration::from_secs(120);
/// Most turns of one [`Turner::run`].
pub const RUN_TURNS_MAX: u64 = 2_000_000;

/// Localities by number, on one virtual clock.
#[derive(Default)]
pub struct Turner {
    pub clock: SimulatedClock,
    localities: Vec<Option<Locality>>,
    seed: u64,
}

impl Turner {
    pub fn new(seed: u64) -> Turner {
        Turner { seed, ..Turner::default() }
    }

    /// A new locality: a node of its own, with its own arena and counters.
    pub fn add(&mut self, name: &str) -> (usize, LocalityHandle) {
        let place = self.localities.len();
        let index = u32::try_from(place).unwrap();
        let mut locality = Locality::new(LocalityConfig {
            index: 0,
            name: name.to_owned(),
            seed: self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(index)),
            counters: Arc::new(Counters::default()),
            arena: Arena::new(ArenaConfig { capacity_bytes: 64 << 20 }).unwrap(),
            crowd: None,
        });
        // It knows the time from the first moment on: what starts here counts from now.
        locality.turn(self.clock.now());
        let handle = locality.handle();
        self.localities.push(Some(locality));
        (place, handle)
    }

    /// The node is gone, with everything that ran on it.
    pub fn kill(&mut self, place: usize) {
        self.localities[place] = None;
    }

    /// Turns all localities until `future` is done.
    pub fn run<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        let end = self.clock.now() + RUN_TIME_MAX;
        for _ in 0..RUN_TURNS_MAX {
            if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return value;
            }
            let now = self.clock.now();
            assert!(now < end, "not done after {RUN_TIME_MAX:?} of virtual time");
            self.turn_once(end);
        }
        panic!("not done after {RUN_TURNS_MAX} turns");
    }

    /// Lets `duration` of virtual time pass.
    pub fn pass(&mut self, duration: Duration) {
        let end = self.clock.now() + duration;
        for _ in 0..RUN_TURNS_MAX {
            if self.clock.now() >= end {
                return;
            }
            self.turn_once(end);
        }
        panic!("{duration:?} did not pass in {RUN_TURNS_MAX} turns");
    }

    /// Turns all until none has work, then on to the next deadline, at most to `end`.
    fn turn_once(&mut self, end: Instant) {
        let now = self.clock.now();
        // Twice: what the driven future sent outside of a turn leaves with the flush at a turn's end, which is no progress of
        // that locality, and may reach one whose turn in this round is over.
        let mut next = end;
        for _ in 0..2 {
            let mut progressed = false;
            next = end;
            for locality in self.localities.iter_mut().flatten() {
                let turn = locality.turn(now);
                progressed |= turn.progressed;
                next = next.min(turn.next_deadline.unwrap_or(Instant::NEVER));
            }
            if progressed {
                return;
            }
        }
        // A deadline that has passed is work for the next turn; one nanosecond keeps a stuck driver from standing still.
        self.clock.advance_to(next.max(now + Duration::from_nanos(1)));
    }
}

/// What a cluster is made of.
#[derive(Clone)]
pub struct Shape {
    pub servers: usize,
    pub devices_per_server: usize,
    pub layout: &'static str,
    pub lease: Duration,
    pub device_blocks: u64,
    /// `Lo` or `Sim`.
    pub transport: Transport,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            servers: 2,
            devices_per_server: 2,
            layout: "2+1+1",
            lease: Duration::from_secs(3),
            device_blocks: 8192,
            transport: Transport::Lo,
        }
    }
}

struct Node<T> {
    place: usize,
    running: Option<T>,
}

/// The cluster.
pub struct Cluster {
    pub turner: Turner,
    pub fabric: Fabric,
    pub file: ClusterFile,
    pub shape: Shape,
    pub store: SimDisk,
    pub disks: Vec<SimDisk>,
    pub client: RpcMachine,
    /// Control starts with the text of `file`, which may then be changed.
    pub with_text: bool,
    control: Node<Control>,
    servers: Vec<Node<Server>>,
    epoch: u64,
}

pub fn lo_endpoint(tmid: usize) -> Endpoint {
    format!("0@lo:12345:34:{tmid}").parse().unwrap()
}

/// The endpoint of a node: control is 0, servers begin with 1, the client is 100.
pub fn endpoint(transport: Transport, node: usize) -> Endpoint {
    match transport {
        Transport::Sim => format!("{node}@sim:12345:34:0").parse().unwrap(),
        _ => lo_endpoint(node),
    }
}

pub fn device_fid(index: usize) -> Fid {
    Fid::new(FidType::Device, 1, base::units::wide(index) + 1)
}

pub fn process_fid(index: usize) -> Fid {
    Fid::new(FidType::Process, 1, base::units::wide(index) + 1)
}

/// The cluster file of a shape: control at 0, servers from 1, the client at 100.
pub fn cluster_file(shape: &Shape) -> ClusterFile {
    let servers = (0..shape.servers)
        .map(|index| ServerSection {
            process: process_fid(index),
            endpoints: vec![endpoint(shape.transport, 1 + index)],
            rails: Vec::new(),
            metrics: None,
            node: None,
        })
        .collect();
    let devices = (0..shape.servers * shape.devices_per_server)
        .map(|index| DeviceSection {
            fid: device_fid(index),
            server: process_fid(index / shape.devices_per_server),
            locality: 0,
            path: format!("device-{index}").into(),
            size_bytes: shape.device_blocks * 4096,
            disk: None,
        })
        .collect();
    ClusterFile {
        cluster: ClusterSection {
            name: "test".into(),
            id: ClusterId(0xc10715),
            profile: Fid::new(FidType::Profile, 1, 0),
            transport: shape.transport,
            security: faces::SecurityKind::Shared,
            encrypt: false,
            credential: Some(Credential::from_bytes([7; 32])),
        },
        control: ControlSection {
            endpoint: endpoint(shape.transport, 0),
            store: "store".into(),
            store_bytes: 16 << 20,
            metrics: None,
            number: None,
            members: Vec::new(),
        },
        pool: PoolSection {
            fid: Fid::new(FidType::Pool, 1, 1),
            version: Fid::new(FidType::PoolVersion, 1, 1),
            layout: shape.layout.parse().unwrap(),
            unit_bytes: 65536,
            name: None,
            devices: None,
        },
        pool_versions: Vec::new(),
        profile: faces::cluster_file::ProfileSection::default(),
        servers,
        devices,
        tree: Default::default(),
    }
}

impl Cluster {
    /// A running cluster on blank disks.
    pub fn start(seed: u64, shape: Shape) -> Cluster {
        let mut cluster = Cluster::without_servers(seed, shape);
        for index in 0..cluster.shape.servers {
            cluster.start_server(index).unwrap();
        }
        cluster
    }

    /// Control and the client only.
    pub fn without_servers(seed: u64, shape: Shape) -> Cluster {
        let file = cluster_file(&shape);
        Cluster::of_file(seed, shape, file, false)
    }

    /// Control and the client only, with disks for all devices of `shape` and a cluster file that may have fewer.
    pub fn of_file(seed: u64, shape: Shape, file: ClusterFile, with_text: bool) -> Cluster {
        let fabric = match shape.transport {
            Transport::Sim => Fabric::Sim(SimFabric::new(seed)),
            _ => Fabric::Lo(LoFabric::new()),
        };
        file.validate().unwrap();
        let disk = |index: u64| SimDisk::new(seed ^ index, shape.device_blocks, SimFaults::default());
        let mut turner = Turner::new(seed);
        let (_, client_locality) = turner.add("client");
        let client = raw_client(&client_locality, &fabric, endpoint(shape.transport, 100), 1, [7; 32]);
        let devices = base::units::wide(shape.servers * shape.devices_per_server);
        let mut cluster = Cluster {
            turner,
            fabric,
            file,
            store: disk(1000),
            disks: (0..devices).map(disk).collect(),
            client,
            with_text,
            control: Node { place: usize::MAX, running: None },
            servers: (0..shape.servers).map(|_| Node { place: usize::MAX, running: None }).collect(),
            epoch: 10,
            shape,
        };
        cluster.start_control().unwrap();
        cluster
    }

    fn next_epoch(&mut self) -> u64 {
        self.epoch += 1;
        self.epoch
    }

    pub fn start_control(&mut self) -> Result<(), ControlError> {
        let configuration = self.file.initial_configuration();
        self.start_control_with(configuration)
    }

    pub fn start_control_with(&mut self, configuration: Configuration) -> Result<(), ControlError> {
        let epoch = self.next_epoch();
        let (place, locality) = self.turner.add("control");
        let token = Token::new(self.file.cluster.credential.unwrap().bytes());
        let store = Box::new(self.store.backend());
        let config = ControlConfig {
            lease: self.shape.lease,
            file: self.with_text.then(|| OperatorFile {
                text: self.text(),
                credential: self.file.cluster.credential,
                unix_s: 0,
            }),
            ..ControlConfig::new(token, epoch, configuration, store)
        };
        let fabric = self.fabric.clone();
        let started = self.turner.run(Control::start(&locality, &fabric, config));
        match started {
            Ok(control) => {
                self.control = Node { place, running: Some(control) };
                Ok(())
            }
            Err(error) => {
                self.turner.kill(place);
                Err(error)
            }
        }
    }

    /// The cluster file as control gets it.
    pub fn text(&self) -> String {
        ClusterFile::hide_credential(&self.file.to_toml().unwrap()).unwrap()
    }

    pub fn start_server(&mut self, index: usize) -> Result<(), ServerError> {
        self.start_server_with(index, |_| {})
    }

    pub fn start_server_with(
        &mut self,
        index: usize,
        change: impl FnOnce(&mut ServerConfig),
    ) -> Result<(), ServerError> {
        self.start_server_at(index, |config, _| change(config))
    }

    /// `change` also gets the locality that the server is to live on.
    pub fn start_server_at(
        &mut self,
        index: usize,
        change: impl FnOnce(&mut ServerConfig, &LocalityHandle),
    ) -> Result<(), ServerError> {
        let epoch = self.next_epoch();
        let (place, locality) = self.turner.add("server");
        let token = Token::new(self.file.cluster.credential.unwrap().bytes());
        let process = process_fid(index);
        let first = index * self.shape.devices_per_server;
        let devices = (first..first + self.shape.devices_per_server)
            .map(|device| (device_fid(device), Box::new(self.disks[device].backend()) as Box<dyn Backend>))
            .collect();
        let mut config = ServerConfig {
            format: true,
            ..ServerConfig::new(self.endpoint(1 + index), process, self.endpoint(0), token, epoch, devices)
        };
        change(&mut config, &locality);
        let fabric = self.fabric.clone();
        let started = self.turner.run(Server::start(&locality, &fabric, config));
        match started {
            Ok(server) => {
                self.servers[index] = Node { place, running: Some(server) };
                Ok(())
            }
            Err(error) => {
                self.turner.kill(place);
                Err(error)
            }
        }
    }

    pub fn control(&self) -> &Control {
        self.control.running.as_ref().expect("control runs")
    }

    pub fn server(&self, index: usize) -> &Server {
        self.servers[index].running.as_ref().expect("the server runs")
    }

    /// The daemon dies; its disk keeps what was flushed.
    pub fn kill_control(&mut self) {
        self.control.running = None;
        self.turner.kill(self.control.place);
        self.store.crash();
    }

    /// The server dies; its disks keep what was flushed.
    pub fn kill_server(&mut self, index: usize) {
        self.servers[index].running = None;
        self.turner.kill(self.servers[index].place);
        let first = index * self.shape.devices_per_server;
        for disk in &self.disks[first..first + self.shape.devices_per_server] {
            disk.crash();
        }
    }

    /// The daemon stops in order.
    pub fn stop_control(&mut self) -> Result<(), ControlError> {
        let control = self.control.running.take().expect("control runs");
        let outcome = self.turner.run(control.stop());
        self.turner.kill(self.control.place);
        outcome
    }

    /// The server stops in order.
    pub fn stop_server(&mut self, index: usize) -> Result<(), ServerError> {
        let server = self.servers[index].running.take().expect("the server runs");
        let outcome = self.turner.run(server.stop());
        self.turner.kill(self.servers[index].place);
        outcome
    }

    pub fn endpoint(&self, node: usize) -> Endpoint {
        endpoint(self.shape.transport, node)
    }

    /// The simulated net, to cut and to heal.
    pub fn sim(&self) -> SimFabric {
        match &self.fabric {
            Fabric::Sim(sim) => sim.clone(),
            other => panic!("not a simulated net: {}", std::any::type_name_of_val(other)),
        }
    }

    /// Version and states, as in `v3 online failed`.
    pub fn states(&self) -> String {
        let configuration = self.control().configuration();
        let words: Vec<&str> = configuration.pool.devices.iter().map(|device| device.state.word()).collect();
        format!("v{} {}", configuration.version, words.join(" "))
    }

    pub fn state(&self, device: usize) -> DeviceState {
        self.control().configuration().pool.devices[device].state
    }

    /// A call of the raw client, with ten seconds.
    pub fn call<F: Fop>(&mut self, to: Endpoint, fop: &F, bulk: Bulk) -> Result<Answer<F::Reply>, CallError> {
        let client = self.client.clone();
        let deadline = self.turner.clock.now() + Duration::from_secs(10);
        self.turner.run(client.call(to, fop, bulk, CallOptions::until(deadline)))
    }

    /// A call without bulk, to the server of a device.
    pub fn ask<F: Fop>(&mut self, device: usize, fop: &F) -> Result<F::Reply, CallError> {
        let to = self.endpoint(1 + device / self.shape.devices_per_server);
        self.call(to, fop, Bulk::none()).map(|answer| answer.reply)
    }

    /// The version that rides on the client's requests.
    pub fn set_client_version(&self, version: u64) {
        self.client.config_version().set(version);
    }

    /// Waits until `done`, looking once a millisecond of virtual time.
    pub fn wait_until(&mut self, what: &str, done: impl Fn(&Cluster) -> bool) {
        for _ in 0..30_000 {
            if done(self) {
                return;
            }
            self.turner.pass(Duration::from_millis(1));
        }
        panic!("not within 30 s of virtual time: {what}; states {}", self.states());
    }

    /// A buffer of the client's arena with a pattern of `seed`.
    pub fn pattern(&self, seed: u8, bytes: usize) -> SharedBuffer {
        let mut buffer = self.client.locality().arena().try_alloc(bytes).expect("room");
        for (index, byte) in buffer.iter_mut().enumerate() {
            *byte = seed.wrapping_add(u8::try_from(index % 251).unwrap());
        }
        buffer.freeze()
    }

    /// An empty sink segment.
    pub fn sink(&self, bytes: usize) -> runtime::Buffer {
        self.client.locality().arena().try_alloc(bytes).expect("room")
    }
}

/// An rpc machine without services.
pub fn raw_client(
    locality: &LocalityHandle,
    fabric: &Fabric,
    endpoint: Endpoint,
    epoch: u64,
    token: [u8; 32],
) -> RpcMachine {
    let config = RpcConfig::default();
    let version = Rc::clone(&config.config_version);
    let tm = TmConfig::new(endpoint, true, epoch, token, version);
    let tm = TransferMachine::start(locality, fabric, tm).unwrap();
    RpcMachine::start(locality, tm, config)
}

/// CRC-32C of each block.
pub fn checksums(parts: &[SharedBuffer]) -> Vec<u32> {
    let block = narrow(base::units::BLOCK_BYTES);
    parts.iter().flat_map(|part| part.chunks(block).map(base::checksum::crc32c).collect::<Vec<_>>()).collect()
}
