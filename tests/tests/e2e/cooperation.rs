//! Locks that processes hold cooperatively: asked for, refused, requests run by their holders, a holder that is killed; who watches hears of it.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use clovis_tests::cluster::RunningCluster;
use clovis_tests::processes::Process;
use clovis_tests::wait;

const LIMIT: Duration = Duration::from_secs(60);

/// A holder of the lock that others can ask.
fn holder(cluster: &RunningCluster, arguments: &[&str]) -> Process {
    let take = ["lock", "take", "image", "--object", "1:7", "--cooperative"];
    cluster.start_saying(&[&take, arguments].concat(), "until somebody asks for it", LIMIT)
}

fn says(process: &mut Process, words: &str) {
    wait::until(words, LIMIT, || process.said().contains(words).then_some(()))
        .unwrap_or_else(|error| panic!("{error}\n{}", process.said()));
}

#[test]
fn a_lock_passes_on_when_it_is_asked_for_and_requests_run_at_its_holder() {
    let cluster = RunningCluster::start(
        "cooperation",
        &["--device-size", "16M", "--servers", "1", "--layout", "1+1+0"],
    );
    let on_lock = ["--object", "1:7"];
    let ask = |words: &[&str]| cluster.run(&[&["lock", "ask", "image"], words, &on_lock].concat());
    assert!(ask(&["anything"]).refused().contains("nobody holds image of object 1:7: take it"));
    let mut news = cluster.start_saying(
        &["watch", "1:7", "--lock", "image"],
        "watching lock image of object 1:7",
        LIMIT,
    );
    let changes =
        cluster.start_saying(&["watch", "--configuration", "--json"], "watching the configuration", LIMIT);

    // Each request runs once, under the ticket of the holder, and its answer comes back.
    let log = cluster.scratch().join("log");
    let script =
        format!("line=$(cat); echo \"$line\" >>{}; echo \"$CLOVIS_TICKET did $line\"", log.display());
    let mut first = holder(&cluster, &["--owner", "a1", "--why", "nightly", "--run", &script]);
    let ticket = format!("{:032x}:1", 0xa1);
    assert_eq!(ask(&["one"]).succeeded().text(), format!("{ticket} did one\n"));
    let listed = cluster.run(&["lock", "list", "--json"]).succeeded();
    assert!(listed.text().contains("\"cooperative\":true"), "{}", listed.text());

    // Control dies without a word, and everybody finds its next start.
    cluster.kill_hard("control");
    cluster.start_again(&[]);
    assert_eq!(ask(&["two", "--timeout", "20"]).succeeded().text(), format!("{ticket} did two\n"));
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "one\ntwo\n");
    says(&mut news, "gap: ");

    // Somebody else wants it, and gets it.
    let taken = cluster.run(&["lock", "take", "image", "--object", "1:7", "--owner", "b2", "--why", "mine"]);
    assert_eq!(taken.succeeded().text(), format!("{:032x}:2\n", 0xb2));
    assert!(first.wait(LIMIT).unwrap().success(), "{}", first.said());
    assert!(first.said().contains("(exclusive): yes  mine"), "{}", first.said());
    says(&mut news, &format!("taken by {:032x}:2 (exclusive)", 0xb2));
    assert!(news.said().contains(&format!("released by {ticket}")), "{}", news.said());
    // It is kept, but by nobody who can be asked.
    assert!(ask(&["three"]).refused().contains("takes no requests"));
    let _ = cluster.run(&["lock", "release", "image", "--object", "1:7", "--owner", "b2"]).succeeded();

    // One that says no is broken, and hears of it.
    let mut second = holder(&cluster, &["--owner", "c3", "--refuse", "two hours more"]);
    let mut waiting = cluster.start_saying(
        &["lock", "take", "image", "--object", "1:7", "--owner", "d4"],
        "keeps it: two hours more",
        LIMIT,
    );
    assert!(ask(&["four"]).refused().contains("this holder runs no requests"));
    let broken = ["lock", "break", "image", "--object", "1:7", "--owner", "c3", "--why", "too long"];
    let _ = cluster.run(&broken).succeeded();
    assert!(waiting.wait(LIMIT).unwrap().success(), "{}", waiting.said());
    assert!(!second.wait(LIMIT).unwrap().success());
    assert!(second.said().contains("is lost: ticket"), "{}", second.said());
    says(&mut news, "  too long");
    let _ = cluster.run(&["lock", "release", "image", "--object", "1:7", "--owner", "d4"]).succeeded();

    // One that is killed: nobody answers, and its lease decides.
    let mut third = holder(&cluster, &["--owner", "e5", "--on-death", "fence"]);
    let watches = cluster.run(&["watch", "--list"]).succeeded();
    assert!(watches.text().contains("requests to a lock's holder"), "{}", watches.text());
    let one = cluster.run(&["watch", "--list", "--configuration", "--json"]).succeeded();
    assert_eq!(one.text().matches("\"watcher\":").count(), 1, "{}", one.text());
    third.kill();
    assert!(ask(&["five", "--timeout", "1"]).refused().contains("may have been run"));
    let last = cluster.run(&["lock", "take", "image", "--object", "1:7", "--owner", "f6"]);
    assert_eq!(last.succeeded().text(), format!("{:032x}:6\n", 0xf6));

    // A change of the configuration is told to who watches it.
    let before = changes.said().matches("\"version\":").count();
    let _ = cluster.run(&["device", "detach", "0"]).succeeded();
    wait::until("the next version", LIMIT, || {
        (changes.said().matches("\"version\":").count() > before).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", changes.said()));
    assert!(cluster.run(&["watch"]).refused().contains("required"));
}
