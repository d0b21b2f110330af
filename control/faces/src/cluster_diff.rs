//! What changes between two cluster files, key by key, and when each change takes effect. Pure.
//!
//! Servers, devices and parts are compared by fid, so that their order in the file says nothing; only the order of the devices
//! does, which is their target index. The one table of what may change is `effect_of`. Start at [`diff`].

use std::collections::BTreeMap;
use std::fmt;

use base::Fid;

use crate::cluster_file::{ClusterFile, DeviceSection};
use crate::cluster_tree::PartKind;
use crate::pools::DeviceRun;

/// When a change takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// At once: clients and servers learn of the new version with their next answer.
    Now,
    /// When the server process starts again, with the same file.
    ServerRestart(Fid),
    /// When the server process, which runs, has opened it, by the same file.
    ServerOpens(Fid),
    /// When the server process, which is new, starts with the same file.
    ServerStart(Fid),
    /// When the control daemon starts again, with the same file.
    ControlRestart,
    /// Never: why not.
    Refused(&'static str),
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Effect::Now => f.write_str("now"),
            Effect::ServerRestart(process) => write!(f, "when server {process} restarts"),
            Effect::ServerOpens(process) => write!(f, "when server {process} has opened it"),
            Effect::ServerStart(process) => write!(f, "when server {process} starts"),
            Effect::ControlRestart => f.write_str("when control restarts"),
            Effect::Refused(reason) => write!(f, "refused: {reason}"),
        }
    }
}

/// One key or section that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key, as `pool.unit_bytes` or `server 0x7200000000000001:0x1 endpoints[0]`.
    pub key: String,
    /// Before; nothing if it was not there.
    pub from: Option<String>,
    /// After; nothing if it is not there any more.
    pub to: Option<String>,
    /// When.
    pub effect: Effect,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.from.as_deref(), self.to.as_deref());
        match (from, to) {
            (Some(from), Some(to)) => write!(f, "~ {}: {from} -> {to}", self.key)?,
            (None, to) => write!(f, "+ {}: {}", self.key, to.unwrap_or_default())?,
            (Some(from), None) => write!(f, "- {}: {from}", self.key)?,
        }
        write!(f, "  ({})", self.effect)
    }
}

/// What a key belongs to, in the order of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Section {
    Cluster,
    Control,
    Pool,
    PoolVersion,
    Profile,
    Server,
    Device,
    Part(PartKind),
}

/// Section, whose, which key, which of several.
type Key = (Section, Fid, &'static str, usize);

/// The key under which a thing that has a fid is there at all.
const PRESENCE: &str = "";

fn values(file: &ClusterFile) -> BTreeMap<Key, String> {
    let mut values = BTreeMap::new();
    let none = Fid::default();
    let mut add = |section, fid, key, index, value: String| {
        values.insert((section, fid, key, index), value);
    };
    let ClusterFile { cluster, control, pool, pool_versions, profile, servers, devices, tree } = file;
    add(Section::Cluster, none, "name", 0, cluster.name.clone());
    add(Section::Cluster, none, "id", 0, format!("{:#x}", cluster.id.0));
    add(Section::Cluster, none, "profile", 0, cluster.profile.to_string());
    add(Section::Cluster, none, "transport", 0, cluster.transport.word().to_owned());
    add(Section::Cluster, none, "security", 0, cluster.security.word().to_owned());
    add(Section::Cluster, none, "encrypt", 0, cluster.encrypt.to_string());
    add(Section::Control, none, "endpoint", 0, control.endpoint.to_string());
    add(Section::Control, none, "store", 0, control.store.display().to_string());
    add(Section::Control, none, "store_bytes", 0, control.store_bytes.to_string());
    if let Some(metrics) = control.metrics {
        add(Section::Control, none, "metrics", 0, metrics.to_string());
    }
    if let Some(number) = control.number {
        add(Section::Control, none, "number", 0, number.to_string());
    }
    for member in &control.members {
        let index = usize::try_from(member.number).unwrap_or(usize::MAX);
        add(Section::Control, none, "member.endpoint", index, member.endpoint.to_string());
        add(Section::Control, none, "member.store", index, member.store.display().to_string());
        if let Some(metrics) = member.metrics {
            add(Section::Control, none, "member.metrics", index, metrics.to_string());
        }
    }
    add(Section::Pool, none, "fid", 0, pool.fid.to_string());
    add(Section::Pool, none, "version", 0, pool.version.to_string());
    add(Section::Pool, none, "layout", 0, pool.layout.to_string());
    add(Section::Pool, none, "unit_bytes", 0, pool.unit_bytes.to_string());
    add(Section::Pool, none, "devices", 0, file.first_devices().to_string());
    if let Some(name) = &pool.name {
        add(Section::Pool, none, "name", 0, name.clone());
    }
    for (place, version) in pool_versions.iter().enumerate() {
        let fid = version.fid;
        let indexes = file.devices_of_version(version);
        let presence = format!("of pool {}, {}, {} devices", version.pool, version.layout, indexes.len());
        add(Section::PoolVersion, fid, PRESENCE, 0, presence);
        add(Section::PoolVersion, fid, "place", 0, place.to_string());
        add(Section::PoolVersion, fid, "pool", 0, version.pool.to_string());
        add(Section::PoolVersion, fid, "layout", 0, version.layout.to_string());
        add(Section::PoolVersion, fid, "unit_bytes", 0, version.unit_bytes.to_string());
        if let Some(name) = &version.name {
            add(Section::PoolVersion, fid, "name", 0, name.clone());
        }
        let runs =
            DeviceRun::of(indexes).into_iter().map(|run| format!("{} from {} on", run.count, run.first));
        add(Section::PoolVersion, fid, "devices", 0, runs.collect::<Vec<_>>().join(", "));
    }
    if let Some(rate) = profile.repair_bytes_per_second {
        add(Section::Profile, none, "repair_bytes_per_second", 0, rate.to_string());
    }
    if let Some(seconds) = profile.spare_repair_after_seconds {
        add(Section::Profile, none, "spare_repair_after_seconds", 0, seconds.to_string());
    }
    if let Some(seconds) = profile.fail_after_seconds {
        add(Section::Profile, none, "fail_after_seconds", 0, seconds.to_string());
    }
    for server in servers {
        let fid = server.process;
        add(Section::Server, fid, PRESENCE, 0, format!("{} endpoints", server.endpoints.len()));
        for (locality, endpoint) in server.endpoints.iter().enumerate() {
            add(Section::Server, fid, "endpoints", locality, endpoint.to_string());
        }
        if let Some(metrics) = server.metrics {
            add(Section::Server, fid, "metrics", 0, metrics.to_string());
        }
        for (index, rail) in server.rails.iter().enumerate() {
            add(Section::Server, fid, "rails", index, rail.to_string());
        }
        if let Some(node) = server.node {
            add(Section::Server, fid, "node", 0, node.to_string());
        }
    }
    for (target, device) in devices.iter().enumerate() {
        let fid = device.fid;
        add(Section::Device, fid, PRESENCE, 0, format!("device {target} on server {}", device.server));
        add(Section::Device, fid, "place", 0, target.to_string());
        add(Section::Device, fid, "server", 0, device.server.to_string());
        add(Section::Device, fid, "locality", 0, device.locality.to_string());
        add(Section::Device, fid, "path", 0, device.path.display().to_string());
        add(Section::Device, fid, "size_bytes", 0, device.size_bytes.to_string());
        if let Some(disk) = device.disk {
            add(Section::Device, fid, "disk", 0, disk.to_string());
        }
    }
    for kind in PartKind::ALL {
        for part in tree.parts(kind) {
            let section = Section::Part(kind);
            let inside = part.inside.map(|fid| format!("in {fid}"));
            add(section, part.fid, PRESENCE, 0, inside.unwrap_or_else(|| "at the top".to_owned()));
            if let Some(name) = &part.name {
                add(section, part.fid, "name", 0, name.clone());
            }
            if let Some(inside) = part.inside {
                add(section, part.fid, "in", 0, inside.to_string());
            }
        }
    }
    values
}

/// The table of what may change, and when it takes effect. `is_new`: the section was not there before.
fn effect_of((section, fid, key, _): Key, is_new: bool, (from, to): (&ClusterFile, &ClusterFile)) -> Effect {
    let section_of_device = || to.devices.iter().find(|device| device.fid == fid);
    let server_of_device = || section_of_device().map(|device| device.server);
    let at_server = |device: &DeviceSection| match from.server(device.server) {
        // A locality that does not run yet comes with a restart.
        Some(section) if usize::try_from(device.locality).is_ok_and(|at| at < section.endpoints.len()) => {
            Effect::ServerOpens(device.server)
        }
        Some(_) => Effect::ServerRestart(device.server),
        None => Effect::ServerStart(device.server),
    };
    match (section, key) {
        (Section::Cluster, "id") => Effect::Refused("another id is another cluster"),
        (Section::Cluster, "transport") => {
            Effect::Refused("every endpoint would move at once: make a new cluster on the other transport")
        }
        // Each process reads these at its start: all are stopped and started again (docs/security.md).
        (Section::Cluster, "security" | "encrypt") => Effect::ControlRestart,
        (Section::Control, "store_bytes") => Effect::Refused("a store keeps the size it was made with"),
        (Section::Control, _) => Effect::ControlRestart,
        (Section::Pool, "fid" | "version" | "layout") | (Section::PoolVersion, "pool" | "layout") => {
            Effect::Refused(
                "objects lie where it says: write a new [[pool_version]], or see `clovis pool --help`",
            )
        }
        (Section::Pool, "devices") => Effect::Refused(
            "a pool version keeps its devices: write in [pool] as `devices` how many it has had, and let a new [[pool_version]] have the others (`clovis pool expand`)",
        ),
        (Section::PoolVersion, "devices") => Effect::Refused(
            "a pool version keeps its devices: let a new [[pool_version]] have others (`clovis pool expand`)",
        ),
        (Section::PoolVersion, PRESENCE) if !is_new => {
            Effect::Refused("objects may lie in it: pool versions stay, and a newer one takes what is new")
        }
        (Section::PoolVersion, "place") => {
            Effect::Refused("of each pool the last version is the newest: put a new one behind the others")
        }
        (Section::Server, PRESENCE) if is_new => Effect::ServerStart(fid),
        (Section::Server, PRESENCE) => {
            Effect::Refused("its devices may hold bytes of objects and records: servers and devices stay")
        }
        (Section::Server, "endpoints" | "rails" | "metrics") => Effect::ServerRestart(fid),
        (Section::Device, PRESENCE) if is_new => section_of_device().map_or(Effect::Now, at_server),
        (Section::Device, PRESENCE) => Effect::Refused(
            "it may hold bytes of objects and records: devices stay (`clovis device replace` puts another disk in its place)",
        ),
        (Section::Device, "place") => {
            Effect::Refused("pool versions count on the order of the devices: put new ones behind the others")
        }
        (Section::Device, "server") => Effect::Refused("a device stays with its server"),
        (Section::Device, "size_bytes") => Effect::Refused("a device keeps the size it was made with"),
        (Section::Device, "locality" | "path") => match server_of_device() {
            Some(server) => Effect::ServerRestart(server),
            None => Effect::Now,
        },
        (
            Section::Cluster
            | Section::Pool
            | Section::PoolVersion
            | Section::Profile
            | Section::Server
            | Section::Device
            | Section::Part(_),
            _,
        ) => Effect::Now,
    }
}

fn words((section, fid, key, index): Key) -> String {
    let of_fid = |word: &str| match key {
        PRESENCE => format!("{word} {fid}"),
        "endpoints" | "rails" => format!("{word} {fid} {key}[{index}]"),
        _ => format!("{word} {fid} {key}"),
    };
    match section {
        Section::Cluster => format!("cluster.{key}"),
        Section::Control => match key.strip_prefix("member.") {
            Some(key) => format!("control.member {index} {key}"),
            None => format!("control.{key}"),
        },
        Section::Pool => format!("pool.{key}"),
        Section::PoolVersion => of_fid("pool_version"),
        Section::Profile => format!("profile.{key}"),
        Section::Server => of_fid("server"),
        Section::Device => of_fid("device"),
        Section::Part(kind) => of_fid(kind.word()),
    }
}

/// Every key that differs from one checked file to another, in the order of the file.
///
/// Of a server, device or part that is new or gone, only that is said. The credential is not compared.
#[must_use]
pub fn diff(from: &ClusterFile, to: &ClusterFile) -> Vec<Change> {
    let (before, after) = (values(from), values(to));
    let mut keys: Vec<Key> = before.keys().chain(after.keys()).copied().collect();
    keys.sort_unstable();
    keys.dedup();
    let is_there = |values: &BTreeMap<Key, String>, (section, fid, ..): Key| {
        fid == Fid::default() || values.contains_key(&(section, fid, PRESENCE, 0))
    };
    let mut changes = Vec::new();
    for key in keys {
        let in_both = is_there(&before, key) && is_there(&after, key);
        // What is there in both is told key by key; what is not, by its presence alone.
        if in_both == (key.2 == PRESENCE) {
            continue;
        }
        let (from_value, to_value) = (before.get(&key).cloned(), after.get(&key).cloned());
        if from_value != to_value {
            let effect = effect_of(key, from_value.is_none(), (from, to));
            changes.push(Change { key: words(key), from: from_value, to: to_value, effect });
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster_file::{Credential, DeviceSpan, PoolVersionSection};
    use crate::cluster_tree::Part;

    fn example() -> ClusterFile {
        ClusterFile::parse(include_str!("cluster_file_example.toml")).unwrap()
    }

    #[test]
    fn each_kind_of_change_is_told_with_its_effect() {
        let from = example();
        assert_eq!(diff(&from, &from), []);
        let mut to = from.clone();
        to.cluster.name = "other".to_owned();
        to.cluster.credential = Some(Credential::from_bytes([7; 32]));
        to.control.store = "elsewhere".into();
        to.pool.unit_bytes = 4096;
        to.profile.repair_bytes_per_second = Some(1 << 20);
        to.pool.layout = "1+1+1".parse().unwrap();
        to.servers[1].endpoints.pop();
        to.servers[0].metrics = Some("127.0.0.1:9641".parse().unwrap());
        to.servers[1].rails.push("127.0.0.2@tcp".parse().unwrap());
        to.devices[3].locality = 0;
        to.devices[0].path = "moved".into();
        to.tree.racks.push(Part { fid: "0x6100000000000001:1".parse().unwrap(), name: None, inside: None });
        let told: Vec<String> = diff(&from, &to).iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "~ cluster.name: demo -> other  (now)",
                "~ control.store: control.store -> elsewhere  (when control restarts)",
                "~ pool.layout: 2+1+1 -> 1+1+1  (refused: objects lie where it says: write a new [[pool_version]], or see `clovis pool --help`)",
                "~ pool.unit_bytes: 65536 -> 4096  (now)",
                "+ profile.repair_bytes_per_second: 1048576  (now)",
                "+ server 0x7200000000000001:0x1 metrics: 127.0.0.1:9641  (when server 0x7200000000000001:0x1 restarts)",
                "- server 0x7200000000000001:0x2 endpoints[1]: 127.0.0.1@tcp:12345:34:3  (when server 0x7200000000000001:0x2 restarts)",
                "+ server 0x7200000000000001:0x2 rails[0]: 127.0.0.2@tcp  (when server 0x7200000000000001:0x2 restarts)",
                "~ device 0x6b00000000000001:0x1 path: device-1 -> moved  (when server 0x7200000000000001:0x1 restarts)",
                "~ device 0x6b00000000000001:0x4 locality: 1 -> 0  (when server 0x7200000000000001:0x2 restarts)",
                "+ rack 0x6100000000000001:0x1: at the top  (now)",
            ]
        );
        let back: Vec<String> = diff(&to, &from).iter().map(ToString::to_string).collect();
        assert_eq!(back.len(), told.len());
        assert!(back.contains(&"- rack 0x6100000000000001:0x1: at the top  (now)".to_owned()), "{back:?}");
    }

    #[test]
    fn devices_in_another_order_and_devices_that_are_gone_are_refused_and_servers_in_another_order_are_nothing()
     {
        let from = example();
        let mut swapped = from.clone();
        swapped.devices.swap(1, 2);
        let changes = diff(&from, &swapped);
        assert_eq!(changes.len(), 2);
        assert!(changes.iter().all(|change| matches!(change.effect, Effect::Refused(_))), "{changes:?}");
        let mut fewer = from.clone();
        fewer.devices.pop();
        let changes = diff(&from, &fewer);
        assert_eq!(
            changes.len(),
            2,
            "one line for a device that is gone, and what follows for the pool: {changes:?}"
        );
        assert!(changes.iter().all(|change| matches!(change.effect, Effect::Refused(_))), "{changes:?}");
        assert!(changes[1].to_string().starts_with("- device 0x6b00000000000001:0x4: device 3 on server"));
        let mut servers = from.clone();
        servers.servers.reverse();
        assert_eq!(diff(&from, &servers), []);
    }

    #[test]
    fn servers_devices_and_pool_versions_are_added_behind_the_others_and_stay() {
        let from = example();
        let mut grown = from.clone();
        grown.pool.devices = Some(4);
        assert_eq!(diff(&from, &grown), [], "said what was so");
        let mut server = grown.servers[0].clone();
        (server.process.key, server.endpoints) = (3, vec!["127.0.0.1@tcp:12345:34:9".parse().unwrap()]);
        grown.servers.push(server);
        for (key, server) in [(5, 0), (6, 2)] {
            let mut device = grown.devices[0].clone();
            (device.fid.key, device.path) = (key, format!("device-{key}").into());
            device.server = grown.servers[server].process;
            grown.devices.push(device);
        }
        let text = |from: &ClusterFile, to: &ClusterFile| -> Vec<String> {
            diff(from, to).iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            text(&from, &grown),
            [
                "+ server 0x7200000000000001:0x3: 1 endpoints  (when server 0x7200000000000001:0x3 starts)",
                "+ device 0x6b00000000000001:0x5: device 4 on server 0x7200000000000001:0x1  (when server 0x7200000000000001:0x1 has opened it)",
                "+ device 0x6b00000000000001:0x6: device 5 on server 0x7200000000000001:0x3  (when server 0x7200000000000001:0x3 starts)",
            ]
        );
        let mut wider = grown.clone();
        wider.servers[0].endpoints.push("127.0.0.1@tcp:12345:34:10".parse().unwrap());
        wider.devices[4].locality = u32::try_from(wider.servers[0].endpoints.len()).unwrap() - 1;
        let on_a_new_locality = "+ device 0x6b00000000000001:0x5: device 4 on server 0x7200000000000001:0x1  (when server 0x7200000000000001:0x1 restarts)";
        assert!(
            text(&from, &wider).iter().any(|line| line == on_a_new_locality),
            "{:?}",
            text(&from, &wider)
        );
        let mut unsaid = grown.clone();
        unsaid.pool.devices = None;
        let changes = text(&from, &unsaid);
        assert!(
            changes[0].starts_with("~ pool.devices: 4 -> 6  (refused: a pool version keeps its devices"),
            "{changes:?}"
        );
        let mut expanded = grown.clone();
        expanded.pool_versions.push(PoolVersionSection {
            pool: grown.pool.fid,
            fid: Fid { key: 2, ..grown.pool.version },
            name: None,
            layout: grown.pool.layout,
            unit_bytes: 4096,
            devices: grown
                .devices
                .iter()
                .map(|device| DeviceSpan { first: device.fid, last: device.fid })
                .collect(),
        });
        expanded.validate().unwrap();
        assert_eq!(
            text(&grown, &expanded),
            [
                "+ pool_version 0x7600000000000001:0x2: of pool 0x6f00000000000001:0x1, 2+1+1, 6 devices  (now)"
            ]
        );
        let back = text(&expanded, &from);
        assert_eq!(back.len(), 4, "{back:?}");
        assert!(back.iter().all(|line| line.contains("refused: ")), "nothing is taken out: {back:?}");
        let mut narrower = expanded.clone();
        narrower.pool_versions[0].devices.pop();
        assert!(text(&expanded, &narrower)[0].starts_with(
            "~ pool_version 0x7600000000000001:0x2 devices: 6 from 0 on -> 5 from 0 on  (refused"
        ));
    }
}
