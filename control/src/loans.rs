//! The root of the resource manager, without I/O: borrowers and their leases, one owner for each resource, and what has to be stored.
//!
//! **Invariant**: a loan that its borrower was told of survives a restart; so does the end of the fids handed out, which only grows.
//! **Invariant**: the loans of a borrower whose lease ended are free only after every target acknowledged a fence of its ticket (or its own
//! lease ended), decided by the caller of [`LoanTable::bury`]. **Invariant**: a borrower that was lost stays lost: it comes back under another number.
//! Bounds: `faces::limits`. Left over: who waits is not stored and asks again after a restart, in any order; a borrower has one lease to be heard then.
//! Thread: none of its own. The machine of one resource: `faces::rm::owner`. Rules: docs/rm.md. Start at [`LoanTable::handle_borrow`].

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use base::{Endpoint, Instant};
use faces::lease::lost_after;
use faces::limits::{
    BORROWERS_MAX, LOANS_MAX, LOANS_PER_BORROWER_MAX, RM_HOLDERS_NAMED, RM_LIST_PAGE, RM_NAME_BYTES_MAX,
    RM_PAGE, RM_PLACE_MS, RM_QUEUE_MAX,
};
use faces::rm::resource::check;
use faces::rm::{Action, Asker, BadCredit, Event, Owner, RequestState, Resource, User};
use fops::lock::{LockMode, OwnerId};
use fops::rm::{
    BorrowerId, BorrowerRecord, FidRange, LoanRecord, RmBorrow, RmBorrowReply, RmCredit, RmHolder,
    RmListReply, RmLoanEntry, RmResource, RmReturn,
};

/// The first fid that is handed out.
const FIRST_FID: u64 = 1;

/// A request about credits that control refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoanRefusal {
    /// Nobody's number.
    #[error("borrower 0 is nobody: choose another number")]
    BadBorrower,
    /// A name that cannot be.
    #[error("a borrower's name has at most {RM_NAME_BYTES_MAX} bytes and no control characters")]
    BadName,
    /// A credit that cannot be.
    #[error(transparent)]
    BadCredit(#[from] BadCredit),
    /// The same number for something else.
    #[error("borrower {borrower} uses number {number} for another resource already")]
    NumberTaken {
        /// Who.
        borrower: BorrowerId,
        /// Which number.
        number: u64,
    },
    /// No room for a session.
    #[error("{BORROWERS_MAX} clients hold credits, which is the limit: try again later (clovis credit list)")]
    TooManyBorrowers,
    /// Its session is over.
    #[error("the lease of borrower {borrower} ended: begin a session under another number")]
    Over {
        /// Who.
        borrower: BorrowerId,
    },
    /// No room for a loan.
    #[error(
        "{LOANS_MAX} credits are lent or waited for, which is the limit: try again later (clovis credit list)"
    )]
    Full,
    /// No room for a loan of this borrower.
    #[error("{LOANS_PER_BORROWER_MAX} credits are lent to this client, which is the limit: give some back")]
    BorrowerFull,
    /// No room in the queue of this resource.
    #[error("{RM_QUEUE_MAX} requests wait for {resource} already, which is the limit: try again later")]
    QueueFull {
        /// Which.
        resource: RmResource,
    },
}

/// Something that the store has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoanChange {
    /// Put this session.
    PutBorrower(BorrowerRecord),
    /// Delete the session.
    DropBorrower(BorrowerId),
    /// Put this loan.
    PutLoan(LoanRecord),
    /// Delete the loan.
    DropLoan(BorrowerId, u64),
    /// The first fid that was never handed out.
    NextFid(u64),
}

#[derive(Clone, Debug)]
struct Borrower {
    record: BorrowerRecord,
    /// When it was last heard; at least when control started.
    heard_at: Instant,
    /// Its loans, and its requests that wait.
    requests: BTreeMap<u64, RmResource>,
}

/// All credits of the cluster.
#[derive(Debug)]
pub struct LoanTable {
    lease: Duration,
    borrowers: BTreeMap<BorrowerId, Borrower>,
    owners: BTreeMap<RmResource, Owner<Resource>>,
    /// Until when the places of those who wait are kept.
    places: BTreeMap<(BorrowerId, u64), Instant>,
    /// Requests of all borrowers together.
    requests: usize,
    next_fid: u64,
    serial: u64,
    changes: Vec<LoanChange>,
    /// No session ends before: when to look at all of them again.
    silent_from: Instant,
    /// Borrowers whose fence is waited for.
    lost: usize,
}

fn asker(borrower: BorrowerId, number: u64) -> Asker {
    Asker { user: User::Borrower(borrower), number }
}

impl LoanTable {
    /// The table as the store had it at `now`. `lease`: of borrowers. `next_fid`: 0 if none was ever handed out.
    #[must_use]
    pub fn new(
        now: Instant,
        lease: Duration,
        borrowers: Vec<BorrowerRecord>,
        loans: Vec<LoanRecord>,
        next_fid: u64,
    ) -> LoanTable {
        let borrower = |record: BorrowerRecord| {
            (record.borrower, Borrower { record, heard_at: now, requests: BTreeMap::new() })
        };
        let mut table = LoanTable {
            lease,
            borrowers: borrowers.into_iter().map(borrower).collect(),
            owners: BTreeMap::new(),
            places: BTreeMap::new(),
            requests: 0,
            next_fid: next_fid.max(FIRST_FID),
            serial: 0,
            changes: Vec::new(),
            silent_from: now + lost_after(lease),
            lost: 0,
        };
        table.lost = table.borrowers.values().filter(|found| found.record.fence != 0).count();
        for LoanRecord { borrower, number, resource, credit } in loans {
            let Some(found) = table.borrowers.get_mut(&borrower) else { continue };
            found.requests.insert(number, resource.clone());
            table.requests += 1;
            let owner = owner_of(&mut table.owners, &resource, table.next_fid);
            owner.restore(asker(borrower, number), credit);
        }
        let lost = table.borrowers.values().filter(|found| found.record.fence != 0);
        for borrower in lost.map(|found| found.record.borrower).collect::<Vec<_>>() {
            table.tell_owners(borrower, &Event::Lost { borrower });
        }
        table
    }

    /// Number of the last change: an answer waits until the store has it.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// What the store has to do, in this order: the first `most`, and the number of the last of these.
    pub fn take_changes(&mut self, most: usize) -> (u64, Vec<LoanChange>) {
        let left = self.changes.split_off(most.min(self.changes.len()));
        let taken = std::mem::replace(&mut self.changes, left);
        (self.serial - base::units::wide(self.changes.len()), taken)
    }

    fn change(&mut self, change: LoanChange) {
        self.serial += 1;
        self.changes.push(change);
    }

    /// Tickets of the borrowers whose lease holds: no fence for everybody may go past them.
    pub fn tickets(&self) -> impl Iterator<Item = (OwnerId, u64)> {
        let holds = self.borrowers.values().filter(|found| found.record.fence == 0);
        holds.map(|found| (OwnerId(found.record.borrower.0), found.record.epoch))
    }

    /// Begins a session, whose ticket `make_epoch` gives a new epoch; the same again gets the same. Answer: the epoch.
    ///
    /// Errors: see [`LoanRefusal`]; nothing changed then.
    pub fn handle_begin(
        &mut self,
        now: Instant,
        (borrower, name): (BorrowerId, &str),
        from: Endpoint,
        make_epoch: impl FnOnce() -> u64,
    ) -> Result<u64, LoanRefusal> {
        if borrower.0 == 0 {
            return Err(LoanRefusal::BadBorrower);
        }
        if name.len() > RM_NAME_BYTES_MAX || name.chars().any(char::is_control) {
            return Err(LoanRefusal::BadName);
        }
        if let Some(found) = self.borrowers.get_mut(&borrower) {
            if !has_session(found, now, self.lease) {
                return Err(LoanRefusal::Over { borrower });
            }
            found.heard_at = now;
            return Ok(found.record.epoch);
        }
        if self.borrowers.len() >= BORROWERS_MAX {
            return Err(LoanRefusal::TooManyBorrowers);
        }
        let record = BorrowerRecord { borrower, name: name.to_owned(), epoch: make_epoch(), from, fence: 0 };
        self.change(LoanChange::PutBorrower(record.clone()));
        let epoch = record.epoch;
        self.borrowers.insert(borrower, Borrower { record, heard_at: now, requests: BTreeMap::new() });
        Ok(epoch)
    }

    /// Asks for a credit; `until`: how long its request waits. Its place is kept a little longer.
    ///
    /// Errors: see [`LoanRefusal`]; nothing changed then.
    pub fn handle_borrow(
        &mut self,
        now: Instant,
        request: &RmBorrow,
        until: Instant,
    ) -> Result<RmBorrowReply, LoanRefusal> {
        let RmBorrow { borrower, number, resource, credit, .. } = request;
        check(resource, credit)?;
        let Some(found) = self.borrowers.get(borrower).filter(|found| has_session(found, now, self.lease))
        else {
            return Ok(RmBorrowReply::NoSession);
        };
        let us = asker(*borrower, *number);
        match found.requests.get(number) {
            Some(other) if other != resource => {
                return Err(LoanRefusal::NumberTaken { borrower: *borrower, number: *number });
            }
            Some(_) => {}
            None => {
                if found.requests.len() >= LOANS_PER_BORROWER_MAX {
                    return Err(LoanRefusal::BorrowerFull);
                }
                if self.requests >= LOANS_MAX {
                    return Err(LoanRefusal::Full);
                }
                let waiting = self.owners.get(resource).map_or(0, Owner::waiting_count);
                if waiting >= RM_QUEUE_MAX {
                    return Err(LoanRefusal::QueueFull { resource: resource.clone() });
                }
                if let Some(found) = self.borrowers.get_mut(borrower) {
                    found.requests.insert(*number, resource.clone());
                    self.requests += 1;
                }
                self.handle(resource, Event::Ask { asker: us, credit: credit.clone() });
            }
        }
        let state = self.owners.get(resource).map_or(RequestState::None, |owner| owner.request(us));
        Ok(match state {
            RequestState::Used | RequestState::AskedBack => {
                let granted = self.owners.get(resource).and_then(|owner| owner.granted(us));
                RmBorrowReply::Lent { credit: granted.cloned().unwrap_or_else(|| credit.clone()) }
            }
            RequestState::Waiting | RequestState::Borrowing => {
                self.places.insert((*borrower, *number), until + Duration::from_millis(RM_PLACE_MS));
                self.busy(resource, us)
            }
            RequestState::Lost => RmBorrowReply::NoSession,
            RequestState::None => RmBorrowReply::Exhausted,
        })
    }

    fn busy(&self, resource: &RmResource, us: Asker) -> RmBorrowReply {
        let Some(owner) = self.owners.get(resource) else {
            return RmBorrowReply::Busy { holders: Vec::new(), ahead: 0 };
        };
        let (askers, ahead) = owner.in_the_way(us);
        let borrowers: BTreeSet<BorrowerId> = askers.into_iter().filter_map(borrower_of).collect();
        let holders = borrowers.iter().filter_map(|borrower| self.holder(*borrower));
        RmBorrowReply::Busy {
            holders: holders.take(RM_HOLDERS_NAMED).collect(),
            ahead: u32::try_from(ahead).unwrap_or(u32::MAX),
        }
    }

    fn holder(&self, borrower: BorrowerId) -> Option<RmHolder> {
        let BorrowerRecord { name, from, fence, .. } = &self.borrowers.get(&borrower)?.record;
        Some(RmHolder { borrower, name: name.clone(), from: *from, lost: *fence != 0 })
    }

    /// Takes loans back, or requests out of their queues; with `leave` all of them, and ends the session. Again: changes nothing.
    pub fn handle_return(&mut self, request: &RmReturn) {
        let RmReturn { borrower, numbers, leave } = request;
        let Some(found) = self.borrowers.get(borrower).filter(|found| found.record.fence == 0) else {
            return;
        };
        let numbers: Vec<u64> =
            if *leave { found.requests.keys().copied().collect() } else { numbers.clone() };
        for number in numbers {
            self.take_back(*borrower, number);
        }
        if *leave {
            self.borrowers.remove(borrower);
            self.change(LoanChange::DropBorrower(*borrower));
        }
    }

    fn take_back(&mut self, borrower: BorrowerId, number: u64) {
        let found = self.borrowers.get_mut(&borrower);
        let Some(resource) = found.and_then(|found| found.requests.remove(&number)) else { return };
        self.requests -= 1;
        self.places.remove(&(borrower, number));
        let us = asker(borrower, number);
        if self.owners.get(&resource).is_some_and(|owner| owner.granted(us).is_some()) {
            self.change(LoanChange::DropLoan(borrower, number));
        }
        self.handle(&resource, Event::Return { asker: us });
    }

    /// A borrower is heard. False: its session is over.
    pub fn handle_poll(&mut self, now: Instant, borrower: BorrowerId, from: Endpoint) -> bool {
        match self.borrowers.get_mut(&borrower) {
            Some(found) if has_session(found, now, self.lease) => {
                found.heard_at = now;
                found.record.from = from;
                true
            }
            _ => false,
        }
    }

    /// True while a borrower's session lasts.
    #[must_use]
    pub fn has_session(&self, now: Instant, borrower: BorrowerId) -> bool {
        self.borrowers.get(&borrower).is_some_and(|found| has_session(found, now, self.lease))
    }

    /// Loans that others wait for, without those in `known` (sorted), at most a page.
    #[must_use]
    pub fn asked_back(&self, borrower: BorrowerId, known: &[u64]) -> Vec<u64> {
        let Some(found) = self.borrowers.get(&borrower) else { return Vec::new() };
        let is_asked = |(number, resource): &(&u64, &RmResource)| {
            let owner = self.owners.get(*resource);
            let state = owner.map(|owner| owner.request(asker(borrower, **number)));
            state == Some(RequestState::AskedBack) && known.binary_search(number).is_err()
        };
        found.requests.iter().filter(is_asked).map(|(number, _)| *number).take(RM_PAGE).collect()
    }

    /// Takes silent borrowers as lost, and forgets who no longer waits. `fence` fences all tickets of an owner and gives the number of
    /// the fence; `None`: there is no room for one, and it is tried again with the next tick. True if anything changed.
    pub fn handle_tick(&mut self, now: Instant, mut fence: impl FnMut(OwnerId) -> Option<u64>) -> bool {
        let gone: Vec<_> =
            self.places.iter().filter(|(_, until)| **until <= now).map(|(key, _)| *key).collect();
        let mut changed = !gone.is_empty();
        for (borrower, number) in gone {
            self.take_back(borrower, number);
        }
        // Whoever is heard only lives longer, so that thousands need not be looked at whenever one of them says something.
        if now < self.silent_from {
            return changed;
        }
        let silent = self.borrowers.values().filter(|found| found.record.fence == 0);
        let silent = silent.filter(|found| !has_session(found, now, self.lease));
        for borrower in silent.map(|found| found.record.borrower).collect::<Vec<_>>() {
            self.tell_owners(borrower, &Event::Lost { borrower });
            if self.has_exclusive(borrower) {
                let Some(number) = fence(OwnerId(borrower.0)) else { continue };
                let Some(found) = self.borrowers.get_mut(&borrower) else { continue };
                found.record.fence = number;
                self.lost += 1;
                let record = found.record.clone();
                self.change(LoanChange::PutBorrower(record));
            } else {
                // It could read or count, and its lease is over: nothing of it has an effect on others.
                self.forget(borrower);
            }
            changed = true;
        }
        let living = self.borrowers.values().filter(|found| found.record.fence == 0);
        let ends = living.map(|found| found.heard_at + lost_after(self.lease));
        self.silent_from = ends.min().unwrap_or(now + lost_after(self.lease));
        changed
    }

    fn has_exclusive(&self, borrower: BorrowerId) -> bool {
        use fops::lock::LockMode::Exclusive;
        let Some(found) = self.borrowers.get(&borrower) else { return false };
        found.requests.iter().any(|(number, resource)| {
            let owner = self.owners.get(resource);
            matches!(
                owner.and_then(|owner| owner.granted(asker(borrower, *number))),
                Some(
                    RmCredit::Whole { mode: Exclusive }
                        | RmCredit::Bytes { mode: Exclusive, .. }
                        | RmCredit::Keys { mode: Exclusive, .. }
                )
            )
        })
    }

    /// Frees the loans of lost borrowers whose fence `is_acknowledged` everywhere. True if any were.
    pub fn bury(&mut self, is_acknowledged: impl Fn(u64) -> bool) -> bool {
        let lost = self.borrowers.values().filter(|found| found.record.fence != 0);
        let done = lost.filter(|found| is_acknowledged(found.record.fence));
        let done: Vec<BorrowerId> = done.map(|found| found.record.borrower).collect();
        done.iter().for_each(|borrower| self.forget(*borrower));
        !done.is_empty()
    }

    /// True while the fence of a lost borrower is waited for.
    #[must_use]
    pub fn is_burying(&self) -> bool {
        self.lost > 0
    }

    fn forget(&mut self, borrower: BorrowerId) {
        let Some(found) = self.borrowers.get(&borrower) else { return };
        let numbers: Vec<u64> = found.requests.keys().copied().collect();
        for number in &numbers {
            self.places.remove(&(borrower, *number));
            self.change(LoanChange::DropLoan(borrower, *number));
        }
        self.tell_owners(borrower, &Event::Buried { borrower });
        self.requests -= numbers.len();
        let gone = self.borrowers.remove(&borrower);
        self.lost -= usize::from(gone.is_some_and(|found| found.record.fence != 0));
        self.change(LoanChange::DropBorrower(borrower));
    }

    /// To the owners of everything that a borrower has or waits for.
    fn tell_owners(&mut self, borrower: BorrowerId, event: &Event<RmCredit>) {
        let Some(found) = self.borrowers.get(&borrower) else { return };
        let resources: BTreeSet<RmResource> = found.requests.values().cloned().collect();
        for resource in resources {
            self.handle(&resource, event.clone());
        }
    }

    /// One event of a resource.
    fn handle(&mut self, resource: &RmResource, event: Event<RmCredit>) {
        // The root borrows of nobody.
        let mut no_loans = 0;
        let owner = owner_of(&mut self.owners, resource, self.next_fid);
        let actions = owner.handle(event, &mut no_loans);
        if owner.is_idle() {
            self.owners.remove(resource);
        }
        for action in actions {
            match action {
                Action::Granted { asker: granted, credit } => {
                    let Some(borrower) = borrower_of(granted) else { continue };
                    self.places.remove(&(borrower, granted.number));
                    if let RmCredit::Fids(FidRange { first, count }) = credit {
                        self.next_fid = self.next_fid.max(first.saturating_add(count));
                        self.change(LoanChange::NextFid(self.next_fid));
                    }
                    let (number, resource) = (granted.number, resource.clone());
                    self.change(LoanChange::PutLoan(LoanRecord { borrower, number, resource, credit }));
                }
                Action::Refused { asker: refused, .. } => {
                    let Some(borrower) = borrower_of(refused) else { continue };
                    self.places.remove(&(borrower, refused.number));
                    let found = self.borrowers.get_mut(&borrower);
                    if found.is_some_and(|found| found.requests.remove(&refused.number).is_some()) {
                        self.requests -= 1;
                    }
                }
                // Borrowers are told when they poll; the root has no loans of its own.
                Action::AskBack { .. }
                | Action::Void { .. }
                | Action::Borrow { .. }
                | Action::GiveBack { .. } => {}
            }
        }
    }

    /// Loans of whole objects, each to one borrower alone: who has it, and the number of its request. Those of lost borrowers too, until they are buried.
    pub fn exclusive_of_objects(&self) -> impl Iterator<Item = (BorrowerId, u64)> + '_ {
        let objects = self.owners.iter().filter(|(resource, _)| matches!(resource, RmResource::Object(_)));
        let uses = objects.flat_map(|(_, owner)| owner.uses());
        let is_alone = |credit: &RmCredit| matches!(credit, RmCredit::Whole { mode: LockMode::Exclusive });
        let alone = uses.filter(move |(_, credit)| is_alone(credit));
        alone.filter_map(|(asker, _)| Some((borrower_of(asker)?, asker.number)))
    }

    /// When [`LoanTable::handle_tick`] has work next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let silent = (self.borrowers.len() > self.lost).then_some(self.silent_from);
        silent.into_iter().chain(self.places.values().copied()).min()
    }

    /// A page of loans behind `after`.
    #[must_use]
    pub fn list(&self, now: Instant, after: Option<(BorrowerId, u64)>) -> RmListReply {
        let from = after.map_or(BorrowerId(0), |(borrower, _)| borrower);
        let mut all = self
            .borrowers
            .range((Bound::Included(from), Bound::Unbounded))
            .flat_map(|(borrower, found)| {
                found.requests.iter().map(move |(number, resource)| (*borrower, *number, resource, found))
            })
            .filter(|(borrower, number, ..)| after.is_none_or(|after| (*borrower, *number) > after))
            .filter_map(|(borrower, number, resource, found)| {
                let owner = self.owners.get(resource)?;
                let us = asker(borrower, number);
                Some(RmLoanEntry {
                    holder: self.holder(borrower)?,
                    number,
                    resource: resource.clone(),
                    credit: owner.granted(us)?.clone(),
                    asked_back: owner.request(us) == RequestState::AskedBack,
                    silent_ms: u64::try_from(now.since(found.heard_at).as_millis()).unwrap_or(u64::MAX),
                })
            });
        let loans: Vec<RmLoanEntry> = all.by_ref().take(RM_LIST_PAGE).collect();
        let more = all.next().is_some();
        RmListReply {
            loans,
            more,
            borrowers: u32::try_from(self.borrowers.len()).unwrap_or(u32::MAX),
            waiting: u32::try_from(self.places.len()).unwrap_or(u32::MAX),
        }
    }
}

fn has_session(found: &Borrower, now: Instant, lease: Duration) -> bool {
    found.record.fence == 0 && now < found.heard_at + lost_after(lease)
}

fn borrower_of(asker: Asker) -> Option<BorrowerId> {
    match asker.user {
        User::Borrower(borrower) => Some(borrower),
        User::Local => None,
    }
}

fn owner_of<'a>(
    owners: &'a mut BTreeMap<RmResource, Owner<Resource>>,
    resource: &RmResource,
    next_fid: u64,
) -> &'a mut Owner<Resource> {
    owners.entry(resource.clone()).or_insert_with(|| Owner::root(Resource::of(resource, next_fid)))
}

#[cfg(test)]
mod tests {
    use base::{Fid, FidType};
    use fops::lock::LockMode::{self, Exclusive, Shared};

    use super::*;

    const LEASE: Duration = Duration::from_secs(4);
    /// The lease and its grace.
    const LOST_AFTER_MS: u64 = 5_000;

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    fn here() -> Endpoint {
        "0@lo:12345:34:100".parse().unwrap()
    }

    fn object() -> RmResource {
        RmResource::Object(Fid::new(FidType::Object, 1, 7))
    }

    fn table() -> LoanTable {
        let mut table = LoanTable::new(at(0), LEASE, vec![], vec![], 0);
        for borrower in 1..=3 {
            begin(&mut table, 0, borrower);
        }
        table
    }

    fn begin(table: &mut LoanTable, now: u64, borrower: u128) {
        let epoch = u64::try_from(borrower).unwrap() + 10;
        let begun = table.handle_begin(at(now), (BorrowerId(borrower), "a test"), here(), || epoch);
        assert_eq!(begun, Ok(epoch));
    }

    fn borrow(table: &mut LoanTable, now: u64, borrower: u128, number: u64, mode: LockMode) -> RmBorrowReply {
        let credit = RmCredit::Whole { mode };
        let (borrower, resource) = (BorrowerId(borrower), object());
        let request = RmBorrow { borrower, number, resource, credit, wait_ms: 1000 };
        table.handle_borrow(at(now), &request, at(now + 1000)).unwrap()
    }

    fn fids(table: &mut LoanTable, borrower: u128, number: u64, count: u64) -> RmBorrowReply {
        let credit = RmCredit::Fids(FidRange { first: 0, count });
        let (borrower, resource) = (BorrowerId(borrower), RmResource::Fids);
        let request = RmBorrow { borrower, number, resource, credit, wait_ms: 0 };
        table.handle_borrow(at(0), &request, at(0)).unwrap()
    }

    fn is_lent(reply: &RmBorrowReply) -> bool {
        matches!(reply, RmBorrowReply::Lent { .. })
    }

    fn give_back(table: &mut LoanTable, borrower: u128, numbers: &[u64], leave: bool) {
        let numbers = numbers.to_vec();
        table.handle_return(&RmReturn { borrower: BorrowerId(borrower), numbers, leave });
    }

    /// What a restart finds.
    fn restarted(mut table: LoanTable, stored: &mut Stored, now: u64) -> LoanTable {
        for change in table.take_changes(usize::MAX).1 {
            match change {
                LoanChange::PutBorrower(record) => {
                    stored.borrowers.insert(record.borrower, record);
                }
                LoanChange::DropBorrower(borrower) => assert!(stored.borrowers.remove(&borrower).is_some()),
                LoanChange::PutLoan(record) => {
                    stored.loans.insert((record.borrower, record.number), record);
                }
                LoanChange::DropLoan(borrower, number) => {
                    stored.loans.remove(&(borrower, number));
                }
                LoanChange::NextFid(next) => {
                    assert!(next > stored.next_fid);
                    stored.next_fid = next;
                }
            }
        }
        let (borrowers, loans) = (stored.borrowers.values().cloned(), stored.loans.values().cloned());
        LoanTable::new(at(now), LEASE, borrowers.collect(), loans.collect(), stored.next_fid)
    }

    #[derive(Default)]
    struct Stored {
        borrowers: BTreeMap<BorrowerId, BorrowerRecord>,
        loans: BTreeMap<(BorrowerId, u64), LoanRecord>,
        next_fid: u64,
    }

    #[test]
    fn a_loan_is_asked_back_and_passes_on_when_it_is_returned() {
        let mut table = table();
        assert!(is_lent(&borrow(&mut table, 0, 1, 1, Exclusive)));
        assert!(is_lent(&borrow(&mut table, 0, 1, 1, Exclusive)), "the same again");
        assert_eq!(table.asked_back(BorrowerId(1), &[]), [] as [u64; 0]);
        let RmBorrowReply::Busy { holders, ahead: 0 } = borrow(&mut table, 1, 2, 1, Exclusive) else {
            panic!("not busy")
        };
        assert_eq!((holders.len(), holders[0].borrower, holders[0].lost), (1, BorrowerId(1), false));
        assert_eq!(table.asked_back(BorrowerId(1), &[]), [1]);
        assert_eq!(table.asked_back(BorrowerId(1), &[1]), [] as [u64; 0]);
        let RmBorrowReply::Busy { ahead: 1, .. } = borrow(&mut table, 1, 3, 1, Shared) else {
            panic!("passed")
        };
        give_back(&mut table, 1, &[1], false);
        assert!(is_lent(&borrow(&mut table, 2, 2, 1, Exclusive)));
        give_back(&mut table, 2, &[], true);
        assert!(is_lent(&borrow(&mut table, 3, 3, 1, Shared)));
        assert_eq!(borrow(&mut table, 3, 2, 2, Shared), RmBorrowReply::NoSession);
    }

    #[test]
    fn a_lost_borrower_keeps_its_loans_from_others_until_its_fence_is_acknowledged() {
        let mut table = table();
        borrow(&mut table, 0, 1, 1, Exclusive);
        for now in [2_000, 4_999] {
            assert!(table.handle_poll(at(now), BorrowerId(2), here()));
        }
        let mut fenced = Vec::new();
        let mut fence = |owner: OwnerId| {
            fenced.push(owner);
            Some(70)
        };
        assert!(!is_lent(&borrow(&mut table, 4_000, 2, 1, Exclusive)));
        assert!(!table.handle_tick(at(LOST_AFTER_MS - 1), &mut fence), "its lease and the grace");
        assert_eq!(table.next_deadline(), Some(at(LOST_AFTER_MS)));
        assert!(table.handle_tick(at(LOST_AFTER_MS), &mut fence));
        assert_eq!(fenced, [OwnerId(1)], "3 had nothing");
        assert!(!table.handle_poll(at(LOST_AFTER_MS), BorrowerId(1), here()), "lost for good");
        let RmBorrowReply::Busy { holders, .. } = borrow(&mut table, 5_001, 2, 1, Exclusive) else {
            panic!("free before the fence")
        };
        assert!(holders[0].lost);
        give_back(&mut table, 1, &[1], true);
        assert!(!table.bury(|number| number > 70) && table.is_burying());
        assert!(!is_lent(&borrow(&mut table, 5_002, 2, 1, Exclusive)));
        assert!(table.bury(|number| number == 70) && !table.is_burying());
        assert!(is_lent(&borrow(&mut table, 5_003, 2, 1, Exclusive)));
    }

    #[test]
    fn no_room_for_a_fence_leaves_the_loan_where_it_is() {
        let mut table = table();
        borrow(&mut table, 0, 1, 1, Exclusive);
        assert!(table.handle_tick(at(LOST_AFTER_MS), |_| None), "the others are forgotten");
        assert!(!table.bury(|_| true));
        begin(&mut table, LOST_AFTER_MS, 4);
        assert!(!is_lent(&borrow(&mut table, LOST_AFTER_MS, 4, 1, Exclusive)));
        assert!(table.handle_tick(at(LOST_AFTER_MS), |_| Some(1)) && table.bury(|_| true));
        assert!(is_lent(&borrow(&mut table, LOST_AFTER_MS, 4, 1, Exclusive)));
    }

    #[test]
    fn fids_are_handed_out_once_over_returns_deaths_and_restarts() {
        let mut stored = Stored::default();
        let mut table = table();
        let range = |first, count| RmBorrowReply::Lent { credit: RmCredit::Fids(FidRange { first, count }) };
        assert_eq!(fids(&mut table, 1, 1, 10), range(1, 10));
        assert_eq!(fids(&mut table, 1, 1, 10), range(1, 10), "the answer was lost");
        give_back(&mut table, 1, &[1], false);
        assert_eq!(fids(&mut table, 2, 1, 5), range(11, 5));
        let mut table = restarted(table, &mut stored, 0);
        assert_eq!(fids(&mut table, 2, 1, 5), range(11, 5), "the answer was lost, and control restarted");
        assert_eq!(fids(&mut table, 1, 2, 1), range(16, 1));
        assert!(table.handle_tick(at(LOST_AFTER_MS), |_| panic!("numbers need no fence")));
        let mut table = restarted(table, &mut stored, LOST_AFTER_MS);
        begin(&mut table, LOST_AFTER_MS, 9);
        assert_eq!(fids(&mut table, 9, 1, 1), range(17, 1));
    }

    #[test]
    fn a_restart_finds_loans_and_those_who_are_lost() {
        let mut stored = Stored::default();
        let mut table = table();
        borrow(&mut table, 0, 1, 1, Exclusive);
        let mut table = restarted(table, &mut stored, 10_000);
        assert!(!is_lent(&borrow(&mut table, 10_000, 2, 1, Exclusive)));
        // The place of the one who waited is gone; the holder has a whole lease to be heard.
        assert!(table.handle_tick(at(10_000 + LOST_AFTER_MS - 1), |_| panic!("too early")));
        assert_eq!(table.list(at(20_000), None).loans.len(), 1);
        assert_eq!(table.list(at(20_000), None).loans.len(), 1);
        assert!(table.handle_tick(at(10_000 + LOST_AFTER_MS), |_| Some(3)));
        let mut table = restarted(table, &mut stored, 20_000);
        assert!(!table.handle_poll(at(20_000), BorrowerId(1), here()));
        begin(&mut table, 20_000, 5);
        assert!(!is_lent(&borrow(&mut table, 20_000, 5, 1, Exclusive)));
        assert!(table.bury(|number| number == 3));
        assert!(is_lent(&borrow(&mut table, 20_000, 5, 1, Exclusive)));
        let table = restarted(table, &mut stored, 20_000);
        assert_eq!(table.list(at(20_000), None).loans.len(), 1);
    }

    #[test]
    fn who_no_longer_asks_loses_its_place() {
        let mut table = table();
        borrow(&mut table, 0, 1, 1, Shared);
        borrow(&mut table, 0, 2, 1, Exclusive);
        assert!(!is_lent(&borrow(&mut table, 0, 3, 1, Shared)), "behind one who waits");
        borrow(&mut table, 2_000, 3, 1, Shared);
        assert!(table.handle_tick(at(3_000), |_| None));
        assert!(is_lent(&borrow(&mut table, 3_000, 3, 1, Shared)));
        assert_eq!(table.list(at(3_000), None).waiting, 0);
    }

    #[test]
    fn tables_are_bounded_and_the_list_has_pages() {
        let mut table = table();
        let named = |at: usize| RmResource::Named(format!("thing {at}"));
        let ask = |table: &mut LoanTable, number: usize| {
            let credit = RmCredit::Whole { mode: Exclusive };
            let (borrower, resource) = (BorrowerId(1), named(number));
            let number = u64::try_from(number).unwrap();
            table.handle_borrow(at(0), &RmBorrow { borrower, number, resource, credit, wait_ms: 0 }, at(0))
        };
        for number in 1..=LOANS_PER_BORROWER_MAX {
            assert!(is_lent(&ask(&mut table, number).unwrap()));
        }
        assert_eq!(ask(&mut table, LOANS_PER_BORROWER_MAX + 1), Err(LoanRefusal::BorrowerFull));
        let mut seen = 0;
        let mut after = None;
        loop {
            let page = table.list(at(0), after);
            seen += page.loans.len();
            after = page.loans.last().map(|last| (last.holder.borrower, last.number));
            if !page.more {
                break;
            }
        }
        assert_eq!(seen, LOANS_PER_BORROWER_MAX);
        give_back(&mut table, 1, &[], true);
        assert!(table.owners.is_empty() && table.requests == 0, "nothing is left");
        for borrower in 10..10 + RM_QUEUE_MAX + 1 {
            let borrower = u128::try_from(borrower).unwrap();
            begin(&mut table, 0, borrower);
            borrow(&mut table, 0, borrower, 1, Exclusive);
        }
        let (borrower, resource) = (BorrowerId(2), object());
        let credit = RmCredit::Whole { mode: Exclusive };
        let request = RmBorrow { borrower, number: 1, resource: resource.clone(), credit, wait_ms: 0 };
        let refused = table.handle_borrow(at(0), &request, at(0));
        assert_eq!(refused, Err(LoanRefusal::QueueFull { resource }));
    }
}
