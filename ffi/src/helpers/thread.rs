//! `lib/thread.h`, `module/instance.h`, `mero/init.h`: threads of programs. The library needs to know none of them.
//!
//! Global state: the process's `struct m0`, which `m0_get` must find without an argument, and each thread's `struct m0_thread_tls`.

use std::cell::UnsafeCell;
use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use crate::abi::M0;
use crate::errno;
use crate::say;

/// The process's instance. Nothing is ever written to it.
struct Process(UnsafeCell<M0>);
// SAFETY: this library writes nothing to it; a program that does answers for its own threads.
unsafe impl Sync for Process {}
static PROCESS: Process = Process(UnsafeCell::new([0; 16]));

/// The process's `struct m0`.
#[must_use]
pub fn process_instance() -> *mut M0 {
    PROCESS.0.get()
}

/// `struct m0_thread_tls`
#[repr(C)]
pub struct Tls {
    instance: *mut M0,
    opaque: [u64; 7],
}

thread_local! {
    static TLS: UnsafeCell<Tls> = const { UnsafeCell::new(Tls { instance: ptr::null_mut(), opaque: [0; 7] }) };
}

type ThreadInit = Option<unsafe extern "C" fn(*mut c_void) -> c_int>;
type ThreadBody = Option<unsafe extern "C" fn(*mut c_void)>;

/// `struct m0_thread`
#[repr(C)]
pub struct CThread {
    id: u64,
    init_rc: c_int,
    state: c_int,
    init: ThreadInit,
    body: ThreadBody,
    arg: *mut c_void,
    name: [c_char; 32],
    tls: Tls,
}

const _: () = assert!(size_of::<CThread>() == 136 && size_of::<libc::pthread_t>() <= 8);

const IDLE: c_int = 0;
const RUNNING: c_int = 1;
const STOPPED: c_int = 2;

/// What the new thread begins with.
struct Start {
    thread: *mut CThread,
    begun: *mut libc::sem_t,
}

extern "C" fn run(start: *mut c_void) -> *mut c_void {
    // SAFETY: `m0_thread_start_` waits on `begun` with both alive; afterwards only copies are used.
    let (init, body, arg, begun, thread) = unsafe {
        let start = &*start.cast::<Start>();
        let thread = &*start.thread;
        (thread.init, thread.body, thread.arg, start.begun, start.thread)
    };
    // SAFETY: the program's functions with the program's argument.
    let rc = unsafe { init.map_or(0, |init| init(arg)) };
    // SAFETY: as above: the starter still waits.
    unsafe {
        (*thread).init_rc = rc;
        libc::sem_post(begun);
    }
    if rc == 0
        && let Some(body) = body
    {
        // SAFETY: the program's function.
        unsafe { body(arg) };
    }
    ptr::null_mut()
}

crate::export! {
    /// `m0_thread_start_`
    fn m0_thread_start_(
        thread: *mut CThread, init: ThreadInit, func: ThreadBody, arg: *mut c_void, name: *const c_char,
    ) -> c_int [errno::EIO] {
        // SAFETY: the header's contract.
        let Some(to) = (unsafe { thread.as_mut() }) else {
            say!("m0_thread_init: the thread is NULL");
            return errno::EINVAL;
        };
        if func.is_none() {
            say!("m0_thread_init: no function to run");
            return errno::EINVAL;
        }
        *to = CThread {
            id: 0, init_rc: 0, state: IDLE, init, body: func, arg, name: [0; 32],
            tls: Tls { instance: process_instance(), opaque: [0; 7] },
        };
        if !name.is_null() {
            // SAFETY: a C string, copied with its end kept.
            unsafe { libc::strncpy(to.name.as_mut_ptr(), name, 31) };
        }
        let mut begun = std::mem::MaybeUninit::<libc::sem_t>::zeroed();
        // SAFETY: a place for a semaphore.
        unsafe { libc::sem_init(begun.as_mut_ptr(), 0, 0) };
        let mut start = Start { thread, begun: begun.as_mut_ptr() };
        let mut id = 0;
        // SAFETY: `start` lives until `begun` was posted, and `run` uses it only before that.
        let failed = unsafe { libc::pthread_create(&raw mut id, ptr::null(), run, (&raw mut start).cast()) };
        if failed != 0 {
            return -failed;
        }
        // SAFETY: the semaphore of above.
        while unsafe { libc::sem_wait(begun.as_mut_ptr()) } != 0 {}
        to.id = id;
        to.state = RUNNING;
        let rc = to.init_rc;
        if rc != 0 {
            // SAFETY: a thread that was just made and ends by itself.
            unsafe { libc::pthread_join(id, ptr::null_mut()) };
            to.state = IDLE;
        }
        rc
    }

    /// `m0_thread_join`
    fn m0_thread_join(thread: *mut CThread) -> c_int [errno::EIO] {
        // SAFETY: the header's contract.
        let Some(thread) = (unsafe { thread.as_mut() }).filter(|thread| thread.state == RUNNING) else {
            say!("m0_thread_join: no thread runs there");
            return errno::EINVAL;
        };
        // SAFETY: a thread of `m0_thread_start_`, joined once.
        let failed = unsafe { libc::pthread_join(thread.id, ptr::null_mut()) };
        thread.state = STOPPED;
        -failed
    }

    /// `m0_thread_fini`
    fn m0_thread_fini(thread: *mut CThread) [()] {
        // SAFETY: the header's contract.
        if let Some(thread) = unsafe { thread.as_mut() } {
            if thread.state == RUNNING {
                say!("m0_thread_fini: the thread still runs: join it first");
                return;
            }
            thread.state = IDLE;
        }
    }

    /// `m0_thread_adopt`
    fn m0_thread_adopt(thread: *mut CThread, instance: *mut M0) -> c_int [errno::EIO] {
        // SAFETY: the header's contract.
        let Some(to) = (unsafe { thread.as_mut() }) else {
            say!("m0_thread_adopt: the thread is NULL");
            return errno::EINVAL;
        };
        *to = CThread {
            // SAFETY: no arguments.
            id: unsafe { libc::pthread_self() },
            init_rc: 0, state: IDLE, init: None, body: None, arg: ptr::null_mut(), name: [0; 32],
            tls: Tls { instance, opaque: [0; 7] },
        };
        0
    }

    /// `m0_thread_shun`
    fn m0_thread_shun() [()] {}

    /// `m0_thread_tls`
    fn m0_thread_tls() -> *mut Tls [ptr::null_mut()] {
        TLS.with(|tls| {
            let tls = tls.get();
            // SAFETY: this thread's own.
            unsafe { (*tls).instance = process_instance() };
            tls
        })
    }

    /// `m0_thread_signal`
    fn m0_thread_signal(thread: *mut CThread, signal: c_int) -> c_int [errno::EIO] {
        // SAFETY: the header's contract.
        match unsafe { thread.as_ref() }.filter(|thread| thread.state == RUNNING) {
            // SAFETY: a thread that was not joined yet.
            Some(thread) => -unsafe { libc::pthread_kill(thread.id, signal) },
            None => errno::EINVAL,
        }
    }

    /// `m0_get`
    fn m0_get() -> *mut M0 [ptr::null_mut()] {
        process_instance()
    }

    /// `m0_set`
    fn m0_set(_instance: *mut M0) [()] {}

    /// `m0_init`
    fn m0_init(_instance: *mut M0) -> c_int [errno::EIO] {
        0
    }

    /// `m0_fini`
    fn m0_fini() [()] {}
}
