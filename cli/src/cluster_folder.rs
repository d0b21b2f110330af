//! A cluster's folder, as `clovis cluster start --dir D` makes it, and who runs in it.
//!
//! ```text
//! D/clovis.toml        configuration, mode 0600; written last when the folder is made
//! D/credentials/       who may connect, and what as (credential/folder.rs)
//! D/control.dev        the control daemon's own store
//! D/devices/NAME.dev   one file per device, preallocated
//! D/log/NAME.log       what a daemon prints
//! D/addb/NAME.addb     what its requests do, kept when it is killed (docs/addb.md); clients have files there too
//! D/run/NAME.pid       process id and start time of a running daemon
//! D/bin/               a link to the one binary
//! ```
//! A pid file counts only while a process with that id and that start time exists, so that a reused id is never signalled.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::interrupt::remove_folder;
use crate::whole_file;

/// Paths inside a cluster's folder.
#[derive(Clone, Debug)]
pub struct ClusterFolder {
    root: PathBuf,
}

/// Held while a command starts or stops daemons. Daemons do not inherit it.
#[derive(Debug)]
pub struct FolderLock {
    _folder: fs::File,
}

impl ClusterFolder {
    /// The folder at `root`; absolute from here on, since daemons keep using it.
    pub fn new(root: &Path) -> Result<ClusterFolder, Failure> {
        let root = std::path::absolute(root)
            .map_err(Failure::while_doing(format!("the folder {}", root.display())))?;
        Ok(ClusterFolder { root })
    }

    /// D itself.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// D/clovis.toml
    pub fn config(&self) -> PathBuf {
        self.root.join("clovis.toml")
    }
    /// D/log/NAME.log
    pub fn log(&self, name: &str) -> PathBuf {
        self.root.join("log").join(format!("{name}.log"))
    }
    fn pid_file(&self, name: &str) -> PathBuf {
        self.root.join("run").join(format!("{name}.pid"))
    }

    /// Keeps other commands from starting or stopping daemons of this folder while the lock lives; the folder is there.
    /// Errors: another command has it.
    pub fn lock(&self) -> Result<FolderLock, Failure> {
        let doing = || format!("the folder {}", self.root.display());
        let folder = fs::File::open(&self.root).map_err(Failure::while_doing(doing()))?;
        match folder.try_lock() {
            Ok(()) => Ok(FolderLock { _folder: folder }),
            Err(fs::TryLockError::WouldBlock) => Err(Failure::new(format!(
                "another `clovis cluster` command is at work in {}: wait until it has ended",
                self.root.display()
            ))),
            Err(fs::TryLockError::Error(error)) => Err(Failure::while_doing(doing())(error)),
        }
    }

    /// Names of the daemons that have a pid file, in order; control, which the others need, last.
    pub fn noted(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root.join("run")).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".pid")?.to_owned()))
            .collect();
        names.sort_by_key(|name| (name.starts_with("control"), name.clone()));
        names
    }

    /// Makes the folder itself, with those above it; true if it was not there.
    pub fn create_root(&self) -> Result<bool, Failure> {
        if self.root.exists() {
            return Ok(false);
        }
        let made = fs::create_dir_all(&self.root);
        made.map_err(Failure::while_doing(format!("making the folder {}", self.root.display())))?;
        Ok(true)
    }

    /// Errors: the folder holds something. A cluster is made in an empty one only.
    pub fn refuse_content(&self) -> Result<(), Failure> {
        let mut entries = fs::read_dir(&self.root)
            .map_err(Failure::while_doing(format!("looking into the folder {}", self.root.display())))?;
        if entries.next().is_none() {
            return Ok(());
        }
        Err(Failure::new(format!(
            "{} is not empty and holds no clovis.toml: name a new folder, or empty this one",
            self.root.display()
        )))
    }

    /// Removes what [`ClusterFolder::create`] and the formatting made in a folder that was empty, after they failed; the
    /// folder itself too if it `is_ours`: made by this very command.
    pub fn undo_create(&self, is_ours: bool) {
        if is_ours {
            // Best effort: the failure that is reported is the one that led here.
            let _ = remove_folder(&self.root);
            return;
        }
        for folder in ["devices", "log", "run", "bin", "addb", "credentials"] {
            let _ = remove_folder(&self.root.join(folder));
        }
        for file in ["control.dev", "clovis.toml.new", "clovis.toml"] {
            let _ = fs::remove_file(self.root.join(file));
        }
    }

    /// Makes the sub-folders that running daemons need, where they are not there: a configuration may come alone.
    pub fn create_for_daemons(&self) -> Result<(), Failure> {
        for name in ["log", "run", "addb"] {
            let path = self.root.join(name);
            fs::create_dir_all(&path)
                .map_err(Failure::while_doing(format!("making the folder {}", path.display())))?;
        }
        Ok(())
    }

    /// Makes the sub-folders of an empty folder. Errors: one of them cannot be made.
    pub fn create(&self) -> Result<(), Failure> {
        let doing = |path: &Path| format!("making the folder {}", path.display());
        for folder in ["devices", "log", "run", "bin", "addb"] {
            let path = self.root.join(folder);
            fs::create_dir_all(&path).map_err(Failure::while_doing(doing(&path)))?;
        }
        let binary =
            std::env::current_exe().map_err(Failure::while_doing("finding this program's own file"))?;
        let link = self.root.join("bin/clovis");
        symlink(&binary, &link)
            .map_err(Failure::while_doing(format!("making the link {}", link.display())))?;
        Ok(())
    }

    /// Writes clovis.toml as a whole or not at all, readable by its owner only (it holds the credential).
    pub fn write_config(&self, text: &str) -> Result<(), Failure> {
        whole_file::replace(&self.config(), text.as_bytes())
    }

    /// Notes that `name` runs as `process_id`.
    pub fn note_running(&self, name: &str, process_id: u32) -> Result<(), Failure> {
        let started = start_ticks(process_id).unwrap_or(0);
        let path = self.pid_file(name);
        fs::write(&path, format!("{process_id} {started}\n"))
            .map_err(Failure::while_doing(format!("writing {}", path.display())))
    }

    /// The process id of `name`, if that very process still runs.
    pub fn running(&self, name: &str) -> Option<u32> {
        let text = fs::read_to_string(self.pid_file(name)).ok()?;
        let (process_id, started) = text.trim().split_once(' ')?;
        let process_id = process_id.parse().ok()?;
        (start_ticks(process_id) == started.parse().ok()).then_some(process_id)
    }

    /// True if the process of `name` is on its way out: its memory has gone, its files may not have.
    pub fn is_ending(&self, name: &str) -> bool {
        let Some(process_id) = self.running(name) else { return false };
        let program = fs::read_link(format!("/proc/{process_id}/exe"));
        program.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    }

    /// Forgets the pid file of `name`.
    pub fn forget(&self, name: &str) {
        // A missing file is what is wanted.
        let _ = fs::remove_file(self.pid_file(name));
    }

    /// The last line that `name` printed, for an error message.
    pub fn last_words(&self, name: &str) -> String {
        let text = fs::read_to_string(self.log(name)).unwrap_or_default();
        text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it printed nothing").to_owned()
    }
}

/// When a process started, in clock ticks since boot, from `/proc/PID/stat`; `None` if it does not run. A zombie does not, unless it is only its first
/// thread: the others still hold its files and locks. Source: proc(5), field 22 behind the command's name in parentheses.
pub fn start_ticks(process_id: u32) -> Option<u64> {
    let process = Path::new("/proc").join(process_id.to_string());
    let (runs, started) = stat(&process)?;
    let runs_on = |thread: fs::DirEntry| stat(&thread.path()).is_some_and(|(runs, _)| runs);
    (runs || fs::read_dir(process.join("task")).ok()?.flatten().any(runs_on)).then_some(started)
}

/// What `stat` in the folder of a process or thread says: whether it runs, being neither dead nor a zombie, and when it started.
fn stat(folder: &Path) -> Option<(bool, u64)> {
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let runs = !matches!(fields.next()?, "Z" | "X");
    Some((runs, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_counts_only_for_the_same_process() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = ClusterFolder::new(&folder.path().join("c")).unwrap();
        assert!(cluster.create_root().unwrap());
        cluster.create().unwrap();
        let own = std::process::id();
        assert_eq!(cluster.running("x"), None);
        cluster.note_running("x", own).unwrap();
        assert_eq!(cluster.running("x"), Some(own));
        assert!(!cluster.is_ending("x"));
        fs::write(cluster.pid_file("x"), format!("{own} 1\n")).unwrap();
        assert_eq!(cluster.running("x"), None, "another start time is another process");
        cluster.forget("x");
        assert_eq!(cluster.running("x"), None);
    }

    #[test]
    fn a_folder_is_locked_by_one_command() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = ClusterFolder::new(folder.path()).unwrap();
        let lock = cluster.lock().unwrap();
        let refusal = cluster.lock().unwrap_err().to_string();
        assert!(refusal.contains("another `clovis cluster` command"), "{refusal}");
        drop(lock);
        cluster.lock().unwrap();
    }

    #[test]
    fn what_was_made_in_vain_goes_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = ClusterFolder::new(&folder.path().join("c")).unwrap();
        assert!(cluster.create_root().unwrap(), "it was not there");
        cluster.create().unwrap();
        cluster.undo_create(true);
        assert!(!cluster.root().exists());

        cluster.create_root().unwrap();
        assert!(!cluster.create_root().unwrap(), "it was there");
        cluster.create().unwrap();
        fs::write(cluster.root().join("precious"), "x").unwrap();
        cluster.undo_create(false);
        let left: Vec<_> =
            fs::read_dir(cluster.root()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["precious"]);
    }

    #[test]
    fn a_folder_with_foreign_content_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.tex"), "precious").unwrap();
        let refusal = ClusterFolder::new(folder.path()).unwrap().refuse_content().unwrap_err().to_string();
        assert!(refusal.contains("is not empty"), "{refusal}");
        assert!(folder.path().join("thesis.tex").exists());
    }
}
