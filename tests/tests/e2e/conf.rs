//! `clovis conf`: changes of the cluster file, planned, applied, listed and taken back; and what a killed control daemon keeps.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;

use clovis_tests::cluster::RunningCluster;

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
