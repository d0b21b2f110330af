//! rdma-core as found on this machine: what devices there are, and opening one.

use std::ffi::CStr;
use std::io;
use std::sync::Arc;

use rdma_mummy_sys as ffi;

use super::{checked, last, zeroed};
use crate::device::{Capabilities, DeviceInfo, GidInfo, GidKind, LinkLayer, PortInfo, PortState, Without};
use crate::error::RdmaError;
use crate::work::NicConfig;
use crate::{ConnectionManager, Nic};

/// rdma-core, opened. Cheap to clone; any thread.
#[derive(Clone, Debug)]
pub struct Library {
    /// Nothing to hold: the stand-in library opens rdma-core once per process. Kept private so that `open` is the only way here.
    _opened: (),
}

/// An opened device. Closed with the last owner.
pub(super) struct Context(pub(super) *mut ffi::ibv_context);

// SAFETY: an ibv_context may be used from any thread (man ibv_open_device and libibverbs' README: thread safe).
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: opened by us, closed once; whatever was made on it is gone, because it holds an Arc of this.
        unsafe { ffi::ibv_close_device(self.0) };
    }
}

impl Library {
    /// Finds rdma-core and at least one device.
    ///
    /// # Errors
    /// No rdma-core, no verbs in the kernel, no device; each says what to do.
    pub fn open() -> Result<Library, RdmaError> {
        let library = Library { _opened: () };
        let contexts = library.contexts(None)?;
        if contexts.is_empty() { Err(RdmaError::NoDevice) } else { Ok(library) }
    }

    /// Opens all devices, or the one of this name.
    fn contexts(&self, only: Option<&str>) -> Result<Vec<(String, Arc<Context>)>, RdmaError> {
        let mut count = 0;
        // SAFETY: writes the count; gives an array that we free below.
        let list = unsafe { ffi::ibv_get_device_list(&mut count) };
        if list.is_null() {
            let source = io::Error::last_os_error();
            return Err(match source.raw_os_error() {
                Some(libc::EOPNOTSUPP) => RdmaError::NoCore { missing: "libibverbs.so.1" },
                _ => RdmaError::NoKernel { source },
            });
        }
        let mut opened = Vec::new();
        for index in 0..usize::try_from(count).unwrap_or(0) {
            // SAFETY: the array has `count` entries and a null at its end.
            let device = unsafe { *list.add(index) };
            // SAFETY: `device` is one of the list, which is not freed yet.
            let name = unsafe { ffi::ibv_get_device_name(device) };
            if name.is_null() {
                continue;
            }
            // SAFETY: a terminated string inside the device, copied here.
            let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
            if only.is_some_and(|wanted| wanted != name) {
                continue;
            }
            // SAFETY: `device` is one of the list; an opened context keeps what it needs of it.
            let context = unsafe { ffi::ibv_open_device(device) };
            if !context.is_null() {
                opened.push((name, Arc::new(Context(context))));
            }
        }
        // SAFETY: from ibv_get_device_list, freed once.
        unsafe { ffi::ibv_free_device_list(list) };
        Ok(opened)
    }

    /// All devices with their ports, GIDs and abilities less those of the mask.
    ///
    /// # Errors
    /// As [`Library::open`]; a device that cannot be asked.
    pub fn devices(&self, without: Without) -> Result<Vec<DeviceInfo>, RdmaError> {
        let contexts = self.contexts(None)?;
        contexts.iter().map(|(name, context)| describe(name, context, without)).collect()
    }

    /// Opens a device with all that one machine needs of it.
    ///
    /// # Errors
    /// No such device; too little lockable memory; what the device refuses.
    pub fn open_nic(&self, config: NicConfig) -> Result<Nic, RdmaError> {
        let mut contexts = self.contexts(Some(&config.device))?;
        let Some((name, context)) = contexts.pop() else { return Err(RdmaError::NoDevice) };
        let info = describe(&name, &context, config.without)?;
        Nic::new(context, info, config)
    }

    /// An event channel for connections.
    ///
    /// # Errors
    /// No librdmacm; no `rdma_ucm` in the kernel.
    pub fn connection_manager(&self) -> Result<ConnectionManager, RdmaError> {
        ConnectionManager::new()
    }
}

fn mtu_bytes(code: u32) -> u32 {
    if (1..=5).contains(&code) { 128 << code } else { 0 }
}

fn describe(name: &str, context: &Arc<Context>, without: Without) -> Result<DeviceInfo, RdmaError> {
    // SAFETY: a C structure of numbers.
    let mut attributes: ffi::ibv_device_attr = unsafe { zeroed() };
    // SAFETY: an open context; writes one structure of ours.
    let answer = unsafe { ffi::ibv_query_device(context.0, &mut attributes) };
    checked("ibv_query_device", answer)?;
    let count = |value: libc::c_int| u32::try_from(value).unwrap_or(0);
    let flags = attributes.device_cap_flags;
    let windows = flags
        & (ffi::ibv_device_cap_flags::IBV_DEVICE_MEM_WINDOW_TYPE_2A.0
            | ffi::ibv_device_cap_flags::IBV_DEVICE_MEM_WINDOW_TYPE_2B.0)
        != 0;
    let capabilities = Capabilities {
        windows: windows && attributes.max_mw > 0 && !without.windows,
        shared_receive_queue: attributes.max_srq > 0 && !without.shared_receive_queue,
        // Found out by trying, when a Nic is opened.
        extended_queue_pair: !without.extended,
        extended_completion_queue: !without.extended,
        on_demand_paging: false,
        inline_bytes: 0,
    };
    let gids = gid_table(context);
    let ports =
        (1..=attributes.phys_port_cnt).filter_map(|number| describe_port(context, number, &gids)).collect();
    Ok(DeviceInfo {
        name: name.to_owned(),
        // SAFETY: the firmware string is terminated inside its array (the structure was zeroed before).
        firmware: unsafe { CStr::from_ptr(attributes.fw_ver.as_ptr()) }.to_string_lossy().into_owned(),
        vendor: attributes.vendor_id,
        queue_pairs_max: count(attributes.max_qp),
        work_requests_max: count(attributes.max_qp_wr),
        completions_max: count(attributes.max_cqe),
        reads_max: count(attributes.max_qp_rd_atom).min(count(attributes.max_qp_init_rd_atom)),
        capabilities,
        ports,
    })
}

/// Entries that a device may have: larger than any table known.
const GIDS_MAX: usize = 1024;

fn gid_table(context: &Arc<Context>) -> Vec<(u32, GidInfo)> {
    // SAFETY: a C structure of numbers.
    let empty: ffi::ibv_gid_entry = unsafe { zeroed() };
    let mut entries = vec![empty; GIDS_MAX];
    // SAFETY: an open context; `entries` has room for GIDS_MAX.
    let found = unsafe { ffi::ibv_query_gid_table(context.0, entries.as_mut_ptr(), GIDS_MAX, 0) };
    let found = usize::try_from(found).unwrap_or(0);
    entries
        .iter()
        .take(found)
        .map(|entry| {
            let kind = match entry.gid_type {
                0 => GidKind::InfiniBand,
                1 => GidKind::RoceV1,
                2 => GidKind::RoceV2,
                other => GidKind::Other(other),
            };
            // SAFETY: both views of the union are plain bytes.
            let gid = unsafe { entry.gid.raw };
            let interface = interface_name(entry.ndev_ifindex);
            (entry.port_num, GidInfo { index: entry.gid_index, gid, kind, interface })
        })
        .collect()
}

fn interface_name(index: u32) -> Option<String> {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: `name` has room for IF_NAMESIZE bytes; the call terminates it.
    let answer = unsafe { libc::if_indextoname(index, name.as_mut_ptr()) };
    if answer.is_null() {
        return None;
    }
    // SAFETY: terminated by the call above.
    Some(unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
}

/// `IBV_PORT_ACTIVE` of verbs.h.
pub(super) const PORT_ACTIVE: u32 = 4;

/// A port as it is now; `None` if the device does not say.
pub(super) fn query_port(context: &Context, number: u8) -> Option<ffi::ibv_port_attr> {
    // SAFETY: a C structure of numbers.
    let mut attributes: ffi::ibv_port_attr = unsafe { zeroed() };
    // SAFETY: an open context; writes one structure of ours.
    let answer = unsafe { ffi::ibv_query_port(context.0, number, &mut attributes) };
    checked("ibv_query_port", answer).ok()?;
    Some(attributes)
}

fn describe_port(context: &Arc<Context>, number: u8, gids: &[(u32, GidInfo)]) -> Option<PortInfo> {
    let attributes = query_port(context, number)?;
    // 2 is IBV_LINK_LAYER_ETHERNET, 1 IBV_PORT_DOWN (verbs.h).
    let link_layer = if attributes.link_layer == 2 { LinkLayer::Ethernet } else { LinkLayer::InfiniBand };
    let state = match attributes.state {
        PORT_ACTIVE => PortState::Active,
        1 => PortState::Down,
        other => PortState::Other(other),
    };
    let gids =
        gids.iter().filter(|(port, _)| *port == u32::from(number)).map(|(_, gid)| gid.clone()).collect();
    Some(PortInfo { number, state, link_layer, mtu_bytes: mtu_bytes(attributes.active_mtu), gids })
}

/// Why a device that was found could not give what was asked.
pub(super) fn null(call: &'static str) -> RdmaError {
    last(call)
}
