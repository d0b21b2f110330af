//! Device files that are not what the configuration says, and devices that are full.

use std::fs::{self, File};
use std::process::Command;

use clovis_tests::binary;
use clovis_tests::cluster::{COMMAND_LIMIT, RunningCluster};
use clovis_tests::content::bytes;
use clovis_tests::processes::{self, Finished};

fn cluster_command(cluster: &RunningCluster, word: &str) -> Finished {
    let mut command = Command::new(binary::clovis());
    command.args(["cluster", word, "--dir"]).arg(cluster.dir()).env_remove("CLOVIS_CONFIG");
    processes::run(&mut command, cluster.scratch(), COMMAND_LIMIT)
}

#[test]
fn a_device_file_of_another_kind_is_named_and_its_server_stays_away() {
    let cluster = RunningCluster::start("devices", &["--device-size", "16M"]);
    let content = bytes(11, 300_001);
    let file = cluster.scratch().join("file");
    fs::write(&file, &content).unwrap();
    let _ = cluster.run(&["cp", "--quiet", file.to_str().unwrap(), "1:1"]).succeeded();
    let stranger = RunningCluster::start("devices-2", &["--device-size", "16M"]);
    let foreign = fs::read(stranger.dir().join("devices/device-1.dev")).unwrap();
    drop(stranger);
    assert_eq!(cluster_command(&cluster, "stop").succeeded().text(), "5 processes stopped\n");
    assert_eq!(cluster_command(&cluster, "stop").succeeded().text(), "0 processes stopped\n");
    assert!(cluster_command(&cluster, "status").refused().contains("does not run"));

    let device = cluster.dir().join("devices/device-1.dev");
    let good = fs::read(&device).unwrap();
    let neighbour = fs::read(cluster.dir().join("devices/device-2.dev")).unwrap();
    let cases: [(&str, Vec<u8>, &str); 6] = [
        ("truncated", good[..good.len() / 2].to_vec(), "truncated"),
        ("empty", Vec::new(), "0 blocks"),
        ("zeroed", vec![0; good.len()], "not formatted"),
        ("garbage", bytes(12, good.len()), "not of Clovis"),
        ("swapped", neighbour, "expected"),
        ("foreign", foreign, "belongs to cluster"),
    ];
    for (name, other, reason) in cases {
        fs::write(&device, &other).unwrap();
        let start = cluster_command(&cluster, "start");
        let said = start.refused();
        assert_eq!(said.lines().count(), 1, "{name}: {said}");
        assert!(said.contains(reason) && said.contains("0x6b00000000000001:0x2"), "{name}: {said}");
        assert!(said.contains("cluster stop"), "{name}: it does not say that the rest runs: {said}");
        // What the wrong file holds is not touched, and the others serve.
        assert!(fs::read(&device).unwrap() == other, "{name}: the file was changed");
        assert!(cluster.run(&["cat", "1:1"]).succeeded().stdout == content, "{name}: other bytes, degraded");
        let _ = cluster_command(&cluster, "stop").succeeded();
    }
    fs::write(&device, &good).unwrap();
    cluster.start_again(&[]);
    assert!(cluster.run(&["cat", "1:1"]).succeeded().stdout == content, "other bytes came back");
}

#[test]
fn a_full_device_is_named_in_one_line_and_the_old_bytes_stay() {
    let cluster = RunningCluster::start("full", &["--device-size", "16M"]);
    let old = bytes(13, 500_000);
    let file = cluster.scratch().join("old");
    fs::write(&file, &old).unwrap();
    let _ = cluster.run(&["cp", "--quiet", file.to_str().unwrap(), "1:1"]).succeeded();
    // 8 devices with some 7 MiB each for data: more than all of them hold.
    let large = cluster.scratch().join("large");
    File::create(&large).unwrap().set_len(80 << 20).unwrap();
    let refused = cluster.run(&["cp", "--quiet", large.to_str().unwrap(), "1:1"]);
    let said = refused.refused();
    assert!(said.lines().count() == 1 && said.len() < 1000, "not one clear line: {said}");
    assert!(said.contains("is full") && said.contains("0x6b00000000000001:"), "{said}");
    assert!(cluster.run(&["cat", "1:1"]).succeeded().stdout == old, "the old bytes are gone");
    // What did not fit takes no room: something smaller goes in at once.
    File::options().write(true).open(&large).unwrap().set_len(10 << 20).unwrap();
    let _ = cluster.run(&["cp", "--quiet", large.to_str().unwrap(), "2:2"]).succeeded();
    let _ = cluster.run(&["rm", "1:1"]).succeeded();
    let _ = cluster.run(&["cp", "--quiet", file.to_str().unwrap(), "1:1"]).succeeded();
    assert!(cluster.run(&["cat", "1:1"]).succeeded().stdout == old, "other bytes came back");
}
