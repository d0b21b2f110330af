//! The same items over rdma-core. One C call per unsafe block.

mod completion;
mod connection_manager;
mod library;
mod nic;
mod post;
mod regions;
mod tables;

pub use connection_manager::ConnectionManager;
pub use library::Library;
pub use nic::Nic;

use std::io;

use crate::error::RdmaError;

/// The error of a call that answers -1 and sets errno.
fn last(call: &'static str) -> RdmaError {
    RdmaError::Call { call, source: io::Error::last_os_error() }
}

/// The result of a call of either convention: 0, -1 with errno, or the error number itself.
fn checked(call: &'static str, answer: libc::c_int) -> Result<(), RdmaError> {
    match answer {
        0 => Ok(()),
        -1 => Err(last(call)),
        code => Err(RdmaError::Call { call, source: io::Error::from_raw_os_error(code.abs()) }),
    }
}

/// Makes a descriptor of rdma-core nonblocking.
fn set_nonblocking(fd: libc::c_int) -> Result<(), RdmaError> {
    // SAFETY: takes and gives numbers; `fd` is open, its owner calls us.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    // SAFETY: as above.
    let answer = unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) };
    if flags < 0 || answer < 0 { Err(last("fcntl")) } else { Ok(()) }
}

/// A C structure of plain numbers and pointers, all zero.
///
/// # Safety
/// `T` is a C structure for which all bytes zero is a value: numbers, pointers, unions of those.
unsafe fn zeroed<T>() -> T {
    // SAFETY: the caller's promise.
    unsafe { std::mem::zeroed() }
}
