//! Posting: a batch is prepared, told to the device with one doorbell, and remembered until it completes.
//!
//! Signalling: a completion is asked for at every 16th operation, at operations whose end somebody waits for, and at the end of a batch
//! that leaves memory held or 8 operations unsignalled. So memory is never held by an operation whose end nobody will hear.

use std::collections::VecDeque;
use std::io;
use std::ptr;

use rdma_mummy_sys as ffi;
use runtime_sys::Buffer;
use smallvec::SmallVec;

use super::nic::{Nic, Operation, Receive, SMALL_HEAD_BYTES, window_access};
use super::regions::Rights;
use super::zeroed;
use crate::error::{CompletionError, PostError, RdmaError};
use crate::work::{Completed, HEAD_BYTES_MAX, Memory, QueuePairId, Remote, Work};

/// Operations of one doorbell.
const BATCH_MAX: usize = 32;
const SIGNAL_EVERY: u32 = 16;
const SIGNAL_AT_BATCH_END: u32 = 8;
/// Marks the work request ids of receives.
pub(super) const RECEIVE: u64 = 1 << 63;

enum Kind {
    Send { invalidates: Option<u32> },
    Read(Remote),
    Write(Remote),
    Bind { window: *mut ffi::ibv_mw, key: u32, info: ffi::ibv_mw_bind_info },
    Invalidate { key: u32 },
}

struct Prepared {
    name: u64,
    kind: Kind,
    parts: SmallVec<[ffi::ibv_sge; 2]>,
    is_inline: bool,
    flags: u32,
}

impl Nic {
    /// Posts from the front of `works`, each with a tag, until it is empty or the queue is full; one doorbell per 32. Answers
    /// how many were posted; the rest stays. What a failing device did not take comes out of [`Nic::poll`] as flushed.
    ///
    /// # Errors
    /// [`PostError::Full`] if not even one could be posted; [`PostError::Refused`] when the queue pair is of no more use.
    pub fn post(&mut self, id: QueuePairId, works: &mut VecDeque<(u64, Work)>) -> Result<usize, PostError> {
        let mut posted = 0;
        while !works.is_empty() {
            match self.post_batch(id, works) {
                Ok(0) => break,
                Ok(count) => posted += count,
                Err(error) => return Err(error),
            }
        }
        if posted == 0 && !works.is_empty() { Err(PostError::Full) } else { Ok(posted) }
    }

    fn post_batch(&mut self, id: QueuePairId, works: &mut VecDeque<(u64, Work)>) -> Result<usize, PostError> {
        let most = self.config.sends_per_queue_pair as usize;
        let pair = self.queue_pairs.get(id.0).filter(|pair| !pair.is_failed).ok_or(PostError::Gone)?;
        let (room, inline_bytes) = (most.saturating_sub(pair.in_flight.len()), pair.inline_bytes);
        let mut batch: SmallVec<[Prepared; BATCH_MAX]> = SmallVec::new();
        // The bytes of inline heads have to lie still until the doorbell.
        let mut heads: SmallVec<[SmallVec<[u8; 128]>; BATCH_MAX]> = SmallVec::new();
        let mut failure = None;
        while batch.len() < room.min(BATCH_MAX) {
            let Some((tag, work)) = works.pop_front() else { break };
            if matches!(&work, Work::Invalidate(exposure) if self.exposures.get(exposure.0).is_none()) {
                // The peer's message ended it while this waited: nothing is left to do.
                let done = Completed::Work { queue_pair: id, tag, memory: Memory::None, result: Ok(()) };
                self.ready.push_back(done);
                continue;
            }
            match self.prepare(id, tag, work, inline_bytes, &mut heads) {
                Ok(prepared) => batch.push(prepared),
                Err((work, error)) => {
                    works.push_front((tag, work));
                    failure = error;
                    break;
                }
            }
        }
        if batch.is_empty() {
            return failure.map_or(Ok(0), |error| Err(error.into()));
        }
        self.choose_signals(id, &mut batch);
        let count = batch.len();
        let Some(pair) = self.queue_pairs.get_mut(id.0) else { return Err(PostError::Gone) };
        pair.in_flight.extend(batch.iter().map(|prepared| prepared.name));
        let is_chain =
            pair.extended.is_null() || self.is_rxe && batch.iter().any(|prepared| prepared.parts.len() > 1);
        let answer =
            if is_chain { post_chain(pair.qp, &batch) } else { post_extended(pair.extended, &batch) };
        drop(heads);
        for prepared in &batch {
            if let Kind::Bind { window, key, .. } = prepared.kind {
                // Providers keep the key of a type 1 window; that of type 2 is the caller's, and rxe names the window of the next
                // bind by it.
                // SAFETY: a live window of ours; a plain number in it that only we write.
                unsafe { (*window).rkey = key };
            }
        }
        self.counts.doorbells += 1;
        self.counts.work_requests += count as u64;
        if let Err((taken, source)) = answer {
            self.take_back(id, &batch[taken..]);
            // A queue pair that refuses what fits is broken: its state is unknown.
            self.fail(id);
            return Err(PostError::Refused { source });
        }
        Ok(count)
    }

    /// Remembers an operation and says what to tell the device; gives the work back where that must wait.
    #[allow(clippy::result_large_err)] // the error is the work itself, given back
    fn prepare(
        &mut self,
        id: QueuePairId,
        tag: u64,
        work: Work,
        inline_bytes: usize,
        heads: &mut SmallVec<[SmallVec<[u8; 128]>; BATCH_MAX]>,
    ) -> Result<Prepared, (Work, Option<RdmaError>)> {
        let mut operation =
            Operation { queue_pair: id.0, tag, memory: Memory::None, head: None, conceals: None };
        let mut parts = SmallVec::new();
        let mut is_inline = false;
        let kind = match work {
            Work::Send { head, payload, invalidates } => {
                assert!(head.len() <= HEAD_BYTES_MAX, "a head of {} bytes", head.len());
                let payload_bytes = payload.as_ref().map_or(0, |bytes| bytes.len());
                is_inline = head.len() + payload_bytes <= inline_bytes;
                if is_inline {
                    // One piece: several inline pieces are a corner where providers differ.
                    let mut bytes = head;
                    if let Some(payload) = &payload {
                        bytes.extend_from_slice(payload);
                    }
                    self.counts.inline_bytes += bytes.len() as u64;
                    heads.push(bytes);
                    // A small vector may hold its bytes in itself, so the address is taken where it lies now.
                    let last = heads.last().map_or(&[][..], |bytes| &bytes[..]);
                    parts.push(part(last.as_ptr().expose_provenance(), last.len(), 0));
                } else {
                    let key = match payload.as_ref().map(|bytes| self.local_key(bytes.as_ptr().addr())) {
                        None => 0,
                        Some(Ok(key)) => key,
                        Some(Err(error)) => {
                            return Err((Work::Send { head, payload, invalidates }, Some(error)));
                        }
                    };
                    let Some(offset) = self.lay_head(&head) else {
                        return Err((Work::Send { head, payload, invalidates }, None));
                    };
                    operation.head = Some(offset);
                    let address = self.heads.as_ref().map_or(0, |heads| heads.as_ptr().addr()) + offset;
                    match self.local_key(address) {
                        Ok(key) => parts.push(part(address, head.len(), key)),
                        Err(error) => {
                            self.give_head_back(offset);
                            return Err((Work::Send { head, payload, invalidates }, Some(error)));
                        }
                    }
                    if let Some(payload) = &payload {
                        parts.push(part(payload.as_ptr().addr(), payload.len(), key));
                    }
                }
                if let Some(payload) = payload {
                    operation.memory = Memory::Shared(payload);
                }
                Kind::Send { invalidates }
            }
            Work::Read { mut into, from } => {
                match self.local_key(into.as_mut_ptr().addr()) {
                    Ok(key) => parts.push(part(into.as_mut_ptr().addr(), into.len(), key)),
                    Err(error) => return Err((Work::Read { into, from }, Some(error))),
                }
                operation.memory = Memory::Own(into);
                Kind::Read(from)
            }
            Work::Write { from, to } => {
                match self.local_key(from.as_ptr().addr()) {
                    Ok(key) => parts.push(part(from.as_ptr().addr(), from.len(), key)),
                    Err(error) => return Err((Work::Write { from, to }, Some(error))),
                }
                operation.memory = Memory::Shared(from);
                Kind::Write(to)
            }
            Work::Bind(exposure) => {
                let Some(found) = self.exposures.get(exposure.0) else {
                    return Err((Work::Bind(exposure), Some(RdmaError::Gone { what: "the exposure" })));
                };
                let (address, length, access) =
                    (found.memory.as_ptr().addr(), found.memory.len(), found.access);
                let (Some(window), key) = (found.window, found.key) else {
                    return Err((Work::Bind(exposure), Some(RdmaError::Gone { what: "the window" })));
                };
                let region = match self.regions.region(address, Rights::Local, &mut self.counts) {
                    Ok(region) => region,
                    Err(error) => return Err((Work::Bind(exposure), Some(error))),
                };
                if let Some(found) = self.exposures.get_mut(exposure.0) {
                    found.is_bound = true;
                }
                self.counts.binds += 1;
                let info = ffi::ibv_mw_bind_info {
                    mr: region,
                    addr: address as u64,
                    length: length as u64,
                    mw_access_flags: window_access(access),
                };
                Kind::Bind { window, key, info }
            }
            Work::Invalidate(exposure) => {
                let Some(found) = self.exposures.get(exposure.0) else {
                    return Err((Work::Invalidate(exposure), Some(RdmaError::Gone { what: "the exposure" })));
                };
                operation.conceals = Some(exposure.0);
                self.counts.invalidations += 1;
                Kind::Invalidate { key: found.key }
            }
        };
        let name = self.operations.insert(operation);
        Ok(Prepared { name, kind, parts, is_inline, flags: 0 })
    }

    pub(super) fn local_key(&mut self, address: usize) -> Result<u32, RdmaError> {
        let region = self.regions.region(address, Rights::Local, &mut self.counts)?;
        // SAFETY: a live region; its key is a plain number in it.
        Ok(unsafe { (*region).lkey })
    }

    /// Lays a head into a slot of registered memory; `None` while all are in use.
    fn lay_head(&mut self, head: &[u8]) -> Option<usize> {
        let class = usize::from(head.len() > SMALL_HEAD_BYTES);
        let offset = self.free_heads[class].pop()?;
        let heads = self.heads.as_mut()?;
        // The slot is free, so the device reads none of these bytes.
        heads[offset..offset + head.len()].copy_from_slice(head);
        self.counts.head_bytes += head.len() as u64;
        Some(offset)
    }

    fn choose_signals(&mut self, id: QueuePairId, batch: &mut [Prepared]) {
        let Some(pair) = self.queue_pairs.get_mut(id.0) else { return };
        let last = batch.len() - 1;
        for (index, prepared) in batch.iter_mut().enumerate() {
            if prepared.is_inline {
                prepared.flags |= ffi::ibv_send_flags::IBV_SEND_INLINE.0;
            }
            pair.unsignalled += 1;
            pair.unsignalled_memory |= !prepared.is_inline;
            let is_awaited = matches!(prepared.kind, Kind::Read(_) | Kind::Invalidate { .. });
            let is_last =
                index == last && (pair.unsignalled_memory || pair.unsignalled >= SIGNAL_AT_BATCH_END);
            if is_awaited || is_last || pair.unsignalled >= SIGNAL_EVERY {
                prepared.flags |= ffi::ibv_send_flags::IBV_SEND_SIGNALED.0;
                pair.unsignalled = 0;
                pair.unsignalled_memory = false;
                self.counts.signalled += 1;
            }
        }
    }

    /// What the device did not take completes as flushed.
    fn take_back(&mut self, id: QueuePairId, refused: &[Prepared]) {
        let mut ready = std::mem::take(&mut self.ready);
        for prepared in refused {
            if let Some(pair) = self.queue_pairs.get_mut(id.0) {
                pair.in_flight.retain(|name| *name != prepared.name);
            }
            self.end_operation(prepared.name, Err(CompletionError::Flushed), &mut ready);
        }
        self.ready = ready;
    }

    // ---- receives

    /// How many receives are missing: of the shared queue, or of one queue pair where there is none.
    #[must_use]
    pub fn receives_wanted(&self, id: Option<QueuePairId>) -> u32 {
        if self.is_closed() {
            return 0;
        }
        if self.has_shared_receives() {
            return self.config.receives.saturating_sub(self.shared_receives);
        }
        let Some(pair) = id.and_then(|id| self.queue_pairs.get(id.0)) else { return 0 };
        if pair.is_failed { 0 } else { self.config.receives_without_shared.saturating_sub(pair.receives) }
    }

    /// True if all queue pairs share their receives.
    #[must_use]
    pub fn shares_receives(&self) -> bool {
        self.has_shared_receives()
    }

    /// Posts receives, with one doorbell. Buffers that find no room come back.
    ///
    /// # Errors
    /// The device's refusal; buffers not posted are dropped.
    pub fn post_receives(&mut self, id: Option<QueuePairId>, buffers: Vec<Buffer>) -> Result<(), PostError> {
        let owner = if self.has_shared_receives() { None } else { id };
        if self.is_closed() {
            return Err(PostError::Gone);
        }
        let mut names: Vec<u64> = Vec::with_capacity(buffers.len());
        let mut parts: Vec<ffi::ibv_sge> = Vec::with_capacity(buffers.len());
        for mut buffer in buffers {
            let (address, bytes) = (buffer.as_mut_ptr().addr(), buffer.len());
            let key = self.local_key(address)?;
            parts.push(part(address, bytes, key));
            names.push(self.receives.insert(Receive { buffer, queue_pair: owner.map(|id| id.0) }));
        }
        let count = names.len();
        let mut requests: Vec<ffi::ibv_recv_wr> = (0..count)
            .map(|index| ffi::ibv_recv_wr {
                wr_id: RECEIVE | names[index],
                next: ptr::null_mut(),
                sg_list: &mut parts[index],
                num_sge: 1,
            })
            .collect();
        if count == 0 {
            return Ok(());
        }
        let first = requests.as_mut_ptr();
        for index in 1..count {
            requests[index - 1].next = first.wrapping_add(index);
        }
        let mut bad = ptr::null_mut();
        let answer = match owner {
            None => {
                // SAFETY: a live queue; a chain that ends in null, which with its parts lives until the call returns; the
                // buffers are in `self.receives` until they complete.
                unsafe { ffi::ibv_post_srq_recv(self.srq, first, &mut bad) }
            }
            Some(id) => {
                let qp = match self.queue_pair_ptr(id) {
                    Ok(qp) => qp,
                    Err(_) => {
                        for name in names {
                            drop(self.receives.remove(name));
                        }
                        return Err(PostError::Gone);
                    }
                };
                // SAFETY: as above, with a live queue pair.
                unsafe { ffi::ibv_post_recv(qp, first, &mut bad) }
            }
        };
        self.counts.doorbells += 1;
        let taken = if answer == 0 {
            count
        } else {
            (bad.addr().wrapping_sub(first.addr()) / size_of::<ffi::ibv_recv_wr>()).min(count)
        };
        self.counts.work_requests += taken as u64;
        let posted = u32::try_from(taken).unwrap_or(0);
        match owner.and_then(|id| self.queue_pairs.get_mut(id.0)) {
            Some(pair) => pair.receives += posted,
            None => self.shared_receives += posted,
        }
        for name in &names[taken..] {
            drop(self.receives.remove(*name));
        }
        if answer == 0 {
            return Ok(());
        }
        let code =
            if answer == -1 { io::Error::last_os_error() } else { io::Error::from_raw_os_error(answer) };
        Err(PostError::Refused { source: code })
    }

    /// An operation is over: its memory goes back.
    pub(super) fn end_operation(
        &mut self,
        name: u64,
        result: Result<(), CompletionError>,
        into: &mut VecDeque<Completed>,
    ) {
        let Some(operation) = self.operations.remove(name) else { return };
        if let Some(offset) = operation.head {
            self.give_head_back(offset);
        }
        if let (Some(exposure), Ok(())) = (operation.conceals, result) {
            self.end_exposure(exposure);
        }
        into.push_back(Completed::Work {
            queue_pair: QueuePairId(operation.queue_pair),
            tag: operation.tag,
            memory: operation.memory,
            result,
        });
    }
}

fn part(address: usize, bytes: usize, key: u32) -> ffi::ibv_sge {
    // Buffers and heads have at most 1 MiB.
    ffi::ibv_sge { addr: address as u64, length: u32::try_from(bytes).unwrap_or(u32::MAX), lkey: key }
}

/// Posts through `ibv_wr_*`: all or nothing.
fn post_extended(qp: *mut ffi::ibv_qp_ex, batch: &[Prepared]) -> Result<(), (usize, io::Error)> {
    // SAFETY: a live queue pair made for extended posting; ended by wr_complete below, with nothing in between that could return.
    unsafe { ffi::ibv_wr_start(qp) };
    for prepared in batch {
        // SAFETY: between start and complete the two fields are ours to set.
        unsafe {
            (*qp).wr_id = prepared.name;
            (*qp).wr_flags = prepared.flags;
        }
        match &prepared.kind {
            Kind::Send { invalidates: None } => {
                // SAFETY: started; the kind was asked for when the queue pair was made.
                unsafe { ffi::ibv_wr_send(qp) };
            }
            Kind::Send { invalidates: Some(key) } => {
                // SAFETY: as above.
                unsafe { ffi::ibv_wr_send_inv(qp, *key) };
            }
            Kind::Read(remote) => {
                // SAFETY: as above. What the key allows is checked by the peer's device.
                unsafe { ffi::ibv_wr_rdma_read(qp, remote.key, remote.address) };
            }
            Kind::Write(remote) => {
                // SAFETY: as above.
                unsafe { ffi::ibv_wr_rdma_write(qp, remote.key, remote.address) };
            }
            Kind::Bind { window, key, info } => {
                // SAFETY: as above; a live window and region; the range lies in the region and its memory in the exposure.
                unsafe { ffi::ibv_wr_bind_mw(qp, *window, *key, info) };
            }
            Kind::Invalidate { key } => {
                // SAFETY: as above; a key of ours.
                unsafe { ffi::ibv_wr_local_inv(qp, *key) };
            }
        }
        if prepared.parts.is_empty() {
            continue;
        }
        if prepared.is_inline {
            let part = &prepared.parts[0];
            let bytes = ptr::with_exposed_provenance_mut(usize::try_from(part.addr).unwrap_or(0));
            // SAFETY: the bytes lie still until complete (in the heads of the batch) and fit the inline size that the
            // device gave; they are copied here.
            unsafe { ffi::ibv_wr_set_inline_data(qp, bytes, part.length as usize) };
        } else {
            // SAFETY: at most max_send_sge = 2 parts in registered memory that the operation owns; the list is copied.
            unsafe { ffi::ibv_wr_set_sge_list(qp, prepared.parts.len(), prepared.parts.as_ptr()) };
        }
    }
    // SAFETY: started above.
    let answer = unsafe { ffi::ibv_wr_complete(qp) };
    if answer == 0 { Ok(()) } else { Err((0, io::Error::from_raw_os_error(answer.abs()))) }
}

/// Posts through `ibv_post_send`: a prefix may have been taken.
fn post_chain(qp: *mut ffi::ibv_qp, batch: &[Prepared]) -> Result<(), (usize, io::Error)> {
    let mut requests: Vec<ffi::ibv_send_wr> = batch
        .iter()
        .map(|prepared| {
            // SAFETY: a C structure of numbers, pointers and unions of them.
            let mut request: ffi::ibv_send_wr = unsafe { zeroed() };
            request.wr_id = prepared.name;
            request.send_flags = prepared.flags;
            request.sg_list = prepared.parts.as_ptr().cast_mut();
            request.num_sge = i32::try_from(prepared.parts.len()).unwrap_or(0);
            request.opcode = match &prepared.kind {
                Kind::Send { invalidates: None } => ffi::ibv_wr_opcode::IBV_WR_SEND,
                Kind::Send { invalidates: Some(key) } => {
                    request.imm_data_invalidated_rkey_union.invalidated_rkey = *key;
                    ffi::ibv_wr_opcode::IBV_WR_SEND_WITH_INV
                }
                Kind::Read(remote) => {
                    request.wr.rdma = ffi::rdma_t { remote_addr: remote.address, rkey: remote.key };
                    ffi::ibv_wr_opcode::IBV_WR_RDMA_READ
                }
                Kind::Write(remote) => {
                    request.wr.rdma = ffi::rdma_t { remote_addr: remote.address, rkey: remote.key };
                    ffi::ibv_wr_opcode::IBV_WR_RDMA_WRITE
                }
                Kind::Bind { window, key, info } => {
                    request.bind_mw_tso_union.bind_mw =
                        ffi::bind_mw_t { mw: *window, rkey: *key, bind_info: *info };
                    ffi::ibv_wr_opcode::IBV_WR_BIND_MW
                }
                Kind::Invalidate { key } => {
                    request.imm_data_invalidated_rkey_union.invalidated_rkey = *key;
                    ffi::ibv_wr_opcode::IBV_WR_LOCAL_INV
                }
            };
            request
        })
        .collect();
    let first = requests.as_mut_ptr();
    for index in 1..requests.len() {
        requests[index - 1].next = first.wrapping_add(index);
    }
    let mut bad = ptr::null_mut();
    // SAFETY: a live queue pair; a chain that ends in null and lives until the call returns; what its parts point to is in
    // registered memory that the operations own, or inline and lies still until then; windows and regions are live.
    let answer = unsafe { ffi::ibv_post_send(qp, first, &mut bad) };
    if answer == 0 {
        return Ok(());
    }
    let taken = bad.addr().wrapping_sub(first.addr()) / size_of::<ffi::ibv_send_wr>();
    let source = if answer == -1 { io::Error::last_os_error() } else { io::Error::from_raw_os_error(answer) };
    Err((taken.min(batch.len()), source))
}
