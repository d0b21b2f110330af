//! Peers that misbehave over RDMA: strangers at the door, garbage after the hello, keys that open nothing. Each costs its own connection, no more.
//!
//! The peer is made of the edge itself, without a transfer machine, so it can say anything.

use std::collections::VecDeque;

use runtime::{Arena, ArenaConfig};
use smallvec::SmallVec;
use verbs_sys::{
    Completed, CompletionError, ConnectionEvent, ConnectionManager, Library, Nic, NicConfig, QueuePairId,
    Remote, Without, Work,
};

use super::hostile::{frame, hello_bytes, hello_of, put};
use super::pair::{Kind, Node, World, connected, has_rdma};
use crate::frame::{Frame, FrameBody, HEADER_BYTES, MAGIC};
use crate::hello::{HELLO_BYTES, Hello};
use crate::limits::CREDIT_WINDOW;
use crate::{NetError, PeerMisbehaved, RefuseReason};

struct Raw {
    // Ends before the device.
    manager: ConnectionManager,
    nic: Nic,
    pair: QueuePairId,
    arena: Arena,
    done: VecDeque<Completed>,
    /// The server's epoch with its nonce for this connection.
    stamp: u64,
}

fn prefix() -> Vec<u8> {
    let mut bytes = vec![0; 56];
    bytes[..2].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[2..4].copy_from_slice(&[1, 1]);
    bytes[8..16].copy_from_slice(&77_u64.to_le_bytes());
    bytes
}

/// Turns the server until something is found.
fn wait<T>(world: &World, server: &mut Node, mut find: impl FnMut(&mut Node) -> Option<T>) -> T {
    let start = world.now();
    loop {
        server.turn(world.now());
        if let Some(found) = find(server) {
            return found;
        }
        assert!((world.now() - start).as_secs() < 20, "waited too long");
        std::thread::yield_now();
    }
}

impl Raw {
    /// A connection without a hello; `None`: turned away at the door.
    fn dial(world: &World, server: &mut Node, private_data: &[u8]) -> Option<Raw> {
        let library = Library::open().unwrap();
        let mut manager = library.connection_manager().unwrap();
        let to = server.endpoint().socket_address().unwrap();
        let arena = Arena::new(ArenaConfig { capacity_bytes: 16 << 20 }).unwrap();
        let config = NicConfig {
            device: manager.bind_device(*to.ip()).unwrap(),
            queue_pairs_max: 2,
            sends_per_queue_pair: 64,
            receives: 16,
            receives_without_shared: 16,
            inline_bytes: 0,
            windows_max: 4,
            without: Without::default(),
            arena: arena.clone(),
        };
        let mut nic = library.open_nic(config).unwrap();
        let pair = nic.create_queue_pair().unwrap();
        let id = manager.dial(*to.ip(), to).unwrap();
        let is_up = wait(world, server, |_| match manager.poll()? {
            ConnectionEvent::RouteResolved(_) => {
                manager.prepare(id, &mut nic, pair).unwrap();
                let buffers = (0..16).map(|_| arena.try_alloc(8192).unwrap()).collect();
                nic.post_receives(Some(pair), buffers).unwrap();
                manager.connect(id, &mut nic, pair, private_data).unwrap();
                None
            }
            ConnectionEvent::Accepted { .. } => {
                manager.finish(id, &mut nic, pair).unwrap();
                Some(true)
            }
            ConnectionEvent::Rejected { .. } => Some(false),
            other => panic!("{other:?}"),
        });
        is_up.then(|| Raw { manager, nic, pair, arena, done: VecDeque::new(), stamp: 0 })
    }

    /// A connection whose hello was taken.
    fn connect(world: &World, server: &mut Node) -> Raw {
        let mut raw = Raw::dial(world, server, &prefix()).unwrap();
        let client = crate::dynamic_endpoint(server.endpoint().nid, 1, 1);
        let before = server.ups().len();
        raw.send(&hello_bytes(&hello_of(client)));
        wait(world, server, |server| (server.ups().len() > before).then_some(()));
        let ack = raw.message(world, server);
        assert_eq!(Frame::parse(ack.first_chunk().unwrap(), 1).unwrap().body, FrameBody::HelloAck);
        let hello = Hello::parse(&ack[HEADER_BYTES..HEADER_BYTES + HELLO_BYTES]).unwrap();
        raw.stamp = hello.epoch ^ hello.nonce;
        raw
    }

    fn post(&mut self, work: Work) {
        let mut works = VecDeque::from([(1, work)]);
        self.nic.post(self.pair, &mut works).unwrap();
    }

    fn send(&mut self, bytes: &[u8]) {
        self.post(Work::Send { head: SmallVec::from_slice(bytes), payload: None, invalidates: None });
    }

    fn say(&mut self, payload_bytes: u32, body: FrameBody) {
        let bytes = frame(self.stamp, payload_bytes, body);
        self.send(&bytes);
    }

    fn message(&mut self, world: &World, server: &mut Node) -> Vec<u8> {
        wait(world, server, |_| {
            let _ = self.manager.poll();
            self.nic.poll(32, &mut self.done);
            let place = self.done.iter().position(|done| matches!(done, Completed::Received { .. }))?;
            match self.done.remove(place) {
                Some(Completed::Received { buffer, bytes, .. }) => Some(buffer[..bytes].to_vec()),
                _ => None,
            }
        })
    }
}

/// What the server makes of a client that misbehaves after its hello.
fn verdict(misbehave: impl FnOnce(&mut Raw)) -> PeerMisbehaved {
    let world = World::new(Kind::Verbs);
    let mut server = world.start(world.endpoint(), 22);
    let mut raw = Raw::connect(&world, &mut server);
    misbehave(&mut raw);
    wait(&world, &mut server, |server| (!server.lost().is_empty()).then_some(()));
    let Some((_, NetError::Protocol(what))) = server.lost().pop() else { panic!("{:?}", server.lost()) };
    assert_eq!((server.tm.stats().misbehaved, server.tm.stats().peers_connected), (1, 0));
    what
}

#[test]
fn verbs_strangers_are_turned_away_at_the_door() {
    if !has_rdma() {
        return;
    }
    let world = World::new(Kind::Verbs);
    let (mut client, mut server, _) = connected(&world);
    let mut wrong_magic = prefix();
    wrong_magic[0] ^= 1;
    let mut no_version = prefix();
    no_version[2] = 0;
    let mut versions_reversed = prefix();
    versions_reversed[2] = 9;
    let mut no_epoch = prefix();
    no_epoch[8] = 0;
    // Data that is cut short arrives padded with zeros, as rdma-cm pads: an epoch of 0.
    let cut_short = prefix()[..8].to_vec();
    let bad = [wrong_magic, no_version, versions_reversed, no_epoch, cut_short, Vec::new(), vec![0xff; 56]];
    for (count, bytes) in bad.iter().enumerate() {
        assert!(Raw::dial(&world, &mut server, bytes).is_none(), "{bytes:?}");
        assert_eq!(server.tm.stats().misbehaved as usize, count + 1);
    }
    client.send(world.now(), server.endpoint(), b"still fine");
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].has_message(b"still fine"));
    assert_eq!(server.lost(), []);
}

#[test]
fn verbs_bad_hellos_are_refused_with_a_reason() {
    if !has_rdma() {
        return;
    }
    let world = World::new(Kind::Verbs);
    let mut server = world.start(world.endpoint(), 22);
    let client = crate::dynamic_endpoint(server.endpoint().nid, 1, 1);
    let good = hello_of(client);
    let mut replayed = frame(21, HELLO_BYTES as u32, FrameBody::Hello).to_vec();
    replayed.extend_from_slice(&good.encode());
    let cases = [
        // Of another cluster.
        (hello_bytes(&Hello { token: [1; 32].into(), ..good.clone() }), RefuseReason::Token),
        (hello_bytes(&Hello { version_min: 2, version_max: 3, ..good.clone() }), RefuseReason::Version),
        (hello_bytes(&hello_of(server.endpoint())), RefuseReason::WrongEndpoint),
        // Said before, to another incarnation of this server.
        (replayed, RefuseReason::StaleEpoch),
    ];
    for (bytes, want) in cases {
        let mut raw = Raw::dial(&world, &mut server, &prefix()).unwrap();
        raw.send(&bytes);
        let reject = raw.message(&world, &mut server);
        let FrameBody::Reject { reason, epoch } =
            Frame::parse(reject.first_chunk().unwrap(), 1).unwrap().body
        else {
            panic!("{reject:?}")
        };
        assert_eq!((reason, epoch), (want, 22));
    }
    assert_eq!(server.ups(), []);
}

#[test]
fn verbs_each_breach_of_protocol_has_its_name() {
    if !has_rdma() {
        return;
    }
    assert!(matches!(verdict(|raw| raw.send(&[0; HEADER_BYTES])), PeerMisbehaved::BadMagic { got: 0 }));
    assert!(matches!(verdict(|raw| raw.send(b"short")), PeerMisbehaved::BadMagic { got: 0 }));
    assert!(matches!(
        verdict(|raw| {
            raw.stamp += 1;
            raw.say(0, FrameBody::Noop);
        }),
        PeerMisbehaved::WrongEpoch { got: 23, want: 22 }
    ));
    assert!(matches!(
        verdict(|raw| {
            let mut bytes = frame(raw.stamp, 0, FrameBody::Noop);
            bytes[40] ^= 1;
            raw.send(&bytes);
        }),
        PeerMisbehaved::HeaderChecksum { .. }
    ));
    assert!(matches!(
        verdict(|raw| {
            let noop = Frame {
                version: 1,
                credits: 5,
                to_epoch: raw.stamp,
                payload_bytes: 0,
                body: FrameBody::Noop,
            };
            raw.send(&noop.encode());
        }),
        PeerMisbehaved::CreditInvented { got: 5, sent: 0 }
    ));
    assert!(matches!(
        verdict(|raw| {
            let mut bytes = frame(raw.stamp, 1, put(CREDIT_WINDOW + 1)).to_vec();
            bytes.push(b'x');
            raw.send(&bytes);
        }),
        PeerMisbehaved::CreditOverrun { .. }
    ));
    // Fewer bytes than the header says, and more.
    for claimed in [0, 100] {
        assert!(matches!(
            verdict(|raw| {
                let mut bytes = frame(raw.stamp, claimed, put(1)).to_vec();
                bytes.push(b'x');
                raw.send(&bytes);
            }),
            PeerMisbehaved::PayloadLength { .. }
        ));
    }
    // A long message whose offer is none; bulk by frames, which hardware moves here.
    assert!(matches!(verdict(|raw| raw.say(32 << 10, put(1))), PeerMisbehaved::BadExtension { .. }));
    let pull = FrameBody::PullRequest { cookie: 1, key: 2, transfer: 3, segment_index: 0, segment_count: 1 };
    assert!(matches!(verdict(|raw| raw.say(0, pull)), PeerMisbehaved::Unexpected { .. }));
}

#[test]
fn verbs_keys_that_open_nothing_cost_only_who_tried_them() {
    if !has_rdma() {
        return;
    }
    let world = World::new(Kind::Verbs);
    let (mut client, mut server, _) = connected(&world);
    let secret = server.pattern(4096, 3);
    for key in [0, 1, 0x0010_0001, u32::MAX] {
        let mut raw = Raw::connect(&world, &mut server);
        let from = Remote { address: secret.as_ptr().addr() as u64, key };
        let into = raw.arena.try_alloc(4096).unwrap();
        raw.post(Work::Read { into, from });
        let result = wait(&world, &mut server, |_| {
            raw.nic.poll(32, &mut raw.done);
            raw.done.iter().find_map(|done| match done {
                Completed::Work { tag: 1, result: Err(error), .. } => Some(*error),
                _ => None,
            })
        });
        assert!(
            matches!(
                result,
                CompletionError::RemoteAccess | CompletionError::RemoteInvalid | CompletionError::Flushed
            ),
            "{result:?}"
        );
        drop(raw);
        client.send(world.now(), server.endpoint(), b"still fine");
        world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].has_message(b"still fine"));
        server.events.retain(|event| !matches!(event, crate::Event::Message { .. }));
    }
}
