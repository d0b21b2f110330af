//! Requests that their handlers hold back on purpose: a watch that waits for news, a lock that is not free. Whoever asked is told so once
//! (`held`, docs/wire.md#session-control) and does not ask again before the time that it is told.
//!
//! The word goes out [`limits::HOLD_NOTICE`] after the hold began, which is before the first resend: most holds are over by then and cost nothing. A
//! twin that comes all the same (the word was lost) is answered with it. Pure: time comes in.
//!
//! Whoever was told to wait does not notice that its answer was lost. So the answer is sent again, at intervals that double as those of resends do, until
//! the slot moves on, or the requester asks by itself ([`Holds::answered`]). A lost connection ends that: then it asks anyway.
//!
//! Bound: one entry for each fom that holds, one for each slot with an answer that may be sent again. Thread: the owning locality. Start at
//! [`Holds::begin`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base::Instant;
use verbs_net::BulkCookie;

use crate::item::{Header, Kind, SessionId, Xid};
use crate::limits;
use crate::responder::Ticket;

type Key = (SessionId, u16);

#[derive(Debug)]
struct Hold {
    ticket: Ticket,
    until: Instant,
    notice_at: Instant,
    is_told: bool,
}

/// The answer to a request whose requester was told to wait: it is sent again, as nobody asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeat {
    /// The request.
    pub ticket: Ticket,
    /// What [`Holds::answered`] was told of its bulk.
    pub follows: Option<BulkCookie>,
    /// From then on the requester asks by itself.
    until: Instant,
    at: Instant,
    interval: Duration,
}

/// The word that a request is held, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The request.
    pub ticket: Ticket,
    /// The item to send.
    pub header: Header,
}

impl Hold {
    fn notice(&self, now: Instant) -> Notice {
        let Ticket { session, slot, xid, .. } = self.ticket;
        let left: Duration = self.until.since(now);
        let time_left_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        Notice {
            ticket: self.ticket,
            header: Header::control(Kind::Held { time_left_ms }, session, slot, xid),
        }
    }
}

/// The holds of one locality.
#[derive(Debug, Default)]
pub struct Holds {
    holds: BTreeMap<Key, Hold>,
    /// Of whom nobody has told yet.
    due: BTreeSet<(Instant, Key)>,
    /// Requests that are held no more and not answered yet, with the latest time for which somebody was told to wait.
    owed: BTreeMap<Key, (Xid, Instant)>,
    /// Answers to them.
    repeats: BTreeMap<Key, Repeat>,
    repeats_due: BTreeSet<(Instant, Key)>,
    told: u64,
}

impl Holds {
    /// A request is held until `until` at the latest. Twice for the same request: the later call counts.
    pub fn begin(&mut self, now: Instant, ticket: Ticket, until: Instant) {
        self.end(ticket);
        let key = (ticket.session, ticket.slot);
        self.forget_repeat(key);
        if self.owed.get(&key).is_some_and(|(xid, _)| *xid != ticket.xid) {
            self.owed.remove(&key);
        }
        let notice_at = now + limits::HOLD_NOTICE;
        if until > notice_at {
            self.due.insert((notice_at, key));
        }
        self.holds.insert(key, Hold { ticket, until, notice_at, is_told: false });
    }

    /// It is not any more.
    pub fn end(&mut self, ticket: Ticket) {
        let key = (ticket.session, ticket.slot);
        if self.holds.get(&key).is_some_and(|hold| hold.ticket.xid == ticket.xid)
            && let Some(hold) = self.holds.remove(&key)
        {
            self.due.remove(&(hold.notice_at, key));
            if hold.is_told {
                let before = self.owed.get(&key).filter(|(xid, _)| *xid == ticket.xid);
                let until = before.map_or(hold.until, |(_, until)| hold.until.max(*until));
                self.owed.insert(key, (ticket.xid, until));
            }
        }
    }

    /// A request was answered, held or not. `follows`: the sink that its pushes went into.
    pub fn answered(&mut self, now: Instant, ticket: Ticket, follows: Option<BulkCookie>) {
        if self.owed.is_empty() {
            return;
        }
        let key = (ticket.session, ticket.slot);
        let owed = self.owed.get(&key).filter(|(xid, _)| *xid == ticket.xid).copied();
        if let Some((_, until)) = owed {
            self.owed.remove(&key);
            let (at, interval) = (now + limits::HOLD_NOTICE, limits::HOLD_NOTICE);
            let until = until + limits::RESEND_INTERVAL;
            self.schedule(Repeat { ticket, follows, until, at, interval });
        }
    }

    /// The next answer to send again, if its session and slot still wait for it; then [`Holds::repeated`] has to be told.
    pub fn poll_repeat(&mut self, now: Instant) -> Option<Repeat> {
        let (_, key) = *self.repeats_due.first().filter(|(at, _)| *at <= now)?;
        self.repeats_due.pop_first();
        self.repeats.remove(&key)
    }

    /// An answer was sent again: it will be once more.
    pub fn repeated(&mut self, now: Instant, repeat: Repeat) {
        let interval = (repeat.interval * 2).min(limits::RESEND_INTERVAL_MAX);
        self.schedule(Repeat { at: now + interval, interval, ..repeat });
    }

    fn schedule(&mut self, repeat: Repeat) {
        let key = (repeat.ticket.session, repeat.ticket.slot);
        self.forget_repeat(key);
        if repeat.at < repeat.until {
            self.repeats_due.insert((repeat.at, key));
            self.repeats.insert(key, repeat);
        }
    }

    fn forget_repeat(&mut self, key: Key) {
        if let Some(repeat) = self.repeats.remove(&key) {
            self.repeats_due.remove(&(repeat.at, key));
        }
    }

    /// The next requester to tell.
    pub fn poll_notice(&mut self, now: Instant) -> Option<Notice> {
        let (_, key) = *self.due.first().filter(|(at, _)| *at <= now)?;
        self.due.pop_first();
        self.told += 1;
        let hold = self.holds.get_mut(&key)?;
        hold.is_told = true;
        Some(hold.notice(now))
    }

    /// What to tell a twin of a request, if that one is held and for a while yet.
    pub fn answer_twin(&mut self, now: Instant, session: SessionId, slot: u16, xid: Xid) -> Option<Notice> {
        let hold = self.holds.get_mut(&(session, slot))?;
        if hold.ticket.xid != xid || hold.until <= now {
            return None;
        }
        hold.is_told = true;
        self.told += 1;
        Some(hold.notice(now))
    }

    /// When [`Holds::poll_notice`] or [`Holds::poll_repeat`] has something next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        [&self.due, &self.repeats_due].into_iter().filter_map(|due| due.first()).map(|(at, _)| *at).min()
    }

    /// Requests that are held now, and words sent about some so far.
    #[must_use]
    pub fn counts(&self) -> (usize, u64) {
        (self.holds.len(), self.told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::{Endpoint, Nid};
    use verbs_net::PeerId;

    fn ticket(slot: u16, xid: u64) -> Ticket {
        let endpoint = Endpoint { nid: Nid::LOOPBACK, pid: 1, portal: 34, tmid: 1 };
        let peer = PeerId { endpoint, epoch: 1 };
        Ticket { peer, session: SessionId(3), nonce: Xid(1), slot, xid: Xid(xid), is_first: false }
    }

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn a_hold_is_told_once_and_a_short_one_never() {
        let mut holds = Holds::default();
        holds.begin(at(0), ticket(1, 7), at(10_000));
        holds.begin(at(0), ticket(2, 9), at(100)); // over before anybody has to be told
        let due = holds.next_deadline().unwrap();
        assert_eq!(due, Instant::ZERO + limits::HOLD_NOTICE);
        assert_eq!(holds.poll_notice(at(0)), None);
        let notice = holds.poll_notice(due).unwrap();
        let left = u32::try_from((at(10_000) - due).as_millis()).unwrap();
        assert_eq!((notice.ticket.slot, notice.header.kind), (1, Kind::Held { time_left_ms: left }));
        assert_eq!((notice.header.slot, notice.header.xid), (1, Xid(7)));
        assert_eq!((holds.poll_notice(at(9000)), holds.next_deadline()), (None, None));
        assert_eq!(holds.counts(), (2, 1));
    }

    #[test]
    fn a_twin_is_told_what_is_left_and_a_stranger_nothing() {
        let mut holds = Holds::default();
        holds.begin(at(0), ticket(1, 7), at(1000));
        let told = holds.answer_twin(at(600), SessionId(3), 1, Xid(7)).unwrap();
        assert_eq!(told.header.kind, Kind::Held { time_left_ms: 400 });
        for (session, slot, xid) in [(4, 1, 7), (3, 2, 7), (3, 1, 6)] {
            assert_eq!(holds.answer_twin(at(600), SessionId(session), slot, Xid(xid)), None);
        }
        assert_eq!(holds.answer_twin(at(1000), SessionId(3), 1, Xid(7)), None, "its time is over");
        holds.end(ticket(1, 6)); // the slot's request before
        assert_eq!(holds.counts().0, 1);
        holds.end(ticket(1, 7));
        assert_eq!((holds.counts().0, holds.next_deadline()), (0, None));
        assert_eq!(holds.answer_twin(at(600), SessionId(3), 1, Xid(7)), None);
    }

    /// Times at which the answer to `ticket(1, 7)` is sent again.
    fn repeats(holds: &mut Holds, until_ms: u64) -> Vec<u128> {
        let mut times = Vec::new();
        while let Some(next) = holds.next_deadline().filter(|next| *next <= at(until_ms)) {
            let repeat = holds.poll_repeat(next).unwrap();
            assert_eq!((repeat.ticket, holds.poll_repeat(next)), (ticket(1, 7), None));
            holds.repeated(next, repeat);
            times.push(next.since(Instant::ZERO).as_millis());
        }
        times
    }

    #[test]
    fn the_answer_to_whoever_was_told_to_wait_is_repeated_until_it_asks_by_itself() {
        let mut holds = Holds::default();
        holds.begin(at(0), ticket(1, 7), at(10_000));
        assert!(holds.poll_notice(at(250)).is_some());
        holds.end(ticket(1, 7));
        assert_eq!(holds.next_deadline(), None, "not answered yet");
        holds.answered(at(1000), ticket(1, 6), None); // another one
        holds.answered(at(1000), ticket(1, 7), None);
        assert_eq!(repeats(&mut holds, 60_000), [1250, 1750, 2750, 4750, 8750]);
        assert_eq!((holds.owed.len(), holds.repeats.len(), holds.repeats_due.len()), (0, 0, 0));
        // At the end of its time, half a second before it asks; and one that was not told asks soon enough.
        for (told_at, answered_at, wanted) in [(Some(250), 10_000, vec![10_250]), (None, 200, vec![])] {
            holds.begin(at(0), ticket(1, 7), at(10_000));
            assert!(told_at.is_none_or(|told_at| holds.poll_notice(at(told_at)).is_some()));
            holds.end(ticket(1, 7));
            holds.answered(at(answered_at), ticket(1, 7), None);
            assert_eq!(repeats(&mut holds, 60_000), wanted);
        }
    }

    #[test]
    fn a_shorter_hold_after_a_longer_one_does_not_shorten_the_wait_and_the_next_request_ends_it() {
        let mut holds = Holds::default();
        holds.begin(at(0), ticket(1, 7), at(8000));
        assert!(holds.answer_twin(at(100), SessionId(3), 1, Xid(7)).is_some());
        holds.begin(at(300), ticket(1, 7), at(400));
        holds.end(ticket(1, 7));
        holds.answered(at(400), ticket(1, 7), None);
        assert_eq!(repeats(&mut holds, 2000), [650, 1150]);
        holds.begin(at(2000), ticket(1, 8), at(2100));
        assert_eq!((holds.repeats.len(), holds.repeats_due.len()), (0, 0));
        holds.end(ticket(1, 8));
        assert_eq!(holds.next_deadline(), None);
    }
}
