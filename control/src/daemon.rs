//! The daemon around [`ControlCore`]: serves requests, keeps the store ahead of every answer, lets leases run out.
//!
//! **Invariant**: nobody is told of a configuration version before it is durable: an answer that names a version waits in
//! `settle` until the store has it, and `ConfGet` answers with the last durable one. Changes that come while one is being
//! written go out together in the next write.
//! Left over: a store that fails. Then nothing changes any more, every request that waits for a version gets `NotServing`,
//! and leases run out; an operator mends or replaces the store and starts control again.
//! Bound: [`CHANGES_KEPT`] state changes for status. Thread: one locality. Start at [`Control::start`].

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use base::{Endpoint, Instant};
use faces::Configuration;
use faces::lease::{LEASE_DEFAULT, LEASE_MAX, LEASE_MIN};
use fops::FopError;
use fops::admin::{Ping, PingReply, Shutdown, ShutdownReply};
use fops::conf::{
    ClusterStatus, ClusterStatusReply, ConfGet, ConfGetReply, DeviceReport, DeviceReportReply, Heartbeat,
    HeartbeatReply, Register, RegisterReply,
};
use futures_util::FutureExt;
use rpc::{Fom, RpcConfig, RpcMachine};
use runtime::sync::Notify;
use runtime::{LocalityHandle, Task};
use spdk_stob::Backend;
use verbs_net::{Fabric, TmConfig, Token, TransferMachine};

use crate::core::{ControlCore, Refusal, StateChange};
use crate::error::ControlError;
use crate::reconcile::reconcile;
use crate::store::Store;

/// State changes that are kept for whoever asks.
pub const CHANGES_KEPT: usize = 1024;

/// What a control daemon needs to start.
pub struct ControlConfig {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// The cluster's credential.
    pub token: Token,
    /// This start of it, not 0.
    pub epoch: u64,
    /// The operator's configuration, as `ClusterFile::initial_configuration` makes it.
    pub configuration: Configuration,
    /// Lease granted to servers, `LEASE_MIN` to `LEASE_MAX`.
    pub lease: Duration,
    /// Device of the durable state: blank, or the store of this cluster.
    pub store: Box<dyn Backend>,
    /// Limits of the rpc machine.
    pub rpc: RpcConfig,
}

impl ControlConfig {
    /// A configuration of the daemon with the default lease and limits.
    #[must_use]
    pub fn new(
        token: Token,
        epoch: u64,
        configuration: Configuration,
        store: Box<dyn Backend>,
    ) -> ControlConfig {
        ControlConfig {
            endpoint: configuration.control,
            token,
            epoch,
            configuration,
            lease: LEASE_DEFAULT,
            store,
            rpc: RpcConfig::default(),
        }
    }
}

struct Inner {
    rpc: RpcMachine,
    epoch: u64,
    store: Store,
    core: RefCell<ControlCore>,
    /// The last durable configuration.
    published: RefCell<Rc<Configuration>>,
    /// Why the store takes no more, once it does not.
    store_failed: RefCell<Option<String>>,
    /// Rings when the core has a version that the store has not.
    dirty: Notify,
    /// Rings when `published` or `store_failed` changed.
    settled: Notify,
    changes: RefCell<VecDeque<StateChange>>,
    shutdown: Cell<bool>,
    shutdown_rung: Notify,
}

/// A running control daemon.
pub struct Control {
    inner: Rc<Inner>,
    tasks: Vec<Task>,
}

impl Control {
    /// Opens (or formats, if blank) the store, and serves.
    ///
    /// Errors: the store is damaged or of another cluster, the operator's file has another device set, the endpoint is taken.
    pub async fn start(
        locality: &LocalityHandle,
        fabric: &Fabric,
        config: ControlConfig,
    ) -> Result<Control, ControlError> {
        if !(LEASE_MIN..=LEASE_MAX).contains(&config.lease) {
            return Err(ControlError::Lease {
                lease_ms: config.lease.as_millis(),
                min_ms: LEASE_MIN.as_millis(),
                max_ms: LEASE_MAX.as_millis(),
            });
        }
        config.configuration.check().map_err(ControlError::Configuration)?;
        let cluster = config.configuration.cluster;
        let (store, stored) = Store::open(locality, config.store, cluster).await?;
        let configuration = match stored.clone() {
            Some(stored) => reconcile(stored, &config.configuration)?,
            None => config.configuration,
        };
        if stored.as_ref() != Some(&configuration) {
            store.save(&configuration).await?;
        }
        let config_version = Rc::new(Cell::new(configuration.version));
        let tm_config =
            TmConfig::new(config.endpoint, true, config.epoch, config.token, Rc::clone(&config_version));
        let transfer_machine = TransferMachine::start(locality, fabric, tm_config)?;
        let rpc_config = RpcConfig { config_version: Rc::clone(&config_version), ..config.rpc };
        let rpc = RpcMachine::start(locality, transfer_machine, rpc_config);
        let inner = Rc::new(Inner {
            rpc,
            epoch: config.epoch,
            store,
            core: RefCell::new(ControlCore::new(locality.now(), configuration.clone(), config.lease)),
            published: RefCell::new(Rc::new(configuration)),
            store_failed: RefCell::new(None),
            dirty: Notify::new(),
            settled: Notify::new(),
            changes: RefCell::new(VecDeque::new()),
            shutdown: Cell::new(false),
            shutdown_rung: Notify::new(),
        });
        Inner::serve_all(&inner);
        let tasks = vec![
            locality.spawn("control-store", write_changes(Rc::clone(&inner))),
            locality.spawn("control-leases", run_leases(Rc::clone(&inner), config.lease)),
        ];
        Ok(Control { inner, tasks })
    }

    /// Where it serves.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        self.inner.rpc.endpoint()
    }

    /// The last durable configuration.
    #[must_use]
    pub fn configuration(&self) -> Rc<Configuration> {
        Rc::clone(&self.inner.published.borrow())
    }

    /// Processes and devices as seen now.
    #[must_use]
    pub fn status(&self) -> ClusterStatusReply {
        self.inner.core.borrow().status(self.inner.rpc.locality().now())
    }

    /// The last [`CHANGES_KEPT`] changes of device states, oldest first.
    #[must_use]
    pub fn recent_changes(&self) -> Vec<StateChange> {
        self.inner.changes.borrow().iter().copied().collect()
    }

    /// Why the store takes no more changes, if so.
    #[must_use]
    pub fn store_failure(&self) -> Option<String> {
        self.inner.store_failed.borrow().clone()
    }

    /// The rpc machine, for its statistics.
    #[must_use]
    pub fn rpc(&self) -> &RpcMachine {
        &self.inner.rpc
    }

    /// Waits until somebody sent a `Shutdown` fop; then call [`Control::stop`].
    pub async fn shutdown_requested(&self) {
        while !self.inner.shutdown.get() {
            self.inner.shutdown_rung.notified().await;
        }
    }

    /// Finishes what runs and closes the store. Errors: the store's last checkpoint failed; nothing acknowledged is lost.
    pub async fn stop(mut self) -> Result<(), ControlError> {
        self.inner.rpc.drain().await;
        self.tasks.drain(..).for_each(Task::cancel);
        self.inner.store.close().await.map_err(ControlError::Store)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.tasks.drain(..).for_each(Task::cancel);
    }
}

fn refused(refusal: Refusal) -> FopError {
    FopError::NotPermitted { reason: refusal.to_string() }
}

impl Inner {
    fn serve_all(inner: &Rc<Inner>) {
        serve(inner, |inner: Rc<Inner>, _fom, request: ConfGet| async move { inner.conf_get(&request) });
        serve(
            inner,
            |inner: Rc<Inner>, _fom, request: Register| async move { inner.register(request).await },
        );
        serve(
            inner,
            |inner: Rc<Inner>, _fom, request: Heartbeat| async move { inner.heartbeat(request).await },
        );
        serve(inner, |inner: Rc<Inner>, fom: Fom, request: DeviceReport| async move {
            inner.device_report(fom.peer().endpoint, request).await
        });
        serve(inner, |inner: Rc<Inner>, _fom, _request: ClusterStatus| async move {
            Ok(inner.core.borrow().status(inner.rpc.locality().now()))
        });
        inner.rpc.serve_net_faults();
        serve(inner, |inner: Rc<Inner>, _fom, request: Ping| async move {
            Ok(PingReply { payload: request.payload, epoch: inner.epoch })
        });
        serve(inner, |inner: Rc<Inner>, _fom, _request: Shutdown| async move {
            inner.shutdown.set(true);
            inner.shutdown_rung.notify_waiters();
            Ok(ShutdownReply)
        });
    }

    fn conf_get(&self, request: &ConfGet) -> Result<ConfGetReply, FopError> {
        let published = Rc::clone(&self.published.borrow());
        let configuration = if published.version > request.known_version {
            let bytes = published
                .to_bytes()
                .map_err(|error| FopError::Internal { reason: format!("own configuration: {error}") })?;
            Some(bytes)
        } else {
            None
        };
        Ok(ConfGetReply { version: published.version, configuration })
    }

    async fn register(&self, request: Register) -> Result<RegisterReply, FopError> {
        let now = self.rpc.locality().now();
        let reply = self.core.borrow_mut().handle_register(now, &request).map_err(refused)?;
        self.settle(reply.version).await?;
        Ok(reply)
    }

    async fn heartbeat(&self, request: Heartbeat) -> Result<HeartbeatReply, FopError> {
        let now = self.rpc.locality().now();
        let reply = self.core.borrow_mut().handle_heartbeat(now, &request);
        self.settle(reply.version).await?;
        Ok(reply)
    }

    async fn device_report(
        &self,
        reporter: Endpoint,
        request: DeviceReport,
    ) -> Result<DeviceReportReply, FopError> {
        let version = self.core.borrow_mut().handle_evidence(&request, reporter).map_err(refused)?;
        self.settle(version).await?;
        Ok(DeviceReportReply { version })
    }

    /// Waits until `version` is durable. Error: the store failed.
    async fn settle(&self, version: u64) -> Result<(), FopError> {
        loop {
            if self.published.borrow().version >= version {
                return Ok(());
            }
            if let Some(reason) = self.store_failed.borrow().as_ref() {
                let reason = format!("control's store failed: {reason}");
                return Err(FopError::NotServing { reason });
            }
            self.dirty.notify_one();
            self.settled.notified().await;
        }
    }

    fn publish(&self, configuration: Configuration) {
        self.rpc.config_version().set(configuration.version);
        *self.published.borrow_mut() = Rc::new(configuration);
        let mut kept = self.changes.borrow_mut();
        kept.extend(self.core.borrow_mut().take_changes());
        while kept.len() > CHANGES_KEPT {
            kept.pop_front();
        }
    }
}

/// Serves one fop with a handler that sees the daemon, as long as there is one.
fn serve<F, Handler, Answer>(inner: &Rc<Inner>, handler: Handler)
where
    F: fops::Fop,
    Handler: Fn(Rc<Inner>, Fom, F) -> Answer + 'static,
    Answer: Future<Output = Result<F::Reply, FopError>> + 'static,
{
    // Weak: the machine owns its handlers, and the daemon owns the machine.
    let weak = Rc::downgrade(inner);
    inner.rpc.serve(move |fom: Fom, request: F| match weak.upgrade() {
        Some(inner) => handler(inner, fom, request).boxed_local(),
        None => {
            let stopped = FopError::NotServing { reason: "control is stopped".to_owned() };
            std::future::ready(Err(stopped)).boxed_local()
        }
    });
}

/// Writes each new version to the store, then publishes it. Ends when the store fails.
async fn write_changes(inner: Rc<Inner>) {
    loop {
        inner.dirty.notified().await;
        loop {
            let next = inner.core.borrow().configuration().clone();
            if next.version == inner.published.borrow().version {
                break;
            }
            match inner.store.save(&next).await {
                Ok(()) => inner.publish(next),
                Err(error) => *inner.store_failed.borrow_mut() = Some(error.to_string()),
            }
            inner.settled.notify_waiters();
            if inner.store_failed.borrow().is_some() {
                return;
            }
        }
    }
}

/// Takes leases as lost when their time is over.
async fn run_leases(inner: Rc<Inner>, lease: Duration) {
    let locality = inner.rpc.locality().clone();
    loop {
        let now: Instant = locality.now();
        // No lease that is granted while we sleep ends before the sleep does: each is at least `lease` long.
        let next = inner.core.borrow().next_deadline().unwrap_or(Instant::NEVER).min(now + lease);
        locality.sleep_until(next).await;
        if inner.core.borrow_mut().handle_tick(locality.now()) {
            inner.dirty.notify_one();
        }
    }
}
