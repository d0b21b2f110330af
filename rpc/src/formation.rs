//! Formation: which items leave now, and which share a packet.
//!
//! Items to one peer wait in two queues for each lane. The urgent one leaves in the turn in which it was filled, highest priority first; an
//! item of the waiting one leaves with the next packet that has room for it, or when enough of them have come together (count or bytes), or
//! when its time is over and it becomes urgent. A packet takes items in order while they are small, together within count and size, for the
//! same incarnation, and within what one message may say of memory; anything larger goes alone, uncopied. In one process (`lo`) all
//! do: a message costs less there than a copy.
//!
//! Packets in flight: the transport's credits bound them (docs/wire.md#credits). A packet that it does not take is held, the queues behind it
//! grow, and so the packets that leave next are fuller. Pure: time comes in, packets are asked for with [`Formation::poll`].
//!
//! Bounds: `items_max` per peer and lane, then [`Formation::push`] gives the item back; queues go with their peer. Thread: the owning
//! locality. Nothing is allocated once the queues have grown. Start at [`Formation::poll`].
//! **Invariant**: an item is alone, in one queue, or held, or was given back; it is alone only while nothing is in a queue or held.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use base::{Endpoint, Instant, LookupMap};
use verbs_net::{Lane, PeerId};

use crate::packet::packet_bytes;

/// Bounds of packets.
#[derive(Clone, Copy, Debug)]
pub struct FormationLimits {
    /// Items in a packet. 1: no formation, each item goes alone.
    pub packet_items_max: usize,
    /// Bytes of a packet.
    pub packet_bytes_max: usize,
    /// Bytes of the longest item that is copied into a packet.
    pub item_bytes_max: usize,
    /// Items that wait, by peer and lane.
    pub items_max: usize,
    /// Bytes of the items in a waiting queue at which they leave before their time.
    pub waiting_bytes_max: usize,
}

/// Which of the urgent items goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Before all others: sessions, heartbeats.
    High,
    /// Most items.
    #[default]
    Normal,
    /// Work that nobody waits for: repair.
    Low,
}

/// What formation has to know of an item.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// For whom.
    pub to: PeerId,
    /// Among the urgent ones.
    pub priority: Priority,
    /// When it has to leave: now, or before, makes it urgent at once.
    pub urgent_at: Instant,
    /// Its length.
    pub bytes: usize,
    /// Exposures that it carries.
    pub exposes: usize,
    /// Exposures that it ends or comes behind, 0 or 1: a message names one.
    pub concludes: usize,
}

/// One lane to one peer. The flag: true for what answers a peer.
pub type Key = (Endpoint, bool);

/// Figures of formation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FormationStats {
    /// Messages that left: packets, and items alone.
    pub messages: u64,
    /// Packets of two items and more among them.
    pub packets: u64,
    /// Items in those.
    pub packed_items: u64,
    /// Items whose time in a waiting queue was over.
    pub ripened: u64,
    /// Times that the transport had no credit or room for a message.
    pub blocked: u64,
}

#[derive(Debug)]
struct Entry<P> {
    shape: Shape,
    parcel: P,
}

/// A message that the transport did not take.
#[derive(Debug)]
struct Held<P> {
    to: PeerId,
    parcel: P,
    /// What [`Formation::hold`] was told to keep with it.
    of: Vec<P>,
}

#[derive(Debug)]
struct Queues<P> {
    held: Option<Held<P>>,
    urgent: [VecDeque<Entry<P>>; 3],
    waiting: BTreeMap<(Instant, u64), Entry<P>>,
    waiting_bytes: usize,
    count: usize,
    is_listed: bool,
}

impl<P> Default for Queues<P> {
    fn default() -> Queues<P> {
        Queues {
            held: None,
            urgent: [VecDeque::new(), VecDeque::new(), VecDeque::new()],
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            count: 0,
            is_listed: false,
        }
    }
}

/// A packet that is being chosen.
struct Room {
    to: PeerId,
    count: usize,
    bytes: usize,
    exposes: usize,
    concludes: usize,
}

/// What to send.
#[derive(Debug)]
pub enum Formed<P> {
    /// A message that the transport did not take before, with the parcels it was made of.
    Held(P, Vec<P>),
    /// The parcels in the caller's list: one goes alone, several make a packet.
    Fresh,
}

/// The queues of one locality.
#[derive(Debug)]
pub struct Formation<P> {
    limits: FormationLimits,
    /// An urgent item, with its flag, while nothing else is here: most items leave alone, and queues are not for them. In the next item's way it
    /// goes to its queue.
    alone: Option<(bool, Entry<P>)>,
    /// Items in queues, and messages held.
    queued_count: usize,
    queues: LookupMap<Key, Queues<P>>,
    /// Lanes with something to send.
    listed: VecDeque<Key>,
    timers: BTreeSet<(Instant, u64, Key)>,
    next_order: u64,
    stats: FormationStats,
}

impl<P> Formation<P> {
    /// Nothing waits.
    #[must_use]
    pub fn new(limits: FormationLimits) -> Formation<P> {
        Formation {
            limits,
            alone: None,
            queued_count: 0,
            queues: LookupMap::new(),
            listed: VecDeque::new(),
            timers: BTreeSet::new(),
            next_order: 0,
            stats: FormationStats::default(),
        }
    }

    /// Figures so far.
    #[must_use]
    pub fn stats(&self) -> FormationStats {
        self.stats
    }

    /// Takes an item. Given back: as many as may wait do.
    pub fn push(&mut self, now: Instant, is_reply: bool, shape: Shape, parcel: P) -> Result<(), P> {
        if self.queued_count == 0 && self.limits.items_max > 0 {
            if shape.urgent_at <= now && self.alone.is_none() {
                self.alone = Some((is_reply, Entry { shape, parcel }));
                return Ok(());
            }
            if let Some((is_reply, first)) = self.alone.take() {
                self.enqueue(now, is_reply, first).map_err(|first| first.parcel)?;
            }
        }
        self.enqueue(now, is_reply, Entry { shape, parcel }).map_err(|entry| entry.parcel)
    }

    #[allow(clippy::result_large_err)] // it goes back to its owner as it was
    fn enqueue(&mut self, now: Instant, is_reply: bool, entry: Entry<P>) -> Result<(), Entry<P>> {
        let shape = entry.shape;
        let key = (shape.to.endpoint, is_reply);
        let queues = self.queues.get_or_default(key);
        if queues.count >= self.limits.items_max {
            return Err(entry);
        }
        queues.count += 1;
        self.queued_count += 1;
        if shape.urgent_at <= now {
            queues.urgent[shape.priority as usize].push_back(entry);
        } else {
            let order = self.next_order;
            self.next_order += 1;
            queues.waiting_bytes += shape.bytes;
            queues.waiting.insert((shape.urgent_at, order), entry);
            self.timers.insert((shape.urgent_at, order, key));
        }
        if !queues.is_listed {
            queues.is_listed = true;
            self.listed.push_back(key);
        }
        Ok(())
    }

    /// Makes urgent what has waited long enough; how many items.
    pub fn handle_timeouts(&mut self, now: Instant) -> usize {
        let mut ripe_count = 0;
        while let Some(&(at, order, key)) = self.timers.first().filter(|timer| timer.0 <= now) {
            self.timers.pop_first();
            let Some(queues) = self.queues.get_mut(&key) else { continue };
            let Some(entry) = queues.waiting.remove(&(at, order)) else { continue };
            queues.waiting_bytes -= entry.shape.bytes;
            queues.urgent[entry.shape.priority as usize].push_back(entry);
            self.stats.ripened += 1;
            ripe_count += 1;
            self.list(key);
        }
        ripe_count
    }

    /// When [`Formation::handle_timeouts`] has to run next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.first().map(|timer| timer.0)
    }

    /// The next message to send: for whom, on which lane. `Fresh`: its parcels are put into `parcels`, which has to be empty.
    /// `may_pack`: asked when items could share a packet; where it says no each goes alone.
    pub fn poll(
        &mut self,
        mut may_pack: impl FnMut(Endpoint) -> bool,
        parcels: &mut Vec<P>,
    ) -> Option<(PeerId, Lane, Formed<P>)> {
        if let Some((is_reply, Entry { shape, parcel })) = self.alone.take() {
            self.stats.messages += 1;
            parcels.push(parcel);
            return Some((shape.to, lane(is_reply), Formed::Fresh));
        }
        while let Some(key) = self.listed.pop_front() {
            let Some(queues) = self.queues.get_mut(&key) else { continue };
            queues.is_listed = false;
            if let Some(held) = queues.held.take() {
                self.queued_count -= 1;
                self.list(key);
                return Some((held.to, lane(key.1), Formed::Held(held.parcel, held.of)));
            }
            let packs = self.limits.packet_items_max > 1 && queues.count > 1 && may_pack(key.0);
            let items_max = if packs { self.limits.packet_items_max } else { 1 };
            let Some(to) = queues.choose(&self.limits, items_max, &mut self.timers, key, parcels) else {
                continue;
            };
            queues.count -= parcels.len();
            self.queued_count -= parcels.len();
            if parcels.len() > 1 {
                self.stats.packets += 1;
                self.stats.packed_items += base::units::wide(parcels.len());
            }
            self.stats.messages += 1;
            if queues.count > 0 {
                queues.is_listed = true;
                self.listed.push_back(key);
            }
            return Some((to, lane(key.1), Formed::Fresh));
        }
        None
    }

    /// The transport has no room for a message that [`Formation::poll`] gave. It is the first to leave after [`Formation::on_writable`].
    pub fn hold(&mut self, to: PeerId, lane: Lane, parcel: P, of: Vec<P>) {
        self.stats.blocked += 1;
        let key = (to.endpoint, lane == Lane::Reply);
        self.queued_count += 1;
        self.queues.get_or_default(key).held = Some(Held { to, parcel, of });
        self.listed.retain(|listed| *listed != key);
        if let Some(queues) = self.queues.get_mut(&key) {
            queues.is_listed = true; // stays off the list, and nothing lists it, until the transport has room
        }
    }

    /// The transport has room again.
    pub fn on_writable(&mut self, endpoint: Endpoint) {
        for key in [(endpoint, true), (endpoint, false)] {
            if let Some(queues) = self.queues.get_mut(&key)
                && queues.held.is_some()
            {
                queues.is_listed = false;
                self.list(key);
            }
        }
    }

    /// A peer is gone: gives back, one by one, what waited for it.
    pub fn forget(&mut self, endpoint: Endpoint, mut gone: impl FnMut(P)) {
        if let Some((_, entry)) = self.alone.take_if(|(_, entry)| entry.shape.to.endpoint == endpoint) {
            gone(entry.parcel);
        }
        for key in [(endpoint, true), (endpoint, false)] {
            let Some(queues) = self.queues.remove(&key) else { continue };
            for (at, order) in queues.waiting.keys() {
                self.timers.remove(&(*at, *order, key));
            }
            self.listed.retain(|listed| *listed != key);
            self.queued_count -= queues.count + usize::from(queues.held.is_some());
            if let Some(Held { parcel, of, .. }) = queues.held {
                gone(parcel);
                of.into_iter().for_each(&mut gone);
            }
            let urgent = queues.urgent.into_iter().flatten();
            urgent.chain(queues.waiting.into_values()).for_each(|entry| gone(entry.parcel));
        }
    }

    /// The transport refused a peer for good: its queues go once they are empty, as no loss of it will be told.
    pub fn prune(&mut self, endpoint: Endpoint) {
        for key in [(endpoint, true), (endpoint, false)] {
            if self.queues.get(&key).is_some_and(|queues| queues.count == 0 && queues.held.is_none()) {
                self.queues.remove(&key);
                self.listed.retain(|listed| *listed != key);
            }
        }
    }

    fn list(&mut self, key: Key) {
        if let Some(queues) = self.queues.get_mut(&key)
            && !queues.is_listed
        {
            queues.is_listed = true;
            self.listed.push_back(key);
        }
    }
}

impl<P> Queues<P> {
    /// Moves the parcels of the next message into `parcels`. `None`: nothing has to leave now.
    fn choose(
        &mut self,
        limits: &FormationLimits,
        items_max: usize,
        timers: &mut BTreeSet<(Instant, u64, Key)>,
        key: Key,
        parcels: &mut Vec<P>,
    ) -> Option<PeerId> {
        let mut room: Option<Room> = None;
        'urgent: for queue in &mut self.urgent {
            while let Some(entry) = queue.front() {
                if !take(&mut room, &entry.shape, limits, items_max) {
                    break 'urgent;
                }
                if let Some(entry) = queue.pop_front() {
                    parcels.push(entry.parcel);
                }
            }
        }
        let is_full =
            self.waiting.len() >= limits.packet_items_max || self.waiting_bytes >= limits.waiting_bytes_max;
        if room.is_some() || is_full {
            while let Some(entry) = self.waiting.first_entry() {
                if !take(&mut room, &entry.get().shape, limits, items_max) {
                    break;
                }
                let ((at, order), entry) = entry.remove_entry();
                timers.remove(&(at, order, key));
                self.waiting_bytes -= entry.shape.bytes;
                parcels.push(entry.parcel);
            }
        }
        room.map(|room| room.to)
    }
}

/// Makes room for one more item. False: it does not fit with those before it.
fn take(room: &mut Option<Room>, shape: &Shape, limits: &FormationLimits, items_max: usize) -> bool {
    let Some(room) = room else {
        *room = Some(Room {
            to: shape.to,
            count: 1,
            bytes: shape.bytes,
            exposes: shape.exposes,
            concludes: shape.concludes,
        });
        return true;
    };
    let (count, bytes) = (room.count + 1, room.bytes + shape.bytes);
    let (exposes, concludes) = (room.exposes + shape.exposes, room.concludes + shape.concludes);
    let fits = room.to == shape.to
        && count <= items_max
        && shape.bytes <= limits.item_bytes_max
        && packet_bytes(count, bytes) <= limits.packet_bytes_max
        && (room.count > 1 || room.bytes <= limits.item_bytes_max) // the first alone, if it is long
        && exposes <= verbs_net::limits::EXPOSES_MAX
        && concludes <= 1;
    if fits {
        *room = Room { to: room.to, count, bytes, exposes, concludes };
    }
    fits
}

const fn lane(is_reply: bool) -> Lane {
    if is_reply { Lane::Reply } else { Lane::Request }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Nid;
    use std::time::Duration;

    const LIMITS: FormationLimits = FormationLimits {
        packet_items_max: 4,
        packet_bytes_max: 1000,
        item_bytes_max: 400,
        items_max: 10,
        waiting_bytes_max: 600,
    };

    fn peer(epoch: u64) -> PeerId {
        PeerId { endpoint: Endpoint { nid: Nid::LOOPBACK, pid: 1, portal: 34, tmid: 1 }, epoch }
    }

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    fn shape(bytes: usize) -> Shape {
        let priority = Priority::Normal;
        Shape { to: peer(1), priority, urgent_at: at(0), bytes, exposes: 0, concludes: 0 }
    }

    struct Test {
        formation: Formation<u32>,
        now: Instant,
    }

    impl Test {
        fn new() -> Test {
            Test { formation: Formation::new(LIMITS), now: at(0) }
        }

        fn push(&mut self, name: u32, shape: Shape) {
            self.formation.push(self.now, false, shape, name).unwrap();
        }

        fn poll(&mut self) -> Vec<u32> {
            let mut parcels = Vec::new();
            match self.formation.poll(|_| true, &mut parcels) {
                Some((_, _, Formed::Held(parcel, _))) => vec![parcel],
                _ => parcels,
            }
        }

        fn all(&mut self) -> Vec<Vec<u32>> {
            std::iter::from_fn(|| Some(self.poll()).filter(|parcels| !parcels.is_empty())).collect()
        }
    }

    #[test]
    fn small_items_share_packets_within_count_and_size() {
        let mut test = Test::new();
        (0..6).for_each(|name| test.push(name, shape(100)));
        assert_eq!(test.all(), [vec![0, 1, 2, 3], vec![4, 5]], "count");
        (0..4).for_each(|name| test.push(name, shape(350)));
        assert_eq!(test.all(), [vec![0, 1], vec![2, 3]], "size");
        test.push(1, shape(100));
        test.push(2, shape(401));
        test.push(3, shape(100));
        test.push(4, shape(100));
        assert_eq!(test.all(), [vec![1], vec![2], vec![3, 4]], "a long item goes alone, and order is kept");
        let stats = test.formation.stats();
        assert_eq!((stats.messages, stats.packets, stats.packed_items), (7, 5, 12));
        assert_eq!(test.formation.next_deadline(), None);
    }

    #[test]
    fn one_packet_is_for_one_incarnation_and_within_what_a_message_may_expose() {
        let mut test = Test::new();
        test.push(1, shape(100));
        test.push(2, Shape { to: peer(2), ..shape(100) });
        assert_eq!(test.all(), [[1], [2]]);
        for name in 0..4 {
            test.push(name, Shape { exposes: 1, ..shape(100) });
        }
        assert_eq!(test.all(), [[0, 1], [2, 3]]);
        for name in 0..2 {
            test.push(name, Shape { concludes: 1, ..shape(100) });
        }
        assert_eq!(test.all(), [[0], [1]]);
    }

    #[test]
    fn who_does_not_read_packets_gets_items() {
        let mut test = Test::new();
        (0..3).for_each(|name| test.push(name, shape(100)));
        let mut parcels = Vec::new();
        for name in 0..3 {
            assert!(test.formation.poll(|_| false, &mut parcels).is_some());
            assert_eq!(std::mem::take(&mut parcels), [name]);
        }
        assert!(test.formation.poll(|_| false, &mut parcels).is_none());
    }

    #[test]
    fn priority_decides_among_the_urgent() {
        let mut test = Test::new();
        test.push(1, Shape { priority: Priority::Low, ..shape(300) });
        test.push(2, shape(300));
        test.push(3, Shape { priority: Priority::High, ..shape(300) });
        test.push(4, shape(300));
        assert_eq!(test.all(), [vec![3, 2, 4], vec![1]]);
    }

    #[test]
    fn a_waiting_item_leaves_with_an_urgent_one_in_company_or_when_its_time_is_over() {
        let mut test = Test::new();
        let waiting = |ms, bytes| Shape { urgent_at: at(ms), ..shape(bytes) };
        test.push(1, waiting(5, 100));
        assert_eq!(test.poll(), []);
        test.push(2, shape(100));
        assert_eq!(test.poll(), [2, 1], "room in a packet");
        assert_eq!(test.formation.next_deadline(), None);

        (0..3).for_each(|name| test.push(name, waiting(9 - u64::from(name), 100)));
        assert_eq!(test.poll(), []);
        test.push(3, waiting(9, 100));
        assert_eq!(test.poll(), [2, 1, 0, 3], "enough of them, the first to ripen first");
        test.push(1, waiting(5, 300));
        assert_eq!(test.poll(), []);
        test.push(2, waiting(5, 300));
        assert_eq!(test.poll(), [1, 2], "enough bytes");

        test.push(1, waiting(5, 100));
        test.push(2, waiting(7, 100));
        assert_eq!(test.formation.next_deadline(), Some(at(5)));
        assert_eq!(test.formation.handle_timeouts(at(4)), 0);
        assert_eq!(test.poll(), []);
        assert_eq!(test.formation.handle_timeouts(at(5)), 1);
        assert_eq!(test.poll(), [1, 2], "the next comes along");
        assert_eq!((test.formation.next_deadline(), test.formation.stats().ripened), (None, 1));
    }

    #[test]
    fn what_the_transport_does_not_take_leaves_first_and_the_next_packet_is_fuller() {
        let mut test = Test::new();
        test.push(1, shape(100));
        assert_eq!(test.poll(), [1]);
        test.formation.hold(peer(1), Lane::Request, 1, Vec::new());
        (2..6).for_each(|name| test.push(name, shape(100)));
        assert_eq!(test.poll(), [], "not before there is room");
        test.formation.on_writable(peer(1).endpoint);
        assert_eq!(test.all(), [vec![1], vec![2, 3, 4, 5]]);
        test.formation.on_writable(peer(1).endpoint);
        assert_eq!(test.poll(), []);
        test.push(6, shape(100));
        assert_eq!(test.poll(), [6]);
    }

    #[test]
    fn a_full_queue_gives_items_back_and_a_lost_peer_gives_back_all() {
        let mut test = Test::new();
        test.push(0, shape(100));
        assert_eq!(test.poll(), [0]);
        test.formation.hold(peer(1), Lane::Request, 0, vec![7, 8]);
        (1..10).for_each(|name| test.push(name, shape(100)));
        test.push(10, Shape { urgent_at: at(5), ..shape(100) });
        assert_eq!(test.formation.push(at(0), false, shape(100), 11), Err(11));
        let mut gone = Vec::new();
        test.formation.forget(peer(1).endpoint, |name| gone.push(name));
        assert_eq!(gone, [0, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!((test.formation.next_deadline(), test.poll()), (None, vec![]));
        (1..3).for_each(|name| test.push(name, shape(100)));
        test.formation.prune(peer(1).endpoint);
        assert_eq!((test.formation.queues.len(), test.poll()), (1, vec![1, 2]));
        test.formation.prune(peer(1).endpoint);
        assert_eq!((test.formation.queues.len(), test.formation.listed.len()), (0, 0));
        assert_eq!(test.formation.queued_count, 0);
        test.push(2, shape(100));
        assert_eq!(test.poll(), [2]);
    }

    #[test]
    fn an_item_alone_needs_no_queue_and_goes_to_one_in_the_way_of_the_next() {
        let mut test = Test::new();
        test.push(1, shape(100));
        assert_eq!((test.formation.queues.len(), test.poll()), (0, vec![1]));
        test.push(2, shape(100));
        test.push(3, Shape { to: peer(2), ..shape(100) });
        test.push(4, shape(100));
        assert_eq!(test.all(), [vec![2], vec![3], vec![4]], "another incarnation comes between");
        test.push(5, shape(100));
        let mut gone = Vec::new();
        test.formation.forget(Endpoint { pid: 99, ..peer(1).endpoint }, |name| gone.push(name));
        assert_eq!(gone, [], "somebody else's");
        test.formation.forget(peer(1).endpoint, |name| gone.push(name));
        assert_eq!((gone, test.poll()), (vec![5], vec![]));
        // Behind one that waits for its time, nobody is alone.
        test.push(6, Shape { urgent_at: at(5), ..shape(100) });
        test.push(7, shape(100));
        assert_eq!((test.all(), test.formation.queued_count), (vec![vec![7, 6]], 0));
    }
}
