//! A client and a server on virtual time: the two pure machines of this crate, real item bytes between them, a network that
//! loses, doubles and delays what a test says. Nothing here sleeps; a story runs until both sides are idle.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base::{Endpoint, Instant, Nid};
use fops::Repeat;

use crate::PeerId;
use crate::holds::Holds;
use crate::item::{HEADER_BYTES, Header, Kind, Status};
use crate::limits;
use crate::misbehaviour::PeerMisbehaved;
use crate::reply_cache::ReplyBounds;
use crate::requester::{
    CallId, CallSpec, Failure, FailureKind, ReplyFor, Requester, RequesterLimits, Transmit, WaitedFor,
};
use crate::responder::{Decision, EstablishDecision, Responder, ResponderLimits, Ticket};
use crate::slot_record::{KEY_BYTES, SlotRecord, encode_value};

const LATENCY: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Deliver,
    Lose,
    Double,
    Delay(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

type Rule = Box<dyn FnMut(Side, &Header) -> Fate>;

struct Pair {
    now: Instant,
    client: Requester,
    server: Responder<Vec<u8>>,
    server_peer: PeerId,
    client_peer: PeerId,
    alive: bool,
    connected: bool,
    rule: Rule,
    order: u64,
    /// Messages on the way: (when, order) -> (to whom, bytes).
    wire: BTreeMap<(Instant, u64), (Side, Vec<u8>)>,
    /// Requests that run: (until, order) -> (which, tag).
    running: BTreeMap<(Instant, u64), (Ticket, u64)>,
    service_time: Box<dyn Fn(u64) -> Duration>,
    has_room: bool,
    /// The server holds every request back for its service time, and says so.
    holds_all: bool,
    /// And says that it takes as long as this.
    holds_until: Option<Duration>,
    holds: Holds,
    answers_repeated: u32,
    tags: BTreeMap<CallId, u64>,
    runs: BTreeMap<u64, u32>,
    /// Times each request's effect became durable.
    effects: BTreeMap<u64, u32>,
    results: BTreeMap<u64, Result<u64, Failure>>,
    misbehaved: Vec<PeerMisbehaved>,
    broken_cache: bool,
    /// The slots' records, if the server keeps any: they survive it.
    disk: Option<BTreeMap<[u8; KEY_BYTES], Vec<u8>>>,
    /// A restarted server does not look at them: for the test of the test.
    forgets_records: bool,
}

fn endpoint(tmid: u16) -> Endpoint {
    Endpoint { nid: Nid::LOOPBACK, pid: 1, portal: 34, tmid }
}

fn limits_of_client() -> RequesterLimits {
    RequesterLimits {
        slots_max: limits::SLOTS,
        resend_interval: Duration::from_millis(500),
        resend_interval_max: Duration::from_secs(4),
        hold_max: limits::HOLD_MAX,
        reconnect_interval: Duration::from_millis(20),
        reconnect_interval_max: Duration::from_secs(1),
        bug: None,
    }
}

fn limits_of_server(slots: u16) -> ResponderLimits {
    let replies = ReplyBounds { count_max: 1000, bytes_max: 1 << 20, lifetime: Duration::from_secs(90) };
    ResponderLimits {
        slots,
        sessions_max: 8,
        session_lifetime: Duration::from_secs(120),
        replies,
        durable_slots: false,
    }
}

impl Pair {
    fn new(slots: u16, broken_cache: bool) -> Pair {
        Pair {
            now: Instant::ZERO,
            client: Requester::new(limits_of_client()),
            server: Responder::new(100, limits_of_server(slots), broken_cache),
            server_peer: PeerId { endpoint: endpoint(1), epoch: 100 },
            client_peer: PeerId { endpoint: endpoint(2), epoch: 7 },
            alive: true,
            connected: false,
            rule: Box::new(|_, _| Fate::Deliver),
            order: 0,
            wire: BTreeMap::new(),
            running: BTreeMap::new(),
            service_time: Box::new(|_| Duration::from_millis(2)),
            has_room: true,
            holds_all: false,
            holds_until: None,
            holds: Holds::default(),
            answers_repeated: 0,
            tags: BTreeMap::new(),
            runs: BTreeMap::new(),
            effects: BTreeMap::new(),
            results: BTreeMap::new(),
            misbehaved: Vec::new(),
            broken_cache,
            disk: None,
            forgets_records: false,
        }
    }

    /// A server that keeps the slots' records. It has read them (there are none).
    fn durable() -> Pair {
        let mut pair = Pair::healthy();
        pair.disk = Some(BTreeMap::new());
        pair.restart();
        pair.server.adopt(pair.now, []);
        pair
    }

    fn healthy() -> Pair {
        Pair::new(limits::SLOTS, false)
    }

    fn call(&mut self, tag: u64, repeat: Repeat, seconds: u64) -> CallId {
        self.call_with(tag, repeat, seconds, None)
    }

    fn call_with(
        &mut self,
        tag: u64,
        repeat: Repeat,
        seconds: u64,
        unreachable_max: Option<Duration>,
    ) -> CallId {
        let deadline = self.now + Duration::from_secs(seconds);
        let spec = CallSpec { to: self.server_peer.endpoint, repeat, deadline, unreachable_max };
        let (id, _) = self.client.submit(self.now, spec);
        self.tags.insert(id, tag);
        self.pump();
        id
    }

    fn cancel(&mut self, id: CallId) {
        self.client.cancel(self.now, id);
        self.pump();
    }

    /// Loses what the rule says, once or always: `kinds` by side and kind.
    fn lose_first(&mut self, side: Side, is_kind: fn(&Kind) -> bool, mut count: u32) {
        self.rule = Box::new(move |to, header| {
            if to == side && is_kind(&header.kind) && count > 0 {
                count -= 1;
                return Fate::Lose;
            }
            Fate::Deliver
        });
    }

    fn send(&mut self, to: Side, header: &Header, body: &[u8]) {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes.extend_from_slice(body);
        let header = Header { body_bytes: u32::try_from(body.len()).unwrap(), ..*header };
        header.seal(&mut bytes);
        self.send_bytes(to, &header, bytes);
    }

    fn send_bytes(&mut self, to: Side, header: &Header, bytes: Vec<u8>) {
        if to == Side::Server && !self.connected {
            if !self.alive {
                self.client.on_peer_lost(self.now, self.server_peer.endpoint);
                return;
            }
            self.connected = true;
            self.client.on_peer_up(self.now, self.server_peer);
        }
        let (copies, latency) = match (self.rule)(to, header) {
            Fate::Deliver => (1, LATENCY),
            Fate::Lose => (0, LATENCY),
            Fate::Double => (2, LATENCY),
            Fate::Delay(by) => (1, by),
        };
        for _ in 0..copies {
            self.order += 1;
            self.wire.insert((self.now + latency, self.order), (to, bytes.clone()));
        }
    }

    fn pump(&mut self) {
        while let Some(transmit) = self.client.poll_transmit() {
            match transmit {
                Transmit::Establish { nonce, resume, .. } => {
                    let kind = if resume { Kind::Resume } else { Kind::Establish };
                    let header = Header::control(kind, Default::default(), 0, nonce);
                    self.send(Side::Server, &header, &[]);
                }
                Transmit::Request { call, session, slot, xid, deadline, .. } => {
                    let left = u32::try_from(deadline.since(self.now).as_millis()).unwrap();
                    let header = Header::control(Kind::Request { opcode: 1 }, session, slot, xid);
                    let tag = self.tags[&call];
                    self.send(Side::Server, &Header { time_left_ms: left, ..header }, &tag.to_le_bytes());
                }
                Transmit::Cancel { session, slot, xid, .. } => {
                    self.send(Side::Server, &Header::control(Kind::Cancel, session, slot, xid), &[]);
                }
            }
        }
        while let Some((id, failure)) = self.client.poll_failure() {
            self.results.insert(self.tags[&id], Err(failure));
        }
    }

    fn reply(&mut self, header: &Header, status: Status, body: &[u8]) -> Vec<u8> {
        let kind = Kind::Reply { status };
        let mut bytes = vec![0; HEADER_BYTES];
        bytes.extend_from_slice(body);
        let body_bytes = u32::try_from(body.len()).unwrap();
        let reply = Header { body_bytes, ..Header::control(kind, header.session, header.slot, header.xid) };
        reply.seal(&mut bytes);
        bytes
    }

    fn server_gets(&mut self, bytes: &[u8]) {
        let header = Header::parse(bytes).unwrap();
        let from = self.client_peer;
        let decision = match header.kind {
            Kind::Establish | Kind::Resume => {
                let decision = match header.kind {
                    Kind::Resume => self.server.handle_resume(self.now, from, header.xid),
                    _ => self.server.handle_establish(self.now, from, header.xid),
                };
                let slots = self.server.slots();
                let answer = match decision {
                    EstablishDecision::Resumed(id) => {
                        Header::control(Kind::Resumed { slots, lifetime_ms: 120_000 }, id, 0, header.xid)
                    }
                    EstablishDecision::Established(id) => {
                        let kind = Kind::Established { slots, lifetime_ms: 120_000 };
                        Header::control(kind, id, 0, header.xid)
                    }
                    EstablishDecision::Refused => {
                        Header::control(Kind::Refused, Default::default(), 0, header.xid)
                    }
                    EstablishDecision::Ignore => return,
                };
                return self.send(Side::Client, &answer, &[]);
            }
            Kind::Request { .. } => self.server.handle_request(self.now, from, &header, self.has_room),
            Kind::Cancel => self.server.handle_cancel(self.now, from, &header),
            other => panic!("{other:?}"),
        };
        match decision {
            Err(error) => {
                self.misbehaved.push(error);
                self.server.on_misbehaviour(self.now, from);
            }
            Ok(Decision::Execute(ticket)) => {
                let tag = u64::from_le_bytes(bytes[header.body_range()].try_into().unwrap());
                *self.runs.entry(tag).or_default() += 1;
                self.order += 1;
                let until = self.now + (self.service_time)(tag);
                if self.holds_all {
                    let told = self.holds_until.map_or(until, |holds| self.now + holds);
                    self.holds.begin(self.now, ticket, told);
                }
                self.running.insert((until, self.order), (ticket, tag));
            }
            Ok(Decision::Resend(reply)) => {
                let parsed = Header::parse(&reply).unwrap();
                self.send_bytes(Side::Client, &parsed, reply);
            }
            Ok(Decision::Replay(body)) => {
                let bytes = self.reply(&header, Status::Done, &body);
                self.send_bytes(Side::Client, &Header::parse(&bytes).unwrap(), bytes);
            }
            Ok(Decision::ReplyGone) => {
                let bytes = self.reply(&header, Status::Failed, &u64::MAX.to_le_bytes());
                self.send_bytes(Side::Client, &Header::parse(&bytes).unwrap(), bytes);
            }
            Ok(Decision::Dropped) => {
                let bytes = self.reply(&header, Status::Dropped, &[]);
                self.send_bytes(Side::Client, &Header::parse(&bytes).unwrap(), bytes);
            }
            Ok(Decision::Ended) => {
                let ended = Header::control(Kind::Ended, header.session, header.slot, header.xid);
                self.send(Side::Client, &ended, &[]);
            }
            Ok(Decision::StillRunning) => {
                let twin = self.holds.answer_twin(self.now, header.session, header.slot, header.xid);
                if let Some(notice) = twin {
                    self.send(Side::Client, &notice.header, &[]);
                }
            }
            Ok(Decision::Ignore) => {}
        }
    }

    fn client_gets(&mut self, bytes: &[u8]) {
        let header = Header::parse(bytes).unwrap();
        let from = self.server_peer;
        // Which call a reply belongs to is known to the machine only; the body repeats the tag for the test to compare.
        match header.kind {
            Kind::Established { slots, lifetime_ms } => {
                let lifetime = Duration::from_millis(lifetime_ms.into());
                self.client.handle_established(self.now, from, &header, slots, lifetime, false);
            }
            Kind::Resumed { slots, lifetime_ms } => {
                let lifetime = Duration::from_millis(lifetime_ms.into());
                self.client.handle_established(self.now, from, &header, slots, lifetime, true);
            }
            Kind::Refused => self.client.handle_refused(from, &header),
            Kind::Ended => self.client.handle_ended(self.now, from, &header),
            Kind::Held { time_left_ms } => {
                let left = Duration::from_millis(time_left_ms.into());
                if let Err(error) = self.client.handle_held(self.now, from, &header, left) {
                    self.misbehaved.push(error);
                }
            }
            Kind::Reply { .. } => match self.client.handle_reply(self.now, from, &header) {
                Ok(ReplyFor::Call(id)) => {
                    let body = u64::from_le_bytes(bytes[header.body_range()].try_into().unwrap());
                    let before = self.results.insert(self.tags[&id], Ok(body));
                    assert!(before.is_none(), "a call ends once");
                }
                Ok(ReplyFor::Orphan(_) | ReplyFor::Nobody) => {}
                Err(error) => self.misbehaved.push(error),
            },
            other => panic!("{other:?}"),
        }
    }

    fn step(&mut self, until: Instant) -> bool {
        self.pump();
        let times = [
            self.wire.keys().next().map(|(at, _)| *at),
            self.running.keys().next().map(|(at, _)| *at),
            self.client.next_deadline(),
            self.server.next_deadline(),
            self.holds.next_deadline(),
        ];
        let Some(next) = times.into_iter().flatten().min().filter(|at| *at <= until) else { return false };
        self.now = self.now.max(next);
        while let Some(entry) = self.wire.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let (to, bytes) = entry.remove();
            match to {
                Side::Server => self.server_gets(&bytes),
                Side::Client => self.client_gets(&bytes),
            }
        }
        while let Some(entry) = self.running.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let (ticket, tag) = entry.remove();
            self.holds.end(ticket);
            self.commit(ticket, tag);
            let header =
                Header::control(Kind::Request { opcode: 1 }, ticket.session, ticket.slot, ticket.xid);
            let bytes = self.reply(&header, Status::Done, &tag.to_le_bytes());
            self.holds.answered(self.now, ticket, None);
            if self.server.finish(self.now, ticket, bytes.clone()) {
                self.send_bytes(Side::Client, &Header::parse(&bytes).unwrap(), bytes);
            }
        }
        self.client.handle_timeouts(self.now);
        self.server.handle_timeouts(self.now);
        while let Some(notice) = self.holds.poll_notice(self.now) {
            self.send(Side::Client, &notice.header, &[]);
        }
        while let Some(repeat) = self.holds.poll_repeat(self.now) {
            if let Some(bytes) = self.server.kept_reply(repeat.ticket) {
                self.holds.repeated(self.now, repeat);
                self.answers_repeated += 1;
                self.send_bytes(Side::Client, &Header::parse(&bytes).unwrap(), bytes);
            }
        }
        self.pump();
        true
    }

    /// Runs for a while of virtual time.
    fn run(&mut self, duration: Duration) {
        let until = self.now + duration;
        while self.step(until) {}
        self.now = until;
    }

    /// Runs until every call has a result.
    fn drive(&mut self) {
        for _ in 0..100_000 {
            if self.tags.values().all(|tag| self.results.contains_key(tag)) {
                return;
            }
            assert!(self.step(Instant::NEVER), "calls are left without anything to wait for");
        }
        panic!("not idle after 100000 steps");
    }

    /// The server's process dies; everything on the way and in memory is gone.
    fn crash(&mut self) {
        self.alive = false;
        self.connected = false;
        self.wire.clear();
        self.running.clear();
        self.holds = Holds::default();
        self.client.on_peer_lost(self.now, self.server_peer.endpoint);
        self.pump();
    }

    fn restart(&mut self) {
        self.alive = true;
        self.server_peer.epoch += 1;
        let limits =
            ResponderLimits { durable_slots: self.disk.is_some(), ..limits_of_server(limits::SLOTS) };
        self.server = Responder::new(self.server_peer.epoch, limits, self.broken_cache);
    }

    /// The restarted server has read its disk.
    fn adopt(&mut self) {
        let disk = self.disk.as_ref().unwrap();
        let records = disk
            .iter()
            .filter(|_| !self.forgets_records)
            .map(|(key, value)| SlotRecord::parse(key, value).unwrap());
        self.server.adopt(self.now, records);
    }

    /// The effect of a running request becomes durable, with its slot's record.
    fn commit(&mut self, ticket: Ticket, tag: u64) {
        if let Some(disk) = &mut self.disk {
            self.server.on_record(self.now, ticket);
            *self.effects.entry(tag).or_default() += 1;
            let value = encode_value(ticket.xid, &tag.to_le_bytes());
            disk.insert(ticket.name().key(ticket.slot), value);
        }
    }

    fn break_connection(&mut self) {
        self.connected = false;
        self.wire.clear();
        self.client.on_peer_lost(self.now, self.server_peer.endpoint);
        self.server.on_peer_lost(self.client_peer);
        self.pump();
    }
}

fn is_request(kind: &Kind) -> bool {
    matches!(kind, Kind::Request { .. })
}

fn is_reply(kind: &Kind) -> bool {
    matches!(kind, Kind::Reply { .. })
}

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[test]
fn a_call_opens_a_session_and_is_answered() {
    let mut pair = Pair::healthy();
    pair.call(1, Repeat::AtMostOnce, 10);
    pair.drive();
    assert_eq!(pair.results[&1], Ok(1));
    assert_eq!(
        pair.now.as_nanos(),
        6_000_000,
        "two round trips of 2 ms and 2 ms of service: nothing was waited for"
    );
    pair.call(2, Repeat::AtMostOnce, 10);
    pair.drive();
    assert_eq!((pair.server.stats().0.sessions_opened, pair.client.stats().resends), (1, 0));
}

#[test]
fn a_lost_request_is_sent_again() {
    let mut pair = Pair::healthy();
    pair.lose_first(Side::Server, is_request, 2);
    pair.call(1, Repeat::AtMostOnce, 10);
    pair.drive();
    assert_eq!((pair.results[&1], pair.runs[&1], pair.client.stats().resends), (Ok(1), 1, 2));
}

/// A reply is lost twice: how often did the request run?
fn runs_when_replies_are_lost(broken_cache: bool) -> (Result<u64, Failure>, u32) {
    let mut pair = Pair::new(limits::SLOTS, broken_cache);
    pair.lose_first(Side::Client, is_reply, 2);
    pair.call(1, Repeat::AtMostOnce, 10);
    pair.drive();
    (pair.results[&1], pair.runs[&1])
}

#[test]
fn a_lost_reply_is_answered_from_the_cache() {
    assert_eq!(runs_when_replies_are_lost(false), (Ok(1), 1));
}

#[test]
fn without_the_reply_cache_the_test_above_would_fail() {
    assert_eq!(runs_when_replies_are_lost(true).1, 3);
}

#[test]
fn twins_run_once() {
    let mut pair = Pair::healthy();
    pair.rule = Box::new(|_, _| Fate::Double);
    pair.service_time = Box::new(|_| millis(1200)); // resends come while it runs
    for tag in 0..10 {
        pair.call(tag, Repeat::AtMostOnce, 10);
    }
    pair.drive();
    pair.run(Duration::from_secs(5));
    assert!(pair.runs.values().all(|runs| *runs == 1), "{:?}", pair.runs);
    assert!(pair.client.stats().late_replies >= 10);
    assert!(pair.server.stats().1.in_progress_hits >= 10);
    assert!(pair.misbehaved.is_empty(), "{:?}", pair.misbehaved);
}

/// A server that holds a request back for `seconds`.
fn holding(seconds: u64) -> Pair {
    let mut pair = Pair::healthy();
    pair.holds_all = true;
    pair.service_time = Box::new(move |_| Duration::from_secs(seconds));
    pair
}

fn is_held(kind: &Kind) -> bool {
    matches!(kind, Kind::Held { .. })
}

#[test]
fn a_held_request_is_not_sent_again_until_its_time() {
    let mut pair = holding(12);
    pair.call(1, Repeat::AtMostOnce, 30);
    pair.drive();
    assert_eq!((pair.results[&1], pair.runs[&1]), (Ok(1), 1));
    assert_eq!((pair.client.stats().resends, pair.client.stats().held), (0, 1));
    // Without the word: after 0.5, 1.5, 3.5, 7.5 and 11.5 s.
    let mut pair = holding(12);
    pair.holds_all = false;
    pair.call(1, Repeat::AtMostOnce, 30);
    pair.drive();
    assert_eq!((pair.client.stats().resends, pair.client.stats().held), (5, 0));
}

#[test]
fn a_lost_word_is_said_again_to_the_twin() {
    let mut pair = holding(12);
    pair.lose_first(Side::Client, is_held, 1);
    pair.call(1, Repeat::AtMostOnce, 30);
    pair.drive();
    assert_eq!((pair.results[&1], pair.runs[&1]), (Ok(1), 1));
    assert_eq!((pair.client.stats().resends, pair.client.stats().held), (1, 1));
}

#[test]
fn a_lost_request_is_sent_again_as_soon_as_ever_and_a_lost_answer_before_anybody_asks() {
    let mut pair = holding(5);
    pair.lose_first(Side::Server, is_request, 1);
    pair.call(1, Repeat::AtMostOnce, 30);
    pair.run(millis(600));
    assert_eq!((pair.runs.get(&1), pair.client.stats().resends), (Some(&1), 1));
    pair.drive();
    let mut pair = holding(5);
    pair.lose_first(Side::Client, is_reply, 1);
    pair.call(1, Repeat::AtMostOnce, 30);
    pair.drive();
    assert_eq!((pair.results[&1], pair.runs[&1], pair.client.stats().resends), (Ok(1), 1, 0));
    assert!(pair.now < Instant::ZERO + millis(5300), "{:?}: a quarter of a second after the hold", pair.now);
    // Once more lost: asked for half a second after the hold.
    let mut pair = holding(5);
    pair.lose_first(Side::Client, is_reply, 2);
    pair.call(1, Repeat::AtMostOnce, 30);
    pair.drive();
    assert_eq!((pair.results[&1], pair.runs[&1], pair.client.stats().resends), (Ok(1), 1, 1));
    assert!(pair.now < Instant::ZERO + millis(5600), "{:?}", pair.now);
}

#[test]
fn the_lost_answer_of_a_hold_that_ended_early_comes_again_unasked() {
    let mut pair = holding(12);
    pair.holds_until = Some(Duration::from_secs(20)); // it is over after 12
    pair.lose_first(Side::Client, is_reply, 2);
    pair.call(1, Repeat::AtMostOnce, 30);
    pair.drive();
    assert_eq!((pair.results[&1], pair.runs[&1], pair.client.stats().resends), (Ok(1), 1, 0));
    assert_eq!(pair.answers_repeated, 2);
    assert!(pair.now < Instant::ZERO + millis(12_900), "{:?}: 0.75 s after the answer", pair.now);
    // The slot's next request ends it, whether that is held or not.
    pair.holds_all = false;
    pair.service_time = Box::new(|_| millis(1));
    pair.call(2, Repeat::AtMostOnce, 30);
    pair.run(Duration::from_secs(30));
    assert_eq!((pair.answers_repeated, pair.holds.next_deadline()), (2, None));
    // Nobody is sent anything over a connection that is gone: whoever has it back asks.
    let mut pair = holding(12);
    pair.holds_until = Some(Duration::from_secs(20));
    pair.rule =
        Box::new(
            |to, header| {
                if to == Side::Client && is_reply(&header.kind) { Fate::Lose } else { Fate::Deliver }
            },
        );
    pair.call(1, Repeat::AtMostOnce, 30);
    pair.run(millis(12_100));
    pair.rule = Box::new(|_, _| Fate::Deliver);
    pair.break_connection();
    pair.drive();
    assert_eq!((pair.results[&1], pair.runs[&1]), (Ok(1), 1));
    assert_eq!((pair.client.stats().resends, pair.answers_repeated), (1, 0));
}

#[test]
fn a_hold_does_not_outlast_its_bound_nor_its_connection() {
    let mut pair = holding(40); // longer than HOLD_MAX
    pair.call(1, Repeat::AtMostOnce, 50);
    pair.drive();
    assert_eq!((pair.runs[&1], pair.client.stats().resends), (1, 2), "asked after 15.8 and 31.3 s");
    let mut pair = holding(10);
    pair.call(1, Repeat::AtMostOnce, 30);
    pair.run(Duration::from_secs(2));
    assert_eq!(pair.client.stats().resends, 0);
    pair.break_connection();
    pair.run(millis(100));
    assert_eq!(pair.client.stats().resends, 1, "at once: the server may have lost it");
    pair.drive();
    assert_eq!((pair.results[&1], pair.runs[&1]), (Ok(1), 1));
}

#[test]
fn a_cancelled_call_that_is_held_is_told_rarely() {
    let mut pair = holding(12);
    let id = pair.call(1, Repeat::AtMostOnce, 30);
    pair.run(Duration::from_secs(1));
    pair.cancel(id);
    pair.run(Duration::from_secs(10));
    let told = pair.client.stats().held;
    assert!((1..=2).contains(&told), "{told} words");
    pair.run(Duration::from_secs(3));
    assert_eq!((pair.client.calls_count(), pair.runs[&1]), (0, 1), "the answer frees its slot");
}

#[test]
fn a_request_that_arrives_late_does_not_run_again() {
    let mut pair = Pair::healthy();
    let mut first = true;
    pair.rule = Box::new(move |_, header| {
        let delay = is_request(&header.kind) && std::mem::take(&mut first);
        if delay { Fate::Delay(millis(800)) } else { Fate::Deliver }
    });
    pair.call(1, Repeat::AtMostOnce, 10);
    pair.drive();
    pair.call(2, Repeat::AtMostOnce, 10); // the slot moves on before the twin arrives
    pair.run(Duration::from_secs(2));
    assert_eq!((pair.results[&1], pair.results[&2]), (Ok(1), Ok(2)));
    assert_eq!((pair.runs[&1], pair.runs[&2]), (1, 1));
    assert_eq!(pair.server.stats().1.stale, 1);
}

#[test]
fn a_broken_connection_is_mended_at_once_and_the_session_goes_on() {
    let mut pair = Pair::healthy();
    pair.service_time = Box::new(|_| millis(100));
    pair.call(1, Repeat::AtMostOnce, 10);
    pair.run(millis(50));
    pair.break_connection();
    pair.drive();
    assert_eq!((pair.results[&1], pair.runs[&1]), (Ok(1), 1));
    assert!(pair.now < Instant::ZERO + millis(200), "{:?}: no resend interval was waited for", pair.now);
    assert_eq!(pair.server.stats().0.sessions_opened, 1);
    let stats = pair.client.stats();
    assert_eq!((stats.resends, stats.repeated), (1, 0), "in its session it runs once");
}

#[test]
fn after_a_restart_what_may_repeat_repeats_and_the_rest_is_told() {
    let mut pair = Pair::healthy();
    pair.service_time = Box::new(|_| millis(100));
    pair.call(1, Repeat::Idempotent, 10);
    pair.call(2, Repeat::AtMostOnce, 10);
    pair.run(millis(50));
    pair.crash();
    pair.call(3, Repeat::AtMostOnce, 10); // never sent to the old incarnation
    pair.run(millis(300));
    assert!(pair.results.is_empty());
    pair.restart();
    pair.drive();
    assert_eq!((pair.results[&1], pair.runs[&1]), (Ok(1), 2));
    let stats = pair.client.stats();
    assert_eq!(
        (stats.resends, stats.repeated),
        (1, 1),
        "the first one, and who asks can tell that it may have run twice"
    );
    let failure = pair.results[&2].unwrap_err();
    assert_eq!((failure.kind, failure.may_have_executed), (FailureKind::SessionLost, true));
    assert_eq!(pair.runs[&2], 1, "it ran before the crash and not again");
    assert_eq!((pair.results[&3], pair.runs[&3]), (Ok(3), 1));
}

#[test]
fn after_a_restart_with_durable_slots_nothing_is_lost_and_nothing_runs_twice() {
    let mut pair = Pair::durable();
    pair.service_time = Box::new(|tag| if tag == 2 { millis(500) } else { millis(10) });
    pair.rule = Box::new(|to, header| match (to, is_reply(&header.kind)) {
        (Side::Client, true) => Fate::Lose,
        _ => Fate::Deliver,
    });
    pair.call(1, Repeat::AtMostOnce, 20); // committed, its reply lost
    pair.call(2, Repeat::AtMostOnce, 20); // runs when the server dies: no effect
    pair.call(4, Repeat::Idempotent, 20);
    pair.run(millis(100));
    pair.crash();
    pair.call(3, Repeat::AtMostOnce, 20); // never sent before
    pair.run(millis(300));
    pair.restart();
    pair.rule = Box::new(|_, _| Fate::Deliver);
    pair.run(millis(300));
    assert!(pair.results.is_empty(), "until the records are read nobody is answered");
    pair.adopt();
    pair.drive();
    assert_eq!(pair.results, (1..5).map(|tag| (tag, Ok(tag))).collect());
    assert_eq!((pair.effects[&1], pair.runs[&1]), (1, 1), "answered from its record");
    assert_eq!((pair.effects[&2], pair.runs[&2]), (1, 2), "the first run had no effect");
    assert_eq!((pair.effects[&3], pair.misbehaved.len()), (1, 0));
    assert_eq!(pair.client.stats().sessions_resumed, 1);
}

#[test]
fn a_client_in_no_doubt_does_not_wait_for_records_to_be_read() {
    let mut pair = Pair::durable();
    pair.call(1, Repeat::AtMostOnce, 20);
    pair.drive();
    pair.crash();
    pair.call(2, Repeat::Idempotent, 20);
    pair.run(millis(100));
    pair.restart();
    pair.drive(); // without adopt
    assert_eq!((pair.results[&2], pair.client.stats().sessions_resumed), (Ok(2), 0));
}

#[test]
fn a_session_of_which_nothing_was_heard_for_long_is_not_asked_for() {
    let mut pair = Pair::durable();
    pair.rule = Box::new(|to, header| match (to, is_reply(&header.kind)) {
        (Side::Client, true) => Fate::Lose,
        _ => Fate::Deliver,
    });
    pair.call(1, Repeat::AtMostOnce, 600);
    pair.run(millis(50));
    pair.crash();
    pair.run(Duration::from_secs(61));
    pair.restart();
    pair.adopt();
    pair.rule = Box::new(|_, _| Fate::Deliver);
    pair.drive();
    let failure = pair.results[&1].unwrap_err();
    assert_eq!((failure.kind, failure.may_have_executed), (FailureKind::SessionLost, true));
    assert_eq!(pair.effects[&1], 1);
}

#[test]
fn a_restart_between_calls_is_not_noticed() {
    let mut pair = Pair::healthy();
    pair.call(1, Repeat::AtMostOnce, 10);
    pair.drive();
    pair.crash();
    pair.restart();
    for tag in 2..50 {
        pair.call(tag, Repeat::AtMostOnce, 10);
    }
    pair.drive();
    assert!((2..50).all(|tag| pair.results[&tag] == Ok(tag) && pair.runs[&tag] == 1));
}

#[test]
fn a_call_ends_at_its_deadline_and_says_what_it_waited_for() {
    let mut pair = Pair::healthy();
    pair.rule =
        Box::new(
            |to, header| {
                if to == Side::Client && is_reply(&header.kind) { Fate::Lose } else { Fate::Deliver }
            },
        );
    pair.call(1, Repeat::AtMostOnce, 3);
    pair.drive();
    let failure = pair.results[&1].unwrap_err();
    assert_eq!(failure.kind, FailureKind::TimedOut);
    assert_eq!((failure.waited_for, failure.resends, failure.may_have_executed), (WaitedFor::Reply, 2, true));
    assert_eq!(failure.age, Duration::from_secs(3));
    let mut pair = Pair::healthy();
    pair.rule = Box::new(|_, _| Fate::Lose);
    pair.call(1, Repeat::AtMostOnce, 3);
    pair.drive();
    let failure = pair.results[&1].unwrap_err();
    assert_eq!((failure.waited_for, failure.may_have_executed), (WaitedFor::Session, false));
    pair.run(Duration::from_secs(60));
    assert_eq!(pair.client.next_deadline(), None, "nothing is tried for nobody");
    pair.alive = false;
    pair.connected = false;
    pair.call(2, Repeat::AtMostOnce, 3);
    pair.call_with(3, Repeat::AtMostOnce, 30, Some(millis(300)));
    pair.drive();
    assert_eq!(pair.results[&2].unwrap_err().waited_for, WaitedFor::Connection);
    let failure = pair.results[&3].unwrap_err();
    assert_eq!((failure.kind, failure.age), (FailureKind::Unreachable, millis(300)));
}

#[test]
fn one_slow_request_holds_its_slot_only() {
    let mut pair = Pair::new(4, false);
    pair.service_time = Box::new(|tag| if tag == 0 { Duration::from_secs(3) } else { millis(2) });
    for tag in 0..100 {
        pair.call(tag, Repeat::AtMostOnce, 10);
    }
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.results.len(), 99, "100 calls over 4 slots, one of which is taken");
    pair.drive();
    assert!(pair.runs.values().all(|runs| *runs == 1));
}

#[test]
fn a_cancelled_call_gives_its_slot_back_only_when_the_server_is_done_with_it() {
    let mut pair = Pair::new(1, false);
    pair.service_time = Box::new(|_| millis(700));
    let id = pair.call(1, Repeat::AtMostOnce, 10);
    pair.run(millis(50));
    pair.cancel(id);
    pair.tags.remove(&id);
    assert_eq!(pair.client.orphans_count(), 1);
    pair.tags.insert(CallId(0), 0);
    pair.results.insert(0, Ok(0));
    pair.call(2, Repeat::AtMostOnce, 10);
    pair.run(millis(600));
    assert_eq!(pair.runs.get(&2), None, "the slot is taken");
    pair.drive();
    assert_eq!((pair.results[&2], pair.client.orphans_count()), (Ok(2), 0));
    assert!(pair.misbehaved.is_empty(), "{:?}", pair.misbehaved);
}

#[test]
fn a_cancelled_call_that_never_arrived_never_runs() {
    let mut pair = Pair::new(1, false);
    pair.call(9, Repeat::AtMostOnce, 10);
    pair.drive();
    let mut first = true;
    pair.rule = Box::new(move |_, header| {
        let delay = is_request(&header.kind) && std::mem::take(&mut first);
        if delay { Fate::Delay(millis(100)) } else { Fate::Deliver }
    });
    let id = pair.call(1, Repeat::AtMostOnce, 10);
    pair.cancel(id);
    pair.tags.remove(&id);
    pair.call(2, Repeat::AtMostOnce, 10);
    pair.run(Duration::from_secs(1));
    assert_eq!((pair.results[&2], pair.runs.get(&1)), (Ok(2), None));
    assert!(pair.misbehaved.is_empty(), "{:?}", pair.misbehaved);
    assert_eq!(pair.client.calls_count(), 0);
}

#[test]
fn without_room_the_resend_finds_some() {
    let mut pair = Pair::healthy();
    pair.has_room = false;
    pair.call(1, Repeat::AtMostOnce, 10);
    pair.run(millis(700));
    assert!(pair.runs.is_empty());
    pair.has_room = true;
    pair.drive();
    assert_eq!((pair.results[&1], pair.runs[&1]), (Ok(1), 1));
}

#[test]
fn a_session_that_ended_while_its_client_was_idle_is_replaced_unnoticed() {
    let mut pair = Pair::healthy();
    pair.call(1, Repeat::AtMostOnce, 10);
    pair.drive();
    pair.run(Duration::from_secs(400));
    assert_eq!(pair.server.sessions_count(), 0);
    pair.call(2, Repeat::AtMostOnce, 10);
    pair.drive();
    assert_eq!(pair.results[&2], Ok(2));
    // The server gave it up early (a full table): the client does not know, and still nothing runs twice or fails.
    pair.server.on_misbehaviour(pair.now, pair.client_peer);
    pair.call(3, Repeat::AtMostOnce, 10);
    pair.drive();
    assert_eq!((pair.results[&3], pair.runs[&3]), (Ok(3), 1));
}

#[test]
fn a_reply_to_nothing_is_misbehaviour() {
    let mut pair = Pair::healthy();
    pair.call(1, Repeat::AtMostOnce, 10);
    pair.drive();
    let session = crate::item::SessionId(0);
    let unknown = Header::control(Kind::Reply { status: Status::Done }, session, 0, crate::item::Xid(2));
    assert_eq!(pair.client.handle_reply(pair.now, pair.server_peer, &unknown), Ok(ReplyFor::Nobody));
    let mut tried = BTreeSet::new();
    pair.rule = Box::new(|_, _| Fate::Deliver);
    for session in pair.server_sessions() {
        for (slot, xid) in [(0, 5), (64, 1)] {
            let kind = Kind::Reply { status: Status::Done };
            let bad = Header::control(kind, session, slot, crate::item::Xid(xid));
            assert!(pair.client.handle_reply(pair.now, pair.server_peer, &bad).is_err());
            tried.insert(slot);
        }
    }
    assert_eq!(tried.len(), 2);
}

/// Everything at once, from many seeds: each call ends once, and none that may run at most once runs twice.
fn storm(seed: u64, mut pair: Pair) -> Pair {
    let is_durable = pair.disk.is_some();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let mut network = random(u64::MAX);
    pair.rule = Box::new(move |_, _| {
        network = network.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        match (network >> 33) % 10 {
            0 => Fate::Lose,
            1 => Fate::Double,
            2 => Fate::Delay(millis(1 + (network >> 40) % 1500)),
            _ => Fate::Deliver,
        }
    });
    pair.service_time = Box::new(|tag| millis(1 + (tag * 37) % 900));
    for tag in 0..120 {
        let repeat = if tag % 3 == 0 { Repeat::Idempotent } else { Repeat::AtMostOnce };
        let id = pair.call(tag, repeat, 5 + random(30));
        pair.run(millis(random(60)));
        match random(12) {
            0 if !pair.results.contains_key(&tag) => {
                pair.cancel(id);
                pair.tags.remove(&id);
            }
            1 => pair.break_connection(),
            2 | 3 if tag % 40 == 7 || is_durable => {
                pair.crash();
                pair.run(millis(random(400)));
                pair.restart();
                if is_durable {
                    pair.run(millis(random(2) * random(400)));
                    pair.adopt();
                }
            }
            _ => {}
        }
    }
    pair.drive();
    pair.run(Duration::from_secs(300));
    assert!(pair.misbehaved.is_empty(), "seed {seed}: {:?}", pair.misbehaved);
    assert_eq!(pair.client.orphans_count(), 0, "seed {seed}: every slot comes back");
    pair
}

/// Of the requests that may run at most once: the worst, in runs and in durable effects.
fn worst(pair: &Pair) -> (u32, u32) {
    let of = |counts: &BTreeMap<u64, u32>| {
        counts.iter().filter(|(tag, _)| *tag % 3 != 0).map(|(_, count)| *count).max().unwrap_or(0)
    };
    (of(&pair.runs), of(&pair.effects))
}

fn answered(pair: &Pair) -> usize {
    pair.results.values().filter(|result| result.is_ok()).count()
}

#[test]
fn storms_run_nothing_twice() {
    for seed in 1..=40 {
        let pair = storm(seed, Pair::new(8, false));
        assert_eq!(worst(&pair).0, 1, "seed {seed}");
        assert!(answered(&pair) > 60, "seed {seed}: {}", answered(&pair));
    }
}

#[test]
fn storms_with_restarts_have_each_effect_once_and_lose_no_session() {
    let (mut resumed, mut replays) = (0, 0);
    for seed in 1..=60 {
        let pair = storm(seed, Pair::durable());
        assert_eq!(worst(&pair).1, 1, "seed {seed}");
        for (tag, result) in &pair.results {
            let effects = pair.effects.get(tag).copied().unwrap_or(0);
            assert!(result.is_err() || effects >= 1, "seed {seed}: {tag} was answered and had no effect");
            let lost = result.is_err_and(|failure| failure.kind == FailureKind::SessionLost);
            assert!(!lost, "seed {seed}: {tag}: every restart left its records");
        }
        assert!(answered(&pair) > 60, "seed {seed}: {}", answered(&pair));
        resumed += pair.client.stats().sessions_resumed;
        replays += pair.server.stats().1.replays;
    }
    assert!(
        resumed > 60 && replays > 10,
        "{resumed} sessions were resumed, {replays} replies came from records"
    );
}

#[test]
fn without_the_records_the_test_above_would_fail() {
    let is_found = (1..=20).any(|seed| {
        let mut pair = Pair::durable();
        pair.forgets_records = true;
        worst(&storm(seed, pair)).1 > 1
    });
    assert!(is_found);
}

impl Pair {
    fn server_sessions(&self) -> Vec<crate::item::SessionId> {
        self.server.session_ids()
    }
}
