//! `clovis addb report`: where time went.
//!
//! Counts and quantiles of requests come from histograms, which hold everything since the processes began. Phases, the slowest requests and
//! those that did not end come from the records, which hold the last ones; the heading says how many.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base::time::nanos;
use rpc::addb::histogram::Key;
use rpc::addb::{Histogram, Phase, Side};
use serde_json::json;

use crate::addb::ReportArgs;
use crate::addb::dump::{left_out, source_json};
use crate::addb::sources::{Sources, Visit, fop_name, key_name, load, time_text, troubles};
use crate::failure::Failure;
use crate::output;
use crate::table::{Align, Table};

/// Unfinished requests that are shown as text; JSON has all.
const UNFINISHED_SHOWN: usize = 20;

/// Phases that are worth a line of their own, as they tell of trouble.
const TROUBLES: [Phase; 6] =
    [Phase::Resources, Phase::Expired, Phase::Answered, Phase::Resend, Phase::Failed, Phase::Cancelled];

/// What the files say together.
struct Findings<'a> {
    requests: BTreeMap<Key, Histogram>,
    phases: BTreeMap<(Side, u16, Phase), Histogram>,
    /// Slowest first.
    slowest: Vec<Slow<'a>>,
    unfinished: Vec<Visit<'a>>,
    /// Requests of which there are records.
    seen: usize,
    troubles: Vec<(&'static str, u64)>,
}

/// A request, as the process saw it that it kept waiting the longest.
struct Slow<'a> {
    visit: Visit<'a>,
    /// The longest of all its steps, and whose it is; `send` without what its server took.
    longest: (Phase, Duration, String),
}

/// `clovis addb report`
pub fn run(args: &ReportArgs) -> Result<(), Failure> {
    let sources = load(&args.sources)?;
    let findings = find(&sources, base::units::narrow(args.slowest.into()));
    if args.sources.json {
        output::line(&findings.json(&sources).to_string())
    } else {
        output::print(&findings.text(&sources))
    }
}

fn find(sources: &Sources, slowest_count: usize) -> Findings<'_> {
    let mut requests: BTreeMap<Key, Histogram> = BTreeMap::new();
    for (key, histogram) in sources.list.iter().flat_map(|source| &source.snapshot.histograms) {
        requests.entry(*key).or_default().merge(histogram);
    }
    requests.retain(|_, histogram| histogram.count() > 0);

    let visits = sources.visits();
    let seen = visits.iter().map(Visit::request_id).collect::<BTreeSet<_>>().len();
    let mut phases: BTreeMap<(Side, u16, Phase), Histogram> = BTreeMap::new();
    let mut at_servers: BTreeMap<u64, Duration> = BTreeMap::new();
    for visit in visits.iter().filter(|visit| visit.side == Side::Server) {
        *at_servers.entry(visit.request_id()).or_default() += visit.lasted();
    }
    let mut longest: BTreeMap<u64, (Phase, Duration, String)> = BTreeMap::new();
    for visit in &visits {
        for (phase, took) in visit.steps() {
            phases.entry((visit.side, visit.opcode(), phase)).or_default().add(took);
            // What a client waits for after it sent is what its server does, and then the network.
            let elsewhere = match phase {
                Phase::Send => at_servers.get(&visit.request_id()).copied().unwrap_or_default(),
                _ => Duration::ZERO,
            };
            let took = took.saturating_sub(elsewhere);
            if longest.get(&visit.request_id()).is_none_or(|(_, time, _)| took > *time) {
                longest.insert(visit.request_id(), (phase, took, visit.source.who()));
            }
        }
    }
    // One line for a request: of its client, if that is known.
    let (mut ended, unfinished): (Vec<Visit<'_>>, Vec<Visit<'_>>) =
        visits.into_iter().partition(Visit::has_ended);
    ended.sort_by_key(|visit| (visit.request_id(), std::cmp::Reverse(visit.lasted())));
    ended.dedup_by_key(|visit| visit.request_id());
    ended.sort_by_key(|visit| std::cmp::Reverse(visit.lasted()));
    let slowest = ended
        .into_iter()
        .take(slowest_count)
        .filter_map(|visit| {
            let longest = longest.get(&visit.request_id())?.clone();
            Some(Slow { visit, longest })
        })
        .collect();

    let troubles = troubles(&TROUBLES, |count| {
        sources.list.iter().map(|source| count(&source.snapshot)).fold(0, u64::saturating_add)
    });
    Findings { requests, phases, slowest, unfinished, seen, troubles }
}

impl Findings<'_> {
    fn text(&self, sources: &Sources) -> String {
        let mut text = String::new();
        for source in &sources.list {
            text.push_str(&format!(
                "{}: {} on {}, {}{}\n",
                source.path.file_name().unwrap_or_default().display(),
                source.who(),
                source.snapshot.header.origin.node,
                source.state(),
                left_out(source)
            ));
        }
        text.push_str("\nRequests since the processes began:\n");
        let columns = [
            ("side", Align::Left),
            ("fop", Align::Left),
            ("count", Align::Right),
            ("p50", Align::Right),
            ("p99", Align::Right),
            ("longest", Align::Right),
            ("total", Align::Right),
        ];
        let mut table = Table::new(&columns);
        let mut by_time: Vec<(&Key, &Histogram)> = self.requests.iter().collect();
        by_time.sort_by_key(|(key, histogram)| (key.side, std::cmp::Reverse(histogram.sum())));
        for (key, histogram) in by_time {
            let mut row = vec![key.side.name().to_owned(), key_name(key)];
            row.extend(numbers(histogram));
            table.row(row);
        }
        text.push_str(&table.render());

        text.push_str(&format!(
            "\nPhases of the last {} requests, without those that took no time:\n",
            self.seen
        ));
        let mut table = Table::new(&[
            ("side", Align::Left),
            ("fop", Align::Left),
            ("phase", Align::Left),
            ("count", Align::Right),
            ("p50", Align::Right),
            ("p99", Align::Right),
            ("longest", Align::Right),
            ("total", Align::Right),
            ("of the fop", Align::Right),
        ]);
        for ((side, opcode, phase), histogram) in self.phases.iter().filter(|(_, one)| !one.sum().is_zero()) {
            let whole: Duration = self
                .phases
                .range((*side, *opcode, Phase::Resources)..)
                .take_while(|((a, b, _), _)| (a, b) == (side, opcode))
                .map(|(_, one)| one.sum())
                .sum();
            let mut row = vec![side.name().to_owned(), fop_name(*opcode), phase.name().to_owned()];
            row.extend(numbers(histogram));
            row.push(share(histogram.sum(), whole));
            table.row(row);
        }
        text.push_str(&table.render());

        if !self.slowest.is_empty() {
            text.push_str("\nSlowest of them:\n");
            let mut table = Table::new(&[
                ("request", Align::Left),
                ("fop", Align::Left),
                ("took", Align::Right),
                ("seen by", Align::Left),
                ("most of it", Align::Right),
                ("at phase", Align::Left),
                ("of", Align::Left),
            ]);
            for Slow { visit, longest: (phase, took, who) } in &self.slowest {
                table.row([
                    format!("{:#018x}", visit.request_id()),
                    fop_name(visit.opcode()),
                    time_text(visit.lasted()),
                    visit.source.who(),
                    time_text(*took),
                    phase.name().to_owned(),
                    who.clone(),
                ]);
            }
            text.push_str(&table.render());
        }
        if !self.unfinished.is_empty() {
            text.push_str("\nWithout an end (they run, or their process died):\n");
            let mut table = Table::new(&[
                ("request", Align::Left),
                ("fop", Align::Left),
                ("at phase", Align::Left),
                ("of", Align::Left),
            ]);
            for visit in self.unfinished.iter().take(UNFINISHED_SHOWN) {
                table.row([
                    format!("{:#018x}", visit.request_id()),
                    fop_name(visit.opcode()),
                    visit.last().what.name().to_owned(),
                    format!("{}, {}", visit.source.who(), visit.source.state()),
                ]);
            }
            text.push_str(&table.render());
            let more = self.unfinished.len().saturating_sub(UNFINISHED_SHOWN);
            if more > 0 {
                text.push_str(&format!("and {more} more\n"));
            }
        }
        if !self.troubles.is_empty() {
            let words: Vec<String> =
                self.troubles.iter().map(|(name, count)| format!("{name} {count}")).collect();
            text.push_str(&format!("\nBesides, since the processes began: {}\n", words.join(", ")));
        }
        text
    }

    fn json(&self, sources: &Sources) -> serde_json::Value {
        let times = |histogram: &Histogram| {
            json!({ "count": histogram.count(), "p50_ns": nanos(histogram.percentile(50)),
                    "p99_ns": nanos(histogram.percentile(99)), "longest_ns": nanos(histogram.longest()),
                    "total_ns": nanos(histogram.sum()) })
        };
        let requests: Vec<_> = self
            .requests
            .iter()
            .map(|(key, histogram)| {
                json!({ "side": key.side.name(), "opcode": key.opcode, "fop": key_name(key), "times": times(histogram) })
            })
            .collect();
        let phases: Vec<_> = self
            .phases
            .iter()
            .map(|((side, opcode, phase), histogram)| {
                json!({ "side": side.name(), "opcode": opcode, "fop": fop_name(*opcode), "phase": phase.name(),
                        "times": times(histogram) })
            })
            .collect();
        let slowest: Vec<_> = self
            .slowest
            .iter()
            .map(|Slow { visit, longest: (phase, took, who) }| {
                json!({ "request": format!("{:#018x}", visit.request_id()), "fop": fop_name(visit.opcode()),
                        "took_ns": nanos(visit.lasted()), "seen_by": visit.source.who(),
                        "longest_phase": phase.name(), "longest_phase_ns": nanos(*took), "longest_phase_of": who })
            })
            .collect();
        let unfinished: Vec<_> = self
            .unfinished
            .iter()
            .map(|visit| {
                json!({ "request": format!("{:#018x}", visit.request_id()), "fop": fop_name(visit.opcode()),
                        "phase": visit.last().what.name(), "of": visit.source.who(), "state": visit.source.state() })
            })
            .collect();
        let troubles: BTreeMap<_, _> = self.troubles.iter().copied().collect();
        json!({ "files": sources.list.iter().map(source_json).collect::<Vec<_>>(), "requests": requests,
                "requests_seen": self.seen, "phases": phases, "slowest": slowest, "unfinished": unfinished,
                "counters": troubles })
    }
}

fn numbers(histogram: &Histogram) -> [String; 5] {
    [
        histogram.count().to_string(),
        time_text(histogram.percentile(50)),
        time_text(histogram.percentile(99)),
        time_text(histogram.longest()),
        time_text(histogram.sum()),
    ]
}

/// A part of a whole, in percent.
fn share(part: Duration, whole: Duration) -> String {
    if whole.is_zero() {
        return "-".to_owned();
    }
    format!("{:.0} %", part.as_secs_f64() / whole.as_secs_f64() * 100.0)
}
