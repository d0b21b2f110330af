//! What only nets with remote access have: keys that travel with messages, memory that hardware still holds, queue pairs that die.
//!
//! The simulated card (`backend/sim_hardware.rs`) panics when a valid key leads to memory that was given back, so each of these
//! tests also shows that nothing was given back too early.

use std::time::Duration;

use super::pair::{Kind, Node, World, announce, assert_pattern, connected, reclaim, travel};
use crate::{
    BulkDescriptor, Lane, LocalError, NakReason, NetError, PeerId, Retract, Retraction, SendOptions,
    SimFaults, TransferId,
};

const BOTH: [Kind; 2] = [Kind::Windows, Kind::Pool];

/// The part of `retracted_or_foreign_memory_is_not_touched` that hardware does otherwise: what the peer has not bound is
/// refused here, before any work request.
pub(super) fn foreign_memory_is_refused(
    world: &World,
    mut client: Node,
    mut server: Node,
    peer: PeerId,
    source: &BulkDescriptor,
    wrong_key: &BulkDescriptor,
    too_long: &BulkDescriptor,
) {
    let deadline = world.now() + Duration::from_secs(10);
    let mut unknown = source.clone();
    unknown.cookie.0 += 1 << 32;
    let now = world.now();
    let ids = [wrong_key, too_long, &unknown].map(|from| server.tm.start_pull(now, peer, from, deadline));
    let part = server.pattern(4096, 1);
    let into_source = server.tm.start_push(now, peer, source, 0, vec![part], deadline);
    let all = [ids[0], ids[1], ids[2], into_source];
    world.drive(&mut [&mut client, &mut server], |nodes| all.iter().all(|id| nodes[1].done(*id).is_some()));
    let refused = |reason| NetError::RemoteError { reason };
    assert_eq!(server.error_of(ids[0]), refused(NakReason::WrongKey));
    assert_eq!(server.error_of(ids[1]), refused(NakReason::OutOfRange));
    let cookie = unknown.cookie.0;
    assert_eq!(server.error_of(ids[2]), NetError::Local(LocalError::NoRemoteSegments { cookie }));
    assert_eq!(server.error_of(into_source), refused(NakReason::WrongDirection));
    assert!(client.lost().is_empty() && server.lost().is_empty(), "no work request was posted");
}

/// A push of one pattern into the sink, posted and not yet arrived.
fn start_push(world: &World, server: &mut Node, peer: PeerId, sink: &BulkDescriptor, seed: u8) -> TransferId {
    let parts = sink.segment_lengths().iter().map(|bytes| server.pattern(*bytes as usize, seed)).collect();
    let deadline = world.now() + Duration::from_secs(10);
    let id = server.tm.start_push(world.now(), peer, &travel(sink), 0, parts, deadline);
    server.tm.flush(world.now());
    id
}

#[test]
fn memory_of_an_abandoned_request_waits_for_the_late_write_and_the_late_answer() {
    let world = World::new(Kind::Pool);
    let (mut client, mut server, peer) = connected(&world);
    let sink = client.tm.expose_sink(vec![client.blank(8192)]);
    announce(&world, &mut client, &mut server, &[&sink]);
    let push = start_push(&world, &mut server, peer, &sink, 5);
    // The WRITE is on its way; its requester gives up.
    let retraction = client.tm.retract(world.now(), sink.cookie(), Retract::Abandoned);
    assert!(matches!(retraction, Retraction::Pending));
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].done(push).is_some());
    assert!(server.done(push).unwrap().is_ok(), "the key still opens the memory");
    world.pass(&mut [&mut client, &mut server], Duration::from_secs(20));
    assert!(client.retracted(sink.cookie()).is_none(), "nobody has said that the server is done");
    client.tm.settle(sink.cookie());
    world.settle(&mut [&mut client, &mut server]);
    assert_pattern(&client.retracted(sink.cookie()).unwrap()[0], 8192, 5);
    client.tm.settle(sink.cookie());
    let again = client.tm.retract(world.now(), sink.cookie(), Retract::Abandoned);
    assert!(matches!(again, Retraction::Unknown));
}

#[test]
fn memory_held_for_too_long_costs_the_connection() {
    let world = World::new(Kind::Pool);
    let (mut client, mut server, peer) = connected(&world);
    let sink = client.tm.expose_sink(vec![client.blank(4096)]);
    announce(&world, &mut client, &mut server, &[&sink]);
    assert!(matches!(client.tm.retract(world.now(), sink.cookie(), Retract::Abandoned), Retraction::Pending));
    let since = world.now();
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[0].retracted(sink.cookie()).is_some());
    let waited = (world.now() - since).as_millis();
    assert!((30_000..30_100).contains(&waited), "{waited} ms");
    let (_, error) = client.lost().pop().unwrap();
    assert_eq!(error, NetError::Local(LocalError::HeldTooLong { after_ms: 30_000 }));
    world.drive(&mut [&mut client, &mut server], |nodes| !nodes[1].lost().is_empty());
    let late = start_push(&world, &mut server, peer, &sink, 5);
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].done(late).is_some());
    assert!(server.done(late).unwrap().is_err());
}

/// Windows are invalidated before the memory comes back; who writes afterwards loses the queue pair, not our memory.
#[test]
fn a_write_through_an_invalidated_window_ends_the_connection() {
    let world = World::new(Kind::Windows);
    let (mut client, mut server, peer) = connected(&world);
    let sink = client.tm.expose_sink(vec![client.blank(4096), client.blank(4096)]);
    announce(&world, &mut client, &mut server, &[&sink]);
    let cookie = sink.cookie();
    let parts = reclaim(&world, &mut client, &mut server, cookie, Retract::Abandoned);
    let push = start_push(&world, &mut server, peer, &sink, 5);
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].done(push).is_some());
    assert_eq!(server.error_of(push), NetError::RemoteDropped);
    assert!(parts.iter().all(|part| part.iter().all(|byte| *byte == 0)));
    world.drive(&mut [&mut client, &mut server], |nodes| {
        !nodes[0].lost().is_empty() && !nodes[1].lost().is_empty()
    });
}

#[test]
fn a_reply_may_invalidate_the_window_so_the_memory_is_back_at_once() {
    let world = World::new(Kind::Windows);
    let (mut client, mut server, peer) = connected(&world);
    let sink = client.tm.expose_sink(vec![client.blank(4096)]);
    announce(&world, &mut client, &mut server, &[&sink]);
    start_push(&world, &mut server, peer, &sink, 5);
    let reply = server.message(b"reply");
    let options = SendOptions { invalidates: Some(sink.cookie()), ..SendOptions::on(Lane::Reply) };
    server.tm.try_send_with(world.now(), peer, options, reply).unwrap();
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[0].has_message(b"reply"));
    let parts = client.tm.retract(world.now(), sink.cookie(), Retract::Answered).done().unwrap();
    assert_pattern(&parts[0], 4096, 5);
}

/// The keys of a connection die with it: the resend brings new ones.
#[test]
fn a_resend_over_another_connection_binds_anew() {
    for kind in BOTH {
        let world = World::new(kind);
        let (mut client, mut server, peer) = connected(&world);
        let sink = client.tm.expose_sink(vec![client.blank(4096)]);
        announce(&world, &mut client, &mut server, &[&sink]);
        client.tm.drop_peer(PeerId::any(server.endpoint()));
        world.drive(&mut [&mut client, &mut server], |nodes| !nodes[1].lost().is_empty());
        client.send(world.now(), server.endpoint(), b"connects without keys");
        world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].has_message(b"connects without keys"));
        let early = start_push(&world, &mut server, peer, &sink, 5);
        world.settle(&mut [&mut client, &mut server]);
        let cookie = sink.cookie().0;
        assert_eq!(server.error_of(early), NetError::Local(LocalError::NoRemoteSegments { cookie }));
        announce(&world, &mut client, &mut server, &[&sink]);
        announce(&world, &mut client, &mut server, &[&sink]);
        let push = start_push(&world, &mut server, peer, &sink, 6);
        world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].done(push).is_some());
        let parts = reclaim(&world, &mut client, &mut server, sink.cookie(), Retract::Answered);
        assert_pattern(&parts[0], 4096, 6);
    }
}

/// The deadline of a pull passes while the READ is with the card: its buffers are the card's until then, and then ours.
#[test]
fn buffers_of_an_expired_read_come_back_with_its_completion() {
    for kind in BOTH {
        let world = World::new(kind);
        let (mut client, mut server, peer) = connected(&world);
        let source = client.tm.expose_source(&[client.pattern(1 << 20, 1)]);
        announce(&world, &mut client, &mut server, &[&source]);
        let free =
            |node: &Node| (0..200).map_while(|_| node.arena.try_alloc(1 << 20)).collect::<Vec<_>>().len();
        let before = free(&server);
        let deadline = world.now() + Duration::from_millis(1);
        let id = server.tm.start_pull(world.now(), peer, &source, deadline);
        world.drive(&mut [&mut server], |nodes| nodes[0].done(id).is_some());
        assert_eq!(server.error_of(id), NetError::RemoteTimeout);
        assert_eq!(free(&server), before - 1, "the card may still fill it");
        world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].tm.stats().bulk_bytes_late == 1 << 20);
        assert_eq!(free(&server), before);
    }
}

/// Requests with a source and a sink over cards that lose queue pairs, delay, and complete twice: what is answered is right,
/// and every exposure's memory comes back in the end.
#[test]
fn dying_queue_pairs_cost_time_and_never_bytes() {
    let mut deaths = 0;
    for seed in 0..30 {
        let kind = BOTH[seed as usize % 2];
        let world = World::with_seed(kind, seed);
        let (mut client, mut server, _) = connected(&world);
        world.sim().set_faults(SimFaults {
            loss_per_mille: 30,
            duplicate_per_mille: 200,
            queue_pair_death_per_mille: 15,
            ..SimFaults::NONE
        });
        let b = server.endpoint();
        for number in 0..20_u8 {
            exchange(&world, &mut client, &mut server, b, number);
        }
        world.sim().set_faults(SimFaults::NONE);
        world.pass(&mut [&mut client, &mut server], Duration::from_secs(60));
        assert_eq!(client.tm.next_deadline(), None, "nothing is held");
        deaths += world.sim().stats().queue_pair_deaths;
    }
    assert!(deaths > 20, "{deaths}");
}

/// One request: resent until answered, pulled and pushed by the server each time it comes.
fn exchange(world: &World, client: &mut Node, server: &mut Node, b: base::Endpoint, number: u8) {
    let source = client.tm.expose_source(&[client.pattern(10_000, number)]);
    let sink = client.tm.expose_sink(vec![client.blank(4096), client.blank(20_000)]);
    let (request, reply) = ([b'q', number], [b'r', number]);
    let cookies = [source.cookie(), sink.cookie()];
    'resend: for _ in 0..200 {
        client.events.clear();
        server.events.clear();
        let message = client.message(&request);
        let options = SendOptions { exposes: &cookies, ..SendOptions::on(Lane::Request) };
        if client.tm.try_send_with(world.now(), PeerId::any(b), options, message).is_err() {
            world.pass(&mut [client, server], Duration::from_millis(100));
            continue;
        }
        if !drive_for(world, client, server, |_, server| server.has_message(&request)) {
            continue;
        }
        let (peer, now) = (server.sender(), world.now());
        let deadline = now + Duration::from_secs(1);
        let pull = server.tm.start_pull(now, peer, &source, deadline);
        let parts = vec![server.pattern(4096, number), server.pattern(20_000, number)];
        // Served once more from the start, as rpc does: nothing that went before counts.
        server.tm.forget_pushes(peer, sink.cookie());
        let push = server.tm.start_push(now, peer, &sink, 0, parts, deadline);
        let is_done = |server: &Node| server.done(pull).is_some() && server.done(push).is_some();
        if !drive_for(world, client, server, |_, server| is_done(server)) {
            panic!("a transfer outlived its deadline");
        }
        match (server.done(pull).unwrap(), server.done(push).unwrap()) {
            (Ok(parts), Ok(_)) => assert_pattern(&parts[0], 10_000, number),
            _ => continue 'resend,
        }
        let message = server.message(&reply);
        let options = SendOptions { invalidates: Some(sink.cookie()), ..SendOptions::on(Lane::Reply) };
        let _ = server.tm.try_send_with(world.now(), peer, options, message);
        if drive_for(world, client, server, |client, _| client.has_message(&reply)) {
            let parts = reclaim(world, client, server, sink.cookie(), Retract::Answered);
            assert_pattern(&parts[0], 4096, number);
            assert_pattern(&parts[1], 20_000, number);
            reclaim(world, client, server, source.cookie(), Retract::Answered);
            return;
        }
    }
    panic!("never answered");
}

/// Drives for at most three seconds; false if it has not come to be.
fn drive_for(
    world: &World,
    client: &mut Node,
    server: &mut Node,
    done: impl Fn(&Node, &Node) -> bool,
) -> bool {
    for _ in 0..300 {
        world.pass(&mut [client, server], Duration::from_millis(10));
        if done(client, server) {
            return true;
        }
    }
    false
}
