//! An arena: one reserved mapping, carved into buffers of nine sizes, bounded, shared by all threads of a node.
//!
//! The mapping is cut into slabs of 1 MiB. A slab belongs to one size class (4 KiB, 8 KiB, .. 1 MiB) while any of its buffers is
//! out; a slab whose buffers are all back may go to another class. Of several slabs with room the lowest is used
//! first, so that use shrinks to few slabs and the others come free for large buffers. One slab of each class stays with it when its last
//! buffer is back, until another class needs it: one buffer that comes and goes costs no change of class each time. So do the last
//! 256 KiB of buffers of each class that came back: the last of them goes out first.
//!
//! Contents: memory is zero when first mapped; a buffer that was used before holds its old bytes. Never uninitialised; never cleared for
//! the taker. Who shows bytes to a peer fills them first.
//!
//! Beside the memory each smallest buffer has a place of 64 bytes, in which a frozen buffer counts its owners; it is taken as it is first touched.
//!
//! Bound: `capacity_bytes`, rounded up to whole slabs. Full is not an error: [`Arena::try_alloc`] answers `None`, [`Arena::alloc`] waits.
//! **Order**: within a size class buffers go out in the order asked. A slab that comes free goes to whoever waited longest, and
//! while anybody waits `try_alloc` takes no free slab; so a wait for a large buffer is not overtaken for ever by small ones.
//!
//! Threads: any. One short mutex; wakers are called outside it.
//! **Invariant**: a piece is in exactly one place: free in its slab, among the recent ones of its class, granted to a ticket, or inside one
//! [`Buffer`].
//! Start reading at [`Arena::try_alloc`].

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use base::limits::BUFFER_BYTES_MAX;
use base::units::{narrow, wide};
use smallvec::SmallVec;

use crate::buffer::{Buffer, Frozen};
use crate::mapping::{HUGE_PAGE_BYTES, Mapping};

/// Bytes of one slab: what a size class takes and gives back at a time.
pub const SLAB_BYTES: usize = 1 << 20;
/// Smallest buffer, and the alignment of every buffer.
pub const BUFFER_BYTES_MIN: usize = 4096;
/// 4 KiB to 1 MiB, by powers of two.
const CLASS_COUNT: usize = 9;
/// Buffers of the smallest class in one slab.
const SLOTS_MAX: usize = SLAB_BYTES / BUFFER_BYTES_MIN;

/// Bytes of each class that stay at hand, at least one buffer.
const RECENT_BYTES: usize = 256 << 10;

const _: () = assert!(BUFFER_BYTES_MIN << (CLASS_COUNT - 1) == SLAB_BYTES);
const _: () = assert!(SLAB_BYTES as u64 == BUFFER_BYTES_MAX);
const _: () = assert!(size_of::<Frozen>() <= 64);

/// How large an arena is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaConfig {
    /// Bytes that all buffers together may take. Rounded up to whole MiB, at least one.
    pub capacity_bytes: u64,
}

/// Where a buffer lies: slab, slot in the slab, size class of the slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    slab: usize,
    slot: usize,
    class: usize,
}

impl Piece {
    pub(crate) fn bytes(self) -> usize {
        class_bytes(self.class)
    }

    /// The slab it lies in: the unit of registration with a ring.
    pub(crate) fn slab(self) -> usize {
        self.slab
    }
}

const fn class_bytes(class: usize) -> usize {
    BUFFER_BYTES_MIN << class
}

/// Most buffers of a class that stay at hand.
const fn recent_max(class: usize) -> usize {
    let count = RECENT_BYTES / class_bytes(class);
    if count == 0 { 1 } else { count }
}

/// The smallest class that holds `len` bytes, or `None` if none does.
fn class_of(len: usize) -> Option<usize> {
    let pieces = len.max(1).div_ceil(BUFFER_BYTES_MIN).checked_next_power_of_two()?;
    let class = pieces.trailing_zeros() as usize;
    (class < CLASS_COUNT).then_some(class)
}

/// A set of slab numbers that answers its lowest member.
struct SlabSet {
    words: Vec<u64>,
    /// No word below this one has a member.
    lowest_word: usize,
}

impl SlabSet {
    fn new(slabs: usize) -> SlabSet {
        SlabSet { words: vec![0; slabs.div_ceil(64)], lowest_word: 0 }
    }

    fn insert(&mut self, slab: usize) {
        self.words[slab / 64] |= 1 << (slab % 64);
        self.lowest_word = self.lowest_word.min(slab / 64);
    }

    fn remove(&mut self, slab: usize) {
        self.words[slab / 64] &= !(1 << (slab % 64));
    }

    fn contains(&self, slab: usize) -> bool {
        self.words.get(slab / 64).is_some_and(|word| word & (1 << (slab % 64)) != 0)
    }

    /// The lowest `count` members in a row, below `end`.
    fn first_run(&self, count: usize, end: usize) -> Option<usize> {
        let mut length = 0;
        for slab in self.lowest_word * 64..end {
            length = if self.contains(slab) { length + 1 } else { 0 };
            if length == count {
                return Some(slab + 1 - count);
            }
        }
        None
    }

    fn first(&mut self) -> Option<usize> {
        while let Some(word) = self.words.get(self.lowest_word) {
            if *word != 0 {
                return Some(self.lowest_word * 64 + word.trailing_zeros() as usize);
            }
            self.lowest_word += 1;
        }
        None
    }
}

/// One slab: its class and which of its slots are free.
#[derive(Clone, Copy)]
struct Slab {
    class: usize,
    free: [u64; SLOTS_MAX / 64],
    used: usize,
}

impl Slab {
    const fn slots(class: usize) -> usize {
        SLAB_BYTES / class_bytes(class)
    }

    fn assign(&mut self, class: usize) {
        self.class = class;
        self.used = 0;
        self.free = [0; SLOTS_MAX / 64];
        let slots = Slab::slots(class);
        for (index, word) in self.free.iter_mut().enumerate() {
            let bits = slots.saturating_sub(index * 64).min(64);
            *word = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
        }
    }

    fn take(&mut self) -> Option<usize> {
        let (index, word) = self.free.iter_mut().enumerate().find(|(_, word)| **word != 0)?;
        let bit = word.trailing_zeros() as usize;
        *word &= *word - 1;
        self.used += 1;
        Some(index * 64 + bit)
    }

    fn give_back(&mut self, slot: usize) {
        let bit = 1 << (slot % 64);
        assert!(self.free[slot / 64] & bit == 0, "a buffer of an arena came back twice");
        self.free[slot / 64] |= bit;
        self.used -= 1;
    }
}

struct State {
    slabs: Vec<Slab>,
    /// By class: its slabs with a free slot.
    open: [SlabSet; CLASS_COUNT],
    /// Slabs of no class.
    empty: SlabSet,
    /// By class: a slab of it, among its open ones, of which no buffer is out.
    spare: [Option<usize>; CLASS_COUNT],
    /// By class: the pieces that came back last, to go out first, as their bytes are in the cache. Their slabs count them as out.
    /// **Invariant**: none while anybody waits.
    recent: [Vec<Piece>; CLASS_COUNT],
    /// By class: who waits, by ticket. Tickets only grow, so the first is the oldest.
    waiting: [BTreeMap<u64, Waker>; CLASS_COUNT],
    waiting_count: usize,
    /// Set aside for a ticket, not yet fetched by its future.
    granted: BTreeMap<u64, Piece>,
    next_ticket: u64,
    /// Of buffers and runs that are out. Here, as whoever changes it has the lock anyway.
    in_use_bytes: u64,
}

impl State {
    fn take_open(&mut self, class: usize) -> Option<Piece> {
        let slab = self.open[class].first()?;
        let slot = self.slabs[slab].take()?;
        if self.spare[class] == Some(slab) {
            self.spare[class] = None;
        }
        if self.slabs[slab].used == Slab::slots(class) {
            self.open[class].remove(slab);
        }
        Some(Piece { slab, slot, class })
    }

    fn open_empty(&mut self, class: usize) -> bool {
        if self.empty.first().is_none() {
            self.release_spares();
        }
        let Some(slab) = self.empty.first() else { return false };
        self.empty.remove(slab);
        self.slabs[slab].assign(class);
        self.open[class].insert(slab);
        true
    }

    /// The pieces and slabs that their classes keep without need.
    fn release_spares(&mut self) {
        for class in 0..CLASS_COUNT {
            while let Some(piece) = self.recent[class].pop() {
                self.restore(piece);
            }
            if let Some(slab) = self.spare[class].take() {
                self.open[class].remove(slab);
                self.empty.insert(slab);
            }
        }
    }

    fn take(&mut self, class: usize) -> Option<Piece> {
        if let Some(piece) = self.recent[class].pop() {
            return Some(piece);
        }
        if let Some(piece) = self.take_open(class) {
            return Some(piece);
        }
        // A free slab belongs to whoever waits: see the module head.
        if self.waiting_count == 0 && self.open_empty(class) { self.take_open(class) } else { None }
    }

    fn give_back(&mut self, piece: Piece) {
        let recent = &mut self.recent[piece.class];
        if self.waiting_count == 0 && recent.len() < recent_max(piece.class) {
            debug_assert!(!recent.contains(&piece), "a buffer of an arena came back twice");
            recent.push(piece);
        } else {
            self.restore(piece);
        }
    }

    /// Puts a piece back into its slab.
    fn restore(&mut self, piece: Piece) {
        debug_assert!(!self.recent[piece.class].contains(&piece), "a buffer of an arena came back twice");
        self.slabs[piece.slab].give_back(piece.slot);
        if self.slabs[piece.slab].used > 0 {
            self.open[piece.class].insert(piece.slab);
        } else if self.spare[piece.class].is_none() {
            self.spare[piece.class] = Some(piece.slab);
            self.open[piece.class].insert(piece.slab);
        } else {
            self.open[piece.class].remove(piece.slab);
            self.empty.insert(piece.slab);
        }
    }

    fn wait(&mut self, ticket: u64, class: usize, waker: Waker) {
        if self.waiting[class].insert(ticket, waker).is_none() {
            self.waiting_count += 1;
        }
    }

    fn stop_waiting(&mut self, ticket: u64, class: usize) -> Option<Waker> {
        let waker = self.waiting[class].remove(&ticket);
        if waker.is_some() {
            self.waiting_count -= 1;
        }
        waker
    }

    /// Sets aside what is free for those who wait, oldest first; the wakers are for the caller to wake, outside the lock.
    fn grant(&mut self) -> SmallVec<[Waker; 4]> {
        let mut woken = SmallVec::new();
        while self.waiting_count > 0 {
            let with_room = (0..CLASS_COUNT)
                .find(|class| !self.waiting[*class].is_empty() && self.open[*class].first().is_some());
            let class = match with_room {
                Some(class) => class,
                None => {
                    let oldest = (0..CLASS_COUNT)
                        .filter_map(|class| self.waiting[class].keys().next().map(|ticket| (*ticket, class)))
                        .min();
                    match oldest {
                        Some((_, class)) if self.open_empty(class) => class,
                        _ => break,
                    }
                }
            };
            let Some(piece) = self.take_open(class) else { break };
            let Some((ticket, waker)) = self.waiting[class].pop_first() else {
                self.restore(piece);
                break;
            };
            self.waiting_count -= 1;
            self.granted.insert(ticket, piece);
            woken.push(waker);
        }
        woken
    }
}

pub(crate) struct ArenaShared {
    mapping: Mapping,
    /// A [`Frozen`] for each smallest buffer that fits the mapping.
    frozen: Mapping,
    has_huge_pages: bool,
    state: Mutex<State>,
}

impl ArenaShared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is an assert of ours that found a broken arena; it has been reported already.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn give_back(&self, piece: Piece) {
        let woken = {
            let mut state = self.state();
            state.in_use_bytes -= wide(piece.bytes());
            state.give_back(piece);
            if state.waiting_count == 0 {
                return;
            }
            state.grant()
        };
        woken.into_iter().for_each(Waker::wake);
    }

    /// Where a buffer on `piece` lies while it has many owners: no other piece that is out has the same.
    pub(crate) fn frozen_place(&self, piece: Piece) -> NonNull<Frozen> {
        let index = piece.slab * SLOTS_MAX + piece.slot * (piece.bytes() / BUFFER_BYTES_MIN);
        debug_assert!((index + 1) * size_of::<Frozen>() <= self.frozen.bytes());
        // SAFETY: the mapping has one for each smallest buffer, and the piece begins with one. It is aligned: mappings are, to pages.
        unsafe { self.frozen.base().cast::<Frozen>().add(index) }
    }

    fn address(&self, piece: Piece) -> NonNull<u8> {
        let offset = piece.slab * SLAB_BYTES + piece.slot * piece.bytes();
        debug_assert!(offset + piece.bytes() <= self.mapping.bytes());
        // SAFETY: slab < number of slabs and slot < slots of its class, so the piece lies inside the mapping.
        unsafe { self.mapping.base().add(offset) }
    }
}

/// A handle of an arena: cheap to clone, usable from any thread. The memory lives as long as a handle or a buffer does.
#[derive(Clone)]
pub struct Arena {
    shared: Arc<ArenaShared>,
}

impl Arena {
    /// Reserves address space for the whole capacity; memory is taken as buffers are first touched.
    ///
    /// # Errors
    /// What the kernel answers to the reservation, `EINVAL` for a capacity beyond the address space.
    pub fn new(config: ArenaConfig) -> io::Result<Arena> {
        let slabs = narrow(config.capacity_bytes.div_ceil(wide(SLAB_BYTES)).max(1));
        let bytes =
            slabs.checked_mul(SLAB_BYTES).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        Arena::on(Mapping::reserve(bytes)?, false)
    }

    /// As [`Arena::new`], in huge pages taken from the kernel's pool at once: for devices without an IOMMU, which need memory that
    /// never moves. The capacity is rounded up to whole huge pages of 2 MiB.
    ///
    /// # Errors
    /// `ENOMEM` if the pool (vm.nr_hugepages) has not as many free, `EINVAL` for a capacity beyond the address space.
    pub fn in_huge_pages(config: ArenaConfig) -> io::Result<Arena> {
        let bytes = narrow(config.capacity_bytes.div_ceil(wide(HUGE_PAGE_BYTES)).max(1))
            .checked_mul(HUGE_PAGE_BYTES)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        Arena::on(Mapping::reserve_huge(bytes)?, true)
    }

    fn on(mapping: Mapping, has_huge_pages: bool) -> io::Result<Arena> {
        let slabs = mapping.bytes() / SLAB_BYTES;
        let frozen = Mapping::reserve(slabs * SLOTS_MAX * size_of::<Frozen>())?;
        let mut empty = SlabSet::new(slabs);
        (0..slabs).for_each(|slab| empty.insert(slab));
        let state = State {
            slabs: vec![Slab { class: 0, free: [0; SLOTS_MAX / 64], used: 0 }; slabs],
            open: std::array::from_fn(|_| SlabSet::new(slabs)),
            empty,
            spare: [None; CLASS_COUNT],
            recent: std::array::from_fn(|class| Vec::with_capacity(recent_max(class))),
            waiting: std::array::from_fn(|_| BTreeMap::new()),
            waiting_count: 0,
            granted: BTreeMap::new(),
            next_ticket: 0,
            in_use_bytes: 0,
        };
        let shared = ArenaShared { mapping, frozen, has_huge_pages, state: Mutex::new(state) };
        Ok(Arena { shared: Arc::new(shared) })
    }

    /// A buffer of `len` bytes, or `None` if the arena is full now or `len` is above [`BUFFER_BYTES_MAX`].
    ///
    /// Its bytes are zero or old, see the module head. Takes the smallest size class that fits.
    #[must_use]
    pub fn try_alloc(&self, len: usize) -> Option<Buffer> {
        let class = class_of(len)?;
        let piece = {
            let mut state = self.shared.state();
            let piece = state.take(class)?;
            state.in_use_bytes += wide(piece.bytes());
            piece
        };
        Some(self.buffer(piece, len))
    }

    /// `bytes` in a row, in whole slabs: for memory that a user of the library keeps and lends ([`Buffer::lend`]). `None`: no such
    /// run is free, or somebody waits for a slab. Zero or old bytes.
    #[must_use]
    pub fn try_alloc_run(&self, bytes: usize) -> Option<Run> {
        let count = bytes.div_ceil(SLAB_BYTES).max(1);
        let mut state = self.shared.state();
        if state.waiting_count > 0 {
            return None;
        }
        state.release_spares();
        let end = state.slabs.len();
        let first_slab = state.empty.first_run(count, end)?;
        (first_slab..first_slab + count).for_each(|slab| state.empty.remove(slab));
        state.in_use_bytes += wide(count * SLAB_BYTES);
        drop(state);
        Some(Run { shared: Arc::clone(&self.shared), first_slab, count })
    }

    /// A buffer of `len` bytes, as soon as there is one. Dropping the future gives up the place in the queue.
    ///
    /// # Panics
    /// If `len` is above [`BUFFER_BYTES_MAX`]: such a buffer never comes, so the caller has to check what it did not choose itself.
    pub fn alloc(&self, len: usize) -> Alloc {
        let class = class_of(len);
        assert!(class.is_some(), "a buffer of {len} bytes is above the largest, {SLAB_BYTES}");
        Alloc { arena: self.clone(), len, class: class.unwrap_or(CLASS_COUNT - 1), ticket: None }
    }

    /// Bytes of the buffers that are out, each counted at its full capacity.
    #[must_use]
    pub fn in_use_bytes(&self) -> u64 {
        self.shared.state().in_use_bytes
    }

    /// Bytes that all buffers together may take.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        wide(self.shared.mapping.bytes())
    }

    /// First byte of the arena's memory, for a device that registers all of it ([`Arena::capacity_bytes`] from here).
    #[must_use]
    pub fn base_ptr(&self) -> *mut u8 {
        self.shared.mapping.base().as_ptr()
    }

    /// True if the memory is of huge pages of the kernel's pool, which never move.
    #[must_use]
    pub fn has_huge_pages(&self) -> bool {
        self.shared.has_huge_pages
    }

    /// First byte of slab `slab`.
    pub(crate) fn slab_ptr(&self, slab: usize) -> *mut u8 {
        self.base_ptr().wrapping_add(slab * SLAB_BYTES)
    }

    pub(crate) fn slab_count(&self) -> usize {
        self.shared.mapping.bytes() / SLAB_BYTES
    }

    /// True if both are handles of one arena.
    #[must_use]
    pub fn is_same(&self, other: &Arena) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    pub(crate) fn is_of(&self, shared: &Arc<ArenaShared>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }

    /// A buffer on a piece that was just taken and counted.
    fn buffer(&self, piece: Piece, len: usize) -> Buffer {
        // SAFETY: `piece` was just taken from its slab, so no other buffer has it; its bytes were zeroed by the mapping and
        // are inside it; len <= piece.bytes() by `class_of`.
        unsafe { Buffer::from_piece(self.shared.address(piece), len, piece, Arc::clone(&self.shared)) }
    }
}

/// Slabs in a row, given back on drop. See [`Arena::try_alloc_run`].
pub struct Run {
    shared: Arc<ArenaShared>,
    first_slab: usize,
    count: usize,
}

impl Run {
    /// First byte; whole slabs follow it. The memory is this run's alone.
    #[must_use]
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.shared.address(Piece { slab: self.first_slab, slot: 0, class: CLASS_COUNT - 1 })
    }

    /// Bytes of the run.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.count * SLAB_BYTES
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let woken = {
            let mut state = self.shared.state();
            state.in_use_bytes -= wide(self.bytes());
            (self.first_slab..self.first_slab + self.count).for_each(|slab| state.empty.insert(slab));
            state.grant()
        };
        woken.into_iter().for_each(Waker::wake);
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Run({} bytes from slab {})", self.bytes(), self.first_slab)
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arena({} of {} bytes out)", self.in_use_bytes(), self.capacity_bytes())
    }
}

/// Waits for a buffer: see [`Arena::alloc`]. Any executor, any thread.
#[must_use = "a future does nothing until awaited"]
pub struct Alloc {
    arena: Arena,
    len: usize,
    class: usize,
    /// Set while this future is in the queue or has something granted.
    ticket: Option<u64>,
}

impl Future for Alloc {
    type Output = Buffer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Buffer> {
        let shared = Arc::clone(&self.arena.shared);
        let mut state = shared.state();
        let piece = match self.ticket {
            None => {
                // Behind those of the same class who came before: they wait only while `take` finds nothing for the class.
                match state.take(self.class) {
                    Some(piece) => piece,
                    None => {
                        let ticket = state.next_ticket;
                        state.next_ticket += 1;
                        state.wait(ticket, self.class, context.waker().clone());
                        self.ticket = Some(ticket);
                        return Poll::Pending;
                    }
                }
            }
            Some(ticket) => match state.granted.remove(&ticket) {
                Some(piece) => piece,
                None => {
                    state.wait(ticket, self.class, context.waker().clone());
                    return Poll::Pending;
                }
            },
        };
        state.in_use_bytes += wide(piece.bytes());
        drop(state);
        self.ticket = None;
        Poll::Ready(self.arena.buffer(piece, self.len))
    }
}

impl Drop for Alloc {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let shared = &self.arena.shared;
        let woken = {
            let mut state = shared.state();
            let mut dropped = None;
            match state.granted.remove(&ticket) {
                Some(piece) => state.give_back(piece),
                None => dropped = state.stop_waiting(ticket, self.class),
            }
            // Even where nothing came back: with this one gone, a free slab may belong to the next.
            (state.grant(), dropped)
        };
        woken.0.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn arena(mib: u64) -> Arena {
        Arena::new(ArenaConfig { capacity_bytes: mib << 20 }).unwrap()
    }

    fn poll(future: &mut Alloc) -> (Poll<Buffer>, Arc<Woken>) {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        (Pin::new(future).poll(&mut Context::from_waker(&waker)), woken)
    }

    #[test]
    fn runs_are_slabs_in_a_row_and_come_back() {
        let arena = Arena::new(ArenaConfig { capacity_bytes: 4 << 20 }).unwrap();
        let small = arena.try_alloc(1).unwrap();
        let run = arena.try_alloc_run(2 * SLAB_BYTES + 1).unwrap();
        assert_eq!((run.bytes(), arena.in_use_bytes()), (3 * SLAB_BYTES, wide(3 * SLAB_BYTES + 4096)));
        assert_eq!(run.as_ptr().as_ptr(), arena.slab_ptr(1));
        assert!(arena.try_alloc_run(1).is_none() && arena.try_alloc(SLAB_BYTES).is_none());
        drop(run);
        assert!(arena.try_alloc_run(4 * SLAB_BYTES).is_none(), "one slab has a small buffer");
        drop(small);
        assert_eq!(arena.try_alloc_run(4 * SLAB_BYTES).unwrap().as_ptr().as_ptr(), arena.slab_ptr(0));
        assert!(arena.try_alloc(SLAB_BYTES).is_some());
    }

    #[test]
    fn sizes_are_rounded_to_classes_and_every_buffer_is_aligned() {
        let arena = arena(16);
        for (len, capacity) in
            [(1, 4096), (4096, 4096), (4097, 8192), (65_537, 131_072), (1 << 20, 1 << 20), (0, 4096)]
        {
            let buffer = arena.try_alloc(len).unwrap();
            assert_eq!((buffer.len(), buffer.capacity()), (len, capacity));
            assert_eq!(buffer.as_ptr().align_offset(4096), 0);
            assert_eq!(arena.in_use_bytes(), wide(capacity));
        }
        assert!(arena.try_alloc((1 << 20) + 1).is_none());
        assert_eq!(arena.in_use_bytes(), 0);
    }

    #[test]
    fn the_capacity_bounds_and_an_empty_slab_changes_its_class() {
        let arena = arena(1);
        let small: Vec<Buffer> = std::iter::from_fn(|| arena.try_alloc(4096)).collect();
        assert_eq!(small.len(), 256);
        let mut addresses: Vec<*const u8> = small.iter().map(|buffer| buffer.as_ptr()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), 256, "each buffer has memory of its own");
        assert!(arena.try_alloc(1).is_none());
        drop(small);
        assert_eq!(arena.try_alloc(1 << 20).unwrap().capacity(), 1 << 20);
        assert_eq!(std::iter::from_fn(|| arena.try_alloc(8192)).collect::<Vec<_>>().len(), 128);
    }

    #[test]
    fn memory_is_zero_at_first_and_old_bytes_later() {
        let arena = arena(1);
        let mut buffer = arena.try_alloc(4096).unwrap();
        assert!(buffer.iter().all(|byte| *byte == 0));
        buffer.fill(0xa5);
        drop(buffer);
        assert!(arena.try_alloc(4096).unwrap().iter().all(|byte| *byte == 0xa5));
    }

    #[test]
    fn waiters_of_a_class_are_served_in_order() {
        let arena = arena(1);
        let held = arena.try_alloc(1 << 20).unwrap();
        let mut first = arena.alloc(1 << 20);
        let mut second = arena.alloc(1 << 20);
        let (pending, first_woken) = poll(&mut first);
        assert!(pending.is_pending());
        let (pending, second_woken) = poll(&mut second);
        assert!(pending.is_pending());
        drop(held);
        assert_eq!((first_woken.0.load(Ordering::SeqCst), second_woken.0.load(Ordering::SeqCst)), (1, 0));
        assert!(poll(&mut second).0.is_pending(), "what was set aside for the first is not for the second");
        assert!(arena.try_alloc(1).is_none(), "nor for whoever only tries");
        let Poll::Ready(buffer) = poll(&mut first).0 else { panic!("granted") };
        drop(buffer);
        assert!(poll(&mut second).0.is_ready());
    }

    #[test]
    fn a_cancelled_wait_passes_its_grant_on_and_leaves_nothing() {
        let arena = arena(1);
        let held = arena.try_alloc(1 << 20).unwrap();
        let mut waits: Vec<Alloc> = (0..3).map(|_| arena.alloc(1 << 20)).collect();
        let woken: Vec<_> = waits.iter_mut().map(|wait| poll(wait).1).collect();
        let third = waits.pop().unwrap();
        let second = waits.pop().unwrap();
        drop(held); // granted to the first
        drop(second); // gives up its place
        drop(waits); // the first goes with its grant unfetched
        assert_eq!(woken[2].0.load(Ordering::SeqCst), 1);
        drop(third);
        assert_eq!(arena.in_use_bytes(), 0);
        let state = arena.shared.state();
        assert_eq!((state.waiting_count, state.granted.len()), (0, 0));
        drop(state);
        assert!(arena.try_alloc(1 << 20).is_some());
    }

    #[test]
    fn small_buffers_do_not_overtake_a_large_wait_by_new_slabs() {
        let arena = arena(2);
        let first = arena.try_alloc(1 << 20).unwrap();
        let second = arena.try_alloc(4096).unwrap();
        let mut large = arena.alloc(1 << 20);
        let (_, woken) = poll(&mut large);
        let other = arena.try_alloc(4096).unwrap(); // has room in its own slab: allowed
        assert!(arena.try_alloc(8192).is_none(), "needs a slab, and somebody waits for one");
        drop(first);
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert!(poll(&mut large).0.is_ready());
        drop((second, other));
        assert_eq!(arena.in_use_bytes(), 0);
    }

    /// Numbers for a test, the same in each run.
    struct Dice(u64);
    impl Dice {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(self.0 >> 33).unwrap() % bound
        }
    }

    /// Thousands of allocations, waits, cancellations and returns in random order. After each: no two buffers overlap, the
    /// figure of bytes out is right, and nobody waits for what is free.
    #[test]
    fn any_order_of_use_keeps_the_invariants() {
        for seed in 0..if cfg!(miri) { 1 } else { 20 } {
            let (arena, mut dice) = (arena(4), Dice(seed));
            let (mut held, mut waits): (Vec<Buffer>, Vec<Alloc>) = (Vec::new(), Vec::new());
            for _ in 0..if cfg!(miri) { 100 } else { 1000 } {
                let class = dice.below(CLASS_COUNT);
                let len = 1 + dice.below(class_bytes(class));
                match dice.below(8) {
                    0..3 => held.extend(arena.try_alloc(len)),
                    3 => {
                        let mut wait = arena.alloc(len);
                        match poll(&mut wait).0 {
                            Poll::Ready(buffer) => held.push(buffer),
                            Poll::Pending => waits.push(wait),
                        }
                    }
                    4 if !waits.is_empty() => drop(waits.swap_remove(dice.below(waits.len()))),
                    _ if !held.is_empty() => drop(held.swap_remove(dice.below(held.len()))),
                    _ => {}
                }
                let mut index = 0;
                while index < waits.len() {
                    match poll(&mut waits[index]).0 {
                        Poll::Ready(buffer) => {
                            held.push(buffer);
                            drop(waits.swap_remove(index));
                        }
                        Poll::Pending => index += 1,
                    }
                }
                let mut ranges: Vec<(usize, usize)> =
                    held.iter().map(|buffer| (buffer.as_ptr().addr(), buffer.capacity())).collect();
                ranges.sort_unstable();
                assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "seed {seed}");
                let out: usize = held.iter().map(Buffer::capacity).sum();
                assert_eq!(arena.in_use_bytes(), wide(out), "seed {seed}");
                let mut state = arena.shared.state();
                assert_eq!(state.waiting_count, waits.len(), "seed {seed}");
                if state.waiting_count > 0 {
                    assert_eq!(state.empty.first(), None, "a slab is free and somebody waits, seed {seed}");
                }
                for class in 0..CLASS_COUNT {
                    assert!(
                        state.waiting[class].is_empty() || state.open[class].first().is_none(),
                        "a buffer of class {class} is free and somebody waits, seed {seed}"
                    );
                }
            }
            drop((held, waits));
            let all: Vec<Buffer> = std::iter::from_fn(|| arena.try_alloc(1 << 20)).collect();
            assert_eq!(all.len(), 4, "seed {seed}");
        }
    }

    #[test]
    fn a_slab_set_answers_its_lowest_member() {
        let mut set = SlabSet::new(200);
        assert_eq!(set.first(), None);
        set.insert(150);
        assert_eq!(set.first(), Some(150));
        set.insert(3);
        assert_eq!(set.first(), Some(3));
        set.remove(3);
        assert_eq!(set.first(), Some(150));
        set.remove(150);
        assert_eq!(set.first(), None);
    }

    #[test]
    fn threads_share_an_arena_and_everything_comes_back() {
        let arena = arena(2);
        let rounds = if cfg!(miri) { 20 } else { 2000 };
        std::thread::scope(|scope| {
            for thread in 0..4_u8 {
                let arena = &arena;
                scope.spawn(move || {
                    for round in 0..rounds {
                        let len = 4096 << (round % 9);
                        let Some(mut buffer) = arena.try_alloc(len) else { continue };
                        buffer[0] = thread;
                        buffer[len - 1] = thread;
                        std::hint::spin_loop();
                        assert_eq!((buffer[0], buffer[len - 1]), (thread, thread));
                    }
                });
            }
        });
        assert_eq!(arena.in_use_bytes(), 0);
        assert!(arena.try_alloc(1 << 20).is_some());
    }
}
