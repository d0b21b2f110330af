//! `clovis device detach` and `attach`: a device is taken out for a while, and back.
//!
//! The order is in force when control has it; it is heeded when the device's server goes by it too, or has no lease. A detach waits for
//! that: then no change runs on the device any more, but for those that had begun.

use std::time::Duration;

use base::Fid;
use fops::conf::{DeviceCommand, DeviceCommandReply, DeviceOrder};
use serde_json::json;

use super::find;
use crate::args::{DeviceDetachArgs, DeviceJsonArgs};
use crate::conf::Desk;
use crate::failure::Failure;
use crate::output;

/// How often it is asked whether the order is heeded.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Gives the order, and waits until it is heeded or time is up. Answer: the first reply, and whether it is.
fn give(desk: &mut Desk, device: Fid, order: DeviceOrder) -> Result<(DeviceCommandReply, bool), Failure> {
    let command = DeviceCommand { device, order };
    let deadline = desk.station.now() + desk.within;
    let first = desk.ask(&command)?;
    let mut is_heeded = first.is_heeded;
    while !is_heeded && desk.station.now() < deadline {
        desk.station.pause(ASK_AGAIN)?;
        is_heeded = desk.ask(&command)?.is_heeded;
    }
    Ok((first, is_heeded))
}

/// `clovis device detach`
pub fn detach(args: &DeviceDetachArgs) -> Result<(), Failure> {
    let mut desk = Desk::open(&args.connect)?;
    let device = find(&desk.local, &args.device)?.1.fid;
    let (reply, is_heeded) = give(&mut desk, device, DeviceOrder::Detach { force: args.force })?;
    if args.json {
        print_json(device, &reply, is_heeded)?;
    } else if is_heeded {
        output::line(&format!(
            "device {device} is detached, configuration version {}: reads rebuild its units; writes that need it wait, or fail, until \
             `clovis device attach {device}`",
            reply.version
        ))?;
    }
    if is_heeded {
        return Ok(());
    }
    Err(Failure::new(format!(
        "device {device} is detached, but its server has not said within {} s that it knows, and has a lease: ask again \
         (the same command) before the device is taken away",
        desk.within.as_secs()
    )))
}

/// `clovis device attach`
pub fn attach(args: &DeviceJsonArgs) -> Result<(), Failure> {
    let mut desk = Desk::open(&args.connect)?;
    let device = find(&desk.local, &args.device)?.1.fid;
    let (reply, is_heeded) = give(&mut desk, device, DeviceOrder::Attach)?;
    if args.json {
        return print_json(device, &reply, is_heeded);
    }
    let version = reply.version;
    output::line(&match reply.state.as_str() {
        "online" => format!("device {device} is online, configuration version {version}"),
        state => format!(
            "device {device} is {state}, configuration version {version}: it is online once its server is"
        ),
    })
}

fn print_json(device: Fid, reply: &DeviceCommandReply, is_heeded: bool) -> Result<(), Failure> {
    let DeviceCommandReply { version, state, is_new, .. } = reply;
    let found = json!({ "device": device.to_string(), "state": state, "configuration_version": version, "is_new": is_new, "is_heeded": is_heeded });
    output::line(&found.to_string())
}
