//! Room for the control daemon's state: in its own store, as it says itself, and on the file system under the cluster's folder.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use base::units::{BLOCK_BYTES, MIB};
use rustix::fs::statvfs;

use super::Patient;
use super::finding::Finding;
use super::processes::Seen;
use crate::connection::device_path;
use crate::table::bytes_text;

/// Less than this part of the store free is little, less than that one hardly anything.
const LITTLE_PARTS: u64 = 10;
const HARDLY_PARTS: u64 = 50;
/// Logs and ADDB of a folder's daemons want at least this.
const FOLDER_BYTES_MIN: u64 = 64 * MIB;
/// Bytes that stat(2) counts as one.
const STAT_BLOCK_BYTES: u64 = 512;

pub fn all(patient: &Patient, seen: &[Seen]) -> Vec<Finding> {
    let told =
        seen.iter().find(|one| one.is_control()).and_then(|one| one.answer.as_ref().ok()?.told.as_ref());
    let mut findings =
        vec![store(told.and_then(|told| told.store).map(|space| (space.blocks, space.free_blocks)))];
    findings.extend(store_file(patient));
    findings.push(folder(patient));
    findings
}

/// `space`: blocks of control's store, and of these free, as it says.
fn store(space: Option<(u64, u64)>) -> Finding {
    const CHECK: &str = "control's store";
    const WHY: &str =
        "a control daemon whose store is full changes nothing any more: leases run out and servers stop";
    let todo = "give back locks that nobody needs (`clovis lock list`, `clovis lock release`) and end watches; the size of the store (`store_bytes`) is chosen when the cluster is made";
    let Some((blocks, free)) = space else {
        return Finding::warn(CHECK, "cannot tell: control did not say", WHY, "see the finding on control");
    };
    let text = |blocks: u64| bytes_text(blocks.saturating_mul(BLOCK_BYTES));
    let seen = format!("{} of {} free, as control says", text(free), text(blocks));
    if free < blocks.div_ceil(HARDLY_PARTS) {
        Finding::fail(CHECK, seen, WHY, todo)
    } else if free < blocks.div_ceil(LITTLE_PARTS) {
        Finding::warn(CHECK, seen, WHY, todo)
    } else {
        Finding::ok(CHECK, seen, WHY)
    }
}

/// The store's file, where it is on this machine: does it have all its blocks?
fn store_file(patient: &Patient) -> Option<Finding> {
    let path = device_path(patient.folder(), &patient.file.control.store);
    let found = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
    Some(store_file_of(
        &path.display().to_string(),
        found.len(),
        found.blocks().saturating_mul(STAT_BLOCK_BYTES),
    ))
}

fn store_file_of(path: &str, bytes: u64, allocated: u64) -> Finding {
    const CHECK: &str = "file of control's store";
    const WHY: &str = "a file without all its blocks needs room on its file system when it is written, and that may be full then";
    if allocated >= bytes {
        return Finding::ok(CHECK, format!("{path} has all of its {}", bytes_text(bytes)), WHY);
    }
    let seen = format!("{path} has {} of its {}", bytes_text(allocated), bytes_text(bytes));
    Finding::warn(CHECK, seen, WHY, format!("`fallocate --length {bytes} {path}` (it keeps what is there)"))
}

fn folder(patient: &Patient) -> Finding {
    const CHECK: &str = "space of the folder";
    const WHY: &str = "logs and ADDB files of the daemons are written there";
    let path = patient.folder();
    match statvfs(path) {
        Err(error) => Finding::warn(
            CHECK,
            format!("cannot tell: {}: {error}", path.display()),
            WHY,
            format!("look at `df {}`", path.display()),
        ),
        Ok(found) => folder_of(&path.display().to_string(), found.f_bavail.saturating_mul(found.f_frsize)),
    }
}

fn folder_of(path: &str, free_bytes: u64) -> Finding {
    const CHECK: &str = "space of the folder";
    const WHY: &str = "logs and ADDB files of the daemons are written there";
    let seen = format!("{} free on the file system of {path}", bytes_text(free_bytes));
    if free_bytes >= FOLDER_BYTES_MIN {
        Finding::ok(CHECK, seen, WHY)
    } else {
        Finding::warn(
            CHECK,
            seen,
            WHY,
            format!("make room: `du -x {path}` shows what takes it; daemons serve on, without their log"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn a_full_store_fails_and_what_control_does_not_say_is_not_guessed() {
        assert_eq!(store(Some((1000, 100))).verdict, Verdict::Ok);
        assert_eq!(store(Some((1000, 99))).verdict, Verdict::Warn);
        assert_eq!(store(Some((1000, 19))).verdict, Verdict::Fail);
        assert_eq!(store(Some((0, 0))).verdict, Verdict::Ok);
        assert!(store(None).verdict == Verdict::Warn && store(None).seen.starts_with("cannot tell"));
    }

    #[test]
    fn a_store_with_holes_and_a_full_folder_are_warnings() {
        assert_eq!(store_file_of("s", 4096, 4096).verdict, Verdict::Ok);
        assert!(store_file_of("s", 4096, 0).todo.unwrap().contains("--length 4096 s"));
        assert_eq!(folder_of("d", FOLDER_BYTES_MIN).verdict, Verdict::Ok);
        assert_eq!(folder_of("d", FOLDER_BYTES_MIN - 1).verdict, Verdict::Warn);
    }
}
