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
    seen: usize,
    got: Vec<SharedBuffer>,
    changed: Rc<Notify>,
}

impl Driver for Ends {
    fn look(&mut self, now: Instant) -> bool {
        let (seen, has_output) = self.tm.look(now, usize::MAX);
        self.seen += seen;
        seen > 0 || has_output
    }
    fn poll(&mut self, now: Instant, budget: usize) -> usize {
        let mut work = std::mem::take(&mut self.seen) + self.tm.poll(now, budget);
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
    let ends = Rc::new(RefCell::new(Ends {
        tm,
        is_echo,
        seen: 0,
        got: Vec::new(),
        changed: Rc::new(Notify::new()),
    }));
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

/// A machine in a locality that only the test turns.
struct Turned {
    locality: Locality,
    ends: Rc<RefCell<Ends>>,
}

impl Turned {
    fn new(endpoint: Endpoint, is_echo: bool) -> Turned {
        let locality = locality();
        let ends = ends(&locality.handle(), &Fabric::Tcp, endpoint, is_echo);
        Turned { locality, ends }
    }

    fn send(&mut self, to: Endpoint) {
        let (now, message) =
            (self.locality.handle().now(), self.locality.handle().arena().try_alloc(64).unwrap());
        let sent = self.ends.borrow_mut().tm.try_send(now, PeerId::any(to), message.freeze());
        sent.map_err(|(refused, _)| refused).unwrap();
    }

    fn is_readable(&self) -> bool {
        let poller = runtime::poller::Poller::new().unwrap();
        poller.add(self.ends.borrow().wait_fd().unwrap(), 0, runtime::poller::Interest::READABLE).unwrap();
        poller.wait(Some(std::time::Duration::ZERO), &mut Vec::new()).unwrap() > 0
    }
}

/// Turns all until `client` has `count` messages.
fn turn_until(all: &mut [Turned], client: usize, count: usize, clock: &MonotonicClock) {
    let end = clock.now() + std::time::Duration::from_secs(20);
    while all[client].ends.borrow().got.len() < count {
        assert!(clock.now() < end, "message {count} of machine {client} never came back");
        for one in &mut *all {
            one.locality.turn(clock.now());
        }
    }
}

#[test]
fn tcp_leaves_epoll_out_for_one_that_talks_until_it_sleeps_and_hears_the_others_meanwhile() {
    let nid = Nid::tcp([127, 0, 0, 1].into());
    let port = bind_free(Ipv4Addr::UNSPECIFIED).unwrap().local_addr().unwrap().port();
    let to = Endpoint::from_port(nid, port).unwrap();
    let clock = MonotonicClock::start();
    let mut all = vec![
        Turned::new(to, true),
        Turned::new(crate::dynamic_endpoint(nid, 1, 1), false),
        Turned::new(crate::dynamic_endpoint(nid, 1, 2), false),
    ];
    for client in [1, 2] {
        all[client].send(to);
        turn_until(&mut all, client, 1, &clock);
    }
    let talk = |all: &mut Vec<Turned>, from: usize| {
        for count in from..from + 100 {
            all[1].send(to);
            turn_until(all, 1, count + 1, &clock);
        }
    };
    let sends_alone = |all: &mut Vec<Turned>, client: usize| {
        all[client].send(to);
        let now = clock.now();
        all[client].locality.turn(now);
    };
    talk(&mut all, 1);
    sends_alone(&mut all, 1);
    assert!(!all[0].is_readable(), "epoll watches the socket that is read anyway");
    assert!(all[0].ends.borrow_mut().before_sleep());
    assert!(all[0].is_readable(), "epoll does not watch the socket of one that sleeps");
    turn_until(&mut all, 1, 102, &clock);

    talk(&mut all, 102);
    sends_alone(&mut all, 2);
    turn_until(&mut all, 2, 2, &clock);

    talk(&mut all, 202);
    drop(all.pop());
    sends_alone(&mut all, 1);
    turn_until(&mut all, 1, 303, &clock);
}
