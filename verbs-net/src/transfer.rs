//! Transfers that this machine drives: pulls from and pushes into a requester's exposed memory.

use base::Instant;
use base::units::wide;
use runtime::{Buffer, SharedBuffer};
use smallvec::SmallVec;

use crate::connection::ConnectionId;
use crate::descriptor::{BulkCookie, BulkDescriptor};
use crate::frame::FrameBody;

/// Where a pulled segment's bytes are.
pub(crate) enum PullContent {
    /// No buffer yet.
    Empty,
    /// Received into.
    Own(Buffer),
    /// The requester's own buffer (one process: no copy).
    Taken(SharedBuffer),
    /// With the backend, whose hardware reads into it.
    Lent,
}

/// Segments and buffers of a pull, for a backend whose hardware reads.
pub(crate) struct LentPull {
    pub(crate) connection: ConnectionId,
    pub(crate) cookie: u64,
    /// One per segment of the descriptor, of its length.
    pub(crate) buffers: Vec<Buffer>,
}

pub(crate) struct PullSegment {
    pub(crate) bytes: u32,
    pub(crate) received: u32,
    pub(crate) content: PullContent,
}

#[allow(clippy::large_enum_variant)] // one per request under way: a box for pulls would cost each write an allocation
pub(crate) enum TransferKind {
    Pull { segments: SmallVec<[PullSegment; 2]>, missing_bytes: u64, request: FrameBody, is_requested: bool },
    Push { to: BulkCookie },
}

pub(crate) struct Transfer {
    pub(crate) connection: ConnectionId,
    pub(crate) deadline: Instant,
    pub(crate) kind: TransferKind,
    /// A fault rule dropped a piece of it: it ends at its deadline.
    pub(crate) is_incomplete: bool,
}

impl Transfer {
    pub(crate) fn pull(
        connection: ConnectionId,
        from: &BulkDescriptor,
        id: u64,
        deadline: Instant,
    ) -> Transfer {
        let segments = from
            .segments
            .iter()
            .map(|bytes| PullSegment { bytes: *bytes, received: 0, content: PullContent::Empty })
            .collect();
        let request = FrameBody::PullRequest {
            cookie: from.cookie.0,
            key: from.key,
            transfer: id,
            segment_index: 0,
            // At most BULK_SEGMENTS_MAX = 64, by the descriptor's parse.
            segment_count: u8::try_from(from.segments.len()).unwrap_or(u8::MAX),
        };
        let kind =
            TransferKind::Pull { segments, missing_bytes: from.total_bytes(), request, is_requested: false };
        Transfer { connection, deadline, kind, is_incomplete: false }
    }

    pub(crate) fn is_pull(&self) -> bool {
        matches!(self.kind, TransferKind::Pull { .. })
    }

    /// True if the deadline passed while we waited for our own memory.
    pub(crate) fn waits_for_memory(&self) -> bool {
        matches!(self.kind, TransferKind::Pull { is_requested: false, .. })
    }

    /// The segment that `bytes` at `offset` continue, if they are exactly what comes next there.
    pub(crate) fn next_piece(
        &mut self,
        segment_index: usize,
        offset: u32,
        bytes: u32,
    ) -> Option<&mut PullSegment> {
        let TransferKind::Pull { segments, is_requested: true, .. } = &mut self.kind else { return None };
        let segment = segments.get_mut(segment_index)?;
        let fits = offset == segment.received && bytes <= segment.bytes - segment.received;
        fits.then_some(segment)
    }

    /// A pull's buffer to receive into.
    pub(crate) fn buffer(&mut self, segment_index: usize) -> Option<&mut Buffer> {
        let TransferKind::Pull { segments, .. } = &mut self.kind else { return None };
        match &mut segments.get_mut(segment_index)?.content {
            PullContent::Own(buffer) => Some(buffer),
            _ => None,
        }
    }

    /// Lends the buffers of a requested pull; `None` if there is nothing to lend (any more).
    pub(crate) fn lend(&mut self) -> Option<LentPull> {
        let connection = self.connection;
        let TransferKind::Pull { segments, request: FrameBody::PullRequest { cookie, .. }, .. } =
            &mut self.kind
        else {
            return None;
        };
        let cookie = *cookie;
        let mut buffers = Vec::with_capacity(segments.len());
        for segment in segments {
            match std::mem::replace(&mut segment.content, PullContent::Lent) {
                PullContent::Own(buffer) => buffers.push(buffer),
                _ => return None,
            }
        }
        Some(LentPull { connection, cookie, buffers })
    }

    /// Takes lent buffers back, filled. False: they are not what was lent.
    pub(crate) fn take_back(&mut self, buffers: Vec<Buffer>) -> bool {
        let TransferKind::Pull { segments, missing_bytes, .. } = &mut self.kind else { return false };
        let fits = segments.len() == buffers.len()
            && segments.iter().zip(&buffers).all(|(segment, buffer)| {
                wide(buffer.len()) == u64::from(segment.bytes) && matches!(segment.content, PullContent::Lent)
            });
        if fits {
            for (segment, buffer) in segments.iter_mut().zip(buffers) {
                segment.received = segment.bytes;
                segment.content = PullContent::Own(buffer);
            }
            *missing_bytes = 0;
        }
        fits
    }

    /// Counts a piece that is in place; true if it was the last.
    pub(crate) fn piece_received(&mut self, segment_index: usize, bytes: u32) -> bool {
        let TransferKind::Pull { segments, missing_bytes, .. } = &mut self.kind else { return false };
        let Some(segment) = segments.get_mut(segment_index) else { return false };
        segment.received += bytes;
        *missing_bytes -= u64::from(bytes);
        *missing_bytes == 0
    }

    /// What a completed transfer gives to its caller.
    pub(crate) fn into_parts(self) -> Vec<SharedBuffer> {
        let TransferKind::Pull { segments, .. } = self.kind else { return Vec::new() };
        segments
            .into_iter()
            .filter_map(|segment| match segment.content {
                PullContent::Own(buffer) => Some(buffer.freeze()),
                PullContent::Taken(buffer) => Some(buffer),
                PullContent::Empty | PullContent::Lent => None,
            })
            .collect()
    }
}

/// Splits a segment into frames' worth: `(offset, slice)`.
pub(crate) fn pieces(part: &SharedBuffer, piece_bytes: u32) -> SmallVec<[(u32, SharedBuffer); 1]> {
    let step = base::units::narrow(u64::from(piece_bytes));
    let mut pieces = SmallVec::new();
    let mut at = 0;
    while at < part.len() {
        let end = part.len().min(at + step);
        let piece = if at == 0 && end == part.len() { part.clone() } else { part.slice(at..end) };
        // A buffer has at most 1 MiB.
        pieces.push((u32::try_from(wide(at)).unwrap_or(u32::MAX), piece));
        at = end;
    }
    pieces
}
