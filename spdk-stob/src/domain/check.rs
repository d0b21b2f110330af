//! Looking at a device that no domain uses: what it says of itself, whether all of it is right, and everything it holds as text.
//!
//! [`check`] believes nothing: it recovers the state as an open would, without writing, counts the owners of every block from
//! the extents themselves, and reads every written block against its checksum. With `repair` it then writes what can be put right
//! without giving up anything reachable: superblock copies, counts of owners, and the end of the log. It never drops an extent, a
//! stob or a key: a block that does not read true stays where it is, answers its reader with an error, and is rebuilt by the layer with parity.
//!
//! Bounds: [`PROBLEMS_MAX`] problems are listed, all are counted. Memory: that of the metadata, and 16 bytes for each end of an extent.
//! The caller's backend holds the lock of the device, so a domain in use is never looked at from behind.

use base::checksum::crc32c;
use base::units::{BLOCK_BYTES, narrow, wide};
use base::{BlockExtent, Fid};
use runtime::LocalityHandle;

use super::commit::Committer;
use super::device::Device;
use super::opening::{BlockReader, Recovering, Start, Tuning, load, load_pages};
use super::space::free_of;
use crate::backend::Backend;
use crate::error::StobError;
use crate::extents::{ExtentKey, Missing};
use crate::format::FORMAT_VERSION;
use crate::format::superblock::{Superblock, SuperblockFault};
use crate::limits::{DEVICE_OPERATION_BLOCKS_MAX, RECORD_BYTES_MAX};
use crate::metadata::Metadata;
use crate::shared_blocks::count_owners;
use crate::stob_id::StobId;

/// Problems that a report lists.
pub const PROBLEMS_MAX: usize = 1000;

/// Something that is not as it has to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// A copy of the superblock is not what it should be.
    #[error("the superblock copy in block {block} is not usable or not the newest ({what})")]
    Superblock {
        /// Its block.
        block: u64,
        /// What was found.
        what: String,
    },
    /// The state cannot be read, so nothing else can be checked.
    #[error("the metadata cannot be read: {0}")]
    Metadata(StobError),
    /// The owners of blocks are not as many as recorded.
    #[error("device {extent} have {owners} owners, recorded are {recorded}")]
    Owners {
        /// Blocks of the device.
        extent: BlockExtent,
        /// Extents that own them.
        owners: u32,
        /// What the metadata says.
        recorded: u32,
    },
    /// An extent lies outside of the data area.
    #[error("stob {stob} owns device {extent} outside of the data area")]
    Outside {
        /// The stob.
        stob: StobId,
        /// Blocks of the device.
        extent: BlockExtent,
    },
    /// A sum or list contradicts the extents.
    #[error("the metadata contradicts itself: {0}")]
    Sums(String),
    /// A block does not read true.
    #[error("block {block} of stob {stob} (device block {device_block}): {what}")]
    Block {
        /// The stob.
        stob: StobId,
        /// Block of the stob.
        block: u64,
        /// Block of the device.
        device_block: u64,
        /// What was found.
        what: String,
    },
}

/// What [`check`] found and did.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// The device; `None` if no superblock can be used.
    pub device: Option<Fid>,
    /// Its cluster.
    pub cluster: u64,
    /// Sequence of the superblock.
    pub sequence: u64,
    /// Groups replayed from the log.
    pub log_records: u64,
    /// True if the log ends in a group that was never acknowledged. No problem: an open drops it too.
    pub dropped_tail: bool,
    /// Stobs.
    pub stobs: u64,
    /// Extents of all stobs.
    pub extents: u64,
    /// Keys of all trees.
    pub tree_keys: u64,
    /// Blocks of the data area.
    pub blocks_total: u64,
    /// Blocks with an owner.
    pub blocks_used: u64,
    /// Blocks with more than one.
    pub blocks_shared: u64,
    /// Blocks without.
    pub blocks_free: u64,
    /// Free blocks that are kept for holes.
    pub blocks_kept: u64,
    /// Blocks read and compared with their checksum; a shared one for each owner.
    pub blocks_read: u64,
    /// The first [`PROBLEMS_MAX`] problems.
    pub problems: Vec<Problem>,
    /// All problems.
    pub problem_count: u64,
    /// What was put right, in words.
    pub repairs: Vec<String>,
}

impl CheckReport {
    /// True if nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.problem_count == 0
    }

    fn problem(&mut self, problem: Problem) {
        self.problem_count += 1;
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }
}

/// A superblock copy as found.
#[derive(Clone, Debug)]
pub struct SuperblockCopy {
    /// Its block.
    pub block: u64,
    /// What it says, or why it is not used.
    pub content: Result<Superblock, String>,
}

fn fault_text(fault: SuperblockFault) -> String {
    match fault {
        SuperblockFault::Blank => "blank".to_owned(),
        SuperblockFault::Magic(bytes) => format!("another magic: {bytes:02x?}"),
        SuperblockFault::Checksum => "its checksum does not match".to_owned(),
        SuperblockFault::Version(found) => {
            format!("format version {found}, this program reads {FORMAT_VERSION}")
        }
        SuperblockFault::Regions => "its regions contradict each other".to_owned(),
    }
}

async fn copies(reader: &mut BlockReader<'_>) -> Vec<SuperblockCopy> {
    let size_blocks = reader.device.geometry().size_blocks;
    let mut copies: Vec<SuperblockCopy> = Vec::new();
    for block in [0, size_blocks.saturating_sub(1)] {
        // A device that has grown keeps its second copy where the first says.
        let block = match copies.first() {
            Some(SuperblockCopy { content: Ok(first), .. }) => first.regions.size_blocks - 1,
            _ => block,
        };
        let content = match reader.superblock(block).await {
            Ok(Ok(superblock)) => Ok(superblock),
            Ok(Err(fault)) => Err(fault_text(fault)),
            Err(error) => Err(error.to_string()),
        };
        copies.push(SuperblockCopy { block, content });
    }
    copies
}

/// Both superblock copies of a device, read and not judged. Writes nothing.
pub async fn inspect(locality: &LocalityHandle, backend: Box<dyn Backend>) -> Vec<SuperblockCopy> {
    let device = Device::start(locality, backend);
    let buffer = locality.arena().alloc(RECORD_BYTES_MAX).await;
    let mut reader = BlockReader { device: &device, buffer: Some(buffer), locality: locality.clone() };
    copies(&mut reader).await
}

/// Checks all of a device; see the module head. Without `repair` nothing is written.
///
/// Errors: only those of writing repairs; everything else is a [`Problem`].
pub async fn check(
    locality: &LocalityHandle,
    backend: Box<dyn Backend>,
    repair: bool,
) -> Result<CheckReport, StobError> {
    let device = Device::start(locality, backend);
    let buffer = locality.arena().alloc(RECORD_BYTES_MAX).await;
    let mut reader = BlockReader { device: &device, buffer: Some(buffer), locality: locality.clone() };
    let mut report = CheckReport::default();
    let copies = copies(&mut reader).await;
    let mut start = match load(&mut reader, None, Tuning::default()).await {
        Ok(start) => start,
        Err(error) => {
            report.problem(Problem::Metadata(error));
            return Ok(report);
        }
    };
    for copy in copies {
        let what = match copy.content {
            Ok(found) if found == start.superblock => continue,
            Ok(found) => format!("sequence {}, the newest is {}", found.sequence, start.superblock.sequence),
            Err(what) => what,
        };
        report.problem(Problem::Superblock { block: copy.block, what });
        if repair {
            report
                .repairs
                .push(format!("superblock copy in block {} written again from the other", copy.block));
        }
    }
    let mut state = Recovering { metadata: start.metadata, free: start.free };
    let all =
        |metadata: &Metadata, missing: &mut Vec<Missing>| missing.extend(metadata.extents.all_missing());
    let has_all = load_pages(&mut reader, &start.superblock, &mut state, all).await;
    (start.metadata, start.free) = (state.metadata, state.free);
    describe(&start, &mut report);
    if let Err(error) = has_all {
        report.problem(Problem::Metadata(error));
        return Ok(report);
    }
    let is_counted = check_owners(&mut start, &mut report, repair);
    check_blocks(&mut reader, &start, &mut report).await;
    if repair && is_counted {
        if start.replayed.dropped_tail {
            report.repairs.push("the end of the log, a group never acknowledged, dropped".to_owned());
        }
        let buffer = reader.buffer;
        let has_repairs = !report.repairs.is_empty();
        if has_repairs {
            let mut committer = Committer::new(locality, device, start, buffer, Tuning::default()).await?;
            committer.end_recovery(true).await?;
            committer.checkpoint().await?;
        }
    }
    Ok(report)
}

fn describe(start: &Start, report: &mut CheckReport) {
    let (superblock, metadata) = (&start.superblock, &start.metadata);
    report.device = Some(superblock.device);
    report.cluster = superblock.cluster;
    report.sequence = superblock.sequence;
    report.log_records = start.replayed.records;
    report.dropped_tail = start.replayed.dropped_tail;
    report.stobs = wide(metadata.stobs_after(None).count());
    report.extents = metadata.extent_count();
    report.tree_keys = metadata.trees().map(|(_, keys)| wide(keys)).sum();
    report.blocks_total = superblock.regions.data.count;
    report.blocks_kept = metadata.kept_blocks();
}

/// Counts the owners of all blocks. True if the counts are right, or were put right in `start`.
fn check_owners(start: &mut Start, report: &mut CheckReport, repair: bool) -> bool {
    let data = start.superblock.regions.data;
    let metadata = &mut start.metadata;
    let mut is_inside = true;
    for (key, mapped) in metadata.extents_from(ExtentKey::default()) {
        let extent = mapped.device_extent();
        if data.intersection(&extent) != Some(extent) {
            report.problem(Problem::Outside { stob: key.stob, extent });
            is_inside = false;
        }
    }
    let extents = metadata.extents_from(ExtentKey::default()).map(|(_, mapped)| mapped.device_extent());
    let counted = count_owners(extents);
    report.blocks_used = counted.used_blocks;
    report.blocks_free = data.count.saturating_sub(counted.used_blocks);
    report.blocks_shared = counted.shared.extents().map(|(extent, _)| extent.count).sum();
    let is_right = counted.shared == *metadata.shared();
    for extent in counted.used.iter().copied().filter(|_| !is_right) {
        for (part, owners) in counted.shared.parts(extent) {
            for (part, recorded) in metadata.shared().parts(part) {
                if owners != recorded {
                    report.problem(Problem::Owners { extent: part, owners, recorded });
                }
            }
        }
    }
    // What is recorded as shared and has no owner at all.
    for (extent, recorded) in metadata.shared().extents() {
        let owned: u64 = counted
            .used
            .iter()
            .filter_map(|used| used.intersection(&extent))
            .map(|common| common.count)
            .sum();
        if owned < extent.count {
            report.problem(Problem::Owners { extent, owners: 0, recorded });
        }
    }
    if counted.used_blocks != metadata.used_blocks() {
        report.problem(Problem::Sums(format!(
            "{} blocks have owners, counted {}",
            counted.used_blocks,
            metadata.used_blocks()
        )));
    }
    let mut is_right = is_right && counted.used_blocks == metadata.used_blocks();
    // The bits of free space against the extents: no block with an owner is free, and all others are.
    for extent in counted.used.iter().filter(|extent| !start.free.is_owned(**extent)) {
        report.problem(Problem::Owners { extent: *extent, owners: 1, recorded: 0 });
        is_right = false;
    }
    if counted.used_blocks + start.free.free_blocks() != data.count {
        report.problem(Problem::Sums(format!(
            "{} blocks are free and {} have owners, of {}",
            start.free.free_blocks(),
            counted.used_blocks,
            data.count
        )));
        is_right = false;
    }
    let sums = metadata.verify();
    if let Err(what) = &sums {
        report.problem(Problem::Sums(what.clone()));
    }
    if !is_right && repair && is_inside {
        metadata.set_shared(counted.shared, counted.used_blocks);
        metadata.bits.mark_all();
        match free_of(metadata, &start.superblock.regions) {
            Ok(free) => start.free = free,
            Err(_) => return false, // blocks outside of the data area: told above
        }
        report.repairs.push("owners of all blocks counted anew from the extents".to_owned());
        return sums.is_ok();
    }
    is_right && is_inside && sums.is_ok()
}

/// Reads every written block.
async fn check_blocks(reader: &mut BlockReader<'_>, start: &Start, report: &mut CheckReport) {
    let data = start.superblock.regions.data;
    for (key, mapped) in start.metadata.extents_from(ExtentKey::default()) {
        if data.intersection(&mapped.device_extent()) != Some(mapped.device_extent()) {
            continue; // told already
        }
        let mut bad = |index: u64, what: String| {
            report.problem(Problem::Block {
                stob: key.stob,
                block: key.start + index,
                device_block: mapped.device_start + index,
                what,
            });
        };
        debug_assert!(mapped.blocks() <= DEVICE_OPERATION_BLOCKS_MAX);
        match reader.read(mapped.device_extent()).await {
            Ok(bytes) => {
                let blocks = bytes.chunks_exact(narrow(BLOCK_BYTES)).zip(&mapped.checksums);
                for (index, (bytes, checksum)) in (0..).zip(blocks) {
                    let found = crc32c(bytes);
                    if found != *checksum {
                        bad(index, format!("its checksum is {found:#010x}, written was {checksum:#010x}"));
                    }
                }
            }
            Err(_) => {
                for (index, checksum) in (0..).zip(&mapped.checksums) {
                    let block = BlockExtent { start: mapped.device_start + index, count: 1 };
                    match reader.read(block).await {
                        Ok(bytes) if crc32c(bytes) == *checksum => {}
                        Ok(_) => bad(index, "its checksum does not match".to_owned()),
                        Err(error) => bad(index, error.to_string()),
                    }
                }
            }
        }
        report.blocks_read += mapped.blocks();
    }
}

/// Everything that the metadata of a device holds, a line at a time, in the order of docs/disk.md. Writes nothing.
///
/// Errors: as an open; and whatever `line` answers ends it early, with `Ok`.
pub async fn dump(
    locality: &LocalityHandle,
    backend: Box<dyn Backend>,
    mut line: impl FnMut(String) -> bool,
) -> Result<(), StobError> {
    let device = Device::start(locality, backend);
    let buffer = locality.arena().alloc(RECORD_BYTES_MAX).await;
    let mut reader = BlockReader { device: &device, buffer: Some(buffer), locality: locality.clone() };
    let Start { superblock, metadata, free, replayed, .. } =
        load(&mut reader, None, Tuning::default()).await?;
    let mut state = Recovering { metadata, free };
    let all =
        |metadata: &Metadata, missing: &mut Vec<Missing>| missing.extend(metadata.extents.all_missing());
    load_pages(&mut reader, &superblock, &mut state, all).await?;
    let metadata = state.metadata;
    let regions = superblock.regions;
    let heads = [
        format!(
            "device {} cluster {:#x} sequence {}",
            superblock.device, superblock.cluster, superblock.sequence
        ),
        format!("format version {} id {:#018x}", superblock.version, superblock.format_id),
        format!("blocks {}", regions.size_blocks),
        format!("log {}", regions.log),
        format!("checkpoint areas {} {}", regions.checkpoints[0], regions.checkpoints[1]),
        format!("pages {} in slots of {}", regions.pages, regions.slot_blocks),
        format!("data {}", regions.data),
        format!(
            "log replayed {} records to block {} sequence {}{}",
            replayed.records,
            replayed.next.block,
            replayed.next.sequence,
            if replayed.dropped_tail { ", tail dropped" } else { "" }
        ),
    ];
    for head in heads {
        if !line(head) {
            return Ok(());
        }
    }
    for stob in metadata.stobs_after(None) {
        let blocks = metadata.stob_blocks(stob).unwrap_or(0);
        if !line(format!("stob {stob} blocks {blocks}")) {
            return Ok(());
        }
        for kept in metadata.kept_inside(stob, BlockExtent { start: 0, count: u64::MAX }) {
            if !line(format!("  kept {kept}")) {
                return Ok(());
            }
        }
        let inside = BlockExtent { start: 0, count: u64::MAX };
        for found in metadata.lookup(stob, inside) {
            let count = found.checksums.len();
            let checksums: Vec<String> =
                found.checksums.iter().map(|checksum| format!("{checksum:08x}")).collect();
            if !line(format!(
                "  block {} count {count} device {} crc32c {}",
                found.start,
                found.device_start,
                checksums.join(" ")
            )) {
                return Ok(());
            }
        }
    }
    for (extent, owners) in metadata.shared().extents() {
        if !line(format!("shared {extent} owners {owners}")) {
            return Ok(());
        }
    }
    for (tree, keys) in metadata.trees() {
        if !line(format!("tree {} keys {keys}", tree.0)) {
            return Ok(());
        }
        for (key, value) in metadata.tree_range(tree, std::ops::Bound::Unbounded) {
            let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            if !line(format!("  key {} value {}", hex(key), hex(value))) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Makes a device blank again: overwrites both superblock copies with zeros, flushed. What it held is out of reach afterwards.
///
/// Errors: [`StobError::Device`].
pub async fn erase(locality: &LocalityHandle, backend: Box<dyn Backend>) -> Result<(), StobError> {
    let device = Device::start(locality, backend);
    let mut reader = BlockReader { device: &device, buffer: None, locality: locality.clone() };
    let copies = copies(&mut reader).await;
    for copy in copies {
        let mut zeros = locality.arena().alloc(narrow(BLOCK_BYTES)).await;
        zeros.fill(0);
        device.write(copy.block, smallvec::smallvec![zeros.freeze()]).await?;
    }
    device.flush().await?;
    Ok(())
}
