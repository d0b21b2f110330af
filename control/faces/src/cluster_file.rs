//! The operator's file of a cluster, `clovis.toml`: what there is, where, and the credential that proves membership.
//!
//! Promise: a [`ClusterFile`] that came out of [`ClusterFile::parse`] or passed [`ClusterFile::validate`] is consistent (ids,
//! paths and endpoints are unique, each device has a server, the pool fits its layout), and every refusal names the line or
//! the key. Bound: [`limits::CLUSTER_FILE_BYTES_MAX`] and the counts in [`limits`]. Holds the credential: whoever writes the
//! file gives it mode 0600. Format: docs/configuration.md. Start at [`ClusterFile`]; the checks are in `cluster_check`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use base::units::BLOCK_BYTES;
use base::{Endpoint, Fid, LayoutWidth, NetKind, Nid};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::cluster_check::{self, ConfigError, ConfigProblem, Place};
use crate::cluster_tree::{ClusterTree, Part, PartKind};
use crate::configuration::{Configuration, DeviceConfig, DeviceState, PoolConfig, ProcessConfig};
use crate::fid_order::position_of;
use crate::limits;
use crate::pools::{DeviceRun, FIRST_POOL_NAME, FurtherPools, PoolName, PoolVersionConfig};
use crate::spares::Spares;

/// Which backend carries the messages between the processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Transport {
    /// One process.
    Lo,
    /// TCP over IPv4.
    Tcp,
    /// Verbs.
    O2ib,
    /// The seeded simulation.
    Sim,
}

impl Transport {
    /// The kind of net that its endpoints are on.
    #[must_use]
    pub const fn net_kind(self) -> NetKind {
        match self {
            Transport::Lo => NetKind::Lo,
            Transport::Tcp => NetKind::Tcp,
            Transport::O2ib => NetKind::O2ib,
            Transport::Sim => NetKind::Sim,
        }
    }

    /// The word in the file.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Transport::Lo => "lo",
            Transport::Tcp => "tcp",
            Transport::O2ib => "o2ib",
            Transport::Sim => "sim",
        }
    }
}

/// The secret that the members of a cluster share: 32 bytes, 64 hexadecimal digits in the file. Never printed by `Debug`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Credential([u8; 32]);

impl Credential {
    /// From bytes that the caller took from a source of randomness.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Credential {
        Credential(bytes)
    }

    /// The bytes: the transport's token.
    #[must_use]
    pub const fn bytes(&self) -> [u8; 32] {
        self.0
    }

    fn to_hex(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// How the members of a cluster prove that they are: the `security` key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SecurityKind {
    /// All share the `credential` of the file, and it goes over the wire in the clear: whoever has it may do everything.
    #[default]
    Shared,
    /// Each has a certificate with rights of its own (docs/security.md).
    Certificates,
}

impl SecurityKind {
    /// The word in the file.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            SecurityKind::Shared => "shared",
            SecurityKind::Certificates => "certificates",
        }
    }

    #[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
    fn is_shared(&self) -> bool {
        *self == SecurityKind::Shared
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_off(flag: &bool) -> bool {
    !*flag
}

/// Stands in the place of the credential where a cluster file is kept or shown; as long as a credential.
pub const HIDDEN: &str = "----------------- the credential is not kept here --------------";
const _: () = assert!(HIDDEN.len() == 64);

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(secret)")
    }
}

/// A text is not a credential. The text is not repeated: it may be the secret with one letter too many.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a credential is 64 hexadecimal digits (32 bytes); this has {characters} characters{}", if *.other_characters { ", some not hexadecimal" } else { "" })]
pub struct ParseCredentialError {
    /// Length of the text.
    pub characters: usize,
    /// True if some are no hexadecimal digits.
    pub other_characters: bool,
}

impl FromStr for Credential {
    type Err = ParseCredentialError;
    fn from_str(text: &str) -> Result<Credential, ParseCredentialError> {
        let other_characters = !text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let error = ParseCredentialError { characters: text.chars().count(), other_characters };
        if other_characters || text.len() != 64 {
            return Err(error);
        }
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            let digits = text.get(2 * index..2 * index + 2).ok_or_else(|| error.clone())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| error.clone())?;
        }
        Ok(Credential(bytes))
    }
}

impl Serialize for Credential {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_hex())
    }
}

impl<'de> Deserialize<'de> for Credential {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Credential, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Number of a cluster: 64 bits, a hexadecimal text in the file because TOML's integers have 63.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterId(pub u64);

impl Serialize for ClusterId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#018x}", self.0))
    }
}

impl<'de> Deserialize<'de> for ClusterId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<ClusterId, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.strip_prefix("0x").unwrap_or(&text);
        match u64::from_str_radix(digits, 16) {
            Ok(number) if !digits.starts_with('+') => Ok(ClusterId(number)),
            _ => Err(serde::de::Error::custom(format!(
                "{text:?} is not a cluster id: write up to 16 hexadecimal digits after 0x"
            ))),
        }
    }
}

/// `[cluster]`: what the whole cluster has in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClusterSection {
    /// Name for people.
    pub name: String,
    /// Number that stands on every device of the cluster.
    pub id: ClusterId,
    /// The profile a client may ask for (c0cp's `-p`).
    pub profile: Fid,
    /// Backend of the network.
    pub transport: Transport,
    /// How its members prove that they are.
    #[serde(skip_serializing_if = "SecurityKind::is_shared")]
    pub security: SecurityKind,
    /// With certificates: everything between its processes is encrypted, not the hello of each connection only.
    #[serde(skip_serializing_if = "is_off")]
    pub encrypt: bool,
    /// Shared secret, unless each member has a certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential: Option<Credential>,
}

/// `[control]`: the control daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ControlSection {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// File of its durable state; relative to the folder of the cluster file.
    pub store: PathBuf,
    /// Size of that file, a multiple of 4096.
    pub store_bytes: u64,
    /// Where it tells its metrics to whoever asks; nowhere if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
    /// Its number among several; 1 if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// Further control daemons, which have the same state: none, or so many that they are three or five together.
    #[serde(rename = "member", skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<ControlMember>,
}

/// `[[control.member]]`: one more control daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ControlMember {
    /// Its number: not 0, and never used again for another store.
    pub number: u64,
    /// Where it listens.
    pub endpoint: Endpoint,
    /// File of its durable state; relative to the folder of the cluster file. As large as the first one's.
    pub store: PathBuf,
    /// Where it tells its metrics to whoever asks; nowhere if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
}

/// `[pool]`: the first pool, its first version and its layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PoolSection {
    /// The pool.
    pub fid: Fid,
    /// The pool version.
    pub version: Fid,
    /// N+K+S.
    pub layout: LayoutWidth,
    /// Unit size where an object's creator chooses none.
    pub unit_bytes: u64,
    /// Its name; [`FIRST_POOL_NAME`] if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// So many of the `[[device]]` sections are its devices, from the first one on; all of them if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<u64>,
}

/// `[[pool_version]]`: a further version of a pool, or the first one of a further pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PoolVersionSection {
    /// The pool.
    pub pool: Fid,
    /// The pool version.
    pub fid: Fid,
    /// Name of the pool, where this is its first version; nothing elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// N+K+S.
    pub layout: LayoutWidth,
    /// Unit size where an object's creator chooses none.
    pub unit_bytes: u64,
    /// Its devices; their order is their target index.
    pub devices: Vec<DeviceSpan>,
}

/// A device, or all `[[device]]` sections from one to another: `FID` or `FID..FID`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSpan {
    /// The first one.
    pub first: Fid,
    /// The last one: the same, or one that stands behind it.
    pub last: Fid,
}

impl fmt::Display for DeviceSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.first == self.last { Ok(()) } else { write!(f, "..{}", self.last) }
    }
}

impl FromStr for DeviceSpan {
    type Err = base::fid::ParseFidError;
    fn from_str(text: &str) -> Result<DeviceSpan, Self::Err> {
        match text.split_once("..") {
            Some((first, last)) => Ok(DeviceSpan { first: first.parse()?, last: last.parse()? }),
            None => text.parse().map(|fid| DeviceSpan { first: fid, last: fid }),
        }
    }
}

impl Serialize for DeviceSpan {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DeviceSpan {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<DeviceSpan, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// `[profile]`: what control lets go on by itself, and how fast. All of it may be left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ProfileSection {
    /// Bytes that the copy to a device in repair may write in a second; no limit if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repair_bytes_per_second: Option<u64>,
    /// So long a failed device waits for another disk before its units are rebuilt in spare units; 0: for ever. 600 if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spare_repair_after_seconds: Option<u64>,
    /// A device is made failed once it has been away (transient) for so long; never if 0 or left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fail_after_seconds: Option<u64>,
}

impl ProfileSection {
    /// How long a device may be away before time makes it failed; `None`: for ever.
    #[must_use]
    pub fn absence_limit(&self) -> Option<Duration> {
        self.fail_after_seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs)
    }

    fn is_default(&self) -> bool {
        *self == ProfileSection::default()
    }
}

/// `[[server]]`: one server process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServerSection {
    /// The process.
    pub process: Fid,
    /// One endpoint per locality; the first is also where its admin requests go.
    pub endpoints: Vec<Endpoint>,
    /// Further nids of its machine: it listens there too, with the same pid, portal and transfer machine ids, and peers find out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rails: Vec<Nid>,
    /// Where it tells its metrics to whoever asks; nowhere if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
    /// The machine it runs on, if the file has nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Fid>,
}

/// `[[device]]`: one device. Their order in the file is their device index: new ones stand behind the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceSection {
    /// The device.
    pub fid: Fid,
    /// The server's process fid.
    pub server: Fid,
    /// Index of the locality that owns it, into the server's endpoints.
    pub locality: u32,
    /// File or block device; relative to the folder of the cluster file.
    pub path: PathBuf,
    /// Size, a multiple of 4096.
    pub size_bytes: u64,
    /// The disk that it is, if the file says where devices stand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<Fid>,
}

/// A cluster as its operator wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClusterFile {
    /// What all have in common.
    pub cluster: ClusterSection,
    /// The control daemon.
    pub control: ControlSection,
    /// The first pool.
    pub pool: PoolSection,
    /// All other versions of pools, each pool's in the order in which they were made.
    #[serde(rename = "pool_version", skip_serializing_if = "Vec::is_empty")]
    pub pool_versions: Vec<PoolVersionSection>,
    /// What goes on by itself.
    #[serde(skip_serializing_if = "ProfileSection::is_default")]
    pub profile: ProfileSection,
    /// The server processes.
    #[serde(rename = "server")]
    pub servers: Vec<ServerSection>,
    /// The devices by device index.
    #[serde(rename = "device")]
    pub devices: Vec<DeviceSection>,
    /// Racks, enclosures, controllers, disks, nodes and services.
    #[serde(flatten)]
    pub tree: ClusterTree,
}

impl ClusterFile {
    /// Reads and checks a cluster file. Errors: not TOML, a key unknown, missing or of the wrong type, and all that
    /// [`ClusterFile::validate`] refuses; each with its line.
    pub fn parse(text: &str) -> Result<ClusterFile, ConfigError> {
        if text.len() > limits::CLUSTER_FILE_BYTES_MAX {
            return Err(ConfigError::whole_file(ConfigProblem::TooLong { bytes: text.len() }));
        }
        let raw: RawFile = toml::from_str(text).map_err(|error| syntax_error(text, &error))?;
        let spans = Spans::of(text, &raw);
        let file = raw.into_file();
        cluster_check::check(&file)
            .and_then(|()| cluster_check::check_store(&file, text.len()))
            .map_err(|fault| spans.locate(fault))?;
        Ok(file)
    }

    /// The text with the credential's place taken by [`HIDDEN`], comments and all: what control keeps and shows.
    /// Errors: as [`ClusterFile::parse`].
    pub fn hide_credential(text: &str) -> Result<String, ConfigError> {
        ClusterFile::parse(text)?;
        let raw: RawFile = toml::from_str(text).map_err(|error| syntax_error(text, &error))?;
        let mut hidden = text.to_owned();
        if let Some(credential) = raw.cluster.credential {
            hidden.replace_range(credential.span(), &format!("\"{HIDDEN}\""));
        }
        Ok(hidden)
    }

    /// Reads a text whose credential is hidden. Errors: as [`ClusterFile::parse`].
    pub fn parse_hidden(text: &str, credential: Option<Credential>) -> Result<ClusterFile, ConfigError> {
        match credential {
            Some(credential) => ClusterFile::parse(&text.replacen(HIDDEN, &credential.to_hex(), 1)),
            None => ClusterFile::parse(text),
        }
    }

    /// Checks a file that was put together by a program. Errors name the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        cluster_check::check(self).map_err(|fault| {
            let other = fault.other.as_ref().map(|place| format!(" (also {place})")).unwrap_or_default();
            ConfigError { line: None, key: format!("{}{other}", fault.place), problem: fault.problem }
        })
    }

    /// The file's text, with a head that says what it is. Contains the credential: write it with mode 0600.
    /// Errors: a path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        let body = toml::to_string(self).map_err(|error| {
            ConfigError::whole_file(ConfigProblem::Unwritable { message: error.to_string() })
        })?;
        let secret = match self.cluster.credential {
            Some(_) => " Contains its credential: keep it readable by its owner only.",
            None => "",
        };
        Ok(format!("# A Clovis cluster (docs/configuration.md).{secret}\n\n{body}"))
    }

    /// Version 1 of the configuration: every device Unknown.
    ///
    /// Only meaningful for a checked file; a device whose server or locality is missing gets the control endpoint.
    #[must_use]
    pub fn initial_configuration(&self) -> Configuration {
        let processes = self
            .servers
            .iter()
            .map(|server| ProcessConfig {
                process: server.process,
                endpoint: server.endpoints.first().copied().unwrap_or(self.control.endpoint),
                epoch: 0,
            })
            .collect();
        let devices = self
            .devices
            .iter()
            .map(|device| DeviceConfig {
                device: device.fid,
                process: device.server,
                endpoint: self.endpoint_of(device).unwrap_or(self.control.endpoint),
                state: DeviceState::Unknown,
                size_blocks: 0,
                replaced: 0,
            })
            .collect();
        Configuration {
            version: 1,
            cluster: self.cluster.id.0,
            profile: self.cluster.profile,
            control: self.control.endpoint,
            processes,
            pool: PoolConfig {
                pool: self.pool.fid,
                pool_version: self.pool.version,
                width: self.pool.layout,
                unit_bytes: u32::try_from(self.pool.unit_bytes).unwrap_or(u32::MAX),
                devices,
                awaited_disks: Vec::new(),
                changes_from: 0,
            },
            pools: self.further_pools(),
            spares: Spares::default(),
        }
    }

    fn further_pools(&self) -> FurtherPools {
        let version = |section: &PoolVersionSection| PoolVersionConfig {
            pool: section.pool,
            pool_version: section.fid,
            width: section.layout,
            unit_bytes: u32::try_from(section.unit_bytes).unwrap_or(u32::MAX),
            devices: DeviceRun::of(self.devices_of_version(section)),
        };
        let named = self.pool_versions.iter().map(|section| (section.pool, section.name.as_ref()));
        let first = self.pool.name.as_ref().filter(|name| *name != FIRST_POOL_NAME);
        let names = std::iter::once((self.pool.fid, first)).chain(named);
        FurtherPools {
            first_devices: u32::try_from(self.first_devices()).unwrap_or(u32::MAX),
            versions: self.pool_versions.iter().map(version).collect(),
            names: names.filter_map(|(pool, name)| Some(PoolName { pool, name: name?.clone() })).collect(),
            moving: Vec::new(),
        }
    }

    /// How many of the devices, from the first one on, the first pool version has.
    #[must_use]
    pub fn first_devices(&self) -> usize {
        let said = self.pool.devices.map(|count| usize::try_from(count).unwrap_or(usize::MAX));
        said.unwrap_or(self.devices.len()).min(self.devices.len())
    }

    /// Device indexes of a pool version by target index; of a checked file, all that it names.
    #[must_use]
    pub fn devices_of_version(&self, section: &PoolVersionSection) -> Vec<u32> {
        let place = |fid: Fid| self.devices.iter().position(|device| device.fid == fid);
        let indexes = |span: &DeviceSpan| {
            let range = place(span.first).zip(place(span.last)).map_or(0..0, |(first, last)| first..last + 1);
            range.filter_map(|index| u32::try_from(index).ok())
        };
        section.devices.iter().flat_map(indexes).collect()
    }

    /// Number of the control daemon of the `[control]` section.
    #[must_use]
    pub fn first_control(&self) -> u64 {
        self.control.number.unwrap_or(1)
    }

    /// Number and endpoint of each control daemon: of one, or of several that have one state.
    pub fn control_members(&self) -> impl Iterator<Item = (u64, Endpoint)> + '_ {
        let further = self.control.members.iter().map(|member| (member.number, member.endpoint));
        std::iter::once((self.first_control(), self.control.endpoint)).chain(further)
    }

    /// Endpoints of the control daemons beside the first.
    #[must_use]
    pub fn further_controls(&self) -> Vec<Endpoint> {
        self.control.members.iter().map(|member| member.endpoint).collect()
    }

    /// The server with this process fid.
    #[must_use]
    pub fn server(&self, process: Fid) -> Option<&ServerSection> {
        self.servers.get(position_of(&self.servers, process, |server| server.process)?)
    }

    /// The devices of one server.
    pub fn devices_of(&self, process: Fid) -> impl Iterator<Item = &DeviceSection> {
        self.devices.iter().filter(move |device| device.server == process)
    }

    /// Endpoint of the locality that owns `device`.
    #[must_use]
    pub fn endpoint_of(&self, device: &DeviceSection) -> Option<Endpoint> {
        let server = self.server(device.server)?;
        server.endpoints.get(usize::try_from(device.locality).ok()?).copied()
    }
}

impl DeviceSection {
    /// Size in blocks.
    #[must_use]
    pub const fn size_blocks(&self) -> u64 {
        self.size_bytes / BLOCK_BYTES
    }
}

// The same shape with spans: only the parser sees it.

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    cluster: RawCluster,
    control: RawControl,
    pool: RawPool,
    #[serde(default, rename = "pool_version")]
    pool_versions: Vec<RawPoolVersion>,
    #[serde(default)]
    profile: RawProfile,
    #[serde(default, rename = "server")]
    servers: Vec<RawServer>,
    #[serde(default, rename = "device")]
    devices: Vec<RawDevice>,
    #[serde(default, rename = "rack")]
    racks: Vec<RawPart>,
    #[serde(default, rename = "enclosure")]
    enclosures: Vec<RawPart>,
    #[serde(default, rename = "controller")]
    controllers: Vec<RawPart>,
    #[serde(default, rename = "disk")]
    disks: Vec<RawPart>,
    #[serde(default, rename = "node")]
    nodes: Vec<RawPart>,
    #[serde(default, rename = "service")]
    services: Vec<RawPart>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPart {
    fid: Spanned<Fid>,
    #[serde(default)]
    name: Option<Spanned<String>>,
    #[serde(default, rename = "in")]
    inside: Option<Spanned<Fid>>,
}

impl RawPart {
    fn into_part(self) -> Part {
        Part {
            fid: self.fid.into_inner(),
            name: self.name.map(Spanned::into_inner),
            inside: self.inside.map(Spanned::into_inner),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCluster {
    name: Spanned<String>,
    id: Spanned<ClusterId>,
    profile: Spanned<Fid>,
    transport: Spanned<Transport>,
    #[serde(default)]
    security: Option<Spanned<SecurityKind>>,
    #[serde(default)]
    encrypt: Option<Spanned<bool>>,
    #[serde(default)]
    credential: Option<Spanned<Credential>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawControl {
    endpoint: Spanned<Endpoint>,
    store: Spanned<PathBuf>,
    store_bytes: Spanned<u64>,
    #[serde(default)]
    metrics: Option<Spanned<SocketAddr>>,
    #[serde(default)]
    number: Option<Spanned<u64>>,
    #[serde(default, rename = "member")]
    members: Vec<RawControlMember>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawControlMember {
    number: Spanned<u64>,
    endpoint: Spanned<Endpoint>,
    store: Spanned<PathBuf>,
    #[serde(default)]
    metrics: Option<Spanned<SocketAddr>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPool {
    fid: Spanned<Fid>,
    version: Spanned<Fid>,
    layout: Spanned<LayoutWidth>,
    unit_bytes: Spanned<u64>,
    #[serde(default)]
    name: Option<Spanned<String>>,
    #[serde(default)]
    devices: Option<Spanned<u64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPoolVersion {
    pool: Spanned<Fid>,
    fid: Spanned<Fid>,
    #[serde(default)]
    name: Option<Spanned<String>>,
    layout: Spanned<LayoutWidth>,
    unit_bytes: Spanned<u64>,
    devices: Spanned<Vec<Spanned<DeviceSpan>>>,
}

impl RawPoolVersion {
    fn into_section(self) -> PoolVersionSection {
        PoolVersionSection {
            pool: self.pool.into_inner(),
            fid: self.fid.into_inner(),
            name: self.name.map(Spanned::into_inner),
            layout: self.layout.into_inner(),
            unit_bytes: self.unit_bytes.into_inner(),
            devices: self.devices.into_inner().into_iter().map(Spanned::into_inner).collect(),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProfile {
    #[serde(default)]
    repair_bytes_per_second: Option<Spanned<u64>>,
    #[serde(default)]
    spare_repair_after_seconds: Option<u64>,
    #[serde(default)]
    fail_after_seconds: Option<Spanned<u64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawServer {
    process: Spanned<Fid>,
    endpoints: Spanned<Vec<Spanned<Endpoint>>>,
    #[serde(default)]
    rails: Vec<Nid>,
    #[serde(default)]
    metrics: Option<Spanned<SocketAddr>>,
    #[serde(default)]
    node: Option<Spanned<Fid>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDevice {
    fid: Spanned<Fid>,
    server: Spanned<Fid>,
    #[serde(default)]
    locality: Option<Spanned<u32>>,
    path: Spanned<PathBuf>,
    size_bytes: Spanned<u64>,
    #[serde(default)]
    disk: Option<Spanned<Fid>>,
}

impl RawFile {
    fn parts(&self, kind: PartKind) -> &[RawPart] {
        match kind {
            PartKind::Rack => &self.racks,
            PartKind::Enclosure => &self.enclosures,
            PartKind::Controller => &self.controllers,
            PartKind::Disk => &self.disks,
            PartKind::Node => &self.nodes,
            PartKind::Service => &self.services,
        }
    }

    fn into_file(self) -> ClusterFile {
        let parts = |raw: Vec<RawPart>| raw.into_iter().map(RawPart::into_part).collect();
        ClusterFile {
            tree: ClusterTree {
                racks: parts(self.racks),
                enclosures: parts(self.enclosures),
                controllers: parts(self.controllers),
                disks: parts(self.disks),
                nodes: parts(self.nodes),
                services: parts(self.services),
            },
            cluster: ClusterSection {
                name: self.cluster.name.into_inner(),
                id: self.cluster.id.into_inner(),
                profile: self.cluster.profile.into_inner(),
                transport: self.cluster.transport.into_inner(),
                security: self.cluster.security.map_or_else(SecurityKind::default, Spanned::into_inner),
                encrypt: self.cluster.encrypt.is_some_and(Spanned::into_inner),
                credential: self.cluster.credential.map(Spanned::into_inner),
            },
            control: ControlSection {
                endpoint: self.control.endpoint.into_inner(),
                store: self.control.store.into_inner(),
                store_bytes: self.control.store_bytes.into_inner(),
                metrics: self.control.metrics.map(Spanned::into_inner),
                number: self.control.number.map(Spanned::into_inner),
                members: self
                    .control
                    .members
                    .into_iter()
                    .map(|member| ControlMember {
                        number: member.number.into_inner(),
                        endpoint: member.endpoint.into_inner(),
                        store: member.store.into_inner(),
                        metrics: member.metrics.map(Spanned::into_inner),
                    })
                    .collect(),
            },
            pool: PoolSection {
                fid: self.pool.fid.into_inner(),
                version: self.pool.version.into_inner(),
                layout: self.pool.layout.into_inner(),
                unit_bytes: self.pool.unit_bytes.into_inner(),
                name: self.pool.name.map(Spanned::into_inner),
                devices: self.pool.devices.map(Spanned::into_inner),
            },
            pool_versions: self.pool_versions.into_iter().map(RawPoolVersion::into_section).collect(),
            profile: ProfileSection {
                repair_bytes_per_second: self.profile.repair_bytes_per_second.map(Spanned::into_inner),
                spare_repair_after_seconds: self.profile.spare_repair_after_seconds,
                fail_after_seconds: self.profile.fail_after_seconds.map(Spanned::into_inner),
            },
            servers: self
                .servers
                .into_iter()
                .map(|server| ServerSection {
                    process: server.process.into_inner(),
                    endpoints: server.endpoints.into_inner().into_iter().map(Spanned::into_inner).collect(),
                    rails: server.rails,
                    metrics: server.metrics.map(Spanned::into_inner),
                    node: server.node.map(Spanned::into_inner),
                })
                .collect(),
            devices: self
                .devices
                .into_iter()
                .map(|device| DeviceSection {
                    fid: device.fid.into_inner(),
                    server: device.server.into_inner(),
                    locality: device.locality.map_or(0, Spanned::into_inner),
                    path: device.path.into_inner(),
                    size_bytes: device.size_bytes.into_inner(),
                    disk: device.disk.map(Spanned::into_inner),
                })
                .collect(),
        }
    }
}

/// From the place of a fault to its line.
struct Spans<'text> {
    text: &'text str,
    /// Where each place begins in the text, in bytes.
    starts: Vec<(Place, usize)>,
}

impl<'text> Spans<'text> {
    fn of(text: &'text str, raw: &RawFile) -> Spans<'text> {
        let mut spans = Spans { text, starts: Vec::new() };
        let mut add = |place: Place, span: std::ops::Range<usize>| {
            spans.starts.push((place, span.start));
        };
        add(Place::Key("cluster.name"), raw.cluster.name.span());
        add(Place::Key("cluster.id"), raw.cluster.id.span());
        add(Place::Key("cluster.profile"), raw.cluster.profile.span());
        add(Place::Key("cluster.transport"), raw.cluster.transport.span());
        if let Some(security) = &raw.cluster.security {
            add(Place::Key("cluster.security"), security.span());
        }
        if let Some(encrypt) = &raw.cluster.encrypt {
            add(Place::Key("cluster.encrypt"), encrypt.span());
        }
        if let Some(credential) = &raw.cluster.credential {
            add(Place::Key("cluster.credential"), credential.span());
        }
        add(Place::Key("control.endpoint"), raw.control.endpoint.span());
        add(Place::Key("control.store"), raw.control.store.span());
        add(Place::Key("control.store_bytes"), raw.control.store_bytes.span());
        if let Some(metrics) = &raw.control.metrics {
            add(Place::Key("control.metrics"), metrics.span());
        }
        if let Some(number) = &raw.control.number {
            add(Place::Key("control.number"), number.span());
        }
        for (index, member) in raw.control.members.iter().enumerate() {
            add(Place::Control(index, "number"), member.number.span());
            add(Place::Control(index, "endpoint"), member.endpoint.span());
            add(Place::Control(index, "store"), member.store.span());
            if let Some(metrics) = &member.metrics {
                add(Place::Control(index, "metrics"), metrics.span());
            }
        }
        add(Place::Key("pool.fid"), raw.pool.fid.span());
        add(Place::Key("pool.version"), raw.pool.version.span());
        add(Place::Key("pool.layout"), raw.pool.layout.span());
        add(Place::Key("pool.unit_bytes"), raw.pool.unit_bytes.span());
        if let Some(name) = &raw.pool.name {
            add(Place::Key("pool.name"), name.span());
        }
        if let Some(devices) = &raw.pool.devices {
            add(Place::Key("pool.devices"), devices.span());
        }
        for (index, version) in raw.pool_versions.iter().enumerate() {
            add(Place::PoolVersion(index, "pool"), version.pool.span());
            add(Place::PoolVersion(index, "fid"), version.fid.span());
            if let Some(name) = &version.name {
                add(Place::PoolVersion(index, "name"), name.span());
            }
            add(Place::PoolVersion(index, "layout"), version.layout.span());
            add(Place::PoolVersion(index, "unit_bytes"), version.unit_bytes.span());
            add(Place::PoolVersion(index, "devices"), version.devices.span());
            for (place, device) in version.devices.get_ref().iter().enumerate() {
                add(Place::VersionDevice(index, place), device.span());
            }
        }
        if let Some(rate) = &raw.profile.repair_bytes_per_second {
            add(Place::Key("profile.repair_bytes_per_second"), rate.span());
        }
        if let Some(seconds) = &raw.profile.fail_after_seconds {
            add(Place::Key("profile.fail_after_seconds"), seconds.span());
        }
        for (index, server) in raw.servers.iter().enumerate() {
            add(Place::Server(index, "process"), server.process.span());
            add(Place::Server(index, "endpoints"), server.endpoints.span());
            if let Some(metrics) = &server.metrics {
                add(Place::Server(index, "metrics"), metrics.span());
            }
            if let Some(node) = &server.node {
                add(Place::Server(index, "node"), node.span());
            }
            for (locality, endpoint) in server.endpoints.get_ref().iter().enumerate() {
                add(Place::ServerEndpoint(index, locality), endpoint.span());
            }
        }
        for (index, device) in raw.devices.iter().enumerate() {
            add(Place::Device(index, "fid"), device.fid.span());
            add(Place::Device(index, "server"), device.server.span());
            if let Some(locality) = &device.locality {
                add(Place::Device(index, "locality"), locality.span());
            }
            add(Place::Device(index, "path"), device.path.span());
            add(Place::Device(index, "size_bytes"), device.size_bytes.span());
            if let Some(disk) = &device.disk {
                add(Place::Device(index, "disk"), disk.span());
            }
        }
        for kind in PartKind::ALL {
            for (index, part) in raw.parts(kind).iter().enumerate() {
                add(Place::Part(kind, index, "fid"), part.fid.span());
                if let Some(name) = &part.name {
                    add(Place::Part(kind, index, "name"), name.span());
                }
                if let Some(inside) = &part.inside {
                    add(Place::Part(kind, index, "in"), inside.span());
                }
            }
        }
        spans
    }

    fn line(&self, place: &Place) -> Option<u32> {
        let (_, start) = self.starts.iter().find(|(candidate, _)| candidate == place)?;
        Some(line_of(self.text, *start))
    }

    fn locate(&self, fault: cluster_check::Fault) -> ConfigError {
        let other = fault
            .other
            .as_ref()
            .map(|place| match self.line(place) {
                Some(line) => format!(" (also line {line}, {place})"),
                None => format!(" (also {place})"),
            })
            .unwrap_or_default();
        ConfigError {
            line: self.line(&fault.place),
            key: format!("{}{other}", fault.place),
            problem: fault.problem,
        }
    }
}

/// Line of a byte offset, from 1.
fn line_of(text: &str, offset: usize) -> u32 {
    let before = text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count();
    u32::try_from(before).unwrap_or(u32::MAX).saturating_add(1)
}

/// What the TOML parser or serde refused, with its line, and the key or section that stands there.
fn syntax_error(text: &str, error: &toml::de::Error) -> ConfigError {
    let line = error.span().map(|span| line_of(text, span.start));
    let key = line
        .and_then(|line| text.lines().nth(usize::try_from(line).ok()?.checked_sub(1)?))
        .map(|line| line.split('=').next().unwrap_or_default().trim())
        .filter(|key| key.len() <= 64)
        .unwrap_or_default();
    ConfigError {
        line,
        key: key.to_owned(),
        problem: ConfigProblem::Syntax { message: error.message().to_owned() },
    }
}
