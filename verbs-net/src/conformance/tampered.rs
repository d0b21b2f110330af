//! Somebody changes what RDMA carries: where everything is encrypted it is refused by name, and nothing of it is handed on.
//!
//! The hand on the wire is the stand-in's (`hw-ci/standin/tap.c`); it moves once in a process, so each test runs in one of its own
//! (`tests/tests/rdma/tampered.rs`) and is ignored elsewhere.

use std::time::Duration;

use super::pair::{Kind, Node, World, announce, assert_pattern, connected, reclaim, travel};
use crate::security::SealedOperation;
use crate::{BulkDescriptor, NetError, PeerId, PeerMisbehaved, Retract, Retraction, TransferId};

/// Bytes of a segment: nothing else has as many.
const BYTES: usize = 12_288;

fn pull(
    world: &World,
    client: &mut Node,
    server: &mut Node,
    peer: PeerId,
    from: &BulkDescriptor,
) -> TransferId {
    let deadline = world.now() + Duration::from_secs(10);
    let id = server.tm.start_pull(world.now(), peer, &travel(from), deadline);
    world.drive(&mut [client, server], |nodes| nodes[1].done(id).is_some());
    id
}

fn broken(operation: SealedOperation, name: u64, segment_index: u8) -> NetError {
    NetError::Protocol(PeerMisbehaved::BrokenSeal { operation, name, segment_index })
}

/// The connection has ended for that reason, and whose it was is said. Then all is well again on the next one.
fn refused_by(world: &World, client: &mut Node, server: &mut Node, is_client: bool, error: &NetError) {
    let blamed = if is_client { server.endpoint() } else { client.endpoint() };
    world.drive(&mut [client, server], |nodes| !nodes[0].lost().is_empty() && !nodes[1].lost().is_empty());
    let judge = if is_client { &*client } else { &*server };
    let NetError::Protocol(what) = error else { panic!("{error}") };
    assert_eq!(judge.tm.stats().last_misbehaved, Some((Some(blamed), *what)));
    assert_eq!(judge.tm.stats().misbehaved, 1);
    let lost = judge.lost();
    assert!(lost.iter().any(|(peer, found)| peer.endpoint == blamed && found == error), "{lost:?}");
    client.send(world.now(), server.endpoint(), b"after it");
    world.drive(&mut [client, server], |nodes| nodes[1].has_message(b"after it"));
}

/// The second of two segments is not what was sealed for it.
fn second_pulled_is_refused() {
    let world = World::new(Kind::VerbsSealed);
    let (mut client, mut server, peer) = connected(&world);
    let parts = [client.pattern(BYTES - 64, 1), client.pattern(BYTES, 2)];
    let source = client.tm.expose_source(&parts);
    announce(&world, &mut client, &mut server, &[&source]);
    let id = pull(&world, &mut client, &mut server, peer, &source);
    let error = broken(SealedOperation::Pull, source.cookie().0, 1);
    assert_eq!(server.error_of(id), error);
    refused_by(&world, &mut client, &mut server, false, &error);
    // The same source, told of again, is whole.
    announce(&world, &mut client, &mut server, &[&source]);
    let id = pull(&world, &mut client, &mut server, peer, &source);
    let pulled = server.done(id).unwrap().unwrap();
    assert_pattern(&pulled[0], BYTES - 64, 1);
    assert_pattern(&pulled[1], BYTES, 2);
    assert_pattern(&parts[1], BYTES, 2);
}

#[test]
#[ignore = "needs the stand-in: tamper=read:flip:12288"]
fn a_flipped_bit_of_a_pull() {
    second_pulled_is_refused();
}

#[test]
#[ignore = "needs the stand-in: tamper=read:cut:12288"]
fn a_pull_cut_short() {
    second_pulled_is_refused();
}

#[test]
#[ignore = "needs the stand-in: tamper=read:splice:12288"]
fn a_segment_of_the_same_pull_in_the_place_of_another() {
    let world = World::new(Kind::VerbsSealed);
    let (mut client, mut server, peer) = connected(&world);
    let source = client.tm.expose_source(&[client.pattern(BYTES, 1), client.pattern(BYTES, 2)]);
    announce(&world, &mut client, &mut server, &[&source]);
    let id = pull(&world, &mut client, &mut server, peer, &source);
    let error = broken(SealedOperation::Pull, source.cookie().0, 1);
    assert_eq!(server.error_of(id), error);
    refused_by(&world, &mut client, &mut server, false, &error);
}

#[test]
#[ignore = "needs the stand-in: tamper=read:splice:12288"]
fn a_pull_of_before_once_more() {
    let world = World::new(Kind::VerbsSealed);
    let (mut client, mut server, peer) = connected(&world);
    let part = client.pattern(BYTES, 1);
    let sources = [0, 1].map(|_| client.tm.expose_source(std::slice::from_ref(&part)));
    announce(&world, &mut client, &mut server, &[&sources[0], &sources[1]]);
    let first = pull(&world, &mut client, &mut server, peer, &sources[0]);
    assert_pattern(&server.done(first).unwrap().unwrap()[0], BYTES, 1);
    let second = pull(&world, &mut client, &mut server, peer, &sources[1]);
    let error = broken(SealedOperation::Pull, sources[1].cookie().0, 0);
    assert_eq!(server.error_of(second), error, "though the plain bytes are the same");
    refused_by(&world, &mut client, &mut server, false, &error);
}

/// The last segment that was pushed is not what was sealed for it.
fn pushed_is_refused(counts: &[usize]) {
    let world = World::new(Kind::VerbsSealed);
    let (mut client, mut server, peer) = connected(&world);
    let deadline = world.now() + Duration::from_secs(10);
    for (round, count) in counts.iter().enumerate() {
        let sinks = (0..*count).map(|_| client.blank(BYTES)).collect();
        let sink = client.tm.expose_sink(sinks);
        announce(&world, &mut client, &mut server, &[&sink]);
        let parts = (0..*count).map(|index| server.pattern(BYTES, 3 + index as u8)).collect();
        let id = server.tm.start_push(world.now(), peer, &travel(&sink), 0, parts, deadline);
        world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].done(id).is_some());
        assert!(server.done(id).unwrap().is_ok(), "the server has written what it had to");
        client.send(world.now(), server.endpoint(), b"take it back");
        let messages = server.messages().len();
        world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].messages().len() > messages);
        if round + 1 < counts.len() {
            let parts = reclaim(&world, &mut client, &mut server, sink.cookie(), Retract::Answered);
            parts.iter().enumerate().for_each(|(index, part)| assert_pattern(part, BYTES, 3 + index as u8));
            continue;
        }
        let error = broken(SealedOperation::Push, sink.cookie().0, (count - 1) as u8);
        let found = match client.tm.retract(world.now(), sink.cookie(), Retract::Answered) {
            Retraction::Broken(error) => error,
            Retraction::Pending => {
                let is_back = |node: &Node| node.retraction_error(sink.cookie());
                world.drive(&mut [&mut client, &mut server], |nodes| is_back(nodes[0]).is_some());
                is_back(&client).unwrap()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(found, error);
        assert!(found.to_string().contains("the seal is broken"), "{found}");
        refused_by(&world, &mut client, &mut server, true, &error);
    }
}

#[test]
#[ignore = "needs the stand-in: tamper=write:flip:12288"]
fn a_flipped_bit_of_a_push() {
    pushed_is_refused(&[1]);
}

#[test]
#[ignore = "needs the stand-in: tamper=write:cut:12288"]
fn a_push_cut_short() {
    pushed_is_refused(&[1]);
}

#[test]
#[ignore = "needs the stand-in: tamper=write:splice:12288"]
fn a_segment_of_the_same_push_in_the_place_of_another() {
    pushed_is_refused(&[2]);
}

#[test]
#[ignore = "needs the stand-in: tamper=write:splice:12288"]
fn a_push_of_before_once_more() {
    pushed_is_refused(&[1, 1]);
}

/// A message of 1000 bytes: 64 in front of it, 16 behind.
fn message_is_refused(count: usize) {
    let world = World::new(Kind::VerbsSealed);
    let (mut client, mut server, _) = connected(&world);
    for round in 0..count {
        let text = client.pattern(1000, 5).to_vec();
        client.send(world.now(), server.endpoint(), &text);
        let is_last = round + 1 == count;
        world.drive(&mut [&mut client, &mut server], |nodes| {
            if is_last { !nodes[1].lost().is_empty() } else { nodes[1].messages().len() == 2 + round }
        });
    }
    assert_eq!(server.messages().len(), count, "the first word, and those that were whole");
    let error = broken(SealedOperation::Message, 0, 0);
    refused_by(&world, &mut client, &mut server, false, &error);
}

#[test]
#[ignore = "needs the stand-in: tamper=send:flip:1080"]
fn a_flipped_bit_of_a_message() {
    message_is_refused(1);
}

#[test]
#[ignore = "needs the stand-in: tamper=send:cut:1080"]
fn a_message_cut_short() {
    message_is_refused(1);
}

#[test]
#[ignore = "needs the stand-in: tamper=send:splice:1080"]
fn a_message_of_before_once_more() {
    message_is_refused(2);
}

#[test]
#[ignore = "needs the stand-in: tamper=read:flip:20000"]
fn a_flipped_bit_of_a_long_message() {
    let world = World::new(Kind::VerbsSealed);
    let (mut client, mut server, _) = connected(&world);
    let text = client.pattern(20_000, 6).to_vec();
    client.send(world.now(), server.endpoint(), &text);
    world.drive(&mut [&mut client, &mut server], |nodes| !nodes[1].lost().is_empty());
    assert_eq!(server.messages().len(), 1);
    let error = broken(SealedOperation::LongMessage, 1, 0);
    refused_by(&world, &mut client, &mut server, false, &error);
}

/// The hand does move: without encryption nobody at this level notices.
#[test]
#[ignore = "needs the stand-in: tamper=read:flip:12288"]
fn without_encryption_nobody_notices() {
    let world = World::new(Kind::VerbsSecured);
    let (mut client, mut server, peer) = connected(&world);
    let source = client.tm.expose_source(&[client.pattern(BYTES, 1)]);
    announce(&world, &mut client, &mut server, &[&source]);
    let id = pull(&world, &mut client, &mut server, peer, &source);
    let pulled = server.done(id).unwrap().unwrap();
    let plain = client.pattern(BYTES, 1);
    let wrong: Vec<usize> = (0..BYTES).filter(|at| pulled[0][*at] != plain[*at]).collect();
    assert_eq!(wrong, [BYTES / 2]);
    assert!(server.lost().is_empty());
}
