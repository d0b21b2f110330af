//! Frames on the wire: a fixed 64-byte little-endian header, then the payload. docs/wire.md has the table.
//!
//! Untrusted bytes become a `Frame` in one step, `Frame::parse`, or a [`PeerMisbehaved`]. A parsed frame encodes back
//! to the same bytes: a header with any stray bit is refused.

use base::checksum::crc32c;
use base::endpoint::PORTALS;
use base::limits::{BULK_SEGMENTS_MAX, MESSAGE_BYTES_MAX};
use base::units::narrow;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{NakReason, PeerMisbehaved, RefuseReason};
use crate::hello::HELLO_BYTES;
use crate::limits::{BULK_PIECE_BYTES, GET_BYTES_MAX};
use crate::portal::PORTAL_MESSAGES;
use crate::remote::{EXTENSION_BYTES_MAX, PUSH_SEAL_BYTES, PUSH_SEALS_BYTES_MAX};

/// `CL` in the order of the bytes on the wire.
pub const MAGIC: u16 = u16::from_le_bytes(*b"CL");
/// The protocol version of this build, and the oldest it speaks.
pub const VERSION: u8 = 1;
/// Oldest version this build speaks.
pub const VERSION_MIN: u8 = 1;
/// Bytes of a header.
pub const HEADER_BYTES: usize = 64;

/// Where the checksum stands in a header.
pub(crate) const CHECKSUM_AT: usize = 20;

/// `flags` bit 0 of PushData: answer with PushAck when all of the transfer has arrived (nets that lose frames).
const FLAG_ACK_WANTED: u16 = 1;

/// Type byte of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum FrameKind {
    /// First frame of the connecting side.
    Hello = 1,
    /// The accepting side's answer.
    HelloAck = 2,
    /// The accepting side's refusal.
    Reject = 3,
    /// Carries credits only.
    Noop = 4,
    /// One message.
    Put = 5,
    /// Asks for exposed segments.
    PullRequest = 6,
    /// A piece of a segment asked for.
    PullData = 7,
    /// A piece of a segment for an exposed sink.
    PushData = 8,
    /// All of a push has arrived.
    PushAck = 9,
    /// A pull or push is turned away.
    Nak = 10,
    /// Are you there? Here is what I have sent.
    Ping = 11,
    /// I am.
    Pong = 12,
    /// The sender ends the connection.
    Close = 13,
    /// Asks for bytes of a descriptor.
    Get = 14,
    /// The bytes that a Get asked for.
    Reply = 15,
    /// A Put has been placed.
    Ack = 16,
    /// What opens the segments that a push has written.
    PushSeals = 17,
}

impl TryFrom<u8> for FrameKind {
    type Error = u8;
    fn try_from(code: u8) -> Result<FrameKind, u8> {
        use FrameKind as K;
        const KINDS: [FrameKind; 17] = [
            K::Hello,
            K::HelloAck,
            K::Reject,
            K::Noop,
            K::Put,
            K::PullRequest,
            K::PullData,
            K::PushData,
            K::PushAck,
            K::Nak,
            K::Ping,
            K::Pong,
            K::Close,
            K::Get,
            K::Reply,
            K::Ack,
            K::PushSeals,
        ];
        code.checked_sub(1).and_then(|index| KINDS.get(usize::from(index)).copied()).ok_or(code)
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Default)]
#[repr(C)]
struct RawHeader {
    magic: U16,
    version: u8,
    kind: u8,
    flags: U16,
    segment_index: u8,
    segment_count: u8,
    payload_bytes: U32,
    credits: U32,
    sequence: U32,
    checksum: U32,
    to_epoch: U64,
    cookie: U64,
    key: U64,
    transfer: U64,
    offset_bytes: U32,
    total: U32,
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);

/// One frame's header, trusted in shape (not in meaning).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Protocol version of the sender on this connection.
    pub(crate) version: u8,
    /// Number of the last message of the receiver that the sender has consumed.
    pub(crate) credits: u32,
    /// Epoch of the incarnation this is meant for; 0 = any (Hello only).
    pub(crate) to_epoch: u64,
    /// Bytes after the header.
    pub(crate) payload_bytes: u32,
    /// The rest.
    pub(crate) body: FrameBody,
}

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameBody {
    Hello,
    HelloAck,
    /// `epoch`: the refusing side's own.
    Reject {
        reason: RefuseReason,
        epoch: u64,
    },
    Noop,
    /// `extension_bytes` of remote segments stand in front of the message (nets with remote access).
    Put {
        sequence: u32,
        extension_bytes: u32,
        target: PutTarget,
    },
    PullRequest {
        cookie: u64,
        key: u64,
        transfer: u64,
        segment_index: u8,
        segment_count: u8,
    },
    PullData {
        transfer: u64,
        segment_index: u8,
        offset_bytes: u32,
    },
    PushData {
        cookie: u64,
        key: u64,
        transfer: u64,
        segment_index: u8,
        offset_bytes: u32,
        /// Bytes of the whole transfer.
        total_bytes: u32,
        ack_wanted: bool,
    },
    PushAck {
        transfer: u64,
    },
    /// Sealed connections of nets with remote access: behind the WRITEs of a push.
    PushSeals {
        cookie: u64,
        key: u64,
        transfer: u64,
    },
    Nak {
        transfer: u64,
        reason: NakReason,
    },
    /// `sequence`: the sender's last message; whatever below it has not arrived is lost and its credits return.
    Ping {
        sequence: u32,
        nonce: u64,
    },
    Pong {
        nonce: u64,
    },
    Close,
    /// `bytes`: most that the asking side has room for.
    Get {
        sequence: u32,
        portal: u8,
        match_bits: u64,
        operation: u64,
        offset_bytes: u32,
        bytes: u32,
    },
    /// The payload is what the descriptor gave, perhaps less than was asked for.
    Reply {
        sequence: u32,
        operation: u64,
        offset_bytes: u32,
    },
    /// `bytes` of it were placed at `offset_bytes`.
    Ack {
        sequence: u32,
        operation: u64,
        offset_bytes: u32,
        bytes: u32,
    },
}

/// Where a Put goes, in the words of portals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PutTarget {
    pub(crate) portal: u8,
    pub(crate) match_bits: u64,
    /// Handed to the receiver beside the bytes.
    pub(crate) header_data: u64,
    /// For descriptors whose sender chooses.
    pub(crate) offset_bytes: u32,
    /// To be named in the Ack; 0: none is wanted.
    pub(crate) operation: u64,
}

impl PutTarget {
    /// A message: what the layer above sends, received whole.
    pub(crate) const fn message(match_bits: u64, header_data: u64) -> PutTarget {
        PutTarget { portal: PORTAL_MESSAGES, match_bits, header_data, offset_bytes: 0, operation: 0 }
    }
}

impl FrameBody {
    pub(crate) const fn kind(&self) -> FrameKind {
        match self {
            FrameBody::Hello => FrameKind::Hello,
            FrameBody::HelloAck => FrameKind::HelloAck,
            FrameBody::Reject { .. } => FrameKind::Reject,
            FrameBody::Noop => FrameKind::Noop,
            FrameBody::Put { .. } => FrameKind::Put,
            FrameBody::PullRequest { .. } => FrameKind::PullRequest,
            FrameBody::PullData { .. } => FrameKind::PullData,
            FrameBody::PushData { .. } => FrameKind::PushData,
            FrameBody::PushAck { .. } => FrameKind::PushAck,
            FrameBody::PushSeals { .. } => FrameKind::PushSeals,
            FrameBody::Nak { .. } => FrameKind::Nak,
            FrameBody::Ping { .. } => FrameKind::Ping,
            FrameBody::Pong { .. } => FrameKind::Pong,
            FrameBody::Close => FrameKind::Close,
            FrameBody::Get { .. } => FrameKind::Get,
            FrameBody::Reply { .. } => FrameKind::Reply,
            FrameBody::Ack { .. } => FrameKind::Ack,
        }
    }

    /// The number of a frame that takes a credit.
    pub(crate) const fn sequence(&self) -> Option<u32> {
        match self {
            FrameBody::Put { sequence, .. }
            | FrameBody::Get { sequence, .. }
            | FrameBody::Reply { sequence, .. }
            | FrameBody::Ack { sequence, .. } => Some(*sequence),
            _ => None,
        }
    }

    /// The same frame under another number.
    pub(crate) const fn renumbered(mut self, number: u32) -> FrameBody {
        match &mut self {
            FrameBody::Put { sequence, .. }
            | FrameBody::Get { sequence, .. }
            | FrameBody::Reply { sequence, .. }
            | FrameBody::Ack { sequence, .. } => *sequence = number,
            _ => {}
        }
        self
    }

    /// Payload bytes that this frame may have: least and most.
    #[allow(clippy::cast_possible_truncation)] // both constants are far below 4 GiB, see the asserts
    const fn payload_range(&self) -> (u32, u32) {
        match self {
            FrameBody::Hello | FrameBody::HelloAck => (HELLO_BYTES as u32, HELLO_BYTES as u32),
            FrameBody::Put { extension_bytes, .. } => {
                (*extension_bytes + 1, *extension_bytes + MESSAGE_BYTES_MAX as u32)
            }
            FrameBody::PullData { .. } | FrameBody::PushData { .. } => (1, BULK_PIECE_BYTES),
            FrameBody::Reply { .. } => (0, GET_BYTES_MAX as u32),
            FrameBody::PushSeals { .. } => (PUSH_SEAL_BYTES as u32, PUSH_SEALS_BYTES_MAX as u32),
            _ => (0, 0),
        }
    }
}

const _: () = assert!(MESSAGE_BYTES_MAX < 1 << 30 && EXTENSION_BYTES_MAX < 1 << 30 && HELLO_BYTES < 4096);

impl Frame {
    fn to_raw(self) -> RawHeader {
        let mut raw = RawHeader {
            magic: MAGIC.into(),
            version: self.version,
            kind: self.body.kind() as u8,
            payload_bytes: self.payload_bytes.into(),
            credits: self.credits.into(),
            to_epoch: self.to_epoch.into(),
            ..RawHeader::default()
        };
        match self.body {
            FrameBody::Hello | FrameBody::HelloAck | FrameBody::Noop | FrameBody::Close => {}
            FrameBody::Reject { reason, epoch } => {
                raw.total = (reason as u32).into();
                raw.cookie = epoch.into();
            }
            FrameBody::Put { sequence, extension_bytes, target } => {
                raw.sequence = sequence.into();
                raw.total = extension_bytes.into();
                raw.segment_index = target.portal;
                raw.cookie = target.match_bits.into();
                raw.key = target.header_data.into();
                raw.transfer = target.operation.into();
                raw.offset_bytes = target.offset_bytes.into();
            }
            FrameBody::Get { sequence, portal, match_bits, operation, offset_bytes, bytes } => {
                raw.sequence = sequence.into();
                raw.segment_index = portal;
                raw.cookie = match_bits.into();
                raw.transfer = operation.into();
                raw.offset_bytes = offset_bytes.into();
                raw.total = bytes.into();
            }
            FrameBody::Reply { sequence, operation, offset_bytes } => {
                raw.sequence = sequence.into();
                raw.transfer = operation.into();
                raw.offset_bytes = offset_bytes.into();
            }
            FrameBody::Ack { sequence, operation, offset_bytes, bytes } => {
                raw.sequence = sequence.into();
                raw.transfer = operation.into();
                raw.offset_bytes = offset_bytes.into();
                raw.total = bytes.into();
            }
            FrameBody::PullRequest { cookie, key, transfer, segment_index, segment_count } => {
                raw.cookie = cookie.into();
                raw.key = key.into();
                raw.transfer = transfer.into();
                raw.segment_index = segment_index;
                raw.segment_count = segment_count;
            }
            FrameBody::PullData { transfer, segment_index, offset_bytes } => {
                raw.transfer = transfer.into();
                raw.segment_index = segment_index;
                raw.offset_bytes = offset_bytes.into();
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
                raw.cookie = cookie.into();
                raw.key = key.into();
                raw.transfer = transfer.into();
                raw.segment_index = segment_index;
                raw.offset_bytes = offset_bytes.into();
                raw.total = total_bytes.into();
                raw.flags = if ack_wanted { FLAG_ACK_WANTED } else { 0 }.into();
            }
            FrameBody::PushAck { transfer } => raw.transfer = transfer.into(),
            FrameBody::PushSeals { cookie, key, transfer } => {
                raw.cookie = cookie.into();
                raw.key = key.into();
                raw.transfer = transfer.into();
            }
            FrameBody::Nak { transfer, reason } => {
                raw.transfer = transfer.into();
                raw.total = (reason as u32).into();
            }
            FrameBody::Ping { sequence, nonce } => {
                raw.sequence = sequence.into();
                raw.cookie = nonce.into();
            }
            FrameBody::Pong { nonce } => raw.cookie = nonce.into(),
        }
        raw
    }

    /// The bytes on the wire.
    pub(crate) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut raw = self.to_raw();
        raw.checksum = crc32c(raw.as_bytes()).into();
        let mut bytes = [0; HEADER_BYTES];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// Parses one header. `version`: what was agreed, or [`VERSION_MIN`] before the hello is complete.
    ///
    /// # Errors
    /// Everything that is not exactly a frame of this version: see [`PeerMisbehaved`].
    pub(crate) fn parse(bytes: &[u8; HEADER_BYTES], version: u8) -> Result<Frame, PeerMisbehaved> {
        let mut raw: RawHeader = zerocopy::transmute!(*bytes);
        if raw.magic.get() != MAGIC {
            return Err(PeerMisbehaved::BadMagic { got: raw.magic.get() });
        }
        if raw.version != version {
            return Err(PeerMisbehaved::BadVersion { got: raw.version, want: version });
        }
        let got = raw.checksum.get();
        raw.checksum = 0.into();
        let want = crc32c(raw.as_bytes());
        if got != want {
            return Err(PeerMisbehaved::HeaderChecksum { got, want });
        }
        let kind = FrameKind::try_from(raw.kind).map_err(|got| PeerMisbehaved::UnknownType { got })?;
        let body = Frame::parse_body(kind, &raw)?;
        let frame = Frame {
            version: raw.version,
            credits: raw.credits.get(),
            to_epoch: raw.to_epoch.get(),
            payload_bytes: raw.payload_bytes.get(),
            body,
        };
        let (least, most) = body.payload_range();
        if frame.payload_bytes < least || frame.payload_bytes > most {
            return Err(PeerMisbehaved::PayloadLength { kind, got: frame.payload_bytes, max: most });
        }
        // One road for all reserved fields: what we understood must be all there is.
        if frame.to_raw().as_bytes() != raw.as_bytes() {
            return Err(PeerMisbehaved::ReservedField { kind });
        }
        Ok(frame)
    }

    #[allow(clippy::cast_possible_truncation)] // the extension's bound is below 4 GiB, see the assert
    fn parse_body(kind: FrameKind, raw: &RawHeader) -> Result<FrameBody, PeerMisbehaved> {
        let code = raw.total.get();
        let segment_index = raw.segment_index;
        let range = |segments: usize, offset_bytes: u32, bytes: u32| {
            let fits = usize::from(segment_index) + segments <= BULK_SEGMENTS_MAX
                && offset_bytes.checked_add(bytes).is_some_and(|end| end <= BULK_PIECE_BYTES);
            if fits { Ok(()) } else { Err(PeerMisbehaved::BulkRange { segment_index, offset_bytes, bytes }) }
        };
        let (offset_bytes, bytes) = (raw.offset_bytes.get(), raw.payload_bytes.get());
        Ok(match kind {
            FrameKind::Hello => FrameBody::Hello,
            FrameKind::HelloAck => FrameBody::HelloAck,
            FrameKind::Reject => FrameBody::Reject {
                reason: RefuseReason::try_from(code)
                    .map_err(|code| PeerMisbehaved::UnknownReason { kind, code })?,
                epoch: raw.cookie.get(),
            },
            FrameKind::Noop => FrameBody::Noop,
            FrameKind::Put => {
                if code > EXTENSION_BYTES_MAX as u32 {
                    return Err(PeerMisbehaved::BadExtension { what: "length" });
                }
                let target = PutTarget {
                    portal: check_portal(kind, raw)?,
                    match_bits: raw.cookie.get(),
                    header_data: raw.key.get(),
                    offset_bytes,
                    operation: raw.transfer.get(),
                };
                FrameBody::Put { sequence: raw.sequence.get(), extension_bytes: code, target }
            }
            FrameKind::PullRequest => {
                let segment_count = raw.segment_count;
                range(usize::from(segment_count), 0, 0)?;
                if segment_count == 0 {
                    return Err(PeerMisbehaved::BulkRange { segment_index, offset_bytes: 0, bytes: 0 });
                }
                FrameBody::PullRequest {
                    cookie: raw.cookie.get(),
                    key: raw.key.get(),
                    transfer: raw.transfer.get(),
                    segment_index,
                    segment_count,
                }
            }
            FrameKind::PullData => {
                range(1, offset_bytes, bytes)?;
                FrameBody::PullData { transfer: raw.transfer.get(), segment_index, offset_bytes }
            }
            FrameKind::PushData => {
                range(1, offset_bytes, bytes)?;
                FrameBody::PushData {
                    cookie: raw.cookie.get(),
                    key: raw.key.get(),
                    transfer: raw.transfer.get(),
                    segment_index,
                    offset_bytes,
                    total_bytes: code,
                    ack_wanted: raw.flags.get() == FLAG_ACK_WANTED,
                }
            }
            FrameKind::PushAck => FrameBody::PushAck { transfer: raw.transfer.get() },
            FrameKind::PushSeals => FrameBody::PushSeals {
                cookie: raw.cookie.get(),
                key: raw.key.get(),
                transfer: raw.transfer.get(),
            },
            FrameKind::Nak => FrameBody::Nak {
                transfer: raw.transfer.get(),
                reason: NakReason::try_from(code)
                    .map_err(|code| PeerMisbehaved::UnknownReason { kind, code })?,
            },
            FrameKind::Ping => FrameBody::Ping { sequence: raw.sequence.get(), nonce: raw.cookie.get() },
            FrameKind::Pong => FrameBody::Pong { nonce: raw.cookie.get() },
            FrameKind::Close => FrameBody::Close,
            FrameKind::Get => {
                if code > GET_BYTES_MAX as u32 {
                    let max = GET_BYTES_MAX as u32;
                    return Err(PeerMisbehaved::PayloadLength { kind, got: code, max });
                }
                FrameBody::Get {
                    sequence: raw.sequence.get(),
                    portal: check_portal(kind, raw)?,
                    match_bits: raw.cookie.get(),
                    operation: raw.transfer.get(),
                    offset_bytes,
                    bytes: code,
                }
            }
            FrameKind::Reply => {
                let (sequence, operation) = (raw.sequence.get(), raw.transfer.get());
                FrameBody::Reply { sequence, operation, offset_bytes }
            }
            FrameKind::Ack => FrameBody::Ack {
                sequence: raw.sequence.get(),
                operation: raw.transfer.get(),
                offset_bytes,
                bytes: code,
            },
        })
    }

    /// Bytes of the payload as a memory size.
    pub(crate) fn payload_len(&self) -> usize {
        narrow(u64::from(self.payload_bytes))
    }
}

/// A portal that can be: the net has [`PORTALS`].
fn check_portal(kind: FrameKind, raw: &RawHeader) -> Result<u8, PeerMisbehaved> {
    let portal = raw.segment_index;
    if u16::from(portal) < PORTALS { Ok(portal) } else { Err(PeerMisbehaved::NoSuchPortal { kind, portal }) }
}

/// Distance from `from` to `to` of two wrapping counters; negative if `to` is behind.
pub(crate) const fn counter_distance(from: u32, to: u32) -> i32 {
    to.wrapping_sub(from).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn samples() -> Vec<(&'static str, Frame)> {
        let frame = |payload_bytes, body| Frame {
            version: 1,
            credits: 0x0102_0304,
            to_epoch: 0x1112_1314_1516_1718,
            payload_bytes,
            body,
        };
        let hello = u32::try_from(HELLO_BYTES).unwrap();
        let put = |extension_bytes, target| FrameBody::Put { sequence: 7, extension_bytes, target };
        let to_portal =
            PutTarget { portal: 9, match_bits: 0x21, header_data: 0x31, offset_bytes: 64, operation: 0x41 };
        vec![
            ("hello", frame(hello, FrameBody::Hello)),
            ("hello_ack", frame(hello, FrameBody::HelloAck)),
            ("reject", frame(0, FrameBody::Reject { reason: RefuseReason::Token, epoch: 9 })),
            ("noop", frame(0, FrameBody::Noop)),
            ("put", frame(64, put(0, PutTarget::message(0, 0x31)))),
            ("put_to_portal", frame(64, put(0, to_portal))),
            ("put_extended", frame(104, put(40, PutTarget::message(0, 0x31)))),
            (
                "pull_request",
                frame(
                    0,
                    FrameBody::PullRequest {
                        cookie: 0x21,
                        key: 0x31,
                        transfer: 0x41,
                        segment_index: 1,
                        segment_count: 2,
                    },
                ),
            ),
            (
                "pull_data",
                frame(4096, FrameBody::PullData { transfer: 0x41, segment_index: 1, offset_bytes: 8192 }),
            ),
            (
                "push_data",
                frame(
                    4096,
                    FrameBody::PushData {
                        cookie: 0x21,
                        key: 0x31,
                        transfer: 0x41,
                        segment_index: 1,
                        offset_bytes: 8192,
                        total_bytes: 12288,
                        ack_wanted: true,
                    },
                ),
            ),
            ("push_ack", frame(0, FrameBody::PushAck { transfer: 0x41 })),
            ("nak", frame(0, FrameBody::Nak { transfer: 0x41, reason: NakReason::WrongKey })),
            ("ping", frame(0, FrameBody::Ping { sequence: 7, nonce: 0x51 })),
            ("pong", frame(0, FrameBody::Pong { nonce: 0x51 })),
            ("close", frame(0, FrameBody::Close)),
            (
                "get",
                frame(
                    0,
                    FrameBody::Get {
                        sequence: 7,
                        portal: 9,
                        match_bits: 0x21,
                        operation: 0x41,
                        offset_bytes: 64,
                        bytes: 128,
                    },
                ),
            ),
            ("reply", frame(100, FrameBody::Reply { sequence: 7, operation: 0x41, offset_bytes: 64 })),
            ("ack", frame(0, FrameBody::Ack { sequence: 7, operation: 0x41, offset_bytes: 64, bytes: 60 })),
            ("push_seals", frame(64, FrameBody::PushSeals { cookie: 0x21, key: 0x31, transfer: 0x41 })),
        ]
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The bytes of version 1. A change here is a new protocol version (docs/wire.md, ladder).
    #[test]
    fn golden_bytes_of_every_frame() {
        let golden = include_str!("../tests/golden/frames_v1.txt");
        let ours: String =
            samples().iter().map(|(name, frame)| format!("{name} {}\n", hex(&frame.encode()))).collect();
        assert_eq!(ours, golden);
    }

    #[test]
    fn frames_parse_back() {
        for (name, frame) in samples() {
            assert_eq!(Frame::parse(&frame.encode(), 1), Ok(frame), "{name}");
        }
    }

    #[test]
    fn each_flipped_bit_is_refused() {
        for (name, frame) in samples() {
            let bytes = frame.encode();
            for bit in 0..HEADER_BYTES * 8 {
                let mut damaged = bytes;
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(Frame::parse(&damaged, 1).is_err(), "{name} bit {bit}");
            }
        }
    }

    #[test]
    fn stray_fields_with_a_good_checksum_are_refused() {
        let seal = |mut raw: RawHeader| {
            raw.checksum = 0.into();
            raw.checksum = crc32c(raw.as_bytes()).into();
            Frame::parse(&zerocopy::transmute!(raw), 1)
        };
        let close =
            Frame { version: 1, credits: 0, to_epoch: 5, payload_bytes: 0, body: FrameBody::Close }.to_raw();
        assert!(seal(close).is_ok());
        let kind = FrameKind::Close;
        assert_eq!(
            seal(RawHeader { offset_bytes: 1.into(), ..close }),
            Err(PeerMisbehaved::ReservedField { kind })
        );
        assert_eq!(
            seal(RawHeader { payload_bytes: 1.into(), ..close }),
            Err(PeerMisbehaved::PayloadLength { kind, got: 1, max: 0 })
        );
        assert_eq!(seal(RawHeader { kind: 18, ..close }), Err(PeerMisbehaved::UnknownType { got: 18 }));
        assert_eq!(
            seal(RawHeader { version: 2, ..close }),
            Err(PeerMisbehaved::BadVersion { got: 2, want: 1 })
        );
        let kind = FrameKind::Get;
        let get = RawHeader { kind: kind as u8, segment_index: 64, ..close };
        assert_eq!(seal(get), Err(PeerMisbehaved::NoSuchPortal { kind, portal: 64 }));
        let got = u32::try_from(GET_BYTES_MAX).unwrap() + 1;
        let get = RawHeader { segment_index: 9, total: got.into(), ..get };
        assert!(matches!(seal(get), Err(PeerMisbehaved::PayloadLength { .. })));
        let kind = FrameKind::Put;
        let put = RawHeader { kind: kind as u8, payload_bytes: 40.into(), total: 40.into(), ..close };
        assert_eq!(
            seal(put),
            Err(PeerMisbehaved::PayloadLength { kind, got: 40, max: 40 + 65536 }),
            "an extension without a message"
        );
        let too_long = u32::try_from(EXTENSION_BYTES_MAX).unwrap() + 1;
        let long = RawHeader { total: too_long.into(), ..put };
        assert!(matches!(seal(long), Err(PeerMisbehaved::BadExtension { .. })));
        let beyond = RawHeader {
            kind: FrameKind::PushData as u8,
            payload_bytes: 4096.into(),
            offset_bytes: (u32::MAX - 100).into(),
            ..close
        };
        assert!(matches!(seal(beyond), Err(PeerMisbehaved::BulkRange { .. })));
    }

    proptest! {
        #[test]
        fn random_headers_never_panic_and_are_canonical(bytes in any::<[u8; 32]>(), rest in any::<[u8; 32]>()) {
            let mut header = [0; HEADER_BYTES];
            header[..32].copy_from_slice(&bytes);
            header[32..].copy_from_slice(&rest);
            header[..2].copy_from_slice(&MAGIC.to_le_bytes());
            header[2] = 1;
            header[3] = 1 + bytes[3] % 17;
            header[20..24].fill(0);
            let sum = crc32c(&header);
            header[20..24].copy_from_slice(&sum.to_le_bytes());
            if let Ok(frame) = Frame::parse(&header, 1) {
                prop_assert_eq!(frame.encode(), header);
            }
        }
    }
}
