//! What a restart makes of the stored configuration and the operator's file: the file may move things, not change the set. Pure.

use base::{Fid, LayoutWidth};
use faces::{Configuration, DeviceState};

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
    /// Another pool or pool version.
    #[error(
        "pool version {stored} in the store, {given} in the file; changing it needs a new cluster for now"
    )]
    PoolVersion {
        /// In the store.
        stored: Fid,
        /// In the file.
        given: Fid,
    },
    /// Another layout.
    #[error(
        "layout {stored} in the store, {given} in the file; changing it needs a new pool version, which is not there yet"
    )]
    Layout {
        /// In the store.
        stored: LayoutWidth,
        /// In the file.
        given: LayoutWidth,
    },
    /// A device was put in, taken out, moved to another place of the list or to another server.
    #[error(
        "target {target} is device {} in the store and {} in the file; changing the set or the order of devices is not there yet: put back the file's [[device]] sections",
        describe(*stored),
        describe(*given)
    )]
    Devices {
        /// First target index that differs.
        target: usize,
        /// Device and its process in the store.
        stored: Option<(Fid, Fid)>,
        /// Device and its process in the file.
        given: Option<(Fid, Fid)>,
    },
    /// A server was put in or taken out.
    #[error("server {process} is in the {} only", if *in_store { "store" } else { "file" })]
    Servers {
        /// The process.
        process: Fid,
        /// True if the file lacks it.
        in_store: bool,
    },
}

fn describe(device: Option<(Fid, Fid)>) -> String {
    match device {
        Some((device, process)) => format!("{device} of server {process}"),
        None => "absent".to_owned(),
    }
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
    for target in 0..stored.pool.devices.len().max(given.pool.devices.len()) {
        let (stored, given) = (seats(&stored, target), seats(given, target));
        if stored != given {
            return Err(Difference::Devices { target, stored, given });
        }
    }
    for (one, other, in_store) in [(&stored, given, true), (given, &stored, false)] {
        for found in &one.processes {
            if other.process(found.process).is_none() {
                return Err(Difference::Servers { process: found.process, in_store });
            }
        }
    }
    let mut next = stored.clone();
    next.profile = given.profile;
    next.control = given.control;
    next.pool.unit_bytes = given.pool.unit_bytes;
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
    use faces::ClusterFile;

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
        assert!(
            refused(&|c| c.pool.devices.truncate(3)).contains("target 3 is device 0x6b00000000000001:0x4")
        );
        assert!(refused(&|c| c.pool.devices.swap(0, 1)).contains("target 0"));
        assert!(refused(&|c| c.pool.devices[0].process = c.processes[1].process).contains("target 0"));
        let mut more = given().processes[0].clone();
        more.process.key = 77;
        assert!(refused(&|c| c.processes.push(more.clone())).contains("in the file only"));
    }
}
