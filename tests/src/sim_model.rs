//! The oracle of the simulation: for each object, everything that a read may return. Pure; shares no code with the system.
//!
//! An object is a set of *lineages*: the contents that one replacement (or create) began, and that writes in place change block by
//! block. With nothing unknown there is one, or none. What every operation does to the set:
//!
//! | operation | while it runs, or if its end is unknown | acknowledged |
//! |---|---|---|
//! | put (replace all) | the new lineage may be there as a whole; an absent object may also be there, empty | only the new one |
//! | write in place | each block of the extent old or new, the size old or new, rows *torn* | the blocks new, the size grown |
//! | delete | may be absent | absent |
//!
//! A read is right if one lineage explains all of its bytes, over all states between its beginning and its end (from its open on).
//! An unknown operation may take effect at any later time, until a put or a delete of the object is acknowledged.
//!
//! # The one accepted exception: torn rows
//! A write in place of a part of a group is not yet atomic across devices (a later issue closes this write hole). A row (the same block of
//! all units of one parity group) that an unacknowledged write in place touches is torn: parity may not match data, so
//! **while a device is out, damaged or doubtful**, bytes that are rebuilt in that row may be anything, and the row may be
//! unreadable. With every device healthy its blocks are still old or new (unless the row was a hole before: then blocks that the write
//! did not reach are absent, and are rebuilt from what it did reach), and everything outside of it is exact. A later
//! write of a part of the torn row, or one that moves the object's end past its group, may spread rebuilt bytes ([`Torn::Spread`]); then the row's other blocks are unknown until the whole
//! row is written or the object is put or deleted. So does a device that gets another disk: what was rebuilt on it stays. Reads that needed the exception are counted.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::sim_bytes::{BLOCK, BlockValue};

/// How an object's blocks stand in parity groups, as far as the oracle has to know: which blocks share a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Data units of a group.
    pub data_units: u64,
    /// Blocks of a unit.
    pub unit_blocks: u64,
}

impl Shape {
    /// Bytes of a group.
    #[must_use]
    pub fn group_bytes(self) -> u64 {
        self.data_units * self.unit_blocks * BLOCK
    }

    /// Group and row of a block.
    #[must_use]
    pub fn row_of(self, block: u64) -> (u64, u64) {
        let group_blocks = self.data_units * self.unit_blocks;
        (block / group_blocks, block % group_blocks % self.unit_blocks)
    }

    /// The blocks of a row.
    pub fn blocks_of(self, (group, row): (u64, u64)) -> impl Iterator<Item = u64> {
        (0..self.data_units).map(move |unit| (group * self.data_units + unit) * self.unit_blocks + row)
    }
}

/// How far a row may be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Torn {
    /// Parity may not match: rebuilt bytes may be anything.
    Hole,
    /// Rebuilt bytes may have been written back: its blocks may be anything.
    Spread,
}

/// One lineage's content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Content {
    sizes: BTreeSet<u64>,
    /// Blocks that are not here are zero.
    blocks: BTreeMap<u64, BTreeSet<BlockValue>>,
    torn: BTreeMap<(u64, u64), Torn>,
}

impl Content {
    fn whole(writer: u64, size: u64) -> Content {
        let blocks = (0..size.div_ceil(BLOCK))
            .map(|block| (block, BTreeSet::from([BlockValue::written(writer, block, size)])))
            .collect();
        Content { sizes: BTreeSet::from([size]), blocks, torn: BTreeMap::new() }
    }

    fn allows(&self, block: u64, inside: u64, bytes: &[u8]) -> bool {
        match self.blocks.get(&block) {
            None => BlockValue::Zero.matches(block, inside, bytes),
            Some(values) => values.iter().any(|value| value.matches(block, inside, bytes)),
        }
    }

    /// True if the block's row may have been written by nobody who was acknowledged.
    fn may_be_hole(&self, shape: Shape, block: u64) -> bool {
        shape.blocks_of(shape.row_of(block)).all(|block| match self.blocks.get(&block) {
            None => true,
            Some(values) => values.contains(&BlockValue::Zero),
        })
    }
}

/// All that is possible at one moment.
#[derive(Clone, Debug, Default)]
struct State {
    present: BTreeMap<u64, Rc<Content>>,
    absent: bool,
}

impl State {
    /// A device was filled with rebuilt bytes: those of torn rows may be anything, and stay so.
    fn rebuild(&mut self) {
        for content in self.present.values_mut().filter(|content| !content.torn.is_empty()) {
            Rc::make_mut(content).torn.values_mut().for_each(|torn| *torn = Torn::Spread);
        }
    }
}

/// What an operation that changes an object does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Replace everything by `size` bytes (creating the object if it is absent).
    Put {
        /// New size in bytes.
        size: u64,
    },
    /// Write whole blocks in place.
    Write {
        /// First block.
        start: u64,
        /// Blocks.
        count: u64,
    },
    /// Delete.
    Delete,
}

/// How a change ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Acknowledged.
    Done,
    /// Failed, or its client died: it may have happened, wholly, partly, or not yet.
    Unknown,
    /// It ended before it changed anything (the object was not there).
    Nothing,
}

/// A change under way.
#[derive(Debug)]
pub struct Pending {
    writer: u64,
    change: Change,
    before: State,
}

impl Pending {
    /// As [`ObjectModel::rebuild`], for what the change began with.
    pub fn rebuild(&mut self) {
        self.before.rebuild();
    }
}

/// Where a read began.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    from: usize,
}

/// What a check found, where it found nothing wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// It is right only because of a torn row.
    pub by_exception: bool,
}

/// One object's oracle.
#[derive(Debug)]
pub struct ObjectModel {
    shape: Shape,
    /// Every state since the start; the last one is now.
    states: Vec<State>,
}

/// Lineage of the empty object that `writer`'s put made on its way.
fn empty_lineage(writer: u64) -> u64 {
    writer | 1 << 63
}

impl ObjectModel {
    /// An object that was never made.
    #[must_use]
    pub fn new(shape: Shape) -> ObjectModel {
        ObjectModel { shape, states: vec![State { present: BTreeMap::new(), absent: true }] }
    }

    /// Its shape.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    fn now(&self) -> &State {
        self.states.last().expect("there is always a state")
    }

    /// True if the object is there for sure.
    #[must_use]
    pub fn must_exist(&self) -> bool {
        !self.now().absent
    }

    /// True if it may be there.
    #[must_use]
    pub fn may_exist(&self) -> bool {
        !self.now().present.is_empty()
    }

    /// True if nothing about it is unknown but torn rows.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        self.now().present.len() + usize::from(self.now().absent) == 1
    }

    /// The largest size it may have.
    #[must_use]
    pub fn size_max(&self) -> u64 {
        self.now().present.values().flat_map(|content| content.sizes.iter().copied()).max().unwrap_or(0)
    }

    /// True if some row of it is torn.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        self.now().present.values().any(|content| !content.torn.is_empty())
    }

    /// Begins a change by `writer` (unique, below 2^63). One at a time for each object: whoever drives the clients sees to it.
    pub fn begin(&mut self, writer: u64, change: Change) -> Pending {
        let before = self.now().clone();
        let mut state = before.clone();
        match change {
            Change::Put { size } => {
                if state.absent {
                    let empty = Content { sizes: BTreeSet::from([0]), ..Content::default() };
                    state.present.insert(empty_lineage(writer), Rc::new(empty));
                }
                state.present.insert(writer, Rc::new(Content::whole(writer, size)));
            }
            Change::Write { start, count } => {
                let end = (start + count) * BLOCK;
                for (lineage, content) in &mut state.present {
                    let content = Rc::make_mut(content);
                    let old = before.present.get(lineage);
                    let passed = content.sizes.iter().filter(|size| (1..end).contains(*size));
                    let tails: BTreeSet<u64> =
                        passed.map(|size| (size - 1) / self.shape.group_bytes()).collect();
                    // Whoever moves the end past a group completes its rows, and reads those that are torn for that.
                    let spread = content.torn.iter_mut().filter(|((group, _), _)| tails.contains(group));
                    spread.for_each(|(_, torn)| *torn = Torn::Spread);
                    let grown: Vec<u64> = content.sizes.iter().map(|size| end.max(*size)).collect();
                    content.sizes.extend(grown);
                    for block in start..start + count {
                        let unwritten = || BTreeSet::from([BlockValue::Zero]);
                        let values = content.blocks.entry(block).or_insert_with(unwritten);
                        values.insert(BlockValue::written(writer, block, end));
                        let row = self.shape.row_of(block);
                        let was_torn = old.is_some_and(|old| old.torn.contains_key(&row));
                        let torn = content.torn.entry(row).or_insert(Torn::Hole);
                        if was_torn && !self.covers(row, start, count) {
                            *torn = Torn::Spread;
                        }
                    }
                }
            }
            Change::Delete => state.absent = true,
        }
        self.states.push(state);
        Pending { writer, change, before }
    }

    /// True if a write covers a whole row.
    fn covers(&self, row: (u64, u64), start: u64, count: u64) -> bool {
        self.shape.blocks_of(row).all(|block| (start..start + count).contains(&block))
    }

    /// Ends a change.
    pub fn end(&mut self, pending: Pending, ending: Ending) {
        let Pending { writer, change, before } = pending;
        let state = match (ending, change) {
            (Ending::Unknown, _) => return,
            (Ending::Nothing, _) => before,
            (Ending::Done, Change::Put { size }) => State {
                present: BTreeMap::from([(writer, Rc::new(Content::whole(writer, size)))]),
                absent: false,
            },
            (Ending::Done, Change::Delete) => State { present: BTreeMap::new(), absent: true },
            (Ending::Done, Change::Write { start, count }) => self.written(writer, start, count, &before),
        };
        self.states.push(state);
    }

    /// The state after an acknowledged write in place.
    fn written(&self, writer: u64, start: u64, count: u64, before: &State) -> State {
        let mut state = self.now().clone();
        // With several lineages the write went to one of them, and the others may still come to light without it.
        let [(lineage, content)] = &mut state.present.iter_mut().collect::<Vec<_>>()[..] else {
            return state;
        };
        let content = Rc::make_mut(content);
        let old = before.present.get(lineage);
        let end = (start + count) * BLOCK;
        content.sizes = match old {
            Some(old) => old.sizes.iter().map(|size| end.max(*size)).collect(),
            None => BTreeSet::from([end]),
        };
        for block in start..start + count {
            content.blocks.insert(block, BTreeSet::from([BlockValue::written(writer, block, end)]));
            let row = self.shape.row_of(block);
            // A row that was whole is whole again; one that was torn is mended only by being written whole.
            if self.covers(row, start, count) || old.is_none_or(|old| !old.torn.contains_key(&row)) {
                content.torn.remove(&row);
            }
        }
        // The object is there: it was written.
        state.absent = false;
        state
    }

    /// A device that may hold units of this object got another disk, and rebuilt bytes on it.
    pub fn rebuild(&mut self) {
        let mut state = self.now().clone();
        state.rebuild();
        self.states.push(state);
    }

    /// A read (or stat) begins now.
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        Ticket { from: self.states.len() - 1 }
    }

    fn since(&self, ticket: Ticket) -> &[State] {
        &self.states[ticket.from..]
    }

    /// The system says that the object is not there. Errors: it must be.
    pub fn check_absent(&self, ticket: Ticket) -> Result<(), String> {
        if self.since(ticket).iter().any(|state| state.absent) {
            return Ok(());
        }
        Err(format!("it is said not to exist, and it must: {}", self.describe()))
    }

    /// The system says that the object is there and has `size` bytes. Errors: it must not be there, or not with this size.
    pub fn check_size(&self, ticket: Ticket, size: u64) -> Result<(), String> {
        let mut contents = self.since(ticket).iter().flat_map(|state| state.present.values()).peekable();
        if contents.peek().is_none() {
            return Err(format!(
                "it is said to exist with {size} bytes, and it must not: {}",
                self.describe()
            ));
        }
        if contents.any(|content| content.sizes.contains(&size)) {
            return Ok(());
        }
        Err(format!("its size is said to be {size}: {}", self.describe()))
    }

    /// A list was complete and did or did not show the object. Errors: it must or must not be in it.
    pub fn check_listed(&self, ticket: Ticket, listed: Option<u64>) -> Result<(), String> {
        match listed {
            Some(size) => self.check_size(ticket, size),
            None => self.check_absent(ticket).map_err(|error| format!("in a list, {error}")),
        }
    }

    /// A read of `count` bytes from `offset` returned `bytes`. `may_rebuild`: a device was out, damaged or doubtful meanwhile.
    pub fn check_read(
        &self,
        ticket: Ticket,
        offset: u64,
        count: u64,
        bytes: &[u8],
        may_rebuild: bool,
    ) -> Result<Accepted, String> {
        let states = self.since(ticket);
        let lineages: BTreeSet<u64> = states.iter().flat_map(|state| state.present.keys().copied()).collect();
        if lineages.is_empty() {
            return Err(format!("{} bytes were read of an object that must not exist", bytes.len()));
        }
        let mut wrong = Vec::new();
        let mut best = None;
        for lineage in lineages {
            let contents: Vec<&Content> = states
                .iter()
                .filter_map(|state| state.present.get(&lineage))
                .map(|content| &**content)
                .collect();
            match explain(self.shape, &contents, offset, count, bytes, may_rebuild) {
                Ok(accepted) if !accepted.by_exception => return Ok(accepted),
                Ok(accepted) => best = Some(accepted),
                Err(error) => wrong.push(format!("as lineage {lineage:#x}: {error}")),
            }
        }
        best.ok_or_else(|| {
            format!("no state explains the bytes: {}; now: {}", wrong.join("; "), self.describe())
        })
    }

    /// A read failed for good though no more than K units of a group were out. Errors: nothing excuses that.
    pub fn check_unreadable(&self, ticket: Ticket) -> Result<Accepted, String> {
        let torn = self
            .since(ticket)
            .iter()
            .any(|state| state.present.values().any(|content| !content.torn.is_empty()));
        if torn { Ok(Accepted { by_exception: true }) } else { Err("it must be readable".to_owned()) }
    }

    fn describe(&self) -> String {
        let state = self.now();
        let mut text = if state.absent { "absent".to_owned() } else { String::new() };
        for (lineage, content) in &state.present {
            let or = if text.is_empty() { "" } else { " or " };
            let torn = if content.torn.is_empty() {
                String::new()
            } else {
                format!(", {} torn rows", content.torn.len())
            };
            text.push_str(&format!("{or}lineage {lineage:#x} with {:?} bytes{torn}", content.sizes));
        }
        text
    }
}

/// Whether one lineage explains what was read.
fn explain(
    shape: Shape,
    contents: &[&Content],
    offset: u64,
    count: u64,
    bytes: &[u8],
    may_rebuild: bool,
) -> Result<Accepted, String> {
    let length = bytes.len() as u64;
    let fits = |size: &u64| (offset + count).min(*size).saturating_sub(offset) == length;
    if !contents.iter().flat_map(|content| &content.sizes).any(fits) {
        let sizes: BTreeSet<u64> =
            contents.iter().flat_map(|content| content.sizes.iter().copied()).collect();
        return Err(format!("{length} bytes at {offset} (wanted {count}) fit none of the sizes {sizes:?}"));
    }
    let mut by_exception = false;
    let mut at = offset;
    while at < offset + length {
        let (block, inside) = (at / BLOCK, at % BLOCK);
        let end = (offset + length).min((block + 1) * BLOCK);
        let slice = |from: u64| usize::try_from(from - offset).expect("inside the bytes");
        let piece = &bytes[slice(at)..slice(end)];
        at = end;
        if contents.iter().any(|content| content.allows(block, inside, piece)) {
            continue;
        }
        let torn = contents.iter().filter_map(|content| content.torn.get(&shape.row_of(block))).max();
        match torn {
            Some(Torn::Spread) => by_exception = true,
            Some(Torn::Hole) if may_rebuild => by_exception = true,
            // In a row that was a hole, blocks that the write did not reach are absent: erasures, on healthy devices too.
            Some(Torn::Hole) if contents.iter().any(|content| content.may_be_hole(shape, block)) => {
                by_exception = true;
            }
            _ => {
                let allowed: BTreeSet<BlockValue> = contents
                    .iter()
                    .filter_map(|content| content.blocks.get(&block))
                    .flatten()
                    .copied()
                    .collect();
                let zero = if piece.iter().all(|byte| *byte == 0) { " (it is all zeros)" } else { "" };
                return Err(format!("block {block}{zero} is none of {allowed:?}, torn: {torn:?}"));
            }
        }
    }
    Ok(Accepted { by_exception })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim_bytes::fill;

    const SHAPE: Shape = Shape { data_units: 4, unit_blocks: 2 };

    fn bytes(writer: u64, offset: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        fill(writer, offset, &mut bytes);
        bytes
    }

    fn put(model: &mut ObjectModel, writer: u64, size: u64) {
        let pending = model.begin(writer, Change::Put { size });
        model.end(pending, Ending::Done);
    }

    #[test]
    fn a_put_is_old_or_new_as_a_whole() {
        let mut model = ObjectModel::new(SHAPE);
        put(&mut model, 1, 9000);
        let ticket = model.ticket();
        let pending = model.begin(2, Change::Put { size: 9000 });
        assert!(model.check_read(ticket, 0, 9000, &bytes(1, 0, 9000), true).is_ok());
        assert!(model.check_read(ticket, 0, 9000, &bytes(2, 0, 9000), true).is_ok());
        let mut mixed = bytes(1, 0, 9000);
        mixed[4096..8192].copy_from_slice(&bytes(2, 4096, 4096));
        assert!(model.check_read(ticket, 0, 9000, &mixed, true).is_err());
        assert!(model.check_read(ticket, 0, 9000, &[0; 9000], true).is_err());
        model.end(pending, Ending::Done);
        assert!(
            model.check_read(ticket, 0, 9000, &bytes(1, 0, 9000), true).is_ok(),
            "it began before the end"
        );
        assert!(model.check_read(model.ticket(), 0, 9000, &bytes(1, 0, 9000), true).is_err());
        assert!(model.check_read(model.ticket(), 0, 9000, &bytes(2, 0, 8999), true).is_err());
    }

    #[test]
    fn an_unknown_put_may_come_to_light_until_another_is_acknowledged() {
        let mut model = ObjectModel::new(SHAPE);
        put(&mut model, 1, 100);
        let pending = model.begin(2, Change::Put { size: 200 });
        model.end(pending, Ending::Unknown);
        for writer in [1u64, 2, 1] {
            let size = if writer == 1 { 100 } else { 200 };
            assert!(model.check_read(model.ticket(), 0, 200, &bytes(writer, 0, size), false).is_ok());
        }
        put(&mut model, 3, 0);
        assert!(model.check_read(model.ticket(), 0, 200, &bytes(2, 0, 200), false).is_err());
        assert!(model.check_absent(model.ticket()).is_err());
    }

    #[test]
    fn a_deleted_object_is_gone_and_an_acknowledged_one_is_there() {
        let mut model = ObjectModel::new(SHAPE);
        assert!(model.check_size(model.ticket(), 0).is_err());
        put(&mut model, 1, 5);
        let ticket = model.ticket();
        let pending = model.begin(2, Change::Delete);
        assert!(model.check_absent(ticket).is_ok() && model.check_size(ticket, 5).is_ok());
        model.end(pending, Ending::Done);
        assert!(
            model.check_size(model.ticket(), 5).is_err()
                && model.check_listed(model.ticket(), Some(5)).is_err()
        );
        assert!(model.check_listed(model.ticket(), None).is_ok());
        let pending = model.begin(3, Change::Put { size: 7 });
        model.end(pending, Ending::Unknown);
        for size in [0, 7] {
            assert!(model.check_size(model.ticket(), size).is_ok(), "empty on its way, or whole");
        }
    }

    #[test]
    fn a_disk_that_is_filled_keeps_what_a_torn_row_gave() {
        let mut model = ObjectModel::new(SHAPE);
        put(&mut model, 1, 8 * BLOCK);
        let pending = model.begin(2, Change::Write { start: 2, count: 1 });
        model.end(pending, Ending::Unknown);
        let garbage = vec![7; 4096];
        let is_right = |model: &ObjectModel, block: u64, bytes: &[u8]| {
            model.check_read(model.ticket(), block * BLOCK, BLOCK, bytes, false).is_ok()
        };
        assert!(!is_right(&model, 0, &garbage), "every device has what was written");
        model.rebuild();
        assert!(is_right(&model, 0, &garbage) && is_right(&model, 0, &bytes(1, 0, 4096)));
        assert!(!is_right(&model, 1, &garbage), "of another row");
        // Once the row is written as a whole it is as good as ever.
        let pending = model.begin(3, Change::Write { start: 0, count: 8 });
        model.end(pending, Ending::Done);
        model.rebuild();
        assert!(!is_right(&model, 0, &garbage) && is_right(&model, 0, &bytes(3, 0, 4096)));
    }

    #[test]
    fn a_torn_row_excuses_itself_and_nothing_else() {
        let mut model = ObjectModel::new(SHAPE);
        put(&mut model, 1, 8 * 4096);
        let pending = model.begin(2, Change::Write { start: 0, count: 1 });
        model.end(pending, Ending::Unknown);
        let read = |model: &ObjectModel, block: u64, content: &[u8], may_rebuild: bool| {
            model.check_read(model.ticket(), block * 4096, 4096, content, may_rebuild)
        };
        let exact = Ok(Accepted { by_exception: false });
        assert_eq!(read(&model, 0, &bytes(1, 0, 4096), false), exact);
        assert_eq!(read(&model, 0, &bytes(2, 0, 4096), false), exact);
        assert!(read(&model, 0, &[9; 4096], false).is_err(), "healthy devices give old or new");
        for block in [0u64, 2, 4, 6] {
            assert_eq!(read(&model, block, &[9; 4096], true), Ok(Accepted { by_exception: true }));
            assert!(block == 0 || read(&model, block, &[9; 4096], false).is_err());
        }
        for block in [1u64, 3, 5, 7] {
            assert!(read(&model, block, &[9; 4096], true).is_err(), "another row");
        }
        // A later write of another part of the row spreads what was rebuilt; the row's own write is exact but for that.
        let pending = model.begin(3, Change::Write { start: 2, count: 1 });
        model.end(pending, Ending::Done);
        assert_eq!(read(&model, 4, &[9; 4096], false), Ok(Accepted { by_exception: true }));
        assert!(model.check_unreadable(model.ticket()).is_ok());
        // Written whole, it is whole.
        let pending = model.begin(4, Change::Write { start: 0, count: 8 });
        model.end(pending, Ending::Done);
        assert!(!model.is_torn() && model.check_unreadable(model.ticket()).is_err());
        assert_eq!(read(&model, 4, &bytes(4, 4 * 4096, 4096), true), exact);
        assert!(read(&model, 4, &[9; 4096], true).is_err());
    }

    #[test]
    fn growth_past_a_torn_row_spreads_what_was_rebuilt() {
        let mut model = ObjectModel::new(SHAPE);
        put(&mut model, 1, 100);
        let pending = model.begin(2, Change::Write { start: 2, count: 1 });
        model.end(pending, Ending::Unknown);
        let read = |model: &ObjectModel, block: u64| {
            model.check_read(model.ticket(), block * BLOCK, 100, &[9; 100], false)
        };
        assert!(read(&model, 0).is_err());
        // Into another group: the rows of the old tail are completed.
        let pending = model.begin(3, Change::Write { start: 9, count: 1 });
        model.end(pending, Ending::Done);
        assert_eq!(read(&model, 0), Ok(Accepted { by_exception: true }));
        assert!(read(&model, 1).is_err(), "of another row");
    }

    #[test]
    fn growth_leaves_zeros_and_the_old_tail_in_place() {
        let mut model = ObjectModel::new(SHAPE);
        put(&mut model, 1, 100);
        let pending = model.begin(2, Change::Write { start: 3, count: 1 });
        let ticket = model.ticket();
        assert!(model.check_size(ticket, 100).is_ok() && model.check_size(ticket, 16384).is_ok());
        model.end(pending, Ending::Done);
        let mut whole = vec![0; 16384];
        whole[..100].copy_from_slice(&bytes(1, 0, 100));
        whole[12288..].copy_from_slice(&bytes(2, 12288, 4096));
        assert!(model.check_read(model.ticket(), 0, 1 << 20, &whole, false).is_ok());
        assert!(model.check_size(model.ticket(), 100).is_err());
        whole[5000] = 1;
        assert!(model.check_read(model.ticket(), 0, 1 << 20, &whole, false).is_err());
        assert!(!model.is_torn());
    }
}
