//! `clovis conf`: changes of the cluster file, planned, applied, listed and taken back; and what a killed control daemon keeps.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use clovis_tests::cluster::{COMMAND_LIMIT, RunningCluster};
use clovis_tests::{binary, content, processes};
use runtime::MonotonicClock;
use serde_json::Value;

/// The cluster's file with pieces replaced, in a file of its own.
fn edited(cluster: &RunningCluster, name: &str, pieces: &[(&str, &str)]) -> String {
    let mut text = fs::read_to_string(cluster.dir().join("clovis.toml")).unwrap();
    for (from, to) in pieces {
        assert_eq!(text.matches(from).count(), 1, "{from:?} in {text}");
        text = text.replace(from, to);
    }
    let path = cluster.scratch().join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn credential_of(cluster: &RunningCluster) -> String {
    let text = fs::read_to_string(cluster.dir().join("clovis.toml")).unwrap();
    let line = text.lines().find(|line| line.starts_with("credential")).unwrap();
    line.split('"').nth(1).unwrap().to_owned()
}

#[test]
fn changes_are_planned_applied_listed_and_taken_back() {
    let cluster = RunningCluster::start("conf", &["--security", "shared", "--device-size", "16M"]);
    let shown = cluster.run(&["conf", "show"]).succeeded();
    assert!(!shown.text().contains(&credential_of(&cluster)), "the credential is shown");
    assert!(cluster.run(&["conf", "plan"]).succeeded().text().starts_with("no change"));

    let file = edited(
        &cluster,
        "smaller.toml",
        &[("unit_bytes = 65536", "unit_bytes = 4096\n\n[[rack]]\nfid = \"0x6100000000000001:1\"")],
    );
    let plan = cluster.run(&["conf", "plan", &file]).succeeded();
    assert_eq!(
        plan.text(),
        "~ pool.unit_bytes: 65536 -> 4096  (now)\n+ rack 0x6100000000000001:0x1: at the top  (now)\n"
    );
    assert!(
        cluster.run(&["conf", "plan"]).succeeded().text().starts_with("no change"),
        "a plan changes nothing"
    );
    let applied = cluster.run(&["conf", "apply", &file, "-m", "small files"]).succeeded();
    assert!(applied.text().contains("transaction 2 is in force"), "{}", applied.text());
    let again = cluster.run(&["conf", "apply", &file]).succeeded();
    assert!(again.text().contains("no change: transaction 2"), "{}", again.text());

    // Clients learn of it: an object made now has the new unit.
    let content = cluster.scratch().join("content");
    fs::write(&content, [7; 20_000]).unwrap();
    let unit = |id: &str| {
        let _ = cluster.run(&["cp", "--quiet", content.to_str().unwrap(), id]).succeeded();
        cluster.run(&["stat", "--json", id]).succeeded().text().to_owned()
    };
    assert!(unit("1:1").contains("\"unit_bytes\":4096"), "{}", unit("1:1"));

    // What `show` printed may be edited and given back.
    let shown = cluster.run(&["conf", "show"]).succeeded().text().replace("name = \"", "name = \"very ");
    let back = cluster.scratch().join("back.toml");
    fs::write(&back, shown).unwrap();
    let applied = cluster.run(&["conf", "apply", back.to_str().unwrap()]).succeeded();
    assert!(applied.text().starts_with("~ cluster.name: cluster -> very cluster"), "{}", applied.text());

    let rolled = cluster.run(&["conf", "rollback", "1"]).succeeded();
    assert!(
        rolled.text().contains("~ pool.unit_bytes: 4096 -> 65536") && rolled.text().contains("transaction 4"),
        "{}",
        rolled.text()
    );
    assert!(unit("1:2").contains("\"unit_bytes\":65536"));
    let history = cluster.run(&["conf", "history"]).succeeded();
    let notes: Vec<&str> = history.text().lines().skip(1).map(|line| line.trim_end()).collect();
    assert_eq!(notes.len(), 4, "{}", history.text());
    assert!(notes[0].ends_with("rollback to 1") && notes[2].ends_with("small files"), "{}", history.text());
    assert!(!history.text().contains("  -  "), "a time is missing: {}", history.text());
    assert!(cluster.run(&["conf", "show", "2"]).succeeded().text().contains("unit_bytes = 4096"));
    assert!(cluster.run(&["conf", "show", "9"]).refused().contains("1 to 4 are kept"));
}

#[test]
fn wrong_files_and_changes_that_cannot_be_made_are_refused_in_one_line() {
    let cluster = RunningCluster::start("conf-refused", &["--device-size", "16M"]);
    let refused = |file: &str| {
        let said = cluster.run(&["conf", "apply", file]).refused().to_owned();
        assert_eq!(said.lines().count(), 1, "{said}");
        said
    };
    let layout = edited(&cluster, "layout.toml", &[("layout = \"4+2+1\"", "layout = \"5+2+1\"")]);
    assert!(refused(&layout).contains("pool.layout"), "{}", refused(&layout));
    let wrong = edited(
        &cluster,
        "wrong.toml",
        &[(
            "unit_bytes = 65536",
            "unit_bytes = 65536\n\n[[enclosure]]\nfid = \"0x6500000000000001:1\"\nin = \"0x6100000000000001:1\"",
        )],
    );
    let said = refused(&wrong);
    assert!(
        said.contains("enclosure[0].in: there is no [[rack]] 0x6100000000000001:0x1")
            && said.contains("line "),
        "{said}"
    );
    assert!(refused("/nonexistent/clovis.toml").contains("/nonexistent/clovis.toml"));
    // Who does not have the credential changes nothing.
    let foreign = edited(
        &cluster,
        "foreign.toml",
        &[(&credential_of(&cluster), &"0".repeat(64)), ("unit_bytes = 65536", "unit_bytes = 4096")],
    );
    let _ = cluster.run(&["conf", "apply", "--config", &foreign, "--timeout", "3"]).refused();
    assert!(
        cluster
            .run(&["conf", "plan"])
            .succeeded()
            .text()
            .starts_with("no change: the file says what transaction 1")
    );
}

#[test]
fn a_control_daemon_killed_in_a_loop_of_applies_loses_none_that_was_acknowledged() {
    let cluster = RunningCluster::start(
        "conf-kill",
        &["--device-size", "16M", "--servers", "1", "--devices-per-server", "4", "--layout", "2+1+1"],
    );
    let mut in_force = "cluster".to_owned();
    for round in 0..2 {
        for step in 0..2 {
            let name = format!("round {round} step {step}");
            let file =
                edited(&cluster, "next.toml", &[("name = \"cluster\"", &format!("name = \"{name}\""))]);
            let _ = cluster.run(&["conf", "apply", &file]).succeeded();
            in_force = name;
        }
        cluster.kill_hard("control");
        // The file beside the daemon still says what it said at the start: it does not undo what was applied since.
        cluster.start_again(&[]);
        let shown = cluster.run(&["conf", "show"]).succeeded();
        assert!(
            shown.text().contains(&format!("name = \"{in_force}\"")),
            "lost {in_force:?}: {}",
            shown.text()
        );
    }
    let history = cluster.run(&["conf", "history", "--json"]).succeeded();
    assert!(history.text().contains("\"number\":5"), "{}", history.text());
    // A changed file is applied when control starts.
    let own = cluster.dir().join("clovis.toml");
    let text = fs::read_to_string(&own).unwrap().replace("name = \"cluster\"", "name = \"by hand\"");
    cluster.kill_hard("control");
    fs::write(&own, text).unwrap();
    cluster.start_again(&[]);
    let history = cluster.run(&["conf", "history"]).succeeded();
    assert!(history.text().lines().nth(1).unwrap().contains("when control started"), "{}", history.text());
    assert!(cluster.run(&["conf", "plan"]).succeeded().text().starts_with("no change"));
}

const SERVERS: usize = 1024;
const DEVICES: usize = 10_240;
const LARGE_STORE: u64 = 1 << 30;

/// A cluster of three servers with a device each, whose file says that control's store has [`LARGE_STORE`] bytes, and which has `made_with`.
fn with_store(name: &str, made_with: u64) -> RunningCluster {
    RunningCluster::of(name, |folder: &Path| {
        let mut command = Command::new(binary::clovis());
        command.args(["cluster", "init", "--dir"]).arg(folder).env_remove("CLOVIS_CONFIG").args([
            "--security",
            "shared",
            "--servers",
            "3",
            "--devices-per-server",
            "1",
            "--layout",
            "1+1+0",
            "--device-size",
            "64M",
        ]);
        let _ = processes::run(&mut command, folder.parent().unwrap(), COMMAND_LIMIT).succeeded();
        let own = folder.join("clovis.toml");
        let text = fs::read_to_string(&own).unwrap();
        let line = text.lines().find(|line| line.starts_with("store_bytes = ")).unwrap();
        fs::write(&own, text.replace(line, &format!("store_bytes = {LARGE_STORE}"))).unwrap();
        // Blank until the first start.
        fs::File::options().write(true).open(folder.join("control.dev")).unwrap().set_len(made_with).unwrap();
    })
}

/// The cluster's file with all servers and devices that there may be; only the first three run.
fn with_all_that_may_be(cluster: &RunningCluster) -> String {
    let own = fs::read_to_string(cluster.dir().join("clovis.toml")).unwrap();
    let mut text = own.replace("unit_bytes = 65536\n", "unit_bytes = 65536\ndevices = 3\n");
    for server in 4..=SERVERS {
        text.push_str(&format!(
            "\n[[server]]\nprocess = \"0x7200000000000001:{server}\"\nendpoints = [\"127.9.{}.{}@tcp:12345:34:1\"]\n",
            server / 256,
            server % 256
        ));
    }
    for device in 4..=DEVICES {
        let server = (4 + device / 10).min(SERVERS);
        text.push_str(&format!(
            "\n[[device]]\nfid = \"0x6b00000000000001:{device}\"\nserver = \"0x7200000000000001:{server}\"\n\
             path = \"devices/device-{device}.dev\"\nsize_bytes = 1099511627776\n"
        ));
    }
    let path = cluster.scratch().join("large.toml");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_cluster_file_of_more_than_a_mebibyte_goes_through_every_command() {
    let cluster = with_store("conf-large", LARGE_STORE);
    let file = with_all_that_may_be(&cluster);
    let bytes = fs::metadata(&file).unwrap().len();
    assert!(bytes > 1 << 20, "{bytes} bytes");
    let clock = MonotonicClock::start();
    let timed = |arguments: &[&str]| {
        let before = clock.now();
        let said = cluster.run(arguments).succeeded();
        let took = clock.now().since(before);
        println!("{bytes} bytes: {} in {:.2} s", arguments[..2].join(" "), took.as_secs_f64());
        // Ten to fifty times of what it takes on a machine with nothing else to do.
        assert!(took < Duration::from_secs(15), "{arguments:?} took {took:?}");
        said
    };
    let planned = timed(&["conf", "plan", &file]);
    assert_eq!(planned.text().lines().count(), SERVERS - 3 + DEVICES - 3 + 1);
    assert!(planned.text().lines().last().unwrap().starts_with("! earlier versions of control"));
    let applied = timed(&["conf", "apply", &file, "-m", "all of them"]);
    assert!(applied.text().contains("transaction 2 is in force"), "no word of it");
    assert!(timed(&["conf", "apply", &file]).text().contains("no change: transaction 2"));
    let history = timed(&["conf", "history"]);
    assert!(
        history.text().contains("11258  ") && history.text().contains("all of them"),
        "{}",
        history.text()
    );
    let check = |when: &str| {
        let shown = timed(&["conf", "show"]);
        let hidden = |text: &str| -> Vec<String> {
            text.lines().filter(|line| !line.starts_with("credential")).map(str::to_owned).collect()
        };
        assert!(hidden(shown.text()) == hidden(&fs::read_to_string(&file).unwrap()), "{when}: another text");
        let status: Value = serde_json::from_str(timed(&["status", "--json"]).text()).unwrap();
        let states = |list: &str, state: &str| {
            let all = status[list].as_array().unwrap();
            (all.len(), all.iter().filter(|one| one["state"] == state).count())
        };
        assert_eq!(
            (states("devices", "online"), states("processes", "online")),
            ((DEVICES, 3), (SERVERS, 3))
        );
    };
    check("applied");
    // Clients and servers have the configuration too, and nobody waits for servers that were never there.
    let (bytes, object) = (content::bytes(4, 300_001), cluster.scratch().join("object"));
    fs::write(&object, &bytes).unwrap();
    for _ in 0..2 {
        let _ = timed(&["cp", "--quiet", object.to_str().unwrap(), "1:1"]);
    }
    assert!(timed(&["cat", "1:1"]).stdout == bytes);
    let before = clock.now();
    cluster.kill_hard("control");
    cluster.kill_hard("server-2");
    cluster.start_again(&[]);
    println!("control and a server again in {:.2} s", clock.now().since(before).as_secs_f64());
    check("after a restart");
    assert!(timed(&["cat", "1:1"]).stdout == bytes);
    let _ = timed(&["rm", "1:1"]);
}

#[test]
fn a_cluster_file_that_the_store_has_no_room_for_is_refused_and_nothing_is_lost() {
    let cluster = with_store("conf-small-store", 16 << 20);
    let file = with_all_that_may_be(&cluster);
    let said = cluster.run(&["conf", "apply", &file]);
    assert!(said.refused().contains("was made with 16777216"), "{}", said.refused());
    assert!(cluster.run(&["conf", "plan"]).succeeded().text().starts_with("no change"));
    let smaller = edited(&cluster, "smaller.toml", &[("unit_bytes = 65536", "unit_bytes = 4096")]);
    let applied = cluster.run(&["conf", "apply", &smaller]).succeeded();
    assert!(applied.text().contains("transaction 2 is in force"), "{}", applied.text());
}
