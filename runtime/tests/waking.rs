//! Localities on real threads: sleeping, waking each other, and what an idle one costs.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test: a failure is its answer")]

use std::cell::RefCell;
use std::os::fd::RawFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use base::Instant;
use futures_util::task::AtomicWaker;
use runtime::{
    Arena, ArenaConfig, Counters, Crowd, Driver, HelperThreads, Locality, LocalityConfig, LocalityHandle,
    MonotonicClock, StopFlag, Waiting, mailbox, process,
};

/// Longer than any test takes on a busy machine: only a lost wake-up waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

fn locality(crowd: Option<Arc<Crowd>>) -> Locality {
    Locality::new(LocalityConfig {
        index: 0,
        name: "test".to_owned(),
        seed: 1,
        counters: Arc::new(Counters::new()),
        arena: Arena::new(ArenaConfig { capacity_bytes: 1 << 20 }).unwrap(),
        crowd,
    })
}

/// Two localities in a crowd of one core: nobody spins, so every hop is a sleep and a wake-up.
#[test]
fn two_localities_ping_through_mailboxes_and_miss_no_wake_up() {
    const ROUNDS: u64 = 20_000;
    let clock = MonotonicClock::start();
    for crowd in [Some(Crowd::with_cores(0)), None] {
        let (mut here, there_crowd) = (locality(crowd.clone()), crowd);
        let (to_here, mut from_there) = mailbox::<u64>(4, here.handle().unparker());
        let (hand_over, handed) = std::sync::mpsc::channel();
        let echo = std::thread::spawn(move || {
            let mut there = locality(there_crowd);
            let (to_there, mut from_here) = mailbox::<u64>(4, there.handle().unparker());
            hand_over.send(to_there).unwrap();
            there
                .block_on(&clock, async move {
                    while let Some(letter) = from_here.recv().await {
                        to_here.try_send(letter + 1).unwrap();
                    }
                })
                .unwrap();
        });
        let to_there = handed.recv().unwrap();
        let handle = here.handle();
        let pings = async {
            for round in 0..ROUNDS {
                to_there.try_send(round).unwrap();
                let answer = handle.timeout_at(clock.now() + PATIENCE, from_there.recv()).await;
                assert_eq!(answer, Ok(Some(round + 1)), "a wake-up was lost in round {round}");
            }
        };
        here.block_on(&clock, pings).unwrap();
        drop(to_there);
        echo.join().unwrap();
    }
}

/// Threads that wake at every moment of the locality's way into its sleep.
#[test]
fn wakers_of_many_threads_are_never_missed() {
    const WAKES: u64 = 10_000;
    let clock = MonotonicClock::start();
    let mut here = locality(Some(Crowd::with_cores(0)));
    let handle = here.handle();
    let posts: Arc<[(AtomicU64, AtomicWaker); 3]> = Arc::default();
    let seen: Arc<[AtomicU64; 3]> = Arc::default();
    let threads: Vec<_> = (0..posts.len())
        .map(|index| {
            let (posts, seen) = (Arc::clone(&posts), Arc::clone(&seen));
            std::thread::spawn(move || {
                for wake in 1..=WAKES {
                    posts[index].0.store(wake, Ordering::SeqCst);
                    posts[index].1.wake();
                    // At most one wake ahead, so that most find the locality on its way to sleep or asleep.
                    while seen[index].load(Ordering::SeqCst) + 1 < wake {
                        std::thread::yield_now();
                    }
                }
            })
        })
        .collect();
    let waits = (0..posts.len()).map(|index| {
        let (posts, seen, handle) = (&posts, &seen, &handle);
        async move {
            let mut last = 0;
            while last < WAKES {
                let news = std::future::poll_fn(|context| {
                    posts[index].1.register(context.waker());
                    match posts[index].0.load(Ordering::SeqCst) {
                        same if same == last => Poll::Pending,
                        new => Poll::Ready(new),
                    }
                });
                last = handle
                    .timeout_at(clock.now() + PATIENCE, news)
                    .await
                    .unwrap_or_else(|_| panic!("a wake-up after {last} was lost"));
                seen[index].store(last, Ordering::SeqCst);
            }
        }
    });
    here.block_on(&clock, futures_util::future::join_all(waits)).unwrap();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Wakes from another thread at the one moment that matters: after the last turn, before the locality says that it sleeps.
struct LastMoment {
    wake: Arc<AtomicWaker>,
    is_woken: Arc<std::sync::atomic::AtomicBool>,
}

impl Driver for LastMoment {
    fn poll(&mut self, _now: Instant, _budget: usize) -> usize {
        0
    }
    fn flush(&mut self, _now: Instant) {}
    fn next_deadline(&self) -> Option<Instant> {
        None
    }
    fn wait_fd(&self) -> Option<RawFd> {
        None
    }
    fn before_sleep(&mut self) -> bool {
        let (wake, is_woken) = (Arc::clone(&self.wake), Arc::clone(&self.is_woken));
        let waker = std::thread::spawn(move || {
            is_woken.store(true, Ordering::SeqCst);
            wake.wake();
        });
        waker.join().unwrap();
        true
    }
}

#[test]
fn a_wake_up_in_the_last_moment_before_sleep_is_seen() {
    let clock = MonotonicClock::start();
    let mut here = locality(None);
    let handle = here.handle();
    let (wake, is_woken) = (Arc::new(AtomicWaker::new()), Arc::default());
    let driver = LastMoment { wake: Arc::clone(&wake), is_woken: Arc::clone(&is_woken) };
    handle.add_driver(Rc::new(RefCell::new(driver)));
    let woken = std::future::poll_fn(|context| {
        wake.register(context.waker());
        if is_woken.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
    });
    let start = clock.now();
    let short = Duration::from_secs(5); // a lost wake-up ends here, and not by the wake-up
    let waited = async { handle.timeout_at(clock.now() + short, woken).await };
    assert_eq!(here.block_on(&clock, waited).unwrap(), Ok(()));
    assert!(clock.now().since(start) < short, "the locality slept on until the deadline");
}

#[test]
fn an_idle_locality_costs_a_few_system_calls_per_deadline_and_no_time() {
    let clock = MonotonicClock::start();
    let mut here = locality(None);
    let handle = here.handle();
    let sleep = |millis| {
        let handle = handle.clone();
        async move {
            let at = handle.now() + Duration::from_millis(millis);
            handle.sleep_until(at).await;
            assert!(handle.now() >= at);
        }
    };
    here.block_on(&clock, sleep(1)).unwrap(); // makes the poller
    let (calls, cpu) = (handle.counters().syscalls.get(), process::thread_cpu_time());
    here.block_on(&clock, sleep(300)).unwrap();
    let (calls, cpu) = (handle.counters().syscalls.get() - calls, process::thread_cpu_time() - cpu);
    // One wait; a signal or an early end may add one. The spin is 50 us at most.
    assert!(calls <= 3, "{calls} system calls");
    assert!(cpu < Duration::from_millis(3), "{cpu:?} of CPU time in 300 ms of idleness");
}

#[test]
fn helper_threads_and_freed_buffers_wake_a_sleeping_locality() {
    let clock = MonotonicClock::start();
    let mut here = locality(None);
    let handle = here.handle();
    let helpers = HelperThreads::new(1).unwrap();
    let arena = handle.arena().clone();
    let held = arena.try_alloc(1 << 20).unwrap();
    let (sender, mut receiver) = mailbox(1, handle.unparker());
    let outcome = here.block_on(&clock, async {
        let job: runtime::helper_threads::Job = Box::new(move || {
            sender.try_send(held.len()).unwrap();
            drop(held);
        });
        assert!(helpers.submit(job).is_ok());
        let patience = handle.now() + PATIENCE;
        let letter = handle.timeout_at(patience, receiver.recv()).await;
        let buffer = handle.timeout_at(patience, arena.alloc(4096)).await;
        (letter, buffer.map(|buffer| buffer.len()))
    });
    assert_eq!(outcome.unwrap(), (Ok(Some(1 << 20)), Ok(4096)));
}

#[test]
fn a_stop_flag_ends_the_run_of_a_sleeping_locality() {
    let clock = MonotonicClock::start();
    let stop = StopFlag::new();
    let (started, has_started) = std::sync::mpsc::channel();
    let runs: Vec<_> = (0..3)
        .map(|_| {
            let (stop, started) = (stop.clone(), started.clone());
            std::thread::spawn(move || {
                let mut here = locality(None);
                here.handle().spawn("starts", async move { started.send(()).unwrap() });
                here.run(&clock, &stop).unwrap();
            })
        })
        .collect();
    (0..3).for_each(|_| has_started.recv().unwrap());
    stop.stop();
    runs.into_iter().for_each(|run| run.join().unwrap());
    locality(None).run(&clock, &stop).unwrap(); // stopped before it began
}

/// Reads a pipe: a driver whose only wake-up is its descriptor.
struct PipeDriver {
    poller: runtime::poller::Poller,
    pipe: std::io::PipeReader,
    got: Rc<RefCell<Vec<u8>>>,
    waker: Arc<AtomicWaker>,
    polls: u64,
}

impl Driver for PipeDriver {
    fn poll(&mut self, _now: Instant, _budget: usize) -> usize {
        self.polls += 1;
        let mut events = Vec::new();
        if self.poller.wait(Some(Duration::ZERO), &mut events).unwrap() == 0 {
            return 0;
        }
        let mut bytes = [0; 16];
        let count = std::io::Read::read(&mut self.pipe, &mut bytes).unwrap();
        self.got.borrow_mut().extend(&bytes[..count]);
        self.waker.wake();
        count
    }
    fn flush(&mut self, _now: Instant) {}
    fn next_deadline(&self) -> Option<Instant> {
        None
    }
    fn wait_fd(&self) -> Option<RawFd> {
        Some(std::os::fd::AsRawFd::as_raw_fd(&self.poller))
    }
}

#[test]
fn a_driver_s_descriptor_wakes_its_locality_and_a_removed_one_does_not() {
    let clock = MonotonicClock::start();
    let mut here = locality(None);
    let handle = here.handle();
    let (pipe, mut write_end) = std::io::pipe().unwrap();
    let poller = runtime::poller::Poller::new().unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&pipe);
    poller.add(fd, 0, runtime::poller::Interest::READABLE).unwrap();
    let (got, waker) = (Rc::default(), Arc::new(AtomicWaker::new()));
    let driver = Rc::new(RefCell::new(PipeDriver {
        poller,
        pipe,
        got: Rc::clone(&got),
        waker: Arc::clone(&waker),
        polls: 0,
    }));
    handle.add_driver(driver.clone());
    let sends = std::thread::spawn(move || {
        for byte in 0..100_u8 {
            std::io::Write::write_all(&mut write_end, &[byte]).unwrap();
            std::thread::yield_now();
        }
        write_end
    });
    let arrived = async {
        let all = std::future::poll_fn(|context| {
            waker.register(context.waker());
            if got.borrow().len() == 100 { Poll::Ready(()) } else { Poll::Pending }
        });
        handle.timeout_at(clock.now() + PATIENCE, all).await.expect("a descriptor's wake-up was lost");
    };
    here.block_on(&clock, arrived).unwrap();
    let mut write_end = sends.join().unwrap();
    assert!(got.borrow().iter().copied().eq(0..100));
    let as_driver: Rc<RefCell<dyn Driver>> = driver.clone();
    handle.remove_driver(&as_driver);
    drop(as_driver);
    assert_eq!(Rc::strong_count(&driver), 1);
    let polls = driver.borrow().polls;
    std::io::Write::write_all(&mut write_end, b"unread").unwrap();
    let idle: LocalityHandle = handle.clone();
    here.block_on(&clock, async move { idle.sleep(Duration::from_millis(5)).await }).unwrap();
    assert_eq!(driver.borrow().polls, polls);
}

#[test]
fn block_on_takes_a_future_that_borrows() {
    let clock = MonotonicClock::start();
    let mut here = locality(None);
    let handle = here.handle();
    let mut local = 1;
    let borrowed = &mut local;
    let mut sleep = pin!(handle.sleep(Duration::from_micros(300)));
    here.block_on(&clock, async move {
        sleep.as_mut().await;
        *borrowed += 1;
    })
    .unwrap();
    assert_eq!(local, 2);
}

/// Has work after so many looks, and counts how it is asked.
struct Looked {
    looks_left: u32,
    looks: u32,
    turns: u32,
    waker: Arc<AtomicWaker>,
}

impl Driver for Looked {
    fn look(&mut self, _now: Instant) -> bool {
        self.looks += 1;
        self.looks_left = self.looks_left.saturating_sub(1);
        self.looks_left == 0
    }
    fn poll(&mut self, _now: Instant, _budget: usize) -> usize {
        self.turns += 1;
        if self.looks_left > 0 {
            return 0;
        }
        self.looks_left = u32::MAX;
        self.waker.wake();
        1
    }
    fn flush(&mut self, _now: Instant) {}
    fn next_deadline(&self) -> Option<Instant> {
        None
    }
    fn wait_fd(&self) -> Option<RawFd> {
        None
    }
}

/// A locality that never sleeps: what a look finds, a timer and another thread's wake-up each end the looking.
#[test]
fn a_locality_that_spins_looks_and_turns_only_for_work() {
    let clock = MonotonicClock::start();
    let mut here = locality(Some(Crowd::that_waits(Waiting::Polling)));
    let handle = here.handle();
    let waker = Arc::new(AtomicWaker::new());
    let driver = Looked { looks_left: 10_000, looks: 0, turns: 0, waker: Arc::clone(&waker) };
    let driver = Rc::new(RefCell::new(driver));
    handle.add_driver(driver.clone());
    let found = std::future::poll_fn(|context| {
        waker.register(context.waker());
        if driver.borrow().looks_left == u32::MAX { Poll::Ready(()) } else { Poll::Pending }
    });
    here.block_on(&clock, async { handle.timeout_at(clock.now() + PATIENCE, found).await }).unwrap().unwrap();
    assert_eq!(driver.borrow().looks, 10_000);
    assert!(driver.borrow().turns < 20, "{} turns for 10 000 looks", driver.borrow().turns);

    let at = clock.now() + Duration::from_millis(2);
    here.block_on(&clock, handle.sleep_until(at)).unwrap();
    assert!(clock.now() >= at);

    let (to_here, mut letters) = mailbox(1, handle.unparker());
    let sender = std::thread::spawn(move || to_here.try_send(7).unwrap());
    let letter =
        here.block_on(&clock, async { handle.timeout_at(clock.now() + PATIENCE, letters.recv()).await });
    assert_eq!(letter.unwrap(), Ok(Some(7)));
    sender.join().unwrap();
}
