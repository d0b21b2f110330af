//! Answered by the control daemon: configuration, registration, heartbeats, device evidence, status.

use base::{Endpoint, Fid};
use bincode::{Decode, Encode};

use crate::fop;

/// Asks for the configuration if it is newer than `known_version` (0: any).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConfGet {
    /// The version the requester holds, 0 for none.
    pub known_version: u64,
}

/// The configuration, or nothing if the requester's is current.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConfGetReply {
    /// Version that is in force.
    pub version: u64,
    /// The encoded `faces::Configuration`, if newer than the requester's.
    pub configuration: Option<Vec<u8>>,
}
fop!(ConfGet, ConfGetReply, ConfGet, "conf-get", Idempotent);

/// Asks for a part of a cluster file that is or was in force, its credential left out.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConfText {
    /// Number of the transaction that brought it; 0 for the one in force.
    pub transaction: u64,
    /// First byte wanted.
    pub offset: u64,
}

/// A part of the text, as much as a message carries; none at its end.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConfTextReply {
    /// Number of the transaction.
    pub transaction: u64,
    /// Bytes of the whole text.
    pub total_bytes: u64,
    /// The bytes from the offset on.
    pub part: Vec<u8>,
}
fop!(ConfText, ConfTextReply, ConfText, "conf-text", Idempotent);

/// Puts a cluster file in force, as one transaction. The text is the request's bulk source, its credential left out.
///
/// Idempotent: a text that says what is in force already changes nothing, whatever the base.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConfApply {
    /// Number of the transaction that the change was planned against: another one in force is a refusal.
    pub base: u64,
    /// When, in seconds since 1970, by the requester's clock.
    pub unix_s: u64,
    /// Why, in the operator's words.
    pub note: String,
}

/// It is in force, and durable.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConfApplyReply {
    /// Number of the transaction in force.
    pub transaction: u64,
    /// Configuration version that holds it.
    pub version: u64,
    /// Changes made; 0 if it was in force already.
    pub changes: u32,
}
fop!(ConfApply, ConfApplyReply, ConfApply, "conf-apply", Idempotent);

/// Asks for the transactions that control still has, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConfHistory;

/// Transactions, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConfHistoryReply {
    /// As many as control keeps.
    pub transactions: Vec<ConfTransaction>,
}

/// One change of the cluster file in force.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConfTransaction {
    /// From 1, one more each.
    pub number: u64,
    /// Configuration version that holds it.
    pub version: u64,
    /// When, in seconds since 1970, by the clock of whoever asked for it; 0 if nobody said.
    pub unix_s: u64,
    /// Endpoint of whoever asked for it; control's own if it read the file when it started.
    pub by: Endpoint,
    /// Why.
    pub note: String,
    /// Keys and sections that changed.
    pub changes: u32,
    /// Bytes of the text.
    pub text_bytes: u64,
}
fop!(ConfHistory, ConfHistoryReply, ConfHistory, "conf-history", Idempotent);

/// Asks for the changes of states after a number: a subscriber that was away catches up with the same request.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct EventsGet {
    /// The last number that the requester has, 0 for none.
    pub after: u64,
    /// How long control may wait for one to come if there is none yet, in milliseconds.
    pub wait_ms: u32,
}

/// Events in their order, without a gap from the first on.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct EventsReply {
    /// Number of the oldest that control keeps: what is between the requester's last and this one is gone.
    pub oldest: u64,
    /// Number of the newest.
    pub newest: u64,
    /// As many as a message carries.
    pub events: Vec<Event>,
}
fop!(EventsGet, EventsReply, EventsGet, "events-get", Idempotent);

/// Something changed its state.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Event {
    /// From 1, one more each.
    pub number: u64,
    /// Configuration version that holds it, or the one in force if it holds nothing of it.
    pub version: u64,
    /// When, in seconds since 1970 by control's clock; 0 if it has none.
    pub unix_s: u64,
    /// A device or a process.
    pub subject: Fid,
    /// Word of what happened to it.
    pub cause: String,
    /// Word of the state before.
    pub from: String,
    /// Word of the state after.
    pub to: String,
}

/// A server process says that it runs, where, and with which devices.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Register {
    /// The process.
    pub process: Fid,
    /// Its incarnation.
    pub epoch: u64,
    /// The devices that it opened, with the endpoint of the locality that owns each.
    pub devices: Vec<RegisteredDevice>,
}

/// One device of a registering process.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RegisteredDevice {
    /// The device.
    pub device: Fid,
    /// Endpoint of the locality that owns it.
    pub endpoint: Endpoint,
    /// Its size in blocks.
    pub size_blocks: u64,
    /// Number of the replacement that it was formatted for; 0 for the first disk.
    pub replacement: u32,
}

/// Accepted: the lease begins.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RegisterReply {
    /// Configuration version that holds the registration.
    pub version: u64,
    /// The process stops serving if it hears nothing from control for this long.
    pub lease_ms: u64,
}
fop!(Register, RegisterReply, Register, "register", Idempotent);

/// Prolongs a process's lease and carries what it saw of its devices.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Heartbeat {
    /// The process.
    pub process: Fid,
    /// Its incarnation.
    pub epoch: u64,
    /// Blocks free and errors counted, by device.
    pub devices: Vec<DeviceHealth>,
}

/// What a server knows of one of its devices.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DeviceHealth {
    /// The device.
    pub device: Fid,
    /// Free blocks.
    pub free_blocks: u64,
    /// Accesses that failed since the process started.
    pub errors: u64,
    /// True once the device is useless: poisoned, or every access fails.
    pub failed: bool,
}

/// The lease is prolonged, or the process is not known and has to register again.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HeartbeatReply {
    /// Configuration version in force.
    pub version: u64,
    /// False after a restart of control: register again.
    pub known: bool,
}
fop!(Heartbeat, HeartbeatReply, Heartbeat, "heartbeat", Idempotent);

/// What somebody saw a device do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[non_exhaustive]
pub enum DeviceEvidence {
    /// An access failed with an I/O error on the device itself.
    IoError,
    /// The server in front of it does not answer.
    Unreachable,
    /// An operator takes it out of service.
    Operator,
}

/// Reports evidence about a device. Control decides what follows.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DeviceReport {
    /// The device.
    pub device: Fid,
    /// What was seen.
    pub evidence: DeviceEvidence,
}

/// What control made of it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DeviceReportReply {
    /// Configuration version in force after the report.
    pub version: u64,
}
fop!(DeviceReport, DeviceReportReply, DeviceReport, "device-report", Idempotent);

/// What an operator wants of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[non_exhaustive]
pub enum DeviceOrder {
    /// Take it out, to bring it back later with all its bytes.
    Detach {
        /// Also if more devices are away then than the layout reads without.
        force: bool,
    },
    /// Take it back.
    Attach,
    /// Its disk was replaced, or may be overwritten: format it, and take what was lost back. Repeated, it tells how far that is.
    Replace,
    /// Not taken any more: what commands said that copied themselves. The server that copies says it ([`crate::repair::RepairWord::Ended`]).
    Restored {
        /// Number of the replacement.
        replacement: u32,
    },
    /// Copy to it again, from the first object on: its repair failed.
    RepairStart,
    /// Let the copy stand still.
    RepairPause,
    /// Let it go on.
    RepairResume,
    /// Give its new disk up: it is failed again.
    RepairAbort,
}

/// Gives an order about a device. Control refuses what the device's state does not allow, with the reason.
///
/// Idempotent: an order that is carried out already changes nothing, and its answer tells how far it is heeded by now.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DeviceCommand {
    /// The device.
    pub device: Fid,
    /// What is wanted.
    pub order: DeviceOrder,
}

/// The order is in force, and durable.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DeviceCommandReply {
    /// Configuration version in force.
    pub version: u64,
    /// The word of the device's state now.
    pub state: String,
    /// False if it was so already.
    pub is_new: bool,
    /// True once nobody serves the device as before: its server heard of the order, or has no lease. Of a replacement: once
    /// the device takes writes, and every server refuses those of whoever does not know. Of a repair that is to stand still or to end: once
    /// nothing is copied.
    pub is_heeded: bool,
    /// Number of the disk that it has or awaits, 0 for its first; while its units go to spare units or come back from there, that of the copy.
    pub replacement: u32,
}
fop!(DeviceCommand, DeviceCommandReply, DeviceCommand, "device-command", Idempotent);

/// Asks for the state of the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ClusterStatus;

/// Processes and devices as control sees them now.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ClusterStatusReply {
    /// Configuration version in force.
    pub version: u64,
    /// Each process of the configuration.
    pub processes: Vec<ProcessStatus>,
    /// Each device of the configuration.
    pub devices: Vec<DeviceStatus>,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ProcessStatus {
    /// The process.
    pub process: Fid,
    /// Milliseconds since its last heartbeat; `None` if it never registered.
    pub silent_ms: Option<u64>,
    /// True while its lease holds.
    pub alive: bool,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DeviceStatus {
    /// The device.
    pub device: Fid,
    /// The word of its state, as `faces::DeviceState` writes it.
    pub state: String,
    /// Size in blocks; 0 if it never registered.
    pub size_blocks: u64,
    /// Free blocks at the last heartbeat; `None` before the first.
    pub free_blocks: Option<u64>,
    /// Errors at the last heartbeat.
    pub errors: u64,
}
fop!(ClusterStatus, ClusterStatusReply, ClusterStatus, "cluster-status", Idempotent);
