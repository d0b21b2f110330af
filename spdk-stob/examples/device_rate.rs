//! The rate of a raw device by each backend, as fio and spdk_nvme_perf measure it: one kind of operation, one depth, one thread.
//!
//! `cargo run --release -p spdk-stob --example device_rate -- DEVICE randread|randwrite|read|write BYTES DEPTH SECONDS`.
//! DEVICE is a file, a block device, or `nvme:0000:00:04.0` (feature `spdk`). **Writes destroy what is on the device.**
//! A write ends with a flush, counted in the time. Bounded by SECONDS.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use base::Instant;
use base::units::{BLOCK_BYTES, MIB, narrow, wide};
use runtime::{
    Arena, ArenaConfig, Buffer, Counters, Locality, LocalityConfig, MonotonicClock, SharedBuffer, process,
};
use spdk_stob::{Backend, BlockDone, BlockOp, OpenOptions, is_nvme_address, open_device};

type Failure = Box<dyn std::error::Error>;

#[derive(Clone, Copy)]
struct Work {
    is_write: bool,
    is_random: bool,
    blocks: u64,
    depth: u64,
    time: Duration,
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [device, kind, bytes, depth, seconds] = arguments.as_slice() else {
        return Err("usage: device_rate DEVICE randread|randwrite|read|write BYTES DEPTH SECONDS".into());
    };
    let (is_write, is_random) = match kind.as_str() {
        "randread" => (false, true),
        "randwrite" => (true, true),
        "read" => (false, false),
        "write" => (true, false),
        other => return Err(format!("no such kind of operation: {other}").into()),
    };
    let blocks = bytes.parse::<u64>()? / BLOCK_BYTES;
    let work = Work {
        is_write,
        is_random,
        blocks: blocks.clamp(1, 256),
        depth: depth.parse::<u64>()?.clamp(1, 128),
        time: Duration::from_secs(seconds.parse()?),
    };
    let config = ArenaConfig { capacity_bytes: 160 * MIB };
    let in_huge_pages = is_nvme_address(device.as_ref()).then(|| Arena::in_huge_pages(config).ok()).flatten();
    let arena = in_huge_pages.map_or_else(|| Arena::new(config), Ok)?;
    let counters = Arc::new(Counters::default());
    let locality = Locality::new(LocalityConfig {
        index: 0,
        name: "device_rate".to_owned(),
        seed: 1,
        counters: Arc::clone(&counters),
        arena: arena.clone(),
        crowd: None,
    });
    let mut backend = open_device(device, OpenOptions::default())?;
    backend.attach(&locality.handle());
    backend.register(&arena)?;
    let cores = process::allowed_cores()?;
    run(backend.as_mut(), &arena, work, &format!("{device} {kind} {bytes} x{depth}"), &counters)?;
    drop(backend);
    if cores != process::allowed_cores()? {
        return Err("the backend left this thread on other cores".into());
    }
    Ok(())
}

fn run(
    backend: &mut dyn Backend,
    arena: &Arena,
    work: Work,
    name: &str,
    counters: &Counters,
) -> Result<(), Failure> {
    let places = backend.geometry().size_blocks / work.blocks;
    let bytes = narrow(work.blocks * BLOCK_BYTES);
    let mut random = fastrand::Rng::with_seed(1);
    let mut buffers: Vec<Buffer> = (0..work.depth).filter_map(|_| arena.try_alloc(bytes)).collect();
    let source: Option<SharedBuffer> = buffers.last_mut().map(|buffer| random.fill(buffer)).and_then(|()| {
        let buffer = if work.is_write { buffers.pop() } else { None };
        buffer.map(Buffer::freeze)
    });
    let clock = MonotonicClock::start();
    let (started, cpu) = (clock.now(), process::thread_cpu_time());
    let (mut next, mut in_flight, mut done_count) = (0_u64, 0_u64, 0_u64);
    let mut submitted: Vec<Instant> = vec![started; narrow(work.depth)];
    let mut free: Vec<u64> = (0..work.depth).collect();
    let mut latency = Duration::ZERO;
    let mut done: Vec<BlockDone> = Vec::new();
    let mut now = started;
    loop {
        let is_over = now.since(started) >= work.time;
        if is_over && in_flight == 0 {
            break;
        }
        while !is_over && let Some(token) = free.pop() {
            let place = if work.is_random { random.u64(..places) } else { next % places };
            next += 1;
            let start_block = place * work.blocks;
            let op = match &source {
                Some(source) => BlockOp::Write { start_block, parts: [source.clone()].into_iter().collect() },
                None => match buffers.pop() {
                    Some(buffer) => BlockOp::Read { start_block, buffer },
                    None => break,
                },
            };
            if backend.try_submit(op, token).is_err() {
                return Err("the queue is full below its depth".into());
            }
            submitted[narrow(token)] = now;
            in_flight += 1;
        }
        backend.flush_queue();
        now = clock.now();
        backend.poll(now, &mut done);
        for one in done.drain(..) {
            one.result?;
            latency += now.since(submitted[narrow(one.token)]);
            buffers.extend(one.buffer);
            free.push(one.token);
            in_flight -= 1;
            done_count += 1;
        }
    }
    if work.is_write {
        if backend.try_submit(BlockOp::Flush, u64::MAX).is_err() {
            return Err("no room for a flush".into());
        }
        while done.is_empty() {
            backend.flush_queue();
            backend.poll(clock.now(), &mut done);
        }
        for one in done.drain(..) {
            one.result?;
        }
    }
    let seconds = clock.now().since(started).as_secs_f64();
    let cpu = (process::thread_cpu_time() - cpu).as_secs_f64();
    let count = done_count.max(1) as f64;
    println!(
        "{name}: {:.0} IOPS, {:.1} MiB/s, average latency {:.1} us, CPU {:.2} us/op, copied {} bytes, {:.3} syscalls/op, {:.3} doorbells/op",
        done_count as f64 / seconds,
        done_count as f64 * wide(bytes) as f64 / seconds / MIB as f64,
        latency.as_secs_f64() / count * 1e6,
        cpu / count * 1e6,
        counters.copied_bytes.get(),
        counters.syscalls.get() as f64 / count,
        counters.doorbells.get() as f64 / count,
    );
    Ok(())
}
