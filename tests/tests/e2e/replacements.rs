//! A failed device gets another disk, or its own formatted: `clovis device replace`, with what an operator may do wrong.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;

use clovis_tests::cluster::{COMMAND_LIMIT, RunningCluster};
use clovis_tests::content::bytes;
use clovis_tests::processes::Process;
use clovis_tests::wait;
use serde_json::Value;

/// States of all devices, by target.
pub fn states(cluster: &RunningCluster) -> Vec<String> {
    let listed = cluster.run(&["device", "list", "--json"]).succeeded();
    let listed: Value = serde_json::from_str(listed.text()).expect("one JSON object");
    let devices = listed["devices"].as_array().expect("a list of devices");
    devices.iter().map(|device| device["state"].as_str().expect("a word").to_owned()).collect()
}

pub fn put(cluster: &RunningCluster, id: &str, content: &[u8]) {
    let file = cluster.scratch().join(id.replace(':', "-"));
    fs::write(&file, content).expect("the scratch folder takes a file");
    let path = file.to_str().expect("a path of letters");
    let _ = cluster.run(&["cp", "--quiet", path, id]).succeeded();
}

pub fn has(cluster: &RunningCluster, id: &str, content: &[u8], when: &str) {
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

/// What control says of the repair of a device, by target.
pub fn repair(cluster: &RunningCluster, target: &str) -> Value {
    let said = cluster.run(&["repair", "status", target, "--json"]).succeeded();
    let said: Value = serde_json::from_str(said.text()).expect("one JSON object");
    said["repairs"][0].clone()
}

/// Waits until the repair of a device is as wanted.
pub fn until(cluster: &RunningCluster, target: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    wait::until(what, COMMAND_LIMIT, || {
        last = repair(cluster, target);
        wanted(&last).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {last}\n{}", cluster.logs()));
    last
}

/// Puts a cluster file in force that lets repairs write so many bytes in a second.
fn limit_repairs(cluster: &RunningCluster, bytes_per_second: Option<u64>) {
    let own = fs::read_to_string(cluster.dir().join("clovis.toml")).unwrap();
    let limit = bytes_per_second.map(|rate| format!("\n[profile]\nrepair_bytes_per_second = {rate}\n"));
    let edited = cluster.scratch().join("edited.toml");
    fs::write(&edited, format!("{own}{}", limit.unwrap_or_default())).unwrap();
    let _ = cluster.run(&["conf", "apply", edited.to_str().unwrap()]).succeeded();
}

/// Causes of the events of a device, oldest first.
fn causes(cluster: &RunningCluster, device: &str) -> Vec<String> {
    let events = cluster.run(&["events", "--json"]).succeeded();
    let events = events.text().lines().map(|line| serde_json::from_str::<Value>(line).expect("an event"));
    let of_device = events.filter(|event| event["subject"] == device);
    of_device.map(|event| event["cause"].as_str().expect("a word").to_owned()).collect()
}

#[test]
fn a_repair_survives_its_command_its_server_and_control_and_heeds_pause_and_rate() {
    let cluster = RunningCluster::start("replace-again", &["--device-size", "64M"]);
    let content: Vec<Vec<u8>> = (0..32).map(|seed| bytes(seed, 1_500_000)).collect();
    for (index, content) in content.iter().enumerate() {
        put(&cluster, &format!("1:{index}"), content);
    }
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
    let wrong = cluster.scratch().join("wrong.toml");
    let own = fs::read_to_string(cluster.dir().join("clovis.toml")).unwrap();
    fs::write(&wrong, format!("{own}\n[profile]\nrepair_bytes_per_second = 5\n")).unwrap();
    let said = cluster.run(&["conf", "apply", wrong.to_str().unwrap()]);
    assert!(said.refused().contains("profile.repair_bytes_per_second"), "{}", said.refused());
    // So slowly that it is seen at work.
    limit_repairs(&cluster, Some(65_536));
    // A disk in its place is all that it takes: the order stands.
    fs::remove_file(&disk).unwrap();
    let seen = until(&cluster, "1", "the first bytes on the new disk", |repair| {
        repair["state"] == "running" && repair["bytes"].as_u64() > Some(0)
    });
    assert_eq!(
        (seen["replacement"].as_u64(), seen["bytes_per_second_max"].as_u64()),
        (Some(1), Some(65_536))
    );
    assert!(seen["expected_bytes"].as_u64() > Some(500_000) && seen["lost_objects"] == 0, "{seen}");
    let status = cluster.run(&["status"]).succeeded();
    assert!(
        status.text().contains("running: ") && status.text().contains("is in repair"),
        "{}",
        status.text()
    );
    has(&cluster, "1:1", &content[1], "half repaired");

    // The command only looks: ended, it says so, and the copy goes on.
    let mut following = cluster.start_saying(&["device", "replace", "1"], "has a blank disk", COMMAND_LIMIT);
    wait::until("it to follow", COMMAND_LIMIT, || {
        assert!(following.is_running(), "{}", following.said());
        following.ask_to_end().unwrap();
        following.wait(std::time::Duration::from_millis(300)).ok()
    })
    .unwrap();
    assert!(following.said().contains("goes on in its server"), "{}", following.said());
    let far = seen["bytes"].as_u64();
    until(&cluster, "1", "the copy to go on without the command", |repair| repair["bytes"].as_u64() > far);

    // Paused, nothing moves, whoever restarts.
    let paused = cluster.run(&["repair", "pause", "1"]).succeeded();
    assert!(paused.text().contains("is paused"), "{}", paused.text());
    let still = repair(&cluster, "1");
    assert_eq!(still["state"], "paused");
    let refused = cluster.run(&["device", "replace", "1"]);
    assert!(refused.refused().contains("clovis repair resume"), "{}", refused.refused());
    let status = cluster.run(&["status"]).succeeded();
    assert!(status.text().contains("clovis repair resume"), "{}", status.text());
    cluster.kill_hard("server-2");
    cluster.kill_hard("control");
    cluster.start_again(&[]);
    let again = repair(&cluster, "1");
    assert_eq!(
        (&again["state"], &again["bytes"], &again["objects"]),
        (&still["state"], &still["bytes"], &still["objects"]),
        "it moved, or control forgot"
    );
    let _ = cluster.run(&["repair", "resume"]).succeeded();

    // Its server dies in the middle: what is whole stays whole.
    let before = until(&cluster, "1", "a whole object", |repair| {
        repair["state"] == "running" && repair["objects"].as_u64() > Some(0)
    });
    cluster.kill_hard("server-2");
    cluster.start_again(&[]);
    let after = until(&cluster, "1", "the copy to go on", |repair| repair["state"] == "running");
    assert!(
        after["objects"].as_u64() >= before["objects"].as_u64() && after["last_object"] != Value::Null,
        "{before} {after}"
    );
    // Control dies in the middle.
    cluster.kill_hard("control");
    cluster.start_again(&[]);
    until(&cluster, "1", "the copy to go on", |repair| repair["state"] == "running");
    let mut following =
        Process::start(&mut cluster.command(&["repair", "status", "1", "--follow"]), cluster.scratch());
    limit_repairs(&cluster, None);
    let done = until(&cluster, "1", "the end", |repair| repair["state"] == "done");
    assert_eq!((done["objects"].as_u64(), done["lost_objects"].as_u64()), (Some(32), Some(0)), "{done}");
    assert_eq!(done["seconds_left"], Value::Null);
    assert!(following.wait(COMMAND_LIMIT).unwrap().success(), "{}", following.said());
    assert!(following.said().contains("done: 32 objects"), "{}", following.said());
    assert_eq!(states(&cluster)[1], "online");
    let causes = causes(&cluster, "0x6b00000000000001:0x2");
    let of_repair: Vec<&str> = causes
        .iter()
        .map(String::as_str)
        .filter(|cause| cause.starts_with("repair") || cause.starts_with("copy") || cause.starts_with("disk"))
        .collect();
    assert_eq!(
        of_repair,
        ["disk replaced", "repair started", "repair paused", "repair resumed", "copy complete"]
    );
    for device in ["0", "5"] {
        let _ = cluster.run(&["device", "fail", device]).succeeded();
    }
    for (index, content) in content.iter().enumerate() {
        has(&cluster, &format!("1:{index}"), content, "after the repair");
    }
}

#[test]
fn a_repair_that_is_given_up_is_failed_again_and_one_that_lacks_devices_says_which() {
    let cluster = RunningCluster::start("replace-lost", &["--device-size", "64M"]);
    // Of several windows: after the first it waits for its rate.
    let content = bytes(3, 12 << 20);
    put(&cluster, "1:1", &content);
    let none = cluster.run(&["repair", "abort"]);
    assert!(none.refused().contains("no repair is running"), "{}", none.refused());
    assert!(cluster.run(&["repair", "status"]).succeeded().text().contains("nothing is repaired"));
    limit_repairs(&cluster, Some(4096));
    let _ = cluster.run(&["device", "fail", "1"]).succeeded();
    let said = cluster.run(&["device", "replace", "1", "--detach", "--json"]).succeeded();
    let said: Value = serde_json::from_str(said.text()).unwrap();
    assert_eq!((&said["state"], &said["replacement"]), (&Value::from("repair"), &Value::from(1)), "{said}");
    until(&cluster, "1", "the copy", |repair| repair["state"] == "running");
    let aborted = cluster.run(&["repair", "abort", "--json"]).succeeded();
    let aborted: Value = serde_json::from_str(aborted.text()).unwrap();
    assert_eq!(aborted["repairs"][0]["state"], "failed", "{aborted}");
    assert_eq!(
        (states(&cluster)[1].as_str(), &repair(&cluster, "1")["state"]),
        ("failed", &Value::from("aborted"))
    );
    limit_repairs(&cluster, None);
    let replaced = cluster.run(&["device", "replace", "1", "--json"]).succeeded();
    let replaced: Value = serde_json::from_str(replaced.text()).unwrap();
    assert_eq!(
        (&replaced["state"], &replaced["replacement"]),
        (&Value::from("online"), &Value::from(2)),
        "{replaced}"
    );
    has(&cluster, "1:1", &content, "after the second disk");

    // Three of them, and the layout reads without two.
    for device in ["0", "5", "1"] {
        let _ = cluster.run(&["device", "fail", device]).succeeded();
    }
    let said = cluster.run(&["device", "replace", "1"]);
    let said = said.refused();
    assert!(said.contains("0x6b00000000000001:0x6") && said.contains("clovis repair start"), "{said}");
    let failed = repair(&cluster, "1");
    assert_eq!(
        (&failed["state"], &failed["replacement"]),
        (&Value::from("failed"), &Value::from(3)),
        "{failed}"
    );
    assert_eq!(states(&cluster)[1], "repair");
    let said = cluster.run(&["repair", "pause", "1"]);
    assert!(said.refused().contains("its repair failed"), "{}", said.refused());
    let said = cluster.run(&["repair", "start", "--detach"]).succeeded();
    assert!(said.text().contains("begins again"), "{}", said.text());
    let _ = cluster.run(&["repair", "abort"]).succeeded();
    assert_eq!(states(&cluster)[1], "failed");
}
