//! What the tests of whole devices work on: one locality with its buffers, run from here until a future is done.

use std::sync::Arc;

use base::{Fid, FidType};
use runtime::{Arena, ArenaConfig, Counters, Locality, LocalityConfig, LocalityHandle, MonotonicClock};
use spdk_stob::FormatParams;

/// The device of these tests.
pub const PARAMS: FormatParams = FormatParams { device: Fid::new(FidType::Device, 0, 3), cluster: 77 };

/// A locality of this thread.
pub struct Bench {
    locality: Locality,
    /// Its buffers.
    pub arena: Arena,
    clock: MonotonicClock,
}

impl Bench {
    pub fn new(name: &str) -> Bench {
        let arena = Arena::new(ArenaConfig { capacity_bytes: 32 << 20 }).unwrap();
        let locality = Locality::new(LocalityConfig {
            index: 0,
            name: name.to_owned(),
            seed: 4,
            counters: Arc::new(Counters::default()),
            arena: arena.clone(),
            crowd: None,
        });
        Bench { locality, arena, clock: MonotonicClock::start() }
    }

    pub fn handle(&self) -> LocalityHandle {
        self.locality.handle()
    }

    /// Drives the locality until `future` is done.
    pub fn run<T>(&mut self, future: impl Future<Output = T>) -> T {
        self.locality.block_on(&self.clock, future).unwrap()
    }
}
