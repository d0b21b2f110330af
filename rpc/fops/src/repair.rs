//! Answered by the control daemon: how far the servers are with copying to devices whose disks are new (docs/ha.md#repair).

use base::Fid;
use bincode::{Decode, Encode};

use crate::fop;

/// How far a copy is. As told by the server that copies, and as control keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct RepairProgress {
    /// Records looked at, tombstones included.
    pub records: u64,
    /// Objects whose bytes on the device are complete.
    pub objects: u64,
    /// Bytes written to the device.
    pub bytes: u64,
    /// All objects up to this one were looked at.
    pub last: Option<Fid>,
    /// Objects with groups of which too many units are lost: nothing can bring those back.
    pub lost_count: u64,
    /// The first of these.
    pub lost: Vec<Fid>,
}

/// What a server says of its copy.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[non_exhaustive]
pub enum RepairWord {
    /// It does not copy, and asks what it is to do.
    Asks,
    /// It copies, and is so far.
    Copies(RepairProgress),
    /// It has looked at every object.
    Ended(RepairProgress),
    /// It gives up here, for a reason.
    Fails(RepairProgress, String),
}

/// A server asks what it is to do about a device of its own that is in repair, and tells how far it is.
///
/// Idempotent: what is told twice is so once.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RepairTurn {
    /// The process.
    pub process: Fid,
    /// Its incarnation.
    pub epoch: u64,
    /// The device.
    pub device: Fid,
    /// Number of the replacement that its disk was formatted for.
    pub replacement: u32,
    /// What it says.
    pub word: RepairWord,
}

/// What a server is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[non_exhaustive]
pub enum RepairOrder {
    /// Nothing yet: not every server refuses the changes of those who do not know. One that copies goes on.
    Wait,
    /// Copy.
    Run,
    /// Do not copy, and ask again.
    Pause,
    /// The device is not in repair with this disk (any more): nothing, for good.
    Leave,
}

/// The order, and where to go on.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RepairTurnReply {
    /// What to do.
    pub order: RepairOrder,
    /// How far it is, durably: a copy goes on from here.
    pub progress: RepairProgress,
    /// Bytes to write to the device in a second at most; 0: as fast as it goes.
    pub bytes_per_second: u64,
    /// Configuration version in force.
    pub version: u64,
}
fop!(RepairTurn, RepairTurnReply, RepairTurn, "repair-turn", Idempotent);

/// Asks for the repairs that control knows of: those that run, and the last of each device.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RepairGet {
    /// Only of devices behind this one.
    pub after: Option<Fid>,
}

/// Repairs by device.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RepairGetReply {
    /// As many as a message carries.
    pub repairs: Vec<RepairStatus>,
    /// True if there are more behind the last.
    pub has_more: bool,
}
fop!(RepairGet, RepairGetReply, RepairGet, "repair-get", Idempotent);

/// One repair.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RepairStatus {
    /// The device.
    pub device: Fid,
    /// The process whose server copies.
    pub process: Fid,
    /// Number of the replacement, of a pool's rebalance, or (`faces::SpareCopy`) of a copy to spare units or back.
    pub replacement: u32,
    /// `waiting`, `running`, `paused`, `failed`, `done` or `aborted`.
    pub state: String,
    /// Why it waits or failed; empty otherwise.
    pub reason: String,
    /// How far it is.
    pub progress: RepairProgress,
    /// Bytes that the device will hold at about, from what the others hold; 0: not known.
    pub expected_bytes: u64,
    /// Bytes written in a second, lately; 0 while it does not run.
    pub bytes_per_second: u64,
    /// Bytes in a second that the configuration allows; 0: no limit.
    pub bytes_per_second_max: u64,
}

/// How a repair stands, as control keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[non_exhaustive]
pub enum RepairState {
    /// To be copied.
    Running,
    /// An operator wants it to stand still.
    Paused,
    /// The server gave up, or something is lost.
    Failed,
    /// The device has everything.
    Done,
    /// An operator, or an error of the device, ended it.
    Aborted,
}

impl RepairState {
    /// Its word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            RepairState::Running => "running",
            RepairState::Paused => "paused",
            RepairState::Failed => "failed",
            RepairState::Done => "done",
            RepairState::Aborted => "aborted",
        }
    }
}

/// What control's store keeps of a device's last repair. Does not travel.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RepairRecord {
    /// The device.
    pub device: Fid,
    /// Number of the replacement.
    pub replacement: u32,
    /// How it stands.
    pub state: RepairState,
    /// True once a server has copied.
    pub has_begun: bool,
    /// Why it failed.
    pub reason: String,
    /// Configuration version at which it failed: with a later one it is tried again.
    pub failed_version: u64,
    /// How far it is.
    pub progress: RepairProgress,
}
