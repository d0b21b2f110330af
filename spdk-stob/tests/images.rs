//! Images of every format version, kept and opened; and the same images damaged in every way that a program can make bytes wrong.
//!
//! An image file holds the blocks that are not zero: first block (8 bytes, little endian), bytes up to the last that is not zero (2),
//! the bytes. `CLOVIS_WRITE_IMAGE=1 cargo test -p spdk-stob --test images` writes the image of the version in the source; an image that
//! is there is never written again.
//!
//! The fuzzing takes the newest image, or the one before, changes bytes of its metadata, and sometimes makes checksums right again, so that decoders below them
//! are reached: opening, checking and repairing may refuse, and never panic, hang or allocate without bound.
//! `CLOVIS_FUZZ_COUNT=N` runs so many; a failing seed is printed and goes into [`CORPUS`].
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // a test's failure is its panic

mod bench;

use std::collections::BTreeMap;
use std::path::PathBuf;

use base::checksum::crc32c;
use base::{BlockExtent, Fid, FidType};
use runtime::Arena;
use spdk_stob::format::page::PAGE_HEADER_BYTES;
use spdk_stob::format::record::RECORD_HEADER_BYTES;
use spdk_stob::format::{FORMAT_VERSION, OLD_VERSION};
use spdk_stob::limits::SLOT_BLOCKS;
use spdk_stob::{
    Backend, Domain, SimDisk, SimFaults, StobError, StobId, TreeId, WritePiece, check, dump, inspect,
};

use crate::bench::{Bench, PARAMS};

const SIZE_BLOCKS: u64 = 3500;
/// Seeds that failed once.
const CORPUS: [u64; 2] = [318, 370];

const fn stob(number: u64) -> StobId {
    StobId { fid: Fid::new(FidType::Component, 0, number), generation: 1 }
}

fn path(version: u32) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/images/version-{version}.blocks"))
}

/// A disk without latency.
fn disk() -> SimDisk {
    let at_once = std::time::Duration::ZERO;
    let faults = SimFaults {
        latency_min: at_once,
        latency_max: at_once,
        flush_latency_max: at_once,
        ..SimFaults::default()
    };
    SimDisk::new(1, SIZE_BLOCKS, faults)
}

fn backend(disk: &SimDisk) -> Box<dyn Backend> {
    Box::new(disk.backend())
}

fn content(tag: u8) -> Vec<u8> {
    // Short, so that the image stays small: the rest of a block is zero.
    let mut bytes = vec![0; 4096];
    bytes[..9].copy_from_slice(&[tag, 1, 2, 3, 4, 5, 6, 7, tag]);
    bytes
}

async fn write(domain: &Domain, arena: &Arena, stob: StobId, start_block: u64, tags: &[u8]) {
    let bytes: Vec<u8> = tags.iter().flat_map(|tag| content(*tag)).collect();
    let mut data = arena.alloc(bytes.len()).await;
    data.copy_from_slice(&bytes);
    let checksums: Vec<u32> = bytes.chunks_exact(4096).map(crc32c).collect();
    domain.write(stob, vec![WritePiece { start_block, data: data.freeze() }], &checksums).await.unwrap();
}

async fn put(domain: &Domain, key: &[u8], value: &[u8]) {
    let mut transaction = domain.begin();
    transaction.tree_put(TreeId(5), key, value);
    domain.commit(transaction).await.unwrap();
}

/// Everything that the format can say, half of it in a checkpoint and half in the log.
fn made() -> SimDisk {
    let (mut bench, disk) = (Bench::new("images"), disk());
    let (handle, arena) = (bench.handle(), bench.arena.clone());
    bench.run(async {
        let domain = Domain::format(&handle, backend(&disk), PARAMS).await.unwrap();
        write(&domain, &arena, stob(1), 0, &[1, 2, 3]).await;
        write(&domain, &arena, stob(1), (1 << 60) + 5, &[4]).await;
        domain.snapshot(stob(1), stob(2)).await.unwrap();
        domain.create(stob(3)).await.unwrap();
        domain.allocate(stob(3), BlockExtent { start: 10, count: 7 }).await.unwrap();
        put(&domain, b"a", b"first").await;
        put(&domain, b"b", b"").await;
        domain.close().await.unwrap();
        let domain = Domain::open(&handle, backend(&disk), Some(PARAMS)).await.unwrap();
        write(&domain, &arena, stob(1), 1, &[5]).await;
        domain.punch(stob(2), BlockExtent { start: 0, count: 1 }).await.unwrap();
        write(&domain, &arena, stob(4), 0, &[6]).await;
        domain.snapshot(stob(4), stob(5)).await.unwrap();
        domain.delete(stob(4)).await.unwrap();
        domain.allocate(stob(5), BlockExtent { start: 1, count: 2 }).await.unwrap();
        let mut transaction = domain.begin();
        transaction.tree_delete(TreeId(5), b"b").tree_put(TreeId(5), b"c", &[9; 100]).stob_create(stob(6));
        domain.commit(transaction).await.unwrap();
    });
    disk
}

/// What [`made`] holds, read through any version of the program that opens it.
async fn assert_is_made(domain: &Domain) {
    assert_eq!(domain.stobs(None, 100), [stob(1), stob(2), stob(3), stob(5), stob(6)]);
    let blocks: Vec<_> = [1, 2, 3, 5, 6].map(|number| domain.stob_blocks(stob(number)).unwrap()).to_vec();
    assert_eq!(blocks, [4, 3, 0, 1, 0]);
    let info = domain.info();
    assert_eq!((info.blocks_used, info.blocks_kept), (6, 9));
    let expected: [(u64, u64, &[u8]); 5] = [
        (1, 0, &[1, 5, 3]),
        (1, (1 << 60) + 5, &[4]),
        (2, 1, &[2, 3]),
        (2, (1 << 60) + 5, &[4]),
        (5, 0, &[6]),
    ];
    for (number, start, tags) in expected {
        let extent = BlockExtent { start, count: tags.len() as u64 };
        let outcome = domain.read(stob(number), &[extent]).await.unwrap();
        let bytes: Vec<u8> = tags.iter().flat_map(|tag| content(*tag)).collect();
        assert_eq!(&outcome.parts[0][..], bytes, "stob {number}");
        assert_eq!(outcome.absent, []);
    }
    assert_eq!(domain.tree_get(TreeId(5), b"a").as_deref(), Some(&b"first"[..]));
    assert_eq!(domain.tree_get(TreeId(5), b"b"), None);
    assert_eq!(domain.tree_get(TreeId(5), b"c"), Some(vec![9; 100]));
    domain.verify_all().await.unwrap();
}

fn save(disk: &SimDisk) -> Vec<u8> {
    let mut image = Vec::new();
    for block in 0..SIZE_BLOCKS {
        let bytes = disk.content(block);
        let Some(last) = bytes.iter().rposition(|byte| *byte != 0) else { continue };
        image.extend_from_slice(&block.to_le_bytes());
        image.extend_from_slice(&u16::try_from(last + 1).unwrap().to_le_bytes());
        image.extend_from_slice(&bytes[..=last]);
    }
    image
}

fn blocks_of(image: &[u8]) -> BTreeMap<u64, Vec<u8>> {
    let (mut blocks, mut rest) = (BTreeMap::new(), image);
    while let Some((head, after)) = rest.split_first_chunk::<10>() {
        let block = u64::from_le_bytes(head[..8].try_into().unwrap());
        let count = usize::from(u16::from_le_bytes([head[8], head[9]]));
        let (bytes, after) = after.split_at(count);
        let mut whole = bytes.to_vec();
        whole.resize(4096, 0);
        blocks.insert(block, whole);
        rest = after;
    }
    blocks
}

fn load(blocks: &BTreeMap<u64, Vec<u8>>) -> SimDisk {
    let disk = disk();
    for (block, bytes) in blocks {
        disk.set_content(*block, bytes);
    }
    disk
}

#[test]
fn the_image_of_this_version_is_kept_and_opens() {
    let file = path(FORMAT_VERSION);
    if !file.exists() && std::env::var_os("CLOVIS_WRITE_IMAGE").is_some() {
        std::fs::write(&file, save(&made())).unwrap();
    }
    opens(FORMAT_VERSION);
}

#[test]
fn the_image_of_the_version_before_is_kept_and_becomes_one_of_this() {
    opens(OLD_VERSION);
}

fn kept(version: u32) -> BTreeMap<u64, Vec<u8>> {
    let image = std::fs::read(path(version)).expect("the image is kept: see the head of this file");
    assert!(image.len() < 64 << 10, "{} bytes", image.len());
    blocks_of(&image)
}

fn opens(version: u32) {
    let disk = load(&kept(version));
    let mut bench = Bench::new("images");
    let handle = bench.handle();
    bench.run(async {
        let before = save(&disk);
        let report = check(&handle, backend(&disk), false).await.unwrap();
        assert!(report.is_clean(), "{:?}", report.problems);
        assert!(save(&disk) == before, "a check without repair wrote");
        let domain = Domain::open(&handle, backend(&disk), Some(PARAMS)).await.unwrap();
        assert!(domain.info().recovered_records >= 6);
        assert_is_made(&domain).await;
        domain.close().await.unwrap();
        // And again from a checkpoint of this program.
        let domain = Domain::open(&handle, backend(&disk), Some(PARAMS)).await.unwrap();
        assert_eq!(domain.info().recovered_records, 0);
        assert_is_made(&domain).await;
        domain.close().await.unwrap();
        for copy in inspect(&handle, backend(&disk)).await {
            assert_eq!(copy.content.unwrap().version, FORMAT_VERSION);
        }
        let report = check(&handle, backend(&disk), false).await.unwrap();
        assert!(report.is_clean(), "{:?}", report.problems);
    });
}

/// The device fails, and then the power, before each write of the upgrade.
#[test]
fn an_upgrade_may_be_cut_anywhere() {
    let mut cuts = 0;
    loop {
        let disk = load(&kept(OLD_VERSION));
        disk.fail_writes_after(Some(cuts));
        let mut bench = Bench::new("images");
        let handle = bench.handle();
        let opened = bench.run(async {
            match Domain::open(&handle, backend(&disk), Some(PARAMS)).await {
                Ok(domain) => {
                    assert_is_made(&domain).await;
                    true
                }
                Err(StobError::Device(_)) => false,
                Err(error) => panic!("cut before write {cuts}: {error}"),
            }
        });
        disk.crash();
        disk.fail_writes_after(None);
        bench.run(async {
            let domain = Domain::open(&handle, backend(&disk), Some(PARAMS)).await;
            assert_is_made(&domain.unwrap_or_else(|error| panic!("cut before write {cuts}: {error}"))).await;
        });
        if opened {
            break;
        }
        cuts += 1;
    }
    assert!(cuts >= 5, "pages, bits, the stream, two superblocks, a barrier: {cuts}");
}

#[test]
fn what_the_program_writes_today_is_what_the_image_says() {
    let disk = made();
    let mut bench = Bench::new("images");
    let handle = bench.handle();
    bench.run(async {
        let domain = Domain::open(&handle, backend(&disk), Some(PARAMS)).await.unwrap();
        assert_is_made(&domain).await;
    });
}

#[test]
fn versions_that_no_program_reads_are_refused_by_their_number() {
    // Version 1 was never in anybody's hands: its superblock, with a right checksum, is told apart from damage.
    let mut blocks = kept(FORMAT_VERSION);
    for version in [1, FORMAT_VERSION + 1] {
        for block in [0, SIZE_BLOCKS - 1] {
            let bytes = blocks.get_mut(&block).unwrap();
            bytes[8..12].copy_from_slice(&version.to_le_bytes());
            seal(bytes, 256);
        }
        let disk = load(&blocks);
        let mut bench = Bench::new("images");
        let handle = bench.handle();
        let result = bench.run(Domain::open(&handle, backend(&disk), None));
        assert_eq!(result.err(), Some(StobError::Version { found: version, supported: FORMAT_VERSION }));
    }
}

/// Puts the CRC-32C of the bytes before it into the last four of the first `len`.
fn seal(bytes: &mut [u8], len: usize) {
    let checksum = crc32c(&bytes[..len - 4]);
    bytes[len - 4..len].copy_from_slice(&checksum.to_le_bytes());
}

/// Makes the checksums of a metadata block right again, whatever it claims to be.
fn reseal(bytes: &mut [u8]) {
    match &bytes[..8] {
        b"CLOVISSB" => seal(bytes, 256),
        b"CLOVISLR" => {
            let body = crc32c(&bytes[RECORD_HEADER_BYTES..]);
            bytes[44..48].copy_from_slice(&body.to_le_bytes());
            seal(bytes, RECORD_HEADER_BYTES);
        }
        b"CLOVISCP" => {
            let body = crc32c(&bytes[48..]);
            bytes[36..40].copy_from_slice(&body.to_le_bytes());
            seal(bytes, 48);
        }
        _ => {}
    }
}

/// Makes a page right again, and what the checkpoint says of it, so that its decoder is reached.
fn reseal_page(blocks: &mut BTreeMap<u64, Vec<u8>>, first: u64) {
    let whole: Vec<u8> = (first..first + SLOT_BLOCKS)
        .flat_map(|block| blocks.get(&block).cloned().unwrap_or_else(|| vec![0; 4096]))
        .collect();
    let Some(page) = blocks.get_mut(&first) else { return };
    let old: [u8; 4] = page[44..48].try_into().unwrap();
    page[40..44].copy_from_slice(&crc32c(&whole[PAGE_HEADER_BYTES..]).to_le_bytes());
    seal(page, PAGE_HEADER_BYTES);
    let new: [u8; 4] = page[44..48].try_into().unwrap();
    for bytes in blocks.values_mut().filter(|bytes| bytes.starts_with(b"CLOVISCP")) {
        if let Some(at) = bytes.windows(4).position(|word| word == old) {
            bytes[at..at + 4].copy_from_slice(&new);
            reseal(bytes);
        }
    }
}

/// Whether decoders below the checksums were reached.
#[derive(Default, Debug)]
struct Reached {
    opened: u32,
    refused: u32,
    resealed: u32,
    repaired: u32,
    pages: u32,
}

fn fuzz(seed: u64, blocks: &BTreeMap<u64, Vec<u8>>, reached: &mut Reached) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut blocks = blocks.clone();
    let metadata: Vec<u64> =
        blocks.iter().filter(|(_, bytes)| bytes.starts_with(b"CLOVIS")).map(|(block, _)| *block).collect();
    let is_resealed = random.u8(0..4) > 0;
    for _ in 0..random.u8(1..4) {
        let block = metadata[random.usize(0..metadata.len())];
        let Some(bytes) = blocks.get_mut(&block) else { continue };
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
        let at = random.usize(0..used);
        match random.u8(0..6) {
            0 => bytes[at] ^= 1 << random.u8(0..8),
            1 => bytes[at] = random.u8(..),
            // A whole number: small, huge, or one that is there already.
            2 => {
                let at = at / 8 * 8;
                let number =
                    [0, 1, u64::MAX, u64::MAX / 2, random.u64(0..4000), random.u64(..)][random.usize(0..6)];
                bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
            }
            3 => {
                let (from, at) = (random.usize(0..used) / 8 * 8, at / 8 * 8);
                bytes.copy_within(from..from + 8, at);
            }
            4 => bytes[at..used].fill(0),
            _ => {
                let other = metadata[random.usize(0..metadata.len())];
                let copy = blocks[&other].clone();
                blocks.insert(block, copy);
            }
        }
        if is_resealed && let Some(bytes) = blocks.get_mut(&block) {
            reseal(bytes);
            reached.resealed += 1;
            if bytes.starts_with(b"CLOVISPG") {
                reseal_page(&mut blocks, block);
                reached.pages += 1;
            }
        }
    }
    let mut bench = Bench::new("images");
    let handle = bench.handle();
    let disk = load(&blocks);
    bench.run(async {
        // Looking writes nothing.
        let before = save(&disk);
        let found = check(&handle, backend(&disk), false).await.unwrap();
        let _ = dump(&handle, backend(&disk), |_| true).await;
        assert!(save(&disk) == before, "a check without repair wrote");
        let copy = load(&blocks_of(&before));
        if let Ok(report) = check(&handle, backend(&copy), true).await
            && !report.repairs.is_empty()
        {
            reached.repaired += 1;
            // What could be reached before can be reached now: nothing that was readable is gone.
            let after = check(&handle, backend(&copy), false).await.unwrap();
            assert!(after.problem_count <= found.problem_count);
            assert!(after.extents >= found.extents && after.stobs >= found.stobs, "{found:?}\n{after:?}");
        }
        match Domain::open(&handle, backend(&disk), None).await {
            Ok(domain) => {
                reached.opened += 1;
                for stob in domain.stobs(None, 100) {
                    let _ = domain.read(stob, &[BlockExtent { start: 0, count: 8 }]).await;
                }
                let _ = domain.delete(stob(1)).await;
                let _ = domain.close().await;
            }
            Err(_) => reached.refused += 1,
        }
    });
}

#[test]
fn damaged_images_are_refused_or_opened_and_never_end_the_process() {
    let count = std::env::var("CLOVIS_FUZZ_COUNT").map_or(150, |text| text.parse().unwrap());
    let images = [kept(FORMAT_VERSION), kept(OLD_VERSION)];
    let mut reached = Reached::default();
    for seed in CORPUS.into_iter().chain(0..count) {
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            fuzz(seed, &images[usize::from(seed % 4 == 3)], &mut reached)
        }));
        assert!(caught.is_ok(), "seed {seed}: a panic, printed above");
    }
    println!("{reached:?}");
    assert!(
        reached.opened > 20 && reached.refused > 20 && reached.resealed > 50 && reached.pages > 10,
        "{reached:?}"
    );
}
