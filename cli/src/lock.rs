//! `clovis lock list|release|break`: named locks at the control daemon. `take` and `ask` are in `holder.rs`.
//!
//! A lock belongs to an owner id, not to a process: what one command takes another may release, and it stays taken over crashes of both.
//! Rules: docs/locks.md.

use std::collections::BTreeSet;
use std::time::Duration;

use base::{Fid, ObjectId};
use fops::lock::{
    BreakState, FenceWait, LockBreak, LockBreakReply, LockEntry, LockList, LockMode, LockName, LockRelease,
    OnDeath,
};
use fops::news::of_holder;
use serde_json::{Value, json};

use crate::args::{LockBreakArgs, LockCommand, LockListArgs, LockNameArgs, LockReleaseArgs};
use crate::conf::{Desk, time_text};
use crate::failure::Failure;
use crate::holder;
use crate::output;
use crate::table::{Align, Table};
use crate::watch::all_watches;

/// Pause between two questions how far a break is.
const PAUSE: Duration = Duration::from_millis(200);
/// `clovis lock`
pub fn run(command: &LockCommand) -> Result<(), Failure> {
    match command {
        LockCommand::List(args) => list(args),
        LockCommand::Take(args) => holder::take(args),
        LockCommand::Ask(args) => holder::ask(args),
        LockCommand::Release(args) => release(args),
        LockCommand::Break(args) => break_lock(args),
    }
}

/// The lock that the arguments name.
pub fn name_of(args: &LockNameArgs) -> LockName {
    LockName { object: args.object.map(ObjectId::fid), name: args.name.clone() }
}

fn object_text(lock: &LockName) -> Option<String> {
    let object = lock.object?;
    Some(ObjectId::from_fid(object).map_or_else(|| object.to_string(), |object| object.to_string()))
}

/// A lock in a sentence.
pub fn lock_text(lock: &LockName) -> String {
    match object_text(lock) {
        Some(object) => format!("lock {} of object {object}", lock.name),
        None => format!("lock {}", lock.name),
    }
}

fn list(args: &LockListArgs) -> Result<(), Failure> {
    let mut desk = Desk::open(&args.connect)?;
    let object = args.object.map(ObjectId::fid);
    let (mut locks, mut after) = (Vec::new(), None);
    loop {
        let reply = desk.ask(&LockList { object, after: after.clone() })?;
        after = reply.locks.last().map(|last| (last.grant.lock.clone(), last.grant.ticket.owner));
        locks.extend(reply.locks);
        if !reply.more || after.is_none() {
            break;
        }
    }
    // Who can be asked for a lock watches for that. A control daemon of an earlier version does not tell.
    let watched = all_watches(&mut desk, None).ok();
    let watched: Option<BTreeSet<Fid>> =
        watched.map(|watches| watches.into_iter().map(|watch| watch.object).collect());
    let locks: Vec<(LockEntry, Option<bool>)> = locks
        .into_iter()
        .map(|entry| {
            let topic = of_holder(&entry.grant.lock, entry.grant.ticket.owner);
            let cooperates = watched.as_ref().map(|watched| watched.contains(&topic));
            (entry, cooperates)
        })
        .collect();
    if args.json {
        let locks: Vec<Value> =
            locks.iter().map(|(entry, cooperates)| entry_json(entry, *cooperates)).collect();
        return output::line(&json!({ "locks": locks }).to_string());
    }
    output::print(&list_text(&locks))
}

/// How it is held.
pub fn mode_word(mode: LockMode) -> &'static str {
    match mode {
        LockMode::Shared => "shared",
        LockMode::Exclusive => "exclusive",
    }
}

fn on_death_word(on_death: OnDeath) -> &'static str {
    match on_death {
        OnDeath::Hold => "hold",
        OnDeath::Fence => "fence",
    }
}

fn state_word(entry: &LockEntry) -> &'static str {
    match (&entry.grant.breaking, entry.fenced) {
        (Some(_), _) => "breaking",
        (None, true) => "fenced",
        (None, false) => "held",
    }
}

fn list_text(locks: &[(LockEntry, Option<bool>)]) -> String {
    let mut table = Table::new(&[
        ("LOCK", Align::Left),
        ("OBJECT", Align::Left),
        ("OWNER", Align::Left),
        ("EPOCH", Align::Right),
        ("MODE", Align::Left),
        ("ON DEATH", Align::Left),
        ("STATE", Align::Left),
        ("COOPERATIVE", Align::Left),
        ("WAITING", Align::Right),
        ("SINCE", Align::Left),
        ("FROM", Align::Left),
        ("WHY", Align::Left),
    ]);
    for (entry, cooperates) in locks {
        let grant = &entry.grant;
        table.row([
            grant.lock.name.clone(),
            object_text(&grant.lock).unwrap_or_else(|| "-".to_owned()),
            grant.ticket.owner.to_string(),
            grant.ticket.epoch.to_string(),
            mode_word(grant.mode).to_owned(),
            on_death_word(grant.on_death).to_owned(),
            state_word(entry).to_owned(),
            cooperates.map_or("?", |cooperates| if cooperates { "yes" } else { "no" }).to_owned(),
            entry.waiting.to_string(),
            time_text(grant.since_unix_s),
            grant.from.to_string(),
            // Anybody may have written it: nothing in it moves the cursor.
            grant.why.chars().filter(|letter| !letter.is_control()).collect(),
        ]);
    }
    table.render()
}

fn entry_json(entry: &LockEntry, cooperates: Option<bool>) -> Value {
    let grant = &entry.grant;
    let breaking = grant.breaking.as_ref().map(
        |breaking| json!({ "fence": breaking.fence, "by": breaking.by.to_string(), "why": breaking.why }),
    );
    json!({ "name": grant.lock.name, "object": object_text(&grant.lock),
            "owner": grant.ticket.owner.to_string(), "epoch": grant.ticket.epoch, "mode": mode_word(grant.mode),
            "on_death": on_death_word(grant.on_death), "state": state_word(entry), "waiting": entry.waiting,
            "since_unix_s": grant.since_unix_s, "from": grant.from.to_string(), "why": grant.why,
            "silent_ms": entry.silent_ms, "cooperative": cooperates, "breaking": breaking })
}

fn release(args: &LockReleaseArgs) -> Result<(), Failure> {
    let mut desk = Desk::open(&args.connect)?;
    let lock = name_of(&args.lock);
    let reply = desk.ask(&LockRelease { lock: lock.clone(), owner: args.owner, epoch: 0 })?;
    if !reply.released {
        let text = lock_text(&lock);
        return Err(Failure::new(format!(
            "owner {} does not hold {text} (see clovis lock list)",
            args.owner
        )));
    }
    if args.json { output::line(&json!({ "released": true }).to_string()) } else { Ok(()) }
}

fn break_lock(args: &LockBreakArgs) -> Result<(), Failure> {
    let mut desk = Desk::open(&args.connect)?;
    let wait_ms = if args.no_wait { 0 } else { 1_000 };
    let wish = LockBreak { lock: name_of(&args.lock), owner: args.owner, why: args.why.clone(), wait_ms };
    let mut begun = false;
    let reply = loop {
        let reply = desk.ask_waiting(&wish, Duration::from_millis(wait_ms.into()))?;
        match reply.state {
            BreakState::NotHeld if !begun => {
                return Err(Failure::new(format!(
                    "owner {} does not hold {} (see clovis lock list)",
                    args.owner,
                    lock_text(&wish.lock)
                )));
            }
            BreakState::Waiting if !args.no_wait => {
                begun = true;
                if !args.json {
                    eprintln!("clovis: {}", waiting_text(&reply.waiting));
                }
                desk.station.pause(PAUSE)?;
            }
            _ => break reply,
        }
    };
    if args.json {
        return output::line(&break_json(&reply).to_string());
    }
    match reply.state {
        BreakState::Waiting => output::line(&waiting_text(&reply.waiting)),
        _ => output::line(&format!(
            "{} is broken: every server refuses what owner {} writes with its old ticket",
            lock_text(&wish.lock),
            args.owner
        )),
    }
}

fn waiting_text(waiting: &[FenceWait]) -> String {
    let targets: Vec<String> = waiting
        .iter()
        .map(|wait| {
            let seconds = Duration::from_millis(wait.lease_ends_ms).as_secs_f32();
            format!(
                "device {} at {} (at most {seconds:.1} s, if it is not heard again)",
                wait.device, wait.endpoint
            )
        })
        .collect();
    match targets.is_empty() {
        true => "fenced at every target; the lock is about to be free".to_owned(),
        false => format!("waiting for {}", targets.join(", ")),
    }
}

fn break_json(reply: &LockBreakReply) -> Value {
    let waiting: Vec<Value> = reply
        .waiting
        .iter()
        .map(|wait| {
            json!({ "device": wait.device.to_string(), "process": wait.process.to_string(),
                    "endpoint": wait.endpoint.to_string(), "lease_ends_ms": wait.lease_ends_ms })
        })
        .collect();
    json!({ "done": reply.state != BreakState::Waiting, "waiting": waiting })
}

#[cfg(test)]
mod tests {
    use fops::lock::{LockBreaking, LockGrant, OwnerId, Ticket};

    use super::*;

    fn entry() -> LockEntry {
        LockEntry {
            grant: LockGrant {
                lock: LockName {
                    object: Some(ObjectId::new(1, 2).unwrap().fid()),
                    name: "writer".to_owned(),
                },
                ticket: Ticket { owner: OwnerId(0xab), epoch: 7 },
                mode: LockMode::Exclusive,
                on_death: OnDeath::Hold,
                from: "10.0.0.7@tcp:1:34:1".parse().unwrap(),
                since_unix_s: 0,
                why: "back\u{7}up".to_owned(),
                breaking: None,
            },
            silent_ms: None,
            waiting: 2,
            fenced: false,
        }
    }

    #[test]
    fn the_list_says_who_since_when_from_where_and_why() {
        let text = list_text(&[(entry(), Some(true))]);
        let row = text.lines().nth(1).unwrap();
        let owner = OwnerId(0xab).to_string();
        for word in
            ["writer", "1:2", &owner, "7", "exclusive", "hold", "held", "yes", "2", "10.0.0.7@tcp", "backup"]
        {
            assert!(row.contains(word), "{word} in {row}");
        }
        let mut broken = entry();
        let by = broken.grant.from;
        broken.grant.breaking = Some(LockBreaking { fence: 1, by, why: "it hangs".to_owned() });
        assert_eq!(entry_json(&broken, None)["state"], "breaking");
        assert_eq!(entry_json(&broken, None)["breaking"]["why"], "it hangs");
        assert_eq!(entry_json(&LockEntry { fenced: true, ..entry() }, Some(true))["state"], "fenced");
    }
}
