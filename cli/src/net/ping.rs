//! `clovis net ping`: does a process of a cluster answer, and how fast. The first line has the connection in it: dial, hello, credentials.

use std::time::Duration;

use base::{Endpoint, Nid};
use clap::Args;
use faces::cluster_file::ClusterFile;
use fops::admin::Ping;
use serde_json::json;

use crate::args::ConnectArgs;
use crate::connection::Station;
use crate::failure::Failure;
use crate::known_cluster::KnownCluster;
use crate::output;

/// `clovis net ping`
#[derive(Debug, Args)]
pub struct PingArgs {
    /// A process of the cluster: its endpoint, or a NID, which stands for every process of the cluster there
    pub target: String,
    /// Pings
    #[arg(short, long, value_name = "COUNT", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub count: u32,
    /// Milliseconds between pings
    #[arg(short, long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(0..=60_000))]
    pub interval: u64,
    /// Bytes that go there and back
    #[arg(short, long, value_name = "BYTES", default_value_t = 56, value_parser = clap::value_parser!(u32).range(0..=32_768))]
    pub size: u32,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `clovis net ping`
pub fn run(args: &PingArgs) -> Result<(), Failure> {
    let file = KnownCluster::of(&args.connect)?;
    let mut station = Station::new("ping")?;
    let mut answers = Vec::new();
    for endpoint in targets(&file, &args.target)? {
        answers.push(ping(&mut station, &file, endpoint, args)?);
    }
    if args.json {
        return output::line(&format!("{:#}", json!({ "answers": answers })));
    }
    Ok(())
}

/// The endpoint, or those of the cluster on a NID.
pub(super) fn targets(file: &ClusterFile, target: &str) -> Result<Vec<Endpoint>, Failure> {
    if target.contains(':') {
        let endpoint: Endpoint = target.parse().map_err(|error| Failure::new(format!("{error}")))?;
        return Ok(vec![endpoint]);
    }
    let nid: Nid = target.parse().map_err(|error| Failure::new(format!("{error}")))?;
    let all = file
        .control_members()
        .map(|(_, endpoint)| endpoint)
        .chain(file.servers.iter().flat_map(|server| server.endpoints.iter().copied()));
    let here: Vec<Endpoint> = all.filter(|endpoint| endpoint.nid == nid).collect();
    if here.is_empty() {
        return Err(Failure::new(format!("no process of this cluster is on {nid}: name an endpoint")));
    }
    Ok(here)
}

fn ping(
    station: &mut Station,
    file: &KnownCluster,
    to: Endpoint,
    args: &PingArgs,
) -> Result<serde_json::Value, Failure> {
    let within = Duration::from_secs(args.connect.timeout);
    let payload = vec![0x5a; usize::try_from(args.size).unwrap_or_default()];
    let mut waited_us = Vec::new();
    let mut epoch = 0;
    for number in 0..=args.count {
        let began = station.now();
        let reply = station.call(file, to, &Ping { payload: payload.clone().into() }, within)?;
        let us = (station.now() - began).as_secs_f64() * 1e6;
        if reply.payload[..] != payload[..] {
            return Err(Failure::new(format!("{to} sent other bytes back")));
        }
        epoch = reply.epoch;
        if !args.json {
            let what = if number == 0 { "with connection".to_owned() } else { format!("ping {number}") };
            output::line(&format!("{to}: {what}: {us:.0} us"))?;
        }
        waited_us.push(us);
        if number < args.count {
            station.pause(Duration::from_millis(args.interval))?;
        }
    }
    let (first, rest) = waited_us.split_first().ok_or_else(|| Failure::new("no ping was sent"))?;
    let mut sorted = rest.to_vec();
    sorted.sort_by(f64::total_cmp);
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or(*first);
    let (least, most) = (sorted.first().copied().unwrap_or(*first), sorted.last().copied().unwrap_or(*first));
    let info = station.discover(file, to, within)?;
    let features: Vec<&str> = info.features.words().collect();
    let nids = info
        .nids
        .iter()
        .map(|told| if told.is_up { told.nid.to_string() } else { format!("{} (down)", told.nid) });
    let nids: Vec<String> = nids.collect();
    if !args.json {
        output::line(&format!("{to}: features {}; nids {}", features.join(", "), nids.join(", ")))?;
        output::line(&format!(
            "{to}: {} pings, least {least:.0}, median {median:.0}, most {most:.0} us; incarnation {epoch:x}",
            rest.len()
        ))?;
    }
    Ok(json!({
        "endpoint": to.to_string(), "incarnation": format!("{epoch:x}"), "with_connection_us": first,
        "features": features, "nids": nids,
        "pings": rest.len(), "least_us": least, "median_us": median, "most_us": most,
    }))
}
