//! The extents of all stobs of a device in one order: which block of which stob is where, with a checksum for each. They are kept in
//! **pages**, of which some are in memory.
//!
//! A page holds the extents from its bound up to the bound of the next one. It stands in a slot of the device (`slots`), or is new, or was
//! changed since: then it stays in memory until a checkpoint has written it to another slot. Other pages are dropped from memory when
//! they take too much ([`Extents::evict`]) and read again when they are needed: whoever looks or changes asks
//! [`Extents::touch`] first what has to be there.
//!
//! **Invariant**: extents of one stob are disjoint and have 1 to [`EXTENT_BLOCKS_MAX`] blocks; none crosses the bound of its page; the
//! first bound is the least key there is. Empty pages stay until [`Extents::tidy`], so no change needs another page than those touched.
//! What a change makes of bounds and pages depends on the changes alone, never on what is in memory: so a recovery needs no more slots than
//! were there. Memory: 72 bytes an extent in memory, 4 bytes a block where it has more than four, and about 100 bytes for each page.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Bound;

use base::BlockExtent;
use base::units::{narrow, wide};
use smallvec::SmallVec;

use crate::format::page::{EXTENT_ROW_BYTES, STOB_ROW_BYTES};
use crate::limits::EXTENT_BLOCKS_MAX;
use crate::stob_id::StobId;

/// CRC-32C of each block of an extent. Small extents need no memory of their own.
pub type Checksums = SmallVec<[u32; 4]>;

/// The place of an extent: its stob and its first block there. Ordered so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ExtentKey {
    /// The stob.
    pub stob: StobId,
    /// First block of the stob.
    pub start: u64,
}

/// One extent, without its place in the stob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// First block of the device.
    pub device_start: u64,
    /// CRC-32C of each block.
    pub checksums: Checksums,
}

impl Mapped {
    /// Blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        wide(self.checksums.len())
    }

    /// Its blocks of the device.
    #[must_use]
    pub fn device_extent(&self) -> BlockExtent {
        BlockExtent { start: self.device_start, count: self.blocks() }
    }

    fn memory_bytes(&self) -> u64 {
        let heap = if self.checksums.spilled() { self.checksums.capacity() * size_of::<u32>() } else { 0 };
        wide(size_of::<Item>() + heap)
    }
}

/// A part of an extent that a lookup found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'map> {
    /// First block of the stob.
    pub start: u64,
    /// First block of the device.
    pub device_start: u64,
    /// CRC-32C of each block.
    pub checksums: &'map [u32],
}

/// Where a page or a page of bits stands on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its slot.
    pub slot: u64,
    /// Checksum of its header, which has that of the rest.
    pub checksum: u32,
}

/// A page that has to be read from the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its bound.
    pub bound: ExtentKey,
    /// Where it stands.
    pub place: Place,
}

type Item = (ExtentKey, Mapped);

fn end_of((key, mapped): &Item) -> ExtentKey {
    ExtentKey { stob: key.stob, start: key.start.saturating_add(mapped.blocks()) }
}

fn bytes_of((_, mapped): &Item) -> u64 {
    EXTENT_ROW_BYTES + mapped.blocks() * 4
}

/// Bytes of `items` in a page.
fn sum_bytes(items: &[Item]) -> u64 {
    let mut last = None;
    let mut bytes = 0;
    for item in items {
        if last != Some(item.0.stob) {
            bytes += STOB_ROW_BYTES;
            last = Some(item.0.stob);
        }
        bytes += bytes_of(item);
    }
    bytes
}

/// The first of `items` (two or more) that belongs into the second half of their bytes.
fn half_of(items: &[Item]) -> usize {
    let all = sum_bytes(items);
    let (mut last, mut bytes) = (None, 0);
    let half = items.iter().position(|item| {
        if last.replace(item.0.stob) != Some(item.0.stob) {
            bytes += STOB_ROW_BYTES;
        }
        bytes += bytes_of(item);
        bytes * 2 > all
    });
    half.unwrap_or(0).clamp(1, items.len() - 1)
}

#[derive(Clone, Debug, Default)]
struct Page {
    /// `None`: only on the device.
    items: Option<Vec<Item>>,
    place: Option<Place>,
    count: u64,
    /// Bytes of its extents on the device.
    bytes: u64,
    memory_bytes: u64,
    is_dirty: bool,
    used: Cell<u64>,
}

impl Page {
    fn of(items: Vec<Item>, used: u64) -> Page {
        let (count, bytes) = (wide(items.len()), sum_bytes(&items));
        let memory_bytes = items.iter().map(|item| item.1.memory_bytes()).sum();
        Page {
            items: Some(items),
            place: None,
            count,
            bytes,
            memory_bytes,
            is_dirty: true,
            used: Cell::new(used),
        }
    }

    /// True if a checkpoint has to find a slot for it.
    fn needs_slot(&self) -> bool {
        self.is_dirty && self.count > 0
    }

    fn measure(&mut self) {
        let items = self.items.as_deref().unwrap_or_default();
        self.count = wide(items.len());
        self.bytes = sum_bytes(items);
        self.memory_bytes = items.iter().map(|item| item.1.memory_bytes()).sum();
    }

    /// True if a neighbour of place `at` is of `stob`.
    fn has_neighbour(items: &[Item], at: usize, stob: StobId) -> bool {
        let before = at.checked_sub(1).and_then(|at| items.get(at));
        before.is_some_and(|item| item.0.stob == stob)
            || items.get(at).is_some_and(|item| item.0.stob == stob)
    }

    fn insert(&mut self, at: usize, item: Item) {
        let Some(items) = &mut self.items else { return };
        self.bytes += bytes_of(&item);
        if !Page::has_neighbour(items, at, item.0.stob) {
            self.bytes += STOB_ROW_BYTES;
        }
        self.memory_bytes += item.1.memory_bytes();
        self.count += 1;
        items.insert(at, item);
    }

    fn remove(&mut self, at: usize) -> Option<Item> {
        let items = self.items.as_mut().filter(|items| at < items.len())?;
        let item = items.remove(at);
        self.bytes -= bytes_of(&item);
        if !Page::has_neighbour(items, at, item.0.stob) {
            self.bytes -= STOB_ROW_BYTES;
        }
        self.memory_bytes -= item.1.memory_bytes();
        self.count -= 1;
        Some(item)
    }

    /// Places of the extents that touch `extent` of `stob`.
    fn range(&self, stob: StobId, extent: BlockExtent) -> std::ops::Range<usize> {
        let items = self.items.as_deref().unwrap_or_default();
        let start = ExtentKey { stob, start: extent.start };
        let mut first = items.partition_point(|item| item.0 < start);
        if let Some(before) = first.checked_sub(1)
            && items[before].0.stob == stob
            && end_of(&items[before]) > start
        {
            first = before;
        }
        let end = items.partition_point(|item| item.0 < ExtentKey { stob, start: extent.end() });
        first..end.max(first)
    }

    fn punch(&mut self, stob: StobId, extent: BlockExtent, dropped: &mut impl FnMut(BlockExtent)) {
        let range = self.range(stob, extent);
        if range.is_empty() {
            return;
        }
        self.is_dirty = true;
        let mut left = Vec::new();
        for (key, mapped) in &self.items.as_deref().unwrap_or_default()[range.clone()] {
            let whole = BlockExtent { start: key.start, count: mapped.blocks() };
            let Some(common) = whole.intersection(&extent) else { continue };
            let (skipped, kept_from) = (common.start - key.start, common.end() - key.start);
            dropped(BlockExtent { start: mapped.device_start + skipped, count: common.count });
            if skipped > 0 {
                let checksums = mapped.checksums[..narrow(skipped)].into();
                left.push((*key, Mapped { device_start: mapped.device_start, checksums }));
            }
            if kept_from < whole.count {
                let checksums = mapped.checksums[narrow(kept_from)..].into();
                let device_start = mapped.device_start + kept_from;
                left.push((ExtentKey { stob, start: common.end() }, Mapped { device_start, checksums }));
            }
        }
        if range.len() == 1 {
            self.remove(range.start);
            for (at, item) in (range.start..).zip(left) {
                self.insert(at, item);
            }
        } else {
            if let Some(items) = &mut self.items {
                drop(items.splice(range, left));
            }
            self.measure();
        }
    }
}

/// Extents by place.
#[derive(Clone, Debug)]
pub struct Extents {
    pages: BTreeMap<ExtentKey, Page>,
    /// Bytes of a page above which it is split.
    page_bytes: u64,
    count: u64,
    memory_bytes: u64,
    /// Pages that a checkpoint has to find a slot for.
    dirty: u64,
    /// Slots of pages that are gone, free after the next checkpoint.
    left_slots: Vec<u64>,
    time: u64,
    /// Where [`Extents::evict`] goes on.
    hand: ExtentKey,
}

impl Default for Extents {
    fn default() -> Extents {
        Extents::new(u64::MAX)
    }
}

impl Extents {
    /// None yet. `page_bytes`: bytes of extents above which a page is split.
    #[must_use]
    pub fn new(page_bytes: u64) -> Extents {
        Extents {
            pages: BTreeMap::new(),
            page_bytes,
            count: 0,
            memory_bytes: 0,
            dirty: 0,
            left_slots: Vec::new(),
            time: 1,
            hand: ExtentKey::default(),
        }
    }

    /// Extents.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.count
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Pages.
    #[must_use]
    pub fn page_count(&self) -> u64 {
        wide(self.pages.len())
    }

    /// Pages that a checkpoint has to write.
    #[must_use]
    pub fn dirty_pages(&self) -> u64 {
        self.dirty
    }

    /// True if a checkpoint would give slots back: of pages that were changed, or are empty or gone.
    #[must_use]
    pub fn holds_old_slots(&self) -> bool {
        self.dirty > 0
            || !self.left_slots.is_empty()
            || self.pages.values().any(|page| page.count == 0 && page.place.is_some())
    }

    /// Bytes of memory that extents take.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Bytes of extents above which a page is split.
    #[must_use]
    pub fn page_bytes(&self) -> u64 {
        self.page_bytes
    }

    /// Changes a page and the sums with it.
    fn change(&mut self, bound: ExtentKey, change: impl FnOnce(&mut Page)) {
        let Some(page) = self.pages.get_mut(&bound) else { return };
        debug_assert!(page.items.is_some(), "a page is changed that is not in memory");
        self.count -= page.count;
        self.memory_bytes -= page.memory_bytes;
        self.dirty -= u64::from(page.needs_slot());
        change(page);
        page.used.set(self.time);
        self.count += page.count;
        self.memory_bytes += page.memory_bytes;
        self.dirty += u64::from(page.needs_slot());
    }

    fn add_page(&mut self, bound: ExtentKey, page: Page) {
        self.count += page.count;
        self.memory_bytes += page.memory_bytes;
        self.dirty += u64::from(page.needs_slot());
        self.pages.insert(bound, page);
    }

    fn remove_page(&mut self, bound: ExtentKey) -> Option<Page> {
        let page = self.pages.remove(&bound)?;
        self.count -= page.count;
        self.memory_bytes -= page.memory_bytes;
        self.dirty -= u64::from(page.needs_slot());
        Some(page)
    }

    /// Bound of the page that holds `key`, if there is any page.
    fn bound_of(&self, key: ExtentKey) -> Option<ExtentKey> {
        self.pages.range(..=key).next_back().map(|(bound, _)| *bound)
    }

    /// Pages that have, or may have, extents of `stob` that touch `extent`.
    fn pages_of(&self, stob: StobId, extent: BlockExtent) -> impl Iterator<Item = (ExtentKey, &Page)> + '_ {
        let start = ExtentKey { stob, start: extent.start };
        let first = self.bound_of(start).unwrap_or(start);
        let end = ExtentKey { stob, start: extent.end() };
        // A range that excludes both its ends must have two.
        let after = if end > first { Bound::Excluded(end) } else { Bound::Included(first) };
        let first_page = self.pages.get(&first).map(|page| (first, page));
        let rest = self.pages.range((Bound::Excluded(first), after)).map(|(bound, page)| (*bound, page));
        first_page.into_iter().chain(rest)
    }

    /// The time of a look at pages. See [`Extents::evict`].
    pub fn tick(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    /// Appends to `missing` the pages of `extent` that are not in memory. Those that are stay there for looks that began at
    /// this time or before.
    pub fn touch(&self, stob: StobId, extent: BlockExtent, missing: &mut Vec<Missing>) {
        for (bound, page) in self.pages_of(stob, extent) {
            self.touch_page(bound, page, missing);
        }
    }

    fn touch_page(&self, bound: ExtentKey, page: &Page, missing: &mut Vec<Missing>) {
        page.used.set(self.time);
        if page.items.is_none()
            && let Some(place) = page.place
        {
            missing.push(Missing { bound, place });
        }
    }

    /// Like [`Extents::touch`], for the first page that has an extent which ends after `from`; false if there is none.
    pub fn touch_next(&self, from: ExtentKey, missing: &mut Vec<Missing>) -> bool {
        let first = self.bound_of(from).unwrap_or(from);
        for (bound, page) in self.pages.range(first..) {
            let Some(items) = &page.items else {
                self.touch_page(*bound, page, missing);
                return true;
            };
            if items.iter().any(|item| end_of(item) > from) {
                page.used.set(self.time);
                return true;
            }
        }
        false
    }

    /// The bound of the page after that of `key`.
    #[must_use]
    pub fn bound_after(&self, key: ExtentKey) -> Option<ExtentKey> {
        let mut pages = self.pages.range((Bound::Excluded(key), Bound::Unbounded));
        pages.next().map(|(bound, _)| *bound)
    }

    /// All pages that are not in memory.
    #[must_use]
    pub fn all_missing(&self) -> Vec<Missing> {
        let mut missing = Vec::new();
        self.pages.iter().for_each(|(bound, page)| self.touch_page(*bound, page, &mut missing));
        missing
    }

    /// True if every page is in memory.
    #[must_use]
    pub fn is_all_in_memory(&self) -> bool {
        self.pages.values().all(|page| page.items.is_some())
    }

    /// What a page at `place` may hold: extents from its bound up to the end, and how many. `None`: not wanted any more.
    #[must_use]
    pub fn expected(&self, missing: Missing) -> Option<(ExtentKey, Option<ExtentKey>, u64, u64)> {
        let bound = self.bound_of(missing.bound)?;
        let page = self.pages.get(&bound)?;
        if page.items.is_some() || page.place != Some(missing.place) {
            return None;
        }
        let end = self.pages.range((Bound::Excluded(bound), Bound::Unbounded)).next().map(|(end, _)| *end);
        Some((bound, end, page.count, page.bytes))
    }

    /// Puts a page into memory that was read. False, and nothing changed, if it does not hold what it has to.
    #[must_use]
    pub fn install(&mut self, missing: Missing, items: Vec<Item>) -> bool {
        let Some((bound, end, count, bytes)) = self.expected(missing) else { return true };
        let is_ordered = items.windows(2).all(|pair| end_of(&pair[0]) <= pair[1].0);
        let is_inside = items.first().is_none_or(|first| first.0 >= bound)
            && items.last().is_none_or(|last| end.is_none_or(|end| end_of(last) <= end));
        if !is_ordered || !is_inside || wide(items.len()) != count || sum_bytes(&items) != bytes {
            return false;
        }
        let memory_bytes: u64 = items.iter().map(|item| item.1.memory_bytes()).sum();
        if let Some(page) = self.pages.get_mut(&bound) {
            page.items = Some(items);
            page.memory_bytes = memory_bytes;
            page.used.set(self.time);
            self.memory_bytes += memory_bytes;
        }
        true
    }

    /// Drops pages from memory while all take more than `limit_bytes`: those that stand on the device and that no look since `oldest` touched.
    /// A look goes over a bounded number of pages.
    pub fn evict(&mut self, limit_bytes: u64, oldest: u64) {
        const PAGES_MAX: usize = 1024;
        if self.memory_bytes <= limit_bytes {
            return;
        }
        let mut last = None;
        for (bound, page) in self.pages.range_mut(self.hand..).take(PAGES_MAX) {
            last = Some(*bound);
            if self.memory_bytes <= limit_bytes {
                break;
            }
            let is_old = page.used.get() < oldest;
            if is_old && !page.is_dirty && page.place.is_some() && page.items.take().is_some() {
                self.memory_bytes -= std::mem::take(&mut page.memory_bytes);
            }
        }
        let next = last.and_then(|last| self.pages.range((Bound::Excluded(last), Bound::Unbounded)).next());
        self.hand = next.map_or(ExtentKey::default(), |(bound, _)| *bound);
    }

    /// Extents from `from` on, in order. All pages have to be in memory.
    pub fn range_from(&self, from: ExtentKey) -> impl Iterator<Item = (ExtentKey, &Mapped)> + '_ {
        let first = self.bound_of(from).unwrap_or(from);
        self.pages
            .range(first..)
            .flat_map(|(_, page)| page.items.as_deref().unwrap_or_default())
            .filter(move |item| item.0 >= from)
            .map(|(key, mapped)| (*key, mapped))
    }

    /// Extents of one stob, in order. Its pages have to be in memory.
    pub fn of_stob(&self, stob: StobId) -> impl Iterator<Item = (u64, &Mapped)> + '_ {
        let whole = BlockExtent { start: 0, count: u64::MAX };
        self.pages_of(stob, whole)
            .flat_map(move |(_, page)| &page.items.as_deref().unwrap_or_default()[page.range(stob, whole)])
            .map(|(key, mapped)| (key.start, mapped))
    }

    /// The parts of extents of `stob` inside `extent`, in order. Their pages have to be in memory.
    pub fn lookup(&self, stob: StobId, extent: BlockExtent) -> impl Iterator<Item = Found<'_>> + '_ {
        self.pages_of(stob, extent)
            .flat_map(move |(_, page)| {
                debug_assert!(page.items.is_some(), "a page is looked at that is not in memory");
                &page.items.as_deref().unwrap_or_default()[page.range(stob, extent)]
            })
            .filter_map(move |(ExtentKey { start, .. }, mapped)| {
                let common = BlockExtent { start: *start, count: mapped.blocks() }.intersection(&extent)?;
                let skipped = common.start - start;
                let checksums = &mapped.checksums[narrow(skipped)..narrow(skipped + common.count)];
                Some(Found { start: common.start, device_start: mapped.device_start + skipped, checksums })
            })
    }

    /// Maps `checksums.len()` blocks from `start`, which nothing maps now (see [`Extents::punch`]).
    pub fn map(&mut self, stob: StobId, start: u64, device_start: u64, checksums: Checksums) {
        self.put((ExtentKey { stob, start }, Mapped { device_start, checksums }), true);
    }

    /// Puts an extent in its place, where nothing is.
    pub fn insert(&mut self, key: ExtentKey, mapped: Mapped) {
        self.put((key, mapped), false);
    }

    fn put(&mut self, item: Item, may_merge: bool) {
        let (key, end) = (item.0, end_of(&item));
        // Bounds in the middle of it: nothing is mapped there, so at most one such page has extents, and those after it.
        let inside = (Bound::Excluded(key), Bound::Excluded(end));
        let inside: Vec<ExtentKey> = self.pages.range(inside).map(|(bound, _)| *bound).collect();
        for bound in inside {
            let Some(page) = self.remove_page(bound) else { continue };
            if page.count > 0 {
                self.add_page(end, page);
            } else {
                self.left_slots.extend(page.place.map(|place| place.slot));
            }
        }
        let bound = self.bound_of(key).unwrap_or_else(|| {
            self.add_page(ExtentKey::default(), Page::of(Vec::new(), 0));
            ExtentKey::default()
        });
        let mut place = 0;
        self.change(bound, |page| {
            page.is_dirty = true;
            let Some(items) = &mut page.items else { return };
            place = items.partition_point(|item| item.0 < key);
            if may_merge
                && let Some(before) = place.checked_sub(1).map(|before| &mut items[before])
                && end_of(before) == key
                && before.1.device_extent().end() == item.1.device_start
                && before.1.checksums.len() + item.1.checksums.len() <= EXTENT_BLOCKS_MAX
            {
                page.bytes += item.1.blocks() * 4;
                page.memory_bytes -= before.1.memory_bytes();
                before.1.checksums.extend_from_slice(&item.1.checksums);
                page.memory_bytes += before.1.memory_bytes();
                place -= 1;
            } else {
                page.insert(place, item);
            }
        });
        self.split(bound, place);
    }

    /// Splits a page that has become too large, at its last extent if that is the one that was changed: so what is written in order fills
    /// pages.
    fn split(&mut self, mut bound: ExtentKey, changed: usize) {
        let mut changed = Some(changed);
        while let Some(page) = self.pages.get(&bound)
            && page.bytes > self.page_bytes
            && page.count > 1
        {
            let items = page.items.as_deref().unwrap_or_default();
            let at = if changed.take() == Some(items.len() - 1) { items.len() - 1 } else { half_of(items) };
            let mut rest = Vec::new();
            self.change(bound, |page| {
                if let Some(items) = &mut page.items {
                    rest = items.split_off(at);
                    items.shrink_to_fit(); // it seldom grows again
                }
                page.measure();
            });
            let Some(first) = rest.first().map(|item| item.0) else { return };
            self.add_page(first, Page::of(rest, self.time));
            // One of the halves may still be too large if its extents are.
            if self.pages.get(&bound).is_none_or(|page| page.bytes <= self.page_bytes || page.count < 2) {
                bound = first;
            }
        }
    }

    /// Makes holes of `extent`. Calls `dropped` with each run of device blocks that this extent does not own any more.
    pub fn punch(&mut self, stob: StobId, extent: BlockExtent, mut dropped: impl FnMut(BlockExtent)) {
        if extent.is_empty() {
            return;
        }
        let bounds: Vec<ExtentKey> = self.pages_of(stob, extent).map(|(bound, _)| bound).collect();
        for bound in bounds {
            self.change(bound, |page| page.punch(stob, extent, &mut dropped));
            self.split(bound, usize::MAX);
        }
    }

    /// Takes empty pages out, and joins small neighbours of which one has to be written anyway. Before a checkpoint.
    pub fn tidy(&mut self) {
        let empty: Vec<ExtentKey> =
            self.pages.iter().filter(|(_, page)| page.count == 0).map(|(bound, _)| *bound).collect();
        for bound in empty {
            let page = self.remove_page(bound);
            self.left_slots.extend(page.and_then(|page| page.place).map(|place| place.slot));
        }
        let mut last: Option<ExtentKey> = None;
        let bounds: Vec<ExtentKey> = match self.dirty {
            0 => Vec::new(),
            _ => self.pages.keys().copied().collect(),
        };
        for bound in bounds {
            if let Some(before) = last
                && let (Some(left), Some(right)) = (self.pages.get(&before), self.pages.get(&bound))
                && (left.is_dirty || right.is_dirty)
                && left.items.is_some()
                && right.items.is_some()
                && left.bytes + right.bytes <= self.page_bytes / 2
                && let Some(right) = self.remove_page(bound)
            {
                self.left_slots.extend(right.place.map(|place| place.slot));
                self.change(before, |page| {
                    page.is_dirty = true;
                    if let Some(items) = &mut page.items {
                        items.extend(right.items.into_iter().flatten());
                    }
                    page.measure();
                });
            } else {
                last = Some(bound);
            }
        }
        // The first bound is the least key.
        if let Some(bound) = self.pages.keys().next().copied()
            && bound != ExtentKey::default()
            && let Some(page) = self.pages.remove(&bound)
        {
            self.pages.insert(ExtentKey::default(), page);
        }
    }

    /// The first page from `from` on that has to be written, with its extents.
    pub fn next_dirty(&self, from: Bound<ExtentKey>) -> Option<(ExtentKey, &[Item])> {
        let mut pages = self.pages.range((from, Bound::Unbounded));
        let (bound, page) = pages.find(|(_, page)| page.needs_slot())?;
        Some((*bound, page.items.as_deref().unwrap_or_default()))
    }

    /// A page was written to `place`; gives the slot where it stood before.
    pub fn written(&mut self, bound: ExtentKey, place: Place) -> Option<u64> {
        let mut old = None;
        self.change(bound, |page| {
            page.is_dirty = false;
            old = page.place.replace(place);
        });
        old.map(|old| old.slot)
    }

    /// Where a page stands.
    #[cfg(test)]
    pub(crate) fn slot_of(&self, bound: ExtentKey) -> Option<u64> {
        Some(self.pages.get(&bound)?.place?.slot)
    }

    /// Slots of pages that are gone since the last call.
    pub fn take_left_slots(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.left_slots)
    }

    /// Pages on the device after `after`: bound, place, extents, bytes. All, right after a checkpoint's pages were written.
    pub fn places_after(
        &self,
        after: Bound<ExtentKey>,
    ) -> impl Iterator<Item = (ExtentKey, Place, u64, u64)> + '_ {
        let pages = self.pages.range((after, Bound::Unbounded));
        pages.filter_map(|(bound, page)| Some((*bound, page.place?, page.count, page.bytes)))
    }

    /// Adds a page of a checkpoint, after all that are there. False, and nothing changed, if it is not after them.
    #[must_use]
    pub fn push_place(&mut self, bound: ExtentKey, place: Place, count: u64, bytes: u64) -> bool {
        let is_first = self.pages.is_empty();
        if !is_first && self.pages.last_key_value().is_some_and(|(last, _)| *last >= bound) {
            return false;
        }
        let bound = if is_first { ExtentKey::default() } else { bound };
        self.add_page(bound, Page { place: Some(place), count, bytes, ..Page::default() });
        true
    }

    /// Adds an extent after all that are there: the way from a checkpoint of version 2. False if it is not after them.
    #[must_use]
    pub fn push(&mut self, key: ExtentKey, mapped: Mapped) -> bool {
        if let Some(last) = self.pages.last_key_value().and_then(|(_, page)| page.items.as_ref()?.last())
            && end_of(last) > key
        {
            return false;
        }
        self.put((key, mapped), false);
        true
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // the numbers of tests are small
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STOB: StobId = StobId { fid: base::Fid { container: 1, key: 2 }, generation: 3 };

    fn assert_consistent(map: &Extents) {
        let (mut count, mut memory_bytes, mut dirty, mut last) = (0, 0, 0, ExtentKey::default());
        for (index, (bound, page)) in map.pages.iter().enumerate() {
            assert!(index > 0 || *bound == ExtentKey::default());
            assert!(last <= *bound, "an extent crosses {bound:?}");
            let items = page.items.as_deref().unwrap();
            for item in items {
                assert!(last <= item.0 && *bound <= item.0);
                last = end_of(item);
            }
            assert_eq!((page.count, page.bytes), (items.len() as u64, sum_bytes(items)));
            assert!(page.bytes <= map.page_bytes || page.count <= 1);
            assert!(page.is_dirty || page.place.is_some());
            assert_eq!(page.memory_bytes, items.iter().map(|item| item.1.memory_bytes()).sum::<u64>());
            count += page.count;
            memory_bytes += page.memory_bytes;
            dirty += u64::from(page.needs_slot());
        }
        assert_eq!((map.count, map.memory_bytes, map.dirty), (count, memory_bytes, dirty));
    }

    /// Writes all pages, drops them from memory, and reads them back.
    fn checkpoint(map: &mut Extents, next_slot: &mut u64) {
        map.tidy();
        let mut written: BTreeMap<u64, Vec<Item>> = map
            .pages
            .values()
            .filter(|page| !page.is_dirty)
            .map(|page| (page.place.unwrap().slot, page.items.clone().unwrap()))
            .collect();
        let mut from = Bound::Unbounded;
        while let Some((bound, items)) = map.next_dirty(from) {
            let place = Place { slot: *next_slot, checksum: 0 };
            written.insert(*next_slot, items.to_vec());
            *next_slot += 1;
            map.written(bound, place);
            from = Bound::Excluded(bound);
        }
        assert_eq!(map.dirty, 0);
        let time = map.tick();
        map.evict(0, time);
        assert!(map.pages.len() > 1000 || map.memory_bytes == 0);
        let mut again = Extents::new(map.page_bytes);
        for (bound, place, count, bytes) in map.places_after(Bound::Unbounded) {
            assert!(again.push_place(bound, place, count, bytes));
        }
        for missing in again.all_missing() {
            let items = written[&missing.place.slot].clone();
            let mut fewer = items.clone();
            fewer.pop();
            assert!(!again.install(missing, fewer));
            assert!(again.install(missing, items));
        }
        assert!(again.is_all_in_memory());
        *map = again;
    }

    proptest! {
        /// Each block is looked at alone: the model is a map from stob block to (device block, checksum).
        #[test]
        fn the_map_agrees_with_a_map_of_single_blocks(
            steps in prop::collection::vec((any::<bool>(), 0u64..40, 1u64..12), 1..120),
            page_bytes in prop::sample::select(vec![1u64, 100, 300, 1000, u64::MAX]),
        ) {
            let mut next_slot = 0;
            let mut map = Extents::new(page_bytes);
            // Neighbours in the order of stobs must never be touched.
            let around = [StobId { generation: 2, ..STOB }, StobId { generation: 4, ..STOB }];
            for other in around {
                map.map(other, 0, 9000, (0..100).collect());
            }
            let mut model: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
            let mut next_device = 1000;
            for (is_map, start, count) in steps {
                let mut dropped = Vec::new();
                let mut model_dropped = Vec::new();
                for block in start..start + count {
                    model_dropped.extend(model.remove(&block).map(|(device, _)| device));
                }
                map.punch(STOB, BlockExtent { start, count }, |extent| dropped.extend(extent.start..extent.end()));
                if is_map {
                    let checksums: Checksums = (0..count as u32).map(|block| block ^ next_device as u32).collect();
                    for (block, checksum) in (start..).zip(&checksums) {
                        model.insert(block, (next_device + block - start, *checksum));
                    }
                    map.map(STOB, start, next_device, checksums);
                    // Sometimes adjacent on the device to the extent before, so that merging is met.
                    next_device += count + (start % 2) * 7;
                }
                dropped.sort_unstable();
                model_dropped.sort_unstable();
                prop_assert_eq!(dropped, model_dropped);
                let mut seen = BTreeMap::new();
                for found in map.lookup(STOB, BlockExtent { start: 0, count: 100 }) {
                    for (index, checksum) in (0u64..).zip(found.checksums) {
                        seen.insert(found.start + index, (found.device_start + index, *checksum));
                    }
                }
                prop_assert_eq!(&seen, &model);
                assert_consistent(&map);
                if start % 5 == 0 {
                    checkpoint(&mut map, &mut next_slot);
                }
                let inside = BlockExtent { start, count };
                let found: u64 = map.lookup(STOB, inside).map(|found| found.checksums.len() as u64).sum();
                prop_assert_eq!(found, model.range(inside.start..inside.end()).count() as u64);
                for other in around {
                    prop_assert_eq!(map.of_stob(other).map(|(_, mapped)| mapped.blocks()).sum::<u64>(), 100);
                }
            }
        }
    }

    /// Many small stobs, written in any order: pages are halved where half of their bytes are, and keep no room that nothing will fill.
    #[test]
    fn pages_of_many_stobs_are_half_full_at_least_in_every_order() {
        const PAGE_BYTES: u64 = 16 << 10;
        let numbers: Vec<u64> = (0..5000).collect();
        let mut shuffled = numbers.clone();
        fastrand::Rng::with_seed(1).shuffle(&mut shuffled);
        // The last one first: all the others go before it.
        let before_the_last = std::iter::once(5000).chain(numbers.iter().copied()).collect();
        let descending = numbers.iter().rev().copied().collect();
        for order in [numbers, shuffled, descending, before_the_last] {
            let mut map = Extents::new(PAGE_BYTES);
            for number in &order {
                let stob = StobId { generation: *number, ..STOB };
                map.map(stob, 0, *number, [1].as_slice().into());
            }
            assert_consistent(&map);
            let bytes: u64 = map.pages.values().map(|page| page.bytes).sum();
            let pages_max = 2 * bytes.div_ceil(PAGE_BYTES) + 1;
            assert!(map.page_count() <= pages_max, "{} pages for {bytes} bytes", map.page_count());
            let capacity: usize =
                map.pages.values().map(|page| page.items.as_ref().unwrap().capacity()).sum();
            let law = 2 * order.len() + 512; // one page may have been begun
            assert!(capacity <= law, "memory for {capacity} extents, and there are {}", order.len());
        }
    }

    #[test]
    fn neighbours_merge_up_to_the_limit() {
        let mut map = Extents::default();
        for block in 0..600 {
            map.map(STOB, block, 5000 + block, [0].into_iter().collect());
        }
        let lengths: Vec<usize> = map.of_stob(STOB).map(|(_, mapped)| mapped.checksums.len()).collect();
        assert_eq!(lengths, [256, 256, 88]);
        assert_eq!(map.lookup(STOB, BlockExtent { start: u64::MAX, count: 0 }).count(), 0);
    }
}
