//! A watcher's side of watch and notify: registers watches, keeps them alive, hands out what came, acknowledges.
//!
//! **Invariant**: a notification is handed out once for each watch, also when control tells it twice (a lost answer, a restart); if it was
//! acknowledged by then, the same acknowledgement goes out again. **Invariant**: whenever something may have been missed (control
//! no longer knew the watch), [`WatchEvent::Gap`] stands where it would have been: read anew what you watch.
//! Reconnects by itself: it asks control until control answers, and registers again what control has forgotten. One request at a time waits
//! at control, for all watches together. Bounds: `limits::WATCH_INBOX_MAX` events of a watch that nobody fetches, then a gap;
//! as many recent notifications. Left over when control is away for longer than the lease: notifiers are told that this watcher missed.
//! Thread: the locality of its `RpcMachine`. Rules: docs/watch.md. Start at [`Watcher::watch`].

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use base::{Blamed, Endpoint, Fid, Instant};
use fops::watch::{
    Notification, Notify as NotifyFop, NotifyAck, NotifyId, NotifyMissed, NotifyOutcomesGet,
    NotifyOutcomesReply, NotifyReply, WatchAck, WatchPoll, WatchPollReply, WatchRecord, WatchRegister,
    WatchUnregister, WatcherId,
};
use runtime::Task;
use runtime::sync::Notify;

use crate::conf_client::{ConfClient, ConfError};
use crate::limits::{
    NOTIFIES_MAX, WATCH_INBOX_MAX, WATCH_LEASE_MAX_MS, WATCH_LEASE_MIN_MS, WATCH_POLLS_PER_LEASE,
    WATCH_TRIES_PER_LEASE,
};

/// Notifications that are remembered, so that none is handed out twice.
const RECENT_MAX: usize = 2 * WATCH_INBOX_MAX;
const _: () = assert!(RECENT_MAX >= 2 * NOTIFIES_MAX);
/// Pause before a notify that found no room is asked for again.
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// What the answer to a notify may take longer than its acknowledgements.
const NOTIFY_SLACK: Duration = Duration::from_secs(5);

/// What a watch hears.
#[derive(Debug)]
#[non_exhaustive]
pub enum WatchEvent {
    /// Somebody notified.
    Notified(Notified),
    /// Notifications may have been missed: control had forgotten the watch, or too many were not fetched. It is registered again by now.
    Gap,
}

/// A notification, to be acknowledged. Dropped without that, its notifier hears that this watch did not answer.
#[derive(Debug)]
pub struct Notified {
    shared: Rc<Shared>,
    notification: Notification,
    arrived_at: Instant,
}

impl Notified {
    /// The object that it is about.
    #[must_use]
    pub fn object(&self) -> Fid {
        self.notification.object
    }

    /// Who notified.
    #[must_use]
    pub fn from(&self) -> Endpoint {
        self.notification.from
    }

    /// When it came here.
    #[must_use]
    pub fn arrived_at(&self) -> Instant {
        self.arrived_at
    }

    /// Number of the notify: the same for all watches that hear of it.
    #[must_use]
    pub fn id(&self) -> NotifyId {
        self.notification.notify
    }

    /// The bytes that came with it.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.notification.payload
    }

    /// Tells the notifier that it is done, with at most `limits::NOTIFY_ACK_BYTES_MAX` bytes. False if it no longer waits.
    ///
    /// What control itself tells (the topics of `fops::news`) is not acknowledged: true, and nothing is sent.
    /// Errors: control does not answer within the lease, or refuses. Either way it is said again if control tells this notification again.
    pub async fn ack(self, payload: &[u8]) -> Result<bool, ConfError> {
        let Notified { shared, notification, .. } = self;
        if fops::news::is_controls(notification.object) {
            return Ok(true);
        }
        shared.remember_ack((notification.cookie, notification.notify), payload);
        shared.ack(notification.cookie, notification.notify, payload.to_vec()).await
    }
}

struct Recent {
    notification: (u64, NotifyId),
    /// What was acknowledged; nothing while it is being handled.
    ack: Option<Vec<u8>>,
}

#[derive(Default)]
struct Inbox {
    events: RefCell<VecDeque<WatchEvent>>,
    /// What came was dropped: nobody fetches.
    overflowed: Cell<bool>,
    rung: Notify,
}

impl Inbox {
    fn put(&self, event: WatchEvent) -> bool {
        let fits = self.events.borrow().len() < WATCH_INBOX_MAX;
        if fits {
            self.events.borrow_mut().push_back(event);
        } else {
            self.overflowed.set(true);
        }
        self.rung.notify_one();
        fits
    }
}

struct Shared {
    conf: ConfClient,
    id: WatcherId,
    name: String,
    lease: Duration,
    next_cookie: Cell<u64>,
    watches: RefCell<BTreeMap<u64, (Fid, Rc<Inbox>)>>,
    /// Watches whose registration is under way.
    registering: RefCell<BTreeSet<u64>>,
    /// Watches that are over here and may be registered at control.
    leaving: RefCell<BTreeSet<u64>>,
    /// Incarnation of control, and the number of the last notification from it.
    heard: Cell<(u64, u64)>,
    recent: RefCell<VecDeque<Recent>>,
    /// Why control does not answer and will not.
    refusal: RefCell<Option<Rc<ConfError>>>,
    /// Rings when there is something to ask control.
    rung: Notify,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watcher({} {:?}, {} watches)", self.id, self.name, self.watches.borrow().len())
    }
}

/// The watches of a locality.
#[derive(Debug)]
pub struct Watcher {
    shared: Rc<Shared>,
    asks: Rc<DropTask>,
}

/// Ends with the watcher and the last of its watches.
#[derive(Debug)]
struct DropTask(Option<Task>);

impl Drop for DropTask {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.cancel();
        }
    }
}

/// A registered watch. Dropped, it ends: at control too, as soon as control answers, or with the lease.
#[derive(Debug)]
pub struct Watch {
    shared: Rc<Shared>,
    cookie: u64,
    object: Fid,
    inbox: Rc<Inbox>,
    _asks: Rc<DropTask>,
}

/// A registration under way; given up, it is a watch that nobody wants.
struct Registering<'a> {
    shared: &'a Shared,
    cookie: u64,
}

impl Drop for Registering<'_> {
    fn drop(&mut self) {
        self.shared.registering.borrow_mut().remove(&self.cookie);
        if !self.shared.watches.borrow().contains_key(&self.cookie) {
            self.shared.leaving.borrow_mut().insert(self.cookie);
        }
        self.shared.rung.notify_one();
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Inbox({} events)", self.events.borrow().len())
    }
}

impl Watcher {
    /// A watcher without watches: nothing is sent yet. `name`: for people, 1 to 64 bytes; `lease`: so long a silent watcher is waited for.
    #[must_use]
    pub fn start(conf: &ConfClient, name: String, lease: Duration) -> Watcher {
        let locality = conf.rpc().locality().clone();
        let min = Duration::from_millis(u64::from(WATCH_LEASE_MIN_MS));
        let max = Duration::from_millis(u64::from(WATCH_LEASE_MAX_MS));
        let shared = Rc::new(Shared {
            conf: conf.clone(),
            id: WatcherId(random_u128(conf)),
            name,
            lease: lease.clamp(min, max),
            next_cookie: Cell::new(1),
            watches: RefCell::default(),
            registering: RefCell::default(),
            leaving: RefCell::default(),
            heard: Cell::new((0, 0)),
            recent: RefCell::default(),
            refusal: RefCell::default(),
            rung: Notify::new(),
        });
        let task = locality.spawn("watcher", run(Rc::clone(&shared)));
        Watcher { shared, asks: Rc::new(DropTask(Some(task))) }
    }

    /// The number of this watcher.
    #[must_use]
    pub fn id(&self) -> WatcherId {
        self.shared.id
    }

    /// Registers a watch of an object, whether it is there or not. Every notify that comes after the answer counts this watch.
    ///
    /// Errors: control does not answer until `deadline`, or refuses: a bad name, or too many watches.
    pub async fn watch(&self, object: Fid, deadline: Instant) -> Result<Watch, ConfError> {
        let cookie = self.shared.next_cookie.get();
        self.shared.next_cookie.set(cookie + 1);
        self.shared.registering.borrow_mut().insert(cookie);
        let _registering = Registering { shared: &self.shared, cookie };
        self.shared.register(cookie, object, deadline).await?;
        let inbox = Rc::new(Inbox::default());
        self.shared.watches.borrow_mut().insert(cookie, (object, Rc::clone(&inbox)));
        let (shared, asks) = (Rc::clone(&self.shared), Rc::clone(&self.asks));
        Ok(Watch { shared, cookie, object, inbox, _asks: asks })
    }
}

impl Watch {
    /// What it watches.
    #[must_use]
    pub fn object(&self) -> Fid {
        self.object
    }

    /// Which of its watcher's watches it is.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The next event, in the order in which control took the notifies. May be dropped and asked again.
    pub async fn next(&self) -> WatchEvent {
        loop {
            if let Some(event) = self.inbox.events.borrow_mut().pop_front() {
                return event;
            }
            if self.inbox.overflowed.replace(false) {
                return WatchEvent::Gap;
            }
            self.inbox.rung.notified().await;
        }
    }

    /// Why nothing comes any more: control refuses us and will go on to, for a credential that has ended or was revoked, say. Nothing
    /// while it answers, or may answer again.
    #[must_use]
    pub fn refusal(&self) -> Option<Rc<ConfError>> {
        self.shared.refusal.borrow().clone()
    }

    /// Ends the watch and waits for control to know. Errors: control does not answer until `deadline`; the lease ends it then.
    pub async fn end(self, deadline: Instant) -> Result<(), ConfError> {
        self.leave(deadline).await
    }

    /// The same of one that somebody borrows: nothing comes any more.
    pub(crate) async fn leave(&self, deadline: Instant) -> Result<(), ConfError> {
        let Watch { ref shared, cookie, .. } = *self;
        shared.watches.borrow_mut().remove(&cookie);
        let ended = shared.unregister(cookie, deadline).await;
        if ended.is_err() {
            shared.leaving.borrow_mut().insert(cookie);
        }
        ended
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.shared.watches.borrow_mut().remove(&self.cookie).is_some() {
            self.shared.leaving.borrow_mut().insert(self.cookie);
            self.shared.rung.notify_one();
        }
    }
}

fn random_u128(conf: &ConfClient) -> u128 {
    let locality = conf.rpc().locality();
    u128::from(locality.random_u64()) << 64 | u128::from(locality.random_u64())
}

impl Shared {
    fn now(&self) -> Instant {
        self.conf.rpc().locality().now()
    }

    async fn register(&self, cookie: u64, object: Fid, deadline: Instant) -> Result<(), ConfError> {
        let lease_ms = u32::try_from(self.lease.as_millis()).unwrap_or(u32::MAX);
        let watch = WatchRecord { watcher: self.id, cookie, object, name: self.name.clone(), lease_ms };
        self.conf.call(&WatchRegister { watch }, deadline).await.map(drop)
    }

    async fn unregister(&self, cookie: u64, deadline: Instant) -> Result<(), ConfError> {
        self.conf.call(&WatchUnregister { watcher: self.id, cookie }, deadline).await.map(drop)
    }

    fn remember_ack(&self, notification: (u64, NotifyId), payload: &[u8]) {
        let mut recent = self.recent.borrow_mut();
        if let Some(found) = recent.iter_mut().find(|recent| recent.notification == notification) {
            found.ack = Some(payload.to_vec());
        }
    }

    async fn ack(&self, cookie: u64, notify: NotifyId, payload: Vec<u8>) -> Result<bool, ConfError> {
        let deadline = self.now() + self.lease;
        let ack = WatchAck { watcher: self.id, cookie, notify, payload };
        Ok(self.conf.call(&ack, deadline).await?.counted)
    }

    fn is_idle(&self) -> bool {
        self.watches.borrow().is_empty() && self.leaving.borrow().is_empty()
    }

    /// What control answered to a poll that was sent when these watches were there.
    async fn take(self: &Rc<Shared>, reply: WatchPollReply, cookies: &[u64], deadline: Instant) {
        let (incarnation, after) = self.heard.get();
        let mut newest = if incarnation == reply.incarnation { after } else { 0 };
        for notification in reply.notifications {
            newest = newest.max(notification.number);
            self.hand_out(notification).await;
        }
        self.heard.set((reply.incarnation, newest));
        for cookie in cookies.iter().filter(|cookie| !reply.cookies.contains(cookie)) {
            let Some((object, inbox)) = self.watches.borrow().get(cookie).cloned() else { continue };
            // Tried again with the next answer if it fails.
            if self.register(*cookie, object, deadline).await.is_ok() {
                inbox.put(WatchEvent::Gap);
            }
        }
        self.leaving.borrow_mut().retain(|cookie| reply.cookies.contains(cookie));
        for cookie in reply.cookies {
            let is_wanted =
                self.watches.borrow().contains_key(&cookie) || self.registering.borrow().contains(&cookie);
            if !is_wanted && self.unregister(cookie, deadline).await.is_ok() {
                self.leaving.borrow_mut().remove(&cookie);
            }
        }
    }

    async fn hand_out(self: &Rc<Shared>, notification: Notification) {
        let key = (notification.cookie, notification.notify);
        let known =
            self.recent.borrow().iter().find(|recent| recent.notification == key).map(|r| r.ack.clone());
        match known {
            Some(None) => return,
            Some(Some(payload)) => {
                // Said before, to a control that has forgotten it. If this is lost too, the notifier hears of no answer.
                let _counted = self.ack(key.0, key.1, payload).await;
                return;
            }
            None => {}
        }
        let Some((_, inbox)) = self.watches.borrow().get(&key.0).cloned() else { return };
        let notified = Notified { shared: Rc::clone(self), notification, arrived_at: self.now() };
        if inbox.put(WatchEvent::Notified(notified)) {
            let mut recent = self.recent.borrow_mut();
            if recent.len() >= RECENT_MAX {
                recent.pop_front();
            }
            recent.push_back(Recent { notification: key, ack: None });
        }
    }
}

/// Asks control for what comes next, for as long as there are watches.
async fn run(shared: Rc<Shared>) {
    let locality = shared.conf.rpc().locality().clone();
    let wait = shared.lease / WATCH_POLLS_PER_LEASE;
    let pause = shared.lease / WATCH_TRIES_PER_LEASE;
    loop {
        if shared.is_idle() {
            shared.rung.notified().await;
            continue;
        }
        // Watches that are about to end need no wait, and nobody else is told meanwhile.
        let is_leaving = !shared.leaving.borrow().is_empty();
        let wait = if is_leaving { Duration::ZERO } else { wait };
        let cookies: Vec<u64> = shared.watches.borrow().keys().copied().collect();
        let (incarnation, after) = shared.heard.get();
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        let asked_at = shared.now();
        let deadline = asked_at + wait + shared.lease;
        let ask = WatchPoll { watcher: shared.id, incarnation, after, wait_ms };
        let asked = shared.conf.call(&ask, deadline).await;
        let came = asked.as_ref().is_ok_and(|reply| !reply.notifications.is_empty());
        match asked {
            Ok(reply) => {
                shared.refusal.take();
                shared.take(reply, &cookies, deadline).await;
            }
            Err(error) if error.may_retry() => drop(shared.refusal.take()),
            Err(error) => drop(shared.refusal.replace(Some(Rc::new(error)))),
        }
        // A control daemon that is away, stops, or has too many who wait is not asked all the time.
        if !came && shared.now() < asked_at + pause {
            let _rung = locality.timeout_at(asked_at + pause, shared.rung.notified()).await;
        }
    }
}

/// How a notify ended. Each watch that there was when control took it is in one of the two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotifyOutcome {
    /// Those that acknowledged, in the order of their answers.
    pub acks: Vec<NotifyAck>,
    /// Those that did not, by name, and why.
    pub missed: Vec<NotifyMissed>,
}

impl ConfClient {
    /// Tells all watches of an object something, and waits until each has acknowledged, or `within`, at most `limits::NOTIFY_WAIT_MS_MAX`.
    ///
    /// Over a restart of control a watch may be told twice by control; [`Watch::next`] gives it once. Errors: control does not answer,
    /// or refuses: more than `limits::NOTIFY_BYTES_MAX` bytes. Then some watches may have been told.
    pub async fn notify(
        &self,
        object: Fid,
        payload: &[u8],
        within: Duration,
    ) -> Result<NotifyOutcome, ConfError> {
        let locality = self.rpc().locality().clone();
        let id = NotifyId(random_u128(self));
        let wait_ms = u32::try_from(within.as_millis()).unwrap_or(u32::MAX);
        let ask = NotifyFop { id, object, payload: payload.to_vec(), wait_ms };
        let deadline = locality.now() + within + NOTIFY_SLACK;
        loop {
            let refusal = match self.call(&ask, deadline).await {
                Ok(NotifyReply::Done { acks, missed }) => return Ok(NotifyOutcome { acks, missed }),
                Ok(NotifyReply::Long { .. }) => match self.notify_outcomes(id, deadline).await {
                    Ok(Some(outcome)) => return Ok(outcome),
                    // Forgotten: it is notified again, under the same number.
                    Ok(None) => None,
                    Err(error) => return Err(error),
                },
                Ok(NotifyReply::Busy) => None,
                // A control that stops says so; the next one takes it, under the same number.
                Err(error) => {
                    if !error.may_retry() || locality.now() + BUSY_PAUSE >= deadline {
                        return Err(error);
                    }
                    Some(error)
                }
            };
            if locality.now() + BUSY_PAUSE >= deadline {
                let control = self.control();
                let reason = format!("{NOTIFIES_MAX} notifies are under way, which is the limit");
                return Err(refusal.unwrap_or(ConfError::Refused {
                    control,
                    source: fops::FopError::NotServing { reason },
                }));
            }
            locality.sleep(BUSY_PAUSE).await;
        }
    }

    /// How a notify ended that was for more watches than one answer names. `None`: control has forgotten it.
    async fn notify_outcomes(
        &self,
        id: NotifyId,
        deadline: Instant,
    ) -> Result<Option<NotifyOutcome>, ConfError> {
        let mut outcome = NotifyOutcome { acks: Vec::new(), missed: Vec::new() };
        loop {
            let after = outcome.acks.len() + outcome.missed.len();
            let ask = NotifyOutcomesGet { id, after: u32::try_from(after).unwrap_or(u32::MAX) };
            match self.call(&ask, deadline).await? {
                NotifyOutcomesReply::Forgotten => return Ok(None),
                NotifyOutcomesReply::Page { acks, missed } if acks.is_empty() && missed.is_empty() => {
                    return Ok(Some(outcome));
                }
                NotifyOutcomesReply::Page { acks, missed } => {
                    outcome.acks.extend(acks);
                    outcome.missed.extend(missed);
                }
            }
        }
    }
}
