//! Fault rules over every backend: they do what they say, count it, and leave nothing behind.

use std::time::Duration;

use super::pair::{Kind, Node, World, announce, assert_pattern, connected, reclaim};
use crate::{NetError, PeerMisbehaved, Retract};

fn add(node: &mut Node, rule: &str) {
    node.tm.fault_add(rule.parse().unwrap()).unwrap();
}

pub(super) fn rules_drop_delay_double_and_damage(kind: Kind) {
    let world = World::new(kind);
    let (mut client, mut server, _) = connected(&world);
    world.settle(&mut [&mut client, &mut server]);
    let b = server.endpoint();
    let texts = |node: &Node| node.messages().into_iter().filter(|text| text != b"hi").collect::<Vec<_>>();

    add(&mut client, "drop kind=message count=2");
    for text in [b"one", b"two", b"six"] {
        client.send(world.now(), b, text);
    }
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].has_message(b"six"));
    assert_eq!(texts(&server), [b"six"]);
    let status = client.tm.fault_list()[0];
    assert_eq!((status.matched, status.fired), (3, 2));
    assert_eq!(client.tm.fault_clear(None), 1);
    server.events.clear();

    let net = client.endpoint().nid.net;
    add(&mut client, &format!("delay peer=*@{net} kind=message count=1 ms=40"));
    world.settle(&mut [&mut client, &mut server]);
    let since = world.now();
    client.send(world.now(), b, b"late");
    client.send(world.now(), b, b"behind it");
    assert_eq!(client.tm.fault_clear(None), 1, "what is held leaves at its time all the same");
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].has_message(b"behind it"));
    assert_eq!(texts(&server), [&b"late"[..], b"behind it"]);
    assert!(world.now() - since >= Duration::from_millis(40));
    server.events.clear();

    add(&mut client, &format!("duplicate peer={} count=1", b.nid));
    client.send(world.now(), b, b"double");
    client.send(world.now(), b, b"last");
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].has_message(b"last"));
    assert_eq!(texts(&server), [&b"double"[..], b"double", b"last"]);
    client.tm.fault_clear(None);
    assert!(client.lost().is_empty() && server.lost().is_empty(), "none of these ends a connection");

    add(&mut client, "corrupt kind=message count=1");
    client.send(world.now(), b, b"damaged");
    world.drive(&mut [&mut client, &mut server], |nodes| {
        !nodes[0].lost().is_empty() && !nodes[1].lost().is_empty()
    });
    let what = server.tm.stats().last_misbehaved.unwrap().1;
    assert!(matches!(what, PeerMisbehaved::HeaderChecksum { .. }), "{what:?}");
    client.send(world.now(), b, b"whole");
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].has_message(b"whole"));
    assert!(!server.has_message(b"damaged"));
}

pub(super) fn bulk_dropped_by_a_rule_ends_at_its_deadline(kind: Kind) {
    let world = World::new(kind);
    let (mut client, mut server, peer) = connected(&world);
    let source = client.tm.expose_source(&[client.pattern(8192, 1)]);
    let sink = client.tm.expose_sink(vec![client.blank(4096), client.blank(4096)]);
    announce(&world, &mut client, &mut server, &[&source, &sink]);
    let try_both = |client: &mut Node, server: &mut Node| {
        let (now, deadline) = (world.now(), world.now() + Duration::from_millis(300));
        let pull = server.tm.start_pull(now, peer, &source, deadline);
        let parts = vec![server.pattern(4096, 2), server.pattern(4096, 3)];
        let push = server.tm.start_push(now, peer, &sink, 0, parts, deadline);
        world.drive(&mut [client, server], |nodes| {
            nodes[1].done(pull).is_some() && nodes[1].done(push).is_some()
        });
        [server.done(pull).unwrap(), server.done(push).unwrap()]
    };
    // The pull's request, and the first piece of the push: the last one is handed over and must not count.
    add(&mut server, "drop kind=bulk count=2");
    for result in try_both(&mut client, &mut server) {
        assert_eq!(result.unwrap_err(), NetError::RemoteTimeout);
    }
    let [pulled, pushed] = try_both(&mut client, &mut server);
    assert_pattern(&pulled.unwrap()[0], 8192, 1);
    pushed.unwrap();
    // Pieces that streams still carry arrive before what is sent after them.
    let after = server.message(b"after");
    server.tm.try_send(world.now(), peer, after).unwrap();
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[0].has_message(b"after"));
    let filled = reclaim(&world, &mut client, &mut server, sink.cookie(), Retract::Answered);
    assert_pattern(&filled[0], 4096, 2);
    assert_pattern(&filled[1], 4096, 3);
}
