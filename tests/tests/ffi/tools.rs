//! Compilers and checkers of this machine.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use clovis_tests::processes;

/// Longest that a compiler may take on a loaded machine.
pub const COMPILE_LIMIT: Duration = Duration::from_secs(120);

pub use clovis_tests::processes::have;

/// Runs a compiler; its messages are those of the panic.
pub fn compile(compiler: &str, arguments: &[&str], folder: &Path) {
    let mut command = Command::new(compiler);
    command.args(arguments);
    let _ = processes::run(&mut command, folder, COMPILE_LIMIT).succeeded();
}
