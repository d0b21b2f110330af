//! `clovis repair`: how far the copies to replaced devices, and to spare units and back, are, and an operator's word on them. `clovis rebalance` is the same for pools
//! ([`crate::rebalance`]): what both share takes the fid of a device or of a pool.
//!
//! The servers copy, control orders and keeps how far they are (docs/ha.md#repair): a command only gives an order, or looks. One that
//! follows asks twice a second, through a restart of control too; ending it changes nothing. Start at [`run`] and [`follow`].

use std::time::Duration;

use base::{Fid, FidType};
use faces::SpareCopy;
use fops::conf::{DeviceCommand, DeviceCommandReply, DeviceOrder};
use fops::repair::{RepairGet, RepairStatus};
use serde_json::{Value, json};

use crate::args::{RepairCommand, RepairOrderArgs, RepairStartArgs, RepairStatusArgs};
use crate::conf::Desk;
use crate::device::find;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::output;
use crate::progress::Progress;
use crate::table::bytes_text;

/// How often it is asked how far a repair is.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// How often it is asked whether an order has come to pass.
const ORDER_AGAIN: Duration = Duration::from_millis(100);
/// A control daemon that is silent for so long is not waited for any more.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// `clovis repair`
pub fn run(command: &RepairCommand) -> Result<(), Failure> {
    match command {
        RepairCommand::Start(args) => start(args),
        RepairCommand::Pause(args) => give(args, DeviceOrder::RepairPause),
        RepairCommand::Resume(args) => give(args, DeviceOrder::RepairResume),
        RepairCommand::Abort(args) => give(args, DeviceOrder::RepairAbort),
        RepairCommand::Status(args) => status(args),
    }
}

/// Every repair that control knows of.
pub fn all(desk: &mut Desk) -> Result<Vec<RepairStatus>, Failure> {
    let mut all: Vec<RepairStatus> = Vec::new();
    loop {
        let reply = desk.ask(&RepairGet { after: all.last().map(|last| last.device) })?;
        let is_stuck = reply.repairs.is_empty();
        all.extend(reply.repairs);
        if !reply.has_more || is_stuck {
            return Ok(all);
        }
    }
}

/// Those of devices.
pub fn of_devices(desk: &mut Desk) -> Result<Vec<RepairStatus>, Failure> {
    let mut repairs = all(desk)?;
    repairs.retain(|repair| !is_of_pool(repair));
    Ok(repairs)
}

/// True of the rebalance of a pool.
pub fn is_of_pool(repair: &RepairStatus) -> bool {
    repair.device.is(FidType::Pool)
}

/// What is repaired or rebalanced, in words.
fn title(subject: Fid) -> String {
    match subject.is(FidType::Pool) {
        true => format!("the rebalance of pool {subject}"),
        false => format!("the repair of device {subject}"),
    }
}

/// That of one device or pool, if it ever had one.
pub fn of_device(desk: &mut Desk, device: Fid) -> Result<Option<RepairStatus>, Failure> {
    Ok(all(desk)?.into_iter().find(|repair| repair.device == device))
}

/// The device that is named, or all whose repair is in one of these states.
fn chosen(desk: &mut Desk, named: Option<&str>, states: &[&str]) -> Result<Vec<Fid>, Failure> {
    if let Some(name) = named {
        return Ok(vec![find(&desk.local, name)?.1.fid]);
    }
    let fitting = of_devices(desk)?.into_iter().filter(|repair| states.contains(&repair.state.as_str()));
    let devices: Vec<Fid> = fitting.map(|repair| repair.device).collect();
    if devices.is_empty() {
        return Err(Failure::new(format!(
            "no repair is {}: `clovis repair status` shows those that there are",
            states.join(" or ")
        )));
    }
    Ok(devices)
}

fn start(args: &RepairStartArgs) -> Result<(), Failure> {
    let mut desk = Desk::open(&args.connect)?;
    let devices = chosen(&mut desk, args.device.as_deref(), &["failed"])?;
    let mut started = Vec::new();
    for device in devices {
        let reply = desk.ask(&DeviceCommand { device, order: DeviceOrder::RepairStart })?;
        if !args.json {
            let is_there = SpareCopy::of_number(reply.replacement) == Some(SpareCopy::There);
            let is_first = of_device(&mut desk, device)?.is_some_and(|found| found.progress.records == 0);
            output::line(&match (is_there, reply.is_new && is_first, reply.is_new) {
                (true, true, _) => format!(
                    "the units of device {device} are being rebuilt in spare units: writes go there, and reads rebuild until all is there"
                ),
                (_, _, true) => format!("the repair of device {device} begins again, from the first object"),
                _ => format!("the repair of device {device} runs already"),
            })?;
        }
        started.push((device, reply));
    }
    if args.detach {
        return if args.json { print_orders(&started) } else { Ok(()) };
    }
    let _interrupt = say_when_interrupted()?;
    for (device, reply) in started {
        let done = follow(&mut desk, device, reply.replacement, args.json)?;
        output::line(&if args.json { repair_json(&done).to_string() } else { repair_line(&done) })?;
    }
    Ok(())
}

fn give(args: &RepairOrderArgs, order: DeviceOrder) -> Result<(), Failure> {
    let mut desk = Desk::open(&args.connect)?;
    let (word, states): (_, &[&str]) = match order {
        DeviceOrder::RepairPause => ("paused", &["running", "waiting"]),
        DeviceOrder::RepairResume => ("resumed", &["paused"]),
        _ => ("aborted", &["running", "waiting", "paused", "failed"]),
    };
    let devices = chosen(&mut desk, args.device.as_deref(), states)?;
    if order == DeviceOrder::RepairAbort && devices.len() > 1 {
        return Err(Failure::new(format!(
            "{} devices are in repair: name the one whose new disk is to be given up",
            devices.len()
        )));
    }
    let mut given = Vec::new();
    for device in devices {
        let within = desk.within;
        let is_heeded = |reply: &DeviceCommandReply| reply.is_heeded || order == DeviceOrder::RepairResume;
        let (reply, last) = order_until(&mut desk, DeviceCommand { device, order }, within, is_heeded)?;
        if !args.json {
            let already = if reply.is_new { "" } else { " (it was already)" };
            output::line(&format!(
                "the repair of device {device} is {word}{already}; the device is {}",
                reply.state
            ))?;
        }
        given.push((device, DeviceCommandReply { is_heeded: last.is_heeded, ..reply }));
    }
    if args.json { print_orders(&given) } else { Ok(()) }
}

/// Gives an order, which may be repeated harmlessly, until it has come to pass or the time is over: the first and the last answer.
pub fn order_until(
    desk: &mut Desk,
    command: DeviceCommand,
    within: Duration,
    has_come_to_pass: impl Fn(&DeviceCommandReply) -> bool,
) -> Result<(DeviceCommandReply, DeviceCommandReply), Failure> {
    let deadline = desk.station.now() + within;
    let first = desk.ask(&command)?;
    let mut last = first.clone();
    while !has_come_to_pass(&last) && desk.station.now() < deadline {
        desk.station.pause(ORDER_AGAIN)?;
        last = desk.ask(&command)?;
    }
    Ok((first, last))
}

/// An order that was given, for programs.
pub fn order_json(device: Fid, reply: &DeviceCommandReply) -> Value {
    json!({
        "device": device.to_string(), "state": reply.state, "configuration_version": reply.version,
        "replacement": reply.replacement, "is_new": reply.is_new, "is_heeded": reply.is_heeded,
    })
}

fn print_orders(given: &[(Fid, DeviceCommandReply)]) -> Result<(), Failure> {
    let repairs: Vec<Value> = given.iter().map(|(device, reply)| order_json(*device, reply)).collect();
    output::line(&json!({ "repairs": repairs }).to_string())
}

fn status(args: &RepairStatusArgs) -> Result<(), Failure> {
    let mut desk = Desk::open(&args.connect)?;
    let device = args.device.as_deref().map(|name| find(&desk.local, name).map(|(_, section)| section.fid));
    let device = device.transpose()?;
    let mut repairs = of_devices(&mut desk)?;
    repairs.retain(|repair| device.is_none_or(|device| repair.device == device));
    if args.follow {
        let unfinished = |repair: &&RepairStatus| !is_over(repair);
        let Some(first) = repairs.iter().find(unfinished).cloned() else {
            return print_status(&repairs, args.json);
        };
        let _interrupt = say_when_interrupted()?;
        let done = follow(&mut desk, first.device, first.replacement, args.json)?;
        return print_status(&[done], args.json);
    }
    print_status(&repairs, args.json)
}

fn print_status(repairs: &[RepairStatus], as_json: bool) -> Result<(), Failure> {
    if as_json {
        let repairs: Vec<Value> = repairs.iter().map(repair_json).collect();
        return output::line(&json!({ "repairs": repairs }).to_string());
    }
    if repairs.is_empty() {
        return output::line("nothing is repaired, and nothing was");
    }
    for repair in repairs {
        output::line(&repair_line(repair))?;
        for line in lost_lines(repair) {
            output::line(&format!("  {line}"))?;
        }
    }
    Ok(())
}

pub fn is_over(repair: &RepairStatus) -> bool {
    matches!(repair.state.as_str(), "done" | "failed" | "aborted")
}

/// What becomes of a copy that nobody looks at.
const GOES_ON: &str = "it goes on in its server: the `status --follow` of the same command shows it";

/// From now on a command that is ended says that the repair is not. Once in a command.
pub fn say_when_interrupted() -> Result<Interrupt, Failure> {
    Interrupt::guard(|| GOES_ON.to_owned())
}

/// Shows a repair until the device is whole; the last that was seen of it. Errors: it failed or was aborted, or control is gone; the
/// repair itself goes on then if it can.
pub fn follow(desk: &mut Desk, device: Fid, replacement: u32, quiet: bool) -> Result<RepairStatus, Failure> {
    let mut bar: Option<Progress> = None;
    let mut heard_at = desk.station.now();
    let end = loop {
        match of_device(desk, device) {
            Ok(Some(found)) if found.replacement == replacement => {
                heard_at = desk.station.now();
                let heading = match (is_of_pool(&found), SpareCopy::of_number(replacement)) {
                    (true, _) => format!("moving objects of {device}"),
                    (_, None | Some(SpareCopy::Back)) => format!("copying to {device}"),
                    (_, Some(SpareCopy::There)) => format!("rebuilding {device} in spare units"),
                    (_, Some(SpareCopy::Free)) => format!("freeing spare units of {device}"),
                };
                let bar = bar.get_or_insert_with(|| Progress::start(&heading, found.expected_bytes, quiet));
                bar.head(&format!("{heading}: {}", found.state));
                bar.reach(found.progress.bytes);
                if is_over(&found) {
                    break found;
                }
            }
            // What stood in spare units is being freed: what was followed came to its end in between.
            Ok(Some(found)) if SpareCopy::of_number(found.replacement) == Some(SpareCopy::Free) => {
                break RepairStatus { state: "done".to_owned(), ..found };
            }
            Ok(_) => {
                return Err(Failure::new(match device.is(FidType::Pool) {
                    true => format!(
                        "pool {device} has begun another rebalance meanwhile: this one counts for nothing any more"
                    ),
                    false => {
                        format!(
                            "device {device} was given another disk meanwhile: this repair counts for nothing any more"
                        )
                    }
                }));
            }
            Err(failure) if heard_at + SILENCE_MAX <= desk.station.now() => {
                return Err(Failure::new(format!("{failure}; {GOES_ON}")));
            }
            // Control is away for a moment: the server copies all the same.
            Err(_) => {}
        }
        desk.station.pause(ASK_AGAIN)?;
    };
    drop(bar);
    match end.state.as_str() {
        "done" => Ok(end),
        "aborted" if is_of_pool(&end) => {
            Err(Failure::new(format!("{} was aborted: what was moved stays where it is now", title(device))))
        }
        "aborted" => {
            let what = match SpareCopy::of_number(replacement) {
                Some(SpareCopy::Back) => "its units stay in spare units, and the new disk is given up",
                _ => "the device is failed again",
            };
            Err(Failure::new(format!("{} was aborted: {what}", title(device))))
        }
        _ => Err(Failure::new(failed_text(&end))),
    }
}

fn failed_text(repair: &RepairStatus) -> String {
    let RepairStatus { device, reason, .. } = repair;
    let lost = lost_lines(repair);
    let command = if is_of_pool(repair) { "rebalance" } else { "repair" };
    let next = if lost.is_empty() {
        format!("`clovis {command} start {device}` tries again")
    } else {
        format!(
            "bring other devices back, or remove these objects, and `clovis {command} start {device}` tries again (by itself when a device comes back)"
        )
    };
    let lost = lost.iter().map(|line| format!("; {line}")).collect::<String>();
    let until = match (is_of_pool(repair), SpareCopy::of_number(repair.replacement)) {
        (true, _) => "every object can be used where it is",
        (_, None) => "until it is done the device stays in repair",
        (_, Some(SpareCopy::There)) => {
            "until it is done the device stays failed, and reads rebuild its units"
        }
        (_, Some(SpareCopy::Back)) => "until it is done the spare units have everything",
        (_, Some(SpareCopy::Free)) => "until it is done the spare units can stand for no other device",
    };
    format!("{} failed: {reason}{lost}; {until}; {next}", title(*device))
}

fn lost_lines(repair: &RepairStatus) -> Vec<String> {
    let progress = &repair.progress;
    if progress.lost_count == 0 {
        return Vec::new();
    }
    let mut names: Vec<String> = progress.lost.iter().map(|fid| object_text(*fid)).collect();
    let more = progress.lost_count.saturating_sub(base::units::wide(names.len()));
    if more > 0 {
        names.push(format!("and {more} more"));
    }
    vec![format!("lost: {}", names.join(", "))]
}

fn object_text(fid: Fid) -> String {
    base::ObjectId::from_fid(fid).map_or_else(|| fid.to_string(), |object| object.to_string())
}

/// Seconds until it is done, if that can be said.
fn seconds_left(repair: &RepairStatus) -> Option<u64> {
    let left = repair.expected_bytes.checked_sub(repair.progress.bytes)?;
    (repair.state == "running").then(|| left.checked_div(repair.bytes_per_second))?
}

/// One line, for people.
pub fn repair_line(repair: &RepairStatus) -> String {
    let RepairStatus { device, replacement, state, reason, progress, .. } = repair;
    let subject = match (is_of_pool(repair), SpareCopy::of_number(*replacement)) {
        (true, _) => format!("pool {device}  rebalance {replacement}"),
        (_, None) => format!("device {device}  replacement {replacement}"),
        (_, Some(copy)) => format!("device {device}  {}", copy.word()),
    };
    let mut line =
        format!("{subject}  {state}: {} objects, {}", progress.objects, bytes_text(progress.bytes));
    if !is_over(repair) && repair.expected_bytes > 0 {
        line.push_str(&format!(" of about {}", bytes_text(repair.expected_bytes)));
    }
    if state == "running" {
        line.push_str(&format!(", {}/s", bytes_text(repair.bytes_per_second)));
    }
    if repair.bytes_per_second_max > 0 && !is_over(repair) {
        line.push_str(&format!(" (at most {}/s)", bytes_text(repair.bytes_per_second_max)));
    }
    if let Some(seconds) = seconds_left(repair) {
        line.push_str(&format!(", about {seconds} s left"));
    }
    if !reason.is_empty() {
        line.push_str(&format!("; {}", reason.escape_debug()));
    }
    line
}

/// A repair, for programs.
pub fn repair_json(repair: &RepairStatus) -> Value {
    let progress = &repair.progress;
    let lost: Vec<String> = progress.lost.iter().map(|fid| object_text(*fid)).collect();
    let RepairStatus { device, process, replacement, state, reason, .. } = repair;
    let (subject, number) =
        if is_of_pool(repair) { ("pool", "rebalance") } else { ("device", "replacement") };
    let copy = SpareCopy::of_number(*replacement).filter(|_| !is_of_pool(repair));
    let replacement = copy.map_or(*replacement, |_| SpareCopy::count_of(*replacement));
    let number = if copy.is_some() { "copy" } else { number };
    json!({
        "spares": copy.map(SpareCopy::word),
        subject: device.to_string(), "process": process.to_string(), number: replacement, "state": state, "reason": reason,
        "records": progress.records, "objects": progress.objects, "bytes": progress.bytes,
        "last_object": progress.last.map(object_text), "lost_objects": progress.lost_count, "lost": lost,
        "expected_bytes": repair.expected_bytes, "bytes_per_second": repair.bytes_per_second,
        "bytes_per_second_max": repair.bytes_per_second_max, "seconds_left": seconds_left(repair),
    })
}

#[cfg(test)]
mod tests {
    use fops::repair::RepairProgress;

    use super::*;

    fn repair(state: &str) -> RepairStatus {
        RepairStatus {
            device: "0x6b00000000000001:3".parse().unwrap(),
            process: "0x7200000000000001:1".parse().unwrap(),
            replacement: 2,
            state: state.to_owned(),
            reason: String::new(),
            progress: RepairProgress { objects: 7, bytes: 1 << 20, ..RepairProgress::default() },
            expected_bytes: 5 << 20,
            bytes_per_second: 1 << 20,
            bytes_per_second_max: 0,
        }
    }

    #[test]
    fn a_repair_on_one_line() {
        assert_eq!(
            repair_line(&repair("running")),
            "device 0x6b00000000000001:0x3  replacement 2  running: 7 objects, 1.0 MiB of about 5.0 MiB, 1.0 MiB/s, about 4 s left"
        );
        assert_eq!(
            repair_line(&repair("done")),
            "device 0x6b00000000000001:0x3  replacement 2  done: 7 objects, 1.0 MiB"
        );
        let mut limited =
            RepairStatus { bytes_per_second_max: 2 << 20, reason: "a\nb".to_owned(), ..repair("paused") };
        assert!(repair_line(&limited).ends_with("1.0 MiB of about 5.0 MiB (at most 2.0 MiB/s); a\\nb"));
        limited.state = "running".to_owned();
        for (bytes, rate) in [(u64::MAX, 1), (0, 0), (u64::MAX, 0)] {
            (limited.progress.bytes, limited.bytes_per_second) = (bytes, rate);
            assert_eq!(seconds_left(&limited), None);
        }
    }

    #[test]
    fn a_rebalance_is_told_with_its_own_words() {
        let pool = RepairStatus { device: "0x6f00000000000001:2".parse().unwrap(), ..repair("running") };
        assert!(
            repair_line(&pool).starts_with("pool 0x6f00000000000001:0x2  rebalance 2  running: 7 objects")
        );
        let json = repair_json(&pool);
        assert_eq!((&json["pool"], &json["rebalance"]), (&json!("0x6f00000000000001:0x2"), &json!(2)));
        let text = failed_text(&RepairStatus { reason: "why".to_owned(), ..pool });
        assert!(
            text.starts_with("the rebalance of pool 0x6f00000000000001:0x2 failed: why; every object"),
            "{text}"
        );
        assert!(text.ends_with("`clovis rebalance start 0x6f00000000000001:0x2` tries again"), "{text}");
    }

    #[test]
    fn copies_to_spare_units_and_back_are_told_with_their_own_words() {
        let mut spares = faces::Spares::default();
        let there = RepairStatus { replacement: spares.next_job(SpareCopy::There), ..repair("running") };
        let line = repair_line(&there);
        assert!(
            line.starts_with("device 0x6b00000000000001:0x3  to spare units  running: 7 objects"),
            "{line}"
        );
        let json = repair_json(&there);
        assert_eq!((&json["spares"], &json["copy"]), (&json!("to spare units"), &json!(1)));
        assert_eq!(repair_json(&repair("running"))["spares"], Value::Null);
        let back = RepairStatus { replacement: spares.next_job(SpareCopy::Back), ..repair("failed") };
        assert!(failed_text(&back).contains("the spare units have everything"), "{}", failed_text(&back));
    }

    #[test]
    fn what_is_lost_is_named() {
        let mut lost = repair("failed");
        lost.reason = "too many units are lost of 3 objects".to_owned();
        lost.progress.lost_count = 3;
        lost.progress.lost = vec![base::ObjectId::new(1, 9).unwrap().fid()];
        let text = failed_text(&lost);
        let name = base::ObjectId::new(1, 9).unwrap().to_string();
        assert!(
            text.contains(&format!("lost: {name}, and 2 more")) && text.contains("clovis repair start"),
            "{text}"
        );
        assert_eq!(repair_json(&lost)["lost"][0], name.as_str());
    }
}
