//! The transfer machine: what the rpc layer holds. One per locality, one endpoint, `!Send`, never blocks.

use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;

use base::{Endpoint, Instant, NetKind, Nid, Right, Rights};
use runtime::poller::{Interest, Poller};
use runtime::{Arena, Buffer, LocalityHandle, SharedBuffer};
use smallvec::SmallVec;

use crate::backend::Backend;
use crate::backend::verbs::VerbsFabric;
use crate::descriptor::{BulkCookie, BulkDescriptor};
use crate::discovery::PeerInfo;
use crate::error::{NetError, Refused, StartError, fabric_word};
use crate::exposure::{Retract, Retraction};
use crate::fault::{FaultError, FaultId, FaultRule, FaultStatus};
use crate::limits::{NIDS_MAX, NetTimes};
use crate::portal::{AttachError, MatchEntry, MdId, MemoryDescriptor};
use crate::protocol::{Carriage, Protocol, ProtocolConfig};
use crate::security::{Identity, Security};
use crate::stats::NetStats;
use crate::{LoFabric, SimFabric};

/// What carries the frames.
#[derive(Clone)]
pub enum Fabric {
    /// One process, any threads; a value handed to all its machines.
    Lo(LoFabric),
    /// TCP over IPv4.
    Tcp,
    /// RDMA: InfiniBand, RoCE or soft-RoCE.
    Verbs(VerbsFabric),
    /// The seeded simulation, one thread.
    Sim(SimFabric),
}

impl Fabric {
    const fn net(&self) -> NetKind {
        match self {
            Fabric::Lo(_) => NetKind::Lo,
            Fabric::Tcp => NetKind::Tcp,
            Fabric::Verbs(_) => NetKind::O2ib,
            Fabric::Sim(_) => NetKind::Sim,
        }
    }
}

/// How a machine starts.
#[derive(Clone, Debug)]
pub struct TmConfig {
    /// Its address. A client that nobody connects to uses [`dynamic_endpoint`].
    pub endpoint: Endpoint,
    /// Take connections.
    pub listen: bool,
    /// Incarnation: nonzero, different at each start (`runtime::identity`).
    pub epoch: u64,
    /// How it proves what it is, and what it asks of others.
    pub security: Security,
    /// Configuration version in force, told to peers in each hello.
    pub config_version: Rc<Cell<u64>>,
    /// Times; the defaults are for a LAN.
    pub times: NetTimes,
    /// Further nids of this machine, beside its endpoint's: with the same pid, portal and tmid it listens on and connects from each. Peers
    /// learn of them, and messages take the best way.
    pub rails: Vec<Nid>,
}

impl TmConfig {
    /// A configuration with default times.
    #[must_use]
    pub fn new(
        endpoint: Endpoint,
        listen: bool,
        epoch: u64,
        security: impl Into<Security>,
        config_version: Rc<Cell<u64>>,
    ) -> TmConfig {
        TmConfig {
            endpoint,
            listen,
            epoch,
            security: security.into(),
            config_version,
            times: NetTimes::default(),
            rails: Vec::new(),
        }
    }
}

/// One incarnation of a peer. In calls, epoch 0 means whichever lives there now; events carry the real one (0 only
/// where no hello was ever completed).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId {
    /// Its address.
    pub endpoint: Endpoint,
    /// Its incarnation.
    pub epoch: u64,
}

impl PeerId {
    /// Whichever incarnation lives at `endpoint`.
    #[must_use]
    pub const fn any(endpoint: Endpoint) -> PeerId {
        PeerId { endpoint, epoch: 0 }
    }
}

impl std::fmt::Display for PeerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{:x}", self.endpoint, self.epoch)
    }
}

/// Names one transfer of one machine; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransferId(pub(crate) u64);

/// Which credits a message may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Three quarters of the window.
    Request,
    /// All of it: no reply waits for a credit that a request holds.
    Reply,
}

impl Lane {
    /// Match bits of a message.
    pub(crate) const fn match_bits(self) -> u64 {
        match self {
            Lane::Request => 0,
            Lane::Reply => 1,
        }
    }
}

/// How a message goes.
#[derive(Clone, Copy, Debug)]
pub struct SendOptions<'a> {
    /// Which credits it uses.
    pub lane: Lane,
    /// Exposures that its receiver may touch, at most `EXPOSES_MAX`: named again at every resend, because each connection has
    /// keys of its own. Unknown ones (retracted meanwhile) are left out.
    pub exposes: &'a [BulkCookie],
    /// An exposure of the receiver that this message ends: a reply names what its request exposed.
    pub invalidates: Option<BulkCookie>,
    /// An exposure of the receiver: the message arrives behind all pushes into it. `invalidates` says the same.
    pub follows: Option<BulkCookie>,
    /// 64 bits that go beside the bytes, for the receiver's eyes.
    pub header_data: u64,
}

impl SendOptions<'_> {
    /// A message on `lane` that exposes and invalidates nothing.
    #[must_use]
    pub const fn on(lane: Lane) -> SendOptions<'static> {
        SendOptions { lane, exposes: &[], invalidates: None, follows: None, header_data: 0 }
    }
}

/// Names one PUT or GET of one machine; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OperationId(pub(crate) u64);

/// Where a PUT or GET goes, and what goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationOptions {
    /// The peer's portal, from `PORTAL_FIRST` on.
    pub portal: u8,
    /// For the peer's match entries.
    pub match_bits: u64,
    /// A PUT's: handed to the peer beside the bytes.
    pub header_data: u64,
    /// For entries whose other side chooses the offset.
    pub offset_bytes: u32,
    /// A PUT: wait for its acknowledgement. GETs are always answered.
    pub wants_ack: bool,
    /// Without an answer by then it counts as lost.
    pub deadline: Instant,
}

/// What happened at a portal of ours, or to an operation of ours.
#[derive(Clone, Debug)]
pub enum PortalEvent {
    /// A peer's PUT was placed in a descriptor's memory.
    Put {
        /// The descriptor.
        md: MdId,
        /// Who sent it.
        from: PeerId,
        /// Its bits.
        match_bits: u64,
        /// Its 64 bits of header data.
        header_data: u64,
        /// Bytes that were sent.
        sent_bytes: usize,
        /// Bytes that were placed.
        placed_bytes: usize,
        /// Where.
        offset: usize,
    },
    /// A peer's GET was answered from a descriptor's memory.
    Get {
        /// The descriptor.
        md: MdId,
        /// Who asked.
        from: PeerId,
        /// Its bits.
        match_bits: u64,
        /// Bytes that were asked for.
        asked_bytes: usize,
        /// Bytes that were given.
        given_bytes: usize,
        /// From where.
        offset: usize,
    },
    /// An operation of ours has been handed to the net. Says nothing of its arrival; the memory is only read from now on.
    Sent {
        /// The operation.
        operation: OperationId,
        /// Its descriptor.
        md: MdId,
    },
    /// The end of a PUT of ours that wanted an acknowledgement: `(offset, bytes)` as placed, or why that is not known.
    Ack {
        /// The PUT.
        operation: OperationId,
        /// Its descriptor.
        md: MdId,
        /// How it ended.
        result: Result<(u32, u32), NetError>,
    },
    /// The end of a GET of ours: bytes that are in its descriptor's memory, or why there are none.
    Reply {
        /// The GET.
        operation: OperationId,
        /// Its descriptor.
        md: MdId,
        /// How it ended.
        result: Result<usize, NetError>,
    },
    /// The end of a descriptor, exactly once, after all else of it.
    Unlink {
        /// The descriptor.
        md: MdId,
        /// Its memory, if it had any.
        memory: Option<SharedBuffer>,
    },
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A message came: a PUT to a descriptor without memory of its own. Taking the event returns its credit.
    Message {
        /// Who sent it.
        from: PeerId,
        /// Its bytes.
        bytes: SharedBuffer,
        /// The descriptor: [`TransferMachine::messages`], or one of the layer above.
        md: MdId,
        /// Its match bits; for messages: which [`Lane`].
        match_bits: u64,
        /// Its 64 bits of header data.
        header_data: u64,
    },
    /// At a portal of ours, or to an operation of ours.
    Portal(PortalEvent),
    /// The end of a [`TransferMachine::try_ping`], once: what the peer says of itself.
    Discovered {
        /// Whom it was asked of.
        peer: Endpoint,
        /// Its answer, or why there is none.
        result: Result<PeerInfo, NetError>,
    },
    /// A hello is complete; the peer's configuration version.
    PeerUp(PeerId, u64),
    /// A peer is gone, or could not be reached: what waited for it is dropped, its transfers have failed.
    PeerLost {
        /// Who (epoch 0: no hello was completed).
        peer: PeerId,
        /// Why.
        error: NetError,
    },
    /// One of several ways to a peer is gone. What had left over it may or may not have arrived; what had not left went over
    /// another.
    RailLost {
        /// Who.
        peer: PeerId,
        /// Its nid there.
        nid: Nid,
        /// Why.
        error: NetError,
    },
    /// After a refusal for want of credits or queue: try again.
    Writable(PeerId),
    /// A transfer ended.
    TransferDone {
        /// Which.
        id: TransferId,
        /// A pull: one buffer per segment. A push: nothing.
        result: Result<Vec<SharedBuffer>, NetError>,
    },
    /// An exposure that [`TransferMachine::retract`] left pending: no hardware touches its memory any more.
    Retracted {
        /// Which.
        cookie: BulkCookie,
        /// Its memory, with what was pushed; of a sink of an answered request the error if that is not what the peer sealed. What was abandoned
        /// holds no content.
        parts: Result<Vec<SharedBuffer>, NetError>,
    },
}

/// Bit 31 of the pid marks a client that registers itself by connecting: it is never connected to.
pub const DYNAMIC_PID_BIT: u32 = 0x8000_0000;
/// Portal of dynamic clients: one without ports.
pub const DYNAMIC_PORTAL: u16 = 48;

/// True for endpoints of clients that connect and are never connected to.
#[must_use]
pub const fn is_dynamic(endpoint: Endpoint) -> bool {
    endpoint.pid & DYNAMIC_PID_BIT != 0
}

/// The endpoint of a client's machine: nothing is configured by hand. `tmid`: different for each machine of a process
/// (the locality's index, say), at most 4095.
#[must_use]
pub const fn dynamic_endpoint(nid: Nid, unix_pid: u32, tmid: u16) -> Endpoint {
    Endpoint { nid, pid: DYNAMIC_PID_BIT | unix_pid, portal: DYNAMIC_PORTAL, tmid: tmid & 0xfff }
}

/// The nid of this host as `peer` sees it: the source address of the route there. Sends nothing.
///
/// # Errors
/// No route to the peer.
pub fn local_nid_towards(peer: Endpoint) -> io::Result<Nid> {
    let Some(address) = peer.nid.ipv4() else { return Ok(Nid { net: peer.nid.net, address: 0 }) };
    let socket = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))?;
    // Any port will do: connecting a datagram socket only looks up the route.
    socket.connect(SocketAddrV4::new(address, peer.port().unwrap_or(base::endpoint::PORT_FIRST)))?;
    match socket.local_addr()?.ip() {
        std::net::IpAddr::V4(found) => Ok(Nid { net: peer.nid.net, address: u32::from(found) }),
        std::net::IpAddr::V6(_) => Err(io::ErrorKind::AddrNotAvailable.into()),
    }
}

/// The endpoint of one locality in the LNet sense, with its peers, credits, exposures and transfers.
///
/// Not a driver by itself: the rpc machine drives it (`poll`, `flush`, deadlines) and takes its events.
pub struct TransferMachine {
    protocol: Protocol,
    /// One for each nid, in their order.
    backends: SmallVec<[Backend; 1]>,
    /// With several backends: waits for them all.
    poller: Option<Poller>,
}

impl TransferMachine {
    /// Starts a machine; a listener takes connections from the first poll on.
    ///
    /// # Errors
    /// See [`StartError`]: each says what to change.
    pub fn start(
        locality: &LocalityHandle,
        fabric: &Fabric,
        config: TmConfig,
    ) -> Result<TransferMachine, StartError> {
        let endpoint = config.endpoint;
        if endpoint.nid.net.kind == NetKind::O2ib && !matches!(fabric, Fabric::Verbs(_)) {
            return Err(StartError::NoRdma { endpoint });
        }
        if endpoint.nid.net.kind != fabric.net() {
            return Err(StartError::NoSuchNet { endpoint, fabric: fabric_word(fabric.net()) });
        }
        if config.security.credential().is_some() {
            match fabric {
                Fabric::Tcp | Fabric::Verbs(_) => {}
                _ => return Err(StartError::NoCertificates { endpoint }),
            }
        }
        if config.listen
            && let Some(credential) = config.security.credential()
            && !credential.rights().has(Right::Serve)
        {
            return Err(StartError::NoRightToServe { endpoint, name: credential.identity().name.clone() });
        }
        if config.epoch == 0 {
            return Err(StartError::EpochZero { endpoint });
        }
        let mut nids = vec![endpoint.nid];
        for nid in config.rails {
            if nid.net.kind != fabric.net() || nids.contains(&nid) || nids.len() == NIDS_MAX {
                return Err(StartError::BadRail { endpoint, nid });
            }
            nids.push(nid);
        }
        let has_rails = nids.len() > 1;
        let mut backends = SmallVec::new();
        for nid in &nids {
            let local = Endpoint { nid: *nid, ..endpoint };
            backends.push(Backend::start(locality, fabric, local, config.listen, has_rails)?);
        }
        let poller = has_rails.then(|| nest(&backends)).transpose();
        let poller = poller.map_err(|source| StartError::Io { endpoint, what: "epoll", source })?.flatten();
        let protocol = Protocol::new(ProtocolConfig {
            endpoint,
            interfaces: nids,
            epoch: config.epoch,
            listen: config.listen,
            times: config.times,
            security: config.security,
            config_version: config.config_version,
            carriage: Carriage {
                streams: matches!(fabric, Fabric::Tcp),
                loses_frames: matches!(fabric, Fabric::Sim(sim) if sim.remote_keys().is_none()),
                remote_access: match fabric {
                    Fabric::Sim(sim) => sim.remote_keys().is_some(),
                    other => matches!(other, Fabric::Verbs(_)),
                },
                net: fabric.net(),
            },
            seed: locality.random_u64(),
            counters: std::sync::Arc::clone(locality.counters()),
            arena: locality.arena().clone(),
            unparker: locality.unparker(),
        });
        Ok(TransferMachine { protocol, backends, poller })
    }

    /// Its address.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        self.protocol.endpoint
    }

    /// What an incarnation of a peer may do: everything where nobody asks for certificates, nothing if it is a stranger.
    #[must_use]
    pub fn rights(&self, peer: PeerId) -> Rights {
        self.protocol.rights(peer)
    }

    /// Who an incarnation of a peer has proved to be; `None` where nobody asks for certificates, and for strangers.
    #[must_use]
    pub fn identity(&self, peer: PeerId) -> Option<&Identity> {
        self.protocol.identity(peer).map(|identity| &**identity)
    }

    /// Its incarnation.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.protocol.epoch
    }

    /// Sends a message of 1 to `MESSAGE_BYTES_MAX` bytes, unreliably: the layer above resends and drops doubles. tcp and lo keep
    /// order and lose messages only with their connection; sim may do anything. Connects where needed. Shorthand for [`TransferMachine::try_send_on`] as a request.
    ///
    /// # Errors
    /// Refused, with the message back: wait for `Event::Writable`, unless [`Refused::is_permanent`].
    pub fn try_send(
        &mut self,
        now: Instant,
        to: PeerId,
        message: SharedBuffer,
    ) -> Result<(), (Refused, SharedBuffer)> {
        self.try_send_on(now, to, Lane::Request, message)
    }

    /// [`TransferMachine::try_send`] with a choice of credits: replies go on [`Lane::Reply`].
    ///
    /// # Errors
    /// As `try_send`.
    pub fn try_send_on(
        &mut self,
        now: Instant,
        to: PeerId,
        lane: Lane,
        message: SharedBuffer,
    ) -> Result<(), (Refused, SharedBuffer)> {
        self.protocol.try_send(now, to, SendOptions::on(lane), message)
    }

    /// [`TransferMachine::try_send_on`], for messages that expose memory to their receiver or end an exposure of it.
    ///
    /// # Errors
    /// As `try_send`.
    ///
    /// # Panics
    /// With more than `EXPOSES_MAX` exposures.
    pub fn try_send_with(
        &mut self,
        now: Instant,
        to: PeerId,
        options: SendOptions<'_>,
        message: SharedBuffer,
    ) -> Result<(), (Refused, SharedBuffer)> {
        self.protocol.try_send(now, to, options, message)
    }

    /// The descriptor of messages: on `PORTAL_MESSAGES`, for everybody, without end.
    #[must_use]
    pub fn messages(&self) -> MdId {
        self.protocol.messages
    }

    /// Attaches a match entry with its memory to a portal; `PortalEvent::Unlink` ends it. What a lazy portal has kept is tried again.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn attach(
        &mut self,
        now: Instant,
        entry: MatchEntry,
        md: MemoryDescriptor,
    ) -> Result<MdId, AttachError> {
        self.protocol.attach(now, entry, md)
    }

    /// Makes memory ready for operations of ours; `PortalEvent::Unlink` ends it.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn bind(&mut self, md: MemoryDescriptor) -> Result<MdId, AttachError> {
        self.protocol.portals.bind(md)
    }

    /// Ends a descriptor: it takes nothing more, and its Unlink event follows when its operations have ended. False if it has ended
    /// before.
    pub fn unlink(&mut self, md: MdId) -> bool {
        self.protocol.unlink(md)
    }

    /// Makes a portal keep what no entry matches until one does (or not: then what it has kept is dropped). A peer waits for its credits
    /// meanwhile.
    pub fn set_lazy(&mut self, portal: u8, is_lazy: bool) {
        self.protocol.set_lazy(portal, is_lazy);
    }

    /// PUTs a bound descriptor's memory, 1 to `MESSAGE_BYTES_MAX` bytes, to a portal of a peer, unreliably, on the credits of
    /// requests. Ends with its `Sent`, or its `Ack` if one is wanted.
    ///
    /// # Errors
    /// As [`TransferMachine::try_send`], and `OperationsWaiting`, `Descriptor`.
    pub fn try_put(
        &mut self,
        now: Instant,
        to: PeerId,
        md: MdId,
        options: OperationOptions,
    ) -> Result<OperationId, Refused> {
        self.protocol.try_put(now, to, md, options)
    }

    /// GETs bytes of a peer's descriptor into a bound descriptor's writable memory, as many as fit, at most `GET_BYTES_MAX`. Ends with its `Reply`.
    ///
    /// # Errors
    /// As [`TransferMachine::try_put`].
    pub fn try_get(
        &mut self,
        now: Instant,
        to: PeerId,
        md: MdId,
        options: OperationOptions,
    ) -> Result<OperationId, Refused> {
        self.protocol.try_get(now, to, md, options)
    }

    /// Asks a peer what it is: its features and nids. Ends in one `Event::Discovered`, at the deadline at the latest.
    ///
    /// # Errors
    /// As [`TransferMachine::try_put`].
    pub fn try_ping(&mut self, now: Instant, to: PeerId, deadline: Instant) -> Result<(), Refused> {
        self.protocol.try_ping(now, to, deadline)
    }

    /// What this machine tells of itself.
    #[must_use]
    pub fn info(&self) -> PeerInfo {
        self.protocol.info()
    }

    /// Exposes parts that a peer may pull until [`TransferMachine::retract`].
    ///
    /// # Panics
    /// With no part or more than `BULK_SEGMENTS_MAX`: the caller splits its requests.
    pub fn expose_source(&mut self, parts: &[SharedBuffer]) -> BulkDescriptor {
        self.protocol.expose_source(parts)
    }

    /// Exposes buffers that a peer may push into, each one segment, until [`TransferMachine::retract`].
    ///
    /// # Panics
    /// With no part or more than `BULK_SEGMENTS_MAX`: the caller splits its requests.
    pub fn expose_sink(&mut self, parts: Vec<Buffer>) -> BulkDescriptor {
        self.protocol.expose_sink(parts)
    }

    /// Ends an exposure. Its memory comes back with what has been pushed so far: at once where only our own code writes into it
    /// (tcp, lo), else by `Event::Retracted` when no hardware can touch it any more. From then on nothing writes into it: bytes
    /// still on their way are thrown away.
    pub fn retract(&mut self, now: Instant, cookie: BulkCookie, how: Retract) -> Retraction {
        self.protocol.retract(now, cookie, how)
    }

    /// A late answer to a request whose exposure was retracted as abandoned: the peer is done with it.
    pub fn settle(&mut self, cookie: BulkCookie) {
        self.protocol.settle(cookie);
    }

    /// Pulls all segments of a requester's source. Ends in one `TransferDone`, at the deadline at the latest.
    pub fn start_pull(
        &mut self,
        now: Instant,
        peer: PeerId,
        from: &BulkDescriptor,
        deadline: Instant,
    ) -> TransferId {
        self.protocol.start_pull(now, peer, from, deadline)
    }

    /// Pushes parts into a requester's sink: part `i` fills segment `segment_index + i` and has its length. A message that
    /// names the sink (`invalidates`, `follows`) and is sent after this call arrives after the bytes; so does any other on a peer with one rail. Ends in one `TransferDone`, when the bytes are with the net.
    pub fn start_push(
        &mut self,
        now: Instant,
        peer: PeerId,
        to: &BulkDescriptor,
        segment_index: usize,
        parts: Vec<SharedBuffer>,
        deadline: Instant,
    ) -> TransferId {
        self.protocol.start_push(now, peer, to, segment_index, parts, deadline)
    }

    /// Takes what has arrived, up to about `budget` frames; answers how much there was (events included).
    pub fn poll(&mut self, now: Instant, budget: usize) -> usize {
        let before = self.protocol.event_count();
        self.protocol.handle_timers(now);
        if self.protocol.memory.is_over() {
            self.protocol.request_pulls();
        }
        let mut frames = 0;
        for (interface, backend) in self.backends.iter_mut().enumerate() {
            self.protocol.activate(interface);
            frames += backend.poll(&mut self.protocol, now, budget);
        }
        frames + self.protocol.event_count().saturating_sub(before)
    }

    /// [`TransferMachine::poll`] for one who spins and would do nothing else: how much there was, and whether there is something to send. Where a look
    /// costs a system call it is left out while the last one is not [`crate::limits::LOOK_EACH`] ago.
    pub fn look(&mut self, now: Instant, budget: usize) -> (usize, bool) {
        if self.backends.iter().all(|backend| backend.rests(now)) {
            return (0, false);
        }
        (self.poll(now, budget), self.protocol.has_output())
    }

    /// The oldest event not yet taken.
    pub fn next_event(&mut self) -> Option<Event> {
        self.protocol.next_event()
    }

    /// Sends what this turn has queued: one system call per peer where the net allows.
    pub fn flush(&mut self, now: Instant) {
        // What one backend hands over may queue more for another: until there is nothing left.
        loop {
            for (interface, backend) in self.backends.iter_mut().enumerate() {
                self.protocol.activate(interface);
                backend.flush(&mut self.protocol, now);
            }
            if !self.protocol.has_output() {
                return;
            }
        }
    }

    /// When to poll again without a sign from [`TransferMachine::wait_fd`]; `None` while nothing is outstanding.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.protocol.has_events() {
            return Some(Instant::ZERO);
        }
        let deadlines = self.backends.iter().filter_map(Backend::next_deadline);
        let backend = deadlines.min().unwrap_or(Instant::NEVER);
        let next = self.protocol.next_timer().min(backend);
        (next != Instant::NEVER).then_some(next)
    }

    /// Readable when there is something to poll.
    #[must_use]
    pub fn wait_fd(&self) -> Option<RawFd> {
        match &self.poller {
            Some(poller) => Some(poller.as_raw_fd()),
            None => self.backends.first().and_then(Backend::wait_fd),
        }
    }

    /// False: something arrived meanwhile, poll instead of sleeping.
    pub fn before_sleep(&mut self) -> bool {
        let mut may_sleep = !self.protocol.has_events() && !self.protocol.has_output();
        for backend in &mut self.backends {
            // Each of them, because each arms what wakes it.
            may_sleep &= backend.before_sleep();
        }
        may_sleep
    }

    /// The rails to a peer: its nid, whether it is up, health of our interface and of its nid (0 to `HEALTH_MAX`).
    #[must_use]
    pub fn rails(&self, peer: Endpoint) -> Vec<(Nid, bool, u16, u16)> {
        self.protocol.rails(peer)
    }

    /// True if all pushes into an exposure of a peer went over a rail that still is up, so that a reply sent now arrives behind them.
    /// False also if that is too long ago to know. `peer`: an incarnation (no epoch 0).
    #[must_use]
    pub fn are_pushes_intact(&self, peer: PeerId, cookie: BulkCookie) -> bool {
        self.protocol.are_pushes_intact(peer, cookie)
    }

    /// The request that exposed it runs again: what was pushed into it before does not count.
    pub fn forget_pushes(&mut self, peer: PeerId, cookie: BulkCookie) {
        self.protocol.pushed.forget(peer, cookie);
    }

    /// Adds a fault rule for frames that leave this machine.
    ///
    /// # Errors
    /// `TooMany`.
    pub fn fault_add(&mut self, rule: FaultRule) -> Result<FaultId, FaultError> {
        self.protocol.fault_add(rule)
    }

    /// The fault rules in force, with their counters.
    #[must_use]
    pub fn fault_list(&self) -> Vec<FaultStatus> {
        self.protocol.fault_list()
    }

    /// Ends one fault rule, or all; answers how many. What a delay holds back still leaves at its time.
    pub fn fault_clear(&mut self, id: Option<FaultId>) -> usize {
        self.protocol.fault_clear(id)
    }

    /// Ends the connection to a peer (epoch 0: any incarnation). Its transfers end as canceled; no `PeerLost` follows.
    pub fn drop_peer(&mut self, peer: PeerId) {
        self.protocol.drop_peer(peer.endpoint, peer.epoch);
    }

    /// What has arrived in a sink segment so far.
    #[cfg(test)]
    pub(crate) fn peek_sink(&mut self, cookie: BulkCookie, segment_index: usize) -> &[u8] {
        self.protocol.peek_sink(cookie, segment_index)
    }

    /// Counts since the start.
    #[must_use]
    pub fn stats(&self) -> NetStats {
        let mut stats = self.protocol.stats.clone();
        for counts in self.backends.iter().filter_map(Backend::device_counts) {
            stats.work_requests += counts.work_requests;
            stats.completions += counts.completions;
            stats.doorbells += counts.doorbells;
            stats.registrations += counts.registrations;
        }
        stats.receive_bytes = self.backends.iter().map(Backend::receive_bytes).sum();
        stats
    }
}

/// One descriptor for those of several backends; `None` where they have none.
fn nest(backends: &[Backend]) -> io::Result<Option<Poller>> {
    let poller = Poller::new()?;
    for (index, backend) in (0..).zip(backends) {
        let Some(fd) = backend.wait_fd() else { return Ok(None) };
        poller.add(fd, index, Interest::READABLE)?;
    }
    Ok(Some(poller))
}

/// lo, tcp and sim move bytes with the CPU or not at all, so there is nothing to register; verbs will.
impl runtime::Registrar for TransferMachine {
    fn register(&self, _arena: &Arena) -> io::Result<()> {
        Ok(())
    }
}
