//! The daemon around [`ControlCore`]: serves requests, keeps the store ahead of every answer, lets leases run out.
//!
//! **Invariant**: nobody is told of a configuration version before it is durable: an answer that names a version waits in
//! `settle` until the store has it, and `ConfGet` answers with the last durable one. Changes that come while one is being
//! written go out together in the next write.
//! One of several daemons does so only while it leads: a *reign* (`Inner`) begins with what the replicated log has, as after a restart, and ends
//! with the lead. **Invariant**: an answer of a reign leaves only after a majority has said, once it was made, that nobody else leads.
//! Left over: a store that fails. Then nothing changes any more, every request that waits for a version gets `NotServing`,
//! and leases run out; an operator mends or replaces the store and starts control again.
//! Bound: [`EVENTS_KEPT`] events, numbered, durable with the version that holds them and only then shown. Thread: one locality. Start at [`Control::start`].

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use base::units::wide;
use base::{Endpoint, Fid, Instant, Right};
use faces::lease::{LEASE_DEFAULT, LEASE_MAX, LEASE_MIN};
use faces::limits::{
    CLUSTER_TEXT_PART_BYTES, CONTROL_SESSIONS_MAX, EVENTS_KEPT, EVENTS_PAGE, EVENTS_WAIT_MS_MAX,
    EVENTS_WAITS_MAX, LOAN_CHANGES_AT_ONCE,
};
use faces::{About, Configuration, Credential};
use fops::FopError;
use fops::admin::{Ping, PingReply, ProcessGet, ProcessGetReply, Shutdown, ShutdownReply};
use fops::conf::{
    ClusterStatusReply, ConfHistory, ConfHistoryReply, ConfText, ConfTextReply, DeviceCommand,
    DeviceCommandReply, DeviceEvidence, DeviceReport, DeviceReportReply, Event, EventsGet, EventsReply,
    Heartbeat, HeartbeatReply, Register, RegisterReply,
};
use fops::load::{LoadGet, LoadGetReply, LoadReport, LoadReportReply};
use fops::member::{BackupGet, BackupReply, MemberChange, MemberChangeReply, MembersGet, MembersReply};
use fops::repair::{RepairGet, RepairGetReply, RepairStatus, RepairTurn, RepairTurnReply};
use fops::rm::BorrowerId;
use futures_util::future::Either;
use rpc::{Fom, RpcConfig, RpcMachine};
use runtime::sync::Notify;
use runtime::{LocalityHandle, Task};
use spdk_stob::{Backend, Domain};
use verbs_net::{Fabric, Security, TmConfig, TransferMachine};

use crate::backup::Backup;
use crate::bug::Bug;
use crate::conf_book::{ConfBook, ConfBytes};
use crate::conf_service;
use crate::core::{ControlCore, Refusal, StateChange};
use crate::error::ControlError;
use crate::load::LoadBook;
use crate::loans::LoanTable;
use crate::lock_service;
use crate::locks::LockTable;
use crate::reconcile::reconcile;
use crate::replication::journal::{Journal, LOG_ENTRIES_MAX, Position, state_of};
use crate::replication::log::{Alone, ReplicatedLog};
use crate::replication::member::{HAND_OVER_MAX, Member, MemberCounts, SILENCE_MAX, TICK};
use crate::rm_service;
use crate::store::{self, Changes, Store, Stored, open_domain};
use crate::transactions::{ApplyRefusal, Kept, Reason, Transactions};
use crate::watch_service;
use crate::watches::WatchTable;

/// The operator's cluster file, as the daemon finds it when it starts.
#[derive(Clone, Debug)]
pub struct OperatorFile {
    /// Its text, as `ClusterFile::hide_credential` makes it.
    pub text: String,
    /// The secret that the cluster's members share, if they do.
    pub credential: Option<Credential>,
    /// When it was read, in seconds since 1970; 0 if unknown.
    pub unix_s: u64,
}

/// What a control daemon needs to start.
pub struct ControlConfig {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// How it proves what it is, and what it asks of others.
    pub security: Security,
    /// This start of it, not 0.
    pub epoch: u64,
    /// The operator's configuration, as `ClusterFile::initial_configuration` makes it.
    pub configuration: Configuration,
    /// The file it was made from; without it the cluster file cannot be changed while control runs.
    pub file: Option<OperatorFile>,
    /// Lease granted to servers, `LEASE_MIN` to `LEASE_MAX`.
    pub lease: Duration,
    /// Device of the durable state: blank, or the store of this cluster.
    pub store: Box<dyn Backend>,
    /// What it is among several control daemons; `None` for one alone.
    pub member: Option<MemberConfig>,
    /// Entries that a log with other daemons keeps before it is cut, for members that are a little behind; those further behind get a copy of the state.
    pub log_entries_max: usize,
    /// What it says of itself.
    pub about: About,
    /// Limits of the rpc machine.
    pub rpc: RpcConfig,
    /// A bug on purpose, for the simulation.
    #[doc(hidden)]
    pub bug: Option<Bug>,
}

impl ControlConfig {
    /// A configuration of the daemon with the default lease and limits.
    #[must_use]
    pub fn new(
        security: impl Into<Security>,
        epoch: u64,
        configuration: Configuration,
        store: Box<dyn Backend>,
    ) -> ControlConfig {
        ControlConfig {
            endpoint: configuration.control,
            security: security.into(),
            epoch,
            configuration,
            file: None,
            lease: LEASE_DEFAULT,
            store,
            member: None,
            log_entries_max: LOG_ENTRIES_MAX,
            about: About::default(),
            rpc: RpcConfig { sessions_max: CONTROL_SESSIONS_MAX, ..RpcConfig::default() },
            bug: None,
        }
    }
}

/// What a blank store is to become among several daemons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstStart {
    /// The cluster is new: this daemon and the others of the cluster file are its first members.
    Found,
    /// The cluster runs: this daemon waits to be taken in.
    Join,
}

/// A daemon among several.
#[derive(Clone, Debug)]
pub struct MemberConfig {
    /// Its number, not 0. Never used again for another store.
    pub number: u64,
    /// Where all of them listen, by number.
    pub members: BTreeMap<u64, Endpoint>,
    /// What its store is to become, if it is blank; nothing if it has to be one.
    pub first_start: Option<FirstStart>,
}

/// What of a daemon stays while the lead comes and goes.
pub(crate) struct Office {
    rpc: RpcMachine,
    epoch: u64,
    about: About,
    bug: Option<Bug>,
    domain: Domain,
    member: Option<Rc<Member>>,
    /// While it decides: always, if it is alone.
    reign: RefCell<Option<Rc<Inner>>>,
    reign_tasks: RefCell<Vec<Task>>,
    /// What a first leader begins with.
    configuration: Configuration,
    file: Option<OperatorFile>,
    lease: Duration,
    started: (u64, Instant),
    /// The last configuration that was published by a reign that is over.
    published: RefCell<Rc<Configuration>>,
    /// Why the last try to begin a reign failed.
    trouble: RefCell<Option<String>>,
    /// The backup that somebody fetches, by its name: the last one that was begun.
    copy: RefCell<Option<(u64, Vec<u8>)>>,
    shutdown: Cell<bool>,
    shutdown_rung: Notify,
    /// Hands the lead over, as this daemon is to be taken out.
    handing_over: RefCell<Option<Task>>,
}

/// A reign: the daemon while it decides.
pub(crate) struct Inner {
    pub(crate) rpc: RpcMachine,
    /// Of this reign: numbers that live in memory alone mean nothing in another.
    pub(crate) epoch: u64,
    pub(crate) store: Store,
    bug: Option<Bug>,
    pub(crate) core: RefCell<ControlCore>,
    /// Serial of the last durable change of repairs.
    repairs_stored: Cell<u64>,
    pub(crate) locks: RefCell<LockTable>,
    /// Serial of the last durable change of locks.
    locks_stored: Cell<u64>,
    /// Rings when a lock may have become free, a fence was made, or one was acknowledged.
    pub(crate) locks_rung: Notify,
    /// Requests that wait for it.
    pub(crate) lock_waits: Cell<usize>,
    pub(crate) watches: RefCell<WatchTable>,
    /// Serial of the last durable change of watches.
    watches_stored: Cell<u64>,
    /// Rings when a notify came, was acknowledged, or is over.
    pub(crate) watches_rung: Notify,
    /// Requests of watchers that wait for it.
    pub(crate) watch_waits: Cell<usize>,
    /// What the servers did in the last hour.
    load: RefCell<LoadBook>,
    pub(crate) loans: RefCell<LoanTable>,
    /// Serial of the last durable change of loans.
    loans_stored: Cell<u64>,
    /// Rings when a loan was returned or asked back, a borrower was lost, or the configuration changed.
    pub(crate) loans_rung: Notify,
    /// Of each rebalance that was given up: the credits that were lent when that came into force, as far as they still are. Under one of them somebody may be
    /// in the middle of moving an object.
    ending_moves: RefCell<BTreeMap<Fid, BTreeSet<(BorrowerId, u64)>>>,
    /// Requests of borrowers that wait for it.
    pub(crate) rm_waits: Cell<usize>,
    /// Granted to servers and borrowers.
    pub(crate) lease: Duration,
    /// Requests that wait for an event.
    event_waits: Cell<usize>,
    /// The last durable configuration.
    published: RefCell<Rc<Configuration>>,
    /// The same for those who fetch it.
    pub(crate) book: RefCell<ConfBook>,
    /// A cluster file that is being brought.
    pub(crate) upload: RefCell<Option<conf_service::Upload>>,
    /// Why the store takes no more, once it does not.
    store_failed: RefCell<Option<String>>,
    /// Rings when the core has a version that the store has not.
    pub(crate) dirty: Notify,
    /// Rings when `published` or `store_failed` changed.
    settled: Notify,
    /// Durable events, oldest first.
    events: RefCell<VecDeque<Event>>,
    /// Seconds since 1970 when the daemon started, and when that was; 0 if unknown.
    started: (u64, Instant),
    /// The reign is over, or the daemon is to stop.
    pub(crate) shutdown: Cell<bool>,
}

/// A running control daemon.
pub struct Control {
    office: Rc<Office>,
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
        let domain = open_domain(locality, config.store, cluster).await?;
        let member = config.member.as_ref();
        let journal = open_journal(&domain, cluster, member, config.bug).await?;
        let begun = match &journal {
            Some(_) => None,
            None => {
                let log: Rc<dyn ReplicatedLog> = Rc::new(Alone(domain.clone()));
                Some(begin(log, &config.configuration, config.file.as_ref(), config.endpoint).await?)
            }
        };
        let version = begun.as_ref().map_or(0, |begun| begun.configuration.version);
        let config_version = Rc::new(Cell::new(version));
        let tm_config =
            TmConfig::new(config.endpoint, true, config.epoch, config.security, Rc::clone(&config_version));
        let transfer_machine = TransferMachine::start(locality, fabric, tm_config)?;
        let rpc_config = RpcConfig { config_version: Rc::clone(&config_version), ..config.rpc };
        let rpc = RpcMachine::start(locality, transfer_machine, rpc_config);
        let mut tasks = Vec::new();
        let endpoints = config.member.map(|member| member.members).unwrap_or_default();
        let credential = config.file.as_ref().and_then(|file| file.credential);
        let member = journal.map(|journal| {
            journal.set_entries_max(config.log_entries_max);
            let whose = (cluster, credential);
            let (member, task) = Member::start(&rpc, &domain, journal, endpoints, whose, config.bug);
            tasks.push(task);
            member
        });
        let office = Rc::new(Office {
            rpc,
            epoch: config.epoch,
            about: config.about,
            domain,
            bug: config.bug,
            member,
            reign: RefCell::default(),
            reign_tasks: RefCell::default(),
            started: (config.file.as_ref().map_or(0, |file| file.unix_s), locality.now()),
            published: RefCell::new(Rc::new(config.configuration.clone())),
            configuration: config.configuration,
            file: config.file,
            lease: config.lease,
            trouble: RefCell::default(),
            copy: RefCell::default(),
            shutdown: Cell::new(false),
            shutdown_rung: Notify::new(),
            handing_over: RefCell::default(),
        });
        if let Some(begun) = begun {
            office.reign(begun, config.epoch);
        }
        Inner::serve_all(&office);
        if let Some(member) = &office.member {
            tasks
                .push(locality.spawn("control-lead", follow_the_lead(Rc::clone(&office), Rc::clone(member))));
        }
        Ok(Control { office, tasks })
    }

    /// Where it serves.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        self.office.rpc.endpoint()
    }

    /// True while it decides: one alone always does, one of several while it leads.
    #[must_use]
    pub fn decides(&self) -> bool {
        self.office.reign.borrow().is_some()
    }

    /// What it knows of the control daemons.
    #[must_use]
    pub fn members(&self) -> MembersReply {
        self.office.members()
    }

    /// The term in which it was elected, whether it decides already or not; `None` if it does not lead, or is alone.
    #[must_use]
    pub fn leads_in(&self) -> Option<u64> {
        self.office.member.as_ref()?.leads_in()
    }

    /// What it did as one of several since it started; nothing if it is alone.
    #[must_use]
    pub fn member_counts(&self) -> MemberCounts {
        self.office.member.as_ref().map_or_else(MemberCounts::default, |member| member.counts())
    }

    /// For tests: every key and value of the durable state, and the entry of the log that it has the effect of (0 if it is alone).
    #[doc(hidden)]
    #[must_use]
    pub fn state(&self) -> (u64, Vec<u8>) {
        let (position, state) = match &self.office.member {
            Some(member) => member.copy(),
            None => (Position::default(), state_of(&self.office.domain, |tree| tree)),
        };
        (position.index, state.encode())
    }

    /// The last durable configuration that was decided here; before, the one given.
    #[must_use]
    pub fn configuration(&self) -> Rc<Configuration> {
        match &*self.office.reign.borrow() {
            Some(inner) => Rc::clone(&inner.published.borrow()),
            None => Rc::clone(&self.office.published.borrow()),
        }
    }

    /// Processes and devices as seen now; none if it does not decide.
    #[must_use]
    pub fn status(&self) -> ClusterStatusReply {
        let now = self.office.rpc.locality().now();
        match &*self.office.reign.borrow() {
            Some(inner) => inner.core.borrow().status(now),
            None => ClusterStatusReply { version: 0, processes: Vec::new(), devices: Vec::new() },
        }
    }

    /// Every repair that control knows of.
    #[must_use]
    pub fn repairs(&self) -> Vec<RepairStatus> {
        let mut all: Vec<RepairStatus> = Vec::new();
        let Some(inner) = self.office.reign.borrow().clone() else { return all };
        loop {
            let after = all.last().map(|last| last.device);
            let reply = inner.repairs(&RepairGet { after });
            all.extend(reply.repairs);
            if !reply.has_more {
                return all;
            }
        }
    }

    /// The last [`EVENTS_KEPT`] durable events, oldest first, without a gap; none if it does not decide.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        let reign = self.office.reign.borrow();
        reign.iter().flat_map(|inner| inner.events.borrow().iter().cloned().collect::<Vec<_>>()).collect()
    }

    /// What the servers did in the last hour, as far as it was told while it decides.
    #[must_use]
    pub fn load(&self, request: &LoadGet) -> LoadGetReply {
        match &*self.office.reign.borrow() {
            Some(inner) => inner.load(request),
            None => LoadBook::new(self.office.rpc.locality().now()).get(
                self.office.rpc.locality().now(),
                request,
                |_| 0,
            ),
        }
    }

    /// Number and text of the cluster file that is in force, its credential left out; `None` if control was started without one, or does not
    /// decide.
    #[must_use]
    pub fn cluster_text(&self) -> Option<(u64, Rc<str>)> {
        let reign = self.office.reign.borrow();
        let inner = reign.as_ref()?;
        let durable = inner.published.borrow().version;
        let core = inner.core.borrow();
        let kept = core.transactions()?.kept().iter().rfind(|kept| kept.record.version <= durable)?;
        Some((kept.record.number, Rc::clone(&kept.text)))
    }

    /// Why the store takes no more changes, or a lead cannot be taken up, if so.
    #[must_use]
    pub fn store_failure(&self) -> Option<String> {
        let reign = self.office.reign.borrow();
        let of_reign = reign.as_ref().and_then(|inner| inner.store_failed.borrow().clone());
        let of_member = || self.office.member.as_ref().and_then(|member| member.failure());
        of_reign.or_else(of_member).or_else(|| self.office.trouble.borrow().clone())
    }

    /// The rpc machine, for its statistics.
    #[must_use]
    pub fn rpc(&self) -> &RpcMachine {
        &self.office.rpc
    }

    /// Waits until somebody sent a `Shutdown` fop; then call [`Control::stop`].
    pub async fn shutdown_requested(&self) {
        while !self.office.shutdown.get() {
            self.office.shutdown_rung.notified().await;
        }
    }

    /// Hands the lead over if it has it, finishes what runs within `RpcConfig::drain_within` and closes the store. Errors: the store's last checkpoint failed, or
    /// requests still ran when their time was over; nothing acknowledged is lost.
    pub async fn stop(mut self) -> Result<(), ControlError> {
        self.office.shut_down();
        if let Some(member) = &self.office.member {
            member.hand_over(self.office.rpc.locality().now() + HAND_OVER_MAX).await;
        }
        let drained = self.office.rpc.drain().await;
        self.end();
        self.office.domain.clone().close().await.map_err(ControlError::Store)?;
        drained.map_err(ControlError::Undrained)
    }

    fn end(&mut self) {
        self.tasks.drain(..).for_each(Task::cancel);
        self.office.reign_tasks.borrow_mut().drain(..).for_each(Task::cancel);
        self.office.handing_over.take().into_iter().for_each(Task::cancel);
        if let Some(member) = &self.office.member {
            member.stop();
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.end();
    }
}

/// Makes a blank device, or the store of a daemon that was alone, that of member `number` of a cluster whose first members are `founders`.
///
/// Errors: it is a store of several already, of another cluster, or the device fails.
pub async fn found_store(
    locality: &LocalityHandle,
    store: Box<dyn Backend>,
    (number, cluster): (u64, u64),
    founders: &[u64],
) -> Result<(), ControlError> {
    let domain = open_domain(locality, store, cluster).await?;
    let outcome = match Journal::owner(&domain)? {
        Some(_) => Err(ControlError::Founded { number }),
        None => Journal::found(&domain, (number, cluster), founders).await,
    };
    domain.close().await.map_err(ControlError::Store)?;
    outcome
}

/// The durable log of a daemon of several; `None` for one alone. Errors: the store is another one's, or not what it should be.
async fn open_journal(
    domain: &Domain,
    cluster: u64,
    member: Option<&MemberConfig>,
    bug: Option<Bug>,
) -> Result<Option<Journal>, ControlError> {
    let owner = Journal::owner(domain)?;
    let Some(MemberConfig { number, members, first_start }) = member else {
        return match owner {
            None => Ok(None),
            Some((found, _)) => Err(ControlError::NotAlone { found }),
        };
    };
    let number = *number;
    match (owner, first_start) {
        (Some(owner), _) if owner != (number, cluster) => {
            Err(ControlError::OtherMember { number, found: owner.0, cluster: owner.1 })
        }
        (Some(_), Some(_)) => Err(ControlError::Founded { number }),
        (None, None) => Err(ControlError::NotFounded { number }),
        (Some(_), None) => Journal::open(domain, number, bug).map(Some),
        (None, Some(first_start)) => {
            let founders: Vec<u64> = match first_start {
                FirstStart::Found => members.keys().copied().collect(),
                FirstStart::Join => Vec::new(),
            };
            Journal::found(domain, (number, cluster), &founders).await?;
            Journal::open(domain, number, bug).map(Some)
        }
    }
}

/// What a reign begins with: the store's state, moved to where the cluster file says, and durable.
struct Begun {
    store: Store,
    stored: Stored,
    configuration: Configuration,
    bytes: ConfBytes,
    transactions: Option<Transactions>,
}

async fn begin(
    log: Rc<dyn ReplicatedLog>,
    given: &Configuration,
    file: Option<&OperatorFile>,
    endpoint: Endpoint,
) -> Result<Begun, ControlError> {
    let is_shared = log.is_shared();
    let (store, stored) = Store::open(log)?;
    // Of several daemons each has a file beside it, and nobody knows which is the newest: what was applied counts.
    let in_force = stored.as_ref().filter(|_| is_shared).and_then(|stored| {
        let (kept, _) = stored.transactions.as_ref()?;
        kept.back().map(|last| last.text.to_string())
    });
    let file = file.map(|file| OperatorFile {
        text: in_force.unwrap_or_else(|| file.text.clone()),
        credential: file.credential,
        unix_s: file.unix_s,
    });
    let (stored_configuration, stored_transactions, stored) = match stored {
        Some(mut stored) => {
            let (configuration, transactions) = (stored.configuration.take(), stored.transactions.take());
            (configuration, transactions, stored)
        }
        None => (None, None, Stored::default()),
    };
    let Recovered { configuration, transactions, changed } =
        recover(stored_configuration, stored_transactions, given, file.as_ref(), endpoint)?;
    let bytes = ConfBytes::of(&configuration).map_err(ControlError::Configuration)?;
    if changed {
        store.save(Some((&configuration, &bytes)), transactions.as_ref(), &Changes::default()).await?;
    }
    Ok(Begun { store, stored, configuration, bytes, transactions })
}

impl Office {
    fn members(&self) -> MembersReply {
        match &self.member {
            Some(member) => member.status(),
            None => MembersReply {
                own: 0,
                term: 0,
                leader: 0,
                committed: 0,
                applied: 0,
                last: 0,
                members: Vec::new(),
            },
        }
    }

    /// A part of a backup: of one that is made now, or of the last one that was.
    fn backup(&self, inner: &Inner, request: &BackupGet) -> Result<BackupReply, FopError> {
        let bad = |reason: String| FopError::BadRequest { reason };
        let now = self.rpc.locality().now();
        let mut kept = self.copy.borrow_mut();
        if request.copy == 0 {
            let copy = store::copy(inner.store.log()).map_err(|error| bad(error.to_string()))?;
            let backup = Backup::new(self.configuration.cluster, inner.unix_s(now), copy);
            *kept = Some((self.rpc.locality().random_u64() | 1, backup.to_bytes()));
        }
        let Some((copy, bytes)) = kept.as_ref().filter(|(copy, _)| [0, *copy].contains(&request.copy)) else {
            return Err(bad("another backup began since: begin again".to_owned()));
        };
        let from = usize::try_from(request.offset).unwrap_or(usize::MAX).min(bytes.len());
        let end = from.saturating_add(CLUSTER_TEXT_PART_BYTES).min(bytes.len());
        let reply =
            BackupReply { copy: *copy, total_bytes: wide(bytes.len()), part: bytes[from..end].to_vec() };
        if end == bytes.len() {
            *kept = None;
        }
        Ok(reply)
    }

    /// A member comes or goes. Asked again, it looks what became of it.
    fn change(self: &Rc<Office>, request: &MemberChange) -> Result<MemberChangeReply, FopError> {
        let refuse = |reason: String| Err(FopError::NotPermitted { reason });
        let MemberChange { number, adds } = *request;
        let Some(member) = &self.member else {
            return refuse(
                "this control daemon is alone by its cluster file: one of several is started with [[control.member]] sections".to_owned(),
            );
        };
        let status = member.status();
        let found = status.members.iter().find(|one| one.number == number);
        let is_voter = found.is_some_and(|one| one.is_voter);
        let voters = status.members.iter().filter(|one| one.is_voter).count();
        if adds && !is_voter && !member.is_named(number) {
            return refuse(format!(
                "control daemon {number} is not in the cluster file in force: add its [[control.member]] section with `clovis conf apply` first"
            ));
        }
        if !adds && is_voter && voters == 1 {
            return refuse(format!(
                "control daemon {number} is the last one: nobody would be left to decide"
            ));
        }
        // A change counts once it is on a majority, which `committed` shows: the library takes no second one before.
        let is_done = if adds { is_voter } else { found.is_none() } && member.is_settled();
        if !is_done && !adds && number == member.number() {
            // Whoever leads then is asked again, and takes it out.
            if self.handing_over.borrow().is_none() {
                let (office, member) = (Rc::clone(self), Rc::clone(member));
                let task = self.rpc.locality().spawn("control-hand-over", async move {
                    member.hand_over(Instant::NEVER).await;
                    drop(office.handing_over.take());
                });
                *self.handing_over.borrow_mut() = Some(task);
            }
        } else if !is_done {
            member.wish_change(number, adds);
        }
        Ok(MemberChangeReply { is_done })
    }

    /// From now on nobody waits for anything.
    fn shut_down(&self) {
        self.shutdown.set(true);
        if let Some(inner) = &*self.reign.borrow() {
            inner.shut_down();
        }
    }

    /// Decides from now on. `epoch`: of this reign.
    fn reign(&self, begun: Begun, epoch: u64) {
        let Begun { store, stored, configuration, bytes, transactions } = begun;
        let (rpc, lease) = (self.rpc.clone(), self.lease);
        let locality = rpc.locality().clone();
        let now = locality.now();
        let process_states = stored.process_states();
        let loans = LoanTable::new(now, lease, stored.borrowers, stored.loans, stored.next_fid);
        let mut locks = LockTable::new(now, lease, stored.grants, stored.fences, stored.lock_numbers);
        locks.adopt_tickets(loans.tickets());
        rpc.config_version().set(configuration.version);
        let inner = Rc::new(Inner {
            epoch,
            store,
            bug: self.bug,
            core: RefCell::new(
                ControlCore::new(now, configuration.clone(), lease)
                    .with_process_states(process_states)
                    .with_transactions(transactions)
                    .with_repairs(stored.repairs),
            ),
            repairs_stored: Cell::new(0),
            locks: RefCell::new(locks),
            locks_stored: Cell::new(0),
            locks_rung: Notify::new(),
            lock_waits: Cell::new(0),
            watches: RefCell::new(WatchTable::new(now, (rpc.endpoint(), epoch), stored.watches)),
            watches_stored: Cell::new(0),
            load: RefCell::new(LoadBook::new(now)),
            watches_rung: Notify::new(),
            watch_waits: Cell::new(0),
            loans: RefCell::new(loans),
            ending_moves: RefCell::default(),
            loans_stored: Cell::new(0),
            loans_rung: Notify::new(),
            rm_waits: Cell::new(0),
            lease,
            event_waits: Cell::new(0),
            published: RefCell::new(Rc::new(configuration)),
            book: RefCell::new(ConfBook::new(bytes)),
            upload: RefCell::default(),
            store_failed: RefCell::new(None),
            dirty: Notify::new(),
            settled: Notify::new(),
            events: RefCell::new(stored.events),
            started: self.started,
            shutdown: Cell::new(self.shutdown.get()),
            rpc,
        });
        *self.reign_tasks.borrow_mut() = vec![
            locality.spawn("control-store", write_changes(Rc::clone(&inner))),
            locality.spawn("control-leases", run_leases(Rc::clone(&inner), lease)),
            locality.spawn("control-locks", lock_service::run(Rc::clone(&inner))),
            locality.spawn("control-watches", watch_service::run(Rc::clone(&inner))),
            locality.spawn("control-loans", rm_service::run(Rc::clone(&inner))),
        ];
        *self.reign.borrow_mut() = Some(inner);
    }

    /// Decides no more. Whoever waits is told to ask who leads.
    fn abdicate(&self) {
        self.reign_tasks.borrow_mut().drain(..).for_each(Task::cancel);
        if let Some(inner) = self.reign.take() {
            *self.published.borrow_mut() = Rc::clone(&inner.published.borrow());
            *inner.store_failed.borrow_mut() = Some("another control daemon leads".to_owned());
            inner.shut_down();
        }
    }

    fn not_leader(&self) -> FopError {
        FopError::NotLeader { leader: self.member.as_ref().and_then(|member| member.other_leader()) }
    }

    fn is_reign(&self, inner: &Rc<Inner>) -> bool {
        self.reign.borrow().as_ref().is_some_and(|reign| Rc::ptr_eq(reign, inner))
    }

    /// The answer of a reign, if nobody else can have led when it was made.
    async fn vouch<T>(&self, inner: &Rc<Inner>, answer: Result<T, FopError>) -> Result<T, FopError> {
        let Some(confirming) = inner.store.confirm() else { return answer };
        if self.is_reign(inner) && confirming.await.is_ok() && self.is_reign(inner) {
            answer
        } else {
            Err(self.not_leader())
        }
    }
}

/// Takes up the lead when this member has it, and gives it up when it has not. Ends with the daemon.
async fn follow_the_lead(office: Rc<Office>, member: Rc<Member>) {
    let locality = office.rpc.locality().clone();
    let mut reigns = 0u64;
    loop {
        let Some(term) = member.reigns() else {
            member.changed.notified().await;
            continue;
        };
        let log: Rc<dyn ReplicatedLog> = Rc::new(Rc::clone(&member));
        let endpoint = office.rpc.endpoint();
        let beginning = async {
            if office.bug != Some(Bug::ReignWithoutLine) {
                Store::draw_a_line(&log).await?;
            }
            begin(log, &office.configuration, office.file.as_ref(), endpoint).await
        };
        // What a try that took too long has put into the log stands before the line of the next one.
        let begun = locality.timeout_at(locality.now() + 2 * SILENCE_MAX, beginning).await;
        match begun {
            Ok(Ok(begun)) if member.reigns() == Some(term) => {
                reigns += 1;
                *office.trouble.borrow_mut() = None;
                // Differs from that of every other reign of this process, and as epochs do from those of others.
                office.reign(begun, office.epoch.wrapping_add(reigns << 32));
                while member.reigns() == Some(term) {
                    member.changed.notified().await;
                }
                office.abdicate();
            }
            Ok(Ok(_) | Err(ControlError::NotLeading)) | Err(_) => locality.sleep(TICK).await,
            Ok(Err(error)) => {
                // The others cannot do it better: it is the same state. Looked at again, as a new version of the file may mend it.
                *office.trouble.borrow_mut() = Some(error.to_string());
                locality.sleep(SILENCE_MAX).await;
            }
        }
    }
}

struct Recovered {
    configuration: Configuration,
    transactions: Option<Transactions>,
    /// Something is not in the store yet.
    changed: bool,
}

/// What the daemon starts with: the store's state, moved to where the cluster file says.
fn recover(
    stored: Option<Configuration>,
    stored_transactions: Option<(VecDeque<Kept>, u64)>,
    given: &Configuration,
    file: Option<&OperatorFile>,
    endpoint: Endpoint,
) -> Result<Recovered, ControlError> {
    let version = stored.as_ref().map_or(given.version, |stored| stored.version);
    let mut given = given.clone();
    let mut changed = false;
    let transactions = match file {
        None => None,
        Some(OperatorFile { text, credential, unix_s }) => {
            let reason = Reason { by: endpoint, unix_s: *unix_s, note: String::new() };
            let (transactions, new) =
                Transactions::start(text, *credential, stored_transactions, version, reason)?;
            changed = new;
            given = transactions.file().initial_configuration();
            // What counts is where it listens, whatever an applied file says of its next start.
            given.control = endpoint;
            Some(transactions)
        }
    };
    let mut configuration = match stored.clone() {
        Some(stored) => reconcile(stored, &given)?,
        None => given,
    };
    if let Some(transactions) = &transactions {
        configuration.version = configuration.version.max(transactions.in_force().version);
    }
    changed |= stored.as_ref() != Some(&configuration);
    Ok(Recovered { configuration, transactions, changed })
}

fn refused(refusal: Refusal) -> FopError {
    FopError::NotPermitted { reason: refusal.to_string() }
}

pub(crate) fn not_permitted(refusal: &ApplyRefusal) -> FopError {
    FopError::NotPermitted { reason: refusal.to_string() }
}

impl Inner {
    fn serve_all(office: &Rc<Office>) {
        let inner = office;
        serve(
            inner,
            |inner: Rc<Inner>, _fom, request: Register| async move { inner.register(request).await },
        );
        serve(inner, |inner: Rc<Inner>, fom: Fom, request: Heartbeat| async move {
            inner.heartbeat(&fom, request).await
        });
        serve(inner, |inner: Rc<Inner>, _fom, request: DeviceCommand| async move {
            inner.device_command(request).await
        });
        serve(inner, |inner: Rc<Inner>, fom: Fom, request: DeviceReport| async move {
            if request.evidence == DeviceEvidence::Operator {
                fom.require(Right::Administer)?;
            }
            inner.device_report((fom.peer().endpoint, fom.config_version()), request).await
        });
        serve(inner, |inner: Rc<Inner>, _fom, request: ConfText| async move { inner.conf_text(&request) });
        serve(inner, |inner: Rc<Inner>, _fom, _request: ConfHistory| async move { inner.conf_history() });
        serve(inner, |inner: Rc<Inner>, fom: Fom, request: EventsGet| async move {
            Ok(inner.events_get(&fom, &request).await)
        });
        serve(inner, |inner: Rc<Inner>, _fom, request: LoadReport| async move {
            inner.note_load(&request);
            Ok(LoadReportReply)
        });
        serve(inner, |inner: Rc<Inner>, _fom, request: RepairTurn| async move {
            inner.repair_turn(&request).await
        });
        serve(inner, |inner: Rc<Inner>, _fom, request: RepairGet| async move { Ok(inner.repairs(&request)) });
        serve(inner, |inner: Rc<Inner>, _fom, request: LoadGet| async move { Ok(inner.load(&request)) });
        let weak = Rc::downgrade(office);
        serve(inner, move |_inner: Rc<Inner>, _fom, request: MemberChange| {
            let answer = weak.upgrade().map_or_else(|| Err(stopped()), |office| office.change(&request));
            std::future::ready(answer)
        });
        let weak = Rc::downgrade(office);
        serve(inner, move |inner: Rc<Inner>, _fom, request: BackupGet| {
            let answer =
                weak.upgrade().map_or_else(|| Err(stopped()), |office| office.backup(&inner, &request));
            std::future::ready(answer)
        });
        conf_service::serve_all(inner);
        lock_service::serve_all(inner);
        watch_service::serve_all(inner);
        rm_service::serve_all(inner);
        office.rpc.serve_net_faults();
        serve_always(office, |office, request: Ping| {
            Ok(PingReply { payload: request.payload, epoch: office.epoch })
        });
        serve_always(office, |office, _request: ProcessGet| {
            let store = Some(store::space(&office.domain));
            Ok(ProcessGetReply { store, ..office.about.reply(office.epoch) })
        });
        serve_always(office, |office, _request: MembersGet| Ok(office.members()));
        serve_always(office, |office, _request: Shutdown| {
            office.shut_down();
            office.shutdown_rung.notify_waiters();
            Ok(ShutdownReply)
        });
    }

    /// From now on nobody waits for anything.
    fn shut_down(&self) {
        self.shutdown.set(true);
        self.settled.notify_waiters();
        self.locks_rung.notify_waiters();
        self.watches_rung.notify_waiters();
        self.loans_rung.notify_waiters();
    }

    /// The newest durable version of the configuration.
    pub(crate) fn published_version(&self) -> u64 {
        self.published.borrow().version
    }

    /// Nothing that is shown here is not durable yet.
    fn conf_text(&self, request: &ConfText) -> Result<ConfTextReply, FopError> {
        let core = self.core.borrow();
        let transactions = core.transactions().ok_or_else(|| not_permitted(&ApplyRefusal::NoFile))?;
        let durable = self.published.borrow().version;
        let kept = match request.transaction {
            0 => transactions.kept().iter().rfind(|kept| kept.record.version <= durable),
            number => transactions.get(number).filter(|kept| kept.record.version <= durable),
        };
        let Some(kept) = kept else {
            let oldest = transactions.kept().front().map_or(0, |kept| kept.record.number);
            let reason = format!(
                "there is no transaction {}: {oldest} to {} are kept",
                request.transaction,
                transactions.in_force().number
            );
            return Err(FopError::BadRequest { reason });
        };
        let text = kept.text.as_bytes();
        let from = usize::try_from(request.offset).unwrap_or(usize::MAX).min(text.len());
        let end = from.saturating_add(CLUSTER_TEXT_PART_BYTES).min(text.len());
        Ok(ConfTextReply {
            transaction: kept.record.number,
            total_bytes: kept.record.text_bytes,
            part: text[from..end].to_vec(),
        })
    }

    fn conf_history(&self) -> Result<ConfHistoryReply, FopError> {
        let core = self.core.borrow();
        let durable = self.published.borrow().version;
        let transactions = core.transactions().ok_or_else(|| not_permitted(&ApplyRefusal::NoFile))?;
        let newest_first = transactions.kept().iter().rev().map(|kept| &kept.record);
        let transactions = newest_first.filter(|record| record.version <= durable).cloned().collect();
        Ok(ConfHistoryReply { transactions })
    }

    async fn register(&self, request: Register) -> Result<RegisterReply, FopError> {
        let now = self.rpc.locality().now();
        let reply = self.core.borrow_mut().handle_register(now, &request).map_err(refused)?;
        self.settle(reply.version).await?;
        Ok(reply)
    }

    async fn heartbeat(&self, fom: &Fom, request: Heartbeat) -> Result<HeartbeatReply, FopError> {
        let now = self.rpc.locality().now();
        let reply = self.core.borrow_mut().handle_heartbeat(now, &request, fom.config_version());
        if reply.known {
            self.core.borrow_mut().note_server_version(&request, fom.config_version());
        }
        self.settle(reply.version).await?;
        Ok(reply)
    }

    /// What somebody says who is not registered, or not any more, does not count.
    fn note_load(&self, report: &LoadReport) {
        let core = self.core.borrow();
        if core.incarnation(report.process) == Some(report.epoch) {
            let mut load = self.load.borrow_mut();
            load.retain(|process| core.incarnation(process).is_some());
            load.note(self.rpc.locality().now(), report, |at| self.unix_s(at));
        }
    }

    fn load(&self, request: &LoadGet) -> LoadGetReply {
        self.load.borrow_mut().get(self.rpc.locality().now(), request, |at| self.unix_s(at))
    }

    async fn device_report(
        &self,
        reporter: (Endpoint, u64),
        request: DeviceReport,
    ) -> Result<DeviceReportReply, FopError> {
        let now = self.rpc.locality().now();
        let version = self.core.borrow_mut().handle_evidence(now, &request, reporter).map_err(refused)?;
        self.settle(version).await?;
        Ok(DeviceReportReply { version })
    }

    async fn device_command(&self, request: DeviceCommand) -> Result<DeviceCommandReply, FopError> {
        let now = self.rpc.locality().now();
        let reply = self.core.borrow_mut().handle_command(now, &request).map_err(refused)?;
        self.settle_repairs(reply.version).await?;
        Ok(reply)
    }

    async fn repair_turn(&self, request: &RepairTurn) -> Result<RepairTurnReply, FopError> {
        let now = self.rpc.locality().now();
        let reply = self.core.borrow_mut().handle_repair_turn(now, request).map_err(refused)?;
        self.settle_repairs(reply.version).await?;
        Ok(reply)
    }

    fn repairs(&self, request: &RepairGet) -> RepairGetReply {
        self.core.borrow().repair_list(self.rpc.locality().now(), request)
    }

    /// Waits until `version` and every change of repairs up to now are durable. Error: the store failed.
    async fn settle_repairs(&self, version: u64) -> Result<(), FopError> {
        let repairs = self.core.borrow_mut().repairs().serial();
        self.settle_all(Serials { version, repairs, ..Serials::default() }).await
    }

    /// Waits until `version` is durable. Error: the store failed.
    pub(crate) async fn settle(&self, version: u64) -> Result<(), FopError> {
        self.settle_all(Serials { version, ..Serials::default() }).await
    }

    /// Waits until every change of locks up to now is durable. Error: the store failed.
    pub(crate) async fn settle_locks(&self) -> Result<(), FopError> {
        if self.bug == Some(Bug::ToldBeforeDurable) {
            self.dirty.notify_one();
            return Ok(());
        }
        let locks = self.locks.borrow().serial();
        self.settle_all(Serials { locks, ..Serials::default() }).await
    }

    /// Waits until every change of watches up to now is durable. Error: the store failed.
    pub(crate) async fn settle_watches(&self) -> Result<(), FopError> {
        let watches = self.watches.borrow().serial();
        self.settle_all(Serials { watches, ..Serials::default() }).await
    }

    /// Waits until every change of loans, and of the tickets and fences that go with them, is durable. Error: the store failed.
    pub(crate) async fn settle_loans(&self) -> Result<(), FopError> {
        let (loans, locks) = (self.loans.borrow().serial(), self.locks.borrow().serial());
        self.settle_all(Serials { loans, locks, ..Serials::default() }).await
    }

    async fn settle_all(&self, wanted: Serials) -> Result<(), FopError> {
        // An event need not bring a new version; nobody waits for it here, but it is written at once.
        if self.core.borrow().has_changes() {
            self.dirty.notify_one();
        }
        loop {
            let is_durable = self.published.borrow().version >= wanted.version
                && self.locks_stored.get() >= wanted.locks
                && self.watches_stored.get() >= wanted.watches
                && self.loans_stored.get() >= wanted.loans
                && self.repairs_stored.get() >= wanted.repairs;
            if is_durable {
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

    fn publish(&self, next: Option<(Configuration, ConfBytes)>, events: Vec<Event>) {
        if let Some((configuration, bytes)) = next {
            self.rpc.config_version().set(configuration.version);
            *self.published.borrow_mut() = Rc::new(configuration);
            self.book.borrow_mut().publish(bytes);
        }
        let mut kept = self.events.borrow_mut();
        kept.extend(events);
        while kept.len() > EVENTS_KEPT {
            kept.pop_front();
        }
    }

    /// Ends the rebalances that were given up once nobody can be in the middle of moving an object.
    ///
    /// What counts is that it was given up in a version that everybody can hear of: a credit that is lent after that comes with the word of it
    /// (`client::rebalance`). After a restart those that are lent then stand for those of before.
    fn end_moves(&self) {
        let published = Rc::clone(&self.published.borrow());
        let ending = published.pools.moving.iter().filter(|moving| moving.is_ending());
        let ending: BTreeSet<Fid> = ending.map(|moving| moving.pool).collect();
        let mut lent = self.ending_moves.borrow_mut();
        lent.retain(|pool, _| ending.contains(pool));
        if ending.is_empty() {
            return;
        }
        let now: BTreeSet<(BorrowerId, u64)> = self.loans.borrow().exclusive_of_objects().collect();
        for pool in ending {
            let of_before = lent.entry(pool).or_insert_with(|| now.clone());
            of_before.retain(|loan| now.contains(loan));
            let mut core = self.core.borrow_mut();
            // Somebody may have begun it again since.
            let mut moving = core.configuration().pools.moving.iter();
            let is_still_ending = moving.any(|moving| moving.pool == pool && moving.is_ending());
            if of_before.is_empty() && is_still_ending {
                core.end_moves(self.rpc.locality().now(), pool);
            }
        }
    }

    /// The time that people know, in seconds since 1970; 0 if unknown.
    pub(crate) fn unix_s(&self, at: Instant) -> u64 {
        let (started_unix_s, started_at) = self.started;
        match started_unix_s {
            0 => 0,
            started => started + at.since(started_at).as_secs(),
        }
    }

    /// Numbers changes that are about to become durable.
    fn number(&self, changes: &[StateChange]) -> Vec<Event> {
        let first = self.events.borrow().back().map_or(0, |last| last.number) + 1;
        let event = |(number, change): (u64, &StateChange)| Event {
            number,
            version: change.version,
            unix_s: self.unix_s(change.at),
            subject: change.subject,
            cause: change.cause.to_owned(),
            from: change.from.word().to_owned(),
            to: change.to.word().to_owned(),
        };
        (first..).zip(changes).map(event).collect()
    }

    async fn events_get(&self, fom: &Fom, request: &EventsGet) -> EventsReply {
        let locality = self.rpc.locality().clone();
        let wait = Duration::from_millis(u64::from(request.wait_ms.min(EVENTS_WAIT_MS_MAX)));
        let until = (locality.now() + wait).min(fom.deadline());
        let mut hold = None;
        let newest = || self.events.borrow().back().map_or(0, |last| last.number);
        let waits = Waits::begin(&self.event_waits, EVENTS_WAITS_MAX);
        // A daemon that is to stop does not wait for those who wait for it.
        while waits.is_some() && newest() <= request.after && locality.now() < until && !self.shutdown.get() {
            hold.get_or_insert_with(|| fom.hold(until));
            // Either way it is looked again: something became durable, or time is up.
            let _rung = locality.timeout_at(until, self.settled.notified()).await;
        }
        let events = self.events.borrow();
        let wanted = events.iter().filter(|event| event.number > request.after);
        EventsReply {
            oldest: events.front().map_or(0, |first| first.number),
            newest: newest(),
            events: wanted.take(EVENTS_PAGE).cloned().collect(),
        }
    }
}

/// What a request waits for in the store: the configuration's version, and serials of changes.
#[derive(Clone, Copy, Default)]
struct Serials {
    version: u64,
    locks: u64,
    watches: u64,
    loans: u64,
    repairs: u64,
}

/// One request that waits; over when it is dropped, also with its fom.
pub(crate) struct Waits<'a>(&'a Cell<usize>);

impl Waits<'_> {
    /// A place among at most `max`; `None` if there is none: heartbeats need foms too.
    pub(crate) fn begin(waits: &Cell<usize>, max: usize) -> Option<Waits<'_>> {
        if waits.get() >= max {
            return None;
        }
        waits.set(waits.get() + 1);
        Some(Waits(waits))
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Serves one fop with a handler that sees the reign, as long as there is one.
pub(crate) fn serve<F, Handler, Answer>(office: &Rc<Office>, handler: Handler)
where
    F: fops::Fop,
    Handler: Fn(Rc<Inner>, Fom, F) -> Answer + 'static,
    Answer: Future<Output = Result<F::Reply, FopError>> + 'static,
{
    // Weak: the machine owns its handlers, and the daemon owns the machine.
    let weak = Rc::downgrade(office);
    office.rpc.serve(move |fom: Fom, request: F| {
        let Some(office) = weak.upgrade() else {
            return Either::Right(std::future::ready(Err(stopped())));
        };
        let Some(inner) = office.reign.borrow().clone() else {
            return Either::Right(std::future::ready(Err(office.not_leader())));
        };
        let answer = handler(Rc::clone(&inner), fom, request);
        Either::Left(async move { office.vouch(&inner, answer.await).await })
    });
}

/// Serves one fop that each daemon answers for itself, whether it leads or not.
fn serve_always<F: fops::Fop>(
    office: &Rc<Office>,
    handler: impl Fn(&Rc<Office>, F) -> Result<F::Reply, FopError> + 'static,
) {
    let weak = Rc::downgrade(office);
    office.rpc.serve(move |_fom: Fom, request: F| {
        let answer = weak.upgrade().map_or_else(|| Err(stopped()), |office| handler(&office, request));
        std::future::ready(answer)
    });
}

fn stopped() -> FopError {
    FopError::NotServing { reason: "control is stopped".to_owned() }
}

/// Writes each new version to the store, then publishes it. Ends when the store fails.
async fn write_changes(inner: Rc<Inner>) {
    // Something may have been left to end.
    inner.dirty.notify_one();
    loop {
        inner.dirty.notified().await;
        loop {
            inner.end_moves();
            // Most changes are of loans and locks, and the configuration of a large cluster is long.
            let (next, transactions) = {
                let core = inner.core.borrow();
                let is_new = core.configuration().version != inner.published.borrow().version;
                let next = is_new.then(|| core.configuration().clone());
                (next, if is_new { core.transactions().cloned() } else { None })
            };
            let bytes = match next.as_ref().map(ConfBytes::of).transpose() {
                Ok(bytes) => bytes,
                Err(error) => {
                    *inner.store_failed.borrow_mut() = Some(error.to_string());
                    inner.settled.notify_waiters();
                    return;
                }
            };
            let changes = inner.core.borrow_mut().take_changes();
            let locks_serial = inner.locks.borrow().serial();
            let locks = inner.locks.borrow_mut().take_changes();
            let lock_news = inner.locks.borrow_mut().take_news();
            let watches_serial = inner.watches.borrow().serial();
            let watches = inner.watches.borrow_mut().take_changes();
            let (loans_serial, loans) = inner.loans.borrow_mut().take_changes(LOAN_CHANGES_AT_ONCE);
            let (repairs_serial, repairs) = {
                let mut core = inner.core.borrow_mut();
                (core.repairs().serial(), core.repairs().take_changes())
            };
            let nothing_new = changes.is_empty()
                && locks.0.is_empty()
                && watches.is_empty()
                && loans.is_empty()
                && repairs.is_empty();
            let is_same_version = next.is_none();
            if is_same_version && nothing_new {
                break;
            }
            let events = inner.number(&changes);
            let changes = Changes { events, locks, watches, loans, repairs };
            let configuration = next.as_ref().zip(bytes.as_ref());
            match inner.store.save(configuration, transactions.as_ref(), &changes).await {
                Ok(()) => {
                    inner.publish(next.zip(bytes), changes.events);
                    inner.locks_stored.set(locks_serial);
                    inner.watches_stored.set(watches_serial);
                    inner.loans_stored.set(loans_serial);
                    inner.repairs_stored.set(repairs_serial);
                    if !is_same_version {
                        // Who reads the configuration and waits to be told.
                        inner.loans_rung.notify_waiters();
                    }
                    let version = inner.published.borrow().version;
                    inner.tell_news(&lock_news, (!is_same_version).then_some(version));
                }
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
