//! What ADDB and the reply cache cost: the instructions of a null request over `lo`, with ADDB and without, and those of a look-up that finds
//! nothing (which makes the entry), counted by callgrind.
//!
//! A null request is a ping without payload, asked and answered in one thread, one after the other. The test starts its own program under
//! callgrind with two counts of requests, so that what is not a request falls out. The figures for users come from
//! `cargo test --release -p rpc --test addb_cost -- --nocapture`; docs/addb.md#cost.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod null_request;

use std::process::Command;

use null_request::ask;

/// The part of a null request's instructions that each may have, in thousandths; the development profile inlines little.
const COST_MAX: u64 = if cfg!(debug_assertions) { 30 } else { 20 };
/// `REQUESTS RECORDS`, for the program under callgrind.
const ORDER: &str = "CLOVIS_NULL_REQUESTS";

#[test]
fn null_requests_are_recorded_or_not() {
    assert_eq!((ask(20, 1, 64).0, ask(20, 1, 0).0), (20, 0));
}

#[test]
#[ignore = "the other test runs it under callgrind"]
fn ordered_null_requests() {
    let order = std::env::var(ORDER).expect("the test that starts this says how many");
    let (requests, records) = order.split_once(' ').unwrap();
    ask(requests.parse().unwrap(), 1, records.parse().unwrap());
}

/// What a miss of the reply cache is.
const MISS: [&str; 2] = ["*ReplyCache*::decide*", "*ReplyCache*::begin*"];

/// Instructions of a run, within some functions and what they call, or in all.
fn instructions(requests: u64, records: usize, within: &[&str]) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(within.iter().map(|function| format!("--toggle-collect={function}")))
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "ordered_null_requests"])
        .env(ORDER, format!("{requests} {records}"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stdout));
    let collected = said.lines().find_map(|line| line.split("Collected : ").nth(1));
    collected.unwrap_or_else(|| panic!("callgrind counted nothing: {said}")).trim().parse().unwrap()
}

/// Instructions of one request.
fn per_request(records: usize, within: &[&str]) -> u64 {
    let (few, many) = (300, 2300);
    (instructions(many, records, within) - instructions(few, records, within)) / (many - few)
}

#[test]
fn addb_and_the_reply_cache_cost_less_than_their_parts_of_a_null_request() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        eprintln!("skipped: valgrind is not installed (apt-get install valgrind)");
        return;
    }
    let records = rpc::limits::ADDB_RECORDS;
    let (without, with) = (per_request(0, &[]), per_request(records, &[]));
    let cost = with.saturating_sub(without);
    println!(
        "a null request over lo: {with} instructions, {cost} of them ADDB's ({}.{} %)",
        cost * 100 / with,
        cost * 1000 / with % 10
    );
    assert!(with > without, "{with} instructions with ADDB, {without} without: nothing was recorded");
    assert!(cost * 1000 < with * COST_MAX, "ADDB takes {cost} of {with} instructions");
    let miss = per_request(records, &MISS);
    println!(
        "a miss of the reply cache: {miss} instructions ({}.{} %)",
        miss * 100 / with,
        miss * 1000 / with % 10
    );
    assert!(miss > 0, "nothing was counted: do the functions still have these names?");
    assert!(miss * 1000 < with * COST_MAX, "a miss takes {miss} of {with} instructions");
}
