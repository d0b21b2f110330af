//! Scenarios of device, process, node and rack states as text: what happens in `scenarios/*.txt`, and what control made of it below each step.
//!
//! The daemon, the servers' heartbeats and the subscriber are the real ones, over the simulated network on virtual time. Of a server only its
//! copies are played: a step says what it tells control of them. Lines with four spaces in front are written by this test: it plays the steps
//! again and fails at the first line that is another. `CLOVIS_UPDATE_DOCS=1 cargo test -p control --test scenarios` writes the
//! files anew; the change is then reviewed as a diff. The words of a file: docs/testing.md#scenarios. Start at [`play`].
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // test code, helpers included

mod support;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::{Endpoint, Fid, FidType, Instant};
use control::{Control, ControlConfig, OperatorFile};
use faces::heartbeat::{Heartbeat, Registrant};
use faces::{ClusterFile, ConfClient, DeviceState};
use fops::Fop;
use fops::conf::{
    DeviceCommand, DeviceEvidence, DeviceHealth, DeviceOrder, DeviceReport, Event, EventsGet,
    RegisteredDevice,
};
use fops::repair::{RepairGet, RepairProgress, RepairTurn, RepairWord};
use rpc::{Bulk, CallError, CallOptions, RpcConfig, RpcMachine};
use runtime::{Arena, ArenaConfig, Counters, Locality, LocalityConfig, LocalityHandle, SimulatedClock, Task};
use spdk_stob::{SimDisk, SimFaults as DiskFaults};
use verbs_net::{Fabric, SimFabric, SimFaults, TmConfig, Token, TransferMachine};

use support::World as _;

/// Whoever asks control gives up after this.
const PATIENCE: Duration = Duration::from_secs(2);
/// A server that starts does after this.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// What follows from the last step is durable, and told, long before.
const AFTER_THE_LAST_STEP: Duration = Duration::from_millis(100);
/// Steps of one time follow each other; each takes some messages, and the first ones of a pair a connection.
const STEP_TIME_MAX: Duration = Duration::from_millis(100);
/// Of control's clock when the scenario begins, in seconds since 1970.
const BEGIN_UNIX_S: u64 = 1_000_000_000;
const LATENCY: Duration = Duration::from_micros(30);
const CONTROL: usize = 0;
const OPERATOR: usize = 1000;
const DEVICE_BLOCKS: u64 = 65_536;
const FREE_BLOCKS: u64 = 60_000;

fn endpoint(node: usize) -> Endpoint {
    format!("{node}@sim:12345:34:0").parse().unwrap()
}

/// Kinds of things that a scenario names, `device-3`.
const NAMES: [(&str, FidType); 4] = [
    ("device", FidType::Device),
    ("server", FidType::Process),
    ("node", FidType::Node),
    ("rack", FidType::Rack),
];

fn named(kind: &str, word: &str) -> Result<Fid, String> {
    let fid_type = NAMES.iter().find(|(name, _)| *name == kind).unwrap().1;
    let number = word.strip_prefix(kind).and_then(|rest| rest.strip_prefix('-'));
    let number = number.and_then(|number| number.parse().ok()).filter(|number| *number > 0);
    number
        .map(|number| Fid::new(fid_type, 1, number))
        .ok_or_else(|| format!("{word:?} is no {kind}: it has a number, {kind}-1"))
}

fn name(fid: Fid) -> String {
    match NAMES.iter().find(|(_, fid_type)| fid.is(*fid_type)) {
        Some((kind, _)) => format!("{kind}-{}", fid.key),
        None => fid.to_string(),
    }
}

fn seconds(word: &str) -> Result<Duration, String> {
    let number = word.strip_suffix('s').and_then(|number| number.parse::<f64>().ok());
    let number = number.and_then(|number| Duration::try_from_secs_f64(number).ok());
    number.ok_or_else(|| format!("{word:?} is no time: it is written 3s or 3.75s"))
}

/// Down to a hundredth of a second: messages take some ten microseconds.
fn time(at: Instant) -> String {
    let hundredths = at.since(Instant::ZERO).as_millis() / 10;
    format!("{}.{:02}s", hundredths / 100, hundredths % 100)
}

struct ServerLine {
    rack: Option<Fid>,
    node: Option<Fid>,
    server: Fid,
    devices: Vec<Fid>,
}

/// The lines before the first step.
#[derive(Default)]
struct Head {
    layout: Option<String>,
    lease: Option<Duration>,
    /// As in `[profile]`.
    profile: Vec<String>,
    servers: Vec<ServerLine>,
}

impl Head {
    fn read(&mut self, line: &str) -> Result<(), String> {
        let mut words = line.split_whitespace().peekable();
        match words.peek() {
            Some(&"layout") => self.layout = words.nth(1).map(str::to_owned),
            Some(&"lease") => self.lease = Some(seconds(words.nth(1).unwrap_or_default())?),
            Some(&"profile") => self.profile.push(words.skip(1).collect::<Vec<_>>().join(" ")),
            _ => {
                let rack = words.next_if(|word| word.starts_with("rack-"));
                let node = words.next_if(|word| word.starts_with("node-"));
                let (rack, node) =
                    (rack.map(|word| named("rack", word)), node.map(|word| named("node", word)));
                let wanted = || {
                    "before the first step stand: layout N+K+S, lease TIME, profile KEY = VALUE, and for each server [rack-1] [node-1] server-1 device-1 device-2".to_owned()
                };
                let server = words.next().ok_or_else(wanted)?;
                let server = named("server", server).map_err(|error| format!("{error}; {}", wanted()))?;
                let devices = words.map(|word| named("device", word)).collect::<Result<Vec<_>, _>>()?;
                let (rack, node) = (rack.transpose()?, node.transpose()?);
                self.servers.push(ServerLine { rack, node, server, devices });
            }
        }
        Ok(())
    }

    /// The cluster file, as an operator would write it.
    fn cluster_text(&self) -> Result<String, String> {
        let layout = self.layout.as_ref().ok_or("no layout stands before the first step: layout 2+1+1")?;
        let mut text = format!(
            "[cluster]\nname = \"scenario\"\nid = \"0xc10715\"\nprofile = \"0x7000000000000001:0\"\ntransport = \"sim\"\ncredential = \"{}\"\n\
             [control]\nendpoint = \"{}\"\nstore = \"control.store\"\nstore_bytes = 16777216\n\
             [pool]\nfid = \"0x6f00000000000001:1\"\nversion = \"0x7600000000000001:1\"\nlayout = \"{layout}\"\nunit_bytes = 65536\n",
            "07".repeat(32),
            endpoint(CONTROL),
        );
        let _ = writeln!(text, "[profile]\n{}", self.profile.join("\n"));
        let part = |text: &mut String, kind: &str, fid: Fid, inside: Option<Fid>| {
            let _ = writeln!(text, "[[{kind}]]\nfid = \"{fid}\"");
            if let Some(inside) = inside {
                let _ = writeln!(text, "in = \"{inside}\"");
            }
        };
        let (racks, nodes): (BTreeSet<_>, BTreeSet<_>) = (
            self.servers.iter().filter_map(|server| server.rack).collect(),
            self.servers.iter().filter_map(|server| server.node).collect(),
        );
        racks.iter().for_each(|rack| part(&mut text, "rack", *rack, None));
        nodes.iter().for_each(|node| part(&mut text, "node", *node, None));
        for ServerLine { rack, node, server, devices } in &self.servers {
            let here = |fid_type| Fid::new(fid_type, 1, server.key);
            if rack.is_some() {
                part(&mut text, "enclosure", here(FidType::Enclosure), *rack);
                part(&mut text, "controller", here(FidType::Controller), Some(here(FidType::Enclosure)));
            }
            let address = endpoint(usize::try_from(server.key).unwrap());
            let _ = writeln!(text, "[[server]]\nprocess = \"{server}\"\nendpoints = [\"{address}\"]");
            if let Some(node) = node {
                let _ = writeln!(text, "node = \"{node}\"");
            }
            for device in devices {
                let disk = Fid::new(FidType::Disk, 1, device.key);
                let _ = write!(
                    text,
                    "[[device]]\nfid = \"{device}\"\nserver = \"{server}\"\npath = \"{}\"\nsize_bytes = 268435456\n",
                    name(*device)
                );
                if rack.is_some() {
                    let _ = writeln!(text, "disk = \"{disk}\"");
                    part(&mut text, "disk", disk, Some(here(FidType::Controller)));
                }
            }
        }
        Ok(text)
    }
}

/// A server that runs.
struct Server {
    place: usize,
    endpoint: Endpoint,
    epoch: u64,
    rpc: RpcMachine,
    conf: ConfClient,
    /// Once control has taken it.
    heartbeat: Rc<RefCell<Option<Heartbeat>>>,
    _task: Task,
    /// What its heartbeats mark as failed.
    failed: Rc<RefCell<BTreeSet<Fid>>>,
}

/// What was heard since the last look.
#[derive(Default)]
struct Heard {
    events: Vec<(Instant, Event)>,
    waits: Vec<(Instant, String)>,
}

struct World {
    clock: SimulatedClock,
    localities: Vec<Option<Locality>>,
    /// Localities that stand still.
    hung: BTreeSet<usize>,
    net: SimFabric,
    store: SimDisk,
    lease: Option<Duration>,
    file: ClusterFile,
    text: String,
    /// Its locality's place, and the daemon.
    control: Option<(usize, Control)>,
    /// Of control and servers so far: the number of a start is its epoch.
    starts: u64,
    operator: RpcMachine,
    servers: BTreeMap<Fid, Server>,
    /// Number of the replacement that each device's disk was formatted for; 0 if it is not here.
    disks: BTreeMap<Fid, u32>,
    /// Bytes that were last said to be on a device in repair.
    copied: BTreeMap<Fid, u64>,
    heard: Rc<RefCell<Heard>>,
    /// Every event so far.
    events: Vec<Event>,
    states: BTreeMap<Fid, DeviceState>,
    tasks: Vec<Task>,
}

impl support::World for World {
    fn clock(&self) -> &SimulatedClock {
        &self.clock
    }

    fn turn(&mut self, end: Instant) {
        let (localities, hung) = (&mut self.localities, &self.hung);
        support::turn_rounds(&self.clock, end, |now| {
            let awake = localities.iter_mut().enumerate().filter(|(place, _)| !hung.contains(place));
            support::turn_each(awake.filter_map(|(_, locality)| locality.as_mut()), now)
        });
    }
}

fn new_locality(localities: &mut Vec<Option<Locality>>) -> (usize, LocalityHandle) {
    let place = localities.len();
    let locality = Locality::new(LocalityConfig {
        index: 0,
        name: format!("node-{place}"),
        seed: 1000 + base::units::wide(place),
        counters: Arc::new(Counters::default()),
        arena: Arena::new(ArenaConfig { capacity_bytes: 8 << 20 }).unwrap(),
        crowd: None,
    });
    let handle = locality.handle();
    localities.push(Some(locality));
    (place, handle)
}

fn new_machine(locality: &LocalityHandle, net: &SimFabric, at: Endpoint, epoch: u64) -> RpcMachine {
    let config = RpcConfig::default();
    let tm = TmConfig::new(at, true, epoch, Token::new([7; 32]), Rc::clone(&config.config_version));
    let tm = TransferMachine::start(locality, &Fabric::Sim(net.clone()), tm).unwrap();
    RpcMachine::start(locality, tm, config)
}

/// Asks control; an answer or why there is none, in words.
async fn ask<F: Fop>(rpc: &RpcMachine, fop: F, wait: Duration) -> Result<F::Reply, String> {
    let options = CallOptions::until(rpc.locality().now() + wait);
    match rpc.call(endpoint(CONTROL), &fop, Bulk::none(), options).await {
        Ok(answer) => Ok(answer.reply),
        Err(CallError::Fop(error)) => Err(format!("refused: {error}")),
        Err(_) => Err("no answer".to_owned()),
    }
}

/// A subscriber that hears everything, also when control was away.
async fn follow(rpc: RpcMachine, heard: Rc<RefCell<Heard>>) {
    let mut after = 0;
    loop {
        let Ok(reply) = ask(&rpc, EventsGet { after, wait_ms: 1000 }, PATIENCE).await else {
            rpc.locality().sleep(Duration::from_millis(100)).await;
            continue;
        };
        let now = rpc.locality().now();
        after = reply.events.last().map_or(after, |last| last.number);
        heard.borrow_mut().events.extend(reply.events.into_iter().map(|event| (now, event)));
    }
}

fn numbers(events: &[Event]) -> String {
    match (events.first(), events.last()) {
        (Some(first), Some(last)) if first.number < last.number => {
            format!("#{}-{}", first.number, last.number)
        }
        (Some(first), _) => format!("#{}", first.number),
        _ => "nothing".to_owned(),
    }
}

impl World {
    fn start(head: &Head) -> Result<World, String> {
        let text = head.cluster_text()?;
        let file = ClusterFile::parse(&text).map_err(|error| format!("no such cluster: {error}"))?;
        let text = ClusterFile::hide_credential(&text).map_err(|error| error.to_string())?;
        let mut localities = Vec::new();
        let net = SimFabric::new(6);
        // Always the same: who came first is no matter of the seed.
        net.set_faults(SimFaults { latency_min: LATENCY, latency_max: LATENCY, ..SimFaults::default() });
        let (_, locality) = new_locality(&mut localities);
        let operator = new_machine(&locality, &net, endpoint(OPERATOR), 1);
        let heard = Rc::<RefCell<Heard>>::default();
        let tasks = vec![locality.spawn("subscriber", follow(operator.clone(), Rc::clone(&heard)))];
        let mut world = World {
            clock: SimulatedClock::default(),
            localities,
            hung: BTreeSet::new(),
            net,
            store: SimDisk::new(6, 8192, DiskFaults::default()),
            lease: head.lease,
            file,
            text,
            control: None,
            starts: 1,
            operator,
            servers: BTreeMap::new(),
            disks: BTreeMap::new(),
            copied: BTreeMap::new(),
            heard,
            events: Vec::new(),
            states: BTreeMap::new(),
            tasks,
        };
        world.start_control()?;
        Ok(world)
    }

    fn epoch(&mut self) -> u64 {
        self.starts += 1;
        self.starts
    }

    fn start_control(&mut self) -> Result<(), String> {
        let epoch = self.epoch();
        let (place, locality) = new_locality(&mut self.localities);
        let (initial, store) = (self.file.initial_configuration(), Box::new(self.store.backend()));
        let mut config = ControlConfig::new(Token::new([7; 32]), epoch, initial, store);
        let credential = self.file.cluster.credential;
        let unix_s = BEGIN_UNIX_S + self.clock.now().since(Instant::ZERO).as_secs();
        config.file = Some(OperatorFile { text: self.text.clone(), credential, unix_s });
        config.lease = self.lease.unwrap_or(config.lease);
        let fabric = Fabric::Sim(self.net.clone());
        let control =
            self.run(Control::start(&locality, &fabric, config)).map_err(|error| error.to_string())?;
        self.control = Some((place, control));
        Ok(())
    }

    fn kill_control(&mut self) -> Result<(), String> {
        let (place, control) = self.control.take().ok_or("control does not run")?;
        drop(control);
        self.localities[place] = None;
        self.net.crash(endpoint(CONTROL));
        self.store.crash();
        Ok(())
    }

    fn server(&self, process: Fid) -> Result<&Server, String> {
        self.servers.get(&process).ok_or_else(|| format!("{} does not run", name(process)))
    }

    fn server_of(&self, device: Fid) -> Result<&Server, String> {
        let section = self.file.devices.iter().find(|section| section.fid == device);
        self.server(section.ok_or_else(|| format!("{} is not in this cluster", name(device)))?.server)
    }

    fn registered(&self, process: Fid) -> Vec<RegisteredDevice> {
        let devices = self.file.devices.iter().filter(|device| device.server == process);
        let registered = |device: Fid| RegisteredDevice {
            device,
            endpoint: endpoint(usize::try_from(process.key).unwrap()),
            size_blocks: DEVICE_BLOCKS,
            replacement: self.disks.get(&device).copied().unwrap_or(0),
        };
        devices.map(|device| registered(device.fid)).collect()
    }

    fn start_server(&mut self, process: Fid) -> Result<(), String> {
        if self.servers.contains_key(&process) {
            return Err(format!("{} runs already", name(process)));
        }
        self.file.server(process).ok_or_else(|| format!("{} is not in this cluster", name(process)))?;
        let (epoch, devices) = (self.epoch(), self.registered(process));
        let endpoint_here = endpoint(usize::try_from(process.key).unwrap());
        let (place, locality) = new_locality(&mut self.localities);
        let rpc = new_machine(&locality, &self.net, endpoint_here, epoch);
        let conf = ConfClient::connect(&rpc, endpoint(CONTROL));
        let failed = Rc::<RefCell<BTreeSet<Fid>>>::default();
        let (sick, fids) = (Rc::clone(&failed), devices.iter().map(|one| one.device).collect::<Vec<_>>());
        let health = move || {
            let of = |device: &Fid| {
                let failed = sick.borrow().contains(device);
                DeviceHealth { device: *device, free_blocks: FREE_BLOCKS, errors: u64::from(failed), failed }
            };
            fids.iter().map(of).collect()
        };
        let deadline = self.clock.now() + START_PATIENCE;
        let registrant = Registrant { process, epoch, devices };
        let heartbeat = Rc::<RefCell<Option<Heartbeat>>>::default();
        let (beats, asks, heard) = (Rc::clone(&heartbeat), conf.clone(), Rc::clone(&self.heard));
        let here = locality.clone();
        let start = async move {
            match Heartbeat::start(&asks, registrant, health, deadline).await {
                Ok(started) => *beats.borrow_mut() = Some(started),
                Err(why) => {
                    heard.borrow_mut().waits.push((here.now(), format!("{} ends: {why}", name(process))))
                }
            }
        };
        let task = locality.spawn("start", start);
        let server =
            Server { place, endpoint: endpoint_here, epoch, rpc, conf, heartbeat, failed, _task: task };
        self.servers.insert(process, server);
        Ok(())
    }

    fn kill_server(&mut self, process: Fid) -> Result<(), String> {
        self.server(process)?;
        let server = self.servers.remove(&process).unwrap();
        let (place, at) = (server.place, server.endpoint);
        drop(server);
        self.hung.remove(&place);
        self.localities[place] = None;
        self.net.crash(at);
        Ok(())
    }

    /// Somebody tells control what it saw of a device.
    fn report(&mut self, rpc: &RpcMachine, device: Fid, evidence: DeviceEvidence) -> String {
        match self.run(ask(rpc, DeviceReport { device, evidence }, PATIENCE)) {
            Ok(reply) => format!("v{}", reply.version),
            Err(why) => why,
        }
    }

    fn command(&mut self, device: Fid, order: DeviceOrder) -> String {
        let rpc = self.operator.clone();
        match self.run(ask(&rpc, DeviceCommand { device, order }, PATIENCE)) {
            Ok(reply) => format!(
                "{}{}, {}",
                reply.state,
                if reply.is_new { "" } else { ", as before" },
                if reply.is_heeded { "heeded" } else { "not heeded yet" }
            ),
            Err(why) => why,
        }
    }

    /// The server does what is ordered: the device's disk is another one now, or its own, blank.
    fn format(&mut self, device: Fid) -> Result<(), String> {
        let server = self.server_of(device)?;
        let known = server.conf.current().ok_or("its server has no configuration")?;
        let process = known.device(device).map(|found| found.process).unwrap_or_default();
        let wanted = known.replacement_of(device);
        if self.disks.insert(device, wanted).unwrap_or(0) == wanted {
            return Err(format!("no disk is ordered for {} as far as its server knows", name(device)));
        }
        let (server, devices) = (self.server(process)?, self.registered(process));
        server.failed.borrow_mut().remove(&device);
        let heartbeat = server.heartbeat.borrow();
        let heartbeat = heartbeat.as_ref().ok_or_else(|| format!("{} is not registered", name(process)))?;
        heartbeat.register_again(devices);
        Ok(())
    }

    /// The server that copies to a device, or for it, says so much and is told what to do.
    fn copy(&mut self, device: Fid, words: &[&str]) -> Result<String, String> {
        let bytes = self.copied.get(&device).copied().unwrap_or(0);
        let so_far = |bytes, lost_count| RepairProgress {
            bytes,
            lost_count,
            last: (bytes > 0).then(|| Fid::new(FidType::Object, 1, bytes)),
            ..RepairProgress::default()
        };
        let count = |word: &str| word.parse::<u64>().map_err(|_| format!("{word:?} is no count"));
        let word = match words {
            ["asks"] => RepairWord::Asks,
            [bytes, "bytes"] => RepairWord::Copies(so_far(count(bytes)?, 0)),
            ["complete"] => RepairWord::Ended(so_far(bytes, 0)),
            [lost, "objects", "lost"] => RepairWord::Ended(so_far(bytes, count(lost)?)),
            ["fails:", why @ ..] => RepairWord::Fails(so_far(bytes, 0), why.join(" ")),
            _ => {
                return Err(
                    "of a copy it is said: asks, N bytes, complete, N objects lost, fails: WHY".to_owned()
                );
            }
        };
        let control = &self.control.as_ref().ok_or("control does not run")?.1;
        let configuration = control.configuration();
        let found = configuration.device(device).ok_or("no such device")?;
        let job = configuration.spare_slot_of(device).filter(|slot| slot.phase.is_job());
        let (process, replacement) = match job {
            Some(slot) => {
                let copier = configuration.spare_copier(slot.device).ok_or("no server could copy")?;
                (copier.process, slot.job)
            }
            None => (found.process, found.replaced),
        };
        if let RepairWord::Copies(progress) = &word {
            self.copied.insert(device, progress.bytes);
        }
        let server = self.server(process)?;
        let (rpc, epoch) = (server.rpc.clone(), server.epoch);
        let turn = RepairTurn { process, epoch, device, replacement, word };
        Ok(match self.run(ask(&rpc, turn, PATIENCE)) {
            Ok(reply) => {
                self.copied.insert(device, reply.progress.bytes);
                let order = format!("{:?}", reply.order).to_lowercase();
                let rate = match reply.bytes_per_second {
                    0 => String::new(),
                    rate => format!(", at most {rate} bytes a second"),
                };
                format!("{} is told: {order}, {} bytes are there{rate}", name(process), reply.progress.bytes)
            }
            Err(why) => why,
        })
    }

    fn repairs(&mut self) -> String {
        let rpc = self.operator.clone();
        let reply = match self.run(ask(&rpc, RepairGet { after: None }, PATIENCE)) {
            Ok(reply) => reply,
            Err(why) => return why,
        };
        let mut lines = Vec::new();
        for repair in &reply.repairs {
            let mut line = format!(
                "{} by {}: {}, {} bytes",
                name(repair.device),
                name(repair.process),
                repair.state,
                repair.progress.bytes
            );
            if repair.bytes_per_second > 0 {
                let _ = write!(line, ", {} a second", repair.bytes_per_second);
            }
            if repair.progress.lost_count > 0 {
                let _ = write!(line, ", {} objects lost", repair.progress.lost_count);
            }
            if !repair.reason.is_empty() {
                let _ = write!(line, " ({})", repair.reason);
            }
            lines.push(line);
        }
        if lines.is_empty() { "none".to_owned() } else { lines.join("\n") }
    }

    fn status(&mut self) -> String {
        let conf = ConfClient::connect(&self.operator, endpoint(CONTROL));
        let deadline = self.clock.now() + PATIENCE;
        let Ok(status) = self.run(conf.cluster_status(deadline)) else { return "no answer".to_owned() };
        let mut by_state: Vec<(&str, Vec<String>)> = Vec::new();
        for state in DeviceState::BY_LIFE {
            let of_it = status.devices.iter().filter(|device| device.state == state.word());
            by_state.push((state.word(), of_it.map(|device| name(device.device)).collect()));
        }
        let silent = status.processes.iter().filter(|process| !process.alive);
        by_state.push(("silent", silent.map(|process| name(process.process)).collect()));
        by_state.retain(|(_, names)| !names.is_empty());
        let by_state: Vec<String> =
            by_state.iter().map(|(state, names)| format!("{state}: {}", names.join(" "))).collect();
        format!("v{}  {}", status.version, by_state.join("; "))
    }

    /// One that was away asks for what it missed: it gets what the other was told at the time.
    fn catch_up(&mut self, after: u64) -> Result<String, String> {
        let rpc = self.operator.clone();
        let reply = match self.run(ask(&rpc, EventsGet { after, wait_ms: 0 }, PATIENCE)) {
            Ok(reply) => reply,
            Err(why) => return Ok(why),
        };
        let heard = self.heard.borrow();
        let all: Vec<&Event> =
            self.events.iter().chain(heard.events.iter().map(|(_, event)| event)).collect();
        let told: Vec<&Event> = all.into_iter().filter(|event| event.number > after).collect();
        if !reply.events.iter().eq(told.iter().copied()) {
            return Err(format!(
                "a late subscriber hears {:?}, and an early one heard {told:?}",
                reply.events
            ));
        }
        Ok(format!("{}, of #{} to #{}", numbers(&reply.events), reply.oldest, reply.newest))
    }

    fn wait_for_events(&mut self, after: u64) {
        let (rpc, heard) = (self.operator.clone(), Rc::clone(&self.heard));
        let locality = rpc.locality().clone();
        let wait = async move {
            let wait = Duration::from_secs(30);
            let reply = ask(&rpc, EventsGet { after, wait_ms: 30_000 }, wait + PATIENCE).await;
            let said = reply.map_or_else(|why| why, |reply| format!("hears {}", numbers(&reply.events)));
            heard.borrow_mut().waits.push((rpc.locality().now(), format!("subscriber {said}")));
        };
        self.tasks.push(locality.spawn("one-wait", wait));
    }

    /// Carries out one step. Answer: what whoever acted was told, if anything.
    fn step(&mut self, words: &[&str]) -> Result<String, String> {
        let done = |done: Result<(), String>| done.map(|()| String::new());
        match *words {
            ["status"] => Ok(self.status()),
            ["repairs"] => Ok(self.repairs()),
            ["control", "is", "killed"] => done(self.kill_control()),
            ["control", "starts"] => match self.control {
                Some(_) => Err("control runs already".to_owned()),
                None => done(self.start_control()),
            },
            ["subscriber", act @ ("asks" | "waits"), "after", number] => {
                let after = number.strip_prefix('#').and_then(|number| number.parse().ok());
                let after = after.ok_or_else(|| format!("{number:?} is no number of an event: #0, #12"))?;
                if act == "asks" {
                    return self.catch_up(after);
                }
                self.wait_for_events(after);
                Ok(String::new())
            }
            ["operator:", "device", "fail", device] => {
                let (device, rpc) = (named("device", device)?, self.operator.clone());
                Ok(self.report(&rpc, device, DeviceEvidence::Operator))
            }
            ["operator:", noun @ ("device" | "repair"), verb, device, ref force @ ..] => {
                let device = named("device", device)?;
                let order = match (noun, verb, force) {
                    ("device", "detach", []) => DeviceOrder::Detach { force: false },
                    ("device", "detach", ["--force"]) => DeviceOrder::Detach { force: true },
                    ("device", "attach", []) => DeviceOrder::Attach,
                    ("device", "replace", []) => DeviceOrder::Replace,
                    ("repair", "start", []) => DeviceOrder::RepairStart,
                    ("repair", "pause", []) => DeviceOrder::RepairPause,
                    ("repair", "resume", []) => DeviceOrder::RepairResume,
                    ("repair", "abort", []) => DeviceOrder::RepairAbort,
                    _ => return Err("an operator says: device fail|detach|attach|replace DEVICE, device detach DEVICE --force, repair start|pause|resume|abort DEVICE".to_owned()),
                };
                Ok(self.command(device, order))
            }
            [device, "copy:", ref said @ ..] => {
                let device = named("device", device)?;
                self.copy(device, said)
            }
            [device, "is", "formatted"] => {
                let device = named("device", device)?;
                done(self.format(device))
            }
            [device, "reports", "an", "error"] => {
                let device = named("device", device)?;
                let rpc = self.server_of(device)?.rpc.clone();
                Ok(self.report(&rpc, device, DeviceEvidence::IoError))
            }
            [device, "beats", "as", "failed"] => {
                let device = named("device", device)?;
                self.server_of(device)?.failed.borrow_mut().insert(device);
                Ok(String::new())
            }
            [server, "says:", device, ref saw @ ..] => {
                let (server, device) = (named("server", server)?, named("device", device)?);
                let evidence = match saw {
                    ["has", "an", "error"] => DeviceEvidence::IoError,
                    ["cannot", "be", "reached"] => DeviceEvidence::Unreachable,
                    _ => return Err("a server says of a device: has an error, cannot be reached".to_owned()),
                };
                let rpc = self.server(server)?.rpc.clone();
                Ok(self.report(&rpc, device, evidence))
            }
            [server, "starts"] => {
                let server = named("server", server)?;
                done(self.start_server(server))
            }
            [server, "is", "killed"] => {
                let server = named("server", server)?;
                done(self.kill_server(server))
            }
            [server, act @ ("hangs" | "wakes")] => {
                let place = self.server(named("server", server)?)?.place;
                let is_news = if act == "hangs" { self.hung.insert(place) } else { self.hung.remove(&place) };
                if is_news { Ok(String::new()) } else { Err(format!("{server} {act}, and did already")) }
            }
            _ => Err(format!("{:?} is no step; docs/testing.md#scenarios has them all", words.join(" "))),
        }
    }

    /// What subscribers heard since the last look, by line.
    fn told(&mut self) -> Result<Vec<String>, String> {
        let Heard { events, waits } = self.heard.take();
        let mut lines = Vec::new();
        let mut events = events.into_iter().peekable();
        while let Some((at, first)) = events.next() {
            let mut group = vec![first];
            let goes_with = |one: &Event, next: &(Instant, Event)| {
                let (heard_at, next) = next;
                *heard_at == at
                    && (one.version, &one.cause, &one.from, &one.to)
                        == (next.version, &next.cause, &next.from, &next.to)
            };
            while let Some((_, next)) = events.next_if(|next| goes_with(&group[0], next)) {
                group.push(next);
            }
            for event in &group {
                let last = self.events.last().map_or(0, |last| last.number);
                if event.number != last + 1 {
                    return Err(format!("the subscriber hears event #{} after #{last}", event.number));
                }
                let state =
                    DeviceState::from_word(&event.to).ok_or_else(|| format!("no state: {}", event.to))?;
                self.states.insert(event.subject, state);
                self.events.push(event.clone());
            }
            let names: Vec<String> = group.iter().map(|event| name(event.subject)).collect();
            let Event { version, cause, from, to, .. } = &group[0];
            let change = if from == to { to.clone() } else { format!("{from} -> {to}") };
            let (time, numbers) = (time(at), numbers(&group));
            let mut line = format!("{time}  {numbers} v{version}  {}  {change}  ({cause})", names.join(" "));
            // The subscriber was not connected: control was away.
            let decided_s = group[0].unix_s.saturating_sub(BEGIN_UNIX_S);
            if decided_s + 1 < at.since(Instant::ZERO).as_secs() {
                let _ = write!(line, ", decided at about {decided_s}s");
            }
            lines.push((at, line));
            // A node or rack is looked at when the version is whole.
            if events.peek().is_none_or(|(_, next)| next.version != *version) {
                lines.extend(self.parts_changed().into_iter().map(|line| (at, format!("{time}  {line}"))));
            }
        }
        lines.extend(waits.into_iter().map(|(at, line)| (at, format!("{}  {line}", time(at)))));
        lines.sort_by_key(|(at, _)| *at);
        Ok(lines.into_iter().map(|(_, line)| self.in_names(&line)).collect())
    }

    /// Nodes and racks with another state than before: docs/ha.md#other-things.
    fn parts_changed(&mut self) -> Vec<String> {
        let state = |fid: Fid| self.states.get(&fid).copied().unwrap_or(DeviceState::Unknown);
        let (file, tree) = (&self.file, &self.file.tree);
        let processes = |node: Fid| {
            let of_it = file.servers.iter().filter(move |server| server.node == Some(node));
            DeviceState::of_parts(of_it.map(|server| state(server.process)))
        };
        let devices = |rack: Fid| {
            let is_in = |disk: Option<Fid>| disk.and_then(|disk| tree.rack_of_disk(disk)) == Some(rack);
            let of_it = file.devices.iter().filter(move |device| is_in(device.disk));
            DeviceState::of_parts(of_it.map(|device| state(device.fid)))
        };
        let nodes = tree.nodes.iter().map(|node| (node.fid, processes(node.fid)));
        let racks = tree.racks.iter().map(|rack| (rack.fid, devices(rack.fid)));
        let now: Vec<(Fid, DeviceState)> =
            nodes.chain(racks).filter(|(part, now)| state(*part) != *now).collect();
        let line = |(part, now): (Fid, DeviceState)| {
            let before = self.states.insert(part, now).unwrap_or(DeviceState::Unknown);
            format!("{}  {} -> {}", name(part), before.word(), now.word())
        };
        now.into_iter().map(line).collect()
    }

    /// Text for people: fids by their names.
    fn in_names(&self, text: &str) -> String {
        let devices = self.file.devices.iter().map(|device| device.fid);
        let mut fids: Vec<Fid> =
            devices.chain(self.file.servers.iter().map(|server| server.process)).collect();
        // The longer number first: one may begin as another does.
        fids.sort_by_key(|fid| std::cmp::Reverse(fid.key));
        fids.iter().fold(text.to_owned(), |text, fid| {
            text.replace(&format!("device {fid}"), &name(*fid)).replace(&fid.to_string(), &name(*fid))
        })
    }
}

const INDENT: &str = "    ";

/// Plays a scenario. Answer: its text, with what control did now. Errors: file, line, and what was expected there.
fn play(file: &str, text: &str) -> Result<String, String> {
    let mut head = Head::default();
    let mut world: Option<World> = None;
    let mut out = String::new();
    // They stand in front of a step, behind what happens until it.
    let mut remarks = String::new();
    let write_told = |world: &mut World, out: &mut String| -> Result<(), String> {
        for line in world.told()? {
            let _ = writeln!(out, "{INDENT}{line}");
        }
        Ok(())
    };
    let mut last = 0;
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.starts_with(INDENT)) {
        let wrong = |error: String| format!("{file}:{number}: {error}");
        last = number;
        if line.is_empty() || line.starts_with('#') {
            let _ = writeln!(remarks, "{line}");
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["at", when, step @ ..] = words.as_slice() else {
            if world.is_some() {
                return Err(wrong(format!("{line:?} is no step: one begins with its time, at 3s")));
            }
            head.read(line).map_err(wrong)?;
            let _ = writeln!(out, "{}{line}", std::mem::take(&mut remarks));
            continue;
        };
        if world.is_none() {
            world = Some(World::start(&head).map_err(wrong)?);
        }
        let world = world.as_mut().unwrap();
        let due = Instant::ZERO + seconds(when).map_err(wrong)?;
        let now = world.clock.now();
        if due > now {
            world.pass(due.since(now));
        } else if now.since(due) > STEP_TIME_MAX {
            return Err(wrong(format!("{when} is over: it is {} already", time(now))));
        }
        write_told(world, &mut out).map_err(wrong)?;
        let _ = writeln!(out, "{}{line}", std::mem::take(&mut remarks));
        let answer = world.step(step).map_err(wrong)?;
        for line in world.in_names(&answer).lines() {
            let _ = writeln!(out, "{INDENT}: {line}");
        }
    }
    let Some(mut world) = world else { return Err(format!("{file}:{last}: no step: at 0s server-1 starts")) };
    world.pass(AFTER_THE_LAST_STEP);
    write_told(&mut world, &mut out).map_err(|error| format!("{file}:{last}: {error}"))?;
    out.push_str(&remarks);
    Ok(out)
}

/// Plays a scenario and compares. Errors: the first line that is another.
fn check(file: &str, text: &str) -> Result<(), String> {
    let fresh = play(file, text)?;
    let (mut written, mut found) = (text.lines(), fresh.lines());
    for number in 1.. {
        match (written.next(), found.next()) {
            (None, None) => break,
            (one, other) if one == other => {}
            (one, other) => {
                return Err(format!(
                    "{file}:{number}: control does another thing than is written\n  written: {}\n  now:     {}\n\
                     if that is wanted: CLOVIS_UPDATE_DOCS=1 cargo test -p control --test scenarios",
                    one.unwrap_or("the end"),
                    other.unwrap_or("the end")
                ));
            }
        }
    }
    Ok(())
}

#[test]
fn control_does_what_is_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut paths: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() > 2, "no scenarios in {}", folder.display());
    let is_updated = std::env::var_os("CLOVIS_UPDATE_DOCS").is_some();
    let mut failures = Vec::new();
    for path in paths {
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let outcome = if is_updated {
            play(&file, &text).map(|fresh| std::fs::write(&path, fresh).unwrap())
        } else {
            check(&file, &text)
        };
        failures.extend(outcome.err());
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_wrong_expectation_or_line_is_named() {
    // Played once: it is control's word then, also while the files are written anew.
    let text = play("silent_server.txt", include_str!("scenarios/silent_server.txt")).unwrap();
    let changed = text.replacen("online -> transient", "online -> failed", 1);
    assert_ne!(changed, text);
    let line = 1 + text.lines().zip(changed.lines()).position(|(one, other)| one != other).unwrap();
    let error = check("silent_server.txt", &changed).unwrap_err();
    assert!(error.starts_with(&format!("silent_server.txt:{line}: ")), "{error}");
    assert!(error.contains("written: ") && error.contains("online -> transient"), "{error}");
    assert_eq!(check("silent_server.txt", &text), Ok(()));
    // A line too few, and one too many.
    let (without_end, _) = text.trim_end().rsplit_once('\n').unwrap();
    assert!(check("short.txt", without_end).is_err());
    assert!(check("long.txt", &format!("{text}{INDENT}9.00s  nothing\n")).is_err());

    let head = "layout 1+1+0\nserver-1 device-1\nserver-2 device-2\n";
    let wrong = [
        ("at 0s server-1 sleeps", "no step"),
        ("at noon server-1 starts", "\"noon\" is no time"),
        ("server-1 starts", "one begins with its time"),
        ("at 1s server-9 starts", "server-9 is not in this cluster"),
        ("at 1s server-1 hangs", "server-1 does not run"),
        ("at 1s device-1 is formatted", "server-1 does not run"),
        ("at 1s operator: device heal device-1", "an operator says"),
        ("at 1s status\nat 0s status", "0s is over"),
    ];
    for (step, said) in wrong {
        // The first step makes the cluster.
        let error = play("wrong.txt", &format!("{head}at 0s status\n{step}\n")).unwrap_err();
        let line = if step.contains('\n') { 6 } else { 5 };
        assert!(error.starts_with(&format!("wrong.txt:{line}: ")) && error.contains(said), "{error}");
    }
    let no_cluster = play("wrong.txt", "layout 1+1+0\nserver-1 device-1\nat 0s status\n").unwrap_err();
    assert!(no_cluster.starts_with("wrong.txt:3: no such cluster"), "{no_cluster}");
    assert!(play("wrong.txt", "layuot 1+1+0\n").unwrap_err().contains("before the first step stand"));
}
