//! Buffers of an arena: [`Buffer`] has one owner and may be written, [`SharedBuffer`] is immutable and may be cut and cloned.
//!
//! Both give the memory back to the arena on drop, from any thread. The bytes never move, so a device may be
//! given their address while the buffer is moved into whoever drives the device.
//!
//! A buffer may also stand on memory that somebody else lends ([`Buffer::lend`]): the C interface's callers own theirs. Such a buffer tells
//! its [`Lender`] when it goes, and [`Buffer::is_lent`] tells drivers that know memory by its arena.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use crate::arena::{Arena, ArenaShared, Piece};
use crate::counters::{Counters, copy_counted};

/// Memory of an arena with one owner. Its bytes are initialised: zero, or what an earlier owner left.
pub struct Buffer {
    data: NonNull<u8>,
    len: usize,
    home: Home,
}

/// Whom the memory goes back to.
enum Home {
    Arena { piece: Piece, arena: Arc<ArenaShared> },
    Lender { capacity: usize, lender: Lender },
}

/// Who lends memory to a [`Buffer`], as a pair like a `RawWaker`: no allocation for a loan.
#[derive(Clone, Copy, Debug)]
pub struct Lender {
    data: *const (),
    give_back: unsafe fn(*const ()),
}

impl Lender {
    /// `give_back(data)` is called once for each loan, from any thread, when the last buffer or slice of it is gone.
    ///
    /// # Safety
    /// `give_back` may be called with `data` on any thread, once for each [`Buffer::lend`] with this lender.
    #[must_use]
    pub const unsafe fn new(data: *const (), give_back: unsafe fn(*const ())) -> Lender {
        Lender { data, give_back }
    }
}

// SAFETY: a buffer is the only way to its bytes (arena.rs, invariant of pieces; the contract of `lend`), like a Box<[u8]>; the arena is Sync,
// and a lender may be told on any thread (the contract of `Lender::new`).
unsafe impl Send for Buffer {}
// SAFETY: `&Buffer` gives `&[u8]` only, and writing needs `&mut Buffer`.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// # Safety
    /// `data` is the address of `piece` in the mapping of `arena`; nobody else has `piece`; `len <= piece.bytes()`; the bytes are
    /// initialised.
    pub(crate) unsafe fn from_piece(
        data: NonNull<u8>,
        len: usize,
        piece: Piece,
        arena: Arc<ArenaShared>,
    ) -> Buffer {
        Buffer { data, len, home: Home::Arena { piece, arena } }
    }

    /// A buffer on memory of the lender's, which is told when the buffer (or the last slice of it) is gone.
    ///
    /// # Safety
    /// `data` to `data + len` is initialised memory that nobody else writes, and for a buffer that will be written nobody else reads,
    /// from now until the lender is told.
    #[must_use]
    pub unsafe fn lend(data: NonNull<u8>, len: usize, lender: Lender) -> Buffer {
        Buffer { data, len, home: Home::Lender { capacity: len, lender } }
    }

    /// True if the memory is no arena's: a device that knows arenas has to be told of it, or given a copy.
    #[must_use]
    pub const fn is_lent(&self) -> bool {
        matches!(self.home, Home::Lender { .. })
    }

    /// Bytes that the buffer can hold: its size class, or all that was lent.
    #[must_use]
    pub fn capacity(&self) -> usize {
        match &self.home {
            Home::Arena { piece, .. } => piece.bytes(),
            Home::Lender { capacity, .. } => *capacity,
        }
    }

    /// Sets the length. Bytes gained are old bytes or zeros, not cleared.
    ///
    /// # Panics
    /// If `len` is above [`Buffer::capacity`].
    pub fn resize(&mut self, len: usize) {
        assert!(len <= self.capacity(), "length {len} is above the buffer's capacity {}", self.capacity());
        self.len = len;
    }

    /// Ends writing: the bytes can be shared from now on. Copies nothing.
    #[must_use]
    pub fn freeze(self) -> SharedBuffer {
        let len = self.len;
        let place = match &self.home {
            Home::Arena { piece, arena } => Some(arena.frozen_place(*piece)),
            Home::Lender { .. } => None,
        };
        let frozen = Frozen { owners: AtomicUsize::new(1), buffer: ManuallyDrop::new(self) };
        let whole = match place {
            Some(place) => {
                // SAFETY: the place of a piece belongs to who has the piece, which is the buffer that goes into it; it is mapped while the
                // buffer, which holds the arena, lives.
                unsafe { place.write(frozen) };
                place
            }
            None => NonNull::from(Box::leak(Box::new(frozen))),
        };
        SharedBuffer { whole, start: 0, len }
    }

    /// The arena and the slab in it, for a ring that has registered them; `None` for lent memory.
    pub(crate) fn slab(&self) -> Option<(&Arc<ArenaShared>, usize)> {
        match &self.home {
            Home::Arena { piece, arena } => Some((arena, piece.slab())),
            Home::Lender { .. } => None,
        }
    }

    /// The address for a device. Unlike `as_mut_ptr` of the slice it stays good when the buffer is moved.
    pub(crate) fn device_ptr(&self) -> *mut u8 {
        self.data.as_ptr()
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: data..data+len is this buffer's own, initialised memory, mapped while `home` lives.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes this the only access.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match &self.home {
            Home::Arena { piece, arena } => arena.give_back(*piece),
            // SAFETY: once for this loan, as `Lender::new` demands: a buffer is dropped once.
            Home::Lender { lender, .. } => unsafe { (lender.give_back)(lender.data) },
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} of {} bytes)", self.len, self.capacity())
    }
}

/// A buffer with many owners. Each piece of an arena has a place for one beside the memory (`ArenaShared::frozen_place`), so that freezing allocates nothing;
/// that of lent memory is in a box.
pub(crate) struct Frozen {
    owners: AtomicUsize,
    /// Taken out by the last owner, and by nobody else.
    buffer: ManuallyDrop<Buffer>,
}

/// Immutable bytes of an arena's buffer, or a part of them. Clones and slices share the memory; the last one gives it back.
pub struct SharedBuffer {
    /// **Invariant**: initialised while there are owners, of which this is one.
    whole: NonNull<Frozen>,
    /// **Invariant**: `start + len` is at most the buffer's length, which nobody changes while it is frozen.
    start: usize,
    len: usize,
}

// SAFETY: as an Arc<Buffer>, which it stands for: a buffer is Send and Sync, and the count of its owners is atomic.
unsafe impl Send for SharedBuffer {}
// SAFETY: as for Send: `&SharedBuffer` gives `&[u8]`, and clones.
unsafe impl Sync for SharedBuffer {}

impl SharedBuffer {
    /// A buffer with a counted copy of `bytes`, or `None` if the arena is full or `bytes` is longer than its largest buffer.
    #[must_use]
    pub fn copy_from_slice(arena: &Arena, bytes: &[u8], counters: &Counters) -> Option<SharedBuffer> {
        let mut buffer = arena.try_alloc(bytes.len())?;
        copy_counted(counters, &mut buffer, bytes);
        Some(buffer.freeze())
    }

    fn frozen(&self) -> &Frozen {
        // SAFETY: the invariant of `whole`.
        unsafe { self.whole.as_ref() }
    }

    /// One owner more.
    fn share(&self) -> NonNull<Frozen> {
        // Relaxed, as for an Arc: who makes an owner is one, so the buffer stays.
        let before = self.frozen().owners.fetch_add(1, Ordering::Relaxed);
        assert!(before < usize::MAX / 2, "owners of a buffer were forgotten until their count was full");
        self.whole
    }

    /// The buffer, out of its place.
    ///
    /// # Safety
    /// The caller was the last owner, and found that with `Acquire`; nobody uses `whole` after this.
    unsafe fn take(whole: NonNull<Frozen>) -> Buffer {
        // SAFETY: initialised until now, and read once: the caller was the last owner.
        let buffer = ManuallyDrop::into_inner(unsafe { std::ptr::read(&raw const (*whole.as_ptr()).buffer) });
        if buffer.is_lent() {
            // SAFETY: `freeze` leaked this box. The buffer in it does not drop with it.
            drop(unsafe { Box::from_raw(whole.as_ptr()) });
        }
        buffer
    }

    /// The part `range`, without a copy.
    ///
    /// # Panics
    /// If `range` ends past [`len`](slice::len) or starts after its end.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> SharedBuffer {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "part {range:?} is not inside a buffer of {} bytes",
            self.len
        );
        SharedBuffer { whole: self.share(), start: self.start + range.start, len: range.len() }
    }

    /// The buffer itself, to write into again, if this is its only owner and covers all of it; else `self` again.
    ///
    /// # Errors
    /// `self`, unchanged: shared with others, or only a part.
    pub fn try_unshare(self) -> Result<Buffer, SharedBuffer> {
        let Frozen { owners, buffer } = self.frozen();
        let is_whole = self.start == 0 && self.len == buffer.len;
        if !is_whole || owners.compare_exchange(1, 0, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return Err(self);
        }
        let whole = ManuallyDrop::new(self).whole;
        // SAFETY: the exchange made the count 0; the only owner, `self`, is not dropped.
        Ok(unsafe { SharedBuffer::take(whole) })
    }

    /// As [`Buffer::is_lent`].
    #[must_use]
    pub fn is_lent(&self) -> bool {
        self.frozen().buffer.is_lent()
    }

    /// True if both show bytes of the same buffer of the arena: nothing was copied between them.
    #[must_use]
    pub fn shares_memory_with(&self, other: &SharedBuffer) -> bool {
        self.whole == other.whole
    }

    /// The buffer that the bytes lie in, for the ring.
    pub(crate) fn whole(&self) -> &Buffer {
        &self.frozen().buffer
    }
}

impl Clone for SharedBuffer {
    fn clone(&self) -> SharedBuffer {
        SharedBuffer { whole: self.share(), start: self.start, len: self.len }
    }
}

impl Drop for SharedBuffer {
    fn drop(&mut self) {
        // Release and acquire, as for an Arc: what other owners read of the bytes comes before their next use. The only owner need not
        // count: who would make another has to be one.
        let owners = &self.frozen().owners;
        let is_last = owners.load(Ordering::Acquire) == 1 || {
            let is_last = owners.fetch_sub(1, Ordering::Release) == 1;
            fence(Ordering::Acquire);
            is_last
        };
        if is_last {
            // SAFETY: no owner is left but `self`, which ends, and that was found with an acquire.
            drop(unsafe { SharedBuffer::take(self.whole) });
        }
    }
}

impl Deref for SharedBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: inside the buffer (the invariant of `start`), whose bytes are initialised and immutable while there are owners.
        unsafe { std::slice::from_raw_parts(self.frozen().buffer.data.as_ptr().add(self.start), self.len) }
    }
}

impl AsRef<[u8]> for SharedBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Buffer> for SharedBuffer {
    fn from(buffer: Buffer) -> SharedBuffer {
        buffer.freeze()
    }
}

impl fmt::Debug for SharedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBuffer({} bytes at {} of {})", self.len, self.start, self.whole().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::ArenaConfig;

    fn arena() -> Arena {
        Arena::new(ArenaConfig { capacity_bytes: 1 << 20 }).unwrap()
    }

    #[test]
    fn slices_share_and_the_last_owner_gives_back() {
        let arena = arena();
        let counters = Counters::new();
        let whole = SharedBuffer::copy_from_slice(&arena, b"0123456789", &counters).unwrap();
        assert_eq!(counters.copied_bytes.get(), 10);
        let part = whole.slice(2..6);
        let inner = part.slice(1..3);
        assert_eq!((&part[..], &inner[..]), (&b"2345"[..], &b"34"[..]));
        assert!(inner.shares_memory_with(&whole));
        drop((whole, part));
        assert_eq!(arena.in_use_bytes(), 4096);
        std::thread::scope(|scope| {
            scope.spawn(move || drop(inner));
        });
        assert_eq!(arena.in_use_bytes(), 0);
    }

    #[test]
    fn unsharing_needs_the_only_and_whole_buffer() {
        let arena = arena();
        let mut buffer = arena.try_alloc(100).unwrap();
        buffer.fill(3);
        let shared = buffer.freeze();
        let twin = shared.clone();
        let shared = shared.try_unshare().unwrap_err();
        drop(twin);
        let part = shared.slice(0..50);
        drop(shared);
        let part = part.try_unshare().unwrap_err();
        assert_eq!(part.len(), 50);
        drop(part);
        let shared = arena.try_alloc(100).unwrap().freeze();
        let mut buffer = shared.try_unshare().unwrap();
        buffer.resize(200);
        buffer[199] = 1;
        assert_eq!(buffer.len(), 200);
    }

    #[test]
    fn a_lender_is_told_once_when_the_last_slice_is_gone() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        unsafe fn count(data: *const ()) {
            // SAFETY: the lender below was made with this counter, which outlives the loans.
            unsafe { &*data.cast::<AtomicUsize>() }.fetch_add(1, Ordering::SeqCst);
        }
        let told = AtomicUsize::new(0);
        let mut memory = *b"0123456789";
        // SAFETY: `count` may run anywhere with the counter.
        let lender = unsafe { Lender::new((&raw const told).cast(), count) };
        // SAFETY: `memory` is not touched before the lender is told.
        let mut buffer = unsafe { Buffer::lend(NonNull::from(&mut memory).cast(), 10, lender) };
        assert!(buffer.is_lent() && buffer.capacity() == 10);
        buffer[0] = b'x';
        let whole = buffer.freeze();
        let part = whole.slice(0..2);
        drop(whole);
        assert_eq!((&part[..], told.load(Ordering::SeqCst)), (&b"x1"[..], 0));
        drop(part);
        assert_eq!((told.load(Ordering::SeqCst), memory[0]), (1, b'x'));
    }

    #[test]
    #[should_panic(expected = "above the buffer's capacity")]
    fn a_length_above_the_capacity_is_a_bug() {
        arena().try_alloc(1).unwrap().resize(4097);
    }

    #[test]
    #[should_panic(expected = "is not inside a buffer")]
    fn a_part_outside_is_a_bug() {
        let _ = arena().try_alloc(10).unwrap().freeze().slice(5..11);
    }

    #[test]
    fn a_buffer_outlives_the_handles_of_its_arena() {
        let arena = arena();
        let mut buffer = arena.try_alloc(4096).unwrap();
        drop(arena);
        buffer.fill(1);
        assert_eq!(buffer.freeze().iter().map(|byte| u32::from(*byte)).sum::<u32>(), 4096);
    }
}
