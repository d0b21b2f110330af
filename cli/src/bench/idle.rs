//! What a cluster of processes costs while nobody asks anything of it: CPU time of all its daemons, from `/proc`.
//!
//! The daemons are this very binary, started and stopped by `clovis cluster` in a temporary folder. Heartbeats and leases
//! go on; that is what is measured. Other load on the machine does not enter: each process's own time counts.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use runtime::MonotonicClock;

use super::machine::ProcessTimes;
use super::peer::{Scratch, output};
use super::report::Figure;
use super::{Plan, announce};
use crate::connection::Station;
use crate::failure::Failure;

/// The issue's limit, in percent of one core, for all processes together.
const UNDER_PERCENT: f64 = 1.0;
const SERVERS: &str = "4";
/// Rest before a measurement: start and load have ended, timers of seconds have fired.
const SETTLE: Duration = Duration::from_secs(5);
/// How long CPU time is watched; figures of `/proc` come by 10 ms, so this resolves 0.05 %.
const WATCH: Duration = Duration::from_secs(20);

/// A cluster that is stopped again, whatever happens.
struct Running {
    scratch: Scratch,
}

impl Running {
    fn clovis(&self, arguments: &[&str]) -> Result<String, Failure> {
        clovis(self.scratch.path(), arguments)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(failure) = self.clovis(&["cluster", "stop", "--dir", "cluster"]) {
            eprintln!("clovis: stopping the idle cluster: {failure}");
        }
    }
}

fn clovis(folder: &Path, arguments: &[&str]) -> Result<String, Failure> {
    let binary = std::env::current_exe().map_err(Failure::while_doing("finding this program's own file"))?;
    let mut command = Command::new(binary);
    output(command.args(arguments).current_dir(folder).env_remove("CLOVIS_CONFIG"))
}

/// Measures after the start, and after some load.
pub fn run(plan: &Plan) -> Result<Vec<Figure>, Failure> {
    announce("an idle cluster of 4 servers");
    let scratch = Scratch::make(&std::env::temp_dir())?;
    let cluster = Running { scratch };
    cluster.clovis(&[
        "cluster",
        "start",
        "--dir",
        "cluster",
        "--servers",
        SERVERS,
        "--device-size",
        "128M",
    ])?;
    let process_ids = process_ids(&cluster.clovis(&["cluster", "status", "--dir", "cluster", "--json"])?)
        .ok_or_else(|| Failure::new("cluster status --json names no processes"))?;
    let mut station = Station::new("bench-idle")?;
    let (settle, watch) = if plan.is_quick { (SETTLE / 2, WATCH / 4) } else { (SETTLE, WATCH) };
    let mut figure = |what: &str| -> Result<Figure, Failure> {
        station.pause(settle)?;
        let percent = percent_of_a_core(&mut station, &process_ids, watch)?;
        Ok(Figure {
            what: format!("idle, {SERVERS} servers and control, {what}"),
            value: percent,
            unit: "% of a core",
            under: Some(UNDER_PERCENT),
            counts: !plan.is_quick,
            note: format!("{} processes over {} s", process_ids.len(), watch.as_secs()),
        })
    };
    let fresh = figure("after its start")?;
    let file = cluster.scratch.path().join("file");
    let mut bytes = vec![0; 64 << 20];
    fastrand::Rng::with_seed(3).fill(&mut bytes);
    std::fs::write(&file, bytes).map_err(Failure::while_doing(format!("writing {}", file.display())))?;
    let config = ["--config", "cluster/clovis.toml"];
    cluster.clovis(&[&["cp", "file", "12:34", "--quiet"][..], &config].concat())?;
    cluster.clovis(&[&["cat", "12:34", "--output", "copy"][..], &config].concat())?;
    let used = figure("after 64 MiB in and out")?;
    Ok(vec![fresh, used])
}

/// Every `"pid"` in the answer of `cluster status --json`: control's and the servers'.
fn process_ids(status: &str) -> Option<Vec<u32>> {
    let status: serde_json::Value = serde_json::from_str(status).ok()?;
    let control = status.get("control")?;
    let servers = status.get("processes")?.as_array()?;
    std::iter::once(control).chain(servers).map(|one| u32::try_from(one.get("pid")?.as_u64()?).ok()).collect()
}

fn percent_of_a_core(station: &mut Station, process_ids: &[u32], watch: Duration) -> Result<f64, Failure> {
    let sum = || -> Result<Duration, Failure> {
        let one = |id: &u32| {
            let times = ProcessTimes::of(*id);
            times
                .map(|times| times.own)
                .ok_or_else(|| Failure::new(format!("process {id} of the idle cluster has ended")))
        };
        process_ids.iter().map(one).sum()
    };
    let clock = MonotonicClock::start();
    let (before, began) = (sum()?, clock.now());
    station.pause(watch)?;
    let used = sum()?.saturating_sub(before);
    Ok(used.as_secs_f64() / (clock.now() - began).as_secs_f64() * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pids_are_those_of_control_and_servers() {
        let status = r#"{ "control": { "pid": 7 }, "processes": [{ "pid": 8 }, { "pid": 9 }] }"#;
        assert_eq!(process_ids(status), Some(vec![7, 8, 9]));
        let dead = r#"{ "control": { "pid": 7 }, "processes": [{ "pid": null }] }"#;
        assert_eq!(process_ids(dead), None);
    }

    #[test]
    fn a_sleeping_process_uses_nothing_and_a_dead_one_is_noticed() {
        let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
        let mut station = Station::new("test").unwrap();
        let percent = percent_of_a_core(&mut station, &[sleeper.id()], Duration::from_millis(200));
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(percent.unwrap() < 50.0);
        assert!(percent_of_a_core(&mut station, &[sleeper.id()], Duration::from_millis(1)).is_err());
    }
}
