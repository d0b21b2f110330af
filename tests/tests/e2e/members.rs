//! Three and five control daemons as processes: their leader killed again and again under changes, members that come and go, stores that are not theirs.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clovis_tests::cluster::{COMMAND_LIMIT, RunningCluster};
use clovis_tests::processes;
use clovis_tests::wait;
use serde_json::Value;

const SMALL: [&str; 8] = ["--control", "3", "--servers", "2", "--layout", "1+1+0", "--device-size", "16M"];

fn members(cluster: &RunningCluster) -> Vec<Value> {
    let said = cluster.run(&["control", "member", "list", "--json"]).succeeded();
    let value: Value = serde_json::from_str(said.text()).unwrap();
    value.as_array().unwrap().clone()
}

/// Waits until a control daemon leads. Answer: its number.
fn leader(cluster: &RunningCluster) -> u64 {
    let found = wait::until("a leader", COMMAND_LIMIT, || {
        let all = members(cluster);
        let leads = all.iter().find(|one| one["state"] == "leads")?;
        leads["number"].as_u64()
    });
    found.unwrap_or_else(|error| panic!("{error}\n{}", cluster.logs()))
}

fn name(number: u64) -> String {
    if number == 1 { "control".to_owned() } else { format!("control-{number}") }
}

/// The cluster file in force with pieces replaced, in a file of its own.
fn edited(cluster: &RunningCluster, to: &str, pieces: &[(&str, &str)]) -> String {
    let mut text = fs::read_to_string(cluster.dir().join("clovis.toml")).unwrap();
    for (from, to) in pieces {
        assert_eq!(text.matches(from).count(), 1, "{from:?} in {text}");
        text = text.replace(from, to);
    }
    let path = cluster.scratch().join(to);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// What control keeps: notes by the number of their transaction.
fn notes(cluster: &RunningCluster) -> BTreeMap<u64, String> {
    let said = cluster.run(&["conf", "history", "--json"]).succeeded();
    let value: Value = serde_json::from_str(said.text()).unwrap();
    let all = value["transactions"].as_array().unwrap().iter();
    all.map(|one| (one["number"].as_u64().unwrap(), one["note"].as_str().unwrap().to_owned())).collect()
}

/// Objects that a client wrote and was told so: number and first byte.
fn write_objects(cluster: &RunningCluster, stop: &AtomicBool) -> Vec<(u32, u8)> {
    let mut written = Vec::new();
    for number in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let byte = u8::try_from(number % 251).unwrap();
        let file = cluster.scratch().join("object");
        fs::write(&file, vec![byte; 20_000]).unwrap();
        let id = format!("2:{number}");
        if cluster.run(&["cp", "--quiet", file.to_str().unwrap(), &id]).status.success() {
            written.push((number, byte));
        }
    }
    written
}

/// Changes of the configuration, one after the other: notes of those that were acknowledged, by transaction.
fn apply_in_a_loop(cluster: &RunningCluster, stop: &AtomicBool) -> BTreeMap<u64, String> {
    let mut acknowledged = BTreeMap::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let note = format!("change {number}");
        let unit = format!("unit_bytes = {}", 4096 * (number % 16 + 1));
        let file = edited(cluster, "change.toml", &[("unit_bytes = 65536", &unit)]);
        let finished = cluster.run(&["conf", "apply", &file, "-m", &note]);
        // One that is refused or late was not acknowledged.
        let said = String::from_utf8_lossy(&finished.stdout).into_owned();
        let in_force = said.split_once("transaction ").and_then(|(_, rest)| rest.split(' ').next());
        if let Some(number) = in_force.filter(|_| finished.status.success()) {
            let twice = acknowledged.insert(number.parse::<u64>().unwrap(), note);
            assert_eq!(twice, None, "transaction {number} was acknowledged twice");
        }
    }
    acknowledged
}

/// With `count` control daemons, kills as many at once as may be away, the leader among them, `rounds` times under a loop of changes and with a client
/// at work.
fn kill_in_a_loop(name_of_test: &str, count: u64, rounds: u32) {
    let count_word = count.to_string();
    let arguments = [&["--control", &count_word], &SMALL[2..]].concat();
    let cluster = RunningCluster::start(name_of_test, &arguments);
    let content = cluster.scratch().join("content");
    fs::write(&content, [7; 100_000]).unwrap();
    let _ = cluster.run(&["cp", "--quiet", content.to_str().unwrap(), "1:1"]).succeeded();
    let stop = AtomicBool::new(false);
    let (acknowledged, written) = std::thread::scope(|scope| {
        let changes = scope.spawn(|| apply_in_a_loop(&cluster, &stop));
        let objects = scope.spawn(|| write_objects(&cluster, &stop));
        for round in 0..rounds {
            let number = leader(&cluster);
            // The leader and those that follow it in the circle, others each time.
            let away: Vec<u64> = (0..count / 2)
                .map(|step| (number - 1 + step * (1 + u64::from(round % 2))) % count + 1)
                .collect();
            away.iter().for_each(|number| cluster.kill_hard(&name(*number)));
            // The others go on without them.
            let next = leader(&cluster);
            assert!(!away.contains(&next), "{next} leads, of {away:?} that were killed");
            let shown = cluster.run(&["conf", "show"]).succeeded();
            assert!(shown.text().contains("unit_bytes"));
            cluster.start_again(&[]);
        }
        stop.store(true, Ordering::Relaxed);
        (changes.join().unwrap(), objects.join().unwrap())
    });
    assert!(acknowledged.len() >= 5, "{acknowledged:?}");
    assert!(written.len() >= 5, "{written:?}");
    let kept = notes(&cluster);
    let (oldest, newest) = (*kept.first_key_value().unwrap().0, *kept.last_key_value().unwrap().0);
    assert!(newest >= *acknowledged.last_key_value().unwrap().0, "{acknowledged:?}; kept: {kept:?}");
    for (number, note) in acknowledged.range(oldest..) {
        assert_eq!(kept.get(number), Some(note), "transaction {number} was acknowledged; kept: {kept:?}");
    }
    // Whoever leads next says the same, and the data is there.
    let number = leader(&cluster);
    cluster.kill_hard(&name(number));
    let _ = leader(&cluster);
    assert_eq!(notes(&cluster), kept);
    let back = cluster.run(&["cat", "1:1"]).succeeded();
    assert_eq!(back.stdout, fs::read(&content).unwrap());
    for (number, byte) in written {
        let back = cluster.run(&["cat", &format!("2:{number}")]).succeeded();
        assert!(back.stdout == vec![byte; 20_000], "object 2:{number} was acknowledged");
    }
    let all = members(&cluster);
    assert_eq!(all.iter().filter(|one| one["state"] == "no answer").count(), 1, "{all:?}");
}

#[test]
fn a_leader_killed_in_a_loop_of_changes_loses_nothing_acknowledged() {
    kill_in_a_loop("members-kill", 3, 5);
}

#[test]
fn two_of_five_killed_in_a_loop_of_changes_lose_nothing_acknowledged() {
    kill_in_a_loop("members-five", 5, 4);
}

#[test]
fn a_leader_that_is_asked_to_end_hands_the_lead_over_before_it_goes() {
    let cluster = RunningCluster::start("members-hand-over", &SMALL);
    for round in 0..2 {
        let number = leader(&cluster);
        cluster.end(&name(number));
        // It went when it had heard of another one that leads: nobody is waited for.
        let clock = runtime::clock::MonotonicClock::start();
        let all = members(&cluster);
        assert!(all.iter().any(|one| one["state"] == "leads"), "round {round}: {all:?}\n{}", cluster.logs());
        let shown = cluster.run(&["conf", "show"]).succeeded();
        assert!(shown.text().contains("unit_bytes"));
        println!("two commands after an orderly end of the leader: {:?}", clock.now());
        cluster.start_again(&[]);
    }
    // `member remove` of the leader: another one takes it out.
    let number = leader(&cluster);
    let said = cluster.run(&["control", "member", "remove", &number.to_string()]).succeeded();
    assert!(said.text().contains("is no member"), "{}", said.text());
    assert_ne!(leader(&cluster), number);
}

#[test]
fn a_member_is_replaced_by_one_of_another_number_and_a_blank_store_is_refused() {
    let cluster = RunningCluster::start("members-replace", &SMALL);
    let first = leader(&cluster);
    let gone = if first == 3 { 2 } else { 3 };
    cluster.kill_hard(&name(gone));
    let store = format!("control-{gone}.dev");
    fs::remove_file(cluster.dir().join(&store)).unwrap();
    // Its number with another store: it would have forgotten its vote.
    let made = fs::File::create(cluster.dir().join(&store)).unwrap();
    made.set_len(16 << 20).unwrap();
    let config = cluster.dir().join("clovis.toml");
    let number = gone.to_string();
    let refused = cluster.run(&["control", "--config", config.to_str().unwrap(), "--number", &number]);
    assert!(
        refused.refused().contains("is blank") && refused.refused().contains("member remove"),
        "{}",
        refused.stderr
    );
    // Its successor has number 4: into the file, started, taken in; and the one that is gone taken out.
    let port = clovis_tests::processes::free_port();
    let early = cluster.run(&["control", "member", "add", "4"]);
    assert!(early.refused().contains("conf apply"), "{}", early.stderr);
    let section = format!(
        "[[control.member]]\nnumber = 4\nendpoint = \"127.0.0.1@tcp:{}\"\nstore = \"control-4.dev\"\n\n[pool]",
        endpoint_of_port(port)
    );
    let file = edited(&cluster, "four.toml", &[("[pool]", &section)]);
    let applied = cluster.run(&["conf", "apply", &file, "-m", "a fourth"]).succeeded();
    assert!(applied.text().contains("control.member 4 endpoint"), "{}", applied.text());
    fs::copy(&file, &config).unwrap();
    let arguments =
        ["control", "--config", config.to_str().unwrap(), "--number", "4", "--first-start", "join"];
    let mut fourth = cluster.start_saying(&arguments, "control-4 serves", Duration::from_secs(20));
    let added = cluster.run(&["control", "member", "add", "4"]).succeeded();
    assert_eq!(added.text(), "control daemon 4 is a member\n");
    let _ = cluster.run(&["control", "member", "remove", &number]).succeeded();
    // Any two of the three that are left are a majority: the new one counts.
    let old = leader(&cluster);
    if old == 4 {
        fourth.kill();
    } else {
        cluster.kill_hard(&name(old));
    }
    let _ = leader(&cluster);
    let shown = cluster.run(&["conf", "history"]).succeeded();
    assert!(shown.text().contains("a fourth"), "{}", shown.text());
}

fn in_force(cluster: &RunningCluster) -> String {
    let shown = cluster.run(&["conf", "show"]).succeeded();
    shown.text().lines().find(|line| line.starts_with("unit_bytes")).unwrap().to_owned()
}

/// Backs up, changes, loses every control daemon, and puts the backup back by force: `controls` are the names of all.
fn lose_and_restore(cluster: &RunningCluster, controls: &[&str]) {
    let content = cluster.scratch().join("content");
    fs::write(&content, [9; 50_000]).unwrap();
    let _ = cluster.run(&["cp", "--quiet", content.to_str().unwrap(), "1:1"]).succeeded();
    let backup = cluster.scratch().join("backup");
    let backup = backup.to_str().unwrap();
    let change = |unit: &str| {
        let file = edited(cluster, "change.toml", &[("unit_bytes = 65536", &format!("unit_bytes = {unit}"))]);
        let _ = cluster.run(&["conf", "apply", &file]).succeeded();
    };
    change("4096");
    let said = cluster.run(&["control", "backup", backup]).succeeded();
    assert!(said.text().starts_with("configuration "), "{}", said.text());
    change("8192");
    let refused = cluster.run(&["control", "restore", backup]);
    assert!(refused.refused().contains("runs, at"), "{}", refused.stderr);
    controls.iter().for_each(|name| cluster.kill_hard(name));
    // The servers run on, and know better.
    let older = cluster.run(&["control", "restore", backup]);
    assert!(
        older.refused().contains("--force") && older.refused().contains("would be lost"),
        "{}",
        older.stderr
    );
    let bytes = fs::read(backup).unwrap();
    let cut = cluster.scratch().join("cut");
    fs::write(&cut, &bytes[..bytes.len() - 1]).unwrap();
    let damaged = cluster.run(&["control", "restore", cut.to_str().unwrap(), "--force"]);
    assert!(damaged.refused().contains("damaged"), "{}", damaged.stderr);
    let no_backup = cluster.run(&["control", "restore", content.to_str().unwrap(), "--force"]);
    assert!(no_backup.refused().contains("no backup"), "{}", no_backup.stderr);
    let restored = cluster.run(&["control", "restore", backup, "--force"]).succeeded();
    assert!(restored.text().contains("control.dev.before-"), "{}", restored.text());
}

#[test]
fn a_backup_older_than_the_cluster_is_put_back_by_force_only_and_then_everybody_goes_on_with_it() {
    for count in ["1", "3"] {
        let arguments = [&["--control", count], &SMALL[2..]].concat();
        let cluster = RunningCluster::start("members-backup", &arguments);
        let all = ["control", "control-2", "control-3"];
        lose_and_restore(&cluster, if count == "1" { &all[..1] } else { &all });
        let config = cluster.dir().join("clovis.toml");
        let arguments = ["control", "--config", config.to_str().unwrap()];
        let mut control = cluster.start_saying(&arguments, "control serves", Duration::from_secs(20));
        assert_eq!(in_force(&cluster), "unit_bytes = 4096");
        let copy = wait::until("the data", COMMAND_LIMIT, || {
            let back = cluster.run(&["cat", "1:1"]);
            back.status.success().then_some(back.stdout)
        });
        assert!(copy.unwrap() == [9; 50_000]);
        let _ = cluster
            .run(&["cp", "--quiet", cluster.scratch().join("content").to_str().unwrap(), "1:2"])
            .succeeded();
        control.kill();
    }
}

/// `PID:PORTAL:TMID` of an endpoint with this port (docs/wire.md#ports).
fn endpoint_of_port(port: u16) -> String {
    let nid: base::Nid = "127.0.0.1@tcp".parse().unwrap();
    let endpoint = base::Endpoint::from_port(nid, port).unwrap().to_string();
    endpoint.split_once("tcp:").unwrap().1.to_owned()
}

#[test]
fn numbers_of_control_daemons_that_make_no_sense_are_refused() {
    let folder = clovis_tests::folder("members-refused");
    let dir = folder.path().join("cluster");
    let mut two = std::process::Command::new(clovis_tests::binary::clovis());
    two.args(["cluster", "init", "--control", "2", "--dir"]).arg(&dir);
    let refused = processes::run(&mut two, folder.path(), COMMAND_LIMIT);
    assert!(refused.stderr.contains("1, 3 or 5"), "{}", refused.stderr);
}

#[test]
fn a_command_that_finds_the_machine_of_the_first_daemon_silent_asks_the_next_one_soon() {
    let cluster = RunningCluster::start("members-silent", &SMALL);
    let first = members(&cluster).into_iter().find(|one| one["number"] == 1).unwrap();
    let first: base::Endpoint = first["endpoint"].as_str().unwrap().parse().unwrap();
    cluster.kill_hard("control");
    let next = leader(&cluster);
    // Takes connections and says nothing, as a machine without power lets them hang.
    let silent = TcpListener::bind(("127.0.0.1", first.port().unwrap())).unwrap();
    let clock = runtime::clock::MonotonicClock::start();
    let asked = || {
        let begun = clock.now();
        let shown = cluster.run(&["conf", "show"]).succeeded();
        assert!(shown.text().contains("unit_bytes"));
        clock.now().since(begun)
    };
    // It was more than 2 s, each time. The machine may be busy: one that is quick is enough.
    let is_quick = || Some(asked()).filter(|took| *took < Duration::from_millis(1500));
    let quick = wait::until("an answer within 1.5 s", COMMAND_LIMIT, is_quick).unwrap();
    assert!(quick >= Duration::from_millis(400), "{quick:?}: nobody waited for the first");
    // Who leads has not heard the first since, and says so.
    let first = wait::until("a silent member", COMMAND_LIMIT, || {
        let first = members(&cluster).into_iter().find(|one| one["number"] == 1)?;
        first["heard_ms"].as_u64().is_none_or(|ms| ms > 1000).then_some(first)
    });
    assert_eq!(first.unwrap()["state"], "no answer", "{next} leads");
    drop(silent);
}
