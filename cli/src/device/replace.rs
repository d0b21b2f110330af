//! `clovis device replace`: a failed device gets another disk, or its own formatted, and everything that it has to hold.
//!
//! The order, repeated harmlessly: its server formats what stands in the device's place, and control makes it `repair`, or `rebalance` if its units
//! stand in spare units. The server copies then by
//! itself, and this command shows how far that is until the device is online. Ended before, the repair goes on; the same command follows it again.

use std::time::Duration;

use base::Fid;
use faces::SpareCopy;
use fops::conf::{DeviceCommand, DeviceCommandReply, DeviceOrder};
use serde_json::json;

use super::find;
use crate::args::DeviceReplaceArgs;
use crate::conf::Desk;
use crate::daemon::server_name;
use crate::failure::Failure;
use crate::output;
use crate::repair;

/// `clovis device replace`
pub fn run(args: &DeviceReplaceArgs) -> Result<(), Failure> {
    let mut desk = Desk::open(&args.connect)?;
    let device = find(&desk.local, &args.device)?.1.fid;
    let reply = order(&mut desk, device, Duration::from_secs(args.wait))?;
    let replacement = reply.replacement;
    let is_back = SpareCopy::of_number(replacement).is_some();
    let interrupt = repair::say_when_interrupted()?;
    if !args.json {
        output::line(&match is_back {
            true => format!(
                "device {device} has a blank disk: it takes every write from now on, beside the spare units, which are read until all is copied back"
            ),
            false => format!(
                "device {device} has a blank disk (replacement {replacement}): it takes every write from now on, and reads rebuild its units until its \
                 server has copied all to it"
            ),
        })?;
    }
    let found = repair::of_device(&mut desk, device)?;
    match found.as_ref().map(|repair| repair.state.as_str()) {
        Some("failed") => {
            desk.ask(&DeviceCommand { device, order: DeviceOrder::RepairStart })?;
        }
        Some("paused") => {
            return Err(Failure::new(format!(
                "the repair of device {device} is paused: `clovis repair resume {device}` lets it go on"
            )));
        }
        _ => {}
    }
    if args.detach {
        return if args.json {
            output::line(&repair::order_json(device, &reply).to_string())
        } else {
            Ok(())
        };
    }
    let done = repair::follow(&mut desk, device, replacement, args.json)?;
    interrupt.release();
    let status = desk.cluster_status()?;
    let state = status.devices.iter().find(|found| found.device == device);
    let state = state.map_or("", |found| found.state.as_str());
    let (objects, bytes, version) = (done.progress.objects, done.progress.bytes, status.version);
    if args.json {
        let found = json!({
            "device": device.to_string(), "state": state, "configuration_version": version, "replacement": replacement,
            "objects": objects, "bytes": bytes,
        });
        return output::line(&found.to_string());
    }
    output::line(&format!(
        "device {device} is {state}, configuration version {version}: {objects} objects were looked at, {bytes} bytes copied"
    ))
}

/// Gives the order until the device is in repair, or on its way back from spare units.
fn order(desk: &mut Desk, device: Fid, wait: Duration) -> Result<DeviceCommandReply, Failure> {
    let command = DeviceCommand { device, order: DeviceOrder::Replace };
    let is_in_repair = |reply: &DeviceCommandReply| matches!(reply.state.as_str(), "repair" | "rebalance");
    let (_, last) = repair::order_until(desk, command, wait, is_in_repair)?;
    if is_in_repair(&last) { Ok(last) } else { Err(too_late(desk, device, &last, wait)) }
}

fn too_late(desk: &Desk, device: Fid, reply: &DeviceCommandReply, wait: Duration) -> Failure {
    let section = desk.local.devices.iter().find(|section| section.fid == device);
    let place = section.map_or_else(String::new, |section| {
        format!("{} of {}", section.path.display(), server_name(section.server))
    });
    let (seconds, state) = (wait.as_secs(), &reply.state);
    Failure::new(format!(
        "device {device} is {state}: its server has not formatted a disk for it within {seconds} s; put one in the place {place} \
         (the server's log says why it took none): it is formatted then, and repaired, without a further command; the same command again follows that"
    ))
}
