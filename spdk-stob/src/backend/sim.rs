//! A simulated disk with a volatile cache, that does what real disks may do when the power goes.
//!
//! [`SimDisk`] is the disk as an experimenter holds it: its platters survive [`SimDisk::crash`]. [`SimDisk::backend`] is a
//! cable to it, for one domain; a crash cuts every cable that was there. What a crash does to each 512-byte piece of each block
//! with unflushed writes: the piece becomes any of its versions since the last flush, the flushed one included. So writes
//! are lost, torn and reordered; **what was flushed or written through is never lost** (unless [`SimDisk::misdirect`] asks for it). A flush covers the writes that completed before
//! it was submitted, and no others. Operations complete in any order, after a latency of virtual time; all from one seed.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

use base::Instant;
use base::units::BLOCK_BYTES;

use super::{Backend, BlockDone, BlockOp, DeviceError, EIO, Geometry, check_range};

/// Linux error number of a full device.
const ENOSPC: i32 = 28;

#[allow(clippy::cast_possible_truncation)] // 4096
const BLOCK: usize = BLOCK_BYTES as usize;
/// What a disk writes whole.
const PIECE: usize = 512;

type Block = Box<[u8; BLOCK]>;

/// How the disk behaves.
#[derive(Clone, Debug)]
pub struct SimFaults {
    /// Shortest time of a read or write.
    pub latency_min: Duration,
    /// Longest time of a read or write.
    pub latency_max: Duration,
    /// Longest time of a flush; the shortest is half of it.
    pub flush_latency_max: Duration,
    /// Operations it takes at once.
    pub queue_depth: usize,
}

impl Default for SimFaults {
    fn default() -> SimFaults {
        SimFaults {
            latency_min: Duration::from_micros(10),
            latency_max: Duration::from_micros(120),
            flush_latency_max: Duration::from_micros(400),
            queue_depth: 32,
        }
    }
}

/// What the disk did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimStats {
    /// Reads completed.
    pub reads: u64,
    /// Writes completed.
    pub writes: u64,
    /// Of the writes, those that were durable when they completed.
    pub writes_through: u64,
    /// Flushes completed.
    pub flushes: u64,
    /// Crashes.
    pub crashes: u64,
    /// Pieces of 512 bytes that a crash took back to an older version.
    pub lost_pieces: u64,
    /// Blocks that a crash left with pieces of different versions.
    pub torn_blocks: u64,
    /// Blocks that a crash wrote to another place.
    pub misdirected_blocks: u64,
}

struct Version {
    /// Counter of completed writes when this one completed; `u64::MAX` for one in flight at a crash.
    order: u64,
    bytes: Block,
}

struct Queued {
    op: BlockOp,
    token: u64,
    cable: u64,
    /// Writes completed when this was submitted: what a flush covers.
    completed_writes: u64,
}

struct Platters {
    size_blocks: u64,
    durable: BTreeMap<u64, Block>,
    /// Oldest first.
    volatile: BTreeMap<u64, Vec<Version>>,
    queue: BTreeMap<(Instant, u64), Queued>,
    ready: BTreeMap<u64, Vec<BlockDone>>,
    random: fastrand::Rng,
    faults: SimFaults,
    now: Instant,
    submitted: u64,
    completed_writes: u64,
    cable: u64,
    cables_from: u64,
    slow: u32,
    /// Bytes of a second, one operation after the other, and when those that were submitted are through; no bound if `None`.
    rate: Option<(u64, Instant)>,
    is_failed: bool,
    flushes_fail: bool,
    writes_left: Option<(u64, i32)>,
    misdirects: bool,
    bad_blocks: BTreeSet<u64>,
    stats: SimStats,
}

impl Platters {
    fn duration(&mut self, op: &BlockOp) -> Duration {
        let (min, max) = match op {
            BlockOp::Flush => (self.faults.flush_latency_max / 2, self.faults.flush_latency_max),
            _ => (self.faults.latency_min, self.faults.latency_max),
        };
        let spread = u64::try_from(max.saturating_sub(min).as_nanos()).unwrap_or(u64::MAX);
        (min + Duration::from_nanos(self.random.u64(0..=spread))) * self.slow
    }

    /// When the bytes of an operation that is submitted now are through, at the rate that there is.
    fn through(&mut self, op: &BlockOp) -> Instant {
        let bytes = match op {
            BlockOp::Flush | BlockOp::Discard { .. } => 0,
            _ => op.extent().count * BLOCK_BYTES,
        };
        let now = self.now;
        match &mut self.rate {
            None => now,
            Some((bytes_per_second, through)) => {
                let time = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / *bytes_per_second);
                *through = now.max(*through) + time;
                *through
            }
        }
    }

    fn view(&self, block: u64) -> Option<&Block> {
        let newest =
            self.volatile.get(&block).and_then(|versions| versions.last()).map(|version| &version.bytes);
        newest.or_else(|| self.durable.get(&block))
    }

    fn put(&mut self, start_block: u64, parts: &[runtime::SharedBuffer], order: u64) {
        let mut block = start_block;
        for part in parts {
            for bytes in part.chunks_exact(BLOCK) {
                // A copy with no zeros before it: it is made for every block that is written.
                let copy: Block = bytes.to_vec().into_boxed_slice().try_into().expect("a whole block");
                self.volatile.entry(block).or_default().push(Version { order, bytes: copy });
                block += 1;
            }
        }
    }

    fn execute(&mut self, queued: Queued) -> BlockDone {
        let Queued { op, token, completed_writes, .. } = queued;
        let eio = DeviceError::Errno { operation: op.operation(), extent: op.extent(), errno: EIO };
        if let Err(error) = check_range(&op, self.size_blocks) {
            return BlockDone { token, result: Err(error), buffer: op.into_buffer() };
        }
        let mut fails = self.is_failed;
        match &op {
            BlockOp::Read { .. } => {
                let extent = op.extent();
                fails |= self.bad_blocks.range(extent.start..extent.end()).next().is_some();
            }
            BlockOp::Write { .. } | BlockOp::WriteThrough { .. } => {
                if let Some((left, errno)) = &mut self.writes_left {
                    if *left == 0 {
                        let (operation, extent) = (op.operation(), op.extent());
                        let error = DeviceError::Errno { operation, extent, errno: *errno };
                        return BlockDone { token, result: Err(error), buffer: None };
                    }
                    *left -= 1;
                }
            }
            BlockOp::Flush => fails |= self.flushes_fail,
            BlockOp::Discard { .. } => {}
        }
        if fails {
            return BlockDone { token, result: Err(eio), buffer: op.into_buffer() };
        }
        match op {
            BlockOp::Read { start_block, mut buffer } => {
                for (block, bytes) in (start_block..).zip(buffer.chunks_exact_mut(BLOCK)) {
                    match self.view(block) {
                        Some(content) => bytes.copy_from_slice(&content[..]),
                        None => bytes.fill(0),
                    }
                }
                self.stats.reads += 1;
                BlockDone { token, result: Ok(()), buffer: Some(buffer) }
            }
            BlockOp::Write { start_block, parts } => {
                self.completed_writes += 1;
                self.put(start_block, &parts, self.completed_writes);
                self.stats.writes += 1;
                BlockDone { token, result: Ok(()), buffer: None }
            }
            BlockOp::WriteThrough { start_block, parts } => {
                self.completed_writes += 1;
                self.put(start_block, &parts, self.completed_writes);
                let bytes: usize = parts.iter().map(|part| part.len()).sum();
                for block in (start_block..).take(bytes / BLOCK) {
                    if let Some(newest) = self.volatile.remove(&block).and_then(|mut versions| versions.pop())
                    {
                        self.durable.insert(block, newest.bytes);
                    }
                }
                self.stats.writes += 1;
                self.stats.writes_through += 1;
                BlockDone { token, result: Ok(()), buffer: None }
            }
            BlockOp::Flush => {
                self.settle(completed_writes);
                self.stats.flushes += 1;
                BlockDone { token, result: Ok(()), buffer: None }
            }
            BlockOp::Discard { .. } => BlockDone { token, result: Ok(()), buffer: None },
        }
    }

    /// Makes the writes durable that completed as one of the first `covered`.
    fn settle(&mut self, covered: u64) {
        let durable = &mut self.durable;
        self.volatile.retain(|&block, versions| {
            let settled = versions.iter().take_while(|version| version.order <= covered).count();
            if let Some(newest) = versions.drain(..settled).next_back() {
                durable.insert(block, newest.bytes);
            }
            !versions.is_empty()
        });
    }

    /// Cuts every cable; the disk keeps its power and its cache. What was in flight happened or not, each on its own.
    fn restart(&mut self) {
        for (_, queued) in std::mem::take(&mut self.queue) {
            if self.random.bool() {
                self.execute(queued);
            }
        }
        self.ready.clear();
        self.cables_from = self.cable + 1;
    }

    fn crash(&mut self) {
        // What was in flight may have reached the platters too, in whole or in part.
        for (_, queued) in std::mem::take(&mut self.queue) {
            if let BlockOp::Write { start_block, parts } | BlockOp::WriteThrough { start_block, parts } =
                queued.op
                && queued.cable >= self.cables_from
            {
                self.put(start_block, &parts, u64::MAX);
            }
        }
        if self.misdirects && !self.volatile.is_empty() {
            let at = self.random.usize(0..self.volatile.len());
            let lost = self.volatile.keys().nth(at).copied();
            let versions = lost.and_then(|block| self.volatile.remove(&block)).unwrap_or_default();
            let target = match self.durable.len() {
                0 => None,
                count => self.durable.keys().nth(self.random.usize(0..count)).copied(),
            };
            if let (Some(target), Some(version)) = (target, versions.into_iter().next_back()) {
                self.volatile.remove(&target);
                self.durable.insert(target, version.bytes);
                self.stats.misdirected_blocks += 1;
            }
        }
        // One crash in eight keeps all, one in eight nothing, two keep or lose whole blocks: clean cuts find bugs too.
        let manner = self.random.u8(0..8);
        for (block, versions) in std::mem::take(&mut self.volatile) {
            let flushed = self.durable.remove(&block).unwrap_or_else(|| Box::new([0; BLOCK]));
            let mut all = vec![flushed];
            all.extend(versions.into_iter().map(|version| version.bytes));
            let newest = all.len() - 1;
            let whole_block = self.random.usize(0..=newest);
            let mut result: Block = Box::new([0; BLOCK]);
            let mut chosen = BTreeSet::new();
            for piece in 0..BLOCK / PIECE {
                let version = match manner {
                    0 => newest,
                    1 => 0,
                    2 | 3 => whole_block,
                    _ => self.random.usize(0..=newest),
                };
                let range = piece * PIECE..(piece + 1) * PIECE;
                result[range.clone()].copy_from_slice(&all[version][range]);
                chosen.insert(version);
                self.stats.lost_pieces += u64::from(version < newest);
            }
            self.stats.torn_blocks += u64::from(chosen.len() > 1);
            self.durable.insert(block, result);
        }
        self.ready.clear();
        self.cables_from = self.cable + 1;
        self.stats.crashes += 1;
    }
}

/// A simulated disk: clones are the same disk.
#[derive(Clone)]
pub struct SimDisk(Rc<RefCell<Platters>>);

impl SimDisk {
    /// A disk of `size_blocks`, all zero.
    #[must_use]
    pub fn new(seed: u64, size_blocks: u64, faults: SimFaults) -> SimDisk {
        SimDisk(Rc::new(RefCell::new(Platters {
            size_blocks,
            durable: BTreeMap::new(),
            volatile: BTreeMap::new(),
            queue: BTreeMap::new(),
            ready: BTreeMap::new(),
            random: fastrand::Rng::with_seed(seed),
            faults,
            now: Instant::ZERO,
            submitted: 0,
            completed_writes: 0,
            cable: 0,
            cables_from: 0,
            slow: 1,
            rate: None,
            is_failed: false,
            flushes_fail: false,
            writes_left: None,
            misdirects: false,
            bad_blocks: BTreeSet::new(),
            stats: SimStats::default(),
        })))
    }

    /// A new cable to the disk, for one domain.
    #[must_use]
    pub fn backend(&self) -> SimBackend {
        let mut platters = self.0.borrow_mut();
        platters.cable += 1;
        SimBackend { platters: Rc::clone(&self.0), cable: platters.cable }
    }

    /// The power goes. Cables that were there stay silent for ever.
    pub fn crash(&self) {
        self.0.borrow_mut().crash();
    }

    /// The process dies, the power stays: cables are cut, and what the cache holds is still there for the next one, unflushed.
    pub fn restart(&self) {
        self.0.borrow_mut().restart();
    }

    /// True: each access fails with EIO, until set to false.
    pub fn fail_with_eio(&self, is_failed: bool) {
        self.0.borrow_mut().is_failed = is_failed;
    }

    /// True: each flush fails with EIO.
    pub fn fail_flushes(&self, fail: bool) {
        self.0.borrow_mut().flushes_fail = fail;
    }

    /// After `count` more writes each one fails with EIO; `None` heals.
    pub fn fail_writes_after(&self, count: Option<u64>) {
        self.0.borrow_mut().writes_left = count.map(|count| (count, EIO));
    }

    /// After `count` more writes each one fails with ENOSPC, as on a thinly provisioned disk that is full; `None` heals.
    pub fn fill_up_after(&self, count: Option<u64>) {
        self.0.borrow_mut().writes_left = count.map(|count| (count, ENOSPC));
    }

    /// True: each crash writes one unflushed block to the place of another one instead of its own.
    pub fn misdirect(&self, misdirects: bool) {
        self.0.borrow_mut().misdirects = misdirects;
    }

    /// Reads of `block` fail with EIO from now on.
    pub fn fail_block(&self, block: u64) {
        self.0.borrow_mut().bad_blocks.insert(block);
    }

    /// Operations submitted from now on take `factor` times as long.
    pub fn slow_down(&self, factor: u32) {
        self.0.borrow_mut().slow = factor;
    }

    /// From now on it reads and writes so many bytes in a second, at least one, one operation after the other.
    pub fn limit_rate(&self, bytes_per_second: u64) {
        let mut platters = self.0.borrow_mut();
        platters.rate = Some((bytes_per_second.max(1), platters.now));
    }

    /// True if operations submitted now take longer than they did at first.
    #[must_use]
    pub fn is_slow(&self) -> bool {
        self.0.borrow().slow > 1
    }

    /// Flips a bit (0 to 32767) of `block` on the platters, silently.
    pub fn rot(&self, block: u64, bit: usize) {
        let mut bytes = self.content(block);
        bytes[bit / 8] ^= 1 << (bit % 8);
        self.set_content(block, &bytes);
    }

    /// Makes the disk smaller.
    pub fn shrink(&self, size_blocks: u64) {
        self.0.borrow_mut().size_blocks = size_blocks;
    }

    /// The bytes that a read of `block` would give.
    #[must_use]
    pub fn content(&self, block: u64) -> Vec<u8> {
        self.0.borrow().view(block).map_or_else(|| vec![0; BLOCK], |bytes| bytes.to_vec())
    }

    /// Replaces the content of `block`, durably, as somebody else's program would.
    pub fn set_content(&self, block: u64, bytes: &[u8]) {
        let mut copy: Block = Box::new([0; BLOCK]);
        let count = bytes.len().min(BLOCK);
        copy[..count].copy_from_slice(&bytes[..count]);
        let mut platters = self.0.borrow_mut();
        platters.volatile.remove(&block);
        platters.durable.insert(block, copy);
    }

    /// What the disk did so far.
    #[must_use]
    pub fn stats(&self) -> SimStats {
        self.0.borrow().stats
    }
}

/// A cable to a [`SimDisk`].
pub struct SimBackend {
    platters: Rc<RefCell<Platters>>,
    cable: u64,
}

impl Backend for SimBackend {
    fn geometry(&self) -> Geometry {
        Geometry { size_blocks: self.platters.borrow().size_blocks }
    }

    fn try_submit(&mut self, op: BlockOp, token: u64) -> Result<(), BlockOp> {
        let mut platters = self.platters.borrow_mut();
        if self.cable < platters.cables_from {
            return Ok(()); // the cable is cut: nothing arrives and nothing comes back
        }
        if platters.queue.len() >= platters.faults.queue_depth {
            return Err(op);
        }
        let due = (platters.now + platters.duration(&op)).max(platters.through(&op));
        platters.submitted += 1;
        let order = platters.submitted;
        let completed_writes = platters.completed_writes;
        platters.queue.insert((due, order), Queued { op, token, cable: self.cable, completed_writes });
        Ok(())
    }

    fn flush_queue(&mut self) {}

    fn poll(&mut self, now: Instant, done: &mut Vec<BlockDone>) -> usize {
        let mut platters = self.platters.borrow_mut();
        platters.now = platters.now.max(now);
        while let Some(entry) = platters.queue.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let queued = entry.remove();
            let cable = queued.cable;
            let finished = platters.execute(queued);
            platters.ready.entry(cable).or_default().push(finished);
        }
        if platters.ready.is_empty() {
            return 0;
        }
        let ready = platters.ready.remove(&self.cable).unwrap_or_default();
        let count = ready.len();
        done.extend(ready);
        count
    }

    fn next_deadline(&self) -> Option<Instant> {
        let platters = self.platters.borrow();
        if !platters.ready.is_empty() && platters.ready.contains_key(&self.cable) {
            return Some(Instant::ZERO);
        }
        if self.cable < platters.cables_from {
            return None;
        }
        platters.queue.first_key_value().map(|((due, _), _)| *due)
    }

    fn wait_fd(&self) -> Option<RawFd> {
        None
    }
}

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimDisk({} blocks)", self.0.borrow().size_blocks)
    }
}

const _: () = assert!(BLOCK.is_multiple_of(PIECE));

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::{Arena, ArenaConfig, SharedBuffer};
    use smallvec::smallvec;

    fn buffer(arena: &Arena, byte: u8) -> SharedBuffer {
        let mut buffer = arena.try_alloc(BLOCK).unwrap();
        buffer.fill(byte);
        buffer.freeze()
    }

    fn run(backend: &mut SimBackend, op: BlockOp) -> BlockDone {
        backend.try_submit(op, 1).unwrap();
        let mut done = Vec::new();
        let due = backend.next_deadline().unwrap();
        assert_eq!(backend.poll(due, &mut done), 1);
        done.pop().unwrap()
    }

    #[test]
    fn a_disk_with_a_rate_takes_one_operation_after_the_other() {
        let arena = Arena::new(ArenaConfig { capacity_bytes: 4 << 20 }).unwrap();
        let disk = SimDisk::new(1, 64, SimFaults::default());
        let mut backend = disk.backend();
        disk.limit_rate(1 << 20);
        let end = |disk: &SimDisk| disk.0.borrow().queue.last_key_value().map(|((due, _), _)| *due);
        for block in 0..16 {
            let parts = smallvec![buffer(&arena, 1)];
            backend.try_submit(BlockOp::Write { start_block: block, parts }, block).unwrap();
        }
        // 64 KiB, and not the fraction of a millisecond that one operation takes.
        assert_eq!(end(&disk), Some(Instant::ZERO + Duration::from_micros(62_500)));
        let (mut done, half) = (Vec::new(), Instant::ZERO + Duration::from_micros(31_250));
        assert_eq!(backend.poll(half, &mut done), 8);
        // What comes when it has nothing to do begins then.
        let later = Instant::ZERO + Duration::from_secs(1);
        assert_eq!(backend.poll(later, &mut done), 8);
        backend
            .try_submit(BlockOp::Write { start_block: 0, parts: smallvec![buffer(&arena, 2)] }, 99)
            .unwrap();
        assert_eq!(end(&disk), Some(later + Duration::from_nanos(3_906_250)));
    }

    #[test]
    fn a_crash_keeps_what_was_flushed_and_only_that_for_sure() {
        let arena = Arena::new(ArenaConfig { capacity_bytes: 4 << 20 }).unwrap();
        let (mut lost, mut kept, mut torn) = (0, 0, 0);
        for seed in 0..200 {
            let disk = SimDisk::new(seed, 16, SimFaults::default());
            let mut backend = disk.backend();
            let write =
                |byte, block| BlockOp::Write { start_block: block, parts: smallvec![buffer(&arena, byte)] };
            run(&mut backend, write(1, 3));
            run(&mut backend, BlockOp::Flush);
            run(&mut backend, write(2, 3));
            run(&mut backend, write(9, 4));
            assert_eq!(disk.content(3), vec![2; BLOCK]);
            disk.crash();
            let content = disk.content(3);
            assert!(content.iter().all(|byte| [1, 2].contains(byte)), "seed {seed}");
            match (content.contains(&1), content.contains(&2)) {
                (true, true) => torn += 1,
                (true, false) => lost += 1,
                _ => kept += 1,
            }
            assert_eq!(backend.next_deadline(), None, "the cable is cut");
            assert_eq!(run(&mut disk.backend(), BlockOp::Flush).result, Ok(()));
        }
        assert!(lost > 20 && kept > 20 && torn > 20, "{lost} {kept} {torn}");
    }

    #[test]
    fn a_flush_covers_only_writes_completed_before_it_was_submitted() {
        let arena = Arena::new(ArenaConfig { capacity_bytes: 4 << 20 }).unwrap();
        let mut uncovered = 0;
        for seed in 0..100 {
            let disk = SimDisk::new(seed, 16, SimFaults::default());
            let mut backend = disk.backend();
            let parts = smallvec![buffer(&arena, 5)];
            backend.try_submit(BlockOp::Write { start_block: 1, parts }, 1).unwrap();
            backend.try_submit(BlockOp::Flush, 2).unwrap();
            let mut done = Vec::new();
            backend.poll(Instant::from_nanos(1_000_000_000), &mut done);
            assert_eq!(done.len(), 2);
            disk.crash();
            uncovered += u32::from(disk.content(1) != vec![5; BLOCK]);
        }
        assert!(uncovered > 0);
    }

    #[test]
    fn the_same_seed_makes_the_same_disk() {
        let arena = Arena::new(ArenaConfig { capacity_bytes: 4 << 20 }).unwrap();
        let content = |seed| {
            let disk = SimDisk::new(seed, 64, SimFaults::default());
            let mut backend = disk.backend();
            for block in 0..20u8 {
                let parts = smallvec![buffer(&arena, block + 1)];
                run(&mut backend, BlockOp::Write { start_block: u64::from(block), parts });
            }
            disk.crash();
            (0..20).map(|block| disk.content(block)).collect::<Vec<_>>()
        };
        assert_eq!(content(11), content(11));
        assert!((0..20).any(|seed| content(seed) != content(11)));
    }

    #[test]
    fn faults_are_answered_with_eio() {
        let arena = Arena::new(ArenaConfig { capacity_bytes: 4 << 20 }).unwrap();
        let disk = SimDisk::new(1, 16, SimFaults::default());
        let mut backend = disk.backend();
        disk.fail_block(2);
        let read = |block| BlockOp::Read { start_block: block, buffer: arena.try_alloc(BLOCK).unwrap() };
        assert!(matches!(run(&mut backend, read(2)).result, Err(DeviceError::Errno { errno: EIO, .. })));
        assert!(run(&mut backend, read(3)).result.is_ok());
        disk.fail_flushes(true);
        assert!(run(&mut backend, BlockOp::Flush).result.is_err());
        assert!(matches!(
            run(&mut backend, read(16)).result,
            Err(DeviceError::OutOfRange { size_blocks: 16, .. })
        ));
    }
}
