//! The whole cluster in one thread from one seed: control, servers and clients over a simulated net, disks and clock.
//!
//! Real code of every crate; only the three edges are simulated ([`verbs_net::SimFabric`], [`spdk_stob::SimDisk`],
//! [`runtime::clock::SimulatedClock`]). Read [`world`] for the loop, [`faults`] for what goes wrong, [`workload`] for what clients do, [`oracle`]
//! and `clovis_tests::sim_model` for what is right, [`run`] for the phases of a seed, docs/simulation.md for people.
//!
//! Without environment: the short fixed set (each seed twice, same hash), the seeded bugs, the rare states. With `CLOVIS_SIM_SEED`,
//! `CLOVIS_SIM_COUNT` or `CLOVIS_SIM_MINUTES`: those seeds. `CLOVIS_SIM_BUGS=1`: only the seeded bugs. `CLOVIS_SIM_STORY=1`: a line for
//! everything that happens. Speaks the result line of libtest, so `./dev` sums it.
#![forbid(unsafe_code)]

mod faults;
mod mutation;
mod node;
mod oracle;
mod run;
mod sometimes;
mod workload;
mod world;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use mutation::Mutation;
use oracle::Tally;
use run::Failure;
use sometimes::Sometimes;

/// Seeds of the short set: from 1 on.
const SHORT_SEEDS: u64 = 40;
/// Seeds that found a bug once (docs/simulation.md#found).
const REGRESSIONS: [u64; 5] = [93, 169, 341, 598, 680];
/// A long run ends after so many failing seeds.
const FAILURES_MAX: u32 = 5;
/// Threads: each runs whole seeds by itself.
const THREADS: usize = 2;

/// What one seed came to, for the summary.
struct SeedResult {
    seed: u64,
    simulated: Duration,
    tally: Tally,
    sometimes: Sometimes,
    /// What is wrong, if anything.
    failure: Option<String>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        println!("sim: test\n\n1 test, 0 benchmarks");
        return ExitCode::SUCCESS;
    }
    let number = |name: &str| -> Option<u64> {
        let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
        let parsed = match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        };
        Some(parsed.unwrap_or_else(|| panic!("{name} is a number, decimal or 0x hex, and not {text:?}")))
    };
    let (seed, count, minutes) =
        (number("CLOVIS_SIM_SEED"), number("CLOVIS_SIM_COUNT"), number("CLOVIS_SIM_MINUTES"));
    let (passed, failed) = if std::env::var_os("CLOVIS_SIM_BUGS").is_some() {
        find_bugs()
    } else if seed.is_none() && count.is_none() && minutes.is_none() {
        short_set()
    } else {
        chosen(seed, count, minutes)
    };
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Real time, for the summary only: no decision of a run depends on it, but for how many runs there are.
fn clock() -> runtime::clock::MonotonicClock {
    runtime::clock::MonotonicClock::start()
}

/// The seeds that the environment asks for.
fn chosen(seed: Option<u64>, count: Option<u64>, minutes: Option<u64>) -> (u64, u64) {
    let first = seed.unwrap_or_else(|| {
        let now =
            std::time::SystemTime::UNIX_EPOCH.elapsed().map(|elapsed| elapsed.as_nanos()).unwrap_or_default();
        u64::try_from(now % (1 << 48)).unwrap_or(1)
    });
    let count = match (count, minutes) {
        (Some(count), _) => count,
        (None, Some(_)) => u64::MAX,
        (None, None) => 1,
    };
    println!("seeds from {first}");
    let began = clock();
    let limit = minutes.map(|minutes| Duration::from_secs(minutes * 60));
    let next = Mutex::new(first);
    let is_over = |seed: u64, failed: u32| {
        failed >= FAILURES_MAX
            || seed.wrapping_sub(first) >= count
            || limit.is_some_and(|limit| began.now().since(base::Instant::ZERO) >= limit)
    };
    let failed = Mutex::new(0);
    let results = on_threads(|| {
        let mut next = next.lock().expect("no thread panics with the lock");
        if is_over(*next, *failed.lock().expect("no thread panics with the lock")) {
            return None;
        }
        let seed = *next;
        *next = next.wrapping_add(1);
        drop(next);
        let result = twice(seed);
        println!("{}", line_of(&result));
        if let Some(failure) = &result.failure {
            *failed.lock().expect("no thread panics with the lock") += 1;
            println!("{failure}");
        }
        Some(result)
    });
    summary(&results, began.now().since(base::Instant::ZERO))
}

/// The fixed set of `./dev test`.
fn short_set() -> (u64, u64) {
    let began = clock();
    let seeds = Mutex::new((1..=SHORT_SEEDS).chain(REGRESSIONS).collect::<VecDeque<u64>>());
    let results = on_threads(|| {
        let seed = seeds.lock().expect("no thread panics with the lock").pop_front()?;
        let result = twice(seed);
        println!("{}", line_of(&result));
        Some(result)
    });
    let (mut passed, mut failed) = summary(&results, began.now().since(base::Instant::ZERO));
    let mut all = Sometimes::default();
    results.iter().for_each(|result| all.merge(&result.sometimes));
    let missing = all.missing();
    if missing.is_empty() {
        passed += 1;
    } else {
        failed += 1;
        println!("the short set never reached:\n  {}", missing.join("\n  "));
    }
    let (bugs_passed, bugs_failed) = find_bugs();
    println!("short set: {:.1} s", began.now().since(base::Instant::ZERO).as_secs_f64());
    (passed + bugs_passed, failed + bugs_failed)
}

/// Every seeded bug has to be found.
fn find_bugs() -> (u64, u64) {
    let (mut passed, mut failed) = (0, 0);
    let candidates: &[_] =
        if std::env::var_os("CLOVIS_SIM_BUGS").is_some() { Mutation::CANDIDATES } else { &[] };
    let bugs = Mutex::new(Mutation::ALL.iter().chain(candidates).copied().collect::<VecDeque<_>>());
    let found = on_threads(|| {
        let (mutation, within) = bugs.lock().expect("no thread panics with the lock").pop_front()?;
        let found = find(mutation, within);
        match &found {
            Some((seed, text)) => {
                println!("{mutation:?}: found with seed {seed} of {within}: {}", first_line(text))
            }
            None => println!("{mutation:?}: NOT found with seeds 1 to {within}"),
        }
        let is_demanded = !candidates.iter().any(|(candidate, _)| *candidate == mutation);
        Some(is_demanded.then_some(found.is_some()))
    });
    for is_found in found.into_iter().flatten() {
        if is_found {
            passed += 1;
        } else {
            failed += 1;
        }
    }
    (passed, failed)
}

/// The first seed, from 1 to `within`, that shows a seeded bug.
fn find(mutation: Mutation, within: u64) -> Option<(u64, String)> {
    (1..=within).find_map(|seed| once(seed, Some(mutation)).err().map(|text| (seed, text)))
}

/// Calls `step` on [`THREADS`] threads until it gives nothing more.
fn on_threads<T: Send>(step: impl Fn() -> Option<T> + Sync) -> Vec<T> {
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(result) = step() {
                    results.lock().expect("no thread panics with the lock").push(result);
                }
            });
        }
    });
    results.into_inner().expect("no thread panicked")
}

/// Runs a seed; a panic is a failure like any other.
fn once(seed: u64, mutation: Option<Mutation>) -> Result<run::Report, String> {
    let is_loud = std::env::var_os("CLOVIS_SIM_STORY").is_some();
    match catch_unwind(AssertUnwindSafe(|| run::run(seed, mutation, is_loud))) {
        Ok(Ok(report)) => Ok(report),
        Ok(Err(failure)) => Err(text_of(&failure)),
        Err(payload) => {
            let text = payload
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_else(|| "no message".to_owned());
            Err(format!("panic: {text}"))
        }
    }
}

fn text_of(failure: &Failure) -> String {
    let Failure { text, last_errors, report } = failure;
    let mut all = format!("{text}\n  after {:?}; the last errors of operations:", report.simulated);
    for error in last_errors {
        all.push_str(&format!("\n    {error}"));
    }
    all
}

/// Runs a seed twice: both have to come to the same hash.
fn twice(seed: u64) -> SeedResult {
    let failed = |text: String| SeedResult {
        seed,
        simulated: Duration::ZERO,
        tally: Tally::default(),
        sometimes: Sometimes::default(),
        failure: Some(format!("seed {seed} failed: {text}\n  replay it alone: ./dev sim --seed {seed}")),
    };
    let first = match once(seed, None) {
        Ok(report) => report,
        Err(text) => return failed(text),
    };
    match once(seed, None) {
        Ok(second) if second.hash == first.hash => SeedResult {
            seed,
            simulated: first.simulated + second.simulated,
            tally: first.tally,
            sometimes: first.sometimes,
            failure: None,
        },
        Ok(second) => {
            failed(format!("two runs differ: trace hashes {:#x} and {:#x}", first.hash, second.hash))
        }
        Err(text) => failed(format!("the second run differs from the first, which was right: {text}")),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn line_of(result: &SeedResult) -> String {
    let SeedResult { seed, tally, failure, .. } = result;
    match failure {
        Some(_) => format!("test seed {seed} ... FAILED"),
        None => format!(
            "test seed {seed} ... ok ({} operations, {} failed, {} abandoned, {} KiB compared, {} by exception)",
            tally.done,
            tally.failed,
            tally.abandoned,
            tally.bytes_checked / 1024,
            tally.by_exception
        ),
    }
}

/// Prints the figures; passed and failed seeds.
fn summary(results: &[SeedResult], real: Duration) -> (u64, u64) {
    let mut all = Sometimes::default();
    let (mut operations, mut simulated) = (0, Duration::ZERO);
    for result in results {
        all.merge(&result.sometimes);
        operations += 2 * (result.tally.done + result.tally.failed + result.tally.abandoned);
        simulated += result.simulated;
    }
    println!("\nrare states, over all seeds:");
    all.lines().for_each(|line| println!("{line}"));
    let seconds = real.as_secs_f64().max(0.001);
    println!(
        "{} seeds, each run twice: {:.0} simulated seconds in {:.1} s on {THREADS} threads: {:.0} simulated seconds per second, \
         {operations} operations, {:.0} per second",
        results.len(),
        simulated.as_secs_f64(),
        seconds,
        simulated.as_secs_f64() / seconds,
        operations as f64 / seconds,
    );
    let mut failed = 0;
    for result in results {
        if let Some(failure) = &result.failure {
            failed += 1;
            println!("{failure}");
        }
    }
    (results.len() as u64 - failed, failed)
}
