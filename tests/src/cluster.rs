//! A cluster of real processes in a temporary folder, started and stopped through the binary as a user would.
//!
//! Dropping it runs `clovis cluster stop`, then removes the folder. A test that kills a daemon on purpose does it by the
//! process id in the cluster's folder (`run/NAME.pid`, first number), with [`RunningCluster::kill_hard`].

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::binary;
use crate::processes::{self, Cleanup, Finished, Process};

/// Longest that one command of a test may take: generous, since two cores may be shared with a build.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// A started cluster. Fields are dropped in this order: stop the daemons, then remove what they wrote.
#[derive(Debug)]
pub struct RunningCluster {
    _stop: Cleanup,
    folder: tempfile::TempDir,
}

impl RunningCluster {
    /// Starts a cluster with these further arguments of `clovis cluster start`.
    ///
    /// # Panics
    /// If it does not start, with what it said and the daemons' logs.
    #[must_use]
    pub fn start(test_name: &str, arguments: &[&str]) -> RunningCluster {
        let cluster = RunningCluster::at_rest(test_name);
        cluster.start_again(arguments);
        cluster
    }

    /// Starts a cluster that is there already: `fill` puts it into its folder, which does not exist yet.
    ///
    /// # Panics
    /// As [`RunningCluster::start`].
    #[must_use]
    pub fn of(test_name: &str, fill: impl FnOnce(&Path)) -> RunningCluster {
        let cluster = RunningCluster::at_rest(test_name);
        fill(&cluster.dir());
        cluster.start_again(&[]);
        cluster
    }

    /// A folder for a cluster that is stopped at the end, and nothing in it yet.
    #[must_use]
    pub fn at_rest(test_name: &str) -> RunningCluster {
        let folder = crate::folder(test_name);
        let mut stop = Command::new(binary::clovis());
        stop.args(["cluster", "stop", "--dir"]).arg(folder.path().join("cluster"));
        // Made before the start, so that a start that fails half-way is cleaned up too.
        RunningCluster { _stop: Cleanup::at_end(stop), folder }
    }

    /// Runs `clovis cluster start` on the same folder: daemons that are down come up, the others stay.
    ///
    /// # Panics
    /// As [`RunningCluster::start`].
    pub fn start_again(&self, arguments: &[&str]) {
        self.start_with(binary::clovis(), arguments);
    }

    /// As [`RunningCluster::start_again`], with the daemons of another binary.
    ///
    /// # Panics
    /// As [`RunningCluster::start`].
    pub fn start_with(&self, binary: &Path, arguments: &[&str]) {
        let mut command = Command::new(binary);
        command
            .args(["cluster", "start", "--dir"])
            .arg(self.dir())
            .args(arguments)
            .env_remove("CLOVIS_CONFIG");
        let finished = processes::run(&mut command, self.folder.path(), COMMAND_LIMIT);
        assert!(finished.status.success(), "no cluster: {}\n{}", finished.stderr, self.logs());
    }

    /// The cluster's folder (`--dir`).
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.folder.path().join("cluster")
    }

    /// A folder for the test's own files, beside the cluster's.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// A command of the binary with `CLOVIS_CONFIG` set to this cluster.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_of(binary::clovis(), arguments)
    }

    /// As [`RunningCluster::command`], of another binary.
    #[must_use]
    pub fn command_of(&self, binary: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary);
        command.args(arguments).env("CLOVIS_CONFIG", self.dir().join("clovis.toml"));
        command
    }

    /// Runs a command of the binary to its end.
    ///
    /// # Panics
    /// If it takes longer than [`COMMAND_LIMIT`].
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> Finished {
        self.run_of(binary::clovis(), arguments)
    }

    /// As [`RunningCluster::run`], of another binary.
    ///
    /// # Panics
    /// As [`RunningCluster::run`].
    #[must_use]
    pub fn run_of(&self, binary: &Path, arguments: &[&str]) -> Finished {
        processes::run(&mut self.command_of(binary, arguments), self.scratch(), COMMAND_LIMIT)
    }

    /// Starts a command of the binary that goes on; it has said `words` when this returns.
    ///
    /// # Panics
    /// If it ends before, or does not say them within `limit`.
    #[must_use]
    pub fn start_saying(&self, arguments: &[&str], words: &str, limit: Duration) -> Process {
        self.start_saying_of(binary::clovis(), arguments, words, limit)
    }

    /// As [`RunningCluster::start_saying`], of another binary.
    ///
    /// # Panics
    /// As [`RunningCluster::start_saying`].
    #[must_use]
    pub fn start_saying_of(
        &self,
        binary: &Path,
        arguments: &[&str],
        words: &str,
        limit: Duration,
    ) -> Process {
        let mut process = Process::start(&mut self.command_of(binary, arguments), self.scratch());
        let said = crate::wait::until(words, limit, || {
            assert!(process.is_running(), "{}", process.said());
            process.said().contains(words).then_some(())
        });
        said.unwrap_or_else(|error| panic!("{error}\n{}", process.said()));
        process
    }

    /// Ends one daemon with SIGKILL and waits until it is gone: `name` as in `run/NAME.pid`.
    ///
    /// # Panics
    /// If there is no such daemon, or it does not go.
    pub fn kill_hard(&self, name: &str) {
        self.signal_to_end(name, "-KILL");
    }

    /// Asks one daemon to end (SIGTERM) and waits until it is gone: `name` as in `run/NAME.pid`.
    ///
    /// # Panics
    /// If there is no such daemon, or it does not go.
    pub fn end(&self, name: &str) {
        self.signal_to_end(name, "-TERM");
    }

    /// Stops one daemon where it is (SIGSTOP) for `length`, then lets it go on.
    ///
    /// # Panics
    /// If there is no such daemon.
    #[allow(clippy::disallowed_methods, reason = "the length of the pause is what happens to the daemon")]
    pub fn pause(&self, name: &str, length: Duration) {
        self.signal(name, "-STOP");
        std::thread::sleep(length);
        self.signal(name, "-CONT");
    }

    fn signal_to_end(&self, name: &str, signal: &str) {
        let id = self.signal(name, signal);
        crate::wait::until(&format!("the end of {name}"), COMMAND_LIMIT, || is_gone(id).then_some(()))
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// The process id of one daemon.
    ///
    /// # Panics
    /// If there is no such daemon.
    #[must_use]
    pub fn process_id(&self, name: &str) -> u32 {
        let file = self.dir().join("run").join(format!("{name}.pid"));
        let text =
            std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        text.split_whitespace()
            .next()
            .and_then(|word| word.parse().ok())
            .unwrap_or_else(|| panic!("{} begins with no process id: {text:?}", file.display()))
    }

    fn signal(&self, name: &str, signal: &str) -> u32 {
        let id = self.process_id(name);
        let status =
            Command::new("kill").args([signal, &id.to_string()]).status().expect("kill can be started");
        assert!(status.success(), "kill {signal} {id}: {status}");
        id
    }

    /// Names of the daemons that have a pid file, in order.
    ///
    /// # Panics
    /// If the cluster's folder cannot be read.
    #[must_use]
    pub fn daemons(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir().join("run")).expect("the folder of pid files can be read");
        let mut names: Vec<String> = entries
            .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix(".pid")?.to_owned()))
            .collect();
        names.sort();
        names
    }

    /// Everything that the daemons logged, for the message of a failing test.
    #[must_use]
    pub fn logs(&self) -> String {
        let read = |path: &Path| -> io::Result<String> {
            let mut text = String::new();
            for entry in std::fs::read_dir(path)? {
                let path = entry?.path();
                text.push_str(&format!("-- {}\n{}\n", path.display(), std::fs::read_to_string(&path)?));
            }
            Ok(text)
        };
        read(&self.dir().join("log")).unwrap_or_else(|error| format!("no logs: {error}"))
    }
}

/// True if no process of this id runs; a dead one that its parent has not reaped yet counts as gone.
/// True once every thread of it has ended: its first may be a zombie while others still hold its files and locks.
fn is_gone(id: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{id}/task")) else { return true };
    threads.flatten().all(|thread| match std::fs::read_to_string(thread.path().join("stat")) {
        // "ID (NAME) STATE ...": the name may hold anything, so the state stands behind the last parenthesis.
        Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X'])),
        Err(_) => true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_process_is_not_gone() {
        assert!(!is_gone(std::process::id()));
        let mut child = Command::new("true").spawn().unwrap();
        let id = child.id();
        crate::wait::until("a dead child", COMMAND_LIMIT, || is_gone(id).then_some(())).unwrap();
        child.wait().unwrap();
        assert!(is_gone(id));
    }
}
