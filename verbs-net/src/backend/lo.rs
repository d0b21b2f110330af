//! `lo`: machines of one process. Packets move from queue to queue under a short lock; payloads are shared buffers, never copied.
//!
//! A [`LoFabric`] is a value: processes, tests and clusters in one process each have their own. Queues are bounded by what
//! their senders hold: credits for messages, arenas for bulk.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base::{Endpoint, Instant};
use runtime::Unparker;

use crate::backend::packet::{Packet, PacketWire, Parcel};
use crate::error::StartError;

#[derive(Default)]
struct Registry {
    stations: Mutex<BTreeMap<Endpoint, Arc<Station>>>,
    next_link: AtomicU64,
}

struct Station {
    listen: bool,
    queue: Mutex<VecDeque<Packet>>,
    /// Set after a push, cleared before a take: polling an empty queue takes no lock.
    has_packets: AtomicBool,
    unparker: Unparker,
}

/// A panic elsewhere cannot leave a queue half changed: each critical section is one call of a collection.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Station {
    fn push(&self, packet: Packet) {
        lock(&self.queue).push_back(packet);
        self.has_packets.store(true, Ordering::Release);
        self.unparker.unpark();
    }
}

/// The net of one process. Clones are the same net.
#[derive(Clone, Default)]
pub struct LoFabric {
    registry: Arc<Registry>,
}

impl std::fmt::Debug for LoFabric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoFabric({} endpoints)", lock(&self.registry.stations).len())
    }
}

impl LoFabric {
    /// An empty net.
    #[must_use]
    pub fn new() -> LoFabric {
        LoFabric::default()
    }

    pub(crate) fn attach(
        &self,
        endpoint: Endpoint,
        listen: bool,
        unparker: Unparker,
    ) -> Result<LoWire, StartError> {
        let station = Arc::new(Station {
            listen,
            queue: Mutex::new(VecDeque::new()),
            has_packets: AtomicBool::new(false),
            unparker,
        });
        let mut stations = lock(&self.registry.stations);
        if stations.contains_key(&endpoint) {
            return Err(StartError::PortInUse { endpoint, address: endpoint.to_string() });
        }
        stations.insert(endpoint, Arc::clone(&station));
        drop(stations);
        Ok(LoWire { registry: Arc::clone(&self.registry), endpoint, station })
    }
}

/// One machine's access.
pub(crate) struct LoWire {
    registry: Arc<Registry>,
    endpoint: Endpoint,
    station: Arc<Station>,
}

impl PacketWire for LoWire {
    fn new_link(&mut self) -> u64 {
        self.registry.next_link.fetch_add(1, Ordering::Relaxed)
    }

    fn listens(&self, to: Endpoint) -> bool {
        lock(&self.registry.stations).get(&to).is_some_and(|station| station.listen)
    }

    fn send(&mut self, _now: Instant, to: Endpoint, packet: Packet) {
        let station = lock(&self.registry.stations).get(&to).cloned();
        match station {
            Some(station) => station.push(packet),
            None if matches!(packet.parcel, Parcel::Reset) => {}
            None => self.station.push(Packet { from: to, link: packet.link, parcel: Parcel::Reset }),
        }
    }

    fn receive(&mut self, _now: Instant, budget: usize, into: &mut Vec<Packet>) {
        if !self.station.has_packets.swap(false, Ordering::AcqRel) {
            return;
        }
        let mut queue = lock(&self.station.queue);
        let count = queue.len().min(budget);
        into.extend(queue.drain(..count));
        if !queue.is_empty() {
            self.station.has_packets.store(true, Ordering::Release);
        }
    }

    fn next_arrival(&self) -> Option<Instant> {
        None
    }

    fn has_work(&self) -> bool {
        self.station.has_packets.load(Ordering::Acquire)
    }
}

impl Drop for LoWire {
    fn drop(&mut self) {
        lock(&self.registry.stations).remove(&self.endpoint);
    }
}
