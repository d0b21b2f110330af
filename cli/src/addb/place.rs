//! Where processes make their ADDB files: the folder `addb` beside the cluster file.
//!
//! A daemon has `NAME.addb`; what it left when it ran last becomes `NAME.previous.addb`, so that a crash can still be looked at after the
//! restart. Clients share [`CLIENT_FILES_MAX`] files, `client-N.addb`: each takes the one that was begun the longest ago and that no process
//! has. Only a client that finds the folder makes a file.
//!
//! **Invariant**: a file belongs to the process that holds its lock; nobody else writes to it, and it is never cut short.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use base::{Fid, Instant};
use rpc::addb::header::Shape;
use rpc::addb::{AddbSpace, Origin};
use runtime::MonotonicClock;

use crate::connection::unix_time;
use crate::failure::Failure;

/// Files that clients leave in a folder: 16 of 392 KiB, 6.1 MiB.
pub const CLIENT_FILES_MAX: usize = 16;

/// What this process says of itself.
pub fn origin(clock: &MonotonicClock, name: &str, process: Fid, epoch: u64) -> Origin {
    let now = clock.now().since(Instant::ZERO).as_nanos();
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let boot_ns = i128::from(boot.tv_sec) * 1_000_000_000 + i128::from(boot.tv_nsec);
    let at_zero = |then_ns: i128| u64::try_from(then_ns - i128::try_from(now).unwrap_or(0)).unwrap_or(0);
    let words = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let boot_id = words("/proc/sys/kernel/random/boot_id").replace('-', "");
    Origin {
        node: words("/proc/sys/kernel/hostname"),
        name: name.to_owned(),
        process,
        process_id: std::process::id(),
        epoch,
        unix_ns_at_zero: at_zero(i128::try_from(unix_time().as_nanos()).unwrap_or(0)),
        boot_ns_at_zero: at_zero(boot_ns),
        boot: boot_id.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0),
    }
}

fn shape() -> Shape {
    Shape::for_records(rpc::limits::ADDB_RECORDS)
}

/// The file of a daemon; that of its last run is kept beside it.
///
/// Errors: another process has it, or the folder cannot be written to.
pub fn daemon_file(folder: &Path, origin: Origin) -> Result<AddbSpace, Failure> {
    let path = folder.join(format!("{}.addb", origin.name));
    let doing = || path.display().to_string();
    fs::create_dir_all(folder).map_err(Failure::while_doing(folder.display()))?;
    if let Ok(last) = File::open(&path) {
        lock(&last, &path)?;
        let kept = folder.join(format!("{}.previous.addb", origin.name));
        fs::rename(&path, kept).map_err(Failure::while_doing(doing()))?;
    }
    let file = File::options().read(true).write(true).create_new(true).open(&path);
    let file = file.map_err(Failure::while_doing(doing()))?;
    lock(&file, &path)?;
    AddbSpace::in_file(file, shape(), origin).map_err(Failure::while_doing(doing()))
}

/// A file of a client; `None` where there is no folder, or none of its files can be had.
pub fn client_file(folder: &Path, origin: &Origin) -> Option<AddbSpace> {
    if !folder.is_dir() {
        return None;
    }
    let path = |number: usize| folder.join(format!("client-{number}.addb"));
    let mut paths: Vec<PathBuf> = (0..CLIENT_FILES_MAX).map(path).collect();
    // One that is not there first.
    paths.sort_by_key(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok());
    paths.iter().find_map(|path| {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path).ok()?;
        lock(&file, path).ok()?;
        AddbSpace::in_file(file, shape(), origin.clone()).ok()
    })
}

fn lock(file: &File, path: &Path) -> Result<(), Failure> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            Err(Failure::new(format!("{} belongs to another running process", path.display())))
        }
        Err(TryLockError::Error(error)) => Err(Failure::new(format!("{}: {error}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rpc::addb::{Phase, Ring, Snapshot};

    fn own(name: &str) -> Origin {
        origin(&MonotonicClock::start(), name, Fid::default(), 7)
    }

    fn write(space: &AddbSpace, request_id: u64) -> Ring {
        let ring = Ring::new(Some(space), 0, 0, "0@lo:12345:34:1".parse().unwrap());
        ring.phase(Instant::ZERO, Phase::Submit, request_id, 1, 0);
        ring
    }

    fn ids(path: &Path) -> Vec<u64> {
        let snapshot = Snapshot::parse(&fs::read(path).unwrap()).unwrap();
        snapshot.records.iter().map(|record| record.request_id).collect()
    }

    #[test]
    fn a_daemon_keeps_what_its_last_run_left_and_takes_nobody_else_s() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("addb");
        let first = daemon_file(&folder, own("server-1")).unwrap();
        let ring = write(&first, 1);
        let refusal = daemon_file(&folder, own("server-1")).unwrap_err().to_string();
        assert!(refusal.contains("another running process"), "{refusal}");
        drop((first, ring));
        for run in [2, 3] {
            let next = daemon_file(&folder, own("server-1")).unwrap();
            drop(write(&next, run));
        }
        assert_eq!(ids(&folder.join("server-1.previous.addb")), [2]);
        assert_eq!(ids(&folder.join("server-1.addb")), [3]);
    }

    #[test]
    fn clients_share_a_bounded_number_of_files() {
        let folder = tempfile::tempdir().unwrap();
        assert!(client_file(&folder.path().join("none"), &own("client")).is_none());
        let spaces: Vec<AddbSpace> =
            (0..CLIENT_FILES_MAX).map(|_| client_file(folder.path(), &own("client")).unwrap()).collect();
        assert!(client_file(folder.path(), &own("client")).is_none(), "all belong to somebody");
        drop(spaces);
        let again = client_file(folder.path(), &own("client")).unwrap();
        drop(write(&again, 9));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), CLIENT_FILES_MAX);
    }

    #[test]
    fn clocks_are_said_in_two_ways() {
        let (first, second) = (own("a"), own("b"));
        assert!(first.boot_ns_at_zero > 0 && first.boot_ns_at_zero <= second.boot_ns_at_zero);
        assert!(first.unix_ns_at_zero > 1_600_000_000_000_000_000);
        assert_eq!(first.boot, second.boot);
    }
}
