//! Named locks and fences through control and servers, over the network, on simulated disks and virtual time.

use std::cell::Cell;
use std::time::Duration;

use base::{BlockExtent, Fid, FidType, ObjectId};
use faces::Transport;
use fops::FopError;
use fops::component::{ComponentRead, ComponentWrite};
use fops::lock::{
    BreakState, LockBreak, LockBreakReply, LockEntry, LockList, LockMode, LockName, LockRelease, LockRenew,
    LockTake, LockTakeReply, OnDeath, OwnerId, Ticket, Ticketed,
};
use futures_util::future::{join, join_all};
use rpc::{Bulk, CallError, CallOptions, RpcMachine};

use crate::support::{Cluster, Shape, checksums, device_fid, endpoint, process_fid, raw_client};

const BYTES: usize = 16384;

fn lock(name: &str) -> LockName {
    LockName { object: Some(ObjectId::new(12, 1).unwrap().fid()), name: name.to_owned() }
}

fn take(owner: u128, mode: LockMode, on_death: OnDeath, wait_ms: u32) -> LockTake {
    let why = "a test".to_owned();
    LockTake { lock: lock("writer"), owner: OwnerId(owner), mode, on_death, why, wait_ms }
}

fn break_from(owner: u128, wait_ms: u32) -> LockBreak {
    LockBreak { lock: lock("writer"), owner: OwnerId(owner), why: "it hangs".to_owned(), wait_ms }
}

fn release(owner: u128) -> LockRelease {
    LockRelease { lock: lock("writer"), owner: OwnerId(owner), epoch: 0 }
}

/// Asks control.
fn ask<F: fops::Fop>(cluster: &mut Cluster, fop: &F) -> F::Reply {
    let control = cluster.endpoint(0);
    cluster.call(control, fop, Bulk::none()).unwrap().reply
}

/// An exclusive lock, held whatever happens.
fn held(cluster: &mut Cluster, owner: u128) -> Ticket {
    match ask(cluster, &take(owner, LockMode::Exclusive, OnDeath::Hold, 0)) {
        LockTakeReply::Granted { epoch, lease_ms: 0 } => Ticket { owner: OwnerId(owner), epoch },
        other => panic!("not granted: {other:?}"),
    }
}

fn list(cluster: &mut Cluster) -> Vec<LockEntry> {
    let reply = ask(cluster, &LockList { object: None, after: None });
    assert!(!reply.more);
    reply.locks
}

fn change(device: usize, ticket: Ticket, checksums: Vec<u32>) -> Ticketed<ComponentWrite> {
    let component = ObjectId::new(12, 1).unwrap().fid().with_type(FidType::Component);
    let extents = vec![BlockExtent { start: 0, count: 4 }];
    let change = ComponentWrite { device: device_fid(device), component, generation: 1, extents, checksums };
    Ticketed { ticket, change }
}

fn write(cluster: &mut Cluster, device: usize, ticket: Ticket, seed: u8) -> Result<(), CallError> {
    let source = vec![cluster.pattern(seed, BYTES)];
    let fop = change(device, ticket, checksums(&source));
    let to = cluster.endpoint(1 + device / cluster.shape.devices_per_server);
    cluster.call(to, &fop, Bulk { source, sink: vec![] }).map(drop)
}

fn read(cluster: &mut Cluster, device: usize) -> Vec<u8> {
    let ComponentWrite { device: fid, component, generation, extents, .. } =
        change(device, Ticket { owner: OwnerId(1), epoch: 1 }, vec![]).change;
    let fop = ComponentRead { device: fid, component, generation, extents };
    let sink = vec![cluster.sink(BYTES)];
    let to = cluster.endpoint(1 + device / cluster.shape.devices_per_server);
    cluster.call(to, &fop, Bulk { source: vec![], sink }).unwrap().sink[0].to_vec()
}

fn is_fenced<T>(result: &Result<T, CallError>) -> bool {
    matches!(result, Err(CallError::Fop(FopError::Fenced { .. })))
}

fn another_client(cluster: &mut Cluster, node: usize) -> RpcMachine {
    let (_, locality) = cluster.turner.add("another client");
    raw_client(&locality, &cluster.fabric, endpoint(cluster.shape.transport, node), 1, [7; 32])
}

#[test]
fn a_broken_owner_is_refused_by_every_server_and_the_next_one_is_not() {
    let mut cluster = Cluster::start(1, Shape::default());
    let old = held(&mut cluster, 1);
    for device in 0..4 {
        write(&mut cluster, device, old, 1).unwrap();
    }
    let busy = ask(&mut cluster, &take(2, LockMode::Exclusive, OnDeath::Hold, 0));
    assert_eq!(busy, LockTakeReply::Busy { holders: vec![OwnerId(1)], ahead: 0 });
    let done = ask(&mut cluster, &break_from(1, 5000));
    assert_eq!(done, LockBreakReply { state: BreakState::Done, waiting: vec![] });
    let new = held(&mut cluster, 2);
    assert!(new.epoch > old.epoch);
    for device in 0..4 {
        assert!(is_fenced(&write(&mut cluster, device, old, 2)));
        write(&mut cluster, device, new, 3).unwrap();
        assert_eq!(read(&mut cluster, device), cluster.pattern(3, BYTES).to_vec());
    }
    // The old owner may come again, with a new ticket.
    assert!(ask(&mut cluster, &release(2)).released);
    let again = held(&mut cluster, 1);
    write(&mut cluster, 0, again, 4).unwrap();
    assert!(is_fenced(&write(&mut cluster, 0, old, 5)));
    assert_eq!(ask(&mut cluster, &break_from(2, 0)).state, BreakState::NotHeld);
}

/// The old owner writes as fast as it can while its lock is broken; the new one writes once, right after.
#[test]
fn no_write_in_flight_of_a_broken_owner_lands_after_the_break() {
    let (mut landed, mut refused) = (0, 0);
    for seed in 0..24 {
        let mut cluster = Cluster::start(seed, Shape { transport: Transport::Sim, ..Shape::default() });
        let old = held(&mut cluster, 1);
        let zombie = another_client(&mut cluster, 101);
        let client = cluster.client.clone();
        let within = || CallOptions::until(client.locality().now() + Duration::from_secs(10));
        let bytes = cluster.pattern(1, BYTES);
        let (is_over, good) = (Cell::new(false), Cell::new(0));
        let zombie_writes = async |device: usize| {
            let to = endpoint(Transport::Sim, 1 + device / 2);
            while !is_over.get() {
                let fop = change(device, old, checksums(std::slice::from_ref(&bytes)));
                let bulk = Bulk { source: vec![bytes.clone()], sink: vec![] };
                match zombie.call(to, &fop, bulk, within()).await {
                    Ok(_) => good.set(good.get() + 1),
                    Err(CallError::Fop(FopError::Fenced { .. })) => return 1,
                    Err(error) => panic!("{error}"),
                }
            }
            0
        };
        let new_bytes = cluster.pattern(2, BYTES);
        let take_over = async {
            // At another moment of the writes for each seed.
            client.locality().sleep(Duration::from_micros(300 * seed)).await;
            let control = endpoint(Transport::Sim, 0);
            let broken = client.call(control, &break_from(1, 5000), Bulk::none(), within()).await.unwrap();
            assert_eq!(broken.reply.state, BreakState::Done);
            let wish = take(2, LockMode::Exclusive, OnDeath::Hold, 0);
            let LockTakeReply::Granted { epoch, .. } =
                client.call(control, &wish, Bulk::none(), within()).await.unwrap().reply
            else {
                panic!("the lock is not free")
            };
            for device in 0..4 {
                let ticket = Ticket { owner: OwnerId(2), epoch };
                let fop = change(device, ticket, checksums(std::slice::from_ref(&new_bytes)));
                let bulk = Bulk { source: vec![new_bytes.clone()], sink: vec![] };
                client.call(endpoint(Transport::Sim, 1 + device / 2), &fop, bulk, within()).await.unwrap();
            }
            is_over.set(true);
        };
        // Four writers on each device: some are let in and not begun, some are at the disk.
        let zombies = join_all((0..16).map(|index| zombie_writes(index % 4)));
        let (outcomes, ()) = cluster.turner.run(join(zombies, take_over));
        landed += good.get();
        refused += outcomes.into_iter().sum::<i32>();
        cluster.turner.pass(Duration::from_secs(1));
        for device in 0..4 {
            assert_eq!(read(&mut cluster, device), new_bytes.to_vec(), "seed {seed}, device {device}");
        }
    }
    assert!(landed > 100, "the old owner wrote until its break: {landed}");
    assert!(refused > 100, "and was told: {refused}");
}

#[test]
fn a_break_names_the_target_that_it_waits_for_until_its_lease_ended() {
    let mut cluster = Cluster::start(3, Shape { transport: Transport::Sim, ..Shape::default() });
    let old = held(&mut cluster, 1);
    let (control, server) = (cluster.endpoint(0), cluster.endpoint(1));
    cluster.sim().partition(control, server);
    cluster.sim().partition(server, control);
    let reply = ask(&mut cluster, &break_from(1, 200));
    assert_eq!(reply.state, BreakState::Waiting);
    let devices: Vec<Fid> = reply.waiting.iter().map(|wait| wait.device).collect();
    assert_eq!(devices, [device_fid(0), device_fid(1)], "the server that cannot hear of it");
    assert!(reply.waiting.iter().all(|wait| wait.process == process_fid(0) && wait.lease_ends_ms <= 3750));
    // It hears nothing, its lease runs: it takes the old owner's write, and the lock is not free.
    write(&mut cluster, 0, old, 1).unwrap();
    assert!(is_fenced(&write(&mut cluster, 2, old, 1)), "the other server knows");
    let busy = ask(&mut cluster, &take(2, LockMode::Exclusive, OnDeath::Hold, 0));
    assert!(matches!(busy, LockTakeReply::Busy { .. }));
    assert!(list(&mut cluster)[0].grant.breaking.is_some());
    let started = cluster.turner.clock.now();
    assert_eq!(ask(&mut cluster, &break_from(1, 5000)).state, BreakState::Done);
    assert!(cluster.turner.clock.now().since(started) < Duration::from_secs(4));
    assert!(!cluster.server(0).is_serving(), "it stopped by itself before");
    // Back with control, it has the fence before it serves.
    let new = held(&mut cluster, 2);
    cluster.sim().heal_all();
    let mut answered = false;
    while !answered {
        match write(&mut cluster, 0, old, 2) {
            Err(CallError::Fop(FopError::NotServing { .. })) => cluster.turner.pass(Duration::from_millis(1)),
            other => {
                assert!(is_fenced(&other), "{other:?}");
                answered = true;
            }
        }
    }
    write(&mut cluster, 0, new, 3).unwrap();
}

#[test]
fn locks_fences_and_breaks_survive_restarts_of_control_and_servers() {
    let mut cluster = Cluster::start(4, Shape { transport: Transport::Sim, ..Shape::default() });
    let first = held(&mut cluster, 1);
    assert_eq!(ask(&mut cluster, &break_from(1, 5000)).state, BreakState::Done);
    let second = held(&mut cluster, 2);
    // A break begins, one target does not hear of it, and control dies.
    let (control, server) = (cluster.endpoint(0), cluster.endpoint(1));
    cluster.sim().partition(control, server);
    cluster.sim().partition(server, control);
    assert_eq!(ask(&mut cluster, &break_from(2, 50)).state, BreakState::Waiting);
    let before = list(&mut cluster);
    cluster.kill_control();
    cluster.sim().heal_all();
    cluster.start_control().unwrap();
    cluster.wait_until("the break goes on by itself", |cluster| {
        cluster.server(0).is_serving() && cluster.server(1).is_serving()
    });
    assert_eq!(before[0].grant.ticket, second);
    let third = loop {
        match ask(&mut cluster, &take(3, LockMode::Exclusive, OnDeath::Hold, 1000)) {
            LockTakeReply::Granted { epoch, .. } => break Ticket { owner: OwnerId(3), epoch },
            LockTakeReply::Busy { .. } => {}
        }
    };
    assert!(third.epoch > second.epoch, "no epoch comes twice");
    for server in 0..2 {
        cluster.kill_server(server);
        cluster.start_server(server).unwrap();
        let device = server * 2;
        assert!(is_fenced(&write(&mut cluster, device, first, 1)));
        assert!(is_fenced(&write(&mut cluster, device, second, 1)));
        write(&mut cluster, device, third, 1).unwrap();
    }
    cluster.stop_control().unwrap();
    cluster.start_control().unwrap();
    let locks = list(&mut cluster);
    assert_eq!((locks.len(), locks[0].grant.ticket, locks[0].fenced), (1, third, false));
    assert!(ask(&mut cluster, &release(3)).released);
}

#[test]
fn who_waits_gets_the_lock_when_it_is_released() {
    let mut cluster = Cluster::start(5, Shape::default());
    held(&mut cluster, 1);
    let waiting = another_client(&mut cluster, 101);
    let (client, control) = (cluster.client.clone(), cluster.endpoint(0));
    let within = || CallOptions::until(client.locality().now() + Duration::from_secs(10));
    let wish = take(2, LockMode::Exclusive, OnDeath::Hold, 5000);
    let waits = async {
        let reply = waiting.call(control, &wish, Bulk::none(), within()).await.unwrap().reply;
        (reply, client.locality().now())
    };
    let releases = async {
        client.locality().sleep(Duration::from_secs(2)).await;
        let now = client.locality().now();
        assert!(client.call(control, &release(1), Bulk::none(), within()).await.unwrap().reply.released);
        now
    };
    let ((reply, granted_at), released_at) = cluster.turner.run(join(waits, releases));
    assert!(matches!(reply, LockTakeReply::Granted { .. }), "{reply:?}");
    assert!(granted_at.since(released_at) < Duration::from_millis(50));
}

#[test]
fn a_silent_holder_is_fenced_and_its_lock_passes_on() {
    let mut cluster = Cluster::start(6, Shape::default());
    let LockTakeReply::Granted { epoch, lease_ms: 3000 } =
        ask(&mut cluster, &take(1, LockMode::Exclusive, OnDeath::Fence, 0))
    else {
        panic!("not granted")
    };
    let ticket = Ticket { owner: OwnerId(1), epoch };
    let renew = LockRenew { lock: lock("writer"), ticket };
    for _ in 0..5 {
        cluster.turner.pass(Duration::from_secs(2));
        assert!(ask(&mut cluster, &renew).held);
    }
    write(&mut cluster, 0, ticket, 1).unwrap();
    let silent_since = cluster.turner.clock.now();
    let next = loop {
        match ask(&mut cluster, &take(2, LockMode::Exclusive, OnDeath::Hold, 5000)) {
            LockTakeReply::Granted { epoch, .. } => break Ticket { owner: OwnerId(2), epoch },
            LockTakeReply::Busy { .. } => {}
        }
    };
    let passed = cluster.turner.clock.now().since(silent_since);
    assert!((Duration::from_millis(3600)..Duration::from_millis(4200)).contains(&passed), "{passed:?}");
    assert!(!ask(&mut cluster, &renew).held);
    assert!(is_fenced(&write(&mut cluster, 0, ticket, 2)));
    write(&mut cluster, 0, next, 2).unwrap();
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut cluster = Cluster::start(7, Shape::default());
    let control = cluster.endpoint(0);
    let good = take(1, LockMode::Shared, OnDeath::Hold, 0);
    let long = "x".repeat(300);
    let bad = [
        LockTake { owner: OwnerId(0), ..good.clone() },
        LockTake { lock: lock(""), ..good.clone() },
        LockTake { lock: lock("a\0b"), ..good.clone() },
        LockTake { lock: lock(&long), ..good.clone() },
        LockTake { why: long, ..good.clone() },
    ];
    for request in bad {
        let refused = cluster.call(control, &request, Bulk::none());
        assert!(matches!(refused, Err(CallError::Fop(FopError::BadRequest { .. }))), "{request:?}");
    }
    assert_eq!(list(&mut cluster), []);
}
