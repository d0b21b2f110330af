//! The functions of the stand-in, with SPDK's signatures.
//!
//! Handles are boxes of ours behind SPDK's opaque pointers: made by `connect` and `alloc_io_qpair`, freed by `detach` and
//! `free_io_qpair`, and used by the caller only in between; every `SAFETY` below that says "a handle" means that.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ThreadId;

use super::{Device, Kind, machine};
use crate::api::{
    Api, CommandDone, EINVAL, ENOMEM, ENXIO, IDENTIFY_BYTES, IO_FLAG_FORCE_UNIT_ACCESS,
    NAMESPACE_DEALLOCATES, NAMESPACE_FLUSHES, NextSegment, RANGE_DEALLOCATE, RawCompletion, RawController,
    RawEnvironmentOptions, RawNamespace, RawQueuePair, RawQueuePairOptions, RawRange, RawTransportId,
    ResetSegments, VTOPHYS_ERROR,
};
use crate::status::NvmeStatus;

const ENOENT: c_int = 2;
const EBUSY: c_int = 16;
const INVALID_FIELD: NvmeStatus = NvmeStatus { kind: 0, code: 0x02, is_final: true };
const INTERNAL: NvmeStatus = NvmeStatus { kind: 0, code: 0x06, is_final: false };
const OUT_OF_RANGE: NvmeStatus = NvmeStatus { kind: 0, code: 0x80, is_final: true };
/// Polls of the admin queue until a controller told to stop has stopped.
const STOP_POLLS: u32 = 3;

struct Controller {
    device: Arc<Device>,
    identity: Box<[u8; IDENTIFY_BYTES]>,
    /// Polls left until it has stopped; `None` while it runs.
    stopping: RefCell<Option<u32>>,
    is_failed: AtomicBool,
    /// `RawNamespace` 1 points here.
    namespace: Namespace,
}

struct Namespace {
    device: Arc<Device>,
}

enum Transfer {
    None,
    Read,
    Write { is_forced: bool },
    Ranges(RawRange),
}

struct Command {
    kind: Kind,
    sector: u64,
    count: u32,
    transfer: Transfer,
    done: CommandDone,
    argument: *mut c_void,
    segments: Option<(ResetSegments, NextSegment)>,
}

struct QueuePair {
    controller: *const Controller,
    thread: ThreadId,
    requests: usize,
    random: RefCell<u64>,
    lists: RefCell<Lists>,
}

#[derive(Default)]
struct Lists {
    /// Submitted, and not sent.
    unsent: VecDeque<Command>,
    /// With the device.
    sent: Vec<Command>,
    /// With the device, which forgot them.
    hung: Vec<Command>,
    /// Aborted, to complete at the next call.
    aborted: Vec<Command>,
}

impl Lists {
    fn len(&self) -> usize {
        self.unsent.len() + self.sent.len() + self.hung.len() + self.aborted.len()
    }
}

/// # Safety
/// A handle of a controller.
unsafe fn controller<'a>(raw: *mut RawController) -> &'a Controller {
    // SAFETY: a handle points to our box.
    unsafe { &*raw.cast::<Controller>() }
}

/// # Safety
/// A handle of a queue pair.
unsafe fn queue_pair<'a>(raw: *mut RawQueuePair) -> &'a QueuePair {
    // SAFETY: a handle points to our box.
    let queue = unsafe { &*raw.cast::<QueuePair>() };
    assert_eq!(queue.thread, std::thread::current().id(), "a queue pair was used from another thread");
    queue
}

/// # Safety
/// A handle of a namespace.
unsafe fn namespace<'a>(raw: *mut RawNamespace) -> &'a Namespace {
    // SAFETY: a handle points into the box of its controller.
    unsafe { &*raw.cast::<Namespace>() }
}

fn complete(command: &Command, status: NvmeStatus) {
    let completion = RawCompletion { dwords: [0; 3], command_id: 0, status: status.to_field() | 1 };
    // SAFETY: callback and argument came with the command, which is completed once; the completion lives through the call.
    unsafe { (command.done)(command.argument, &completion) };
}

impl Command {
    /// The memory of `bytes` bytes from `offset`, by the caller's callbacks. `None`: not all of it is registered.
    fn memory(&self, offset: u32, bytes: u32) -> Option<Vec<(*mut u8, usize)>> {
        let (reset, next) = self.segments?;
        // SAFETY: callbacks and argument came with this command, which is not over.
        unsafe { reset(self.argument, offset) };
        let mut pieces = Vec::new();
        let mut left = bytes;
        while left > 0 {
            let (mut address, mut len) = (std::ptr::null_mut(), 0_u32);
            // SAFETY: as above; both answers are ours.
            if unsafe { next(self.argument, &mut address, &mut len) } != 0 {
                return None;
            }
            let len = len.min(left);
            left -= len;
            if !machine().is_registered(address.addr(), len as usize) {
                return None;
            }
            pieces.push((address.cast::<u8>(), len as usize));
        }
        Some(pieces)
    }

    fn execute(&self, device: &Device) -> NvmeStatus {
        let sector_bytes = u64::from(device.options.sector_bytes);
        match &self.transfer {
            Transfer::None => {
                if device.file.sync_data().is_err() {
                    INTERNAL
                } else {
                    NvmeStatus::SUCCESS
                }
            }
            Transfer::Ranges(range) => {
                let zeros = vec![0; range.blocks as usize * device.options.sector_bytes as usize];
                match device.file.write_all_at(&zeros, range.start * sector_bytes) {
                    Ok(()) => NvmeStatus::SUCCESS,
                    Err(_) => INTERNAL,
                }
            }
            transfer @ (Transfer::Read | Transfer::Write { .. }) => {
                let bytes = self.count * device.options.sector_bytes;
                let size_bytes = device.file.metadata().map_or(0, |metadata| metadata.len());
                if self.sector * sector_bytes + u64::from(bytes) > size_bytes {
                    return OUT_OF_RANGE;
                }
                // The last piece first: pieces of one transfer have no order either.
                let cut = device.options.max_transfer_bytes;
                for piece in (0..bytes.div_ceil(cut)).rev() {
                    let offset = piece * cut;
                    let Some(memory) = self.memory(offset, cut.min(bytes - offset)) else {
                        return INVALID_FIELD;
                    };
                    let mut at = self.sector * sector_bytes + u64::from(offset);
                    for (address, len) in memory {
                        let moved = if matches!(transfer, Transfer::Read) {
                            // SAFETY: the caller gave this memory to the device until the completion, registered (checked in `memory`).
                            device
                                .file
                                .read_exact_at(unsafe { std::slice::from_raw_parts_mut(address, len) }, at)
                        } else {
                            // SAFETY: as above.
                            device.file.write_all_at(unsafe { std::slice::from_raw_parts(address, len) }, at)
                        };
                        if moved.is_err() {
                            return INTERNAL;
                        }
                        at += len as u64;
                    }
                }
                if matches!(transfer, Transfer::Write { is_forced: true }) && device.file.sync_data().is_err()
                {
                    return INTERNAL;
                }
                NvmeStatus::SUCCESS
            }
        }
    }
}

impl QueuePair {
    fn controller(&self) -> &Controller {
        // SAFETY: SPDK's rule, kept by our caller: a queue pair is freed before its controller is detached.
        unsafe { &*self.controller }
    }

    fn device(&self) -> &Device {
        &self.controller().device
    }

    fn is_lost(&self) -> bool {
        let controller = self.controller();
        let faults = &self.device().state().faults;
        faults.is_lost
            || faults.is_removed
            || controller.stopping.borrow().is_some()
            || controller.is_failed.load(Ordering::Relaxed)
    }

    fn random(&self, below: usize) -> usize {
        // Any order will do: the multiplier of Knuth's MMIX generator.
        let mut state = self.random.borrow_mut();
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(*state >> 33).unwrap_or(0) % below
    }

    fn submit(&self, command: Command) -> c_int {
        if self.is_lost() {
            return -ENXIO;
        }
        let mut lists = self.lists.borrow_mut();
        let mut state = self.device().state();
        if lists.len() >= self.requests {
            return -ENOMEM;
        }
        if state.faults.refusals > 0 {
            state.faults.refusals -= 1;
            return -ENOMEM;
        }
        lists.unsent.push_back(command);
        state.counts.in_flight_max = state.counts.in_flight_max.max(lists.len());
        0
    }

    /// Some of what the device has, in any order, and what was aborted.
    fn take_finished(&self) -> (Vec<Command>, Vec<Command>) {
        let mut lists = self.lists.borrow_mut();
        let aborted = std::mem::take(&mut lists.aborted);
        let mut finished = Vec::new();
        let count = lists.sent.len().min(1 + self.random(8));
        for _ in 0..count {
            let index = self.random(lists.sent.len());
            finished.push(lists.sent.swap_remove(index));
        }
        (finished, aborted)
    }

    fn process(&self) -> i32 {
        if self.is_lost() {
            return -ENXIO;
        }
        let (finished, aborted) = self.take_finished();
        let count = finished.len() + aborted.len();
        for command in &finished {
            let fault = {
                let mut state = self.device().state();
                state.faults.statuses.get_mut(&command.kind).filter(|(_, count)| *count > 0).map(|fault| {
                    fault.1 -= 1;
                    fault.0
                })
            };
            let status = fault.unwrap_or_else(|| command.execute(self.device()));
            {
                let counts = &mut self.device().state().counts;
                *counts.done.entry(command.kind).or_default() += 1;
                counts.forced_writes +=
                    u64::from(matches!(command.transfer, Transfer::Write { is_forced: true }));
            }
            complete(command, status);
        }
        for command in &aborted {
            complete(command, NvmeStatus::ABORTED);
        }
        let mut lists = self.lists.borrow_mut();
        let mut state = self.device().state();
        state.counts.doorbells += u64::from(!lists.unsent.is_empty());
        while let Some(command) = lists.unsent.pop_front() {
            match state.faults.hangs.get_mut(&command.kind).filter(|count| **count > 0) {
                Some(count) => {
                    *count -= 1;
                    lists.hung.push(command);
                }
                None => lists.sent.push(command),
            }
        }
        i32::try_from(count).unwrap_or(i32::MAX)
    }
}

unsafe extern "C" fn env_opts_init(options: *mut RawEnvironmentOptions) {
    // SAFETY: the caller gives options of the size in `opts_size`, which is ours.
    let options = unsafe { &mut *options };
    assert_eq!(options.opts_size, size_of::<RawEnvironmentOptions>(), "opts_size has to be set first");
    options.shm_id = -1;
    options.mem_size = -1;
}

unsafe extern "C" fn env_init(options: *const RawEnvironmentOptions) -> c_int {
    // SAFETY: as above.
    let options = unsafe { &*options };
    let is_whole = !options.name.is_null() && !options.core_mask.is_null() && options.mem_size > 0;
    if is_whole && options.shm_id == -1 { 0 } else { -EINVAL }
}

unsafe extern "C" fn log_set_print_level(_level: c_int) {}

unsafe extern "C" fn mem_register(address: *mut c_void, len: usize) -> c_int {
    let (start, mut machine) = (address.addr(), machine());
    if !start.is_multiple_of(4096) || !len.is_multiple_of(4096) {
        return -EINVAL;
    }
    let before = machine.memory.range(..start + len).next_back();
    if before.is_some_and(|(other, bytes)| other + bytes > start) {
        return -EBUSY;
    }
    machine.memory.insert(start, len);
    0
}

unsafe extern "C" fn mem_unregister(address: *mut c_void, len: usize) -> c_int {
    let mut machine = machine();
    match machine.memory.remove(&address.addr()) {
        Some(registered) if registered == len => 0,
        _ => -EINVAL,
    }
}

unsafe extern "C" fn vtophys(address: *const c_void, size: *mut u64) -> u64 {
    let (at, machine) = (address.addr(), machine());
    if !machine.is_registered(at, 1) {
        return VTOPHYS_ERROR;
    }
    let range = machine.memory.range(..=at).next_back().map(|(start, bytes)| (*start, *bytes));
    let (start, bytes) = range.unwrap_or((at, 0));
    // SAFETY: the caller gives room for the answer.
    unsafe { *size = (*size).min((start + bytes - at) as u64) };
    let translation = if machine.physical.contains(&start) { at / 2 } else { at };
    translation as u64
}

unsafe extern "C" fn transport_id_parse(id: *mut RawTransportId, text: *const c_char) -> c_int {
    // SAFETY: the caller gives a string that ends with 0.
    let text = unsafe { CStr::from_ptr(text) }.to_bytes_with_nul();
    // SAFETY: the caller gives one transport id.
    let id = unsafe { &mut *id };
    match id.bytes.get_mut(..text.len()) {
        Some(place) if text.starts_with(b"trtype:") => {
            place.copy_from_slice(text);
            0
        }
        _ => -EINVAL,
    }
}

unsafe extern "C" fn connect(
    id: *const RawTransportId,
    _options: *const c_void,
    _size: usize,
) -> *mut RawController {
    // SAFETY: the caller gives an id that was parsed.
    let id = unsafe { &*id };
    let Some(text) = CStr::from_bytes_until_nul(&id.bytes).ok().and_then(|text| text.to_str().ok()) else {
        return std::ptr::null_mut();
    };
    let Some(device) = machine().bus.get(text).cloned() else { return std::ptr::null_mut() };
    {
        let mut state = device.state();
        // Another controller of this device would be another process: the real one takes a lock.
        if state.faults.is_deaf || state.counts.open > 0 {
            return std::ptr::null_mut();
        }
        state.counts.open += 1;
        state.counts.attached += 1;
    }
    let mut identity = Box::new([0; IDENTIFY_BYTES]);
    identity[4..24].copy_from_slice(b"serial of a file    ");
    identity[24..64].copy_from_slice(b"a file that stands in for a controller  ");
    identity[64..72].copy_from_slice(b"1.0     ");
    let namespace = Namespace { device: Arc::clone(&device) };
    let (stopping, is_failed) = (RefCell::new(None), AtomicBool::new(false));
    Box::into_raw(Box::new(Controller { device, identity, stopping, is_failed, namespace })).cast()
}

unsafe extern "C" fn detach(raw: *mut RawController) -> c_int {
    // SAFETY: a handle, given back here.
    let controller = unsafe { Box::from_raw(raw.cast::<Controller>()) };
    let mut state = controller.device.state();
    state.counts.open -= 1;
    assert_eq!(state.counts.open, 0, "a controller was detached before its queue pairs were freed");
    0
}

unsafe extern "C" fn ctrlr_get_data(raw: *mut RawController) -> *const [u8; IDENTIFY_BYTES] {
    // SAFETY: a handle.
    std::ptr::from_ref(&*unsafe { controller(raw) }.identity)
}

unsafe extern "C" fn ctrlr_get_ns(raw: *mut RawController, id: u32) -> *mut RawNamespace {
    // SAFETY: a handle.
    let controller = unsafe { controller(raw) };
    if id == 1 { std::ptr::from_ref(&controller.namespace).cast_mut().cast() } else { std::ptr::null_mut() }
}

unsafe extern "C" fn ctrlr_process_admin_completions(raw: *mut RawController) -> i32 {
    // SAFETY: a handle.
    let controller = unsafe { controller(raw) };
    let mut state = controller.device.state();
    state.counts.admin_polls += 1;
    let mut stopping = controller.stopping.borrow_mut();
    match &mut *stopping {
        Some(0) => {
            controller.is_failed.store(state.faults.ignores_stop, Ordering::Relaxed);
            -ENXIO
        }
        Some(left) => {
            *left -= 1;
            0
        }
        None if state.faults.is_lost || state.faults.is_removed => {
            controller.is_failed.store(true, Ordering::Relaxed);
            -ENXIO
        }
        None => 0,
    }
}

unsafe extern "C" fn ctrlr_is_failed(raw: *mut RawController) -> bool {
    // SAFETY: a handle.
    unsafe { controller(raw) }.is_failed.load(Ordering::Relaxed)
}

unsafe extern "C" fn ctrlr_disconnect(raw: *mut RawController) -> c_int {
    // SAFETY: a handle.
    let controller = unsafe { controller(raw) };
    if controller.device.state().faults.is_removed {
        return -ENXIO;
    }
    let mut stopping = controller.stopping.borrow_mut();
    if stopping.is_some() {
        return -EBUSY;
    }
    controller.is_failed.store(false, Ordering::Relaxed);
    *stopping = Some(STOP_POLLS);
    0
}

unsafe extern "C" fn get_default_io_qpair_opts(
    raw: *mut RawController,
    options: *mut RawQueuePairOptions,
    size: usize,
) {
    // SAFETY: the caller gives options of this size, and we fill what is before `rest`.
    let options = unsafe { &mut *options };
    assert!(size >= 16);
    options.io_queue_size = 256;
    // SAFETY: a handle.
    options.io_queue_requests =
        u32::try_from(unsafe { controller(raw) }.device.options.queue_requests).unwrap_or(u32::MAX);
}

unsafe extern "C" fn alloc_io_qpair(
    raw: *mut RawController,
    options: *const RawQueuePairOptions,
    _size: usize,
) -> *mut RawQueuePair {
    // SAFETY: a handle.
    let controller = unsafe { controller(raw) };
    // SAFETY: the caller gives options.
    let options = unsafe { &*options };
    assert!(options.delay_cmd_submit, "one doorbell per turn needs delayed submission");
    let mut state = controller.device.state();
    state.counts.open += 1;
    let queue = QueuePair {
        controller,
        thread: std::thread::current().id(),
        requests: controller.device.options.queue_requests,
        random: RefCell::new(controller.device.options.seed),
        lists: RefCell::new(Lists::default()),
    };
    Box::into_raw(Box::new(queue)).cast()
}

unsafe extern "C" fn free_io_qpair(raw: *mut RawQueuePair) -> c_int {
    {
        // SAFETY: a handle.
        let queue = unsafe { queue_pair(raw) };
        let lists = std::mem::take(&mut *queue.lists.borrow_mut());
        let all = lists.unsent.iter().chain(&lists.sent).chain(&lists.hung).chain(&lists.aborted);
        for command in all {
            complete(command, NvmeStatus::QUEUE_DELETED);
        }
        queue.device().state().counts.open -= 1;
    }
    // SAFETY: a handle, given back here; the reference above is gone.
    drop(unsafe { Box::from_raw(raw.cast::<QueuePair>()) });
    0
}

unsafe extern "C" fn cmd_abort_ext(
    _controller: *mut RawController,
    raw: *mut RawQueuePair,
    command_argument: *mut c_void,
    _done: CommandDone,
    _argument: *mut c_void,
) -> c_int {
    // SAFETY: a handle.
    let queue = unsafe { queue_pair(raw) };
    let mut lists = queue.lists.borrow_mut();
    let mut state = queue.device().state();
    state.counts.aborts += 1;
    let Some(index) = lists.hung.iter().position(|command| command.argument == command_argument) else {
        let is_known =
            lists.sent.iter().chain(&lists.unsent).any(|command| command.argument == command_argument);
        return if is_known { 0 } else { -ENOENT };
    };
    if !state.faults.ignores_aborts {
        let command = lists.hung.swap_remove(index);
        if state.faults.finishes_aborted {
            lists.sent.push(command);
        } else {
            lists.aborted.push(command);
        }
    }
    0
}

unsafe extern "C" fn ns_is_active(_raw: *mut RawNamespace) -> bool {
    true
}

unsafe extern "C" fn ns_get_sector_size(raw: *mut RawNamespace) -> u32 {
    // SAFETY: a handle.
    unsafe { namespace(raw) }.device.options.sector_bytes
}

unsafe extern "C" fn ns_get_num_sectors(raw: *mut RawNamespace) -> u64 {
    // SAFETY: a handle.
    let device = unsafe { &namespace(raw).device };
    device.file.metadata().map_or(0, |metadata| metadata.len()) / u64::from(device.options.sector_bytes)
}

unsafe extern "C" fn ns_get_md_size(raw: *mut RawNamespace) -> u32 {
    // SAFETY: a handle.
    unsafe { namespace(raw) }.device.options.metadata_bytes
}

unsafe extern "C" fn ns_get_flags(raw: *mut RawNamespace) -> u32 {
    // SAFETY: a handle.
    let options = unsafe { &namespace(raw).device.options };
    (if options.has_volatile_cache { NAMESPACE_FLUSHES } else { 0 })
        | (if options.deallocates { NAMESPACE_DEALLOCATES } else { 0 })
}

unsafe extern "C" fn ns_get_max_io_xfer_size(raw: *mut RawNamespace) -> u32 {
    // SAFETY: a handle.
    unsafe { namespace(raw) }.device.options.max_transfer_bytes
}

unsafe extern "C" fn ns_cmd_readv(
    _namespace: *mut RawNamespace,
    raw: *mut RawQueuePair,
    sector: u64,
    count: u32,
    done: CommandDone,
    argument: *mut c_void,
    _flags: u32,
    reset: ResetSegments,
    next: NextSegment,
) -> c_int {
    let (transfer, segments) = (Transfer::Read, Some((reset, next)));
    // SAFETY: a handle.
    unsafe { queue_pair(raw) }.submit(Command {
        kind: Kind::Read,
        sector,
        count,
        transfer,
        done,
        argument,
        segments,
    })
}

unsafe extern "C" fn ns_cmd_writev(
    _namespace: *mut RawNamespace,
    raw: *mut RawQueuePair,
    sector: u64,
    count: u32,
    done: CommandDone,
    argument: *mut c_void,
    flags: u32,
    reset: ResetSegments,
    next: NextSegment,
) -> c_int {
    let transfer = Transfer::Write { is_forced: flags & IO_FLAG_FORCE_UNIT_ACCESS != 0 };
    let segments = Some((reset, next));
    // SAFETY: a handle.
    unsafe { queue_pair(raw) }.submit(Command {
        kind: Kind::Write,
        sector,
        count,
        transfer,
        done,
        argument,
        segments,
    })
}

unsafe extern "C" fn ns_cmd_flush(
    _namespace: *mut RawNamespace,
    raw: *mut RawQueuePair,
    done: CommandDone,
    argument: *mut c_void,
) -> c_int {
    let (transfer, segments) = (Transfer::None, None);
    // SAFETY: a handle.
    unsafe { queue_pair(raw) }.submit(Command {
        kind: Kind::Flush,
        sector: 0,
        count: 0,
        transfer,
        done,
        argument,
        segments,
    })
}

unsafe extern "C" fn ns_cmd_dataset_management(
    _namespace: *mut RawNamespace,
    raw: *mut RawQueuePair,
    kind: u32,
    ranges: *const RawRange,
    range_count: u16,
    done: CommandDone,
    argument: *mut c_void,
) -> c_int {
    assert_eq!((kind, range_count), (RANGE_DEALLOCATE, 1));
    // SAFETY: the caller gives one range.
    let transfer = Transfer::Ranges(unsafe { *ranges });
    let segments = None;
    // SAFETY: a handle.
    unsafe { queue_pair(raw) }.submit(Command {
        kind: Kind::Deallocate,
        sector: 0,
        count: 0,
        transfer,
        done,
        argument,
        segments,
    })
}

unsafe extern "C" fn qpair_process_completions(raw: *mut RawQueuePair, max: u32) -> i32 {
    assert_eq!(max, 0);
    // SAFETY: a handle.
    unsafe { queue_pair(raw) }.process()
}

/// The table of the stand-in.
pub(crate) const API: Api = Api {
    env_opts_init,
    env_init,
    log_set_print_level,
    mem_register,
    mem_unregister,
    vtophys,
    transport_id_parse,
    connect,
    detach,
    ctrlr_get_data,
    ctrlr_get_ns,
    ctrlr_process_admin_completions,
    ctrlr_is_failed,
    ctrlr_disconnect,
    ctrlr_get_default_io_qpair_opts: get_default_io_qpair_opts,
    ctrlr_alloc_io_qpair: alloc_io_qpair,
    ctrlr_free_io_qpair: free_io_qpair,
    ctrlr_cmd_abort_ext: cmd_abort_ext,
    ns_is_active,
    ns_get_sector_size,
    ns_get_num_sectors,
    ns_get_md_size,
    ns_get_flags,
    ns_get_max_io_xfer_size,
    ns_cmd_readv,
    ns_cmd_writev,
    ns_cmd_flush,
    ns_cmd_dataset_management,
    qpair_process_completions,
};
