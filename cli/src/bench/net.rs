//! The transport alone over TCP loopback: bulk beside one stream of iperf3, and the round trip of a small message.
//!
//! Two localities on two threads, each with a transfer machine, no rpc and no layout. The requester exposes 1 MiB, names it in a
//! 64-byte message, the server pulls (or pushes) it and answers by a message, and the requester exposes the next: what a
//! write (or a read) does to the net, with [`WINDOW`] requests in flight. iperf3 writes the same number of bytes.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::RawFd;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::units::{MIB, narrow, wide};
use base::{Endpoint, Instant, Nid};
use hdrhistogram::Histogram;
use runtime::{
    Arena, ArenaConfig, Buffer, Counters, Crowd, Driver, Locality, LocalityConfig, MonotonicClock,
    SharedBuffer, StopFlag, process,
};
use verbs_net::{
    BulkCookie, BulkDescriptor, Event, Fabric, Lane, PeerId, Retract, TmConfig, TransferId, TransferMachine,
};

use super::machine::{ProcessTimes, Quiet};
use super::pairs::{SAMPLE_TIME_MIN, Sample, interleave};
use super::peer::{find_program, output};
use super::report::{Comparison, Costs, Figure, Peer};
use super::round_trip::PingPong;
use super::{Plan, announce};
use crate::failure::Failure;

/// The issue's target beside one stream of iperf3.
const TARGET: f64 = 0.6;
/// Bulk of one request.
const REQUEST_BYTES: u64 = MIB;
/// Requests in flight: below the credits of requests (three quarters of 32).
const WINDOW: u32 = 16;
/// Bytes of a request, a reply and a ping.
pub(super) const MESSAGE_BYTES: usize = 64;
/// Memory of each side.
const ARENA_BYTES: u64 = 128 * MIB;
/// A sample that takes longer has lost something.
const SAMPLE_WITHIN: Duration = Duration::from_secs(120);

/// What the requester wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The server reads the requester's memory, as for a write of an object.
    Pull,
    /// The server writes it, as for a read.
    Push,
    /// No bulk: a message there and back.
    Ping,
}

/// One sample.
#[derive(Clone, Copy, Debug)]
struct Work {
    mode: Mode,
    /// Requests before the clock starts.
    untimed: u64,
    /// Requests under the clock.
    timed: u64,
    /// In flight at once; one for [`Mode::Ping`].
    window: u32,
}

/// What the requester found.
struct Found {
    took: Duration,
    costs: Costs,
    /// Of [`Mode::Ping`] only.
    round_trips_ns: Histogram<u64>,
}

/// Measures bulk both ways and the round trip.
pub fn run(plan: &Plan) -> Result<(Vec<Comparison>, Vec<Figure>), Failure> {
    let iperf = find_program("iperf3").map(|_| iperf_version()).transpose()?;
    let bytes = if plan.is_quick { 512 * MIB } else { 4096 * MIB };
    let mut comparisons = Vec::new();
    for (mode, what) in [(Mode::Pull, "TCP loopback, bulk pulled"), (Mode::Push, "TCP loopback, bulk pushed")]
    {
        announce(what);
        comparisons.push(bulk(plan, mode, what, bytes, iperf.as_deref())?);
    }
    announce("TCP loopback, round trip");
    let figures = round_trip(plan)?;
    for peer in [PingPong::Sockperf, PingPong::Ucx] {
        announce(peer.name());
        comparisons.push(round_trips_beside(plan, peer)?);
    }
    Ok((comparisons, figures))
}

/// Round trips per second beside those of another program; the sample's bytes are those of the messages one way.
fn round_trips_beside(plan: &Plan, peer: PingPong) -> Result<Comparison, Failure> {
    let lasting = if plan.is_quick { Duration::from_millis(500) } else { SAMPLE_TIME_MIN * 11 / 10 };
    let ping = |timed: u64| sample(Work { mode: Mode::Ping, untimed: 200, timed, window: 1 });
    // How many round trips fill the time, by a short look.
    let look = ping(5_000)?;
    let one = (look.took / 5_000).max(Duration::from_nanos(1));
    let timed =
        u64::try_from(lasting.as_nanos() / one.as_nanos()).unwrap_or(u64::MAX).clamp(1_000, 5_000_000);
    let quiet = Quiet::start();
    let mut costs = Costs::default();
    let mut ours = || {
        let found = ping(timed)?;
        let bytes = timed * wide(MESSAGE_BYTES);
        costs.add(Costs { bytes, ..found.costs });
        Ok(Sample { bytes, took: found.took })
    };
    let (mut pairs, mut alone) = (Vec::new(), Vec::new());
    let absent = peer.find().err();
    if absent.is_none() {
        pairs = interleave(plan.pairs, ours, || peer.sample(lasting, one))?;
    } else {
        for _ in 0..plan.pairs {
            alone.push(ours()?);
        }
    }
    Ok(Comparison {
        what: format!("TCP loopback, {MESSAGE_BYTES} B there and back, {}", peer.name()),
        peer: absent.map_or_else(|| Peer::Ran(peer.name().to_owned()), |absent| Peer::Absent(absent.0)),
        target: Some(peer.target()),
        pairs,
        alone,
        costs,
        peer_costs: None,
        others: quiet.others(),
        note: "one message of 64 B at a time, rates count 64 B for each round trip; two threads of ours, two processes of the \
               peer's, each sleeping as it does by default"
            .to_owned(),
        is_quick: plan.is_quick,
    })
}

fn bulk(plan: &Plan, mode: Mode, what: &str, bytes: u64, iperf: Option<&str>) -> Result<Comparison, Failure> {
    let work = Work { mode, untimed: u64::from(WINDOW), timed: bytes / REQUEST_BYTES, window: WINDOW };
    let quiet = Quiet::start();
    let (mut costs, mut peer_costs) = (Costs::default(), Costs::default());
    let mut ours = || {
        let found = sample(work)?;
        costs.add(found.costs);
        Ok(Sample { bytes: found.costs.bytes, took: found.took })
    };
    let (mut pairs, mut alone) = (Vec::new(), Vec::new());
    if iperf.is_some() {
        pairs = interleave(plan.pairs, ours, || {
            let (sample, cost) = iperf_sample(bytes)?;
            peer_costs.add(cost);
            Ok(sample)
        })?;
    } else {
        for _ in 0..plan.pairs {
            alone.push(ours()?);
        }
    }
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
    let found = sample(Work { mode: Mode::Ping, untimed: 200, timed, window: 1 })?;
    let figure = |quantile: f64| Figure {
        what: format!("TCP loopback, {MESSAGE_BYTES} B round trip, p{:.0}", quantile * 100.0),
        // Nanoseconds of a round trip: far below 2^53.
        #[allow(clippy::cast_precision_loss)]
        value: found.round_trips_ns.value_at_quantile(quantile) as f64 / 1e3,
        unit: "us",
        under: None,
        counts: !plan.is_quick,
        note: format!("{timed} messages, one at a time, two threads"),
    };
    Ok(vec![figure(0.5), figure(0.99)])
}

/// Runs both sides until the requester is done.
fn sample(work: Work) -> Result<Found, Failure> {
    let counters = Arc::new(Counters::default());
    let crowd = Crowd::new();
    let stop = StopFlag::new();
    let station = |index: u32, name: &str| -> Result<Locality, Failure> {
        let arena = Arena::new(ArenaConfig { capacity_bytes: ARENA_BYTES })
            .map_err(Failure::while_doing("reserving memory for buffers"))?;
        Ok(Locality::new(LocalityConfig {
            index,
            name: name.to_owned(),
            seed: fastrand::Rng::new().u64(1..),
            counters: Arc::clone(&counters),
            arena,
            crowd: Some(Arc::clone(&crowd)),
        }))
    };
    let clock = MonotonicClock::start();
    let address = free_endpoint()?;
    std::thread::scope(|scope| {
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (station, clock, stop) = (&station, &clock, &stop);
        let server = std::thread::Builder::new()
            .name("bench-server".to_owned())
            .spawn_scoped(scope, move || {
                let mut locality = station(1, "bench-server")?;
                let machine = start_machine(&locality, address, true)?;
                let side = Server {
                    mode: work.mode,
                    content: None,
                    outbox: Outbox::default(),
                    pulls: BTreeMap::new(),
                };
                // The requester gave up if it does not listen: then the flag is set, too.
                let _ = ready.send(());
                drive(&mut locality, clock, stop, machine, side).map(drop)
            })
            .map_err(Failure::while_doing("starting a thread"))?;
        // An error: the server ended before it served, and says why below.
        let served = is_ready.recv().is_ok();
        let asked = if served {
            ask(&mut station(0, "bench-requester")?, clock, stop, address, work)
        } else {
            Ok(None)
        };
        stop.stop();
        let answered = match server.join() {
            Ok(answered) => answered,
            Err(_) => Err(Failure::new("the bench server panicked")),
        };
        let found = asked?;
        answered?;
        found.ok_or_else(|| Failure::new("the bench server ended early"))
    })
}

fn ask(
    locality: &mut Locality,
    clock: &MonotonicClock,
    stop: &StopFlag,
    server: Endpoint,
    work: Work,
) -> Result<Option<Found>, Failure> {
    let own = verbs_net::dynamic_endpoint(Nid::tcp(Ipv4Addr::LOCALHOST), std::process::id(), 0);
    let machine = start_machine(locality, own, false)?;
    let arena = locality.handle().arena().clone();
    let buffer = || {
        let mut buffer = arena
            .try_alloc(narrow(REQUEST_BYTES))
            .ok_or_else(|| Failure::new("the requester's arena is too small"))?;
        fastrand::Rng::with_seed(1).fill(&mut buffer);
        Ok::<Buffer, Failure>(buffer)
    };
    let count = if work.mode == Mode::Ping { 0 } else { work.window };
    let idle = (0..count).map(|_| buffer()).collect::<Result<Vec<_>, _>>()?;
    let longest_ns = u64::try_from(SAMPLE_WITHIN.as_nanos()).unwrap_or(u64::MAX);
    let histogram =
        Histogram::new_with_bounds(1, longest_ns, 3).map_err(Failure::while_doing("making a histogram"))?;
    let side = Requester {
        work,
        server: PeerId::any(server),
        clock: *clock,
        outbox: Outbox::default(),
        idle: idle.into_iter().map(Buffer::freeze).collect(),
        asked: 0,
        answered: 0,
        exposed: BTreeMap::new(),
        ping_sent: Instant::ZERO,
        began: None,
        found: None,
        histogram,
    };
    Ok(drive(locality, clock, stop, machine, side)?.found)
}

/// A free port of loopback below those that the kernel hands out.
pub(super) fn free_endpoint() -> Result<Endpoint, Failure> {
    let mut random = fastrand::Rng::new();
    let free = (0..100)
        .map(|_| random.u16(8192..32_768))
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok());
    free.and_then(|port| Endpoint::from_port(Nid::tcp(Ipv4Addr::LOCALHOST), port))
        .ok_or_else(|| Failure::new("no free port on 127.0.0.1"))
}

fn start_machine(locality: &Locality, endpoint: Endpoint, listen: bool) -> Result<TransferMachine, Failure> {
    let epoch = fastrand::Rng::new().u64(1..);
    let config = TmConfig::new(endpoint, listen, epoch, [7; 32], Rc::default());
    TransferMachine::start(&locality.handle(), &Fabric::Tcp, config)
        .map_err(Failure::while_doing("starting the network"))
}

/// One side's part in the conversation.
trait Side {
    /// Called once, before the first event.
    fn begin(&mut self, context: &mut Context<'_>) -> Result<(), Failure>;
    /// Takes an event.
    fn handle(&mut self, context: &mut Context<'_>, event: Event) -> Result<(), Failure>;
    /// True once there is nothing more to do.
    fn is_done(&self) -> bool;
}

/// What a side works with.
struct Context<'a> {
    machine: &'a mut TransferMachine,
    now: Instant,
    deadline: Instant,
    arena: &'a Arena,
    counters: &'a Counters,
}

/// Makes a transfer machine and its side a driver of a locality.
struct Driven<S> {
    machine: TransferMachine,
    side: S,
    is_begun: bool,
    deadline: Instant,
    arena: Arena,
    counters: Arc<Counters>,
    outcome: Option<Result<(), Failure>>,
    stop: StopFlag,
}

impl<S: Side> Driven<S> {
    fn step(&mut self, now: Instant, budget: usize) -> Result<usize, Failure> {
        let mut context = Context {
            machine: &mut self.machine,
            now,
            deadline: self.deadline,
            arena: &self.arena,
            counters: &self.counters,
        };
        if !self.is_begun {
            self.is_begun = true;
            self.side.begin(&mut context)?;
        }
        if now > self.deadline {
            return Err(Failure::new(format!("no end after {} s", SAMPLE_WITHIN.as_secs())));
        }
        let handled = context.machine.poll(now, budget);
        while let Some(event) = context.machine.next_event() {
            self.side.handle(&mut context, event)?;
        }
        Ok(handled)
    }
}

impl<S: Side> Driver for Driven<S> {
    fn poll(&mut self, now: Instant, budget: usize) -> usize {
        if self.outcome.is_some() {
            return 0;
        }
        let step = self.step(now, budget);
        if step.is_err() || self.side.is_done() {
            self.stop.stop();
        }
        match step {
            Ok(handled) => {
                self.outcome = self.side.is_done().then_some(Ok(()));
                handled
            }
            Err(failure) => {
                self.outcome = Some(Err(failure));
                1
            }
        }
    }

    fn flush(&mut self, now: Instant) {
        self.machine.flush(now);
    }

    fn next_deadline(&self) -> Option<Instant> {
        if !self.is_begun {
            return Some(Instant::ZERO);
        }
        Some(self.machine.next_deadline().map_or(self.deadline, |next| next.min(self.deadline)))
    }

    fn wait_fd(&self) -> Option<RawFd> {
        self.machine.wait_fd()
    }

    fn before_sleep(&mut self) -> bool {
        self.machine.before_sleep()
    }
}

/// Runs a side until it is done or the other one has set the flag.
fn drive<S: Side + 'static>(
    locality: &mut Locality,
    clock: &MonotonicClock,
    stop: &StopFlag,
    machine: TransferMachine,
    side: S,
) -> Result<S, Failure> {
    let handle = locality.handle();
    let driven = Rc::new(RefCell::new(Driven {
        machine,
        side,
        is_begun: false,
        deadline: clock.now() + SAMPLE_WITHIN,
        arena: handle.arena().clone(),
        counters: Arc::clone(handle.counters()),
        outcome: None,
        stop: stop.clone(),
    }));
    let driver: Rc<RefCell<dyn Driver>> = driven.clone();
    handle.add_driver(Rc::clone(&driver));
    locality.run(clock, stop).map_err(Failure::while_doing("waiting for events"))?;
    handle.remove_driver(&driver);
    drop(driver);
    let driven =
        Rc::try_unwrap(driven).map_err(|_| Failure::new("the locality kept the driver"))?.into_inner();
    driven.outcome.unwrap_or(Ok(())).map(|()| driven.side)
}

/// Messages that the net did not take yet, in order.
#[derive(Default)]
struct Outbox {
    waiting: VecDeque<(PeerId, Lane, SharedBuffer)>,
}

impl Outbox {
    fn send(
        &mut self,
        context: &mut Context<'_>,
        to: PeerId,
        lane: Lane,
        message: SharedBuffer,
    ) -> Result<(), Failure> {
        self.waiting.push_back((to, lane, message));
        self.retry(context)
    }

    fn retry(&mut self, context: &mut Context<'_>) -> Result<(), Failure> {
        while let Some((to, lane, message)) = self.waiting.pop_front() {
            let Err((refused, message)) = context.machine.try_send_on(context.now, to, lane, message) else {
                continue;
            };
            if refused.is_permanent() {
                return Err(Failure::new(format!("the net refuses a message: {refused}")));
            }
            self.waiting.push_front((to, lane, message));
            return Ok(()); // Event::Writable follows
        }
        Ok(())
    }
}

/// A message of [`MESSAGE_BYTES`]: its number, then what is left of `rest` zeros.
fn message(context: &Context<'_>, number: u64, rest: &[u8]) -> Result<SharedBuffer, Failure> {
    let mut bytes = [0; MESSAGE_BYTES];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..8 + rest.len()].copy_from_slice(rest);
    SharedBuffer::copy_from_slice(context.arena, &bytes, context.counters)
        .ok_or_else(|| Failure::new("no memory for a message"))
}

fn number_of(bytes: &[u8]) -> Result<u64, Failure> {
    let head = bytes.first_chunk().ok_or_else(|| Failure::new("a message came that is too short"))?;
    Ok(u64::from_le_bytes(*head))
}

/// Bytes of a descriptor with one segment.
const DESCRIPTOR_BYTES: usize = verbs_net::descriptor::DESCRIPTOR_HEAD_BYTES + 4;
const _: () = assert!(8 + DESCRIPTOR_BYTES <= MESSAGE_BYTES);

/// Asks, and takes the time.
struct Requester {
    work: Work,
    server: PeerId,
    clock: MonotonicClock,
    outbox: Outbox,
    /// Buffers of no request.
    idle: Vec<SharedBuffer>,
    asked: u64,
    answered: u64,
    exposed: BTreeMap<u64, BulkCookie>,
    ping_sent: Instant,
    began: Option<(Instant, Costs)>,
    found: Option<Found>,
    histogram: Histogram<u64>,
}

impl Requester {
    fn ask(&mut self, context: &mut Context<'_>) -> Result<(), Failure> {
        let number = self.asked;
        let descriptor = match self.work.mode {
            Mode::Ping => None,
            Mode::Pull => self.idle.pop().map(|part| context.machine.expose_source(&[part])),
            Mode::Push => {
                let buffer = self.idle.pop().map(SharedBuffer::try_unshare).transpose();
                let buffer = buffer.map_err(|_| Failure::new("the net kept a buffer that was given back"))?;
                buffer.map(|buffer| context.machine.expose_sink(vec![buffer]))
            }
        };
        if descriptor.is_none() && self.work.mode != Mode::Ping {
            return Err(Failure::new("no buffer for a request in the window"));
        }
        let bytes = descriptor.as_ref().map(BulkDescriptor::to_bytes).unwrap_or_default();
        let message = message(context, number, &bytes)?;
        if let Some(descriptor) = descriptor {
            self.exposed.insert(number, descriptor.cookie());
        }
        self.asked += 1;
        self.ping_sent = self.clock.now();
        self.outbox.send(context, self.server, Lane::Request, message)
    }

    fn on_answer(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Result<(), Failure> {
        let number = number_of(bytes)?;
        if let Some(cookie) = self.exposed.remove(&number) {
            let now = self.clock.now();
            let parts = context.machine.retract(now, cookie, Retract::Answered).done();
            self.idle.extend(parts.ok_or_else(|| Failure::new("an exposure ended by itself"))?);
        }
        self.answered += 1;
        let now = self.clock.now();
        let Work { untimed, timed, .. } = self.work;
        if self.work.mode == Mode::Ping && self.answered > untimed {
            let waited = u64::try_from((now - self.ping_sent).as_nanos()).unwrap_or(u64::MAX);
            self.histogram.saturating_record(waited);
        }
        if self.answered == untimed {
            self.began = Some((now, Costs::now(context.counters, process::cpu_time())));
        }
        if self.answered == untimed + timed {
            let bytes = if self.work.mode == Mode::Ping { 0 } else { timed * REQUEST_BYTES };
            let after = Costs::now(context.counters, process::cpu_time());
            self.found = self.began.map(|(began, before)| Found {
                took: now - began,
                costs: after.since(&before, bytes),
                round_trips_ns: self.histogram.clone(),
            });
        }
        if self.asked < untimed + timed { self.ask(context) } else { Ok(()) }
    }
}

impl Side for Requester {
    fn begin(&mut self, context: &mut Context<'_>) -> Result<(), Failure> {
        (0..self.work.window).try_for_each(|_| self.ask(context))
    }

    fn handle(&mut self, context: &mut Context<'_>, event: Event) -> Result<(), Failure> {
        match event {
            Event::Message { bytes, .. } => self.on_answer(context, &bytes),
            Event::Writable(_) => self.outbox.retry(context),
            Event::PeerLost { error, .. } => Err(Failure::new(format!("the bench server is gone: {error}"))),
            Event::PeerUp(..) | Event::TransferDone { .. } | Event::Retracted { .. } => Ok(()),
        }
    }

    fn is_done(&self) -> bool {
        self.found.is_some()
    }
}

/// Moves the bulk and answers.
struct Server {
    mode: Mode,
    /// What is pushed, the same bytes each time.
    content: Option<SharedBuffer>,
    outbox: Outbox,
    pulls: BTreeMap<TransferId, (PeerId, u64)>,
}

impl Server {
    fn on_request(
        &mut self,
        context: &mut Context<'_>,
        from: PeerId,
        bytes: SharedBuffer,
    ) -> Result<(), Failure> {
        if self.mode == Mode::Ping {
            return self.outbox.send(context, from, Lane::Reply, bytes);
        }
        let number = number_of(&bytes)?;
        let descriptor = BulkDescriptor::parse(&bytes[8..8 + DESCRIPTOR_BYTES])
            .map_err(Failure::while_doing("reading a request's descriptor"))?;
        if self.mode == Mode::Pull {
            let id = context.machine.start_pull(context.now, from, &descriptor, context.deadline);
            self.pulls.insert(id, (from, number));
            return Ok(());
        }
        let Some(content) = self.content.clone() else {
            return Err(Failure::new("the bench server has nothing to push"));
        };
        context.machine.start_push(context.now, from, &descriptor, 0, vec![content], context.deadline);
        // Behind the bytes: the net delivers a message sent after a push after what was pushed.
        let answer = message(context, number, &[])?;
        self.outbox.send(context, from, Lane::Reply, answer)
    }
}

impl Side for Server {
    fn begin(&mut self, context: &mut Context<'_>) -> Result<(), Failure> {
        let mut content = context
            .arena
            .try_alloc(narrow(REQUEST_BYTES))
            .ok_or_else(|| Failure::new("the server's arena is too small"))?;
        fastrand::Rng::with_seed(2).fill(&mut content);
        self.content = Some(content.freeze());
        Ok(())
    }

    fn handle(&mut self, context: &mut Context<'_>, event: Event) -> Result<(), Failure> {
        match event {
            Event::Message { from, bytes } => self.on_request(context, from, bytes),
            Event::Writable(_) => self.outbox.retry(context),
            Event::TransferDone { id, result } => {
                // The bytes are dropped here: what a store would do with them is not the net's speed.
                let bytes = result.map_err(Failure::while_doing("moving bulk"))?;
                drop(bytes);
                let Some((from, number)) = self.pulls.remove(&id) else { return Ok(()) };
                let answer = message(context, number, &[])?;
                self.outbox.send(context, from, Lane::Reply, answer)
            }
            // At the end the requester goes first.
            Event::PeerLost { .. } | Event::PeerUp(..) | Event::Retracted { .. } => Ok(()),
        }
    }

    fn is_done(&self) -> bool {
        false
    }
}

// ---------------------------------------------------------------- iperf3

fn iperf_version() -> Result<String, Failure> {
    let text = output(Command::new("iperf3").arg("--version"))?;
    Ok(text.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
}

/// Ends a peer that is still running when something else failed.
pub(super) struct Running(pub(super) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has usually ended by itself; then there is nothing to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One stream, one way, `bytes` in all: rate as the receiver saw it, CPU time of both processes.
fn iperf_sample(bytes: u64) -> Result<(Sample, Costs), Failure> {
    let port = free_endpoint()?.port().unwrap_or_default().to_string();
    let own = std::process::id();
    let children = || ProcessTimes::of(own).map_or(Duration::ZERO, |times| times.children);
    let before = children();
    let server = Command::new("iperf3")
        .args(["--server", "--one-off", "--forceflush", "--bind", "127.0.0.1", "--port", &port])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(Failure::while_doing("starting iperf3 --server"))?;
    let mut server = Running(server);
    let words = server.0.stdout.take().ok_or_else(|| Failure::new("iperf3 --server has no output"))?;
    let mut words = BufReader::new(words);
    let mut line = String::new();
    while !line.contains("listening") {
        line.clear();
        let count =
            words.read_line(&mut line).map_err(Failure::while_doing("reading what iperf3 --server says"))?;
        if count == 0 {
            return Err(Failure::new("iperf3 --server ended before it listened"));
        }
    }
    let count = bytes.to_string();
    let client = ["--client", "127.0.0.1", "--port", &port, "--bytes", &count, "--json"];
    let text = output(Command::new("iperf3").args(client))?;
    // Its pipe must not fill up while it ends.
    let mut rest = Vec::new();
    words.read_to_end(&mut rest).map_err(Failure::while_doing("reading what iperf3 --server says"))?;
    server.0.wait().map_err(Failure::while_doing("waiting for iperf3 --server"))?;
    drop(server);
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
    fn each_mode_moves_what_was_asked_for() {
        for mode in [Mode::Pull, Mode::Push, Mode::Ping] {
            // The time of a round trip is that of the only message in flight.
            let window = if mode == Mode::Ping { 1 } else { 4 };
            let found = sample(Work { mode, untimed: 4, timed: 40, window }).unwrap();
            let (bytes, round_trips) = if mode == Mode::Ping { (0, 40) } else { (40 * REQUEST_BYTES, 0) };
            assert_eq!((found.costs.bytes, found.round_trips_ns.len()), (bytes, round_trips), "{mode:?}");
            if mode == Mode::Ping {
                let median_ns = found.round_trips_ns.value_at_quantile(0.5);
                assert!(median_ns > 1_000, "two threads and TCP in {median_ns} ns");
            }
            // Bulk is received straight into its buffer: only messages are copied, a few dozen bytes each.
            assert!(
                found.costs.copied_bytes.unwrap() <= 45 * 4 * 256,
                "{mode:?} copied {:?}",
                found.costs.copied_bytes
            );
        }
    }

    #[test]
    fn what_iperf_received_is_read_from_its_json() {
        let text = r#"{ "end": { "sum_received": { "seconds": 2.0, "bytes": 4294967296, "bits_per_second": 1.0 } } }"#;
        assert_eq!(parse_iperf(text), Some(Sample { bytes: 4 << 30, took: Duration::from_secs(2) }));
        assert_eq!(parse_iperf(r#"{ "error": "unable to connect" }"#), None);
    }
}
