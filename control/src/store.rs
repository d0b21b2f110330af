//! Control's durable state: the configuration and the transactions of the cluster file, in trees of a domain of its own.
//!
//! **Invariant**: what was saved is what a restart finds; a save is whole or absent (one transaction). Keys, format
//! version and bytes: docs/configuration.md#controls-store. Left over: a device error, after which control changes nothing.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::ops::Bound;
use std::rc::Rc;

use base::{Fid, FidType};
use faces::Configuration;
use faces::limits::EVENTS_KEPT;
use fops::admin::StoreSpace;
use fops::codec;
use fops::conf::{ConfTransaction, Event};
use fops::lock::{Fence, LockGrant, LockName, OwnerId};
use fops::repair::RepairRecord;
use fops::rm::{BorrowerId, BorrowerRecord, LoanRecord};
use fops::watch::{WatchRecord, WatcherId};
use runtime::LocalityHandle;
use spdk_stob::{Backend, Domain, FormatParams, TreeId};

use crate::error::ControlError;
use crate::loans::LoanChange;
use crate::locks::{LockChange, LockNumbers};
use crate::replication::batch::Batch;
use crate::replication::journal::{Position, state_of};
use crate::replication::log::{Confirming, ReplicatedLog};
use crate::transactions::{Kept, Transactions};
use crate::watches::WatchChange;

/// The tree of control's state.
const TREE: TreeId = TreeId(1);
/// The one key.
const KEY: &[u8] = b"configuration";
/// Format version before the encoded configuration.
const FORMAT_VERSION: u32 = 2;
/// Without numbers of replacements and the version that changes need; still read.
const FORMAT_VERSION_1: u32 = 1;
/// Mark of the cluster file that was last read at a start.
const SEEN_KEY: &[u8] = b"seen";
/// The tree of transactions: key = number and part, big endian; part 0 is the record, the others pieces of the text.
pub(crate) const TRANSACTIONS: TreeId = TreeId(2);
/// The tree of events: key = number, big endian; value = the encoded event.
const EVENTS: TreeId = TreeId(3);
/// The tree of held locks: key = `lock_key`; value = the encoded grant.
const LOCKS: TreeId = TreeId(4);
/// The tree of fences: key = number, big endian; value = the encoded fence.
const FENCES: TreeId = TreeId(5);
/// The tree of watches: key = `watch_key`; value = the encoded record.
const WATCHES: TreeId = TreeId(6);
/// The tree of borrowers: key = borrower, big endian; value = the encoded record.
const BORROWERS: TreeId = TreeId(7);
/// The tree of loans: key = `loan_key`; value = the encoded record.
const LOANS: TreeId = TreeId(8);
/// The tree of repairs: key = the device's 16 key bytes; value = the encoded record.
const REPAIRS: TreeId = TreeId(9);
/// The first fid that was never handed out, little endian.
const NEXT_FID_KEY: &[u8] = b"next-fid";
/// The last numbers of tickets and fences, little endian.
const LOCK_NUMBERS_KEY: &[u8] = b"lock-numbers";
/// How far versions and numbers leap when a copy is put back: more than a cluster uses up between a copy and its loss.
const LEAP_OF_VERSIONS: u64 = 1 << 24;
const LEAP_OF_NUMBERS: u64 = 1 << 40;
/// Bytes of a piece of a text.
const PIECE_BYTES: usize = 128 << 10;
/// Keys read at a time.
const PAGE: usize = 16;

/// The open store.
pub(crate) struct Store {
    log: Rc<dyn ReplicatedLog>,
    /// Numbers of the transactions that are in it, with the keys of each.
    saved: RefCell<BTreeSet<(u64, u32)>>,
}

/// What a store had when it was opened.
#[derive(Default)]
pub(crate) struct Stored {
    pub(crate) configuration: Option<Configuration>,
    /// Transactions, oldest first, and the mark of the file last read; nothing if none was ever stored.
    pub(crate) transactions: Option<(VecDeque<Kept>, u64)>,
    /// Oldest first, at most [`EVENTS_KEPT`].
    pub(crate) events: VecDeque<Event>,
    pub(crate) grants: Vec<LockGrant>,
    pub(crate) fences: Vec<Fence>,
    pub(crate) lock_numbers: LockNumbers,
    pub(crate) watches: Vec<WatchRecord>,
    pub(crate) borrowers: Vec<BorrowerRecord>,
    pub(crate) loans: Vec<LoanRecord>,
    pub(crate) repairs: Vec<RepairRecord>,
    /// The first fid that was never handed out; 0 if none was.
    pub(crate) next_fid: u64,
}

/// What is new since the last save.
#[derive(Default)]
pub(crate) struct Changes {
    pub(crate) events: Vec<Event>,
    pub(crate) locks: (Vec<LockChange>, LockNumbers),
    pub(crate) watches: Vec<WatchChange>,
    pub(crate) loans: Vec<LoanChange>,
    pub(crate) repairs: Vec<RepairRecord>,
}

impl Store {
    /// Reads what the log's state has; nothing if it has none yet. Errors: damaged, or written by a newer program.
    pub(crate) fn open(log: Rc<dyn ReplicatedLog>) -> Result<(Store, Option<Stored>), ControlError> {
        let store = Store { log, saved: RefCell::default() };
        let stored = match store.get(TREE, KEY) {
            Some(value) => Some(Stored {
                configuration: Some(decode(&value)?),
                transactions: store.read_transactions()?,
                events: store.read_events()?,
                grants: store.read_all(LOCKS)?,
                fences: store.read_all(FENCES)?,
                lock_numbers: store.read_lock_numbers()?,
                watches: store.read_all(WATCHES)?,
                borrowers: store.read_all(BORROWERS)?,
                loans: store.read_all(LOANS)?,
                repairs: store.read_all(REPAIRS)?,
                next_fid: store.read_next_fid()?,
            }),
            None => None,
        };
        Ok((store, stored))
    }

    fn get(&self, tree: TreeId, key: &[u8]) -> Option<Vec<u8>> {
        self.log.domain().tree_get(self.log.place(tree), key)
    }

    fn range(&self, tree: TreeId, from: Bound<&[u8]>, limit: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.log.domain().tree_range(self.log.place(tree), from, limit)
    }

    /// Durable when it returns: the configuration, the transactions that are new or no longer kept, new events, and what
    /// changed of locks, fences, watches, loans and repairs.
    pub(crate) async fn save(
        &self,
        configuration: &Configuration,
        transactions: Option<&Transactions>,
        changes: &Changes,
    ) -> Result<(), ControlError> {
        let Changes { events, locks: (lock_changes, lock_numbers), watches, loans, repairs } = changes;
        let mut batch = Batch::default();
        batch.put(TREE, KEY, &encode(configuration)?);
        let mut saved = self.saved.borrow().clone();
        if let Some(transactions) = transactions {
            batch.put(TREE, SEEN_KEY, &transactions.seen().to_le_bytes());
            for kept in transactions.kept() {
                let number = kept.record.number;
                if saved.contains(&(number, 0)) {
                    continue;
                }
                let record = codec::encode(&kept.record).map_err(ControlError::Record)?;
                let pieces = kept.text.as_bytes().chunks(PIECE_BYTES);
                for (part, piece) in (0..).zip([record.as_slice()].into_iter().chain(pieces)) {
                    batch.put(TRANSACTIONS, &key_of(number, part), piece);
                    saved.insert((number, part));
                }
            }
            let oldest = transactions.kept().front().map_or(0, |kept| kept.record.number);
            let gone: Vec<(u64, u32)> = saved.range(..(oldest, 0)).copied().collect();
            for (number, part) in gone {
                batch.delete(TRANSACTIONS, &key_of(number, part));
                saved.remove(&(number, part));
            }
        }
        for event in events {
            let value = codec::encode(event).map_err(ControlError::Record)?;
            batch.put(EVENTS, &event.number.to_be_bytes(), &value);
            let gone = event.number.saturating_sub(base::units::wide(EVENTS_KEPT));
            if gone > 0 {
                batch.delete(EVENTS, &gone.to_be_bytes());
            }
        }
        if !lock_changes.is_empty() {
            let numbers = [lock_numbers.epoch.to_le_bytes(), lock_numbers.fence.to_le_bytes()].concat();
            batch.put(TREE, LOCK_NUMBERS_KEY, &numbers);
        }
        for change in lock_changes {
            match change {
                LockChange::PutGrant(grant) => {
                    let value = codec::encode(grant).map_err(ControlError::Record)?;
                    batch.put(LOCKS, &lock_key(&grant.lock, grant.ticket.owner), &value);
                }
                LockChange::DropGrant(lock, owner) => {
                    batch.delete(LOCKS, &lock_key(lock, *owner));
                }
                LockChange::PutFence(fence) => {
                    let value = codec::encode(fence).map_err(ControlError::Record)?;
                    batch.put(FENCES, &fence.number.to_be_bytes(), &value);
                }
                LockChange::DropFence(number) => {
                    batch.delete(FENCES, &number.to_be_bytes());
                }
                LockChange::Numbers => {}
            }
        }
        for change in watches {
            match change {
                WatchChange::Put(watch) => {
                    let value = codec::encode(watch).map_err(ControlError::Record)?;
                    batch.put(WATCHES, &watch_key(watch.watcher, watch.cookie), &value);
                }
                WatchChange::Drop(watcher, cookie) => {
                    batch.delete(WATCHES, &watch_key(*watcher, *cookie));
                }
            }
        }
        for change in loans {
            match change {
                LoanChange::PutBorrower(record) => {
                    let value = codec::encode(record).map_err(ControlError::Record)?;
                    batch.put(BORROWERS, &record.borrower.0.to_be_bytes(), &value);
                }
                LoanChange::DropBorrower(borrower) => {
                    batch.delete(BORROWERS, &borrower.0.to_be_bytes());
                }
                LoanChange::PutLoan(record) => {
                    let value = codec::encode(record).map_err(ControlError::Record)?;
                    batch.put(LOANS, &loan_key(record.borrower, record.number), &value);
                }
                LoanChange::DropLoan(borrower, number) => {
                    batch.delete(LOANS, &loan_key(*borrower, *number));
                }
                LoanChange::NextFid(next) => {
                    batch.put(TREE, NEXT_FID_KEY, &next.to_le_bytes());
                }
            }
        }
        for record in repairs {
            let value = codec::encode(record).map_err(ControlError::Record)?;
            batch.put(REPAIRS, &record.device.to_key_bytes(), &value);
        }
        self.log.commit(batch).await?;
        *self.saved.borrow_mut() = saved;
        Ok(())
    }

    fn read_events(&self) -> Result<VecDeque<Event>, ControlError> {
        let all = self.range(EVENTS, Bound::Unbounded, EVENTS_KEPT);
        all.iter().map(|(_, value)| codec::decode(value).map_err(ControlError::Record)).collect()
    }

    /// Every value of a tree, in the order of the keys.
    fn read_all<T: codec::Decode<()>>(&self, tree: TreeId) -> Result<Vec<T>, ControlError> {
        let mut values = Vec::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let page = self.range(tree, from, PAGE);
            let Some((last, _)) = page.last() else { return Ok(values) };
            after = Some(last.clone());
            for (_, value) in &page {
                values.push(codec::decode(value).map_err(ControlError::Record)?);
            }
        }
    }

    fn read_next_fid(&self) -> Result<u64, ControlError> {
        let Some(value) = self.get(TREE, NEXT_FID_KEY) else { return Ok(0) };
        value.try_into().map(u64::from_le_bytes).map_err(|_| ControlError::StoreBroken)
    }

    fn read_lock_numbers(&self) -> Result<LockNumbers, ControlError> {
        let Some(value) = self.get(TREE, LOCK_NUMBERS_KEY) else {
            return Ok(LockNumbers::default());
        };
        let numbers = value.split_first_chunk::<8>().and_then(|(epoch, rest)| {
            let fence = rest.try_into().ok().map(u64::from_le_bytes)?;
            Some(LockNumbers { epoch: u64::from_le_bytes(*epoch), fence })
        });
        numbers.ok_or(ControlError::StoreBroken)
    }

    fn read_transactions(&self) -> Result<Option<(VecDeque<Kept>, u64)>, ControlError> {
        let Some(seen) = self.get(TREE, SEEN_KEY) else { return Ok(None) };
        let broken = || ControlError::StoreBroken;
        let seen = u64::from_le_bytes(seen.try_into().map_err(|_| broken())?);
        let mut records: Vec<(ConfTransaction, Vec<u8>)> = Vec::new();
        let mut saved = BTreeSet::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let page = self.range(TRANSACTIONS, from, PAGE);
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            for (key, value) in page {
                let (number, part) = number_of(&key).ok_or_else(broken)?;
                saved.insert((number, part));
                if part == 0 {
                    records.push((codec::decode(&value).map_err(ControlError::Record)?, Vec::new()));
                } else {
                    records.last_mut().ok_or_else(broken)?.1.extend(value);
                }
            }
        }
        *self.saved.borrow_mut() = saved;
        let mut kept = VecDeque::new();
        for (record, text) in records {
            let text = String::from_utf8(text).map_err(|_| broken())?;
            if base::units::wide(text.len()) != record.text_bytes {
                return Err(broken());
            }
            kept.push_back(Kept { record, text: Rc::from(text) });
        }
        Ok(Some((kept, seen)))
    }

    /// Begins a reign: everything that earlier leaders may have left in the log has its effect when this returns, or never will.
    pub(crate) async fn draw_a_line(log: &Rc<dyn ReplicatedLog>) -> Result<(), ControlError> {
        log.commit(Batch::default()).await
    }

    /// Where the state is, for a copy of it.
    pub(crate) fn log(&self) -> &dyn ReplicatedLog {
        &*self.log
    }

    /// Asks whether anybody else may lead; `None` if there is nobody else.
    pub(crate) fn confirm(&self) -> Option<Confirming<'_>> {
        self.log.confirm()
    }
}

/// A copy of everything, for a backup. Errors: the state has no configuration yet.
pub(crate) fn copy(log: &dyn ReplicatedLog) -> Result<(Position, u64, Batch), ControlError> {
    let state = state_of(log.domain(), |tree| log.place(tree));
    let version = configuration_in(&state)?.version;
    Ok((log.position(), version, state))
}

/// Version of the configuration that a domain has.
pub(crate) fn version_of(
    domain: &Domain,
    place: impl Fn(TreeId) -> TreeId,
) -> Result<Option<u64>, ControlError> {
    let value = domain.tree_get(place(TREE), KEY);
    value.map(|value| Ok(decode(&value)?.version)).transpose()
}

/// The configuration that a copy holds.
pub(crate) fn configuration_in(state: &Batch) -> Result<Configuration, ControlError> {
    let value = value_in(state, KEY).ok_or(ControlError::StoreBroken)?;
    decode(value)
}

fn value_in<'a>(state: &'a Batch, key: &[u8]) -> Option<&'a [u8]> {
    let found = state.changes.iter().find(|change| change.tree == TREE && change.key == key)?;
    found.value.as_deref()
}

/// Numbers that were handed out after a copy was made must not be handed out again: each goes on far behind those of the copy.
/// Answer: the configuration's version from now on.
pub(crate) fn leap(state: &mut Batch) -> Result<u64, ControlError> {
    let mut configuration = configuration_in(state)?;
    configuration.version += LEAP_OF_VERSIONS;
    state.put(TREE, KEY, &encode(&configuration)?);
    let later = |value: Option<&[u8]>, index: usize| {
        let word = value.and_then(|value| value.get(8 * index..)?.first_chunk::<8>().copied());
        word.map_or(0, u64::from_le_bytes).saturating_add(LEAP_OF_NUMBERS).to_le_bytes()
    };
    let fid = value_in(state, NEXT_FID_KEY).map(|value| later(Some(value), 0));
    if let Some(fid) = fid {
        state.put(TREE, NEXT_FID_KEY, &fid);
    }
    let numbers = value_in(state, LOCK_NUMBERS_KEY);
    let numbers = [later(numbers, 0), later(numbers, 1)].concat();
    state.put(TREE, LOCK_NUMBERS_KEY, &numbers);
    Ok(configuration.version)
}

/// Opens the domain of the control daemon of a cluster; formats a blank device. Errors: not a store, of another cluster, damaged.
pub(crate) async fn open_domain(
    locality: &LocalityHandle,
    backend: Box<dyn Backend>,
    cluster: u64,
) -> Result<Domain, ControlError> {
    let device = Fid::new(FidType::Root, 0, cluster);
    let params = FormatParams { device, cluster };
    Domain::open_or_format(locality, backend, params).await.map_err(ControlError::Store)
}

/// How full it is.
pub(crate) fn space(domain: &Domain) -> StoreSpace {
    let info = domain.info();
    StoreSpace { blocks: info.blocks_total, free_blocks: info.blocks_free }
}

/// The cluster file in force by the durable state, its credential left out; `None` if there is none.
pub(crate) fn text_in_force(place: impl Fn(TreeId) -> TreeId, domain: &Domain) -> Option<String> {
    let keys = domain.tree_range(place(TRANSACTIONS), Bound::Unbounded, usize::MAX);
    let (newest, _) = keys.last().and_then(|(key, _)| number_of(key))?;
    let pieces = keys
        .into_iter()
        .filter(|(key, _)| number_of(key).is_some_and(|(number, part)| number == newest && part > 0));
    String::from_utf8(pieces.flat_map(|(_, piece)| piece).collect()).ok()
}

/// Object (16 zeros: the cluster), then the name, a zero byte (no name has one), then the owner.
fn lock_key(lock: &LockName, owner: OwnerId) -> Vec<u8> {
    let mut key = lock.object.map_or([0; 16], Fid::to_key_bytes).to_vec();
    key.extend_from_slice(lock.name.as_bytes());
    key.push(0);
    key.extend_from_slice(&owner.0.to_be_bytes());
    key
}

/// Watcher, then cookie.
fn watch_key(watcher: WatcherId, cookie: u64) -> [u8; 24] {
    let mut key = [0; 24];
    key[..16].copy_from_slice(&watcher.0.to_be_bytes());
    key[16..].copy_from_slice(&cookie.to_be_bytes());
    key
}

/// Borrower, then number.
fn loan_key(borrower: BorrowerId, number: u64) -> [u8; 24] {
    watch_key(WatcherId(borrower.0), number)
}

fn key_of(number: u64, part: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&number.to_be_bytes());
    key[8..].copy_from_slice(&part.to_be_bytes());
    key
}

fn number_of(key: &[u8]) -> Option<(u64, u32)> {
    let (number, part) = key.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*number), u32::from_be_bytes(part.try_into().ok()?)))
}

fn encode(configuration: &Configuration) -> Result<Vec<u8>, ControlError> {
    let mut value = FORMAT_VERSION.to_le_bytes().to_vec();
    value.extend(configuration.to_bytes().map_err(ControlError::Configuration)?);
    Ok(value)
}

fn decode(value: &[u8]) -> Result<Configuration, ControlError> {
    let (version, bytes) = value.split_first_chunk::<4>().ok_or(ControlError::StoreFormat { found: 0 })?;
    match u32::from_le_bytes(*version) {
        FORMAT_VERSION => Configuration::from_bytes(bytes).map_err(ControlError::Configuration),
        FORMAT_VERSION_1 => Configuration::from_bytes_1(bytes).map_err(ControlError::Configuration),
        found => Err(ControlError::StoreFormat { found }),
    }
}
