//! The command line itself: help, and refusals of what nobody could mean.

use std::process::Command;
use std::time::Duration;

use clovis_tests::{binary, folder, processes};

const LIMIT: Duration = Duration::from_secs(30);

fn clovis(arguments: &[&str]) -> processes::Finished {
    let folder = folder("command-line");
    let mut command = Command::new(binary::clovis());
    command.args(arguments).env_remove("CLOVIS_CONFIG");
    processes::run(&mut command, folder.path(), LIMIT)
}

#[test]
fn help_names_every_word() {
    let help = clovis(&["--help"]).succeeded();
    for word in [
        "quickstart",
        "cluster",
        "control",
        "server",
        "cp",
        "cat",
        "stat",
        "rm",
        "ls",
        "net",
        "bench",
        "doctor",
        "completions",
        "man",
    ] {
        assert!(help.text().contains(word), "--help does not name {word}:\n{}", help.text());
    }
}

#[test]
fn unknown_words_and_flags_are_refused() {
    assert!(clovis(&["frobnicate"]).refused().contains("frobnicate"));
    assert!(clovis(&["quickstart", "--frobnicate"]).refused().contains("--frobnicate"));
}

#[test]
fn an_id_that_is_no_number_is_refused_before_anything_else() {
    for id in ["twelve:34", "12", "12:34:56", "0x100000000000000:1"] {
        let finished = clovis(&["stat", id]);
        assert!(finished.refused().contains(id), "the message does not name {id}: {}", finished.stderr);
    }
}
