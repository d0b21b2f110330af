//! The whole cluster in one thread from one seed: control, servers and clients over a simulated net, disks and clock.
//!
//! Real code of every crate; only the three edges are simulated ([`verbs_net::SimFabric`], [`spdk_stob::SimDisk`],
//! [`runtime::clock::SimulatedClock`]). Read [`world`] for the loop, [`faults`] for what goes wrong, [`workload`] for what clients do, [`oracle`]
//! and `clovis_tests::sim_model` for what is right, [`run`] for the phases of a seed, docs/simulation.md for people.
//!
//! Without environment: the short fixed set (each seed twice, same hash), the seeded bugs, the rare states. With `CLOVIS_SIM_SEED`,
//! `CLOVIS_SIM_COUNT` or `CLOVIS_SIM_MINUTES`: those seeds; `CLOVIS_SIM_CUT`: what is left of each (`clovis_tests::sim_cut`). A seed that fails is
//! made smaller, and the command that replays the rest is printed. `CLOVIS_SIM_LOAD=1`: the load that speed is stated for. `CLOVIS_SIM_CONTROLS`: so many control
//! daemons in each.
//! `CLOVIS_SIM_BUGS=1`: only the seeded bugs (or, instead of 1, a part of a name). `CLOVIS_SIM_STORY=1`: a line for everything that happens. Speaks the result line of libtest, so
//! `./dev` sums it.
#![forbid(unsafe_code)]

mod cluster_file;
mod faults;
mod growth;
mod keys;
mod leases;
mod membership;
mod mutation;
mod node;
mod operator;
mod oracle;
mod registers;
mod replacement;
mod rest;
mod run;
mod shape;
mod sometimes;
mod workload;
mod world;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use clovis_tests::sim_cut::{Cut, Extent, minimise};
use mutation::Mutation;
use oracle::Tally;
use run::{Loaded, Script};
use sometimes::Sometimes;

/// Seeds of the short set: from 1 on.
const SHORT_SEEDS: u64 = 40;
/// Seeds, and cuts of seeds, that found a bug once: name, seed, cut, what it was (docs/simulation.md#found).
const REGRESSIONS: &str = include_str!("regressions.txt");
/// Failing seeds of one call that are made smaller: each takes up to 90 runs.
const MINIMISED_MAX: u32 = 2;
/// A long run ends after so many failing seeds.
const FAILURES_MAX: u32 = 5;
/// Threads: each runs whole seeds by itself.
const THREADS: usize = 2;

/// What one seed came to, for the summary.
struct SeedResult {
    /// How to run it again.
    script: Script,
    /// What it is called, if it is a regression.
    name: String,
    simulated: Duration,
    /// Of both runs.
    loaded: Loaded,
    tally: Tally,
    sometimes: Sometimes,
    /// What is wrong, if anything.
    failure: Option<String>,
}

/// A run that failed: in words, and what it was made of if it is known.
struct Found {
    text: String,
    extent: Option<Extent>,
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
    let cut: Cut = match std::env::var("CLOVIS_SIM_CUT").unwrap_or_default().parse() {
        Ok(cut) => cut,
        Err(error) => panic!("CLOVIS_SIM_CUT: {error}"),
    };
    let controls = number("CLOVIS_SIM_CONTROLS").map(|controls| match controls {
        1 | 3 | 5 => usize::try_from(controls).expect("few"),
        _ => panic!("CLOVIS_SIM_CONTROLS is 1, 3 or 5, and not {controls}"),
    });
    let is_load = std::env::var_os("CLOVIS_SIM_LOAD").is_some();
    let whole = Script { cut, is_load, controls, ..Script::default() };
    let (passed, failed) = if std::env::var_os("CLOVIS_SIM_BUGS").is_some() {
        find_bugs()
    } else if seed.is_none()
        && count.is_none()
        && minutes.is_none()
        && !whole.is_load
        && whole.controls.is_none()
        && whole.cut == Cut::default()
    {
        short_set()
    } else {
        chosen(&whole, seed, count, minutes)
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
fn chosen(whole: &Script, seed: Option<u64>, count: Option<u64>, minutes: Option<u64>) -> (u64, u64) {
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
        let result = twice(Script { seed, ..whole.clone() }, String::new());
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
    let fixed = (1..=SHORT_SEEDS).map(|seed| (Script { seed, ..Script::default() }, String::new()));
    let seeds = Mutex::new(fixed.chain(regressions()).collect::<VecDeque<_>>());
    let results = on_threads(|| {
        let (script, name) = seeds.lock().expect("no thread panics with the lock").pop_front()?;
        let result = twice(script, name);
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

/// The named regressions.
fn regressions() -> Vec<(Script, String)> {
    let lines = REGRESSIONS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut parts = line.split('|').map(str::trim);
            let mut next =
                || parts.next().unwrap_or_else(|| panic!("regressions.txt: a line lacks a part: {line}"));
            let (name, seed, cut) = (next(), next(), next());
            // SEED, or SEED/CONTROLS.
            let (seed, controls) = match seed.split_once('/') {
                Some((seed, controls)) => (seed, controls.parse().ok()),
                None => (seed, None),
            };
            let seed = seed.parse().unwrap_or_else(|_| panic!("regressions.txt: {seed:?} is no seed"));
            let cut = cut.parse().unwrap_or_else(|error| panic!("regressions.txt: {error}"));
            (Script { seed, cut, controls, ..Script::default() }, name.to_owned())
        })
        .collect()
}

/// Every seeded bug has to be found.
fn find_bugs() -> (u64, u64) {
    let (mut passed, mut failed) = (0, 0);
    let candidates: &[_] =
        if std::env::var_os("CLOVIS_SIM_BUGS").is_some() { Mutation::CANDIDATES } else { &[] };
    // With a name, only those whose name has it.
    let named = std::env::var("CLOVIS_SIM_BUGS").ok().filter(|name| name != "1").unwrap_or_default();
    let all = Mutation::ALL.iter().chain(candidates).copied();
    let wanted = all.filter(|(mutation, _)| format!("{mutation:?}").contains(&named));
    let bugs = Mutex::new(wanted.collect::<VecDeque<_>>());
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
    let is_loud = std::env::var_os("CLOVIS_SIM_STORY").is_some();
    let script = |seed| Script { seed, mutation: Some(mutation), is_loud, ..Script::default() };
    (1..=within).find_map(|seed| once(&script(seed)).err().map(|found| (seed, found.text)))
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

/// Runs a script; a panic is a failure like any other.
fn once(script: &Script) -> Result<run::Report, Found> {
    match catch_unwind(AssertUnwindSafe(|| run::run(script))) {
        Ok(Ok(report)) => Ok(report),
        Ok(Err(failure)) => {
            let mut text = format!(
                "{}\n  after {:?}; the last errors of operations:",
                failure.text, failure.report.simulated
            );
            for error in &failure.last_errors {
                text.push_str(&format!("\n    {error}"));
            }
            Err(Found { text, extent: Some(failure.extent) })
        }
        Err(payload) => {
            let text = payload
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_else(|| "no message".to_owned());
            Err(Found { text: format!("panic: {text}"), extent: None })
        }
    }
}

/// Runs a script twice: both have to come to the same hash.
fn twice(script: Script, name: String) -> SeedResult {
    let script = Script { is_loud: std::env::var_os("CLOVIS_SIM_STORY").is_some(), ..script };
    let failed = |found: Found| {
        let text = format!(
            "{} failed: {}\n  replay it: {}{}",
            title_of(&script, &name),
            found.text,
            command_of(&script),
            smaller(&script, found.extent)
        );
        SeedResult {
            script: script.clone(),
            name: name.clone(),
            simulated: Duration::ZERO,
            loaded: Loaded::default(),
            tally: Tally::default(),
            sometimes: Sometimes::default(),
            failure: Some(text),
        }
    };
    let differs = |text: String| failed(Found { text, extent: None });
    let first = match once(&script) {
        Ok(report) => report,
        Err(found) => return failed(found),
    };
    match once(&script) {
        Ok(second) if second.hash == first.hash => {
            let mut loaded = first.loaded;
            loaded.add(second.loaded);
            SeedResult {
                script: script.clone(),
                name: name.clone(),
                simulated: first.simulated + second.simulated,
                loaded,
                tally: first.tally,
                sometimes: first.sometimes,
                failure: None,
            }
        }
        Ok(second) => {
            differs(format!("two runs differ: trace hashes {:#x} and {:#x}", first.hash, second.hash))
        }
        Err(found) => {
            differs(format!("the second run differs from the first, which was right: {}", found.text))
        }
    }
}

/// Makes a failing script smaller, if it is one of the first few; the rest of its message.
fn smaller(script: &Script, extent: Option<Extent>) -> String {
    static MINIMISED: AtomicU32 = AtomicU32::new(0);
    let Some(extent) = extent.filter(|_| script.cut == Cut::default() && !script.is_load) else {
        return String::new();
    };
    if MINIMISED.fetch_add(1, Ordering::Relaxed) >= MINIMISED_MAX {
        return String::new();
    }
    let quiet = Script { is_loud: false, ..script.clone() };
    let mut last = String::new();
    let (cut, runs) = minimise(&extent, |cut| match once(&Script { cut: cut.clone(), ..quiet.clone() }) {
        Ok(_) => false,
        Err(found) => {
            last = found.text;
            true
        }
    });
    if cut == Cut::default() {
        return format!("\n  nothing of it can be left out ({runs} runs)");
    }
    let command = command_of(&Script { cut, ..quiet });
    format!("\n  made smaller in {runs} runs: {command}\n    {}", first_line(&last))
}

/// The command that runs a script again.
fn command_of(script: &Script) -> String {
    let mut command = format!("./dev sim --seed {}", script.seed);
    if script.cut != Cut::default() {
        command.push_str(&format!(" --cut {}", script.cut));
    }
    if script.is_load {
        command.push_str(" --load");
    }
    if let Some(controls) = script.controls {
        command.push_str(&format!(" --controls {controls}"));
    }
    command
}

fn title_of(script: &Script, name: &str) -> String {
    match name {
        "" => format!("seed {}", script.seed),
        name => format!("seed {} ({name})", script.seed),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn line_of(result: &SeedResult) -> String {
    let SeedResult { script, name, tally, failure, .. } = result;
    let title = title_of(script, name);
    match failure {
        Some(_) => format!("test {title} ... FAILED"),
        None => format!(
            "test {title} ... ok ({} operations, {} failed, {} abandoned, {} KiB compared, {} by exception)",
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
    let (mut operations, mut simulated, mut loaded) = (0, Duration::ZERO, Loaded::default());
    for result in results {
        all.merge(&result.sometimes);
        loaded.add(result.loaded);
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
    let (applied, thread_seconds) =
        (loaded.simulated.as_secs_f64().max(0.001), loaded.real.as_secs_f64().max(0.001));
    println!(
        "while clients work and faults happen: {applied:.0} of these simulated seconds, {:.0} simulated seconds per second on {THREADS} threads, \
         {:.0} operations in a simulated second, {:.0} per second",
        applied / thread_seconds * THREADS as f64,
        loaded.operations as f64 / applied,
        loaded.operations as f64 / thread_seconds * THREADS as f64,
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
