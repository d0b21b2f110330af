//! The functions of SPDK that we use, as a table: one table is the linked library's, another the stand-in's.
//!
//! Declared by hand from `spdk/env.h` and `spdk/nvme.h`; `layout_check.c` proves each declaration against the headers that
//! a build finds. Structures of SPDK that grow carry their size (`opts_size`), so a longer one of a newer release is
//! read only as far as we know it. Nothing here is called outside this crate.

use std::ffi::{c_char, c_int, c_void};

use crate::address::{PciAddress, TransportAddress};

/// A controller of SPDK; only ever behind a pointer.
#[repr(C)]
pub struct RawController {
    _opaque: [u8; 0],
}

/// A namespace of SPDK.
#[repr(C)]
pub struct RawNamespace {
    _opaque: [u8; 0],
}

/// A queue pair of SPDK.
#[repr(C)]
pub struct RawQueuePair {
    _opaque: [u8; 0],
}

/// `struct spdk_pci_addr`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RawPciAddress {
    pub domain: u32,
    pub bus: u8,
    pub device: u8,
    pub function: u8,
}

impl RawPciAddress {
    /// `None` if `address` is not on this machine's PCI.
    pub fn of(address: &TransportAddress) -> Option<RawPciAddress> {
        match address {
            TransportAddress::Pci(PciAddress { domain, bus, device, function }) => Some(RawPciAddress {
                domain: u32::from(*domain),
                bus: *bus,
                device: *device,
                function: *function,
            }),
            TransportAddress::Tcp { .. } => None,
        }
    }
}

/// The part of `struct spdk_env_opts` that we know; `opts_size` tells SPDK how much that is.
#[repr(C)]
pub struct RawEnvironmentOptions {
    pub name: *const c_char,
    pub core_mask: *const c_char,
    pub lcore_map: *const c_char,
    pub shm_id: c_int,
    pub mem_channel: c_int,
    pub main_core: c_int,
    pub mem_size: c_int,
    pub no_pci: bool,
    pub hugepage_single_segments: bool,
    pub unlink_hugepage: bool,
    pub no_huge: bool,
    pub reserved: u32,
    pub num_pci_addr: usize,
    pub hugedir: *const c_char,
    pub pci_blocked: *mut RawPciAddress,
    pub pci_allowed: *mut RawPciAddress,
    pub iova_mode: *const c_char,
    pub base_virtaddr: u64,
    pub env_context: *mut c_void,
    pub vf_token: *const c_char,
    pub opts_size: usize,
}

/// Room for `struct spdk_nvme_transport_id`, filled by SPDK's own parser.
#[repr(C, align(8))]
pub struct RawTransportId {
    pub bytes: [u8; 1024],
}

/// The start of `struct spdk_nvme_io_qpair_opts`, and room for the rest, which keeps SPDK's defaults.
#[repr(C, align(8))]
pub struct RawQueuePairOptions {
    pub priority: u32,
    pub io_queue_size: u32,
    pub io_queue_requests: u32,
    pub delay_cmd_submit: bool,
    pub rest: [u8; 115],
}

const _: () = assert!(size_of::<RawQueuePairOptions>() == 128);
const _: () = assert!(size_of::<RawEnvironmentOptions>() == 120);
const _: () = assert!(size_of::<RawPciAddress>() == 8);

/// `struct spdk_nvme_cpl`: a completion entry as the NVMe specification has it; `status` with its phase bit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RawCompletion {
    pub dwords: [u32; 3],
    pub command_id: u16,
    pub status: u16,
}

const _: () = assert!(size_of::<RawCompletion>() == 16);

/// `struct spdk_nvme_dsm_range`, as the NVMe specification has it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RawRange {
    pub attributes: u32,
    pub blocks: u32,
    pub start: u64,
}

/// Bytes of the NVMe specification's identify data of a controller.
pub const IDENTIFY_BYTES: usize = 4096;

pub const IO_FLAG_FORCE_UNIT_ACCESS: u32 = 1 << 30;
pub const RANGE_DEALLOCATE: u32 = 4;
pub const NAMESPACE_DEALLOCATES: u32 = 1;
pub const NAMESPACE_FLUSHES: u32 = 2;
pub const VTOPHYS_ERROR: u64 = u64::MAX;
pub const LOG_ERROR: c_int = 0;
pub const ENXIO: c_int = 6;
pub const ENOMEM: c_int = 12;
pub const EFAULT: c_int = 14;
pub const EINVAL: c_int = 22;

/// `spdk_nvme_cmd_cb`.
pub type CommandDone = unsafe extern "C" fn(*mut c_void, *const RawCompletion);
/// `spdk_nvme_req_reset_sgl_cb`.
pub type ResetSegments = unsafe extern "C" fn(*mut c_void, u32);
/// `spdk_nvme_req_next_sge_cb`.
pub type NextSegment = unsafe extern "C" fn(*mut c_void, *mut *mut c_void, *mut u32) -> c_int;

type ReadOrWrite = unsafe extern "C" fn(
    *mut RawNamespace,
    *mut RawQueuePair,
    u64,
    u32,
    CommandDone,
    *mut c_void,
    u32,
    ResetSegments,
    NextSegment,
) -> c_int;

/// One pointer per function, named as in SPDK without `spdk_` and `spdk_nvme_`.
pub struct Api {
    pub env_opts_init: unsafe extern "C" fn(*mut RawEnvironmentOptions),
    pub env_init: unsafe extern "C" fn(*const RawEnvironmentOptions) -> c_int,
    pub log_set_print_level: unsafe extern "C" fn(c_int),
    pub mem_register: unsafe extern "C" fn(*mut c_void, usize) -> c_int,
    pub mem_unregister: unsafe extern "C" fn(*mut c_void, usize) -> c_int,
    pub vtophys: unsafe extern "C" fn(*const c_void, *mut u64) -> u64,
    pub transport_id_parse: unsafe extern "C" fn(*mut RawTransportId, *const c_char) -> c_int,
    pub connect: unsafe extern "C" fn(*const RawTransportId, *const c_void, usize) -> *mut RawController,
    pub detach: unsafe extern "C" fn(*mut RawController) -> c_int,
    pub ctrlr_get_data: unsafe extern "C" fn(*mut RawController) -> *const [u8; IDENTIFY_BYTES],
    pub ctrlr_get_ns: unsafe extern "C" fn(*mut RawController, u32) -> *mut RawNamespace,
    pub ctrlr_process_admin_completions: unsafe extern "C" fn(*mut RawController) -> i32,
    pub ctrlr_is_failed: unsafe extern "C" fn(*mut RawController) -> bool,
    pub ctrlr_disconnect: unsafe extern "C" fn(*mut RawController) -> c_int,
    pub ctrlr_get_default_io_qpair_opts:
        unsafe extern "C" fn(*mut RawController, *mut RawQueuePairOptions, usize),
    pub ctrlr_alloc_io_qpair:
        unsafe extern "C" fn(*mut RawController, *const RawQueuePairOptions, usize) -> *mut RawQueuePair,
    pub ctrlr_free_io_qpair: unsafe extern "C" fn(*mut RawQueuePair) -> c_int,
    pub ctrlr_cmd_abort_ext: unsafe extern "C" fn(
        *mut RawController,
        *mut RawQueuePair,
        *mut c_void,
        CommandDone,
        *mut c_void,
    ) -> c_int,
    pub ns_is_active: unsafe extern "C" fn(*mut RawNamespace) -> bool,
    pub ns_get_sector_size: unsafe extern "C" fn(*mut RawNamespace) -> u32,
    pub ns_get_num_sectors: unsafe extern "C" fn(*mut RawNamespace) -> u64,
    pub ns_get_md_size: unsafe extern "C" fn(*mut RawNamespace) -> u32,
    pub ns_get_flags: unsafe extern "C" fn(*mut RawNamespace) -> u32,
    pub ns_get_max_io_xfer_size: unsafe extern "C" fn(*mut RawNamespace) -> u32,
    pub ns_cmd_readv: ReadOrWrite,
    pub ns_cmd_writev: ReadOrWrite,
    pub ns_cmd_flush:
        unsafe extern "C" fn(*mut RawNamespace, *mut RawQueuePair, CommandDone, *mut c_void) -> c_int,
    pub ns_cmd_dataset_management: unsafe extern "C" fn(
        *mut RawNamespace,
        *mut RawQueuePair,
        u32,
        *const RawRange,
        u16,
        CommandDone,
        *mut c_void,
    ) -> c_int,
    pub qpair_process_completions: unsafe extern "C" fn(*mut RawQueuePair, u32) -> i32,
}

/// The linked library.
#[cfg(feature = "spdk")]
pub mod linked {
    use super::{
        Api, CommandDone, IDENTIFY_BYTES, NextSegment, RawController, RawEnvironmentOptions, RawNamespace,
        RawQueuePair, RawQueuePairOptions, RawRange, RawTransportId, ResetSegments,
    };
    use std::ffi::{c_char, c_int, c_void};

    unsafe extern "C" {
        fn spdk_env_opts_init(options: *mut RawEnvironmentOptions);
        fn spdk_env_init(options: *const RawEnvironmentOptions) -> c_int;
        fn spdk_log_set_print_level(level: c_int);
        fn spdk_mem_register(address: *mut c_void, len: usize) -> c_int;
        fn spdk_mem_unregister(address: *mut c_void, len: usize) -> c_int;
        fn spdk_vtophys(address: *const c_void, size: *mut u64) -> u64;
        fn spdk_nvme_transport_id_parse(id: *mut RawTransportId, text: *const c_char) -> c_int;
        fn spdk_nvme_connect(
            id: *const RawTransportId,
            options: *const c_void,
            options_size: usize,
        ) -> *mut RawController;
        fn spdk_nvme_detach(controller: *mut RawController) -> c_int;
        fn spdk_nvme_ctrlr_get_data(controller: *mut RawController) -> *const [u8; IDENTIFY_BYTES];
        fn spdk_nvme_ctrlr_get_ns(controller: *mut RawController, id: u32) -> *mut RawNamespace;
        fn spdk_nvme_ctrlr_process_admin_completions(controller: *mut RawController) -> i32;
        fn spdk_nvme_ctrlr_is_failed(controller: *mut RawController) -> bool;
        fn spdk_nvme_ctrlr_disconnect(controller: *mut RawController) -> c_int;
        fn spdk_nvme_ctrlr_get_default_io_qpair_opts(
            controller: *mut RawController,
            options: *mut RawQueuePairOptions,
            options_size: usize,
        );
        fn spdk_nvme_ctrlr_alloc_io_qpair(
            controller: *mut RawController,
            options: *const RawQueuePairOptions,
            options_size: usize,
        ) -> *mut RawQueuePair;
        fn spdk_nvme_ctrlr_free_io_qpair(queue_pair: *mut RawQueuePair) -> c_int;
        fn spdk_nvme_ctrlr_cmd_abort_ext(
            controller: *mut RawController,
            queue_pair: *mut RawQueuePair,
            command_argument: *mut c_void,
            done: CommandDone,
            argument: *mut c_void,
        ) -> c_int;
        fn spdk_nvme_ns_is_active(namespace: *mut RawNamespace) -> bool;
        fn spdk_nvme_ns_get_sector_size(namespace: *mut RawNamespace) -> u32;
        fn spdk_nvme_ns_get_num_sectors(namespace: *mut RawNamespace) -> u64;
        fn spdk_nvme_ns_get_md_size(namespace: *mut RawNamespace) -> u32;
        fn spdk_nvme_ns_get_flags(namespace: *mut RawNamespace) -> u32;
        fn spdk_nvme_ns_get_max_io_xfer_size(namespace: *mut RawNamespace) -> u32;
        fn spdk_nvme_ns_cmd_readv(
            namespace: *mut RawNamespace,
            queue_pair: *mut RawQueuePair,
            first: u64,
            count: u32,
            done: CommandDone,
            argument: *mut c_void,
            flags: u32,
            reset: ResetSegments,
            next: NextSegment,
        ) -> c_int;
        fn spdk_nvme_ns_cmd_writev(
            namespace: *mut RawNamespace,
            queue_pair: *mut RawQueuePair,
            first: u64,
            count: u32,
            done: CommandDone,
            argument: *mut c_void,
            flags: u32,
            reset: ResetSegments,
            next: NextSegment,
        ) -> c_int;
        fn spdk_nvme_ns_cmd_flush(
            namespace: *mut RawNamespace,
            queue_pair: *mut RawQueuePair,
            done: CommandDone,
            argument: *mut c_void,
        ) -> c_int;
        fn spdk_nvme_ns_cmd_dataset_management(
            namespace: *mut RawNamespace,
            queue_pair: *mut RawQueuePair,
            kind: u32,
            ranges: *const RawRange,
            range_count: u16,
            done: CommandDone,
            argument: *mut c_void,
        ) -> c_int;
        fn spdk_nvme_qpair_process_completions(queue_pair: *mut RawQueuePair, max: u32) -> i32;
    }

    /// The table of the linked library.
    pub const API: Api = Api {
        env_opts_init: spdk_env_opts_init,
        env_init: spdk_env_init,
        log_set_print_level: spdk_log_set_print_level,
        mem_register: spdk_mem_register,
        mem_unregister: spdk_mem_unregister,
        vtophys: spdk_vtophys,
        transport_id_parse: spdk_nvme_transport_id_parse,
        connect: spdk_nvme_connect,
        detach: spdk_nvme_detach,
        ctrlr_get_data: spdk_nvme_ctrlr_get_data,
        ctrlr_get_ns: spdk_nvme_ctrlr_get_ns,
        ctrlr_process_admin_completions: spdk_nvme_ctrlr_process_admin_completions,
        ctrlr_is_failed: spdk_nvme_ctrlr_is_failed,
        ctrlr_disconnect: spdk_nvme_ctrlr_disconnect,
        ctrlr_get_default_io_qpair_opts: spdk_nvme_ctrlr_get_default_io_qpair_opts,
        ctrlr_alloc_io_qpair: spdk_nvme_ctrlr_alloc_io_qpair,
        ctrlr_free_io_qpair: spdk_nvme_ctrlr_free_io_qpair,
        ctrlr_cmd_abort_ext: spdk_nvme_ctrlr_cmd_abort_ext,
        ns_is_active: spdk_nvme_ns_is_active,
        ns_get_sector_size: spdk_nvme_ns_get_sector_size,
        ns_get_num_sectors: spdk_nvme_ns_get_num_sectors,
        ns_get_md_size: spdk_nvme_ns_get_md_size,
        ns_get_flags: spdk_nvme_ns_get_flags,
        ns_get_max_io_xfer_size: spdk_nvme_ns_get_max_io_xfer_size,
        ns_cmd_readv: spdk_nvme_ns_cmd_readv,
        ns_cmd_writev: spdk_nvme_ns_cmd_writev,
        ns_cmd_flush: spdk_nvme_ns_cmd_flush,
        ns_cmd_dataset_management: spdk_nvme_ns_cmd_dataset_management,
        qpair_process_completions: spdk_nvme_qpair_process_completions,
    };
}
