//! A ring as the driver of a locality: tasks write, flush and read a file, and the locality sleeps meanwhile.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test: a failure is its answer")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::Instant;
use runtime::ring::{Ring, RingCompletion, is_forbidden};
use runtime::sync::oneshot;
use runtime::{Arena, ArenaConfig, Counters, Driver, Locality, LocalityConfig, MonotonicClock};
use smallvec::smallvec;

struct RingDriver {
    ring: Ring,
    waiting: BTreeMap<u64, oneshot::Sender<RingCompletion>>,
    next_token: u64,
}

impl RingDriver {
    fn waiter(&mut self) -> (u64, oneshot::Receiver<RingCompletion>) {
        let (sender, receiver) = oneshot::channel();
        self.next_token += 1;
        self.waiting.insert(self.next_token, sender);
        (self.next_token, receiver)
    }
}

impl Driver for RingDriver {
    fn poll(&mut self, _now: Instant, _budget: usize) -> usize {
        let mut done = Vec::new();
        let count = self.ring.poll(&mut done);
        for completion in done {
            let sender = self.waiting.remove(&completion.token).expect("each token waits once");
            assert!(sender.send(completion).is_ok());
        }
        count
    }
    fn flush(&mut self, _now: Instant) {
        self.ring.submit().unwrap();
    }
    fn next_deadline(&self) -> Option<Instant> {
        None
    }
    fn wait_fd(&self) -> Option<RawFd> {
        Some(self.ring.as_raw_fd())
    }
    fn before_sleep(&mut self) -> bool {
        self.ring.unsubmitted() == 0
    }
}

#[test]
fn tasks_of_a_locality_share_a_ring() {
    let ring = match Ring::new(32) {
        Ok(ring) => ring,
        Err(error) if is_forbidden(&error) => {
            println!("skipped: io_uring is forbidden here: {error}");
            return;
        }
        Err(error) => panic!("io_uring is allowed and gives no ring: {error}"),
    };
    let folder = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
    let path = folder.path().join("device");
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(true);
    let file = match options.clone().custom_flags(0o40000 /* O_DIRECT */).open(&path) {
        Ok(file) => file,
        Err(error) => {
            println!("without O_DIRECT, which this file system refuses: {error}");
            options.open(&path).unwrap()
        }
    };
    let (file, clock) = (Arc::new(file), MonotonicClock::start());
    let arena = Arena::new(ArenaConfig { capacity_bytes: 8 << 20 }).unwrap();
    let counters = Arc::new(Counters::new());
    let mut locality = Locality::new(LocalityConfig {
        index: 0,
        name: "ring".to_owned(),
        seed: 1,
        counters: Arc::clone(&counters),
        arena: arena.clone(),
        crowd: None,
    });
    let handle = locality.handle();
    let driver = Rc::new(RefCell::new(RingDriver { ring, waiting: BTreeMap::new(), next_token: 0 }));
    driver.borrow_mut().ring.count_into(Arc::clone(&counters));
    println!("registered: {}", driver.borrow_mut().ring.register_arena(&arena));
    handle.add_driver(driver.clone());

    const BLOCKS: u64 = 24;
    let one_block = |index: u64| {
        let (driver, file, arena) = (Rc::clone(&driver), Arc::clone(&file), arena.clone());
        async move {
            let mut buffer = arena.alloc(8192).await;
            buffer.fill(u8::try_from(index).unwrap());
            let (token, written) = driver.borrow_mut().waiter();
            let parts = smallvec![buffer.freeze()];
            driver.borrow_mut().ring.try_write(&file, index * 8192, parts, token).unwrap();
            assert_eq!(written.await.unwrap().result.unwrap(), 8192);
            let (token, flushed) = driver.borrow_mut().waiter();
            driver.borrow_mut().ring.try_flush(&file, token).unwrap();
            assert!(flushed.await.unwrap().result.is_ok());
            let (token, read) = driver.borrow_mut().waiter();
            let buffer = arena.alloc(8192).await;
            driver.borrow_mut().ring.try_read(&file, index * 8192, buffer, token).unwrap();
            let read = read.await.unwrap();
            assert_eq!(read.result.unwrap(), 8192);
            read.buffer.unwrap().iter().all(|byte| u64::from(*byte) == index)
        }
    };
    let all = futures_util::future::join_all((0..BLOCKS).map(one_block));
    let patience = clock.now() + Duration::from_secs(60);
    let outcome = locality.block_on(&clock, handle.timeout_at(patience, all)).unwrap();
    assert_eq!(outcome, Ok(vec![true; 24]));
    assert_eq!(arena.in_use_bytes(), 0);
    let doorbells = counters.doorbells.get();
    println!("{doorbells} doorbells for {} operations, {:?}", BLOCKS * 3, driver.borrow().ring.stats());
    assert!(doorbells < BLOCKS * 3, "operations of one turn share a doorbell");
}
