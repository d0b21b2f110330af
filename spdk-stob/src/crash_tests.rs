//! Random work on a simulated disk, power cuts at random moments, and the promises checked after each recovery.
//!
//! Several workers run at once, each with its own stobs and keys, one operation after the other. So after a crash each
//! worker's state has to be that of its acknowledged operations, with the one that was under way whole or absent. What was
//! seen after a recovery has to stay. A failing seed is printed and runs alone: `run(seed, None, ..)`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use base::Instant;
use runtime::Arena;

use crate::domain::mutation::Mutation;
use crate::testing::{PARAMS, SimLocality, arena, block_content, extent, pieces, small_regions, stob, tuned};
use crate::{BadRequest, Domain, SimDisk, SimFaults, StobError, StobId, TreeId};

const WORKERS: u64 = 4;
const STOBS_PER_WORKER: u64 = 2;
/// Blocks of a stob that are used.
const STOB_BLOCKS: u64 = 24;
const DATA_BLOCKS: u64 = 160;

/// One worker's part of the domain: (stob, block) to the content's name, key to value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    blocks: BTreeMap<(StobId, u64), (u64, u64)>,
    tree: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Clone, Debug)]
enum Step {
    Write { stob: StobId, id: u64, places: Vec<(u64, u64)> },
    Punch { stob: StobId, start: u64, count: u64 },
    Allocate { stob: StobId, start: u64, count: u64 },
    Snapshot { from: StobId, to: StobId },
    Transaction { puts: Vec<(Vec<u8>, Vec<u8>)>, deletes: Vec<Vec<u8>>, stob_delete: Option<StobId> },
}

impl Model {
    fn apply(&mut self, step: &Step) {
        match step {
            Step::Write { stob, id, places } => {
                let mut index = 0;
                for &(start, count) in places {
                    for block in start..start + count {
                        self.blocks.insert((*stob, block), (*id, index));
                        index += 1;
                    }
                }
            }
            Step::Punch { stob, start, count } => {
                self.blocks.retain(|(of, block), _| of != stob || !(*start..start + count).contains(block));
            }
            Step::Allocate { .. } => {}
            Step::Snapshot { from, to } => {
                self.blocks.retain(|(of, _), _| of != to);
                let copies: Vec<_> = self
                    .blocks
                    .range((*from, 0)..=(*from, u64::MAX))
                    .map(|((_, block), name)| ((*to, *block), *name))
                    .collect();
                self.blocks.extend(copies);
            }
            Step::Transaction { puts, deletes, stob_delete } => {
                self.tree.extend(puts.iter().cloned());
                deletes.iter().for_each(|key| drop(self.tree.remove(key)));
                self.blocks.retain(|(of, _), _| Some(*of) != *stob_delete);
            }
        }
    }
}

struct Worker {
    number: u64,
    random: fastrand::Rng,
    durable: Model,
    pending: Option<Step>,
    acknowledged: u64,
}

impl Worker {
    fn stob(&self, which: u64) -> StobId {
        stob(self.number * STOBS_PER_WORKER + which)
    }

    fn next_step(&mut self) -> Step {
        let which = self.random.u64(0..STOBS_PER_WORKER);
        let stob = self.stob(which);
        match self.random.u8(0..13) {
            10 => Step::Snapshot { from: stob, to: self.stob((which + 1) % STOBS_PER_WORKER) },
            11 => Step::Snapshot { from: stob, to: self.stob(STOBS_PER_WORKER - 1 - which) },
            12 => {
                Step::Allocate { stob, start: self.random.u64(0..STOB_BLOCKS), count: self.random.u64(1..4) }
            }
            0..5 => {
                let mut places = Vec::new();
                let mut start = self.random.u64(0..STOB_BLOCKS / 2);
                while places.len() < 3 && start < STOB_BLOCKS {
                    let count = self.random.u64(1..=5).min(STOB_BLOCKS - start);
                    places.push((start, count));
                    start += count + self.random.u64(0..6);
                    if self.random.bool() {
                        break;
                    }
                }
                Step::Write { stob, id: self.random.u64(1..1 << 40), places }
            }
            5 => {
                let start = self.random.u64(0..STOB_BLOCKS);
                Step::Punch { stob, start, count: self.random.u64(1..8) }
            }
            _ => {
                let number = self.number;
                let mut key = || format!("worker {number} key {}", self.random.u8(0..6)).into_bytes();
                let deletes = vec![key()];
                let keys: Vec<_> = (0..3).map(|_| key()).filter(|key| *key != deletes[0]).collect();
                let puts =
                    keys.into_iter().map(|key| (key, vec![self.random.u8(..); self.random.usize(0..700)]));
                let puts = puts.collect();
                Step::Transaction { puts, deletes, stob_delete: (self.random.u8(0..4) == 0).then_some(stob) }
            }
        }
    }
}

const TREE: TreeId = TreeId(3);

async fn perform(domain: &Domain, arena: &Arena, step: &Step) -> Result<(), StobError> {
    match step {
        Step::Write { stob, id, places } => {
            let (pieces, checksums) = pieces(arena, *id, places);
            domain.write(*stob, pieces, &checksums).await
        }
        Step::Punch { stob, start, count } => domain.punch(*stob, extent(*start, *count)).await,
        Step::Allocate { stob, start, count } => domain.allocate(*stob, extent(*start, *count)).await,
        Step::Snapshot { from, to } => domain.snapshot(*from, *to).await,
        Step::Transaction { puts, deletes, stob_delete } => {
            let mut transaction = domain.begin();
            for (key, value) in puts {
                transaction.tree_put(TREE, key, value);
            }
            for key in deletes {
                transaction.tree_delete(TREE, key);
            }
            if let Some(stob) = *stob_delete {
                transaction.stob_delete(stob);
            }
            domain.commit(transaction).await
        }
    }
}

async fn work(worker: Rc<RefCell<Worker>>, domain: Domain, arena: Arena) {
    loop {
        let step = worker.borrow_mut().next_step();
        worker.borrow_mut().pending = Some(step.clone());
        let result = perform(&domain, &arena, &step).await;
        let mut worker = worker.borrow_mut();
        worker.pending = None;
        match result {
            Ok(()) => {
                worker.durable.apply(&step);
                worker.acknowledged += 1;
            }
            Err(StobError::NoSpace { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// What the domain holds of a worker. Contents are named by comparing with what the worker may have written.
async fn observe(domain: Domain, number: u64, known: Vec<Model>) -> Result<Model, String> {
    let mut model = Model::default();
    for which in 0..STOBS_PER_WORKER {
        let stob = stob(number * STOBS_PER_WORKER + which);
        let outcome = domain
            .read(stob, &[extent(0, STOB_BLOCKS)])
            .await
            .map_err(|error| format!("worker {number}: {error}"))?;
        for (block, bytes) in (0..).zip(outcome.parts[0].chunks_exact(4096)) {
            if outcome.absent.iter().any(|absent| absent.intersection(&extent(block, 1)).is_some()) {
                if bytes.iter().any(|byte| *byte != 0) {
                    return Err(format!("block {block} of {stob} is absent and not zero"));
                }
                continue;
            }
            let names = known.iter().filter_map(|model| model.blocks.get(&(stob, block)));
            let name = names.copied().find(|(id, index)| block_content(*id, *index) == bytes);
            let name = name.ok_or(format!("block {block} of {stob} holds what nobody wrote there last"))?;
            model.blocks.insert((stob, block), name);
        }
    }
    let prefix = format!("worker {number} ").into_bytes();
    let keys = domain.tree_range(TREE, Bound::Included(&prefix), 1000);
    model.tree = keys.into_iter().filter(|(key, _)| key.starts_with(&prefix)).collect();
    Ok(model)
}

#[derive(Clone, Copy, Debug, Default)]
struct Summary {
    acknowledged: u64,
    crashes: u64,
    under_way: u64,
    kept_under_way: u64,
    dropped_tails: u64,
    checkpoints: u64,
    interrupted_recoveries: u64,
    restarts: u64,
}

impl std::ops::AddAssign for Summary {
    fn add_assign(&mut self, other: Summary) {
        self.acknowledged += other.acknowledged;
        self.crashes += other.crashes;
        self.under_way += other.under_way;
        self.kept_under_way += other.kept_under_way;
        self.dropped_tails += other.dropped_tails;
        self.checkpoints += other.checkpoints;
        self.interrupted_recoveries += other.interrupted_recoveries;
        self.restarts += other.restarts;
    }
}

/// Compares what is there with what has to be there; the worker goes on from what is there.
fn check(worker: &mut Worker, observed: Model, summary: &mut Summary) -> Result<(), String> {
    let Some(step) = worker.pending.take() else {
        return match observed == worker.durable {
            true => Ok(()),
            false => Err(format!("worker {}: {:?}\nis not {:?}", worker.number, observed, worker.durable)),
        };
    };
    summary.under_way += 1;
    let mut with_step = worker.durable.clone();
    with_step.apply(&step);
    if observed == with_step {
        summary.kept_under_way += u64::from(with_step != worker.durable);
        worker.durable = observed;
        Ok(())
    } else if observed == worker.durable {
        Ok(())
    } else {
        Err(format!(
            "worker {}: {step:?} is neither whole nor absent: {observed:?}\nwas {:?}",
            worker.number, worker.durable
        ))
    }
}

/// Formats, then works and crashes `rounds` times. The error says what was broken.
fn run(seed: u64, mutation: Option<Mutation>, rounds: u32, arena: &Arena) -> Result<Summary, String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut summary = Summary::default();
    let regions = small_regions(DATA_BLOCKS);
    let disk = SimDisk::new(seed, regions.size_blocks, SimFaults::default());
    let workers: Vec<_> = (0..WORKERS)
        .map(|number| {
            let random = random.fork();
            Rc::new(RefCell::new(Worker {
                number,
                random,
                durable: Model::default(),
                pending: None,
                acknowledged: 0,
            }))
        })
        .collect();
    let mut sim = SimLocality::new(seed, Instant::ZERO, arena);
    let (handle, backend) = (sim.handle(), Box::new(disk.backend()));
    let tuning = tuned(regions, mutation);
    let formatted = sim.block(async move { Domain::format_tuned(&handle, backend, PARAMS, tuning).await });
    let mut domain = formatted.map_err(|error| error.to_string())?;
    for _ in 0..rounds {
        for worker in &workers {
            drop(sim.handle().spawn("worker", work(Rc::clone(worker), domain.clone(), arena.clone())));
        }
        // Sometimes so short that nothing was flushed yet since the recovery.
        let longest = if random.u8(0..3) == 0 { 600 } else { 60_000 };
        let until = sim.now + Duration::from_micros(random.u64(1..longest));
        while sim.now < until {
            if !sim.step() {
                return Err("all workers wait for ever".to_owned());
            }
        }
        // What is in memory at this very moment, and then all of it.
        let consistent = domain.verify();
        consistent.map_err(|what| format!("at the crash: {what}"))?;
        let task = domain.clone();
        let consistent = sim.block(async move { task.verify_all().await });
        consistent.map_err(|what| format!("before the crash: {what}"))?;
        summary.checkpoints += domain.info().checkpoints;
        summary.crashes += 1;
        // Sometimes the power goes again during recovery, or only the process dies, with the disk's cache intact.
        let mut cuts_left = random.u8(0..3).saturating_sub(1);
        drop(domain);
        domain = loop {
            let now = sim.now;
            drop(sim);
            if random.u8(0..3) == 0 {
                disk.restart();
                summary.restarts += 1;
            } else {
                disk.crash();
            }
            sim = SimLocality::new(random.u64(..), now, arena);
            let (handle, backend) = (sim.handle(), Box::new(disk.backend()));
            let opened = Rc::new(RefCell::new(None));
            let slot = Rc::clone(&opened);
            drop(sim.handle().spawn("open", async move {
                let result = Domain::open_tuned(&handle, backend, None, tuning).await;
                *slot.borrow_mut() = Some(result);
            }));
            let cut_at = (cuts_left > 0).then(|| sim.now + Duration::from_micros(random.u64(1..4000)));
            while opened.borrow().is_none() && cut_at.is_none_or(|at| sim.now < at) {
                if !sim.step() {
                    return Err("recovery waits for ever".to_owned());
                }
            }
            if let Some(result) = opened.take() {
                break result.map_err(|error| format!("recovery: {error}"))?;
            }
            cuts_left -= 1;
            summary.interrupted_recoveries += 1;
        };
        let task = domain.clone();
        let consistent = sim.block(async move { task.verify_all().await });
        consistent.map_err(|what| format!("after recovery: {what}"))?;
        let info = domain.info();
        if info.blocks_free + info.blocks_used != info.blocks_total {
            return Err(format!(
                "{} free and {} used are not {}",
                info.blocks_free, info.blocks_used, info.blocks_total
            ));
        }
        summary.dropped_tails += u64::from(info.dropped_tail);
        for worker in &workers {
            let number = worker.borrow().number;
            let mut known = vec![worker.borrow().durable.clone()];
            if let Some(step) = &worker.borrow().pending {
                let mut with_step = known[0].clone();
                with_step.apply(step);
                known.push(with_step);
            }
            let observed = sim.block(observe(domain.clone(), number, known))?;
            check(&mut worker.borrow_mut(), observed, &mut summary)?;
        }
    }
    summary.acknowledged = workers.iter().map(|worker| worker.borrow().acknowledged).sum();
    Ok(summary)
}

fn run_caught(seed: u64, mutation: Option<Mutation>, rounds: u32, arena: &Arena) -> Result<Summary, String> {
    catch_unwind(AssertUnwindSafe(|| run(seed, mutation, rounds, arena)))
        .unwrap_or_else(|_| Err("a panic, printed above".to_owned()))
}

#[test]
fn acknowledged_operations_survive_power_cuts_and_others_are_whole_or_absent() {
    let arena = arena();
    let mut sum = Summary::default();
    for seed in 0..300 {
        match run_caught(seed, None, 4, &arena) {
            Ok(summary) => sum += summary,
            Err(what) => panic!("seed {seed}: {what}"),
        }
    }
    println!("{sum:?}");
    // The test is worth something only if the interesting cases were met.
    assert!(sum.acknowledged > 20_000, "{sum:?}");
    assert!(sum.kept_under_way > 20 && sum.dropped_tails > 20 && sum.checkpoints > 500, "{sum:?}");
    assert!(sum.interrupted_recoveries > 50 && sum.restarts > 200, "{sum:?}");
    assert_eq!(arena.in_use_bytes(), 0, "no buffer is lost in a crash");
}

#[test]
fn the_same_seed_runs_the_same_way() {
    let arena = arena();
    let trace = |seed| format!("{:?}", run(seed, None, 3, &arena).unwrap());
    assert_eq!(trace(5), trace(5));
}

/// Each bug on purpose has to be caught within this many seeds.
const MUTATION_SEEDS: u64 = 300;

fn assert_caught(mutation: Mutation) {
    let arena = arena();
    let caught = (0..MUTATION_SEEDS)
        .find_map(|seed| run_caught(seed, Some(mutation), 4, &arena).err().map(|what| (seed, what)));
    let (seed, what) =
        caught.unwrap_or_else(|| panic!("{mutation:?} was not caught by {MUTATION_SEEDS} seeds"));
    println!("{mutation:?} caught by seed {seed}: {}", what.lines().next().unwrap_or_default());
}

#[test]
fn a_skipped_flush_is_caught() {
    assert_caught(Mutation::SkipFlush);
}

#[test]
fn an_answer_before_the_flush_is_caught() {
    assert_caught(Mutation::AnswerBeforeFlush);
}

#[test]
fn blocks_reused_before_the_flush_are_caught() {
    assert_caught(Mutation::ReuseBeforeFlush);
}

#[test]
fn a_trusted_tail_is_caught() {
    assert_caught(Mutation::TrustTail);
}

#[test]
fn a_log_freed_too_early_is_caught() {
    assert_caught(Mutation::ReleaseLogEarly);
}

#[test]
fn a_skipped_barrier_is_caught() {
    assert_caught(Mutation::SkipBarrier);
}

#[test]
fn a_lost_record_is_caught() {
    assert_caught(Mutation::LoseRecord);
}

#[test]
fn a_checkpoint_over_the_one_in_use_is_caught() {
    assert_caught(Mutation::CheckpointInPlace);
}

#[test]
fn a_page_that_a_checkpoint_leaves_out_is_caught() {
    assert_caught(Mutation::LostPage);
}

#[test]
fn a_page_written_in_place_is_caught() {
    assert_caught(Mutation::PageInPlace);
}

#[test]
fn bits_that_a_checkpoint_leaves_out_are_caught() {
    assert_caught(Mutation::LostBits);
}

#[test]
fn a_condition_is_refused_and_changes_nothing() {
    conditions_hold(None);
}

#[test]
fn a_condition_that_nobody_looks_at_is_caught() {
    assert!(catch_unwind(|| conditions_hold(Some(Mutation::SkipCondition))).is_err());
}

fn conditions_hold(mutation: Option<Mutation>) {
    let arena = arena();
    let regions = small_regions(64);
    let disk = SimDisk::new(1, regions.size_blocks, SimFaults::default());
    let mut sim = SimLocality::new(1, Instant::ZERO, &arena);
    let (handle, backend) = (sim.handle(), Box::new(disk.backend()));
    sim.block(async move {
        let tuning = tuned(regions, mutation);
        let domain = Domain::format_tuned(&handle, backend, PARAMS, tuning).await.unwrap();
        let put = |value: &[u8], expected: Option<&[u8]>| {
            let mut transaction = domain.begin();
            transaction.require(TREE, b"k", expected).tree_put(TREE, b"k", value);
            transaction
        };
        // Both under way in one group: the second sees the first.
        let (first, second) =
            futures_util::future::join(domain.commit(put(b"1", None)), domain.commit(put(b"2", None))).await;
        assert_eq!((first, second), (Ok(()), Err(StobError::BadRequest(BadRequest::Condition))));
        assert_eq!(domain.commit(put(b"3", Some(b"1"))).await, Ok(()));
        assert_eq!(domain.tree_get(TREE, b"k").as_deref(), Some(&b"3"[..]));
    });
}
