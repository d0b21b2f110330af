//! A device that was added to the configuration is opened by the server that it was given to, while that runs: `clovis conf apply`.
//!
//! It is formatted if it is blank, as at a start ([`is_new`]: nothing was ever stored on it), and then the server registers again: control takes it as
//! online. **Invariant**: what is not blank is not formatted: another device, another cluster's, or anything else is refused. Left over after a failure:
//! the device is as it was, unknown to the configuration, and it is tried again; one that fails with an I/O error is reported as lost, as at a start.
//! Thread: the server's locality. Start at [`add`].

use std::rc::Rc;

use base::Fid;
use faces::{DeviceConfig, DeviceState};
use spdk_stob::{Domain, FormatParams, StobError};

use crate::disks::DiskSource;
use crate::state::State;

/// True of a device that never registered: no byte was ever stored on it.
pub(crate) fn is_new(device: &DeviceConfig) -> bool {
    device.state == DeviceState::Unknown && device.size_blocks == 0
}

/// This locality's devices that are new to the configuration, and not open yet.
pub(crate) fn awaited(state: &State) -> Vec<Fid> {
    let Some(configuration) = state.configuration() else { return Vec::new() };
    let new = configuration.pool.devices.iter().filter(|device| is_new(device));
    let ours =
        new.filter(|device| device.process == state.process && device.endpoint == state.rpc.endpoint());
    let fids = ours.map(|device| device.device);
    fids.filter(|fid| !state.devices.borrow().contains_key(fid)).collect()
}

/// Opens it. Errors: in words.
pub(crate) async fn add(state: &Rc<State>, fid: Fid, disks: &DiskSource) -> Result<(), String> {
    let backend = disks(fid, 0)?;
    let size_blocks = backend.geometry().size_blocks;
    let cluster = state.configuration().map_or(0, |configuration| configuration.cluster);
    let params = FormatParams { device: fid, cluster };
    let opened = Domain::open_or_format(state.rpc.locality(), backend, params).await;
    let domain = opened.map_err(|error| {
        if matches!(error, StobError::Device(_)) {
            state.report_loss(fid);
        }
        error.to_string()
    })?;
    state.take_in(fid, domain, size_blocks);
    Ok(())
}
