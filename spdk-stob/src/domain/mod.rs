//! A domain: many stobs and trees on one device, changed by durable transactions.
//!
//! The parts, in the order of a write's life: [`writing`](self) reserves extents and writes data; `commit` makes groups of
//! transactions durable; `checkpointing` frees the log; `opening` formats and recovers; `reading` looks up, reads and
//! verifies; `paging` has the extents in memory that are looked at; `space` knows who owns each block; `device` is the way to the backend.
//!
//! **Invariant**: what can be seen (`read`, `tree_get`, `stobs`) is durable. **Invariant**: only the committer changes
//! the metadata. Thread: one locality. Dropping every clone ends the domain after the work that is queued; `close` also takes
//! a checkpoint, so that the next open has nothing to replay.

pub mod check;
mod checkpointing;
mod commit;
mod device;
#[cfg(test)]
pub(crate) mod mutation;
mod open_or_format;
pub(crate) mod opening;
mod paging;
mod reading;
pub mod scrub;
mod space;
mod writing;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Bound;
use std::rc::Rc;

use base::units::{BLOCK_BYTES, wide};
use base::{BlockExtent, Fid};
use runtime::sync::{Notify, Semaphore, oneshot};
use runtime::{LocalityHandle, SharedBuffer};

use commit::{Condition, Queued, Work};
use device::Device;
use paging::Loads;
use space::State;

use crate::error::{BadRequest, StobError};
use crate::format::change::Change;
use crate::format::regions::Regions;
use crate::format::superblock::Superblock;
use crate::limits::{TREE_KEY_BYTES_MAX, TREE_VALUE_BYTES_MAX};
use crate::stob_id::{StobId, TreeId};
use crate::trace::{Trace, TraceEvent};

pub use check::{CheckReport, Problem, SuperblockCopy, check, dump, erase, inspect};
pub use reading::ZERO_BLOCK_CHECKSUM;
pub use scrub::{BadBlock, Scrub, ScrubConfig, ScrubStats};

/// What a device becomes when it is formatted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatParams {
    /// The device.
    pub device: Fid,
    /// Its cluster's id.
    pub cluster: u64,
}

/// Bytes to write: a whole number of blocks.
#[derive(Clone, Debug)]
pub struct WritePiece {
    /// First block of the stob.
    pub start_block: u64,
    /// The bytes, a multiple of 4096.
    pub data: SharedBuffer,
}

impl WritePiece {
    /// Its blocks of the stob, if it was checked.
    fn extent(&self) -> BlockExtent {
        BlockExtent { start: self.start_block, count: wide(self.data.len()) / BLOCK_BYTES }
    }
}

/// What a read gives.
#[derive(Debug, Default)]
pub struct ReadOutcome {
    /// One part per extent asked for; blocks never written are zero.
    pub parts: Vec<SharedBuffer>,
    /// One CRC-32C per block, in order; [`ZERO_BLOCK_CHECKSUM`] for blocks never written.
    pub checksums: Vec<u32>,
    /// Blocks of the stob that were never written (or punched), in order of the extents asked for.
    pub absent: Vec<BlockExtent>,
}

/// What a domain is and has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainInfo {
    /// The device.
    pub device: Fid,
    /// Its cluster's id.
    pub cluster: u64,
    /// Blocks of the device, as it was formatted.
    pub device_blocks: u64,
    /// Blocks of the data area.
    pub blocks_total: u64,
    /// Blocks that nobody owns.
    pub blocks_free: u64,
    /// Of the free blocks, those kept for holes by `allocate`.
    pub blocks_kept: u64,
    /// Blocks that stobs own; one that snapshots share counts once.
    pub blocks_used: u64,
    /// Blocks found bad since the domain was opened: by reads and by scrubbing, each time they were met.
    pub blocks_bad: u64,
    /// Sequence of the superblock: it grows with each checkpoint.
    pub sequence: u64,
    /// Checkpoints taken since the domain was opened.
    pub checkpoints: u64,
    /// Groups of transactions committed since then, each with one record and one flush.
    pub groups: u64,
    /// Groups replayed from the log when it was opened.
    pub recovered_records: u64,
    /// True if the log ended in a group that was never acknowledged and was dropped.
    pub dropped_tail: bool,
    /// True if one superblock copy was damaged and has been written again from the other.
    pub repaired_superblock: bool,
    /// Bytes of a checkpoint's stream now: what an open reads besides bits of free space and the log.
    pub checkpoint_bytes: u64,
    /// Extents of all stobs.
    pub extents: u64,
    /// Pages of extents.
    pub pages: u64,
    /// Bytes of memory that extents take; the others are on the device.
    pub extent_memory_bytes: u64,
    /// Transactions under way.
    pub in_flight: usize,
}

/// What recovery found, for [`DomainInfo`].
#[derive(Clone, Copy, Debug, Default)]
struct Recovered {
    records: u64,
    dropped_tail: bool,
    repaired_superblock: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Open,
    Poisoned,
    Closed,
}

struct Shared {
    locality: LocalityHandle,
    device: Device,
    superblock: Cell<Superblock>,
    state: RefCell<State>,
    queue: RefCell<VecDeque<Work>>,
    work: Notify,
    space_freed: Notify,
    /// Bounds the transactions under way.
    permits: Semaphore,
    /// Held by the one reader that collects buffers.
    buffer_turn: Semaphore,
    status: Cell<Status>,
    is_stopping: Cell<bool>,
    in_flight: Cell<usize>,
    next_transaction: Cell<u64>,
    checkpoints: Cell<u64>,
    bad_blocks: Cell<u64>,
    groups: Cell<u64>,
    recovered: Recovered,
    loads: RefCell<Loads>,
    page_loaded: Notify,
    page_cache_bytes: u64,
    trace: RefCell<Trace>,
    #[cfg(test)]
    mutation: Option<mutation::Mutation>,
}

impl Shared {
    fn regions(&self) -> Regions {
        self.superblock.get().regions
    }

    fn note(&self, event: TraceEvent) {
        self.trace.borrow_mut().push(event);
    }

    fn enqueue(&self, work: Work) {
        if self.is_closed() {
            return; // dropped, and so answered
        }
        self.queue.borrow_mut().push_back(work);
        self.work.notify_one();
    }

    fn check_writable(&self) -> Result<(), StobError> {
        match self.status.get() {
            Status::Open => Ok(()),
            Status::Poisoned => Err(StobError::Poisoned),
            Status::Closed => Err(StobError::Closed),
        }
    }

    fn is_closed(&self) -> bool {
        self.status.get() == Status::Closed
    }

    fn poison(&self) {
        if self.status.get() == Status::Open {
            self.status.set(Status::Poisoned);
        }
        self.space_freed.notify_waiters();
    }

    fn close(&self) {
        self.status.set(Status::Closed);
        let queued = std::mem::take(&mut *self.queue.borrow_mut());
        drop(queued);
        self.device.close();
        self.space_freed.notify_waiters();
        self.page_loaded.notify_waiters();
    }

    fn unreserve(&self, extents: &[BlockExtent]) {
        self.state.borrow_mut().unreserve(extents);
        self.space_freed.notify_waiters();
    }
}

/// Tells the committer when the last clone of a domain is gone.
struct Guard(Rc<Shared>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.is_stopping.set(true);
        self.0.work.notify_one();
    }
}

/// One device with its stobs and trees. Clones are the same domain. See the module head.
#[derive(Clone)]
pub struct Domain {
    shared: Rc<Shared>,
    _guard: Rc<Guard>,
}

/// Changes that become durable together or not at all. Nothing happens before [`Domain::commit`].
#[derive(Debug, Default)]
#[must_use = "nothing happens before commit"]
pub struct Transaction {
    changes: Vec<Change>,
    conditions: Vec<(TreeId, Vec<u8>, Option<Vec<u8>>)>,
    fault: Option<BadRequest>,
}

impl Transaction {
    /// Gives `key` (1 to 1024 bytes) of `tree` a value (at most 256 KiB).
    pub fn tree_put(&mut self, tree: TreeId, key: &[u8], value: &[u8]) -> &mut Transaction {
        self.check(key, value);
        self.changes.push(Change::TreePut { tree, key: key.to_vec(), value: value.to_vec() });
        self
    }

    /// Takes `key` out of `tree`, if it is there.
    pub fn tree_delete(&mut self, tree: TreeId, key: &[u8]) -> &mut Transaction {
        self.check(key, &[]);
        self.changes.push(Change::TreeDelete { tree, key: key.to_vec() });
        self
    }

    /// Deletes a stob, if it exists.
    pub fn stob_delete(&mut self, stob: StobId) -> &mut Transaction {
        self.changes.push(Change::StobDelete { stob });
        self
    }

    /// Creates a stob, if it is not there: see [`Domain::create`].
    pub fn stob_create(&mut self, stob: StobId) -> &mut Transaction {
        self.changes.push(Change::StobCreate { stob });
        self
    }

    /// Keeps space for the holes of `extent`: see [`Domain::allocate`].
    pub fn allocate(&mut self, stob: StobId, extent: BlockExtent) -> &mut Transaction {
        self.changes.push(Change::Allocate { stob, extent });
        self
    }

    /// Makes `to` what `from` is after the changes before this one: see [`Domain::snapshot`].
    pub fn snapshot(&mut self, from: StobId, to: StobId) -> &mut Transaction {
        self.changes.push(Change::Snapshot { from, to });
        self
    }

    /// Makes holes of `extent`.
    pub fn punch(&mut self, stob: StobId, extent: BlockExtent) -> &mut Transaction {
        self.changes.push(Change::Punch { stob, extent });
        self
    }

    /// The commit fails with [`BadRequest::Condition`], changing nothing, unless `key` has `expected` (`None`: is absent) at that
    /// moment, earlier commits under way included. So read, decide and commit is safe against others doing the same.
    pub fn require(&mut self, tree: TreeId, key: &[u8], expected: Option<&[u8]>) -> &mut Transaction {
        self.conditions.push((tree, key.to_vec(), expected.map(<[u8]>::to_vec)));
        self
    }

    /// What it does and under which conditions. Errors: what was wrong in the calls that made it.
    fn into_parts(self) -> Result<(Vec<Change>, Vec<Condition>), StobError> {
        if let Some(fault) = self.fault {
            return Err(StobError::BadRequest(fault));
        }
        for change in &self.changes {
            if let Change::Punch { extent: BlockExtent { start, count }, .. }
            | Change::Allocate { extent: BlockExtent { start, count }, .. } = *change
                && BlockExtent::new(start, count).is_none()
            {
                return Err(StobError::OutOfRange { start, count });
            }
        }
        let conditions = self.conditions.into_iter();
        let conditions = conditions.map(|(tree, key, expected)| Condition { tree, key, expected }).collect();
        Ok((self.changes, conditions))
    }

    fn check(&mut self, key: &[u8], value: &[u8]) {
        if key.is_empty() || key.len() > TREE_KEY_BYTES_MAX || value.len() > TREE_VALUE_BYTES_MAX {
            self.fault.get_or_insert(BadRequest::TreeEntry {
                key_bytes: key.len(),
                value_bytes: value.len(),
                key_max: TREE_KEY_BYTES_MAX,
                value_max: TREE_VALUE_BYTES_MAX,
            });
        }
    }
}

impl Domain {
    /// What the domain is and has now.
    #[must_use]
    pub fn info(&self) -> DomainInfo {
        let (superblock, state) = (self.shared.superblock.get(), self.shared.state.borrow());
        DomainInfo {
            device: superblock.device,
            cluster: superblock.cluster,
            device_blocks: superblock.regions.size_blocks,
            blocks_total: superblock.regions.data.count,
            blocks_free: state.free.free_blocks(),
            blocks_kept: state.metadata.kept_blocks(),
            blocks_used: state.metadata.used_blocks(),
            blocks_bad: self.shared.bad_blocks.get(),
            sequence: superblock.sequence,
            checkpoints: self.shared.checkpoints.get(),
            groups: self.shared.groups.get(),
            recovered_records: self.shared.recovered.records,
            dropped_tail: self.shared.recovered.dropped_tail,
            repaired_superblock: self.shared.recovered.repaired_superblock,
            checkpoint_bytes: state.metadata.checkpoint_bytes(),
            extents: state.metadata.extent_count(),
            pages: state.metadata.extents.page_count(),
            extent_memory_bytes: state.metadata.extents.memory_bytes(),
            in_flight: self.shared.in_flight.get(),
        }
    }

    /// Deletes a stob; its blocks are free after it returned. Not there: nothing to do. Errors: as [`Domain::commit`].
    pub async fn delete(&self, stob: StobId) -> Result<(), StobError> {
        let mut transaction = self.begin();
        transaction.stob_delete(stob);
        self.commit(transaction).await
    }

    /// Makes holes of `extent`. Errors: as [`Domain::commit`], and [`StobError::OutOfRange`].
    pub async fn punch(&self, stob: StobId, extent: BlockExtent) -> Result<(), StobError> {
        let mut transaction = self.begin();
        transaction.punch(stob, extent);
        self.commit(transaction).await
    }

    /// Creates a stob, if it is not there: it exists until it is deleted, also while nothing of it is written. (Others exist while
    /// anything of them is written or allocated.) Errors: as [`Domain::commit`].
    pub async fn create(&self, stob: StobId) -> Result<(), StobError> {
        let mut transaction = self.begin();
        transaction.stob_create(stob);
        self.commit(transaction).await
    }

    /// Keeps space for the holes of `extent`, so that the first write into each of them finds room. They stay holes, and read as
    /// absent. Errors: as [`Domain::commit`], [`StobError::NoSpace`], [`StobError::OutOfRange`].
    pub async fn allocate(&self, stob: StobId, extent: BlockExtent) -> Result<(), StobError> {
        let mut transaction = self.begin();
        transaction.allocate(stob, extent);
        self.commit(transaction).await
    }

    /// Makes `to` what `from` is now, without copying data: both share its blocks until either is written. What `to` was before is gone;
    /// space kept for holes stays with `from`. Costs metadata for each extent of `from`. Errors: as [`Domain::commit`].
    pub async fn snapshot(&self, from: StobId, to: StobId) -> Result<(), StobError> {
        let mut transaction = self.begin();
        transaction.snapshot(from, to);
        self.commit(transaction).await
    }

    /// Up to `limit` stobs after `after`, in order: those created, and those with a block written or allocated.
    #[must_use]
    pub fn stobs(&self, after: Option<StobId>, limit: usize) -> Vec<StobId> {
        self.shared.state.borrow().metadata.stobs_after(after).take(limit).collect()
    }

    /// All generations of `fid`, in order.
    #[must_use]
    pub fn stobs_of(&self, fid: Fid) -> Vec<StobId> {
        self.shared.state.borrow().metadata.stobs_of(fid).collect()
    }

    /// Written blocks of a stob; `None` if it does not exist.
    #[must_use]
    pub fn stob_blocks(&self, stob: StobId) -> Option<u64> {
        self.shared.state.borrow().metadata.stob_blocks(stob)
    }

    /// The durable value of a key.
    #[must_use]
    pub fn tree_get(&self, tree: TreeId, key: &[u8]) -> Option<Vec<u8>> {
        self.shared.state.borrow().metadata.tree_get(tree, key).map(<[u8]>::to_vec)
    }

    /// Up to `limit` keys and values from `from` on, in order of bytes.
    #[must_use]
    pub fn tree_range(&self, tree: TreeId, from: Bound<&[u8]>, limit: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let state = self.shared.state.borrow();
        let range = state.metadata.tree_range(tree, from).take(limit);
        range.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
    }

    /// An empty transaction.
    pub fn begin(&self) -> Transaction {
        Transaction::default()
    }

    /// Makes all changes of `transaction` durable together. Transactions take effect in the order in which their commits were
    /// first polled. An empty one waits for nothing. Errors: [`StobError::BadRequest`] and [`StobError::NoSpace`] (nothing
    /// changed), [`StobError::Device`] (open until the device is opened again), [`StobError::Poisoned`].
    pub async fn commit(&self, transaction: Transaction) -> Result<(), StobError> {
        let shared = &self.shared;
        shared.check_writable()?;
        let (changes, conditions) = transaction.into_parts()?;
        if changes.is_empty() && conditions.is_empty() {
            return Ok(());
        }
        let permit = match shared.permits.try_acquire(1) {
            Some(permit) => permit,
            None => shared.permits.acquire(1).await,
        };
        let (queued, receiver) =
            Queued::new(shared, changes, conditions, Vec::new(), permit).map_err(|(error, _)| error)?;
        shared.enqueue(Work::Commit(queued));
        receiver.await.unwrap_or(Err(StobError::Closed))
    }

    /// Ends all doubt about what was acknowledged before: it is durable without, and after this recovery need not look at the data of the last
    /// group any more. Errors: [`StobError::Device`], [`StobError::Poisoned`].
    pub async fn flush(&self) -> Result<(), StobError> {
        self.shared.check_writable()?;
        let (sender, receiver) = oneshot::channel();
        self.shared.enqueue(Work::Flush(sender));
        receiver.await.unwrap_or(Err(StobError::Closed))
    }

    /// Finishes what is queued, takes a checkpoint and lets go of the device, for all clones.
    /// Errors: [`StobError::Poisoned`], [`StobError::Device`]; the device is let go of all the same, and recovery does the rest.
    pub async fn close(self) -> Result<(), StobError> {
        if self.shared.is_closed() {
            return Err(StobError::Closed);
        }
        let (sender, receiver) = oneshot::channel();
        self.shared.enqueue(Work::Close(sender));
        receiver.await.unwrap_or(Err(StobError::Closed))
    }

    /// True if an earlier write or flush failed: nothing is written until the device is opened again.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.shared.status.get() == Status::Poisoned
    }

    /// Injected device loss: while true, each access of the device fails with EIO.
    pub fn set_failed(&self, is_failed: bool) {
        self.shared.device.switch().set_failed(is_failed);
    }

    /// What the domain did, oldest first: see [`TraceEvent`].
    #[must_use]
    pub fn trace(&self) -> Vec<TraceEvent> {
        self.shared.trace.borrow().events()
    }

    /// Checks that every block has exactly one owner and every count is right, as far as that can be seen in the extents that are in memory now
    /// ([`Domain::verify_all`] reads the others too). The error says what is wrong.
    pub fn verify(&self) -> Result<(), String> {
        self.shared.state.borrow().verify(&self.shared.regions())
    }
}

impl std::fmt::Debug for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Domain({:?}, {:?})", self.shared.superblock.get().device, self.shared.status.get())
    }
}
