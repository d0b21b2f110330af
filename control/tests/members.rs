//! Three and five control daemons over the simulated network and disks, on virtual time: clocks that drift, cuts, pauses, power cuts. What was
//! acknowledged is there whoever leads; there is one history; the same seed twice gives the same trace.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // test code, helpers included

mod support;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::{Endpoint, Instant};
use control::{Control, ControlConfig, ControlError, FirstStart, MemberConfig, OperatorFile};
use faces::{ClusterFile, Credential};
use fops::FopError;
use fops::conf::{ConfApply, ConfHistory, ConfText, Heartbeat, Register};
use fops::lock::{LockMode, LockName, LockTake, LockTakeReply, OwnerId};
use fops::member::MemberChange;
use rpc::{Bulk, CallError, CallOptions, RpcConfig, RpcMachine};
use runtime::clock::DriftingClock;
use runtime::{
    Arena, ArenaConfig, Counters, Locality, LocalityConfig, LocalityHandle, SharedBuffer, SimulatedClock,
    Turn,
};
use spdk_stob::{SimDisk, SimFaults as DiskFaults};
use verbs_net::{Fabric, SimFabric, SimFaults, TmConfig, Token, TransferMachine};

use support::World as _;

fn endpoint(node: u64) -> Endpoint {
    format!("{node}@sim:12345:34:0").parse().unwrap()
}

/// The name in a cluster file, quoted.
fn named(text: &str) -> String {
    text.lines().find_map(|line| line.strip_prefix("name = ")).unwrap().to_owned()
}

/// Where a control daemon listens: those that `moved`, at another machine.
fn place(number: u64, moved: &[u64]) -> Endpoint {
    endpoint(if moved.contains(&number) { 100 + number } else { number })
}

/// A cluster file of the members, whose one server never comes.
fn text(members: &[u64], moved: &[u64], name: &str) -> String {
    let endpoint = |number| place(number, moved);
    let further: String = members[1..]
        .iter()
        .map(|number| {
            format!(
                "[[control.member]]\nnumber = {number}\nendpoint = \"{}\"\nstore = \"control-{number}\"\n",
                endpoint(*number)
            )
        })
        .collect();
    format!(
        "[cluster]\nname = \"{name}\"\nid = \"0x77\"\nprofile = \"0x7000000000000001:0\"\ntransport = \"sim\"\n\
         credential = \"{}\"\n[control]\nnumber = {}\nendpoint = \"{}\"\nstore = \"control\"\nstore_bytes = 33554432\n{further}\
         [pool]\nfid = \"0x6f00000000000001:1\"\nversion = \"0x7600000000000001:1\"\nlayout = \"1+0+0\"\nunit_bytes = 65536\n\
         [[server]]\nprocess = \"0x7200000000000001:1\"\nendpoints = [\"900@sim:12345:34:0\"]\n\
         [[device]]\nfid = \"0x6b00000000000001:1\"\nserver = \"0x7200000000000001:1\"\npath = \"d\"\nsize_bytes = 1048576\n# {}\n",
        faces::cluster_file::HIDDEN,
        members[0],
        endpoint(members[0]),
        "as long as a file of some size ".repeat(100),
    )
}

fn credential() -> Credential {
    Credential::from_bytes([7; 32])
}

/// A daemon's machine: what is running on it, its disk, its clock.
struct Machine {
    number: u64,
    disk: SimDisk,
    clock: DriftingClock,
    running: Option<Running>,
    /// Stands still until then.
    paused_until: Instant,
}

struct Running {
    at: Endpoint,
    locality: Locality,
    control: Rc<RefCell<Option<Control>>>,
    refusal: Rc<RefCell<Option<String>>>,
}

struct World {
    clock: SimulatedClock,
    net: SimFabric,
    machines: Vec<Machine>,
    /// The client's.
    locality: Locality,
    handle: LocalityHandle,
    rpc: RpcMachine,
    /// By the cluster file that daemons are started with.
    members: Vec<u64>,
    /// Of those, the ones that are elsewhere by that file.
    moved: Vec<u64>,
    starts: u64,
    seed: u64,
}

fn locality(name: String, seed: u64) -> Locality {
    Locality::new(LocalityConfig {
        index: 0,
        name,
        seed,
        counters: Arc::new(Counters::default()),
        arena: Arena::new(ArenaConfig { capacity_bytes: 16 << 20 }).unwrap(),
        crowd: None,
    })
}

fn machine(handle: &LocalityHandle, net: &SimFabric, node: u64) -> RpcMachine {
    let config = RpcConfig::default();
    let version = Rc::clone(&config.config_version);
    let tm = TmConfig::new(endpoint(node), false, 1, Token::new([7; 32]), version);
    let tm = TransferMachine::start(handle, &Fabric::Sim(net.clone()), tm).unwrap();
    RpcMachine::start(handle, tm, config)
}

impl support::World for World {
    fn clock(&self) -> &SimulatedClock {
        &self.clock
    }

    fn turn(&mut self, end: Instant) {
        let (locality, machines) = (&mut self.locality, &mut self.machines);
        support::turn_rounds(&self.clock, end, |now| {
            let mut round = locality.turn(now);
            for machine in machines.iter_mut() {
                let Some(running) = &mut machine.running else { continue };
                if machine.paused_until > now {
                    let paused = Turn { progressed: false, next_deadline: Some(machine.paused_until) };
                    round = support::both(round, paused);
                    continue;
                }
                let turn = running.locality.turn(machine.clock.shows(now));
                let next_deadline = turn.next_deadline.map(|at| machine.clock.first_time_of(at));
                round = support::both(round, Turn { next_deadline, ..turn });
            }
            round
        });
    }
}

impl World {
    /// `count` daemons that found a cluster, or one alone, and a client that knows them all.
    fn found(seed: u64, count: u64) -> World {
        let members: Vec<u64> = (1..=count).collect();
        let net = SimFabric::new(seed);
        let client = locality("client".to_owned(), seed);
        let handle = client.handle();
        let rpc = machine(&handle, &net, 1000);
        let endpoints: Vec<Endpoint> = members.iter().map(|number| endpoint(*number)).collect();
        rpc.set_group(endpoints[0], &endpoints[1..]);
        let mut world = World {
            clock: SimulatedClock::default(),
            net,
            machines: Vec::new(),
            locality: client,
            handle,
            rpc,
            members: members.clone(),
            moved: Vec::new(),
            starts: 0,
            seed,
        };
        for number in members {
            world.add_machine(number);
            world.start(number, Some(FirstStart::Found));
        }
        world
    }

    fn add_machine(&mut self, number: u64) {
        let disk = SimDisk::new(self.seed * 100 + number, 8192, DiskFaults::default());
        let clock = DriftingClock::ahead_by(Duration::from_millis(777 * number));
        self.net.set_clock(endpoint(number), clock);
        let paused_until = Instant::ZERO;
        self.machines.push(Machine { number, disk, clock, running: None, paused_until });
    }

    fn machine(&mut self, number: u64) -> &mut Machine {
        self.machines.iter_mut().find(|machine| machine.number == number).unwrap()
    }

    fn start(&mut self, number: u64, first_start: Option<FirstStart>) {
        self.starts += 1;
        let (epoch, seed, now) = (self.starts, self.seed ^ (self.starts << 20), self.clock.now());
        let (net, members, moved) = (self.net.clone(), self.members.clone(), self.moved.clone());
        let at = place(number, &moved);
        let machine = self.machine(number);
        net.set_clock(at, machine.clock);
        let mut locality = locality(format!("control-{number}"), seed);
        locality.turn(machine.clock.shows(now));
        let text = text(&members, &moved, "first");
        let file = ClusterFile::parse_hidden(&text, Some(credential())).unwrap();
        let store = Box::new(machine.disk.backend());
        let mut config = ControlConfig::new(Token::new([7; 32]), epoch, file.initial_configuration(), store);
        config.endpoint = at;
        config.file = Some(OperatorFile { text, credential: Some(credential()), unix_s: 1000 });
        if members.len() > 1 {
            let members = file.control_members().collect();
            config.member = Some(MemberConfig { number, members, first_start });
        }
        let (control, refusal) =
            (Rc::<RefCell<Option<Control>>>::default(), Rc::<RefCell<Option<String>>>::default());
        let (slot, refused, handle) = (Rc::clone(&control), Rc::clone(&refusal), locality.handle());
        drop(locality.handle().spawn("boot", async move {
            let started: Result<Control, ControlError> =
                Control::start(&handle, &Fabric::Sim(net), config).await;
            match started {
                Ok(started) => *slot.borrow_mut() = Some(started),
                Err(error) => *refused.borrow_mut() = Some(error.to_string()),
            }
        }));
        machine.running = Some(Running { at, locality, control, refusal });
        machine.paused_until = Instant::ZERO;
    }

    /// `kill -9`, and the power goes too if it `is_dark`.
    fn kill(&mut self, number: u64, is_dark: bool) {
        let net = self.net.clone();
        let machine = self.machine(number);
        net.crash(machine.running.take().map_or(endpoint(number), |running| running.at));
        if is_dark {
            machine.disk.crash();
        } else {
            machine.disk.restart();
        }
    }

    /// Stops in good order, which takes so long.
    fn stop(&mut self, number: u64) -> Duration {
        let net = self.net.clone();
        let control = self.machine(number).running.as_ref().unwrap().control.borrow_mut().take().unwrap();
        let began = self.clock.now();
        self.run(control.stop()).unwrap();
        let took = self.clock.now().since(began);
        let machine = self.machine(number);
        drop(machine.running.take());
        machine.disk.restart();
        net.crash(endpoint(number));
        took
    }

    fn leader(&self) -> Option<u64> {
        let decides = |machine: &&Machine| {
            machine
                .running
                .as_ref()
                .is_some_and(|running| running.control.borrow().as_ref().is_some_and(Control::decides))
        };
        self.machines.iter().find(decides).map(|machine| machine.number)
    }

    fn cut(&self, one: &[u64], other: &[u64]) {
        for (one, other) in one.iter().flat_map(|one| other.iter().map(move |other| (*one, *other))) {
            self.net.partition(endpoint(one), endpoint(other));
            self.net.partition(endpoint(other), endpoint(one));
        }
    }

    /// Until somebody decides.
    fn elect(&mut self) -> u64 {
        let end = self.clock.now() + Duration::from_secs(60);
        loop {
            match self.leader() {
                Some(leader) => return leader,
                None => assert!(self.clock.now() < end, "nobody leads"),
            }
            self.pass(Duration::from_millis(10));
        }
    }

    fn client(&self) -> Client {
        let (members, moved) = (self.members.clone(), self.moved.clone());
        Client { rpc: self.rpc.clone(), handle: self.handle.clone(), members, moved }
    }
}

#[derive(Clone)]
struct Client {
    rpc: RpcMachine,
    handle: LocalityHandle,
    members: Vec<u64>,
    moved: Vec<u64>,
}

impl Client {
    /// The name of all of them.
    fn group(&self) -> Endpoint {
        place(self.members[0], &self.moved)
    }

    async fn ask<F: fops::Fop>(&self, fop: &F, within: Duration) -> Result<F::Reply, CallError> {
        let options = CallOptions::until(self.handle.now() + within);
        let answer = self.rpc.call(self.group(), fop, Bulk::none(), options).await?;
        Ok(answer.reply)
    }

    async fn in_force(&self, within: Duration) -> Result<(u64, String), CallError> {
        let reply = self.ask(&ConfText { transaction: 0, offset: 0 }, within).await?;
        let text = String::from_utf8(reply.part).unwrap();
        Ok((reply.transaction, named(&text)))
    }

    /// One change of the name, planned against `base`. Answer: number of the transaction.
    async fn apply(&self, base: u64, name: &str, within: Duration) -> Result<u64, CallError> {
        self.apply_text(base, &self.text(name), within).await
    }

    fn text(&self, name: &str) -> String {
        text(&self.members, &self.moved, name)
    }

    async fn apply_text(&self, base: u64, text: &str, within: Duration) -> Result<u64, CallError> {
        let source =
            SharedBuffer::copy_from_slice(self.handle.arena(), text.as_bytes(), self.handle.counters())
                .unwrap();
        let ask = ConfApply { base, unix_s: 0, note: named(text).trim_matches('"').to_owned() };
        let options = CallOptions::until(self.handle.now() + within);
        let bulk = Bulk::from_source(vec![source]);
        let answer = self.rpc.call(self.group(), &ask, bulk, options).await?;
        Ok(answer.reply.transaction)
    }

    async fn notes(&self, within: Duration) -> Result<BTreeMap<u64, String>, CallError> {
        let reply = self.ask(&ConfHistory, within).await?;
        Ok(reply.transactions.into_iter().map(|record| (record.number, record.note)).collect())
    }
}

const LONG: Duration = Duration::from_secs(60);

fn change(number: u64, adds: bool) -> MemberChange {
    MemberChange { number, adds }
}

/// Asks for a change of the members until it is done, as the command does.
async fn settle(client: &Client, number: u64, adds: bool) {
    loop {
        let asked = client.ask(&change(number, adds), LONG).await;
        if asked.is_ok_and(|reply| reply.is_done) {
            return;
        }
        client.handle.sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn three_elect_one_and_go_on_without_it() {
    let mut world = World::found(1, 3);
    let client = world.client();
    let first = world.elect();
    assert_eq!(world.run(client.apply(1, "one", LONG)).unwrap(), 2);
    world.kill(first, true);
    let killed_at = world.clock.now();
    assert_eq!(world.run(client.apply(2, "two", LONG)).unwrap(), 3);
    let took = world.clock.now().since(killed_at);
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_ne!(world.elect(), first);
    // The one that was away learns what it missed, and may lead again.
    world.start(first, None);
    world.pass(Duration::from_secs(3));
    let second = world.elect();
    world.kill(second, true);
    assert_eq!(world.run(client.in_force(LONG)).unwrap(), (3, "\"two\"".to_owned()));
    assert_eq!(world.run(client.apply(3, "three", LONG)).unwrap(), 4);
    // Without a majority nobody answers.
    let third = world.elect();
    world.kill(third, true);
    let refused = world.run(client.in_force(Duration::from_secs(8))).unwrap_err();
    assert!(!matches!(refused, CallError::Fop(FopError::BadRequest { .. })), "{refused}");
    assert_eq!(world.leader(), None);
}

#[test]
fn a_leader_that_is_cut_off_answers_nothing_not_even_heartbeats() {
    for seed in 0..6 {
        let mut world = World::found(10 + seed, 3);
        let client = world.client();
        let first = world.elect();
        let file = ClusterFile::parse_hidden(&text(&world.members, &[], "x"), Some(credential())).unwrap();
        let process = file.servers[0].process;
        let register = Register { process, epoch: 5, devices: Vec::new() };
        world.run(client.ask(&register, LONG)).unwrap();
        let others: Vec<u64> = world.members.iter().copied().filter(|number| *number != first).collect();
        world.cut(&[first], &others);
        // The client's machine reaches all of them. This one knows of no group: it asks the old leader and nobody else.
        let beat = Heartbeat { process, epoch: 5, devices: Vec::new() };
        let direct = machine(&world.handle, &world.net, 1001);
        let options = CallOptions::until(world.handle.now() + Duration::from_secs(5));
        let answer =
            world.run(async move { direct.call(endpoint(first), &beat, Bulk::none(), options).await });
        let refusal = answer.map(|answer| answer.reply).unwrap_err();
        assert!(matches!(refusal, CallError::Fop(FopError::NotLeader { .. })), "seed {seed}: {refusal}");
        assert_eq!(world.run(client.apply(1, "other side", LONG)).unwrap(), 2);
        world.net.heal_all();
        world.pass(Duration::from_secs(3));
        assert_eq!(world.run(client.in_force(LONG)).unwrap().0, 2);
    }
}

#[test]
fn one_that_missed_more_than_the_log_keeps_is_fed_a_copy() {
    let mut world = World::found(20, 3);
    let client = world.client();
    let leader = world.elect();
    let away = if leader == 3 { 2 } else { 3 };
    world.kill(away, true);
    // More bytes than the log keeps: each change carries its text.
    for number in 1..=120 {
        let name = format!("change {number}");
        assert_eq!(world.run(client.apply(number, &name, LONG)).unwrap(), number + 1);
    }
    let notes = world.run(client.notes(LONG)).unwrap();
    world.start(away, None);
    world.pass(Duration::from_secs(5));
    let leader = world.elect();
    let third = world.members.iter().copied().find(|number| ![leader, away].contains(number)).unwrap();
    // With the one that was fed as half of the majority, and then in the lead.
    world.kill(leader, true);
    assert_eq!(world.run(client.notes(LONG)).unwrap(), notes);
    world.kill(away, true);
    world.start(away, None);
    world.start(leader, None);
    world.pass(Duration::from_secs(3));
    world.kill(third, true);
    assert_eq!(world.run(client.notes(LONG)).unwrap(), notes);
    let said = world.machine(away).running.as_ref().unwrap().control.borrow().as_ref().unwrap().members();
    assert!(said.applied > 120, "{said:?}");
}

#[test]
fn a_member_whose_disk_is_full_takes_no_part_and_says_so_and_the_others_go_on() {
    let mut world = World::found(21, 3);
    let client = world.client();
    let leader = world.elect();
    assert_eq!(world.run(client.apply(1, "before", LONG)).unwrap(), 2);
    world.machine(leader).disk.fill_up_after(Some(0));
    assert_eq!(world.run(client.apply(2, "after", LONG)).unwrap(), 3);
    assert_ne!(world.elect(), leader);
    let failure = {
        let machine = world.machine(leader);
        let control = machine.running.as_ref().unwrap().control.borrow();
        control.as_ref().unwrap().store_failure()
    };
    assert!(failure.is_some(), "it says why");
    // Room again, and a restart: it has what it missed.
    world.kill(leader, true);
    world.machine(leader).disk.fill_up_after(None);
    world.start(leader, None);
    world.pass(Duration::from_secs(3));
    let other = world.elect();
    if other != leader {
        world.kill(other, true);
    }
    assert_eq!(world.run(client.in_force(LONG)).unwrap(), (3, "\"after\"".to_owned()));
}

#[test]
fn members_come_and_go_while_changes_are_made() {
    for seed in 0..3 {
        let mut world = World::found(30 + seed, 3);
        let client = world.client();
        world.elect();
        assert_eq!(world.run(client.apply(1, "three", LONG)).unwrap(), 2);
        // The file in force says where the new one listens.
        world.members.push(4);
        let with_four = world.client();
        let unknown = world.run(client.ask(&change(4, true), LONG)).unwrap_err();
        assert!(unknown.to_string().contains("conf apply"), "{unknown}");
        assert_eq!(world.run(with_four.apply(2, "four", LONG)).unwrap(), 3);
        world.add_machine(4);
        world.start(4, Some(FirstStart::Join));
        world.run(settle(&client, 4, true));
        // As a client that reads the new file knows them.
        world.rpc.set_group(endpoint(1), &[endpoint(2), endpoint(3), endpoint(4)]);
        let leader = world.elect();
        // A member stays named.
        world.members.pop();
        let unnamed = world.run(world.client().apply(3, "without the fourth", LONG)).unwrap_err();
        assert!(unnamed.to_string().contains("member remove 4"), "{unnamed}");
        world.members.push(4);
        // The leader goes: it hands over and is no member any more.
        world.run(settle(&client, leader, false));
        assert_eq!(world.run(with_four.apply(3, "without the first leader", LONG)).unwrap(), 4);
        assert_ne!(world.elect(), leader);
        world.kill(leader, true);
        // Of the three that are left one may go, the new one not excepted.
        let second = world.elect();
        world.kill(second, true);
        assert_eq!(world.run(with_four.in_force(LONG)).unwrap().0, 4);
        // Nobody takes out the last ones without a majority, and the very last never goes.
        world.start(second, None);
        world.pass(Duration::from_secs(2));
        let left: Vec<u64> = world.members.iter().copied().filter(|number| *number != leader).collect();
        world.run(settle(&client, left[0], false));
        world.run(settle(&client, left[1], false));
        let refused = world.run(client.ask(&change(left[2], false), LONG)).unwrap_err();
        assert!(refused.to_string().contains("the last one"), "{refused}");
        assert_eq!(world.run(with_four.apply(4, "one is left", LONG)).unwrap(), 5);
    }
}

/// Three found a cluster; the third has no power while a fourth is taken in, the first is taken out and gone, and the log is cut. Then the fourth, of which the third
/// never heard, is the only one that can lead. `and_then` begins with the second out of power; it gets the numbers of the first, second and third.
fn only_a_stranger_can_lead(seed: u64, and_then: impl FnOnce(&mut World, [u64; 3])) {
    let mut world = World::found(seed, 3);
    let client = world.client();
    let first = world.elect();
    let [second, third] = [1, 2].map(|step| (first + step - 1) % 3 + 1);
    assert_eq!(world.run(client.apply(1, "three", LONG)).unwrap(), 2);
    world.pass(Duration::from_secs(1));
    world.kill(third, true);
    world.members.push(4);
    let with_four = world.client();
    assert_eq!(world.run(with_four.apply(2, "four", LONG)).unwrap(), 3);
    world.add_machine(4);
    world.start(4, Some(FirstStart::Join));
    world.run(settle(&client, 4, true));
    world.rpc.set_group(endpoint(1), &[endpoint(2), endpoint(3), endpoint(4)]);
    world.run(settle(&client, first, false));
    world.kill(first, true);
    world.elect();
    assert_eq!(world.run(with_four.apply(3, "without the first", LONG)).unwrap(), 4);
    world.pass(Duration::from_secs(1));
    world.kill(second, true);
    // What it starts with says nothing of the fourth either.
    world.members.pop();
    and_then(&mut world, [first, second, third]);
}

#[test]
fn one_that_was_away_while_members_came_and_went_is_led_by_whom_it_does_not_know() {
    for seed in 90..93 {
        only_a_stranger_can_lead(seed, |world, [first, second, third]| {
            let client = world.client();
            let with_four = Client { members: vec![1, 2, 3, 4], ..client.clone() };
            world.start(third, None);
            // Two of three run: the stranger gets the vote, and the one that was away all that it missed.
            assert_eq!(world.elect(), 4, "seed {seed}");
            assert_eq!(world.run(client.in_force(LONG)).unwrap(), (4, "\"without the first\"".to_owned()));
            world.pass(Duration::from_secs(1));
            let told = |world: &mut World, number: u64| {
                let running = world.machine(number).running.as_ref().unwrap();
                let control = running.control.borrow();
                let said = control.as_ref().unwrap().members();
                let voters = said.members.iter().filter(|member| member.is_voter);
                (said.applied, voters.map(|member| member.number).collect::<Vec<_>>())
            };
            let mut left = vec![second, third, 4];
            left.sort_unstable();
            assert_eq!(told(world, third), told(world, 4), "seed {seed}");
            assert_eq!(told(world, third).1, left, "seed {seed}");
            // It knows the fourth by itself now, and after a restart, and the two do without the second as long as they like.
            world.kill(third, true);
            world.start(third, None);
            world.pass(Duration::from_secs(2));
            assert_eq!(world.run(with_four.apply(4, "two", LONG)).unwrap(), 5);
            world.start(second, None);
            world.pass(Duration::from_secs(3));
            assert_eq!(told(world, second), told(world, 4), "seed {seed}");
            // One that was taken out and comes back is heard by nobody, and leads nobody.
            world.start(first, None);
            world.pass(Duration::from_secs(5));
            assert_ne!(world.elect(), first, "seed {seed}");
            assert_eq!(world.run(with_four.apply(5, "still three", LONG)).unwrap(), 6);
        });
    }
}

#[test]
fn one_that_was_away_finds_members_that_moved_meanwhile() {
    for seed in 93..96 {
        let mut world = World::found(seed, 5);
        let first = world.elect();
        let away = first % 5 + 1;
        world.kill(away, true);
        // One after the other has another place by the file that is put in force, and starts there with it.
        let others: Vec<u64> = world.members.iter().copied().filter(|number| *number != away).collect();
        for (base, number) in (1..).zip(&others) {
            let before = world.client();
            world.moved.push(*number);
            let text = world.client().text(&format!("{number} moved"));
            assert_eq!(world.run(before.apply_text(base, &text, LONG)).unwrap(), base + 1, "seed {seed}");
            world.kill(*number, true);
            world.start(*number, None);
            let group: Vec<Endpoint> = (1..=5).map(|number| place(number, &world.moved)).collect();
            world.rpc.set_group(group[0], &group[1..]);
            world.pass(Duration::from_secs(2));
        }
        // The one that was away has the old file, and the old places in its store; it is needed for every majority.
        let moved = std::mem::take(&mut world.moved);
        world.start(away, None);
        world.moved = moved;
        world.pass(Duration::from_secs(3));
        world.kill(others[0], true);
        world.kill(others[1], true);
        assert_eq!(world.run(world.client().apply(5, "three of five", LONG)).unwrap(), 6, "seed {seed}");
    }
}

#[test]
fn one_that_was_alone_becomes_the_first_of_three_and_keeps_what_it_has() {
    let mut world = World::found(50, 1);
    world.elect();
    assert_eq!(world.run(world.client().apply(1, "alone", LONG)).unwrap(), 2);
    world.kill(1, true);
    world.members = vec![1, 2, 3];
    let client = world.client();
    world.rpc.set_group(endpoint(1), &[endpoint(2), endpoint(3)]);
    world.start(1, Some(FirstStart::Found));
    // What it has does not name the others yet.
    assert_eq!(world.run(client.in_force(LONG)).unwrap(), (2, "\"alone\"".to_owned()));
    assert_eq!(world.run(client.apply(2, "three", LONG)).unwrap(), 3);
    for number in [2, 3] {
        world.add_machine(number);
        world.start(number, Some(FirstStart::Join));
        world.run(settle(&client, number, true));
    }
    world.kill(1, true);
    assert_eq!(world.run(client.in_force(LONG)).unwrap(), (3, "\"three\"".to_owned()));
    // Alone again by its file, but not by its store.
    world.members = vec![1];
    world.start(1, None);
    world.pass(Duration::from_secs(1));
    let refusal = world.machine(1).running.as_ref().unwrap().refusal.borrow().clone().unwrap();
    assert!(refusal.contains("of several"), "{refusal}");
}

#[test]
fn stores_that_are_not_what_they_should_be_are_refused() {
    let mut world = World::found(40, 3);
    world.elect();
    let refusal = |world: &mut World, number: u64| {
        world.pass(Duration::from_secs(1));
        let machine = world.machine(number);
        machine.running.as_ref().unwrap().refusal.borrow().clone().unwrap_or_default()
    };
    // A member that lost its store.
    world.kill(3, true);
    world.machine(3).disk = SimDisk::new(999, 8192, DiskFaults::default());
    world.start(3, None);
    assert!(refusal(&mut world, 3).contains("is blank"), "{}", refusal(&mut world, 3));
    // Another one's.
    world.kill(2, false);
    let disk = world.machine(2).disk.clone();
    world.kill(3, false);
    world.machine(3).disk = disk;
    world.start(3, None);
    assert!(refusal(&mut world, 3).contains("of control daemon 2"), "{}", refusal(&mut world, 3));
    // One that is in use.
    world.kill(3, false);
    world.start(2, Some(FirstStart::Found));
    assert!(refusal(&mut world, 2).contains("without --first-start"), "{}", refusal(&mut world, 2));
}

/// The longest time without an answer of a client that asks all the time, while `happens`.
fn longest_silence(world: &mut World, happens: impl FnOnce(&mut World)) -> Duration {
    let client = world.client();
    let (stop, longest) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(Duration::ZERO)));
    let (ends, noted, handle) = (Rc::clone(&stop), Rc::clone(&longest), world.handle.clone());
    drop(world.handle.spawn("asker", async move {
        let mut last = handle.now();
        while !ends.get() {
            if client.in_force(LONG).await.is_ok() {
                noted.set(noted.get().max(handle.now().since(last)));
                last = handle.now();
            }
            handle.sleep(Duration::from_millis(5)).await;
        }
    }));
    world.pass(Duration::from_secs(1));
    longest.set(Duration::ZERO);
    happens(world);
    world.pass(Duration::from_secs(5));
    stop.set(true);
    world.pass(Duration::from_secs(1));
    longest.get()
}

#[test]
fn a_leader_that_is_stopped_in_good_order_hands_the_lead_over() {
    for (seed, count) in [(60, 3), (61, 3), (62, 5), (63, 5)] {
        let mut world = World::found(seed, count);
        let client = world.client();
        let first = world.elect();
        assert_eq!(world.run(client.apply(1, "before", LONG)).unwrap(), 2);
        let silence = longest_silence(&mut world, |world| {
            let took = world.stop(first);
            assert!(took < Duration::from_millis(300), "seed {seed}: it took {took:?} to stop");
        });
        println!("seed {seed}: a lead was handed over, and nobody answered for {silence:?}");
        assert!(silence < Duration::from_millis(250), "seed {seed}: no answer for {silence:?}");
        let second = world.elect();
        assert_ne!(second, first);
        assert_eq!(world.run(client.apply(2, "after", LONG)).unwrap(), 3);
        // It comes back, and the next one hands over too; one that does not lead has nothing to hand over.
        world.start(first, None);
        world.pass(Duration::from_secs(2));
        let other = world.members.iter().copied().find(|number| ![first, second].contains(number)).unwrap();
        let _ = world.stop(other);
        assert_eq!(world.leader(), Some(second));
        world.start(other, None);
        world.pass(Duration::from_secs(2));
        let silence = longest_silence(&mut world, |world| {
            let _ = world.stop(second);
        });
        assert!(silence < Duration::from_millis(250), "seed {seed}: no answer for {silence:?}");
        assert_eq!(world.run(client.in_force(LONG)).unwrap(), (3, "\"after\"".to_owned()));
        // What a lost leader costs instead.
        world.start(second, None);
        world.pass(Duration::from_secs(3));
        let third = world.elect();
        let silence = longest_silence(&mut world, |world| world.kill(third, true));
        println!("seed {seed}: a leader was lost, and nobody answered for {silence:?}");
        assert!(silence > Duration::from_millis(700), "seed {seed}: {silence:?}");
    }
}

#[test]
fn a_leader_that_nobody_can_follow_stops_all_the_same() {
    let mut world = World::found(70, 3);
    let leader = world.elect();
    let others: Vec<u64> = world.members.iter().copied().filter(|number| *number != leader).collect();
    world.cut(&[leader], &others);
    // Its heir seems near still, and hears nothing.
    world.pass(Duration::from_millis(100));
    let took = world.stop(leader);
    assert!(took < Duration::from_secs(4), "{took:?}");
    world.net.heal_all();
    world.elect();
    // With one that stands still it is another's turn.
    world.start(leader, None);
    world.pass(Duration::from_secs(2));
    let leader = world.elect();
    let paused = world.members.iter().copied().find(|number| *number != leader).unwrap();
    world.machine(paused).paused_until = world.clock.now() + Duration::from_secs(20);
    world.pass(Duration::from_millis(700));
    let silence = longest_silence(&mut world, |world| {
        let _ = world.stop(leader);
    });
    assert!(silence < Duration::from_secs(6), "{silence:?}");
    // The last of three cannot be led by anybody, and there is nobody to hand over to.
    let last = world.elect();
    let took = world.stop(last);
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[test]
fn a_leader_that_is_taken_out_hands_the_lead_over_first() {
    for seed in 80..83 {
        let mut world = World::found(seed, 3);
        let client = world.client();
        let first = world.elect();
        let other = world.client();
        let silence = longest_silence(&mut world, |world| world.run(settle(&other, first, false)));
        assert!(silence < Duration::from_millis(400), "seed {seed}: no answer for {silence:?}");
        assert_ne!(world.elect(), first);
        assert_eq!(world.run(client.apply(1, "without it", LONG)).unwrap(), 2);
        let said =
            world.machine(first).running.as_ref().unwrap().control.borrow().as_ref().unwrap().decides();
        assert!(!said, "seed {seed}: it decides, and is no member");
    }
}

/// A loop of changes and of one lock that is never given twice, while daemons die, stand still and are cut off and clocks run at nine to eleven tenths.
fn storm(seed: u64, count: u64, rounds: u32) -> u64 {
    let mut world = World::found(seed, count);
    let mut random = fastrand::Rng::with_seed(seed);
    world.net.set_faults(SimFaults {
        loss_per_mille: 10,
        duplicate_per_mille: 10,
        reorder_per_mille: 10,
        ..SimFaults::NONE
    });
    world.elect();
    let acknowledged: Rc<RefCell<BTreeMap<u64, String>>> = Rc::default();
    let epochs: Rc<RefCell<BTreeSet<u64>>> = Rc::default();
    let stop = Rc::new(Cell::new(false));
    let client = world.client();
    let (noted, granted, ends) = (Rc::clone(&acknowledged), Rc::clone(&epochs), Rc::clone(&stop));
    let worker = async move {
        let mut tried = 0u32;
        while !ends.get() {
            tried += 1;
            let Ok((base, _)) = client.in_force(Duration::from_secs(10)).await else { continue };
            // What is read is never older than what was acknowledged before.
            let newest = noted.borrow().last_key_value().map_or(1, |(number, _)| *number);
            assert!(base >= newest, "transaction {base} is in force after {newest} was acknowledged");
            let note = format!("try {tried}");
            if let Ok(number) = client.apply(base, &note, Duration::from_secs(10)).await {
                assert!(number > base);
                let twice = noted.borrow_mut().insert(number, note);
                assert_eq!(twice, None, "transaction {number} was acknowledged twice");
            }
            let lock = LockName { object: None, name: format!("lock {tried}") };
            let take = LockTake {
                lock,
                mode: LockMode::Exclusive,
                owner: OwnerId(u128::from(tried)),
                wait_ms: 0,
                on_death: fops::lock::OnDeath::Hold,
                why: String::new(),
            };
            if let Ok(LockTakeReply::Granted { epoch, .. }) = client.ask(&take, Duration::from_secs(10)).await
            {
                assert!(granted.borrow_mut().insert(epoch), "epoch {epoch} came twice");
            }
            client.handle.sleep(Duration::from_millis(20)).await;
        }
    };
    drop(world.handle.spawn("worker", worker));
    // Asks each daemon for itself, those too that only believe that they lead: an answer is never older than what was acknowledged before.
    let direct = machine(&world.handle, &world.net, 1001);
    let (noted, ends, handle) = (Rc::clone(&acknowledged), Rc::clone(&stop), world.handle.clone());
    let reader = async move {
        let mut number = 0;
        while !ends.get() {
            number = number % count + 1;
            let newest = noted.borrow().last_key_value().map_or(1, |(number, _)| *number);
            let options = CallOptions::until(handle.now() + Duration::from_secs(3));
            let ask = ConfText { transaction: 0, offset: 0 };
            if let Ok(answer) = direct.call(endpoint(number), &ask, Bulk::none(), options).await {
                let found = answer.reply.transaction;
                assert!(found >= newest, "daemon {number} says {found} after {newest} was acknowledged");
            }
            handle.sleep(Duration::from_millis(15)).await;
        }
    };
    drop(world.handle.spawn("reader", reader));
    let majority = usize::try_from(count / 2 + 1).unwrap();
    for _ in 0..rounds {
        let number = random.u64(1..=count);
        let now = world.clock.now();
        match random.u32(0..10) {
            // A leader, half of the times.
            0..=3 => {
                let number = world.leader().filter(|_| random.bool()).unwrap_or(number);
                if world.machine(number).running.is_some() {
                    world.kill(number, random.bool());
                }
            }
            4 => {
                let until = now + Duration::from_millis(random.u64(100..6000));
                world.machine(number).paused_until = until;
            }
            5 => {
                let others: Vec<u64> = (1..=count).filter(|other| *other != number).collect();
                world.cut(&[number], &others);
            }
            6 => {
                let half: Vec<u64> = (1..=count).filter(|_| random.bool()).collect();
                let others: Vec<u64> = (1..=count).filter(|other| !half.contains(other)).collect();
                world.cut(&half, &others);
            }
            7 => {
                let rate = random.u32(900..=1100);
                let clock = world.machine(number).clock.at_rate(now, rate);
                world.machine(number).clock = clock;
                world.net.set_clock(endpoint(number), clock);
            }
            _ => world.net.heal_all(),
        }
        // Some come back at once, some stay away for a while.
        let away: Vec<u64> =
            world.machines.iter().filter(|one| one.running.is_none()).map(|one| one.number).collect();
        for number in &away {
            if away.len() > usize::try_from(count).unwrap() - majority || random.bool() {
                world.start(*number, None);
            }
        }
        world.pass(Duration::from_millis(random.u64(50..3000)));
    }
    world.net.heal_all();
    world.net.set_faults(SimFaults::NONE);
    let away: Vec<u64> =
        world.machines.iter().filter(|one| one.running.is_none()).map(|one| one.number).collect();
    away.into_iter().for_each(|number| world.start(number, None));
    stop.set(true);
    world.pass(Duration::from_secs(20));
    let client = world.client();
    let notes = world.run(client.notes(LONG)).unwrap();
    let (oldest, _) = notes.first_key_value().unwrap();
    let acknowledged = acknowledged.borrow();
    assert!(acknowledged.len() > 3, "seed {seed}: {} changes only", acknowledged.len());
    for (number, note) in acknowledged.range(oldest..) {
        assert_eq!(notes.get(number), Some(note), "seed {seed}: transaction {number} was acknowledged");
    }
    // Each machine says the same, alone in the lead or not: whoever leads next has all of it.
    for _ in 0..2 {
        let leader = world.elect();
        world.kill(leader, true);
        let again = world.run(client.notes(LONG)).unwrap();
        assert_eq!(again, notes, "seed {seed}: after {leader} has gone");
        world.start(leader, None);
        world.pass(Duration::from_secs(3));
    }
    for machine in &world.machines {
        let running = machine.running.as_ref().unwrap();
        assert_eq!(*running.refusal.borrow(), None, "seed {seed}: daemon {}", machine.number);
        let control = running.control.borrow();
        assert_eq!(control.as_ref().and_then(Control::store_failure), None, "seed {seed}");
    }
    world.net.trace_hash()
}

#[test]
fn three_lose_nothing_in_a_storm() {
    for seed in 100..106 {
        storm(seed, 3, 40);
    }
}

#[test]
fn five_lose_nothing_in_a_storm() {
    for seed in 200..203 {
        storm(seed, 5, 40);
    }
}

#[test]
fn the_same_seed_twice_gives_the_same_trace() {
    assert_eq!(storm(300, 3, 20), storm(300, 3, 20));
    assert_eq!(storm(301, 5, 10), storm(301, 5, 10));
    assert_ne!(storm(300, 3, 20), storm(302, 3, 20));
}
