//! `clovis device replace`: a failed device gets another disk, or its own formatted, and everything that it has to hold.
//!
//! Three steps, each repeated harmlessly: the order (its server formats what stands in the device's place, and control makes it `repair`),
//! the copy (this process computes the device's units from the others and writes them), the word that it is complete (`online`).
//! Interrupted, the device stays in repair: the same command goes on. A copy of a disk that was replaced again counts for nothing.

use std::time::Duration;

use base::units::BLOCK_BYTES;
use base::{Fid, ObjectId};
use client::{RepairOptions, RepairProgress};
use fops::conf::{ClusterStatusReply, DeviceCommand, DeviceCommandReply, DeviceOrder};
use serde_json::json;

use super::find;
use crate::args::DeviceReplaceArgs;
use crate::conf::Desk;
use crate::connection::connect;
use crate::daemon::server_name;
use crate::failure::Failure;
use crate::output;
use crate::progress::Progress;

/// How often it is asked how far the order is.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// After the order is heeded everywhere: so long a change may still be under way that began before (docs/rfd/0009).
const SETTLE: Duration = Duration::from_secs(5);

/// Objects that an error names.
const NAMED_MAX: usize = 16;

/// `clovis device replace`
pub fn run(args: &DeviceReplaceArgs) -> Result<(), Failure> {
    let mut desk = Desk::open(&args.connect)?;
    let device = find(&desk.local, &args.device)?.1.fid;
    let reply = order(&mut desk, device, Duration::from_secs(args.wait))?;
    if !args.json {
        output::line(&format!(
            "device {device} has a blank disk (replacement {}): it takes every write from now on, and reads rebuild its units until all is copied",
            reply.replacement
        ))?;
    }
    desk.station.pause(SETTLE)?;
    let (_, status) = desk.status()?;
    let done = copy(args, device, &status)?;
    if !done.lost.is_empty() {
        return Err(lost(device, &done.lost));
    }
    let command = DeviceCommand { device, order: DeviceOrder::Restored { replacement: reply.replacement } };
    let reply = desk.ask(&command)?;
    let RepairProgress { objects, bytes, .. } = done;
    let DeviceCommandReply { state, version, replacement, .. } = reply;
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

/// Gives the order until the device is in repair and every server heeds that.
fn order(desk: &mut Desk, device: Fid, wait: Duration) -> Result<DeviceCommandReply, Failure> {
    let command = DeviceCommand { device, order: DeviceOrder::Replace };
    let deadline = desk.station.now() + wait;
    loop {
        let reply = desk.ask(&command)?;
        if reply.is_heeded {
            return Ok(reply);
        }
        if desk.station.now() >= deadline {
            return Err(too_late(desk, device, &reply, wait));
        }
        desk.station.pause(ASK_AGAIN)?;
    }
}

fn too_late(desk: &Desk, device: Fid, reply: &DeviceCommandReply, wait: Duration) -> Failure {
    let section = desk.local.devices.iter().find(|section| section.fid == device);
    let place = section.map_or_else(String::new, |section| {
        format!("{} of {}", section.path.display(), server_name(section.server))
    });
    let seconds = wait.as_secs();
    Failure::new(match reply.state.as_str() {
        "repair" => format!(
            "device {device} is in repair, but not every server has said within {seconds} s that it knows: nothing was copied; the same \
             command again goes on"
        ),
        state => format!(
            "device {device} is {state}: its server has not formatted a disk for it within {seconds} s; put one in the place {place} \
             (the server's log says why it took none), and give the same command again"
        ),
    })
}

/// Copies, with a bar that ends at about what the other devices hold.
fn copy(
    args: &DeviceReplaceArgs,
    device: Fid,
    status: &ClusterStatusReply,
) -> Result<RepairProgress, Failure> {
    let (mut station, client, _) = connect(&args.connect, false)?;
    let bar = Progress::start(&format!("copying to {device}"), expected_bytes(status), args.json);
    let options = RepairOptions { after: args.after, bytes_per_second: args.rate };
    let mut last = args.after;
    let copied = station.wait(client.repair_device(device, options, |progress| {
        last = progress.last;
        bar.reach(progress.bytes);
    }))?;
    drop(bar);
    copied.map_err(|error| {
        let on = last.map_or_else(String::new, |last| format!(" --after {last}"));
        Failure::new(format!(
            "{error}; the device stays in repair, and `clovis device replace {device}{on}` goes on"
        ))
    })
}

/// What a device of the pool holds on average.
fn expected_bytes(status: &ClusterStatusReply) -> u64 {
    let online = status.devices.iter().filter(|found| found.state == "online");
    let used: Vec<u64> =
        online.filter_map(|found| Some(found.size_blocks.saturating_sub(found.free_blocks?))).collect();
    let count = u64::try_from(used.len()).unwrap_or(u64::MAX).max(1);
    used.iter().sum::<u64>() / count * BLOCK_BYTES
}

fn lost(device: Fid, objects: &[ObjectId]) -> Failure {
    let mut names: Vec<String> = objects.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    if objects.len() > NAMED_MAX {
        names.push(format!("and {} more", objects.len() - NAMED_MAX));
    }
    Failure::new(format!(
        "too many units are lost of {} objects to compute those of device {device}: {}; bring other devices back, or remove these objects, and give \
         the same command again: until then the device stays in repair",
        objects.len(),
        names.join(", ")
    ))
}
