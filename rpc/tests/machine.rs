//! The rpc machine on real transfer machines: several localities in one thread, turned on virtual time over `lo` and `sim`, and
//! on the real clock over `tcp`.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::{Blamed, BlockExtent, Endpoint, Fid, Instant, LayoutWidth, Nid};
use fops::admin::{NetFault, NetFaultRequest, Ping, PingReply};
use fops::component::{ComponentRead, ComponentReadReply, ComponentWrite, ComponentWriteReply};
use fops::object::{ObjectOpen, ObjectOpenReply, ObjectRecord, ObjectUpdate, ObjectUpdateReply, OpenMode};
use fops::{Fop, FopError, Opcode};
use rpc::formation::{FormationLimits, FormationStats};
use rpc::item::{Header, Kind, SessionId, Xid};
use rpc::slot_record::{KEY_BYTES, SlotRecord, Transaction};
use rpc::{Bug, Bulk, CallError, CallOptions, PeerMisbehaved, Phase, RpcConfig, RpcMachine, ServiceState};
use runtime::{Arena, ArenaConfig, Buffer, Counters, Locality, LocalityConfig, SharedBuffer, Task};
use verbs_net::{Event, Fabric, LoFabric, PeerId, SimFabric, SimFaults, SimKeys, TmConfig, TransferMachine};

const TOKEN: [u8; 32] = [7; 32];
const FID: Fid = Fid { container: 1, key: 2 };

#[derive(Default)]
struct Served {
    /// Runs by tag.
    runs: RefCell<BTreeMap<u64, u32>>,
    /// Bytes that were pulled, by tag.
    stored: RefCell<BTreeMap<u64, Vec<SharedBuffer>>>,
    /// How long object-open takes.
    delay: Cell<Duration>,
    /// It says that this is on purpose.
    holds: Cell<bool>,
    requester_version: Cell<u64>,
}

struct Node {
    rpc: RpcMachine,
    served: Rc<Served>,
    // Last: its drop ends the tasks, which use the rest.
    locality: Locality,
}

struct World {
    fabric: Fabric,
    now: Instant,
    nodes: Vec<Option<Node>>,
    arena: Arena,
    counters: Arc<Counters>,
    net: fn(u32) -> Nid,
    epochs: u64,
}

impl World {
    fn new(fabric: Fabric, net: fn(u32) -> Nid) -> World {
        let arena = Arena::new(ArenaConfig { capacity_bytes: 256 << 20 }).unwrap();
        let counters = Arc::new(Counters::default());
        World { fabric, now: Instant::ZERO, nodes: Vec::new(), arena, counters, net, epochs: 0 }
    }

    fn lo() -> World {
        World::new(Fabric::Lo(LoFabric::new()), |_| Nid::LOOPBACK)
    }

    fn sim(seed: u64, faults: SimFaults) -> World {
        let fabric = SimFabric::new(seed);
        fabric.set_faults(faults);
        World::new(Fabric::Sim(fabric), |n| Nid::new(base::NetKind::Sim, n))
    }

    fn hardware(seed: u64, keys: SimKeys, faults: SimFaults) -> World {
        let fabric = SimFabric::with_remote_access(seed, keys);
        fabric.set_faults(faults);
        World::new(Fabric::Sim(fabric), |n| Nid::new(base::NetKind::Sim, n))
    }

    fn endpoint(&self, n: u16) -> Endpoint {
        Endpoint { nid: (self.net)(n.into()), pid: 12345, portal: 34, tmid: n }
    }

    fn locality(&mut self, n: u16) -> (Locality, u64) {
        self.epochs += 1;
        let locality = Locality::new(LocalityConfig {
            index: n.into(),
            name: format!("node {n}"),
            seed: self.epochs,
            counters: Arc::clone(&self.counters),
            arena: self.arena.clone(),
            crowd: None,
        });
        (locality, self.epochs)
    }

    fn transfer_machine(
        &mut self,
        n: u16,
        locality: &Locality,
        epoch: u64,
        token: [u8; 32],
    ) -> TransferMachine {
        let version = Rc::new(Cell::new(0));
        let config = TmConfig::new(self.endpoint(n), true, epoch, token, version);
        TransferMachine::start(&locality.handle(), &self.fabric, config).unwrap()
    }

    /// Starts (or restarts) node `n`.
    fn start(&mut self, n: u16, config: RpcConfig) -> RpcMachine {
        self.start_with_token(n, config, TOKEN)
    }

    fn start_with_token(&mut self, n: u16, config: RpcConfig, token: [u8; 32]) -> RpcMachine {
        let (locality, epoch) = self.locality(n);
        let tm = self.transfer_machine(n, &locality, epoch, token);
        let rpc = RpcMachine::start(&locality.handle(), tm, config);
        let served = Rc::new(Served::default());
        serve(&rpc, &served, epoch);
        let index = usize::from(n);
        self.nodes.resize_with(self.nodes.len().max(index + 1), || None);
        self.nodes[index] = Some(Node { rpc: rpc.clone(), served, locality });
        rpc
    }

    fn node(&self, n: u16) -> &Node {
        self.nodes[usize::from(n)].as_ref().unwrap()
    }

    fn served(&self, n: u16) -> Rc<Served> {
        Rc::clone(&self.node(n).served)
    }

    fn turn_all(&mut self) -> (bool, Option<Instant>) {
        let (mut progressed, mut next) = (false, None);
        for node in self.nodes.iter_mut().flatten() {
            let turn = node.locality.turn(self.now);
            progressed |= turn.progressed;
            next = [next, turn.next_deadline].into_iter().flatten().min();
        }
        (progressed, next)
    }

    /// Turns everybody until `is_done`; virtual time moves when nothing else does.
    fn until(&mut self, what: &str, mut is_done: impl FnMut(&World) -> bool) {
        for _ in 0..2_000_000 {
            let (progressed, next) = self.turn_all();
            if is_done(self) {
                return;
            }
            if !progressed {
                let next = next.unwrap_or_else(|| panic!("{what}: nothing is left to wait for"));
                self.now = self.now.max(next);
            }
        }
        panic!("{what}: still not, at {:?}", self.now);
    }

    fn run_for(&mut self, duration: Duration) {
        let until = self.now + duration;
        loop {
            let (progressed, next) = self.turn_all();
            if progressed {
                continue;
            }
            match next.filter(|next| *next <= until) {
                Some(next) => self.now = self.now.max(next),
                None => break,
            }
        }
        self.now = until;
    }

    /// Makes a call from node `from` in a task of its own; its result arrives in the returned cell.
    fn spawn<F: Fop>(
        &self,
        from: u16,
        to: u16,
        fop: F,
        bulk: Bulk,
        options: CallOptions,
    ) -> Outcome<F::Reply> {
        let outcome: Outcome<F::Reply> = Rc::default();
        let (rpc, to, into) = (self.node(from).rpc.clone(), self.endpoint(to), Rc::clone(&outcome));
        let _ = self.node(from).locality.handle().spawn("call", async move {
            let result = rpc.call(to, &fop, bulk, options).await;
            *into.borrow_mut() =
                Some(result.map(|answer| (answer.reply, answer.sink, answer.config_version)));
        });
        outcome
    }

    fn call<F: Fop>(
        &mut self,
        from: u16,
        to: u16,
        fop: F,
        bulk: Bulk,
        options: CallOptions,
    ) -> Result<(F::Reply, Vec<SharedBuffer>, u64), CallError> {
        let outcome = self.spawn(from, to, fop, bulk, options);
        self.until(F::NAME, |_| outcome.borrow().is_some());
        outcome.take().unwrap()
    }

    fn options(&self, seconds: u64) -> CallOptions {
        CallOptions::until(self.now + Duration::from_secs(seconds))
    }

    fn buffer(&self, bytes: usize, fill: u8) -> Buffer {
        let mut buffer = self.arena.try_alloc(bytes).unwrap();
        buffer.fill(fill);
        buffer
    }
}

type Outcome<R> = Rc<RefCell<Option<Result<(R, Vec<SharedBuffer>, u64), CallError>>>>;

fn serve(rpc: &RpcMachine, served: &Rc<Served>, epoch: u64) {
    let state = Rc::clone(served);
    rpc.serve(move |_, ping: Ping| {
        if let [tag] = ping.payload[..] {
            *state.runs.borrow_mut().entry(tag.into()).or_default() += 1;
        }
        async move { Ok(PingReply { payload: ping.payload, epoch }) }
    });
    let state = Rc::clone(served);
    rpc.serve(move |fom, open: ObjectOpen| {
        let state = Rc::clone(&state);
        async move {
            let tag = open.record.version;
            *state.runs.borrow_mut().entry(tag).or_default() += 1;
            state.requester_version.set(fom.config_version());
            if !state.delay.get().is_zero() {
                let until = fom.machine().locality().now() + state.delay.get();
                let _hold = state.holds.get().then(|| fom.hold(until));
                fom.machine().locality().sleep(state.delay.get()).await;
            }
            if open.mode == OpenMode::Open {
                return Err(FopError::NoSuchObject { object: open.record.object });
            }
            Ok(ObjectOpenReply { record: open.record, created: true })
        }
    });
    let state = Rc::clone(served);
    rpc.serve(move |fom, write: ComponentWrite| {
        let state = Rc::clone(&state);
        async move {
            let parts = fom.pull().await?;
            fom.phase(Phase::Write);
            state.stored.borrow_mut().insert(write.generation, parts);
            *state.runs.borrow_mut().entry(write.generation).or_default() += 1;
            Ok(ComponentWriteReply { free_blocks: fom.bulk_source_bytes() })
        }
    });
    let state = Rc::clone(served);
    rpc.serve(move |fom, read: ComponentRead| {
        let state = Rc::clone(&state);
        async move {
            let parts = state.stored.borrow().get(&read.generation).cloned();
            let parts = parts.ok_or(FopError::NoSuchObject { object: read.component })?;
            fom.push(0, parts).await?;
            Ok(ComponentReadReply { checksums: Vec::new(), absent: Vec::new() })
        }
    });
}

fn ping(payload: &[u8]) -> Ping {
    Ping { payload: payload.to_vec().into() }
}

fn open(tag: u64) -> ObjectOpen {
    let record = ObjectRecord {
        version: tag,
        generation: 0,
        object: FID,
        size_bytes: 0,
        width: LayoutWidth::new(4, 2, 1).unwrap(),
        unit_bytes: 4096,
        pool_version: FID,
        deleted: false,
    };
    ObjectOpen { device: FID, mode: OpenMode::CreateOrOpen, record }
}

fn write(tag: u64) -> ComponentWrite {
    let extents = vec![BlockExtent { start: 0, count: 4 }];
    ComponentWrite { device: FID, component: FID, generation: tag, extents, checksums: Vec::new() }
}

fn read(tag: u64) -> ComponentRead {
    let extents = vec![BlockExtent { start: 0, count: 4 }];
    ComponentRead { device: FID, component: FID, generation: tag, extents }
}

#[test]
fn a_call_is_answered_and_both_sides_learn_the_other_s_configuration() {
    let mut world = World::lo();
    let server = world.start(0, RpcConfig::default());
    let client = world.start(1, RpcConfig::default());
    server.config_version().set(9);
    client.config_version().set(4);
    let options = world.options(10);
    let (reply, sink, version) = world.call(1, 0, ping(b"hello"), Bulk::none(), options).unwrap();
    assert_eq!((&reply.payload[..], sink.len(), version), (&b"hello"[..], 0, 9));
    assert_eq!(client.newest_seen_config_version(), 9);
    world.call(1, 0, open(1), Bulk::none(), options).unwrap();
    assert_eq!(world.served(0).requester_version.get(), 4);
    assert_eq!(world.now, Instant::ZERO, "nothing waited for a timer");
    let phases: Vec<&str> =
        server.records().iter().filter(|r| r.opcode == Opcode::Ping as u16).map(|r| r.what.name()).collect();
    assert_eq!(phases, ["authenticate", "authorise", "decode", "run", "reply", "done"]);
    let asked: Vec<&str> =
        client.records().iter().filter(|r| r.opcode == Opcode::Ping as u16).map(|r| r.what.name()).collect();
    assert_eq!(asked, ["submit", "send", "replied"]);
    let id = |rpc: &RpcMachine| {
        rpc.records().iter().find(|r| r.opcode == Opcode::Ping as u16).map(|r| r.request_id)
    };
    assert_eq!(id(&server), id(&client), "both sides call the request the same");
    assert_eq!(server.stats().executed, 2);
}

fn bulk_both_ways(mut world: World, calls: u64) -> World {
    world.start(0, RpcConfig::default());
    world.start(1, RpcConfig::default());
    let options = world.options(60);
    let writes: Vec<_> = (0..calls)
        .map(|tag| {
            let fill = u8::try_from(tag % 251).unwrap();
            let source = vec![world.buffer(65536, fill).freeze(), world.buffer(4096, fill ^ 0xff).freeze()];
            world.spawn(1, 0, write(tag), Bulk::from_source(source), options)
        })
        .collect();
    world.until("writes", |_| writes.iter().all(|outcome| outcome.borrow().is_some()));
    for outcome in writes {
        assert_eq!(outcome.take().unwrap().unwrap().0.free_blocks, 65536 + 4096);
    }
    let reads: Vec<_> = (0..calls)
        .map(|tag| {
            let sink = vec![world.buffer(65536, 0xee), world.buffer(4096, 0xee)];
            world.spawn(1, 0, read(tag), Bulk::into_sink(sink), options)
        })
        .collect();
    world.until("reads", |_| reads.iter().all(|outcome| outcome.borrow().is_some()));
    for (tag, outcome) in (0..).zip(reads) {
        let (_, sink, _) = outcome.take().unwrap().unwrap();
        let fill = u8::try_from(tag % 251u64).unwrap();
        assert_eq!(sink.len(), 2);
        assert!(sink[0].iter().all(|byte| *byte == fill) && sink[0].len() == 65536, "tag {tag}");
        assert!(sink[1].iter().all(|byte| *byte == fill ^ 0xff) && sink[1].len() == 4096, "tag {tag}");
    }
    world
}

#[test]
fn many_calls_move_bulk_both_ways_without_a_copy_in_one_process() {
    let world = bulk_both_ways(World::lo(), 200);
    assert_eq!(world.counters.copied_bytes.get(), 0);
    let stats = world.node(1).rpc.stats();
    assert_eq!((stats.calls, stats.requester.resends), (0, 0));
}

#[test]
fn many_calls_move_bulk_both_ways_over_a_lossy_net() {
    bulk_both_ways(World::sim(3, lossy()), 60);
}

/// RDMA's shape: queue pairs die under the calls, and each sink comes back whole and only when no card can touch it.
#[test]
fn many_calls_move_bulk_both_ways_over_cards_whose_queue_pairs_die() {
    for (seed, keys) in [(3, SimKeys::Windows), (4, SimKeys::Pool), (5, SimKeys::Windows), (6, SimKeys::Pool)]
    {
        let faults =
            SimFaults { queue_pair_death_per_mille: 5, duplicate_per_mille: 100, ..SimFaults::default() };
        let world = bulk_both_ways(World::hardware(seed, keys, faults), 60);
        assert_eq!(world.node(1).rpc.stats().misbehaved + world.node(0).rpc.stats().misbehaved, 0);
        let Fabric::Sim(fabric) = &world.fabric else { unreachable!() };
        assert!(fabric.stats().queue_pair_deaths > 0, "seed {seed}");
    }
}

/// Starts the requester and a call with a sink of 1 MiB that the server is at work on for 2 s. The call's task, and the bytes in use before it.
fn call_to_drop(world: &mut World) -> (Task, u64) {
    world.start(1, RpcConfig::default());
    let options = world.options(60);
    world.call(1, 0, ping(b""), Bulk::none(), options).unwrap();
    world.served(0).delay.set(Duration::from_secs(2));
    let rpc = world.node(1).rpc.clone();
    let to = world.endpoint(0);
    let sink = vec![world.buffer(1 << 20, 0)];
    let before = world.arena.in_use_bytes();
    let task = world.node(1).locality.handle().spawn("call", async move {
        let _ = rpc.call(to, &open(1), Bulk::into_sink(sink), options).await;
        panic!("the call is dropped before it ends");
    });
    world.run_for(Duration::from_millis(100));
    (task, before)
}

/// The keys of a pool outlive a call that is given up: its memory waits for the server's word, and no longer.
#[test]
fn memory_of_a_dropped_call_waits_for_the_late_answer() {
    let mut world = World::hardware(1, SimKeys::Pool, SimFaults::default());
    world.start(0, RpcConfig::default());
    let (task, before) = call_to_drop(&mut world);
    task.cancel();
    world.run_for(Duration::from_millis(500));
    assert!(world.arena.in_use_bytes() + (1 << 19) > before, "the server is still at work on it");
    world.run_for(Duration::from_secs(5));
    assert!(world.arena.in_use_bytes() + (1 << 20) <= before + 16384, "the sink is back");
    assert_eq!(world.node(1).rpc.with_transfer_machine(TransferMachine::stats).peers_lost, 0);
}

#[test]
fn answers_that_are_errors_arrive_as_they_were_given() {
    let mut world = World::lo();
    let server = world.start(0, RpcConfig::default());
    world.start(1, RpcConfig::default());
    let options = world.options(10);
    let missing = ObjectOpen { mode: OpenMode::Open, ..open(1) };
    let error = world.call(1, 0, missing, Bulk::none(), options).unwrap_err();
    assert_eq!(error, CallError::Fop(FopError::NoSuchObject { object: FID }));
    let error = world.call(1, 0, fops::admin::Shutdown, Bulk::none(), options).unwrap_err();
    let CallError::Fop(FopError::BadRequest { reason }) = error else { panic!("{error:?}") };
    assert!(reason.contains("opcode 50") && reason.contains(&server.endpoint().to_string()), "{reason}");
    // A sink that is missing or of another shape is the requester's fault, and said so.
    world.call(1, 0, write(5), Bulk::from_source(vec![world.buffer(4096, 1).freeze()]), options).unwrap();
    let error = world.call(1, 0, read(5), Bulk::none(), options).unwrap_err();
    assert!(matches!(error, CallError::Fop(FopError::BadRequest { .. })), "{error}");
    let too_much = (0..65).map(|_| world.buffer(4096, 1).freeze()).collect();
    let error = world.call(1, 0, write(6), Bulk::from_source(too_much), options).unwrap_err();
    assert!(matches!(error, CallError::BadCall { .. }), "{error}");
    let error = world.call(1, 0, ping(&vec![0; 65_500]), Bulk::none(), options).unwrap_err();
    assert!(matches!(error, CallError::BadCall { .. }), "{error}");
    world.call(1, 0, ping(&vec![1; 60_000]), Bulk::none(), options).unwrap();
}

#[test]
fn peers_without_the_right_are_refused_in_the_authorise_phase() {
    let mut world = World::lo();
    let denied = |_: PeerId, opcode: u16| {
        if opcode == Opcode::ObjectOpen as u16 {
            return Err(FopError::NotPermitted { reason: "reading only".to_owned() });
        }
        Ok(())
    };
    world.start(0, RpcConfig { authorise: Some(Rc::new(denied)), ..RpcConfig::default() });
    world.start(1, RpcConfig::default());
    let options = world.options(10);
    world.call(1, 0, ping(b""), Bulk::none(), options).unwrap();
    let error = world.call(1, 0, open(1), Bulk::none(), options).unwrap_err();
    assert!(matches!(error, CallError::Fop(FopError::NotPermitted { .. })), "{error}");
    assert!(world.served(0).runs.borrow().is_empty());
}

#[test]
fn a_wrong_token_is_told_and_not_tried_again() {
    let mut world = World::lo();
    world.start(0, RpcConfig::default());
    world.start_with_token(1, RpcConfig::default(), [8; 32]);
    let options = world.options(60);
    let error = world.call(1, 0, ping(b""), Bulk::none(), options).unwrap_err();
    assert!(matches!(error, CallError::Net { .. }), "{error:?}");
    assert!(error.to_string().contains("token"), "{error}");
    assert!(world.now < Instant::ZERO + Duration::from_secs(5), "{:?}", world.now);
}

#[test]
fn a_dropped_call_takes_its_memory_back_and_its_slot_returns() {
    let mut world = World::lo();
    world.start(0, RpcConfig { slots: 2, ..RpcConfig::default() });
    let (task, before) = call_to_drop(&mut world);
    assert_eq!(world.served(0).runs.borrow().get(&1), Some(&1));
    task.cancel();
    world.run_for(Duration::from_millis(100));
    assert!(world.arena.in_use_bytes() + (1 << 20) <= before + 16384, "the sink is back");
    assert_eq!(world.node(1).rpc.stats().calls, 1, "an orphan keeps the slot");
    world.served(0).delay.set(Duration::ZERO);
    for tag in 2..20 {
        world.call(1, 0, open(tag), Bulk::none(), world.options(60)).unwrap();
    }
    world.run_for(Duration::from_secs(10));
    let stats = world.node(1).rpc.stats();
    assert_eq!((stats.calls, stats.requester.cancelled), (0, 1));
    assert_eq!(world.node(0).rpc.stats().misbehaved + stats.misbehaved, 0);
}

#[test]
fn a_request_whose_time_is_over_before_it_starts_never_runs() {
    let mut world = World::lo();
    let server = world.start(0, RpcConfig { foms_max: 1, ..RpcConfig::default() });
    world.start(1, RpcConfig::default());
    world.served(0).delay.set(Duration::from_secs(5));
    let slow = world.spawn(1, 0, open(1), Bulk::none(), world.options(60));
    let hasty = world.spawn(1, 0, open(2), Bulk::none(), world.options(2));
    world.until("the hasty one", |_| hasty.borrow().is_some());
    let error = hasty.take().unwrap().unwrap_err();
    let CallError::TimedOut { operation: "object-open", peer, age, .. } = error else { panic!("{error:?}") };
    assert_eq!((peer, age), (world.endpoint(0), Duration::from_secs(2)));
    assert!(error.to_string().contains("timed out after 2.0 s"), "{error}");
    world.until("the slow one", |_| slow.borrow().is_some());
    slow.take().unwrap().unwrap();
    world.run_for(Duration::from_secs(20));
    assert_eq!(world.served(0).runs.borrow().get(&2), None);
    assert_eq!((server.stats().foms_waiting, world.node(1).rpc.stats().calls), (0, 0));
}

#[test]
fn a_full_server_pushes_back_and_loses_nothing() {
    let mut world = World::lo();
    let server = world.start(0, RpcConfig { foms_max: 2, fom_queue_max: 3, ..RpcConfig::default() });
    world.start(1, RpcConfig::default());
    world.served(0).delay.set(Duration::from_millis(50));
    let options = world.options(120);
    let calls: Vec<_> = (0..40).map(|tag| world.spawn(1, 0, open(tag), Bulk::none(), options)).collect();
    world.until("all", |_| calls.iter().all(|outcome| outcome.borrow().is_some()));
    assert!(calls.iter().all(|outcome| outcome.borrow().as_ref().unwrap().is_ok()));
    assert!(world.served(0).runs.borrow().values().all(|runs| *runs == 1));
    assert!(server.stats().responder.no_room > 0);
}

#[test]
fn draining_finishes_what_runs_and_refuses_the_rest() {
    let mut world = World::lo();
    let server = world.start(0, RpcConfig::default());
    server.serve_net_faults();
    world.start(1, RpcConfig::default());
    world.served(0).delay.set(Duration::from_secs(1));
    let options = world.options(60);
    let running = world.spawn(1, 0, open(1), Bulk::none(), options);
    world.run_for(Duration::from_millis(100));
    let is_drained = Rc::new(Cell::new(false));
    let (drained, machine) = (Rc::clone(&is_drained), server.clone());
    let _ = world.node(0).locality.handle().spawn("drain", async move {
        machine.drain().await.unwrap();
        drained.set(true);
    });
    world.run_for(Duration::from_millis(100));
    assert_eq!(server.service_state(), ServiceState::Draining);
    let error = world.call(1, 0, open(2), Bulk::none(), options).unwrap_err();
    assert!(
        matches!(&error, CallError::Fop(refused @ FopError::NotServing { .. }) if refused.may_retry()),
        "{error}"
    );
    let faults = NetFault { request: NetFaultRequest::List };
    world.call(1, 0, faults, Bulk::none(), options).expect("questions about the process are answered");
    assert!(!is_drained.get());
    world.until("drained", |_| is_drained.get());
    world.until("the running one", |_| running.borrow().is_some());
    running.take().unwrap().unwrap();
    assert_eq!(world.served(0).runs.borrow().get(&2), None);
    let error = world.call(0, 1, ping(b""), Bulk::none(), options).unwrap_err();
    assert_eq!(error, CallError::Draining);
}

#[test]
fn a_drain_waits_for_its_time_and_names_who_still_runs() {
    let mut world = World::lo();
    let server = world.start(0, RpcConfig { drain_within: Duration::from_secs(2), ..RpcConfig::default() });
    world.start(1, RpcConfig::default());
    world.served(0).delay.set(Duration::from_secs(9));
    let options = world.options(60);
    let running = world.spawn(1, 0, open(1), Bulk::none(), options);
    world.run_for(Duration::from_millis(100));
    let (outcome, machine) = (Rc::new(RefCell::new(None)), server.clone());
    let into = Rc::clone(&outcome);
    let _ = world.node(0).locality.handle().spawn("drain", async move {
        *into.borrow_mut() = Some(machine.drain().await);
    });
    world.run_for(Duration::from_millis(1900));
    assert_eq!((outcome.borrow().is_none(), server.service_state()), (true, ServiceState::Draining));
    world.run_for(Duration::from_millis(200));
    let left = outcome.take().unwrap().unwrap_err();
    assert_eq!((left.count, left.oldest.opcode), (1, Opcode::ObjectOpen as u16));
    assert!(left.to_string().contains("at phase run"), "{left}");
    assert_eq!(server.service_state(), ServiceState::Stopped);
    world.until("it is answered all the same, as its locality lives on", |_| running.borrow().is_some());
}

#[test]
fn a_service_that_starts_tells_requests_to_come_again() {
    let mut world = World::lo();
    let server = world.start(0, RpcConfig { is_starting: true, ..RpcConfig::default() });
    server.serve_net_faults();
    world.start(1, RpcConfig::default());
    let options = world.options(60);
    let refused = world.call(1, 0, open(1), Bulk::none(), options).unwrap_err();
    assert!(
        matches!(&refused, CallError::Fop(FopError::NotServing { reason }) if reason.contains("starting"))
    );
    let faults = NetFault { request: NetFaultRequest::List };
    world.call(1, 0, faults, Bulk::none(), options).unwrap();
    server.begin_serving();
    world.call(1, 0, open(1), Bulk::none(), options).unwrap();
    assert_eq!(world.served(0).runs.borrow()[&1], 1);
}

#[test]
#[should_panic(expected = "a bug in a handler")]
fn a_handler_that_panics_stops_its_locality() {
    let mut world = World::lo();
    let server = world.start(0, RpcConfig::default());
    world.start(1, RpcConfig::default());
    server.serve(|_, _: fops::admin::Shutdown| async { panic!("a bug in a handler") });
    let options = world.options(10);
    let _ = world.call(1, 0, fops::admin::Shutdown, Bulk::none(), options);
}

/// The answer to the rule that drops it is lost, and the resend brings it: the rule was added once.
#[test]
fn a_running_machine_takes_fault_rules_and_counts_them() {
    let mut world = World::lo();
    world.start(0, RpcConfig::default()).serve_net_faults();
    world.start(1, RpcConfig::default());
    let options = world.options(60);
    world.call(1, 0, ping(b""), Bulk::none(), options).unwrap();
    let ask = |request| NetFault { request };
    let add = |rule: &str| ask(NetFaultRequest::Add { rule: rule.to_owned() });
    let (reply, ..) = world.call(1, 0, add("drop kind=message count=1"), Bulk::none(), options).unwrap();
    let line = "drop kind=message count=1".to_owned();
    assert_eq!((reply.rules.len(), &reply.rules[0].rule, reply.rules[0].fired), (1, &line, 0));
    assert!(world.node(1).rpc.stats().requester.resends >= 1);
    let (reply, ..) = world.call(1, 0, ask(NetFaultRequest::List), Bulk::none(), options).unwrap();
    assert_eq!((reply.rules.len(), reply.rules[0].fired), (1, 1));
    let error = world.call(1, 0, add("lose kind=message"), Bulk::none(), options).unwrap_err();
    assert!(
        matches!(&error, CallError::Fop(FopError::BadRequest { reason }) if reason.contains("duplicate")),
        "{error}"
    );
    let id = Some(reply.rules[0].id);
    let (reply, ..) = world.call(1, 0, ask(NetFaultRequest::Clear { id }), Bulk::none(), options).unwrap();
    assert_eq!(reply.rules, []);
}

#[test]
fn a_fom_that_hangs_is_named_with_its_phase_and_ends_in_its_time() {
    let mut world = World::lo();
    let told = Rc::new(RefCell::new(Vec::new()));
    let teller = Rc::clone(&told);
    let on_hung: rpc::config::OnHung = Rc::new(move |hung| teller.borrow_mut().push(hung.to_string()));
    let server = world.start(0, RpcConfig { on_hung: Some(on_hung), ..RpcConfig::default() });
    world.start(1, RpcConfig::default());
    let options = world.options(100);
    world.served(0).delay.set(Duration::from_secs(45));
    let slow = world.spawn(1, 0, open(1), Bulk::none(), options);
    world.run_for(Duration::from_secs(29));
    assert!(told.borrow().is_empty());
    let running = server.running_foms();
    assert_eq!((running.len(), running[0].phase, running[0].opcode), (1, Phase::Run, 16));
    world.until("the reply", |_| slow.borrow().is_some());
    slow.take().unwrap().unwrap();
    assert_eq!((told.borrow().len(), server.stats().foms_hung, server.running_foms().len()), (1, 1, 0));
    assert!(told.borrow()[0].contains("(opcode 16)"), "{:?}", told.borrow());
    assert!(told.borrow()[0].contains("is at phase run for 3"), "{:?}", told.borrow());
}

#[test]
fn one_way_fops_run_without_a_reply() {
    let mut world = World::lo();
    let server = world.start(0, RpcConfig::default());
    world.start(1, RpcConfig::default());
    let rpc = world.node(1).rpc.clone();
    let to = world.endpoint(0);
    let is_refused = Rc::new(Cell::new(false));
    let refused = Rc::clone(&is_refused);
    let _ = world.node(1).locality.handle().spawn("one-way", async move {
        rpc.send_one_way(to, &ping(&[77])).await.unwrap();
        refused.set(rpc.send_one_way(to, &open(1)).await.is_err());
    });
    world.until("it ran", |world| world.served(0).runs.borrow().get(&77) == Some(&1));
    assert!(is_refused.get(), "at most once cannot be promised one way");
    assert_eq!(server.stats().sessions, 0);
}

/// Messages that both sides send for 64 pings made in one turn, in a session that is there.
fn messages_of_64_pings(config: &RpcConfig) -> (FormationStats, FormationStats) {
    let mut world = World::sim(5, SimFaults::default());
    let server = world.start(0, config.clone());
    let client = world.start(1, config.clone());
    let options = world.options(30);
    world.call(1, 0, ping(b"first"), Bulk::none(), options).unwrap();
    let (before_there, before_here) = (server.stats().formation, client.stats().formation);
    let calls: Vec<_> =
        (0..64).map(|tag| world.spawn(1, 0, ping(&[tag; 64]), Bulk::none(), options)).collect();
    world.until("the replies", |_| calls.iter().all(|outcome| outcome.borrow().is_some()));
    for (tag, outcome) in (0..64).zip(calls) {
        assert_eq!(outcome.take().unwrap().unwrap().0.payload[..], [tag; 64]);
    }
    assert_eq!(server.stats().executed, 65);
    let since = |now: FormationStats, before: FormationStats| FormationStats {
        messages: now.messages - before.messages,
        packets: now.packets - before.packets,
        packed_items: now.packed_items - before.packed_items,
        ..now
    };
    (since(client.stats().formation, before_here), since(server.stats().formation, before_there))
}

#[test]
fn small_requests_and_replies_of_one_turn_share_packets() {
    let (client, server) = messages_of_64_pings(&RpcConfig::default());
    // Header, body and length: 64 + 72 + 4 bytes; 29 of them fit 4 KiB, and a turn polls 32 of the callers.
    assert_eq!((client.messages, client.packets, client.packed_items), (4, 4, 64));
    assert!(server.messages <= 8 && server.packed_items >= 60, "{server:?}");
    assert_eq!(client.blocked, 0);
    let off = FormationLimits { packet_items_max: 1, ..rpc::limits::FORMATION };
    let (client, server) = messages_of_64_pings(&RpcConfig { formation: off, ..RpcConfig::default() });
    assert_eq!((client.messages, client.packets, server.messages, server.packets), (64, 0, 64, 0));
    assert!(client.blocked > 0, "64 messages are more than the transport's credits");
}

/// Resends and steps of a request that takes 12 s at its server.
fn resends_of_a_long_request(holds: bool) -> (u64, Vec<&'static str>, Vec<&'static str>) {
    let mut world = World::lo();
    let server = world.start(0, RpcConfig { hung_after: Duration::from_secs(5), ..RpcConfig::default() });
    let client = world.start(1, RpcConfig::default());
    world.served(0).delay.set(Duration::from_secs(12));
    world.served(0).holds.set(holds);
    let options = world.options(30);
    world.call(1, 0, open(1), Bulk::none(), options).unwrap();
    let stats = server.stats();
    assert_eq!((stats.executed, stats.foms_holding, stats.holds_told), (1, 0, holds.into()));
    assert_eq!(stats.foms_hung == 0, holds, "the watchdog knows, too");
    let steps = |rpc: &RpcMachine| rpc.records().iter().map(|record| record.what.name()).collect();
    (client.stats().requester.resends, steps(&client), steps(&server))
}

#[test]
fn a_request_that_is_held_back_is_not_sent_again() {
    let (resends, asked, served) = resends_of_a_long_request(true);
    assert_eq!(resends, 0);
    assert!(asked.contains(&"held") && !asked.contains(&"resend"), "{asked:?}");
    let at = served.iter().position(|step| *step == "hold").unwrap();
    assert_eq!(served[at..at + 2], ["hold", "go-on"], "{served:?}");
    assert_eq!(served.iter().filter(|step| **step == "run").count(), 1, "{served:?}");
    assert_eq!(resends_of_a_long_request(false).0, 5, "without the word");
}

/// Speaks items by hand: what a client of before packets sends and gets.
#[test]
fn packets_go_only_to_those_who_say_that_they_read_them() {
    for reads in [0, 1] {
        let mut world = World::sim(5, SimFaults::default());
        let server = world.start(0, RpcConfig::default());
        let (mut locality, epoch) = world.locality(1);
        let mut old = world.transfer_machine(1, &locality, epoch, TOKEN);
        let to = PeerId::any(world.endpoint(0));
        let mut exchange =
            |world: &mut World, items: &[(Header, Vec<u8>)], replies: usize| -> Vec<SharedBuffer> {
                for (header, body) in items {
                    let mut item = world.arena.try_alloc(64 + body.len()).unwrap();
                    item[64..].copy_from_slice(body);
                    header.seal(&mut item);
                    old.try_send(world.now, to, item.freeze()).unwrap();
                }
                let mut got = Vec::new();
                for _ in 0..10_000 {
                    old.poll(world.now, 100);
                    while let Some(event) = old.next_event() {
                        if let Event::Message { bytes, .. } = event {
                            got.push(bytes);
                        }
                    }
                    old.flush(world.now);
                    locality.turn(world.now);
                    world.turn_all();
                    if server.stats().formation.messages >= replies as u64 && got.len() >= replies {
                        break;
                    }
                    world.now = world.now + Duration::from_micros(50);
                }
                got
            };
        let establish =
            Header { request_id: reads, ..Header::control(Kind::Establish, SessionId(0), 0, Xid(1)) };
        let answer = exchange(&mut world, &[(establish, Vec::new())], 1);
        let answer = Header::parse(&answer[0]).unwrap();
        assert!(matches!(answer.kind, Kind::Established { .. }));
        assert_eq!(answer.request_id, rpc::item::reads::NEWEST, "the server reads packets");
        let body = fops::codec::encode(&ping(b"x")).unwrap();
        let kind = Kind::Request { opcode: Opcode::Ping as u16 };
        let request = |slot| Header {
            body_bytes: u32::try_from(body.len()).unwrap(),
            time_left_ms: 9000,
            ..Header::control(kind, answer.session, slot, Xid(1))
        };
        // Both arrive in one turn: their replies leave in one.
        let items = [(request(0), body.clone()), (request(1), body.clone())];
        let got = exchange(&mut world, &items, 2 - usize::try_from(reads).unwrap());
        let packets = got.iter().filter(|message| message.starts_with(b"ClPk")).count();
        assert_eq!((got.len(), packets), if reads == 0 { (2, 0) } else { (1, 1) });
        assert_eq!(server.stats().executed, 2);
    }
}

#[test]
fn garbage_costs_its_sender_the_connection_and_nobody_else() {
    let mut world = World::lo();
    let server = world.start(0, RpcConfig::default());
    world.start(1, RpcConfig::default());
    let options = world.options(30);
    world.call(1, 0, open(1), Bulk::none(), options).unwrap();
    let (mut locality, epoch) = world.locality(2);
    let mut hostile = world.transfer_machine(2, &locality, epoch, TOKEN);
    let to = PeerId::any(world.endpoint(0));
    let packet = b"ClPk\x01\x00\x02\x00\x40\x00\x00\x00";
    for (index, bytes) in [&b"short"[..], &packet[..], &[0; 64], &[0xff; 4096]].into_iter().enumerate() {
        let message = SharedBuffer::copy_from_slice(&world.arena, bytes, &world.counters).unwrap();
        hostile.try_send(world.now, to, message).unwrap();
        for _ in 0..10_000 {
            hostile.poll(world.now, 100);
            while hostile.next_event().is_some() {}
            hostile.flush(world.now);
            locality.turn(world.now);
            world.turn_all();
            if server.stats().misbehaved > index as u64 {
                break;
            }
            world.now = world.now + Duration::from_millis(1);
        }
        assert_eq!(server.stats().misbehaved, index as u64 + 1);
        // The hostile side hears that it was thrown out before it tries again.
        for _ in 0..200 {
            hostile.poll(world.now, 100);
            while hostile.next_event().is_some() {}
            hostile.flush(world.now);
            world.turn_all();
            world.now = world.now + Duration::from_millis(1);
        }
    }
    let (from, last) = server.stats().last_misbehaviour.unwrap();
    assert_eq!(from.endpoint, world.endpoint(2));
    assert!(matches!(last, PeerMisbehaved::Magic { .. }), "{last}");
    world.call(1, 0, open(2), Bulk::none(), options).unwrap();
    assert_eq!(server.stats().responder.sessions_opened, 1, "the other client noticed nothing");
}

#[test]
fn a_restarted_server_gets_what_may_repeat_and_the_rest_is_told() {
    let mut world = World::lo();
    world.start(0, RpcConfig::default());
    world.start(1, RpcConfig::default());
    let options = world.options(60);
    world.call(1, 0, ping(b""), Bulk::none(), options).unwrap();
    world.served(0).delay.set(Duration::from_secs(5));
    let once = world.spawn(1, 0, open(1), Bulk::none(), options);
    world.run_for(Duration::from_millis(100));
    world.nodes[0] = None; // the process dies
    let again = world.spawn(1, 0, ping(b"again"), Bulk::none(), options);
    world.run_for(Duration::from_millis(300));
    assert!(once.borrow().is_none(), "it may still come back");
    world.start(0, RpcConfig::default());
    world.until("both", |_| once.borrow().is_some() && again.borrow().is_some());
    again.take().unwrap().unwrap();
    let error = once.take().unwrap().unwrap_err();
    assert!(matches!(error, CallError::PeerLost { may_have_executed: true, .. }), "{error:?}");
    assert_eq!(world.served(0).runs.borrow().get(&1), None, "it did not run a second time");
}

/// The records of slots, as a device would keep them.
#[derive(Clone, Default)]
struct Disk(Rc<RefCell<BTreeMap<Vec<u8>, Vec<u8>>>>);

impl Transaction for Disk {
    fn put_slot(&mut self, key: &[u8; KEY_BYTES], value: &[u8]) {
        self.0.borrow_mut().insert(key.to_vec(), value.to_vec());
    }
}

/// Serves object-update: its effect (a count) is durable with its slot's record; the reply takes five seconds more.
fn start_durable(world: &mut World, disk: &Disk, effects: &Rc<Cell<u32>>) -> RpcMachine {
    let rpc = world.start(0, RpcConfig { durable_slots: true, ..RpcConfig::default() });
    let (disk, effects) = (disk.clone(), Rc::clone(effects));
    rpc.serve(move |fom, update: ObjectUpdate| {
        let (mut disk, effects) = (disk.clone(), Rc::clone(&effects));
        async move {
            let reply = ObjectUpdateReply { record: update.record };
            fom.record_in(&mut disk, &reply)?;
            effects.set(effects.get() + 1);
            fom.machine().locality().sleep(Duration::from_secs(5)).await;
            Ok(reply)
        }
    });
    rpc
}

#[test]
fn a_request_whose_effect_was_durable_is_answered_after_a_restart_and_does_not_run_again() {
    let mut world = World::lo();
    let (disk, effects) = (Disk::default(), Rc::new(Cell::new(0)));
    start_durable(&mut world, &disk, &effects).resume_sessions([]);
    let client = world.start(1, RpcConfig::default());
    let options = world.options(60);
    world.call(1, 0, ping(b""), Bulk::none(), options).unwrap();
    let record = open(77).record;
    let update = ObjectUpdate { device: FID, expected_version: 76, repair: false, record };
    let call = world.spawn(1, 0, update, Bulk::none(), options);
    world.run_for(Duration::from_millis(100));
    assert_eq!((effects.get(), disk.0.borrow().len()), (1, 1));
    world.nodes[0] = None; // the process dies before it answers
    world.run_for(Duration::from_millis(300));
    let server = start_durable(&mut world, &disk, &effects);
    world.run_for(Duration::from_secs(2));
    assert!(call.borrow().is_none(), "its records are not read yet");
    let records: Vec<SlotRecord> =
        disk.0.borrow().iter().map(|(key, value)| SlotRecord::parse(key, value).unwrap()).collect();
    server.resume_sessions(records);
    world.until("the answer", |_| call.borrow().is_some());
    assert_eq!(call.take().unwrap().unwrap().0.record.version, 77);
    assert_eq!((effects.get(), server.stats().executed), (1, 0));
    assert_eq!((server.stats().reply_cache.replays, client.stats().requester.sessions_resumed), (1, 1));
}

#[test]
fn a_restart_between_calls_is_not_noticed() {
    let mut world = World::lo();
    world.start(0, RpcConfig::default());
    let client = world.start(1, RpcConfig::default());
    let options = world.options(60);
    world.call(1, 0, open(1), Bulk::none(), options).unwrap();
    for round in 0..3 {
        world.nodes[0] = None;
        if round == 1 {
            world.run_for(Duration::from_secs(1)); // the client hears of it, or not
        }
        world.start(0, RpcConfig::default());
        let calls: Vec<_> = (0..100).map(|tag| world.spawn(1, 0, open(tag), Bulk::none(), options)).collect();
        world.until("all", |_| calls.iter().all(|outcome| outcome.borrow().is_some()));
        assert!(calls.iter().all(|outcome| matches!(*outcome.borrow(), Some(Ok(_)))), "round {round}");
        assert!(world.served(0).runs.borrow().values().all(|runs| *runs == 1));
    }
    assert_eq!(client.stats().requester.sessions_opened, 4);
}

#[test]
fn a_call_without_memory_ends_at_its_deadline() {
    let mut world = World::lo();
    world.start(0, RpcConfig::default());
    world.start(1, RpcConfig::default());
    let all: Vec<Buffer> = std::iter::from_fn(|| world.arena.try_alloc(1 << 20)).collect();
    let rest: Vec<Buffer> = std::iter::from_fn(|| world.arena.try_alloc(4096)).collect();
    let error = world.call(1, 0, ping(b""), Bulk::none(), world.options(3)).unwrap_err();
    assert!(matches!(error, CallError::TimedOut { may_have_executed: false, .. }), "{error:?}");
    assert!(error.to_string().contains("arena"), "{error}");
    drop((all, rest));
    world.call(1, 0, ping(b""), Bulk::none(), world.options(3)).unwrap();
}

#[test]
fn who_starts_while_the_first_of_a_group_has_no_power_asks_the_next_one_soon() {
    let mut world = World::sim(5, SimFaults::NONE);
    let client = world.start(1, RpcConfig::default());
    world.start(2, RpcConfig::default());
    let (first, second) = (world.endpoint(0), world.endpoint(2));
    // A machine without power says nothing, not even that nobody listens.
    let Fabric::Sim(net) = &world.fabric else { unreachable!("it is simulated") };
    net.crash(first);
    client.set_group(first, &[second]);
    let begun = world.now;
    let answer = world.call(1, 0, ping(b"who leads?"), Bulk::none(), world.options(30)).unwrap();
    assert_eq!(answer.0.payload[..], *b"who leads?");
    let took = world.now.since(begun);
    assert!(took <= Duration::from_millis(600), "{took:?}");
    assert_eq!((client.leader_of(first), client.moved_in_group(first)), (second, 1));
    // What may run only once goes on too: it was not sent to the first. From now on nobody waits for that one.
    let begun = world.now;
    world.call(1, 0, open(1), Bulk::none(), world.options(30)).unwrap();
    assert!(world.now.since(begun) < Duration::from_millis(100));
    client.set_group(first, &[second]);
    let begun = world.now;
    world.call(1, 0, open(2), Bulk::none(), world.options(30)).unwrap();
    assert!(world.now.since(begun) <= Duration::from_millis(600), "{:?}", world.now.since(begun));
    assert_eq!(world.served(2).runs.borrow().values().copied().max(), Some(1));
    // Where there is nobody else to ask, a call is patient.
    client.set_group(first, &[]);
    let begun = world.now;
    let error = world.call(1, 0, ping(b"?"), Bulk::none(), world.options(3)).unwrap_err();
    assert!(matches!(error, CallError::TimedOut { may_have_executed: false, .. }), "{error:?}");
    assert!(world.now.since(begun) >= Duration::from_secs(3));
}

#[test]
fn a_dead_server_is_named_with_what_was_tried() {
    let mut world = World::lo();
    world.start(0, RpcConfig::default());
    world.start(1, RpcConfig::default());
    let options = world.options(5);
    world.call(1, 0, ping(b""), Bulk::none(), options).unwrap();
    world.nodes[0] = None;
    let error = world.call(1, 0, ping(b""), Bulk::none(), options).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, CallError::TimedOut { may_have_executed: false, .. }), "{error:?}");
    assert!(text.contains(&world.endpoint(0).to_string()) && text.contains("no connection"), "{text}");
    let hurried = world.options(30).unreachable_max(Duration::from_millis(200));
    let begun = world.now;
    let error = world.call(1, 0, ping(b""), Bulk::none(), hurried).unwrap_err();
    assert!(matches!(error, CallError::PeerLost { may_have_executed: false, .. }), "{error:?}");
    assert!(world.now < begun + Duration::from_secs(2), "{:?}", world.now.since(begun));
}

fn lossy() -> SimFaults {
    SimFaults {
        loss_per_mille: 50,
        duplicate_per_mille: 50,
        reorder_per_mille: 50,
        reorder_delay_max: Duration::from_millis(700),
        ..SimFaults::default()
    }
}

/// Worst count of runs of a request that may run at most once, and how many were answered, over a net that loses and doubles.
fn runs_over_a_lossy_net(seed: u64, config: RpcConfig) -> (u32, usize, usize) {
    let mut world = World::sim(seed, lossy());
    world.start(0, config);
    world.start(1, RpcConfig::default());
    world.served(0).delay.set(Duration::from_millis(20));
    let options = world.options(300);
    let calls: Vec<_> = (0..300).map(|tag| world.spawn(1, 0, open(tag), Bulk::none(), options)).collect();
    world.until("all", |_| calls.iter().all(|outcome| outcome.borrow().is_some()));
    world.run_for(Duration::from_secs(30));
    let worst = world.served(0).runs.borrow().values().copied().max().unwrap();
    let outcomes = || calls.iter().map(|outcome| outcome.borrow());
    let answered = outcomes().filter(|outcome| matches!(outcome.as_ref(), Some(Ok(_)))).count();
    let gone = outcomes()
        .filter(|outcome| matches!(outcome.as_ref(), Some(Err(CallError::Fop(FopError::ReplyGone)))))
        .count();
    (worst, answered, gone)
}

#[test]
fn a_lossy_net_runs_nothing_twice() {
    for seed in 1..4 {
        let (worst, answered, _) = runs_over_a_lossy_net(seed, RpcConfig::default());
        assert_eq!((worst, answered), (1, 300), "seed {seed}");
    }
}

#[test]
fn without_the_reply_cache_the_test_above_would_fail() {
    let broken = |_| RpcConfig { bug: Some(Bug::ReplyCacheOff), ..RpcConfig::default() };
    let worst = (1..4).map(|seed| runs_over_a_lossy_net(seed, broken(seed)).0).max().unwrap();
    assert!(worst > 1, "a reply was lost and the request ran again");
}

#[test]
fn a_reply_that_is_gone_is_told_and_nothing_runs_again() {
    let replies =
        rpc::reply_cache::ReplyBounds { count_max: 0, bytes_max: 0, lifetime: Duration::from_secs(90) };
    let (worst, answered, gone) = runs_over_a_lossy_net(1, RpcConfig { replies, ..RpcConfig::default() });
    assert_eq!((worst, answered + gone), (1, 300));
    assert!(gone > 0);
}

/// Two machines over real sockets in one thread, on the real clock.
struct TcpPair {
    world: World,
    clock: runtime::MonotonicClock,
    server: RpcMachine,
    client: RpcMachine,
    to: Endpoint,
    sides: [Locality; 2],
}

impl TcpPair {
    fn new(config: &RpcConfig) -> TcpPair {
        let mut world = World::new(Fabric::Tcp, |_| Nid::tcp([127, 0, 0, 1].into()));
        let (server_side, epoch) = world.locality(0);
        let to = verbs_net::free_endpoint(Nid::tcp([127, 0, 0, 1].into())).unwrap();
        let tm_config = TmConfig::new(to, true, epoch, TOKEN, Rc::default());
        let tm = TransferMachine::start(&server_side.handle(), &world.fabric, tm_config).unwrap();
        let server = RpcMachine::start(&server_side.handle(), tm, config.clone());
        serve(&server, &Rc::default(), epoch);
        let (client_side, epoch) = world.locality(1);
        let local = verbs_net::dynamic_endpoint(Nid::tcp([127, 0, 0, 1].into()), 99, 1);
        let tm_config = TmConfig::new(local, false, epoch, TOKEN, Rc::default());
        let tm = TransferMachine::start(&client_side.handle(), &world.fabric, tm_config).unwrap();
        let client = RpcMachine::start(&client_side.handle(), tm, config.clone());
        TcpPair {
            world,
            clock: runtime::MonotonicClock::start(),
            server,
            client,
            to,
            sides: [server_side, client_side],
        }
    }

    /// Runs a task of the client's to its end.
    fn run(&mut self, task: impl Future<Output = ()> + 'static) {
        let is_done = Rc::new(Cell::new(false));
        let done = Rc::clone(&is_done);
        let _ = self.client.locality().spawn("test", async move {
            task.await;
            done.set(true);
        });
        let until = self.clock.now() + Duration::from_secs(30);
        while !is_done.get() {
            let now = self.clock.now();
            assert!(now < until, "not done after 30 s");
            for side in &mut self.sides {
                side.turn(now);
            }
        }
    }

    fn options(&self) -> CallOptions {
        CallOptions::until(self.clock.now() + Duration::from_secs(30))
    }
}

/// Over real sockets, both ends in one thread: the bytes are received straight into arena buffers.
#[test]
fn calls_and_bulk_over_tcp() {
    let mut pair = TcpPair::new(&RpcConfig::default());
    let results = Rc::new(RefCell::new(Vec::new()));
    let calls: Vec<_> = (0..50u8)
        .map(|tag| {
            let (client, to, results, options) =
                (pair.client.clone(), pair.to, Rc::clone(&results), pair.options());
            let world = &pair.world;
            let source = vec![world.buffer(65536, tag).freeze(), world.buffer(8192, tag ^ 1).freeze()];
            let sink = vec![world.buffer(65536, 0xee), world.buffer(8192, 0xee)];
            async move {
                client.call(to, &write(tag.into()), Bulk::from_source(source), options).await.unwrap();
                let answer =
                    client.call(to, &read(tag.into()), Bulk::into_sink(sink), options).await.unwrap();
                results.borrow_mut().push((tag, answer.sink));
            }
        })
        .collect();
    pair.run(async move { drop(futures_util::future::join_all(calls).await) });
    for (tag, sink) in results.borrow().iter() {
        assert!(sink[0].len() == 65536 && sink[0].iter().all(|byte| byte == tag), "tag {tag}");
        assert!(sink[1].len() == 8192 && sink[1].iter().all(|byte| *byte == tag ^ 1), "tag {tag}");
    }
    assert_eq!((pair.client.stats().requester.resends, pair.server.stats().misbehaved), (0, 0));
    println!("copied {} bytes of {}", pair.world.counters.copied_bytes.get(), 100 * (65536 + 8192));
}

/// Lengths of segments whose sum is below, at and above a cut-off.
fn around(cut_off: usize) -> Vec<(Vec<usize>, bool)> {
    vec![
        (vec![1], true),
        (vec![cut_off - 1], true),
        (vec![cut_off], true),
        (vec![1, cut_off - 8, 7], true),
        (vec![cut_off + 1], false),
        (vec![cut_off, 1], false),
        (vec![4096, 65536], false),
    ]
}

fn pattern(index: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 7 + index * 31) % 253).unwrap()).collect()
}

/// Writes and reads back bulk of a shape; how many requests and replies had it inside.
async fn there_and_back(
    (client, to): (RpcMachine, Endpoint),
    (arena, server): (Arena, RpcMachine),
    (tag, lengths): (u64, Vec<usize>),
    options: CallOptions,
) -> (u64, u64) {
    let before = (client.stats().inline_requests, server.stats().inline_replies);
    let part = |index: usize, length: usize| {
        let mut part = arena.try_alloc(length).unwrap();
        part.copy_from_slice(&pattern(index, length));
        part.freeze()
    };
    let source = lengths.iter().enumerate().map(|(index, length)| part(index, *length)).collect();
    let answer = client.call(to, &write(tag), Bulk::from_source(source), options).await.unwrap();
    assert_eq!(answer.reply.free_blocks, lengths.iter().sum::<usize>() as u64);
    let sink = lengths.iter().map(|length| {
        let mut part = arena.try_alloc(*length).unwrap();
        part.fill(0xee);
        part
    });
    let answer = client.call(to, &read(tag), Bulk::into_sink(sink.collect()), options).await.unwrap();
    assert_eq!(answer.sink.len(), lengths.len());
    for (index, (part, length)) in answer.sink.iter().zip(&lengths).enumerate() {
        assert_eq!(&part[..], pattern(index, *length), "segment {index} of {lengths:?}");
    }
    (client.stats().inline_requests - before.0, server.stats().inline_replies - before.1)
}

/// The same bulk arrives whichever way it takes; which one, the cut-off says.
fn adaptive(mut world: World, cut_off: usize, config: &RpcConfig) {
    let server = world.start(0, config.clone());
    let client = world.start(1, config.clone());
    let options = world.options(60);
    world.call(1, 0, ping(b""), Bulk::none(), options).unwrap(); // the server says what it reads
    for (tag, (lengths, is_inline)) in (1..).zip(around(cut_off)) {
        let found = Rc::new(Cell::new(None));
        let (into, arena, server) = (Rc::clone(&found), world.arena.clone(), server.clone());
        let (client, to) = (client.clone(), world.endpoint(0));
        let name = format!("{lengths:?}");
        let _ = world.node(1).locality.handle().spawn("bulk", async move {
            let counts = there_and_back((client, to), (arena, server), (tag, lengths), options).await;
            into.set(Some(counts));
        });
        world.until("bulk", |_| found.get().is_some());
        assert_eq!(found.get().unwrap(), (is_inline.into(), is_inline.into()), "{name}");
    }
    assert_eq!((server.stats().misbehaved, client.stats().misbehaved), (0, 0));
}

#[test]
fn bulk_travels_inside_up_to_the_cut_off_and_by_itself_above() {
    let of = |bytes| RpcConfig { inline_bytes: Some(bytes), ..RpcConfig::default() };
    for cut_off in [4096, rpc::limits::INLINE_BYTES_MAX] {
        adaptive(World::lo(), cut_off, &of(cut_off));
        adaptive(World::sim(9, SimFaults::default()), cut_off, &of(cut_off));
        adaptive(World::hardware(9, SimKeys::Windows, SimFaults::default()), cut_off, &of(cut_off));
        adaptive(World::hardware(9, SimKeys::Pool, SimFaults::default()), cut_off, &of(cut_off));
    }
}

#[test]
fn over_tcp_the_cut_off_is_that_of_the_net() {
    let mut pair = TcpPair::new(&RpcConfig::default());
    let (client, to, server) = (pair.client.clone(), pair.to, pair.server.clone());
    let (arena, options) = (pair.world.arena.clone(), pair.options());
    pair.run(async move {
        client.call(to, &ping(b""), Bulk::none(), options).await.unwrap();
        for (tag, (lengths, is_inline)) in (1..).zip(around(rpc::limits::INLINE_BYTES_TCP)) {
            let sides = ((client.clone(), to), (arena.clone(), server.clone()));
            let found = there_and_back(sides.0, sides.1, (tag, lengths.clone()), options).await;
            assert_eq!(found, (is_inline.into(), is_inline.into()), "{lengths:?}");
        }
    });
    assert_eq!((pair.client.stats().requester.resends, pair.server.stats().misbehaved), (0, 0));
}

#[test]
fn inside_or_not_each_change_runs_once_over_a_lossy_net() {
    let config = RpcConfig { inline_bytes: Some(8192), ..RpcConfig::default() };
    let mut world = World::sim(3, lossy());
    world.start(0, config.clone());
    let client = world.start(1, config);
    let options = world.options(60);
    world.call(1, 0, ping(b""), Bulk::none(), options).unwrap();
    let lengths = |tag: u64| if tag.is_multiple_of(2) { 8192 } else { 8193 };
    let writes: Vec<_> = (0..100)
        .map(|tag| {
            let source = vec![world.buffer(lengths(tag), 7).freeze()];
            world.spawn(1, 0, write(tag), Bulk::from_source(source), options)
        })
        .collect();
    world.until("writes", |_| writes.iter().all(|outcome| outcome.borrow().is_some()));
    let reads: Vec<_> = (0..100)
        .map(|tag| {
            world.spawn(1, 0, read(tag), Bulk::into_sink(vec![world.buffer(lengths(tag), 0)]), options)
        })
        .collect();
    world.until("reads", |_| reads.iter().all(|outcome| outcome.borrow().is_some()));
    for outcome in reads {
        let (_, sink, _) = outcome.take().unwrap().unwrap();
        assert!(sink[0].iter().all(|byte| *byte == 7));
    }
    let runs = world.served(0).runs.borrow().clone();
    assert!((0..100).all(|tag| runs[&tag] == 1), "{runs:?}");
    assert!(client.stats().requester.resends > 0 && client.stats().inline_requests >= 50);
}

/// Without the server's word no bulk travels inside: the first request to it, and all of those to one that does not read it.
#[test]
fn the_first_request_does_not_bring_its_bulk() {
    let mut world = World::sim(9, SimFaults::default());
    let config = RpcConfig { inline_bytes: Some(4096), ..RpcConfig::default() };
    world.start(0, config.clone());
    let client = world.start(1, config);
    let options = world.options(60);
    for (tag, inline) in [(1, 0), (2, 1)] {
        let source = vec![world.buffer(4096, 7).freeze()];
        world.call(1, 0, write(tag), Bulk::from_source(source), options).unwrap();
        assert_eq!(client.stats().inline_requests, inline);
    }
}
