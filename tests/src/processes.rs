//! Processes of a test: started with both streams kept in files, ended with the test, and only they.
//!
//! **Invariant**: a [`Process`] that goes out of scope is dead and reaped, whatever the test did. Nothing else is ever ended:
//! a process that the binary itself starts (`clovis cluster start`) has to be stopped through the binary, see [`Cleanup`].

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use base::Nid;
use verbs_net::bind_free;

use crate::wait::{self, NotInTime};

/// What a command that ran to its end left.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error, as text.
    pub stderr: String,
}

impl Finished {
    /// Standard output as text.
    ///
    /// # Panics
    /// If it is not UTF-8.
    #[must_use]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("standard output is text")
    }

    /// Itself, if it ended well.
    ///
    /// # Panics
    /// If its status is not 0, with all it said.
    #[must_use]
    pub fn succeeded(self) -> Finished {
        assert!(
            self.status.success(),
            "failed with {}:\n{}\n{}",
            self.status,
            self.printable_stdout(),
            self.stderr
        );
        self
    }

    /// Its error text, if it ended as a refusal should: a status that is not 0 and not a crash, and one clear line.
    ///
    /// # Panics
    /// If it succeeded, was ended by a signal, panicked, or said nothing.
    #[must_use]
    pub fn refused(&self) -> &str {
        let code = self.status.code();
        assert!(
            code.is_some_and(|code| code != 0 && code != 101),
            "not refused but {}: {}",
            self.status,
            self.stderr
        );
        assert!(!self.stderr.contains("panicked at"), "a panic, not a refusal: {}", self.stderr);
        assert!(!self.stderr.trim().is_empty(), "refused without a word");
        &self.stderr
    }

    fn printable_stdout(&self) -> String {
        const SHOWN_BYTES_MAX: usize = 4096;
        let shown = &self.stdout[..self.stdout.len().min(SHOWN_BYTES_MAX)];
        String::from_utf8_lossy(shown).into_owned()
    }
}

/// Runs a command to its end, at most `limit` long. Its streams go through files in `folder`, so no pipe can fill up.
///
/// # Panics
/// If it cannot be started, or is still running at the limit (it is ended then, and what it said is shown).
#[must_use]
pub fn run(command: &mut Command, folder: &Path, limit: Duration) -> Finished {
    let mut process = Process::start(command, folder);
    let status = match process.wait(limit) {
        Ok(status) => status,
        Err(error) => {
            process.kill();
            panic!("{error}\n{}", process.said());
        }
    };
    Finished {
        status,
        stdout: std::fs::read(&process.stdout).expect("a stream's file can be read"),
        stderr: String::from_utf8_lossy(
            &std::fs::read(&process.stderr).expect("a stream's file can be read"),
        )
        .into_owned(),
    }
}

/// A child of this test. Dropping it ends it with SIGKILL and reaps it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts a command with standard input closed and both output streams in files in `folder`.
    ///
    /// # Panics
    /// If it cannot be started or the folder cannot be written.
    #[must_use]
    pub fn start(command: &mut Command, folder: &Path) -> Process {
        let (stdout, out) = stream_file(folder, "stdout");
        let (stderr, err) = stream_file(folder, "stderr");
        let name = format!("{command:?}");
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        Process { child, name, stdout, stderr }
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it at once, as a power cut of the process would (SIGKILL), and reaps it. Harmless if it is gone already.
    pub fn kill(&mut self) {
        // Both fail only if the child is reaped already, which is what they are for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end (SIGTERM); [`Process::wait`] says how it did.
    ///
    /// # Errors
    /// If the command `kill` cannot be started or says no.
    pub fn ask_to_end(&self) -> io::Result<()> {
        let status = Command::new("kill").arg("-TERM").arg(self.id().to_string()).status()?;
        if status.success() {
            Ok(())
        } else {
            Err(io::Error::other(format!("kill -TERM {}: {status}", self.id())))
        }
    }

    /// True while it runs.
    ///
    /// # Panics
    /// If the system cannot tell.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the system knows its children").is_none()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`NotInTime`] if it still runs after `limit`; it goes on then.
    ///
    /// # Panics
    /// If the system cannot tell.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus, NotInTime> {
        let child = &mut self.child;
        wait::until(&format!("the end of {}", self.name), limit, || {
            child.try_wait().expect("the system knows its children")
        })
    }

    /// All that it has written so far, both streams, for the message of a failing test.
    #[must_use]
    pub fn said(&self) -> String {
        let read =
            |path: &Path| std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        format!(
            "{}\n-- stdout\n{}\n-- stderr\n{}",
            self.name,
            read(&self.stdout).unwrap_or_else(|error| error.to_string()),
            read(&self.stderr).unwrap_or_else(|error| error.to_string())
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("{}", self.said());
        }
    }
}

/// Runs a command when it goes out of scope, for what the binary started by itself: `clovis cluster stop --dir D`.
#[derive(Debug)]
pub struct Cleanup {
    command: Command,
}

impl Cleanup {
    /// Keeps the command for the end of the scope.
    #[must_use]
    pub fn at_end(command: Command) -> Cleanup {
        Cleanup { command }
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        let output = self.command.stdin(Stdio::null()).output();
        if std::thread::panicking() {
            eprintln!("cleanup {:?}: {output:?}", self.command);
        }
    }
}

/// A TCP port on loopback that was free a moment ago. Another program may take it before the test does: a test that starts
/// a listener on it reports that as "port in use", which the binary's own message names.
///
/// # Panics
/// If loopback has no free port.
#[must_use]
pub fn free_port() -> u16 {
    free_ports(1)
}

/// The first of `count` ports in a row that were all free a moment ago.
///
/// # Panics
/// If loopback has no such ports.
#[must_use]
pub fn free_ports(count: u16) -> u16 {
    let is_free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let mut firsts = std::iter::repeat_with(|| {
        let first = bind_free(Ipv4Addr::LOCALHOST).and_then(|listener| listener.local_addr());
        first.expect("loopback has free ports").port()
    });
    let free = firsts.by_ref().take(1000).find(|first| (first + 1..first + count).all(is_free));
    free.expect("loopback has free ports in a row")
}

/// An endpoint on loopback, as text, whose port was free a moment ago ([`free_port`]).
///
/// # Panics
/// If loopback has no free port.
#[must_use]
pub fn free_endpoint() -> String {
    let found = verbs_net::free_endpoint(Nid::tcp(Ipv4Addr::LOCALHOST));
    found.expect("loopback has free ports").to_string()
}

/// True if a program of this name can be started; else says what is skipped.
#[must_use]
pub fn have(program: &str, what: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let found = command.status().is_ok_and(|status| status.success());
    if !found {
        println!("skipped: {what}, as there is no {program} on this machine");
    }
    found
}

/// A new file `NAME.N` in the folder: its path and the file. Numbers go up, so no stream overwrites an older one.
fn stream_file(folder: &Path, name: &str) -> (PathBuf, File) {
    for number in 0_u32.. {
        let path = folder.join(format!("{name}.{number}"));
        match File::create_new(&path) {
            Ok(file) => return (path, file),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => panic!("{} cannot be made: {error}", path.display()),
        }
    }
    unreachable!("2^32 streams in one folder")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let folder = crate::folder("processes");
        let process = Process::start(&mut shell("exec sleep 1000"), folder.path());
        let entry = PathBuf::from(format!("/proc/{}", process.id()));
        assert!(entry.exists());
        drop(process);
        assert!(!entry.exists(), "still there after the drop");
    }

    #[test]
    fn both_streams_and_the_status_are_kept() {
        let folder = crate::folder("processes");
        let limit = Duration::from_secs(20);
        let finished = run(&mut shell("echo out; echo err >&2; exit 3"), folder.path(), limit);
        assert_eq!(
            (finished.text(), finished.refused(), finished.status.code()),
            ("out\n", "err\n", Some(3))
        );
        assert_eq!(run(&mut shell("echo again"), folder.path(), limit).succeeded().text(), "again\n");
    }

    #[test]
    fn an_asked_process_ends_by_itself() {
        let folder = crate::folder("processes");
        let mut process = Process::start(
            &mut shell("trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done"),
            folder.path(),
        );
        let stdout = process.stdout.clone();
        wait::until("the trap", Duration::from_secs(20), || {
            std::fs::read(&stdout).ok().filter(|bytes| !bytes.is_empty())
        })
        .unwrap();
        assert!(process.is_running());
        process.ask_to_end().unwrap();
        assert_eq!(process.wait(Duration::from_secs(20)).unwrap().code(), Some(7));
    }

    #[test]
    #[should_panic(expected = "not refused")]
    fn a_success_is_no_refusal() {
        let folder = crate::folder("processes");
        let _ = run(&mut shell("exit 0"), folder.path(), Duration::from_secs(20)).refused();
    }
}
