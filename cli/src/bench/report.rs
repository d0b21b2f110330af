//! What was measured, as tables for people and as one JSON object. Holds figures only; nothing is measured here.

use std::time::Duration;

use runtime::Counters;
use serde_json::{Value, json};

use super::machine::{Machine, OTHERS_MAX};
use super::pairs::{Estimate, Pair, Sample, Verdict, median, shortcomings};
use crate::table::{Align, Table};
use crate::traffic::Usage;

/// What an experiment used for each MiB that it moved, summed over its samples.
#[derive(Clone, Copy, Debug, Default)]
pub struct Costs {
    /// Bytes moved.
    pub bytes: u64,
    /// CPU seconds, user and system, all threads and ended children.
    pub cpu_seconds: f64,
    /// Bytes that the CPU copied in user space; `None` for a peer, which does not say.
    pub copied_bytes: Option<u64>,
    /// Memory registrations.
    pub registrations: Option<u64>,
    /// System calls of the data path.
    pub syscalls: Option<u64>,
    /// Submissions told to devices.
    pub doorbells: Option<u64>,
    /// Heap allocations, where the whole data path is on one thread.
    pub allocations: Option<u64>,
}

impl Costs {
    /// The figures of the data path and of the whole process now, to subtract from later ones.
    pub fn now(counters: &Counters, cpu: Duration) -> Costs {
        Costs::of(&Usage::now(counters, cpu), 0)
    }

    /// What `usage` says was used to move `bytes`.
    pub fn of(usage: &Usage, bytes: u64) -> Costs {
        Costs {
            bytes,
            cpu_seconds: usage.cpu.as_secs_f64(),
            copied_bytes: Some(usage.copied_bytes),
            registrations: Some(usage.registrations),
            syscalls: Some(usage.syscalls),
            doorbells: Some(usage.doorbells),
            allocations: None,
        }
    }

    /// What was used since `before` to move `bytes`.
    pub fn since(&self, before: &Costs, bytes: u64) -> Costs {
        let less = |after: Option<u64>, before: Option<u64>| after?.checked_sub(before?);
        Costs {
            bytes,
            cpu_seconds: self.cpu_seconds - before.cpu_seconds,
            copied_bytes: less(self.copied_bytes, before.copied_bytes),
            registrations: less(self.registrations, before.registrations),
            syscalls: less(self.syscalls, before.syscalls),
            doorbells: less(self.doorbells, before.doorbells),
            allocations: less(self.allocations, before.allocations),
        }
    }

    /// Adds another sample's.
    pub fn add(&mut self, other: Costs) {
        let sum = |a: Option<u64>, b: Option<u64>| Some(a.unwrap_or(0) + b?).or(a);
        *self = Costs {
            bytes: self.bytes + other.bytes,
            cpu_seconds: self.cpu_seconds + other.cpu_seconds,
            copied_bytes: sum(self.copied_bytes, other.copied_bytes),
            registrations: sum(self.registrations, other.registrations),
            syscalls: sum(self.syscalls, other.syscalls),
            doorbells: sum(self.doorbells, other.doorbells),
            allocations: sum(self.allocations, other.allocations),
        };
    }

    fn per_mib(&self, value: f64) -> Option<f64> {
        (self.bytes > 0).then(|| value * f64::from(1 << 20) / float(self.bytes))
    }
}

/// For reports: two or three digits matter.
#[allow(clippy::cast_precision_loss)]
fn float(value: u64) -> f64 {
    value as f64
}

/// The other side of a comparison.
#[derive(Clone, Debug)]
pub enum Peer {
    /// It ran; its name and version.
    Ran(String),
    /// It could not be run, and what to do about that.
    Absent(String),
}

/// Ours beside a peer.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// What was measured.
    pub what: String,
    /// With what.
    pub peer: Peer,
    /// Lower bound of the ratio; `None` where the issue sets none.
    pub target: Option<f64>,
    /// The pairs, if there is a peer.
    pub pairs: Vec<Pair>,
    /// Our samples, if there is none.
    pub alone: Vec<Sample>,
    /// Our costs.
    pub costs: Costs,
    /// The peer's.
    pub peer_costs: Option<Costs>,
    /// Share of all cores that others used meanwhile.
    pub others: Option<f64>,
    /// What was timed, exactly.
    pub note: String,
    /// What a person should know about the samples, beyond the figures.
    pub is_quick: bool,
}

impl Comparison {
    fn ours(&self) -> Vec<f64> {
        let samples = self.pairs.iter().map(|pair| &pair.ours).chain(&self.alone);
        samples.map(Sample::rate).collect()
    }

    fn ratio(&self) -> Option<Estimate> {
        Estimate::of(&self.pairs.iter().map(Pair::ratio).collect::<Vec<_>>())
    }

    fn verdict(&self) -> Option<Verdict> {
        Some(Verdict::of(self.ratio()?.interval?, self.target?))
    }

    /// Why the ratio does not count; empty if it does.
    fn shortcomings(&self) -> Vec<String> {
        let mut reasons = shortcomings(&self.pairs);
        if self.is_quick {
            reasons.push("--quick".to_owned());
        }
        match self.others {
            Some(share) if share > OTHERS_MAX => {
                reasons.push(format!("others used {:.0} % of the CPU", share * 100.0));
            }
            Some(_) => {}
            None => reasons.push("how quiet the machine was is unknown".to_owned()),
        }
        reasons
    }

    fn json(&self) -> Value {
        let peer_rates: Vec<f64> = self.pairs.iter().map(|pair| pair.peer.rate()).collect();
        let ratio = self.ratio();
        let (peer, absent) = match &self.peer {
            Peer::Ran(name) => (Some(name), None),
            Peer::Absent(hint) => (None, Some(hint)),
        };
        json!({
            "what": self.what,
            "note": self.note,
            "peer": peer,
            "peer_absent": absent,
            "bytes_per_second": median(&self.ours()),
            "peer_bytes_per_second": median(&peer_rates),
            "pairs": self.pairs.len(),
            "ratios": self.pairs.iter().map(Pair::ratio).collect::<Vec<_>>(),
            "ratio": ratio.map(|ratio| ratio.median),
            "interval_95": ratio.and_then(|ratio| ratio.interval).map(|(low, high)| [low, high]),
            "target": self.target,
            "verdict": self.verdict().map(Verdict::word),
            "counts": !self.pairs.is_empty() && self.shortcomings().is_empty(),
            "does_not_count_because": if self.pairs.is_empty() { Vec::new() } else { self.shortcomings() },
            "others_cpu_share": self.others,
            "costs": costs_json(&self.costs),
            "peer_costs": self.peer_costs.as_ref().map(costs_json),
        })
    }
}

fn costs_json(costs: &Costs) -> Value {
    let each = |value: Option<u64>| value.and_then(|value| costs.per_mib(float(value)));
    json!({
        "bytes": costs.bytes,
        "cpu_ms_per_mib": costs.per_mib(costs.cpu_seconds * 1e3),
        "copied_bytes_per_mib": each(costs.copied_bytes),
        "syscalls_per_mib": each(costs.syscalls),
        "doorbells_per_mib": each(costs.doorbells),
        "allocations_per_mib": each(costs.allocations),
        "registrations": costs.registrations,
    })
}

/// A figure that has no peer, with an upper limit or without.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// What it must stay under.
    pub under: Option<f64>,
    /// Whether it was taken as the rules ask.
    pub counts: bool,
    /// How it was taken.
    pub note: String,
}

impl Figure {
    fn verdict(&self) -> Option<&'static str> {
        self.under.map(|under| if self.value < under { "met" } else { "missed" })
    }

    fn json(&self) -> Value {
        json!({ "what": self.what, "value": self.value, "unit": self.unit, "under": self.under,
                "verdict": self.verdict(), "counts": self.counts, "note": self.note })
    }
}

/// Everything that one run measured.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Ratios.
    pub comparisons: Vec<Comparison>,
    /// Other figures.
    pub figures: Vec<Figure>,
}

impl Report {
    /// For people. `load_after`: load averages at the end.
    pub fn text(&self, machine: &Machine, load_after: &str) -> String {
        let mut text =
            format!("{}\nload {} before, {load_after} after\n", machine.line(), machine.load_before);
        if !self.comparisons.is_empty() {
            text.push('\n');
            text.push_str(&self.ratios().render());
            text.push('\n');
            text.push_str(&self.costs().render());
            text.push('\n');
            text.push_str(&self.notes());
        }
        if !self.figures.is_empty() {
            text.push('\n');
            text.push_str(&self.other_figures().render());
        }
        text
    }

    fn ratios(&self) -> Table {
        let mut table = Table::new(&[
            ("what", Align::Left),
            ("ours GB/s", Align::Right),
            ("peer GB/s", Align::Right),
            ("peer", Align::Left),
            ("ratio", Align::Right),
            ("95 %", Align::Left),
            ("target", Align::Right),
            ("verdict", Align::Left),
            ("counts", Align::Left),
        ]);
        let rate = |rates: &[f64]| {
            median(rates).map_or_else(String::new, |rate| {
                // Small messages: a few MB/s.
                if rate < 1e8 { format!("{:.5}", rate / 1e9) } else { format!("{:.2}", rate / 1e9) }
            })
        };
        for one in &self.comparisons {
            let peer_rates: Vec<f64> = one.pairs.iter().map(|pair| pair.peer.rate()).collect();
            let ratio = one.ratio();
            let interval = ratio.and_then(|ratio| ratio.interval);
            let counts = if one.pairs.is_empty() {
                ""
            } else if one.shortcomings().is_empty() {
                "yes"
            } else {
                "no"
            };
            table.row([
                one.what.clone(),
                rate(&one.ours()),
                rate(&peer_rates),
                match &one.peer {
                    Peer::Ran(name) => name.clone(),
                    Peer::Absent(hint) => format!("peer absent: {hint}"),
                },
                ratio.map(|ratio| format!("{:.2}", ratio.median)).unwrap_or_default(),
                interval.map(|(low, high)| format!("{low:.2} to {high:.2}")).unwrap_or_default(),
                one.target.map(|target| format!("{target:.2}")).unwrap_or_default(),
                one.verdict().map(Verdict::word).unwrap_or_default().to_owned(),
                counts.to_owned(),
            ]);
        }
        table
    }

    /// What was timed, once for equal rows, and why ratios do not count.
    fn notes(&self) -> String {
        let mut lines: Vec<String> = Vec::new();
        let mut add = |line: String| {
            if !lines.contains(&line) {
                lines.push(line);
            }
        };
        for one in &self.comparisons {
            add(format!("{}: {}", one.what, one.note));
        }
        for one in self.comparisons.iter().filter(|one| !one.pairs.is_empty()) {
            for reason in one.shortcomings() {
                add(format!("does not count: {}: {reason}", one.what));
            }
        }
        lines.into_iter().map(|line| line + "\n").collect()
    }

    fn costs(&self) -> Table {
        let mut table = Table::new(&[
            ("per MiB", Align::Left),
            ("CPU ms", Align::Right),
            ("peer CPU ms", Align::Right),
            ("copied bytes", Align::Right),
            ("syscalls", Align::Right),
            ("doorbells", Align::Right),
            ("registrations in all", Align::Right),
        ]);
        let number = |value: Option<f64>, digits: usize| {
            value.map_or_else(String::new, |value| format!("{value:.digits$}"))
        };
        for one in &self.comparisons {
            let costs = &one.costs;
            let each = |value: Option<u64>| value.and_then(|value| costs.per_mib(float(value)));
            table.row([
                one.what.clone(),
                number(costs.per_mib(costs.cpu_seconds * 1e3), 3),
                number(one.peer_costs.and_then(|peer| peer.per_mib(peer.cpu_seconds * 1e3)), 3),
                number(each(costs.copied_bytes), 0),
                number(each(costs.syscalls), 2),
                number(each(costs.doorbells), 2),
                costs.registrations.map(|count| count.to_string()).unwrap_or_default(),
            ]);
        }
        table
    }

    fn other_figures(&self) -> Table {
        let mut table = Table::new(&[
            ("what", Align::Left),
            ("figure", Align::Right),
            ("under", Align::Right),
            ("verdict", Align::Left),
            ("counts", Align::Left),
            ("how", Align::Left),
        ]);
        for one in &self.figures {
            table.row([
                one.what.clone(),
                format!("{:.2} {}", one.value, one.unit),
                one.under.map(|under| format!("{under} {}", one.unit)).unwrap_or_default(),
                one.verdict().unwrap_or_default().to_owned(),
                if one.counts { "yes" } else { "no" }.to_owned(),
                one.note.clone(),
            ]);
        }
        table
    }

    /// For programs: one object with every figure.
    pub fn json(&self, machine: &Machine, load_after: &str) -> Value {
        json!({
            "machine": {
                "cpu": machine.cpu, "cores": machine.cores, "linux": machine.linux, "parity_kernel": machine.kernel,
                "load_before": machine.load_before, "load_after": load_after,
            },
            "comparisons": self.comparisons.iter().map(Comparison::json).collect::<Vec<_>>(),
            "figures": self.figures.iter().map(Figure::json).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comparison(ratio_percent: u64) -> Comparison {
        let sample = |bytes: u64| Sample { bytes, took: Duration::from_secs(1) };
        let pair = Pair { ours: sample((ratio_percent << 30) / 10), peer: sample((100 << 30) / 10) };
        Comparison {
            what: "moving".to_owned(),
            peer: Peer::Ran("mover 1.0".to_owned()),
            target: Some(0.9),
            pairs: vec![pair; 11],
            alone: Vec::new(),
            costs: Costs { bytes: 2 << 20, cpu_seconds: 0.5, copied_bytes: Some(10), ..Costs::default() },
            peer_costs: None,
            others: Some(0.0),
            note: "moved".to_owned(),
            is_quick: false,
        }
    }

    #[test]
    fn a_quiet_full_run_counts_and_has_a_verdict() {
        let json = comparison(80).json();
        assert_eq!((&json["verdict"], &json["counts"]), (&json!("missed"), &json!(true)));
        assert_eq!(json["costs"]["cpu_ms_per_mib"], json!(250.0));
        assert_eq!(json["costs"]["copied_bytes_per_mib"], json!(5.0));
        assert_eq!(json["costs"]["syscalls_per_mib"], Value::Null);
        assert_eq!(comparison(95).json()["verdict"], json!("beaten"));
    }

    #[test]
    fn a_quick_or_noisy_run_does_not_count() {
        let noisy = Comparison { others: Some(0.2), ..comparison(95) };
        assert_eq!(noisy.json()["counts"], json!(false));
        assert_eq!(noisy.shortcomings(), ["others used 20 % of the CPU"]);
        assert_eq!(Comparison { is_quick: true, ..comparison(95) }.json()["counts"], json!(false));
        assert_eq!(Comparison { others: None, ..comparison(95) }.json()["counts"], json!(false));
    }

    #[test]
    fn without_its_peer_a_comparison_has_no_ratio() {
        let full = comparison(95);
        let alone = full.pairs.iter().map(|pair| pair.ours).collect();
        let absent = Comparison {
            peer: Peer::Absent("apt-get install x".to_owned()),
            pairs: Vec::new(),
            alone,
            ..full
        };
        let json = absent.json();
        assert_eq!(
            (&json["ratio"], &json["verdict"], &json["counts"]),
            (&Value::Null, &Value::Null, &json!(false))
        );
        assert!(json["bytes_per_second"].as_f64().is_some_and(|rate| rate > 0.0));
        let report = Report { comparisons: vec![absent], figures: Vec::new() };
        let text = report.text(&Machine::look(), "0 0 0");
        assert!(text.contains("peer absent: apt-get install x") && !text.contains("missed"), "{text}");
    }

    #[test]
    fn costs_of_samples_add_up() {
        let mut sum = Costs::default();
        let one = Costs { bytes: 1, cpu_seconds: 0.25, syscalls: Some(3), ..Costs::default() };
        sum.add(one);
        sum.add(one);
        assert_eq!((sum.bytes, sum.syscalls, sum.copied_bytes), (2, Some(6), None));
        assert!((sum.cpu_seconds - 0.5).abs() < 1e-12);
    }
}
