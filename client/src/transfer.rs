//! Long transfers: whole objects in and out with a window of pieces, so that reading, encoding and sending overlap.
//!
//! Bounds: [`limits::PIECES_IN_FLIGHT`] pieces of [`limits::PIECE_BYTES`] (rounded to groups), and the client's memory permits.
//! **Invariant**: a piece's memory (its bytes and their parity) is taken as one permit before its first buffer.

use std::future::Future;
use std::io;

use base::ByteExtent;
use base::limits::BUFFER_BYTES_MAX;
use base::units::{BLOCK_BYTES, narrow, wide};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use runtime::sync::Permit;
use runtime::{Buffer, SharedBuffer};

use crate::error::ClientError;
use crate::geometry::OBJECT_BYTES_MAX;
use crate::limits;
use crate::object::Object;
use crate::replacement::Replacement;

/// Bytes of one piece and of one buffer of it, for groups of `group_bytes` in units of `unit_bytes`.
///
/// A piece is whole groups; a buffer is whole units, so that no unit straddles buffers.
fn piece_shape(group_bytes: u64, unit_bytes: u64) -> (u64, u64) {
    let groups = (limits::PIECE_BYTES / group_bytes).max(1);
    (groups * group_bytes, (BUFFER_BYTES_MAX / unit_bytes).max(1) * unit_bytes)
}

struct Piece {
    extent: ByteExtent,
    parts: Vec<SharedBuffer>,
    memory: Permit,
}

/// Sends everything that `source` gives into `replacement`; returns the bytes. Commit is the caller's.
///
/// `source(offset, buffer)`: fills the buffer from `offset` on and gives it back, shorter only at the end of the source (`resize`). Called in
/// order, one call at a time; what it reads goes out without another copy. `progress(bytes)`: after each piece, with the bytes durable so far.
pub(crate) async fn upload<Source, Filled>(
    replacement: &Replacement,
    source: Source,
    mut progress: impl FnMut(u64),
) -> Result<u64, ClientError>
where
    Source: FnMut(u64, Buffer) -> Filled,
    Filled: Future<Output = io::Result<Buffer>>,
{
    let object = replacement.object();
    let pieces = stream::unfold(Some((0u64, source)), async |state| {
        let (offset, mut source) = state?;
        match read_piece(replacement, offset, &mut source).await {
            Ok((piece, at_end)) => {
                let next = piece.extent.end();
                let state = (!at_end).then_some((next, source));
                Some((Ok(piece), state))
            }
            Err(error) => Some((Err(error), None)),
        }
    });
    let written = pieces
        .map_ok(async |piece: Piece| {
            let _memory = piece.memory;
            replacement.write_piece(piece.extent, piece.parts, false).await.map(|()| piece.extent.count)
        })
        .try_buffer_unordered(limits::PIECES_IN_FLIGHT);
    let mut written = std::pin::pin!(written);
    let mut bytes = 0;
    while let Some(count) = written.try_next().await? {
        bytes += count;
        progress(bytes);
        object.store().refresh().await;
    }
    Ok(bytes)
}

async fn read_piece<Source, Filled>(
    replacement: &Replacement,
    offset: u64,
    source: &mut Source,
) -> Result<(Piece, bool), ClientError>
where
    Source: FnMut(u64, Buffer) -> Filled,
    Filled: Future<Output = io::Result<Buffer>>,
{
    let stat = replacement.object().stat();
    let store = replacement.object().store();
    let (piece_bytes, buffer_bytes) = piece_shape(replacement.group_bytes(), u64::from(stat.unit_bytes));
    if offset + piece_bytes > OBJECT_BYTES_MAX {
        let extent = ByteExtent { start: offset, count: piece_bytes };
        return Err(ClientError::TooLong { extent, bytes_max: piece_bytes, object_max: OBJECT_BYTES_MAX });
    }
    let coded = piece_bytes / u64::from(stat.width.data()) * u64::from(stat.width.coded());
    let memory = store.memory(coded).await;
    let mut parts = Vec::new();
    let mut count = 0;
    let mut at_end = false;
    while count < piece_bytes && !at_end {
        let wanted = narrow(buffer_bytes.min(piece_bytes - count));
        let buffer = store.locality.arena().alloc(wanted).await;
        let doing = "reading the source";
        let filled = source(offset + count, buffer).await.map_err(|error| ClientError::Local {
            doing,
            offset: offset + count,
            reason: error.to_string(),
        })?;
        at_end = filled.len() < wanted;
        count += wide(filled.len());
        if !filled.is_empty() {
            parts.push(filled.freeze());
        }
    }
    Ok((Piece { extent: ByteExtent { start: offset, count }, parts, memory }, at_end))
}

/// Reads `extent` of an object (cut at its size) and hands it to `sink(offset, bytes)` in order; returns the bytes. All of them are of
/// one generation. Errors: [`ClientError::Replaced`] if the object was replaced meanwhile and its old bytes are gone.
pub(crate) async fn download<Sink, Taken>(
    object: &Object,
    extent: ByteExtent,
    mut sink: Sink,
    mut progress: impl FnMut(u64),
) -> Result<u64, ClientError>
where
    Sink: FnMut(u64, SharedBuffer) -> Taken,
    Taken: Future<Output = io::Result<()>>,
{
    let stat = object.stat();
    let store = object.store();
    let (piece_bytes, _) = piece_shape(object.group_bytes(), u64::from(stat.unit_bytes));
    let end = extent.end().min(stat.size_bytes);
    // Pieces end at groups, so that no group is read twice.
    let pieces = stream::unfold(extent.start.min(end), async |start| {
        if start >= end {
            return None;
        }
        let next = end.min((start / piece_bytes + 1) * piece_bytes);
        // Taken here, in order: a later piece never keeps an earlier one from its memory.
        let memory = store.memory(next - start + BLOCK_BYTES).await;
        Some(((ByteExtent { start, count: next - start }, memory), next))
    });
    let read = pieces
        .map(async |(piece, memory)| {
            store.refresh().await;
            let parts = object.read_unbounded(piece).await?;
            // The size and the earlier pieces are the old generation's: these bytes would not go with them.
            if object.stat().generation != stat.generation {
                return Err(ClientError::Replaced { object: object.id() });
            }
            Ok((piece, parts, memory))
        })
        .buffered(limits::PIECES_IN_FLIGHT);
    let mut read = std::pin::pin!(read);
    let mut bytes = 0;
    while let Some((piece, parts, memory)) = read.try_next().await? {
        let mut offset = piece.start;
        for part in parts {
            let count = wide(part.len());
            sink(offset, part).await.map_err(|error| ClientError::Local {
                doing: "writing the copy",
                offset,
                reason: error.to_string(),
            })?;
            offset += count;
        }
        drop(memory);
        bytes += offset - piece.start;
        progress(bytes);
        if offset < piece.end() {
            break; // the object became shorter meanwhile
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_whole_groups_and_buffers_whole_units() {
        for (units, unit_bytes) in
            [(4u64, 65536u64), (3, 65536), (8, 4096), (1, 1 << 20), (7, 12288), (250, 1 << 20)]
        {
            let (piece, buffer) = piece_shape(units * unit_bytes, unit_bytes);
            assert!(piece.is_multiple_of(units * unit_bytes) && buffer.is_multiple_of(unit_bytes));
            assert!(buffer <= BUFFER_BYTES_MAX && piece <= limits::PIECE_BYTES.max(units * unit_bytes));
        }
        assert_eq!(piece_shape(4 << 16, 1 << 16), (4 << 20, 1 << 20));
    }
}
