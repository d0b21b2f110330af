//! The committer: one task per domain that makes transactions durable, a group at a time.
//!
//! Order, and so the promise: (1) the data of all transactions of group n has completed; (2) the record of group n is
//! written; (3) one flush, submitted after both, completes (a group without data needs none: its record is written through); (4) the changes are applied, and the callers told. The record of group
//! n+1 is written only after (3). So only the last group on a device can be doubtful, and recovery verifies its data.
//! Blocks freed by group n become free in (4), never earlier. Data of later groups is written meanwhile: it is in nobody's way.
//!
//! Any error of a log write or flush poisons the domain: what the device holds is unknown until it is opened again.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use base::BlockExtent;
use base::units::{BLOCK_BYTES, narrow, wide};
use futures_util::future::Either;
use runtime::Buffer;
use runtime::sync::{Permit, oneshot};
use smallvec::smallvec;

use super::Shared;
use super::paging::Look;
use crate::backend::DeviceError;
use crate::error::{BadRequest, Space, StobError};
use crate::format::change::Change;
use crate::format::checkpoint::stream_bytes_max;
use crate::format::record::{self, RECORD_HEADER_BYTES, RecordKind, RecordStart};
use crate::format::regions::Regions;
use crate::format::superblock::LogPosition;
use crate::limits::{CHECKPOINT_AT_PART, DIRTY_PAGES_MAX, RECORD_BYTES_MAX, RECORD_PART, SLOTS_KEPT};
use crate::stob_id::TreeId;
use crate::trace::TraceEvent;

#[cfg(test)]
use super::mutation::Mutation;

/// After this long without work the last group is confirmed, so that recovery need not doubt its data.
const CONFIRM_AFTER: Duration = Duration::from_millis(50);

/// Blocks that a group leaves free in the log: one for a confirmation, one for the barrier of the next open.
const SPARE_BLOCKS: u64 = 2;

/// A key that has to have this value when the transaction is committed.
pub(super) struct Condition {
    pub(super) tree: TreeId,
    pub(super) key: Vec<u8>,
    pub(super) expected: Option<Vec<u8>>,
}

/// A transaction on its way.
pub(super) struct Queued {
    pub(super) number: u64,
    changes: Vec<Change>,
    conditions: Vec<Condition>,
    encoded_bytes: usize,
    reserved: Vec<BlockExtent>,
    sender: oneshot::Sender<Result<(), StobError>>,
    shared: Rc<Shared>,
    _permit: Permit,
}

pub(super) type Answer = oneshot::Receiver<Result<(), StobError>>;

impl Queued {
    /// Error: too large for a record; the reserved extents come back.
    pub(super) fn new(
        shared: &Rc<Shared>,
        changes: Vec<Change>,
        conditions: Vec<Condition>,
        reserved: Vec<BlockExtent>,
        permit: Permit,
    ) -> Result<(Queued, Answer), (StobError, Vec<BlockExtent>)> {
        let bytes: usize = changes.iter().map(Change::encoded_bytes).sum();
        let max = record_bytes_max(&shared.regions()) - RECORD_HEADER_BYTES;
        if bytes > max {
            return Err((StobError::BadRequest(BadRequest::TransactionBytes { bytes, max }), reserved));
        }
        let (sender, receiver) = oneshot::channel();
        shared.in_flight.set(shared.in_flight.get() + 1);
        let number = shared.next_transaction.get() + 1;
        shared.next_transaction.set(number);
        let queued = Queued {
            number,
            changes,
            conditions,
            encoded_bytes: bytes,
            reserved,
            sender,
            shared: Rc::clone(shared),
            _permit: permit,
        };
        Ok((queued, receiver))
    }

    /// Tells the caller, who may be gone.
    pub(super) fn answer(self, result: Result<(), StobError>) {
        let shared = self.shared;
        drop(self.sender.send(result));
        shared.in_flight.set(shared.in_flight.get() - 1);
        shared.space_freed.notify_waiters();
    }
}

/// What the committer is asked for, in order.
pub(super) enum Work {
    /// Data is on the device (or there is none): make it durable.
    Commit(Queued),
    /// Everything before this is done: end all doubt about it.
    Flush(oneshot::Sender<Result<(), StobError>>),
    /// Everything before this is done: take a checkpoint and end.
    Close(oneshot::Sender<Result<(), StobError>>),
}

/// Most bytes of one record, header included, on a device with these regions.
pub(super) fn record_bytes_max(regions: &Regions) -> usize {
    RECORD_BYTES_MAX.min(narrow(regions.log.count * BLOCK_BYTES / RECORD_PART))
}

/// The committer's own state: the end of the log, and the one buffer of its own, so that it never waits for memory
/// that writers hold who wait for it.
pub(super) struct Committer {
    pub(super) shared: Rc<Shared>,
    pub(super) next: LogPosition,
    /// First block that a recovery would still read.
    pub(super) tail_block: u64,
    pub(super) incarnation: u64,
    /// The last record has data that a recovery would verify.
    pub(super) is_doubtful: bool,
    /// A confirmation was written and not flushed: if it were lost, a record after it would stand behind a gap.
    pub(super) has_unflushed_record: bool,
    pub(super) buffer: Option<Buffer>,
    pub(super) scratch: Vec<u8>,
}

/// Changes of a group that are looked up ahead of their time: in a larger group the device's time is shared by so many that it matters to none.
const WARM_CHANGES_MAX: usize = 64;

/// What a group adds to a checkpoint, keeps of the free blocks, and may need of slots.
#[derive(Clone, Copy, Debug, Default)]
struct Growth {
    growth_bytes: u64,
    promised_blocks: u64,
    slots: u64,
}

/// What the transactions of a group, up to one, make of the trees. Only conditions ask for it, so it is made when the first one does.
#[derive(Default)]
struct Overlay {
    values: BTreeMap<(TreeId, Vec<u8>), Option<Vec<u8>>>,
    /// Transactions that are in it.
    count: usize,
}

impl Overlay {
    /// Takes in the transactions of `group` that are not in it yet.
    fn follow(&mut self, group: &[Queued]) {
        for change in group[self.count..].iter().flat_map(|queued| &queued.changes) {
            match change {
                Change::TreePut { tree, key, value } => {
                    self.values.insert((*tree, key.clone()), Some(value.clone()));
                }
                Change::TreeDelete { tree, key } => {
                    self.values.insert((*tree, key.clone()), None);
                }
                _ => {}
            }
        }
        self.count = group.len();
    }
}

enum Next {
    Work(Work),
    Confirm,
    Stop,
}

impl Committer {
    pub(super) async fn run(mut self) {
        loop {
            match self.next_work().await {
                Next::Stop => return,
                Next::Confirm => self.confirm().await,
                Next::Work(Work::Commit(first)) => self.commit_group(first).await,
                Next::Work(Work::Flush(sender)) => {
                    let result = self.end_doubt().await.map_err(|error| self.fail(error));
                    drop(sender.send(result)); // who asked may be gone
                }
                Next::Work(Work::Close(sender)) => {
                    let result = match self.shared.check_writable() {
                        Ok(()) => self.checkpoint().await.map_err(|error| self.fail(error)),
                        Err(error) => Err(error),
                    };
                    self.shared.close();
                    drop(sender.send(result)); // the closer may be gone
                    return;
                }
            }
        }
    }

    async fn next_work(&self) -> Next {
        loop {
            if let Some(work) = self.shared.queue.borrow_mut().pop_front() {
                return Next::Work(work);
            }
            if self.shared.is_stopping.get() {
                return Next::Stop;
            }
            let notified = self.shared.work.notified();
            if self.is_doubtful && self.shared.check_writable().is_ok() {
                let locality = &self.shared.locality;
                let at = locality.now() + CONFIRM_AFTER;
                if locality.timeout_at(at, notified).await.is_err() {
                    return Next::Confirm;
                }
            } else {
                notified.await;
            }
        }
    }

    fn log_free_blocks(&self) -> u64 {
        let used = self.next.block - self.tail_block;
        self.shared.regions().log.count.saturating_sub(used)
    }

    /// Poisons the domain; gives the error back.
    fn fail(&self, error: impl Into<StobError>) -> StobError {
        self.shared.poison();
        error.into()
    }

    async fn commit_group(&mut self, first: Queued) {
        // Keeps the pages that the group needs in memory until it is applied.
        let look = Look::start(&self.shared);
        let (group, body_bytes) = self.form_group(first, &look).await;
        if group.is_empty() {
            return;
        }
        // Only the record has to be durable if there is no data; everything before it is.
        let is_through = !self.has_unflushed_record
            && group.iter().all(|queued| queued.reserved.is_empty())
            && self.may_write_through();
        let mut durable = self.write_group(&group, body_bytes, is_through).await;
        #[cfg(test)]
        if let (Ok(sequence), true) = (&durable, self.shared.is_mutated(Mutation::AnswerBeforeFlush)) {
            self.apply_and_answer(group, *sequence);
            let _ = self.flush().await;
            return;
        }
        if durable.is_ok()
            && !is_through
            && let Err(error) = self.flush().await
        {
            durable = Err(error.into());
        }
        let sequence = match durable {
            Ok(sequence) => sequence,
            Err(error) => return self.fail_group(group, error),
        };
        self.shared.note(TraceEvent::Flushed { sequence });
        self.shared.groups.set(self.shared.groups.get() + 1);
        self.apply_and_answer(group, sequence);
        drop(look);
        let is_contradicted = self.shared.state.borrow().is_contradicted;
        if is_contradicted {
            return self.shared.poison(); // whatever else it says cannot be believed either
        }
        let has_many_pages = self.shared.state.borrow().metadata.extents.dirty_pages() > DIRTY_PAGES_MAX;
        let is_log_full = self.log_free_blocks() < self.shared.regions().log.count / CHECKPOINT_AT_PART;
        if (is_log_full || has_many_pages)
            && let Err(error) = self.checkpoint().await
        {
            self.fail(error);
        }
    }

    /// Whether the group took effect is open until the device is opened again; its blocks stay reserved.
    fn fail_group(&self, group: Vec<Queued>, error: StobError) {
        let error = self.fail(error);
        for queued in group {
            queued.answer(Err(error.clone()));
        }
    }

    /// Takes transactions that fit into one record, in order, and whose pages fit into the slots; refuses those that cannot be committed at all.
    async fn form_group(&mut self, first: Queued, look: &Look) -> (Vec<Queued>, usize) {
        let bytes_max = record_bytes_max(&self.shared.regions()) - RECORD_HEADER_BYTES;
        let (mut group, mut body_bytes, mut growth) = (Vec::<Queued>::new(), 0, Growth::default());
        let mut overlay = Overlay::default();
        let mut next = Some(first);
        while let Some(queued) = next.take() {
            if !queued.conditions.is_empty() {
                overlay.follow(&group);
            }
            if body_bytes + queued.encoded_bytes > bytes_max {
                self.shared.queue.borrow_mut().push_front(Work::Commit(queued));
                break;
            }
            let mut admitted = self.admit_with_pages(&queued, growth, &overlay, look).await;
            if let Err(StobError::NoSpace { space: Space::Metadata, .. }) = admitted {
                // A checkpoint gives slots back; what is in the group already comes first.
                if !group.is_empty() {
                    self.shared.queue.borrow_mut().push_front(Work::Commit(queued));
                    break;
                }
                let holds_old_slots = self.shared.state.borrow().metadata.extents.holds_old_slots();
                if holds_old_slots && self.shared.check_writable().is_ok() {
                    if let Err(error) = self.checkpoint().await {
                        self.fail(error);
                    }
                    admitted = self.admit_with_pages(&queued, growth, &overlay, look).await;
                }
            }
            match admitted {
                Ok(admitted) => {
                    growth = admitted;
                    body_bytes += queued.encoded_bytes;
                    group.push(queued);
                }
                Err(error) => {
                    self.shared.unreserve(&queued.reserved);
                    queued.answer(Err(error));
                }
            }
            // What a snapshot costs is known only before other changes of its group: it ends one.
            let ends = |queued: &Queued| {
                queued.changes.iter().any(|change| matches!(change, Change::Snapshot { .. }))
            };
            if group.last().is_some_and(ends) {
                break;
            }
            let mut queue = self.shared.queue.borrow_mut();
            next = match queue.pop_front() {
                Some(Work::Commit(queued)) => Some(queued),
                Some(other) => {
                    queue.push_front(other);
                    None
                }
                None => None,
            };
        }
        self.shared.state.borrow_mut().promised_blocks = growth.promised_blocks;
        (group, body_bytes)
    }

    /// [`Committer::admit`], once the pages that `queued` needs are in memory.
    async fn admit_with_pages(
        &self,
        queued: &Queued,
        growth: Growth,
        overlay: &Overlay,
        look: &Look,
    ) -> Result<Growth, StobError> {
        self.shared.check_writable()?;
        look.wait_for(|missing| {
            let state = self.shared.state.borrow();
            queued.changes.iter().for_each(|change| state.metadata.touch_for(change, missing));
        })
        .await?;
        self.admit(queued, growth, overlay)
    }

    /// Gives what the group needs with `queued` in it.
    fn admit(&self, queued: &Queued, growth: Growth, overlay: &Overlay) -> Result<Growth, StobError> {
        let Growth { mut growth_bytes, mut promised_blocks, mut slots } = growth;
        self.shared.check_writable()?;
        let state = self.shared.state.borrow();
        for Condition { tree, key, expected } in &queued.conditions {
            #[cfg(test)]
            if self.shared.is_mutated(Mutation::SkipCondition) {
                continue;
            }
            let current = match overlay.values.get(&(*tree, key.clone())) {
                Some(value) => value.as_deref(),
                None => state.metadata.tree_get(*tree, key),
            };
            if current != expected.as_deref() {
                return Err(StobError::BadRequest(BadRequest::Condition));
            }
        }
        // A transaction that only takes away is always admitted, or a full device could never be emptied.
        let takes_away = queued
            .changes
            .iter()
            .all(|change| matches!(change, Change::StobDelete { .. } | Change::TreeDelete { .. }));
        for change in &queued.changes {
            growth_bytes = growth_bytes.saturating_add(state.metadata.growth_bytes(change, growth_bytes));
            slots = slots.saturating_add(state.metadata.slots_needed(change));
            if let Change::Allocate { stob, extent } = change {
                let needed = state.metadata.holes(*stob, *extent).iter().map(|hole| hole.count).sum::<u64>();
                let free_blocks = state.available_blocks().saturating_sub(promised_blocks);
                if needed > free_blocks {
                    return Err(StobError::NoSpace {
                        space: Space::Data,
                        needed_blocks: needed,
                        free_blocks,
                        total_blocks: self.shared.regions().data.count,
                    });
                }
                promised_blocks += needed;
            }
        }
        let area_blocks = self.shared.regions().checkpoints[0].count;
        let (used, max) = (state.metadata.checkpoint_bytes_max(), stream_bytes_max(area_blocks));
        if !takes_away && used.saturating_add(growth_bytes) > max {
            return Err(StobError::NoSpace {
                space: Space::Metadata,
                needed_blocks: growth_bytes.div_ceil(BLOCK_BYTES),
                free_blocks: max.saturating_sub(used) / BLOCK_BYTES,
                total_blocks: area_blocks,
            });
        }
        let slots_free = state.free_slots().saturating_sub(if takes_away { 0 } else { SLOTS_KEPT });
        let slots_needed = state.metadata.extents.dirty_pages().saturating_add(slots);
        if slots_needed > slots_free {
            let regions = self.shared.regions();
            return Err(StobError::NoSpace {
                space: Space::Metadata,
                needed_blocks: slots_needed.saturating_mul(regions.slot_blocks),
                free_blocks: slots_free * regions.slot_blocks,
                total_blocks: regions.pages.count,
            });
        }
        Ok(Growth { growth_bytes, promised_blocks, slots })
    }

    /// Writes the record of `group`: step 2 of the module head. Gives its sequence.
    async fn write_group(
        &mut self,
        group: &[Queued],
        body_bytes: usize,
        is_through: bool,
    ) -> Result<u64, StobError> {
        let blocks = wide(RECORD_HEADER_BYTES + body_bytes).div_ceil(BLOCK_BYTES);
        if self.log_free_blocks() < blocks + SPARE_BLOCKS {
            self.checkpoint().await?;
        }
        #[cfg(test)]
        if self.shared.is_mutated(Mutation::ReuseBeforeFlush) {
            self.shared.free_early(group.iter().flat_map(|queued| &queued.changes));
        }
        self.begin_record();
        for queued in group {
            for change in &queued.changes {
                change.encode(&mut self.scratch);
            }
        }
        #[allow(unused_mut)]
        let mut change_count = group.iter().map(|queued| queued.changes.len()).sum::<usize>();
        #[cfg(test)]
        if self.shared.is_mutated(Mutation::LostChange)
            && let Some(last) = group.last().and_then(|queued| queued.changes.last())
        {
            self.scratch.truncate(self.scratch.len() - last.encoded_bytes());
            change_count -= 1;
        }
        let sequence = self
            .write_record(RecordKind::Group, change_count, is_through, |shared| warm(shared, group))
            .await?;
        self.is_doubtful = group.iter().any(|queued| !queued.reserved.is_empty());
        Ok(sequence)
    }

    /// Applies the durable group and tells its callers. Step 4.
    fn apply_and_answer(&mut self, group: Vec<Queued>, sequence: u64) {
        let mut freed = Vec::new();
        let mut answers = Vec::with_capacity(group.len());
        {
            let mut state = self.shared.state.borrow_mut();
            for mut queued in group {
                for change in std::mem::take(&mut queued.changes) {
                    #[cfg(test)]
                    let change = self.shared.mutated_change(change);
                    state.metadata.apply(change, &mut freed);
                }
                state.settle(&queued.reserved);
                answers.push(queued);
            }
            #[cfg(test)]
            self.shared.mutate_state(&mut state, &mut freed);
            #[cfg(test)]
            if self.shared.is_mutated(Mutation::ReuseBeforeFlush) {
                freed.clear(); // done early
            }
            state.free_later(freed);
            state.promised_blocks = 0; // kept by the metadata now
        }
        for queued in answers {
            self.shared.note(TraceEvent::Acknowledged { transaction: queued.number, sequence });
            queued.answer(Ok(()));
        }
    }

    /// A confirmation, and a flush of it.
    async fn end_doubt(&mut self) -> Result<(), DeviceError> {
        if self.shared.check_writable().is_ok() && self.is_doubtful {
            self.confirm().await;
        }
        self.flush().await
    }

    /// A record that says: the flush of the record before it has completed. Needs no flush: it is a hint for recovery.
    async fn confirm(&mut self) {
        self.is_doubtful = false;
        if self.log_free_blocks() < 1 + SPARE_BLOCKS {
            return;
        }
        self.begin_record();
        self.has_unflushed_record = true;
        if let Err(error) = self.write_record(RecordKind::Confirm, 0, false, |_| ()).await {
            self.fail(error);
        }
    }

    /// Written through at each open, after a flush of all that it follows.
    pub(super) async fn write_barrier(&mut self) -> Result<(), DeviceError> {
        self.begin_record();
        let is_through = self.may_write_through();
        self.write_record(RecordKind::Barrier, 0, is_through, |_| ()).await.map(drop)
    }

    /// False for bugs on purpose that leave flushes out.
    #[cfg(test)]
    fn may_write_through(&self) -> bool {
        !self.shared.is_mutated(Mutation::SkipFlush) && !self.shared.is_mutated(Mutation::AnswerBeforeFlush)
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self)] // tests need it
    const fn may_write_through(&self) -> bool {
        true
    }

    /// True if a barrier fits into the log.
    pub(super) fn has_room_for_barrier(&self) -> bool {
        self.log_free_blocks() >= 1
    }

    fn begin_record(&mut self) {
        self.scratch.clear();
        self.scratch.resize(RECORD_HEADER_BYTES, 0);
    }

    /// Seals `scratch` and writes it to the end of the log; does `meanwhile` while the device works. Gives its sequence.
    async fn write_record(
        &mut self,
        kind: RecordKind,
        change_count: usize,
        is_through: bool,
        meanwhile: impl FnOnce(&Shared),
    ) -> Result<u64, DeviceError> {
        let start = RecordStart {
            kind,
            format_id: self.shared.superblock.get().format_id,
            position: self.next,
            incarnation: self.incarnation,
            change_count: u32::try_from(change_count).unwrap_or(u32::MAX), // a record holds far fewer
        };
        let header = record::seal(start, &mut self.scratch);
        let log = self.shared.regions().log;
        let place = self.next.block % log.count;
        let before_end = header.blocks().min(log.count - place);
        let places = [
            (log.start + place, before_end),
            (log.start, header.blocks() - before_end), // around the ring's end
        ];
        self.write_scratch(&places, is_through, meanwhile).await?;
        self.next = header.next();
        self.shared.note(TraceEvent::RecordWritten { sequence: header.position.sequence });
        Ok(header.position.sequence)
    }

    /// Writes `scratch` (whole blocks, at most one buffer) to these places (first block, blocks), one after the other; does `meanwhile` while
    /// the device works.
    pub(super) async fn write_scratch(
        &mut self,
        places: &[(u64, u64)],
        is_through: bool,
        meanwhile: impl FnOnce(&Shared),
    ) -> Result<(), DeviceError> {
        let mut buffer = match self.buffer.take() {
            Some(buffer) => buffer,
            // Only after an error kept the buffer in the device's hands.
            None => self.shared.locality.arena().alloc(RECORD_BYTES_MAX).await,
        };
        buffer.resize(self.scratch.len());
        buffer.copy_from_slice(&self.scratch); // metadata that the CPU just made, not bulk: not counted as copied
        let bytes = buffer.freeze();
        let mut writes = Vec::with_capacity(places.len());
        let mut done_bytes = 0;
        for &(start_block, blocks) in places.iter().filter(|(_, blocks)| *blocks > 0) {
            let end = done_bytes + narrow(blocks * BLOCK_BYTES);
            let (parts, device) = (smallvec![bytes.slice(done_bytes..end)], &self.shared.device);
            writes.push(match is_through {
                true => Either::Left(device.write_through(start_block, parts)),
                false => Either::Right(device.write(start_block, parts)),
            });
            done_bytes = end;
        }
        meanwhile(&self.shared);
        for write in writes {
            write.await?;
        }
        self.buffer = bytes.try_unshare().ok();
        Ok(())
    }

    pub(super) async fn flush(&mut self) -> Result<(), DeviceError> {
        #[cfg(test)]
        if self.shared.is_mutated(Mutation::SkipFlush) {
            return Ok(());
        }
        self.shared.device.flush().await?;
        self.has_unflushed_record = false;
        Ok(())
    }
}

/// Looks at what `group` will change in the trees while the device makes it durable, so that it is in the caches of the CPU when callers wait for
/// nothing else any more. Changes nothing.
fn warm(shared: &Shared, group: &[Queued]) {
    shared.device.start_now();
    let state = shared.state.borrow();
    for change in group.iter().flat_map(|queued| &queued.changes).take(WARM_CHANGES_MAX) {
        if let Change::TreePut { tree, key, .. } | Change::TreeDelete { tree, key } = change {
            std::hint::black_box(state.metadata.tree_get(*tree, key).and_then(<[u8]>::first));
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        // Nobody commits any more. Also ends the ring of references from the queue and the device back to the domain.
        self.shared.close();
    }
}
