//! `clovis net selftest`: a responder and a requester, in two processes or in one, over any network that they share.
//!
//! Both ends present the same credential: that of a cluster's configuration file, or the well-known one of the selftest. A responder moves
//! bytes of its own making only; with the well-known credential everybody who reaches its port can make it do so.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base::units::{BLOCK_BYTES, MIB};
use base::{Endpoint, NetKind};
use clap::{Args, Subcommand, ValueEnum};
use client::membership;
use runtime::{Counters, Crowd, MonotonicClock, StopFlag, Waiting, process};
use serde_json::{Value, json};
use verbs_net::{Fabric, LoFabric, Security, Token};

use super::{own_fabric, parse_selftest_endpoint};
use crate::args::parse_size;
use crate::daemon::stop_on_signal;
use crate::failure::Failure;
use crate::known_cluster::KnownCluster;
use crate::output;
use crate::table::bytes_text;
use crate::traffic::usage::COUNT_NAMES;
use crate::traffic::{
    self, BULK_BYTES_MAX, CONCURRENCY_MAX, Check, Found, IN_FLIGHT_BYTES_MAX, Kind, MESSAGE_BYTES_DEFAULT,
    Requester, Responder, Until, Usage, Work, side, station,
};

/// The credential of selftests that name no cluster. No secret.
const WELL_KNOWN: [u8; 32] = *b"clovis net selftest, no secret  ";

/// Who does what.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// Serve clients until SIGTERM or SIGINT
    Server(ServerArgs),
    /// Ask a server, and say how it went
    Client(ClientArgs),
    /// Both in this process, on two threads
    Alone(AloneArgs),
}

/// `clovis net selftest server`
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// Where to listen: an endpoint, or a NID (then port 61440)
    #[arg(value_name = "ENDPOINT", value_parser = parse_selftest_endpoint)]
    pub listen: Endpoint,
    /// End when the first client has left
    #[arg(long)]
    pub once: bool,
    /// How this side waits for messages
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Wait::Adaptive)]
    pub waiting: Wait,
    /// Seconds until a client's request counts as lost, if that is long: a connection may take a tenth of it, silence a sixth
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
    /// Use the credential of this cluster's configuration file, instead of the well-known one
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// `clovis net selftest client`
#[derive(Debug, Args)]
pub struct ClientArgs {
    /// The server: its endpoint, or its NID (then port 61440)
    #[arg(value_name = "ENDPOINT", value_parser = parse_selftest_endpoint)]
    pub server: Endpoint,
    /// Use the credential of this cluster's configuration file, instead of the well-known one
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Traffic.
    #[command(flatten)]
    pub traffic: TrafficArgs,
}

/// `clovis net selftest alone`
#[derive(Debug, Args)]
pub struct AloneArgs {
    /// The network: 0@lo, or a NID or endpoint of this machine
    #[arg(value_name = "ENDPOINT", default_value = "0@lo", value_parser = parse_selftest_endpoint)]
    pub endpoint: Endpoint,
    /// Traffic.
    #[command(flatten)]
    pub traffic: TrafficArgs,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// The server pulls bulk from the client, as for a write of an object
    Write,
    /// The server pushes bulk to the client, as for a read
    Read,
    /// A message there and back
    Ping,
}

/// How a side waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Wait {
    /// Spins as long as messages usually take to come, then sleeps
    Adaptive,
    /// Never sleeps, as perftest does: takes a whole core, and no wake-up is on a message's way
    Polling,
    /// Sleeps at once, as perftest does with events: counting tools see work only
    Sleeping,
}

/// How content is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Verify {
    /// Not at all
    None,
    /// Both ends of each 4 KiB
    Simple,
    /// Every byte
    Full,
}

/// The traffic of a client.
#[derive(Debug, Args)]
pub struct TrafficArgs {
    /// What each request asks for
    #[arg(value_enum, long = "what", default_value_t = What::Write)]
    pub what: What,
    /// Bytes of bulk of each request, a multiple of 4K, at most 16M
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = parse_bulk)]
    pub bulk_size: u64,
    /// Bytes of each message, at least 56, at most 64K; a longer descriptor makes it longer
    #[arg(long, value_name = "SIZE", default_value_t = MESSAGE_BYTES_DEFAULT as u64, value_parser = parse_message)]
    pub message_size: u64,
    /// Requests in flight
    #[arg(short, long, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=i64::from(CONCURRENCY_MAX)))]
    pub concurrency: u32,
    /// Seconds under the clock [default: 5]
    #[arg(short, long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400), conflicts_with = "count")]
    pub duration: Option<u64>,
    /// Requests under the clock, instead of a duration
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Requests before the clock starts [default: twice as many as are in flight]
    #[arg(long, value_name = "COUNT")]
    pub warmup: Option<u64>,
    /// How content is verified on arrival
    #[arg(long, value_enum, default_value_t = Verify::None)]
    pub verify: Verify,
    /// Seconds until a request counts as lost
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
    /// Count requests that fail and go on, over a new connection if need be; without it the first one ends the run
    #[arg(long)]
    pub keep_going: bool,
    /// How this side waits for messages
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Wait::Adaptive)]
    pub waiting: Wait,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

impl From<Wait> for Waiting {
    fn from(wait: Wait) -> Self {
        match wait {
            Wait::Adaptive => Self::Adaptive,
            Wait::Polling => Self::Polling,
            Wait::Sleeping => Self::Sleeping,
        }
    }
}

fn parse_bulk(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    if bytes == 0 || bytes > BULK_BYTES_MAX || !bytes.is_multiple_of(BLOCK_BYTES) {
        return Err(format!("{text:?}: bulk is a multiple of 4K from 4K to {}M", BULK_BYTES_MAX / MIB));
    }
    Ok(bytes)
}

fn parse_message(text: &str) -> Result<u64, String> {
    let (min, max) = (traffic::exchange::MESSAGE_BYTES_MIN as u64, base::limits::MESSAGE_BYTES_MAX);
    parse_size(text)
        .ok()
        .filter(|bytes| (min..=max).contains(bytes))
        .ok_or_else(|| format!("{text:?}: a message has from {min} to {max} bytes"))
}

impl TrafficArgs {
    fn work(&self) -> Result<Work, Failure> {
        let kind = match self.what {
            What::Write => Kind::Write,
            What::Read => Kind::Read,
            What::Ping => Kind::Ping,
        };
        let in_flight = self.bulk_size * u64::from(self.concurrency);
        if kind != Kind::Ping && in_flight > IN_FLIGHT_BYTES_MAX {
            return Err(Failure::new(format!(
                "{} requests of {} are {} in flight, and at most {} may be: lower --concurrency or --bulk-size",
                self.concurrency,
                bytes_text(self.bulk_size),
                bytes_text(in_flight),
                bytes_text(IN_FLIGHT_BYTES_MAX)
            )));
        }
        Ok(Work {
            kind,
            message_bytes: usize::try_from(self.message_size).unwrap_or(MESSAGE_BYTES_DEFAULT),
            bulk_bytes: self.bulk_size,
            concurrency: self.concurrency,
            untimed: self.warmup.unwrap_or(2 * u64::from(self.concurrency)),
            until: match (self.count, self.duration) {
                (Some(count), _) => Until::Count(count),
                (None, seconds) => Until::Time(Duration::from_secs(seconds.unwrap_or(5))),
            },
            check: match self.verify {
                Verify::None => Check::None,
                Verify::Simple => Check::Simple,
                Verify::Full => Check::Full,
            },
            within: Duration::from_secs(self.timeout),
            goes_on: self.keep_going,
            waiting: self.waiting.into(),
        })
    }
}

/// `clovis net selftest`
pub fn run(role: &Role) -> Result<(), Failure> {
    match role {
        Role::Server(args) => server(args),
        Role::Client(args) => client(args),
        Role::Alone(args) => alone(args),
    }
}

/// What this end shows: the well-known secret, or what a cluster's file says. `name`: whose credential that is by default; a listening end
/// takes a daemon's.
fn security(config: Option<&PathBuf>, name: &str) -> Result<Security, Failure> {
    let Some(config) = config else { return Ok(Token::new(WELL_KNOWN).into()) };
    let named = std::env::var_os("CLOVIS_CREDENTIAL").map(PathBuf::from);
    let (_, cluster) = KnownCluster::of_daemon(config, named.as_deref(), |_| name.to_owned())?;
    cluster.security()
}

fn server(args: &ServerArgs) -> Result<(), Failure> {
    let fabric = own_fabric(args.listen)?;
    let stop = StopFlag::new();
    stop_on_signal(&stop)?;
    let counters = Arc::new(Counters::default());
    let mut locality =
        station::locality(0, "selftest-server", &counters, &Crowd::that_waits(args.waiting.into()))?;
    let machine = traffic::start_machine(
        &locality,
        &fabric,
        args.listen,
        true,
        security(args.config.as_ref(), "control")?,
        Duration::from_secs(args.timeout),
    )?;
    output::line(&format!("selftest serves at {}", args.listen))?;
    let clock = MonotonicClock::start();
    side::drive(&mut locality, &clock, &stop, machine, Responder::new(args.once), process::cpu_time)?;
    output::line("selftest has stopped")
}

fn client(args: &ClientArgs) -> Result<(), Failure> {
    let work = args.traffic.work()?;
    let fabric = own_fabric(args.server)?;
    let counters = Arc::new(Counters::default());
    let mut locality = station::locality(0, "selftest-client", &counters, &Crowd::that_waits(work.waiting))?;
    let own = station::requester_endpoint(args.server)?;
    let machine = traffic::start_machine(
        &locality,
        &fabric,
        own,
        false,
        security(args.config.as_ref(), membership::ADMINISTRATOR)?,
        work.within,
    )?;
    let requester = Requester::new(args.server, work, locality.handle().arena())?;
    let (clock, stop) = (MonotonicClock::start(), StopFlag::new());
    let found = station::ask(&mut locality, machine, &clock, &stop, requester, process::cpu_time)?;
    let found = found.ok_or_else(|| Failure::new("the selftest ended early"))?;
    report(args.server, &args.traffic, work, &found)
}

fn alone(args: &AloneArgs) -> Result<(), Failure> {
    let work = args.traffic.work()?;
    let security = Token::new(WELL_KNOWN).into();
    let found = if args.endpoint.nid.net.kind == NetKind::Lo {
        let lo = LoFabric::default();
        traffic::in_one_process(&|| Fabric::Lo(lo.clone()), args.endpoint, &security, work)?
    } else {
        // Each side opens its own: only the verbs fabric may go from thread to thread.
        match own_fabric(args.endpoint)? {
            Fabric::Verbs(fabric) => {
                let fabric = || Fabric::Verbs(fabric.clone());
                traffic::in_one_process(&fabric, args.endpoint, &security, work)?
            }
            _ => traffic::in_one_process(&|| Fabric::Tcp, args.endpoint, &security, work)?,
        }
    };
    report(args.endpoint, &args.traffic, work, &found)
}

/// Prints, and fails if a request did.
fn report(server: Endpoint, args: &TrafficArgs, work: Work, found: &Found) -> Result<(), Failure> {
    if args.json {
        output::line(&format!("{:#}", to_json(server, args, work, found)))?;
    } else {
        output::print(&to_text(server, args, work, found))?;
    }
    let errors = &found.errors;
    if errors.wrong_content > 0 {
        return Err(Failure::new(format!(
            "{} requests carried wrong content; the last: {}",
            errors.wrong_content,
            errors.last.as_deref().unwrap_or_default()
        )));
    }
    if found.operations == 0 {
        let why = errors.last.as_deref().map(|last| format!(": {last}")).unwrap_or_default();
        return Err(Failure::new(format!("no request ended well{why}")));
    }
    Ok(())
}

/// For reports: two or three digits matter.
#[allow(clippy::cast_precision_loss)]
const fn float(value: u64) -> f64 {
    value as f64
}

fn bulk_bytes(work: Work) -> u64 {
    if work.kind == Kind::Ping { 0 } else { work.bulk_bytes }
}

fn rate(found: &Found) -> f64 {
    let seconds = found.took.as_secs_f64();
    if seconds > 0.0 { float(found.operations) / seconds } else { 0.0 }
}

const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

fn to_json(server: Endpoint, args: &TrafficArgs, work: Work, found: &Found) -> Value {
    let name = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
    let mut latency = serde_json::Map::new();
    for (word, quantile) in QUANTILES {
        latency.insert(word.to_owned(), json!(float(found.waited_ns.value_at_quantile(quantile)) / 1e3));
    }
    latency.insert("mean".to_owned(), json!(found.waited_ns.mean() / 1e3));
    json!({
        "server": server.to_string(),
        "net": server.nid.net.to_string(),
        "what": name(&args.what),
        "verify": name(&args.verify),
        "bulk_bytes": bulk_bytes(work),
        "message_bytes": work.message_bytes,
        "concurrency": work.concurrency,
        "seconds": found.took.as_secs_f64(),
        "connect_ms": found.connect.as_secs_f64() * 1e3,
        "operations": found.operations,
        "operations_per_second": rate(found),
        "bytes_per_second": rate(found) * float(bulk_bytes(work)),
        "latency_us": latency,
        "errors": {
            "wrong_content": found.errors.wrong_content,
            "transfer_failed": found.errors.transfer_failed,
            "timed_out": found.errors.timed_out,
            "peer_lost": found.errors.peer_lost,
            "last": found.errors.last,
        },
        "client": usage_json(&found.usage, found.operations),
        "server_side": found.responder.as_ref().map(|usage| usage_json(usage, found.operations)),
    })
}

fn usage_json(usage: &Usage, operations: u64) -> Value {
    let mut object = serde_json::Map::new();
    let each = |value: f64| (operations > 0).then(|| value / float(operations));
    for (name, count) in COUNT_NAMES.iter().zip(usage.counts()) {
        object.insert((*name).to_owned(), json!(count));
        object.insert(format!("{name}_per_operation"), json!(each(float(count))));
    }
    object.insert("cpu_us_per_operation".to_owned(), json!(each(usage.cpu.as_secs_f64() * 1e6)));
    Value::Object(object)
}

fn to_text(server: Endpoint, args: &TrafficArgs, work: Work, found: &Found) -> String {
    use crate::table::{Align, Table};
    let bulk = match work.kind {
        Kind::Ping => format!("messages of {} B", work.message_bytes),
        Kind::Write | Kind::Read => bytes_text(work.bulk_bytes),
    };
    let mut text = format!(
        "{} {bulk}, {} in flight, with {server}, verify {}\n\n",
        format!("{:?}", args.what).to_lowercase(),
        work.concurrency,
        format!("{:?}", args.verify).to_lowercase(),
    );
    let mut table = Table::new(&[("", Align::Left), ("", Align::Right)]);
    table.row(["requests".to_owned(), format!("{} in {:.3} s", found.operations, found.took.as_secs_f64())]);
    table.row(["rate".to_owned(), format!("{:.1} /s", rate(found))]);
    if work.kind != Kind::Ping {
        table
            .row(["bandwidth".to_owned(), format!("{:.1} MB/s", rate(found) * float(work.bulk_bytes) / 1e6)]);
    }
    for (word, quantile) in QUANTILES {
        let micros = float(found.waited_ns.value_at_quantile(quantile)) / 1e3;
        table.row([format!("latency {word}"), format!("{micros:.1} us")]);
    }
    table.row(["errors".to_owned(), found.errors.count().to_string()]);
    text.push_str(table.render().trim_start_matches('\n'));
    text.push('\n');
    text.push_str(&per_operation(found).render());
    if let Some(last) = &found.errors.last {
        text.push_str(&format!("\nlast error: {last}\n"));
    }
    text
}

fn per_operation(found: &Found) -> crate::table::Table {
    use crate::table::{Align, Table};
    let mut table =
        Table::new(&[("per request", Align::Left), ("client", Align::Right), ("server", Align::Right)]);
    let each = |value: Option<f64>| match value {
        Some(value) if found.operations > 0 => format!("{:.2}", value / float(found.operations)),
        _ => String::new(),
    };
    for (index, name) in COUNT_NAMES.iter().enumerate() {
        let of = |usage: &Usage| float(usage.counts()[index]);
        table.row([
            name.replace('_', " "),
            each(Some(of(&found.usage))),
            each(found.responder.as_ref().map(of)),
        ]);
    }
    let cpu = |usage: &Usage| usage.cpu.as_secs_f64() * 1e6;
    table.row(["CPU us".to_owned(), each(Some(cpu(&found.usage))), each(found.responder.as_ref().map(cpu))]);
    table
}
