//! What `./dev install` makes of the binary beside it: completions that shells take, man pages that man(1) reads, units that systemd
//! takes. Each tool that is absent is skipped by name; the files themselves are made and looked at everywhere.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::path::Path;
use std::process::Command;

use clovis_tests::cluster::COMMAND_LIMIT;
use clovis_tests::place::root;
use clovis_tests::processes::Finished;
use clovis_tests::{binary, folder, processes};

/// Runs a tool; `None`, and a line that says so, if it is not installed.
fn tool(name: &str, arguments: &[&str], folder: &Path) -> Option<Finished> {
    let is_there = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|path| path.join(name).is_file());
    if !is_there {
        println!("skipped: {name} is not installed");
        return None;
    }
    let mut command = Command::new(name);
    command.args(arguments).current_dir(folder);
    Some(processes::run(&mut command, folder, COMMAND_LIMIT))
}

fn clovis(arguments: &[&str], folder: &Path) -> Finished {
    let mut command = Command::new(binary::clovis());
    command.args(arguments).env_remove("CLOVIS_CONFIG");
    processes::run(&mut command, folder, COMMAND_LIMIT)
}

#[test]
fn shells_take_their_completions() {
    let folder = folder("completions");
    for shell in ["bash", "zsh", "fish"] {
        let script = clovis(&["completions", shell], folder.path()).succeeded();
        fs::write(folder.path().join(shell), &script.stdout).unwrap();
        if let Some(taken) = tool(shell, &["-n", shell], folder.path()) {
            let taken = taken.succeeded();
            assert!(taken.stderr.is_empty(), "{shell}: {}", taken.stderr);
        }
    }
    // What a user gets who presses the key behind `clovis device det`.
    let asked = "source ./bash; COMP_WORDS=(clovis device det); COMP_CWORD=2; _clovis clovis det device; echo \"${COMPREPLY[@]}\"";
    if let Some(answered) = tool("bash", &["-c", asked], folder.path()) {
        assert_eq!(answered.succeeded().text().trim(), "detach");
    }
    assert!(clovis(&["completions", "tcsh"], folder.path()).refused().contains("tcsh"));
}

#[test]
fn man_pages_are_there_for_every_word() {
    let folder = folder("man");
    let pages = folder.path().join("share/man/man1");
    let _ = clovis(&["man", pages.to_str().unwrap()], folder.path()).succeeded();
    for page in ["clovis.1", "clovis-doctor.1", "clovis-device-attach.1", "clovis-cluster-start.1"] {
        assert!(fs::read_to_string(pages.join(page)).unwrap().contains(".SH"), "{page}");
    }
    if let Some(shown) =
        tool("man", &["--pager=cat", "-l", pages.join("clovis-doctor.1").to_str().unwrap()], folder.path())
    {
        assert!(shown.succeeded().text().contains("doctor"));
    }
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    assert!(clovis(&["man", file.to_str().unwrap()], folder.path()).refused().contains("writing man pages"));
}

#[test]
fn systemd_takes_the_units() {
    let folder = folder("units");
    let prefix = folder.path().join("prefix");
    fs::create_dir_all(prefix.join("bin")).unwrap();
    std::os::unix::fs::symlink(binary::clovis(), prefix.join("bin/clovis")).unwrap();
    for name in ["control", "server"] {
        let template =
            fs::read_to_string(root().join(format!("cli/systemd/clovis-{name}@.service.in"))).unwrap();
        let unit = template.replace("@PREFIX@", prefix.to_str().unwrap());
        assert!(!unit.contains("@PREFIX@"), "a place that nobody filled: {unit}");
        fs::write(folder.path().join(format!("clovis-{name}@demo.service")), unit).unwrap();
        let file = format!("./clovis-{name}@demo.service");
        if let Some(verified) =
            tool("systemd-analyze", &["verify", "--man=no", "--recursive-errors=no", &file], folder.path())
        {
            let verified = verified.succeeded();
            assert!(verified.stderr.is_empty(), "{name}: {}", verified.stderr);
        }
    }
    // The verification sees what is wrong, or it would prove nothing.
    let broken = "[Service]\nExecStart=/nonexistent/clovis control\n";
    fs::write(folder.path().join("broken@demo.service"), broken).unwrap();
    let arguments = ["verify", "--man=no", "--recursive-errors=no", "./broken@demo.service"];
    if let Some(verified) = tool("systemd-analyze", &arguments, folder.path()) {
        assert!(verified.stderr.contains("/nonexistent/clovis"), "{}", verified.stderr);
    }
}
