//! What a cluster file makes of the configuration, when it is applied and when control starts with it: things may be moved and added. Pure.

use base::{Fid, LayoutWidth};
use faces::{Configuration, DeviceState, FurtherPools, PoolVersionConfig};

/// What the file changed and may not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Difference {
    /// Another cluster.
    #[error("cluster id {stored:#x} in the store, {given:#x} in the file")]
    Cluster {
        /// In the store.
        stored: u64,
        /// In the file.
        given: u64,
    },
    /// Another first pool or pool version.
    #[error("pool version {stored} in the store, {given} in the file; objects lie in it: put it back")]
    PoolVersion {
        /// In the store.
        stored: Fid,
        /// In the file.
        given: Fid,
    },
    /// A further pool version is gone, or another one.
    #[error(
        "pool version {pool_version} of the store is not in the file, or with other devices or another layout; objects may lie in it: put its [[pool_version]] section back"
    )]
    FurtherVersion {
        /// In the store.
        pool_version: Fid,
    },
    /// The first pool version has other devices.
    #[error(
        "the first pool version has {stored} devices in the store and {given} in the file: write devices = {stored} in [pool]"
    )]
    FirstDevices {
        /// In the store.
        stored: u32,
        /// In the file.
        given: u32,
    },
    /// Another layout.
    #[error(
        "layout {stored} in the store, {given} in the file; a pool version keeps its layout: put it back, and write a new [[pool_version]]"
    )]
    Layout {
        /// In the store.
        stored: LayoutWidth,
        /// In the file.
        given: LayoutWidth,
    },
    /// A device was taken out, moved to another place of the list or to another server.
    #[error(
        "device {target} is {} in the store and {} in the file; devices stay, and new ones stand behind them: put back the file's [[device]] sections",
        describe(*stored),
        describe(*given)
    )]
    Devices {
        /// First device index that differs.
        target: usize,
        /// Device and its process in the store.
        stored: Option<(Fid, Fid)>,
        /// Device and its process in the file.
        given: Option<(Fid, Fid)>,
    },
    /// A server was taken out.
    #[error("server {process} is in the store only; servers stay: put back its [[server]] section")]
    Servers {
        /// The process.
        process: Fid,
    },
}

fn describe(device: Option<(Fid, Fid)>) -> String {
    match device {
        Some((device, process)) => format!("{device} of server {process}"),
        None => "absent".to_owned(),
    }
}

/// What takes effect at once of a cluster file that changes nothing that may not change: new servers, devices and pool versions, and defaults.
pub(crate) fn take_over(next: &mut Configuration, given: &Configuration) {
    next.profile = given.profile;
    next.pool.unit_bytes = given.pool.unit_bytes;
    let moving = std::mem::take(&mut next.pools.moving);
    next.pools = FurtherPools { moving, ..given.pools.clone() };
    for process in &given.processes {
        if next.process(process.process).is_none() {
            next.processes.push(process.clone());
        }
    }
    let known = next.pool.devices.len();
    next.pool.devices.extend(given.pool.devices.iter().skip(known).cloned());
}

/// The configuration to start with. Its version is one above the stored one if the file moved something, and the stored
/// one otherwise; device states and sizes are always the stored ones.
pub(crate) fn reconcile(stored: Configuration, given: &Configuration) -> Result<Configuration, Difference> {
    if stored.cluster != given.cluster {
        return Err(Difference::Cluster { stored: stored.cluster, given: given.cluster });
    }
    for (stored, given) in
        [(stored.pool.pool, given.pool.pool), (stored.pool.pool_version, given.pool.pool_version)]
    {
        if stored != given {
            return Err(Difference::PoolVersion { stored, given });
        }
    }
    if stored.pool.width != given.pool.width {
        return Err(Difference::Layout { stored: stored.pool.width, given: given.pool.width });
    }
    let seats = |configuration: &Configuration, target: usize| {
        configuration.pool.devices.get(target).map(|device| (device.device, device.process))
    };
    for target in 0..stored.pool.devices.len() {
        let (stored, given) = (seats(&stored, target), seats(given, target));
        if stored != given {
            return Err(Difference::Devices { target, stored, given });
        }
    }
    if stored.pools.first_devices != given.pools.first_devices {
        let (stored, given) = (stored.pools.first_devices, given.pools.first_devices);
        return Err(Difference::FirstDevices { stored, given });
    }
    for (index, stored) in stored.pools.versions.iter().enumerate() {
        let given = given.pools.versions.get(index);
        // A unit size is only what new objects get.
        if given.is_none_or(|given| {
            *given != PoolVersionConfig { unit_bytes: given.unit_bytes, ..stored.clone() }
        }) {
            return Err(Difference::FurtherVersion { pool_version: stored.pool_version });
        }
    }
    for found in &stored.processes {
        if given.process(found.process).is_none() {
            return Err(Difference::Servers { process: found.process });
        }
    }
    let mut next = stored.clone();
    take_over(&mut next, given);
    next.control = given.control;
    for process in &mut next.processes {
        let Some(moved) = given.process(process.process) else { continue };
        if moved.endpoint == process.endpoint {
            continue;
        }
        process.endpoint = moved.endpoint;
        // Its devices are where the file says until it registers them.
        for device in next.pool.devices.iter_mut().filter(|device| device.process == process.process) {
            if let Some(given) = given.device(device.device) {
                device.endpoint = given.endpoint;
                if device.state == DeviceState::Online {
                    device.state = DeviceState::Transient;
                }
            }
        }
    }
    if next != stored {
        next.version += 1;
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use faces::{ClusterFile, DeviceRun};

    use super::*;

    fn given() -> Configuration {
        ClusterFile::parse(include_str!("../faces/src/cluster_file_example.toml"))
            .unwrap()
            .initial_configuration()
    }

    fn stored() -> Configuration {
        let mut stored = given();
        stored.version = 40;
        for device in &mut stored.pool.devices {
            (device.state, device.size_blocks) = (DeviceState::Online, 1000);
        }
        stored.pool.devices[2].state = DeviceState::Failed;
        stored
    }

    #[test]
    fn the_same_file_keeps_version_and_states() {
        assert_eq!(reconcile(stored(), &given()).unwrap(), stored());
    }

    #[test]
    fn a_moved_server_is_a_new_version_and_failed_stays() {
        let mut file = given();
        let moved = "127.0.0.1@tcp:12345:35:9".parse().unwrap();
        file.processes[1].endpoint = moved;
        file.pool.devices[2].endpoint = moved;
        let next = reconcile(stored(), &file).unwrap();
        assert_eq!((next.version, next.processes[1].endpoint), (41, moved));
        assert_eq!((next.pool.devices[2].endpoint, next.pool.devices[2].state), (moved, DeviceState::Failed));
        assert_eq!(next.pool.devices[3].state, DeviceState::Transient);
        assert_eq!(next.pool.devices[0], stored().pool.devices[0]);
    }

    #[test]
    fn another_set_is_refused_by_name() {
        let refused = |change: &dyn Fn(&mut Configuration)| {
            let mut file = given();
            change(&mut file);
            reconcile(stored(), &file).expect_err("another set").to_string()
        };
        assert!(refused(&|c| c.cluster = 1).contains("cluster id 0xc10715 in the store, 0x1 in the file"));
        assert!(refused(&|c| c.pool.pool_version = Fid::default()).contains("pool version"));
        assert!(refused(&|c| c.pool.width = "1+1+1".parse().unwrap()).contains("layout 2+1+1 in the store"));
        assert!(refused(&|c| c.pool.devices.truncate(3)).contains("device 3 is 0x6b00000000000001:0x4"));
        assert!(refused(&|c| c.pool.devices.swap(0, 1)).contains("device 0 is"));
        assert!(refused(&|c| c.pool.devices[0].process = c.processes[1].process).contains("device 0 is"));
        assert!(refused(&|c| c.processes.truncate(1)).contains("in the store only"));
        assert!(refused(&|c| c.pools.first_devices = 3).contains("write devices = 4 in [pool]"));
    }

    #[test]
    fn what_is_new_comes_behind_the_rest_and_pool_versions_stay() {
        let mut file = given();
        let mut process = file.processes[0].clone();
        process.process.key = 77;
        let mut device = file.pool.devices[0].clone();
        (device.device.key, device.process) = (78, process.process);
        file.processes.push(process.clone());
        file.pool.devices.push(device.clone());
        let mut version = PoolVersionConfig { devices: DeviceRun::of(0..5), ..file.first_version() };
        version.pool_version.key = 2;
        file.pools.versions.push(version.clone());
        let grown = reconcile(stored(), &file).unwrap();
        grown.check().unwrap();
        assert_eq!((grown.version, &grown.processes[2], &grown.pool.devices[4]), (41, &process, &device));
        assert_eq!(grown.newest_version(version.pool), Some(version.clone()));
        assert_eq!(grown.pool.devices[..4], stored().pool.devices);
        assert_eq!(reconcile(grown.clone(), &file).unwrap(), grown, "once");
        let gone = reconcile(grown.clone(), &given()).unwrap_err();
        assert!(matches!(gone, Difference::Devices { target: 4, given: None, .. }), "{gone}");
        file.pools.versions[0].unit_bytes = 4096;
        let other = reconcile(grown.clone(), &file).unwrap();
        assert_eq!(other.newest_version(version.pool).unwrap().unit_bytes, 4096);
        file.pools.versions[0].devices = DeviceRun::of(1..5);
        let other = reconcile(grown.clone(), &file).unwrap_err();
        assert!(matches!(other, Difference::FurtherVersion { .. }), "{other}");
    }
}
