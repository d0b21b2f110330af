//! A whole object through the whole stack in one process, beside `cp` of the same file on the same tmpfs.
//!
//! Write: from opening the object to its committed record, bytes read from the file as `cp` reads them; every byte is
//! durable at its servers by then, with parity and checksums. Read: from opening the object to the last byte in memory,
//! checksums verified; a second row writes the bytes to a fresh file as `cp` does. `cp` includes starting the process.
//! Destinations are fresh for each sample and removed outside of the timed part, on both sides.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base::units::{MIB, wide};
use base::{LayoutWidth, ObjectId};
use client::Object;
use runtime::{MonotonicClock, process};

use super::machine::{ProcessTimes, Quiet};
use super::pairs::{Pair, Sample, interleave};
use super::peer::{Scratch, output};
use super::report::{Comparison, Costs, Peer};
use super::{Plan, announce};
use crate::blueprint::device_bytes_for;
use crate::failure::Failure;
use crate::in_process::{InProcess, Shape};
use crate::objects::{fetch, fill, open_source, store};
use crate::progress::Progress;

/// The targets beside `cp`.
const WRITE_TARGET: f64 = 0.5;
const READ_TARGET: f64 = 0.7;
const SERVERS: u32 = 4;
const DEVICES: u32 = 8;
const WIDTH: LayoutWidth = LayoutWidth::DEFAULT;
/// What a folder on a tmpfs says of itself. Source: statfs(2).
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Measures writing and reading.
pub fn run(plan: &Plan) -> Result<Vec<Comparison>, Failure> {
    let size_bytes = if plan.is_quick { 128 * MIB } else { 1024 * MIB };
    let device_bytes = device_bytes_for(size_bytes, WIDTH, DEVICES);
    // Devices, the source, one copy of it, and the control daemon's store.
    check_folder(&plan.folder, device_bytes * u64::from(DEVICES) + 2 * size_bytes + 64 * MIB)?;
    let scratch = Scratch::make(&plan.folder)?;
    let source = scratch.path().join("source");
    make_source(&source, size_bytes)?;
    let shape = Shape { width: WIDTH, devices: DEVICES, servers: SERVERS, device_bytes };
    let mut bench = Bench {
        cluster: InProcess::start(&scratch.path().join("cluster"), &shape)?,
        source,
        copy: scratch.path().join("copy"),
        size_bytes,
        clock: MonotonicClock::start(),
        next_object: 1,
    };
    let mut comparisons = Vec::new();
    let whole = format!(
        "{} MiB object, {WIDTH} over {DEVICES} devices of {SERVERS} servers in one process (lo)",
        size_bytes / MIB
    );
    announce("writing an object");
    comparisons.push(Comparison {
        target: Some(WRITE_TARGET),
        note: format!("{whole}: open, read the file, parity, checksums, all devices, commit"),
        ..bench.compare(plan, "object write", Bench::write)?
    });
    let object = bench.make_object()?;
    bench.check(&object)?;
    announce("reading an object");
    comparisons.push(Comparison {
        target: Some(READ_TARGET),
        note: format!("{whole}: every byte in the caller's memory, checksums verified, then dropped"),
        ..bench.compare(plan, "object read to memory", |bench| bench.read(&object, None))?
    });
    announce("reading an object to a file");
    comparisons.push(Comparison {
        note: format!("{whole}: the same, and every byte written to a fresh file"),
        ..bench.compare(plan, "object read to a file", |bench| {
            let result = bench.read(&object, Some(bench.copy.clone()));
            bench.remove_copy()?;
            result
        })?
    });
    drop(object);
    bench.cluster.stop()?;
    Ok(comparisons)
}

/// Errors: no tmpfs, or too little room in it.
fn check_folder(folder: &Path, needed_bytes: u64) -> Result<(), Failure> {
    let doing = || format!("looking at {}", folder.display());
    let found = rustix::fs::statfs(folder).map_err(Failure::while_doing(doing()))?;
    if u64::try_from(found.f_type).ok() != Some(TMPFS_MAGIC) {
        return Err(Failure::new(format!(
            "{} is not on a tmpfs, and this comparison is about the CPU and not a disk: name a folder with --dir",
            folder.display()
        )));
    }
    let free = rustix::fs::statvfs(folder).map_err(Failure::while_doing(doing()))?;
    let free_bytes = free.f_bavail.saturating_mul(free.f_frsize);
    if free_bytes < needed_bytes {
        return Err(Failure::new(format!(
            "{} has {} MiB free, and {} MiB are needed: name another folder with --dir, or try --quick",
            folder.display(),
            free_bytes / MIB,
            needed_bytes.div_ceil(MIB)
        )));
    }
    Ok(())
}

fn make_source(path: &Path, size_bytes: u64) -> Result<(), Failure> {
    let doing = || format!("writing {}", path.display());
    let mut file = File::create(path).map_err(Failure::while_doing(doing()))?;
    let mut random = fastrand::Rng::with_seed(42);
    let mut block = vec![0; 1 << 20];
    for _ in 0..size_bytes / wide(block.len()) {
        random.fill(&mut block);
        file.write_all(&block).map_err(Failure::while_doing(doing()))?;
    }
    Ok(())
}

struct Bench {
    cluster: InProcess,
    source: PathBuf,
    copy: PathBuf,
    size_bytes: u64,
    clock: MonotonicClock,
    next_object: u64,
}

impl Bench {
    /// Pairs of `ours` and `cp`.
    fn compare(
        &mut self,
        plan: &Plan,
        what: &str,
        mut ours: impl FnMut(&mut Bench) -> Result<(Sample, Costs), Failure>,
    ) -> Result<Comparison, Failure> {
        let quiet = Quiet::start();
        let (mut costs, mut peer_costs) = (Costs::default(), Costs::default());
        let bench = std::cell::RefCell::new(self);
        let pairs: Vec<Pair> = interleave(
            plan.pairs,
            || {
                let (sample, cost) = ours(&mut bench.borrow_mut())?;
                costs.add(cost);
                Ok(sample)
            },
            || {
                let (sample, cost) = bench.borrow_mut().cp()?;
                peer_costs.add(cost);
                Ok(sample)
            },
        )?;
        Ok(Comparison {
            what: what.to_owned(),
            peer: Peer::Ran("cp".to_owned()),
            target: None,
            pairs,
            alone: Vec::new(),
            costs,
            peer_costs: Some(peer_costs),
            others: quiet.others(),
            note: String::new(),
            is_quick: plan.is_quick,
        })
    }

    fn cp(&mut self) -> Result<(Sample, Costs), Failure> {
        let own = std::process::id();
        let children = || ProcessTimes::of(own).map_or(Duration::ZERO, |times| times.children);
        let before = children();
        let began = self.clock.now();
        output(Command::new("cp").arg(&self.source).arg(&self.copy))?;
        let took = self.clock.now() - began;
        let cpu_seconds = children().saturating_sub(before).as_secs_f64();
        self.remove_copy()?;
        Ok((
            Sample { bytes: self.size_bytes, took },
            Costs { bytes: self.size_bytes, cpu_seconds, ..Costs::default() },
        ))
    }

    fn remove_copy(&self) -> Result<(), Failure> {
        fs::remove_file(&self.copy).map_err(Failure::while_doing(format!("removing {}", self.copy.display())))
    }

    /// Writes a new object and takes the time.
    fn write_object(&mut self) -> Result<(Object, Sample, Costs), Failure> {
        let id =
            ObjectId::new(0xbe, self.next_object).ok_or_else(|| Failure::new("object ids are used up"))?;
        self.next_object += 1;
        let size_bytes = self.size_bytes;
        let before = self.costs();
        let began = self.clock.now();
        let (file, _) = open_source(&self.source)?;
        let (station, client) = self.cluster.client();
        let created = station.wait(client.create_or_open(id, None))?;
        let object = created.map_err(|error| Failure::new(error.to_string()))?;
        let progress = Progress::start("write", size_bytes, true);
        let read = |offset: u64, bytes: &mut [u8]| fill(&file, offset, size_bytes, bytes);
        let stored = store(station, client, &object, read, &progress)?;
        let took = self.clock.now() - began;
        let costs = self.costs().since(&before, size_bytes);
        if stored != size_bytes {
            return Err(Failure::new(format!("{stored} bytes of {size_bytes} were stored")));
        }
        Ok((object, Sample { bytes: size_bytes, took }, costs))
    }

    fn write(&mut self) -> Result<(Sample, Costs), Failure> {
        let (object, sample, costs) = self.write_object()?;
        let id = object.id();
        drop(object);
        let (station, client) = self.cluster.client();
        let deleted = station.wait(client.delete(id))?;
        deleted.map_err(|error| Failure::new(format!("removing the object: {error}")))?;
        Ok((sample, costs))
    }

    fn make_object(&mut self) -> Result<Object, Failure> {
        self.write_object().map(|(object, _, _)| object)
    }

    /// What came back is what went in: speed of wrong bytes is of no interest.
    fn check(&mut self, object: &Object) -> Result<(), Failure> {
        let (file, size_bytes) = open_source(&self.source)?;
        let (station, client) = self.cluster.client();
        let progress = Progress::start("check", size_bytes, true);
        let mut expected = Vec::new();
        let mut is_equal = true;
        let compare = |offset: u64, bytes: &[u8]| {
            expected.resize(bytes.len(), 0);
            fill(&file, offset, size_bytes, &mut expected)?;
            is_equal &= expected == bytes;
            Ok(())
        };
        let count = fetch(station, client, object, u64::MAX, compare, &progress)?;
        if count == size_bytes && is_equal {
            Ok(())
        } else {
            Err(Failure::new("the object is not the file that was stored"))
        }
    }

    fn read(&mut self, object: &Object, to: Option<PathBuf>) -> Result<(Sample, Costs), Failure> {
        let size_bytes = self.size_bytes;
        let id = object.id();
        let before = self.costs();
        let began = self.clock.now();
        let doing = "making the copy's file";
        let mut file = to.map(File::create).transpose().map_err(Failure::while_doing(doing))?;
        let (station, client) = self.cluster.client();
        let opened = station.wait(client.open(id))?;
        let object = opened.map_err(|error| Failure::new(error.to_string()))?;
        let progress = Progress::start("read", size_bytes, true);
        let take = |_: u64, bytes: &[u8]| file.as_mut().map_or(Ok(()), |file| file.write_all(bytes));
        let count = fetch(station, client, &object, u64::MAX, take, &progress)?;
        drop(file);
        let took = self.clock.now() - began;
        let costs = self.costs().since(&before, size_bytes);
        if count != size_bytes {
            return Err(Failure::new(format!("{count} bytes of {size_bytes} came back")));
        }
        Ok((Sample { bytes: size_bytes, took }, costs))
    }

    fn costs(&self) -> Costs {
        Costs::now(&self.cluster.counters(), process::cpu_time())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_too_little_room_or_no_tmpfs_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check_folder(folder.path(), u64::MAX).is_err());
        let missing = check_folder(&folder.path().join("missing"), 0).unwrap_err().to_string();
        assert!(missing.contains("missing"), "{missing}");
    }
}
