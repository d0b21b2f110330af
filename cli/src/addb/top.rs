//! `clovis top`: what a cluster does now, from the ADDB files of its processes. Nobody is asked, so that a hung server is seen too.
//!
//! Two looks at the files, an interval apart; what was added to their histograms and counters in between is shown. A process that began
//! in between counts from its beginning; one that is gone is not shown.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, stdout};
use std::time::Duration;

use base::Instant;
use base::time::nanos;
use rpc::addb::histogram::Key;
use rpc::addb::{Histogram, Phase, Side};
use runtime::MonotonicClock;
use serde_json::{Value, json};

use crate::addb::TopArgs;
use crate::addb::sources::{Source, Sources, key_name, load_telling, time_text, troubles};
use crate::failure::Failure;
use crate::output;
use crate::table::{Align, Table};

/// To the upper left corner of a terminal, and everything gone: the next picture stands where the last one stood.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Counters that tell of trouble: shown only where they grew.
const TROUBLES: [Phase; 4] = [Phase::Resources, Phase::Expired, Phase::Resend, Phase::Failed];

/// What happened between two looks.
struct Interval {
    lasted: Duration,
    processes: Vec<Process>,
    fops: BTreeMap<Key, Histogram>,
}

/// What one process did meanwhile.
struct Process {
    who: String,
    state: &'static str,
    as_server: Histogram,
    as_client: Histogram,
    troubles: Vec<(&'static str, u64)>,
}

/// `clovis top`
pub fn run(args: &TopArgs) -> Result<(), Failure> {
    let clock = MonotonicClock::start();
    let mut before = look(args, &clock, true)?;
    let mut shown = 0;
    while args.count.is_none_or(|count| shown < count) {
        #[allow(clippy::disallowed_methods)] // the interval that was asked for
        std::thread::sleep(Duration::from_secs(args.interval.into()));
        let now = look(args, &clock, false)?;
        let interval = Interval::between(&before, &now);
        if args.sources.json {
            output::line(&interval.json().to_string())?;
        } else {
            let clear = if stdout().is_terminal() { CLEAR } else { "" };
            output::print(&format!("{clear}{}", interval.text()))?;
        }
        before = now;
        shown += 1;
    }
    Ok(())
}

/// The files as they are. What cannot be read is told the first time.
fn look(args: &TopArgs, clock: &MonotonicClock, is_first: bool) -> Result<(Instant, Sources), Failure> {
    let sources = load_telling(&args.sources, &mut |failure| {
        if is_first {
            eprintln!("clovis: {failure}");
        }
    })?;
    Ok((clock.now(), sources))
}

/// All times of one side, or of one fop, that were added since.
fn added(now: &Source, before: Option<&Source>) -> BTreeMap<Key, Histogram> {
    let mut added = BTreeMap::new();
    for (key, histogram) in &now.snapshot.histograms {
        let earlier = before.and_then(|source| {
            source.snapshot.histograms.iter().find(|(other, _)| other == key).map(|(_, histogram)| histogram)
        });
        let since = earlier.map_or_else(|| histogram.clone(), |earlier| histogram.since(earlier));
        if since.count() > 0 {
            added.insert(*key, since);
        }
    }
    added
}

impl Interval {
    fn between((from, before): &(Instant, Sources), (to, now): &(Instant, Sources)) -> Interval {
        let mut interval = Interval { lasted: to.since(*from), processes: Vec::new(), fops: BTreeMap::new() };
        for source in &now.list {
            let earlier =
                before.list.iter().find(|other| other.path == source.path && other.run() == source.run());
            let added = added(source, earlier);
            // What the last run left, and clients that are gone, say nothing of now.
            if !source.is_live && added.is_empty() {
                continue;
            }
            let mut process = Process {
                who: source.who(),
                state: source.state(),
                as_server: Histogram::default(),
                as_client: Histogram::default(),
                troubles: Vec::new(),
            };
            for (key, histogram) in added {
                match key.side {
                    Side::Server => process.as_server.merge(&histogram),
                    Side::Client => process.as_client.merge(&histogram),
                }
                interval.fops.entry(key).or_default().merge(&histogram);
            }
            process.troubles = troubles(&TROUBLES, |count| {
                count(&source.snapshot).saturating_sub(earlier.map_or(0, |earlier| count(&earlier.snapshot)))
            });
            interval.processes.push(process);
        }
        interval
    }

    fn per_second(&self, count: u64) -> f64 {
        #[allow(clippy::cast_precision_loss)] // for people
        let count = count as f64;
        count / self.lasted.as_secs_f64().max(1e-9)
    }

    /// Requests that were on their way at once, on average: by Little's law, all their time by the time that passed.
    fn at_once(&self, histogram: &Histogram) -> f64 {
        histogram.sum().as_secs_f64() / self.lasted.as_secs_f64().max(1e-9)
    }

    fn text(&self) -> String {
        let mut text = format!("the last {:.1} s\n\n", self.lasted.as_secs_f64());
        let mut table = Table::new(&[
            ("process", Align::Left),
            ("is", Align::Left),
            ("served/s", Align::Right),
            ("p50", Align::Right),
            ("p99", Align::Right),
            ("asked/s", Align::Right),
            ("p50", Align::Right),
            ("p99", Align::Right),
            ("besides", Align::Left),
        ]);
        for process in &self.processes {
            let mut row = vec![process.who.clone(), process.state.to_owned()];
            for histogram in [&process.as_server, &process.as_client] {
                row.extend(self.rates(histogram));
            }
            let troubles: Vec<String> =
                process.troubles.iter().map(|(name, count)| format!("{name} {count}")).collect();
            row.push(troubles.join(", "));
            table.row(row);
        }
        text.push_str(&table.render());
        if !self.fops.is_empty() {
            text.push('\n');
            let mut table = Table::new(&[
                ("side", Align::Left),
                ("fop", Align::Left),
                ("count/s", Align::Right),
                ("p50", Align::Right),
                ("p99", Align::Right),
                ("longest", Align::Right),
                ("at once", Align::Right),
            ]);
            let mut by_time: Vec<(&Key, &Histogram)> = self.fops.iter().collect();
            by_time.sort_by_key(|(key, histogram)| (key.side, std::cmp::Reverse(histogram.sum())));
            for (key, histogram) in by_time {
                let mut row = vec![key.side.name().to_owned(), key_name(key)];
                row.extend(self.rates(histogram));
                row.extend([time_text(histogram.longest()), format!("{:.2}", self.at_once(histogram))]);
                table.row(row);
            }
            text.push_str(&table.render());
        }
        text.push('\n');
        text
    }

    /// In a second, p50, p99; `-` where nothing was.
    fn rates(&self, histogram: &Histogram) -> [String; 3] {
        if histogram.count() == 0 {
            return ["-", "-", "-"].map(str::to_owned);
        }
        [
            format!("{:.1}", self.per_second(histogram.count())),
            time_text(histogram.percentile(50)),
            time_text(histogram.percentile(99)),
        ]
    }

    fn json(&self) -> Value {
        let times = |histogram: &Histogram| {
            json!({ "count": histogram.count(), "per_second": self.per_second(histogram.count()),
                    "p50_ns": nanos(histogram.percentile(50)), "p99_ns": nanos(histogram.percentile(99)),
                    "longest_ns": nanos(histogram.longest()), "at_once": self.at_once(histogram) })
        };
        let processes: Vec<Value> = self
            .processes
            .iter()
            .map(|process| {
                let counters: BTreeMap<_, _> = process.troubles.iter().copied().collect();
                json!({ "process": process.who, "state": process.state, "server": times(&process.as_server),
                        "client": times(&process.as_client), "counters": counters })
            })
            .collect();
        let fops: Vec<Value> = self
            .fops
            .iter()
            .map(|(key, histogram)| {
                json!({ "side": key.side.name(), "opcode": key.opcode, "fop": key_name(key), "times": times(histogram) })
            })
            .collect();
        json!({ "seconds": self.lasted.as_secs_f64(), "processes": processes, "fops": fops })
    }
}
