//! The rest of an operator's tree: racks, enclosures, controllers, disks, nodes and services. Plain values, and their checks.
//!
//! Two roads lead down from the root: where things stand (rack, enclosure, controller, disk) and what runs (node, process,
//! service). A device is at the end of both. All of it may be left out. **Invariant** of a checked tree: each part is there
//! once, and what it is in is there; since each kind stands in one other kind, no chain can come back to itself.

use std::collections::BTreeMap;

use base::{Fid, FidType};
use serde::Serialize;

use crate::cluster_check::{ConfigProblem, Fault, Place, check_fid, fault};
use crate::cluster_file::ClusterFile;
use crate::fid_order::position_of;
use crate::limits::PARTS_MAX;

/// The one service that a server process runs.
pub const SERVICES: [&str; 1] = ["io"];

/// Kinds of parts, in the order of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PartKind {
    /// `[[rack]]`
    Rack,
    /// `[[enclosure]]`, in a rack.
    Enclosure,
    /// `[[controller]]`, in an enclosure.
    Controller,
    /// `[[disk]]`, on a controller.
    Disk,
    /// `[[node]]`: a machine, perhaps in an enclosure.
    Node,
    /// `[[service]]`, in a server process.
    Service,
}

impl PartKind {
    /// Every kind.
    pub const ALL: [PartKind; 6] = [
        PartKind::Rack,
        PartKind::Enclosure,
        PartKind::Controller,
        PartKind::Disk,
        PartKind::Node,
        PartKind::Service,
    ];

    /// Its section in the file.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            PartKind::Rack => "rack",
            PartKind::Enclosure => "enclosure",
            PartKind::Controller => "controller",
            PartKind::Disk => "disk",
            PartKind::Node => "node",
            PartKind::Service => "service",
        }
    }

    /// Type of its fid.
    #[must_use]
    pub const fn fid_type(self) -> FidType {
        match self {
            PartKind::Rack => FidType::Rack,
            PartKind::Enclosure => FidType::Enclosure,
            PartKind::Controller => FidType::Controller,
            PartKind::Disk => FidType::Disk,
            PartKind::Node => FidType::Node,
            PartKind::Service => FidType::Service,
        }
    }

    /// What it is in, as the word of that section and the type of its fid.
    const fn inside(self) -> Option<(&'static str, FidType)> {
        match self {
            PartKind::Rack => None,
            PartKind::Enclosure => Some(("rack", FidType::Rack)),
            PartKind::Controller | PartKind::Node => Some(("enclosure", FidType::Enclosure)),
            PartKind::Disk => Some(("controller", FidType::Controller)),
            PartKind::Service => Some(("server", FidType::Process)),
        }
    }

    /// A node may stand nowhere in particular.
    const fn needs_inside(self) -> bool {
        !matches!(self, PartKind::Rack | PartKind::Node)
    }
}

/// One part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// The part.
    pub fid: Fid,
    /// Name for people; of a service, which one it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it is in.
    #[serde(rename = "in", skip_serializing_if = "Option::is_none")]
    pub inside: Option<Fid>,
}

/// All parts, by kind, each kind in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ClusterTree {
    /// `[[rack]]`
    #[serde(rename = "rack", skip_serializing_if = "Vec::is_empty")]
    pub racks: Vec<Part>,
    /// `[[enclosure]]`
    #[serde(rename = "enclosure", skip_serializing_if = "Vec::is_empty")]
    pub enclosures: Vec<Part>,
    /// `[[controller]]`
    #[serde(rename = "controller", skip_serializing_if = "Vec::is_empty")]
    pub controllers: Vec<Part>,
    /// `[[disk]]`
    #[serde(rename = "disk", skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Part>,
    /// `[[node]]`
    #[serde(rename = "node", skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<Part>,
    /// `[[service]]`
    #[serde(rename = "service", skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Part>,
}

impl ClusterTree {
    /// The parts of a kind.
    #[must_use]
    pub fn parts(&self, kind: PartKind) -> &[Part] {
        match kind {
            PartKind::Rack => &self.racks,
            PartKind::Enclosure => &self.enclosures,
            PartKind::Controller => &self.controllers,
            PartKind::Disk => &self.disks,
            PartKind::Node => &self.nodes,
            PartKind::Service => &self.services,
        }
    }

    /// The part of a kind with this fid.
    #[must_use]
    pub fn part(&self, kind: PartKind, fid: Fid) -> Option<&Part> {
        let parts = self.parts(kind);
        parts.get(position_of(parts, fid, |part| part.fid)?)
    }

    /// The rack that a disk stands in, by way of its controller and enclosure.
    #[must_use]
    pub fn rack_of_disk(&self, disk: Fid) -> Option<Fid> {
        let controller = self.part(PartKind::Disk, disk)?.inside?;
        let enclosure = self.part(PartKind::Controller, controller)?.inside?;
        self.part(PartKind::Enclosure, enclosure)?.inside
    }
}

/// The checks of the tree, and of what servers and devices say of it.
pub(crate) fn check_tree(file: &ClusterFile) -> Result<(), Fault> {
    let tree = &file.tree;
    let mut fids = BTreeMap::new();
    let mut count = 0;
    for kind in PartKind::ALL {
        for (index, part) in tree.parts(kind).iter().enumerate() {
            count += 1;
            let place = |key| Place::Part(kind, index, key);
            check_fid(place("fid"), part.fid, kind.fid_type())?;
            if let Some(other) = fids.insert(part.fid, place("fid")) {
                let problem = ConfigProblem::DoubledFid { what: kind.word(), fid: part.fid };
                return Err(Fault { place: place("fid"), other: Some(other), problem });
            }
            check_inside(file, kind, part, index)?;
            if count > PARTS_MAX {
                let problem = ConfigProblem::TooMany { what: "part", count, max: PARTS_MAX };
                return Err(fault(place("fid"), problem));
            }
        }
    }
    check_services(tree)?;
    for (index, server) in file.servers.iter().enumerate() {
        if let Some(node) = server.node {
            check_there(file, Place::Server(index, "node"), "node", FidType::Node, node)?;
        }
    }
    let mut seats = BTreeMap::new();
    for (index, device) in file.devices.iter().enumerate() {
        let Some(disk) = device.disk else { continue };
        let place = Place::Device(index, "disk");
        check_there(file, place.clone(), "disk", FidType::Disk, disk)?;
        if let Some(other) = seats.insert(disk, place.clone()) {
            return Err(Fault { place, other: Some(other), problem: ConfigProblem::DoubledDisk { disk } });
        }
    }
    Ok(())
}

fn check_inside(file: &ClusterFile, kind: PartKind, part: &Part, index: usize) -> Result<(), Fault> {
    let (what, fid) = (kind.word(), part.fid);
    match (kind.inside(), part.inside) {
        (Some((parent, fid_type)), Some(inside)) => {
            check_there(file, Place::Part(kind, index, "in"), parent, fid_type, inside)
        }
        (Some((parent, _)), None) if kind.needs_inside() => {
            let problem = ConfigProblem::NoParent { what, fid, parent };
            Err(fault(Place::Part(kind, index, "fid"), problem))
        }
        (None, Some(_)) => {
            Err(fault(Place::Part(kind, index, "in"), ConfigProblem::NothingAbove { what, fid }))
        }
        _ => Ok(()),
    }
}

/// `fid` has the type and is in the file.
fn check_there(
    file: &ClusterFile,
    place: Place,
    what: &'static str,
    fid_type: FidType,
    fid: Fid,
) -> Result<(), Fault> {
    check_fid(place.clone(), fid, fid_type)?;
    let kind = PartKind::ALL.into_iter().find(|kind| kind.fid_type() == fid_type);
    let is_there = match kind {
        Some(kind) => file.tree.part(kind, fid).is_some(),
        None => file.server(fid).is_some(),
    };
    if is_there { Ok(()) } else { Err(fault(place, ConfigProblem::UnknownParent { what, fid })) }
}

fn check_services(tree: &ClusterTree) -> Result<(), Fault> {
    let mut seen = BTreeMap::new();
    for (index, service) in tree.services.iter().enumerate() {
        let place = Place::Part(PartKind::Service, index, "name");
        let name = service.name.as_deref().unwrap_or_default();
        if !SERVICES.contains(&name) {
            return Err(fault(place, ConfigProblem::UnknownService { name: name.to_owned() }));
        }
        if let Some(other) = seen.insert((service.inside, name), place.clone()) {
            let problem = ConfigProblem::DoubledService { name: name.to_owned() };
            return Err(Fault { place, other: Some(other), problem });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = include_str!("cluster_file_example.toml");
    const TREE: &str = "
[[rack]]
fid = \"0x6100000000000001:1\"
name = \"left\"

[[enclosure]]
fid = \"0x6500000000000001:1\"
in = \"0x6100000000000001:1\"

[[controller]]
fid = \"0x6300000000000001:1\"
in = \"0x6500000000000001:1\"

[[disk]]
fid = \"0x6400000000000001:1\"
in = \"0x6300000000000001:1\"

[[node]]
fid = \"0x6e00000000000001:1\"
in = \"0x6500000000000001:1\"

[[service]]
fid = \"0x7300000000000001:1\"
in = \"0x7200000000000001:1\"
name = \"io\"
";

    fn good() -> String {
        let base = BASE
            .replace("path = \"device-1\"", "path = \"device-1\"\ndisk = \"0x6400000000000001:1\"")
            .replace(":34:1\"]", ":34:1\"]\nnode = \"0x6e00000000000001:1\"");
        format!("{base}\n{TREE}")
    }

    #[test]
    fn a_tree_parses_prints_as_it_parses_and_leads_from_a_disk_to_its_rack() {
        let file = ClusterFile::parse(&good()).unwrap();
        assert_eq!(ClusterFile::parse(&file.to_toml().unwrap()).unwrap(), file);
        let rack = file.tree.racks[0].fid;
        assert_eq!(file.tree.rack_of_disk(file.devices[0].disk.unwrap()), Some(rack));
        assert_eq!(file.tree.rack_of_disk(Fid::default()), None);
        assert_eq!(file.servers[0].node, Some(file.tree.nodes[0].fid));
    }

    #[test]
    fn every_refusal_of_a_tree_names_its_line() {
        let line = |piece: &str| {
            let text = good();
            let before = text.find(piece).expect("it is there");
            text[..before].matches('\n').count() + 1
        };
        let rack = line("fid = \"0x6100000000000001:1\"");
        let inside = |kind: &str| line(&format!("[[{kind}]]")) + 2;
        let cases: Vec<(&str, &str, String)> = vec![
            (
                "fid = \"0x6100000000000001:1\"",
                "fid = \"0x6200000000000001:1\"",
                format!("line {rack}, rack[0].fid: 0x6200000000000001:0x1 is not the fid of a Rack"),
            ),
            (
                "name = \"left\"",
                "in = \"0x6100000000000001:1\"",
                format!("line {}, rack[0].in: rack 0x6100000000000001:0x1 stands at the top", rack + 1),
            ),
            (
                "in = \"0x6100000000000001:1\"",
                "in = \"0x6100000000000001:7\"",
                format!("line {}, enclosure[0].in: there is no [[rack]] 0x6100000000000001:0x7", inside("enclosure")),
            ),
            (
                "fid = \"0x6300000000000001:1\"\nin = \"0x6500000000000001:1\"",
                "fid = \"0x6300000000000001:1\"",
                format!(
                    "line {}, controller[0].fid: controller 0x6300000000000001:0x1 needs the enclosure that it is in",
                    inside("controller") - 1
                ),
            ),
            (
                "in = \"0x6300000000000001:1\"",
                "in = \"0x6400000000000001:1\"",
                format!("line {}, disk[0].in: 0x6400000000000001:0x1 is not the fid of a Controller", inside("disk")),
            ),
            (
                "[[node]]",
                "[[rack]]\nfid = \"0x6100000000000001:1\"\n\n[[node]]",
                format!("rack[1].fid (also line {rack}, rack[0].fid): rack 0x6100000000000001:0x1 is there twice"),
            ),
            ("name = \"io\"", "name = \"cas\"", "\"cas\" is no service of a server: those are io".to_owned()),
            ("in = \"0x7200000000000001:1\"\nname", "in = \"0x7200000000000001:9\"\nname", "there is no [[server]]".to_owned()),
            (
                "[[node]]",
                "[[service]]\nfid = \"0x7300000000000001:2\"\nin = \"0x7200000000000001:1\"\nname = \"io\"\n\n[[node]]",
                "the server has the service \"io\" already".to_owned(),
            ),
            (
                "path = \"device-2\"",
                "path = \"device-2\"\ndisk = \"0x6400000000000001:1\"",
                "device[1].disk (also line 34, device[0].disk): disk 0x6400000000000001:0x1 holds two devices".to_owned(),
            ),
            ("node = \"0x6e00000000000001:1\"", "node = \"0x6e00000000000001:2\"", "line 24, server[0].node: there is no [[node]]".to_owned()),
        ];
        for (piece, other, expected) in cases {
            let text = good();
            assert_eq!(text.matches(piece).count(), 1, "{piece:?}");
            let message = ClusterFile::parse(&text.replace(piece, other)).expect_err(piece).to_string();
            assert!(message.contains(&expected), "got  {message:?}\nwant {expected:?}");
        }
        let many = format!(
            "{BASE}\n{}",
            (0..=PARTS_MAX)
                .map(|key| format!("[[rack]]\nfid = \"0x6100000000000001:{key}\"\n"))
                .collect::<String>()
        );
        assert!(
            ClusterFile::parse(&many).unwrap_err().to_string().contains("more than a configuration carries")
        );
    }
}
