//! What control has to keep in format 3 of its store, which programs before it do not read: the point behind which there is no way back
//! (docs/upgrade.md#going-back). Pure.
//!
//! Control writes format 2 as long as it holds everything ([`later_store_reason`]); who plans a cluster file is told when that ends, and of what else
//! in the file programs of that time would not understand ([`later_file_reason`]). Start there.

use std::fmt;

use crate::cluster_file::ClusterFile;
use crate::cluster_tree::PartKind;
use crate::configuration::Configuration;

/// What programs that know format 2 and no later one take, at most: devices, servers, racks and other parts, bytes of a cluster file.
const DEVICES: usize = 768;
const SERVERS: usize = 256;
const PARTS: usize = 4096;
const FILE_BYTES: usize = 512 << 10;

/// What such a program does not know, or takes less of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaterReason {
    /// More of something than it takes.
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many it takes.
        max: usize,
    },
    /// Pool versions beside the first, names of pools, devices in no pool.
    Pools,
    /// A device that has, or had, a slot of spare units.
    Spares,
    /// A key of the cluster file.
    Key {
        /// As in the file.
        key: &'static str,
    },
}

impl fmt::Display for LaterReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LaterReason::TooMany { what, count, max } => write!(f, "{count} {what}, where they take {max}"),
            LaterReason::Pools => {
                f.write_str("pool versions beside the first, pools with names, or devices in no pool")
            }
            LaterReason::Spares => f.write_str("a device whose units went to spare units"),
            LaterReason::Key { key } => write!(f, "the key {key}"),
        }
    }
}

fn too_many(counts: &[(&'static str, usize, usize)]) -> Option<LaterReason> {
    let (what, count, max) = counts.iter().copied().find(|(_, count, max)| count > max)?;
    Some(LaterReason::TooMany { what, count, max })
}

/// Why format 2 of control's store does not hold a configuration; `None`: it does.
///
/// The limits bound its bytes too: 62,594, behind four of format version.
#[must_use]
pub fn later_store_reason(configuration: &Configuration) -> Option<LaterReason> {
    let Configuration { processes, pool, pools, spares, .. } = configuration;
    let counts = [("devices", pool.devices.len(), DEVICES), ("servers", processes.len(), SERVERS)];
    if let Some(reason) = too_many(&counts) {
        return Some(reason);
    }
    if !spares.says_nothing() {
        return Some(LaterReason::Spares);
    }
    (!pools.says_nothing(pool.devices.len())).then_some(LaterReason::Pools)
}

/// Why control of a version that knows no format 3 would not start with a cluster file of `text_bytes` in force, and what its configuration becomes; `None`:
/// it would.
#[must_use]
pub fn later_file_reason(file: &ClusterFile, text_bytes: usize) -> Option<LaterReason> {
    let parts = PartKind::ALL.iter().map(|kind| file.tree.parts(*kind).len()).sum();
    let counts = [("parts", parts, PARTS), ("bytes of cluster file", text_bytes, FILE_BYTES)];
    let keys = [
        ("pool.name", file.pool.name.is_some()),
        ("pool.devices", file.pool.devices.is_some()),
        ("profile.spare_repair_after_seconds", file.profile.spare_repair_after_seconds.is_some()),
        ("profile.fail_after_seconds", file.profile.fail_after_seconds.is_some()),
    ];
    let key = keys.iter().find(|(_, is_there)| *is_there).map(|(key, _)| LaterReason::Key { key });
    later_store_reason(&file.initial_configuration()).or_else(|| too_many(&counts)).or(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> ClusterFile {
        ClusterFile::parse(include_str!("cluster_file_example.toml")).unwrap()
    }

    #[test]
    fn what_earlier_programs_do_not_take_is_named() {
        let told = |change: &dyn Fn(&mut ClusterFile), bytes: usize| {
            let mut file = example();
            change(&mut file);
            later_file_reason(&file, bytes).map(|reason| reason.to_string())
        };
        assert_eq!(told(&|_| {}, FILE_BYTES), None);
        assert_eq!(
            told(&|_| {}, FILE_BYTES + 1).as_deref(),
            Some("524289 bytes of cluster file, where they take 524288")
        );
        assert_eq!(told(&|file| file.pool.devices = Some(4), 1).as_deref(), Some("the key pool.devices"));
        let pools =
            Some("pool versions beside the first, pools with names, or devices in no pool".to_owned());
        assert_eq!(told(&|file| file.pool.devices = Some(3), 1), pools);
        assert_eq!(told(&|file| file.pool.name = Some("fast".to_owned()), 1), pools);
        let many = |file: &mut ClusterFile| {
            let device = file.devices[0].clone();
            file.devices.resize(DEVICES + 1, device);
        };
        assert_eq!(told(&many, 1).as_deref(), Some("769 devices, where they take 768"));
        let wait = told(&|file| file.profile.spare_repair_after_seconds = Some(5), 1);
        assert_eq!(wait.as_deref(), Some("the key profile.spare_repair_after_seconds"));
        let limit = told(&|file| file.profile.fail_after_seconds = Some(0), 1);
        assert_eq!(limit.as_deref(), Some("the key profile.fail_after_seconds"));
        let mut configuration = example().initial_configuration();
        assert_eq!(later_store_reason(&configuration), None);
        configuration.spares.reads_from = 9;
        assert_eq!(later_store_reason(&configuration), Some(LaterReason::Spares));
    }

    #[test]
    fn they_know_every_state_of_a_device() {
        let all = crate::DeviceState::BY_LIFE;
        assert_eq!(all.len(), 8, "a configuration with a new state is a reason for format 3: name it above");
    }
}
