//! What can fail at the edge, by blame, with what to do.

use std::io;
use std::net::Ipv4Addr;

/// Opening and preparing failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RdmaError {
    /// The feature is off.
    #[error("this binary was built without RDMA: build it with `--features rdma`, or use a tcp address")]
    NotBuilt,
    /// libibverbs or librdmacm is not on this machine.
    #[error(
        "rdma-core is not installed ({missing}): install libibverbs1, librdmacm1 and ibverbs-providers, or use a tcp address"
    )]
    NoCore {
        /// The library that is missing.
        missing: &'static str,
    },
    /// The kernel has no verbs.
    #[error(
        "the kernel has no user verbs: `modprobe ib_uverbs rdma_ucm` (and rdma_rxe for soft-RoCE): {source}"
    )]
    NoKernel {
        /// What the kernel answered.
        source: io::Error,
    },
    /// There is no device at all.
    #[error(
        "no RDMA device: `rdma link` lists them; soft-RoCE: `rdma link add rxe0 type rxe netdev <interface>`"
    )]
    NoDevice,
    /// The address belongs to no device.
    #[error("{address} is on no RDMA device; addresses that are: {known}")]
    NotOnDevice {
        /// As asked.
        address: Ipv4Addr,
        /// What there is.
        known: String,
    },
    /// Too little memory may be locked.
    #[error(
        "cannot register {bytes} bytes: memlock allows {limit_bytes}. Raise it (`ulimit -l unlimited`, LimitMEMLOCK=infinity, \
         or /etc/security/limits.conf) and start again"
    )]
    Memlock {
        /// Bytes of the region.
        bytes: u64,
        /// The limit now.
        limit_bytes: u64,
    },
    /// The buffer lies in no registered arena.
    #[error("a buffer lies in no registered arena: register the arena with the transfer machine first")]
    NotRegistered,
    /// The device cannot do it.
    #[error("device {device} has no {what}")]
    Unsupported {
        /// Its name.
        device: String,
        /// What is missing.
        what: &'static str,
    },
    /// A word of the environment.
    #[error("CLOVIS_RDMA_WITHOUT: {word:?} is not one of windows, srq, extended, inline")]
    BadWord {
        /// The word.
        word: String,
    },
    /// A call failed.
    #[error("{call} failed: {source}")]
    Call {
        /// The function of rdma-core.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// The name is of something that has ended.
    #[error("{what} is gone")]
    Gone {
        /// What.
        what: &'static str,
    },
}

impl RdmaError {
    /// The error number, where there is one.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            RdmaError::Call { source, .. } | RdmaError::NoKernel { source } => source.kind(),
            RdmaError::Memlock { .. } => io::ErrorKind::OutOfMemory,
            RdmaError::NotOnDevice { .. } => io::ErrorKind::AddrNotAvailable,
            RdmaError::Gone { .. } => io::ErrorKind::NotConnected,
            _ => io::ErrorKind::Unsupported,
        }
    }
}

/// Why a batch was not posted; what was not posted comes back as failed completions.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostError {
    /// No such queue pair.
    #[error("the queue pair is gone")]
    Gone,
    /// The send queue, the window pool or the header slots are in use: post the rest after the next completion.
    #[error("the send queue is full")]
    Full,
    /// The device refused: the queue pair is of no more use.
    #[error("the device refused a post: {source}")]
    Refused {
        /// What it answered.
        source: io::Error,
    },
    /// A registration on the way failed.
    #[error(transparent)]
    Registration(#[from] RdmaError),
}

/// How an operation failed. Source: man ibv_poll_cq(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompletionError {
    /// The queue pair failed or was ended before this operation ran.
    #[error("flushed: the connection ended first")]
    Flushed,
    /// The peer did not answer any more.
    #[error("the peer did not answer (transport retries exceeded)")]
    RetryExceeded,
    /// The peer had no receive posted for too long.
    #[error("the peer posted no receive (RNR retries exceeded)")]
    ReceiverNotReady,
    /// The peer's memory is not accessible by this key.
    #[error("the peer's key does not allow it")]
    RemoteAccess,
    /// The peer found the request invalid: too long for its receive, say.
    #[error("the peer found the request invalid")]
    RemoteInvalid,
    /// The peer could not do it.
    #[error("the peer failed to carry it out")]
    RemoteOperation,
    /// Our own memory or length was wrong.
    #[error("our own request was wrong (status {status})")]
    Local {
        /// ibv_wc_status.
        status: u32,
    },
    /// A memory window could not be bound.
    #[error("a memory window could not be bound")]
    WindowBind,
    /// Something else.
    #[error("completion status {status}, vendor code {vendor}")]
    Other {
        /// ibv_wc_status.
        status: u32,
        /// The provider's code.
        vendor: u32,
    },
}

impl CompletionError {
    /// From ibv_wc_status; 0 is success.
    #[must_use]
    pub const fn from_status(status: u32, vendor: u32) -> Option<CompletionError> {
        Some(match status {
            0 => return None,
            1 | 2 | 4 | 8 => CompletionError::Local { status },
            5 => CompletionError::Flushed,
            6 => CompletionError::WindowBind,
            9 => CompletionError::RemoteInvalid,
            10 => CompletionError::RemoteAccess,
            11 => CompletionError::RemoteOperation,
            12 => CompletionError::RetryExceeded,
            13 => CompletionError::ReceiverNotReady,
            _ => CompletionError::Other { status, vendor },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_a_meaning_and_only_zero_is_success() {
        assert_eq!(CompletionError::from_status(0, 7), None);
        for status in 1..40 {
            assert!(CompletionError::from_status(status, 7).is_some(), "{status}");
        }
        assert_eq!(CompletionError::from_status(12, 0), Some(CompletionError::RetryExceeded));
        assert_eq!(
            CompletionError::from_status(21, 3),
            Some(CompletionError::Other { status: 21, vendor: 3 })
        );
    }
}
