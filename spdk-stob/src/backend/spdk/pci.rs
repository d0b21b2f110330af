//! What Linux says of a PCI function, for messages that name the next step: SPDK itself only says that it found nothing.

use std::fs::OpenOptions;
use std::path::PathBuf;

use rustix::process::{Flock, FlockType, fcntl_getlk};
use spdk_sys::PciAddress;

use crate::error::StobError;

/// Drivers that hand a function to user space.
const USER_SPACE_DRIVERS: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

fn refused(name: &str, reason: String) -> StobError {
    StobError::Open { path: name.to_owned(), reason }
}

/// Checks that the function is there and handed to user space.
pub(super) fn check_bound(name: &str, address: PciAddress) -> Result<(), StobError> {
    let folder = PathBuf::from(format!("/sys/bus/pci/devices/{address}"));
    if !folder.exists() {
        return Err(refused(name, format!("there is no PCI device {address} (lspci -D lists them)")));
    }
    let driver = std::fs::read_link(folder.join("driver")).ok();
    let driver = driver.as_ref().and_then(|path| path.file_name()).map(|name| name.to_string_lossy());
    match driver {
        Some(driver) if USER_SPACE_DRIVERS.contains(&driver.as_ref()) => Ok(()),
        Some(driver) => Err(refused(
            name,
            format!(
                "the kernel drives {address} with {driver}: bind it to vfio-pci or uio_pci_generic first (hw-ci/README.md), \
                 or use its path in /dev"
            ),
        )),
        None => Err(refused(
            name,
            format!("no driver has {address}: bind it to vfio-pci or uio_pci_generic (hw-ci/README.md)"),
        )),
    }
}

/// The process that holds SPDK's lock on the function, if one does. SPDK locks a file per function, and keeps it locked.
pub(super) fn holder(address: PciAddress) -> Option<i32> {
    let file =
        OpenOptions::new().read(true).write(true).open(format!("/var/tmp/spdk_pci_lock_{address}")).ok()?;
    let wanted = Flock::from(FlockType::WriteLock);
    fcntl_getlk(&file, &wanted).ok()??.pid.map(|pid| pid.as_raw_nonzero().get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_that_is_not_there_is_named() {
        // Domain ffff is not used by any machine that runs tests.
        let address = PciAddress { domain: 0xffff, bus: 0xff, device: 0x1f, function: 7 };
        let error = check_bound("nvme:ffff:ff:1f.7", address).unwrap_err();
        assert!(error.to_string().contains("there is no PCI device ffff:ff:1f.7"), "{error}");
        assert_eq!(holder(address), None);
    }
}
