//! Moves the bulk and answers, for any number of peers.
//!
//! Memory: a read that checks its content takes buffers from the arena; while there are none, requests wait in order, as many as the
//! peers' credits let in. Without a check, all reads get the same bytes.

use std::collections::{BTreeMap, VecDeque};

use base::Instant;
use base::limits::BUFFER_BYTES_MAX;
use base::units::narrow;
use runtime::SharedBuffer;
use verbs_net::{BulkCookie, BulkDescriptor, Event, Lane, PeerId, TransferId};

use super::REQUEST_WITHIN;
use super::content::{self, Check};
use super::exchange::{MESSAGE_BYTES_MIN, Message, Said, Status};
use super::outbox::{Letter, Outbox};
use super::side::{Context, Side};
use crate::failure::Failure;

/// A pull that runs.
struct Pull {
    from: PeerId,
    message: Message,
    cookie: BulkCookie,
    answer_bytes: usize,
}

/// A request that waits for memory.
struct Waiting {
    from: PeerId,
    message: Message,
    descriptor: BulkDescriptor,
    answer_bytes: usize,
}

/// The side that answers.
pub struct Responder {
    outbox: Outbox,
    /// What is pushed where nobody checks: the largest buffer, cut as needed.
    content: Option<SharedBuffer>,
    pulls: BTreeMap<TransferId, Pull>,
    waiting: VecDeque<Waiting>,
    /// Ends when the first peer leaves, or is lost.
    once: bool,
    is_done: bool,
    /// Peers turned away for bytes that are no request.
    turned_away: u64,
}

impl Responder {
    /// A responder. `once`: it is done when a requester leaves or is lost.
    pub fn new(once: bool) -> Responder {
        Responder {
            outbox: Outbox::default(),
            content: None,
            pulls: BTreeMap::new(),
            waiting: VecDeque::new(),
            once,
            is_done: false,
            turned_away: 0,
        }
    }

    fn on_message(
        &mut self,
        context: &mut Context<'_>,
        from: PeerId,
        bytes: &SharedBuffer,
    ) -> Result<(), Failure> {
        let Ok(message) = Message::parse(bytes) else {
            self.turned_away += 1;
            eprintln!(
                "selftest: {from} sent bytes that are no request of this version: its connection is ended"
            );
            context.machine.drop_peer(from);
            self.forget(from);
            return Ok(());
        };
        let answer_bytes = bytes.len();
        match message.said.clone() {
            Said::Ping => self.answer(context, from, &message, Status::Done, None, answer_bytes),
            Said::Write(descriptor) => {
                let deadline = context.now + REQUEST_WITHIN;
                let id = context.machine.start_pull(context.now, from, &descriptor, deadline);
                let cookie = descriptor.cookie();
                self.pulls.insert(id, Pull { from, message, cookie, answer_bytes });
                Ok(())
            }
            Said::Read(descriptor) => {
                self.waiting.push_back(Waiting { from, message, descriptor, answer_bytes });
                self.push_waiting(context)
            }
            Said::TellUsage => {
                let usage = Said::Usage(context.usage());
                let answer = Message { said: usage, ..message };
                self.say(context, from, &answer, None, MESSAGE_BYTES_MIN)
            }
            Said::Leave => {
                self.is_done |= self.once;
                Ok(())
            }
            // An answer to nothing.
            Said::Answer(_) | Said::Usage(_) => Ok(()),
        }
    }

    /// Serves reads in order until memory runs out; a transfer that ends calls again.
    fn push_waiting(&mut self, context: &mut Context<'_>) -> Result<(), Failure> {
        while let Some(request) = self.waiting.front() {
            let check = request.message.check;
            let Some(parts) = self.parts(context, check, request.message.seed, &request.descriptor) else {
                return Ok(());
            };
            let Some(request) = self.waiting.pop_front() else { return Ok(()) };
            let Waiting { from, message, descriptor, answer_bytes } = request;
            let deadline = context.now + REQUEST_WITHIN;
            context.machine.start_push(context.now, from, &descriptor, 0, parts, deadline);
            // Behind the bytes: the net delivers a message sent after a push after what was pushed.
            self.answer(context, from, &message, Status::Done, Some(descriptor.cookie()), answer_bytes)?;
        }
        Ok(())
    }

    /// One part for each segment; `None` without memory.
    fn parts(
        &self,
        context: &Context<'_>,
        check: Check,
        seed: u64,
        descriptor: &BulkDescriptor,
    ) -> Option<Vec<SharedBuffer>> {
        let mut start_bytes = 0;
        let mut parts = Vec::new();
        for length in descriptor.segment_lengths() {
            let bytes: usize = narrow(u64::from(*length));
            let part = match &self.content {
                Some(content) if check == Check::None => content.slice(0..bytes),
                _ => {
                    let mut buffer = context.arena.try_alloc(bytes)?;
                    content::fill(check, seed, start_bytes, &mut buffer);
                    buffer.freeze()
                }
            };
            start_bytes += u64::from(*length);
            parts.push(part);
        }
        Some(parts)
    }

    fn answer(
        &mut self,
        context: &mut Context<'_>,
        to: PeerId,
        request: &Message,
        status: Status,
        invalidates: Option<BulkCookie>,
        bytes: usize,
    ) -> Result<(), Failure> {
        let Message { number, seed, check, .. } = *request;
        let answer = Message { number, seed, check, said: Said::Answer(status) };
        self.say(context, to, &answer, invalidates, bytes)
    }

    fn say(
        &mut self,
        context: &mut Context<'_>,
        to: PeerId,
        message: &Message,
        invalidates: Option<BulkCookie>,
        bytes_min: usize,
    ) -> Result<(), Failure> {
        let message = context.message(message, bytes_min)?;
        let letter = Letter { to, lane: Lane::Reply, exposes: None, invalidates, message };
        // Refused for good: the peer is gone, and its own side hears of that.
        let _ = self.outbox.send(context, letter);
        Ok(())
    }

    fn on_transfer(
        &mut self,
        context: &mut Context<'_>,
        id: TransferId,
        pulled: Result<Vec<SharedBuffer>, verbs_net::NetError>,
    ) -> Result<(), Failure> {
        if let Some(Pull { from, message, cookie, answer_bytes }) = self.pulls.remove(&id) {
            let status = match &pulled {
                Err(_) => Status::TransferFailed,
                Ok(parts) => match content::first_wrong(message.check, message.seed, parts) {
                    Some(_) => Status::WrongContent,
                    None => Status::Done,
                },
            };
            // The bytes are dropped before the answer: what a store would do with them is not the net's speed.
            drop(pulled);
            self.answer(context, from, &message, status, Some(cookie), answer_bytes)?;
        }
        self.push_waiting(context)
    }

    fn forget(&mut self, peer: PeerId) {
        self.outbox.forget(peer);
        self.waiting.retain(|request| request.from != peer);
        // Its pulls end as failed, one by one.
    }
}

impl Side for Responder {
    fn begin(&mut self, context: &mut Context<'_>) -> Result<(), Failure> {
        let mut content = context
            .arena
            .try_alloc(narrow(BUFFER_BYTES_MAX))
            .ok_or_else(|| Failure::new("the responder's arena is too small"))?;
        fastrand::Rng::with_seed(2).fill(&mut content);
        self.content = Some(content.freeze());
        Ok(())
    }

    fn handle(&mut self, context: &mut Context<'_>, event: Event) -> Result<(), Failure> {
        match event {
            Event::Message { from, bytes, .. } => self.on_message(context, from, &bytes),
            Event::Writable(_) => {
                let _ = self.outbox.retry(context); // as in `say`
                Ok(())
            }
            Event::TransferDone { id, result } => self.on_transfer(context, id, result),
            Event::PeerLost { peer, .. } => {
                self.forget(peer);
                self.is_done |= self.once && peer.epoch != 0;
                Ok(())
            }
            Event::PeerUp(..)
            | Event::Retracted { .. }
            | Event::RailLost { .. }
            | Event::Portal(_)
            | Event::Discovered { .. } => Ok(()),
        }
    }

    fn on_time(&mut self, _context: &mut Context<'_>) -> Result<(), Failure> {
        Ok(())
    }

    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    fn is_done(&self) -> bool {
        self.is_done
    }
}
