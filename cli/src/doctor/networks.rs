//! The networks of this machine, as `clovis net list` finds them, against what the cluster needs of them.

use std::net::Ipv4Addr;

use base::{Endpoint, NetKind};
use faces::cluster_file::ClusterFile;

use super::Needs;
use super::finding::Finding;
use crate::failure::Failure;
use crate::net::interfaces::{self, InterfaceAddress};
use crate::net::list::Rdma;

const INTERFACES_WHY: &str =
    "processes listen on addresses of interfaces; one that is down is a server that nobody reaches";
const RDMA_WHY: &str = "a cluster on @o2ib moves its bytes by RDMA: without a device with an active port and an IPv4 address nothing connects";

pub fn all(needs: Needs, file: Option<&ClusterFile>) -> Result<Vec<Finding>, Failure> {
    let interfaces = interfaces::all()?;
    let mut findings = vec![addresses(&interfaces)];
    findings.extend(file.map(|file| own_endpoints(file, &interfaces)));
    findings.push(rdma(needs, &Rdma::find()?));
    Ok(findings)
}

fn addresses(interfaces: &[InterfaceAddress]) -> Finding {
    const CHECK: &str = "networks";
    let describe = |one: &InterfaceAddress| {
        format!("{} {} ({})", one.interface, one.address, one.state.as_deref().unwrap_or("state not said"))
    };
    if interfaces.is_empty() {
        let todo = "`ip address add ADDRESS/BITS dev INTERFACE`, `ip link set INTERFACE up`";
        return Finding::fail(CHECK, "no interface has an IPv4 address", INTERFACES_WHY, todo);
    }
    Finding::ok(CHECK, interfaces.iter().map(describe).collect::<Vec<_>>().join(", "), INTERFACES_WHY)
}

fn is_down(interface: &InterfaceAddress) -> bool {
    matches!(interface.state.as_deref(), Some("down" | "lowerlayerdown" | "notpresent" | "dormant"))
}

/// Which processes of the cluster belong on this machine, by their addresses, and whether these addresses can be reached.
fn own_endpoints(file: &ClusterFile, interfaces: &[InterfaceAddress]) -> Finding {
    const CHECK: &str = "addresses of the cluster";
    let servers = file.servers.iter().flat_map(|server| &server.endpoints);
    let all: Vec<Ipv4Addr> = file
        .control_members()
        .map(|(_, endpoint)| endpoint)
        .chain(servers.copied())
        .filter_map(|one| address_of(&one))
        .collect();
    let interface = |address: &Ipv4Addr| interfaces.iter().find(|one| one.address == *address);
    let here = all.iter().filter(|address| address.is_loopback() || interface(address).is_some()).count();
    let seen = format!("{here} of {} endpoints of control and servers are on this machine", all.len());
    match all.iter().filter_map(interface).find(|one| is_down(one)) {
        None => Finding::ok(CHECK, seen, INTERFACES_WHY),
        Some(one) => {
            let state = one.state.as_deref().unwrap_or_default();
            let seen = format!("{seen}; {} with {} is {state}", one.interface, one.address);
            let todo = format!("`ip link set {} up` (as root), and look at its cable", one.interface);
            Finding::fail(CHECK, seen, INTERFACES_WHY, todo)
        }
    }
}

fn address_of(endpoint: &Endpoint) -> Option<Ipv4Addr> {
    matches!(endpoint.nid.net.kind, NetKind::Tcp | NetKind::O2ib)
        .then(|| Ipv4Addr::from(endpoint.nid.address))
}

fn rdma(needs: Needs, rdma: &Rdma) -> Finding {
    const CHECK: &str = "RDMA";
    let todo = "load the adapter's driver, or soft-RoCE (`rdma link add rxe0 type rxe netdev INTERFACE`); `clovis net list` shows devices, ports and addresses \
                (docs/soft-roce.md)";
    if let Some(why) = &rdma.why_none {
        return if needs.rdma {
            Finding::fail(CHECK, format!("none: {why}"), RDMA_WHY, todo)
        } else {
            Finding::ok(CHECK, format!("none ({why}); not needed by what was looked at"), RDMA_WHY)
        };
    }
    let (mut ports, mut active) = (0, 0);
    for port in rdma.devices.iter().flat_map(|device| &device.ports) {
        ports += 1;
        active += usize::from(port.state == verbs_net::verbs_sys::PortState::Active);
    }
    let nids: Vec<String> = rdma.nids();
    let names: Vec<&str> = rdma.devices.iter().map(|device| device.name.as_str()).collect();
    let seen = format!(
        "{} ({}), {active} of {ports} ports active, NIDs: {}",
        if names.len() == 1 { "1 device".to_owned() } else { format!("{} devices", names.len()) },
        names.join(", "),
        if nids.is_empty() { "none".to_owned() } else { nids.join(", ") }
    );
    if active > 0 && !nids.is_empty() {
        Finding::ok(CHECK, seen, RDMA_WHY)
    } else if needs.rdma {
        Finding::fail(CHECK, seen, RDMA_WHY, todo)
    } else {
        Finding::warn(CHECK, seen, RDMA_WHY, todo)
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn interface(name: &str, address: [u8; 4], state: Option<&str>) -> InterfaceAddress {
        InterfaceAddress {
            interface: name.to_owned(),
            address: Ipv4Addr::from(address),
            prefix_bits: 24,
            mtu_bytes: None,
            state: state.map(str::to_owned),
        }
    }

    #[test]
    fn an_interface_that_is_down_fails_a_cluster_on_it_and_no_other() {
        let text = include_str!("../../../control/faces/src/cluster_file_example.toml");
        let file = ClusterFile::parse(text).unwrap();
        let down = interface("eth1", [10, 0, 0, 5], Some("down"));
        let all = [interface("lo", [127, 0, 0, 1], Some("unknown")), down];
        assert_eq!(addresses(&all).verdict, Verdict::Ok);
        assert_eq!(addresses(&[]).verdict, Verdict::Fail);
        let found = own_endpoints(&file, &all);
        assert!(found.verdict == Verdict::Ok && found.seen.starts_with("4 of 4 "), "{found:?}");
        let moved =
            ClusterFile::parse(&text.replace("127.0.0.1@tcp:12345:34:1", "10.0.0.5@tcp:12345:34:1")).unwrap();
        let found = own_endpoints(&moved, &all);
        assert!(found.verdict == Verdict::Fail && found.todo.unwrap().contains("eth1"), "{}", found.seen);
        assert!(own_endpoints(&moved, &[]).seen.starts_with("3 of 4 "), "another machine's");
    }

    #[test]
    fn no_rdma_is_a_failure_only_where_it_is_needed() {
        let none = Rdma { devices: Vec::new(), why_none: Some("no library".to_owned()) };
        assert_eq!(rdma(Needs { rdma: true, spdk: false }, &none).verdict, Verdict::Fail);
        let found = rdma(Needs::default(), &none);
        assert!(found.verdict == Verdict::Ok && found.seen.contains("no library"), "{found:?}");
        let bare = Rdma { devices: Vec::new(), why_none: None };
        assert_eq!(rdma(Needs { rdma: true, spdk: false }, &bare).verdict, Verdict::Fail);
    }
}
