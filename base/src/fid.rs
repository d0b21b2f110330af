//! Identifiers. A [`Fid`] names anything in a cluster; an [`ObjectId`] is the 120-bit name a user chooses for an object.
//!
//! The top byte of a fid's container is its type ([`FidType`]), so ids of different kinds never compare equal.
//! Source: MOTR.md B22 for the type bytes; docs/glossary.md.

use std::fmt;
use std::str::FromStr;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Bits of an object id's upper half that a user may set: the top byte belongs to the type.
pub const OBJECT_HI_BITS: u32 = 56;

/// The kind of thing a fid names: the ASCII letter kept in the container's top byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum FidType {
    /// Configuration root.
    Root = b't',
    /// Profile: the set of pools a client uses.
    Profile = b'p',
    /// Pool of devices.
    Pool = b'o',
    /// Pool version: a fixed set of devices and a layout.
    PoolVersion = b'v',
    /// Node: one machine.
    Node = b'n',
    /// Process: one running daemon or client.
    Process = b'r',
    /// Service inside a process.
    Service = b's',
    /// Rack: what stands or falls with one feed of power.
    Rack = b'a',
    /// Enclosure: one box in a rack.
    Enclosure = b'e',
    /// Controller: what the disks of an enclosure hang on.
    Controller = b'c',
    /// Disk: the place that a device sits in.
    Disk = b'd',
    /// Storage device.
    Device = b'k',
    /// Component object: the part of an object that one device holds.
    Component = b'C',
    /// Object, as a user sees it.
    Object = b'G',
    /// Index, as a user sees it.
    Index = b'x',
    /// What control tells of a named lock: something to watch, nothing that is kept (docs/watch.md).
    LockNews = b'l',
    /// Where one holder of a named lock is asked: the same.
    LockHolder = b'h',
}

/// Identifier of anything in a cluster: 128 bits, the top byte gives the type.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
pub struct Fid {
    /// Type byte and upper 56 bits.
    pub container: u64,
    /// Lower 64 bits.
    pub key: u64,
}

impl Fid {
    /// A fid of `fid_type`; bits of `container` above the lower 56 are replaced by the type byte.
    #[must_use]
    pub const fn new(fid_type: FidType, container: u64, key: u64) -> Fid {
        let low = container & ((1 << OBJECT_HI_BITS) - 1);
        Fid { container: ((fid_type as u64) << OBJECT_HI_BITS) | low, key }
    }

    /// The type byte as it stands, known to [`FidType`] or not.
    #[must_use]
    pub const fn type_byte(self) -> u8 {
        (self.container >> OBJECT_HI_BITS) as u8
    }

    /// True if this fid is of `fid_type`.
    #[must_use]
    pub const fn is(self, fid_type: FidType) -> bool {
        self.type_byte() == fid_type as u8
    }

    /// The same lower 120 bits under another type: from an object to its component object, for example.
    #[must_use]
    pub const fn with_type(self, fid_type: FidType) -> Fid {
        Fid::new(fid_type, self.container, self.key)
    }

    /// The 16 bytes used as a key on disk: container then key, big endian, so that byte order is fid order.
    #[must_use]
    pub fn to_key_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.container.to_be_bytes());
        bytes[8..].copy_from_slice(&self.key.to_be_bytes());
        bytes
    }

    /// Inverse of [`Fid::to_key_bytes`].
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "each half is 64 bits wide")]
    pub fn from_key_bytes(bytes: [u8; 16]) -> Fid {
        let whole = u128::from_be_bytes(bytes);
        Fid { container: (whole >> 64) as u64, key: (whole & u128::from(u64::MAX)) as u64 }
    }
}

impl fmt::Display for Fid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}:{:#x}", self.container, self.key)
    }
}

impl fmt::Debug for Fid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{:x}:{:x}>", self.container, self.key)
    }
}

/// Why a text is not a fid or an object id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseFidError {
    /// There is no colon, or more than one.
    #[error("{text:?} is not an id: write HI:LO, two numbers in decimal or 0x hexadecimal, as in 12:34")]
    Shape {
        /// The text as given.
        text: String,
    },
    /// One half is not an unsigned 64-bit number.
    #[error("{part:?} in {text:?} is not a number from 0 to 2^64-1 (decimal, or hexadecimal after 0x)")]
    Number {
        /// The text as given.
        text: String,
        /// The half that is wrong.
        part: String,
    },
    /// The upper half of an object id needs the top byte, which belongs to the type.
    #[error("the upper half {hi:#x} of object id {text:?} is not below 2^56: object ids have 120 bits")]
    TooWide {
        /// The text as given.
        text: String,
        /// The upper half.
        hi: u64,
    },
}

fn parse_pair(text: &str) -> Result<(u64, u64), ParseFidError> {
    let shape = || ParseFidError::Shape { text: text.to_owned() };
    let (hi, lo) = text.split_once(':').ok_or_else(shape)?;
    if lo.contains(':') || hi.is_empty() || lo.is_empty() {
        return Err(shape());
    }
    let number = |part: &str| {
        let parsed = match part.strip_prefix("0x").or_else(|| part.strip_prefix("0X")) {
            Some(digits) if !digits.starts_with('+') => u64::from_str_radix(digits, 16).ok(),
            None if !part.starts_with('+') => part.parse().ok(),
            _ => None,
        };
        parsed.ok_or_else(|| ParseFidError::Number { text: text.to_owned(), part: part.to_owned() })
    };
    Ok((number(hi)?, number(lo)?))
}

impl FromStr for Fid {
    type Err = ParseFidError;
    fn from_str(text: &str) -> Result<Fid, ParseFidError> {
        let (container, key) = parse_pair(text)?;
        Ok(Fid { container, key })
    }
}

impl Serialize for Fid {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fid {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Fid, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The 120-bit name that a user gives an object: `hi` is below 2^56.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode)]
pub struct ObjectId {
    hi: u64,
    lo: u64,
}

impl ObjectId {
    /// The id `hi:lo`, or `None` if `hi` is not below 2^56.
    #[must_use]
    pub const fn new(hi: u64, lo: u64) -> Option<ObjectId> {
        if hi >> OBJECT_HI_BITS == 0 { Some(ObjectId { hi, lo }) } else { None }
    }

    /// Upper half, below 2^56.
    #[must_use]
    pub const fn hi(self) -> u64 {
        self.hi
    }

    /// Lower half.
    #[must_use]
    pub const fn lo(self) -> u64 {
        self.lo
    }

    /// The object's fid.
    #[must_use]
    pub const fn fid(self) -> Fid {
        Fid::new(FidType::Object, self.hi, self.lo)
    }

    /// The object id inside an object's fid, or `None` if the fid is of another type.
    #[must_use]
    pub const fn from_fid(fid: Fid) -> Option<ObjectId> {
        if !fid.is(FidType::Object) {
            return None;
        }
        ObjectId::new(fid.container & ((1 << OBJECT_HI_BITS) - 1), fid.key)
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.hi, self.lo)
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ObjectId {
    type Err = ParseFidError;
    fn from_str(text: &str) -> Result<ObjectId, ParseFidError> {
        let (hi, lo) = parse_pair(text)?;
        ObjectId::new(hi, lo).ok_or_else(|| ParseFidError::TooWide { text: text.to_owned(), hi })
    }
}

impl<Context> Decode<Context> for ObjectId {
    fn decode<D: bincode::de::Decoder<Context = Context>>(
        decoder: &mut D,
    ) -> Result<ObjectId, bincode::error::DecodeError> {
        let hi = u64::decode(decoder)?;
        let lo = u64::decode(decoder)?;
        ObjectId::new(hi, lo).ok_or(bincode::error::DecodeError::Other("object id above 120 bits"))
    }
}

bincode::impl_borrow_decode!(ObjectId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_ids_parse_in_both_bases_and_refuse_the_type_byte() {
        assert_eq!(
            "12:34".parse::<ObjectId>().unwrap().fid(),
            Fid { container: 0x4700_0000_0000_000c, key: 34 }
        );
        assert_eq!("0x0c:0x22".parse::<ObjectId>(), "12:34".parse());
        assert!(matches!("72057594037927936:0".parse::<ObjectId>(), Err(ParseFidError::TooWide { .. })));
        assert!(matches!("12".parse::<ObjectId>(), Err(ParseFidError::Shape { .. })));
        assert!(matches!("1:2:3".parse::<ObjectId>(), Err(ParseFidError::Shape { .. })));
        assert!(matches!("a:2".parse::<ObjectId>(), Err(ParseFidError::Number { .. })));
        assert!(matches!("-1:2".parse::<ObjectId>(), Err(ParseFidError::Number { .. })));
        assert!(matches!("+1:2".parse::<ObjectId>(), Err(ParseFidError::Number { .. })));
        assert!(matches!("1:99999999999999999999".parse::<ObjectId>(), Err(ParseFidError::Number { .. })));
    }

    #[test]
    fn key_bytes_keep_fid_order_and_round_trip() {
        let small = Fid { container: 1, key: u64::MAX };
        let large = Fid { container: 2, key: 0 };
        assert!(small < large && small.to_key_bytes() < large.to_key_bytes());
        assert_eq!(Fid::from_key_bytes(large.to_key_bytes()), large);
    }

    #[test]
    fn a_fid_prints_as_it_parses() {
        let fid = Fid { container: 0x7000_0000_0000_0001, key: 0 };
        assert_eq!(fid.to_string().parse::<Fid>(), Ok(fid));
    }
}
