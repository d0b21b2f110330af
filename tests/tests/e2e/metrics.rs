//! What daemons tell Prometheus, and `clovis top`: both say what was done, while it is done.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::net::TcpListener;
use std::thread;

use clovis_tests::cluster::RunningCluster;
use clovis_tests::{http, processes};
use serde_json::Value;

/// The samples that a process tells at a port.
fn metrics(port: u16) -> String {
    let (head, body) = http::get(port, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    body
}

/// One sample by its name and labels.
fn sample(text: &str, name: &str) -> f64 {
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

fn small<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let shape = ["--device-size", "32M", "--servers", "1", "--devices-per-server", "4", "--layout", "2+1+1"];
    shape.into_iter().chain(more.iter().copied()).collect()
}

#[test]
fn metrics_count_what_was_done_and_stay_off_unless_asked_for() {
    let port = processes::free_ports(2);
    let cluster = RunningCluster::start("metrics", &small(&["--metrics-port", &port.to_string()]));
    let writes = "clovis_request_duration_seconds_count{side=\"server\",fop=\"component-write\"}";
    assert!(!metrics(port + 1).contains(writes));
    let file = cluster.scratch().join("file");
    fs::write(&file, vec![7; 1 << 20]).unwrap();
    let _ = cluster.run(&["cp", "--quiet", file.to_str().unwrap(), "1:1"]).succeeded();
    let told = metrics(port + 1);
    assert!(sample(&told, writes) >= 3.0, "a group of 2+1 has three writes: {told}");
    assert!(sample(&told, "clovis_bulk_received_bytes_total") >= f64::from(3 << 19));
    assert!(told.contains("clovis_build_info{process=\"server-1\",fid=\"0x7200000000000001:0x1\""), "{told}");
    let of_control = metrics(port);
    assert!(
        sample(&of_control, "clovis_request_duration_seconds_count{side=\"server\",fop=\"register\"}") >= 1.0
    );

    // Its shape is kept, and a port that is taken is told at the start.
    let dir = cluster.dir().to_str().unwrap().to_owned();
    let _ = cluster.run(&["cluster", "stop", "--dir", &dir]).succeeded();
    let refusal = cluster.run(&["cluster", "start", "--dir", &dir, "--metrics-port", "2000"]);
    assert!(refusal.refused().contains("metrics of control on port"), "{}", refusal.refused());
    let taken = TcpListener::bind(("127.0.0.1", port + 1)).unwrap();
    let refusal = cluster.run(&["cluster", "start", "--dir", &dir]);
    assert!(refusal.refused().contains(&format!("telling metrics at 127.0.0.1:{}", port + 1)));
    drop(taken);
    let _ = cluster.run(&["cluster", "start", "--dir", &dir]).succeeded();
    assert!(sample(&metrics(port + 1), "process_resident_memory_bytes") > 0.0);
}

#[test]
fn top_shows_what_is_done_meanwhile() {
    let cluster = RunningCluster::start("top", &small(&[]));
    let file = cluster.scratch().join("file");
    fs::write(&file, vec![7; 1 << 20]).unwrap();
    let dir = cluster.dir().to_str().unwrap().to_owned();
    let intervals: Vec<Value> = thread::scope(|scope| {
        let top =
            scope.spawn(|| cluster.run(&["top", "--dir", &dir, "--interval", "1", "--count", "3", "--json"]));
        let mut number = 0;
        while !top.is_finished() {
            number += 1;
            let _ =
                cluster.run(&["cp", "--quiet", file.to_str().unwrap(), &format!("1:{number}")]).succeeded();
            let _ = cluster.run(&["rm", &format!("1:{number}")]).succeeded();
        }
        let finished = top.join().unwrap().succeeded();
        finished.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    });
    assert_eq!(intervals.len(), 3);
    for interval in &intervals {
        assert!(interval["seconds"].as_f64().unwrap() >= 1.0);
        let fops = interval["fops"].as_array().unwrap();
        let writes =
            fops.iter().find(|fop| fop["side"] == "server" && fop["fop"] == "component-write").unwrap();
        assert!(writes["times"]["count"].as_u64().unwrap() >= 1, "{interval}");
        let processes = interval["processes"].as_array().unwrap();
        assert!(processes.iter().any(|one| one["process"] == "server-1" && one["state"] == "running"));
    }
    let text = cluster.run(&["top", "--dir", &dir, "--interval", "1", "--count", "1"]).succeeded();
    assert!(text.text().contains("served/s") && text.text().contains("heartbeat"), "{}", text.text());
    assert!(cluster.run(&["top"]).refused().contains("FILE"));
    assert!(cluster.run(&["top", "--dir", "/nowhere"]).refused().contains("/nowhere/addb"));
}
