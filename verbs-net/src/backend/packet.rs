//! Nets that carry whole packets between stations: one process and the simulation. A header is encoded and parsed as on
//! a wire; the payload is a shared buffer that changes hands.
//!
//! A connection is a link id, chosen by the dialling side and unique in its fabric. A packet for an unknown link is answered
//! with a reset, as TCP would.

use std::collections::{BTreeMap, VecDeque};

use base::{Endpoint, Instant};

use crate::backend::sim_hardware::{AccessError, Hardware, Verb};
use crate::connection::{ConnectionId, Outgoing, Payload, Phase};
use crate::error::NetError;
use crate::frame::{Frame, FrameBody, HEADER_BYTES, VERSION_MIN};
use crate::protocol::{Action, Protocol};

/// What a packet is for.
#[derive(Clone)]
pub(crate) enum Parcel {
    /// A frame. `opens`: the first of its link, from the dialling side.
    Frame {
        header: [u8; HEADER_BYTES],
        payload: Payload,
        opens: bool,
        traits: ParcelTraits,
        /// A window of the receiver that its card invalidates before it hands the frame over.
        invalidates: Option<u32>,
    },
    /// From card to card.
    Verb(Verb),
    /// The link is gone.
    Reset,
}

/// What a faulty net has to know of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ParcelTraits {
    /// May be lost, doubled, reordered.
    Message,
    /// May be lost; keeps its order.
    Ordered,
}

#[derive(Clone)]
pub(crate) struct Packet {
    pub(crate) from: Endpoint,
    pub(crate) link: u64,
    pub(crate) parcel: Parcel,
}

/// One station's access to a packet net.
pub(crate) trait PacketWire {
    /// A link id that nobody else uses.
    fn new_link(&mut self) -> u64;
    /// True if `to` can be dialled: false fails the dial at once, like a refused connect.
    fn listens(&self, to: Endpoint) -> bool;
    /// Hands over a packet; the net may lose it. Takes bytes of payload for its arithmetic from the packet.
    fn send(&mut self, now: Instant, to: Endpoint, packet: Packet);
    /// Packets that have arrived by `now`, in order, at most `budget`.
    fn receive(&mut self, now: Instant, budget: usize, into: &mut Vec<Packet>);
    /// When the next packet arrives, where that is known.
    fn next_arrival(&self) -> Option<Instant>;
    /// True if `receive` would give something.
    fn has_work(&self) -> bool;
}

struct LinkEnd {
    connection: ConnectionId,
    to: Endpoint,
    is_opened: bool,
}

/// The backend over any packet net.
pub(crate) struct PacketBackend<W: PacketWire> {
    wire: W,
    endpoint: Endpoint,
    /// The time of the last call, for the resets of [`Drop`].
    seen_now: Instant,
    links: BTreeMap<u64, LinkEnd>,
    link_of: BTreeMap<ConnectionId, u64>,
    /// Empty between calls, as is `outbox`; they keep their memory.
    arrived: Vec<Packet>,
    outbox: VecDeque<Outgoing>,
    /// A simulated card, on nets with remote access.
    hardware: Option<Box<Hardware>>,
}

impl<W: PacketWire> PacketBackend<W> {
    pub(crate) fn new(endpoint: Endpoint, wire: W, hardware: Option<Hardware>) -> PacketBackend<W> {
        PacketBackend {
            wire,
            endpoint,
            seen_now: Instant::ZERO,
            links: BTreeMap::new(),
            link_of: BTreeMap::new(),
            arrived: Vec::new(),
            outbox: VecDeque::new(),
            hardware: hardware.map(Box::new),
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let of_card = self.hardware.as_ref().and_then(|hardware| hardware.next_deadline());
        [self.wire.next_arrival(), of_card].into_iter().flatten().min()
    }

    pub(crate) fn has_work(&self) -> bool {
        self.wire.has_work()
    }

    pub(crate) fn poll(&mut self, protocol: &mut Protocol, now: Instant, budget: usize) -> usize {
        self.seen_now = now;
        let mut arrived = std::mem::take(&mut self.arrived);
        self.wire.receive(now, budget.max(1), &mut arrived);
        let invalidated = self.hardware.as_mut().map_or(0, |hardware| hardware.poll(protocol));
        let count = arrived.len() + invalidated;
        for packet in arrived.drain(..) {
            self.handle_packet(protocol, now, packet);
        }
        self.arrived = arrived;
        count
    }

    fn handle_packet(&mut self, protocol: &mut Protocol, now: Instant, packet: Packet) {
        let Packet { from, link, parcel } = packet;
        let (header, payload, opens, invalidates) = match parcel {
            Parcel::Frame { header, payload, opens, invalidates, .. } => {
                (header, payload, opens, invalidates)
            }
            Parcel::Reset => {
                if let Some(end) = self.links.get(&link)
                    && end.to == from
                {
                    protocol.handle_closed(now, end.connection, NetError::RemoteDropped);
                }
                return;
            }
            Parcel::Verb(verb) => return self.handle_verb(protocol, now, from, link, verb),
        };
        let connection = match self.links.get(&link) {
            Some(end) if end.to == from => end.connection,
            None if opens => {
                let Some(connection) = protocol.accept(now) else { return self.reset(now, from, link) };
                self.links.insert(link, LinkEnd { connection, to: from, is_opened: true });
                self.link_of.insert(connection, link);
                connection
            }
            _ => {
                protocol.stats.stale_dropped += 1;
                return self.reset(now, from, link);
            }
        };
        if let (Some(rkey), Some(hardware)) = (invalidates, &mut self.hardware) {
            hardware.handle_invalidated(protocol, connection, rkey);
        }
        let version = protocol.connection(connection).map_or(VERSION_MIN, |found| found.version);
        match Frame::parse(&header, version) {
            Ok(frame) if frame.payload_len() == payload.len() => {
                protocol.handle_frame(now, connection, &frame, payload);
            }
            Ok(frame) => {
                let what = crate::PeerMisbehaved::PayloadLength {
                    kind: frame.body.kind(),
                    got: frame.payload_bytes,
                    max: 0,
                };
                protocol.handle_misbehaviour(now, connection, what);
            }
            Err(what) => protocol.handle_misbehaviour(now, connection, what),
        }
    }

    /// A card served or asked: without our protocol core, and only on a link that stands.
    fn handle_verb(&mut self, protocol: &mut Protocol, now: Instant, from: Endpoint, link: u64, verb: Verb) {
        let (Some(hardware), Some(end)) = (&mut self.hardware, self.links.get(&link)) else {
            protocol.stats.stale_dropped += 1;
            return;
        };
        if end.to != from {
            return;
        }
        let connection = end.connection;
        match hardware.handle(protocol, connection, verb) {
            Ok(Some(answer)) => {
                let parcel = Parcel::Verb(answer);
                self.wire.send(now, from, Packet { from: self.endpoint, link, parcel });
            }
            Ok(None) => {}
            Err(AccessError) => {
                // Both queue pairs go to error.
                self.reset(now, from, link);
                protocol.handle_closed(now, connection, NetError::RemoteDropped);
            }
        }
    }

    fn reset(&mut self, now: Instant, to: Endpoint, link: u64) {
        let from = self.endpoint;
        self.wire.send(now, to, Packet { from, link, parcel: Parcel::Reset });
    }

    pub(crate) fn flush(&mut self, protocol: &mut Protocol, now: Instant) {
        self.seen_now = now;
        // Handing frames over can end transfers and connections, which queues more: until there is nothing left.
        while !protocol.actions.is_empty() || !protocol.dirty.is_empty() {
            // Dials first, so that their hellos have a link; closes after the last words are out.
            let actions = std::mem::take(&mut protocol.actions);
            let mut closes = Vec::new();
            for action in actions {
                match action {
                    Action::Dial(connection, to) => self.dial(protocol, now, connection, to),
                    Action::Close(connection) => closes.push(connection),
                    Action::Revoke(bound, cookie) => match &mut self.hardware {
                        Some(hardware) => hardware.revoke(bound, cookie),
                        None => protocol.handle_revoked(bound, cookie),
                    },
                }
            }
            while let Some(connection) = protocol.dirty.pop_front() {
                self.send_outbox(protocol, now, connection);
            }
            for connection in closes {
                self.close(protocol, now, connection);
            }
        }
    }

    fn dial(&mut self, protocol: &mut Protocol, now: Instant, connection: ConnectionId, to: Endpoint) {
        if !self.wire.listens(to) {
            let cause = std::io::ErrorKind::ConnectionRefused;
            protocol.handle_closed(now, connection, NetError::Unreachable { endpoint: to, cause });
            return;
        }
        let link = self.wire.new_link();
        self.links.insert(link, LinkEnd { connection, to, is_opened: false });
        self.link_of.insert(connection, link);
    }

    fn send_outbox(&mut self, protocol: &mut Protocol, now: Instant, id: ConnectionId) {
        let from = self.endpoint;
        let Some(connection) = protocol.connection(id) else { return };
        connection.is_dirty = false;
        let mut outbox = std::mem::replace(&mut connection.outbox, std::mem::take(&mut self.outbox));
        let Some(link) = self.link_of.get(&id).copied() else { return };
        let Some(end) = self.links.get_mut(&link) else { return };
        while let Some(mut outgoing) = outbox.pop_front() {
            let to = end.to;
            let mut invalidates = None;
            if let Some(hardware) = &mut self.hardware {
                let send = |wire: &mut W, verb| {
                    wire.send(now, to, Packet { from, link, parcel: Parcel::Verb(verb) });
                };
                match (&outgoing.body, &outgoing.payload) {
                    (FrameBody::PullRequest { transfer, .. }, _) => {
                        for verb in hardware.start_reads(protocol, *transfer) {
                            send(&mut self.wire, verb);
                        }
                        continue;
                    }
                    (body @ FrameBody::PushData { .. }, Payload::Bytes(payload)) => {
                        let (payload, completes) = (payload.clone(), outgoing.completes);
                        let verb = hardware.start_write(protocol, id, body, payload, completes);
                        verb.into_iter().for_each(|verb| send(&mut self.wire, verb));
                        continue;
                    }
                    _ => invalidates = hardware.prepare(protocol, id, &mut outgoing),
                }
            }
            let Some(connection) = protocol.connection(id) else { return };
            let header = connection.seal(&outgoing);
            let traits = match outgoing.body {
                FrameBody::Put { .. }
                | FrameBody::Get { .. }
                | FrameBody::Reply { .. }
                | FrameBody::Ack { .. } => ParcelTraits::Message,
                _ => ParcelTraits::Ordered,
            };
            let opens =
                matches!(outgoing.body, FrameBody::Hello) && !std::mem::replace(&mut end.is_opened, true);
            let payload = outgoing.payload;
            let parcel = Parcel::Frame { header, payload, opens, traits, invalidates };
            self.wire.send(now, end.to, Packet { from, link, parcel });
            if let Some(transfer) = outgoing.completes {
                protocol.handle_handed(transfer);
            }
        }
        self.outbox = outbox;
    }

    fn close(&mut self, protocol: &mut Protocol, now: Instant, id: ConnectionId) {
        // Whatever was said last has been sent; the reset tells a peer that was not told.
        self.send_outbox(protocol, now, id);
        if let Some(link) = self.link_of.remove(&id)
            && let Some(end) = self.links.remove(&link)
            && protocol.connection(id).is_some_and(|connection| connection.phase == Phase::Ended)
        {
            self.reset(now, end.to, link);
        }
        if let Some(hardware) = &mut self.hardware {
            hardware.destroy(id);
        }
        protocol.forget(id);
    }
}

impl<W: PacketWire> Drop for PacketBackend<W> {
    fn drop(&mut self) {
        // As the kernel resets the connections of a process that ends.
        for (link, end) in std::mem::take(&mut self.links) {
            self.reset(self.seen_now, end.to, link);
        }
    }
}
