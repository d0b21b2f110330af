//! What every backend promises, run over each: `lo::*`, `tcp::*`, `sim::*`. Then what only one of them has.

#![allow(clippy::cast_possible_truncation)] // small numbers of tests

mod credentials;
mod faults;
mod hostile;
mod hostile_verbs;
mod pair;
mod portals;
mod rails;
mod remote;
mod simulated;
mod tampered;
mod threads;

use std::time::Duration;

use base::limits::MESSAGE_BYTES_MAX;

use crate::limits::{CREDIT_RESERVE, CREDIT_WINDOW};
use crate::{
    Event, Lane, NakReason, NetError, PeerId, RefuseReason, Refused, Retract, Retraction, StartError,
};
use pair::{Kind, World, announce, assert_pattern, connected, reclaim, travel};

fn messages_go_both_ways(kind: Kind) {
    let world = World::new(kind);
    let (a, b) = (world.endpoint(), world.endpoint());
    let (mut client, mut server) = (world.start(a, 11), world.start(b, 22));
    client.send(world.now(), b, b"question");
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].has_message(b"question"));
    assert_eq!(server.sender(), PeerId { endpoint: a, epoch: 11 });
    assert_eq!(server.ups(), [(PeerId { endpoint: a, epoch: 11 }, 111)], "epoch and configuration version");
    let answer = server.message(b"answer");
    let peer = server.sender();
    server.tm.try_send_on(world.now(), peer, Lane::Reply, answer).unwrap();
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[0].has_message(b"answer"));
    assert_eq!(client.ups(), [(PeerId { endpoint: b, epoch: 22 }, 122)]);
    assert_eq!((client.tm.stats().dials, server.tm.stats().dials), (1, 0), "one connection, both directions");
    assert!(client.lost().is_empty() && server.lost().is_empty());
}

fn thousands_of_messages_keep_order_and_credits(kind: Kind) {
    const COUNT: u32 = 3000;
    let world = World::new(kind);
    let (mut client, mut server, _) = connected(&world);
    let (a, b) = (client.endpoint(), server.endpoint());
    let (mut next_a, mut next_b) = (0, 0);
    let mut refusals = 0;
    world.drive(&mut [&mut client, &mut server], |nodes| {
        for (node, to, next) in [(0, b, &mut next_a), (1, a, &mut next_b)] {
            while *next < COUNT {
                let mut text = vec![7; (*next % 900) as usize];
                text.extend_from_slice(&next.to_le_bytes());
                let message = nodes[node].message(&text);
                match nodes[node].tm.try_send(world.now(), PeerId::any(to), message) {
                    Ok(()) => *next += 1,
                    Err((refused, back)) => {
                        assert!(matches!(refused, Refused::NoCredit | Refused::QueueFull), "{refused}");
                        assert_eq!(&back[..], &text[..], "the message comes back");
                        refusals += 1;
                        break;
                    }
                }
            }
        }
        let got = [0, 1].map(|node| nodes[node].tm.stats().messages_received);
        // The server has had one more, from the time it was connected.
        got[0] == u64::from(COUNT) && got[1] == u64::from(COUNT) + 1
    });
    assert!(refusals > 0, "the window was never full");
    for node in [&client, &server] {
        let numbers: Vec<u32> = node
            .messages()
            .iter()
            .filter(|text| text.as_slice() != b"hi")
            .map(|text| u32::from_le_bytes(*text.last_chunk::<4>().unwrap()))
            .collect();
        assert_eq!(numbers, (0..COUNT).collect::<Vec<_>>());
        assert!(node.count(|event| matches!(event, Event::Writable(_))) > 0);
    }
}

fn largest_message_arrives_and_larger_is_refused(kind: Kind) {
    let world = World::new(kind);
    let (mut client, mut server, _) = connected(&world);
    let to = PeerId::any(server.endpoint());
    let most = MESSAGE_BYTES_MAX as usize;
    let (largest, too_large) = (client.pattern(most, 3), client.pattern(most + 1, 3));
    client.tm.try_send(world.now(), to, largest).unwrap();
    let refused = client.tm.try_send(world.now(), to, too_large).unwrap_err().0;
    assert_eq!(refused, Refused::Length);
    assert!(refused.is_permanent());
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].messages().len() == 2);
    assert_pattern(&server.messages()[1], most, 3);
}

/// A peer that is slow to take messages fills its window; replies still have their reserve.
fn replies_do_not_wait_behind_requests(kind: Kind) {
    let world = World::new(kind);
    let (mut client, mut server, _) = connected(&world);
    world.settle(&mut [&mut client, &mut server]);
    let to = PeerId::any(server.endpoint());
    let mut sent = 0;
    let refused = loop {
        let message = client.message(b"request");
        match client.tm.try_send(world.now(), to, message) {
            Ok(()) => sent += 1,
            Err((refused, _)) => break refused,
        }
    };
    assert_eq!(refused, Refused::NoCredit);
    assert!((CREDIT_WINDOW - CREDIT_RESERVE - 1..=CREDIT_WINDOW - CREDIT_RESERVE).contains(&sent));
    for _ in 0..CREDIT_RESERVE {
        let reply = client.message(b"reply");
        client.tm.try_send_on(world.now(), to, Lane::Reply, reply).unwrap();
    }
    let one_more = client.message(b"reply");
    let refused = client.tm.try_send_on(world.now(), to, Lane::Reply, one_more).unwrap_err().0;
    assert_eq!(refused, Refused::NoCredit);
    world.drive(&mut [&mut client, &mut server], |nodes| {
        nodes[0].count(|event| matches!(event, Event::Writable(_))) == 1
    });
    world.drive(&mut [&mut client, &mut server], |nodes| {
        nodes[1].messages().len() as u32 == 1 + sent + CREDIT_RESERVE
    });
}

fn pull_moves_all_segments(kind: Kind) {
    let world = World::new(kind);
    let (mut client, mut server, peer) = connected(&world);
    let lengths = [1 << 20, 4096, 65536, 1 << 20, 1 << 19];
    let parts: Vec<_> =
        lengths.iter().enumerate().map(|(index, bytes)| client.pattern(*bytes, index as u8)).collect();
    let descriptor = client.tm.expose_source(&parts);
    assert_eq!(descriptor.total_bytes(), lengths.iter().sum::<usize>() as u64);
    let unbound = client.counters.copied_bytes.get();
    announce(&world, &mut client, &mut server, &[&descriptor]);
    let before = (client.counters.copied_bytes.get(), server.counters.copied_bytes.get());
    if kind.has_remote_access() {
        // A sealed source is a copy, made when it is told of; nothing else is copied, but of the message a little.
        let (bytes, copied) = (descriptor.total_bytes(), before.0 - unbound);
        let sealed = if kind.is_sealed() { bytes } else { 0 };
        assert!((sealed..sealed + 64).contains(&copied), "{copied} copied of {bytes}");
    }
    let deadline = world.now() + Duration::from_secs(10);
    let id = server.tm.start_pull(world.now(), peer, &travel(&descriptor), deadline);
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].done(id).is_some());
    let pulled = server.done(id).unwrap().unwrap();
    assert_eq!(pulled.len(), lengths.len());
    for (index, (part, bytes)) in pulled.iter().zip(lengths).enumerate() {
        assert_pattern(part, bytes, index as u8);
        assert_eq!(part.shares_memory_with(&parts[index]), matches!(kind, Kind::Lo | Kind::Sim));
    }
    // Over tcp sealing copies, and opening does. Over verbs the source was sealed when it was bound; what is pulled opens in its place.
    if kind != Kind::Sealed {
        assert_eq!(client.counters.copied_bytes.get(), before.0, "the source copies nothing");
        // Over tcp the destination copies at most what one read of messages takes in before the pull is known: here nothing,
        // because the puller knows of its pull before the first byte comes.
        assert_eq!(server.counters.copied_bytes.get(), before.1);
    }
    assert_eq!(server.counters.bulk_bytes.get(), descriptor.total_bytes());
    reclaim(&world, &mut client, &mut server, descriptor.cookie(), Retract::Answered);
    let again = client.tm.retract(world.now(), descriptor.cookie(), Retract::Answered);
    assert!(matches!(again, Retraction::Unknown));
}

fn push_fills_segments_before_the_reply(kind: Kind) {
    let world = World::new(kind);
    let (mut client, mut server, peer) = connected(&world);
    let lengths = [65536, 1 << 20, 4096, 1 << 20];
    let sinks: Vec<_> = lengths.iter().map(|bytes| client.blank(*bytes)).collect();
    let descriptor = client.tm.expose_sink(sinks);
    announce(&world, &mut client, &mut server, &[&descriptor]);
    let before = (client.counters.copied_bytes.get(), server.counters.copied_bytes.get());
    let deadline = world.now() + Duration::from_secs(10);
    let now = world.now();
    let first = vec![server.pattern(lengths[0], 1)];
    let rest: Vec<_> = (1..4).map(|index| server.pattern(lengths[index], 1 + index as u8)).collect();
    let to = travel(&descriptor);
    let late = server.tm.start_push(now, peer, &to, 1, rest, deadline);
    let early = server.tm.start_push(now, peer, &to, 0, first, deadline);
    let reply = server.message(b"reply");
    server.tm.try_send_on(now, peer, Lane::Reply, reply).unwrap();
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[0].has_message(b"reply"));
    let filled = reclaim(&world, &mut client, &mut server, descriptor.cookie(), Retract::Answered);
    for (index, (part, bytes)) in filled.iter().zip(lengths).enumerate() {
        assert_pattern(part, bytes, 1 + index as u8);
    }
    world.drive(&mut [&mut client, &mut server], |nodes| {
        nodes[1].done(late).is_some() && nodes[1].done(early).is_some()
    });
    assert!(server.done(late).unwrap().unwrap().is_empty());
    // The reply itself is a message: copied at most once. No bulk byte is copied, because sinks are exposed; what is sealed is, once.
    if kind == Kind::VerbsSealed {
        let total: usize = lengths.iter().sum();
        assert_eq!(client.counters.copied_bytes.get(), before.0, "the sink opens in its place");
        let copied = server.counters.copied_bytes.get() - before.1;
        let least = (total + b"reply".len()) as u64;
        assert!((least..least + 4096).contains(&copied), "{copied} copied of {total}, and seals");
    } else if kind != Kind::Sealed {
        assert!(client.counters.copied_bytes.get() - before.0 <= 5);
        assert_eq!(server.counters.copied_bytes.get(), before.1);
    }
}

/// Keys are used again and again: more often than a memory window has tags (256).
fn exposures_come_and_go(kind: Kind) {
    let world = World::new(kind);
    let (mut client, mut server, peer) = connected(&world);
    let free =
        |node: &pair::Node| (0..).map_while(|_| node.arena.try_alloc(1 << 20)).collect::<Vec<_>>().len();
    let before = free(&client);
    for round in 0..300_u32 {
        let source = client.tm.expose_source(&[client.pattern(4096, round as u8)]);
        announce(&world, &mut client, &mut server, &[&source]);
        if round % 16 == 0 {
            let deadline = world.now() + Duration::from_secs(10);
            let id = server.tm.start_pull(world.now(), peer, &travel(&source), deadline);
            world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].done(id).is_some());
            assert_pattern(&server.done(id).unwrap().unwrap()[0], 4096, round as u8);
        }
        drop(reclaim(&world, &mut client, &mut server, source.cookie(), Retract::Answered));
        client.events.clear();
        server.events.retain(|event| matches!(event, Event::PeerLost { .. }));
    }
    assert!(client.lost().is_empty() && server.lost().is_empty());
    // The first message may have held a piece of it still.
    world.drive(&mut [&mut client, &mut server], |nodes| free(nodes[0]) >= before); // all memory comes back
}

fn push_of_a_wrong_length_fails_at_once(kind: Kind) {
    let world = World::new(kind);
    let (mut client, mut server, peer) = connected(&world);
    let descriptor = client.tm.expose_sink(vec![client.blank(8192)]);
    let part = vec![server.pattern(4096, 1)];
    let deadline = world.now() + Duration::from_secs(10);
    let id = server.tm.start_push(world.now(), peer, &descriptor, 0, part, deadline);
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].done(id).is_some());
    assert!(matches!(server.done(id), Some(Err(NetError::Local(_)))));
}

fn retracted_or_foreign_memory_is_not_touched(kind: Kind) {
    let world = World::new(kind);
    let (mut client, mut server, peer) = connected(&world);
    let deadline = world.now() + Duration::from_secs(10);
    let source = client.tm.expose_source(&[client.pattern(4096, 1)]);
    let sink = client.tm.expose_sink(vec![client.blank(1 << 20)]);
    let mut wrong_key = source.clone();
    wrong_key.key ^= 1;
    let too_long = crate::BulkDescriptor { segments: smallvec::smallvec![4096, 4096], ..source.clone() };
    announce(&world, &mut client, &mut server, &[&source, &sink]);
    let kept = reclaim(&world, &mut client, &mut server, sink.cookie(), Retract::Answered);
    if kind.has_remote_access() {
        return remote::foreign_memory_is_refused(
            &world, client, server, peer, &source, &wrong_key, &too_long,
        );
    }
    let now = world.now();
    let from_wrong_key = server.tm.start_pull(now, peer, &wrong_key, deadline);
    let from_beyond = server.tm.start_pull(now, peer, &too_long, deadline);
    let from_sink = server.tm.start_pull(now, peer, &sink, deadline);
    let pushed = server.pattern(1 << 20, 9);
    server.tm.start_push(now, peer, &sink, 0, vec![pushed], deadline);
    let after = server.message(b"after");
    server.tm.try_send(now, peer, after).unwrap();
    world.drive(&mut [&mut client, &mut server], |nodes| {
        nodes[0].has_message(b"after")
            && [from_wrong_key, from_beyond, from_sink].iter().all(|id| nodes[1].done(*id).is_some())
    });
    let reason = |id| match server.done(id) {
        Some(Err(NetError::RemoteError { reason })) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(from_wrong_key), NakReason::WrongKey);
    assert_eq!(reason(from_beyond), NakReason::OutOfRange);
    assert_eq!(reason(from_sink), NakReason::NotExposed);
    assert!(kept[0].iter().all(|byte| *byte == 0), "nothing was written after the retraction");
    assert_eq!(client.tm.stats().bulk_bytes_late, 1 << 20);
    assert!(client.lost().is_empty(), "the connection lives on");
    // The cookie's slot is used again under another name.
    let other = client.tm.expose_source(&[client.pattern(4096, 1)]);
    assert_ne!(other.cookie(), sink.cookie());
}

fn transfers_end_at_their_deadline(kind: Kind) {
    let world = World::new(kind);
    let (mut client, mut server, peer) = connected(&world);
    let source = client.tm.expose_source(&[client.pattern(4096, 1)]);
    announce(&world, &mut client, &mut server, &[&source]);
    // A device reads without the client's process, so there the deadline has to come before the bytes.
    let deadline = world.now() + Duration::from_millis(if kind.is_rdma() { 0 } else { 100 });
    let id = server.tm.start_pull(world.now(), peer, &source, deadline);
    if kind.is_rdma() {
        server.tm.flush(world.now());
    }
    // The client is not driven: it is alive and silent.
    world.drive(&mut [&mut server], |nodes| nodes[0].done(id).is_some());
    assert_eq!(server.error_of(id), NetError::RemoteTimeout);
    assert!(world.now() >= deadline);
    // The answer comes late and hurts nobody.
    client.send(world.now(), server.endpoint(), b"still here");
    world.drive(&mut [&mut client, &mut server], |nodes| {
        nodes[1].has_message(b"still here") && nodes[1].tm.stats().bulk_bytes_late == 4096
    });
    assert!(server.lost().is_empty());
}

fn wrong_token_is_refused_with_the_reason(kind: Kind) {
    let world = World::new(kind);
    let (a, b) = (world.endpoint(), world.endpoint());
    let mut server = world.start(b, 22);
    let mut client = world.try_start(a, 11, [0x5b; 32], true).unwrap();
    client.send(world.now(), b, b"let me in");
    world.drive(&mut [&mut client, &mut server], |nodes| !nodes[0].lost().is_empty());
    let is_secured = kind.is_secured();
    let reason = if is_secured { RefuseReason::Untrusted } else { RefuseReason::Token };
    assert_eq!(client.lost(), [(PeerId { endpoint: b, epoch: 0 }, NetError::Refused { reason })]);
    assert!(server.events.is_empty(), "the layer above never hears of it");
    if is_secured {
        // The client found out first, and told the server by an alert.
        world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].tm.stats().hello_faults == 1);
        assert_eq!(server.tm.stats().last_hello_fault, Some(reason));
        return;
    }
    assert_eq!(server.tm.stats().refused_by_us, 1);
    assert_eq!(server.tm.stats().last_refused, Some((a, reason)));
    assert_eq!(client.tm.stats().refused_by_peer, 1);
}

fn nobody_there_is_told_and_retried_with_pauses(kind: Kind) {
    let world = World::new(kind);
    let (a, b) = (world.endpoint(), world.endpoint());
    let mut client = world.start(a, 11);
    drop(world.start(b, 22));
    let asked_at = world.now();
    client.send(asked_at, b, b"one");
    world.drive(&mut [&mut client], |nodes| !nodes[0].lost().is_empty());
    assert!(matches!(&client.lost()[0].1, NetError::Unreachable { endpoint, .. } if *endpoint == b));
    let (first, now) = (client.tm.stats().dials, world.now());
    client.send(now, b, b"two");
    world.settle(&mut [&mut client]);
    // On the real clock the pause may be over by now.
    let is_over = world.now() - asked_at >= Duration::from_millis(world.times.reconnect_ms_min / 2);
    assert!(client.tm.stats().dials == first || is_over, "the pause is kept");
    let mut server = world.start(b, 23);
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].has_message(b"two"));
    // Counted from the first try: under load much of the pause has gone by before the second message.
    assert!(world.now() - asked_at >= Duration::from_millis(20));
}

fn restarted_peer_is_another_incarnation(kind: Kind) {
    let world = World::new(kind);
    let (mut client, server, _) = connected(&world);
    let b = server.endpoint();
    drop(server);
    let mut server = world.start(b, 23);
    world.drive(&mut [&mut client, &mut server], |nodes| !nodes[0].lost().is_empty());
    assert_eq!(client.lost(), [(PeerId { endpoint: b, epoch: 22 }, NetError::RemoteDropped)]);
    client.send(world.now(), b, b"again");
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].has_message(b"again"));
    assert_eq!(client.ups().last(), Some(&(PeerId { endpoint: b, epoch: 23 }, 123)));
    let stale = client.message(b"for the dead");
    let refused = client.tm.try_send(world.now(), PeerId { endpoint: b, epoch: 22 }, stale).unwrap_err().0;
    assert_eq!(refused, Refused::Stale);
    let source = client.tm.expose_source(&[client.pattern(4096, 1)]);
    let old = PeerId { endpoint: client.endpoint(), epoch: 10 };
    let deadline = world.now() + Duration::from_secs(1);
    let id = server.tm.start_pull(world.now(), old, &source, deadline);
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].done(id).is_some());
    assert_eq!(server.error_of(id), NetError::Stale);
}

/// A client that starts again under its address gives the same cookies again: what was pushed to the one before it does not count.
fn a_restarted_peer_has_pushes_of_its_own(kind: Kind) {
    let world = World::new(kind);
    let (mut client, mut server, mut peer) = connected(&world);
    let (a, mut cookies) = (client.endpoint(), Vec::new());
    for epoch in 12..15 {
        let sink = client.tm.expose_sink(vec![client.blank(4096)]);
        cookies.push(sink.cookie());
        announce(&world, &mut client, &mut server, &[&sink]);
        let deadline = world.now() + Duration::from_secs(10);
        let part = server.pattern(4096, 3);
        let push = server.tm.start_push(world.now(), peer, &sink, 0, vec![part], deadline);
        world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].done(push).is_some());
        assert!(server.tm.are_pushes_intact(peer, sink.cookie()), "start {epoch}");
        assert_pattern(
            &reclaim(&world, &mut client, &mut server, sink.cookie(), Retract::Answered)[0],
            4096,
            3,
        );
        let losses = server.lost().len();
        drop(client);
        world.drive(&mut [&mut server], |nodes| nodes[0].lost().len() > losses);
        assert!(!server.tm.are_pushes_intact(peer, sink.cookie()));
        client = world.start(a, epoch);
        peer = PeerId { endpoint: a, epoch };
    }
    assert!(cookies.iter().all(|cookie| *cookie == cookies[0]), "{cookies:?}");
}

fn transfers_fail_with_their_peer(kind: Kind) {
    let world = World::new(kind);
    let (mut client, mut server, peer) = connected(&world);
    let source = client.tm.expose_source(&[client.pattern(4096, 1)]);
    announce(&world, &mut client, &mut server, &[&source]);
    let deadline = world.now() + Duration::from_secs(60);
    let id = server.tm.start_pull(world.now(), peer, &source, deadline);
    drop(client);
    world.drive(&mut [&mut server], |nodes| nodes[0].done(id).is_some());
    assert_eq!(server.error_of(id), NetError::RemoteDropped);
    assert_eq!(server.lost(), [(peer, NetError::RemoteDropped)]);
    let id = server.tm.start_pull(world.now(), peer, &source, deadline);
    world.drive(&mut [&mut server], |nodes| nodes[0].done(id).is_some());
    assert_eq!(server.error_of(id), NetError::RemoteDropped);
}

fn both_connect_at_once_and_one_connection_stays(kind: Kind) {
    let world = World::new(kind);
    let (a, b) = (world.endpoint(), world.endpoint());
    let (mut one, mut two) = (world.start(a, 11), world.start(b, 22));
    one.send(world.now(), b, b"from one");
    two.send(world.now(), a, b"from two");
    world.drive(&mut [&mut one, &mut two], |nodes| {
        nodes[0].has_message(b"from two") && nodes[1].has_message(b"from one")
    });
    world.settle(&mut [&mut one, &mut two]);
    assert_eq!((one.tm.stats().peers_connected, two.tm.stats().peers_connected), (1, 1));
    assert_eq!((one.tm.stats().refused_by_us, two.tm.stats().refused_by_us), (0, 0), "a race is no refusal");
    assert!(one.lost().is_empty() && two.lost().is_empty());
}

fn clients_register_themselves_and_are_never_dialled(kind: Kind) {
    let world = World::new(kind);
    let b = world.endpoint();
    let mut server = world.start(b, 22);
    let a = crate::dynamic_endpoint(b.nid, 4711, 3);
    let mut client = world.try_start(a, 11, pair::TOKEN, false).unwrap();
    let early = server.message(b"early");
    assert_eq!(server.tm.try_send(world.now(), PeerId::any(a), early).unwrap_err().0, Refused::NotConnected);
    client.send(world.now(), b, b"hello");
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].has_message(b"hello"));
    server.send(world.now(), a, b"answer");
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[0].has_message(b"answer"));
    client.tm.drop_peer(PeerId::any(b));
    world.drive(&mut [&mut client, &mut server], |nodes| !nodes[1].lost().is_empty());
    assert!(client.lost().is_empty(), "who drops a peer need not be told");
    let late = server.message(b"late");
    assert_eq!(server.tm.try_send(world.now(), PeerId::any(a), late).unwrap_err().0, Refused::NotConnected);
}

/// What a machine holds for receiving is its own and not its connections': docs/limits.md.
fn memory_does_not_grow_with_connections(kind: Kind) {
    // Each machine of a real device pins 5 MiB, and all of them are in this process; a stand-in pins nothing, and once is enough of it.
    let standin = std::env::var("CLOVIS_STANDIN");
    let count: u16 = if kind.is_rdma() && standin.as_deref() != Ok("") { 32 } else { 256 };
    let lacks = standin.unwrap_or_default() + &std::env::var("CLOVIS_RDMA_WITHOUT").unwrap_or_default();
    let is_shared = !lacks.contains("srq");
    let mut world = World::new(kind);
    world.times.idle_ping_ms = 3_600_000; // clients whose turn has passed are not driven, and would not answer
    let b = world.endpoint();
    let mut server = world.start(b, 22);
    let mut clients: Vec<pair::Node> = Vec::new();
    let mut with_one = 0;
    for number in 1..=count {
        let own = crate::dynamic_endpoint(b.nid, 4711, number);
        let mut client = world.try_start(own, 100 + u64::from(number), pair::TOKEN, false).unwrap();
        client.send(world.now(), b, format!("hello {number}").as_bytes());
        world.drive(&mut [&mut client, &mut server], |nodes| !nodes[1].messages().is_empty());
        server.events.clear();
        server.send(world.now(), own, b"welcome");
        world.drive(&mut [&mut client, &mut server], |nodes| nodes[0].has_message(b"welcome"));
        client.events.clear();
        clients.push(client);
        if number == 1 {
            with_one = server.tm.stats().receive_bytes;
        }
    }
    let stats = server.tm.stats();
    assert_eq!((stats.peers_up, stats.peers_lost), (u64::from(count), 0), "all stand at once");
    let allowed = if is_shared { with_one } else { with_one * u64::from(count) };
    assert!(stats.receive_bytes <= allowed, "{with_one} bytes with 1, {} with {count}", stats.receive_bytes);
    assert_eq!(with_one > 0, kind.is_rdma(), "posted receives are memory: {with_one}");
    // They are all served, and not only there.
    for (number, client) in (1..).zip(&mut clients) {
        client.send(world.now(), b, format!("again {number}").as_bytes());
        client.turn(world.now());
    }
    let mut nodes: Vec<&mut pair::Node> = std::iter::once(&mut server).chain(&mut clients).collect();
    world.drive(&mut nodes, |nodes| nodes[0].messages().len() == usize::from(count));
}

fn a_silent_peer_is_pinged_and_then_lost(kind: Kind) {
    let mut world = World::new(kind);
    // On the real clock a side that the scheduler left out for a moment is not silent.
    let silence_ms = if kind.is_real() { 1000 } else { 100 };
    world.times.idle_ping_ms = silence_ms;
    world.times.ping_wait_ms_max = silence_ms;
    let (mut client, mut server, peer) = connected(&world);
    let source = client.tm.expose_source(&[client.pattern(4096, 1)]);
    announce(&world, &mut client, &mut server, &[&source]);
    let deadline = world.now() + Duration::from_secs(60);
    let id = server.tm.start_pull(world.now(), peer, &source, deadline);
    // The client's process is stopped: its connection stands and nothing answers. Its device still does.
    world.drive(&mut [&mut server], |nodes| nodes[0].done(id).is_some());
    if kind.is_rdma() {
        assert_pattern(&server.done(id).unwrap().unwrap()[0], 4096, 1);
        server.send(world.now(), client.endpoint(), b"are you there");
        world.drive(&mut [&mut server], |nodes| !nodes[0].lost().is_empty());
    } else {
        assert_eq!(server.error_of(id), NetError::RemoteTimeout);
    }
    assert_eq!(server.lost(), [(peer, NetError::RemoteTimeout)]);
    assert!(server.tm.stats().pings >= 1);
}

fn idle_machines_ask_for_nothing(kind: Kind) {
    let world = World::new(kind);
    let (mut client, mut server, _) = connected(&world);
    let answer = server.message(b"answer");
    let peer = server.sender();
    server.tm.try_send(world.now(), peer, answer).unwrap();
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[0].has_message(b"answer"));
    // Whatever timers were set run out: at most a ping each brings the last credits home.
    if !kind.is_real() {
        world.pass(&mut [&mut client, &mut server], Duration::from_secs(20));
        assert_eq!((client.tm.next_deadline(), server.tm.next_deadline()), (None, None));
        assert!(client.tm.stats().pings <= 1 && server.tm.stats().pings <= 1);
        world.pass(&mut [&mut client, &mut server], Duration::from_secs(3600));
        assert!(client.lost().is_empty() && server.lost().is_empty());
        client.send(world.now(), server.endpoint(), b"after an hour");
        world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].has_message(b"after an hour"));
    }
    let idle = world.start(world.endpoint(), 33);
    assert_eq!(idle.tm.next_deadline(), None);
}

fn start_says_what_is_wrong(kind: Kind) {
    let world = World::new(kind);
    let (a, b) = (world.endpoint(), world.endpoint());
    let mut first = world.start(a, 1);
    let second = world.try_start(a, 2, pair::TOKEN, true).err().unwrap();
    assert!(matches!(&second, StartError::PortInUse { address, .. } if !address.is_empty()), "{second}");
    let mut o2ib = b;
    o2ib.nid.net.kind = base::NetKind::O2ib;
    if !kind.is_rdma() {
        let error = world.try_start(o2ib, 1, pair::TOKEN, true).err().unwrap();
        assert!(matches!(error, StartError::NoRdma { .. }) && error.to_string().contains("@tcp"), "{error}");
    }
    let foreign = if kind == Kind::Lo { "1@sim:1:34:1" } else { "0@lo:1:34:1" }.parse().unwrap();
    assert!(matches!(
        world.try_start(foreign, 1, pair::TOKEN, true).err().unwrap(),
        StartError::NoSuchNet { .. }
    ));
    assert!(matches!(world.try_start(b, 0, pair::TOKEN, true).err().unwrap(), StartError::EpochZero { .. }));
    let mut refuse = |to| {
        let message = first.message(b"x");
        first.tm.try_send(world.now(), PeerId::any(to), message).unwrap_err().0
    };
    assert_eq!(refuse(a), Refused::Myself);
    if !kind.is_rdma() {
        assert_eq!(refuse(o2ib), Refused::NoRdma);
    }
    assert_eq!(refuse(foreign), Refused::WrongNet);
    if kind.is_real() {
        let no_port = base::Endpoint { portal: 3, ..b };
        assert_eq!(refuse(no_port), Refused::PortalWithoutPort);
        let error = world.try_start(no_port, 1, pair::TOKEN, true).err().unwrap();
        assert!(matches!(error, StartError::PortalWithoutPort { .. }));
        let nid = base::Nid::new(b.nid.net.kind, u32::from_be_bytes([192, 0, 2, 1]));
        let elsewhere = base::Endpoint { nid, ..b };
        let error = world.try_start(elsewhere, 1, pair::TOKEN, true).err().unwrap();
        assert!(matches!(error, StartError::NoSuchAddress { .. }), "{error}");
    }
}

use faults::{bulk_dropped_by_a_rule_ends_at_its_deadline, rules_drop_delay_double_and_damage};
use portals::{
    a_lazy_portal_keeps_what_comes_early, a_ping_tells_what_a_peer_is, gets_are_answered_from_descriptors,
    operations_end_with_their_peer, puts_land_in_descriptors_and_are_acknowledged,
};
use rails::{
    a_rail_cut_in_mid_transfer_loses_and_doubles_nothing_that_had_not_left, a_single_rail_resends_nothing,
    messages_are_sent_again_by_their_class, two_rails_share_the_load,
};

macro_rules! conformance {
    ($($test:ident),* $(,)?) => {
        mod lo { $(#[test] fn $test() { super::$test(super::Kind::Lo); })* }
        mod tcp { $(#[test] fn $test() { super::$test(super::Kind::Tcp); })* }
        mod secured { $(#[test] fn $test() { super::$test(super::Kind::Secured); })* }
        mod sealed { $(#[test] fn $test() { super::$test(super::Kind::Sealed); })* }
        mod sim { $(#[test] fn $test() { super::$test(super::Kind::Sim); })* }
        mod windows { $(#[test] fn $test() { super::$test(super::Kind::Windows); })* }
        mod verbs {
            $(#[test] fn $test() { if super::pair::has_rdma() { super::$test(super::Kind::Verbs); } })*
        }
        mod verbs_secured {
            $(#[test] fn $test() { if super::pair::has_rdma() { super::$test(super::Kind::VerbsSecured); } })*
        }
        mod verbs_sealed {
            $(#[test] fn $test() { if super::pair::has_rdma() { super::$test(super::Kind::VerbsSealed); } })*
        }
        mod pool { $(#[test] fn $test() { super::$test(super::Kind::Pool); })* }
    };
}

conformance!(
    two_rails_share_the_load,
    messages_are_sent_again_by_their_class,
    a_single_rail_resends_nothing,
    a_rail_cut_in_mid_transfer_loses_and_doubles_nothing_that_had_not_left,
    messages_go_both_ways,
    thousands_of_messages_keep_order_and_credits,
    largest_message_arrives_and_larger_is_refused,
    replies_do_not_wait_behind_requests,
    pull_moves_all_segments,
    push_fills_segments_before_the_reply,
    exposures_come_and_go,
    push_of_a_wrong_length_fails_at_once,
    retracted_or_foreign_memory_is_not_touched,
    transfers_end_at_their_deadline,
    wrong_token_is_refused_with_the_reason,
    nobody_there_is_told_and_retried_with_pauses,
    restarted_peer_is_another_incarnation,
    a_restarted_peer_has_pushes_of_its_own,
    transfers_fail_with_their_peer,
    both_connect_at_once_and_one_connection_stays,
    clients_register_themselves_and_are_never_dialled,
    memory_does_not_grow_with_connections,
    a_silent_peer_is_pinged_and_then_lost,
    idle_machines_ask_for_nothing,
    start_says_what_is_wrong,
    rules_drop_delay_double_and_damage,
    bulk_dropped_by_a_rule_ends_at_its_deadline,
    puts_land_in_descriptors_and_are_acknowledged,
    gets_are_answered_from_descriptors,
    a_lazy_portal_keeps_what_comes_early,
    operations_end_with_their_peer,
    a_ping_tells_what_a_peer_is,
);
