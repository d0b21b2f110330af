//! Servers that die under a C program: what fails says so in time, what is cancelled ends, nothing hangs.

use std::time::Duration;

use clovis_tests::cluster::RunningCluster;
use clovis_tests::processes::Process;
use clovis_tests::wait;

use crate::programs::{PROGRAM_LIMIT, build, command, control_endpoint};

/// Runs ffi/tests/servers.c and kills the named daemons once it has written.
fn kill_under_a_program(test_name: &str, mode: &str, victims: impl Fn(&str) -> bool) {
    let cluster = RunningCluster::start(test_name, &["--device-size", "64M"]);
    let folder = cluster.scratch();
    let flags = [
        "-std=gnu17",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-g",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ];
    let program = build(folder, "gcc", "servers.c", &flags, "clovis");
    let mut command = command(&cluster, &program);
    command
        .args(["127.0.0.1@tcp:12345:44:70", &control_endpoint(&cluster)])
        .arg(folder)
        .arg(mode)
        .env("CLOVIS_OP_TIMEOUT", "6")
        .env("ASAN_OPTIONS", "detect_leaks=1");
    let mut process = Process::start(&mut command, folder);
    let ready = folder.join("ready");
    wait::until("the program's writes", PROGRAM_LIMIT, || {
        assert!(process.is_running() || ready.exists(), "it ended: {}", process.said());
        ready.exists().then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", process.said()));
    for daemon in cluster.daemons().iter().filter(|name| victims(name)) {
        cluster.kill_hard(daemon);
    }
    std::fs::write(folder.join("gone"), "").expect("the folder can be written");
    let status = process.wait(PROGRAM_LIMIT).unwrap_or_else(|error| panic!("{error}\n{}", process.said()));
    assert!(status.success(), "{status}: {}", process.said());
    if mode == "all" {
        // Whoever did not answer is named, by unit, device and endpoint.
        let said = process.said();
        assert!(said.contains("cannot write object") && said.contains("on device 0x6b"), "{said}");
        assert!(said.contains("cannot be reached"), "{said}");
    }
}

#[test]
fn a_lost_server_is_not_noticed() {
    let first = std::cell::Cell::new(true);
    kill_under_a_program("ffi-one-server", "some", |name| name.starts_with("server") && first.replace(false));
}

#[test]
fn without_servers_operations_fail_in_time_and_cancels_end_at_once() {
    kill_under_a_program("ffi-no-server", "all", |name| name.starts_with("server"));
}

#[test]
fn a_silent_control_daemon_is_named() {
    let cluster = RunningCluster::start("ffi-silent", &["--device-size", "64M"]);
    let program = build(cluster.scratch(), "gcc", "short.c", &["-std=gnu17"], "clovis");
    let nobody = clovis_tests::processes::free_endpoint();
    let mut command = command(&cluster, &program);
    command.args(["127.0.0.1@tcp:12345:44:71", &nobody]).env("CLOVIS_OP_TIMEOUT", "2");
    let finished = clovis_tests::processes::run(&mut command, cluster.scratch(), Duration::from_secs(60));
    assert!(!finished.status.success() && finished.stderr.contains(&nobody), "{}", finished.stderr);
}
