//! `clovis net`: what networks there are, whether a peer answers, and how fast and how well traffic gets there.
//!
//! Needs no cluster: only [`ping`] and [`fault`] talk to daemons. Traffic itself is [`crate::traffic`]'s.
//! Start reading at [`selftest`].

mod fault;
pub mod interfaces;
pub mod list;
mod ping;
mod selftest;

use base::{Endpoint, Nid};
use clap::Subcommand;
use verbs_net::Fabric;

use crate::connection::fabric_of;
use crate::failure::Failure;

/// Portal 46, transfer machine 0: port 61440, above the ports that the kernel hands out by itself.
const SELFTEST_PORT: u16 = 61_440;

/// The words of `clovis net`.
#[derive(Debug, Subcommand)]
pub enum NetCommand {
    /// Show the networks of this machine: interfaces and their NIDs, RDMA devices, ports and GIDs
    List(list::ListArgs),
    /// Ask a process of a cluster whether it answers, and how fast
    Ping(ping::PingArgs),
    /// Lose, delay, double or damage what a process of a cluster sends, on purpose
    Fault {
        /// What to do with rules.
        #[command(subcommand)]
        command: fault::FaultCommand,
    },
    /// Move messages and bulk between two processes, and measure
    Selftest {
        /// Which side.
        #[command(subcommand)]
        role: selftest::Role,
    },
}

/// `clovis net`
pub fn run(command: &NetCommand) -> Result<(), Failure> {
    match command {
        NetCommand::List(args) => list::run(args),
        NetCommand::Ping(args) => ping::run(args),
        NetCommand::Fault { command } => fault::run(command),
        NetCommand::Selftest { role } => selftest::run(role),
    }
}

/// An endpoint, or a NID alone, which stands for the selftest's own endpoint there.
fn parse_selftest_endpoint(text: &str) -> Result<Endpoint, String> {
    if text.contains(':') {
        return text.parse().map_err(|error: base::endpoint::ParseEndpointError| error.to_string());
    }
    let nid: Nid = text.parse().map_err(|error: base::nid::ParseNidError| error.to_string())?;
    Endpoint::from_port(nid, SELFTEST_PORT).ok_or_else(|| format!("{text} has no ports"))
}

/// The network of an endpoint for a process of its own; says what else there is for the others.
fn own_fabric(endpoint: Endpoint) -> Result<Fabric, Failure> {
    fabric_of(endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nid_stands_for_the_selftest_there() {
        let endpoint = parse_selftest_endpoint("10.0.0.5@tcp").unwrap();
        assert_eq!(
            (endpoint.to_string().as_str(), endpoint.port()),
            ("10.0.0.5@tcp:12345:46:0", Some(61_440))
        );
        assert_eq!(parse_selftest_endpoint("10.0.0.5@tcp:12345:46:0"), Ok(endpoint));
        assert!(parse_selftest_endpoint("10.0.0.5").unwrap_err().contains("ADDRESS@NET"));
        assert!(parse_selftest_endpoint("10.0.0.5@tcp:1").is_err());
    }
}
