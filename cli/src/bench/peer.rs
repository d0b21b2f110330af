//! Finds and runs peers: installed programs, and our own small C programs that call an installed library.
//!
//! A peer that is not installed is an answer ([`Absent`]), not a failure: the row says what to install, and has no ratio.
//! C programs are part of this binary as text (hw-ci/peers) and are built by `cc` into a temporary folder when needed.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::connection::new_epoch;
use crate::failure::Failure;

/// A peer cannot be run here; the text says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent(pub String);

/// Runs a command to its end and gives its standard output. Errors: it cannot be started, or failed (its last line is given).
pub fn output(command: &mut Command) -> Result<String, Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    let run =
        command.stdin(Stdio::null()).output().map_err(Failure::while_doing(format!("running {name}")))?;
    if run.status.success() {
        return Ok(String::from_utf8_lossy(&run.stdout).into_owned());
    }
    let words = if run.stderr.is_empty() { run.stdout } else { run.stderr };
    let words = String::from_utf8_lossy(&words).into_owned();
    let last = words.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it printed nothing");
    Err(Failure::new(format!("{name} failed ({}): {}", run.status, last.trim())))
}

/// The path of a program, looked for as a shell does.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// A temporary folder of a benchmark, removed on drop; what a killed benchmark left is removed by the next one.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

const SCRATCH_PREFIX: &str = "clovis-bench-";

impl Scratch {
    /// Makes a new one in `parent`.
    pub fn make(parent: &Path) -> Result<Scratch, Failure> {
        remove_left_over(parent);
        let name = format!("{SCRATCH_PREFIX}{}-{:016x}", std::process::id(), new_epoch()?);
        let path = parent.join(name);
        fs::create_dir(&path)
            .map_err(Failure::while_doing(format!("making the folder {}", path.display())))?;
        Ok(Scratch { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("clovis: removing {}: {error}", self.path.display());
        }
    }
}

/// Removes the folders of processes that are gone. What cannot be removed (another user's) stays.
fn remove_left_over(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process_id = name.to_str().and_then(|name| name.strip_prefix(SCRATCH_PREFIX)?.split_once('-'));
        let is_left_over = process_id.is_some_and(|(process_id, _)| {
            process_id.parse::<u32>().is_ok() && !Path::new("/proc").join(process_id).exists()
        });
        if is_left_over {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// An installation of ISA-L to build against.
#[derive(Clone, Debug)]
pub enum IsaL {
    /// The one in `CLOVIS_ISAL_PREFIX`.
    Prefix(PathBuf),
    /// Whatever the system's compiler finds.
    System,
}

/// Every installation to compare with: the named one first, then the system's.
pub fn isa_l_installations() -> Vec<IsaL> {
    let named = std::env::var_os("CLOVIS_ISAL_PREFIX").map(|prefix| IsaL::Prefix(PathBuf::from(prefix)));
    named.into_iter().chain([IsaL::System]).collect()
}

/// Our program that times ISA-L.
#[derive(Clone, Debug)]
pub struct IsaLProgram {
    path: PathBuf,
    /// Version of the library it was built with, as `2.32.1`.
    pub version: String,
}

const ISAL_ENCODE: &str = include_str!("../../../hw-ci/peers/isal_encode.c");

impl IsaLProgram {
    /// Builds it in `folder`. The inner error: no compiler or no library, with what to install.
    pub fn build(folder: &Path, with: &IsaL) -> Result<Result<IsaLProgram, Absent>, Failure> {
        let Some(compiler) = find_program("cc") else {
            return Ok(Err(Absent("apt-get install gcc libc6-dev".to_owned())));
        };
        let name = match with {
            IsaL::Prefix(_) => "isal_encode_prefix",
            IsaL::System => "isal_encode_system",
        };
        let (source, path) = (folder.join(format!("{name}.c")), folder.join(name));
        fs::write(&source, ISAL_ENCODE)
            .map_err(Failure::while_doing(format!("writing {}", source.display())))?;
        let mut command = Command::new(compiler);
        command.args(["-O2", "-o"]).arg(&path);
        if let IsaL::Prefix(prefix) = with {
            command.arg("-I").arg(prefix.join("include")).arg(&source);
            command.arg("-L").arg(prefix.join("lib")).arg(joined("-Wl,-rpath,", &prefix.join("lib")));
        } else {
            command.arg(&source);
        }
        command.arg("-lisal");
        if let Err(failure) = output(&mut command) {
            return match with {
                IsaL::Prefix(prefix) => Err(Failure::new(format!(
                    "CLOVIS_ISAL_PREFIX is {}, and nothing builds against it: {failure}",
                    prefix.display()
                ))),
                IsaL::System => Ok(Err(Absent("apt-get install libisal-dev".to_owned()))),
            };
        }
        let mut program = IsaLProgram { path, version: String::new() };
        program.version = program.run(1, 1, 4096, 1, 1)?.0;
        Ok(Ok(program))
    }

    /// Encodes `rounds` times over `groups` groups: its version, bytes of data encoded, nanoseconds.
    pub fn run(
        &self,
        data: u32,
        parity: u32,
        unit: u32,
        groups: u32,
        rounds: u64,
    ) -> Result<(String, u64, u64), Failure> {
        let mut command = Command::new(&self.path);
        command.args([data, parity, unit, groups].map(|number| number.to_string())).arg(rounds.to_string());
        let text = output(&mut command)?;
        parse_answer(&text).ok_or_else(|| Failure::new(format!("isal_encode printed {text:?}")))
    }
}

fn joined(flag: &str, path: &Path) -> std::ffi::OsString {
    let mut text = std::ffi::OsString::from(flag);
    text.push(AsRef::<OsStr>::as_ref(path));
    text
}

/// `version=2.32.1 bytes=10 ns=20`
fn parse_answer(text: &str) -> Option<(String, u64, u64)> {
    let value =
        |name: &str| text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    Some((value("version")?.to_owned(), value("bytes")?.parse().ok()?, value("ns")?.parse().ok()?))
}

/// Whether `version` is at least `major.minor`.
pub fn is_at_least(version: &str, major: u32, minor: u32) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_answer_is_parsed_or_refused() {
        assert_eq!(parse_answer("version=2.32.1 bytes=10 ns=20\n"), Some(("2.32.1".to_owned(), 10, 20)));
        assert_eq!(parse_answer("version=2.32.1 bytes=ten ns=20"), None);
        assert_eq!(parse_answer("bytes=1"), None);
    }

    #[test]
    fn versions_compare_by_number() {
        assert!(is_at_least("2.32.1", 2, 32) && is_at_least("3.0", 2, 32));
        assert!(!is_at_least("2.4.0", 2, 32) && !is_at_least("", 2, 32));
    }

    #[test]
    fn what_a_killed_benchmark_left_goes_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        // No process has this id: the kernel's largest is 2^22.
        let dead = parent.path().join(format!("{SCRATCH_PREFIX}{}-00000001", u32::MAX));
        let alive = parent.path().join(format!("{SCRATCH_PREFIX}{}-00000001", std::process::id()));
        let foreign = parent.path().join(format!("{SCRATCH_PREFIX}of-somebody"));
        for folder in [&dead, &alive, &foreign] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(dead.join("device"), b"bytes").unwrap();
        let scratch = Scratch::make(parent.path()).unwrap();
        assert!(!dead.exists() && alive.exists() && foreign.exists() && scratch.path().exists());
        let own = scratch.path().to_owned();
        drop(scratch);
        assert!(!own.exists());
    }

    #[test]
    fn a_failing_command_says_its_last_line() {
        let failure =
            output(Command::new("sh").args(["-c", "echo first; echo last >&2; exit 3"])).unwrap_err();
        assert!(failure.to_string().ends_with(": last"), "{failure}");
        let quiet = output(Command::new("sh").args(["-c", "echo only; exit 1"])).unwrap_err();
        assert!(quiet.to_string().ends_with(": only"), "{quiet}");
        assert!(output(&mut Command::new("/no/such/program")).is_err());
    }

    #[test]
    fn scratch_folders_go_away() {
        let parent = tempfile::tempdir().unwrap();
        let scratch = Scratch::make(parent.path()).unwrap();
        fs::write(scratch.path().join("file"), "x").unwrap();
        drop(scratch);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
