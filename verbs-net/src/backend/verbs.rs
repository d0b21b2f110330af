//! `verbs`: RDMA. One reliable-connected queue pair per connection, made through rdma-cm; frames are SENDs, pulls are READs, pushes are WRITEs.
//!
//! One machine has one device, one completion queue and one shared receive queue. A frame is one SEND, gathered from its header
//! and the message where it lies; the receiver hands the posted buffer itself to the layer above: nothing is copied. A message
//! longer than an eager buffer goes by rendezvous ([`rendezvous`]). Where both ends encrypt everything, see [`sealed`]. Bytes on the wire: docs/wire.md, verbs.
//!
//! While polling there is no system call of ours: the descriptors are looked at after a sleep and once per [`LOOK_MS`].
//! Bounds: `verbs/limits.rs`. **Invariant**: every work request in flight has a [`Tag`], and its memory is with the `Nic`.

mod binding;
mod limits;
mod link;
mod rendezvous;
mod sealed;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::{Endpoint, Instant};
use runtime::poller::{Interest, PollEvent, Poller};
use runtime::{Arena, ArenaConfig, Buffer, Counters, LocalityHandle, SharedBuffer};
use smallvec::SmallVec;
use verbs_sys::{
    AsyncEvent, Completed, CompletionError, ConnectionEvent, ConnectionManager, Library, Memory, Nic,
    NicConfig, QueuePairId, RdmaError, Without,
};

use crate::connection::{ConnectionId, Payload, Phase};
use crate::error::{LocalError, NetError, PeerMisbehaved, RefuseReason, StartError};
use crate::frame::{Frame, FrameBody, HEADER_BYTES};
use crate::hello::HELLO_BYTES;
use crate::limits::MESSAGE_MEMORY_BYTES;
use crate::machine::TransferId;
use crate::memory_wait::MemoryWait;
use crate::protocol::{Action, Protocol};
use crate::security::{Opener, Place, Seal, SealedOperation, TAG_BYTES};
use binding::Bindings;
use limits::{
    DOUBT_MS, EAGER_BYTES, INLINE_BYTES, LINGER_MS, LOOK_MS, POLL_ENTRIES, QUEUE_PAIRS_MAX, READ_BYTES_MAX,
    RECEIVES, RECEIVES_WITHOUT_SHARED, REFILL_BATCH, REOPEN_MS, SENDS_PER_QUEUE_PAIR, WINDOWS_MAX,
};
use link::{Link, Stalled};

/// RDMA, opened: shared by all machines of a node.
#[derive(Clone, Debug)]
pub struct VerbsFabric {
    library: Library,
    without: Without,
}

impl VerbsFabric {
    /// Opens rdma-core. `CLOVIS_RDMA_WITHOUT` names what to do without (see [`Without`]).
    ///
    /// # Errors
    /// No RDMA in this binary, on this machine, or no device; each says what to do.
    pub fn open() -> Result<VerbsFabric, RdmaError> {
        let without = Without::from_environment().map_err(|word| RdmaError::BadWord { word })?;
        VerbsFabric::open_without(without)
    }

    /// The same with a mask of the caller's.
    ///
    /// # Errors
    /// As [`VerbsFabric::open`].
    pub fn open_without(without: Without) -> Result<VerbsFabric, RdmaError> {
        Ok(VerbsFabric { library: Library::open()?, without })
    }

    /// All devices with what was found out about them.
    ///
    /// # Errors
    /// A device that cannot be asked.
    pub fn devices(&self) -> Result<Vec<verbs_sys::DeviceInfo>, RdmaError> {
        self.library.devices(self.without)
    }
}

/// For the fuzzing suite: what comes from a peer before and beside frames.
pub(crate) fn fuzz(bytes: &[u8]) -> String {
    format!(
        "{} {:?} {}",
        link::is_prefix(bytes),
        rendezvous::parse_done(bytes).is_some(),
        rendezvous::is_offer(bytes)
    )
}

/// What a work request is for.
enum Tag {
    Frame,
    Bind,
    Invalidate,
    Write { transfer: u64, completes: Option<TransferId> },
    Read { job: u64, index: usize, bytes: usize },
    Fetch { connection: ConnectionId, bytes: usize },
}

/// A pull of ours: buffers come back one by one.
struct ReadJob {
    transfer: u64,
    buffers: Vec<Option<Buffer>>,
    missing: usize,
    error: Option<NetError>,
    /// Of a sealed connection: what opens the buffers.
    seals: Option<JobSeals>,
}

/// What opens the segments of a pull.
struct JobSeals {
    connection: ConnectionId,
    cookie: u64,
    key: u64,
    seals: SmallVec<[Seal; 4]>,
    opener: Rc<Opener>,
}

impl JobSeals {
    /// Opens all segments in their places.
    fn open(&self, buffers: &mut [Buffer]) -> Result<(), PeerMisbehaved> {
        let (operation, name, key) = (SealedOperation::Pull, self.cookie, self.key);
        for (index, (buffer, seal)) in buffers.iter_mut().zip(&self.seals).enumerate() {
            // At most BULK_SEGMENTS_MAX segments.
            let segment_index = u8::try_from(index).unwrap_or(u8::MAX);
            let place = Place { operation, segment_index, name, key };
            self.opener.open_bulk(&place, seal, buffer).map_err(|_| place.broken())?;
        }
        Ok(())
    }
}

/// What it takes to start again, when a device that was taken away is back.
#[derive(Clone)]
struct Recipe {
    locality: LocalityHandle,
    fabric: VerbsFabric,
    endpoint: Endpoint,
    listen: bool,
}

/// The verbs backend of one machine.
pub(crate) struct VerbsBackend {
    // Connections end before the device.
    manager: ConnectionManager,
    nic: Nic,
    address: Ipv4Addr,
    listener: Option<verbs_sys::ConnectionId>,
    /// Hears of the device's removal, also where there is no connection.
    watch: Option<verbs_sys::ConnectionId>,
    poller: Poller,
    events: Vec<PollEvent>,
    messages: MemoryWait,
    /// For copies that are sealed; made with the first of them.
    sealing: Option<MemoryWait>,
    /// Connections whose frames wait for such memory.
    starved: BTreeSet<ConnectionId>,
    links: BTreeMap<ConnectionId, Link>,
    by_pair: BTreeMap<QueuePairId, ConnectionId>,
    by_id: BTreeMap<verbs_sys::ConnectionId, ConnectionId>,
    completed: VecDeque<Completed>,
    tags: BTreeMap<u64, Tag>,
    next_tag: u64,
    jobs: BTreeMap<u64, ReadJob>,
    /// READs that wait for the budget.
    reads: VecDeque<(ConnectionId, u64, verbs_sys::Work)>,
    read_bytes: usize,
    bindings: Bindings,
    /// Links with work that did not fit, and links that only wait for their last word to leave.
    backlog: BTreeSet<ConnectionId>,
    closing: BTreeMap<ConnectionId, Instant>,
    is_armed: bool,
    next_look: Instant,
    /// Ends of connections that cannot be told yet, as the port is down. The kernel's connection manager tells the peer when one is destroyed, and
    /// a farewell on a link that is down ends soft-RoCE's management queue pair for good (Linux 6.1: no connection of anybody comes up any more,
    /// until the device is made anew). So they wait for the port.
    parked: Vec<verbs_sys::ConnectionId>,
    /// Calls that wait until `doubted_until`.
    held_dials: Vec<(ConnectionId, Endpoint)>,
    /// When to look for the port again.
    unpark_at: Option<Instant>,
    /// Until then the port is taken for one that is down: a send failed on our side, as it does on a link that goes down, for a while before
    /// the device says so.
    doubted_until: Instant,
    /// The device is gone: when to look for it again.
    reopen_at: Option<Instant>,
    recipe: Recipe,
    counters: Arc<Counters>,
    seen: verbs_sys::NicCounts,
}

impl VerbsBackend {
    pub(crate) fn start(
        locality: &LocalityHandle,
        fabric: &VerbsFabric,
        endpoint: Endpoint,
        listen: bool,
    ) -> Result<VerbsBackend, StartError> {
        let failed = |source: RdmaError| match (source.kind(), endpoint.socket_address()) {
            (std::io::ErrorKind::AddrInUse, Some(address)) => {
                StartError::PortInUse { endpoint, address: address.to_string() }
            }
            (std::io::ErrorKind::AddrNotAvailable | std::io::ErrorKind::NotFound, Some(address)) => {
                StartError::NoSuchAddress { endpoint, address }
            }
            _ => StartError::Rdma { endpoint, message: source.to_string() },
        };
        let io = |what| move |source| StartError::Io { endpoint, what, source };
        let address = endpoint.nid.ipv4().ok_or(StartError::PortalWithoutPort { endpoint })?;
        let mut manager = fabric.library.connection_manager().map_err(failed)?;
        let (watch, device) = manager.watch_device(address).map_err(failed)?;
        let arena =
            Arena::new(ArenaConfig { capacity_bytes: MESSAGE_MEMORY_BYTES }).map_err(io("message memory"))?;
        let mut nic = fabric
            .library
            .open_nic(NicConfig {
                device,
                queue_pairs_max: QUEUE_PAIRS_MAX,
                sends_per_queue_pair: SENDS_PER_QUEUE_PAIR,
                receives: RECEIVES,
                receives_without_shared: RECEIVES_WITHOUT_SHARED,
                inline_bytes: INLINE_BYTES,
                windows_max: WINDOWS_MAX,
                without: fabric.without,
                arena: arena.clone(),
            })
            .map_err(failed)?;
        nic.register(locality.arena()).map_err(failed)?;
        let listener = if listen {
            let address = endpoint.socket_address().ok_or(StartError::PortalWithoutPort { endpoint })?;
            Some(manager.listen(address).map_err(failed)?)
        } else {
            None
        };
        let mut poller = Poller::new().map_err(io("epoll"))?;
        poller.count_into(Arc::clone(locality.counters()));
        let bindings = Bindings::new(nic.uses_windows());
        let mut backend = VerbsBackend {
            manager,
            nic,
            address,
            listener,
            watch: Some(watch),
            poller,
            events: Vec::new(),
            messages: MemoryWait::new(arena, locality.unparker()),
            sealing: None,
            starved: BTreeSet::new(),
            links: BTreeMap::new(),
            by_pair: BTreeMap::new(),
            by_id: BTreeMap::new(),
            completed: VecDeque::new(),
            tags: BTreeMap::new(),
            next_tag: 0,
            jobs: BTreeMap::new(),
            reads: VecDeque::new(),
            read_bytes: 0,
            bindings,
            backlog: BTreeSet::new(),
            closing: BTreeMap::new(),
            is_armed: false,
            next_look: Instant::ZERO,
            reopen_at: None,
            parked: Vec::new(),
            held_dials: Vec::new(),
            unpark_at: None,
            doubted_until: Instant::ZERO,
            recipe: Recipe { locality: locality.clone(), fabric: fabric.clone(), endpoint, listen },
            counters: Arc::clone(locality.counters()),
            seen: verbs_sys::NicCounts::default(),
        };
        backend.watch_descriptors().map_err(io("epoll add"))?;
        backend.refill(None, 1);
        Ok(backend)
    }

    fn watch_descriptors(&self) -> std::io::Result<()> {
        for fd in [self.manager.fd(), self.nic.completion_fd(), self.nic.async_fd()] {
            self.poller.add(fd, 0, Interest::READABLE)?;
        }
        Ok(())
    }

    pub(crate) fn counts(&self) -> verbs_sys::NicCounts {
        self.nic.counts()
    }

    pub(crate) fn receive_bytes(&self) -> u64 {
        self.messages.in_use_bytes()
    }

    pub(crate) fn wait_fd(&self) -> RawFd {
        use std::os::fd::AsRawFd;
        self.poller.as_raw_fd()
    }

    pub(crate) fn before_sleep(&mut self) -> bool {
        self.nic.arm();
        self.is_armed = true;
        self.nic.poll(POLL_ENTRIES, &mut self.completed);
        self.completed.is_empty()
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.closing.values().copied().chain(self.reopen_at).chain(self.unpark_at).min()
    }

    /// Posts missing receives, if there are at least `least` of them.
    fn refill(&mut self, pair: Option<QueuePairId>, least: u32) {
        let wanted = self.nic.receives_wanted(pair);
        if wanted < least {
            return;
        }
        let mut buffers = Vec::new();
        for _ in 0..wanted {
            // No memory: the wait's flag brings us back.
            let Some(buffer) = self.messages.alloc(EAGER_BYTES) else { break };
            buffers.push(buffer);
        }
        // A refusal means that the queue pair or the device is going: its events tell.
        let _ = self.nic.post_receives(pair, buffers);
    }

    fn tag(&mut self, tag: Tag) -> u64 {
        self.next_tag += 1;
        self.tags.insert(self.next_tag, tag);
        self.next_tag
    }

    // ---- polling

    pub(crate) fn poll(&mut self, protocol: &mut Protocol, now: Instant, budget: usize) -> usize {
        let mut work = self.poll_completions(protocol, now, budget);
        if self.is_armed || now >= self.next_look {
            self.next_look = now + Duration::from_millis(LOOK_MS);
            work += self.look(protocol, now);
        }
        if self.messages.is_over() {
            self.refill_all(1);
        }
        self.feed_starved(protocol);
        self.end_lingering(protocol, now);
        self.unpark(protocol, now);
        self.publish_counts();
        if self.reopen_at.is_some_and(|at| now >= at) {
            self.reopen(now);
        }
        work
    }

    fn refill_all(&mut self, least: u32) {
        if self.nic.shares_receives() {
            return self.refill(None, least);
        }
        for pair in self.by_pair.keys().copied().collect::<Vec<_>>() {
            self.refill(Some(pair), least.min(RECEIVES_WITHOUT_SHARED / 4));
        }
    }

    fn poll_completions(&mut self, protocol: &mut Protocol, now: Instant, budget: usize) -> usize {
        self.nic.poll(budget.max(POLL_ENTRIES), &mut self.completed);
        let count = self.completed.len();
        while let Some(completed) = self.completed.pop_front() {
            self.handle_completed(protocol, now, completed);
        }
        if count > 0 {
            self.refill_all(REFILL_BATCH);
        }
        count
    }

    /// Looks at the descriptors: signs of completions, events of connections and of the device.
    fn look(&mut self, protocol: &mut Protocol, now: Instant) -> usize {
        let mut events = std::mem::take(&mut self.events);
        // An error here means that our own descriptor is broken: deadlines end what waits.
        let ready = self.poller.wait(Some(Duration::ZERO), &mut events).unwrap_or(0);
        self.events = events;
        if ready == 0 {
            self.is_armed = false;
            return 0;
        }
        if self.is_armed {
            self.is_armed = false;
            self.nic.drain_channel();
        }
        let mut work = 0;
        while let Some(event) = self.nic.poll_async() {
            work += 1;
            self.handle_async(protocol, now, event);
        }
        while let Some(event) = self.manager.poll() {
            work += 1;
            // What a peer said before it left is in the completion queue already.
            while self.poll_completions(protocol, now, POLL_ENTRIES) > 0 {}
            self.handle_connection_event(protocol, now, event);
        }
        work + self.poll_completions(protocol, now, POLL_ENTRIES)
    }

    fn handle_async(&mut self, protocol: &mut Protocol, now: Instant, event: AsyncEvent) {
        match event {
            AsyncEvent::QueuePairFatal(pair) => {
                if let Some(id) = self.by_pair.get(&pair).copied() {
                    protocol.handle_closed(now, id, NetError::RemoteDropped);
                }
            }
            AsyncEvent::DeviceFatal | AsyncEvent::QueueBroken => self.remove_device(protocol, now),
            AsyncEvent::ReceivesLow => self.refill_all(1),
            // A port that comes back within the transport's retries costs nothing; liveness ends what waits for one that does not.
            _ => {}
        }
    }

    /// The device is being taken away: everything on it ends now, so that the kernel can let it go.
    fn remove_device(&mut self, protocol: &mut Protocol, now: Instant) {
        if self.reopen_at.is_some() {
            return;
        }
        for id in [self.listener.take(), self.watch.take()].into_iter().flatten() {
            self.manager.destroy(id);
        }
        for id in self.links.keys().copied().collect::<Vec<_>>() {
            protocol.handle_closed(now, id, NetError::Local(LocalError::DeviceRemoved));
            self.tear_down(protocol, now, id);
        }
        for id in std::mem::take(&mut self.parked) {
            self.manager.destroy(id);
        }
        for (id, _) in std::mem::take(&mut self.held_dials) {
            protocol.handle_closed(now, id, NetError::Local(LocalError::DeviceRemoved));
        }
        self.unpark_at = None;
        self.publish_counts();
        self.nic.close();
        self.reopen_at = Some(now + Duration::from_millis(REOPEN_MS));
    }

    /// Starts again, if the address is on a device again. Nothing of before is left but the descriptor that others wait for.
    fn reopen(&mut self, now: Instant) {
        self.manager.forget_removed_devices();
        let Recipe { locality, fabric, endpoint, listen } = self.recipe.clone();
        let Ok(mut fresh) = VerbsBackend::start(&locality, &fabric, endpoint, listen) else {
            self.reopen_at = Some(now + Duration::from_millis(REOPEN_MS));
            return;
        };
        std::mem::swap(&mut fresh.poller, &mut self.poller);
        if fresh.watch_descriptors().is_err() {
            std::mem::swap(&mut fresh.poller, &mut self.poller);
            self.reopen_at = Some(now + Duration::from_millis(REOPEN_MS));
            return;
        }
        *self = fresh;
    }

    fn publish_counts(&mut self) {
        let (now, before) = (self.nic.counts(), self.seen);
        self.counters.registrations.add(now.registrations - before.registrations);
        self.counters.doorbells.add(now.doorbells - before.doorbells);
        self.counters.work_requests.add(now.work_requests - before.work_requests);
        self.counters.completions.add(now.completions - before.completions);
        self.counters.syscalls.add(now.syscalls - before.syscalls);
        self.seen = now;
    }

    // ---- completions

    fn handle_completed(&mut self, protocol: &mut Protocol, now: Instant, completed: Completed) {
        match completed {
            Completed::Received { queue_pair, buffer, bytes } => {
                let Some(id) = self.by_pair.get(&queue_pair).copied() else { return };
                self.handle_received(protocol, now, id, buffer, bytes);
            }
            Completed::Concealed { exposure, memory } => {
                drop(memory);
                if let Some((id, cookie)) = self.bindings.handle_concealed(exposure) {
                    protocol.handle_revoked(id, cookie);
                }
            }
            Completed::Work { queue_pair, tag, memory, result } => {
                let connection = self.by_pair.get(&queue_pair).copied();
                if let (Some(id), Err(error)) = (connection, result)
                    && error != CompletionError::Flushed
                {
                    self.note_failure(protocol, now, id, error);
                }
                self.handle_work(protocol, now, tag, memory, result);
                if let Some(id) = connection {
                    if let Some(connection) = protocol.connection(id)
                        && connection.is_backlogged
                    {
                        connection.hear(now);
                    }
                    if self.links.get(&id).is_some_and(|link| !link.queue.is_empty()) {
                        self.backlog.insert(id);
                    }
                }
            }
        }
    }

    /// A completion error ends the connection: which operation, which peer and why is in the error.
    fn note_failure(
        &mut self,
        protocol: &mut Protocol,
        now: Instant,
        id: ConnectionId,
        error: CompletionError,
    ) {
        // IBV_WC_LOC_QP_OP_ERR: what soft-RoCE says of a packet that it could not hand to the link.
        if matches!(error, CompletionError::Local { status: 2 }) {
            self.doubted_until = now + Duration::from_millis(DOUBT_MS);
        }
        let error = match error {
            CompletionError::RetryExceeded | CompletionError::ReceiverNotReady => NetError::RemoteTimeout,
            CompletionError::RemoteAccess
            | CompletionError::RemoteInvalid
            | CompletionError::RemoteOperation => NetError::RemoteDropped,
            other => NetError::Local(LocalError::Completion { error: other }),
        };
        protocol.handle_closed(now, id, error);
    }

    fn handle_work(
        &mut self,
        protocol: &mut Protocol,
        now: Instant,
        tag: u64,
        memory: Memory,
        result: Result<(), CompletionError>,
    ) {
        let Some(tag) = self.tags.remove(&tag) else { return };
        match tag {
            Tag::Frame | Tag::Bind | Tag::Invalidate => {}
            Tag::Write { transfer, completes } => match (result, completes) {
                (Ok(()), Some(transfer)) => protocol.handle_handed(transfer),
                (Ok(()), None) => {}
                (Err(_), _) => protocol.handle_transfer_failed(transfer, NetError::RemoteDropped),
            },
            Tag::Read { job: number, index, bytes } => {
                self.read_bytes = self.read_bytes.saturating_sub(bytes);
                let Some(job) = self.jobs.get_mut(&number) else { return };
                if let Memory::Own(buffer) = memory {
                    job.buffers[index] = Some(buffer);
                }
                if result.is_err() {
                    job.error = Some(NetError::RemoteDropped);
                }
                job.missing -= 1;
                if job.missing == 0 {
                    self.end_job(protocol, now, number);
                }
            }
            Tag::Fetch { connection, bytes } => {
                self.read_bytes = self.read_bytes.saturating_sub(bytes);
                if let (Ok(()), Memory::Own(buffer)) = (result, memory) {
                    self.handle_fetched(protocol, now, connection, buffer);
                }
            }
        }
    }

    fn end_job(&mut self, protocol: &mut Protocol, now: Instant, number: u64) {
        let Some(job) = self.jobs.remove(&number) else { return };
        let buffers: Option<Vec<Buffer>> = job.buffers.into_iter().collect();
        let mut result = match (job.error, buffers) {
            (None, Some(buffers)) => Ok(buffers),
            (error, _) => Err(error.unwrap_or(NetError::RemoteDropped)),
        };
        // What nobody waits for any more may be read from memory that is in use again: nobody opens it either.
        if let (Ok(buffers), Some(seals)) = (&mut result, &job.seals)
            && protocol.has_transfer(job.transfer)
            && let Err(what) = seals.open(buffers)
        {
            protocol.handle_misbehaviour(now, seals.connection, what);
            result = Err(NetError::Protocol(what));
        }
        protocol.handle_read_done(job.transfer, result);
    }

    fn handle_received(
        &mut self,
        protocol: &mut Protocol,
        now: Instant,
        id: ConnectionId,
        mut buffer: Buffer,
        bytes: usize,
    ) {
        if let Some(link) = self.links.get_mut(&id) {
            link.is_ready = true;
            if !link.queue.is_empty() {
                self.backlog.insert(id);
            }
        }
        let bytes = match self.open_received(id, &mut buffer[..bytes]) {
            Ok(bytes) => bytes,
            Err(what) => return protocol.handle_misbehaviour(now, id, what),
        };
        let message = buffer.freeze().slice(0..bytes);
        if let Err(what) = self.handle_message(protocol, now, id, message) {
            protocol.handle_misbehaviour(now, id, what);
        }
    }

    /// One SEND of the peer.
    fn handle_message(
        &mut self,
        protocol: &mut Protocol,
        now: Instant,
        id: ConnectionId,
        message: SharedBuffer,
    ) -> Result<(), PeerMisbehaved> {
        let Some(message) = self.unseal(protocol, now, id, message) else { return Ok(()) };
        if let Some(number) = rendezvous::parse_done(&message) {
            self.handle_fetch_done(id, number);
            return Ok(());
        }
        let Some(connection) = protocol.connection(id) else { return Ok(()) };
        let Some(header) = message.first_chunk::<HEADER_BYTES>() else {
            return Err(PeerMisbehaved::BadMagic { got: 0 });
        };
        let frame = Frame::parse(header, connection.version)?;
        let is_up = connection.phase == Phase::Up;
        let rest = message.slice(HEADER_BYTES..message.len());
        let tag_bytes = if self.seals(id) { TAG_BYTES } else { 0 };
        if rendezvous::is_long(&frame.body, frame.payload_len() + tag_bytes) {
            if !is_up {
                let state = "before the hello is complete";
                return Err(PeerMisbehaved::Unexpected { kind: frame.body.kind(), state });
            }
            return self.start_fetch(protocol, id, frame, &rest);
        }
        if rest.len() != frame.payload_len() {
            let max = frame.payload_bytes;
            // A SEND is at most EAGER_BYTES long.
            let got = u32::try_from(rest.len()).unwrap_or(u32::MAX);
            return Err(PeerMisbehaved::PayloadLength { kind: frame.body.kind(), got, max });
        }
        let payload = match frame.body {
            FrameBody::Hello | FrameBody::HelloAck => match rest.first_chunk::<HELLO_BYTES>() {
                Some(hello) => Payload::Hello(Box::new(*hello)),
                None => return Err(PeerMisbehaved::BadHello { what: "length" }),
            },
            FrameBody::PullRequest { .. } | FrameBody::PullData { .. } | FrameBody::PushData { .. } => {
                // Hardware moves bulk here: nobody of ours sends these.
                let state = "on a net with remote access";
                return Err(PeerMisbehaved::Unexpected { kind: frame.body.kind(), state });
            }
            _ if rest.is_empty() => Payload::None,
            _ => Payload::Bytes(rest),
        };
        self.deliver(protocol, now, id, frame, payload);
        Ok(())
    }

    /// To the core, behind what came before it.
    fn deliver(
        &mut self,
        protocol: &mut Protocol,
        now: Instant,
        id: ConnectionId,
        frame: Frame,
        payload: Payload,
    ) {
        match self.links.get_mut(&id) {
            Some(link) if link.fetching.is_some() => {
                link.stalled.push_back((frame, Stalled::Payload(payload)))
            }
            _ => protocol.handle_frame(now, id, &frame, payload),
        }
    }

    // ---- flushing

    pub(crate) fn flush(&mut self, protocol: &mut Protocol, now: Instant) {
        while !protocol.actions.is_empty() || !protocol.dirty.is_empty() {
            for action in std::mem::take(&mut protocol.actions) {
                match action {
                    Action::Dial(id, endpoint) => self.dial(protocol, now, id, endpoint),
                    Action::Revoke(id, cookie) => self.revoke(protocol, id, cookie),
                    Action::Close(id) => {
                        self.take_outbox(protocol, id);
                        self.backlog.insert(id);
                        self.closing.insert(id, now + Duration::from_millis(LINGER_MS));
                    }
                }
            }
            while let Some(id) = protocol.dirty.pop_front() {
                self.take_outbox(protocol, id);
                self.backlog.insert(id);
            }
            self.post_all(protocol, now);
            self.end_lingering(protocol, now);
        }
        self.post_all(protocol, now);
        self.conceal_settled(protocol);
        self.publish_counts();
    }

    fn post_all(&mut self, protocol: &mut Protocol, now: Instant) {
        while let Some((id, tag, work)) = self.reads.pop_front() {
            let bytes = match &work {
                verbs_sys::Work::Read { into, .. } => into.len(),
                _ => 0,
            };
            if self.read_bytes > 0 && self.read_bytes + bytes > READ_BYTES_MAX {
                self.reads.push_front((id, tag, work));
                break;
            }
            match self.links.get_mut(&id) {
                Some(link) => {
                    self.read_bytes += bytes;
                    link.queue.push_back((tag, work));
                    self.backlog.insert(id);
                }
                None => self.handle_work(protocol, now, tag, Memory::None, Err(CompletionError::Flushed)),
            }
        }
        for id in std::mem::take(&mut self.backlog) {
            self.post(protocol, now, id);
        }
    }

    fn post(&mut self, protocol: &mut Protocol, now: Instant, id: ConnectionId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(pair) = link.pair.filter(|_| link.is_ready) else { return };
        if link.queue.is_empty() {
            return;
        }
        let posted = self.nic.post(pair, &mut link.queue);
        let is_backlogged = !link.queue.is_empty();
        match posted {
            Ok(_) | Err(verbs_sys::PostError::Full | verbs_sys::PostError::Gone) => {}
            Err(verbs_sys::PostError::Registration(error)) => {
                let error = LocalError::Socket { kind: error.kind() };
                protocol.handle_closed(now, id, NetError::Local(error));
            }
            Err(error) => {
                let kind = match error {
                    verbs_sys::PostError::Refused { source } => source.kind(),
                    _ => std::io::ErrorKind::Other,
                };
                protocol.handle_closed(now, id, NetError::Local(LocalError::Socket { kind }));
            }
        }
        if let Some(connection) = protocol.connection(id) {
            if is_backlogged && !connection.is_backlogged {
                connection.start_waiting(now);
            }
            connection.is_backlogged = is_backlogged;
        }
        if is_backlogged {
            protocol.watch(now);
        }
    }

    fn handle_connection_event(&mut self, protocol: &mut Protocol, now: Instant, event: ConnectionEvent) {
        match event {
            ConnectionEvent::Requested { id, private_data, .. } => {
                self.handle_request(protocol, now, id, &private_data);
            }
            ConnectionEvent::RouteResolved(id) => self.handle_route(protocol, now, id),
            ConnectionEvent::Accepted { id, .. } => self.handle_accepted(protocol, now, id),
            ConnectionEvent::Established(id) => {
                if let Some(id) = self.by_id.get(&id).copied()
                    && let Some(link) = self.links.get_mut(&id)
                {
                    link.is_ready = true;
                    self.backlog.insert(id);
                }
            }
            ConnectionEvent::Rejected { id, .. } => {
                self.handle_dial_failed(protocol, now, id, std::io::ErrorKind::ConnectionRefused);
            }
            ConnectionEvent::Failed(id, what) => {
                use verbs_sys::ConnectionFailure as F;
                let (F::Address(code) | F::Route(code) | F::Unreachable(code) | F::Connect(code)) = what
                else {
                    return;
                };
                self.handle_dial_failed(protocol, now, id, std::io::Error::from_raw_os_error(code).kind());
            }
            ConnectionEvent::Disconnected(id) => {
                if let Some(id) = self.by_id.get(&id).copied() {
                    if self.is_shaking_hands(id) {
                        protocol.handle_fault(now, id, RefuseReason::Handshake);
                    }
                    protocol.handle_closed(now, id, NetError::RemoteDropped);
                    self.tear_down(protocol, now, id);
                }
            }
            ConnectionEvent::DeviceRemoved(_) => self.remove_device(protocol, now),
            _ => {}
        }
    }
}
