//! `clovis net list`: what a process here can be on. Addresses of interfaces with their NIDs; RDMA devices with their ports, which GID each
//! address takes and why, and what they can do; or why there is no RDMA.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use base::{NetKind, Nid};
use clap::Args;
use serde_json::{Value, json};
use verbs_net::VerbsFabric;
use verbs_net::verbs_sys::{
    DeviceInfo, GidChoice, GidKind, LinkLayer, PortInfo, PortState, RdmaError, choose_gid,
};

use super::interfaces::{self, InterfaceAddress};
use crate::failure::Failure;
use crate::output;
use crate::table::{Align, Table};

/// `clovis net list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print one JSON object instead of tables
    #[arg(long)]
    pub json: bool,
}

/// RDMA as found here, or why there is none.
pub struct Rdma {
    pub devices: Vec<DeviceInfo>,
    pub why_none: Option<String>,
}

impl Rdma {
    /// Asks for devices. A mask with an unknown word is the caller's mistake, and an error; no RDMA is an answer.
    pub fn find() -> Result<Rdma, Failure> {
        match VerbsFabric::open().and_then(|fabric| fabric.devices()) {
            Ok(devices) => Ok(Rdma { devices, why_none: None }),
            Err(error @ RdmaError::BadWord { .. }) => Err(Failure::new(error.to_string())),
            Err(error) => Ok(Rdma { devices: Vec::new(), why_none: Some(error.to_string()) }),
        }
    }

    /// The NIDs that a process can have over RDMA.
    pub fn nids(&self) -> Vec<String> {
        self.choices().into_iter().map(|(address, _)| verbs_nid(address)).collect()
    }

    /// The addresses that a process can be on over RDMA, each with the GID it takes and why. On InfiniBand GIDs have
    /// no IPv4 address: there rdma-cm finds the port from the IPoIB interface.
    fn choices(&self) -> Vec<(Ipv4Addr, GidChoice)> {
        let addresses: BTreeSet<Ipv4Addr> = self
            .devices
            .iter()
            .flat_map(|device| &device.ports)
            .flat_map(|port| &port.gids)
            .filter_map(verbs_net::verbs_sys::GidInfo::ipv4)
            .collect();
        addresses
            .into_iter()
            .filter_map(|address| Some((address, choose_gid(&self.devices, address).ok()?)))
            .collect()
    }
}

/// `clovis net list`
pub fn run(args: &ListArgs) -> Result<(), Failure> {
    let interfaces = interfaces::all()?;
    let rdma = Rdma::find()?;
    if args.json {
        return output::line(&format!("{:#}", to_json(&interfaces, &rdma)));
    }
    output::print(&format!("{}\n{}", tcp_table(&interfaces).render(), rdma_text(&rdma)))
}

fn rdma_text(rdma: &Rdma) -> String {
    if let Some(why) = &rdma.why_none {
        return format!("no RDMA: {why}\n");
    }
    let mut ports = Table::new(&[
        ("device", Align::Left),
        ("port", Align::Right),
        ("state", Align::Left),
        ("link", Align::Left),
        ("payload", Align::Right),
        ("GIDs", Align::Right),
        ("can do", Align::Left),
    ]);
    for device in &rdma.devices {
        for port in &device.ports {
            ports.row([
                device.name.clone(),
                port.number.to_string(),
                state(port),
                link(port).to_owned(),
                port.mtu_bytes.to_string(),
                port.gids.len().to_string(),
                device.capabilities.to_string(),
            ]);
        }
    }
    let mut gids = Table::new(&[
        ("NID", Align::Left),
        ("device", Align::Left),
        ("port", Align::Right),
        ("GID", Align::Right),
        ("why", Align::Left),
    ]);
    let choices = rdma.choices();
    for (address, choice) in &choices {
        gids.row([
            verbs_nid(*address),
            choice.device.clone(),
            choice.port.to_string(),
            choice.index.to_string(),
            choice.reason.clone(),
        ]);
    }
    let mut text = ports.render();
    if choices.is_empty() {
        text.push_str("\nno GID has an IPv4 address: give the interface under the device one (on InfiniBand: an IPoIB interface)\n");
    } else {
        text.push('\n');
        text.push_str(&gids.render());
    }
    text
}

fn verbs_nid(address: Ipv4Addr) -> String {
    Nid::new(NetKind::O2ib, u32::from(address)).to_string()
}

fn state(port: &PortInfo) -> String {
    match port.state {
        PortState::Active => "active".to_owned(),
        PortState::Down => "down".to_owned(),
        PortState::Other(number) => format!("state {number}"),
    }
}

const fn link(port: &PortInfo) -> &'static str {
    match port.link_layer {
        LinkLayer::InfiniBand => "InfiniBand",
        LinkLayer::Ethernet => "Ethernet",
    }
}

fn gid_kind(kind: GidKind) -> String {
    match kind {
        GidKind::InfiniBand => "infiniband".to_owned(),
        GidKind::RoceV1 => "roce-v1".to_owned(),
        GidKind::RoceV2 => "roce-v2".to_owned(),
        GidKind::Other(number) => format!("type-{number}"),
    }
}

fn nid(address: Ipv4Addr) -> String {
    Nid::tcp(address).to_string()
}

fn tcp_table(interfaces: &[InterfaceAddress]) -> Table {
    let mut table = Table::new(&[
        ("NID", Align::Left),
        ("interface", Align::Left),
        ("network", Align::Left),
        ("state", Align::Left),
        ("MTU", Align::Right),
    ]);
    for one in interfaces {
        table.row([
            nid(one.address),
            one.interface.clone(),
            format!("/{}", one.prefix_bits),
            one.state.clone().unwrap_or_default(),
            one.mtu_bytes.map(|bytes| bytes.to_string()).unwrap_or_default(),
        ]);
    }
    table
}

fn to_json(interfaces: &[InterfaceAddress], rdma: &Rdma) -> Value {
    let tcp: Vec<Value> = interfaces
        .iter()
        .map(|one| {
            json!({
                "nid": nid(one.address), "interface": one.interface, "address": one.address.to_string(),
                "prefix_bits": one.prefix_bits, "state": one.state, "mtu_bytes": one.mtu_bytes,
            })
        })
        .collect();
    let choices: Vec<Value> = rdma
        .choices()
        .into_iter()
        .map(|(address, choice)| {
            json!({
                "nid": verbs_nid(address), "device": choice.device, "port": choice.port,
                "gid_index": choice.index, "why": choice.reason,
            })
        })
        .collect();
    let devices: Vec<Value> = rdma.devices.iter().map(device_json).collect();
    json!({ "tcp": tcp, "rdma": { "devices": devices, "nids": choices, "why_none": rdma.why_none } })
}

fn device_json(device: &DeviceInfo) -> Value {
    let can = device.capabilities;
    let ports: Vec<Value> = device
        .ports
        .iter()
        .map(|port| {
            let gids: Vec<Value> = port
                .gids
                .iter()
                .map(|gid| {
                    json!({
                        "index": gid.index, "gid": Ipv6Addr::from(gid.gid).to_string(), "kind": gid_kind(gid.kind),
                        "interface": gid.interface, "address": gid.ipv4().map(|address| address.to_string()),
                    })
                })
                .collect();
            json!({
                "number": port.number, "state": state(port), "link": link(port),
                "payload_bytes": port.mtu_bytes, "gids": gids,
            })
        })
        .collect();
    json!({
        "name": device.name, "firmware": device.firmware, "vendor": device.vendor,
        "queue_pairs_max": device.queue_pairs_max, "work_requests_max": device.work_requests_max,
        "completions_max": device.completions_max, "reads_max": device.reads_max,
        "can": {
            "memory_windows": can.windows, "shared_receive_queue": can.shared_receive_queue,
            "extended_queue_pair": can.extended_queue_pair,
            "extended_completion_queue": can.extended_completion_queue,
        },
        "ports": ports,
    })
}
