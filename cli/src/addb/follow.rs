//! `clovis addb follow`: one request's way through its client and its servers, in the order of time.
//!
//! Files of one machine since its last boot share a clock. Between machines the order is as good as their clocks agree, and the
//! output says so.

use std::time::Duration;

use base::time::nanos;
use rpc::addb::{Phase, Record, What};
use serde_json::json;

use crate::addb::FollowArgs;
use crate::addb::sources::{Source, Sources, fop_name, load, time_text};
use crate::failure::Failure;
use crate::output;
use crate::table::{Align, Table};

/// A record of the request, with where it is from.
struct Step<'a> {
    time_ns: u64,
    source: &'a Source,
    record: &'a Record,
}

/// `clovis addb follow`
pub fn run(args: &FollowArgs) -> Result<(), Failure> {
    let sources = load(&args.sources)?;
    let steps = find(&sources, args.request);
    let Some(first) = steps.first() else {
        return Err(Failure::new(format!(
            "no record of request {:#x} in {} files: it was overwritten by later ones, or its processes keep others",
            args.request,
            sources.list.len()
        )));
    };
    let fop = fop_name(first.record.opcode);
    if args.sources.json {
        return output::line(&to_json(&sources, &steps, &fop).to_string());
    }
    output::line(&format!("request {:#018x}, {fop}", args.request))?;
    let mut table = Table::new(&[
        ("since its start", Align::Right),
        ("step took", Align::Right),
        ("process", Align::Left),
        ("what", Align::Left),
        ("value", Align::Right),
    ]);
    for step in &steps {
        table.row([
            time_text(Duration::from_nanos(step.time_ns.saturating_sub(first.time_ns))),
            took(&steps, step).map(time_text).unwrap_or_default(),
            step.source.who(),
            step.record.what.name().to_owned(),
            if step.record.value == 0 { String::new() } else { step.record.value.to_string() },
        ]);
    }
    output::print(&table.render())?;
    if !sources.is_one_clock {
        output::line(
            "The files are of several machines or boots: times between processes are as good as their clocks agree.",
        )?;
    }
    Ok(())
}

fn find(sources: &Sources, request_id: u64) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    for source in &sources.list {
        for record in source.snapshot.records.iter().filter(|record| record.request_id == request_id) {
            steps.push(Step { time_ns: sources.time_ns(source, record), source, record });
        }
    }
    // Out, there, back. Within a process the order is that of the ring, which a stable sort keeps.
    let rank = |record: &Record| match record.what {
        What::Phase(Phase::Submit | Phase::Send | Phase::Resend | Phase::OneWay) => 0,
        What::Phase(phase) if !phase.is_at_server() => 2,
        _ => 1,
    };
    // A turn's time is that of its start, so a message may be received in a turn that began before it was sent: cause goes before time,
    // as long as there is one way out and one way back.
    let is_resent = steps.iter().any(|step| step.record.is(Phase::Resend));
    steps.sort_by_key(|step| {
        let rank = rank(step.record);
        (if is_resent { 0 } else { rank }, step.time_ns, rank)
    });
    steps
}

/// How long a step took: until the next one in the same process and on the same side.
fn took(steps: &[Step<'_>], step: &Step<'_>) -> Option<Duration> {
    let phase = step.record.phase().filter(|phase| !phase.is_last())?;
    let next = steps
        .iter()
        .filter(|other| std::ptr::eq(other.source, step.source))
        .filter(|other| {
            other.record.phase().is_some_and(|other| other.is_at_server() == phase.is_at_server())
        })
        .find(|other| {
            // Steps of one record have one number, and follow each other by their phase's.
            let ahead = other.record.sequence.wrapping_sub(step.record.sequence);
            let is_later = other.record.what.number() > step.record.what.number();
            ahead < u32::MAX / 2 && (ahead != 0 || is_later)
        })?;
    Some(Duration::from_nanos(next.time_ns.saturating_sub(step.time_ns)))
}

fn to_json(sources: &Sources, steps: &[Step<'_>], fop: &str) -> serde_json::Value {
    let start_ns = steps[0].time_ns;
    let lines: Vec<_> = steps
        .iter()
        .map(|step| {
            let took_ns = took(steps, step).map(nanos);
            json!({ "since_start_ns": step.time_ns.saturating_sub(start_ns), "took_ns": took_ns, "process": step.source.who(),
                    "state": step.source.state(), "file": step.source.path.display().to_string(),
                    "what": step.record.what.name(), "value": step.record.value })
        })
        .collect();
    json!({ "request": format!("{:#018x}", steps[0].record.request_id), "fop": fop,
            "one_clock": sources.is_one_clock, "steps": lines })
}
