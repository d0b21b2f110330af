//! Objects in a cluster of real processes: what goes in comes out, and what was acknowledged stays.

use clovis_tests::cluster::{COMMAND_LIMIT, RunningCluster};
use clovis_tests::content::bytes;
use clovis_tests::processes::Process;
use clovis_tests::wait;

/// Small devices: the tests store little, and preallocating costs time.
const SMALL: &[&str] = &["--servers", "4", "--devices-per-server", "2", "--device-size", "64M"];

fn store(cluster: &RunningCluster, id: &str, content: &[u8]) {
    let file = cluster.scratch().join(format!("{}.source", id.replace(':', "-")));
    std::fs::write(&file, content).expect("the scratch folder can be written");
    let _ = cluster.run(&["cp", "--quiet", file.to_str().expect("a path of ours"), id]).succeeded();
}

#[test]
fn a_file_comes_back_bit_exact_and_is_listed_until_deleted() {
    let cluster = RunningCluster::start("objects", SMALL);
    // Not a multiple of a block, of a unit, or of a parity group.
    let content = bytes(1, 3 * 1024 * 1024 + 777);
    store(&cluster, "12:34", &content);
    assert!(cluster.run(&["cat", "12:34"]).succeeded().stdout == content, "other bytes came back");
    assert!(cluster.run(&["stat", "12:34"]).succeeded().text().contains(&content.len().to_string()));

    store(&cluster, "0x1:0x2", b"");
    assert!(cluster.run(&["cat", "1:2"]).succeeded().stdout.is_empty());
    assert_eq!(cluster.run(&["ls", "-1"]).succeeded().text().lines().count(), 2);

    let _ = cluster.run(&["rm", "12:34"]).succeeded();
    let _ = cluster.run(&["cat", "12:34"]).refused();
    assert_eq!(cluster.run(&["ls", "-1"]).succeeded().text().lines().count(), 1);
}

#[test]
fn an_object_is_replaced_as_a_whole() {
    let cluster = RunningCluster::start("replace", SMALL);
    store(&cluster, "7:7", &bytes(2, 1_000_000));
    let shorter = bytes(3, 4097);
    store(&cluster, "7:7", &shorter);
    assert!(cluster.run(&["cat", "7:7"]).succeeded().stdout == shorter, "other bytes came back");
}

#[test]
fn reads_go_on_without_a_server_and_everything_is_there_after_its_return() {
    let cluster = RunningCluster::start("degraded", SMALL);
    let content = bytes(4, 2_500_000);
    store(&cluster, "1:1", &content);
    let victim = cluster.daemons().into_iter().find(|name| name.contains("server")).expect("a server runs");
    cluster.kill_hard(&victim);
    assert!(cluster.run(&["cat", "1:1"]).succeeded().stdout == content, "other bytes came back, degraded");
    cluster.start_again(&[]);
    assert!(
        cluster.run(&["cat", "1:1"]).succeeded().stdout == content,
        "other bytes came back, after the return"
    );
}

#[test]
fn a_server_killed_in_the_middle_of_a_copy_costs_nothing_acknowledged() {
    let cluster = RunningCluster::start("killed", SMALL);
    let before = bytes(5, 700_001);
    store(&cluster, "1:1", &before);

    let content = bytes(6, 48 * 1024 * 1024);
    let file = cluster.scratch().join("large");
    std::fs::write(&file, &content).unwrap();
    let mut copy = Process::start(
        &mut cluster.command(&["cp", "--quiet", file.to_str().unwrap(), "2:2"]),
        cluster.scratch(),
    );
    // In the middle: it has read some of the file, and not yet all.
    wait::until("the copy's first megabytes", COMMAND_LIMIT, || {
        (!copy.is_running() || read_bytes(copy.id()) > 4 * 1024 * 1024).then_some(())
    })
    .unwrap();
    let victim = cluster.daemons().into_iter().rfind(|name| name.contains("server")).expect("a server runs");
    cluster.kill_hard(&victim);
    let status = copy.wait(COMMAND_LIMIT).unwrap();

    cluster.start_again(&[]);
    if status.success() {
        assert!(
            cluster.run(&["cat", "2:2"]).succeeded().stdout == content,
            "an acknowledged copy came back with other bytes"
        );
    } else {
        assert!(copy.said().contains("clovis"), "failed without a clear line: {}", copy.said());
        assert!(!copy.said().contains("panicked at"), "{}", copy.said());
    }
    assert!(
        cluster.run(&["cat", "1:1"]).succeeded().stdout == before,
        "an earlier object came back with other bytes"
    );
    // And the cluster takes it now.
    store(&cluster, "2:2", &content);
    assert!(cluster.run(&["cat", "2:2"]).succeeded().stdout == content, "other bytes came back");
}

/// Bytes that a process has read so far, by the kernel's account; 0 once it is gone.
fn read_bytes(id: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{id}/io")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("rchar:"));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}
