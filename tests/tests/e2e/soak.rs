//! Daemons of a cluster of real processes are killed, ended and stopped for a while, one after the other, under clients that go on: nothing that was
//! acknowledged is lost or changed, and no command fails, as each fault is over before the next and the cluster survives one.
//!
//! The simulation is the judge of faults (docs/simulation.md); this is for what it has not: processes, sockets, their identities. A short run is among the tests
//! that always run; `./dev soak` goes on for minutes.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Arc;
use std::time::Duration;

use base::Instant;
use clovis_tests::binary;
use clovis_tests::cluster::RunningCluster;
use runtime::{MonotonicClock, identity};

use crate::workload::{Workload, until_online};

const DEVICES: usize = 4;
const LAYOUT: [&str; 8] =
    ["--servers", "4", "--devices-per-server", "1", "--layout", "2+1+1", "--device-size", "64M"];

/// Longer than a lease of 3 s: a daemon that comes back finds that others have gone on.
const LONG_PAUSE_MS: std::ops::Range<u64> = 3_500..6_000;
const SHORT_PAUSE_MS: std::ops::Range<u64> = 50..1_500;

fn disturb(cluster: &RunningCluster, random: &mut fastrand::Rng, daemons: &[String]) -> String {
    let daemon = random.choice(daemons).unwrap();
    let pause = |random: &mut fastrand::Rng, of| {
        let length = Duration::from_millis(random.u64(of));
        cluster.pause(daemon, length);
        format!("{daemon} stopped for {:.1} s", length.as_secs_f64())
    };
    match random.u8(..8) {
        0..3 => {
            cluster.kill_hard(daemon);
            cluster.start_again(&[]);
            format!("{daemon} killed")
        }
        3..5 => {
            cluster.end(daemon);
            cluster.start_again(&[]);
            format!("{daemon} ended")
        }
        5..7 => pause(random, SHORT_PAUSE_MS),
        _ => pause(random, LONG_PAUSE_MS),
    }
}

fn soak(name: &str, seed: u64, controls: &str, mut goes_on: impl FnMut(u64) -> bool) {
    println!("soak: seed {seed}, {controls} control daemons");
    let cluster = Arc::new(RunningCluster::start(name, &[&LAYOUT[..], &["--control", controls]].concat()));
    let (binary, daemons) = (binary::clovis(), cluster.daemons());
    let mut random = fastrand::Rng::with_seed(seed);
    let workload = Workload::start(&cluster, binary);
    workload.go_on();
    for fault in 0.. {
        if !goes_on(fault) {
            break;
        }
        let what = disturb(&cluster, &mut random, &daemons);
        println!("soak: {what}");
        until_online(&cluster, binary, DEVICES);
        workload.go_on();
    }
    println!("soak: {}", workload.end(&[binary]));
}

#[test]
fn daemons_that_are_killed_ended_or_stopped_lose_nothing() {
    soak("soak", 5, "1", |fault| fault < 12);
}

#[test]
#[ignore = "takes minutes: ./dev soak"]
fn for_minutes() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let minutes = number("CLOVIS_SOAK_MINUTES").unwrap_or(5);
    let seed = number("CLOVIS_SOAK_SEED").unwrap_or_else(|| identity::unique_u64().unwrap());
    let controls = number("CLOVIS_SOAK_CONTROLS").unwrap_or(1).to_string();
    let clock = MonotonicClock::start();
    soak("soak-long", seed, &controls, |_| {
        clock.now().since(Instant::ZERO) < Duration::from_secs(60 * minutes)
    });
}
