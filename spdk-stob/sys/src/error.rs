//! What can go wrong between us and SPDK, sorted by what the operator can do about it.

use crate::address::TransportAddress;

/// Why SPDK, a controller, a queue or memory was not to be had. Numbers are Linux error numbers, positive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpdkError {
    /// This program was built without SPDK.
    #[error(
        "this build has no SPDK: build it with `--features spdk` where SPDK is installed, or use the device's path in /dev"
    )]
    NotBuilt,
    /// The environment did not start.
    #[error(
        "SPDK's environment did not start (errno {errno}): reserve huge pages (vm.nr_hugepages) and mount hugetlbfs, see hw-ci/README.md"
    )]
    Environment {
        /// What it answered.
        errno: i32,
    },
    /// SPDK starts once in a process, and it was started without what is asked now.
    #[error(
        "SPDK runs in this process without PCI, because its first device was {first}: name PCI devices first"
    )]
    StartedWithoutPci {
        /// The device that came first.
        first: TransportAddress,
    },
    /// SPDK does not understand the address.
    #[error("SPDK does not take the address {address} (errno {errno})")]
    Address {
        /// The address.
        address: TransportAddress,
        /// What its parser answered.
        errno: i32,
    },
    /// No controller there, or it did not become ready.
    #[error(
        "no NVMe controller answers at {address}: check that it is bound to vfio-pci or uio_pci_generic and that no other process uses it"
    )]
    Connect {
        /// The address.
        address: TransportAddress,
    },
    /// The controller has no such namespace.
    #[error("{address} has no active namespace {namespace}")]
    NoNamespace {
        /// The address.
        address: TransportAddress,
        /// The number asked for.
        namespace: u32,
    },
    /// Something else in this process has it.
    #[error("namespace {namespace} of {address} is in use by this process already")]
    InUse {
        /// The address.
        address: TransportAddress,
        /// The namespace.
        namespace: u32,
    },
    /// A format of blocks that our blocks of 4096 bytes do not fit on.
    #[error(
        "namespace {namespace} of {address} has sectors of {sector_bytes} bytes with {metadata_bytes} of metadata: \
         format it to 512 or 4096 bytes without metadata"
    )]
    Format {
        /// The address.
        address: TransportAddress,
        /// The namespace.
        namespace: u32,
        /// Bytes of a sector.
        sector_bytes: u32,
        /// Metadata of a sector.
        metadata_bytes: u32,
    },
    /// The controller has no queue pair left, or no memory for one.
    #[error("{address} gives no further queue pair")]
    NoQueue {
        /// The address.
        address: TransportAddress,
    },
    /// SPDK refused memory.
    #[error("SPDK does not register {bytes} bytes of memory (errno {errno})")]
    Register {
        /// Bytes of the arena.
        bytes: u64,
        /// What it answered.
        errno: i32,
    },
    /// SPDK took the memory, and devices cannot reach it.
    #[error(
        "devices cannot reach the arena at byte {offset} of {bytes}: raise the limit of locked memory (ulimit -l) for VFIO, or reserve huge pages"
    )]
    NotReachable {
        /// First byte without a translation.
        offset: u64,
        /// Bytes of the arena.
        bytes: u64,
    },
    /// Without an IOMMU a device needs memory that never moves.
    #[error(
        "without an IOMMU the arena must lie in huge pages, and it does not: reserve {bytes} bytes of huge pages for it, or use vfio-pci with an IOMMU"
    )]
    NeedsHugePages {
        /// Bytes of the arena.
        bytes: u64,
    },
}
