//! One table from errors of the client to error numbers of the C interface (negative, as they are returned).

use client::{ClientError, Fault, UnitFailures};

/// `-EINVAL` and friends, as the C interface returns them.
pub type Errno = i32;

pub const EINVAL: Errno = -libc::EINVAL;
pub const ENOMEM: Errno = -libc::ENOMEM;
pub const ENOSYS: Errno = -libc::ENOSYS;
pub const EMSGSIZE: Errno = -libc::EMSGSIZE;
pub const EBUSY: Errno = -libc::EBUSY;
pub const ETIMEDOUT: Errno = -libc::ETIMEDOUT;
pub const ESRCH: Errno = -libc::ESRCH;
pub const EDEADLK: Errno = -libc::EDEADLK;
pub const ECANCELED: Errno = -libc::ECANCELED;
pub const ESHUTDOWN: Errno = -libc::ESHUTDOWN;
pub const EIO: Errno = -libc::EIO;
pub const ENOENT: Errno = -libc::ENOENT;
pub const EEXIST: Errno = -libc::EEXIST;
pub const EILSEQ: Errno = -libc::EILSEQ;

/// The number for an error. The text goes to the log, since a number says too little.
#[must_use]
pub fn of(error: &ClientError) -> Errno {
    match error {
        ClientError::Exists { .. } => EEXIST,
        ClientError::NotFound { .. } | ClientError::Hole { .. } => ENOENT,
        ClientError::UnitBytes { .. }
        | ClientError::NotAligned { .. }
        | ClientError::PartsLength { .. }
        | ClientError::Piece { .. }
        | ClientError::NoPool { .. } => EINVAL,
        ClientError::TooLong { .. } => -libc::EFBIG,
        ClientError::Hold(_) => -libc::EBUSY,
        ClientError::TwoTickets { .. } => EINVAL,
        ClientError::Start { .. } => -libc::EADDRNOTAVAIL,
        ClientError::NoConfiguration { .. } => ETIMEDOUT,
        ClientError::WrongCredential { .. } => -libc::EACCES,
        ClientError::OtherPool { .. } | ClientError::BadRecord { .. } => -libc::EPROTO,
        ClientError::Conflict { .. } => -libc::EAGAIN,
        ClientError::Replaced { .. } => -libc::ESTALE,
        ClientError::Record { failures, .. }
        | ClientError::Write { failures, .. }
        | ClientError::Read { failures, .. }
        | ClientError::Repair { failures }
        | ClientError::List { failures } => of_failures(failures),
        _ => EIO,
    }
}

/// A full device before a silent server before anything else: what an operator can mend first.
fn of_failures(failures: &UnitFailures) -> Errno {
    let is_full = |fault: &Fault| fault.is_no_space();
    if failures.0.iter().any(|failure| is_full(&failure.fault)) {
        return -libc::ENOSPC;
    }
    if failures.0.iter().any(|failure| failure.fault.is_silence()) {
        return ETIMEDOUT;
    }
    EIO
}

#[cfg(test)]
mod tests {
    use base::ObjectId;

    use super::*;

    #[test]
    fn outcomes_have_their_own_numbers() {
        let object = ObjectId::new(1, 2).unwrap();
        assert_eq!(of(&ClientError::NotFound { object }), -libc::ENOENT);
        assert_eq!(of(&ClientError::Exists { object }), -libc::EEXIST);
        assert_eq!(of(&ClientError::Internal(String::new())), -libc::EIO);
        assert_eq!(of(&ClientError::List { failures: UnitFailures(Vec::new()) }), -libc::EIO);
    }
}
