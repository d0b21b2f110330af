//! A client: its transfer machine, its copy of the configuration, and the objects of the cluster by id.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use base::endpoint::TMID_MAX;
use base::{ByteExtent, Endpoint, Fid, ObjectId};
use faces::held_lock::{ask_holder, take_lock};
use faces::rm::HoldError;
use faces::{
    ConfClient, ConfError, GrantedLock, HeldLock, LockError, LockWish, NotifyOutcome, TakeProgress, Watcher,
};
use fops::FopError;
use fops::lock::{LockMode, LockName, OwnerId, Ticket};
use fops::object::{ObjectRecord, OpenMode, generation_of};
use fops::rm::{RmCredit, RmResource};
use rpc::addb::AddbSpace;
use rpc::{CallError, RpcConfig, RpcMachine};
use runtime::{Buffer, LocalityHandle, SharedBuffer};
use verbs_net::{Fabric, NetError, Security, TmConfig, TransferMachine};

use crate::bug::Bug;
use crate::error::ClientError;
use crate::object::{Object, ObjectStat};
use crate::replacement::{Replacement, drop_components};
use crate::store::Store;
use crate::transfer;

/// Upper half of the ids that control hands out. Ids that users choose have another.
pub const ALLOCATED_OBJECTS: u64 = 1 << 55;

/// Pause before a control daemon that does not serve yet, or no more, is asked again.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);

/// How to connect.
#[derive(Clone)]
pub struct ClientConfig {
    /// The client's own endpoint; `None` chooses one on the control daemon's net (docs/wire.md#clients).
    pub local: Option<Endpoint>,
    /// The control daemon.
    pub control: Endpoint,
    /// Further control daemons with the same state, if there are several.
    pub further_controls: Vec<Endpoint>,
    /// How it proves what it is: see [`crate::security_of`].
    pub security: Security,
    /// Incarnation, not 0: unique for each start (`runtime::identity`). Servers take two clients of one endpoint and epoch for one.
    pub epoch: u64,
    /// How long an operation may take before it fails; a quarter of it is the longest wait for one request.
    pub op_timeout: Duration,
    /// Reads fetch parity too and compare it with the data.
    pub read_verify: bool,
}

/// An open endpoint that may not have heard of control yet: its machine lives as long as the locality, so whoever tries again does it here.
#[derive(Clone)]
pub(crate) struct Opened {
    rpc: RpcMachine,
    conf: ConfClient,
}

impl Opened {
    pub(crate) fn new(
        locality: &LocalityHandle,
        fabric: &Fabric,
        config: &ClientConfig,
        rpc_config: RpcConfig,
    ) -> Result<Opened, ClientError> {
        let endpoint = config.local.unwrap_or_else(|| own_endpoint(locality, config.control));
        let version = rpc_config.config_version.clone();
        let tm_config = TmConfig::new(endpoint, false, config.epoch, config.security.clone(), version);
        let machine = TransferMachine::start(locality, fabric, tm_config)
            .map_err(|error| ClientError::Start { endpoint, reason: error.to_string() })?;
        let rpc = RpcMachine::start(locality, machine, rpc_config);
        rpc.set_group(config.control, &config.further_controls);
        let conf = ConfClient::connect(&rpc, config.control);
        Ok(Opened { rpc, conf })
    }

    pub(crate) async fn connect(
        self,
        locality: &LocalityHandle,
        config: ClientConfig,
        bug: Option<Bug>,
    ) -> Result<Client, ClientError> {
        let Opened { rpc, conf } = self;
        let deadline = locality.now() + config.op_timeout;
        let configuration = loop {
            match conf.fetch(deadline).await {
                Ok(configuration) => break configuration,
                // It stops or starts: a rolling upgrade is not to be seen by whoever connects in its midst.
                Err(ConfError::Refused { source: FopError::NotServing { .. }, .. })
                    if locality.now() + CONNECT_PAUSE < deadline =>
                {
                    locality.sleep(CONNECT_PAUSE).await;
                }
                Err(error) => return Err(connect_error(config.control, &error)),
            }
        };
        Ok(Client { store: Rc::new(Store::new(locality.clone(), rpc, conf, configuration, (config, bug))) })
    }
}

/// A connected client. Clones are one client. Thread: one locality.
#[derive(Clone)]
pub struct Client {
    store: Rc<Store>,
}

impl Client {
    /// Opens an endpoint on `fabric` and fetches the configuration.
    ///
    /// Errors: the endpoint cannot be opened; the control daemon does not answer within `op_timeout`, or refuses the credential: both name it.
    pub async fn connect(
        locality: &LocalityHandle,
        fabric: &Fabric,
        config: ClientConfig,
    ) -> Result<Client, ClientError> {
        Client::connect_with(locality, fabric, config, None, RpcConfig::default()).await
    }

    /// As [`Client::connect`], and what its requests do is recorded in `addb`, which may be a file.
    pub async fn connect_recorded(
        locality: &LocalityHandle,
        fabric: &Fabric,
        config: ClientConfig,
        addb: Option<AddbSpace>,
    ) -> Result<Client, ClientError> {
        Client::connect_with(locality, fabric, config, None, RpcConfig { addb, ..RpcConfig::default() }).await
    }

    /// For the simulation only.
    #[doc(hidden)]
    pub async fn connect_simulated(
        locality: &LocalityHandle,
        fabric: &Fabric,
        config: ClientConfig,
        bug: Option<Bug>,
        inline_bytes: Option<usize>,
    ) -> Result<Client, ClientError> {
        let rpc_bug = match bug {
            Some(Bug::Rpc(bug)) => Some(bug),
            _ => None,
        };
        let rpc_config = RpcConfig { bug: rpc_bug, inline_bytes, ..RpcConfig::default() };
        Client::connect_with(locality, fabric, config, bug, rpc_config).await
    }

    async fn connect_with(
        locality: &LocalityHandle,
        fabric: &Fabric,
        config: ClientConfig,
        bug: Option<Bug>,
        rpc_config: RpcConfig,
    ) -> Result<Client, ClientError> {
        Opened::new(locality, fabric, &config, rpc_config)?.connect(locality, config, bug).await
    }

    /// The configuration in use.
    #[must_use]
    pub fn configuration(&self) -> Rc<faces::Configuration> {
        self.store.adopt();
        self.store.configuration()
    }

    /// Asks the control daemon for the configuration now.
    pub async fn refresh_configuration(&self) {
        self.store.fetch().await;
    }

    /// Every change from now on, of this client and its clones, carries `ticket`, that of a lock: once its owner is fenced, all servers refuse
    /// them ([`ClientError`] with `FopError::Fenced`), also those in flight. `None`: changes are made without a lock.
    pub fn write_under(&self, ticket: Option<Ticket>) {
        self.store.ticket.set(ticket);
    }

    /// This client with its new objects in `pool`, in its newest version; those that are there stay where they are. Without it they go to the first pool.
    ///
    /// Errors: [`ClientError::NoPool`]. A pool's fid: `Configuration::pool_named`.
    pub async fn in_pool(&self, pool: Fid) -> Result<Client, ClientError> {
        self.store.refresh().await;
        if self.store.configuration().newest_version(pool).is_none() {
            // It may be newer than what was heard so far.
            self.store.fetch().await;
        }
        match self.store.configuration().newest_version(pool) {
            Some(_) => Ok(Client { store: Rc::new(self.store.in_pool(pool)) }),
            None => Err(ClientError::NoPool { pool }),
        }
    }

    /// This client with an object to itself (`Exclusive`) or beside others that hold it `Shared`: its changes of whatever object are refused by all
    /// servers once the hold was taken away. It lasts until the client that is returned, its clones and objects are dropped, or control could not be
    /// reached for the lease; then nothing more is sent and changes fail with [`crate::Fault::HoldLost`]. Objects that are opened without a hold
    /// are not held up (docs/rm.md).
    ///
    /// Waits up to `wait` for those who hold it, in the order of asking; zero: not at all. Await all writes before dropping it: one that was dropped may
    /// still land. Errors: [`ClientError::Hold`]; its ticket takes the place of [`Client::write_under`]'s, so both at once are refused.
    pub async fn holding(
        &self,
        object: ObjectId,
        mode: LockMode,
        wait: Duration,
    ) -> Result<Client, ClientError> {
        let has_other = self.store.ticket.get().is_some() || self.store.hold().is_some();
        if has_other {
            return Err(ClientError::TwoTickets { object });
        }
        let credit = RmCredit::Whole { mode };
        let hold = self.store.borrower.hold(&RmResource::Object(object.fid()), &credit, wait).await?;
        Ok(Client { store: Rc::new(self.store.under(hold)) })
    }

    /// [`Client::holding`] alone, then [`Client::open`]: the object is this handle's as long as it or a clone of it lives.
    pub async fn open_exclusive(&self, object: ObjectId, wait: Duration) -> Result<Object, ClientError> {
        self.holding(object, LockMode::Exclusive, wait).await?.open(object).await
    }

    /// Whether what this client holds is still held, and whether others wait for it. `None`: it holds nothing. Error: [`ClientError::Hold`].
    pub fn is_wanted(&self) -> Result<Option<bool>, ClientError> {
        let Some(hold) = self.store.hold() else { return Ok(None) };
        hold.check()?;
        Ok(Some(hold.is_wanted()))
    }

    /// An id for a new object that no other client gets, ever: its upper half is [`ALLOCATED_OBJECTS`]. Of a range that is borrowed of control, a message
    /// for a thousand ids. Errors: [`ClientError::Hold`].
    pub async fn new_object_id(&self) -> Result<ObjectId, ClientError> {
        let number = self.store.borrower.next_fid().await?;
        ObjectId::new(ALLOCATED_OBJECTS, number)
            .ok_or(ClientError::Hold(HoldError::Exhausted { resource: RmResource::Fids }))
    }

    /// Gives back everything that this client and its clones borrowed, at once: without it, what a client held when its process ended is free only after
    /// its lease. What is still held is void. Errors: control does not answer.
    pub async fn leave(&self) -> Result<(), ConfError> {
        self.store.borrower.leave(self.store.request_deadline(self.store.deadline())).await
    }

    /// Takes a named lock. Waits for it up to `wait` (zero: not at all), in the order of asking, and asks those who hold it to give it back; `progress`
    /// hears what they say. The lock is the owner's until it is released or broken: keep it with [`Client::keep_lock`] or [`Client::cooperate`]
    /// if its holder's death is to mean something or others are to be heard, and write under its ticket ([`Client::write_under`]). Errors: see [`LockError`].
    pub async fn take_lock(
        &self,
        wish: LockWish,
        wait: Duration,
        progress: impl FnMut(TakeProgress<'_>),
    ) -> Result<GrantedLock, LockError> {
        take_lock(&self.store.conf, wish, (wait, self.control_within()), progress).await
    }

    /// Looks after a lock that was granted, as long as the value lives; nobody can ask for it.
    #[must_use]
    pub fn keep_lock(&self, granted: GrantedLock) -> HeldLock {
        HeldLock::keep(&self.store.conf, granted)
    }

    /// Looks after a lock that was granted, and hears of those who want it or want something done under it: fetch that with [`HeldLock::next`]
    /// (docs/locks.md#cooperation). Errors: control does not answer; the lock is held then.
    pub async fn cooperate(&self, granted: GrantedLock) -> Result<HeldLock, LockError> {
        HeldLock::cooperate(&self.store.conf, granted, self.control_within()).await
    }

    /// Has a request (at most `faces::limits::HOLDER_REQUEST_BYTES_MAX` bytes, any) run by the program that holds a lock cooperatively, under its lock, at
    /// most once, and returns its answer. `owner`: which holder's; `None` if there is one. `within`: at most 25 s. Errors: see [`LockError`]:
    /// [`LockError::NoAnswer`] and [`LockError::Control`] leave open whether it was run.
    pub async fn ask_holder(
        &self,
        lock: &LockName,
        owner: Option<OwnerId>,
        request: &[u8],
        within: Duration,
    ) -> Result<Vec<u8>, LockError> {
        ask_holder(&self.store.conf, lock, owner, request, within).await
    }

    /// How long control may take for an answer.
    fn control_within(&self) -> Duration {
        self.store.deadline().since(self.store.locality.now())
    }

    /// A watcher of its own, without watches yet: [`Watcher::watch`] registers one on the fid of an object. `name`: for people, 1 to 64 bytes;
    /// `lease`: so long notifiers wait for it, and name it as missed, once it is silent (docs/watch.md).
    #[must_use]
    pub fn watcher(&self, name: &str, lease: Duration) -> Watcher {
        Watcher::start(&self.store.conf, name.to_owned(), lease)
    }

    /// Tells everybody who watches `object` something (at most 16 KiB), and waits until all have acknowledged it, or `within`, at most 25 s.
    /// The outcome names those who did not. Errors: control does not answer, or refuses.
    pub async fn notify(
        &self,
        object: ObjectId,
        payload: &[u8],
        within: Duration,
    ) -> Result<NotifyOutcome, ConfError> {
        self.store.conf.notify(object.fid(), payload, within).await
    }

    pub(crate) fn store(&self) -> &Rc<Store> {
        &self.store
    }

    /// The rpc machine, for fops that have no word of their own here (status, faults).
    #[must_use]
    pub fn rpc(&self) -> &RpcMachine {
        &self.store.rpc
    }

    /// The locality that the client lives on.
    #[must_use]
    pub fn locality(&self) -> &LocalityHandle {
        &self.store.locality
    }

    /// The record to make for a new object. Errors: a unit size that is not possible.
    pub(crate) fn wish(
        &self,
        object: ObjectId,
        unit_bytes: Option<u32>,
    ) -> Result<ObjectRecord, ClientError> {
        let version = self.store.version_for_new();
        let unit_bytes = unit_bytes.unwrap_or(version.unit_bytes);
        let (width, devices) = (version.width, version.device_count());
        self.store.layout(object, devices, (width, unit_bytes)).map_err(|error| match error {
            ClientError::BadRecord { unit_bytes, reason, .. } => {
                ClientError::UnitBytes { unit_bytes, reason }
            }
            other => other,
        })?;
        Ok(ObjectRecord {
            version: 1,
            generation: generation_of(1, self.store.locality.random_u64()),
            object: object.fid(),
            size_bytes: 0,
            width,
            unit_bytes,
            pool_version: version.pool_version,
            deleted: false,
        })
    }

    async fn open_as(
        &self,
        object: ObjectId,
        mode: OpenMode,
        unit_bytes: Option<u32>,
    ) -> Result<Object, ClientError> {
        self.store.refresh().await;
        let wish = self.wish(object, unit_bytes)?;
        let looked_at = self.store.configuration().version;
        match self.store.open_record(object, mode, wish).await? {
            Some((record, created)) if !record.deleted => {
                Object::new(self.store.clone(), object, (record, looked_at), created)
            }
            _ => Err(ClientError::NotFound { object }),
        }
    }

    /// Opens the object, making it if it is not there: one round trip to its K + 1 record holders in parallel.
    /// `unit_bytes`: unit size of a new object; an existing one keeps its own.
    pub async fn create_or_open(
        &self,
        object: ObjectId,
        unit_bytes: Option<u32>,
    ) -> Result<Object, ClientError> {
        self.open_as(object, OpenMode::CreateOrOpen, unit_bytes).await
    }

    /// Makes the object. Errors: [`ClientError::Exists`].
    pub async fn create(&self, object: ObjectId, unit_bytes: Option<u32>) -> Result<Object, ClientError> {
        self.open_as(object, OpenMode::Create, unit_bytes).await
    }

    /// Opens the object. Errors: [`ClientError::NotFound`].
    pub async fn open(&self, object: ObjectId) -> Result<Object, ClientError> {
        self.open_as(object, OpenMode::Open, None).await
    }

    /// What is known of the object without its bytes. Errors: [`ClientError::NotFound`].
    pub async fn stat(&self, object: ObjectId) -> Result<ObjectStat, ClientError> {
        Ok(self.open(object).await?.stat())
    }

    /// Deletes the object: its record becomes a tombstone on every holder in service (from then on it is gone), then its bytes go.
    ///
    /// The tombstones stay, so that versions never go back: without them a reader's late repair could bring an old record back, and a
    /// handle opened before would take the next object of that name for its own. Errors: [`ClientError::NotFound`], [`ClientError::Record`].
    pub async fn delete(&self, object: ObjectId) -> Result<(), ClientError> {
        let deleted = self.bury(object).await;
        if matches!(deleted, Err(ClientError::NotFound { .. })) {
            // Who deleted it may not be done: a holder that was out of reach meanwhile would say otherwise later, if it were asked alone.
            self.store.agree_on_newest(object).await?;
        }
        deleted
    }

    async fn bury(&self, object: ObjectId) -> Result<(), ClientError> {
        let open = self.open(object).await?;
        // The highest generation of its version: a replacement that began with the same version cannot win over the tombstone once
        // its bytes, which are dropped below, are gone (seed 10 of the simulation).
        let asked = Cell::new(None);
        let bury = |record: &ObjectRecord| {
            // Above the tombstone that was asked for: the object was made anew on top of it, or changed, while this was under way. Gone it was
            // before that, and whoever made it anew keeps it (seed 16 of the simulation).
            if asked.get().is_some_and(|version| record.version > version) {
                return None;
            }
            asked.set(Some(record.version + 1));
            let generation = generation_of(record.version + 1, u64::from(u32::MAX));
            Some(ObjectRecord { deleted: true, size_bytes: 0, generation, ..*record })
        };
        match open.change_record(bury).await {
            Ok(_) => {}
            // Gone only once no holder has what was before: not all may have the tombstone, nor what stands on top of it (seed 90485).
            Err(ClientError::Replaced { .. }) => {
                self.store.agree(object, open.record()).await?;
            }
            Err(error) => return Err(error),
        }
        // Best effort: what stays is dropped when an object of this name is replaced or deleted.
        let below = asked.get().map_or(0, |version| generation_of(version + 1, 0));
        drop_components(&self.store, object, 0..below).await;
        Ok(())
    }

    /// Up to `limit` objects behind `after`, in the order of their ids. Errors: more than K devices do not answer.
    pub async fn list(&self, after: Option<ObjectId>, limit: usize) -> Result<Vec<ObjectStat>, ClientError> {
        self.store.refresh().await;
        let records = self.store.list_records(after.map(ObjectId::fid), limit).await?;
        Ok(records.iter().filter_map(ObjectStat::of).collect())
    }

    /// Sends everything that `source` gives into `replacement`, reading, encoding and sending at the same time; returns the bytes to commit.
    ///
    /// `source(offset, buffer)` fills the buffer from `offset` on and gives it back, shortened (`resize`) only at the source's end; it is
    /// called in order. `progress(bytes)` follows each piece, with the bytes durable so far.
    pub async fn upload<Source, Filled>(
        &self,
        replacement: &Replacement,
        source: Source,
        progress: impl FnMut(u64),
    ) -> Result<u64, ClientError>
    where
        Source: FnMut(u64, Buffer) -> Filled,
        Filled: Future<Output = io::Result<Buffer>>,
    {
        transfer::upload(replacement, source, progress).await
    }

    /// Reads `extent` of an object, cut at its size, and hands it to `sink(offset, bytes)` in order; returns the bytes.
    /// Later pieces are read while the sink takes earlier ones. Errors: also [`ClientError::Replaced`], when the object was replaced meanwhile
    /// and its old bytes are gone; what the sink got until then is of the old ones.
    pub async fn download<Sink, Taken>(
        &self,
        object: &Object,
        extent: ByteExtent,
        sink: Sink,
        progress: impl FnMut(u64),
    ) -> Result<u64, ClientError>
    where
        Sink: FnMut(u64, SharedBuffer) -> Taken,
        Taken: Future<Output = io::Result<()>>,
    {
        transfer::download(object, extent, sink, progress).await
    }
}

/// What a failed first fetch means to whoever connects.
fn connect_error(control: Endpoint, error: &ConfError) -> ClientError {
    let net = match error {
        ConfError::Unreachable { source: CallError::Net { error, .. }, .. } => Some(error),
        ConfError::Unreachable {
            source: CallError::TimedOut { cause, .. } | CallError::PeerLost { cause, .. },
            ..
        } => cause.net.as_ref(),
        _ => None,
    };
    let reason = error.to_string();
    match net {
        Some(NetError::Refused { reason: refused }) if refused.is_of_credential() => {
            ClientError::WrongCredential { peer: control, reason }
        }
        _ => ClientError::NoConfiguration { control, reason },
    }
}

/// An endpoint that nobody configured, on the net of the control daemon. Pid and transfer machine id are random, so that many
/// clients of one process (or of a simulation) never share a name. A client does not listen.
fn own_endpoint(locality: &LocalityHandle, control: Endpoint) -> Endpoint {
    let random = locality.random_u64();
    // Without a route the first call fails and says so; the name matters to nobody then.
    let nid = verbs_net::local_nid_towards(control).unwrap_or(control.nid);
    let pid = u32::try_from(random & 0x7fff_ffff).unwrap_or(0);
    verbs_net::dynamic_endpoint(nid, pid, u16::try_from((random >> 32) & u64::from(TMID_MAX)).unwrap_or(0))
}
