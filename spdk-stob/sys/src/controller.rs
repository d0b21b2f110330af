//! A controller, shared by the queues of all its namespaces in this process, and one namespace of it.
//!
//! Stopping: when a command does not come back, or the controller is lost, it is stopped as a whole
//! (`spdk_nvme_ctrlr_disconnect`: its registers are told to stop, and its answer awaited by polling). Only then do devices
//! certainly write to no buffer any more. A stopped controller is not started again: who wants to go on detaches it by
//! dropping everything of it, and opens it anew.
//!
//! Threads: any. SPDK locks what its functions on controllers share; the state of stopping has a lock of ours.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::address::TransportAddress;
use crate::api::{
    IDENTIFY_BYTES, NAMESPACE_DEALLOCATES, NAMESPACE_FLUSHES, RawController, RawNamespace, RawTransportId,
};
use crate::environment::{Claim, Spdk, StartOptions};
use crate::error::SpdkError;
use crate::queue::Queue;

/// Where a controller is on its way to silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Running,
    Stopping,
    /// It does not write to memory any more.
    Silent,
    /// It did not confirm that it stopped: it may write to memory as long as it lives.
    Unconfirmed,
}

/// An attached controller; the last owner detaches it.
pub(crate) struct ControllerShared {
    pub(crate) spdk: &'static Spdk,
    pub(crate) address: TransportAddress,
    pub(crate) raw: NonNull<RawController>,
    stop: Mutex<Stop>,
}

// SAFETY: SPDK locks each controller itself in every function that we call on one (nvme_ctrlr_lock), and `raw` stays good
// until the last owner drops it.
unsafe impl Send for ControllerShared {}
// SAFETY: as above.
unsafe impl Sync for ControllerShared {}

impl ControllerShared {
    /// Blocks until the controller is ready or SPDK gives up.
    pub(crate) fn attach(
        spdk: &'static Spdk,
        address: &TransportAddress,
    ) -> Result<ControllerShared, SpdkError> {
        let wrong = |errno: i32| SpdkError::Address { address: address.clone(), errno };
        let text = CString::new(address.to_string()).map_err(|_| wrong(crate::api::EINVAL))?;
        let mut id = MaybeUninit::<RawTransportId>::zeroed();
        // SAFETY: the parser reads the string to its end and writes one transport id, for which there is room; zeroed before, as
        // it asks.
        let result = unsafe { (spdk.api.transport_id_parse)(id.as_mut_ptr(), text.as_ptr()) };
        if result != 0 {
            return Err(wrong(result.abs()));
        }
        // SAFETY: `id` was filled; null and 0 ask for the default options.
        let raw = unsafe { (spdk.api.connect)(id.as_ptr(), ptr::null(), 0) };
        let raw = NonNull::new(raw).ok_or_else(|| SpdkError::Connect { address: address.clone() })?;
        Ok(ControllerShared { spdk, address: address.clone(), raw, stop: Mutex::new(Stop::Running) })
    }

    fn stop_state(&self) -> MutexGuard<'_, Stop> {
        // One word: no panic leaves it half changed.
        self.stop.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Handles what came to the admin queue, and keeps the connection of a remote controller alive. False: it is lost.
    pub(crate) fn poll_admin(&self) -> bool {
        if *self.stop_state() != Stop::Running {
            return false;
        }
        // SAFETY: the controller is attached.
        let result = unsafe { (self.spdk.api.ctrlr_process_admin_completions)(self.raw.as_ptr()) };
        result >= 0
    }

    /// Starts to stop, if nothing else did, or goes on with it.
    pub(crate) fn poll_stop(&self) -> Stop {
        let mut state = self.stop_state();
        match *state {
            Stop::Running => {
                // SAFETY: the controller is attached.
                let result = unsafe { (self.spdk.api.ctrlr_disconnect)(self.raw.as_ptr()) };
                // Refused if it is gone from its slot (nothing is left that could write), or stopping already.
                *state = if result == -crate::api::ENXIO { Stop::Silent } else { Stop::Stopping };
            }
            Stop::Stopping => {
                // SAFETY: the controller is attached.
                let result = unsafe { (self.spdk.api.ctrlr_process_admin_completions)(self.raw.as_ptr()) };
                if result < 0 {
                    // Over. SPDK cleared the mark of failure when it began, and sets it if the controller did not obey.
                    // SAFETY: the controller is attached.
                    let is_failed = unsafe { (self.spdk.api.ctrlr_is_failed)(self.raw.as_ptr()) };
                    *state = if is_failed { Stop::Unconfirmed } else { Stop::Silent };
                }
            }
            Stop::Silent | Stop::Unconfirmed => {}
        }
        *state
    }
}

impl Drop for ControllerShared {
    fn drop(&mut self) {
        self.spdk.detach(&self.address, || {
            // SAFETY: attached once, detached once; every queue of it is gone, since each is an owner.
            unsafe { (self.spdk.api.detach)(self.raw.as_ptr()) };
        });
    }
}

/// What a controller says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Model number.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// Firmware revision.
    pub firmware: String,
}

/// One namespace of an attached controller, claimed within this process. Clones share the claim; the controller stays attached
/// while a namespace or a queue of it lives.
#[derive(Clone)]
pub struct Namespace {
    _claim: Arc<Claim>,
    pub(crate) controller: Arc<ControllerShared>,
    pub(crate) raw: NonNull<RawNamespace>,
    id: u32,
    sector_bytes: u32,
    sectors: u64,
    flags: u32,
}

// SAFETY: SPDK's functions on a namespace read what was set when its controller was attached; queues do the rest.
unsafe impl Send for Namespace {}
// SAFETY: as above.
unsafe impl Sync for Namespace {}

impl Namespace {
    /// Attaches the controller at `address`, unless this process has it already, and takes its namespace `id` (from 1).
    /// Blocks for as long as the controller takes to become ready.
    ///
    /// # Errors
    /// [`SpdkError`]: environment, address, no controller, no such namespace, a format that is not of 512 to 4096 bytes without metadata.
    pub fn open(
        spdk: &'static Spdk,
        address: &TransportAddress,
        id: u32,
        options: StartOptions,
    ) -> Result<Namespace, SpdkError> {
        let claim = Arc::new(spdk.claim(address, id)?);
        let controller = spdk.controller(address, options)?;
        let api = &spdk.api;
        let missing = || SpdkError::NoNamespace { address: address.clone(), namespace: id };
        // SAFETY: the controller is attached; SPDK answers null for a number that it does not have.
        let raw = unsafe { (api.ctrlr_get_ns)(controller.raw.as_ptr(), id) };
        let raw = NonNull::new(raw).ok_or_else(missing)?;
        let at = raw.as_ptr();
        // SAFETY: a namespace of an attached controller, which `controller` keeps so.
        if !unsafe { (api.ns_is_active)(at) } {
            return Err(missing());
        }
        // SAFETY: as above.
        let sector_bytes = unsafe { (api.ns_get_sector_size)(at) };
        // SAFETY: as above.
        let metadata_bytes = unsafe { (api.ns_get_md_size)(at) };
        // SAFETY: as above.
        let sectors = unsafe { (api.ns_get_num_sectors)(at) };
        // SAFETY: as above.
        let flags = unsafe { (api.ns_get_flags)(at) };
        if !sector_bytes.is_power_of_two() || !(512..=4096).contains(&sector_bytes) || metadata_bytes != 0 {
            let address = address.clone();
            return Err(SpdkError::Format { address, namespace: id, sector_bytes, metadata_bytes });
        }
        Ok(Namespace { _claim: claim, controller, raw, id, sector_bytes, sectors, flags })
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Bytes of a sector: a power of two from 512 to 4096.
    #[must_use]
    pub fn sector_bytes(&self) -> u32 {
        self.sector_bytes
    }

    /// How many sectors there are.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// True if a completed write may still be lost with the power until a flush. False: no flush is needed.
    #[must_use]
    pub fn has_volatile_cache(&self) -> bool {
        self.flags & NAMESPACE_FLUSHES != 0
    }

    /// True if it can be told that content is not needed any more.
    #[must_use]
    pub fn deallocates(&self) -> bool {
        self.flags & NAMESPACE_DEALLOCATES != 0
    }

    /// Bytes that one command of the controller moves; SPDK cuts longer ones.
    #[must_use]
    pub fn max_transfer_bytes(&self) -> u32 {
        // SAFETY: a namespace of an attached controller.
        unsafe { (self.controller.spdk.api.ns_get_max_io_xfer_size)(self.raw.as_ptr()) }
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &TransportAddress {
        &self.controller.address
    }

    /// True if the device reaches memory by itself, so that its memory needs translations.
    #[must_use]
    pub fn is_by_dma(&self) -> bool {
        matches!(self.controller.address, TransportAddress::Pci(_))
    }

    /// What the controller says of itself. Source: NVM Express Base Specification, identify controller data.
    #[must_use]
    pub fn identity(&self) -> Identity {
        // SAFETY: the controller is attached, and SPDK keeps its identify data as long.
        let data = unsafe { (self.controller.spdk.api.ctrlr_get_data)(self.controller.raw.as_ptr()) };
        // SAFETY: not null for an attached controller; written once, while it was attached.
        let data: &[u8; IDENTIFY_BYTES] = unsafe { &*data };
        let text = |range: std::ops::Range<usize>| String::from_utf8_lossy(&data[range]).trim().to_owned();
        Identity { serial: text(4..24), model: text(24..64), firmware: text(64..72) }
    }

    /// Handles what came to the admin queue, and keeps the connection of a remote controller alive: once a second is
    /// enough. False: the controller is lost.
    #[must_use]
    pub fn poll_admin(&self) -> bool {
        self.controller.poll_admin()
    }

    /// A queue pair of this namespace for the calling thread, holding up to `depth` commands (1 to
    /// [`QUEUE_DEPTH_MAX`](crate::QUEUE_DEPTH_MAX)).
    ///
    /// # Errors
    /// [`SpdkError::NoQueue`].
    pub fn open_queue(&self, depth: usize) -> Result<Queue, SpdkError> {
        Queue::open(self.clone(), depth)
    }
}
