//! A locality in virtual time, and small things that the domain's tests share.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use base::checksum::crc32c;
use base::{BlockExtent, Fid, FidType, Instant};
use runtime::{Arena, ArenaConfig, Counters, Locality, LocalityConfig, LocalityHandle, SharedBuffer};

use crate::domain::mutation::Mutation;
use crate::domain::opening::Tuning;
use crate::format::regions::{Regions, Sizes};
use crate::{Domain, FormatParams, SimDisk, StobError, StobId, WritePiece};

/// Turns that a test may take before it counts as stuck.
const TURNS_MAX: u64 = 2_000_000;

pub(crate) struct SimLocality {
    pub(crate) locality: Locality,
    pub(crate) now: Instant,
    turns: u64,
}

impl SimLocality {
    pub(crate) fn new(seed: u64, now: Instant, arena: &Arena) -> SimLocality {
        let config = LocalityConfig {
            index: 0,
            name: "test".to_owned(),
            seed,
            counters: Arc::new(Counters::default()),
            arena: arena.clone(),
            crowd: None,
        };
        SimLocality { locality: Locality::new(config), now, turns: 0 }
    }

    pub(crate) fn handle(&self) -> LocalityHandle {
        self.locality.handle()
    }

    /// One turn; the clock moves on when there is nothing else to do. False if nothing will ever happen.
    pub(crate) fn step(&mut self) -> bool {
        self.turns += 1;
        assert!(self.turns < TURNS_MAX, "stuck: too many turns");
        let turn = self.locality.turn(self.now);
        if !turn.progressed {
            match turn.next_deadline {
                Some(at) => self.now = self.now.max(at),
                None => return false,
            }
        }
        true
    }

    pub(crate) fn block<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        let slot = Rc::new(RefCell::new(None));
        let filled = Rc::clone(&slot);
        drop(self.handle().spawn("test", async move {
            let value = future.await;
            *filled.borrow_mut() = Some(value);
        }));
        loop {
            if let Some(value) = slot.borrow_mut().take() {
                return value;
            }
            assert!(self.step(), "stuck: nothing will ever happen");
        }
    }
}

pub(crate) fn arena() -> Arena {
    Arena::new(ArenaConfig { capacity_bytes: 64 << 20 }).unwrap()
}

pub(crate) const PARAMS: FormatParams =
    FormatParams { device: Fid::new(FidType::Device, 0, 7), cluster: 0xc1 };

pub(crate) const fn stob(number: u64) -> StobId {
    StobId { fid: Fid::new(FidType::Component, 0, number), generation: 0 }
}

pub(crate) const fn extent(start: u64, count: u64) -> BlockExtent {
    BlockExtent { start, count }
}

/// Small regions, so that the log wraps and checkpoints come often.
pub(crate) fn small_regions(data_blocks: u64) -> Regions {
    let sizes = Sizes { lead: 1, log: 32, checkpoint: 8, pages: 2 * 64, slot: 2 };
    Regions::with_sizes(1 + 32 + 2 * 8 + 2 * 64 + data_blocks + 1, sizes).unwrap()
}

/// Small pages, and none of them stays in memory: so each operation splits, reads and drops some.
pub(crate) fn tuned(regions: Regions, mutation: Option<Mutation>) -> Tuning {
    Tuning { regions: Some(regions), mutation, page_bytes: Some(200), page_cache_bytes: Some(0) }
}

/// The same for a device that is formatted.
pub(crate) fn small_pages(mutation: Option<Mutation>) -> Tuning {
    Tuning { regions: None, mutation, page_bytes: Some(200), page_cache_bytes: Some(0) }
}

/// The content of a block that was written by operation `id` as its block `index`.
pub(crate) fn block_content(id: u64, index: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(id.wrapping_mul(1000) + index);
    (0..512).flat_map(|_| random.u64(..).to_le_bytes()).collect()
}

pub(crate) fn buffer(arena: &Arena, bytes: &[u8]) -> SharedBuffer {
    let mut buffer = arena.try_alloc(bytes.len()).expect("the test's arena is large enough");
    buffer.copy_from_slice(bytes);
    buffer.freeze()
}

/// Pieces of `(start, blocks)` and their checksums, with the content of operation `id`.
pub(crate) fn pieces(arena: &Arena, id: u64, places: &[(u64, u64)]) -> (Vec<WritePiece>, Vec<u32>) {
    let (mut pieces, mut checksums, mut index) = (Vec::new(), Vec::new(), 0);
    for &(start_block, blocks) in places {
        let mut bytes = Vec::new();
        for _ in 0..blocks {
            let content = block_content(id, index);
            checksums.push(crc32c(&content));
            bytes.extend(content);
            index += 1;
        }
        pieces.push(WritePiece { start_block, data: buffer(arena, &bytes) });
    }
    (pieces, checksums)
}

/// A formatted domain on a new simulated disk.
pub(crate) fn formatted(seed: u64, arena: &Arena, data_blocks: u64) -> (SimLocality, SimDisk, Domain) {
    let regions = small_regions(data_blocks);
    let disk = SimDisk::new(seed, regions.size_blocks, crate::SimFaults::default());
    let mut sim = SimLocality::new(seed, Instant::ZERO, arena);
    let (handle, backend) = (sim.handle(), Box::new(disk.backend()));
    let domain =
        sim.block(async move { Domain::format_tuned(&handle, backend, PARAMS, tuned(regions, None)).await });
    (sim, disk, domain.unwrap())
}

/// The power goes: the locality with all its tasks, and what the disk had not flushed. Then the device is opened again.
pub(crate) fn crash_and_open(
    sim: SimLocality,
    disk: &SimDisk,
    arena: &Arena,
) -> (SimLocality, Result<Domain, StobError>) {
    let now = sim.now;
    drop(sim);
    disk.crash();
    open(now, disk, arena, None)
}

pub(crate) fn open(
    now: Instant,
    disk: &SimDisk,
    arena: &Arena,
    mutation: Option<Mutation>,
) -> (SimLocality, Result<Domain, StobError>) {
    let mut sim = SimLocality::new(now.as_nanos(), now, arena);
    let (handle, backend) = (sim.handle(), Box::new(disk.backend()));
    let tuning = small_pages(mutation);
    let domain = sim.block(async move { Domain::open_tuned(&handle, backend, Some(PARAMS), tuning).await });
    (sim, domain)
}
