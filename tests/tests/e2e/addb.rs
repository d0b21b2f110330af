//! `clovis addb`: what a request did is known at its client and at its server, after the server was killed, restarted and stopped; and files
//! that are cut, damaged or something else are told so.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::path::{Path, PathBuf};

use clovis_tests::cluster::RunningCluster;
use clovis_tests::processes::Finished;
use serde_json::Value;

fn lines(finished: Finished) -> Vec<Value> {
    finished.succeeded().text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn dump(cluster: &RunningCluster, file: &Path) -> Vec<Value> {
    lines(cluster.run(&["addb", "dump", "--json", file.to_str().unwrap()]))
}

/// Words of the steps that a file has of a request, in order.
fn steps(dump: &[Value], request: &str) -> Vec<String> {
    let of_it = dump.iter().filter(|line| line["request"] == request);
    of_it.map(|line| line["what"].as_str().unwrap().to_owned()).collect()
}

/// A request of this fop in the dump that has ended.
fn ended_request(dump: &[Value], fop: &str, end: &str) -> String {
    let found = dump.iter().rfind(|line| line["fop"] == fop && line["what"] == end);
    found.unwrap_or_else(|| panic!("no {fop} that is {end} in {dump:#?}"))["request"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// The file of the one client that ran.
fn client_file(folder: &Path) -> PathBuf {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("client-"))
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

#[test]
fn a_killed_server_s_requests_are_found_in_its_ring_and_in_the_client_s() {
    let cluster = RunningCluster::start(
        "addb",
        &["--device-size", "64M", "--servers", "2", "--devices-per-server", "2", "--layout", "2+1+1"],
    );
    let folder = cluster.dir().join("addb");
    let dir = cluster.dir();
    let dir = dir.to_str().unwrap();
    let file = cluster.scratch().join("file");
    fs::write(&file, vec![7; 3 << 20]).unwrap();
    let _ = cluster.run(&["cp", "--quiet", file.to_str().unwrap(), "1:1"]).succeeded();
    cluster.kill_hard("server-1");

    // The phases of a write, at the server that was killed and at its client.
    let of_server = dump(&cluster, &folder.join("server-1.addb"));
    assert_eq!((&of_server[0]["state"], &of_server[0]["process"]), (&"killed".into(), &"server-1".into()));
    assert_eq!(of_server[0]["damaged"], 0);
    let request = ended_request(&of_server, "component-write", "done");
    let at_server = steps(&of_server, &request);
    assert_eq!(at_server[..4], ["authenticate", "authorise", "decode", "run"]);
    for phase in ["admit", "pull", "write", "durable"] {
        assert!(at_server.iter().any(|step| step == phase), "{phase} is not in {at_server:?}");
    }
    assert_eq!(at_server[at_server.len() - 2..], ["reply", "done"]);
    let of_client = dump(&cluster, &client_file(&folder));
    assert_eq!(of_client[0]["state"], "ended in order");
    assert_eq!(steps(&of_client, &request), ["submit", "send", "replied"]);

    // Both in one line of time.
    let followed = lines(cluster.run(&["addb", "follow", &request, "--dir", dir, "--json"])).remove(0);
    assert_eq!((&followed["fop"], &followed["one_clock"]), (&"component-write".into(), &true.into()));
    let way = followed["steps"].as_array().unwrap();
    let words: Vec<&str> = way.iter().map(|step| step["what"].as_str().unwrap()).collect();
    assert_eq!(words.len(), at_server.len() + 3);
    assert_eq!((words[..2].to_vec(), words[words.len() - 1]), (vec!["submit", "send"], "replied"));
    assert_eq!(words[2..words.len() - 1], at_server, "the server's steps lie between");
    let times: Vec<u64> = way.iter().map(|step| step["since_start_ns"].as_u64().unwrap()).collect();
    assert!(
        times[2..times.len() - 1].is_sorted() && times[0] == 0 && times[times.len() - 1] > 0,
        "{times:?}"
    );
    let whole: u64 = way
        .iter()
        .filter(|step| step["process"] == "server-1")
        .filter_map(|step| step["took_ns"].as_u64())
        .sum();
    assert_eq!(whole, times[times.len() - 2] - times[2], "the phases add up to the server's time");
    let text = cluster.run(&["addb", "follow", &request, "--dir", dir]).succeeded();
    assert!(text.text().contains("durable") && text.text().contains("server-1"), "{}", text.text());
    assert!(
        cluster.run(&["addb", "follow", "0x1", "--dir", dir]).refused().contains("no record of request 0x1")
    );

    // Where time went, over all files.
    let report = lines(cluster.run(&["addb", "report", "--dir", dir, "--json"])).remove(0);
    let count = |side: &str| {
        let all = report["requests"].as_array().unwrap();
        let found = all.iter().find(|one| one["side"] == side && one["fop"] == "component-write");
        found.map(|one| one["times"]["count"].as_u64().unwrap())
    };
    let client_writes =
        of_client.iter().filter(|l| l["fop"] == "component-write" && l["what"] == "replied").count();
    assert_eq!(count("client"), u64::try_from(client_writes).ok());
    assert_eq!(count("server"), count("client"), "each was answered by one server");
    let phases = report["phases"].as_array().unwrap();
    assert!(phases.iter().any(|one| one["phase"] == "write" && one["fop"] == "component-write"));
    assert!(!report["slowest"].as_array().unwrap().is_empty());
    let text = cluster.run(&["addb", "report", "--dir", dir]).succeeded();
    let state = |name: &str, word: &str| {
        text.text().lines().any(|line| line.starts_with(&format!("{name}.addb: ")) && line.ends_with(word))
    };
    assert!(state("server-1", ", killed") && state("server-2", ", running"), "{}", text.text());
    assert!(state("client-0", ", ended in order"), "{}", text.text());

    // The restart keeps what the crash left; the end in order is told.
    cluster.start_again(&[]);
    let kept = dump(&cluster, &folder.join("server-1.previous.addb"));
    assert_eq!(steps(&kept, &request), at_server);
    assert_eq!(dump(&cluster, &folder.join("server-1.addb"))[0]["state"], "running");
    let _ = cluster.run(&["cluster", "stop", "--dir", dir]).succeeded();
    for name in ["server-1", "server-2", "control"] {
        let of_it = dump(&cluster, &folder.join(format!("{name}.addb")));
        assert_eq!(of_it[0]["state"], "ended in order", "{name}");
    }
}

#[test]
fn files_that_are_cut_damaged_or_something_else_are_told_so() {
    let cluster = RunningCluster::start(
        "addb-files",
        &["--device-size", "16M", "--servers", "1", "--devices-per-server", "4", "--layout", "2+1+1"],
    );
    let whole = fs::read(cluster.dir().join("addb/control.addb")).unwrap();
    let path = cluster.scratch().join("copy.addb");
    let dump = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        cluster.run(&["addb", "dump", path.to_str().unwrap()])
    };
    let untouched = dump(&whole).succeeded().text().to_owned();
    assert!(untouched.contains("register") && untouched.contains(": control on "), "{untouched}");

    // The first record: its request id stands 8 bytes in.
    let mut flipped = whole.clone();
    flipped[8192 + 64 * 2048 + 9] ^= 1;
    let said = dump(&flipped).succeeded().text().to_owned();
    assert!(said.contains(", 1 places torn or damaged"), "{said}");
    assert_eq!(said.lines().count(), untouched.lines().count() - 1);
    let said = dump(&whole[..whole.len() - 100]).succeeded().text().to_owned();
    assert!(said.contains(", 100 bytes missing at the end"), "{said}");

    let mut header = whole.clone();
    header[100] ^= 1;
    for (bytes, wanted) in [
        (&header[..], "its header is damaged"),
        (&whole[..300], "cut short"),
        (&b"[cluster]\nname = \"c\"\n"[..], "not an ADDB file"),
        (&[0; 5000][..], "has written nothing yet"),
        (&b""[..], "cut short"),
    ] {
        let said = dump(bytes);
        let refusal = said.refused();
        assert!(refusal.contains(wanted) && refusal.contains("copy.addb"), "{refusal}");
        assert_eq!(refusal.lines().count(), 1, "{refusal}");
    }
    assert!(cluster.run(&["addb", "dump"]).refused().contains("FILE"));
    assert!(cluster.run(&["addb", "follow", "nonsense", "x"]).refused().contains("is no request"));
}
