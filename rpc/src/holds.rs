//! Requests that their handlers hold back on purpose: a watch that waits for news, a lock that is not free. Whoever asked is told so once
//! (`held`, docs/wire.md#session-control) and does not ask again before the time that it is told.
//!
//! The word goes out [`limits::HOLD_NOTICE`] after the hold began, which is before the first resend: most holds are over by then and cost nothing. A
//! twin that comes all the same (the word was lost) is answered with it. Pure: time comes in.
//!
//! Bound: one entry for each fom that holds. Thread: the owning locality. Start at [`Holds::begin`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base::Instant;

use crate::item::{Header, Kind, SessionId, Xid};
use crate::limits;
use crate::responder::Ticket;

type Key = (SessionId, u16);

#[derive(Debug)]
struct Hold {
    ticket: Ticket,
    until: Instant,
    notice_at: Instant,
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
    told: u64,
}

impl Holds {
    /// A request is held until `until` at the latest. Twice for the same request: the later call counts.
    pub fn begin(&mut self, now: Instant, ticket: Ticket, until: Instant) {
        self.end(ticket);
        let key = (ticket.session, ticket.slot);
        let notice_at = now + limits::HOLD_NOTICE;
        if until > notice_at {
            self.due.insert((notice_at, key));
        }
        self.holds.insert(key, Hold { ticket, until, notice_at });
    }

    /// It is not any more.
    pub fn end(&mut self, ticket: Ticket) {
        let key = (ticket.session, ticket.slot);
        if self.holds.get(&key).is_some_and(|hold| hold.ticket.xid == ticket.xid)
            && let Some(hold) = self.holds.remove(&key)
        {
            self.due.remove(&(hold.notice_at, key));
        }
    }

    /// The next requester to tell.
    pub fn poll_notice(&mut self, now: Instant) -> Option<Notice> {
        let (_, key) = *self.due.first().filter(|(at, _)| *at <= now)?;
        self.due.pop_first();
        self.told += 1;
        self.holds.get(&key).map(|hold| hold.notice(now))
    }

    /// What to tell a twin of a request, if that one is held and for a while yet.
    pub fn answer_twin(&mut self, now: Instant, session: SessionId, slot: u16, xid: Xid) -> Option<Notice> {
        let hold =
            self.holds.get(&(session, slot)).filter(|hold| hold.ticket.xid == xid && hold.until > now)?;
        self.told += 1;
        Some(hold.notice(now))
    }

    /// When [`Holds::poll_notice`] has something next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
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
        Ticket { peer, session: SessionId(3), nonce: Xid(1), slot, xid: Xid(xid) }
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
}
