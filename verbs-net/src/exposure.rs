//! Memory that peers may pull from or push into, while a request of ours lives.
//!
//! The table owns the buffers; a connection that receives into one borrows it for a single read and looks it up again
//! for the next. Where hardware moves the bytes, a backend binds the exposure for a connection ([`ExposureTable::bind`]), and
//! an exposure that ends keeps its memory until the last binding is gone ([`Retraction::Pending`]). A sink that was pushed to over a sealed
//! connection is opened then, in its place, because only then nothing else writes to it; what does not open is never handed on.
//!
//! **Invariant**: a cookie names one exposure for ever (slot and generation); a retracted one is never found again by frames.
//! **Invariant**: memory is given back only while nothing is bound.

use std::collections::BTreeMap;
use std::rc::Rc;

use base::Instant;
use runtime::{Buffer, SharedBuffer};
use smallvec::SmallVec;

use crate::connection::ConnectionId;
use crate::descriptor::{BulkCookie, BulkDescriptor};
use crate::error::{LocalError, NakReason, NetError};
use crate::limits::EXPOSURES_MAX;
use crate::remote::{PushSeal, RemoteAccess};
use crate::security::{Opener, Place, Seal, SealedOperation};

/// Why an exposure ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retract {
    /// The peer has answered: with its reply it promises to be done with the memory.
    Answered,
    /// Nobody waits for the answer any more; the peer may still be at work.
    Abandoned,
}

/// What became of [`crate::TransferMachine::retract`].
#[derive(Debug)]
#[must_use]
pub enum Retraction {
    /// The memory, with what was pushed so far.
    Done(Vec<SharedBuffer>),
    /// Hardware may still touch it: [`crate::Event::Retracted`] brings it.
    Pending,
    /// What was pushed over a sealed connection is not what the peer sealed: the memory holds nothing.
    Broken(NetError),
    /// No such exposure, or ended before.
    Unknown,
}

impl Retraction {
    /// The memory, if it is back already.
    #[must_use]
    pub fn done(self) -> Option<Vec<SharedBuffer>> {
        match self {
            Retraction::Done(parts) => Some(parts),
            Retraction::Pending | Retraction::Broken(_) | Retraction::Unknown => None,
        }
    }
}

/// What names the memory to a peer's hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BindingScope {
    /// Memory windows of this exposure alone: invalidation ends them.
    Window,
    /// Keys that outlive the exposure: only the peer's word or the end of the connection does.
    Pool,
}

#[derive(Clone, Copy)]
struct Binding {
    connection: ConnectionId,
    scope: BindingScope,
}

/// A part as a backend binds it: it takes the address, and no reference outlives the call.
pub(crate) enum ExposedPart<'a> {
    Source(&'a SharedBuffer),
    Sink(&'a Buffer),
}

impl ExposedPart<'_> {
    /// Bytes of it.
    pub(crate) fn len(&self) -> usize {
        match self {
            ExposedPart::Source(part) => part.len(),
            ExposedPart::Sink(part) => part.len(),
        }
    }
}

/// An exposure, to be bound.
pub(crate) struct ExposureView<'a> {
    pub(crate) key: u64,
    pub(crate) access: RemoteAccess,
    pub(crate) parts: SmallVec<[ExposedPart<'a>; 4]>,
}

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
    /// Connections whose hardware may touch it.
    bindings: SmallVec<[Binding; 1]>,
    /// Retracted, and only waiting for its bindings to go.
    is_retiring: bool,
    /// What opens the segments of a sink that were pushed over sealed connections; in the order of segments.
    seals: Vec<SegmentSeal>,
    /// The pushes count: they are opened when the memory comes back.
    is_to_open: bool,
}

/// What opens one segment, and over which connection it came.
struct SegmentSeal {
    segment_index: u8,
    seal: Seal,
    opener: Rc<Opener>,
    connection: ConnectionId,
}

/// A sink that comes back without what was pushed into it.
#[derive(Debug)]
pub(crate) struct BrokenSink {
    pub(crate) error: NetError,
    /// Whose peer sealed it, if it is to blame.
    pub(crate) connection: Option<ConnectionId>,
}

/// Memory that comes back.
pub(crate) type Returned = Result<Vec<SharedBuffer>, BrokenSink>;

/// All exposures of one machine.
#[derive(Default)]
pub(crate) struct ExposureTable {
    slots: Vec<Slot>,
    free: Vec<u32>,
    sink_count: usize,
    /// Retiring exposures, and until when the peers may take.
    retiring: BTreeMap<u64, Instant>,
}

impl ExposureTable {
    /// Exposes parts to be pulled. `key`: random.
    pub(crate) fn expose_source(&mut self, parts: &[SharedBuffer], key: u64) -> BulkDescriptor {
        let lengths = parts.iter().map(|part| part.len());
        let segments = segment_lengths(lengths);
        self.insert(Exposure::Source(parts.iter().cloned().collect()), segments, key)
    }

    /// Exposes buffers to be pushed into.
    pub(crate) fn expose_sink(&mut self, parts: Vec<Buffer>, key: u64, is_shared: bool) -> BulkDescriptor {
        let segments = segment_lengths(parts.iter().map(|part| part.len()));
        self.sink_count += 1;
        let own = |part: Buffer| if is_shared { SinkPart::Taken(part.freeze()) } else { SinkPart::Own(part) };
        self.insert(Exposure::Sink(parts.into_iter().map(own).collect()), segments, key)
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

    /// Living or retiring.
    fn any_slot_mut(&mut self, cookie: BulkCookie) -> Option<&mut Slot> {
        let (slot, generation) = ((cookie.0 & 0xffff_ffff) as usize, cookie.0 >> 32);
        self.slots
            .get_mut(slot)
            .filter(|entry| u64::from(entry.generation) == generation && entry.exposure.is_some())
    }

    fn slot_mut(&mut self, cookie: BulkCookie) -> Option<&mut Slot> {
        self.any_slot_mut(cookie).filter(|entry| !entry.is_retiring)
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

    /// Notes what opens segments of a sink. Of several for one segment the last counts.
    pub(crate) fn note_seals(
        &mut self,
        cookie: BulkCookie,
        connection: ConnectionId,
        opener: &Rc<Opener>,
        seals: &[PushSeal],
    ) {
        let Some(entry) = self.slot_mut(cookie) else { return };
        for PushSeal { segment_index, seal } in seals.iter().copied() {
            let noted = SegmentSeal { segment_index, seal, opener: Rc::clone(opener), connection };
            match entry.seals.binary_search_by_key(&segment_index, |found| found.segment_index) {
                Ok(place) => entry.seals[place] = noted,
                Err(place) => entry.seals.insert(place, noted),
            }
        }
    }

    // ---- hardware access

    /// What a backend binds before it posts a message that exposes this; `None`: it has ended meanwhile.
    pub(crate) fn view(&mut self, cookie: BulkCookie) -> Option<ExposureView<'_>> {
        let entry = self.slot_mut(cookie)?;
        let (key, exposure) = (entry.key, entry.exposure.as_ref()?);
        Some(match exposure {
            Exposure::Source(parts) => ExposureView {
                key,
                access: RemoteAccess::Read,
                parts: parts.iter().map(ExposedPart::Source).collect(),
            },
            Exposure::Sink(parts) => {
                let parts = parts.iter().map(|part| match part {
                    SinkPart::Own(buffer) => ExposedPart::Sink(buffer),
                    SinkPart::Taken(buffer) => ExposedPart::Source(buffer),
                });
                ExposureView { key, access: RemoteAccess::Write, parts: parts.collect() }
            }
        })
    }

    /// True while hardware of that connection may touch the memory.
    pub(crate) fn is_bound(&self, cookie: BulkCookie, connection: ConnectionId) -> bool {
        let slot = self.slots.get((cookie.0 & 0xffff_ffff) as usize);
        slot.filter(|slot| u64::from(slot.generation) == cookie.0 >> 32 && slot.exposure.is_some())
            .is_some_and(|slot| slot.bindings.iter().any(|binding| binding.connection == connection))
    }

    /// Hardware of that connection may touch the memory from now on.
    pub(crate) fn bind(&mut self, cookie: BulkCookie, connection: ConnectionId, scope: BindingScope) {
        let Some(entry) = self.slot_mut(cookie) else { return };
        match entry.bindings.iter_mut().find(|binding| binding.connection == connection) {
            Some(binding) => binding.scope = scope,
            None => entry.bindings.push(Binding { connection, scope }),
        }
    }

    /// Hardware of that connection cannot touch it any more. The memory, if it was only waiting for that.
    pub(crate) fn unbind(&mut self, cookie: BulkCookie, connection: ConnectionId) -> Option<Returned> {
        let entry = self.any_slot_mut(cookie)?;
        entry.bindings.retain(|binding| binding.connection != connection);
        self.take_if_over(cookie)
    }

    fn take_if_over(&mut self, cookie: BulkCookie) -> Option<Returned> {
        let entry = self.any_slot_mut(cookie)?;
        (entry.is_retiring && entry.bindings.is_empty()).then(|| self.take(cookie)).flatten()
    }

    /// The queue pair of that connection is destroyed: exposures that waited for it, with their memory.
    pub(crate) fn unbind_all(&mut self, connection: ConnectionId) -> Vec<(BulkCookie, Returned)> {
        for entry in &mut self.slots {
            entry.bindings.retain(|binding| binding.connection != connection);
        }
        let waiting: Vec<u64> = self.retiring.keys().copied().collect();
        let take = |cookie| Some((BulkCookie(cookie), self.take_if_over(BulkCookie(cookie))?));
        waiting.into_iter().filter_map(take).collect()
    }

    /// Ends an exposure. `is_current`: the connection is the one that answers come over. Pushes what is to be revoked by
    /// the backends to `revoke`; the peers have until `deadline`.
    pub(crate) fn retract(
        &mut self,
        cookie: BulkCookie,
        how: Retract,
        deadline: Instant,
        mut is_current: impl FnMut(ConnectionId) -> bool,
        revoke: &mut Vec<ConnectionId>,
    ) -> Result<Retraction, BrokenSink> {
        let Some(entry) = self.slot_mut(cookie) else { return Ok(Retraction::Unknown) };
        entry.is_retiring = true;
        entry.is_to_open = how == Retract::Answered && !entry.seals.is_empty();
        // What is to be opened has to be ours alone, so the device lets go of it first, also where the key lives on.
        let is_to_open = entry.is_to_open;
        let ended = entry.bindings.iter().filter(|binding| {
            binding.scope == BindingScope::Window || is_to_open && is_current(binding.connection)
        });
        revoke.extend(ended.map(|binding| binding.connection));
        if how == Retract::Answered && !is_to_open {
            self.settle(cookie, is_current);
        }
        Ok(match self.take_if_over(cookie).transpose()? {
            Some(parts) => Retraction::Done(parts),
            None => {
                self.retiring.insert(cookie.0, deadline);
                Retraction::Pending
            }
        })
    }

    /// The peer has answered after all, over a current connection: it is done with what its pool keys open there.
    fn settle(&mut self, cookie: BulkCookie, mut is_current: impl FnMut(ConnectionId) -> bool) {
        let Some(entry) = self.any_slot_mut(cookie) else { return };
        entry
            .bindings
            .retain(|binding| binding.scope == BindingScope::Window || !is_current(binding.connection));
    }

    /// A late answer to an abandoned request. The memory, if it was only waiting for that.
    pub(crate) fn settle_retiring(
        &mut self,
        cookie: BulkCookie,
        is_current: impl FnMut(ConnectionId) -> bool,
    ) -> Option<Returned> {
        if !self.any_slot_mut(cookie)?.is_retiring {
            return None;
        }
        self.settle(cookie, is_current);
        self.take_if_over(cookie)
    }

    /// Connections that hold memory beyond its deadline, and the next deadline.
    pub(crate) fn overdue(&self, now: Instant) -> (Vec<ConnectionId>, Instant) {
        let (mut connections, mut next) = (Vec::new(), Instant::NEVER);
        for (cookie, deadline) in &self.retiring {
            if *deadline > now {
                next = next.min(*deadline);
                continue;
            }
            let slot = self.slots.get((cookie & 0xffff_ffff) as usize);
            connections
                .extend(slot.into_iter().flat_map(|slot| slot.bindings.iter().map(|found| found.connection)));
        }
        (connections, next)
    }

    /// A sink segment as simulated hardware finds it: also while it retires.
    pub(crate) fn hardware_sink(
        &mut self,
        cookie: BulkCookie,
        segment_index: usize,
    ) -> Option<&mut SinkPart> {
        match self.any_slot_mut(cookie)?.exposure.as_mut()? {
            Exposure::Sink(parts) => parts.get_mut(segment_index),
            Exposure::Source(_) => None,
        }
    }

    /// A source segment as simulated hardware finds it: also while it retires.
    pub(crate) fn hardware_source(
        &mut self,
        cookie: BulkCookie,
        segment_index: usize,
    ) -> Option<&SharedBuffer> {
        match self.any_slot_mut(cookie)?.exposure.as_ref()? {
            Exposure::Source(parts) => parts.get(segment_index),
            Exposure::Sink(_) => None,
        }
    }

    /// Frees the slot and gives its memory back, opened.
    fn take(&mut self, cookie: BulkCookie) -> Option<Returned> {
        let entry = self.any_slot_mut(cookie)?;
        let exposure = entry.exposure.take()?;
        let (key, mut seals) = (entry.key, std::mem::take(&mut entry.seals));
        if !std::mem::take(&mut entry.is_to_open) {
            seals.clear();
        }
        entry.is_retiring = false;
        self.retiring.remove(&cookie.0);
        self.free.push((cookie.0 & 0xffff_ffff) as u32);
        Some(match exposure {
            Exposure::Source(parts) => Ok(parts.into_vec()),
            Exposure::Sink(parts) => {
                self.sink_count -= 1;
                let part = |part| match part {
                    SinkPart::Own(buffer) => buffer.freeze(),
                    SinkPart::Taken(buffer) => buffer,
                };
                open_all(parts.into_iter().map(part).collect(), cookie, key, &seals)
            }
        })
    }

    /// True if pushed bytes may arrive.
    pub(crate) fn has_sinks(&self) -> bool {
        self.sink_count > 0
    }
}

/// Opens what was pushed sealed, each segment in its place.
fn open_all(mut parts: Vec<SharedBuffer>, cookie: BulkCookie, key: u64, seals: &[SegmentSeal]) -> Returned {
    let operation = SealedOperation::Push;
    for SegmentSeal { segment_index, seal, opener, connection } in seals {
        let segment_index = *segment_index;
        let place = Place { operation, segment_index, name: cookie.0, key };
        let broken =
            || BrokenSink { error: NetError::Protocol(place.broken()), connection: Some(*connection) };
        let index = usize::from(segment_index);
        if index >= parts.len() {
            return Err(broken());
        }
        let mut part = parts.remove(index).try_unshare().map_err(|_| BrokenSink {
            error: NetError::Local(LocalError::StillShared { segment_index }),
            connection: None,
        })?;
        opener.open_bulk(&place, seal, &mut part).map_err(|_| broken())?;
        parts.insert(index, part.freeze());
    }
    Ok(parts)
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
