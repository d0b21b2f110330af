//! The simulation's network cards: remote keys, windows and READ/WRITE without the other side's protocol core.
//!
//! What it plays: a SEND that carries remote segments, RDMA READ and WRITE in order with the SENDs of their link, SEND with
//! invalidation, local invalidation that completes later, keys of a pool that nothing invalidates, completions that come
//! twice or after their transfer, and queue pairs that die. What it checks: a READ or WRITE that a valid key lets through
//! finds its memory still exposed. Anything else means that the core gave memory back too early, and stops the test.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use base::Instant;
use base::units::narrow;
use runtime::{Buffer, SharedBuffer};

use crate::connection::{ConnectionId, Outgoing};
use crate::descriptor::BulkCookie;
use crate::error::{LocalError, NetError};
use crate::exposure::{BindingScope, ExposedPart, SinkPart};
use crate::frame::FrameBody;
use crate::machine::TransferId;
use crate::protocol::Protocol;
use crate::remote::{RemoteExposure, RemoteSegment, encode_exposure};

/// How the simulated cards scope the keys that they give out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimKeys {
    /// A memory window of type 2 for each segment of an exposure.
    Windows,
    /// Keys that outlive the exposure.
    Pool,
}

/// What one card says to another.
#[derive(Clone)]
pub(crate) enum Verb {
    Read { work: u64, rkey: u32, address: u64, bytes: u32 },
    ReadReply { work: u64, payload: SharedBuffer },
    Write { work: u64, rkey: u32, address: u64, payload: SharedBuffer },
    WriteDone { work: u64 },
}

impl Verb {
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Verb::ReadReply { payload, .. } | Verb::Write { payload, .. } => payload.len(),
            Verb::Read { .. } | Verb::WriteDone { .. } => 0,
        }
    }

    /// Completions: a broken card may report one twice.
    pub(crate) fn is_completion(&self) -> bool {
        matches!(self, Verb::ReadReply { .. } | Verb::WriteDone { .. })
    }
}

/// The key does not open that memory: both queue pairs go to error.
pub(crate) struct AccessError;

struct Bound {
    connection: ConnectionId,
    cookie: BulkCookie,
    segment_index: usize,
    address: u64,
    bytes: u32,
}

/// A pull of ours: its buffers are the card's until the last READ is complete.
struct ReadJob {
    connection: ConnectionId,
    transfer: u64,
    buffers: Vec<Buffer>,
    missing: usize,
}

enum Work {
    Read { job: u64, index: usize },
    Write { connection: ConnectionId, completes: Option<TransferId> },
}

/// One machine's card.
pub(crate) struct Hardware {
    keys: SimKeys,
    /// What remote keys open.
    bound: BTreeMap<u32, Bound>,
    /// Which keys those of an exposure are, as far as they are still bound: a pool's stay, so there may be many others.
    keys_of: BTreeMap<(ConnectionId, BulkCookie), Range<u32>>,
    next_rkey: u32,
    next_address: u64,
    jobs: BTreeMap<u64, ReadJob>,
    works: BTreeMap<u64, Work>,
    next_work: u64,
    /// Local invalidations that complete at the next poll.
    revoking: VecDeque<(ConnectionId, BulkCookie)>,
}

impl Hardware {
    pub(crate) fn new(keys: SimKeys) -> Hardware {
        Hardware {
            keys,
            bound: BTreeMap::new(),
            keys_of: BTreeMap::new(),
            next_rkey: 0x100,
            next_address: 1 << 40,
            jobs: BTreeMap::new(),
            works: BTreeMap::new(),
            next_work: 1,
            revoking: VecDeque::new(),
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        (!self.revoking.is_empty()).then_some(Instant::ZERO)
    }

    // ---- sending

    /// Binds what the message exposes and puts it in front; answers the key that the message invalidates at the peer.
    pub(crate) fn prepare(
        &mut self,
        protocol: &mut Protocol,
        id: ConnectionId,
        outgoing: &mut Outgoing,
    ) -> Option<u32> {
        let mut extension = Vec::new();
        for cookie in std::mem::take(&mut outgoing.exposes) {
            if let Some(exposure) = self.bind(protocol, id, cookie) {
                encode_exposure(&exposure, &mut extension);
            }
        }
        if !extension.is_empty() {
            outgoing.extend(extension);
        }
        let ended = protocol.take_remote(id, outgoing.invalidates?)?;
        match &ended.segments[..] {
            [only] if ended.are_windows => Some(only.rkey),
            _ => None,
        }
    }

    fn bind(
        &mut self,
        protocol: &mut Protocol,
        id: ConnectionId,
        cookie: BulkCookie,
    ) -> Option<RemoteExposure> {
        let view = protocol.exposure_view(cookie)?;
        let (key, access) = (view.key, view.access);
        let lengths: Vec<usize> = view
            .parts
            .iter()
            .map(|part| match part {
                ExposedPart::Source(part) => part.len(),
                ExposedPart::Sink(part) => part.len(),
            })
            .collect();
        drop(view);
        // A resend over the same connection finds the keys of the first sending.
        let keys = self.keys_of.get(&(id, cookie)).cloned().unwrap_or_default();
        let mut segments: Vec<(usize, RemoteSegment)> = self
            .bound
            .range(keys)
            .map(|(rkey, bound)| {
                let segment = RemoteSegment { address: bound.address, rkey: *rkey, bytes: bound.bytes };
                (bound.segment_index, segment)
            })
            .collect();
        if segments.is_empty() {
            let first = self.next_rkey;
            for (segment_index, length) in lengths.into_iter().enumerate() {
                // A buffer has at most 1 MiB.
                let bytes = u32::try_from(length).unwrap_or(u32::MAX);
                let (rkey, address) = (self.next_rkey, self.next_address);
                self.next_rkey += 1;
                self.next_address += u64::from(bytes) + 4096;
                self.bound.insert(rkey, Bound { connection: id, cookie, segment_index, address, bytes });
                segments.push((segment_index, RemoteSegment { address, rkey, bytes }));
            }
            self.keys_of.insert((id, cookie), first..self.next_rkey);
        }
        segments.sort_by_key(|(index, _)| *index);
        let scope = match self.keys {
            SimKeys::Windows => BindingScope::Window,
            SimKeys::Pool => BindingScope::Pool,
        };
        protocol.handle_bound(id, cookie, scope);
        Some(RemoteExposure {
            cookie,
            key,
            access,
            are_windows: self.keys == SimKeys::Windows,
            segments: segments.into_iter().map(|(_, segment)| segment).collect(),
            seals: smallvec::SmallVec::new(),
        })
    }

    fn take_work(&mut self, work: Work) -> u64 {
        self.next_work += 1;
        self.works.insert(self.next_work, work);
        self.next_work
    }

    /// A pull's request as READs.
    pub(crate) fn start_reads(&mut self, protocol: &mut Protocol, transfer: u64) -> Vec<Verb> {
        let Some(lent) = protocol.lend_pull(transfer) else { return Vec::new() };
        let segments: Option<Vec<RemoteSegment>> = (0..lent.buffers.len())
            .map(|index| protocol.remote_segment(lent.connection, lent.cookie, index))
            .collect();
        let Some(segments) = segments else {
            let error = NetError::Local(LocalError::NoRemoteSegments { cookie: lent.cookie });
            protocol.handle_transfer_failed(transfer, error);
            return Vec::new();
        };
        self.next_work += 1;
        let job = self.next_work;
        let missing = segments.len();
        let connection = lent.connection;
        self.jobs.insert(job, ReadJob { connection, transfer, buffers: lent.buffers, missing });
        let read = |(index, segment): (usize, RemoteSegment)| Verb::Read {
            work: self.take_work(Work::Read { job, index }),
            rkey: segment.rkey,
            address: segment.address,
            bytes: segment.bytes,
        };
        segments.into_iter().enumerate().map(read).collect()
    }

    /// A piece of a push as a WRITE; `None`: its segment is not known any more, and the push has failed.
    pub(crate) fn start_write(
        &mut self,
        protocol: &mut Protocol,
        connection: ConnectionId,
        body: &FrameBody,
        payload: SharedBuffer,
        completes: Option<TransferId>,
    ) -> Option<Verb> {
        let FrameBody::PushData { cookie, transfer, segment_index, offset_bytes, .. } = *body else {
            return None;
        };
        let Some(segment) = protocol.remote_segment(connection, cookie, usize::from(segment_index)) else {
            let error = NetError::Local(LocalError::NoRemoteSegments { cookie });
            protocol.handle_transfer_failed(transfer, error);
            return None;
        };
        let work = self.take_work(Work::Write { connection, completes });
        let address = segment.address + u64::from(offset_bytes);
        Some(Verb::Write { work, rkey: segment.rkey, address, payload })
    }

    // ---- receiving

    /// The memory that a key opens: `(exposure, segment, offset)`.
    fn open(
        &self,
        connection: ConnectionId,
        rkey: u32,
        address: u64,
        bytes: usize,
    ) -> Result<(BulkCookie, usize, usize), AccessError> {
        let bound = self.bound.get(&rkey).filter(|bound| bound.connection == connection);
        let bound = bound.ok_or(AccessError)?;
        let offset = narrow(address.checked_sub(bound.address).ok_or(AccessError)?);
        let fits = offset.checked_add(bytes).is_some_and(|end| end <= narrow(u64::from(bound.bytes)));
        if fits { Ok((bound.cookie, bound.segment_index, offset)) } else { Err(AccessError) }
    }

    /// What the peer's card asked for or completed; answers what goes back.
    pub(crate) fn handle(
        &mut self,
        protocol: &mut Protocol,
        connection: ConnectionId,
        verb: Verb,
    ) -> Result<Option<Verb>, AccessError> {
        match verb {
            Verb::Read { work, rkey, address, bytes } => {
                let bytes = narrow(u64::from(bytes));
                let (cookie, segment_index, offset) = self.open(connection, rkey, address, bytes)?;
                let source = protocol.hardware_source(cookie, segment_index);
                let source = source.expect("a READ found memory that was given back: retract was too early");
                Ok(Some(Verb::ReadReply { work, payload: source.slice(offset..offset + bytes) }))
            }
            Verb::Write { work, rkey, address, payload } => {
                let (cookie, segment_index, offset) = self.open(connection, rkey, address, payload.len())?;
                let sink = protocol.hardware_sink(cookie, segment_index);
                let sink = sink.expect("a WRITE found memory that was given back: retract was too early");
                let SinkPart::Own(sink) = sink else { return Err(AccessError) };
                sink[offset..offset + payload.len()].copy_from_slice(&payload);
                Ok(Some(Verb::WriteDone { work }))
            }
            Verb::ReadReply { work, payload } => {
                self.complete_read(protocol, work, &payload);
                Ok(None)
            }
            Verb::WriteDone { work } => {
                match self.works.remove(&work) {
                    Some(Work::Write { completes: Some(transfer), .. }) => protocol.handle_handed(transfer),
                    Some(_) => {}
                    None => protocol.stats.stale_dropped += 1,
                }
                Ok(None)
            }
        }
    }

    fn complete_read(&mut self, protocol: &mut Protocol, work: u64, payload: &SharedBuffer) {
        let Some(Work::Read { job: number, index }) = self.works.remove(&work) else {
            protocol.stats.stale_dropped += 1;
            return;
        };
        let Some(job) = self.jobs.get_mut(&number) else { return };
        job.buffers[index].copy_from_slice(payload);
        job.missing -= 1;
        if job.missing == 0
            && let Some(job) = self.jobs.remove(&number)
        {
            protocol.handle_read_done(job.transfer, Ok(job.buffers));
        }
    }

    /// The peer's SEND invalidated a window of ours.
    pub(crate) fn handle_invalidated(&mut self, protocol: &mut Protocol, id: ConnectionId, rkey: u32) {
        if self.bound.get(&rkey).is_some_and(|bound| bound.connection == id)
            && let Some(bound) = self.bound.remove(&rkey)
        {
            let exposure = (id, bound.cookie);
            if self.keys_of.get(&exposure).is_some_and(|keys| self.bound.range(keys.clone()).next().is_none())
            {
                self.keys_of.remove(&exposure);
            }
            protocol.handle_revoked(id, bound.cookie);
        }
    }

    /// Our own invalidation is posted; it completes at the next poll.
    pub(crate) fn revoke(&mut self, id: ConnectionId, cookie: BulkCookie) {
        self.revoking.push_back((id, cookie));
    }

    /// Completes local invalidations; answers how many.
    pub(crate) fn poll(&mut self, protocol: &mut Protocol) -> usize {
        let count = self.revoking.len();
        for (id, cookie) in std::mem::take(&mut self.revoking) {
            for rkey in self.keys_of.remove(&(id, cookie)).unwrap_or_default() {
                self.bound.remove(&rkey);
            }
            protocol.handle_revoked(id, cookie);
        }
        count
    }

    /// The queue pair is destroyed: its keys open nothing, its work requests are over and their memory is ours again.
    pub(crate) fn destroy(&mut self, id: ConnectionId) {
        self.bound.retain(|_, bound| bound.connection != id);
        self.keys_of.retain(|(connection, _), _| *connection != id);
        self.jobs.retain(|_, job| job.connection != id);
        let jobs = &self.jobs;
        self.works.retain(|_, work| match work {
            Work::Read { job, .. } => jobs.contains_key(job),
            Work::Write { connection, .. } => *connection != id,
        });
    }
}
