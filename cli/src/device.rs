//! `clovis device fail|break`: an operator takes a device out of service, or sets the fault rule that tests use.

use std::time::Duration;

use base::Fid;
use faces::cluster_file::{ClusterFile, DeviceSection};
use fops::admin::DeviceFault;
use fops::conf::{DeviceEvidence, DeviceReport};

use crate::args::{DeviceArgs, DeviceCommand};
use crate::connection::{Station, find_cluster_file, load_cluster_file};
use crate::failure::Failure;
use crate::output;

fn find<'a>(file: &'a ClusterFile, name: &str) -> Result<&'a DeviceSection, Failure> {
    let by_index = name.parse::<usize>().ok().and_then(|index| file.devices.get(index));
    let by_fid =
        || name.parse::<Fid>().ok().and_then(|fid| file.devices.iter().find(|device| device.fid == fid));
    by_index.or_else(by_fid).ok_or_else(|| {
        Failure::new(format!(
            "{name:?} is no device of this cluster: name a fid, or a target from 0 to {}",
            file.devices.len().saturating_sub(1)
        ))
    })
}

fn prepare(args: &DeviceArgs) -> Result<(Station, ClusterFile, Duration), Failure> {
    let file = load_cluster_file(&find_cluster_file(args.connect.config.as_deref())?)?;
    Ok((Station::new("device")?, file, Duration::from_secs(args.connect.timeout)))
}

/// `clovis device`
pub fn run(command: &DeviceCommand) -> Result<(), Failure> {
    match command {
        DeviceCommand::Fail(args) => {
            let (mut station, file, within) = prepare(args)?;
            let device = find(&file, &args.device)?;
            let report = DeviceReport { device: device.fid, evidence: DeviceEvidence::Operator };
            let reply = station.call(&file, file.control.endpoint, &report, within)?;
            let version = reply.version;
            output::line(&format!(
                "device {} is out of service, configuration version {version}",
                device.fid
            ))?;
        }
        DeviceCommand::Break(args) => {
            let (mut station, file, within) = prepare(args)?;
            let device = find(&file, &args.device)?;
            let endpoint = file
                .endpoint_of(device)
                .ok_or_else(|| Failure::new("the device's server has no endpoint"))?;
            station.call(&file, endpoint, &DeviceFault { device: device.fid, failed: true }, within)?;
            output::line(&format!(
                "each access to device {} fails with EIO from now on, until its server restarts",
                device.fid
            ))?;
        }
    }
    Ok(())
}
