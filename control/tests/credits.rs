//! Borrowers and control over the simulated network, on virtual time: who waits, who dies, control that restarts.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // test code, helpers included

mod support;

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::{Endpoint, Fid, FidType, Instant};
use control::{Control, ControlConfig};
use faces::limits::FID_RANGE_DEFAULT;
use faces::rm::{Borrower, HoldError};
use faces::{ConfClient, Configuration, DeviceConfig, DeviceState, FurtherPools, PoolConfig, ProcessConfig};
use fops::lock::LockMode::{self, Exclusive, Shared};
use fops::rm::{RmCredit, RmResource};
use futures_util::future::join;
use rpc::{RpcConfig, RpcMachine};
use runtime::{Arena, ArenaConfig, Counters, Locality, LocalityConfig, LocalityHandle, SimulatedClock};
use spdk_stob::{SimDisk, SimFaults as DiskFaults};
use verbs_net::{Fabric, SimFabric, SimFaults, TmConfig, Token, TransferMachine};

use support::World as _;

const LOST_AFTER: Duration = Duration::from_millis(3750);
const NO_WAIT: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(60);

fn endpoint(node: usize) -> Endpoint {
    format!("{node}@sim:12345:34:0").parse().unwrap()
}

/// One device, whose server never comes: a fence waits for nobody once its lease would have ended.
fn configuration() -> Configuration {
    let process = Fid::new(FidType::Process, 0, 1);
    Configuration {
        version: 1,
        cluster: 77,
        profile: Fid::new(FidType::Profile, 0, 1),
        control: endpoint(0),
        processes: vec![ProcessConfig { process, endpoint: endpoint(1), epoch: 0 }],
        pool: PoolConfig {
            pool: Fid::new(FidType::Pool, 0, 1),
            pool_version: Fid::new(FidType::PoolVersion, 0, 1),
            width: "1+0+0".parse().unwrap(),
            unit_bytes: 65536,
            devices: vec![DeviceConfig {
                device: Fid::new(FidType::Device, 0, 1),
                process,
                endpoint: endpoint(1),
                state: DeviceState::Unknown,
                size_blocks: 0,
                replaced: 0,
            }],
            awaited_disks: Vec::new(),
            changes_from: 0,
        },
        pools: FurtherPools::none(1),
        spares: faces::Spares::default(),
    }
}

struct World {
    clock: SimulatedClock,
    localities: Vec<Option<Locality>>,
    net: SimFabric,
    store: SimDisk,
    control: Option<(usize, Control)>,
    epoch: u64,
    seed: u64,
}

/// A client on a node of its own.
struct Node {
    node: usize,
    place: usize,
    locality: LocalityHandle,
    borrower: Borrower,
}

impl support::World for World {
    fn clock(&self) -> &SimulatedClock {
        &self.clock
    }

    fn turn(&mut self, end: Instant) {
        let localities = &mut self.localities;
        support::turn_rounds(&self.clock, end, |now| {
            support::turn_each(localities.iter_mut().flatten(), now)
        });
    }
}

impl World {
    fn start(seed: u64) -> World {
        let mut world = World {
            clock: SimulatedClock::default(),
            localities: Vec::new(),
            net: SimFabric::new(seed),
            store: SimDisk::new(seed, 8192, DiskFaults::default()),
            control: None,
            epoch: 0,
            seed,
        };
        world.start_control();
        world
    }

    fn locality(&mut self) -> (usize, LocalityHandle) {
        let place = self.localities.len();
        let locality = Locality::new(LocalityConfig {
            index: 0,
            name: format!("node-{place}"),
            seed: self.seed * 1000 + base::units::wide(place),
            counters: Arc::new(Counters::default()),
            arena: Arena::new(ArenaConfig { capacity_bytes: 8 << 20 }).unwrap(),
            crowd: None,
        });
        let handle = locality.handle();
        self.localities.push(Some(locality));
        (place, handle)
    }

    fn start_control(&mut self) {
        self.epoch += 1;
        let (place, locality) = self.locality();
        let store = Box::new(self.store.backend());
        let config = ControlConfig::new(Token::new([7; 32]), self.epoch, configuration(), store);
        let fabric = Fabric::Sim(self.net.clone());
        let control = self.run(Control::start(&locality, &fabric, config)).unwrap();
        self.control = Some((place, control));
    }

    fn kill_control(&mut self) {
        let (place, control) = self.control.take().unwrap();
        drop(control);
        self.localities[place] = None;
        self.net.crash(endpoint(0));
        self.store.crash();
    }

    fn client(&mut self, node: usize) -> Node {
        let (place, locality) = self.locality();
        let config = RpcConfig::default();
        let version = Rc::clone(&config.config_version);
        let tm = TmConfig::new(endpoint(node), false, 1, Token::new([7; 32]), version);
        let tm = TransferMachine::start(&locality, &Fabric::Sim(self.net.clone()), tm).unwrap();
        let rpc = RpcMachine::start(&locality, tm, config);
        let conf = ConfClient::connect(&rpc, endpoint(0));
        let borrower = Borrower::start(&conf, format!("n{node}"), Duration::from_secs(5));
        Node { node, place, locality, borrower }
    }

    fn kill(&mut self, node: &Node) {
        self.localities[node.place] = None;
        self.net.crash(endpoint(node.node));
    }

    /// Tries or waits for the thing.
    fn hold(&mut self, node: &Node, mode: LockMode, wait: Duration) -> Result<faces::rm::Hold, HoldError> {
        self.run(node.borrower.hold(&thing(), &RmCredit::Whole { mode }, wait))
    }
}

fn thing() -> RmResource {
    RmResource::Named("a thing".to_owned())
}

fn holders(error: &HoldError) -> Vec<String> {
    match error {
        HoldError::Busy { holders, .. } => holders.iter().map(|holder| holder.name.clone()).collect(),
        other => panic!("not busy: {other}"),
    }
}

#[test]
fn a_second_one_is_refused_or_waits_until_the_first_gives_back() {
    let mut world = World::start(1);
    let (one, other) = (world.client(101), world.client(102));
    let first = world.hold(&one, Exclusive, NO_WAIT).unwrap();
    first.check().unwrap();
    let started = world.clock.now();
    assert_eq!(holders(&world.hold(&other, Exclusive, NO_WAIT).unwrap_err()), ["n101"]);
    assert!(world.clock.now().since(started) < Duration::from_secs(1));
    assert!(first.is_wanted());
    // Somebody of the same client is no exception.
    assert_eq!(holders(&world.hold(&one, Exclusive, NO_WAIT).unwrap_err()), [] as [&str; 0]);
    let started = world.clock.now();
    let locality = one.locality.clone();
    let give_back = async {
        locality.sleep(Duration::from_secs(12)).await;
        drop(first);
    };
    let credit = RmCredit::Whole { mode: Exclusive };
    let resource = thing();
    let (second, ()) = world.run(join(other.borrower.hold(&resource, &credit, LONG), give_back));
    second.unwrap().check().unwrap();
    let waited = world.clock.now().since(started);
    assert!(waited >= Duration::from_secs(12) && waited < Duration::from_millis(12_100), "{waited:?}");
}

#[test]
fn readers_that_are_idle_make_room_for_one_who_tries() {
    let mut world = World::start(2);
    let nodes: Vec<Node> = (101..104).map(|node| world.client(node)).collect();
    let held: Vec<_> = nodes[..2].iter().map(|node| world.hold(node, Shared, NO_WAIT).unwrap()).collect();
    assert_eq!(holders(&world.hold(&nodes[2], Exclusive, NO_WAIT).unwrap_err()).len(), 2);
    drop(held);
    world.hold(&nodes[2], Exclusive, NO_WAIT).unwrap();
}

#[test]
fn the_death_of_a_holder_frees_what_it_had_after_its_lease_and_not_before() {
    for seed in 0..12 {
        let mut world = World::start(10 + seed);
        let (one, other) = (world.client(101), world.client(102));
        let held = world.hold(&one, Exclusive, NO_WAIT).unwrap();
        world.pass(Duration::from_secs(5) + Duration::from_millis(137 * seed));
        held.check().unwrap();
        world.kill(&one);
        let killed_at = world.clock.now();
        assert_eq!(holders(&world.hold(&other, Exclusive, NO_WAIT).unwrap_err()), ["n101"]);
        let second = world.hold(&other, Exclusive, LONG).unwrap();
        let freed_after = world.clock.now().since(killed_at);
        // It polls at least every 1.5 s: half of its lease.
        assert!(freed_after >= LOST_AFTER - Duration::from_millis(1500), "seed {seed}: {freed_after:?}");
        assert!(freed_after < LOST_AFTER + Duration::from_secs(1), "seed {seed}: {freed_after:?}");
        second.check().unwrap();
    }
}

#[test]
fn one_that_is_cut_off_stops_before_the_next_one_begins_and_stays_lost() {
    for seed in 0..8 {
        let mut world = World::start(30 + seed);
        let (one, other) = (world.client(101), world.client(102));
        let held = world.hold(&one, Exclusive, NO_WAIT).unwrap();
        world.pass(Duration::from_millis(211 * seed));
        world.net.partition(endpoint(101), endpoint(0));
        world.net.partition(endpoint(0), endpoint(101));
        let (here, there) = (one.locality.clone(), other.locality.clone());
        let stops = async {
            while held.check().is_ok() {
                here.sleep(Duration::from_millis(1)).await;
            }
            here.now()
        };
        let begins = async {
            let hold = other.borrower.hold(&thing(), &RmCredit::Whole { mode: Exclusive }, LONG).await;
            (hold, there.now())
        };
        let (stopped_at, (second, began_at)) = world.run(join(stops, begins));
        assert!(stopped_at < began_at, "seed {seed}: {stopped_at:?} {began_at:?}");
        world.net.heal_all();
        world.pass(Duration::from_secs(5));
        assert!(matches!(held.check(), Err(HoldError::Lost { .. })));
        second.unwrap().check().unwrap();
        // It may ask anew, beside the lost one.
        world.hold(&one, Exclusive, LONG).unwrap().check().unwrap();
    }
}

#[test]
fn control_knows_who_holds_after_a_restart_and_numbers_never_come_twice() {
    let mut world = World::start(3);
    let (one, other) = (world.client(101), world.client(102));
    let held = world.hold(&one, Exclusive, NO_WAIT).unwrap();
    let mut seen = BTreeSet::new();
    let count = FID_RANGE_DEFAULT + 3;
    for _ in 0..3 {
        for node in [&one, &other] {
            for _ in 0..count {
                let number = world.run(node.borrower.next_fid()).unwrap();
                assert!(seen.insert(number), "{number} came twice");
            }
        }
        world.kill_control();
        world.pass(Duration::from_millis(500));
        world.start_control();
        assert_eq!(holders(&world.hold(&other, Exclusive, NO_WAIT).unwrap_err()), ["n101"]);
    }
    drop(held);
    world.hold(&other, Exclusive, LONG).unwrap();
}

/// Clients that take turns over a network that loses and doubles messages: at most one is inside, and all get in, one that died not counted.
#[test]
fn over_a_bad_network_one_is_inside_at_a_time_and_everybody_gets_in() {
    for seed in 0..6 {
        let mut world = World::start(100 + seed);
        let nodes: Vec<Node> = (101..105).map(|node| world.client(node)).collect();
        world.net.set_faults(SimFaults {
            loss_per_mille: 30,
            duplicate_per_mille: 30,
            ..SimFaults::default()
        });
        let _doomed = world.hold(&nodes[3], Exclusive, LONG).unwrap();
        world.kill(&nodes[3]);
        let inside = std::cell::Cell::new(0);
        let rounds = |node: usize| {
            let (node, inside) = (&nodes[node], &inside);
            async move {
                for _ in 0..6 {
                    let hold = loop {
                        match node.borrower.hold(&thing(), &RmCredit::Whole { mode: Exclusive }, LONG).await {
                            Ok(hold) => break hold,
                            // Unlucky for a whole lease.
                            Err(HoldError::Lost { .. }) => {}
                            Err(error) => panic!("seed {seed}: {error}"),
                        }
                    };
                    inside.set(inside.get() + 1);
                    assert_eq!(inside.get(), 1, "seed {seed}");
                    node.locality.sleep(Duration::from_millis(40)).await;
                    inside.set(inside.get() - 1);
                    drop(hold);
                }
            }
        };
        world.run(join(rounds(0), join(rounds(1), rounds(2))));
    }
}
