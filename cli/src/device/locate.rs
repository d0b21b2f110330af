//! `clovis device locate`: where a device is, so that somebody can walk to it.
//!
//! The cluster file says machine, process, path and the way through controller, enclosure and rack. What kind of file the path is, and
//! by which other names the kernel knows a block device, is looked up only on the machine that the device's server has its address on.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use base::Endpoint;
use faces::PartKind;
use faces::cluster_file::{ClusterFile, DeviceSection};
use serde_json::{Value, json};
use spdk_stob::is_nvme_address;

use super::find;
use crate::args::DeviceJsonArgs;
use crate::connection::{device_path, find_cluster_file, folder_of, load_cluster_file};
use crate::daemon::server_name;
use crate::failure::Failure;
use crate::net::interfaces;
use crate::output;

/// Where udev links block devices by what they are called on their label.
const BY_ID: &str = "/dev/disk/by-id";

/// `clovis device locate`: needs no cluster that runs.
pub fn run(args: &DeviceJsonArgs) -> Result<(), Failure> {
    let config = find_cluster_file(args.connect.config.as_deref())?;
    let file = load_cluster_file(&config)?;
    let (target, device) = find(&file, &args.device)?;
    let path = device_path(folder_of(&config), &device.path);
    let path = if is_nvme_address(&path) { path } else { std::path::absolute(&path).unwrap_or(path) };
    let endpoint = file.endpoint_of(device);
    let found = match endpoint {
        Some(endpoint) if is_here(endpoint)? => look(&path),
        _ => Found::Elsewhere,
    };
    let place = Place { file: &file, target, device, endpoint, path, found };
    if args.json { output::line(&place.json().to_string()) } else { output::print(&place.text()) }
}

/// True if an endpoint's address is one of this machine.
fn is_here(endpoint: Endpoint) -> Result<bool, Failure> {
    let address = Ipv4Addr::from(endpoint.nid.address);
    Ok(address.is_loopback() || interfaces::all()?.iter().any(|one| one.address == address))
}

/// What stands at the path, on this machine.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// The server is another machine's: nothing was looked at.
    Elsewhere,
    /// Not in the file system: an NVMe controller by its PCI address.
    Nvme,
    File,
    /// A block device, with links to it.
    Block(Vec<PathBuf>),
    /// There, and neither.
    Other,
    /// Not there, or not to be seen: why.
    Absent(String),
}

impl Found {
    const fn word(&self) -> &'static str {
        match self {
            Found::Elsewhere => "elsewhere",
            Found::Nvme => "nvme",
            Found::File => "file",
            Found::Block(_) => "block device",
            Found::Other => "other",
            Found::Absent(_) => "absent",
        }
    }

    fn links(&self) -> &[PathBuf] {
        match self {
            Found::Block(links) => links,
            _ => &[],
        }
    }

    fn text(&self) -> String {
        match self {
            Found::Elsewhere => {
                "cannot tell: its server has no address of this machine; ask there".to_owned()
            }
            Found::Nvme => "an NVMe controller, driven by SPDK".to_owned(),
            Found::File => "a file".to_owned(),
            Found::Block(_) => "a block device".to_owned(),
            Found::Other => "neither a file nor a block device".to_owned(),
            Found::Absent(error) => format!("nothing to be seen: {error}"),
        }
    }
}

fn look(path: &Path) -> Found {
    if is_nvme_address(path) {
        return Found::Nvme;
    }
    match fs::metadata(path) {
        Err(error) => Found::Absent(error.to_string()),
        Ok(found) if found.is_file() => Found::File,
        Ok(found) if found.file_type().is_block_device() => {
            Found::Block(links_to(Path::new(BY_ID), found.rdev()))
        }
        Ok(_) => Found::Other,
    }
}

/// The links in a folder that lead to the block device of this number, in order.
fn links_to(folder: &Path, number: u64) -> Vec<PathBuf> {
    let links = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let leads_there = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device() && found.rdev() == number)
    };
    let mut links: Vec<PathBuf> = links.filter(leads_there).collect();
    links.sort();
    links
}

struct Place<'a> {
    file: &'a ClusterFile,
    target: usize,
    device: &'a DeviceSection,
    endpoint: Option<Endpoint>,
    path: PathBuf,
    found: Found,
}

impl Place<'_> {
    /// Disk, controller, enclosure, rack, as far as the file says.
    fn parts(&self) -> Vec<(&'static str, String, Option<String>)> {
        let mut parts = Vec::new();
        let mut at = self.device.disk;
        for kind in [PartKind::Disk, PartKind::Controller, PartKind::Enclosure, PartKind::Rack] {
            let Some(part) = at.and_then(|fid| self.file.tree.part(kind, fid)) else { break };
            parts.push((kind.word(), part.fid.to_string(), part.name.clone()));
            at = part.inside;
        }
        parts
    }

    fn node(&self) -> Option<(String, Option<String>)> {
        let node = self.file.server(self.device.server)?.node?;
        let name = self.file.tree.part(PartKind::Node, node).and_then(|part| part.name.clone());
        Some((node.to_string(), name))
    }

    fn text(&self) -> String {
        let mut lines = vec![("device", format!("{} (target {})", self.device.fid, self.target))];
        let named = |fid: &str, name: Option<&String>| {
            name.map_or_else(|| fid.to_owned(), |name| format!("{fid} {name:?}"))
        };
        let node = self.node().map(|(fid, name)| named(&fid, name.as_ref()));
        lines.push(("node", node.unwrap_or_else(|| "not in the cluster file".to_owned())));
        lines.push(("process", format!("{} ({})", self.device.server, server_name(self.device.server))));
        lines.push((
            "endpoint",
            self.endpoint.map_or_else(|| "-".to_owned(), |endpoint| endpoint.to_string()),
        ));
        lines.push(("path", self.path.display().to_string()));
        lines.push(("is", self.found.text()));
        lines.extend(self.found.links().iter().map(|link| ("by-id", link.display().to_string())));
        lines.extend(self.parts().iter().map(|(word, fid, name)| (*word, named(fid, name.as_ref()))));
        lines.iter().map(|(word, text)| format!("{word:<10}  {text}\n")).collect()
    }

    fn json(&self) -> Value {
        let parts = self
            .parts()
            .into_iter()
            .map(|(kind, fid, name)| json!({ "kind": kind, "fid": fid, "name": name }));
        let links = self.found.links().iter().map(|link| link.display().to_string());
        json!({
            "target": self.target, "fid": self.device.fid.to_string(),
            "node": self.node().map(|(fid, name)| json!({ "fid": fid, "name": name })),
            "process": self.device.server.to_string(), "server": server_name(self.device.server),
            "endpoint": self.endpoint.map(|endpoint| endpoint.to_string()), "path": self.path.display().to_string(),
            "kind": self.found.word(), "by_id": links.collect::<Vec<_>>(), "places": parts.collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_at_a_path_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("device");
        fs::write(&file, "x").unwrap();
        assert_eq!(look(&file), Found::File);
        assert_eq!(look(folder.path()), Found::Other);
        assert!(matches!(look(&folder.path().join("gone")), Found::Absent(_)));
        assert_eq!(look(Path::new("nvme:0000:00:04.0")), Found::Nvme);
        std::os::unix::fs::symlink(&file, folder.path().join("link")).unwrap();
        assert!(links_to(folder.path(), 0).is_empty(), "links to files are none");
    }

    #[test]
    fn a_block_device_of_this_machine_has_the_links_that_lead_to_it() {
        let Some(device) = fs::read_dir("/dev")
            .unwrap()
            .flatten()
            .find(|entry| entry.file_type().is_ok_and(|kind| kind.is_block_device()))
        else {
            println!("skipped: /dev has no block device");
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("named");
        std::os::unix::fs::symlink(device.path(), &link).unwrap();
        std::os::unix::fs::symlink("/dev/null", folder.path().join("other")).unwrap();
        let number = fs::metadata(device.path()).unwrap().rdev();
        assert_eq!(links_to(folder.path(), number), [link]);
        assert!(matches!(look(&device.path()), Found::Block(_)));
    }

    #[test]
    fn a_device_without_a_seat_in_the_file_is_told_by_its_process() {
        let text = include_str!("../../../control/faces/src/cluster_file_example.toml");
        let file = ClusterFile::parse(text).unwrap();
        let device = &file.devices[1];
        let place = Place {
            file: &file,
            target: 1,
            device,
            endpoint: None,
            path: PathBuf::from("/d"),
            found: Found::Elsewhere,
        };
        let text = place.text();
        assert!(
            text.contains("node        not in the cluster file") && text.contains("(server-1)"),
            "{text}"
        );
        assert!(text.contains("cannot tell") && place.json()["node"] == Value::Null, "{text}");
    }
}
