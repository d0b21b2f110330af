//! `clovis status`: the cluster as control sees it, as a tree, and what an operator should do next.
//!
//! What is asked: the cluster file in force and the states of processes and devices; nodes, racks, enclosures and controllers are as
//! alive as their liveliest part (docs/ha.md#other-things). Start at [`Picture::of`].

use base::Fid;
use base::units::BLOCK_BYTES;
use faces::cluster_file::{ClusterFile, DeviceSection};
use faces::{Configuration, DeviceConfig, DeviceState, PartKind, SpareCopy};
use fops::conf::ClusterStatusReply;
use fops::load::{LoadGet, LoadGetReply, LoadSample};
use fops::repair::RepairStatus;
use serde_json::{Value, json};

use crate::args::StatusArgs;
use crate::conf::Desk;
use crate::controls::{self, SeenControl};
use crate::daemon::{ControlSeat, server_name};
use crate::failure::Failure;
use crate::output;
use crate::repair;
use crate::table::bytes_text;

/// `clovis status`
pub fn run(args: &StatusArgs) -> Result<(), Failure> {
    let mut desk = Desk::open(&args.connect)?;
    let (in_force, status) = desk.status()?;
    let load = Load::of(&desk.ask(&LoadGet { after: 0, most: 1 })?);
    // A control daemon of an earlier version knows of none.
    let repairs = repair::all(&mut desk).unwrap_or_default();
    let controls = desk.controls();
    let picture = Picture::of(&in_force.file, &status, load, &repairs).with_controls(&controls);
    if args.json {
        return output::line(&picture.json(in_force.transaction).to_string());
    }
    output::print(&picture.text(in_force.transaction))
}

/// What the data services did in the last whole period.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    period_ms: u32,
    sample: LoadSample,
}

impl Load {
    /// The newest sample of an answer, if there is one.
    pub fn of(reply: &LoadGetReply) -> Option<Load> {
        reply.samples.last().map(|sample| Load { period_ms: reply.period_ms, sample: *sample })
    }

    fn text(&self) -> String {
        let sample = &self.sample;
        let seconds = f64::from(self.period_ms) / 1e3;
        #[allow(clippy::cast_precision_loss)] // a figure for people
        let each_second = |count: u64| count as f64 / seconds;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a figure for people
        let part = |word: &str, count: u64, bytes: u64, p99_ns: u64| {
            let bytes = bytes_text(each_second(bytes) as u64);
            match count {
                0 => format!("no {word}s"),
                _ => format!(
                    "{:.1} {word}s/s with {bytes}/s, 99 % within {:.3} ms",
                    each_second(count),
                    p99_ns as f64 / 1e6
                ),
            }
        };
        let reads = part("read", sample.reads, sample.read_bytes, sample.read_p99_ns);
        let writes = part("write", sample.writes, sample.written_bytes, sample.write_p99_ns);
        format!("load of {seconds} s  {reads}; {writes}")
    }

    fn json(&self) -> Value {
        let mut json = sample_json(&self.sample);
        json["period_ms"] = self.period_ms.into();
        json
    }
}

/// A sample, for programs: counts, bytes and times of its period.
pub fn sample_json(sample: &LoadSample) -> Value {
    json!({
        "number": sample.number, "unix_s": sample.unix_s, "processes": sample.processes,
        "reads": sample.reads, "writes": sample.writes,
        "read_bytes": sample.read_bytes, "written_bytes": sample.written_bytes,
        "read_p50_ns": sample.read_p50_ns, "read_p99_ns": sample.read_p99_ns,
        "write_p50_ns": sample.write_p50_ns, "write_p99_ns": sample.write_p99_ns,
    })
}

/// A file, the states of what is in it, and what its servers did lately.
pub struct Picture<'a> {
    file: &'a ClusterFile,
    status: &'a ClusterStatusReply,
    load: Option<Load>,
    repairs: &'a [RepairStatus],
    /// What each of several control daemons says; none of one alone.
    controls: &'a [SeenControl],
}

/// One line of the tree and what is below it.
struct Branch {
    text: String,
    below: Vec<Branch>,
}

impl<'a> Picture<'a> {
    /// What control says of the cluster of `file`.
    pub fn of(
        file: &'a ClusterFile,
        status: &'a ClusterStatusReply,
        load: Option<Load>,
        repairs: &'a [RepairStatus],
    ) -> Picture<'a> {
        Picture { file, status, load, repairs, controls: &[] }
    }

    /// The same with what several control daemons say.
    pub fn with_controls(self, controls: &'a [SeenControl]) -> Picture<'a> {
        Picture { controls, ..self }
    }

    fn device_state(&self, device: Fid) -> DeviceState {
        let found = self.status.devices.iter().find(|one| one.device == device);
        found.and_then(|one| DeviceState::from_word(&one.state)).unwrap_or(DeviceState::Unknown)
    }

    fn process_state(&self, process: Fid) -> DeviceState {
        match self.status.processes.iter().find(|one| one.process == process) {
            Some(one) if one.alive => DeviceState::Online,
            Some(one) if one.silent_ms.is_some() => DeviceState::Transient,
            _ => DeviceState::Unknown,
        }
    }

    /// The devices of the disks below a part of where things stand.
    fn devices_below(&self, kind: PartKind, part: Fid) -> Vec<Fid> {
        let tree = &self.file.tree;
        let is_below = |disk: Fid| {
            let mut at = (PartKind::Disk, Some(disk));
            while let (now, Some(fid)) = at {
                if (now, fid) == (kind, part) {
                    return true;
                }
                let inside = tree.part(now, fid).and_then(|found| found.inside);
                let above = match now {
                    PartKind::Disk => PartKind::Controller,
                    PartKind::Controller => PartKind::Enclosure,
                    PartKind::Enclosure => PartKind::Rack,
                    _ => return false,
                };
                at = (above, inside);
            }
            false
        };
        let devices = self.file.devices.iter();
        devices.filter(|device| device.disk.is_some_and(is_below)).map(|device| device.fid).collect()
    }

    /// State and count of online ones, of devices.
    fn summary(&self, devices: &[Fid]) -> String {
        let online = devices.iter().filter(|fid| self.device_state(**fid) == DeviceState::Online).count();
        let state = DeviceState::of_parts(devices.iter().map(|fid| self.device_state(*fid)));
        format!("{}, {online} of {} devices online", state.word(), devices.len())
    }

    fn device_branch(&self, target: usize, device: &DeviceSection) -> Branch {
        let seen = self.status.devices.iter().find(|one| one.device == device.fid);
        let size = |blocks: u64| bytes_text(blocks.saturating_mul(BLOCK_BYTES));
        let mut text =
            format!("target {target}  device {}  {}", device.fid, self.device_state(device.fid).word());
        if let Some(seen) = seen.filter(|seen| seen.size_blocks > 0) {
            text.push_str(&format!("  {}", size(seen.size_blocks)));
            if let Some(free) = seen.free_blocks {
                text.push_str(&format!(", {} free", size(free)));
            }
            if seen.errors > 0 {
                text.push_str(&format!(", {} errors", seen.errors));
            }
        }
        let of_device = |repair: &&RepairStatus| repair.device == device.fid && repair.state != "done";
        let below = match self.repairs.iter().find(of_device) {
            Some(found) if self.device_state(device.fid) == DeviceState::Repair || self.is_sparing(found) => {
                vec![Branch { text: format!("repair of {}", repair::repair_line(found)), below: Vec::new() }]
            }
            _ => Vec::new(),
        };
        Branch { text, below }
    }

    /// True of a copy to spare units, or back, or of their freeing, that is not over.
    fn is_sparing(&self, repair: &RepairStatus) -> bool {
        SpareCopy::of_number(repair.replacement).is_some()
            && !repair::is_of_pool(repair)
            && !matches!(repair.state.as_str(), "done" | "aborted")
    }

    /// What is under way for a device to spare units, or back.
    fn sparing(&self, device: Fid) -> Option<(SpareCopy, &RepairStatus)> {
        let found = self.repairs.iter().find(|repair| repair.device == device && self.is_sparing(repair))?;
        Some((SpareCopy::of_number(found.replacement)?, found))
    }

    fn servers(&self, node: Option<Fid>) -> Vec<Branch> {
        let servers = self.file.servers.iter().filter(|server| server.node == node);
        let branch = |server: &faces::cluster_file::ServerSection| {
            let process = server.process;
            let state = self.process_state(process).word();
            let devices = self.file.devices.iter().enumerate().filter(|(_, device)| device.server == process);
            let endpoint = server.endpoints.first().map(ToString::to_string).unwrap_or_default();
            Branch {
                text: format!("{}  process {process}  {state}  {endpoint}", server_name(process)),
                below: devices.map(|(target, device)| self.device_branch(target, device)).collect(),
            }
        };
        servers.map(branch).collect()
    }

    fn places(&self, kind: PartKind, inside: Option<Fid>) -> Vec<Branch> {
        let parts = self.file.tree.parts(kind).iter().filter(|part| part.inside == inside);
        let branch = |part: &faces::Part| {
            let name = part.name.as_deref().map(|name| format!(" {name:?}")).unwrap_or_default();
            let summary = self.summary(&self.devices_below(kind, part.fid));
            let below = match kind {
                PartKind::Rack => self.places(PartKind::Enclosure, Some(part.fid)),
                PartKind::Enclosure => self.places(PartKind::Controller, Some(part.fid)),
                _ => Vec::new(),
            };
            Branch { text: format!("{} {}{name}  {summary}", kind.word(), part.fid), below }
        };
        parts.map(branch).collect()
    }

    fn tree(&self) -> Vec<Branch> {
        let control = self.file.control.endpoint;
        let mut branches = match self.controls {
            [] => vec![Branch { text: format!("control  serving  {control}"), below: Vec::new() }],
            several => {
                let lines = several.iter().map(|one| controls::line(one, several));
                lines.map(|text| Branch { text, below: Vec::new() }).collect()
            }
        };
        for node in &self.file.tree.nodes {
            let below = self.servers(Some(node.fid));
            let of_node =
                |server: Fid| self.file.server(server).is_some_and(|found| found.node == Some(node.fid));
            let processes = self.file.servers.iter().filter(|server| of_node(server.process));
            let state = DeviceState::of_parts(processes.map(|server| self.process_state(server.process)));
            let name = node.name.as_deref().map(|name| format!(" {name:?}")).unwrap_or_default();
            branches.push(Branch { text: format!("node {}{name}  {}", node.fid, state.word()), below });
        }
        branches.extend(self.servers(None));
        branches.extend(self.places(PartKind::Rack, None));
        branches
    }

    /// The repairs of devices, or the rebalances of pools.
    fn copies(&self, of_pools: bool) -> impl Iterator<Item = &RepairStatus> {
        self.repairs.iter().filter(move |repair| repair::is_of_pool(repair) == of_pools)
    }

    /// What an operator should do, the most pressing first.
    fn advice(&self) -> Vec<String> {
        let mut advice = Vec::new();
        let layout = self.file.pool.layout;
        let in_state = |wanted: DeviceState| -> Vec<Fid> {
            let devices = self.file.devices.iter().map(|device| device.fid);
            devices.filter(|fid| self.device_state(*fid) == wanted).collect()
        };
        let (sparing, failed): (Vec<Fid>, Vec<Fid>) = in_state(DeviceState::Failed)
            .into_iter()
            .partition(|device| matches!(self.sparing(*device), Some((SpareCopy::There, _))));
        let detached = in_state(DeviceState::Detached);
        let failed_or_away =
            [DeviceState::Failed, DeviceState::Transient, DeviceState::Unknown, DeviceState::Detached];
        let parity = usize::try_from(layout.parity()).unwrap_or(usize::MAX);
        // Each pool version outlives losses of its own. Devices of no pool are nobody's loss.
        let configuration = self.file.initial_configuration();
        let is_out = |index: &u32| {
            let device = configuration.target(*index).map(|device| self.device_state(device.device));
            device.is_some_and(|state| failed_or_away.contains(&state))
        };
        for version in configuration.pool_versions() {
            let out = version.device_indexes().filter(is_out).count();
            let parity = usize::try_from(version.width.parity()).unwrap_or(usize::MAX);
            if out > parity {
                advice.push(format!(
                    "{out} devices are failed or away, and layout {} reads without {parity}: some objects cannot be read until \
                     servers come back",
                    version.width
                ));
                break;
            }
        }
        let silent: Vec<&ControlSeat> =
            self.controls.iter().filter(|(_, said)| said.is_none()).map(|(seat, _)| seat).collect();
        for seat in &silent {
            let spare = (self.controls.len() - 1) / 2 - silent.len().min((self.controls.len() - 1) / 2);
            advice.push(format!(
                "{} does not answer, and {spare} more control daemons may go: start it with `clovis control --number {}` on its machine, or \
                 `clovis cluster start`; if its store is lost, see `clovis control member --help`",
                seat.name, seat.number
            ));
        }
        advice.extend(self.controls.iter().filter_map(|one| controls::advice(one, self.controls)));
        for server in &self.file.servers {
            let (name, process) = (server_name(server.process), server.process);
            match self.process_state(process) {
                DeviceState::Transient => advice.push(format!(
                    "{name} is silent: start it with `clovis server --process {process}` on its machine, or `clovis cluster start`"
                )),
                DeviceState::Unknown => advice.push(format!(
                    "{name} was not heard since control started: start it with `clovis server --process {process}`"
                )),
                _ => {}
            }
        }
        for device in self.file.devices.iter().filter(|device| {
            self.device_state(device.fid) == DeviceState::Unknown
                && self.process_state(device.server) == DeviceState::Online
        }) {
            let (fid, name) = (device.fid, server_name(device.server));
            advice.push(format!(
                "device {fid} was never opened: {name} does that by itself, once the cluster file on its machine names it and it is blank; what keeps it from that is in its log"
            ));
        }
        if !failed.is_empty() {
            let names: Vec<String> = failed.iter().map(ToString::to_string).collect();
            let left = parity.saturating_sub(failed.len() + sparing.len());
            let spares = match layout.spare() {
                0 => "",
                _ => {
                    ", and `clovis repair start` with its name rebuilds its units in spare units of the others, if you have no disk"
                }
            };
            advice.push(format!(
                "failed: device {}; its bytes are rebuilt on each read, and {left} more may fail; `clovis device replace {}` gives it \
                 another disk, or its own formatted{spares}",
                names.join(", "),
                names[0]
            ));
        }
        for device in &sparing {
            let state = self.sparing(*device).map_or("", |(_, found)| found.state.as_str());
            let what = match state {
                "paused" => format!("that is paused, and `clovis repair resume {device}` lets it go on"),
                "failed" => format!(
                    "that failed: `clovis repair status {device}` says why, and `clovis repair start {device}` tries again"
                ),
                _ => format!("nothing to be done (`clovis repair status --follow {device}`)"),
            };
            advice.push(format!(
                "device {device} is failed, and its units are being rebuilt in spare units of the others: {what}"
            ));
        }
        for device in in_state(DeviceState::Repaired) {
            advice.push(format!(
                "device {device} is repaired: its units stand in spare units, and nothing is missing; put another disk in its place when you have one, \
                 and `clovis device replace {device}` brings them back"
            ));
        }
        for device in in_state(DeviceState::Rebalance) {
            let state = self.sparing(device).map_or("", |(_, found)| found.state.as_str());
            let what = match state {
                "paused" => format!("that is paused, and `clovis repair resume {device}` lets it go on"),
                "failed" => format!(
                    "that failed: `clovis repair status {device}` says why, and `clovis repair start {device}` tries again"
                ),
                _ => format!("nothing to be done (`clovis repair status --follow {device}`)"),
            };
            advice
                .push(format!("the units of device {device} are being copied back from spare units: {what}"));
        }
        for repair in self.repairs.iter().filter(|repair| self.is_sparing(repair) && repair.state == "failed")
        {
            if SpareCopy::of_number(repair.replacement) == Some(SpareCopy::Free) {
                let device = repair.device;
                advice.push(format!(
                    "the spare units that device {device} had could not all be freed: `clovis repair status {device}` says why, and \
                     `clovis repair start {device}` tries again"
                ));
            }
        }
        for device in in_state(DeviceState::Repair) {
            let state = self.repairs.iter().find(|repair| repair.device == device);
            let what = match state.map(|repair| repair.state.as_str()) {
                Some("paused") => {
                    format!("its repair is paused, and `clovis repair resume {device}` lets it go on")
                }
                Some("failed") => format!(
                    "its repair failed: `clovis repair status {device}` says why, and `clovis repair start {device}` tries again"
                ),
                _ => format!(
                    "its server copies all to it by itself (`clovis repair status --follow {device}`)"
                ),
            };
            advice.push(format!(
                "device {device} is in repair: it takes every write, and reads rebuild its units until all is there; {what}"
            ));
        }
        advice.extend(self.absence_advice(configuration));
        for device in &detached {
            advice.push(format!(
                "device {device} was detached by an operator: writes that need it wait or fail; `clovis device attach {device}` takes it back"
            ));
        }
        for rack in &self.file.tree.racks {
            let count = self.devices_below(PartKind::Rack, rack.fid).len();
            if count > parity {
                advice.push(format!(
                    "rack {} holds {count} devices, and layout {layout} reads without {parity}: its loss would take objects with it",
                    rack.fid
                ));
            }
        }
        advice
    }

    /// What becomes of devices that are away, where time makes them failed. `configuration`: of the file; control judges by the same states.
    fn absence_advice(&self, mut configuration: Configuration) -> Vec<String> {
        let Some(limit) = self.file.profile.absence_limit() else { return Vec::new() };
        for device in &mut configuration.pool.devices {
            device.state = self.device_state(device.device);
        }
        let beyond = configuration.versions_beyond_parity();
        let devices = (0u32..).zip(&configuration.pool.devices);
        let away = devices.filter(|(_, device)| device.state == DeviceState::Transient);
        let (kept, goes): (Vec<_>, Vec<_>) =
            away.partition(|(index, _)| beyond.iter().any(|version| version.has_device(*index)));
        let names = |devices: &[(u32, &DeviceConfig)]| {
            devices.iter().map(|(_, device)| device.device.to_string()).collect::<Vec<_>>().join(", ")
        };
        let mut advice = Vec::new();
        if !goes.is_empty() {
            advice.push(format!(
                "away: device {}; what is away for {} s (fail_after_seconds) is given up, and has to be rebuilt: its server has to be back before",
                names(&goes),
                limit.as_secs()
            ));
        }
        if !kept.is_empty() {
            advice.push(format!(
                "away: device {}; more devices are out than the layout reads without, so none of these is given up however long it is away \
                 (fail_after_seconds): they stay transient until servers come back, or `clovis device fail` gives one up",
                names(&kept)
            ));
        }
        advice
    }

    fn text(&self, transaction: u64) -> String {
        let all: Vec<Fid> = self.file.devices.iter().map(|device| device.fid).collect();
        let mut text = format!(
            "cluster {}  layout {}  configuration {}, transaction {transaction}\npool {}  {}\n",
            self.file.cluster.name,
            self.file.pool.layout,
            self.status.version,
            self.file.pool.fid,
            self.summary(&all)
        );
        if let Some(load) = &self.load {
            text.push_str(&format!("{}\n", load.text()));
        }
        for moving in self.copies(true).filter(|moving| !repair::is_over(moving)) {
            text.push_str(&format!("{}\n", repair::repair_line(moving)));
        }
        draw(&self.tree(), "", &mut text);
        let advice = self.advice();
        text.push_str(if advice.is_empty() { "\nNothing to do.\n" } else { "\nWhat to do next:\n" });
        for line in advice {
            text.push_str(&format!("  - {line}\n"));
        }
        text
    }

    /// All of it, for programs.
    pub fn json(&self, transaction: u64) -> Value {
        let processes = self.file.servers.iter().map(|server| {
            json!({ "fid": server.process.to_string(), "name": server_name(server.process),
                    "node": server.node.map(|node| node.to_string()), "state": self.process_state(server.process).word() })
        });
        let devices = self.file.devices.iter().enumerate().map(|(target, device)| {
            let seen = self.status.devices.iter().find(|one| one.device == device.fid);
            json!({ "target": target, "fid": device.fid.to_string(), "process": device.server.to_string(),
                    "disk": device.disk.map(|disk| disk.to_string()), "state": self.device_state(device.fid).word(),
                    "size_blocks": seen.map_or(0, |seen| seen.size_blocks),
                    "free_blocks": seen.and_then(|seen| seen.free_blocks), "errors": seen.map_or(0, |seen| seen.errors) })
        });
        let places =
            PartKind::ALL.into_iter().filter(|kind| *kind != PartKind::Node && *kind != PartKind::Service);
        let places = places.flat_map(|kind| {
            self.file.tree.parts(kind).iter().map(move |part| {
                let devices = self.devices_below(kind, part.fid);
                let state = DeviceState::of_parts(devices.iter().map(|fid| self.device_state(*fid)));
                json!({ "kind": kind.word(), "fid": part.fid.to_string(), "name": part.name,
                        "in": part.inside.map(|inside| inside.to_string()), "state": state.word(),
                        "devices": devices.len() })
            })
        });
        let mut json = json!({
            "cluster": self.file.cluster.name,
            "layout": self.file.pool.layout.to_string(),
            "configuration_version": self.status.version,
            "transaction": transaction,
            "processes": processes.collect::<Vec<_>>(),
            "devices": devices.collect::<Vec<_>>(),
            "places": places.collect::<Vec<_>>(),
            "load": self.load.map(|load| load.json()),
            "repairs": self.copies(false).map(repair::repair_json).collect::<Vec<_>>(),
            "rebalances": self.copies(true).map(repair::repair_json).collect::<Vec<_>>(),
            "advice": self.advice(),
        });
        if !self.controls.is_empty() {
            json["controls"] = controls::members_json(self.controls);
        }
        json
    }
}

fn draw(branches: &[Branch], indent: &str, text: &mut String) {
    for (index, branch) in branches.iter().enumerate() {
        let is_last = index + 1 == branches.len();
        let (mark, further) = if is_last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        text.push_str(&format!("{indent}{mark}{}\n", branch.text));
        draw(&branch.below, &format!("{indent}{further}"), text);
    }
}

#[cfg(test)]
mod tests {
    use fops::conf::{DeviceStatus, ProcessStatus};

    use super::*;

    #[test]
    fn what_time_makes_of_devices_that_are_away_is_said() {
        let text = include_str!("../../control/faces/src/cluster_file_example.toml");
        let advice = |profile: &str, states: [&str; 4]| {
            let file = ClusterFile::parse(&format!("{text}\n[profile]\n{profile}\n")).unwrap();
            let process = |process| ProcessStatus { process, silent_ms: Some(0), alive: true };
            let device = |(device, state): (Fid, &str)| DeviceStatus {
                device,
                state: state.to_owned(),
                size_blocks: 1,
                free_blocks: None,
                errors: 0,
            };
            let status = ClusterStatusReply {
                version: 7,
                processes: file.servers.iter().map(|server| process(server.process)).collect(),
                devices: file.devices.iter().map(|one| one.fid).zip(states).map(device).collect(),
            };
            let said = Picture::of(&file, &status, None, &[]).advice();
            said.into_iter().filter(|line| line.contains("fail_after_seconds")).collect::<Vec<_>>()
        };
        let one = ["online", "online", "online", "transient"];
        assert_eq!(advice("", one), [""; 0]);
        assert_eq!(advice("fail_after_seconds = 0", one), [""; 0]);
        let said = advice("fail_after_seconds = 3600", one);
        assert!(
            said.len() == 1 && said[0].contains("0x6b00000000000001:0x4; what is away for 3600 s"),
            "{said:?}"
        );
        let said = advice("fail_after_seconds = 3600", ["failed", "online", "online", "transient"]);
        assert!(
            said.len() == 1 && said[0].contains("0x6b00000000000001:0x4; more devices are out"),
            "{said:?}"
        );
        // In spare units nothing is missing.
        let said = advice("fail_after_seconds = 3600", ["repaired", "online", "online", "transient"]);
        assert!(said.len() == 1 && said[0].contains("what is away for 3600 s"), "{said:?}");
    }
}
