//! Strangers and broken peers on a real socket: each costs its own connection, is counted, and hurts nobody else.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use base::Endpoint;

use super::pair::{Kind, Node, TOKEN, World, connected};
use crate::frame::{Frame, FrameBody, HEADER_BYTES, PutTarget};
use crate::hello::{HELLO_BYTES, Hello};
use crate::limits::{CREDIT_WINDOW, HALF_OPEN_MAX};
use crate::{NetError, PeerId, PeerMisbehaved, RefuseReason, Retract};

/// A raw client with the right token, to misbehave with.
struct Raw {
    stream: TcpStream,
    /// The server's epoch with its nonce for this connection.
    stamp: u64,
}

pub(super) fn frame(to_epoch: u64, payload_bytes: u32, body: FrameBody) -> [u8; HEADER_BYTES] {
    Frame { version: 1, credits: 0, to_epoch, payload_bytes, body }.encode()
}

pub(super) fn put(sequence: u32) -> FrameBody {
    FrameBody::Put { sequence, extension_bytes: 0, target: PutTarget::message(0, 0) }
}

pub(super) fn hello_of(endpoint: Endpoint) -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        window: 32,
        epoch: 77,
        config_version: 0,
        endpoint,
        token: TOKEN.into(),
        features: crate::Features::empty(),
        rail: endpoint.nid,
        nonce: 0,
    }
}

pub(super) fn hello_bytes(hello: &Hello) -> Vec<u8> {
    let mut bytes = frame(0, HELLO_BYTES as u32, FrameBody::Hello).to_vec();
    bytes.extend_from_slice(&hello.encode());
    bytes
}

fn connect(server: &Node) -> TcpStream {
    let stream = TcpStream::connect(server.endpoint().socket_address().unwrap()).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream
}

impl Raw {
    fn connect(world: &World, server: &mut Node) -> Raw {
        let mut stream = connect(server);
        let client = crate::dynamic_endpoint(server.endpoint().nid, 1, 1);
        stream.write_all(&hello_bytes(&hello_of(client))).unwrap();
        let before = server.ups().len();
        world.drive(&mut [server], |nodes| nodes[0].ups().len() > before);
        let mut ack = [0; HEADER_BYTES + HELLO_BYTES];
        stream.read_exact(&mut ack).unwrap();
        let parsed = Frame::parse(ack.first_chunk().unwrap(), 1).unwrap();
        assert_eq!(parsed.body, FrameBody::HelloAck);
        let hello = Hello::parse(&ack[HEADER_BYTES..]).unwrap();
        assert_eq!(parsed.to_epoch, 77, "the answer is for our incarnation");
        Raw { stream, stamp: hello.epoch ^ hello.nonce }
    }

    fn say(&mut self, payload_bytes: u32, body: FrameBody) {
        self.stream.write_all(&frame(self.stamp, payload_bytes, body)).unwrap();
    }
}

/// What the server makes of a client that sends `bytes` after its hello.
fn verdict(bytes: impl FnOnce(&mut Raw)) -> PeerMisbehaved {
    let world = World::new(Kind::Tcp);
    let mut server = world.start(world.endpoint(), 22);
    let mut raw = Raw::connect(&world, &mut server);
    bytes(&mut raw);
    world.drive(&mut [&mut server], |nodes| !nodes[0].lost().is_empty());
    let Some((_, NetError::Protocol(what))) = server.lost().pop() else { panic!("{:?}", server.lost()) };
    assert_eq!(server.tm.stats().misbehaved, 1);
    assert_eq!(server.tm.stats().peers_connected, 0);
    what
}

#[test]
fn garbage_is_counted_and_closed_and_others_go_on() {
    let world = World::new(Kind::Tcp);
    let (mut client, mut server, _) = connected(&world);
    for (count, garbage) in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], b"CL\x07\x01", b"no"].iter().enumerate()
    {
        let mut stream = connect(&server);
        stream.write_all(garbage).unwrap();
        world.drive(&mut [&mut server], |nodes| nodes[0].tm.stats().misbehaved as usize == count + 1);
        // Closed: the end of the stream or a reset, never a hang.
        assert!(matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_)));
    }
    assert_eq!(server.tm.stats().last_misbehaved.unwrap().0, None, "a stranger has no name");
    client.send(world.now(), server.endpoint(), b"still fine");
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].has_message(b"still fine"));
    assert_eq!(server.lost(), []);
}

#[test]
fn silent_strangers_are_dropped_and_bounded() {
    let mut world = World::new(Kind::Tcp);
    world.times.hello_ms_max = 300;
    let mut server = world.start(world.endpoint(), 22);
    let silent: Vec<TcpStream> = (0..HALF_OPEN_MAX + 5).map(|_| connect(&server)).collect();
    world.drive(&mut [&mut server], |nodes| nodes[0].tm.stats().accepts as usize == silent.len());
    assert_eq!(server.tm.stats().turned_away, 5);
    world.drive(&mut [&mut server], |nodes| nodes[0].tm.stats().hello_timeouts as usize == HALF_OPEN_MAX);
    assert_eq!(server.tm.next_deadline(), None);
    Raw::connect(&world, &mut server);
}

#[test]
fn a_hello_in_pieces_is_a_hello() {
    let world = World::new(Kind::Tcp);
    let mut server = world.start(world.endpoint(), 22);
    let mut stream = connect(&server);
    stream.set_nodelay(true).unwrap();
    let client = crate::dynamic_endpoint(server.endpoint().nid, 1, 1);
    for piece in hello_bytes(&hello_of(client)).chunks(7) {
        stream.write_all(piece).unwrap();
        world.settle(&mut [&mut server]);
    }
    world.drive(&mut [&mut server], |nodes| nodes[0].ups().len() == 1);
}

#[test]
fn bad_hellos_are_refused_with_a_reason() {
    let world = World::new(Kind::Tcp);
    let mut server = world.start(world.endpoint(), 22);
    let client = crate::dynamic_endpoint(server.endpoint().nid, 1, 1);
    let good = hello_of(client);
    let stale = {
        let mut bytes = frame(21, HELLO_BYTES as u32, FrameBody::Hello).to_vec();
        bytes.extend_from_slice(&good.encode());
        bytes
    };
    let cases = [
        (hello_bytes(&Hello { token: [1; 32].into(), ..good.clone() }), RefuseReason::Token),
        (hello_bytes(&Hello { version_min: 2, version_max: 3, ..good.clone() }), RefuseReason::Version),
        (hello_bytes(&hello_of(server.endpoint())), RefuseReason::WrongEndpoint),
        (stale, RefuseReason::StaleEpoch),
    ];
    for (count, (bytes, want)) in cases.iter().enumerate() {
        let mut stream = connect(&server);
        stream.write_all(bytes).unwrap();
        world.drive(&mut [&mut server], |nodes| nodes[0].tm.stats().refused_by_us as usize == count + 1);
        let mut reject = [0; HEADER_BYTES];
        stream.read_exact(&mut reject).unwrap();
        let FrameBody::Reject { reason, epoch } = Frame::parse(&reject, 1).unwrap().body else { panic!() };
        assert_eq!((reason, epoch), (*want, 22));
        assert_eq!(stream.read(&mut reject).unwrap(), 0, "then it is closed");
    }
    assert_eq!(server.ups(), []);
}

/// A process that was replaced and did not notice, or a recording of its hello.
#[test]
fn a_replaced_incarnation_does_not_come_back() {
    let world = World::new(Kind::Tcp);
    let mut server = world.start(world.endpoint(), 22);
    let reserved = world.endpoint();
    let hello = |epoch| Hello { epoch, ..hello_of(reserved) };
    let greet = |server: &mut Node, epoch| {
        let mut stream = connect(server);
        stream.write_all(&hello_bytes(&hello(epoch))).unwrap();
        stream
    };
    let _old = greet(&mut server, 77);
    world.drive(&mut [&mut server], |nodes| nodes[0].ups().len() == 1);
    let _new = greet(&mut server, 78);
    world.drive(&mut [&mut server], |nodes| nodes[0].ups().len() == 2);
    assert!(matches!(server.lost().pop(), Some((PeerId { epoch: 77, .. }, NetError::Stale))));
    let mut back = greet(&mut server, 77);
    world.drive(&mut [&mut server], |nodes| nodes[0].tm.stats().refused_by_us == 1);
    let mut reject = [0; HEADER_BYTES];
    back.read_exact(&mut reject).unwrap();
    let body = Frame::parse(&reject, 1).unwrap().body;
    assert_eq!(body, FrameBody::Reject { reason: RefuseReason::StaleEpoch, epoch: 22 });
    assert_eq!((server.ups().len(), server.lost().len()), (2, 1), "the new one stays");
}

/// All bytes of a connection, sent once more over another one: the hello gets in with its token, and nothing behind it does.
#[test]
fn a_recorded_connection_is_refused_by_its_stamp() {
    let world = World::new(Kind::Tcp);
    let mut server = world.start(world.endpoint(), 22);
    let mut first = Raw::connect(&world, &mut server);
    let mut message = frame(first.stamp, 6, put(1)).to_vec();
    message.extend_from_slice(b"secret");
    first.stream.write_all(&message).unwrap();
    world.drive(&mut [&mut server], |nodes| nodes[0].has_message(b"secret"));
    let mut second = Raw::connect(&world, &mut server);
    second.stream.write_all(&message).unwrap();
    world.drive(&mut [&mut server], |nodes| nodes[0].tm.stats().misbehaved == 1);
    let what = server.tm.stats().last_misbehaved.unwrap().1;
    assert!(
        matches!(what, PeerMisbehaved::WrongEpoch { .. }) && what.to_string().contains("replayed"),
        "{what}"
    );
    assert_eq!(server.messages().len(), 1);
}

#[test]
fn each_breach_of_protocol_has_its_name() {
    let end = |raw: &mut Raw, body| raw.say(0, body);
    assert!(matches!(verdict(|raw| end(raw, FrameBody::HelloAck)), PeerMisbehaved::PayloadLength { .. }));
    assert!(matches!(
        verdict(|raw| raw.stream.write_all(&[0; HEADER_BYTES]).unwrap()),
        PeerMisbehaved::BadMagic { got: 0 }
    ));
    assert!(matches!(
        verdict(|raw| {
            raw.stamp = raw.stamp.wrapping_add(1);
            end(raw, FrameBody::Noop);
        }),
        PeerMisbehaved::WrongEpoch { got, want } if got == want.wrapping_add(1)
    ));
    assert!(matches!(
        verdict(|raw| {
            let mut bytes = frame(raw.stamp, 0, FrameBody::Noop);
            bytes[40] ^= 1;
            raw.stream.write_all(&bytes).unwrap();
        }),
        PeerMisbehaved::HeaderChecksum { .. }
    ));
    assert!(matches!(
        verdict(|raw| {
            let credits = 5;
            let noop =
                Frame { version: 1, credits, to_epoch: raw.stamp, payload_bytes: 0, body: FrameBody::Noop };
            raw.stream.write_all(&noop.encode()).unwrap();
        }),
        PeerMisbehaved::CreditInvented { got: 5, sent: 0 }
    ));
    assert!(matches!(
        verdict(|raw| {
            raw.say(1, put(CREDIT_WINDOW + 1));
            raw.stream.write_all(b"x").unwrap();
        }),
        PeerMisbehaved::CreditOverrun { .. }
    ));
    assert!(matches!(
        verdict(|raw| {
            for _ in 0..2 {
                raw.say(1, put(1));
                raw.stream.write_all(b"x").unwrap();
            }
        }),
        PeerMisbehaved::Replayed { sequence: 1 }
    ));
    assert!(matches!(verdict(|raw| raw.say(u32::MAX, put(1))), PeerMisbehaved::PayloadLength { .. }));
}

#[test]
fn bulk_nobody_asked_for_is_thrown_away() {
    let world = World::new(Kind::Tcp);
    let mut server = world.start(world.endpoint(), 22);
    let mut raw = Raw::connect(&world, &mut server);
    raw.say(4096, FrameBody::PullData { transfer: 99, segment_index: 0, offset_bytes: 0 });
    raw.stream.write_all(&[9; 4096]).unwrap();
    let push = |raw: &mut Raw, cookie| {
        raw.say(
            4096,
            FrameBody::PushData {
                cookie,
                key: 1,
                transfer: 5,
                segment_index: 0,
                offset_bytes: 0,
                total_bytes: 4096,
                ack_wanted: false,
            },
        );
        raw.stream.write_all(&[9; 4096]).unwrap();
    };
    push(&mut raw, 0);
    push(&mut raw, u64::MAX);
    raw.say(1, put(1));
    raw.stream.write_all(b"x").unwrap();
    world.drive(&mut [&mut server], |nodes| nodes[0].has_message(b"x"));
    assert_eq!(server.tm.stats().bulk_bytes_late, 3 * 4096);
    assert_eq!(server.tm.stats().naks, 2);
}

/// Bytes of a push arrive while the sink is taken back: the rest is drained, the memory stays as it was given back.
#[test]
fn a_sink_retracted_in_the_middle_of_a_push_is_left_alone() {
    let world = World::new(Kind::Tcp);
    let mut server = world.start(world.endpoint(), 22);
    let mut raw = Raw::connect(&world, &mut server);
    let sink = server.tm.expose_sink(vec![server.blank(1 << 20)]);
    raw.say(
        1 << 20,
        FrameBody::PushData {
            cookie: sink.cookie.0,
            key: sink.key,
            transfer: 5,
            segment_index: 0,
            offset_bytes: 0,
            total_bytes: 1 << 20,
            ack_wanted: false,
        },
    );
    raw.stream.write_all(&[9; 10_000]).unwrap();
    let cookie = sink.cookie();
    world.drive(&mut [&mut server], |nodes| nodes[0].tm.peek_sink(cookie, 0)[9_999] == 9);
    let parts = server.tm.retract(world.now(), sink.cookie(), Retract::Answered).done().unwrap();
    let got = parts[0].iter().filter(|byte| **byte == 9).count();
    assert_eq!(got, 10_000);
    // Given back and changed by its owner: nothing of the peer may show up in it.
    let rest = vec![8; (1 << 20) - 10_000];
    let writer = {
        let mut stream = raw.stream.try_clone().unwrap();
        std::thread::spawn(move || stream.write_all(&rest).unwrap())
    };
    world.drive(&mut [&mut server], |nodes| nodes[0].tm.stats().bulk_bytes_late == 1 << 20);
    writer.join().unwrap();
    assert_eq!(parts[0].iter().filter(|byte| **byte == 8).count(), 0);
    raw.say(1, put(1));
    raw.stream.write_all(b"x").unwrap();
    world.drive(&mut [&mut server], |nodes| nodes[0].has_message(b"x"));
}

/// A peer that asks for more than it takes: we stop reading from it, and hold a bounded number of frames.
#[test]
fn a_peer_that_never_takes_its_answers_is_held_back() {
    let world = World::new(Kind::Tcp);
    let mut server = world.start(world.endpoint(), 22);
    let mut raw = Raw::connect(&world, &mut server);
    let source = server.tm.expose_source(&[server.pattern(1 << 20, 1)]);
    raw.stream.set_nonblocking(true).unwrap();
    let mut asked = 0;
    let request = FrameBody::PullRequest {
        cookie: source.cookie.0,
        key: source.key,
        transfer: 1,
        segment_index: 0,
        segment_count: 1,
    };
    // Requests of 64 bytes until the server stops reading and both socket buffers are full.
    let bytes = frame(raw.stamp, 0, request);
    let many: Vec<u8> = bytes.iter().copied().cycle().take(64 * 1024).collect();
    let mut stuck = 0;
    while stuck < 50 {
        match raw.stream.write(&many) {
            Ok(count) => {
                asked += count / HEADER_BYTES;
                stuck = 0;
            }
            Err(_) => stuck += 1,
        }
        server.turn(world.now());
    }
    assert!(server.tm.stats().bulk_bytes_sent >> 20 < crate::limits::OUTBOX_FRAMES_MAX as u64 + 300);
    assert!(asked > 1000, "{asked} requests");
    // Others are served meanwhile.
    let mut other = world.start(world.endpoint(), 33);
    other.send(world.now(), server.endpoint(), b"hello");
    world.drive(&mut [&mut other, &mut server], |nodes| nodes[1].has_message(b"hello"));
}

/// The arena is full: pulls wait for a buffer, and messages go on, because they have memory of their own.
#[test]
fn a_full_arena_holds_pulls_back_and_not_messages() {
    let mut world = World::new(Kind::Tcp);
    world.arena_bytes = 4 << 20;
    let (mut client, mut server, peer) = connected(&world);
    let hoard: Vec<_> = (0..4).map(|_| server.blank(1 << 20)).collect();
    let source = client.tm.expose_source(&[client.pattern(1 << 20, 4)]);
    let deadline = world.now() + Duration::from_secs(30);
    let id = server.tm.start_pull(world.now(), peer, &source, deadline);
    client.send(world.now(), server.endpoint(), b"goes on");
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].has_message(b"goes on"));
    world.settle(&mut [&mut client, &mut server]);
    assert!(server.done(id).is_none());
    drop(hoard);
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].done(id).is_some());
    super::assert_pattern(&server.done(id).unwrap().unwrap()[0], 1 << 20, 4);
}

/// The layer above keeps every message it gets: the socket is left unread until it lets go of some, and none is lost.
#[test]
fn messages_wait_in_the_socket_when_their_memory_is_full() {
    const COUNT: u64 = crate::limits::MESSAGE_MEMORY_BYTES / (64 << 10) + 100;
    let world = World::new(Kind::Tcp);
    let (mut client, mut server, _) = connected(&world);
    let b = server.endpoint();
    let text = client.pattern(64 << 10, 1);
    let (mut sent, mut rounds_without_progress, mut before) = (0, 0, 0);
    let mut send = |client: &mut super::pair::Node| {
        while sent < COUNT && client.tm.try_send(world.now(), PeerId::any(b), text.clone()).is_ok() {
            sent += 1;
        }
    };
    while rounds_without_progress < 100 {
        send(&mut client);
        world.settle(&mut [&mut client, &mut server]);
        let got = server.tm.stats().messages_received;
        rounds_without_progress = if got == before { rounds_without_progress + 1 } else { 0 };
        before = got;
    }
    // One slab holds the small message from the start.
    let room = crate::limits::MESSAGE_MEMORY_BYTES / (64 << 10);
    assert!(before > room - 32 && before <= room + 1, "{before} messages in memory for {room}");
    server.events.clear();
    world.drive(&mut [&mut client, &mut server], |nodes| {
        send(nodes[0]);
        nodes[1].tm.stats().messages_received == COUNT + 1
    });
}

#[test]
fn a_pull_that_never_gets_memory_says_so() {
    let mut world = World::new(Kind::Tcp);
    world.arena_bytes = 1 << 20;
    let (mut client, mut server, peer) = connected(&world);
    server.events.clear();
    let source = client.tm.expose_source(&[client.pattern(4096, 4)]);
    let _hoard = server.blank(1 << 20);
    let deadline = world.now() + Duration::from_millis(50);
    let id = server.tm.start_pull(world.now(), peer, &source, deadline);
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].done(id).is_some());
    assert_eq!(server.error_of(id), NetError::Local(crate::LocalError::NoMemory));
}
