//! Servers of several localities: each with a thread, an endpoint and devices of its own, one process to everybody else.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use clovis_tests::cluster::RunningCluster;
use clovis_tests::{content, http, processes};
use serde_json::Value;

const SHAPE: [&str; 8] =
    ["--servers", "4", "--localities", "2", "--devices-per-server", "2", "--device-size", "64M"];
const OBJECT_BYTES: usize = 12 << 20;

/// Requests of this fop that a locality's ring has to its end.
fn ended(cluster: &RunningCluster, ring: &str, fop: &str) -> usize {
    let file = cluster.dir().join("addb").join(format!("{ring}.addb"));
    let dump = cluster.run(&["addb", "dump", "--json", file.to_str().unwrap()]).succeeded();
    let lines = dump.text().lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["fop"] == fop && line["what"] == "done").count()
}

fn threads(cluster: &RunningCluster, daemon: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(cluster.dir().join("run").join(format!("{daemon}.pid"))).unwrap();
    let process = text.split_whitespace().next().unwrap();
    let tasks = fs::read_dir(Path::new("/proc").join(process).join("task")).unwrap();
    let tasks = tasks.map(|task| task.unwrap().path());
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let cores = |status: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        line.unwrap().trim().to_owned()
    };
    tasks
        .map(|path| (read(&path.join("comm")).trim().to_owned(), cores(&read(&path.join("status")))))
        .collect()
}

#[test]
fn the_localities_of_a_server_serve_their_devices_and_end_together() {
    let port = processes::free_ports(5);
    let metrics_port = port.to_string();
    let arguments: Vec<&str> = SHAPE.into_iter().chain(["--metrics-port", &metrics_port]).collect();
    let cluster = RunningCluster::start("localities", &arguments);
    let (bytes, file) = (content::bytes(3, OBJECT_BYTES), cluster.scratch().join("file"));
    fs::write(&file, &bytes).unwrap();
    let back = cluster.scratch().join("back");
    let is_back = |object: &str| {
        let to = back.to_str().unwrap();
        let _ = cluster.run(&["cat", object, "--output", to]).succeeded();
        assert!(fs::read(&back).unwrap() == bytes, "object {object} is another one");
    };
    let _ = cluster.run(&["cp", "--quiet", file.to_str().unwrap(), "1:1"]).succeeded();
    is_back("1:1");

    // One thread each, one endpoint each, and each has served its own part.
    assert!(threads(&cluster, "server-1").iter().any(|(name, _)| name == "server-1.1"));
    let shown = cluster.run(&["conf", "show"]).succeeded();
    assert_eq!(shown.text().matches("locality = 1").count(), 4, "{}", shown.text());
    let (first, second) =
        (ended(&cluster, "server-1", "component-write"), ended(&cluster, "server-1.1", "component-write"));
    assert!(first > 0 && second > 0, "writes of the localities: {first} and {second}");
    let (_, told) = http::get(port + 1, "/metrics");
    let count = "clovis_request_duration_seconds_count{side=\"server\",fop=\"component-write\"} ";
    let count = told.lines().find_map(|line| line.strip_prefix(count)).unwrap().parse::<usize>().unwrap();
    assert!(count >= first + second, "{count} of all in {told}");

    // A process that dies takes both of its devices with it, and brings both back.
    cluster.kill_hard("server-2");
    is_back("1:1");
    cluster.start_again(&[]);
    let _ = cluster.run(&["cp", "--quiet", file.to_str().unwrap(), "1:2"]).succeeded();
    cluster.kill_hard("server-3");
    is_back("1:2");
    cluster.start_again(&[]);

    let dir = cluster.dir();
    let _ = cluster.run(&["cluster", "stop", "--dir", dir.to_str().unwrap()]).succeeded();
    let log = fs::read_to_string(dir.join("log").join("server-1.log")).unwrap();
    assert!(log.contains("server-1 has stopped: "), "{log}");
    cluster.start_again(&[]);
    is_back("1:2");
}

#[test]
fn what_keeps_one_locality_from_serving_ends_the_process_and_cores_are_checked_before() {
    let cluster = RunningCluster::start("cores", &SHAPE);
    let dir = cluster.dir();
    let _ = cluster.run(&["cluster", "stop", "--dir", dir.to_str().unwrap()]).succeeded();
    let refusal = |cores: &[&str]| {
        let arguments = [&["server", "--process", "0x7200000000000001:0x1"], cores].concat();
        cluster.run(&arguments).refused().to_owned()
    };
    let few = refusal(&["--cores", "0"]);
    assert!(few.contains("--cores has 1 of them for the 2 localities of server-1"), "{few}");
    for (cores, why) in [("0,0", "core 0 is there twice"), ("3-1", "goes up"), ("one", "is no core")] {
        let refused = refusal(&["--cores", cores]);
        assert!(refused.contains(why), "{cores}: {refused}");
    }
    let none = refusal(&["--cores", "4000-4001"]);
    assert!(none.contains("on core 400"), "{none}");

    // The port of the second locality is somebody else's.
    let text = fs::read_to_string(dir.join("clovis.toml")).unwrap();
    let second = faces::ClusterFile::parse(&text).unwrap().servers[0].endpoints[1];
    let taken = TcpListener::bind(("127.0.0.1", second.port().unwrap())).unwrap();
    let refused = cluster.run(&["cluster", "start", "--dir", dir.to_str().unwrap()]);
    let said = refused.refused();
    assert!(said.contains("server-1.1") && said.contains("in use"), "{said}");
    drop(taken);
    cluster.start_again(&[]);
}
