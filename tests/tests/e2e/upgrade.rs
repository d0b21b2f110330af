//! A cluster of two versions: an earlier binary and this one, upgraded daemon by daemon and taken back, with clients of both at work (docs/upgrade.md).
//!
//! Not among the tests that always run: a second build takes as long as the first. `./dev upgrade --from COMMIT` builds the earlier version from git and
//! runs this, with its binary in `CLOVIS_EARLIER_BINARY`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::Instant;
use clovis_tests::binary;
use clovis_tests::cluster::{COMMAND_LIMIT, RunningCluster};
use runtime::MonotonicClock;

use crate::workload::{self, Workload};

const LAYOUT: [&str; 8] =
    ["--servers", "3", "--devices-per-server", "1", "--layout", "2+1+0", "--device-size", "64M"];

/// Ends a daemon in order, and starts it anew with `binary`. Answer: how long it was away.
fn replace(cluster: &RunningCluster, daemon: &str, binary: &Path) -> Duration {
    let clock = MonotonicClock::start();
    cluster.end(daemon);
    cluster.start_with(binary, &LAYOUT);
    let runs = std::fs::read_link(format!("/proc/{}/exe", cluster.process_id(daemon))).unwrap();
    assert_eq!(runs, binary.canonicalize().unwrap(), "{daemon}");
    clock.now().since(Instant::ZERO)
}

/// What docs/upgrade.md has checked between two steps: everything is online, and `status` of either version says so.
fn check(cluster: &RunningCluster, binaries: [&Path; 2]) {
    for binary in binaries {
        workload::until_online(cluster, binary, 3);
        let _ = cluster.run_of(binary, &["status"]).succeeded();
    }
}

#[test]
#[ignore = "needs an earlier binary: ./dev upgrade --from COMMIT"]
fn a_rolling_upgrade_and_the_way_back_lose_nothing() {
    let earlier = std::env::var_os("CLOVIS_EARLIER_BINARY").map(PathBuf::from);
    let earlier = earlier.expect("CLOVIS_EARLIER_BINARY names the earlier binary (./dev upgrade sets it)");
    let (earlier, this) = (earlier.as_path(), binary::clovis());
    let both = [earlier, this];
    let cluster = Arc::new(RunningCluster::at_rest("upgrade"));
    cluster.start_with(earlier, &LAYOUT);
    let daemons = cluster.daemons();
    assert_eq!((daemons.len(), daemons[0].as_str()), (4, "control"), "{daemons:?}");

    // Clients of the earlier version that stay: one holds a lock and is fenced if control loses it, one watches.
    let holding = ["lock", "take", "writer", "--owner", "a1", "--on-death", "fence", "--why", "upgrade"];
    let mut holder = cluster.start_saying_of(earlier, &holding, ":1", COMMAND_LIMIT);
    let ticket = format!("{:032x}:1", 0xa1);
    let watching = ["watch", "9:9", "--name", "old", "--lease", "60", "--reply", "heard"];
    let mut watcher = cluster.start_saying_of(earlier, &watching, "watching 9:9", COMMAND_LIMIT);
    let file = cluster.scratch().join("under-ticket");
    std::fs::write(&file, b"under a ticket").unwrap();
    let write_under = |binary: &Path| {
        let words = ["cp", file.to_str().unwrap(), "8:8", "--ticket", &ticket, "--quiet"];
        let _ = cluster.run_of(binary, &words).succeeded();
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
                    let away = replace(&cluster, daemon, binary);
                    say(format!("{way}: {daemon} in {:.1} s", away.as_secs_f64()));
                }
                None => {
                    workload.clients_are(binary);
                    say(format!("{way}: clients"));
                }
            }
            check(&cluster, both);
            workload.go_on();
            both.into_iter().for_each(write_under);
            let told = cluster.run_of(binary, &["notify", "9:9", way, "--timeout", "20"]).succeeded();
            assert!(told.text().contains("heard"), "{}", told.text());
            assert!(holder.is_running() && watcher.is_running(), "{}{}", holder.said(), watcher.said());
        }
        workload.check(&both);
    }
    let done = workload.end(&both);
    say(format!("{done}, {} commands of the earlier version begun again", done.refused));
    holder.ask_to_end().unwrap();
    assert!(holder.wait(COMMAND_LIMIT).unwrap().success(), "the lock was kept to the end: {}", holder.said());
    watcher.kill();
}
