//! All short workloads, cut at every point, with every small subset of what was not flushed: nothing drawn, nothing left out.
//!
//! Each sequence of operations runs once on a device that records each write and flush. Then, for every prefix of these events, the
//! power goes: the writes since the last flush that covered them are kept all, none, all but one, all but two, or all with one torn
//! (after its first sector, before its last, or in its middle). Each such image is opened: acknowledged operations have to be
//! there, the one under way whole or absent, the owners of all blocks right, and every block readable. Then the power goes once more, right
//! after the recovery, with nothing of what it left unflushed: what was seen has to stay.
//!
//! `cargo test` runs sequences of up to two operations; `./dev crash --full` those of three (`CLOVIS_CRASH_FULL=1`).

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use base::Instant;
use runtime::Arena;

use crate::backend::{Backend, BlockDone, BlockOp, Geometry};
use crate::domain::mutation::Mutation;
use crate::format::regions::{Regions, Sizes};
use crate::testing::{PARAMS, SimLocality, arena, block_content, extent, pieces, small_pages, stob, tuned};
use crate::{Domain, StobError, TreeId};

type Block = Rc<[u8]>;
type Image = BTreeMap<u64, Block>;

enum Event {
    /// First block and the bytes of each.
    Write(u64, Vec<Block>),
    /// Covers the writes among so many first events.
    Flush(usize),
}

#[derive(Default)]
struct Tape {
    content: Image,
    events: Vec<Event>,
}

/// A device that does everything at once, in order, and remembers.
struct TapeDevice {
    tape: Rc<RefCell<Tape>>,
    size_blocks: u64,
    queue: VecDeque<(BlockOp, u64, usize)>,
}

impl Backend for TapeDevice {
    fn geometry(&self) -> Geometry {
        Geometry { size_blocks: self.size_blocks }
    }

    fn try_submit(&mut self, op: BlockOp, token: u64) -> Result<(), BlockOp> {
        let events = self.tape.borrow().events.len();
        self.queue.push_back((op, token, events));
        Ok(())
    }

    fn flush_queue(&mut self) {}

    fn poll(&mut self, _now: Instant, done: &mut Vec<BlockDone>) -> usize {
        let mut tape = self.tape.borrow_mut();
        let count = self.queue.len();
        for (op, token, submitted) in self.queue.drain(..) {
            let mut buffer = None;
            match op {
                BlockOp::Read { start_block, buffer: mut into } => {
                    for (block, bytes) in (start_block..).zip(into.chunks_exact_mut(4096)) {
                        match tape.content.get(&block) {
                            Some(content) => bytes.copy_from_slice(content),
                            None => bytes.fill(0),
                        }
                    }
                    buffer = Some(into);
                }
                BlockOp::Write { start_block, parts } => {
                    let blocks: Vec<Block> =
                        parts.iter().flat_map(|part| part.chunks_exact(4096)).map(Rc::from).collect();
                    for (block, bytes) in (start_block..).zip(&blocks) {
                        tape.content.insert(block, Rc::clone(bytes));
                    }
                    tape.events.push(Event::Write(start_block, blocks));
                }
                BlockOp::Flush => tape.events.push(Event::Flush(submitted)),
                BlockOp::Discard { .. } => {}
            }
            done.push(BlockDone { token, result: Ok(()), buffer });
        }
        count
    }

    fn next_deadline(&self) -> Option<Instant> {
        (!self.queue.is_empty()).then_some(Instant::ZERO)
    }

    fn wait_fd(&self) -> Option<RawFd> {
        None
    }
}

/// The operations of the issue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Write,
    Overwrite,
    Punch,
    Snapshot,
    Delete,
    TreePut,
    TreeDelete,
    Flush,
}

const OPS: [Op; 8] =
    [Op::Write, Op::Overwrite, Op::Punch, Op::Snapshot, Op::Delete, Op::TreePut, Op::TreeDelete, Op::Flush];

/// (stob, block) to the name of its content, and the one tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    blocks: BTreeMap<(u64, u64), (u64, u64)>,
    tree: BTreeMap<Vec<u8>, Vec<u8>>,
}

const TREE: TreeId = TreeId(1);
const STOB_BLOCKS: u64 = 16;

impl Model {
    fn write(&mut self, number: u64, id: u64, start: u64, count: u64) {
        for index in 0..count {
            self.blocks.insert((number, start + index), (id, index));
        }
    }

    fn apply(&mut self, op: Op, id: u64) {
        match op {
            Op::Write => self.write(1, id, 10, 3),
            Op::Overwrite => self.write(1, id, 1, 2),
            Op::Punch => self.blocks.retain(|(number, block), _| *number != 1 || !(2..4).contains(block)),
            Op::Snapshot => {
                self.blocks.retain(|(number, _), _| *number != 2);
                let copies: Vec<_> = self
                    .blocks
                    .range((1, 0)..(2, 0))
                    .map(|((_, block), name)| ((2, *block), *name))
                    .collect();
                self.blocks.extend(copies);
            }
            Op::Delete => self.blocks.retain(|(number, _), _| *number != 1),
            Op::TreePut => drop(self.tree.insert(b"key".to_vec(), id.to_le_bytes().to_vec())),
            Op::TreeDelete => drop(self.tree.remove(&b"first"[..])),
            Op::Flush => {}
        }
    }
}

async fn perform(domain: &Domain, arena: &Arena, op: Op, id: u64) -> Result<(), StobError> {
    let write = async |start, count| {
        let (pieces, checksums) = pieces(arena, id, &[(start, count)]);
        domain.write(stob(1), pieces, &checksums).await
    };
    match op {
        Op::Write => write(10, 3).await,
        Op::Overwrite => write(1, 2).await,
        Op::Punch => domain.punch(stob(1), extent(2, 2)).await,
        Op::Snapshot => domain.snapshot(stob(1), stob(2)).await,
        Op::Delete => domain.delete(stob(1)).await,
        Op::TreePut => {
            let mut transaction = domain.begin();
            transaction.tree_put(TREE, b"key", &id.to_le_bytes());
            domain.commit(transaction).await
        }
        Op::TreeDelete => {
            let mut transaction = domain.begin();
            transaction.tree_delete(TREE, b"first");
            domain.commit(transaction).await
        }
        Op::Flush => domain.flush().await,
    }
}

/// Everything that a domain holds, read and verified.
async fn observe(domain: Domain, names: Vec<(u64, u64)>) -> Result<Model, String> {
    domain.verify_all().await.map_err(|what| format!("verify: {what}"))?;
    let info = domain.info();
    if info.blocks_free + info.blocks_used != info.blocks_total {
        return Err(format!("free and used are not all: {info:?}"));
    }
    let contents: Vec<Vec<u8>> = names.iter().map(|(id, index)| block_content(*id, *index)).collect();
    let mut model = Model::default();
    for number in [1, 2] {
        let outcome = domain
            .read(stob(number), &[extent(0, STOB_BLOCKS)])
            .await
            .map_err(|error| format!("reading stob {number}: {error}"))?;
        for (block, bytes) in (0..).zip(outcome.parts[0].chunks_exact(4096)) {
            if outcome.absent.iter().any(|absent| absent.intersection(&extent(block, 1)).is_some()) {
                continue;
            }
            let name = contents.iter().position(|content| content == bytes);
            let name =
                name.ok_or_else(|| format!("block {block} of stob {number} holds what nobody wrote"))?;
            model.blocks.insert((number, block), names[name]);
        }
    }
    model.tree = domain.tree_range(TREE, Bound::Unbounded, 100).into_iter().collect();
    Ok(model)
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default)]
struct Cases {
    sequences: u64,
    crash_points: u64,
    images: u64,
    kept_under_way: u64,
    dropped_tails: u64,
    checkpoints: u64,
}

/// One sequence as it ran.
struct Run {
    /// What stood on the device, durably, before its first event.
    before: Image,
    events: Vec<Event>,
    /// Events that had happened when operation i was started, and when it was acknowledged.
    started: Vec<usize>,
    acknowledged: Vec<usize>,
    /// The state after i operations.
    states: Vec<Model>,
}

/// A log so short that a checkpoint falls into the sequence, or one that is long enough.
fn regions(is_short_log: bool) -> Regions {
    let log = if is_short_log { 8 } else { 32 };
    let sizes = Sizes { lead: 1, log, checkpoint: 4, pages: 2 * 40, slot: 2 };
    Regions::with_sizes(1 + log + 2 * 4 + 2 * 40 + 40 + 1, sizes).unwrap()
}

fn device(tape: &Rc<RefCell<Tape>>, regions: Regions) -> Box<TapeDevice> {
    Box::new(TapeDevice { tape: Rc::clone(tape), size_blocks: regions.size_blocks, queue: VecDeque::new() })
}

fn record(ops: &[Op], is_short_log: bool, mutation: Option<Mutation>, arena: &Arena) -> Result<Run, String> {
    let regions = regions(is_short_log);
    let tape = Rc::new(RefCell::new(Tape::default()));
    let mut sim = SimLocality::new(7, Instant::ZERO, arena);
    let (handle, backend) = (sim.handle(), device(&tape, regions));
    let mut model = Model::default();
    model.write(1, 1, 0, 5);
    model.tree.insert(b"first".to_vec(), b"value".to_vec());
    model.tree.insert(b"second".to_vec(), b"value".to_vec());
    let memory = arena.clone();
    let domain = sim.block(async move {
        let domain = Domain::format_tuned(&handle, backend, PARAMS, tuned(regions, mutation)).await?;
        let (pieces, checksums) = pieces(&memory, 1, &[(0, 5)]);
        domain.write(stob(1), pieces, &checksums).await?;
        let mut transaction = domain.begin();
        transaction.tree_put(TREE, b"first", b"value");
        domain.commit(transaction).await?;
        // The short log is half full now: the next record brings a checkpoint.
        for _ in 0..2 {
            let mut transaction = domain.begin();
            transaction.tree_put(TREE, b"second", b"value");
            domain.commit(transaction).await?;
        }
        Ok::<Domain, StobError>(domain)
    });
    let domain = domain.map_err(|error| error.to_string())?;
    // Let a confirmation pass, so that the setup is not in doubt.
    while sim.step() {}
    let before = {
        let mut tape = tape.borrow_mut();
        tape.events.clear();
        tape.content.clone()
    };
    let mut run = Run {
        before,
        events: Vec::new(),
        started: Vec::new(),
        acknowledged: Vec::new(),
        states: vec![model.clone()],
    };
    for (id, &op) in (100..).zip(ops) {
        run.started.push(tape.borrow().events.len());
        let (task, memory) = (domain.clone(), arena.clone());
        sim.block(async move { perform(&task, &memory, op, id).await })
            .map_err(|error| format!("{op:?}: {error}"))?;
        run.acknowledged.push(tape.borrow().events.len());
        model.apply(op, id);
        run.states.push(model.clone());
    }
    let names = names_of(&run);
    let seen = sim.block(observe(domain.clone(), names))?;
    if seen != model {
        return Err(format!("without any crash: {seen:?} is not {model:?}"));
    }
    while sim.step() {}
    run.events = std::mem::take(&mut tape.borrow_mut().events);
    Ok(run)
}

fn names_of(run: &Run) -> Vec<(u64, u64)> {
    let mut names: Vec<_> = run.states.iter().flat_map(|state| state.blocks.values().copied()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// What the device holds after some of the events, if of the unflushed writes those in `keep` reached it (whole, or so many sectors).
fn apply_write(image: &mut Image, event: &Event, sectors: Option<usize>) {
    let Event::Write(start, blocks) = event else { return };
    for (index, bytes) in blocks.iter().enumerate() {
        let block = start + index as u64;
        let kept = sectors.map_or(8, |sectors| sectors.saturating_sub(index * 8).min(8));
        if kept == 8 {
            image.insert(block, Rc::clone(bytes));
        } else if kept > 0 {
            let mut torn = image.get(&block).map_or_else(|| vec![0; 4096], |old| old.to_vec());
            torn[..kept * 512].copy_from_slice(&bytes[..kept * 512]);
            image.insert(block, Rc::from(torn));
        }
    }
}

/// Each subset of `count` unflushed writes that is tried: for each write what is kept of it (`None`: all; so many sectors).
fn subsets(sectors: &[usize]) -> Vec<Vec<Option<usize>>> {
    let count = sectors.len();
    let all = vec![None; count];
    let mut subsets = vec![all.clone()];
    if count == 0 {
        return subsets;
    }
    let mut add = |changes: &[(usize, usize)]| {
        let mut subset = all.clone();
        for &(write, kept) in changes {
            subset[write] = Some(kept);
        }
        if !subsets.contains(&subset) {
            subsets.push(subset);
        }
    };
    add(&(0..count).map(|write| (write, 0)).collect::<Vec<_>>());
    for (first, sectors) in sectors.iter().enumerate() {
        add(&[(first, 0)]);
        for kept in [1, sectors - 1, sectors / 2] {
            add(&[(first, kept)]);
        }
        for second in 0..first {
            add(&[(first, 0), (second, 0)]);
        }
    }
    subsets
}

/// Opens an image; gives what it holds and what is durable of it then.
fn recover(
    image: Image,
    regions: Regions,
    mutation: Option<Mutation>,
    names: &[(u64, u64)],
    arena: &Arena,
) -> Result<(Model, Image, bool), String> {
    let tape = Rc::new(RefCell::new(Tape { content: image.clone(), events: Vec::new() }));
    let mut sim = SimLocality::new(9, Instant::ZERO, arena);
    let (handle, backend) = (sim.handle(), device(&tape, regions));
    let tuning = small_pages(mutation);
    let domain = sim.block(async move { Domain::open_tuned(&handle, backend, Some(PARAMS), tuning).await });
    let domain = domain.map_err(|error| format!("open: {error}"))?;
    let dropped_tail = domain.info().dropped_tail;
    let model = sim.block(observe(domain, names.to_vec()))?;
    let mut durable = image;
    let tape = tape.borrow();
    let covered = covered(&tape.events);
    for (index, event) in tape.events.iter().enumerate() {
        if index < covered {
            apply_write(&mut durable, event, None);
        }
    }
    Ok((model, durable, dropped_tail))
}

/// Events that the flushes among `events` cover.
fn covered(events: &[Event]) -> usize {
    events
        .iter()
        .filter_map(|event| if let Event::Flush(covers) = event { Some(*covers) } else { None })
        .max()
        .unwrap_or(0)
}

fn crash_everywhere(
    ops: &[Op],
    is_short_log: bool,
    mutation: Option<Mutation>,
    arena: &Arena,
    cases: &mut Cases,
) -> Result<(), String> {
    let run = record(ops, is_short_log, mutation, arena)?;
    let (names, regions) = (names_of(&run), regions(is_short_log));
    cases.sequences += 1;
    let superblocks = run.events.iter().filter(|event| matches!(event, Event::Write(0, _))).count();
    cases.checkpoints += superblocks as u64;
    for point in 0..=run.events.len() {
        cases.crash_points += 1;
        let events = &run.events[..point];
        let covered = covered(events);
        let mut flushed = run.before.clone();
        events[..covered].iter().for_each(|event| apply_write(&mut flushed, event, None));
        let unflushed: Vec<&Event> =
            events[covered..].iter().filter(|event| matches!(event, Event::Write(..))).collect();
        let sectors: Vec<usize> = unflushed
            .iter()
            .map(|event| if let Event::Write(_, blocks) = event { blocks.len() * 8 } else { 0 })
            .collect();
        let acknowledged = run.acknowledged.iter().filter(|at| **at <= point).count();
        let under_way = run.started.iter().filter(|at| **at <= point).count() > acknowledged;
        for subset in subsets(&sectors) {
            cases.images += 1;
            let context = |what: String| {
                format!(
                    "{ops:?}, short log {is_short_log}, after {point} of {} events, kept {subset:?}: {what}",
                    run.events.len()
                )
            };
            let mut image = flushed.clone();
            for (event, kept) in unflushed.iter().zip(&subset) {
                apply_write(&mut image, event, *kept);
            }
            let (seen, durable, dropped_tail) =
                recover(image, regions, mutation, &names, arena).map_err(context)?;
            cases.dropped_tails += u64::from(dropped_tail);
            let is_old = seen == run.states[acknowledged];
            let is_new = under_way && seen == run.states[acknowledged + 1];
            cases.kept_under_way += u64::from(is_new && !is_old);
            if !is_old && !is_new {
                return Err(context(format!(
                    "{seen:?} is neither {:?} nor after the next",
                    run.states[acknowledged]
                )));
            }
            let (again, ..) = recover(durable, regions, mutation, &names, arena)
                .map_err(|what| context(format!("second crash: {what}")))?;
            if again != seen {
                return Err(context(format!("second crash: {again:?} after {seen:?} was seen")));
            }
        }
    }
    Ok(())
}

/// All sequences of exactly `length` operations.
fn sequences(length: u32) -> impl Iterator<Item = Vec<Op>> {
    let count = OPS.len().pow(length);
    (0..count)
        .map(move |number| (0..length).map(|place| OPS[number / OPS.len().pow(place) % OPS.len()]).collect())
}

/// Runs all sequences of up to `longest` operations. The error says which case failed.
fn exhaust(longest: u32, mutation: Option<Mutation>, arena: &Arena) -> Result<Cases, String> {
    let mut cases = Cases::default();
    for ops in (1..=longest).flat_map(sequences) {
        for is_short_log in [false, true] {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                crash_everywhere(&ops, is_short_log, mutation, arena, &mut cases)
            }));
            caught.unwrap_or_else(|_| Err(format!("{ops:?}: a panic, printed above")))?;
        }
    }
    Ok(cases)
}

#[test]
fn every_short_workload_survives_every_cut() {
    let longest = if std::env::var_os("CLOVIS_CRASH_FULL").is_some() { 3 } else { 2 };
    let arena = arena();
    let cases = exhaust(longest, None, &arena).unwrap_or_else(|what| panic!("{what}"));
    println!("sequences of up to {longest} operations: {cases:?}");
    assert!(cases.sequences >= 144 && cases.images > 2000, "{cases:?}");
    assert!(cases.kept_under_way > 50 && cases.dropped_tails > 50 && cases.checkpoints > 50, "{cases:?}");
}

/// The bugs that short workloads show; those that need a race are left to the random runs (`crash_tests`, `domain_tests`).
#[test]
fn seeded_bugs_are_caught_by_short_workloads() {
    let arena = arena();
    let mut missed = Vec::new();
    for mutation in Mutation::SHOWN_BY_SHORT_WORKLOADS {
        match exhaust(2, Some(mutation), &arena) {
            Err(what) => println!("{mutation:?}: {}", what.lines().next().unwrap_or_default()),
            Ok(cases) => missed.push((mutation, cases)),
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
