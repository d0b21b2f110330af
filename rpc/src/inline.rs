//! Adaptive transmission: bulk that is small enough travels in the request or reply itself, and what is larger is moved by the server.
//!
//! A transfer of its own costs the server a turn of the net (for a pull two, there and back); inline bytes cost a copy into the item, and one
//! out of it into memory of their own, as whoever gets them may hand them to a device. Below the cut-off of the net that is less. The
//! cut-offs stand in [`limits`]; `clovis bench rpc` prints what it finds. docs/wire.md#inline-bulk has the bytes.
//!
//! Pure: bytes in, places out. Nothing here allocates; [`Inline::parse`] never panics, whatever the bytes.

use std::ops::Range;

use base::NetKind;
use base::limits::{BUFFER_BYTES_MAX, BULK_SEGMENTS_MAX};
use base::units::{narrow, wide};
use smallvec::SmallVec;

use crate::limits;
use crate::misbehaviour::PeerMisbehaved;

/// Bytes before the lengths: count and first segment.
const HEAD_BYTES: usize = 4;
/// Bytes of each length.
const LENGTH_BYTES: usize = 4;

/// The most bytes of bulk that travel inline to or from a peer of this net.
#[must_use]
pub const fn cut_off(net: NetKind) -> usize {
    match net {
        NetKind::Tcp => limits::INLINE_BYTES_TCP,
        NetKind::Lo => limits::INLINE_BYTES_LO,
        NetKind::Sim => limits::INLINE_BYTES_SIM,
        // Verbs, and whatever comes.
        _ => limits::INLINE_BYTES_O2IB,
    }
}

/// Bytes that segments of these lengths take in an item. `None`: more than may travel inline, however fast that were.
#[must_use]
pub fn inline_bytes(lengths: impl IntoIterator<Item = usize>) -> Option<usize> {
    let (mut count, mut sum) = (0, 0_usize);
    for length in lengths {
        count += 1;
        sum = sum.checked_add(length)?;
    }
    let fits = count > 0 && count <= BULK_SEGMENTS_MAX && sum <= limits::INLINE_BYTES_MAX;
    fits.then_some(HEAD_BYTES + count * LENGTH_BYTES + sum)
}

/// Writes what stands before the bytes; where those of each segment have to stand, in order.
///
/// Panics if `room` is not [`inline_bytes`] long: a bug of ours.
pub fn write_head(
    room: &mut [u8],
    first_segment: u16,
    lengths: impl ExactSizeIterator<Item = usize>,
) -> SmallVec<[Range<usize>; 16]> {
    let count = lengths.len();
    room[..2].copy_from_slice(&u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes());
    room[2..HEAD_BYTES].copy_from_slice(&first_segment.to_le_bytes());
    let mut ranges = SmallVec::new();
    let mut end = HEAD_BYTES + count * LENGTH_BYTES;
    for (index, length) in lengths.enumerate() {
        let at = HEAD_BYTES + index * LENGTH_BYTES;
        let written = u32::try_from(length).unwrap_or(u32::MAX); // far below: INLINE_BYTES_MAX
        room[at..at + LENGTH_BYTES].copy_from_slice(&written.to_le_bytes());
        ranges.push(end..end + length);
        end += length;
    }
    assert_eq!(end, room.len(), "inline bytes are as long as their lengths say");
    ranges
}

/// Bulk in an item: which segments, and where their bytes stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inline {
    /// The segment of the first bytes. 0 in requests.
    pub first_segment: usize,
    /// Lengths of the segments, from that one on.
    pub lengths: SmallVec<[u32; 16]>,
    /// Where the bytes begin.
    bytes_at: usize,
}

impl Inline {
    /// Checks what stands where a source descriptor would.
    pub fn parse(bytes: &[u8]) -> Result<Inline, PeerMisbehaved> {
        let wrong = |name, value: u64| Err(PeerMisbehaved::Field { name, value });
        let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
            return wrong("inline bytes", wide(bytes.len()));
        };
        let count = usize::from(u16::from_le_bytes([head[0], head[1]]));
        let first_segment = usize::from(u16::from_le_bytes([head[2], head[3]]));
        if count == 0 || first_segment + count > BULK_SEGMENTS_MAX {
            return wrong("inline segments", wide(first_segment + count));
        }
        let Some(lengths) = rest.get(..count * LENGTH_BYTES) else {
            return wrong("inline bytes", wide(bytes.len()));
        };
        let lengths: SmallVec<[u32; 16]> = lengths
            .chunks_exact(LENGTH_BYTES)
            .map(|length| u32::from_le_bytes([length[0], length[1], length[2], length[3]]))
            .collect();
        if let Some(length) =
            lengths.iter().find(|length| **length == 0 || u64::from(**length) > BUFFER_BYTES_MAX)
        {
            return wrong("length of an inline segment", u64::from(*length));
        }
        let sum: u64 = lengths.iter().map(|length| u64::from(*length)).sum();
        let bytes_at = HEAD_BYTES + count * LENGTH_BYTES;
        if sum != wide(bytes.len() - bytes_at) {
            return wrong("sum of inline segments", sum);
        }
        Ok(Inline { first_segment, lengths, bytes_at })
    }

    /// Bytes of all segments.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.lengths.iter().map(|length| u64::from(*length)).sum()
    }

    /// Each segment with its place in the bytes that were parsed.
    pub fn places(&self) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        let mut at = self.bytes_at;
        self.lengths.iter().enumerate().map(move |(index, length)| {
            let start = at;
            at += narrow(u64::from(*length));
            (self.first_segment + index, start..at)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(first_segment: u16, segments: &[&[u8]]) -> Vec<u8> {
        let lengths = segments.iter().map(|segment| segment.len());
        let mut bytes = vec![0; inline_bytes(lengths.clone()).unwrap()];
        for (range, segment) in write_head(&mut bytes, first_segment, lengths).into_iter().zip(segments) {
            bytes[range].copy_from_slice(segment);
        }
        bytes
    }

    #[test]
    fn golden_bytes() {
        let bytes = written(3, &[b"abc", b"z"]);
        assert_eq!(bytes, b"\x02\x00\x03\x00\x03\x00\x00\x00\x01\x00\x00\x00abcz");
        let inline = Inline::parse(&bytes).unwrap();
        assert_eq!((inline.first_segment, inline.total_bytes()), (3, 4));
        let places: Vec<_> = inline.places().map(|(segment, range)| (segment, &bytes[range])).collect();
        assert_eq!(places, [(3, &b"abc"[..]), (4, &b"z"[..])]);
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let good = written(0, &[b"abc", b"z"]);
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        let mut longer = good.clone();
        longer.push(0);
        let cases = [
            ("inline bytes", good[..3].to_vec()),
            ("inline bytes", good[..11].to_vec()),
            ("inline segments", with(0, 0)),
            ("inline segments", with(0, 65)),
            ("inline segments", with(2, 63)),
            ("length of an inline segment", with(4, 0)),
            ("length of an inline segment", with(7, 1)),
            ("sum of inline segments", with(8, 2)),
            ("sum of inline segments", longer),
        ];
        for (want, bytes) in cases {
            match Inline::parse(&bytes) {
                Err(PeerMisbehaved::Field { name, .. }) => assert_eq!(name, want),
                other => panic!("{want}: {other:?}"),
            }
        }
    }

    #[test]
    fn as_many_as_fit_and_no_more() {
        assert_eq!(inline_bytes([]), None);
        assert_eq!(inline_bytes([1]), Some(9));
        assert_eq!(inline_bytes([limits::INLINE_BYTES_MAX]), Some(8 + limits::INLINE_BYTES_MAX));
        assert_eq!(inline_bytes([limits::INLINE_BYTES_MAX, 1]), None);
        assert_eq!(inline_bytes(vec![1; BULK_SEGMENTS_MAX + 1]), None);
        assert_eq!(inline_bytes([usize::MAX, 1]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic_and_places_lie_inside(
            head in proptest::collection::vec(0u8..4, 0..16), tail in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let bytes = [head, tail].concat();
            if let Ok(inline) = Inline::parse(&bytes) {
                let mut end = inline.bytes_at;
                for (_, range) in inline.places() {
                    prop_assert_eq!(range.start, end);
                    end = range.end;
                }
                prop_assert_eq!(end, bytes.len());
            }
        }
    }
}
