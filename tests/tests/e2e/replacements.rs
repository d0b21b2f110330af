//! A failed device gets another disk, or its own formatted: `clovis device replace`, with what an operator may do wrong.

use std::fs;

use clovis_tests::cluster::{COMMAND_LIMIT, RunningCluster};
use clovis_tests::processes::Process;
use clovis_tests::wait;
use serde_json::Value;

fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// States of all devices, by target.
fn states(cluster: &RunningCluster) -> Vec<String> {
    let listed = cluster.run(&["device", "list", "--json"]).succeeded();
    let listed: Value = serde_json::from_str(listed.text()).expect("one JSON object");
    let devices = listed["devices"].as_array().expect("a list of devices");
    devices.iter().map(|device| device["state"].as_str().expect("a word").to_owned()).collect()
}

fn put(cluster: &RunningCluster, id: &str, content: &[u8]) {
    let file = cluster.scratch().join(id.replace(':', "-"));
    fs::write(&file, content).expect("the scratch folder takes a file");
    let path = file.to_str().expect("a path of letters");
    let _ = cluster.run(&["cp", "--quiet", path, id]).succeeded();
}

fn has(cluster: &RunningCluster, id: &str, content: &[u8], when: &str) {
    assert!(cluster.run(&["cat", id]).succeeded().stdout == content, "{when}: {id} reads as something else");
}

#[test]
fn a_replaced_device_carries_its_part_while_clients_go_on_and_after_two_others_are_lost() {
    let cluster = RunningCluster::start("replace", &["--device-size", "64M"]);
    let content: Vec<Vec<u8>> = [700_001, 770_001, 840_001, 910_001].map(|count| bytes(9, count)).into();
    put(&cluster, "1:1", &content[0]);
    put(&cluster, "1:2", &content[1]);
    let said = cluster.run(&["device", "replace", "2"]);
    assert!(said.refused().contains("only a failed one is replaced"), "{}", said.refused());
    let _ = cluster.run(&["device", "fail", "2"]).succeeded();
    // Past the device, new and instead of what is on it.
    put(&cluster, "1:3", &content[2]);
    put(&cluster, "1:2", &content[3]);
    let advice = cluster.run(&["status"]).succeeded();
    assert!(advice.text().contains("clovis device replace 0x6b00000000000001:0x3"), "{}", advice.text());
    let mut replacing =
        Process::start(&mut cluster.command(&["device", "replace", "2", "--json"]), cluster.scratch());
    let mut rounds = 0;
    while replacing.is_running() {
        rounds += 1;
        let id = format!("2:{rounds}");
        put(&cluster, &id, &content[rounds % 4]);
        has(&cluster, &id, &content[rounds % 4], "meanwhile");
        has(&cluster, "1:1", &content[0], "meanwhile");
        put(&cluster, "1:3", &content[rounds % 4]);
        assert!(rounds < 1000, "it does not end: {}", replacing.said());
    }
    assert!(replacing.wait(COMMAND_LIMIT).unwrap().success(), "{}", replacing.said());
    assert!(rounds > 1, "nobody did anything meanwhile");
    let said = replacing.said();
    let said: Value = serde_json::from_str(said.lines().find(|line| line.starts_with('{')).unwrap()).unwrap();
    assert_eq!((said["state"].as_str(), said["replacement"].as_u64()), (Some("online"), Some(1)));
    assert!(said["bytes"].as_u64() > Some(200_000), "{said}");
    // Two devices that were never replaced are gone: without the third everything would be lost.
    for device in ["0", "5"] {
        let _ = cluster.run(&["device", "fail", device]).succeeded();
    }
    has(&cluster, "1:1", &content[0], "with two others lost");
    has(&cluster, "1:2", &content[3], "with two others lost");
    has(&cluster, "1:3", &content[rounds % 4], "with two others lost");
    for round in 1..=rounds {
        has(&cluster, &format!("2:{round}"), &content[round % 4], "with two others lost");
    }
    // Its own bytes are formatted over; a file that is gone is made anew.
    fs::remove_file(cluster.dir().join("devices/device-5.dev")).unwrap();
    for device in ["0", "5"] {
        let _ = cluster.run(&["device", "replace", device]).succeeded();
    }
    assert_eq!(states(&cluster), ["online"; 8]);
    let verified = cluster.run(&["cat", "--verify", "1:1"]).succeeded();
    assert!(verified.stdout == content[0], "with parity verified");
}

#[test]
fn a_replacement_that_was_interrupted_goes_on_and_a_wrong_disk_is_not_touched() {
    let cluster = RunningCluster::start("replace-again", &["--device-size", "64M"]);
    let content = bytes(7, 12 << 20);
    put(&cluster, "1:1", &content);
    let _ = cluster.run(&["device", "fail", "1"]).succeeded();
    let disk = cluster.dir().join("devices/device-1.dev");
    let foreign = bytes(8, 64 << 20);
    // Written in place, and the server has the file open: not even its last words may go there.
    fs::write(&disk, &foreign).unwrap();
    let said = cluster.run(&["device", "replace", "1", "--wait", "3"]);
    let said = said.refused();
    assert!(
        said.contains("has not formatted a disk for it within 3 s") && said.contains("device-1.dev"),
        "{said}"
    );
    assert!(fs::read(&disk).unwrap() == foreign, "a foreign disk was written to");
    assert!(cluster.logs().contains("awaits another disk"), "{}", cluster.logs());
    assert_eq!(states(&cluster)[1], "failed");
    fs::remove_file(&disk).unwrap();
    // So slowly that it is seen at work, and killed there.
    let mut slow =
        Process::start(&mut cluster.command(&["device", "replace", "1", "--rate", "64K"]), cluster.scratch());
    wait::until("the first bytes on the new disk", COMMAND_LIMIT, || {
        assert!(slow.is_running(), "{}", slow.said());
        let listed = cluster.run(&["device", "list", "--json"]).succeeded();
        let listed: Value = serde_json::from_str(listed.text()).unwrap();
        let device = &listed["devices"][1];
        let used = device["used_bytes"].as_u64()?;
        (device["state"] == "repair" && used > 0).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {}", slow.said()));
    slow.kill();
    assert_eq!(states(&cluster)[1], "repair");
    has(&cluster, "1:1", &content, "half repaired");
    let advice = cluster.run(&["status"]).succeeded();
    assert!(advice.text().contains("is in repair"), "{}", advice.text());
    // Its server dies and comes back with the new disk.
    cluster.kill_hard("server-2");
    cluster.start_again(&[]);
    let _ = cluster.run(&["device", "replace", "1"]).succeeded();
    for device in ["0", "5"] {
        let _ = cluster.run(&["device", "fail", device]).succeeded();
    }
    has(&cluster, "1:1", &content, "after the second run");
}
