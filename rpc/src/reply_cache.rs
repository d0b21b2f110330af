//! Keeps the last number and the last reply of every session slot, so that a resent request is answered and not run twice.
//!
//! The number decides and is never evicted while the session lives; reply bytes are kept under three bounds (count, bytes,
//! lifetime), the oldest giving way first. A resend whose reply bytes are gone is told so and never runs again.
//! The entry of a request is made before it runs: its states are running, done (reply kept or gone) and dropped (never ran).
//!
//! A walk that is being made anyway takes the replies along whose lifetime is over (at most [`WALK_MAX`] each), and a sweeper the rest.
//! A resend is compared before anything is freed: it may still be answered by a reply that is over and not swept. It moves the
//! reply to the end of the order of age: whoever asks twice may ask again.
//!
//! A session that was resumed after a restart starts from its durable records ([`crate::slot_record`]): their numbers decide, and
//! numbers between a record and the next request are not counted as skipped, because only what changed something was recorded.
//! Thread: the owning locality. Start at [`ReplyCache::decide`].
//!
//! **Invariant**: `kept_count` and `kept_bytes` are the sums over slots that hold reply bytes (asserted in debug builds when a
//! session closes and at each sweep).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use base::Instant;

use crate::item::{SessionId, Xid};
use crate::misbehaviour::PeerMisbehaved;

/// What to do with a request that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<B> {
    /// New: run it.
    Execute,
    /// Ran; the reply was lost on the way: send it again.
    Resend(B),
    /// Ran; its reply is no longer kept. Never runs again.
    ReplyGone,
    /// Cancelled before it ran. Never runs.
    Dropped,
    /// Twin of the one that runs: its answer will serve both.
    StillRunning,
    /// Answered long ago; the client has moved on.
    Stale,
    /// Ran before the server restarted; this is the body of its reply.
    Replay(Box<[u8]>),
}

/// What a slot of a resumed session begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumedSlot {
    /// Which.
    pub slot: u16,
    /// Number of the last request in it that changed something.
    pub xid: Xid,
    /// Body of its reply. `None`: not kept.
    pub result: Option<Box<[u8]>>,
}

/// Replies over their lifetime that one finished request takes along.
pub const WALK_MAX: usize = 4;

#[derive(Debug)]
enum SlotState<B> {
    /// Nothing came in yet.
    Fresh,
    /// Runs or waits to run.
    Running,
    /// Runs once more, without holding the slot.
    Again,
    /// Ran. `seq` finds the reply's place in the order of age.
    Done { kept: Option<(B, u64)> },
    /// Was cancelled before it ran.
    Dropped,
    /// Nothing came in since the server restarted; the number is that of the last request known to have changed something.
    Resumed { result: Option<Box<[u8]>> },
}

#[derive(Debug)]
struct Slot<B> {
    last_xid: Xid,
    state: SlotState<B>,
}

/// A reply's place in the order of age. Stale once its slot has moved on.
#[derive(Clone, Copy, Debug)]
struct Kept {
    seq: u64,
    session: SessionId,
    slot: u16,
    bytes: usize,
    since: Instant,
    until: Instant,
}

/// Bounds of the kept replies.
#[derive(Clone, Copy, Debug)]
pub struct ReplyBounds {
    /// Replies.
    pub count_max: usize,
    /// Bytes of them.
    pub bytes_max: usize,
    /// How long each is kept.
    pub lifetime: Duration,
}

/// Counters of the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplyCacheStats {
    /// Requests looked up.
    pub checks: u64,
    /// Resends answered with kept bytes.
    pub hits: u64,
    /// Twins of a running request.
    pub in_progress_hits: u64,
    /// Resends whose reply was gone.
    pub gone: u64,
    /// Old duplicates.
    pub stale: u64,
    /// Replies that gave way before their lifetime was over.
    pub overflows: u64,
    /// Resends answered from the durable record of a slot.
    pub replays: u64,
    /// Replies that were let go because they were over or gave way; most go unasked with the slot's next request.
    pub freed: u64,
    /// Sum of the times for which those were kept, in microseconds.
    pub kept_us: u64,
}

impl ReplyCacheStats {
    /// How long a reply was kept on average.
    #[must_use]
    pub fn mean_lifetime(&self) -> Duration {
        Duration::from_micros(self.kept_us.checked_div(self.freed).unwrap_or(0))
    }
}

/// The cache of one locality: every slot of every session.
#[derive(Debug)]
pub struct ReplyCache<B> {
    bounds: ReplyBounds,
    slots: BTreeMap<SessionId, Box<[Slot<B>]>>,
    order: VecDeque<Kept>,
    next_seq: u64,
    kept_count: usize,
    kept_bytes: usize,
    /// Replies whose slots have moved on, until [`ReplyCache::let_go_of_spent`].
    spent: Vec<B>,
    stats: ReplyCacheStats,
    /// Tests break the cache with this to show that they would notice.
    broken: bool,
}

impl<B: Clone + AsRef<[u8]>> ReplyCache<B> {
    /// An empty cache. `broken`: forget everything, for tests of the tests.
    #[must_use]
    pub fn new(bounds: ReplyBounds, broken: bool) -> ReplyCache<B> {
        ReplyCache {
            bounds,
            slots: BTreeMap::new(),
            order: VecDeque::new(),
            next_seq: 0,
            kept_count: 0,
            kept_bytes: 0,
            spent: Vec::new(),
            stats: ReplyCacheStats::default(),
            broken,
        }
    }

    /// Counters so far.
    #[must_use]
    pub fn stats(&self) -> ReplyCacheStats {
        self.stats
    }

    /// Replies that are kept now.
    #[must_use]
    pub fn kept_count(&self) -> usize {
        self.kept_count
    }

    /// Makes the slots of a new session.
    pub fn open(&mut self, session: SessionId, slots: u16) {
        let fresh = || Slot { last_xid: Xid(0), state: SlotState::Fresh };
        self.slots.insert(session, (0..slots).map(|_| fresh()).collect());
    }

    /// Makes the slots of a session that lived before the server restarted. Records of slots that it no longer has are dropped.
    pub fn open_resumed(&mut self, session: SessionId, slots: u16, records: Vec<ResumedSlot>) {
        let resumed = || Slot { last_xid: Xid(0), state: SlotState::Resumed { result: None } };
        self.slots.insert(session, (0..slots).map(|_| resumed()).collect());
        for ResumedSlot { slot, xid, result } in records {
            self.set(session, slot, xid, SlotState::Resumed { result });
        }
    }

    /// Forgets a session: slots, numbers, replies. The last numbers, for whoever keeps them.
    pub fn close(&mut self, session: SessionId) -> Vec<ResumedSlot> {
        let Some(slots) = self.slots.remove(&session) else { return Vec::new() };
        let mut numbers = Vec::new();
        for (index, slot) in (0..).zip(slots) {
            if slot.last_xid != Xid(0) {
                numbers.push(ResumedSlot { slot: index, xid: slot.last_xid, result: None });
            }
            self.forget(&slot.state);
        }
        self.tidy();
        numbers
    }

    /// Decides about request `xid` in `slot`. [`ReplyCache::begin`] makes the entry; here only counters and the age of a reply that is
    /// asked for again change.
    #[inline(never)] // `clovis bench rpc` counts its instructions by its name
    pub fn decide(
        &mut self,
        now: Instant,
        session: SessionId,
        slot: u16,
        xid: Xid,
    ) -> Result<Verdict<B>, PeerMisbehaved> {
        self.stats.checks += 1;
        let Some(slots) = self.slots.get(&session) else { return Ok(Verdict::Stale) };
        let slots_count = u16::try_from(slots.len()).unwrap_or(u16::MAX);
        let Some(entry) = slots.get(usize::from(slot)) else {
            return Err(PeerMisbehaved::NoSuchSlot { slot, slots: slots_count });
        };
        if self.broken {
            return Ok(Verdict::Execute);
        }
        let last = entry.last_xid;
        let verdict = match (xid.distance_from(last), &entry.state) {
            (1, SlotState::Running) => {
                return Err(PeerMisbehaved::SlotBusy { slot, running: last.0, got: xid.0 });
            }
            // (1, Again): the requester has its answer, from the run before.
            (1, _) | (1.., SlotState::Resumed { .. }) => Verdict::Execute,
            (0, SlotState::Running | SlotState::Again) => Verdict::StillRunning, // twin of the one in progress
            (0, SlotState::Done { kept: Some((reply, _)) }) => Verdict::Resend(reply.clone()), // our reply was lost
            (0, SlotState::Done { kept: None }) => Verdict::ReplyGone, // it ran, and must not run again
            (0, SlotState::Dropped) => Verdict::Dropped,               // overtaken by its own cancellation
            (0, SlotState::Resumed { result: Some(body) }) => Verdict::Replay(body.clone()), // it ran before the restart
            (0, SlotState::Resumed { result: None }) => Verdict::ReplyGone,
            (..=0, _) => Verdict::Stale, // answered long ago: the slot's next request says so
            (2.., _) => {
                return Err(PeerMisbehaved::SkippedXid { slot, last: last.0, got: xid.0 });
            }
        };
        match verdict {
            Verdict::Resend(_) => {
                self.stats.hits += 1;
                self.touch(now, session, slot);
            }
            Verdict::Replay(_) => self.stats.replays += 1,
            Verdict::StillRunning => self.stats.in_progress_hits += 1,
            Verdict::ReplyGone => self.stats.gone += 1,
            Verdict::Stale | Verdict::Dropped => self.stats.stale += 1,
            Verdict::Execute => {}
        }
        Ok(verdict)
    }

    /// Makes the entry of a request that [`ReplyCache::decide`] let pass, before it runs. True if it is the first in its slot since the server
    /// restarted: that it did not run before is only as certain as the records are complete.
    #[inline(never)] // as `decide`
    pub fn begin(&mut self, session: SessionId, slot: u16, xid: Xid) -> bool {
        match self.set(session, slot, xid, SlotState::Running) {
            Some(SlotState::Resumed { .. }) => true,
            Some(SlotState::Done { kept: Some((reply, _)) }) => {
                self.spent.push(reply);
                false
            }
            _ => false,
        }
    }

    /// Frees the replies whose slots have moved on: not at once, as the slot's next request waits.
    pub fn let_go_of_spent(&mut self) {
        self.spent.clear();
    }

    /// A request that may be repeated runs once more, because what its reply told of may not have arrived. Unlike [`ReplyCache::begin`] it does
    /// not hold its slot: the next request may come meanwhile, and then this one's reply is of no use.
    pub fn begin_again(&mut self, session: SessionId, slot: u16, xid: Xid) {
        self.set(session, slot, xid, SlotState::Again);
    }

    /// The request ran: keeps its reply, if the bounds allow. False if the session is gone: nobody waits for the reply.
    pub fn finish(&mut self, now: Instant, session: SessionId, slot: u16, xid: Xid, reply: B) -> bool {
        let bytes = reply.as_ref().len();
        let entry = self.slots.get_mut(&session).and_then(|slots| slots.get_mut(usize::from(slot)));
        let Some(entry) = entry.filter(|entry| entry.last_xid == xid || self.broken) else { return false };
        let seq = self.next_seq;
        self.next_seq += 1;
        entry.last_xid = xid;
        let before = std::mem::replace(&mut entry.state, SlotState::Done { kept: Some((reply, seq)) });
        self.forget(&before);
        self.kept_count += 1;
        self.kept_bytes += bytes;
        self.order.push_back(Kept {
            seq,
            session,
            slot,
            bytes,
            since: now,
            until: now + self.bounds.lifetime,
        });
        self.walk(now, WALK_MAX);
        while self.kept_count > self.bounds.count_max || self.kept_bytes > self.bounds.bytes_max {
            let Some(oldest) = self.order.pop_front() else { break };
            if self.drop_reply(now, &oldest) {
                self.stats.overflows += 1;
            }
        }
        self.tidy();
        true
    }

    /// The reply to a request, if it is kept and its slot has not moved on.
    #[must_use]
    pub fn kept(&self, session: SessionId, slot: u16, xid: Xid) -> Option<B> {
        match self.slots.get(&session)?.get(usize::from(slot))? {
            Slot { last_xid, state: SlotState::Done { kept: Some((reply, _)) } } if *last_xid == xid => {
                Some(reply.clone())
            }
            _ => None,
        }
    }

    /// The request will never run: it was cancelled, or its deadline passed before its turn came.
    pub fn drop_request(&mut self, session: SessionId, slot: u16, xid: Xid) {
        let entry = self.slots.get(&session).and_then(|slots| slots.get(usize::from(slot)));
        // A repeated one may have been overtaken by the slot's next.
        if entry.is_some_and(|entry| xid.distance_from(entry.last_xid) >= 0) {
            self.set(session, slot, xid, SlotState::Dropped);
        }
    }

    /// Lets go of replies that are older than their lifetime.
    pub fn sweep(&mut self, now: Instant) {
        self.walk(now, usize::MAX);
        self.check_sums();
    }

    /// Lets go of at most `count_max` places at the old end whose lifetime is over or whose slot went on.
    fn walk(&mut self, now: Instant, count_max: usize) {
        for _ in 0..count_max {
            let Some(oldest) = self.order.front().copied() else { break };
            let is_kept = self.is_kept(&oldest);
            if is_kept && oldest.until > now {
                break;
            }
            self.order.pop_front();
            if is_kept {
                self.drop_reply(now, &oldest);
            }
        }
    }

    /// A reply was asked for again: it is the youngest now.
    fn touch(&mut self, now: Instant, session: SessionId, slot: u16) {
        let seq = self.next_seq;
        let until = now + self.bounds.lifetime;
        let entry = self.slots.get_mut(&session).and_then(|slots| slots.get_mut(usize::from(slot)));
        let Some(Slot { state: SlotState::Done { kept: Some((reply, kept_seq)) }, .. }) = entry else {
            return;
        };
        let bytes = reply.as_ref().len();
        *kept_seq = seq; // its old place in the order is stale from now on
        self.next_seq += 1;
        self.order.push_back(Kept { seq, session, slot, bytes, since: now, until });
        self.tidy();
    }

    /// What the slot was before.
    fn set(&mut self, session: SessionId, slot: u16, xid: Xid, state: SlotState<B>) -> Option<SlotState<B>> {
        let entry = self.slots.get_mut(&session)?.get_mut(usize::from(slot))?;
        entry.last_xid = xid;
        let before = std::mem::replace(&mut entry.state, state);
        self.forget(&before);
        Some(before)
    }

    /// Takes a state that is no longer in a slot out of the sums.
    fn forget(&mut self, state: &SlotState<B>) {
        if let SlotState::Done { kept: Some((reply, _)) } = state {
            self.kept_count -= 1;
            self.kept_bytes -= reply.as_ref().len();
        }
    }

    fn is_kept(&self, kept: &Kept) -> bool {
        let slot = self.slots.get(&kept.session).and_then(|slots| slots.get(usize::from(kept.slot)));
        matches!(slot, Some(Slot { state: SlotState::Done { kept: Some((_, seq)) }, .. }) if *seq == kept.seq)
    }

    /// Lets go of the reply at `kept`, if it is still there.
    fn drop_reply(&mut self, now: Instant, kept: &Kept) -> bool {
        if !self.is_kept(kept) {
            return false;
        }
        self.stats.freed += 1;
        let kept_us = u64::try_from(now.since(kept.since).as_micros()).unwrap_or(u64::MAX);
        self.stats.kept_us = self.stats.kept_us.saturating_add(kept_us);
        if let Some(slot) =
            self.slots.get_mut(&kept.session).and_then(|slots| slots.get_mut(usize::from(kept.slot)))
        {
            slot.state = SlotState::Done { kept: None };
        }
        self.kept_count -= 1;
        self.kept_bytes -= kept.bytes;
        true
    }

    /// Keeps the order of age in proportion to the replies kept: places of slots that moved on go, at amortised O(1).
    fn tidy(&mut self) {
        if self.order.len() > 2 * self.kept_count + 64 {
            let mut order = std::mem::take(&mut self.order);
            order.retain(|kept| self.is_kept(kept));
            self.order = order;
        }
    }

    fn check_sums(&self) {
        if cfg!(debug_assertions) {
            let replies =
                self.slots.values().flat_map(|slots| slots.iter()).filter_map(|slot| match &slot.state {
                    SlotState::Done { kept: Some((reply, _)) } => Some(reply.as_ref().len()),
                    _ => None,
                });
            let (count, bytes) = replies.fold((0, 0), |(count, bytes), len| (count + 1, bytes + len));
            assert_eq!((count, bytes), (self.kept_count, self.kept_bytes), "sums of kept replies");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: SessionId = SessionId(1);

    fn cache(count_max: usize, bytes_max: usize) -> ReplyCache<Vec<u8>> {
        let bounds = ReplyBounds { count_max, bytes_max, lifetime: Duration::from_secs(90) };
        let mut cache = ReplyCache::new(bounds, false);
        cache.open(S, 4);
        cache
    }

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn decision_table() {
        let mut c = cache(8, 1000);
        assert_eq!(c.decide(at(0), S, 0, Xid(1)), Ok(Verdict::Execute));
        assert!(matches!(
            c.decide(at(0), S, 0, Xid(2)),
            Err(PeerMisbehaved::SkippedXid { last: 0, got: 2, .. })
        ));
        assert!(matches!(
            c.decide(at(0), S, 4, Xid(1)),
            Err(PeerMisbehaved::NoSuchSlot { slot: 4, slots: 4 })
        ));
        c.begin(S, 0, Xid(1));
        assert_eq!(c.decide(at(0), S, 0, Xid(1)), Ok(Verdict::StillRunning));
        assert!(matches!(
            c.decide(at(0), S, 0, Xid(2)),
            Err(PeerMisbehaved::SlotBusy { running: 1, got: 2, .. })
        ));
        assert_eq!(c.decide(at(0), S, 1, Xid(1)), Ok(Verdict::Execute), "another slot is free");
        assert!(c.finish(at(0), S, 0, Xid(1), vec![7]));
        assert_eq!(c.decide(at(0), S, 0, Xid(1)), Ok(Verdict::Resend(vec![7])));
        assert_eq!(c.decide(at(0), S, 0, Xid(2)), Ok(Verdict::Execute));
        c.begin(S, 0, Xid(2));
        assert_eq!(c.decide(at(0), S, 0, Xid(1)), Ok(Verdict::Stale));
        c.drop_request(S, 0, Xid(2));
        assert_eq!(c.decide(at(0), S, 0, Xid(2)), Ok(Verdict::Dropped));
        assert_eq!(c.decide(at(0), S, 0, Xid(3)), Ok(Verdict::Execute));
        assert_eq!(c.kept_count(), 0);
        c.close(S);
        assert_eq!(c.decide(at(0), S, 0, Xid(3)), Ok(Verdict::Stale));
    }

    #[test]
    fn a_full_cache_forgets_the_oldest_bytes_and_no_number() {
        let mut c = cache(2, 1000);
        for slot in 0..3 {
            c.begin(S, slot, Xid(1));
            c.finish(at(0), S, slot, Xid(1), vec![1]);
        }
        assert_eq!(c.decide(at(0), S, 0, Xid(1)), Ok(Verdict::ReplyGone));
        assert_eq!(c.decide(at(0), S, 1, Xid(1)), Ok(Verdict::Resend(vec![1])));
        assert_eq!(c.stats().overflows, 1);
        let mut c = cache(100, 10);
        c.begin(S, 0, Xid(1));
        c.finish(at(0), S, 0, Xid(1), vec![1; 11]);
        assert_eq!(c.decide(at(0), S, 0, Xid(1)), Ok(Verdict::ReplyGone), "larger than the whole cache");
        assert_eq!(c.kept_count(), 0);
    }

    #[test]
    fn replies_go_with_their_lifetime_and_not_before() {
        let mut c = cache(8, 1000);
        for (slot, second) in [(0, 0), (1, 10)] {
            c.begin(S, slot, Xid(1));
            c.finish(at(second), S, slot, Xid(1), vec![1]);
        }
        c.sweep(at(89));
        assert_eq!(c.kept_count(), 2);
        c.sweep(at(90));
        assert_eq!(c.decide(at(0), S, 0, Xid(1)), Ok(Verdict::ReplyGone));
        assert_eq!(c.decide(at(0), S, 1, Xid(1)), Ok(Verdict::Resend(vec![1])));
    }

    #[test]
    fn a_resumed_slot_goes_on_from_its_record() {
        let mut c = cache(8, 1000);
        let ran = ResumedSlot { slot: 0, xid: Xid(7), result: Some([9].into()) };
        let long = ResumedSlot { slot: 1, xid: Xid(3), result: None };
        let no_such = ResumedSlot { slot: 9, xid: Xid(3), result: None };
        c.open_resumed(SessionId(2), 4, vec![ran, long, no_such]);
        let s = SessionId(2);
        assert_eq!(c.decide(at(0), s, 0, Xid(7)), Ok(Verdict::Replay([9].into())));
        assert_eq!(c.decide(at(0), s, 0, Xid(6)), Ok(Verdict::Stale));
        assert_eq!(c.decide(at(0), s, 1, Xid(3)), Ok(Verdict::ReplyGone));
        assert_eq!(c.decide(at(0), s, 0, Xid(12)), Ok(Verdict::Execute), "8 to 11 changed nothing");
        assert_eq!(c.decide(at(0), s, 2, Xid(40)), Ok(Verdict::Execute), "nothing in it changed anything");
        assert!(c.begin(s, 0, Xid(12)), "the first since the restart");
        assert_eq!(c.decide(at(0), s, 0, Xid(7)), Ok(Verdict::Stale));
        assert!(matches!(c.decide(at(0), s, 0, Xid(13)), Err(PeerMisbehaved::SlotBusy { .. })));
        c.finish(at(0), s, 0, Xid(12), vec![1]);
        assert!(matches!(c.decide(at(0), s, 0, Xid(14)), Err(PeerMisbehaved::SkippedXid { .. })));
        assert!(c.begin(s, 2, Xid(40)) && !c.begin(s, 2, Xid(41)), "whatever the slot's record says");
        assert_eq!(c.close(s)[0], ResumedSlot { slot: 0, xid: Xid(12), result: None });
        c.sweep(at(0));
    }

    #[test]
    fn a_reply_that_is_asked_for_again_is_the_youngest() {
        let mut c = cache(2, 1000);
        for slot in 0..2 {
            c.begin(S, slot, Xid(1));
            c.finish(at(0), S, slot, Xid(1), vec![1]);
        }
        assert_eq!(c.decide(at(1), S, 0, Xid(1)), Ok(Verdict::Resend(vec![1])));
        c.begin(S, 2, Xid(1));
        c.finish(at(2), S, 2, Xid(1), vec![1]);
        assert_eq!(c.decide(at(2), S, 1, Xid(1)), Ok(Verdict::ReplyGone), "it was the oldest");
        assert_eq!(c.decide(at(2), S, 0, Xid(1)), Ok(Verdict::Resend(vec![1])));
        assert_eq!((c.stats().freed, c.stats().mean_lifetime()), (1, Duration::from_secs(2)));
    }

    #[test]
    fn a_walk_takes_along_what_is_over_and_a_resend_is_compared_first() {
        let mut c = cache(8, 1000);
        c.begin(S, 0, Xid(1));
        c.finish(at(0), S, 0, Xid(1), vec![1]);
        c.begin(S, 1, Xid(1));
        c.finish(at(1), S, 1, Xid(1), vec![2]);
        // Over since second 90, and nobody swept: the resend of slot 1 is answered all the same.
        assert_eq!(c.decide(at(95), S, 1, Xid(1)), Ok(Verdict::Resend(vec![2])));
        c.begin(S, 2, Xid(1));
        c.finish(at(95), S, 2, Xid(1), vec![3]);
        assert_eq!(c.decide(at(95), S, 0, Xid(1)), Ok(Verdict::ReplyGone), "the walk of slot 2 took it");
        assert_eq!(c.kept_count(), 2);
    }

    #[test]
    fn the_order_of_age_stays_short() {
        let mut c = cache(8, 1000);
        c.begin(S, 3, Xid(1));
        c.finish(at(0), S, 3, Xid(1), vec![1]); // an idle slot at the front
        for n in 1..10_000u64 {
            c.begin(S, 0, Xid(n));
            c.finish(at(0), S, 0, Xid(n), vec![1]);
        }
        assert!(c.order.len() <= 2 * 2 + 65, "{}", c.order.len());
        c.sweep(at(0));
        assert_eq!(c.kept_count(), 2);
    }
}
