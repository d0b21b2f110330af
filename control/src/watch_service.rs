//! Requests about watches and notifies: they meet the table, wait for the store, wait for each other.
//!
//! **Invariant**: nobody hears that a watch is registered before it is durable: a notify after a restart counts it. Who waits looks at the
//! table again each time that something happened, so no wake-up is lost. Waits are bounded by `faces::limits`; a daemon that is to stop
//! ends them. Thread: the daemon's. Start at [`serve_all`]; [`run`] is what happens without a request.

use std::rc::Rc;
use std::time::Duration;

use base::Instant;
use faces::limits::{WATCH_LEASE_MAX_MS, WATCH_WAITS_MAX};
use fops::FopError;
use fops::codec::{self, CodecError};
use fops::news::{self, ConfigurationNews, LockNews};
use fops::watch::{
    Notify, NotifyOutcomesGet, NotifyReply, WatchAck, WatchAckReply, WatchList, WatchPoll, WatchPollReply,
    WatchRegister, WatchRegisterReply, WatchUnregister, WatchUnregisterReply,
};
use rpc::Fom;

use crate::daemon::{Inner, Office, Waits, serve};
use crate::watches::{NotifyStart, WatchRefusal};

/// Shortest time between two looks at the table's deadlines.
const TRY_AGAIN: Duration = Duration::from_millis(10);

pub(crate) fn serve_all(inner: &Rc<Office>) {
    serve(inner, |inner: Rc<Inner>, fom: Fom, request: WatchRegister| async move {
        inner.register_watch(&fom, &request).await
    });
    serve(inner, |inner: Rc<Inner>, _fom, request: WatchUnregister| async move {
        inner.unregister_watch(&request).await
    });
    serve(inner, |inner: Rc<Inner>, fom: Fom, request: WatchPoll| async move {
        Ok(inner.poll_watches(&fom, &request).await)
    });
    serve(inner, |inner: Rc<Inner>, _fom, request: WatchAck| async move { inner.ack_notify(request) });
    serve(inner, |inner: Rc<Inner>, _fom, request: WatchList| async move {
        let now = inner.rpc.locality().now();
        let page = inner.watches.borrow().list(now, request.object, request.after);
        inner.settle_watches().await?;
        Ok(page)
    });
    serve(
        inner,
        |inner: Rc<Inner>, fom: Fom, request: Notify| async move { inner.notify(&fom, &request).await },
    );
    serve(inner, |inner: Rc<Inner>, _fom, request: NotifyOutcomesGet| async move {
        Ok(inner.watches.borrow().outcomes(&request))
    });
}

fn refused(refusal: WatchRefusal) -> FopError {
    let reason = refusal.to_string();
    match refusal {
        WatchRefusal::Full | WatchRefusal::WatcherFull | WatchRefusal::ControlsTopic { .. } => {
            FopError::NotPermitted { reason }
        }
        _ => FopError::BadRequest { reason },
    }
}

impl Inner {
    async fn register_watch(
        &self,
        fom: &Fom,
        request: &WatchRegister,
    ) -> Result<WatchRegisterReply, FopError> {
        let now = self.rpc.locality().now();
        let from = fom.peer().endpoint;
        let lease_ms =
            self.watches.borrow_mut().handle_register(now, &request.watch, from).map_err(refused)?;
        self.settle_watches().await?;
        // `run` has a new deadline.
        self.watches_rung.notify_waiters();
        Ok(WatchRegisterReply { lease_ms })
    }

    async fn unregister_watch(&self, request: &WatchUnregister) -> Result<WatchUnregisterReply, FopError> {
        let now = self.rpc.locality().now();
        let was_registered = self.watches.borrow_mut().handle_unregister(now, request);
        self.settle_watches().await?;
        self.watches_rung.notify_waiters();
        Ok(WatchUnregisterReply { was_registered })
    }

    async fn poll_watches(&self, fom: &Fom, request: &WatchPoll) -> WatchPollReply {
        let locality = self.rpc.locality().clone();
        let wait = Duration::from_millis(u64::from(request.wait_ms.min(WATCH_LEASE_MAX_MS)));
        let until = (locality.now() + wait).min(fom.deadline());
        let incarnation = self.epoch;
        // Numbers of an earlier control: everything that is under way is new to this watcher.
        let after = if request.incarnation == incarnation { request.after } else { 0 };
        // One that heard an earlier control may have lost watches, and is told so at once.
        let is_known = request.incarnation == 0 || request.incarnation == incarnation;
        let from = fom.peer().endpoint;
        let poll = self.watches.borrow_mut().handle_poll(locality.now(), request.watcher, after, from);
        let waits = Waits::begin(&self.watch_waits, WATCH_WAITS_MAX);
        let mut hold = None;
        loop {
            let notifications = self.watches.borrow().page(request.watcher, after);
            let is_current = poll.is_some_and(|poll| self.watches.borrow().is_current(request.watcher, poll));
            let may_wait =
                is_known && is_current && waits.is_some() && locality.now() < until && !self.shutdown.get();
            if !notifications.is_empty() || !may_wait {
                let cookies = self.watches.borrow().cookies(request.watcher);
                return WatchPollReply { incarnation, cookies, notifications };
            }
            hold.get_or_insert_with(|| fom.hold(until));
            // Either way it is looked again.
            let _rung = locality.timeout_at(until, self.watches_rung.notified()).await;
        }
    }

    fn ack_notify(&self, request: WatchAck) -> Result<WatchAckReply, FopError> {
        let now = self.rpc.locality().now();
        let notify = request.notify;
        let counted = self.watches.borrow_mut().handle_ack(now, request).map_err(refused)?;
        // The last of them: those who poll do not care, and there may be many.
        if counted && self.watches.borrow().is_answered(notify) {
            self.watches_rung.notify_waiters();
        }
        Ok(WatchAckReply { counted })
    }

    async fn notify(&self, fom: &Fom, request: &Notify) -> Result<NotifyReply, FopError> {
        let locality = self.rpc.locality().clone();
        let from = fom.peer().endpoint;
        let begun = self.watches.borrow_mut().handle_notify(locality.now(), request, from);
        let until = match begun.map_err(refused)? {
            NotifyStart::Busy => return Ok(NotifyReply::Busy),
            NotifyStart::Waits(until) => until,
        };
        self.watches_rung.notify_waiters();
        let mut hold = None;
        loop {
            if let Some(reply) = self.watches.borrow_mut().poll_notify(locality.now(), request.id) {
                return Ok(reply);
            }
            if self.shutdown.get() {
                // It is asked again, of the next start of control.
                return Err(FopError::NotServing { reason: "control stops".to_owned() });
            }
            hold.get_or_insert_with(|| fom.hold(until));
            let _rung = locality.timeout_at(until, self.watches_rung.notified()).await;
        }
    }
}

impl Inner {
    /// Tells those who watch what became durable.
    pub(crate) fn tell_news(&self, locks: &[LockNews], version: Option<u64>) {
        let mut any = false;
        let mut tell = |topic, payload: Result<Vec<u8>, CodecError>| {
            // They are shorter than a message: `faces::limits` proves it.
            if let Ok(payload) = payload {
                any |= self.watches.borrow_mut().tell(topic, &payload);
            }
        };
        for news in locks {
            tell(news::of_lock(news.lock()), codec::encode(news));
        }
        if let Some(version) = version {
            tell(news::CONFIGURATION, codec::encode(&ConfigurationNews { version }));
        }
        if any {
            self.watches_rung.notify_waiters();
        }
    }
}

/// Forgets watchers whose leases ended, for as long as the daemon runs.
pub(crate) async fn run(inner: Rc<Inner>) {
    let locality = inner.rpc.locality().clone();
    loop {
        let now = locality.now();
        if inner.watches.borrow_mut().handle_tick(now) {
            // Those who wait may be told at once: that a watch is gone is no promise. A store that failed changes nothing here.
            inner.watches_rung.notify_waiters();
            let _stored = inner.settle_watches().await;
            continue;
        }
        let next = inner.watches.borrow().next_deadline().unwrap_or(Instant::NEVER);
        let _rung = locality.timeout_at(next.max(now + TRY_AGAIN), inner.watches_rung.notified()).await;
    }
}
