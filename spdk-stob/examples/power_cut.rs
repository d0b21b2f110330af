//! Work whose every acknowledgement is written down elsewhere, and the proof after a power cut that all of it is there.
//!
//! `power_cut format DEVICE`, then `power_cut work DEVICE JOURNAL SECONDS` on the machine that loses its power, then
//! `power_cut verify DEVICE JOURNAL` on what is left. The journal is a file that outlives the cut (on the host of a virtual machine):
//! a line for each acknowledgement, `LANE VERSION`, appended before anything else happens in that lane.
//!
//! A lane does one thing after the other, so after a cut it stands at the last version in the journal or at a later one
//! (its acknowledgement was under way). Lanes overwrite a stob of their own with blocks that carry lane, version and place; replace
//! the value of a key; or make one stob and delete an older one in turn. Whole or absent: all blocks of a lane have one version.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::checksum::crc32c;
use base::units::{BLOCK_BYTES, MIB, narrow};
use base::{BlockExtent, Fid, FidType};
use runtime::{Arena, ArenaConfig, Counters, Locality, LocalityConfig, LocalityHandle, MonotonicClock};
use spdk_stob::{Domain, FormatParams, StobError, StobId, TreeId, WritePiece, is_nvme_address, open_device};

type Failure = Box<dyn std::error::Error>;

const PARAMS: FormatParams = FormatParams { device: Fid::new(FidType::Device, 0, 0xc07), cluster: 0xc07 };
const TREE: TreeId = TreeId(9);
/// Lanes that overwrite: of 1 to 225 blocks.
const OVERWRITING: u64 = 8;
/// Lanes that replace the value of a key.
const KEYS: u64 = 4;
/// Lanes that make and delete.
const MAKING: u64 = 2;
const LANES: u64 = OVERWRITING + KEYS + MAKING;
/// Blocks of a stob of a making lane.
const MADE_BLOCKS: u64 = 3;
/// A making lane keeps so many.
const KEPT: u64 = 4;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["format", device] => on_device(device, |node| Box::pin(format(node))),
        ["work", device, journal, seconds] => {
            let file = OpenOptions::new().create(true).append(true).open(journal)?;
            let time = Duration::from_secs(seconds.parse()?);
            on_device(device, move |node| Box::pin(work(node, Rc::new(file), time)))
        }
        ["verify", device, journal] => {
            let known = read_journal(&std::fs::read_to_string(journal)?)?;
            on_device(device, move |node| Box::pin(verify(node, known)))
        }
        _ => {
            Err("usage: power_cut format DEVICE | work DEVICE JOURNAL SECONDS | verify DEVICE JOURNAL".into())
        }
    }
}

/// The highest version of each lane. A last line without its end was cut with the power.
fn read_journal(text: &str) -> Result<BTreeMap<u64, u64>, Failure> {
    let mut known = BTreeMap::new();
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let (lane, version) = line.trim().split_once(' ').ok_or_else(|| format!("bad line {line:?}"))?;
        let (lane, version): (u64, u64) = (lane.parse()?, version.parse()?);
        let last: &mut u64 = known.entry(lane).or_default();
        *last = version.max(*last);
    }
    Ok(known)
}

#[derive(Clone)]
struct Node {
    handle: LocalityHandle,
    arena: Arena,
    device: String,
}

impl Node {
    fn backend(&self) -> Result<Box<dyn spdk_stob::Backend>, StobError> {
        open_device(&self.device, spdk_stob::OpenOptions::default())
    }
}

type Job = std::pin::Pin<Box<dyn Future<Output = Result<(), Failure>>>>;

fn on_device(device: &str, job: impl FnOnce(Node) -> Job) -> Result<(), Failure> {
    let config = ArenaConfig { capacity_bytes: 128 * MIB };
    let in_huge_pages = is_nvme_address(device.as_ref()).then(|| Arena::in_huge_pages(config).ok()).flatten();
    let arena = in_huge_pages.map_or_else(|| Arena::new(config), Ok)?;
    let mut locality = Locality::new(LocalityConfig {
        index: 0,
        name: "power_cut".to_owned(),
        seed: 1,
        counters: Arc::new(Counters::default()),
        arena: arena.clone(),
        crowd: None,
    });
    let node = Node { handle: locality.handle(), arena, device: device.to_owned() };
    locality.block_on(&MonotonicClock::start(), job(node))?
}

async fn format(node: Node) -> Result<(), Failure> {
    let domain = Domain::format(&node.handle, node.backend()?, PARAMS).await?;
    println!("formatted: {:?}", domain.info());
    Ok(domain.close().await?)
}

fn lane_stob(lane: u64, number: u64) -> StobId {
    StobId { fid: Fid::new(FidType::Component, lane, number), generation: 0 }
}

fn lane_blocks(lane: u64) -> u64 {
    if lane < OVERWRITING { 1 + lane * 32 } else { MADE_BLOCKS }
}

/// Eight-byte words that say whose the block is, followed by a sequence seeded by them.
fn fill(block: &mut [u8], lane: u64, version: u64, place: u64) {
    let mut random = fastrand::Rng::with_seed(lane << 56 ^ version << 16 ^ place);
    random.fill(block);
    for (chunk, word) in block.chunks_exact_mut(8).zip([lane, version, place]) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
}

/// Blocks of a lane's version, in buffers of at most 64 blocks.
async fn content(node: &Node, lane: u64, version: u64) -> (Vec<WritePiece>, Vec<u32>) {
    let (mut pieces, mut checksums) = (Vec::new(), Vec::new());
    let blocks = lane_blocks(lane);
    for start_block in (0..blocks).step_by(64) {
        let count = (blocks - start_block).min(64);
        let mut buffer = node.arena.alloc(narrow(count * BLOCK_BYTES)).await;
        for (index, block) in (0..).zip(buffer.chunks_exact_mut(narrow(BLOCK_BYTES))) {
            fill(block, lane, version, start_block + index);
            checksums.push(crc32c(block));
        }
        pieces.push(WritePiece { start_block, data: buffer.freeze() });
    }
    (pieces, checksums)
}

/// The version that all blocks of a stob have, or what is wrong with them.
async fn found(domain: &Domain, stob: StobId, lane: u64) -> Result<u64, Failure> {
    let mut versions = BTreeMap::<u64, u64>::new();
    for start in (0..lane_blocks(lane)).step_by(64) {
        let extent = BlockExtent { start, count: (lane_blocks(lane) - start).min(64) };
        let outcome = domain.read(stob, &[extent]).await?;
        let absent: u64 = outcome.absent.iter().map(|extent| extent.count).sum();
        if absent > 0 {
            *versions.entry(0).or_default() += absent;
        }
        let blocks = outcome.parts.iter().flat_map(|part| part.chunks_exact(narrow(BLOCK_BYTES)));
        for (block, place) in blocks.zip(start..) {
            if outcome
                .absent
                .iter()
                .any(|extent| (extent.start..extent.start + extent.count).contains(&place))
            {
                continue;
            }
            let version = u64::from_le_bytes(block[8..16].try_into()?);
            let mut wanted = vec![0; narrow(BLOCK_BYTES)];
            fill(&mut wanted, lane, version, place);
            if block != wanted {
                return Err(format!("lane {lane}: block {place} holds what was never written there").into());
            }
            *versions.entry(version).or_default() += 1;
        }
    }
    match versions.into_iter().collect::<Vec<_>>().as_slice() {
        [(version, _)] => Ok(*version),
        several => {
            Err(format!("lane {lane}: a write is there in part: versions and blocks {several:?}").into())
        }
    }
}

fn key(lane: u64) -> Vec<u8> {
    format!("lane {lane}").into_bytes()
}

fn value(lane: u64, version: u64) -> Vec<u8> {
    let mut bytes = vec![0; narrow(24 + version % 900)];
    fill(&mut bytes, lane, version, 0);
    bytes
}

/// One step of a lane: from its version to the next.
async fn step(node: &Node, domain: &Domain, lane: u64, version: u64) -> Result<(), StobError> {
    if lane < OVERWRITING {
        let (pieces, checksums) = content(node, lane, version).await;
        return domain.write(lane_stob(lane, 0), pieces, &checksums).await;
    }
    if lane < OVERWRITING + KEYS {
        let mut transaction = domain.begin();
        transaction.tree_put(TREE, &key(lane), &value(lane, version));
        return domain.commit(transaction).await;
    }
    let (pieces, checksums) = content(node, lane, version).await;
    domain.write(lane_stob(lane, version), pieces, &checksums).await?;
    match version.checked_sub(KEPT) {
        Some(old) if old > 0 => domain.delete(lane_stob(lane, old)).await,
        _ => Ok(()),
    }
}

/// Where a lane stands on the device; also proves that its bytes are whole.
async fn standing(domain: &Domain, lane: u64) -> Result<u64, Failure> {
    if lane < OVERWRITING {
        return found(domain, lane_stob(lane, 0), lane).await;
    }
    if lane < OVERWRITING + KEYS {
        let Some(bytes) = domain.tree_get(TREE, &key(lane)) else { return Ok(0) };
        let version = u64::from_le_bytes(bytes.get(8..16).ok_or("a value is too short")?.try_into()?);
        if bytes != value(lane, version) {
            return Err(format!("lane {lane}: a value that was never put").into());
        }
        return Ok(version);
    }
    let mut numbers = Vec::new();
    let mut after = None;
    loop {
        let some = domain.stobs(after, 100);
        let Some(last) = some.last() else { break };
        after = Some(*last);
        let of_lane = |stob: &&StobId| lane_stob(lane, stob.fid.key).fid == stob.fid;
        numbers.extend(some.iter().filter(of_lane).map(|stob| stob.fid.key));
    }
    for number in &numbers {
        let version = found(domain, lane_stob(lane, *number), lane).await?;
        if version != *number {
            return Err(format!("lane {lane}: stob {number} holds version {version}").into());
        }
    }
    numbers.sort_unstable();
    let last = numbers.last().copied().unwrap_or(0);
    // The newest, the KEPT - 1 before it, and the one whose deletion may not have happened.
    let first = last.saturating_sub(KEPT - 1).max(1);
    let is_right = numbers.iter().copied().eq(first..=last)
        || numbers.iter().copied().eq(first.saturating_sub(1).max(1)..=last);
    if last > 0 && !is_right {
        return Err(format!("lane {lane}: stobs {numbers:?} are there, the newest being {last}").into());
    }
    Ok(last)
}

async fn work(node: Node, journal: Rc<File>, time: Duration) -> Result<(), Failure> {
    let domain = Domain::open(&node.handle, node.backend()?, Some(PARAMS)).await?;
    let until = node.handle.now() + time;
    println!("working");
    let lanes = (0..LANES).map(|lane| {
        let (node, domain, journal) = (&node, &domain, Rc::clone(&journal));
        async move {
            let mut version = standing(domain, lane).await?;
            // What the power kept a making lane from deleting.
            let old = version.checked_sub(KEPT).map(|old| lane_stob(lane, old));
            if let Some(old) = old.filter(|old| lane >= OVERWRITING && domain.stob_blocks(*old).is_some()) {
                domain.delete(old).await?;
            }
            while node.handle.now() < until {
                version += 1;
                step(node, domain, lane, version).await?;
                (&*journal).write_all(format!("{lane} {version}\n").as_bytes())?;
            }
            Ok::<u64, Failure>(version)
        }
    });
    let versions = futures_util::future::try_join_all(lanes).await?;
    println!("worked: versions {versions:?}");
    Ok(domain.close().await?)
}

async fn verify(node: Node, known: BTreeMap<u64, u64>) -> Result<(), Failure> {
    let domain = Domain::open(&node.handle, node.backend()?, Some(PARAMS)).await?;
    let (mut acknowledged, mut later) = (0, 0);
    for lane in 0..LANES {
        let at = standing(&domain, lane).await?;
        let least = known.get(&lane).copied().unwrap_or(0);
        if at < least {
            return Err(format!("lane {lane} stands at version {at}, and {least} was acknowledged").into());
        }
        acknowledged += least;
        later += at - least;
    }
    let info = domain.info();
    println!(
        "verified: {LANES} lanes, {acknowledged} acknowledgements, {later} steps beyond them, {} records replayed",
        info.recovered_records
    );
    Ok(domain.close().await?)
}
