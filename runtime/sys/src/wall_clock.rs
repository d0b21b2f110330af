//! What the kernel says of the time of day: whether something keeps it synchronised, and how far it may be off.

use std::io;
use std::time::Duration;

/// The kernel's word on its own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discipline {
    /// True if a daemon told the kernel that the clock is synchronised, and not too long ago (`STA_UNSYNC` is not set).
    pub is_synchronised: bool,
    /// The largest error that the kernel reckons with; grows while nobody corrects the clock.
    pub error_max: Duration,
}

/// Asks the kernel. Source: adjtimex(2), with no mode: it changes nothing and needs no right.
///
/// # Errors
/// Where a sandbox or another kernel does not have the call: then nothing is known.
pub fn discipline() -> io::Result<Discipline> {
    // SAFETY: timex is plain numbers, for which all zero bits are a value; modes = 0 asks only.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `timex` lives through the call and is of the type that it fills.
    let state = unsafe { libc::adjtimex(&mut timex) };
    if state < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Discipline {
        is_synchronised: state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0,
        error_max: Duration::from_micros(u64::try_from(timex.maxerror).unwrap_or(u64::MAX)),
    })
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers_or_says_why_not() {
        match discipline() {
            // 16 s is where the kernel stops counting (NTP_PHASE_LIMIT), and a synchronised clock never gets there.
            Ok(found) => assert!(!found.is_synchronised || found.error_max < Duration::from_secs(17)),
            Err(error) => assert!(error.raw_os_error().is_some(), "{error}"),
        }
    }
}
