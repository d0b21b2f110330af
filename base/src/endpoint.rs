//! Endpoints `nid:pid:portal:tmid`: the address of one transfer machine, as a value.
//!
//! The rule from endpoint to port (docs/wire.md#ports) is a bijection: portals 32 to 46, each with 4096 transfer machine
//! ids, are the ports 4096 to 65535. `pid` is part of the name only.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::SocketAddrV4;
use std::str::FromStr;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::nid::{Nid, ParseNidError};

/// The pid of LNet services, used where none is chosen.
pub const PID_DEFAULT: u32 = 12345;
/// Transfer machine ids have 12 bits.
pub const TMID_MAX: u16 = 4095;
/// First portal with ports.
pub const PORT_PORTAL_FIRST: u16 = 32;
/// Last portal with ports.
pub const PORT_PORTAL_LAST: u16 = 46;
/// The port of portal [`PORT_PORTAL_FIRST`], transfer machine id 0.
pub const PORT_FIRST: u16 = 4096;
/// Portals that may stand in an endpoint.
pub const PORTALS: u16 = 64;

const _: () = assert!(
    PORT_FIRST as u32
        + (PORT_PORTAL_LAST - PORT_PORTAL_FIRST) as u32 * (TMID_MAX as u32 + 1)
        + TMID_MAX as u32
        == u16::MAX as u32
);

/// Address of one transfer machine. Ordered by its fields, in their order.
#[derive(Clone, Copy, Debug, Eq, Encode, Decode)]
pub struct Endpoint {
    /// Network id.
    pub nid: Nid,
    /// Process id in LNet's sense: a name, not a Unix pid.
    pub pid: u32,
    /// Portal, below [`PORTALS`].
    pub portal: u16,
    /// Transfer machine id, at most [`TMID_MAX`].
    pub tmid: u16,
}

impl PartialEq for Endpoint {
    /// One comparison of numbers, as in its order.
    fn eq(&self, other: &Endpoint) -> bool {
        self.order_key() == other.order_key()
    }
}

impl Hash for Endpoint {
    /// Two steps of a hash and not one for each field.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(self.order_key());
    }
}

impl Ord for Endpoint {
    /// One comparison of numbers: it is a key of many maps, and field by field costs five.
    fn cmp(&self, other: &Endpoint) -> Ordering {
        self.order_key().cmp(&other.order_key())
    }
}

impl PartialOrd for Endpoint {
    fn partial_cmp(&self, other: &Endpoint) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Endpoint {
    /// All fields as one number, the first one highest.
    const fn order_key(&self) -> u128 {
        let net = (self.nid.net.kind as u128) << 16 | self.nid.net.number as u128;
        let address = net << 32 | self.nid.address as u128;
        address << 64 | (self.pid as u128) << 32 | (self.portal as u128) << 16 | self.tmid as u128
    }

    /// The endpoint on `nid` that listens on `port`, or `None` below [`PORT_FIRST`].
    #[must_use]
    pub const fn from_port(nid: Nid, port: u16) -> Option<Endpoint> {
        let Some(offset) = port.checked_sub(PORT_FIRST) else { return None };
        let portal = PORT_PORTAL_FIRST + offset / (TMID_MAX + 1);
        Some(Endpoint { nid, pid: PID_DEFAULT, portal, tmid: offset % (TMID_MAX + 1) })
    }

    /// The TCP and rdma-cm port of this endpoint, or `None` for portals outside 32 to 46.
    #[must_use]
    pub const fn port(&self) -> Option<u16> {
        if self.portal < PORT_PORTAL_FIRST || self.portal > PORT_PORTAL_LAST || self.tmid > TMID_MAX {
            return None;
        }
        Some(PORT_FIRST + (self.portal - PORT_PORTAL_FIRST) * (TMID_MAX + 1) + self.tmid)
    }

    /// The socket address to listen on or to connect to, for nets with IPv4 addresses and portals with ports.
    #[must_use]
    pub fn socket_address(&self) -> Option<SocketAddrV4> {
        Some(SocketAddrV4::new(self.nid.ipv4()?, self.port()?))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}:{}", self.nid, self.pid, self.portal, self.tmid)
    }
}

/// Why a text is not an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseEndpointError {
    /// Not four parts.
    #[error("{text:?} is not an endpoint: write NID:PID:PORTAL:TMID, as in 127.0.0.1@tcp:12345:44:301")]
    Shape {
        /// The text as given.
        text: String,
    },
    /// The nid is wrong.
    #[error(transparent)]
    Nid(#[from] ParseNidError),
    /// A number is missing or above its limit.
    #[error("{what} {part:?} in {text:?} is not a number from 0 to {max}")]
    Number {
        /// The text as given.
        text: String,
        /// Which part.
        what: &'static str,
        /// The part as given.
        part: String,
        /// Largest value allowed.
        max: u32,
    },
}

impl FromStr for Endpoint {
    type Err = ParseEndpointError;
    fn from_str(text: &str) -> Result<Endpoint, ParseEndpointError> {
        let parts: Vec<&str> = text.split(':').collect();
        let [nid, pid, portal, tmid] = parts[..] else {
            return Err(ParseEndpointError::Shape { text: text.to_owned() });
        };
        let number =
            |what, part: &str, max: u32| {
                part.parse::<u32>().ok().filter(|value| *value <= max).ok_or_else(|| {
                    ParseEndpointError::Number { text: text.to_owned(), what, part: part.to_owned(), max }
                })
            };
        let narrow = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        Ok(Endpoint {
            nid: nid.parse()?,
            pid: number("pid", pid, u32::MAX)?,
            portal: narrow(number("portal", portal, u32::from(PORTALS - 1))?),
            tmid: narrow(number("transfer machine id", tmid, u32::from(TMID_MAX))?),
        })
    }
}

impl Serialize for Endpoint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Endpoint, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nid::{Net, NetKind};

    #[test]
    fn endpoints_are_ordered_by_their_fields() {
        let kinds = [NetKind::Lo, NetKind::Tcp, NetKind::Sim];
        let mut all = Vec::new();
        for kind in kinds {
            for bits in 0..32u16 {
                let bit = |place: u16| bits >> place & 1;
                let net = Net { kind, number: bit(0) };
                let nid = Nid { net, address: u32::from(bit(1)) * u32::MAX };
                let pid = u32::from(bit(2)) << 31;
                all.push(Endpoint { nid, pid, portal: bit(3) * 63, tmid: bit(4) * TMID_MAX });
            }
        }
        let fields = |at: &Endpoint| (at.nid, at.pid, at.portal, at.tmid);
        for one in &all {
            for other in &all {
                assert_eq!(one.cmp(other), fields(one).cmp(&fields(other)), "{one} and {other}");
            }
        }
    }

    #[test]
    fn endpoints_print_as_they_parse() {
        for text in ["172.16.0.124@o2ib:12345:44:301", "127.0.0.1@tcp:12345:34:0", "0@lo:12345:34:7"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        assert!(matches!("1.2.3.4@tcp:1:2".parse::<Endpoint>(), Err(ParseEndpointError::Shape { .. })));
        assert!(matches!(
            "1.2.3.4@tcp:1:2:4096".parse::<Endpoint>(),
            Err(ParseEndpointError::Number { max: 4095, .. })
        ));
        assert!(matches!(
            "1.2.3.4@tcp:1:64:1".parse::<Endpoint>(),
            Err(ParseEndpointError::Number { max: 63, .. })
        ));
    }

    #[test]
    fn ports_and_endpoints_are_one_to_one() {
        for port in PORT_FIRST..=u16::MAX {
            let endpoint = Endpoint::from_port(Nid::tcp([127, 0, 0, 1].into()), port).unwrap();
            assert_eq!(endpoint.port(), Some(port));
        }
        assert_eq!(Endpoint::from_port(Nid::LOOPBACK, PORT_FIRST - 1), None);
        let portal_without_port = Endpoint { nid: Nid::LOOPBACK, pid: 1, portal: 47, tmid: 0 };
        assert_eq!(portal_without_port.port(), None);
    }
}
