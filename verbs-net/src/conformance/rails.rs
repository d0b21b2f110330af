//! Several rails between two machines, over every backend: found by discovery, shared, lost and made again.

use std::collections::BTreeSet;
use std::time::Duration;

use base::{Endpoint, Nid};

use super::pair::{Kind, Node, TOKEN, World, announce, assert_pattern};
use crate::limits::CREDIT_WINDOW;
use crate::{ErrorClass, Event, HEALTH_MAX, PeerId, Refused, Retract, SendOptions};

/// A client and a server with two nids each, and both rails up.
struct Pair {
    world: World,
    client: Node,
    server: Node,
    b: Endpoint,
    second: Nid,
}

impl Pair {
    fn new(world: World) -> Pair {
        let (a, b) = (world.endpoint(), world.endpoint());
        let second = world.second_nid(b);
        let mut client = world.try_start_on(a, 11, TOKEN, true, &[world.second_nid(a)]).unwrap();
        let mut server = world.try_start_on(b, 22, TOKEN, true, &[second]).unwrap();
        client.send(world.now(), b, b"hi");
        world.drive(&mut [&mut client, &mut server], |nodes| {
            nodes[1].has_message(b"hi") && up(nodes[0], b) == 2 && up(nodes[1], a) == 2
        });
        server.events.clear();
        Pair { world, client, server, b, second }
    }

    fn drive(&mut self, done: impl FnMut(&mut [&mut Node]) -> bool) {
        self.world.drive(&mut [&mut self.client, &mut self.server], done);
    }

    fn fault(&mut self, rule: &str) {
        self.client.tm.fault_add(rule.parse().unwrap()).unwrap();
    }

    fn send(&mut self, text: &[u8]) {
        self.client.send(self.world.now(), self.b, text);
    }
}

fn up(node: &Node, peer: Endpoint) -> usize {
    node.tm.rails(peer).iter().filter(|(_, is_up, ..)| *is_up).count()
}

/// One RDMA address is not two.
fn has_rails(kind: Kind) -> bool {
    !kind.is_rdma()
}

fn numbers(node: &Node) -> Vec<u32> {
    let texts = node.messages().into_iter();
    texts.map(|text| u32::from_le_bytes(*text.last_chunk::<4>().unwrap())).collect()
}

pub(super) fn two_rails_share_the_load(kind: Kind) {
    const COUNT: u32 = 400;
    if !has_rails(kind) {
        return;
    }
    let mut pair = Pair::new(World::new(kind));
    let (b, second) = (pair.b, pair.second);
    assert_eq!(pair.client.ups().len(), 1, "one peer");
    assert_eq!(pair.server.tm.stats().rails_up, 1);
    // Counts what goes over each, and does (next to) nothing.
    for nid in [b.nid, second] {
        pair.fault(&format!("duplicate peer={nid} kind=message one-in=4294967295"));
    }
    let mut next = 0u32;
    let now = |pair: &World| pair.now();
    let (world, client, server) = (&pair.world, &mut pair.client, &mut pair.server);
    world.drive(&mut [client, server], |nodes| {
        while next < COUNT {
            let message = nodes[0].message(&next.to_le_bytes());
            match nodes[0].tm.try_send(now(world), PeerId::any(b), message) {
                Ok(()) => next += 1,
                Err((Refused::NoCredit, _)) => break,
                Err((refused, _)) => panic!("{refused}"),
            }
        }
        nodes[1].messages().len() >= COUNT as usize
    });
    let got = numbers(&pair.server);
    assert_eq!(got.len(), COUNT as usize);
    assert_eq!(got.into_iter().collect::<BTreeSet<_>>(), (0..COUNT).collect());
    for status in pair.client.tm.fault_list() {
        assert!(status.matched >= u64::from(COUNT) / 4, "{status:?}");
    }
    pair.client.tm.fault_clear(None);
    // The last credits come home.
    pair.world.pass(&mut [&mut pair.client, &mut pair.server], Duration::from_millis(5));
    // Bulk, each request on one rail: requests, pulls, pushes and replies of many at once.
    let a = pair.client.endpoint();
    let peer = PeerId { endpoint: a, epoch: 11 };
    for seed in 0..6 {
        let source = pair.client.tm.expose_source(&[pair.client.pattern(65536, seed)]);
        let sink = pair.client.tm.expose_sink(vec![pair.client.blank(65536)]);
        announce(&pair.world, &mut pair.client, &mut pair.server, &[&source, &sink]);
        let (now, deadline) = (pair.world.now(), pair.world.now() + Duration::from_secs(10));
        let pull = pair.server.tm.start_pull(now, peer, &source, deadline);
        let part = pair.server.pattern(65536, seed + 100);
        let push = pair.server.tm.start_push(now, peer, &sink, 0, vec![part], deadline);
        assert!(pair.server.tm.are_pushes_intact(peer, sink.cookie()));
        let reply = pair.server.message(&[b'r', seed]);
        let options = SendOptions { follows: Some(sink.cookie()), ..SendOptions::on(crate::Lane::Reply) };
        pair.server.tm.try_send_with(now, peer, options, reply).unwrap();
        pair.drive(|nodes| nodes[0].has_message(&[b'r', seed]));
        pair.drive(|nodes| nodes[1].done(pull).is_some() && nodes[1].done(push).is_some());
        assert_pattern(&pair.server.done(pull).unwrap().unwrap()[0], 65536, seed);
        let Pair { world, client, server, .. } = &mut pair;
        let filled = super::reclaim(world, client, server, sink.cookie(), Retract::Answered);
        assert_pattern(&filled[0], 65536, seed + 100);
    }
}

/// Each class of error at the boundary: sent again or not, and whose health it costs.
pub(super) fn messages_are_sent_again_by_their_class(kind: Kind) {
    if !has_rails(kind) {
        return;
    }
    for class in ErrorClass::all() {
        let mut pair = Pair::new(World::new(kind));
        let b = pair.b;
        pair.fault(&format!("fail kind=message count=1 error={class}"));
        pair.send(b"first");
        pair.send(b"last");
        pair.drive(|nodes| nodes[1].has_message(b"last"));
        pair.world.settle(&mut [&mut pair.client, &mut pair.server]);
        let arrived = pair.server.messages().iter().filter(|text| **text == b"first").count();
        let stats = pair.client.tm.stats();
        let wanted = if class.may_resend() { (1, 1, 0) } else { (0, 0, 1) };
        assert_eq!((arrived, stats.resends, stats.undelivered), wanted, "{class}");
        let rails = pair.client.tm.rails(b);
        let is_hurt = |health: &u16| *health < HEALTH_MAX;
        assert_eq!(rails.iter().any(|(_, _, ours, _)| is_hurt(ours)), class.blames_local(), "{class}");
        assert_eq!(rails.iter().any(|(.., theirs)| is_hurt(theirs)), class.blames_remote(), "{class}");
        assert!(pair.client.lost().is_empty() && pair.server.lost().is_empty());
        if !kind.is_real() {
            // Pings bring it back, and then there is silence.
            pair.world.pass(&mut [&mut pair.client, &mut pair.server], Duration::from_secs(60));
            let all = pair.client.tm.rails(b).into_iter();
            assert!(all.into_iter().all(|rail| (rail.2, rail.3) == (HEALTH_MAX, HEALTH_MAX)), "{class}");
            assert_eq!(pair.client.tm.next_deadline(), None);
        }
    }
}

pub(super) fn a_single_rail_resends_nothing(kind: Kind) {
    let world = World::new(kind);
    let (mut client, mut server, _) = super::connected(&world);
    let b = server.endpoint();
    client.tm.fault_add("fail kind=message count=1 error=local-dropped".parse().unwrap()).unwrap();
    client.send(world.now(), b, b"first");
    client.send(world.now(), b, b"last");
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].has_message(b"last"));
    assert!(!server.has_message(b"first"));
    let stats = client.tm.stats();
    assert_eq!((stats.resends, stats.undelivered), (0, 1));
    assert!(client.tm.rails(b).iter().all(|rail| (rail.2, rail.3) == (HEALTH_MAX, HEALTH_MAX)));
}

/// Messages run all the time, and one rail is cut among them: its peer finds a damaged frame and ends it, and it cannot be made
/// again. Nothing arrives twice; only what had left over that rail may be missing, and `RailLost` has said so.
pub(super) fn a_rail_cut_in_mid_transfer_loses_and_doubles_nothing_that_had_not_left(kind: Kind) {
    const COUNT: u32 = 2000;
    if !has_rails(kind) {
        return;
    }
    let mut pair = Pair::new(World::new(kind));
    let (b, second) = (pair.b, pair.second);
    let (world, client, server) = (&pair.world, &mut pair.client, &mut pair.server);
    let (mut next, mut lost_at) = (0u32, None);
    world.drive(&mut [client, server], |nodes| {
        if next > COUNT / 2 && nodes[0].tm.fault_list().is_empty() {
            for rule in ["corrupt kind=message count=1", "drop kind=control"] {
                nodes[0].tm.fault_add(format!("{rule} peer={second}").parse().unwrap()).unwrap();
            }
        }
        let is_lost = nodes[0].count(|event| matches!(event, Event::RailLost { .. })) == 1;
        if is_lost && lost_at.is_none() {
            lost_at = Some(next);
        }
        // Until the cut is known there is always more.
        while next < COUNT || (lost_at.is_none() && next < 50 * COUNT) {
            let message = nodes[0].message(&next.to_le_bytes());
            match nodes[0].tm.try_send(world.now(), PeerId::any(b), message) {
                Ok(()) => next += 1,
                Err((Refused::NoCredit, _)) => break,
                Err((refused, _)) => panic!("{refused}"),
            }
        }
        next >= COUNT && lost_at.is_some() && numbers(nodes[1]).contains(&(next - 1))
    });
    world.settle(&mut [&mut pair.client, &mut pair.server]);
    assert!(pair.client.lost().is_empty() && pair.server.lost().is_empty(), "the peer was never lost");
    assert_eq!(up(&pair.client, b), 1);
    let got = numbers(&pair.server);
    let unique: BTreeSet<u32> = got.iter().copied().collect();
    assert_eq!(unique.len(), got.len(), "doubled");
    let missing: Vec<u32> = (0..next).filter(|number| !unique.contains(number)).collect();
    let lost_at = lost_at.unwrap();
    assert!(!missing.is_empty(), "the damaged one at least");
    assert!(missing.len() <= CREDIT_WINDOW as usize, "{missing:?}");
    assert!(missing.iter().all(|number| *number < lost_at), "{missing:?} of {lost_at}");
    // The way back: the rail is made again, and shares the load.
    pair.client.tm.fault_clear(None);
    pair.drive(|nodes| up(nodes[0], b) == 2);
}

/// Network credits: no more than so many messages of one interface are under way, over all its peers; replies have a part of their own, and
/// who was refused hears of room.
#[test]
fn an_interface_has_credits_of_its_own() {
    use crate::limits::{NET_CREDITS, NET_CREDITS_RESERVE};
    let mut world = World::new(Kind::Lo);
    world.arena_bytes = 4 << 20;
    let mut hub = world.start(world.endpoint(), 1);
    let mut peers: Vec<Node> = (0..140).map(|index| world.start(world.endpoint(), 100 + index)).collect();
    for peer in &peers {
        hub.send(world.now(), peer.endpoint(), b"hi");
    }
    let mut all: Vec<&mut Node> = std::iter::once(&mut hub).chain(peers.iter_mut()).collect();
    world.settle(&mut all);
    let endpoints: Vec<Endpoint> = all[1..].iter().map(|node| node.endpoint()).collect();
    assert!(all[1..].iter().all(|node| node.has_message(b"hi")));
    all[0].events.clear();
    let text = all[0].message(b"request");
    let (mut sent, mut refused) = (0, 0);
    for _ in 0..23 {
        for to in &endpoints {
            match all[0].tm.try_send(world.now(), PeerId::any(*to), text.clone()) {
                Ok(()) => sent += 1,
                Err((Refused::NoCredit, _)) => refused += 1,
                Err((other, _)) => panic!("{other}"),
            }
        }
    }
    // The first message to each is under way still, as its credit returns with half a window; it counts for nothing.
    assert_eq!(sent, NET_CREDITS - NET_CREDITS_RESERVE);
    assert!(refused > 0);
    let reply =
        all[0].tm.try_send_on(world.now(), PeerId::any(endpoints[0]), crate::Lane::Reply, text.clone());
    assert!(reply.is_ok(), "replies have a reserve");
    world.drive(&mut all, |nodes| nodes[0].count(|event| matches!(event, Event::Writable(_))) > 0);
    world.settle(&mut all);
    let arrived: usize = all[1..].iter().map(|node| node.messages().len()).sum();
    assert_eq!(arrived as u32, sent + 140 + 1);
}
