//! Remote segments: where a requester's exposed memory is for the driving side's hardware. They travel with the message.
//!
//! A backend with remote access binds an exposure for the connection that it posts the message on, and puts what it bound in
//! front of the payload: the extension (docs/wire.md, extension). The receiving core keeps it per connection in a
//! [`RemoteTable`]; a resend over another connection binds anew, and rpc's bytes never change (docs/rfd/0006).
//!
//! On a sealed connection a source's segments are copies that only the seals beside them open, and a push is followed by the seals of what it
//! wrote ([`parse_push_seals`]).
//!
//! Untrusted bytes become a [`RemoteExposure`] in one step, [`parse_extension`].
//! **Invariant**: a table holds at most `REMOTE_EXPOSURES_MAX` exposures of `REMOTE_SEGMENTS_MAX` segments; the oldest goes first.

use base::limits::{BUFFER_BYTES_MAX, BULK_SEGMENTS_MAX};
use smallvec::SmallVec;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::descriptor::{BulkCookie, BulkDescriptor};
use crate::error::{NakReason, PeerMisbehaved};
use crate::limits::{EXPOSES_MAX, REMOTE_EXPOSURES_MAX, REMOTE_SEGMENTS_MAX};
use crate::security::{SEAL_BYTES, Seal};

/// Bytes of one exposure's head in an extension.
pub(crate) const EXPOSURE_HEAD_BYTES: usize = 24;
/// Bytes of one remote segment.
pub(crate) const SEGMENT_BYTES: usize = 16;
/// Bytes of the longest extension without seals: two exposures, each with all segments.
pub(crate) const CLEAR_EXTENSION_BYTES_MAX: usize =
    EXPOSES_MAX * (EXPOSURE_HEAD_BYTES + SEGMENT_BYTES * BULK_SEGMENTS_MAX);
/// Bytes of the longest extension: a seal for each segment.
pub(crate) const EXTENSION_BYTES_MAX: usize =
    CLEAR_EXTENSION_BYTES_MAX + EXPOSES_MAX * SEAL_BYTES * BULK_SEGMENTS_MAX;
/// Bytes for one segment in the payload of a PushSeals frame.
pub(crate) const PUSH_SEAL_BYTES: usize = 32;
/// Bytes of the longest such payload.
pub(crate) const PUSH_SEALS_BYTES_MAX: usize = PUSH_SEAL_BYTES * BULK_SEGMENTS_MAX;

/// Flag bit 0: the keys are memory windows, so the reply may invalidate them.
const FLAG_WINDOWS: u16 = 1;
/// Flag bit 1: a seal for each segment follows the segments.
const FLAG_SEALED: u16 = 2;

/// What the driving side may do with exposed memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum RemoteAccess {
    /// RDMA READ: a source.
    Read = 1,
    /// RDMA WRITE: a sink.
    Write = 2,
}

/// One piece of memory as the hardware of the other side names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RemoteSegment {
    pub(crate) address: u64,
    pub(crate) rkey: u32,
    pub(crate) bytes: u32,
}

/// One exposure of the peer, as bound for one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemoteExposure {
    pub(crate) cookie: BulkCookie,
    /// The descriptor's key: a request opens only what it names.
    pub(crate) key: u64,
    pub(crate) access: RemoteAccess,
    /// The keys are memory windows of type 2: a SEND with invalidation ends the first of them.
    pub(crate) are_windows: bool,
    pub(crate) segments: SmallVec<[RemoteSegment; 4]>,
    /// What opens the segments: as many, or none.
    pub(crate) seals: SmallVec<[Seal; 4]>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHead {
    cookie: U64,
    key: U64,
    segment_count: U16,
    access: U16,
    flags: U16,
    reserved: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSegment {
    address: U64,
    rkey: U32,
    bytes: U32,
}

const _: () = assert!(size_of::<RawHead>() == EXPOSURE_HEAD_BYTES);
const _: () = assert!(size_of::<RawSegment>() == SEGMENT_BYTES);

/// Appends one exposure to an extension.
pub(crate) fn encode_exposure(exposure: &RemoteExposure, into: &mut Vec<u8>) {
    let windows = if exposure.are_windows { FLAG_WINDOWS } else { 0 };
    let flags = windows | if exposure.seals.is_empty() { 0 } else { FLAG_SEALED };
    let head = RawHead {
        cookie: exposure.cookie.0.into(),
        key: exposure.key.into(),
        // At most BULK_SEGMENTS_MAX, as exposed.
        segment_count: u16::try_from(exposure.segments.len()).unwrap_or(u16::MAX).into(),
        access: (exposure.access as u16).into(),
        flags: flags.into(),
        reserved: 0.into(),
    };
    into.extend_from_slice(head.as_bytes());
    for segment in &exposure.segments {
        let raw = RawSegment {
            address: segment.address.into(),
            rkey: segment.rkey.into(),
            bytes: segment.bytes.into(),
        };
        into.extend_from_slice(raw.as_bytes());
    }
    for seal in &exposure.seals {
        into.extend_from_slice(&seal.encode());
    }
}

/// Parses a whole extension.
///
/// # Errors
/// `BadExtension` for anything that [`encode_exposure`] would not write.
pub(crate) fn parse_extension(
    mut bytes: &[u8],
) -> Result<SmallVec<[RemoteExposure; EXPOSES_MAX]>, PeerMisbehaved> {
    let bad = |what| PeerMisbehaved::BadExtension { what };
    let mut exposures = SmallVec::new();
    while !bytes.is_empty() {
        if exposures.len() == EXPOSES_MAX {
            return Err(bad("more exposures than a message may carry"));
        }
        let (head, rest) = RawHead::read_from_prefix(bytes).map_err(|_| bad("cut short in an exposure"))?;
        bytes = rest;
        let count = usize::from(head.segment_count.get());
        if count == 0 || count > BULK_SEGMENTS_MAX {
            return Err(bad("segment count"));
        }
        if head.reserved.get() != 0 || head.flags.get() & !(FLAG_WINDOWS | FLAG_SEALED) != 0 {
            return Err(bad("reserved bits"));
        }
        let access = match head.access.get() {
            1 => RemoteAccess::Read,
            2 => RemoteAccess::Write,
            _ => return Err(bad("access")),
        };
        let mut segments = SmallVec::with_capacity(count);
        for _ in 0..count {
            let (raw, rest) =
                RawSegment::read_from_prefix(bytes).map_err(|_| bad("cut short in a segment"))?;
            bytes = rest;
            let segment =
                RemoteSegment { address: raw.address.get(), rkey: raw.rkey.get(), bytes: raw.bytes.get() };
            if segment.bytes == 0 || u64::from(segment.bytes) > BUFFER_BYTES_MAX {
                return Err(bad("segment length"));
            }
            if segment.address.checked_add(u64::from(segment.bytes)).is_none() {
                return Err(bad("segment beyond the address space"));
            }
            segments.push(segment);
        }
        let is_sealed = head.flags.get() & FLAG_SEALED != 0;
        if is_sealed && access == RemoteAccess::Write {
            return Err(bad("a sealed sink"));
        }
        let mut seals = SmallVec::new();
        for _ in 0..if is_sealed { count } else { 0 } {
            let (seal, rest) = bytes.split_first_chunk().ok_or(bad("cut short in a seal"))?;
            bytes = rest;
            seals.push(Seal::decode(seal));
        }
        exposures.push(RemoteExposure {
            cookie: BulkCookie(head.cookie.get()),
            key: head.key.get(),
            access,
            are_windows: head.flags.get() & FLAG_WINDOWS != 0,
            segments,
            seals,
        });
    }
    Ok(exposures)
}

/// What opens one segment that was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PushSeal {
    pub(crate) segment_index: u8,
    pub(crate) seal: Seal,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPushSeal {
    seal: [u8; SEAL_BYTES],
    segment_index: u8,
    reserved: [u8; 7],
}

const _: () = assert!(size_of::<RawPushSeal>() == PUSH_SEAL_BYTES);

/// The payload of a PushSeals frame.
pub(crate) fn encode_push_seals(seals: &[PushSeal]) -> Box<[u8]> {
    let encode = |found: &PushSeal| RawPushSeal {
        seal: found.seal.encode(),
        segment_index: found.segment_index,
        reserved: [0; 7],
    };
    let raw: Vec<RawPushSeal> = seals.iter().map(encode).collect();
    raw.as_bytes().into()
}

/// Parses the payload of a PushSeals frame.
///
/// # Errors
/// `BadExtension` for anything that [`encode_push_seals`] would not write.
pub(crate) fn parse_push_seals(bytes: &[u8]) -> Result<SmallVec<[PushSeal; 4]>, PeerMisbehaved> {
    let bad = |what| PeerMisbehaved::BadExtension { what };
    let raw = <[RawPushSeal]>::ref_from_bytes(bytes).map_err(|_| bad("cut short in a seal"))?;
    if raw.is_empty() || raw.len() > BULK_SEGMENTS_MAX {
        return Err(bad("count of seals"));
    }
    raw.iter()
        .map(|raw| {
            if usize::from(raw.segment_index) >= BULK_SEGMENTS_MAX || raw.reserved != [0; 7] {
                return Err(bad("segment of a seal"));
            }
            Ok(PushSeal { segment_index: raw.segment_index, seal: Seal::decode(&raw.seal) })
        })
        .collect()
}

struct Known {
    exposure: RemoteExposure,
    /// Order of arrival.
    stamp: u64,
}

/// What one peer has exposed over one connection.
#[derive(Default)]
pub(crate) struct RemoteTable {
    /// Sorted by the cookie's slot: a new generation of a slot replaces the one before, which is dead.
    known: Vec<Known>,
    segment_count: usize,
    next_stamp: u64,
}

const fn slot_of(cookie: BulkCookie) -> u64 {
    cookie.0 & 0xffff_ffff
}

impl RemoteTable {
    fn position(&self, cookie: BulkCookie) -> Result<usize, usize> {
        self.known.binary_search_by_key(&slot_of(cookie), |known| slot_of(known.exposure.cookie))
    }

    /// Remembers; forgets the oldest if there are too many.
    pub(crate) fn insert(&mut self, exposure: RemoteExposure) {
        self.next_stamp += 1;
        let stamp = self.next_stamp;
        self.segment_count += exposure.segments.len();
        match self.position(exposure.cookie) {
            Ok(index) => {
                self.segment_count -= self.known[index].exposure.segments.len();
                self.known[index] = Known { exposure, stamp };
            }
            Err(index) => self.known.insert(index, Known { exposure, stamp }),
        }
        while self.known.len() > REMOTE_EXPOSURES_MAX || self.segment_count > REMOTE_SEGMENTS_MAX {
            let Some(oldest) = (0..self.known.len()).min_by_key(|index| self.known[*index].stamp) else {
                return;
            };
            self.segment_count -= self.known.remove(oldest).exposure.segments.len();
        }
    }

    pub(crate) fn get(&self, cookie: BulkCookie) -> Option<&RemoteExposure> {
        let found = &self.known[self.position(cookie).ok()?].exposure;
        (found.cookie == cookie).then_some(found)
    }

    /// The exposure is over for this connection: our reply invalidates it, or its request is answered.
    pub(crate) fn remove(&mut self, cookie: BulkCookie) -> Option<RemoteExposure> {
        self.get(cookie)?;
        let index = self.position(cookie).ok()?;
        let known = self.known.remove(index);
        self.segment_count -= known.exposure.segments.len();
        Some(known.exposure)
    }

    /// Checks a transfer against what the peer has bound. `Ok(false)`: nothing is known of this cookie.
    pub(crate) fn check(&self, descriptor: &BulkDescriptor, access: RemoteAccess) -> Result<bool, NakReason> {
        let Some(known) = self.get(descriptor.cookie) else { return Ok(false) };
        if known.key != descriptor.key {
            return Err(NakReason::WrongKey);
        }
        if known.access != access {
            return Err(NakReason::WrongDirection);
        }
        let lengths = known.segments.iter().map(|segment| segment.bytes);
        // The descriptor may name the first of several segments, never more than there are.
        let fits = descriptor.segments.len() <= known.segments.len()
            && descriptor.segments.iter().copied().zip(lengths).all(|(asked, bound)| asked == bound);
        if fits { Ok(true) } else { Err(NakReason::OutOfRange) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use smallvec::smallvec;

    fn exposure(cookie: u64, segments: usize) -> RemoteExposure {
        RemoteExposure {
            cookie: BulkCookie(cookie),
            key: 0x3132_3334_3536_3738,
            access: RemoteAccess::Write,
            are_windows: true,
            segments: (0..segments)
                .map(|index| RemoteSegment {
                    address: 0x7f00_0000_1000 + index as u64 * 0x10_0000,
                    rkey: 0x4142_4344,
                    bytes: 4096,
                })
                .collect(),
            seals: SmallVec::new(),
        }
    }

    fn seal(number: u64) -> Seal {
        Seal { number, tag: std::array::from_fn(|index| 0xa0 + u8::try_from(index).unwrap()) }
    }

    fn sealed(cookie: u64, segments: usize) -> RemoteExposure {
        let seals = (0..segments as u64).map(|index| seal(0x50 + index)).collect();
        RemoteExposure { access: RemoteAccess::Read, seals, ..exposure(cookie, segments) }
    }

    fn encode(exposures: &[RemoteExposure]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for exposure in exposures {
            encode_exposure(exposure, &mut bytes);
        }
        bytes
    }

    #[test]
    fn golden_bytes_of_an_extension() {
        let source = RemoteExposure { access: RemoteAccess::Read, are_windows: false, ..exposure(0x21, 1) };
        let bytes = encode(&[source, exposure(0x1_0000_0022, 2)]);
        let ours: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(ours, include_str!("../tests/golden/extension_v1.txt").trim());
    }

    #[test]
    fn golden_bytes_of_seals() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let push =
            [PushSeal { segment_index: 0, seal: seal(1) }, PushSeal { segment_index: 63, seal: seal(2) }];
        let ours = format!(
            "extension {}\npush {}\n",
            hex(&encode(&[sealed(0x21, 2), exposure(0x22, 1)])),
            hex(&encode_push_seals(&push))
        );
        assert_eq!(ours, include_str!("../tests/golden/seals_v1.txt"));
    }

    #[test]
    fn seals_of_a_push_parse_back_and_others_are_refused() {
        let most: Vec<PushSeal> = (0..64)
            .map(|segment_index| PushSeal { segment_index, seal: seal(segment_index.into()) })
            .collect();
        for count in [1, 3, 64] {
            let bytes = encode_push_seals(&most[..count]);
            assert_eq!(&parse_push_seals(&bytes).unwrap()[..], &most[..count]);
            assert!(bytes.len() <= PUSH_SEALS_BYTES_MAX);
            assert!(parse_push_seals(&bytes[1..]).is_err());
        }
        assert!(parse_push_seals(&[]).is_err());
        let too_many = [&encode_push_seals(&most)[..], &encode_push_seals(&most[..1])].concat();
        assert!(parse_push_seals(&too_many).is_err());
        for (at, value) in [(24, 64), (25, 1), (31, 1)] {
            let mut wrong = encode_push_seals(&most[..1]);
            wrong[at] = value;
            assert!(parse_push_seals(&wrong).is_err(), "{at}");
        }
    }

    #[test]
    fn extensions_parse_back_and_every_cut_is_refused() {
        let two_sealed = [sealed(0x21, BULK_SEGMENTS_MAX), sealed(0x22, BULK_SEGMENTS_MAX)];
        assert_eq!(encode(&two_sealed).len(), EXTENSION_BYTES_MAX);
        assert_eq!(&parse_extension(&encode(&two_sealed)).unwrap()[..], &two_sealed);
        let both = [sealed(0x21, 3), exposure(0x22, BULK_SEGMENTS_MAX)];
        let bytes = encode(&both);
        assert!(bytes.len() <= EXTENSION_BYTES_MAX);
        assert_eq!(&parse_extension(&bytes).unwrap()[..], &both);
        let first = EXPOSURE_HEAD_BYTES + 3 * (SEGMENT_BYTES + SEAL_BYTES);
        for cut in (1..bytes.len()).filter(|cut| *cut != first) {
            let refused = parse_extension(&bytes[..cut]);
            assert!(matches!(refused, Err(PeerMisbehaved::BadExtension { .. })), "{cut}");
        }
        let three = encode(&[exposure(1, 1), exposure(2, 1), exposure(3, 1)]);
        assert!(parse_extension(&three).is_err());
    }

    #[test]
    fn values_that_nobody_of_ours_writes_are_refused() {
        let good = encode(&[exposure(0x21, 1)]);
        // (offset, bytes): segment count 0 and 65, access 0 and 3, a sealed sink, a stray flag, reserved, length 0, too long, past the end.
        let cases: [(usize, &[u8]); 10] = [
            (16, &[0, 0]),
            (16, &[65, 0]),
            (18, &[0, 0]),
            (18, &[3, 0]),
            (20, &[2, 0]),
            (20, &[4, 0]),
            (22, &[1, 0]),
            (36, &[0, 0, 0, 0]),
            (36, &[1, 0, 16, 0]),
            (24, &[0xff; 8]),
        ];
        for (at, value) in cases {
            let mut wrong = good.clone();
            wrong[at..at + value.len()].copy_from_slice(value);
            assert!(parse_extension(&wrong).is_err(), "{at} {value:?}");
        }
    }

    #[test]
    fn the_table_is_bounded_and_forgets_the_oldest() {
        let mut table = RemoteTable::default();
        for cookie in 0..REMOTE_EXPOSURES_MAX as u64 + 5 {
            table.insert(exposure(cookie, 1));
        }
        assert_eq!(table.known.len(), REMOTE_EXPOSURES_MAX);
        assert!(table.get(BulkCookie(4)).is_none() && table.get(BulkCookie(5)).is_some());
        // The same slot under its next generation replaces the dead one.
        table.insert(exposure(1 << 32 | 7, 1));
        assert!(table.get(BulkCookie(7)).is_none() && table.get(BulkCookie(1 << 32 | 7)).is_some());
        for cookie in 1000..1000 + (REMOTE_SEGMENTS_MAX / BULK_SEGMENTS_MAX) as u64 + 3 {
            table.insert(exposure(cookie, BULK_SEGMENTS_MAX));
            assert!(table.segment_count <= REMOTE_SEGMENTS_MAX);
        }
        let total: usize = table.known.iter().map(|known| known.exposure.segments.len()).sum();
        assert_eq!(total, table.segment_count);
        assert!(table.remove(BulkCookie(1002 + (REMOTE_SEGMENTS_MAX / BULK_SEGMENTS_MAX) as u64)).is_some());
    }

    #[test]
    fn a_transfer_has_to_fit_what_was_bound() {
        let mut table = RemoteTable::default();
        table.insert(exposure(0x21, 2));
        let good = BulkDescriptor {
            cookie: BulkCookie(0x21),
            key: 0x3132_3334_3536_3738,
            segments: smallvec![4096, 4096],
        };
        assert_eq!(table.check(&good, RemoteAccess::Write), Ok(true));
        assert_eq!(table.check(&good, RemoteAccess::Read), Err(NakReason::WrongDirection));
        let changed = |change: fn(&mut BulkDescriptor)| {
            let mut descriptor = good.clone();
            change(&mut descriptor);
            table.check(&descriptor, RemoteAccess::Write)
        };
        assert_eq!(changed(|found| found.key ^= 1), Err(NakReason::WrongKey));
        assert_eq!(changed(|found| found.segments[1] = 8192), Err(NakReason::OutOfRange));
        assert_eq!(changed(|found| found.segments.push(4096)), Err(NakReason::OutOfRange));
        assert_eq!(changed(|found| found.cookie.0 = 5), Ok(false));
    }

    proptest! {
        #[test]
        fn random_extensions_never_panic_and_are_canonical(bytes in proptest::collection::vec(any::<u8>(), 0..200), small in any::<bool>()) {
            let mut bytes = bytes;
            if small && bytes.len() >= EXPOSURE_HEAD_BYTES {
                // Plausible heads, so that the segments are reached.
                let (count, access, flags) = (1 + bytes[16] % 3, 1 + bytes[18] % 2, bytes[20] % 4);
                bytes[16..24].copy_from_slice(&[count, 0, access, 0, flags, 0, 0, 0]);
            }
            if let Ok(exposures) = parse_extension(&bytes) {
                prop_assert_eq!(encode(&exposures), &bytes[..]);
            }
            if let Ok(seals) = parse_push_seals(&bytes) {
                prop_assert_eq!(&encode_push_seals(&seals)[..], &bytes[..]);
            }
        }
    }
}
