//! Where the time of a durable group of tree puts goes: `cargo run --release --manifest-path hw-ci/peers/redb_puts/Cargo.toml --bin tree_puts -- FOLDER SECONDS [alone]`.
//!
//! Rounds of half a second each, in turn: our groups of 16 puts; one write of a block with `O_DIRECT | O_DSYNC` from this thread, which is the
//! least that a durable group can cost on this file system; the same block written through by our backend alone, polled; and `redb` doing what `redb_puts` does. Medians of single groups and CPU time of
//! the process, so that a busy machine disturbs little. Files go to FOLDER and away again. `alone`: only our groups, for a profiler.
#![forbid(unsafe_code)]

use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base::units::{MIB, narrow};
use base::{Fid, FidType};
use redb::{Database, Durability, TableDefinition};
use runtime::{
    Arena, ArenaConfig, Counters, Locality, LocalityConfig, MonotonicClock, SharedBuffer, process,
};
use rustix::fs::OFlags;
use spdk_stob::{BlockOp, Domain, FormatParams, OpenOptions, TreeId, create_device_file, open_device};

type Failure = Box<dyn std::error::Error>;

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("puts");
const GROUP: u64 = 16;
const KEYS: u64 = 1 << 15;
const VALUE: [u8; 100] = [7; 100];
const ROUND: Duration = Duration::from_millis(500);
const DEVICE_BYTES: u64 = 1024 * MIB;
/// What has the log, checkpoints and pages of such a device: written once before, so that no write of it is the first of its block.
const WRITTEN_BYTES: u64 = 64 * MIB;

/// Times of single groups, and the CPU time of all of them.
#[derive(Default)]
struct Side {
    groups: Vec<Duration>,
    cpu: Duration,
}

impl Side {
    fn print(mut self, name: &str) -> f64 {
        self.groups.sort_unstable();
        let at = |tenths: usize| {
            let index = (self.groups.len().max(1) - 1) * tenths / 10;
            self.groups.get(index).map_or(0.0, |took| took.as_secs_f64() * 1e6)
        };
        println!(
            "{name:28} {:6} groups: p10 {:7.1}, p50 {:7.1}, p90 {:7.1} us; {:6.1} us of CPU each",
            self.groups.len(),
            at(1),
            at(5),
            at(9),
            self.cpu.as_secs_f64() * 1e6 / self.groups.len().max(1) as f64,
        );
        at(5)
    }
}

fn written(path: &Path) -> Result<(), Failure> {
    create_device_file(path, DEVICE_BYTES)?;
    let file = std::fs::File::options().write(true).open(path)?;
    let zeros = vec![0; narrow(MIB)];
    for at in (0..WRITTEN_BYTES).step_by(zeros.len()) {
        file.write_all_at(&zeros, at)?;
    }
    Ok(file.sync_all()?)
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("the first argument is a folder")?;
    let seconds: u64 = arguments.next().ok_or("the second is the time")?.parse()?;
    let is_alone = arguments.next().is_some_and(|word| word == "alone");
    let folder = Path::new(&folder).join(format!("clovis-puts-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    let result = run(&folder, seconds, is_alone);
    std::fs::remove_dir_all(&folder)?;
    result
}

fn run(folder: &Path, seconds: u64, is_alone: bool) -> Result<(), Failure> {
    let arena = Arena::new(ArenaConfig { capacity_bytes: 64 * MIB })?;
    let counters = Arc::new(Counters::default());
    let mut locality = Locality::new(LocalityConfig {
        index: 0,
        name: "tree_puts".to_owned(),
        seed: 1,
        counters: Arc::clone(&counters),
        arena: arena.clone(),
        crowd: None,
    });
    let (handle, clock) = (locality.handle(), MonotonicClock::start());
    written(&folder.join("device"))?;
    let backend = open_device(folder.join("device"), OpenOptions::default())?;
    let params = FormatParams { device: Fid::new(FidType::Device, 0, 1), cluster: 1 };
    let domain = locality.block_on(&clock, Domain::format(&handle, backend, params))??;

    written(&folder.join("direct"))?;
    let flags = i32::try_from((OFlags::DIRECT | OFlags::DSYNC).bits())?;
    let direct = std::fs::File::options().write(true).custom_flags(flags).open(folder.join("direct"))?;
    let block: SharedBuffer = arena.try_alloc(4096).ok_or("no memory")?.freeze();
    written(&folder.join("through"))?;
    let mut through = open_device(folder.join("through"), OpenOptions::default())?;
    let database = Database::create(folder.join("redb"))?;

    let (mut ours, mut least, mut peer) = (Side::default(), Side::default(), Side::default());
    let mut backend_alone = Side::default();
    let mut done = Vec::new();
    let mut random = fastrand::Rng::with_seed(1);
    let began = clock.now();
    let (mut syscalls, mut place) = (0, 0);
    while clock.now() - began < Duration::from_secs(seconds) {
        let before = (clock.now(), process::cpu_time(), counters.syscalls.get());
        while clock.now() - before.0 < ROUND {
            let start = clock.now();
            locality.block_on(&clock, async {
                let mut transaction = domain.begin();
                for _ in 0..GROUP {
                    transaction.tree_put(TreeId(1), &random.u64(0..KEYS).to_be_bytes(), &VALUE);
                }
                domain.commit(transaction).await
            })??;
            ours.groups.push(clock.now() - start);
        }
        ours.cpu += process::cpu_time() - before.1;
        syscalls += counters.syscalls.get() - before.2;
        if is_alone {
            continue;
        }

        let before = (clock.now(), process::cpu_time());
        while clock.now() - before.0 < ROUND {
            let start = clock.now();
            direct.write_all_at(&block, (place % 1024) * 4096)?;
            place += 1;
            least.groups.push(clock.now() - start);
        }
        least.cpu += process::cpu_time() - before.1;

        let before = (clock.now(), process::cpu_time());
        while clock.now() - before.0 < ROUND {
            let start = clock.now();
            let parts = [block.clone()].into_iter().collect();
            if through.try_submit(BlockOp::WriteThrough { start_block: place % 1024, parts }, 0).is_err() {
                return Err("the queue is full".into());
            }
            place += 1;
            through.flush_queue();
            while through.poll(clock.now(), &mut done) == 0 {}
            for done in done.drain(..) {
                done.result?;
            }
            backend_alone.groups.push(clock.now() - start);
        }
        backend_alone.cpu += process::cpu_time() - before.1;

        let before = (clock.now(), process::cpu_time());
        while clock.now() - before.0 < ROUND {
            let start = clock.now();
            let mut transaction = database.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            {
                let mut table = transaction.open_table(TABLE)?;
                for _ in 0..GROUP {
                    table.insert(&random.u64(0..KEYS).to_be_bytes()[..], &VALUE[..])?;
                }
            }
            transaction.commit()?;
            peer.groups.push(clock.now() - start);
        }
        peer.cpu += process::cpu_time() - before.1;
    }
    let calls = syscalls as f64 / ours.groups.len().max(1) as f64;
    backend_alone.print("one write through, backend");
    let (ours, least, peer) =
        (ours.print("ours"), least.print("one write, O_DIRECT|O_DSYNC"), peer.print("redb"));
    println!(
        "ours: {calls:.2} system calls a group; {:.2} of the least; redb {:.2} of ours",
        ours / least,
        peer / ours
    );
    locality.block_on(&clock, domain.close())??;
    Ok(())
}
