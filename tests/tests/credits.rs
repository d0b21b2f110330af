//! Credits of the resource manager through the whole system: clients that hold objects alone, die, are cut off; control that restarts; numbers
//! that never come twice. Everything real, on the simulated network, simulated disks and virtual time.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // test code, helpers included

#[path = "../../server/tests/support/mod.rs"]
mod support;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use base::{ByteExtent, Endpoint, Instant, ObjectId};
use client::{ALLOCATED_OBJECTS, Client, ClientConfig, ClientError, HoldError, Object};
use faces::Transport;
use faces::limits::FID_RANGE_DEFAULT;
use fops::lock::LockMode::{Exclusive, Shared};
use fops::rm::{RmList, RmLoanEntry};
use futures_util::future::{join, join_all};
use rpc::Bulk;
use support::{Cluster, Shape, endpoint};
use verbs_net::{SimFaults, Token};

const LEASE: Duration = Duration::from_secs(3);
/// The lease, and its grace.
const LOST_AFTER: Duration = Duration::from_millis(3750);
const BYTES: usize = 65536;
const NO_WAIT: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(60);

fn object() -> ObjectId {
    ObjectId::new(12, 1).unwrap()
}

fn cluster(seed: u64) -> Cluster {
    Cluster::start(seed, Shape { transport: Transport::Sim, lease: LEASE, ..Shape::default() })
}

/// A client on a node of its own.
struct Node {
    node: usize,
    place: usize,
    client: Client,
}

impl Node {
    fn start(cluster: &mut Cluster, node: usize) -> Node {
        let (place, locality) = cluster.turner.add("client");
        let config = ClientConfig {
            local: Some(endpoint(Transport::Sim, node)),
            control: cluster.endpoint(0),
            further_controls: Vec::new(),
            security: Token::new([7; 32]).into(),
            epoch: 1,
            op_timeout: Duration::from_secs(20),
            read_verify: false,
        };
        let fabric = cluster.fabric.clone();
        let client = cluster.turner.run(Client::connect(&locality, &fabric, config)).unwrap();
        Node { node, place, client }
    }

    fn endpoint(&self) -> Endpoint {
        endpoint(Transport::Sim, self.node)
    }

    /// The process is gone, and its connections with it.
    fn kill(&self, cluster: &mut Cluster) {
        cluster.turner.kill(self.place);
        cluster.sim().crash(self.endpoint());
    }

    /// Nothing passes between it and control, in either direction.
    fn cut_from_control(&self, cluster: &Cluster) {
        cluster.sim().partition(self.endpoint(), cluster.endpoint(0));
        cluster.sim().partition(cluster.endpoint(0), self.endpoint());
    }
}

fn now(cluster: &Cluster) -> Instant {
    cluster.turner.clock.now()
}

async fn write(cluster_client: &Client, object: &Object, seed: u8) -> Result<(), ClientError> {
    let mut buffer = cluster_client.locality().arena().try_alloc(BYTES).unwrap();
    buffer.fill(seed);
    object.write(ByteExtent { start: 0, count: BYTES as u64 }, vec![buffer.freeze()]).await
}

fn bytes(cluster: &mut Cluster, node: &Node) -> Vec<u8> {
    let client = node.client.clone();
    cluster.turner.run(async move {
        let object = client.open(object()).await.unwrap();
        let parts = object.read(ByteExtent { start: 0, count: BYTES as u64 }).await.unwrap();
        parts.iter().flat_map(|part| part.to_vec()).collect()
    })
}

fn loans(cluster: &mut Cluster) -> Vec<RmLoanEntry> {
    let control = cluster.endpoint(0);
    cluster.call(control, &RmList { after: None }, Bulk::none()).unwrap().reply.loans
}

fn holders(error: &ClientError) -> Vec<Endpoint> {
    match error {
        ClientError::Hold(HoldError::Busy { holders, .. }) => {
            holders.iter().map(|holder| holder.from).collect()
        }
        other => panic!("not busy: {other}"),
    }
}

#[test]
fn a_second_opener_is_refused_or_waits_and_its_turn_comes_when_the_first_one_closes() {
    let mut cluster = cluster(1);
    let (one, other) = (Node::start(&mut cluster, 101), Node::start(&mut cluster, 102));
    let first = cluster.turner.run(one.client.holding(object(), Exclusive, NO_WAIT)).unwrap();
    let held = cluster.turner.run(first.create_or_open(object(), None)).unwrap();
    cluster.turner.run(write(&first, &held, 1)).unwrap();

    let started = now(&cluster);
    let refused = cluster.turner.run(other.client.open_exclusive(object(), NO_WAIT)).err().unwrap();
    assert_eq!(holders(&refused), [one.endpoint()], "{refused}");
    assert!(now(&cluster).since(started) < Duration::from_secs(1), "one who does not want to wait does not");
    assert_eq!(first.is_wanted().unwrap(), Some(true), "somebody asked");
    // The same client is no exception.
    let refused = cluster.turner.run(one.client.open_exclusive(object(), NO_WAIT)).err().unwrap();
    assert_eq!(holders(&refused), []);
    // Other objects are not concerned, nor who opens without a hold.
    let beside = cluster.turner.run(other.client.holding(ObjectId::new(12, 2).unwrap(), Exclusive, NO_WAIT));
    drop(beside.unwrap());
    cluster.turner.run(other.client.open(object())).unwrap();

    let waiting = other.client.open_exclusive(object(), LONG);
    let handle = one.client.locality().clone();
    let close = async {
        handle.sleep(Duration::from_secs(10)).await;
        drop(held);
        drop(first);
    };
    let started = now(&cluster);
    let (second, ()) = cluster.turner.run(join(waiting, close));
    let second = second.unwrap();
    let waited = now(&cluster).since(started);
    assert!(waited >= Duration::from_secs(10), "not before: {waited:?}");
    assert!(waited < Duration::from_millis(10_100), "a return is heard of at once: {waited:?}");
    cluster.turner.run(write(&other.client, &second, 2)).unwrap();
    assert_eq!(bytes(&mut cluster, &one), vec![2; BYTES]);
    drop(second);
    cluster.turner.run(other.client.leave()).unwrap();
    assert_eq!(loans(&mut cluster), []);
}

#[test]
fn readers_hold_together_and_an_idle_one_makes_room_without_waiting_for_it() {
    let mut cluster = cluster(2);
    let nodes: Vec<Node> = (101..104).map(|node| Node::start(&mut cluster, node)).collect();
    let made = cluster.turner.run(nodes[0].client.create_or_open(object(), None)).unwrap();
    drop(made);
    let mut shared = || -> Vec<Client> {
        let nodes = nodes[..2].iter();
        nodes
            .map(|node| cluster.turner.run(node.client.holding(object(), Shared, NO_WAIT)).unwrap())
            .collect()
    };
    // Dropped, they are kept by their clients, and taken again ...
    drop(shared());
    let again = shared();
    assert_eq!(loans(&mut cluster).len(), 2);
    let refused = cluster.turner.run(nodes[2].client.open_exclusive(object(), NO_WAIT)).err().unwrap();
    assert_eq!(holders(&refused).len(), 2);
    drop(again);
    // ... and given back when somebody wants them, also by one who tries once.
    cluster.turner.run(nodes[2].client.open_exclusive(object(), NO_WAIT)).unwrap();
}

/// The holder's process dies: its object is free after its lease, its grace and its fence, and not before.
#[test]
fn the_death_of_a_holder_frees_its_object_after_its_lease_and_not_before() {
    for seed in 0..12 {
        let mut cluster = cluster(10 + seed);
        let (one, other) = (Node::start(&mut cluster, 101), Node::start(&mut cluster, 102));
        let held = cluster.turner.run(one.client.holding(object(), Exclusive, NO_WAIT)).unwrap();
        let mine = cluster.turner.run(held.create_or_open(object(), None)).unwrap();
        cluster.turner.run(write(&held, &mine, 1)).unwrap();
        cluster.turner.pass(Duration::from_millis(137 * seed));
        let silent_ms = loans(&mut cluster)[0].silent_ms;
        one.kill(&mut cluster);
        let killed_at = now(&cluster);
        let refused = cluster.turner.run(other.client.open_exclusive(object(), NO_WAIT)).err().unwrap();
        assert_eq!(holders(&refused), [one.endpoint()]);
        cluster.turner.run(other.client.open_exclusive(object(), LONG)).unwrap();
        let freed_after = now(&cluster).since(killed_at) + Duration::from_millis(silent_ms);
        // What was on its way when it died may still have been heard.
        assert!(freed_after >= LOST_AFTER, "seed {seed}: {freed_after:?}");
        assert!(freed_after < LOST_AFTER + Duration::from_secs(1), "seed {seed}: {freed_after:?}");
    }
}

/// The holder lives, reaches the servers, and is cut off from control: it stops by itself before anybody else has its object, and what it sent is
/// refused from then on.
#[test]
fn a_holder_that_is_cut_off_stops_before_the_next_one_begins() {
    for seed in 0..8 {
        let mut cluster = cluster(30 + seed);
        let (one, other) = (Node::start(&mut cluster, 101), Node::start(&mut cluster, 102));
        let held = cluster.turner.run(one.client.holding(object(), Exclusive, NO_WAIT)).unwrap();
        let mine = cluster.turner.run(held.create_or_open(object(), None)).unwrap();
        cluster.turner.pass(Duration::from_millis(211 * seed));
        one.cut_from_control(&cluster);
        let stopped_at = Cell::new(None);
        let began_at = Cell::new(None);
        let wrote = Cell::new(0);
        let (here, there) = (one.client.locality().clone(), other.client.locality().clone());
        let zombie = async {
            loop {
                match write(&held, &mine, 1).await {
                    Ok(()) => {
                        assert!(began_at.get().is_none(), "seed {seed}: written under the next one's hold");
                        wrote.set(wrote.get() + 1);
                    }
                    Err(error) => {
                        stopped_at.set(Some(here.now()));
                        return error;
                    }
                }
            }
        };
        let next = async {
            let holding = other.client.holding(object(), Exclusive, LONG).await.unwrap();
            began_at.set(Some(there.now()));
            let object = holding.open(object()).await.unwrap();
            write(&holding, &object, 2).await.unwrap();
            holding
        };
        let (error, holding) = cluster.turner.run(join(zombie, next));
        assert!(wrote.get() > 10, "it wrote while its lease held");
        assert!(stopped_at.get() < began_at.get(), "seed {seed}: {stopped_at:?} {began_at:?}");
        assert!(error.to_string().contains("lease on the object ended"), "{error}");
        assert!(matches!(held.is_wanted(), Err(ClientError::Hold(HoldError::Lost { .. }))));
        // For good, also when it is back.
        cluster.sim().heal_all();
        cluster.turner.pass(Duration::from_secs(5));
        cluster.turner.run(write(&held, &mine, 3)).unwrap_err();
        assert_eq!(bytes(&mut cluster, &other), vec![2; BYTES]);
        drop(holding);
        // It may ask anew.
        drop((held, mine));
        cluster.turner.run(one.client.open_exclusive(object(), LONG)).unwrap();
    }
}

/// A holder whose process stands still while its lease runs out (a virtual machine that is suspended) cannot look at its clock: the servers refuse it.
#[test]
fn servers_refuse_a_lost_holder_whose_writes_were_on_their_way() {
    let mut refused = 0;
    for seed in 0..8 {
        let mut cluster = cluster(50 + seed);
        let (one, other) = (Node::start(&mut cluster, 101), Node::start(&mut cluster, 102));
        let held = cluster.turner.run(one.client.holding(object(), Exclusive, NO_WAIT)).unwrap();
        let mine = cluster.turner.run(held.create_or_open(object(), None)).unwrap();
        one.cut_from_control(&cluster);
        // Its messages to the servers are late by more than the lease and the grace.
        let servers = [cluster.endpoint(1), cluster.endpoint(2)];
        let late = SimFaults {
            latency_min: Duration::from_millis(4_500 + 100 * seed),
            latency_max: Duration::from_millis(5_500 + 100 * seed),
            ..SimFaults::default()
        };
        for server in servers {
            cluster.sim().set_link_faults(one.endpoint(), server, Some(late));
        }
        let next = async {
            let holding = other.client.holding(object(), Exclusive, LONG).await.unwrap();
            let object = holding.open(object()).await.unwrap();
            write(&holding, &object, 2).await.unwrap();
        };
        let (outcome, ()) = cluster.turner.run(join(write(&held, &mine, 1), next));
        // Refused by a server that it reached, or given up here: never done.
        refused += usize::from(outcome.unwrap_err().to_string().contains("is fenced"));
        cluster.sim().heal_all();
        cluster.turner.pass(Duration::from_secs(10));
        assert_eq!(bytes(&mut cluster, &other), vec![2; BYTES], "seed {seed}");
    }
    assert!(refused > 0, "servers never had a word in it");
}

#[test]
fn a_hold_outlives_a_restart_of_control() {
    let mut cluster = cluster(3);
    let (one, other) = (Node::start(&mut cluster, 101), Node::start(&mut cluster, 102));
    let held = cluster.turner.run(one.client.holding(object(), Exclusive, NO_WAIT)).unwrap();
    let mine = cluster.turner.run(held.create_or_open(object(), None)).unwrap();
    cluster.kill_control();
    cluster.turner.pass(Duration::from_millis(500));
    cluster.start_control().unwrap();
    let refused = cluster.turner.run(other.client.open_exclusive(object(), NO_WAIT)).err().unwrap();
    assert_eq!(holders(&refused), [one.endpoint()]);
    cluster.turner.pass(Duration::from_secs(20));
    cluster.turner.run(write(&held, &mine, 1)).unwrap();
    // A holder that dies with control has one lease to be heard.
    cluster.kill_control();
    one.kill(&mut cluster);
    cluster.start_control().unwrap();
    let started = now(&cluster);
    cluster.turner.run(other.client.open_exclusive(object(), LONG)).unwrap();
    let waited = now(&cluster).since(started);
    assert!(waited >= LOST_AFTER && waited < LOST_AFTER + Duration::from_secs(2), "{waited:?}");
}

#[test]
fn ids_never_come_twice_over_clients_ranges_and_restarts_of_control() {
    let mut cluster = cluster(4);
    let mut seen = BTreeSet::new();
    let per_client = usize::try_from(FID_RANGE_DEFAULT).unwrap() + 3;
    for round in 0..3 {
        let nodes: Vec<Node> =
            (0..2).map(|index| Node::start(&mut cluster, 101 + 2 * round + index)).collect();
        let take = |node: &Node, count: usize| {
            let client = node.client.clone();
            async move {
                let mut ids = Vec::new();
                for _ in 0..count {
                    ids.push(client.new_object_id().await.unwrap());
                }
                ids
            }
        };
        let found = cluster.turner.run(join_all(nodes.iter().map(|node| take(node, per_client))));
        for id in found.into_iter().flatten() {
            assert_eq!(id.hi(), ALLOCATED_OBJECTS);
            assert!(seen.insert(id), "{id} came twice");
        }
        cluster.kill_control();
        cluster.start_control().unwrap();
        // A client that was there before goes on with its range.
        for id in cluster.turner.run(take(&nodes[0], per_client)) {
            assert!(seen.insert(id), "{id} came twice");
        }
    }
    assert_eq!(seen.len(), 9 * per_client);
    cluster.turner.pass(Duration::from_millis(50));
    assert_eq!(loans(&mut cluster), [], "a range is not lent, it is used up");
}

/// The cached configuration is a read credit: who holds something hears of a change without asking anybody.
#[test]
fn a_holder_hears_of_a_new_configuration_at_once() {
    let mut cluster = cluster(5);
    let one = Node::start(&mut cluster, 101);
    let _held = cluster.turner.run(one.client.holding(object(), Shared, NO_WAIT)).unwrap();
    cluster.turner.pass(Duration::from_secs(1));
    let before = one.client.configuration().version;
    assert_eq!(before, cluster.control().configuration().version);
    cluster.kill_server(1);
    cluster.wait_until("a new configuration", |cluster| cluster.control().configuration().version > before);
    cluster.turner.pass(Duration::from_millis(50));
    assert_eq!(one.client.configuration().version, cluster.control().configuration().version);
}

/// Clients that take turns over a network that loses and doubles messages, one of which is killed: at most one is inside, and all get in.
#[test]
fn over_a_bad_network_one_is_inside_at_a_time_and_everybody_gets_in() {
    for seed in 0..10 {
        let mut cluster = cluster(100 + seed);
        let nodes: Vec<Node> = (101..105).map(|node| Node::start(&mut cluster, node)).collect();
        let faults = SimFaults { loss_per_mille: 30, duplicate_per_mille: 30, ..SimFaults::default() };
        cluster.sim().set_faults(faults);
        let inside = Rc::new(RefCell::new(Vec::new()));
        let rounds = |node: &Node, count: usize| {
            let (client, inside, name) = (node.client.clone(), Rc::clone(&inside), node.node);
            async move {
                for _ in 0..count {
                    let holding = loop {
                        match client.holding(object(), Exclusive, LONG).await {
                            Ok(holding) => break holding,
                            // It may have been unlucky for a whole lease.
                            Err(ClientError::Hold(HoldError::Lost { .. })) => {}
                            Err(error) => panic!("seed {seed}: {error}"),
                        }
                    };
                    inside.borrow_mut().push(name);
                    assert_eq!(inside.borrow().len(), 1, "seed {seed}: {inside:?}");
                    client.locality().sleep(Duration::from_millis(40)).await;
                    inside.borrow_mut().pop();
                    drop(holding);
                }
            }
        };
        let doomed = nodes[3].client.clone();
        let held = cluster.turner.run(doomed.holding(object(), Exclusive, LONG)).unwrap();
        nodes[3].kill(&mut cluster);
        cluster.turner.run(join_all(nodes[..3].iter().map(|node| rounds(node, 6))));
        drop((held, doomed));
    }
}
