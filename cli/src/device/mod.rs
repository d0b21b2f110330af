//! `clovis device`: what devices there are, where they stand, and an operator's word on them.
//!
//! [`list`] and [`locate`] look; [`command`] detaches and attaches; [`replace`] gives a failed one another disk; here: fail, and the fault rule that tests use. Start at [`run`].

mod command;
mod list;
mod locate;
mod replace;

use base::Fid;
use faces::cluster_file::{ClusterFile, DeviceSection};
use fops::admin::DeviceFault;
use fops::conf::{DeviceEvidence, DeviceReport};

use crate::args::DeviceCommand;
use crate::conf::Desk;
use crate::failure::Failure;
use crate::output;

/// The device that an operator names, with its target index.
pub fn find<'a>(file: &'a ClusterFile, name: &str) -> Result<(usize, &'a DeviceSection), Failure> {
    let by_index = name.parse::<usize>().ok().filter(|index| *index < file.devices.len());
    let by_fid = || {
        let fid = name.parse::<Fid>().ok()?;
        file.devices.iter().position(|device| device.fid == fid)
    };
    match by_index.or_else(by_fid) {
        Some(target) => Ok((target, &file.devices[target])),
        None => Err(Failure::new(format!(
            "{name:?} is no device of this cluster: name a fid, or a target from 0 to {}",
            file.devices.len().saturating_sub(1)
        ))),
    }
}

/// `clovis device`
pub fn run(args: &DeviceCommand) -> Result<(), Failure> {
    match args {
        DeviceCommand::List(args) => list::run(args),
        DeviceCommand::Locate(args) => locate::run(args),
        DeviceCommand::Detach(args) => command::detach(args),
        DeviceCommand::Attach(args) => command::attach(args),
        DeviceCommand::Replace(args) => replace::run(args),
        DeviceCommand::Fail(args) => {
            let mut desk = Desk::open(&args.connect)?;
            let device = find(&desk.local, &args.device)?.1.fid;
            let version = desk.ask(&DeviceReport { device, evidence: DeviceEvidence::Operator })?.version;
            output::line(&format!("device {device} is out of service, configuration version {version}"))
        }
        DeviceCommand::Break(args) => {
            let mut desk = Desk::open(&args.connect)?;
            let (_, section) = find(&desk.local, &args.device)?;
            let endpoint = desk.local.endpoint_of(section);
            let endpoint = endpoint.ok_or_else(|| Failure::new("the device's server has no endpoint"))?;
            let device = section.fid;
            desk.station.call(&desk.local, endpoint, &DeviceFault { device, failed: true }, desk.within)?;
            output::line(&format!(
                "each access to device {device} fails with EIO from now on, until its server restarts"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_by_its_fid_or_its_target() {
        let text = include_str!("../../../control/faces/src/cluster_file_example.toml");
        let file = ClusterFile::parse(text).unwrap();
        assert_eq!(find(&file, "2").unwrap().1.fid, find(&file, "0x6b00000000000001:3").unwrap().1.fid);
        assert_eq!(find(&file, "0x6b00000000000001:3").unwrap().0, 2);
        for wrong in ["4", "-1", "0x6b00000000000001:9", "disk"] {
            assert!(find(&file, wrong).unwrap_err().to_string().contains("a target from 0 to 3"), "{wrong}");
        }
    }
}
