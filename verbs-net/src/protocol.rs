//! The protocol core: peers, connections, credits, exposures and transfers. No I/O, no clock; time comes in.
//!
//! A backend carries frames for it. Towards the core: `accept`, `handle_frame`, `begin_bulk`/`bulk_slice`/`end_bulk` (bytes
//! that stream in) or `handle_bulk` (a buffer that arrives whole), `handle_closed`, `handle_handed`. From the core: the queue of
//! [`Action`]s and the outboxes of the connections in `dirty`. A verbs backend fits the same shape: `handle_bulk`'s
//! places become remote keys, `handle_handed` a send completion, and credits posted receives.
//!
//! **Invariant**: a peer has at most one connection in phase Up, and its `link` names it. **Invariant**: each transfer ends in
//! exactly one `TransferDone`. **Invariant**: every table is bounded (limits.rs).

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use base::limits::MESSAGE_BYTES_MAX;
use base::units::{narrow, wide};
use base::{Endpoint, Instant, NetKind, Nid};
use runtime::{Arena, Buffer, Counters, SharedBuffer, Unparker, copy_counted};
use smallvec::SmallVec;

use crate::admission::Admissions;
use crate::connection::{
    Connection, ConnectionId, Exposes, Liveness, Outgoing, Payload, Phase, reconnect_pause,
};
use crate::descriptor::{BulkCookie, BulkDescriptor};
use crate::error::{LocalError, NakReason, NetError, PeerMisbehaved, RefuseReason, Refused};
use crate::exposure::{
    BindingScope, BrokenSink, ExposureTable, ExposureView, Retract, Retraction, Returned, SinkPart,
};
use crate::fault::{FaultAction, FaultError, FaultId, FaultRule, FaultRules, FaultStatus};
use crate::frame::{Frame, FrameBody, FrameKind, PutTarget, VERSION, VERSION_MIN};
use crate::hello::{Hello, Token};
use crate::limits::{
    BULK_PIECE_BYTES, CONNECTIONS_MAX, CREDIT_WINDOW, EXPOSES_MAX, HALF_OPEN_MAX, NetTimes, TRANSFERS_MAX,
    WAITING_MESSAGES_MAX, ms,
};
use crate::machine::{Event, Lane, PeerId, SendOptions, TransferId, is_dynamic};
use crate::memory_wait::MemoryWait;
use crate::operation::Operation;
use crate::portal::{MdId, PortalTable};
use crate::rail::{Interface, Link, Rail};
use crate::rails::{Choice, PushedTable};
use crate::remote::{
    PushSeal, RemoteAccess, RemoteExposure, RemoteSegment, parse_extension, parse_push_seals,
};
use crate::security::{Seal, Security};
use crate::stats::NetStats;
use crate::transfer::{LentPull, PullContent, Transfer, TransferKind, pieces};

/// Pushes of one peer whose arrival is being counted for an ack.
const PUSHES_COUNTED_MAX: usize = 1024;

/// What the core asks of its backend.
pub(crate) enum Action {
    Dial(ConnectionId, Endpoint),
    /// Send what is in the outbox if it goes at once, then close.
    Close(ConnectionId),
    /// Remote access only: invalidate the windows of that exposure on that connection, then `handle_revoked`.
    Revoke(ConnectionId, BulkCookie),
}

/// Where streaming bulk bytes go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BulkPlace {
    /// Nowhere: the memory or the transfer is gone.
    Drain,
    Pull {
        transfer: u64,
        segment_index: usize,
        offset: usize,
    },
    Push {
        cookie: BulkCookie,
        segment_index: usize,
        offset: usize,
        transfer: u64,
        ack_total: Option<u32>,
    },
}

/// A frame that takes a credit, on its way to a connection.
pub(crate) struct Waiting {
    /// Its number is still to be given.
    pub(crate) frame: Outgoing,
    /// Meant for this incarnation only; 0 = any.
    pub(crate) epoch: u64,
}

/// A PUT or GET that a lazy portal keeps: its credit goes back when it is delivered or dropped.
pub(crate) struct Early {
    pub(crate) connection: ConnectionId,
    pub(crate) from: PeerId,
    pub(crate) body: FrameBody,
    pub(crate) bytes: Option<SharedBuffer>,
}

pub(crate) struct Peer {
    /// The first is the way to the endpoint's own nid.
    pub(crate) rails: SmallVec<[Rail; 1]>,
    pub(crate) waiting: VecDeque<Waiting>,
    pub(crate) wants_writable: bool,
    /// It stands in `Protocol::net_waiting`.
    pub(crate) is_net_waiting: bool,
    /// Incarnations that others have replaced: they do not come back.
    pub(crate) retired: VecDeque<u64>,
    /// Its nids have been asked for, of this incarnation.
    pub(crate) asked_epoch: u64,
    /// The incarnation that was up last; 0: none.
    pub(crate) last_epoch: u64,
}

/// What another interface's backend will find.
#[derive(Default)]
struct Parked {
    actions: VecDeque<Action>,
    dirty: VecDeque<ConnectionId>,
}

struct Slot {
    generation: u32,
    connection: Option<Connection>,
}

/// An event, and what taking it returns to the peer.
struct Queued {
    event: Event,
    credit: Option<(ConnectionId, u32)>,
}

/// How the backend of this machine moves bulk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Carriage {
    /// Bytes arrive one by one into buffers of ours; else whole buffers change hands.
    pub(crate) streams: bool,
    /// Frames may be lost, so a push is complete only when acknowledged.
    pub(crate) loses_frames: bool,
    /// Hardware moves the bulk: messages carry remote segments, pulls become RDMA READs and pushes RDMA WRITEs.
    pub(crate) remote_access: bool,
    /// Nets it carries.
    pub(crate) net: NetKind,
}

pub(crate) struct Protocol {
    pub(crate) endpoint: Endpoint,
    pub(crate) epoch: u64,
    pub(crate) listen: bool,
    pub(crate) times: NetTimes,
    pub(crate) counters: Arc<Counters>,
    pub(crate) stats: NetStats,
    pub(crate) memory: MemoryWait,
    pub(crate) actions: VecDeque<Action>,
    pub(crate) dirty: VecDeque<ConnectionId>,
    pub(crate) carriage: Carriage,
    pub(crate) security: Security,
    pub(crate) admissions: Admissions,
    config_version: Rc<Cell<u64>>,
    pub(crate) random: fastrand::Rng,
    pub(crate) peers: BTreeMap<Endpoint, Peer>,
    pub(crate) interfaces: Vec<Interface>,
    /// Whose backend has the word: `actions` and `dirty` are of its connections, those of the others are parked.
    active: usize,
    parked: Vec<Parked>,
    /// Counts choices between rails.
    pub(crate) turn: u64,
    pub(crate) pushed: PushedTable,
    /// Peers that were refused for want of an interface's credits.
    pub(crate) net_waiting: VecDeque<Endpoint>,
    /// Some rail has lost health: the flag that credits coming back look at.
    pub(crate) is_ailing: bool,
    pub(crate) next_recovery: Instant,
    slots: Vec<Slot>,
    free: Vec<u32>,
    greeting_count: usize,
    pub(crate) open_count: usize,
    pub(crate) exposures: ExposureTable,
    transfers: BTreeMap<u64, Transfer>,
    next_transfer: u64,
    /// Pulls that wait for buffers, oldest first.
    memory_queue: VecDeque<u64>,
    pub(crate) portals: PortalTable<Early>,
    /// The descriptor of messages.
    pub(crate) messages: MdId,
    /// What pings are answered from.
    pub(crate) told: Option<MdId>,
    pub(crate) operations: BTreeMap<u64, Operation>,
    events: VecDeque<Queued>,
    /// No timer is due before.
    next_timer: Instant,
    faults: FaultRules,
    /// There are fault rules, or frames that one holds back: the one flag that a send looks at.
    is_faulty: bool,
    /// The time of the last poll: delays count from there.
    pub(crate) seen_now: Instant,
}

pub(crate) struct ProtocolConfig {
    pub(crate) endpoint: Endpoint,
    /// Our nids, the endpoint's first.
    pub(crate) interfaces: Vec<Nid>,
    pub(crate) epoch: u64,
    pub(crate) listen: bool,
    pub(crate) times: NetTimes,
    pub(crate) security: Security,
    pub(crate) config_version: Rc<Cell<u64>>,
    pub(crate) carriage: Carriage,
    pub(crate) seed: u64,
    pub(crate) counters: Arc<Counters>,
    pub(crate) arena: Arena,
    pub(crate) unparker: Unparker,
}

impl Protocol {
    pub(crate) fn new(config: ProtocolConfig) -> Protocol {
        let mut protocol = Protocol {
            endpoint: config.endpoint,
            epoch: config.epoch,
            listen: config.listen,
            times: config.times,
            counters: config.counters,
            stats: NetStats::default(),
            memory: MemoryWait::new(config.arena, config.unparker),
            actions: VecDeque::new(),
            dirty: VecDeque::new(),
            carriage: config.carriage,
            security: config.security,
            admissions: Admissions::default(),
            config_version: config.config_version,
            random: fastrand::Rng::with_seed(config.seed),
            peers: BTreeMap::new(),
            parked: config.interfaces.iter().map(|_| Parked::default()).collect(),
            interfaces: config.interfaces.into_iter().map(Interface::new).collect(),
            active: 0,
            turn: 0,
            pushed: PushedTable::default(),
            net_waiting: VecDeque::new(),
            is_ailing: false,
            next_recovery: Instant::ZERO,
            slots: Vec::new(),
            free: Vec::new(),
            greeting_count: 0,
            open_count: 0,
            exposures: ExposureTable::default(),
            transfers: BTreeMap::new(),
            next_transfer: 1,
            memory_queue: VecDeque::new(),
            portals: PortalTable::default(),
            messages: MdId(0),
            told: None,
            operations: BTreeMap::new(),
            events: VecDeque::new(),
            next_timer: Instant::NEVER,
            faults: FaultRules::new(config.seed),
            is_faulty: false,
            seen_now: Instant::ZERO,
        };
        protocol.attach_own();
        protocol
    }

    // ---- connections as a table

    fn open(&mut self, mut connection: Connection) -> Option<ConnectionId> {
        if self.open_count >= CONNECTIONS_MAX {
            return None;
        }
        self.open_count += 1;
        connection.nonce = self.random.u64(..);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, connection: None });
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let entry = &mut self.slots[slot as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.connection = Some(connection);
        Some(ConnectionId::new(entry.generation, slot))
    }

    /// Gives the word to an interface's backend.
    pub(crate) fn activate(&mut self, interface: usize) {
        if interface != self.active {
            let resting = &mut self.parked[self.active];
            std::mem::swap(&mut resting.actions, &mut self.actions);
            std::mem::swap(&mut resting.dirty, &mut self.dirty);
            let coming = &mut self.parked[interface];
            std::mem::swap(&mut coming.actions, &mut self.actions);
            std::mem::swap(&mut coming.dirty, &mut self.dirty);
            self.active = interface;
        }
    }

    /// True if some backend has something to flush.
    pub(crate) fn has_output(&self) -> bool {
        let is_parked = |parked: &Parked| !parked.actions.is_empty() || !parked.dirty.is_empty();
        !self.actions.is_empty() || !self.dirty.is_empty() || self.parked.iter().any(is_parked)
    }

    fn act(&mut self, interface: usize, action: Action) {
        if interface == self.active {
            self.actions.push_back(action);
        } else {
            self.parked[interface].actions.push_back(action);
        }
    }

    /// The connections that are not ended.
    pub(crate) fn open_connections(&self) -> Vec<ConnectionId> {
        let of_slot = |(slot, entry): (usize, &Slot)| {
            let is_open = entry.connection.as_ref().is_some_and(|found| found.phase != Phase::Ended);
            is_open.then(|| ConnectionId::new(entry.generation, u32::try_from(slot).unwrap_or(u32::MAX)))
        };
        self.slots.iter().enumerate().filter_map(of_slot).collect()
    }

    pub(crate) fn connection(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        let slot = self.slots.get_mut(id.place())?;
        if slot.generation != id.generation() {
            return None;
        }
        slot.connection.as_mut()
    }

    /// The backend has closed it: its name is void from now on.
    pub(crate) fn forget(&mut self, id: ConnectionId) {
        if self.carriage.remote_access {
            for (cookie, returned) in self.exposures.unbind_all(id) {
                self.give_back(cookie, returned);
            }
        }
        if self.connection(id).is_some() {
            let slot = (id.0 & 0xffff_ffff) as u32;
            self.slots[id.place()].connection = None;
            self.free.push(slot);
            self.open_count -= 1;
        }
    }

    pub(crate) fn set_timer(&mut self, at: Instant) {
        self.next_timer = self.next_timer.min(at);
    }

    pub(crate) fn emit(&mut self, event: Event) {
        self.events.push_back(Queued { event, credit: None });
    }

    /// An event that gives the credit of message `sequence` back when it is taken.
    pub(crate) fn emit_with_credit(&mut self, event: Event, id: ConnectionId, sequence: u32) {
        self.events.push_back(Queued { event, credit: Some((id, sequence)) });
    }

    /// Queues a frame and puts the connection on the list to flush.
    fn post(&mut self, id: ConnectionId, body: FrameBody, payload: Payload, completes: Option<TransferId>) {
        self.post_outgoing(id, Outgoing { completes, ..Outgoing::new(body, payload) });
    }

    #[inline(always)] // a frame is large: as a call it would be moved once more
    fn post_outgoing(&mut self, id: ConnectionId, outgoing: Outgoing) {
        if self.is_faulty {
            return self.post_faulty(id, outgoing);
        }
        self.push_outgoing(id, outgoing);
    }

    /// The boundary between core and backend while there are fault rules, or frames that one of them holds back.
    fn post_faulty(&mut self, id: ConnectionId, mut outgoing: Outgoing) {
        let Some(connection) = self.connection(id) else { return };
        let endpoint = connection.endpoint.map(|endpoint| Endpoint { nid: connection.rail, ..endpoint });
        let held_until = connection.held.back().map(|(at, _)| *at);
        let mut leaves_at = held_until;
        let mut twin = None;
        match self.faults.judge(endpoint, &outgoing.body) {
            None => {}
            Some(FaultAction::Drop) => {
                if let FrameBody::PushData { transfer, .. } = outgoing.body
                    && let Some(found) = self.transfers.get_mut(&transfer)
                {
                    found.is_incomplete = true;
                }
                return;
            }
            Some(FaultAction::Fail(class)) => {
                let now = self.seen_now;
                return self.handle_undelivered(now, id, outgoing, class);
            }
            Some(FaultAction::Delay(time)) => leaves_at = leaves_at.max(Some(self.seen_now + time)),
            Some(FaultAction::Duplicate) => {
                // A message of its own, with its own number: the same number twice would be a replay.
                let now = self.seen_now;
                if let Some(connection) = self.connection(id)
                    && connection.has_credit(Lane::Reply)
                {
                    let mut second = outgoing.twin();
                    second.body = second.body.renumbered(connection.take_credit(now));
                    let interface = connection.interface;
                    self.interfaces[interface].in_flight += 1;
                    twin = Some(second);
                }
            }
            Some(FaultAction::Corrupt) => outgoing.is_damaged = true,
        }
        for frame in [Some(outgoing), twin].into_iter().flatten() {
            match (leaves_at, self.connection(id)) {
                (Some(at), Some(connection)) => {
                    connection.held.push_back((at, frame));
                    self.set_timer(at);
                }
                _ => self.push_outgoing(id, frame),
            }
        }
    }

    /// Lets go of the frames whose delay is over.
    fn release_held(&mut self, now: Instant) {
        let mut is_holding = false;
        for slot in 0..self.slots.len() {
            let Slot { generation, connection: Some(connection) } = &mut self.slots[slot] else { continue };
            let id = ConnectionId(u64::from(*generation) << 32 | wide(slot));
            let due = connection.held.iter().take_while(|(at, _)| *at <= now).count();
            let frames: Vec<Outgoing> = connection.held.drain(..due).map(|(_, frame)| frame).collect();
            let next = connection.held.front().map(|(at, _)| *at);
            for frame in frames {
                self.push_outgoing(id, frame);
            }
            if let Some(next) = next {
                is_holding = true;
                self.set_timer(next);
            }
        }
        self.is_faulty = is_holding || !self.faults.is_empty();
    }

    pub(crate) fn fault_add(&mut self, rule: FaultRule) -> Result<FaultId, FaultError> {
        let id = self.faults.add(rule)?;
        self.is_faulty = true;
        Ok(id)
    }

    pub(crate) fn fault_list(&self) -> Vec<FaultStatus> {
        self.faults.list()
    }

    /// What a rule that goes has held back still leaves at its time.
    pub(crate) fn fault_clear(&mut self, id: Option<FaultId>) -> usize {
        let count = self.faults.clear(id);
        let now = self.seen_now;
        self.release_held(now);
        count
    }

    #[inline(always)] // a frame is large: as a call it would be moved once more
    fn push_outgoing(&mut self, id: ConnectionId, outgoing: Outgoing) {
        let Some(connection) = self.connection(id) else { return };
        connection.outbox.push_back(outgoing);
        self.mark_dirty(id);
    }

    /// The flush at the end of this turn looks at what the connection has to send.
    pub(crate) fn mark_dirty(&mut self, id: ConnectionId) {
        let Some(connection) = self.connection(id) else { return };
        if !std::mem::replace(&mut connection.is_dirty, true) {
            let interface = connection.interface;
            if interface == self.active {
                self.dirty.push_back(id);
            } else {
                self.parked[interface].dirty.push_back(id);
            }
        }
    }

    pub(crate) fn post_bare(&mut self, id: ConnectionId, body: FrameBody) {
        self.post(id, body, Payload::None, None);
    }

    fn our_hello(&mut self, id: ConnectionId) -> Payload {
        let (nonce, interface) =
            self.connection(id).map_or((0, 0), |connection| (connection.nonce, connection.interface));
        // Behind a certificate there is nothing to share.
        let token = match &self.security {
            Security::Shared(token) => token.clone(),
            Security::Certificates(_) => Token::new([0; 32]),
        };
        let hello = Hello {
            version_min: VERSION_MIN,
            version_max: VERSION,
            window: CREDIT_WINDOW,
            epoch: self.epoch,
            config_version: self.config_version.get(),
            endpoint: self.endpoint,
            token,
            features: self.features(),
            rail: self.interfaces[interface].nid,
            nonce,
        };
        Payload::Hello(Box::new(hello.encode()))
    }

    // ---- sending

    pub(crate) fn try_send(
        &mut self,
        now: Instant,
        to: PeerId,
        options: SendOptions<'_>,
        message: SharedBuffer,
    ) -> Result<(), (Refused, SharedBuffer)> {
        let SendOptions { lane, exposes, invalidates, follows, header_data } = options;
        let follows = follows.or(invalidates);
        assert!(exposes.len() <= EXPOSES_MAX, "a message exposes at most a source and a sink");
        // Without hardware that touches it there is nothing to carry.
        let exposes = Exposes::from_slice(if self.carriage.remote_access { exposes } else { &[] });
        if message.is_empty() || wide(message.len()) > MESSAGE_BYTES_MAX {
            return Err((Refused::Length, message));
        }
        let target = PutTarget::message(lane.match_bits(), header_data);
        let body = FrameBody::Put { sequence: 0, extension_bytes: 0, target };
        if follows.is_none()
            && exposes.is_empty()
            && let Some(id) = self.only_rail(to, lane)
        {
            // The usual case by itself: a frame is large, and each hand that it goes through moves it.
            self.post_message(now, id, Outgoing::new(body, Payload::Bytes(message)));
            return Ok(());
        }
        let plain = Outgoing::new(body, Payload::Bytes(message));
        let frame = Outgoing { exposes, invalidates, follows, ..plain };
        let waiting = Waiting { frame, epoch: to.epoch };
        match self.submit(now, to.endpoint, lane, waiting) {
            Ok(()) => Ok(()),
            Err((refused, Waiting { frame: Outgoing { payload: Payload::Bytes(message), .. }, .. })) => {
                Err((refused, message))
            }
            Err(_) => unreachable!("what goes in as bytes comes back as bytes"),
        }
    }

    /// Posts a frame that takes a credit, or keeps it until there is a connection.
    #[allow(clippy::result_large_err)] // what is refused goes back to its sender, without an allocation
    pub(crate) fn submit(
        &mut self,
        now: Instant,
        to: Endpoint,
        lane: Lane,
        waiting: Waiting,
    ) -> Result<(), (Refused, Waiting)> {
        let refused = match self.choose_rail(to, lane, &waiting) {
            Choice::Rail(id) => {
                self.post_message(now, id, waiting.frame);
                return Ok(());
            }
            Choice::Stale => return Err((Refused::Stale, waiting)),
            Choice::PushesLost => {
                self.stats.replies_withheld += 1;
                return Err((Refused::PushesLost, waiting));
            }
            Choice::NoCredit => {
                self.set_timer(now + ms(self.times.credit_ping_ms));
                Refused::NoCredit
            }
            Choice::Down => {
                if !self.peers.contains_key(&to)
                    && let Err(refused) = self.check_reachable(to)
                {
                    return Err((refused, waiting));
                }
                if is_dynamic(to) {
                    return Err((Refused::NotConnected, waiting));
                }
                let interface = self.interface_on(to).unwrap_or(0);
                let peer = self.peers.entry(to).or_insert_with(|| Peer::new(interface, to));
                if peer.waiting.len() < WAITING_MESSAGES_MAX {
                    peer.waiting.push_back(waiting);
                    if peer.rails.iter().all(|rail| rail.link == Link::Idle) {
                        self.dial_best(now, to);
                    }
                    return Ok(());
                }
                Refused::QueueFull
            }
        };
        if let Some(peer) = self.peers.get_mut(&to) {
            peer.wants_writable = true;
        }
        self.stats.sends_refused += 1;
        Err((refused, waiting))
    }

    /// Our interface on the net of an endpoint.
    pub(crate) fn interface_on(&self, endpoint: Endpoint) -> Option<usize> {
        self.interfaces.iter().position(|interface| interface.nid.net == endpoint.nid.net)
    }

    fn check_reachable(&self, endpoint: Endpoint) -> Result<(), Refused> {
        let is_ours = self.interfaces.iter().any(|interface| interface.nid == endpoint.nid);
        if is_ours && (Endpoint { nid: self.endpoint.nid, ..endpoint }) == self.endpoint {
            return Err(Refused::Myself);
        }
        if self.interface_on(endpoint).is_none() {
            let no_rdma = endpoint.nid.net.kind == NetKind::O2ib && self.carriage.net != NetKind::O2ib;
            return Err(if no_rdma { Refused::NoRdma } else { Refused::WrongNet });
        }
        if is_dynamic(endpoint) {
            return Err(Refused::NotConnected);
        }
        if matches!(self.carriage.net, NetKind::Tcp | NetKind::O2ib) && endpoint.port().is_none() {
            return Err(Refused::PortalWithoutPort);
        }
        Ok(())
    }

    /// Gives a frame its number, and the credit that it takes.
    #[inline(always)] // a frame is large: as a call it would be moved once more
    pub(crate) fn post_message(&mut self, now: Instant, id: ConnectionId, mut frame: Outgoing) {
        self.set_timer(now + ms(self.times.idle_ping_ms));
        let Some(connection) = self.connection(id) else { return };
        let sequence = connection.take_credit(now);
        let interface = connection.interface;
        self.interfaces[interface].in_flight += 1;
        self.stats.messages_sent += 1;
        frame.body = frame.body.renumbered(sequence);
        self.on_posted(id, &frame.body);
        self.post_outgoing(id, frame);
    }

    /// Dials a rail now, or when the pause after its last failure is over.
    pub(crate) fn schedule_dial(&mut self, now: Instant, endpoint: Endpoint, index: usize) {
        let Some(peer) = self.peers.get_mut(&endpoint) else { return };
        let Some(rail) = peer.rails.get_mut(index) else { return };
        if now < rail.not_before {
            rail.link = Link::Scheduled;
            let at = rail.not_before;
            self.set_timer(at);
            return;
        }
        let (interface, nid) = (rail.interface, rail.nid);
        let mut connection = Connection::new(Phase::Dialing, Some(endpoint), now);
        connection.interface = interface;
        connection.rail = nid;
        let Some(id) = self.open(connection) else {
            self.fail_peer(
                now,
                endpoint,
                0,
                NetError::Local(LocalError::TooManyConnections { max: CONNECTIONS_MAX }),
            );
            return;
        };
        if let Some(rail) = self.peers.get_mut(&endpoint).and_then(|peer| peer.rails.get_mut(index)) {
            rail.link = Link::Dialing(id);
        }
        self.stats.dials += 1;
        self.set_timer(now + ms(self.times.hello_ms_max));
        self.act(interface, Action::Dial(id, Endpoint { nid, ..endpoint }));
        let hello = self.our_hello(id);
        self.post(id, FrameBody::Hello, hello, None);
    }

    // ---- connections coming and going

    /// A stranger connected. `None`: turn it away at once.
    pub(crate) fn accept(&mut self, now: Instant) -> Option<ConnectionId> {
        self.stats.accepts += 1;
        if self.greeting_count >= HALF_OPEN_MAX {
            self.stats.turned_away += 1;
            return None;
        }
        let mut connection = Connection::new(Phase::Greeting, None, now);
        connection.interface = self.active;
        let Some(id) = self.open(connection) else {
            self.stats.turned_away += 1;
            return None;
        };
        self.greeting_count += 1;
        self.set_timer(now + ms(self.times.hello_ms_max));
        Some(id)
    }

    fn set_phase(&mut self, id: ConnectionId, phase: Phase) {
        let Some(connection) = self.connection(id) else { return };
        let before = std::mem::replace(&mut connection.phase, phase);
        if before == Phase::Greeting {
            self.greeting_count -= 1;
        }
        if before == Phase::Up {
            self.stats.peers_connected -= 1;
        }
        if phase == Phase::Up {
            self.stats.peers_connected += 1;
        }
    }

    /// Ends a connection without a word to the layer above.
    pub(crate) fn end(&mut self, id: ConnectionId) {
        let Some(connection) = self.connection(id) else { return };
        if connection.phase != Phase::Ended {
            let (interface, in_flight) = (connection.interface, connection.give_up_credits());
            self.interfaces[interface].in_flight -= in_flight;
            self.set_phase(id, Phase::Ended);
            self.act(interface, Action::Close(id));
        }
    }

    pub(crate) fn fail_transfers(&mut self, id: ConnectionId, error: &NetError) {
        if self.connection(id).is_none_or(|connection| connection.transfers == 0) {
            return;
        }
        let theirs: Vec<u64> = self
            .transfers
            .iter()
            .filter(|(_, transfer)| transfer.connection == id)
            .map(|(transfer, _)| *transfer)
            .collect();
        for transfer in theirs {
            self.finish(transfer, Err(error.clone()));
        }
    }

    /// The backend found the connection closed, or could not make it.
    pub(crate) fn handle_closed(&mut self, now: Instant, id: ConnectionId, error: NetError) {
        self.lose(now, id, error);
    }

    /// The peer broke the protocol: count, keep the evidence, end its connection.
    pub(crate) fn handle_misbehaviour(&mut self, now: Instant, id: ConnectionId, what: PeerMisbehaved) {
        let Some(connection) = self.connection(id) else { return };
        if connection.phase == Phase::Ended {
            return;
        }
        let endpoint = connection.endpoint;
        // Nothing may follow what we could not understand, and a stranger gets no answer.
        connection.outbox.clear();
        connection.held.clear();
        self.stats.misbehaved += 1;
        self.stats.last_misbehaved = Some((endpoint, what));
        self.lose(now, id, NetError::Protocol(what));
    }

    pub(crate) fn drop_peer(&mut self, endpoint: Endpoint, epoch: u64) {
        let Some(peer) = self.peers.get(&endpoint) else { return };
        let links: SmallVec<[Link; 2]> = peer.rails.iter().map(|rail| rail.link).collect();
        let first_up = peer.rails.iter().find_map(Rail::up);
        if let Some(id) = first_up
            && epoch != 0
            && self.connection(id).is_some_and(|connection| connection.epoch != epoch)
        {
            return;
        }
        for link in links {
            let (Link::Up(id) | Link::Dialing(id)) = link else { continue };
            if matches!(link, Link::Up(_)) {
                self.post_bare(id, FrameBody::Close);
            }
            self.end(id);
            self.fail_transfers(id, &NetError::Canceled);
            self.portals.retain_early(|early| early.connection != id);
        }
        self.fail_operations(endpoint, &NetError::Canceled);
        self.peers.remove(&endpoint);
    }

    /// True if the hello is complete and the connection not ended.
    pub(crate) fn is_up(&mut self, id: ConnectionId) -> bool {
        self.connection(id).is_some_and(|connection| connection.phase == Phase::Up)
    }

    /// Something became outstanding that only the backend knows of: look at liveness in time.
    pub(crate) fn watch(&mut self, now: Instant) {
        self.set_timer(now + ms(self.times.idle_ping_ms));
    }

    // ---- frames coming in

    /// One frame that is not streaming bulk. On error the connection has been ended.
    pub(crate) fn handle_frame(&mut self, now: Instant, id: ConnectionId, frame: &Frame, payload: Payload) {
        if let Err(what) = self.handle(now, id, frame, payload) {
            self.handle_misbehaviour(now, id, what);
        }
    }

    /// Checks that every frame passes: phase, epoch, credits. False: ignore it.
    fn admit(&mut self, now: Instant, id: ConnectionId, frame: &Frame) -> Result<bool, PeerMisbehaved> {
        let epoch = self.epoch;
        let Some(connection) = self.connection(id) else { return Ok(false) };
        let kind = frame.body.kind();
        let unexpected = Err(PeerMisbehaved::Unexpected { kind, state: connection.phase.word() });
        use FrameBody as B;
        match (connection.phase, &frame.body) {
            (Phase::Ended, _) => return Ok(false),
            (Phase::Greeting, B::Hello) => return Ok(true),
            (Phase::Dialing, B::HelloAck | B::Reject { .. } | B::Close) => {}
            (Phase::Up, B::Hello | B::HelloAck | B::Reject { .. }) => return unexpected,
            (Phase::Up, _) => {}
            _ => return unexpected,
        }
        // The stamp holds our incarnation and this connection's nonce: neither a stale peer nor bytes of another connection have it.
        let want = epoch ^ connection.nonce;
        if frame.to_epoch != want {
            return Err(PeerMisbehaved::WrongEpoch { got: frame.to_epoch, want });
        }
        connection.hear(now);
        let returned = connection.handle_credits(frame.credits)?;
        let interface = connection.interface;
        if !connection.is_confirmed && connection.phase == Phase::Up {
            self.confirm(id);
        }
        if returned > 0 {
            self.interfaces[interface].in_flight -= returned;
            self.on_delivered(id, returned);
        }
        self.after_credits(now, id);
        Ok(true)
    }

    /// Credits may have come back: let those know who were refused.
    fn after_credits(&mut self, now: Instant, id: ConnectionId) {
        self.pay(now, id);
        let Some(connection) = self.connection(id) else { return };
        if !connection.is_starved || !connection.has_credit(Lane::Request) {
            return;
        }
        connection.is_starved = false;
        let Some(endpoint) = connection.endpoint else { return };
        self.notify_writable(endpoint);
    }

    pub(crate) fn notify_writable(&mut self, endpoint: Endpoint) {
        let Some(peer) = self.peers.get_mut(&endpoint) else { return };
        let Some(id) = peer.rails.iter().find_map(Rail::up) else { return };
        if std::mem::take(&mut peer.wants_writable) {
            let epoch = self.connection(id).map_or(0, |connection| connection.epoch);
            self.emit(Event::Writable(PeerId { endpoint, epoch }));
        }
    }

    fn handle(
        &mut self,
        now: Instant,
        id: ConnectionId,
        frame: &Frame,
        payload: Payload,
    ) -> Result<(), PeerMisbehaved> {
        if let (FrameBody::PullData { .. } | FrameBody::PushData { .. }, Payload::Bytes(bytes)) =
            (frame.body, &payload)
        {
            return self.handle_bulk(now, id, frame, bytes.clone());
        }
        if !self.admit(now, id, frame)? {
            return Ok(());
        }
        match (frame.body, payload) {
            (FrameBody::Hello, Payload::Hello(bytes)) => {
                self.handle_hello(now, id, frame.to_epoch, &bytes[..])
            }
            (FrameBody::HelloAck, Payload::Hello(bytes)) => self.handle_hello_ack(now, id, &bytes[..]),
            (FrameBody::Reject { reason, .. }, _) => {
                self.handle_reject(now, id, reason);
                Ok(())
            }
            (FrameBody::Put { extension_bytes: 0, .. }, Payload::Bytes(bytes)) => {
                self.handle_operation(now, id, frame.body, Some(bytes))
            }
            (FrameBody::Put { extension_bytes, .. }, Payload::Bytes(bytes)) => {
                // The frame's parse has checked that a message follows.
                let at = narrow(u64::from(extension_bytes)).min(bytes.len());
                self.handle_extension(id, &bytes[..at])?;
                self.handle_operation(now, id, frame.body, Some(bytes.slice(at..bytes.len())))
            }
            (FrameBody::Put { .. }, Payload::Extended { extension, message }) => {
                self.handle_extension(id, &extension)?;
                self.handle_operation(now, id, frame.body, Some(message))
            }
            (FrameBody::Get { .. }, _) => self.handle_operation(now, id, frame.body, None),
            (FrameBody::Reply { sequence, operation, .. }, payload @ (Payload::Bytes(_) | Payload::None)) => {
                self.handle_answer(id, sequence)?;
                self.handle_reply(id, operation, payload.as_slice())
            }
            (FrameBody::Ack { sequence, operation, offset_bytes, bytes }, _) => {
                self.handle_answer(id, sequence)?;
                self.handle_ack(id, operation, offset_bytes, bytes);
                Ok(())
            }
            (FrameBody::PullRequest { cookie, key, transfer, segment_index, segment_count }, _) => {
                let (first, count) = (usize::from(segment_index), usize::from(segment_count));
                self.serve_pull(id, BulkCookie(cookie), key, transfer, first, count);
                Ok(())
            }
            (FrameBody::PushAck { transfer }, _) => {
                if self.is_push_on(id, transfer) {
                    self.finish(transfer, Ok(()));
                }
                Ok(())
            }
            (FrameBody::PushSeals { cookie, key, .. }, Payload::Bytes(bytes)) => {
                self.handle_push_seals(id, BulkCookie(cookie), key, &bytes)
            }
            (FrameBody::Nak { transfer, reason }, _) => {
                self.stats.naks += 1;
                if self.transfers.get(&transfer).is_some_and(|found| found.connection == id) {
                    self.finish(transfer, Err(NetError::RemoteError { reason }));
                } else {
                    self.handle_operation_nak(id, transfer, reason);
                }
                Ok(())
            }
            (FrameBody::Ping { sequence, nonce }, _) => {
                let Some(connection) = self.connection(id) else { return Ok(()) };
                connection.check_sequence(sequence)?;
                // Frames keep their order except messages that the net lost or is holding back: their credits return now.
                connection.consume(sequence);
                self.post_bare(id, FrameBody::Pong { nonce });
                Ok(())
            }
            (FrameBody::Noop, _) => Ok(()),
            (FrameBody::Pong { .. }, _) => {
                self.on_pong(id);
                Ok(())
            }
            (FrameBody::Close, _) => {
                self.lose(now, id, NetError::RemoteDropped);
                Ok(())
            }
            // A payload of another kind than its frame: only a broken backend could.
            (body, _) => Err(PeerMisbehaved::Unexpected { kind: body.kind(), state: "without its payload" }),
        }
    }

    /// The peer's remote segments, in front of a message.
    fn handle_extension(&mut self, id: ConnectionId, bytes: &[u8]) -> Result<(), PeerMisbehaved> {
        if !self.carriage.remote_access {
            return Err(PeerMisbehaved::BadExtension { what: "this net has no remote access" });
        }
        let exposures = parse_extension(bytes)?;
        let Some(connection) = self.connection(id) else { return Ok(()) };
        for exposure in exposures {
            let is_source = exposure.access == RemoteAccess::Read;
            if exposure.seals.is_empty() == (is_source && connection.opener.is_some()) {
                return Err(PeerMisbehaved::BadExtension {
                    what: "seals where there are none, or none where there are",
                });
            }
            connection.remote.insert(exposure);
        }
        Ok(())
    }

    // ---- hello

    fn handle_hello(
        &mut self,
        now: Instant,
        id: ConnectionId,
        expected_epoch: u64,
        bytes: &[u8],
    ) -> Result<(), PeerMisbehaved> {
        let hello = Hello::parse(bytes)?;
        let Some(connection) = self.connection(id) else { return Ok(()) };
        connection.endpoint = Some(hello.endpoint);
        connection.rail = hello.rail;
        connection.epoch = hello.epoch;
        connection.peer_nonce = hello.nonce;
        let interface = connection.interface;
        // Who it is first: a stranger learns nothing else.
        let judged = self.judge_sender(now, id, &hello);
        if let Err(reason) = judged.and_then(|()| self.judge_hello(&hello, expected_epoch)) {
            self.reject(id, hello.endpoint, reason);
            return Ok(());
        }
        let rails = self.peers.get(&hello.endpoint).map(|peer| &peer.rails[..]).unwrap_or_default();
        let same = rails.iter().find(|rail| rail.interface == interface && rail.nid == hello.rail);
        match same.map(|rail| rail.link) {
            Some(Link::Dialing(other)) => {
                // Both connect at once: the connection that the lower endpoint makes is kept.
                if self.endpoint < hello.endpoint {
                    self.reject(id, hello.endpoint, RefuseReason::Race);
                    return Ok(());
                }
                self.end(other);
            }
            Some(Link::Up(other)) if self.is_late_race(now, other, &hello) => {
                self.reject(id, hello.endpoint, RefuseReason::Race);
                return Ok(());
            }
            Some(Link::Up(other)) => {
                let is_same = self.connection(other).is_some_and(|old| old.epoch == hello.epoch);
                let error = if is_same { NetError::RemoteDropped } else { NetError::Stale };
                self.lose(now, other, error);
            }
            _ => {}
        }
        let ack = self.our_hello(id);
        self.post(id, FrameBody::HelloAck, ack, None);
        self.go_up(now, id, &hello);
        Ok(())
    }

    /// True if `hello` is the loser of a race that comes late: its sender has closed it by now, or will try again.
    fn is_late_race(&mut self, now: Instant, up: ConnectionId, hello: &Hello) -> bool {
        let (is_lower, raced_ms) = (self.endpoint < hello.endpoint, self.times.hello_ms_max);
        self.connection(up).is_some_and(|found| {
            is_lower && found.is_dialled && found.epoch == hello.epoch && now < found.since + ms(raced_ms)
        })
    }

    fn judge_hello(&self, hello: &Hello, expected_epoch: u64) -> Result<(), RefuseReason> {
        if hello.common_version().is_none() {
            return Err(RefuseReason::Version);
        }
        if !self.listen {
            return Err(RefuseReason::NotListening);
        }
        if expected_epoch != 0 && expected_epoch != self.epoch {
            return Err(RefuseReason::StaleEpoch);
        }
        if hello.endpoint == self.endpoint {
            return Err(RefuseReason::WrongEndpoint);
        }
        // Another incarnation has taken its place: this is one that did not notice, or a recording.
        let retired = self.peers.get(&hello.endpoint).map(|peer| &peer.retired);
        if retired.is_some_and(|retired| retired.contains(&hello.epoch)) {
            return Err(RefuseReason::StaleEpoch);
        }
        Ok(())
    }

    fn reject(&mut self, id: ConnectionId, endpoint: Endpoint, reason: RefuseReason) {
        if reason != RefuseReason::Race {
            self.stats.refused_by_us += 1;
            self.stats.last_refused = Some((endpoint, reason));
        }
        let epoch = self.epoch;
        self.post_bare(id, FrameBody::Reject { reason, epoch });
        self.end(id);
    }

    fn handle_hello_ack(
        &mut self,
        now: Instant,
        id: ConnectionId,
        bytes: &[u8],
    ) -> Result<(), PeerMisbehaved> {
        let hello = Hello::parse(bytes)?;
        let dialled = self.connection(id).map(|connection| (connection.endpoint, connection.rail));
        let reason = if let Err(reason) = self.judge_sender(now, id, &hello) {
            Some(reason)
        } else if hello.common_version().is_none() {
            Some(RefuseReason::Version)
        } else if dialled != Some((Some(hello.endpoint), hello.rail)) {
            Some(RefuseReason::WrongEndpoint)
        } else {
            None
        };
        if let Some(reason) = reason {
            self.stats.refused_by_us += 1;
            self.stats.last_refused = Some((hello.endpoint, reason));
            self.lose(now, id, NetError::Refused { reason });
            return Ok(());
        }
        self.go_up(now, id, &hello);
        Ok(())
    }

    fn handle_reject(&mut self, now: Instant, id: ConnectionId, reason: RefuseReason) {
        self.stats.refused_by_peer += 1;
        match reason {
            RefuseReason::Race => {
                // The other connection takes our messages along; if it never comes, we dial again after a pause.
                self.end(id);
                let pause = reconnect_pause(&self.times, 1, self.random.u64(..));
                let endpoint = self.connection(id).and_then(|connection| connection.endpoint);
                let Some(peer) = endpoint.and_then(|endpoint| self.peers.get_mut(&endpoint)) else { return };
                if let Some(rail) = peer.rails.iter_mut().find(|rail| rail.link == Link::Dialing(id)) {
                    rail.link = Link::Scheduled;
                    rail.not_before = now + pause;
                    self.set_timer(now + pause);
                }
            }
            RefuseReason::StaleEpoch => self.lose(now, id, NetError::Stale),
            _ => self.lose(now, id, NetError::Refused { reason }),
        }
    }

    fn go_up(&mut self, now: Instant, id: ConnectionId, hello: &Hello) {
        let (endpoint, epoch) = (hello.endpoint, hello.epoch);
        // Rails of an incarnation that this one replaces.
        let rails = self.peers.get(&endpoint).map(|peer| &peer.rails[..]).unwrap_or_default();
        let others: SmallVec<[ConnectionId; 4]> = rails.iter().filter_map(Rail::up).collect();
        for other in others {
            if self.connection(other).is_some_and(|connection| connection.epoch != epoch) {
                self.lose(now, other, NetError::Stale);
            }
        }
        self.set_phase(id, Phase::Up);
        let Some(connection) = self.connection(id) else { return };
        connection.epoch = epoch;
        connection.peer_nonce = hello.nonce;
        connection.version = hello.common_version().unwrap_or(VERSION_MIN);
        connection.window = hello.window.min(CREDIT_WINDOW);
        connection.since = now;
        connection.hear(now);
        let (interface, nid, is_dialled) = (connection.interface, connection.rail, connection.is_dialled);
        self.admit_peer(id, PeerId { endpoint, epoch });
        let peer = self.peers.entry(endpoint).or_insert_with(Peer::empty);
        let was_up = peer.rails.iter().any(|rail| rail.up().is_some());
        let index = peer
            .rails
            .iter()
            .position(|rail| rail.is_on(id))
            .or_else(|| peer.rails.iter().position(|rail| rail.interface == interface && rail.nid == nid))
            .unwrap_or_else(|| {
                peer.rails.push(Rail::new(interface, nid));
                peer.rails.len() - 1
            });
        let rail = &mut peer.rails[index];
        rail.link = Link::Up(id);
        rail.is_confirmed = is_dialled || !was_up;
        rail.failures = 0;
        rail.not_before = Instant::ZERO;
        self.stats.peers_up += 1;
        if was_up {
            self.stats.rails_up += 1;
            if is_dialled {
                // The other side waits for a word before it uses the rail: its answer to our hello might not have come.
                self.post_bare(id, FrameBody::Noop);
            }
        } else {
            self.emit(Event::PeerUp(PeerId { endpoint, epoch }, hello.config_version));
        }
        let waiting = self.peers.get_mut(&endpoint).map(|peer| std::mem::take(&mut peer.waiting));
        for message in waiting.unwrap_or_default() {
            // All fit: WAITING_MESSAGES_MAX is the request window, unless the peer claimed a smaller one.
            let has_credit = self.connection(id).is_some_and(|found| found.has_credit(Lane::Reply));
            if (message.epoch == 0 || message.epoch == epoch) && has_credit {
                self.post_message(now, id, message.frame);
            } else {
                self.stats.stale_dropped += 1;
                self.on_not_posted(&message.frame.body, &NetError::Stale);
            }
        }
        self.notify_writable(endpoint);
        self.discover_rails(now, PeerId { endpoint, epoch }, id, hello.features);
    }

    // ---- bulk: the side whose memory is exposed

    pub(crate) fn expose_source(&mut self, parts: &[SharedBuffer]) -> BulkDescriptor {
        let key = self.random.u64(..);
        self.exposures.expose_source(parts, key)
    }

    pub(crate) fn expose_sink(&mut self, parts: Vec<Buffer>) -> BulkDescriptor {
        let key = self.random.u64(..);
        // Over verbs the device holds the memory together with us, so it is shared from the start.
        let is_shared = self.carriage.net == NetKind::O2ib;
        self.exposures.expose_sink(parts, key, is_shared)
    }

    /// Ends an exposure: the memory at once, or later by `Event::Retracted` if hardware may still touch it.
    pub(crate) fn retract(&mut self, now: Instant, cookie: BulkCookie, how: Retract) -> Retraction {
        let deadline = now + ms(self.times.abandoned_ms_max);
        let mut revoke = Vec::new();
        let is_current = current_connections(&self.slots);
        let retracted = self.exposures.retract(cookie, how, deadline, is_current, &mut revoke);
        let retraction = retracted.unwrap_or_else(|broken| Retraction::Broken(self.blame_broken(broken)));
        for connection in revoke {
            let interface = self.connection(connection).map_or(0, |found| found.interface);
            self.act(interface, Action::Revoke(connection, cookie));
        }
        if matches!(retraction, Retraction::Pending) {
            self.set_timer(deadline);
        }
        retraction
    }

    /// The answer to an abandoned request has come: what waited for it is given back.
    pub(crate) fn settle(&mut self, cookie: BulkCookie) {
        let is_current = current_connections(&self.slots);
        if let Some(returned) = self.exposures.settle_retiring(cookie, is_current) {
            self.give_back(cookie, returned);
        }
    }

    /// Memory that nothing touches any more goes to the layer above.
    fn give_back(&mut self, cookie: BulkCookie, returned: Returned) {
        let parts = returned.map_err(|broken| self.blame_broken(broken));
        self.emit(Event::Retracted { cookie, parts });
    }

    /// A push that does not open ends its connection, if that still stands.
    fn blame_broken(&mut self, broken: BrokenSink) -> NetError {
        if let (Some(connection), NetError::Protocol(what)) = (broken.connection, &broken.error) {
            let now = self.seen_now;
            self.handle_misbehaviour(now, connection, *what);
        }
        broken.error
    }

    /// Sealed connections of a net with remote access: what opens the segments that a push has written.
    fn handle_push_seals(
        &mut self,
        id: ConnectionId,
        cookie: BulkCookie,
        key: u64,
        bytes: &[u8],
    ) -> Result<(), PeerMisbehaved> {
        let Some(opener) = self.connection(id).and_then(|found| found.opener.clone()) else {
            let state = "on a connection that is not sealed";
            return Err(PeerMisbehaved::Unexpected { kind: FrameKind::PushSeals, state });
        };
        let seals = parse_push_seals(bytes)?;
        for PushSeal { segment_index, .. } in &seals {
            // What was retracted meanwhile is not missed; the memory was never the peer's to write.
            if self.exposures.check_sink(cookie, key, usize::from(*segment_index), 0, 0).is_err() {
                return Ok(());
            }
        }
        self.exposures.note_seals(cookie, id, &opener, &seals);
        Ok(())
    }

    /// Remote access: what to bind before a message that exposes `cookie` is posted; `None`: leave it out.
    pub(crate) fn exposure_view(&mut self, cookie: BulkCookie) -> Option<ExposureView<'_>> {
        self.exposures.view(cookie)
    }

    /// Remote access: the exposure is bound for the hardware of that connection. Call before the message is posted.
    pub(crate) fn handle_bound(&mut self, id: ConnectionId, cookie: BulkCookie, scope: BindingScope) {
        self.exposures.bind(cookie, id, scope);
    }

    /// Remote access: true while hardware of that connection may touch the exposure, as far as the core knows.
    pub(crate) fn is_bound(&self, cookie: BulkCookie, id: ConnectionId) -> bool {
        self.exposures.is_bound(cookie, id)
    }

    /// Remote access: the windows of an exposure are invalid on that connection, by our own invalidation or by the peer's
    /// SEND. May come before or after the exposure is retracted.
    pub(crate) fn handle_revoked(&mut self, id: ConnectionId, cookie: BulkCookie) {
        if let Some(returned) = self.exposures.unbind(cookie, id) {
            self.give_back(cookie, returned);
        }
    }

    /// The simulation's hardware: a sink segment, also of an exposure that waits for its last binding to go.
    pub(crate) fn hardware_sink(
        &mut self,
        cookie: BulkCookie,
        segment_index: usize,
    ) -> Option<&mut SinkPart> {
        self.exposures.hardware_sink(cookie, segment_index)
    }

    /// The simulation's hardware: a source segment.
    pub(crate) fn hardware_source(
        &mut self,
        cookie: BulkCookie,
        segment_index: usize,
    ) -> Option<&SharedBuffer> {
        self.exposures.hardware_source(cookie, segment_index)
    }

    /// True if bulk may come in on this connection, so that reads stop at headers and the bytes land where they belong.
    pub(crate) fn expects_bulk(&mut self, id: ConnectionId) -> bool {
        self.exposures.has_sinks() || self.connection(id).is_some_and(|connection| connection.pulls > 0)
    }

    #[cfg(test)]
    pub(crate) fn peek_sink(&mut self, cookie: BulkCookie, segment_index: usize) -> &[u8] {
        self.exposures.sink_buffer(cookie, segment_index).map_or(&[], |buffer| &buffer[..])
    }

    pub(crate) fn nak(&mut self, id: ConnectionId, transfer: u64, reason: NakReason) {
        self.stats.naks += 1;
        self.post_bare(id, FrameBody::Nak { transfer, reason });
    }

    fn serve_pull(
        &mut self,
        id: ConnectionId,
        cookie: BulkCookie,
        key: u64,
        transfer: u64,
        first: usize,
        count: usize,
    ) {
        let parts: Vec<SharedBuffer> = match self.exposures.source_parts(cookie, key, first, count) {
            Ok(parts) => parts.to_vec(),
            Err(reason) => return self.nak(id, transfer, reason),
        };
        for (index, part) in parts.iter().enumerate() {
            // The header's parse bounds first + count by BULK_SEGMENTS_MAX.
            let segment_index = u8::try_from(first + index).unwrap_or(u8::MAX);
            for (offset_bytes, piece) in pieces(part, BULK_PIECE_BYTES) {
                self.stats.bulk_bytes_sent += wide(piece.len());
                let body = FrameBody::PullData { transfer, segment_index, offset_bytes };
                self.post(id, body, Payload::Bytes(piece), None);
            }
        }
    }

    // ---- bulk: the side that drives

    /// Remote access: checks a transfer against what the peer has bound for this connection.
    fn check_remote(
        &mut self,
        id: ConnectionId,
        descriptor: &BulkDescriptor,
        access: RemoteAccess,
    ) -> Result<(), NetError> {
        if !self.carriage.remote_access {
            return Ok(());
        }
        let Some(connection) = self.connection(id) else { return Err(NetError::RemoteDropped) };
        match connection.remote.check(descriptor, access) {
            Ok(true) => Ok(()),
            Ok(false) => Err(NetError::Local(LocalError::NoRemoteSegments { cookie: descriptor.cookie.0 })),
            Err(reason) => Err(NetError::RemoteError { reason }),
        }
    }

    /// Remote access: a segment of the peer, for a READ or WRITE; `None` if it was dropped for newer ones.
    pub(crate) fn remote_segment(
        &mut self,
        id: ConnectionId,
        cookie: u64,
        segment_index: usize,
    ) -> Option<RemoteSegment> {
        self.connection(id)?.remote.get(BulkCookie(cookie))?.segments.get(segment_index).copied()
    }

    /// Remote access: what opens the segments of a source, if the connection is sealed, and the key of the exposure.
    pub(crate) fn remote_seals(
        &mut self,
        id: ConnectionId,
        cookie: u64,
    ) -> Option<(u64, SmallVec<[Seal; 4]>)> {
        let exposure = self.connection(id)?.remote.get(BulkCookie(cookie))?;
        (!exposure.seals.is_empty()).then(|| (exposure.key, exposure.seals.clone()))
    }

    /// True while somebody waits for a transfer.
    pub(crate) fn has_transfer(&self, transfer: u64) -> bool {
        self.transfers.contains_key(&transfer)
    }

    /// Remote access: a reply ends the peer's exposure. Answers what was bound, for a SEND with invalidation.
    pub(crate) fn take_remote(&mut self, id: ConnectionId, cookie: BulkCookie) -> Option<RemoteExposure> {
        self.connection(id)?.remote.remove(cookie)
    }

    /// Remote access: the buffers of a pull whose `PullRequest` is to become READs; `None` if it has ended meanwhile.
    pub(crate) fn lend_pull(&mut self, transfer: u64) -> Option<LentPull> {
        self.transfers.get_mut(&transfer)?.lend()
    }

    /// Remote access: the READs of a pull are complete, or failed (then its buffers stay with the backend until the hardware is
    /// done with them). A pull that has ended meanwhile gives its buffers back to the arena.
    pub(crate) fn handle_read_done(&mut self, transfer: u64, result: Result<Vec<Buffer>, NetError>) {
        let buffers = match result {
            Ok(buffers) => buffers,
            Err(error) => return self.finish(transfer, Err(error)),
        };
        let bytes = buffers.iter().map(|buffer| wide(buffer.len())).sum::<u64>();
        let Some(found) = self.transfers.get_mut(&transfer) else {
            self.stats.bulk_bytes_late += bytes;
            return;
        };
        if found.take_back(buffers) {
            self.stats.bulk_bytes_received += bytes;
            self.counters.bulk_bytes.add(bytes);
            self.finish(transfer, Ok(()));
        }
    }

    /// Remote access: a transfer cannot be done, or its work request failed.
    pub(crate) fn handle_transfer_failed(&mut self, transfer: u64, error: NetError) {
        self.finish(transfer, Err(error));
    }

    /// The rail that a transfer takes: the one that its exposure is bound on, the one that pushes to it went over, or the best.
    fn live_connection(
        &mut self,
        peer: PeerId,
        descriptor: &BulkDescriptor,
    ) -> Result<ConnectionId, NetError> {
        let rails = self.peers.get(&peer.endpoint).map(|found| &found.rails[..]).unwrap_or_default();
        let up: SmallVec<[ConnectionId; 4]> = rails.iter().filter_map(Rail::up).collect();
        let Some(first) = up.first().copied() else { return Err(NetError::RemoteDropped) };
        let epoch = self.connection(first).map_or(0, |connection| connection.epoch);
        if peer.epoch != 0 && peer.epoch != epoch {
            return Err(NetError::Stale);
        }
        if self.transfers.len() >= TRANSFERS_MAX {
            return Err(NetError::Local(LocalError::TooManyTransfers { max: TRANSFERS_MAX }));
        }
        if up.len() == 1 {
            return Ok(first);
        }
        if let Some(before) = self.pushed.binding(PeerId { epoch, ..peer }, descriptor.cookie)
            && up.contains(&before)
        {
            return Ok(before);
        }
        if self.carriage.remote_access {
            let knows = |id: &ConnectionId| {
                self.connection(*id).is_some_and(|found| found.remote.get(descriptor.cookie).is_some())
            };
            return Ok(up.iter().copied().find(knows).unwrap_or(first));
        }
        Ok(self.best_rail(peer.endpoint, None).unwrap_or(first))
    }

    pub(crate) fn next_transfer_id(&mut self) -> u64 {
        let id = self.next_transfer;
        self.next_transfer += 1;
        id
    }

    fn fail_at_once(&mut self, id: u64, error: NetError) -> TransferId {
        self.stats.transfers_failed += 1;
        self.emit(Event::TransferDone { id: TransferId(id), result: Err(error) });
        TransferId(id)
    }

    fn insert_transfer(&mut self, now: Instant, id: u64, transfer: Transfer) {
        self.set_timer(transfer.deadline.min(now + ms(self.times.idle_ping_ms)));
        let is_pull = transfer.is_pull();
        if let Some(connection) = self.connection(transfer.connection) {
            connection.start_waiting(now);
            connection.transfers += 1;
            connection.pulls += u32::from(is_pull);
        }
        self.transfers.insert(id, transfer);
    }

    pub(crate) fn start_pull(
        &mut self,
        now: Instant,
        peer: PeerId,
        from: &BulkDescriptor,
        deadline: Instant,
    ) -> TransferId {
        let id = self.next_transfer_id();
        let connection = match self.live_connection(peer, from) {
            Ok(connection) => connection,
            Err(error) => return self.fail_at_once(id, error),
        };
        if let Err(error) = self.check_remote(connection, from, RemoteAccess::Read) {
            return self.fail_at_once(id, error);
        }
        self.insert_transfer(now, id, Transfer::pull(connection, from, id, deadline));
        self.memory_queue.push_back(id);
        self.request_pulls();
        TransferId(id)
    }

    /// Sends the requests of pulls that have all their buffers, oldest first; stops at the first that has not.
    pub(crate) fn request_pulls(&mut self) {
        while let Some(id) = self.memory_queue.front().copied() {
            if let Some(transfer) = self.transfers.get_mut(&id) {
                let TransferKind::Pull { segments, request, is_requested, .. } = &mut transfer.kind else {
                    self.memory_queue.pop_front();
                    continue;
                };
                if self.carriage.streams || self.carriage.remote_access {
                    for segment in segments.iter_mut() {
                        if !matches!(segment.content, PullContent::Empty) {
                            continue;
                        }
                        match self.memory.alloc(narrow(u64::from(segment.bytes))) {
                            Some(buffer) => segment.content = PullContent::Own(buffer),
                            None => return,
                        }
                    }
                }
                *is_requested = true;
                let (connection, request) = (transfer.connection, *request);
                self.post_bare(connection, request);
            }
            self.memory_queue.pop_front();
        }
    }

    pub(crate) fn start_push(
        &mut self,
        now: Instant,
        peer: PeerId,
        to: &BulkDescriptor,
        first: usize,
        parts: Vec<SharedBuffer>,
        deadline: Instant,
    ) -> TransferId {
        let id = self.next_transfer_id();
        let misfit = parts.iter().enumerate().find_map(|(part_index, part)| {
            let segment_bytes = to.segments.get(first + part_index).copied().map_or(0, u64::from);
            let part_bytes = wide(part.len());
            (part_bytes != segment_bytes).then_some(LocalError::PartLength {
                part_index,
                part_bytes,
                segment_bytes,
            })
        });
        let empty = LocalError::PartLength { part_index: 0, part_bytes: 0, segment_bytes: 0 };
        let misfit = misfit.or(parts.is_empty().then_some(empty));
        if let Some(error) = misfit {
            return self.fail_at_once(id, NetError::Local(error));
        }
        let connection = match self.live_connection(peer, to) {
            Ok(connection) => connection,
            Err(error) => return self.fail_at_once(id, error),
        };
        if let Err(error) = self.check_remote(connection, to, RemoteAccess::Write) {
            return self.fail_at_once(id, error);
        }
        self.insert_transfer(
            now,
            id,
            Transfer {
                connection,
                deadline,
                kind: TransferKind::Push { to: to.cookie },
                is_incomplete: false,
            },
        );
        let epoch = self.connection(connection).map_or(0, |connection| connection.epoch);
        self.pushed.note(PeerId { epoch, ..peer }, to.cookie, connection);
        // At most BULK_SEGMENTS_MAX segments of 1 MiB.
        let total_bytes = parts
            .iter()
            .map(|part| u32::try_from(part.len()).unwrap_or(u32::MAX))
            .fold(0, u32::saturating_add);
        let ack_wanted = self.carriage.loses_frames;
        let part_count = parts.len();
        for (index, part) in parts.iter().enumerate() {
            let segment_index = u8::try_from(first + index).unwrap_or(u8::MAX);
            let pieces = pieces(part, BULK_PIECE_BYTES);
            let piece_count = pieces.len();
            for (piece_index, (offset_bytes, piece)) in pieces.into_iter().enumerate() {
                let is_last = index + 1 == part_count && piece_index + 1 == piece_count;
                self.stats.bulk_bytes_sent += wide(piece.len());
                let body = FrameBody::PushData {
                    cookie: to.cookie.0,
                    key: to.key,
                    transfer: id,
                    segment_index,
                    offset_bytes,
                    total_bytes,
                    ack_wanted,
                };
                let completes = (is_last && !ack_wanted).then_some(TransferId(id));
                self.post(connection, body, Payload::Bytes(piece), completes);
            }
        }
        TransferId(id)
    }

    fn is_push_on(&self, id: ConnectionId, transfer: u64) -> bool {
        self.transfers.get(&transfer).is_some_and(|found| found.connection == id && !found.is_pull())
    }

    /// The last frame of a push has been handed to the net.
    pub(crate) fn handle_handed(&mut self, id: TransferId) {
        if self.transfers.get(&id.0).is_some_and(|transfer| transfer.is_incomplete) {
            return;
        }
        self.finish(id.0, Ok(()));
    }

    fn finish(&mut self, id: u64, result: Result<(), NetError>) {
        let Some(transfer) = self.transfers.remove(&id) else { return };
        if let Some(connection) = self.connection(transfer.connection) {
            connection.transfers -= 1;
            connection.pulls -= u32::from(transfer.is_pull());
        }
        if let TransferKind::Push { to } = transfer.kind
            && let Some(found) = self.connection(transfer.connection)
            && let (Some(endpoint), epoch) = (found.endpoint, found.epoch)
        {
            self.pushed.on_push_ended(PeerId { endpoint, epoch }, to, result.is_ok());
        }
        let result = match result {
            Ok(()) => Ok(transfer.into_parts()),
            Err(error) => {
                self.stats.transfers_failed += 1;
                Err(error)
            }
        };
        self.emit(Event::TransferDone { id: TransferId(id), result });
    }

    /// Where the bytes after a bulk header go. The transfer and the range are checked here, once.
    pub(crate) fn begin_bulk(
        &mut self,
        now: Instant,
        id: ConnectionId,
        frame: &Frame,
    ) -> Result<BulkPlace, PeerMisbehaved> {
        if !self.admit(now, id, frame)? {
            return Ok(BulkPlace::Drain);
        }
        let bytes = frame.payload_bytes;
        match frame.body {
            FrameBody::PullData { transfer, segment_index, offset_bytes } => {
                let wrong = PeerMisbehaved::BulkRange { segment_index, offset_bytes, bytes };
                let segment_index = usize::from(segment_index);
                let Some(found) = self.transfers.get_mut(&transfer) else { return Ok(BulkPlace::Drain) };
                if found.connection != id || found.next_piece(segment_index, offset_bytes, bytes).is_none() {
                    return Err(wrong);
                }
                let offset = narrow(u64::from(offset_bytes));
                Ok(BulkPlace::Pull { transfer, segment_index, offset })
            }
            FrameBody::PushData {
                cookie,
                key,
                transfer,
                segment_index,
                offset_bytes,
                total_bytes,
                ack_wanted,
            } => {
                let (cookie, offset) = (BulkCookie(cookie), narrow(u64::from(offset_bytes)));
                let segment_index = usize::from(segment_index);
                let checked =
                    self.exposures.check_sink(cookie, key, segment_index, offset, frame.payload_len());
                if let Err(reason) = checked {
                    self.nak(id, transfer, reason);
                    return Ok(BulkPlace::Drain);
                }
                let ack_total = ack_wanted.then_some(total_bytes);
                Ok(BulkPlace::Push { cookie, segment_index, offset, transfer, ack_total })
            }
            body => Err(PeerMisbehaved::Unexpected { kind: body.kind(), state: "receiving bulk" }),
        }
    }

    /// The memory from `done` bytes after the start of a piece of `bytes`, or `None` if it has gone meanwhile: then drain.
    pub(crate) fn bulk_slice(&mut self, place: &BulkPlace, done: usize, bytes: usize) -> Option<&mut [u8]> {
        let (buffer, offset) = match *place {
            BulkPlace::Drain => return None,
            BulkPlace::Pull { transfer, segment_index, offset } => {
                (self.transfers.get_mut(&transfer)?.buffer(segment_index)?, offset)
            }
            BulkPlace::Push { cookie, segment_index, offset, .. } => {
                (self.exposures.sink_buffer(cookie, segment_index)?, offset)
            }
        };
        buffer.get_mut(offset + done..offset + bytes)
    }

    /// A piece of `bytes` is complete.
    pub(crate) fn end_bulk(&mut self, id: ConnectionId, place: &BulkPlace, bytes: u32) {
        let is_alive = self.bulk_slice(place, 0, narrow(u64::from(bytes))).is_some();
        if !is_alive {
            self.stats.bulk_bytes_late += u64::from(bytes);
            return;
        }
        self.count_bulk(bytes);
        match *place {
            BulkPlace::Drain => {}
            BulkPlace::Pull { transfer, segment_index, .. } => {
                self.pull_piece_received(transfer, segment_index, bytes);
            }
            BulkPlace::Push { transfer, ack_total, .. } => self.count_push(id, transfer, ack_total, bytes),
        }
    }

    fn count_bulk(&mut self, bytes: u32) {
        self.stats.bulk_bytes_received += u64::from(bytes);
        self.counters.bulk_bytes.add(u64::from(bytes));
    }

    fn pull_piece_received(&mut self, transfer: u64, segment_index: usize, bytes: u32) {
        let Some(found) = self.transfers.get_mut(&transfer) else { return };
        if found.piece_received(segment_index, bytes) {
            self.finish(transfer, Ok(()));
        }
    }

    fn count_push(&mut self, id: ConnectionId, transfer: u64, ack_total: Option<u32>, bytes: u32) {
        let (Some(total), Some(connection)) = (ack_total, self.connection(id)) else { return };
        let arrived = connection.pushed_bytes.entry(transfer).or_insert(0);
        *arrived = arrived.saturating_add(bytes);
        if *arrived >= total {
            connection.pushed_bytes.remove(&transfer);
            self.post_bare(id, FrameBody::PushAck { transfer });
        } else if connection.pushed_bytes.len() > PUSHES_COUNTED_MAX {
            // The oldest will not be acknowledged: its pusher's deadline ends it.
            connection.pushed_bytes.pop_first();
        }
    }

    /// Bulk that arrives as a whole buffer of the sender: it changes hands where it fills a segment, else it is copied.
    fn handle_bulk(
        &mut self,
        now: Instant,
        id: ConnectionId,
        frame: &Frame,
        payload: SharedBuffer,
    ) -> Result<(), PeerMisbehaved> {
        let place = self.begin_bulk(now, id, frame)?;
        let bytes = frame.payload_bytes;
        match place {
            BulkPlace::Drain => self.stats.bulk_bytes_late += u64::from(bytes),
            BulkPlace::Pull { transfer, segment_index, offset } => {
                let Some(found) = self.transfers.get_mut(&transfer) else { return Ok(()) };
                let wrong = PeerMisbehaved::BulkRange { segment_index: 0, offset_bytes: 0, bytes };
                let segment = found.next_piece(segment_index, 0, bytes).ok_or(wrong)?;
                if offset != 0 || segment.bytes != bytes {
                    return Err(wrong);
                }
                segment.content = PullContent::Taken(payload);
                self.count_bulk(bytes);
                self.pull_piece_received(transfer, segment_index, bytes);
            }
            BulkPlace::Push { cookie, segment_index, offset, transfer, ack_total } => {
                let counters = Arc::clone(&self.counters);
                let Some(part) = self.exposures.sink_part(cookie, segment_index) else { return Ok(()) };
                let length = match part {
                    SinkPart::Own(buffer) => buffer.len(),
                    SinkPart::Taken(buffer) => buffer.len(),
                };
                if offset == 0 && length == payload.len() {
                    *part = SinkPart::Taken(payload);
                } else if let SinkPart::Own(buffer) = part {
                    copy_counted(&counters, &mut buffer[offset..offset + payload.len()], &payload);
                } else {
                    // Part of a segment that was replaced whole before: no pusher of ours does that.
                    return Err(PeerMisbehaved::BulkRange { segment_index: 0, offset_bytes: 0, bytes });
                }
                self.count_bulk(bytes);
                self.count_push(id, transfer, ack_total, bytes);
            }
        }
        Ok(())
    }

    // ---- events and timers

    pub(crate) fn next_event(&mut self) -> Option<Event> {
        let queued = self.events.pop_front()?;
        if let Some((id, sequence)) = queued.credit {
            self.return_credit(id, sequence);
        }
        Some(queued.event)
    }

    /// Message `sequence` has been taken: its credit goes back, with the next frame or on its own.
    pub(crate) fn return_credit(&mut self, id: ConnectionId, sequence: u32) {
        if let Some(connection) = self.connection(id)
            && connection.phase == Phase::Up
            && connection.consume(sequence)
            && connection.outbox.is_empty()
        {
            self.post_bare(id, FrameBody::Noop);
        }
    }

    pub(crate) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    pub(crate) fn event_count(&self) -> usize {
        self.events.len()
    }

    /// Earliest moment at which time alone changes something; `NEVER` when nothing is outstanding.
    pub(crate) fn next_timer(&self) -> Instant {
        self.next_timer
    }

    /// Everything that is due at `now`. Walks all tables, but only when a timer is due.
    pub(crate) fn handle_timers(&mut self, now: Instant) {
        self.seen_now = now;
        self.apply_revocations(now);
        if now < self.next_timer {
            return;
        }
        self.next_timer = Instant::NEVER;
        if self.is_faulty {
            self.release_held(now);
        }
        self.expire_transfers(now);
        self.expire_operations(now);
        self.expire_exposures(now);
        self.expire_connections(now);
        self.dial_scheduled(now);
        self.recover_rails(now);
    }

    fn expire_transfers(&mut self, now: Instant) {
        let mut due: Vec<u64> = Vec::new();
        let mut next = Instant::NEVER;
        for (id, transfer) in &self.transfers {
            if transfer.deadline <= now {
                due.push(*id);
            } else {
                next = next.min(transfer.deadline);
            }
        }
        self.set_timer(next);
        for id in due {
            let is_ours = self.transfers.get(&id).is_some_and(Transfer::waits_for_memory);
            let error = if is_ours { NetError::Local(LocalError::NoMemory) } else { NetError::RemoteTimeout };
            if !is_ours && let Some(connection) = self.transfers.get(&id).map(|transfer| transfer.connection)
            {
                self.on_transfer_overdue(now, connection);
            }
            self.finish(id, Err(error));
        }
    }

    /// Memory that a peer holds for too long after its request was given up: its connection goes, and with it the right.
    fn expire_exposures(&mut self, now: Instant) {
        let (overdue, next) = self.exposures.overdue(now);
        self.set_timer(next);
        for id in overdue {
            let after_ms = self.times.abandoned_ms_max;
            self.lose(now, id, NetError::Local(LocalError::HeldTooLong { after_ms }));
        }
    }

    fn expire_connections(&mut self, now: Instant) {
        for slot in 0..self.slots.len() {
            let Slot { generation, connection: Some(connection) } = &mut self.slots[slot] else { continue };
            let id = ConnectionId(u64::from(*generation) << 32 | wide(slot));
            match connection.phase {
                Phase::Ended => {}
                Phase::Dialing | Phase::Greeting => {
                    let (due, phase) = (connection.since + ms(self.times.hello_ms_max), connection.phase);
                    let endpoint = connection.endpoint;
                    if now < due {
                        self.set_timer(due);
                        continue;
                    }
                    if phase == Phase::Greeting {
                        self.stats.hello_timeouts += 1;
                    }
                    let error = match endpoint {
                        Some(endpoint) => {
                            NetError::Unreachable { endpoint, cause: std::io::ErrorKind::TimedOut }
                        }
                        None => NetError::RemoteTimeout,
                    };
                    self.lose(now, id, error);
                }
                Phase::Up if connection.expires_at <= now => {
                    self.stats.hello_faults += 1;
                    self.stats.last_hello_fault = Some(RefuseReason::Expired);
                    self.lose(now, id, NetError::Refused { reason: RefuseReason::Expired });
                }
                Phase::Up => {
                    let (sequence, expires_at) = (connection.sent, connection.expires_at);
                    self.next_timer = self.next_timer.min(expires_at);
                    match connection.liveness(now, &self.times) {
                        Liveness::Fine(next) => self.set_timer(next),
                        Liveness::Dead => self.lose(now, id, NetError::RemoteTimeout),
                        Liveness::Ping => {
                            if let Liveness::Fine(next) = connection.liveness(now, &self.times) {
                                self.set_timer(next);
                            }
                            self.stats.pings += 1;
                            let nonce = self.random.u64(..);
                            self.post_bare(id, FrameBody::Ping { sequence, nonce });
                        }
                    }
                }
            }
        }
    }

    fn dial_scheduled(&mut self, now: Instant) {
        let mut scheduled: Vec<(Endpoint, usize)> = Vec::new();
        for (endpoint, peer) in &self.peers {
            let due = peer.rails.iter().enumerate().filter(|(_, rail)| rail.link == Link::Scheduled);
            scheduled.extend(due.map(|(index, _)| (*endpoint, index)));
        }
        for (endpoint, index) in scheduled {
            // Dials, or sets the timer again if the pause is not over.
            if let Some(rail) = self.peers.get_mut(&endpoint).and_then(|peer| peer.rails.get_mut(index)) {
                rail.link = Link::Idle;
            }
            self.schedule_dial(now, endpoint, index);
        }
    }
}

/// True for connections that a peer answers over: an older one may still have its WRITEs under way.
fn current_connections(slots: &[Slot]) -> impl FnMut(ConnectionId) -> bool + '_ {
    |id| {
        let slot = slots.get((id.0 & 0xffff_ffff) as usize);
        slot.filter(|slot| u64::from(slot.generation) == id.0 >> 32)
            .and_then(|slot| slot.connection.as_ref())
            .is_some_and(|connection| connection.phase == Phase::Up)
    }
}

impl Peer {
    pub(crate) fn new(interface: usize, endpoint: Endpoint) -> Peer {
        Peer { rails: smallvec::smallvec![Rail::new(interface, endpoint.nid)], ..Peer::empty() }
    }

    /// One that came to us.
    pub(crate) fn empty() -> Peer {
        Peer {
            rails: SmallVec::new(),
            waiting: VecDeque::new(),
            wants_writable: false,
            is_net_waiting: false,
            retired: VecDeque::new(),
            asked_epoch: 0,
            last_epoch: 0,
        }
    }
}
