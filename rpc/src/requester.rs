//! The asking side of sessions: which call waits, which is in which slot, when to send it again, and when to give up.
//!
//! Pure: time, answers and lost connections come in through `handle_*` and `on_*`; [`Requester::poll_transmit`] says what to send,
//! [`Requester::poll_failure`] which calls ended without an answer. No bytes pass through here: the machine keeps each call's.
//!
//! A session is opened when the first call to a peer needs one. After a lost connection nothing is sent in it until the
//! server has confirmed it: the wish for a session is repeated with the same nonce, and the same id in the answer means that the
//! server still knows every slot. A server that restarted and keeps durable slots gives another id with the word `Resumed`: slots
//! and numbers go on, and every request in flight is sent again, as its server can tell what ran. Another id without that word
//! means that it cannot (it gave the session up, or keeps nothing): calls that may be repeated go into the new session,
//! calls that may run at most once and were sent end with `may_have_executed`. Nobody asks for a session back of which nothing
//! was heard for half its lifetime: so a server that has no record of it knows that nothing ran; where a record may have gone with its device, it says that
//! ([`crate::Fom::doubt`]), and the call ends with `ReplyGone`.
//!
//! A server that holds a request back on purpose says for how long ([`Requester::handle_held`]): it is sent again only after that, and a resend
//! interval later, so that an answer at the last moment comes first. A lost connection ends the wait.
//!
//! A call that nobody waits for any more (cancelled, timed out) leaves an orphan in its slot: the server is told, and the slot is
//! used again only after its answer, or in a new session.
//!
//! Bound: one record per call that the local process makes; calls beyond the slots wait in order. Thread: the owning locality.
//! **Invariant**: a slot is free, or names one call whose state names that slot.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::time::Duration;

use base::{Endpoint, Instant, LookupMap};
use fops::Repeat;

use crate::bug::Bug;
use crate::deadlines::Deadlines;
use crate::item::{Header, Kind, SessionId, Status, Xid};
use crate::misbehaviour::PeerMisbehaved;
use verbs_net::PeerId;

/// Intervals of the asking side.
#[derive(Clone, Copy, Debug)]
pub struct RequesterLimits {
    /// Most slots used of a session, whatever the server offers.
    pub slots_max: u16,
    /// From a request to its first resend; doubles.
    pub resend_interval: Duration,
    /// Upper end of the doubling.
    pub resend_interval_max: Duration,
    /// Longest time for which a request that its server holds is not sent again.
    pub hold_max: Duration,
    /// From a lost connection to the first attempt at another; doubles.
    pub reconnect_interval: Duration,
    /// Upper end of the doubling.
    pub reconnect_interval_max: Duration,
    /// For tests that show that tests can fail.
    pub bug: Option<Bug>,
}

/// Names a call in this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// What the asking side has to know of a call.
#[derive(Clone, Copy, Debug)]
pub struct CallSpec {
    /// Whom to ask.
    pub to: Endpoint,
    /// Whether the request may run again in another session.
    pub repeat: Repeat,
    /// When to give up.
    pub deadline: Instant,
    /// Give up earlier if the peer has been out of reach (no connection) for this long.
    pub unreachable_max: Option<Duration>,
}

/// Something to send now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transmit {
    /// The wish for a session.
    Establish {
        /// Whom to ask.
        to: Endpoint,
        /// Which wish.
        nonce: Xid,
        /// There was a session of this number, and the wish is for that one.
        resume: bool,
    },
    /// A call's request, for the first time or again.
    Request {
        /// The call.
        call: CallId,
        /// The server, in the incarnation that made the session.
        to: PeerId,
        /// The session.
        session: SessionId,
        /// Slot in it.
        slot: u16,
        /// Number in the slot.
        xid: Xid,
        /// Travels as time left.
        deadline: Instant,
    },
    /// A call is no longer wanted.
    Cancel {
        /// The server.
        to: PeerId,
        /// The session.
        session: SessionId,
        /// Slot in it.
        slot: u16,
        /// Number in the slot.
        xid: Xid,
    },
}

/// What a call was waiting for when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitedFor {
    /// A buffer for the request: the arena is full.
    Memory,
    /// A connection to the peer.
    Connection,
    /// A session: the peer did not answer the wish for one.
    Session,
    /// A session: the peer said that it has no room for one.
    SessionRefused,
    /// A free slot: as many requests as the session has slots are in flight.
    Slot,
    /// The reply.
    Reply,
}

impl fmt::Display for WaitedFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WaitedFor::Memory => "no free buffer for the request: the arena is too small for the load",
            WaitedFor::Connection => "no connection",
            WaitedFor::Session => "no answer to the wish for a session",
            WaitedFor::SessionRefused => "the peer has no room for a session",
            WaitedFor::Slot => "every slot of the session is in use",
            WaitedFor::Reply => "no reply",
        })
    }
}

/// Why a call ended without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// Its deadline passed.
    TimedOut,
    /// The peer was out of reach for longer than the call allows.
    Unreachable,
    /// The session ended (the server restarted or gave it up) after the request was sent, and it may run at most once.
    SessionLost,
    /// The peer will not talk to us: another try does not help.
    Refused,
}

impl FailureKind {
    /// Its number in records of ADDB.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            FailureKind::TimedOut => 1,
            FailureKind::Unreachable => 2,
            FailureKind::SessionLost => 3,
            FailureKind::Refused => 4,
        }
    }
}

/// A call that ended without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Why.
    pub kind: FailureKind,
    /// What it waited for.
    pub waited_for: WaitedFor,
    /// How long ago it was made.
    pub age: Duration,
    /// Times it was sent again.
    pub resends: u32,
    /// Whether it was sent, and so may have run.
    pub may_have_executed: bool,
}

/// Whom a reply is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyFor {
    /// This call: it is done.
    Call(CallId),
    /// A call that is no longer wanted: the server is done with it, and with its memory.
    Orphan(CallId),
    /// Nobody: a duplicate.
    Nobody,
}

/// Counters of the asking side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequesterStats {
    /// Calls made.
    pub calls: u64,
    /// Requests sent again, in their session or in another.
    pub resends: u64,
    /// Those of them that had been sent in another session before: such a request may have run in both.
    pub repeated: u64,
    /// Words of servers that a request is held.
    pub held: u64,
    /// Replies that nobody waited for.
    pub late_replies: u64,
    /// Calls that ended at their deadline.
    pub timeouts: u64,
    /// Calls cancelled by their caller.
    pub cancelled: u64,
    /// Sessions that were opened.
    pub sessions_opened: u64,
    /// Sessions that ended while calls were in them.
    pub sessions_lost: u64,
    /// Sessions that went on in another incarnation of their server.
    pub sessions_resumed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CallState {
    /// For a session or a slot.
    Waiting,
    /// Sent, not answered.
    InSlot { slot: u16, xid: Xid, next_send: Instant, interval: Duration },
    /// Nobody waits for it; its slot is not free.
    Orphan { slot: u16, xid: Xid, interval: Duration },
}

#[derive(Debug)]
struct Call {
    spec: CallSpec,
    submitted_at: Instant,
    state: CallState,
    /// Times it was sent in the present session.
    sends: u32,
    resends: u32,
    /// It was sent in an earlier session.
    sent_before: bool,
    /// When it ends because its peer is out of reach.
    unreachable_at: Instant,
    /// When it is due, as it stands in [`Requester::due`]; `NEVER` while it is handled.
    timer: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    last_xid: Xid,
    call: Option<CallId>,
}

#[derive(Debug)]
struct Session {
    id: SessionId,
    server: PeerId,
    lifetime: Duration,
    last_heard: Instant,
    slots: Vec<Slot>,
    /// Stack: the slot freed last is used first, its memory at the server is warm.
    free: Vec<u16>,
}

impl Session {
    /// Nothing was heard of it for so long that the server may have ended it.
    fn is_stale(&self, now: Instant) -> bool {
        now.since(self.last_heard) > self.lifetime / 2
    }

    /// Puts a call into a free slot; what to send for it.
    fn take_slot(
        &mut self,
        now: Instant,
        id: CallId,
        call: &mut Call,
        limits: &RequesterLimits,
    ) -> Option<Transmit> {
        let index = self.free.last().copied()?;
        let slot = self.slots.get_mut(usize::from(index))?;
        self.free.pop();
        slot.last_xid = slot.last_xid.next();
        slot.call = Some(id);
        call.state = CallState::InSlot {
            slot: index,
            xid: slot.last_xid,
            next_send: now + limits.resend_interval,
            interval: (limits.resend_interval * 2).min(limits.resend_interval_max),
        };
        call.sends = 1;
        let (to, session, xid) = (self.server, self.id, slot.last_xid);
        Some(Transmit::Request { call: id, to, session, slot: index, xid, deadline: call.spec.deadline })
    }
}

/// The wish for a session, repeated until it is answered.
#[derive(Clone, Copy, Debug)]
struct Wish {
    next_send: Instant,
    interval: Duration,
    sent_on_this_connection: bool,
    refused: bool,
}

#[derive(Debug, Default)]
struct Peer {
    nonce: Xid,
    session: Option<Session>,
    wish: Option<Wish>,
    /// The connection was lost since the server last confirmed the session.
    unconfirmed: bool,
    out_of_reach_since: Option<Instant>,
    reconnect_interval: Option<Duration>,
    waiting: VecDeque<CallId>,
}

impl Peer {
    fn is_usable(&self) -> bool {
        self.session.is_some() && !self.unconfirmed
    }
}

/// Every call of one locality.
#[derive(Debug)]
pub struct Requester {
    limits: RequesterLimits,
    next_call: u64,
    peers: LookupMap<Endpoint, Peer>,
    calls: LookupMap<CallId, Call>,
    due: Deadlines<CallId>,
    wishes_due: BTreeSet<(Instant, Endpoint)>,
    transmits: VecDeque<Transmit>,
    failures: VecDeque<(CallId, Failure)>,
    stats: RequesterStats,
}

impl Requester {
    /// No peers, no calls.
    #[must_use]
    pub fn new(limits: RequesterLimits) -> Requester {
        Requester {
            limits,
            next_call: 1,
            peers: LookupMap::new(),
            calls: LookupMap::new(),
            due: Deadlines::new(),
            wishes_due: BTreeSet::new(),
            transmits: VecDeque::new(),
            failures: VecDeque::new(),
            stats: RequesterStats::default(),
        }
    }

    /// Counters so far.
    #[must_use]
    pub fn stats(&self) -> RequesterStats {
        self.stats
    }

    /// Calls that wait or are in a slot, orphans included.
    #[must_use]
    pub fn calls_count(&self) -> usize {
        self.calls.len()
    }

    /// Calls that nobody waits for and that still hold their slot.
    #[must_use]
    pub fn orphans_count(&self) -> usize {
        self.calls.count(is_orphan)
    }

    /// Takes a call. It is sent as soon as there is a session with a free slot; true if it may have to wait for one.
    pub fn submit(&mut self, now: Instant, spec: CallSpec) -> (CallId, bool) {
        let id = CallId(self.next_call);
        self.next_call += 1;
        self.stats.calls += 1;
        let peer = self.peers.get_or_default(spec.to);
        let unreachable_at = match (peer.out_of_reach_since, spec.unreachable_max) {
            (Some(_), Some(max)) => now + max, // it gets its own attempt, not the rest of somebody else's
            _ => Instant::NEVER,
        };
        let mut call = Call {
            spec,
            submitted_at: now,
            state: CallState::Waiting,
            sends: 0,
            resends: 0,
            sent_before: false,
            unreachable_at,
            timer: Instant::NEVER,
        };
        // The usual case by itself: a session that was heard of lately, with a free slot.
        if peer.waiting.is_empty()
            && !peer.unconfirmed
            && let Some(session) = peer.session.as_mut().filter(|session| !session.is_stale(now))
            && let Some(transmit) = session.take_slot(now, id, &mut call, &self.limits)
        {
            call.timer = next_time(&call);
            self.due.set(call.timer, id);
            self.transmits.push_back(transmit);
            self.calls.insert(id, call);
            return (id, false);
        }
        peer.waiting.push_back(id);
        self.calls.insert(id, call);
        self.advance(now, spec.to);
        self.arm(id); // not sent yet: its deadline is what comes next
        (id, true)
    }

    /// True if calls were made to `peer`: what the network says of others is of no interest here.
    #[must_use]
    pub fn knows(&self, peer: Endpoint) -> bool {
        self.peers.contains_key(&peer)
    }

    /// The transport did not take the request that [`Requester::poll_transmit`] gave: it did not leave. `session`: the one that it named;
    /// what it says of an earlier session is of no interest any more.
    pub fn handle_not_sent(&mut self, id: CallId, session: SessionId) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let present = self.peers.get(&call.spec.to).and_then(|peer| peer.session.as_ref());
        if present.is_some_and(|present| present.id == session) {
            call.sends = call.sends.saturating_sub(1);
        }
    }

    /// The caller no longer wants the answer. Nothing is reported for the call any more.
    pub fn cancel(&mut self, now: Instant, id: CallId) {
        if self.calls.contains_key(&id) {
            self.stats.cancelled += 1;
            self.abandon(now, id);
        }
    }

    /// The server answered the wish for a session.
    pub fn handle_established(
        &mut self,
        now: Instant,
        from: PeerId,
        header: &Header,
        slots: u16,
        lifetime: Duration,
        resumed: bool,
    ) {
        let Some(peer) = self.peers.get_mut(&from.endpoint) else { return };
        if peer.wish.is_none() || header.xid != peer.nonce {
            return; // an answer to an older wish, or a second one to this
        }
        let id = header.session;
        if let Some(wish) = peer.wish.take() {
            self.wishes_due.remove(&(wish.next_send, from.endpoint));
        }
        peer.unconfirmed = false;
        peer.reconnect_interval = None;
        match &mut peer.session {
            Some(session)
                if session.id == id
                    || ((resumed || self.limits.bug == Some(Bug::SessionNeverLost))
                        && usize::from(slots) >= session.slots.len()) =>
            {
                // The server knows every slot: what is in flight is sent again at once.
                if session.id != id {
                    self.stats.sessions_resumed += 1;
                }
                session.id = id;
                session.lifetime = lifetime;
                session.last_heard = now;
                session.server = from;
                let in_flight: Vec<CallId> = session.slots.iter().filter_map(|slot| slot.call).collect();
                for call in in_flight {
                    self.send_again(now, call);
                }
            }
            _ => {
                self.lose_session(now, from.endpoint);
                self.stats.sessions_opened += 1;
                let slots = slots.min(self.limits.slots_max);
                let session = Session {
                    id,
                    server: from,
                    lifetime,
                    last_heard: now,
                    slots: vec![Slot { last_xid: Xid(0), call: None }; usize::from(slots)],
                    free: (0..slots).rev().collect(),
                };
                if let Some(peer) = self.peers.get_mut(&from.endpoint) {
                    peer.session = Some(session);
                }
            }
        }
        self.reset_reach(from.endpoint);
        self.advance(now, from.endpoint);
    }

    /// The server has no room for a session; the wish goes on at its interval.
    pub fn handle_refused(&mut self, from: PeerId, header: &Header) {
        if let Some(peer) = self.peers.get_mut(&from.endpoint)
            && peer.nonce == header.xid
            && let Some(wish) = &mut peer.wish
        {
            wish.refused = true;
        }
    }

    /// The server does not know the session that an item of ours named.
    pub fn handle_ended(&mut self, now: Instant, from: PeerId, header: &Header) {
        let Some(session) = self.peers.get(&from.endpoint).and_then(|peer| peer.session.as_ref()) else {
            return;
        };
        if session.id != header.session {
            return;
        }
        // The item that it answers did not run. If the request was sent only once, it did not run at all.
        let named = session.slots.get(usize::from(header.slot)).filter(|slot| slot.last_xid == header.xid);
        if let Some(call) = named.and_then(|slot| slot.call).and_then(|id| self.calls.get_mut(&id))
            && call.sends == 1
        {
            call.sends = 0;
        }
        self.lose_session(now, from.endpoint);
        self.advance(now, from.endpoint);
    }

    /// A reply came. Its slot is free again.
    pub fn handle_reply(
        &mut self,
        now: Instant,
        from: PeerId,
        header: &Header,
    ) -> Result<ReplyFor, PeerMisbehaved> {
        let Some(Named { slot, free, last_heard, is_last, needs_more }) =
            named_slot(&mut self.peers, from, header)?
        else {
            self.stats.late_replies += 1;
            return Ok(ReplyFor::Nobody);
        };
        let is_its = is_last || self.limits.bug == Some(Bug::ReplyToAnyCall);
        let Some(id) = slot.call.filter(|_| is_its) else {
            self.stats.late_replies += 1;
            return Ok(ReplyFor::Nobody);
        };
        let is_dropped = header.kind == (Kind::Reply { status: Status::Dropped });
        if is_dropped && !self.calls.get(&id).is_some_and(is_orphan) {
            return Err(PeerMisbehaved::Field {
                name: "status of a request that was not cancelled",
                value: 2,
            });
        }
        slot.call = None;
        free.push(header.slot);
        *last_heard = now;
        let call = self.remove(id);
        if needs_more {
            self.advance(now, from.endpoint);
        }
        if call.as_ref().is_some_and(is_orphan) {
            self.stats.late_replies += 1;
            return Ok(ReplyFor::Orphan(id));
        }
        Ok(ReplyFor::Call(id))
    }

    /// The server holds a request back on purpose, for `time_left`. The call, if anybody waits for it.
    pub fn handle_held(
        &mut self,
        now: Instant,
        from: PeerId,
        header: &Header,
        time_left: Duration,
    ) -> Result<Option<CallId>, PeerMisbehaved> {
        let Some(Named { slot, last_heard, is_last, .. }) = named_slot(&mut self.peers, from, header)? else {
            return Ok(None);
        };
        *last_heard = now;
        // A late word of a request that was answered, or of the slot's request before.
        let Some(id) = slot.call.filter(|_| is_last) else { return Ok(None) };
        let Some(call) = self.calls.get_mut(&id) else { return Ok(None) };
        self.stats.held += 1;
        let resend_interval = self.limits.resend_interval;
        let again_at = now + time_left.min(self.limits.hold_max) + resend_interval;
        match &mut call.state {
            CallState::InSlot { next_send, interval, .. } => {
                *next_send = again_at;
                *interval = resend_interval;
                self.arm(id);
                Ok(Some(id))
            }
            CallState::Orphan { interval, .. } => {
                *interval = resend_interval;
                self.set_timer(id, again_at);
                Ok(None)
            }
            CallState::Waiting => Ok(None),
        }
    }

    /// A connection to the peer was made.
    pub fn on_peer_up(&mut self, now: Instant, up: PeerId) {
        let Some(peer) = self.peers.get_mut(&up.endpoint) else { return };
        if peer.session.as_ref().is_some_and(|session| session.server != up) {
            // Another incarnation. If a request that may run at most once was sent to the one before, this one may know
            // what became of it, but perhaps not at once; everything else is better off in a new session.
            peer.unconfirmed = true;
            if !Self::has_doubt(peer, &self.calls) {
                self.lose_session(now, up.endpoint);
                let had_wish = self.end_wish(up.endpoint);
                if had_wish {
                    self.start_wish(up.endpoint, now);
                    self.handle_timeouts(now);
                }
            }
        }
        let Some(peer) = self.peers.get_mut(&up.endpoint) else { return };
        if let Some(wish) = &mut peer.wish
            && !wish.sent_on_this_connection
        {
            self.wishes_due.remove(&(wish.next_send, up.endpoint));
            wish.next_send = now;
            self.wishes_due.insert((now, up.endpoint));
            self.handle_timeouts(now);
        }
        self.reset_reach(up.endpoint);
        self.advance(now, up.endpoint);
    }

    /// There is no connection to the peer of this call: the call ends if none comes for `max`, or earlier by its own measure.
    pub fn await_connection(&mut self, now: Instant, id: CallId, max: Duration) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        call.unreachable_at = call.unreachable_at.min(now + max);
        if let Some(peer) = self.peers.get_mut(&call.spec.to) {
            peer.out_of_reach_since.get_or_insert(now);
        }
        self.arm(id);
    }

    /// The connection to the peer is gone, or could not be made.
    pub fn on_peer_lost(&mut self, now: Instant, lost: Endpoint) {
        let Some(peer) = self.peers.get_mut(&lost) else { return };
        peer.unconfirmed = peer.session.is_some();
        peer.out_of_reach_since.get_or_insert(now);
        let interval = peer.reconnect_interval.unwrap_or(self.limits.reconnect_interval);
        peer.reconnect_interval = Some((interval * 2).min(self.limits.reconnect_interval_max));
        if let Some(wish) = &mut peer.wish {
            self.wishes_due.remove(&(wish.next_send, lost));
            wish.next_send = now + interval;
            wish.interval = self.limits.resend_interval;
            wish.sent_on_this_connection = false;
            self.wishes_due.insert((wish.next_send, lost));
        } else if Self::has_demand(peer, &self.calls) {
            self.start_wish(lost, now + interval);
        }
        for id in self.calls.sorted_keys() {
            if let Some(call) = self.calls.get_mut(&id)
                && call.spec.to == lost
                && call.unreachable_at == Instant::NEVER
                && let Some(max) = call.spec.unreachable_max
            {
                call.unreachable_at = now + max;
                self.arm(id);
            }
        }
    }

    /// One of several ways to the peer is gone, and with it perhaps what was under way: everything that waits for an answer is sent again
    /// at once.
    pub fn on_rail_lost(&mut self, now: Instant, to: Endpoint) {
        let Some(peer) = self.peers.get_mut(&to) else { return };
        if let Some(wish) = &mut peer.wish {
            self.wishes_due.remove(&(wish.next_send, to));
            wish.next_send = now;
            self.wishes_due.insert((now, to));
        }
        for id in self.calls.sorted_keys() {
            if let Some(call) = self.calls.get_mut(&id)
                && call.spec.to == to
                && let CallState::InSlot { next_send, .. } = &mut call.state
            {
                *next_send = now;
                self.arm(id);
            }
        }
        self.handle_timeouts(now);
    }

    /// The peer will not talk to us (wrong credential, wrong version): every call to it ends.
    pub fn on_peer_refused(&mut self, now: Instant, by: Endpoint) {
        let Some(peer) = self.peers.get_mut(&by) else { return };
        if let Some(wish) = peer.wish.take() {
            self.wishes_due.remove(&(wish.next_send, by));
        }
        for id in self.calls.sorted_keys() {
            if self.calls.get(&id).is_some_and(|call| call.spec.to == by) {
                self.fail(now, id, FailureKind::Refused);
            }
        }
    }

    /// Sends again and gives up what is due.
    pub fn handle_timeouts(&mut self, now: Instant) {
        loop {
            // In the order of time; a call before a wish of the same instant.
            let wish_at = self.wishes_due.first().map_or(Instant::NEVER, |(at, _)| *at);
            if let Some(id) = self.due.take_due(now.min(wish_at), is_set(&self.calls)) {
                if let Some(call) = self.calls.get_mut(&id) {
                    call.timer = Instant::NEVER;
                }
                self.call_due(now, id);
            } else if wish_at <= now
                && let Some((_, to)) = self.wishes_due.pop_first()
            {
                self.wish_due(now, to);
            } else {
                break;
            }
        }
    }

    /// The next thing to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next call that ended without an answer.
    pub fn poll_failure(&mut self) -> Option<(CallId, Failure)> {
        self.failures.pop_front()
    }

    /// When [`Requester::handle_timeouts`] has to run next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let wish_at = self.wishes_due.first().map(|(at, _)| *at);
        self.due.next().into_iter().chain(wish_at).min()
    }

    /// Puts waiting calls into free slots; wishes for a session where one is missing.
    fn advance(&mut self, now: Instant, to: Endpoint) {
        let Some(peer) = self.peers.get_mut(&to) else { return };
        if peer.waiting.is_empty() {
            let needs_word = peer.unconfirmed && peer.wish.is_none() && Self::has_demand(peer, &self.calls);
            if needs_word {
                self.start_wish(to, now);
                self.handle_timeouts(now);
            }
            return;
        }
        let calls = &self.calls;
        if let Some(session) = peer.session.as_ref().filter(|_| !peer.unconfirmed)
            && session.is_stale(now)
            && session.slots.iter().filter_map(|slot| slot.call.and_then(|id| calls.get(&id))).all(is_orphan)
        {
            // Idle for so long that the server may have ended it: a new one is cheaper than doubt.
            self.lose_session(now, to);
        }
        let Some(peer) = self.peers.get_mut(&to) else { return };
        if !peer.is_usable() {
            if peer.wish.is_none() {
                self.start_wish(to, now);
                self.handle_timeouts(now);
            }
            return;
        }
        let Some(session) = peer.session.as_mut() else { return };
        while !session.free.is_empty()
            && let Some(id) = peer.waiting.pop_front()
        {
            let Some(call) = self.calls.get_mut(&id) else { continue };
            let Some(transmit) = session.take_slot(now, id, call, &self.limits) else { break };
            if call.sent_before {
                call.resends = call.resends.saturating_add(1);
                self.stats.resends += 1;
                self.stats.repeated += 1;
            }
            self.transmits.push_back(transmit);
            let at = next_time(call);
            set_timer(&mut self.due, &mut self.calls, id, at);
        }
    }

    fn has_demand(peer: &Peer, calls: &LookupMap<CallId, Call>) -> bool {
        !peer.waiting.is_empty()
            || peer.session.as_ref().is_some_and(|session| {
                let in_slots =
                    session.slots.iter().filter_map(|slot| slot.call.and_then(|id| calls.get(&id)));
                in_slots.into_iter().any(|call| !is_orphan(call))
            })
    }

    /// True if a call in a slot may have run and must not run twice.
    fn has_doubt(peer: &Peer, calls: &LookupMap<CallId, Call>) -> bool {
        let in_slots = peer.session.iter().flat_map(|session| &session.slots).filter_map(|slot| slot.call);
        in_slots
            .filter_map(|id| calls.get(&id))
            .any(|call| call.spec.repeat == Repeat::AtMostOnce && call.sends > 0 && !is_orphan(call))
    }

    fn end_wish(&mut self, to: Endpoint) -> bool {
        let Some(wish) = self.peers.get_mut(&to).and_then(|peer| peer.wish.take()) else { return false };
        self.wishes_due.remove(&(wish.next_send, to));
        true
    }

    fn start_wish(&mut self, to: Endpoint, at: Instant) {
        let interval = self.limits.resend_interval;
        let Some(peer) = self.peers.get_mut(&to) else { return };
        if peer.session.is_none() {
            peer.nonce = peer.nonce.next(); // a new session; with one at hand the same nonce asks for it
        }
        peer.wish = Some(Wish { next_send: at, interval, sent_on_this_connection: false, refused: false });
        self.wishes_due.insert((at, to));
    }

    fn wish_due(&mut self, now: Instant, to: Endpoint) {
        let Some(peer) = self.peers.get_mut(&to) else { return };
        if !Self::has_demand(peer, &self.calls) {
            peer.wish = None; // everybody gave up
            return;
        }
        let is_too_old = |session: &Session| now.since(session.last_heard) >= session.lifetime / 2;
        if peer.session.as_ref().is_some_and(is_too_old) {
            // The server may have forgotten it, records and all: to ask for it back would be to guess.
            self.lose_session(now, to);
            if let Some(peer) = self.peers.get_mut(&to) {
                peer.nonce = peer.nonce.next();
            }
        }
        let Some(peer) = self.peers.get_mut(&to) else { return };
        let resume = peer.session.is_some();
        let Some(wish) = &mut peer.wish else { return };
        wish.sent_on_this_connection = true;
        wish.next_send = now + wish.interval;
        wish.interval = (wish.interval * 2).min(self.limits.resend_interval_max);
        self.wishes_due.insert((wish.next_send, to));
        self.transmits.push_back(Transmit::Establish { to, nonce: peer.nonce, resume });
    }

    fn call_due(&mut self, now: Instant, id: CallId) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        if let CallState::Orphan { interval, .. } = &mut call.state {
            let next = now + *interval;
            *interval = (*interval * 2).min(self.limits.resend_interval_max);
            self.set_timer(id, next);
            self.tell_cancelled(now, id);
            return;
        }
        if call.spec.deadline <= now {
            self.stats.timeouts += 1;
            return self.fail(now, id, FailureKind::TimedOut);
        }
        if call.unreachable_at <= now {
            return self.fail(now, id, FailureKind::Unreachable);
        }
        self.send_again(now, id);
    }

    /// Sends a call that is in a slot again and sets its next time; without a confirmed session only the latter.
    fn send_again(&mut self, now: Instant, id: CallId) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let Some(peer) = self.peers.get(&call.spec.to) else { return };
        if let (CallState::InSlot { slot, xid, next_send, interval }, Some(session)) =
            (&mut call.state, &peer.session)
        {
            *next_send = now + *interval;
            *interval = (*interval * 2).min(self.limits.resend_interval_max);
            if peer.is_usable() {
                call.sends = call.sends.saturating_add(1);
                call.resends = call.resends.saturating_add(1);
                self.stats.resends += 1;
                self.transmits.push_back(Transmit::Request {
                    call: id,
                    to: session.server,
                    session: session.id,
                    slot: *slot,
                    xid: *xid,
                    deadline: call.spec.deadline,
                });
            }
        }
        self.arm(id);
    }

    fn tell_cancelled(&mut self, now: Instant, id: CallId) {
        let Some(call) = self.calls.get(&id) else { return };
        let to = call.spec.to;
        let Some(peer) = self.peers.get(&to) else { return };
        let (CallState::Orphan { slot, xid, .. }, Some(session)) = (call.state, &peer.session) else {
            return;
        };
        if now.since(session.last_heard) > session.lifetime && !Self::has_demand(peer, &self.calls) {
            self.lose_session(now, to); // nobody is there, and nobody wants anything of it
        } else if peer.is_usable() {
            self.transmits.push_back(Transmit::Cancel { to: session.server, session: session.id, slot, xid });
        }
    }

    /// The call ends without an answer.
    fn fail(&mut self, now: Instant, id: CallId, kind: FailureKind) {
        let Some(call) = self.calls.get(&id) else { return };
        if !is_orphan(call) {
            let failure = self.failure(now, call, kind);
            self.failures.push_back((id, failure));
        }
        self.abandon(now, id);
    }

    fn failure(&self, now: Instant, call: &Call, kind: FailureKind) -> Failure {
        let peer = self.peers.get(&call.spec.to);
        let waited_for = match peer {
            Some(peer) if peer.out_of_reach_since.is_some() => WaitedFor::Connection,
            Some(peer) if peer.wish.is_some_and(|wish| wish.refused) => WaitedFor::SessionRefused,
            Some(peer) if !peer.is_usable() && kind != FailureKind::SessionLost => WaitedFor::Session,
            _ if call.state == CallState::Waiting => WaitedFor::Slot,
            _ => WaitedFor::Reply,
        };
        Failure {
            kind,
            waited_for,
            age: now.since(call.submitted_at),
            resends: call.resends,
            may_have_executed: call.sends > 0 || call.sent_before,
        }
    }

    /// Nobody waits for the call any more: it goes, or stays in its slot as an orphan.
    fn abandon(&mut self, now: Instant, id: CallId) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        match call.state {
            CallState::Waiting => {
                if let Some(peer) = self.peers.get_mut(&call.spec.to) {
                    peer.waiting.retain(|waiting| *waiting != id);
                }
                self.remove(id);
            }
            CallState::InSlot { slot, xid, .. } | CallState::Orphan { slot, xid, .. } => {
                let interval = self.limits.resend_interval;
                call.state = CallState::Orphan { slot, xid, interval };
                self.set_timer(id, now + interval);
                self.tell_cancelled(now, id);
                if self.limits.bug == Some(Bug::SlotFreedEarly) {
                    self.free_slot(id, slot);
                }
            }
        }
    }

    /// Only a seeded bug does this before the server's answer.
    fn free_slot(&mut self, id: CallId, slot_index: u16) {
        let Some(call) = self.remove(id) else { return };
        let session = self.peers.get_mut(&call.spec.to).and_then(|peer| peer.session.as_mut());
        let Some(session) = session else { return };
        if let Some(slot) = session.slots.get_mut(usize::from(slot_index)) {
            slot.call = None;
            session.free.push(slot_index);
        }
    }

    /// The session is gone. What may be repeated waits for another; what may not and was sent ends.
    fn lose_session(&mut self, now: Instant, to: Endpoint) {
        let Some(peer) = self.peers.get_mut(&to) else { return };
        let Some(session) = peer.session.take() else { return };
        peer.unconfirmed = false;
        let mut in_slots: Vec<CallId> = session.slots.iter().filter_map(|slot| slot.call).collect();
        if !in_slots.is_empty() {
            self.stats.sessions_lost += 1;
        }
        in_slots.sort_unstable();
        for id in in_slots.into_iter().rev() {
            let Some(call) = self.calls.get_mut(&id) else { continue };
            let may_repeat = call.sends == 0 || call.spec.repeat == Repeat::Idempotent;
            if is_orphan(call) {
                self.remove(id);
            } else if may_repeat {
                call.sent_before |= call.sends > 0;
                call.sends = 0;
                call.state = CallState::Waiting;
                if let Some(peer) = self.peers.get_mut(&to) {
                    peer.waiting.push_front(id); // oldest first, before those that never had a slot
                }
                self.arm(id);
            } else if let Some(call) = self.remove(id) {
                let failure = self.failure(now, &call, FailureKind::SessionLost);
                self.failures.push_back((id, failure));
            }
        }
    }

    /// The peer is in reach: calls no longer end because it is not.
    fn reset_reach(&mut self, to: Endpoint) {
        let Some(peer) = self.peers.get_mut(&to) else { return };
        if peer.out_of_reach_since.take().is_none() {
            return;
        }
        for id in self.calls.sorted_keys() {
            if let Some(call) = self.calls.get_mut(&id)
                && call.spec.to == to
                && call.unreachable_at != Instant::NEVER
            {
                call.unreachable_at = Instant::NEVER;
                self.arm(id);
            }
        }
    }

    /// Sets when a call is due next, by what is set of it.
    fn arm(&mut self, id: CallId) {
        if let Some(call) = self.calls.get(&id)
            && !is_orphan(call)
        {
            let at = next_time(call);
            self.set_timer(id, at);
        }
    }

    fn set_timer(&mut self, id: CallId, at: Instant) {
        set_timer(&mut self.due, &mut self.calls, id, at);
    }

    /// Takes a call out, with its time.
    fn remove(&mut self, id: CallId) -> Option<Call> {
        let call = self.calls.remove(&id)?;
        self.due.call_off(call.timer, is_set(&self.calls));
        Some(call)
    }
}

/// When a call that is no orphan is due.
fn next_time(call: &Call) -> Instant {
    let send = match call.state {
        CallState::InSlot { next_send, .. } => next_send,
        _ => Instant::NEVER,
    };
    call.spec.deadline.min(call.unreachable_at).min(send)
}

fn set_timer(due: &mut Deadlines<CallId>, calls: &mut LookupMap<CallId, Call>, id: CallId, at: Instant) {
    let Some(call) = calls.get_mut(&id) else { return };
    let before = std::mem::replace(&mut call.timer, at);
    if before != at {
        due.set(at, id);
        due.call_off(before, is_set(calls));
    }
}

/// What of [`Requester::due`] counts.
fn is_set(calls: &LookupMap<CallId, Call>) -> impl Fn(Instant, CallId) -> bool {
    |at, id| calls.get(&id).is_some_and(|call| call.timer == at)
}

fn is_orphan(call: &Call) -> bool {
    matches!(call.state, CallState::Orphan { .. })
}

/// The slot that an item of a server names, and what of its session goes with it.
struct Named<'a> {
    slot: &'a mut Slot,
    free: &'a mut Vec<u16>,
    last_heard: &'a mut Instant,
    /// It is about the slot's last request, not about an earlier one.
    is_last: bool,
    /// Calls wait for a slot, or the session waits for its server's word.
    needs_more: bool,
}

/// The slot that an item names which says what became of a request. `None`: of a session that is over. Errors: nobody sent such a request there.
fn named_slot<'a>(
    peers: &'a mut LookupMap<Endpoint, Peer>,
    from: PeerId,
    header: &Header,
) -> Result<Option<Named<'a>>, PeerMisbehaved> {
    let Some(peer) = peers.get_mut(&from.endpoint) else { return Ok(None) };
    let needs_more = peer.unconfirmed || !peer.waiting.is_empty();
    let session = peer.session.as_mut().filter(|session| session.id == header.session);
    let Some(session) = session else { return Ok(None) };
    if session.server != from {
        return Err(PeerMisbehaved::ForeignSession { session: header.session.0 });
    }
    let Session { slots, free, last_heard, .. } = session;
    let count = u16::try_from(slots.len()).unwrap_or(u16::MAX);
    let Some(slot) = slots.get_mut(usize::from(header.slot)) else {
        return Err(PeerMisbehaved::NoSuchSlot { slot: header.slot, slots: count });
    };
    let distance = header.xid.distance_from(slot.last_xid);
    if distance > 0 {
        let (slot, last) = (header.slot, slot.last_xid.0);
        return Err(PeerMisbehaved::UnknownReply { slot, last, got: header.xid.0 });
    }
    Ok(Some(Named { slot, free, last_heard, is_last: distance == 0, needs_more }))
}
