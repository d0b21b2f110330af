//! `clovis credit list|hold`: who holds what of the resource manager's; and what `cp` and `rm` do under a hold. Rules: docs/rm.md.
//!
//! A hold belongs to a process: it ends with the command, at once if that ends in order, else after its lease.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base::{Fid, ObjectId};
use client::{Client, ClientError, HoldError};
use fops::lock::LockMode;
use fops::rm::{RmCredit, RmList, RmLoanEntry, RmResource};
use serde_json::{Value, json};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::args::{CreditCommand, CreditHoldArgs, CreditListArgs, HoldArgs};
use crate::conf::Desk;
use crate::connection::{Station, connect};
use crate::failure::Failure;
use crate::output;
use crate::table::{Align, Table};

/// Longest time until an interruption, or the end of the lease, is noticed.
const NOTICE: Duration = Duration::from_millis(100);

/// `clovis credit`
pub fn run(command: &CreditCommand) -> Result<(), Failure> {
    match command {
        CreditCommand::List(args) => list(args),
        CreditCommand::Hold(args) => hold(args),
    }
}

/// A client for changes of `object` under what the arguments say.
pub fn writer(
    station: &mut Station,
    client: &Client,
    object: ObjectId,
    args: &HoldArgs,
) -> Result<Client, Failure> {
    if !args.exclusive {
        client.write_under(args.ticket);
        return Ok(client.clone());
    }
    let wait = Duration::from_secs(args.wait);
    let holding = station.wait(client.holding(object, LockMode::Exclusive, wait))?;
    holding.map_err(failed)
}

/// Gives back what a command held, once nothing uses it any more: who waits for it gets it now, not after the lease.
pub fn leave(station: &mut Station, client: &Client) {
    if let Ok(Err(error)) = station.wait(client.leave()) {
        eprintln!("clovis: what was held is free after its lease: {error}");
    }
}

fn failed(error: ClientError) -> Failure {
    let text = error.to_string();
    // Objects are named as people name them.
    Failure::new(match &error {
        ClientError::Hold(HoldError::Busy { resource, .. } | HoldError::Lost { resource }) => {
            text.replace(&resource.to_string(), &resource_text(resource))
        }
        _ => text,
    })
}

fn hold(args: &CreditHoldArgs) -> Result<(), Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    // From before it is held: an interrupted command gives it back.
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .map_err(Failure::while_doing("listening to signals"))?;
    }
    let (mut station, client, _) = connect(&args.connect, false)?;
    let mode = if args.shared { LockMode::Shared } else { LockMode::Exclusive };
    let wait = Duration::from_secs(args.wait);
    let holding = station.wait(client.holding(args.object, mode, wait))?.map_err(failed)?;
    output::line(&format!("holding {} {}", args.object, mode_word(mode)))?;
    let handle = station.handle();
    let mut was_wanted = false;
    while !interrupted.load(Ordering::Relaxed) {
        let is_wanted = holding.is_wanted().map_err(failed)?.unwrap_or(false);
        if is_wanted && !std::mem::replace(&mut was_wanted, is_wanted) {
            eprintln!("clovis: others wait for {}", args.object);
        }
        let until = station.now() + NOTICE;
        station.wait(handle.sleep_until(until))?;
    }
    drop(holding);
    leave(&mut station, &client);
    Ok(())
}

fn mode_word(mode: LockMode) -> &'static str {
    match mode {
        LockMode::Shared => "shared",
        LockMode::Exclusive => "exclusive",
    }
}

fn id_text(fid: Fid) -> String {
    ObjectId::from_fid(fid).map_or_else(|| fid.to_string(), |object| object.to_string())
}

fn resource_text(resource: &RmResource) -> String {
    match resource {
        RmResource::Object(fid) => format!("object {}", id_text(*fid)),
        RmResource::Keys(fid) => format!("keys of {}", id_text(*fid)),
        // Anybody may have chosen it: nothing in it moves the cursor.
        other => other.to_string().chars().filter(|letter| !letter.is_control()).collect(),
    }
}

fn credit_text(credit: &RmCredit) -> String {
    match credit {
        RmCredit::Whole { mode } => mode_word(*mode).to_owned(),
        RmCredit::Bytes { first, end, mode } => format!("bytes {first} to {end}, {}", mode_word(*mode)),
        RmCredit::Keys { mode, .. } => format!("a range of keys, {}", mode_word(*mode)),
        RmCredit::Fids(range) => format!("{} from {} on", range.count, range.first),
    }
}

fn state_word(entry: &RmLoanEntry) -> &'static str {
    match (entry.holder.lost, entry.asked_back) {
        (true, _) => "lost",
        (false, true) => "wanted",
        (false, false) => "held",
    }
}

fn list(args: &CreditListArgs) -> Result<(), Failure> {
    let mut desk = Desk::open(&args.connect)?;
    let (mut loans, mut after) = (Vec::new(), None);
    let (borrowers, waiting) = loop {
        let reply = desk.ask(&RmList { after })?;
        after = reply.loans.last().map(|last| (last.holder.borrower, last.number));
        loans.extend(reply.loans);
        if !reply.more || after.is_none() {
            break (reply.borrowers, reply.waiting);
        }
    };
    if args.json {
        let loans: Vec<Value> = loans.iter().map(entry_json).collect();
        let all = json!({ "loans": loans, "borrowers": borrowers, "waiting": waiting });
        return output::line(&all.to_string());
    }
    let mut table = Table::new(&[
        ("RESOURCE", Align::Left),
        ("CREDIT", Align::Left),
        ("STATE", Align::Left),
        ("FROM", Align::Left),
        ("HEARD", Align::Right),
    ]);
    for entry in &loans {
        table.row([
            resource_text(&entry.resource),
            credit_text(&entry.credit),
            state_word(entry).to_owned(),
            entry.holder.from.to_string(),
            format!("{} ms ago", entry.silent_ms),
        ]);
    }
    output::print(&format!("{}{borrowers} clients, {waiting} requests wait\n", table.render()))
}

fn entry_json(entry: &RmLoanEntry) -> Value {
    json!({
        "resource": resource_text(&entry.resource),
        "credit": credit_text(&entry.credit),
        "state": state_word(entry),
        "borrower": entry.holder.borrower.to_string(),
        "from": entry.holder.from.to_string(),
        "silent_ms": entry.silent_ms,
    })
}
