//! What a daemon tells of itself to Prometheus: `metrics` in the cluster file says where. docs/addb.md has the names.
//!
//! [`text`] reads what the process keeps anyway (its ADDB, the counters of its data path, /proc/self) when it is asked, so that telling
//! costs the data path nothing. [`exporter::Exporter`] answers on threads of its own.

pub mod exporter;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::sync::{Arc, OnceLock};

use base::Fid;
use rpc::addb::histogram::Key;
use rpc::addb::{AddbSpace, Event, Histogram, Phase, Snapshot};
use runtime::Counters;

use crate::addb::sources::key_name;

/// Bounds of the buckets of times: 2^10 ns (1 us) to 2^38 ns (275 s), each four times the one before. None cuts through a bucket of ours.
const POWERS: [u32; 15] = [10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38];

/// Whose metrics they are.
pub struct Process {
    /// `control`, `server-1`.
    pub name: String,
    /// In the configuration.
    pub fid: Option<Fid>,
}

/// What one locality of this process keeps of itself.
#[derive(Debug, Default)]
pub struct Part {
    /// Set once it has one.
    pub addb: OnceLock<AddbSpace>,
    /// Of its data path.
    pub counters: Arc<Counters>,
}

/// The figures of all localities together.
pub fn sum(parts: &[Arc<Part>]) -> Counters {
    Counters::sum(parts.iter().map(|part| &*part.counters))
}

/// All metrics now, in Prometheus' text format 0.0.4.
pub fn text(process: &Process, parts: &[Arc<Part>]) -> String {
    let mut text = Text(String::new());
    let version = env!("CARGO_PKG_VERSION");
    let fid = process.fid.map(|fid| fid.to_string()).unwrap_or_default();
    text.family("clovis_build_info", "gauge", "Which process this is, and its version.");
    text.sample("clovis_build_info", &[("process", &process.name), ("fid", &fid), ("version", version)], 1);
    let spaces = parts.iter().filter_map(|part| part.addb.get());
    let snapshots: Vec<Snapshot> =
        spaces.filter_map(|space| Snapshot::parse(&space.to_bytes()).ok()).collect();
    if !snapshots.is_empty() {
        requests(&mut text, &snapshots);
    }
    let counters = sum(parts);
    for (name, help, counter) in [
        ("bulk_received_bytes", "Bytes of bulk that came over the net.", &counters.bulk_bytes),
        ("copied_bytes", "Bytes that a processor copied on the data path.", &counters.copied_bytes),
        ("registrations", "Memory registrations.", &counters.registrations),
        ("doorbells", "Times that a device or the kernel was told of work.", &counters.doorbells),
        ("system_calls", "System calls of the data path.", &counters.syscalls),
    ] {
        text.counter(&format!("clovis_{name}_total"), help, counter.get());
    }
    own(&mut text);
    text.0
}

fn requests(text: &mut Text, snapshots: &[Snapshot]) {
    const TIMES: &str = "clovis_request_duration_seconds";
    text.family(
        TIMES,
        "histogram",
        "How long requests took: at a server from arrival to reply, at a client from call to answer.",
    );
    let mut histograms: BTreeMap<Key, Histogram> = BTreeMap::new();
    for (key, histogram) in snapshots.iter().flat_map(|snapshot| &snapshot.histograms) {
        histograms.entry(*key).or_default().merge(histogram);
    }
    for (key, histogram) in histograms.iter().filter(|(_, histogram)| histogram.count() > 0) {
        let fop = key_name(key);
        let labels = [("side", key.side.name()), ("fop", &fop)];
        for power in POWERS {
            #[allow(clippy::cast_precision_loss)] // powers of two are exact
            let bound = (1_u64 << power) as f64 / 1e9;
            let labels = [labels[0], labels[1], ("le", &bound.to_string())];
            text.sample(&format!("{TIMES}_bucket"), &labels, histogram.below_power(power));
        }
        let labels_of_all = [labels[0], labels[1], ("le", "+Inf")];
        text.sample(&format!("{TIMES}_bucket"), &labels_of_all, histogram.count());
        text.sample(&format!("{TIMES}_sum"), &labels, histogram.sum().as_secs_f64());
        text.sample(&format!("{TIMES}_count"), &labels, histogram.count());
    }
    text.family("clovis_phases_total", "counter", "How often a request entered a phase.");
    for phase in Phase::ALL {
        let side = if phase.is_at_server() { "server" } else { "client" };
        let labels = [("side", side), ("phase", phase.name())];
        let count: u64 = snapshots.iter().map(|snapshot| snapshot.count(*phase)).sum();
        text.sample("clovis_phases_total", &labels, count);
    }
    text.family(
        "clovis_events_total",
        "counter",
        "How often something happened that is no step of a request.",
    );
    for event in Event::ALL {
        let count: u64 = snapshots.iter().map(|snapshot| snapshot.event_count(*event)).sum();
        text.sample("clovis_events_total", &[("event", event.name())], count);
    }
}

/// The names that every exporter has for its own process. What /proc does not say is left out.
fn own(text: &mut Text) {
    let cpu = runtime::process::cpu_time().as_secs_f64();
    text.family("process_cpu_seconds_total", "counter", "CPU time of the process.");
    text.sample("process_cpu_seconds_total", &[], cpu);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for (key, name, help) in [
        ("VmSize:", "process_virtual_memory_bytes", "Address space of the process."),
        ("VmRSS:", "process_resident_memory_bytes", "Memory of the process that is in RAM."),
    ] {
        // "VmRSS:      1234 kB"
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kib: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        if let Some(kib) = kib {
            text.family(name, "gauge", help);
            text.sample(name, &[], kib * base::units::KIB);
        }
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        text.family("process_open_fds", "gauge", "Open file descriptors.");
        text.sample("process_open_fds", &[], open.count());
    }
    let limits = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if let Some(most) = limits.current {
        text.family("process_max_fds", "gauge", "File descriptors that may be open.");
        text.sample("process_max_fds", &[], most);
    }
}

/// Text that is being made.
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into a string cannot fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        self.sample(name, &[], value);
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (index, (label, word)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let word = word.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{before}{label}=\"{word}\"");
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

/// Every sample of such a text, by its name and labels. Errors: a line that is no sample.
#[cfg(test)]
fn samples(text: &str) -> Result<std::collections::BTreeMap<String, f64>, String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').ok_or(line)?;
            Ok((name.to_owned(), value.parse().map_err(|_| line)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Instant;
    use rpc::addb::header::Shape;
    use rpc::addb::{Ring, Side};
    use std::time::Duration;

    #[test]
    fn a_daemon_tells_its_requests_and_itself() {
        // Two localities: what they tell is their sum.
        let part = |index: u32| {
            let space = AddbSpace::in_memory(Shape::for_records(8)).unwrap();
            let ring = Ring::new(Some(&space), 0, index, "0@lo:12345:34:1".parse().unwrap());
            (ring, Arc::new(Part { addb: space.into(), ..Part::default() }))
        };
        let ((ring, part), (other_ring, other)) = (part(0), part(1));
        for (ring, us) in [(&ring, 1), (&other_ring, 100), (&ring, 10_000)] {
            let begun = Instant::ZERO + Duration::from_secs(1);
            ring.ended(begun + Duration::from_micros(us), Side::Server, 32, begun);
        }
        ring.phase(Instant::ZERO, Phase::Lock, 1, 32, 0);
        ring.event(Instant::ZERO, Event::Hung, 1, 32, 0);
        part.counters.copied_bytes.add(2);
        other.counters.copied_bytes.add(3);
        let process = Process { name: "server-\"1\"".to_owned(), fid: None };
        let text = text(&process, &[part, other]);
        let samples = samples(&text).unwrap();
        let of = |name: &str| samples.get(name).copied();
        let times = "clovis_request_duration_seconds";
        let bucket =
            |le: &str| of(&format!("{times}_bucket{{side=\"server\",fop=\"component-write\",le=\"{le}\"}}"));
        assert_eq!(bucket("0.000001024"), Some(1.0), "{text}");
        assert_eq!((bucket("0.000262144"), bucket("+Inf")), (Some(2.0), Some(3.0)));
        assert_eq!(of(&format!("{times}_count{{side=\"server\",fop=\"component-write\"}}")), Some(3.0));
        let sum = of(&format!("{times}_sum{{side=\"server\",fop=\"component-write\"}}")).unwrap();
        assert!((sum - 0.010_101).abs() < 1e-9, "{sum}");
        assert_eq!(of("clovis_phases_total{side=\"server\",phase=\"lock\"}"), Some(1.0));
        assert_eq!(of("clovis_events_total{event=\"hung\"}"), Some(1.0));
        assert_eq!(of("clovis_copied_bytes_total"), Some(5.0));
        assert!(of("process_resident_memory_bytes").unwrap() > 65536.0);
        assert!(text.contains("process=\"server-\\\"1\\\"\""));
        // What the dashboard asks for is told.
        let dashboard = include_str!("../../../docs/grafana-dashboard.json");
        let asked: std::collections::BTreeSet<&str> = dashboard
            .split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'))
            .filter(|word| word.starts_with("clovis_") || word.starts_with("process_"))
            .collect();
        assert!(asked.len() >= 8, "{asked:?}");
        for name in asked {
            assert!(samples.keys().any(|key| key.split('{').next() == Some(name)), "nobody tells {name}");
        }
        for phase in ["resend", "failed", "expired"] {
            assert!(dashboard.contains(phase) && Phase::ALL.iter().any(|known| known.name() == phase));
        }
        // Each family is announced once, before its samples.
        let families: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let names: std::collections::BTreeSet<&str> =
            families.iter().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(names.len(), families.len());
    }
}
