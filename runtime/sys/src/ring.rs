//! One io_uring: reads, writes and flushes of files from and into buffers of an arena. The ring owns what is in flight.
//!
//! `try_*` moves file and buffers in, or gives them back when the queue is full; the completion moves them out. Nothing is told
//! to the kernel before [`Ring::submit`], one system call for all that was queued. Dropping the ring waits for what is in flight.
//!
//! Bound: as many operations in flight as entries asked for; the completion queue is at least as long, so it cannot overflow.
//! Thread: the ring belongs to the thread that made it (the kernel is told so), and is not `Send`.
//!
//! The kernel runs completions when this thread enters it anyway (COOP_TASKRUN) and raises a flag for [`Ring::poll`]; older kernels
//! get plainer settings. Not DEFER_TASKRUN: measured on Linux 6.18, its pending work does not make the ring's descriptor readable, so
//! a thread in epoll slept on. Here it wakes: [`AsRawFd`] is readable, or the wait is interrupted, when [`Ring::poll`] has work.
//!
//! Fixed buffers ([`Ring::register_arena`]): a slab of the arena is registered when an operation first uses it. Each registered slab is locked
//! memory, and the limit on that is one for all processes of a user and for the rings themselves; so without CAP_IPC_LOCK a
//! ring takes a sixteenth of it at most, and none of the usual 8 MiB. The other slabs go on unregistered, which is slower and otherwise
//! the same. [`RingStats`] says so.
//!
//! Left over: partial reads and writes are reported as they are. Sources: io_uring(7), io_uring_setup(2), io_uring_enter(2).
//! Start at [`Ring::try_write`].

use std::fmt;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;

use base::units::{narrow, wide};
use io_uring::{IoUring, Probe, opcode, squeue, types};
use smallvec::SmallVec;

use crate::arena::{Arena, SLAB_BYTES};
use crate::buffer::{Buffer, SharedBuffer};
use crate::counters::Counters;
use crate::process;

/// Most operations in flight in one ring.
pub const RING_ENTRIES_MAX: u32 = 4096;

/// Slabs that can be registered with one ring: what the kernel's table holds (16384), as its `IORING_MAX_REG_BUFFERS`.
const FIXED_SLABS_MAX: usize = 1 << 14;

/// A ring locks at most one such part of the memory that the user may lock.
const MEMLOCK_PARTS: u64 = 16;

/// Parts of one write: what the kernel takes in one vector, `IOV_MAX`.
pub const WRITE_PARTS_MAX: usize = 1024;

/// The parts of a write, in order.
pub type WriteParts = SmallVec<[SharedBuffer; 4]>;

/// One finished operation.
#[derive(Debug)]
pub struct RingCompletion {
    /// As given to `try_*`.
    pub token: u64,
    /// Bytes read or written, which may be fewer than asked; 0 for a flush.
    pub result: io::Result<u32>,
    /// The buffer of a read, its length as it was given in.
    pub buffer: Option<Buffer>,
    /// The parts of a write.
    pub parts: WriteParts,
}

/// What the ring did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingStats {
    /// Calls of io_uring_enter.
    pub enters: u64,
    /// Operations finished.
    pub completions: u64,
    /// Operations that used a registered slab.
    pub fixed_operations: u64,
    /// Slabs registered.
    pub fixed_slabs: u64,
    /// True once no more memory may be locked: operations on further slabs go on unregistered.
    pub is_fixed_refused: bool,
}

enum Operation {
    Read(Buffer),
    Write(WriteParts),
    Flush,
}

struct InFlight {
    token: u64,
    operation: Operation,
    /// Keeps the descriptor open. Not read.
    _file: Arc<File>,
}

/// A place for one operation. The vector keeps its allocation, and its address until the operation is submitted.
struct Slot {
    in_flight: Option<InFlight>,
    vector: Vec<libc::iovec>,
}

/// An arena whose slabs are registered as they are used.
struct FixedArena {
    arena: Arena,
    is_registered: Vec<bool>,
    /// Slabs that may yet be registered.
    slabs_left: usize,
}

/// A ring and what is in flight in it. See the module head.
pub struct Ring {
    uring: IoUring,
    slots: Vec<Slot>,
    free_slots: Vec<usize>,
    /// Queued, and not yet told to the kernel.
    unsubmitted: usize,
    fixed: Option<FixedArena>,
    counters: Option<Arc<Counters>>,
    stats: RingStats,
    _not_send: PhantomData<Rc<()>>,
}

impl Ring {
    /// A ring for up to `entries` operations in flight (1 to [`RING_ENTRIES_MAX`], clamped; rounded up to a power of two).
    ///
    /// # Errors
    /// `EPERM`, `EACCES` or `ENOSYS` where a sandbox, a setting or the kernel forbids io_uring, `Unsupported` where it lacks an operation
    /// that we need (before Linux 5.6), `ENOMEM` where too little memory may be locked for the ring itself (newer
    /// kernels count it, 6.18 does: 64 bytes an entry and more): use helper threads then ([`is_forbidden`]).
    pub fn new(entries: u32) -> io::Result<Ring> {
        let entries = entries.clamp(1, RING_ENTRIES_MAX).next_power_of_two();
        let uring = build(entries)?;
        let mut probe = Probe::new();
        uring.submitter().register_probe(&mut probe)?;
        for code in [opcode::Read::CODE, opcode::Write::CODE, opcode::Writev::CODE, opcode::Fsync::CODE] {
            if !probe.is_supported(code) {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!("this kernel's io_uring lacks operation {code}; Linux 5.6 has it"),
                ));
            }
        }
        let count = entries as usize;
        Ok(Ring {
            uring,
            slots: (0..count).map(|_| Slot { in_flight: None, vector: Vec::new() }).collect(),
            free_slots: (0..count).rev().collect(),
            unsubmitted: 0,
            fixed: None,
            counters: None,
            stats: RingStats::default(),
            _not_send: PhantomData,
        })
    }

    /// Counts system calls, doorbells and registrations into `counters` from now on.
    pub fn count_into(&mut self, counters: Arc<Counters>) {
        self.counters = Some(counters);
    }

    /// Lets operations on buffers of `arena` use registered memory, as far as the limit on locked memory allows.
    ///
    /// Says whether it is so for now; a later refusal shows in [`RingStats::is_fixed_refused`] only. One arena per ring: the first stays.
    pub fn register_arena(&mut self, arena: &Arena) -> bool {
        if let Some(fixed) = &self.fixed {
            return fixed.arena.is_same(arena) && !self.stats.is_fixed_refused;
        }
        let slabs = arena.slab_count().min(FIXED_SLABS_MAX);
        let slabs_left = match process::memlock_limit() {
            Some(limit) if !process::may_lock_memory() => narrow(limit / MEMLOCK_PARTS) / SLAB_BYTES,
            _ => slabs,
        };
        if slabs_left == 0 {
            self.stats.is_fixed_refused = true;
            return false;
        }
        let table_size = u32::try_from(slabs).unwrap_or(u32::MAX);
        if self.uring.submitter().register_buffers_sparse(table_size).is_err() {
            self.stats.is_fixed_refused = true;
            return false;
        }
        self.fixed = Some(FixedArena { arena: arena.clone(), is_registered: vec![false; slabs], slabs_left });
        true
    }

    /// Index of the registered slab that `buffer` lies in; registers it if it can be.
    fn fixed_index(&mut self, buffer: &Buffer) -> Option<u16> {
        let fixed = self.fixed.as_mut()?;
        let (arena, slab) = buffer.slab()?;
        if !fixed.arena.is_of(arena) || slab >= fixed.is_registered.len() {
            return None;
        }
        if !fixed.is_registered[slab] {
            if fixed.slabs_left == 0 {
                self.stats.is_fixed_refused = true;
                return None;
            }
            let vector = [libc::iovec { iov_base: fixed.arena.slab_ptr(slab).cast(), iov_len: SLAB_BYTES }];
            let index = u32::try_from(slab).ok()?;
            // SAFETY: the slab must stay valid while it is registered: `self.fixed` holds the arena, and so the mapping, until the
            // ring is closed; the kernel pins the pages themselves, so even its late clean-up touches nothing of ours.
            let registered = unsafe { self.uring.submitter().register_buffers_update(index, &vector, None) };
            if let Some(counters) = &self.counters {
                counters.syscalls.add(1);
            }
            if registered.is_err() {
                fixed.slabs_left = 0;
                self.stats.is_fixed_refused = true;
                return None;
            }
            fixed.is_registered[slab] = true;
            fixed.slabs_left -= 1;
            self.stats.fixed_slabs += 1;
            if let Some(counters) = &self.counters {
                counters.registrations.add(1);
            }
        }
        self.stats.fixed_operations += 1;
        u16::try_from(slab).ok()
    }

    /// Puts the entry into the queue. `free_slots` was checked by the caller, and the queue is as long as the slots.
    fn push(&mut self, slot: usize, entry: squeue::Entry, in_flight: InFlight) {
        let entry = entry.user_data(wide(slot));
        self.slots[slot].in_flight = Some(in_flight);
        // SAFETY: what the entry points at must stay valid until its completion: the file and the buffers are in the slot
        // since the line above and leave it only in `poll`, buffers never move, and the vector is not touched before.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        assert!(pushed.is_ok(), "the submission queue is as long as the number of slots");
        self.unsubmitted += 1;
    }

    /// Queues a read of `buffer.len()` bytes at `offset_bytes`. With O_DIRECT all three are multiples of 4096.
    ///
    /// # Errors
    /// The buffer, if as many operations are in flight as the ring has entries: poll first.
    pub fn try_read(
        &mut self,
        file: &Arc<File>,
        offset_bytes: u64,
        buffer: Buffer,
        token: u64,
    ) -> Result<(), Buffer> {
        let Some(slot) = self.free_slots.pop() else { return Err(buffer) };
        let fd = types::Fd(file.as_raw_fd());
        // A buffer of an arena is 1 MiB at most.
        let len = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
        let entry = match self.fixed_index(&buffer) {
            Some(index) => {
                opcode::ReadFixed::new(fd, buffer.device_ptr(), len, index).offset(offset_bytes).build()
            }
            None => opcode::Read::new(fd, buffer.device_ptr(), len).offset(offset_bytes).build(),
        };
        self.push(
            slot,
            entry,
            InFlight { token, operation: Operation::Read(buffer), _file: Arc::clone(file) },
        );
        Ok(())
    }

    /// Queues a write of `parts`, one after the other, at `offset_bytes`. With O_DIRECT offset and each part are multiples of 4096.
    ///
    /// # Errors
    /// The parts, if as many operations are in flight as the ring has entries: poll first.
    ///
    /// # Panics
    /// With more than [`WRITE_PARTS_MAX`] parts, or together 4 GiB: no write of ours is near that.
    pub fn try_write(
        &mut self,
        file: &Arc<File>,
        offset_bytes: u64,
        parts: WriteParts,
        token: u64,
    ) -> Result<(), WriteParts> {
        self.try_write_with(file, offset_bytes, parts, token, 0)
    }

    /// Like [`Ring::try_write`], and complete only when these bytes are on the device (`RWF_DSYNC`): a device that can does so without a
    /// flush of everything else.
    ///
    /// # Errors
    /// As [`Ring::try_write`].
    ///
    /// # Panics
    /// As [`Ring::try_write`].
    pub fn try_write_through(
        &mut self,
        file: &Arc<File>,
        offset_bytes: u64,
        parts: WriteParts,
        token: u64,
    ) -> Result<(), WriteParts> {
        self.try_write_with(file, offset_bytes, parts, token, libc::RWF_DSYNC)
    }

    fn try_write_with(
        &mut self,
        file: &Arc<File>,
        offset_bytes: u64,
        parts: WriteParts,
        token: u64,
        flags: libc::c_int,
    ) -> Result<(), WriteParts> {
        assert!(parts.len() <= WRITE_PARTS_MAX, "{} parts in one write", parts.len());
        let Some(slot) = self.free_slots.pop() else { return Err(parts) };
        let fd = types::Fd(file.as_raw_fd());
        let entry = if let [part] = parts.as_slice() {
            let len = u32::try_from(part.len()).unwrap_or(u32::MAX);
            match self.fixed_index(part.whole()) {
                Some(index) => opcode::WriteFixed::new(fd, part.as_ptr(), len, index)
                    .offset(offset_bytes)
                    .rw_flags(flags)
                    .build(),
                None => {
                    opcode::Write::new(fd, part.as_ptr(), len).offset(offset_bytes).rw_flags(flags).build()
                }
            }
        } else {
            let vector = &mut self.slots[slot].vector;
            vector.clear();
            vector.extend(parts.iter().map(|part| libc::iovec {
                // The kernel only reads through it: the operation is a write to the file.
                iov_base: part.as_ptr().cast_mut().cast(),
                iov_len: part.len(),
            }));
            let count = u32::try_from(vector.len()).unwrap_or(u32::MAX);
            opcode::Writev::new(fd, vector.as_ptr(), count).offset(offset_bytes).rw_flags(flags).build()
        };
        self.push(
            slot,
            entry,
            InFlight { token, operation: Operation::Write(parts), _file: Arc::clone(file) },
        );
        Ok(())
    }

    /// Queues a flush of the file's data (fdatasync): what completed before it is submitted is on the device when it completes.
    ///
    /// # Errors
    /// [`RingFull`] if as many operations are in flight as the ring has entries: poll first.
    pub fn try_flush(&mut self, file: &Arc<File>, token: u64) -> Result<(), RingFull> {
        let Some(slot) = self.free_slots.pop() else { return Err(RingFull) };
        let entry =
            opcode::Fsync::new(types::Fd(file.as_raw_fd())).flags(types::FsyncFlags::DATASYNC).build();
        self.push(slot, entry, InFlight { token, operation: Operation::Flush, _file: Arc::clone(file) });
        Ok(())
    }

    /// Tells the kernel what was queued: one system call, none if nothing was. Gives how many operations it took.
    ///
    /// Fewer than queued means that the kernel is short of something now; the others stay queued for the next call.
    ///
    /// # Errors
    /// What the kernel says, other than "later": a bug of ours.
    pub fn submit(&mut self) -> io::Result<usize> {
        if self.unsubmitted == 0 {
            return Ok(0);
        }
        if let Some(counters) = &self.counters {
            counters.doorbells.add(1);
        }
        self.enter(0)
    }

    fn enter(&mut self, wait_for: usize) -> io::Result<usize> {
        self.stats.enters += 1;
        if let Some(counters) = &self.counters {
            counters.syscalls.add(1);
        }
        match self.uring.submitter().submit_and_wait(wait_for) {
            Ok(taken) => {
                self.unsubmitted = self.unsubmitted.saturating_sub(taken);
                Ok(taken)
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// Moves what finished to the end of `done`; gives how many. Never waits; makes a system call only if the kernel asks for one.
    ///
    /// The kernel's order: operations may finish in any.
    pub fn poll(&mut self, done: &mut Vec<RingCompletion>) -> usize {
        if self.free_slots.len() == self.slots.len() {
            return 0;
        }
        let asks = {
            let mut queue = self.uring.submission();
            queue.sync();
            queue.taskrun() || queue.cq_overflow()
        };
        if asks {
            // An error here is one of submission, which `submit` meets again and reports; completions are still read below.
            let _ = self.enter(0);
        }
        self.reap(done)
    }

    fn reap(&mut self, done: &mut Vec<RingCompletion>) -> usize {
        let mut count = 0;
        for entry in self.uring.completion() {
            let slot = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            let in_flight = self.slots.get_mut(slot).and_then(|slot| slot.in_flight.take());
            let Some(InFlight { token, operation, _file }) = in_flight else {
                // Each entry is completed once; a second completion would mean that buffers are in wrong hands.
                unreachable!("the ring completed slot {slot}, where nothing is in flight");
            };
            self.free_slots.push(slot);
            let result = match u32::try_from(entry.result()) {
                Ok(bytes) => Ok(bytes),
                Err(_) => Err(io::Error::from_raw_os_error(entry.result().saturating_neg())),
            };
            let (buffer, parts) = match operation {
                Operation::Read(buffer) => (Some(buffer), WriteParts::new()),
                Operation::Write(parts) => (None, parts),
                Operation::Flush => (None, WriteParts::new()),
            };
            done.push(RingCompletion { token, result, buffer, parts });
            count += 1;
        }
        self.stats.completions += wide(count);
        count
    }

    /// Submits what is queued, then waits until at least `count` operations have finished (or all in flight, if fewer are). Gives how many did.
    ///
    /// For opening, closing and tools; a locality waits on the descriptor.
    ///
    /// # Errors
    /// As [`Ring::submit`].
    pub fn wait(&mut self, count: usize, done: &mut Vec<RingCompletion>) -> io::Result<usize> {
        let count = count.min(self.in_flight());
        let mut finished = self.poll(done);
        while finished < count {
            self.enter(1)?;
            finished += self.reap(done);
        }
        Ok(finished)
    }

    /// Operations taken by `try_*` and not yet given out by [`Ring::poll`].
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free_slots.len()
    }

    /// Operations queued and not yet told to the kernel.
    #[must_use]
    pub fn unsubmitted(&self) -> usize {
        self.unsubmitted
    }

    /// Operations that can be in flight together.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// What the ring did so far.
    #[must_use]
    pub fn stats(&self) -> RingStats {
        self.stats
    }
}

/// As many operations are in flight as the ring has entries. Not an error: poll first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ring is full")]
pub struct RingFull;

/// True if `error` of [`Ring::new`] means that io_uring cannot be used here (forbidden, unknown, or no memory may be locked for it), and
/// helper threads have to do.
#[must_use]
pub fn is_forbidden(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
        || matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS | libc::ENOMEM))
}

/// The best ring that this kernel makes: with one submitter (Linux 6.0), with cooperative completion (5.19), plain.
fn build(entries: u32) -> io::Result<IoUring> {
    // The flag tells when there is something to run: without it `submit` would not know to ask (CRATES.md section 3).
    let mut settings = IoUring::builder();
    settings.dontfork().setup_submit_all().setup_coop_taskrun().setup_taskrun_flag();
    let is_old = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
    match settings.clone().setup_single_issuer().build(entries) {
        Err(error) if is_old(&error) => {}
        other => return other,
    }
    match settings.build(entries) {
        Err(error) if is_old(&error) => {}
        other => return other,
    }
    IoUring::builder().dontfork().build(entries)
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.uring.as_raw_fd()
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ring({} of {} in flight)", self.in_flight(), self.capacity())
    }
}

impl Drop for Ring {
    /// Waits for what is in flight: the device may be writing into our buffers. What was queued and not submitted is done too.
    fn drop(&mut self) {
        let mut done = Vec::new();
        while self.in_flight() > 0 {
            if self.enter(1).is_err() {
                // We cannot learn when the kernel is through with these buffers, so nobody may have them again.
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
            self.reap(&mut done);
            done.clear();
        }
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;
    use std::time::Duration;

    use smallvec::smallvec;

    use super::*;
    use crate::arena::ArenaConfig;
    use crate::poller::{Interest, Poller};

    /// The ring, or `None` with the reason printed where the machine forbids io_uring.
    fn ring(entries: u32) -> Option<Ring> {
        match Ring::new(entries) {
            Ok(ring) => Some(ring),
            Err(error) if is_forbidden(&error) => {
                println!("skipped: io_uring is forbidden here: {error}");
                None
            }
            Err(error) => panic!("io_uring is allowed and gives no ring: {error}"),
        }
    }

    fn arena() -> Arena {
        Arena::new(ArenaConfig { capacity_bytes: 8 << 20 }).unwrap()
    }

    fn filled(arena: &Arena, len: usize, byte: u8) -> SharedBuffer {
        let mut buffer = arena.try_alloc(len).unwrap();
        buffer.fill(byte);
        buffer.freeze()
    }

    fn finish(ring: &mut Ring) -> Vec<RingCompletion> {
        let mut done = Vec::new();
        ring.wait(usize::MAX, &mut done).unwrap();
        done.sort_by_key(|completion| completion.token);
        done
    }

    fn write_read_flush(file: File, register: bool) {
        let Some(mut ring) = ring(8) else { return };
        let (arena, file) = (arena(), Arc::new(file));
        if register {
            println!("registered: {}", ring.register_arena(&arena));
        }
        let one = filled(&arena, 8192, 1);
        ring.try_write(&file, 0, smallvec![one.clone()], 10).unwrap();
        let parts: WriteParts =
            smallvec![filled(&arena, 4096, 2), one.slice(0..4096), filled(&arena, 4096, 3)];
        ring.try_write(&file, 8192, parts, 11).unwrap();
        drop(one);
        assert_eq!(ring.unsubmitted(), 2);
        assert_eq!(ring.submit().unwrap(), 2);
        let done = finish(&mut ring);
        assert_eq!(done.iter().map(|done| *done.result.as_ref().unwrap()).collect::<Vec<_>>(), [8192, 12288]);
        assert_eq!(done[1].parts.len(), 3);
        drop(done);
        ring.try_flush(&file, 12).unwrap();
        let done = finish(&mut ring);
        assert!(done[0].token == 12 && done[0].result.is_ok());
        ring.try_read(&file, 4096, arena.try_alloc(16384).unwrap(), 13).unwrap();
        ring.try_read(&file, 1 << 20, arena.try_alloc(4096).unwrap(), 14).unwrap();
        let mut done = finish(&mut ring);
        assert_eq!(*done[0].result.as_ref().unwrap(), 16384);
        assert_eq!(*done[1].result.as_ref().unwrap(), 0, "past the end");
        let buffer = done[0].buffer.take().unwrap();
        let firsts: Vec<u8> = buffer.chunks(4096).map(|block| block[0]).collect();
        assert_eq!(firsts, [1, 2, 1, 3]);
        assert!(buffer.chunks(4096).all(|block| block.iter().all(|byte| *byte == block[0])));
        drop((buffer, done));
        assert_eq!(ring.in_flight(), 0);
        assert_eq!(arena.in_use_bytes(), 0);
        println!("{:?}", ring.stats());
        if register {
            let stats = ring.stats();
            assert!(stats.is_fixed_refused || stats.fixed_operations >= 3, "{stats:?}");
        }
    }

    #[test]
    fn a_file_is_written_flushed_and_read_back() {
        write_read_flush(tempfile::tempfile().unwrap(), false);
        write_read_flush(tempfile::tempfile().unwrap(), true);
    }

    #[test]
    fn a_file_opened_past_the_page_cache_works_the_same() {
        // Beside the test's binary: /tmp may be a file system in memory.
        let binary = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir_in(binary.parent().unwrap()).unwrap();
        let opened = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_DIRECT)
            .open(folder.path().join("device"));
        match opened {
            Ok(file) => write_read_flush(file, true),
            Err(error) => println!("skipped: this file system has no O_DIRECT: {error}"),
        }
    }

    #[test]
    fn a_full_ring_gives_everything_back() {
        let Some(mut ring) = ring(2) else { return };
        let (arena, file) = (arena(), Arc::new(tempfile::tempfile().unwrap()));
        ring.try_flush(&file, 0).unwrap();
        ring.try_flush(&file, 1).unwrap();
        assert_eq!(ring.try_flush(&file, 2), Err(RingFull));
        assert_eq!(ring.try_read(&file, 0, arena.try_alloc(10).unwrap(), 3).unwrap_err().len(), 10);
        assert_eq!(ring.try_write(&file, 0, smallvec![filled(&arena, 7, 0)], 4).unwrap_err()[0].len(), 7);
        assert_eq!(finish(&mut ring).len(), 2);
        ring.try_flush(&file, 5).unwrap();
        assert_eq!(finish(&mut ring)[0].token, 5);
    }

    #[test]
    fn an_error_of_the_device_comes_with_its_token_and_buffer() {
        let Some(mut ring) = ring(2) else { return };
        let (arena, path) = (arena(), tempfile::NamedTempFile::new().unwrap());
        let write_only = Arc::new(File::options().write(true).open(path.path()).unwrap());
        ring.try_read(&write_only, 0, arena.try_alloc(4096).unwrap(), 9).unwrap();
        let done = finish(&mut ring);
        assert_eq!(done[0].result.as_ref().unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert!(done[0].token == 9 && done[0].buffer.is_some());
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test is about a real wake-up")]
    fn a_poller_wakes_when_the_ring_has_work() {
        let Some(mut ring) = ring(4) else { return };
        let arena = arena();
        let (read_end, write_end) = std::io::pipe().unwrap();
        let read_end = Arc::new(File::from(std::os::fd::OwnedFd::from(read_end)));
        let poller = Poller::new().unwrap();
        poller.add(ring.as_raw_fd(), 1, Interest::READABLE).unwrap();
        // A read of a pipe finishes later than its submission, and so through the kernel's deferred work.
        ring.try_read(&read_end, u64::MAX, arena.try_alloc(5).unwrap(), 1).unwrap();
        ring.submit().unwrap();
        let mut done = Vec::new();
        assert_eq!(ring.poll(&mut done), 0);
        let mut events = Vec::new();
        assert_eq!(poller.wait(Some(Duration::ZERO), &mut events).unwrap(), 0);
        let clock = std::time::Instant::now();
        let writer = std::thread::spawn(move || std::io::Write::write_all(&mut { write_end }, b"hello"));
        let timeout = Duration::from_secs(20);
        // The wait may also end by the interruption that the kernel runs the completion with.
        while ring.poll(&mut done) == 0 {
            poller.wait(Some(timeout), &mut events).unwrap();
        }
        assert!(clock.elapsed() < timeout, "woken, not timed out");
        writer.join().unwrap().unwrap();
        assert_eq!(&done[0].buffer.as_ref().unwrap()[..], b"hello");
        assert_eq!(poller.wait(Some(Duration::ZERO), &mut events).unwrap(), 0, "quiet again");
    }

    #[test]
    fn dropping_a_ring_waits_for_what_is_in_flight() {
        let Some(mut ring) = ring(64) else { return };
        let (arena, file) = (arena(), Arc::new(tempfile::tempfile().unwrap()));
        for index in 0..32_u64 {
            ring.try_write(&file, index << 16, smallvec![filled(&arena, 1 << 16, 7)], index).unwrap();
        }
        ring.submit().unwrap();
        drop(ring);
        assert_eq!(arena.in_use_bytes(), 0);
        assert_eq!(file.metadata().unwrap().len(), 32 << 16);
    }

    #[test]
    fn only_a_refusal_of_io_uring_itself_calls_for_helper_threads() {
        for code in [libc::EPERM, libc::EACCES, libc::ENOSYS, libc::ENOMEM] {
            assert!(is_forbidden(&io::Error::from_raw_os_error(code)));
        }
        for code in [libc::EMFILE, libc::EINVAL] {
            assert!(!is_forbidden(&io::Error::from_raw_os_error(code)));
        }
    }

    #[test]
    fn one_submission_is_one_doorbell() {
        let Some(mut ring) = ring(16) else { return };
        let counters = Arc::new(Counters::new());
        ring.count_into(Arc::clone(&counters));
        let file = Arc::new(tempfile::tempfile().unwrap());
        (0..10).for_each(|token| ring.try_flush(&file, token).unwrap());
        ring.submit().unwrap();
        assert_eq!((counters.doorbells.get(), counters.syscalls.get()), (1, 1));
        assert_eq!(finish(&mut ring).len(), 10);
        assert_eq!(ring.submit().unwrap(), 0);
        assert_eq!(counters.doorbells.get(), 1);
    }
}
