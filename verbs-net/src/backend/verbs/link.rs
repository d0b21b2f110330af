//! One connection: its rdma-cm id, its queue pair, what waits to be posted; coming up and going down.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use base::units::wide;
use base::{Endpoint, Instant};
use runtime::{SharedBuffer, copy_counted};
use smallvec::SmallVec;
use verbs_sys::{CompletionError, Memory, QueuePairId, Remote, Work};
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::limits::{EAGER_BYTES, UNPARK_MS};
use super::rendezvous::{self, Fetching, Offered};
use super::sealed::{LinkSeal, Room};
use super::{JobSeals, ReadJob, Tag, VerbsBackend};
use crate::backend::guard::{Finding, Guard};
use crate::connection::{ConnectionId, Outgoing, Payload};
use crate::error::{LocalError, NetError};
use crate::frame::{Frame, FrameBody, HEADER_BYTES, MAGIC, VERSION, VERSION_MIN};
use crate::protocol::Protocol;
use crate::security::{Place, SealedOperation, TAG_BYTES};

pub(super) struct Link {
    pub(super) id: verbs_sys::ConnectionId,
    pub(super) pair: Option<QueuePairId>,
    /// The peer can receive.
    pub(super) is_ready: bool,
    pub(super) queue: VecDeque<(u64, Work)>,
    /// A long message of the peer that is being read, and what came behind it.
    pub(super) fetching: Option<Fetching>,
    pub(super) stalled: VecDeque<(Frame, Stalled)>,
    /// Long messages of ours that the peer has not yet read.
    pub(super) offered: Vec<Offered>,
    pub(super) next_offer: u64,
    /// Until both ends have proved who they are, where certificates are asked for.
    pub(super) guard: Option<Box<Guard>>,
    /// Behind the hello, where both ends encrypt everything.
    pub(super) seal: Option<Box<LinkSeal>>,
}

/// What came behind a long message.
pub(super) enum Stalled {
    Payload(Payload),
    /// Another long message: what stood behind its header.
    Offer(Box<[u8]>),
}

impl Link {
    fn new(id: verbs_sys::ConnectionId, guard: Option<Box<Guard>>) -> Link {
        Link {
            guard,
            seal: None,
            id,
            pair: None,
            is_ready: false,
            queue: VecDeque::new(),
            fetching: None,
            stalled: VecDeque::new(),
            offered: Vec::new(),
            next_offer: 1,
        }
    }
}

/// What goes with the request for a connection: enough to turn strangers away before memory is spent on them. The hello itself follows as the
/// first SEND.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Prefix {
    magic: U16,
    version_min: u8,
    version_max: u8,
    reserved: [u8; 4],
    epoch: U64,
    reserved_more: [u8; 40],
}

const _: () = assert!(size_of::<Prefix>() == 56);

impl Prefix {
    fn ours(epoch: u64) -> Prefix {
        Prefix {
            magic: MAGIC.into(),
            version_min: VERSION_MIN,
            version_max: VERSION,
            reserved: [0; 4],
            epoch: epoch.into(),
            reserved_more: [0; 40],
        }
    }

    /// True if this may be one of ours, of any version: the hello decides the rest.
    pub(super) fn is_plausible(bytes: &[u8]) -> bool {
        Prefix::read_from_prefix(bytes).is_ok_and(|(prefix, _)| {
            prefix.magic.get() == MAGIC
                && prefix.version_min >= 1
                && prefix.version_min <= prefix.version_max
                && prefix.epoch.get() != 0
        })
    }
}

/// For the fuzzing suite.
pub(super) fn is_prefix(bytes: &[u8]) -> bool {
    Prefix::is_plausible(bytes)
}

impl VerbsBackend {
    // ---- coming up

    pub(super) fn dial(
        &mut self,
        protocol: &mut Protocol,
        now: Instant,
        id: ConnectionId,
        endpoint: Endpoint,
    ) {
        if now < self.doubted_until && self.reopen_at.is_none() {
            // Called once it is known whether there is a port.
            self.held_dials.push((id, endpoint));
            self.unpark_at = Some(self.doubted_until.min(self.unpark_at.unwrap_or(Instant::NEVER)));
            return;
        }
        let hello = match protocol.dialling_hello() {
            Ok(hello) => hello,
            Err(fault) => return protocol.handle_fault(now, id, fault.reason),
        };
        let dialled = match (endpoint.socket_address(), self.reopen_at.is_some()) {
            (Some(_), false) if !self.nic.has_active_port() => Err(io::ErrorKind::NetworkDown),
            (Some(to), false) => self.manager.dial(self.address, to).map_err(|error| error.kind()),
            (_, true) => {
                return protocol.handle_closed(now, id, NetError::Local(LocalError::DeviceRemoved));
            }
            (None, _) => Err(io::ErrorKind::AddrNotAvailable),
        };
        match dialled {
            Ok(cm) => {
                self.by_id.insert(cm, id);
                self.links
                    .insert(id, Link::new(cm, hello.map(|hello| Box::new(Guard::new(hello, true, false)))));
                self.send_handshake(id);
            }
            Err(cause) => protocol.handle_closed(now, id, NetError::Unreachable { endpoint, cause }),
        }
    }

    /// A queue pair for a link, with receives, before the peer can send.
    fn open_pair(
        &mut self,
        id: ConnectionId,
        cm: verbs_sys::ConnectionId,
    ) -> Result<QueuePairId, verbs_sys::RdmaError> {
        let pair = self.nic.create_queue_pair()?;
        if let Some(link) = self.links.get_mut(&id) {
            link.pair = Some(pair);
        }
        self.by_pair.insert(pair, id);
        self.manager.prepare(cm, &mut self.nic, pair)?;
        self.refill(Some(pair), 1);
        Ok(pair)
    }

    pub(super) fn handle_route(
        &mut self,
        protocol: &mut Protocol,
        now: Instant,
        cm: verbs_sys::ConnectionId,
    ) {
        let Some(id) = self.by_id.get(&cm).copied() else { return };
        let prefix = Prefix::ours(protocol.epoch);
        let connected = self
            .open_pair(id, cm)
            .and_then(|pair| self.manager.connect(cm, &mut self.nic, pair, prefix.as_bytes()));
        if let Err(error) = connected {
            self.handle_dial_failed(protocol, now, cm, error.kind());
        }
    }

    pub(super) fn handle_accepted(
        &mut self,
        protocol: &mut Protocol,
        now: Instant,
        cm: verbs_sys::ConnectionId,
    ) {
        let Some(id) = self.by_id.get(&cm).copied() else { return };
        let Some(pair) = self.links.get(&id).and_then(|link| link.pair) else { return };
        match self.manager.finish(cm, &mut self.nic, pair) {
            Ok(()) => {
                if let Some(link) = self.links.get_mut(&id) {
                    link.is_ready = true;
                }
                self.backlog.insert(id);
            }
            Err(error) => self.handle_dial_failed(protocol, now, cm, error.kind()),
        }
    }

    pub(super) fn handle_dial_failed(
        &mut self,
        protocol: &mut Protocol,
        now: Instant,
        cm: verbs_sys::ConnectionId,
        cause: io::ErrorKind,
    ) {
        let Some(id) = self.by_id.get(&cm).copied() else { return };
        let error = match protocol.connection(id).map(|found| (found.phase, found.endpoint)) {
            // It stood: a peer that goes before it knows so ends it with a refusal.
            Some((crate::connection::Phase::Up, _)) => NetError::RemoteDropped,
            Some((_, Some(endpoint))) => NetError::Unreachable { endpoint, cause },
            _ => NetError::Local(LocalError::Socket { kind: cause }),
        };
        protocol.handle_closed(now, id, error);
        self.tear_down(protocol, now, id);
    }

    /// A stranger asks for a connection.
    pub(super) fn handle_request(
        &mut self,
        protocol: &mut Protocol,
        now: Instant,
        cm: verbs_sys::ConnectionId,
        private_data: &[u8],
    ) {
        if !Prefix::is_plausible(private_data) {
            protocol.stats.accepts += 1;
            protocol.stats.misbehaved += 1;
            self.manager.reject(cm, &[]);
            return;
        }
        let Some(id) = protocol.accept(now) else {
            self.manager.reject(cm, &[]);
            return;
        };
        self.by_id.insert(cm, id);
        let guard = match protocol.listening_hello() {
            Ok(hello) => hello.map(|hello| Box::new(Guard::new(hello, false, false))),
            Err(fault) => {
                self.manager.reject(cm, &[]);
                self.by_id.remove(&cm);
                return protocol.handle_fault(now, id, fault.reason);
            }
        };
        self.links.insert(id, Link::new(cm, guard));
        let prefix = Prefix::ours(protocol.epoch);
        let accepted = self
            .open_pair(id, cm)
            .and_then(|pair| self.manager.accept(cm, &mut self.nic, pair, prefix.as_bytes()));
        if let Err(error) = accepted {
            self.handle_dial_failed(protocol, now, cm, error.kind());
        }
    }

    // ---- going down

    /// Ends connections whose last word has left, or that have waited long enough for it.
    pub(super) fn end_lingering(&mut self, protocol: &mut Protocol, now: Instant) {
        if self.closing.is_empty() {
            return;
        }
        for (id, until) in self.closing.clone() {
            let is_over = match self.links.get(&id) {
                None => true,
                Some(link) => match link.pair.filter(|_| link.is_ready) {
                    None => true,
                    Some(pair) => {
                        self.nic.is_failed(pair) || link.queue.is_empty() && self.nic.in_flight(pair) == 0
                    }
                },
            };
            if is_over || now >= until {
                self.tear_down(protocol, now, id);
            }
        }
    }

    /// Destroys a connection. Whatever it held is ours again when this returns.
    pub(super) fn tear_down(&mut self, protocol: &mut Protocol, now: Instant, id: ConnectionId) {
        self.closing.remove(&id);
        self.backlog.remove(&id);
        self.held_dials.retain(|(held, _)| *held != id);
        if let Some(mut link) = self.links.remove(&id) {
            self.by_id.remove(&link.id);
            // Soft-RoCE does not survive a farewell on a link that is down: see `parked`.
            let is_reachable = self.has_port(now);
            if is_reachable {
                self.manager.disconnect(link.id);
            }
            if let Some(pair) = link.pair {
                self.nic.destroy_queue_pair(pair);
                // Its flushed operations and ended exposures.
                while self.poll_completions(protocol, now, super::POLL_ENTRIES) > 0 {}
                self.by_pair.remove(&pair);
            }
            if is_reachable {
                self.manager.destroy(link.id);
            } else {
                self.parked.push(link.id);
                self.unpark_at = Some(now + Duration::from_millis(UNPARK_MS));
            }
            for (tag, work) in std::mem::take(&mut link.queue) {
                drop(work);
                self.handle_work(protocol, now, tag, Memory::None, Err(CompletionError::Flushed));
            }
        }
        self.bindings.forget(id);
        // Anything the core still says about it was said before.
        if protocol
            .connection(id)
            .is_some_and(|connection| connection.phase == crate::connection::Phase::Ended)
        {
            protocol.forget(id);
        }
    }

    /// Whether the connection manager may say something: see `parked` and `doubted_until`.
    fn has_port(&self, now: Instant) -> bool {
        now >= self.doubted_until && self.nic.has_active_port()
    }

    /// Makes the calls that were held back, and says the farewells that wait for a port, once there is one.
    pub(super) fn unpark(&mut self, protocol: &mut Protocol, now: Instant) {
        if self.unpark_at.is_none_or(|at| now < at) {
            return;
        }
        if now >= self.doubted_until {
            for (id, endpoint) in std::mem::take(&mut self.held_dials) {
                if protocol.connection(id).is_some() {
                    self.dial(protocol, now, id, endpoint);
                }
            }
        }
        if self.parked.is_empty() && self.held_dials.is_empty() {
            self.unpark_at = None;
            return;
        }
        if !self.has_port(now) {
            self.unpark_at = Some(now + Duration::from_millis(UNPARK_MS));
            return;
        }
        self.unpark_at = None;
        for id in std::mem::take(&mut self.parked) {
            self.manager.disconnect(id);
            self.manager.destroy(id);
        }
    }

    // ---- sending

    /// Moves the frames of a connection to its queue, as work requests.
    pub(super) fn take_outbox(&mut self, protocol: &mut Protocol, id: ConnectionId) {
        loop {
            let Some(connection) = protocol.connection(id) else { return };
            connection.is_dirty = false;
            if !self.links.contains_key(&id) {
                // Not dialled yet, or gone.
                return;
            }
            if self
                .links
                .get(&id)
                .and_then(|link| link.guard.as_ref())
                .is_some_and(|guard| !guard.takes_frames())
            {
                // Once the handshake is over, it comes back here.
                return;
            }
            let Some(connection) = protocol.connection(id) else { return };
            let Some(outgoing) = connection.outbox.pop_front() else { return };
            let Some(room) = self.room_for(protocol, id, &outgoing) else {
                // What is to be sealed waits for memory, and all behind it for their turn.
                if let Some(connection) = protocol.connection(id) {
                    connection.outbox.push_front(outgoing);
                }
                self.starved.insert(id);
                return;
            };
            self.send(protocol, id, outgoing, room);
        }
    }

    pub(super) fn send(
        &mut self,
        protocol: &mut Protocol,
        id: ConnectionId,
        mut outgoing: Outgoing,
        mut room: Room,
    ) {
        match (&outgoing.body, &outgoing.payload) {
            (FrameBody::PullRequest { transfer, .. }, _) => return self.start_reads(protocol, *transfer),
            (
                FrameBody::PushData { cookie, key, transfer, segment_index, offset_bytes, .. },
                Payload::Bytes(payload),
            ) => {
                let segment = protocol.remote_segment(id, *cookie, usize::from(*segment_index));
                let Some(segment) = segment else {
                    let error = NetError::Local(LocalError::NoRemoteSegments { cookie: *cookie });
                    return protocol.handle_transfer_failed(*transfer, error);
                };
                let to = Remote { address: segment.address + u64::from(*offset_bytes), key: segment.rkey };
                let (transfer, completes) = (*transfer, outgoing.completes);
                let (operation, segment_index) = (SealedOperation::Push, *segment_index);
                let place = Place { operation, segment_index, name: *cookie, key: *key };
                if !self.seals(id) {
                    let (from, tag) = (payload.clone(), self.tag(Tag::Write { transfer, completes }));
                    return self.queue(id, tag, Work::Write { from, to });
                }
                let into = room.parts.pop_front();
                let sealed = into.and_then(|into| self.seal_copy(protocol, id, &place, payload, into));
                let Some((from, seal)) = sealed else {
                    let error = NetError::Local(LocalError::KeysUsedUp);
                    return protocol.handle_transfer_failed(transfer, error);
                };
                let tag = self.tag(Tag::Write { transfer, completes });
                self.queue(id, tag, Work::Write { from, to });
                return self.note_pushed(protocol, id, &outgoing, seal);
            }
            _ => {}
        }
        let exposes = std::mem::take(&mut outgoing.exposes);
        let extension = self.bind_all(protocol, id, &exposes, &mut room);
        if !extension.is_empty() {
            outgoing.extend(extension);
        }
        let ended = outgoing.invalidates.and_then(|cookie| protocol.take_remote(id, cookie));
        let invalidates = ended.and_then(|ended| match &ended.segments[..] {
            [only] if ended.are_windows => Some(only.rkey),
            _ => None,
        });
        let tag_bytes = if self.seals(id) { TAG_BYTES } else { 0 };
        let is_long = rendezvous::is_long(&outgoing.body, outgoing.payload.len() + tag_bytes);
        let Some(connection) = protocol.connection(id) else { return };
        let mut head: SmallVec<[u8; 128]> = SmallVec::from_slice(&connection.seal(&outgoing));
        let payload = match outgoing.payload {
            Payload::None => None,
            Payload::Hello(hello) => {
                head.extend_from_slice(&hello[..]);
                None
            }
            Payload::Small(bytes) => {
                head.extend_from_slice(&bytes);
                None
            }
            Payload::Bytes(bytes) => Some(bytes),
            Payload::Extended { extension, message } => {
                head.extend_from_slice(&extension);
                Some(message)
            }
        };
        if let Some(message) = payload.clone().filter(|_| is_long) {
            return self.offer(protocol, id, head, message, room);
        }
        debug_assert!(head.len() >= HEADER_BYTES);
        let guarded = self.links.get(&id).and_then(|link| link.guard.as_ref());
        if guarded.is_some_and(|guard| !guard.is_raw_out) {
            return self.send_hello(id, &head);
        }
        self.queue_send(protocol, id, head, payload, invalidates, room.send);
    }

    // ---- proving who is there

    /// The first frame of a guarded link, in a record of the handshake's TLS. If that is broken, the deadline of the hello ends it.
    fn send_hello(&mut self, id: ConnectionId, frame: &[u8]) {
        let Some(guard) = self.links.get_mut(&id).and_then(|link| link.guard.as_mut()) else { return };
        if guard.seal(frame).is_err() {
            return;
        }
        let head = SmallVec::from_vec(guard.take_leaving());
        self.counters.copied_bytes.add(wide(frame.len()));
        self.end_guard(id);
        let tag = self.tag(Tag::Frame);
        self.queue(id, tag, Work::Send { head, payload: None, invalidates: None });
    }

    /// Sends what the handshake has to say.
    fn send_handshake(&mut self, id: ConnectionId) {
        let Some(guard) = self.links.get_mut(&id).and_then(|link| link.guard.as_mut()) else { return };
        let leaving = guard.take_leaving();
        for part in leaving.chunks(EAGER_BYTES) {
            let tag = self.tag(Tag::Frame);
            self.queue(id, tag, Work::Send { head: part.into(), payload: None, invalidates: None });
        }
    }

    fn end_guard(&mut self, id: ConnectionId) {
        if let Some(link) = self.links.get_mut(&id)
            && link.guard.as_ref().is_some_and(|guard| guard.is_over())
        {
            link.guard = None;
        }
    }

    /// What of a message is for the frames: all of it, unless the link is guarded.
    pub(super) fn unseal(
        &mut self,
        protocol: &mut Protocol,
        now: Instant,
        id: ConnectionId,
        message: SharedBuffer,
    ) -> Option<SharedBuffer> {
        let guarded = self.links.get_mut(&id).and_then(|link| link.guard.as_mut());
        let Some(guard) = guarded.filter(|guard| !guard.is_raw_in) else { return Some(message) };
        let opened = guard.open(&message);
        let finding = guard.finding.take();
        self.send_handshake(id);
        let plain = match opened {
            Ok(plain) => plain,
            Err(fault) => {
                protocol.handle_fault(now, id, fault.reason);
                return None;
            }
        };
        if let Some(Finding::Peer(peer)) = finding {
            if peer.is_sealed {
                let guard = self.links.get(&id).and_then(|link| link.guard.as_ref())?;
                match guard.sealing() {
                    Ok(sealing) => self.start_sealing(protocol, id, sealing),
                    Err(fault) => {
                        protocol.handle_fault(now, id, fault.reason);
                        return None;
                    }
                }
            }
            protocol.handle_established(id, &peer);
            // The hello waited for this.
            protocol.mark_dirty(id);
        }
        self.end_guard(id);
        if plain.is_empty() {
            return None;
        }
        // A hello. Without memory for it the connection ends by its deadline.
        let mut buffer = self.messages.alloc(plain.len())?;
        copy_counted(&self.counters, &mut buffer, &plain);
        Some(buffer.freeze())
    }

    /// A connection of ours went while it shook hands: who shares a secret takes that for garbage, and hangs up.
    pub(super) fn is_shaking_hands(&self, id: ConnectionId) -> bool {
        let guard = self.links.get(&id).and_then(|link| link.guard.as_ref());
        guard.is_some_and(|guard| guard.is_dialled && !guard.is_established)
    }

    pub(super) fn queue(&mut self, id: ConnectionId, tag: u64, work: Work) {
        if let Some(link) = self.links.get_mut(&id) {
            link.queue.push_back((tag, work));
            self.backlog.insert(id);
        }
    }

    /// A pull as READs, one per segment, within the device's budget.
    fn start_reads(&mut self, protocol: &mut Protocol, transfer: u64) {
        let Some(lent) = protocol.lend_pull(transfer) else { return };
        let segments: Option<Vec<_>> = (0..lent.buffers.len())
            .map(|index| protocol.remote_segment(lent.connection, lent.cookie, index))
            .collect();
        let Some(segments) = segments else {
            let error = NetError::Local(LocalError::NoRemoteSegments { cookie: lent.cookie });
            return protocol.handle_transfer_failed(transfer, error);
        };
        self.next_tag += 1;
        let job = self.next_tag;
        let missing = segments.len();
        let buffers = (0..missing).map(|_| None).collect();
        let opener = self.links.get(&lent.connection).and_then(|link| link.seal.as_ref());
        let opener = opener.map(|seal| Rc::clone(&seal.opener));
        let seals = opener.zip(protocol.remote_seals(lent.connection, lent.cookie));
        let seals = seals.map(|(opener, (key, seals))| JobSeals {
            connection: lent.connection,
            cookie: lent.cookie,
            key,
            seals,
            opener,
        });
        self.jobs.insert(job, ReadJob { transfer, buffers, missing, error: None, seals });
        for (index, (into, segment)) in lent.buffers.into_iter().zip(segments).enumerate() {
            let tag = self.tag(Tag::Read { job, index, bytes: into.len() });
            let from = Remote { address: segment.address, key: segment.rkey };
            self.reads.push_back((lent.connection, tag, Work::Read { into, from }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_recognised_and_padding_is_not() {
        let ours = Prefix::ours(7);
        assert!(Prefix::is_plausible(ours.as_bytes()));
        let mut padded = ours.as_bytes().to_vec();
        padded.extend_from_slice(&[0; 8]);
        assert!(Prefix::is_plausible(&padded));
        assert!(!Prefix::is_plausible(&ours.as_bytes()[..55]) && !Prefix::is_plausible(&[0; 56]));
        for (at, value) in [(0, 0), (2, 0), (3, 0), (8, 0)] {
            let mut wrong = ours.as_bytes().to_vec();
            wrong[at] = value;
            assert!(!Prefix::is_plausible(&wrong), "{at}");
        }
    }
}
