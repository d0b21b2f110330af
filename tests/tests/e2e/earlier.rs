//! A cluster folder that an earlier version has left, packed: this version starts it, finds everything that was acknowledged, and goes on from there.
//!
//! `earlier-3f49c8b.bin` was made by version 3f49c8b (2026-11-22) with the last test of this file. It stays as it is: a later version that has to be read
//! as well gets a file of its own. Sparse files, as: `ClEarly1`, then for each file the length of its name (u16), the name, its bytes (u64), how many sectors
//! of 512 bytes are not zero (u32), and those: number (u32), bytes. Little endian.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use base::{Endpoint, Nid};
use clovis_tests::cluster::{COMMAND_LIMIT, RunningCluster};
use clovis_tests::{content, place, processes};

const MAGIC: &[u8; 8] = b"ClEarly1";
const SECTOR: usize = 512;
const FILES: [&str; 4] = ["clovis.toml", "control.dev", "devices/device-0.dev", "devices/device-1.dev"];
const LAYOUT: [&str; 8] =
    ["--servers", "1", "--devices-per-server", "2", "--layout", "1+1+0", "--device-size", "16M"];
/// Objects, the seeds of their bytes, and how many.
const OBJECTS: [(&str, u64, usize); 3] = [("1:1", 1, 9000), ("1:2", 2, 5000), ("1:3", 3, 0)];

fn packed() -> PathBuf {
    place::root().join("tests/tests/e2e/earlier-3f49c8b.bin")
}

fn unpack(packed: &[u8], folder: &Path) {
    let mut rest = packed.strip_prefix(MAGIC).expect("a packed cluster folder");
    let mut take = |count: usize| {
        let (taken, left) = rest.split_at_checked(count)?;
        rest = left;
        Some(taken)
    };
    while let Some(length) = take(2) {
        let length = u16::from_le_bytes(length.try_into().unwrap());
        let name = String::from_utf8(take(length.into()).unwrap().to_vec()).unwrap();
        let size = u64::from_le_bytes(take(8).unwrap().try_into().unwrap());
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap();
        file.set_len(size).unwrap();
        for _ in 0..u32::from_le_bytes(take(4).unwrap().try_into().unwrap()) {
            let sector = u32::from_le_bytes(take(4).unwrap().try_into().unwrap());
            file.seek(SeekFrom::Start(u64::from(sector) * 512)).unwrap();
            let left = usize::try_from(size - u64::from(sector) * 512).unwrap();
            file.write_all(&take(SECTOR).unwrap()[..left.min(SECTOR)]).unwrap();
        }
    }
}

fn pack(folder: &Path) -> Vec<u8> {
    let mut packed = MAGIC.to_vec();
    for name in FILES {
        let mut bytes = Vec::new();
        File::open(folder.join(name)).unwrap().read_to_end(&mut bytes).unwrap();
        packed.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
        packed.extend(name.as_bytes());
        packed.extend(u64::try_from(bytes.len()).unwrap().to_le_bytes());
        let sectors =
            bytes.chunks(SECTOR).enumerate().filter(|(_, sector)| sector.iter().any(|byte| *byte != 0));
        let sectors: Vec<(usize, &[u8])> = sectors.collect();
        packed.extend(u32::try_from(sectors.len()).unwrap().to_le_bytes());
        for (number, sector) in sectors {
            packed.extend(u32::try_from(number).unwrap().to_le_bytes());
            packed.extend(sector);
            packed.extend(vec![0; SECTOR - sector.len()]);
        }
    }
    packed
}

#[test]
fn a_cluster_that_an_earlier_version_left_is_found_as_it_was() {
    let cluster = RunningCluster::of("earlier", |folder| {
        unpack(&std::fs::read(packed()).unwrap(), folder);
        // On ports that are free here.
        let config = folder.join("clovis.toml");
        let mut text = std::fs::read_to_string(&config).unwrap();
        let port = processes::free_ports(2);
        let names: Vec<String> = text
            .match_indices("127.0.0.1@tcp:")
            .map(|(at, _)| text[at..].split('"').next().unwrap().into())
            .collect();
        assert_eq!(names.len(), 2, "{text}");
        for (name, port) in names.iter().zip(port..) {
            let endpoint = Endpoint::from_port(Nid::tcp(Ipv4Addr::LOCALHOST), port).unwrap();
            text = text.replace(name, &endpoint.to_string());
        }
        std::fs::write(&config, text).unwrap();
    });
    let listed = cluster.run(&["ls"]).succeeded();
    assert_eq!(listed.text().lines().count(), 1 + OBJECTS.len() + 1, "{}", listed.text());
    for (object, seed, count) in OBJECTS {
        assert!(cluster.run(&["cat", object]).succeeded().stdout == content::bytes(seed, count), "{object}");
    }
    assert!(cluster.run(&["cat", "1:4"]).refused().contains("does not exist"), "it was deleted");
    let locks = cluster.run(&["lock", "list", "--json"]).succeeded();
    for word in ["\"name\":\"writer\"", "\"object\":\"1:1\"", "\"why\":\"earlier\"", "\"mode\":\"shared\""] {
        assert!(locks.text().contains(word), "{word} in {}", locks.text());
    }
    let busy = cluster.run(&["lock", "take", "writer", "--object", "1:1", "--try"]);
    assert!(busy.refused().contains(&format!("is held by {:032x}", 0xa1)), "{}", busy.stderr);
    // It goes on: tickets and numbers of objects are ones that nobody has had.
    let file = cluster.scratch().join("file");
    std::fs::write(&file, content::bytes(5, 70_000)).unwrap();
    let file = file.to_str().unwrap();
    let ticket = cluster.run(&["lock", "take", "next"]).succeeded();
    let epoch: u64 = ticket.text().trim().rsplit(':').next().unwrap().parse().unwrap();
    let others = locks.text().split("\"epoch\":").skip(1).map(|rest| rest.split(',').next().unwrap());
    assert_eq!(others.clone().count(), 2);
    assert!(
        others.into_iter().all(|other| other.parse::<u64>().unwrap() < epoch),
        "{epoch} in {}",
        locks.text()
    );
    let made = cluster.run(&["cp", file, "new"]).succeeded();
    assert!(made.text().starts_with("36028797018963968:") && !listed.text().contains(made.text().trim()));
    let _ = cluster.run(&["cp", file, "1:1", "--ticket", ticket.text().trim(), "--quiet"]).succeeded();
    assert!(cluster.run(&["cat", "1:1"]).succeeded().stdout == content::bytes(5, 70_000));
    let history = cluster.run(&["conf", "history"]).succeeded();
    assert!(history.text().lines().count() >= 2, "{}", history.text());
}

/// Writes the packed folder of another version: `CLOVIS_EARLIER_BINARY` makes it, and the name in [`packed`] says which that is.
#[test]
#[ignore = "writes a file of the repository: for another earlier version"]
fn pack_what_an_earlier_version_leaves() {
    let earlier = std::env::var_os("CLOVIS_EARLIER_BINARY").expect("CLOVIS_EARLIER_BINARY names a binary");
    let folder = clovis_tests::folder("pack");
    let dir = folder.path().join("cluster");
    let run = |words: &[&str]| {
        let mut command = Command::new(&earlier);
        command.args(words).env("CLOVIS_CONFIG", dir.join("clovis.toml"));
        processes::run(&mut command, folder.path(), COMMAND_LIMIT).succeeded()
    };
    let (dir_text, file) = (dir.to_str().unwrap(), folder.path().join("file"));
    let _ = run(&[&["cluster", "start", "--dir", dir_text], &LAYOUT[..]].concat());
    for (object, seed, count) in OBJECTS.into_iter().chain([("1:4", 4, 100), ("new", 4, 100)]) {
        std::fs::write(&file, content::bytes(seed, count)).unwrap();
        let _ = run(&["cp", file.to_str().unwrap(), object, "--quiet"]);
    }
    let _ = run(&["rm", "1:4"]);
    let _ = run(&["lock", "take", "writer", "--object", "1:1", "--owner", "a1", "--why", "earlier"]);
    let _ = run(&["lock", "take", "readers", "--shared", "--owner", "b2"]);
    let _ = run(&["cluster", "stop", "--dir", dir_text]);
    std::fs::write(packed(), pack(&dir)).unwrap();
}
