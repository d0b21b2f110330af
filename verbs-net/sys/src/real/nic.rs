//! One device as one machine uses it: protection domain, regions, completion queue and channel, receives, queue pairs, windows.
//!
//! **Invariant**: everything made here is destroyed in the order queue pairs and windows, shared receive queue, completion
//! queue, channel, regions, protection domain, device; buffers are released only after what could touch them.
//! **Invariant**: the completion queue has room for every operation of every queue pair, so it cannot overrun.

use std::collections::{BTreeMap, VecDeque};
use std::ptr;
use std::sync::Arc;

use rdma_mummy_sys as ffi;
use runtime_sys::{Arena, Buffer, SharedBuffer};

use super::library::{Context, PORT_ACTIVE, null, query_port};
use super::regions::{Regions, Rights};
use super::tables::Slots;
use super::{checked, last, set_nonblocking, zeroed};
use crate::device::{Capabilities, DeviceInfo, PortInfo};
use crate::error::RdmaError;
use crate::event::AsyncEvent;
use crate::work::{Access, Completed, ExposureId, Memory, NicConfig, NicCounts, QueuePairId, Segment};

/// Bytes of a small header slot and of a large one; how many of each fit the header buffer of 1 MiB.
pub(super) const SMALL_HEAD_BYTES: usize = 512;
const SMALL_HEADS: usize = 1024;
const LARGE_HEAD_BYTES: usize = crate::work::HEAD_BYTES_MAX;
const LARGE_HEADS: usize = 128;
const HEADS_BYTES: usize = SMALL_HEADS * SMALL_HEAD_BYTES + LARGE_HEADS * LARGE_HEAD_BYTES;

/// What soft-RoCE tells as its vendor.
const RXE_VENDOR: u32 = 0xff_ffff;

/// One operation in flight.
pub(super) struct Operation {
    pub(super) queue_pair: u64,
    pub(super) tag: u64,
    pub(super) memory: Memory,
    pub(super) head: Option<usize>,
    /// An exposure whose window this ends.
    pub(super) conceals: Option<u64>,
}

pub(super) struct QueuePair {
    pub(super) qp: *mut ffi::ibv_qp,
    /// Set where the provider has extended posting.
    pub(super) extended: *mut ffi::ibv_qp_ex,
    /// Names of operations, in the order posted.
    pub(super) in_flight: VecDeque<u64>,
    /// Posted since the last one that asked for a completion; whether one of them holds memory.
    pub(super) unsignalled: u32,
    pub(super) unsignalled_memory: bool,
    pub(super) inline_bytes: usize,
    /// Receives of its own, where there is no shared queue.
    pub(super) receives: u32,
    pub(super) is_failed: bool,
}

/// A buffer that the device may receive into.
pub(super) struct Receive {
    pub(super) buffer: Buffer,
    /// Where there is no shared queue.
    pub(super) queue_pair: Option<u64>,
}

/// Memory that a peer may touch.
pub(super) struct Exposure {
    pub(super) memory: SharedBuffer,
    pub(super) access: Access,
    pub(super) queue_pair: u64,
    pub(super) key: u32,
    pub(super) window: Option<*mut ffi::ibv_mw>,
    /// The bind has been posted.
    pub(super) is_bound: bool,
}

/// One device, open for one machine. One thread.
pub struct Nic {
    /// `None` once it is closed; then there is nothing else either.
    pub(super) context: Option<Arc<Context>>,
    pub(super) pd: *mut ffi::ibv_pd,
    pub(super) channel: *mut ffi::ibv_comp_channel,
    pub(super) cq: *mut ffi::ibv_cq,
    /// Set where the provider has extended polling.
    pub(super) cq_extended: *mut ffi::ibv_cq_ex,
    pub(super) srq: *mut ffi::ibv_srq,
    pub(super) regions: Regions,
    pub(super) queue_pairs: Slots<QueuePair>,
    pub(super) by_number: BTreeMap<u32, u64>,
    pub(super) operations: Slots<Operation>,
    pub(super) receives: Slots<Receive>,
    pub(super) shared_receives: u32,
    pub(super) exposures: Slots<Exposure>,
    pub(super) by_key: BTreeMap<u32, u64>,
    free_windows: Vec<*mut ffi::ibv_mw>,
    window_count: u32,
    pub(super) heads: Option<Buffer>,
    pub(super) free_heads: [Vec<usize>; 2],
    /// Completions of operations that ended with their queue pair.
    pub(super) ready: VecDeque<Completed>,
    pub(super) counts: NicCounts,
    pub(super) config: NicConfig,
    info: DeviceInfo,
    completions: u32,
    /// rxe's `next_poll` on an empty queue has already done what `end_poll` does (rdma-core 44), so that both together skip an
    /// entry: there each entry is started and ended by itself, which is right everywhere and only slower.
    /// And its `wr_set_*_list` add up the first part's length for each part: batches with such a send go as chains there.
    pub(super) is_rxe: bool,
    /// False once a destruction failed in a way that leaves the device in doubt: then buffers are never released.
    may_release: bool,
}

impl Nic {
    pub(super) fn new(
        context: Arc<Context>,
        mut info: DeviceInfo,
        config: NicConfig,
    ) -> Result<Nic, RdmaError> {
        // SAFETY: an open context, which the Nic keeps.
        let pd = unsafe { ffi::ibv_alloc_pd(context.0) };
        if pd.is_null() {
            return Err(null("ibv_alloc_pd"));
        }
        let regions = Regions::new(pd, info.capabilities.windows);
        let is_rxe = info.vendor == RXE_VENDOR;
        info.capabilities.shared_receive_queue &= !config.without.shared_receive_queue;
        // From here on `Drop` ends what has been made, whatever fails below.
        let mut nic = Nic {
            context: Some(context),
            pd,
            channel: ptr::null_mut(),
            cq: ptr::null_mut(),
            cq_extended: ptr::null_mut(),
            srq: ptr::null_mut(),
            regions,
            queue_pairs: Slots::new(),
            by_number: BTreeMap::new(),
            operations: Slots::new(),
            receives: Slots::new(),
            shared_receives: 0,
            exposures: Slots::new(),
            by_key: BTreeMap::new(),
            free_windows: Vec::new(),
            window_count: 0,
            heads: None,
            free_heads: [Vec::new(), Vec::new()],
            ready: VecDeque::new(),
            counts: NicCounts::default(),
            config,
            info,
            completions: 0,
            is_rxe,
            may_release: true,
        };
        nic.open_queues()?;
        nic.open_heads()?;
        Ok(nic)
    }

    /// The open device; null once it is closed, and nobody gets there then.
    fn context_ptr(&self) -> *mut ffi::ibv_context {
        self.context.as_ref().map_or(ptr::null_mut(), |context| context.0)
    }

    fn open_queues(&mut self) -> Result<(), RdmaError> {
        // SAFETY: an open context.
        self.channel = unsafe { ffi::ibv_create_comp_channel(self.context_ptr()) };
        if self.channel.is_null() {
            return Err(last("ibv_create_comp_channel"));
        }
        // SAFETY: the channel just made; its descriptor is a plain number in it.
        set_nonblocking(unsafe { (*self.channel).fd })?;
        // SAFETY: an open context; its descriptor is a plain number in it.
        set_nonblocking(unsafe { (*self.context_ptr()).async_fd })?;
        let config = &self.config;
        let wanted = config
            .queue_pairs_max
            .saturating_mul(config.sends_per_queue_pair)
            .saturating_add(config.receives.max(config.queue_pairs_max * config.receives_without_shared));
        self.completions = wanted.min(self.info.completions_max).min(1 << 20);
        if self.info.capabilities.extended_completion_queue {
            // SAFETY: a C structure of numbers and pointers.
            let mut attributes: ffi::ibv_cq_init_attr_ex = unsafe { zeroed() };
            attributes.cqe = self.completions;
            attributes.channel = self.channel;
            attributes.wc_flags = u64::from(
                (ffi::ibv_create_cq_wc_flags::IBV_WC_EX_WITH_BYTE_LEN
                    | ffi::ibv_create_cq_wc_flags::IBV_WC_EX_WITH_IMM
                    | ffi::ibv_create_cq_wc_flags::IBV_WC_EX_WITH_QP_NUM)
                    .0,
            );
            // SAFETY: an open context and channel; reads one structure of ours.
            self.cq_extended = unsafe { ffi::ibv_create_cq_ex(self.context_ptr(), &mut attributes) };
        }
        self.info.capabilities.extended_completion_queue = !self.cq_extended.is_null();
        if self.cq_extended.is_null() {
            let entries = libc::c_int::try_from(self.completions).unwrap_or(libc::c_int::MAX);
            // SAFETY: an open context and channel; vector 0 is always there.
            self.cq =
                unsafe { ffi::ibv_create_cq(self.context_ptr(), entries, ptr::null_mut(), self.channel, 0) };
        } else {
            // SAFETY: a live extended queue; the result is the same object by its older face.
            self.cq = unsafe { ffi::ibv_cq_ex_to_cq(self.cq_extended) };
        }
        if self.cq.is_null() {
            return Err(last("ibv_create_cq"));
        }
        if self.info.capabilities.shared_receive_queue {
            // SAFETY: a C structure of numbers and pointers.
            let mut attributes: ffi::ibv_srq_init_attr = unsafe { zeroed() };
            attributes.attr.max_wr = self.config.receives;
            attributes.attr.max_sge = 1;
            // SAFETY: a live protection domain; reads and writes one structure of ours.
            self.srq = unsafe { ffi::ibv_create_srq(self.pd, &mut attributes) };
            self.info.capabilities.shared_receive_queue = !self.srq.is_null();
        }
        Ok(())
    }

    fn open_heads(&mut self) -> Result<(), RdmaError> {
        let arena = self.config.arena.clone();
        self.register(&arena)?;
        let mut heads = arena.try_alloc(HEADS_BYTES).ok_or(RdmaError::NotRegistered)?;
        heads.fill(0);
        self.heads = Some(heads);
        self.free_heads[0] = (0..SMALL_HEADS).map(|slot| slot * SMALL_HEAD_BYTES).rev().collect();
        let first = SMALL_HEADS * SMALL_HEAD_BYTES;
        self.free_heads[1] = (0..LARGE_HEADS).map(|slot| first + slot * LARGE_HEAD_BYTES).rev().collect();
        Ok(())
    }

    pub(super) fn give_head_back(&mut self, offset: usize) {
        let class = usize::from(offset >= SMALL_HEADS * SMALL_HEAD_BYTES);
        self.free_heads[class].push(offset);
    }

    /// The device, with the abilities that were found in fact.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// False if all its ports are down now: a cable is out, a link is set down. A system call.
    #[must_use]
    pub fn has_active_port(&self) -> bool {
        let Some(context) = &self.context else { return false };
        let is_active = |port: &PortInfo| {
            // A port that cannot be asked is taken for one that is up: whoever uses it is told.
            query_port(context, port.number).is_none_or(|found| found.state == PORT_ACTIVE)
        };
        self.info.ports.iter().any(is_active)
    }

    /// What it can do.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.info.capabilities
    }

    /// Counts so far.
    #[must_use]
    pub fn counts(&self) -> NicCounts {
        self.counts
    }

    /// Readable after [`Nic::arm`] when something completed.
    #[must_use]
    pub fn completion_fd(&self) -> i32 {
        // SAFETY: a live channel; its descriptor is a plain number in it.
        unsafe { (*self.channel).fd }
    }

    /// Readable when there is an [`AsyncEvent`].
    #[must_use]
    pub fn async_fd(&self) -> i32 {
        // SAFETY: a live context; its descriptor is a plain number in it.
        unsafe { (*self.context_ptr()).async_fd }
    }

    /// Makes an arena's buffers usable here. Its memory is pinned piece by piece, when first used; the first piece now.
    ///
    /// # Errors
    /// [`RdmaError::Memlock`] says which limit to raise.
    pub fn register(&mut self, arena: &Arena) -> Result<(), RdmaError> {
        if self.is_closed() {
            return Err(RdmaError::Gone { what: "the device" });
        }
        self.regions.add(arena, &mut self.counts)
    }

    // ---- queue pairs

    /// A queue pair in its first state, with nothing posted.
    ///
    /// # Errors
    /// The limit of the configuration or of the device.
    pub fn create_queue_pair(&mut self) -> Result<QueuePairId, RdmaError> {
        if self.is_closed() {
            return Err(RdmaError::Gone { what: "the device" });
        }
        let per_pair = self.config.sends_per_queue_pair
            + if self.srq.is_null() { self.config.receives_without_shared } else { 0 };
        let shared = if self.srq.is_null() { 0 } else { self.config.receives };
        let others = u32::try_from(self.queue_pairs.len()).unwrap_or(u32::MAX);
        if per_pair.saturating_mul(others.saturating_add(1)).saturating_add(shared) > self.completions {
            return Err(RdmaError::Unsupported {
                device: self.info.name.clone(),
                what: "room in its completion queue for one more connection",
            });
        }
        let mut inline_bytes = if self.config.without.inline { 0 } else { self.config.inline_bytes };
        let mut tried_extended = self.info.capabilities.extended_queue_pair;
        let (qp, extended, inline_bytes) = loop {
            match self.try_create(inline_bytes, tried_extended) {
                Ok(found) => break found,
                Err(_) if tried_extended && self.queue_pairs.len() == 0 => tried_extended = false,
                // A device that cannot send so much inline says EINVAL and not how much it can.
                Err(_) if inline_bytes > 0 => {
                    inline_bytes = 0;
                    tried_extended = self.info.capabilities.extended_queue_pair;
                }
                Err(error) => return Err(error),
            }
        };
        self.info.capabilities.extended_queue_pair = !extended.is_null();
        self.info.capabilities.inline_bytes = u32::try_from(inline_bytes).unwrap_or(0);
        // SAFETY: the queue pair just made.
        let number = unsafe { (*qp).qp_num };
        let name = self.queue_pairs.insert(QueuePair {
            qp,
            extended,
            in_flight: VecDeque::new(),
            unsignalled: 0,
            unsignalled_memory: false,
            inline_bytes,
            receives: 0,
            is_failed: false,
        });
        self.by_number.insert(number, name);
        Ok(QueuePairId(name))
    }

    fn try_create(
        &mut self,
        inline_bytes: u32,
        extended: bool,
    ) -> Result<(*mut ffi::ibv_qp, *mut ffi::ibv_qp_ex, usize), RdmaError> {
        let max_recv_wr = if self.srq.is_null() { self.config.receives_without_shared } else { 0 };
        let cap = ffi::ibv_qp_cap {
            max_send_wr: self.config.sends_per_queue_pair,
            max_recv_wr,
            max_send_sge: 2,
            max_recv_sge: if self.srq.is_null() { 1 } else { 0 },
            max_inline_data: inline_bytes,
        };
        // What was asked is what we use, where the provider does not say what it gave.
        let without = self.config.without.inline;
        let given = |cap: &ffi::ibv_qp_cap| if without { 0 } else { cap.max_inline_data.min(1024) as usize };
        if extended {
            // SAFETY: a C structure of numbers and pointers.
            let mut attributes: ffi::ibv_qp_init_attr_ex = unsafe { zeroed() };
            attributes.send_cq = self.cq;
            attributes.recv_cq = self.cq;
            attributes.srq = self.srq;
            attributes.cap = cap;
            attributes.qp_type = ffi::ibv_qp_type::IBV_QPT_RC;
            attributes.pd = self.pd;
            attributes.comp_mask = (ffi::ibv_qp_init_attr_mask::IBV_QP_INIT_ATTR_PD
                | ffi::ibv_qp_init_attr_mask::IBV_QP_INIT_ATTR_SEND_OPS_FLAGS)
                .0;
            use ffi::ibv_qp_create_send_ops_flags as Ops;
            let mut operations =
                Ops::IBV_QP_EX_WITH_SEND | Ops::IBV_QP_EX_WITH_RDMA_READ | Ops::IBV_QP_EX_WITH_RDMA_WRITE;
            if self.info.capabilities.windows {
                operations |= Ops::IBV_QP_EX_WITH_BIND_MW;
                operations |= Ops::IBV_QP_EX_WITH_LOCAL_INV;
                operations |= Ops::IBV_QP_EX_WITH_SEND_WITH_INV;
            }
            attributes.send_ops_flags = u64::from(operations.0);
            // SAFETY: an open context; the queues and the domain named in the structure are live and ours.
            let qp = unsafe { ffi::ibv_create_qp_ex(self.context_ptr(), &mut attributes) };
            if qp.is_null() {
                return Err(last("ibv_create_qp_ex"));
            }
            // SAFETY: made with send_ops_flags, as the call asks.
            let face = unsafe { ffi::ibv_qp_to_qp_ex(qp) };
            return Ok((qp, face, given(&attributes.cap)));
        }
        // SAFETY: a C structure of numbers and pointers.
        let mut attributes: ffi::ibv_qp_init_attr = unsafe { zeroed() };
        attributes.send_cq = self.cq;
        attributes.recv_cq = self.cq;
        attributes.srq = self.srq;
        attributes.cap = cap;
        attributes.qp_type = ffi::ibv_qp_type::IBV_QPT_RC;
        // SAFETY: a live domain; the queues named in the structure are live and ours.
        let qp = unsafe { ffi::ibv_create_qp(self.pd, &mut attributes) };
        if qp.is_null() {
            return Err(last("ibv_create_qp"));
        }
        Ok((qp, ptr::null_mut(), given(&attributes.cap)))
    }

    /// Its number on the wire.
    pub(super) fn number(&self, id: QueuePairId) -> Option<u32> {
        // SAFETY: queue pairs in the table are live.
        self.queue_pairs.get(id.0).map(|pair| unsafe { (*pair.qp).qp_num })
    }

    /// Operations in flight.
    #[must_use]
    pub fn in_flight(&self, id: QueuePairId) -> usize {
        self.queue_pairs.get(id.0).map_or(0, |pair| pair.in_flight.len())
    }

    /// True if it was put into its error state, by us or by an event.
    #[must_use]
    pub fn is_failed(&self, id: QueuePairId) -> bool {
        self.queue_pairs.get(id.0).is_none_or(|pair| pair.is_failed)
    }

    /// Puts a queue pair into its error state: what is in flight completes as flushed, and the peer's operations fail.
    pub fn fail(&mut self, id: QueuePairId) {
        let Some(pair) = self.queue_pairs.get_mut(id.0) else { return };
        pair.is_failed = true;
        // SAFETY: a C structure of numbers.
        let mut attributes: ffi::ibv_qp_attr = unsafe { zeroed() };
        attributes.qp_state = ffi::ibv_qp_state::IBV_QPS_ERR;
        let mask = libc::c_int::try_from(ffi::ibv_qp_attr_mask::IBV_QP_STATE.0).unwrap_or(1);
        // SAFETY: a live queue pair; reads one structure of ours. A refusal means that the device is gone, which is error enough.
        let _ = unsafe { ffi::ibv_modify_qp(pair.qp, &mut attributes, mask) };
    }

    /// Destroys a queue pair. What it held comes out of [`Nic::poll`] as flushed, its exposures as concealed: no hardware
    /// touches any of it after this call.
    pub fn destroy_queue_pair(&mut self, id: QueuePairId) {
        self.fail(id);
        let Some(pair) = self.queue_pairs.get(id.0) else { return };
        let (qp, number) = (pair.qp, self.number(id));
        // Windows first: a provider may count them as users of the queue pair.
        let exposed: Vec<u64> = self
            .exposures
            .iter()
            .filter(|(_, exposure)| exposure.queue_pair == id.0)
            .map(|(name, _)| name)
            .collect();
        for name in &exposed {
            if let Some(window) = self.exposures.get_mut(*name).and_then(|exposure| exposure.window.take()) {
                self.destroy_window(window);
            }
        }
        // SAFETY: live until here, destroyed once: the entry leaves the table below. Events of it were acknowledged when read.
        let answer = unsafe { ffi::ibv_destroy_qp(qp) };
        self.judge_destruction(answer);
        // Completions that are there already still name it.
        let mut ready = std::mem::take(&mut self.ready);
        while self.poll_queue(64, &mut ready) > 0 {}
        if let Some(pair) = self.queue_pairs.remove(id.0) {
            for name in pair.in_flight {
                self.end_operation(name, Err(crate::CompletionError::Flushed), &mut ready);
            }
        }
        if let Some(number) = number {
            self.by_number.remove(&number);
        }
        let own: Vec<u64> = self
            .receives
            .iter()
            .filter(|(_, receive)| receive.queue_pair == Some(id.0))
            .map(|(name, _)| name)
            .collect();
        for name in own {
            let receive = self.receives.remove(name);
            self.release(receive);
        }
        // What was polled here may have ended exposures of other queue pairs.
        ready.append(&mut self.ready);
        self.ready = ready;
        for name in exposed {
            self.end_exposure(name);
        }
    }

    /// A destruction that failed though the device lives leaves its memory in doubt for ever.
    fn judge_destruction(&mut self, answer: libc::c_int) {
        let code =
            if answer == -1 { std::io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { answer };
        // EIO and ENODEV: the device has been taken away, and with it every transfer.
        if code != 0 && code != libc::EIO && code != libc::ENODEV {
            self.may_release = false;
        }
    }

    /// Drops memory, or keeps it for ever if the hardware may still know it.
    pub(super) fn release<T>(&self, memory: T) {
        if self.may_release {
            drop(memory);
        } else {
            std::mem::forget(memory);
        }
    }

    // ---- exposing memory

    /// Makes memory accessible to the peer of one queue pair, until it is concealed. With memory windows the key works once
    /// [`crate::Work::Bind`] was posted there; without, it is the pool key of all exposed pieces and works at once.
    ///
    /// The memory must not be read (nor, for `Access::Write`, its bytes relied on) before it is concealed.
    ///
    /// # Errors
    /// No window left or no memory to pin: try again later.
    pub fn expose(
        &mut self,
        queue_pair: QueuePairId,
        memory: SharedBuffer,
        access: Access,
    ) -> Result<(ExposureId, Segment), RdmaError> {
        if self.queue_pairs.get(queue_pair.0).is_none_or(|pair| pair.is_failed) {
            return Err(RdmaError::Gone { what: "the queue pair" });
        }
        let address = memory.as_ptr().addr();
        let bytes = u32::try_from(memory.len()).unwrap_or(u32::MAX);
        let (key, window) = if self.info.capabilities.windows {
            self.regions.region(address, Rights::Local, &mut self.counts)?;
            let window = self.take_window()?;
            // SAFETY: a live window of ours; its present key is a plain number in it, which `post` keeps. A bind with the key's
            // tag moved on is what type 2 windows ask for (man ibv_bind_mw(3)).
            let key = unsafe { ffi::ibv_inc_rkey((*window).rkey) };
            (key, Some(window))
        } else {
            let region = self.regions.region(address, Rights::Remote, &mut self.counts)?;
            // SAFETY: a live region; its key is a plain number in it.
            (unsafe { (*region).rkey }, None)
        };
        let has_window = window.is_some();
        let exposure = Exposure { memory, access, queue_pair: queue_pair.0, key, window, is_bound: false };
        let name = self.exposures.insert(exposure);
        if has_window {
            self.by_key.insert(key, name);
        }
        Ok((ExposureId(name), Segment { address: address as u64, key, bytes }))
    }

    /// True if an exposure needs [`crate::Work::Bind`] and, at its end, [`crate::Work::Invalidate`].
    #[must_use]
    pub fn uses_windows(&self) -> bool {
        self.info.capabilities.windows
    }

    /// Ends an exposure by a pool key, or one whose window was never bound; its memory comes back. The caller answers for the peer: it
    /// must have said that it is done, for the key itself lives on. `None` for a bound window (invalidate it) and for
    /// what has ended.
    pub fn conceal(&mut self, id: ExposureId) -> Option<SharedBuffer> {
        let exposure = self.exposures.get(id.0)?;
        if exposure.window.is_some() && exposure.is_bound {
            return None;
        }
        let exposure = self.exposures.remove(id.0)?;
        if let Some(window) = exposure.window {
            self.by_key.remove(&exposure.key);
            self.free_windows.push(window);
        }
        Some(exposure.memory)
    }

    /// True until an exposure has ended.
    #[must_use]
    pub fn is_exposed(&self, id: ExposureId) -> bool {
        self.exposures.get(id.0).is_some()
    }

    /// The window is invalid, or the queue pair is gone: the memory is ours again.
    pub(super) fn end_exposure(&mut self, name: u64) {
        let Some(exposure) = self.exposures.remove(name) else { return };
        if let Some(window) = exposure.window {
            self.free_windows.push(window);
        }
        self.by_key.remove(&exposure.key);
        if self.may_release {
            self.ready
                .push_back(Completed::Concealed { exposure: ExposureId(name), memory: exposure.memory });
        } else {
            std::mem::forget(exposure.memory);
        }
    }

    fn take_window(&mut self) -> Result<*mut ffi::ibv_mw, RdmaError> {
        if let Some(window) = self.free_windows.pop() {
            return Ok(window);
        }
        if self.window_count >= self.config.windows_max {
            return Err(RdmaError::Unsupported {
                device: self.info.name.clone(),
                what: "memory window left",
            });
        }
        // SAFETY: a live protection domain.
        let window = unsafe { ffi::ibv_alloc_mw(self.pd, ffi::ibv_mw_type::IBV_MW_TYPE_2) };
        if window.is_null() {
            return Err(last("ibv_alloc_mw"));
        }
        self.window_count += 1;
        Ok(window)
    }

    fn destroy_window(&mut self, window: *mut ffi::ibv_mw) {
        // SAFETY: allocated by us, ended once: it has just left the table.
        let answer = unsafe { ffi::ibv_dealloc_mw(window) };
        self.window_count -= 1;
        self.judge_destruction(answer);
    }

    /// Gives the device back: every queue pair, queue and region is gone when this returns, so that the kernel may remove it. What was
    /// in flight comes out of [`Nic::poll`] as flushed. Nothing can be made on it any more.
    pub fn close(&mut self) {
        let Some(context) = self.context.take() else { return };
        let pairs: Vec<u64> = self.queue_pairs.iter().map(|(name, _)| name).collect();
        for name in pairs {
            self.destroy_queue_pair(QueuePairId(name));
        }
        for window in std::mem::take(&mut self.free_windows) {
            self.destroy_window(window);
        }
        if !self.srq.is_null() {
            // SAFETY: live, destroyed once; its queue pairs are gone.
            let answer = unsafe { ffi::ibv_destroy_srq(std::mem::replace(&mut self.srq, ptr::null_mut())) };
            self.judge_destruction(answer);
        }
        self.cq_extended = ptr::null_mut();
        if !self.cq.is_null() {
            // SAFETY: live, destroyed once; its queue pairs are gone and its signs acknowledged.
            let answer = unsafe { ffi::ibv_destroy_cq(std::mem::replace(&mut self.cq, ptr::null_mut())) };
            self.judge_destruction(answer);
        }
        if !self.channel.is_null() {
            // SAFETY: live, destroyed once; its queue is gone.
            unsafe { ffi::ibv_destroy_comp_channel(std::mem::replace(&mut self.channel, ptr::null_mut())) };
        }
        self.free_heads = [Vec::new(), Vec::new()];
        let receives = self.receives.iter().map(|(name, _)| name).collect::<Vec<_>>();
        let receives: Vec<_> = receives.into_iter().map(|name| self.receives.remove(name)).collect();
        self.shared_receives = 0;
        let heads = self.heads.take();
        if self.may_release {
            self.regions.deregister_all();
            // SAFETY: live, ended once; nothing made on it is left.
            unsafe { ffi::ibv_dealloc_pd(self.pd) };
            drop((receives, heads, context));
        } else {
            // In doubt: the device may still know memory of ours. Better to lose it than to hand it out.
            std::mem::forget((receives, heads, context));
        }
    }

    /// True after [`Nic::close`].
    pub(super) fn is_closed(&self) -> bool {
        self.context.is_none()
    }

    // ---- sleeping and events

    /// Asks for a sign at [`Nic::completion_fd`] when the next completion comes; poll once more before sleeping.
    pub fn arm(&mut self) {
        if self.is_closed() {
            return;
        }
        self.counts.syscalls += 1;
        // SAFETY: a live completion queue. It cannot fail for one.
        let _ = unsafe { ffi::ibv_req_notify_cq(self.cq, 0) };
    }

    /// Takes all signs from the channel; without this it stays readable.
    pub fn drain_channel(&mut self) {
        if self.is_closed() {
            return;
        }
        let mut signs = 0;
        loop {
            let (mut cq, mut context) = (ptr::null_mut(), ptr::null_mut());
            self.counts.syscalls += 1;
            // SAFETY: a live channel, nonblocking; writes two pointers of ours.
            let answer = unsafe { ffi::ibv_get_cq_event(self.channel, &mut cq, &mut context) };
            if answer != 0 {
                break;
            }
            signs += 1;
        }
        if signs > 0 {
            // SAFETY: a live queue, the only one of this channel; as many as were taken.
            unsafe { ffi::ibv_ack_cq_events(self.cq, signs) };
        }
    }

    /// The next event of the device.
    pub fn poll_async(&mut self) -> Option<AsyncEvent> {
        if self.is_closed() {
            return None;
        }
        // SAFETY: a C structure of numbers and pointers, except its kind, which is read as a number below and never as the enum.
        let mut event: std::mem::MaybeUninit<ffi::ibv_async_event> = std::mem::MaybeUninit::zeroed();
        self.counts.syscalls += 1;
        // SAFETY: an open context, nonblocking; writes one structure of ours.
        let answer = unsafe { ffi::ibv_get_async_event(self.context_ptr(), event.as_mut_ptr()) };
        if answer != 0 {
            return None;
        }
        let raw = event.as_mut_ptr();
        // SAFETY: the call filled it. Read as a number, because a newer library may give kinds that the enum lacks.
        let kind = unsafe { ptr::addr_of!((*raw).event_type).cast::<u32>().read() };
        // SAFETY: all members of the union are plain; which one counts depends on the kind.
        let (qp, port) = unsafe { ((*raw).element.qp, (*raw).element.port_num) };
        // SAFETY: an event from ibv_get_async_event, acknowledged once. Before anything is destroyed, which would wait for it.
        unsafe { ffi::ibv_ack_async_event(raw) };
        let pair = self.queue_pairs.iter().find(|(_, pair)| pair.qp == qp).map(|(name, _)| name);
        let port = u8::try_from(port).unwrap_or(0);
        // Numbers of enum ibv_event_type, verbs.h.
        Some(match (kind, pair) {
            (0 | 14, _) => AsyncEvent::QueueBroken,
            (1..=3, Some(name)) => {
                if let Some(pair) = self.queue_pairs.get_mut(name) {
                    pair.is_failed = true;
                }
                AsyncEvent::QueuePairFatal(QueuePairId(name))
            }
            (8, _) => AsyncEvent::DeviceFatal,
            (9, _) => AsyncEvent::PortUp(port),
            (10, _) => AsyncEvent::PortDown(port),
            (15, _) => AsyncEvent::ReceivesLow,
            (16, Some(name)) => AsyncEvent::LastReceive(QueuePairId(name)),
            (other, _) => AsyncEvent::Other(other),
        })
    }

    pub(super) fn queue_pair_ptr(&self, id: QueuePairId) -> Result<*mut ffi::ibv_qp, RdmaError> {
        self.queue_pairs.get(id.0).map(|pair| pair.qp).ok_or(RdmaError::Gone { what: "the queue pair" })
    }

    pub(super) fn has_shared_receives(&self) -> bool {
        !self.srq.is_null()
    }

    /// RDMA READs that one queue pair may have in flight.
    pub(super) fn reads_max(&self) -> u8 {
        u8::try_from(self.info.reads_max.clamp(1, 16)).unwrap_or(16)
    }

    /// Changes a queue pair's state with what rdma-cm says about the way to the peer.
    pub(super) fn modify(
        &mut self,
        id: QueuePairId,
        attributes: &mut ffi::ibv_qp_attr,
        mask: libc::c_int,
    ) -> Result<(), RdmaError> {
        let qp = self.queue_pair_ptr(id)?;
        // SAFETY: a live queue pair; reads one structure of ours.
        checked("ibv_modify_qp", unsafe { ffi::ibv_modify_qp(qp, attributes, mask) })
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        self.close();
    }
}

/// What a memory window may do.
pub(super) fn window_access(access: Access) -> libc::c_uint {
    match access {
        Access::Read => ffi::ibv_access_flags::IBV_ACCESS_REMOTE_READ.0,
        Access::Write => ffi::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0,
    }
}
