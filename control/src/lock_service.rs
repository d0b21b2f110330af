//! Requests about locks and fences: they meet the table, wait for the store, wait for each other.
//!
//! **Invariant**: nobody hears of a grant, a release, a break or a fence before it is durable. Who waits for a lock asks the table again
//! each time that something may have become free, so no wake-up is lost. Waits are bounded by `faces::limits`; a daemon that is to stop
//! ends them. Thread: the daemon's. Start at [`serve_all`]; [`run`] is what happens without a request.

use std::rc::Rc;
use std::time::Duration;

use base::{Instant, Right};
use faces::limits::{FENCES_WAIT_MS_MAX, LOCK_WAIT_MS_MAX, LOCK_WAITS_MAX};
use fops::FopError;
use fops::lock::{
    BreakState, FencesGet, FencesReply, LockBreak, LockBreakReply, LockList, LockListReply, LockMode,
    LockRelease, LockReleaseReply, LockRenew, LockTake, LockTakeReply,
};
use rpc::{Fom, Hold};

use crate::daemon::{Inner, Office, Waits, serve};
use crate::locks::LockRefusal;

/// Time between two tries of what found no room.
const TRY_AGAIN: Duration = Duration::from_millis(100);

pub(crate) fn serve_all(inner: &Rc<Office>) {
    serve(
        inner,
        |inner: Rc<Inner>, fom: Fom, request: LockTake| async move { inner.take(&fom, &request).await },
    );
    serve(inner, |inner: Rc<Inner>, _fom, request: LockRelease| async move { inner.release(&request).await });
    serve(inner, |inner: Rc<Inner>, _fom, request: LockRenew| async move {
        let now = inner.rpc.locality().now();
        let reply = inner.locks.borrow_mut().handle_renew(now, &request);
        Ok(reply)
    });
    serve(inner, |inner: Rc<Inner>, fom: Fom, request: LockBreak| async move {
        inner.break_lock(&fom, &request).await
    });
    serve(inner, |inner: Rc<Inner>, _fom, request: LockList| async move { inner.list(&request).await });
    serve(inner, |inner: Rc<Inner>, fom: Fom, request: FencesGet| async move {
        inner.fences(&fom, &request).await
    });
}

fn refused(refusal: LockRefusal) -> FopError {
    let reason = refusal.to_string();
    match refusal {
        LockRefusal::BadName | LockRefusal::BadOwner | LockRefusal::LongReason { .. } => {
            FopError::BadRequest { reason }
        }
        _ => FopError::NotPermitted { reason },
    }
}

impl Inner {
    /// End of a wait of `wait_ms`, at most `max_ms`, inside the request's time.
    fn wait_until(&self, fom: &Fom, wait_ms: u32, max_ms: u32) -> Instant {
        let wait = Duration::from_millis(u64::from(wait_ms.min(max_ms)));
        (self.rpc.locality().now() + wait).min(fom.deadline())
    }

    /// Waits until something about locks happened or `until`. False if waiting is over: time is up, the daemon is to stop, or too many
    /// wait: heartbeats need foms too.
    async fn wait_for_locks(&self, (fom, hold): (&Fom, &mut Option<Hold>), until: Instant) -> bool {
        let locality = self.rpc.locality().clone();
        if locality.now() >= until || self.shutdown.get() {
            return false;
        }
        let Some(_waits) = Waits::begin(&self.lock_waits, LOCK_WAITS_MAX) else { return false };
        hold.get_or_insert_with(|| fom.hold(until));
        // Either way it is looked again.
        let _rung = locality.timeout_at(until, self.locks_rung.notified()).await;
        true
    }

    async fn take(&self, fom: &Fom, request: &LockTake) -> Result<LockTakeReply, FopError> {
        if request.mode == LockMode::Exclusive {
            fom.require(Right::Write)?;
        }
        let until = self.wait_until(fom, request.wait_ms, LOCK_WAIT_MS_MAX);
        let wait_until = (request.wait_ms > 0).then_some(until);
        let from = fom.peer().endpoint;
        let mut hold = None;
        let reply = loop {
            let now = self.rpc.locality().now();
            let place = (from, self.unix_s(now));
            let reply =
                self.locks.borrow_mut().handle_take(now, request, place, wait_until).map_err(refused)?;
            let granted = matches!(reply, LockTakeReply::Granted { .. });
            if granted || !self.wait_for_locks((fom, &mut hold), until).await {
                break reply;
            }
        };
        self.settle_locks().await?;
        // The next in the queue may be a shared one too; and `run` has a new deadline.
        self.locks_rung.notify_waiters();
        Ok(reply)
    }

    async fn release(&self, request: &LockRelease) -> Result<LockReleaseReply, FopError> {
        let released = self.locks.borrow_mut().handle_release(request);
        self.settle_locks().await?;
        self.locks_rung.notify_waiters();
        Ok(LockReleaseReply { released })
    }

    async fn break_lock(&self, fom: &Fom, request: &LockBreak) -> Result<LockBreakReply, FopError> {
        let until = self.wait_until(fom, request.wait_ms, LOCK_WAIT_MS_MAX);
        let begun = self.locks.borrow_mut().handle_break(request, fom.peer().endpoint).map_err(refused)?;
        self.settle_locks().await?;
        let Some(fence) = begun else {
            return Ok(LockBreakReply { state: BreakState::NotHeld, waiting: Vec::new() });
        };
        self.locks_rung.notify_waiters();
        let mut hold = None;
        loop {
            if self.locks.borrow().breaking(&request.lock, request.owner) != Some(fence) {
                self.settle_locks().await?;
                return Ok(LockBreakReply { state: BreakState::Done, waiting: Vec::new() });
            }
            if !self.wait_for_locks((fom, &mut hold), until).await {
                let now = self.rpc.locality().now();
                let waiting = self.core.borrow().fence_waits(now, fence);
                return Ok(LockBreakReply { state: BreakState::Waiting, waiting });
            }
        }
    }

    async fn list(&self, request: &LockList) -> Result<LockListReply, FopError> {
        let now = self.rpc.locality().now();
        let page = self.locks.borrow().list(now, request.object, request.after.as_ref());
        self.settle_locks().await?;
        Ok(page)
    }

    /// Fences behind the last one that a data service has; the question acknowledges those that it has.
    async fn fences(&self, fom: &Fom, request: &FencesGet) -> Result<FencesReply, FopError> {
        let until = self.wait_until(fom, request.wait_ms, FENCES_WAIT_MS_MAX);
        self.core.borrow_mut().handle_fenced(request);
        self.locks_rung.notify_waiters();
        let mut hold = None;
        loop {
            let page = self.locks.borrow().fences_after(request.after);
            if !page.fences.is_empty() || !self.wait_for_locks((fom, &mut hold), until).await {
                // Told only once it is durable: after a restart the same number must not be another fence.
                self.settle_locks().await?;
                return Ok(page);
            }
        }
    }
}

/// Completes breaks, fences silent holders and forgets who no longer waits, for as long as the daemon runs.
pub(crate) async fn run(inner: Rc<Inner>) {
    let locality = inner.rpc.locality().clone();
    loop {
        let now = locality.now();
        let mut changed = inner.locks.borrow_mut().handle_tick(now, inner.rpc.endpoint());
        let mut next = inner.locks.borrow().next_deadline().unwrap_or(Instant::NEVER);
        if inner.locks.borrow().is_breaking() {
            let is_acknowledged = |fence| inner.core.borrow().is_fenced(now, fence);
            changed |= inner.locks.borrow_mut().complete_breaks(is_acknowledged);
            // A lease that ends rings no bell.
            next = next.min(now + TRY_AGAIN);
        }
        if changed {
            // Others are told once it is durable; a store that failed tells nobody anything.
            let _stored = inner.settle_locks().await;
            inner.locks_rung.notify_waiters();
            continue;
        }
        let _rung = locality.timeout_at(next.max(now + TRY_AGAIN), inner.locks_rung.notified()).await;
    }
}
