//! The cluster's processes: do they answer, which version are they, and, if they run on this machine from this folder, under which limits.

use std::fs;
use std::time::Duration;

use base::{Endpoint, Fid};
use fops::admin::{Ping, ProcessGet, ProcessGetReply};

use super::Patient;
use super::clock::Apart;
use super::finding::{Finding, Verdict};
use super::machine;
use crate::cluster_folder::ClusterFolder;
use crate::connection::{Station, unix_us};
use crate::daemon::{ControlSeat, server_name};

/// Questions to each process: the one that was answered fastest tells most of its clock.
const QUESTIONS: usize = 4;

/// A process of the cluster file, and what it said.
pub struct Seen {
    pub name: String,
    /// `None`: control.
    process: Option<Fid>,
    endpoint: Endpoint,
    /// If it runs on this machine, started from this folder.
    process_id: Option<u32>,
    pub answer: Result<Answer, String>,
}

/// What a process that answers said.
pub struct Answer {
    /// `None`: it answers, and does not know the question: an older version.
    pub told: Option<ProcessGetReply>,
    pub apart: Option<Apart>,
}

impl Seen {
    pub fn is_control(&self) -> bool {
        self.process.is_none()
    }
}

/// Asks control and each server.
pub fn ask_all(station: &mut Station, patient: &Patient, within: Duration) -> Vec<Seen> {
    let file = &patient.file;
    let folder = ClusterFolder::new(patient.folder()).ok();
    let servers = file.servers.iter().filter_map(|server| {
        Some((server_name(server.process), Some(server.process), *server.endpoints.first()?))
    });
    let controls = ControlSeat::all(file).into_iter().map(|seat| (seat.name, None, seat.endpoint));
    let all = controls.chain(servers);
    all.map(|(name, process, endpoint)| Seen {
        process_id: folder.as_ref().and_then(|folder| folder.running(&name)),
        answer: ask(station, patient, endpoint, within),
        name,
        process,
        endpoint,
    })
    .collect()
}

fn ask(station: &mut Station, patient: &Patient, to: Endpoint, within: Duration) -> Result<Answer, String> {
    // The first question makes the connection, and shows whether there is anybody.
    let ping = Ping::default();
    station.call_itself(&patient.file, to, &ping, within).map_err(|failure| failure.to_string())?;
    let mut answer = Answer { told: None, apart: None };
    for _ in 0..QUESTIONS {
        let left_us = unix_us();
        let Ok(told) = station.call_itself(&patient.file, to, &ProcessGet, within) else { break };
        let came_us = unix_us();
        let apart = told.unix_us.map(|there_us| Apart::of(left_us, there_us, came_us));
        if answer.apart.is_none_or(|best| apart.is_some_and(|apart| apart.error_us < best.error_us)) {
            answer.apart = apart;
        }
        answer.told = Some(told);
    }
    Ok(answer)
}

const ANSWERS_WHY: &str =
    "what a process that does not answer serves cannot be read or written, or only rebuilt";
const VERSION_WHY: &str = "processes of several versions understand each other only as docs/wire.md says, and bugs that this version mended are still in the older one";

pub fn judge(patient: &Patient, seen: &[Seen]) -> Vec<Finding> {
    let mut findings = vec![those_that_answer(seen)];
    findings.extend(seen.iter().filter_map(|one| silence(patient, one)));
    findings.extend(versions(seen));
    findings.extend(seen.iter().filter_map(replaced));
    findings.extend(limits(patient, seen));
    findings
}

fn those_that_answer(seen: &[Seen]) -> Finding {
    let count = seen.iter().filter(|one| one.answer.is_ok()).count();
    let text = format!("{count} of {} answer (control and servers)", seen.len());
    let finding = Finding::ok("processes", text, ANSWERS_WHY);
    if count == seen.len() {
        return finding;
    }
    Finding {
        verdict: Verdict::Fail,
        todo: Some("see the findings on each of the others".to_owned()),
        ..finding
    }
}

fn silence(patient: &Patient, one: &Seen) -> Option<Finding> {
    let reason = one.answer.as_ref().err()?;
    let config = patient.config.display();
    let start = match one.process {
        None => match one.name.strip_prefix("control-") {
            Some(number) => format!("`clovis control --config {config} --number {number}`"),
            None => format!("`clovis control --config {config}`"),
        },
        Some(process) => format!("`clovis server --config {config} --process {process}`"),
    };
    let (state, todo) = match one.process_id {
        Some(id) => (
            format!("; it runs here as process {id}"),
            format!(
                "look at {}: the last lines say what keeps it from serving",
                patient.folder().join("log").display()
            ),
        ),
        None => (
            String::new(),
            format!("start it on its machine: {start}, or its unit, or `clovis cluster start`"),
        ),
    };
    Some(Finding::fail(
        one.name.clone(),
        format!("no answer at {}: {reason}{state}", one.endpoint),
        ANSWERS_WHY,
        todo,
    ))
}

fn versions(seen: &[Seen]) -> Vec<Finding> {
    let todo = "bring all to one version: control first, then servers one after the other (wait until `clovis status` has nothing to do), then clients";
    let mut same = 0;
    let mut findings = Vec::new();
    for one in seen {
        let Ok(answer) = &one.answer else { continue };
        let text = match &answer.told {
            Some(told) if told.version == crate::VERSION => {
                same += 1;
                continue;
            }
            Some(told) if told.version.is_empty() => "cannot tell its version: it does not say".to_owned(),
            Some(told) => format!("version {}, and this program is {}", told.version, crate::VERSION),
            None => format!(
                "cannot tell its version: it does not know the question, so it is older than {}",
                crate::VERSION
            ),
        };
        findings.push(Finding::warn(format!("version of {}", one.name), text, VERSION_WHY, todo));
    }
    if same > 0 {
        let text = format!("{same} processes run version {}, as this program", crate::VERSION);
        findings.insert(0, Finding::ok("versions", text, VERSION_WHY));
    }
    findings
}

/// A process here whose program was replaced on disk since it started runs the old one, whatever version it says.
fn replaced(one: &Seen) -> Option<Finding> {
    let program = fs::read_link(format!("/proc/{}/exe", one.process_id?)).ok()?;
    let program = program.to_str()?.strip_suffix(" (deleted)")?.to_owned();
    let text = format!("it runs a program that was since replaced or removed: {program}");
    let todo = "restart it when it suits: `clovis cluster stop` and `start`, or its unit";
    Some(Finding::warn(format!("program of {}", one.name), text, VERSION_WHY, todo))
}

/// The limits of the daemons that run here, which are not those of this session.
fn limits(patient: &Patient, seen: &[Seen]) -> Vec<Finding> {
    let needs = super::Needs::of(&patient.file);
    let mut looked = 0;
    let mut findings = Vec::new();
    for one in seen {
        let Some(id) = one.process_id else { continue };
        let read = |name: &str| fs::read_to_string(format!("/proc/{id}/{name}"));
        let (Ok(limits), Ok(status)) = (read("limits"), read("status")) else { continue };
        looked += 1;
        let of_daemon = machine::of_process(needs, &limits, &status);
        findings.extend(
            of_daemon
                .into_iter()
                .filter(|finding| finding.verdict != Verdict::Ok)
                .map(|finding| Finding { check: format!("{} of {}", finding.check, one.name), ..finding }),
        );
    }
    if looked > 0 && findings.is_empty() {
        let why = "a daemon has the limits of whoever started it";
        findings.push(Finding::ok(
            "limits of daemons",
            format!("{looked} run here, with enough of each"),
            why,
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(name: &str, version: Option<&str>) -> Seen {
        let told = version.map(|version| ProcessGetReply {
            version: version.to_owned(),
            epoch: 1,
            unix_us: None,
            store: None,
        });
        Seen {
            name: name.to_owned(),
            process: None,
            endpoint: "127.0.0.1@tcp:12345:34:0".parse().unwrap(),
            process_id: None,
            answer: Ok(Answer { told, apart: None }),
        }
    }

    #[test]
    fn other_versions_are_named_and_unknown_ones_are_not_guessed() {
        let all =
            [seen("a", Some(crate::VERSION)), seen("b", Some("0.0.9")), seen("c", None), seen("d", Some(""))];
        let found = versions(&all);
        assert_eq!(found.len(), 4);
        assert!(found[0].verdict == Verdict::Ok && found[0].seen.starts_with("1 processes"));
        assert!(found[1].check == "version of b" && found[1].seen.starts_with("version 0.0.9"));
        assert!(
            found[2..].iter().all(|one| one.verdict == Verdict::Warn && one.seen.starts_with("cannot tell"))
        );
    }

    #[test]
    fn a_process_that_does_not_answer_fails_the_whole() {
        let mut all = vec![seen("a", None)];
        assert_eq!(those_that_answer(&all).verdict, Verdict::Ok);
        all[0].answer = Err("no".to_owned());
        assert_eq!(those_that_answer(&all).verdict, Verdict::Fail);
    }

    #[test]
    fn a_running_program_that_was_removed_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("sleeper");
        fs::copy("/bin/sleep", &copy).unwrap();
        let mut child = std::process::Command::new(&copy).arg("60").spawn().unwrap();
        let one = Seen { process_id: Some(child.id()), ..seen("a", None) };
        assert_eq!(replaced(&one), None);
        fs::remove_file(&copy).unwrap();
        let found = replaced(&one);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.unwrap().seen.ends_with("sleeper"));
    }
}
