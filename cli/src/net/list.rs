//! `clovis net list`: what a process here can be on. Addresses of interfaces with their NIDs, and RDMA, or why there is none.

use std::net::Ipv4Addr;

use base::Nid;
use clap::Args;
use serde_json::{Value, json};

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

/// Why this binary cannot use RDMA.
const NOT_BUILT: &str = "this binary was built without RDMA: build with --features rdma";

/// `clovis net list`
pub fn run(args: &ListArgs) -> Result<(), Failure> {
    let interfaces = interfaces::all()?;
    if args.json {
        return output::line(&format!("{:#}", to_json(&interfaces)));
    }
    output::print(&format!("{}\nno RDMA: {NOT_BUILT}\n", tcp_table(&interfaces).render()))
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

fn to_json(interfaces: &[InterfaceAddress]) -> Value {
    let tcp: Vec<Value> = interfaces
        .iter()
        .map(|one| {
            json!({
                "nid": nid(one.address), "interface": one.interface, "address": one.address.to_string(),
                "prefix_bits": one.prefix_bits, "state": one.state, "mtu_bytes": one.mtu_bytes,
            })
        })
        .collect();
    json!({ "tcp": tcp, "rdma": { "devices": [], "why_none": NOT_BUILT } })
}
