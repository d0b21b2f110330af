//! Portals: where a PUT lands and what a GET takes. A portal is an ordered list of match entries, each with its memory descriptor.
//!
//! An operation names a portal, 64 match bits and an offset; the first entry that fits takes it. Messages of the layer above are
//! PUTs to [`PORTAL_MESSAGES`], whose descriptor has no memory of its own and hands the sender's bytes on whole; the net's own
//! ping and discovery are GETs from [`PORTAL_NET`]; bulk is [`PORTAL_BULK`], whose entries are found by their match bits alone
//! (exposure.rs). No I/O and no time here: `PortalTable::deliver` decides, the protocol core does.
//!
//! | question | answer |
//! |---|---|
//! | which entry? | the first that takes the operation (PUT, GET), whose peer and bits (but for the ignored ones) agree, and that is not spent |
//! | at which offset? | the sender's with `MANAGE_REMOTE`, else behind the last one |
//! | more bytes than room? | cut with `TRUNCATE`, else dropped: later entries are not asked |
//! | when is it spent? | threshold 0, or less than `max_size` left |
//! | and then? | with `UNLINK` it goes, else it stays, takes nothing, and waits for `PortalTable::unlink` |
//! | nothing fits? | dropped and counted, or kept until an entry fits: a lazy portal |
//!
//! **Invariant**: a descriptor's Unlink is its last event, comes exactly once, and only when no operation of it is under way.
//! Source of the rules: LNet's match entries and memory descriptors, merged into one: an entry without a descriptor has no use here.

use std::collections::{BTreeMap, VecDeque};

use base::endpoint::PORTALS;
use base::units::narrow;
use base::{Endpoint, Nid};
use runtime::{Buffer, SharedBuffer};

use crate::limits::DESCRIPTORS_MAX;

/// The net's own portal: ping and discovery.
pub const PORTAL_NET: u8 = 0;
/// The portal of messages that are handed on whole.
pub const PORTAL_MESSAGES: u8 = 1;
/// The portal of bulk: exposures, found by their cookie.
pub const PORTAL_BULK: u8 = 2;
/// First portal that is free to use; the last is 63.
pub const PORTAL_FIRST: u8 = 3;

bitflags::bitflags! {
    /// What a descriptor takes, and how.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MdOptions: u8 {
        /// PUTs are placed in it.
        const PUT = 1;
        /// GETs are answered from it.
        const GET = 2;
        /// The other side chooses the offset; else operations take one place behind the other.
        const MANAGE_REMOTE = 4;
        /// What does not fit is cut off; else it is dropped.
        const TRUNCATE = 8;
        /// PUTs are not acknowledged, whatever their sender wishes.
        const ACK_DISABLE = 16;
        /// Spent, it goes by itself; else it stays until it is unlinked.
        const UNLINK = 32;
    }
}

/// Whose operations an entry takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchFrom {
    /// Everybody's.
    Any,
    /// Those of one nid.
    Nid(Nid),
    /// Those of one endpoint.
    Endpoint(Endpoint),
}

/// Where a new entry stands in its portal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Before all.
    Head,
    /// Behind all.
    Tail,
    /// Before another of the same portal.
    Before(MdId),
    /// Behind another of the same portal.
    After(MdId),
}

/// Names one memory descriptor of one machine, with its match entry if it has one; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MdId(pub(crate) u64);

/// What an entry looks for.
#[derive(Clone, Copy, Debug)]
pub struct MatchEntry {
    /// From [`PORTAL_FIRST`] to 63.
    pub portal: u8,
    /// Its peers.
    pub from: MatchFrom,
    /// Its bits.
    pub match_bits: u64,
    /// Bits of them that may differ.
    pub ignore_bits: u64,
    /// Its place.
    pub position: Position,
}

/// The memory of a descriptor.
#[derive(Debug)]
pub enum MdMemory {
    /// None: each PUT brings its own, which is handed on whole, without a copy.
    Arriving,
    /// Ours to write into: PUTs and REPLYs are placed in it, by a counted copy.
    Writable(Buffer),
    /// Small, on the heap: GETs copy from it.
    Kept(Box<[u8]>),
    /// Only read: by GETs, and by PUTs of ours, without a copy.
    Readable(SharedBuffer),
}

impl MdMemory {
    fn len(&self) -> Option<usize> {
        match self {
            MdMemory::Arriving => None,
            MdMemory::Kept(bytes) => Some(bytes.len()),
            MdMemory::Writable(buffer) => Some(buffer.len()),
            MdMemory::Readable(buffer) => Some(buffer.len()),
        }
    }

    pub(crate) fn freeze(self) -> Option<SharedBuffer> {
        match self {
            MdMemory::Arriving | MdMemory::Kept(_) => None,
            MdMemory::Writable(buffer) => Some(buffer.freeze()),
            MdMemory::Readable(buffer) => Some(buffer),
        }
    }
}

/// Memory, with what may be done to it.
#[derive(Debug)]
pub struct MemoryDescriptor {
    /// The memory.
    pub memory: MdMemory,
    /// How.
    pub options: MdOptions,
    /// Operations that it takes; `None`: without end. A PUT of ours takes one, and one for its ACK; a GET of ours takes two.
    pub threshold: Option<u32>,
    /// Longest PUT; when less than this is left, it is spent. 0: no such rule.
    pub max_size: usize,
}

/// Why an entry was not attached, or a descriptor not bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// Not a portal for others.
    #[error("portal {portal}: from {PORTAL_FIRST} to {} are free to use", PORTALS - 1)]
    Portal {
        /// The portal asked for.
        portal: u8,
    },
    /// The neighbour is not (any more) in that portal.
    #[error("the entry to stand beside is not in that portal")]
    NoNeighbour,
    /// A threshold of 0 takes nothing.
    #[error("a threshold of 0 takes nothing: leave it out for one without end")]
    ThresholdZero,
    /// Options that its memory cannot serve.
    #[error(
        "{options:?} does not go with its memory: only writable memory takes PUTs, arriving memory gives nothing to GETs"
    )]
    Memory {
        /// The options asked for.
        options: MdOptions,
    },
    /// Too many.
    #[error("{max} memory descriptors are in use already")]
    TooMany {
        /// The limit.
        max: usize,
    },
}

/// An operation of a peer as it is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incoming {
    /// `PUT` or `GET`.
    pub(crate) verb: MdOptions,
    pub(crate) portal: u8,
    pub(crate) from: Endpoint,
    pub(crate) match_bits: u64,
    pub(crate) offset: u32,
    pub(crate) bytes: usize,
}

/// Where an operation goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Match {
    pub(crate) md: MdId,
    pub(crate) offset: usize,
    /// Of those sent or asked for.
    pub(crate) bytes: usize,
    pub(crate) ack_disabled: bool,
    /// The operation brings its own memory, which goes to the layer above.
    pub(crate) hands_over: bool,
    /// It may have been the descriptor's last: [`PortalTable::settle`] has to look.
    pub(crate) may_end: bool,
}

/// What becomes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    Matched(Match),
    /// Nobody takes it: dropped.
    NoMatch,
    /// The entry that matches has no room: dropped.
    TooLong,
    /// A lazy portal: to be kept, and tried again when an entry is attached.
    Later,
}

struct Descriptor {
    memory: MdMemory,
    options: MdOptions,
    threshold: Option<u32>,
    max_size: usize,
    /// End of the last operation.
    local_offset: usize,
    /// Operations of ours that have not ended.
    pending: u32,
    /// Unlinked, and only waiting for them.
    is_ending: bool,
    portal: Option<u8>,
}

impl Descriptor {
    fn is_spent(&self) -> bool {
        let is_full = self.max_size != 0
            && self.memory.len().is_some_and(|length| self.local_offset + self.max_size > length);
        self.threshold == Some(0) || is_full
    }

    /// Nothing more will come to it: unlinked, or spent and to be unlinked then.
    fn is_over(&self) -> bool {
        self.is_ending || (self.options.contains(MdOptions::UNLINK) && self.is_spent())
    }

    fn take_one(&mut self) {
        if let Some(threshold) = &mut self.threshold {
            *threshold = threshold.saturating_sub(1);
        }
    }

    /// `(offset, bytes)` of an operation that matches; `None`: it does not fit, and may not be cut.
    fn place(&self, incoming: &Incoming) -> Option<(usize, usize)> {
        let is_managed = self.options.contains(MdOptions::MANAGE_REMOTE);
        let offset = if is_managed { narrow(u64::from(incoming.offset)) } else { self.local_offset };
        let (offset, left) = match self.memory.len() {
            None => (0, usize::MAX),
            Some(length) => (offset.min(length), length.saturating_sub(offset)),
        };
        let room = if self.max_size == 0 { left } else { left.min(self.max_size) };
        if incoming.bytes > room && !self.options.contains(MdOptions::TRUNCATE) {
            return None;
        }
        Some((offset, incoming.bytes.min(room)))
    }
}

impl MatchEntry {
    fn wants(&self, incoming: &Incoming) -> bool {
        let is_from = match self.from {
            MatchFrom::Any => true,
            MatchFrom::Nid(nid) => incoming.from.nid == nid,
            MatchFrom::Endpoint(endpoint) => incoming.from == endpoint,
        };
        is_from && (incoming.match_bits ^ self.match_bits) & !self.ignore_bits == 0
    }
}

/// One portal. `D`: what is kept of an operation that comes too early.
struct Portal<D> {
    entries: Vec<(MdId, MatchEntry)>,
    is_lazy: bool,
    early: VecDeque<D>,
}

impl<D> Default for Portal<D> {
    fn default() -> Portal<D> {
        Portal { entries: Vec::new(), is_lazy: false, early: VecDeque::new() }
    }
}

/// A descriptor that has gone: its Unlink event.
#[derive(Debug)]
pub(crate) struct Unlinked {
    pub(crate) md: MdId,
    pub(crate) memory: Option<SharedBuffer>,
}

/// All portals and descriptors of one machine.
pub(crate) struct PortalTable<D> {
    /// In order, by portal; few are in use.
    portals: BTreeMap<u8, Portal<D>>,
    descriptors: BTreeMap<MdId, Descriptor>,
    last_id: u64,
}

impl<D> Default for PortalTable<D> {
    fn default() -> PortalTable<D> {
        PortalTable { portals: BTreeMap::new(), descriptors: BTreeMap::new(), last_id: 0 }
    }
}

impl<D> PortalTable<D> {
    fn insert(&mut self, md: MemoryDescriptor, portal: Option<u8>) -> Result<MdId, AttachError> {
        let MemoryDescriptor { memory, options, threshold, max_size } = md;
        if threshold == Some(0) {
            return Err(AttachError::ThresholdZero);
        }
        let (puts, gets) = (options.contains(MdOptions::PUT), options.contains(MdOptions::GET));
        let misfit = match memory {
            MdMemory::Arriving => gets || portal.is_none(),
            MdMemory::Readable(_) | MdMemory::Kept(_) => puts,
            MdMemory::Writable(_) => false,
        };
        if misfit {
            return Err(AttachError::Memory { options });
        }
        if self.descriptors.len() >= DESCRIPTORS_MAX {
            return Err(AttachError::TooMany { max: DESCRIPTORS_MAX });
        }
        self.last_id += 1;
        let id = MdId(self.last_id);
        let descriptor = Descriptor {
            memory,
            options,
            threshold,
            max_size,
            local_offset: 0,
            pending: 0,
            is_ending: false,
            portal,
        };
        self.descriptors.insert(id, descriptor);
        Ok(id)
    }

    /// Attaches an entry to a portal that is free to use.
    pub(crate) fn attach(&mut self, wanted: MatchEntry, md: MemoryDescriptor) -> Result<MdId, AttachError> {
        let portal = wanted.portal;
        if portal < PORTAL_FIRST || u16::from(portal) >= PORTALS {
            return Err(AttachError::Portal { portal });
        }
        self.attach_any(wanted, md)
    }

    /// [`PortalTable::attach`] for the machine itself: also to its own portals.
    pub(crate) fn attach_any(
        &mut self,
        wanted: MatchEntry,
        md: MemoryDescriptor,
    ) -> Result<MdId, AttachError> {
        let entries = self.portals.get(&wanted.portal).map_or(&[][..], |portal| &portal.entries);
        let place = |id| entries.iter().position(|(other, _)| *other == id).ok_or(AttachError::NoNeighbour);
        let index = match wanted.position {
            Position::Head => 0,
            Position::Tail => entries.len(),
            Position::Before(other) => place(other)?,
            Position::After(other) => place(other)? + 1,
        };
        let id = self.insert(md, Some(wanted.portal))?;
        self.portals.entry(wanted.portal).or_default().entries.insert(index, (id, wanted));
        Ok(id)
    }

    /// A descriptor for operations of ours, without an entry.
    pub(crate) fn bind(&mut self, md: MemoryDescriptor) -> Result<MdId, AttachError> {
        self.insert(md, None)
    }

    /// Finds the entry for an operation of a peer and counts it in.
    pub(crate) fn deliver(&mut self, incoming: &Incoming) -> Delivery {
        let Some(portal) = self.portals.get(&incoming.portal) else { return Delivery::NoMatch };
        for (id, wanted) in &portal.entries {
            let Some(descriptor) = self.descriptors.get_mut(id) else { continue };
            if descriptor.is_spent() || !descriptor.options.contains(incoming.verb) || !wanted.wants(incoming)
            {
                continue;
            }
            let Some((offset, bytes)) = descriptor.place(incoming) else { return Delivery::TooLong };
            descriptor.take_one();
            descriptor.local_offset = offset + bytes;
            let ack_disabled = descriptor.options.contains(MdOptions::ACK_DISABLE);
            let hands_over = matches!(descriptor.memory, MdMemory::Arriving);
            let may_end = descriptor.is_over();
            return Delivery::Matched(Match { md: *id, offset, bytes, ack_disabled, hands_over, may_end });
        }
        if portal.is_lazy { Delivery::Later } else { Delivery::NoMatch }
    }

    /// A descriptor's memory, to place bytes in.
    pub(crate) fn writable(&mut self, id: MdId) -> Option<&mut Buffer> {
        match &mut self.descriptors.get_mut(&id)?.memory {
            MdMemory::Writable(buffer) => Some(buffer),
            _ => None,
        }
    }

    /// A descriptor's memory, to read from.
    pub(crate) fn memory(&self, id: MdId) -> Option<&MdMemory> {
        self.descriptors.get(&id).map(|found| &found.memory)
    }

    // ---- operations of ours

    /// Begins an operation with a descriptor. False: it is gone or spent.
    pub(crate) fn begin(&mut self, id: MdId) -> bool {
        let Some(descriptor) = self.descriptors.get_mut(&id) else { return false };
        if descriptor.is_ending || descriptor.threshold == Some(0) {
            return false;
        }
        descriptor.take_one();
        descriptor.pending += 1;
        true
    }

    /// An operation was not sent after all.
    pub(crate) fn undo(&mut self, id: MdId) {
        let Some(descriptor) = self.descriptors.get_mut(&id) else { return };
        descriptor.pending -= 1;
        if let Some(threshold) = &mut descriptor.threshold {
            *threshold += 1;
        }
    }

    /// The ACK or REPLY of an operation has come, or will not.
    pub(crate) fn answered(&mut self, id: MdId) {
        if let Some(descriptor) = self.descriptors.get_mut(&id) {
            descriptor.take_one();
        }
    }

    /// An operation has ended: nothing more of it will come. [`PortalTable::settle`] follows its event.
    pub(crate) fn end(&mut self, id: MdId) {
        if let Some(descriptor) = self.descriptors.get_mut(&id) {
            descriptor.pending = descriptor.pending.saturating_sub(1);
        }
    }

    /// Takes a descriptor away if it is over: unlinked or spent, and nothing of it under way. To be called after each event of it.
    pub(crate) fn settle(&mut self, id: MdId) -> Option<Unlinked> {
        let descriptor = self.descriptors.get(&id)?;
        if !descriptor.is_over() || descriptor.pending > 0 {
            return None;
        }
        let descriptor = self.descriptors.remove(&id)?;
        self.detach(id, descriptor.portal);
        Some(Unlinked { md: id, memory: descriptor.memory.freeze() })
    }

    fn detach(&mut self, id: MdId, portal: Option<u8>) {
        if let Some(portal) = portal.and_then(|number| self.portals.get_mut(&number)) {
            portal.entries.retain(|(other, _)| *other != id);
        }
    }

    /// Ends a descriptor: it takes nothing from now on, and [`PortalTable::settle`] gives it back when its operations have ended. False: it
    /// is gone, or ending already.
    pub(crate) fn unlink(&mut self, id: MdId) -> bool {
        let Some(descriptor) = self.descriptors.get_mut(&id) else { return false };
        if std::mem::replace(&mut descriptor.is_ending, true) {
            return false;
        }
        let portal = descriptor.portal;
        self.detach(id, portal);
        true
    }

    // ---- lazy portals

    /// Makes a portal lazy, or not: then what it has kept comes back, to be dropped.
    pub(crate) fn set_lazy(&mut self, number: u8, is_lazy: bool) -> VecDeque<D> {
        let portal = self.portals.entry(number).or_default();
        portal.is_lazy = is_lazy;
        if is_lazy { VecDeque::new() } else { std::mem::take(&mut portal.early) }
    }

    /// Keeps what [`Delivery::Later`] was said of. Bounded by the credits of the senders.
    pub(crate) fn keep(&mut self, number: u8, early: D) {
        self.portals.entry(number).or_default().early.push_back(early);
    }

    /// All that a portal has kept, to be tried again in order.
    pub(crate) fn take_early(&mut self, number: u8) -> VecDeque<D> {
        self.portals.get_mut(&number).map_or_else(VecDeque::new, |portal| std::mem::take(&mut portal.early))
    }

    /// Forgets what was kept of a sender that is gone.
    pub(crate) fn retain_early(&mut self, keep: impl Fn(&D) -> bool) {
        for portal in self.portals.values_mut() {
            portal.early.retain(&keep);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use runtime::{Arena, ArenaConfig};

    type Table = PortalTable<u32>;

    fn arena() -> Arena {
        Arena::new(ArenaConfig { capacity_bytes: 8 << 20 }).unwrap()
    }

    fn peer(address: u8) -> Endpoint {
        format!("10.0.0.{address}@tcp:1:34:0").parse().unwrap()
    }

    fn entry(match_bits: u64, ignore_bits: u64) -> MatchEntry {
        MatchEntry { portal: 9, from: MatchFrom::Any, match_bits, ignore_bits, position: Position::Tail }
    }

    fn md(arena: &Arena, bytes: usize, options: MdOptions) -> MemoryDescriptor {
        let memory = MdMemory::Writable(arena.try_alloc(bytes).unwrap());
        MemoryDescriptor { memory, options: options | MdOptions::PUT, threshold: None, max_size: 0 }
    }

    fn put(match_bits: u64, offset: u32, bytes: usize) -> Incoming {
        Incoming { verb: MdOptions::PUT, portal: 9, from: peer(7), match_bits, offset, bytes }
    }

    #[test]
    fn the_first_entry_that_matches_decides() {
        let arena = arena();
        let mut table = Table::default();
        let none = MdOptions::empty();
        let tail = table.attach(entry(0x10, 0x0f), md(&arena, 4096, none)).unwrap();
        let exact = MatchEntry { position: Position::Before(tail), ..entry(0x15, 0) };
        let exact = table.attach(exact, md(&arena, 100, none)).unwrap();
        let mine = MatchFrom::Endpoint(peer(8));
        let mine = MatchEntry { position: Position::Head, from: mine, ..entry(0, u64::MAX) };
        let mine = table.attach(mine, md(&arena, 4096, none)).unwrap();
        let after = MatchEntry { position: Position::After(exact), ..entry(0x15, 0) };
        let gets = MemoryDescriptor { options: MdOptions::GET, ..md(&arena, 4096, none) };
        let after = table.attach(after, gets).unwrap();
        let to = |table: &mut Table, incoming| match table.deliver(&incoming) {
            Delivery::Matched(found) => Ok(found.md),
            other => Err(other),
        };
        assert_eq!(to(&mut table, put(0x15, 0, 100)), Ok(exact));
        assert_eq!(to(&mut table, put(0x15, 0, 101)), Err(Delivery::TooLong), "no room, and no right to cut");
        assert_eq!(to(&mut table, Incoming { verb: MdOptions::GET, ..put(0x15, 0, 1) }), Ok(after));
        assert_eq!(to(&mut table, put(0x1f, 0, 1)), Ok(tail));
        assert_eq!(to(&mut table, Incoming { from: peer(8), ..put(0x15, 0, 1) }), Ok(mine));
        assert_eq!(to(&mut table, put(0x25, 0, 1)), Err(Delivery::NoMatch));
        assert_eq!(to(&mut table, Incoming { portal: 10, ..put(0x15, 0, 1) }), Err(Delivery::NoMatch));
        table.set_lazy(9, true);
        assert_eq!(to(&mut table, put(0x25, 0, 1)), Err(Delivery::Later));
    }

    #[test]
    fn what_cannot_be_attached_is_told() {
        let arena = arena();
        let mut table = Table::default();
        let mut attach = |wanted: MatchEntry, threshold| {
            let md = MemoryDescriptor { threshold, ..md(&arena, 64, MdOptions::empty()) };
            table.attach(wanted, md)
        };
        for portal in [PORTAL_NET, PORTAL_MESSAGES, PORTAL_BULK, 64, 255] {
            let wanted = MatchEntry { portal, ..entry(0, 0) };
            assert_eq!(attach(wanted, None), Err(AttachError::Portal { portal }));
        }
        assert_eq!(attach(entry(0, 0), Some(0)), Err(AttachError::ThresholdZero));
        let id = attach(entry(0, 0), None).unwrap();
        let elsewhere = MatchEntry { portal: 10, position: Position::After(id), ..entry(0, 0) };
        assert_eq!(attach(elsewhere, None), Err(AttachError::NoNeighbour));
        let readable = MdMemory::Readable(arena.try_alloc(64).unwrap().freeze());
        for (memory, options) in [(MdMemory::Arriving, MdOptions::GET), (readable, MdOptions::PUT)] {
            let misfit = MemoryDescriptor { memory, options, threshold: None, max_size: 0 };
            assert_eq!(table.attach(entry(0, 0), misfit), Err(AttachError::Memory { options }));
        }
        let small = || MemoryDescriptor {
            memory: MdMemory::Kept(Box::default()),
            options: MdOptions::GET,
            threshold: None,
            max_size: 0,
        };
        while table.attach(entry(0, 0), small()).is_ok() {}
        let one_more = table.bind(small());
        assert_eq!(one_more, Err(AttachError::TooMany { max: DESCRIPTORS_MAX }));
    }

    #[test]
    fn an_unlinked_descriptor_waits_for_its_operations() {
        let arena = arena();
        let mut table = Table::default();
        let once = MemoryDescriptor { threshold: Some(2), ..md(&arena, 64, MdOptions::UNLINK) };
        let id = table.bind(once).unwrap();
        assert!(table.begin(id));
        assert!(table.settle(id).is_none());
        assert!(table.unlink(id) && !table.unlink(id), "once");
        assert!(!table.begin(id), "it takes nothing more");
        assert!(table.settle(id).is_none(), "an operation is under way");
        table.end(id);
        assert_eq!(table.settle(id).unwrap().memory.unwrap().len(), 64);
        assert!(table.settle(id).is_none() && !table.unlink(id));
    }

    /// What the rules say, in the plainest words: entries in one list, every one asked in turn.
    struct Model {
        entries: Vec<ModelEntry>,
        is_lazy: bool,
    }

    struct ModelEntry {
        id: MdId,
        length: usize,
        options: MdOptions,
        left: Option<u32>,
        max_size: usize,
        end: usize,
        from: Option<u8>,
        bits: u64,
        ignored: u64,
        is_gone: bool,
    }

    impl ModelEntry {
        fn is_spent(&self) -> bool {
            self.left == Some(0) || (self.max_size > 0 && self.end + self.max_size > self.length)
        }
    }

    impl Model {
        fn deliver(&mut self, from: u8, verb: MdOptions, bits: u64, offset: usize, bytes: usize) -> Delivery {
            for entry in self.entries.iter_mut().filter(|entry| !entry.is_gone) {
                let other_peer = entry.from.is_some_and(|wanted| wanted != from);
                let other_bits =
                    (0..64).any(|bit| entry.ignored >> bit & 1 == 0 && (entry.bits ^ bits) >> bit & 1 == 1);
                if other_peer || other_bits || entry.is_spent() || !entry.options.contains(verb) {
                    continue;
                }
                let at = if entry.options.contains(MdOptions::MANAGE_REMOTE) { offset } else { entry.end };
                let at = at.min(entry.length);
                let mut room = entry.length - at;
                if entry.max_size > 0 && room > entry.max_size {
                    room = entry.max_size;
                }
                if bytes > room && !entry.options.contains(MdOptions::TRUNCATE) {
                    return Delivery::TooLong;
                }
                let bytes = bytes.min(room);
                entry.end = at + bytes;
                entry.left = entry.left.map(|left| left - 1);
                let ack_disabled = entry.options.contains(MdOptions::ACK_DISABLE);
                let may_end = entry.options.contains(MdOptions::UNLINK) && entry.is_spent();
                return Delivery::Matched(Match {
                    md: entry.id,
                    offset: at,
                    bytes,
                    ack_disabled,
                    hands_over: false,
                    may_end,
                });
            }
            if self.is_lazy { Delivery::Later } else { Delivery::NoMatch }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Attach {
            place: usize,
            length: usize,
            options: u8,
            threshold: u32,
            max_size: usize,
            from: u8,
            bits: u64,
            ignored: u64,
        },
        Operate {
            from: u8,
            is_get: bool,
            bits: u64,
            offset: u32,
            bytes: usize,
        },
        Unlink(usize),
        Lazy(bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        let attach = (0usize..8, 1usize..300, 0u8..64, 0u32..6, 0usize..60, 0u8..4, 0u64..4, 0u64..4);
        let attach = attach.prop_map(|(place, length, options, threshold, max_size, from, bits, ignored)| {
            Step::Attach { place, length, options, threshold, max_size, from, bits, ignored }
        });
        let operate = (1u8..4, any::<bool>(), 0u64..4, 0u32..400, 1usize..120);
        let operate = operate.prop_map(|(from, is_get, bits, offset, bytes)| Step::Operate {
            from,
            is_get,
            bits,
            offset,
            bytes,
        });
        prop_oneof![
            2 => attach,
            8 => operate,
            1 => (0usize..8).prop_map(Step::Unlink),
            1 => any::<bool>().prop_map(Step::Lazy),
        ]
    }

    proptest! {
        /// Random entries and operations against the model: the same entry, offset and length each time; never outside of its
        /// memory; and each descriptor's Unlink exactly once, after which it takes nothing.
        #[test]
        fn random_runs_agree_with_the_model(steps in prop::collection::vec(step(), 1..120)) {
            let arena = arena();
            let mut table = Table::default();
            let mut model = Model { entries: Vec::new(), is_lazy: false };
            let mut unlinked = std::collections::BTreeMap::<MdId, usize>::new();
            for step in steps {
                match step {
                    Step::Attach { place, length, options, threshold, max_size, from, bits, ignored } => {
                        let options = MdOptions::from_bits_truncate(options);
                        let alive: Vec<usize> =
                            (0..model.entries.len()).filter(|index| !model.entries[*index].is_gone).collect();
                        let (position, index) = match alive.get(place / 2) {
                            Some(index) if place % 2 == 0 => (Position::Before(model.entries[*index].id), *index),
                            Some(index) => (Position::After(model.entries[*index].id), index + 1),
                            None if place % 2 == 0 => (Position::Head, 0),
                            None => (Position::Tail, model.entries.len()),
                        };
                        let threshold = (threshold > 0).then_some(threshold);
                        let memory = MdMemory::Writable(arena.try_alloc(length).unwrap());
                        let whom = if from == 0 { MatchFrom::Any } else { MatchFrom::Endpoint(peer(from)) };
                        let wanted = MatchEntry { portal: 9, from: whom, match_bits: bits, ignore_bits: ignored, position };
                        let md = MemoryDescriptor { memory, options, threshold, max_size };
                        let id = table.attach(wanted, md).unwrap();
                        let from = (from > 0).then_some(from);
                        let left = threshold;
                        model.entries.insert(index, ModelEntry {
                            id, length, options, left, max_size, end: 0, from, bits, ignored, is_gone: false,
                        });
                    }
                    Step::Operate { from, is_get, bits, offset, bytes } => {
                        let verb = if is_get { MdOptions::GET } else { MdOptions::PUT };
                        let wanted = model.deliver(from, verb, bits, offset as usize, bytes);
                        let incoming =
                            Incoming { verb, portal: 9, from: peer(from), match_bits: bits, offset, bytes };
                        let got = table.deliver(&incoming);
                        prop_assert_eq!(got, wanted);
                        let Delivery::Matched(found) = got else { continue };
                        let entry = model.entries.iter_mut().find(|entry| entry.id == found.md).unwrap();
                        prop_assert!(found.offset + found.bytes <= entry.length);
                        let goes = entry.is_spent() && entry.options.contains(MdOptions::UNLINK);
                        let gone = table.settle(found.md);
                        prop_assert_eq!(gone.is_some(), goes);
                        if let Some(gone) = gone {
                            prop_assert_eq!(gone.memory.unwrap().len(), entry.length);
                            *unlinked.entry(gone.md).or_default() += 1;
                            entry.is_gone = true;
                        }
                    }
                    Step::Unlink(index) => {
                        let Some(entry) = model.entries.get_mut(index) else { continue };
                        prop_assert_eq!(table.unlink(entry.id), !entry.is_gone);
                        let gone = table.settle(entry.id);
                        prop_assert_eq!(gone.is_some(), !entry.is_gone);
                        if let Some(gone) = gone {
                            *unlinked.entry(gone.md).or_default() += 1;
                        }
                        entry.is_gone = true;
                    }
                    Step::Lazy(is_lazy) => {
                        table.set_lazy(9, is_lazy);
                        model.is_lazy = is_lazy;
                    }
                }
            }
            prop_assert!(unlinked.values().all(|count| *count == 1));
            let gone = model.entries.iter().filter(|entry| entry.is_gone).count();
            prop_assert_eq!(unlinked.len(), gone);
        }
    }
}
