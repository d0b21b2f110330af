//! Pools and their versions: which devices, in which order, under which layout.
//!
//! A pool version never changes: its devices are fixed and ordered, since the place of every unit follows from them. A pool that grows gets
//! another version, and new objects go to the newest one; the record of an object names the version that it lies in. Records themselves stand
//! on the devices of the first version of the first pool, whatever version they name, so that whoever knows an object's fid finds its record
//! (docs/rfd/0013).
//!
//! **Invariant**: devices are only ever added behind the others, and pool versions too, so that a device index means one device for ever.
//! Start at [`Configuration::pool_versions`].

use std::collections::BTreeSet;

use base::{Fid, LayoutWidth};
use bincode::{Decode, Encode};

use crate::configuration::{Configuration, ConfigurationError, DeviceConfig, DeviceState};
use crate::limits::{DEVICE_RUNS_MAX, POOL_NAME_BYTES_MAX, POOL_VERSIONS_MAX};

/// Name of the first pool where the cluster file gives it none.
pub const FIRST_POOL_NAME: &str = "default";

/// Devices that stand behind each other in the configuration, `first` and so many in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DeviceRun {
    /// Device index of the first one.
    pub first: u32,
    /// How many; not 0.
    pub count: u32,
}

impl DeviceRun {
    /// Runs that give these device indexes in this order.
    #[must_use]
    pub fn of(indexes: impl IntoIterator<Item = u32>) -> Vec<DeviceRun> {
        let mut runs: Vec<DeviceRun> = Vec::new();
        for index in indexes {
            match runs.last_mut() {
                Some(last) if last.first.checked_add(last.count) == Some(index) => last.count += 1,
                _ => runs.push(DeviceRun { first: index, count: 1 }),
            }
        }
        runs
    }

    fn indexes(self) -> std::ops::Range<u32> {
        self.first..self.first.saturating_add(self.count)
    }
}

/// One version of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PoolVersionConfig {
    /// Its pool.
    pub pool: Fid,
    /// The pool version.
    pub pool_version: Fid,
    /// N+K+S.
    pub width: LayoutWidth,
    /// Unit size where the object's creator chooses none.
    pub unit_bytes: u32,
    /// Its devices by target index.
    pub devices: Vec<DeviceRun>,
}

impl PoolVersionConfig {
    /// P: how many devices it has.
    #[must_use]
    pub fn device_count(&self) -> u32 {
        self.devices.iter().fold(0, |sum, run| sum.saturating_add(run.count))
    }

    /// Device indexes by target index.
    pub fn device_indexes(&self) -> impl Iterator<Item = u32> + '_ {
        self.devices.iter().flat_map(|run| run.indexes())
    }

    /// Device index of a target; `None`: there is no such target.
    #[must_use]
    pub fn device_index(&self, target: u32) -> Option<u32> {
        let mut left = target;
        for run in &self.devices {
            if left < run.count {
                return run.first.checked_add(left);
            }
            left -= run.count;
        }
        None
    }

    /// True if the device of this index is one of its own.
    #[must_use]
    pub fn has_device(&self, index: u32) -> bool {
        self.devices.iter().any(|run| run.indexes().contains(&index))
    }
}

/// Name of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PoolName {
    /// The pool.
    pub pool: Fid,
    /// At most [`POOL_NAME_BYTES_MAX`] bytes.
    pub name: String,
}

/// A pool whose objects are being moved to its newest version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Moving {
    /// The pool.
    pub pool: Fid,
    /// Number of the rebalance, from 1 on; with [`Moving::ENDING`] once it was given up.
    pub number: u32,
}

impl Moving {
    /// The rebalance was given up. Nobody begins to move an object any more, and clients go on holding what they change until nobody can be in the middle of
    /// moving one.
    pub const ENDING: u32 = 1 << 31;

    /// True of one that was given up.
    #[must_use]
    pub const fn is_ending(&self) -> bool {
        self.number & Moving::ENDING != 0
    }
}

/// What there is beside one pool with one version.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct FurtherPools {
    /// Devices of the first pool version: so many, from the first device on.
    pub first_devices: u32,
    /// All versions but that one. Of each pool the last is the newest.
    pub versions: Vec<PoolVersionConfig>,
    /// Names of pools; the first one is [`FIRST_POOL_NAME`] if it has none here.
    pub names: Vec<PoolName>,
    /// Pools that are being rebalanced: who changes an object of an older version in place holds it meanwhile.
    pub moving: Vec<Moving>,
}

impl FurtherPools {
    /// Nothing: one pool version that has all `devices`.
    #[must_use]
    pub fn none(devices: usize) -> FurtherPools {
        let first_devices = u32::try_from(devices).unwrap_or(u32::MAX);
        FurtherPools { first_devices, versions: Vec::new(), names: Vec::new(), moving: Vec::new() }
    }

    /// True if it is [`FurtherPools::none`].
    #[must_use]
    pub(crate) fn says_nothing(&self, devices: usize) -> bool {
        *self == FurtherPools::none(devices)
    }

    /// The limits, and that every version has devices that are there, each once.
    pub(crate) fn check(&self, devices: usize) -> Result<(), ConfigurationError> {
        let runs = self.versions.iter().map(|version| version.devices.len()).sum();
        let longest = self.names.iter().map(|name| name.name.len()).max().unwrap_or(0);
        for (what, count, max) in [
            ("further pool versions", self.versions.len(), POOL_VERSIONS_MAX),
            ("runs of devices of pool versions", runs, DEVICE_RUNS_MAX),
            ("pools in rebalance", self.moving.len(), POOL_VERSIONS_MAX + 1),
            ("names of pools", self.names.len(), POOL_VERSIONS_MAX + 1),
            ("bytes of a pool's name", longest, POOL_NAME_BYTES_MAX),
        ] {
            if count > max {
                return Err(ConfigurationError::TooMany { what, count, max });
            }
        }
        let devices = u32::try_from(devices).unwrap_or(u32::MAX);
        if self.first_devices > devices {
            return Err(ConfigurationError::PoolVersion { pool_version: Fid::default() });
        }
        let mut fids = BTreeSet::new();
        for version in &self.versions {
            let runs = &version.devices;
            let are_there =
                runs.iter().all(|run| run.first.checked_add(run.count).is_some_and(|end| end <= devices));
            let mut seen = BTreeSet::new();
            // Only once the runs are known to be no longer than there are devices.
            let is_whole = are_there && version.device_indexes().all(|index| seen.insert(index));
            if !is_whole || !fids.insert(version.pool_version) {
                return Err(ConfigurationError::PoolVersion { pool_version: version.pool_version });
            }
        }
        Ok(())
    }
}

impl Configuration {
    /// The first version of the first pool: records of all objects are on its devices.
    #[must_use]
    pub fn first_version(&self) -> PoolVersionConfig {
        PoolVersionConfig {
            pool: self.pool.pool,
            pool_version: self.pool.pool_version,
            width: self.pool.width,
            unit_bytes: self.pool.unit_bytes,
            devices: vec![DeviceRun { first: 0, count: self.pools.first_devices }],
        }
    }

    /// All pool versions; of each pool the last is the newest.
    pub fn pool_versions(&self) -> impl Iterator<Item = PoolVersionConfig> + '_ {
        std::iter::once(self.first_version()).chain(self.pools.versions.iter().cloned())
    }

    /// The pool version with this fid.
    #[must_use]
    pub fn pool_version(&self, pool_version: Fid) -> Option<PoolVersionConfig> {
        if pool_version == self.pool.pool_version {
            return Some(self.first_version());
        }
        self.pools.versions.iter().find(|version| version.pool_version == pool_version).cloned()
    }

    /// True if there is a pool version with this fid.
    #[must_use]
    pub fn has_pool_version(&self, pool_version: Fid) -> bool {
        pool_version == self.pool.pool_version
            || self.pools.versions.iter().any(|version| version.pool_version == pool_version)
    }

    /// The version of a pool that new objects go to.
    #[must_use]
    pub fn newest_version(&self, pool: Fid) -> Option<PoolVersionConfig> {
        let further = self.pools.versions.iter().rev().find(|version| version.pool == pool).cloned();
        further.or_else(|| (pool == self.pool.pool).then(|| self.first_version()))
    }

    /// True if no version of its pool is newer.
    #[must_use]
    pub fn is_newest(&self, version: &PoolVersionConfig) -> bool {
        self.newest_version(version.pool).is_some_and(|newest| newest.pool_version == version.pool_version)
    }

    /// Number of the rebalance of a pool, if it is being rebalanced, and that was not given up.
    #[must_use]
    pub fn move_number(&self, pool: Fid) -> Option<u32> {
        let found = self.pools.moving.iter().find(|moving| moving.pool == pool && !moving.is_ending());
        found.map(|moving| moving.number)
    }

    /// True if objects of a pool may be on their way to another version of it: whoever changes one in place holds it.
    #[must_use]
    pub fn is_moving(&self, pool: Fid) -> bool {
        self.pools.moving.iter().any(|moving| moving.pool == pool)
    }

    /// The device whose server moves a pool's objects: the first of its newest version that is online.
    #[must_use]
    pub fn mover(&self, pool: Fid) -> Option<&DeviceConfig> {
        let newest = self.newest_version(pool)?;
        let mut devices = newest.device_indexes().filter_map(|index| self.target(index));
        devices.find(|device| device.state == DeviceState::Online)
    }

    /// How many devices of a pool version lack something of what they have to hold: with more than K of them some object may be out of reach.
    #[must_use]
    pub fn missing_in(&self, version: &PoolVersionConfig) -> usize {
        let devices = version.device_indexes().filter_map(|index| self.target(index));
        devices.filter(|device| !device.state.is_whole()).count()
    }

    /// The pool versions that lack something of more than K devices: no further loss may be made final there.
    #[must_use]
    pub fn versions_beyond_parity(&self) -> Vec<PoolVersionConfig> {
        let is_beyond = |version: &PoolVersionConfig| {
            self.missing_in(version) > usize::try_from(version.width.parity()).unwrap_or(usize::MAX)
        };
        self.pool_versions().filter(is_beyond).collect()
    }

    /// A pool's name; empty for a pool that is not there.
    #[must_use]
    pub fn pool_name(&self, pool: Fid) -> &str {
        let found = self.pools.names.iter().find(|named| named.pool == pool);
        found.map_or(if pool == self.pool.pool { FIRST_POOL_NAME } else { "" }, |named| &named.name)
    }

    /// The pool of a name.
    #[must_use]
    pub fn pool_named(&self, name: &str) -> Option<Fid> {
        if self.pool_name(self.pool.pool) == name {
            return Some(self.pool.pool);
        }
        self.pools.names.iter().find(|named| named.name == name).map(|named| named.pool)
    }
}

/// The most that the limits allow, over the devices that are there.
#[cfg(test)]
pub(crate) fn largest(configuration: &Configuration) -> FurtherPools {
    use base::FidType;

    let fid = |kind, index: usize| Fid::new(kind, 9, base::units::wide(index));
    let version = |index: usize| PoolVersionConfig {
        pool: fid(FidType::Pool, index),
        pool_version: fid(FidType::PoolVersion, index),
        width: configuration.pool.width,
        unit_bytes: 4096,
        devices: (0..)
            .step_by(2)
            .take(DEVICE_RUNS_MAX / POOL_VERSIONS_MAX)
            .map(|first| DeviceRun { first, count: 1 })
            .collect(),
    };
    let name = |index| PoolName { pool: fid(FidType::Pool, index), name: "x".repeat(POOL_NAME_BYTES_MAX) };
    FurtherPools {
        first_devices: u32::try_from(configuration.pool.devices.len()).unwrap(),
        versions: (0..POOL_VERSIONS_MAX).map(version).collect(),
        names: (0..=POOL_VERSIONS_MAX).map(name).collect(),
        moving: (0..=POOL_VERSIONS_MAX)
            .map(|index| Moving { pool: fid(FidType::Pool, index), number: 1 })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use base::FidType;

    use super::*;
    use crate::cluster_file::ClusterFile;

    fn example() -> Configuration {
        ClusterFile::parse(include_str!("cluster_file_example.toml")).unwrap().initial_configuration()
    }

    fn version(pool: u64, key: u64, indexes: &[u32]) -> PoolVersionConfig {
        PoolVersionConfig {
            pool: Fid::new(FidType::Pool, 1, pool),
            pool_version: Fid::new(FidType::PoolVersion, 1, key),
            width: LayoutWidth::new(1, 1, 0).unwrap(),
            unit_bytes: 4096,
            devices: DeviceRun::of(indexes.iter().copied()),
        }
    }

    #[test]
    fn targets_are_devices_in_the_order_of_the_version() {
        let version = version(1, 2, &[2, 3, 0]);
        assert_eq!(version.devices, [DeviceRun { first: 2, count: 2 }, DeviceRun { first: 0, count: 1 }]);
        assert_eq!(
            (0..4).map(|target| version.device_index(target)).collect::<Vec<_>>(),
            [Some(2), Some(3), Some(0), None]
        );
        assert_eq!(version.device_indexes().collect::<Vec<_>>(), [2, 3, 0]);
        assert!(version.has_device(0) && !version.has_device(1));
    }

    #[test]
    fn a_pool_has_its_newest_version_and_its_name() {
        let mut configuration = example();
        let (first, other) = (configuration.pool.pool, Fid::new(FidType::Pool, 1, 2));
        assert_eq!(configuration.newest_version(first), Some(configuration.first_version()));
        configuration.pools.versions = vec![version(1, 2, &[0, 1, 2, 3]), version(2, 3, &[0, 1])];
        configuration.pools.names = vec![PoolName { pool: other, name: "fast".to_owned() }];
        configuration.check().unwrap();
        assert_eq!(configuration.newest_version(first).unwrap().pool_version.key, 2);
        assert_eq!(configuration.newest_version(other).unwrap().pool_version.key, 3);
        assert_eq!(
            (configuration.pool_named("fast"), configuration.pool_named("default")),
            (Some(other), Some(first))
        );
        assert_eq!((configuration.pool_name(other), configuration.pool_name(first)), ("fast", "default"));
        assert_eq!(configuration.pool_named("slow"), None);
        assert_eq!(Configuration::from_bytes(&configuration.to_bytes().unwrap()).unwrap(), configuration);
    }

    #[test]
    fn the_first_online_device_of_the_newest_version_says_who_moves() {
        let mut configuration = example();
        let pool = configuration.pool.pool;
        configuration.pools.versions = vec![version(1, 2, &[2, 1])];
        assert_eq!(configuration.mover(pool), None, "nobody is online");
        configuration.pool.devices[0].state = DeviceState::Online;
        configuration.pool.devices[1].state = DeviceState::Online;
        assert_eq!(configuration.mover(pool).unwrap().device.key, 2);
        configuration.pool.devices[2].state = DeviceState::Online;
        assert_eq!(configuration.mover(pool).unwrap().device.key, 3);
        assert!(!configuration.is_moving(pool));
        configuration.pools.moving = vec![Moving { pool, number: 7 }];
        assert_eq!(configuration.move_number(pool), Some(7));
        assert!(!configuration.is_newest(&configuration.first_version()));
    }

    #[test]
    fn versions_without_devices_of_their_own_are_refused() {
        let refused = |change: &dyn Fn(&mut FurtherPools)| {
            let mut configuration = example();
            change(&mut configuration.pools);
            configuration.check().expect_err("no such devices")
        };
        assert!(matches!(
            refused(&|pools| pools.versions.push(version(2, 3, &[3, 4]))),
            ConfigurationError::PoolVersion { pool_version } if pool_version.key == 3
        ));
        assert!(matches!(
            refused(&|pools| pools.versions.push(version(2, 3, &[3, 1, 3]))),
            ConfigurationError::PoolVersion { .. }
        ));
        assert!(matches!(
            refused(&|pools| pools.versions = vec![version(2, 3, &[0, 1]), version(2, 3, &[0, 1])]),
            ConfigurationError::PoolVersion { .. }
        ));
        assert!(matches!(
            refused(&|pools| pools.versions.push(version(2, 3, &[3]))),
            ConfigurationError::PoolTooNarrow { devices: 1, .. }
        ));
        assert!(matches!(refused(&|pools| pools.first_devices = 5), ConfigurationError::PoolVersion { .. }));
        assert!(matches!(
            refused(&|pools| pools.names = vec![PoolName { pool: Fid::default(), name: "x".repeat(25) }]),
            ConfigurationError::TooMany { what: "bytes of a pool's name", .. }
        ));
    }
}
