//! Storage objects (stobs) on one device, and the transactional metadata beside them.
//!
//! A [`Domain`] keeps many stobs and ordered key-value trees on one device. **Promises**: what `write` or `commit`
//! acknowledged survives any power cut; a transaction is whole or absent; every block is verified against its checksum
//! when read; data is never written over live blocks. How: data goes to free extents, then one log record flips the map, then
//! one flush covers both, then the caller hears of it (docs/rfd/0002-metadata-engine.md; bytes in docs/disk.md).
//!
//! Must not know: networks, rpc, layouts. Time and randomness come from the locality; the device stands behind
//! [`backend::Backend`]. Thread: a domain belongs to one locality and is `!Send`. Bounds: [`limits`].
//!
//! Left over: trees and owners of shared blocks are held in memory whole, and written whole by a checkpoint (docs/disk.md#costs). Start
//! reading at `domain`, then `metadata`, `extents` and `format`.
#![forbid(unsafe_code)]

pub mod allocator;
pub mod backend;
pub mod bit_pages;
pub mod domain;
pub mod error;
pub mod extents;
pub mod format;
pub mod limits;
pub mod metadata;
pub mod shared_blocks;
pub mod slots;
pub mod stob_id;
pub mod trace;
mod tree_key;

pub use backend::{
    Backend, BackendKind, BlockDone, BlockOp, DeviceError, Direct, FaultSwitch, Faulty, Geometry, MemDevice,
    NvmeAddress, NvmeAddressError, OpenOptions, SimBackend, SimDisk, SimFaults, SimStats, SpdkDevice,
    UringFile, WriteParts, create_device_file, is_nvme_address, open_device,
};
pub use domain::{
    BadBlock, CheckReport, Domain, DomainInfo, FormatParams, Problem, ReadOutcome, Scrub, ScrubConfig,
    ScrubStats, SuperblockCopy, Transaction, WritePiece, ZERO_BLOCK_CHECKSUM, check, dump, erase, inspect,
};
pub use error::{BadRequest, Damage, Space, StobError};
pub use stob_id::{StobId, TreeId};
pub use trace::TraceEvent;

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // the numbers of tests are small
mod crash_tests;
#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // the numbers of tests are small
mod domain_tests;
#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // the numbers of tests are small
mod exhaustive_tests;
#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // the numbers of tests are small
mod testing;
