//! A domain seen from outside: random work against a model, real files, full and failing devices, and devices that are not ours.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::rc::Rc;
use std::sync::Arc;

use base::checksum::crc32c;
use base::units::{BLOCK_BYTES, MIB};
use base::{Blame, Blamed, Fid, FidType, Instant};
use runtime::{Arena, Counters, Locality, LocalityConfig, LocalityHandle, MonotonicClock};

use crate::domain::mutation::Mutation;
use crate::format::FORMAT_VERSION;
use crate::format::superblock::SUPERBLOCK_BYTES;
use crate::testing::{
    PARAMS, SimLocality, arena, block_content, crash_and_open, extent, formatted, open, pieces,
    small_regions, stob, tuned,
};
use crate::trace::TraceEvent;
use crate::{
    BackendKind, BadBlock, BadRequest, Damage, DeviceError, Direct, Domain, FormatParams, MemDevice,
    OpenOptions, ScrubConfig, SimDisk, SimFaults, Space, StobError, TreeId, UringFile, WritePiece,
    ZERO_BLOCK_CHECKSUM, create_device_file,
};

async fn write(
    domain: &Domain,
    arena: &Arena,
    number: u64,
    id: u64,
    places: &[(u64, u64)],
) -> Result<(), StobError> {
    let (pieces, checksums) = pieces(arena, id, places);
    domain.write(stob(number), pieces, &checksums).await
}

async fn put(domain: &Domain, key: &[u8], value: &[u8]) -> Result<(), StobError> {
    let mut transaction = domain.begin();
    transaction.tree_put(TreeId(1), key, value);
    domain.commit(transaction).await
}

#[test]
fn random_work_agrees_with_a_model_over_reopens() {
    let arena = arena();
    for seed in 0..12 {
        let (mut sim, disk, mut domain) = formatted(seed, &arena, 256);
        let mut random = fastrand::Rng::with_seed(seed);
        let mut model: BTreeMap<(u64, u64), (u64, u64)> = BTreeMap::new();
        let mut tree: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        // Snapshots exist until they are deleted, also when nothing of them is written any more.
        let mut created: BTreeSet<u64> = BTreeSet::new();
        for id in 0..400 {
            let number = random.u64(0..3);
            match random.u8(0..12) {
                0..6 => {
                    let (start, count) = (random.u64(0..40), random.u64(1..16));
                    let (task, arena) = (domain.clone(), arena.clone());
                    sim.block(async move { write(&task, &arena, number, id, &[(start, count)]).await })
                        .unwrap();
                    for index in 0..count {
                        model.insert((number, start + index), (id, index));
                    }
                }
                6 => {
                    let (start, count) = (random.u64(0..40), random.u64(1..16));
                    let task = domain.clone();
                    sim.block(async move { task.punch(stob(number), extent(start, count)).await }).unwrap();
                    model.retain(|(of, block), _| *of != number || !(start..start + count).contains(block));
                }
                7 if random.bool() => {
                    let task = domain.clone();
                    sim.block(async move { task.delete(stob(number)).await }).unwrap();
                    model.retain(|(of, _), _| *of != number);
                    created.remove(&number);
                }
                9 => {
                    let (from, to) = (number, random.u64(0..3));
                    let task = domain.clone();
                    sim.block(async move { task.snapshot(stob(from), stob(to)).await }).unwrap();
                    if from != to {
                        model.retain(|(of, _), _| *of != to);
                        let copies: Vec<_> = model
                            .range((from, 0)..(from + 1, 0))
                            .map(|((_, block), name)| ((to, *block), *name))
                            .collect();
                        model.extend(copies);
                    }
                    created.retain(|of| *of != to);
                    if model.keys().any(|(of, _)| *of == from) || created.contains(&from) {
                        created.insert(to);
                    }
                }
                8 if random.bool() => {
                    let now = sim.now;
                    sim.block(async move { domain.close().await }).unwrap();
                    drop(sim);
                    let (reopened, result) = open(now, &disk, &arena, None);
                    (sim, domain) = (reopened, result.unwrap());
                    assert_eq!(domain.info().recovered_records, 0, "a closed domain has nothing to replay");
                }
                _ => {
                    let (key, value) = (vec![random.u8(0..30)], vec![random.u8(..); random.usize(0..300)]);
                    let (task, given) = (domain.clone(), (key.clone(), value.clone()));
                    sim.block(async move { put(&task, &given.0, &given.1).await }).unwrap();
                    tree.insert(key, value);
                }
            }
            domain.verify().unwrap();
            let (start, count) = (random.u64(0..50), random.u64(1..20));
            let task = domain.clone();
            let outcome =
                sim.block(async move { task.read(stob(number), &[extent(start, count)]).await }).unwrap();
            for (index, bytes) in (0..count).zip(outcome.parts[0].chunks_exact(4096)) {
                let is_absent = outcome
                    .absent
                    .iter()
                    .any(|absent| absent.intersection(&extent(start + index, 1)).is_some());
                match model.get(&(number, start + index)) {
                    Some(&(id, index)) => assert!(!is_absent && bytes == block_content(id, index)),
                    None => assert!(is_absent && bytes.iter().all(|byte| *byte == 0)),
                }
                assert_eq!(outcome.checksums[index as usize], crc32c(bytes));
            }
            let written = model.range((number, 0)..(number + 1, 0)).count() as u64;
            let exists = written > 0 || created.contains(&number);
            assert_eq!(domain.stob_blocks(stob(number)), exists.then_some(written));
        }
        let all = domain.tree_range(TreeId(1), Bound::Unbounded, 1000);
        assert_eq!(all, tree.into_iter().collect::<Vec<_>>());
        let info = domain.info();
        // Each content was written once: what snapshots share counts once.
        let used = model.values().collect::<BTreeSet<_>>().len() as u64;
        assert_eq!((info.blocks_used, info.blocks_free), (used, 256 - used));
        assert!(info.sequence > 3, "the log wrapped: {info:?}");
    }
}

#[test]
fn each_acknowledgement_follows_a_completed_flush() {
    let arena = arena();
    let (mut sim, _disk, domain) = formatted(3, &arena, 256);
    for number in 0..6 {
        let (domain, arena) = (domain.clone(), arena.clone());
        drop(sim.handle().spawn("writer", async move {
            for id in 0..20 {
                write(&domain, &arena, number, id, &[(id % 7, 2)]).await.unwrap();
            }
        }));
    }
    while sim.step() {}
    let trace = domain.trace();
    let place = |wanted: TraceEvent| trace.iter().position(|event| *event == wanted).unwrap();
    let mut acknowledged = 0;
    for (at, event) in trace.iter().enumerate() {
        if let TraceEvent::Acknowledged { transaction, sequence } = *event {
            let written = place(TraceEvent::DataWritten { transaction });
            let recorded = place(TraceEvent::RecordWritten { sequence });
            let flushed = place(TraceEvent::Flushed { sequence });
            assert!(written < recorded && recorded < flushed && flushed < at);
            acknowledged += 1;
        }
    }
    assert_eq!(acknowledged, 120);
    let flushes = trace.iter().filter(|event| matches!(event, TraceEvent::Flushed { .. })).count();
    assert!(flushes < 60, "groups share their flush: {flushes} for 120");
}

#[test]
fn aligned_reads_and_writes_copy_nothing() {
    let arena = arena();
    let (mut sim, _disk, domain) = formatted(4, &arena, 600);
    let counters = Arc::clone(sim.handle().counters());
    let (task, memory) = (domain.clone(), arena.clone());
    sim.block(async move {
        write(&task, &memory, 1, 1, &[(0, 256)]).await.unwrap();
        let outcome = task.read(stob(1), &[extent(0, 256), extent(16, 16)]).await.unwrap();
        assert_eq!(&outcome.parts[1][..4096], &block_content(1, 16)[..]);
    });
    assert_eq!(counters.copied_bytes.get(), 0);
    // A part in two places has to be put together, and that is counted.
    sim.block(async move {
        write(&domain, &arena, 1, 2, &[(2, 1)]).await.unwrap();
        domain.read(stob(1), &[extent(0, 4)]).await.unwrap();
    });
    assert_eq!(counters.copied_bytes.get(), 4 * BLOCK_BYTES);
}

#[test]
fn bad_requests_change_nothing() {
    let arena = arena();
    let (mut sim, _disk, domain) = formatted(5, &arena, 64);
    sim.block(async move {
        let free = domain.info().blocks_free;
        let (good, checksums) = pieces(&arena, 1, &[(0, 2)]);
        let refused = |result: Result<(), StobError>| {
            let error = result.unwrap_err();
            assert_eq!(error.blame(), Blame::Caller);
            error
        };
        let error = refused(domain.write(stob(1), good.clone(), &checksums[..1]).await);
        assert_eq!(error, StobError::BadRequest(BadRequest::ChecksumCount { given: 1, blocks: 2 }));
        let error = refused(domain.write(stob(1), good.clone(), &[checksums[0], 7]).await);
        assert_eq!(error, StobError::ChecksumGiven { stob: stob(1), block: 1 });
        let (twice, double) = pieces(&arena, 1, &[(0, 2), (1, 1)]);
        let error = refused(domain.write(stob(1), twice, &double).await);
        assert_eq!(error, StobError::BadRequest(BadRequest::Overlap { block: 1 }));
        let unaligned = WritePiece { start_block: 0, data: good[0].data.slice(0..100) };
        let error = refused(domain.write(stob(1), vec![unaligned], &[]).await);
        assert_eq!(error, StobError::BadRequest(BadRequest::Unaligned { piece: 0, bytes: 100 }));
        let absurd = WritePiece { start_block: u64::MAX, data: good[0].data.clone() };
        let error = refused(domain.write(stob(1), vec![absurd], &checksums).await);
        assert_eq!(error, StobError::OutOfRange { start: u64::MAX, count: 2 });
        assert!(matches!(
            domain.read(stob(1), &[extent(u64::MAX, 9)]).await,
            Err(StobError::OutOfRange { .. })
        ));
        for count in [0, 257] {
            let result = domain.read(stob(1), &[extent(0, count)]).await;
            assert!(matches!(result, Err(StobError::BadRequest(BadRequest::PartLength { .. }))));
        }
        refused(domain.punch(stob(1), extent(9, u64::MAX)).await);
        refused(put(&domain, b"", b"x").await);
        refused(put(&domain, &[1; 1025], b"x").await);
        let error = refused(put(&domain, b"k", &[1; 40_000]).await);
        assert!(matches!(error, StobError::BadRequest(BadRequest::TransactionBytes { .. })), "{error}");
        assert_eq!(domain.info().blocks_free, free);
        assert_eq!((domain.stobs(None, 10), domain.is_poisoned()), (vec![], false));
        // The last block of a stob is as good as any other.
        write(&domain, &arena, 1, 9, &[(u64::MAX - 1, 1)]).await.unwrap();
        let outcome = domain.read(stob(1), &[extent(u64::MAX - 3, 3)]).await.unwrap();
        assert_eq!(outcome.absent, [extent(u64::MAX - 3, 2)]);
        assert_eq!(outcome.checksums[..2], [ZERO_BLOCK_CHECKSUM; 2]);
    });
}

#[test]
fn a_full_device_refuses_with_numbers_and_can_be_emptied() {
    let arena = arena();
    let (mut sim, _disk, domain) = formatted(6, &arena, 64);
    sim.block(async move {
        write(&domain, &arena, 1, 1, &[(0, 60)]).await.unwrap();
        let error = write(&domain, &arena, 2, 2, &[(0, 5)]).await.unwrap_err();
        let expected =
            StobError::NoSpace { space: Space::Data, needed_blocks: 5, free_blocks: 4, total_blocks: 64 };
        assert_eq!(error, expected);
        assert_eq!(domain.stobs(None, 9), [stob(1)]);
        // An overwrite needs room for the new blocks before the old ones are free; then it works again and again.
        for id in 3..20 {
            write(&domain, &arena, 1, id, &[(id, 4)]).await.unwrap();
        }
        // A write waits for a deletion that is under way instead of failing.
        let (deleted, written) =
            futures_util::future::join(domain.delete(stob(1)), write(&domain, &arena, 2, 99, &[(0, 64)]))
                .await;
        assert_eq!((deleted, written), (Ok(()), Ok(())));
        assert_eq!(domain.info().blocks_free, 0);
        domain.verify().unwrap();
        domain.delete(stob(2)).await.unwrap();
        // Trees fill the checkpoint area (8 blocks), and can be emptied too.
        let mut keys = 0u32;
        let error = loop {
            match put(&domain, &keys.to_be_bytes(), &[7; 1000]).await {
                Ok(()) => keys += 1,
                Err(error) => break error,
            }
        };
        assert!(
            matches!(error, StobError::NoSpace { space: Space::Metadata, total_blocks: 8, .. }),
            "{error}"
        );
        assert!(keys > 20);
        for key in 0..keys {
            let mut transaction = domain.begin();
            transaction.tree_delete(TreeId(1), &key.to_be_bytes());
            domain.commit(transaction).await.unwrap();
        }
        assert!(domain.info().checkpoint_bytes < 200, "{:?}", domain.info());
    });
}

#[test]
fn a_region_of_pages_that_is_full_refuses_with_numbers_and_can_be_emptied() {
    let arena = arena();
    let (mut sim, disk, domain) = formatted(8, &arena, 4000);
    let (task, memory) = (domain.clone(), arena.clone());
    let extents = sim.block(async move {
        // Every other block: each is an extent of its own.
        for index in 0.. {
            match write(&task, &memory, 1 + index % 3, 1, &[(2 * index, 1)]).await {
                Ok(()) => {}
                Err(StobError::NoSpace {
                    space: Space::Metadata,
                    needed_blocks,
                    free_blocks,
                    total_blocks,
                }) => {
                    assert!(
                        needed_blocks > free_blocks && total_blocks == 128,
                        "{needed_blocks} {free_blocks}"
                    );
                    return index;
                }
                Err(error) => panic!("{error}"),
            }
        }
        0
    });
    assert!(extents > 100, "{extents}");
    assert!(!domain.is_poisoned());
    drop(domain);
    let (mut sim, domain) = crash_and_open(sim, &disk, &arena);
    let domain = domain.unwrap();
    sim.block(async move {
        domain.verify_all().await.unwrap();
        assert_eq!(domain.info().extents, extents);
        // What a whole transaction needs is refused as a whole.
        let mut transaction = domain.begin();
        transaction.tree_put(TreeId(1), b"k", b"v");
        let (pieces, checksums) = pieces(&arena, 7, &[(9001, 1)]);
        let refused = domain.write_with(transaction, stob(9), pieces, &checksums).await;
        assert!(matches!(refused, Err(StobError::NoSpace { space: Space::Metadata, .. })), "{refused:?}");
        assert_eq!((domain.tree_get(TreeId(1), b"k"), domain.stob_blocks(stob(9))), (None, None));
        let free = domain.info().blocks_free;
        for number in 1..4 {
            domain.delete(stob(number)).await.unwrap();
        }
        assert_eq!(domain.info().blocks_free, free + extents);
        write(&domain, &arena, 1, 1, &[(0, 5)]).await.unwrap();
        domain.verify_all().await.unwrap();
        assert_eq!((domain.info().extents, domain.info().blocks_used), (1, 5));
    });
}

#[test]
fn data_that_does_not_fit_takes_its_transaction_with_it() {
    let arena = arena();
    let (mut sim, _disk, domain) = formatted(9, &arena, 64);
    sim.block(async move {
        write(&domain, &arena, 1, 1, &[(0, 60)]).await.unwrap();
        let mut transaction = domain.begin();
        transaction.tree_put(TreeId(1), b"k", b"v").stob_delete(stob(1));
        let (pieces, checksums) = pieces(&arena, 7, &[(0, 5)]);
        let refused = domain.write_with(transaction, stob(2), pieces, &checksums).await;
        assert!(matches!(refused, Err(StobError::NoSpace { space: Space::Data, .. })), "{refused:?}");
        assert_eq!((domain.tree_get(TreeId(1), b"k"), domain.stob_blocks(stob(2))), (None, None));
        assert_eq!((domain.stob_blocks(stob(1)), domain.info().blocks_free), (Some(60), 4));
        domain.verify_all().await.unwrap();
    });
}

#[test]
fn a_page_that_rotted_answers_its_readers_and_spares_the_others() {
    let arena = arena();
    let (mut sim, disk, domain) = formatted(10, &arena, 400);
    let (task, memory) = (domain.clone(), arena.clone());
    sim.block(async move {
        for number in 1..5 {
            for index in 0..6 {
                write(&task, &memory, number, number, &[(2 * index, 1)]).await.unwrap();
            }
        }
        task.close().await.unwrap();
    });
    drop(domain);
    // The first page of extents on the device.
    let pages = small_regions(400).pages;
    let is_extents = |block: &u64| disk.content(*block)[..16] == *b"CLOVISPG\x03\0\0\0\x01\0\0\0";
    let block = (pages.start..pages.end()).step_by(2).find(is_extents).unwrap();
    disk.rot(block, 8 * 60);
    let (mut sim, domain) = crash_and_open(sim, &disk, &arena);
    let domain = domain.unwrap();
    sim.block(async move {
        let (mut damaged, mut whole) = (0, 0);
        for number in 1..5 {
            for index in 0..6 {
                match domain.read(stob(number), &[extent(2 * index, 1)]).await {
                    Ok(outcome) => {
                        assert_eq!(outcome.parts[0][..], block_content(number, 0));
                        whole += 1;
                    }
                    Err(StobError::Damaged { what: Damage::Page { .. } }) => damaged += 1,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        assert!(damaged > 0 && whole > damaged, "{damaged} {whole}");
        // The law of memory: without a cache no more than the pages of the last look.
        let (memory_bytes, pages) = (domain.info().extent_memory_bytes, domain.info().pages);
        assert!(memory_bytes < 2000 && pages >= 4, "{memory_bytes} {pages}");
        assert!(!domain.is_poisoned());
        // Changes that need the page are refused too, and change nothing.
        let mut count = 0;
        for number in 1..5 {
            count += u32::from(domain.delete(stob(number)).await.is_err());
        }
        assert!(count > 0 && !domain.is_poisoned());
    });
}

#[test]
fn a_reader_keeps_its_blocks_although_they_are_overwritten_meanwhile() {
    readers_keep_their_blocks(None);
}

#[test]
fn blocks_taken_from_their_readers_are_caught() {
    let caught = std::panic::catch_unwind(|| readers_keep_their_blocks(Some(Mutation::SkipLimbo)));
    assert!(caught.is_err());
}

fn readers_keep_their_blocks(mutation: Option<Mutation>) {
    let arena = arena();
    for seed in 0..20 {
        let regions = small_regions(40);
        let disk = SimDisk::new(seed, regions.size_blocks, SimFaults::default());
        let mut sim = SimLocality::new(seed, Instant::ZERO, &arena);
        let (handle, backend) = (sim.handle(), Box::new(disk.backend()));
        let tuning = tuned(regions, mutation);
        let domain =
            sim.block(async move { Domain::format_tuned(&handle, backend, PARAMS, tuning).await }).unwrap();
        let (task, memory) = (domain.clone(), arena.clone());
        sim.block(async move { write(&task, &memory, 1, 1, &[(0, 16)]).await }).unwrap();
        disk.slow_down(50);
        let (task, slot) = (domain.clone(), Rc::new(RefCell::new(None)));
        let filled = Rc::clone(&slot);
        drop(sim.handle().spawn("reader", async move {
            let outcome = task.read(stob(1), &[extent(0, 16)]).await;
            *filled.borrow_mut() = Some(outcome);
        }));
        sim.step();
        disk.slow_down(1);
        let arena = arena.clone();
        sim.block(async move {
            for id in 2..6 {
                write(&domain, &arena, 1, id, &[(0, 16)]).await.unwrap();
            }
            domain.verify().unwrap();
        });
        while sim.step() && slot.borrow().is_none() {}
        let outcome = slot.take().expect("the reader finished").unwrap();
        assert_eq!(&outcome.parts[0][..4096], &block_content(1, 0)[..], "seed {seed}");
    }
}

#[test]
fn write_and_flush_errors_poison_until_reopened_and_reads_go_on() {
    let arena = arena();
    for fails in ["data", "log", "flush"] {
        let (mut sim, disk, domain) = formatted(7, &arena, 64);
        let (task, memory, faulty) = (domain.clone(), arena.clone(), disk.clone());
        sim.block(async move {
            write(&task, &memory, 1, 1, &[(0, 4)]).await.unwrap();
            match fails {
                "data" => faulty.fail_writes_after(Some(0)),
                "log" => faulty.fail_writes_after(Some(1)),
                _ => faulty.fail_flushes(true),
            }
            let error = write(&task, &memory, 1, 2, &[(0, 4)]).await.unwrap_err();
            assert!(
                matches!(error, StobError::Device(DeviceError::Errno { errno: 5, .. })),
                "{fails}: {error}"
            );
            faulty.fail_writes_after(None);
            faulty.fail_flushes(false);
            assert!(task.is_poisoned());
            assert_eq!(write(&task, &memory, 1, 3, &[(0, 4)]).await, Err(StobError::Poisoned));
            assert_eq!(put(&task, b"k", b"v").await, Err(StobError::Poisoned));
            let outcome = task.read(stob(1), &[extent(0, 4)]).await.unwrap();
            assert_eq!(&outcome.parts[0][..4096], &block_content(1, 0)[..]);
            task.verify().unwrap();
            assert_eq!(task.clone().close().await, Err(StobError::Poisoned));
        });
        drop(domain);
        let (mut sim, domain) = crash_and_open(sim, &disk, &arena);
        let (domain, arena) = (domain.unwrap(), arena.clone());
        sim.block(async move { write(&domain, &arena, 1, 4, &[(0, 4)]).await }).unwrap();
    }
}

#[test]
fn a_lost_device_answers_eio_to_each_access() {
    let arena = arena();
    let (mut sim, _disk, domain) = formatted(8, &arena, 64);
    sim.block(async move {
        write(&domain, &arena, 1, 1, &[(0, 4)]).await.unwrap();
        domain.set_failed(true);
        let is_eio =
            |error: &StobError| matches!(error, StobError::Device(DeviceError::Errno { errno: 5, .. }));
        assert!(is_eio(&domain.read(stob(1), &[extent(0, 4)]).await.unwrap_err()));
        assert!(!domain.is_poisoned(), "a failed read says nothing about what is on the device");
        assert!(is_eio(&write(&domain, &arena, 1, 2, &[(0, 4)]).await.unwrap_err()));
        assert!(domain.is_poisoned());
        domain.set_failed(false);
        domain.read(stob(1), &[extent(0, 4)]).await.unwrap();
    });
}

#[test]
fn rot_is_found_by_the_checksum() {
    let arena = arena();
    for mutation in [None, Some(Mutation::SkipReadVerification)] {
        let (mut sim, disk, domain) = formatted(9, &arena, 64);
        let (task, memory) = (domain.clone(), arena.clone());
        sim.block(async move {
            write(&task, &memory, 1, 1, &[(5, 4)]).await.unwrap();
            task.close().await
        })
        .unwrap();
        drop(domain);
        let now = sim.now;
        drop(sim);
        let (mut sim, domain) = open(now, &disk, &arena, mutation);
        let domain = domain.unwrap();
        let first = small_regions(64).data.start;
        disk.rot(first + 2, 12_345);
        let outcome = sim.block(async move { domain.read(stob(1), &[extent(0, 10)]).await.map(|_| ()) });
        match mutation {
            None => assert_eq!(outcome, Err(StobError::Checksum { stob: stob(1), block: 7 })),
            Some(_) => assert_eq!(outcome, Ok(()), "so the verification is what found it"),
        }
    }
}

#[test]
fn a_snapshot_shares_blocks_until_one_side_is_written_and_survives_its_origin() {
    let arena = arena();
    let (mut sim, disk, domain) = formatted(21, &arena, 64);
    let (task, memory) = (domain.clone(), arena.clone());
    sim.block(async move {
        let used = |domain: &Domain| domain.info().blocks_used;
        write(&task, &memory, 1, 1, &[(0, 8), (100, 4)]).await.unwrap();
        task.snapshot(stob(1), stob(2)).await.unwrap();
        task.snapshot(stob(2), stob(3)).await.unwrap();
        assert_eq!((used(&task), task.stob_blocks(stob(3))), (12, Some(12)));
        write(&task, &memory, 1, 2, &[(2, 2)]).await.unwrap();
        assert_eq!(used(&task), 14);
        task.punch(stob(2), extent(0, 8)).await.unwrap();
        task.verify().unwrap();
        assert_eq!(used(&task), 14, "the third still has them");
        task.delete(stob(1)).await.unwrap();
        assert_eq!(used(&task), 12);
        // Several at once, in one transaction: a snapshot sees what stands before it there.
        let mut transaction = task.begin();
        transaction.punch(stob(3), extent(4, 4)).snapshot(stob(3), stob(4)).stob_delete(stob(3));
        task.commit(transaction).await.unwrap();
        assert_eq!((used(&task), task.stob_blocks(stob(3)), task.stob_blocks(stob(4))), (8, None, Some(8)));
        // Nobody is made of nothing, and a stob stays what it is.
        task.snapshot(stob(9), stob(8)).await.unwrap();
        task.snapshot(stob(4), stob(4)).await.unwrap();
        assert_eq!((task.stob_blocks(stob(8)), task.stob_blocks(stob(4))), (None, Some(8)));
        task.verify().unwrap();
    });
    drop(domain);
    let (mut sim, domain) = crash_and_open(sim, &disk, &arena);
    let domain = domain.unwrap();
    sim.block(async move {
        domain.verify().unwrap();
        let outcome = domain.read(stob(4), &[extent(0, 8), extent(100, 4)]).await.unwrap();
        for (index, bytes) in (0..4).zip(outcome.parts[0].chunks_exact(4096)) {
            assert_eq!(bytes, block_content(1, index), "the origin was written afterwards");
        }
        assert_eq!(outcome.absent, [extent(4, 4)]);
        assert_eq!(&outcome.parts[1][..4096], block_content(1, 8));
        domain.delete(stob(4)).await.unwrap();
        domain.delete(stob(2)).await.unwrap();
        assert_eq!((domain.info().blocks_used, domain.stobs(None, 9)), (0, vec![]));
    });
}

#[test]
fn a_created_stob_exists_until_it_is_deleted() {
    let arena = arena();
    let (mut sim, disk, domain) = formatted(22, &arena, 64);
    let (task, memory) = (domain.clone(), arena.clone());
    sim.block(async move {
        task.create(stob(1)).await.unwrap();
        assert_eq!(task.stob_blocks(stob(1)), Some(0));
        write(&task, &memory, 1, 1, &[(0, 2)]).await.unwrap();
        task.punch(stob(1), extent(0, 9)).await.unwrap();
        write(&task, &memory, 2, 2, &[(0, 2)]).await.unwrap();
        task.punch(stob(2), extent(0, 9)).await.unwrap();
        assert_eq!(task.stobs(None, 9), [stob(1)]);
        task.close().await.unwrap();
    });
    drop(domain);
    let (mut sim, domain) = crash_and_open(sim, &disk, &arena);
    let domain = domain.unwrap();
    assert_eq!(domain.stobs(None, 9), [stob(1)]);
    sim.block(async move {
        domain.delete(stob(1)).await.unwrap();
        assert_eq!(domain.stobs(None, 9), []);
    });
}

#[test]
fn space_that_was_allocated_is_there_when_the_device_is_full() {
    let arena = arena();
    let (mut sim, disk, domain) = formatted(23, &arena, 64);
    let (task, memory) = (domain.clone(), arena.clone());
    sim.block(async move {
        let no_space = |needed_blocks, free_blocks| StobError::NoSpace {
            space: Space::Data,
            needed_blocks,
            free_blocks,
            total_blocks: 64,
        };
        write(&task, &memory, 1, 1, &[(4, 2)]).await.unwrap();
        task.allocate(stob(1), extent(0, 10)).await.unwrap();
        task.allocate(stob(1), extent(5, 10)).await.unwrap();
        let info = task.info();
        assert_eq!((info.blocks_used, info.blocks_kept, info.blocks_free), (2, 13, 62));
        let outcome = task.read(stob(1), &[extent(0, 15)]).await.unwrap();
        assert_eq!(outcome.absent, [extent(0, 4), extent(6, 9)], "what was allocated is a hole still");
        assert_eq!(task.allocate(stob(2), extent(0, 50)).await, Err(no_space(50, 49)));
        write(&task, &memory, 2, 2, &[(0, 49)]).await.unwrap();
        assert_eq!(write(&task, &memory, 2, 3, &[(60, 1)]).await, Err(no_space(1, 0)));
        // An overwrite has nothing kept for it; the holes have.
        assert_eq!(write(&task, &memory, 1, 4, &[(4, 1)]).await, Err(no_space(1, 0)));
        write(&task, &memory, 1, 5, &[(0, 4), (6, 4)]).await.unwrap();
        task.verify().unwrap();
        assert_eq!(task.info().blocks_kept, 5);
        task.punch(stob(1), extent(10, 2)).await.unwrap();
        assert_eq!(task.info().blocks_kept, 3, "punching gives up what was kept");
        assert!(matches!(
            task.allocate(stob(1), extent(u64::MAX, 2)).await,
            Err(StobError::OutOfRange { .. })
        ));
        assert!(matches!(task.allocate(stob(1), extent(0, u64::MAX)).await, Err(StobError::NoSpace { .. })));
        task.close().await.unwrap();
    });
    drop(domain);
    let (mut sim, domain) = crash_and_open(sim, &disk, &arena);
    let domain = domain.unwrap();
    assert_eq!(domain.info().blocks_kept, 3);
    sim.block(async move {
        domain.delete(stob(1)).await.unwrap();
        assert_eq!((domain.info().blocks_kept, domain.info().blocks_used), (0, 49));
        domain.verify().unwrap();
    });
}

#[test]
fn scrubbing_reports_each_bad_block_once_a_pass_and_keeps_to_its_rate() {
    let arena = arena();
    let (mut sim, disk, domain) = formatted(24, &arena, 400);
    let (task, memory) = (domain.clone(), arena.clone());
    sim.block(async move {
        write(&task, &memory, 1, 1, &[(0, 200), (1000, 3)]).await.unwrap();
        write(&task, &memory, 2, 2, &[(7, 5)]).await.unwrap();
        task.snapshot(stob(2), stob(3)).await.unwrap();
    });
    let first = small_regions(400).data.start;
    disk.rot(first + 10, 77);
    disk.rot(first + 204, 7);
    disk.fail_block(first + 201);
    let found: Rc<RefCell<Vec<BadBlock>>> = Rc::default();
    let sink = Rc::clone(&found);
    let started = sim.now;
    let config = ScrubConfig { bytes_per_second: MIB, pause: None };
    let scrub = domain.start_scrub(config, move |bad| sink.borrow_mut().push(bad));
    while scrub.stats().passes == 0 && sim.step() {}
    let places: Vec<_> = found.borrow().iter().map(|bad| (bad.stob, bad.block)).collect();
    // The block that snapshots share is told to both.
    assert_eq!(places, [(stob(1), 10), (stob(1), 1001), (stob(2), 8), (stob(3), 8)]);
    assert!(matches!(found.borrow()[0].error, StobError::Checksum { .. }));
    assert!(matches!(found.borrow()[1].error, StobError::Device(_)));
    let stats = scrub.stats();
    assert_eq!((stats.blocks, stats.bad_blocks), (213, 4));
    assert!(domain.info().blocks_bad >= 2);
    let seconds = sim.now.since(started).as_secs_f64();
    let least = 213.0 * 4096.0 / (1 << 20) as f64;
    assert!((least..least * 1.2).contains(&seconds), "{seconds} s for what takes {least} s");

    // It goes on for ever with a pause, ends when dropped, and does not keep the domain alive.
    found.borrow_mut().clear();
    let config = ScrubConfig { bytes_per_second: 64 * MIB, pause: Some(std::time::Duration::from_secs(1)) };
    let sink = Rc::clone(&found);
    let scrub = domain.start_scrub(config, move |bad| sink.borrow_mut().push(bad));
    while scrub.stats().passes < 3 {
        assert!(sim.step());
    }
    assert_eq!(found.borrow().len(), 12);
    drop(domain);
    while sim.step() {}
    assert!(sim.handle().tasks().is_empty(), "{:?}", sim.handle().tasks());
    assert_eq!(arena.in_use_bytes(), 0);
}

/// A closed device with some content, to be damaged.
fn closed(arena: &Arena) -> (Instant, SimDisk) {
    let (mut sim, disk, domain) = formatted(10, arena, 64);
    let memory = arena.clone();
    sim.block(async move {
        write(&domain, &memory, 1, 1, &[(0, 4)]).await.unwrap();
        domain.close().await.unwrap();
    });
    (sim.now, disk)
}

#[test]
fn devices_that_are_not_ours_or_not_whole_are_refused() {
    let arena = arena();
    let refused = |disk: &SimDisk| open(Instant::ZERO, disk, &arena, None).1.unwrap_err();
    let empty = SimDisk::new(1, 5000, SimFaults::default());
    assert_eq!(refused(&empty), StobError::NotFormatted);
    empty.set_content(0, b"\x7fELF and so on");
    assert_eq!(refused(&empty), StobError::Foreign { first_bytes: *b"\x7fELF and" });
    assert!(matches!(
        refused(&SimDisk::new(1, 1, SimFaults::default())),
        StobError::TooSmall { found_blocks: 1, .. }
    ));

    let (_, disk) = closed(&arena);
    let last = small_regions(64).size_blocks - 1;
    disk.shrink(last - 3);
    let expected_blocks = last + 1;
    assert_eq!(refused(&disk), StobError::Truncated { expected_blocks, found_blocks: last - 3 });

    let (now, disk) = closed(&arena);
    let mut sim = SimLocality::new(1, now, &arena);
    let (handle, backend) = (sim.handle(), Box::new(disk.backend()));
    let other = FormatParams { device: Fid::new(FidType::Device, 0, 8), ..PARAMS };
    let result = sim.block(async move { Domain::open(&handle, backend, Some(other)).await });
    let wrong = StobError::WrongDevice { expected: other.device, found: PARAMS.device };
    assert_eq!(result.unwrap_err(), wrong);
    let (handle, backend) = (sim.handle(), Box::new(disk.backend()));
    let other = FormatParams { cluster: PARAMS.cluster + 1, ..PARAMS };
    let before = disk.content(0);
    let result = sim.block(async move { Domain::open(&handle, backend, Some(other)).await });
    let wrong = StobError::OtherCluster { expected: other.cluster, found: PARAMS.cluster };
    assert_eq!(result.unwrap_err(), wrong);
    assert_eq!(disk.content(0), before);
    let (handle, backend) = (sim.handle(), Box::new(disk.backend()));
    let result = sim.block(async move { Domain::format(&handle, backend, PARAMS).await });
    assert!(matches!(result, Err(StobError::TooSmall { .. } | StobError::AlreadyFormatted { .. })));

    let newer = |block: u64, disk: &SimDisk| {
        let mut bytes = disk.content(block);
        bytes[8] = 9;
        let checksum = crc32c(&bytes[..SUPERBLOCK_BYTES - 4]);
        bytes[SUPERBLOCK_BYTES - 4..SUPERBLOCK_BYTES].copy_from_slice(&checksum.to_le_bytes());
        disk.set_content(block, &bytes);
    };
    newer(0, &disk);
    newer(last, &disk);
    assert_eq!(refused(&disk), StobError::Version { found: 9, supported: FORMAT_VERSION });
    disk.rot(0, 800);
    disk.rot(last, 800);
    assert_eq!(refused(&disk), StobError::Damaged { what: Damage::Superblocks });
}

#[test]
fn one_damaged_superblock_is_repaired_from_the_other() {
    let arena = arena();
    let last = small_regions(64).size_blocks - 1;
    for block in [0, last] {
        let (now, disk) = closed(&arena);
        disk.rot(block, 300);
        let (sim, domain) = open(now, &disk, &arena, None);
        let domain = domain.unwrap();
        assert!(domain.info().repaired_superblock);
        assert_eq!(domain.info().blocks_used, 4);
        assert_eq!(disk.content(0), disk.content(last));
        drop((sim, domain));
        assert!(!open(now, &disk, &arena, None).1.unwrap().info().repaired_superblock);
    }
}

#[test]
fn a_format_that_was_cut_short_leaves_a_device_that_is_not_formatted() {
    let arena = arena();
    let regions = small_regions(64);
    let mut outcomes = BTreeMap::new();
    for seed in 0..60 {
        let disk = SimDisk::new(seed, regions.size_blocks, SimFaults::default());
        let mut sim = SimLocality::new(seed, Instant::ZERO, &arena);
        let (handle, backend) = (sim.handle(), Box::new(disk.backend()));
        drop(sim.handle().spawn("format", async move {
            let _ = Domain::format_tuned(&handle, backend, PARAMS, tuned(regions, None)).await;
        }));
        for _ in 0..seed {
            sim.step();
        }
        let (_sim, result) = crash_and_open(sim, &disk, &arena);
        let name = match result {
            Ok(domain) => {
                assert_eq!(domain.info().blocks_used, 0);
                "formatted"
            }
            Err(StobError::NotFormatted) => "not formatted",
            Err(error) => panic!("seed {seed}: {error}"),
        };
        *outcomes.entry(name).or_insert(0) += 1;
    }
    assert_eq!(outcomes.len(), 2, "{outcomes:?}");
}

#[test]
fn a_device_is_formatted_again_over_itself_and_over_no_other_and_a_cut_leaves_nothing_of_the_old_one_but_itself()
 {
    let arena = arena();
    let regions = small_regions(64);
    let mut outcomes = BTreeMap::new();
    for seed in 0..60 {
        let (mut sim, disk, domain) = formatted(seed, &arena, 64);
        let (task, memory) = (domain.clone(), arena.clone());
        sim.block(async move { write(&task, &memory, 1, 5, &[(0, 3)]).await }).unwrap();
        let now = sim.now;
        sim.block(async move { domain.close().await }).unwrap();
        drop(sim);
        let stranger = FormatParams { cluster: PARAMS.cluster + 1, ..PARAMS };
        let mut sim = SimLocality::new(seed, now, &arena);
        let (handle, backend) = (sim.handle(), Box::new(disk.backend()));
        let over = async move {
            Domain::format_over_tuned(&handle, backend, stranger, tuned(regions, None)).await.map(drop)
        };
        let refused = sim.block(over);
        assert!(matches!(refused, Err(StobError::AlreadyFormatted { .. })), "{refused:?}");
        let (handle, backend) = (sim.handle(), Box::new(disk.backend()));
        drop(sim.handle().spawn("format", async move {
            let over = Domain::format_over_tuned(&handle, backend, PARAMS, tuned(regions, None));
            let _ = over.await;
        }));
        for _ in 0..seed {
            sim.step();
        }
        let (sim, result) = crash_and_open(sim, &disk, &arena);
        let now = sim.now;
        let name = match result {
            Ok(domain) if domain.info().blocks_used == 0 => "new",
            Ok(domain) => {
                assert_eq!(domain.info().blocks_used, 3);
                "old"
            }
            Err(StobError::NotFormatted | StobError::Damaged { .. }) => "neither",
            Err(error) => panic!("seed {seed}: {error}"),
        };
        *outcomes.entry(name).or_insert(0) += 1;
        // Whatever is left, the next try makes it blank.
        drop(sim);
        let mut sim = SimLocality::new(seed, now, &arena);
        let (handle, backend) = (sim.handle(), Box::new(disk.backend()));
        let over = async move {
            Domain::format_over_tuned(&handle, backend, PARAMS, tuned(regions, None)).await.unwrap()
        };
        let domain = sim.block(over);
        assert_eq!(domain.info().blocks_used, 0);
        assert_eq!(domain.stobs(None, 9), []);
    }
    assert!(outcomes.contains_key("new") && outcomes.contains_key("old"), "{outcomes:?}");
}

#[test]
fn a_record_missing_in_the_middle_of_the_log_is_damage_not_a_tail() {
    let arena = arena();
    let (mut sim, disk, domain) = formatted(11, &arena, 64);
    let memory = arena.clone();
    sim.block(async move {
        for id in 0..5 {
            write(&domain, &memory, 1, id, &[(id, 1)]).await.unwrap();
        }
    });
    let log = small_regions(64).log;
    disk.rot(log.start + 1, 20_000);
    let (_sim, result) = crash_and_open(sim, &disk, &arena);
    assert!(
        matches!(result, Err(StobError::Damaged { what: Damage::Log { sequence: 2, .. } })),
        "{result:?}"
    );
}

#[test]
fn records_of_an_earlier_formatting_are_not_replayed() {
    let arena = arena();
    let (mut sim, disk, domain) = formatted(12, &arena, 64);
    let memory = arena.clone();
    sim.block(async move {
        for id in 0..3 {
            write(&domain, &memory, 1, id, &[(id, 1)]).await.unwrap();
        }
    });
    let now = sim.now;
    drop(sim);
    let regions = small_regions(64);
    disk.set_content(0, &[]);
    disk.set_content(regions.size_blocks - 1, &[]);
    disk.restart();
    let mut sim = SimLocality::new(99, now, &arena);
    let (handle, backend) = (sim.handle(), Box::new(disk.backend()));
    let result =
        sim.block(async move { Domain::format_tuned(&handle, backend, PARAMS, tuned(regions, None)).await });
    drop(result.unwrap());
    let (_sim, domain) = crash_and_open(sim, &disk, &arena);
    let info = domain.unwrap().info();
    assert_eq!((info.blocks_used, info.recovered_records), (0, 0));
}

#[test]
fn a_checkpoint_of_many_pieces_comes_back() {
    let arena = arena();
    let mut sim = SimLocality::new(1, Instant::ZERO, &arena);
    let disk = SimDisk::new(1, 320 * MIB / BLOCK_BYTES, SimFaults::default());
    let (handle, backend) = (sim.handle(), Box::new(disk.backend()));
    sim.block(async move {
        let domain = Domain::format(&handle, backend, PARAMS).await.unwrap();
        for group in 0..60u32 {
            let mut transaction = domain.begin();
            for key in 0..30u32 {
                transaction.tree_put(
                    TreeId(1),
                    &(group * 100 + key).to_be_bytes(),
                    &vec![group as u8; 1000 + key as usize],
                );
            }
            domain.commit(transaction).await.unwrap();
        }
        assert!(domain.info().checkpoint_bytes > MIB);
        domain.close().await.unwrap();
    });
    let now = sim.now;
    drop(sim);
    let (_sim, domain) = open(now, &disk, &arena, None);
    let domain = domain.unwrap();
    assert_eq!(domain.tree_range(TreeId(1), Bound::Unbounded, 10_000).len(), 1800);
    assert_eq!(domain.tree_get(TreeId(1), &5910u32.to_be_bytes()), Some(vec![59; 1010]));
}

fn real_locality(arena: &Arena) -> Locality {
    Locality::new(LocalityConfig {
        index: 0,
        name: "test".to_owned(),
        seed: 1,
        counters: Arc::new(Counters::default()),
        arena: arena.clone(),
        crowd: None,
    })
}

async fn exercise(handle: LocalityHandle, arena: Arena, open: impl Fn() -> Box<dyn crate::Backend>) {
    let domain = Domain::format(&handle, open(), PARAMS).await.unwrap();
    let writes = (0..40).map(|id| {
        let (domain, arena) = (domain.clone(), arena.clone());
        async move { write(&domain, &arena, id % 4, id, &[((id / 4) * 16, 16)]).await }
    });
    for result in futures_util::future::join_all(writes).await {
        result.unwrap();
    }
    put(&domain, b"key", b"value").await.unwrap();
    drop(domain); // not closed: the next open recovers
    let mut reopened = None;
    for _ in 0..1000 {
        // The committer of the dropped domain lets go of the device in one of the next turns.
        handle.sleep(std::time::Duration::from_millis(1)).await;
        if handle.tasks().iter().all(|task| task.name != "stob committer") {
            reopened = Some(Domain::open(&handle, open(), Some(PARAMS)).await.unwrap());
            break;
        }
    }
    let domain = reopened.expect("the committer ends");
    assert!(domain.info().recovered_records > 0);
    domain.verify().unwrap();
    for id in 0..40u64 {
        let outcome = domain.read(stob(id % 4), &[extent((id / 4) * 16, 16)]).await.unwrap();
        for (index, bytes) in (0..16).zip(outcome.parts[0].chunks_exact(4096)) {
            assert_eq!(bytes, block_content(id, index));
        }
    }
    assert_eq!(domain.tree_get(TreeId(1), b"key").as_deref(), Some(&b"value"[..]));
    domain.close().await.unwrap();
}

#[test]
fn real_files_work_through_io_uring_threads_and_in_line_with_and_without_o_direct() {
    let folder = tempfile::tempdir().unwrap();
    for kind in [BackendKind::Auto, BackendKind::Threads, BackendKind::Inline] {
        for direct in [Direct::Auto, Direct::Never] {
            let arena = arena();
            let path = folder.path().join(format!("{kind:?} {direct:?}"));
            create_device_file(&path, 32 * MIB).unwrap();
            let options = OpenOptions { direct, kind, lock_wait: std::time::Duration::ZERO };
            let first = UringFile::open(&path, options).unwrap();
            println!("{kind:?} {direct:?}: {:?}, direct: {}", first.kind(), first.is_direct());
            assert!(matches!(UringFile::open(&path, options), Err(StobError::Busy { .. })), "locked");
            drop(first);
            let mut locality = real_locality(&arena);
            let handle = locality.handle();
            let open = || Box::new(UringFile::open(&path, options).unwrap()) as Box<dyn crate::Backend>;
            locality.block_on(&MonotonicClock::start(), exercise(handle, arena.clone(), open)).unwrap();
            drop(locality);
            assert_eq!(arena.in_use_bytes(), 0);
        }
    }
}

#[test]
fn a_device_in_memory_works_and_files_are_refused_clearly() {
    let arena = arena();
    let mut locality = real_locality(&arena);
    let handle = locality.handle();
    locality
        .block_on(&MonotonicClock::start(), async {
            let domain = Domain::format(&handle, Box::new(MemDevice::new(8192)), PARAMS).await.unwrap();
            write(&domain, &arena, 1, 1, &[(7, 200)]).await.unwrap();
            let outcome = domain.read(stob(1), &[extent(7, 200)]).await.unwrap();
            assert_eq!(&outcome.parts[0][199 * 4096..], &block_content(1, 199)[..]);
        })
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("device");
    assert!(matches!(UringFile::open(&path, OpenOptions::default()), Err(StobError::Open { .. })));
    // More than any file system holds: refused, and nothing is left behind.
    assert!(matches!(create_device_file(&path, 1 << 60), Err(StobError::Open { .. })));
    assert!(!path.exists());
    create_device_file(&path, MIB + 5).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), MIB);
    assert!(matches!(create_device_file(&path, MIB), Err(StobError::Open { .. })), "nothing is overwritten");
}
