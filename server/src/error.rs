//! Why a server does not start or stop as it should.

use base::{Blame, Blamed, Endpoint, Fid};
use faces::ConfError;
use spdk_stob::StobError;
use verbs_net::StartError;

/// Why [`crate::Server`] failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The transport does not start.
    #[error("network: {0}")]
    Net(#[from] StartError),
    /// Control does not answer, or refuses the registration.
    #[error("{0}")]
    Control(#[from] ConfError),
    /// The configuration has no such process.
    #[error(
        "process {process} is not in the configuration of the control daemon at {control}: check the cluster file"
    )]
    NotConfigured {
        /// This process.
        process: Fid,
        /// Who said so.
        control: Endpoint,
    },
    /// The configuration gives the device to another process.
    #[error(
        "device {device} is not a device of process {process} in the configuration: check the cluster file"
    )]
    NotOurs {
        /// The device.
        device: Fid,
        /// This process.
        process: Fid,
    },
    /// A device twice.
    #[error("device {device} was given twice")]
    Doubled {
        /// The device.
        device: Fid,
    },
    /// A device has no disk or file in its place.
    #[error("device {device}: {reason}")]
    NoDisk {
        /// The device.
        device: Fid,
        /// Why.
        reason: String,
    },
    /// A device does not open, or does not close.
    #[error("device {device}: {source}")]
    Device {
        /// The device.
        device: Fid,
        /// Why.
        source: StobError,
    },
    /// Requests did not end within the time of the drain. The devices are closed; nothing acknowledged is lost.
    #[error("{0}")]
    Undrained(rpc::Undrained),
}

impl Blamed for ServerError {
    fn blame(&self) -> Blame {
        match self {
            ServerError::NotConfigured { .. } | ServerError::NotOurs { .. } | ServerError::Doubled { .. } => {
                Blame::Caller
            }
            _ => Blame::Environment,
        }
    }
}
