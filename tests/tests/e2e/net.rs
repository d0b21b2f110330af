//! `clovis net`: what is listed, who answers, and traffic between two processes.

use std::fs;
use std::process::Command;
use std::time::Duration;

use clovis_tests::cluster::RunningCluster;
use clovis_tests::processes::{Finished, Process, free_endpoint, run};
use clovis_tests::{binary, folder, wait};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

fn clovis(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary::clovis());
    command.args(arguments).env_remove("CLOVIS_CONFIG");
    command
}

fn finished(arguments: &[&str]) -> Finished {
    let folder = folder("net");
    run(&mut clovis(arguments), folder.path(), LIMIT)
}

fn json(finished: &Finished) -> Value {
    serde_json::from_str(finished.text()).expect("one JSON object")
}

/// A selftest server on a free port, and its endpoint.
fn server(scratch: &std::path::Path, arguments: &[&str]) -> (Process, String) {
    let endpoint = free_endpoint();
    let mut command = clovis(&["net", "selftest", "server", &endpoint]);
    let process = Process::start(command.args(arguments), scratch);
    wait::until("the server's first line", LIMIT, || {
        process.said().contains("selftest serves at").then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", process.said()));
    (process, endpoint)
}

#[test]
fn list_names_loopback_and_says_what_there_is_of_rdma() {
    let listed = json(&finished(&["net", "list", "--json"]).succeeded());
    let tcp = listed["tcp"].as_array().unwrap();
    assert!(tcp.iter().any(|one| one["nid"] == "127.0.0.1@tcp" && one["interface"] == "lo"), "{listed}");
    let rdma = &listed["rdma"];
    // Devices, or the reason why there are none: never neither.
    let is_empty = rdma["devices"].as_array().unwrap().is_empty();
    assert_eq!(is_empty, rdma["why_none"].as_str().is_some_and(|why| !why.is_empty()), "{listed}");
    assert!(finished(&["net", "list"]).succeeded().text().contains("127.0.0.1@tcp"));
}

#[test]
fn two_processes_move_verified_bulk_and_count_it() {
    let scratch = folder("net-selftest");
    let (mut process, endpoint) = server(scratch.path(), &[]);
    for (what, bulk_bytes) in [("write", 1_u64 << 20), ("read", 3 << 19), ("ping", 0)] {
        let size = if bulk_bytes == 0 { "4K".to_owned() } else { bulk_bytes.to_string() };
        let client = finished(&[
            "net",
            "selftest",
            "client",
            &endpoint,
            "--what",
            what,
            "--bulk-size",
            &size,
            "--count",
            "40",
            "--concurrency",
            "4",
            "--verify",
            "full",
            "--json",
        ]);
        let found = json(&client.succeeded());
        assert_eq!(found["operations"], 40, "{found}");
        assert_eq!(found["bulk_bytes"], bulk_bytes);
        for kind in ["wrong_content", "transfer_failed", "timed_out", "peer_lost"] {
            assert_eq!(found["errors"][kind], 0, "{found}");
        }
        let latency = |name: &str| found["latency_us"][name].as_f64().unwrap();
        assert!(
            latency("p50") > 1.0 && latency("p50") <= latency("p99") && latency("p99") <= latency("p99.9"),
            "{found}"
        );
        for side in ["client", "server_side"] {
            assert!(found[side]["syscalls"].as_u64().unwrap() > 0, "TCP takes system calls: {found}");
            assert_eq!(found[side]["registrations"], 0, "{found}");
            // Messages are copied, bulk is received in place.
            assert!(found[side]["copied_bytes_per_operation"].as_f64().unwrap() < 1024.0, "{found}");
        }
    }
    process.ask_to_end().unwrap();
    assert!(process.wait(LIMIT).unwrap().success(), "{}", process.said());
}

#[test]
fn a_server_for_one_client_ends_with_it_and_a_lost_one_is_named() {
    let scratch = folder("net-once");
    let (mut process, endpoint) = server(scratch.path(), &["--once"]);
    let _ = finished(&["net", "selftest", "client", &endpoint, "--what", "ping", "--count", "3"]).succeeded();
    assert!(process.wait(LIMIT).unwrap().success(), "{}", process.said());
    let gone = finished(&[
        "net",
        "selftest",
        "client",
        &endpoint,
        "--what",
        "ping",
        "--count",
        "3",
        "--timeout",
        "5",
    ]);
    assert!(gone.refused().contains(&endpoint), "the message does not name the peer: {}", gone.stderr);
}

#[test]
fn a_server_that_dies_under_load_is_named_with_what_was_asked_of_it_and_for_how_long() {
    let scratch = folder("net-dies");
    let client_scratch = folder("net-dies-client");
    let (mut process, endpoint) = server(scratch.path(), &[]);
    let mut command = clovis(&["net", "selftest", "client", &endpoint, "--what", "read", "--duration", "60"]);
    let mut client = Process::start(&mut command, client_scratch.path());
    // CPU time in hundredths of a second, user and system: a server that nobody asks takes next to none.
    let busy = |id: u32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let after_name = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        after_name.skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum::<u64>()
    };
    wait::until("traffic", LIMIT, || (busy(process.id()) >= 30).then_some(()))
        .unwrap_or_else(|error| panic!("{error}\n{}", client.said()));
    process.kill();
    assert!(!client.wait(LIMIT).unwrap().success());
    let said = client.said();
    for word in [endpoint.as_str(), "is gone", "the peer dropped the connection", "the oldest is read ", " s"]
    {
        assert!(said.contains(word), "{word} is missing: {said}");
    }
}

#[test]
fn another_credential_is_refused_with_the_reason() {
    let cluster = RunningCluster::start(
        "net-credential",
        &["--security", "shared", "--device-size", "16M", "--servers", "1", "--layout", "1+0+0"],
    );
    let config = cluster.dir().join("clovis.toml");
    let scratch = folder("net-credential-server");
    let (_process, endpoint) = server(scratch.path(), &["--config", config.to_str().unwrap()]);
    let stranger = finished(&["net", "selftest", "client", &endpoint, "--what", "ping", "--count", "3"]);
    assert!(stranger.refused().contains("token differs"), "{}", stranger.stderr);
    let one_of_us = finished(&[
        "net",
        "selftest",
        "client",
        &endpoint,
        "--what",
        "ping",
        "--count",
        "3",
        "--config",
        config.to_str().unwrap(),
    ]);
    let _ = one_of_us.succeeded();
    // The daemons of the cluster answer pings to those who know it.
    let text = fs::read_to_string(&config).unwrap();
    let daemons = text.split('"').filter(|word| word.parse::<base::Endpoint>().is_ok()).count();
    let pinged = json(&cluster.run(&["net", "ping", "127.0.0.1@tcp", "--count", "2", "--json"]).succeeded());
    let answers = pinged["answers"].as_array().unwrap();
    assert_eq!(answers.len(), daemons, "{pinged}");
    assert!(answers.iter().all(|answer| answer["pings"] == 2 && answer["least_us"].as_f64().unwrap() > 1.0));
}

/// Rules are added, act, are counted and cleared; the cluster bears them, and mistakes are told before anything is sent.
#[test]
fn faults_are_borne_counted_and_cleared() {
    let cluster =
        RunningCluster::start("net-fault", &["--device-size", "16M", "--servers", "1", "--layout", "1+0+0"]);
    let all = "127.0.0.1@tcp";
    let fault = |arguments: &[&str]| {
        let arguments: Vec<&str> = ["net", "fault"].iter().chain(arguments).copied().collect();
        cluster.run(&arguments)
    };
    for (arguments, word) in [
        (&["add", all, "delay"][..], "ms"),
        (&["add", all, "drop", "--ms", "5"], "ms"),
        (&["add", all, "drop", "--peer", "nowhere"], "nowhere"),
        (&["add", all, "lose"], "lose"),
        (&["list", "10.255.255.1@tcp"], "10.255.255.1@tcp"),
    ] {
        let refused = fault(arguments);
        assert!(refused.refused().contains(word), "{arguments:?}: {}", refused.stderr);
    }
    let added = json(
        &fault(&[
            "add", all, "delay", "--kind", "message", "--one-in", "2", "--count", "6", "--ms", "5", "--json",
        ])
        .succeeded(),
    );
    let processes = added["processes"].as_array().unwrap();
    assert!(processes.len() >= 2, "control daemon and server: {added}");
    for process in processes {
        let rule = process["rules"][0]["rule"].as_str().unwrap();
        for word in ["delay", "kind=message", "one-in=2", "count=6", "ms=5"] {
            assert!(rule.contains(word), "{rule}");
        }
    }
    let _ = fault(&["add", all, "duplicate", "--kind", "message", "--count", "3"]).succeeded();
    let file = cluster.scratch().join("content");
    fs::write(&file, vec![7; 100_000]).unwrap();
    let _ = cluster.run(&["cp", file.to_str().unwrap(), "1:100"]).succeeded();
    let back = cluster.run(&["cat", "1:100"]).succeeded();
    assert_eq!(back.stdout, vec![7; 100_000]);
    let listed = json(&fault(&["list", all, "--json"]).succeeded());
    let count = |name: &str| -> u64 {
        let rules = listed["processes"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|process| process["rules"].as_array().unwrap());
        rules.map(|rule| rule[name].as_u64().unwrap()).sum()
    };
    assert!(count("fired") > 0 && count("matched") > count("fired"), "{listed}");
    assert!(fault(&["list", all]).succeeded().text().contains("kind=message"));
    let cleared = fault(&["clear", all]).succeeded();
    assert!(cleared.text().contains("no fault rules"), "{}", cleared.text());
}

#[test]
fn both_roles_in_one_process_over_each_net() {
    let address = free_endpoint();
    // Unverified content is the responder's own memory, which a push in one process hands over.
    for (endpoint, verify) in [("0@lo", "simple"), ("0@lo", "none"), (address.as_str(), "simple")] {
        let found = json(
            &finished(&[
                "net",
                "selftest",
                "alone",
                endpoint,
                "--what",
                "read",
                "--bulk-size",
                "64K",
                "--count",
                "50",
                "--verify",
                verify,
                "--json",
            ])
            .succeeded(),
        );
        assert_eq!(
            (&found["operations"], &found["errors"]["wrong_content"]),
            (&50.into(), &0.into()),
            "{endpoint}: {found}"
        );
    }
}

#[test]
fn what_cannot_be_is_refused_before_anything_moves() {
    for (arguments, word) in [
        (vec!["client", "127.0.0.1"], "ADDRESS@NET"),
        (vec!["client", "127.0.0.1@tcp", "--bulk-size", "1000"], "4K"),
        (vec!["client", "127.0.0.1@tcp", "--bulk-size", "16M", "--concurrency", "256"], "in flight"),
        (vec!["client", "127.0.0.1@tcp", "--message-size", "8"], "message"),
        (vec!["client", "127.0.0.1@tcp", "--count", "3", "--duration", "1"], "duration"),
        (vec!["server", "3@sim"], "sim"),
    ] {
        let arguments: Vec<&str> = ["net", "selftest"].into_iter().chain(arguments).collect();
        let refused = finished(&arguments);
        assert!(refused.refused().contains(word), "{arguments:?}: {}", refused.stderr);
    }
}
