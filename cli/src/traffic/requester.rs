//! Asks, and takes the time: keeps `concurrency` requests in flight, each with memory of its own.
//!
//! Order: requests before the clock, the responder's usage, requests under the clock, what is still in flight, the responder's usage
//! again, leave. A request that fails ends the run, or is counted where the work goes on.
//! **Invariant**: memory of a request is used again only after the net gave it back.

use std::collections::BTreeMap;
use std::time::Duration;

use base::limits::BUFFER_BYTES_MAX;
use base::units::narrow;
use base::{Endpoint, Instant};
use hdrhistogram::Histogram;
use runtime::{Arena, Buffer, SharedBuffer};
use verbs_net::{BulkCookie, BulkDescriptor, Event, Lane, PeerId};

use super::content::{self, Check};
use super::exchange::{MESSAGE_BYTES_MIN, Message, Said, Status};
use super::outbox::{Letter, Outbox};
use super::side::{Context, Side};
use super::usage::Usage;
use super::{Kind, Until, Work};
use crate::connection::new_epoch;
use crate::failure::Failure;

/// Requests that failed, by what was wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Errors {
    /// Content that arrived differs from what was sent.
    pub wrong_content: u64,
    /// The responder could not move the bulk.
    pub transfer_failed: u64,
    /// No answer in time.
    pub timed_out: u64,
    /// The connection was lost with the request in flight.
    pub peer_lost: u64,
    /// The last one, in words.
    pub last: Option<String>,
}

impl Errors {
    /// All of them.
    pub fn count(&self) -> u64 {
        self.wrong_content + self.transfer_failed + self.timed_out + self.peer_lost
    }
}

/// What a requester found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Requests that ended well under the clock.
    pub operations: u64,
    /// The time under the clock.
    pub took: Duration,
    /// From asking to the answer, of requests under the clock.
    pub waited_ns: Histogram<u64>,
    /// Requests that failed, before the clock started included.
    pub errors: Errors,
    /// What this side used under the clock.
    pub usage: Usage,
    /// What the responder used meanwhile, for all its peers; `None` if it did not tell.
    pub responder: Option<Usage>,
    /// From the first connect to the first answer.
    pub connect: Duration,
}

/// One request that waits for its answer.
struct InFlight {
    asked_at: Instant,
    /// Its exposure; `None` for pings.
    cookie: Option<BulkCookie>,
    seed: u64,
}

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Before the clock.
    WarmingUp,
    /// Waits for the responder's usage; nothing is in flight.
    Starting { asked_at: Instant },
    /// Under the clock.
    Timed { began: Instant },
    /// Behind the clock: answers still come in.
    Draining,
    /// Waits for the responder's usage.
    Ending { asked_at: Instant },
    /// `Leave` was sent; one more flush, and it is over.
    Done,
}

/// The side that asks.
pub struct Requester {
    work: Work,
    responder: PeerId,
    outbox: Outbox,
    /// Memory of no request: one list of parts for each that may be in flight.
    idle: Vec<Vec<SharedBuffer>>,
    /// Retracted, and not given back yet.
    coming_back: BTreeMap<BulkCookie, Ended>,
    in_flight: BTreeMap<u64, InFlight>,
    asked: u64,
    ended: u64,
    stage: Stage,
    errors: Errors,
    operations: u64,
    before: Usage,
    responder_before: Option<Usage>,
    took: Duration,
    usage: Usage,
    responder_usage: Option<Usage>,
    waited_ns: Histogram<u64>,
    started: Option<Instant>,
    connect: Option<Duration>,
    base_seed: u64,
}

/// How a request ended whose memory has not come back.
struct Ended {
    number: u64,
    asked_at: Instant,
    outcome: Result<Instant, Wrong>,
    seed: u64,
}

/// Why a request failed.
#[derive(Clone, Debug)]
enum Wrong {
    Content,
    Transfer,
    Time,
    Peer(String),
}

/// The histogram holds three digits up to an hour.
const LONGEST_NS: u64 = 3_600_000_000_000;

impl Requester {
    /// A requester that has its memory. Errors: the arena is smaller than `concurrency` times `bulk_bytes`.
    pub fn new(responder: Endpoint, work: Work, arena: &Arena) -> Result<Requester, Failure> {
        let mut idle = Vec::new();
        for _ in 0..work.concurrency {
            idle.push(parts(work, arena)?);
        }
        let waited_ns = Histogram::new_with_bounds(1, LONGEST_NS, 3)
            .map_err(Failure::while_doing("making a histogram"))?;
        Ok(Requester {
            work,
            responder: PeerId::any(responder),
            outbox: Outbox::default(),
            idle,
            coming_back: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            asked: 0,
            ended: 0,
            stage: Stage::WarmingUp,
            errors: Errors::default(),
            operations: 0,
            before: Usage::default(),
            responder_before: None,
            took: Duration::ZERO,
            usage: Usage::default(),
            responder_usage: None,
            waited_ns,
            started: None,
            connect: None,
            base_seed: new_epoch()?,
        })
    }

    /// The result; `None` unless it is done.
    pub fn into_found(self) -> Option<Found> {
        (self.stage == Stage::Done).then(|| Found {
            operations: self.operations,
            took: self.took,
            waited_ns: self.waited_ns,
            errors: self.errors,
            usage: self.usage,
            responder: self.responder_usage,
            connect: self.connect.unwrap_or_default(),
        })
    }

    /// Asks until as many are in flight as may be, or no more are wanted now.
    fn ask_more(&mut self, context: &mut Context<'_>) -> Result<(), Failure> {
        while self.wants_more() {
            let Some(parts) = self.idle.pop() else { break };
            self.ask(context, parts)?;
        }
        Ok(())
    }

    fn wants_more(&self) -> bool {
        match (self.stage, self.work.until) {
            (Stage::WarmingUp, _) => self.asked < self.work.untimed,
            (Stage::Timed { .. }, Until::Count(count)) => self.asked < self.work.untimed + count,
            (Stage::Timed { .. }, Until::Time(_)) => true,
            _ => false,
        }
    }

    fn ask(&mut self, context: &mut Context<'_>, parts: Vec<SharedBuffer>) -> Result<(), Failure> {
        let number = self.asked;
        let seed = self.base_seed.wrapping_add(number);
        let descriptor = self.expose(context, parts, seed)?;
        let cookie = descriptor.as_ref().map(BulkDescriptor::cookie);
        let said = match (self.work.kind, descriptor) {
            (Kind::Write, Some(descriptor)) => Said::Write(descriptor),
            (Kind::Read, Some(descriptor)) => Said::Read(descriptor),
            _ => Said::Ping,
        };
        self.asked += 1;
        let asked_at = context.clock.now();
        self.in_flight.insert(number, InFlight { asked_at, cookie, seed });
        self.say(context, number, seed, said, cookie)
    }

    fn expose(
        &self,
        context: &mut Context<'_>,
        parts: Vec<SharedBuffer>,
        seed: u64,
    ) -> Result<Option<BulkDescriptor>, Failure> {
        match self.work.kind {
            Kind::Ping => Ok(None),
            Kind::Write => {
                let parts = if self.work.check == Check::None {
                    parts
                } else {
                    self.filled(parts, seed, context.arena)?
                };
                Ok(Some(context.machine.expose_source(&parts)))
            }
            Kind::Read => Ok(Some(context.machine.expose_sink(unshared(parts, context.arena)?))),
        }
    }

    fn filled(
        &self,
        parts: Vec<SharedBuffer>,
        seed: u64,
        arena: &Arena,
    ) -> Result<Vec<SharedBuffer>, Failure> {
        let mut start_bytes = 0;
        let mut filled = Vec::with_capacity(parts.len());
        for mut part in unshared(parts, arena)? {
            content::fill(self.work.check, seed, start_bytes, &mut part);
            start_bytes += part.len() as u64;
            filled.push(part.freeze());
        }
        Ok(filled)
    }

    fn say(
        &mut self,
        context: &mut Context<'_>,
        number: u64,
        seed: u64,
        said: Said,
        exposes: Option<BulkCookie>,
    ) -> Result<(), Failure> {
        let bytes_min = self.work.message_bytes.max(MESSAGE_BYTES_MIN);
        let message = Message { number, seed, check: self.work.check, said };
        let message = context.message(&message, bytes_min)?;
        let letter = Letter { to: self.responder, lane: Lane::Request, exposes, invalidates: None, message };
        self.outbox.send(context, letter).map_err(|refused| refused_text(&refused))
    }

    fn on_message(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Result<(), Failure> {
        let now = context.clock.now();
        let message = Message::parse(bytes)
            .map_err(|error| Failure::new(format!("{} sent {error}", self.responder.endpoint)))?;
        match message.said {
            Said::Answer(status) => {
                let outcome = match status {
                    Status::Done => Ok(now),
                    Status::WrongContent => Err(Wrong::Content),
                    Status::TransferFailed => Err(Wrong::Transfer),
                };
                let Some(request) = self.in_flight.remove(&message.number) else {
                    // Its time was over, and that was counted. The peer is done with its memory now.
                    let late = self.coming_back.iter().find(|(_, ended)| ended.number == message.number);
                    if let Some(cookie) = late.map(|(cookie, _)| *cookie) {
                        context.machine.settle(cookie);
                    }
                    return Ok(());
                };
                if let (None, Some(started)) = (self.connect, self.started) {
                    self.connect = Some(now - started);
                }
                self.end(context, message.number, request, outcome, true)
            }
            Said::Usage(usage) => self.on_usage(context, usage),
            Said::Ping | Said::Write(_) | Said::Read(_) | Said::TellUsage | Said::Leave => {
                Err(Failure::new(format!("{} answers with a request", self.responder.endpoint)))
            }
        }
    }

    fn end(
        &mut self,
        context: &mut Context<'_>,
        number: u64,
        request: InFlight,
        outcome: Result<Instant, Wrong>,
        is_answered: bool,
    ) -> Result<(), Failure> {
        if let (Ok(at), Stage::Timed { .. }) = (&outcome, self.stage) {
            let waited = u64::try_from((*at - request.asked_at).as_nanos()).unwrap_or(LONGEST_NS);
            self.waited_ns.saturating_record(waited);
        }
        let ended = Ended { number, asked_at: request.asked_at, outcome, seed: request.seed };
        let Some(cookie) = request.cookie else {
            return self.finish(context, ended, Vec::new());
        };
        match context.retract(cookie, is_answered)? {
            Some(parts) => self.finish(context, ended, parts),
            None => {
                self.coming_back.insert(cookie, ended);
                Ok(())
            }
        }
    }

    /// The memory of a request is ours again: its content is checked, and the next one may go.
    fn finish(
        &mut self,
        context: &mut Context<'_>,
        ended: Ended,
        parts: Vec<SharedBuffer>,
    ) -> Result<(), Failure> {
        let Ended { number, asked_at, mut outcome, seed } = ended;
        let mut place = None;
        if outcome.is_ok() && self.work.kind == Kind::Read {
            place = content::first_wrong(self.work.check, seed, &parts);
            if place.is_some() {
                outcome = Err(Wrong::Content);
            }
        }
        self.idle.push(parts);
        self.ended += 1;
        match outcome {
            Ok(_) if matches!(self.stage, Stage::Timed { .. }) => self.operations += 1,
            Ok(_) => {}
            Err(wrong) => self.on_wrong(number, context.now.since(asked_at), &wrong, place)?,
        }
        self.go_on(context)
    }

    fn on_wrong(
        &mut self,
        number: u64,
        age: Duration,
        wrong: &Wrong,
        place: Option<u64>,
    ) -> Result<(), Failure> {
        let place = place.map(|place| format!(" at byte {place}")).unwrap_or_default();
        let (count, what) = match wrong {
            Wrong::Content => {
                (&mut self.errors.wrong_content, format!("content differs from what was sent{place}"))
            }
            Wrong::Transfer => {
                (&mut self.errors.transfer_failed, "the other side could not move the bulk".to_owned())
            }
            Wrong::Time => {
                (&mut self.errors.timed_out, format!("no answer within {} s", self.work.within.as_secs()))
            }
            Wrong::Peer(error) => (&mut self.errors.peer_lost, format!("the connection was lost: {error}")),
        };
        *count += 1;
        let text = format!(
            "{} {number} to {} after {:.3} s: {what}",
            self.work.kind.word(),
            self.responder.endpoint,
            age.as_secs_f64()
        );
        self.errors.last = Some(text.clone());
        if self.work.goes_on { Ok(()) } else { Err(Failure::new(text)) }
    }

    /// What comes after a request has ended.
    fn go_on(&mut self, context: &mut Context<'_>) -> Result<(), Failure> {
        let is_empty = self.in_flight.is_empty() && self.coming_back.is_empty();
        match (self.stage, self.work.until) {
            (Stage::WarmingUp, _) if self.asked >= self.work.untimed && is_empty => {
                self.stage = Stage::Starting { asked_at: context.now };
                self.say(context, 0, 0, Said::TellUsage, None)
            }
            (Stage::Timed { began }, Until::Count(count)) if self.ended >= self.work.untimed + count => {
                self.stop_clock(context, began);
                self.go_on(context)
            }
            (Stage::Draining, _) if is_empty => {
                self.stage = Stage::Ending { asked_at: context.now };
                self.say(context, 0, 0, Said::TellUsage, None)
            }
            _ => self.ask_more(context),
        }
    }

    fn stop_clock(&mut self, context: &Context<'_>, began: Instant) {
        self.took = context.clock.now() - began;
        self.usage = context.usage().since(&self.before);
        self.stage = Stage::Draining;
    }

    fn on_usage(&mut self, context: &mut Context<'_>, usage: Usage) -> Result<(), Failure> {
        match self.stage {
            Stage::Starting { .. } => {
                self.responder_before = Some(usage);
                self.start_clock(context)
            }
            Stage::Ending { .. } => {
                self.responder_usage = self.responder_before.map(|before| usage.since(&before));
                self.leave(context)
            }
            // The answer to a question that was given up.
            _ => Ok(()),
        }
    }

    fn start_clock(&mut self, context: &mut Context<'_>) -> Result<(), Failure> {
        self.stage = Stage::Timed { began: context.clock.now() };
        self.before = context.usage();
        self.ask_more(context)
    }

    fn leave(&mut self, context: &mut Context<'_>) -> Result<(), Failure> {
        self.stage = Stage::Done;
        self.say(context, 0, 0, Said::Leave, None)
    }

    fn on_lost(&mut self, context: &mut Context<'_>, error: &str) -> Result<(), Failure> {
        if !self.work.goes_on {
            // Numbers go up with time: the first is the oldest.
            let oldest = self.in_flight.first_key_value().map(|(number, request)| {
                let age = context.now.since(request.asked_at).as_secs_f64();
                let count = self.in_flight.len();
                format!(
                    "; {count} in flight, the oldest is {} {number} after {age:.3} s",
                    self.work.kind.word()
                )
            });
            let oldest = oldest.unwrap_or_default();
            return Err(Failure::new(format!("{} is gone: {error}{oldest}", self.responder.endpoint)));
        }
        self.outbox.clear();
        let in_flight = std::mem::take(&mut self.in_flight);
        for (number, request) in in_flight {
            let wrong = Wrong::Peer(error.to_owned());
            self.end(context, number, request, Err(wrong), false)?;
        }
        match self.stage {
            Stage::Starting { .. } | Stage::Ending { .. } => self.say(context, 0, 0, Said::TellUsage, None),
            _ => Ok(()),
        }
    }

    fn overdue(&mut self, context: &mut Context<'_>) -> Result<(), Failure> {
        let (now, within) = (context.now, self.work.within);
        let is_over = |asked_at: Instant| asked_at + within <= now;
        // Numbers go up with time: the first ones are the oldest.
        let late: Vec<u64> = self
            .in_flight
            .iter()
            .take_while(|(_, request)| is_over(request.asked_at))
            .map(|(number, _)| *number)
            .collect();
        for number in late {
            if let Some(request) = self.in_flight.remove(&number) {
                self.end(context, number, request, Err(Wrong::Time), false)?;
            }
        }
        match self.stage {
            Stage::Starting { asked_at } if is_over(asked_at) && self.work.goes_on => {
                self.start_clock(context)
            }
            Stage::Ending { asked_at } if is_over(asked_at) && self.work.goes_on => self.leave(context),
            Stage::Starting { asked_at } | Stage::Ending { asked_at } if is_over(asked_at) => {
                Err(Failure::new(format!(
                    "{} does not tell what it used within {} s",
                    self.responder.endpoint,
                    self.work.within.as_secs()
                )))
            }
            _ => Ok(()),
        }
    }
}

impl Side for Requester {
    fn begin(&mut self, context: &mut Context<'_>) -> Result<(), Failure> {
        self.started = Some(context.clock.now());
        self.go_on(context)
    }

    fn handle(&mut self, context: &mut Context<'_>, event: Event) -> Result<(), Failure> {
        match event {
            Event::Message { bytes, .. } => self.on_message(context, &bytes),
            Event::Writable(_) => self.outbox.retry(context).map_err(|refused| refused_text(&refused)),
            Event::PeerLost { error, .. } => self.on_lost(context, &error.to_string()),
            Event::Retracted { cookie, parts } => match self.coming_back.remove(&cookie) {
                Some(ended) => {
                    let parts = parts.map_err(|error| Failure::new(error.to_string()))?;
                    self.finish(context, ended, parts)
                }
                None => Ok(()),
            },
            Event::PeerUp(..)
            | Event::TransferDone { .. }
            | Event::RailLost { .. }
            | Event::Portal(_)
            | Event::Discovered { .. } => Ok(()),
        }
    }

    fn on_time(&mut self, context: &mut Context<'_>) -> Result<(), Failure> {
        if let (Stage::Timed { began }, Until::Time(time)) = (self.stage, self.work.until)
            && context.now >= began + time
        {
            self.stop_clock(context, began);
            return self.go_on(context);
        }
        if self.next_deadline().is_some_and(|deadline| deadline <= context.now) {
            self.overdue(context)?;
        }
        Ok(())
    }

    fn next_deadline(&self) -> Option<Instant> {
        let end = match (self.stage, self.work.until) {
            (Stage::Timed { began }, Until::Time(time)) => Some(began + time),
            (Stage::Starting { asked_at } | Stage::Ending { asked_at }, _) => {
                Some(asked_at + self.work.within)
            }
            _ => None,
        };
        let oldest = self.in_flight.first_key_value().map(|(_, request)| request.asked_at + self.work.within);
        [end, oldest].into_iter().flatten().min()
    }

    fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }
}

fn refused_text(refused: &verbs_net::Refused) -> Failure {
    Failure::new(format!("the net refuses a message: {refused}"))
}

/// Memory to write into. In one process a push hands over the responder's own memory: in its place comes a buffer of the same length.
fn unshared(parts: Vec<SharedBuffer>, arena: &Arena) -> Result<Vec<Buffer>, Failure> {
    let unshared = |part: SharedBuffer| {
        let bytes = part.len();
        part.try_unshare().or_else(|_| buffer(arena, bytes))
    };
    parts.into_iter().map(unshared).collect()
}

fn buffer(arena: &Arena, bytes: usize) -> Result<Buffer, Failure> {
    let buffer = arena.try_alloc(bytes);
    buffer.ok_or_else(|| Failure::new("the requester's arena is too small for what is in flight"))
}

/// Memory of one request: full buffers, and what is left.
fn parts(work: Work, arena: &Arena) -> Result<Vec<SharedBuffer>, Failure> {
    let mut parts = Vec::new();
    let mut left = if work.kind == Kind::Ping { 0 } else { work.bulk_bytes };
    while left > 0 {
        let bytes = left.min(BUFFER_BYTES_MAX);
        let mut buffer = buffer(arena, narrow(bytes))?;
        fastrand::Rng::with_seed(1).fill(&mut buffer);
        parts.push(buffer.freeze());
        left -= bytes;
    }
    Ok(parts)
}
