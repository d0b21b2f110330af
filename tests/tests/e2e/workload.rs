//! Clients at work on a cluster of real processes: each writes its objects anew and reads them back without a pause, as a command for each. Who disturbs
//! the cluster (`upgrade.rs`, `soak.rs`) asks them to get on, and at the end for all that was acknowledged.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use base::Instant;
use clovis_tests::cluster::{COMMAND_LIMIT, RunningCluster};
use clovis_tests::processes::Finished;
use clovis_tests::{binary, content, wait};
use runtime::MonotonicClock;

/// Clients at work.
const WORKERS: u64 = 3;
/// Objects of each, written again and again.
const OBJECTS: u64 = 6;

/// What clients have to find: by object, the seed and the length of what was last acknowledged.
type Written = Arc<Mutex<BTreeMap<String, (u64, usize)>>>;

/// Clients at work: each writes its objects anew in turn, with the binary that is in use at that moment, and reads one of them back.
pub struct Workload {
    cluster: Arc<RunningCluster>,
    /// Read for as long as a round takes: who may write to it has the clients stand still.
    binary: Arc<RwLock<PathBuf>>,
    written: Written,
    rounds: Arc<AtomicU64>,
    /// Commands of the earlier version that began in the moment in which control stopped, and had to be begun again.
    refused: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Duration>>,
}

impl Workload {
    /// Clients begin.
    pub fn start(cluster: &Arc<RunningCluster>, binary: &Path) -> Workload {
        let mut workload = Workload {
            cluster: Arc::clone(cluster),
            binary: Arc::new(RwLock::new(binary.to_owned())),
            written: Written::default(),
            rounds: Arc::default(),
            refused: Arc::default(),
            is_over: Arc::default(),
            workers: Vec::new(),
        };
        for worker in 0..WORKERS {
            let cluster = Arc::clone(cluster);
            let (binary, written) = (Arc::clone(&workload.binary), Arc::clone(&workload.written));
            let (rounds, is_over) = (Arc::clone(&workload.rounds), Arc::clone(&workload.is_over));
            let refused = Arc::clone(&workload.refused);
            workload.workers.push(std::thread::spawn(move || {
                let mut longest = Duration::ZERO;
                for round in 0.. {
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    let binary = binary.read().unwrap();
                    let clock = MonotonicClock::start();
                    write_and_read(&cluster, (&binary, &refused), &written, worker, round);
                    longest = longest.max(clock.now().since(Instant::ZERO));
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
                longest
            }));
        }
        workload
    }

    /// Some more rounds of each client, so that each step is worked on.
    pub fn go_on(&self) {
        let wanted = self.rounds.load(Ordering::Relaxed) + 3 * WORKERS;
        let is_further = || {
            assert!(!self.workers.iter().any(JoinHandle::is_finished), "a client has failed, see above");
            (self.rounds.load(Ordering::Relaxed) >= wanted).then_some(())
        };
        wait::until("further rounds of the clients", 2 * COMMAND_LIMIT, is_further).unwrap();
    }

    /// From the next round on they are of this binary.
    pub fn clients_are(&self, binary: &Path) {
        *self.binary.write().unwrap() = binary.to_owned();
        self.go_on();
    }

    /// While nobody writes: everything that was acknowledged is there, and each of these binaries lists and reads it.
    pub fn check(&self, binaries: &[&Path]) {
        let _still = self.binary.write().unwrap();
        check_all(&self.cluster, binaries, &self.written);
    }

    /// The clients end, and what they wrote is checked as in [`Workload::check`].
    pub fn end(mut self, binaries: &[&Path]) -> Done {
        let longest = self.join().into_iter().map(Result::unwrap).max().unwrap();
        check_all(&self.cluster, binaries, &self.written);
        Done {
            rounds: self.rounds.load(Ordering::Relaxed),
            longest,
            refused: self.refused.load(Ordering::Relaxed),
            objects: self.written.lock().unwrap().len(),
        }
    }

    /// The clients end with the round that they are at; the longest of each, or its panic.
    fn join(&mut self) -> Vec<std::thread::Result<Duration>> {
        self.is_over.store(true, Ordering::Relaxed);
        self.workers.drain(..).map(JoinHandle::join).collect()
    }
}

/// Clients hold the cluster: of a test that fails they have to be gone before the cluster can be stopped and removed.
impl Drop for Workload {
    fn drop(&mut self) {
        let _told_already = self.join();
    }
}

/// What became of a workload.
pub struct Done {
    rounds: u64,
    longest: Duration,
    /// Commands of an earlier version that had to be begun again.
    pub refused: u64,
    objects: usize,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Done { rounds, longest, objects, .. } = self;
        let longest = longest.as_secs_f64();
        write!(
            f,
            "{rounds} rounds of {WORKERS} clients, the longest {longest:.1} s; {objects} objects as acknowledged"
        )
    }
}

/// Waits until `count` devices, all that there are, are online.
pub fn until_online(cluster: &RunningCluster, binary: &Path, count: usize) {
    let is_online = || {
        let listed = cluster.run_of(binary, &["device", "list", "--json"]).succeeded();
        (listed.text().matches("\"online\"").count() == count).then_some(())
    };
    wait::until(&format!("{count} devices online"), COMMAND_LIMIT, is_online)
        .unwrap_or_else(|error| panic!("{error}\n{}", cluster.logs()));
}

fn write_and_read(
    cluster: &RunningCluster,
    (binary, refused): (&Path, &AtomicU64),
    written: &Written,
    worker: u64,
    round: u64,
) {
    let object = format!("{}:{}", worker + 1, round % OBJECTS);
    let seed = worker << 32 | round;
    // From a few bytes to some groups.
    let count = 1 + usize::try_from(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 44).unwrap();
    let file = cluster.scratch().join(format!("worker-{worker}"));
    std::fs::write(&file, content::bytes(seed, count)).unwrap();
    let words = ["cp", file.to_str().unwrap(), &object, "--quiet", "--timeout", "40"];
    let _ = run_client(cluster, (binary, refused), &words);
    written.lock().unwrap().insert(object, (seed, count));
    let back = format!("{}:{}", worker + 1, (round / 2) % OBJECTS);
    check_object(cluster, (binary, refused), written, &back);
}

/// A command that has to work. One of an earlier version is refused if it asks control for the first time just while that stops: nothing was done by then, and
/// it is begun again. This version waits by itself.
fn run_client(cluster: &RunningCluster, (binary, refused): (&Path, &AtomicU64), words: &[&str]) -> Finished {
    loop {
        let finished = cluster.run_of(binary, words);
        let is_stopping =
            finished.stderr.contains("no configuration") && finished.stderr.contains("has stopped");
        if finished.status.success() || !is_stopping || binary == binary::clovis() {
            return finished.succeeded();
        }
        refused.fetch_add(1, Ordering::Relaxed);
    }
}

fn check_object(
    cluster: &RunningCluster,
    (binary, refused): (&Path, &AtomicU64),
    written: &Written,
    object: &str,
) {
    let Some((seed, count)) = written.lock().unwrap().get(object).copied() else { return };
    let read = run_client(cluster, (binary, refused), &["cat", object, "--timeout", "40"]);
    assert!(read.stdout == content::bytes(seed, count), "{object} is not what was acknowledged");
}

fn check_all(cluster: &RunningCluster, binaries: &[&Path], written: &Written) {
    let objects: Vec<String> = written.lock().unwrap().keys().cloned().collect();
    for binary in binaries {
        let listed = cluster.run_of(binary, &["ls"]).succeeded();
        for object in &objects {
            assert!(listed.text().contains(object.as_str()), "{object} in\n{}", listed.text());
            check_object(cluster, (binary, &AtomicU64::new(0)), written, object);
        }
    }
}
