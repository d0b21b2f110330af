//! Rails in the protocol core: which connection a message takes, what becomes of a peer and its messages when one is lost, and how
//! more of them are found.
//!
//! One request, one rail: a request's exposures are bound for the connection that it goes over, its bulk moves there, and the reply
//! follows its pushes on the same connection. Different requests take different rails. Messages that never left a lost rail are
//! sent again over another (rail.rs has the classes); of those that had left the layer above hears `Event::RailLost`.
//!
//! **Invariant**: an exposure is bound on at most one connection that is up. **Invariant**: a reply never arrives over another rail than the
//! pushes before it. Bounds: `NIDS_MAX` rails of a peer, `PUSHES_REMEMBERED_MAX`, `NET_CREDITS` messages in flight of an interface.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use base::{Endpoint, Instant, Nid};
use smallvec::SmallVec;

use crate::connection::{ConnectionId, Outgoing, Phase, reconnect_pause};
use crate::descriptor::BulkCookie;
use crate::discovery::{Features, PeerInfo};
use crate::error::NetError;
use crate::frame::FrameBody;
use crate::limits::{NET_CREDITS, NET_CREDITS_RESERVE, NIDS_MAX, PUSHES_REMEMBERED_MAX};
use crate::machine::{Event, Lane, PeerId, is_dynamic};
use crate::protocol::{Protocol, Waiting};
use crate::rail::{ErrorClass, HEALTH_MAX, HEALTH_STEP, Link, RESENDS_MAX, Rail, Rank, pair_up};

/// Between two pings of a rail that lost health.
const RECOVERY_PAUSE: Duration = Duration::from_secs(1);
/// Epochs that a peer's endpoint has had before and that are refused.
const RETIRED_MAX: usize = 8;

/// Which rail a message takes.
pub(crate) enum Choice {
    Rail(ConnectionId),
    /// Rails are up, and none of those that it may take has a credit.
    NoCredit,
    /// No rail is up.
    Down,
    /// The incarnation that it is for is gone.
    Stale,
    /// It follows pushes over a rail that is gone: their bytes may not have arrived.
    PushesLost,
}

#[derive(Clone, Copy)]
struct Pushed {
    connection: ConnectionId,
    /// Pushes that have not ended.
    pending: u32,
    /// One has ended well, so that bytes may be under way on the connection.
    has_bytes: bool,
}

/// Names no connection: pushes went over two of them, and nobody waits for both.
const NOWHERE: ConnectionId = ConnectionId(0);

/// Over which connection pushes into an exposure of a peer went: the last `PUSHES_REMEMBERED_MAX`.
///
/// **Invariant**: by incarnation, since a peer that starts again under its address gives the same cookies again. Epoch 0 is never in it.
#[derive(Default)]
pub(crate) struct PushedTable {
    rails: BTreeMap<(PeerId, u64), Pushed>,
    order: VecDeque<(PeerId, u64)>,
}

impl PushedTable {
    pub(crate) fn note(&mut self, peer: PeerId, cookie: BulkCookie, connection: ConnectionId) {
        let key = (peer, cookie.0);
        if let Some(before) = self.rails.get_mut(&key) {
            if before.connection != connection {
                let is_mixed = before.has_bytes || before.pending > 0;
                before.connection = if is_mixed { NOWHERE } else { connection };
            }
            before.pending += 1;
        } else {
            self.rails.insert(key, Pushed { connection, pending: 1, has_bytes: false });
            self.order.push_back(key);
            if self.order.len() > PUSHES_REMEMBERED_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.rails.remove(&oldest);
            }
        }
    }

    pub(crate) fn rail(&self, peer: PeerId, cookie: BulkCookie) -> Option<ConnectionId> {
        self.rails.get(&(peer, cookie.0)).map(|pushed| pushed.connection)
    }

    /// The connection that a further push has to take, so that all are on one.
    pub(crate) fn binding(&self, peer: PeerId, cookie: BulkCookie) -> Option<ConnectionId> {
        let pushed = self.rails.get(&(peer, cookie.0))?;
        (pushed.has_bytes || pushed.pending > 0).then_some(pushed.connection)
    }

    /// A push has ended.
    pub(crate) fn on_push_ended(&mut self, peer: PeerId, cookie: BulkCookie, is_well: bool) {
        if let Some(pushed) = self.rails.get_mut(&(peer, cookie.0)) {
            pushed.pending = pushed.pending.saturating_sub(1);
            pushed.has_bytes |= is_well;
        }
    }

    /// Its request runs again: what was pushed before does not count.
    pub(crate) fn forget(&mut self, peer: PeerId, cookie: BulkCookie) {
        let key = (peer, cookie.0);
        if let Some(pushed) = self.rails.get_mut(&key) {
            *pushed = Pushed { connection: NOWHERE, pending: 0, has_bytes: false };
        }
    }
}

impl Protocol {
    // ---- the choice

    fn up_rails(&self, endpoint: Endpoint) -> SmallVec<[ConnectionId; 4]> {
        let rails = self.peers.get(&endpoint).map(|peer| &peer.rails[..]).unwrap_or_default();
        rails.iter().filter_map(Rail::ready).collect()
    }

    /// The choice for a plain message to a peer with one rail, which most of them are; `None`: it takes a longer look.
    pub(crate) fn only_rail(&mut self, to: PeerId, lane: Lane) -> Option<ConnectionId> {
        let [only] = &self.peers.get(&to.endpoint)?.rails[..] else { return None };
        let id = only.ready()?;
        let epoch = self.connection(id)?.epoch;
        ((to.epoch == 0 || to.epoch == epoch) && self.may_send(id, lane)).then_some(id)
    }

    pub(crate) fn choose_rail(&mut self, to: Endpoint, lane: Lane, waiting: &Waiting) -> Choice {
        let up = self.up_rails(to);
        let epoch = up.first().and_then(|first| self.connection(*first)).map_or(0, |first| first.epoch);
        let mut only = None;
        if let Some(cookie) = waiting.frame.follows {
            let epoch = if waiting.epoch == 0 { epoch } else { waiting.epoch };
            match self.pushed.rail(PeerId { endpoint: to, epoch }, cookie) {
                Some(id) if up.contains(&id) => only = Some(id),
                Some(_) => return Choice::PushesLost,
                None => {
                    let knows = |id: &&ConnectionId| {
                        self.connection(**id).is_some_and(|found| found.remote.get(cookie).is_some())
                    };
                    only = up.iter().find(knows).copied();
                }
            }
        }
        let Some(first) = up.first().copied() else { return Choice::Down };
        if waiting.epoch != 0 && waiting.epoch != epoch {
            return Choice::Stale;
        }
        if up.len() == 1 {
            only = Some(first);
        }
        for cookie in &waiting.frame.exposes {
            only = only.or_else(|| up.iter().copied().find(|id| self.exposures.is_bound(*cookie, *id)));
        }
        let chosen = match only {
            Some(id) => self.may_send(id, lane).then_some(id),
            None => self.best_rail_with(to, |protocol, id| protocol.may_send(id, lane)),
        };
        if let Some(id) = chosen {
            return Choice::Rail(id);
        }
        let mut is_net_full = false;
        for id in up {
            if let Some(connection) = self.connection(id) {
                connection.is_starved = !connection.has_credit(lane);
                is_net_full |= connection.has_credit(lane) && only.is_none_or(|only| only == id);
            }
        }
        if is_net_full && let Some(peer) = self.peers.get_mut(&to).filter(|peer| !peer.is_net_waiting) {
            peer.is_net_waiting = true;
            self.net_waiting.push_back(to);
        }
        Choice::NoCredit
    }

    /// True if the peer and our interface have a credit for it. A connection without any message in flight always has the
    /// interface's, so that no peer starves behind others.
    fn may_send(&mut self, id: ConnectionId, lane: Lane) -> bool {
        let Some(connection) = self.connection(id) else { return false };
        let (has_credit, is_idle, interface) =
            (connection.has_credit(lane), connection.in_flight() == 0, connection.interface);
        let kept = if lane == Lane::Request { NET_CREDITS_RESERVE } else { 0 };
        has_credit && (is_idle || self.interfaces[interface].in_flight + kept < self.net_credits())
    }

    /// Messages that an interface may have in flight. The last message to a peer that has nothing to say stays in flight, as its credit comes back with
    /// half a window or with the peer's next message; thousands of such peers must not take what the others need.
    fn net_credits(&self) -> u32 {
        NET_CREDITS.saturating_add(u32::try_from(self.open_count).unwrap_or(u32::MAX))
    }

    /// The best rail that is up, but for one.
    pub(crate) fn best_rail(&mut self, to: Endpoint, except: Option<ConnectionId>) -> Option<ConnectionId> {
        self.best_rail_with(to, |_, id| Some(id) != except)
    }

    fn best_rail_with(
        &mut self,
        to: Endpoint,
        mut may_take: impl FnMut(&mut Protocol, ConnectionId) -> bool,
    ) -> Option<ConnectionId> {
        let rails = self.peers.get(&to).map(|peer| &peer.rails[..]).unwrap_or_default();
        let candidates: SmallVec<[(usize, ConnectionId, Rank); 4]> = rails
            .iter()
            .enumerate()
            .filter_map(|(index, rail)| {
                let rank = Rank {
                    local_health: self.interfaces[rail.interface].health,
                    remote_health: rail.health,
                    free_credits: 0,
                    unused_since: std::cmp::Reverse(rail.used),
                };
                Some((index, rail.ready()?, rank))
            })
            .collect();
        let mut best: Option<(Rank, usize, ConnectionId)> = None;
        for (index, id, rank) in candidates {
            if !may_take(self, id) {
                continue;
            }
            let free_credits = self.connection(id).map_or(0, |connection| connection.free_credits());
            let rank = Rank { free_credits, ..rank };
            if best.is_none_or(|(other, ..)| rank > other) {
                best = Some((rank, index, id));
            }
        }
        let (_, index, id) = best?;
        self.turn += 1;
        let turn = self.turn;
        if let Some(rail) = self.peers.get_mut(&to).and_then(|peer| peer.rails.get_mut(index)) {
            rail.used = turn;
        }
        Some(id)
    }

    /// Dials the rail that promises most.
    pub(crate) fn dial_best(&mut self, now: Instant, endpoint: Endpoint) {
        let Some(peer) = self.peers.get(&endpoint) else { return };
        let rank = |rail: &Rail| {
            let health = (self.interfaces[rail.interface].health, rail.health);
            (health, std::cmp::Reverse(rail.failures))
        };
        // The first of equals: it is the endpoint's own nid.
        let best = (0..peer.rails.len()).rev().max_by_key(|index| rank(&peer.rails[*index]));
        match best {
            Some(index) => self.schedule_dial(now, endpoint, index),
            None => {
                let interface = self.interface_on(endpoint).unwrap_or(0);
                if let Some(peer) = self.peers.get_mut(&endpoint) {
                    peer.rails.push(Rail::new(interface, endpoint.nid));
                }
                self.schedule_dial(now, endpoint, 0);
            }
        }
    }

    // ---- losing one

    /// A connection is over: its transfers fail. With another rail up, what never left it goes there; else the peer is lost: its waiting
    /// messages are dropped, and the layer above is told.
    pub(crate) fn lose(&mut self, now: Instant, id: ConnectionId, error: NetError) {
        let Some(connection) = self.connection(id) else { return };
        let (phase, endpoint, epoch) = (connection.phase, connection.endpoint, connection.epoch);
        if phase == Phase::Ended {
            return;
        }
        let mut undelivered: Vec<Outgoing> = Vec::new();
        if phase == Phase::Up {
            let held = std::mem::take(&mut connection.held).into_iter().map(|(_, frame)| frame);
            let (messages, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut connection.outbox)
                .into_iter()
                .chain(held)
                .partition(|frame| frame.body.sequence().is_some());
            undelivered = messages;
            connection.outbox = rest.into();
        }
        let (interface, nid) = (connection.interface, connection.rail);
        self.end(id);
        self.fail_transfers(id, &error);
        self.portals.retain_early(|early| early.connection != id);
        let Some(endpoint) = endpoint else { return };
        let random = self.random.u64(..);
        let times = self.times;
        let Some(peer) = self.peers.get_mut(&endpoint) else { return };
        let Some(index) = peer.rails.iter().position(|rail| rail.is_on(id)) else { return };
        let rail = &mut peer.rails[index];
        rail.link = Link::Idle;
        rail.not_before = now + reconnect_pause(&times, rail.failures, random);
        rail.failures = rail.failures.saturating_add(1);
        let (failures, is_kept) = (rail.failures, rail.is_kept);
        let is_other_up = peer.rails.iter().any(|rail| rail.up().is_some());
        if peer.rails.iter().all(|rail| rail.ready().is_none()) {
            // Better a rail that only we know of than none.
            peer.rails.iter_mut().for_each(|rail| rail.is_confirmed = rail.up().is_some());
        }
        let is_other_coming =
            peer.rails.iter().any(|rail| matches!(rail.link, Link::Dialing(_) | Link::Scheduled));
        let untried = peer
            .rails
            .iter()
            .position(|rail| rail.link == Link::Idle && now >= rail.not_before && rail.failures < failures);
        self.blame(now, interface, endpoint, nid, error.class());
        if is_other_up {
            if phase == Phase::Up {
                self.stats.rails_lost += 1;
                let peer = PeerId { endpoint, epoch };
                self.emit(Event::RailLost { peer, nid, error: error.clone() });
            }
            if is_kept {
                self.schedule_dial(now, endpoint, index);
            } else if let Some(peer) = self.peers.get_mut(&endpoint) {
                // The other side makes it again.
                peer.rails.remove(index);
            }
            for frame in undelivered {
                // Whatever ended the rail: these never left.
                self.resend(now, id, endpoint, frame, ErrorClass::LocalAborted);
            }
            self.fail_operations_on(id, &error);
            // Who waits for a credit of the lost rail may go on with another, or give up.
            return self.notify_writable(endpoint);
        }
        if phase == Phase::Dialing {
            if is_other_coming {
                return;
            }
            if let Some(index) = untried {
                return self.schedule_dial(now, endpoint, index);
            }
        }
        if phase == Phase::Up {
            self.stats.peers_lost += 1;
        }
        self.fail_peer(now, endpoint, epoch, error);
    }

    pub(crate) fn fail_peer(&mut self, now: Instant, endpoint: Endpoint, epoch: u64, error: NetError) {
        let random = self.random.u64(..);
        let pause = reconnect_pause(&self.times, 0, random);
        let Some(peer) = self.peers.get_mut(&endpoint) else { return };
        peer.waiting.clear();
        peer.wants_writable = false;
        peer.asked_epoch = 0;
        // Rails that the other side makes come back with it.
        peer.rails.retain(|rail| rail.is_kept || rail.nid == endpoint.nid || rail.link != Link::Idle);
        if let Some(first) = peer.rails.first_mut()
            && first.not_before <= now
        {
            first.not_before = now + pause;
        }
        if is_dynamic(endpoint) {
            self.peers.remove(&endpoint);
        }
        self.fail_operations(endpoint, &error);
        self.emit(Event::PeerLost { peer: PeerId { endpoint, epoch }, error });
    }

    /// A frame that a connection did not deliver: by a fault rule, or because its backend gives it back.
    pub(crate) fn handle_undelivered(
        &mut self,
        now: Instant,
        id: ConnectionId,
        frame: Outgoing,
        class: ErrorClass,
    ) {
        let Some(connection) = self.connection(id) else { return };
        let (interface, nid, phase) = (connection.interface, connection.rail, connection.phase);
        let Some(endpoint) = connection.endpoint else { return };
        if phase == Phase::Up {
            self.blame(now, interface, endpoint, nid, class);
        }
        if frame.body.sequence().is_some() {
            self.resend(now, id, endpoint, frame, class);
        } else if let FrameBody::PushData { transfer, .. } | FrameBody::PullRequest { transfer, .. } =
            frame.body
        {
            self.handle_transfer_failed(transfer, NetError::Undelivered { class });
        }
    }

    /// Sends a message again over another rail, if its class allows it and there is one.
    fn resend(
        &mut self,
        now: Instant,
        from: ConnectionId,
        endpoint: Endpoint,
        frame: Outgoing,
        class: ErrorClass,
    ) {
        let Outgoing { follows, resends, .. } = frame;
        let epoch = self.connection(from).map_or(0, |connection| connection.epoch);
        let peer = PeerId { endpoint, epoch };
        let follows_pushes = follows.is_some_and(|cookie| self.pushed.rail(peer, cookie) == Some(from));
        if class.may_resend()
            && resends < RESENDS_MAX
            && !follows_pushes
            && let Some(other) =
                self.best_rail_with(endpoint, |protocol, id| id != from && protocol.may_send(id, Lane::Reply))
        {
            self.stats.resends += 1;
            let again = Outgoing { completes: None, is_damaged: false, resends: resends + 1, ..frame };
            return self.post_message(now, other, again);
        }
        self.stats.undelivered += 1;
        self.on_not_posted(&frame.body, &NetError::Undelivered { class });
    }

    // ---- health

    /// True where there is a choice, and so health means something.
    fn has_choice(&self, endpoint: Endpoint) -> bool {
        self.peers.get(&endpoint).is_some_and(|peer| peer.rails.len() > 1)
    }

    fn blame(&mut self, now: Instant, interface: usize, endpoint: Endpoint, nid: Nid, class: ErrorClass) {
        if !self.has_choice(endpoint) {
            return;
        }
        if class.blames_local() && self.interfaces.len() > 1 {
            let health = &mut self.interfaces[interface].health;
            *health = health.saturating_sub(HEALTH_STEP);
        }
        if class.blames_remote()
            && let Some(peer) = self.peers.get_mut(&endpoint)
        {
            for rail in peer.rails.iter_mut().filter(|rail| rail.nid == nid) {
                rail.health = rail.health.saturating_sub(HEALTH_STEP);
            }
        }
        if !std::mem::replace(&mut self.is_ailing, true) {
            self.next_recovery = now + RECOVERY_PAUSE;
        }
        let at = self.next_recovery;
        self.set_timer(at);
    }

    /// A transfer was not done in time: its rail loses health, and its connection has to give a sign of life.
    pub(crate) fn on_transfer_overdue(&mut self, now: Instant, id: ConnectionId) {
        let Some(connection) = self.connection(id) else { return };
        connection.is_doubtful = true;
        let (interface, nid, endpoint) = (connection.interface, connection.rail, connection.endpoint);
        if let Some(endpoint) = endpoint {
            self.blame(now, interface, endpoint, nid, ErrorClass::RemoteTimeout);
        }
    }

    /// The other side has spoken over a rail: it stands.
    pub(crate) fn confirm(&mut self, id: ConnectionId) {
        let Some(connection) = self.connection(id) else { return };
        connection.is_confirmed = true;
        let Some(endpoint) = connection.endpoint else { return };
        let Some(peer) = self.peers.get_mut(&endpoint) else { return };
        if let Some(rail) = peer.rails.iter_mut().find(|rail| rail.up() == Some(id)) {
            rail.is_confirmed = true;
        }
    }

    /// Health comes back.
    fn heal(&mut self, id: ConnectionId, by: u16) {
        let Some(connection) = self.connection(id) else { return };
        let (endpoint, interface) = (connection.endpoint, connection.interface);
        let ours = &mut self.interfaces[interface].health;
        *ours = ours.saturating_add(by).min(HEALTH_MAX);
        let Some(peer) = endpoint.and_then(|endpoint| self.peers.get_mut(&endpoint)) else { return };
        if let Some(rail) = peer.rails.iter_mut().find(|rail| rail.up() == Some(id)) {
            rail.health = rail.health.saturating_add(by).min(HEALTH_MAX);
        }
    }

    /// A peer has consumed messages of ours.
    pub(crate) fn on_delivered(&mut self, id: ConnectionId, count: u32) {
        if !self.net_waiting.is_empty() {
            // As many as there is room for: if each delivery woke all of them, thousands would try for each other's credit in vain. What is not taken
            // now is there with the next delivery, and while anything is in flight there is one.
            let interface = self.connection(id).map_or(0, |connection| connection.interface);
            let room = self.net_credits().saturating_sub(self.interfaces[interface].in_flight).max(count);
            for _ in 0..room {
                let Some(endpoint) = self.net_waiting.pop_front() else { break };
                if let Some(peer) = self.peers.get_mut(&endpoint) {
                    peer.is_net_waiting = false;
                }
                self.notify_writable(endpoint);
            }
        }
        if self.is_ailing {
            self.heal(id, u16::try_from(count).unwrap_or(HEALTH_MAX));
        }
    }

    pub(crate) fn on_pong(&mut self, id: ConnectionId) {
        if self.is_ailing {
            self.heal(id, HEALTH_STEP);
        }
    }

    /// Pings rails that are up and have lost health, until they have it back.
    pub(crate) fn recover_rails(&mut self, now: Instant) {
        if now < self.next_recovery {
            if self.is_ailing {
                let at = self.next_recovery;
                self.set_timer(at);
            }
            return;
        }
        let mut ailing: Vec<ConnectionId> = Vec::new();
        for peer in self.peers.values().filter(|peer| peer.rails.len() > 1) {
            let is_ailing = |rail: &&Rail| {
                rail.health < HEALTH_MAX || self.interfaces[rail.interface].health < HEALTH_MAX
            };
            ailing.extend(peer.rails.iter().filter(is_ailing).filter_map(Rail::up));
        }
        self.is_ailing = !ailing.is_empty();
        if !self.is_ailing {
            return;
        }
        self.next_recovery = now + RECOVERY_PAUSE;
        let at = self.next_recovery;
        self.set_timer(at);
        for id in ailing {
            let Some(connection) = self.connection(id) else { continue };
            let sequence = connection.sent;
            let nonce = self.random.u64(..);
            self.post_bare(id, FrameBody::Ping { sequence, nonce });
        }
    }

    // ---- finding more

    /// A peer is up: if it or we have more than one nid, ask for its nids.
    pub(crate) fn discover_rails(
        &mut self,
        now: Instant,
        peer: PeerId,
        id: ConnectionId,
        features: Features,
    ) {
        let is_dialled = self.connection(id).is_some_and(|connection| connection.is_dialled);
        let has_more = self.interfaces.len() > 1 || features.contains(Features::MULTI_RAIL);
        let Some(found) = self.peers.get_mut(&peer.endpoint) else { return };
        if found.last_epoch != peer.epoch {
            let before = std::mem::replace(&mut found.last_epoch, peer.epoch);
            if before != 0 {
                found.retired.push_back(before);
            }
            if found.retired.len() > RETIRED_MAX {
                found.retired.pop_front();
            }
        }
        let may_ask = is_dialled && has_more && features.contains(Features::DISCOVERY);
        if may_ask && found.asked_epoch != peer.epoch {
            found.asked_epoch = peer.epoch;
            self.ask_for_rails(now, peer);
        }
    }

    /// A peer has told its nids: those that we can reach become rails, and we make and keep them.
    pub(crate) fn learn_rails(&mut self, now: Instant, endpoint: Endpoint, info: &PeerInfo) {
        let Some(peer) = self.peers.get_mut(&endpoint) else { return };
        if peer.last_epoch != info.epoch {
            return;
        }
        let nids: Vec<Nid> = info.nids.iter().filter(|told| told.is_up).map(|told| told.nid).collect();
        for (interface, nid) in pair_up(&self.interfaces, &nids) {
            match peer.rails.iter().position(|rail| rail.interface == interface && rail.nid == nid) {
                Some(index) => peer.rails[index].is_kept = true,
                None if peer.rails.len() < NIDS_MAX => {
                    peer.rails.push(Rail { is_kept: true, ..Rail::new(interface, nid) });
                }
                None => {}
            }
        }
        let idle: Vec<usize> =
            (0..peer.rails.len()).filter(|index| peer.rails[*index].link == Link::Idle).collect();
        for index in idle {
            self.schedule_dial(now, endpoint, index);
        }
    }

    pub(crate) fn are_pushes_intact(&self, peer: PeerId, cookie: BulkCookie) -> bool {
        self.pushed.rail(peer, cookie).is_some_and(|id| self.up_rails(peer.endpoint).contains(&id))
    }

    /// State of the rails to a peer, for `clovis net` and tests: nid, whether it is up, and the health of ours and theirs.
    pub(crate) fn rails(&self, endpoint: Endpoint) -> Vec<(Nid, bool, u16, u16)> {
        let rails = self.peers.get(&endpoint).map(|peer| &peer.rails[..]).unwrap_or_default();
        let tell = |rail: &Rail| {
            (rail.nid, rail.up().is_some(), self.interfaces[rail.interface].health, rail.health)
        };
        rails.iter().map(tell).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_follows_its_pushes_or_stays() {
        let endpoint: Endpoint = "10.0.0.1@tcp:1:34:0".parse().unwrap();
        let (peer, again) = (PeerId { endpoint, epoch: 5 }, PeerId { endpoint, epoch: 6 });
        let (one, two, cookie) = (ConnectionId(1 << 32), ConnectionId(2 << 32), BulkCookie(7));
        let mut table = PushedTable::default();
        assert_eq!(table.rail(peer, cookie), None);
        table.note(peer, cookie, one);
        assert_eq!(table.binding(peer, cookie), Some(one));
        table.on_push_ended(peer, cookie, false);
        assert_eq!(table.binding(peer, cookie), None, "it failed: nothing of it is waited for");
        table.note(peer, cookie, two);
        assert_eq!(table.rail(peer, cookie), Some(two));
        table.on_push_ended(peer, cookie, true);
        assert_eq!(table.binding(peer, cookie), Some(two));
        table.note(peer, cookie, one);
        assert_eq!(table.rail(peer, cookie), Some(NOWHERE), "some went over each");
        table.on_push_ended(peer, cookie, true);
        table.forget(peer, cookie);
        table.note(peer, cookie, one);
        assert_eq!(table.rail(peer, cookie), Some(one), "the request runs again");
        table.on_push_ended(peer, cookie, true);
        table.note(again, cookie, two);
        assert_eq!(table.rail(again, cookie), Some(two), "another incarnation: its cookies are its own");
        for number in 0..u64::try_from(PUSHES_REMEMBERED_MAX).unwrap() {
            table.note(peer, BulkCookie(100 + number), two);
        }
        assert_eq!(table.rail(peer, cookie), None, "the oldest is forgotten");
        assert_eq!(table.rails.len(), PUSHES_REMEMBERED_MAX);
    }
}
