//! A file or block device as a device: opened, locked, with O_DIRECT where it is allowed, behind io_uring or helper threads.

use std::fs::{File, TryLockError};
use std::io::{Seek, SeekFrom};
use std::os::fd::RawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base::Instant;
use base::units::BLOCK_BYTES;
use runtime::{Arena, ArenaConfig, LocalityHandle};
use rustix::fs::OFlags;

use super::inline::{InlineQueue, is_memory_file};
use super::threads::ThreadQueue;
use super::uring::RingQueue;
use super::{Backend, BlockDone, BlockOp, Geometry};
use crate::error::StobError;
use crate::limits::DEVICE_LOCK_WAIT;

/// Whether to go past the page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direct {
    /// O_DIRECT where the file system takes it.
    #[default]
    Auto,
    /// Through the page cache.
    Never,
}

/// Who moves the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendKind {
    /// In line for a file in memory (tmpfs); else io_uring, or threads where it is forbidden.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// Helper threads with pread and pwrite.
    Threads,
    /// pread and pwrite on the locality's own thread: only for files that never wait for a device.
    Inline,
}

/// How to open a device file.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Whether to go past the page cache.
    pub direct: Direct,
    /// Who moves the bytes.
    pub kind: BackendKind,
    /// For how long somebody else may still have the device before it counts as in use. Opening blocks for as long.
    pub lock_wait: Duration,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions { direct: Direct::Auto, kind: BackendKind::Auto, lock_wait: DEVICE_LOCK_WAIT }
    }
}

enum Queue {
    Ring(Box<RingQueue>),
    Threads(ThreadQueue),
    Inline(InlineQueue),
}

/// A device file, locked for as long as this lives.
pub struct UringFile {
    queue: Queue,
    is_direct: bool,
}

fn open_error(path: &Path, reason: impl std::fmt::Display) -> StobError {
    StobError::Open { path: path.display().to_string(), reason: reason.to_string() }
}

/// Opens and locks. The lock is the open file description's, so it ends with the process, however that ends.
fn open_locked(path: &Path, flags: OFlags, lock_wait: Duration) -> Result<File, StobError> {
    let flags = i32::try_from(flags.bits()).map_err(|_| open_error(path, "flags out of range"))?;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
        .map_err(|error| open_error(path, error))?;
    // Opening blocks anyway, and no descriptor tells when a lock is given up.
    #[allow(clippy::disallowed_methods)]
    let pause = || std::thread::sleep(LOCK_PAUSE);
    lock(&file, path, lock_wait, pause)?;
    Ok(file)
}

const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Two let go of a device only some time after they seem to be gone, and whoever has it for longer has it for good:
/// - A process that was killed. The kernel takes its io_uring apart later, in a worker, and the file with it. Measured: with
///   operations in flight always, 31 ms after the process was waited for, and 1 s beside a load on every core.
/// - udev, which locks a block device while it looks at it: each time that somebody who wrote to it lets go, for
///   milliseconds. Source: systemd, "Locking Block Device Access".
fn lock(file: &File, path: &Path, lock_wait: Duration, mut pause: impl FnMut()) -> Result<(), StobError> {
    let mut pauses_left = lock_wait.as_millis() / LOCK_PAUSE.as_millis();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if pauses_left > 0 => pauses_left -= 1,
            Err(TryLockError::WouldBlock) => {
                return Err(StobError::Busy { path: path.display().to_string() });
            }
            Err(TryLockError::Error(error)) => return Err(open_error(path, error)),
        }
        pause();
    }
}

/// Some file systems refuse O_DIRECT when opening, some when reading; one aligned read tells.
fn direct_works(file: &File) -> bool {
    let Ok(arena) = Arena::new(ArenaConfig { capacity_bytes: base::limits::BUFFER_BYTES_MAX }) else {
        return false;
    };
    let Some(mut block) = arena.try_alloc(base::units::narrow(BLOCK_BYTES)) else { return false };
    !matches!(file.read_at(&mut block, 0), Err(error) if error.kind() == std::io::ErrorKind::InvalidInput)
}

impl UringFile {
    /// Opens `path`, an existing file or block device. Errors: [`StobError::Open`], [`StobError::Busy`].
    pub fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<UringFile, StobError> {
        let path = path.as_ref();
        let direct = match options.direct {
            Direct::Never => None,
            Direct::Auto => match open_locked(path, OFlags::DIRECT, options.lock_wait) {
                Ok(file) => Some(file).filter(direct_works),
                Err(StobError::Open { .. }) => None,
                Err(error) => return Err(error),
            },
        };
        let is_direct = direct.is_some();
        let mut file = match direct {
            Some(file) => file,
            None => open_locked(path, OFlags::empty(), options.lock_wait)?,
        };
        // A block device's length is where its end is; its metadata says 0.
        let size_bytes = file.seek(SeekFrom::End(0)).map_err(|error| open_error(path, error))?;
        let (file, size_blocks) = (Arc::new(file), size_bytes / BLOCK_BYTES);
        let ring = |file| RingQueue::new(file, size_blocks).map(|queue| Queue::Ring(Box::new(queue)));
        let threads = |file| ThreadQueue::new(file, size_blocks).map(Queue::Threads);
        let queue = match options.kind {
            BackendKind::Threads => threads(file),
            BackendKind::Uring => ring(file),
            BackendKind::Inline => Ok(Queue::Inline(InlineQueue::new(file, size_blocks))),
            BackendKind::Auto if is_memory_file(&file) => {
                Ok(Queue::Inline(InlineQueue::new(file, size_blocks)))
            }
            BackendKind::Auto => ring(Arc::clone(&file)).or_else(|_| threads(file)),
        };
        Ok(UringFile { queue: queue.map_err(|error| open_error(path, error))?, is_direct })
    }

    /// Whether bytes go past the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// Who moves the bytes: never [`BackendKind::Auto`].
    #[must_use]
    pub fn kind(&self) -> BackendKind {
        match self.queue {
            Queue::Ring(_) => BackendKind::Uring,
            Queue::Threads(_) => BackendKind::Threads,
            Queue::Inline(_) => BackendKind::Inline,
        }
    }

    fn inner(&self) -> &dyn Backend {
        match &self.queue {
            Queue::Ring(queue) => queue.as_ref(),
            Queue::Threads(queue) => queue,
            Queue::Inline(queue) => queue,
        }
    }

    fn inner_mut(&mut self) -> &mut dyn Backend {
        match &mut self.queue {
            Queue::Ring(queue) => queue.as_mut(),
            Queue::Threads(queue) => queue,
            Queue::Inline(queue) => queue,
        }
    }
}

impl Backend for UringFile {
    fn geometry(&self) -> Geometry {
        self.inner().geometry()
    }
    fn try_submit(&mut self, op: BlockOp, token: u64) -> Result<(), BlockOp> {
        self.inner_mut().try_submit(op, token)
    }
    fn flush_queue(&mut self) {
        self.inner_mut().flush_queue();
    }
    fn poll(&mut self, now: Instant, done: &mut Vec<BlockDone>) -> usize {
        self.inner_mut().poll(now, done)
    }
    fn next_deadline(&self) -> Option<Instant> {
        self.inner().next_deadline()
    }
    fn wait_fd(&self) -> Option<RawFd> {
        self.inner().wait_fd()
    }
    fn attach(&mut self, locality: &LocalityHandle) {
        self.inner_mut().attach(locality);
    }
    fn register(&mut self, arena: &Arena) -> std::io::Result<()> {
        self.inner_mut().register(arena)
    }
}

/// Makes a device file of `size_bytes` (rounded down to whole blocks) with all its space allocated, so that it
/// cannot run out later. Errors: [`StobError::Open`] if it exists, or the file system has not the space (nothing is left behind).
pub fn create_device_file(path: impl AsRef<Path>, size_bytes: u64) -> Result<(), StobError> {
    let path = path.as_ref();
    let size_bytes = size_bytes - size_bytes % BLOCK_BYTES;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(|error| open_error(path, error))?;
    let allocated = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size_bytes);
    if let Err(error) = allocated {
        drop(file);
        let _ = std::fs::remove_file(path); // best effort: the error that matters is the one above
        return Err(open_error(path, format_args!("{size_bytes} bytes cannot be allocated: {error}")));
    }
    file.sync_all().map_err(|error| open_error(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_somebody_lets_go_of_in_time_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device");
        create_device_file(&path, BLOCK_BYTES).unwrap();
        let open = || File::options().write(true).open(&path).unwrap();
        for (lets_go_after, is_opened) in [(1, true), (5, true), (6, false)] {
            let before = open();
            before.lock().unwrap();
            let (mut before, mut pauses) = (Some(before), 0);
            let pause = || {
                pauses += 1;
                before.take_if(|_| pauses == lets_go_after);
            };
            let locked = lock(&open(), &path, LOCK_PAUSE * 5, pause);
            assert_eq!(locked.is_ok(), is_opened, "let go after {lets_go_after}: {locked:?}");
            assert!(is_opened || matches!(locked, Err(StobError::Busy { .. })));
            assert_eq!(pauses, lets_go_after.min(5));
        }
    }
}
