//! Machines of localities on threads of their own, asleep when there is nothing to do: each must be woken by the other.

use std::cell::{Cell, RefCell};
use std::net::Ipv4Addr;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;

use base::{Endpoint, Instant, Nid};
use runtime::sync::Notify;
use runtime::{
    Arena, ArenaConfig, Counters, Driver, Locality, LocalityConfig, LocalityHandle, MonotonicClock,
    SharedBuffer, StopFlag,
};

use crate::free_port::bind_free;
use crate::{Event, Fabric, LoFabric, PeerId, TmConfig, TransferMachine};

/// Drives one machine; echoes messages, or keeps them.
struct Ends {
    tm: TransferMachine,
    is_echo: bool,
    got: Vec<SharedBuffer>,
    changed: Rc<Notify>,
}

impl Driver for Ends {
    fn poll(&mut self, now: Instant, budget: usize) -> usize {
        let mut work = self.tm.poll(now, budget);
        while let Some(event) = self.tm.next_event() {
            work += 1;
            let Event::Message { from, bytes, .. } = event else { continue };
            if self.is_echo {
                self.tm.try_send(now, from, bytes).map_err(|(refused, _)| refused).unwrap();
            } else {
                self.got.push(bytes);
                self.changed.notify_one();
            }
        }
        work
    }
    fn flush(&mut self, now: Instant) {
        self.tm.flush(now);
    }
    fn next_deadline(&self) -> Option<Instant> {
        self.tm.next_deadline()
    }
    fn wait_fd(&self) -> Option<RawFd> {
        self.tm.wait_fd()
    }
    fn before_sleep(&mut self) -> bool {
        self.tm.before_sleep()
    }
}

fn locality() -> Locality {
    Locality::new(LocalityConfig {
        index: 0,
        name: "threads".into(),
        seed: 1,
        counters: Arc::new(Counters::new()),
        arena: Arena::new(ArenaConfig { capacity_bytes: 8 << 20 }).unwrap(),
        crowd: None,
    })
}

fn ends(handle: &LocalityHandle, fabric: &Fabric, endpoint: Endpoint, is_echo: bool) -> Rc<RefCell<Ends>> {
    let epoch = if is_echo { 2 } else { 1 };
    let config = TmConfig::new(endpoint, is_echo, epoch, [3; 32], Rc::new(Cell::new(1)));
    let tm = TransferMachine::start(handle, fabric, config).unwrap();
    let ends = Rc::new(RefCell::new(Ends { tm, is_echo, got: Vec::new(), changed: Rc::new(Notify::new()) }));
    handle.add_driver(Rc::clone(&ends) as Rc<RefCell<dyn Driver>>);
    ends
}

/// Each message goes after the echo of the one before, so both threads sleep in between.
fn echo_across_threads(lo: Option<LoFabric>, client_endpoint: Endpoint, server_endpoint: Endpoint) {
    let stop = StopFlag::new();
    let (started, wait_started) = std::sync::mpsc::channel();
    let server = std::thread::spawn({
        let (stop, lo) = (stop.clone(), lo.clone());
        move || {
            let fabric = lo.map_or(Fabric::Tcp, Fabric::Lo);
            let mut locality = locality();
            let _ends = ends(&locality.handle(), &fabric, server_endpoint, true);
            started.send(()).unwrap();
            locality.run(&MonotonicClock::start(), &stop).unwrap();
        }
    });
    wait_started.recv().unwrap();
    let fabric = lo.map_or(Fabric::Tcp, Fabric::Lo);
    let mut locality = locality();
    let handle = locality.handle();
    let ends = ends(&handle, &fabric, client_endpoint, false);
    let clock = MonotonicClock::start();
    let texts: Vec<SharedBuffer> = locality
        .block_on(&clock, async {
            let changed = Rc::clone(&ends.borrow().changed);
            for number in 0..200_u32 {
                let mut buffer = handle.arena().alloc(64).await;
                buffer[..4].copy_from_slice(&number.to_le_bytes());
                let heard = changed.notified();
                let sent = ends.borrow_mut().tm.try_send(
                    handle.now(),
                    PeerId::any(server_endpoint),
                    buffer.freeze(),
                );
                sent.map_err(|(refused, _)| refused).unwrap();
                heard.await;
            }
            std::mem::take(&mut ends.borrow_mut().got)
        })
        .unwrap();
    stop.stop();
    server.join().unwrap();
    let numbers = texts.iter().map(|text| u32::from_le_bytes(*text.first_chunk().unwrap()));
    assert!(numbers.eq(0..200));
}

#[test]
fn lo_wakes_the_other_thread() {
    let endpoint = |tmid| Endpoint { nid: Nid::LOOPBACK, pid: 12345, portal: 34, tmid };
    echo_across_threads(Some(LoFabric::new()), endpoint(1), endpoint(2));
}

#[test]
fn tcp_wakes_the_other_thread() {
    let nid = Nid::tcp([127, 0, 0, 1].into());
    let port = bind_free(Ipv4Addr::UNSPECIFIED).unwrap().local_addr().unwrap().port();
    let server = Endpoint::from_port(nid, port).unwrap();
    echo_across_threads(None, crate::dynamic_endpoint(nid, 1, 1), server);
}
