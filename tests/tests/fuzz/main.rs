//! Decoders against bytes that nobody wrote: everything that comes from a peer, a disk or a user as bytes, in one harness.
//!
//! In `cargo test` each target gets a short run from a fixed seed; `./dev fuzz [--minutes N] [TARGET]` goes on with new seeds until
//! its time is over. Bytes that make a decoder panic, or disagree with itself, are printed as hex with the seed.
//!
//! The engine is [`engine`]: mutation of a pool that grows with each new kind of verdict; checksums are mended, so that damage gets
//! behind them. It needs no instrumentation, so it runs on the stable compiler that everything else is built with.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod engine;
mod targets;

use std::time::Duration;

use engine::{Limit, run};

/// Executions of each target in `cargo test`: a second or two for all of them.
const SHORT_RUNS: u64 = 40_000;

/// As the environment says: minutes for each target, or the short run.
fn limit() -> Limit {
    match std::env::var("CLOVIS_FUZZ_MINUTES").ok().and_then(|text| text.parse::<u64>().ok()) {
        Some(minutes) => Limit::Time(Duration::from_secs(60 * minutes)),
        None => Limit::Runs(SHORT_RUNS),
    }
}

fn fuzz(name: &str) {
    let wanted = std::env::var("CLOVIS_FUZZ_TARGET").ok();
    if wanted.is_some_and(|wanted| wanted != name) {
        return;
    }
    let target = targets::all().into_iter().find(|target| target.name == name).unwrap();
    let report = run(&target, limit());
    println!(
        "{name}: {} runs, {} kinds of verdicts, {} bytes kept",
        report.runs, report.verdicts, report.pool
    );
    // A target whose every input ends the same way is not fuzzed at all.
    assert!(report.verdicts >= target.verdicts_least, "{name}: only {} kinds of verdicts", report.verdicts);
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        $(#[test] fn $name() { fuzz(stringify!($name)); })*

        #[test]
        fn every_target_is_run() {
            let named = [$(stringify!($name)),*];
            let all: Vec<&str> = targets::all().iter().map(|target| target.name).collect();
            assert_eq!(all, named);
        }
    };
}

targets!(
    net_frame,
    net_hello,
    net_tls_hello,
    net_identity,
    net_extension,
    net_push_seals,
    net_descriptor,
    net_verbs,
    net_fault_rule,
    net_endpoint,
    rpc_item,
    rpc_fop,
    rpc_reply,
    rpc_slot_record,
    addb_file,
    conf_file,
    conf_whole,
    conf_sync,
    stob_superblock,
    stob_record,
    stob_change,
);
