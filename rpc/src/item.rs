//! Items: the header before every rpc message, its bytes, and the one place where a peer's bytes become trusted values.
//!
//! An item is `header (64 bytes) | source descriptor | sink descriptor | body`. docs/wire.md#items has the table; the golden
//! bytes below pin it. Nothing here allocates; [`Header::parse`] never panics, whatever the bytes.

use std::ops::Range;

use base::checksum::{crc32c, crc32c_blanking};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::misbehaviour::PeerMisbehaved;

/// First bytes of every item.
pub const MAGIC: [u8; 4] = *b"ClIt";
/// The version that this code writes and reads.
pub const VERSION: u8 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 64;

/// The header as it stands on the wire. Only this file looks inside.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 4],
    version: u8,
    kind: u8,
    flags: U16,

    opcode: U16,
    slot: U16,
    time_left_ms: U32,

    session: U64,
    xid: U64,
    config_version: U64,

    body_bytes: U32,
    source_bytes: U16,
    sink_bytes: U16,

    status: U32,
    crc32c: U32,

    request_id: U64,
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);
/// Flag: where a source descriptor would stand are bytes of bulk ([`crate::inline`]): a request's source, or what a reply has for the sink.
const FLAG_INLINE: u16 = 1;
/// Where the checksum stands; it is taken over the item with these four bytes zero.
const CRC_RANGE: Range<usize> = 52..56;

/// Names a session. Chosen by the server, unique over its restarts. 0 is no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct SessionId(pub u64);

/// Number of a request in its slot: 1, 2, 3, ... A resend keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Xid(pub u64);

impl Xid {
    /// The number after this one.
    #[must_use]
    pub fn next(self) -> Xid {
        Xid(self.0.wrapping_add(1))
    }

    /// How far `self` is ahead of `last`: 1 is the next, 0 the same, negative the past.
    #[must_use]
    pub fn distance_from(self, last: Xid) -> i64 {
        self.0.wrapping_sub(last.0).cast_signed()
    }
}

/// How a request ended, in a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The body is the fop's reply.
    Done,
    /// The body is a [`fops::FopError`].
    Failed,
    /// The request was cancelled before it ran and never will run. No body.
    Dropped,
}

/// What an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A fop that wants a reply. Lives in a slot of a session.
    Request {
        /// The fop's number.
        opcode: u16,
    },
    /// The answer to the request with the same session, slot and xid.
    Reply {
        /// How it ended.
        status: Status,
    },
    /// A fop without session and reply; may be lost or run twice.
    OneWay {
        /// The fop's number.
        opcode: u16,
    },
    /// Client: give me a session. The xid is the client's nonce: it grows with each session that the client wants anew.
    Establish,
    /// Server: the session for that nonce.
    Established {
        /// Slots it has.
        slots: u16,
        /// It ends after this long without a word from the client.
        lifetime_ms: u32,
    },
    /// Server: every session is busy, or those of before a restart are not read yet; ask again later.
    Refused,
    /// Client: as `Establish`, and requests that may run at most once were sent in the session of this nonce: give it back.
    Resume,
    /// Server: the session for that nonce, with the slots' numbers and results of every request that changed something.
    Resumed {
        /// Slots it has.
        slots: u16,
        /// It ends after this long without a word from the client.
        lifetime_ms: u32,
    },
    /// Server: the session named in your item does not exist (any more). Slot and xid are those of the item.
    Ended,
    /// Client: the request of this slot and xid is no longer wanted. If it has not started, it must not start.
    Cancel,
    /// Server: the request of this slot and xid is held back on purpose: ask again only after this time. Only for clients that read it ([`reads`]).
    Held {
        /// Until the answer is due.
        time_left_ms: u32,
    },
}

/// What a side reads beyond single items: it says a number in `request id` of the words that begin a session, and each includes those below.
pub mod reads {
    /// Packets.
    pub const PACKETS: u64 = 1;
    /// [`super::Kind::Held`].
    pub const HELD: u64 = 2;
    /// Bulk inside of items ([`crate::inline`]).
    pub const INLINE: u64 = 3;
    /// What this code says.
    pub const NEWEST: u64 = INLINE;
}

const KIND_REQUEST: u8 = 1;
const KIND_REPLY: u8 = 2;
const KIND_ONE_WAY: u8 = 3;
const KIND_SESSION: u8 = 4;
const SESSION_ESTABLISH: u16 = 1;
const SESSION_ESTABLISHED: u16 = 2;
const SESSION_REFUSED: u16 = 3;
const SESSION_ENDED: u16 = 4;
const SESSION_CANCEL: u16 = 5;
const SESSION_RESUME: u16 = 6;
const SESSION_RESUMED: u16 = 7;
const SESSION_HELD: u16 = 8;

/// A header whose every field was checked. The only roads to one from bytes are [`Header::parse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the item is.
    pub kind: Kind,
    /// The session, 0 where there is none.
    pub session: SessionId,
    /// Slot in the session.
    pub slot: u16,
    /// Number in the slot, or the nonce of session control.
    pub xid: Xid,
    /// Time until the requester gives up, in milliseconds; 0 except in requests and one-way items.
    pub time_left_ms: u32,
    /// Configuration version of the sender.
    pub config_version: u64,
    /// Names the request in traces of client and servers.
    pub request_id: u64,
    /// The source's bytes stand in the item, instead of its descriptor; in a reply, bytes for the sink.
    pub is_inline: bool,
    /// Bytes of the descriptor of the bulk that the server may pull, or of what stands in its place; 0 for none.
    pub source_bytes: u16,
    /// Bytes of the descriptor of the bulk that the server may push; 0 for none.
    pub sink_bytes: u16,
    /// Bytes of the body.
    pub body_bytes: u32,
}

impl Header {
    /// A header without bulk and body.
    #[must_use]
    pub fn control(kind: Kind, session: SessionId, slot: u16, xid: Xid) -> Header {
        Header {
            kind,
            session,
            slot,
            xid,
            time_left_ms: 0,
            config_version: 0,
            request_id: 0,
            is_inline: false,
            source_bytes: 0,
            sink_bytes: 0,
            body_bytes: 0,
        }
    }

    /// Where the source descriptor stands in the item.
    #[must_use]
    pub fn source_range(&self) -> Range<usize> {
        HEADER_BYTES..HEADER_BYTES + usize::from(self.source_bytes)
    }

    /// Where the sink descriptor stands in the item.
    #[must_use]
    pub fn sink_range(&self) -> Range<usize> {
        let start = self.source_range().end;
        start..start + usize::from(self.sink_bytes)
    }

    /// Where the body stands in the item.
    #[must_use]
    pub fn body_range(&self) -> Range<usize> {
        let start = self.sink_range().end;
        start..start + base::units::narrow(u64::from(self.body_bytes))
    }

    /// Bytes of the whole item.
    #[must_use]
    pub fn item_bytes(&self) -> usize {
        self.body_range().end
    }

    /// Writes the header into the first bytes of `item` and seals all of it with the checksum. The rest of `item` must be in
    /// place. Called again for a resend, it overwrites the old header.
    ///
    /// Panics if `item` is not exactly as long as the header says: a bug of ours.
    pub fn seal(&self, item: &mut [u8]) {
        assert_eq!(item.len(), self.item_bytes(), "an item is as long as its header says");
        let (kind, opcode, slot, time_left_ms, status) = match self.kind {
            Kind::Request { opcode } => (KIND_REQUEST, opcode, self.slot, self.time_left_ms, 0),
            Kind::Reply { status } => (KIND_REPLY, 0, self.slot, 0, status_number(status)),
            Kind::OneWay { opcode } => (KIND_ONE_WAY, opcode, 0, self.time_left_ms, 0),
            Kind::Establish => (KIND_SESSION, SESSION_ESTABLISH, 0, 0, 0),
            Kind::Established { slots, lifetime_ms } => {
                (KIND_SESSION, SESSION_ESTABLISHED, slots, lifetime_ms, 0)
            }
            Kind::Refused => (KIND_SESSION, SESSION_REFUSED, 0, 0, 0),
            Kind::Resume => (KIND_SESSION, SESSION_RESUME, 0, 0, 0),
            Kind::Resumed { slots, lifetime_ms } => (KIND_SESSION, SESSION_RESUMED, slots, lifetime_ms, 0),
            Kind::Ended => (KIND_SESSION, SESSION_ENDED, self.slot, 0, 0),
            Kind::Cancel => (KIND_SESSION, SESSION_CANCEL, self.slot, 0, 0),
            Kind::Held { time_left_ms } => (KIND_SESSION, SESSION_HELD, self.slot, time_left_ms, 0),
        };
        let raw = RawHeader {
            magic: MAGIC,
            version: VERSION,
            kind,
            flags: U16::new(if self.is_inline { FLAG_INLINE } else { 0 }),
            opcode: U16::new(opcode),
            slot: U16::new(slot),
            time_left_ms: U32::new(time_left_ms),
            session: U64::new(self.session.0),
            xid: U64::new(self.xid.0),
            config_version: U64::new(self.config_version),
            body_bytes: U32::new(self.body_bytes),
            source_bytes: U16::new(self.source_bytes),
            sink_bytes: U16::new(self.sink_bytes),
            status: U32::new(status),
            crc32c: U32::ZERO,
            request_id: U64::new(self.request_id),
        };
        item[..HEADER_BYTES].copy_from_slice(raw.as_bytes());
        let sum = crc32c(item);
        item[CRC_RANGE].copy_from_slice(&sum.to_le_bytes());
    }

    /// Checks a whole item of a peer. Shape and checksum only: whether session, slot and xid mean anything is for
    /// [`crate::responder`] and [`crate::requester`] to say.
    pub fn parse(item: &[u8]) -> Result<Header, PeerMisbehaved> {
        let Ok((raw, _)) = RawHeader::ref_from_prefix(item) else {
            return Err(PeerMisbehaved::TooShort { bytes: item.len() });
        };
        if raw.magic != MAGIC {
            return Err(PeerMisbehaved::Magic { got: raw.magic });
        }
        if raw.version != VERSION {
            return Err(PeerMisbehaved::Version { got: raw.version, known: VERSION });
        }
        let claimed = raw.crc32c.get();
        let sum = crc32c_blanking::<4>(item, CRC_RANGE.start);
        if claimed != sum {
            return Err(PeerMisbehaved::Checksum { claimed, computed: sum });
        }
        let field = |name, value: u64| PeerMisbehaved::Field { name, value };
        if raw.flags.get() & !FLAG_INLINE != 0 {
            return Err(field("flags", raw.flags.get().into()));
        }
        let (opcode, status) = (raw.opcode.get(), raw.status.get());
        let kind = match raw.kind {
            KIND_REQUEST => Kind::Request { opcode },
            KIND_REPLY => Kind::Reply { status: status_of(status).ok_or(field("status", status.into()))? },
            KIND_ONE_WAY => Kind::OneWay { opcode },
            KIND_SESSION => match opcode {
                SESSION_ESTABLISH => Kind::Establish,
                SESSION_ESTABLISHED => {
                    Kind::Established { slots: raw.slot.get(), lifetime_ms: raw.time_left_ms.get() }
                }
                SESSION_REFUSED => Kind::Refused,
                SESSION_ENDED => Kind::Ended,
                SESSION_CANCEL => Kind::Cancel,
                SESSION_RESUME => Kind::Resume,
                SESSION_RESUMED => {
                    Kind::Resumed { slots: raw.slot.get(), lifetime_ms: raw.time_left_ms.get() }
                }
                SESSION_HELD => Kind::Held { time_left_ms: raw.time_left_ms.get() },
                other => return Err(field("session control", other.into())),
            },
            other => return Err(field("kind", other.into())),
        };
        let has_slots = matches!(kind, Kind::Established { .. } | Kind::Resumed { .. });
        let is_held = matches!(kind, Kind::Held { .. });
        let header = Header {
            kind,
            session: SessionId(raw.session.get()),
            slot: if has_slots { 0 } else { raw.slot.get() },
            xid: Xid(raw.xid.get()),
            time_left_ms: if has_slots || is_held { 0 } else { raw.time_left_ms.get() },
            config_version: raw.config_version.get(),
            request_id: raw.request_id.get(),
            is_inline: raw.flags.get() & FLAG_INLINE != 0,
            source_bytes: raw.source_bytes.get(),
            sink_bytes: raw.sink_bytes.get(),
            body_bytes: raw.body_bytes.get(),
        };
        header.check_fields(item.len(), status)?;
        Ok(header)
    }

    /// What each kind must have and must not have.
    fn check_fields(&self, item_bytes: usize, status: u32) -> Result<(), PeerMisbehaved> {
        let field = |name, value: u64| Err(PeerMisbehaved::Field { name, value });
        if self.item_bytes() != item_bytes {
            return Err(PeerMisbehaved::Length { claimed: self.item_bytes(), got: item_bytes });
        }
        let is_request = matches!(self.kind, Kind::Request { .. });
        let is_reply = matches!(self.kind, Kind::Reply { .. });
        let is_one_way = matches!(self.kind, Kind::OneWay { .. });
        if self.xid.0 == 0 && !is_one_way {
            return field("xid", 0);
        }
        let has_session =
            !matches!(self.kind, Kind::OneWay { .. } | Kind::Establish | Kind::Resume | Kind::Refused);
        if has_session != (self.session != SessionId::default()) {
            return field("session", self.session.0);
        }
        let is_done = matches!(self.kind, Kind::Reply { status: Status::Done });
        if self.is_inline && (!(is_request || is_done) || self.source_bytes == 0) {
            return field("flags", FLAG_INLINE.into());
        }
        let has_descriptors = (self.source_bytes != 0 && !self.is_inline) || self.sink_bytes != 0;
        if !is_request && has_descriptors {
            return field("bulk descriptor bytes", u64::from(self.source_bytes) + u64::from(self.sink_bytes));
        }
        if !(is_request || is_reply || is_one_way) && self.body_bytes != 0 {
            return field("body bytes", self.body_bytes.into());
        }
        if matches!(self.kind, Kind::Reply { status: Status::Dropped }) && self.body_bytes != 0 {
            return field("body bytes", self.body_bytes.into());
        }
        if !is_reply && status != 0 {
            return field("status", status.into());
        }
        match self.kind {
            Kind::Established { slots: 0, .. } | Kind::Resumed { slots: 0, .. } => field("slots", 0),
            Kind::Established { lifetime_ms: 0, .. } | Kind::Resumed { lifetime_ms: 0, .. } => {
                field("lifetime", 0)
            }
            _ => Ok(()),
        }
    }
}

fn status_number(status: Status) -> u32 {
    match status {
        Status::Done => 0,
        Status::Failed => 1,
        Status::Dropped => 2,
    }
}

fn status_of(number: u32) -> Option<Status> {
    match number {
        0 => Some(Status::Done),
        1 => Some(Status::Failed),
        2 => Some(Status::Dropped),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request() -> Header {
        Header {
            kind: Kind::Request { opcode: 32 },
            session: SessionId(0x1122_3344_5566_7788),
            slot: 5,
            xid: Xid(9),
            time_left_ms: 30_000,
            config_version: 7,
            request_id: 0xabcd,
            is_inline: false,
            source_bytes: 3,
            sink_bytes: 2,
            body_bytes: 4,
        }
    }

    fn sealed(header: &Header) -> Vec<u8> {
        let mut item: Vec<u8> = (0..header.item_bytes()).map(|i| u8::try_from(i % 251).unwrap()).collect();
        header.seal(&mut item);
        item
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.chunks(8).map(|row| row.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n").collect()
    }

    #[test]
    fn golden_bytes_of_a_request() {
        let expected = "\
            436c497401010000\n\
            2000050030750000\n\
            8877665544332211\n\
            0900000000000000\n\
            0700000000000000\n\
            0400000003000200\n\
            00000000cc5be051\n\
            cdab000000000000\n\
            4041424344454647\n\
            48\n";
        assert_eq!(hex(&sealed(&request())), expected);
    }

    #[test]
    fn golden_bytes_of_session_control() {
        let established = Header::control(
            Kind::Established { slots: 64, lifetime_ms: 120_000 },
            SessionId(0x0102_0304_0000_0001),
            0,
            Xid(1),
        );
        let expected = "\
            436c497401040000\n\
            02004000c0d40100\n\
            0100000004030201\n\
            0100000000000000\n\
            0000000000000000\n\
            0000000000000000\n\
            0000000045af1be6\n\
            0000000000000000\n";
        assert_eq!(hex(&sealed(&established)), expected);
        assert_eq!(Header::parse(&sealed(&established)).unwrap(), established);
    }

    #[test]
    fn what_is_sealed_parses_back() {
        let session = SessionId(3);
        let kinds = [
            Kind::Request { opcode: 1 },
            Kind::Reply { status: Status::Done },
            Kind::Reply { status: Status::Failed },
            Kind::Reply { status: Status::Dropped },
            Kind::OneWay { opcode: 49 },
            Kind::Establish,
            Kind::Refused,
            Kind::Ended,
            Kind::Cancel,
            Kind::Resume,
            Kind::Resumed { slots: 8, lifetime_ms: 9 },
            Kind::Held { time_left_ms: 9000 },
        ];
        for kind in kinds {
            let without =
                matches!(kind, Kind::OneWay { .. } | Kind::Establish | Kind::Resume | Kind::Refused);
            let session = if without { SessionId(0) } else { session };
            let header = Header::control(kind, session, 0, Xid(4));
            assert_eq!(Header::parse(&sealed(&header)).unwrap(), header, "{kind:?}");
        }
        let inline = Header { is_inline: true, sink_bytes: 0, ..request() };
        let answer = Header { kind: Kind::Reply { status: Status::Done }, time_left_ms: 0, ..inline };
        for header in [inline, answer] {
            let item = sealed(&header);
            assert_eq!((Header::parse(&item).unwrap(), &item[6..8]), (header, &[1, 0][..]));
        }
        let refused = [
            Header { kind: Kind::Reply { status: Status::Failed }, ..answer },
            Header { kind: Kind::OneWay { opcode: 49 }, session: SessionId(0), ..answer },
            Header { source_bytes: 0, ..answer },
            Header { sink_bytes: 1, ..answer },
        ];
        for header in refused {
            assert!(Header::parse(&sealed(&header)).is_err(), "{header:?}");
        }
        let full = request();
        let item = sealed(&full);
        assert_eq!(Header::parse(&item).unwrap(), full);
        assert_eq!(item[full.body_range()].len(), 4);
        assert_eq!(full.source_range(), 64..67);
        assert_eq!(full.sink_range(), 67..69);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = sealed(&request());
        for index in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[index] ^= 1 << bit;
                assert!(Header::parse(&bad).is_err(), "byte {index} bit {bit}");
            }
        }
    }

    /// A peer that computes checksums can still write any field.
    fn resealed(mut item: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
        item[at..at + bytes.len()].copy_from_slice(bytes);
        item[CRC_RANGE].fill(0);
        let sum = crc32c(&item);
        item[CRC_RANGE].copy_from_slice(&sum.to_le_bytes());
        item
    }

    #[test]
    fn wrong_fields_with_a_right_checksum_are_refused() {
        let good = sealed(&request());
        let cases: [(&str, usize, &[u8]); 10] = [
            ("flags", 6, &[2, 0]),
            ("kind", 5, &[9]),
            ("session control", 5, &[KIND_SESSION]),
            ("status", 48, &[7, 0, 0, 0]),
            ("xid", 24, &[0; 8]),
            ("session", 16, &[0; 8]),
            ("bulk descriptor bytes", 5, &[KIND_REPLY]),
            ("length", 40, &[5, 0, 0, 0]),
            ("length", 40, &[0xff; 4]),
            ("length", 44, &[0xff; 4]),
        ];
        for (name, at, bytes) in cases {
            let error = Header::parse(&resealed(good.clone(), at, bytes)).unwrap_err();
            match error {
                PeerMisbehaved::Field { name: got, .. } => assert_eq!(got, name),
                PeerMisbehaved::Length { .. } => assert_eq!(name, "length"),
                other => panic!("{name}: {other}"),
            }
        }
        assert!(matches!(
            Header::parse(&resealed(good.clone(), 0, b"nope")),
            Err(PeerMisbehaved::Magic { .. })
        ));
        assert!(matches!(
            Header::parse(&resealed(good, 4, &[2])),
            Err(PeerMisbehaved::Version { got: 2, .. })
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Header::parse(&bytes);
        }

        #[test]
        fn any_fields_never_panic(fields in proptest::collection::vec(any::<u8>(), 58), tail in 0usize..40) {
            let mut item = vec![0u8; HEADER_BYTES + tail];
            item[6..64].copy_from_slice(&fields);
            item[..4].copy_from_slice(&MAGIC);
            item[4] = VERSION;
            item[5] = fields[0] % 6;
            let item = resealed(item, 0, &MAGIC);
            if let Ok(header) = Header::parse(&item) {
                prop_assert_eq!(header.body_range().end, item.len());
            }
        }
    }
}
