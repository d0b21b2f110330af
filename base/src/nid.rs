//! Network ids: `address@net`, LNet's naming (`10.0.0.5@tcp`, `192.168.0.5@o2ib1`, `0@lo`, `3@sim`).
//!
//! Source: NET.md section 1.1.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Kind of network, and so the backend that carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[non_exhaustive]
pub enum NetKind {
    /// One process: no wire.
    Lo,
    /// TCP over IPv4.
    Tcp,
    /// Verbs: InfiniBand or RoCE. LNet's word, kept.
    O2ib,
    /// The seeded simulation.
    Sim,
}

impl NetKind {
    const fn word(self) -> &'static str {
        match self {
            NetKind::Lo => "lo",
            NetKind::Tcp => "tcp",
            NetKind::O2ib => "o2ib",
            NetKind::Sim => "sim",
        }
    }

    /// The number that stands for it in messages and on disk (docs/wire.md#hello).
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            NetKind::Lo => 1,
            NetKind::Tcp => 2,
            NetKind::O2ib => 3,
            NetKind::Sim => 4,
        }
    }

    /// The kind with this number. `None`: no kind has it.
    #[must_use]
    pub fn from_code(code: u16) -> Option<NetKind> {
        [NetKind::Lo, NetKind::Tcp, NetKind::O2ib, NetKind::Sim].into_iter().find(|kind| kind.code() == code)
    }
}

/// One network: kind and number (`tcp` is `tcp0`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Net {
    /// Kind of network.
    pub kind: NetKind,
    /// Which of several networks of the kind.
    pub number: u16,
}

/// Network id: a 32-bit address on a network. For `tcp` and `o2ib` the address is IPv4; for `lo` and `sim` a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Nid {
    /// The network.
    pub net: Net,
    /// Address, as a number in host order.
    pub address: u32,
}

impl Nid {
    /// A nid on net number 0 of `kind`.
    #[must_use]
    pub const fn new(kind: NetKind, address: u32) -> Nid {
        Nid { net: Net { kind, number: 0 }, address }
    }

    /// `0@lo`, the one nid of a single process.
    pub const LOOPBACK: Nid = Nid::new(NetKind::Lo, 0);

    /// The nid of an IPv4 address on `tcp`.
    #[must_use]
    pub fn tcp(address: Ipv4Addr) -> Nid {
        Nid::new(NetKind::Tcp, u32::from(address))
    }

    /// The address as IPv4, for nets that have one.
    #[must_use]
    pub fn ipv4(self) -> Option<Ipv4Addr> {
        matches!(self.net.kind, NetKind::Tcp | NetKind::O2ib).then(|| Ipv4Addr::from(self.address))
    }
}

impl Serialize for Nid {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Nid {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Nid, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.word())?;
        if self.number == 0 { Ok(()) } else { write!(f, "{}", self.number) }
    }
}

impl fmt::Display for Nid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ipv4() {
            Some(address) => write!(f, "{address}@{}", self.net),
            None => write!(f, "{}@{}", self.address, self.net),
        }
    }
}

/// Why a text is not a nid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseNidError {
    /// No `@`.
    #[error("{text:?} is not a nid: write ADDRESS@NET, as in 127.0.0.1@tcp or 0@lo")]
    Shape {
        /// The text as given.
        text: String,
    },
    /// The part after `@` is no known net.
    #[error(
        "{net:?} in {text:?} is not a net: known are lo, tcp, o2ib and sim, each with an optional number"
    )]
    UnknownNet {
        /// The text as given.
        text: String,
        /// The net as given.
        net: String,
    },
    /// The address does not fit the net.
    #[error(
        "{address:?} in {text:?} is not an address of its net: tcp and o2ib take IPv4, lo and sim a number"
    )]
    Address {
        /// The text as given.
        text: String,
        /// The address as given.
        address: String,
    },
}

impl FromStr for Net {
    type Err = ();
    fn from_str(text: &str) -> Result<Net, ()> {
        let kinds = [NetKind::O2ib, NetKind::Tcp, NetKind::Lo, NetKind::Sim];
        for kind in kinds {
            let Some(digits) = text.strip_prefix(kind.word()) else { continue };
            if digits.is_empty() {
                return Ok(Net { kind, number: 0 });
            }
            if digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return digits.parse().map(|number| Net { kind, number }).map_err(drop);
            }
        }
        Err(())
    }
}

impl FromStr for Nid {
    type Err = ParseNidError;
    fn from_str(text: &str) -> Result<Nid, ParseNidError> {
        let (address, net_text) =
            text.split_once('@').ok_or_else(|| ParseNidError::Shape { text: text.to_owned() })?;
        let net: Net = net_text
            .parse()
            .map_err(|()| ParseNidError::UnknownNet { text: text.to_owned(), net: net_text.to_owned() })?;
        let parsed = match net.kind {
            NetKind::Tcp | NetKind::O2ib => address.parse::<Ipv4Addr>().ok().map(u32::from),
            NetKind::Lo | NetKind::Sim => address.parse().ok(),
        };
        match parsed {
            Some(address) => Ok(Nid { net, address }),
            None => Err(ParseNidError::Address { text: text.to_owned(), address: address.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nids_print_as_they_parse() {
        for text in ["127.0.0.1@tcp", "10.0.0.7@tcp1", "192.168.0.5@o2ib", "0@lo", "3@sim"] {
            assert_eq!(text.parse::<Nid>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn wrong_nids_say_what_is_wrong() {
        assert!(matches!("127.0.0.1".parse::<Nid>(), Err(ParseNidError::Shape { .. })));
        assert!(matches!("127.0.0.1@foo".parse::<Nid>(), Err(ParseNidError::UnknownNet { .. })));
        assert!(matches!("localhost@tcp".parse::<Nid>(), Err(ParseNidError::Address { .. })));
        assert!(matches!("1@tcp99999".parse::<Nid>(), Err(ParseNidError::UnknownNet { .. })));
    }
}
