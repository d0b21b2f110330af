//! Bad input to a cluster: each gets one clear line and a status that is not 0, and nothing is lost.

use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;

use clovis_tests::cluster::{COMMAND_LIMIT, RunningCluster};
use clovis_tests::{binary, folder, processes};

fn clovis(arguments: &[&str]) -> processes::Finished {
    let folder = folder("refusals");
    let mut command = Command::new(binary::clovis());
    command.args(arguments).env_remove("CLOVIS_CONFIG");
    processes::run(&mut command, folder.path(), COMMAND_LIMIT)
}

#[test]
fn files_and_objects_that_are_not_there() {
    let cluster = RunningCluster::start("refusals", &["--device-size", "64M"]);
    assert!(cluster.run(&["cp", "/nonexistent/file", "1:1"]).refused().contains("/nonexistent/file"));
    for word in ["cat", "stat", "rm"] {
        assert!(cluster.run(&[word, "5:5"]).refused().contains('5'), "{word} does not name the object");
    }
    let _ = cluster.run(&["rm", "--force", "5:5"]).succeeded();
    assert_eq!(cluster.run(&["ls", "-1"]).succeeded().text(), "");

    let file = cluster.scratch().join("file");
    std::fs::write(&file, b"kept").unwrap();
    let file = file.to_str().unwrap();
    let _ = cluster.run(&["cp", "--quiet", file, "1:1"]).succeeded();
    assert!(cluster.run(&["cp", "--quiet", "--no-replace", file, "1:1"]).refused().contains('1'));
    let _ = cluster.run(&["cp", "--quiet", "--unit", "5000", file, "1:1"]).refused();
    assert_eq!(cluster.run(&["cat", "1:1"]).succeeded().text(), "kept");
}

#[test]
fn a_configuration_that_is_missing_or_none() {
    let folder = folder("refusals");
    assert!(
        clovis(&["ls", "--config", "/nonexistent/clovis.toml"])
            .refused()
            .contains("/nonexistent/clovis.toml")
    );
    let file = folder.path().join("clovis.toml");
    std::fs::write(&file, "[cluster]\nname = 5\n").unwrap();
    assert!(clovis(&["ls", "--config", file.to_str().unwrap()]).refused().contains("clovis.toml"));
    let _ = clovis(&["ls"]).refused();
}

#[test]
fn a_port_that_is_taken() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let folder = folder("refusals");
    let dir = folder.path().join("cluster");
    let dir = dir.to_str().unwrap();
    let finished = clovis(&["cluster", "start", "--dir", dir, "--device-size", "64M", "--first-port", &port]);
    // Whatever did start before the refusal is stopped: a second stop has nothing to do, and says so or not.
    let _ = clovis(&["cluster", "stop", "--dir", dir]);
    assert!(finished.refused().contains(&port), "the message does not name the port: {}", finished.stderr);
}
