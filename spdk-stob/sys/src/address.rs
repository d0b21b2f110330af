//! Where a controller is: a PCI function, or an NVMe/TCP subsystem. Printed as SPDK's transport id.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// A PCI function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// PCI domain.
    pub domain: u16,
    /// Bus.
    pub bus: u8,
    /// Device on the bus, below 32.
    pub device: u8,
    /// Function of the device, below 8.
    pub function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

/// Where a controller is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TransportAddress {
    /// A PCI function of this machine, bound to vfio-pci or uio_pci_generic.
    Pci(PciAddress),
    /// A subsystem of an NVMe/TCP target.
    Tcp {
        /// Where the target listens.
        target: SocketAddr,
        /// Name of the subsystem (NQN). No white space.
        subsystem: String,
    },
}

impl fmt::Display for TransportAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TransportAddress::Pci(address) => write!(f, "trtype:PCIe traddr:{address}"),
            TransportAddress::Tcp { target, subsystem } => {
                let family = match target.ip() {
                    IpAddr::V4(_) => "IPv4",
                    IpAddr::V6(_) => "IPv6",
                };
                let (host, port) = (target.ip(), target.port());
                write!(f, "trtype:TCP adrfam:{family} traddr:{host} trsvcid:{port} subnqn:{subsystem}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_print_as_transport_ids() {
        let pci = PciAddress { domain: 0x1_0, bus: 0xaf, device: 0x1f, function: 7 };
        assert_eq!(TransportAddress::Pci(pci).to_string(), "trtype:PCIe traddr:0010:af:1f.7");
        let tcp = |target: &str| TransportAddress::Tcp {
            target: target.parse().unwrap(),
            subsystem: "nqn.x:a".to_owned(),
        };
        assert_eq!(
            tcp("127.0.0.1:4420").to_string(),
            "trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:4420 subnqn:nqn.x:a"
        );
        assert_eq!(tcp("[::1]:1").to_string(), "trtype:TCP adrfam:IPv6 traddr:::1 trsvcid:1 subnqn:nqn.x:a");
    }
}
