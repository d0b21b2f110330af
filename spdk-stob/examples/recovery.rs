//! How long an open takes with so many extents, and how much it reads: `cargo run --release -p spdk-stob --example recovery -- FOLDER
//! EXTENTS [EXTENTS ...]`. The device is a sparse file of 1 TiB; data is not written to it (an open reads none), all metadata is.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;

use base::checksum::crc32c;
use base::units::{BLOCK_BYTES, MIB};
use base::{Fid, FidType, Instant};
use runtime::{Arena, ArenaConfig, Counters, Locality, LocalityConfig, LocalityHandle, MonotonicClock};
use spdk_stob::format::regions::Regions;
use spdk_stob::{
    Backend, BlockDone, BlockOp, Domain, FormatParams, Geometry, OpenOptions, StobId, UringFile, WritePiece,
};

const DEVICE_BYTES: u64 = 1 << 40;
/// Extents of one transaction: what fits into one record.
const PIECES: u64 = 4096;
const PARAMS: FormatParams = FormatParams { device: Fid::new(FidType::Device, 0, 1), cluster: 1 };

/// Leaves writes of data out, and counts what is read.
struct Metadata {
    inner: UringFile,
    data_start: u64,
    read_bytes: Rc<Cell<u64>>,
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
                if extent.start >= self.data_start && extent.end() < self.geometry().size_blocks =>
            {
                self.left_out.push(BlockDone { token, result: Ok(()), buffer: None });
                Ok(())
            }
            op => {
                if matches!(op, BlockOp::Read { .. }) {
                    self.read_bytes.set(self.read_bytes.get() + extent.count * BLOCK_BYTES);
                }
                self.inner.try_submit(op, token)
            }
        }
    }
    fn flush_queue(&mut self) {
        self.inner.flush_queue();
    }
    fn poll(&mut self, now: Instant, done: &mut Vec<BlockDone>) -> usize {
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
    for extents in arguments {
        let path = std::path::Path::new(&folder).join(format!("clovis-recovery-{}", std::process::id()));
        std::fs::File::create_new(&path)?.set_len(DEVICE_BYTES)?;
        let result = run(&path, extents.parse()?);
        std::fs::remove_file(&path)?;
        result?;
    }
    Ok(())
}

fn run(path: &std::path::Path, extents: u64) -> Result<(), Box<dyn std::error::Error>> {
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
    let read_bytes = Rc::new(Cell::new(0));
    let data_start = Regions::for_device(DEVICE_BYTES / BLOCK_BYTES)?.data.start;
    let backend = || -> Result<Box<Metadata>, Box<dyn std::error::Error>> {
        let inner = UringFile::open(path, OpenOptions::default())?;
        Ok(Box::new(Metadata { inner, data_start, read_bytes: Rc::clone(&read_bytes), left_out: Vec::new() }))
    };
    let (first, empty_mib) = (backend()?, resident_mib());
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
    read_bytes.set(0);
    let second = backend()?;
    let began = clock.now();
    let took = locality.block_on(&clock, async {
        let domain = Domain::open(&handle, second, Some(PARAMS)).await?;
        let took = clock.now() - began;
        println!(
            "{extents} extents: open {:.3} s, {:.1} MiB read, {} MiB resident ({empty_mib} before), checkpoint {:.1} MiB",
            took.as_secs_f64(),
            read_bytes.get() as f64 / MIB as f64,
            resident_mib(),
            domain.info().checkpoint_bytes as f64 / MIB as f64
        );
        domain.close().await
    })?;
    Ok(took?)
}
