//! `clovis lock list|take|release|break`: named locks at the control daemon.
//!
//! A lock belongs to an owner id, not to a process: what one command takes another may release, and it stays taken over crashes of both.
//! With `--on-death fence` the command is the holder: it renews until it is interrupted, then releases. Rules: docs/locks.md.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base::ObjectId;
use fops::lock::{
    BreakState, FenceWait, LockBreak, LockBreakReply, LockEntry, LockList, LockMode, LockName, LockRelease,
    LockRenew, LockTake, LockTakeReply, OnDeath, OwnerId, Ticket,
};
use serde_json::{Value, json};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::args::{
    LockBreakArgs, LockCommand, LockListArgs, LockNameArgs, LockReleaseArgs, LockTakeArgs, OnDeathArg,
};
use crate::conf::{Desk, time_text};
use crate::failure::Failure;
use crate::output;
use crate::table::{Align, Table};

/// How long one request waits at control; who waits longer asks again, and keeps its place.
const WAIT_MS: u32 = 4_000;
/// Pause before a question that control could not let wait.
const PAUSE: Duration = Duration::from_millis(200);
/// Renewals in a lease.
const RENEWALS_PER_LEASE: u32 = 5;
/// Longest time until an interruption is noticed.
const NOTICE: Duration = Duration::from_millis(200);

/// `clovis lock`
pub fn run(command: &LockCommand) -> Result<(), Failure> {
    match command {
        LockCommand::List(args) => list(args),
        LockCommand::Take(args) => take(args),
        LockCommand::Release(args) => release(args),
        LockCommand::Break(args) => break_lock(args),
    }
}

fn name_of(args: &LockNameArgs) -> LockName {
    LockName { object: args.object.map(ObjectId::fid), name: args.name.clone() }
}

fn object_text(lock: &LockName) -> Option<String> {
    let object = lock.object?;
    Some(ObjectId::from_fid(object).map_or_else(|| object.to_string(), |object| object.to_string()))
}

/// A lock in a sentence.
fn lock_text(lock: &LockName) -> String {
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
    if args.json {
        let locks: Vec<Value> = locks.iter().map(entry_json).collect();
        return output::line(&json!({ "locks": locks }).to_string());
    }
    output::print(&list_text(&locks))
}

fn mode_word(mode: LockMode) -> &'static str {
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

fn list_text(locks: &[LockEntry]) -> String {
    let mut table = Table::new(&[
        ("LOCK", Align::Left),
        ("OBJECT", Align::Left),
        ("OWNER", Align::Left),
        ("EPOCH", Align::Right),
        ("MODE", Align::Left),
        ("ON DEATH", Align::Left),
        ("STATE", Align::Left),
        ("WAITING", Align::Right),
        ("SINCE", Align::Left),
        ("FROM", Align::Left),
        ("WHY", Align::Left),
    ]);
    for entry in locks {
        let grant = &entry.grant;
        table.row([
            grant.lock.name.clone(),
            object_text(&grant.lock).unwrap_or_else(|| "-".to_owned()),
            grant.ticket.owner.to_string(),
            grant.ticket.epoch.to_string(),
            mode_word(grant.mode).to_owned(),
            on_death_word(grant.on_death).to_owned(),
            state_word(entry).to_owned(),
            entry.waiting.to_string(),
            time_text(grant.since_unix_s),
            grant.from.to_string(),
            // Anybody may have written it: nothing in it moves the cursor.
            grant.why.chars().filter(|letter| !letter.is_control()).collect(),
        ]);
    }
    table.render()
}

fn entry_json(entry: &LockEntry) -> Value {
    let grant = &entry.grant;
    let breaking = grant.breaking.as_ref().map(
        |breaking| json!({ "fence": breaking.fence, "by": breaking.by.to_string(), "why": breaking.why }),
    );
    json!({ "name": grant.lock.name, "object": object_text(&grant.lock),
            "owner": grant.ticket.owner.to_string(), "epoch": grant.ticket.epoch, "mode": mode_word(grant.mode),
            "on_death": on_death_word(grant.on_death), "state": state_word(entry), "waiting": entry.waiting,
            "since_unix_s": grant.since_unix_s, "from": grant.from.to_string(), "why": grant.why,
            "silent_ms": entry.silent_ms, "breaking": breaking })
}

fn take(args: &LockTakeArgs) -> Result<(), Failure> {
    let mut desk = Desk::open(&args.connect)?;
    let owner = args.owner.unwrap_or_else(|| OwnerId(fastrand::Rng::new().u128(1..)));
    let wait_ms = if args.try_once { 0 } else { WAIT_MS };
    let wish = LockTake {
        lock: name_of(&args.lock),
        owner,
        mode: if args.shared { LockMode::Shared } else { LockMode::Exclusive },
        on_death: match args.on_death {
            OnDeathArg::Hold => OnDeath::Hold,
            OnDeathArg::Fence => OnDeath::Fence,
        },
        why: args.why.clone(),
        wait_ms,
    };
    let interrupted = Arc::new(AtomicBool::new(false));
    if args.on_death == OnDeathArg::Fence {
        // From before the lock is taken: an interrupted holder gives it back.
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))
                .map_err(Failure::while_doing("listening to signals"))?;
        }
    }
    let mut told = false;
    let (epoch, lease_ms) = loop {
        let asked_at = desk.station.now();
        match desk.ask_waiting(&wish, Duration::from_millis(wait_ms.into()))? {
            LockTakeReply::Granted { epoch, lease_ms } => break (epoch, lease_ms),
            LockTakeReply::Busy { holders, ahead } => {
                let busy = busy_text(&wish.lock, &holders, ahead);
                if args.try_once {
                    return Err(Failure::new(busy));
                }
                if interrupted.load(Ordering::Relaxed) {
                    return Err(Failure::new("interrupted while it waited; the lock is not taken"));
                }
                if !std::mem::replace(&mut told, true) {
                    eprintln!("clovis: {busy}; waiting");
                }
                // Control wakes who waits there. Only one that it could not let wait has to ask from time to time.
                if desk.station.now() < asked_at + Duration::from_millis(u64::from(wait_ms)) {
                    desk.station.pause(PAUSE)?;
                }
            }
        }
    };
    let ticket = Ticket { owner, epoch };
    output::line(&if args.json {
        json!({ "owner": owner.to_string(), "epoch": epoch, "ticket": ticket.to_string() }).to_string()
    } else {
        ticket.to_string()
    })?;
    match wish.on_death {
        OnDeath::Hold => Ok(()),
        OnDeath::Fence => stay(&mut desk, wish.lock, ticket, Duration::from_millis(lease_ms), &interrupted),
    }
}

fn busy_text(lock: &LockName, holders: &[OwnerId], ahead: u32) -> String {
    let holders: Vec<String> = holders.iter().map(OwnerId::to_string).collect();
    let mut text = match holders.is_empty() {
        true => format!("{} is about to pass on", lock_text(lock)),
        false => format!("{} is held by {}", lock_text(lock), holders.join(", ")),
    };
    if ahead > 0 {
        text.push_str(&format!(", {ahead} wait before"));
    }
    text
}

/// Renews until it is interrupted, then releases.
fn stay(
    desk: &mut Desk,
    lock: LockName,
    ticket: Ticket,
    lease: Duration,
    interrupted: &AtomicBool,
) -> Result<(), Failure> {
    let renew = LockRenew { lock, ticket };
    let mut told = false;
    desk.within = lease;
    // The command asked for the lock just before; it counts from the first renewal that it sends.
    let mut renewed_at = desk.station.now();
    loop {
        if interrupted.load(Ordering::Relaxed) {
            let LockRenew { lock, ticket: Ticket { owner, epoch } } = renew;
            let reply = desk.ask(&LockRelease { lock, owner, epoch })?;
            return match reply.released {
                true => Ok(()),
                false => Err(Failure::new(format!("ticket {ticket} was fenced before the release"))),
            };
        }
        let sent_at = desk.station.now();
        match desk.ask(&renew) {
            Ok(reply) if !reply.held => {
                return Err(Failure::new(format!(
                    "{} is lost: ticket {ticket} is fenced",
                    lock_text(&renew.lock)
                )));
            }
            Ok(reply) => {
                renewed_at = sent_at;
                if reply.waiting > 0 && !std::mem::replace(&mut told, true) {
                    eprintln!("clovis: {} wait for {}", reply.waiting, lock_text(&renew.lock));
                }
            }
            Err(failure) if desk.station.now() >= renewed_at + lease => {
                return Err(Failure::new(format!(
                    "{} may be lost: it was not renewed for {} s: {failure}",
                    lock_text(&renew.lock),
                    lease.as_secs_f32()
                )));
            }
            // Asked again, until the lease is over.
            Err(_) => {}
        }
        let next_at = sent_at + lease / RENEWALS_PER_LEASE;
        while desk.station.now() < next_at && !interrupted.load(Ordering::Relaxed) {
            let left = next_at.since(desk.station.now());
            desk.station.pause(left.min(NOTICE))?;
        }
    }
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
    use fops::lock::{LockBreaking, LockGrant};

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
        let text = list_text(&[entry()]);
        let row = text.lines().nth(1).unwrap();
        let owner = OwnerId(0xab).to_string();
        for word in ["writer", "1:2", &owner, "7", "exclusive", "hold", "held", "2", "10.0.0.7@tcp", "backup"]
        {
            assert!(row.contains(word), "{word} in {row}");
        }
        let mut broken = entry();
        let by = broken.grant.from;
        broken.grant.breaking = Some(LockBreaking { fence: 1, by, why: "it hangs".to_owned() });
        assert_eq!(entry_json(&broken)["state"], "breaking");
        assert_eq!(entry_json(&broken)["breaking"]["why"], "it hangs");
        assert_eq!(entry_json(&LockEntry { fenced: true, ..entry() })["state"], "fenced");
    }
}
