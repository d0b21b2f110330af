//! An operator takes a device out and back: what reads, writes, restarts and the tools make of it.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::process::Command;

use clovis_tests::cluster::{COMMAND_LIMIT, RunningCluster};
use clovis_tests::content::bytes;
use clovis_tests::{binary, processes};
use serde_json::Value;

const DEVICE: &str = "0x6b00000000000001:0x1";

fn listed(cluster: &RunningCluster, target: usize) -> Value {
    let list = cluster.run(&["device", "list", "--json"]).succeeded();
    let whole: Value = serde_json::from_str(list.text()).unwrap();
    whole["devices"][target].clone()
}

fn events(cluster: &RunningCluster) -> Vec<String> {
    let events = cluster.run(&["events"]).succeeded();
    let about = |line: &&str| line.contains(&format!("device {DEVICE}:"));
    events.text().lines().filter(about).map(|line| line.rsplit(": ").next().unwrap().to_owned()).collect()
}

#[test]
fn a_detached_device_is_rebuilt_by_reads_waited_for_by_writes_and_back_when_it_is_attached() {
    let cluster = RunningCluster::start("orders", &["--device-size", "32M"]);
    let content = bytes(31, 4_000_001);
    let file = cluster.scratch().join("file");
    fs::write(&file, &content).unwrap();
    let file = file.to_str().unwrap();
    let _ = cluster.run(&["cp", "--quiet", file, "1:1"]).succeeded();
    let small = cluster.scratch().join("small");
    fs::write(&small, &content[..1_500_000]).unwrap();
    let small = small.to_str().unwrap();
    let before = listed(&cluster, 0);
    assert!(before["state"] == "online" && before["why"] == "registered", "{before}");
    assert!(before["used_bytes"].as_u64().unwrap() < before["size_bytes"].as_u64().unwrap(), "{before}");

    let detached = cluster.run(&["device", "detach", "0"]).succeeded();
    assert!(detached.text().starts_with(&format!("device {DEVICE} is detached")), "{}", detached.text());
    let out = |what: &str| {
        let device = listed(&cluster, 0);
        assert!(device["state"] == "detached" && device["why"] == "operator detach", "{what}: {device}");
        let read = cluster.run(&["cat", "1:1"]).succeeded();
        assert!(read.stdout == content, "{what}: other bytes, degraded");
        let refused = cluster.run(&["cp", "--quiet", "--timeout", "4", small, "1:2"]);
        let said = refused.refused();
        assert!(said.contains("detached") && said.contains(DEVICE), "{what}: {said}");
        let status = cluster.run(&["status"]).succeeded();
        let advice = format!("device {DEVICE} was detached by an operator");
        assert!(
            status.text().contains(&advice) && status.text().contains("7 of 8 devices online"),
            "{what}: {}",
            status.text()
        );
    };
    out("at once");
    cluster.kill_hard("control");
    cluster.start_again(&[]);
    out("after a restart of control");
    cluster.kill_hard("server-1");
    cluster.start_again(&[]);
    out("after a restart of its server");

    // K = 2: one more may go, a third only by force.
    let _ = cluster.run(&["device", "detach", "5"]).succeeded();
    let refused = cluster.run(&["device", "detach", "3"]);
    assert!(refused.refused().contains("2 other devices are away"), "{}", refused.stderr);
    assert!(cluster.run(&["cat", "1:1"]).succeeded().stdout == content, "other bytes with two out");
    let _ = cluster.run(&["device", "attach", "5"]).succeeded();

    let shown = cluster.run(&["pool", "show"]).succeeded();
    assert!(shown.text().contains("7 of 8 devices online: 1 more may be lost"), "{}", shown.text());
    let pools = cluster.run(&["pool", "list", "--json"]).succeeded();
    let pools: Value = serde_json::from_str(pools.text()).unwrap();
    assert!(pools["pools"][0]["online"] == 7 && pools["pools"][0]["devices_in_no_sum"] == 0, "{pools}");

    let attached = cluster.run(&["device", "attach", DEVICE]).succeeded();
    assert!(attached.text().starts_with(&format!("device {DEVICE} is online")), "{}", attached.text());
    let _ = cluster.run(&["cp", "--quiet", file, "1:2"]).succeeded();
    for object in ["1:1", "1:2"] {
        assert!(
            cluster.run(&["cat", "--verify", object]).succeeded().stdout == content,
            "{object}: other bytes"
        );
    }
    assert!(cluster.run(&["status"]).succeeded().text().contains("Nothing to do."));
    let told = events(&cluster);
    let ends = [
        "online -> detached (operator detach)",
        "detached -> transient (operator attach)",
        "transient -> online (registered)",
    ];
    assert_eq!(told[1..], ends, "{told:?}");

    // What was given up does not come back by an order.
    let _ = cluster.run(&["device", "fail", "3"]).succeeded();
    assert!(cluster.run(&["device", "attach", "3"]).refused().contains("writes went past it"));
    assert!(cluster.run(&["device", "detach", "3"]).refused().contains("is failed"));
    let failed = listed(&cluster, 3);
    assert!(
        failed["state"] == "failed" && failed["why"] == "operator" && failed["since_unix_s"].is_u64(),
        "{failed}"
    );

    let located = cluster.run(&["device", "locate", "0"]).succeeded();
    let path = cluster.dir().join("devices/device-0.dev");
    assert!(
        located.text().contains(path.to_str().unwrap()) && located.text().contains("a file"),
        "{}",
        located.text()
    );
    assert!(located.text().contains("(server-1)"), "{}", located.text());

    // Stopped in good order, the device that was out is sound.
    let mut stop = Command::new(binary::clovis());
    stop.args(["cluster", "stop", "--dir"]).arg(cluster.dir());
    let _ = processes::run(&mut stop, cluster.scratch(), COMMAND_LIMIT).succeeded();
    let checked = cluster.run(&["stob", "check", path.to_str().unwrap()]).succeeded();
    assert!(!checked.text().is_empty());
}
