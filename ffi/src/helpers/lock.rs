//! `lib/mutex.h`, `lib/semaphore.h` and the group lock of `sm/sm.h`: the C library's own, in the words of the C structures.

use crate::abi::{CMutex, CSemaphore, SmGroup};
use crate::errno;
use crate::helpers::time;
use crate::say;

const _: () = assert!(size_of::<libc::pthread_mutex_t>() <= size_of::<CMutex>());
const _: () = assert!(size_of::<libc::sem_t>() <= size_of::<CSemaphore>());
const _: () = assert!(align_of::<libc::pthread_mutex_t>() <= align_of::<CMutex>());
const _: () = assert!(align_of::<libc::sem_t>() <= align_of::<CSemaphore>());

/// # Safety
/// `mutex` is null or a mutex. `work` is a function of the C library on it.
unsafe fn on_mutex(
    call: &str,
    mutex: *mut CMutex,
    work: unsafe extern "C" fn(*mut libc::pthread_mutex_t) -> i32,
) -> i32 {
    if mutex.is_null() {
        say!("{call}: the mutex is NULL");
        return errno::EINVAL;
    }
    // SAFETY: the caller's contract; a mutex of zeros is an unlocked one on Linux.
    -unsafe { work(mutex.cast()) }
}

/// # Safety
/// `semaphore` is null or a semaphore. `work` is a function of the C library on it.
unsafe fn on_semaphore(
    call: &str,
    semaphore: *mut CSemaphore,
    work: unsafe extern "C" fn(*mut libc::sem_t) -> i32,
) -> bool {
    if semaphore.is_null() {
        say!("{call}: the semaphore is NULL");
        return false;
    }
    loop {
        // SAFETY: the caller's contract.
        if unsafe { work(semaphore.cast()) } == 0 {
            return true;
        }
        if std::io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return false;
        }
    }
}

crate::export! {
    /// `m0_mutex_init`
    fn m0_mutex_init(mutex: *mut CMutex) [()] {
        // SAFETY: the header's contract.
        if let Some(mutex) = unsafe { mutex.as_mut() } {
            *mutex = [0; 8];
        }
    }

    /// `m0_mutex_fini`
    fn m0_mutex_fini(mutex: *mut CMutex) [()] {
        // SAFETY: the header's contract.
        unsafe { on_mutex("m0_mutex_fini", mutex, libc::pthread_mutex_destroy) };
    }

    /// `m0_mutex_lock`
    fn m0_mutex_lock(mutex: *mut CMutex) [()] {
        // SAFETY: the header's contract.
        unsafe { on_mutex("m0_mutex_lock", mutex, libc::pthread_mutex_lock) };
    }

    /// `m0_mutex_trylock`
    fn m0_mutex_trylock(mutex: *mut CMutex) -> i32 [errno::EIO] {
        // SAFETY: the header's contract.
        unsafe { on_mutex("m0_mutex_trylock", mutex, libc::pthread_mutex_trylock) }
    }

    /// `m0_mutex_unlock`
    fn m0_mutex_unlock(mutex: *mut CMutex) [()] {
        // SAFETY: the header's contract.
        unsafe { on_mutex("m0_mutex_unlock", mutex, libc::pthread_mutex_unlock) };
    }

    /// `m0_mutex_is_locked`
    fn m0_mutex_is_locked(mutex: *const CMutex) -> bool [false] {
        // SAFETY: the header's contract; a lock that was taken is given back at once.
        unsafe {
            let free = on_mutex("m0_mutex_is_locked", mutex.cast_mut(), libc::pthread_mutex_trylock) == 0;
            if free {
                on_mutex("m0_mutex_is_locked", mutex.cast_mut(), libc::pthread_mutex_unlock);
            }
            !free
        }
    }

    /// `m0_mutex_is_not_locked`
    fn m0_mutex_is_not_locked(mutex: *const CMutex) -> bool [false] {
        // SAFETY: the header's contract.
        unsafe { !m0_mutex_is_locked(mutex) }
    }

    /// `m0_semaphore_init`
    fn m0_semaphore_init(semaphore: *mut CSemaphore, value: u32) -> i32 [errno::EIO] {
        if semaphore.is_null() {
            say!("m0_semaphore_init: the semaphore is NULL");
            return errno::EINVAL;
        }
        // SAFETY: the header's contract.
        match unsafe { libc::sem_init(semaphore.cast(), 0, value) } {
            0 => 0,
            _ => errno::EINVAL,
        }
    }

    /// `m0_semaphore_fini`
    fn m0_semaphore_fini(semaphore: *mut CSemaphore) [()] {
        // SAFETY: the header's contract.
        unsafe { on_semaphore("m0_semaphore_fini", semaphore, libc::sem_destroy) };
    }

    /// `m0_semaphore_up`
    fn m0_semaphore_up(semaphore: *mut CSemaphore) [()] {
        // SAFETY: the header's contract.
        unsafe { on_semaphore("m0_semaphore_up", semaphore, libc::sem_post) };
    }

    /// `m0_semaphore_down`
    fn m0_semaphore_down(semaphore: *mut CSemaphore) [()] {
        // SAFETY: the header's contract.
        unsafe { on_semaphore("m0_semaphore_down", semaphore, libc::sem_wait) };
    }

    /// `m0_semaphore_trydown`
    fn m0_semaphore_trydown(semaphore: *mut CSemaphore) -> bool [false] {
        // SAFETY: the header's contract.
        unsafe { on_semaphore("m0_semaphore_trydown", semaphore, libc::sem_trywait) }
    }

    /// `m0_semaphore_timeddown`
    fn m0_semaphore_timeddown(semaphore: *mut CSemaphore, abs_timeout: u64) -> bool [false] {
        if semaphore.is_null() {
            say!("m0_semaphore_timeddown: the semaphore is NULL");
            return false;
        }
        let until = time::timespec(abs_timeout);
        loop {
            // SAFETY: the header's contract; a time of ours.
            if unsafe { libc::sem_timedwait(semaphore.cast(), &raw const until) } == 0 {
                return true;
            }
            if std::io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
                return false;
            }
        }
    }

    /// `m0_semaphore_value`
    fn m0_semaphore_value(semaphore: *mut CSemaphore) -> u32 [0] {
        let mut value = 0;
        if semaphore.is_null() {
            return 0;
        }
        // SAFETY: the header's contract.
        unsafe { libc::sem_getvalue(semaphore.cast(), &raw mut value) };
        u32::try_from(value).unwrap_or(0)
    }

    /// `m0_sm_group_init`
    fn m0_sm_group_init(group: *mut SmGroup) [()] {
        if !group.is_null() {
            // SAFETY: the header's contract; zeros are an unlocked group.
            unsafe { std::ptr::write_bytes(group, 0, 1) };
        }
    }

    /// `m0_sm_group_fini`
    fn m0_sm_group_fini(_group: *mut SmGroup) [()] {}

    /// `m0_sm_group_lock`
    fn m0_sm_group_lock(group: *mut SmGroup) [()] {
        // SAFETY: the header's contract; the lock is the group's first member.
        unsafe { m0_mutex_lock(group.cast()) };
    }

    /// `m0_sm_group_unlock`
    fn m0_sm_group_unlock(group: *mut SmGroup) [()] {
        // SAFETY: as above.
        unsafe { m0_mutex_unlock(group.cast()) };
    }
}
