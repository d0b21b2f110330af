//! Ping and discovery: what a machine tells of itself to whoever asks on portal 0, and learns of its peers.
//!
//! A ping is a GET from [`PORTAL_NET`](crate::portal::PORTAL_NET) with [`PING_MATCH_BITS`]; its REPLY is a [`PeerInfo`]. No I/O here.
//! Untrusted bytes become a `PeerInfo` in one step, [`PeerInfo::parse`], or a [`ParseInfoError`].
//! Bound: `NIDS_MAX` nids. Format: docs/wire.md, ping. Source of the idea: LNet's ping and its feature bits.

use base::nid::{Net, NetKind, Nid};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::limits::NIDS_MAX;

/// Match bits of a ping.
pub const PING_MATCH_BITS: u64 = 0x8000_0000_0000_0000;

bitflags::bitflags! {
    /// What a machine can do. Unknown bits are kept and mean nothing.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Features: u16 {
        /// It has more than one nid.
        const MULTI_RAIL = 1;
        /// It answers pings with its nids.
        const DISCOVERY = 2;
        /// Hardware moves its bulk.
        const REMOTE_ACCESS = 4;
        /// Reserved: it passes messages on between nets.
        const ROUTING = 0x8000;
    }
}

impl Features {
    const WORDS: [(Features, &'static str); 4] = [
        (Features::MULTI_RAIL, "multi-rail"),
        (Features::DISCOVERY, "discovery"),
        (Features::REMOTE_ACCESS, "remote-access"),
        (Features::ROUTING, "routing"),
    ];

    /// The words for the bits that are set and known.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        Features::WORDS.into_iter().filter(move |(bit, _)| self.contains(*bit)).map(|(_, word)| word)
    }
}

/// One nid of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NidStatus {
    /// The nid.
    pub nid: Nid,
    /// It works, as far as its machine knows.
    pub is_up: bool,
}

/// What a machine tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// What it can do.
    pub features: Features,
    /// Its incarnation.
    pub epoch: u64,
    /// Its nids, the primary one first.
    pub nids: Vec<NidStatus>,
}

/// Why bytes are no answer to a ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseInfoError {
    /// Not one of ours.
    #[error("the answer to a ping does not begin with its magic")]
    Magic,
    /// A later format.
    #[error("the answer to a ping has version {got}; this side knows {INFO_VERSION}")]
    Version {
        /// The version found.
        got: u16,
    },
    /// Cut short, or longer than it says.
    #[error("the answer to a ping has {got} bytes where its {nids} nids need {want}")]
    Length {
        /// Bytes there.
        got: usize,
        /// Nids that it names.
        nids: usize,
        /// Bytes that they need.
        want: usize,
    },
    /// None, or too many.
    #[error("a machine has 1 to {NIDS_MAX} nids, this answer to a ping names {got}")]
    NidCount {
        /// Nids that it names.
        got: usize,
    },
    /// A nid that cannot be.
    #[error("nid {index} in the answer to a ping is on no known net or has no known status")]
    Nid {
        /// Which.
        index: usize,
    },
    /// No incarnation has epoch 0.
    #[error("the answer to a ping names epoch 0")]
    Epoch,
}

const INFO_MAGIC: [u8; 4] = *b"ClPi";
const INFO_VERSION: u16 = 1;
const STATUS_UP: u32 = 1;
const STATUS_DOWN: u32 = 2;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHead {
    magic: [u8; 4],
    version: U16,
    features: U16,
    epoch: U64,
    nid_count: U32,
    reserved: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawNid {
    net_kind: U16,
    net_number: U16,
    address: U32,
    status: U32,
    reserved: U32,
}

/// Bytes of the longest answer.
pub(crate) const INFO_BYTES_MAX: usize = size_of::<RawHead>() + NIDS_MAX * size_of::<RawNid>();
const _: () = assert!(INFO_BYTES_MAX <= crate::limits::GET_BYTES_MAX);

impl PeerInfo {
    /// Its bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let head = RawHead {
            magic: INFO_MAGIC,
            version: INFO_VERSION.into(),
            features: self.features.bits().into(),
            epoch: self.epoch.into(),
            // At most NIDS_MAX.
            nid_count: u32::try_from(self.nids.len()).unwrap_or(u32::MAX).into(),
            reserved: 0.into(),
        };
        let mut bytes = head.as_bytes().to_vec();
        for NidStatus { nid, is_up } in &self.nids {
            let raw = RawNid {
                net_kind: nid.net.kind.code().into(),
                net_number: nid.net.number.into(),
                address: nid.address.into(),
                status: if *is_up { STATUS_UP } else { STATUS_DOWN }.into(),
                reserved: 0.into(),
            };
            bytes.extend_from_slice(raw.as_bytes());
        }
        bytes
    }

    /// Parses an answer. Reserved bytes are ignored: later versions may use them.
    ///
    /// # Errors
    /// See [`ParseInfoError`].
    pub fn parse(bytes: &[u8]) -> Result<PeerInfo, ParseInfoError> {
        let short = ParseInfoError::Length { got: bytes.len(), nids: 0, want: size_of::<RawHead>() };
        let (head, rest) = RawHead::read_from_prefix(bytes).map_err(|_| short)?;
        if head.magic != INFO_MAGIC {
            return Err(ParseInfoError::Magic);
        }
        if head.version.get() != INFO_VERSION {
            return Err(ParseInfoError::Version { got: head.version.get() });
        }
        if head.epoch.get() == 0 {
            return Err(ParseInfoError::Epoch);
        }
        let count = base::units::narrow(u64::from(head.nid_count.get()));
        if count == 0 || count > NIDS_MAX {
            return Err(ParseInfoError::NidCount { got: count });
        }
        let want = size_of::<RawHead>() + count * size_of::<RawNid>();
        if bytes.len() != want {
            return Err(ParseInfoError::Length { got: bytes.len(), nids: count, want });
        }
        let mut nids = Vec::with_capacity(count);
        for (index, chunk) in rest.chunks_exact(size_of::<RawNid>()).enumerate() {
            let raw = RawNid::read_from_bytes(chunk).map_err(|_| ParseInfoError::Nid { index })?;
            let kind = NetKind::from_code(raw.net_kind.get()).ok_or(ParseInfoError::Nid { index })?;
            let is_up = match raw.status.get() {
                STATUS_UP => true,
                STATUS_DOWN => false,
                _ => return Err(ParseInfoError::Nid { index }),
            };
            let net = Net { kind, number: raw.net_number.get() };
            nids.push(NidStatus { nid: Nid { net, address: raw.address.get() }, is_up });
        }
        let features = Features::from_bits_retain(head.features.get());
        Ok(PeerInfo { features, epoch: head.epoch.get(), nids })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> PeerInfo {
        PeerInfo {
            features: Features::MULTI_RAIL | Features::DISCOVERY,
            epoch: 0x0102_0304_0506_0708,
            nids: vec![
                NidStatus { nid: "10.0.0.7@tcp1".parse().unwrap(), is_up: true },
                NidStatus { nid: "10.0.1.7@o2ib".parse().unwrap(), is_up: false },
            ],
        }
    }

    #[test]
    fn golden_bytes_of_the_answer_to_a_ping() {
        let ours: String = sample().to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(ours, include_str!("../tests/golden/ping_v1.txt").trim());
        assert_eq!(PeerInfo::parse(&sample().to_bytes()), Ok(sample()));
        assert_eq!(sample().features.words().collect::<Vec<_>>(), ["multi-rail", "discovery"]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let bytes = sample().to_bytes();
        let with = |at: usize, value: u8| {
            let mut wrong = bytes.clone();
            wrong[at] = value;
            PeerInfo::parse(&wrong).unwrap_err()
        };
        assert_eq!(with(0, 0), ParseInfoError::Magic);
        assert_eq!(with(4, 9), ParseInfoError::Version { got: 9 });
        assert_eq!(with(16, 0), ParseInfoError::NidCount { got: 0 });
        assert_eq!(with(16, 200), ParseInfoError::NidCount { got: 200 });
        assert_eq!(with(16, 1), ParseInfoError::Length { got: 56, nids: 1, want: 40 });
        assert_eq!(with(24, 9), ParseInfoError::Nid { index: 0 });
        assert_eq!(with(48, 3), ParseInfoError::Nid { index: 1 });
        assert!(matches!(PeerInfo::parse(&bytes[..7]), Err(ParseInfoError::Length { .. })));
    }

    proptest! {
        #[test]
        fn random_answers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), good in any::<bool>()) {
            let mut bytes = bytes;
            if good && bytes.len() > 8 {
                bytes[..6].copy_from_slice(b"ClPi\x01\x00");
            }
            if let Ok(info) = PeerInfo::parse(&bytes) {
                prop_assert_eq!(PeerInfo::parse(&info.to_bytes()), Ok(info));
            }
        }
    }
}
