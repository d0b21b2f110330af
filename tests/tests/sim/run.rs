//! One seed: start, a time of faults, then calm: everything has to come back, every operation to end, every byte to be there.
//!
//! Phases: (1) a cluster starts without faults; (2) *safety*: clients work while the schedule of [`crate::faults`] runs; (3) *liveness*:
//! faults stop, what is down starts, clients end what they began, within bounded virtual time; (4) *finale*: every object is read
//! healthy, with parity verified, with each server silenced in turn, and after devices are lost up to K in all.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use base::{ByteExtent, Instant, ObjectId};
use client::{Client, ClientError};
use clovis_tests::sim_model::Ending;
use runtime::LocalityHandle;
use verbs_net::SimFaults;

use crate::faults::{self, Fault};
use crate::mutation::Mutation;
use crate::oracle::{Oracle, Tally};
use crate::sometimes::Sometimes;
use crate::workload;
use crate::world::{PARITY, World};

/// Clients and their workers, and the longest pause of a worker.
const CLIENTS: &[(usize, Duration)] = &[(3, Duration::from_millis(40)), (2, Duration::from_millis(60))];
/// How long faults happen.
const FAULTS_FOR: Duration = Duration::from_secs(8);
/// A start without faults takes no longer.
const START_MAX: Duration = Duration::from_secs(10);
/// After the last fault everything is well again within this time.
const CONVERGE_MAX: Duration = Duration::from_secs(60);
/// The finale takes no longer.
const FINALE_MAX: Duration = Duration::from_secs(400);
/// A silent server is asked again after this time (longer than the client's suspicion).
const SUSPICION_OVER: Duration = Duration::from_millis(2500);

/// What a run came to.
pub struct Report {
    pub hash: u64,
    pub simulated: Duration,
    pub tally: Tally,
    pub sometimes: Sometimes,
}

/// A run that found something.
pub struct Failure {
    pub text: String,
    pub last_errors: Vec<String>,
    pub report: Report,
}

/// Runs one seed. `is_loud`: prints everything that happens.
pub fn run(seed: u64, mutation: Option<Mutation>, is_loud: bool) -> Result<Report, Box<Failure>> {
    let mut world = World::new(seed, mutation, CLIENTS);
    world.oracle.borrow_mut().is_loud = is_loud;
    let outcome = phases(&mut world);
    let collected = world.collect_all();
    let oracle = world.oracle.borrow();
    let report = Report {
        hash: oracle.hash.0,
        simulated: world.now().since(Instant::ZERO),
        tally: oracle.tally,
        sometimes: oracle.sometimes.clone(),
    };
    match outcome.and(collected) {
        Ok(()) => Ok(report),
        Err(text) => Err(Box::new(Failure { text, last_errors: oracle.last_errors.clone(), report })),
    }
}

fn phases(world: &mut World) -> Result<(), String> {
    start(world)?;
    let mut random = fastrand::Rng::with_seed(world.seed ^ 0xfa17);
    let begin = world.now();
    for (after, fault) in faults::schedule(&mut random, &world.cast(), FAULTS_FOR) {
        world.plan(begin + after, fault);
    }
    world.run_until(begin + FAULTS_FOR, |_| false)?;
    converge(world)?;
    finale(world, &mut random)
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
    for device in 0..world.cast().devices {
        let now = world.now();
        world.plan(now, Fault::Slow { device, factor: 1 });
    }
    for index in 0..world.nodes.len() {
        world.start(index);
    }
    let until = world.now() + CONVERGE_MAX;
    // A server that was asked to stop a moment ago is down a moment later.
    let mut stopped = true;
    while stopped {
        stopped = false;
        let all_alive = |world: &World| {
            world.nodes.iter().any(|node| node.life.is_none()) || world.not_converged().is_empty()
        };
        if !world.run_until(until, all_alive)? {
            return Err(format!(
                "{CONVERGE_MAX:?} after the last fault the cluster is not well: {}",
                world.not_converged().join("; ")
            ));
        }
        for index in 0..world.nodes.len() {
            if world.nodes[index].life.is_none() {
                stopped = true;
                world.start(index);
            }
        }
    }
    world.is_calm = true;
    Ok(())
}

/// What the finale's task leaves.
#[derive(Default)]
struct Finished {
    done: bool,
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
    read_everything(world, checker, "healthy")?;
    read_everything(world, verifier, "with parity verified")?;
    world.oracle.borrow_mut().may_rebuild = true;
    for server in world.cast().servers {
        // With the server's devices gone, no more than K may be out.
        let elsewhere = world.damaged().iter().filter(|fid| world.owner(**fid) != Some(server)).count();
        if elsewhere + 2 > PARITY {
            continue;
        }
        let (from, to) = (world.nodes[checker].endpoint, world.nodes[server].endpoint);
        world.fabric.partition(from, to);
        world.fabric.partition(to, from);
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
    if !world.run_until(until, |world| world.not_converged().is_empty())? {
        return Err(format!(
            "after the finale the cluster is not well: {}",
            world.not_converged().join("; ")
        ));
    }
    read_everything(world, checker, "after the losses are known")
}

/// Reads every object whole through one client; each has to be readable.
fn read_everything(world: &mut World, node: usize, how: &str) -> Result<(), String> {
    world.oracle.borrow().tell(world.now(), || format!("the finale reads everything, {how}"));
    let Some(life) = &world.nodes[node].life else { return Err("the checking client is gone".to_owned()) };
    let Some(client) = life.slot.client.borrow().clone() else {
        return Err("the checking client is gone".to_owned());
    };
    let handle = life.locality.handle();
    let finished = Rc::new(RefCell::new(Finished::default()));
    let (oracle, flag) = (Rc::clone(&world.oracle), Rc::clone(&finished));
    handle.spawn("finale", {
        let handle = handle.clone();
        async move {
            let op = oracle.borrow_mut().begin_look(node, handle.now(), "the finale's list".to_owned());
            list_all(&oracle, &client, &handle).await;
            oracle.borrow_mut().end(op, handle.now(), Ending::Nothing, None);
            let ids = oracle.borrow().ids();
            for id in ids {
                let op =
                    oracle.borrow_mut().begin_look(node, handle.now(), format!("the finale's read of {id}"));
                read_one(&oracle, &client, &handle, id).await;
                oracle.borrow_mut().end(op, handle.now(), Ending::Nothing, None);
            }
            flag.borrow_mut().done = true;
        }
    });
    let until = world.now() + FINALE_MAX;
    let outcome = world.run_until(until, |_| finished.borrow().done);
    match outcome.map_err(|error| format!("{how}: {error}"))? {
        true => Ok(()),
        false => Err(format!("{how}: reading all objects does not end within {FINALE_MAX:?}")),
    }
}

async fn list_all(oracle: &Rc<RefCell<Oracle>>, client: &Client, handle: &LocalityHandle) {
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
                oracle.saw_listed(handle.now(), id, ticket, listed);
            }
        }
        Err(error) => oracle.violate(handle.now(), format!("a list fails without a reason: {error}")),
    }
}

async fn read_one(oracle: &Rc<RefCell<Oracle>>, client: &Client, handle: &LocalityHandle, id: ObjectId) {
    let ticket = oracle.borrow().ticket(id);
    let object = match client.open(id).await {
        Ok(object) => object,
        Err(ClientError::NotFound { .. }) => return oracle.borrow_mut().saw_absent(handle.now(), id, ticket),
        Err(error) => {
            return oracle
                .borrow_mut()
                .violate(handle.now(), format!("object {id} cannot be opened: {error}"));
        }
    };
    oracle.borrow_mut().saw_size(handle.now(), id, ticket, object.size());
    let count = object.size();
    let result = workload::read_bytes(client, &object, ByteExtent { start: 0, count }, false).await;
    let mut oracle = oracle.borrow_mut();
    match result {
        Ok(bytes) => oracle.saw_bytes(handle.now(), id, ticket, 0, count, &bytes),
        Err(error) => oracle.saw_unreadable(handle.now(), id, ticket, &error.to_string()),
    }
}
