//! What every backend promises, run on all of them: memory, the simulated disk without faults, a file by each way of moving
//! bytes, and SPDK's driver logic over the stand-in (spdk-sys), with several shapes of device.

use std::collections::BTreeMap;

use base::units::{BLOCK_BYTES, narrow};
use base::{BlockExtent, Instant};
use runtime::{Arena, SharedBuffer};
use spdk_sys::stand_in::{DeviceOptions, Plugged};

use super::spdk::tests::stand_in;
use super::{
    Backend, BackendKind, BlockDone, BlockOp, DeviceError, Direct, MemDevice, OpenOptions, SimDisk,
    SimFaults, UringFile, WriteParts, create_device_file,
};
use crate::limits::DEVICE_QUEUE_DEPTH;

const SIZE_BLOCKS: u64 = 512;
/// Polls without a completion that count as stuck; a file on a busy machine needs many.
const POLLS_MAX: u64 = 100_000_000;

/// A backend under test, what keeps its device alive, and the tokens that it has not answered.
struct Subject {
    name: String,
    backend: Box<dyn Backend>,
    arena: Arena,
    now: Instant,
    asked: BTreeMap<u64, ()>,
    next_token: u64,
    // Dropped after the backend.
    _plugged: Option<Plugged>,
    _folder: Option<tempfile::TempDir>,
}

impl Subject {
    fn new(name: &str, mut backend: Box<dyn Backend>) -> Subject {
        let arena = crate::testing::arena();
        backend.register(&arena).unwrap();
        let (asked, now) = (BTreeMap::new(), Instant::ZERO);
        Subject {
            name: name.to_owned(),
            backend,
            arena,
            now,
            asked,
            next_token: 7,
            _plugged: None,
            _folder: None,
        }
    }

    fn try_submit(&mut self, op: BlockOp) -> Result<u64, BlockOp> {
        let token = self.next_token;
        self.backend.try_submit(op, token)?;
        self.next_token += 1;
        assert!(self.asked.insert(token, ()).is_none());
        Ok(token)
    }

    fn poll(&mut self, done: &mut Vec<BlockDone>) -> usize {
        let before = done.len();
        self.backend.flush_queue();
        let count = self.backend.poll(self.now, done);
        assert_eq!(count, done.len() - before, "{}: poll says how many it appended", self.name);
        for one in &done[before..] {
            assert!(
                self.asked.remove(&one.token).is_some(),
                "{}: {} twice or never asked",
                self.name,
                one.token
            );
        }
        if count == 0 {
            // Virtual time moves on when there is nothing else to do.
            if let Some(at) = self.backend.next_deadline().filter(|_| self.backend.wait_fd().is_none()) {
                self.now = self.now.max(at);
            }
        }
        count
    }

    /// Polls until everything asked is answered.
    fn drain(&mut self) -> Vec<BlockDone> {
        let (mut done, mut polls) = (Vec::new(), 0);
        while !self.asked.is_empty() {
            if self.poll(&mut done) == 0 {
                polls += 1;
                assert!(polls < POLLS_MAX, "{}: stuck", self.name);
                std::thread::yield_now();
            }
        }
        done
    }

    /// Does one operation, waiting for room if need be.
    fn submit(&mut self, mut op: BlockOp, done: &mut Vec<BlockDone>) -> u64 {
        loop {
            match self.try_submit(op) {
                Ok(token) => return token,
                Err(again) => op = again,
            }
            self.poll(done);
        }
    }

    fn run(&mut self, op: BlockOp) -> BlockDone {
        self.submit(op, &mut Vec::new());
        self.drain().pop().unwrap()
    }

    fn buffer(&self, byte: u8, blocks: u64) -> SharedBuffer {
        let mut buffer = self.arena.try_alloc(narrow(blocks * BLOCK_BYTES)).unwrap();
        buffer.fill(byte);
        buffer.freeze()
    }

    fn read(&self, start_block: u64, blocks: u64) -> BlockOp {
        BlockOp::Read { start_block, buffer: self.arena.try_alloc(narrow(blocks * BLOCK_BYTES)).unwrap() }
    }
}

/// One of each, blank.
fn subjects() -> Vec<Subject> {
    let mut all = vec![
        Subject::new("mem", Box::new(MemDevice::new(SIZE_BLOCKS))),
        Subject::new("sim", Box::new(SimDisk::new(5, SIZE_BLOCKS, SimFaults::default()).backend())),
    ];
    for kind in [BackendKind::Uring, BackendKind::Threads, BackendKind::Inline] {
        for direct in [Direct::Auto, Direct::Never] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("device");
            create_device_file(&path, SIZE_BLOCKS * BLOCK_BYTES).unwrap();
            let name = format!("file by {kind:?}, direct {direct:?}");
            match UringFile::open(&path, OpenOptions { direct, kind, ..Default::default() }) {
                Ok(file) => {
                    let subject = Subject::new(&name, Box::new(file));
                    all.push(Subject { _folder: Some(folder), ..subject });
                }
                // Containers forbid io_uring; the other kinds have to open.
                Err(error) if kind == BackendKind::Uring => println!("{name}: not run here: {error}"),
                Err(error) => panic!("{name}: {error}"),
            }
        }
    }
    let usual = DeviceOptions::default();
    let shapes = [
        ("sectors of 512", usual.clone()),
        ("sectors of 4096", DeviceOptions { sector_bytes: 4096, ..usual.clone() }),
        ("short transfers", DeviceOptions { max_transfer_bytes: 8192, seed: 2, ..usual.clone() }),
        ("odd transfers", DeviceOptions { max_transfer_bytes: 12288, seed: 3, ..usual.clone() }),
        ("few requests", DeviceOptions { queue_requests: 5, seed: 4, ..usual.clone() }),
        (
            "no cache, no deallocation",
            DeviceOptions { has_volatile_cache: false, deallocates: false, ..usual },
        ),
    ];
    for (name, options) in shapes {
        let (plugged, device) = stand_in(SIZE_BLOCKS, options);
        let subject = Subject::new(&format!("spdk (stand-in, {name})"), Box::new(device));
        all.push(Subject { _plugged: Some(plugged), ..subject });
    }
    all
}

#[test]
fn what_was_written_is_read_back_in_any_order_of_completions() {
    for mut subject in subjects() {
        let mut random = fastrand::Rng::with_seed(9);
        let mut model = vec![0_u8; narrow(SIZE_BLOCKS)];
        for round in 0..20 {
            // Extents of one round do not overlap: their order is not promised.
            let mut done = Vec::new();
            let mut next = random.u64(0..20);
            while next < SIZE_BLOCKS - 40 {
                let lengths: Vec<u64> = (0..random.usize(1..5)).map(|_| random.u64(1..9)).collect();
                let byte = random.u8(1..);
                let parts = lengths.iter().map(|blocks| {
                    let whole = subject.buffer(byte, blocks + 1);
                    // Not the start of its buffer, so that addresses differ from buffers.
                    whole.slice(4096..whole.len())
                });
                let parts: WriteParts = parts.collect();
                let count: u64 = lengths.iter().sum();
                subject.submit(BlockOp::Write { start_block: next, parts }, &mut done);
                model[narrow(next)..narrow(next + count)].fill(byte);
                next += count + random.u64(0..60);
            }
            done.extend(subject.drain());
            assert!(done.iter().all(|one| one.result.is_ok() && one.buffer.is_none()), "{}", subject.name);
            if round % 5 == 0 {
                let flushed = subject.run(BlockOp::Flush);
                assert_eq!((flushed.result, flushed.buffer.is_none()), (Ok(()), true), "{}", subject.name);
            }
            let mut reads = BTreeMap::new();
            let mut done = Vec::new();
            for _ in 0..30 {
                let (start, count) = (random.u64(0..SIZE_BLOCKS - 32), random.u64(1..32));
                let op = subject.read(start, count);
                reads.insert(subject.submit(op, &mut done), (start, count));
            }
            done.extend(subject.drain());
            assert_eq!(done.len(), reads.len());
            for one in done {
                let (start, count) = reads[&one.token];
                assert_eq!(one.result, Ok(()), "{}", subject.name);
                let buffer = one.buffer.unwrap();
                assert_eq!(buffer.len() as u64, count * BLOCK_BYTES);
                for (index, block) in buffer.chunks_exact(narrow(BLOCK_BYTES)).enumerate() {
                    let wanted = model[narrow(start) + index];
                    assert!(block.iter().all(|byte| *byte == wanted), "{}: block {}", subject.name, index);
                }
            }
        }
        let arena = subject.arena.clone();
        drop(subject);
        assert_eq!(arena.in_use_bytes(), 0, "every buffer came back");
    }
}

#[test]
fn a_full_queue_gives_the_operation_back_and_goes_on_after_completions() {
    for mut subject in subjects() {
        let mut taken = 0;
        let refused = loop {
            let op = subject.read(taken, 1);
            match subject.try_submit(op) {
                Ok(_) => taken += 1,
                Err(op) => break op,
            }
            assert!(taken <= DEVICE_QUEUE_DEPTH as u64, "{}: no bound", subject.name);
        };
        assert!(taken >= 4, "{}: {taken}", subject.name);
        assert!(matches!(refused, BlockOp::Read { start_block, .. } if start_block == taken));
        assert_eq!(subject.drain().len() as u64, taken);
        assert_eq!(subject.run(refused).result, Ok(()), "{}", subject.name);
    }
}

#[test]
fn what_lies_outside_the_device_is_refused_with_the_buffer_and_changes_nothing() {
    for mut subject in subjects() {
        for (start, count) in
            [(SIZE_BLOCKS, 1), (SIZE_BLOCKS - 1, 2), (u64::MAX - 1, 3), (u64::MAX / 4096, 1)]
        {
            let op = subject.read(start, count);
            let done = subject.run(op);
            let extent = BlockExtent { start, count };
            assert!(
                matches!(&done.result, Err(DeviceError::OutOfRange { extent: of, size_blocks: SIZE_BLOCKS, .. }) if *of == extent),
                "{}: {:?}",
                subject.name,
                done.result
            );
            assert_eq!(done.buffer.unwrap().len() as u64, count * BLOCK_BYTES, "{}", subject.name);
            let parts = [subject.buffer(1, count)].into_iter().collect();
            let done = subject.run(BlockOp::Write { start_block: start, parts });
            assert!(matches!(done.result, Err(DeviceError::OutOfRange { .. })), "{}", subject.name);
        }
        let op = subject.read(SIZE_BLOCKS - 1, 1);
        let last = subject.run(op);
        assert!(
            last.result.is_ok() && last.buffer.unwrap().iter().all(|byte| *byte == 0),
            "{}",
            subject.name
        );
    }
}

#[test]
fn a_discard_is_taken_and_leaves_its_neighbours() {
    for mut subject in subjects() {
        let parts = [subject.buffer(3, 8)].into_iter().collect();
        assert_eq!(subject.run(BlockOp::Write { start_block: 8, parts }).result, Ok(()));
        let extent = BlockExtent { start: 10, count: 4 };
        assert_eq!(subject.run(BlockOp::Discard { extent }).result, Ok(()), "{}", subject.name);
        let op = subject.read(8, 8);
        let read = subject.run(op).buffer.unwrap();
        let (before, after) = (&read[..2 * 4096], &read[6 * 4096..]);
        assert!(before.iter().chain(after).all(|byte| *byte == 3), "{}", subject.name);
    }
}
