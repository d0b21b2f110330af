//! The first command of the README, as a newcomer without rights runs it.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use clovis_tests::{binary, folder, processes};

const LIMIT: Duration = Duration::from_secs(90);

/// A user and group that own nothing on any system.
const NOBODY: u32 = 65534;

fn runs_as_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells who we are");
    status.lines().any(|line| line.split_whitespace().take(3).eq(["Uid:", "0", "0"]))
}

fn report(finished: &processes::Finished) -> serde_json::Value {
    serde_json::from_slice(&finished.stdout)
        .unwrap_or_else(|error| panic!("{error} in {:?}", finished.text()))
}

#[test]
fn it_works_for_a_user_without_rights_and_with_the_usual_memlock() {
    let folder = folder("quickstart");
    // The build's folder may be closed to others, so the user gets a copy in one that is open.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let own = folder.path().join("clovis");
    std::fs::copy(binary::clovis(), &own).unwrap();

    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -l 8192 2>/dev/null; exec \"$0\" quickstart --size 12M --json"]).arg(&own);
    command.current_dir("/").env_remove("CLOVIS_CONFIG").env("HOME", "/nonexistent");
    if runs_as_root() {
        command.gid(NOBODY).uid(NOBODY);
    }
    let finished = processes::run(&mut command, folder.path(), LIMIT).succeeded();
    assert_eq!(report(&finished)["ok"], serde_json::Value::Bool(true), "{}", finished.text());
}

#[test]
fn a_file_of_ones_own_and_another_layout() {
    let folder = folder("quickstart");
    let file = folder.path().join("file");
    let mut content = vec![0; 1_000_003];
    fastrand::Rng::with_seed(5).fill(&mut content);
    std::fs::write(&file, content).unwrap();
    let devices = folder.path().join("devices");
    std::fs::create_dir(&devices).unwrap();
    let mut command = Command::new(binary::clovis());
    command
        .args(["quickstart", "--layout", "2+1+1", "--devices", "5", "--json", "--dir"])
        .arg(&devices)
        .arg(&file);
    let finished = processes::run(&mut command, folder.path(), LIMIT).succeeded();
    assert_eq!(report(&finished)["ok"], serde_json::Value::Bool(true), "{}", finished.text());
}

fn refused(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(binary::clovis());
    command.arg("quickstart").args(arguments);
    processes::run(&mut command, folder, LIMIT).refused().to_owned()
}

#[test]
fn what_cannot_be_is_refused() {
    let folder = folder("quickstart");
    assert!(refused(folder.path(), &["/nonexistent/file"]).contains("/nonexistent/file"));
    // More units than devices, a layout that is none, no data unit.
    let _ = refused(folder.path(), &["--devices", "4", "--layout", "4+2+1"]);
    assert!(refused(folder.path(), &["--layout", "four"]).contains("four"));
    let _ = refused(folder.path(), &["--layout", "0+2+1"]);
}
