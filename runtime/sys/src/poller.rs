//! Waiting for file descriptors (epoll) and the descriptor that other threads wake with (eventfd).
//!
//! Descriptors are given by number: one that was closed or reused meanwhile gives a wrong event or an error, never a broken
//! memory. Sources: epoll(7), epoll_wait(2), eventfd(2).

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::counters::Counters;

/// Events that one wait gives at most; the rest comes with the next.
pub const EVENTS_MAX: usize = 64;

/// What to wait for at a descriptor. Errors and hang-ups are always reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest(u32);

impl Interest {
    /// Nothing but errors and hang-ups.
    pub const NONE: Interest = Interest(0);
    /// There is something to read, a connection to accept, or the peer closed its side.
    pub const READABLE: Interest = Interest((libc::EPOLLIN | libc::EPOLLRDHUP) as u32);
    /// There is room to write, or a connection was made.
    pub const WRITABLE: Interest = Interest(libc::EPOLLOUT as u32);
    /// Both.
    pub const BOTH: Interest = Interest(Interest::READABLE.0 | Interest::WRITABLE.0);

    /// Reports a change once, not a state for as long as it lasts.
    #[must_use]
    pub const fn edge_triggered(self) -> Interest {
        Interest(self.0 | libc::EPOLLET as u32)
    }
}

/// What is the case at a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollEvent {
    /// As given to [`Poller::add`].
    pub token: u64,
    /// Reading gives bytes, a connection, the end or an error.
    pub readable: bool,
    /// Writing gives progress or an error.
    pub writable: bool,
    /// The peer will send no more, or the connection is gone.
    pub hung_up: bool,
    /// The descriptor has an error to fetch.
    pub error: bool,
}

/// A set of descriptors to wait for. Its own descriptor can be waited for by another poller.
pub struct Poller {
    epoll: OwnedFd,
    counters: Option<Arc<Counters>>,
    /// False once the kernel said that it has no epoll_pwait2 (before Linux 5.11): then timeouts are rounded up to ms.
    has_pwait2: AtomicBool,
}

impl Poller {
    /// An empty set.
    ///
    /// # Errors
    /// `EMFILE` and the like: too many open descriptors.
    pub fn new() -> io::Result<Poller> {
        // SAFETY: takes a flag, touches no memory of ours.
        let raw = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call just gave us this descriptor; nobody else owns it.
        let epoll = unsafe { OwnedFd::from_raw_fd(raw) };
        Ok(Poller { epoll, counters: None, has_pwait2: AtomicBool::new(true) })
    }

    /// Counts the poller's system calls into `counters` from now on.
    pub fn count_into(&mut self, counters: Arc<Counters>) {
        self.counters = Some(counters);
    }

    fn count(&self) {
        if let Some(counters) = &self.counters {
            counters.syscalls.add(1);
        }
    }

    fn control(&self, operation: libc::c_int, fd: RawFd, token: u64, interest: Interest) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest.0, u64: token };
        self.count();
        // SAFETY: `event` lives through the call, which only reads it; a wrong `fd` gives an error.
        let result = unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, fd, &mut event) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Adds `fd`; its events carry `token`.
    ///
    /// # Errors
    /// `EEXIST` if it is in the set, `EBADF` if closed, `EPERM` for a plain file.
    pub fn add(&self, fd: RawFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, interest)
    }

    /// Changes token and interest of `fd`.
    ///
    /// # Errors
    /// `ENOENT` if it is not in the set, `EBADF` if closed.
    pub fn modify(&self, fd: RawFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, interest)
    }

    /// Takes `fd` out. Closing a descriptor takes it out too, if it was not duplicated.
    ///
    /// # Errors
    /// `ENOENT` if it is not in the set, `EBADF` if closed.
    pub fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, Interest::NONE)
    }

    /// Waits until something is the case or `timeout` is over; `None` waits without end. Replaces `events`, at most [`EVENTS_MAX`].
    ///
    /// Gives the number of events; 0 after the timeout or a signal. Never returns before the timeout for lack of precision.
    ///
    /// # Errors
    /// What the kernel says, which for an open set is a bug of ours.
    pub fn wait(&self, timeout: Option<Duration>, events: &mut Vec<PollEvent>) -> io::Result<usize> {
        events.clear();
        let mut raw = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
        self.count();
        let count = match self.wait_raw(timeout, &mut raw) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other?,
        };
        events.extend(raw[..count].iter().map(|event| {
            let (bits, token) = (event.events, event.u64);
            let has = |mask: libc::c_int| bits & mask as u32 != 0;
            PollEvent {
                token,
                readable: has(libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR),
                writable: has(libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR),
                hung_up: has(libc::EPOLLRDHUP | libc::EPOLLHUP),
                error: has(libc::EPOLLERR),
            }
        }));
        Ok(count)
    }

    fn wait_raw(
        &self,
        timeout: Option<Duration>,
        raw: &mut [libc::epoll_event; EVENTS_MAX],
    ) -> io::Result<usize> {
        let max = libc::c_int::try_from(EVENTS_MAX).unwrap_or(libc::c_int::MAX);
        // Only a timeout of a part of a millisecond or more needs the finer call.
        if let Some(duration) = timeout.filter(|duration| !duration.is_zero())
            && self.has_pwait2.load(Ordering::Relaxed)
        {
            let spec = libc::timespec {
                tv_sec: libc::time_t::try_from(duration.as_secs()).unwrap_or(libc::time_t::MAX),
                tv_nsec: libc::c_long::from(i32::try_from(duration.subsec_nanos()).unwrap_or(0)),
            };
            // SAFETY: `raw` has room for `max` events and `spec` lives through the call; a null mask changes no signals.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_epoll_pwait2,
                    self.epoll.as_raw_fd(),
                    raw.as_mut_ptr(),
                    max,
                    &raw const spec,
                    std::ptr::null::<libc::sigset_t>(),
                    0_usize,
                )
            };
            match usize::try_from(result) {
                Ok(count) => return Ok(count),
                Err(_) => {
                    let error = io::Error::last_os_error();
                    // EPERM: a sandbox that does not know the call.
                    if !matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) {
                        return Err(error);
                    }
                    self.has_pwait2.store(false, Ordering::Relaxed);
                }
            }
        }
        let ms = match timeout {
            None => -1,
            // Up, never down: down would return early, and early again, until the deadline.
            Some(duration) => {
                libc::c_int::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(libc::c_int::MAX)
            }
        };
        // SAFETY: `raw` has room for `max` events.
        let result = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), raw.as_mut_ptr(), max, ms) };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Poller(descriptor {})", self.as_raw_fd())
    }
}

impl AsRawFd for Poller {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

/// A descriptor that any thread makes readable, and the waiting one makes quiet again.
#[derive(Debug)]
pub struct EventFd(File);

impl EventFd {
    /// Not signalled, not blocking.
    ///
    /// # Errors
    /// `EMFILE` and the like: too many open descriptors.
    pub fn new() -> io::Result<EventFd> {
        // SAFETY: takes two numbers, touches no memory of ours.
        let raw = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call just gave us this descriptor; nobody else owns it.
        Ok(EventFd(File::from(unsafe { OwnedFd::from_raw_fd(raw) })))
    }

    /// Makes it readable. Already signalled 2^64-2 times without a read is the only failure, and is readable too.
    pub fn signal(&self) {
        let _ = (&self.0).write(&1_u64.to_ne_bytes());
    }

    /// Makes it quiet. Gives whether it was signalled.
    pub fn drain(&self) -> bool {
        (&self.0).read(&mut [0; 8]).is_ok()
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use super::*;

    #[test]
    fn an_event_fd_wakes_a_poller_and_pollers_nest() {
        let inner = Poller::new().unwrap();
        let outer = Poller::new().unwrap();
        let event = EventFd::new().unwrap();
        inner.add(event.as_raw_fd(), 7, Interest::READABLE).unwrap();
        outer.add(inner.as_raw_fd(), 8, Interest::READABLE).unwrap();
        let mut events = Vec::new();
        assert_eq!(outer.wait(Some(Duration::ZERO), &mut events).unwrap(), 0);
        event.signal();
        assert_eq!(outer.wait(None, &mut events).unwrap(), 1);
        assert_eq!(events[0].token, 8);
        assert_eq!(inner.wait(None, &mut events).unwrap(), 1);
        assert!(events[0].token == 7 && events[0].readable && !events[0].error);
        assert!(event.drain() && !event.drain());
        assert_eq!(outer.wait(Some(Duration::ZERO), &mut events).unwrap(), 0);
        inner.remove(event.as_raw_fd()).unwrap();
        event.signal();
        assert_eq!(inner.wait(Some(Duration::ZERO), &mut events).unwrap(), 0);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test is about real time")]
    fn a_timeout_is_never_short_with_either_call() {
        for has_pwait2 in [true, false] {
            let poller = Poller::new().unwrap();
            poller.has_pwait2.store(has_pwait2, Ordering::Relaxed);
            let timeout = Duration::from_micros(1300);
            let start = std::time::Instant::now();
            assert_eq!(poller.wait(Some(timeout), &mut Vec::new()).unwrap(), 0);
            assert!(start.elapsed() >= timeout);
        }
    }

    #[test]
    fn the_calls_are_counted() {
        let counters = Arc::new(Counters::new());
        let mut poller = Poller::new().unwrap();
        poller.count_into(Arc::clone(&counters));
        let event = EventFd::new().unwrap();
        poller.add(event.as_raw_fd(), 1, Interest::BOTH.edge_triggered()).unwrap();
        poller.wait(Some(Duration::ZERO), &mut Vec::new()).unwrap();
        assert_eq!(counters.syscalls.get(), 2);
        assert_eq!(
            poller.add(event.as_raw_fd(), 1, Interest::BOTH).unwrap_err().raw_os_error(),
            Some(libc::EEXIST)
        );
    }
}
