//! Transfers that this machine drives: pulls from and pushes into a requester's exposed memory.

use base::Instant;
use base::units::wide;
use runtime::{Buffer, SharedBuffer};
use smallvec::SmallVec;

use crate::connection::ConnectionId;
use crate::descriptor::BulkDescriptor;
use crate::frame::FrameBody;

/// Where a pulled segment's bytes are.
pub(crate) enum PullContent {
    /// No buffer yet.
    Empty,
    /// Received into.
    Own(Buffer),
    /// The requester's own buffer (one process: no copy).
    Taken(SharedBuffer),
}

pub(crate) struct PullSegment {
    pub(crate) bytes: u32,
    pub(crate) received: u32,
    pub(crate) content: PullContent,
}

pub(crate) enum TransferKind {
    Pull { segments: SmallVec<[PullSegment; 2]>, missing_bytes: u64, request: FrameBody, is_requested: bool },
    Push,
}

pub(crate) struct Transfer {
    pub(crate) connection: ConnectionId,
    pub(crate) deadline: Instant,
    pub(crate) kind: TransferKind,
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
        Transfer { connection, deadline, kind }
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
                PullContent::Empty => None,
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
