//! The configuration as everybody sees it: one versioned value, made by control, cached by all others.
//!
//! An operator's TOML is another shape (`clovis.toml`, see docs/configuration.md); this one is what travels, encoded with the
//! codec of `fops`.

use std::collections::BTreeSet;

use base::limits::UNIT_BYTES_MAX;
use base::units::BLOCK_BYTES;
use base::{Blame, Blamed, Endpoint, Fid, LayoutWidth};
use bincode::{Decode, Encode};
use fops::codec::{self, CodecError};
use serde::{Deserialize, Serialize};

use crate::conf_difference::BadDifference;
use crate::conf_parts::BadParts;
use crate::fid_order::position_of;
use crate::limits::{AWAITED_DISKS_MAX, DEVICES_MAX, SERVERS_MAX};
use crate::pools::FurtherPools;
use crate::spares::Spares;

/// Number of the form of the encoded configuration: grows when a field is added. Control's store and [`fops::conf_sync::ConfSync`] name it.
pub const CONFIGURATION_FORMAT: u32 = 2;

/// State of a device, as HA decides it. Words: docs/glossary.md; transitions: docs/ha.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DeviceState {
    /// Never registered since the configuration was made.
    Unknown,
    /// Registered, its server's lease holds.
    Online,
    /// Its server's lease is lost: may come back with its bytes.
    Transient,
    /// Useless until it is repaired: its units are skipped by writes and rebuilt by reads.
    Failed,
    /// Its disk is new: it takes every write, what it had before is being copied to it, and reads rebuild its units.
    Repair,
    /// Its units stand in spare units.
    Repaired,
    /// Its units are moving back.
    Rebalance,
    /// An operator took it out: as Transient, but nothing other than the operator brings it back.
    Detached,
}

impl DeviceState {
    /// The word for people and for `fops::conf::DeviceStatus`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            DeviceState::Unknown => "unknown",
            DeviceState::Online => "online",
            DeviceState::Transient => "transient",
            DeviceState::Failed => "failed",
            DeviceState::Repair => "repair",
            DeviceState::Repaired => "repaired",
            DeviceState::Rebalance => "rebalance",
            DeviceState::Detached => "detached",
        }
    }

    /// True if nothing is missing of what the device has to hold: it has its bytes and answers, or spare units have them.
    #[must_use]
    pub const fn is_whole(self) -> bool {
        matches!(self, DeviceState::Online | DeviceState::Repaired | DeviceState::Rebalance)
    }

    /// Every state, the liveliest first.
    pub const BY_LIFE: [DeviceState; 8] = [
        DeviceState::Online,
        DeviceState::Rebalance,
        DeviceState::Repair,
        DeviceState::Transient,
        DeviceState::Detached,
        DeviceState::Unknown,
        DeviceState::Repaired,
        DeviceState::Failed,
    ];

    /// State of a thing that is made of others (a node, a rack): that of its liveliest part; Unknown if it has none.
    #[must_use]
    pub fn of_parts(parts: impl IntoIterator<Item = DeviceState>) -> DeviceState {
        let rank = |state: &DeviceState| Self::BY_LIFE.iter().position(|other| other == state);
        parts.into_iter().min_by_key(rank).unwrap_or(DeviceState::Unknown)
    }

    /// Inverse of [`DeviceState::word`].
    #[must_use]
    pub fn from_word(word: &str) -> Option<DeviceState> {
        Self::BY_LIFE.into_iter().find(|state| state.word() == word)
    }
}

/// One device of the cluster, known by its position in [`PoolConfig::devices`], its device index.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DeviceConfig {
    /// The device.
    pub device: Fid,
    /// The process that serves it.
    pub process: Fid,
    /// Endpoint of the locality that owns it.
    pub endpoint: Endpoint,
    /// Its state.
    pub state: DeviceState,
    /// Size in blocks; 0 until it registers.
    pub size_blocks: u64,
    /// How many disks it had before the one in force: the number of that disk's replacement, which is on it.
    pub replaced: u32,
}

/// One server process.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ProcessConfig {
    /// The process.
    pub process: Fid,
    /// Endpoint of its first locality.
    pub endpoint: Endpoint,
    /// Its last registered incarnation, 0 if none.
    pub epoch: u64,
}

/// The first pool with its first version, and the devices of the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PoolConfig {
    /// The pool.
    pub pool: Fid,
    /// The pool version.
    pub pool_version: Fid,
    /// N+K+S.
    pub width: LayoutWidth,
    /// Unit size where the object's creator chooses none.
    pub unit_bytes: u32,
    /// All devices of the cluster, also those of further pools and of none; new ones come behind. The first pool version has the first
    /// [`FurtherPools::first_devices`] of them, by target index.
    pub devices: Vec<DeviceConfig>,
    /// Failed devices whose servers are to format a new disk, at most [`AWAITED_DISKS_MAX`].
    pub awaited_disks: Vec<Fid>,
    /// Changes of requesters with an older version are refused: they would go past a device that takes writes again since this one.
    pub changes_from: u64,
}

/// The configuration in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// Grows with each change; rides on every request.
    pub version: u64,
    /// The cluster's id: devices of another cluster are foreign.
    pub cluster: u64,
    /// The profile a client may ask for.
    pub profile: Fid,
    /// Endpoint of the control daemon.
    pub control: Endpoint,
    /// The server processes.
    pub processes: Vec<ProcessConfig>,
    /// The first pool version, and all devices.
    pub pool: PoolConfig,
    /// All other pool versions.
    pub pools: FurtherPools,
    /// Devices whose units stand in spare units.
    pub spares: Spares,
}

impl Configuration {
    /// Number of the disk that a device is to have: that of the one in force, or of the one that is awaited. 0 for an unknown device.
    #[must_use]
    pub fn replacement_of(&self, device: Fid) -> u32 {
        let replaced = self.device(device).map_or(0, |found| found.replaced);
        replaced.saturating_add(u32::from(self.pool.awaited_disks.contains(&device)))
    }

    /// The device of a device index.
    #[must_use]
    pub fn target(&self, index: u32) -> Option<&DeviceConfig> {
        self.pool.devices.get(usize::try_from(index).ok()?)
    }

    /// Device index of a device.
    #[must_use]
    pub fn target_index(&self, device: Fid) -> Option<u32> {
        u32::try_from(self.pool.position(device)?).ok()
    }
}

impl PoolConfig {
    /// Index of a device. Quick where the devices stand in the order of their fids, as this program writes cluster files.
    #[must_use]
    pub fn position(&self, device: Fid) -> Option<usize> {
        position_of(&self.devices, device, |candidate| candidate.device)
    }
}

/// Why bytes are not a configuration, or a configuration cannot travel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigurationError {
    /// The codec refused them.
    #[error("the configuration does not decode: {0}")]
    Codec(#[from] CodecError),
    /// More than a configuration carries.
    #[error("{count} {what} are more than a configuration carries ({max})")]
    TooMany {
        /// Devices or processes.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many may be.
        max: usize,
    },
    /// A group does not fit the pool.
    #[error("layout {width} needs {} devices and the pool has {devices}", width.width())]
    PoolTooNarrow {
        /// The layout.
        width: LayoutWidth,
        /// Devices of the pool version.
        devices: u32,
    },
    /// Pool versions of devices that are not there, or none of their own.
    #[error("pool version {pool_version} is there twice, or has devices that are not there, or one twice")]
    PoolVersion {
        /// The pool version.
        pool_version: Fid,
    },
    /// Two devices in one place, or one in two.
    #[error(
        "device {device} (by its index) has spare slot {slot}, and it is in no pool, has another slot, or another device of its pool has this one"
    )]
    SpareSlot {
        /// Device index.
        device: u32,
        /// The slot.
        slot: u32,
    },
    /// A unit size out of range.
    #[error("unit size {bytes} is not a multiple of {BLOCK_BYTES} up to {UNIT_BYTES_MAX}")]
    UnitSize {
        /// As it stands.
        bytes: u32,
    },
    /// Changes that do not fit the configuration that they are to change.
    #[error(transparent)]
    Difference(#[from] BadDifference),
    /// Parts that are not a whole.
    #[error(transparent)]
    Parts(#[from] BadParts),
    /// Bytes of another configuration than was announced.
    #[error(
        "version {version} was announced with checksum {expected:#010x}, and its bytes have {found:#010x}"
    )]
    Checksum {
        /// As announced.
        version: u64,
        /// As announced.
        expected: u32,
        /// Of the bytes.
        found: u32,
    },
    /// A version that was not announced.
    #[error("version {expected} was announced, and version {found} came")]
    OtherVersion {
        /// As announced.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// Parts for ever.
    #[error("it was not whole after {messages} messages")]
    Endless {
        /// How many came.
        messages: usize,
    },
    /// A device twice, or of a process that is not there.
    #[error("device {device} is there twice, or its process {process} is not there")]
    Device {
        /// The device.
        device: Fid,
        /// Its process.
        process: Fid,
    },
}

impl Blamed for ConfigurationError {
    fn blame(&self) -> Blame {
        Blame::Peer
    }
}

impl Configuration {
    /// The bytes that travel. Where there is one pool version with all devices, they end as they did before there were more, and where no device ever
    /// had a slot of spare units as they did before there were any, so that processes of the version before understand them. Errors: larger than the limits allow.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ConfigurationError> {
        self.check()?;
        self.to_bytes_again()
    }

    /// The same of one that was checked before.
    pub(crate) fn to_bytes_again(&self) -> Result<Vec<u8>, ConfigurationError> {
        let Configuration { version, cluster, profile, control, processes, pool, pools, spares } = self;
        let head = (version, cluster, profile, control, processes, pool);
        if !spares.says_nothing() {
            return Ok(codec::encode_long(&(head, pools, spares))?);
        }
        if pools.says_nothing(pool.devices.len()) {
            return Ok(codec::encode_long(&head)?);
        }
        Ok(codec::encode_long(&(head, pools))?)
    }

    /// Reads and checks the bytes that [`Configuration::to_bytes`] made, on another machine.
    pub fn from_bytes(bytes: &[u8]) -> Result<Configuration, ConfigurationError> {
        // Behind the one shape stands more, so that bytes are only ever of one of them.
        let (head, pools, spares) = match codec::decode_long::<ConfigurationHead>(bytes) {
            Ok(head) => (head, None, Spares::default()),
            Err(_) => match codec::decode_long::<(ConfigurationHead, FurtherPools)>(bytes) {
                Ok((head, pools)) => (head, Some(pools), Spares::default()),
                Err(_) => codec::decode_long::<(ConfigurationHead, FurtherPools, Spares)>(bytes)
                    .map(|(head, pools, spares)| (head, Some(pools), spares))?,
            },
        };
        let (version, cluster, profile, control, processes, pool) = head;
        let pools = pools.unwrap_or_else(|| FurtherPools::none(pool.devices.len()));
        let configuration =
            Configuration { version, cluster, profile, control, processes, pool, pools, spares };
        configuration.check()?;
        Ok(configuration)
    }

    /// Reads the bytes of a version that knew no replacements of disks: there were none.
    pub fn from_bytes_1(bytes: &[u8]) -> Result<Configuration, ConfigurationError> {
        let configuration = Configuration::from(codec::decode_long::<Configuration1>(bytes)?);
        configuration.check()?;
        Ok(configuration)
    }

    /// What every user of a configuration relies on. Errors: see [`ConfigurationError`].
    pub fn check(&self) -> Result<(), ConfigurationError> {
        let devices = &self.pool.devices;
        for (what, count, max) in [
            ("devices", devices.len(), DEVICES_MAX),
            ("processes", self.processes.len(), SERVERS_MAX),
            ("awaited disks", self.pool.awaited_disks.len(), AWAITED_DISKS_MAX),
        ] {
            if count > max {
                return Err(ConfigurationError::TooMany { what, count, max });
            }
        }
        self.pools.check(devices.len())?;
        self.check_spares()?;
        for version in self.pool_versions() {
            let (width, devices) = (version.width, version.device_count());
            if u64::from(devices) < u64::from(width.width()) {
                return Err(ConfigurationError::PoolTooNarrow { width, devices });
            }
            let bytes = u64::from(version.unit_bytes);
            if bytes == 0 || bytes > UNIT_BYTES_MAX || !bytes.is_multiple_of(BLOCK_BYTES) {
                return Err(ConfigurationError::UnitSize { bytes: version.unit_bytes });
            }
        }
        let processes: BTreeSet<Fid> = self.processes.iter().map(|process| process.process).collect();
        // In the order of their fids, as they mostly are, none is there twice.
        let in_order = devices.is_sorted_by(|one, next| one.device < next.device);
        let (mut seen, mut known) = (BTreeSet::new(), None);
        for DeviceConfig { device, process, .. } in devices {
            let is_double = !in_order && !seen.insert(*device);
            if is_double || !(known == Some(process) || processes.contains(process)) {
                return Err(ConfigurationError::Device { device: *device, process: *process });
            }
            known = Some(process);
        }
        Ok(())
    }

    /// The device with this fid.
    #[must_use]
    pub fn device(&self, device: Fid) -> Option<&DeviceConfig> {
        self.pool.devices.get(self.pool.position(device)?)
    }

    /// The process with this fid.
    #[must_use]
    pub fn process(&self, process: Fid) -> Option<&ProcessConfig> {
        self.processes.get(self.process_position(process)?)
    }

    /// Index of a process, found as [`PoolConfig::position`] finds a device.
    #[must_use]
    pub fn process_position(&self, process: Fid) -> Option<usize> {
        position_of(&self.processes, process, |candidate| candidate.process)
    }
}

/// A `Configuration` with one pool version: all of its fields but the last.
type ConfigurationHead = (u64, u64, Fid, Endpoint, Vec<ProcessConfig>, PoolConfig);

/// A `DeviceConfig` of format 1: device, process, endpoint, state, size.
type DeviceConfig1 = (Fid, Fid, Endpoint, DeviceState, u64);

/// A `Configuration` of format 1: its pool without `changes_from`, its devices without numbers of replacements.
#[derive(Decode)]
#[cfg_attr(test, derive(Encode))]
struct Configuration1 {
    version: u64,
    cluster: u64,
    profile: Fid,
    control: Endpoint,
    processes: Vec<ProcessConfig>,
    pool: (Fid, Fid, LayoutWidth, u32, Vec<DeviceConfig1>),
}

impl From<Configuration1> for Configuration {
    fn from(old: Configuration1) -> Configuration {
        let (pool, pool_version, width, unit_bytes, devices) = old.pool;
        let device = |(device, process, endpoint, state, size_blocks)| DeviceConfig {
            device,
            process,
            endpoint,
            state,
            size_blocks,
            replaced: 0,
        };
        let devices: Vec<DeviceConfig> = devices.into_iter().map(device).collect();
        Configuration {
            pools: FurtherPools::none(devices.len()),
            spares: Spares::default(),
            version: old.version,
            cluster: old.cluster,
            profile: old.profile,
            control: old.control,
            processes: old.processes,
            pool: PoolConfig {
                pool,
                pool_version,
                width,
                unit_bytes,
                devices,
                awaited_disks: Vec::new(),
                changes_from: 0,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use base::FidType;

    use super::*;
    use crate::cluster_file::ClusterFile;
    use crate::limits::{CONFIGURATION_BYTES_MAX, CONFIGURATION_HEAD_BYTES};
    use crate::limits::{DEVICE_CONFIG_BYTES, PROCESS_CONFIG_BYTES};

    fn example() -> Configuration {
        ClusterFile::parse(include_str!("cluster_file_example.toml")).unwrap().initial_configuration()
    }

    #[test]
    fn a_configuration_survives_its_encoding_and_has_the_size_that_the_limits_count_with() {
        let configuration = example();
        let bytes = configuration.to_bytes().unwrap();
        assert_eq!(
            bytes.len(),
            CONFIGURATION_HEAD_BYTES + 2 * PROCESS_CONFIG_BYTES + 4 * DEVICE_CONFIG_BYTES
        );
        assert_eq!(Configuration::from_bytes(&bytes).unwrap(), configuration);
        for cut in 0..bytes.len() {
            assert!(Configuration::from_bytes(&bytes[..cut]).is_err(), "{cut} of {} bytes", bytes.len());
        }
    }

    #[test]
    fn with_one_pool_version_the_bytes_are_those_of_before_there_were_more() {
        let mut configuration = example();
        let plain = configuration.to_bytes().unwrap();
        let mut device = configuration.pool.devices[0].clone();
        device.device.key = 77;
        configuration.pool.devices.push(device);
        let longer = configuration.to_bytes().unwrap();
        assert_eq!(configuration.pools.first_devices, 4, "the new one is in no pool");
        assert!(longer.len() > plain.len() + DEVICE_CONFIG_BYTES);
        assert_eq!(Configuration::from_bytes(&longer).unwrap(), configuration);
        configuration.pools.first_devices = 5;
        assert_eq!(configuration.to_bytes().unwrap().len(), plain.len() + DEVICE_CONFIG_BYTES);
        for cut in 0..longer.len() {
            let found = Configuration::from_bytes(&longer[..cut]);
            // Cut between the two shapes it is a whole one: the transport says how long a body is.
            assert!(found.is_err() || cut == plain.len() + DEVICE_CONFIG_BYTES, "{cut} of {}", longer.len());
        }
    }

    #[test]
    fn a_configuration_of_format_1_is_one_without_replacements() {
        let now = example();
        let device = |d: &DeviceConfig| (d.device, d.process, d.endpoint, d.state, d.size_blocks);
        let old = Configuration1 {
            version: now.version,
            cluster: now.cluster,
            profile: now.profile,
            control: now.control,
            processes: now.processes.clone(),
            pool: (
                now.pool.pool,
                now.pool.pool_version,
                now.pool.width,
                now.pool.unit_bytes,
                now.pool.devices.iter().map(device).collect(),
            ),
        };
        let bytes = codec::encode(&old).unwrap();
        assert_eq!(Configuration::from_bytes_1(&bytes).unwrap(), now);
        assert!(
            Configuration::from_bytes(&bytes).is_err() && Configuration::from_bytes_1(&bytes[1..]).is_err()
        );
    }

    #[test]
    fn the_largest_configuration_has_the_size_that_limits_say() {
        let mut configuration = example();
        let (process, device) = (configuration.processes[0].clone(), configuration.pool.devices[0].clone());
        configuration.processes.clear();
        configuration.pool.devices.clear();
        configuration.pool.awaited_disks = vec![device.device; AWAITED_DISKS_MAX];
        for key in 0..base::units::wide(SERVERS_MAX) {
            let fid = Fid::new(FidType::Process, 1, key);
            configuration.processes.push(ProcessConfig { process: fid, ..process.clone() });
        }
        for key in 0..base::units::wide(DEVICES_MAX) {
            let process = configuration.processes[0].process;
            let fid = Fid::new(FidType::Device, 1, key);
            configuration.pool.devices.push(DeviceConfig { device: fid, process, ..device.clone() });
        }
        configuration.pools = crate::pools::largest(&configuration);
        configuration.spares = crate::spares::largest();
        assert_eq!(configuration.to_bytes().unwrap().len(), CONFIGURATION_BYTES_MAX);
        assert_eq!(Configuration::from_bytes(&configuration.to_bytes().unwrap()).unwrap(), configuration);
        configuration.pool.devices.push(device);
        assert!(matches!(configuration.to_bytes(), Err(ConfigurationError::TooMany { what: "devices", .. })));
    }

    #[test]
    fn a_thing_is_as_alive_as_its_liveliest_part() {
        for (index, livelier) in DeviceState::BY_LIFE.into_iter().enumerate() {
            assert_eq!(DeviceState::from_word(livelier.word()), Some(livelier));
            for other in &DeviceState::BY_LIFE[index..] {
                assert_eq!(DeviceState::of_parts([*other, livelier]), livelier);
            }
        }
        assert_eq!(DeviceState::of_parts([]), DeviceState::Unknown);
        assert_eq!(DeviceState::from_word("down"), None);
    }

    #[test]
    fn configurations_that_nobody_can_use_are_refused() {
        let refused = |change: &dyn Fn(&mut Configuration)| {
            let mut configuration = example();
            change(&mut configuration);
            configuration.check().expect_err("unusable")
        };
        assert!(matches!(
            refused(&|c| c.pools.first_devices = 3),
            ConfigurationError::PoolTooNarrow { devices: 3, .. }
        ));
        assert!(matches!(refused(&|c| c.pool.devices.truncate(3)), ConfigurationError::PoolVersion { .. }));
        assert!(matches!(refused(&|c| c.pool.unit_bytes = 0), ConfigurationError::UnitSize { bytes: 0 }));
        assert!(matches!(refused(&|c| c.processes.clear()), ConfigurationError::Device { .. }));
        assert!(matches!(
            refused(&|c| c.pool.devices[1] = c.pool.devices[0].clone()),
            ConfigurationError::Device { .. }
        ));
    }
}
