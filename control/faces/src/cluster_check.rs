//! The checks of a cluster file: each refusal has a place and a reason. Pure.
//!
//! Order: what is common first, then servers, then devices, then the pool, so that the first refusal is the one to mend first.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use base::limits::{POOL_WIDTH_MAX, UNIT_BYTES_MAX, UNIT_BYTES_MIN};
use base::units::{BLOCK_BYTES, wide};
use base::{Blame, Blamed, Endpoint, Fid, FidType, LayoutWidth, NetKind, Nid};

use crate::cluster_file::{ClusterFile, DeviceSpan, PoolVersionSection, SecurityKind, Transport};
use crate::cluster_tree::{PartKind, SERVICES, check_tree};
use crate::limits::{
    CLUSTER_FILE_BYTES_MAX, CONTROLS_MAX, DEVICE_RUNS_MAX, DEVICES_MAX, FAIL_AFTER_SECONDS_MIN,
    LOCALITIES_MAX, POOL_NAME_BYTES_MAX, POOL_VERSIONS_MAX, REPAIR_RATE_MIN, SERVERS_MAX, store_bytes_for,
};
use crate::pools::{DeviceRun, FIRST_POOL_NAME};

/// Why a cluster file is refused: where and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Line of the file, from 1, if the fault has one.
    pub line: Option<u32>,
    /// The key or section; empty if the fault is the whole file's.
    pub key: String,
    /// What is wrong and what is allowed.
    pub problem: ConfigProblem,
}

impl ConfigError {
    pub(crate) fn whole_file(problem: ConfigProblem) -> ConfigError {
        ConfigError { line: None, key: String::new(), problem }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.line, self.key.as_str()) {
            (None, "") => {}
            (None, key) => write!(f, "{key}: ")?,
            (Some(line), "") => write!(f, "line {line}: ")?,
            (Some(line), key) => write!(f, "line {line}, {key}: ")?,
        }
        fmt::Display::fmt(&self.problem, f)
    }
}

impl std::error::Error for ConfigError {}

impl Blamed for ConfigError {
    fn blame(&self) -> Blame {
        Blame::Caller
    }
}

/// What is wrong with a cluster file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigProblem {
    /// Not TOML, or a key is unknown, missing, or of the wrong type.
    #[error("{message}")]
    Syntax {
        /// What the parser said.
        message: String,
    },
    /// The file is too large to be a cluster file.
    #[error("the file has {bytes} bytes; a cluster file has at most {CLUSTER_FILE_BYTES_MAX}")]
    TooLong {
        /// Its size.
        bytes: usize,
    },
    /// It cannot be written as TOML.
    #[error("cannot be written as TOML: {message}")]
    Unwritable {
        /// What the writer said.
        message: String,
    },
    /// A name for people is missing.
    #[error("the cluster's name is empty")]
    NoName,
    /// Members that share a secret, and no secret.
    #[error(
        "missing: 64 hexadecimal digits that all members share, or `security = \"certificates\"` (docs/security.md)"
    )]
    NoSecret,
    /// Members with certificates, and a secret that means nothing.
    #[error("with `security = \"certificates\"` nothing is shared: leave this line out")]
    NeedlessSecret,
    /// Certificates where they cannot be shown.
    #[error("certificates are shown over tcp and o2ib; on the transport {} write `security = \"shared\"`", transport.word())]
    NoCertificatesOn {
        /// The cluster's transport.
        transport: Transport,
    },
    /// Encryption without certificates.
    #[error("only what begins with certificates can be encrypted: write `security = \"certificates\"` too")]
    NoEncryption,
    /// A fid's type byte is another one.
    #[error("{fid} is not the fid of a {expected:?}: its top byte has to be {:#x}", *expected as u8)]
    WrongFidType {
        /// As written.
        fid: Fid,
        /// Type that is needed here.
        expected: FidType,
    },
    /// No server at all.
    #[error("there is no [[server]] section; a cluster needs at least one server")]
    NoServer,
    /// No device at all.
    #[error("there is no [[device]] section; the pool needs at least {needed} devices")]
    NoDevice {
        /// Width of the layout.
        needed: u32,
    },
    /// A server without a device.
    #[error("server {process} has no [[device]] section; give it one or take the server out")]
    ServerWithoutDevice {
        /// The server.
        process: Fid,
    },
    /// A server without an endpoint.
    #[error("a server needs an endpoint for each locality, from 1 to {LOCALITIES_MAX}; here are {count}")]
    Localities {
        /// Endpoints given.
        count: usize,
    },
    /// More than a configuration carries.
    #[error("{count} {what}s are more than a configuration carries ({max})")]
    TooMany {
        /// Servers or devices.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many may be.
        max: usize,
    },
    /// A fid twice.
    #[error("{what} {fid} is there twice")]
    DoubledFid {
        /// Server or device.
        what: &'static str,
        /// The fid.
        fid: Fid,
    },
    /// A path twice on one host.
    #[error("path {} is there twice on one host; each device needs its own", path.display())]
    DoubledPath {
        /// The path.
        path: PathBuf,
    },
    /// No number of a control daemon.
    #[error("{number} is no number of a control daemon: take one from 1 on that none had before")]
    ControlNumber {
        /// As written.
        number: u64,
    },
    /// Two control daemons of one number.
    #[error(
        "control daemon {number} is there twice (the first is 1 if it has no number): give each its own, and never one that was in use before"
    )]
    DoubledControl {
        /// Their number.
        number: u64,
    },
    /// An endpoint twice.
    #[error("endpoint {endpoint} is there twice; each locality and the control daemon need their own")]
    DoubledEndpoint {
        /// The endpoint.
        endpoint: Endpoint,
    },
    /// Nobody could find it.
    #[error("{address}: metrics need a port, as 127.0.0.1:9640")]
    NoMetricsPort {
        /// The address.
        address: SocketAddr,
    },
    /// Two processes would tell their metrics at one address.
    #[error("{address} tells another process's metrics: give each its own port")]
    DoubledMetrics {
        /// The address.
        address: SocketAddr,
    },
    /// An endpoint on another net than the transport's.
    #[error(
        "endpoint {endpoint} is not on the transport {}; write its nid as ADDRESS@{}",
        transport.word(),
        transport.word()
    )]
    WrongNet {
        /// The endpoint.
        endpoint: Endpoint,
        /// The cluster's transport.
        transport: Transport,
    },
    /// An endpoint nobody can listen on.
    #[error("endpoint {endpoint} has no port to listen on: portals 32 to 46 have (docs/wire.md)")]
    NoPort {
        /// The endpoint.
        endpoint: Endpoint,
    },
    /// A device of a server that is not in the file.
    #[error("there is no [[server]] with process {server}")]
    UnknownServer {
        /// As written.
        server: Fid,
    },
    /// A device of a locality that its server does not have.
    #[error("the server has {count} endpoints, so localities 0 to {}; there is no locality {locality}", count.saturating_sub(1))]
    UnknownLocality {
        /// As written.
        locality: u32,
        /// Endpoints of the server.
        count: usize,
    },
    /// No path.
    #[error("the path is empty")]
    NoPath,
    /// A size that is no number of blocks.
    #[error("{bytes} bytes are not a positive multiple of {BLOCK_BYTES}")]
    NotBlocks {
        /// As written.
        bytes: u64,
    },
    /// The store of control is too small for the file.
    #[error(
        "a cluster file of {text_bytes} bytes needs a store of at least {needed} bytes, which a new cluster may have, or `clovis control restore` into one"
    )]
    StoreTooSmall {
        /// Bytes of the file.
        text_bytes: usize,
        /// Bytes of the smallest store that keeps it.
        needed: u64,
    },
    /// A unit size out of range.
    #[error("unit size {bytes} is not a multiple of {BLOCK_BYTES} from {UNIT_BYTES_MIN} to {UNIT_BYTES_MAX}")]
    UnitSize {
        /// As written.
        bytes: u64,
    },
    /// A rate that is too low for anything to get done.
    #[error(
        "a repair of {rate} bytes in a second would take years: at least {REPAIR_RATE_MIN}, or leave it out for no limit"
    )]
    RepairRate {
        /// As written.
        rate: u64,
    },
    /// Time would take the bytes of a device whose server is only started again.
    #[error(
        "a device that is away for {seconds} s may be one whose server is started again: at least {FAIL_AFTER_SECONDS_MIN}, or 0 for never"
    )]
    FailAfter {
        /// As written.
        seconds: u64,
    },
    /// A part that has to be in another, and is in none.
    #[error("{what} {fid} needs the {parent} that it is in: write in = \"FID\"")]
    NoParent {
        /// Kind of the part.
        what: &'static str,
        /// The part.
        fid: Fid,
        /// Kind of what it has to be in.
        parent: &'static str,
    },
    /// A part that is in something, and cannot be.
    #[error("{what} {fid} stands at the top and is in nothing: leave the key out")]
    NothingAbove {
        /// Kind of the part.
        what: &'static str,
        /// The part.
        fid: Fid,
    },
    /// A part that something is said to be in, and that is not in the file.
    #[error("there is no [[{what}]] {fid}")]
    UnknownParent {
        /// Its kind.
        what: &'static str,
        /// As written.
        fid: Fid,
    },
    /// Two devices in one place.
    #[error("disk {disk} holds two devices; each needs its own")]
    DoubledDisk {
        /// The disk.
        disk: Fid,
    },
    /// A service that no server runs.
    #[error("{name:?} is no service of a server: those are {}", SERVICES.join(", "))]
    UnknownService {
        /// As written.
        name: String,
    },
    /// A service twice in one server.
    #[error("the server has the service {name:?} already")]
    DoubledService {
        /// Which.
        name: String,
    },
    /// Too few devices for the layout.
    #[error("layout {layout} needs {} devices, each group on its own; the pool has {devices}", layout.width())]
    PoolTooNarrow {
        /// The layout.
        layout: LayoutWidth,
        /// Devices of the pool version.
        devices: usize,
    },
    /// A first pool version of more devices than there are, or of none.
    #[error(
        "{count} is not from 1 to the {devices} [[device]] sections, of which the first so many are the first pool's; all if left out"
    )]
    PoolDevices {
        /// As written.
        count: u64,
        /// Devices in the file.
        devices: usize,
    },
    /// A name that commands could not tell from something else.
    #[error("{name:?} is no name of a pool: 1 to {POOL_NAME_BYTES_MAX} letters, digits, or any of - _ .")]
    PoolName {
        /// As written.
        name: String,
    },
    /// A pool without a name.
    #[error("pool {pool} begins here and needs a name: write name = \"...\"")]
    NoPoolName {
        /// The pool.
        pool: Fid,
    },
    /// A second name of a pool.
    #[error("pool {pool} has its name where its first version stands: leave this line out")]
    NeedlessPoolName {
        /// The pool.
        pool: Fid,
    },
    /// Two pools of one name.
    #[error("another pool is named {name:?} already")]
    DoubledPoolName {
        /// The name.
        name: String,
    },
    /// A pool version of a device that is not in the file.
    #[error("there is no [[device]] {device}")]
    UnknownDevice {
        /// As written.
        device: Fid,
    },
    /// A row of devices the wrong way round.
    #[error("[[device]] {last} stands before {first}: write the one that stands first before the dots")]
    BackwardSpan {
        /// As written before the dots.
        first: Fid,
        /// As written behind them.
        last: Fid,
    },
    /// A device twice in one pool version.
    #[error("device {device} is in this pool version already; each of its devices counts once")]
    DoubledTarget {
        /// The device.
        device: Fid,
    },
    /// A device of two pools.
    #[error("device {device} is one of pool {pool}: a device is of one pool, whose versions may share it")]
    DeviceOfOtherPool {
        /// The device.
        device: Fid,
        /// Its pool.
        pool: Fid,
    },
    /// More parity than records have copies.
    #[error(
        "layout {layout} promises to outlive {} lost devices, and the records of all objects are on the first pool version, {first}, which outlives {}",
        layout.parity(),
        first.parity()
    )]
    MoreParity {
        /// As written.
        layout: LayoutWidth,
        /// That of the first pool version.
        first: LayoutWidth,
    },
    /// Devices that are scattered over the file.
    #[error(
        "the devices of all [[pool_version]] sections are {runs} runs of such as stand behind each other in the file; at most {DEVICE_RUNS_MAX}"
    )]
    Scattered {
        /// How many runs.
        runs: usize,
    },
}

/// A place in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A key of a single section.
    Key(&'static str),
    /// A key of the n-th `[[control.member]]`.
    Control(usize, &'static str),
    /// A key of the n-th `[[server]]`.
    Server(usize, &'static str),
    /// The m-th endpoint of the n-th `[[server]]`.
    ServerEndpoint(usize, usize),
    /// A key of the n-th `[[device]]`.
    Device(usize, &'static str),
    /// A key of the n-th `[[pool_version]]`.
    PoolVersion(usize, &'static str),
    /// The m-th device, or row of devices, of the n-th `[[pool_version]]`.
    VersionDevice(usize, usize),
    /// A key of the n-th part of a kind.
    Part(PartKind, usize, &'static str),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Key(key) => f.write_str(key),
            Place::Control(index, key) => write!(f, "control.member[{index}].{key}"),
            Place::Server(index, key) => write!(f, "server[{index}].{key}"),
            Place::ServerEndpoint(index, locality) => write!(f, "server[{index}].endpoints[{locality}]"),
            Place::Device(index, key) => write!(f, "device[{index}].{key}"),
            Place::PoolVersion(index, key) => write!(f, "pool_version[{index}].{key}"),
            Place::VersionDevice(index, place) => write!(f, "pool_version[{index}].devices[{place}]"),
            Place::Part(kind, index, key) => write!(f, "{}[{index}].{key}", kind.word()),
        }
    }
}

/// A refusal before its line is looked up.
pub(crate) struct Fault {
    pub(crate) place: Place,
    /// The other place, of something that is there twice.
    pub(crate) other: Option<Place>,
    pub(crate) problem: ConfigProblem,
}

pub(crate) fn fault(place: Place, problem: ConfigProblem) -> Fault {
    Fault { place, other: None, problem }
}

pub(crate) fn check_fid(place: Place, fid: Fid, expected: FidType) -> Result<(), Fault> {
    if fid.is(expected) { Ok(()) } else { Err(fault(place, ConfigProblem::WrongFidType { fid, expected })) }
}

fn check_blocks(place: Place, bytes: u64) -> Result<(), Fault> {
    if bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES) {
        Ok(())
    } else {
        Err(fault(place, ConfigProblem::NotBlocks { bytes }))
    }
}

/// Endpoints by place: on the right net, with a port where the net has ports, each once.
struct Endpoints {
    transport: Transport,
    seen: BTreeMap<Endpoint, Place>,
}

impl Endpoints {
    fn add(&mut self, place: Place, endpoint: Endpoint) -> Result<(), Fault> {
        let transport = self.transport;
        if endpoint.nid.net.kind != transport.net_kind() {
            return Err(fault(place, ConfigProblem::WrongNet { endpoint, transport }));
        }
        let has_ports = matches!(transport.net_kind(), NetKind::Tcp | NetKind::O2ib);
        if has_ports && endpoint.port().is_none() {
            return Err(fault(place, ConfigProblem::NoPort { endpoint }));
        }
        // The pid is only a name: two endpoints that differ in it alone would share a port.
        let listening = Endpoint { pid: 0, ..endpoint };
        match self.seen.insert(listening, place.clone()) {
            None => Ok(()),
            Some(other) => {
                Err(Fault { place, other: Some(other), problem: ConfigProblem::DoubledEndpoint { endpoint } })
            }
        }
    }
}

/// Addresses of metrics, each once. Any address will do, as they are of this machine's stack and not of the cluster's net.
fn check_metrics(file: &ClusterFile) -> Result<(), Fault> {
    let mut seen: BTreeMap<SocketAddr, Place> = BTreeMap::new();
    let of_control = file.control.metrics.map(|address| (Place::Key("control.metrics"), address));
    let of_servers = file.servers.iter().enumerate().filter_map(|(index, server)| {
        server.metrics.map(|address| (Place::Server(index, "metrics"), address))
    });
    let of_members = file.control.members.iter().enumerate().filter_map(|(index, member)| {
        member.metrics.map(|address| (Place::Control(index, "metrics"), address))
    });
    for (place, address) in of_control.into_iter().chain(of_members).chain(of_servers) {
        if address.port() == 0 {
            return Err(fault(place, ConfigProblem::NoMetricsPort { address }));
        }
        if let Some(other) = seen.insert(address, place.clone()) {
            return Err(Fault {
                place,
                other: Some(other),
                problem: ConfigProblem::DoubledMetrics { address },
            });
        }
    }
    Ok(())
}

/// All checks. The first refusal in the order of the module's head.
pub(crate) fn check(file: &ClusterFile) -> Result<(), Fault> {
    check_sections(file)?;
    let mut endpoints = Endpoints { transport: file.cluster.transport, seen: BTreeMap::new() };
    endpoints.add(Place::Key("control.endpoint"), file.control.endpoint)?;
    check_control_members(file, &mut endpoints)?;
    check_servers(file, &mut endpoints)?;
    check_metrics(file)?;
    check_devices(file)?;
    check_tree(file)?;
    check_pool(file)
}

/// The text of the file, which control is to keep, has room in its store.
pub(crate) fn check_store(file: &ClusterFile, text_bytes: usize) -> Result<(), Fault> {
    let needed = store_bytes_for(text_bytes);
    if file.control.store_bytes >= needed {
        return Ok(());
    }
    Err(fault(Place::Key("control.store_bytes"), ConfigProblem::StoreTooSmall { text_bytes, needed }))
}

fn check_sections(file: &ClusterFile) -> Result<(), Fault> {
    if file.cluster.name.trim().is_empty() {
        return Err(fault(Place::Key("cluster.name"), ConfigProblem::NoName));
    }
    check_fid(Place::Key("cluster.profile"), file.cluster.profile, FidType::Profile)?;
    check_security(file)?;
    if file.control.store.as_os_str().is_empty() {
        return Err(fault(Place::Key("control.store"), ConfigProblem::NoPath));
    }
    check_blocks(Place::Key("control.store_bytes"), file.control.store_bytes)?;
    check_fid(Place::Key("pool.fid"), file.pool.fid, FidType::Pool)?;
    check_fid(Place::Key("pool.version"), file.pool.version, FidType::PoolVersion)?;
    check_unit(Place::Key("pool.unit_bytes"), file.pool.unit_bytes)?;
    if let Some(name) = &file.pool.name {
        check_name(Place::Key("pool.name"), name)?;
    }
    if let Some(rate) = file.profile.repair_bytes_per_second.filter(|rate| *rate < REPAIR_RATE_MIN) {
        let place = Place::Key("profile.repair_bytes_per_second");
        return Err(fault(place, ConfigProblem::RepairRate { rate }));
    }
    let is_short = |seconds: &u64| (1..FAIL_AFTER_SECONDS_MIN).contains(seconds);
    if let Some(seconds) = file.profile.fail_after_seconds.filter(is_short) {
        let place = Place::Key("profile.fail_after_seconds");
        return Err(fault(place, ConfigProblem::FailAfter { seconds }));
    }
    Ok(())
}

fn check_unit(place: Place, bytes: u64) -> Result<(), Fault> {
    let in_range = (UNIT_BYTES_MIN..=UNIT_BYTES_MAX).contains(&bytes);
    if in_range && bytes.is_multiple_of(BLOCK_BYTES) {
        Ok(())
    } else {
        Err(fault(place, ConfigProblem::UnitSize { bytes }))
    }
}

/// Commands take a name or a fid: a colon tells them apart.
fn check_name(place: Place, name: &str) -> Result<(), Fault> {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if (1..=POOL_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_letter) {
        Ok(())
    } else {
        Err(fault(place, ConfigProblem::PoolName { name: name.to_owned() }))
    }
}

fn check_security(file: &ClusterFile) -> Result<(), Fault> {
    let cluster = &file.cluster;
    match (cluster.security, &cluster.credential) {
        (SecurityKind::Shared, None) => Err(fault(Place::Key("cluster.credential"), ConfigProblem::NoSecret)),
        (SecurityKind::Shared, Some(_)) if cluster.encrypt => {
            Err(fault(Place::Key("cluster.encrypt"), ConfigProblem::NoEncryption))
        }
        (SecurityKind::Certificates, Some(_)) => {
            Err(fault(Place::Key("cluster.credential"), ConfigProblem::NeedlessSecret))
        }
        (SecurityKind::Certificates, None)
            if !matches!(cluster.transport, Transport::Tcp | Transport::O2ib) =>
        {
            let problem = ConfigProblem::NoCertificatesOn { transport: cluster.transport };
            Err(fault(Place::Key("cluster.security"), problem))
        }
        (SecurityKind::Shared, Some(_)) | (SecurityKind::Certificates, None) => Ok(()),
    }
}

/// Their numbers, endpoints and how many they are; paths are checked with those of devices.
fn check_control_members(file: &ClusterFile, endpoints: &mut Endpoints) -> Result<(), Fault> {
    let first = file.first_control();
    let is_number = |number: u64| number > 0 && number < u64::MAX;
    if !is_number(first) {
        return Err(fault(Place::Key("control.number"), ConfigProblem::ControlNumber { number: first }));
    }
    let mut numbers = BTreeMap::from([(first, Place::Key("control.number"))]);
    for (index, member) in file.control.members.iter().enumerate() {
        let place = Place::Control(index, "number");
        let number = member.number;
        if !is_number(number) {
            return Err(fault(place, ConfigProblem::ControlNumber { number }));
        }
        if let Some(other) = numbers.insert(number, place.clone()) {
            return Err(Fault {
                place,
                other: Some(other),
                problem: ConfigProblem::DoubledControl { number },
            });
        }
        if member.store.as_os_str().is_empty() {
            return Err(fault(Place::Control(index, "store"), ConfigProblem::NoPath));
        }
        endpoints.add(Place::Control(index, "endpoint"), member.endpoint)?;
    }
    let count = numbers.len();
    if count > CONTROLS_MAX {
        let problem = ConfigProblem::TooMany { what: "control.member", count, max: CONTROLS_MAX };
        return Err(fault(Place::Control(count - 2, "number"), problem));
    }
    Ok(())
}

fn check_servers(file: &ClusterFile, endpoints: &mut Endpoints) -> Result<(), Fault> {
    let count = file.servers.len();
    if count == 0 {
        return Err(fault(Place::Key("server"), ConfigProblem::NoServer));
    }
    if count > SERVERS_MAX {
        let problem = ConfigProblem::TooMany { what: "server", count, max: SERVERS_MAX };
        return Err(fault(Place::Server(SERVERS_MAX, "process"), problem));
    }
    let mut processes = BTreeMap::new();
    for (index, server) in file.servers.iter().enumerate() {
        let place = Place::Server(index, "process");
        check_fid(place.clone(), server.process, FidType::Process)?;
        if let Some(other) = processes.insert(server.process, place.clone()) {
            let problem = ConfigProblem::DoubledFid { what: "server", fid: server.process };
            return Err(Fault { place, other: Some(other), problem });
        }
        let count = server.endpoints.len();
        if count == 0 || count > LOCALITIES_MAX {
            return Err(fault(Place::Server(index, "endpoints"), ConfigProblem::Localities { count }));
        }
        for (locality, endpoint) in server.endpoints.iter().enumerate() {
            endpoints.add(Place::ServerEndpoint(index, locality), *endpoint)?;
        }
    }
    Ok(())
}

fn check_devices(file: &ClusterFile) -> Result<(), Fault> {
    let count = file.devices.len();
    if count == 0 {
        let needed = file.pool.layout.width();
        return Err(fault(Place::Key("device"), ConfigProblem::NoDevice { needed }));
    }
    if count > DEVICES_MAX {
        let problem = ConfigProblem::TooMany { what: "device", count, max: DEVICES_MAX };
        return Err(fault(Place::Device(DEVICES_MAX, "fid"), problem));
    }
    let mut fids = BTreeMap::new();
    // A path names a file of one host, and a host is known by its nid.
    let mut paths: BTreeMap<(Nid, &Path), Place> = BTreeMap::new();
    paths.insert((file.control.endpoint.nid, &file.control.store), Place::Key("control.store"));
    for (index, member) in file.control.members.iter().enumerate() {
        let place = Place::Control(index, "store");
        if let Some(other) = paths.insert((member.endpoint.nid, &member.store), place.clone()) {
            let problem = ConfigProblem::DoubledPath { path: member.store.clone() };
            return Err(Fault { place, other: Some(other), problem });
        }
    }
    for (index, device) in file.devices.iter().enumerate() {
        let place = Place::Device(index, "fid");
        check_fid(place.clone(), device.fid, FidType::Device)?;
        if let Some(other) = fids.insert(device.fid, place.clone()) {
            let problem = ConfigProblem::DoubledFid { what: "device", fid: device.fid };
            return Err(Fault { place, other: Some(other), problem });
        }
        let Some(server) = file.server(device.server) else {
            let problem = ConfigProblem::UnknownServer { server: device.server };
            return Err(fault(Place::Device(index, "server"), problem));
        };
        let Some(endpoint) = file.endpoint_of(device) else {
            let (locality, count) = (device.locality, server.endpoints.len());
            let problem = ConfigProblem::UnknownLocality { locality, count };
            return Err(fault(Place::Device(index, "locality"), problem));
        };
        let place = Place::Device(index, "path");
        if device.path.as_os_str().is_empty() {
            return Err(fault(place, ConfigProblem::NoPath));
        }
        if let Some(other) = paths.insert((endpoint.nid, &device.path), place.clone()) {
            let problem = ConfigProblem::DoubledPath { path: device.path.clone() };
            return Err(Fault { place, other: Some(other), problem });
        }
        check_blocks(Place::Device(index, "size_bytes"), device.size_bytes)?;
    }
    let with_devices: BTreeSet<Fid> = file.devices.iter().map(|device| device.server).collect();
    for (index, server) in file.servers.iter().enumerate() {
        if !with_devices.contains(&server.process) {
            let problem = ConfigProblem::ServerWithoutDevice { process: server.process };
            return Err(fault(Place::Server(index, "process"), problem));
        }
    }
    Ok(())
}

fn check_pool(file: &ClusterFile) -> Result<(), Fault> {
    const { assert!(DEVICES_MAX <= POOL_WIDTH_MAX as usize) };
    let devices = file.devices.len();
    if let Some(count) = file.pool.devices
        && (count == 0 || count > wide(devices))
    {
        return Err(fault(Place::Key("pool.devices"), ConfigProblem::PoolDevices { count, devices }));
    }
    check_width(Place::Key("pool.layout"), file.pool.layout, file.first_devices())?;
    let count = file.pool_versions.len();
    if count > POOL_VERSIONS_MAX {
        let problem = ConfigProblem::TooMany { what: "pool_version", count, max: POOL_VERSIONS_MAX };
        return Err(fault(Place::PoolVersion(POOL_VERSIONS_MAX, "fid"), problem));
    }
    let first_name = file.pool.name.as_deref().unwrap_or(FIRST_POOL_NAME);
    let mut pools = Pools {
        versions: BTreeMap::from([(file.pool.version, Place::Key("pool.version"))]),
        names: BTreeMap::from([(file.pool.fid, first_name)]),
        owners: file
            .devices
            .iter()
            .take(file.first_devices())
            .map(|device| (device.fid, file.pool.fid))
            .collect(),
        runs: 0,
    };
    for index in 0..count {
        check_pool_version(file, index, &mut pools)?;
    }
    Ok(())
}

fn check_width(place: Place, layout: LayoutWidth, devices: usize) -> Result<(), Fault> {
    if u32::try_from(devices).unwrap_or(u32::MAX) < layout.width() {
        return Err(fault(place, ConfigProblem::PoolTooNarrow { layout, devices }));
    }
    Ok(())
}

/// What the sections before one say.
struct Pools<'a> {
    versions: BTreeMap<Fid, Place>,
    /// Name of each pool that is there.
    names: BTreeMap<Fid, &'a str>,
    /// Pool of each device that has one.
    owners: BTreeMap<Fid, Fid>,
    /// Runs of devices so far.
    runs: usize,
}

fn check_pool_version<'a>(file: &'a ClusterFile, index: usize, pools: &mut Pools<'a>) -> Result<(), Fault> {
    let section = &file.pool_versions[index];
    let at = |key| Place::PoolVersion(index, key);
    let PoolVersionSection { pool, fid, layout, .. } = *section;
    check_fid(at("pool"), pool, FidType::Pool)?;
    check_fid(at("fid"), fid, FidType::PoolVersion)?;
    if let Some(other) = pools.versions.insert(fid, at("fid")) {
        let problem = ConfigProblem::DoubledFid { what: "pool version", fid };
        return Err(Fault { place: at("fid"), other: Some(other), problem });
    }
    match (&section.name, pools.names.contains_key(&pool)) {
        (None, true) => {}
        (None, false) => return Err(fault(at("pool"), ConfigProblem::NoPoolName { pool })),
        (Some(_), true) => return Err(fault(at("name"), ConfigProblem::NeedlessPoolName { pool })),
        (Some(name), false) => {
            check_name(at("name"), name)?;
            if pools.names.values().any(|other| other == name) {
                let name = name.clone();
                return Err(fault(at("name"), ConfigProblem::DoubledPoolName { name }));
            }
            pools.names.insert(pool, name);
        }
    }
    check_unit(at("unit_bytes"), section.unit_bytes)?;
    let mut own = BTreeSet::new();
    for (place, span) in section.devices.iter().enumerate() {
        let place = Place::VersionDevice(index, place);
        for device in devices_of_span(file, &place, *span)? {
            if !own.insert(device) {
                return Err(fault(place, ConfigProblem::DoubledTarget { device }));
            }
            let owner = *pools.owners.entry(device).or_insert(pool);
            if owner != pool {
                return Err(fault(place, ConfigProblem::DeviceOfOtherPool { device, pool: owner }));
            }
        }
    }
    check_width(at("layout"), layout, own.len())?;
    if layout.parity() > file.pool.layout.parity() {
        let first = file.pool.layout;
        return Err(fault(at("layout"), ConfigProblem::MoreParity { layout, first }));
    }
    pools.runs += DeviceRun::of(file.devices_of_version(section)).len();
    if pools.runs > DEVICE_RUNS_MAX {
        return Err(fault(at("devices"), ConfigProblem::Scattered { runs: pools.runs }));
    }
    Ok(())
}

/// The devices from one to another. Errors: one is not there, or they stand the other way round.
fn devices_of_span(
    file: &ClusterFile,
    place: &Place,
    DeviceSpan { first, last }: DeviceSpan,
) -> Result<Vec<Fid>, Fault> {
    let find = |wanted: Fid| {
        let found = file.devices.iter().position(|device| device.fid == wanted);
        found.ok_or_else(|| fault(place.clone(), ConfigProblem::UnknownDevice { device: wanted }))
    };
    let (from, to) = (find(first)?, find(last)?);
    if from > to {
        return Err(fault(place.clone(), ConfigProblem::BackwardSpan { first, last }));
    }
    Ok(file.devices[from..=to].iter().map(|device| device.fid).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = include_str!("cluster_file_example.toml");

    fn refused(text: &str) -> String {
        ClusterFile::parse(text).expect_err("the file is wrong").to_string()
    }

    /// The good file with one piece replaced (exactly one place has to match).
    fn with(piece: &str, other: &str) -> String {
        assert_eq!(GOOD.matches(piece).count(), 1, "{piece:?} has to stand in the example once");
        GOOD.replace(piece, other)
    }

    #[test]
    fn the_example_parses_and_prints_as_it_parses() {
        let file = ClusterFile::parse(GOOD).unwrap();
        assert_eq!(ClusterFile::parse(&file.to_toml().unwrap()).unwrap(), file);
        file.validate().unwrap();
        let configuration = file.initial_configuration();
        assert_eq!((configuration.version, configuration.pool.devices.len()), (1, 4));
        assert_eq!(configuration.pool.devices[3].endpoint, file.servers[1].endpoints[1]);
        assert!(!format!("{file:?}").contains("00112233"), "the credential does not get into logs");
    }

    #[test]
    fn every_refusal_names_its_line_or_key() {
        let cases: Vec<(String, &str)> = vec![
            (with("name = \"demo\"", "name = \" \""), "line 4, cluster.name: the cluster's name is empty"),
            (with("name = \"demo\"", "nam = \"demo\""), "line 4, nam: unknown field `nam`"),
            (with("name = \"demo\"\n", ""), "missing field `name`"),
            (with("name = \"demo\"", "name = demo"), "line 4, name: "),
            (with("id = \"0xc10715\"", "id = \"0xzz\""), "line 5, id: \"0xzz\" is not a cluster id"),
            (
                format!("{GOOD}\n[profile]\nrepair_bytes_per_second = 4095\n"),
                "line 55, profile.repair_bytes_per_second: a repair of 4095 bytes in a second would take years: at least 4096, or leave it out for no limit",
            ),
            (
                format!("{GOOD}\n[profile]\nfail_after_seconds = 59\n"),
                "line 55, profile.fail_after_seconds: a device that is away for 59 s may be one whose server is started again: at least 60, or 0 for never",
            ),
            (
                format!("{GOOD}\n[profile]\nfail_after_seconds = -1\n"),
                "line 55, fail_after_seconds: invalid value: integer `-1`, expected u64",
            ),
            (
                with("profile = \"0x7000000000000001:0\"", "profile = \"0x7100000000000001:0\""),
                "line 6, cluster.profile: 0x7100000000000001:0x0 is not the fid of a Profile: its top byte has to be 0x70",
            ),
            (with("transport = \"tcp\"", "transport = \"udp\""), "line 7, transport: unknown variant `udp`"),
            (
                with("transport = \"tcp\"", "transport = \"lo\""),
                "line 11, control.endpoint: endpoint 127.0.0.1@tcp:12345:34:0 is not on the transport lo",
            ),
            (
                with("00112233", "0011223"),
                "line 8, credential: a credential is 64 hexadecimal digits (32 bytes); this has 63 characters",
            ),
            (
                with("store_bytes = 16777216", "store_bytes = 16777216\nmetrics = \"127.0.0.1:0\""),
                "line 14, control.metrics: 127.0.0.1:0: metrics need a port, as 127.0.0.1:9640",
            ),
            (
                with("store_bytes = 16777216", "store_bytes = 16777216\nmetrics = \"somewhere\""),
                "line 14, metrics: ",
            ),
            (
                with("store_bytes = 16777216", "store_bytes = 16777216\nmetrics = \"127.0.0.1:9640\"")
                    .replace(
                        "endpoints = [\"127.0.0.1@tcp:12345:34:1\"]",
                        "endpoints = [\"127.0.0.1@tcp:12345:34:1\"]\nmetrics = \"127.0.0.1:9640\"",
                    ),
                "127.0.0.1:9640 tells another process's metrics: give each its own port",
            ),
            (with("00112233", "0011223x"), "this has 64 characters, some not hexadecimal"),
            (
                with("endpoint = \"127.0.0.1@tcp:12345:34:0\"", "endpoint = \"127.0.0.1:34\""),
                "line 11, endpoint: \"127.0.0.1:34\" is not an endpoint",
            ),
            (
                with("endpoint = \"127.0.0.1@tcp:12345:34:0\"", "endpoint = \"127.0.0.1@tcp:12345:4:0\""),
                "line 11, control.endpoint: endpoint 127.0.0.1@tcp:12345:4:0 has no port to listen on",
            ),
            (
                with("store_bytes = 16777216", "store_bytes = 4097"),
                "line 13, control.store_bytes: 4097 bytes are not a positive multiple of 4096",
            ),
            (with("layout = \"2+1+1\"", "layout = \"2+1\""), "line 18, layout: \"2+1\" is not a layout"),
            (
                with("layout = \"2+1+1\"", "layout = \"4+2+1\""),
                "line 18, pool.layout: layout 4+2+1 needs 7 devices, each group on its own; the pool has 4",
            ),
            (
                with("unit_bytes = 65536", "unit_bytes = 65537"),
                "line 19, pool.unit_bytes: unit size 65537 is not",
            ),
            (
                with("unit_bytes = 65536", "unit_bytes = 2097152"),
                "unit size 2097152 is not a multiple of 4096 from",
            ),
            (with("unit_bytes = 65536", "unit_bytes = -1"), "line 19, unit_bytes: "),
            (
                with("process = \"0x7200000000000001:2\"", "process = \"0x7200000000000001:1\""),
                "line 26, server[1].process (also line 22, server[0].process): server 0x7200000000000001:0x1 is there twice",
            ),
            (
                with("\"127.0.0.1@tcp:12345:34:3\"]", "\"127.0.0.1@tcp:99:34:1\"]"),
                "line 27, server[1].endpoints[1] (also line 23, server[0].endpoints[0]): endpoint 127.0.0.1@tcp:99:34:1 is there twice",
            ),
            (
                with("fid = \"0x6b00000000000001:2\"", "fid = \"0x6b00000000000001:1\""),
                "line 36, device[1].fid (also line 30, device[0].fid): device 0x6b00000000000001:0x1 is there twice",
            ),
            (
                with("path = \"device-2\"", "path = \"device-1\""),
                "line 38, device[1].path (also line 32, device[0].path): path device-1 is there twice on one host",
            ),
            (
                with(
                    "server = \"0x7200000000000001:2\"\nlocality = 1",
                    "server = \"0x7200000000000001:9\"\nlocality = 1",
                ),
                "line 49, device[3].server: there is no [[server]] with process 0x7200000000000001:0x9",
            ),
            (
                with("locality = 1", "locality = 2"),
                "line 50, device[3].locality: the server has 2 endpoints, so localities 0 to 1; there is no locality 2",
            ),
            (
                with("size_bytes = 268435456 # the fourth", "size_bytes = 0"),
                "line 52, device[3].size_bytes: 0 bytes are not a positive multiple of 4096",
            ),
            (
                with("size_bytes = 268435456 # the fourth", ""),
                "line 47, [[device]]: missing field `size_bytes`",
            ),
        ];
        for (text, expected) in cases {
            let message = refused(&text);
            assert!(message.contains(expected), "got  {message:?}\nwant {expected:?}");
        }
    }

    /// The good file with two more devices, and pools: `[pool]` keeps its four.
    const POOLS: &str = r#"
[[device]]
fid = "0x6b00000000000001:5"
server = "0x7200000000000001:1"
path = "device-5"
size_bytes = 268435456

[[device]]
fid = "0x6b00000000000001:6"
server = "0x7200000000000001:2"
path = "device-6"
size_bytes = 268435456

[[pool_version]]
pool = "0x6f00000000000001:1"
fid = "0x7600000000000001:2"
layout = "2+1+1"
unit_bytes = 65536
devices = ["0x6b00000000000001:1..0x6b00000000000001:4", "0x6b00000000000001:6"]

[[pool_version]]
pool = "0x6f00000000000001:2"
fid = "0x7600000000000001:3"
name = "fast"
layout = "1+0+0"
unit_bytes = 4096
devices = ["0x6b00000000000001:5"]
"#;

    fn with_pools(piece: &str, other: &str) -> String {
        let text = format!("{}{POOLS}", with("layout = \"2+1+1\"", "layout = \"2+1+1\"\ndevices = 4"));
        assert!(text.contains(piece), "{piece:?} has to stand there");
        let at = text.rfind(piece).unwrap();
        format!("{}{other}{}", &text[..at], &text[at + piece.len()..])
    }

    #[test]
    fn pools_and_their_versions_become_those_of_the_configuration() {
        let text = with_pools("", "");
        let file = ClusterFile::parse(&text).unwrap();
        assert_eq!(ClusterFile::parse(&file.to_toml().unwrap()).unwrap(), file);
        let configuration = file.initial_configuration();
        configuration.check().unwrap();
        let first = configuration.first_version();
        assert_eq!(first.device_indexes().collect::<Vec<_>>(), [0, 1, 2, 3]);
        let newest = configuration.newest_version(first.pool).unwrap();
        assert_eq!(newest.device_indexes().collect::<Vec<_>>(), [0, 1, 2, 3, 5]);
        let fast = configuration.newest_version(configuration.pool_named("fast").unwrap()).unwrap();
        assert_eq!((fast.device_indexes().collect::<Vec<_>>(), fast.unit_bytes), (vec![4], 4096));
    }

    #[test]
    fn pools_that_cannot_be_are_refused_with_their_line() {
        let cases = [
            (
                with_pools("devices = 4", "devices = 7"),
                "line 19, pool.devices: 7 is not from 1 to the 6 [[device]] sections",
            ),
            (
                with_pools("devices = 4", "devices = 3"),
                "line 18, pool.layout: layout 2+1+1 needs 4 devices, each group on its own; the pool has 3",
            ),
            (
                with_pools("0x7600000000000001:3", "0x7600000000000001:2"),
                "line 76, pool_version[1].fid (also line 69, pool_version[0].fid): pool version 0x7600000000000001:0x2 is there twice",
            ),
            (
                with_pools("name = \"fast\"\n", ""),
                "line 75, pool_version[1].pool: pool 0x6f00000000000001:0x2 begins here and needs a name",
            ),
            (
                with_pools("name = \"fast\"", "name = \"a:b\""),
                "line 77, pool_version[1].name: \"a:b\" is no name of a pool",
            ),
            (
                with_pools("name = \"fast\"", "name = \"default\""),
                "line 77, pool_version[1].name: another pool is named \"default\" already",
            ),
            (
                with_pools("layout = \"2+1+1\"\nunit", "name = \"x\"\nlayout = \"2+1+1\"\nunit"),
                "line 70, pool_version[0].name: pool 0x6f00000000000001:0x1 has its name where its first version stands",
            ),
            (
                with_pools(
                    "[\"0x6b00000000000001:5\"]",
                    "[\"0x6b00000000000001:5\", \"0x6b00000000000001:9\"]",
                ),
                "line 80, pool_version[1].devices[1]: there is no [[device]] 0x6b00000000000001:0x9",
            ),
            (
                with_pools("[\"0x6b00000000000001:5\"]", "[\"0x6b00000000000001:6\"]"),
                "pool_version[1].devices[0]: device 0x6b00000000000001:0x6 is one of pool 0x6f00000000000001:0x1",
            ),
            (
                with_pools(
                    "[\"0x6b00000000000001:5\"]",
                    "[\"0x6b00000000000001:5\", \"0x6b00000000000001:5\"]",
                ),
                "pool_version[1].devices[1]: device 0x6b00000000000001:0x5 is in this pool version already",
            ),
            (
                with_pools("[\"0x6b00000000000001:5\"]", "[]"),
                "line 78, pool_version[1].layout: layout 1+0+0 needs 1 devices, each group on its own; the pool has 0",
            ),
            (
                with_pools(
                    "0x6b00000000000001:1..0x6b00000000000001:4",
                    "0x6b00000000000001:4..0x6b00000000000001:1",
                ),
                "[[device]] 0x6b00000000000001:0x1 stands before 0x6b00000000000001:0x4",
            ),
            (
                with_pools("layout = \"1+0+0\"", "layout = \"1+2+0\""),
                "pool_version[1].layout: layout 1+2+0 needs 3 devices",
            ),
            (
                with_pools("layout = \"2+1+1\"\nunit", "layout = \"1+2+0\"\nunit"),
                "line 70, pool_version[0].layout: layout 1+2+0 promises to outlive 2 lost devices",
            ),
            (
                with_pools("unit_bytes = 4096", "unit_bytes = 100"),
                "line 79, pool_version[1].unit_bytes: unit size 100",
            ),
            (with_pools("devices = [\"0x6b00000000000001:5\"]", "devices = [\"five\"]"), "line 80"),
        ];
        for (text, expected) in cases {
            let message = refused(&text);
            assert!(message.contains(expected), "got  {message:?}\nwant {expected:?}");
        }
        let mut file = ClusterFile::parse(&with_pools("", "")).unwrap();
        while file.pool_versions.len() <= POOL_VERSIONS_MAX {
            let mut next = file.pool_versions[0].clone();
            next.fid.key = 100 + wide(file.pool_versions.len());
            file.pool_versions.push(next);
        }
        let message = file.validate().unwrap_err().to_string();
        assert!(message.contains("pool_version[8].fid: 9 pool_versions are more"), "{message}");
    }

    #[test]
    fn missing_sections_are_named() {
        let without_devices = GOOD.split("[[device]]").next().unwrap();
        assert_eq!(
            refused(without_devices),
            "device: there is no [[device]] section; the pool needs at least 4 devices"
        );
        let mut file = ClusterFile::parse(GOOD).unwrap();
        file.devices.retain(|device| device.server == file.servers[0].process);
        assert_eq!(
            file.validate().unwrap_err().to_string(),
            "server[1].process: server 0x7200000000000001:0x2 has no [[device]] section; give it one or take the server out"
        );
        file.servers.clear();
        assert!(matches!(file.validate().unwrap_err().problem, ConfigProblem::NoServer));
        assert!(refused("").contains("missing field `cluster`"));
        assert!(refused(&" ".repeat(CLUSTER_FILE_BYTES_MAX + 1)).contains("at most"));
        // A long one needs a store for it.
        let long = format!("{GOOD}\n# {}", "x".repeat(600 << 10));
        let message = refused(&long);
        let needed = store_bytes_for(long.len());
        let said = format!("needs a store of at least {needed} bytes");
        assert!(message.contains("line 13, control.store_bytes") && message.contains(&said), "{message}");
        let large = format!("store_bytes = {}", 2 * needed);
        ClusterFile::parse(&long.replace("store_bytes = 16777216", &large)).unwrap();
    }
}
