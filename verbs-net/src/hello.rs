//! The hello: who connects, with which incarnation, by which right. 88 bytes after a Hello or HelloAck header.
//!
//! The token is a bearer credential of the cluster: it travels in the clear, so it keeps strangers out and not those who
//! read the wire. An encrypted hello is a later step (docs/wire.md, security).

use base::nid::{Net, NetKind, Nid};
use base::{Endpoint, endpoint};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::discovery::Features;
use crate::error::PeerMisbehaved;
use crate::frame::{VERSION, VERSION_MIN};
use crate::limits::CREDIT_WINDOW_CLAIM_MAX;

/// Bytes of a hello.
pub const HELLO_BYTES: usize = 88;

/// The cluster's credential, the same on every node.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; 32]);

impl Token {
    /// From its bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Token {
        Token(bytes)
    }

    /// Compares without a branch on the bytes, so that the time taken tells nothing about them.
    #[must_use]
    pub fn matches(&self, other: &[u8; 32]) -> bool {
        let difference = self.0.iter().zip(other).fold(0, |sum, (ours, theirs)| sum | (ours ^ theirs));
        std::hint::black_box(difference) == 0
    }
}

impl From<[u8; 32]> for Token {
    fn from(bytes: [u8; 32]) -> Token {
        Token(bytes)
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// A parsed hello. The token is still to be checked.
#[derive(Clone, Debug)]
pub(crate) struct Hello {
    pub(crate) version_min: u8,
    pub(crate) version_max: u8,
    /// Messages that the sender takes before it has to return credits.
    pub(crate) window: u32,
    pub(crate) epoch: u64,
    pub(crate) config_version: u64,
    /// Who it is: the endpoint with its primary nid.
    pub(crate) endpoint: Endpoint,
    pub(crate) token: Token,
    pub(crate) features: Features,
    /// The nid that this connection is made from, or to.
    pub(crate) rail: Nid,
    /// Random, for this connection alone: the other side stamps its frames with it.
    pub(crate) nonce: u64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHello {
    version_min: u8,
    version_max: u8,
    features: U16,
    window: U32,
    epoch: U64,
    config_version: U64,
    net_kind: U16,
    net_number: U16,
    address: U32,
    pid: U32,
    portal: U16,
    tmid: U16,
    token: [u8; 32],
    rail_kind: U16,
    rail_number: U16,
    rail_address: U32,
    nonce: U64,
}

const _: () = assert!(size_of::<RawHello>() == HELLO_BYTES);

impl Hello {
    pub(crate) fn encode(&self) -> [u8; HELLO_BYTES] {
        let nid = self.endpoint.nid;
        let raw = RawHello {
            version_min: self.version_min,
            version_max: self.version_max,
            features: self.features.bits().into(),
            window: self.window.into(),
            epoch: self.epoch.into(),
            config_version: self.config_version.into(),
            net_kind: nid.net.kind.code().into(),
            net_number: nid.net.number.into(),
            address: nid.address.into(),
            pid: self.endpoint.pid.into(),
            portal: self.endpoint.portal.into(),
            tmid: self.endpoint.tmid.into(),
            token: self.token.0,
            rail_kind: self.rail.net.kind.code().into(),
            rail_number: self.rail.net.number.into(),
            rail_address: self.rail.address.into(),
            nonce: self.nonce.into(),
        };
        zerocopy::transmute!(raw)
    }

    /// Parses shape and ranges. Unknown feature bits are kept: they mean something to later versions.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Hello, PeerMisbehaved> {
        let bad = |what| PeerMisbehaved::BadHello { what };
        let raw = RawHello::read_from_bytes(bytes).map_err(|_| bad("length"))?;
        if raw.version_min == 0 || raw.version_min > raw.version_max {
            return Err(bad("version range"));
        }
        let window = raw.window.get();
        if window == 0 || window > CREDIT_WINDOW_CLAIM_MAX {
            return Err(bad("credit window"));
        }
        if raw.epoch.get() == 0 {
            return Err(bad("epoch 0"));
        }
        let kind = NetKind::from_code(raw.net_kind.get()).ok_or(bad("net"))?;
        if raw.portal.get() >= endpoint::PORTALS || raw.tmid.get() > endpoint::TMID_MAX {
            return Err(bad("endpoint"));
        }
        let nid = Nid { net: Net { kind, number: raw.net_number.get() }, address: raw.address.get() };
        let rail_kind = NetKind::from_code(raw.rail_kind.get()).ok_or(bad("net of the rail"))?;
        let rail_net = Net { kind: rail_kind, number: raw.rail_number.get() };
        Ok(Hello {
            version_min: raw.version_min,
            version_max: raw.version_max,
            window,
            epoch: raw.epoch.get(),
            config_version: raw.config_version.get(),
            endpoint: Endpoint { nid, pid: raw.pid.get(), portal: raw.portal.get(), tmid: raw.tmid.get() },
            token: Token(raw.token),
            features: Features::from_bits_retain(raw.features.get()),
            rail: Nid { net: rail_net, address: raw.rail_address.get() },
            nonce: raw.nonce.get(),
        })
    }

    /// The version both sides speak: the lower of the two newest, if neither is too old for the other.
    pub(crate) fn common_version(&self) -> Option<u8> {
        let version = VERSION.min(self.version_max);
        (version >= VERSION_MIN && version >= self.version_min).then_some(version)
    }

    pub(crate) fn token_bytes(&self) -> &[u8; 32] {
        &self.token.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Hello {
        Hello {
            version_min: 1,
            version_max: 1,
            window: 32,
            epoch: 0x0102_0304_0506_0708,
            config_version: 5,
            endpoint: "10.0.0.7@tcp1:12345:34:7".parse().unwrap(),
            token: Token::new(std::array::from_fn(|index| u8::try_from(index).unwrap() | 0x80)),
            features: Features::MULTI_RAIL | Features::DISCOVERY,
            rail: "10.0.1.7@tcp1".parse().unwrap(),
            nonce: 0x6162_6364_6566_6768,
        }
    }

    #[test]
    fn golden_bytes_of_the_hello() {
        let ours: String = sample().encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(ours, include_str!("../tests/golden/hello_v1.txt").trim());
    }

    #[test]
    fn hello_parses_back_and_ranges_are_checked() {
        let bytes = sample().encode();
        let parsed = Hello::parse(&bytes).unwrap();
        assert_eq!(parsed.encode(), bytes);
        assert!(Hello::parse(&bytes[..80]).is_err());
        for (at, value) in [(0, 0), (0, 2), (4, 0), (24, 9), (36, 64), (39, 0x10), (72, 0)] {
            let mut wrong = bytes;
            wrong[at] = value;
            assert!(Hello::parse(&wrong).is_err(), "byte {at} = {value}");
        }
    }

    #[test]
    fn versions_meet_or_do_not() {
        let with = |version_min, version_max| Hello { version_min, version_max, ..sample() }.common_version();
        assert_eq!(with(1, 1), Some(1));
        assert_eq!(with(1, 9), Some(1));
        assert_eq!(with(2, 9), None);
    }

    #[test]
    fn token_debug_hides_it_and_each_byte_counts() {
        let token = Token::new([7; 32]);
        assert_eq!(format!("{token:?}"), "Token(..)");
        assert!(token.matches(&[7; 32]));
        for index in 0..32 {
            let mut other = [7; 32];
            other[index] ^= 0x10;
            assert!(!token.matches(&other));
        }
    }

    proptest! {
        #[test]
        fn random_hellos_never_panic(bytes in proptest::collection::vec(any::<u8>(), HELLO_BYTES)) {
            let _ = Hello::parse(&bytes);
        }
    }
}
