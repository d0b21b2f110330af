//! A cluster of processes grows: servers and devices are added, a pool is expanded and another made, objects move to the new devices while
//! clients work and a server is killed. And what an operator may write that is refused, with its line.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;

use base::{Endpoint, Nid};
use clovis_tests::cluster::{COMMAND_LIMIT, RunningCluster};
use clovis_tests::content::bytes;
use clovis_tests::processes::{Process, free_port};
use clovis_tests::wait;
use serde_json::Value;

fn json(cluster: &RunningCluster, arguments: &[&str]) -> Value {
    let said = cluster.run(arguments).succeeded();
    serde_json::from_str(said.text()).expect("one JSON object")
}

fn put(cluster: &RunningCluster, id: &str, content: &[u8], pool: &[&str]) {
    let file = cluster.scratch().join(id.replace(':', "-"));
    fs::write(&file, content).expect("the scratch folder takes a file");
    let path = file.to_str().expect("a path of letters");
    let _ = cluster.run(&[&["cp", "--quiet"], pool, &[path, id]].concat()).succeeded();
}

fn has(cluster: &RunningCluster, id: &str, content: &[u8], when: &str) {
    assert!(cluster.run(&["cat", id]).succeeded().stdout == content, "{when}: {id} reads as something else");
}

/// Sections of a server with devices, to be put behind a cluster file.
fn server_sections(number: u64, devices: std::ops::Range<u64>, size_bytes: u64) -> String {
    let endpoint = Endpoint::from_port(Nid::tcp(std::net::Ipv4Addr::LOCALHOST), free_port()).unwrap();
    let mut text =
        format!("\n[[server]]\nprocess = \"0x7200000000000001:{number}\"\nendpoints = [\"{endpoint}\"]\n");
    for device in devices {
        text.push_str(&format!(
            "\n[[device]]\nfid = \"0x6b00000000000001:{device}\"\nserver = \"0x7200000000000001:{number}\"\n\
             path = \"devices/added-{device}.dev\"\nsize_bytes = {size_bytes}\n"
        ));
    }
    text
}

/// How many objects lie in each version of the first pool, the newest last.
fn counts(cluster: &RunningCluster) -> Vec<u64> {
    let shown = json(cluster, &["pool", "show", "--count", "--json"]);
    let versions = shown["versions"].as_array().unwrap();
    versions.iter().map(|version| version["objects"].as_u64().unwrap()).collect()
}

#[test]
fn a_cluster_grows_and_its_objects_move_while_clients_work_and_a_server_is_killed() {
    let cluster = RunningCluster::start("pools", &["--security", "shared", "--device-size", "64M"]);
    let content: Vec<Vec<u8>> = (0..16).map(|seed| bytes(seed, 1_300_001)).collect();
    for (index, content) in content.iter().enumerate() {
        put(&cluster, &format!("1:{index}"), content, &[]);
    }
    let own = cluster.dir().join("clovis.toml");
    let first = fs::read_to_string(&own).unwrap();
    let grown =
        format!("{first}{}{}", server_sections(5, 9..11, 64 << 20), server_sections(6, 11..13, 64 << 20));
    let draft = cluster.scratch().join("draft.toml");
    let draft_path = draft.to_str().unwrap();
    // Without a word on the pool the new devices would be its own.
    fs::write(&draft, &grown).unwrap();
    let said = cluster.run(&["conf", "apply", draft_path]);
    assert!(said.refused().contains("cannot be made, the first at pool.devices"), "{}", said.refused());
    let line = |text: &str, piece: &str| text.lines().position(|line| line.starts_with(piece)).unwrap() + 1;
    let kept =
        grown.replace("unit_bytes = 65536\n", "unit_bytes = 65536\ndevices = 8 # those of the beginning\n");
    let at = line(&kept, "devices = 8");
    fs::write(&draft, kept.replace("devices = 8", "devices = 80")).unwrap();
    let said = cluster.run(&["conf", "plan", draft_path]);
    let expected = format!("line {at}, pool.devices: 80 is not from 1 to the 12 [[device]] sections");
    assert!(said.refused().contains(&expected), "{}", said.refused());
    // In the place of an operator's editor: the cluster's own file, which its daemons read.
    fs::write(&own, &kept).unwrap();
    let said = cluster.run(&["conf", "apply", "-m", "two servers"]).succeeded();
    assert!(
        said.text().contains(
            "+ server 0x7200000000000001:0x5: 1 endpoints  (when server 0x7200000000000001:0x5 starts)"
        ),
        "{}",
        said.text()
    );
    let no_way_back =
        "! earlier versions of control, whose store has no format 3, do not take this: pool versions";
    assert!(said.text().contains(no_way_back), "{}", said.text());
    let early = cluster.run(&["pool", "expand", "default", "--devices", "server-5"]);
    assert!(early.refused().contains("server-5 has not started with it yet"), "{}", early.refused());
    // Each starts and formats its devices, which nobody ever used.
    cluster.start_again(&[]);
    for (arguments, words) in [
        (
            &["pool", "expand", "slow", "--devices", "server-5"][..],
            "\"slow\" is no pool of this cluster: it has default",
        ),
        (
            &["pool", "expand", "default", "--devices", "server-1"],
            "server-1 has no device that is in no pool",
        ),
        (&["pool", "expand", "default", "--devices", "0x6b00000000000001:1"], "is in pool default already"),
        (
            &["pool", "create", "default", "--layout", "1+0+0", "--devices", "server-5"],
            "there is a pool \"default\" already",
        ),
        (
            &["pool", "create", "a b", "--layout", "1+0+0", "--devices", "server-5"],
            "\"a b\" is no name of a pool",
        ),
        (
            &["pool", "create", "wide", "--layout", "4+2+1", "--devices", "server-5"],
            "layout 4+2+1 needs 7 devices",
        ),
        (&["pool", "create", "deep", "--layout", "1+3+0", "--devices", "server-5,server-6"], "outlives 2"),
        (
            &["pool", "create", "other", "--layout", "1+0+0", "--devices", "0x6b00000000000001:1"],
            "is one of pool",
        ),
        (&["rebalance", "start"], "has one version"),
        (&["rebalance", "pause"], "is not being rebalanced"),
    ] {
        let said = cluster.run(arguments);
        assert!(said.refused().contains(words), "{arguments:?}: {}", said.refused());
    }
    let planned = cluster.run(&["pool", "expand", "default", "--devices", "server-5", "--plan"]).succeeded();
    assert!(
        planned.text().starts_with("+ pool_version 0x7600000000000001:0x2: of pool"),
        "{}",
        planned.text()
    );
    let expanded = json(&cluster, &["pool", "expand", "default", "--devices", "server-5", "--json"]);
    assert_eq!(expanded["changes"].as_array().unwrap().len(), 1, "{expanded}");
    assert!(expanded["no_way_back"].is_null(), "that was two transactions ago: {expanded}");
    let _ =
        cluster.run(&["pool", "create", "fast", "--layout", "1+1+0", "--devices", "server-6"]).succeeded();
    let shown = cluster.run(&["conf", "show"]).succeeded();
    assert!(shown.text().contains("devices = 8 # those of the beginning"), "comments stay: {}", shown.text());
    let history = cluster.run(&["conf", "history"]).succeeded();
    assert!(history.text().contains("pool expand default") && history.text().contains("pool create fast"));
    let back = cluster.run(&["conf", "rollback", "2"]);
    assert!(back.refused().contains("cannot be made"), "{}", back.refused());
    // New objects: in the newest version, or where the user wants them.
    put(&cluster, "2:1", &content[1], &[]);
    put(&cluster, "2:2", &content[2], &["--pool", "fast"]);
    let elsewhere = cluster.run(&["cp", "--quiet", "--pool", "fast", draft_path, "2:1"]);
    assert!(elsewhere.refused().contains("exists in pool default, not fast"), "{}", elsewhere.refused());
    let pools = json(&cluster, &["pool", "list", "--json"]);
    assert_eq!((&pools["pools"][0]["name"], &pools["pools"][1]["name"]), (&"default".into(), &"fast".into()));
    assert_eq!(counts(&cluster), [16, 1]);
    assert!(cluster.run(&["stat", "2:2"]).succeeded().text().contains("pool    fast, version"));
    // A control daemon that starts with the file of before the expansion goes on with what is in force.
    cluster.kill_hard("control");
    cluster.start_again(&[]);
    assert_eq!(counts(&cluster), [16, 1]);

    // So slowly that it is seen at work.
    let in_force = cluster.run(&["conf", "show"]).succeeded().text().to_owned();
    fs::write(&draft, format!("{in_force}\n[profile]\nrepair_bytes_per_second = 1048576\n")).unwrap();
    let _ = cluster.run(&["conf", "apply", draft_path]).succeeded();
    let _ = cluster.run(&["rebalance", "start", "--detach"]).succeeded();
    let status = |wanted: &dyn Fn(&Value) -> bool| {
        let mut last = Value::Null;
        let found = wait::until("the rebalance", COMMAND_LIMIT, || {
            last = json(&cluster, &["rebalance", "status", "default", "--json"])["rebalances"][0].clone();
            wanted(&last).then_some(())
        });
        found.unwrap_or_else(|error| panic!("{error}: {last}\n{}", cluster.logs()));
        last
    };
    let seen = status(&|moves| moves["objects"].as_u64() > Some(1));
    assert!(seen["expected_bytes"].as_u64() > Some(16 << 20) && seen["state"] == "running", "{seen}");
    // The server that moves; others wait for its devices, reads go on without.
    cluster.kill_hard("server-1");
    has(&cluster, "1:0", &content[0], "without the server");
    has(&cluster, "1:15", &content[15], "without the server");
    cluster.start_again(&[]);
    let _ = cluster.run(&["rebalance", "pause"]).succeeded();
    assert_eq!(status(&|_| true)["state"], "paused");
    let tree = cluster.run(&["status"]).succeeded();
    assert!(tree.text().contains("rebalance 1  paused"), "{}", tree.text());
    let _ = cluster.run(&["rebalance", "resume"]).succeeded();
    fs::write(&draft, &in_force).unwrap();
    let _ = cluster.run(&["conf", "apply", draft_path]).succeeded();
    let mut following = Process::start(
        &mut cluster.command(&["rebalance", "status", "--follow", "--json"]),
        cluster.scratch(),
    );
    let mut rounds = 0;
    while following.is_running() {
        rounds += 1;
        put(&cluster, "1:3", &content[(3 + rounds) % 16], &[]);
        has(&cluster, "1:3", &content[(3 + rounds) % 16], "meanwhile");
        has(&cluster, "1:7", &content[7], "meanwhile");
        assert!(rounds < 1000, "it does not end: {}", following.said());
    }
    assert!(following.wait(COMMAND_LIMIT).unwrap().success(), "{}", following.said());
    assert_eq!(counts(&cluster), [0, 17], "no object is left in the first version");
    for (index, content) in content.iter().enumerate().filter(|(index, _)| *index != 3) {
        has(&cluster, &format!("1:{index}"), content, "moved");
    }
    has(&cluster, "1:3", &content[(3 + rounds) % 16], "moved");
    let verified = cluster.run(&["cat", "--verify", "1:5"]).succeeded();
    assert!(verified.stdout == content[5], "with parity verified");
    let listed = json(&cluster, &["device", "list", "--json"]);
    let listed = listed["devices"].as_array().unwrap();
    let used: Vec<u64> = listed.iter().map(|device| device["used_bytes"].as_u64().unwrap()).collect();
    assert_eq!(used.len(), 12);
    // 17 objects of 1.3 MB with their parity over ten devices; the last server's pool has one such object.
    assert!(
        used[8].min(used[9]) > used[10].max(used[11]) && used[8] > 1 << 20,
        "the added devices carry their part: {used:?}"
    );
    // With two of the others gone what moved is read from the new ones.
    for device in ["0", "1"] {
        let _ = cluster.run(&["device", "fail", device]).succeeded();
    }
    has(&cluster, "1:9", &content[9], "with two lost");
}

#[test]
fn a_running_server_opens_a_device_that_is_added_and_says_what_it_waits_for() {
    let shape = ["--servers", "2", "--localities", "2", "--devices-per-server", "2", "--layout", "1+1+0"];
    let options = [&shape[..], &["--security", "shared", "--device-size", "32M"]].concat();
    let cluster = RunningCluster::start("pools-device", &options);
    let content: Vec<Vec<u8>> = (0..12).map(|seed| bytes(seed, 700_001)).collect();
    put(&cluster, "1:0", &content[0], &[]);
    let process_of = |name: &str| {
        let file = cluster.dir().join("run").join(format!("{name}.pid"));
        fs::read_to_string(file).unwrap().split_whitespace().next().unwrap().to_owned()
    };
    let process = process_of("server-1");
    let own = cluster.dir().join("clovis.toml");
    let first = fs::read_to_string(&own).unwrap();
    let grown = first.replace("unit_bytes = 65536\n", "unit_bytes = 65536\ndevices = 4\n");
    let grown = format!(
        "{grown}\n[[device]]\nfid = \"0x6b00000000000001:5\"\nserver = \"0x7200000000000001:1\"\nlocality = 1\n\
         path = \"devices/added.dev\"\nsize_bytes = {}\n",
        32 << 20
    );
    let draft = cluster.scratch().join("draft.toml");
    fs::write(&draft, &grown).unwrap();
    let said = cluster.run(&["conf", "apply", draft.to_str().unwrap()]).succeeded();
    let opens =
        "device 4 on server 0x7200000000000001:0x1  (when server 0x7200000000000001:0x1 has opened it)";
    assert!(said.text().contains(opens), "{}", said.text());
    let logged = |words: &str| {
        wait::until(words, COMMAND_LIMIT, || cluster.logs().contains(words).then_some(()))
            .unwrap_or_else(|error| panic!("{error}\n{}", cluster.logs()));
    };
    // The file beside the server is still the one of before.
    logged(
        "clovis.toml does not name it as one of server-1.1: bring the cluster file in force to this machine",
    );
    let shown = cluster.run(&["status"]).succeeded();
    assert!(
        shown.text().contains("device 0x6b00000000000001:0x5 was never opened: server-1 does that"),
        "{}",
        shown.text()
    );
    let added = cluster.dir().join("devices/added.dev");
    let foreign = bytes(5, 32 << 20);
    fs::write(&added, &foreign).unwrap();
    fs::write(&own, &grown).unwrap();
    logged("device 0x6b00000000000001:0x5, which is new, cannot be opened: ");
    logged("not of Clovis");
    assert!(fs::read(&added).unwrap() == foreign, "what was not its own was written to");
    has(&cluster, "1:0", &content[0], "meanwhile");
    // Nothing in its place is all that it takes: the file is made.
    fs::remove_file(&added).unwrap();
    let listed = || json(&cluster, &["device", "list", "--json"])["devices"].clone();
    wait::until("the device to be online", COMMAND_LIMIT, || {
        (listed()[4]["state"] == "online").then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", cluster.logs()));
    assert_eq!(fs::metadata(&added).unwrap().len(), 32 << 20);
    logged("device 0x6b00000000000001:0x5, which is new, is open");
    assert_eq!(process_of("server-1"), process, "nobody started again");
    let told = cluster.logs().matches("cannot be opened: ").count();
    assert_eq!(told, 2, "each reason is told once: {}", cluster.logs());
    let events = cluster.run(&["events", "--json"]).succeeded();
    let is_told = events.text().lines().any(|line| {
        let event: Value = serde_json::from_str(line).unwrap();
        event["subject"] == "0x6b00000000000001:0x5"
            && event["to"] == "online"
            && event["cause"] == "registered"
    });
    assert!(is_told, "{}", events.text());
    let _ = cluster.run(&["pool", "expand", "default", "--devices", "0x6b00000000000001:5"]).succeeded();
    for (index, content) in content.iter().enumerate().skip(1) {
        put(&cluster, &format!("1:{index}"), content, &[]);
    }
    let used = wait::until("bytes on it", COMMAND_LIMIT, || {
        listed()[4]["used_bytes"].as_u64().filter(|used| *used > 0)
    });
    assert!(used.is_ok(), "{}", listed());
    cluster.kill_hard("server-1");
    cluster.start_again(&[]);
    for (index, content) in content.iter().enumerate() {
        has(&cluster, &format!("1:{index}"), content, "after a restart");
    }
    assert_ne!(process_of("server-1"), process);
}
