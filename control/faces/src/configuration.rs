//! The configuration as everybody sees it: one versioned value, made by control, cached by all others.
//!
//! An operator's TOML is another shape (`clovis.toml`, see docs/configuration.md); this one is what travels, encoded with the
//! codec of `fops`.

use base::{Endpoint, Fid, LayoutWidth};
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// State of a device, as HA decides it. Words: docs/glossary.md; transitions: docs/ha.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DeviceState {
    /// Never registered since the configuration was made.
    Unknown,
    /// Registered, its server's lease holds.
    Online,
    /// Its server's lease is lost: may come back with its bytes.
    Transient,
    /// Useless until it is repaired: its units are skipped by writes and rebuilt by reads.
    Failed,
    /// Its units are being rebuilt into spare units.
    Repair,
    /// Its units stand in spare units.
    Repaired,
    /// Its units are moving back.
    Rebalance,
}

impl DeviceState {
    /// The word for people and for `fops::conf::DeviceStatus`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            DeviceState::Unknown => "unknown",
            DeviceState::Online => "online",
            DeviceState::Transient => "transient",
            DeviceState::Failed => "failed",
            DeviceState::Repair => "repair",
            DeviceState::Repaired => "repaired",
            DeviceState::Rebalance => "rebalance",
        }
    }
}

/// One device of the pool. Its position in [`PoolConfig::devices`] is its target index.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DeviceConfig {
    /// The device.
    pub device: Fid,
    /// The process that serves it.
    pub process: Fid,
    /// Endpoint of the locality that owns it.
    pub endpoint: Endpoint,
    /// Its state.
    pub state: DeviceState,
    /// Size in blocks; 0 until it registers.
    pub size_blocks: u64,
}

/// One server process.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ProcessConfig {
    /// The process.
    pub process: Fid,
    /// Endpoint of its first locality.
    pub endpoint: Endpoint,
    /// Its last registered incarnation, 0 if none.
    pub epoch: u64,
}

/// The pool version: a fixed set of devices and a layout.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PoolConfig {
    /// The pool.
    pub pool: Fid,
    /// The pool version.
    pub pool_version: Fid,
    /// N+K+S.
    pub width: LayoutWidth,
    /// Unit size where the object's creator chooses none.
    pub unit_bytes: u32,
    /// The devices by target index.
    pub devices: Vec<DeviceConfig>,
}

/// The configuration in force.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Configuration {
    /// Grows with each change; rides on every request.
    pub version: u64,
    /// The cluster's id: devices of another cluster are foreign.
    pub cluster: u64,
    /// The profile a client may ask for.
    pub profile: Fid,
    /// Endpoint of the control daemon.
    pub control: Endpoint,
    /// The server processes.
    pub processes: Vec<ProcessConfig>,
    /// The one pool of this version of Clovis.
    pub pool: PoolConfig,
}

impl Configuration {
    /// The device at a target index.
    #[must_use]
    pub fn target(&self, index: u32) -> Option<&DeviceConfig> {
        self.pool.devices.get(usize::try_from(index).ok()?)
    }

    /// Target index of a device.
    #[must_use]
    pub fn target_index(&self, device: Fid) -> Option<u32> {
        let index = self.pool.devices.iter().position(|candidate| candidate.device == device)?;
        u32::try_from(index).ok()
    }
}
