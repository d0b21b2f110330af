//! A place to stand for commands that talk to a cluster: one locality on the command's own thread, and what it takes to
//! reach control, servers and objects from it.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::nid::NetKind;
use base::units::MIB;
use base::{Endpoint, Fid, Instant};
use client::{Client, ClientConfig};
use faces::cluster_file::ClusterFile;
use faces::conf_client::StatusPages;
use fops::admin::Ping;
use fops::conf::{ClusterStatus, ClusterStatusReply};
use fops::lock::OwnerId;
use fops::{Fop, FopError};
use rpc::addb::AddbSpace;
use rpc::{Answer, Bulk, CallError, CallOptions, RpcConfig, RpcMachine};
use runtime::{
    Arena, ArenaConfig, Counters, Crowd, Locality, LocalityConfig, LocalityHandle, MonotonicClock,
    SharedBuffer, identity,
};
use spdk_stob::{Backend, Domain, FormatParams, OpenOptions, is_nvme_address};
use verbs_net::{Fabric, PeerInfo, TmConfig, TransferMachine, VerbsFabric};

use crate::addb;
use crate::args::ConnectArgs;
use crate::failure::Failure;
use crate::known_cluster::KnownCluster;

/// Address space for buffers of one command or daemon; pages are taken as they are used.
pub const ARENA_BYTES: u64 = 512 * MIB;

/// A locality, its clock, and the transfer machine that commands share.
pub struct Station {
    locality: Locality,
    clock: MonotonicClock,
    rpc: Option<RpcMachine>,
    /// Where its machine's ADDB file goes; `None`: it is kept in memory.
    addb_folder: Option<PathBuf>,
}

/// A number that no other start of a process has had: an incarnation.
///
/// Errors: the kernel gives no random numbers.
pub fn new_epoch() -> Result<u64, Failure> {
    identity::unique_u64().map_err(Failure::while_doing(RANDOM_NUMBERS))
}

/// As [`new_epoch`], of 128 bits: an owner.
pub fn new_owner() -> Result<OwnerId, Failure> {
    identity::unique_u128().map(OwnerId).map_err(Failure::while_doing(RANDOM_NUMBERS))
}

const RANDOM_NUMBERS: &str = "asking the kernel for random numbers";

/// Seconds since 1970 by this machine's clock: for people to read, never for a decision. 0 if the clock is before that.
pub fn unix_s() -> u64 {
    unix_time().as_secs()
}

/// The same in microseconds.
pub fn unix_us() -> u64 {
    u64::try_from(unix_time().as_micros()).unwrap_or(u64::MAX)
}

/// The same as precisely as the clock has it.
#[expect(clippy::disallowed_methods, reason = "the time that people know; nothing is decided by it")]
pub fn unix_time() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

impl Station {
    /// A locality on this thread. Errors: no address space for its buffers.
    pub fn new(name: &str) -> Result<Station, Failure> {
        Station::for_devices(name, [])
    }

    /// As [`Station::new`], with memory that `devices` can work with.
    pub fn for_devices<'a>(
        name: &str,
        devices: impl IntoIterator<Item = &'a Path>,
    ) -> Result<Station, Failure> {
        let arena = arena_for(ARENA_BYTES, devices)?;
        let config = LocalityConfig {
            index: 0,
            name: name.to_owned(),
            seed: new_epoch()?,
            counters: Arc::new(Counters::default()),
            arena,
            crowd: Some(Crowd::new()),
        };
        Ok(Station::of(config))
    }

    /// A locality as configured by the caller.
    pub fn of(config: LocalityConfig) -> Station {
        Station {
            locality: Locality::new(config),
            clock: MonotonicClock::start(),
            rpc: None,
            addb_folder: None,
        }
    }

    /// Its handle.
    pub fn handle(&self) -> LocalityHandle {
        self.locality.handle()
    }

    /// From now on the machine of a daemon or client here keeps its ADDB in a file of the folder `addb` in `folder`.
    pub fn keep_addb_in(&mut self, folder: &Path) {
        self.addb_folder = Some(folder.join("addb"));
    }

    /// The file of a daemon, if it is to have one and can: a daemon without it serves, and says why there is none.
    pub fn addb_of_daemon(&self, name: &str, process: Fid, epoch: u64) -> Option<AddbSpace> {
        let folder = self.addb_folder.as_ref()?;
        let origin = addb::place::origin(&self.clock, name, process, epoch);
        match addb::place::daemon_file(folder, origin) {
            Ok(space) => Some(space),
            Err(failure) => {
                eprintln!("clovis: {name}: ADDB is kept in memory only: {failure}");
                None
            }
        }
    }

    /// The time.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Runs the locality until `future` is done.
    pub fn wait<T>(&mut self, future: impl Future<Output = T>) -> Result<T, Failure> {
        self.locality.block_on(&self.clock, future).map_err(Failure::while_doing("waiting for events"))
    }

    /// Runs the locality for a while.
    pub fn pause(&mut self, duration: Duration) -> Result<(), Failure> {
        let sleep = self.locality.handle().sleep(duration);
        self.wait(sleep)
    }

    /// One call of a process of the cluster, over its network.
    pub fn call<F: Fop>(
        &mut self,
        file: &KnownCluster,
        to: Endpoint,
        fop: &F,
        within: Duration,
    ) -> Result<F::Reply, Failure> {
        self.call_over(&fabric_of(to)?, file, to, fop, within)
    }

    /// Processes and devices as control sees them: by pages, or in one message from a control daemon of a version that knows no pages.
    pub fn cluster_status(
        &mut self,
        file: &KnownCluster,
        within: Duration,
    ) -> Result<ClusterStatusReply, Failure> {
        let control = file.control.endpoint;
        let rpc = self.rpc(&fabric_of(control)?, file)?;
        let deadline = self.now() + within;
        let mut status = StatusPages::default();
        while let Some(ask) = status.ask() {
            let answer = self.wait(rpc.call(control, &ask, Bulk::none(), CallOptions::until(deadline)))?;
            match answer {
                Ok(page) => status.take(page.reply),
                Err(CallError::Fop(FopError::BadRequest { .. })) => {
                    return self.call(file, control, &ClusterStatus, within);
                }
                Err(error) => return Err(Failure::new(error.to_string())),
            }
        }
        Ok(status.seen)
    }

    /// One call of this very process of the cluster, also if it is a control daemon under whose name several are asked.
    pub fn call_itself<F: Fop>(
        &mut self,
        file: &KnownCluster,
        to: Endpoint,
        fop: &F,
        within: Duration,
    ) -> Result<F::Reply, Failure> {
        self.answer_of(file, to, fop, within).map(|answer| answer.reply)
    }

    /// The configuration version that a process of the cluster goes by.
    pub fn version_of(
        &mut self,
        file: &KnownCluster,
        of: Endpoint,
        within: Duration,
    ) -> Result<u64, Failure> {
        let ping = Ping::default();
        self.answer_of(file, of, &ping, within).map(|answer| answer.config_version)
    }

    /// What this very process answers.
    fn answer_of<F: Fop>(
        &mut self,
        file: &KnownCluster,
        of: Endpoint,
        fop: &F,
        within: Duration,
    ) -> Result<Answer<F::Reply>, Failure> {
        let rpc = self.rpc(&fabric_of(of)?, file)?;
        let options = CallOptions::until(self.now() + within).unreachable_max(UNREACHABLE_MAX);
        let answer = self.wait(rpc.call_itself(of, fop, Bulk::none(), options))?;
        answer.map_err(|error| Failure::new(error.to_string()))
    }

    /// One call of a process of the cluster that carries bytes with it, at most 1 MiB.
    pub fn call_with_source<F: Fop>(
        &mut self,
        file: &KnownCluster,
        to: Endpoint,
        fop: &F,
        bytes: &[u8],
        within: Duration,
    ) -> Result<F::Reply, Failure> {
        let rpc = self.rpc(&fabric_of(to)?, file)?;
        let deadline = self.now() + within;
        let handle = self.handle();
        let source = SharedBuffer::copy_from_slice(handle.arena(), bytes, handle.counters())
            .ok_or_else(|| Failure::new(format!("no buffer for {} bytes", bytes.len())))?;
        let bulk = Bulk::from_source(vec![source]);
        let answer = self.wait(rpc.call(to, fop, bulk, CallOptions::until(deadline)))?;
        answer.map(|answer| answer.reply).map_err(|error| Failure::new(error.to_string()))
    }

    /// The same as [`Station::call`] over a given network.
    pub fn call_over<F: Fop>(
        &mut self,
        fabric: &Fabric,
        file: &KnownCluster,
        to: Endpoint,
        fop: &F,
        within: Duration,
    ) -> Result<F::Reply, Failure> {
        let rpc = self.rpc(fabric, file)?;
        let deadline = self.now() + within;
        let answer = self.wait(rpc.call(to, fop, Bulk::none(), CallOptions::until(deadline)))?;
        answer.map(|answer| answer.reply).map_err(|error| Failure::new(error.to_string()))
    }

    /// What a process of the cluster says of itself: features and nids.
    pub fn discover(
        &mut self,
        file: &KnownCluster,
        to: Endpoint,
        within: Duration,
    ) -> Result<PeerInfo, Failure> {
        let rpc = self.rpc(&fabric_of(to)?, file)?;
        let answer = self.wait(rpc.discover(to, within))?;
        answer.map_err(|error| Failure::new(error.to_string()))
    }

    fn rpc(&mut self, fabric: &Fabric, file: &KnownCluster) -> Result<RpcMachine, Failure> {
        if let Some(rpc) = &self.rpc {
            return Ok(rpc.clone());
        }
        let handle = self.handle();
        let control = file.control.endpoint;
        let nid = verbs_net::local_nid_towards(control)
            .map_err(Failure::while_doing(format!("a way to {control}")))?;
        let tmid = u16::try_from(handle.random_u64() & u64::from(base::endpoint::TMID_MAX)).unwrap_or(0);
        let endpoint = verbs_net::dynamic_endpoint(nid, std::process::id(), tmid);
        let rpc_config = RpcConfig::default();
        let version = Rc::clone(&rpc_config.config_version);
        let config = TmConfig::new(endpoint, false, new_epoch()?, file.security()?, version);
        let machine = TransferMachine::start(&handle, fabric, config)
            .map_err(|error| Failure::new(format!("starting the network: {error}")))?;
        let rpc = RpcMachine::start(&handle, machine, rpc_config);
        rpc.set_group(control, &file.further_controls());
        self.rpc = Some(rpc.clone());
        Ok(rpc)
    }

    /// A client of the cluster.
    pub fn client(&mut self, fabric: &Fabric, config: ClientConfig) -> Result<Client, Failure> {
        let handle = self.handle();
        let addb = self.addb_folder.as_ref().and_then(|folder| {
            let origin = addb::place::origin(&self.clock, "client", Fid::default(), config.epoch);
            addb::place::client_file(folder, &origin)
        });
        let connected = self.wait(async { Client::connect_recorded(&handle, fabric, config, addb).await })?;
        connected.map_err(|error| Failure::new(error.to_string()))
    }
}

/// How long a connection to one process of many may be tried for: one that is down must not hold up a list of all.
const UNREACHABLE_MAX: Duration = Duration::from_millis(500);

/// A client of the cluster in `file`, with an endpoint of its own choice.
pub fn client_config(file: &KnownCluster, op_timeout: Duration) -> Result<ClientConfig, Failure> {
    Ok(ClientConfig {
        local: None,
        control: file.control.endpoint,
        further_controls: file.further_controls(),
        security: file.security()?,
        epoch: new_epoch()?,
        op_timeout,
        read_verify: false,
    })
}

/// The folder that a cluster file is in.
pub fn folder_of(config: &Path) -> &Path {
    config.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Reads and checks a cluster file. Errors name the file, the line and what is wrong.
pub fn load_cluster_file(path: &Path) -> Result<ClusterFile, Failure> {
    read_cluster_file(path).map(|(_, file)| file)
}

/// The same, with its text.
pub fn read_cluster_file(path: &Path) -> Result<(String, ClusterFile), Failure> {
    let text = fs::read_to_string(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::new(format!(
            "{} does not exist: start a cluster with `clovis cluster start --dir DIR`, then use DIR/clovis.toml",
            path.display()
        )),
        _ => Failure::new(format!("reading {}: {error}", path.display())),
    })?;
    let file = ClusterFile::parse(&text);
    file.map(|file| (text, file)).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

/// The cluster file that a command uses: named by a flag or by CLOVIS_CONFIG, else the one in the current folder, else
/// the one of the cluster folder that this program's link is in (`D/bin/clovis`).
pub fn find_cluster_file(named: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    if let Some(path) = std::env::var_os("CLOVIS_CONFIG") {
        return Ok(PathBuf::from(path));
    }
    let here = PathBuf::from("clovis.toml");
    if here.exists() {
        return Ok(here);
    }
    let called_as = std::env::args_os().next().map(PathBuf::from);
    let beside_link =
        called_as.as_deref().and_then(Path::parent).and_then(Path::parent).map(|d| d.join("clovis.toml"));
    match beside_link.filter(|path| path.exists()) {
        Some(path) => Ok(path),
        None => Err(Failure::new(
            "which cluster? name its configuration, DIR/clovis.toml, in CLOVIS_CONFIG or (clovis only) with --config",
        )),
    }
}

/// A station and a client for a command with the usual flags.
pub fn connect(args: &ConnectArgs, read_verify: bool) -> Result<(Station, Client, KnownCluster), Failure> {
    let file = KnownCluster::of(args)?;
    let mut station = Station::new("clovis")?;
    station.keep_addb_in(folder_of(file.config()));
    let config = ClientConfig { read_verify, ..client_config(&file, Duration::from_secs(args.timeout))? };
    let client = station.client(&fabric_of(file.control.endpoint)?, config)?;
    Ok((station, client, file))
}

/// The network that an endpoint is on, as far as a process of its own can be on it.
pub fn fabric_of(endpoint: Endpoint) -> Result<Fabric, Failure> {
    match endpoint.nid.net.kind {
        NetKind::Tcp => Ok(Fabric::Tcp),
        NetKind::O2ib => VerbsFabric::open()
            .map(Fabric::Verbs)
            .map_err(|error| Failure::new(format!("{endpoint} is on o2ib: {error}"))),
        _ => Err(Failure::new(format!(
            "{endpoint} lives inside one process (@{}): other processes reach only endpoints @tcp",
            endpoint.nid.net
        ))),
    }
}

/// Makes a device file of `size_bytes`, preallocated and blank. Errors: it exists, or the file system is full.
pub fn create_device(path: &Path, size_bytes: u64) -> Result<(), Failure> {
    // The error names the file.
    spdk_stob::create_device_file(path, size_bytes).map_err(|error| Failure::new(error.to_string()))
}

/// Memory for buffers; in huge pages if one of `devices` is driven by SPDK and there are enough: without an IOMMU nothing else
/// works, and SPDK says so when it gets other memory.
pub fn arena_for<'a>(bytes: u64, devices: impl IntoIterator<Item = &'a Path>) -> Result<Arena, Failure> {
    let config = ArenaConfig { capacity_bytes: bytes };
    let in_huge_pages =
        if devices.into_iter().any(is_nvme_address) { Arena::in_huge_pages(config).ok() } else { None };
    match in_huge_pages {
        Some(arena) => Ok(arena),
        None => Arena::new(config).map_err(Failure::while_doing("reserving memory for buffers")),
    }
}

/// Where a device of the cluster in `folder` is: NVMe addresses as they are, paths from the folder.
pub fn device_path(folder: &Path, path: &Path) -> PathBuf {
    if is_nvme_address(path) { path.to_path_buf() } else { folder.join(path) }
}

/// Opens a device: a file or block device through the ring (with helper threads where io_uring is forbidden), or an NVMe
/// controller through SPDK (`nvme:0000:00:04.0`). Errors: missing, in use, a build without SPDK.
pub fn open_device(path: &Path) -> Result<Box<dyn Backend>, Failure> {
    open_device_as(path, OpenOptions::default())
}

/// Like [`open_device`], which it is for: as `options` say.
pub fn open_device_as(path: &Path, options: OpenOptions) -> Result<Box<dyn Backend>, Failure> {
    // The error names the device.
    spdk_stob::open_device(path, options).map_err(|error| Failure::new(error.to_string()))
}

/// Makes a device file and formats it as `device` of `cluster`.
pub fn format_device(
    station: &mut Station,
    path: &Path,
    size_bytes: u64,
    device: Fid,
    cluster: u64,
) -> Result<(), Failure> {
    let doing = || format!("formatting {}", path.display());
    create_device(path, size_bytes)?;
    let backend = open_device(path)?;
    let handle = station.handle();
    let params = FormatParams { device, cluster };
    let formatted = station.wait(async {
        let domain = Domain::format(&handle, backend, params).await?;
        domain.close().await
    })?;
    formatted.map_err(Failure::while_doing(doing()))
}
