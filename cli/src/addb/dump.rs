//! `clovis addb dump`: the records of each file, oldest first.

use serde_json::json;

use crate::addb::DumpArgs;
use crate::addb::sources::{Source, fop_name, load};
use crate::conf::time_text;
use crate::failure::Failure;
use crate::output;
use crate::table::{Align, Table};

/// `clovis addb dump`
pub fn run(args: &DumpArgs) -> Result<(), Failure> {
    let sources = load(&args.sources)?;
    for (index, source) in sources.list.iter().enumerate() {
        if args.sources.json {
            print_json(source)?;
        } else {
            if index > 0 {
                output::line("")?;
            }
            print_text(source)?;
        }
    }
    Ok(())
}

fn print_text(source: &Source) -> Result<(), Failure> {
    let snapshot = &source.snapshot;
    let origin = &snapshot.header.origin;
    output::line(&format!(
        "{}: {} on {}, process {}, locality {}, {}, began {}, {}",
        source.path.display(),
        origin.name,
        origin.node,
        origin.process_id,
        snapshot.header.locality,
        snapshot.header.endpoint,
        time_text(origin.unix_ns_at_zero / 1_000_000_000),
        source.state(),
    ))?;
    output::line(&format!(
        "{} records of {} places{}",
        snapshot.records.len(),
        snapshot.header.shape.records,
        left_out(source)
    ))?;
    let mut table = Table::new(&[
        ("seconds", Align::Right),
        ("request", Align::Left),
        ("fop", Align::Left),
        ("what", Align::Left),
        ("value", Align::Right),
    ]);
    for record in &snapshot.records {
        let at_ns = record.at.as_nanos();
        let request = match record.request_id {
            0 => String::new(),
            id => format!("{id:#018x}"),
        };
        table.row([
            format!("{}.{:09}", at_ns / 1_000_000_000, at_ns % 1_000_000_000),
            request,
            if record.opcode == 0 { String::new() } else { fop_name(record.opcode) },
            record.what.name().to_owned(),
            if record.value == 0 { String::new() } else { record.value.to_string() },
        ]);
    }
    output::print(&table.render())
}

/// What is not among the records, in words; nothing if nothing is.
pub fn left_out(source: &Source) -> String {
    let snapshot = &source.snapshot;
    let parts = [
        (snapshot.damaged, "places torn or damaged"),
        (snapshot.unknown, "records of a newer program"),
        (snapshot.histograms_damaged, "histograms damaged"),
        (snapshot.missing_bytes, "bytes missing at the end"),
    ];
    parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!(", {count} {what}")).collect()
}

/// What a file says of its process and of itself.
pub fn source_json(source: &Source) -> serde_json::Value {
    let snapshot = &source.snapshot;
    let origin = &snapshot.header.origin;
    json!({
        "file": source.path.display().to_string(), "process": origin.name, "node": origin.node,
        "process_id": origin.process_id, "fid": origin.process.to_string(), "epoch": origin.epoch,
        "locality": snapshot.header.locality, "endpoint": snapshot.header.endpoint, "state": source.state(),
        "unix_ns_at_zero": origin.unix_ns_at_zero, "boot_ns_at_zero": origin.boot_ns_at_zero,
        "records": snapshot.records.len(), "places": snapshot.header.shape.records,
        "damaged": snapshot.damaged, "unknown": snapshot.unknown,
        "histograms_damaged": snapshot.histograms_damaged, "missing_bytes": snapshot.missing_bytes,
    })
}

/// A line for the file, then one for each record.
fn print_json(source: &Source) -> Result<(), Failure> {
    output::line(&source_json(source).to_string())?;
    for record in &source.snapshot.records {
        let line = json!({
            "at_ns": record.at.as_nanos(), "request": format!("{:#018x}", record.request_id),
            "opcode": record.opcode, "fop": fop_name(record.opcode), "what": record.what.name(),
            "value": record.value, "sequence": record.sequence,
        });
        output::line(&line.to_string())?;
    }
    Ok(())
}
