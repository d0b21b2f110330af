//! A connection whose ends encrypt everything: what is sealed before it is posted, and where the copies for it lie.
//!
//! Behind the hello every SEND is sealed as a whole. Bulk is sealed by the side that has the plain bytes, in a copy of its own, because
//! what a request exposes or pushes is somebody else's to read until it is over; it is opened in its place by the side that receives it: a
//! pull when its READs are complete, a push when its memory comes back (`ExposureTable`). Seals of a source stand in the extension of the request,
//! those of a push in a PushSeals frame behind its WRITEs. Bytes: docs/wire.md#sealed-connections-over-verbs.
//!
//! Copies lie in an arena of the machine's own of [`SEALING_BYTES`]: a push that waits for a copy must not wait for memory that other pushes
//! hold. A frame takes all that it needs before it is sealed ([`Room`]); without it, the connection's frames wait in their order. **Invariant**:
//! what gives the memory back (completions, replies of up to 4 KiB) needs none of it.

use std::collections::VecDeque;
use std::rc::Rc;

use base::units::wide;
use runtime::{Arena, ArenaConfig, Buffer, SharedBuffer, copy_counted};
use smallvec::SmallVec;
use verbs_sys::Work;
use verbs_sys::work::HEAD_BYTES_MAX;

use super::limits::{EAGER_BYTES, SEALING_BYTES};
use super::rendezvous::{OFFER_BYTES, is_long};
use super::{Tag, VerbsBackend};
use crate::connection::{ConnectionId, Outgoing, Payload};
use crate::error::{LocalError, NetError, PeerMisbehaved};
use crate::exposure::ExposedPart;
use crate::frame::{FrameBody, HEADER_BYTES};
use crate::memory_wait::MemoryWait;
use crate::protocol::Protocol;
use crate::remote::{EXPOSURE_HEAD_BYTES, PushSeal, RemoteAccess, SEGMENT_BYTES, encode_push_seals};
use crate::security::{Opener, Place, SEAL_BYTES, Seal, SealedOperation, Sealer, Sealing, TAG_BYTES};

/// What one connection seals and opens with.
pub(super) struct LinkSeal {
    sealer: Sealer,
    pub(super) opener: Rc<Opener>,
    /// The push whose segments are being written, and what opens those that are.
    pushed: (u64, Vec<PushSeal>),
}

/// Memory for what one frame has to have sealed; nothing on a connection that is not.
#[derive(Default)]
pub(super) struct Room {
    /// For segments, in their order.
    pub(super) parts: VecDeque<Buffer>,
    /// For a SEND that is too long for a head.
    pub(super) send: Option<Buffer>,
    /// For a message that the peer reads.
    pub(super) long: Option<Buffer>,
}

/// A segment's bytes for the wire, and what opens them.
pub(super) type SealedPart = (SharedBuffer, Seal);

impl VerbsBackend {
    /// Both ends have agreed on it.
    pub(super) fn start_sealing(&mut self, protocol: &mut Protocol, id: ConnectionId, sealing: Sealing) {
        let Sealing { sealer, opener } = sealing;
        let opener = Rc::new(opener);
        if let Some(link) = self.links.get_mut(&id) {
            link.seal =
                Some(Box::new(LinkSeal { sealer, opener: Rc::clone(&opener), pushed: (0, Vec::new()) }));
        }
        if let Some(connection) = protocol.connection(id) {
            connection.opener = Some(opener);
        }
    }

    /// The memory for copies, made when the first one is: who only says a little needs none.
    fn sealing_memory(&mut self) -> Result<&mut MemoryWait, NetError> {
        let failed = |kind| NetError::Local(LocalError::Socket { kind });
        let memory = match self.sealing.take() {
            Some(memory) => memory,
            None => {
                let arena = Arena::new(ArenaConfig { capacity_bytes: SEALING_BYTES });
                let arena = arena.map_err(|error| failed(error.kind()))?;
                self.nic.register(&arena).map_err(|error| failed(error.kind()))?;
                MemoryWait::new(arena, self.recipe.locality.unparker())
            }
        };
        Ok(self.sealing.insert(memory))
    }

    /// Frames that waited for memory go on.
    pub(super) fn feed_starved(&mut self, protocol: &mut Protocol) {
        if self.sealing.as_mut().is_some_and(MemoryWait::is_over) {
            for id in std::mem::take(&mut self.starved) {
                protocol.mark_dirty(id);
            }
        }
    }

    /// The memory that a frame needs to be sealed; `None`: it has to wait, or the connection has ended as there is no memory at all. A request that exposes more than half of it gets none for that: its
    /// source stays unbound, and its server says so.
    pub(super) fn room_for(
        &mut self,
        protocol: &mut Protocol,
        id: ConnectionId,
        outgoing: &Outgoing,
    ) -> Option<Room> {
        let (mut parts, mut send_bytes, mut long_bytes) = (SmallVec::<[usize; 4]>::new(), 0, 0);
        if !self.seals(id) {
            return Some(Room::default());
        }
        if let (FrameBody::PushData { .. }, Payload::Bytes(part)) = (&outgoing.body, &outgoing.payload) {
            parts.push(part.len());
        } else {
            let mut extension_bytes = 0;
            for cookie in &outgoing.exposes {
                let Some(view) = protocol.exposure_view(*cookie) else { continue };
                let is_source = view.access == RemoteAccess::Read;
                let each = SEGMENT_BYTES + if is_source { SEAL_BYTES } else { 0 };
                extension_bytes += EXPOSURE_HEAD_BYTES + each * view.parts.len();
                if is_source && !self.bindings.knows(id, *cookie) {
                    parts.extend(view.parts.iter().map(ExposedPart::len));
                }
            }
            let message_bytes = extension_bytes + outgoing.payload.len();
            send_bytes = HEADER_BYTES + message_bytes + TAG_BYTES;
            if is_long(&outgoing.body, message_bytes + TAG_BYTES) {
                long_bytes = outgoing.payload.len();
                send_bytes = HEADER_BYTES + extension_bytes + OFFER_BYTES + SEAL_BYTES + TAG_BYTES;
            }
        }
        if parts.iter().map(|bytes| wide(*bytes)).sum::<u64>() > SEALING_BYTES / 2 {
            parts.clear();
        }
        let send_bytes = if send_bytes > HEAD_BYTES_MAX { send_bytes } else { 0 };
        if parts.is_empty() && send_bytes + long_bytes == 0 {
            return Some(Room::default());
        }
        let memory = match self.sealing_memory() {
            Ok(memory) => memory,
            Err(error) => {
                let now = protocol.seen_now;
                protocol.handle_closed(now, id, error);
                return None;
            }
        };
        let mut room = Room::default();
        if long_bytes > 0 {
            room.long = Some(memory.alloc(long_bytes)?);
        }
        if send_bytes > 0 {
            room.send = Some(memory.alloc(send_bytes)?);
        }
        for bytes in parts {
            room.parts.push_back(memory.alloc(bytes)?);
        }
        Some(room)
    }

    /// True if what this connection says now is sealed here.
    pub(super) fn seals(&self, id: ConnectionId) -> bool {
        self.links.get(&id).is_some_and(|link| link.seal.is_some())
    }

    /// Copies bytes into `into`, which is as long, and seals them there. `None`: the keys are used up, and the connection ends.
    pub(super) fn seal_copy(
        &mut self,
        protocol: &mut Protocol,
        id: ConnectionId,
        place: &Place,
        bytes: &[u8],
        mut into: Buffer,
    ) -> Option<SealedPart> {
        let seal = self.links.get_mut(&id)?.seal.as_mut()?;
        copy_counted(&self.counters, &mut into, bytes);
        match seal.sealer.seal_bulk(place, &mut into) {
            Ok(seal) => Some((into.freeze(), seal)),
            Err(_) => {
                self.end_used_up(protocol, id);
                None
            }
        }
    }

    fn end_used_up(&mut self, protocol: &mut Protocol, id: ConnectionId) {
        let now = protocol.seen_now;
        protocol.handle_closed(now, id, NetError::Local(LocalError::KeysUsedUp));
    }

    /// Notes what opens a segment that is being written; with the last one of its push, the frame that tells the peer.
    pub(super) fn note_pushed(
        &mut self,
        protocol: &mut Protocol,
        id: ConnectionId,
        outgoing: &Outgoing,
        seal: Seal,
    ) {
        let FrameBody::PushData { cookie, key, transfer, segment_index, .. } = outgoing.body else { return };
        let Some(found) = self.links.get_mut(&id).and_then(|link| link.seal.as_mut()) else { return };
        // The segments of a push leave one behind the other; of one that was not finished nothing is told.
        let (pushing, seals) = &mut found.pushed;
        if std::mem::replace(pushing, transfer) != transfer {
            seals.clear();
        }
        match seals.iter_mut().find(|known| known.segment_index == segment_index) {
            Some(known) => known.seal = seal,
            None => seals.push(PushSeal { segment_index, seal }),
        }
        if outgoing.completes.is_none() {
            return;
        }
        let payload = Payload::Small(encode_push_seals(&std::mem::take(seals)));
        let body = FrameBody::PushSeals { cookie, key, transfer };
        let told = Outgoing::new(body, payload);
        self.send(protocol, id, told, Room::default());
    }

    /// Queues a SEND: sealed, where the connection is. `into`: memory for what is too long for a head.
    pub(super) fn queue_send(
        &mut self,
        protocol: &mut Protocol,
        id: ConnectionId,
        mut head: SmallVec<[u8; 128]>,
        mut payload: Option<SharedBuffer>,
        invalidates: Option<u32>,
        into: Option<Buffer>,
    ) {
        let Some(link) = self.links.get_mut(&id) else { return };
        if let Some(seal) = &mut link.seal {
            let body = payload.take();
            let body: &[u8] = body.as_deref().unwrap_or_default();
            let plain_bytes = head.len() + body.len();
            let sealed = if let Some(mut buffer) = into {
                buffer.resize(plain_bytes + TAG_BYTES);
                let (front, back) = buffer.split_at_mut(head.len());
                front.copy_from_slice(&head);
                copy_counted(&self.counters, &mut back[..body.len()], body);
                let tag = seal.sealer.seal_message(&mut buffer[..plain_bytes]);
                tag.map(|tag| {
                    buffer[plain_bytes..].copy_from_slice(&tag);
                    let whole = buffer.freeze();
                    head = SmallVec::from_slice(&whole[..HEADER_BYTES]);
                    payload = Some(whole.slice(HEADER_BYTES..whole.len()));
                })
            } else if plain_bytes + TAG_BYTES > HEAD_BYTES_MAX {
                // Its exposure could not be bound, and so it became another frame than there was memory for: lost, as the contract allows.
                protocol.stats.stale_dropped += 1;
                return;
            } else {
                head.extend_from_slice(body);
                self.counters.copied_bytes.add(wide(body.len()));
                let tag = seal.sealer.seal_message(&mut head);
                tag.map(|tag| head.extend_from_slice(&tag))
            };
            if sealed.is_err() {
                return self.end_used_up(protocol, id);
            }
        }
        let tag = self.tag(Tag::Frame);
        self.queue(id, tag, Work::Send { head, payload, invalidates });
    }

    /// Opens a SEND of the peer in its place, where the connection is sealed; answers how long it is.
    pub(super) fn open_received(
        &mut self,
        id: ConnectionId,
        message: &mut [u8],
    ) -> Result<usize, PeerMisbehaved> {
        let Some(link) = self.links.get(&id) else { return Ok(message.len()) };
        let is_hello = link.guard.as_ref().is_some_and(|guard| !guard.is_raw_in);
        let Some(seal) = link.seal.as_ref().filter(|_| !is_hello) else { return Ok(message.len()) };
        let operation = SealedOperation::Message;
        seal.opener.open_message(message).map_err(|_| PeerMisbehaved::BrokenSeal {
            operation,
            name: 0,
            segment_index: 0,
        })
    }
}

const _: () = assert!(HEADER_BYTES + OFFER_BYTES + SEAL_BYTES + TAG_BYTES <= HEAD_BYTES_MAX);
const _: () = assert!(crate::remote::PUSH_SEALS_BYTES_MAX + HEADER_BYTES + TAG_BYTES <= HEAD_BYTES_MAX);
const _: () = assert!(HEAD_BYTES_MAX < EAGER_BYTES);
