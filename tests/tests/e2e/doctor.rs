//! `clovis doctor`: alone, with a healthy cluster, and with one that lost a server.

use std::process::Command;

use clovis_tests::cluster::{COMMAND_LIMIT, RunningCluster};
use clovis_tests::processes::Finished;
use clovis_tests::{binary, folder, processes};
use serde_json::Value;

fn doctor(arguments: &[&str]) -> Finished {
    let folder = folder("doctor");
    let mut command = Command::new(binary::clovis());
    command.arg("doctor").args(arguments).current_dir(folder.path()).env_remove("CLOVIS_CONFIG");
    processes::run(&mut command, folder.path(), COMMAND_LIMIT)
}

/// The findings, each whole: a verdict, what was seen, why it matters, and what to do unless all is well.
fn findings(finished: &Finished) -> Vec<Value> {
    let whole: Value = serde_json::from_str(finished.text()).expect("one JSON object");
    let findings = whole["findings"].as_array().expect("a list of findings").clone();
    for one in &findings {
        let text = |key: &str| one[key].as_str().is_some_and(|text| !text.is_empty());
        assert!(text("check") && text("seen") && text("why"), "{one}");
        assert_eq!(text("do"), one["verdict"] != "ok", "{one}");
    }
    let failed = findings.iter().filter(|one| one["verdict"] == "fail").count();
    assert_eq!(whole["failed"], failed);
    assert_eq!(finished.status.code(), Some(i32::from(failed > 0)), "{}", finished.stderr);
    findings
}

fn find<'a>(findings: &'a [Value], check: &str) -> &'a Value {
    findings.iter().find(|one| one["check"] == check).unwrap_or_else(|| panic!("no {check} in {findings:#?}"))
}

#[test]
fn a_machine_is_looked_at_without_a_cluster() {
    let found = findings(&doctor(&["--json"]));
    for check in [
        "locked memory",
        "open files",
        "huge pages",
        "io_uring",
        "networks",
        "RDMA",
        "clock source",
        "time of day",
    ] {
        find(&found, check);
    }
    assert!(!found.iter().any(|one| one["check"] == "processes"), "nobody named a cluster: {found:#?}");
    let said = doctor(&[]);
    assert!(said.text().starts_with("this machine only"), "{}", said.text());
    let refused = doctor(&["/nonexistent"]);
    assert!(refused.refused().contains("/nonexistent/clovis.toml does not exist"), "{}", refused.stderr);
}

#[test]
fn a_cluster_is_judged_by_what_its_processes_say_and_a_silent_one_fails_it() {
    let cluster =
        RunningCluster::start("doctor", &["--device-size", "16M", "--servers", "2", "--layout", "2+1+1"]);
    let dir = cluster.dir();
    let dir = dir.to_str().unwrap();
    let finished = doctor(&[dir, "--json"]);
    let found = findings(&finished);
    assert_eq!(finished.status.code(), Some(0), "{}", finished.text());
    assert_eq!(find(&found, "processes")["seen"], "3 of 3 answer (control and servers)");
    let versions = find(&found, "versions")["seen"].as_str().unwrap();
    assert!(versions.starts_with("3 processes run version "), "{versions}");
    let clocks = find(&found, "clocks of the cluster");
    assert!(
        clocks["verdict"] == "ok" && clocks["seen"].as_str().unwrap().contains("of 3 processes"),
        "{clocks}"
    );
    let store = find(&found, "control's store");
    assert!(
        store["verdict"] == "ok" && store["seen"].as_str().unwrap().ends_with("as control says"),
        "{store}"
    );
    assert_eq!(find(&found, "file of control's store")["verdict"], "ok");
    find(&found, "space of the folder");
    assert!(find(&found, "addresses of the cluster")["seen"].as_str().unwrap().starts_with("3 of 3 "));

    cluster.kill_hard("server-1");
    let finished = doctor(&[dir, "--timeout", "2"]);
    assert_eq!(finished.status.code(), Some(1), "{}", finished.text());
    assert!(finished.stderr.contains("2 checks failed"), "{}", finished.stderr);
    let said = finished.text();
    assert!(said.contains("2 of 3 answer") && said.contains("fail  server-1 "), "{said}");
    assert!(
        said.contains("clovis server --config") && said.contains("--process 0x7200000000000001:0x1"),
        "{said}"
    );
    // The configuration of a command's environment is a cluster too.
    let named = cluster.run(&["doctor", "--json", "--timeout", "2"]);
    assert_eq!(find(&findings(&named), "server-1")["verdict"], "fail");
}
