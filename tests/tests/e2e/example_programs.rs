//! `c0cp` and `c0cat` with the flags of the well-known example, against a cluster of processes.

use std::process::Command;

use clovis_tests::cluster::{COMMAND_LIMIT, RunningCluster};
use clovis_tests::processes::{self, Finished};

const FILE_BYTES: usize = 4096 * 128;

/// The control daemon's endpoint, as an operator finds it in the cluster's file.
fn control_endpoint(cluster: &RunningCluster) -> String {
    let text =
        std::fs::read_to_string(cluster.dir().join("clovis.toml")).expect("a started cluster has its file");
    let control = text.split_once("[control]").expect("the file has a control daemon").1;
    let line = control
        .lines()
        .find(|line| line.starts_with("endpoint"))
        .expect("the control daemon has an endpoint");
    line.split('"').nth(1).expect("an endpoint is quoted").to_owned()
}

/// Runs one of the programs under its own name, with the example's flags; `replace` puts another value behind a flag.
fn program(cluster: &RunningCluster, name: &str, replace: &[(&str, &str)], rest: &[&str]) -> Finished {
    let control = control_endpoint(cluster);
    let mut flags = [
        ("-l", "127.0.0.1@tcp:12345:44:301"),
        ("-H", control.as_str()),
        ("-p", "0x7000000000000001:0"),
        ("-P", "0x7200000000000000:0"),
        ("-o", "12:34"),
        ("-s", "4096"),
        ("-c", "128"),
        ("-L", "1"),
    ];
    for (flag, value) in &mut flags {
        if let Some((_, other)) = replace.iter().find(|(name, _)| name == flag) {
            *value = other;
        }
    }
    let mut command = Command::new(cluster.dir().join("bin").join(name));
    command.env("CLOVIS_CONFIG", cluster.dir().join("clovis.toml"));
    for (flag, value) in flags {
        command.args([flag, value]);
    }
    command.args(rest);
    processes::run(&mut command, cluster.scratch(), COMMAND_LIMIT)
}

#[test]
fn the_example_copies_in_and_out() {
    let cluster = RunningCluster::start("example", &["--device-size", "64M"]);
    let mut content = vec![0; FILE_BYTES];
    fastrand::Rng::with_seed(6).fill(&mut content);
    let source = cluster.scratch().join("abcd-512K");
    std::fs::write(&source, &content).unwrap();
    let source = source.to_str().unwrap();

    let _ = program(&cluster, "c0cp", &[], &[source]).succeeded();
    assert!(program(&cluster, "c0cat", &[], &[]).succeeded().stdout == content, "other bytes came back");
    assert!(cluster.run(&["cat", "12:34"]).succeeded().stdout == content, "clovis cat sees other bytes");

    // What the example's user gets wrong: one clear line each, and the object stays as it was.
    let refused =
        |replace: &[(&str, &str)]| program(&cluster, "c0cp", replace, &[source]).refused().to_owned();
    assert!(refused(&[("-l", "127.0.0.1@o2ib:12345:44:301")]).contains("o2ib"));
    assert!(refused(&[("-l", "nowhere")]).contains("nowhere"));
    assert!(refused(&[("-s", "1000")]).contains("1000"));
    assert!(refused(&[("-o", "12")]).contains("12"));
    let _ = program(&cluster, "c0cat", &[("-o", "9:9")], &[]).refused();
    assert!(
        program(&cluster, "c0cat", &[], &[]).succeeded().stdout == content,
        "a refusal changed the object"
    );
}
