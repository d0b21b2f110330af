//! The transport alone over TCP loopback: bulk beside one stream of iperf3, and the round trip of a small message.
//!
//! Two localities on two threads ([`crate::traffic`]), no rpc and no layout. The requester exposes 1 MiB, names it in a
//! 64-byte message, the responder pulls (or pushes) it and answers by a message, and the requester exposes the next: what a
//! write (or a read) does to the net, with [`WINDOW`] requests in flight. iperf3 writes the same number of bytes.

use std::process::{Command, Stdio};
use std::time::Duration;

use base::units::{MIB, wide};
use runtime::Waiting;
use verbs_net::{Fabric, Token};

use super::machine::{ProcessTimes, Quiet};
use super::pairs::{Sample, Taken, long_enough, take};
use super::peer::{find_program, output};
use super::report::{Comparison, Costs, Figure, Peer};
use super::round_trip::PingPong;
use super::serving::Serving;
use super::{Plan, announce};
use crate::failure::Failure;
use crate::traffic::{self, COUNT_NAMES, Check, Found, Kind, MESSAGE_BYTES_DEFAULT, Until, Usage, Work};

/// The issue's target beside one stream of iperf3.
const TARGET: f64 = 0.6;
/// Bulk of one request.
const REQUEST_BYTES: u64 = MIB;
/// Requests in flight: below the credits of requests (three quarters of 32).
const WINDOW: u32 = 16;
/// Bytes of a request, a reply and a ping.
pub(super) const MESSAGE_BYTES: usize = MESSAGE_BYTES_DEFAULT;
/// A request that takes longer is lost.
const SAMPLE_WITHIN: Duration = Duration::from_secs(120);

/// Measures bulk both ways and the round trip.
pub fn run(plan: &Plan) -> Result<(Vec<Comparison>, Vec<Figure>), Failure> {
    let iperf = find_program("iperf3").map(|_| iperf_version()).transpose()?;
    let bytes = if plan.is_quick { 512 * MIB } else { 4096 * MIB };
    let mut comparisons = Vec::new();
    for (kind, what) in
        [(Kind::Write, "TCP loopback, bulk pulled"), (Kind::Read, "TCP loopback, bulk pushed")]
    {
        if !plan.wants(what) {
            continue;
        }
        announce(what);
        comparisons.push(bulk(plan, kind, what, bytes, iperf.as_deref())?);
    }
    let mut figures = Vec::new();
    if plan.wants("TCP loopback, 64 B round trip") {
        announce("TCP loopback, 64 B round trip");
        figures = round_trip(plan)?;
    }
    for peer in [PingPong::Sockperf, PingPong::Ucx].into_iter().filter(|peer| plan.wants(&row_of(*peer))) {
        announce(peer.name());
        comparisons.push(round_trips_beside(plan, peer)?);
    }
    Ok((comparisons, figures))
}

fn row_of(peer: PingPong) -> String {
    format!("TCP loopback, {MESSAGE_BYTES} B there and back, {}", peer.name())
}

/// Round trips per second beside those of another program; the sample's bytes are those of the messages one way.
fn round_trips_beside(plan: &Plan, peer: PingPong) -> Result<Comparison, Failure> {
    let lasting = plan.sample_time();
    let ping = |timed: u64| round_trips(timed);
    // How many round trips fill the time, by a look.
    let trips = if plan.is_quick { 5_000 } else { 100_000 };
    let (look, _) = ping(trips)?;
    let one = (look.took / u32::try_from(trips).unwrap_or(u32::MAX)).max(Duration::from_nanos(1));
    let timed =
        u64::try_from(lasting.as_nanos() / one.as_nanos()).unwrap_or(u64::MAX).clamp(1_000, 5_000_000);
    let quiet = Quiet::start();
    let mut costs = Costs::default();
    let ours = || {
        long_enough(plan.is_quick, || {
            let (sample, cost) = ping(timed)?;
            costs.add(cost);
            Ok(sample)
        })
    };
    let absent = peer.find().err();
    let beside = absent.is_none().then_some(|| long_enough(plan.is_quick, || peer.sample(lasting, one)));
    let Taken { pairs, alone } = take(plan.pairs, ours, beside)?;
    Ok(Comparison {
        what: row_of(peer),
        peer: peer.or_absent(absent),
        target: Some(peer.target()),
        pairs,
        alone,
        costs,
        peer_costs: None,
        others: quiet.others(),
        note: "one message of 64 B at a time, rates count 64 B for each round trip; two processes of ours (`clovis net selftest`) \
               and of the peer's, each waiting as it does by default (ours: spins while that pays; ucx_perftest: polls)"
            .to_owned(),
        is_quick: plan.is_quick,
    })
}

fn bulk(plan: &Plan, kind: Kind, what: &str, bytes: u64, iperf: Option<&str>) -> Result<Comparison, Failure> {
    let quiet = Quiet::start();
    let (mut costs, mut peer_costs) = (Costs::default(), Costs::default());
    let ours = || {
        let (found, cost) = sample(kind, u64::from(WINDOW), bytes / REQUEST_BYTES, WINDOW)?;
        costs.add(cost);
        Ok(Sample { bytes: cost.bytes, took: found.took })
    };
    let beside = iperf.is_some().then_some(|| {
        let (sample, cost) = iperf_sample(bytes)?;
        peer_costs.add(cost);
        Ok(sample)
    });
    let Taken { pairs, alone } = take(plan.pairs, ours, beside)?;
    Ok(Comparison {
        what: what.to_owned(),
        peer: iperf.map_or_else(
            || Peer::Absent("apt-get install iperf3".to_owned()),
            |version| Peer::Ran(format!("{version}, one stream")),
        ),
        target: Some(TARGET),
        pairs,
        alone,
        costs,
        peer_costs: iperf.map(|_| peer_costs),
        others: quiet.others(),
        note: format!(
            "{WINDOW} requests of 1 MiB in flight, from the first request to the last reply, connection made before; CPU of both sides"
        ),
        is_quick: plan.is_quick,
    })
}

fn round_trip(plan: &Plan) -> Result<Vec<Figure>, Failure> {
    let timed = if plan.is_quick { 2_000 } else { 50_000 };
    let (found, _) = sample(Kind::Ping, 200, timed, 1)?;
    let figure = |quantile: f64| Figure {
        what: format!("TCP loopback, {MESSAGE_BYTES} B round trip, p{:.0}", quantile * 100.0),
        // Nanoseconds of a round trip: far below 2^53.
        #[allow(clippy::cast_precision_loss)]
        value: found.waited_ns.value_at_quantile(quantile) as f64 / 1e3,
        unit: "us",
        under: None,
        counts: !plan.is_quick,
        note: format!("{timed} messages, one at a time, two threads"),
    };
    Ok(vec![figure(0.5), figure(0.99)])
}

/// Messages there and back, one at a time, between two processes as the peers have them: `clovis net selftest`.
fn round_trips(count: u64) -> Result<(Sample, Costs), Failure> {
    let program = std::env::current_exe().map_err(Failure::while_doing("finding this program"))?;
    let to = traffic::free_endpoint()?.to_string();
    let mut server = Command::new(&program);
    server.args(["net", "selftest", "server", "--once", &to]);
    let server = Serving::start(&mut server, "serves", "the selftest's server")?;
    let (size, count) = (MESSAGE_BYTES.to_string(), count.to_string());
    let options =
        ["--what", "ping", "--concurrency", "1", "--message-size", &size, "--count", &count, "--json"];
    let text = output(Command::new(&program).args(["net", "selftest", "client", &to]).args(options))?;
    server.end()?;
    parse_selftest(&text).ok_or_else(|| Failure::new("the selftest printed no result"))
}

/// Of what `clovis net selftest client --json` says: messages one way and the time; what both sides used.
fn parse_selftest(text: &str) -> Option<(Sample, Costs)> {
    let said: serde_json::Value = serde_json::from_str(text).ok()?;
    let operations = said["operations"].as_u64()?;
    let bytes = operations * wide(MESSAGE_BYTES);
    let took = Duration::try_from_secs_f64(said["seconds"].as_f64()?).ok().filter(|took| !took.is_zero())?;
    let usage_of = |side: &serde_json::Value| {
        let mut counts = [0; COUNT_NAMES.len()];
        for (count, name) in counts.iter_mut().zip(COUNT_NAMES) {
            *count = side[name].as_u64()?;
        }
        #[allow(clippy::cast_precision_loss)] // for reports
        let cpu = side["cpu_us_per_operation"].as_f64()? * operations as f64 / 1e6;
        Some(Usage::from_counts(counts, Duration::try_from_secs_f64(cpu).ok()?))
    };
    let usage = usage_of(&said["client"])?.plus(&usage_of(&said["server_side"])?);
    Some((Sample { bytes, took }, Costs::of(&usage, bytes)))
}

/// Runs both sides until the requester is done: what it found, and the costs of both.
fn sample(kind: Kind, untimed: u64, timed: u64, concurrency: u32) -> Result<(Found, Costs), Failure> {
    let work = Work {
        kind,
        message_bytes: MESSAGE_BYTES_DEFAULT,
        bulk_bytes: REQUEST_BYTES,
        concurrency,
        untimed,
        until: Until::Count(timed),
        check: Check::None,
        within: SAMPLE_WITHIN,
        goes_on: false,
        waiting: Waiting::Adaptive,
    };
    let security = Token::new([7; 32]).into();
    let found = traffic::in_one_process(&|| Fabric::Tcp, traffic::free_endpoint()?, &security, work)?;
    let bytes = if kind == Kind::Ping { 0 } else { found.operations * REQUEST_BYTES };
    let responder = found.responder.ok_or_else(|| Failure::new("the responder did not tell what it used"))?;
    let costs = Costs::of(&found.usage.plus(&responder), bytes);
    Ok((found, costs))
}

// ---------------------------------------------------------------- iperf3

fn iperf_version() -> Result<String, Failure> {
    let text = output(Command::new("iperf3").arg("--version"))?;
    Ok(text.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
}

/// One stream, one way, `bytes` in all: rate as the receiver saw it, CPU time of both processes.
fn iperf_sample(bytes: u64) -> Result<(Sample, Costs), Failure> {
    let port = traffic::free_endpoint()?.port().unwrap_or_default().to_string();
    let own = std::process::id();
    let children = || ProcessTimes::of(own).map_or(Duration::ZERO, |times| times.children);
    let before = children();
    let mut server = Command::new("iperf3");
    server
        .args(["--server", "--one-off", "--forceflush", "--bind", "127.0.0.1", "--port", &port])
        .stderr(Stdio::null());
    let server = Serving::start(&mut server, "listening", "iperf3 --server")?;
    let count = bytes.to_string();
    let client = ["--client", "127.0.0.1", "--port", &port, "--bytes", &count, "--json"];
    let text = output(Command::new("iperf3").args(client))?;
    server.end()?;
    let sample = parse_iperf(&text).ok_or_else(|| Failure::new("iperf3 printed no end.sum_received"))?;
    let cpu_seconds = children().saturating_sub(before).as_secs_f64();
    Ok((sample, Costs { bytes: sample.bytes, cpu_seconds, ..Costs::default() }))
}

fn parse_iperf(text: &str) -> Option<Sample> {
    let json: serde_json::Value = serde_json::from_str(text).ok()?;
    let sum = json.get("end")?.get("sum_received")?;
    let seconds = sum.get("seconds")?.as_f64().filter(|seconds| seconds.is_finite() && *seconds > 0.0)?;
    Some(Sample { bytes: sum.get("bytes")?.as_u64()?, took: Duration::from_secs_f64(seconds) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_moves_what_was_asked_for() {
        for kind in [Kind::Write, Kind::Read, Kind::Ping] {
            let concurrency = if kind == Kind::Ping { 1 } else { 4 };
            let (found, costs) = sample(kind, 4, 40, concurrency).unwrap();
            let bytes = if kind == Kind::Ping { 0 } else { 40 * REQUEST_BYTES };
            assert_eq!(
                (costs.bytes, found.waited_ns.len(), found.errors.count()),
                (bytes, 40, 0),
                "{kind:?}"
            );
            let median_ns = found.waited_ns.value_at_quantile(0.5);
            assert!(median_ns > 1_000, "two threads and TCP in {median_ns} ns");
            // Bulk is received straight into its buffer: only messages are copied, a few dozen bytes each.
            assert!(costs.copied_bytes.unwrap() <= 45 * 4 * 256, "{kind:?} copied {:?}", costs.copied_bytes);
        }
    }

    #[test]
    fn what_the_selftest_says_is_read_from_its_json() {
        let side = |syscalls: u32| {
            let counts = COUNT_NAMES
                .map(|name| format!("\"{name}\": {}", if name == "syscalls" { syscalls } else { 1 }));
            format!("{{ {}, \"cpu_us_per_operation\": 5.0 }}", counts.join(", "))
        };
        let text = format!(
            r#"{{ "operations": 1000, "seconds": 0.02, "client": {}, "server_side": {} }}"#,
            side(4000),
            side(5000)
        );
        let (sample, costs) = parse_selftest(&text).unwrap();
        assert_eq!((sample.bytes, sample.took), (64_000, Duration::from_millis(20)));
        assert_eq!((costs.syscalls, costs.bytes), (Some(9000), 64_000));
        assert!((costs.cpu_seconds - 0.01).abs() < 1e-9);
        assert!(parse_selftest("{}").is_none() && parse_selftest("no").is_none());
    }

    #[test]
    fn what_iperf_received_is_read_from_its_json() {
        let text = r#"{ "end": { "sum_received": { "seconds": 2.0, "bytes": 4294967296, "bits_per_second": 1.0 } } }"#;
        assert_eq!(parse_iperf(text), Some(Sample { bytes: 4 << 30, took: Duration::from_secs(2) }));
        assert_eq!(parse_iperf(r#"{ "error": "unable to connect" }"#), None);
    }
}
