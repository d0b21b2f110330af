//! Answered by every process: fault rules, ping, shutdown.

use base::Fid;
use bincode::{Decode, Encode};

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

/// Asks whether the process answers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Ping {
    /// Bytes that come back.
    pub payload: Vec<u8>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PingReply {
    /// The request's bytes.
    pub payload: Vec<u8>,
    /// Incarnation of the answering process.
    pub epoch: u64,
}
fop!(Ping, PingReply, Ping, "ping", Idempotent);

/// Asks the process to finish what runs, close its devices and stop.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Shutdown;

/// The process stops once this reply has left.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ShutdownReply;
fop!(Shutdown, ShutdownReply, Shutdown, "shutdown", Idempotent);
