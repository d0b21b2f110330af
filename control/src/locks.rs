//! Named locks and fences, without I/O: requests and time in, grants, fences and what has to be stored out.
//!
//! **Invariant**: an exclusive lock has one owner, a shared one only shared owners; one whose owner is being fenced still counts.
//! **Invariant**: epochs and numbers of fences only grow, over restarts too. **Invariant**: a lock leaves an owner against its will
//! only after every target acknowledged a fence of that owner (or its lease ended), decided by the caller of [`LockTable::complete_breaks`].
//! Fair: who waits is served in the order of asking; a shared lock does not go past an exclusive one that waits. Bounds: `faces::limits`.
//! Left over: times and waiters are not stored; after a restart each renewing holder has one lease to be heard, who waits asks again.
//! Thread: none of its own. Rules and state machine: docs/locks.md. Start at [`LockTable::handle_take`].

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use base::{Endpoint, Fid, Instant};
use faces::lease::lost_after;
use faces::limits::{
    FENCES_MAX, FENCES_PAGE, LOCK_HOLDERS_NAMED, LOCK_NAME_BYTES_MAX, LOCK_PLACE_MS, LOCK_WAITERS_MAX,
    LOCKS_MAX, LOCKS_PAGE, NOTE_BYTES_MAX,
};
use fops::lock::{
    Fence, FencesReply, LockBreak, LockBreaking, LockEntry, LockGrant, LockListReply, LockMode, LockName,
    LockRelease, LockRenew, LockRenewReply, LockTake, LockTakeReply, OnDeath, OwnerId, Ticket,
};
use fops::news::LockNews;

/// A request about a lock that control refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LockRefusal {
    /// Not a name.
    #[error("a lock's name has 1 to {LOCK_NAME_BYTES_MAX} bytes and no control characters")]
    BadName,
    /// Nobody's number.
    #[error("owner 0 is nobody: choose another number, or have one generated")]
    BadOwner,
    /// Too long for the store.
    #[error("the reason has {bytes} bytes; at most {NOTE_BYTES_MAX} are kept")]
    LongReason {
        /// Its length.
        bytes: usize,
    },
    /// The owner has it in another way.
    #[error(
        "owner {owner} holds {lock} already, in another mode or with another choice for its death: release it first"
    )]
    OtherTerms {
        /// Which.
        lock: LockName,
        /// Whose.
        owner: OwnerId,
    },
    /// No room for a grant.
    #[error("{LOCKS_MAX} locks are held, which is the limit: release some (clovis lock list)")]
    Full,
    /// No room for one more who waits.
    #[error("{LOCK_WAITERS_MAX} requests wait for locks already, which is the limit: try again later")]
    TooManyWait,
    /// No room for a fence, and none may be forgotten.
    #[error(
        "{FENCES_MAX} owners are fenced, which is the limit, and {oldest} (owner {owner}) is held since before all of that: release it, then fences older than the next oldest lock are folded into one"
    )]
    FencesFull {
        /// The lock that keeps them from being forgotten.
        oldest: LockName,
        /// Its owner.
        owner: OwnerId,
    },
    /// No room for a fence, and none may be forgotten.
    #[error(
        "{FENCES_MAX} owners are fenced, which is the limit, and client {borrower} holds credits since before all of that: end it (clovis credit list), then older fences are folded into one"
    )]
    FencesFullOfBorrowers {
        /// The client that keeps them from being forgotten.
        borrower: OwnerId,
    },
}

/// Something that the store has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockChange {
    /// Put this grant.
    PutGrant(LockGrant),
    /// Delete the grant.
    DropGrant(LockName, OwnerId),
    /// Put this fence.
    PutFence(Fence),
    /// Delete the fence.
    DropFence(u64),
    /// Only the numbers beside are new.
    Numbers,
}

/// The last numbers given: stored with every change, so that none comes twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockNumbers {
    /// Of a ticket.
    pub epoch: u64,
    /// Of a fence.
    pub fence: u64,
}

#[derive(Clone, Debug)]
struct Held {
    grant: LockGrant,
    /// When its holder was last heard; at least when control started.
    heard_at: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    owner: OwnerId,
    mode: LockMode,
    /// Its place is kept until then.
    until: Instant,
}

/// All locks and fences of the cluster.
#[derive(Debug)]
pub struct LockTable {
    lease: Duration,
    held: BTreeMap<(LockName, OwnerId), Held>,
    waiters: BTreeMap<LockName, VecDeque<Waiter>>,
    waiting: usize,
    fences: BTreeMap<u64, Fence>,
    /// Tickets in force that belong to no lock: those of borrowers.
    tickets: BTreeMap<OwnerId, u64>,
    numbers: LockNumbers,
    /// One more with each change that the store has to have.
    serial: u64,
    changes: Vec<LockChange>,
    /// What to tell once those changes are durable.
    news: Vec<LockNews>,
}

impl LockTable {
    /// The table as the store had it at `now`. `lease`: for holders that renew.
    #[must_use]
    pub fn new(
        now: Instant,
        lease: Duration,
        grants: Vec<LockGrant>,
        fences: Vec<Fence>,
        numbers: LockNumbers,
    ) -> LockTable {
        let key = |grant: &LockGrant| (grant.lock.clone(), grant.ticket.owner);
        LockTable {
            lease,
            held: grants.into_iter().map(|grant| (key(&grant), Held { grant, heard_at: now })).collect(),
            waiters: BTreeMap::new(),
            waiting: 0,
            fences: fences.into_iter().map(|fence| (fence.number, fence)).collect(),
            tickets: BTreeMap::new(),
            numbers,
            serial: 0,
            changes: Vec::new(),
            news: Vec::new(),
        }
    }

    /// Number of the last change: an answer waits until the store has it.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// What the store has to do, in this order, and the numbers to put beside it.
    pub fn take_changes(&mut self) -> (Vec<LockChange>, LockNumbers) {
        (std::mem::take(&mut self.changes), self.numbers)
    }

    /// What is to be told to those who watch locks, once what [`LockTable::take_changes`] gave at the same time is durable.
    pub fn take_news(&mut self) -> Vec<LockNews> {
        std::mem::take(&mut self.news)
    }

    fn change(&mut self, change: LockChange) {
        self.serial += 1;
        self.changes.push(change);
    }

    /// Takes a lock, or gives its place in the queue to one who wants to wait until `wait_until`.
    ///
    /// `from`: endpoint of the requester; `unix_s`: control's clock, for people. The same owner again gets the same grant, or a
    /// new epoch if it was fenced meanwhile. Errors: see [`LockRefusal`]; nothing changed then.
    pub fn handle_take(
        &mut self,
        now: Instant,
        request: &LockTake,
        (from, unix_s): (Endpoint, u64),
        wait_until: Option<Instant>,
    ) -> Result<LockTakeReply, LockRefusal> {
        check_name(&request.lock)?;
        check_reason(&request.why)?;
        let LockTake { lock, owner, mode, on_death, .. } = request;
        if owner.0 == 0 {
            return Err(LockRefusal::BadOwner);
        }
        self.forget_absent(now);
        let key = (lock.clone(), *owner);
        let lease_ms = match on_death {
            OnDeath::Hold => 0,
            OnDeath::Fence => u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX),
        };
        if let Some(found) = self.held.get(&key)
            && found.grant.breaking.is_none()
        {
            if (found.grant.mode, found.grant.on_death) != (*mode, *on_death) {
                return Err(LockRefusal::OtherTerms { lock: lock.clone(), owner: *owner });
            }
            let mut epoch = found.grant.ticket.epoch;
            if self.is_fenced(found.grant.ticket) {
                self.numbers.epoch += 1;
                epoch = self.numbers.epoch;
            }
            let Some(found) = self.held.get_mut(&key) else { return Err(LockRefusal::BadOwner) };
            found.heard_at = now;
            if found.grant.ticket.epoch != epoch {
                found.grant.ticket.epoch = epoch;
                let grant = found.grant.clone();
                self.news.push(LockNews::Taken { grant: grant.clone() });
                self.change(LockChange::PutGrant(grant));
            }
            return Ok(LockTakeReply::Granted { epoch, lease_ms });
        }
        let ahead = self.ahead_of(lock, *owner);
        let holders: Vec<OwnerId> = self.holders(lock).map(|held| held.grant.ticket.owner).collect();
        let fits = match mode {
            LockMode::Exclusive => holders.is_empty(),
            LockMode::Shared => self
                .holders(lock)
                .all(|held| held.grant.mode == LockMode::Shared && held.grant.ticket.owner != *owner),
        };
        if ahead > 0 || !fits {
            if let Some(until) = wait_until {
                self.keep_place(lock, *owner, *mode, until + Duration::from_millis(LOCK_PLACE_MS))?;
            }
            let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
            let holders = holders.into_iter().take(LOCK_HOLDERS_NAMED).collect();
            return Ok(LockTakeReply::Busy { holders, ahead });
        }
        if self.held.len() >= LOCKS_MAX {
            return Err(LockRefusal::Full);
        }
        self.leave_queue(lock, *owner);
        self.numbers.epoch += 1;
        let epoch = self.numbers.epoch;
        let grant = LockGrant {
            lock: lock.clone(),
            ticket: Ticket { owner: *owner, epoch },
            mode: *mode,
            on_death: *on_death,
            from,
            since_unix_s: unix_s,
            why: request.why.clone(),
            breaking: None,
        };
        self.held.insert(key, Held { grant: grant.clone(), heard_at: now });
        self.news.push(LockNews::Taken { grant: grant.clone() });
        self.change(LockChange::PutGrant(grant));
        Ok(LockTakeReply::Granted { epoch, lease_ms })
    }

    /// Gives a lock back. False if it was not held so. A lock that is being broken is past that: its break goes on.
    pub fn handle_release(&mut self, request: &LockRelease) -> bool {
        let key = (request.lock.clone(), request.owner);
        let held = self.held.get(&key).filter(|held| held.grant.breaking.is_none());
        let meant = |held: &Held| request.epoch == 0 || request.epoch == held.grant.ticket.epoch;
        if !held.is_some_and(meant) {
            return false;
        }
        if let Some(Held { grant, .. }) = self.held.remove(&key) {
            self.news.push(LockNews::Released { lock: grant.lock, ticket: grant.ticket });
        }
        self.change(LockChange::DropGrant(key.0, key.1));
        true
    }

    /// The holder lives.
    pub fn handle_renew(&mut self, now: Instant, request: &LockRenew) -> LockRenewReply {
        let waiting = self.waiting_for(&request.lock);
        let fenced = self.is_fenced(request.ticket);
        let held = self
            .held
            .get_mut(&(request.lock.clone(), request.ticket.owner))
            .filter(|held| held.grant.ticket == request.ticket && held.grant.breaking.is_none() && !fenced);
        match held {
            Some(held) => {
                held.heard_at = now;
                LockRenewReply { held: true, waiting }
            }
            None => LockRenewReply { held: false, waiting },
        }
    }

    /// Begins to take a lock from its owner. Answer: the number of the fence that has to be acknowledged; `None`: it does not
    /// hold it. Again: the same number.
    pub fn handle_break(&mut self, request: &LockBreak, by: Endpoint) -> Result<Option<u64>, LockRefusal> {
        check_reason(&request.why)?;
        let key = (request.lock.clone(), request.owner);
        self.begin_break(&key, by, &request.why)
    }

    fn begin_break(
        &mut self,
        key: &(LockName, OwnerId),
        by: Endpoint,
        why: &str,
    ) -> Result<Option<u64>, LockRefusal> {
        match self.held.get(key) {
            None => return Ok(None),
            Some(Held { grant: LockGrant { breaking: Some(breaking), .. }, .. }) => {
                return Ok(Some(breaking.fence));
            }
            Some(_) => {}
        }
        let fence = self.fence(key.1)?;
        if let Some(held) = self.held.get_mut(key) {
            held.grant.breaking = Some(LockBreaking { fence, by, why: why.to_owned() });
            let grant = held.grant.clone();
            let (lock, ticket, why) = (grant.lock.clone(), grant.ticket, why.to_owned());
            self.news.push(LockNews::Breaking { lock, ticket, by, why });
            self.change(LockChange::PutGrant(grant));
        }
        Ok(Some(fence))
    }

    /// A new ticket for a borrower of the resource manager: its epoch. Until it is fenced or no longer adopted, no fence for everybody goes past it.
    pub fn issue_ticket(&mut self, owner: OwnerId) -> u64 {
        self.numbers.epoch += 1;
        self.tickets.insert(owner, self.numbers.epoch);
        self.change(LockChange::Numbers);
        self.numbers.epoch
    }

    /// These tickets of borrowers are in force, and no others.
    pub fn adopt_tickets(&mut self, tickets: impl Iterator<Item = (OwnerId, u64)>) {
        self.tickets = tickets.collect();
    }

    /// Fences the tickets of a borrower: the number of the fence; `None`: there is no room for it now.
    pub fn fence_borrower(&mut self, owner: OwnerId) -> Option<u64> {
        let fence = self.fence(owner).ok()?;
        self.tickets.remove(&owner);
        Some(fence)
    }

    /// Fences every ticket that `owner` has by now.
    fn fence(&mut self, owner: OwnerId) -> Result<u64, LockRefusal> {
        let older: Vec<u64> =
            self.fences.values().filter(|fence| fence.owner == owner).map(|fence| fence.number).collect();
        if older.is_empty() && self.fences.len() >= FENCES_MAX {
            self.fold_fences(owner)?;
        }
        older.into_iter().for_each(|number| self.drop_fence(number));
        Ok(self.put_fence(owner, self.numbers.epoch))
    }

    fn put_fence(&mut self, owner: OwnerId, epoch: u64) -> u64 {
        self.numbers.fence += 1;
        let fence = Fence { number: self.numbers.fence, owner, epoch };
        self.fences.insert(fence.number, fence);
        self.change(LockChange::PutFence(fence));
        fence.number
    }

    fn drop_fence(&mut self, number: u64) {
        self.fences.remove(&number);
        self.change(LockChange::DropFence(number));
    }

    /// Makes room: a ticket that is older than every valid one belongs to a lock that is no longer held, so one fence for everybody
    /// stands for all fences up to there.
    fn fold_fences(&mut self, wanted: OwnerId) -> Result<(), LockRefusal> {
        let valid = self.held.values().filter(|held| {
            held.grant.breaking.is_none()
                && held.grant.ticket.owner != wanted
                && !self.is_fenced(held.grant.ticket)
        });
        let oldest = valid.min_by_key(|held| held.grant.ticket.epoch).map(|held| held.grant.clone());
        let floor = oldest.as_ref().map_or(self.numbers.epoch, |grant| grant.ticket.epoch - 1);
        let borrowed = self.tickets.iter().filter(|(owner, _)| **owner != wanted);
        let borrowed = borrowed.min_by_key(|(_, epoch)| **epoch).map(|(owner, epoch)| (*owner, *epoch));
        let floor = borrowed.map_or(floor, |(_, epoch)| floor.min(epoch - 1));
        let gone: Vec<u64> =
            self.fences.values().filter(|fence| fence.epoch <= floor).map(|fence| fence.number).collect();
        if gone.len() < 2 {
            // Nothing is won: one goes, one comes. Without an oldest lock all of them would have gone.
            return match (oldest, borrowed) {
                (_, Some((borrower, epoch))) if epoch - 1 == floor => {
                    Err(LockRefusal::FencesFullOfBorrowers { borrower })
                }
                (Some(grant), _) => {
                    Err(LockRefusal::FencesFull { oldest: grant.lock, owner: grant.ticket.owner })
                }
                (None, _) => Ok(()),
            };
        }
        gone.into_iter().for_each(|number| self.drop_fence(number));
        self.put_fence(OwnerId::EVERYONE, floor);
        Ok(())
    }

    /// Ends the breaks whose fence `is_acknowledged` everywhere. True if a lock became free.
    pub fn complete_breaks(&mut self, is_acknowledged: impl Fn(u64) -> bool) -> bool {
        let done = |held: &Held| {
            held.grant.breaking.as_ref().is_some_and(|breaking| is_acknowledged(breaking.fence))
        };
        let keys: Vec<_> =
            self.held.iter().filter(|(_, held)| done(held)).map(|(key, _)| key.clone()).collect();
        let any = !keys.is_empty();
        for key in keys {
            if let Some(Held { grant, .. }) = self.held.remove(&key) {
                self.news.push(LockNews::Broken { lock: grant.lock, ticket: grant.ticket });
            }
            self.change(LockChange::DropGrant(key.0, key.1));
        }
        any
    }

    /// True while a break is under way.
    #[must_use]
    pub fn is_breaking(&self) -> bool {
        self.held.values().any(|held| held.grant.breaking.is_some())
    }

    /// Number of the fence that a break of this lock waits for.
    #[must_use]
    pub fn breaking(&self, lock: &LockName, owner: OwnerId) -> Option<u64> {
        let held = self.held.get(&(lock.clone(), owner))?;
        held.grant.breaking.as_ref().map(|breaking| breaking.fence)
    }

    /// Fences holders that were to renew and did not, and forgets who no longer waits. `by`: control. True if anything changed.
    pub fn handle_tick(&mut self, now: Instant, by: Endpoint) -> bool {
        let lost_after = lost_after(self.lease);
        let mut changed = self.forget_absent(now);
        let silent: Vec<_> = self
            .held
            .iter()
            .filter(|(_, held)| renews(&held.grant) && held.heard_at + lost_after <= now)
            .map(|(key, held)| (key.clone(), now.since(held.heard_at)))
            .collect();
        for (key, silence) in silent {
            let why = format!("its holder was silent for {} ms", silence.as_millis());
            // No room for a fence: the lock stays, and is tried again with the next tick.
            changed |= self.begin_break(&key, by, &why).is_ok();
        }
        changed
    }

    /// When [`LockTable::handle_tick`] has work next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let lost_after = lost_after(self.lease);
        let renewing = self.held.values().filter(|held| renews(&held.grant));
        let renewing = renewing.map(|held| held.heard_at + lost_after);
        renewing.chain(self.waiters.values().flatten().map(|waiter| waiter.until)).min()
    }

    /// A page of fences behind `after`, oldest first.
    #[must_use]
    pub fn fences_after(&self, after: u64) -> FencesReply {
        let mut range = self.fences.range((Bound::Excluded(after), Bound::Unbounded));
        let fences: Vec<Fence> = range.by_ref().take(FENCES_PAGE).map(|(_, fence)| *fence).collect();
        FencesReply { fences, more: range.next().is_some() }
    }

    /// A page of the held locks behind `after`, of one object or of all.
    #[must_use]
    pub fn list(
        &self,
        now: Instant,
        object: Option<Fid>,
        after: Option<&(LockName, OwnerId)>,
    ) -> LockListReply {
        let first = (LockName { object, name: String::new() }, OwnerId::default());
        let from = match after {
            Some(after) if *after >= first => Bound::Excluded(after),
            _ => Bound::Included(&first),
        };
        let range = self.held.range::<(LockName, OwnerId), _>((from, Bound::Unbounded)).map(|(_, held)| held);
        let mut range = range.take_while(|held| object.is_none() || held.grant.lock.object == object);
        let locks: Vec<LockEntry> =
            range.by_ref().take(LOCKS_PAGE).map(|held| self.entry(now, held)).collect();
        LockListReply { locks, more: range.next().is_some() }
    }

    fn entry(&self, now: Instant, held: &Held) -> LockEntry {
        let grant = held.grant.clone();
        let silent = now.since(held.heard_at);
        LockEntry {
            silent_ms: (grant.on_death == OnDeath::Fence)
                .then(|| u64::try_from(silent.as_millis()).unwrap_or(u64::MAX)),
            waiting: self.waiting_for(&grant.lock),
            fenced: self.is_fenced(grant.ticket),
            grant,
        }
    }

    fn is_fenced(&self, ticket: Ticket) -> bool {
        let against = |fence: &Fence| fence.owner == ticket.owner || fence.owner == OwnerId::EVERYONE;
        self.fences.values().any(|fence| against(fence) && ticket.epoch <= fence.epoch)
    }

    fn holders<'a>(&'a self, lock: &'a LockName) -> impl Iterator<Item = &'a Held> {
        self.held
            .range((lock.clone(), OwnerId::default())..)
            .take_while(move |((name, _), _)| name == lock)
            .map(|(_, held)| held)
    }

    /// Those who wait before `owner`; all of them if it does not wait.
    fn ahead_of(&self, lock: &LockName, owner: OwnerId) -> usize {
        let Some(queue) = self.waiters.get(lock) else { return 0 };
        queue.iter().position(|waiter| waiter.owner == owner).unwrap_or(queue.len())
    }

    fn waiting_for(&self, lock: &LockName) -> u32 {
        self.waiters.get(lock).map_or(0, |queue| u32::try_from(queue.len()).unwrap_or(u32::MAX))
    }

    fn keep_place(
        &mut self,
        lock: &LockName,
        owner: OwnerId,
        mode: LockMode,
        until: Instant,
    ) -> Result<(), LockRefusal> {
        let found = self.waiters.get_mut(lock).and_then(|queue| queue.iter_mut().find(|w| w.owner == owner));
        if let Some(found) = found {
            (found.mode, found.until) = (mode, found.until.max(until));
            return Ok(());
        }
        if self.waiting >= LOCK_WAITERS_MAX {
            return Err(LockRefusal::TooManyWait);
        }
        self.waiting += 1;
        self.waiters.entry(lock.clone()).or_default().push_back(Waiter { owner, mode, until });
        Ok(())
    }

    fn leave_queue(&mut self, lock: &LockName, owner: OwnerId) {
        let Some(queue) = self.waiters.get_mut(lock) else { return };
        let before = queue.len();
        queue.retain(|waiter| waiter.owner != owner);
        self.waiting -= before - queue.len();
        if queue.is_empty() {
            self.waiters.remove(lock);
        }
    }

    fn forget_absent(&mut self, now: Instant) -> bool {
        let before = self.waiting;
        let mut waiting = 0;
        self.waiters.retain(|_, queue| {
            queue.retain(|waiter| waiter.until > now);
            waiting += queue.len();
            !queue.is_empty()
        });
        self.waiting = waiting;
        waiting != before
    }
}

/// True if silence of the holder ends the grant.
fn renews(grant: &LockGrant) -> bool {
    grant.on_death == OnDeath::Fence && grant.breaking.is_none()
}

fn check_name(lock: &LockName) -> Result<(), LockRefusal> {
    let fits =
        (1..=LOCK_NAME_BYTES_MAX).contains(&lock.name.len()) && !lock.name.chars().any(char::is_control);
    if fits { Ok(()) } else { Err(LockRefusal::BadName) }
}

fn check_reason(why: &str) -> Result<(), LockRefusal> {
    match why.len() {
        bytes if bytes > NOTE_BYTES_MAX => Err(LockRefusal::LongReason { bytes }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(3);

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    fn here() -> Endpoint {
        "0@lo:1:34:1".parse().unwrap()
    }

    fn name(name: &str) -> LockName {
        LockName { object: None, name: name.to_owned() }
    }

    fn table() -> LockTable {
        LockTable::new(at(0), LEASE, Vec::new(), Vec::new(), LockNumbers::default())
    }

    fn request(lock: &str, owner: u128, mode: LockMode, on_death: OnDeath) -> LockTake {
        let why = "test".to_owned();
        LockTake { lock: name(lock), owner: OwnerId(owner), mode, on_death, why, wait_ms: 0 }
    }

    /// The epoch, or 0 if it is not free.
    fn take(table: &mut LockTable, now: u64, owner: u128, mode: LockMode, wait: bool) -> u64 {
        let wait_until = wait.then(|| at(now + 1000));
        let request = request("a", owner, mode, OnDeath::Hold);
        match table.handle_take(at(now), &request, (here(), 0), wait_until).unwrap() {
            LockTakeReply::Granted { epoch, .. } => epoch,
            LockTakeReply::Busy { .. } => 0,
        }
    }

    fn release(table: &mut LockTable, owner: u128) -> bool {
        table.handle_release(&LockRelease { lock: name("a"), owner: OwnerId(owner), epoch: 0 })
    }

    fn break_from(table: &mut LockTable, owner: u128) -> Option<u64> {
        let request =
            LockBreak { lock: name("a"), owner: OwnerId(owner), why: "dead".to_owned(), wait_ms: 0 };
        table.handle_break(&request, here()).unwrap()
    }

    use LockMode::{Exclusive, Shared};

    #[test]
    fn shared_owners_hold_together_and_an_exclusive_one_alone() {
        let mut table = table();
        assert_eq!(take(&mut table, 0, 1, Shared, false), 1);
        assert_eq!(take(&mut table, 0, 2, Shared, false), 2);
        assert_eq!(take(&mut table, 0, 1, Shared, false), 1, "again: the same grant");
        assert_eq!(take(&mut table, 0, 3, Exclusive, false), 0);
        let other = table.handle_take(at(0), &request("a", 1, Exclusive, OnDeath::Hold), (here(), 0), None);
        assert!(matches!(other, Err(LockRefusal::OtherTerms { .. })));
        assert!(release(&mut table, 1) && release(&mut table, 2) && !release(&mut table, 2));
        assert_eq!(take(&mut table, 0, 3, Exclusive, false), 3);
        assert_eq!(take(&mut table, 0, 1, Shared, false), 0);
        let stale = LockRelease { lock: name("a"), owner: OwnerId(3), epoch: 2 };
        assert!(!table.handle_release(&stale), "the release of an earlier grant");
    }

    #[test]
    fn those_who_wait_are_served_in_their_order_and_nobody_passes() {
        let mut table = table();
        assert_eq!(take(&mut table, 0, 1, Shared, false), 1);
        assert_eq!(take(&mut table, 0, 2, Exclusive, true), 0);
        assert_eq!(take(&mut table, 1, 3, Shared, true), 0, "not past the exclusive one");
        assert_eq!(take(&mut table, 1, 4, Shared, false), 0, "nor by trying");
        assert!(release(&mut table, 1));
        assert_eq!(take(&mut table, 2, 3, Shared, true), 0);
        assert_eq!(take(&mut table, 2, 2, Exclusive, true), 2);
        assert!(release(&mut table, 2));
        assert_eq!(take(&mut table, 2, 3, Shared, true), 3);
        // One who stays away keeps its place for a while, then loses it.
        assert_eq!(take(&mut table, 3, 5, Exclusive, true), 0);
        assert_eq!(take(&mut table, 3 + 2999, 6, Shared, false), 0);
        assert_eq!(table.next_deadline(), Some(at(3 + 3000)));
        assert!(table.handle_tick(at(3 + 3000), here()));
        assert_eq!(take(&mut table, 3 + 3000, 6, Shared, false), 4);
    }

    #[test]
    fn a_break_fences_first_and_frees_the_lock_only_when_all_have_acknowledged() {
        let mut table = table();
        let epoch = take(&mut table, 0, 1, Exclusive, false);
        assert_eq!(break_from(&mut table, 9), None);
        let fence = break_from(&mut table, 1).unwrap();
        assert_eq!(break_from(&mut table, 1), Some(fence), "again: the same");
        assert_eq!(table.fences_after(0).fences, [Fence { number: fence, owner: OwnerId(1), epoch }]);
        assert_eq!(take(&mut table, 0, 2, Exclusive, true), 0, "still held");
        assert!(!release(&mut table, 1), "too late for that");
        let ticket = Ticket { owner: OwnerId(1), epoch };
        assert!(!table.handle_renew(at(1), &LockRenew { lock: name("a"), ticket }).held);
        assert!(!table.complete_breaks(|number| number < fence) && table.is_breaking());
        assert!(table.complete_breaks(|number| number <= fence));
        assert_eq!(take(&mut table, 0, 2, Exclusive, true), epoch + 1);
        assert!(release(&mut table, 2));
        assert_eq!(take(&mut table, 0, 1, Exclusive, false), epoch + 2, "the old owner may come again");
    }

    #[test]
    fn each_thing_that_becomes_of_a_lock_is_told_once_and_in_order() {
        let mut table = table();
        take(&mut table, 0, 1, Exclusive, false);
        take(&mut table, 0, 1, Exclusive, false);
        take(&mut table, 0, 2, Exclusive, true);
        release(&mut table, 1);
        take(&mut table, 1, 2, Exclusive, true);
        break_from(&mut table, 2);
        break_from(&mut table, 2);
        table.complete_breaks(|_| true);
        let told: Vec<String> = table
            .take_news()
            .into_iter()
            .map(|news| match news {
                LockNews::Taken { grant } => format!("taken {}", grant.ticket.epoch),
                LockNews::Released { ticket, .. } => format!("released {}", ticket.epoch),
                LockNews::Breaking { ticket, why, .. } => format!("breaking {} {why}", ticket.epoch),
                LockNews::Broken { ticket, .. } => format!("broken {}", ticket.epoch),
            })
            .collect();
        assert_eq!(told, ["taken 1", "released 1", "taken 2", "breaking 2 dead", "broken 2"]);
        assert_eq!(table.take_news(), []);
    }

    #[test]
    fn an_owner_fenced_for_one_lock_gets_a_new_ticket_for_its_others() {
        let mut table = table();
        assert_eq!(take(&mut table, 0, 1, Exclusive, false), 1);
        let other = request("b", 1, Exclusive, OnDeath::Hold);
        table.handle_take(at(0), &other, (here(), 0), None).unwrap();
        break_from(&mut table, 1);
        let page = table.list(at(0), None, None);
        assert!(page.locks.iter().all(|entry| entry.fenced));
        let again = table.handle_take(at(0), &other, (here(), 0), None).unwrap();
        assert_eq!(again, LockTakeReply::Granted { epoch: 3, lease_ms: 0 });
        let page = table.list(at(0), None, Some(&(name("a"), OwnerId(1))));
        assert!(page.locks.len() == 1 && !page.locks[0].fenced && !page.more);
    }

    #[test]
    fn a_silent_holder_that_chose_it_is_fenced_and_one_that_did_not_is_left_alone() {
        let mut table = table();
        let fence = request("a", 1, Exclusive, OnDeath::Fence);
        let reply = table.handle_take(at(0), &fence, (here(), 0), None).unwrap();
        assert_eq!(reply, LockTakeReply::Granted { epoch: 1, lease_ms: 3000 });
        let hold = request("b", 2, Exclusive, OnDeath::Hold);
        table.handle_take(at(0), &hold, (here(), 0), None).unwrap();
        let renew = LockRenew { lock: name("a"), ticket: Ticket { owner: OwnerId(1), epoch: 1 } };
        assert!(table.handle_renew(at(1000), &renew).held);
        assert!(!table.handle_tick(at(4749), here()) && !table.is_breaking());
        assert!(table.handle_tick(at(4750), here()) && table.is_breaking());
        assert!(!table.handle_renew(at(4751), &renew).held, "too late");
        assert!(table.complete_breaks(|_| true));
        assert!(!table.handle_tick(at(1_000_000), here()));
        assert_eq!(table.list(at(1_000_000), None, None).locks.len(), 1);
    }

    #[test]
    fn what_the_changes_say_is_the_table_after_a_restart() {
        let mut table = table();
        take(&mut table, 0, 1, Shared, false);
        take(&mut table, 0, 2, Shared, false);
        take(&mut table, 0, 3, Shared, false);
        release(&mut table, 2);
        break_from(&mut table, 1);
        break_from(&mut table, 3);
        table.complete_breaks(|number| number == 1);
        let (changes, numbers) = table.take_changes();
        let (mut grants, mut fences) = (BTreeMap::new(), BTreeMap::new());
        for change in changes {
            match change {
                LockChange::PutGrant(grant) => {
                    grants.insert((grant.lock.clone(), grant.ticket.owner), grant);
                }
                LockChange::DropGrant(lock, owner) => assert!(grants.remove(&(lock, owner)).is_some()),
                LockChange::PutFence(fence) => assert!(fences.insert(fence.number, fence).is_none()),
                LockChange::DropFence(number) => assert!(fences.remove(&number).is_some()),
                LockChange::Numbers => {}
            }
        }
        let (grants, fences) = (grants.into_values().collect(), fences.into_values().collect());
        let mut again = LockTable::new(at(0), LEASE, grants, fences, numbers);
        assert_eq!(again.list(at(0), None, None), table.list(at(0), None, None));
        assert_eq!(again.fences_after(0), table.fences_after(0));
        assert!(again.complete_breaks(|_| true));
        assert_eq!(take(&mut again, 0, 4, Exclusive, false), 4, "epochs go on");
    }

    #[test]
    fn many_fences_fold_into_one_that_spares_every_valid_ticket() {
        let mut table = table();
        let old = request("old", 77, Exclusive, OnDeath::Hold);
        for owner in 1..=u128::try_from(FENCES_MAX).unwrap() {
            take(&mut table, 0, owner + 100, Exclusive, false);
            if owner == 3 {
                table.handle_take(at(0), &old, (here(), 0), None).unwrap();
            }
            break_from(&mut table, owner + 100);
            table.complete_breaks(|_| true);
        }
        assert_eq!(table.fences.len(), FENCES_MAX);
        take(&mut table, 0, 1, Exclusive, false);
        // Two of the fences are older than the lock that is held: they become one.
        break_from(&mut table, 1).unwrap();
        table.complete_breaks(|_| true);
        assert_eq!(table.fences.len(), FENCES_MAX);
        assert!(!table.is_fenced(Ticket { owner: OwnerId(77), epoch: 4 }));
        assert!(table.is_fenced(Ticket { owner: OwnerId(101), epoch: 1 }));
        take(&mut table, 0, 2, Exclusive, false);
        let full = LockBreak { lock: name("a"), owner: OwnerId(2), why: String::new(), wait_ms: 0 };
        let refused = table.handle_break(&full, here());
        assert_eq!(refused, Err(LockRefusal::FencesFull { oldest: name("old"), owner: OwnerId(77) }));
        table.handle_release(&LockRelease { lock: name("old"), owner: OwnerId(77), epoch: 0 });
        break_from(&mut table, 2).unwrap();
        assert_eq!(table.fences.len(), 2, "the floor and this one");
    }
}
