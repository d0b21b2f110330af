//! The answering side of sessions: which peer has which session, and what to do with each item that comes in.
//!
//! Pure: time comes in, verdicts go out; no bytes are sent from here. A session belongs to one incarnation of one peer, and an
//! incarnation has at most one session. Sessions end when their client is silent for the lifetime, when the peer misbehaves, when
//! the client asks for a newer one, or when the table is full and they are idle the longest. Whoever names a session that
//! ended is told so, and nothing runs: at most once does not depend on any lifetime.
//!
//! With durable slots a session outlives its server: [`Responder::adopt`] gets the records of before the restart and parks them by
//! session; a client that comes back with [`Responder::handle_resume`] goes on where it was. Parked sessions wait for a session's
//! lifetime; then, or when their client has begun another, they come out of [`Responder::poll_forgotten`], and their records may go.
//! **Invariant**: while a session is not forgotten, its records stay: a session with records is never evicted.
//! A client resumes only within half a lifetime of the last word it heard, so that no session means: nothing ran in it. A record may be out of reach,
//! with the device that it stands on: so the first request of each slot says that it is ([`Ticket::is_first`]), and whoever runs it looks.
//!
//! Thread: the owning locality. Start at [`Responder::handle_request`].

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use base::Instant;
use verbs_net::PeerId;

use crate::item::{Header, SessionId, Xid};
use crate::misbehaviour::PeerMisbehaved;
use crate::reply_cache::{ReplyBounds, ReplyCache, ReplyCacheStats, ResumedSlot, Verdict};
use crate::slot_record::{SessionName, SlotRecord};

/// Bounds of the answering side.
#[derive(Clone, Copy, Debug)]
pub struct ResponderLimits {
    /// Slots of each session.
    pub slots: u16,
    /// Sessions.
    pub sessions_max: usize,
    /// A session ends after this long without a word from its client.
    pub session_lifetime: Duration,
    /// Of kept replies.
    pub replies: ReplyBounds,
    /// Records of slots outlive the process: sessions can be resumed, once [`Responder::adopt`] was called.
    pub durable_slots: bool,
}

/// Names a request that runs: give it back to [`Responder::finish`] or [`Responder::drop_request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The peer that asked.
    pub peer: PeerId,
    /// Its session.
    pub session: SessionId,
    /// The client's number of the session.
    pub nonce: Xid,
    /// Slot in it.
    pub slot: u16,
    /// Number in the slot.
    pub xid: Xid,
    /// The first in its slot since its server restarted: where the record of it may be lost, it may have run before.
    pub is_first: bool,
}

impl Ticket {
    /// The session's name over restarts.
    #[must_use]
    pub fn name(&self) -> SessionName {
        SessionName { peer: self.peer, nonce: self.nonce }
    }
}

/// What to do with a request or a cancellation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision<B> {
    /// Run it, then call [`Responder::finish`].
    Execute(Ticket),
    /// Send these bytes again.
    Resend(B),
    /// Answer with this body: the request ran before a restart.
    Replay(Box<[u8]>),
    /// Answer that the reply is no longer kept.
    ReplyGone,
    /// Answer that it was dropped and never runs.
    Dropped,
    /// Answer that the session ended.
    Ended,
    /// Nothing, or that it is held ([`crate::holds`]): a twin of a running request.
    StillRunning,
    /// Nothing: an old duplicate, or no room (the resend will find some).
    Ignore,
}

/// What to answer to a wish for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EstablishDecision {
    /// This session.
    Established(SessionId),
    /// This session, which goes on from before a restart.
    Resumed(SessionId),
    /// Every session is busy.
    Refused,
    /// Nothing: an old duplicate.
    Ignore,
}

/// Counters of the answering side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponderStats {
    /// Sessions made.
    pub sessions_opened: u64,
    /// Sessions ended for any reason.
    pub sessions_ended: u64,
    /// Sessions that gave way in a full table.
    pub sessions_evicted: u64,
    /// Wishes refused because every session was busy.
    pub sessions_refused: u64,
    /// Requests left unanswered for want of room.
    pub no_room: u64,
    /// Sessions that went on after a restart.
    pub sessions_resumed: u64,
    /// Requests run once more, because what their reply told of may have been lost.
    pub repeated: u64,
}

#[derive(Debug)]
struct Session {
    peer: PeerId,
    nonce: Xid,
    last_heard: Instant,
    running_count: u32,
    connected: bool,
    /// Its slots have records.
    has_records: bool,
    /// It goes on from before a restart.
    is_resumed: bool,
}

/// A session with records and without a client.
#[derive(Debug)]
struct Parked {
    until: Instant,
    slots: Vec<ResumedSlot>,
}

/// Sessions and reply cache of one locality. `B`: the bytes of a reply.
#[derive(Debug)]
pub struct Responder<B> {
    limits: ResponderLimits,
    next_session: u64,
    sessions: BTreeMap<SessionId, Session>,
    by_peer: BTreeMap<PeerId, SessionId>,
    parked: BTreeMap<SessionName, Parked>,
    forgotten: VecDeque<SessionName>,
    /// What was before the restart is known.
    is_adopted: bool,
    cache: ReplyCache<B>,
    next_sweep: Instant,
    stats: ResponderStats,
}

impl<B: Clone + AsRef<[u8]>> Responder<B> {
    /// `epoch`: this process's incarnation; session ids of two incarnations differ. `broken_cache`: for tests of the tests.
    #[must_use]
    pub fn new(epoch: u64, limits: ResponderLimits, broken_cache: bool) -> Responder<B> {
        // The upper half tells incarnations apart (mixed, because epochs may differ in few bits), the lower half counts.
        let mixed = epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (epoch >> 29);
        Responder {
            limits,
            next_session: (mixed & 0xffff_ffff_0000_0000) | 1,
            sessions: BTreeMap::new(),
            by_peer: BTreeMap::new(),
            parked: BTreeMap::new(),
            forgotten: VecDeque::new(),
            is_adopted: false,
            cache: ReplyCache::new(limits.replies, broken_cache),
            next_sweep: Instant::NEVER,
            stats: ResponderStats::default(),
        }
    }

    /// Counters so far.
    #[must_use]
    pub fn stats(&self) -> (ResponderStats, ReplyCacheStats) {
        (self.stats, self.cache.stats())
    }

    /// Sessions open now.
    #[must_use]
    pub fn sessions_count(&self) -> usize {
        self.sessions.len()
    }

    /// The sessions open now, oldest first.
    #[must_use]
    pub fn session_ids(&self) -> Vec<SessionId> {
        self.sessions.keys().copied().collect()
    }

    /// Sessions of before a restart whose clients have not come back yet.
    #[must_use]
    pub fn parked_count(&self) -> usize {
        self.parked.len()
    }

    /// Replies kept now.
    #[must_use]
    pub fn replies_kept(&self) -> usize {
        self.cache.kept_count()
    }

    /// Lifetime that a new session has.
    #[must_use]
    pub fn session_lifetime(&self) -> Duration {
        self.limits.session_lifetime
    }

    /// Slots that a new session has.
    #[must_use]
    pub fn slots(&self) -> u16 {
        self.limits.slots
    }

    /// The records of before the restart, from every device. To be called once, before or after the first clients come.
    pub fn adopt(&mut self, now: Instant, records: impl IntoIterator<Item = SlotRecord>) {
        self.is_adopted = true;
        for SlotRecord { name, slot, xid, result } in records {
            self.park(now, name, vec![ResumedSlot { slot, xid, result }]);
        }
    }

    /// A session whose records are of no use to anybody any more.
    pub fn poll_forgotten(&mut self) -> Option<SessionName> {
        self.forgotten.pop_front()
    }

    /// True if [`Responder::poll_forgotten`] has something.
    #[must_use]
    pub fn has_forgotten(&self) -> bool {
        !self.forgotten.is_empty()
    }

    /// The request's record is about to be made durable.
    pub fn on_record(&mut self, now: Instant, ticket: Ticket) {
        match self.sessions.get_mut(&ticket.session) {
            Some(session) => session.has_records = true,
            // The session ended while the request ran: its records go in their time.
            None => {
                let record = ResumedSlot { slot: ticket.slot, xid: ticket.xid, result: None };
                self.park(now, ticket.name(), vec![record]);
            }
        }
    }

    /// A peer wants a session. The same nonce again gives the same session (our answer was lost, or the connection was); a
    /// higher one ends the old session; a lower one is an old duplicate.
    pub fn handle_establish(&mut self, now: Instant, from: PeerId, nonce: Xid) -> EstablishDecision {
        if let Some(decision) = self.known_session(now, from, nonce) {
            return decision;
        }
        self.open(now, from, nonce, None)
    }

    /// A peer wants the session back in which it has sent requests. Here it lived before a restart, or not at all.
    pub fn handle_resume(&mut self, now: Instant, from: PeerId, nonce: Xid) -> EstablishDecision {
        if let Some(decision) = self.known_session(now, from, nonce) {
            return decision;
        }
        if !self.limits.durable_slots {
            return self.open(now, from, nonce, None); // a session without memory: its id says so
        }
        if !self.is_adopted {
            return EstablishDecision::Refused; // its records are not read yet
        }
        let slots = self.parked.get(&SessionName { peer: from, nonce }).map(|parked| parked.slots.clone());
        self.open(now, from, nonce, Some(slots.unwrap_or_default()))
    }

    /// What there is to say to a wish if the peer has a session.
    fn known_session(&mut self, now: Instant, from: PeerId, nonce: Xid) -> Option<EstablishDecision> {
        let id = self.by_peer.get(&from).copied()?;
        let session = self.sessions.get_mut(&id)?;
        match nonce.distance_from(session.nonce) {
            0 => {
                session.last_heard = now;
                session.connected = true;
                // Said again as it was said first: our answer may have been lost.
                Some(match session.is_resumed {
                    true => EstablishDecision::Resumed(id),
                    false => EstablishDecision::Established(id),
                })
            }
            1.. => {
                self.end(id);
                None
            }
            _ => Some(EstablishDecision::Ignore),
        }
    }

    /// `resumed`: the slots that it goes on with.
    fn open(
        &mut self,
        now: Instant,
        from: PeerId,
        nonce: Xid,
        resumed: Option<Vec<ResumedSlot>>,
    ) -> EstablishDecision {
        if self.sessions.len() >= self.limits.sessions_max && !self.evict() {
            self.stats.sessions_refused += 1;
            return EstablishDecision::Refused;
        }
        // Earlier sessions of this incarnation: their client has gone on.
        let first = SessionName { peer: from, nonce: Xid(0) };
        let earlier: Vec<SessionName> =
            self.parked.range(first..SessionName { peer: from, nonce }).map(|(name, _)| *name).collect();
        for name in earlier {
            self.parked.remove(&name);
            self.forgotten.push_back(name);
        }
        let id = SessionId(self.next_session);
        self.next_session += 1;
        let had_records = self.parked.remove(&SessionName { peer: from, nonce }).is_some();
        let session = Session {
            peer: from,
            nonce,
            last_heard: now,
            running_count: 0,
            connected: true,
            has_records: had_records,
            is_resumed: resumed.is_some(),
        };
        self.sessions.insert(id, session);
        self.by_peer.insert(from, id);
        self.stats.sessions_opened += 1;
        self.next_sweep = self.next_sweep.min(now + self.limits.session_lifetime / 4);
        match resumed {
            None => {
                self.cache.open(id, self.limits.slots);
                EstablishDecision::Established(id)
            }
            Some(slots) => {
                self.cache.open_resumed(id, self.limits.slots, slots);
                self.stats.sessions_resumed += 1;
                EstablishDecision::Resumed(id)
            }
        }
    }

    /// Keeps what is known of a session without a client, the highest number of each slot.
    fn park(&mut self, now: Instant, name: SessionName, slots: Vec<ResumedSlot>) {
        let until = now + self.limits.session_lifetime;
        let parked = self.parked.entry(name).or_insert_with(|| Parked { until, slots: Vec::new() });
        parked.until = until;
        for new in slots {
            match parked.slots.iter_mut().find(|known| known.slot == new.slot) {
                Some(known) if known.xid < new.xid => *known = new,
                Some(_) => {}
                None => parked.slots.push(new),
            }
        }
        self.next_sweep = self.next_sweep.min(now + self.limits.session_lifetime / 4);
    }

    /// A request came in. `has_room`: whether a new one may run or wait; without it, it leaves no trace.
    pub fn handle_request(
        &mut self,
        now: Instant,
        from: PeerId,
        header: &Header,
        has_room: bool,
    ) -> Result<Decision<B>, PeerMisbehaved> {
        let (id, slot, xid) = (header.session, header.slot, header.xid);
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(Decision::Ended) };
        if session.peer != from {
            return Err(PeerMisbehaved::ForeignSession { session: id.0 });
        }
        session.last_heard = now;
        session.connected = true;
        Ok(match self.cache.decide(now, id, slot, xid)? {
            Verdict::Execute if !has_room => {
                self.stats.no_room += 1;
                Decision::Ignore
            }
            Verdict::Execute => {
                session.running_count += 1;
                let is_first = self.cache.begin(id, slot, xid); // before it runs: its twin finds it
                Decision::Execute(Ticket {
                    peer: from,
                    session: id,
                    nonce: session.nonce,
                    slot,
                    xid,
                    is_first,
                })
            }
            Verdict::Resend(reply) => Decision::Resend(reply),
            Verdict::Replay(body) => Decision::Replay(body),
            Verdict::ReplyGone => Decision::ReplyGone,
            Verdict::Dropped => Decision::Dropped,
            Verdict::StillRunning => Decision::StillRunning,
            Verdict::Stale => Decision::Ignore,
        })
    }

    /// A request whose reply was to be sent again runs once more instead: only for those that may be repeated.
    pub fn repeat(&mut self, from: PeerId, header: &Header) -> Option<Ticket> {
        let (id, slot, xid) = (header.session, header.slot, header.xid);
        let session = self.sessions.get_mut(&id)?;
        session.running_count += 1;
        self.cache.begin_again(id, slot, xid);
        self.stats.repeated += 1;
        Some(Ticket { peer: from, session: id, nonce: session.nonce, slot, xid, is_first: false })
    }

    /// The client no longer wants a request. One that never came is marked, so that it never runs; one that runs goes on,
    /// and its reply frees the slot.
    pub fn handle_cancel(
        &mut self,
        now: Instant,
        from: PeerId,
        header: &Header,
    ) -> Result<Decision<B>, PeerMisbehaved> {
        match self.handle_request(now, from, header, true)? {
            Decision::Execute(ticket) => {
                self.drop_request(ticket);
                Ok(Decision::Dropped)
            }
            other => Ok(other),
        }
    }

    /// A request ran. True if its reply should be sent: its session still lives.
    pub fn finish(&mut self, now: Instant, ticket: Ticket, reply: B) -> bool {
        if let Some(session) = self.stopped(ticket) {
            session.last_heard = now; // the client may count its time from this reply
        }
        self.cache.finish(now, ticket.session, ticket.slot, ticket.xid, reply)
    }

    /// As [`ReplyCache::let_go_of_spent`], at the end of a turn.
    pub fn let_go_of_spent(&mut self) {
        self.cache.let_go_of_spent();
    }

    /// The reply to a request that ran, to send it again without being asked: while its client is connected and has not moved on.
    #[must_use]
    pub fn kept_reply(&self, ticket: Ticket) -> Option<B> {
        let session = self.sessions.get(&ticket.session)?;
        let is_there = session.connected && session.peer == ticket.peer;
        is_there.then(|| self.cache.kept(ticket.session, ticket.slot, ticket.xid)).flatten()
    }

    /// A request will not run after all: its deadline passed while it waited.
    pub fn drop_request(&mut self, ticket: Ticket) {
        self.stopped(ticket);
        self.cache.drop_request(ticket.session, ticket.slot, ticket.xid);
    }

    /// A peer's connection is gone; its session stays for its return.
    pub fn on_peer_lost(&mut self, peer: PeerId) {
        if let Some(session) = self.by_peer.get(&peer).and_then(|id| self.sessions.get_mut(id)) {
            session.connected = false;
        }
    }

    /// A peer broke the protocol: its session ends. What its slots' numbers decided stays decided.
    pub fn on_misbehaviour(&mut self, now: Instant, peer: PeerId) {
        let Some(id) = self.by_peer.get(&peer).copied() else { return };
        let Some(session) = self.remove(id) else { return };
        let numbers = self.cache.close(id);
        if session.has_records {
            self.park(now, SessionName { peer, nonce: session.nonce }, numbers);
        }
    }

    /// Ends sessions of silent clients and lets go of old replies, a few times per lifetime.
    pub fn handle_timeouts(&mut self, now: Instant) {
        if now < self.next_sweep {
            return;
        }
        let lifetime = self.limits.session_lifetime;
        let silent: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.running_count == 0 && now.since(session.last_heard) >= lifetime)
            .map(|(id, _)| *id)
            .collect();
        for id in silent {
            self.end(id);
        }
        let over = self.parked.iter().filter(|(_, parked)| parked.until <= now).map(|(name, _)| *name);
        for name in over.collect::<Vec<_>>() {
            self.parked.remove(&name);
            self.forgotten.push_back(name);
        }
        self.cache.sweep(now);
        let is_empty = self.sessions.is_empty() && self.parked.is_empty();
        self.next_sweep = if is_empty { Instant::NEVER } else { now + lifetime / 4 };
    }

    /// When [`Responder::handle_timeouts`] has to run next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        (self.next_sweep != Instant::NEVER).then_some(self.next_sweep)
    }

    /// A request does not run any more; its session, if it still lives.
    fn stopped(&mut self, ticket: Ticket) -> Option<&mut Session> {
        let session = self.sessions.get_mut(&ticket.session)?;
        session.running_count = session.running_count.saturating_sub(1);
        Some(session)
    }

    /// Ends a session whose client is gone or has gone on.
    fn end(&mut self, id: SessionId) {
        let Some(session) = self.remove(id) else { return };
        self.cache.close(id);
        if session.has_records {
            self.forgotten.push_back(SessionName { peer: session.peer, nonce: session.nonce });
        }
    }

    fn remove(&mut self, id: SessionId) -> Option<Session> {
        let session = self.sessions.remove(&id)?;
        if self.by_peer.get(&session.peer) == Some(&id) {
            self.by_peer.remove(&session.peer);
        }
        self.stats.sessions_ended += 1;
        Some(session)
    }

    /// Ends the session that is idle the longest, those without a connection first. False if all are busy or have records.
    fn evict(&mut self) -> bool {
        let idle =
            self.sessions.iter().filter(|(_, session)| session.running_count == 0 && !session.has_records);
        let Some((id, _)) = idle.min_by_key(|(id, session)| (session.connected, session.last_heard, **id))
        else {
            return false;
        };
        let id = *id;
        self.end(id);
        self.stats.sessions_evicted += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::item::Kind;
    use base::Nid;

    fn peer(n: u16, epoch: u64) -> PeerId {
        let endpoint = base::Endpoint { nid: Nid::LOOPBACK, pid: 1, portal: 34, tmid: n };
        PeerId { endpoint, epoch }
    }

    fn responder(sessions_max: usize) -> Responder<Vec<u8>> {
        let replies = ReplyBounds { count_max: 16, bytes_max: 1000, lifetime: Duration::from_secs(90) };
        let session_lifetime = Duration::from_secs(120);
        Responder::new(
            1,
            ResponderLimits { slots: 4, sessions_max, session_lifetime, replies, durable_slots: true },
            false,
        )
    }

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    fn open(r: &mut Responder<Vec<u8>>, now: Instant, from: PeerId, nonce: u64) -> SessionId {
        match r.handle_establish(now, from, Xid(nonce)) {
            EstablishDecision::Established(id) => id,
            other => panic!("{other:?}"),
        }
    }

    fn request(session: SessionId, slot: u16, xid: u64) -> Header {
        Header::control(Kind::Request { opcode: 49 }, session, slot, Xid(xid))
    }

    #[test]
    fn the_nonce_decides_whether_a_session_is_new() {
        let mut r = responder(8);
        let a = peer(1, 10);
        let first = open(&mut r, at(0), a, 1);
        assert_eq!(open(&mut r, at(1), a, 1), first, "our answer was lost");
        let second = open(&mut r, at(2), a, 2);
        assert_ne!(second, first);
        assert_eq!(r.handle_establish(at(3), a, Xid(1)), EstablishDecision::Ignore, "late duplicate");
        assert_eq!(r.handle_request(at(3), a, &request(first, 0, 1), true), Ok(Decision::Ended));
        assert_eq!(r.sessions_count(), 1);
        assert_ne!(Responder::<Vec<u8>>::new(2, r.limits, false).next_session, r.next_session);
    }

    #[test]
    fn a_session_serves_its_peer_only() {
        let mut r = responder(8);
        let id = open(&mut r, at(0), peer(1, 10), 1);
        for foreign in [peer(1, 11), peer(2, 10)] {
            let got = r.handle_request(at(0), foreign, &request(id, 0, 1), true);
            assert!(matches!(got, Err(PeerMisbehaved::ForeignSession { .. })));
        }
        assert!(matches!(
            r.handle_request(at(0), peer(1, 10), &request(id, 0, 1), true),
            Ok(Decision::Execute(_))
        ));
    }

    #[test]
    fn without_room_a_request_leaves_no_trace() {
        let mut r = responder(8);
        let a = peer(1, 10);
        let id = open(&mut r, at(0), a, 1);
        assert_eq!(r.handle_request(at(0), a, &request(id, 0, 1), false), Ok(Decision::Ignore));
        assert!(matches!(r.handle_request(at(1), a, &request(id, 0, 1), true), Ok(Decision::Execute(_))));
    }

    #[test]
    fn a_cancelled_request_never_runs() {
        let mut r = responder(8);
        let a = peer(1, 10);
        let id = open(&mut r, at(0), a, 1);
        assert_eq!(r.handle_cancel(at(0), a, &request(id, 0, 1)), Ok(Decision::Dropped));
        assert_eq!(r.handle_request(at(0), a, &request(id, 0, 1), true), Ok(Decision::Dropped));
        let Ok(Decision::Execute(ticket)) = r.handle_request(at(0), a, &request(id, 0, 2), true) else {
            panic!()
        };
        assert_eq!(
            r.handle_cancel(at(0), a, &request(id, 0, 2)),
            Ok(Decision::StillRunning),
            "it runs already"
        );
        assert!(r.finish(at(0), ticket, vec![5]));
        assert_eq!(r.handle_cancel(at(0), a, &request(id, 0, 2)), Ok(Decision::Resend(vec![5])));
    }

    #[test]
    fn silent_sessions_end_and_busy_ones_do_not() {
        let mut r = responder(8);
        let (quiet, busy) = (peer(1, 1), peer(2, 1));
        open(&mut r, at(0), quiet, 1);
        let id = open(&mut r, at(0), busy, 1);
        let Ok(Decision::Execute(ticket)) = r.handle_request(at(0), busy, &request(id, 0, 1), true) else {
            panic!()
        };
        assert_eq!(r.next_deadline(), Some(at(30)));
        r.handle_timeouts(at(119));
        assert_eq!(r.sessions_count(), 2);
        r.handle_timeouts(at(150));
        assert_eq!(r.sessions_count(), 1);
        assert!(r.finish(at(150), ticket, vec![1]));
        r.handle_timeouts(at(269));
        assert_eq!(r.sessions_count(), 1, "its client may count from the reply");
        r.handle_timeouts(at(300));
        assert_eq!((r.sessions_count(), r.replies_kept(), r.next_deadline()), (0, 0, None));
    }

    #[test]
    fn a_full_table_evicts_the_idle_and_refuses_when_all_are_busy() {
        let mut r = responder(2);
        let (a, b, c, d) = (peer(1, 1), peer(2, 1), peer(3, 1), peer(4, 1));
        let id_a = open(&mut r, at(0), a, 1);
        let id_b = open(&mut r, at(1), b, 1);
        r.on_peer_lost(b);
        let id_c = open(&mut r, at(2), c, 1);
        assert_eq!(
            r.handle_request(at(2), b, &request(id_b, 0, 1), true),
            Ok(Decision::Ended),
            "unconnected first"
        );
        for (who, id) in [(a, id_a), (c, id_c)] {
            assert!(matches!(
                r.handle_request(at(2), who, &request(id, 0, 1), true),
                Ok(Decision::Execute(_))
            ));
        }
        assert_eq!(r.handle_establish(at(3), d, Xid(1)), EstablishDecision::Refused);
    }

    fn record(name: SessionName, slot: u16, xid: u64, body: &[u8]) -> SlotRecord {
        SlotRecord { name, slot, xid: Xid(xid), result: Some(body.into()) }
    }

    #[test]
    fn a_session_goes_on_after_a_restart_from_the_highest_record_of_each_slot() {
        let a = peer(1, 10);
        let name = SessionName { peer: a, nonce: Xid(3) };
        let mut r = responder(8);
        assert_eq!(r.handle_resume(at(0), a, Xid(3)), EstablishDecision::Refused, "records are not read yet");
        // The records of two devices.
        r.adopt(at(0), [record(name, 1, 5, &[5]), record(name, 1, 9, &[9]), record(name, 2, 4, &[4])]);
        let EstablishDecision::Resumed(id) = r.handle_resume(at(1), a, Xid(3)) else { panic!() };
        let mut ask = |slot, xid| r.handle_request(at(1), a, &request(id, slot, xid), true).unwrap();
        assert_eq!(ask(1, 9), Decision::Replay([9].into()), "it ran before the restart");
        assert_eq!(ask(2, 3), Decision::Ignore, "answered long ago");
        // None of them has a record. Where one may be lost, they may have run.
        assert!(matches!(ask(1, 10), Decision::Execute(Ticket { is_first: true, .. })));
        assert!(
            matches!(ask(2, 8), Decision::Execute(Ticket { is_first: true, .. })),
            "5 to 7 changed nothing"
        );
        let Decision::Execute(ticket @ Ticket { is_first: true, .. }) = ask(0, 77) else { panic!() };
        r.finish(at(1), ticket, vec![1]);
        let next = r.handle_request(at(1), a, &request(id, 0, 78), true).unwrap();
        assert!(matches!(next, Decision::Execute(Ticket { is_first: false, .. })), "sent after the restart");
        assert_eq!(r.handle_resume(at(2), a, Xid(3)), EstablishDecision::Resumed(id), "our answer was lost");
        assert_eq!((r.parked_count(), r.stats().0.sessions_resumed), (0, 1));
    }

    #[test]
    fn records_go_when_nobody_can_ask_for_them_any_more() {
        let (a, b) = (peer(1, 10), peer(2, 10));
        let mut r = responder(8);
        let old = SessionName { peer: a, nonce: Xid(3) };
        r.adopt(at(0), [record(old, 1, 5, &[]), record(SessionName { peer: b, nonce: Xid(1) }, 1, 5, &[])]);
        open(&mut r, at(1), a, 4);
        assert_eq!(r.poll_forgotten(), Some(old), "its client has gone on");
        r.handle_timeouts(at(119));
        assert_eq!((r.poll_forgotten(), r.parked_count()), (None, 1));
        r.handle_timeouts(at(150));
        assert_eq!(r.poll_forgotten(), Some(SessionName { peer: b, nonce: Xid(1) }), "its client never came");
        assert_eq!((r.poll_forgotten(), r.sessions_count(), r.next_deadline()), (None, 0, None));
    }

    #[test]
    fn a_session_with_records_is_not_evicted_and_outlives_misbehaviour() {
        let (a, b) = (peer(1, 1), peer(2, 1));
        let mut r = responder(1);
        r.adopt(at(0), []);
        let id = open(&mut r, at(0), a, 1);
        let Ok(Decision::Execute(ticket)) = r.handle_request(at(0), a, &request(id, 0, 1), true) else {
            panic!()
        };
        r.on_record(at(0), ticket);
        r.finish(at(0), ticket, vec![1]);
        assert_eq!(r.handle_establish(at(1), b, Xid(1)), EstablishDecision::Refused);
        r.on_misbehaviour(at(1), a);
        assert_eq!((r.sessions_count(), r.parked_count(), r.poll_forgotten()), (0, 1, None));
        let EstablishDecision::Resumed(id) = r.handle_resume(at(2), a, Xid(1)) else { panic!() };
        assert_eq!(r.handle_request(at(2), a, &request(id, 0, 1), true), Ok(Decision::ReplyGone));
        // A request that outlives its session leaves a record that goes in its time.
        let Ok(Decision::Execute(ticket)) = r.handle_request(at(2), a, &request(id, 0, 2), true) else {
            panic!()
        };
        open(&mut r, at(3), a, 2);
        assert_eq!(r.poll_forgotten(), Some(ticket.name()));
        r.on_record(at(3), ticket);
        r.handle_timeouts(at(300));
        assert_eq!(r.poll_forgotten(), Some(ticket.name()));
    }
}
