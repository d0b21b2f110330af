//! Memory that peers may pull from or push into, while a request of ours lives.
//!
//! The table owns the buffers; a connection that receives into one borrows it for a single read and looks it up again
//! for the next. So [`ExposureTable::retract`] is exact: once it returns, nothing writes into the memory.
//!
//! Invariant: a cookie names one exposure for ever (slot and generation); a retracted one is never found again.

use runtime::{Buffer, SharedBuffer};
use smallvec::SmallVec;

use crate::descriptor::{BulkCookie, BulkDescriptor};
use crate::error::NakReason;
use crate::limits::EXPOSURES_MAX;

/// One segment of a sink.
pub(crate) enum SinkPart {
    /// Ours, as exposed.
    Own(Buffer),
    /// The pusher's own buffer, taken whole (one process: no copy).
    Taken(SharedBuffer),
}

enum Exposure {
    Source(SmallVec<[SharedBuffer; 4]>),
    Sink(Vec<SinkPart>),
}

#[derive(Default)]
struct Slot {
    generation: u32,
    key: u64,
    exposure: Option<Exposure>,
}

/// All exposures of one machine.
#[derive(Default)]
pub(crate) struct ExposureTable {
    slots: Vec<Slot>,
    free: Vec<u32>,
    sink_count: usize,
}

impl ExposureTable {
    /// Exposes parts to be pulled. `key`: random.
    pub(crate) fn expose_source(&mut self, parts: &[SharedBuffer], key: u64) -> BulkDescriptor {
        let lengths = parts.iter().map(|part| part.len());
        let segments = segment_lengths(lengths);
        self.insert(Exposure::Source(parts.iter().cloned().collect()), segments, key)
    }

    /// Exposes buffers to be pushed into.
    pub(crate) fn expose_sink(&mut self, parts: Vec<Buffer>, key: u64) -> BulkDescriptor {
        let segments = segment_lengths(parts.iter().map(|part| part.len()));
        self.sink_count += 1;
        self.insert(Exposure::Sink(parts.into_iter().map(SinkPart::Own).collect()), segments, key)
    }

    fn insert(&mut self, exposure: Exposure, segments: SmallVec<[u32; 16]>, key: u64) -> BulkDescriptor {
        let slot = self.free.pop().unwrap_or_else(|| {
            assert!(self.slots.len() < EXPOSURES_MAX, "more than {EXPOSURES_MAX} exposures: rpc leaks them");
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let entry = &mut self.slots[slot as usize];
        // Generation 0 never goes out, so cookie 0 names nothing.
        entry.generation = entry.generation.wrapping_add(1).max(1);
        entry.key = key;
        entry.exposure = Some(exposure);
        let cookie = BulkCookie(u64::from(entry.generation) << 32 | u64::from(slot));
        BulkDescriptor { cookie, key, segments }
    }

    fn slot_mut(&mut self, cookie: BulkCookie) -> Option<&mut Slot> {
        let (slot, generation) = ((cookie.0 & 0xffff_ffff) as usize, cookie.0 >> 32);
        self.slots
            .get_mut(slot)
            .filter(|entry| u64::from(entry.generation) == generation && entry.exposure.is_some())
    }

    fn open(&mut self, cookie: BulkCookie, key: u64) -> Result<&mut Exposure, NakReason> {
        let entry = self.slot_mut(cookie).ok_or(NakReason::NotExposed)?;
        if entry.key != key {
            return Err(NakReason::WrongKey);
        }
        entry.exposure.as_mut().ok_or(NakReason::NotExposed)
    }

    /// The source segments `first..first + count`.
    pub(crate) fn source_parts(
        &mut self,
        cookie: BulkCookie,
        key: u64,
        first: usize,
        count: usize,
    ) -> Result<&[SharedBuffer], NakReason> {
        let Exposure::Source(parts) = self.open(cookie, key)? else { return Err(NakReason::WrongDirection) };
        parts.get(first..first + count).ok_or(NakReason::OutOfRange)
    }

    /// Checks that `bytes` at `offset` of a sink segment may be written; answers the segment's length.
    pub(crate) fn check_sink(
        &mut self,
        cookie: BulkCookie,
        key: u64,
        segment_index: usize,
        offset: usize,
        bytes: usize,
    ) -> Result<usize, NakReason> {
        let Exposure::Sink(parts) = self.open(cookie, key)? else { return Err(NakReason::WrongDirection) };
        let part = parts.get(segment_index).ok_or(NakReason::OutOfRange)?;
        let length = match part {
            SinkPart::Own(buffer) => buffer.len(),
            SinkPart::Taken(buffer) => buffer.len(),
        };
        match offset.checked_add(bytes) {
            Some(end) if end <= length => Ok(length),
            _ => Err(NakReason::OutOfRange),
        }
    }

    /// A checked sink segment, if it is still exposed and still a buffer of ours.
    pub(crate) fn sink_buffer(&mut self, cookie: BulkCookie, segment_index: usize) -> Option<&mut Buffer> {
        match self.sink_part(cookie, segment_index)? {
            SinkPart::Own(buffer) => Some(buffer),
            SinkPart::Taken(_) => None,
        }
    }

    /// A checked sink segment, to be replaced whole.
    pub(crate) fn sink_part(&mut self, cookie: BulkCookie, segment_index: usize) -> Option<&mut SinkPart> {
        match self.slot_mut(cookie)?.exposure.as_mut()? {
            Exposure::Sink(parts) => parts.get_mut(segment_index),
            Exposure::Source(_) => None,
        }
    }

    /// Ends an exposure and gives its memory back; `None` if it has ended before.
    pub(crate) fn retract(&mut self, cookie: BulkCookie) -> Option<Vec<SharedBuffer>> {
        let entry = self.slot_mut(cookie)?;
        let exposure = entry.exposure.take()?;
        self.free.push((cookie.0 & 0xffff_ffff) as u32);
        Some(match exposure {
            Exposure::Source(parts) => parts.into_vec(),
            Exposure::Sink(parts) => {
                self.sink_count -= 1;
                parts
                    .into_iter()
                    .map(|part| match part {
                        SinkPart::Own(buffer) => buffer.freeze(),
                        SinkPart::Taken(buffer) => buffer,
                    })
                    .collect()
            }
        })
    }

    /// True if pushed bytes may arrive.
    pub(crate) fn has_sinks(&self) -> bool {
        self.sink_count > 0
    }
}

fn segment_lengths(lengths: impl ExactSizeIterator<Item = usize>) -> SmallVec<[u32; 16]> {
    let count = lengths.len();
    assert!(
        (1..=base::limits::BULK_SEGMENTS_MAX).contains(&count),
        "{count} bulk segments: the caller splits requests at BULK_SEGMENTS_MAX"
    );
    // A buffer has at most BUFFER_BYTES_MAX = 1 MiB, so its length fits.
    lengths.map(|bytes| u32::try_from(bytes).unwrap_or(u32::MAX)).collect()
}
