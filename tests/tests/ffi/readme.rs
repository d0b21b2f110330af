//! The examples of README.md, compiled and run as they stand there.

use std::path::Path;

use clovis_tests::cluster::RunningCluster;
use clovis_tests::place::{Build, root};
use clovis_tests::processes;

use crate::installed::prefix;
use crate::programs::{PROGRAM_LIMIT, build, command, control_endpoint};
use crate::tools::have;

/// The first block of README.md in a language that holds `word`.
fn block(language: &str, word: &str) -> String {
    let text = std::fs::read_to_string(root().join("README.md")).expect("README.md is there");
    let fence = format!("```{language}\n");
    text.split(&fence)
        .skip(1)
        .filter_map(|rest| rest.split_once("\n```"))
        .map(|(block, _)| block.to_owned())
        .find(|block| block.contains(word))
        .unwrap_or_else(|| panic!("README.md has no {language} example with {word}"))
}

/// Each line of a README's example stands in the whole program, in order.
fn assert_is_in(example: &str, program: &str, path: &str) {
    let mut rest = program;
    for line in example.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let Some((_, behind)) = rest.split_once(line) else {
            panic!("README.md has a line that {path} has not, or not there: {line}");
        };
        rest = behind;
    }
}

#[test]
fn the_c_example_runs() {
    let text = std::fs::read_to_string(root().join("ffi/examples/hello.c")).unwrap();
    assert_is_in(&block("c", "m0_clovis_init"), &text, "ffi/examples/hello.c");
    let cluster = RunningCluster::start("ffi-readme", &["--device-size", "64M"]);
    let flags = ["-std=c99", "-Wall", "-Wextra", "-Werror"];
    let program = build(cluster.scratch(), "gcc", "ffi/examples/hello.c", &flags, "clovis");
    let mut command = command(&cluster, &program);
    command.args(["127.0.0.1@tcp:12345:44:80", &control_endpoint(&cluster)]);
    let said = processes::run(&mut command, cluster.scratch(), PROGRAM_LIMIT).succeeded();
    assert_eq!(said.text(), "hello\n");
}

/// The commands of README.md as a new user types them, after `./dev install` and with the cluster started.
#[test]
fn the_commands_of_the_readme_run_as_printed() {
    if !have("pkg-config", "the README's commands") {
        return;
    }
    let cluster = RunningCluster::start("ffi-commands", &["--device-size", "64M"]);
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let hello = readme
        .split('`')
        .find(|code| code.starts_with("cc ffi/examples/hello.c"))
        .expect("how hello.c is built");
    let copies = block("sh", "c0cp $FLAGS");
    assert!(copies.contains("/tmp/demo/clovis.toml"), "the cluster's folder is another one: {copies}");
    let configuration = cluster.dir().join("clovis.toml").display().to_string();
    let script = format!("set -eu\n{}\n{hello}\n", copies.replace("/tmp/demo/clovis.toml", &configuration));
    std::os::unix::fs::symlink(root().join("ffi"), cluster.scratch().join("ffi")).unwrap();
    let path = std::env::var("PATH").expect("a user has a PATH");
    let mut command = command(&cluster, Path::new("bash"));
    command
        .args(["-c", &script])
        .current_dir(cluster.scratch())
        .env("PATH", format!("{}:{path}", prefix().join("bin").display()))
        .env("PKG_CONFIG_PATH", prefix().join("lib/pkgconfig"));
    let said = processes::run(&mut command, cluster.scratch(), PROGRAM_LIMIT).succeeded();
    assert_eq!(said.text(), "same\nhello\n");
}

#[test]
fn the_rust_example_runs() {
    let example = block("rust", "Client::connect");
    let text = std::fs::read_to_string(root().join("tests/examples/hello.rs")).unwrap();
    assert_is_in(&example, &text, "tests/examples/hello.rs");
    let cluster = RunningCluster::start("rust-readme", &["--device-size", "64M"]);
    // Cargo builds the examples of a package with its tests.
    let folder = Build::of_this_test().profile_folder;
    let mut command = command(&cluster, &folder.join("examples/hello"));
    let said = processes::run(&mut command, cluster.scratch(), PROGRAM_LIMIT).succeeded();
    assert_eq!(said.text(), "hello\n");
}
