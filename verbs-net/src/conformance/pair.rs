//! Two machines, driven until something is the case: in virtual time on lo and sim, on the real clock over tcp.

use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, TcpListener};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base::{Endpoint, Instant, Nid};
use runtime::poller::{Interest, Poller};
use runtime::{
    Arena, ArenaConfig, Buffer, Counters, Locality, LocalityConfig, LocalityHandle, MonotonicClock,
    SharedBuffer,
};

use crate::free_port::bind_free;
use crate::security::authority::{Authority, FAR};
use crate::{
    BulkCookie, BulkDescriptor, Credential, CredentialOptions, Event, Fabric, Lane, LoFabric, NetError,
    NetTimes, PeerId, Retract, Retraction, Security, SendOptions, SimFabric, SimKeys, StartError, TmConfig,
    TransferId, TransferMachine, VerbsFabric,
};

static VERBS_PORTS: AtomicU32 = AtomicU32::new(0);

/// The address of an RDMA device, or why there is none: `CLOVIS_RDMA_ADDRESS`, else the first of a RoCE v2 GID.
fn rdma_address() -> Result<std::net::Ipv4Addr, String> {
    let devices =
        VerbsFabric::open().and_then(|fabric| fabric.devices()).map_err(|error| error.to_string())?;
    if let Ok(named) = std::env::var("CLOVIS_RDMA_ADDRESS") {
        return named.parse().map_err(|_| format!("CLOVIS_RDMA_ADDRESS: {named:?} is no IPv4 address"));
    }
    let gids = devices.iter().flat_map(|device| &device.ports).flat_map(|port| &port.gids);
    let found = gids.filter(|gid| gid.kind == verbs_sys::GidKind::RoceV2).find_map(|gid| gid.ipv4());
    found.ok_or_else(|| "no RDMA device has an IPv4 address".to_owned())
}

/// True where the verbs tests can run; else says why not, which is a failure where `CLOVIS_REQUIRE_RDMA=1`.
pub(super) fn has_rdma() -> bool {
    let Err(reason) = rdma_address() else { return true };
    let is_required = std::env::var("CLOVIS_REQUIRE_RDMA").is_ok_and(|value| value == "1");
    assert!(!is_required, "RDMA is required: {reason}");
    eprintln!("skipped: {reason}");
    false
}

pub(super) const TOKEN: [u8; 32] = [0x5a; 32];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Lo,
    Tcp,
    /// Over tcp with certificates: the hello inside TLS, or everything.
    Secured,
    Sealed,
    Sim,
    /// The simulation with RDMA's shape: memory windows, or keys of a pool.
    Windows,
    Pool,
    /// A real RDMA device.
    Verbs,
    /// The same with certificates, and with everything encrypted.
    VerbsSecured,
    VerbsSealed,
}

impl Kind {
    /// On the real clock, with descriptors to wait for.
    pub(super) fn is_real(self) -> bool {
        self.is_rdma() || matches!(self, Kind::Tcp | Kind::Secured | Kind::Sealed)
    }

    /// A real RDMA device is below.
    pub(super) fn is_rdma(self) -> bool {
        matches!(self, Kind::Verbs | Kind::VerbsSecured | Kind::VerbsSealed)
    }

    /// Hardware moves the bulk.
    pub(super) fn has_remote_access(self) -> bool {
        self.is_rdma() || matches!(self, Kind::Windows | Kind::Pool)
    }

    /// Everything behind the hello is encrypted.
    pub(super) fn is_sealed(self) -> bool {
        matches!(self, Kind::Sealed | Kind::VerbsSealed)
    }

    /// Members show certificates.
    pub(super) fn is_secured(self) -> bool {
        self.is_sealed() || matches!(self, Kind::Secured | Kind::VerbsSecured)
    }
}

/// A daemon's credential, of the one authority for those who have the right token, and of another for the others.
fn credential(token: [u8; 32], encrypts: bool) -> Security {
    static OURS: LazyLock<String> = LazyLock::new(|| Authority::new().daemon("node", FAR));
    static THEIRS: LazyLock<String> = LazyLock::new(|| Authority::new().daemon("node", FAR));
    let text = if token == TOKEN { &*OURS } else { &*THEIRS };
    let options = CredentialOptions { encrypts, ..CredentialOptions::default() };
    Security::Certificates(Arc::new(Credential::from_pem(text, options).unwrap()))
}

/// The world of one test: a fabric, a clock and endpoints nobody else uses.
pub(super) struct World {
    pub(super) kind: Kind,
    pub(super) fabric: Fabric,
    pub(super) times: NetTimes,
    pub(super) arena_bytes: u64,
    clock: MonotonicClock,
    virtual_now: Cell<Instant>,
    next_address: Cell<u32>,
    /// Holds a port until its machine takes it.
    reserved: RefCell<Vec<(Endpoint, TcpListener)>>,
}

impl World {
    pub(super) fn new(kind: Kind) -> World {
        World::with_seed(kind, 7)
    }

    pub(super) fn with_seed(kind: Kind, seed: u64) -> World {
        let fabric = match kind {
            Kind::Lo => Fabric::Lo(LoFabric::new()),
            Kind::Tcp | Kind::Secured | Kind::Sealed => Fabric::Tcp,
            Kind::Verbs | Kind::VerbsSecured | Kind::VerbsSealed => {
                Fabric::Verbs(VerbsFabric::open().unwrap())
            }
            Kind::Sim => Fabric::Sim(SimFabric::new(seed)),
            Kind::Windows => Fabric::Sim(SimFabric::with_remote_access(seed, SimKeys::Windows)),
            Kind::Pool => Fabric::Sim(SimFabric::with_remote_access(seed, SimKeys::Pool)),
        };
        World {
            kind,
            fabric,
            times: NetTimes::default(),
            arena_bytes: 64 << 20,
            clock: MonotonicClock::start(),
            virtual_now: Cell::new(Instant::ZERO + Duration::from_secs(1)),
            next_address: Cell::new(1),
            reserved: RefCell::new(Vec::new()),
        }
    }

    pub(super) fn sim(&self) -> &SimFabric {
        match &self.fabric {
            Fabric::Sim(fabric) => fabric,
            _ => panic!("not a simulation"),
        }
    }

    pub(super) fn now(&self) -> Instant {
        if self.kind.is_real() { self.clock.now() } else { self.virtual_now.get() }
    }

    /// An endpoint of this world. Over tcp its port is held until [`World::start`].
    pub(super) fn endpoint(&self) -> Endpoint {
        let address = self.next_address.replace(self.next_address.get() + 1);
        match self.kind {
            Kind::Lo => Endpoint { nid: Nid::LOOPBACK, pid: 12345, portal: 34, tmid: address as u16 },
            Kind::Sim | Kind::Windows | Kind::Pool => {
                Endpoint { nid: Nid::new(base::NetKind::Sim, address), pid: 12345, portal: 34, tmid: 0 }
            }
            Kind::Verbs | Kind::VerbsSecured | Kind::VerbsSealed => {
                let nid = Nid::new(base::NetKind::O2ib, u32::from(rdma_address().unwrap()));
                // Ports of rdma-cm are not those of TCP: the process id keeps two runs apart.
                let port = 10_000
                    + (std::process::id() % 200) * 200
                    + VERBS_PORTS.fetch_add(1, Ordering::Relaxed) % 200;
                Endpoint::from_port(nid, port as u16).unwrap()
            }
            Kind::Tcp | Kind::Secured | Kind::Sealed => {
                let listener = bind_free(Ipv4Addr::UNSPECIFIED).unwrap();
                let nid = Nid::tcp([127, 0, 0, 1].into());
                let endpoint = Endpoint::from_port(nid, listener.local_addr().unwrap().port()).unwrap();
                self.reserved.borrow_mut().push((endpoint, listener));
                endpoint
            }
        }
    }

    pub(super) fn start(&self, endpoint: Endpoint, epoch: u64) -> Node {
        self.try_start(endpoint, epoch, TOKEN, true).unwrap()
    }

    pub(super) fn try_start(
        &self,
        endpoint: Endpoint,
        epoch: u64,
        token: [u8; 32],
        listen: bool,
    ) -> Result<Node, StartError> {
        self.try_start_on(endpoint, epoch, token, listen, &[])
    }

    /// Another nid for the host of an endpoint, on the same net.
    pub(super) fn second_nid(&self, endpoint: Endpoint) -> Nid {
        let step = if self.kind.is_real() { 1 } else { 1000 };
        Nid { address: endpoint.nid.address + step, ..endpoint.nid }
    }

    /// A machine with a credential of its own.
    pub(super) fn start_as(
        &self,
        endpoint: Endpoint,
        epoch: u64,
        security: impl Into<Security>,
        listen: bool,
    ) -> Node {
        self.try_start_with(endpoint, epoch, security.into(), listen, &[]).unwrap()
    }

    /// A machine with further nids.
    pub(super) fn try_start_on(
        &self,
        endpoint: Endpoint,
        epoch: u64,
        token: [u8; 32],
        listen: bool,
        rails: &[Nid],
    ) -> Result<Node, StartError> {
        let security =
            if self.kind.is_secured() { credential(token, self.kind.is_sealed()) } else { token.into() };
        self.try_start_with(endpoint, epoch, security, listen, rails)
    }

    fn try_start_with(
        &self,
        endpoint: Endpoint,
        epoch: u64,
        security: Security,
        listen: bool,
        rails: &[Nid],
    ) -> Result<Node, StartError> {
        self.reserved.borrow_mut().retain(|(held, _)| *held != endpoint);
        let arena = Arena::new(ArenaConfig { capacity_bytes: self.arena_bytes }).unwrap();
        let counters = Arc::new(Counters::new());
        let locality = Locality::new(LocalityConfig {
            index: 0,
            name: format!("{endpoint}"),
            seed: epoch,
            counters: Arc::clone(&counters),
            arena: arena.clone(),
            crowd: None,
        });
        let mut config = TmConfig::new(endpoint, listen, epoch, security, Rc::new(Cell::new(epoch + 100)));
        config.times = self.times;
        config.rails = rails.to_vec();
        let tm = TransferMachine::start(&locality.handle(), &self.fabric, config)?;
        Ok(Node { tm, arena, counters, events: Vec::new(), locality })
    }

    /// Turns all nodes until `done`; panics if that takes too long.
    pub(super) fn drive(&self, nodes: &mut [&mut Node], mut done: impl FnMut(&mut [&mut Node]) -> bool) {
        let start = self.now();
        let limit = if self.kind.is_real() { 20 } else { 10_000 };
        loop {
            let mut progressed = false;
            for node in nodes.iter_mut() {
                progressed |= node.turn(self.now());
            }
            if done(nodes) {
                return;
            }
            assert!(self.now() - start < Duration::from_secs(limit), "stuck: {:?}", describe(nodes));
            if !progressed {
                assert!(self.wait(nodes), "nothing will ever happen: {:?}", describe(nodes));
            }
        }
    }

    /// Turns all nodes until nothing more happens at this moment.
    pub(super) fn settle(&self, nodes: &mut [&mut Node]) {
        let mut quiet = 0;
        while quiet < 3 {
            let mut progressed = false;
            for node in nodes.iter_mut() {
                progressed |= node.turn(self.now());
            }
            quiet = if progressed { 0 } else { quiet + 1 };
        }
    }

    /// Lets time pass, with turns where something is due.
    pub(super) fn pass(&self, nodes: &mut [&mut Node], duration: Duration) {
        let end = self.now() + duration;
        loop {
            self.settle(nodes);
            if self.now() >= end {
                return;
            }
            let next = next_deadline(nodes).unwrap_or(Instant::NEVER).min(end);
            if self.kind.is_real() {
                self.wait_fds(nodes, next.since(self.now()));
            } else {
                self.virtual_now.set(next.max(self.now()));
            }
        }
    }

    /// Sleeps or jumps to the next deadline; false if there is none.
    fn wait(&self, nodes: &mut [&mut Node]) -> bool {
        let next = next_deadline(nodes);
        if self.kind.is_real() {
            let limit = Duration::from_millis(500);
            let wait = next.map_or(limit, |at| at.since(self.now()).min(limit));
            self.wait_fds(nodes, wait);
            return true;
        }
        match next {
            Some(at) => self.virtual_now.set(at.max(self.now())),
            None => return false,
        }
        true
    }

    fn wait_fds(&self, nodes: &mut [&mut Node], wait: Duration) {
        let poller = Poller::new().unwrap();
        let mut ready = true;
        for (index, node) in nodes.iter_mut().enumerate() {
            poller.add(node.tm.wait_fd().unwrap(), index as u64, Interest::READABLE).unwrap();
            ready &= node.tm.before_sleep();
        }
        let wait = if ready { wait } else { Duration::ZERO };
        poller.wait(Some(wait), &mut Vec::new()).unwrap();
    }
}

fn next_deadline(nodes: &mut [&mut Node]) -> Option<Instant> {
    nodes.iter().filter_map(|node| node.tm.next_deadline()).min()
}

fn describe(nodes: &[&mut Node]) -> Vec<(Vec<Event>, crate::NetStats)> {
    nodes.iter().map(|node| (node.events.clone(), node.tm.stats())).collect()
}

/// One machine with what it has heard.
pub(super) struct Node {
    pub(super) tm: TransferMachine,
    pub(super) arena: Arena,
    pub(super) counters: Arc<Counters>,
    pub(super) events: Vec<Event>,
    locality: Locality,
}

impl Node {
    /// Where it lives.
    pub(super) fn locality(&self) -> LocalityHandle {
        self.locality.handle()
    }

    pub(super) fn turn(&mut self, now: Instant) -> bool {
        let mut work = self.tm.poll(now, 64);
        while let Some(event) = self.tm.next_event() {
            self.events.push(event);
            work += 1;
        }
        self.tm.flush(now);
        work > 0
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        self.tm.endpoint()
    }

    pub(super) fn message(&self, text: &[u8]) -> SharedBuffer {
        SharedBuffer::copy_from_slice(&self.arena, text, &Counters::new()).unwrap()
    }

    pub(super) fn send(&mut self, now: Instant, to: Endpoint, text: &[u8]) {
        let message = self.message(text);
        self.tm.try_send(now, PeerId::any(to), message).map_err(|(refused, _)| refused).unwrap();
    }

    /// A buffer whose bytes depend on `seed` and their place.
    pub(super) fn pattern(&self, bytes: usize, seed: u8) -> SharedBuffer {
        let mut buffer = self.arena.try_alloc(bytes).unwrap();
        for (index, byte) in buffer.iter_mut().enumerate() {
            *byte = pattern_byte(index, seed);
        }
        buffer.freeze()
    }

    pub(super) fn blank(&self, bytes: usize) -> Buffer {
        let mut buffer = self.arena.try_alloc(bytes).unwrap();
        buffer.fill(0);
        buffer
    }

    pub(super) fn messages(&self) -> Vec<Vec<u8>> {
        self.events
            .iter()
            .filter_map(|event| match event {
                Event::Message { bytes, .. } => Some(bytes.to_vec()),
                _ => None,
            })
            .collect()
    }

    pub(super) fn sender(&self) -> PeerId {
        self.events
            .iter()
            .rev()
            .find_map(|event| match event {
                Event::Message { from, .. } => Some(*from),
                _ => None,
            })
            .unwrap()
    }

    pub(super) fn has_message(&self, text: &[u8]) -> bool {
        self.messages().iter().any(|message| message == text)
    }

    pub(super) fn lost(&self) -> Vec<(PeerId, NetError)> {
        self.events
            .iter()
            .filter_map(|event| match event {
                Event::PeerLost { peer, error } => Some((*peer, error.clone())),
                _ => None,
            })
            .collect()
    }

    pub(super) fn ups(&self) -> Vec<(PeerId, u64)> {
        self.events
            .iter()
            .filter_map(|event| match event {
                Event::PeerUp(peer, version) => Some((*peer, *version)),
                _ => None,
            })
            .collect()
    }

    pub(super) fn done(&self, transfer: TransferId) -> Option<Result<Vec<SharedBuffer>, NetError>> {
        self.events.iter().find_map(|event| match event {
            Event::TransferDone { id, result } if *id == transfer => Some(result.clone()),
            _ => None,
        })
    }

    pub(super) fn error_of(&self, transfer: TransferId) -> NetError {
        self.done(transfer).unwrap().unwrap_err()
    }

    /// What a retraction that was left pending gave back.
    pub(super) fn retracted(&self, wanted: BulkCookie) -> Option<Vec<SharedBuffer>> {
        self.events.iter().find_map(|event| match event {
            Event::Retracted { cookie, parts } if *cookie == wanted => Some(parts.clone().unwrap()),
            _ => None,
        })
    }

    /// Why a retraction that was left pending gave nothing back.
    pub(super) fn retraction_error(&self, wanted: BulkCookie) -> Option<NetError> {
        self.events.iter().find_map(|event| match event {
            Event::Retracted { cookie, parts: Err(error) } if *cookie == wanted => Some(error.clone()),
            _ => None,
        })
    }

    pub(super) fn send_exposing(&mut self, now: Instant, to: Endpoint, exposes: &[BulkCookie], text: &[u8]) {
        let message = self.message(text);
        let options = SendOptions { exposes, ..SendOptions::on(Lane::Request) };
        self.tm
            .try_send_with(now, PeerId::any(to), options, message)
            .map_err(|(refused, _)| refused)
            .unwrap();
    }

    pub(super) fn count(&self, is_wanted: impl Fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|event| is_wanted(event)).count()
    }
}

pub(super) fn pattern_byte(index: usize, seed: u8) -> u8 {
    ((index * 31 + index / 4096) as u8).wrapping_add(seed)
}

pub(super) fn assert_pattern(bytes: &[u8], length: usize, seed: u8) {
    assert_eq!(bytes.len(), length);
    let wrong = bytes.iter().enumerate().position(|(index, byte)| *byte != pattern_byte(index, seed));
    assert_eq!(wrong, None, "first wrong byte");
}

/// A client that is connected to a server: `(client, server, the client as the server sees it)`.
pub(super) fn connected(world: &World) -> (Node, Node, PeerId) {
    let (a, b) = (world.endpoint(), world.endpoint());
    let (mut client, mut server) = (world.start(a, 11), world.start(b, 22));
    client.send(world.now(), b, b"hi");
    world.drive(&mut [&mut client, &mut server], |nodes| nodes[1].has_message(b"hi"));
    let peer = server.sender();
    (client, server, peer)
}

pub(super) fn travel(descriptor: &BulkDescriptor) -> BulkDescriptor {
    BulkDescriptor::parse(&descriptor.to_bytes()).unwrap()
}

/// Tells the server of exposures, as the message of a request does.
pub(super) fn announce(world: &World, client: &mut Node, server: &mut Node, exposes: &[&BulkDescriptor]) {
    let to = server.endpoint();
    for pair in exposes.chunks(crate::limits::EXPOSES_MAX) {
        let cookies: Vec<BulkCookie> = pair.iter().map(|exposed| exposed.cookie()).collect();
        let before = server.messages().len();
        client.send_exposing(world.now(), to, &cookies, b"announcement");
        world.drive(&mut [client, server], |nodes| nodes[1].messages().len() > before);
    }
}

/// Ends an exposure and waits for its memory.
pub(super) fn reclaim(
    world: &World,
    client: &mut Node,
    server: &mut Node,
    cookie: BulkCookie,
    how: Retract,
) -> Vec<SharedBuffer> {
    match client.tm.retract(world.now(), cookie, how) {
        Retraction::Done(parts) => parts,
        Retraction::Broken(error) => panic!("{error}"),
        Retraction::Unknown => panic!("{cookie:?} is unknown"),
        Retraction::Pending => {
            world.drive(&mut [client, server], |nodes| nodes[0].retracted(cookie).is_some());
            client.retracted(cookie).unwrap()
        }
    }
}
