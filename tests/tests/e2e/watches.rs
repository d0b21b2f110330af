//! `clovis watch` and `clovis notify`: processes that tell each other, one that is killed, and a control daemon that is.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use clovis_tests::cluster::RunningCluster;
use clovis_tests::processes::Process;

const LIMIT: Duration = Duration::from_secs(60);

/// A watcher, registered when this returns.
fn watcher(cluster: &RunningCluster, arguments: &[&str]) -> Process {
    cluster.start_saying(arguments, "clovis: watching 1:7 as ", LIMIT)
}

#[test]
fn watchers_answer_are_missed_by_name_once_killed_and_outlive_a_restart_of_control() {
    let cluster =
        RunningCluster::start("watches", &["--device-size", "16M", "--servers", "1", "--layout", "1+1+0"]);
    let nobody = cluster.run(&["notify", "1:7"]).succeeded();
    assert_eq!(nobody.text(), "nobody watches 1:7\n");

    let left = watcher(&cluster, &["watch", "1:7", "--name", "left", "--reply", "done", "--lease", "30"]);
    let mut right = watcher(&cluster, &["watch", "1:7", "--name", "right", "--json", "--lease", "30"]);
    let told = cluster.run(&["notify", "1:7", "grown"]).succeeded();
    let rows: Vec<&str> = told.text().lines().collect();
    assert_eq!(rows.len(), 3, "{}", told.text());
    assert!(
        rows.iter().any(|row| row.starts_with("left ") && row.ends_with("acknowledged  done")),
        "{rows:?}"
    );
    assert!(rows.iter().any(|row| row.starts_with("right ") && row.ends_with("acknowledged")), "{rows:?}");
    assert!(left.said().contains("  grown\n"), "{}", left.said());
    assert!(right.said().contains("\"object\":\"1:7\",\"payload\":\"grown\""), "{}", right.said());

    // Control dies without a word; its next start knows the watches, and the watchers find it.
    cluster.kill_hard("control");
    cluster.start_again(&[]);
    let after = cluster.run(&["notify", "1:7", "restarted", "--timeout", "20"]).succeeded();
    assert_eq!(after.text().matches("acknowledged").count(), 2, "{}", after.text());

    // Its lease goes on without it.
    right.kill();
    let missed = cluster.run(&["notify", "1:7", "again", "--timeout", "1", "--json"]);
    assert!(missed.refused().contains("1 of 2 watches missed it: right (not reached)"), "{}", missed.stderr);
    assert!(
        missed.text().contains("\"missed\":[{") && missed.text().contains("\"payload\":\"done\""),
        "{missed:?}"
    );
    let said = left.said();
    let said: Vec<&str> = said
        .lines()
        .filter_map(|line| line.split_once("@tcp:")?.1.split_once("  "))
        .map(|(_, word)| word)
        .collect();
    assert_eq!(said, ["grown", "restarted", "again"], "each once, in their order, without a gap");

    // One that ends in order is not waited for.
    let mut left = left;
    left.ask_to_end().unwrap();
    assert!(left.wait(LIMIT).unwrap().success(), "{}", left.said());
    let last = cluster.run(&["notify", "1:7", "--timeout", "1"]);
    assert!(!last.text().contains("left "), "{}", last.text());

    let long = "x".repeat(16_385);
    assert!(cluster.run(&["notify", "1:7", &long]).refused().contains("at most 16384 bytes"));
    assert!(cluster.run(&["watch", "1:7", "--name", ""]).refused().contains("1 to 64 bytes"));
}
