//! Spare units through the whole system: a failed device whose units are rebuilt in spare units while clients work, more failures than the layout
//! outlives without that, another disk and the way back; and the deaths of copier and control in the middle of each. Everything real, on the
//! simulated network, simulated disks and virtual time.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // test code, helpers included

#[path = "../../server/tests/support/mod.rs"]
mod support;

mod copying;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use base::units::wide;
use client::{Client, ClientConfig, Object};
use copying::{GROUP, bytes, client_config, extent, get, id, parts, pool, pool_version, put, read};
use faces::cluster_file::ClusterFile;
use faces::{CopyEnd, Copying, DeviceState, SparePhase, Transport};
use fops::conf::{DeviceCommandReply, DeviceEvidence, DeviceOrder, DeviceReport};
use fops::repair::{RepairProgress, RepairStatus};
use rpc::{Bulk, CallError};
use support::{Cluster, Shape, cluster_file, device_fid, endpoint};

/// Devices, each with a server of its own, in one pool of 2+2+2.
const ALL: usize = 8;

type Model = BTreeMap<u64, Vec<u8>>;

struct World {
    cluster: Cluster,
    client: Client,
    /// Reads all units of a group and compares parity with data.
    verifier: Client,
    nodes: usize,
    /// Number of the transaction in force.
    base: u64,
}

impl World {
    /// `wait`: so many seconds until units are rebuilt in spare units by themselves.
    fn start(seed: u64, rate: Option<u64>, wait: u64) -> World {
        World::with_pool_of(ALL, seed, rate, wait)
    }

    /// The same with the first `devices` in the pool, and the others in none.
    fn with_pool_of(devices: usize, seed: u64, rate: Option<u64>, wait: u64) -> World {
        let shape = copying::one_device_each(ALL, "2+2+2");
        let mut world = World::without_servers(seed, shape, |file| {
            file.profile.repair_bytes_per_second = rate;
            file.profile.spare_repair_after_seconds = Some(wait);
            file.pool.devices = (devices < ALL).then_some(wide(devices));
        });
        (0..ALL).for_each(|index| world.start_server(index));
        world
    }

    /// A file that `change` has made of that of `shape`, and nobody yet who serves.
    fn without_servers(seed: u64, shape: Shape, change: impl FnOnce(&mut ClusterFile)) -> World {
        let mut file = cluster_file(&shape);
        change(&mut file);
        let mut cluster = Cluster::of_file(seed, shape, file, true);
        let mut clients = Vec::new();
        for (node, read_verify) in [(150, false), (151, true)] {
            let (_, locality) = cluster.turner.add("client");
            let (config, fabric) = (client_config(&cluster, node), cluster.fabric.clone());
            let config = ClientConfig { read_verify, ..config };
            clients.push(cluster.turner.run(Client::connect(&locality, &fabric, config)).unwrap());
        }
        let (verifier, client) = (clients.pop().unwrap(), clients.pop().unwrap());
        World { cluster, client, verifier, nodes: 160, base: 1 }
    }

    fn start_server(&mut self, index: usize) {
        self.nodes += 1;
        copying::start_server(&mut self.cluster, index, self.nodes);
    }

    fn run<T>(&mut self, future: impl Future<Output = T>) -> T {
        self.cluster.turner.run(future)
    }

    /// All devices are in the pool's second version, and its objects begin to move there.
    fn expand_and_rebalance(&mut self) {
        let section = pool_version(2, "2+2+2", ALL);
        let change = |file: &mut ClusterFile| file.pool_versions.push(section);
        copying::apply(&mut self.cluster, &mut self.base, change).unwrap();
        copying::order(&mut self.cluster, pool(), DeviceOrder::RepairStart).unwrap();
    }

    fn moves(&self) -> RepairStatus {
        let mut all = self.cluster.control().repairs().into_iter();
        all.find(|repair| repair.device == pool()).unwrap()
    }

    fn until_moved(&mut self) {
        self.until("the end of the moves", |world| world.moves().state == "done");
        let client = self.client.clone();
        let all = self.run(async move { client.list(None, 1000).await }).unwrap();
        let newest = pool_version(2, "2+2+2", ALL).fid;
        assert!(all.iter().all(|stat| stat.pool_version == newest), "{all:?}");
    }

    fn fail(&mut self, device: usize) {
        let report = DeviceReport { device: device_fid(device), evidence: DeviceEvidence::Operator };
        self.cluster.call(endpoint(Transport::Sim, 0), &report, Bulk::none()).unwrap();
    }

    fn order(&mut self, device: usize, order: DeviceOrder) -> Result<DeviceCommandReply, CallError> {
        copying::order(&mut self.cluster, device_fid(device), order)
    }

    fn refusal(&mut self, device: usize, order: DeviceOrder) -> String {
        self.order(device, order).expect_err("refused").to_string()
    }

    fn phase(&self, device: usize) -> Option<SparePhase> {
        let configuration = self.cluster.control().configuration();
        configuration.spare_slot_of(device_fid(device)).map(|slot| slot.phase)
    }

    fn repair(&self, device: usize) -> RepairStatus {
        let mut all = self.cluster.control().repairs().into_iter();
        all.find(|repair| repair.device == device_fid(device)).unwrap()
    }

    fn until(&mut self, what: &str, wanted: impl Fn(&World) -> bool) {
        for _ in 0..60_000 {
            if wanted(self) {
                return;
            }
            self.cluster.turner.pass(Duration::from_millis(10));
        }
        panic!("{what} does not come: {}; {:?}", self.cluster.states(), self.cluster.control().repairs());
    }

    fn until_phase(&mut self, device: usize, phase: Option<SparePhase>) {
        self.until(&format!("{phase:?} of device {device}"), |world| world.phase(device) == phase);
    }

    fn put(&mut self, lo: u64, content: &[u8]) {
        let client = self.client.clone();
        self.run(put(client, id(lo), content.to_vec())).unwrap();
    }

    fn fill(&mut self, objects: u64) -> Model {
        let mut model = Model::new();
        for lo in 1..=objects {
            // Whole groups, and some that end inside of one.
            let count =
                usize::try_from(lo % 4 + 2).unwrap() * GROUP + usize::try_from(lo % 3).unwrap() * 5000;
            model.insert(lo, bytes(lo, count));
            self.put(lo, &model[&lo]);
        }
        let client = self.client.clone();
        self.run(async move {
            let object = client.create(id(90), None).await.unwrap();
            object.write(extent(5 * GROUP, 4096), parts(&client, &bytes(1, 4096))).await.unwrap();
            object.write(extent(GROUP + 8192, 4096), parts(&client, &bytes(2, 4096))).await.unwrap();
        });
        let mut holes = vec![0; 5 * GROUP + 4096];
        holes[5 * GROUP..].copy_from_slice(&bytes(1, 4096));
        holes[GROUP + 8192..GROUP + 12288].copy_from_slice(&bytes(2, 4096));
        model.insert(90, holes);
        model
    }

    fn check(&mut self, model: &Model, when: &str) {
        for (lo, content) in model {
            let client = self.client.clone();
            let read = self.run(get(client, id(*lo)));
            assert!(read.unwrap_or_else(|error| panic!("{when}: {lo}: {error}")) == *content, "{when}: {lo}");
        }
        let client = self.client.clone();
        let all = self.run(async move { client.list(None, 1000).await }).unwrap();
        let listed: Vec<u64> = all.iter().map(|stat| stat.object.lo()).collect();
        assert_eq!(listed, model.keys().copied().collect::<Vec<_>>(), "{when}: the list");
    }

    /// The same, and the parity of every group.
    fn verify(&mut self, model: &Model, when: &str) {
        self.check(model, when);
        for (lo, content) in model {
            let client = self.verifier.clone();
            let read = self.run(get(client, id(*lo)));
            assert!(read.unwrap_or_else(|error| panic!("{when}: {lo}: {error}")) == *content, "{when}: {lo}");
        }
    }

    /// Blocks that component objects own, by device. 0 of one that is not open.
    fn used(&self) -> Vec<u64> {
        let domain = |index| self.cluster.server(index).domain(device_fid(index));
        (0..ALL).map(|index| domain(index).map_or(0, |domain| domain.info().blocks_used)).collect()
    }

    /// Spare units are freed, and nothing else is. `formatted`: devices that had another disk: rows in which one unit ends behind the object's end
    /// have zeros there, which their first writer left out.
    fn check_used(&self, before: &[u64], formatted: &[usize]) {
        let used = self.used();
        let fits = |index: usize| match formatted.contains(&index) {
            true => (before[index]..before[index] + 24).contains(&used[index]),
            false => used[index] == before[index],
        };
        assert!((0..ALL).all(fits), "{before:?} {used:?}");
    }

    /// A client of its own that works until it is told to stop.
    fn worker(&mut self, model: &Model) -> Worker {
        self.nodes += 1;
        let (_, locality) = self.cluster.turner.add("worker");
        let (config, fabric) = (client_config(&self.cluster, self.nodes), self.cluster.fabric.clone());
        let client = self.run(Client::connect(&locality, &fabric, config)).unwrap();
        let worker = Worker {
            model: Rc::new(RefCell::new(model.clone())),
            is_over: Rc::default(),
            is_done: Rc::default(),
            rounds: Rc::default(),
        };
        let working = work(client, worker.clone());
        drop(locality.spawn("work", working));
        worker
    }

    fn stop(&mut self, worker: &Worker) -> Model {
        worker.is_over.set(true);
        self.until("the worker's end", |_| worker.is_done.get());
        worker.model.borrow().clone()
    }
}

#[derive(Clone)]
struct Worker {
    /// What each object has to be.
    model: Rc<RefCell<Model>>,
    is_over: Rc<Cell<bool>>,
    is_done: Rc<Cell<bool>>,
    rounds: Rc<Cell<u32>>,
}

/// Writes in place, replaces and reads.
async fn work(client: Client, worker: Worker) {
    let mut random = fastrand::Rng::with_seed(7);
    let all: Vec<u64> = worker.model.borrow().keys().copied().filter(|lo| *lo < 90).collect();
    let mut open: BTreeMap<u64, Object> = BTreeMap::new();
    for lo in &all {
        open.insert(*lo, client.open(id(*lo)).await.unwrap());
    }
    while !worker.is_over.get() {
        let lo = *random.choice(&all).unwrap();
        let mut content = worker.model.borrow()[&lo].clone();
        match random.u32(0..8) {
            0..=3 => {
                let start = random.usize(0..content.len());
                let count = random.usize(1..=(content.len() - start).min(GROUP + 9000));
                let change = bytes(random.u64(..), count);
                open[&lo].write(extent(start, count), parts(&client, &change)).await.unwrap();
                content[start..start + count].copy_from_slice(&change);
            }
            4 => {
                content = bytes(random.u64(..), content.len());
                put(client.clone(), id(lo), content.clone()).await.unwrap();
                open[&lo].reload().await.unwrap();
            }
            _ => assert!(read(&open[&lo]).await.unwrap() == content, "{lo} reads as something else"),
        }
        worker.model.borrow_mut().insert(lo, content);
        worker.rounds.set(worker.rounds.get() + 1);
        client.locality().sleep(Duration::from_millis(20)).await;
    }
    worker.is_done.set(true);
}

#[test]
fn units_go_to_spare_units_and_back_while_clients_work_and_k_more_failures_lose_nothing() {
    let mut world = World::start(1, Some(4 << 20), 0);
    let model = world.fill(24);
    let before = world.used();
    let worker = world.worker(&model);
    world.fail(1);
    assert!(world.order(1, DeviceOrder::RepairStart).unwrap().is_new);
    assert!(!world.order(1, DeviceOrder::RepairStart).unwrap().is_new, "told twice, begun once");
    let refused = world.refusal(1, DeviceOrder::Replace);
    assert!(refused.contains("its units are being rebuilt in spare units: wait for that"), "{refused}");
    world.until("the first bytes", |world| world.repair(1).progress.bytes > 0);
    assert_eq!((world.repair(1).state.as_str(), world.cluster.state(1)), ("running", DeviceState::Failed));
    world.until_phase(1, Some(SparePhase::Standing));
    assert_eq!(world.cluster.state(1), DeviceState::Repaired);
    let rounds = worker.rounds.get();
    assert!(rounds > 10, "clients went on: {rounds}");
    let model = world.stop(&worker);
    world.verify(&model, "in spare units");

    // K more at once: everything is there.
    world.fail(3);
    world.fail(6);
    world.check(&model, "two more devices lost");
    // The next one has the other spare unit, one more has none.
    world.order(3, DeviceOrder::RepairStart).unwrap();
    let refused = world.refusal(6, DeviceOrder::RepairStart);
    assert!(
        refused.contains("all 2 spare units of a group stand for other devices")
            && refused.contains("device replace"),
        "{refused}"
    );
    let worker = world.worker(&model);
    world.until_phase(3, Some(SparePhase::Standing));
    let model = world.stop(&worker);
    world.verify(&model, "two in spare units, one lost");
    world.order(6, DeviceOrder::Replace).unwrap();
    world.until("device 6 online", |world| world.cluster.state(6) == DeviceState::Online);
    world.verify(&model, "two in spare units");
    world.fail(0);
    world.fail(7);
    world.check(&model, "two of K lost beside two in spare units");
    for device in [0, 7] {
        world.order(device, DeviceOrder::Replace).unwrap();
        world.until("it is online", |world| world.cluster.state(device) == DeviceState::Online);
    }

    // Back, the second one first.
    let worker = world.worker(&model);
    for device in [3, 1] {
        world.order(device, DeviceOrder::Replace).unwrap();
        world.until_phase(device, Some(SparePhase::Returning));
        assert_eq!(world.cluster.state(device), DeviceState::Rebalance);
        world.until_phase(device, Some(SparePhase::Freeing));
        assert_eq!(world.cluster.state(device), DeviceState::Online);
        world.until_phase(device, None);
    }
    let model = world.stop(&worker);
    world.verify(&model, "back");
    // Everything is written anew, so that nothing but the layout decides what is where; then it is as it was.
    for (lo, content) in model.iter().filter(|(lo, _)| **lo < 90) {
        world.put(*lo, content);
    }
    world.check_used(&before, &[]);
    let configuration = world.cluster.control().configuration();
    assert!(configuration.pool.devices.iter().all(|device| device.state == DeviceState::Online));
    assert_eq!(configuration.spares.slots, []);
}

#[test]
fn nothing_is_left_in_spare_units_of_objects_that_nobody_touched() {
    let mut world = World::start(2, None, 0);
    let model = world.fill(20);
    let before = world.used();
    world.fail(2);
    world.order(2, DeviceOrder::RepairStart).unwrap();
    world.until_phase(2, Some(SparePhase::Standing));
    let there = world.used();
    assert!(there[0] > before[0] && there[7] > before[7], "all others take their part: {before:?} {there:?}");
    world.order(2, DeviceOrder::Replace).unwrap();
    world.until_phase(2, Some(SparePhase::Returning));
    world.until_phase(2, None);
    world.check_used(&before, &[2]);
    world.verify(&model, "back");
    // Records as well: an object that is deleted now is gone for every list.
    let client = world.client.clone();
    world.run(async move { client.delete(id(7)).await }).unwrap();
    let mut model = model;
    model.remove(&7);
    world.verify(&model, "deleted");
}

#[test]
fn a_spare_unit_that_is_lost_too_is_rebuilt_in_the_next_one() {
    let mut world = World::start(3, None, 0);
    let model = world.fill(20);
    let before = world.used();
    for device in [0, 5] {
        world.fail(device);
        world.order(device, DeviceOrder::RepairStart).unwrap();
        world.until_phase(device, Some(SparePhase::Standing));
        world.verify(&model, "in spare units");
    }
    world.fail(1);
    world.fail(2);
    world.check(&model, "two more lost");
    for device in [1, 2] {
        world.order(device, DeviceOrder::Replace).unwrap();
        world.until("it is online", |world| world.cluster.state(device) == DeviceState::Online);
    }
    // The first one back first: what it had in the spare units of the second one, too.
    for device in [0, 5] {
        world.order(device, DeviceOrder::Replace).unwrap();
        world.until_phase(device, Some(SparePhase::Returning));
        world.until_phase(device, None);
        world.verify(&model, "back");
    }
    world.check_used(&before, &[0, 1, 2, 5]);
}

#[test]
fn what_nobody_replaces_in_time_goes_to_spare_units_by_itself() {
    let mut world = World::start(4, None, 60);
    let model = world.fill(4);
    world.fail(4);
    world.cluster.turner.pass(Duration::from_secs(55));
    assert_eq!((world.phase(4), world.cluster.state(4)), (None, DeviceState::Failed));
    world.cluster.turner.pass(Duration::from_secs(10));
    assert!(world.phase(4).is_some());
    world.until_phase(4, Some(SparePhase::Standing));
    world.verify(&model, "in spare units");
    // One whose disk is ordered is left to that.
    world.fail(5);
    world.cluster.kill_server(6);
    world.order(5, DeviceOrder::Replace).unwrap();
    let refused = world.order(5, DeviceOrder::RepairStart);
    assert!(refused.is_err() || world.cluster.state(5) == DeviceState::Repair);
    world.start_server(6);
    world.until("device 5 online", |world| world.cluster.state(5) == DeviceState::Online);
    world.verify(&model, "replaced");
}

#[test]
fn an_aborted_copy_to_spare_units_leaves_nothing_there_and_one_back_leaves_all() {
    let mut world = World::start(5, Some(1 << 20), 0);
    let model = world.fill(16);
    let before = world.used();
    world.fail(1);
    world.order(1, DeviceOrder::RepairStart).unwrap();
    world.until("some bytes", |world| world.repair(1).progress.bytes > 1 << 20);
    world.order(1, DeviceOrder::RepairPause).unwrap();
    world.until("a pause", |world| world.repair(1).state == "paused");
    world.order(1, DeviceOrder::RepairResume).unwrap();
    world.order(1, DeviceOrder::RepairAbort).unwrap();
    assert_eq!((world.phase(1), world.cluster.state(1)), (Some(SparePhase::Freeing), DeviceState::Failed));
    let refused = world.refusal(1, DeviceOrder::RepairStart);
    assert!(refused.contains("the spare units that it had are being freed"), "{refused}");
    world.until_phase(1, None);
    let used = world.used();
    assert!(
        (0..ALL).filter(|index| *index != 1).all(|index| used[index] == before[index]),
        "{before:?} {used:?}"
    );
    world.check(&model, "aborted");
    // There, and the way back is given up: all stays in spare units.
    world.order(1, DeviceOrder::RepairStart).unwrap();
    world.until_phase(1, Some(SparePhase::Standing));
    world.order(1, DeviceOrder::Replace).unwrap();
    world.until_phase(1, Some(SparePhase::Returning));
    let worker = world.worker(&model);
    world.until("some bytes", |world| world.repair(1).progress.bytes > 1 << 20);
    world.order(1, DeviceOrder::RepairAbort).unwrap();
    assert_eq!((world.phase(1), world.cluster.state(1)), (Some(SparePhase::Standing), DeviceState::Repaired));
    let model = world.stop(&worker);
    world.verify(&model, "given up");
    world.fail(0);
    world.fail(2);
    world.check(&model, "two more lost");
    for device in [0, 2, 1] {
        world.order(device, DeviceOrder::Replace).unwrap();
        world.until("it is online", |world| world.cluster.state(device) == DeviceState::Online);
    }
    world.until_phase(1, None);
    world.verify(&model, "back");
}

/// `kill` runs when some bytes were copied to spare units, and once more when some were copied back.
fn interrupted(seed: u64, kill: impl Fn(&mut World)) {
    let mut world = World::start(seed, Some(2 << 20), 0);
    let model = world.fill(12);
    let before = world.used();
    let bytes = 1 + seed % 5 * 300_000;
    world.fail(4);
    world.order(4, DeviceOrder::RepairStart).unwrap();
    world.until("some bytes", |world| world.repair(4).progress.bytes >= bytes);
    kill(&mut world);
    world.check(&model, "on the way there");
    world.until_phase(4, Some(SparePhase::Standing));
    world.verify(&model, "in spare units");
    world.order(4, DeviceOrder::Replace).unwrap();
    world.until_phase(4, Some(SparePhase::Returning));
    world.until("some bytes", |world| world.repair(4).progress.bytes >= bytes);
    kill(&mut world);
    world.until_phase(4, Some(SparePhase::Freeing));
    kill(&mut world);
    world.until_phase(4, None);
    world.verify(&model, "back");
    world.check_used(&before, &[4]);
}

#[test]
fn copier_and_control_may_die_on_the_way() {
    for seed in 0..3 {
        // The server that copies: that of the first online device.
        interrupted(100 + seed, |world| {
            world.cluster.kill_server(0);
            world.cluster.turner.pass(Duration::from_millis(900 * seed));
            world.start_server(0);
        });
        interrupted(200 + seed, |world| {
            world.cluster.kill_control();
            world.cluster.turner.pass(Duration::from_millis(300 + 3000 * seed));
            world.cluster.start_control().unwrap();
        });
    }
}

#[test]
fn a_reader_that_slept_through_it_all_never_takes_one_devices_unit_for_anothers() {
    let mut world = World::start(6, None, 0);
    let model = world.fill(12);
    world.fail(1);
    world.order(1, DeviceOrder::RepairStart).unwrap();
    world.until_phase(1, Some(SparePhase::Standing));
    let (_, locality) = world.cluster.turner.add("sleeper");
    let (config, fabric) = (client_config(&world.cluster, 159), world.cluster.fabric.clone());
    let sleeper = world.run(Client::connect(&locality, &fabric, config)).unwrap();
    let open: Vec<(u64, Object)> =
        (1..=12).map(|lo| (lo, world.run(sleeper.open(id(lo))).unwrap())).collect();
    // The first one comes back, and another one has its slot.
    world.order(1, DeviceOrder::Replace).unwrap();
    world.until_phase(1, Some(SparePhase::Returning));
    world.until_phase(1, None);
    world.fail(6);
    world.order(6, DeviceOrder::RepairStart).unwrap();
    world.until_phase(6, Some(SparePhase::Standing));
    let listed = world.run(sleeper.list(None, 1000)).unwrap();
    let listed: Vec<u64> = listed.iter().map(|stat| stat.object.lo()).collect();
    assert_eq!(listed, model.keys().copied().collect::<Vec<_>>());
    for (lo, object) in &open {
        assert!(world.run(read(object)).unwrap() == model[lo], "object {lo}");
    }
    // And writes where units stand now.
    let change = bytes(77, 9000);
    let mut model = model;
    for (lo, object) in &open {
        let parts = parts(&sleeper, &change);
        world.run(object.write(extent(3000, 9000), parts)).unwrap();
        model.get_mut(lo).unwrap()[3000..12000].copy_from_slice(&change);
    }
    world.verify(&model, "written by the sleeper");
}

/// Devices of the pool before it grows.
const BEFORE: usize = 6;
/// Of both pool versions, and of the second one only.
const OLD: usize = 3;
const NEW: usize = 7;

/// Everything is there, redundant as it was and in the spare units of nobody, whatever `world` went through: its devices are online, its objects moved.
/// `formatted`: devices that had another disk.
fn check_end(mut world: World, seed: u64, model: &Model, formatted: &[usize], when: &str) {
    world.verify(model, when);
    let configuration = world.cluster.control().configuration();
    assert!(configuration.pool.devices.iter().all(|device| device.state == DeviceState::Online), "{when}");
    assert_eq!(configuration.spares.slots, [], "{when}");
    // What the layout says is where, and nothing else: as in a cluster to which nothing happened.
    let mut other = World::with_pool_of(BEFORE, seed, None, 0);
    other.fill(12);
    other.expand_and_rebalance();
    other.until_moved();
    for (lo, content) in model.iter().filter(|(lo, _)| **lo < 90) {
        world.put(*lo, content);
        other.put(*lo, content);
    }
    world.check_used(&other.used(), formatted);
}

/// Another disk for a device that stands in spare units, and all the way back.
fn bring_back(world: &mut World, device: usize) {
    world.order(device, DeviceOrder::Replace).unwrap();
    world.until("it takes writes", |world| world.cluster.state(device) == DeviceState::Rebalance);
    world.until_phase(device, None);
    assert_eq!(world.cluster.state(device), DeviceState::Online);
}

/// The pool grows while a device is at `phase` on its way to spare units or back, and then fails no more than it may.
fn grows_beside(seed: u64, phase: SparePhase) {
    let when = format!("seed {seed}, {phase:?}");
    let mut world = World::with_pool_of(BEFORE, seed, Some(3 << 20), 0);
    let model = world.fill(12);
    let some_bytes = 1 + seed % 4 * 400_000;
    world.fail(OLD);
    world.order(OLD, DeviceOrder::RepairStart).unwrap();
    if phase == SparePhase::Filling {
        world.until("some bytes", |world| world.repair(OLD).progress.bytes >= some_bytes);
    } else {
        world.until_phase(OLD, Some(SparePhase::Standing));
    }
    if matches!(phase, SparePhase::Returning | SparePhase::Leaving | SparePhase::Freeing) {
        world.order(OLD, DeviceOrder::Replace).unwrap();
        world.until_phase(OLD, Some(SparePhase::Returning));
        world.until("some bytes", |world| world.repair(OLD).progress.bytes >= some_bytes);
    }
    world.until_phase(OLD, Some(phase));
    let worker = world.worker(&model);
    world.expand_and_rebalance();
    // In the middle of it all, the other way is begun as well.
    if phase == SparePhase::Standing {
        world.until("some moves", |world| world.moves().progress.bytes >= some_bytes);
        world.order(OLD, DeviceOrder::Replace).unwrap();
    }
    world.until_moved();
    // There, or back: with another disk it does not stay there.
    let is_back = phase != SparePhase::Filling;
    world.until("the copy's end", |world| world.phase(OLD) == (!is_back).then_some(SparePhase::Standing));
    let model = world.stop(&worker);
    world.verify(&model, &when);
    // K more.
    let more = [0, NEW];
    more.iter().for_each(|device| world.fail(*device));
    world.check(&model, &format!("{when}: two more lost"));
    for device in more {
        world.order(device, DeviceOrder::Replace).unwrap();
        world.until("it is online", |world| world.cluster.state(device) == DeviceState::Online);
    }
    if !is_back {
        bring_back(&mut world, OLD);
    }
    check_end(world, seed, &model, &[OLD, 0, NEW], &when);
}

#[test]
fn a_pool_grows_while_a_device_is_on_its_way_to_spare_units_or_back() {
    for (seed, phase) in (500..).zip([
        SparePhase::Filling,
        SparePhase::Standing,
        SparePhase::Returning,
        SparePhase::Leaving,
        SparePhase::Freeing,
    ]) {
        grows_beside(seed, phase);
    }
}

/// A device fails when some bytes were moved, and its units go to spare units in both pool versions, or in the one that it is in.
fn fails_beside(seed: u64, device: usize, kill: impl Fn(&mut World)) {
    let when = format!("seed {seed}, device {device}");
    let mut world = World::with_pool_of(BEFORE, seed, Some(3 << 20), 0);
    let model = world.fill(12);
    world.expand_and_rebalance();
    let worker = world.worker(&model);
    let some_bytes = 1 + seed % 4 * 400_000;
    world.until("some moves", |world| world.moves().progress.bytes >= some_bytes);
    world.fail(device);
    world.order(device, DeviceOrder::RepairStart).unwrap();
    world.until("it goes on", |world| world.moves().progress.bytes >= 2 * some_bytes);
    kill(&mut world);
    world.until_phase(device, Some(SparePhase::Standing));
    world.until_moved();
    let model = world.stop(&worker);
    world.verify(&model, &when);
    // K more, one of which has its spare unit in the place of the first one's, or the other way round.
    for lost in [4, 1] {
        world.fail(lost);
        world.check(&model, &format!("{when}: {lost} is lost too"));
    }
    world.order(4, DeviceOrder::RepairStart).unwrap();
    world.until_phase(4, Some(SparePhase::Standing));
    world.check(&model, &format!("{when}: two in spare units, one lost"));
    world.order(1, DeviceOrder::Replace).unwrap();
    world.until("it is online", |world| world.cluster.state(1) == DeviceState::Online);
    bring_back(&mut world, device);
    bring_back(&mut world, 4);
    check_end(world, seed, &model, &[device, 4, 1], &when);
}

#[test]
fn a_device_fails_while_its_pool_is_rebalanced() {
    for seed in 600..602 {
        fails_beside(seed, OLD, |_| ());
        fails_beside(seed + 10, NEW, |_| ());
    }
}

#[test]
fn mover_and_control_may_die_while_a_pool_is_rebalanced_beside_spare_units() {
    for seed in 700..702 {
        // The server that moves and copies: that of the first online device.
        fails_beside(seed, OLD, |world| {
            world.cluster.kill_server(0);
            world.cluster.turner.pass(Duration::from_millis(900 * (seed % 3)));
            world.start_server(0);
        });
        fails_beside(seed + 10, NEW, |world| {
            world.cluster.kill_control();
            world.cluster.turner.pass(Duration::from_millis(300 + 3000 * (seed % 2)));
            world.cluster.start_control().unwrap();
        });
    }
}

#[test]
fn a_rebalance_that_is_aborted_beside_spare_units_leaves_both_versions_to_them() {
    let seed = 800;
    let mut world = World::with_pool_of(BEFORE, seed, Some(2 << 20), 0);
    let model = world.fill(12);
    world.fail(OLD);
    world.order(OLD, DeviceOrder::RepairStart).unwrap();
    world.until_phase(OLD, Some(SparePhase::Standing));
    world.expand_and_rebalance();
    world.until("some objects", |world| world.moves().progress.objects >= 4);
    copying::order(&mut world.cluster, pool(), DeviceOrder::RepairAbort).unwrap();
    world.until("nothing is moved", |world| world.moves().state == "aborted");
    let worker = world.worker(&model);
    for device in [1, NEW] {
        world.fail(device);
        world.order(device, DeviceOrder::Replace).unwrap();
        world.until("it is online", |world| world.cluster.state(device) == DeviceState::Online);
    }
    bring_back(&mut world, OLD);
    let model = world.stop(&worker);
    world.verify(&model, "in two versions");
    copying::order(&mut world.cluster, pool(), DeviceOrder::RepairStart).unwrap();
    world.until_moved();
    check_end(world, seed, &model, &[OLD, 1, NEW], "moved");
}

/// Of each simulated disk, so that they and nothing else are what a copy waits for.
const DISK_BYTES_PER_SECOND: u64 = 1 << 20;
/// Bytes of data of one object in the measurement, of 4+2+1 with units of 16 KiB.
const MEASURED_OBJECT: usize = 4 << 20;
const OBJECTS_PER_DEVICE: usize = 2;

/// Virtual time in which the units of one of `devices` are rebuilt in spare units of the others, and the bytes of them. The pool has as many objects for
/// each device, so that each device holds about as much, whatever their number.
fn rebuild(devices: usize) -> (Duration, u64) {
    let shape = copying::one_device_each(devices, "4+2+1");
    let mut world = World::without_servers(900, shape, |file| {
        file.profile.spare_repair_after_seconds = Some(0);
        file.pool.unit_bytes = 16 << 10;
    });
    // They copy nothing: this does, and looks at the time.
    (0..devices).for_each(|index| world.cluster.start_server(index).unwrap());
    let mut model = Model::new();
    for lo in 1..=wide(OBJECTS_PER_DEVICE * devices) {
        model.insert(lo, bytes(lo, MEASURED_OBJECT));
        world.put(lo, &model[&lo]);
    }
    world.fail(1);
    world.order(1, DeviceOrder::RepairStart).unwrap();
    world.cluster.turner.pass(Duration::from_secs(2));
    world.cluster.disks.iter().for_each(|disk| disk.limit_rate(DISK_BYTES_PER_SECOND));
    let copying = Copying::new(RepairProgress::default(), 0);
    let (client, begun) = (world.client.clone(), world.cluster.turner.clock.now());
    let end = world.run(async { client.restore_device(device_fid(1), &copying).await }).unwrap();
    let took = world.cluster.turner.clock.now().since(begun);
    assert!(end == CopyEnd::Whole && copying.progress().lost_count == 0);
    (took, copying.progress().bytes)
}

/// Prints how fast units are rebuilt in pools of so many devices. Answer: how much faster than in the first one, for each.
fn rebuild_speeds(pools: &[usize]) -> Vec<f64> {
    let mut speeds: Vec<f64> = Vec::new();
    for devices in pools {
        let (took, bytes) = rebuild(*devices);
        #[allow(clippy::cast_precision_loss)] // a figure for people
        let speed = bytes as f64 / f64::from(1 << 20) / took.as_secs_f64();
        speeds.push(speed);
        println!(
            "{devices} devices of 4+2+1, units of 16 KiB, simulated disks of 1 MiB/s: {bytes} bytes rebuilt in {:.2} s, {speed:.2} MiB/s, {:.2} times the first pool's; the ideal is {:.2}",
            took.as_secs_f64(),
            speed / speeds[0],
            ratio(*devices - 1, pools[0] - 1)
        );
    }
    speeds.iter().map(|speed| speed / speeds[0]).collect()
}

#[allow(clippy::cast_precision_loss)] // small numbers
fn ratio(one: usize, other: usize) -> f64 {
    one as f64 / other as f64
}

#[test]
fn units_are_rebuilt_faster_in_a_larger_pool() {
    let speeds = rebuild_speeds(&[8, 15]);
    // Ideal is 2: every device that is left takes its part. With as few objects at a time as in the small pool it is 1.1.
    assert!(speeds[1] > 1.4, "{speeds:?}");
}

#[test]
#[ignore = "a measurement: ./dev bench spares"]
fn speed_of_rebuilding_by_the_size_of_the_pool() {
    rebuild_speeds(&[8, 15, 29, 57]);
}
