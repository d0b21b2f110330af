//! Places for the two sides: a locality with memory, and both of them in one process.

use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::units::MIB;
use base::{Endpoint, NetKind, Nid};
use runtime::{
    Arena, ArenaConfig, Counters, Crowd, Locality, LocalityConfig, MonotonicClock, StopFlag, process,
};
use verbs_net::{Fabric, Security, TmConfig, TransferMachine};

use super::Work;
use super::requester::{Found, Requester};
use super::responder::Responder;
use super::side::drive;
use crate::connection::new_epoch;
use crate::failure::Failure;

/// Memory of each side; pages are taken as they are used.
pub const ARENA_BYTES: u64 = 256 * MIB;

/// A locality of its own.
pub fn locality(
    index: u32,
    name: &str,
    counters: &Arc<Counters>,
    crowd: &Arc<Crowd>,
) -> Result<Locality, Failure> {
    let arena = Arena::new(ArenaConfig { capacity_bytes: ARENA_BYTES })
        .map_err(Failure::while_doing("reserving memory for buffers"))?;
    Ok(Locality::new(LocalityConfig {
        index,
        name: name.to_owned(),
        seed: new_epoch()?,
        counters: Arc::clone(counters),
        arena,
        crowd: Some(Arc::clone(crowd)),
    }))
}

/// An endpoint of loopback over tcp where nobody listened a moment ago.
pub fn free_endpoint() -> Result<Endpoint, Failure> {
    let loopback = Nid::tcp(Ipv4Addr::LOCALHOST);
    verbs_net::free_endpoint(loopback)
        .map_err(|error| Failure::new(format!("no free port on 127.0.0.1: {error}")))
}

/// The machine of one side.
///
/// A request counts as lost after `within`: a connection may take a tenth of it to come up, and a peer may be silent for a sixth. That of 30 s
/// are the network's own times; programs under tools that make them a hundred times slower need longer ones.
pub fn start_machine(
    locality: &Locality,
    fabric: &Fabric,
    endpoint: Endpoint,
    listen: bool,
    security: Security,
    within: Duration,
) -> Result<TransferMachine, Failure> {
    let mut config = TmConfig::new(endpoint, listen, new_epoch()?, security, Rc::default());
    let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
    config.times.hello_ms_max = config.times.hello_ms_max.max(within_ms / 10);
    config.times.ping_wait_ms_max = config.times.ping_wait_ms_max.max(within_ms / 6);
    TransferMachine::start(&locality.handle(), fabric, config)
        .map_err(Failure::while_doing("starting the network"))
}

/// The endpoint of a requester that asks `responder`.
pub fn requester_endpoint(responder: Endpoint) -> Result<Endpoint, Failure> {
    let nid = if responder.nid.net.kind == NetKind::Lo {
        responder.nid
    } else {
        verbs_net::local_nid_towards(responder)
            .map_err(Failure::while_doing(format!("a way to {responder}")))?
    };
    let tmid = u16::try_from(new_epoch()? & u64::from(base::endpoint::TMID_MAX)).unwrap_or(0);
    Ok(verbs_net::dynamic_endpoint(nid, std::process::id(), tmid))
}

/// Asks as `work` says until it is done. `None`: `stop` was set by somebody else.
pub fn ask(
    locality: &mut Locality,
    machine: TransferMachine,
    clock: &MonotonicClock,
    stop: &StopFlag,
    requester: Requester,
    cpu_time: fn() -> Duration,
) -> Result<Option<Found>, Failure> {
    Ok(drive(locality, clock, stop, machine, requester, cpu_time)?.into_found())
}

/// Runs both sides in this process, each on a thread of its own with counters of its own, until the requester is done.
pub fn in_one_process(
    fabric: &(dyn Fn() -> Fabric + Sync),
    responder: Endpoint,
    security: &Security,
    work: Work,
) -> Result<Found, Failure> {
    let crowd = Crowd::that_waits(work.waiting);
    let stop = StopFlag::new();
    let clock = MonotonicClock::start();
    let cpu_time = process::thread_cpu_time;
    std::thread::scope(|scope| {
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (clock, stop, crowd) = (&clock, &stop, &crowd);
        let server = std::thread::Builder::new()
            .name("responder".to_owned())
            .spawn_scoped(scope, move || {
                let mut locality = locality(1, "responder", &Arc::default(), crowd)?;
                let machine =
                    start_machine(&locality, &fabric(), responder, true, security.clone(), work.within)?;
                // The requester gave up if it does not listen: then the flag is set, too.
                let _ = ready.send(());
                drive(&mut locality, clock, stop, machine, Responder::new(false), cpu_time).map(drop)
            })
            .map_err(Failure::while_doing("starting a thread"))?;
        // An error: the responder ended before it served, and says why below.
        let served = is_ready.recv().is_ok();
        let asked = || {
            let mut locality = locality(0, "requester", &Arc::default(), crowd)?;
            let own = requester_endpoint(responder)?;
            let machine = start_machine(&locality, &fabric(), own, false, security.clone(), work.within)?;
            let requester = Requester::new(responder, work, locality.handle().arena())?;
            ask(&mut locality, machine, clock, stop, requester, cpu_time)
        };
        let asked = if served { asked() } else { Ok(None) };
        stop.stop();
        let answered = match server.join() {
            Ok(answered) => answered,
            Err(_) => Err(Failure::new("the responder panicked")),
        };
        let found = asked?;
        answered?;
        found.ok_or_else(|| Failure::new("the responder ended early"))
    })
}
