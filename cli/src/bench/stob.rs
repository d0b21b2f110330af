//! One device beside `fio`, and its trees beside `redb`, on files of one folder: same depth, same sizes, past the page cache.
//!
//! **Same durability.** A write of ours is acknowledged when its data and its log record were flushed, once per group. fio's writes are made
//! durable by `fdatasync` after as many writes as our groups had in the run before, so both wait for a flush per group. Reads of ours verify
//! every block; fio reads the same device file, and only reads it. Its own files are written once before, like our device, so that
//! neither side pays for blocks that a file system hands out for the first time. The jobs are in the notes of the report.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use base::checksum::crc32c;
use base::units::{BLOCK_BYTES, KIB, MIB, narrow};
use base::{BlockExtent, Fid, FidType};
use futures_util::future::try_join_all;
use runtime::{LocalityHandle, MonotonicClock, SharedBuffer, allocations, process};
use serde_json::Value;
use spdk_stob::{Domain, FormatParams, StobError, StobId, TreeId, WritePiece, create_device_file};

use super::machine::{ProcessTimes, Quiet};
use super::pairs::{Sample, Taken, take};
use super::peer::{Scratch, find_program, output};
use super::report::{Comparison, Costs, Peer};
use super::{Plan, announce};
use crate::failure::Failure;
use crate::stob::{Desk, open};

/// Operations at once: small ones, and those of a mebibyte.
const SMALL_DEPTH: u64 = 32;
const LARGE_DEPTH: u64 = 8;
/// Puts in a group, and bytes of a value. Keys have 8.
const PUTS: u64 = 16;
const PUTS_ROW: &str = "stob: tree puts, groups of 16, durable";
const VALUE_BYTES: usize = 100;
const KEYS: u64 = 1 << 15;
/// The issue's targets.
const READ_TARGET: f64 = 0.95;
const OVERWRITE_TARGET: f64 = 0.5;
const SEQUENTIAL_TARGET: f64 = 0.95;
const PUTS_TARGET: f64 = 3.0;

const STOB: StobId = StobId { fid: Fid::new(FidType::Component, 0, 1), generation: 0 };
const TREE: TreeId = TreeId(1);

/// What one operation of a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    SequentialWrite,
    SequentialRead,
    RandomRead,
    RandomOverwrite,
}

impl Work {
    fn operation_bytes(self) -> u64 {
        match self {
            Work::SequentialWrite | Work::SequentialRead => MIB,
            Work::RandomRead | Work::RandomOverwrite => 4 * KIB,
        }
    }

    fn depth(self) -> u64 {
        match self {
            Work::SequentialWrite | Work::SequentialRead => LARGE_DEPTH,
            Work::RandomRead | Work::RandomOverwrite => SMALL_DEPTH,
        }
    }

    fn is_write(self) -> bool {
        matches!(self, Work::SequentialWrite | Work::RandomOverwrite)
    }

    fn fio_name(self) -> &'static str {
        match self {
            Work::SequentialWrite => "write",
            Work::SequentialRead => "read",
            Work::RandomRead => "randread",
            Work::RandomOverwrite => "randwrite",
        }
    }
}

/// Measures all rows. `folder`: where the files go, on the device that is meant [default: the folder this runs in].
pub fn run(plan: &Plan, folder: Option<&Path>) -> Result<Vec<Comparison>, Failure> {
    let size_bytes = if plan.is_quick { 256 * MIB } else { 2048 * MIB };
    let scratch = Scratch::make(folder.unwrap_or(Path::new(".")))?;
    let device = scratch.path().join("device");
    announce("writing files for the first time");
    // As much again for new blocks beside the old, and what metadata takes.
    prewritten(&device, 2 * size_bytes + 256 * MIB)?;
    let mut bench = Bench::start(plan, &scratch, device, size_bytes)?;
    let fio = find_program("fio");
    if fio.is_some() {
        prewritten(&bench.peer_file, size_bytes)?;
    }
    let rows = [
        (Work::SequentialWrite, "stob: 1 MiB sequential write", SEQUENTIAL_TARGET),
        (Work::SequentialRead, "stob: 1 MiB sequential read", SEQUENTIAL_TARGET),
        (Work::RandomRead, "stob: 4 KiB random read", READ_TARGET),
        (Work::RandomOverwrite, "stob: 4 KiB random overwrite, durable", OVERWRITE_TARGET),
    ];
    let mut comparisons = Vec::new();
    for (work, what, target) in rows.into_iter().filter(|(_, what, _)| plan.wants(what)) {
        announce(what);
        let row = Comparison {
            what: what.to_owned(),
            target: Some(target),
            ..bench.beside_fio(plan, work, fio.is_some())?
        };
        comparisons.push(row);
    }
    if plan.wants(PUTS_ROW) {
        announce(PUTS_ROW);
        comparisons.push(bench.beside_redb(plan)?);
    }
    bench.stop()?;
    Ok(comparisons)
}

/// A file of `size_bytes` of which each block was written once.
fn prewritten(path: &Path, size_bytes: u64) -> Result<(), Failure> {
    let doing = || format!("writing {}", path.display());
    create_device_file(path, size_bytes).map_err(|error| Failure::new(error.to_string()))?;
    let file = File::options().write(true).open(path).map_err(Failure::while_doing(doing()))?;
    let zeros = vec![0; narrow(4 * MIB)];
    for at in (0..size_bytes).step_by(narrow(4 * MIB)) {
        let count = narrow((size_bytes - at).min(4 * MIB));
        file.write_all_at(&zeros[..count], at).map_err(Failure::while_doing(doing()))?;
    }
    file.sync_all().map_err(Failure::while_doing(doing()))
}

struct Bench {
    desk: Desk,
    clock: MonotonicClock,
    domain: Domain,
    device: PathBuf,
    peer_file: PathBuf,
    database: PathBuf,
    size_bytes: u64,
    sample: Duration,
    /// Writes by groups of the last run of ours.
    group: f64,
    random: fastrand::Rng,
}

fn told(error: StobError) -> Failure {
    Failure::new(error.to_string())
}

impl Bench {
    fn start(plan: &Plan, scratch: &Scratch, device: PathBuf, size_bytes: u64) -> Result<Bench, Failure> {
        let mut desk = Desk::new(&device)?;
        let (handle, backend) = (desk.handle(), open(&device)?);
        let params = FormatParams { device: Fid::new(FidType::Device, 0, 1), cluster: 1 };
        let domain = desk.run(Domain::format(&handle, backend, params))?.map_err(told)?;
        let mut bench = Bench {
            desk,
            clock: MonotonicClock::start(),
            domain,
            device,
            peer_file: scratch.path().join("peer"),
            database: scratch.path().join("redb"),
            size_bytes,
            // Somewhat more than the 5 s that count: fio's report is of a job that ended a few milliseconds before its time.
            sample: Duration::from_millis(if plan.is_quick { 1000 } else { 5100 }),
            group: 1.0,
            random: fastrand::Rng::with_seed(7),
        };
        // The stob that all rows read and overwrite.
        bench.write_once()?;
        Ok(bench)
    }

    fn stop(mut self) -> Result<(), Failure> {
        self.desk.run(self.domain.close())?.map_err(told)
    }

    fn write_once(&mut self) -> Result<(), Failure> {
        let (domain, handle, size_bytes) = (self.domain.clone(), self.desk.handle(), self.size_bytes);
        let written = self.desk.run(async move {
            let (data, checksums) = random_data(&handle, MIB).await;
            for start_block in (0..size_bytes / BLOCK_BYTES).step_by(narrow(MIB / BLOCK_BYTES)) {
                let piece = WritePiece { start_block, data: data.clone() };
                domain.write(STOB, vec![piece], &checksums).await?;
            }
            Ok(())
        })?;
        written.map_err(told)
    }

    fn costs(&self) -> Costs {
        // The domain and its device run on this thread.
        let allocations = Some(allocations());
        Costs { allocations, ..Costs::now(self.desk.handle().counters(), process::cpu_time()) }
    }

    /// One sample of ours.
    fn ours(&mut self, work: Work) -> Result<(Sample, Costs), Failure> {
        let before = self.costs();
        let groups = self.domain.info().groups;
        let (domain, handle, clock) = (self.domain.clone(), self.desk.handle(), &self.clock);
        let (operation_bytes, sample) = (work.operation_bytes(), self.sample);
        let blocks = operation_bytes / BLOCK_BYTES;
        let places = self.size_bytes / operation_bytes;
        let next = Cell::new(0);
        let random = std::cell::RefCell::new(self.random.fork());
        let began = clock.now();
        let done = self.desk.run(async {
            let (data, checksums) = random_data(&handle, operation_bytes).await;
            let lanes = (0..work.depth()).map(|_| async {
                let mut done = 0u64;
                while handle.now() - began < sample {
                    let place = match work {
                        Work::SequentialRead | Work::SequentialWrite => next.replace(next.get() + 1) % places,
                        Work::RandomRead | Work::RandomOverwrite => random.borrow_mut().u64(0..places),
                    };
                    let start_block = place * blocks;
                    if work.is_write() {
                        let piece = WritePiece { start_block, data: data.clone() };
                        domain.write(STOB, vec![piece], &checksums).await?;
                    } else {
                        domain.read(STOB, &[BlockExtent { start: start_block, count: blocks }]).await?;
                    }
                    done += 1;
                }
                Ok::<u64, StobError>(done)
            });
            try_join_all(lanes).await
        })?;
        let took = self.clock.now() - began;
        let operations: u64 = done.map_err(told)?.into_iter().sum();
        let groups = self.domain.info().groups - groups;
        if work.is_write() && groups > 0 {
            self.group = float(operations) / float(groups);
        }
        let bytes = operations * operation_bytes;
        Ok((Sample { bytes, took }, self.costs().since(&before, bytes)))
    }

    /// The job of fio for `work`, as its command line.
    fn job(&self, work: Work) -> Vec<String> {
        let file = if work.is_write() { &self.peer_file } else { &self.device };
        let mut job = vec![
            "--name=peer".to_owned(),
            format!("--filename={}", file.display()),
            format!("--rw={}", work.fio_name()),
            format!("--bs={}", work.operation_bytes()),
            format!("--iodepth={}", work.depth()),
            format!("--size={}", self.size_bytes),
            format!("--runtime={}ms", self.sample.as_millis()),
            "--ioengine=io_uring".to_owned(),
            "--direct=1".to_owned(),
            "--time_based".to_owned(),
            "--norandommap".to_owned(),
            "--randrepeat=0".to_owned(),
        ];
        if work.is_write() {
            job.push(format!("--fdatasync={:.0}", self.group.max(1.0)));
        } else {
            job.push("--readonly".to_owned());
        }
        job
    }

    fn fio(&self, work: Work) -> Result<(Sample, Costs), Failure> {
        let children = || ProcessTimes::of(std::process::id()).map_or(Duration::ZERO, |times| times.children);
        let before = children();
        let text = output(Command::new("fio").args(self.job(work)).arg("--output-format=json"))?;
        let cpu_seconds = children().saturating_sub(before).as_secs_f64();
        let sample = fio_sample(&text, work.is_write())
            .ok_or_else(|| Failure::new("fio's report has no figures of its job"))?;
        Ok((sample, Costs { bytes: sample.bytes, cpu_seconds, ..Costs::default() }))
    }

    fn beside_fio(&mut self, plan: &Plan, work: Work, has_fio: bool) -> Result<Comparison, Failure> {
        let quiet = Quiet::start();
        let (mut costs, mut peer_costs) = (Costs::default(), Costs::default());
        let bench = std::cell::RefCell::new(self);
        let mut ours = || {
            let (sample, cost) = bench.borrow_mut().ours(work)?;
            costs.add(cost);
            Ok(sample)
        };
        let beside = has_fio.then_some(|| {
            let (sample, cost) = bench.borrow().fio(work)?;
            peer_costs.add(cost);
            Ok(sample)
        });
        let Taken { pairs, alone } = take(plan.pairs, &mut ours, beside)?;
        let bench = bench.into_inner();
        let operations = float(costs.bytes) / float(work.operation_bytes());
        let each = |value: Option<u64>| float(value.unwrap_or(0)) / operations.max(1.0);
        let groups =
            if work.is_write() { format!("; {:.1} writes in a group", bench.group) } else { String::new() };
        Ok(Comparison {
            what: String::new(),
            peer: match has_fio {
                true => Peer::Ran("fio".to_owned()),
                false => Peer::Absent("apt-get install fio".to_owned()),
            },
            target: None,
            pairs,
            alone,
            costs,
            peer_costs: has_fio.then_some(peer_costs),
            others: quiet.others(),
            note: format!(
                "depth {}{groups}; an operation takes {:.1} us of CPU, {:.3} syscalls, {:.0} copied bytes, {:.2} allocations; peer: fio {}",
                work.depth(),
                costs.cpu_seconds * 1e6 / operations.max(1.0),
                each(costs.syscalls),
                each(costs.copied_bytes),
                each(costs.allocations),
                bench.job(work).join(" ")
            ),
            is_quick: plan.is_quick,
        })
    }

    /// Groups of puts, each durable before the next.
    fn puts(&mut self) -> Result<(Sample, Costs), Failure> {
        let before = self.costs();
        let (domain, handle, clock, sample) =
            (self.domain.clone(), self.desk.handle(), &self.clock, self.sample);
        let mut random = self.random.fork();
        let began = clock.now();
        let done = self.desk.run(async {
            let mut puts = 0;
            while handle.now() - began < sample {
                let mut transaction = domain.begin();
                for _ in 0..PUTS {
                    transaction.tree_put(TREE, &random.u64(0..KEYS).to_be_bytes(), &[7; VALUE_BYTES]);
                }
                domain.commit(transaction).await?;
                puts += PUTS;
            }
            Ok::<u64, StobError>(puts)
        })?;
        let took = self.clock.now() - began;
        let bytes = done.map_err(told)? * put_bytes();
        Ok((Sample { bytes, took }, self.costs().since(&before, bytes)))
    }

    fn redb(&self, program: &Path) -> Result<Sample, Failure> {
        let milliseconds = self.sample.as_millis().to_string();
        let value_bytes = VALUE_BYTES.to_string();
        let text = output(Command::new(program).arg(&self.database).args([milliseconds, value_bytes]))?;
        let mut numbers = text.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(puts)), Some(Ok(nanoseconds))) = (numbers.next(), numbers.next()) else {
            return Err(Failure::new(format!("{} printed {text:?}", program.display())));
        };
        Ok(Sample { bytes: puts * put_bytes(), took: Duration::from_nanos(nanoseconds) })
    }

    fn beside_redb(&mut self, plan: &Plan) -> Result<Comparison, Failure> {
        let program = std::env::var_os("CLOVIS_REDB_PEER").map(PathBuf::from).filter(|path| path.is_file());
        let quiet = Quiet::start();
        let mut costs = Costs::default();
        let bench = std::cell::RefCell::new(self);
        let mut ours = || {
            let (sample, cost) = bench.borrow_mut().puts()?;
            costs.add(cost);
            Ok(sample)
        };
        let beside = program.as_ref().map(|program| || bench.borrow().redb(program));
        let Taken { pairs, alone } = take(plan.pairs, &mut ours, beside)?;
        let puts = float(costs.bytes) / float(put_bytes());
        Ok(Comparison {
            what: PUTS_ROW.to_owned(),
            peer: match program {
                Some(_) => Peer::Ran("redb".to_owned()),
                None => Peer::Absent("./dev bench builds it (CLOVIS_REDB_PEER)".to_owned()),
            },
            target: Some(PUTS_TARGET),
            pairs,
            alone,
            costs,
            peer_costs: None,
            others: quiet.others(),
            note: format!(
                "random keys of 8 bytes out of {KEYS}, values of {VALUE_BYTES}, a transaction and a flush for each group on both sides; \
                 a put takes {:.1} us of CPU, {:.3} syscalls, {:.2} allocations",
                costs.cpu_seconds * 1e6 / puts.max(1.0),
                float(costs.syscalls.unwrap_or(0)) / puts.max(1.0),
                float(costs.allocations.unwrap_or(0)) / puts.max(1.0)
            ),
            is_quick: plan.is_quick,
        })
    }
}

fn put_bytes() -> u64 {
    8 + base::units::wide(VALUE_BYTES)
}

/// For reports: two or three digits matter.
#[allow(clippy::cast_precision_loss)]
fn float(value: u64) -> f64 {
    value as f64
}

async fn random_data(handle: &LocalityHandle, bytes: u64) -> (SharedBuffer, Arc<[u32]>) {
    let mut data = handle.arena().alloc(narrow(bytes)).await;
    fastrand::Rng::with_seed(3).fill(&mut data);
    let checksums = data.chunks_exact(narrow(BLOCK_BYTES)).map(crc32c).collect();
    (data.freeze(), checksums)
}

/// Bytes and time of the one job in fio's report.
fn fio_sample(text: &str, is_write: bool) -> Option<Sample> {
    // Warnings may stand before the object.
    let report: Value = serde_json::from_str(text.get(text.find('{')?..)?).ok()?;
    let side = &report["jobs"][0][if is_write { "write" } else { "read" }];
    let (bytes, milliseconds) = (side["io_bytes"].as_u64()?, side["runtime"].as_u64()?);
    (bytes > 0 && milliseconds > 0).then(|| Sample { bytes, took: Duration::from_millis(milliseconds) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_fio_are_read_and_empty_ones_are_not_figures() {
        let text = r#"fio: a warning
            {"jobs": [{"read": {"io_bytes": 8192, "runtime": 2}, "write": {"io_bytes": 0, "runtime": 0}}]}"#;
        let sample = Sample { bytes: 8192, took: Duration::from_millis(2) };
        assert_eq!((fio_sample(text, false), fio_sample(text, true)), (Some(sample), None));
        assert_eq!((fio_sample("", false), fio_sample("{}", false)), (None, None));
    }
}
