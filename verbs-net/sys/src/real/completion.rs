//! Taking completions: extended where the provider has it, `ibv_poll_cq` else.
//!
//! Operations of one queue pair complete in order, so one completion ends all that were posted before it unsignalled.

use std::collections::VecDeque;

use rdma_mummy_sys as ffi;

use super::nic::Nic;
use super::post::RECEIVE;
use super::zeroed;
use crate::error::CompletionError;
use crate::work::{Completed, QueuePairId};

/// Entries of one plain poll.
const PLAIN_MAX: usize = 32;

/// One entry of the completion queue, copied out.
struct Entry {
    name: u64,
    status: u32,
    vendor: u32,
    number: u32,
    bytes: u32,
    invalidated: Option<u32>,
}

impl Nic {
    /// Takes up to about `budget` completions; more where one ends several operations. Answers how many things it put into `into`.
    pub fn poll(&mut self, budget: usize, into: &mut VecDeque<Completed>) -> usize {
        let before = into.len();
        into.append(&mut self.ready);
        let mut entries = 0;
        while entries < budget.max(1) {
            let taken = self.poll_queue(budget.max(1) - entries, into);
            if taken == 0 {
                break;
            }
            entries += taken;
        }
        // Exposures that ended with what was polled.
        into.append(&mut self.ready);
        into.len() - before
    }

    /// One visit to the queue.
    pub(super) fn poll_queue(&mut self, budget: usize, into: &mut VecDeque<Completed>) -> usize {
        if self.cq.is_null() {
            return 0;
        }
        if self.cq_extended.is_null() {
            self.poll_plain(budget, into)
        } else {
            self.poll_extended(budget, into)
        }
    }

    fn poll_extended(&mut self, budget: usize, into: &mut VecDeque<Completed>) -> usize {
        let (cq, with_key) = (self.cq_extended, self.with_key_flags());
        let mut attributes = ffi::ibv_poll_cq_attr { comp_mask: 0 };
        // SAFETY: a live queue, polled by one thread; ended below if it answers 0.
        let mut answer = unsafe { ffi::ibv_start_poll(cq, &mut attributes) };
        if answer != 0 {
            return 0;
        }
        let mut count = 0;
        while answer == 0 {
            // SAFETY: between start and end, with an entry at hand; two fields and getters of what was asked for at creation.
            let entry = unsafe {
                let status = (*cq).status;
                let is_good = status == ffi::ibv_wc_status::IBV_WC_SUCCESS;
                let is_receive = (*cq).wr_id & RECEIVE != 0;
                let has_key = is_good && is_receive && ffi::ibv_wc_read_wc_flags(cq) & with_key != 0;
                Entry {
                    name: (*cq).wr_id,
                    status,
                    vendor: if is_good { 0 } else { ffi::ibv_wc_read_vendor_err(cq) },
                    number: ffi::ibv_wc_read_qp_num(cq),
                    bytes: if is_good && is_receive { ffi::ibv_wc_read_byte_len(cq) } else { 0 },
                    invalidated: has_key.then(|| ffi::ibv_wc_read_invalidated_rkey(cq)),
                }
            };
            self.handle_entry(&entry, into);
            count += 1;
            if count == budget || self.is_rxe {
                break;
            }
            // SAFETY: between start and end.
            answer = unsafe { ffi::ibv_next_poll(cq) };
        }
        // SAFETY: started above.
        unsafe { ffi::ibv_end_poll(cq) };
        count
    }

    fn poll_plain(&mut self, budget: usize, into: &mut VecDeque<Completed>) -> usize {
        let with_key = self.with_key_flags();
        // SAFETY: C structures of numbers.
        let mut found: [ffi::ibv_wc; PLAIN_MAX] = unsafe { zeroed() };
        let most = i32::try_from(budget.min(PLAIN_MAX)).unwrap_or(1);
        // SAFETY: a live queue; `found` has room for `most`.
        let count = unsafe { ffi::ibv_poll_cq(self.cq, most, found.as_mut_ptr()) };
        let count = usize::try_from(count).unwrap_or(0).min(PLAIN_MAX);
        for wc in &found[..count] {
            let has_key = wc.status == ffi::ibv_wc_status::IBV_WC_SUCCESS
                && wc.wr_id & RECEIVE != 0
                && wc.wc_flags & with_key != 0;
            // SAFETY: the flag says that this member of the union was written; all its bytes were zeroed before.
            let key = unsafe { wc.imm_data_invalidated_rkey_union.invalidated_rkey };
            let entry = Entry {
                name: wc.wr_id,
                status: wc.status,
                vendor: wc.vendor_err,
                number: wc.qp_num,
                bytes: wc.byte_len,
                invalidated: has_key.then_some(key),
            };
            self.handle_entry(&entry, into);
        }
        count
    }

    /// Flags that say: the message invalidated a key. rxe gives the kernel's bit, which to verbs is that of a good IP checksum.
    fn with_key_flags(&self) -> u32 {
        const KERNEL_BIT: u32 = 1 << 2;
        ffi::ibv_wc_flags::IBV_WC_WITH_INV.0 | if self.is_rxe { KERNEL_BIT } else { 0 }
    }

    fn handle_entry(&mut self, entry: &Entry, into: &mut VecDeque<Completed>) {
        self.counts.completions += 1;
        let error = CompletionError::from_status(entry.status, entry.vendor);
        if entry.name & RECEIVE != 0 {
            let Some(receive) = self.receives.remove(entry.name & !RECEIVE) else { return };
            let pair = self.by_number.get(&entry.number).copied();
            match receive.queue_pair {
                None => self.shared_receives -= 1,
                Some(name) => {
                    if let Some(pair) = self.queue_pairs.get_mut(name) {
                        pair.receives -= 1;
                    }
                }
            }
            if let Some(exposure) = entry.invalidated.and_then(|key| self.by_key.get(&key).copied()) {
                self.end_exposure(exposure);
            }
            let bytes = (entry.bytes as usize).min(receive.buffer.len());
            match (error, pair) {
                (None, Some(pair)) => into.push_back(Completed::Received {
                    queue_pair: QueuePairId(pair),
                    buffer: receive.buffer,
                    bytes,
                }),
                // Flushed with its queue pair, or of one that is gone: the buffer is free again.
                _ => self.release(receive.buffer),
            }
            return;
        }
        let Some(name) = self.operations.get(entry.name).map(|operation| operation.queue_pair) else {
            return;
        };
        let Some(pair) = self.queue_pairs.get_mut(name) else { return };
        if error.is_some() {
            pair.is_failed = true;
        }
        let Some(place) = pair.in_flight.iter().position(|other| *other == entry.name) else { return };
        let before: Vec<u64> = pair.in_flight.drain(..=place).collect();
        for name in before {
            let result = if name == entry.name { error.map_or(Ok(()), Err) } else { Ok(()) };
            self.end_operation(name, result, into);
        }
    }
}
