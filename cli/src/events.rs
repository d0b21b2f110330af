//! `clovis events`: changes of states as control numbered them, once or for as long as it is wanted.
//!
//! Each request names the last number that was printed, so that nothing is printed twice, and what control no longer keeps is
//! said. While it follows, a control daemon that is away is asked again.

use std::time::Duration;

use fops::conf::{Event, EventsGet, EventsReply};
use serde_json::json;

use crate::args::EventsArgs;
use crate::conf::{Desk, time_text};
use crate::failure::Failure;
use crate::output;

/// How long one request of `--follow` waits at control.
const WAIT: Duration = Duration::from_secs(10);
/// Time between two tries while control is away.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// `clovis events`
pub fn run(args: &EventsArgs) -> Result<(), Failure> {
    let mut desk = Desk::open(&args.connect)?;
    let mut after = args.after;
    // The first answer shows that there is a control daemon at all.
    let mut reply = ask(&mut desk, after, Duration::ZERO)?;
    loop {
        after = print_page(&reply, after, args.json)?;
        if after < reply.newest {
            reply = ask(&mut desk, after, Duration::ZERO)?;
            continue;
        }
        if !args.follow {
            return Ok(());
        }
        reply = loop {
            match ask(&mut desk, after, WAIT) {
                Ok(reply) => break reply,
                Err(_) => desk.station.pause(TRY_AGAIN)?,
            }
        };
    }
}

fn ask(desk: &mut Desk, after: u64, wait: Duration) -> Result<EventsReply, Failure> {
    let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
    desk.ask_waiting(&EventsGet { after, wait_ms }, wait)
}

/// Every event that control keeps, oldest first.
pub fn all_kept(desk: &mut Desk) -> Result<Vec<Event>, Failure> {
    let mut events: Vec<Event> = Vec::new();
    loop {
        let after = events.last().map_or(0, |last| last.number);
        let reply = ask(desk, after, Duration::ZERO)?;
        if reply.events.is_empty() {
            return Ok(events);
        }
        events.extend(reply.events);
    }
}

/// Answer: the last number that is known now.
fn print_page(reply: &EventsReply, after: u64, as_json: bool) -> Result<u64, Failure> {
    if reply.newest < after {
        return Err(Failure::new(format!(
            "control has no event {after}, the newest is {}: it is another cluster, or its store was replaced",
            reply.newest
        )));
    }
    if reply.oldest > after + 1 && after > 0 {
        eprintln!("clovis: events {} to {} are no longer kept", after + 1, reply.oldest - 1);
    }
    for event in &reply.events {
        output::line(&if as_json { event_json(event).to_string() } else { event_line(event) })?;
    }
    Ok(reply.events.last().map_or(after, |last| last.number))
}

fn event_line(event: &Event) -> String {
    let what = if event.subject.is(base::FidType::Process) { "process" } else { "device" };
    format!(
        "{:>6}  {}  v{:<5} {what} {}: {} -> {} ({})",
        event.number,
        time_text(event.unix_s),
        event.version,
        event.subject,
        event.from,
        event.to,
        event.cause
    )
}

/// An event, for programs.
pub fn event_json(event: &Event) -> serde_json::Value {
    json!({ "number": event.number, "configuration_version": event.version, "unix_s": event.unix_s,
            "subject": event.subject.to_string(), "cause": event.cause, "from": event.from, "to": event.to })
}
