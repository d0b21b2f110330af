//! The examples of README.md, compiled and run as they stand there.

use clovis_tests::cluster::RunningCluster;
use clovis_tests::processes;

use crate::installed::{include_flag, library_flags, root};
use crate::programs::{PROGRAM_LIMIT, command, control_endpoint};
use crate::tools::compile;

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

#[test]
fn the_c_example_runs() {
    let cluster = RunningCluster::start("ffi-readme", &["--device-size", "64M"]);
    let source = cluster.scratch().join("example.c");
    std::fs::write(&source, block("c", "m0_clovis_init")).unwrap();
    let program = cluster.scratch().join("example");
    let [search, run_path] = library_flags();
    let (source, out, include) =
        (source.display().to_string(), program.display().to_string(), include_flag());
    compile(
        "gcc",
        &["-Wall", "-Wextra", "-Werror", &include, &source, "-o", &out, &search, &run_path, "-lclovis"],
        cluster.scratch(),
    );
    let mut command = command(&cluster, &program);
    command.args(["127.0.0.1@tcp:12345:44:80", &control_endpoint(&cluster)]);
    let said = processes::run(&mut command, cluster.scratch(), PROGRAM_LIMIT).succeeded();
    assert_eq!(said.text(), "hello\n");
}

#[test]
fn the_rust_example_runs() {
    let example = block("rust", "Client::connect");
    let text = std::fs::read_to_string(root().join("tests/examples/hello.rs")).unwrap();
    for line in example.lines().filter(|line| !line.trim().is_empty()) {
        assert!(
            text.contains(line.trim()),
            "README.md has a line that tests/examples/hello.rs has not: {line}"
        );
    }
    let cluster = RunningCluster::start("rust-readme", &["--device-size", "64M"]);
    // Cargo builds the examples of a package with its tests.
    let own = std::env::current_exe().expect("a running program has a path");
    let folder = own.ancestors().nth(2).expect("a test runs from TARGET/PROFILE/deps");
    let mut command = command(&cluster, &folder.join("examples/hello"));
    let said = processes::run(&mut command, cluster.scratch(), PROGRAM_LIMIT).succeeded();
    assert_eq!(said.text(), "hello\n");
}
