//! Portals over every backend: PUT, GET, ACK and REPLY with their events, lazy portals, ping.

use std::time::Duration;

use base::Instant;
use runtime::SharedBuffer;

use super::pair::{Kind, Node, World, assert_pattern, connected};
use crate::{
    Event, Features, MatchEntry, MatchFrom, MdId, MdMemory, MdOptions, MemoryDescriptor, NakReason, NetError,
    OperationId, OperationOptions, PeerId, PortalEvent, Position, Refused,
};

const PORTAL: u8 = 9;

fn entry(match_bits: u64, ignore_bits: u64) -> MatchEntry {
    MatchEntry { portal: PORTAL, from: MatchFrom::Any, match_bits, ignore_bits, position: Position::Tail }
}

fn writable(node: &Node, bytes: usize, options: MdOptions, threshold: Option<u32>) -> MemoryDescriptor {
    MemoryDescriptor { memory: MdMemory::Writable(node.blank(bytes)), options, threshold, max_size: 0 }
}

fn readable(bytes: SharedBuffer, threshold: Option<u32>) -> MemoryDescriptor {
    let memory = MdMemory::Readable(bytes);
    MemoryDescriptor { memory, options: MdOptions::UNLINK, threshold, max_size: 0 }
}

fn to(match_bits: u64, deadline: Instant) -> OperationOptions {
    OperationOptions {
        portal: PORTAL,
        match_bits,
        header_data: 0,
        offset_bytes: 0,
        wants_ack: true,
        deadline,
    }
}

impl Node {
    fn portal_events(&self) -> Vec<PortalEvent> {
        let portal = |event: &Event| match event {
            Event::Portal(event) => Some(event.clone()),
            _ => None,
        };
        self.events.iter().filter_map(portal).collect()
    }

    /// How an operation ended: bytes placed or given.
    fn ended(&self, wanted: OperationId) -> Option<Result<usize, NetError>> {
        self.portal_events().into_iter().find_map(|event| match event {
            PortalEvent::Ack { operation, result, .. } if operation == wanted => {
                Some(result.map(|(_, bytes)| bytes as usize))
            }
            PortalEvent::Reply { operation, result, .. } if operation == wanted => Some(result),
            _ => None,
        })
    }

    /// What a descriptor gave back, if it has; panics if it did so twice, or said anything afterwards.
    fn unlinked(&self, wanted: MdId) -> Option<SharedBuffer> {
        let of = |event: &PortalEvent| match event {
            PortalEvent::Put { md, .. }
            | PortalEvent::Get { md, .. }
            | PortalEvent::Sent { md, .. }
            | PortalEvent::Ack { md, .. }
            | PortalEvent::Reply { md, .. }
            | PortalEvent::Unlink { md, .. } => *md,
        };
        let events: Vec<_> = self.portal_events().into_iter().filter(|event| of(event) == wanted).collect();
        let is_unlink = |event: &PortalEvent| matches!(event, PortalEvent::Unlink { .. });
        let count = events.iter().filter(|event| is_unlink(event)).count();
        assert!(count <= 1, "unlinked {count} times");
        match events.last() {
            Some(PortalEvent::Unlink { memory, .. }) => memory.clone(),
            _ => {
                assert_eq!(count, 0, "an event behind the last: {events:?}");
                None
            }
        }
    }

    fn put(
        &mut self,
        now: Instant,
        peer: PeerId,
        bytes: SharedBuffer,
        options: OperationOptions,
    ) -> (MdId, OperationId) {
        let threshold = if options.wants_ack { 2 } else { 1 };
        let md = self.tm.bind(readable(bytes, Some(threshold))).unwrap();
        (md, self.tm.try_put(now, peer, md, options).unwrap())
    }
}

pub(super) fn puts_land_in_descriptors_and_are_acknowledged(kind: Kind) {
    let world = World::new(kind);
    let (mut client, mut server, _) = connected(&world);
    let peer = PeerId { endpoint: server.endpoint(), epoch: 22 };
    let deadline = world.now() + Duration::from_secs(10);
    // Two PUTs behind each other, the second one cut; then it is spent and goes.
    let log = MdOptions::PUT | MdOptions::TRUNCATE | MdOptions::UNLINK;
    let log =
        server.tm.attach(world.now(), entry(0x10, 0x0f), writable(&server, 10_000, log, Some(2))).unwrap();
    // The sender's offset, again and again.
    let page = MdOptions::PUT | MdOptions::MANAGE_REMOTE;
    let page = server.tm.attach(world.now(), entry(0x20, 0), writable(&server, 8192, page, None)).unwrap();

    let first = OperationOptions { header_data: 0xfeed_f00d_dead_beef, ..to(0x11, deadline) };
    let (first_md, first) = client.put(world.now(), peer, client.pattern(6000, 1), first);
    let (_, second) = client.put(world.now(), peer, client.pattern(6000, 2), to(0x12, deadline));
    let third = OperationOptions { offset_bytes: 4096, ..to(0x20, deadline) };
    let (_, third) = client.put(world.now(), peer, client.pattern(4096, 3), third);
    let beyond = OperationOptions { offset_bytes: 4097, ..to(0x20, deadline) };
    let (_, beyond) = client.put(world.now(), peer, client.pattern(4096, 4), beyond);
    let (_, nobody) = client.put(world.now(), peer, client.pattern(10, 5), to(0x99, deadline));
    let quiet = OperationOptions { wants_ack: false, ..to(0x20, deadline) };
    let (quiet_md, _) = client.put(world.now(), peer, client.pattern(16, 6), quiet);
    let all = [first, second, third, beyond, nobody];
    world.drive(&mut [&mut client, &mut server], |nodes| {
        all.iter().all(|operation| nodes[0].ended(*operation).is_some())
            && nodes[1].tm.stats().operations_served == 4
    });
    let remote = |reason| Err(NetError::RemoteError { reason });
    let results = all.map(|operation| client.ended(operation).unwrap());
    let wanted = [Ok(6000), Ok(4000), Ok(4096), remote(NakReason::TooLong), remote(NakReason::NoMatch)];
    assert_eq!(results, wanted);
    let filled = server.unlinked(log).expect("the log is spent");
    assert_pattern(&filled[..6000], 6000, 1);
    assert_pattern(&filled[6000..], 4000, 2);
    assert!(matches!(
        server.portal_events()[0],
        PortalEvent::Put {
            match_bits: 0x11,
            header_data: 0xfeed_f00d_dead_beef,
            sent_bytes: 6000,
            placed_bytes: 6000,
            offset: 0,
            ..
        }
    ));
    assert_eq!((server.tm.stats().dropped_too_long, server.tm.stats().dropped_no_match), (1, 1));
    assert!(client.unlinked(first_md).is_some() && client.unlinked(quiet_md).is_some());
    assert!(server.unlinked(page).is_none());
    assert!(server.tm.unlink(page) && !server.tm.unlink(page));
    world.settle(&mut [&mut client, &mut server]);
    let filled = server.unlinked(page).unwrap();
    assert_pattern(&filled[4096..], 4096, 3);
    assert_pattern(&filled[..16], 16, 6);
    // All credits are back: a window of messages goes at once.
    for _ in 0..8 {
        client.send(world.now(), peer.endpoint, b"after");
    }
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].messages().len() == 9);
}

pub(super) fn gets_are_answered_from_descriptors(kind: Kind) {
    let world = World::new(kind);
    let (mut client, mut server, _) = connected(&world);
    let peer = PeerId::any(server.endpoint());
    let deadline = world.now() + Duration::from_secs(10);
    let shared = MemoryDescriptor {
        options: MdOptions::GET | MdOptions::MANAGE_REMOTE | MdOptions::TRUNCATE,
        ..readable(server.pattern(10_000, 7), None)
    };
    server.tm.attach(world.now(), entry(1, 0), shared).unwrap();
    let twice = MdOptions::GET | MdOptions::PUT | MdOptions::UNLINK;
    let twice = server.tm.attach(world.now(), entry(2, 0), writable(&server, 600, twice, Some(2))).unwrap();
    let get = |client: &mut Node, bytes: usize, options: OperationOptions| {
        let md = client.tm.bind(writable(client, bytes, MdOptions::UNLINK, Some(2))).unwrap();
        (md, client.tm.try_get(world.now(), peer, md, options).unwrap())
    };
    let (whole_md, whole) = get(&mut client, 4096, to(1, deadline));
    let (end_md, end) = get(&mut client, 4096, OperationOptions { offset_bytes: 9_000, ..to(1, deadline) });
    let (_, nothing) = get(&mut client, 4096, OperationOptions { offset_bytes: 20_000, ..to(1, deadline) });
    let (_, put) = client.put(world.now(), peer, client.pattern(300, 8), to(2, deadline));
    let (rest_md, rest) = get(&mut client, 300, to(2, deadline));
    let (spent_md, spent) = get(&mut client, 300, to(2, deadline));
    world.drive(&mut [&mut client, &mut server], |nodes| {
        [whole, end, nothing, put, rest, spent].iter().all(|operation| nodes[0].ended(*operation).is_some())
    });
    assert_eq!(client.ended(whole), Some(Ok(4096)));
    assert_pattern(&client.unlinked(whole_md).unwrap(), 4096, 7);
    assert_eq!(client.ended(end), Some(Ok(1000)));
    assert_eq!(client.unlinked(end_md).unwrap()[999], super::pair::pattern_byte(9_999, 7));
    assert_eq!(client.ended(nothing), Some(Ok(0)));
    assert_eq!(client.ended(put), Some(Ok(300)));
    assert_eq!(client.ended(rest), Some(Ok(300)));
    assert!(client.unlinked(rest_md).unwrap().iter().all(|byte| *byte == 0), "what stands behind the PUT");
    assert_eq!(client.ended(spent), Some(Err(NetError::RemoteError { reason: NakReason::NoMatch })));
    assert!(client.unlinked(spent_md).is_some());
    assert_pattern(&server.unlinked(twice).unwrap()[..300], 300, 8);
    let gone = client.tm.try_get(world.now(), peer, spent_md, to(1, deadline));
    assert_eq!(gone, Err(Refused::Descriptor));
}

pub(super) fn a_lazy_portal_keeps_what_comes_early(kind: Kind) {
    let world = World::new(kind);
    let (mut client, mut server, _) = connected(&world);
    let peer = PeerId::any(server.endpoint());
    let deadline = world.now() + Duration::from_secs(10);
    server.tm.set_lazy(PORTAL, true);
    let (_, first) = client.put(world.now(), peer, client.pattern(100, 1), to(1, deadline));
    let (_, second) = client.put(world.now(), peer, client.pattern(100, 2), to(2, deadline));
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].tm.stats().kept_early == 2);
    let only_second = writable(&server, 100, MdOptions::PUT | MdOptions::UNLINK, Some(1));
    let md = server.tm.attach(world.now(), entry(2, 0), only_second).unwrap();
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[0].ended(second).is_some());
    assert_pattern(&server.unlinked(md).unwrap(), 100, 2);
    assert!(client.ended(first).is_none(), "it goes on waiting");
    server.tm.set_lazy(PORTAL, false);
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[0].ended(first).is_some());
    assert_eq!(client.ended(first), Some(Err(NetError::RemoteError { reason: NakReason::NoMatch })));
}

pub(super) fn operations_end_with_their_peer(kind: Kind) {
    let world = World::new(kind);
    let (mut client, mut server, _) = connected(&world);
    let peer = PeerId::any(server.endpoint());
    server.tm.set_lazy(PORTAL, true);
    let late = world.now() + Duration::from_millis(50);
    let (late_md, late) = client.put(world.now(), peer, client.pattern(100, 1), to(1, late));
    let (lost_md, lost) =
        client.put(world.now(), peer, client.pattern(100, 1), to(1, world.now() + Duration::from_secs(60)));
    // Unlinked while its operation is under way: that ends first.
    assert!(client.tm.unlink(lost_md));
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[0].ended(late).is_some());
    assert_eq!(client.ended(late), Some(Err(NetError::RemoteTimeout)));
    assert!(client.unlinked(late_md).is_some() && client.unlinked(lost_md).is_none());
    let b = server.endpoint();
    drop(server);
    world.drive(&mut [&mut client], |nodes| nodes[0].ended(lost).is_some());
    assert!(client.ended(lost).unwrap().is_err());
    assert!(client.unlinked(lost_md).is_some());
    // The next incarnation knows nothing of it, and its answers to it would not count.
    let mut server = world.start(b, 23);
    client.send(world.now(), b, b"again");
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].has_message(b"again"));
}

pub(super) fn a_ping_tells_what_a_peer_is(kind: Kind) {
    let world = World::new(kind);
    let (a, b) = (world.endpoint(), world.endpoint());
    let (mut client, mut server) = (world.start(a, 11), world.start(b, 22));
    let deadline = world.now() + Duration::from_secs(10);
    client.tm.try_ping(world.now(), PeerId::any(b), deadline).unwrap();
    let found = |node: &Node| {
        node.events.iter().find_map(|event| match event {
            Event::Discovered { peer, result } if *peer == b => Some(result.clone()),
            _ => None,
        })
    };
    world.drive(&mut [&mut client, &mut server], |nodes| found(nodes[0]).is_some());
    let info = found(&client).unwrap().unwrap();
    assert_eq!(info, server.tm.info());
    assert_eq!((info.epoch, info.nids[0].nid), (22, b.nid));
    assert!(info.features.contains(Features::DISCOVERY));
    assert_eq!(info.features.contains(Features::REMOTE_ACCESS), kind.has_remote_access());
    assert!(client.portal_events().is_empty() && server.portal_events().is_empty(), "nobody else's business");
}
