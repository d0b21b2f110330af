//! A server's side of its lease: registers, sends heartbeats, registers again after a restart of control.
//!
//! Bound: one request at a time. Left over when control is away: the lease ends, [`Heartbeat::lease_holds`] says no, and the
//! requests go on until control answers. Refusals (not in the configuration) are tried again too: an operator may mend it.
//! Also keeps the configuration fresh: a heartbeat's answer that shows a newer version leads to a fetch.
//! And it keeps the fences in force ([`Fences`]): it asks for the next ones, and acknowledges them once nothing that they refuse is under
//! way. **Invariant**: a lease that ended holds again only once the fences of the time after that are in force.
//! Thread: the locality of its `RpcMachine`. Rules: docs/ha.md#leases. Start at [`Heartbeat::start`].

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use base::{Fid, Instant};
use fops::conf::{DeviceHealth, Heartbeat as HeartbeatFop, Register, RegisteredDevice};
use fops::lock::FencesGet;
use runtime::Task;
use runtime::sync::Notify;

use crate::conf_client::{ConfClient, ConfError};
use crate::fences::Fences;
use crate::lease::{LEASE_DEFAULT, Lease, heartbeat_interval};
use crate::limits::FENCES_WAIT_MS_MAX;

/// Who sends heartbeats.
#[derive(Clone, Debug)]
pub struct Registrant {
    /// The process.
    pub process: Fid,
    /// Its incarnation, unique per start, not 0.
    pub epoch: u64,
    /// The devices of this locality that are open.
    pub devices: Vec<RegisteredDevice>,
}

struct Shared {
    conf: ConfClient,
    registrant: RefCell<Registrant>,
    health: Box<dyn Fn() -> Vec<DeviceHealth>>,
    lease: Cell<Lease>,
    /// False since the lease ended, until the fences of the time after that are in force.
    fences_known: Cell<bool>,
    fences: Fences,
    soon: Notify,
    /// The next request registers.
    must_register: Cell<bool>,
}

/// Keeps a registration and its lease alive until dropped or stopped.
pub struct Heartbeat {
    shared: Rc<Shared>,
    tasks: Cell<Vec<Task>>,
}

impl Heartbeat {
    /// Registers, fetches the configuration that holds the registration, and sends heartbeats from then on.
    ///
    /// `health` is asked for each heartbeat. Errors: no answer until `deadline`, or a refusal.
    pub async fn start(
        conf: &ConfClient,
        registrant: Registrant,
        health: impl Fn() -> Vec<DeviceHealth> + 'static,
        deadline: Instant,
    ) -> Result<Heartbeat, ConfError> {
        let shared = Rc::new(Shared {
            conf: conf.clone(),
            registrant: RefCell::new(registrant),
            health: Box::new(health),
            lease: Cell::new(Lease::None),
            fences_known: Cell::new(false),
            fences: Fences::default(),
            soon: Notify::new(),
            must_register: Cell::new(false),
        });
        let version = shared.register(deadline).await?;
        conf.refresh_if_newer(version, deadline).await?;
        shared.learn_fences(deadline).await?;
        // The first beat goes at once: a registration does not say how much is free.
        shared.soon.notify_one();
        let locality = conf.rpc().locality().clone();
        let tasks = vec![
            locality.spawn("heartbeat", run(Rc::clone(&shared))),
            locality.spawn("fences", follow_fences(Rc::clone(&shared))),
        ];
        Ok(Heartbeat { shared, tasks: Cell::new(tasks) })
    }

    /// True while the process may serve.
    #[must_use]
    pub fn lease_holds(&self, now: Instant) -> bool {
        self.shared.fences_known.get() && self.shared.lease.get().holds(now)
    }

    /// The fences in force here.
    #[must_use]
    pub fn fences(&self) -> &Fences {
        &self.shared.fences
    }

    /// When the lease ends unless it is prolonged.
    #[must_use]
    pub fn lease_ends_at(&self) -> Instant {
        self.shared.lease.get().ends_at()
    }

    /// Sends the next heartbeat at once: the health changed.
    pub fn beat_now(&self) {
        self.shared.soon.notify_one();
    }

    /// Registers again, now, with these devices: one of them has another disk, or is new.
    pub fn register_again(&self, devices: Vec<RegisteredDevice>) {
        self.shared.registrant.borrow_mut().devices = devices;
        self.shared.must_register.set(true);
        self.shared.soon.notify_one();
    }

    /// Ends the heartbeats; the lease runs out by itself.
    pub fn stop(&self) {
        self.tasks.take().into_iter().for_each(Task::cancel);
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn now(&self) -> Instant {
        self.conf.rpc().locality().now()
    }

    /// Registers. Answer: the version that holds the registration.
    async fn register(&self, deadline: Instant) -> Result<u64, ConfError> {
        let sent_at = self.now();
        let Registrant { process, epoch, devices } = self.registrant.borrow().clone();
        let reply = self.conf.call(&Register { process, epoch, devices }, deadline).await?;
        self.note_gap();
        self.lease.set(Lease::granted(sent_at, Duration::from_millis(reply.lease_ms)));
        Ok(reply.version)
    }

    /// One heartbeat. Answer: control's version, or nothing if we have to register again.
    async fn beat(&self, deadline: Instant) -> Result<Option<u64>, ConfError> {
        let sent_at = self.now();
        let Registrant { process, epoch, .. } = *self.registrant.borrow();
        let reply =
            self.conf.call(&HeartbeatFop { process, epoch, devices: (self.health)() }, deadline).await?;
        if !reply.known {
            return Ok(None);
        }
        self.note_gap();
        let mut lease = self.lease.get();
        lease.prolong(sent_at);
        self.lease.set(lease);
        Ok(Some(reply.version))
    }

    /// The lease is about to be prolonged: if it has ended, control may have gone on without us.
    fn note_gap(&self) {
        if !self.lease.get().holds(self.now()) {
            self.fences_known.set(false);
        }
    }

    /// Puts all fences in force that control has; the answers count only if the lease still holds when they are there.
    async fn learn_fences(&self, deadline: Instant) -> Result<(), ConfError> {
        while self.next_fences(0, Duration::ZERO, deadline).await? {}
        self.fences_known.set(self.lease.get().holds(self.now()));
        Ok(())
    }

    /// Asks for fences behind those in force, acknowledges those up to `known`, and puts what comes in force. True if something came.
    async fn next_fences(&self, known: u64, wait: Duration, deadline: Instant) -> Result<bool, ConfError> {
        let (process, epoch, devices) = {
            let Registrant { process, epoch, ref devices } = *self.registrant.borrow();
            (process, epoch, devices.iter().map(|device| device.device).collect())
        };
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        let ask = FencesGet { process, epoch, devices, known, after: self.fences.newest(), wait_ms };
        let reply = self.conf.call(&ask, deadline).await?;
        self.fences.apply(&reply.fences);
        Ok(!reply.fences.is_empty())
    }

    fn lease_length(&self) -> Duration {
        match self.lease.get() {
            Lease::None => LEASE_DEFAULT,
            Lease::Granted { length, .. } => length,
        }
    }
}

async fn run(shared: Rc<Shared>) {
    let locality = shared.conf.rpc().locality().clone();
    let mut known = true;
    loop {
        let length = shared.lease_length();
        let next_at = shared.now() + heartbeat_interval(length);
        // Either way it is time: the interval is over, or somebody rang.
        let _rang = locality.timeout_at(next_at, shared.soon.notified()).await;
        // An answer after half a lease is of little use; then the next try begins afresh.
        let deadline = shared.now() + length / 2;
        known &= !shared.must_register.take();
        let version =
            if known { shared.beat(deadline).await } else { shared.register(deadline).await.map(Some) };
        match version {
            Ok(Some(version)) => {
                known = true;
                if !shared.fences_known.get() {
                    // No lease without them; tried again with the next heartbeat if it fails.
                    let _learned = shared.learn_fences(deadline).await;
                }
                // Tried again with the next heartbeat if it fails.
                let _refreshed = shared.conf.refresh_if_newer(version, deadline).await;
            }
            Ok(None) => {
                known = false;
                shared.soon.notify_one();
            }
            // The interval paces the tries; the lease shows the outcome.
            Err(_) => {}
        }
    }
}

/// Asks for the next fences for ever; each question acknowledges those before.
async fn follow_fences(shared: Rc<Shared>) {
    let locality = shared.conf.rpc().locality().clone();
    let wait = Duration::from_millis(u64::from(FENCES_WAIT_MS_MAX));
    loop {
        let known = shared.fences.settled().await;
        let pause = heartbeat_interval(shared.lease_length());
        let asked_at = shared.now();
        let came = shared.next_fences(known, wait, asked_at + wait + shared.lease_length()).await;
        // A control daemon that is away, or stops and therefore does not wait, is not asked all the time.
        if !matches!(came, Ok(true)) && shared.now() < asked_at + pause {
            locality.sleep_until(asked_at + pause).await;
        }
    }
}
