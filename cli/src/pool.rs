//! `clovis pool`: what pools are made of, how much they have, how much more they may lose; new pools, and pools that grow.
//!
//! Sums are of devices that registered and said how much is free; those that did not are counted apart, never guessed. A new pool, or a new
//! version of one, is a section that is put behind the cluster file in force: an ordinary transaction (docs/pools.md). Start at [`Pool::all`]
//! and [`create`].

use std::collections::BTreeMap;

use base::units::BLOCK_BYTES;
use base::{Fid, FidType, LayoutWidth};
use faces::cluster_file::{ClusterFile, DeviceSpan, PoolVersionSection};
use faces::{Configuration, DeviceRun, DeviceState, PoolVersionConfig};
use fops::conf::{ClusterStatusReply, DeviceStatus};
use serde_json::{Value, json};

use crate::args::{PoolChangeArgs, PoolCommand, PoolCreateArgs, PoolExpandArgs, PoolListArgs, PoolShowArgs};
use crate::conf::{Desk, Kept, Plan, put_in_force};
use crate::connection::connect;
use crate::daemon::server_name;
use crate::failure::Failure;
use crate::objects::{list_all, unit_size};
use crate::output;
use crate::table::{Align, Table, bytes_text};

/// `clovis pool`
pub fn run(command: &PoolCommand) -> Result<(), Failure> {
    match command {
        PoolCommand::Create(args) => create(args),
        PoolCommand::List(args) => list(args),
        PoolCommand::Show(args) => show(args),
        PoolCommand::Expand(args) => expand(args),
    }
}

fn create(args: &PoolCreateArgs) -> Result<(), Failure> {
    let mut desk = Desk::open(&args.change.connect)?;
    let (in_force, status) = desk.status()?;
    let configuration = in_force.file.initial_configuration();
    if configuration.pool_named(&args.name).is_some() {
        return Err(Failure::new(format!(
            "there is a pool {:?} already: `clovis pool expand {}` gives it more devices",
            args.name, args.name
        )));
    }
    let devices = chosen_devices(&in_force.file, &configuration, &args.devices)?;
    refuse_absent(&in_force.file, &status, &devices)?;
    let unit_bytes = args.unit.map(unit_size).transpose()?.map_or(in_force.file.pool.unit_bytes, u64::from);
    let pool = next_fid(in_force.file.pool.fid, configuration.pool_versions().map(|version| version.pool));
    let section = PoolVersionSection {
        pool,
        fid: next_version(&configuration),
        name: Some(args.name.clone()),
        layout: args.layout,
        unit_bytes,
        devices: spans(&in_force.file, &devices),
    };
    append(&mut desk, &in_force, &section, &args.change, &format!("pool create {}", args.name))
}

fn expand(args: &PoolExpandArgs) -> Result<(), Failure> {
    let mut desk = Desk::open(&args.change.connect)?;
    let (in_force, status) = desk.status()?;
    let configuration = in_force.file.initial_configuration();
    let pool = named(&configuration, &args.pool)?;
    let newest = configuration.newest_version(pool);
    let newest = newest.ok_or_else(|| Failure::new(format!("pool {pool} has no version")))?;
    let added = chosen_devices(&in_force.file, &configuration, &args.devices)?;
    if let Some(index) = added.iter().find(|index| newest.has_device(**index)) {
        return Err(Failure::new(format!(
            "device {} is in pool {} already: --devices are those that it has not yet",
            fid_of(&in_force.file, *index),
            configuration.pool_name(pool)
        )));
    }
    refuse_absent(&in_force.file, &status, &added)?;
    let devices: Vec<u32> = newest.device_indexes().chain(added).collect();
    let section = PoolVersionSection {
        pool,
        fid: next_version(&configuration),
        name: None,
        layout: newest.width,
        unit_bytes: u64::from(newest.unit_bytes),
        devices: spans(&in_force.file, &devices),
    };
    let note = format!("pool expand {}", configuration.pool_name(pool));
    append(&mut desk, &in_force, &section, &args.change, &note)
}

/// Puts the section behind the text in force, or shows what that would change.
fn append(
    desk: &mut Desk,
    in_force: &Kept,
    section: &PoolVersionSection,
    args: &PoolChangeArgs,
    note: &str,
) -> Result<(), Failure> {
    let text =
        format!("{}\n{}", in_force.text.trim_end_matches('\n').to_owned() + "\n", section_text(section)?);
    // Of a text that was in force only what is new can be wrong: the line is none that the operator wrote.
    let file = ClusterFile::parse_hidden(&text, desk.local.cluster.credential)
        .map_err(|error| Failure::new(error.problem.to_string()))?;
    let plan = Plan::of(in_force, &text, &file);
    if args.plan {
        return plan.show(in_force, args.json);
    }
    let note = args.note.as_deref().unwrap_or(note);
    put_in_force(desk, in_force, &plan, &text, note, args.json)
}

fn section_text(section: &PoolVersionSection) -> Result<String, Failure> {
    #[derive(serde::Serialize)]
    struct Sections<'a> {
        pool_version: [&'a PoolVersionSection; 1],
    }
    toml::to_string(&Sections { pool_version: [section] })
        .map_err(Failure::while_doing("writing a [[pool_version]] section"))
}

/// The pool that an operator names, by name or fid.
pub fn named(configuration: &Configuration, name: &str) -> Result<Fid, Failure> {
    let by_fid = name.parse::<Fid>().ok().filter(|pool| configuration.newest_version(*pool).is_some());
    configuration.pool_named(name).or(by_fid).ok_or_else(|| {
        let pools = pools(configuration).into_iter().map(|pool| configuration.pool_name(pool).to_owned());
        Failure::new(format!(
            "{name:?} is no pool of this cluster: it has {}",
            pools.collect::<Vec<_>>().join(", ")
        ))
    })
}

/// The pools in the order in which they were made.
fn pools(configuration: &Configuration) -> Vec<Fid> {
    let mut pools: Vec<Fid> = Vec::new();
    for version in configuration.pool_versions() {
        if !pools.contains(&version.pool) {
            pools.push(version.pool);
        }
    }
    pools
}

fn fid_of(file: &ClusterFile, index: u32) -> Fid {
    usize::try_from(index)
        .ok()
        .and_then(|index| file.devices.get(index))
        .map_or_else(Fid::default, |device| device.fid)
}

/// Device indexes of what `--devices` names, in that order. Errors: a device or server that is not there, none that is free, one twice.
fn chosen_devices(
    file: &ClusterFile,
    configuration: &Configuration,
    words: &[String],
) -> Result<Vec<u32>, Failure> {
    let mut chosen = Vec::new();
    for word in words {
        let found = match file.servers.iter().find(|server| server_name(server.process) == *word) {
            Some(server) => free_devices_of(file, configuration, server.process)?,
            None => devices_between(file, word)?,
        };
        for index in found {
            if chosen.contains(&index) {
                return Err(Failure::new(format!("device {} is named twice", fid_of(file, index))));
            }
            chosen.push(index);
        }
    }
    Ok(chosen)
}

fn free_devices_of(
    file: &ClusterFile,
    configuration: &Configuration,
    process: Fid,
) -> Result<Vec<u32>, Failure> {
    let is_free = |index: u32| configuration.pool_versions().all(|version| !version.has_device(index));
    let ours = (0u32..).zip(&file.devices).filter(|(_, device)| device.server == process);
    let free: Vec<u32> = ours.map(|(index, _)| index).filter(|index| is_free(*index)).collect();
    if free.is_empty() {
        let name = server_name(process);
        return Err(Failure::new(format!(
            "{name} has no device that is in no pool: add [[device]] sections with `clovis conf apply` first (docs/pools.md)"
        )));
    }
    Ok(free)
}

fn devices_between(file: &ClusterFile, word: &str) -> Result<Vec<u32>, Failure> {
    let span: DeviceSpan = word.parse().map_err(|error| {
        Failure::new(format!("{word:?} is no device, no FID..FID and no server of this cluster: {error}"))
    })?;
    let place = |fid: Fid| {
        let found = file.devices.iter().position(|device| device.fid == fid);
        let found = found.and_then(|index| u32::try_from(index).ok());
        found.ok_or_else(|| {
            Failure::new(format!(
                "{fid} is no device of this cluster: `clovis device list` shows them, and `clovis conf apply` adds some (docs/pools.md)"
            ))
        })
    };
    let (first, last) = (place(span.first)?, place(span.last)?);
    if first > last {
        return Err(Failure::new(format!(
            "device {} stands before {} in the cluster file: write the one that stands first before the dots",
            span.last, span.first
        )));
    }
    Ok((first..=last).collect())
}

/// Error: a device that never registered, or is not online now. Writes of new objects would wait for it.
fn refuse_absent(file: &ClusterFile, status: &ClusterStatusReply, devices: &[u32]) -> Result<(), Failure> {
    for index in devices {
        let fid = fid_of(file, *index);
        let state = status.devices.iter().find(|one| one.device == fid).map_or("unknown", |one| &one.state);
        if state == DeviceState::Online.word() {
            continue;
        }
        let server =
            file.devices.iter().find(|device| device.fid == fid).map(|device| server_name(device.server));
        let server = server.unwrap_or_default();
        let why = match state == DeviceState::Unknown.word() {
            true => {
                format!("{server} has not started with it yet: (re)start that server with this cluster file")
            }
            false => format!("{server} has to serve it first"),
        };
        return Err(Failure::new(format!("device {fid} is {state}, and new objects would need it: {why}")));
    }
    Ok(())
}

/// The first fid of a kind behind all that are there.
fn next_fid(like: Fid, all: impl Iterator<Item = Fid>) -> Fid {
    let highest = all.filter(|fid| fid.container == like.container).map(|fid| fid.key).max();
    Fid { key: highest.unwrap_or(like.key).wrapping_add(1), ..like }
}

fn next_version(configuration: &Configuration) -> Fid {
    let first = configuration.pool.pool_version;
    debug_assert!(first.is(FidType::PoolVersion), "a checked file");
    next_fid(first, configuration.pool_versions().map(|version| version.pool_version))
}

/// Device indexes as a cluster file says them.
fn spans(file: &ClusterFile, devices: &[u32]) -> Vec<DeviceSpan> {
    let span = |run: DeviceRun| DeviceSpan {
        first: fid_of(file, run.first),
        last: fid_of(file, run.first + run.count.saturating_sub(1)),
    };
    DeviceRun::of(devices.iter().copied()).into_iter().map(span).collect()
}

fn list(args: &PoolListArgs) -> Result<(), Failure> {
    let (in_force, status) = Desk::open(&args.connect)?.status()?;
    let pools = Pool::all(&in_force.file, &status);
    if args.json {
        let pools: Vec<Value> = pools.iter().map(|pool| pool.json(None)).collect();
        return output::line(&json!({ "pools": pools }).to_string());
    }
    let mut table = Table::new(&[
        ("pool", Align::Left),
        ("fid", Align::Left),
        ("layout", Align::Left),
        ("versions", Align::Right),
        ("devices", Align::Right),
        ("online", Align::Right),
        ("size", Align::Right),
        ("used", Align::Right),
        ("free", Align::Right),
        ("may lose", Align::Right),
    ]);
    let mut silent = 0;
    for pool in &pools {
        table.row([
            pool.name.clone(),
            pool.fid.to_string(),
            pool.newest().width.to_string(),
            pool.versions.len().to_string(),
            pool.devices.len().to_string(),
            pool.online.to_string(),
            bytes_text(pool.size_bytes),
            bytes_text(pool.used_bytes()),
            bytes_text(pool.free_bytes),
            pool.may_lose.to_string(),
        ]);
        silent += pool.silent;
    }
    output::print(&format!("{}{}", table.render(), silence(silent)))
}

fn show(args: &PoolShowArgs) -> Result<(), Failure> {
    let (in_force, status) = Desk::open(&args.connect)?.status()?;
    let configuration = in_force.file.initial_configuration();
    let wanted =
        args.pool.as_deref().map_or(Ok(configuration.pool.pool), |name| named(&configuration, name))?;
    let pools = Pool::all(&in_force.file, &status);
    let pool = pools.iter().find(|pool| pool.fid == wanted);
    let pool = pool.ok_or_else(|| Failure::new(format!("pool {wanted} has no version")))?;
    let counts = args.count.then(|| count_objects(args)).transpose()?;
    if args.json {
        return output::line(&pool.json(counts.as_ref()).to_string());
    }
    output::print(&pool.text(counts.as_ref()))
}

/// Objects and bytes by pool version.
type Counts = BTreeMap<Fid, (u64, u64)>;

fn count_objects(args: &PoolShowArgs) -> Result<Counts, Failure> {
    let (mut station, client, _) = connect(&args.connect, false)?;
    let mut counts = Counts::new();
    for object in list_all(&mut station, &client)? {
        let (objects, bytes) = counts.entry(object.pool_version).or_default();
        *objects += 1;
        *bytes = bytes.saturating_add(object.size_bytes);
    }
    Ok(counts)
}

/// A pool and its sums.
struct Pool<'a> {
    file: &'a ClusterFile,
    status: &'a ClusterStatusReply,
    fid: Fid,
    name: String,
    /// The newest last; there is one.
    versions: Vec<PoolVersionConfig>,
    /// Indexes of the devices of all versions, each once.
    devices: Vec<u32>,
    online: usize,
    /// Of devices that said how much is free, like the next.
    size_bytes: u64,
    free_bytes: u64,
    /// Devices that are in no sum, as they did not say what they have.
    silent: usize,
    /// Devices that are in no sum, as nobody uses what is in their place: failed, or their units stand in spare units.
    given_up: usize,
    /// Devices that may go now, and every object can be read.
    may_lose: usize,
}

fn bytes(blocks: u64) -> u64 {
    blocks.saturating_mul(BLOCK_BYTES)
}

fn silence(count: usize) -> String {
    match count {
        0 => String::new(),
        count => format!("{count} devices did not say how much they have free: they are in no sum\n"),
    }
}

fn is_in(device: &DeviceStatus, states: &[DeviceState]) -> bool {
    states.iter().any(|state| device.state == state.word())
}

fn no_room(count: usize) -> String {
    match count {
        0 => String::new(),
        count => format!(
            "{count} devices are failed, or their units stand in spare units: what is in their place is in no sum\n"
        ),
    }
}

impl<'a> Pool<'a> {
    /// All pools, in the order in which they were made.
    fn all(file: &'a ClusterFile, status: &'a ClusterStatusReply) -> Vec<Pool<'a>> {
        let configuration = file.initial_configuration();
        pools(&configuration).into_iter().map(|fid| Pool::of(file, &configuration, status, fid)).collect()
    }

    fn of(
        file: &'a ClusterFile,
        configuration: &Configuration,
        status: &'a ClusterStatusReply,
        fid: Fid,
    ) -> Pool<'a> {
        let versions: Vec<PoolVersionConfig> =
            configuration.pool_versions().filter(|version| version.pool == fid).collect();
        let mut devices: Vec<u32> = Vec::new();
        for index in versions.iter().flat_map(PoolVersionConfig::device_indexes) {
            if !devices.contains(&index) {
                devices.push(index);
            }
        }
        let name = configuration.pool_name(fid).to_owned();
        let mut pool = Pool {
            file,
            status,
            fid,
            name,
            versions,
            devices,
            online: 0,
            size_bytes: 0,
            free_bytes: 0,
            silent: 0,
            given_up: 0,
            may_lose: 0,
        };
        for index in &pool.devices {
            let found = pool.status_of(*index);
            pool.online += usize::from(found.is_some_and(|one| one.state == DeviceState::Online.word()));
            if found.is_some_and(|one| is_in(one, &[DeviceState::Failed, DeviceState::Repaired])) {
                pool.given_up += 1;
                continue;
            }
            match found.and_then(|one| Some((one.size_blocks, one.free_blocks?))) {
                Some((size, free)) => {
                    pool.size_bytes = pool.size_bytes.saturating_add(bytes(size));
                    pool.free_bytes = pool.free_bytes.saturating_add(bytes(free));
                }
                None => pool.silent += 1,
            }
        }
        // Objects lie in any version: the one that has lost most says what may still go.
        let may_lose = pool.versions.iter().map(|version| {
            let parity = usize::try_from(version.width.parity()).unwrap_or(usize::MAX);
            // Of those in spare units, or on their way back from there, nothing is missing.
            let is_whole = |index: &u32| {
                let whole = [DeviceState::Online, DeviceState::Repaired, DeviceState::Rebalance];
                pool.status_of(*index).is_some_and(|one| is_in(one, &whole))
            };
            parity.saturating_sub(version.device_indexes().filter(|index| !is_whole(index)).count())
        });
        pool.may_lose = may_lose.min().unwrap_or(0);
        pool
    }

    fn status_of(&self, index: u32) -> Option<&'a DeviceStatus> {
        let fid = fid_of(self.file, index);
        self.status.devices.iter().find(|one| one.device == fid)
    }

    fn newest(&self) -> &PoolVersionConfig {
        self.versions.last().expect("a pool is there by its versions")
    }

    fn used_bytes(&self) -> u64 {
        self.size_bytes.saturating_sub(self.free_bytes)
    }

    /// What of the free bytes data can have, with parity beside it, if it spreads evenly over the devices; spare units take none while every device is in service.
    fn free_for_data_bytes(&self) -> u64 {
        let width: LayoutWidth = self.newest().width;
        let (data, parity) = (u64::from(width.data()), u64::from(width.parity()));
        self.free_bytes / (data + parity).max(1) * data
    }

    fn text(&self, counts: Option<&Counts>) -> String {
        let newest = self.newest();
        let mut table = Table::new(&[
            ("target", Align::Right),
            ("device", Align::Left),
            ("state", Align::Left),
            ("server", Align::Left),
            ("size", Align::Right),
            ("used", Align::Right),
            ("free", Align::Right),
        ]);
        let size =
            |blocks: Option<u64>| blocks.map_or_else(|| "-".to_owned(), |blocks| bytes_text(bytes(blocks)));
        for (target, index) in newest.device_indexes().enumerate() {
            let found = self.status_of(index);
            let free = found.and_then(|one| one.free_blocks);
            let blocks = found.map(|one| one.size_blocks).filter(|blocks| *blocks > 0);
            let used = blocks.zip(free).map(|(blocks, free)| blocks.saturating_sub(free));
            table.row([
                target.to_string(),
                fid_of(self.file, index).to_string(),
                found.map_or("unknown", |one| one.state.as_str()).to_owned(),
                self.server_of(index),
                size(blocks),
                size(used),
                size(free),
            ]);
        }
        let lose = match self.may_lose {
            0 => "no further device may be lost".to_owned(),
            count => format!("{count} more may be lost, and every object can be read"),
        };
        format!(
            "pool {} ({}), version {}, layout {}, units of {}\n{} of {} devices online: {lose}\n{}, {} used, {} free: room for about {} of data, spread evenly\n{}{}\n{}",
            self.name,
            self.fid,
            newest.pool_version,
            newest.width,
            bytes_text(u64::from(newest.unit_bytes)),
            self.online,
            self.devices.len(),
            bytes_text(self.size_bytes),
            bytes_text(self.used_bytes()),
            bytes_text(self.free_bytes),
            bytes_text(self.free_for_data_bytes()),
            silence(self.silent) + &no_room(self.given_up),
            self.versions_text(counts),
            table.render()
        )
    }

    /// A line for each version, if there are several or their objects were counted.
    fn versions_text(&self, counts: Option<&Counts>) -> String {
        if self.versions.len() == 1 && counts.is_none() {
            return String::new();
        }
        let mut table = Table::new(&[
            ("version", Align::Left),
            ("layout", Align::Left),
            ("devices", Align::Right),
            ("objects", Align::Right),
            ("bytes", Align::Right),
        ]);
        for version in &self.versions {
            let (objects, bytes) = match counts {
                None => ("-".to_owned(), "-".to_owned()),
                Some(counts) => {
                    let (objects, bytes) = counts.get(&version.pool_version).copied().unwrap_or_default();
                    (objects.to_string(), bytes_text(bytes))
                }
            };
            table.row([
                version.pool_version.to_string(),
                version.width.to_string(),
                version.device_count().to_string(),
                objects,
                bytes,
            ]);
        }
        table.render()
    }

    fn server_of(&self, index: u32) -> String {
        let section = usize::try_from(index).ok().and_then(|index| self.file.devices.get(index));
        section.map_or_else(String::new, |section| server_name(section.server))
    }

    fn json(&self, counts: Option<&Counts>) -> Value {
        let newest = self.newest();
        let devices = newest.device_indexes().enumerate().map(|(target, index)| {
            let found = self.status_of(index);
            json!({ "target": target, "fid": fid_of(self.file, index).to_string(), "state": found.map_or("unknown", |one| one.state.as_str()),
                    "server": self.server_of(index), "size_bytes": found.map(|one| bytes(one.size_blocks)),
                    "free_bytes": found.and_then(|one| one.free_blocks).map(bytes) })
        });
        let versions = self.versions.iter().map(|version| {
            let counted = counts.map(|counts| counts.get(&version.pool_version).copied().unwrap_or_default());
            let devices = version.device_indexes().map(|index| fid_of(self.file, index).to_string());
            json!({ "fid": version.pool_version.to_string(), "layout": version.width.to_string(), "unit_bytes": version.unit_bytes,
                    "devices": devices.collect::<Vec<_>>(), "objects": counted.map(|(objects, _)| objects),
                    "object_bytes": counted.map(|(_, bytes)| bytes) })
        });
        json!({
            "name": self.name, "fid": self.fid.to_string(), "version": newest.pool_version.to_string(), "layout": newest.width.to_string(),
            "unit_bytes": newest.unit_bytes,
            "online": self.online, "may_lose": self.may_lose, "size_bytes": self.size_bytes, "used_bytes": self.used_bytes(),
            "free_bytes": self.free_bytes, "free_for_data_bytes": self.free_for_data_bytes(), "devices_in_no_sum": self.silent, "devices_given_up": self.given_up,
            "devices": devices.collect::<Vec<_>>(), "versions": versions.collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_leave_out_who_did_not_say_and_losses_are_counted_off() {
        let text = include_str!("../../control/faces/src/cluster_file_example.toml");
        let file = ClusterFile::parse(text).unwrap();
        let device = |index: usize, state: &str, free_blocks| DeviceStatus {
            device: file.devices[index].fid,
            state: state.to_owned(),
            size_blocks: 1000,
            free_blocks,
            errors: 0,
        };
        let devices = vec![
            device(0, "online", Some(400)),
            device(1, "online", Some(500)),
            device(2, "online", None),
            device(3, "online", Some(600)),
        ];
        let mut status = ClusterStatusReply { version: 9, processes: Vec::new(), devices };
        let pool = Pool::all(&file, &status).remove(0);
        assert_eq!((pool.online, pool.silent, pool.may_lose), (4, 1, 1));
        assert_eq!((pool.size_bytes, pool.free_bytes), (3000 * BLOCK_BYTES, 1500 * BLOCK_BYTES));
        assert_eq!(pool.free_for_data_bytes(), 1000 * BLOCK_BYTES, "2 of 3 units are data");
        assert!(pool.text(None).contains("1 devices did not say"), "{}", pool.text(None));
        status.devices[1].state = "detached".to_owned();
        let pool = Pool::all(&file, &status).remove(0);
        assert_eq!((pool.online, pool.may_lose), (3, 0));
        assert!(pool.text(None).contains("no further device may be lost"));
        status.devices[1].state = "repaired".to_owned();
        let pool = Pool::all(&file, &status).remove(0);
        assert_eq!((pool.may_lose, pool.given_up), (1, 1), "nothing of it is missing");
        assert_eq!(pool.size_bytes, 2000 * BLOCK_BYTES);
        assert!(pool.text(None).contains("1 devices are failed, or their units stand in spare units"));
        status.devices.clear();
        assert_eq!(Pool::all(&file, &status)[0].json(None)["devices_in_no_sum"], 4);
    }

    #[test]
    fn devices_are_named_by_fid_by_row_and_by_server_and_each_once() {
        let text = include_str!("../../control/faces/src/cluster_file_example.toml");
        let text = text.replace("layout = \"2+1+1\"", "layout = \"1+1+0\"\ndevices = 3");
        let file = ClusterFile::parse(&text).unwrap();
        let configuration = file.initial_configuration();
        let chosen = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            chosen_devices(&file, &configuration, &words).map_err(|failure| failure.to_string())
        };
        assert_eq!(chosen(&["server-2"]), Ok(vec![3]), "its other device is the first pool's");
        let row = "0x6b00000000000001:2..0x6b00000000000001:4";
        assert_eq!(chosen(&[row, "0x6b00000000000001:1"]), Ok(vec![1, 2, 3, 0]));
        assert_eq!(
            spans(&file, &[1, 2, 3, 0]).iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["0x6b00000000000001:0x2..0x6b00000000000001:0x4", "0x6b00000000000001:0x1"]
        );
        let refused = |words: &[&str]| chosen(words).unwrap_err();
        assert!(refused(&[row, "server-2"]).contains("0x6b00000000000001:0x4 is named twice"));
        assert!(refused(&["server-1"]).contains("server-1 has no device that is in no pool"));
        assert!(refused(&["server-7"]).contains("\"server-7\" is no device, no FID..FID and no server"));
        assert!(refused(&["0x6b00000000000001:9"]).contains("0x6b00000000000001:0x9 is no device"));
        assert!(refused(&["0x6b00000000000001:2..0x6b00000000000001:1"]).contains("stands before"));
        let mut status = ClusterStatusReply { version: 1, processes: Vec::new(), devices: Vec::new() };
        let absent = refuse_absent(&file, &status, &[3]).unwrap_err().to_string();
        assert!(
            absent.contains("is unknown, and new objects would need it: server-2 has not started with it"),
            "{absent}"
        );
        let online = DeviceStatus {
            device: file.devices[3].fid,
            state: "online".to_owned(),
            size_blocks: 1,
            free_blocks: None,
            errors: 0,
        };
        status.devices.push(online);
        assert!(refuse_absent(&file, &status, &[3]).is_ok());
        assert!(named(&configuration, "fast").unwrap_err().to_string().ends_with("it has default"));
        let first = file.pool.fid;
        assert_eq!(named(&configuration, "default").ok(), Some(first));
        assert_eq!(named(&configuration, &first.to_string()).ok(), Some(first));
    }
}
