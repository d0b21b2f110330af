//! A cached copy of the configuration, and whom to ask for a newer one.
//!
//! **Invariant**: the version in the cache never goes back. **Invariant**: the version that rides on this process's requests
//! (`RpcMachine::config_version`) is the cache's. One fetch at a time: who asks while one runs waits for it and takes its result.
//! A fetch asks for what changed since the version in the cache, and for everything if there is none or control does not know that any more
//! (docs/configuration.md#how-it-travels). A control daemon of a version that knows no parts is asked for everything in one message.
//! Left over when control is away: the cache stays as it is, and each error names the endpoint that did not answer.
//! Thread: the locality of its `RpcMachine`. Start at [`ConfClient::fetch`].

use std::cell::RefCell;
use std::rc::Rc;

use base::{Blame, Blamed, Endpoint, Fid, Instant};
use fops::FopError;
use fops::conf::{ClusterStatusReply, ConfGet, DeviceEvidence, DeviceReport};
use fops::conf_sync::{ConfSplice, ConfSync, ConfSyncReply, StatusGet, StatusGetReply};
use fops::repair::{RepairTurn, RepairTurnReply};
use rpc::{Bulk, CallError, CallOptions, RpcMachine};
use runtime::sync::{Notify, Semaphore};

use crate::conf_difference;
use crate::conf_parts::{Parts, Whole};
use crate::configuration::{CONFIGURATION_FORMAT, Configuration, ConfigurationError};
use crate::limits::{CONF_SYNC_MESSAGES_MAX, CONFIGURATION_BYTES_MAX};

/// Why control did not help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfError {
    /// No answer.
    #[error(
        "the control daemon at {control} does not answer: {source}; check that it runs and that the endpoint is right"
    )]
    Unreachable {
        /// Whom we asked.
        control: Endpoint,
        /// What the call said.
        source: CallError,
    },
    /// The answer was no.
    #[error("the control daemon at {control} refuses: {source}")]
    Refused {
        /// Whom we asked.
        control: Endpoint,
        /// Its reason.
        source: FopError,
    },
    /// The answer makes no sense.
    #[error("the control daemon at {control} sent a configuration that cannot be used: {source}")]
    Malformed {
        /// Whom we asked.
        control: Endpoint,
        /// What is wrong with it.
        source: ConfigurationError,
    },
    /// Its configuration is older than one seen before.
    #[error(
        "the control daemon at {control} has configuration {found}, older than {known} seen before: its store was lost or it is another daemon"
    )]
    Older {
        /// Whom we asked.
        control: Endpoint,
        /// Version it has.
        found: u64,
        /// Version known here, or shown by somebody.
        known: u64,
    },
    /// Another cluster than the one known.
    #[error("the control daemon at {control} serves cluster {found:#x}, not {known:#x}")]
    OtherCluster {
        /// Whom we asked.
        control: Endpoint,
        /// Its cluster.
        found: u64,
        /// Ours.
        known: u64,
    },
}

impl Blamed for ConfError {
    fn blame(&self) -> Blame {
        match self {
            ConfError::Unreachable { source, .. } => source.blame(),
            ConfError::Refused { source, .. } => source.blame(),
            ConfError::Malformed { .. } => Blame::Peer,
            ConfError::Older { .. } | ConfError::OtherCluster { .. } => Blame::Environment,
        }
    }

    fn may_retry(&self) -> bool {
        match self {
            // It will not have us: so it says again.
            ConfError::Unreachable { source: CallError::Net { error, .. }, .. } => error.may_resend(),
            // Whatever is asked of control may be asked again: its fops are idempotent.
            ConfError::Unreachable { source, .. } => source.blame() == Blame::Environment,
            ConfError::Refused { source, .. } => source.may_retry(),
            _ => false,
        }
    }
}

impl ConfError {
    pub(crate) fn of_call(control: Endpoint, error: CallError) -> ConfError {
        match error {
            CallError::Fop(source) => ConfError::Refused { control, source },
            source => ConfError::Unreachable { control, source },
        }
    }
}

struct Inner {
    rpc: RpcMachine,
    control: Endpoint,
    current: RefCell<Option<Rc<Configuration>>>,
    fetching: Semaphore,
    /// Rings when a newer version came.
    changed: Notify,
}

/// The cached configuration. Clones share the cache.
#[derive(Clone)]
pub struct ConfClient {
    inner: Rc<Inner>,
}

impl ConfClient {
    /// A client of the control daemon at `control`; nothing is sent yet.
    #[must_use]
    pub fn connect(rpc: &RpcMachine, control: Endpoint) -> ConfClient {
        let inner = Inner {
            rpc: rpc.clone(),
            control,
            current: RefCell::new(None),
            fetching: Semaphore::new(1),
            changed: Notify::new(),
        };
        ConfClient { inner: Rc::new(inner) }
    }

    /// Where control is.
    #[must_use]
    pub fn control(&self) -> Endpoint {
        self.inner.control
    }

    /// The configuration as last fetched.
    #[must_use]
    pub fn current(&self) -> Option<Rc<Configuration>> {
        self.inner.current.borrow().clone()
    }

    /// Version of [`ConfClient::current`], 0 for none.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.inner.current.borrow().as_ref().map_or(0, |configuration| configuration.version)
    }

    /// Waits until the cache has a version above `version`. Dropped, it leaves nothing behind.
    pub async fn newer_than(&self, version: u64) {
        while self.version() <= version {
            self.inner.changed.notified().await;
        }
    }

    /// Asks control for its configuration; the cache answers if it is the newest.
    ///
    /// Errors: see [`ConfError`]; the cache stays as it is.
    pub async fn fetch(&self, deadline: Instant) -> Result<Rc<Configuration>, ConfError> {
        let _one_at_a_time = self.inner.fetching.acquire(1).await;
        self.fetch_now(deadline).await
    }

    /// The configuration of version `seen_version` or later: from the cache, or fetched.
    ///
    /// Errors: those of [`ConfClient::fetch`], and [`ConfError::Older`] if control does not know of that version.
    pub async fn refresh_if_newer(
        &self,
        seen_version: u64,
        deadline: Instant,
    ) -> Result<Rc<Configuration>, ConfError> {
        if let Some(current) = self.at_least(seen_version) {
            return Ok(current);
        }
        let _one_at_a_time = self.inner.fetching.acquire(1).await;
        // Somebody fetched while we waited.
        if let Some(current) = self.at_least(seen_version) {
            return Ok(current);
        }
        let fetched = self.fetch_now(deadline).await?;
        if fetched.version < seen_version {
            let control = self.inner.control;
            return Err(ConfError::Older { control, found: fetched.version, known: seen_version });
        }
        Ok(fetched)
    }

    /// Tells control what was seen of a device. Answer: the version in force after it; the cache is not refreshed.
    pub async fn report_device(
        &self,
        device: Fid,
        evidence: DeviceEvidence,
        deadline: Instant,
    ) -> Result<u64, ConfError> {
        let reply = self.call(&DeviceReport { device, evidence }, deadline).await?;
        Ok(reply.version)
    }

    /// Processes and devices as control sees them, fetched by pages.
    pub async fn cluster_status(&self, deadline: Instant) -> Result<ClusterStatusReply, ConfError> {
        let mut status = StatusPages::default();
        while let Some(ask) = status.ask() {
            let page = self.call(&ask, deadline).await?;
            status.take(page);
        }
        Ok(status.seen)
    }

    /// A server tells how far the copy to a device of its own is, and asks what to do.
    pub async fn repair_turn(
        &self,
        turn: &RepairTurn,
        deadline: Instant,
    ) -> Result<RepairTurnReply, ConfError> {
        self.call(turn, deadline).await
    }

    pub(crate) async fn call<F: fops::Fop>(&self, fop: &F, deadline: Instant) -> Result<F::Reply, ConfError> {
        let control = self.inner.control;
        let options = CallOptions::until(deadline);
        match self.inner.rpc.call(control, fop, Bulk::none(), options).await {
            Ok(answer) => Ok(answer.reply),
            Err(error) => Err(ConfError::of_call(control, error)),
        }
    }

    pub(crate) fn rpc(&self) -> &RpcMachine {
        &self.inner.rpc
    }

    fn at_least(&self, version: u64) -> Option<Rc<Configuration>> {
        self.current().filter(|configuration| configuration.version >= version)
    }

    async fn fetch_now(&self, deadline: Instant) -> Result<Rc<Configuration>, ConfError> {
        match self.sync(deadline).await {
            // A control daemon of an earlier version does not serve that.
            Err(ConfError::Refused { source: FopError::BadRequest { .. }, .. }) => {
                self.fetch_in_one(deadline).await
            }
            synced => synced,
        }
    }

    /// What changed since the version in the cache, or everything in parts, until it is the newest.
    async fn sync(&self, deadline: Instant) -> Result<Rc<Configuration>, ConfError> {
        let control = self.inner.control;
        let malformed = |source: ConfigurationError| ConfError::Malformed { control, source };
        let mut parts: Option<Parts> = None;
        // Changes that do not fit what is here: everything is fetched then.
        let mut misfit = None;
        for _ in 0..CONF_SYNC_MESSAGES_MAX {
            let known = self.current();
            let known_version = known.as_ref().map_or(0, |known| known.version);
            let ask = ConfSync {
                format: CONFIGURATION_FORMAT,
                known_version: if misfit.is_some() { 0 } else { known_version },
                version: parts.as_ref().map_or(0, Parts::version),
                offset: parts.as_ref().map_or(0, Parts::offset),
            };
            let (fetched, newest) = match (self.call(&ask, deadline).await?, known) {
                (ConfSyncReply::Current { version }, Some(known)) if version == known.version => {
                    return Ok(known);
                }
                (ConfSyncReply::Current { version: found }, _) => {
                    return Err(ConfError::Older { control, found, known: known_version });
                }
                (ConfSyncReply::Changes { version, newest, checksum, steps }, Some(known)) => {
                    if version <= known.version {
                        return Err(ConfError::Older { control, found: version, known: known.version });
                    }
                    match changed(&known, &steps, (version, checksum)) {
                        Ok(fetched) => (fetched, newest),
                        // Another store with the same numbers, perhaps. Once: then it is control that is wrong.
                        Err(problem) if misfit.is_none() => {
                            (misfit, parts) = (Some(problem), None);
                            continue;
                        }
                        Err(problem) => return Err(malformed(problem)),
                    }
                }
                (ConfSyncReply::Changes { version: found, .. }, None) => {
                    return Err(ConfError::Older { control, found, known: 0 });
                }
                (ConfSyncReply::Part { version, newest, total_bytes, checksum, offset, part }, _) => {
                    if version < known_version {
                        return Err(ConfError::Older { control, found: version, known: known_version });
                    }
                    let whole = Whole { version, bytes: total_bytes, checksum };
                    let so_far = parts.take().filter(|parts| parts.version() == version);
                    let mut so_far = match so_far {
                        Some(so_far) => so_far,
                        None => Parts::begin(whole).map_err(|bad| malformed(bad.into()))?,
                    };
                    if !so_far.take(whole, offset, &part).map_err(|bad| malformed(bad.into()))? {
                        parts = Some(so_far);
                        continue;
                    }
                    let bytes = so_far.into_bytes().map_err(|bad| malformed(bad.into()))?;
                    (read(&bytes, version).map_err(malformed)?, newest)
                }
            };
            let version = fetched.version;
            let kept = self.keep(fetched)?;
            if version >= newest {
                return Ok(kept);
            }
        }
        Err(malformed(ConfigurationError::Endless { messages: CONF_SYNC_MESSAGES_MAX }))
    }

    /// Everything in one message, as control daemons of versions before `ConfSync` give it. Errors: those of [`ConfClient::fetch`]; it does not fit.
    #[doc(hidden)]
    pub async fn fetch_in_one(&self, deadline: Instant) -> Result<Rc<Configuration>, ConfError> {
        let control = self.inner.control;
        let known = self.current();
        let known_version = known.as_ref().map_or(0, |configuration| configuration.version);
        let reply = self.call(&ConfGet { known_version }, deadline).await?;
        match (reply.configuration, known) {
            (Some(bytes), _) => {
                let fetched = Configuration::from_bytes(&bytes)
                    .map_err(|source| ConfError::Malformed { control, source })?;
                self.keep(fetched)
            }
            (None, Some(known)) if reply.version == known_version => Ok(known),
            (None, _) => Err(ConfError::Older { control, found: reply.version, known: known_version }),
        }
    }

    /// Puts it into the cache. Errors: older than what is there, or of another cluster.
    fn keep(&self, fetched: Configuration) -> Result<Rc<Configuration>, ConfError> {
        let control = self.inner.control;
        let known_version = self.version();
        if fetched.version < known_version {
            return Err(ConfError::Older { control, found: fetched.version, known: known_version });
        }
        if let Some(known) = self.current()
            && known.cluster != fetched.cluster
        {
            let (found, known) = (fetched.cluster, known.cluster);
            return Err(ConfError::OtherCluster { control, found, known });
        }
        let fetched = Rc::new(fetched);
        self.inner.rpc.config_version().set(fetched.version);
        *self.inner.current.borrow_mut() = Some(Rc::clone(&fetched));
        if fetched.version > known_version {
            self.inner.changed.notify_waiters();
        }
        Ok(fetched)
    }
}

/// Reads a configuration that was announced as this version.
fn read(bytes: &[u8], expected: u64) -> Result<Configuration, ConfigurationError> {
    let fetched = Configuration::from_bytes(bytes)?;
    match fetched.version {
        found if found == expected => Ok(fetched),
        found => Err(ConfigurationError::OtherVersion { expected, found }),
    }
}

/// The known configuration with steps of changes, which have to make the announced version and checksum of it.
pub fn changed(
    known: &Configuration,
    steps: &[Vec<ConfSplice>],
    (version, expected): (u64, u32),
) -> Result<Configuration, ConfigurationError> {
    let mut bytes = known.to_bytes_again()?;
    for step in steps {
        conf_difference::apply(&mut bytes, step, CONFIGURATION_BYTES_MAX)?;
    }
    let found = base::checksum::crc32c(&bytes);
    if found != expected {
        return Err(ConfigurationError::Checksum { version, expected, found });
    }
    read(&bytes, version)
}

/// The status of the cluster, put together of pages.
#[derive(Debug)]
pub struct StatusPages {
    /// What came so far.
    pub seen: ClusterStatusReply,
    totals: Option<(u32, u32)>,
    /// The last page brought nothing: a control daemon that counts otherwise than it tells.
    is_stuck: bool,
}

impl Default for StatusPages {
    fn default() -> StatusPages {
        let seen = ClusterStatusReply { version: 0, processes: Vec::new(), devices: Vec::new() };
        StatusPages { seen, totals: None, is_stuck: false }
    }
}

impl StatusPages {
    fn counts(&self) -> (u32, u32) {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        (count(self.seen.processes.len()), count(self.seen.devices.len()))
    }

    /// The page to ask for next; `None`: all came.
    #[must_use]
    pub fn ask(&self) -> Option<StatusGet> {
        let (processes_from, devices_from) = self.counts();
        let wants = |(processes, devices): (u32, u32)| processes > processes_from || devices > devices_from;
        let is_over = self.is_stuck || self.totals.is_some_and(|totals| !wants(totals));
        (!is_over).then_some(StatusGet { processes_from, devices_from })
    }

    /// A page came. One of a configuration that has others than the pages before begins anew.
    pub fn take(&mut self, page: StatusGetReply) {
        let totals = (page.processes_total, page.devices_total);
        if self.totals.replace(totals).is_some_and(|before| before != totals) {
            self.seen.processes.clear();
            self.seen.devices.clear();
            return;
        }
        self.is_stuck = page.processes.is_empty() && page.devices.is_empty();
        self.seen.version = page.version;
        self.seen.processes.extend(page.processes);
        self.seen.devices.extend(page.devices);
    }
}
