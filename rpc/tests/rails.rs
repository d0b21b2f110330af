//! Calls and bulk over several rails, one of them cut among them: every call is answered, runs that may happen once happen once, and
//! every byte is in its place. Over tcp on two loopback addresses, and in the simulation with and without RDMA's shape.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::{BlockExtent, Endpoint, Fid, Instant, LayoutWidth, NetKind, Nid};
use fops::admin::{NetFault, NetFaultRequest};
use fops::component::{ComponentRead, ComponentReadReply, ComponentWrite, ComponentWriteReply};
use fops::object::{ObjectOpen, ObjectOpenReply, ObjectRecord, OpenMode};
use rpc::{Bulk, CallOptions, RpcConfig, RpcMachine};
use runtime::{Arena, ArenaConfig, Counters, Locality, LocalityConfig, MonotonicClock, SharedBuffer};
use verbs_net::{Fabric, PeerInfo, SimFabric, SimFaults, SimKeys, TmConfig, TransferMachine};

const FID: Fid = Fid { container: 1, key: 2 };
const LENGTHS: [usize; 2] = [65536, 8192];

#[derive(Default)]
struct Served {
    stored: RefCell<BTreeMap<u64, Vec<SharedBuffer>>>,
    opens: RefCell<BTreeMap<u64, u32>>,
}

fn serve(rpc: &RpcMachine, served: &Rc<Served>) {
    let state = Rc::clone(served);
    rpc.serve(move |fom, write: ComponentWrite| {
        let state = Rc::clone(&state);
        async move {
            let parts = fom.pull().await?;
            state.stored.borrow_mut().insert(write.generation, parts);
            Ok(ComponentWriteReply { free_blocks: 0 })
        }
    });
    let state = Rc::clone(served);
    rpc.serve(move |fom, read: ComponentRead| {
        let state = Rc::clone(&state);
        async move {
            let parts = state.stored.borrow().get(&read.generation).cloned().unwrap();
            fom.push(0, parts).await?;
            Ok(ComponentReadReply { checksums: Vec::new(), absent: Vec::new() })
        }
    });
    let state = Rc::clone(served);
    rpc.serve(move |_, open: ObjectOpen| {
        *state.opens.borrow_mut().entry(open.record.version).or_default() += 1;
        async move { Ok(ObjectOpenReply { record: open.record, created: true }) }
    });
    rpc.serve_net_faults();
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

struct World {
    fabric: Fabric,
    clock: Option<MonotonicClock>,
    virtual_now: Instant,
    arena: Arena,
    counters: Arc<Counters>,
    localities: Vec<Locality>,
}

impl World {
    fn new(fabric: Fabric) -> World {
        let clock = matches!(fabric, Fabric::Tcp).then(MonotonicClock::start);
        let arena = Arena::new(ArenaConfig { capacity_bytes: 256 << 20 }).unwrap();
        let (counters, virtual_now) = (Arc::new(Counters::default()), Instant::ZERO);
        World { fabric, clock, virtual_now, arena, counters, localities: Vec::new() }
    }

    fn now(&self) -> Instant {
        self.clock.as_ref().map_or(self.virtual_now, MonotonicClock::now)
    }

    /// Two nids of one host.
    fn nids(&self, host: u32) -> [Nid; 2] {
        match self.fabric {
            Fabric::Tcp => [1, 2].map(|last| Nid::tcp([127, 0, 0, last].into())),
            _ => [0, 1000].map(|rail| Nid::new(NetKind::Sim, host + rail)),
        }
    }

    fn start(&mut self, host: u32) -> (RpcMachine, Endpoint) {
        let epoch = u64::from(host) + 100;
        let locality = Locality::new(LocalityConfig {
            index: 0,
            name: format!("host {host}"),
            seed: epoch,
            counters: Arc::clone(&self.counters),
            arena: self.arena.clone(),
            crowd: None,
        });
        let [first, second] = self.nids(host);
        // Also where nobody listens really: then any will do.
        let free = verbs_net::bind_free([127, 0, 0, 1].into()).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let endpoint = Endpoint::from_port(first, port).unwrap();
        let mut config = TmConfig::new(endpoint, true, epoch, [7; 32], Rc::new(Cell::new(0)));
        config.rails = vec![second];
        let tm = TransferMachine::start(&locality.handle(), &self.fabric, config).unwrap();
        let rpc = RpcMachine::start(&locality.handle(), tm, RpcConfig::default());
        self.localities.push(locality);
        (rpc, endpoint)
    }

    fn until(&mut self, what: &str, mut is_done: impl FnMut() -> bool) {
        let limit = self.now() + Duration::from_secs(if self.clock.is_some() { 40 } else { 4000 });
        loop {
            let now = self.now();
            let (mut progressed, mut next) = (false, None);
            for locality in &mut self.localities {
                let turn = locality.turn(now);
                progressed |= turn.progressed;
                next = [next, turn.next_deadline].into_iter().flatten().min();
            }
            if is_done() {
                return;
            }
            assert!(now < limit, "{what}: not in time");
            if !progressed && self.clock.is_none() {
                let next: Instant = next.unwrap_or_else(|| panic!("{what}: nothing is left to wait for"));
                self.virtual_now = now.max(next);
            }
        }
    }
}

/// Rounds of write, open and read from many tasks; `cut` happens when a third of them is done. Where they are over before the cut has
/// met anything (a machine may be that slow at cutting), more follow, up to ten times. Answers the rails lost by the client.
fn rounds_with_a_cut(mut world: World, rounds: u64, cut: impl FnOnce(&mut World, Endpoint, Endpoint)) -> u64 {
    let (server, to) = world.start(1);
    let served = Rc::new(Served::default());
    serve(&server, &served);
    let (client, from) = world.start(2);
    let info: Rc<RefCell<Option<PeerInfo>>> = Rc::default();
    let (asking, into) = (client.clone(), Rc::clone(&info));
    let _ = world.localities[1].handle().spawn("discover", async move {
        *into.borrow_mut() = Some(asking.discover(to, Duration::from_secs(5)).await.unwrap());
    });
    world.until("discovery", || info.borrow().is_some());
    assert_eq!(info.borrow().as_ref().unwrap().nids.len(), 2);
    let both_up = |rpc: &RpcMachine, peer| {
        rpc.with_transfer_machine(|tm| tm.rails(peer).iter().filter(|rail| rail.1).count() == 2)
    };
    world.until("rails", || both_up(&client, to) && both_up(&server, from));

    let done = Rc::new(Cell::new(0));
    let deadline = world.now() + Duration::from_secs(if world.clock.is_some() { 30 } else { 3000 });
    let arena = world.arena.clone();
    let handle = world.localities[1].handle();
    let start_round = |tag: u64| {
        let (client, done, arena) = (client.clone(), Rc::clone(&done), arena.clone());
        let _ = handle.spawn("round", async move {
            let options = CallOptions::until(deadline);
            let fill = |index: usize| u8::try_from((tag + 97 * index as u64) % 251).unwrap();
            let mut source = Vec::new();
            let mut sink = Vec::new();
            for (index, bytes) in LENGTHS.into_iter().enumerate() {
                let mut buffer = arena.alloc(bytes).await;
                buffer.fill(fill(index));
                source.push(buffer.freeze());
                let mut buffer = arena.alloc(bytes).await;
                buffer.fill(0xfe);
                sink.push(buffer);
            }
            let extents = vec![BlockExtent { start: 0, count: 4 }];
            let write = ComponentWrite {
                device: FID,
                component: FID,
                generation: tag,
                extents: extents.clone(),
                checksums: Vec::new(),
            };
            client.call(to, &write, Bulk::from_source(source), options).await.unwrap();
            client.call(to, &open(tag), Bulk::none(), options).await.unwrap();
            let read = ComponentRead { device: FID, component: FID, generation: tag, extents };
            let answer = client.call(to, &read, Bulk::into_sink(sink), options).await.unwrap();
            for (index, part) in answer.sink.iter().enumerate() {
                assert_eq!(part.len(), LENGTHS[index]);
                assert!(part.iter().all(|byte| *byte == fill(index)), "tag {tag} part {index}");
            }
            done.set(done.get() + 1);
        });
    };
    (0..rounds).for_each(&start_round);
    world.until("a third", || done.get() >= rounds / 3);
    cut(&mut world, to, from);
    world.until("all", || done.get() == rounds);
    let lost = || client.with_transfer_machine(TransferMachine::stats).rails_lost;
    let mut started = rounds;
    while lost() == 0 && started < 10 * rounds {
        (started..started + rounds).for_each(&start_round);
        started += rounds;
        world.until("some more", || done.get() == started);
    }
    for tag in 0..started {
        assert_eq!(served.opens.borrow().get(&tag), Some(&1), "tag {tag} ran once");
        for (index, part) in served.stored.borrow()[&tag].iter().enumerate() {
            assert!(part.iter().all(|byte| u64::from(*byte) == (tag + 97 * index as u64) % 251));
        }
    }
    let stats = client.with_transfer_machine(TransferMachine::stats);
    assert_eq!(stats.peers_lost, 0, "the peer was never lost, only a rail");
    stats.rails_lost
}

/// Damages one frame of `kind` on the second rail, from the server's side, and keeps that rail from being made again.
fn cut_by_rules(kind: &'static str) -> impl FnOnce(&mut World, Endpoint, Endpoint) {
    move |world, to, _| {
        let nid = world.nids(2)[1];
        let rules =
            [format!("corrupt peer={nid} kind={kind} count=1"), format!("drop peer={nid} kind=control")];
        let (helper, _) = world.start(3);
        let done = Rc::new(Cell::new(false));
        let is_done = Rc::clone(&done);
        let deadline = world.now() + Duration::from_secs(10);
        let _ = world.localities[2].handle().spawn("rules", async move {
            for rule in rules {
                let add = NetFault { request: NetFaultRequest::Add { rule } };
                helper.call(to, &add, Bulk::none(), CallOptions::until(deadline)).await.unwrap();
            }
            is_done.set(true);
        });
        world.until("rules", || done.get());
    }
}

#[test]
fn a_rail_cut_between_messages_loses_and_doubles_nothing_over_tcp() {
    assert!(rounds_with_a_cut(World::new(Fabric::Tcp), 200, cut_by_rules("message")) >= 1);
}

#[test]
fn a_rail_cut_in_the_middle_of_bulk_loses_and_doubles_nothing_over_tcp() {
    assert!(rounds_with_a_cut(World::new(Fabric::Tcp), 200, cut_by_rules("bulk")) >= 1);
}

#[test]
fn a_rail_cut_loses_and_doubles_nothing_in_the_simulation() {
    // A run may be over before the silence is long enough.
    let mut lost_sum = 0;
    for seed in 1..4 {
        let kinds = [None, Some(SimKeys::Windows), Some(SimKeys::Pool)];
        for keys in kinds {
            let fabric = match keys {
                None => SimFabric::new(seed),
                Some(keys) => SimFabric::with_remote_access(seed, keys),
            };
            let faults =
                SimFaults { reorder_per_mille: if keys.is_none() { 20 } else { 0 }, ..SimFaults::NONE };
            fabric.set_faults(faults);
            let world = World::new(Fabric::Sim(fabric.clone()));
            let [there, here] = [1, 2].map(|host| world.nids(host)[1]);
            let lost = rounds_with_a_cut(world, 100, move |_, to, from| {
                // Pulled out: nothing passes between the second nids, in either direction, and nobody is told.
                let (there, here) = (Endpoint { nid: there, ..to }, Endpoint { nid: here, ..from });
                fabric.partition(here, there);
                fabric.partition(there, here);
            });
            lost_sum += lost;
        }
    }
    assert!(lost_sum >= 3, "{lost_sum}");
}
