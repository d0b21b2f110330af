//! Writes and reads back a stream through a domain on a file, and prints the speed: `cargo run --release -p spdk-stob
//! --example stream -- FOLDER [MIB] [OPERATION_KIB]`. Bounded: two seconds each way.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use base::checksum::crc32c;
use base::units::{BLOCK_BYTES, KIB, MIB, narrow};
use base::{BlockExtent, Fid, FidType, Instant};
use runtime::{Arena, ArenaConfig, Counters, Locality, LocalityConfig, MonotonicClock};
use spdk_stob::{Domain, FormatParams, OpenOptions, StobId, UringFile, WritePiece, create_device_file};

const DEPTH: u64 = 8;
const SECONDS_MAX: u64 = 2;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().unwrap_or_else(|| "/dev/shm".to_owned());
    let total_bytes = arguments.next().map_or(Ok(1024), |text| text.parse::<u64>())? * MIB;
    let operation_bytes = arguments.next().map_or(Ok(1024), |text| text.parse::<u64>())? * KIB;
    let path = std::path::Path::new(&folder).join(format!("clovis-stream-{}", std::process::id()));
    create_device_file(&path, total_bytes + total_bytes / 8 + 32 * MIB)?;
    let result = run(&path, total_bytes, operation_bytes);
    std::fs::remove_file(&path)?;
    result
}

fn run(
    path: &std::path::Path,
    total_bytes: u64,
    operation_bytes: u64,
) -> Result<(), Box<dyn std::error::Error>> {
    let counters = Arc::new(Counters::default());
    let arena = Arena::new(ArenaConfig { capacity_bytes: 64 * MIB })?;
    let mut locality = Locality::new(LocalityConfig {
        index: 0,
        name: "stream".to_owned(),
        seed: 1,
        counters: Arc::clone(&counters),
        arena: arena.clone(),
        crowd: None,
    });
    let handle = locality.handle();
    let clock = MonotonicClock::start();
    let backend = UringFile::open(path, OpenOptions::default())?;
    println!("{:?}, O_DIRECT: {}", backend.kind(), backend.is_direct());
    let blocks = operation_bytes / BLOCK_BYTES;
    let operations = total_bytes / operation_bytes;
    let stob = StobId { fid: Fid::new(FidType::Component, 0, 1), generation: 0 };
    let bytes = narrow(operation_bytes);
    let result = locality.block_on(&clock, async {
        let params = FormatParams { device: Fid::new(FidType::Device, 0, 1), cluster: 1 };
        let domain = Domain::format(&handle, Box::new(backend), params).await?;
        let report = |what: &str, done: u64, started: Instant, now: Instant| {
            let seconds = now.since(started).as_secs_f64();
            println!(
                "{what}: {:.2} GB/s ({done} operations)",
                (done * operation_bytes) as f64 / seconds / 1e9
            );
        };
        let mut source = arena.alloc(bytes).await;
        fastrand::Rng::with_seed(1).fill(&mut source);
        let source = source.freeze();
        let checksums: Vec<u32> = source.chunks_exact(4096).map(crc32c).collect();
        let limit = |started: Instant| started + Duration::from_secs(SECONDS_MAX);
        let started = clock.now();
        let lanes = (0..DEPTH).map(|lane| {
            let (domain, source, checksums, handle) = (&domain, &source, &checksums, &handle);
            async move {
                let mut done = 0;
                for index in (lane..operations).step_by(narrow(DEPTH)) {
                    if handle.now() > limit(started) {
                        break;
                    }
                    let piece = WritePiece { start_block: index * blocks, data: source.clone() };
                    domain.write(stob, vec![piece], checksums).await?;
                    done += 1;
                }
                Ok::<u64, spdk_stob::StobError>(done)
            }
        });
        let written: u64 = futures_util::future::try_join_all(lanes).await?.into_iter().sum();
        report("write", written, started, clock.now());
        let started = clock.now();
        let lanes = (0..DEPTH).map(|lane| {
            let (domain, handle) = (&domain, &handle);
            async move {
                let mut done = 0;
                for index in (lane..written).step_by(narrow(DEPTH)) {
                    if handle.now() > limit(started) {
                        break;
                    }
                    domain.read(stob, &[BlockExtent { start: index * blocks, count: blocks }]).await?;
                    done += 1;
                }
                Ok::<u64, spdk_stob::StobError>(done)
            }
        });
        let read: u64 = futures_util::future::try_join_all(lanes).await?.into_iter().sum();
        report("read", read, started, clock.now());
        let info = domain.info();
        println!("{} checkpoints, {} bytes copied", info.checkpoints, counters.copied_bytes.get());
        domain.close().await
    })?;
    Ok(result?)
}
