//! PUT and GET in the protocol core: a peer's, delivered through the portals, and ours, until their ACK or REPLY.
//!
//! A peer's operation holds one of our credits until it is delivered and what it asks for has left: an ACK or REPLY takes a credit of
//! the peer's from the reserve for replies, and waits in `Connection::owed` for it. So at most a window of them waits.
//! An operation of ours ends in exactly one event: `Ack`, `Reply`, or for a PUT without acknowledgement `Sent`; its descriptor's
//! `Unlink` comes behind it.
//!
//! Bounds: `OPERATIONS_MAX`, `DESCRIPTORS_MAX`. **Invariant**: `Descriptor::pending` counts the entries of `Protocol::operations`.

use base::limits::MESSAGE_BYTES_MAX;
use base::units::wide;
use base::{Endpoint, Instant};
use runtime::{SharedBuffer, copy_counted};

use crate::connection::{ConnectionId, Outgoing, Owed, Payload};
use crate::discovery::{Features, INFO_BYTES_MAX, NidStatus, PING_MATCH_BITS, PeerInfo};
use crate::error::{NakReason, NetError, PeerMisbehaved, Refused};
use crate::frame::{FrameBody, PutTarget};
use crate::limits::{GET_BYTES_MAX, OPERATIONS_MAX, ms};
use crate::machine::{Event, Lane, OperationId, OperationOptions, PeerId, PortalEvent};
use crate::portal::{
    AttachError, Delivery, Incoming, Match, MatchEntry, MatchFrom, MdId, MdMemory, MdOptions,
    MemoryDescriptor, PORTAL_MESSAGES, PORTAL_NET, Position,
};
use crate::protocol::{Early, Protocol, Waiting};

/// What an operation of ours waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Only to be posted.
    Nothing,
    Ack,
    Reply,
    /// A reply that is [`PeerInfo`], for the layer above.
    Info,
    /// The same, for ourselves.
    Rails,
}

/// A PUT or GET of ours.
pub(crate) struct Operation {
    md: MdId,
    peer: Endpoint,
    /// Where it was posted.
    connection: Option<ConnectionId>,
    answer: Answer,
    /// A GET's.
    bytes_max: u32,
    deadline: Instant,
}

impl Protocol {
    // ---- our portals

    /// The entries that each machine has: messages, and what it tells of itself.
    pub(crate) fn attach_own(&mut self) {
        let entry = |portal, match_bits, ignore_bits| MatchEntry {
            portal,
            from: MatchFrom::Any,
            match_bits,
            ignore_bits,
            position: Position::Tail,
        };
        let messages = MemoryDescriptor {
            memory: MdMemory::Arriving,
            options: MdOptions::PUT | MdOptions::ACK_DISABLE,
            threshold: None,
            max_size: 0,
        };
        // Of an empty table, neither can be refused.
        if let Ok(md) = self.portals.attach_any(entry(PORTAL_MESSAGES, 0, u64::MAX), messages) {
            self.messages = md;
        }
        let info = MemoryDescriptor {
            memory: MdMemory::Kept(self.info().to_bytes().into_boxed_slice()),
            options: MdOptions::GET | MdOptions::MANAGE_REMOTE | MdOptions::TRUNCATE,
            threshold: None,
            max_size: 0,
        };
        self.told = self.portals.attach_any(entry(PORTAL_NET, PING_MATCH_BITS, 0), info).ok();
    }

    pub(crate) fn features(&self) -> Features {
        let mut features = Features::DISCOVERY;
        features.set(Features::REMOTE_ACCESS, self.carriage.remote_access);
        features.set(Features::MULTI_RAIL, self.interfaces.len() > 1);
        features
    }

    pub(crate) fn info(&self) -> PeerInfo {
        let nids =
            self.interfaces.iter().map(|interface| NidStatus { nid: interface.nid, is_up: true }).collect();
        PeerInfo { features: self.features(), epoch: self.epoch, nids }
    }

    pub(crate) fn attach(
        &mut self,
        now: Instant,
        entry: MatchEntry,
        md: MemoryDescriptor,
    ) -> Result<MdId, AttachError> {
        let id = self.portals.attach(entry, md)?;
        for early in self.portals.take_early(entry.portal) {
            self.deliver(now, early);
        }
        Ok(id)
    }

    pub(crate) fn unlink(&mut self, md: MdId) -> bool {
        let is_ours = md == self.messages || Some(md) == self.told;
        let is_there = !is_ours && self.portals.unlink(md);
        self.settle_descriptor(md);
        is_there
    }

    pub(crate) fn set_lazy(&mut self, portal: u8, is_lazy: bool) {
        for early in self.portals.set_lazy(portal, is_lazy) {
            self.drop_operation(&early, NakReason::NoMatch);
        }
    }

    /// To be called behind each event of a descriptor: gives it back if it is over.
    fn settle_descriptor(&mut self, md: MdId) {
        if let Some(gone) = self.portals.settle(md) {
            self.emit(Event::Portal(PortalEvent::Unlink { md: gone.md, memory: gone.memory }));
        }
    }

    // ---- a peer's operations

    /// A PUT or GET has come.
    pub(crate) fn handle_operation(
        &mut self,
        now: Instant,
        id: ConnectionId,
        body: FrameBody,
        bytes: Option<SharedBuffer>,
    ) -> Result<(), PeerMisbehaved> {
        let loses_frames = self.carriage.loses_frames;
        let (Some(sequence), Some(connection)) = (body.sequence(), self.connection(id)) else {
            return Ok(());
        };
        connection.check_sequence(sequence)?;
        let Some(endpoint) = connection.endpoint else { return Ok(()) };
        let from = PeerId { endpoint, epoch: connection.epoch };
        if !connection.receive(sequence) {
            // A net that doubles messages may do so to the layer above, which knows; what changes our own tables is done once.
            let is_message =
                matches!(body, FrameBody::Put { target, .. } if target.portal == PORTAL_MESSAGES);
            if !loses_frames {
                return Err(PeerMisbehaved::Replayed { sequence });
            }
            if !is_message {
                self.stats.replayed += 1;
                return Ok(());
            }
        }
        self.deliver(now, Early { connection: id, from, body, bytes });
        Ok(())
    }

    fn deliver(&mut self, now: Instant, early: Early) {
        let sent = early.bytes.as_ref().map_or(0, |bytes| bytes.len());
        let from = early.from.endpoint;
        let incoming = match early.body {
            FrameBody::Put { target: PutTarget { portal, match_bits, offset_bytes: offset, .. }, .. } => {
                Incoming { verb: MdOptions::PUT, portal, from, match_bits, offset, bytes: sent }
            }
            FrameBody::Get { portal, match_bits, offset_bytes: offset, bytes, .. } => {
                let bytes = base::units::narrow(u64::from(bytes));
                Incoming { verb: MdOptions::GET, portal, from, match_bits, offset, bytes }
            }
            _ => return,
        };
        match self.portals.deliver(&incoming) {
            Delivery::NoMatch => self.drop_operation(&early, NakReason::NoMatch),
            Delivery::TooLong => self.drop_operation(&early, NakReason::TooLong),
            Delivery::Later => {
                self.stats.kept_early += 1;
                self.portals.keep(incoming.portal, early);
            }
            Delivery::Matched(found) => match (early.body, early.bytes) {
                (FrameBody::Put { sequence, target, .. }, Some(bytes)) => {
                    if found.hands_over {
                        self.hand_over(early.connection, early.from, sequence, target, found.md, bytes);
                    } else {
                        self.place(now, early.connection, early.from, sequence, target, found, &bytes);
                    }
                    if found.may_end {
                        self.settle_descriptor(found.md);
                    }
                }
                (FrameBody::Get { sequence, operation, match_bits, .. }, _) => {
                    self.give(now, early.connection, sequence, operation, found);
                    let event = PortalEvent::Get {
                        md: found.md,
                        from: early.from,
                        match_bits,
                        asked_bytes: incoming.bytes,
                        given_bytes: found.bytes,
                        offset: found.offset,
                    };
                    // What we tell of ourselves is nobody's business but ours.
                    if Some(found.md) != self.told {
                        self.emit(Event::Portal(event));
                    }
                    if found.may_end {
                        self.settle_descriptor(found.md);
                    }
                }
                _ => {}
            },
        }
    }

    /// Dropped: counted, its credit goes back, and whoever waits for an answer is told.
    fn drop_operation(&mut self, early: &Early, reason: NakReason) {
        match reason {
            NakReason::TooLong => self.stats.dropped_too_long += 1,
            _ => self.stats.dropped_no_match += 1,
        }
        let operation = match early.body {
            FrameBody::Put { target, .. } => target.operation,
            FrameBody::Get { operation, .. } => operation,
            _ => 0,
        };
        if operation != 0 && self.is_up(early.connection) {
            self.nak(early.connection, operation, reason);
        }
        if let Some(sequence) = early.body.sequence() {
            self.return_credit(early.connection, sequence);
        }
    }

    /// A message: its bytes become the layer above's, and its credit goes back when they are taken.
    fn hand_over(
        &mut self,
        id: ConnectionId,
        from: PeerId,
        sequence: u32,
        target: PutTarget,
        md: MdId,
        bytes: SharedBuffer,
    ) {
        self.stats.messages_received += 1;
        self.counters.messages.add(1);
        let PutTarget { match_bits, header_data, .. } = target;
        self.emit_with_credit(Event::Message { from, bytes, md, match_bits, header_data }, id, sequence);
    }

    #[allow(clippy::too_many_arguments)] // the parts of one PUT, each used once
    fn place(
        &mut self,
        now: Instant,
        id: ConnectionId,
        from: PeerId,
        sequence: u32,
        target: PutTarget,
        found: Match,
        bytes: &[u8],
    ) {
        let Match { md, offset, bytes: placed, ack_disabled, .. } = found;
        if let Some(buffer) = self.portals.writable(md)
            && let Some(into) = buffer.get_mut(offset..offset + placed)
        {
            copy_counted(&self.counters, into, &bytes[..placed]);
        }
        self.stats.operations_served += 1;
        let PutTarget { match_bits, header_data, operation, .. } = target;
        self.emit(Event::Portal(PortalEvent::Put {
            md,
            from,
            match_bits,
            header_data,
            sent_bytes: bytes.len(),
            placed_bytes: placed,
            offset,
        }));
        if operation == 0 || ack_disabled {
            return self.return_credit(id, sequence);
        }
        let body = FrameBody::Ack {
            sequence: 0,
            operation,
            // A descriptor's memory is a buffer, and a PUT a message: both are far below 4 GiB.
            offset_bytes: u32::try_from(offset).unwrap_or(u32::MAX),
            bytes: u32::try_from(placed).unwrap_or(u32::MAX),
        };
        self.owe(now, id, Owed { body, payload: Payload::None, answers: sequence });
    }

    /// Answers a GET. Without memory for a copy it stays unanswered: who asked will ask again.
    fn give(&mut self, now: Instant, id: ConnectionId, sequence: u32, operation: u64, found: Match) {
        let range = found.offset..found.offset + found.bytes;
        let given = match self.portals.memory(found.md) {
            Some(MdMemory::Readable(buffer)) => {
                (!range.is_empty()).then(|| Payload::Bytes(buffer.slice(range)))
            }
            Some(MdMemory::Writable(buffer)) => copy_out(self, &buffer[range]),
            Some(MdMemory::Kept(bytes)) => copy_out(self, &bytes[range]),
            Some(MdMemory::Arriving) | None => None,
        };
        if given.is_none() && found.bytes > 0 {
            return self.return_credit(id, sequence);
        }
        self.stats.operations_served += 1;
        let offset_bytes = u32::try_from(found.offset).unwrap_or(u32::MAX);
        let body = FrameBody::Reply { sequence: 0, operation, offset_bytes };
        self.owe(now, id, Owed { body, payload: given.unwrap_or(Payload::None), answers: sequence });
    }

    fn owe(&mut self, now: Instant, id: ConnectionId, owed: Owed) {
        if let Some(connection) = self.connection(id) {
            connection.owed.push_back(owed);
            self.pay(now, id);
        }
    }

    /// Sends ACKs and REPLYs as far as there are credits.
    pub(crate) fn pay(&mut self, now: Instant, id: ConnectionId) {
        loop {
            let Some(connection) = self.connection(id) else { return };
            if connection.owed.is_empty() || !connection.has_credit(Lane::Reply) {
                return;
            }
            let Some(Owed { body, payload, answers }) = connection.owed.pop_front() else { return };
            self.post_message(now, id, Outgoing::new(body, payload));
            self.return_credit(id, answers);
        }
    }

    // ---- our operations

    pub(crate) fn try_put(
        &mut self,
        now: Instant,
        to: PeerId,
        md: MdId,
        options: OperationOptions,
    ) -> Result<OperationId, Refused> {
        let bytes = match self.portals.memory(md) {
            Some(MdMemory::Readable(buffer)) => buffer.clone(),
            _ => return Err(Refused::Descriptor),
        };
        if bytes.is_empty() || wide(bytes.len()) > MESSAGE_BYTES_MAX {
            return Err(Refused::Length);
        }
        let id = self.next_transfer_id();
        let answer = if options.wants_ack { Answer::Ack } else { Answer::Nothing };
        let target = PutTarget {
            portal: options.portal,
            match_bits: options.match_bits,
            header_data: options.header_data,
            offset_bytes: options.offset_bytes,
            // Without an answer to come it still is ours until it is posted.
            operation: if options.wants_ack { id } else { 0 },
        };
        let body = FrameBody::Put { sequence: 0, extension_bytes: 0, target };
        self.start_operation(now, to, id, md, answer, options.deadline, body, Payload::Bytes(bytes), 0)
    }

    pub(crate) fn try_get(
        &mut self,
        now: Instant,
        to: PeerId,
        md: MdId,
        options: OperationOptions,
    ) -> Result<OperationId, Refused> {
        self.start_get(now, to, md, options, Answer::Reply)
    }

    fn start_get(
        &mut self,
        now: Instant,
        to: PeerId,
        md: MdId,
        options: OperationOptions,
        answer: Answer,
    ) -> Result<OperationId, Refused> {
        let room = self.portals.writable(md).map(|buffer| buffer.len().min(GET_BYTES_MAX));
        let bytes = room.and_then(|room| u32::try_from(room).ok()).ok_or(Refused::Descriptor)?;
        let id = self.next_transfer_id();
        let body = FrameBody::Get {
            sequence: 0,
            portal: options.portal,
            match_bits: options.match_bits,
            operation: id,
            offset_bytes: options.offset_bytes,
            bytes,
        };
        self.start_operation(now, to, id, md, answer, options.deadline, body, Payload::None, bytes)
    }

    #[allow(clippy::too_many_arguments)] // the parts of one operation, each used once
    fn start_operation(
        &mut self,
        now: Instant,
        to: PeerId,
        id: u64,
        md: MdId,
        answer: Answer,
        deadline: Instant,
        body: FrameBody,
        payload: Payload,
        bytes_max: u32,
    ) -> Result<OperationId, Refused> {
        if self.operations.len() >= OPERATIONS_MAX {
            return Err(Refused::OperationsWaiting);
        }
        if !self.portals.begin(md) {
            return Err(Refused::Descriptor);
        }
        let operation = Operation { md, peer: to.endpoint, connection: None, answer, bytes_max, deadline };
        self.operations.insert(id, operation);
        let own = (answer == Answer::Nothing).then_some(id);
        let waiting = Waiting { frame: Outgoing::new(body, payload), epoch: to.epoch };
        if let Err((refused, _)) = self.submit(now, to.endpoint, Lane::Request, waiting) {
            self.operations.remove(&id);
            self.portals.undo(md);
            return Err(refused);
        }
        if let Some(id) = own {
            // Nothing on the wire names it: for us it is over as soon as it is with the net, or waits for a connection.
            self.operations.remove(&id);
            self.emit(Event::Portal(PortalEvent::Sent { operation: OperationId(id), md }));
            self.portals.end(md);
            self.settle_descriptor(md);
        } else {
            self.set_timer(deadline);
        }
        Ok(OperationId(id))
    }

    pub(crate) fn try_ping(&mut self, now: Instant, to: PeerId, deadline: Instant) -> Result<(), Refused> {
        self.ask(now, to, deadline, Answer::Info)
    }

    /// Asks a peer for its nids. If that is refused, its first rail does.
    pub(crate) fn ask_for_rails(&mut self, now: Instant, peer: PeerId) {
        let deadline = now + ms(self.times.idle_ping_ms + self.times.ping_wait_ms_max);
        let _ = self.ask(now, peer, deadline, Answer::Rails); // without an answer the first rail is all there is
    }

    fn ask(&mut self, now: Instant, to: PeerId, deadline: Instant, answer: Answer) -> Result<(), Refused> {
        let buffer = self.memory.alloc(INFO_BYTES_MAX).ok_or(Refused::Descriptor)?;
        let md = MemoryDescriptor {
            memory: MdMemory::Writable(buffer),
            options: MdOptions::UNLINK,
            threshold: Some(2),
            max_size: 0,
        };
        let md = self.portals.bind(md).map_err(|_| Refused::OperationsWaiting)?;
        let options = OperationOptions {
            portal: PORTAL_NET,
            match_bits: PING_MATCH_BITS,
            header_data: 0,
            offset_bytes: 0,
            wants_ack: false,
            deadline,
        };
        let started = self.start_get(now, to, md, options, answer);
        if started.is_err() {
            self.portals.unlink(md);
            let _ = self.portals.settle(md); // nobody was told of it
        }
        started.map(drop)
    }

    /// A frame that takes a credit is on its way to a connection.
    pub(crate) fn on_posted(&mut self, id: ConnectionId, body: &FrameBody) {
        let operation = match body {
            FrameBody::Put { target, .. } => target.operation,
            FrameBody::Get { operation, .. } => *operation,
            _ => 0,
        };
        if operation == 0 {
            return;
        }
        let Some(found) = self.operations.get_mut(&operation) else { return };
        let is_resend = found.connection.replace(id).is_some();
        let (md, answer) = (found.md, found.answer);
        if !is_resend && matches!(answer, Answer::Ack | Answer::Reply) {
            self.emit(Event::Portal(PortalEvent::Sent { operation: OperationId(operation), md }));
        }
    }

    /// A frame that waited for a connection will not go.
    pub(crate) fn on_not_posted(&mut self, body: &FrameBody, error: &NetError) {
        let operation = match body {
            FrameBody::Put { target, .. } => target.operation,
            FrameBody::Get { operation, .. } => *operation,
            _ => 0,
        };
        self.end_operation(operation, Err(error.clone()));
    }

    /// An ACK or REPLY has come: a message of its own number, which is taken at once.
    pub(crate) fn handle_answer(&mut self, id: ConnectionId, sequence: u32) -> Result<(), PeerMisbehaved> {
        let loses_frames = self.carriage.loses_frames;
        let Some(connection) = self.connection(id) else { return Ok(()) };
        connection.check_sequence(sequence)?;
        if !connection.receive(sequence) {
            if !loses_frames {
                return Err(PeerMisbehaved::Replayed { sequence });
            }
            // Its operation has ended, so it will find nothing.
            self.stats.replayed += 1;
        }
        self.return_credit(id, sequence);
        Ok(())
    }

    /// The operation that a peer names, if it may.
    fn operation_on(&self, id: ConnectionId, operation: u64) -> Option<&Operation> {
        self.operations.get(&operation).filter(|found| found.connection == Some(id))
    }

    pub(crate) fn handle_ack(&mut self, id: ConnectionId, operation: u64, offset: u32, bytes: u32) {
        match self.operation_on(id, operation) {
            Some(found) if found.answer == Answer::Ack => {
                self.end_operation(operation, Ok((offset, bytes)));
            }
            _ => self.stats.stale_dropped += 1,
        }
    }

    pub(crate) fn handle_reply(
        &mut self,
        id: ConnectionId,
        operation: u64,
        bytes: &[u8],
    ) -> Result<(), PeerMisbehaved> {
        let (md, bytes_max) = match self.operation_on(id, operation) {
            Some(found) if matches!(found.answer, Answer::Reply | Answer::Info | Answer::Rails) => {
                (found.md, found.bytes_max)
            }
            _ => {
                self.stats.stale_dropped += 1;
                return Ok(());
            }
        };
        // A REPLY is a frame, so its length fits.
        let got = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if got > bytes_max {
            let kind = crate::frame::FrameKind::Reply;
            return Err(PeerMisbehaved::PayloadLength { kind, got, max: bytes_max });
        }
        let counters = std::sync::Arc::clone(&self.counters);
        if let Some(into) = self.portals.writable(md).and_then(|buffer| buffer.get_mut(..bytes.len())) {
            copy_counted(&counters, into, bytes);
        }
        self.end_operation(operation, Ok((0, got)));
        Ok(())
    }

    /// A Nak of something that is no transfer.
    pub(crate) fn handle_operation_nak(&mut self, id: ConnectionId, operation: u64, reason: NakReason) {
        if self.operation_on(id, operation).is_some() {
            self.end_operation(operation, Err(NetError::RemoteError { reason }));
        }
    }

    fn end_operation(&mut self, id: u64, result: Result<(u32, u32), NetError>) {
        let Some(Operation { md, peer, answer, .. }) = self.operations.remove(&id) else { return };
        self.portals.answered(md);
        self.portals.end(md);
        let operation = OperationId(id);
        let placed = result.as_ref().map_or(0, |(_, bytes)| base::units::narrow(u64::from(*bytes)));
        match answer {
            Answer::Nothing => {}
            Answer::Ack => self.emit(Event::Portal(PortalEvent::Ack { operation, md, result })),
            Answer::Reply => {
                let result = result.map(|_| placed);
                self.emit(Event::Portal(PortalEvent::Reply { operation, md, result }));
            }
            Answer::Info | Answer::Rails => {
                self.portals.unlink(md);
                let memory = self.portals.settle(md).and_then(|gone| gone.memory);
                let result = result.and_then(|_| {
                    let bytes = memory.as_ref().and_then(|memory| memory.get(..placed)).unwrap_or(&[]);
                    PeerInfo::parse(bytes).map_err(|error| NetError::BadInfo { error })
                });
                self.stats.discoveries += u64::from(result.is_ok());
                if answer == Answer::Info {
                    self.emit(Event::Discovered { peer, result });
                } else if let Ok(info) = result {
                    let now = self.seen_now;
                    self.learn_rails(now, peer, &info);
                }
                return;
            }
        }
        self.settle_descriptor(md);
    }

    /// A peer is gone: what it has not answered will not be.
    pub(crate) fn fail_operations(&mut self, peer: Endpoint, error: &NetError) {
        let theirs = self.operations.iter().filter(|(_, operation)| operation.peer == peer);
        let theirs: Vec<u64> = theirs.map(|(id, _)| *id).collect();
        for id in theirs {
            self.end_operation(id, Err(error.clone()));
        }
    }

    /// A rail is gone: what went over it and was not sent again will not be answered.
    pub(crate) fn fail_operations_on(&mut self, id: ConnectionId, error: &NetError) {
        let on_it = self.operations.iter().filter(|(_, operation)| operation.connection == Some(id));
        let on_it: Vec<u64> = on_it.map(|(id, _)| *id).collect();
        for operation in on_it {
            self.end_operation(operation, Err(error.clone()));
        }
    }

    pub(crate) fn expire_operations(&mut self, now: Instant) {
        let mut due = Vec::new();
        let mut next = Instant::NEVER;
        for (id, operation) in &self.operations {
            if operation.deadline <= now {
                due.push(*id);
            } else {
                next = next.min(operation.deadline);
            }
        }
        self.set_timer(next);
        for id in due {
            self.end_operation(id, Err(NetError::RemoteTimeout));
        }
    }
}

/// Copies bytes of a descriptor for a REPLY; `None` without memory for it.
fn copy_out(protocol: &Protocol, bytes: &[u8]) -> Option<Payload> {
    if bytes.is_empty() {
        return None;
    }
    let mut copy = protocol.memory.try_alloc(bytes.len())?;
    copy_counted(&protocol.counters, &mut copy, bytes);
    Some(Payload::Bytes(copy.freeze()))
}
