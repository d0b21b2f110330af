//! Objects that are held alone, by processes that end, are killed, or outlive a killed control daemon; ids that never come twice.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use clovis_tests::cluster::RunningCluster;
use clovis_tests::processes::Process;

const LIMIT: Duration = Duration::from_secs(60);

/// A holder of 1:7, holding when this returns.
fn holder(cluster: &RunningCluster) -> Process {
    cluster.start_saying(&["credit", "hold", "1:7"], "holding 1:7 exclusive", LIMIT)
}

#[test]
fn a_held_object_is_refused_waited_for_and_free_after_its_holders_end_or_death() {
    let cluster =
        RunningCluster::start("credits", &["--device-size", "16M", "--servers", "1", "--layout", "1+1+0"]);
    let file = cluster.scratch().join("file");
    std::fs::write(&file, vec![7; 100_000]).unwrap();
    let file = file.to_str().unwrap();
    let _ = cluster.run(&["cp", file, "1:7"]).succeeded();

    let mut first = holder(&cluster);
    let refused = cluster.run(&["cp", file, "1:7", "--exclusive"]);
    assert!(refused.refused().contains("is in use by a client at 127.0.0.1@tcp"), "{}", refused.stderr);
    assert!(cluster.run(&["rm", "1:7", "-x"]).refused().contains("is in use by"));
    assert!(first.said().contains("others wait for 1:7"), "{}", first.said());
    let listed = cluster.run(&["credit", "list", "--json"]).succeeded();
    assert!(listed.text().contains("\"resource\":\"object 1:7\""), "{}", listed.text());
    // Who takes no hold is not held up, and an object that nobody holds is free.
    let _ = cluster.run(&["cp", file, "1:7"]).succeeded();
    let _ = cluster.run(&["cp", file, "1:8", "-x"]).succeeded();

    // It outlives control, and who waits gets it once its holder ends.
    cluster.kill_hard("control");
    cluster.start_again(&[]);
    assert!(cluster.run(&["cp", file, "1:7", "-x"]).refused().contains("is in use by"));
    let mut waiting = Process::start(
        &mut cluster.command(&["cp", file, "1:7", "-x", "--wait", "60", "--quiet"]),
        cluster.scratch(),
    );
    first.ask_to_end().unwrap();
    assert!(first.wait(LIMIT).unwrap().success(), "{}", first.said());
    assert!(waiting.wait(LIMIT).unwrap().success(), "{}", waiting.said());
    // At once: a command that ended in order leaves nothing behind.
    let _ = cluster.run(&["cp", file, "1:7", "-x"]).succeeded();
    let text = cluster.run(&["credit", "list"]).succeeded();
    assert!(text.text().contains("0 clients, 0 requests wait"), "{}", text.text());

    // One that is killed keeps it for its lease, and then it passes on.
    let mut second = holder(&cluster);
    second.kill();
    let early = cluster.run(&["cp", file, "1:7", "-x"]);
    assert!(early.refused().contains("is in use by"), "{}", early.stderr);
    let _ = cluster.run(&["cp", file, "1:7", "-x", "--wait", "60"]).succeeded();
    let _ = cluster.run(&["rm", "1:7", "-x"]).succeeded();
}

#[test]
fn new_objects_get_ids_that_never_come_twice_over_a_killed_control() {
    let cluster =
        RunningCluster::start("new-ids", &["--device-size", "16M", "--servers", "1", "--layout", "1+1+0"]);
    let file = cluster.scratch().join("file");
    std::fs::write(&file, b"content").unwrap();
    let file = file.to_str().unwrap();
    let mut ids = Vec::new();
    for round in 0..4 {
        let made = cluster.run(&["cp", file, "new", "--no-replace"]).succeeded();
        let id = made.text().trim().to_owned();
        assert!(id.starts_with("36028797018963968:"), "{id}");
        assert_eq!(cluster.run(&["cat", &id]).succeeded().text(), "content");
        assert!(!ids.contains(&id), "{id} came twice");
        ids.push(id);
        if round == 1 {
            cluster.kill_hard("control");
            cluster.start_again(&[]);
        }
    }
}

/// A lock's ticket protects a delete as it does a write.
#[test]
fn a_delete_under_a_broken_lock_is_refused() {
    let cluster =
        RunningCluster::start("rm-ticket", &["--device-size", "16M", "--servers", "1", "--layout", "1+1+0"]);
    let file = cluster.scratch().join("file");
    std::fs::write(&file, b"content").unwrap();
    let file = file.to_str().unwrap();
    let _ = cluster.run(&["cp", file, "1:7"]).succeeded();
    let taken = cluster.run(&["lock", "take", "writer", "--object", "1:7"]).succeeded();
    let ticket = taken.text().trim().to_owned();
    let (owner, _) = ticket.split_once(':').unwrap();
    let _ = cluster.run(&["lock", "break", "writer", "--object", "1:7", "--owner", owner]).succeeded();
    let refused = cluster.run(&["rm", "1:7", "--ticket", &ticket]);
    assert!(refused.refused().contains("fenced"), "{}", refused.stderr);
    assert_eq!(cluster.run(&["cat", "1:7"]).succeeded().text(), "content");
    let taken = cluster.run(&["lock", "take", "writer", "--object", "1:7"]).succeeded();
    let _ = cluster.run(&["rm", "1:7", "--ticket", taken.text().trim()]).succeeded();
    assert!(cluster.run(&["cat", "1:7"]).refused().contains("does not exist"));
}
