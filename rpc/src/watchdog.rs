//! Which foms run, at which phase each is and since when; names those that hang.
//!
//! A fom hangs when it has been at one phase for longer than the limit. It is told once for each phase, counted, and left alone: nothing
//! can end a fom from outside without lying about its effect. The operator sees which request, of whom, at which phase.
//!
//! Bound: one entry per fom. A phase costs one store; the check walks the foms a few times per limit, and not at all while none
//! runs. Thread: the owning locality. Start at [`Watchdog::check`].

use std::fmt;
use std::time::Duration;

use base::Instant;
use verbs_net::PeerId;

use crate::addb::Phase;

/// A fom that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunningFom {
    /// The requester's name for the request.
    pub request_id: u64,
    /// The fop's number.
    pub opcode: u16,
    /// Who asked.
    pub peer: PeerId,
    /// Where it is.
    pub phase: Phase,
    /// Since when it is there.
    pub since: Instant,
}

/// A fom that has been at one phase for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HungFom {
    /// Which.
    pub fom: RunningFom,
    /// For how long.
    pub lasting: Duration,
}

impl fmt::Display for HungFom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RunningFom { request_id, opcode, peer, phase, .. } = self.fom;
        write!(
            f,
            "request {request_id:#x} (opcode {opcode}) of {} is at phase {phase} for {:.1} s",
            peer.endpoint,
            self.lasting.as_secs_f64()
        )
    }
}

#[derive(Debug)]
struct Entry {
    fom: RunningFom,
    /// It may be at its phase until then, on purpose.
    held_until: Instant,
    is_told: bool,
}

/// Names the entry of a fom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FomPlace(usize);

/// The foms of one locality.
#[derive(Debug)]
pub struct Watchdog {
    limit: Duration,
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    running_count: usize,
    next_check: Instant,
    hung_count: u64,
}

impl Watchdog {
    /// Nobody runs. `limit`: how long a fom may be at one phase.
    #[must_use]
    pub fn new(limit: Duration) -> Watchdog {
        Watchdog {
            limit,
            entries: Vec::new(),
            free: Vec::new(),
            running_count: 0,
            next_check: Instant::NEVER,
            hung_count: 0,
        }
    }

    /// A fom begins.
    pub fn begin(&mut self, fom: RunningFom) -> FomPlace {
        if self.running_count == 0 {
            self.next_check = fom.since + self.limit;
        }
        self.running_count += 1;
        let entry = Some(Entry { fom, held_until: Instant::ZERO, is_told: false });
        match self.free.pop() {
            Some(index) => {
                self.entries[index] = entry;
                FomPlace(index)
            }
            None => {
                self.entries.push(entry);
                FomPlace(self.entries.len() - 1)
            }
        }
    }

    /// A fom enters a phase.
    pub fn enter(&mut self, now: Instant, place: FomPlace, phase: Phase) {
        if let Some(Some(entry)) = self.entries.get_mut(place.0) {
            entry.fom.phase = phase;
            entry.fom.since = now;
            entry.held_until = Instant::ZERO;
            entry.is_told = false;
        }
    }

    /// A fom waits on purpose, until `until` at the latest: at its phase it does not hang before.
    pub fn hold(&mut self, place: FomPlace, until: Instant) {
        if let Some(Some(entry)) = self.entries.get_mut(place.0) {
            entry.held_until = until;
        }
    }

    /// A fom ended.
    pub fn end(&mut self, place: FomPlace) {
        if self.entries.get_mut(place.0).and_then(Option::take).is_some() {
            self.free.push(place.0);
            self.running_count -= 1;
        }
        if self.running_count == 0 {
            self.next_check = Instant::NEVER;
        }
    }

    /// The foms that hang and were not told yet.
    pub fn check(&mut self, now: Instant) -> Vec<HungFom> {
        if now < self.next_check {
            return Vec::new();
        }
        self.next_check = now + self.limit / 4;
        let mut hung = Vec::new();
        for entry in self.entries.iter_mut().flatten() {
            let lasting = now.since(entry.fom.since);
            let is_over = lasting >= self.limit && now.since(entry.held_until) >= self.limit;
            if is_over && !entry.is_told {
                entry.is_told = true;
                hung.push(HungFom { fom: entry.fom, lasting });
            }
        }
        self.hung_count += base::units::wide(hung.len());
        hung
    }

    /// When [`Watchdog::check`] has to be called next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        (self.next_check != Instant::NEVER).then_some(self.next_check)
    }

    /// The foms that run now.
    pub fn running(&self) -> impl Iterator<Item = RunningFom> + '_ {
        self.entries.iter().flatten().map(|entry| entry.fom)
    }

    /// Foms that were told to hang, ever.
    #[must_use]
    pub fn hung_count(&self) -> u64 {
        self.hung_count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::{Endpoint, Nid};

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    fn fom(request_id: u64, since: Instant) -> RunningFom {
        let endpoint = Endpoint { nid: Nid::LOOPBACK, pid: 1, portal: 34, tmid: 1 };
        RunningFom { request_id, opcode: 32, peer: PeerId { endpoint, epoch: 1 }, phase: Phase::Run, since }
    }

    #[test]
    fn a_fom_that_waits_on_purpose_hangs_only_after_its_time() {
        let mut dog = Watchdog::new(Duration::from_secs(20));
        let place = dog.begin(fom(7, at(0)));
        dog.enter(at(0), place, Phase::Hold);
        dog.hold(place, at(60));
        assert_eq!((dog.check(at(40)), dog.check(at(79))), (vec![], vec![]));
        assert_eq!(dog.check(at(85))[0].lasting, Duration::from_secs(85));
        dog.hold(place, at(500));
        dog.enter(at(90), place, Phase::Reply);
        assert_eq!(dog.check(at(110)).len(), 1, "the next phase is not held");
    }

    #[test]
    fn a_fom_that_stays_at_a_phase_is_told_once_and_by_name() {
        let mut dog = Watchdog::new(Duration::from_secs(20));
        assert_eq!(dog.next_deadline(), None);
        let (slow, quick) = (dog.begin(fom(7, at(0))), dog.begin(fom(8, at(0))));
        dog.enter(at(5), slow, Phase::Pull);
        assert_eq!(dog.next_deadline(), Some(at(20)));
        dog.end(quick);
        assert_eq!(dog.check(at(20)), []);
        let told = dog.check(at(25));
        assert_eq!(told.len(), 1);
        let text = told[0].to_string();
        assert!(text.contains("0x7") && text.contains("phase pull for 20.0 s"), "{text}");
        assert_eq!(dog.check(at(40)), [], "once");
        dog.enter(at(41), slow, Phase::Commit);
        assert_eq!(dog.check(at(61))[0].fom.phase, Phase::Commit, "once for each phase");
        assert_eq!((dog.hung_count(), dog.running().count()), (2, 1));
        dog.end(slow);
        dog.end(slow);
        assert_eq!((dog.next_deadline(), dog.running().count()), (None, 0));
        assert_eq!(dog.begin(fom(9, at(70))), slow, "places are used again");
        assert_eq!(dog.next_deadline(), Some(at(90)));
    }
}
