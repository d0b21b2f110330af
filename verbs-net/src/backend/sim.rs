//! `sim`: a net in virtual time, from a seed: delay, loss, doubles, reordering, damaged headers, partitions, crashes.
//!
//! Deterministic: the same seed and the same calls give the same packets at the same times ([`SimFabric::trace_hash`]).
//!
//! What keeps its order: all frames but messages, as on a reliable connection; a message never arrives before bulk that
//! was sent ahead of it. What may be lost: everything. A lost push is not acknowledged and a lost pull never completes, so
//! both end at their deadline.
//!
//! A harness that drives several localities asks for their next deadlines only after a round in which none made
//! progress: one machine's send sets another's next arrival.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use base::units::wide;
use base::{Endpoint, Instant, LookupMap};
use runtime::clock::DriftingClock;

use crate::backend::packet::{Packet, PacketWire, Parcel, ParcelTraits};
use crate::backend::sim_hardware::SimKeys;
use crate::error::StartError;

/// What a link does to packets. Rates are per thousand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimFaults {
    /// Least delay.
    pub latency_min: Duration,
    /// Most delay.
    pub latency_max: Duration,
    /// Bytes per second of one direction of a link; 0 = no limit.
    pub bytes_per_second: u64,
    /// Packets lost.
    pub loss_per_mille: u32,
    /// Messages that arrive twice.
    pub duplicate_per_mille: u32,
    /// Messages held back while later ones overtake them.
    pub reorder_per_mille: u32,
    /// Longest time a message (or its double) is held back.
    pub reorder_delay_max: Duration,
    /// Frames with one flipped bit in the header: the receiver ends the connection.
    pub corrupt_per_mille: u32,
    /// Remote access only: packets that end in the death of both queue pairs, each found out at another time.
    pub queue_pair_death_per_mille: u32,
}

impl SimFaults {
    /// A good LAN: 20 to 40 µs, nothing lost.
    pub const NONE: SimFaults = SimFaults {
        latency_min: Duration::from_micros(20),
        latency_max: Duration::from_micros(40),
        bytes_per_second: 0,
        loss_per_mille: 0,
        duplicate_per_mille: 0,
        reorder_per_mille: 0,
        reorder_delay_max: Duration::from_millis(5),
        corrupt_per_mille: 0,
        queue_pair_death_per_mille: 0,
    };
}

impl Default for SimFaults {
    fn default() -> SimFaults {
        SimFaults::NONE
    }
}

/// What the net has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimStats {
    /// Packets given to the net.
    pub sent: u64,
    /// Packets that arrived (doubles counted).
    pub delivered: u64,
    /// Packets lost by chance, partition or crash.
    pub lost: u64,
    /// Messages doubled.
    pub duplicated: u64,
    /// Messages held back.
    pub reordered: u64,
    /// Headers damaged.
    pub corrupted: u64,
    /// Packets that were sent again by the cards (remote access: links are reliable).
    pub retransmitted: u64,
    /// Queue pairs that died.
    pub queue_pair_deaths: u64,
}

struct InFlight {
    packet: Packet,
    sender: u64,
}

struct SimStation {
    id: u64,
    listen: bool,
    inbox: BTreeMap<(Instant, u64), InFlight>,
    port: Rc<Port>,
}

impl SimStation {
    fn put(&mut self, at: Instant, sequence: u64, in_flight: InFlight) {
        self.port.next_arrival.set(self.port.next_arrival.get().min(at));
        self.inbox.insert((at, sequence), in_flight);
    }

    /// The oldest packet that is there at `now`.
    fn take(&mut self, now: Instant) -> Option<InFlight> {
        let entry = self.inbox.first_entry()?;
        if entry.key().0 > now {
            return None;
        }
        let in_flight = entry.remove();
        let next = self.inbox.first_key_value().map_or(Instant::NEVER, |((at, _), _)| *at);
        self.port.next_arrival.set(next);
        Some(in_flight)
    }
}

/// What is asked of an endpoint at every turn, beside the maps: the same value over all of its incarnations.
struct Port {
    /// In true time; [`Instant::NEVER`] without a packet, or a machine.
    next_arrival: Cell<Instant>,
    /// Its machine's own clock.
    clock: Cell<DriftingClock>,
}

impl Default for Port {
    fn default() -> Port {
        let clock = DriftingClock::ahead_by(Duration::ZERO);
        Port { next_arrival: Cell::new(Instant::NEVER), clock: Cell::new(clock) }
    }
}

/// When the next packet arrives at one endpoint, whatever becomes of its machine: for whoever turns localities only when they have work.
#[derive(Clone)]
pub struct SimArrivals(Rc<Port>);

impl SimArrivals {
    /// In true time; [`Instant::NEVER`] if none is under way.
    #[must_use]
    pub fn next(&self) -> Instant {
        self.0.next_arrival.get()
    }
}

#[derive(Clone, Copy, Default)]
struct LinkState {
    /// When the last in-order packet arrives.
    ordered_until: Instant,
    /// When the last byte has left the sender.
    busy_until: Instant,
}

/// A direction that is cut.
#[derive(Clone, Copy)]
struct Cut {
    /// Packets that still arrive.
    left: u64,
    /// The others are answered, as a firewall does, and do not just vanish.
    refuses: bool,
}

struct SimNet {
    random: fastrand::Rng,
    faults: SimFaults,
    link_faults: BTreeMap<(Endpoint, Endpoint), SimFaults>,
    blocked: BTreeMap<(Endpoint, Endpoint), Cut>,
    crashed: BTreeSet<Endpoint>,
    ports: BTreeMap<Endpoint, Rc<Port>>,
    stations: BTreeMap<Endpoint, SimStation>,
    links: LookupMap<(Endpoint, Endpoint), LinkState>,
    next_id: u64,
    stats: SimStats,
    trace_hash: u64,
    /// Hardware moves the bulk, over reliable links.
    remote_keys: Option<SimKeys>,
    /// Directions of reliable links on which a packet was given up: nothing behind it arrives.
    dead_links: BTreeSet<(Endpoint, u64)>,
}

/// A card sends a lost packet again after this.
const RETRANSMIT_PAUSE: Duration = Duration::from_millis(67);
/// A card gives a silent peer up after this, and its queue pair goes to error.
const RETRY_TIME: Duration = Duration::from_millis(500);

/// The simulated net. Clones are the same net.
#[derive(Clone)]
pub struct SimFabric {
    net: Rc<RefCell<SimNet>>,
}

impl std::fmt::Debug for SimFabric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimFabric({:?})", self.net.borrow().stats)
    }
}

impl SimFabric {
    /// An empty net without faults.
    #[must_use]
    pub fn new(seed: u64) -> SimFabric {
        let net = SimNet {
            random: fastrand::Rng::with_seed(seed),
            faults: SimFaults::NONE,
            link_faults: BTreeMap::new(),
            blocked: BTreeMap::new(),
            crashed: BTreeSet::new(),
            ports: BTreeMap::new(),
            stations: BTreeMap::new(),
            links: LookupMap::new(),
            next_id: 1,
            stats: SimStats::default(),
            trace_hash: 0xcbf2_9ce4_8422_2325,
            remote_keys: None,
            dead_links: BTreeSet::new(),
        };
        SimFabric { net: Rc::new(RefCell::new(net)) }
    }

    /// An empty net whose machines have RDMA's shape: bulk is moved by READ and WRITE, messages carry remote segments, links
    /// are reliable and ordered until their queue pairs die.
    #[must_use]
    pub fn with_remote_access(seed: u64, keys: SimKeys) -> SimFabric {
        let fabric = SimFabric::new(seed);
        fabric.net.borrow_mut().remote_keys = Some(keys);
        fabric
    }

    pub(crate) fn remote_keys(&self) -> Option<SimKeys> {
        self.net.borrow().remote_keys
    }

    /// Faults of all links from now on.
    pub fn set_faults(&self, faults: SimFaults) {
        self.net.borrow_mut().faults = faults;
    }

    /// Faults of one direction of one link; `None`: those of all links again.
    pub fn set_link_faults(&self, from: Endpoint, to: Endpoint, faults: Option<SimFaults>) {
        let mut net = self.net.borrow_mut();
        match faults {
            Some(faults) => net.link_faults.insert((from, to), faults),
            None => net.link_faults.remove(&(from, to)),
        };
    }

    /// Nothing sent from `from` arrives at `to` any more; the other direction works on.
    pub fn partition(&self, from: Endpoint, to: Endpoint) {
        self.net.borrow_mut().blocked.insert((from, to), Cut { left: 0, refuses: false });
    }

    /// Once `packets` more were sent that way, a firewall refuses what `from` sends to `to`, so that `from` knows at once, and may try again; the other direction
    /// works on. [`SimFabric::heal`] ends it.
    pub fn refuse_after(&self, from: Endpoint, to: Endpoint, packets: u64) {
        self.net.borrow_mut().blocked.insert((from, to), Cut { left: packets, refuses: true });
    }

    /// Ends a partition of one direction.
    pub fn heal(&self, from: Endpoint, to: Endpoint) {
        self.net.borrow_mut().blocked.remove(&(from, to));
    }

    /// Ends all partitions, and what single links have of faults.
    pub fn heal_all(&self) {
        let mut net = self.net.borrow_mut();
        net.blocked.clear();
        net.link_faults.clear();
    }

    /// The node of `endpoint` loses power: packets to it vanish, what its machine still sends vanishes, nobody is told.
    /// Starting a machine on the endpoint brings it back as a new incarnation.
    pub fn crash(&self, endpoint: Endpoint) {
        let mut net = self.net.borrow_mut();
        if let Some(station) = net.stations.remove(&endpoint) {
            net.stats.lost += wide(station.inbox.len());
            station.port.next_arrival.set(Instant::NEVER);
        }
        net.crashed.insert(endpoint);
    }

    /// The node of `endpoint` has power again, and nothing runs there yet, or any more: whoever calls is told so at once.
    pub fn power_up(&self, endpoint: Endpoint) {
        self.net.borrow_mut().crashed.remove(&endpoint);
    }

    /// What the machine of `endpoint` has for a clock from now on: all its times are that clock's, those of the net are true.
    pub fn set_clock(&self, endpoint: Endpoint, clock: DriftingClock) {
        self.net.borrow_mut().port(endpoint).clock.set(clock);
    }

    /// What the net has done so far.
    #[must_use]
    pub fn stats(&self) -> SimStats {
        self.net.borrow().stats
    }

    /// A hash over every packet, its time and its fate: equal for equal runs.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.net.borrow().trace_hash
    }

    /// When the next packet arrives anywhere.
    #[must_use]
    pub fn next_arrival(&self) -> Option<Instant> {
        let net = self.net.borrow();
        net.stations
            .values()
            .filter_map(|station| station.inbox.first_key_value().map(|((at, _), _)| *at))
            .min()
    }

    /// What tells when the next packet arrives at `endpoint`.
    #[must_use]
    pub fn arrivals(&self, endpoint: Endpoint) -> SimArrivals {
        SimArrivals(self.net.borrow_mut().port(endpoint))
    }

    pub(crate) fn attach(&self, endpoint: Endpoint, listen: bool) -> Result<SimWire, StartError> {
        let mut net = self.net.borrow_mut();
        if net.stations.contains_key(&endpoint) {
            return Err(StartError::PortInUse { endpoint, address: endpoint.to_string() });
        }
        let id = net.take_id();
        net.crashed.remove(&endpoint);
        let port = net.port(endpoint);
        let station = SimStation { id, listen, inbox: BTreeMap::new(), port: Rc::clone(&port) };
        net.stations.insert(endpoint, station);
        Ok(SimWire { net: Rc::clone(&self.net), endpoint, id, port })
    }
}

impl SimNet {
    fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn trace(&mut self, values: &[u64]) {
        for value in values {
            self.trace_hash = (self.trace_hash ^ value).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17);
        }
    }

    fn happens(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.random.u32(0..1000) < per_mille
    }

    fn random_duration(&mut self, least: Duration, most: Duration) -> Duration {
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let (least, most) = (nanos(least), nanos(most.max(least)));
        Duration::from_nanos(self.random.u64(least..=most))
    }

    fn port(&mut self, endpoint: Endpoint) -> Rc<Port> {
        Rc::clone(self.ports.entry(endpoint).or_default())
    }

    fn is_alive(&self, endpoint: Endpoint, id: u64) -> bool {
        self.stations.get(&endpoint).is_some_and(|station| station.id == id)
    }

    /// Nothing that is sent this way arrives.
    fn is_silent(&self, from: Endpoint, to: Endpoint) -> bool {
        self.blocked.get(&(from, to)).is_some_and(|cut| cut.left == 0 && !cut.refuses)
    }

    /// A packet that is sent now does not arrive; one that does is counted.
    fn is_cut(&mut self, from: Endpoint, to: Endpoint) -> bool {
        if self.crashed.contains(&to) {
            return true;
        }
        match self.blocked.get_mut(&(from, to)) {
            None => false,
            Some(Cut { left: 0, .. }) => true,
            Some(cut) => {
                cut.left -= 1;
                false
            }
        }
    }

    fn send(&mut self, now: Instant, sender: u64, to: Endpoint, mut packet: Packet) {
        let from = packet.from;
        if !self.is_alive(from, sender) {
            return;
        }
        self.stats.sent += 1;
        let faults = self.link_faults.get(&(from, to)).copied().unwrap_or(self.faults);
        if self.remote_keys.is_some() && !matches!(packet.parcel, Parcel::Reset) {
            return self.send_reliably(now, sender, to, packet, &faults);
        }
        let is_cut = self.is_cut(from, to);
        if is_cut && self.blocked.get(&(from, to)).is_some_and(|cut| cut.refuses) {
            let at = now + self.random_duration(faults.latency_min, faults.latency_max);
            self.deliver(at, 0, from, Packet { from: to, link: packet.link, parcel: Parcel::Reset });
        }
        if is_cut || self.happens(faults.loss_per_mille) {
            self.stats.lost += 1;
            self.trace(&[now.as_nanos(), packet.link, 1]);
            return;
        }
        let (bytes, is_message, header_sum) = match &mut packet.parcel {
            Parcel::Frame { header, payload, traits, .. } => {
                let corrupt =
                    faults.corrupt_per_mille > 0 && self.random.u32(0..1000) < faults.corrupt_per_mille;
                if corrupt {
                    let bit = self.random.usize(0..header.len() * 8);
                    header[bit / 8] ^= 1 << (bit % 8);
                    self.stats.corrupted += 1;
                }
                let bytes = wide(header.len() + payload.len());
                (bytes, *traits == ParcelTraits::Message, base::checksum::crc32c(header))
            }
            Parcel::Reset => (0, false, 0),
            Parcel::Verb(verb) => (wide(verb.bytes()), false, 0),
        };
        let at = self.arrival(now, from, to, bytes, &faults);
        self.trace(&[now.as_nanos(), at.as_nanos(), packet.link, u64::from(header_sum)]);
        if is_message && self.happens(faults.duplicate_per_mille) {
            let late = at + self.random_duration(Duration::ZERO, faults.reorder_delay_max);
            self.stats.duplicated += 1;
            self.deliver(late, sender, to, packet.clone());
        }
        let is_late = is_message && self.happens(faults.reorder_per_mille);
        if is_late {
            self.stats.reordered += 1;
            let late = at + self.random_duration(Duration::ZERO, faults.reorder_delay_max);
            self.deliver(late, sender, to, packet);
        } else {
            if let Some(link) = self.links.get_mut(&(from, to)) {
                link.ordered_until = at;
            }
            self.deliver(at, sender, to, packet);
        }
    }

    /// A reliable, ordered link: what is lost is sent again, and what cannot arrive ends in the death of the queue pairs.
    fn send_reliably(&mut self, now: Instant, sender: u64, to: Endpoint, packet: Packet, faults: &SimFaults) {
        let (from, link) = (packet.from, packet.link);
        if self.dead_links.contains(&(from, link)) {
            // Behind a packet that never arrived, nothing does: the receiving card waits for that one.
            self.stats.lost += 1;
            self.trace(&[now.as_nanos(), link, 3]);
            return;
        }
        let broken = |from| Packet { from, link, parcel: Parcel::Reset };
        let is_cut = self.is_cut(from, to);
        let dies = !is_cut && self.happens(faults.queue_pair_death_per_mille);
        if is_cut || dies {
            self.stats.lost += 1;
            self.dead_links.insert((from, link));
            self.trace(&[now.as_nanos(), link, 1]);
            let least = if is_cut { RETRY_TIME } else { Duration::ZERO };
            let at = now + self.random_duration(least, least + faults.reorder_delay_max);
            self.deliver(at, 0, from, broken(to));
            if dies {
                self.stats.queue_pair_deaths += 1;
                let at = now + self.random_duration(Duration::ZERO, faults.reorder_delay_max);
                self.deliver(at, 0, to, broken(from));
            }
            return;
        }
        let (bytes, sum) = match &packet.parcel {
            Parcel::Frame { header, payload, .. } => {
                (wide(header.len() + payload.len()), base::checksum::crc32c(header))
            }
            Parcel::Verb(verb) => (wide(verb.bytes()), 2),
            Parcel::Reset => (0, 0),
        };
        let mut at = self.arrival(now, from, to, bytes, faults);
        if self.happens(faults.loss_per_mille) {
            self.stats.retransmitted += 1;
            at = at + RETRANSMIT_PAUSE;
        }
        if let Some(state) = self.links.get_mut(&(from, to)) {
            state.ordered_until = at;
        }
        self.trace(&[now.as_nanos(), at.as_nanos(), link, u64::from(sum)]);
        let is_completion = matches!(&packet.parcel, Parcel::Verb(verb) if verb.is_completion());
        if is_completion && self.happens(faults.duplicate_per_mille) {
            let late = at + self.random_duration(Duration::ZERO, faults.reorder_delay_max);
            self.stats.duplicated += 1;
            self.deliver(late, sender, to, packet.clone());
        }
        self.deliver(at, sender, to, packet);
    }

    /// When a packet sent now arrives, not before anything sent in order ahead of it.
    fn arrival(
        &mut self,
        now: Instant,
        from: Endpoint,
        to: Endpoint,
        bytes: u64,
        faults: &SimFaults,
    ) -> Instant {
        let latency = self.random_duration(faults.latency_min, faults.latency_max);
        let link = self.links.get_or_default((from, to));
        let on_wire = (bytes * 1_000_000_000).checked_div(faults.bytes_per_second).unwrap_or(0);
        link.busy_until = link.busy_until.max(now) + Duration::from_nanos(on_wire);
        (link.busy_until + latency).max(link.ordered_until)
    }

    fn deliver(&mut self, at: Instant, sender: u64, to: Endpoint, packet: Packet) {
        let sequence = self.take_id();
        match self.stations.get_mut(&to) {
            Some(station) => {
                station.put(at, sequence, InFlight { packet, sender });
            }
            // The host lives and nobody is there: its kernel says so.
            None if !matches!(packet.parcel, Parcel::Reset) => {
                let reset = Packet { from: to, link: packet.link, parcel: Parcel::Reset };
                if let Some(station) = self.stations.get_mut(&packet.from) {
                    station.put(at, sequence, InFlight { packet: reset, sender: 0 });
                }
            }
            None => {}
        }
    }

    fn receive(&mut self, now: Instant, endpoint: Endpoint, id: u64, budget: usize, into: &mut Vec<Packet>) {
        if !self.is_alive(endpoint, id) {
            return;
        }
        while into.len() < budget {
            let Some(station) = self.stations.get_mut(&endpoint) else { return };
            let Some(InFlight { packet, sender }) = station.take(now) else { return };
            // A connection is made with a live peer: the hello of a dead incarnation is a handshake that never completes.
            let is_hello = matches!(packet.parcel, Parcel::Frame { opens: true, .. });
            if is_hello && !self.is_alive(packet.from, sender) {
                self.stats.lost += 1;
                continue;
            }
            self.stats.delivered += 1;
            into.push(packet);
        }
    }
}

/// One machine's access.
pub(crate) struct SimWire {
    net: Rc<RefCell<SimNet>>,
    endpoint: Endpoint,
    id: u64,
    port: Rc<Port>,
}

impl SimWire {
    /// True time when this machine's clock shows `shown`: the last there is, so that what it was told is due has arrived.
    fn true_time(&self, shown: Instant) -> Instant {
        self.port.clock.get().last_time_of(shown)
    }
}

impl PacketWire for SimWire {
    fn new_link(&mut self) -> u64 {
        self.net.borrow_mut().take_id()
    }

    fn listens(&self, to: Endpoint) -> bool {
        let net = self.net.borrow();
        let is_silent = net.crashed.contains(&to)
            || net.is_silent(self.endpoint, to)
            || net.is_silent(to, self.endpoint)
            || !net.is_alive(self.endpoint, self.id);
        is_silent || net.stations.get(&to).is_some_and(|station| station.listen)
    }

    fn send(&mut self, now: Instant, to: Endpoint, packet: Packet) {
        let now = self.true_time(now);
        let mut net = self.net.borrow_mut();
        net.send(now, self.id, to, packet);
    }

    fn receive(&mut self, now: Instant, budget: usize, into: &mut Vec<Packet>) {
        let now = self.true_time(now);
        if self.port.next_arrival.get() > now {
            return;
        }
        let mut net = self.net.borrow_mut();
        net.receive(now, self.endpoint, self.id, budget, into);
    }

    fn next_arrival(&self) -> Option<Instant> {
        // A machine that is dead hears of nothing: its endpoint may have another one by now.
        let at = Some(self.port.next_arrival.get()).filter(|at| *at != Instant::NEVER)?;
        self.net.borrow().is_alive(self.endpoint, self.id).then(|| self.port.clock.get().shows(at))
    }

    fn has_work(&self) -> bool {
        false
    }
}

impl Drop for SimWire {
    fn drop(&mut self) {
        let mut net = self.net.borrow_mut();
        if net.is_alive(self.endpoint, self.id) {
            net.stations.remove(&self.endpoint);
            self.port.next_arrival.set(Instant::NEVER);
        }
    }
}
