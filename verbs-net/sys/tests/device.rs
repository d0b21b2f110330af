//! The edge against a real device (soft-RoCE will do): two queue pairs of one machine, connected through rdma-cm.
//!
//! Skipped with the reason where there is no device; `CLOVIS_REQUIRE_RDMA=1` makes that a failure. `CLOVIS_RDMA_ADDRESS` names the
//! address to use; else the first that a RoCE v2 GID has.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, clippy::disallowed_methods)] // tests: small numbers, real time

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use runtime_sys::{Arena, ArenaConfig, Buffer};
use smallvec::SmallVec;
use verbs_sys::{
    Access, Completed, CompletionError, ConnectionEvent, ConnectionId, ConnectionManager, GidKind, Library,
    Memory, Nic, NicConfig, QueuePairId, Remote, Segment, Without, Work,
};

fn address() -> Option<(Library, Ipv4Addr)> {
    let is_required = std::env::var("CLOVIS_REQUIRE_RDMA").is_ok_and(|value| value == "1");
    let found = Library::open().and_then(|library| {
        let devices = library.devices(Without::default())?;
        let named = std::env::var("CLOVIS_RDMA_ADDRESS").ok().map(|text| text.parse().unwrap());
        let first = || {
            let gids = devices.iter().flat_map(|device| &device.ports).flat_map(|port| &port.gids);
            gids.filter(|gid| gid.kind == GidKind::RoceV2).find_map(verbs_sys::GidInfo::ipv4)
        };
        let address = named.or_else(first).ok_or(verbs_sys::RdmaError::NoDevice)?;
        Ok((library, address))
    });
    match found {
        Ok(found) => Some(found),
        Err(error) => {
            assert!(!is_required, "RDMA is required: {error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// One side: a device of its own, so that what is shared by accident shows.
struct Side {
    nic: Nic,
    arena: Arena,
    pair: QueuePairId,
    cm: ConnectionId,
    done: VecDeque<Completed>,
}

struct Pair {
    manager: ConnectionManager,
    client: Side,
    server: Side,
}

const RECEIVE_BYTES: usize = 8192;

fn open(library: &Library, device: &str, without: Without) -> (Nic, Arena) {
    let arena = Arena::new(ArenaConfig { capacity_bytes: 64 << 20 }).unwrap();
    let mut nic = library
        .open_nic(NicConfig {
            device: device.to_owned(),
            queue_pairs_max: 4,
            sends_per_queue_pair: 64,
            receives: 64,
            receives_without_shared: 32,
            inline_bytes: 220,
            windows_max: 16,
            without,
            arena: arena.clone(),
        })
        .unwrap();
    nic.register(&arena).unwrap();
    (nic, arena)
}

fn refill(nic: &mut Nic, arena: &Arena, pair: QueuePairId) {
    let wanted = nic.receives_wanted(Some(pair));
    let buffers = (0..wanted).map(|_| arena.try_alloc(RECEIVE_BYTES).unwrap()).collect();
    nic.post_receives(Some(pair), buffers).unwrap();
}

fn wait<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "waited too long for {what}");
        std::thread::yield_now();
    }
}

impl Pair {
    fn connect(without: Without) -> Option<Pair> {
        let (library, address) = address()?;
        let mut manager = library.connection_manager().unwrap();
        let device = manager.bind_device(address).unwrap();
        let (mut server, server_arena) = open(&library, &device, without);
        let (mut client, client_arena) = open(&library, &device, without);
        let port = 20_000 + (std::process::id() % 20_000) as u16;
        let (listener, port) = (port..port + 200)
            .find_map(|port| manager.listen(SocketAddrV4::new(address, port)).ok().map(|id| (id, port)))
            .unwrap();
        let dialled = manager.dial(address, SocketAddrV4::new(address, port)).unwrap();
        let (client_pair, server_pair) =
            (client.create_queue_pair().unwrap(), server.create_queue_pair().unwrap());
        let (mut up, mut accepted) = (0, None);
        wait("the connection", || {
            while let Some(event) = manager.poll() {
                match event {
                    ConnectionEvent::RouteResolved(id) => {
                        assert_eq!(manager.device(id).as_deref(), Some(device.as_str()));
                        manager.prepare(id, &mut client, client_pair).unwrap();
                        refill(&mut client, &client_arena, client_pair);
                        manager.connect(id, &mut client, client_pair, b"hello from the client").unwrap();
                    }
                    ConnectionEvent::Requested { listener: at, id, private_data } => {
                        assert_eq!(at, listener);
                        assert!(private_data.starts_with(b"hello from the client"));
                        manager.prepare(id, &mut server, server_pair).unwrap();
                        refill(&mut server, &server_arena, server_pair);
                        manager.accept(id, &mut server, server_pair, b"welcome").unwrap();
                        accepted = Some(id);
                    }
                    ConnectionEvent::Accepted { id, private_data } => {
                        assert_eq!(id, dialled);
                        assert!(private_data.starts_with(b"welcome"));
                        manager.finish(id, &mut client, client_pair).unwrap();
                        up += 1;
                    }
                    ConnectionEvent::Established(_) => up += 1,
                    other => panic!("{other:?}"),
                }
            }
            (up == 2).then_some(())
        });
        let side = |nic, arena, pair, cm| Side { nic, arena, pair, cm, done: VecDeque::new() };
        Some(Pair {
            manager,
            client: side(client, client_arena, client_pair, dialled),
            server: side(server, server_arena, server_pair, accepted.unwrap()),
        })
    }
}

fn head(text: &[u8]) -> SmallVec<[u8; 128]> {
    SmallVec::from_slice(text)
}

impl Side {
    fn post(&mut self, works: Vec<Work>) {
        let mut works: VecDeque<(u64, Work)> =
            works.into_iter().enumerate().map(|(tag, work)| (tag as u64, work)).collect();
        let count = works.len();
        assert_eq!(self.nic.post(self.pair, &mut works).unwrap(), count);
    }

    fn next<T>(&mut self, what: &str, mut pick: impl FnMut(&Completed) -> Option<T>) -> (Completed, T) {
        wait(what, || {
            self.nic.poll(32, &mut self.done);
            let place = self.done.iter().position(|done| pick(done).is_some())?;
            let done = self.done.remove(place)?;
            let picked = pick(&done)?;
            Some((done, picked))
        })
    }

    fn message(&mut self) -> Vec<u8> {
        let (done, ()) =
            self.next("a message", |done| matches!(done, Completed::Received { .. }).then_some(()));
        let Completed::Received { buffer, bytes, .. } = done else { unreachable!() };
        buffer[..bytes].to_vec()
    }

    /// How the operation with this tag went.
    fn work(&mut self, wanted: u64) -> (Memory, Result<(), CompletionError>) {
        let (done, ()) = self.next("an operation", |done| {
            matches!(done, Completed::Work { tag, .. } if *tag == wanted).then_some(())
        });
        let Completed::Work { memory, result, .. } = done else { unreachable!() };
        (memory, result)
    }

    fn concealed(&mut self) {
        self.next("the end of an exposure", |done| matches!(done, Completed::Concealed { .. }).then_some(()));
    }

    fn filled(&self, bytes: usize, byte: u8) -> Buffer {
        let mut buffer = self.arena.try_alloc(bytes).unwrap();
        buffer.fill(byte);
        buffer
    }

    /// Exposes and binds; answers what the peer has to know.
    fn expose(
        &mut self,
        memory: &runtime_sys::SharedBuffer,
        access: Access,
    ) -> (verbs_sys::ExposureId, Segment) {
        let (id, segment) = self.nic.expose(self.pair, memory.clone(), access).unwrap();
        if self.nic.uses_windows() {
            self.post(vec![Work::Bind(id)]);
        }
        (id, segment)
    }
}

fn remote(segment: Segment) -> Remote {
    Remote { address: segment.address, key: segment.key }
}

fn everything(without: Without) {
    let Some(mut pair) = Pair::connect(without) else { return };
    let (client, server) = (&mut pair.client, &mut pair.server);
    let capabilities = client.nic.capabilities();
    eprintln!("{} inline {} without {without:?}", capabilities, capabilities.inline_bytes);
    assert!(!without.windows || !capabilities.windows);
    assert!(!without.inline || capabilities.inline_bytes == 0);
    assert!(
        !without.extended || !capabilities.extended_queue_pair && !capabilities.extended_completion_queue
    );

    // Messages: short, with a payload from where it lies, many with one doorbell.
    client.post(vec![Work::Send { head: head(b"short"), payload: None, invalidates: None }]);
    assert_eq!(server.message(), b"short");
    let payload = client.filled(5000, 7).freeze();
    client.post(vec![Work::Send { head: head(b"long "), payload: Some(payload), invalidates: None }]);
    let long = server.message();
    assert!(long.starts_with(b"long ") && long.len() == 5005 && long[5..].iter().all(|byte| *byte == 7));
    assert!(matches!(client.work(0), (Memory::None | Memory::Shared(_), Ok(()))));
    let before = client.nic.counts();
    let many = (0..20_u8).map(|n| Work::Send { head: head(&[n; 100]), payload: None, invalidates: None });
    client.post(many.collect());
    for n in 0..20 {
        assert_eq!(server.message(), [n; 100]);
    }
    let after = client.nic.counts();
    assert_eq!((after.doorbells - before.doorbells, after.work_requests - before.work_requests), (1, 20));
    assert_eq!(after.registrations, before.registrations);
    refill(&mut server.nic, &server.arena.clone(), server.pair);

    // The server reads from and writes to exposed memory of the client.
    let source = client.filled(1 << 20, 42).freeze();
    let sink = client.filled(1 << 20, 0).freeze();
    let (source_id, from) = client.expose(&source, Access::Read);
    let (sink_id, to) = client.expose(&sink, Access::Write);
    client.post(vec![Work::Send { head: head(b"go"), payload: None, invalidates: None }]);
    assert_eq!(server.message(), b"go");
    let into = server.filled(1 << 20, 0);
    server.post(vec![Work::Read { into, from: remote(from) }]);
    let (Memory::Own(read), Ok(())) = server.work(0) else { panic!("the read failed") };
    assert!(read.iter().all(|byte| *byte == 42));
    let written = server.filled(1 << 20, 43).freeze();
    let invalidates = client.nic.uses_windows().then_some(to.key);
    server.post(vec![
        Work::Write { from: written, to: remote(to) },
        Work::Send { head: head(b"there"), payload: None, invalidates },
    ]);
    assert_eq!(client.message(), b"there");
    if client.nic.uses_windows() {
        client.concealed();
        assert!(client.nic.conceal(sink_id).is_none(), "it has ended");
        client.post(vec![Work::Invalidate(source_id)]);
        client.concealed();
        // What is invalid is refused by the hardware, and costs the peer its queue pair.
        assert!(server.work(0).1.is_ok() && server.work(1).1.is_ok());
        let into = server.filled(4096, 9);
        server.post(vec![Work::Read { into, from: remote(from) }]);
        let (memory, result) = server.work(0);
        assert!(matches!(memory, Memory::Own(_)));
        assert!(
            matches!(result, Err(CompletionError::RemoteAccess | CompletionError::RemoteInvalid)),
            "{result:?}"
        );
        assert!(server.nic.is_failed(server.pair));
    } else {
        assert!(client.nic.conceal(sink_id).is_some() && client.nic.conceal(source_id).is_some());
    }
    assert!(sink.iter().all(|byte| *byte == 43), "written before the message that told of it");

    // Ending gives back everything that was held.
    let held = client.filled(1 << 20, 1).freeze();
    let before = client.arena.in_use_bytes();
    let (id, _) = client.nic.expose(client.pair, held, Access::Read).unwrap();
    let _ = id;
    pair.manager.disconnect(client.cm);
    client.nic.destroy_queue_pair(client.pair);
    client.concealed();
    assert!(client.arena.in_use_bytes() < before);
    pair.manager.destroy(client.cm);
    let server_cm = server.cm;
    wait("the disconnect", || {
        std::iter::from_fn(|| pair.manager.poll())
            .any(|event| event == ConnectionEvent::Disconnected(server_cm))
            .then_some(())
    });
    let counts = client.nic.counts();
    eprintln!("{counts:?}");
}

#[test]
fn everything_that_the_device_has() {
    everything(Without::default());
}

#[test]
fn without_windows() {
    everything(Without { windows: true, ..Without::default() });
}

#[test]
fn without_a_shared_receive_queue() {
    everything(Without { shared_receive_queue: true, ..Without::default() });
}

#[test]
fn without_extended_verbs() {
    everything(Without { extended: true, ..Without::default() });
}

#[test]
fn without_inline() {
    everything(Without { inline: true, ..Without::default() });
}

#[test]
fn without_anything() {
    everything(Without { windows: true, shared_receive_queue: true, extended: true, inline: true });
}

#[test]
fn the_channel_wakes_and_is_quiet_again() {
    let Some(mut pair) = Pair::connect(Without::default()) else { return };
    let poller = runtime_sys::poller::Poller::new().unwrap();
    let (client, server) = (&mut pair.client, &mut pair.server);
    poller.add(server.nic.completion_fd(), 1, runtime_sys::poller::Interest::READABLE).unwrap();
    let mut events = Vec::new();
    for round in 0..3 {
        server.nic.arm();
        assert_eq!(server.nic.poll(32, &mut server.done), 0, "round {round}");
        client.post(vec![Work::Send { head: head(b"wake"), payload: None, invalidates: None }]);
        assert_eq!(poller.wait(Some(Duration::from_secs(10)), &mut events).unwrap(), 1);
        server.nic.drain_channel();
        assert_eq!(server.message(), b"wake");
        assert_eq!(poller.wait(Some(Duration::ZERO), &mut events).unwrap(), 0);
    }
}

#[test]
fn nobody_listening_and_a_foreign_address_are_told_apart() {
    let Some((library, address)) = address() else { return };
    let mut manager = library.connection_manager().unwrap();
    let device = manager.bind_device(address).unwrap();
    let (mut nic, _arena) = open(&library, &device, Without::default());
    let pair = nic.create_queue_pair().unwrap();
    let id = manager.dial(address, SocketAddrV4::new(address, 19_999)).unwrap();
    wait("the refusal", || match manager.poll()? {
        ConnectionEvent::RouteResolved(id) => {
            manager.prepare(id, &mut nic, pair).unwrap();
            manager.connect(id, &mut nic, pair, b"").unwrap();
            None
        }
        ConnectionEvent::Rejected { id: refused, .. } => (refused == id).then_some(()),
        other => panic!("{other:?}"),
    });
    assert!(manager.bind_device(Ipv4Addr::new(192, 0, 2, 77)).is_err());
}

/// The end of one queue pair takes completions of all out of the queue: what they say of another's exposures is not lost.
#[test]
fn an_exposure_that_ends_while_another_queue_pair_is_destroyed_is_told() {
    let Some(mut pair) = Pair::connect(Without::default()) else { return };
    let (client, server) = (&mut pair.client, &mut pair.server);
    if !client.nic.uses_windows() {
        return;
    }
    let sink = client.filled(4096, 0).freeze();
    let (_, to) = client.expose(&sink, Access::Write);
    client.post(vec![Work::Send { head: head(b"go"), payload: None, invalidates: None }]);
    assert_eq!(server.message(), b"go");
    let other = client.nic.create_queue_pair().unwrap();
    let payload = server.filled(1024, 1).freeze();
    server.post(vec![Work::Send { head: head(b"done"), payload: Some(payload), invalidates: Some(to.key) }]);
    // The sender knows that it is there, so the receiver's completion is in the queue.
    assert!(server.work(0).1.is_ok());
    client.nic.destroy_queue_pair(other);
    assert!(client.message().starts_with(b"done"));
    client.concealed();
}
