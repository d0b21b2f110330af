//! One TCP connection: bytes in and out. Frames are judged by the protocol core.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::TcpStream;

use base::Instant;
use base::units::wide;
use runtime::poller::Interest;
use runtime::{Buffer, Counters, copy_counted};
use smallvec::SmallVec;

use super::channel::Channel;
use crate::backend::guard::Finding;
use crate::connection::{Connection, ConnectionId, Outgoing, Payload, Phase};
use crate::error::{PeerMisbehaved, RefuseReason};
use crate::frame::{Frame, FrameBody, HEADER_BYTES, VERSION_MIN};
use crate::hello::HELLO_BYTES;
use crate::limits::{OUTBOX_FRAMES_MAX, STAGING_BYTES};
use crate::machine::TransferId;
use crate::memory_wait::MemoryWait;
use crate::protocol::{BulkPlace, Protocol};
use crate::security::SecureHello;

/// System calls of one socket in one turn: bounds how long a fast peer keeps the others waiting (at most 16 MiB).
const READS_PER_POLL: usize = 16;
/// Slices of one vectored write: header and payload of 32 frames.
const WRITE_SLICES: usize = 64;

/// A frame alone of at most so many bytes is put together here, not by the kernel: for one slice the call costs 0.15 us less.
const SHORT_WRITE_BYTES: usize = 512;

const _: () = assert!(STAGING_BYTES >= HEADER_BYTES + HELLO_BYTES);

/// Why a read ended.
pub(super) enum ReadEnd {
    /// Nothing more there for now.
    Drained,
    /// More may be there; others come first.
    Budget,
    /// The next message has no buffer yet.
    Hungry,
    Closed,
    Failed(io::ErrorKind),
    /// The hello did not prove what it had to.
    Refused(RefuseReason),
    Misbehaved(PeerMisbehaved),
}

/// Whose bytes are read, and where they go.
pub(super) struct Inward<'a> {
    pub(super) protocol: &'a mut Protocol,
    pub(super) now: Instant,
    pub(super) id: ConnectionId,
    pub(super) counters: &'a Counters,
    pub(super) messages: &'a mut MemoryWait,
}

/// What the next bytes belong to, if not to a header.
enum Incoming {
    /// A hello or another payload that is small enough for the staging area.
    Staged(Frame),
    /// A message that waits for its buffer.
    NeedsBuffer(Frame),
    Message {
        frame: Frame,
        buffer: Buffer,
        done: usize,
    },
    Bulk {
        frame: Frame,
        place: BulkPlace,
        done: usize,
    },
}

pub(super) struct Socket {
    pub(super) channel: Channel,
    pub(super) interest: Interest,
    pub(super) is_connecting: bool,
    pub(super) is_hungry: bool,
    /// `None`: a header comes.
    incoming: Option<Incoming>,
    staging: Box<[u8; STAGING_BYTES]>,
    /// Bytes `start..end` of the staging area are not yet understood.
    start: usize,
    end: usize,
    unsent: VecDeque<Outgoing>,
    /// The headers of the unsent frames, in their order.
    headers: VecDeque<[u8; HEADER_BYTES]>,
    /// Bytes of the first unsent frame that have left.
    sent_of_first: usize,
    completed: Vec<TransferId>,
}

impl Socket {
    fn new(channel: Channel, interest: Interest, is_connecting: bool) -> Socket {
        Socket {
            channel,
            interest,
            is_connecting,
            is_hungry: false,
            incoming: None,
            staging: Box::new([0; STAGING_BYTES]),
            start: 0,
            end: 0,
            unsent: VecDeque::new(),
            headers: VecDeque::new(),
            sent_of_first: 0,
            completed: Vec::new(),
        }
    }

    pub(super) fn accepted(
        stream: TcpStream,
        hello: Option<Box<dyn SecureHello>>,
        interest: Interest,
    ) -> Socket {
        Socket::new(Channel::new(stream, hello, false), interest, false)
    }

    pub(super) fn dialling(
        stream: TcpStream,
        hello: Option<Box<dyn SecureHello>>,
        interest: Interest,
    ) -> Socket {
        Socket::new(Channel::new(stream, hello, true), interest, true)
    }

    /// After a connect ended: why it failed, if it did.
    pub(super) fn take_connect_error(&mut self) -> Option<io::ErrorKind> {
        match self.channel.stream.take_error() {
            Ok(None) => None,
            Ok(Some(error)) | Err(error) => Some(error.kind()),
        }
    }

    // ---- out

    pub(super) fn unsent_frames(&self) -> usize {
        self.unsent.len()
    }

    /// True if it waits for nothing but bytes of the peer, which are as they are.
    pub(super) fn is_at_ease(&self) -> bool {
        self.unsent.is_empty() && !self.is_hungry && !self.is_connecting && !self.channel.is_guarded()
    }

    /// Moves frames of the connection here, stamped with the credits of this moment.
    pub(super) fn take_outbox(&mut self, connection: &mut Connection) {
        let mut frames = std::mem::take(&mut connection.outbox);
        self.headers.extend(frames.iter().map(|outgoing| connection.seal(outgoing)));
        if self.unsent.is_empty() {
            // The usual case: what is queued moves as a whole, and the emptied queue goes back with its memory.
            std::mem::swap(&mut self.unsent, &mut frames);
        } else {
            self.unsent.append(&mut frames);
        }
        connection.outbox = frames;
    }

    /// Writes until everything has left or the kernel is full; answers whether anything left.
    pub(super) fn write(&mut self, counters: &Counters) -> (bool, io::Result<()>) {
        let mut wrote = false;
        while !self.unsent.is_empty() {
            let (asked, result) = self.write_once(counters);
            counters.syscalls.add(1); // counted while the bytes are on their way
            match result {
                Ok(0) => return (wrote, Err(io::ErrorKind::WriteZero.into())),
                Ok(bytes) => {
                    wrote = true;
                    self.advance(bytes);
                    if bytes < asked && !self.channel.is_guarded() {
                        return (wrote, Ok(()));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return (wrote, Ok(())),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (wrote, Err(error)),
            }
        }
        (wrote, Ok(()))
    }

    fn write_once(&mut self, counters: &Counters) -> (usize, io::Result<usize>) {
        if let (1, 0, Some(header), Some(outgoing)) =
            (self.unsent.len(), self.sent_of_first, self.headers.front(), self.unsent.front())
        {
            // A request or an answer alone: its time counts, and there is nothing to gather.
            let payload = outgoing.payload.as_slice();
            let bytes = HEADER_BYTES + payload.len();
            if bytes <= SHORT_WRITE_BYTES {
                let mut whole: SmallVec<[u8; SHORT_WRITE_BYTES]> = SmallVec::from_slice(header);
                whole.extend_from_slice(payload);
                let written = self.channel.write(&[IoSlice::new(&whole)], counters);
                counters.copied_bytes.add(wide(payload.len()));
                return (bytes, written);
            }
            return (bytes, self.channel.write(&[IoSlice::new(header), IoSlice::new(payload)], counters));
        }
        let most = if self.channel.sends_one_frame() { 1 } else { WRITE_SLICES / 2 };
        let mut slices: SmallVec<[IoSlice<'_>; WRITE_SLICES]> = SmallVec::new();
        let mut skip = self.sent_of_first;
        let mut asked = 0;
        for (header, outgoing) in self.headers.iter().zip(&self.unsent).take(most) {
            for part in [&header[..], outgoing.payload.as_slice()] {
                let skipped = skip.min(part.len());
                skip -= skipped;
                if skipped < part.len() {
                    asked += part.len() - skipped;
                    slices.push(IoSlice::new(&part[skipped..]));
                }
            }
        }
        (asked, self.channel.write(&slices, counters))
    }

    fn advance(&mut self, bytes: usize) {
        self.sent_of_first += bytes;
        let mut whole = 0;
        for outgoing in &self.unsent {
            let frame_bytes = HEADER_BYTES + outgoing.payload.as_slice().len();
            if self.sent_of_first < frame_bytes {
                break;
            }
            self.sent_of_first -= frame_bytes;
            self.completed.extend(outgoing.completes);
            whole += 1;
        }
        // Dropped where they are: a frame is large.
        if whole == self.unsent.len() {
            self.headers.clear();
            self.unsent.clear();
        } else {
            self.headers.drain(..whole);
            self.unsent.drain(..whole);
        }
    }

    /// After the last write: messages that have not left whole.
    pub(super) fn take_unsent_messages(&mut self) -> Vec<Outgoing> {
        self.headers.clear();
        let unsent = std::mem::take(&mut self.unsent).into_iter();
        unsent.filter(|outgoing| outgoing.body.sequence().is_some()).collect()
    }

    /// Pushes whose last byte has been handed over since the last call.
    pub(super) fn take_completed(&mut self) -> Vec<TransferId> {
        std::mem::take(&mut self.completed)
    }

    // ---- in

    /// Reads and handles what is there; answers the number of frames.
    pub(super) fn read(&mut self, inward: &mut Inward<'_>, scratch: &mut [u8]) -> (usize, ReadEnd) {
        let (mut frames, mut reads) = (0, 0);
        self.is_hungry = false;
        loop {
            // A look at a quiet socket finds nothing to digest before it has read.
            if !(self.is_at_ease() && self.start == self.end && self.incoming.is_none())
                && let Err(end) = self.digest(inward, &mut frames)
            {
                return (frames, end);
            }
            if reads == READS_PER_POLL {
                return (frames, ReadEnd::Budget);
            }
            reads += 1;
            inward.counters.syscalls.add(1);
            let expects_bulk = inward.protocol.expects_bulk(inward.id);
            let result = self.read_once(inward, expects_bulk, scratch);
            match self.channel.take_finding() {
                Some(Finding::Peer(peer)) => inward.protocol.handle_established(inward.id, &peer),
                // Without an identity its hello is refused.
                Some(Finding::Plain) | None => {}
            }
            match result {
                Ok((0, _)) => return (frames, ReadEnd::Closed),
                Ok((bytes, asked)) => {
                    if bytes < asked && !self.channel.is_guarded() {
                        // A short read: the kernel has no more, so do not ask again for EAGAIN.
                        let end = self.digest(inward, &mut frames);
                        return (frames, end.err().unwrap_or(ReadEnd::Drained));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return (frames, ReadEnd::Drained),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let end = match self.channel.fault() {
                        Some(fault) => ReadEnd::Refused(fault.reason),
                        None => ReadEnd::Failed(error.kind()),
                    };
                    return (frames, end);
                }
            }
        }
    }

    /// One read: the rest of a payload to where it belongs, then the header behind it (or more, if only messages come).
    fn read_once(
        &mut self,
        inward: &mut Inward<'_>,
        expects_bulk: bool,
        scratch: &mut [u8],
    ) -> io::Result<(usize, usize)> {
        // `digest` leaves bytes in the staging area only in front of a header or hello that is not complete.
        if self.start > 0 {
            self.staging.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let staged = self.end;
        match &mut self.incoming {
            None | Some(Incoming::Staged(_) | Incoming::NeedsBuffer(_)) => {
                let wanted = match &self.incoming {
                    Some(Incoming::Staged(frame)) => frame.payload_len(),
                    _ => HEADER_BYTES,
                };
                let limit = if expects_bulk { wanted } else { STAGING_BYTES };
                let bytes = self.channel.read(&mut self.staging[staged..limit], &mut [], inward.counters)?;
                self.end += bytes;
                Ok((bytes, limit - staged))
            }
            Some(Incoming::Message { buffer, done, .. }) => {
                let limit = if expects_bulk { HEADER_BYTES } else { STAGING_BYTES };
                let rest = &mut buffer[*done..];
                let asked = rest.len() + limit;
                let rest_len = rest.len();
                let bytes = self.channel.read(rest, &mut self.staging[..limit], inward.counters)?;
                *done += bytes.min(rest_len);
                self.end = bytes.saturating_sub(rest_len);
                Ok((bytes, asked))
            }
            Some(Incoming::Bulk { frame, place, done }) => {
                let whole = frame.payload_len();
                let rest = match inward.protocol.bulk_slice(place, *done, whole) {
                    Some(rest) => rest,
                    None => {
                        *place = BulkPlace::Drain;
                        let most = scratch.len();
                        &mut scratch[..most.min(whole - *done)]
                    }
                };
                let rest_len = rest.len();
                let ends_payload = rest_len == whole - *done;
                let limit = if ends_payload { HEADER_BYTES } else { 0 };
                let bytes = self.channel.read(rest, &mut self.staging[..limit], inward.counters)?;
                *done += bytes.min(rest_len);
                self.end = bytes.saturating_sub(rest_len);
                Ok((bytes, rest_len + limit))
            }
        }
    }

    /// Understands what has been read, as far as it goes.
    fn digest(&mut self, inward: &mut Inward<'_>, frames: &mut usize) -> Result<(), ReadEnd> {
        loop {
            let Some(incoming) = self.incoming.take() else {
                // A peer whose answers pile up waits until they have left.
                let Some(connection) = inward.protocol.connection(inward.id) else {
                    return Err(ReadEnd::Drained);
                };
                if connection.phase == Phase::Ended {
                    return Err(ReadEnd::Drained);
                }
                if self.unsent.len() + connection.outbox.len() > OUTBOX_FRAMES_MAX {
                    return Err(ReadEnd::Budget);
                }
                let version = connection.version;
                let Some(header) = self.staging[self.start..self.end].first_chunk::<HEADER_BYTES>() else {
                    return self.check_prefix(version);
                };
                let frame = Frame::parse(header, version).map_err(ReadEnd::Misbehaved)?;
                self.start += HEADER_BYTES;
                *frames += 1;
                self.begin(inward, frame)?;
                continue;
            };
            match incoming {
                Incoming::Staged(frame) => {
                    let bytes = &self.staging[self.start..self.end];
                    let Some(hello) = bytes.first_chunk::<HELLO_BYTES>() else {
                        self.incoming = Some(Incoming::Staged(frame));
                        return Ok(());
                    };
                    let payload = Payload::Hello(Box::new(*hello));
                    self.start += HELLO_BYTES;
                    inward.protocol.handle_frame(inward.now, inward.id, &frame, payload);
                }
                Incoming::NeedsBuffer(frame) => {
                    self.begin_message(inward, frame)?;
                }
                Incoming::Message { frame, buffer, done } => {
                    if !self.fill(inward, frame, buffer, done) {
                        return Ok(());
                    }
                }
                Incoming::Bulk { frame, place, mut done } => {
                    let whole = frame.payload_len();
                    let staged = (self.end - self.start).min(whole - done);
                    if staged > 0 {
                        // Bulk that came with a read for messages: the first piece after a quiet time, at most STAGING_BYTES.
                        let from = &self.staging[self.start..self.start + staged];
                        if let Some(to) = inward.protocol.bulk_slice(&place, done, done + staged) {
                            copy_counted(inward.counters, to, from);
                        }
                        self.start += staged;
                        done += staged;
                    }
                    if done < whole {
                        self.incoming = Some(Incoming::Bulk { frame, place, done });
                        return Ok(());
                    }
                    inward.protocol.end_bulk(inward.id, &place, frame.payload_bytes);
                }
            }
        }
    }

    /// The payload of a message follows: into a buffer of its own.
    fn begin_message(&mut self, inward: &mut Inward<'_>, frame: Frame) -> Result<(), ReadEnd> {
        let Some(buffer) = inward.messages.alloc(frame.payload_len()) else {
            self.incoming = Some(Incoming::NeedsBuffer(frame));
            self.is_hungry = true;
            return Err(ReadEnd::Hungry);
        };
        self.fill(inward, frame, buffer, 0);
        Ok(())
    }

    /// Moves what is staged of a message to its buffer, and hands the message over if that is all of it; else false.
    fn fill(&mut self, inward: &mut Inward<'_>, frame: Frame, mut buffer: Buffer, mut done: usize) -> bool {
        let staged = (self.end - self.start).min(buffer.len() - done);
        let from = &self.staging[self.start..self.start + staged];
        copy_counted(inward.counters, &mut buffer[done..done + staged], from);
        self.start += staged;
        done += staged;
        if done < buffer.len() {
            self.incoming = Some(Incoming::Message { frame, buffer, done });
            return false;
        }
        inward.protocol.handle_frame(inward.now, inward.id, &frame, Payload::Bytes(buffer.freeze()));
        true
    }

    /// Less than a header: garbage is recognised by its first bytes, without waiting for the rest.
    fn check_prefix(&self, version: u8) -> Result<(), ReadEnd> {
        let bytes = &self.staging[self.start..self.end];
        if let Some([low, high]) = bytes.first_chunk::<2>() {
            let got = u16::from_le_bytes([*low, *high]);
            if got != crate::frame::MAGIC {
                return Err(ReadEnd::Misbehaved(PeerMisbehaved::BadMagic { got }));
            }
        }
        let want = if version == 0 { VERSION_MIN } else { version };
        match bytes.get(2) {
            Some(got) if *got != want => {
                Err(ReadEnd::Misbehaved(PeerMisbehaved::BadVersion { got: *got, want }))
            }
            _ => Ok(()),
        }
    }

    /// A header is complete: where does its payload go?
    fn begin(&mut self, inward: &mut Inward<'_>, frame: Frame) -> Result<(), ReadEnd> {
        match frame.body {
            FrameBody::Hello | FrameBody::HelloAck => self.incoming = Some(Incoming::Staged(frame)),
            // A Put has one, says its parse.
            FrameBody::Put { .. } | FrameBody::Reply { .. } if frame.payload_bytes > 0 => {
                // Before memory is spent on it: a stranger has no right to any.
                if !inward.protocol.is_up(inward.id) {
                    return Err(too_early(&frame));
                }
                self.begin_message(inward, frame)?;
            }
            FrameBody::PullData { .. } | FrameBody::PushData { .. } => {
                let place =
                    inward.protocol.begin_bulk(inward.now, inward.id, &frame).map_err(ReadEnd::Misbehaved)?;
                self.incoming = Some(Incoming::Bulk { frame, place, done: 0 });
            }
            _ => inward.protocol.handle_frame(inward.now, inward.id, &frame, Payload::None),
        }
        Ok(())
    }
}

/// A message of somebody who is not known yet.
fn too_early(frame: &Frame) -> ReadEnd {
    let state = "before the hello is complete";
    ReadEnd::Misbehaved(PeerMisbehaved::Unexpected { kind: frame.body.kind(), state })
}
