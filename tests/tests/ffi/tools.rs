//! Compilers and checkers of this machine.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use clovis_tests::processes;

/// Longest that a compiler may take on a loaded machine.
pub const COMPILE_LIMIT: Duration = Duration::from_secs(120);

/// True if a program of this name can be started; else says what is skipped.
pub fn have(program: &str, what: &str) -> bool {
    let found = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        println!("skipped: {what}, as there is no {program} on this machine");
    }
    found
}

/// Runs a compiler; its messages are those of the panic.
pub fn compile(compiler: &str, arguments: &[&str], folder: &Path) {
    let mut command = Command::new(compiler);
    command.args(arguments);
    let _ = processes::run(&mut command, folder, COMPILE_LIMIT).succeeded();
}
