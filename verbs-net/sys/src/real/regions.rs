//! Memory regions: arenas known to a protection domain, registered piece by piece as they are first used, once each.
//!
//! A piece is [`CHUNK_BYTES`]: a buffer (at most 1 MiB, aligned to its size) never crosses one. An arena uses its lowest memory first, so what
//! is pinned is what was used, and after that no operation registers anything. Local keys give no remote right; for devices
//! without memory windows a second registration with remote rights is made of the pieces that are exposed.

use std::io;

use rdma_mummy_sys as ffi;
use runtime_sys::Arena;

use crate::error::RdmaError;
use crate::work::NicCounts;

/// Bytes of one region.
const CHUNK_BYTES: usize = 32 << 20;

/// What a region allows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Rights {
    /// The device may read and write it for us, and bind windows to it.
    Local,
    /// Peers that know the key may, too.
    Remote,
}

struct Known {
    /// Keeps the mapping.
    arena: Arena,
    base: usize,
    bytes: usize,
    local: Vec<Option<*mut ffi::ibv_mr>>,
    remote: Vec<Option<*mut ffi::ibv_mr>>,
}

/// All regions of one protection domain.
pub(super) struct Regions {
    pd: *mut ffi::ibv_pd,
    may_bind: bool,
    arenas: Vec<Known>,
}

impl Regions {
    /// `pd` outlives it: the owner calls [`Regions::deregister_all`] first.
    pub(super) fn new(pd: *mut ffi::ibv_pd, may_bind: bool) -> Regions {
        Regions { pd, may_bind, arenas: Vec::new() }
    }

    pub(super) fn add(&mut self, arena: &Arena, counts: &mut NicCounts) -> Result<(), RdmaError> {
        if self.arenas.iter().any(|known| known.arena.is_same(arena)) {
            return Ok(());
        }
        let bytes = usize::try_from(arena.capacity_bytes()).unwrap_or(usize::MAX);
        let chunks = bytes.div_ceil(CHUNK_BYTES);
        let base = arena.base_ptr().addr();
        self.arenas.push(Known {
            arena: arena.clone(),
            base,
            bytes,
            local: vec![None; chunks],
            remote: vec![None; chunks],
        });
        // Now, so that a limit that is too small is found at the start.
        self.region(base, Rights::Local, counts).map(|_| ()).inspect_err(|_| {
            self.arenas.pop();
        })
    }

    /// The region that the bytes at `address` lie in.
    pub(super) fn region(
        &mut self,
        address: usize,
        rights: Rights,
        counts: &mut NicCounts,
    ) -> Result<*mut ffi::ibv_mr, RdmaError> {
        let (pd, may_bind) = (self.pd, self.may_bind);
        let known = self
            .arenas
            .iter_mut()
            .find(|known| address.wrapping_sub(known.base) < known.bytes)
            .ok_or(RdmaError::NotRegistered)?;
        let chunk = (address - known.base) / CHUNK_BYTES;
        let slot = match rights {
            Rights::Local => &mut known.local[chunk],
            Rights::Remote => &mut known.remote[chunk],
        };
        if let Some(region) = slot {
            return Ok(*region);
        }
        let start = chunk * CHUNK_BYTES;
        let bytes = CHUNK_BYTES.min(known.bytes - start);
        let mut access = ffi::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE;
        if rights == Rights::Remote {
            access |= ffi::ibv_access_flags::IBV_ACCESS_REMOTE_READ;
            access |= ffi::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE;
        } else if may_bind {
            access |= ffi::ibv_access_flags::IBV_ACCESS_MW_BIND;
        }
        let first = known.arena.base_ptr().wrapping_add(start);
        // SAFETY: `pd` is live (see `new`); the range is inside the arena's mapping, which `known.arena` keeps mapped until
        // the region is deregistered. What the device does to the bytes is governed by the operations, which own their buffers.
        let region = unsafe {
            ffi::ibv_reg_mr(pd, first.cast(), bytes, access.0.try_into().unwrap_or(libc::c_int::MAX))
        };
        if region.is_null() {
            return Err(registration_error(bytes as u64, io::Error::last_os_error()));
        }
        counts.registrations += 1;
        counts.registered_bytes += bytes as u64;
        *slot = Some(region);
        Ok(region)
    }

    /// Ends all regions. No operation is posted any more.
    pub(super) fn deregister_all(&mut self) {
        for known in &mut self.arenas {
            for region in known.local.iter_mut().chain(&mut known.remote).filter_map(Option::take) {
                // SAFETY: `region` came from ibv_reg_mr, is ended once (`take`), and no queue pair or window that could use
                // it lives any more (the caller's order of destruction).
                let answer = unsafe { ffi::ibv_dereg_mr(region) };
                if answer != 0 && answer != libc::EIO && answer != libc::ENODEV {
                    // Still pinned and known to the device: the mapping must stay as long as the process does.
                    std::mem::forget(known.arena.clone());
                }
            }
        }
    }
}

fn registration_error(bytes: u64, source: io::Error) -> RdmaError {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes one structure of ours.
    let answer = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    let is_limit = matches!(source.raw_os_error(), Some(libc::ENOMEM | libc::EAGAIN | libc::EPERM));
    if is_limit && answer == 0 && limit.rlim_cur != libc::RLIM_INFINITY {
        return RdmaError::Memlock { bytes, limit_bytes: limit.rlim_cur };
    }
    RdmaError::Call { call: "ibv_reg_mr", source }
}
