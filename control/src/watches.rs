//! Watches and notifies, without I/O: requests and time in; notifications, answers and what has to be stored out.
//!
//! **Invariant**: each watch that there was when a notify came is once in its answer: acknowledged, or missed with a reason.
//! **Invariant**: a watch is forgotten only when it is ended, or its watcher was silent for the lease and its grace: a watcher that
//! died is missed by name until then. A notify is over when nobody is awaited, or its time is. Bounds: `faces::limits`.
//! Left over: notifies are not stored. Who notifies asks again after a restart, under the same id, so that a watch may be told twice;
//! watches are stored, and have one lease to be heard. Thread: none of its own. Rules: docs/watch.md. Start at [`WatchTable::handle_notify`].
//!
//! What control itself tells ([`WatchTable::tell`], on the topics of `fops::news`) nobody acknowledges: it is over for a watch that asks for what comes
//! behind it. **Invariant**: a watch that may have missed such news is no longer listed to its watcher, which registers it again and has a gap: one that
//! does not fetch them, and each one after a restart, as these watches are not stored.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::rc::Rc;
use std::time::Duration;

use base::{Endpoint, Fid, Instant};
use faces::lease::lost_after;
use faces::limits::{
    NOTIFIES_KEPT, NOTIFIES_MAX, NOTIFY_ACK_BYTES_MAX, NOTIFY_BYTES_MAX, NOTIFY_OUTCOMES_MAX, NOTIFY_PAGE,
    NOTIFY_WAIT_MS_MAX, WATCH_INBOX_MAX, WATCH_LEASE_MAX_MS, WATCH_LEASE_MIN_MS, WATCH_LIST_PAGE,
    WATCH_NAME_BYTES_MAX, WATCH_PAGE, WATCH_PAGE_BYTES, WATCHES_MAX, WATCHES_PER_WATCHER_MAX,
};
use fops::news;
use fops::watch::{
    MissedWhy, Notification, Notify, NotifyAck, NotifyId, NotifyMissed, NotifyOutcomesGet,
    NotifyOutcomesReply, NotifyReply, WatchAck, WatchEntry, WatchListReply, WatchPlace, WatchRecord,
    WatchUnregister, WatcherId,
};

/// A request about watches that control refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WatchRefusal {
    /// Not a name.
    #[error("a watcher's name has 1 to {WATCH_NAME_BYTES_MAX} bytes and no control characters")]
    BadName,
    /// The cookie is in use.
    #[error("cookie {cookie} of this watcher watches {object} already: choose another")]
    OtherObject {
        /// Which.
        cookie: u64,
        /// What it watches.
        object: Fid,
    },
    /// No room in the cluster.
    #[error("{WATCHES_MAX} watches are registered, which is the limit: end some")]
    Full,
    /// No room for this watcher.
    #[error("this watcher has {WATCHES_PER_WATCHER_MAX} watches, which is the limit")]
    WatcherFull,
    /// Too long.
    #[error("a notify has at most {NOTIFY_BYTES_MAX} bytes, and this one has {bytes}")]
    LongNotify {
        /// Its length.
        bytes: usize,
    },
    /// Too long.
    #[error("an acknowledgement has at most {NOTIFY_ACK_BYTES_MAX} bytes, and this one has {bytes}")]
    LongAck {
        /// Its length.
        bytes: usize,
    },
    /// Not a client's to notify on.
    #[error("on {object} control itself tells what happens, and nobody else")]
    ControlsTopic {
        /// Which.
        object: Fid,
    },
    /// The number is in use.
    #[error("notify {id} is another one, on object {object}: choose another number")]
    OtherNotify {
        /// Which.
        id: NotifyId,
        /// What it is on.
        object: Fid,
    },
}

/// Something that the store has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchChange {
    /// Put this watch.
    Put(WatchRecord),
    /// Delete the watch.
    Drop(WatcherId, u64),
}

/// Where a notify stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotifyStart {
    /// Under way until this moment at the latest.
    Waits(Instant),
    /// Too many are under way; nothing happened.
    Busy,
}

#[derive(Clone, Debug)]
struct Watcher {
    heard_at: Instant,
    /// When it counts as gone, as it stands in [`WatchTable::leases`].
    lost_at: Instant,
    from: Endpoint,
    /// Number of its last poll: an older one that still waits is over.
    polls: u64,
    watches: BTreeMap<u64, WatchRecord>,
    queue: VecDeque<Queued>,
}

impl Watcher {
    /// When it counts as gone, by what is known of it now.
    fn lease_end(&self) -> Instant {
        let lease_ms = self.watches.values().map(|watch| watch.lease_ms).max().unwrap_or(0);
        self.heard_at + lost_after(Duration::from_millis(u64::from(lease_ms)))
    }
}

#[derive(Clone, Debug)]
struct Queued {
    number: u64,
    cookie: u64,
    notify: NotifyId,
    /// Told by control itself.
    news: Option<Rc<[u8]>>,
}

#[derive(Clone, Debug)]
struct Awaited {
    name: String,
    /// Its watcher has shown that it got the notification.
    told: bool,
}

#[derive(Clone, Debug)]
struct UnderWay {
    object: Fid,
    from: Endpoint,
    payload: Vec<u8>,
    until: Instant,
    awaited: BTreeMap<(WatcherId, u64), Awaited>,
    acks: Vec<NotifyAck>,
    missed: Vec<NotifyMissed>,
}

/// A notify that is over.
#[derive(Debug)]
struct Over {
    id: NotifyId,
    object: Fid,
    acks: Vec<NotifyAck>,
    missed: Vec<NotifyMissed>,
}

impl Over {
    fn outcomes(&self) -> usize {
        self.acks.len() + self.missed.len()
    }
}

/// All watches of the cluster, and the notifies under way.
///
/// A registration, a poll, an acknowledgement cost the logarithm of the watches that there are; a notify costs those that it is for.
#[derive(Debug)]
pub struct WatchTable {
    watchers: BTreeMap<WatcherId, Watcher>,
    /// The watches of each object.
    by_object: BTreeMap<Fid, BTreeSet<(WatcherId, u64)>>,
    /// All watches.
    count: usize,
    /// When each watcher counts as gone.
    leases: BTreeSet<(Instant, WatcherId)>,
    under_way: BTreeMap<NotifyId, UnderWay>,
    /// Of this control: its endpoint and incarnation, for what it tells itself.
    here: Endpoint,
    incarnation: u64,
    /// Oldest first: answers for those who ask again.
    over: VecDeque<Over>,
    /// Of the last notification.
    number: u64,
    /// Of the last poll.
    polls: u64,
    /// One more with each change that the store has to have.
    serial: u64,
    changes: Vec<WatchChange>,
}

impl WatchTable {
    /// The table as the store had it at `now`. `here`: control's own endpoint (a watcher counts as there until it says where it is) and incarnation.
    #[must_use]
    pub fn new(now: Instant, (here, incarnation): (Endpoint, u64), records: Vec<WatchRecord>) -> WatchTable {
        let mut table = WatchTable {
            watchers: BTreeMap::new(),
            by_object: BTreeMap::new(),
            count: 0,
            leases: BTreeSet::new(),
            under_way: BTreeMap::new(),
            here,
            incarnation,
            over: VecDeque::new(),
            number: 0,
            polls: 0,
            serial: 0,
            changes: Vec::new(),
        };
        for record in records {
            table.put(now, here, record);
        }
        table
    }

    /// Its watcher was heard now, and has this watch.
    fn put(&mut self, now: Instant, from: Endpoint, record: WatchRecord) {
        let WatchRecord { watcher: id, cookie, object, .. } = record;
        let watcher = self.watcher(now, from, id);
        (watcher.heard_at, watcher.from) = (now, from);
        let is_new = watcher.watches.insert(cookie, record).is_none();
        self.count += usize::from(is_new);
        self.by_object.entry(object).or_default().insert((id, cookie));
        self.keep_lease(id);
    }

    /// What is known of a watcher has changed.
    fn keep_lease(&mut self, id: WatcherId) {
        let Some(watcher) = self.watchers.get_mut(&id) else { return };
        let lost_at = watcher.lease_end();
        self.leases.remove(&(std::mem::replace(&mut watcher.lost_at, lost_at), id));
        self.leases.insert((lost_at, id));
    }

    fn watcher(&mut self, now: Instant, from: Endpoint, id: WatcherId) -> &mut Watcher {
        self.watchers.entry(id).or_insert_with(|| Watcher {
            heard_at: now,
            lost_at: now,
            from,
            polls: 0,
            watches: BTreeMap::new(),
            queue: VecDeque::new(),
        })
    }

    /// Number of the last change: an answer waits until the store has it.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// What the store has to do, in this order.
    pub fn take_changes(&mut self) -> Vec<WatchChange> {
        std::mem::take(&mut self.changes)
    }

    fn change(&mut self, change: WatchChange) {
        self.serial += 1;
        self.changes.push(change);
    }

    /// The watches of an object.
    fn watches_of(&self, object: Fid) -> Vec<(WatcherId, u64)> {
        self.by_object.get(&object).map_or_else(Vec::new, |watches| watches.iter().copied().collect())
    }

    /// Registers a watch, or prolongs its lease. Answer: the lease that counts. Notifies that are under way do not count it.
    pub fn handle_register(
        &mut self,
        now: Instant,
        watch: &WatchRecord,
        from: Endpoint,
    ) -> Result<u32, WatchRefusal> {
        let WatchRecord { watcher, cookie, object, ref name, lease_ms } = *watch;
        if !(1..=WATCH_NAME_BYTES_MAX).contains(&name.len()) || name.chars().any(char::is_control) {
            return Err(WatchRefusal::BadName);
        }
        let lease_ms = lease_ms.clamp(WATCH_LEASE_MIN_MS, WATCH_LEASE_MAX_MS);
        let record = WatchRecord { lease_ms, ..watch.clone() };
        let known = self.watchers.get(&watcher);
        let found = known.and_then(|known| known.watches.get(&cookie));
        match found {
            Some(found) if found.object != object => {
                return Err(WatchRefusal::OtherObject { cookie, object: found.object });
            }
            Some(_) => {}
            None if known.is_some_and(|known| known.watches.len() >= WATCHES_PER_WATCHER_MAX) => {
                return Err(WatchRefusal::WatcherFull);
            }
            None if self.count >= WATCHES_MAX => return Err(WatchRefusal::Full),
            None => {}
        }
        let is_new = found != Some(&record);
        self.put(now, from, record.clone());
        if is_new && !news::is_controls(object) {
            self.change(WatchChange::Put(record));
        }
        Ok(lease_ms)
    }

    /// Ends a watch. False if there is none.
    pub fn handle_unregister(&mut self, now: Instant, request: &WatchUnregister) -> bool {
        let Some(watcher) = self.watchers.get_mut(&request.watcher) else { return false };
        watcher.heard_at = now;
        self.keep_lease(request.watcher);
        self.end_watch(request.watcher, request.cookie, MissedWhy::Left)
    }

    fn end_watch(&mut self, id: WatcherId, cookie: u64, why: MissedWhy) -> bool {
        let Some(watcher) = self.watchers.get_mut(&id) else { return false };
        let Some(ended) = watcher.watches.remove(&cookie) else { return false };
        watcher.queue.retain(|queued| queued.cookie != cookie);
        let (from, lost_at) = (watcher.from, watcher.lost_at);
        if watcher.watches.is_empty() {
            self.watchers.remove(&id);
            self.leases.remove(&(lost_at, id));
        } else {
            self.keep_lease(id);
        }
        self.count -= 1;
        if let Some(watches) = self.by_object.get_mut(&ended.object) {
            watches.remove(&(id, cookie));
            if watches.is_empty() {
                self.by_object.remove(&ended.object);
            }
        }
        for notify in self.under_way.values_mut() {
            if let Some(Awaited { name, .. }) = notify.awaited.remove(&(id, cookie)) {
                let watch = WatchPlace { watcher: id, cookie, name, from };
                notify.missed.push(NotifyMissed { watch, why });
            }
        }
        if !news::is_controls(ended.object) {
            self.change(WatchChange::Drop(id, cookie));
        }
        true
    }

    /// Tells all watches of a topic something that nobody waits for. A watch that has not fetched [`WATCH_INBOX_MAX`] of them is forgotten. True if
    /// anybody watches.
    pub fn tell(&mut self, topic: Fid, payload: &[u8]) -> bool {
        debug_assert!(news::is_controls(topic));
        let payload: Rc<[u8]> = payload.into();
        let mut slow = Vec::new();
        let watches = self.watches_of(topic);
        let any = !watches.is_empty();
        for (id, cookie) in watches {
            let Some(Watcher { queue, .. }) = self.watchers.get_mut(&id) else { continue };
            if queue.iter().filter(|queued| queued.cookie == cookie).count() >= WATCH_INBOX_MAX {
                slow.push((id, cookie));
                continue;
            }
            self.number += 1;
            let notify = NotifyId(u128::from(self.incarnation) << 64 | u128::from(self.number));
            let news = Some(Rc::clone(&payload));
            queue.push_back(Queued { number: self.number, cookie, notify, news });
        }
        for (id, cookie) in slow {
            // It hears of that with its next answer.
            self.end_watch(id, cookie, MissedWhy::NoAnswer);
        }
        any
    }

    /// A page of the watches behind `after`, of one object or of all.
    #[must_use]
    pub fn list(&self, now: Instant, object: Option<Fid>, after: Option<(WatcherId, u64)>) -> WatchListReply {
        let first = after.map_or(Bound::Unbounded, |(watcher, _)| Bound::Included(watcher));
        let watchers = self.watchers.range((first, Bound::Unbounded));
        let all = watchers.flat_map(|(id, watcher)| {
            watcher.watches.values().map(move |watch| ((*id, watch.cookie), watcher, watch))
        });
        let mut wanted = all
            .filter(|(key, ..)| after.is_none_or(|after| *key > after))
            .filter(|(_, _, watch)| object.is_none_or(|object| watch.object == object));
        let entry = |((id, cookie), watcher, watch): ((WatcherId, u64), &Watcher, &WatchRecord)| {
            let waiting = watcher.queue.iter().filter(|queued| queued.cookie == cookie).count();
            WatchEntry {
                watch: WatchPlace { watcher: id, cookie, name: watch.name.clone(), from: watcher.from },
                object: watch.object,
                lease_ms: watch.lease_ms,
                silent_ms: u64::try_from(now.since(watcher.heard_at).as_millis()).unwrap_or(u64::MAX),
                waiting: u32::try_from(waiting).unwrap_or(u32::MAX),
            }
        };
        let watches = wanted.by_ref().take(WATCH_LIST_PAGE).map(entry).collect();
        WatchListReply { watches, more: wanted.next().is_some() }
    }

    /// A watcher lives, and has what came up to the number `after`. Answer: the number of this poll; `None` if it has no watch here.
    pub fn handle_poll(&mut self, now: Instant, id: WatcherId, after: u64, from: Endpoint) -> Option<u64> {
        let watcher = self.watchers.get_mut(&id)?;
        self.polls += 1;
        (watcher.heard_at, watcher.from, watcher.polls) = (now, from, self.polls);
        for queued in watcher.queue.iter().filter(|queued| queued.number <= after) {
            let notify = self.under_way.get_mut(&queued.notify);
            if let Some(awaited) = notify.and_then(|notify| notify.awaited.get_mut(&(id, queued.cookie))) {
                awaited.told = true;
            }
        }
        watcher.queue.retain(|queued| queued.news.is_none() || queued.number > after);
        self.keep_lease(id);
        Some(self.polls)
    }

    /// True until its watcher polls again, or is gone.
    #[must_use]
    pub fn is_current(&self, id: WatcherId, poll: u64) -> bool {
        self.watchers.get(&id).is_some_and(|watcher| watcher.polls == poll)
    }

    /// The watches of a watcher.
    #[must_use]
    pub fn cookies(&self, id: WatcherId) -> Vec<u64> {
        self.watchers.get(&id).map_or_else(Vec::new, |watcher| watcher.watches.keys().copied().collect())
    }

    /// What comes behind `after` for a watcher, as much as fits one answer.
    pub fn page(&self, id: WatcherId, after: u64) -> Vec<Notification> {
        let mut page = Vec::new();
        let Some(watcher) = self.watchers.get(&id) else { return page };
        let mut bytes = 0;
        for queued in watcher.queue.iter().filter(|queued| queued.number > after).take(WATCH_PAGE) {
            let (object, from, payload) = match &queued.news {
                Some(payload) => {
                    let Some(watch) = watcher.watches.get(&queued.cookie) else { continue };
                    (watch.object, self.here, &payload[..])
                }
                None => {
                    let Some(notify) = self.under_way.get(&queued.notify) else { continue };
                    (notify.object, notify.from, &notify.payload[..])
                }
            };
            bytes += payload.len();
            if bytes > WATCH_PAGE_BYTES {
                break;
            }
            let Queued { number, cookie, notify, .. } = *queued;
            page.push(Notification { number, cookie, notify, object, from, payload: payload.to_vec() });
        }
        page
    }

    /// A watch has done what it was told. False if nobody waits for that.
    pub fn handle_ack(&mut self, now: Instant, request: WatchAck) -> Result<bool, WatchRefusal> {
        let WatchAck { watcher: id, cookie, notify, payload } = request;
        if payload.len() > NOTIFY_ACK_BYTES_MAX {
            return Err(WatchRefusal::LongAck { bytes: payload.len() });
        }
        let Some(watcher) = self.watchers.get_mut(&id) else { return Ok(false) };
        watcher.heard_at = now;
        watcher.queue.retain(|queued| (queued.notify, queued.cookie) != (notify, cookie));
        let from = watcher.from;
        self.keep_lease(id);
        let Some(under_way) = self.under_way.get_mut(&notify) else { return Ok(false) };
        let Some(Awaited { name, .. }) = under_way.awaited.remove(&(id, cookie)) else { return Ok(false) };
        let watch = WatchPlace { watcher: id, cookie, name, from };
        under_way.acks.push(NotifyAck { watch, payload });
        Ok(true)
    }

    /// True if nobody is awaited any more by a notify, or there is no such notify under way.
    #[must_use]
    pub fn is_answered(&self, id: NotifyId) -> bool {
        self.under_way.get(&id).is_none_or(|notify| notify.awaited.is_empty())
    }

    /// Makes room for so many outcomes; answers that are kept go for it, the oldest first. False: notifies under way have taken it.
    fn make_room(&mut self, outcomes: usize) -> bool {
        let under_way = self.under_way.values();
        let under_way: usize =
            under_way.map(|one| one.awaited.len() + one.acks.len() + one.missed.len()).sum();
        if under_way + outcomes > NOTIFY_OUTCOMES_MAX {
            return false;
        }
        while under_way + outcomes + self.over.iter().map(Over::outcomes).sum::<usize>() > NOTIFY_OUTCOMES_MAX
        {
            self.over.pop_front();
        }
        true
    }

    /// Begins a notify, or joins the one of that number.
    pub fn handle_notify(
        &mut self,
        now: Instant,
        request: &Notify,
        from: Endpoint,
    ) -> Result<NotifyStart, WatchRefusal> {
        let Notify { id, object, ref payload, wait_ms } = *request;
        if payload.len() > NOTIFY_BYTES_MAX {
            return Err(WatchRefusal::LongNotify { bytes: payload.len() });
        }
        if news::is_controls(object) {
            return Err(WatchRefusal::ControlsTopic { object });
        }
        let under_way = self.under_way.get(&id).map(|found| (found.object, found.until));
        let over = self.over.iter().find(|over| over.id == id).map(|over| (over.object, now));
        if let Some((other, until)) = under_way.or(over) {
            return match other == object {
                true => Ok(NotifyStart::Waits(until)),
                false => Err(WatchRefusal::OtherNotify { id, object: other }),
            };
        }
        let watches = self.watches_of(object);
        if self.under_way.len() >= NOTIFIES_MAX || !self.make_room(watches.len()) {
            return Ok(NotifyStart::Busy);
        }
        let mut awaited = BTreeMap::new();
        for (watcher_id, cookie) in watches {
            let Some(watcher) = self.watchers.get_mut(&watcher_id) else { continue };
            self.number += 1;
            watcher.queue.push_back(Queued { number: self.number, cookie, notify: id, news: None });
            let name = watcher.watches.get(&cookie).map_or_else(String::new, |watch| watch.name.clone());
            awaited.insert((watcher_id, cookie), Awaited { name, told: false });
        }
        let until = now + Duration::from_millis(u64::from(wait_ms.min(NOTIFY_WAIT_MS_MAX)));
        let payload = payload.clone();
        let (acks, missed) = (Vec::new(), Vec::new());
        self.under_way.insert(id, UnderWay { object, from, payload, until, awaited, acks, missed });
        Ok(NotifyStart::Waits(until))
    }

    /// How a notify ended; `None` while it waits. Busy if it was forgotten, which takes [`NOTIFIES_KEPT`] later ones.
    pub fn poll_notify(&mut self, now: Instant, id: NotifyId) -> Option<NotifyReply> {
        self.end_notifies(now);
        if self.under_way.contains_key(&id) {
            return None;
        }
        let Some(over) = self.over.iter().find(|over| over.id == id) else { return Some(NotifyReply::Busy) };
        if over.outcomes() <= NOTIFY_PAGE {
            return Some(NotifyReply::Done { acks: over.acks.clone(), missed: over.missed.clone() });
        }
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Some(NotifyReply::Long { acks: count(over.acks.len()), missed: count(over.missed.len()) })
    }

    /// A page of how a notify ended.
    #[must_use]
    pub fn outcomes(&self, request: &NotifyOutcomesGet) -> NotifyOutcomesReply {
        let Some(over) = self.over.iter().find(|over| over.id == request.id) else {
            return NotifyOutcomesReply::Forgotten;
        };
        let after = usize::try_from(request.after).unwrap_or(usize::MAX);
        let acks: Vec<NotifyAck> = over.acks.iter().skip(after).take(NOTIFY_PAGE).cloned().collect();
        let missed = over.missed.iter().skip(after.saturating_sub(over.acks.len()));
        let missed = missed.take(NOTIFY_PAGE - acks.len()).cloned().collect();
        NotifyOutcomesReply::Page { acks, missed }
    }

    /// Ends the notifies that wait for nobody, or whose time is over.
    fn end_notifies(&mut self, now: Instant) -> bool {
        let is_over = |notify: &UnderWay| notify.awaited.is_empty() || notify.until <= now;
        let ids: Vec<NotifyId> =
            self.under_way.iter().filter(|(_, notify)| is_over(notify)).map(|(id, _)| *id).collect();
        let any = !ids.is_empty();
        for id in ids {
            let Some(notify) = self.under_way.remove(&id) else { continue };
            let UnderWay { object, awaited, acks, mut missed, .. } = notify;
            for ((watcher_id, cookie), Awaited { name, told }) in awaited {
                let Some(watcher) = self.watchers.get_mut(&watcher_id) else { continue };
                watcher.queue.retain(|queued| queued.notify != id);
                let why = if told { MissedWhy::NoAnswer } else { MissedWhy::NotReached };
                let watch = WatchPlace { watcher: watcher_id, cookie, name, from: watcher.from };
                missed.push(NotifyMissed { watch, why });
            }
            if self.over.len() >= NOTIFIES_KEPT {
                self.over.pop_front();
            }
            self.over.push_back(Over { id, object, acks, missed });
        }
        any
    }

    /// Forgets watchers whose leases ended, ends notifies whose time is over. True if anything happened.
    pub fn handle_tick(&mut self, now: Instant) -> bool {
        let lost = self.leases.iter().take_while(|(lost_at, _)| *lost_at <= now);
        let lost: Vec<WatcherId> = lost.map(|(_, id)| *id).collect();
        let any = !lost.is_empty();
        for id in lost {
            for cookie in self.cookies(id) {
                self.end_watch(id, cookie, MissedWhy::LeaseEnded);
            }
        }
        self.end_notifies(now) || any
    }

    /// When [`WatchTable::handle_tick`] has work next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let first = self.leases.first().map(|(lost_at, _)| *lost_at);
        first.into_iter().chain(self.under_way.values().map(|notify| notify.until)).min()
    }
}

#[cfg(test)]
mod tests {
    use base::FidType;

    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    fn place(tmid: u16) -> Endpoint {
        format!("0@lo:1:34:{tmid}").parse().unwrap()
    }

    fn object(key: u64) -> Fid {
        Fid::new(FidType::Object, 1, key)
    }

    fn table() -> WatchTable {
        WatchTable::new(at(0), (place(0), 1), Vec::new())
    }

    fn watch(watcher: u128, cookie: u64, key: u64) -> WatchRecord {
        let name = format!("w{watcher}.{cookie}");
        WatchRecord { watcher: WatcherId(watcher), cookie, object: object(key), name, lease_ms: 1000 }
    }

    fn register(table: &mut WatchTable, now: u64, watcher: u128, cookie: u64, key: u64) {
        assert_eq!(table.handle_register(at(now), &watch(watcher, cookie, key), place(1)), Ok(1000));
    }

    fn poll(table: &mut WatchTable, now: u64, watcher: u128, after: u64) -> Vec<Notification> {
        table.handle_poll(at(now), WatcherId(watcher), after, place(2));
        table.page(WatcherId(watcher), after)
    }

    fn notify(table: &mut WatchTable, now: u64, id: u128, key: u64) -> NotifyStart {
        let request = Notify { id: NotifyId(id), object: object(key), payload: vec![7; 3], wait_ms: 500 };
        table.handle_notify(at(now), &request, place(9)).unwrap()
    }

    fn ack(table: &mut WatchTable, now: u64, watcher: u128, cookie: u64, id: u128) -> bool {
        let payload = vec![1];
        let request = WatchAck { watcher: WatcherId(watcher), cookie, notify: NotifyId(id), payload };
        table.handle_ack(at(now), request).unwrap()
    }

    /// Names of those who acknowledged, then of those who did not, with why.
    fn outcome(table: &mut WatchTable, now: u64, id: u128) -> Option<String> {
        match table.poll_notify(at(now), NotifyId(id))? {
            NotifyReply::Busy => Some("busy".to_owned()),
            NotifyReply::Long { acks, missed } => Some(format!("{acks} and {missed}")),
            NotifyReply::Done { acks, missed } => {
                let acks: Vec<String> = acks.into_iter().map(|ack| ack.watch.name).collect();
                let missed: Vec<String> = missed
                    .into_iter()
                    .map(|missed| format!("{} {:?}", missed.watch.name, missed.why))
                    .collect();
                Some(format!("{}; {}", acks.join(", "), missed.join(", ")))
            }
        }
    }

    #[test]
    fn those_who_watch_are_told_and_the_notifier_hears_who_answered() {
        let mut table = table();
        register(&mut table, 0, 1, 1, 5);
        register(&mut table, 0, 1, 2, 6);
        register(&mut table, 0, 2, 1, 5);
        assert_eq!(notify(&mut table, 10, 77, 5), NotifyStart::Waits(at(510)));
        let told = poll(&mut table, 20, 1, 0);
        assert_eq!(told.len(), 1, "the watch of another object hears nothing: {told:?}");
        assert_eq!((told[0].cookie, told[0].object, told[0].payload.len()), (1, object(5), 3));
        assert_eq!(poll(&mut table, 20, 1, 0), told, "an answer that was lost comes again");
        assert!(poll(&mut table, 20, 1, told[0].number).is_empty());
        assert!(ack(&mut table, 30, 1, 1, 77) && !ack(&mut table, 30, 1, 1, 77), "it counts once");
        assert_eq!(outcome(&mut table, 30, 77), None, "the other has not answered");
        assert!(!ack(&mut table, 40, 1, 2, 77), "nobody waits for a watch of another object");
        poll(&mut table, 40, 2, 0);
        assert!(ack(&mut table, 40, 2, 1, 77));
        assert_eq!(outcome(&mut table, 40, 77).unwrap(), "w1.1, w2.1; ");
        assert_eq!(outcome(&mut table, 41, 77).unwrap(), "w1.1, w2.1; ", "who asks again gets the same");
        assert_eq!(notify(&mut table, 50, 77, 5), NotifyStart::Waits(at(50)), "and nobody is told again");
        assert!(poll(&mut table, 50, 2, 0).is_empty());
    }

    #[test]
    fn each_watch_is_once_in_the_answer_with_the_reason_why_it_missed() {
        let mut table = table();
        for watcher in 1..=4 {
            register(&mut table, 0, watcher, 1, 5);
        }
        // Watchers 2 to 4 are heard later, so that the lease of watcher 1 alone ends at 1250.
        for watcher in 2..=4 {
            poll(&mut table, 900, watcher, 0);
        }
        assert_eq!(notify(&mut table, 1000, 77, 5), NotifyStart::Waits(at(1500)));
        let told = poll(&mut table, 1001, 2, 0)[0].number;
        poll(&mut table, 1002, 2, told);
        poll(&mut table, 1001, 4, 0);
        assert!(table.handle_unregister(at(1100), &WatchUnregister { watcher: WatcherId(3), cookie: 1 }));
        assert_eq!(table.next_deadline(), Some(at(1250)));
        assert!(!table.handle_tick(at(1249)) && table.handle_tick(at(1250)));
        assert!(table.cookies(WatcherId(1)).is_empty());
        assert_eq!(outcome(&mut table, 1499, 77), None);
        assert!(table.handle_tick(at(1500)));
        assert_eq!(
            outcome(&mut table, 1500, 77).unwrap(),
            "; w3.1 Left, w1.1 LeaseEnded, w2.1 NoAnswer, w4.1 NotReached"
        );
        assert!(!ack(&mut table, 1501, 2, 1, 77), "too late");
        assert!(poll(&mut table, 1501, 4, 0).is_empty(), "what is over is not told any more");
        assert_eq!(notify(&mut table, 1600, 78, 9), NotifyStart::Waits(at(2100)));
        assert_eq!(outcome(&mut table, 1600, 78).unwrap(), "; ", "nobody watches: over at once");
    }

    #[test]
    fn a_dead_watcher_is_missed_until_its_lease_ends_and_one_that_comes_back_is_not() {
        let mut table = table();
        register(&mut table, 0, 1, 1, 5);
        register(&mut table, 0, 2, 1, 5);
        assert_eq!(table.serial(), 2);
        assert_eq!(table.take_changes().len(), 2);
        // Both connections are gone; watcher 2 comes back and registers again.
        notify(&mut table, 600, 77, 5);
        register(&mut table, 700, 2, 1, 5);
        assert_eq!(table.serial(), 2, "nothing new for the store");
        assert_eq!(poll(&mut table, 700, 2, 0).len(), 1, "what came meanwhile was kept");
        ack(&mut table, 700, 2, 1, 77);
        assert_eq!(outcome(&mut table, 1100, 77).unwrap(), "w2.1; w1.1 NotReached");
        table.handle_tick(at(1250));
        assert_eq!(table.take_changes(), [WatchChange::Drop(WatcherId(1), 1)]);
        notify(&mut table, 1300, 78, 5);
        poll(&mut table, 1300, 2, 0);
        ack(&mut table, 1300, 2, 1, 78);
        assert_eq!(outcome(&mut table, 1300, 78).unwrap(), "w2.1; ", "it is no longer counted");
        assert_eq!(table.handle_poll(at(1400), WatcherId(1), 0, place(1)), None);
        // After a restart: one lease to be heard.
        let mut again = WatchTable::new(at(0), (place(1), 2), vec![watch(2, 1, 5)]);
        assert_eq!(again.next_deadline(), Some(at(1250)));
        notify(&mut again, 10, 79, 5);
        assert_eq!(outcome(&mut again, 510, 79).unwrap(), "; w2.1 NotReached");
    }

    #[test]
    fn what_control_tells_waits_for_nobody_and_who_does_not_fetch_it_has_to_register_again() {
        let mut table = table();
        let on = |watcher, cookie| WatchRecord { object: news::CONFIGURATION, ..watch(watcher, cookie, 0) };
        assert!(!table.tell(news::CONFIGURATION, b"nobody"));
        table.handle_register(at(0), &on(1, 1), place(1)).unwrap();
        table.handle_register(at(0), &on(2, 1), place(1)).unwrap();
        register(&mut table, 0, 1, 2, 5);
        assert_eq!(table.take_changes(), [WatchChange::Put(watch(1, 2, 5))], "topics are not stored");
        let forged = Notify { id: NotifyId(5), object: news::CONFIGURATION, payload: vec![], wait_ms: 1 };
        let refused = table.handle_notify(at(0), &forged, place(9));
        assert_eq!(refused, Err(WatchRefusal::ControlsTopic { object: news::CONFIGURATION }));
        assert!(table.tell(news::CONFIGURATION, b"one"));
        notify(&mut table, 0, 77, 5);
        let page = poll(&mut table, 1, 1, 0);
        let told: Vec<(&[u8], u64, Endpoint)> =
            page.iter().map(|told| (&told.payload[..], told.cookie, told.from)).collect();
        assert_eq!(told, [(&b"one"[..], 1, place(0)), (&[7; 3][..], 2, place(9))]);
        assert_eq!(poll(&mut table, 2, 1, 0), page, "an answer that was lost comes again");
        let last = page.last().unwrap().number;
        assert_eq!(poll(&mut table, 3, 1, last), []);
        let entries = table.list(at(4), None, None).watches;
        let seen: Vec<(u128, u64, u32, u64)> = entries
            .iter()
            .map(|entry| (entry.watch.watcher.0, entry.watch.cookie, entry.waiting, entry.silent_ms))
            .collect();
        assert_eq!(seen, [(1, 1, 0, 1), (1, 2, 1, 1), (2, 1, 1, 4)], "news are over, the notify is not");
        assert_eq!(table.list(at(4), Some(object(5)), None).watches.len(), 1);
        assert_eq!(table.list(at(4), None, Some((WatcherId(1), 1))).watches, entries[1..]);
        // Watcher 2 fetches nothing, and goes on to be heard.
        for _ in 1..WATCH_INBOX_MAX {
            table.tell(news::CONFIGURATION, b"more");
            poll(&mut table, 5, 1, u64::MAX);
        }
        assert_eq!(table.cookies(WatcherId(2)), [1]);
        table.tell(news::CONFIGURATION, b"too much");
        assert_eq!((table.cookies(WatcherId(1)), table.cookies(WatcherId(2))), (vec![1, 2], vec![]));
        assert_eq!(table.take_changes(), []);
    }

    #[test]
    fn an_older_poll_is_over_when_the_watcher_asks_again() {
        let mut table = table();
        register(&mut table, 0, 1, 1, 5);
        let first = table.handle_poll(at(1), WatcherId(1), 0, place(1)).unwrap();
        assert!(table.is_current(WatcherId(1), first));
        let second = table.handle_poll(at(2), WatcherId(1), 0, place(1)).unwrap();
        assert!(!table.is_current(WatcherId(1), first) && table.is_current(WatcherId(1), second));
    }

    #[test]
    fn answers_are_bounded_and_what_did_not_fit_comes_next() {
        let mut table = table();
        register(&mut table, 0, 1, 1, 5);
        for id in 0..5 {
            let payload = vec![0; NOTIFY_BYTES_MAX];
            let request = Notify { id: NotifyId(id), object: object(5), payload, wait_ms: 500 };
            table.handle_notify(at(0), &request, place(9)).unwrap();
        }
        let first = poll(&mut table, 1, 1, 0);
        assert_eq!(first.len(), 3);
        let next = poll(&mut table, 1, 1, first[2].number);
        assert_eq!(next.iter().map(|told| told.notify.0).collect::<Vec<_>>(), [3, 4]);
    }

    #[test]
    fn what_is_too_much_or_makes_no_sense_is_refused() {
        let mut table = table();
        let refused = |table: &mut WatchTable, watch: &WatchRecord| {
            table.handle_register(at(0), watch, place(1)).unwrap_err()
        };
        for name in ["", "a\nb", "x".repeat(65).as_str()] {
            let bad = WatchRecord { name: name.to_owned(), ..watch(1, 1, 5) };
            assert_eq!(refused(&mut table, &bad), WatchRefusal::BadName);
        }
        for (lease_ms, granted) in [(0, 1000), (u32::MAX, 120_000)] {
            let asked = WatchRecord { lease_ms, ..watch(1, 1, 5) };
            assert_eq!(table.handle_register(at(0), &asked, place(1)), Ok(granted));
        }
        assert_eq!(
            refused(&mut table, &watch(1, 1, 6)),
            WatchRefusal::OtherObject { cookie: 1, object: object(5) }
        );
        for cookie in 2..=64 {
            register(&mut table, 0, 1, cookie, cookie + 100);
        }
        assert_eq!(refused(&mut table, &watch(1, 65, 6)), WatchRefusal::WatcherFull);
        for watcher in 2..=64 {
            register(&mut table, 0, watcher, 1, 5);
        }
        let payload = vec![0; NOTIFY_BYTES_MAX + 1];
        let long = Notify { id: NotifyId(1), object: object(5), payload, wait_ms: 1 };
        assert!(matches!(table.handle_notify(at(0), &long, place(1)), Err(WatchRefusal::LongNotify { .. })));
        let payload = vec![0; NOTIFY_ACK_BYTES_MAX + 1];
        let long = WatchAck { watcher: WatcherId(1), cookie: 1, notify: NotifyId(1), payload };
        assert!(matches!(table.handle_ack(at(0), long), Err(WatchRefusal::LongAck { .. })));
        for id in 0..32 {
            notify(&mut table, 0, id, 5);
        }
        assert_eq!(notify(&mut table, 0, 32, 5), NotifyStart::Busy);
        let other = Notify { id: NotifyId(3), object: object(6), payload: vec![], wait_ms: 1 };
        assert!(matches!(
            table.handle_notify(at(0), &other, place(1)),
            Err(WatchRefusal::OtherNotify { .. })
        ));
        assert!(table.handle_tick(at(500)), "their time is over, and there is room again");
        assert_eq!(notify(&mut table, 500, 32, 5), NotifyStart::Waits(at(1000)));
    }

    #[test]
    fn the_table_has_room_for_so_many_watches_and_no_more() {
        let mut table = table();
        for number in 0..WATCHES_MAX {
            let number = base::units::wide(number);
            register(&mut table, 0, u128::from(number / 64), number % 64, number);
        }
        assert_eq!(
            table.handle_register(at(0), &watch(1_000_000, 1, 1_000_000), place(1)),
            Err(WatchRefusal::Full)
        );
    }
    #[test]
    fn a_notify_for_more_watches_than_a_message_names_is_told_in_pages_each_watch_once() {
        let mut table = table();
        for watcher in 1..=200 {
            register(&mut table, 0, watcher, 1, 5);
            register(&mut table, 0, watcher, 2, u64::try_from(watcher).unwrap() + 100);
        }
        assert_eq!(notify(&mut table, 0, 1, 5), NotifyStart::Waits(at(500)));
        for watcher in 1..=150 {
            assert!(!table.is_answered(NotifyId(1)));
            assert!(ack(&mut table, 1, watcher, 1, 1));
        }
        table.handle_unregister(at(1), &WatchUnregister { watcher: WatcherId(151), cookie: 1 });
        assert_eq!(table.poll_notify(at(2), NotifyId(1)), None);
        assert_eq!(
            table.poll_notify(at(500), NotifyId(1)),
            Some(NotifyReply::Long { acks: 150, missed: 50 })
        );
        let (mut acked, mut lost, mut pages) = (Vec::new(), Vec::new(), 0);
        loop {
            let after = u32::try_from(acked.len() + lost.len()).unwrap();
            let page = table.outcomes(&NotifyOutcomesGet { id: NotifyId(1), after });
            let NotifyOutcomesReply::Page { acks, missed } = page else { panic!("forgotten") };
            assert!(acks.len() + missed.len() <= NOTIFY_PAGE);
            if acks.is_empty() && missed.is_empty() {
                break;
            }
            pages += 1;
            acked.extend(acks.iter().map(|one| one.watch.watcher.0));
            lost.extend(missed.iter().map(|one| (one.watch.watcher.0, one.why)));
        }
        assert_eq!((acked, pages), ((1..=150).collect::<Vec<u128>>(), 4));
        assert_eq!(lost[0], (151, MissedWhy::Left));
        assert_eq!(lost[1..].iter().map(|one| one.0).collect::<Vec<_>>(), (152..=200).collect::<Vec<_>>());
        assert!(lost[1..].iter().all(|(_, why)| *why == MissedWhy::NotReached));
        let unknown = NotifyOutcomesGet { id: NotifyId(9), after: 0 };
        assert_eq!(table.outcomes(&unknown), NotifyOutcomesReply::Forgotten);
        // Watches of one object say nothing of another.
        assert_eq!(notify(&mut table, 500, 2, 101), NotifyStart::Waits(at(1000)));
        assert!(ack(&mut table, 501, 1, 2, 2) && table.is_answered(NotifyId(2)));
    }

    #[test]
    fn outcomes_are_bounded_whatever_is_notified() {
        let mut table = table();
        for watcher in 0..u128::try_from(WATCHES_MAX).unwrap() {
            register(&mut table, 0, watcher, 1, 5);
        }
        for id in 0..4 {
            assert_eq!(notify(&mut table, 0, id, 5), NotifyStart::Waits(at(500)), "{id}");
        }
        assert_eq!(notify(&mut table, 0, 4, 5), NotifyStart::Busy);
        // Over, they give way to what comes.
        assert!(table.handle_tick(at(500)));
        assert!(matches!(
            table.poll_notify(at(500), NotifyId(0)),
            Some(NotifyReply::Long { missed: 16_384, .. })
        ));
        assert_eq!(notify(&mut table, 500, 5, 5), NotifyStart::Waits(at(1000)));
        assert_eq!(table.poll_notify(at(500), NotifyId(0)), Some(NotifyReply::Busy));
        assert!(table.poll_notify(at(500), NotifyId(1)).is_some_and(|reply| reply != NotifyReply::Busy));
    }
}
