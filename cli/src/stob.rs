//! `clovis stob format|info|check|dump|bench DEVICE`: one device, without a cluster. A device in use by a server is locked, and refused.
//!
//! `check` exits with status 1 when it found something that is still wrong at its end, so scripts may ask it.

use std::cell::RefCell;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use base::units::{BLOCK_BYTES, MIB};
use base::{Fid, FidType};
use runtime::{Counters, Locality, LocalityConfig, LocalityHandle, MonotonicClock};
use serde_json::{Value, json};
use spdk_stob::limits::DEVICE_BLOCKS_MIN;
use spdk_stob::{Backend, CheckReport, Domain, FormatParams, StobError, create_device_file};

use crate::args::{StobCheckArgs, StobCommand, StobDeviceArgs, StobFormatArgs};
use crate::connection::{arena_for, new_epoch, open_device};
use crate::failure::Failure;
use crate::output;
use crate::stob_bench;

/// Buffers: what a device's queue holds at most, and a little more.
const ARENA_BYTES: u64 = 192 * MIB;

/// One locality for one device.
pub struct Desk {
    locality: Locality,
    clock: MonotonicClock,
}

impl Desk {
    /// A locality with an arena of its own, as `device` needs it.
    pub fn new(device: &Path) -> Result<Desk, Failure> {
        let arena = arena_for(ARENA_BYTES, [device])?;
        let config = LocalityConfig {
            index: 0,
            name: "stob".to_owned(),
            seed: new_epoch()?,
            counters: Arc::new(Counters::default()),
            arena,
            crowd: None,
        };
        Ok(Desk { locality: Locality::new(config), clock: MonotonicClock::start() })
    }

    /// The locality.
    pub fn handle(&self) -> LocalityHandle {
        self.locality.handle()
    }

    /// Runs `future` to its end.
    pub fn run<T>(&mut self, future: impl Future<Output = T>) -> Result<T, Failure> {
        self.locality.block_on(&self.clock, future).map_err(Failure::while_doing("waiting for the device"))
    }
}

/// Opens and locks a device: a file, a block device, or an NVMe controller through SPDK.
pub fn open(path: &Path) -> Result<Box<dyn Backend>, Failure> {
    open_device(path)
}

fn told(path: &Path) -> impl FnOnce(StobError) -> Failure {
    Failure::while_doing(path.display().to_string())
}

/// `clovis stob`
pub fn run(command: &StobCommand) -> Result<(), Failure> {
    match command {
        StobCommand::Format(args) => format(args),
        StobCommand::Info(args) => info(args),
        StobCommand::Check(args) => check(args),
        StobCommand::Dump(args) => dump(&args.device),
        StobCommand::Bench(args) => stob_bench::run(args),
    }
}

/// A new file for `format --size`. Errors say what to ask for instead.
fn create(args: &StobFormatArgs, size_bytes: u64) -> Result<(), Failure> {
    let name = args.device.display();
    if size_bytes / BLOCK_BYTES < DEVICE_BLOCKS_MIN {
        let least = DEVICE_BLOCKS_MIN * BLOCK_BYTES;
        return Err(Failure::new(format!(
            "{name}: --size {size_bytes} is too small: a device has at least {least} bytes, so --size 14M"
        )));
    }
    if args.device.exists() {
        return Err(Failure::new(format!("{name} exists: leave --size out to format what is there")));
    }
    create_device_file(&args.device, size_bytes).map_err(|error| Failure::new(error.to_string()))
}

fn format(args: &StobFormatArgs) -> Result<(), Failure> {
    if let Some(fid) = args.fid.filter(|fid| !fid.is(FidType::Device)) {
        let right = fid.with_type(FidType::Device);
        return Err(Failure::new(format!("--fid {fid} is not the fid of a device; {right} is")));
    }
    match args.size {
        Some(size_bytes) => create(args, size_bytes)?,
        None if !args.device.exists() && !spdk_stob::is_nvme_address(&args.device) => {
            let name = args.device.display();
            return Err(Failure::new(format!("{name} does not exist: --size SIZE makes a new file")));
        }
        None => {}
    }
    let mut desk = Desk::new(&args.device)?;
    let handle = desk.handle();
    let params = FormatParams {
        device: args.fid.unwrap_or_else(|| Fid::new(FidType::Device, 0, handle.random_u64() >> 8)),
        cluster: args.cluster,
    };
    let formatted = (|| {
        if args.force {
            let backend = open(&args.device)?;
            desk.run(spdk_stob::erase(&handle, backend))?.map_err(told(&args.device))?;
        }
        let backend = open(&args.device)?;
        desk.run(async {
            let domain = Domain::format(&handle, backend, params).await?;
            let info = domain.info();
            domain.close().await?;
            Ok(info)
        })?
        .map_err(|error| match error {
            error @ StobError::AlreadyFormatted { .. } => {
                Failure::new(format!("{}: {error} (--force)", args.device.display()))
            }
            error => told(&args.device)(error),
        })
    })();
    let info = match formatted {
        Ok(info) => info,
        Err(failure) => {
            if args.size.is_some() {
                let _ = std::fs::remove_file(&args.device); // we made it; the failure above is what matters
            }
            return Err(failure);
        }
    };
    if args.json {
        let text = json!({ "device": info.device.to_string(), "cluster": info.cluster,
            "data_bytes": info.blocks_total * BLOCK_BYTES });
        return output::line(&format!("{text:#}"));
    }
    output::line(&format!(
        "{}: formatted as {} of cluster {:#x}, {} MiB for data",
        args.device.display(),
        info.device,
        info.cluster,
        info.blocks_total * BLOCK_BYTES / MIB
    ))
}

fn info(args: &StobDeviceArgs) -> Result<(), Failure> {
    let backend = open(&args.device)?;
    let size_blocks = backend.geometry().size_blocks;
    if size_blocks < DEVICE_BLOCKS_MIN {
        let error = StobError::TooSmall { needed_blocks: DEVICE_BLOCKS_MIN, found_blocks: size_blocks };
        return Err(told(&args.device)(error));
    }
    let mut desk = Desk::new(&args.device)?;
    let handle = desk.handle();
    let copies = desk.run(spdk_stob::inspect(&handle, backend))?;
    let newest =
        copies.iter().filter_map(|copy| copy.content.as_ref().ok()).max_by_key(|found| found.sequence);
    if args.json {
        let copies: Vec<Value> = copies
            .iter()
            .map(|copy| match &copy.content {
                Ok(found) => json!({ "block": copy.block, "sequence": found.sequence }),
                Err(what) => json!({ "block": copy.block, "unusable": what }),
            })
            .collect();
        let text = json!({
            "format_version": newest.map(|found| found.version),
            "superblocks": copies,
            "device": newest.map(|found| found.device.to_string()),
            "cluster": newest.map(|found| found.cluster),
            "blocks": newest.map(|found| found.regions.size_blocks),
            "log_blocks": newest.map(|found| found.regions.log.count),
            "data_blocks": newest.map(|found| found.regions.data.count),
        });
        output::line(&format!("{text:#}"))?;
    } else {
        for copy in &copies {
            let what = match &copy.content {
                Ok(found) => format!("sequence {}", found.sequence),
                Err(what) => what.clone(),
            };
            output::line(&format!("superblock copy in block {}: {what}", copy.block))?;
        }
        if let Some(found) = newest {
            let regions = found.regions;
            output::line(&format!("device {} of cluster {:#x}", found.device, found.cluster))?;
            let extents = [("log", regions.log), ("data", regions.data)];
            for (name, extent) in extents {
                output::line(&format!(
                    "{name}: {} MiB from block {}",
                    extent.count * BLOCK_BYTES / MIB,
                    extent.start
                ))?;
            }
        }
    }
    match newest {
        Some(found) if size_blocks < found.regions.size_blocks => {
            let expected_blocks = found.regions.size_blocks;
            Err(Failure::new(format!(
                "{}: the device has {size_blocks} blocks, its superblock says {expected_blocks}: it was truncated",
                args.device.display()
            )))
        }
        Some(_) => Ok(()),
        None => Err(Failure::new(format!(
            "{}: no superblock of Clovis that this program reads",
            args.device.display()
        ))),
    }
}

fn check(args: &StobCheckArgs) -> Result<(), Failure> {
    let mut desk = Desk::new(&args.device)?;
    let handle = desk.handle();
    let backend = open(&args.device)?;
    let mut report =
        desk.run(spdk_stob::check(&handle, backend, args.repair))?.map_err(told(&args.device))?;
    if !report.repairs.is_empty() {
        // What counts is what is there now.
        let repairs = std::mem::take(&mut report.repairs);
        let found = std::mem::take(&mut report.problems);
        let backend = open(&args.device)?;
        report = desk.run(spdk_stob::check(&handle, backend, false))?.map_err(told(&args.device))?;
        report.repairs = repairs;
        if !args.json {
            for problem in found {
                output::line(&format!("found: {problem}"))?;
            }
        }
    }
    output::line(&if args.json { format!("{:#}", json_of(&report)) } else { text_of(&report) })?;
    match report.problem_count {
        0 => Ok(()),
        count => Err(Failure::new(format!("{}: {count} problems", args.device.display()))),
    }
}

fn json_of(report: &CheckReport) -> Value {
    json!({
        "clean": report.is_clean(),
        "device": report.device.map(|device| device.to_string()),
        "cluster": report.cluster,
        "sequence": report.sequence,
        "log_records": report.log_records,
        "dropped_tail": report.dropped_tail,
        "stobs": report.stobs,
        "extents": report.extents,
        "tree_keys": report.tree_keys,
        "blocks": {
            "total": report.blocks_total, "used": report.blocks_used, "free": report.blocks_free,
            "shared": report.blocks_shared, "kept": report.blocks_kept, "read": report.blocks_read,
        },
        "problem_count": report.problem_count,
        "problems": report.problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "repairs": report.repairs,
    })
}

fn text_of(report: &CheckReport) -> String {
    let mut lines: Vec<String> = report.repairs.iter().map(|repair| format!("repaired: {repair}")).collect();
    lines.extend(report.problems.iter().map(|problem| format!("problem: {problem}")));
    if let Some(device) = report.device {
        lines.push(format!(
            "device {device} of cluster {:#x}, sequence {}, {} log records{}",
            report.cluster,
            report.sequence,
            report.log_records,
            if report.dropped_tail { ", an unfinished group at the end" } else { "" }
        ));
        lines.push(format!(
            "{} stobs, {} extents, {} keys; blocks: {} used ({} shared) + {} free ({} kept) = {} in all, {} read",
            report.stobs,
            report.extents,
            report.tree_keys,
            report.blocks_used,
            report.blocks_shared,
            report.blocks_free,
            report.blocks_kept,
            report.blocks_total,
            report.blocks_read
        ));
    }
    lines.push(if report.is_clean() {
        "clean".to_owned()
    } else {
        format!("{} problems", report.problem_count)
    });
    lines.join("\n")
}

fn dump(path: &Path) -> Result<(), Failure> {
    let backend = open(path)?;
    let mut desk = Desk::new(path)?;
    let handle = desk.handle();
    let failed = RefCell::new(None);
    let mut stdout = std::io::BufWriter::new(std::io::stdout().lock());
    let dumped = desk.run(spdk_stob::dump(&handle, backend, |line| match writeln!(stdout, "{line}") {
        Ok(()) => true,
        Err(error) => {
            *failed.borrow_mut() = Some(error);
            false
        }
    }))?;
    let flushed = stdout.flush();
    if let Some(error) = failed.into_inner().or(flushed.err()) {
        return Err(output::failure(error));
    }
    dumped.map_err(told(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    use base::BlockExtent;
    use base::checksum::crc32c;
    use spdk_stob::{StobId, TreeId, WritePiece};

    const STOB: StobId = StobId { fid: Fid::new(FidType::Component, 0, 1), generation: 0 };

    fn format_args(device: &Path, size: Option<u64>, force: bool) -> StobFormatArgs {
        StobFormatArgs { device: device.to_owned(), size, fid: None, cluster: 5, force, json: false }
    }

    fn check_args(device: &Path, repair: bool) -> StobCheckArgs {
        StobCheckArgs { device: device.to_owned(), repair, json: true }
    }

    /// The first block of the device where these bytes stand.
    fn find(file: &std::fs::File, wanted: &[u8]) -> u64 {
        let blocks = file.metadata().unwrap().len() / BLOCK_BYTES;
        let mut block = vec![0; wanted.len()];
        (0..blocks)
            .find(|index| file.read_exact_at(&mut block, index * BLOCK_BYTES).is_ok() && block == wanted)
            .expect("the bytes are on the device")
    }

    #[test]
    fn a_device_is_formatted_checked_repaired_and_dumped() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("device");
        format(&format_args(&device, Some(24 * MIB), false)).unwrap();
        assert!(format(&format_args(&device, None, false)).is_err(), "nothing is erased unasked");
        format(&format_args(&device, None, true)).unwrap();
        info(&StobDeviceArgs { device: device.clone(), json: true }).unwrap();

        let mut desk = Desk::new(&device).unwrap();
        let handle = desk.handle();
        let content = [7; 4096];
        let backend = open(&device).unwrap();
        desk.run(async {
            let domain = Domain::open(&handle, backend, None).await.unwrap();
            let mut data = handle.arena().try_alloc(3 * 4096).unwrap();
            data.fill(7);
            let piece = WritePiece { start_block: 9, data: data.freeze() };
            domain.write(STOB, vec![piece], &[crc32c(&content); 3]).await.unwrap();
            domain.snapshot(STOB, StobId { generation: 1, ..STOB }).await.unwrap();
            let mut transaction = domain.begin();
            transaction.tree_put(TreeId(1), b"key", b"value");
            domain.commit(transaction).await.unwrap();
            domain.punch(STOB, BlockExtent { start: 9, count: 1 }).await.unwrap();
            domain.close().await.unwrap();
        })
        .unwrap();
        check(&check_args(&device, false)).unwrap();
        dump(&device).unwrap();

        let file = std::fs::OpenOptions::new().read(true).write(true).open(&device).unwrap();
        // A superblock copy is written again.
        file.write_all_at(&[0xff; 4096], 0).unwrap();
        assert!(check(&check_args(&device, false)).is_err());
        check(&check_args(&device, true)).unwrap();
        check(&check_args(&device, false)).unwrap();
        // A block of data cannot be, and stays where it is.
        let place = find(&file, &content);
        file.write_all_at(&[8], place * BLOCK_BYTES + 100).unwrap();
        assert!(check(&check_args(&device, true)).is_err());
        assert!(check(&check_args(&device, false)).is_err());

        let locked = open(&device).unwrap();
        assert!(
            check(&check_args(&device, false)).is_err_and(|failure| failure.to_string().contains("in use"))
        );
        drop(locked);
        std::fs::write(folder.path().join("other"), vec![1; 20 << 20]).unwrap();
        assert!(info(&StobDeviceArgs { device: folder.path().join("other"), json: false }).is_err());
        assert!(check(&check_args(&folder.path().join("absent"), false)).is_err());
    }
    #[test]
    fn bad_input_is_refused_with_what_to_do_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("device");
        let refused = |result: Result<(), Failure>, what: &str| {
            let failure = result.unwrap_err().to_string();
            assert!(failure.contains(what), "{failure:?} does not say {what:?}");
        };
        for size in [0, 1, 13 * MIB] {
            refused(format(&format_args(&device, Some(size), false)), "--size 14M");
        }
        refused(format(&format_args(&device, Some(u64::MAX), false)), "cannot be allocated");
        refused(format(&format_args(&device, None, false)), "--size SIZE makes a new file");
        let foreign = StobFormatArgs {
            fid: Some(Fid::new(FidType::Component, 0, 1)),
            ..format_args(&device, Some(14 * MIB), false)
        };
        refused(format(&foreign), "not the fid of a device");
        assert!(!device.exists(), "a refusal leaves no file");

        let empty = folder.path().join("empty");
        std::fs::write(&empty, b"").unwrap();
        refused(format(&format_args(&empty, None, false)), "0 blocks");
        refused(info(&StobDeviceArgs { device: empty.clone(), json: true }), "0 blocks");
        refused(info(&StobDeviceArgs { device: folder.path().join("absent"), json: true }), "No such file");
        refused(dump(&folder.path().join("absent")), "No such file");
        refused(format(&format_args(folder.path(), None, false)), "directory");

        format(&format_args(&device, Some(14 * MIB), false)).unwrap();
        refused(format(&format_args(&device, Some(14 * MIB), false)), "leave --size out");
        refused(format(&format_args(&device, None, false)), "--force");
        let file = std::fs::OpenOptions::new().write(true).open(&device).unwrap();
        file.set_len(13 * MIB + 4096).unwrap();
        refused(info(&StobDeviceArgs { device: device.clone(), json: false }), "truncated");
        refused(dump(&device), "truncated");
        file.set_len(14 * MIB).unwrap();
        check(&check_args(&device, true)).unwrap();
    }
}
