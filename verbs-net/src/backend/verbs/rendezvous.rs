//! Messages longer than an eager buffer: the frame carries where the message lies, the receiver READs it and says so.
//!
//! Offer: header, extension, then 32 bytes (magic, key, address, length, reserved, number). Done: 16 bytes (magic, reserved,
//! number), which with memory windows also invalidates the key. On a sealed connection the message is a sealed copy, and its seal stands behind
//! the offer. Frames behind a long message wait for it, so order holds.

use base::Instant;
use base::units::{narrow, wide};
use runtime::{Buffer, SharedBuffer};
use smallvec::SmallVec;
use verbs_sys::{Access, ExposureId, Remote, Work};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::limits::EAGER_BYTES;
use super::link::Stalled;
use super::sealed::Room;
use super::{Tag, VerbsBackend};
use crate::connection::{ConnectionId, Payload};
use crate::error::PeerMisbehaved;
use crate::frame::{Frame, FrameBody, HEADER_BYTES};
use crate::protocol::Protocol;
use crate::security::{Place, SEAL_BYTES, Seal, SealedOperation};

const OFFER: u32 = u32::from_le_bytes(*b"CLro");
const DONE: u32 = u32::from_le_bytes(*b"CLrd");

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawOffer {
    magic: U32,
    key: U32,
    address: U64,
    bytes: U32,
    flags: U32,
    number: U64,
}

/// `flags` bit 0 of an offer: the key is a memory window's.
const FLAG_WINDOW: u32 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawDone {
    magic: U32,
    reserved: U32,
    number: U64,
}

/// Bytes of an offer, without a seal.
pub(super) const OFFER_BYTES: usize = 32;

const _: () = assert!(size_of::<RawOffer>() == OFFER_BYTES && size_of::<RawDone>() == 16);

/// A long message of the peer that is being read.
pub(super) struct Fetching {
    frame: Frame,
    extension: Box<[u8]>,
    number: u64,
    invalidates: Option<u32>,
    seal: Option<Seal>,
}

fn place_of(number: u64) -> Place {
    Place { operation: SealedOperation::LongMessage, segment_index: 0, name: number, key: 0 }
}

/// A long message of ours that the peer has not read yet.
pub(super) struct Offered {
    number: u64,
    exposure: ExposureId,
}

/// True if a frame and its payload (sealed: and the tag) do not fit one receive.
pub(super) fn is_long(body: &FrameBody, payload_bytes: usize) -> bool {
    matches!(body, FrameBody::Put { .. }) && HEADER_BYTES + payload_bytes > EAGER_BYTES
}

/// The number of a rendezvous that the peer has finished.
pub(super) fn parse_done(message: &[u8]) -> Option<u64> {
    let raw = RawDone::read_from_bytes(message).ok()?;
    (raw.magic.get() == DONE && raw.reserved.get() == 0).then_some(raw.number.get())
}

/// For the fuzzing suite.
pub(super) fn is_offer(bytes: &[u8]) -> bool {
    RawOffer::read_from_bytes(bytes).is_ok_and(|offer| offer.magic.get() == OFFER)
}

impl VerbsBackend {
    /// Sends a frame whose message the peer has to read.
    pub(super) fn offer(
        &mut self,
        protocol: &mut Protocol,
        id: ConnectionId,
        mut head: SmallVec<[u8; 128]>,
        message: SharedBuffer,
        room: Room,
    ) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(pair) = link.pair else { return };
        let number = link.next_offer;
        link.next_offer += 1;
        let (message, seal) = if self.seals(id) {
            let sealed =
                room.long.and_then(|into| self.seal_copy(protocol, id, &place_of(number), &message, into));
            // The keys are used up: the connection ends.
            let Some((copy, seal)) = sealed else { return };
            (copy, Some(seal))
        } else {
            (message, None)
        };
        // Nothing to pin or bind it with: the message is lost, as the contract allows, and rpc sends it again.
        let Ok((exposure, segment)) = self.nic.expose(pair, message, Access::Read) else {
            protocol.stats.stale_dropped += 1;
            return;
        };
        if let Some(link) = self.links.get_mut(&id) {
            link.offered.push(Offered { number, exposure });
        }
        let uses_windows = self.nic.uses_windows();
        let raw = RawOffer {
            magic: OFFER.into(),
            key: segment.key.into(),
            address: segment.address.into(),
            bytes: segment.bytes.into(),
            flags: if uses_windows { FLAG_WINDOW } else { 0 }.into(),
            number: number.into(),
        };
        head.extend_from_slice(raw.as_bytes());
        if let Some(seal) = seal {
            head.extend_from_slice(&seal.encode());
        }
        if uses_windows {
            let tag = self.tag(Tag::Bind);
            self.queue(id, tag, Work::Bind(exposure));
        }
        self.queue_send(protocol, id, head, None, None, room.send);
    }

    /// Starts to read a long message. `rest`: what came behind the header.
    pub(super) fn start_fetch(
        &mut self,
        protocol: &mut Protocol,
        id: ConnectionId,
        frame: Frame,
        rest: &[u8],
    ) -> Result<(), PeerMisbehaved> {
        let FrameBody::Put { extension_bytes, .. } = frame.body else { return Ok(()) };
        let bad = |what| PeerMisbehaved::BadExtension { what };
        let extension_bytes = narrow(u64::from(extension_bytes));
        let (extension, offer) =
            rest.split_at_checked(extension_bytes).ok_or(bad("cut short before an offer"))?;
        let (offer, seal) = match offer.split_at_checked(OFFER_BYTES) {
            Some((offer, seal)) if self.seals(id) => {
                let seal =
                    <&[u8; SEAL_BYTES]>::try_from(seal).map_err(|_| bad("length of a sealed offer"))?;
                (offer, Some(Seal::decode(seal)))
            }
            _ => (offer, None),
        };
        let offer = RawOffer::read_from_bytes(offer).map_err(|_| bad("length of an offer"))?;
        let bytes = frame.payload_len() - extension_bytes;
        let is_good = offer.magic.get() == OFFER
            && offer.flags.get() & !FLAG_WINDOW == 0
            && u64::from(offer.bytes.get()) == wide(bytes);
        if !is_good {
            return Err(bad("an offer"));
        }
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        if link.fetching.is_some() {
            // Behind another: kept as it came, and started when that one is done.
            link.stalled.push_back((frame, Stalled::Offer(rest.into())));
            return Ok(());
        }
        let Some(into) = self.messages.alloc(bytes) else {
            // No memory for it: lost, as the contract allows; its number tells the sender to let go.
            protocol.stats.stale_dropped += 1;
            self.say_done(protocol, id, offer.number.get(), None);
            return Ok(());
        };
        let invalidates = (offer.flags.get() & FLAG_WINDOW != 0).then_some(offer.key.get());
        let (extension, number) = (extension.into(), offer.number.get());
        link.fetching = Some(Fetching { frame, extension, number, invalidates, seal });
        let from = Remote { address: offer.address.get(), key: offer.key.get() };
        let tag = self.tag(Tag::Fetch { connection: id, bytes: 0 });
        self.queue(id, tag, Work::Read { into, from });
        Ok(())
    }

    fn say_done(&mut self, protocol: &mut Protocol, id: ConnectionId, number: u64, invalidates: Option<u32>) {
        let raw = RawDone { magic: DONE.into(), reserved: 0.into(), number: number.into() };
        let head = SmallVec::from_slice(raw.as_bytes());
        self.queue_send(protocol, id, head, None, invalidates, None);
    }

    /// A long message is here: it and what waited behind it go to the core.
    pub(super) fn handle_fetched(
        &mut self,
        protocol: &mut Protocol,
        now: Instant,
        id: ConnectionId,
        mut message: Buffer,
    ) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(fetched) = link.fetching.take() else { return };
        if let (Some(seal), Some(found)) = (fetched.seal, &link.seal) {
            let place = place_of(fetched.number);
            if found.opener.open_bulk(&place, &seal, &mut message).is_err() {
                return protocol.handle_misbehaviour(now, id, place.broken());
            }
        }
        let message = message.freeze();
        self.say_done(protocol, id, fetched.number, fetched.invalidates);
        let payload = if fetched.extension.is_empty() {
            Payload::Bytes(message)
        } else {
            Payload::Extended { extension: fetched.extension, message }
        };
        protocol.handle_frame(now, id, &fetched.frame, payload);
        while let Some(link) = self.links.get_mut(&id) {
            if link.fetching.is_some() {
                return;
            }
            let Some((frame, payload)) = link.stalled.pop_front() else { return };
            match payload {
                Stalled::Offer(rest) => {
                    if let Err(what) = self.start_fetch(protocol, id, frame, &rest) {
                        return protocol.handle_misbehaviour(now, id, what);
                    }
                }
                Stalled::Payload(payload) => protocol.handle_frame(now, id, &frame, payload),
            }
        }
    }

    /// The peer has read a long message of ours.
    pub(super) fn handle_fetch_done(&mut self, id: ConnectionId, number: u64) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(place) = link.offered.iter().position(|offered| offered.number == number) else { return };
        let offered = link.offered.remove(place);
        // A window that the peer's message has ended is gone already; one that it could not end, we end.
        if self.nic.conceal(offered.exposure).is_none() && self.nic.is_exposed(offered.exposure) {
            let tag = self.tag(Tag::Invalidate);
            self.queue(id, tag, Work::Invalidate(offered.exposure));
        }
    }
}
