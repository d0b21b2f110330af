//! `clovis lock take|ask`: a lock is taken, and kept by this command if its holder's death means something or others may ask for it; a request is run by a
//! holder. Rules: docs/locks.md.
//!
//! A command that stays prints its ticket, then a line for each time that it is asked. Requests are run by the command of `--run`, one after the other, in
//! threads of their own, so that the lock is looked after meanwhile. Interrupted, it gives the lock back.

use std::io::{Read, Write};
use std::pin::pin;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use client::{Client, GrantedLock, HeldLock, HolderSaid, LockCall, LockError, LockWish, TakeProgress};
use faces::limits::HOLDER_ANSWER_BYTES_MAX;
use fops::lock::{LockMode, OnDeath, OwnerId, Ticket};
use serde_json::{Value, json};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::args::{ConnectArgs, LockAskArgs, LockTakeArgs, OnDeathArg};
use crate::connection::{Station, connect, new_owner};
use crate::failure::Failure;
use crate::lock::{lock_text, mode_word, name_of};
use crate::output;
use crate::watch::payload_text;

/// Longest time until an interruption is noticed.
const NOTICE: Duration = Duration::from_millis(100);
/// As good as for ever: eight years.
const EVER: Duration = Duration::from_secs(1 << 28);
/// How long control may take to answer, without the wait for a holder.
const ANSWER_WITHIN_S: u64 = 30;

fn failed(error: &LockError, lock: &fops::lock::LockName) -> Failure {
    // Objects are named as people name them.
    let (named, text) = (format!("lock {lock}"), lock_text(lock));
    let bare = text.trim_start_matches("lock ");
    Failure::new(error.to_string().replace(&named, &text).replace(&lock.to_string(), bare))
}

/// `clovis lock take`
pub fn take(args: &LockTakeArgs) -> Result<(), Failure> {
    let wish = LockWish {
        lock: name_of(&args.lock),
        owner: args.owner.map_or_else(new_owner, Ok)?,
        mode: if args.shared { LockMode::Shared } else { LockMode::Exclusive },
        on_death: match args.on_death {
            OnDeathArg::Hold => OnDeath::Hold,
            OnDeathArg::Fence => OnDeath::Fence,
        },
        why: args.why.clone(),
    };
    let stays = args.cooperative || wish.on_death == OnDeath::Fence;
    let interrupted = Arc::new(AtomicBool::new(false));
    if stays {
        // From before the lock is taken: an interrupted holder gives it back.
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))
                .map_err(Failure::while_doing("listening to signals"))?;
        }
    }
    let (mut station, client, _) = connect(&args.connect, false)?;
    let wait = if args.try_once { Duration::ZERO } else { EVER };
    let granted = wait_for(&mut station, &client, wish, wait, &interrupted)?;
    let Ticket { owner, epoch } = granted.ticket;
    output::line(&if args.json {
        json!({ "owner": owner.to_string(), "epoch": epoch, "ticket": granted.ticket.to_string() })
            .to_string()
    } else {
        granted.ticket.to_string()
    })?;
    if !stays {
        return Ok(());
    }
    let lock = granted.wish.lock.clone();
    let held = if args.cooperative {
        let held = station.wait(client.cooperate(granted))?;
        let held = held.map_err(|error| {
            let why = failed(&error, &lock);
            Failure::new(format!("{} is held by {owner}, and nobody can ask for it: {why}", lock_text(&lock)))
        })?;
        eprintln!("clovis: holding {} until somebody asks for it", lock_text(&lock));
        held
    } else {
        client.keep_lock(granted)
    };
    stay(&mut station, held, args, &interrupted)
}

/// Waits for the lock; says who is in the way, and what they say to it.
fn wait_for(
    station: &mut Station,
    client: &Client,
    wish: LockWish,
    wait: Duration,
    interrupted: &AtomicBool,
) -> Result<GrantedLock, Failure> {
    let lock = wish.lock.clone();
    let mut is_told = false;
    let mut last = None;
    let mut taking = pin!(client.take_lock(wish, wait, |progress| match progress {
        TakeProgress::Busy(busy) if !is_told => {
            is_told = true;
            eprintln!("clovis: {}; waiting", failed(busy, &lock));
        }
        TakeProgress::Said { holder, said } => {
            let said = Some((holder, said.clone()));
            if said != last {
                said.iter().for_each(|(holder, said)| eprintln!("clovis: {}", said_text(*holder, said)));
                last = said;
            }
        }
        _ => {}
    }));
    let handle = station.handle();
    loop {
        let until = station.now() + NOTICE;
        match station.wait(handle.timeout_at(until, taking.as_mut()))? {
            Ok(taken) => return taken.map_err(|error| failed(&error, &lock)),
            Err(_) if interrupted.load(Ordering::Relaxed) => {
                return Err(Failure::new("interrupted while it waited; the lock is not taken"));
            }
            Err(_) => {}
        }
    }
}

fn said_text(holder: OwnerId, said: &HolderSaid) -> String {
    match said {
        HolderSaid::Releases => format!("owner {holder} gives it back when it is done"),
        HolderSaid::Refuses { reason } => format!("owner {holder} keeps it: {}", one_line(reason)),
        HolderSaid::NotCooperative => format!("owner {holder} cannot be asked for it"),
        HolderSaid::Silent => format!("owner {holder} was asked for it, and did not answer"),
        HolderSaid::NotAsked { reason } => format!("owner {holder} was not asked for it: {reason}"),
        _ => format!("owner {holder} said something new"),
    }
}

/// Somebody else wrote it: nothing in it moves the cursor.
fn one_line(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).collect()
}

fn asked_line(args: &LockTakeArgs, text: String, json: Value) -> Result<(), Failure> {
    output::line(&if args.json { json.to_string() } else { text })
}

/// Keeps the lock until somebody asks for it and may have it, or the command is interrupted; then releases.
fn stay(
    station: &mut Station,
    held: HeldLock,
    args: &LockTakeArgs,
    interrupted: &AtomicBool,
) -> Result<(), Failure> {
    let (handle, ticket, lock) = (station.handle(), held.ticket(), held.lock().clone());
    let mut is_told = false;
    while !interrupted.load(Ordering::Relaxed) {
        if !args.cooperative && held.waiting() > 0 && !std::mem::replace(&mut is_told, true) {
            eprintln!("clovis: {} wait for {}", held.waiting(), lock_text(&lock));
        }
        let until = station.now() + NOTICE;
        let Ok(call) = station.wait(handle.timeout_at(until, held.next()))? else { continue };
        match call {
            LockCall::Release(call) => {
                let (owner, from) = (call.owner().to_string(), call.from().to_string());
                let (mode, why) = (mode_word(call.mode()), one_line(call.why()));
                let answer = args.refuse.as_ref().map_or("yes", |_| "no");
                asked_line(
                    args,
                    format!("asked by {owner} at {from} ({mode}): {answer}  {why}").trim_end().to_owned(),
                    json!({ "asked_by": owner, "from": from, "mode": mode, "why": why, "answer": answer }),
                )?;
                let Some(reason) = &args.refuse else {
                    report(station.wait(call.agree())?);
                    break;
                };
                report(station.wait(call.refuse(reason))?);
            }
            LockCall::Run(call) => {
                let from = call.from().map(|from| from.to_string()).unwrap_or_default();
                let payload = payload_text(call.payload());
                asked_line(
                    args,
                    format!("request of {from}  {payload}"),
                    json!({ "request_from": from, "payload": payload }),
                )?;
                let Some(command) = &args.run else {
                    let reason = "this holder runs no requests (clovis lock take --run COMMAND)";
                    report(station.wait(call.refuse(reason))?);
                    continue;
                };
                match run_command(station, command, ticket, call.payload())? {
                    Ok(answer) => match station.wait(call.answer(&answer))? {
                        Ok(_) => {}
                        Err(error) => eprintln!("clovis: {}", failed(&error, &lock)),
                    },
                    Err(reason) => report(station.wait(call.refuse(&reason))?),
                }
            }
            LockCall::Lost => {
                return Err(Failure::new(format!(
                    "{} is lost: ticket {ticket} is fenced, or control could not be reached for its lease",
                    lock_text(&lock)
                )));
            }
            _ => {}
        }
    }
    match station.wait(held.release(Duration::from_secs(args.connect.timeout)))? {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::new(format!("ticket {ticket} was fenced before the release"))),
        Err(error) => Err(Failure::new(format!("{} may be held still: {error}", lock_text(&lock)))),
    }
}

fn report(heard: Result<bool, client::ConfError>) {
    if let Err(error) = heard {
        eprintln!("clovis: the answer may not have been heard: {error}");
    }
}

/// Runs a request: its bytes are the command's input, its output is the answer. Inner error: why it failed.
fn run_command(
    station: &mut Station,
    command: &str,
    ticket: Ticket,
    payload: &[u8],
) -> Result<Result<Vec<u8>, String>, Failure> {
    let (sender, receiver) = mpsc::channel();
    let (command, payload) = (command.to_owned(), payload.to_vec());
    std::thread::Builder::new()
        .name("request".to_owned())
        .spawn(move || {
            // Nobody listens any more: the command is over.
            let _sent = sender
                .send(run_to_end(&command, ticket, &payload).unwrap_or_else(|error| Err(error.to_string())));
        })
        .map_err(Failure::while_doing("starting a thread for the request"))?;
    loop {
        match receiver.try_recv() {
            Ok(result) => return Ok(result),
            Err(mpsc::TryRecvError::Disconnected) => {
                return Ok(Err("the request's thread has died".to_owned()));
            }
            // The lock is looked after meanwhile.
            Err(mpsc::TryRecvError::Empty) => station.pause(Duration::from_millis(10))?,
        }
    }
}

fn run_to_end(command: &str, ticket: Ticket, payload: &[u8]) -> std::io::Result<Result<Vec<u8>, String>> {
    let mut child = Command::new("sh")
        .args(["-c", command])
        .env("CLOVIS_TICKET", ticket.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let input = child.stdin.take();
    let mut answer = Vec::new();
    std::thread::scope(|scope| {
        // One that does not read its input is no failure.
        scope.spawn(move || input.map(|mut input| input.write_all(payload)));
        child.stdout.take().map_or(Ok(0), |mut output| output.read_to_end(&mut answer))
    })?;
    let status = child.wait()?;
    if !status.success() {
        return Ok(Err(format!("its command ended with {status}")));
    }
    match answer.len() {
        bytes if bytes > HOLDER_ANSWER_BYTES_MAX => Ok(Err(format!(
            "it was run, and its answer has {bytes} bytes, more than the {HOLDER_ANSWER_BYTES_MAX} that are sent: put it into an object"
        ))),
        _ => Ok(Ok(answer)),
    }
}

/// `clovis lock ask`
pub fn ask(args: &LockAskArgs) -> Result<(), Failure> {
    let connect_args = ConnectArgs {
        config: args.config.clone(),
        credential: args.credential.clone(),
        timeout: ANSWER_WITHIN_S,
    };
    let (mut station, client, _) = connect(&connect_args, false)?;
    let lock = name_of(&args.lock);
    let within = Duration::from_secs(args.timeout);
    let asked = station.wait(client.ask_holder(&lock, args.owner, args.request.as_bytes(), within))?;
    let answer = asked.map_err(|error| failed(&error, &lock))?;
    // What commands print ends with one.
    let answer = payload_text(answer.strip_suffix(b"\n").unwrap_or(&answer));
    output::line(&if args.json { json!({ "answer": answer }).to_string() } else { answer })
}
