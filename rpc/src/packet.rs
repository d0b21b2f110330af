//! A packet: several items of one sender to one peer in one message. docs/wire.md#packets has the table; the golden bytes below pin it.
//!
//! An item alone is sent as it is, so a packet holds at least two. Items keep their own checksums: a packet's header says only where each
//! ends. Nothing here allocates; [`Packet::parse`] never panics, whatever the bytes.

use std::ops::Range;

use base::units::wide;

use crate::item::HEADER_BYTES;
use crate::misbehaviour::PeerMisbehaved;

/// First bytes of every packet.
pub const MAGIC: [u8; 4] = *b"ClPk";
/// The version that this code writes and reads. Words of session control carry it (`request id`), so that each side knows whether the other
/// reads packets.
pub const VERSION: u8 = 1;
/// Bytes of a packet's header.
pub const PACKET_HEADER_BYTES: usize = 8;
/// Bytes before each item: its length.
pub const LENGTH_BYTES: usize = 4;

/// True if a message is a packet and not an item.
#[must_use]
pub fn is_packet(message: &[u8]) -> bool {
    message.starts_with(&MAGIC)
}

/// Bytes of a packet of items with `items_bytes` bytes in all.
#[must_use]
pub const fn packet_bytes(items_count: usize, items_bytes: usize) -> usize {
    PACKET_HEADER_BYTES + items_count * LENGTH_BYTES + items_bytes
}

/// Writes a packet's header.
///
/// Panics if `packet` is shorter: a bug of ours.
pub fn write_header(packet: &mut [u8], items_count: u16) {
    packet[..4].copy_from_slice(&MAGIC);
    packet[4] = VERSION;
    packet[5] = 0;
    packet[6..PACKET_HEADER_BYTES].copy_from_slice(&items_count.to_le_bytes());
}

/// Writes the length of the next item at `at`; where the item has to stand.
///
/// Panics if there is no room: a bug of ours.
pub fn write_length(packet: &mut [u8], at: usize, item_bytes: usize) -> Range<usize> {
    let length = u32::try_from(item_bytes).unwrap_or(u32::MAX); // an item is no longer than a message
    packet[at..at + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    at + LENGTH_BYTES..at + LENGTH_BYTES + item_bytes
}

/// Where the items of a packet stand: checked as a whole before the first is looked at.
#[derive(Clone, Debug)]
pub struct Packet<'a> {
    message: &'a [u8],
    at: usize,
}

impl Packet<'_> {
    /// Checks a message that [`is_packet`]. What the items say is for [`crate::item::Header::parse`].
    pub fn parse(message: &[u8]) -> Result<Packet<'_>, PeerMisbehaved> {
        let field = |name, value: u64| Err(PeerMisbehaved::Packet { name, value });
        let Some((head, _)) = message.split_first_chunk::<PACKET_HEADER_BYTES>() else {
            return Err(PeerMisbehaved::TooShort { bytes: message.len() });
        };
        if head[4] != VERSION {
            return field("version", head[4].into());
        }
        if head[5] != 0 {
            return field("flags", head[5].into());
        }
        let count = u16::from_le_bytes([head[6], head[7]]);
        if count < 2 {
            return field("count", count.into());
        }
        let packet = Packet { message, at: PACKET_HEADER_BYTES };
        let mut items = packet.clone();
        for _ in 0..count {
            if items.next().is_none() {
                return field("length of an item", wide(items.at));
            }
        }
        if items.at != message.len() {
            return field("bytes after the last item", wide(message.len() - items.at));
        }
        Ok(packet)
    }
}

impl Iterator for Packet<'_> {
    type Item = Range<usize>;

    /// Where the next item stands in the message.
    fn next(&mut self) -> Option<Range<usize>> {
        let (length, _) = self.message.get(self.at..)?.split_first_chunk::<LENGTH_BYTES>()?;
        let bytes =
            usize::try_from(u32::from_le_bytes(*length)).ok().filter(|bytes| *bytes >= HEADER_BYTES)?;
        let start = self.at + LENGTH_BYTES;
        let end = start.checked_add(bytes).filter(|end| *end <= self.message.len())?;
        self.at = end;
        Some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::item::{Header, Kind, SessionId, Xid};
    use proptest::prelude::*;

    fn packet(items: &[Vec<u8>]) -> Vec<u8> {
        let sum = items.iter().map(Vec::len).sum();
        let mut bytes = vec![0; packet_bytes(items.len(), sum)];
        write_header(&mut bytes, u16::try_from(items.len()).unwrap());
        let mut at = PACKET_HEADER_BYTES;
        for item in items {
            let range = write_length(&mut bytes, at, item.len());
            at = range.end;
            bytes[range].copy_from_slice(item);
        }
        bytes
    }

    fn cancel(xid: u64) -> Vec<u8> {
        let mut item = vec![0; HEADER_BYTES];
        Header::control(Kind::Cancel, SessionId(1), 0, Xid(xid)).seal(&mut item);
        item
    }

    #[test]
    fn golden_bytes_of_a_packet() {
        let bytes = packet(&[cancel(1), cancel(2)]);
        assert_eq!(bytes.len(), 8 + 2 * (4 + 64));
        assert_eq!(&bytes[..12], b"ClPk\x01\x00\x02\x00\x40\x00\x00\x00");
        assert_eq!((&bytes[12..76], &bytes[76..80]), (&cancel(1)[..], &[0x40, 0, 0, 0][..]));
        assert_eq!(&bytes[80..], cancel(2));
        assert!(is_packet(&bytes) && !is_packet(&cancel(1)));
        let items: Vec<_> = Packet::parse(&bytes).unwrap().collect();
        assert_eq!(items, [12..76, 80..144]);
    }

    #[test]
    fn packets_that_do_not_add_up_are_refused() {
        let good = packet(&[cancel(1), cancel(2)]);
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes
        };
        let mut longer = good.clone();
        longer.push(0);
        let cases = [
            ("version", with(4, 2)),
            ("flags", with(5, 1)),
            ("count", with(6, 1)),
            ("length of an item", with(6, 3)),
            ("length of an item", with(8, 63)),
            ("length of an item", with(11, 0xff)),
            ("length of an item", with(76, 0x41)),
            ("bytes after the last item", longer),
        ];
        for (want, bytes) in cases {
            match Packet::parse(&bytes) {
                Err(PeerMisbehaved::Packet { name, .. }) => assert_eq!(name, want),
                other => panic!("{want}: {other:?}"),
            }
        }
        assert_eq!(Packet::parse(&good[..7]).unwrap_err(), PeerMisbehaved::TooShort { bytes: 7 });
        // A packet in a packet is no item.
        let nested = packet(&[good.clone(), cancel(1)]);
        let first = Packet::parse(&nested).unwrap().next().unwrap();
        assert!(matches!(Header::parse(&nested[first]), Err(PeerMisbehaved::Magic { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic_and_items_lie_inside(tail in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend_from_slice(&tail);
            if let Ok(items) = Packet::parse(&bytes) {
                let mut end = PACKET_HEADER_BYTES;
                for item in items {
                    prop_assert!(item.start == end + LENGTH_BYTES && item.end <= bytes.len());
                    end = item.end;
                }
                prop_assert_eq!(end, bytes.len());
            }
        }

        #[test]
        fn any_lengths_never_panic(count in 0u16..5, lengths in proptest::collection::vec(60u32..80, 4)) {
            let mut bytes = vec![0; 320];
            write_header(&mut bytes, count);
            let mut at = PACKET_HEADER_BYTES;
            for length in lengths {
                if let Some(room) = bytes.get_mut(at..at + 4) {
                    room.copy_from_slice(&length.to_le_bytes());
                }
                at += 4 + usize::try_from(length).unwrap();
            }
            if let Ok(items) = Packet::parse(&bytes) {
                prop_assert_eq!(items.count(), usize::from(count));
            }
        }
    }
}
