//! One seed: start, a time of faults, then calm: everything has to come back, every operation to end, every byte to be there.
//!
//! Phases: (1) a cluster starts without faults; (2) *safety*: clients work while the schedule of [`crate::faults`] runs; (3) *liveness*:
//! faults stop, what is down starts, clients end what they began, within bounded virtual time; (4) *finale*: every object is read
//! healthy, with parity verified, with each server silenced in turn, and after devices are lost up to K in all.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use base::{ByteExtent, Instant, ObjectId};
use client::{Client, ClientError, ObjectStat};
use clovis_tests::sim_cut::{Cut, Extent};
use clovis_tests::sim_model::Ending;
use runtime::clock::SimulatedClock;
use verbs_net::SimFaults;

use crate::cluster_file;
use crate::faults::{self, Fault, Planned};
use crate::keys::KeyWorker;
use crate::mutation::Mutation;
use crate::node::Role;
use crate::oracle::{Oracle, Tally};
use crate::registers::{self, RegisterWorker};
use crate::rest;
use crate::shape::Shape;
use crate::sometimes::Sometimes;
use crate::workload::{self, Worker};
use crate::world::{PARITY, World};

/// A start without faults takes no longer.
pub const START_MAX: Duration = Duration::from_secs(10);
/// After the last fault everything is well again within this time.
const CONVERGE_MAX: Duration = Duration::from_secs(60);
/// The finale takes no longer.
const FINALE_MAX: Duration = Duration::from_secs(400);
/// Copies to new disks are waited for so long with clients at work.
const COPIES_MAX: Duration = Duration::from_secs(20);
/// Workers of each client meanwhile, and how often each of them writes at most.
const WRITERS_BESIDE_COPIES: u64 = 3;
const WRITES_BESIDE_COPIES: u32 = 80;
/// Longest pause of a client on keys while all is well.
const KEYS_PAUSE_MAX: Duration = Duration::from_millis(60);
/// How long clients work on the registers and keys once all is well.
const REGISTERS_FOR: Duration = Duration::from_millis(700);
/// Orders that end what operators did are given again after this.
const ATTACH_AGAIN: Duration = Duration::from_secs(3);
/// Whoever could not connect has tried again after this time: longer than the pauses of rpc and of the net together.
const RECONNECTED_AFTER: Duration = Duration::from_secs(4);
/// A silent server is asked again after this time (longer than the client's suspicion).
const SUSPICION_OVER: Duration = Duration::from_millis(2500);

/// The part of a run in which clients work and faults happen, for the figures.
#[derive(Clone, Copy, Debug, Default)]
pub struct Loaded {
    pub simulated: Duration,
    /// Real time of this run's thread.
    pub real: Duration,
    /// Operations that ended.
    pub operations: u64,
}

impl Loaded {
    pub fn add(&mut self, other: Loaded) {
        self.simulated += other.simulated;
        self.real += other.real;
        self.operations += other.operations;
    }
}

/// What a run came to.
pub struct Report {
    pub hash: u64,
    pub simulated: Duration,
    pub loaded: Loaded,
    pub tally: Tally,
    pub sometimes: Sometimes,
}

/// A run that found something.
pub struct Failure {
    pub text: String,
    pub last_errors: Vec<String>,
    pub report: Report,
    /// What the run was made of, for making it smaller.
    pub extent: Extent,
}

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Script {
    pub seed: u64,
    /// A seeded bug.
    pub mutation: Option<Mutation>,
    /// What of the seed happens.
    pub cut: Cut,
    /// The load that speed is stated for, instead of the seed's own shape.
    pub is_load: bool,
    /// Control daemons, instead of as many as the seed has.
    pub controls: Option<usize>,
    /// Print everything that happens.
    pub is_loud: bool,
}

/// Runs one seed, or what a cut leaves of it.
pub fn run(script: &Script) -> Result<Report, Box<Failure>> {
    let Script { seed, mutation, cut, .. } = script;
    let shape = if script.is_load { Shape::load(*seed) } else { Shape::of(*seed, *mutation) };
    let shape = match script.controls {
        Some(controls) => {
            let has_newcomer = Shape::has_newcomer(*seed, controls, *mutation);
            Shape { controls, has_newcomer, bad_starts: u32::from(controls > 1), ..shape }
        }
        None => shape,
    };
    let mut world = World::new(*seed, *mutation, shape, cut);
    world.oracle.borrow_mut().is_loud = script.is_loud;
    let mut extent = Extent {
        faults: BTreeSet::new(),
        length_ms: cut.length_ms.unwrap_or(shape.work_for_ms()),
        operations: 0,
        clients: world.cast().clients.len(),
    };
    let mut loaded = Loaded::default();
    let outcome = phases(&mut world, cut, &mut extent, &mut loaded);
    let collected =
        world.collect_all().and_then(|()| judge_registers(&world)).and_then(|()| judge_keys(&world));
    // A run that failed is left as it stands: whatever is wrong there is nobody's leak.
    let ended = if outcome.is_ok() { world.end() } else { Ok(()) };
    let oracle = world.oracle.borrow();
    extent.operations = oracle.begun();
    let report = Report {
        hash: oracle.hash.0,
        simulated: world.now().since(Instant::ZERO),
        loaded,
        tally: oracle.tally,
        sometimes: oracle.sometimes.clone(),
    };
    match outcome.and(collected).and(ended) {
        Ok(()) => Ok(report),
        Err(text) => Err(Box::new(Failure { text, last_errors: oracle.last_errors.clone(), report, extent })),
    }
}

fn phases(world: &mut World, cut: &Cut, extent: &mut Extent, loaded: &mut Loaded) -> Result<(), String> {
    start(world)?;
    let mut random = fastrand::Rng::with_seed(world.seed ^ 0xfa17);
    let begin = world.now();
    // The whole schedule of the whole cluster: a cut leaves out, and moves nothing.
    let mut cast = world.cast();
    let before_clients = world.shape.servers + world.shape.control_nodes();
    cast.clients = (0..world.shape.clients.len()).map(|client| before_clients + client).collect();
    let calm = Duration::from_millis(world.shape.calm_for_ms());
    let length = Duration::from_millis(world.shape.work_for_ms()) - calm;
    for Planned { after, fault, group } in faults::schedule(&mut random, &cast, length) {
        let after = if matches!(fault, Fault::Grow) { after } else { calm + after };
        let is_kept = cut.faults.as_ref().is_none_or(|groups| groups.contains(&group));
        if is_kept && fault.nodes().into_iter().flatten().all(|node| node < world.nodes.len()) {
            extent.faults.insert(group);
            world.plan(begin + after, fault);
        }
    }
    // Real time, for the figures only.
    let clock = runtime::clock::MonotonicClock::start();
    let (since, before) = (clock.now(), world.oracle.borrow().ended());
    let outcome = world.run_until(begin + Duration::from_millis(extent.length_ms), |_| false);
    *loaded = Loaded {
        simulated: world.now().since(begin),
        real: clock.now().since(since),
        operations: world.oracle.borrow().ended() - before,
    };
    outcome?;
    let moved = world.growth.moved_bytes();
    world.oracle.borrow_mut().sometimes.add("bytes of objects moved while faults happened", moved);
    converge(world)?;
    registers_at_rest(world)?;
    finale(world, &mut random)
}

fn judge_registers(world: &World) -> Result<(), String> {
    let judged = world.oracle.borrow().registers.judge()?;
    let mut oracle = world.oracle.borrow_mut();
    oracle.tally.disordered += judged.disordered;
    let counters = &mut oracle.sometimes;
    counters.add("a register was read", judged.reads);
    counters.add("a register was read in quiet", judged.quiet_reads);
    counters.add("nobody knows what became of a register's write", judged.unknown);
    counters.add("two clients wrote a register at once", judged.overlaps);
    counters.add("reads of a register in no single order, in troubled times", judged.disordered);
    counters.add("a search for an order was given up", judged.given_up);
    Ok(())
}

fn judge_keys(world: &World) -> Result<(), String> {
    let judged = world.oracle.borrow().keys.judge()?;
    let counters = &mut world.oracle.borrow_mut().sometimes;
    counters.add("a lock was taken", judged.grants);
    counters.add("a lock was broken", judged.breaks);
    counters.add("nobody knows what became of an operation on a lock", judged.unknown);
    counters.add("a version of the configuration was told", judged.versions);
    counters.add("a search for an order of keys was given up", judged.given_up);
    Ok(())
}

/// Clients work on the registers and keys for a while without faults: nothing may fail but for another client, and one order explains all.
fn registers_at_rest(world: &mut World) -> Result<(), String> {
    world.oracle.borrow_mut().registers.is_troubled = false;
    let stop = Rc::new(Cell::new(false));
    let running = Rc::new(Cell::new(0));
    for (index, node) in world.nodes.iter().enumerate() {
        let (Role::Client { workers: 1.., .. }, Some(life)) = (&node.role, &node.life) else { continue };
        let Some(client) = life.first().slot.client.borrow().clone() else { continue };
        running.set(running.get() + 2);
        let worker = KeyWorker {
            oracle: Rc::clone(&world.oracle),
            locality: life.first().locality.handle(),
            client: client.clone(),
            clock: Rc::clone(&world.clock),
            control: world.configuration.control,
            daemons: Vec::new(),
            node: index,
            owner: index,
            random: fastrand::Rng::with_seed(world.seed ^ ((index as u64) << 48)),
            stop: Rc::clone(&stop),
            operations_max: u64::MAX,
            pause_max: KEYS_PAUSE_MAX,
            is_calm: true,
            running: Rc::clone(&running),
            held: BTreeMap::new(),
            seen: BTreeMap::new(),
        };
        life.first().locality.handle().spawn("keys", worker.run());
        let worker = RegisterWorker {
            oracle: Rc::clone(&world.oracle),
            locality: life.first().locality.handle(),
            client,
            clock: Rc::clone(&world.clock),
            node: index,
            random: fastrand::Rng::with_seed(world.seed ^ ((index as u64) << 32)),
            stop: Rc::clone(&stop),
            operations_max: u64::MAX,
            is_calm: true,
            running: Rc::clone(&running),
        };
        life.first().locality.handle().spawn("registers", worker.run());
    }
    let until = world.now() + REGISTERS_FOR;
    world.run_until(until, |_| false)?;
    stop.set(true);
    let until = world.now() + START_MAX;
    match world.run_until(until, |_| running.get() == 0)? {
        true => Ok(()),
        false => Err("operations on registers do not end in a cluster without faults".to_owned()),
    }
}

fn start(world: &mut World) -> Result<(), String> {
    for index in 0..world.nodes.len() {
        world.start(index);
    }
    let until = world.now() + START_MAX;
    let servers = world.cast().servers;
    let is_up = |world: &World| servers.iter().all(|server| world.nodes[*server].is_up());
    match world.run_until(until, is_up)? {
        true => Ok(()),
        false => Err(format!("the cluster does not start: {}", world.not_converged().join("; "))),
    }
}

/// Ends all faults and waits until everything is well.
fn converge(world: &mut World) -> Result<(), String> {
    world.forget_plans();
    world.stop_work.set(true);
    world.fabric.set_faults(SimFaults::NONE);
    world.fabric.heal_all();
    world.end_time_faults();
    let now = world.now();
    let being_filled = world.unfinished_replacements();
    for device in 0..world.cast().devices {
        if !being_filled.contains(&world.configuration.pool.devices[device].device) {
            world.plan(now, Fault::Slow { device, factor: 1 });
        }
    }
    // Operators take back what they took out, as often as it takes: an order may meet a control daemon that is just starting.
    for again in 0..10 {
        for device in world.taken_out.clone() {
            world.plan(now + ATTACH_AGAIN * again, Fault::Attach { device });
        }
    }
    world.finish_replacements();
    world.finish_members();
    world.finish_growth();
    for index in 0..world.nodes.len() {
        world.start(index);
    }
    let until = world.now() + CONVERGE_MAX;
    write_beside_copies(world)?;
    // A server that was asked to stop a moment ago is down a moment later.
    let mut stopped = true;
    while stopped {
        stopped = false;
        let all_alive = |world: &World| world.nodes.iter().any(|node| node.is_missing()) || world.is_well();
        if !world.run_until(until, all_alive)? {
            return Err(format!(
                "{CONVERGE_MAX:?} after the last fault the cluster is not well: {}\n  {}",
                world.not_converged().join("; "),
                world.last_events().join("\n  ")
            ));
        }
        for index in 0..world.nodes.len() {
            if world.nodes[index].is_missing() {
                stopped = true;
                world.start(index);
            }
        }
    }
    if world.shape.has_few_sessions {
        // A client that was away until now may pause before it tries to connect again.
        let until = world.now() + RECONNECTED_AFTER;
        world.run_until(until, |_| false)?;
    }
    world.is_calm = true;
    Ok(())
}

/// While new disks are filled, clients write in place. Copies begin `REPAIR_SETTLE` after the order, so most of them while faults are over.
fn write_beside_copies(world: &mut World) -> Result<(), String> {
    let is_whole = |world: &World| world.unfinished_replacements().is_empty() && !world.growth.is_under_way();
    let until = world.now() + COPIES_MAX;
    if !world
        .run_until(until, |world| is_whole(world) || world.nodes.iter().all(|node| node.is_in_order()))?
        || is_whole(world)
    {
        return Ok(()); // what does not come up is told by the wait that follows
    }
    let stop = Rc::new(Cell::new(false));
    for (index, node) in world.nodes.iter().enumerate() {
        let (Role::Client { workers: 1.., .. }, Some(life)) = (&node.role, &node.life) else { continue };
        let Some(client) = life.first().slot.client.borrow().clone() else { continue };
        for number in 0..WRITERS_BESIDE_COPIES {
            let worker = Worker {
                oracle: Rc::clone(&world.oracle),
                locality: life.first().locality.handle(),
                client: client.clone(),
                clock: Rc::clone(&world.clock),
                operations_max: world.operations_max,
                node: index,
                random: fastrand::Rng::with_seed(world.seed ^ ((index as u64) << 40) ^ number),
                stop: Rc::clone(&stop),
                think_max: Duration::ZERO,
                rate_max: None,
                are_objects_small: world.shape.are_objects_small,
            };
            life.first()
                .locality
                .handle()
                .spawn("beside copies", worker.run_beside_copies(WRITES_BESIDE_COPIES));
        }
    }
    world.run_until(until, |world| {
        if world.is_copying() {
            world.oracle.borrow_mut().copied_at = world.now();
        }
        is_whole(world)
    })?;
    stop.set(true);
    Ok(())
}

/// What the finale's task leaves.
#[derive(Default)]
struct Finished {
    done: bool,
    /// The objects that it listed.
    stats: Vec<ObjectStat>,
}

fn finale(world: &mut World, random: &mut fastrand::Rng) -> Result<(), String> {
    let checker = world.add_client(0, Duration::ZERO, false);
    let verifier = world.add_client(0, Duration::ZERO, true);
    world.start(checker);
    world.start(verifier);
    let until = world.now() + START_MAX;
    if !world.run_until(until, |world| world.nodes[checker].is_up() && world.nodes[verifier].is_up())? {
        return Err("a client cannot connect to a cluster without faults".to_owned());
    }
    let has_damage = world.is_damaged();
    world.oracle.borrow_mut().may_rebuild = has_damage;
    let stats = read_everything(world, checker, "healthy")?;
    read_everything(world, verifier, "with parity verified")?;
    if !has_damage {
        let rows = rest::parity_at_rest(world, &stats)?;
        world.oracle.borrow_mut().sometimes.add("a row's parity was right on the platters", rows);
    }
    rest::space_adds_up(world)?;
    rest::all_have_moved(world, &stats)?;
    world.oracle.borrow_mut().may_rebuild = true;
    for server in world.cast().servers {
        // With the server's devices gone, no more than K may be out.
        let elsewhere = world.damaged().iter().filter(|fid| world.owner(**fid) != Some(server)).count();
        if elsewhere + world.shape.devices_per_server > PARITY {
            continue;
        }
        let from = world.nodes[checker].endpoint;
        for to in &world.nodes[server].endpoints {
            world.fabric.partition(from, *to);
            world.fabric.partition(*to, from);
        }
        read_everything(world, checker, "with a silent server")?;
        world.fabric.heal_all();
        let until = world.now() + SUSPICION_OVER;
        world.run_until(until, |_| false)?;
    }
    let mut devices: Vec<usize> = (0..world.cast().devices).collect();
    random.shuffle(&mut devices);
    for device in devices {
        if world.damaged().len() < PARITY {
            world.lose_device(device);
        }
    }
    read_everything(world, checker, "with K devices lost or rotten")?;
    // Every loss is known to control in the end, and none that is not one.
    let until = world.now() + CONVERGE_MAX;
    if !world.run_until(until, World::is_well)? {
        return Err(format!(
            "after the finale the cluster is not well: {}",
            world.not_converged().join("; ")
        ));
    }
    read_everything(world, checker, "after the losses are known")?;
    judge_cluster_file(world, checker)?;
    delete_everything(world, checker)?;
    rest::nothing_is_left(world)?;
    rest::space_adds_up(world)?;
    rest::nothing_leaks(world, false)?;
    rest::daemons_agree(world)?;
    if world.seed.is_multiple_of(8) {
        // They are looked for four times in a lifetime.
        let until = world.now() + rpc::limits::SESSION_LIFETIME * 5 / 4 + START_MAX;
        world.run_until(until, |_| false)?;
        rest::nothing_leaks(world, true)?;
        world.oracle.borrow_mut().sometimes.reached("sessions of the dead came back");
    }
    Ok(())
}

/// What operators were told of the cluster file is what control says of it.
fn judge_cluster_file(world: &mut World, node: usize) -> Result<(), String> {
    let Some(life) = &world.nodes[node].life else { return Err("the reader is gone".to_owned()) };
    let Some(client) = life.first().slot.client.borrow().clone() else {
        return Err("the reader is gone".to_owned());
    };
    if !world.shape.has_newcomer {
        return Ok(());
    }
    let outcome: Rc<RefCell<Option<Result<u64, String>>>> = Rc::default();
    let (told, control) = (Rc::clone(&outcome), world.configuration.control);
    let acknowledged = world.acknowledged.take();
    life.first().locality.handle().spawn("history", async move {
        let judged = cluster_file::judge(&client, control, &acknowledged).await;
        *told.borrow_mut() = Some(judged);
    });
    let until = world.now() + FINALE_MAX;
    world.run_until(until, |_| outcome.borrow().is_some())?;
    let judged = outcome.borrow_mut().take();
    let count = judged.unwrap_or_else(|| Err("the history of the cluster file is not told".to_owned()))?;
    world.oracle.borrow_mut().sometimes.add("a change of the cluster file was found in its history", count);
    Ok(())
}

/// Makes and deletes every object once more: what earlier lives of it left behind goes too.
fn delete_everything(world: &mut World, node: usize) -> Result<(), String> {
    let Some(life) = &world.nodes[node].life else { return Err("the reader is gone".to_owned()) };
    let Some(client) = life.first().slot.client.borrow().clone() else {
        return Err("the reader is gone".to_owned());
    };
    let ids: Vec<ObjectId> = world.oracle.borrow().ids().into_iter().chain(registers::ids()).collect();
    let outcome: Rc<RefCell<Option<Result<(), String>>>> = Rc::default();
    let told = Rc::clone(&outcome);
    life.first().locality.handle().spawn("delete", async move {
        let mut result = Ok(());
        for id in ids {
            let made = client.create_or_open(id, None).await;
            let deleted = match made {
                Ok(_) => client.delete(id).await,
                Err(error) => Err(error),
            };
            result = result.and(deleted.map_err(|error| format!("object {id} cannot be deleted: {error}")));
        }
        *told.borrow_mut() = Some(result);
    });
    let until = world.now() + FINALE_MAX;
    world.run_until(until, |_| outcome.borrow().is_some())?;
    // A moment more, so that the last answers are there and what waits for nothing ends.
    let until = world.now() + SUSPICION_OVER;
    world.run_until(until, |_| false)?;
    let result = outcome.borrow_mut().take();
    result.unwrap_or_else(|| Err(format!("deleting all objects does not end within {FINALE_MAX:?}")))
}

/// Reads every object whole through one client; each has to be readable.
/// Answer: the objects that were listed.
fn read_everything(world: &mut World, node: usize, how: &str) -> Result<Vec<ObjectStat>, String> {
    world.oracle.borrow().tell(world.now(), || format!("the finale reads everything, {how}"));
    let Some(life) = &world.nodes[node].life else { return Err("the checking client is gone".to_owned()) };
    let Some(client) = life.first().slot.client.borrow().clone() else {
        return Err("the checking client is gone".to_owned());
    };
    let handle = life.first().locality.handle();
    let finished = Rc::new(RefCell::new(Finished::default()));
    let (oracle, flag, clock) = (Rc::clone(&world.oracle), Rc::clone(&finished), Rc::clone(&world.clock));
    handle.spawn("finale", {
        async move {
            let op = oracle.borrow_mut().begin_look(node, clock.now(), "the finale's list".to_owned());
            let stats = list_all(&oracle, &client, &clock).await;
            flag.borrow_mut().stats = stats;
            oracle.borrow_mut().end(op, clock.now(), Ending::Nothing, None);
            let ids = oracle.borrow().ids();
            for id in ids {
                let op =
                    oracle.borrow_mut().begin_look(node, clock.now(), format!("the finale's read of {id}"));
                read_one(&oracle, &client, &clock, id).await;
                oracle.borrow_mut().end(op, clock.now(), Ending::Nothing, None);
            }
            for id in registers::ids() {
                if let Err(error) = registers::look(&oracle, &client, &clock, id).await {
                    let text = format!("register {id} cannot be read: {error}");
                    oracle.borrow_mut().violate(clock.now(), text);
                }
            }
            flag.borrow_mut().done = true;
        }
    });
    let until = world.now() + FINALE_MAX;
    let outcome = world.run_until(until, |_| finished.borrow().done);
    match outcome.map_err(|error| format!("{how}: {error}"))? {
        true => Ok(std::mem::take(&mut finished.borrow_mut().stats)),
        false => Err(format!("{how}: reading all objects does not end within {FINALE_MAX:?}")),
    }
}

async fn list_all(oracle: &Rc<RefCell<Oracle>>, client: &Client, clock: &SimulatedClock) -> Vec<ObjectStat> {
    let tickets: Vec<_> = {
        let oracle = oracle.borrow();
        oracle.ids().into_iter().map(|id| (id, oracle.ticket(id))).collect()
    };
    let result = client.list(None, 1000).await;
    let mut oracle = oracle.borrow_mut();
    match result {
        Ok(found) => {
            for (id, ticket) in tickets {
                let listed = found.iter().find(|stat| stat.object == id).map(|stat| stat.size_bytes);
                oracle.saw_listed(clock.now(), id, ticket, listed);
            }
            found
        }
        Err(error) => {
            oracle.violate(clock.now(), format!("a list fails without a reason: {error}"));
            Vec::new()
        }
    }
}

async fn read_one(oracle: &Rc<RefCell<Oracle>>, client: &Client, clock: &SimulatedClock, id: ObjectId) {
    let ticket = oracle.borrow().ticket(id);
    let object = match client.open(id).await {
        Ok(object) => object,
        Err(ClientError::NotFound { .. }) => return oracle.borrow_mut().saw_absent(clock.now(), id, ticket),
        Err(error) => {
            return oracle
                .borrow_mut()
                .violate(clock.now(), format!("object {id} cannot be opened: {error}"));
        }
    };
    oracle.borrow_mut().saw_size(clock.now(), id, ticket, object.size());
    let count = object.size();
    let result = workload::read_bytes(client, &object, ByteExtent { start: 0, count }, false).await;
    let mut oracle = oracle.borrow_mut();
    match result {
        Ok(bytes) => oracle.saw_bytes(clock.now(), id, ticket, 0, count, &bytes),
        Err(error) => oracle.saw_unreadable(clock.now(), id, ticket, &error.to_string()),
    }
}
