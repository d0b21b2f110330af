//! `clovis stob bench DEVICE`: what one device does through a domain, without a peer (`clovis bench stob` has those).
//!
//! Needs a formatted device that nobody uses. All rows work on one stob and one tree of their own, which are deleted at the end, also
//! after an error, and at the start of the next run if this one was killed; so what the device holds stays. A write counts when it is durable, a read when each block was verified.

use std::cell::{Cell, RefCell};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use base::checksum::crc32c;
use base::units::{BLOCK_BYTES, KIB, MIB, narrow};
use base::{BlockExtent, Fid, FidType};
use futures_util::future::try_join_all;
use runtime::{LocalityHandle, SharedBuffer, process};
use serde_json::{Value, json};
use spdk_stob::{Domain, StobError, StobId, TreeId, WritePiece};

use crate::args::StobBenchArgs;
use crate::failure::Failure;
use crate::output;
use crate::stob::{Desk, open};

/// Number of the tree; servers and control daemons count theirs from 1.
const TREE: TreeId = TreeId(u32::MAX);
const KEYS: u64 = 1024;
/// The stob. No server has this generation: theirs count from 0.
const STOB: StobId = StobId { fid: Fid::new(FidType::Component, 0, u64::MAX), generation: u64::MAX };
/// Puts in a transaction, and bytes of a value.
const PUTS: u64 = 16;
const VALUE_BYTES: usize = 100;

#[derive(Clone, Copy, Debug)]
enum Work {
    SequentialWrite,
    SequentialRead,
    RandomRead,
    RandomOverwrite,
    TreePuts,
}

impl Work {
    const ALL: [Work; 5] = [
        Work::SequentialWrite,
        Work::SequentialRead,
        Work::RandomRead,
        Work::RandomOverwrite,
        Work::TreePuts,
    ];

    fn text(self) -> &'static str {
        match self {
            Work::SequentialWrite => "1 MiB sequential write",
            Work::SequentialRead => "1 MiB sequential read",
            Work::RandomRead => "4 KiB random read",
            Work::RandomOverwrite => "4 KiB random overwrite, durable",
            Work::TreePuts => "16 tree puts, durable",
        }
    }

    /// Bytes of one operation; 0 for trees.
    fn bytes(self) -> u64 {
        match self {
            Work::SequentialWrite | Work::SequentialRead => MIB,
            Work::RandomRead | Work::RandomOverwrite => 4 * KIB,
            Work::TreePuts => 0,
        }
    }
}

struct Row {
    work: Work,
    operations: u64,
    took: Duration,
    cpu: Duration,
    syscalls: u64,
    copied_bytes: u64,
    /// Operations that shared one record and one flush.
    groups: u64,
}

/// `clovis stob bench`
pub fn run(args: &StobBenchArgs) -> Result<(), Failure> {
    if args.size < MIB {
        return Err(Failure::new(format!("--size {} is too small: the stob has at least 1M", args.size)));
    }
    let mut desk = Desk::new(&args.device)?;
    let (handle, backend) = (desk.handle(), open(&args.device)?);
    let told = || Failure::while_doing(args.device.display().to_string());
    let rows = desk.run(async {
        let domain = Domain::open(&handle, backend, None).await?;
        clean(&domain).await?; // what a run that was killed left
        let free_bytes = domain.info().blocks_free * BLOCK_BYTES;
        // Overwrites need some blocks beside the old ones.
        if args.size.saturating_add(MIB) > free_bytes {
            domain.close().await?;
            return Ok(Err(free_bytes));
        }
        let measured = measure(&domain, &handle, args).await;
        // After an error of the device this fails too, and the first error is the one to tell.
        let cleaned = clean(&domain).await;
        let closed = domain.close().await;
        let rows = measured?;
        cleaned.and(closed)?;
        Ok::<Result<Vec<Row>, u64>, StobError>(Ok(rows))
    })?;
    let rows = rows.map_err(told())?.map_err(|free_bytes| {
        Failure::new(format!(
            "{}: {} MiB are free, and --size {} takes {} and one more",
            args.device.display(),
            free_bytes / MIB,
            args.size,
            args.size.div_ceil(MIB)
        ))
    })?;
    if args.json {
        let rows: Vec<Value> = rows.iter().map(json_of).collect();
        return output::line(&format!("{:#}", json!({ "depth": args.depth, "rows": rows })));
    }
    rows.iter().try_for_each(|row| output::line(&text_of(row)))
}

async fn measure(
    domain: &Domain,
    handle: &LocalityHandle,
    args: &StobBenchArgs,
) -> Result<Vec<Row>, StobError> {
    let data = random_data(handle).await;
    let size_bytes = args.size / MIB * MIB;
    for start_block in (0..size_bytes / BLOCK_BYTES).step_by(narrow(MIB / BLOCK_BYTES)) {
        let piece = WritePiece { start_block, data: data.0.clone() };
        domain.write(STOB, vec![piece], &data.1).await?;
    }
    let mut rows = Vec::new();
    for work in Work::ALL {
        rows.push(row(domain, handle, work, size_bytes, &data, args).await?);
    }
    Ok(rows)
}

async fn row(
    domain: &Domain,
    handle: &LocalityHandle,
    work: Work,
    size_bytes: u64,
    data: &(SharedBuffer, Arc<[u32]>),
    args: &StobBenchArgs,
) -> Result<Row, StobError> {
    let counters = handle.counters();
    let before = (process::cpu_time(), counters.syscalls.get(), counters.copied_bytes.get());
    let groups = domain.info().groups;
    let next = Cell::new(0);
    let random = RefCell::new(fastrand::Rng::with_seed(handle.random_u64()));
    let (began, time) = (handle.now(), Duration::from_secs(args.seconds));
    let lanes = (0..args.depth).map(|_| async {
        let mut done = 0u64;
        while handle.now() - began < time {
            let places = size_bytes / work.bytes().max(1);
            let place = match work {
                Work::SequentialWrite | Work::SequentialRead => next.replace(next.get() + 1) % places,
                _ => random.borrow_mut().u64(0..places),
            };
            let (start_block, blocks) = (place * work.bytes() / BLOCK_BYTES, work.bytes() / BLOCK_BYTES);
            match work {
                Work::SequentialRead | Work::RandomRead => {
                    domain.read(STOB, &[BlockExtent { start: start_block, count: blocks }]).await?;
                }
                Work::SequentialWrite | Work::RandomOverwrite => {
                    let piece = WritePiece { start_block, data: data.0.slice(0..narrow(work.bytes())) };
                    domain.write(STOB, vec![piece], &data.1[..narrow(blocks)]).await?;
                }
                Work::TreePuts => {
                    let mut transaction = domain.begin();
                    for _ in 0..PUTS {
                        let key = random.borrow_mut().u64(0..KEYS).to_be_bytes();
                        transaction.tree_put(TREE, &key, &[7; VALUE_BYTES]);
                    }
                    domain.commit(transaction).await?;
                }
            }
            done += 1;
        }
        Ok::<u64, StobError>(done)
    });
    let operations = try_join_all(lanes).await?.into_iter().sum();
    Ok(Row {
        work,
        operations,
        took: handle.now() - began,
        cpu: process::cpu_time().saturating_sub(before.0),
        syscalls: counters.syscalls.get() - before.1,
        copied_bytes: counters.copied_bytes.get() - before.2,
        groups: domain.info().groups - groups,
    })
}

/// Deletes what the rows make, if it is there.
async fn clean(domain: &Domain) -> Result<(), StobError> {
    let mut transaction = domain.begin();
    if domain.stob_blocks(STOB).is_some() {
        transaction.stob_delete(STOB);
    }
    for (key, _) in domain.tree_range(TREE, Bound::Unbounded, narrow(KEYS)) {
        transaction.tree_delete(TREE, &key);
    }
    domain.commit(transaction).await
}

async fn random_data(handle: &LocalityHandle) -> (SharedBuffer, Arc<[u32]>) {
    let mut data = handle.arena().alloc(narrow(MIB)).await;
    fastrand::Rng::with_seed(3).fill(&mut data);
    let checksums = data.chunks_exact(narrow(BLOCK_BYTES)).map(crc32c).collect();
    (data.freeze(), checksums)
}

/// For reports: two or three digits matter.
#[allow(clippy::cast_precision_loss)]
fn float(value: u64) -> f64 {
    value as f64
}

fn text_of(row: &Row) -> String {
    let seconds = row.took.as_secs_f64().max(1e-9);
    let operations = float(row.operations.max(1));
    let per_group = if row.groups > 0 {
        format!(", {:.1} in a group", operations / float(row.groups))
    } else {
        String::new()
    };
    format!(
        "{:32} {:>9.0} /s {:>8.1} MiB/s; each {:.1} us of CPU, {:.2} system calls, {:.0} bytes copied{per_group}",
        row.work.text(),
        float(row.operations) / seconds,
        float(row.operations * row.work.bytes()) / seconds / float(MIB),
        row.cpu.as_secs_f64() * 1e6 / operations,
        float(row.syscalls) / operations,
        float(row.copied_bytes) / operations,
    )
}

fn json_of(row: &Row) -> Value {
    json!({
        "what": row.work.text(),
        "operations": row.operations,
        "operation_bytes": row.work.bytes(),
        "seconds": row.took.as_secs_f64(),
        "cpu_seconds": row.cpu.as_secs_f64(),
        "syscalls": row.syscalls,
        "copied_bytes": row.copied_bytes,
        "groups": row.groups,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_leaves_nothing_behind_also_of_one_that_was_killed_and_refuses_what_does_not_fit() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("device");
        spdk_stob::create_device_file(&device, 24 * MIB).unwrap();
        let mut desk = Desk::new(&device).unwrap();
        let handle = desk.handle();
        let params = spdk_stob::FormatParams { device: Fid::new(FidType::Device, 0, 1), cluster: 1 };
        let backend = open(&device).unwrap();
        // What a killed run leaves: the stob and keys.
        let free = desk.run(async {
            let domain = Domain::format(&handle, backend, params).await.unwrap();
            let free = domain.info().blocks_free;
            let data = random_data(&handle).await;
            domain.write(STOB, vec![WritePiece { start_block: 0, data: data.0 }], &data.1).await.unwrap();
            let mut transaction = domain.begin();
            transaction.tree_put(TREE, &7_u64.to_be_bytes(), b"left");
            domain.commit(transaction).await.unwrap();
            domain.close().await.unwrap();
            free
        });
        let free = free.unwrap();
        let args = |size| StobBenchArgs { device: device.clone(), size, seconds: 1, depth: 4, json: true };
        for (size, what) in [(0, "too small"), (1 << 40, "are free"), (free * BLOCK_BYTES, "are free")] {
            let failure = run(&args(size)).unwrap_err().to_string();
            assert!(failure.contains(what), "{failure}");
        }
        run(&args(2 * MIB)).unwrap();
        let backend = open(&device).unwrap();
        let report = desk.run(spdk_stob::check(&handle, backend, false)).unwrap().unwrap();
        assert!(report.is_clean());
        assert_eq!((report.stobs, report.tree_keys, report.blocks_free), (0, 0, free));
    }
}
