//! `lib/time.h`: nanoseconds of the system's clock. Programs compute deadlines with them, so this is the one clock of the C side.

use crate::errno;

/// `M0_TIME_NEVER`
pub const NEVER: u64 = u64::MAX;
const SECOND: u64 = 1_000_000_000;

/// `M0_TIME_NEVER`
#[unsafe(no_mangle)]
pub static M0_TIME_NEVER: u64 = NEVER;
/// `M0_TIME_IMMEDIATELY`
#[unsafe(no_mangle)]
pub static M0_TIME_IMMEDIATELY: u64 = 0;

/// `m0_time_now`
#[must_use]
pub fn now() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid clock and a place for its time.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now) };
    u64::try_from(now.tv_sec).unwrap_or(0).saturating_mul(SECOND) + u64::try_from(now.tv_nsec).unwrap_or(0)
}

fn of(seconds: u64, nanos: i64) -> u64 {
    let whole = seconds.saturating_mul(SECOND);
    match u64::try_from(nanos) {
        Ok(nanos) => whole.saturating_add(nanos),
        Err(_) => whole.saturating_sub(nanos.unsigned_abs()),
    }
}

/// The C library's form of a time.
#[must_use]
pub fn timespec(time: u64) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::try_from(time / SECOND).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::try_from(time % SECOND).unwrap_or(0),
    }
}

crate::export! {
    /// `m0_time_now`
    fn m0_time_now() -> u64 [0] {
        now()
    }

    /// `m0_time`
    fn m0_time(secs: u64, ns: i64) -> u64 [NEVER] {
        of(secs, ns)
    }

    /// `m0_time_from_now`
    fn m0_time_from_now(secs: u64, ns: i64) -> u64 [NEVER] {
        now().saturating_add(of(secs, ns))
    }

    /// `m0_time_add`
    fn m0_time_add(left: u64, right: u64) -> u64 [NEVER] {
        left.saturating_add(right)
    }

    /// `m0_time_sub`
    fn m0_time_sub(left: u64, right: u64) -> u64 [0] {
        if left == NEVER { NEVER } else { left.saturating_sub(right) }
    }

    /// `m0_time_seconds`
    fn m0_time_seconds(time: u64) -> u64 [0] {
        time / SECOND
    }

    /// `m0_time_nanoseconds`
    fn m0_time_nanoseconds(time: u64) -> u64 [0] {
        time % SECOND
    }

    /// `m0_time_is_in_past`
    fn m0_time_is_in_past(time: u64) -> bool [false] {
        time < now()
    }

    /// `m0_nanosleep`
    fn m0_nanosleep(request: u64, remaining: *mut u64) -> i32 [errno::EIO] {
        let wanted = timespec(request);
        let mut left = timespec(0);
        // SAFETY: two times of ours.
        let slept = unsafe { libc::nanosleep(&raw const wanted, &raw mut left) };
        // SAFETY: null, or the header's contract.
        if let Some(remaining) = unsafe { remaining.as_mut() } {
            let nanos = left.tv_nsec;
            *remaining = if slept == 0 { 0 } else { of(u64::try_from(left.tv_sec).unwrap_or(0), nanos) };
        }
        slept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_differences_stay_in_range() {
        assert_eq!(of(1, 5), SECOND + 5);
        assert_eq!(of(1, -5), SECOND - 5);
        assert_eq!(of(u64::MAX, 1), NEVER);
        // SAFETY: no pointers.
        unsafe {
            assert_eq!((m0_time_sub(5, 7), m0_time_sub(NEVER, 7), m0_time_add(NEVER, 1)), (0, NEVER, NEVER));
            assert!(m0_time_from_now(10, 0) > now() && m0_time_is_in_past(1));
        }
    }
}
