//! Answered by every process: fault rules, ping, what it is, shutdown.

use base::Fid;
use bincode::{Decode, Encode};

use crate::codec::ByteString;

use crate::fop;

/// Sets or clears the fault rule of a device: while set, each access fails with EIO.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DeviceFault {
    /// The device.
    pub device: Fid,
    /// True: every access fails from now on.
    pub failed: bool,
}

/// The rule is in force.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DeviceFaultReply;
fop!(DeviceFault, DeviceFaultReply, DeviceFault, "device-fault", Idempotent);

/// Adds, lists or clears fault rules of the answering machine's net: what it does to frames that leave it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NetFault {
    /// What to do first.
    pub request: NetFaultRequest,
}

/// What to do with fault rules.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum NetFaultRequest {
    /// One more rule.
    Add {
        /// Its line: `ACTION [peer=NID|*@NET] [kind=message|bulk|control|all] [one-in=N] [count=N] [ms=N]`.
        rule: String,
    },
    /// Only the list.
    List,
    /// One rule less, or none left.
    Clear {
        /// Which; `None`: all.
        id: Option<u64>,
    },
}

/// The rules in force after the request.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NetFaultReply {
    /// In order of their age.
    pub rules: Vec<NetFaultStatus>,
}

/// One rule with its counters.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NetFaultStatus {
    /// Its name.
    pub id: u64,
    /// Its line.
    pub rule: String,
    /// Frames of its peers and kind.
    pub matched: u64,
    /// Frames that it did something to.
    pub fired: u64,
}
// At most once: a rule that is added twice fires twice as often.
fop!(NetFault, NetFaultReply, NetFault, "net-fault", AtMostOnce);

/// Asks whether the process answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Ping {
    /// Bytes that come back.
    pub payload: ByteString,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PingReply {
    /// The request's bytes.
    pub payload: ByteString,
    /// Incarnation of the answering process.
    pub epoch: u64,
}
fop!(Ping, PingReply, Ping, "ping", Idempotent);

/// Asks a process what it is.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ProcessGet;

/// What the answering process says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ProcessGetReply {
    /// Version of its program; empty if whoever started it gave none.
    pub version: String,
    /// Its incarnation.
    pub epoch: u64,
    /// The time of day on its machine when it answered, in microseconds since 1970; `None` if it has no such clock.
    pub unix_us: Option<u64>,
    /// The device of its own durable state; `None`: it keeps none (a server).
    pub store: Option<StoreSpace>,
}
fop!(ProcessGet, ProcessGetReply, ProcessGet, "process-get", Idempotent);

/// How full a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StoreSpace {
    /// Blocks that data can use.
    pub blocks: u64,
    /// Of these, free.
    pub free_blocks: u64,
}

/// Asks the process to finish what runs, close its devices and stop.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Shutdown;

/// The process stops once this reply has left.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ShutdownReply;
fop!(Shutdown, ShutdownReply, Shutdown, "shutdown", Idempotent);
