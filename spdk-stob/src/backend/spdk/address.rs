//! Names of NVMe devices in configuration and on the command line: `nvme:` and where the controller is.
//!
//! `nvme:0000:00:04.0` is a PCI function, `nvme:tcp:127.0.0.1:4420:nqn.2026-01.example:disk` a subsystem of an NVMe/TCP target;
//! `#2` at the end names a namespace other than the first. A path in a folder of that name would be `./nvme:...`.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;

use spdk_sys::{PciAddress, TransportAddress};

const PREFIX: &str = "nvme:";
/// Source: NVM Express over Fabrics, NQN format.
const SUBSYSTEM_BYTES_MAX: usize = 223;

/// A namespace of an NVMe controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmeAddress {
    /// Where the controller is.
    pub controller: TransportAddress,
    /// Namespace, from 1.
    pub namespace: u32,
}

/// What is wrong with a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no NVMe address ({what}): write nvme:DOMAIN:BUS:DEVICE.FUNCTION as lspci -D shows it, \
     or nvme:tcp:IP:PORT:SUBSYSTEM, with #NAMESPACE if it is not 1"
)]
pub struct NvmeAddressError {
    /// The text.
    pub text: String,
    /// Which part.
    pub what: &'static str,
}

/// True if `path` names an NVMe device and not a file.
#[must_use]
pub fn is_nvme_address(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.starts_with(PREFIX))
}

/// Hexadecimal digits only: the standard parser also takes a sign.
fn hex(text: &str, digits: std::ops::RangeInclusive<usize>, max: u16) -> Option<u16> {
    let is_hex = digits.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u16::from_str_radix(text, 16).ok().filter(|value| is_hex && *value <= max)
}

fn pci(text: &str) -> Option<PciAddress> {
    let mut parts = text.split(':');
    let (domain, bus, rest) = (parts.next()?, parts.next()?, parts.next()?);
    let (device, function) = rest.split_once('.')?;
    let byte = |text, digits, max| hex(text, digits, max).and_then(|value| u8::try_from(value).ok());
    let address = PciAddress {
        domain: hex(domain, 4..=4, u16::MAX)?,
        bus: byte(bus, 2..=2, 0xff)?,
        device: byte(device, 2..=2, 0x1f)?,
        function: byte(function, 1..=1, 7)?,
    };
    parts.next().is_none().then_some(address)
}

/// `IP:PORT:SUBSYSTEM`, the IP in brackets if it is version 6.
fn tcp(text: &str) -> Option<TransportAddress> {
    let host_end = if text.starts_with('[') { text.find(']')? + 1 } else { text.find(':')? };
    let port_start = host_end + 1;
    let port_end = port_start + text.get(port_start..)?.find(':')?;
    let target: SocketAddr = text.get(..port_end)?.parse().ok()?;
    let subsystem = text.get(port_end + 1..)?;
    let is_name = (1..=SUBSYSTEM_BYTES_MAX).contains(&subsystem.len())
        && subsystem.bytes().all(|byte| byte.is_ascii_graphic());
    is_name.then(|| TransportAddress::Tcp { target, subsystem: subsystem.to_owned() })
}

impl FromStr for NvmeAddress {
    type Err = NvmeAddressError;

    fn from_str(text: &str) -> Result<NvmeAddress, NvmeAddressError> {
        let wrong = |what| NvmeAddressError { text: text.to_owned(), what };
        let rest = text.strip_prefix(PREFIX).ok_or_else(|| wrong("it does not begin with nvme:"))?;
        let (place, namespace) = match rest.rsplit_once('#') {
            None => (rest, 1),
            Some((place, digits)) => {
                let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
                let number = digits.parse().ok().filter(|number| is_number && *number > 0);
                (place, number.ok_or_else(|| wrong("the namespace is not a number from 1"))?)
            }
        };
        let controller = match place.strip_prefix("tcp:") {
            Some(target) => tcp(target).ok_or_else(|| wrong("the target or its subsystem")),
            None => pci(place).map(TransportAddress::Pci).ok_or_else(|| wrong("the PCI address")),
        };
        Ok(NvmeAddress { controller: controller?, namespace })
    }
}

impl fmt::Display for NvmeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.controller {
            TransportAddress::Pci(address) => write!(f, "{PREFIX}{address}")?,
            TransportAddress::Tcp { target, subsystem } => write!(f, "{PREFIX}tcp:{target}:{subsystem}")?,
        }
        if self.namespace == 1 { Ok(()) } else { write!(f, "#{}", self.namespace) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for text in [
            "nvme:0000:00:04.0",
            "nvme:ffff:ff:1f.7",
            "nvme:0000:00:04.0#2",
            "nvme:tcp:127.0.0.1:4420:nqn.2026-01.example:disk",
            "nvme:tcp:[::1]:4420:nqn.2026-01.example:disk#17",
        ] {
            assert_eq!(text.parse::<NvmeAddress>().unwrap().to_string(), text);
        }
        let two = "nvme:0000:00:04.0#1".parse::<NvmeAddress>().unwrap();
        assert_eq!(two.to_string(), "nvme:0000:00:04.0", "namespace 1 needs no mention");
        assert!(is_nvme_address(Path::new("nvme:0000:00:04.0")));
        assert!(
            !is_nvme_address(Path::new("./nvme:0000:00:04.0")) && !is_nvme_address(Path::new("/dev/nvme0n1"))
        );
    }

    #[test]
    fn what_is_not_an_address_is_refused_with_the_form() {
        for text in [
            "",
            "nvme:",
            "nvme:#",
            "nvme:00:04.0",
            "nvme:0000:00:04",
            "nvme:0000:00:20.0",
            "nvme:0000:00:04.8",
            "nvme:0000:00:+4.0",
            "nvme:0000:00:04.0:1",
            "nvme:0000:00:04.0#0",
            "nvme:0000:00:04.0#+1",
            "nvme:0000:00:04.0#4294967296",
            "nvme:00000:00:04.0",
            "nvme:é000:00:04.0",
            "nvme:tcp:",
            "nvme:tcp:localhost:4420:nqn",
            "nvme:tcp:127.0.0.1:4420:",
            "nvme:tcp:127.0.0.1:4420",
            "nvme:tcp:127.0.0.1:70000:nqn",
            "nvme:tcp:127.0.0.1:1:nqn with space",
            "nvme:tcp:[::1:4420:nqn",
        ] {
            let error = text.parse::<NvmeAddress>().unwrap_err();
            assert!(error.to_string().contains("lspci -D"), "{text}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(nvme:)?(tcp:)?[\\[\\]#:.0-9a-f\u{e9}]{0,40}") {
            if let Ok(address) = text.parse::<NvmeAddress>() {
                let again: NvmeAddress = address.to_string().parse().expect("what was printed is read");
                proptest::prop_assert_eq!(again, address);
            }
        }
    }
}
