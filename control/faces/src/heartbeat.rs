//! A server's side of its lease: registers, sends heartbeats, registers again after a restart of control.
//!
//! Bound: one request at a time. Left over when control is away: the lease ends, [`Heartbeat::lease_holds`] says no, and the
//! requests go on until control answers. Refusals (not in the configuration) are tried again too: an operator may mend it.
//! Also keeps the configuration fresh: a heartbeat's answer that shows a newer version leads to a fetch.
//! Thread: the locality of its `RpcMachine`. Rules: docs/ha.md#leases. Start at [`Heartbeat::start`].

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use base::{Fid, Instant};
use fops::conf::{DeviceHealth, Heartbeat as HeartbeatFop, Register, RegisteredDevice};
use runtime::Task;
use runtime::sync::Notify;

use crate::conf_client::{ConfClient, ConfError};
use crate::lease::{LEASE_DEFAULT, Lease, heartbeat_interval};

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
    registrant: Registrant,
    health: Box<dyn Fn() -> Vec<DeviceHealth>>,
    lease: Cell<Lease>,
    soon: Notify,
}

/// Keeps a registration and its lease alive until dropped or stopped.
pub struct Heartbeat {
    shared: Rc<Shared>,
    task: Cell<Option<Task>>,
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
            registrant,
            health: Box::new(health),
            lease: Cell::new(Lease::None),
            soon: Notify::new(),
        });
        let version = shared.register(deadline).await?;
        conf.refresh_if_newer(version, deadline).await?;
        // The first beat goes at once: a registration does not say how much is free.
        shared.soon.notify_one();
        let locality = conf.rpc().locality().clone();
        let task = locality.spawn("heartbeat", run(Rc::clone(&shared)));
        Ok(Heartbeat { shared, task: Cell::new(Some(task)) })
    }

    /// True while the process may serve.
    #[must_use]
    pub fn lease_holds(&self, now: Instant) -> bool {
        self.shared.lease.get().holds(now)
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

    /// Ends the heartbeats; the lease runs out by itself.
    pub fn stop(&self) {
        if let Some(task) = self.task.take() {
            task.cancel();
        }
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
        let Registrant { process, epoch, devices } = self.registrant.clone();
        let reply = self.conf.call(&Register { process, epoch, devices }, deadline).await?;
        self.lease.set(Lease::granted(sent_at, Duration::from_millis(reply.lease_ms)));
        Ok(reply.version)
    }

    /// One heartbeat. Answer: control's version, or nothing if we have to register again.
    async fn beat(&self, deadline: Instant) -> Result<Option<u64>, ConfError> {
        let sent_at = self.now();
        let Registrant { process, epoch, .. } = self.registrant;
        let reply =
            self.conf.call(&HeartbeatFop { process, epoch, devices: (self.health)() }, deadline).await?;
        if !reply.known {
            return Ok(None);
        }
        let mut lease = self.lease.get();
        lease.prolong(sent_at);
        self.lease.set(lease);
        Ok(Some(reply.version))
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
        let version =
            if known { shared.beat(deadline).await } else { shared.register(deadline).await.map(Some) };
        match version {
            Ok(Some(version)) => {
                known = true;
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
