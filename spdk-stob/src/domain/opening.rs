//! Formatting and recovery.
//!
//! Recovery: (1) the newer whole superblock; (2) its checkpoint, and the bits of free space, without pages of extents; (3) the log from there, as long as each record is whole and
//! follows the one before; (4) the last group counts only if all the data it maps matches its checksums: an unfinished flush
//! may have left the record without its data; (5) a flush, because what was just believed may still be in the device's cache; (6) a
//! barrier record, flushed, over whatever follows: a dropped tail never comes back. Nobody can read before (6).
//!
//! Bound: superblocks, the checkpoint's stream, bits (32 MiB per TiB), the log once, the pages that its changes are in, and the data of one group
//! are read. A record that is missing
//! although a later one proves that it was flushed is damage, not a tail: nothing acknowledged is dropped silently.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use base::BlockExtent;
use base::checksum::crc32c;
use base::units::{BLOCK_BYTES, narrow, wide};
use runtime::sync::{Notify, Semaphore};
use runtime::{Buffer, LocalityHandle};

use super::checkpointing::upgraded_regions;
use super::commit::Committer;
use super::device::Device;
use super::paging::{Loads, read_page};
use super::space::State;
use super::space::{free_of, replay_change};
use super::{Domain, FormatParams, Guard, Recovered, Shared, Status};
use crate::allocator::FreeSpace;
use crate::backend::{Backend, DeviceError};
use crate::error::{Damage, StobError};
use crate::extents::{Missing, Place};
use crate::format::change::{Change, DecodeFault};
use crate::format::checkpoint::{self, PIECE_BODY_BYTES, PieceName};
use crate::format::page::{self, PAGE_HEADER_BYTES, PageKind, PageName};
use crate::format::record::{RecordHeader, RecordKind};
use crate::format::regions::Regions;
use crate::format::superblock::{LogPosition, Superblock, SuperblockFault};
use crate::format::{FORMAT_VERSION, OLD_VERSION};
use crate::limits::{
    CHECKPOINT_AT_PART, DEVICE_BLOCKS_MIN, DEVICE_OPERATION_BLOCKS_MAX, PAGE_CACHE_BYTES, PAGE_READS_MAX,
    RECORD_BYTES_MAX, SLOT_BLOCKS, TRANSACTIONS_WAITING_MAX,
};
use crate::metadata::{Loader, Metadata};
use crate::slots::Slots;
use crate::trace::Trace;

#[cfg(test)]
use super::mutation::Mutation;

/// What only tests choose.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tuning {
    /// Bytes of extents above which a page is split.
    pub(crate) page_bytes: Option<u64>,
    /// Memory of extents that are on the device too.
    pub(crate) page_cache_bytes: Option<u64>,
    /// Regions instead of those of the device's size.
    pub(crate) regions: Option<Regions>,
    /// A bug on purpose.
    #[cfg(test)]
    pub(crate) mutation: Option<Mutation>,
}

fn damaged(what: Damage) -> StobError {
    StobError::Damaged { what }
}

/// Reads blocks one after the other through one buffer.
pub(super) struct BlockReader<'device> {
    pub(super) device: &'device Device,
    pub(super) buffer: Option<Buffer>,
    pub(super) locality: LocalityHandle,
}

impl BlockReader<'_> {
    /// The bytes of `extent`, at most one buffer's worth.
    pub(super) async fn read(&mut self, extent: BlockExtent) -> Result<&[u8], DeviceError> {
        let mut buffer = match self.buffer.take() {
            Some(buffer) => buffer,
            None => self.locality.arena().alloc(RECORD_BYTES_MAX).await,
        };
        buffer.resize(narrow(extent.count * BLOCK_BYTES));
        let buffer = self.device.read(extent.start, buffer).await?;
        Ok(self.buffer.insert(buffer))
    }

    pub(super) async fn superblock(
        &mut self,
        block: u64,
    ) -> Result<Result<Superblock, SuperblockFault>, DeviceError> {
        Ok(Superblock::parse(self.read(BlockExtent { start: block, count: 1 }).await?))
    }
}

/// The superblock to use, and whether a copy has to be written again.
async fn choose_superblock(reader: &mut BlockReader<'_>) -> Result<(Superblock, bool), StobError> {
    let size_blocks = reader.device.geometry().size_blocks;
    if size_blocks < 2 {
        return Err(StobError::TooSmall { needed_blocks: DEVICE_BLOCKS_MIN, found_blocks: size_blocks });
    }
    let truncated = |superblock: &Superblock| {
        let expected_blocks = superblock.regions.size_blocks;
        (expected_blocks > size_blocks)
            .then_some(StobError::Truncated { expected_blocks, found_blocks: size_blocks })
    };
    let first = reader.superblock(0).await;
    if let Ok(Ok(superblock)) = &first
        && let Some(error) = truncated(superblock)
    {
        return Err(error);
    }
    // A device that has grown keeps its second copy where the first says.
    let last_block = match &first {
        Ok(Ok(superblock)) => superblock.regions.size_blocks - 1,
        _ => size_blocks - 1,
    };
    let last = reader.superblock(last_block).await;
    match (first, last) {
        (Ok(Ok(first)), Ok(Ok(last))) if first.format_id == last.format_id => {
            let newer = if last.sequence > first.sequence { last } else { first };
            Ok((newer, first.sequence != last.sequence))
        }
        (Ok(Ok(first)), _) => Ok((first, true)),
        (_, Ok(Ok(last))) => match truncated(&last) {
            Some(error) => Err(error),
            None => Ok((last, true)),
        },
        (Err(error), Err(_) | Ok(Err(_))) | (Ok(Err(_)), Err(error)) => Err(error.into()),
        (Ok(Err(first)), Ok(Err(last))) => Err(refusal(first, last)),
    }
}

/// What two unusable copies mean together.
fn refusal(first: SuperblockFault, last: SuperblockFault) -> StobError {
    use SuperblockFault::{Blank, Checksum, Magic, Regions, Version};
    match (first, last) {
        (Version(found), _) | (_, Version(found)) => StobError::Version { found, supported: FORMAT_VERSION },
        (Regions, _) | (_, Regions) => damaged(Damage::Regions),
        (Checksum, _) | (_, Checksum) => damaged(Damage::Superblocks),
        (Magic(first_bytes), _) => StobError::Foreign { first_bytes },
        (Blank, _) => StobError::NotFormatted,
    }
}

/// Applies the changes at the front of `bytes`; gives the rest, which may be the start of one more.
fn apply_changes<'bytes>(
    mut bytes: &'bytes [u8],
    regions: &Regions,
    allowed: impl Fn(&Change) -> bool,
    mut apply: impl FnMut(Change),
) -> Result<&'bytes [u8], StobError> {
    loop {
        match Change::decode(bytes) {
            Ok((change, used)) => {
                let owned = match &change {
                    Change::Map { device_start, checksums, .. } => {
                        Some(BlockExtent { start: *device_start, count: wide(checksums.len()) })
                    }
                    Change::Shared { extent, .. } => Some(*extent),
                    // Admission never keeps more than there is.
                    Change::Allocate { extent, .. } if extent.count > regions.data.count => Some(*extent),
                    _ => None,
                };
                if let Some(extent) = owned
                    && regions.data.intersection(&extent) != Some(extent)
                {
                    return Err(damaged(Damage::Owners { extent }));
                }
                if !allowed(&change) {
                    return Err(damaged(Damage::Entry { kind: Change::KIND_SHARED }));
                }
                apply(change);
                bytes = &bytes[used..];
            }
            Err(DecodeFault::Incomplete) => return Ok(bytes),
            Err(DecodeFault::Nonsense { kind }) => return Err(damaged(Damage::Entry { kind })),
        }
    }
}

/// What a checkpoint holds: for version 3 without its pages, which are read when they are needed.
struct Checkpoint {
    metadata: Metadata,
    slots: Slots,
    free: FreeSpace,
}

async fn read_checkpoint(
    reader: &mut BlockReader<'_>,
    superblock: &Superblock,
    tuning: Tuning,
) -> Result<Checkpoint, StobError> {
    let area = superblock.regions.checkpoints[usize::from(superblock.checkpoint_area == 1)];
    let is_old = superblock.version == OLD_VERSION;
    let regions = if is_old { upgraded_regions(superblock)? } else { superblock.regions };
    let slot_bytes = regions.slot_blocks * BLOCK_BYTES - wide(PAGE_HEADER_BYTES);
    // An extent may be as long as it may: a page that has one more than it should is split before it is written.
    let page_bytes = tuning.page_bytes.unwrap_or(slot_bytes).min(slot_bytes);
    let mut loader = Loader::new(&regions, page_bytes, is_old);
    let mut freed = Vec::new();
    let mut carried: Vec<u8> = Vec::new();
    let (mut left, mut place, mut index) = (superblock.checkpoint_bytes, area.start, 0);
    while left > 0 {
        let body_bytes = narrow(left).min(PIECE_BODY_BYTES);
        let blocks = checkpoint::piece_blocks(body_bytes);
        let piece = reader.read(BlockExtent { start: place, count: blocks }).await?;
        let name = PieceName {
            version: superblock.version,
            format_id: superblock.format_id,
            sequence: superblock.sequence,
            index,
        };
        let body =
            checkpoint::open(name, body_bytes, piece).ok_or(damaged(Damage::Checkpoint { piece: index }))?;
        carried.extend_from_slice(body);
        let mut is_right = true;
        let rest = apply_changes(&carried, &regions, is_of_checkpoint, |change| {
            is_right &= loader.push(change, &mut freed);
        })?;
        if !is_right {
            return Err(damaged(Damage::Checkpoint { piece: index }));
        }
        let used = carried.len() - rest.len();
        carried.drain(..used);
        left -= wide(body_bytes);
        place += blocks;
        index += 1;
    }
    if let Some(extent) = freed.first() {
        return Err(damaged(Damage::Owners { extent: *extent }));
    }
    if !carried.is_empty() {
        return Err(damaged(Damage::Checkpoint { piece: index }));
    }
    let (mut metadata, slots) = loader.finish();
    let free = if is_old {
        metadata.bits.mark_all();
        free_of(&metadata, &regions)?
    } else {
        let free = read_bits(reader, superblock, &metadata).await?;
        if let Some((extent, _)) = metadata.shared().extents().find(|(extent, _)| !free.is_owned(*extent)) {
            return Err(damaged(Damage::Owners { extent }));
        }
        free
    };
    if metadata.used_blocks() != regions.data.count - free.free_blocks() {
        return Err(damaged(Damage::Owners { extent: regions.data }));
    }
    Ok(Checkpoint { metadata, slots, free })
}

async fn read_bits(
    reader: &mut BlockReader<'_>,
    superblock: &Superblock,
    metadata: &Metadata,
) -> Result<FreeSpace, StobError> {
    let mut free = FreeSpace::new(superblock.regions.data);
    let places: Vec<(usize, Place)> = metadata.bits.places_from(0).collect();
    let regions = superblock.regions;
    let per_read = (DEVICE_OPERATION_BLOCKS_MAX / regions.slot_blocks).max(1);
    // Pages that were written together stand together, and are read together.
    let runs = places.chunk_by(|left, right| left.1.slot + 1 == right.1.slot);
    for run in runs.flat_map(|run| run.chunks(narrow(per_read))) {
        let extent =
            BlockExtent { count: wide(run.len()) * regions.slot_blocks, ..regions.slot(run[0].1.slot) };
        let bytes = reader.read(extent).await?;
        for ((index, place), bytes) in
            run.iter().zip(bytes.chunks_exact(narrow(regions.slot_blocks * BLOCK_BYTES)))
        {
            let name = PageName { kind: PageKind::Bits, format_id: superblock.format_id, slot: place.slot };
            let error = damaged(Damage::Page { slot: place.slot });
            let (body, found) = page::open(name, place.checksum, bytes).ok_or(error.clone())?;
            let mut groups = body.chunks_exact(narrow(BLOCK_BYTES));
            for (group, bits) in metadata.bits.groups(*index).zip(&mut groups) {
                if group < free.group_count() && !free.set_group_bytes(group, bits) {
                    return Err(error);
                }
            }
            let groups = metadata.bits.groups(*index);
            if found != *index
                || body.len() < (groups.len().min(free.group_count() - groups.start)) * narrow(BLOCK_BYTES)
            {
                return Err(error);
            }
        }
    }
    Ok(free)
}

/// Has the pages in memory that `touch` touches, or all.
pub(super) async fn load_pages(
    reader: &mut BlockReader<'_>,
    superblock: &Superblock,
    state: &mut Recovering,
    touch: impl Fn(&Metadata, &mut Vec<Missing>),
) -> Result<(), StobError> {
    let mut missing = Vec::new();
    touch(&state.metadata, &mut missing);
    missing.sort_by_key(|missing| missing.place.slot);
    let regions = superblock.regions;
    let per_read = (DEVICE_OPERATION_BLOCKS_MAX / regions.slot_blocks.max(1)).max(1);
    let runs = missing.chunk_by(|left, right| left.place.slot + 1 == right.place.slot);
    for run in runs.flat_map(|run| run.chunks(narrow(per_read))) {
        let slot = run[0].place.slot;
        let extent = BlockExtent { count: wide(run.len()) * regions.slot_blocks, ..regions.slot(slot) };
        let bytes = reader.read(extent).await?;
        for (missing, bytes) in run.iter().zip(bytes.chunks_exact(narrow(regions.slot_blocks * BLOCK_BYTES)))
        {
            let items = read_page(superblock, *missing, bytes)?;
            if !state.metadata.extents.install(*missing, items) {
                return Err(damaged(Damage::Page { slot: missing.place.slot }));
            }
        }
    }
    Ok(())
}

/// A state that nobody uses yet.
pub(super) struct Recovering {
    pub(super) metadata: Metadata,
    pub(super) free: FreeSpace,
}

impl Recovering {
    async fn replay(
        &mut self,
        reader: &mut BlockReader<'_>,
        superblock: &Superblock,
        changes: Vec<Change>,
    ) -> Result<(), StobError> {
        let touch = |metadata: &Metadata, missing: &mut Vec<Missing>| {
            changes.iter().for_each(|change| metadata.touch_for(change, missing));
            missing.sort_by_key(|missing| missing.place.slot);
            missing.dedup();
        };
        load_pages(reader, superblock, self, touch).await?;
        for change in changes {
            replay_change(&mut self.metadata, &mut self.free, change)?;
        }
        Ok(())
    }
}

/// A checkpoint makes; it takes nothing away again.
fn is_of_checkpoint(change: &Change) -> bool {
    matches!(
        change,
        Change::Map { .. }
            | Change::StobCreate { .. }
            | Change::Allocate { .. }
            | Change::Shared { .. }
            | Change::Page { .. }
            | Change::Bits { .. }
            | Change::StobBlocks { .. }
            | Change::Totals { .. }
            | Change::TreePut { .. }
    )
}

fn is_of_checkpoint_only(change: &Change) -> bool {
    matches!(
        change,
        Change::Shared { .. }
            | Change::Page { .. }
            | Change::Bits { .. }
            | Change::StobBlocks { .. }
            | Change::Totals { .. }
    )
}

/// A part of the log ring in memory.
struct LogWindow {
    /// First block, counted since formatting.
    start: u64,
    bytes: Vec<u8>,
}

impl LogWindow {
    /// The bytes from block `from` on, if `blocks` of them are in the window.
    fn get(&self, from: u64, blocks: u64) -> Option<&[u8]> {
        let start = narrow(from.checked_sub(self.start)?.checked_mul(BLOCK_BYTES)?);
        self.bytes.get(start..start.checked_add(narrow(blocks * BLOCK_BYTES))?)
    }

    /// Loads up to one buffer's worth from block `from` on.
    async fn load(
        &mut self,
        reader: &mut BlockReader<'_>,
        log: BlockExtent,
        from: u64,
    ) -> Result<(), DeviceError> {
        self.start = from;
        self.bytes.clear();
        let wanted = DEVICE_OPERATION_BLOCKS_MAX.min(log.count);
        let place = from % log.count;
        let before_end = wanted.min(log.count - place);
        for extent in [
            BlockExtent { start: log.start + place, count: before_end },
            BlockExtent { start: log.start, count: wanted - before_end },
        ] {
            if !extent.is_empty() {
                self.bytes.extend_from_slice(reader.read(extent).await?);
            }
        }
        Ok(())
    }
}

/// A group whose record is whole, but whose data may not be.
struct Doubtful {
    header: RecordHeader,
    changes: Vec<Change>,
}

pub(super) struct Replayed {
    pub(super) next: LogPosition,
    pub(super) records: u64,
    pub(super) dropped_tail: bool,
}

/// Steps 3 and 4 of the module head: applies the log to `state`.
async fn replay(
    reader: &mut BlockReader<'_>,
    superblock: &Superblock,
    state: &mut Recovering,
    tuning: Tuning,
) -> Result<Replayed, StobError> {
    let (regions, log) = (superblock.regions, superblock.regions.log);
    let end = superblock.replay.block + log.count;
    let mut window = LogWindow { start: superblock.replay.block, bytes: Vec::new() };
    let mut next = superblock.replay;
    let mut doubtful: Option<Doubtful> = None;
    let mut records = 0;
    while next.block < end {
        if window.get(next.block, 1).is_none() {
            window.load(reader, log, next.block).await?;
        }
        let Some(header) = window.get(next.block, 1).and_then(RecordHeader::parse) else { break };
        if header.position != next
            || header.format_id != superblock.format_id
            || header.version != superblock.version
            || next.block + header.blocks() > end
        {
            break;
        }
        // Most records are short: only one that the window cuts is read again, whole.
        if window.get(next.block, header.blocks()).is_none() {
            window.load(reader, log, next.block).await?;
        }
        let Some(body) = window.get(next.block, header.blocks()).and_then(|record| header.body(record))
        else {
            break;
        };
        let mut changes: Vec<Change> = Vec::new();
        let rest = apply_changes(
            body,
            &regions,
            |change| !is_of_checkpoint_only(change),
            |change| changes.push(change),
        )?;
        if !rest.is_empty() || wide(changes.len()) != u64::from(header.change_count) {
            return Err(damaged(Damage::Entry { kind: 0 }));
        }
        #[cfg(test)]
        if tuning.mutation == Some(Mutation::LosePunch) {
            changes.retain(|change| !matches!(change, Change::Punch { .. }));
        }
        // This record was written after the flush of the one before: that one is beyond doubt.
        if let Some(Doubtful { changes, .. }) = doubtful.take() {
            state.replay(reader, superblock, changes).await?;
            records += 1;
        }
        next = header.next();
        if header.kind == RecordKind::Group {
            doubtful = Some(Doubtful { header, changes });
        }
    }
    refuse_gap(reader, superblock, &mut window, next).await?;
    let mut dropped_tail = false;
    if let Some(Doubtful { header, changes }) = doubtful {
        #[allow(unused_mut)]
        let mut is_whole = data_is_whole(reader, &changes, tuning).await?;
        #[cfg(test)]
        if tuning.mutation == Some(Mutation::LoseRecord) {
            is_whole = false;
        }
        if is_whole {
            state.replay(reader, superblock, changes).await?;
            records += 1;
        } else {
            next = header.position;
            dropped_tail = true;
        }
    }
    Ok(Replayed { next, records, dropped_tail })
}

/// Looks for a record that proves a gap: one at least two places after the log's end. (One place after it may stand behind
/// an unflushed confirmation, and was never acknowledged then.)
async fn refuse_gap(
    reader: &mut BlockReader<'_>,
    superblock: &Superblock,
    window: &mut LogWindow,
    next: LogPosition,
) -> Result<(), StobError> {
    let log = superblock.regions.log;
    let end = superblock.replay.block + log.count;
    for block in next.block..end {
        if window.get(block, 1).is_none() {
            window.load(reader, log, block).await?;
        }
        if let Some(header) = window.get(block, 1).and_then(RecordHeader::parse)
            && header.format_id == superblock.format_id
            && header.version == superblock.version
            && header.position.sequence >= next.sequence + 2
        {
            return Err(damaged(Damage::Log { sequence: next.sequence, later: header.position.sequence }));
        }
    }
    Ok(())
}

/// True if every block that `changes` map matches its checksum. Error: the device cannot read them, which proves nothing.
async fn data_is_whole(
    reader: &mut BlockReader<'_>,
    changes: &[Change],
    tuning: Tuning,
) -> Result<bool, StobError> {
    #[cfg(test)]
    if tuning.mutation == Some(Mutation::TrustTail) {
        return Ok(true);
    }
    let _ = tuning;
    for change in changes {
        if let Change::Map { device_start, checksums, .. } = change {
            let extent = BlockExtent { start: *device_start, count: wide(checksums.len()) };
            let bytes = reader.read(extent).await?;
            let found = bytes.chunks_exact(narrow(BLOCK_BYTES)).map(crc32c);
            if !found.eq(checksums.iter().copied()) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// What a format may overwrite.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    /// Nothing.
    Blank,
    /// The same device of the same cluster.
    ThisDevice,
}

impl Domain {
    /// Makes a device an empty domain. The superblock is written last: a cut before that leaves a device that is not formatted.
    ///
    /// Errors: [`StobError::AlreadyFormatted`], [`StobError::Foreign`] (nothing is erased unasked), [`StobError::TooSmall`],
    /// [`StobError::Device`].
    pub async fn format(
        locality: &LocalityHandle,
        backend: Box<dyn Backend>,
        params: FormatParams,
    ) -> Result<Domain, StobError> {
        Domain::format_tuned(locality, backend, params, Tuning::default()).await
    }

    /// [`Domain::format`], also where this very device of this cluster is: all that is on it is given up. A cut before the end leaves a
    /// device that does not open, or is not formatted.
    ///
    /// Errors: those of [`Domain::format`]; [`StobError::AlreadyFormatted`] if it is another device.
    pub async fn format_again(
        locality: &LocalityHandle,
        backend: Box<dyn Backend>,
        params: FormatParams,
    ) -> Result<Domain, StobError> {
        Domain::format_over(locality, backend, params, Tuning::default(), Over::ThisDevice).await
    }

    #[cfg(test)]
    pub(crate) async fn format_over_tuned(
        locality: &LocalityHandle,
        backend: Box<dyn Backend>,
        params: FormatParams,
        tuning: Tuning,
    ) -> Result<Domain, StobError> {
        Domain::format_over(locality, backend, params, tuning, Over::ThisDevice).await
    }

    pub(crate) async fn format_tuned(
        locality: &LocalityHandle,
        backend: Box<dyn Backend>,
        params: FormatParams,
        tuning: Tuning,
    ) -> Result<Domain, StobError> {
        Domain::format_over(locality, backend, params, tuning, Over::Blank).await
    }

    async fn format_over(
        locality: &LocalityHandle,
        backend: Box<dyn Backend>,
        params: FormatParams,
        tuning: Tuning,
        over: Over,
    ) -> Result<Domain, StobError> {
        let device = Device::start(locality, backend);
        let size_blocks = device.geometry().size_blocks;
        let regions = match tuning.regions {
            Some(regions) => regions,
            None => Regions::for_device(size_blocks)?,
        };
        let buffer = locality.arena().alloc(RECORD_BYTES_MAX).await;
        let mut reader = BlockReader { device: &device, buffer: Some(buffer), locality: locality.clone() };
        // Above every copy that may be left of the old one, so that the first new copy wins; and another id than that one has, by which its
        // records and pages are told from new ones.
        let mut format_id = locality.random_u64();
        let sequence = match choose_superblock(&mut reader).await {
            Ok((found, _)) => {
                let is_same = found.device == params.device && found.cluster == params.cluster;
                if over == Over::Blank || !is_same {
                    return Err(StobError::AlreadyFormatted { device: found.device, cluster: found.cluster });
                }
                format_id = if format_id == found.format_id { !format_id } else { format_id };
                found.sequence + 1
            }
            Err(StobError::NotFormatted) => 1,
            // A format that was cut short leaves this, and whoever asks for it again gave up what was there.
            Err(StobError::Damaged { .. }) if over == Over::ThisDevice => 1,
            Err(error) => return Err(error),
        };
        let buffer = reader.buffer;
        let superblock = Superblock {
            version: FORMAT_VERSION,
            format_id,
            device: params.device,
            cluster: params.cluster,
            sequence,
            regions,
            checkpoint_area: 0,
            checkpoint_bytes: 0,
            replay: LogPosition { block: 0, sequence: 1, previous: 0 },
        };
        let replayed = Replayed { next: superblock.replay, records: 0, dropped_tail: false };
        let slot_bytes = regions.slot_blocks * BLOCK_BYTES - wide(PAGE_HEADER_BYTES);
        let page_bytes = tuning.page_bytes.unwrap_or(slot_bytes).min(slot_bytes);
        let start = Start {
            superblock,
            metadata: Metadata::new(&regions, page_bytes),
            free: FreeSpace::new(regions.data),
            slots: Slots::new(regions.slots()),
            replayed,
            repaired_superblock: false,
        };
        let mut committer = Committer::new(locality, device, start, buffer, tuning).await?;
        committer.write_superblocks(&superblock).await?;
        Ok(committer.start())
    }

    /// Opens a formatted device and recovers it. `expect`: which device it is, if the caller knows it; nothing is written to
    /// another one.
    ///
    /// Errors: [`StobError::NotFormatted`], [`StobError::Foreign`], [`StobError::Version`], [`StobError::Truncated`],
    /// [`StobError::OtherCluster`], [`StobError::WrongDevice`], [`StobError::Damaged`], [`StobError::Device`].
    pub async fn open(
        locality: &LocalityHandle,
        backend: Box<dyn Backend>,
        expect: Option<FormatParams>,
    ) -> Result<Domain, StobError> {
        Domain::open_tuned(locality, backend, expect, Tuning::default()).await
    }

    pub(crate) async fn open_tuned(
        locality: &LocalityHandle,
        backend: Box<dyn Backend>,
        expect: Option<FormatParams>,
        tuning: Tuning,
    ) -> Result<Domain, StobError> {
        let device = Device::start(locality, backend);
        let buffer = locality.arena().alloc(RECORD_BYTES_MAX).await;
        let mut reader = BlockReader { device: &device, buffer: Some(buffer), locality: locality.clone() };
        let start = load(&mut reader, expect, tuning).await?;
        let repaired_superblock = start.repaired_superblock;
        let buffer = reader.buffer;
        let mut committer = Committer::new(locality, device, start, buffer, tuning).await?;
        committer.end_recovery(repaired_superblock).await?;
        Ok(committer.start())
    }
}

/// Reads what a device holds, log included; writes nothing.
pub(super) async fn load(
    reader: &mut BlockReader<'_>,
    expect: Option<FormatParams>,
    tuning: Tuning,
) -> Result<Start, StobError> {
    let (superblock, repaired_superblock) = choose_superblock(reader).await?;
    if let Some(expect) = expect {
        if expect.cluster != superblock.cluster {
            return Err(StobError::OtherCluster { expected: expect.cluster, found: superblock.cluster });
        }
        if expect.device != superblock.device {
            return Err(StobError::WrongDevice { expected: expect.device, found: superblock.device });
        }
    }
    let Checkpoint { metadata, slots, free } = read_checkpoint(reader, &superblock, tuning).await?;
    let mut state = Recovering { metadata, free };
    let replayed = replay(reader, &superblock, &mut state, tuning).await?;
    let Recovering { metadata, free } = state;
    Ok(Start { superblock, metadata, free, slots, replayed, repaired_superblock })
}

/// What a committer starts from.
pub(super) struct Start {
    pub(super) superblock: Superblock,
    pub(super) metadata: Metadata,
    pub(super) free: FreeSpace,
    pub(super) slots: Slots,
    pub(super) replayed: Replayed,
    pub(super) repaired_superblock: bool,
}

impl Committer {
    pub(super) async fn new(
        locality: &LocalityHandle,
        device: Device,
        start: Start,
        buffer: Option<Buffer>,
        tuning: Tuning,
    ) -> Result<Committer, StobError> {
        let Start { superblock, metadata, free, slots, replayed, repaired_superblock } = start;
        #[allow(unused_mut)]
        let mut state = State::new(metadata, free, slots, &superblock.regions)?;
        let mut loads = Loads::default();
        let slot_blocks = superblock.regions.slot_blocks.max(SLOT_BLOCKS);
        for _ in 0..PAGE_READS_MAX {
            loads.buffers.push(locality.arena().alloc(narrow(slot_blocks * BLOCK_BYTES)).await);
        }
        #[cfg(test)]
        {
            state.skip_limbo = tuning.mutation == Some(Mutation::SkipLimbo);
        }
        let shared = Shared {
            locality: locality.clone(),
            device,
            superblock: Cell::new(superblock),
            state: RefCell::new(state),
            queue: RefCell::new(VecDeque::new()),
            work: Notify::new(),
            space_freed: Notify::new(),
            permits: Semaphore::new(TRANSACTIONS_WAITING_MAX),
            buffer_turn: Semaphore::new(1),
            status: Cell::new(Status::Open),
            is_stopping: Cell::new(false),
            in_flight: Cell::new(0),
            next_transaction: Cell::new(0),
            checkpoints: Cell::new(0),
            bad_blocks: Cell::new(0),
            groups: Cell::new(0),
            recovered: Recovered {
                records: replayed.records,
                dropped_tail: replayed.dropped_tail,
                repaired_superblock,
            },
            loads: RefCell::new(loads),
            page_loaded: Notify::new(),
            page_cache_bytes: tuning.page_cache_bytes.unwrap_or(PAGE_CACHE_BYTES),
            trace: RefCell::new(Trace::default()),
            #[cfg(test)]
            mutation: tuning.mutation,
        };
        Ok(Committer {
            shared: Rc::new(shared),
            next: replayed.next,
            tail_block: superblock.replay.block,
            incarnation: locality.random_u64(),
            is_doubtful: false,
            has_unflushed_record: false,
            buffer,
            scratch: Vec::new(),
        })
    }

    /// Steps 5 and 6 of the module head.
    pub(super) async fn end_recovery(&mut self, repair_superblock: bool) -> Result<(), StobError> {
        #[cfg(test)]
        if self.shared.is_mutated(Mutation::SkipBarrier) {
            return Ok(());
        }
        self.flush().await?;
        if self.shared.superblock.get().version == OLD_VERSION {
            // Writes both superblock copies. What is left of the log is of the old version, and so never replayed.
            self.checkpoint().await?;
        } else if repair_superblock {
            let superblock = self.shared.superblock.get();
            self.write_superblocks(&superblock).await?;
        }
        if !self.has_room_for_barrier() {
            self.checkpoint().await?;
        }
        self.write_barrier().await?;
        let log_blocks = self.shared.regions().log.count;
        if self.next.block - self.tail_block > log_blocks / CHECKPOINT_AT_PART {
            self.checkpoint().await?;
        }
        Ok(())
    }

    fn start(self) -> Domain {
        let shared = Rc::clone(&self.shared);
        let guard = Rc::new(Guard(Rc::clone(&shared)));
        // Detached: it ends when the guard is dropped, when the domain is closed, or with its locality.
        drop(shared.locality.spawn("stob committer", self.run()));
        Domain { shared, _guard: guard }
    }
}
