//! The durable log of a control daemon that replicates its state: entries, vote, and where its state stands, in trees of its own domain.
//!
//! The consensus library changes it without waiting; [`Journal::persist`] makes the changes durable, and whoever drives the library sends nothing
//! that follows from them before. **Invariant**: what the state of the trees says was applied is one entry of the log, written with that entry's
//! effect. **Invariant**: a copy of the state that arrives is written beside the state in force and takes its place in one transaction.
//! Left over: a device that refuses a write; then the daemon takes no part any more. Keys and bytes: docs/configuration.md#several-daemons.
//! Start at [`Journal::open`].

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Bound;
use std::rc::Rc;

use base::units::{narrow, wide};
use raft_io::{EntryKind, HardState, LogEntry, RaftLog, Snapshot};
use spdk_stob::{Domain, TreeId};

use crate::bug::Bug;
use crate::error::ControlError;
use crate::replication::batch::{Batch, Change};
use crate::replication::message::{kind_number, kind_of};
use crate::store;

/// What the daemon is in the group, its vote, and where log and state stand.
const META: TreeId = TreeId(31);
/// Entries: key = index (8) and part (4), big endian.
const LOG: TreeId = TreeId(32);
/// Trees of control's state: 1 to this one.
pub(crate) const STATE_TREES: u32 = 30;
/// The second place of the state: the same trees, this much further on.
const SECOND_PLACE: u32 = 100;
/// Number of the member and id of the cluster.
const MEMBER_KEY: &[u8] = b"member";
/// Term and vote.
const VOTE_KEY: &[u8] = b"vote";
/// The last entry that the log no longer has, and the members then.
const BASE_KEY: &[u8] = b"base";
/// Entry whose effect the state has, and in which of the two places that is.
const APPLIED_KEY: &[u8] = b"applied";
/// Bytes of a piece of an entry.
const PIECE_BYTES: usize = 128 << 10;
/// Bytes of changes that are made durable at once, about.
const TRANSACTION_BYTES: usize = 512 << 10;
/// Bytes of entries in one message, unless a single one has more.
const MESSAGE_ENTRY_BYTES: usize = 256 << 10;
/// The log is cut when it has more entries, or more bytes, with an effect than these ...
pub(crate) const LOG_ENTRIES_MAX: usize = 512;
const LOG_BYTES_MAX: usize = 256 << 10;
/// ... down to these, for members that are a little behind.
const LOG_ENTRIES_KEPT: usize = 4; // one in so many
const LOG_BYTES_KEPT: usize = 128 << 10;
/// Stands between voters and those that are only fed, where members are a list of numbers: the library's mark.
const FED: u64 = u64::MAX;
/// Keys read at a time.
const PAGE: usize = 64;

/// Which entry, and of which term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) index: u64,
    pub(crate) term: u64,
}

/// The members at some entry, as the library lists them: voters, then perhaps a mark and those that are fed.
fn members_of(entry: &LogEntry) -> Option<Vec<u64>> {
    let mut members = entry.members()?;
    let fed = entry.learners()?;
    if !fed.is_empty() {
        members.push(FED);
        members.extend(fed);
    }
    Some(members)
}

/// The batch of an entry that has one.
fn batch_of(entry: &LogEntry) -> Option<Batch> {
    if entry.kind == EntryKind::Config {
        return None;
    }
    Batch::decode(&entry.command).ok()
}

fn has_file(entry: &LogEntry) -> bool {
    batch_of(entry).is_some_and(|batch| batch.changes.iter().any(|change| change.tree == store::TRANSACTIONS))
}

struct State {
    domain: Domain,
    number: u64,
    base: Cell<Position>,
    base_members: RefCell<Vec<u64>>,
    /// Behind the base, without a gap.
    entries: RefCell<VecDeque<LogEntry>>,
    vote: Cell<HardState>,
    /// Durable.
    applied: Cell<Position>,
    /// The state stands in the second place.
    is_second: Cell<bool>,
    /// Not durable yet.
    pending: RefCell<Vec<Change>>,
    /// A copy of the state that came from another member, not in force yet, with the changes that go with it.
    arrived: RefCell<Option<(Position, Vec<u8>)>>,
    bug: Option<Bug>,
    /// The log is cut when it has more entries with an effect.
    entries_max: Cell<usize>,
    /// Entries that came from a leader and were never in force.
    withdrawn: Cell<u64>,
    /// An entry with a cluster file, or a part of one, came or went.
    files_changed: Cell<bool>,
}

/// The log; clones are the same one.
#[derive(Clone)]
pub(crate) struct Journal(Rc<State>);

fn entry_key(index: u64, part: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&index.to_be_bytes());
    key[8..].copy_from_slice(&part.to_be_bytes());
    key
}

/// Pieces of an entry after its first key, which has the head and no bytes.
fn pieces(entry: &LogEntry) -> u32 {
    u32::try_from(entry.command.len().div_ceil(PIECE_BYTES)).expect("an entry is smaller than 4 GiB")
}

fn numbers(words: impl IntoIterator<Item = u64>) -> Vec<u8> {
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

fn read_numbers(bytes: &[u8]) -> Result<Vec<u64>, ControlError> {
    let words = bytes.chunks(8).map(|word| word.try_into().map(u64::from_le_bytes));
    words.collect::<Result<_, _>>().map_err(|_| ControlError::StoreBroken)
}

impl Journal {
    /// Makes the domain, blank or a store that was alone, that of member `number`, of a group of `founders`; or of one that joins and waits to be
    /// fed if there are none. A store that has a state already is a group of one, whatever the founders: others join it.
    pub(crate) async fn found(
        domain: &Domain,
        (number, cluster): (u64, u64),
        founders: &[u64],
    ) -> Result<(), ControlError> {
        let has_state = domain.tree_range(TreeId(1), Bound::Unbounded, 1).len() == 1;
        let base = u64::from(has_state);
        let mut members = match founders {
            [] => vec![FED, number],
            _ if has_state => vec![number],
            founders => founders.to_vec(),
        };
        if !founders.is_empty() {
            members.sort_unstable();
        }
        let mut transaction = domain.begin();
        transaction.tree_put(META, MEMBER_KEY, &numbers([number, cluster]));
        transaction.tree_put(META, BASE_KEY, &numbers([base, base].into_iter().chain(members)));
        transaction.tree_put(META, APPLIED_KEY, &numbers([base, base, 0]));
        domain.commit(transaction).await.map_err(ControlError::Store)
    }

    /// Makes a domain that has the state of a copy at `position`, and nothing else, that of a group of one.
    pub(crate) async fn restore(
        domain: &Domain,
        (number, cluster): (u64, u64),
        position: Position,
    ) -> Result<(), ControlError> {
        let Position { index, term } = position;
        let mut transaction = domain.begin();
        transaction.tree_put(META, VOTE_KEY, &numbers([term, 0]));
        transaction.tree_put(META, BASE_KEY, &numbers([index, term, number]));
        transaction.tree_put(META, APPLIED_KEY, &numbers([index, term, 0]));
        transaction.tree_put(META, MEMBER_KEY, &numbers([number, cluster]));
        domain.commit(transaction).await.map_err(ControlError::Store)
    }

    /// Number of the member and cluster whose store this is; `None` for a store that replicates nothing.
    pub(crate) fn owner(domain: &Domain) -> Result<Option<(u64, u64)>, ControlError> {
        let Some(value) = domain.tree_get(META, MEMBER_KEY) else { return Ok(None) };
        match read_numbers(&value)?[..] {
            [number, cluster] => Ok(Some((number, cluster))),
            _ => Err(ControlError::StoreBroken),
        }
    }

    /// Reads what the domain of a member has. `bug`: on purpose, for the simulation.
    pub(crate) fn open(domain: &Domain, number: u64, bug: Option<Bug>) -> Result<Journal, ControlError> {
        let get = |key: &[u8]| {
            let value = domain.tree_get(META, key);
            value.map(|value| read_numbers(&value)).transpose()
        };
        let (base, members) = match get(BASE_KEY)?.as_deref() {
            Some([index, term, members @ ..]) => (Position { index: *index, term: *term }, members.to_vec()),
            _ => return Err(ControlError::StoreBroken),
        };
        let (applied, is_second) = match get(APPLIED_KEY)?.as_deref() {
            Some([index, term, place]) => (Position { index: *index, term: *term }, *place == 1),
            _ => return Err(ControlError::StoreBroken),
        };
        let vote = match get(VOTE_KEY)?.as_deref() {
            None => HardState::default(),
            Some([term, 0]) => HardState { term: *term, voted_for: None },
            Some([term, voted_for]) => HardState { term: *term, voted_for: Some(*voted_for) },
            _ => return Err(ControlError::StoreBroken),
        };
        let entries = read_entries(domain, base.index)?;
        // What a power cut left of entries that were on their way or going: later ones must not be mixed with it.
        let last = base.index + wide(entries.len());
        let mut leftovers = Vec::new();
        for_each(domain, LOG, |key, _| {
            let index = key.first_chunk::<8>().map_or(0, |index| u64::from_be_bytes(*index));
            if index <= base.index || index > last {
                leftovers.push(Change { tree: LOG, key, value: None });
            }
        });
        Ok(Journal(Rc::new(State {
            domain: domain.clone(),
            number,
            base: Cell::new(base),
            base_members: RefCell::new(members),
            entries: RefCell::new(entries),
            vote: Cell::new(vote),
            applied: Cell::new(applied),
            is_second: Cell::new(is_second),
            pending: RefCell::new(leftovers),
            arrived: RefCell::default(),
            bug,
            entries_max: Cell::new(LOG_ENTRIES_MAX),
            withdrawn: Cell::new(0),
            files_changed: Cell::new(false),
        })))
    }

    /// Number of this member.
    pub(crate) fn number(&self) -> u64 {
        self.0.number
    }

    /// Where a tree of the state stands now.
    pub(crate) fn place(&self, tree: TreeId) -> TreeId {
        place(tree, self.0.is_second.get())
    }

    /// The entry whose effect the durable state has.
    pub(crate) fn applied(&self) -> Position {
        self.0.applied.get()
    }

    /// Makes durable what the library changed. Error: the device refused; nothing that follows from the changes may leave.
    pub(crate) async fn persist(&self) -> Result<(), ControlError> {
        let State { domain, pending, arrived, bug, .. } = &*self.0;
        let mut changes = std::mem::take(&mut *pending.borrow_mut());
        if *bug == Some(Bug::VoteForgotten) {
            changes.retain(|change| change.key != VOTE_KEY);
        }
        let arrived = arrived.borrow_mut().take();
        let Some((position, data)) = arrived else {
            return commit_in_parts(domain, changes).await;
        };
        let state = Batch::decode(&data).map_err(ControlError::Entry)?;
        let goes_to_second = !self.0.is_second.get();
        self.wipe(goes_to_second).await?;
        let moved = state
            .changes
            .into_iter()
            .map(|change| Change { tree: place(change.tree, goes_to_second), ..change });
        commit_in_parts(domain, moved.collect()).await?;
        // Log, base and state change together: the entries that go are few, as a log is short.
        let mut transaction = Batch { changes }.transaction(domain, |tree| tree);
        let applied = [position.index, position.term, u64::from(goes_to_second)];
        transaction.tree_put(META, APPLIED_KEY, &numbers(applied));
        domain.commit(transaction).await.map_err(ControlError::Store)?;
        self.0.is_second.set(goes_to_second);
        self.0.applied.set(position);
        self.wipe(!goes_to_second).await
    }

    /// Makes the effect of an entry durable. One that the state has already changes nothing.
    pub(crate) async fn apply(&self, position: Position, batch: &Batch) -> Result<(), ControlError> {
        let State { domain, applied, is_second, .. } = &*self.0;
        if position.index <= applied.get().index {
            return Ok(());
        }
        let mut transaction = batch.transaction(domain, |tree| self.place(tree));
        let words = [position.index, position.term, u64::from(is_second.get())];
        transaction.tree_put(META, APPLIED_KEY, &numbers(words));
        domain.commit(transaction).await.map_err(ControlError::Store)?;
        applied.set(position);
        Ok(())
    }

    /// From now on the log is cut when it has more entries with an effect.
    pub(crate) fn set_entries_max(&self, entries_max: usize) {
        self.0.entries_max.set(entries_max);
    }

    /// Entries that another leader took back since this was opened.
    pub(crate) fn withdrawn(&self) -> u64 {
        self.0.withdrawn.get()
    }

    /// The newest entry, or the last that the log no longer has.
    pub(crate) fn last_position(&self) -> Position {
        Position { index: self.last_index(), term: self.last_term() }
    }

    /// True if, since this was asked last, an entry came or went that changes the transactions of the cluster file.
    pub(crate) fn take_files_changed(&self) -> bool {
        self.0.files_changed.take()
    }

    /// The batches of the log that the state does not have the effect of, oldest first.
    pub(crate) fn without_effect(&self) -> Vec<Batch> {
        let applied = self.applied().index;
        let entries = self.0.entries.borrow();
        let ahead = entries.iter().filter(|entry| entry.index > applied);
        ahead.filter_map(batch_of).collect()
    }

    /// Everything that the durable state has, and the entry that it has the effect of.
    pub(crate) fn copy(&self) -> (Position, Batch) {
        (self.applied(), self.state())
    }

    /// The batches of the log, newest first.
    pub(crate) fn newest_first(&self) -> impl Iterator<Item = Batch> {
        let entries: Vec<LogEntry> = self.0.entries.borrow().iter().rev().cloned().collect();
        entries.into_iter().filter_map(|entry| batch_of(&entry))
    }

    /// Everything that the state has, as it is durable now.
    fn state(&self) -> Batch {
        state_of(&self.0.domain, |tree| self.place(tree))
    }

    /// Up to which entry the log is to be cut now, if it has grown long.
    pub(crate) fn cut(&self) -> Option<u64> {
        let (base, applied) = (self.0.base.get(), self.0.applied.get());
        let entries = self.0.entries.borrow();
        let with_effect = narrow(applied.index.saturating_sub(base.index)).min(entries.len());
        let bytes: usize = entries.range(..with_effect).map(|entry| entry.command.len()).sum();
        let entries_max = self.0.entries_max.get();
        if with_effect <= entries_max && bytes <= LOG_BYTES_MAX {
            return None;
        }
        let mut kept_bytes = 0;
        let newest_first = entries.range(..with_effect).rev();
        let kept = newest_first.take(entries_max / LOG_ENTRIES_KEPT).take_while(|entry| {
            kept_bytes += entry.command.len();
            kept_bytes <= LOG_BYTES_KEPT
        });
        Some(base.index + wide(with_effect - kept.count()))
    }

    /// The members by the newest entry up to `index`.
    fn members_at(&self, index: u64) -> Vec<u64> {
        let entries = self.0.entries.borrow();
        let newest_first = entries.iter().rev().filter(|entry| entry.index <= index);
        let newest = newest_first.filter_map(members_of).next();
        newest.unwrap_or_else(|| self.0.base_members.borrow().clone())
    }

    fn write(&self, key: &[u8], value: Option<&[u8]>, tree: TreeId) {
        let change = Change { tree, key: key.to_vec(), value: value.map(<[u8]>::to_vec) };
        self.0.pending.borrow_mut().push(change);
    }

    fn write_base(&self) {
        let Position { index, term } = self.0.base.get();
        let members = self.0.base_members.borrow().clone();
        self.write(BASE_KEY, Some(&numbers([index, term].into_iter().chain(members))), META);
    }

    fn forget(&self, entry: &LogEntry) {
        // The head last: cut in between, the entry is not whole.
        for part in (0..=pieces(entry)).rev() {
            self.write(&entry_key(entry.index, part), None, LOG);
        }
    }

    /// Empties one of the two places of the state.
    async fn wipe(&self, second: bool) -> Result<(), ControlError> {
        let mut changes = Vec::new();
        for tree in (1..=STATE_TREES).map(|tree| place(TreeId(tree), second)) {
            for_each(&self.0.domain, tree, |key, _| changes.push(Change { tree, key, value: None }));
        }
        commit_in_parts(&self.0.domain, changes).await
    }
}

/// Everything that the state of a domain has, as it is durable now.
pub(crate) fn state_of(domain: &Domain, place: impl Fn(TreeId) -> TreeId) -> Batch {
    let mut batch = Batch::default();
    for tree in (1..=STATE_TREES).map(TreeId) {
        for_each(domain, place(tree), |key, value| batch.put(tree, &key, &value));
    }
    batch
}

fn place(tree: TreeId, second: bool) -> TreeId {
    if second { TreeId(tree.0 + SECOND_PLACE) } else { tree }
}

fn for_each(domain: &Domain, tree: TreeId, mut found: impl FnMut(Vec<u8>, Vec<u8>)) {
    let mut after: Option<Vec<u8>> = None;
    loop {
        let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let page = domain.tree_range(tree, from, PAGE);
        let Some((last, _)) = page.last() else { return };
        after = Some(last.clone());
        page.into_iter().for_each(|(key, value)| found(key, value));
    }
}

/// Entries behind `base` up to the first that is not whole: its write had not been answered.
fn read_entries(domain: &Domain, base: u64) -> Result<VecDeque<LogEntry>, ControlError> {
    let mut found: Vec<(LogEntry, usize)> = Vec::new();
    let mut broken = false;
    for_each(domain, LOG, |key, value| {
        let parts = key.split_first_chunk::<8>().and_then(|(index, part)| {
            Some((u64::from_be_bytes(*index), u32::from_be_bytes(part.try_into().ok()?)))
        });
        match parts {
            Some((index, _)) if index <= base => {}
            Some((index, 0)) => {
                let head = value.split_first_chunk::<8>().and_then(|(term, rest)| match rest {
                    [kind, bytes @ ..] => {
                        let bytes = u64::from_le_bytes(bytes.try_into().ok()?);
                        Some((u64::from_le_bytes(*term), kind_of(*kind)?, usize::try_from(bytes).ok()?))
                    }
                    [] => None,
                });
                match head {
                    Some((term, kind, bytes)) => {
                        found.push((LogEntry { term, index, kind, command: Vec::new() }, bytes));
                    }
                    None => broken = true,
                }
            }
            Some((index, _)) => match found.last_mut() {
                Some((entry, _)) if entry.index == index => entry.command.extend(value),
                _ => broken = true,
            },
            None => broken = true,
        }
    });
    if broken {
        return Err(ControlError::StoreBroken);
    }
    let is_whole = |(offset, (entry, bytes)): &(u64, (LogEntry, usize))| {
        entry.command.len() == *bytes && entry.index == base + offset
    };
    Ok((1..).zip(found).take_while(is_whole).map(|(_, (entry, _))| entry).collect())
}

/// Makes changes durable in order, in transactions of a size that the domain takes. Cut in between, the first of them are there.
pub(crate) async fn commit_in_parts(domain: &Domain, changes: Vec<Change>) -> Result<(), ControlError> {
    let mut part = Batch::default();
    let mut bytes = 0;
    for change in changes {
        let more = change.record_bytes();
        if bytes + more > TRANSACTION_BYTES && !part.changes.is_empty() {
            let whole = std::mem::take(&mut part).transaction(domain, |tree| tree);
            domain.commit(whole).await.map_err(ControlError::Store)?;
            bytes = 0;
        }
        bytes += more;
        part.changes.push(change);
    }
    let last = part.transaction(domain, |tree| tree);
    domain.commit(last).await.map_err(ControlError::Store)
}

/// The library does not wait, so nothing of this can fail but a mistake of ours.
fn out_of_place(what: &'static str, index: u64) -> raft_io::Error {
    raft_io::Error::storage(what, format!("entry {index} is not in its place"))
}

impl RaftLog for Journal {
    fn last_index(&self) -> u64 {
        self.0.base.get().index + wide(self.0.entries.borrow().len())
    }

    fn last_term(&self) -> u64 {
        self.0.entries.borrow().back().map_or(self.0.base.get().term, |entry| entry.term)
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        let base = self.0.base.get();
        if index == base.index { Some(base.term) } else { self.entry(index).map(|entry| entry.term) }
    }

    fn entry(&self, index: u64) -> Option<LogEntry> {
        let offset = index.checked_sub(self.0.base.get().index + 1)?;
        self.0.entries.borrow().get(narrow(offset)).cloned()
    }

    fn entries(&self, from: u64, to: u64) -> Vec<LogEntry> {
        let mut bytes = 0;
        let entries = self.0.entries.borrow();
        let wanted = entries.iter().filter(|entry| (from..=to).contains(&entry.index));
        let fitting = wanted.take_while(|entry| {
            let is_first = bytes == 0;
            bytes += entry.command.len() + 1;
            is_first || bytes <= MESSAGE_ENTRY_BYTES
        });
        fitting.cloned().collect()
    }

    fn append(&mut self, entries: &[LogEntry]) -> raft_io::Result<()> {
        for entry in entries {
            if entry.index != self.last_index() + 1 {
                return Err(out_of_place("appending", entry.index));
            }
            let mut head = entry.term.to_le_bytes().to_vec();
            head.push(kind_number(entry.kind));
            head.extend(wide(entry.command.len()).to_le_bytes());
            self.write(&entry_key(entry.index, 0), Some(&head), LOG);
            for (part, piece) in (1..).zip(entry.command.chunks(PIECE_BYTES)) {
                self.write(&entry_key(entry.index, part), Some(piece), LOG);
            }
            self.0.entries.borrow_mut().push_back(entry.clone());
        }
        self.0.files_changed.set(self.0.files_changed.get() || entries.iter().any(has_file));
        Ok(())
    }

    fn truncate(&mut self, from: u64) -> raft_io::Result<()> {
        let base = self.0.base.get().index;
        if from <= base || from <= self.0.applied.get().index {
            return Err(out_of_place("truncating", from));
        }
        let gone = {
            let mut entries = self.0.entries.borrow_mut();
            let kept = narrow(from - base - 1).min(entries.len());
            entries.split_off(kept)
        };
        self.0.withdrawn.set(self.withdrawn() + wide(gone.len()));
        self.0.files_changed.set(self.0.files_changed.get() || gone.iter().any(has_file));
        // Last first: cut in between, what is left has no gap.
        gone.iter().rev().for_each(|entry| self.forget(entry));
        Ok(())
    }

    fn hard_state(&self) -> HardState {
        self.0.vote.get()
    }

    fn set_hard_state(&mut self, state: HardState) -> raft_io::Result<()> {
        self.0.vote.set(state);
        self.write(VOTE_KEY, Some(&numbers([state.term, state.voted_for.unwrap_or(0)])), META);
        Ok(())
    }

    /// Nothing: see [`Journal::persist`].
    fn sync(&mut self) -> raft_io::Result<()> {
        Ok(())
    }

    fn snapshot_index(&self) -> u64 {
        self.0.base.get().index
    }

    /// The state as it is now: newer than the base, which the library does not mind.
    fn snapshot(&self) -> Option<Snapshot> {
        let Position { index, term } = self.0.applied.get();
        Some(Snapshot::with_config(index, term, self.members_at(index), self.state().encode()))
    }

    /// Without data: the log is cut there, and the state stays. With data: the state of another member takes the place of ours.
    fn apply_snapshot(&mut self, snapshot: &Snapshot) -> raft_io::Result<()> {
        let base = self.0.base.get();
        if snapshot.index <= base.index {
            return Ok(());
        }
        let agrees = self.term_at(snapshot.index) == Some(snapshot.term);
        let gone: Vec<LogEntry> = {
            let mut entries = self.0.entries.borrow_mut();
            let count = if agrees { narrow(snapshot.index - base.index) } else { entries.len() };
            entries.drain(..count).collect()
        };
        self.0.base.set(Position { index: snapshot.index, term: snapshot.term });
        if self.0.bug != Some(Bug::MembersForgotten) {
            self.0.base_members.borrow_mut().clone_from(&snapshot.config);
        }
        self.write_base();
        // First first: cut in between, what is left is behind the base or has a gap to it, which is as if it were not there.
        gone.iter().for_each(|entry| self.forget(entry));
        if !snapshot.data.is_empty() {
            let position = Position { index: snapshot.index, term: snapshot.term };
            *self.0.arrived.borrow_mut() = Some((position, snapshot.data.clone()));
        }
        Ok(())
    }
}
