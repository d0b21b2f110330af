//! The driver's logic over the stand-in: what goes wrong, and when buffers come back. What goes right is in `conformance`.

use std::time::Duration;

use spdk_sys::stand_in::{self, DeviceOptions, Kind, Plugged};

use super::*;
use crate::backend::WriteParts;
use crate::testing::arena;

/// A device over a file of its own. Taken apart in this order, the device ends before it is unplugged.
pub(crate) fn stand_in(size_blocks: u64, options: DeviceOptions) -> (Plugged, SpdkDevice) {
    let plugged = plug(size_blocks, options);
    let device = open(&plugged);
    (plugged, device)
}

fn plug(size_blocks: u64, options: DeviceOptions) -> Plugged {
    let file = tempfile::tempfile().unwrap();
    file.set_len(size_blocks * BLOCK_BYTES).unwrap();
    stand_in::plug(file, options)
}

pub(crate) fn address(plugged: &Plugged) -> NvmeAddress {
    NvmeAddress { controller: plugged.address().clone(), namespace: 1 }
}

pub(crate) fn open(plugged: &Plugged) -> SpdkDevice {
    SpdkDevice::open_with(Spdk::stand_in(), &address(plugged)).unwrap()
}

struct Bench {
    device: SpdkDevice,
    plugged: Plugged,
    arena: Arena,
    now: Instant,
    done: Vec<BlockDone>,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(DeviceOptions::default())
    }

    fn with(options: DeviceOptions) -> Bench {
        let (plugged, mut device) = stand_in(64, options);
        let arena = arena();
        device.register(&arena).unwrap();
        Bench { device, plugged, arena, now: Instant::ZERO, done: Vec::new() }
    }

    fn read(&mut self, start_block: u64, token: u64) {
        let buffer = self.arena.try_alloc(4096).unwrap();
        self.device.try_submit(BlockOp::Read { start_block, buffer }, token).unwrap();
    }

    fn write(&mut self, start_block: u64, token: u64) {
        let parts: WriteParts = [self.arena.try_alloc(4096).unwrap().freeze()].into_iter().collect();
        self.device.try_submit(BlockOp::Write { start_block, parts }, token).unwrap();
    }

    /// A few turns at one time: everything that needs no time happens.
    fn turns(&mut self) {
        for _ in 0..20 {
            self.device.flush_queue();
            self.device.poll(self.now, &mut self.done);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.turns();
    }

    fn result(&mut self, token: u64) -> Result<(), DeviceError> {
        let index = self.done.iter().position(|done| done.token == token).expect("not done yet");
        self.done.swap_remove(index).result
    }
}

#[test]
fn operations_of_a_turn_leave_with_one_doorbell() {
    let mut bench = Bench::new();
    for block in 0..32 {
        bench.write(block, block);
    }
    assert_eq!(bench.plugged.counts().doorbells, 0, "nothing leaves before the end of the turn");
    bench.device.flush_queue();
    assert_eq!(bench.plugged.counts().doorbells, 1);
    bench.turns();
    assert_eq!(bench.done.len(), 32);
    assert_eq!(bench.plugged.counts().doorbells, 1);
    assert_eq!(bench.plugged.counts().in_flight_max, 32);
}

#[test]
fn an_idle_device_asks_for_a_turn_a_second_and_a_busy_one_at_once() {
    let mut bench = Bench::new();
    bench.turns();
    assert_eq!(bench.device.next_deadline(), Some(Instant::ZERO + NVME_ADMIN_TIME));
    assert_eq!(bench.device.wait_fd(), None);
    let polls = bench.plugged.counts().admin_polls;
    bench.pass(NVME_ADMIN_TIME);
    assert_eq!(bench.plugged.counts().admin_polls, polls + 1);
    bench.read(0, 1);
    assert_eq!(bench.device.next_deadline(), Some(Instant::ZERO));
}

#[test]
fn a_flush_is_sent_only_to_a_controller_with_a_volatile_cache() {
    for has_volatile_cache in [true, false] {
        let mut bench = Bench::with(DeviceOptions { has_volatile_cache, ..DeviceOptions::default() });
        assert_eq!(bench.device.has_volatile_cache(), has_volatile_cache);
        bench.device.try_submit(BlockOp::Flush, 1).unwrap();
        bench.turns();
        assert_eq!(bench.result(1), Ok(()));
        let sent = bench.plugged.counts().done.get(&Kind::Flush).copied();
        assert_eq!(sent, has_volatile_cache.then_some(1));
    }
}

#[test]
fn what_the_controller_answers_reaches_the_caller_by_its_name() {
    let mut bench = Bench::new();
    let unreadable = NvmeStatus { kind: 2, code: 0x81, is_final: true };
    let fault = NvmeStatus { kind: 2, code: 0x80, is_final: false };
    bench.plugged.set_faults(|faults| {
        faults.statuses.insert(Kind::Read, (unreadable, 1));
        faults.statuses.insert(Kind::Write, (fault, 1));
        faults.statuses.insert(Kind::Flush, (fault, 1));
        faults.statuses.insert(Kind::Deallocate, (fault, 1));
    });
    bench.read(5, 1);
    bench.write(6, 2);
    bench.device.try_submit(BlockOp::Flush, 3).unwrap();
    bench.device.try_submit(BlockOp::Discard { extent: BlockExtent { start: 0, count: 2 } }, 4).unwrap();
    bench.turns();
    let error = bench.result(1).unwrap_err();
    let extent = BlockExtent { start: 5, count: 1 };
    assert_eq!(error, DeviceError::Nvme { operation: Operation::Read, extent, status: unreadable });
    assert!(error.to_string().contains("unrecovered read error (NVMe status 0x2/0x81)"), "{error}");
    assert!(matches!(bench.result(2), Err(DeviceError::Nvme { operation: Operation::Write, .. })));
    assert!(matches!(bench.result(3), Err(DeviceError::Nvme { operation: Operation::Flush, .. })));
    assert_eq!(bench.result(4), Ok(()), "a discard is a hint");
    // It goes on after that.
    bench.read(5, 5);
    bench.turns();
    assert_eq!(bench.result(5), Ok(()));
}

#[test]
fn a_late_operation_is_aborted_and_its_buffer_comes_back() {
    let mut bench = Bench::new();
    bench.plugged.set_faults(|faults| {
        faults.hangs.insert(Kind::Read, 1);
    });
    bench.read(1, 1);
    bench.turns();
    bench.write(2, 2);
    bench.pass(NVME_COMMAND_TIME - Duration::from_millis(1));
    assert_eq!(bench.result(2), Ok(()), "others are not held up");
    assert!(bench.done.is_empty() && bench.plugged.counts().aborts == 0);
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.plugged.counts().aborts, 1);
    assert!(bench.done[0].buffer.is_some());
    let error = bench.result(1).unwrap_err();
    assert!(
        matches!(error, DeviceError::TimedOut { operation: Operation::Read, after: NVME_COMMAND_TIME, .. }),
        "{error}"
    );
    drop(std::mem::take(&mut bench.done));
    assert_eq!(bench.arena.in_use_bytes(), 0);
    bench.read(1, 3);
    bench.turns();
    assert_eq!(bench.result(3), Ok(()), "the device is not given up for one late command");
}

#[test]
fn a_command_done_although_its_abort_was_asked_for_counts_as_done() {
    let mut bench = Bench::new();
    bench.plugged.set_faults(|faults| {
        faults.hangs.insert(Kind::Write, 1);
        faults.finishes_aborted = true;
    });
    bench.write(1, 1);
    bench.turns();
    bench.pass(NVME_COMMAND_TIME);
    assert_eq!(bench.plugged.counts().aborts, 1);
    assert_eq!(bench.result(1), Ok(()));
}

#[test]
fn an_aborted_command_has_time_to_come_back() {
    let mut bench = Bench::new();
    bench.plugged.set_faults(|faults| {
        faults.hangs.insert(Kind::Read, 2);
        faults.ignores_aborts = true;
    });
    bench.read(1, 1);
    bench.turns();
    bench.pass(Duration::from_secs(1));
    bench.read(2, 2);
    bench.turns();
    // Both are noticed late, and have their time from then.
    bench.pass(NVME_COMMAND_TIME * 2);
    assert_eq!((bench.plugged.counts().aborts, bench.done.len()), (2, 0));
    bench.pass(NVME_ABORT_TIME - Duration::from_millis(1));
    assert_eq!((bench.device.state_name(), bench.done.len()), ("running", 0));
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.device.state_name(), "stopped");
    assert_eq!(bench.done.len(), 2);
}

#[test]
fn a_controller_that_ignores_an_abort_is_stopped_before_buffers_come_back() {
    let mut bench = Bench::new();
    bench.plugged.set_faults(|faults| {
        faults.ignores_aborts = true;
        faults.hangs.insert(Kind::Read, 1);
    });
    bench.read(1, 1);
    bench.turns();
    bench.pass(NVME_COMMAND_TIME);
    bench.now = bench.now + NVME_ABORT_TIME;
    bench.write(2, 2);
    bench.device.flush_queue();
    // The turn that sees the second deadline only begins to stop.
    bench.device.poll(bench.now, &mut bench.done);
    assert_eq!(bench.device.state_name(), "stopping");
    assert!(bench.done.iter().all(|done| done.token != 1), "not before it stopped");
    bench.device.try_submit(BlockOp::Flush, 3).unwrap();
    bench.turns();
    assert_eq!(bench.device.state_name(), "stopped");
    for token in [1, 3] {
        let error = bench.result(token).unwrap_err();
        assert!(matches!(error, DeviceError::Lost { .. }), "{error}");
    }
    assert_eq!(bench.device.next_deadline(), None, "nothing to do until it is reopened");
    bench.done.clear();
    assert_eq!(bench.arena.in_use_bytes(), 0, "it stopped, so every buffer came back");

    // Reopened, it works again.
    let Bench { device, plugged, arena, .. } = bench;
    drop(device);
    plugged.set_faults(|faults| *faults = stand_in::Faults::default());
    let mut device = open(&plugged);
    device.register(&arena).unwrap();
    assert_eq!(plugged.counts().attached, 2);
}

#[test]
fn a_lost_controller_fails_what_is_in_flight_and_what_comes_after() {
    for is_removed in [false, true] {
        let mut bench = Bench::new();
        for token in 0..10 {
            bench.read(token, token);
        }
        bench.device.flush_queue();
        bench.plugged.set_faults(|faults| {
            faults.is_lost = !is_removed;
            faults.is_removed = is_removed;
        });
        bench.turns();
        bench.write(1, 10);
        bench.turns();
        assert_eq!(bench.done.len(), 11);
        for token in 0..11 {
            assert!(matches!(bench.result(token), Err(DeviceError::Lost { .. })), "{token}");
        }
    }
}

#[test]
fn an_idle_lost_controller_is_noticed_within_a_second() {
    let mut bench = Bench::new();
    bench.turns();
    bench.plugged.set_faults(|faults| faults.is_lost = true);
    bench.pass(NVME_ADMIN_TIME);
    assert_eq!(bench.device.state_name(), "stopped");
}

#[test]
fn a_controller_that_does_not_stop_keeps_the_buffers() {
    let mut bench = Bench::new();
    bench.plugged.set_faults(|faults| {
        faults.hangs.insert(Kind::Read, 1);
        faults.ignores_aborts = true;
        faults.ignores_stop = true;
    });
    bench.read(1, 1);
    bench.turns();
    bench.pass(NVME_COMMAND_TIME);
    bench.pass(NVME_ABORT_TIME);
    assert!(bench.done[0].buffer.is_none());
    assert!(matches!(bench.result(1), Err(DeviceError::Lost { .. })));
    assert_eq!(bench.arena.in_use_bytes(), 4096, "the device may still write to it: it is lost, not reused");
}

#[test]
fn a_device_dropped_with_operations_in_flight_gives_everything_back() {
    for hangs in [false, true] {
        let mut bench = Bench::new();
        if hangs {
            bench.plugged.set_faults(|faults| {
                faults.hangs.insert(Kind::Read, 3);
                faults.ignores_aborts = true;
            });
        }
        for token in 0..10 {
            bench.read(token, token);
        }
        bench.device.flush_queue();
        if hangs {
            bench.turns();
            bench.pass(NVME_COMMAND_TIME);
        }
        let Bench { device, plugged, arena, done, .. } = bench;
        drop((device, done));
        assert_eq!(arena.in_use_bytes(), 0);
        assert!(!stand_in::is_registered(&arena), "the memory is unregistered with its last user");
        assert_eq!(plugged.counts().open, 0);
    }
}

#[test]
fn memory_that_is_not_the_arenas_is_refused_and_comes_back() {
    let mut bench = Bench::new();
    let other = arena();
    let buffer = other.try_alloc(4096).unwrap();
    bench.device.try_submit(BlockOp::Read { start_block: 0, buffer }, 1).unwrap();
    let unaligned = bench.arena.try_alloc(8192).unwrap().freeze().slice(512..4608);
    let parts = [unaligned].into_iter().collect();
    bench.device.try_submit(BlockOp::Write { start_block: 0, parts }, 2).unwrap();
    bench.turns();
    assert!(bench.done.iter().any(|done| done.token == 1 && done.buffer.is_some()));
    for token in [1, 2] {
        let error = bench.result(token).unwrap_err();
        assert!(matches!(error, DeviceError::Memory { reason: None, .. }), "{error}");
        assert!(error.to_string().contains("aligned to 4096"), "{error}");
    }
}

#[test]
fn a_registration_that_reaches_nothing_is_found_out_and_told_with_each_operation() {
    let (_plugged, mut device) = stand_in(64, DeviceOptions::default());
    let arena = arena();
    let _fault = stand_in::make_unreachable(&arena);
    let error = device.register(&arena).unwrap_err();
    assert!(error.to_string().contains("ulimit -l"), "{error}");
    assert!(!stand_in::is_registered(&arena));
    device.try_submit(BlockOp::Read { start_block: 0, buffer: arena.try_alloc(4096).unwrap() }, 1).unwrap();
    let mut done = Vec::new();
    device.poll(Instant::ZERO, &mut done);
    let error = done[0].result.clone().unwrap_err();
    assert!(
        matches!(error, DeviceError::Memory { reason: Some(SpdkError::NotReachable { .. }), .. }),
        "{error}"
    );
}

#[test]
fn without_an_iommu_memory_that_may_move_is_refused() {
    let (_plugged, mut device) = stand_in(64, DeviceOptions::default());
    let arena = arena();
    let _fault = stand_in::make_physical(&arena);
    let error = device.register(&arena).unwrap_err();
    assert!(error.to_string().contains("huge pages"), "{error}");
}

#[test]
fn one_arena_is_registered_once_for_many_devices() {
    let plugged = [plug(64, DeviceOptions::default()), plug(64, DeviceOptions::default())];
    let arena = arena();
    let mut devices = plugged.each_ref().map(open);
    for device in &mut devices {
        device.register(&arena).unwrap();
        device.register(&arena).unwrap();
    }
    let [first, second] = devices;
    drop(first);
    assert!(stand_in::is_registered(&arena), "the second still uses it");
    drop(second);
    assert!(!stand_in::is_registered(&arena));
}

#[test]
fn a_namespace_has_one_user_and_must_be_there_and_of_our_format() {
    let plugged = plug(64, DeviceOptions::default());
    let first = open(&plugged);
    let error = |address: &NvmeAddress| SpdkDevice::open_with(Spdk::stand_in(), address).err().unwrap();
    assert!(matches!(error(&address(&plugged)), SpdkError::InUse { namespace: 1, .. }));
    drop(first);
    drop(open(&plugged));
    let second = NvmeAddress { namespace: 2, ..address(&plugged) };
    assert!(matches!(error(&second), SpdkError::NoNamespace { namespace: 2, .. }));
    plugged.set_faults(|faults| faults.is_deaf = true);
    assert!(matches!(error(&address(&plugged)), SpdkError::Connect { .. }));

    for (sector_bytes, metadata_bytes) in [(512, 8), (8192, 0), (520, 0)] {
        let options = DeviceOptions { sector_bytes, metadata_bytes, ..DeviceOptions::default() };
        let plugged = plug(64, options);
        assert!(matches!(error(&address(&plugged)), SpdkError::Format { .. }), "{sector_bytes}");
    }
}

#[test]
fn a_refusal_with_nothing_in_flight_is_an_error_and_not_a_wait_for_ever() {
    let mut bench = Bench::new();
    bench.plugged.set_faults(|faults| faults.refusals = 1);
    bench.read(0, 1);
    bench.turns();
    assert!(matches!(bench.result(1), Err(DeviceError::Errno { errno: ENOMEM, .. })));
}

#[test]
fn the_controller_says_what_it_is() {
    let (_plugged, device) = stand_in(64, DeviceOptions::default());
    let identity = device.identity();
    assert_eq!(identity.model, "a file that stands in for a controller");
    assert_eq!((identity.serial.as_str(), identity.firmware.as_str()), ("serial of a file", "1.0"));
    assert_eq!(device.geometry(), Geometry { size_blocks: 64 });
}

#[test]
#[cfg(not(feature = "spdk"))]
fn a_build_without_spdk_says_so() {
    let error = super::open_device("nvme:0000:00:04.0", OpenOptions::default()).err().unwrap();
    assert!(error.to_string().contains("--features spdk"), "{error}");
    let error = super::open_device("nvme:00:04", OpenOptions::default()).err().unwrap();
    assert!(error.to_string().contains("lspci -D"), "{error}");
}

/// A domain on the stand-in: formatted, written, lost power by process death, recovered.
#[test]
fn a_domain_lives_on_it() {
    use crate::testing::{PARAMS, SimLocality, block_content, extent, pieces, stob};
    let plugged = plug(4096, DeviceOptions::default());
    let arena = arena();
    for round in 0..4_u64 {
        let mut sim = SimLocality::new(round, Instant::ZERO, &arena);
        let (handle, backend) = (sim.handle(), Box::new(open(&plugged)));
        let domain = sim.block(async move {
            if round == 0 {
                crate::Domain::format(&handle, backend, PARAMS).await
            } else {
                crate::Domain::open(&handle, backend, Some(PARAMS)).await
            }
        });
        let domain = domain.unwrap();
        for id in 0..round * 10 {
            let task = domain.clone();
            let outcome = sim.block(async move { task.read(stob(id % 3), &[extent(id, 1)]).await }).unwrap();
            assert_eq!(&outcome.parts[0][..], &block_content(id, 0)[..], "round {round}, {id}");
        }
        for id in round * 10..(round + 1) * 10 {
            let (pieces, checksums) = pieces(&arena, id, &[(id, 1)]);
            let task = domain.clone();
            sim.block(async move { task.write(stob(id % 3), pieces, &checksums).await }).unwrap();
        }
        // Rounds end without close: what was acknowledged is in the log.
        drop((domain, sim));
        assert_eq!(plugged.counts().open, 0);
    }
}
