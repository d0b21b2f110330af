//! What only a simulation shows: loss, partitions, power cuts, and that a seed decides everything.

use std::time::Duration;

use super::pair::{Kind, World, assert_pattern, connected};
use crate::{Event, NetError, PeerId, Retract, SimFaults};

const LOSSY: SimFaults =
    SimFaults { loss_per_mille: 100, duplicate_per_mille: 50, reorder_per_mille: 100, ..SimFaults::NONE };

/// Numbered messages over a bad net; answers what arrived, and the net's trace.
fn run_lossy(seed: u64) -> (Vec<u32>, u64) {
    let world = World::with_seed(Kind::Sim, seed);
    let (mut client, mut server, _) = connected(&world);
    world.sim().set_faults(LOSSY);
    let b = server.endpoint();
    let mut next: u32 = 0;
    world.drive(&mut [&mut client, &mut server], |nodes| {
        while next < 2000 {
            let message = nodes[0].message(&next.to_le_bytes());
            match nodes[0].tm.try_send(world.now(), PeerId::any(b), message) {
                Ok(()) => next += 1,
                Err((refused, _)) => {
                    assert!(!refused.is_permanent());
                    break;
                }
            }
        }
        next == 2000
    });
    world.pass(&mut [&mut client, &mut server], Duration::from_secs(30));
    assert_eq!(client.tm.next_deadline(), None, "credits came home although frames were lost");
    let numbers = server
        .messages()
        .iter()
        .filter_map(|text| text.as_slice().try_into().ok().map(u32::from_le_bytes))
        .collect();
    (numbers, world.sim().trace_hash())
}

#[test]
fn credits_survive_loss_and_a_seed_decides_everything() {
    for seed in 0..8 {
        let (numbers, trace) = run_lossy(seed);
        let lost = 2000 - numbers.iter().collect::<std::collections::BTreeSet<_>>().len();
        assert!(lost > 100 && lost < 400, "{lost}");
        assert!(!numbers.is_sorted(), "some were overtaken or doubled");
        assert_eq!(run_lossy(seed), (numbers, trace));
    }
    assert_ne!(run_lossy(1).1, run_lossy(2).1);
}

/// Under loss each transfer ends: with the right bytes, or with a deadline; a push that is called done has arrived.
#[test]
fn lost_bulk_is_a_deadline_and_never_wrong_bytes() {
    let (mut completed, mut timed_out) = (0, 0);
    for seed in 0..40 {
        let world = World::with_seed(Kind::Sim, seed);
        let (mut client, mut server, peer) = connected(&world);
        world.sim().set_faults(LOSSY);
        let source = client.tm.expose_source(&[client.pattern(65536, 1), client.pattern(4096, 2)]);
        let sink = client.tm.expose_sink(vec![client.blank(4096), client.blank(65536)]);
        let deadline = world.now() + Duration::from_secs(2);
        let pull = server.tm.start_pull(world.now(), peer, &source, deadline);
        let parts = vec![server.pattern(4096, 3), server.pattern(65536, 4)];
        let push = server.tm.start_push(world.now(), peer, &sink, 0, parts, deadline);
        world.drive(&mut [&mut client, &mut server], |nodes| {
            nodes[1].done(pull).is_some() && nodes[1].done(push).is_some()
        });
        match server.done(pull).unwrap() {
            Ok(parts) => {
                assert_pattern(&parts[0], 65536, 1);
                assert_pattern(&parts[1], 4096, 2);
                completed += 1;
            }
            Err(error) => {
                assert_eq!(error, NetError::RemoteTimeout);
                timed_out += 1;
            }
        }
        let filled = client.tm.retract(world.now(), sink.cookie(), Retract::Answered).done().unwrap();
        match server.done(push).unwrap() {
            Ok(_) => {
                assert_pattern(&filled[0], 4096, 3);
                assert_pattern(&filled[1], 65536, 4);
                completed += 1;
            }
            Err(error) => {
                assert_eq!(error, NetError::RemoteTimeout);
                timed_out += 1;
            }
        }
    }
    assert!(completed > 20 && timed_out > 5, "{completed} {timed_out}");
}

/// One direction is cut: the side that waits finds out by ping, and both find together again.
#[test]
fn an_asymmetric_partition_is_found_and_healed() {
    let world = World::new(Kind::Sim);
    let (mut client, mut server, _) = connected(&world);
    let (a, b) = (client.endpoint(), server.endpoint());
    world.sim().partition(b, a);
    client.send(world.now(), b, b"one way");
    let since = world.now();
    world.drive(&mut [&mut client, &mut server], |nodes| !nodes[0].lost().is_empty());
    assert!(server.has_message(b"one way"));
    assert_eq!(client.lost(), [(PeerId { endpoint: b, epoch: 22 }, NetError::RemoteTimeout)]);
    assert!(world.now() - since <= Duration::from_millis(10_100));
    client.send(world.now(), b, b"nobody answers the hello");
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[0].lost().len() == 2);
    assert!(matches!(client.lost()[1].1, NetError::Unreachable { .. }));
    world.sim().heal(b, a);
    client.send(world.now(), b, b"healed");
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].has_message(b"healed"));
}

/// Power cut and restart: nobody is told, the new incarnation is known as such, and old frames do not reach it.
#[test]
fn a_crashed_peer_comes_back_as_another() {
    let world = World::new(Kind::Sim);
    let (mut client, mut server, _) = connected(&world);
    let b = server.endpoint();
    client.send(world.now(), b, b"lost in the crash");
    client.turn(world.now());
    world.sim().crash(b);
    // The dead machine's own code may still run: the net takes nothing from it.
    server.turn(world.now());
    let mut reborn = world.start(b, 23);
    world.settle(&mut [&mut client, &mut reborn]);
    assert!(client.lost().is_empty(), "silence");
    client.send(world.now(), b, b"to the old one");
    world.drive(&mut [&mut client, &mut reborn], |nodes| !nodes[0].lost().is_empty());
    assert!(reborn.messages().is_empty());
    assert!(reborn.tm.stats().stale_dropped >= 1);
    client.send(world.now(), b, b"to the new one");
    world.drive(&mut [&mut client, &mut reborn], |nodes| nodes[1].has_message(b"to the new one"));
    assert_eq!(client.ups().last().unwrap().0, PeerId { endpoint: b, epoch: 23 });
    drop(server);
    client.send(world.now(), b, b"the old one's end changes nothing");
    world.drive(&mut [&mut client, &mut reborn], |nodes| {
        nodes[1].has_message(b"the old one's end changes nothing")
    });
}

/// The crashed side connects first: the survivor's old connection is fenced off.
#[test]
fn a_new_incarnation_replaces_the_old_connection() {
    let world = World::new(Kind::Sim);
    let (client, mut server, peer) = connected(&world);
    let a = client.endpoint();
    world.sim().crash(a);
    let mut reborn = world.start(a, 12);
    reborn.send(world.now(), server.endpoint(), b"new");
    world.drive(&mut [&mut reborn, &mut server], |nodes| nodes[1].has_message(b"new"));
    assert_eq!(server.lost(), [(peer, NetError::Stale)]);
    assert_eq!(server.sender(), PeerId { endpoint: a, epoch: 12 });
    drop(client);
}

/// Damaged headers end connections, are counted, and connections come back; no damaged message is ever delivered.
#[test]
fn damaged_headers_end_the_connection_only() {
    let world = World::with_seed(Kind::Sim, 3);
    let (mut client, mut server, _) = connected(&world);
    world.sim().set_faults(SimFaults { corrupt_per_mille: 20, ..SimFaults::NONE });
    let b = server.endpoint();
    let mut tries = 0;
    world.drive(&mut [&mut client, &mut server], |nodes| {
        let message = nodes[0].message(b"whole");
        if nodes[0].tm.try_send(world.now(), PeerId::any(b), message).is_ok() {
            tries += 1;
        }
        nodes[1].tm.stats().misbehaved > 5 && nodes[1].tm.stats().messages_received > 300
    });
    assert!(tries > 300);
    assert!(server.messages().iter().all(|text| text == b"whole" || text == b"hi"));
    assert!(client.count(|event| matches!(event, Event::PeerUp(..))) > 3);
}
