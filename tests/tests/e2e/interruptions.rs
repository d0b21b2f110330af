//! Commands whose surroundings fail: a reader that goes away, a full disk, Ctrl-C. No panic, nothing left over.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use clovis_tests::cluster::{COMMAND_LIMIT, RunningCluster};
use clovis_tests::processes::{self, Process};
use clovis_tests::{binary, folder, wait};

/// What a shell shows for a program that SIGPIPE ended.
const PIPE_STATUS: i32 = 141;

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .expect("the folder can be read")
        .map(|entry| entry.expect("an entry can be read").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn output_that_nobody_takes_is_no_panic() {
    let cluster = RunningCluster::start("output", &["--device-size", "64M"]);
    let file = cluster.scratch().join("file");
    // More than a pipe holds, so that the reader's end is noticed.
    fs::write(&file, vec![7; 1 << 20]).unwrap();
    let _ = cluster.run(&["cp", "--quiet", file.to_str().unwrap(), "1:1"]).succeeded();
    for words in [&["cat", "1:1"][..], &["ls"], &["ls", "--json"], &["stat", "1:1"]] {
        let mut to_nobody = cluster.command(words);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = to_nobody.stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(PIPE_STATUS), "{words:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{words:?} has something to say to nobody");

        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = cluster.command(words).stdout(full).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
        assert!(said.lines().count() == 1 && said.contains("standard output"), "{words:?}: {said}");
    }
}

#[test]
fn what_cat_writes_to_is_whole_or_as_it_was_and_never_another_kind_of_file() {
    let cluster = RunningCluster::start("cat-output", &["--device-size", "64M"]);
    let content = vec![3; 100_000];
    let file = cluster.scratch().join("file");
    fs::write(&file, &content).unwrap();
    let _ = cluster.run(&["cp", "--quiet", file.to_str().unwrap(), "1:1"]).succeeded();
    let out = cluster.scratch().join("out");
    fs::create_dir(&out).unwrap();

    // Through a symbolic link, the file behind it; the link stays one.
    let (target, link) = (out.join("target"), out.join("link"));
    fs::write(&target, "old").unwrap();
    std::os::unix::fs::symlink("target", &link).unwrap();
    let _ = cluster.run(&["cat", "--output", link.to_str().unwrap(), "1:1"]).succeeded();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(fs::read(&target).unwrap() == content, "other bytes behind the link");

    // A file that is not there, an object that is not there, a folder: nothing is made.
    let missing = out.join("missing");
    let _ = cluster.run(&["cat", "--output", missing.to_str().unwrap(), "5:5"]).refused();
    let _ = cluster.run(&["cat", "--output", out.to_str().unwrap(), "1:1"]).refused();
    assert_eq!(names(&out), ["link", "target"]);

    // A special file is written to. A pipe, not a device: as root a replaced device would be the machine's.
    let pipe = out.join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut cat = cluster.command(&["cat", "--output", pipe.to_str().unwrap(), "1:1"]);
    let mut cat = Process::start(&mut cat, cluster.scratch());
    assert!(fs::read(&pipe).unwrap() == content, "other bytes through the pipe");
    assert!(cat.wait(COMMAND_LIMIT).unwrap().success(), "{}", cat.said());
    assert!(!fs::symlink_metadata(&pipe).unwrap().is_file(), "the pipe was replaced");
    // And nothing waits for somebody to write into one that shall be stored.
    let refused = cluster.run(&["cp", "--quiet", pipe.to_str().unwrap(), "2:2"]);
    assert!(refused.refused().contains("not a regular file"), "{}", refused.stderr);
}

#[test]
fn an_interrupted_quickstart_takes_its_folder_with_it() {
    let folder = folder("interrupted");
    let temporary = folder.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    let mut command = Command::new(binary::clovis());
    // Long enough that it is in the middle when the signal comes.
    command.args(["quickstart", "--size", "1G"]).env("TMPDIR", &temporary);
    let mut quickstart = Process::start(&mut command, folder.path());
    wait::until("the folder of quickstart", COMMAND_LIMIT, || {
        names(&temporary)
            .first()
            .map(|name| temporary.join(name).join("devices"))
            .filter(|path| path.is_dir())
    })
    .unwrap();
    quickstart.ask_to_end().unwrap();
    let status = quickstart.wait(COMMAND_LIMIT).unwrap();
    assert_eq!(status.code(), Some(128 + 15), "{}", quickstart.said());
    assert!(quickstart.said().contains("interrupted"), "{}", quickstart.said());
    assert_eq!(names(&temporary), Vec::<String>::new());
}

#[test]
fn what_cannot_be_made_leaves_nothing_behind() {
    let folder = folder("in-vain");
    let run = |words: &[&str], dir: &Path| {
        let mut command = Command::new(binary::clovis());
        command.args(words).arg("--dir").arg(dir).env_remove("CLOVIS_CONFIG");
        processes::run(&mut command, folder.path(), COMMAND_LIMIT)
    };
    let (new, empty) = (folder.path().join("new"), folder.path().join("empty"));
    fs::create_dir(&empty).unwrap();
    for dir in [&new, &empty] {
        // Too small for a device, too large for any disk, more units than devices.
        for words in [
            &["cluster", "start", "--device-size", "1M"][..],
            &["cluster", "start", "--device-size", "8000T"],
            &["cluster", "start", "--layout", "20+5+5"],
            &["quickstart", "--size", "9000T"],
        ] {
            let said = run(words, dir);
            assert_eq!(said.refused().lines().count(), 1, "{words:?}: {}", said.stderr);
            assert!(!new.exists(), "{words:?} left a folder");
            assert_eq!(names(&empty), Vec::<String>::new(), "{words:?} left something");
        }
    }
    // A folder that was there, and empty, is given back as it was.
    let _ = run(&["quickstart", "--size", "1M"], &empty).succeeded();
    assert_eq!(names(&empty), Vec::<String>::new());
}

#[test]
fn one_daemon_alone_is_stopped_and_comes_back() {
    let cluster = RunningCluster::start("stopped-alone", &["--device-size", "16M"]);
    let dir = cluster.dir();
    let dir = ["--dir", dir.to_str().unwrap()];
    let cluster_command = |words: &[&str]| cluster.run(&[&["cluster"], words, &dir].concat());
    let processes = || {
        let status = cluster_command(&["status", "--json"]).succeeded();
        let status: serde_json::Value = serde_json::from_str(status.text()).unwrap();
        let pids = status["processes"].as_array().unwrap().iter().map(|one| one["pid"].as_u64());
        (status["control"]["pid"].as_u64(), pids.collect::<Vec<_>>())
    };
    let (control, before) = processes();
    assert_eq!(before.iter().flatten().count(), before.len());

    let unknown = cluster_command(&["stop", "--only", "server-77"]);
    assert!(unknown.refused().contains("server-1, server-2"), "{}", unknown.stderr);
    assert_eq!(cluster_command(&["stop", "--only", "server-2"]).succeeded().text(), "1 processes stopped\n");
    let (control_then, then) = processes();
    assert_eq!((control_then, then[1]), (control, None));
    // Of a daemon that was killed a moment ago as of one that was asked: the start finds it gone.
    for round in 0..5 {
        cluster.start_again(&[]);
        let (control_now, now) = processes();
        assert_eq!((control_now, now.len()), (control, before.len()), "round {round}");
        for (index, pid) in now.iter().enumerate() {
            assert_eq!(*pid == before[index], index != 1, "round {round}: {before:?}, {now:?}");
        }
        let pid = now[1].unwrap().to_string();
        assert!(Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
        let is_ending = || (!Path::new(&format!("/proc/{pid}/exe")).exists()).then_some(());
        wait::until("the end of server-2", Duration::from_secs(60), is_ending).unwrap();
    }
}

#[test]
fn a_cluster_without_its_configuration_can_still_be_stopped() {
    let cluster = RunningCluster::start("unreadable", &["--device-size", "16M"]);
    let config = cluster.dir().join("clovis.toml");
    fs::write(&config, b"\xff\xfe garbage").unwrap();
    let stop = || {
        let mut command = Command::new(binary::clovis());
        command.args(["cluster", "stop", "--dir"]).arg(cluster.dir());
        processes::run(&mut command, cluster.scratch(), Duration::from_secs(60))
    };
    assert!(stop().succeeded().text().starts_with("5 "));
    let again = stop();
    assert!(again.refused().contains("clovis.toml"), "{}", again.stderr);
}
