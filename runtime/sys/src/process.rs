//! Figures and settings of this process and thread: CPU time, cores, locked memory.

use std::io;
use std::time::Duration;

/// Unlike getrusage(2) the kernel brings these clocks up to now, and not to its last tick.
fn clock(id: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` lives through the call and is of the type it fills. With these clocks it cannot fail.
    unsafe { libc::clock_gettime(id, &mut time) };
    Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0))
        + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// Nanoseconds of the clock that never goes back, from a start that is the system's. Source: clock_gettime(2), CLOCK_MONOTONIC.
///
/// Asked in every turn of a locality: three times fewer instructions than a difference of the standard library's instants.
#[must_use]
#[inline]
pub fn monotonic_nanos() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: as in `clock`.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    // Neither is negative.
    time.tv_sec.cast_unsigned().wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec.cast_unsigned())
}

/// CPU time of all threads of this process since its start, user and system. Source: clock_gettime(2), CLOCK_PROCESS_CPUTIME_ID.
#[must_use]
pub fn cpu_time() -> Duration {
    clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// CPU time of the calling thread since its start, user and system. Source: clock_gettime(2), CLOCK_THREAD_CPUTIME_ID.
#[must_use]
pub fn thread_cpu_time() -> Duration {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Binds the calling thread to the core numbered `core` by the kernel.
///
/// # Errors
/// `EINVAL` if the process may not use that core or there is none of that number.
pub fn pin_to_core(core: usize) -> io::Result<()> {
    // SAFETY: cpu_set_t is a bit set, for which all zero bits are a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    if core >= size_of::<libc::cpu_set_t>() * 8 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: `core` is below the number of bits of the set, checked above.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: the set lives through the call and its size is given; 0 is the calling thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The cores that the calling thread may use, by the kernel's numbers, ascending.
///
/// # Errors
/// What sched_getaffinity(2) says.
pub fn allowed_cores() -> io::Result<Vec<usize>> {
    // SAFETY: cpu_set_t is a bit set, for which all zero bits are a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set lives through the call and its size is given; 0 is the calling thread.
    let result = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: each number is below the number of bits of the set.
    let is_set = |core: &usize| unsafe { libc::CPU_ISSET(*core, &set) };
    Ok((0..size_of::<libc::cpu_set_t>() * 8).filter(is_set).collect())
}

/// Bytes that this process may lock in memory, or `None` for no limit. Source: getrlimit(2), RLIMIT_MEMLOCK.
#[must_use]
pub fn memlock_limit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives through the call and is of the type it fills.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    (result < 0 || limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// True if this process may lock memory beyond [`memlock_limit`]: it has CAP_IPC_LOCK. Source: proc(5), `CapEff`.
#[must_use]
pub fn may_lock_memory() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = capabilities.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    bits.is_some_and(|bits| bits & (1 << CAP_IPC_LOCK) != 0)
}

/// Number of the capability, from linux/capability.h.
const CAP_IPC_LOCK: u32 = 14;

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_grows_with_work() {
        let (process, thread) = (cpu_time(), thread_cpu_time());
        let mut sum = 0_u64;
        while thread_cpu_time() < thread + Duration::from_millis(2) {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        assert!(cpu_time() >= process + Duration::from_millis(1));
    }

    #[test]
    fn a_thread_can_be_bound_to_a_core_it_may_use() {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let core = *allowed_cores().unwrap().last().unwrap();
                pin_to_core(core).unwrap();
                assert_eq!(allowed_cores().unwrap(), [core]);
                assert_eq!(pin_to_core(1 << 20).unwrap_err().raw_os_error(), Some(libc::EINVAL));
            });
        });
    }
}
