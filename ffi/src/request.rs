//! What an operation is to do, taken out of C structures and checked once.
//!
//! **Invariant**: an [`Io`] has extents of one sum with its data, at multiples of the block, that end below 2^64; its arrays are not NULL.
//! The arrays themselves stay C's and are read again while the operation runs: each look checks its index against the checked count.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use base::units::{BLOCK_BYTES, narrow, wide};
use base::{ByteExtent, ObjectId};

use crate::abi::{self, BufVec, CVec, Entity, IndexVec, Obj, ObjAttr, entity_state, obj_opcode};
use crate::errno::{self, Errno};
use crate::limits;
use crate::op::entity_state_while;
use crate::say;

/// What a launched operation does.
#[derive(Debug)]
pub enum Work {
    /// Create, open or delete.
    Entity(EntityWork),
    /// Read, write, alloc or free.
    Io(Io),
    /// Wait for others.
    Sync(Vec<SyncTarget>),
    /// Fail with this number.
    Refuse(Errno),
}

impl Work {
    /// The object that it is about.
    #[must_use]
    pub fn object(&self) -> Option<ObjectId> {
        match self {
            Work::Entity(work) => Some(work.id),
            Work::Io(io) => Some(io.id),
            Work::Sync(_) | Work::Refuse(_) => None,
        }
    }

    /// The entity is on its way to its next state.
    pub fn mark_entity_launched(&self) {
        if let Work::Entity(work) = self {
            work.entity.set_state(entity_state_while(work.code));
        }
    }

    /// The operation was not carried out.
    pub fn mark_entity_idle(&self) {
        if let Work::Entity(work) = self {
            work.entity.set_state(entity_state::INIT);
        }
    }
}

/// Create, open or delete.
#[derive(Clone, Copy, Debug)]
pub struct EntityWork {
    pub code: u32,
    pub id: ObjectId,
    /// Unit size of a new object; `None`: the pool's.
    pub unit_bytes: Option<u32>,
    pub entity: EntityRef,
}

/// Whom a sync waits for: everything of the instance, of one object, or one operation by the order of its launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncTarget {
    All,
    Object(ObjectId),
    Launch(u64),
}

/// An object entity of C's, to be told its new state.
#[derive(Clone, Copy, Debug)]
pub struct EntityRef(NonNull<Entity>);

// SAFETY: the state is an atomic; the attributes are written by the one operation that is on its way for the entity.
unsafe impl Send for EntityRef {}

impl EntityRef {
    /// # Safety
    /// `entity` is the first member of a `struct m0_clovis_obj` and lives until the operations on it are over.
    pub unsafe fn of(entity: NonNull<Entity>) -> EntityRef {
        EntityRef(entity)
    }

    fn state_word(&self) -> &AtomicU32 {
        // SAFETY: an aligned u32 of an entity that lives (the contract of `of`).
        unsafe { AtomicU32::from_ptr(&raw mut (*self.0.as_ptr()).sm.state) }
    }

    /// Writes `en_sm.sm_state`.
    pub fn set_state(&self, state: u32) {
        self.state_word().store(state, Ordering::Release);
    }

    /// `ob_attr`
    #[must_use]
    pub fn attr(&self) -> *mut ObjAttr {
        // SAFETY: the entity is the first member of an object (the contract of `of`).
        unsafe { &raw mut (*self.0.as_ptr().cast::<Obj>()).attr }
    }
}

/// What an [`Io`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoKind {
    Read,
    Write,
    Alloc,
    Free,
}

impl IoKind {
    /// `enum m0_clovis_obj_opcode`
    #[must_use]
    pub const fn of(opcode: u32) -> Option<IoKind> {
        Some(match opcode {
            obj_opcode::READ => IoKind::Read,
            obj_opcode::WRITE => IoKind::Write,
            obj_opcode::ALLOC => IoKind::Alloc,
            obj_opcode::FREE => IoKind::Free,
            _ => return None,
        })
    }
}

/// A checked read, write, alloc or free.
#[derive(Debug)]
pub struct Io {
    pub id: ObjectId,
    pub kind: IoKind,
    pub bytes: u64,
    /// A read fails where bytes were never written.
    pub refuses_holes: bool,
    extents: IndexVec,
    data: Option<BufVec>,
    /// CRC-32C of each block, if the caller wants them: see the header, `M0_CLOVIS_BLOCK_ATTR_CRC32C`.
    attr: Option<BufVec>,
}

// SAFETY: the vectors are the operation's from the call to its end (the header's contract); only the instance's thread looks.
unsafe impl Send for Io {}

/// What `m0_clovis_obj_op` was given, beside the object.
pub struct IoArguments {
    pub opcode: u32,
    pub extents: *mut IndexVec,
    pub data: *mut BufVec,
    pub attr: *mut BufVec,
    pub mask: u64,
    pub block_shift: u64,
    pub refuses_holes: bool,
}

impl Io {
    /// Checks the arguments. The reason of a refusal is logged.
    ///
    /// # Safety
    /// The vectors are null or as the header says.
    pub unsafe fn check(id: ObjectId, arguments: &IoArguments) -> Result<Io, Errno> {
        // SAFETY: the caller's contract.
        unsafe { Io::try_check(id, arguments) }.map_err(|reason| {
            say!("m0_clovis_obj_op on object {id}: {reason}");
            errno::EINVAL
        })
    }

    /// # Safety
    /// As `check`.
    unsafe fn try_check(id: ObjectId, arguments: &IoArguments) -> Result<Io, Refusal> {
        let IoArguments { opcode, extents, data, attr, mask, block_shift, refuses_holes } = *arguments;
        let kind = IoKind::of(opcode).ok_or(Refusal::Opcode { opcode })?;
        if !(limits::BLOCK_SHIFT_MIN..=limits::BLOCK_SHIFT_MAX).contains(&block_shift) {
            return Err(Refusal::BlockShift { block_shift });
        }
        // SAFETY: null or a vector, as the header says.
        let extents = unsafe { extents.as_ref() }.copied().ok_or(Refusal::Null { what: "ext" })?;
        if extents.index.is_null() || extents.vec.count.is_null() || extents.vec.nr == 0 {
            return Err(Refusal::Null { what: "ext" });
        }
        let mut bytes = 0u64;
        for index in 0..extents.vec.nr {
            // SAFETY: arrays of `nr` members.
            let extent = unsafe { extent_at(&extents, index) };
            let block = 1u64 << block_shift;
            if !extent.start.is_multiple_of(block) || !extent.count.is_multiple_of(block) {
                return Err(Refusal::Alignment { extent, block });
            }
            if extent.start.checked_add(extent.count).is_none() {
                return Err(Refusal::Wraps { extent });
            }
            bytes = bytes.checked_add(extent.count).ok_or(Refusal::Wraps { extent })?;
        }
        if bytes == 0 {
            return Err(Refusal::Nothing);
        }
        let moves_bytes = matches!(kind, IoKind::Read | IoKind::Write);
        let data = if moves_bytes {
            // SAFETY: null or a vector, as the header says.
            let data = unsafe { data.as_ref() }.copied().ok_or(Refusal::Null { what: "data" })?;
            // SAFETY: arrays of `nr` members.
            let held = unsafe { check_segments(&data, "data")? };
            if held != bytes {
                return Err(Refusal::Sums { bytes, held });
            }
            Some(data)
        } else {
            None
        };
        let attr = match mask {
            0 => None,
            abi::BLOCK_ATTR_CRC32C if moves_bytes => {
                // SAFETY: null or a vector, as the header says.
                let attr = unsafe { attr.as_ref() }.copied().ok_or(Refusal::Null { what: "attr" })?;
                // SAFETY: arrays of `nr` members.
                let held = unsafe { check_segments(&attr, "attr")? };
                let blocks = bytes / BLOCK_BYTES;
                let is_one_word_each =
                    // SAFETY: `count` has `nr` members: `check_segments` looked at each.
                    (0..attr.vec.nr).all(|index| unsafe { count_at(&attr.vec, index) } == 4);
                if !bytes.is_multiple_of(BLOCK_BYTES)
                    || held != blocks * 4
                    || u64::from(attr.vec.nr) != blocks
                    || !is_one_word_each
                {
                    return Err(Refusal::Attributes { blocks, segments: attr.vec.nr });
                }
                Some(attr)
            }
            _ => return Err(Refusal::Mask { mask }),
        };
        Ok(Io { id, kind, bytes, refuses_holes, extents, data, attr })
    }

    /// The extents, neighbours that continue each other joined and cut at `bytes_max`, each with where its bytes stand in the data.
    pub fn runs(&self, bytes_max: u64) -> Runs<'_> {
        Runs {
            io: self,
            next: 0,
            rest: ByteExtent::default(),
            place: Place::default(),
            bytes_max,
            at_byte: 0,
        }
    }

    /// The run that [`Io::runs`] gives, if the operation is one extent of at most `bytes_max`.
    #[must_use]
    pub fn only_run(&self, bytes_max: u64) -> Option<Run> {
        if self.extents.vec.nr != 1 || self.bytes > bytes_max {
            return None;
        }
        // SAFETY: checked arrays of one member. The caller may have changed it since it was checked: never more than was checked.
        let extent = unsafe { extent_at(&self.extents, 0) };
        let count = extent.count.min(self.bytes);
        if count == 0 || extent.start.checked_add(count).is_none() {
            return None;
        }
        Some(Run { extent: ByteExtent { start: extent.start, count }, place: Place::default(), at_byte: 0 })
    }

    /// The parts of the caller's memory that hold `bytes` bytes from `place` on.
    pub fn segments(&self, place: Place, bytes: u64) -> Segments<'_> {
        Segments { data: self.data.as_ref(), place, left: bytes }
    }

    /// Reads or writes the attribute words of the blocks from block `first` of the operation on.
    #[must_use]
    pub fn has_attributes(&self) -> bool {
        self.attr.is_some()
    }

    /// The attribute word of a block of the operation.
    #[must_use]
    pub fn attribute(&self, block: u64) -> Option<NonNull<u32>> {
        let attr = self.attr.as_ref()?;
        let index = u32::try_from(block).ok().filter(|index| *index < attr.vec.nr)?;
        // SAFETY: arrays of `nr` members, each segment 4 bytes (checked).
        let word = unsafe { *attr.buf.add(narrow(u64::from(index))) };
        NonNull::new(word.cast::<u32>())
    }
}

/// # Safety
/// `vec.count` has `nr` members and `index < nr`.
unsafe fn count_at(vec: &CVec, index: u32) -> u64 {
    // SAFETY: the caller's contract.
    unsafe { *vec.count.add(narrow(u64::from(index))) }
}

/// # Safety
/// The arrays have `nr` members and `index < nr`.
unsafe fn extent_at(extents: &IndexVec, index: u32) -> ByteExtent {
    // SAFETY: the caller's contract.
    let (start, count) =
        unsafe { (*extents.index.add(narrow(u64::from(index))), count_at(&extents.vec, index)) };
    ByteExtent { start, count }
}

/// Bytes of all segments; none of them may be NULL unless it is empty.
///
/// # Safety
/// The arrays are null or have `nr` members.
unsafe fn check_segments(data: &BufVec, what: &'static str) -> Result<u64, Refusal> {
    if data.vec.nr == 0 || data.buf.is_null() || data.vec.count.is_null() {
        return Err(Refusal::Null { what });
    }
    let mut held = 0u64;
    for index in 0..data.vec.nr {
        // SAFETY: the caller's contract.
        let (count, segment) =
            unsafe { (count_at(&data.vec, index), *data.buf.add(narrow(u64::from(index)))) };
        if count > 0 && segment.is_null() {
            return Err(Refusal::Null { what });
        }
        held = held.checked_add(count).ok_or(Refusal::Sums { bytes: 0, held: u64::MAX })?;
    }
    Ok(held)
}

/// Why a read or write is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error("opcode {opcode} is not READ, WRITE, ALLOC or FREE")]
    Opcode { opcode: u32 },
    #[error("oa_bshift {block_shift} is not from {} to {}", limits::BLOCK_SHIFT_MIN, limits::BLOCK_SHIFT_MAX)]
    BlockShift { block_shift: u64 },
    #[error("{what} is NULL or empty, or one of its arrays or buffers is")]
    Null { what: &'static str },
    #[error("{extent} does not start and end at multiples of the block of {block} bytes (oa_bshift)")]
    Alignment { extent: ByteExtent, block: u64 },
    #[error("{extent} ends above 2^64 - 1")]
    Wraps { extent: ByteExtent },
    #[error("the extents hold no byte")]
    Nothing,
    #[error("the extents hold {bytes} bytes and the data {held}")]
    Sums { bytes: u64, held: u64 },
    #[error(
        "{segments} attribute segments do not fit {blocks} blocks: one of 4 bytes for each 4096-byte block"
    )]
    Attributes { blocks: u64, segments: u32 },
    #[error(
        "mask {mask:#x} names attributes that there are not: 0, or M0_CLOVIS_BLOCK_ATTR_CRC32C for reads and writes"
    )]
    Mask { mask: u64 },
}

/// A byte of the data: segment, and offset in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    segment: u32,
    offset: u64,
}

/// One run of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Bytes of the object.
    pub extent: ByteExtent,
    /// Where they stand in the data.
    pub place: Place,
    /// Byte of the operation.
    pub at_byte: u64,
}

/// See [`Io::runs`].
pub struct Runs<'a> {
    io: &'a Io,
    next: u32,
    rest: ByteExtent,
    place: Place,
    bytes_max: u64,
    at_byte: u64,
}

impl Runs<'_> {
    /// True once all bytes have been handed out.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.at_byte == self.io.bytes
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let extents = &self.io.extents;
        while self.next < extents.vec.nr {
            // SAFETY: checked arrays of `nr` members.
            let more = unsafe { extent_at(extents, self.next) };
            let joined = self.rest.count.checked_add(more.count);
            if self.rest.count == 0 {
                self.rest = more;
            } else if let Some(count) = joined.filter(|_| self.rest.end() == more.start) {
                self.rest.count = count;
            } else if more.count > 0 {
                break;
            }
            self.next += 1;
        }
        let count = self.rest.count.min(self.bytes_max);
        // The caller may have changed its arrays since they were checked: never more than was checked.
        let count = count.min(self.io.bytes - self.at_byte);
        if count == 0 {
            return None;
        }
        let run = Run {
            extent: ByteExtent { start: self.rest.start, count },
            place: self.place,
            at_byte: self.at_byte,
        };
        self.rest = ByteExtent { start: self.rest.start.checked_add(count)?, count: self.rest.count - count };
        self.at_byte += count;
        if self.io.data.is_some() && self.at_byte < self.io.bytes {
            let mut segments = self.io.segments(self.place, count);
            segments.by_ref().for_each(drop);
            self.place = segments.place;
        }
        Some(run)
    }
}

/// See [`Io::segments`].
pub struct Segments<'a> {
    data: Option<&'a BufVec>,
    place: Place,
    left: u64,
}

impl Iterator for Segments<'_> {
    type Item = (NonNull<u8>, usize);

    fn next(&mut self) -> Option<(NonNull<u8>, usize)> {
        let data = self.data?;
        while self.left > 0 && self.place.segment < data.vec.nr {
            // SAFETY: checked arrays of `nr` members.
            let (count, address) = unsafe {
                (
                    count_at(&data.vec, self.place.segment),
                    *data.buf.add(narrow(u64::from(self.place.segment))),
                )
            };
            let here = count.saturating_sub(self.place.offset).min(self.left);
            let start = address.cast::<u8>().wrapping_add(narrow(self.place.offset));
            self.left -= here;
            self.place.offset += here;
            if self.place.offset >= count {
                self.place = Place { segment: self.place.segment + 1, offset: 0 };
            }
            if here > 0
                && let Some(start) = NonNull::new(start)
            {
                return Some((start, narrow(here)));
            }
        }
        None
    }
}

/// The caller's memory for `bytes` bytes at `place`, filled from `from`, then with zeros; each byte is copied once and counted.
///
/// # Safety
/// The data is the operation's, as the header says, and nobody reads it now.
pub unsafe fn scatter(io: &Io, run: Run, from: &[runtime::SharedBuffer], counters: &runtime::Counters) {
    let mut sources = from.iter();
    let mut source: &[u8] = &[];
    for (data, len) in io.segments(run.place, run.extent.count) {
        // SAFETY: the caller's contract: `len` bytes that are ours now.
        let mut to = unsafe { std::slice::from_raw_parts_mut(data.as_ptr(), len) };
        while !to.is_empty() {
            if source.is_empty() {
                match sources.next() {
                    Some(next) => source = next,
                    None => break,
                }
                continue;
            }
            let count = to.len().min(source.len());
            let (now, later) = to.split_at_mut(count);
            runtime::copy_counted(counters, now, &source[..count]);
            source = &source[count..];
            to = later;
        }
        if !to.is_empty() {
            to.fill(0); // behind the object's end
        }
    }
}

/// CRC-32C of each whole block of `parts`, which together are whole blocks; handed to `take(block, checksum)`.
pub fn block_checksums(io: &Io, run: Run, mut take: impl FnMut(u64, u32) -> bool) -> bool {
    let first = run.at_byte / BLOCK_BYTES;
    let mut block = Vec::with_capacity(narrow(BLOCK_BYTES));
    let mut index = 0;
    for (data, len) in io.segments(run.place, run.extent.count) {
        // SAFETY: the caller's memory for this operation, which the instance's thread alone looks at now.
        let mut bytes = unsafe { std::slice::from_raw_parts(data.as_ptr(), len) };
        while !bytes.is_empty() {
            let count = bytes.len().min(narrow(BLOCK_BYTES) - block.len());
            block.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if wide(block.len()) == BLOCK_BYTES {
                if !take(first + index, base::checksum::crc32c(&block)) {
                    return false;
                }
                index += 1;
                block.clear();
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Vectors {
        counts: Vec<u64>,
        starts: Vec<u64>,
        segment_counts: Vec<u64>,
        segments: Vec<Vec<u8>>,
        pointers: Vec<*mut std::ffi::c_void>,
    }

    impl Vectors {
        fn new(extents: &[(u64, u64)], segments: &[usize]) -> Vectors {
            let mut segments: Vec<Vec<u8>> = segments.iter().map(|bytes| vec![0; *bytes]).collect();
            Vectors {
                counts: extents.iter().map(|extent| extent.1).collect(),
                starts: extents.iter().map(|extent| extent.0).collect(),
                segment_counts: segments.iter().map(|segment| wide(segment.len())).collect(),
                pointers: segments.iter_mut().map(|segment| segment.as_mut_ptr().cast()).collect(),
                segments,
            }
        }

        fn check(&mut self, opcode: u32, mask: u64) -> Result<Io, Refusal> {
            let nr = |count: usize| u32::try_from(count).unwrap();
            let mut extents = IndexVec {
                vec: CVec { nr: nr(self.counts.len()), count: self.counts.as_mut_ptr() },
                index: self.starts.as_mut_ptr(),
            };
            let mut data = BufVec {
                vec: CVec { nr: nr(self.segments.len()), count: self.segment_counts.as_mut_ptr() },
                buf: self.pointers.as_mut_ptr(),
            };
            let arguments = IoArguments {
                opcode,
                extents: &raw mut extents,
                data: &raw mut data,
                attr: std::ptr::null_mut(),
                mask,
                block_shift: 12,
                refuses_holes: false,
            };
            // SAFETY: vectors of this test that outlive the `Io`.
            unsafe { Io::try_check(ObjectId::new(1, 2).unwrap(), &arguments) }
        }
    }

    #[test]
    fn neighbours_are_joined_and_long_runs_cut() {
        let mut vectors = Vectors::new(
            &[(0, 4096), (4096, 8192), (0, 0), (40960, 4096), (45056, 4096)],
            &[6000, 100, 14380],
        );
        let io = vectors.check(obj_opcode::READ, 0).unwrap();
        let runs = |bytes_max| {
            io.runs(bytes_max).map(|run| (run.extent.start, run.extent.count, run.place)).collect::<Vec<_>>()
        };
        let place = |segment, offset| Place { segment, offset };
        assert_eq!(runs(u64::MAX), [(0, 12288, place(0, 0)), (40960, 8192, place(2, 6188))]);
        assert_eq!(
            runs(8192),
            [(0, 8192, place(0, 0)), (8192, 4096, place(2, 2092)), (40960, 8192, place(2, 6188))]
        );
        let lengths: Vec<usize> = io.segments(place(0, 5999), 202).map(|(_, len)| len).collect();
        assert_eq!(lengths, [1, 100, 101]);
    }

    #[test]
    fn the_only_run_is_that_of_the_runs() {
        let mut vectors = Vectors::new(&[(4096, 8192)], &[8192]);
        let io = vectors.check(obj_opcode::READ, 0).unwrap();
        assert_eq!(io.only_run(8192), io.runs(8192).next());
        assert_eq!(io.only_run(4096), None, "two");
        vectors.counts[0] = 1 << 20; // after the check
        assert_eq!(io.only_run(8192), io.runs(8192).next());
        vectors.counts[0] = 0;
        assert_eq!(io.only_run(8192), None);
        let mut vectors = Vectors::new(&[(0, 4096), (4096, 4096)], &[8192]);
        assert_eq!(vectors.check(obj_opcode::READ, 0).unwrap().only_run(8192), None, "two that are joined");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let check = |extents: &[(u64, u64)], segments: &[usize], opcode, mask| {
            Vectors::new(extents, segments).check(opcode, mask).map(|io| io.bytes)
        };
        assert_eq!(check(&[(0, 4096)], &[4096], obj_opcode::WRITE, 0), Ok(4096));
        assert!(matches!(check(&[(0, 4096)], &[4095], obj_opcode::WRITE, 0), Err(Refusal::Sums { .. })));
        assert!(matches!(check(&[(1, 4096)], &[4096], obj_opcode::WRITE, 0), Err(Refusal::Alignment { .. })));
        assert!(matches!(check(&[(0, 4096)], &[4096], 14, 0), Err(Refusal::Opcode { .. })));
        assert!(matches!(check(&[(0, 4096)], &[4096], obj_opcode::WRITE, 1), Err(Refusal::Mask { .. })));
        assert!(matches!(check(&[(0, 0)], &[4096], obj_opcode::READ, 0), Err(Refusal::Nothing)));
        assert!(matches!(check(&[], &[4096], obj_opcode::READ, 0), Err(Refusal::Null { .. })));
        assert!(matches!(check(&[(!4095, 8192)], &[8192], obj_opcode::READ, 0), Err(Refusal::Wraps { .. })));
        assert_eq!(check(&[(0, 4096)], &[], obj_opcode::FREE, 0), Ok(4096));
    }

    #[test]
    fn bytes_are_scattered_and_the_rest_is_zeros() {
        let mut vectors = Vectors::new(&[(0, 8192)], &[5000, 3192]);
        vectors.segments.iter_mut().for_each(|segment| segment.fill(9));
        let io = vectors.check(obj_opcode::READ, 0).unwrap();
        let arena = runtime::Arena::new(runtime::ArenaConfig { capacity_bytes: 1 << 20 }).unwrap();
        let counters = runtime::Counters::new();
        let mut buffer = arena.try_alloc(6000).unwrap();
        buffer.fill(3);
        let run = io.runs(u64::MAX).next().unwrap();
        // SAFETY: vectors of this test.
        unsafe { scatter(&io, run, &[buffer.freeze()], &counters) };
        assert_eq!(counters.copied_bytes.get(), 6000);
        assert!(vectors.segments[0].iter().all(|byte| *byte == 3));
        assert!(vectors.segments[1][..1000].iter().all(|byte| *byte == 3));
        assert!(vectors.segments[1][1000..].iter().all(|byte| *byte == 0));
    }
}
