//! A cluster of two versions: an earlier binary and this one, upgraded daemon by daemon and taken back, with clients of both at work (docs/upgrade.md).
//!
//! Not among the tests that always run: a second build takes as long as the first. `./dev upgrade --from COMMIT` builds the earlier version from git and
//! runs this, with its binary in `CLOVIS_EARLIER_BINARY`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use base::Instant;
use clovis_tests::processes::{self, Cleanup, Finished, Process};
use clovis_tests::{binary, content, wait};
use runtime::MonotonicClock;

/// Longest that one command may take: a daemon that is replaced holds up whoever needs it.
const LIMIT: Duration = Duration::from_secs(60);
/// Clients at work.
const WORKERS: u64 = 3;
/// Objects of each, written again and again.
const OBJECTS: u64 = 6;
const LAYOUT: [&str; 8] =
    ["--servers", "3", "--devices-per-server", "1", "--layout", "2+1+0", "--device-size", "64M"];

/// A cluster whose daemons are of either binary.
struct MixedCluster {
    folder: tempfile::TempDir,
}

impl MixedCluster {
    fn dir(&self) -> PathBuf {
        self.folder.path().join("cluster")
    }

    fn command(&self, binary: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary);
        command.args(arguments).env("CLOVIS_CONFIG", self.dir().join("clovis.toml"));
        command
    }

    fn run(&self, binary: &Path, arguments: &[&str]) -> Finished {
        processes::run(&mut self.command(binary, arguments), self.folder.path(), LIMIT)
    }

    /// Daemons that do not run come up, of this binary.
    fn start(&self, binary: &Path) {
        let mut command = Command::new(binary);
        command.args(["cluster", "start", "--dir"]).arg(self.dir()).args(LAYOUT).env_remove("CLOVIS_CONFIG");
        let started = processes::run(&mut command, self.folder.path(), LIMIT);
        assert!(started.status.success(), "{}: {}\n{}", binary.display(), started.stderr, self.logs());
    }

    fn logs(&self) -> String {
        let entries = std::fs::read_dir(self.dir().join("log")).into_iter().flatten().flatten();
        let text = |path: PathBuf| {
            format!("-- {}\n{}\n", path.display(), std::fs::read_to_string(&path).unwrap_or_default())
        };
        entries.map(|entry| text(entry.path())).collect()
    }

    fn daemons(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir().join("run")).unwrap().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".pid")?.to_owned()))
            .collect();
        // "control" stands before the servers.
        names.sort();
        names
    }

    fn pid(&self, daemon: &str) -> String {
        let text = std::fs::read_to_string(self.dir().join("run").join(format!("{daemon}.pid"))).unwrap();
        text.split_whitespace().next().unwrap().to_owned()
    }

    /// Ends a daemon in order, and starts it anew with `binary`. Answer: how long it was away.
    fn replace(&self, daemon: &str, binary: &Path) -> Duration {
        let pid = self.pid(daemon);
        let clock = MonotonicClock::start();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        // Its program goes first, then its files: `cluster start` waits for those.
        let gone = || (!Path::new(&format!("/proc/{pid}/exe")).exists()).then_some(());
        wait::until(&format!("the end of {daemon}"), LIMIT, gone)
            .unwrap_or_else(|error| panic!("{error}\n{}", self.logs()));
        self.start(binary);
        let runs = std::fs::read_link(format!("/proc/{}/exe", self.pid(daemon))).unwrap();
        assert_eq!(runs, binary.canonicalize().unwrap(), "{daemon}");
        clock.now().since(Instant::ZERO)
    }

    /// What docs/upgrade.md has checked between two steps: everything is online, and `status` of either version says so.
    fn check(&self, binaries: [&Path; 2]) {
        for binary in binaries {
            let is_online = || {
                let listed = self.run(binary, &["device", "list", "--json"]).succeeded();
                (listed.text().matches("\"online\"").count() == 3).then_some(())
            };
            wait::until("three devices online", LIMIT, is_online)
                .unwrap_or_else(|error| panic!("{error}\n{}", self.logs()));
            let _ = self.run(binary, &["status"]).succeeded();
        }
    }
}

/// What clients have to find: by object, the seed and the length of what was last acknowledged.
type Written = Arc<Mutex<BTreeMap<String, (u64, usize)>>>;

/// Clients at work: each writes its objects anew in turn, with the binary that is in use at that moment, and reads one of them back.
struct Workload {
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
    fn start(cluster: &Arc<MixedCluster>, binary: &Path) -> Workload {
        let mut workload = Workload {
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
    fn go_on(&self) {
        let wanted = self.rounds.load(Ordering::Relaxed) + 3 * WORKERS;
        let is_further = || {
            assert!(!self.workers.iter().any(JoinHandle::is_finished), "a client has failed, see above");
            (self.rounds.load(Ordering::Relaxed) >= wanted).then_some(())
        };
        wait::until("further rounds of the clients", 2 * LIMIT, is_further).unwrap();
    }

    fn clients_are(&self, binary: &Path) {
        *self.binary.write().unwrap() = binary.to_owned();
        self.go_on();
    }

    /// While nobody writes: everything that was acknowledged is there, and each version lists and reads it.
    fn check(&self, cluster: &MixedCluster, binaries: [&Path; 2]) {
        let _still = self.binary.write().unwrap();
        check_all(cluster, binaries, &self.written);
    }

    /// Longest round, how many there were, and how many commands had to be begun again.
    fn end(self) -> (Duration, u64, u64) {
        self.is_over.store(true, Ordering::Relaxed);
        let longest = self.workers.into_iter().map(|worker| worker.join().unwrap()).max().unwrap();
        (longest, self.rounds.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }
}

fn write_and_read(
    cluster: &MixedCluster,
    (binary, refused): (&Path, &AtomicU64),
    written: &Written,
    worker: u64,
    round: u64,
) {
    let object = format!("{}:{}", worker + 1, round % OBJECTS);
    let seed = worker << 32 | round;
    // From a few bytes to some groups.
    let count = 1 + usize::try_from(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 44).unwrap();
    let file = cluster.folder.path().join(format!("worker-{worker}"));
    std::fs::write(&file, content::bytes(seed, count)).unwrap();
    let words = ["cp", file.to_str().unwrap(), &object, "--quiet", "--timeout", "40"];
    let _ = run_client(cluster, (binary, refused), &words);
    written.lock().unwrap().insert(object, (seed, count));
    let back = format!("{}:{}", worker + 1, (round / 2) % OBJECTS);
    check_object(cluster, (binary, refused), written, &back);
}

/// A command that has to work. One of an earlier version is refused if it asks control for the first time just while that stops: nothing was done by then, and
/// it is begun again. This version waits by itself.
fn run_client(cluster: &MixedCluster, (binary, refused): (&Path, &AtomicU64), words: &[&str]) -> Finished {
    loop {
        let finished = cluster.run(binary, words);
        let is_stopping =
            finished.stderr.contains("no configuration") && finished.stderr.contains("has stopped");
        if finished.status.success() || !is_stopping || binary == binary::clovis() {
            return finished.succeeded();
        }
        refused.fetch_add(1, Ordering::Relaxed);
    }
}

fn check_object(
    cluster: &MixedCluster,
    (binary, refused): (&Path, &AtomicU64),
    written: &Written,
    object: &str,
) {
    let Some((seed, count)) = written.lock().unwrap().get(object).copied() else { return };
    let read = run_client(cluster, (binary, refused), &["cat", object, "--timeout", "40"]);
    assert!(read.stdout == content::bytes(seed, count), "{object} is not what was acknowledged");
}

fn check_all(cluster: &MixedCluster, binaries: [&Path; 2], written: &Written) {
    let objects: Vec<String> = written.lock().unwrap().keys().cloned().collect();
    for binary in binaries {
        let listed = cluster.run(binary, &["ls"]).succeeded();
        for object in &objects {
            assert!(listed.text().contains(object.as_str()), "{object} in\n{}", listed.text());
            check_object(cluster, (binary, &AtomicU64::new(0)), written, object);
        }
    }
}

/// A process that goes on over the whole upgrade; it has said `words` when this returns.
fn staying(cluster: &MixedCluster, binary: &Path, arguments: &[&str], words: &str) -> Process {
    let mut process = Process::start(&mut cluster.command(binary, arguments), cluster.folder.path());
    wait::until(words, LIMIT, || {
        assert!(process.is_running(), "{}", process.said());
        process.said().contains(words).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", process.said()));
    process
}

#[test]
#[ignore = "needs an earlier binary: ./dev upgrade --from COMMIT"]
fn a_rolling_upgrade_and_the_way_back_lose_nothing() {
    let earlier = std::env::var_os("CLOVIS_EARLIER_BINARY").map(PathBuf::from);
    let earlier = earlier.expect("CLOVIS_EARLIER_BINARY names the earlier binary (./dev upgrade sets it)");
    let (earlier, this) = (earlier.as_path(), binary::clovis());
    let both = [earlier, this];
    let folder = clovis_tests::folder("upgrade");
    let mut stop = Command::new(this);
    stop.args(["cluster", "stop", "--dir"]).arg(folder.path().join("cluster"));
    let cluster = Arc::new(MixedCluster { folder });
    // Behind the folder, so before it goes; and not the clients' to keep, who may be at work while this ends.
    let _stop = Cleanup::at_end(stop);
    cluster.start(earlier);
    let daemons = cluster.daemons();
    assert_eq!((daemons.len(), daemons[0].as_str()), (4, "control"), "{daemons:?}");

    // Clients of the earlier version that stay: one holds a lock and is fenced if control loses it, one watches.
    let holding = ["lock", "take", "writer", "--owner", "a1", "--on-death", "fence", "--why", "upgrade"];
    let mut holder = staying(&cluster, earlier, &holding, ":1");
    let ticket = format!("{:032x}:1", 0xa1);
    let watching = ["watch", "9:9", "--name", "old", "--lease", "60", "--reply", "heard"];
    let mut watcher = staying(&cluster, earlier, &watching, "watching 9:9");
    let file = cluster.folder.path().join("under-ticket");
    std::fs::write(&file, b"under a ticket").unwrap();
    let write_under = |binary: &Path| {
        let _ = cluster
            .run(binary, &["cp", file.to_str().unwrap(), "8:8", "--ticket", &ticket, "--quiet"])
            .succeeded();
    };
    let say = |words: String| println!("upgrade: {words}");

    let workload = Workload::start(&cluster, earlier);
    workload.go_on();
    for (binary, way) in [(this, "forward"), (earlier, "back")] {
        // Control, servers, clients; and back in the other order.
        let mut steps: Vec<Option<&str>> = daemons.iter().map(|name| Some(name.as_str())).collect();
        steps.push(None);
        match way {
            // Once more, with clients of this version at work.
            "forward" => steps.push(Some(&daemons[0])),
            _ => steps.reverse(),
        }
        for step in steps {
            match step {
                Some(daemon) => {
                    let away = cluster.replace(daemon, binary);
                    say(format!("{way}: {daemon} in {:.1} s", away.as_secs_f64()));
                }
                None => {
                    workload.clients_are(binary);
                    say(format!("{way}: clients"));
                }
            }
            cluster.check(both);
            workload.go_on();
            both.into_iter().for_each(write_under);
            let told = cluster.run(binary, &["notify", "9:9", way, "--timeout", "20"]).succeeded();
            assert!(told.text().contains("heard"), "{}", told.text());
            assert!(holder.is_running() && watcher.is_running(), "{}{}", holder.said(), watcher.said());
        }
        workload.check(&cluster, both);
    }
    let (written, (longest, rounds, refused)) = (Arc::clone(&workload.written), workload.end());
    check_all(&cluster, both, &written);
    say(format!(
        "{rounds} rounds of {WORKERS} clients, the longest {:.1} s, {refused} commands of the earlier version begun again; {} objects as acknowledged",
        longest.as_secs_f64(),
        written.lock().unwrap().len()
    ));
    holder.ask_to_end().unwrap();
    assert!(holder.wait(LIMIT).unwrap().success(), "the lock was kept to the end: {}", holder.said());
    watcher.kill();
}
