//! A client's side of the resource manager: one session with control, one owner for each resource that is used here, its local users.
//!
//! **Invariant**: a [`Hold`] is good ([`Hold::check`]) only while this side counts the lease as running; control counts it longer
//! (`faces::lease`), so nobody else has the credit before. **Invariant**: a session that ended is never taken up again: the next one has
//! another number. Sessions begin with the first hold and end by themselves when nothing was held for a lease.
//! Left over when control is away for longer than the lease: every hold is void, and its user has to ask anew.
//! Bounds: `limits::LOANS_PER_BORROWER_MAX` (control's refusal); a request that is under way for each. Thread: the locality of its `RpcMachine`.
//! Rules: docs/rm.md. Start at [`Borrower::hold`].

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::{Blame, Blamed, Instant};
use fops::lock::{OwnerId, Ticket};
use fops::rm::{
    BorrowerId, FidRange, RmBegin, RmBorrow, RmBorrowReply, RmCredit, RmHolder, RmList, RmListReply, RmPoll,
    RmPollReply, RmResource, RmReturn,
};
use runtime::Task;
use runtime::sync::{Notify, Semaphore};

use crate::conf_client::{ConfClient, ConfError};
use crate::lease::Lease;
use crate::limits::{FID_RANGE_DEFAULT, RM_POLLS_PER_LEASE, RM_TRY_MS, RM_WAIT_MS_MAX};
use crate::rm::owner::{Action, Asker, Event, LoanState, Owner, Refused, RequestState, User};
use crate::rm::resource::{BadCredit, Resource, check};

/// Pause before control is asked again after it did not answer, or had nothing to say at once.
const PAUSE: Duration = Duration::from_millis(50);

/// Why a credit is not held.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HoldError {
    /// Cannot be asked for.
    #[error(transparent)]
    Bad(#[from] BadCredit),
    /// Others have it.
    #[error("{resource} is in use{}", described(holders, *ahead))]
    Busy {
        /// What was asked for.
        resource: RmResource,
        /// Some of those who have it; none: somebody of this client.
        holders: Vec<RmHolder>,
        /// Requests that wait before.
        ahead: u32,
    },
    /// There are no more.
    #[error("{resource}: all of them are handed out")]
    Exhausted {
        /// What was asked for.
        resource: RmResource,
    },
    /// It was held, or waited for, when the lease ended.
    #[error(
        "the lease on {resource} ended: control could not be reached in time, and others may use it now; ask for it again"
    )]
    Lost {
        /// What it was.
        resource: RmResource,
    },
    /// Control did not help.
    #[error(transparent)]
    Control(Arc<ConfError>),
}

impl Blamed for HoldError {
    fn blame(&self) -> Blame {
        match self {
            HoldError::Bad(_) => Blame::Caller,
            HoldError::Control(error) => error.blame(),
            HoldError::Busy { .. } | HoldError::Exhausted { .. } | HoldError::Lost { .. } => {
                Blame::Environment
            }
        }
    }

    fn may_retry(&self) -> bool {
        match self {
            HoldError::Busy { .. } | HoldError::Lost { .. } => true,
            HoldError::Control(error) => error.may_retry(),
            HoldError::Bad(_) | HoldError::Exhausted { .. } => false,
        }
    }
}

fn described(holders: &[RmHolder], ahead: u32) -> String {
    let mut words: Vec<String> = holders
        .iter()
        .map(|holder| {
            let name = if holder.name.is_empty() { "a client" } else { holder.name.as_str() };
            let end = if holder.lost { ", which is being fenced" } else { "" };
            format!("{name} at {}{end}", holder.from)
        })
        .collect();
    if words.is_empty() && ahead == 0 {
        words.push("this client".to_owned());
    }
    if ahead > 0 {
        words.push(format!("{ahead} who wait before"));
    }
    format!(" by {}", words.join(" and "))
}

enum Phase {
    Waits,
    Has,
    Over(HoldError),
}

struct LocalUser {
    resource: RmResource,
    until: Instant,
    phase: RefCell<Phase>,
    /// Others wait for it.
    is_wanted: Cell<bool>,
    rung: Notify,
}

#[derive(Clone, Copy, Debug)]
struct Session {
    id: BorrowerId,
    epoch: u64,
    lease: Lease,
    length: Duration,
    /// Since when nothing is held.
    idle_since: Option<Instant>,
}

struct Shared {
    conf: ConfClient,
    name: String,
    /// How long an answer of control may take.
    patience: Duration,
    session: RefCell<Option<Session>>,
    beginning: Semaphore,
    owners: RefCell<BTreeMap<RmResource, Owner<Resource>>>,
    last_number: Cell<u64>,
    users: RefCell<BTreeMap<u64, Rc<LocalUser>>>,
    last_user: Cell<u64>,
    /// Loans that are asked for or here.
    loans: RefCell<BTreeMap<u64, RmResource>>,
    /// Loans whose return is under way.
    returning: RefCell<BTreeSet<u64>>,
    /// Loans here that control has asked back.
    known: RefCell<BTreeSet<u64>>,
    /// Fids that nobody has taken yet.
    fids: Cell<FidRange>,
    fids_turn: Semaphore,
    /// Rings when a session began, or something was returned.
    rung: Notify,
}

/// What a client borrows of control. Clones are one session.
#[derive(Clone)]
pub struct Borrower {
    shared: Rc<Shared>,
    polls: Rc<DropTask>,
}

/// Ends with the borrower and the last of its holds.
struct DropTask(Option<Task>);

impl Drop for DropTask {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.cancel();
        }
    }
}

impl fmt::Debug for Borrower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Borrower({:?}, {} loans)", self.shared.name, self.shared.loans.borrow().len())
    }
}

/// A credit that is held until this is dropped, or its lease ends.
pub struct Hold {
    shared: Rc<Shared>,
    _polls: Rc<DropTask>,
    number: u64,
    user: Rc<LocalUser>,
    session: BorrowerId,
    ticket: Ticket,
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hold({}, {})", self.user.resource, self.ticket)
    }
}

fn local(number: u64) -> Asker {
    Asker { user: User::Local, number }
}

impl Borrower {
    /// Nothing is sent yet. `name`: for people, at most 64 bytes; `patience`: how long an answer of control may take.
    #[must_use]
    pub fn start(conf: &ConfClient, name: String, patience: Duration) -> Borrower {
        let shared = Rc::new(Shared {
            conf: conf.clone(),
            name,
            patience,
            session: RefCell::default(),
            beginning: Semaphore::new(1),
            owners: RefCell::default(),
            last_number: Cell::new(0),
            users: RefCell::default(),
            last_user: Cell::new(0),
            loans: RefCell::default(),
            returning: RefCell::default(),
            known: RefCell::default(),
            fids: Cell::new(FidRange { first: 0, count: 0 }),
            fids_turn: Semaphore::new(1),
            rung: Notify::new(),
        });
        let task = conf.rpc().locality().spawn("borrower", run(Rc::clone(&shared)));
        Borrower { shared, polls: Rc::new(DropTask(Some(task))) }
    }

    /// Holds a credit, waiting for it up to `wait`, in the order of asking over all clients. Zero: only until those who do not use
    /// theirs gave them back.
    ///
    /// Errors: see [`HoldError`]; nothing is held or waited for then. Dropped while it waits: the same.
    pub async fn hold(
        &self,
        resource: &RmResource,
        credit: &RmCredit,
        wait: Duration,
    ) -> Result<Hold, HoldError> {
        check(resource, credit)?;
        let locality = self.shared.conf.rpc().locality().clone();
        let until = locality.now() + wait.max(Duration::from_millis(u64::from(RM_TRY_MS)));
        let mut is_first = true;
        loop {
            match self.hold_once(resource, credit, until).await {
                // The session ended while it waited, perhaps one that had held nothing for long: nothing is lost but its place.
                Err(HoldError::Lost { .. }) if std::mem::take(&mut is_first) || locality.now() < until => {}
                held_or_not => return held_or_not,
            }
        }
    }

    async fn hold_once(
        &self,
        resource: &RmResource,
        credit: &RmCredit,
        until: Instant,
    ) -> Result<Hold, HoldError> {
        let shared = &self.shared;
        let locality = shared.conf.rpc().locality().clone();
        let session = shared.begin().await?;
        let number = shared.last_user.get() + 1;
        shared.last_user.set(number);
        let user = Rc::new(LocalUser {
            resource: resource.clone(),
            until,
            phase: RefCell::new(Phase::Waits),
            is_wanted: Cell::new(false),
            rung: Notify::new(),
        });
        shared.users.borrow_mut().insert(number, Rc::clone(&user));
        let hold = Hold {
            shared: Rc::clone(shared),
            _polls: Rc::clone(&self.polls),
            number,
            user,
            session: session.id,
            ticket: Ticket { owner: OwnerId(session.id.0), epoch: session.epoch },
        };
        shared.handle(resource, Event::Ask { asker: local(number), credit: credit.clone() });
        // Whoever asks control for it says when that is over; the bound here is for control's silence.
        let hard_end = until + shared.patience;
        loop {
            match &*hold.user.phase.borrow() {
                Phase::Waits => {}
                Phase::Has => break,
                Phase::Over(error) => return Err(error.clone()),
            }
            let now = locality.now();
            let state = shared.owners.borrow().get(resource).map(|owner| owner.request(local(number)));
            let waits_here = state == Some(RequestState::Waiting);
            if now >= hard_end || (waits_here && now >= until) {
                return Err(HoldError::Busy { resource: resource.clone(), holders: Vec::new(), ahead: 0 });
            }
            let end = if waits_here { until } else { hard_end };
            // Either way it is looked again.
            let _rung = locality.timeout_at(end, hold.user.rung.notified()).await;
        }
        Ok(hold)
    }

    /// A number for an object that no other client gets, ever. Of a range that is borrowed when the last one is used up; what is left of it is
    /// lost with this client. Errors: see [`HoldError`].
    pub async fn next_fid(&self) -> Result<u64, HoldError> {
        let _turn = self.shared.fids_turn.acquire(1).await;
        if self.shared.fids.get().count == 0 {
            let range = self.shared.borrow_fids().await?;
            self.shared.fids.set(range);
        }
        let FidRange { first, count } = self.shared.fids.get();
        self.shared.fids.set(FidRange { first: first + 1, count: count - 1 });
        Ok(first)
    }

    /// Ends the session in order: everything that is not used any more is free at once. Whatever is still held is void.
    ///
    /// Errors: control does not answer until `deadline`; the lease ends it then.
    pub async fn leave(&self, deadline: Instant) -> Result<(), ConfError> {
        let Some(session) = *self.shared.session.borrow() else { return Ok(()) };
        self.shared.lose(session.id);
        self.shared.leave(session.id, deadline).await
    }

    /// A page of all loans of the cluster, behind `after`: for people.
    pub async fn list(
        conf: &ConfClient,
        after: Option<(BorrowerId, u64)>,
        deadline: Instant,
    ) -> Result<RmListReply, ConfError> {
        conf.call(&RmList { after }, deadline).await
    }
}

impl Hold {
    /// What writes under this hold carry: refused by every server once the hold was taken away.
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// What it is about.
    #[must_use]
    pub fn resource(&self) -> &RmResource {
        &self.user.resource
    }

    /// Others wait for it: whoever can do without gives it back.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.user.is_wanted.get()
    }

    /// Looks whether it is still held. Error: [`HoldError::Lost`]; it stays so.
    pub fn check(&self) -> Result<(), HoldError> {
        let now = self.shared.now();
        let session = *self.shared.session.borrow();
        let holds = session.is_some_and(|session| session.id == self.session && session.lease.holds(now));
        match &*self.user.phase.borrow() {
            Phase::Has if holds => Ok(()),
            Phase::Over(error) => Err(error.clone()),
            Phase::Has | Phase::Waits => Err(HoldError::Lost { resource: self.user.resource.clone() }),
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared.users.borrow_mut().remove(&self.number);
        self.shared.handle(&self.user.resource, Event::Return { asker: local(self.number) });
    }
}

impl Shared {
    fn now(&self) -> Instant {
        self.conf.rpc().locality().now()
    }

    fn is_session(&self, id: BorrowerId) -> bool {
        self.session.borrow().is_some_and(|session| session.id == id)
    }

    /// The session; begins one if there is none.
    async fn begin(&self) -> Result<Session, HoldError> {
        let _one_at_a_time = self.beginning.acquire(1).await;
        let current = *self.session.borrow();
        match current {
            Some(session) if session.lease.holds(self.now()) => {
                if let Some(session) = &mut *self.session.borrow_mut() {
                    session.idle_since = None;
                }
                return Ok(session);
            }
            Some(session) => self.lose(session.id),
            None => {}
        }
        let locality = self.conf.rpc().locality();
        let random = u128::from(locality.random_u64()) << 64 | u128::from(locality.random_u64());
        let id = BorrowerId(random.max(1));
        let sent_at = self.now();
        let begin = RmBegin { borrower: id, name: self.name.clone() };
        let reply = self.conf.call(&begin, sent_at + self.patience).await;
        let reply = reply.map_err(|error| HoldError::Control(Arc::new(error)))?;
        let length = Duration::from_millis(reply.lease_ms);
        let lease = Lease::granted(sent_at, length);
        let session = Session { id, epoch: reply.epoch, lease, length, idle_since: None };
        *self.session.borrow_mut() = Some(session);
        self.rung.notify_one();
        Ok(session)
    }

    /// The session is over: what was held is void.
    fn lose(self: &Shared, id: BorrowerId) {
        if !self.is_session(id) {
            return;
        }
        *self.session.borrow_mut() = None;
        self.loans.borrow_mut().clear();
        self.returning.borrow_mut().clear();
        self.known.borrow_mut().clear();
        let owners = std::mem::take(&mut *self.owners.borrow_mut());
        let mut last_number = self.last_number.get();
        for mut owner in owners.into_values() {
            for action in owner.handle(Event::CreditorLost, &mut last_number) {
                if let Action::Void { asker } | Action::Refused { asker, .. } = action {
                    self.end_user(asker, |resource| HoldError::Lost { resource });
                }
            }
        }
        self.rung.notify_one();
    }

    fn user(&self, asker: Asker) -> Option<Rc<LocalUser>> {
        match asker.user {
            User::Local => self.users.borrow().get(&asker.number).cloned(),
            User::Borrower(_) => None,
        }
    }

    /// Says to a user that it gets nothing, or has nothing any more. What was said first counts.
    fn end_user(&self, asker: Asker, why: impl FnOnce(RmResource) -> HoldError) {
        let Some(user) = self.user(asker) else { return };
        let is_over = matches!(*user.phase.borrow(), Phase::Over(_));
        if !is_over {
            *user.phase.borrow_mut() = Phase::Over(why(user.resource.clone()));
        }
        user.rung.notify_waiters();
    }

    /// One event of a resource, and what follows of it.
    fn handle(self: &Rc<Shared>, resource: &RmResource, event: Event<RmCredit>) {
        let actions = {
            let mut owners = self.owners.borrow_mut();
            let owner =
                owners.entry(resource.clone()).or_insert_with(|| Owner::borrower(Resource::of(resource, 0)));
            let mut last_number = self.last_number.get();
            let actions = owner.handle(event, &mut last_number);
            self.last_number.set(last_number);
            if owner.is_idle() {
                owners.remove(resource);
            }
            actions
        };
        let Some(session) = *self.session.borrow() else {
            // Nothing is asked of nobody: a session ended while its user was about to ask.
            for action in actions {
                if let Action::Borrow { number, asker, .. } = action {
                    self.end_user(asker, |resource| HoldError::Lost { resource });
                    self.handle(resource, Event::Denied { number });
                }
            }
            return;
        };
        let locality = self.conf.rpc().locality();
        for action in actions {
            match action {
                Action::Granted { asker, .. } => {
                    if let Some(user) = self.user(asker) {
                        *user.phase.borrow_mut() = Phase::Has;
                        user.rung.notify_waiters();
                    }
                }
                Action::Refused { asker, why } => self.end_user(asker, |resource| match why {
                    Refused::Exhausted => HoldError::Exhausted { resource },
                    Refused::Denied => HoldError::Busy { resource, holders: Vec::new(), ahead: 0 },
                    Refused::CreditorLost => HoldError::Lost { resource },
                }),
                Action::AskBack { asker } => {
                    if let Some(user) = self.user(asker) {
                        user.is_wanted.set(true);
                    }
                }
                Action::Void { asker } => self.end_user(asker, |resource| HoldError::Lost { resource }),
                Action::Borrow { number, credit, asker } => {
                    self.loans.borrow_mut().insert(number, resource.clone());
                    let request = RmBorrow {
                        borrower: session.id,
                        number,
                        resource: resource.clone(),
                        credit,
                        wait_ms: 0,
                    };
                    // Runs to its end by itself: what it asked for is here then, or given back.
                    let _task = locality.spawn("borrow", borrow(Rc::clone(self), request, asker));
                }
                Action::GiveBack { number } => {
                    self.loans.borrow_mut().remove(&number);
                    self.known.borrow_mut().remove(&number);
                    self.give_back(session.id, number);
                }
            }
        }
    }

    /// Returns a loan, in its own time.
    fn give_back(self: &Rc<Shared>, session: BorrowerId, number: u64) {
        if self.returning.borrow_mut().insert(number) {
            let returned = return_loan(Rc::clone(self), session, number);
            let _task = self.conf.rpc().locality().spawn("return", returned);
        }
    }

    async fn leave(&self, id: BorrowerId, deadline: Instant) -> Result<(), ConfError> {
        let request = RmReturn { borrower: id, numbers: Vec::new(), leave: true };
        self.conf.call(&request, deadline).await.map(drop)
    }

    async fn borrow_fids(self: &Rc<Shared>) -> Result<FidRange, HoldError> {
        let resource = RmResource::Fids;
        loop {
            let session = self.begin().await?;
            let number = self.last_number.get() + 1;
            self.last_number.set(number);
            let credit = RmCredit::Fids(FidRange { first: 0, count: FID_RANGE_DEFAULT });
            let resource = resource.clone();
            let ask =
                RmBorrow { borrower: session.id, number, resource: resource.clone(), credit, wait_ms: 0 };
            let reply = self.conf.call(&ask, self.now() + self.patience).await;
            match reply.map_err(|error| HoldError::Control(Arc::new(error)))? {
                RmBorrowReply::Lent { credit: RmCredit::Fids(range) } if range.count > 0 => {
                    // It is ours for good; control need not remember whose it is.
                    self.give_back(session.id, number);
                    return Ok(range);
                }
                RmBorrowReply::NoSession => self.lose(session.id),
                _ => return Err(HoldError::Exhausted { resource }),
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.users.borrow().is_empty()
            && self.returning.borrow().is_empty()
            && self.loans.borrow().values().all(|resource| {
                // Loans that are kept without a user are given back when the session ends.
                let owners = self.owners.borrow();
                owners.get(resource).is_none_or(|owner| owner.uses().next().is_none())
            })
    }

    /// What control answered to a poll. True if there was something to do.
    async fn take(self: &Rc<Shared>, session: Session, reply: RmPollReply) -> bool {
        let mut came = false;
        for number in reply.asked_back {
            let resource = self.loans.borrow().get(&number).cloned();
            match resource {
                Some(resource) => {
                    let state = self.owners.borrow().get(&resource).map(|owner| owner.loan(number));
                    if matches!(state, Some(LoanState::Idle | LoanState::InUse)) {
                        came = true;
                        self.known.borrow_mut().insert(number);
                        self.handle(&resource, Event::AskedBack { number });
                    }
                }
                // Lent to one who had given up.
                None => self.give_back(session.id, number),
            }
        }
        if reply.version > self.conf.version() {
            came = true;
            // The read credit on the configuration is asked back: take a new one. Unanswered, the next poll says so again.
            let _fetched = self.conf.fetch(session.lease.ends_at()).await;
        }
        came
    }
}

/// Asks control for a loan until it is lent, denied, or nobody here waits for it.
async fn borrow(shared: Rc<Shared>, mut request: RmBorrow, asker: Asker) {
    let locality = shared.conf.rpc().locality().clone();
    let (session, number, resource) = (request.borrower, request.number, request.resource.clone());
    let error = loop {
        if !shared.is_session(session) {
            return;
        }
        let user = shared.user(asker).filter(|user| matches!(*user.phase.borrow(), Phase::Waits));
        let Some(user) = user else { break None };
        let asked_at = locality.now();
        let left = if asked_at < user.until { user.until.since(asked_at) } else { Duration::ZERO };
        request.wait_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).min(RM_WAIT_MS_MAX);
        let wait = Duration::from_millis(u64::from(request.wait_ms.max(RM_TRY_MS)));
        let answer = shared.conf.call(&request, asked_at + wait + shared.patience).await;
        if !shared.is_session(session) {
            return;
        }
        let is_over = locality.now() >= user.until;
        match answer {
            Ok(RmBorrowReply::Lent { credit }) => {
                shared.handle(&resource, Event::Lent { number, credit });
                return;
            }
            Ok(RmBorrowReply::NoSession) => {
                shared.lose(session);
                return;
            }
            Ok(RmBorrowReply::Exhausted) => break Some(HoldError::Exhausted { resource: resource.clone() }),
            Ok(RmBorrowReply::Busy { holders, ahead }) if is_over => {
                break Some(HoldError::Busy { resource: resource.clone(), holders, ahead });
            }
            Err(error) if is_over || !error.may_retry() => break Some(HoldError::Control(Arc::new(error))),
            Ok(RmBorrowReply::Busy { .. }) | Err(_) => locality.sleep_until(asked_at + PAUSE).await,
        }
    };
    if let Some(error) = error {
        shared.end_user(asker, |_| error);
    }
    shared.loans.borrow_mut().remove(&number);
    shared.handle(&resource, Event::Denied { number });
    shared.give_back(session, number);
}

/// Tells control that a loan is free, until it knows.
async fn return_loan(shared: Rc<Shared>, session: BorrowerId, number: u64) {
    let locality = shared.conf.rpc().locality().clone();
    let request = RmReturn { borrower: session, numbers: vec![number], leave: false };
    while shared.is_session(session) {
        if shared.conf.call(&request, locality.now() + shared.patience).await.is_ok() {
            break;
        }
        locality.sleep(PAUSE).await;
    }
    shared.returning.borrow_mut().remove(&number);
    shared.rung.notify_one();
}

/// Keeps the session alive and hears what control wants back, for as long as there is one.
async fn run(shared: Rc<Shared>) {
    let locality = shared.conf.rpc().locality().clone();
    loop {
        let Some(session) = *shared.session.borrow() else {
            shared.rung.notified().await;
            continue;
        };
        let now = shared.now();
        if !session.lease.holds(now) {
            shared.lose(session.id);
            continue;
        }
        if shared.is_idle() {
            let since = session.idle_since.unwrap_or(now);
            if since + session.length <= now {
                shared.lose(session.id);
                // Unheard, the lease ends it.
                let _left = shared.leave(session.id, now + session.length).await;
                continue;
            }
            set_idle(&shared, session.id, Some(since));
        } else {
            set_idle(&shared, session.id, None);
        }
        let wait = session.length / RM_POLLS_PER_LEASE;
        let known: Vec<u64> = shared.known.borrow().iter().copied().collect();
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).min(RM_WAIT_MS_MAX);
        let poll = RmPoll { borrower: session.id, version: shared.conf.version(), known, wait_ms };
        // Asked anew rather than waited for: one that was under way when control died has long pauses between its resends.
        let deadline = session.lease.ends_at().min(now + wait + wait / 3);
        let answer = shared.conf.call(&poll, deadline).await;
        if !shared.is_session(session.id) {
            continue;
        }
        let came = match answer {
            Ok(RmPollReply { has_session: false, .. }) => {
                shared.lose(session.id);
                continue;
            }
            Ok(reply) => {
                if let Some(session) = &mut *shared.session.borrow_mut() {
                    session.lease.prolong(now);
                }
                shared.take(session, reply).await
            }
            Err(_) => {
                // The lease runs: control may be back at any moment.
                locality.sleep(PAUSE).await;
                continue;
            }
        };
        // A control that is away, stops, or has too many who wait is not asked all the time.
        let pause = now + wait;
        if !came && shared.now() < pause {
            let _rung = locality.timeout_at(pause.min(session.lease.ends_at()), shared.rung.notified()).await;
        }
    }
}

fn set_idle(shared: &Shared, id: BorrowerId, since: Option<Instant>) {
    if let Some(session) = shared.session.borrow_mut().as_mut().filter(|session| session.id == id) {
        session.idle_since = since;
    }
}
