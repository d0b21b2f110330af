//! Ports to listen on that nobody has: for tools and tests that name an address before anything listens there.

use std::io;
use std::net::{Ipv4Addr, TcpListener};

use base::{Endpoint, Nid};
use runtime::identity;

/// Below those that kernels give to whoever connects (Linux: from 32768 on): a free one of these is not taken in the moment between the look and the use.
const LISTENERS: std::ops::Range<u16> = 8192..32_768;

/// Listens on `address` at such a port.
///
/// # Errors
/// What the system said of the last of a thousand ports: the address is none of this host's, or all of them are taken.
pub fn bind_free(address: Ipv4Addr) -> io::Result<TcpListener> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    let mut random = fastrand::Rng::with_seed(identity::unique_u64()?);
    for port in std::iter::repeat_with(|| random.u16(LISTENERS)).take(1000) {
        match TcpListener::bind((address, port)) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// An endpoint of `nid` where nobody listened a moment ago.
///
/// # Errors
/// As [`bind_free`]; `InvalidInput` for a nid without an IPv4 address.
pub fn free_endpoint(nid: Nid) -> io::Result<Endpoint> {
    let address = nid.ipv4().ok_or(io::ErrorKind::InvalidInput)?;
    let port = bind_free(address)?.local_addr()?.port();
    Endpoint::from_port(nid, port).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
