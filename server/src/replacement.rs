//! A device gets another disk while its server runs: `clovis device replace`.
//!
//! The configuration names the devices whose disks are awaited. For each of its own the server lets go of what it has open, opens what
//! stands in the device's place now, formats it (a blank disk, or this very device, whose bytes are old), marks it with the number of
//! the replacement, and registers again: then control takes it back, in state Repair. Until then nobody uses the device, so
//! nothing waits for a disk that is not there.
//! **Invariant**: nothing is formatted but a device that is failed and awaited; another device's disk never is. Left over after a
//! failure: the device is closed, and it is tried again ([`crate::disks`]). Thread: the server's locality. Start at [`replace`].

use std::rc::Rc;
use std::time::Duration;

use base::Fid;
use spdk_stob::{Domain, FormatParams};

use crate::device::Device;
use crate::disks::DiskSource;
use crate::state::State;

/// How long letting go of the old disk may take: it may be one that no longer answers.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// This locality's devices that await a disk, with the number of the replacement, as far as they have not got it.
pub(crate) fn awaited(state: &State) -> Vec<(Fid, u32)> {
    let Some(configuration) = state.configuration() else { return Vec::new() };
    let wanted = configuration.pool.awaited_disks.iter().filter(|fid| state.is_ours(&configuration, **fid));
    let wanted = wanted.map(|fid| (*fid, configuration.replacement_of(*fid)));
    wanted
        .filter(|(fid, number)| {
            let has = state.devices.borrow().get(fid).map(|device| device.replacement);
            has != Some(*number)
        })
        .collect()
}

pub(crate) async fn replace(
    state: &Rc<State>,
    fid: Fid,
    number: u32,
    disks: &DiskSource,
) -> Result<(), String> {
    let locality = state.rpc.locality().clone();
    let old = state.devices.borrow_mut().remove(&fid);
    if let Some(old) = old {
        // Its bytes are given up, and another disk may stand there already: nothing more is written.
        old.domain.set_failed(true);
        // One that is broken does not close in order, or at all.
        let _closed = locality.timeout_at(locality.now() + CLOSE_WITHIN, old.domain.clone().close()).await;
    }
    let configuration = state.configuration();
    let size_before =
        configuration.as_ref().and_then(|found| found.device(fid)).map_or(0, |found| found.size_blocks);
    let backend = disks(fid, size_before)?;
    let size_blocks = backend.geometry().size_blocks;
    let cluster = configuration.map_or(0, |configuration| configuration.cluster);
    let params = FormatParams { device: fid, cluster };
    let domain = Domain::format_again(&locality, backend, params).await.map_err(|error| error.to_string())?;
    Device::mark_replacement(&domain, number).await.map_err(|error| error.to_string())?;
    state.take_in(fid, domain, size_blocks);
    Ok(())
}
