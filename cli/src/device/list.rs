//! `clovis device list`: each device with its state, its room, and since when and why it is in that state.
//!
//! State and room are control's word now; since when and why come from the events, of which control keeps the last ones only: what is
//! older is said to be so.

use base::Fid;
use base::units::BLOCK_BYTES;
use faces::cluster_file::DeviceSection;
use fops::conf::{DeviceStatus, Event};
use serde_json::{Value, json};

use crate::args::DeviceListArgs;
use crate::conf::{Desk, time_text};
use crate::daemon::server_name;
use crate::events;
use crate::failure::Failure;
use crate::output;
use crate::table::{Align, Table, bytes_text};

/// One line.
struct Row<'a> {
    target: usize,
    section: &'a DeviceSection,
    status: Option<&'a DeviceStatus>,
    /// The last change of its state that control keeps.
    last: Option<&'a Event>,
}

/// `clovis device list`
pub fn run(args: &DeviceListArgs) -> Result<(), Failure> {
    let mut desk = Desk::open(&args.connect)?;
    let (in_force, status) = desk.status()?;
    let events = events::all_kept(&mut desk)?;
    let row = |(target, section)| row_of(target, section, &status.devices, &events);
    let rows: Vec<Row<'_>> = in_force.file.devices.iter().enumerate().map(row).collect();
    if args.json {
        let devices: Vec<Value> = rows.iter().map(Row::json).collect();
        return output::line(
            &json!({ "configuration_version": status.version, "devices": devices }).to_string(),
        );
    }
    output::print(&text(&rows))
}

fn row_of<'a>(
    target: usize,
    section: &'a DeviceSection,
    status: &'a [DeviceStatus],
    events: &'a [Event],
) -> Row<'a> {
    let status = status.iter().find(|one| one.device == section.fid);
    let is_about = |event: &&Event| event.subject == section.fid && event.from != event.to;
    // An event that does not lead to the state of now is not its reason.
    let last = events.iter().rfind(is_about).filter(|event| status.is_some_and(|one| one.state == event.to));
    Row { target, section, status, last }
}

impl Row<'_> {
    fn state(&self) -> &str {
        self.status.map_or("unknown", |one| one.state.as_str())
    }

    /// Bytes of the device; `None` before it registered.
    fn size_bytes(&self) -> Option<u64> {
        self.status.map(|one| one.size_blocks.saturating_mul(BLOCK_BYTES)).filter(|bytes| *bytes > 0)
    }

    /// Bytes that are not free, by the last heartbeat.
    fn used_bytes(&self) -> Option<u64> {
        let free = self.status?.free_blocks?.saturating_mul(BLOCK_BYTES);
        Some(self.size_bytes()?.saturating_sub(free))
    }

    fn why(&self) -> String {
        match self.last {
            Some(event) => event.cause.clone(),
            None if self.state() == "unknown" => "never registered".to_owned(),
            None => "cannot tell: older than the events that control keeps".to_owned(),
        }
    }

    fn json(&self) -> Value {
        let server: Fid = self.section.server;
        json!({
            "target": self.target, "fid": self.section.fid.to_string(), "state": self.state(),
            "server": server_name(server), "process": server.to_string(), "path": self.section.path.display().to_string(),
            "size_bytes": self.size_bytes(), "used_bytes": self.used_bytes(), "errors": self.status.map(|one| one.errors),
            "since_unix_s": self.last.map(|event| event.unix_s).filter(|at| *at > 0), "why": self.last.map(|event| &event.cause),
            "event": self.last.map(|event| event.number),
        })
    }
}

fn text(rows: &[Row<'_>]) -> String {
    let mut table = Table::new(&[
        ("target", Align::Right),
        ("device", Align::Left),
        ("state", Align::Left),
        ("server", Align::Left),
        ("path", Align::Left),
        ("size", Align::Right),
        ("used", Align::Right),
        ("errors", Align::Right),
        ("since", Align::Left),
        ("why", Align::Left),
    ]);
    let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), bytes_text);
    for row in rows {
        table.row([
            row.target.to_string(),
            row.section.fid.to_string(),
            row.state().to_owned(),
            server_name(row.section.server),
            row.section.path.display().to_string(),
            bytes(row.size_bytes()),
            bytes(row.used_bytes()),
            row.status.map_or_else(|| "-".to_owned(), |one| one.errors.to_string()),
            row.last.map_or_else(|| "-".to_owned(), |event| time_text(event.unix_s)),
            row.why(),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use faces::ClusterFile;

    use super::*;

    #[test]
    fn a_state_is_explained_by_the_event_that_led_to_it_and_by_no_other() {
        let text = include_str!("../../../control/faces/src/cluster_file_example.toml");
        let file = ClusterFile::parse(text).unwrap();
        let section = &file.devices[0];
        let status = |state: &str| DeviceStatus {
            device: section.fid,
            state: state.to_owned(),
            size_blocks: 100,
            free_blocks: Some(75),
            errors: 0,
        };
        let event = |number, from: &str, to: &str, cause: &str| Event {
            number,
            version: number,
            unix_s: 1_700_000_000,
            subject: section.fid,
            cause: cause.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
        };
        let events = [event(1, "unknown", "online", "registered"), event(2, "online", "failed", "i/o error")];
        let failed = [status("failed")];
        let row = row_of(0, section, &failed, &events);
        assert_eq!((row.why().as_str(), row.used_bytes()), ("i/o error", Some(25 * BLOCK_BYTES)));
        assert_eq!(row.json()["event"], 2);
        let online = [status("online")];
        let row = row_of(0, section, &online, &events);
        assert!(row.why().starts_with("cannot tell"), "the last event kept is of an older state");
        assert_eq!(row.json()["since_unix_s"], Value::Null);
        assert_eq!(row_of(0, section, &[], &events).why(), "never registered");
    }
}
