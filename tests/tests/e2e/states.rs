//! `clovis status` and `clovis events`: what an operator sees while servers and control go and come back.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::time::Duration;

use clovis_tests::cluster::RunningCluster;
use clovis_tests::wait;

const LIMIT: Duration = Duration::from_secs(60);

fn subjects(cluster: &RunningCluster, after: &str) -> Vec<String> {
    let events = cluster.run(&["events", "--after", after]).succeeded();
    events.text().lines().map(|line| line.split("  v").nth(1).unwrap_or(line).to_owned()).collect()
}

#[test]
fn a_killed_server_is_seen_named_with_what_to_do_and_seen_again() {
    let cluster = RunningCluster::start(
        "states",
        &["--device-size", "16M", "--servers", "2", "--devices-per-server", "2", "--layout", "2+1+1"],
    );
    let healthy = cluster.run(&["status"]).succeeded();
    assert!(
        healthy.text().contains("online, 4 of 4 devices online") && healthy.text().contains("Nothing to do."),
        "{}",
        healthy.text()
    );
    // 4 devices and 2 processes came up.
    assert_eq!(subjects(&cluster, "0").len(), 6, "{:?}", subjects(&cluster, "0"));

    // Where things stand comes with the cluster file.
    let own = fs::read_to_string(cluster.dir().join("clovis.toml")).unwrap();
    let places = "\n[[rack]]\nfid = \"0x6100000000000001:1\"\nname = \"left\"\n[[enclosure]]\nfid = \"0x6500000000000001:1\"\nin = \"0x6100000000000001:1\"\n\
                  [[controller]]\nfid = \"0x6300000000000001:1\"\nin = \"0x6500000000000001:1\"\n[[disk]]\nfid = \"0x6400000000000001:1\"\nin = \"0x6300000000000001:1\"\n";
    let seated = own.replace(
        "path = \"devices/device-0.dev\"",
        "path = \"devices/device-0.dev\"\ndisk = \"0x6400000000000001:1\"",
    );
    let edited = cluster.scratch().join("edited.toml");
    fs::write(&edited, format!("{seated}{places}")).unwrap();
    let _ = cluster.run(&["conf", "apply", edited.to_str().unwrap()]).succeeded();
    let with_places = cluster.run(&["status"]).succeeded();
    assert!(
        with_places.text().contains("rack 0x6100000000000001:0x1 \"left\"  online, 1 of 1 devices online"),
        "{}",
        with_places.text()
    );

    cluster.kill_hard("server-1");
    let status = wait::until("server-1 to be missed", LIMIT, || {
        let status = cluster.run(&["status"]).succeeded();
        status.text().contains("server-1 is silent").then(|| status.text().to_owned())
    })
    .unwrap();
    assert!(
        status.contains("2 of 4 devices online") && status.contains("0x6b00000000000001:0x1  transient"),
        "{status}"
    );
    assert!(
        status.contains("enclosure 0x6500000000000001:0x1  transient, 0 of 1 devices online"),
        "{status}"
    );
    assert!(status.contains("2 devices are failed or away, and layout 2+1+1 reads without 1"), "{status}");
    let lost = subjects(&cluster, "6");
    assert_eq!(lost.len(), 3, "{lost:?}");
    assert!(lost.iter().all(|line| line.ends_with("online -> transient (lease lost)")), "{lost:?}");
    assert!(lost[2].contains("process 0x7200000000000001:0x1"), "{lost:?}");

    // Events outlive the daemon, and the numbers go on.
    cluster.kill_hard("control");
    cluster.start_again(&[]);
    let all = wait::until("server-1 to be back", LIMIT, || {
        let all = subjects(&cluster, "0");
        (all.len() >= 12).then_some(all)
    })
    .unwrap();
    assert_eq!(all[6..9], lost[..]);
    assert!(all[9..12].iter().all(|line| line.contains("transient -> online")), "{all:?}");
    let json = cluster.run(&["status", "--json"]).succeeded();
    assert!(
        json.text().contains("\"advice\":[]") && json.text().contains("\"kind\":\"rack\""),
        "{}",
        json.text()
    );
    assert!(cluster.run(&["events", "--after", "999"]).refused().contains("no event 999"));

    let _ = cluster.run(&["device", "fail", "1"]).succeeded();
    let status = cluster.run(&["status"]).succeeded();
    assert!(status.text().contains("failed: device 0x6b00000000000001:0x2"), "{}", status.text());
    assert!(subjects(&cluster, "12")[0].ends_with("online -> failed (operator)"));
}
