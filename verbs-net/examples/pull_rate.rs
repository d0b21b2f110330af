//! How fast pulls go over tcp on this host: `cargo run --release -p verbs-net --example pull_rate [SECONDS] [DEPTH]`.
//!
//! Two threads, each its own locality and machine, on loopback. The server keeps DEPTH (default 4) pulls of 1 MiB in flight
//! for SECONDS (default 1). Compare with `iperf3 -c 127.0.0.1` in the same minute on the same host.
#![forbid(unsafe_code)]
#![allow(missing_docs)]

use std::cell::Cell;
use std::error::Error;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base::{Endpoint, Nid};
use runtime::poller::{Interest, Poller};
use runtime::{Arena, ArenaConfig, Counters, Locality, LocalityConfig, MonotonicClock, SharedBuffer};
use verbs_net::{BulkDescriptor, Event, Fabric, PeerId, TmConfig, TransferMachine};

type Failure = Box<dyn Error + Send + Sync>;
const BYTES: usize = 1 << 20;

fn machine(
    endpoint: Endpoint,
    listen: bool,
    epoch: u64,
) -> Result<(Locality, TransferMachine, Arena, Arc<Counters>), Failure> {
    let arena = Arena::new(ArenaConfig { capacity_bytes: 256 << 20 })?;
    let counters = Arc::new(Counters::new());
    let locality = Locality::new(LocalityConfig {
        index: 0,
        name: "pull_rate".into(),
        seed: epoch,
        counters: Arc::clone(&counters),
        arena: arena.clone(),
        crowd: None,
    });
    let config = TmConfig::new(endpoint, listen, epoch, [1; 32], Rc::new(Cell::new(1)));
    let tm = TransferMachine::start(&locality.handle(), &Fabric::Tcp, config)?;
    Ok((locality, tm, arena, counters))
}

/// Turns until `done`; sleeps on the machine's descriptor when there is nothing to do.
fn drive(
    tm: &mut TransferMachine,
    clock: &MonotonicClock,
    mut done: impl FnMut(&mut TransferMachine, Option<Event>) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let poller = Poller::new()?;
    if let Some(fd) = tm.wait_fd() {
        poller.add(fd, 0, Interest::READABLE)?;
    }
    loop {
        let work = tm.poll(clock.now(), 64);
        loop {
            let event = tm.next_event();
            let is_last = event.is_none();
            if done(tm, event)? {
                tm.flush(clock.now());
                return Ok(());
            }
            if is_last {
                break;
            }
        }
        tm.flush(clock.now());
        if work == 0 && tm.before_sleep() {
            poller.wait(Some(Duration::from_millis(20)), &mut Vec::new())?;
        }
    }
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let seconds: u64 = arguments.next().map_or(Ok(1), |text| text.parse())?;
    let depth: usize = arguments.next().map_or(Ok(4), |text| text.parse())?;
    let nid = Nid::tcp([127, 0, 0, 1].into());
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let server_endpoint = Endpoint::from_port(nid, port).ok_or("no port")?;
    let stop = Arc::new(AtomicBool::new(false));
    let (_locality, mut server, _arena, counters) = machine(server_endpoint, true, 2)?;

    let client_stop = Arc::clone(&stop);
    let client = std::thread::spawn(move || -> Result<(u64, u64), Failure> {
        let clock = MonotonicClock::start();
        let endpoint = verbs_net::dynamic_endpoint(nid, std::process::id(), 1);
        let (_locality, mut tm, arena, counters) = machine(endpoint, false, 1)?;
        let mut buffer = arena.try_alloc(BYTES).ok_or("no memory")?;
        buffer.fill(7);
        let descriptor = tm.expose_source(&[buffer.freeze()]);
        let hello =
            SharedBuffer::copy_from_slice(&arena, &descriptor.to_bytes(), &counters).ok_or("no memory")?;
        tm.try_send(clock.now(), PeerId::any(server_endpoint), hello).map_err(|(refused, _)| refused)?;
        drive(&mut tm, &clock, |_, _| Ok(client_stop.load(Ordering::Relaxed)))?;
        Ok((counters.copied_bytes.get(), counters.syscalls.get()))
    });

    let clock = MonotonicClock::start();
    let mut source: Option<(PeerId, BulkDescriptor)> = None;
    let (mut pulled, mut in_flight) = (0_u64, 0_usize);
    let mut started = clock.now();
    drive(&mut server, &clock, |server, event| {
        match event {
            Some(Event::Message { from, bytes, .. }) => {
                source = Some((from, BulkDescriptor::parse(&bytes)?));
                started = clock.now();
            }
            Some(Event::TransferDone { result, .. }) => {
                let parts = result?;
                if parts.iter().map(|part| part.len()).sum::<usize>() != BYTES {
                    return Err("short pull".into());
                }
                in_flight -= 1;
                pulled += 1;
            }
            _ => {}
        }
        let Some((peer, descriptor)) = &source else { return Ok(false) };
        let now = clock.now();
        let is_over = now - started >= Duration::from_secs(seconds);
        while !is_over && in_flight < depth {
            server.start_pull(now, *peer, descriptor, now + Duration::from_secs(10));
            in_flight += 1;
        }
        Ok(is_over && in_flight == 0)
    })?;
    let elapsed = (clock.now() - started).as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    let (client_copied, client_syscalls) = client.join().map_err(|_| "the client's thread panicked")??;
    #[allow(clippy::cast_precision_loss)] // a figure to read
    let (pulls, rate) = (pulled as f64, pulled as f64 * BYTES as f64 / elapsed);
    println!("{pulled} pulls of 1 MiB in {elapsed:.2} s: {:.2} GB/s = {:.1} Gb/s", rate / 1e9, rate * 8e-9);
    #[allow(clippy::cast_precision_loss)]
    let per_pull = |count: u64| count as f64 / pulls;
    println!(
        "per pull: {:.1} + {:.1} system calls, {:.1} + {:.1} bytes copied (server + client)",
        per_pull(counters.syscalls.get()),
        per_pull(client_syscalls),
        per_pull(counters.copied_bytes.get()),
        per_pull(client_copied),
    );
    Ok(())
}
