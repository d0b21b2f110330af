//! How long an open takes with so many extents, and how much it reads: `cargo run --release -p spdk-stob --example recovery -- FOLDER
//! EXTENTS [EXTENTS ...]`. The device is a sparse file of 1 TiB; data is not written to it (an open reads none), all metadata is.
//!
//! The log is told apart: the ring is looked through whole at each open (for a gap), whatever is in it. At the end the law that the
//! times without the log follow: a constant, and so much for each million extents (least squares). Ends with an error if an open without
//! the log takes a second or reads more than [`READ_MIB_MAX`].
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;

use base::checksum::crc32c;
use base::units::{BLOCK_BYTES, MIB};
use base::{Fid, FidType, Instant};
use runtime::{
    Arena, ArenaConfig, Counters, Locality, LocalityConfig, LocalityHandle, MonotonicClock, process,
};
use spdk_stob::format::regions::Regions;
use spdk_stob::{
    Backend, BlockDone, BlockOp, Domain, FormatParams, Geometry, OpenOptions, StobId, UringFile, WritePiece,
};

const DEVICE_BYTES: u64 = 1 << 40;
/// Most that an open may read besides the log: bits of all free space, and 64 bytes for each 16 KiB of pages.
const READ_MIB_MAX: f64 = 43.0 + 64.0;
/// Extents of one transaction: what fits into one record.
const PIECES: u64 = 4096;
const PARAMS: FormatParams = FormatParams { device: Fid::new(FidType::Device, 0, 1), cluster: 1 };

/// What was read, and when the log was.
#[derive(Default)]
struct Seen {
    read_bytes: Cell<u64>,
    log_bytes: Cell<u64>,
    now: Cell<Option<Instant>>,
    log_began: Cell<Option<Instant>>,
    log_ended: Cell<Option<Instant>>,
}

/// Leaves writes of data out, and counts what is read.
struct Metadata {
    inner: UringFile,
    regions: Regions,
    seen: Rc<Seen>,
    left_out: Vec<BlockDone>,
}

impl Backend for Metadata {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }
    fn try_submit(&mut self, op: BlockOp, token: u64) -> Result<(), BlockOp> {
        let extent = op.extent();
        match op {
            BlockOp::Write { .. }
                if extent.start >= self.regions.data.start && extent.end() < self.geometry().size_blocks =>
            {
                self.left_out.push(BlockDone { token, result: Ok(()), buffer: None });
                Ok(())
            }
            op => {
                if matches!(op, BlockOp::Read { .. }) {
                    let is_log = self.regions.log.intersection(&extent).is_some();
                    let bytes = if is_log { &self.seen.log_bytes } else { &self.seen.read_bytes };
                    bytes.set(bytes.get() + extent.count * BLOCK_BYTES);
                    if is_log && self.seen.log_began.get().is_none() {
                        self.seen.log_began.set(self.seen.now.get());
                    }
                } else if self.seen.log_ended.get().is_none() {
                    self.seen.log_ended.set(self.seen.now.get()); // the flush after recovery
                }
                self.inner.try_submit(op, token)
            }
        }
    }
    fn flush_queue(&mut self) {
        self.inner.flush_queue();
    }
    fn poll(&mut self, now: Instant, done: &mut Vec<BlockDone>) -> usize {
        self.seen.now.set(Some(now));
        let count = self.left_out.len();
        done.append(&mut self.left_out);
        count + self.inner.poll(now, done)
    }
    fn next_deadline(&self) -> Option<Instant> {
        if self.left_out.is_empty() { self.inner.next_deadline() } else { Some(Instant::ZERO) }
    }
    fn wait_fd(&self) -> Option<RawFd> {
        self.inner.wait_fd()
    }
    fn attach(&mut self, locality: &LocalityHandle) {
        self.inner.attach(locality);
    }
    fn register(&mut self, arena: &Arena) -> std::io::Result<()> {
        self.inner.register(arena)
    }
}

/// Resident memory of this process in MiB. Source: proc(5), statm.
fn resident_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096 / MIB
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("the first argument is a folder")?;
    let mut points = Vec::new();
    for extents in arguments {
        let path = std::path::Path::new(&folder).join(format!("clovis-recovery-{}", std::process::id()));
        std::fs::File::create_new(&path)?.set_len(DEVICE_BYTES)?;
        let extents = extents.parse()?;
        let result = run(&path, extents);
        std::fs::remove_file(&path)?;
        points.push((extents as f64 / 1e6, result?));
    }
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    if spread > 0.0 {
        let slope = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>() / spread;
        println!("law: {:.4} s + {slope:.4} s for each million extents, and the log", y - slope * x);
    }
    if points.iter().any(|point| point.1 >= 1.0) {
        return Err("an open took a second or more without its log".into());
    }
    Ok(())
}

/// Gives the seconds of an open, without the log.
fn run(path: &std::path::Path, extents: u64) -> Result<f64, Box<dyn std::error::Error>> {
    let arena = Arena::new(ArenaConfig { capacity_bytes: 64 * MIB })?;
    let mut locality = Locality::new(LocalityConfig {
        index: 0,
        name: "recovery".to_owned(),
        seed: 1,
        counters: Arc::new(Counters::default()),
        arena: arena.clone(),
        crowd: None,
    });
    let handle = locality.handle();
    let clock = MonotonicClock::start();
    let regions = Regions::for_device(DEVICE_BYTES / BLOCK_BYTES)?;
    let backend = |seen: &Rc<Seen>| -> Result<Box<Metadata>, Box<dyn std::error::Error>> {
        let inner = UringFile::open(path, OpenOptions::default())?;
        Ok(Box::new(Metadata { inner, regions, seen: Rc::clone(seen), left_out: Vec::new() }))
    };
    let (first, empty_mib) = (backend(&Rc::default())?, resident_mib());
    locality.block_on(&clock, async {
        let domain = Domain::format(&handle, first, PARAMS).await?;
        let mut block = arena.alloc(4096).await;
        block.fill(7);
        let data = block.freeze();
        let checksum = crc32c(&data);
        let mut next = 0;
        while next < extents {
            let count = PIECES.min(extents - next);
            // Every other block: no two extents are one.
            let pieces =
                (next..next + count).map(|index| WritePiece { start_block: 2 * index, data: data.clone() });
            let stob = StobId { fid: Fid::new(FidType::Component, 0, next / (1 << 16)), generation: 0 };
            domain
                .write(stob, pieces.collect(), &vec![checksum; usize::try_from(count).unwrap_or(0)])
                .await?;
            next += count;
        }
        domain.close().await
    })??;
    let seen = Rc::new(Seen::default());
    let second = backend(&seen)?;
    let (began, cpu) = (clock.now(), process::thread_cpu_time());
    let took = locality.block_on(&clock, async {
        let domain = Domain::open(&handle, second, Some(PARAMS)).await.map_err(|error| error.to_string())?;
        let took = (clock.now() - began).as_secs_f64();
        let cpu = (process::thread_cpu_time() - cpu).as_secs_f64();
        let log = match (seen.log_began.get(), seen.log_ended.get()) {
            (Some(began), Some(ended)) => (ended - began).as_secs_f64(),
            _ => 0.0,
        };
        let (info, mib) = (domain.info(), |bytes: u64| bytes as f64 / MIB as f64);
        println!(
            "{extents} extents: open {:.3} s and {:.3} s of log ({cpu:.3} s of CPU in both), {:.1} MiB read and {:.1} MiB of log, {} MiB resident ({empty_mib} before), stream {:.1} MiB, {} pages",
            took - log,
            log,
            mib(seen.read_bytes.get()),
            mib(seen.log_bytes.get()),
            resident_mib(),
            mib(info.checkpoint_bytes),
            info.pages,
        );
        if mib(seen.read_bytes.get()) > READ_MIB_MAX {
            return Err("an open read more than its bound".to_owned());
        }
        domain.close().await.map_err(|error| error.to_string())?;
        Ok::<f64, String>(took - log)
    })?;
    Ok(took?)
}
