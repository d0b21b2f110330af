//! IPv4 addresses of this machine's interfaces, asked of the kernel by netlink; what else is known of an interface comes from `/sys/class/net`.
//!
//! Source: rtnetlink(7), netlink(7). Answers are parsed like any input: a short or odd one ends the list, never the program.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

use crate::failure::Failure;

/// One address of one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// Name, as in `ip link`.
    pub interface: String,
    /// The address.
    pub address: Ipv4Addr,
    /// Length of its network's prefix in bits.
    pub prefix_bits: u8,
    /// Largest packet in bytes, where the kernel says.
    pub mtu_bytes: Option<u32>,
    /// `up`, `down`, `unknown` and the like, where the kernel says.
    pub state: Option<String>,
}

const NLMSG_DONE: u16 = 3;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_LABEL: u16 = 3;
const AF_INET: u8 = 2;
/// `struct nlmsghdr` and `struct ifaddrmsg`.
const HEAD_BYTES: usize = 16;
const ADDRESS_HEAD_BYTES: usize = 8;
/// One answer of the kernel at most, as netlink(7) advises.
const ANSWER_BYTES: usize = 32 * 1024;

/// Every IPv4 address, in the kernel's order. Errors: no netlink here.
pub fn all() -> Result<Vec<InterfaceAddress>, Failure> {
    let mut found = addresses().map_err(Failure::while_doing("asking the kernel for its addresses"))?;
    for one in &mut found {
        let folder = Path::new("/sys/class/net").join(&one.interface);
        let read = |name: &str| fs::read_to_string(folder.join(name)).ok().map(|text| text.trim().to_owned());
        one.mtu_bytes = read("mtu").and_then(|text| text.parse().ok());
        one.state = read("operstate");
    }
    Ok(found)
}

fn addresses() -> io::Result<Vec<InterfaceAddress>> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let mut request = Vec::with_capacity(HEAD_BYTES + ADDRESS_HEAD_BYTES);
    let length = u32::try_from(HEAD_BYTES + ADDRESS_HEAD_BYTES).unwrap_or_default();
    request.extend_from_slice(&length.to_ne_bytes());
    request.extend_from_slice(&RTM_GETADDR.to_ne_bytes());
    request.extend_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    request.extend_from_slice(&[0; 8]); // sequence, port
    request.extend_from_slice(&[AF_INET, 0, 0, 0, 0, 0, 0, 0]);
    sendto(&socket, &request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut found = Vec::new();
    let mut answer = vec![0; ANSWER_BYTES];
    loop {
        let (_, bytes) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
        let end = answer.get(..bytes).unwrap_or_default();
        if bytes == 0 || parse_answer(end, &mut found) {
            return Ok(found);
        }
    }
}

/// Reads one answer. True: it was the last, or one that this does not understand.
fn parse_answer(mut bytes: &[u8], found: &mut Vec<InterfaceAddress>) -> bool {
    while let Some((head, _)) = bytes.split_first_chunk::<HEAD_BYTES>() {
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]);
        let kind = u16::from_ne_bytes([head[4], head[5]]);
        let Some(message) = usize::try_from(length).ok().and_then(|length| bytes.get(HEAD_BYTES..length))
        else {
            return true;
        };
        match kind {
            RTM_NEWADDR => found.extend(parse_address(message)),
            NLMSG_DONE => return true,
            // An error, or what was not asked for.
            _ => return true,
        }
        let next = (HEAD_BYTES + message.len()).next_multiple_of(4);
        bytes = bytes.get(next..).unwrap_or_default();
    }
    false
}

fn parse_address(message: &[u8]) -> Option<InterfaceAddress> {
    let (head, mut attributes) = message.split_first_chunk::<ADDRESS_HEAD_BYTES>()?;
    let (family, prefix_bits) = (head[0], head[1]);
    if family != AF_INET {
        return None;
    }
    let (mut local, mut remote, mut interface) = (None, None, None);
    while let Some((head, _)) = attributes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]);
        let Some(value) = attributes.get(4..length) else { break };
        let address = || value.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets));
        match kind {
            IFA_LOCAL => local = address(),
            IFA_ADDRESS => remote = address(),
            // `eth0`, or `eth0:1` for an alias: the interface is what stands before the colon.
            IFA_LABEL => {
                let text = String::from_utf8_lossy(value);
                interface = text.trim_end_matches('\0').split(':').next().map(str::to_owned);
            }
            _ => {}
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    // On a link from point to point, IFA_ADDRESS is the other end.
    Some(InterfaceAddress {
        interface: interface?,
        address: local.or(remote)?,
        prefix_bits,
        mtu_bytes: None,
        state: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_among_them() {
        let all = all().unwrap();
        let loopback = all.iter().find(|one| one.address == Ipv4Addr::LOCALHOST).unwrap();
        assert_eq!((loopback.interface.as_str(), loopback.prefix_bits), ("lo", 8));
        assert!(loopback.mtu_bytes.is_some_and(|bytes| bytes >= 1500));
    }

    #[test]
    fn odd_answers_end_the_list() {
        let mut good = Vec::new();
        let message: &[u8] = &[
            2, 24, 0, 0, 1, 0, 0, 0, 8, 0, 2, 0, 10, 0, 0, 5, 9, 0, 3, 0, b'e', b't', b'h', b'0', 0, 0, 0, 0,
        ];
        good.extend_from_slice(&u32::try_from(16 + message.len()).unwrap().to_ne_bytes());
        good.extend_from_slice(&RTM_NEWADDR.to_ne_bytes());
        good.extend_from_slice(&[0; 10]);
        good.extend_from_slice(message);
        let mut found = Vec::new();
        assert!(!parse_answer(&good, &mut found), "more may follow");
        assert_eq!((found[0].interface.as_str(), found[0].address), ("eth0", Ipv4Addr::new(10, 0, 0, 5)));
        for end in 0..good.len() {
            parse_answer(&good[..end], &mut Vec::new());
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            parse_answer(&bad, &mut Vec::new());
        }
        assert!(
            parse_answer(&[4, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &mut Vec::new()),
            "shorter than its head"
        );
    }
}
