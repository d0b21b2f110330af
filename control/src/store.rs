//! Control's durable state: the configuration and the transactions of the cluster file, in trees of a domain of its own.
//!
//! **Invariant**: what was saved is what a restart finds; a save is whole or absent (one transaction). Keys, format
//! version and bytes: docs/configuration.md#controls-store. Left over: a device error, after which control changes nothing.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::rc::Rc;

use base::checksum::crc32c;
use base::{Fid, FidType};
use faces::configuration::CONFIGURATION_FORMAT;
use faces::later_store::later_store_reason;
use faces::limits::EVENTS_KEPT;
use faces::{Configuration, DeviceState};
use fops::admin::StoreSpace;
use fops::codec;
use fops::conf::{ConfTransaction, Event};
use fops::lock::{Fence, LockGrant, LockName, OwnerId};
use fops::repair::RepairRecord;
use fops::rm::{BorrowerId, BorrowerRecord, LoanRecord};
use fops::watch::{WatchRecord, WatcherId};
use runtime::LocalityHandle;
use spdk_stob::{Backend, Domain, FormatParams, TreeId};

use crate::conf_book::ConfBytes;
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
/// The one key: head of the configuration ([`Head`]).
const KEY: &[u8] = b"configuration";
/// Format version of the head: the encoded configuration stands in pages of [`PAGES`], of which a change writes those that it touches.
const FORMAT_VERSION: u32 = 3;
/// With the encoded configuration behind the version. Written as long as it holds everything, since control of earlier versions reads it
/// ([`later_store_reason`]).
const FORMAT_VERSION_2: u32 = 2;
/// The same without numbers of replacements and the version that changes need; still read.
const FORMAT_VERSION_1: u32 = 1;
/// Bytes of a page of the configuration: a change of one device rewrites two.
const PAGE_BYTES: usize = 1024;
/// Changed pages beyond which all are written to the other place first, in transactions of their own: a record of the log has 1 MiB.
const PAGES_AT_ONCE_MAX: usize = 128;
/// Bytes of what is written ahead in one transaction.
const AHEAD_BYTES: usize = 256 << 10;
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
/// The tree of processes: key = the process's 16 key bytes; value = the encoded event that says its state: the last one about it, which outlives
/// its number among the events.
const PROCESSES: TreeId = TreeId(10);
/// The tree of pages of the configuration: key = place (1 byte) and page (4, big endian).
const PAGES: TreeId = TreeId(20);
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
    /// The place of the configuration in force, and its bytes; nothing while it does not stand in pages.
    configuration: RefCell<Option<(u8, Rc<[u8]>)>>,
}

/// What stands at [`KEY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    /// Number of the configuration's own form.
    form: u32,
    /// Which of the two places its pages have.
    place: u8,
    version: u64,
    bytes: u32,
    checksum: u32,
}

const HEAD_BYTES: usize = 4 + 4 + 4 + 8 + 4 + 4;

impl Head {
    fn of(place: u8, configuration: &ConfBytes) -> Head {
        Head {
            form: CONFIGURATION_FORMAT,
            place,
            version: configuration.version,
            bytes: u32::try_from(configuration.bytes.len()).expect("a configuration is below 1 MiB"),
            checksum: configuration.checksum,
        }
    }

    fn to_bytes(self) -> Vec<u8> {
        let Head { form, place, version, bytes, checksum } = self;
        let mut value = FORMAT_VERSION.to_le_bytes().to_vec();
        value.extend(form.to_le_bytes());
        value.extend(u32::from(place).to_le_bytes());
        value.extend(version.to_le_bytes());
        value.extend(bytes.to_le_bytes());
        value.extend(checksum.to_le_bytes());
        value
    }

    /// Of a value of [`FORMAT_VERSION`]. Error: damaged, or of a later program.
    fn parse(value: &[u8]) -> Result<Head, ControlError> {
        if value.len() != HEAD_BYTES {
            return Err(ControlError::StoreBroken);
        }
        let word = |at: usize| value[at..].first_chunk::<4>().map_or(0, |word| u32::from_le_bytes(*word));
        let version = value[12..].first_chunk::<8>().map_or(0, |word| u64::from_le_bytes(*word));
        let place = u8::try_from(word(8)).map_err(|_| ControlError::StoreBroken)?;
        let head = Head { form: word(4), place, version, bytes: word(20), checksum: word(24) };
        if head.form != CONFIGURATION_FORMAT {
            return Err(ControlError::StoreFormat { found: head.form });
        }
        Ok(head)
    }

    fn pages(self) -> u32 {
        self.bytes.div_ceil(u32::try_from(PAGE_BYTES).expect("small"))
    }
}

fn page_key(place: u8, page: u32) -> [u8; 5] {
    let mut key = [place; 5];
    key[1..].copy_from_slice(&page.to_be_bytes());
    key
}

/// What a store had when it was opened.
#[derive(Default)]
pub(crate) struct Stored {
    pub(crate) configuration: Option<Configuration>,
    /// Transactions, oldest first, and the mark of the file last read; nothing if none was ever stored.
    pub(crate) transactions: Option<(VecDeque<Kept>, u64)>,
    /// Oldest first, at most [`EVENTS_KEPT`].
    pub(crate) events: VecDeque<Event>,
    /// Of each process the last event, of those that a version wrote which keeps them.
    pub(crate) process_events: Vec<Event>,
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

impl Stored {
    /// The state of each process that was told last.
    pub(crate) fn process_states(&self) -> BTreeMap<Fid, DeviceState> {
        // Events of a version that keeps no others may be newer.
        let events = self.process_events.iter().chain(&self.events);
        let mut told: Vec<&Event> = events.filter(|event| event.subject.is(FidType::Process)).collect();
        told.sort_by_key(|event| event.number);
        told.iter().filter_map(|event| Some((event.subject, DeviceState::from_word(&event.to)?))).collect()
    }
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
        let store = Store { log, saved: RefCell::default(), configuration: RefCell::default() };
        let stored = match store.get(TREE, KEY) {
            Some(value) => Some(Stored {
                configuration: Some(store.read_configuration(&value)?),
                transactions: store.read_transactions()?,
                events: store.read_events()?,
                process_events: store.read_all(PROCESSES)?,
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

    fn read_configuration(&self, value: &[u8]) -> Result<Configuration, ControlError> {
        let (configuration, pages) = decode(value, |key| self.get(PAGES, &key))?;
        *self.configuration.borrow_mut() = pages;
        Ok(configuration)
    }

    /// Durable when it returns: the configuration and the transactions that are new or no longer kept, if they changed since the last save; new
    /// events, and what changed of locks, fences, watches, loans and repairs.
    ///
    /// What is long is written ahead, where nobody looks for it before the rest is there.
    pub(crate) async fn save(
        &self,
        configuration: Option<(&Configuration, &ConfBytes)>,
        transactions: Option<&Transactions>,
        changes: &Changes,
    ) -> Result<(), ControlError> {
        let Changes { events, locks: (lock_changes, lock_numbers), watches, loans, repairs } = changes;
        let (mut ahead, mut batch) = (Batch::default(), Batch::default());
        let pages = configuration.map(|(configuration, bytes)| {
            let before = self.configuration.borrow();
            let before = before.as_ref().map(|(place, bytes)| (*place, &**bytes));
            if later_store_reason(configuration).is_some() {
                let place = put_pages(before, bytes, &mut ahead, &mut batch);
                return Some((place, Rc::clone(&bytes.bytes)));
            }
            // Written by a program that knew no other format, or put back from one.
            let pages = before.map(|_| self.range(PAGES, Bound::Unbounded, usize::MAX)).unwrap_or_default();
            put_whole(bytes, pages.iter().map(|(key, _)| key.as_slice()), &mut batch);
            None
        });
        let mut saved = self.saved.borrow().clone();
        if let Some(transactions) = transactions {
            batch.put(TREE, SEEN_KEY, &transactions.seen().to_le_bytes());
            for kept in transactions.kept() {
                let number = kept.record.number;
                if saved.contains(&(number, 0)) {
                    continue;
                }
                let record = codec::encode(&kept.record).map_err(ControlError::Record)?;
                batch.put(TRANSACTIONS, &key_of(number, 0), &record);
                let mut parts = BTreeSet::from([(number, 0)]);
                let pieces = if kept.text.len() > PIECE_BYTES { &mut ahead } else { &mut batch };
                for (part, piece) in (1..).zip(kept.text.as_bytes().chunks(PIECE_BYTES)) {
                    pieces.put(TRANSACTIONS, &key_of(number, part), piece);
                    parts.insert((number, part));
                }
                // Pieces of a text that did not come in force, under the number that this one has now.
                let left: Vec<(u64, u32)> = saved.range((number, 0)..=(number, u32::MAX)).copied().collect();
                for (number, part) in left.into_iter().filter(|left| !parts.contains(left)) {
                    batch.delete(TRANSACTIONS, &key_of(number, part));
                    saved.remove(&(number, part));
                }
                saved.extend(parts);
            }
            let oldest = transactions.kept().front().map_or(0, |kept| kept.record.number);
            let gone: Vec<(u64, u32)> = saved.range(..(oldest, 0)).copied().collect();
            for (number, part) in gone {
                batch.delete(TRANSACTIONS, &key_of(number, part));
                saved.remove(&(number, part));
            }
        }
        // Pieces that were written ahead of a record that never came: earlier versions take them for part of the text before them.
        let is_whole = |(number, _): &(u64, u32)| saved.contains(&(*number, 0));
        let left: Vec<(u64, u32)> = saved.iter().filter(|piece| !is_whole(piece)).copied().collect();
        for (number, part) in left {
            batch.delete(TRANSACTIONS, &key_of(number, part));
            saved.remove(&(number, part));
        }
        // Of more than are kept only the last ones ever are.
        let events = &events[events.len().saturating_sub(EVENTS_KEPT)..];
        for event in events {
            let value = codec::encode(event).map_err(ControlError::Record)?;
            batch.put(EVENTS, &event.number.to_be_bytes(), &value);
            if event.subject.is(FidType::Process) {
                batch.put(PROCESSES, &event.subject.to_key_bytes(), &value);
            }
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
        self.write_ahead(ahead).await?;
        self.log.commit(batch).await?;
        *self.saved.borrow_mut() = saved;
        if let Some(pages) = pages {
            *self.configuration.borrow_mut() = pages;
        }
        Ok(())
    }

    async fn write_ahead(&self, ahead: Batch) -> Result<(), ControlError> {
        let (mut part, mut bytes) = (Batch::default(), 0);
        for change in ahead.changes {
            bytes += change.record_bytes();
            if bytes > AHEAD_BYTES && !part.changes.is_empty() {
                bytes = change.record_bytes();
                self.log.commit(std::mem::take(&mut part)).await?;
            }
            part.changes.push(change);
        }
        if !part.changes.is_empty() {
            self.log.commit(part).await?;
        }
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
                } else if let Some((_, text)) =
                    records.last_mut().filter(|(record, _)| record.number == number)
                {
                    text.extend(value);
                }
                // Pieces without a record were written ahead of one that never came.
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

    /// Bytes that it was made with.
    pub(crate) fn bytes(&self) -> u64 {
        self.log.domain().info().device_blocks.saturating_mul(base::units::BLOCK_BYTES)
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

/// The pages that differ from those `before` (its place and bytes) go with the rest; or, if they are many, all of them to the other place ahead
/// of it. Answer: the place.
fn put_pages(
    before: Option<(u8, &[u8])>,
    configuration: &ConfBytes,
    ahead: &mut Batch,
    batch: &mut Batch,
) -> u8 {
    let mut stored = before.map_or(&[][..], |(_, bytes)| bytes).chunks(PAGE_BYTES);
    let pages = || (0..).zip(configuration.bytes.chunks(PAGE_BYTES));
    let changed: Vec<(u32, &[u8])> = pages().filter(|(_, page)| stored.next() != Some(*page)).collect();
    let place = match before {
        Some((place, _)) if changed.len() <= PAGES_AT_ONCE_MAX => {
            for (page, bytes) in changed {
                batch.put(PAGES, &page_key(place, page), bytes);
            }
            let count = u32::try_from(pages().count()).unwrap_or(u32::MAX);
            for (page, _) in (count..).zip(stored) {
                batch.delete(PAGES, &page_key(place, page));
            }
            place
        }
        _ => {
            let place = before.map_or(0, |(place, _)| 1 - place.min(1));
            let to = if pages().count() > PAGES_AT_ONCE_MAX { ahead } else { &mut *batch };
            for (page, bytes) in pages() {
                to.put(PAGES, &page_key(place, page), bytes);
            }
            place
        }
    };
    batch.put(TREE, KEY, &Head::of(place, configuration).to_bytes());
    place
}

/// All of it goes with the rest, in format 2; `pages` are what an earlier format 3 has left.
fn put_whole<'a>(configuration: &ConfBytes, pages: impl Iterator<Item = &'a [u8]>, batch: &mut Batch) {
    batch.put(TREE, KEY, &[&FORMAT_VERSION_2.to_le_bytes(), &*configuration.bytes].concat());
    pages.for_each(|page| batch.delete(PAGES, page));
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
    value.as_deref().map(version_by).transpose()
}

/// Version of the configuration that a batch brings.
pub(crate) fn version_in(batch: &Batch) -> Option<u64> {
    value_in(batch, KEY).and_then(|value| version_by(value).ok())
}

fn version_by(value: &[u8]) -> Result<u64, ControlError> {
    match format_of(value)? {
        FORMAT_VERSION => Ok(Head::parse(value)?.version),
        _ => Ok(decode(value, |_| None)?.0.version),
    }
}

/// The configuration that a copy holds.
pub(crate) fn configuration_in(state: &Batch) -> Result<Configuration, ControlError> {
    let value = value_in(state, KEY).ok_or(ControlError::StoreBroken)?;
    let pages: BTreeMap<&[u8], &Vec<u8>> = state
        .changes
        .iter()
        .filter(|change| change.tree == PAGES)
        .filter_map(|change| Some((change.key.as_slice(), change.value.as_ref()?)))
        .collect();
    Ok(decode(value, |key| pages.get(key.as_slice()).map(|page| (*page).clone()))?.0)
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
    let bytes = ConfBytes::of(&configuration).map_err(ControlError::Configuration)?;
    state.changes.retain(|change| change.tree != PAGES);
    if later_store_reason(&configuration).is_some() {
        for (page, page_bytes) in (0..).zip(bytes.bytes.chunks(PAGE_BYTES)) {
            state.put(PAGES, &page_key(0, page), page_bytes);
        }
        state.put(TREE, KEY, &Head::of(0, &bytes).to_bytes());
    } else {
        put_whole(&bytes, std::iter::empty(), state);
    }
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

/// The newest cluster file of the durable state and of the batches that are `ahead` of it, oldest first; its credential left out. `None` if there is none.
pub(crate) fn newest_text(
    place: impl Fn(TreeId) -> TreeId,
    domain: &Domain,
    ahead: &[Batch],
) -> Option<String> {
    let stored = domain.tree_range(place(TRANSACTIONS), Bound::Unbounded, usize::MAX);
    let mut pieces: BTreeMap<(u64, u32), Vec<u8>> =
        stored.into_iter().filter_map(|(key, piece)| Some((number_of(&key)?, piece))).collect();
    for change in ahead.iter().flat_map(|batch| &batch.changes).filter(|change| change.tree == TRANSACTIONS) {
        let Some(key) = number_of(&change.key) else { continue };
        match &change.value {
            Some(piece) => pieces.insert(key, piece.clone()),
            None => pieces.remove(&key),
        };
    }
    // Pieces may stand there ahead of their record.
    let newest = pieces.keys().filter(|(_, part)| *part == 0).map(|(number, _)| *number).max()?;
    let text = pieces.range((newest, 1)..=(newest, u32::MAX));
    String::from_utf8(text.flat_map(|(_, piece)| piece.iter().copied()).collect()).ok()
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

fn format_of(value: &[u8]) -> Result<u32, ControlError> {
    let version = value.first_chunk::<4>().ok_or(ControlError::StoreFormat { found: 0 })?;
    match u32::from_le_bytes(*version) {
        found @ (FORMAT_VERSION | FORMAT_VERSION_2 | FORMAT_VERSION_1) => Ok(found),
        found => Err(ControlError::StoreFormat { found }),
    }
}

/// A configuration, and the place and bytes of its pages if it has any.
type Decoded = (Configuration, Option<(u8, Rc<[u8]>)>);

/// Reads the value at [`KEY`], and the pages that it names.
fn decode(value: &[u8], page: impl Fn([u8; 5]) -> Option<Vec<u8>>) -> Result<Decoded, ControlError> {
    let wrong = ControlError::Configuration;
    match format_of(value)? {
        FORMAT_VERSION => {
            let head = Head::parse(value)?;
            let mut bytes = Vec::new();
            for number in 0..head.pages() {
                bytes.extend(page(page_key(head.place, number)).ok_or(ControlError::StoreBroken)?);
            }
            let is_that =
                bytes.len() == base::units::narrow(head.bytes.into()) && crc32c(&bytes) == head.checksum;
            if !is_that {
                return Err(ControlError::StoreBroken);
            }
            let configuration = Configuration::from_bytes(&bytes).map_err(wrong)?;
            Ok((configuration, Some((head.place, bytes.into()))))
        }
        FORMAT_VERSION_1 => Ok((Configuration::from_bytes_1(&value[4..]).map_err(wrong)?, None)),
        _ => Ok((Configuration::from_bytes(&value[4..]).map_err(wrong)?, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(version: u64, len: usize, changed: &[usize]) -> ConfBytes {
        let mut bytes = vec![7; len];
        bytes[..8].copy_from_slice(&version.to_le_bytes());
        changed.iter().for_each(|at| bytes[*at] ^= 1);
        ConfBytes { version, checksum: crc32c(&bytes), bytes: bytes.into() }
    }

    /// What a tree has after batches, and the bytes that its head leads to.
    #[derive(Default)]
    struct Tree(BTreeMap<(u32, Vec<u8>), Vec<u8>>);

    impl Tree {
        fn apply(&mut self, batch: Batch) {
            for change in batch.changes {
                let key = (change.tree.0, change.key);
                match change.value {
                    Some(value) => self.0.insert(key, value),
                    None => self.0.remove(&key),
                };
            }
        }

        fn pages(&self) -> Vec<Vec<u8>> {
            self.0.keys().filter(|(tree, _)| *tree == PAGES.0).map(|(_, key)| key.clone()).collect()
        }

        fn whole(&self) -> Vec<u8> {
            let value = &self.0[&(TREE.0, KEY.to_vec())];
            if format_of(value).unwrap() == FORMAT_VERSION_2 {
                return value[4..].to_vec();
            }
            let head = Head::parse(value).unwrap();
            let pages =
                (0..head.pages()).map(|page| &self.0[&(PAGES.0, page_key(head.place, page).to_vec())]);
            let bytes: Vec<u8> = pages.flatten().copied().collect();
            assert_eq!(
                (bytes.len(), crc32c(&bytes)),
                (base::units::narrow(head.bytes.into()), head.checksum)
            );
            bytes
        }
    }

    #[test]
    fn a_change_writes_the_pages_that_it_touches_and_many_go_to_the_other_place_first() {
        const LEN: usize = 700_000;
        let mut tree = Tree::default();
        let mut before: Option<(u8, ConfBytes)> = None;
        let everywhere: Vec<usize> = (8..LEN).step_by(1000).collect();
        let steps: [(&[usize], usize, usize, u8); 6] = [
            (&[], LEN, 684, 0),
            (&[400_000], LEN, 0, 0),
            (&everywhere, LEN, 684, 1),
            (&[9], LEN, 684, 0),
            (&[9], LEN + 3000, 0, 0),
            (&[9], 5000, 0, 0),
        ];
        for (version, (changed, len, pages_ahead, place)) in (1..).zip(steps) {
            let next = bytes(version, len, changed);
            let (mut ahead, mut batch) = (Batch::default(), Batch::default());
            let stored = before.as_ref().map(|(place, one)| (*place, &*one.bytes));
            let to = put_pages(stored, &next, &mut ahead, &mut batch);
            assert_eq!((ahead.changes.len(), to), (pages_ahead, place), "version {version}");
            if version == 2 {
                assert_eq!(batch.changes.len(), 3, "two pages and the head");
            }
            // The power may go before the head is there.
            let whole_before = before.as_ref().map(|(_, one)| one.bytes.to_vec());
            tree.apply(ahead);
            if let Some(whole_before) = whole_before {
                assert_eq!(tree.whole(), whole_before, "version {version}");
            }
            tree.apply(batch);
            assert_eq!(tree.whole(), next.bytes.to_vec(), "version {version}");
            before = Some((to, next));
        }
        // The other place keeps its pages; of this one what is not needed goes.
        assert_eq!(tree.0.keys().filter(|(tree, key)| *tree == PAGES.0 && key[0] == 0).count(), 5);
    }

    #[test]
    fn the_last_word_on_a_process_outlives_its_number_among_the_events() {
        let event = |number, subject, to: &str| Event {
            number,
            version: 1,
            unix_s: 0,
            subject,
            cause: "registered".to_owned(),
            from: "unknown".to_owned(),
            to: to.to_owned(),
        };
        let [one, two, three] = [1, 2, 3].map(|key| Fid::new(FidType::Process, 1, key));
        let stored = Stored {
            process_events: vec![
                event(4, one, "transient"),
                event(9, two, "online"),
                event(8, three, "online"),
            ],
            // Of an earlier version, which does not keep them: newer, and a state that this one does not know.
            events: VecDeque::from([
                event(20, two, "online"),
                event(21, two, "transient"),
                event(22, three, "asleep"),
                event(23, Fid::new(FidType::Device, 1, 1), "failed"),
            ]),
            ..Stored::default()
        };
        let told =
            [(one, DeviceState::Transient), (two, DeviceState::Transient), (three, DeviceState::Online)];
        assert_eq!(stored.process_states(), BTreeMap::from(told));
    }

    #[test]
    fn from_one_format_to_the_other_and_back_there_is_always_a_whole_configuration() {
        let mut tree = Tree::default();
        let mut before: Option<(u8, ConfBytes)> = None;
        // Bytes, and whether they need format 3: small, large (ahead of the head), small again, small ones that need it, small.
        let steps =
            [(3000, false), (700_000, true), (701_000, true), (4000, false), (5000, true), (2000, false)];
        for (version, (len, is_later)) in (1..).zip(steps) {
            let next = bytes(version, len, &[]);
            let (mut ahead, mut batch) = (Batch::default(), Batch::default());
            let place = if is_later {
                let stored = before.as_ref().map(|(place, one)| (*place, &*one.bytes));
                Some(put_pages(stored, &next, &mut ahead, &mut batch))
            } else {
                let pages = tree.pages();
                put_whole(&next, pages.iter().map(Vec::as_slice), &mut batch);
                None
            };
            let whole_before = (version > 1).then(|| tree.whole());
            tree.apply(ahead);
            // The power may go here.
            if let Some(whole_before) = whole_before {
                assert!(tree.whole() == whole_before, "version {version}");
            }
            tree.apply(batch);
            assert!(tree.whole() == next.bytes.to_vec(), "version {version}");
            let format = format_of(&tree.0[&(TREE.0, KEY.to_vec())]).unwrap();
            assert_eq!(format, if is_later { FORMAT_VERSION } else { FORMAT_VERSION_2 }, "version {version}");
            assert_eq!(tree.pages().is_empty(), !is_later, "version {version}: {} pages", tree.pages().len());
            before = place.map(|place| (place, next));
        }
    }
}
