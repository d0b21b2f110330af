//! RDMA on a machine without RDMA: the verbs edge, the verbs backend and the commands over the stand-in library of `hw-ci/standin`.
//!
//! Each test runs programs of ours in processes of their own with the stand-in in front, told what to lack and where to fail. It shows the
//! logic of the backend; that real providers and kernels behave as the stand-in does is what the virtual machines show (hw-ci).
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod conformance;
mod copies;
mod faults;
mod limits;
mod tampered;
mod tools;

use std::path::Path;
use std::time::Duration;

use clovis_tests::processes::{self, Finished};
use clovis_tests::{folder, standin};

/// One command at most.
const LIMIT: Duration = Duration::from_secs(60);

/// True where RDMA was built in; else says why not.
fn is_ready() -> bool {
    let why_not = standin::why_not();
    if let Some(reason) = why_not {
        println!("skipped: {reason}");
    }
    why_not.is_none()
}

/// Runs a program of ours with the stand-in in front.
fn run(program: &Path, words: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Finished {
    let scratch = folder("rdma");
    let mut command = standin::command(program, words);
    command.args(arguments).envs(environment.iter().copied());
    processes::run(&mut command, scratch.path(), LIMIT)
}

/// Runs `clovis`.
fn clovis(words: &str, arguments: &[&str]) -> Finished {
    run(clovis_tests::binary::clovis(), words, arguments, &[])
}

/// Runs `clovis` and reads the JSON object that it prints.
fn clovis_json(words: &str, arguments: &[&str]) -> serde_json::Value {
    let finished = clovis(words, arguments).succeeded();
    serde_json::from_str(finished.text()).unwrap()
}

/// An endpoint over RDMA on a port of this machine that is free. Ports that clovis can name begin at 4096.
fn endpoint() -> String {
    let port = std::iter::repeat_with(processes::free_port).find(|port| *port >= 4096).unwrap();
    let offset = port - 4096;
    format!("127.0.0.1@o2ib:12345:{}:{}", 32 + offset / 4096, offset % 4096)
}
