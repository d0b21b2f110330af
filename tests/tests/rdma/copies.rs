//! No bulk byte is copied, and no call is made of the kernel by us, while a connection is busy: seen from outside, not by our own counters.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clovis_tests::processes::{self, Process};
use clovis_tests::{binary, folder, place, standin, wait};
use serde_json::Value;

use crate::{LIMIT, endpoint, is_ready};

/// The library that counts calls of memcpy and memmove (`hw-ci/copies`).
fn counter(scratch: &Path) -> PathBuf {
    let source = place::root().join("hw-ci/copies/count_copies.c");
    let library = scratch.join("count_copies.so");
    standin::compile(&[source], &library, scratch);
    library
}

/// Large calls, their bytes, bytes of small calls.
fn counted(path: &Path) -> [u64; 3] {
    let text = fs::read_to_string(path).expect("the counting library writes at the end of the process");
    let numbers: Vec<u64> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
    numbers.try_into().unwrap()
}

fn traffic<'a>(server_at: &'a str, what: &'a str, count: &'a str) -> [&'a str; 14] {
    [
        "net",
        "selftest",
        "client",
        server_at,
        "--what",
        what,
        "--bulk-size",
        "1M",
        "--count",
        count,
        "--concurrency",
        "4",
        "--json",
        "--verify=none",
    ]
}

fn server(command: &mut Command, server_at: &str, scratch: &Path) -> Process {
    let server = Process::start(command.args(["net", "selftest", "server", server_at]), scratch);
    wait::until("the server's first line", LIMIT, || {
        server.said().contains("selftest serves at").then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", server.said()));
    server
}

/// 1 GiB each way, with every call of memcpy and memmove of both processes counted from outside: none is as long as a
/// buffer of bulk, and all of them together copy a small part of what was moved, so bulk is not copied piece by piece either.
#[test]
fn a_gibibyte_is_moved_without_memcpy() {
    if !is_ready() {
        return;
    }
    for what in ["write", "read"] {
        let scratch = folder("rdma-copies");
        let library = counter(scratch.path());
        let server_at = endpoint();
        let (of_server, of_client) = (scratch.path().join("server"), scratch.path().join("client"));
        let mut command = standin::command(binary::clovis(), "");
        command.env("LD_PRELOAD", &library).env("COUNT_COPIES_INTO", &of_server);
        let mut server = server(&mut command, &server_at, scratch.path());
        let mut command = standin::command(binary::clovis(), "");
        command.env("LD_PRELOAD", &library).env("COUNT_COPIES_INTO", &of_client);
        command.args(traffic(&server_at, what, "1024"));
        let client = processes::run(&mut command, scratch.path(), LIMIT).succeeded();
        let found: Value = serde_json::from_str(client.text()).unwrap();
        assert_eq!((&found["operations"], &found["bulk_bytes"]), (&1024.into(), &(1 << 20).into()));
        server.ask_to_end().unwrap();
        assert!(server.wait(Duration::from_secs(20)).unwrap().success(), "{}", server.said());
        for (side, path) in [("client", &of_client), ("server", &of_server)] {
            let [calls, large, small] = counted(path);
            println!(
                "{what}, {side}: {calls} calls of 64 KiB or more with {large} bytes; {small} bytes in small calls"
            );
            assert!(small > 0, "the library was not in front");
            assert!(large < 1 << 20, "{what}, {side}: {large} bytes in {calls} large copies, of 1 GiB moved");
            let all = large + small;
            assert!(all < (1 << 30) / 32, "{what}, {side}: {all} bytes copied, of 1 GiB moved");
        }
        for side in ["client", "server_side"] {
            assert_eq!(found[side]["registrations"], 0, "{found}");
            assert!(found[side]["copied_bytes_per_operation"].as_f64().unwrap() < 1024.0, "{found}");
        }
    }
}

/// The thread that polls makes no system call of ours: what strace counts between two moments of a busy connection are the provider's
/// doorbells (here: sockets) and nothing that is counted as ours.
#[test]
fn a_busy_connection_makes_no_system_call_of_ours() {
    if !is_ready() {
        return;
    }
    let can_trace = Command::new("strace").args(["-f", "-c", "-o", "/dev/null", "true"]).output();
    if !can_trace.is_ok_and(|output| output.status.success()) {
        println!("skipped: no strace that may trace");
        return;
    }
    let scratch = folder("rdma-strace");
    let server_at = endpoint();
    let mut command = standin::command(binary::clovis(), "");
    let mut server = server(&mut command, &server_at, scratch.path());
    let summary = |count: &str| {
        let into = scratch.path().join(format!("calls.{count}"));
        let mut command = standin::command("strace".as_ref(), "");
        command.args([
            "-f",
            "-qq",
            "-e",
            "trace=io_uring_enter,mmap,munmap,madvise,brk,mlock,openat,ioctl,epoll_ctl",
            "-o",
        ]);
        command.arg(&into).arg(binary::clovis()).args(traffic(&server_at, "write", count));
        let _ = processes::run(&mut command, scratch.path(), LIMIT).succeeded();
        fs::read_to_string(&into).unwrap().lines().filter(|line| line.contains('(')).count()
    };
    // Opening, mapping, registering: the same for 16 requests and for 256.
    let (few, many) = (summary("16"), summary("256"));
    println!("calls that are no doorbell: {few} with 16 requests, {many} with 256");
    assert!(many < few + 16, "{few} calls for 16 requests, {many} for 256: one per request or more");
    server.ask_to_end().unwrap();
    assert!(server.wait(Duration::from_secs(20)).unwrap().success(), "{}", server.said());
}
