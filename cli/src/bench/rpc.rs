//! The rpc machine with a handler that does nothing: rates, latencies and costs over `lo` and TCP loopback, beside ucx, beside echoes over
//! tonic and tarpc, and formation beside itself switched off.
//!
//! A request is a ping whose payload comes back. Rows beside programs of others carry [`ECHO_BYTES`] of it; figures of the null request carry
//! none, so that they tell of rpc alone. Round trips beside ucx are between two processes, as ucx has them; latency and the rates beside echoes are
//! taken on two threads, as in a cluster; costs of one request with both sides in one thread, turned in turns, so that no spinning and no sleep is
//! in them and every allocation is seen.
//! Instructions: this binary under callgrind, with two counts of requests, so that what is not a request falls out.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::units::wide;
use base::{BlockExtent, Endpoint, Fid, FidType, Nid};
use fops::admin::{Ping, PingReply};
use fops::component::{ComponentRead, ComponentReadReply, ComponentWrite, ComponentWriteReply};
use hdrhistogram::Histogram;
use rpc::formation::FormationLimits;
use rpc::{Bulk, CallError, CallOptions, Phase, RpcConfig, RpcMachine};
use runtime::{
    Buffer, Counters, Crowd, Locality, MonotonicClock, StopFlag, Task, Waiting, allocations, process,
    sync::CountWaiter,
};
use verbs_net::{Fabric, LoFabric, Token};

use super::machine::Quiet;
use super::pairs::{Sample, Taken, long_enough, median, take};
use super::peer::{find_program, output};
use super::report::{Comparison, Costs, Figure, Peer};
use super::round_trip::PingPong;
use super::serving::Serving;
use super::{Plan, announce};
use crate::failure::Failure;
use crate::traffic::station::{locality, requester_endpoint};
use crate::traffic::{Usage, free_endpoint, start_machine};

/// Payload of an echo.
const ECHO_BYTES: usize = 64;
/// Requests in flight where many are: a session's slots.
const DEPTH: u32 = 64;
/// The targets.
const ECHO_TARGET: f64 = 3.0;
const FORMATION_TARGET: f64 = 2.0;
const PART_OF_INSTRUCTIONS_MAX: f64 = 2.0;
/// A longer wait is recorded as this one.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// A request that takes longer is lost, under callgrind too.
const REQUEST_WITHIN: Duration = Duration::from_secs(60);
/// Requests before the clock starts.
const UNTIMED: u64 = 500;

/// Over which net.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Net {
    Lo,
    Tcp,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
struct Load {
    net: Net,
    payload_bytes: usize,
    depth: u32,
    /// Requests to one peer share packets.
    packs: bool,
    /// Of each side's ADDB ring; 0 records nothing.
    addb_records: usize,
    /// Bulk of each request, instead of a payload.
    bulk: Option<Way>,
    /// Bulk of at most so many bytes travels inside of requests and replies.
    inline_bytes: usize,
}

/// Which way bulk goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// To the server, as for a write.
    In,
    /// To the client, as for a read.
    Out,
}

impl Load {
    fn new(net: Net, payload_bytes: usize, depth: u32) -> Load {
        let addb_records = rpc::limits::ADDB_RECORDS;
        Load { net, payload_bytes, depth, packs: true, addb_records, bulk: None, inline_bytes: 0 }
    }

    fn config(&self) -> RpcConfig {
        let packet_items_max = if self.packs { rpc::limits::PACKET_ITEMS_MAX } else { 1 };
        let formation = FormationLimits { packet_items_max, ..rpc::limits::FORMATION };
        RpcConfig {
            formation,
            addb_records: self.addb_records,
            inline_bytes: Some(self.inline_bytes),
            ..RpcConfig::default()
        }
    }

    fn fabric(&self, lo: &LoFabric) -> Fabric {
        match self.net {
            Net::Lo => Fabric::Lo(lo.clone()),
            Net::Tcp => Fabric::Tcp,
        }
    }

    fn endpoints(&self) -> Result<(Endpoint, Endpoint), Failure> {
        Ok(match self.net {
            Net::Lo => {
                let of = |tmid| Endpoint { nid: Nid::LOOPBACK, pid: 12345, portal: 34, tmid };
                (of(0), of(1))
            }
            Net::Tcp => {
                let server = free_endpoint()?;
                (server, requester_endpoint(server)?)
            }
        })
    }
}

/// What was measured of the requests under the clock.
struct Found {
    requests: u64,
    took: Duration,
    usage: Usage,
    /// Of the asking thread: of both sides, where both are in it.
    allocations: u64,
    /// Nanoseconds from a call to its answer; empty where many were in flight.
    waited_ns: Histogram<u32>,
}

impl Found {
    /// A sample whose bytes are those of the payloads one way.
    fn sample(&self) -> Sample {
        Sample { bytes: self.requests * wide(ECHO_BYTES), took: self.took }
    }

    /// The same, by the CPU time of both sides.
    fn sample_of_cpu(&self) -> Sample {
        Sample { took: self.usage.cpu, ..self.sample() }
    }

    fn costs(&self) -> Costs {
        Costs::of(&self.usage, self.sample().bytes)
    }

    fn each(&self, count: u64) -> f64 {
        float(count) / float(self.requests.max(1))
    }
}

/// Measures every row that the plan wants.
pub fn run(plan: &Plan) -> Result<(Vec<Comparison>, Vec<Figure>), Failure> {
    let mut figures = Vec::new();
    let nets = [(Net::Lo, "lo"), (Net::Tcp, "TCP loopback")];
    for (net, name) in
        nets.into_iter().filter(|(_, name)| plan.wants(&format!("rpc over {name}, null requests")))
    {
        announce(&format!("null requests over {name}"));
        figures.extend(null_figures(plan, net, name)?);
    }
    for (net, name) in nets {
        for (way, word) in [(Way::In, "writes"), (Way::Out, "reads")] {
            if plan.wants(&cut_off_row(name, word)) {
                announce(&format!("{word} over {name}, bulk inside of the item and by itself"));
                figures.push(cut_off(plan, (net, name), (way, word))?);
            }
        }
    }
    if plan.wants("rpc over lo, instructions of a null request") {
        announce("instructions of a null request");
        figures.extend(instruction_figures(plan)?);
    }
    let mut comparisons = Vec::new();
    for peer in [PingPong::Ucx, PingPong::UcxActive].into_iter().filter(|peer| plan.wants(&ucx_row(*peer))) {
        announce(peer.name());
        comparisons.push(beside_ucx(plan, peer)?);
    }
    for peer in [EchoPeer::Tonic, EchoPeer::Tarpc].into_iter().filter(|peer| plan.wants(&peer.row())) {
        announce(&format!("an echo over {}", peer.name()));
        comparisons.push(beside_echo(plan, peer)?);
    }
    if plan.wants(&formation_row()) {
        announce("formation on and off");
        comparisons.push(formation(plan)?);
    }
    Ok((comparisons, figures))
}

fn cut_off_row(name: &str, word: &str) -> String {
    format!("rpc over {name}, {word}: cut-off of bulk inside of the item")
}

fn ucx_row(peer: PingPong) -> String {
    format!("rpc over TCP loopback, {ECHO_BYTES} B there and back, {}", peer.name())
}

fn formation_row() -> String {
    format!("rpc over TCP loopback, {ECHO_BYTES} B, {DEPTH} in flight, formation")
}

// ---------------------------------------------------------------- figures

fn null_figures(plan: &Plan, net: Net, name: &str) -> Result<Vec<Figure>, Failure> {
    let timed = if plan.is_quick { 20_000 } else { 400_000 };
    let counts = !plan.is_quick;
    let figure = |what: String, value: f64, unit: &'static str, under: Option<f64>, note: String| Figure {
        what: format!("rpc over {name}, {what}"),
        value,
        unit,
        under,
        counts,
        note,
    };
    let mut figures = Vec::new();
    // Latency as in a cluster.
    let found = two_threads(Load::new(net, 0, 1), UNTIMED, timed / 4)?;
    for quantile in [0.5, 0.99] {
        let ns = found.waited_ns.value_at_quantile(quantile);
        let note = format!("{} calls, one at a time, two threads", found.requests);
        let what = format!("null request, p{:.0}", quantile * 100.0);
        figures.push(figure(what, float(ns) / 1e3, "us", None, note));
    }
    for (depth, many) in [(1, "one at a time"), (DEPTH, "64 in flight")] {
        let found = one_thread(Load::new(net, 0, depth), UNTIMED + 64 * u64::from(depth), timed)?;
        let cpu_us = found.usage.cpu.as_secs_f64() * 1e6 / float(found.requests);
        let note = format!(
            "{:.0} requests per core second; a request takes {:.3} syscalls and {:.0} copied bytes; both sides in one thread",
            1e6 / cpu_us,
            found.each(found.usage.syscalls),
            found.each(found.usage.copied_bytes),
        );
        figures.push(figure(format!("null requests, {many}"), cpu_us, "us of CPU", None, note));
        let note = "of both sides, callers' tasks and handlers included".to_owned();
        let each = found.each(found.allocations);
        figures.push(figure(format!("allocations, {many}"), each, "a request", Some(0.01), note));
    }
    Ok(figures)
}

/// Sizes of bulk that are tried inside of items.
const INLINE_SIZES: [usize; 8] =
    [512, 1024, 2048, 4096, 8192, 16 * 1024, 32 * 1024, rpc::limits::INLINE_BYTES_MAX];

/// Up to which size bulk costs less inside of its item than moved by the server: by the CPU time of both sides.
fn cut_off(plan: &Plan, (net, name): (Net, &str), (way, word): (Way, &str)) -> Result<Figure, Failure> {
    let timed = if plan.is_quick { 2_000 } else { 20_000 };
    let mut lines = Vec::new();
    let mut best = 0;
    let mut is_better = true;
    for bytes in INLINE_SIZES {
        let load = Load { bulk: Some(way), ..Load::new(net, bytes, 8) };
        let mut cpu_us = [Vec::new(), Vec::new()];
        for _ in 0..plan.pairs.min(5) {
            for (index, inline_bytes) in [(0, rpc::limits::INLINE_BYTES_MAX), (1, 0)] {
                let found = one_thread(Load { inline_bytes, ..load }, UNTIMED, timed)?;
                cpu_us[index].push(found.usage.cpu.as_secs_f64() * 1e6 / float(found.requests.max(1)));
            }
        }
        let [inside, alone] = cpu_us.map(|times| median(&times).unwrap_or(f64::NAN));
        is_better &= inside <= alone;
        if is_better {
            best = bytes;
        }
        lines.push(format!("{bytes} B: {inside:.2} and {alone:.2}"));
    }
    let in_force = match net {
        Net::Lo => rpc::limits::INLINE_BYTES_LO,
        Net::Tcp => rpc::limits::INLINE_BYTES_TCP,
    };
    Ok(Figure {
        what: cut_off_row(name, word),
        value: float(wide(best)),
        unit: "B",
        under: None,
        counts: !plan.is_quick,
        note: format!(
            "in force: {in_force} B; us of CPU of both sides for a request with its bulk inside, and moved by the server: {}",
            lines.join("; ")
        ),
    })
}

/// Instructions by callgrind of this binary, where valgrind is installed.
fn instruction_figures(plan: &Plan) -> Result<Vec<Figure>, Failure> {
    let figure = |what: &str, value, unit, under, note| Figure {
        what: format!("rpc over lo, {what}"),
        value,
        unit,
        under,
        counts: true, // a count of instructions minds no other work
        note,
    };
    if find_program("valgrind").is_none() {
        let note = "apt-get install valgrind".to_owned();
        return Ok(vec![Figure {
            counts: false,
            ..figure("instructions: no valgrind", 0.0, "", None, note)
        }]);
    }
    let (few, many) = if plan.is_quick { (100, 600) } else { (300, 2300) };
    let per_request = |records: usize, within: &[&str]| -> Result<f64, Failure> {
        let (few_count, many_count) =
            (instructions(few, records, within)?, instructions(many, records, within)?);
        Ok(float(many_count.saturating_sub(few_count)) / float(many - few))
    };
    let records = rpc::limits::ADDB_RECORDS;
    let whole = per_request(records, &[])?;
    let without_addb = per_request(0, &[])?;
    let cache = per_request(records, &REPLY_CACHE_MISS)?;
    let note = |cost: f64| format!("{cost:.0} of {whole:.0} instructions of both sides");
    let part = |cost: f64| cost * 100.0 / whole;
    let addb = whole - without_addb;
    let counted =
        format!("{few} and {many} requests without payload, one at a time, both sides in one thread");
    Ok(vec![
        figure("instructions of a null request", whole, "", None, counted),
        figure("ADDB's part of them", part(addb), "%", Some(PART_OF_INSTRUCTIONS_MAX), note(addb)),
        figure("a reply-cache miss's part", part(cache), "%", Some(PART_OF_INSTRUCTIONS_MAX), note(cache)),
    ])
}

/// What a request that is not in the reply cache costs there: it is looked up, and its entry is made.
const REPLY_CACHE_MISS: [&str; 2] = ["*ReplyCache*::decide*", "*ReplyCache*::begin*"];

/// Instructions of a run of null requests, of the functions `within` and what they call; of the whole program if there are none.
fn instructions(requests: u64, addb_records: usize, within: &[&str]) -> Result<u64, Failure> {
    let program = std::env::current_exe().map_err(Failure::while_doing("looking for this program"))?;
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    command.args(within.iter().map(|function| format!("--toggle-collect={function}")));
    command.arg(program).args(["bench", "rpc", "--null-requests"]).arg(format!("{requests},{addb_records}"));
    // Its count is on standard error, also when it succeeds.
    let said = command.output().map_err(Failure::while_doing("running valgrind"))?;
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    if !said.status.success() {
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it printed nothing");
        return Err(Failure::new(format!("valgrind failed ({}): {last}", said.status)));
    }
    parse_callgrind(&text).ok_or_else(|| Failure::new("callgrind counted nothing"))
}

/// `==123== Collected : 4567`
fn parse_callgrind(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.split("Collected :").nth(1))?.trim().parse().ok()
}

/// `clovis bench rpc --null-requests COUNT,RECORDS`, which is run under callgrind: prints nothing.
pub fn null_requests(order: &str) -> Result<(), Failure> {
    let numbers = order.split_once(',').and_then(|(requests, records)| {
        Some((requests.parse::<u64>().ok()?, records.parse::<usize>().ok()?))
    });
    let (requests, addb_records) = numbers
        .ok_or_else(|| Failure::new(format!("--null-requests takes COUNT,RECORDS and got {order:?}")))?;
    one_thread(Load { addb_records, ..Load::new(Net::Lo, 0, 1) }, 0, requests).map(drop)
}

// ---------------------------------------------------------------- comparisons

/// How many requests last `lasting` by `of`, after a short look.
fn count_for(lasting: Duration, look: &Found, of: impl Fn(&Found) -> Duration) -> u64 {
    let each = (of(look).as_nanos() / u128::from(look.requests.max(1))).max(1);
    u64::try_from(lasting.as_nanos() / each).unwrap_or(u64::MAX).clamp(1_000, 20_000_000)
}

fn beside_ucx(plan: &Plan, peer: PingPong) -> Result<Comparison, Failure> {
    let load = Load::new(Net::Tcp, ECHO_BYTES, 1);
    let look = two_processes(load, UNTIMED, 5_000)?;
    let timed = count_for(plan.sample_time(), &look, |found| found.took);
    let one = look.took / 5_000;
    let quiet = Quiet::start();
    let mut costs = Costs::default();
    let ours = || {
        long_enough(plan.is_quick, || {
            let found = two_processes(load, UNTIMED, timed)?;
            costs.add(found.costs());
            Ok(found.sample())
        })
    };
    let absent = peer.find().err();
    let beside =
        absent.is_none().then_some(|| long_enough(plan.is_quick, || peer.sample(plan.sample_time(), one)));
    let Taken { pairs, alone } = take(plan.pairs, ours, beside)?;
    Ok(Comparison {
        what: ucx_row(peer),
        peer: peer.or_absent(absent),
        target: Some(peer.target()),
        pairs,
        alone,
        costs,
        peer_costs: None,
        others: quiet.others(),
        note: format!(
            "one call at a time with {ECHO_BYTES} B of payload there and back, at most once, rates count {ECHO_BYTES} B for each; two \
             processes of ours and of the peer's, which polls; its message has no session, slots and replies"
        ),
        is_quick: plan.is_quick,
    })
}

/// A program of hw-ci/peers that asks itself for echoes, as we do.
#[derive(Clone, Copy, Debug)]
enum EchoPeer {
    /// gRPC.
    Tonic,
    /// Frames of its own.
    Tarpc,
}

impl EchoPeer {
    fn name(self) -> &'static str {
        match self {
            EchoPeer::Tonic => "tonic",
            EchoPeer::Tarpc => "tarpc",
        }
    }

    fn row(self) -> String {
        format!("rpc over TCP loopback, {ECHO_BYTES} B echo, {DEPTH} in flight, by CPU time, {}", self.name())
    }

    /// Says where the program is.
    fn variable(self) -> &'static str {
        match self {
            EchoPeer::Tonic => "CLOVIS_TONIC_PEER",
            EchoPeer::Tarpc => "CLOVIS_TARPC_PEER",
        }
    }
}

fn beside_echo(plan: &Plan, peer: EchoPeer) -> Result<Comparison, Failure> {
    let load = Load::new(Net::Tcp, ECHO_BYTES, DEPTH);
    let look = two_threads(load, UNTIMED, 20_000)?;
    let timed = count_for(plan.sample_time(), &look, |found| found.usage.cpu);
    let quiet = Quiet::start();
    let (mut costs, mut peer_costs) = (Costs::default(), Costs::default());
    let ours = || {
        long_enough(plan.is_quick, || {
            let found = two_threads(load, UNTIMED, timed)?;
            costs.add(found.costs());
            Ok(found.sample_of_cpu())
        })
    };
    let program = std::env::var_os(peer.variable()).map(PathBuf::from).filter(|path| path.is_file());
    let beside = program.as_ref().map(|program| {
        || {
            long_enough(plan.is_quick, || {
                let (sample, cost) = echoes(program, plan.sample_time())?;
                peer_costs.add(cost);
                Ok(sample)
            })
        }
    });
    let Taken { pairs, alone } = take(plan.pairs, ours, beside)?;
    Ok(Comparison {
        what: peer.row(),
        peer: match program {
            Some(_) => Peer::Ran(peer.name().to_owned()),
            None => Peer::Absent(format!("./dev bench rpc builds it ({})", peer.variable())),
        },
        target: Some(ECHO_TARGET),
        pairs,
        alone,
        costs,
        peer_costs: program.map(|_| peer_costs),
        others: quiet.others(),
        note: format!(
            "requests per core second, client and server together, a thread each on both sides, rates count {ECHO_BYTES} B for each request; ours with \
             sessions, at most once and ADDB; {}",
            per_request(&costs)
        ),
        is_quick: plan.is_quick,
    })
}

/// One run of the peer: rate by its CPU time.
fn echoes(program: &Path, lasting: Duration) -> Result<(Sample, Costs), Failure> {
    let numbers = [lasting.as_millis().to_string(), DEPTH.to_string(), ECHO_BYTES.to_string()];
    let text = output(Command::new(program).args(numbers))?;
    parse_echoes(&text).ok_or_else(|| Failure::new(format!("{} printed {text:?}", program.display())))
}

/// Requests, nanoseconds, nanoseconds of CPU.
fn parse_echoes(text: &str) -> Option<(Sample, Costs)> {
    let numbers: Vec<u64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let [requests, _, cpu_ns] = numbers[..] else { return None };
    let sample = Sample { bytes: requests * wide(ECHO_BYTES), took: Duration::from_nanos(cpu_ns) };
    let cpu_seconds = sample.took.as_secs_f64();
    (cpu_ns > 0).then_some((sample, Costs { bytes: sample.bytes, cpu_seconds, ..Costs::default() }))
}

fn formation(plan: &Plan) -> Result<Comparison, Failure> {
    let on = Load::new(Net::Tcp, ECHO_BYTES, DEPTH);
    let off = Load { packs: false, ..on };
    let look = two_threads(off, UNTIMED, 20_000)?;
    let count_off = count_for(plan.sample_time(), &look, |found| found.took);
    let look = two_threads(on, UNTIMED, 20_000)?;
    let count_on = count_for(plan.sample_time(), &look, |found| found.took);
    let quiet = Quiet::start();
    let (mut costs, mut peer_costs) = (Costs::default(), Costs::default());
    let ours = || {
        long_enough(plan.is_quick, || {
            let found = two_threads(on, UNTIMED, count_on)?;
            costs.add(found.costs());
            Ok(found.sample())
        })
    };
    let beside = Some(|| {
        long_enough(plan.is_quick, || {
            let found = two_threads(off, UNTIMED, count_off)?;
            peer_costs.add(found.costs());
            Ok(found.sample())
        })
    });
    let Taken { pairs, alone } = take(plan.pairs, ours, beside)?;
    Ok(Comparison {
        what: formation_row(),
        peer: Peer::Ran("ours, formation off".to_owned()),
        target: Some(FORMATION_TARGET),
        pairs,
        alone,
        costs,
        peer_costs: Some(peer_costs),
        others: quiet.others(),
        note: format!(
            "requests per second, both sides with one batched system call for all messages of a turn; on: {}; off: {}",
            per_request(&costs),
            per_request(&peer_costs)
        ),
        is_quick: plan.is_quick,
    })
}

/// What a request took, in words.
fn per_request(costs: &Costs) -> String {
    let requests = (float(costs.bytes) / 64.0).max(1.0);
    let each = |count: Option<u64>| float(count.unwrap_or(0)) / requests;
    format!(
        "a request takes {:.2} us of CPU, {:.3} syscalls, {:.0} copied bytes",
        costs.cpu_seconds * 1e6 / requests,
        each(costs.syscalls),
        each(costs.copied_bytes)
    )
}

// ---------------------------------------------------------------- both sides

fn serve(server: &RpcMachine, load: &Load) -> Result<(), Failure> {
    serve_echo(server);
    server.serve(|fom, _: ComponentWrite| async move {
        fom.pull().await.map(|_| ComponentWriteReply { free_blocks: 0 })
    });
    let part = buffer(server, load.payload_bytes.max(1))?.freeze();
    server.serve(move |fom, _: ComponentRead| {
        let part = part.clone();
        async move {
            fom.push(0, vec![part]).await?;
            Ok(ComponentReadReply { checksums: Vec::new(), absent: Vec::new() })
        }
    });
    Ok(())
}

fn buffer(machine: &RpcMachine, bytes: usize) -> Result<Buffer, Failure> {
    machine.locality().arena().try_alloc(bytes).ok_or_else(|| Failure::new("no memory for bulk"))
}

fn serve_echo(server: &RpcMachine) {
    server.serve(|_fom, ping: Ping| std::future::ready(Ok(PingReply { payload: ping.payload, epoch: 1 })));
}

/// Calls in flight, and how they went.
struct Asking {
    client: RpcMachine,
    to: Endpoint,
    clock: MonotonicClock,
    payload_bytes: usize,
    bulk: Option<Way>,
    /// Requests to begin.
    left: Cell<u64>,
    answered: CountWaiter,
    /// Lanes that ended, by an error or because nothing is left.
    ended: CountWaiter,
    failure: RefCell<Option<Failure>>,
    waited_ns: RefCell<Histogram<u32>>,
    times_each: bool,
}

impl Asking {
    fn new(
        client: &RpcMachine,
        to: Endpoint,
        clock: MonotonicClock,
        load: &Load,
    ) -> Result<Rc<Asking>, Failure> {
        let waited_ns = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3)
            .map_err(|error| Failure::new(error.to_string()))?;
        Ok(Rc::new(Asking {
            client: client.clone(),
            to,
            clock,
            payload_bytes: load.payload_bytes,
            bulk: load.bulk,
            left: Cell::new(0),
            answered: CountWaiter::default(),
            ended: CountWaiter::default(),
            failure: RefCell::default(),
            waited_ns: RefCell::new(waited_ns),
            times_each: load.depth == 1,
        }))
    }

    /// Begins `count` requests, `depth` at once.
    fn begin(self: &Rc<Asking>, count: u64, depth: u32) -> Vec<Task> {
        self.left.set(count);
        let lane = |_| {
            let asking = Rc::clone(self);
            self.client.locality().spawn("asking", async move {
                if let Err(failure) = asking.ask().await {
                    asking.left.set(0);
                    asking.failure.borrow_mut().get_or_insert(failure);
                }
                asking.ended.add(1);
            })
        };
        (0..depth).map(lane).collect()
    }

    async fn ask(&self) -> Result<(), Failure> {
        let ping = Ping { payload: vec![7; self.payload_bytes].into() };
        let (device, component, generation) =
            (Fid::new(FidType::Device, 0, 1), Fid::new(FidType::Component, 0, 1), 1);
        let extents = vec![BlockExtent { start: 0, count: 1 }];
        let checksums = vec![0];
        let write = ComponentWrite { device, component, generation, extents: extents.clone(), checksums };
        let read = ComponentRead { device, component, generation, extents };
        let source = vec![buffer(&self.client, self.payload_bytes.max(1))?.freeze()];
        // One call begins where the one before ended: one look at the clock for each.
        let mut began = self.clock.now();
        while let Some(left) = self.left.get().checked_sub(1) {
            self.left.set(left);
            let options = CallOptions::until(self.client.locality().now() + REQUEST_WITHIN);
            let failed = |error: CallError| Failure::new(error.to_string());
            match self.bulk {
                None => {
                    let asked = self.client.call(self.to, &ping, Bulk::none(), options);
                    if asked.await.map_err(failed)?.reply.payload.len() != self.payload_bytes {
                        return Err(Failure::new("an echo of another length than its request"));
                    }
                }
                Some(Way::In) => {
                    let bulk = Bulk::from_source(source.clone());
                    self.client.call(self.to, &write, bulk, options).await.map_err(failed)?;
                }
                Some(Way::Out) => {
                    let bulk = Bulk::into_sink(vec![buffer(&self.client, self.payload_bytes.max(1))?]);
                    self.client.call(self.to, &read, bulk, options).await.map_err(failed)?;
                }
            }
            if self.times_each {
                let ended = self.clock.now();
                let ns = u64::try_from((ended - began).as_nanos()).unwrap_or(u64::MAX);
                self.waited_ns.borrow_mut().saturating_record(ns);
                began = ended;
            }
            self.answered.add(1);
        }
        Ok(())
    }

    /// The failure of a lane, if there is one.
    fn outcome(&self) -> Result<(), Failure> {
        self.failure.borrow_mut().take().map_or(Ok(()), Err)
    }
}

struct Began {
    at: base::Instant,
    usage: Usage,
    allocations: u64,
}

impl Began {
    fn now(clock: &MonotonicClock, sides: &Sides, cpu_time: fn() -> Duration) -> Began {
        let counters = Counters::sum(sides.counters.iter().map(|one| &**one));
        Began { at: clock.now(), usage: Usage::now(&counters, cpu_time()), allocations: allocations() }
    }

    fn found(self, now: Began, requests: u64, waited_ns: Histogram<u32>) -> Found {
        Found {
            requests,
            took: now.at - self.at,
            usage: now.usage.since(&self.usage),
            allocations: now.allocations - self.allocations,
            waited_ns,
        }
    }
}

/// What the two sides of a load share, and where they are.
struct Sides {
    load: Load,
    /// Of the server and of the client.
    counters: [Arc<Counters>; 2],
    crowd: Arc<Crowd>,
    lo: LoFabric,
    to: Endpoint,
    own: Endpoint,
}

impl Sides {
    fn new(load: Load) -> Result<Sides, Failure> {
        let (to, own) = load.endpoints()?;
        Ok(Sides::between(load, to, own))
    }

    fn between(load: Load, to: Endpoint, own: Endpoint) -> Sides {
        let crowd = Crowd::that_waits(Waiting::Adaptive);
        Sides { load, counters: Default::default(), crowd, lo: LoFabric::new(), to, own }
    }

    /// Asks requests, of which `timed` count, and waits for their answers as a program does.
    fn ask(
        &self,
        locality: &mut Locality,
        client: &RpcMachine,
        clock: &MonotonicClock,
        (untimed, timed): (u64, u64),
    ) -> Result<Found, Failure> {
        let asking = Asking::new(client, self.to, *clock, &self.load)?;
        let mut phase = |count: u64, lanes_before: u64| -> Result<(), Failure> {
            let _lanes = asking.begin(count, self.load.depth);
            let done = asking.ended.reached(lanes_before + u64::from(self.load.depth));
            locality.block_on(clock, done).map_err(Failure::while_doing("waiting for answers"))?;
            asking.outcome()
        };
        phase(untimed, 0)?;
        asking.waited_ns.borrow_mut().reset();
        let before = Began::now(clock, self, process::cpu_time);
        phase(timed, self.load.depth.into())?;
        let after = Began::now(clock, self, process::cpu_time);
        let waited_ns = asking.waited_ns.borrow().clone();
        Ok(before.found(after, timed, waited_ns))
    }

    fn server(&self) -> Result<(Locality, RpcMachine), Failure> {
        self.start(0, "server", self.to, true)
    }

    fn client(&self) -> Result<(Locality, RpcMachine), Failure> {
        self.start(1, "client", self.own, self.load.net == Net::Lo)
    }

    fn start(
        &self,
        index: u8,
        name: &str,
        endpoint: Endpoint,
        listens: bool,
    ) -> Result<(Locality, RpcMachine), Failure> {
        let counters = &self.counters[usize::from(index)];
        let locality = locality(index.into(), name, counters, &self.crowd)?;
        let (fabric, security) = (self.load.fabric(&self.lo), Token::new([7; 32]).into());
        let tm = start_machine(&locality, &fabric, endpoint, listens, security, REQUEST_WITHIN)?;
        let machine = RpcMachine::start(&locality.handle(), tm, self.load.config());
        Ok((locality, machine))
    }
}

/// Both sides in this thread, turned in turns: nobody spins or sleeps, and its CPU time and allocations are those of the requests.
fn one_thread(load: Load, untimed: u64, timed: u64) -> Result<Found, Failure> {
    let clock = MonotonicClock::start();
    let sides = Sides::new(load)?;
    let to = sides.to;
    let (mut server_side, server) = sides.server()?;
    let (mut client_side, client) = sides.client()?;
    serve(&server, &load)?;
    let asking = Asking::new(&client, to, clock, &load)?;
    let _lanes = asking.begin(untimed + timed, load.depth);
    let mut turn_until = |is_reached: &dyn Fn() -> bool| {
        while !is_reached() {
            client_side.turn(clock.now());
            server_side.turn(clock.now());
        }
    };
    let all_ended = || asking.ended.get() == u64::from(load.depth);
    turn_until(&|| asking.answered.get() >= untimed || all_ended());
    let answered_before = asking.answered.get();
    let before = Began::now(&clock, &sides, process::thread_cpu_time);
    turn_until(&all_ended);
    let after = Began::now(&clock, &sides, process::thread_cpu_time);
    asking.outcome()?;
    if load.addb_records > 0 && server.addb().count(Phase::Done) != untimed + timed {
        return Err(Failure::new("the server did not answer each request once"));
    }
    let requests = asking.answered.get() - answered_before;
    let waited_ns = asking.waited_ns.borrow().clone();
    Ok(before.found(after, requests, waited_ns))
}

/// What a client process asks last: the server tells what it used, and ends.
const LAST_WORD: &[u8] = b"that was all";

/// `clovis bench rpc --serve-echoes ENDPOINT`: says `serves`, then, after the last word of its client, the counts and nanoseconds of CPU that it used.
pub fn serve_echoes(at: &str) -> Result<(), Failure> {
    let to: Endpoint = at.parse().map_err(|error| Failure::new(format!("--serve-echoes {at}: {error}")))?;
    let clock = MonotonicClock::start();
    let sides = Sides::between(Load::new(Net::Tcp, ECHO_BYTES, 1), to, to);
    let (mut locality, machine) = sides.server()?;
    let is_over = Rc::new(CountWaiter::default());
    let over = Rc::clone(&is_over);
    machine.serve(move |_fom, ping: Ping| {
        if ping.payload[..] == *LAST_WORD {
            over.add(1);
        }
        std::future::ready(Ok(PingReply { payload: ping.payload, epoch: 1 }))
    });
    println!("serves");
    // The last answer leaves with the turn in which its request came.
    locality.block_on(&clock, is_over.reached(1)).map_err(Failure::while_doing("waiting for requests"))?;
    let usage = Usage::now(&sides.counters[0], process::cpu_time());
    let counts = usage.counts().map(|count| count.to_string()).join(" ");
    println!("{counts} {}", usage.cpu.as_nanos());
    Ok(())
}

/// What [`serve_echoes`] says at its end.
fn parse_usage(text: &str) -> Option<Usage> {
    let numbers: Vec<u64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let (cpu_ns, counts) = numbers.split_last()?;
    Some(Usage::from_counts(counts.try_into().ok()?, Duration::from_nanos(*cpu_ns)))
}

/// Client and server in a process each, as peers have them. What the server used has its start in it.
fn two_processes(load: Load, untimed: u64, timed: u64) -> Result<Found, Failure> {
    let program = std::env::current_exe().map_err(Failure::while_doing("looking for this program"))?;
    let (to, own) = load.endpoints()?;
    let mut command = Command::new(program);
    command.args(["bench", "rpc", "--serve-echoes", &to.to_string()]);
    let server = Serving::start(&mut command, "serves", "the server of echoes")?;
    let clock = MonotonicClock::start();
    let sides = Sides::between(load, to, own);
    let (mut locality, client) = sides.client()?;
    let mut found = sides.ask(&mut locality, &client, &clock, (untimed, timed))?;
    let last = Ping { payload: LAST_WORD.to_vec().into() };
    let options = CallOptions::until(locality.handle().now() + REQUEST_WITHIN);
    let said = client.call(to, &last, Bulk::none(), options);
    let said =
        locality.block_on(&clock, said).map_err(Failure::while_doing("waiting for the last answer"))?;
    said.map_err(|error| Failure::new(format!("the server of echoes: {error}")))?;
    let text = server.end()?;
    let of_server = parse_usage(&text)
        .ok_or_else(|| Failure::new(format!("the server of echoes said {text:?} at its end")))?;
    found.usage = found.usage.plus(&of_server);
    Ok(found)
}

/// Client and server on a thread each, spinning and sleeping as they do in a cluster.
fn two_threads(load: Load, untimed: u64, timed: u64) -> Result<Found, Failure> {
    let (clock, stop) = (MonotonicClock::start(), StopFlag::new());
    let sides = Sides::new(load)?;
    std::thread::scope(|scope| {
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (sides, clock, stop) = (&sides, &clock, &stop);
        let thread = std::thread::Builder::new().name("server".to_owned());
        let serving = thread
            .spawn_scoped(scope, move || {
                let (mut locality, machine) = sides.server()?;
                serve(&machine, &load)?;
                let _ = ready.send(()); // the client gave up if nobody listens: then the flag is set, too
                locality.run(clock, stop).map_err(Failure::while_doing("waiting for events"))
            })
            .map_err(Failure::while_doing("starting a thread"))?;
        let serves = is_ready.recv().is_ok();
        let asked = || {
            let (mut locality, client) = sides.client()?;
            sides.ask(&mut locality, &client, clock, (untimed, timed)).map(Some)
        };
        let asked = if serves { asked() } else { Ok(None) };
        stop.stop();
        let served = match serving.join() {
            Ok(served) => served,
            Err(_) => Err(Failure::new("the server panicked")),
        };
        let found = asked?;
        served?;
        found.ok_or_else(|| Failure::new("the server ended early"))
    })
}

/// For reports: two or three digits matter.
#[allow(clippy::cast_precision_loss)]
fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_load_is_answered_and_counted() {
        for net in [Net::Lo, Net::Tcp] {
            for (payload_bytes, depth) in [(0, 1), (ECHO_BYTES, 16)] {
                let load = Load::new(net, payload_bytes, depth);
                for found in [one_thread(load, 100, 400).unwrap(), two_threads(load, 100, 400).unwrap()] {
                    assert!((385..=400).contains(&found.requests), "{net:?}: {} requests", found.requests);
                    assert!(found.took > Duration::ZERO && found.sample().bytes > 0);
                    assert_eq!(found.waited_ns.len() >= 400, depth == 1);
                    assert!(
                        depth != 1 || found.waited_ns.value_at_quantile(0.5) > 500,
                        "no call takes half a microsecond"
                    );
                }
            }
        }
    }

    #[test]
    fn bulk_goes_both_ways_inside_and_by_itself() {
        for net in [Net::Lo, Net::Tcp] {
            for (way, inline_bytes) in [(Way::In, 0), (Way::In, 8192), (Way::Out, 0), (Way::Out, 8192)] {
                let load = Load { bulk: Some(way), inline_bytes, ..Load::new(net, 8192, 4) };
                let found = one_thread(load, 20, 100).unwrap();
                // Of what was in flight when the clock started, one copy or both were made before.
                let (copied, whole) = (found.usage.copied_bytes, found.requests - u64::from(load.depth));
                let is_copied_twice = copied >= whole * 2 * 8192;
                assert_eq!(is_copied_twice, inline_bytes > 0, "{net:?} {way:?}: {copied} of {whole}");
            }
        }
    }

    #[test]
    fn formation_saves_messages_and_off_keeps_the_batch_of_a_turn() {
        let on = Load::new(Net::Tcp, ECHO_BYTES, DEPTH);
        let [on, off] = [on, Load { packs: false, ..on }].map(|load| one_thread(load, 1000, 4000).unwrap());
        assert!(on.usage.copied_bytes > off.usage.copied_bytes, "packets are copies");
        // Turned in turns, 64 requests of a turn leave with one call on either way; off pays for more reads.
        let each = off.each(off.usage.syscalls);
        assert!(each < 1.0, "{each} system calls for a request with formation off");
    }

    #[test]
    fn what_others_print_is_understood_or_refused() {
        let (sample, costs) = parse_echoes("1000 5000 8000\n").unwrap();
        assert_eq!((sample.bytes, sample.took, costs.bytes), (64_000, Duration::from_nanos(8000), 64_000));
        assert_eq!((parse_echoes("1000 5000").is_none(), parse_echoes("1 2 x").is_none()), (true, true));
        let usage = parse_usage("1 2 3 4 5 6 7000\n").unwrap();
        assert_eq!((usage.counts(), usage.cpu.as_nanos()), ([1, 2, 3, 4, 5, 6], 7000));
        assert!(parse_usage("1 2 3").is_none() && parse_usage("").is_none());
        assert!(serve_echoes("nowhere").is_err());
        assert_eq!(parse_callgrind("==7== \n==7== Collected : 12345\n"), Some(12_345));
        assert_eq!(parse_callgrind("==7== no such thing"), None);
        for order in ["", "5", "x,1", "5,-1"] {
            assert!(null_requests(order).is_err(), "{order}");
        }
        null_requests("5,64").unwrap();
    }
}
