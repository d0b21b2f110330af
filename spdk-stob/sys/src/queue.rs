//! A queue pair: commands move in with their buffers and come out with their status, in any order.
//!
//! Commands collect until [`Queue::ring`], which sends all with one doorbell. SPDK calls back only from inside
//! `process_completions`, `free_io_qpair` and the calls that submit, on this thread; the callback notes the status in the
//! command's slot, and [`Queue::poll`] hands out what was noted.
//!
//! Thread: the one that opened it. Bound: the depth given, at most [`QUEUE_DEPTH_MAX`].
//! **Invariant**: the argument of every command is the address of its slot; slots are boxed, so they do not move, and live until
//! SPDK freed the queue pair. Callbacks use slots only through shared references and cells.
//! **Invariant**: a slot holds its buffers from before the command is submitted until after SPDK said that it is over.

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use runtime_sys::{Buffer, SharedBuffer};
use smallvec::SmallVec;

use crate::api::{
    EFAULT, ENOMEM, ENXIO, IO_FLAG_FORCE_UNIT_ACCESS, RANGE_DEALLOCATE, RawCompletion, RawQueuePair,
    RawQueuePairOptions, RawRange,
};
use crate::controller::{Namespace, Stop};
use crate::environment::Registration;
use crate::error::SpdkError;
use crate::status::NvmeStatus;

/// Commands that a queue holds at most: the largest depth that every controller takes without asking (its own may be less).
pub const QUEUE_DEPTH_MAX: usize = 256;

/// SPDK's requests per command: a transfer longer than the controller takes at once is cut into pieces, each with its own.
const REQUESTS_PER_COMMAND: usize = 4;

/// Memory page of a controller. Each part of a transfer begins at one, so that page lists describe it without a copy.
const PAGE_BYTES: usize = 4096;

/// What a device is asked. Sectors are the namespace's.
#[derive(Debug)]
pub enum Command {
    /// Fills `buffer`.
    Read {
        /// First sector.
        sector: u64,
        /// Whole sectors; comes back with the completion.
        buffer: Buffer,
    },
    /// Writes `parts`, one after the other.
    Write {
        /// First sector.
        sector: u64,
        /// Whole sectors each.
        parts: SmallVec<[SharedBuffer; 4]>,
        /// Complete only when these bytes are durable (FUA).
        force_unit_access: bool,
    },
    /// Makes durable what completed before this was submitted.
    Flush,
    /// Tells that the content of these sectors is not needed any more.
    Deallocate {
        /// First sector.
        sector: u64,
        /// How many.
        count: u32,
    },
}

/// Why a command was not taken. It comes back with its buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refused {
    /// The queue is full: try again after a completion.
    Full,
    /// The queue is lost: see [`QueueLost`].
    Lost,
    /// The bytes do not lie in registered memory, or a part does not begin at a page or is not of whole sectors.
    Memory,
    /// SPDK refused for another reason.
    Errno(i32),
}

/// A command that is over.
#[derive(Debug)]
pub struct Completion {
    /// The token given with it.
    pub token: u64,
    /// What the controller answered.
    pub status: NvmeStatus,
    /// The buffer of a read. `None` also if the controller did not confirm that it stopped writing to it.
    pub buffer: Option<Buffer>,
}

/// The queue or its controller is lost: nothing that is in flight comes back before [`Queue::poll_stop`] is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLost;

#[derive(Default)]
enum Payload {
    #[default]
    Nothing,
    Read(Buffer),
    /// Held for the device to read from.
    Write {
        _parts: SmallVec<[SharedBuffer; 4]>,
    },
}

/// A stretch of memory of a transfer.
#[derive(Clone, Copy)]
struct Segment {
    address: *mut u8,
    bytes: u32,
}

/// One command's place. Its address is the command's argument.
struct Slot {
    index: usize,
    finished: Rc<RefCell<Vec<usize>>>,
    status: Cell<NvmeStatus>,
    is_busy: Cell<bool>,
    token: Cell<u64>,
    payload: RefCell<Payload>,
    segments: RefCell<SmallVec<[Segment; 4]>>,
    /// Where the next segment that SPDK asks for begins: segment, byte in it.
    cursor: Cell<(usize, u32)>,
}

/// SPDK's word that a command is over.
unsafe extern "C" fn on_done(argument: *mut c_void, completion: *const RawCompletion) {
    // SAFETY: the argument of every command with this callback is a slot of a queue that is not freed yet (module head).
    let slot = unsafe { &*argument.cast_const().cast::<Slot>() };
    // SAFETY: SPDK passes a completion that lives through this call.
    let status = NvmeStatus::from_field(unsafe { (*completion).status });
    slot.status.set(status);
    slot.finished.borrow_mut().push(slot.index);
}

/// The answer to an abort: the aborted command's own completion is what counts.
unsafe extern "C" fn on_abort_done(_argument: *mut c_void, _completion: *const RawCompletion) {}

/// SPDK begins, or begins again, to walk the memory of a command, `offset` bytes from its start.
unsafe extern "C" fn reset_segments(argument: *mut c_void, offset: u32) {
    // SAFETY: as in `on_done`.
    let slot = unsafe { &*argument.cast_const().cast::<Slot>() };
    let mut left = offset;
    let segments = slot.segments.borrow();
    let mut index = 0;
    while let Some(segment) = segments.get(index) {
        if left < segment.bytes {
            break;
        }
        left -= segment.bytes;
        index += 1;
    }
    slot.cursor.set((index, left));
}

/// SPDK takes the next stretch of memory of a command.
unsafe extern "C" fn next_segment(
    argument: *mut c_void,
    address: *mut *mut c_void,
    bytes: *mut u32,
) -> c_int {
    // SAFETY: as in `on_done`.
    let slot = unsafe { &*argument.cast_const().cast::<Slot>() };
    let (index, offset) = slot.cursor.get();
    let segments = slot.segments.borrow();
    let Some(segment) = segments.get(index) else { return -EFAULT };
    slot.cursor.set((index + 1, 0));
    // SAFETY: SPDK passes room for both answers. `offset` is inside the segment, by `reset_segments`.
    unsafe { *address = segment.address.add(offset as usize).cast() };
    // SAFETY: as above.
    unsafe { *bytes = segment.bytes - offset };
    0
}

/// A queue pair. See the module head.
pub struct Queue {
    /// `None` once freed, after the controller stopped.
    raw: Option<NonNull<RawQueuePair>>,
    namespace: Namespace,
    slots: Box<[Slot]>,
    free: Vec<usize>,
    finished: Rc<RefCell<Vec<usize>>>,
    registrations: Vec<Arc<Registration>>,
    has_unsent: bool,
    is_lost: bool,
    /// An abort was asked for that has not been answered by its command's end.
    is_doubtful: bool,
}

impl Queue {
    pub(crate) fn open(namespace: Namespace, depth: usize) -> Result<Queue, SpdkError> {
        let depth = depth.clamp(1, QUEUE_DEPTH_MAX);
        let api = &namespace.controller.spdk.api;
        let controller = namespace.controller.raw.as_ptr();
        let mut options = RawQueuePairOptions {
            priority: 0,
            io_queue_size: 0,
            io_queue_requests: 0,
            delay_cmd_submit: false,
            rest: [0; 115],
        };
        // SAFETY: the controller is attached, and SPDK fills no more of the options than the size given.
        unsafe {
            (api.ctrlr_get_default_io_qpair_opts)(controller, &mut options, size_of::<RawQueuePairOptions>());
        }
        let requests = u32::try_from(depth * REQUESTS_PER_COMMAND).unwrap_or(u32::MAX);
        options.io_queue_requests = options.io_queue_requests.max(requests);
        options.delay_cmd_submit = true;
        // SAFETY: the options were filled by SPDK up to the size given, and two of them raised.
        let raw =
            unsafe { (api.ctrlr_alloc_io_qpair)(controller, &options, size_of::<RawQueuePairOptions>()) };
        let Some(raw) = NonNull::new(raw) else {
            return Err(SpdkError::NoQueue { address: namespace.address().clone() });
        };
        let finished = Rc::new(RefCell::new(Vec::with_capacity(depth)));
        let slot = |index| Slot {
            index,
            finished: Rc::clone(&finished),
            status: Cell::new(NvmeStatus::SUCCESS),
            is_busy: Cell::new(false),
            token: Cell::new(0),
            payload: RefCell::new(Payload::Nothing),
            segments: RefCell::new(SmallVec::new()),
            cursor: Cell::new((0, 0)),
        };
        Ok(Queue {
            raw: Some(raw),
            slots: (0..depth).map(slot).collect(),
            free: (0..depth).rev().collect(),
            finished,
            registrations: Vec::new(),
            has_unsent: false,
            is_lost: false,
            is_doubtful: false,
            namespace,
        })
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Lets buffers of `registration`'s arena be used in commands of this queue.
    pub fn add_memory(&mut self, registration: Arc<Registration>) {
        if !self.registrations.iter().any(|known| Arc::ptr_eq(known, &registration)) {
            self.registrations.push(registration);
        }
    }

    /// Commands in flight, those counted that are over and not yet polled.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// True if [`Queue::ring`] has something to send.
    #[must_use]
    pub fn has_unsent(&self) -> bool {
        self.has_unsent
    }

    /// True if every part may be given to the device: registered, page-aligned, whole sectors.
    fn is_usable<'a>(&self, parts: impl Iterator<Item = &'a [u8]>) -> bool {
        let sector_bytes = self.namespace.sector_bytes() as usize;
        let usable = |part: &[u8]| {
            let address = part.as_ptr().addr();
            address.is_multiple_of(PAGE_BYTES)
                && part.len().is_multiple_of(sector_bytes)
                && !part.is_empty()
                && self.registrations.iter().any(|memory| memory.covers(address, part.len()))
        };
        let mut count = 0;
        for part in parts {
            count += 1;
            if !usable(part) {
                return false;
            }
        }
        count > 0
    }

    /// Takes a command; it leaves with the next [`Queue::ring`].
    ///
    /// # Errors
    /// Why not, and the command.
    #[allow(clippy::result_large_err)] // the command comes back as it went in, without an allocation on the data path
    pub fn try_submit(&mut self, command: Command, token: u64) -> Result<(), (Refused, Command)> {
        let Some(raw) = self.raw.filter(|_| !self.is_lost) else { return Err((Refused::Lost, command)) };
        let is_usable = match &command {
            Command::Read { buffer, .. } => self.is_usable(std::iter::once(&buffer[..])),
            Command::Write { parts, .. } => self.is_usable(parts.iter().map(|part| &part[..])),
            Command::Flush | Command::Deallocate { .. } => true,
        };
        if !is_usable {
            return Err((Refused::Memory, command));
        }
        let Some(&index) = self.free.last() else { return Err((Refused::Full, command)) };
        let slot = &self.slots[index];
        let mut again = Again::Flush;
        let result = match command {
            Command::Read { sector, mut buffer } => {
                let segment = Segment {
                    address: buffer.as_mut_ptr(),
                    bytes: u32::try_from(buffer.len()).unwrap_or(u32::MAX),
                };
                let sectors = segment.bytes / self.namespace.sector_bytes();
                slot.hold(Payload::Read(buffer), std::iter::once(segment));
                again = Again::Read { sector };
                self.read_or_write(raw, slot, sector, sectors, None)
            }
            Command::Write { sector, parts, force_unit_access } => {
                let segment = |part: &SharedBuffer| Segment {
                    address: part.as_ptr().cast_mut(),
                    bytes: u32::try_from(part.len()).unwrap_or(u32::MAX),
                };
                let bytes: usize = parts.iter().map(|part| part.len()).sum();
                let sectors = bytes / self.namespace.sector_bytes() as usize;
                let segments: SmallVec<[Segment; 4]> = parts.iter().map(segment).collect();
                slot.hold(Payload::Write { _parts: parts }, segments.into_iter());
                again = Again::Write { sector, force_unit_access };
                let sectors = u32::try_from(sectors).unwrap_or(u32::MAX);
                self.read_or_write(raw, slot, sector, sectors, Some(force_unit_access))
            }
            Command::Flush => {
                // SAFETY: namespace and queue pair are of one attached controller; the slot stays (module head).
                unsafe {
                    (self.api().ns_cmd_flush)(
                        self.namespace.raw.as_ptr(),
                        raw.as_ptr(),
                        on_done,
                        slot.argument(),
                    )
                }
            }
            Command::Deallocate { sector, count } => {
                again = Again::Deallocate { sector, count };
                let range = RawRange { attributes: 0, blocks: count, start: sector };
                // SAFETY: as above; SPDK copies the one range before it returns.
                unsafe {
                    (self.api().ns_cmd_dataset_management)(
                        self.namespace.raw.as_ptr(),
                        raw.as_ptr(),
                        RANGE_DEALLOCATE,
                        &range,
                        1,
                        on_done,
                        slot.argument(),
                    )
                }
            }
        };
        if result == 0 {
            slot.token.set(token);
            slot.is_busy.set(true);
            self.free.pop();
            self.has_unsent = true;
            return Ok(());
        }
        let command = again.command(slot.let_go());
        let refused = match -result {
            ENOMEM => Refused::Full,
            ENXIO => Refused::Lost,
            errno => Refused::Errno(errno),
        };
        Err((refused, command))
    }

    fn api(&self) -> &'static crate::api::Api {
        &self.namespace.controller.spdk.api
    }

    /// `write`: `None` reads; else whether to force unit access.
    fn read_or_write(
        &self,
        raw: NonNull<RawQueuePair>,
        slot: &Slot,
        sector: u64,
        sectors: u32,
        write: Option<bool>,
    ) -> c_int {
        let api = self.api();
        let (call, flags) = match write {
            None => (api.ns_cmd_readv, 0),
            Some(false) => (api.ns_cmd_writev, 0),
            Some(true) => (api.ns_cmd_writev, IO_FLAG_FORCE_UNIT_ACCESS),
        };
        // SAFETY: (1) namespace and queue pair are of one attached controller, on the queue's thread; (2) the slot stays until
        // the queue pair is freed, and holds the memory until the command is over; (3) the memory is registered and as long as
        // `sectors` says; (4) the callbacks take this slot.
        unsafe {
            call(
                self.namespace.raw.as_ptr(),
                raw.as_ptr(),
                sector,
                sectors,
                on_done,
                slot.argument(),
                flags,
                reset_segments,
                next_segment,
            )
        }
    }

    /// Lets SPDK ring the doorbell and call back. Returns false if the queue is lost.
    fn process(&mut self) -> bool {
        let Some(raw) = self.raw else { return false };
        self.has_unsent = false;
        // SAFETY: the queue pair is not freed, and this is its thread (`Queue` is not `Send`).
        let result = unsafe { (self.api().qpair_process_completions)(raw.as_ptr(), 0) };
        result >= 0
    }

    /// Sends what was submitted since the last call, with one doorbell. True if there was anything.
    pub fn ring(&mut self) -> bool {
        let has_rung = self.has_unsent && !self.is_lost;
        if has_rung && !self.process() {
            self.is_lost = true;
        }
        has_rung
    }

    /// Appends the commands that are over. Sends what was not sent yet.
    ///
    /// # Errors
    /// [`QueueLost`], each time from then on, also when something was appended.
    pub fn poll(&mut self, done: &mut Vec<Completion>) -> Result<(), QueueLost> {
        if !self.is_lost && !self.process() {
            self.is_lost = true;
        }
        self.collect(done, false);
        if self.is_lost { Err(QueueLost) } else { Ok(()) }
    }

    /// Hands out what the callbacks noted. `leaks`: the device may still write to what it was given.
    fn collect(&mut self, done: &mut Vec<Completion>, leaks: bool) {
        // Taken out and put back: the list keeps its memory, and the callbacks could add to it meanwhile.
        let mut finished = std::mem::take(&mut *self.finished.borrow_mut());
        for index in finished.drain(..) {
            let slot = &self.slots[index];
            slot.is_busy.set(false);
            let payload = slot.let_go();
            let buffer = match payload {
                payload if leaks => {
                    std::mem::forget(payload);
                    None
                }
                Payload::Read(buffer) => Some(buffer),
                Payload::Nothing | Payload::Write { .. } => None,
            };
            self.free.push(index);
            done.push(Completion { token: slot.token.get(), status: slot.status.get(), buffer });
        }
        *self.finished.borrow_mut() = finished;
        self.is_doubtful &= self.in_flight() > 0;
    }

    /// Asks the controller to give up the command with `token`. It still completes, aborted or done. False: it could
    /// not be asked, or is over already.
    pub fn abort(&mut self, token: u64) -> bool {
        let Some(raw) = self.raw.filter(|_| !self.is_lost) else { return false };
        let wanted = self.slots.iter().find(|slot| slot.is_busy.get() && slot.token.get() == token);
        let Some(slot) = wanted else { return false };
        self.is_doubtful = true;
        // SAFETY: queue pair and controller belong together; the argument is compared with those of commands, not used; the
        // answer's callback uses no argument.
        let result = unsafe {
            (self.api().ctrlr_cmd_abort_ext)(
                self.namespace.controller.raw.as_ptr(),
                raw.as_ptr(),
                slot.argument(),
                on_abort_done,
                std::ptr::null_mut(),
            )
        };
        result == 0
    }

    /// Stops the whole controller, all its queues with it, a step a call. True: it is over, every command was
    /// appended to `done`, and the queue takes no more.
    pub fn poll_stop(&mut self, done: &mut Vec<Completion>) -> bool {
        self.is_lost = true;
        let leaks = match self.namespace.controller.poll_stop() {
            Stop::Running | Stop::Stopping => return false,
            Stop::Silent => false,
            Stop::Unconfirmed => true,
        };
        self.free_queue_pair(done, leaks);
        true
    }

    /// Frees the queue pair, which ends every command.
    fn free_queue_pair(&mut self, done: &mut Vec<Completion>, leaks: bool) {
        let Some(raw) = self.raw.take() else { return };
        // SAFETY: freed once, on its thread, not from a callback. SPDK calls back for each command in flight before it returns.
        unsafe { (self.api().ctrlr_free_io_qpair)(raw.as_ptr()) };
        self.collect(done, leaks);
        for slot in self.slots.iter().filter(|slot| slot.is_busy.get()) {
            // SPDK forgot one, so nobody knows who writes to its memory.
            std::mem::forget(slot.let_go());
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let mut done = Vec::new();
        if self.raw.is_some() && (self.is_lost || self.is_doubtful) {
            // A controller that does not answer would not answer the deletion of its queue either; stopping it ends in
            // bounded time (the controller's own time-out).
            while !self.poll_stop(&mut done) {
                std::hint::spin_loop();
            }
        }
        self.free_queue_pair(&mut done, false);
    }
}

impl Slot {
    fn argument(&self) -> *mut c_void {
        std::ptr::from_ref(self).cast_mut().cast()
    }

    fn hold(&self, payload: Payload, segments: impl Iterator<Item = Segment>) {
        *self.payload.borrow_mut() = payload;
        let mut place = self.segments.borrow_mut();
        place.clear();
        place.extend(segments);
    }

    fn let_go(&self) -> Payload {
        self.segments.borrow_mut().clear();
        self.payload.take()
    }
}

/// What a refused command was, beside its buffers.
enum Again {
    Read { sector: u64 },
    Write { sector: u64, force_unit_access: bool },
    Flush,
    Deallocate { sector: u64, count: u32 },
}

impl Again {
    fn command(self, payload: Payload) -> Command {
        match (self, payload) {
            (Again::Read { sector }, Payload::Read(buffer)) => Command::Read { sector, buffer },
            (Again::Write { sector, force_unit_access }, Payload::Write { _parts: parts }) => {
                Command::Write { sector, parts, force_unit_access }
            }
            (Again::Deallocate { sector, count }, _) => Command::Deallocate { sector, count },
            (Again::Flush, _) => Command::Flush,
            // `try_submit` puts the payload of the same command into the slot a few lines before.
            (Again::Read { .. } | Again::Write { .. }, _) => unreachable!("a slot lost its buffers"),
        }
    }
}
