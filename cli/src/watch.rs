//! `clovis watch` and `clovis notify`: tell whoever watches an object something, and hear who took it. Rules: docs/watch.md.
//!
//! The watcher acknowledges what it has printed, in that order, so that who notifies knows that it was said. It goes on over a restart of
//! control. A notify that somebody missed ends with status 1 and their names.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base::{Fid, FidType, ObjectId};
use client::{Notified, NotifyOutcome, Watch, WatchEvent};
use fops::codec;
use fops::lock::LockName;
use fops::news::{CONFIGURATION, ConfigurationNews, LockNews, of_lock};
use fops::watch::{MissedWhy, NotifyMissed, WatchEntry, WatchList};
use serde_json::{Value, json};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::args::{ConnectArgs, NotifyArgs, WatchArgs};
use crate::conf::Desk;
use crate::connection::{Station, connect};
use crate::failure::Failure;
use crate::lock::{lock_text, mode_word};
use crate::output;
use crate::table::{Align, Table};

/// Longest time until an interruption is noticed.
const NOTICE: Duration = Duration::from_millis(200);
/// How long control may take to answer a notify, without its wait.
const ANSWER_WITHIN_S: u64 = 30;

/// `clovis watch`
pub fn watch(args: &WatchArgs) -> Result<(), Failure> {
    if args.list {
        return list(args);
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    // From before the watch is registered: an interrupted watcher ends it.
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .map_err(Failure::while_doing("listening to signals"))?;
    }
    let name = args.name.clone().unwrap_or_else(|| format!("watch-{}", std::process::id()));
    let within = Duration::from_secs(args.connect.timeout);
    let (mut station, client, _) = connect(&args.connect, false)?;
    let watcher = client.watcher(&name, Duration::from_secs(u64::from(args.lease)));
    let deadline = station.now() + within;
    let topic = Topic::of(args);
    let watch = station.wait(watcher.watch(topic.fid(), deadline))?.map_err(failed)?;
    eprintln!("clovis: watching {topic} as {name}");
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let Some(event) = next(&mut station, &watch, &interrupted)? else { break };
        let WatchEvent::Notified(notified) = event else {
            output::line(if args.json {
                r#"{"gap":true}"#
            } else {
                "gap: notifications may have been missed"
            })?;
            continue;
        };
        output::line(&topic.line(&notified, args.json))?;
        match station.wait(notified.ack(args.reply.as_bytes()))? {
            Ok(true) => {}
            Ok(false) => eprintln!("clovis: the notifier no longer waited"),
            Err(error) => eprintln!("clovis: not acknowledged: {error}"),
        }
        left -= 1;
    }
    let deadline = station.now() + within;
    station.wait(watch.end(deadline))?.map_err(failed)
}

/// What is watched.
enum Topic {
    Object(ObjectId),
    Lock(LockName),
    Configuration,
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Topic::Object(object) => object.fmt(f),
            Topic::Lock(lock) => f.write_str(&lock_text(lock)),
            Topic::Configuration => f.write_str("the configuration"),
        }
    }
}

impl Topic {
    /// Of a command that names something.
    fn of(args: &WatchArgs) -> Topic {
        match (args.object, &args.lock) {
            (object, Some(name)) => {
                Topic::Lock(LockName { object: object.map(ObjectId::fid), name: name.clone() })
            }
            (Some(object), None) => Topic::Object(object),
            (None, None) => Topic::Configuration,
        }
    }

    fn fid(&self) -> Fid {
        match self {
            Topic::Object(object) => object.fid(),
            Topic::Lock(lock) => of_lock(lock),
            Topic::Configuration => CONFIGURATION,
        }
    }

    fn line(&self, notified: &Notified, json: bool) -> String {
        let strange = || "news of another version of Clovis".to_owned();
        match self {
            Topic::Object(object) if json => notified_json(*object, notified).to_string(),
            Topic::Object(_) => format!("{}  {}", notified.from(), payload_text(notified.payload())),
            Topic::Lock(_) => match codec::decode::<LockNews>(notified.payload()) {
                Ok(news) if json => news_json(&news).to_string(),
                Ok(news) => news_text(&news),
                Err(_) => strange(),
            },
            Topic::Configuration => match codec::decode::<ConfigurationNews>(notified.payload()) {
                Ok(news) if json => json!({ "version": news.version }).to_string(),
                Ok(news) => format!("version {}", news.version),
                Err(_) => strange(),
            },
        }
    }
}

fn news_text(news: &LockNews) -> String {
    match news {
        LockNews::Taken { grant } => {
            let (mode, from) = (mode_word(grant.mode), grant.from);
            let why: String = grant.why.chars().filter(|letter| !letter.is_control()).collect();
            format!("taken by {} ({mode}) from {from}  {why}", grant.ticket).trim_end().to_owned()
        }
        LockNews::Released { ticket, .. } => format!("released by {ticket}"),
        LockNews::Breaking { ticket, by, why, .. } => {
            let why: String = why.chars().filter(|letter| !letter.is_control()).collect();
            format!("breaking from {ticket} by {by}  {why}").trim_end().to_owned()
        }
        LockNews::Broken { ticket, .. } => format!("broken from {ticket}"),
    }
}

fn news_json(news: &LockNews) -> Value {
    match news {
        LockNews::Taken { grant } => {
            json!({ "event": "taken", "ticket": grant.ticket.to_string(), "mode": mode_word(grant.mode),
                    "from": grant.from.to_string(), "why": grant.why })
        }
        LockNews::Released { ticket, .. } => json!({ "event": "released", "ticket": ticket.to_string() }),
        LockNews::Breaking { ticket, by, why, .. } => {
            json!({ "event": "breaking", "ticket": ticket.to_string(), "by": by.to_string(), "why": why })
        }
        LockNews::Broken { ticket, .. } => json!({ "event": "broken", "ticket": ticket.to_string() }),
    }
}

/// Every watch that control knows, of one object or of all.
pub fn all_watches(desk: &mut Desk, object: Option<Fid>) -> Result<Vec<WatchEntry>, Failure> {
    let (mut watches, mut after) = (Vec::new(), None);
    loop {
        let reply = desk.ask(&WatchList { object, after })?;
        after = reply.watches.last().map(|last| (last.watch.watcher, last.watch.cookie));
        watches.extend(reply.watches);
        if !reply.more || after.is_none() {
            return Ok(watches);
        }
    }
}

/// `clovis watch --list`
fn list(args: &WatchArgs) -> Result<(), Failure> {
    let mut desk = Desk::open(&args.connect)?;
    let is_one = args.object.is_some() || args.lock.is_some() || args.configuration;
    let watches = all_watches(&mut desk, is_one.then(|| Topic::of(args).fid()))?;
    if args.json {
        let watches: Vec<Value> = watches.iter().map(entry_json).collect();
        return output::line(&json!({ "watches": watches }).to_string());
    }
    let mut table = Table::new(&[
        ("WATCHER", Align::Left),
        ("WATCHES", Align::Left),
        ("FROM", Align::Left),
        ("LEASE", Align::Right),
        ("HEARD", Align::Right),
        ("WAITING", Align::Right),
    ]);
    for entry in &watches {
        table.row([
            entry.watch.name.chars().filter(|letter| !letter.is_control()).collect(),
            watched_text(entry.object),
            entry.watch.from.to_string(),
            format!("{} s", entry.lease_ms / 1000),
            format!("{} ms ago", entry.silent_ms),
            entry.waiting.to_string(),
        ]);
    }
    output::print(&table.render())
}

/// What a watch is on. A lock's topic does not say which lock.
fn watched_text(watched: Fid) -> String {
    match ObjectId::from_fid(watched) {
        Some(object) => object.to_string(),
        None if watched == CONFIGURATION => "the configuration".to_owned(),
        None if watched.is(FidType::LockNews) => format!("a lock ({watched})"),
        None if watched.is(FidType::LockHolder) => format!("requests to a lock's holder ({watched})"),
        None => watched.to_string(),
    }
}

fn entry_json(entry: &WatchEntry) -> Value {
    json!({ "watcher": entry.watch.watcher.to_string(), "cookie": entry.watch.cookie, "name": entry.watch.name,
            "from": entry.watch.from.to_string(), "watched": watched_text(entry.object),
            "lease_ms": entry.lease_ms, "silent_ms": entry.silent_ms, "waiting": entry.waiting })
}

fn failed(error: client::ConfError) -> Failure {
    Failure::new(error.to_string())
}

/// The next event, or nothing once the command is interrupted. Errors: control refuses us for good.
fn next(
    station: &mut Station,
    watch: &Watch,
    interrupted: &AtomicBool,
) -> Result<Option<WatchEvent>, Failure> {
    let handle = station.handle();
    while !interrupted.load(Ordering::Relaxed) {
        let until = station.now() + NOTICE;
        if let Ok(event) = station.wait(handle.timeout_at(until, watch.next()))? {
            return Ok(Some(event));
        }
        if let Some(refusal) = watch.refusal() {
            return Err(Failure::new(refusal.to_string()));
        }
    }
    Ok(None)
}

/// Bytes as text if they are one that does not move the cursor, else in hexadecimal.
pub fn payload_text(payload: &[u8]) -> String {
    match std::str::from_utf8(payload) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => format!("0x{}", hex(payload)),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `payload` for a text, `payload_hex` for anything else.
fn with_payload(mut object: Value, payload: &[u8]) -> Value {
    match std::str::from_utf8(payload) {
        Ok(text) => object["payload"] = json!(text),
        Err(_) => object["payload_hex"] = json!(hex(payload)),
    }
    object
}

fn notified_json(object: ObjectId, notified: &Notified) -> Value {
    let head = json!({ "object": object.to_string(), "notify": notified.id().to_string(),
                       "from": notified.from().to_string() });
    with_payload(head, notified.payload())
}

/// `clovis notify`
pub fn notify(args: &NotifyArgs) -> Result<(), Failure> {
    let connect_args = ConnectArgs {
        config: args.config.clone(),
        credential: args.credential.clone(),
        timeout: ANSWER_WITHIN_S,
    };
    let (mut station, client, _) = connect(&connect_args, false)?;
    let within = Duration::from_secs(args.timeout);
    let outcome =
        station.wait(client.notify(args.object, args.payload.as_bytes(), within))?.map_err(failed)?;
    if args.json {
        output::line(&outcome_json(args.object, &outcome).to_string())?;
    } else if outcome.acks.is_empty() && outcome.missed.is_empty() {
        output::line(&format!("nobody watches {}", args.object))?;
    } else {
        output::print(&outcome_text(&outcome))?;
    }
    match outcome.missed.as_slice() {
        [] => Ok(()),
        missed => Err(Failure::new(missed_text(missed, outcome.acks.len() + missed.len()))),
    }
}

fn why_word(why: MissedWhy) -> &'static str {
    match why {
        MissedWhy::NotReached => "not reached",
        MissedWhy::NoAnswer => "no answer",
        MissedWhy::LeaseEnded => "lease ended",
        MissedWhy::Left => "left",
    }
}

fn missed_text(missed: &[NotifyMissed], watches: usize) -> String {
    let names: Vec<String> =
        missed.iter().map(|missed| format!("{} ({})", missed.watch.name, why_word(missed.why))).collect();
    format!("{} of {watches} watches missed it: {}", missed.len(), names.join(", "))
}

fn outcome_text(outcome: &NotifyOutcome) -> String {
    let mut table = Table::new(&[
        ("WATCHER", Align::Left),
        ("FROM", Align::Left),
        ("OUTCOME", Align::Left),
        ("REPLY", Align::Left),
    ]);
    for ack in &outcome.acks {
        let (name, from) = (ack.watch.name.clone(), ack.watch.from.to_string());
        table.row([name, from, "acknowledged".to_owned(), payload_text(&ack.payload)]);
    }
    for missed in &outcome.missed {
        let (name, from) = (missed.watch.name.clone(), missed.watch.from.to_string());
        table.row([name, from, why_word(missed.why).to_owned()]);
    }
    table.render()
}

fn outcome_json(object: ObjectId, outcome: &NotifyOutcome) -> Value {
    let place = |watch: &fops::watch::WatchPlace| {
        json!({ "watcher": watch.watcher.to_string(), "cookie": watch.cookie, "name": watch.name,
                "from": watch.from.to_string() })
    };
    let acks: Vec<Value> =
        outcome.acks.iter().map(|ack| with_payload(place(&ack.watch), &ack.payload)).collect();
    let missed: Vec<Value> = outcome
        .missed
        .iter()
        .map(|missed| {
            let mut entry = place(&missed.watch);
            entry["why"] = json!(why_word(missed.why));
            entry
        })
        .collect();
    json!({ "object": object.to_string(), "acks": acks, "missed": missed })
}

#[cfg(test)]
mod tests {
    use fops::watch::{NotifyAck, WatchPlace, WatcherId};

    use super::*;

    fn place(name: &str) -> WatchPlace {
        let from = "10.0.0.7@tcp:1:34:1".parse().unwrap();
        WatchPlace { watcher: WatcherId(0xab), cookie: 1, name: name.to_owned(), from }
    }

    #[test]
    fn the_outcome_names_everybody_and_bytes_do_not_move_the_cursor() {
        let outcome = NotifyOutcome {
            acks: vec![NotifyAck { watch: place("left"), payload: b"\x1b[2J".to_vec() }],
            missed: vec![NotifyMissed { watch: place("right"), why: MissedWhy::NoAnswer }],
        };
        let text = outcome_text(&outcome);
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[1], ["left", "10.0.0.7@tcp:1:34:1", "acknowledged", "0x1b5b324a"]);
        assert_eq!(rows[2], ["right", "10.0.0.7@tcp:1:34:1", "no", "answer"]);
        assert_eq!(missed_text(&outcome.missed, 2), "1 of 2 watches missed it: right (no answer)");
        let json = outcome_json(ObjectId::new(1, 7).unwrap(), &outcome);
        assert_eq!(json["missed"][0]["why"], "no answer");
        assert_eq!(json["acks"][0]["payload"], "\u{1b}[2J");
        assert_eq!(with_payload(json!({}), &[0xff])["payload_hex"], "ff");
        assert_eq!(payload_text("grüße".as_bytes()), "grüße");
    }
}
