//! Requests about credits: they meet the table, wait for the store, wait for each other.
//!
//! **Invariant**: nobody hears of a session, a loan, its return or a range of fids before it is durable. Who waits asks the table again each
//! time that something happened, so no wake-up is lost. Waits are bounded by `faces::limits`; a daemon that is to stop ends them.
//! Thread: the daemon's. Start at [`serve_all`]; [`run`] is what happens without a request.

use std::rc::Rc;
use std::time::Duration;

use base::{Instant, Right};
use faces::limits::{RM_TRY_MS, RM_WAIT_MS_MAX, RM_WAITS_MAX};
use fops::FopError;
use fops::lock::{LockMode, OwnerId};
use fops::rm::{
    RmBegin, RmBeginReply, RmBorrow, RmBorrowReply, RmCredit, RmList, RmListReply, RmPoll, RmPollReply,
    RmReturn, RmReturnReply,
};
use rpc::Fom;

use crate::daemon::{Inner, Office, Waits, serve};
use crate::loans::LoanRefusal;

/// Time between two tries of what found no room, or waits for a lease that ends without a bell.
const TRY_AGAIN: Duration = Duration::from_millis(100);

pub(crate) fn serve_all(inner: &Rc<Office>) {
    serve(inner, |inner: Rc<Inner>, fom: Fom, request: RmBegin| async move {
        inner.begin_borrower(&fom, &request).await
    });
    serve(inner, |inner: Rc<Inner>, fom: Fom, request: RmBorrow| async move {
        inner.borrow_credit(&fom, &request).await
    });
    serve(inner, |inner: Rc<Inner>, _fom, request: RmReturn| async move { inner.take_back(&request).await });
    serve(inner, |inner: Rc<Inner>, fom: Fom, request: RmPoll| async move {
        inner.poll_borrower(&fom, &request).await
    });
    serve(inner, |inner: Rc<Inner>, _fom, request: RmList| async move { inner.list_loans(&request).await });
}

fn refused(refusal: LoanRefusal) -> FopError {
    let reason = refusal.to_string();
    match refusal {
        LoanRefusal::BadBorrower
        | LoanRefusal::BadName
        | LoanRefusal::BadCredit(_)
        | LoanRefusal::NumberTaken { .. } => FopError::BadRequest { reason },
        _ => FopError::NotPermitted { reason },
    }
}

/// Whether a credit keeps others from changing or reading, or uses something up: who may only read does not get it.
fn is_for_oneself(credit: &RmCredit) -> bool {
    match credit {
        RmCredit::Whole { mode } | RmCredit::Bytes { mode, .. } | RmCredit::Keys { mode, .. } => {
            *mode == LockMode::Exclusive
        }
        RmCredit::Fids(_) => true,
    }
}

impl Inner {
    async fn begin_borrower(&self, fom: &Fom, request: &RmBegin) -> Result<RmBeginReply, FopError> {
        let now = self.rpc.locality().now();
        let from = fom.peer().endpoint;
        let make_epoch = || self.locks.borrow_mut().issue_ticket(OwnerId(request.borrower.0));
        let who = (request.borrower, request.name.as_str());
        let epoch = self.loans.borrow_mut().handle_begin(now, who, from, make_epoch).map_err(refused)?;
        self.settle_loans().await?;
        // `run` has a new deadline.
        self.loans_rung.notify_waiters();
        let lease_ms = u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX);
        Ok(RmBeginReply { epoch, lease_ms })
    }

    async fn borrow_credit(&self, fom: &Fom, request: &RmBorrow) -> Result<RmBorrowReply, FopError> {
        if is_for_oneself(&request.credit) {
            fom.require(Right::Write)?;
        }
        let locality = self.rpc.locality().clone();
        let wait_ms = request.wait_ms.clamp(RM_TRY_MS, RM_WAIT_MS_MAX);
        let wait = Duration::from_millis(u64::from(wait_ms));
        let until = (locality.now() + wait).min(fom.deadline());
        let waits = Waits::begin(&self.rm_waits, RM_WAITS_MAX);
        let (mut is_first, mut hold) = (true, None);
        let reply = loop {
            let now = locality.now();
            let reply = self.loans.borrow_mut().handle_borrow(now, request, until).map_err(refused)?;
            let RmBorrowReply::Busy { .. } = reply else { break reply };
            if std::mem::take(&mut is_first) {
                // Loans may have been asked back, and `run` has a new deadline.
                self.loans_rung.notify_waiters();
            }
            if waits.is_none() || now >= until || self.shutdown.get() {
                break reply;
            }
            hold.get_or_insert_with(|| fom.hold(until));
            // Either way it is looked again.
            let _rung = locality.timeout_at(until, self.loans_rung.notified()).await;
        };
        self.settle_loans().await?;
        Ok(reply)
    }

    async fn take_back(&self, request: &RmReturn) -> Result<RmReturnReply, FopError> {
        self.loans.borrow_mut().handle_return(request);
        self.settle_loans().await?;
        self.loans_rung.notify_waiters();
        Ok(RmReturnReply)
    }

    async fn poll_borrower(&self, fom: &Fom, request: &RmPoll) -> Result<RmPollReply, FopError> {
        let locality = self.rpc.locality().clone();
        let wait = Duration::from_millis(u64::from(request.wait_ms.min(RM_WAIT_MS_MAX)));
        let until = (locality.now() + wait).min(fom.deadline());
        let from = fom.peer().endpoint;
        let mut has_session = self.loans.borrow_mut().handle_poll(locality.now(), request.borrower, from);
        let waits = Waits::begin(&self.rm_waits, RM_WAITS_MAX);
        let mut hold = None;
        loop {
            let asked_back = self.loans.borrow().asked_back(request.borrower, &request.known);
            let version = self.published_version();
            let says_something = !has_session || !asked_back.is_empty() || version > request.version;
            if says_something || waits.is_none() || locality.now() >= until || self.shutdown.get() {
                return Ok(RmPollReply { has_session, asked_back, version });
            }
            hold.get_or_insert_with(|| fom.hold(until));
            let _rung = locality.timeout_at(until, self.loans_rung.notified()).await;
            has_session = self.loans.borrow().has_session(locality.now(), request.borrower);
        }
    }

    async fn list_loans(&self, request: &RmList) -> Result<RmListReply, FopError> {
        let now = self.rpc.locality().now();
        let page = self.loans.borrow().list(now, request.after);
        self.settle_loans().await?;
        Ok(page)
    }
}

/// Takes silent borrowers as lost, fences them, frees what they had, for as long as the daemon runs.
pub(crate) async fn run(inner: Rc<Inner>) {
    let locality = inner.rpc.locality().clone();
    loop {
        let now = locality.now();
        let fence = |owner| inner.locks.borrow_mut().fence_borrower(owner);
        let mut changed = inner.loans.borrow_mut().handle_tick(now, fence);
        let mut next = inner.loans.borrow().next_deadline().unwrap_or(Instant::NEVER);
        if inner.loans.borrow().is_burying() {
            let is_acknowledged = |fence| inner.core.borrow().is_fenced(now, fence);
            changed |= inner.loans.borrow_mut().bury(is_acknowledged);
            // An acknowledgement rings another bell, a lease that ends none.
            next = next.min(now + TRY_AGAIN);
        }
        if changed {
            inner.locks.borrow_mut().adopt_tickets(inner.loans.borrow().tickets());
            // Others are told once it is durable, fences among them; a store that failed tells nobody anything.
            let _stored = inner.settle_loans().await;
            inner.locks_rung.notify_waiters();
            inner.loans_rung.notify_waiters();
            continue;
        }
        let _rung = locality.timeout_at(next.max(now + TRY_AGAIN), inner.loans_rung.notified()).await;
    }
}
