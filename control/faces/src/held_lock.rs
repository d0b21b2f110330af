//! A named lock in the hands of a program: taken, kept, given back when somebody asks for it, with requests of others run under it meanwhile.
//!
//! Who waits for a lock asks its holders to give it back; a holder that is a [`HeldLock`] hears that from [`HeldLock::next`], and answers. Others may have a
//! request run by the holder ([`ask_holder`]) and not wait for the lock at all. Both go as notifies on the topic of the holder (`fops::news`): a
//! holder hears each once, also over lost answers and a restart of control, and answers one process's watch only, so that a request runs at most once.
//! **Invariant**: a holder that does not answer loses nothing by that: what takes a lock away is control alone (docs/locks.md).
//! The rules of the holder's side: [`crate::tenure`]. Left over: a program that drops the lock without [`HeldLock::release`] keeps it, or is
//! fenced after its lease. Thread: the locality of its `RpcMachine`. Start at [`take_lock`].

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use base::{Blame, Blamed, Endpoint, Instant};
use fops::codec;
use fops::lock::{
    LockList, LockMode, LockName, LockRelease, LockRenew, LockTake, LockTakeReply, OnDeath, OwnerId, Ticket,
};
use fops::news::{HolderAnswer, HolderAsk, HolderWish, LockNews, of_holder, of_lock};
use fops::watch::{MissedWhy, WatchList};
use futures_util::future::{Either, select};
use runtime::Task;
use runtime::sync::Notify;

use crate::conf_client::{ConfClient, ConfError};
use crate::lease::HEARTBEATS_PER_LEASE;
use crate::limits::{
    HOLDER_ANSWER_BYTES_MAX, HOLDER_REQUEST_BYTES_MAX, LOCK_LOOK_INTERVAL, NOTE_BYTES_MAX,
    NOTIFY_WAIT_MS_MAX, WATCH_LEASE_DEFAULT_MS,
};
use crate::tenure::{Tenure, TenureAction, TenureEvent, TenureState};
use crate::watcher::{Notified, Watch, WatchEvent, Watcher};

/// How long one request for a lock waits at control; who waits longer asks again, and keeps its place.
const WAIT_MS: u32 = 4_000;
/// The first one: it only takes a place, to hear who is in the way.
const FIRST_WAIT_MS: u32 = 1;
/// Pause before a question that control could not let wait.
const PAUSE: Duration = Duration::from_millis(200);
/// How long the program of a holder may take to say whether it gives the lock back.
const RELEASE_ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// A holder that said no, or has not done what it said, is asked again after this.
const ASK_AGAIN: Duration = Duration::from_secs(30);
const _: () = assert!(RELEASE_ANSWER_WITHIN.as_millis() <= NOTIFY_WAIT_MS_MAX as u128);

/// A lock that somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockWish {
    /// Which.
    pub lock: LockName,
    /// For whom.
    pub owner: OwnerId,
    /// How.
    pub mode: LockMode,
    /// What its holder's death means.
    pub on_death: OnDeath,
    /// What for, for people: at most 200 bytes.
    pub why: String,
}

/// Why there is no lock, or no answer of its holder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Others have it.
    #[error("{}", busy_text(.lock, .holders, *.ahead))]
    Busy {
        /// Which.
        lock: LockName,
        /// Some of those who hold it.
        holders: Vec<OwnerId>,
        /// Those who wait before.
        ahead: u32,
    },
    /// Control.
    #[error(transparent)]
    Control(#[from] ConfError),
    /// There is nobody to ask.
    #[error("nobody holds {lock}: take it")]
    NotHeld {
        /// Which.
        lock: LockName,
    },
    /// Which of them?
    #[error("{count} owners hold {lock}: name the one that is to run it")]
    SeveralHold {
        /// Which.
        lock: LockName,
        /// How many.
        count: usize,
    },
    /// It cannot be asked.
    #[error(
        "owner {owner} holds {lock} and takes no requests: it does not hold it cooperatively, or its program is gone"
    )]
    NotCooperative {
        /// Which.
        lock: LockName,
        /// Its owner.
        owner: OwnerId,
    },
    /// The holder said no.
    #[error("the holder of {lock} says no: {reason}")]
    Refused {
        /// Which.
        lock: LockName,
        /// Its reason.
        reason: String,
    },
    /// The holder ran it, and is fenced.
    #[error("the holder lost {lock} while it ran the request: what it wrote may have been refused")]
    LostMeanwhile {
        /// Which.
        lock: LockName,
    },
    /// Nothing came.
    #[error("the holder of {lock} did not answer in time ({}): the request may have been run", missed_text(*.why))]
    NoAnswer {
        /// Which.
        lock: LockName,
        /// How that was.
        why: MissedWhy,
    },
    /// Too long to send.
    #[error(
        "a request to a holder has at most {HOLDER_REQUEST_BYTES_MAX} bytes, and this one has {bytes}: put it into an object"
    )]
    LongRequest {
        /// Its length.
        bytes: usize,
    },
    /// Too long to send.
    #[error(
        "an answer of a holder has at most {HOLDER_ANSWER_BYTES_MAX} bytes, and this one has {bytes}: put it into an object"
    )]
    LongAnswer {
        /// Its length.
        bytes: usize,
    },
    /// What came is no answer.
    #[error("the holder of {lock} answered with something else, of another version perhaps")]
    StrangeAnswer {
        /// Which.
        lock: LockName,
    },
}

impl Blamed for LockError {
    fn blame(&self) -> Blame {
        match self {
            LockError::Control(error) => error.blame(),
            LockError::LongRequest { .. } | LockError::LongAnswer { .. } | LockError::SeveralHold { .. } => {
                Blame::Caller
            }
            LockError::StrangeAnswer { .. } => Blame::Peer,
            _ => Blame::Environment,
        }
    }

    fn may_retry(&self) -> bool {
        match self {
            LockError::Control(error) => error.may_retry(),
            LockError::Busy { .. } | LockError::NotHeld { .. } | LockError::NotCooperative { .. } => true,
            _ => false,
        }
    }
}

fn busy_text(lock: &LockName, holders: &[OwnerId], ahead: u32) -> String {
    let holders: Vec<String> = holders.iter().map(OwnerId::to_string).collect();
    let mut text = match holders.is_empty() {
        true => format!("lock {lock} is about to pass on"),
        false => format!("lock {lock} is held by {}", holders.join(", ")),
    };
    if ahead > 0 {
        text.push_str(&format!(", {ahead} wait before"));
    }
    text
}

fn missed_text(why: MissedWhy) -> &'static str {
    match why {
        MissedWhy::NotReached => "it was not reached",
        MissedWhy::NoAnswer => "it was told",
        MissedWhy::LeaseEnded => "it was silent for its lease",
        MissedWhy::Left => "it left meanwhile",
    }
}

/// What a holder makes of somebody's wish for its lock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HolderSaid {
    /// It gives the lock back when it is done.
    Releases,
    /// It keeps the lock.
    Refuses {
        /// Why.
        reason: String,
    },
    /// Nobody is there to be asked.
    NotCooperative,
    /// Nothing in time.
    Silent,
    /// It could not be asked.
    NotAsked {
        /// Why.
        reason: String,
    },
}

/// What is told to who waits for a lock.
#[derive(Debug)]
#[non_exhaustive]
pub enum TakeProgress<'a> {
    /// It is not free; told once in each round of a few seconds.
    Busy(&'a LockError),
    /// A holder was asked to give it back.
    Said {
        /// Who.
        holder: OwnerId,
        /// What it said.
        said: &'a HolderSaid,
    },
}

/// A lock that was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantedLock {
    /// What was asked for.
    pub wish: LockWish,
    /// What changes under it carry.
    pub ticket: Ticket,
    /// To be renewed before so much time is over; zero: not at all.
    pub lease: Duration,
    /// When the request was sent that was granted.
    pub asked_at: Instant,
}

/// Takes a lock. Waits for it up to `wait` (zero: not at all), in the order of asking, and asks those who are in the way to give it back.
/// `within`: how long control may take for an answer.
///
/// May be dropped: its place in the queue is gone two seconds later; a lock that was granted at that moment is held, and the same owner gets it by asking
/// again. Errors: [`LockError::Busy`] when `wait` is over, and those of control.
pub async fn take_lock(
    conf: &ConfClient,
    wish: LockWish,
    (wait, within): (Duration, Duration),
    mut progress: impl FnMut(TakeProgress<'_>),
) -> Result<GrantedLock, LockError> {
    let locality = conf.rpc().locality().clone();
    let until = locality.now() + wait;
    let mut wait_ms = if wait.is_zero() { 0 } else { FIRST_WAIT_MS };
    // Whom not to ask again before when.
    let mut asked: BTreeMap<OwnerId, Instant> = BTreeMap::new();
    // Goes on over several rounds: a program may take its time to decide.
    let mut asking = None;
    loop {
        let asked_at = locality.now();
        let LockWish { lock, owner, mode, on_death, why } = wish.clone();
        let take = LockTake { lock, owner, mode, on_death, why, wait_ms };
        let deadline = asked_at + within + Duration::from_millis(u64::from(wait_ms));
        let mut taking = pin!(conf.call(&take, deadline));
        let reply = loop {
            let Some(asks) = asking.as_mut() else { break taking.await? };
            let said = match select(taking.as_mut(), asks).await {
                Either::Left((reply, _)) => break reply?,
                Either::Right((said, _)) => said,
            };
            asking = None;
            let said: Vec<(OwnerId, HolderSaid)> = said;
            for (holder, said) in &said {
                progress(TakeProgress::Said { holder: *holder, said });
                if matches!(said, HolderSaid::Releases | HolderSaid::Refuses { .. }) {
                    asked.insert(*holder, locality.now() + ASK_AGAIN);
                }
            }
        };
        let (holders, ahead) = match reply {
            LockTakeReply::Granted { epoch, lease_ms } => {
                let ticket = Ticket { owner: wish.owner, epoch };
                return Ok(GrantedLock {
                    wish: wish.clone(),
                    ticket,
                    lease: Duration::from_millis(lease_ms),
                    asked_at,
                });
            }
            LockTakeReply::Busy { holders, ahead } => (holders, ahead),
        };
        let now = locality.now();
        asked.retain(|holder, again_at| holders.contains(holder) && *again_at > now);
        let to_ask: Vec<OwnerId> =
            holders.iter().copied().filter(|holder| !asked.contains_key(holder)).collect();
        if wait_ms > 0 && asking.is_none() && !to_ask.is_empty() {
            asking = Some(Box::pin(ask_for_release(conf, &wish, to_ask)));
        }
        let busy = LockError::Busy { lock: wish.lock.clone(), holders, ahead };
        if now >= until {
            return Err(busy);
        }
        progress(TakeProgress::Busy(&busy));
        // Control wakes who waits there. Only one that it could not let wait has to ask from time to time.
        if wait_ms == WAIT_MS && now < asked_at + PAUSE {
            locality.sleep(PAUSE).await;
        }
        let left = until.since(locality.now()).as_millis();
        wait_ms = u32::try_from(left).unwrap_or(WAIT_MS).clamp(1, WAIT_MS);
    }
}

/// Asks holders to give a lock back, one after the other: most locks have one.
async fn ask_for_release(
    conf: &ConfClient,
    wish: &LockWish,
    holders: Vec<OwnerId>,
) -> Vec<(OwnerId, HolderSaid)> {
    let mut all = Vec::new();
    for holder in holders {
        let (owner, mode, why) = (wish.owner, wish.mode, wish.why.clone());
        let release = HolderWish::Release { owner, mode, why };
        let said = match ask(conf, (&wish.lock, holder), release, RELEASE_ANSWER_WITHIN).await {
            Ok(Asked::Said(HolderAnswer::Releases)) => HolderSaid::Releases,
            Ok(Asked::Said(HolderAnswer::Refuses { reason })) => HolderSaid::Refuses { reason },
            Ok(Asked::Said(_) | Asked::Missed(MissedWhy::Left)) => continue,
            Ok(Asked::Nobody) => HolderSaid::NotCooperative,
            Ok(Asked::Missed(_)) => HolderSaid::Silent,
            Err(error) => HolderSaid::NotAsked { reason: error.to_string() },
        };
        all.push((holder, said));
    }
    all
}

enum Asked {
    Said(HolderAnswer),
    Missed(MissedWhy),
    Nobody,
}

/// Asks the program that holds `lock` for `owner`.
async fn ask(
    conf: &ConfClient,
    (lock, owner): (&LockName, OwnerId),
    wish: HolderWish,
    within: Duration,
) -> Result<Asked, LockError> {
    let deadline = conf.rpc().locality().now() + within;
    let topic = of_holder(lock, owner);
    let list = WatchList { object: Some(topic), after: None };
    let watches = conf.call(&list, deadline).await?.watches;
    // The one that was heard last: others are of processes that have died, and are forgotten with their leases.
    let Some(entry) = watches.into_iter().min_by_key(|entry| entry.silent_ms) else {
        return Ok(Asked::Nobody);
    };
    let to = (entry.watch.watcher, entry.watch.cookie);
    let ask = HolderAsk { lock: lock.clone(), to, wish };
    let strange = || LockError::StrangeAnswer { lock: lock.clone() };
    let payload = codec::encode(&ask).map_err(|_| strange())?;
    let left = deadline.since(conf.rpc().locality().now());
    let outcome = conf.notify(topic, &payload, left).await?;
    if let Some(ack) = outcome.acks.iter().find(|ack| (ack.watch.watcher, ack.watch.cookie) == to) {
        return codec::decode(&ack.payload).map(Asked::Said).map_err(|_| strange());
    }
    let missed = outcome.missed.iter().find(|missed| (missed.watch.watcher, missed.watch.cookie) == to);
    // Neither: it left between the two questions, or after it was told, if control was restarted meanwhile.
    Ok(Asked::Missed(missed.map_or(MissedWhy::Left, |missed| missed.why)))
}

/// Has a request run by the program that holds a lock, under that lock, at most once. `owner`: by which one; `None`: there is one. `within`: at most
/// `limits::NOTIFY_WAIT_MS_MAX`. Answer: what the program says.
///
/// Errors: [`LockError::NoAnswer`] and those of control leave open whether it was run; after the others it was not, but for [`LockError::LostMeanwhile`].
pub async fn ask_holder(
    conf: &ConfClient,
    lock: &LockName,
    owner: Option<OwnerId>,
    payload: &[u8],
    within: Duration,
) -> Result<Vec<u8>, LockError> {
    if payload.len() > HOLDER_REQUEST_BYTES_MAX {
        return Err(LockError::LongRequest { bytes: payload.len() });
    }
    let within = within.min(Duration::from_millis(u64::from(NOTIFY_WAIT_MS_MAX)));
    let locality = conf.rpc().locality().clone();
    let until = locality.now() + within;
    let owner = match owner {
        Some(owner) => owner,
        None => {
            let after = Some((lock.clone(), OwnerId::default()));
            let page = conf.call(&LockList { object: lock.object, after }, until).await?.locks;
            let mut holders = page.iter().filter(|entry| entry.grant.lock == *lock);
            match (holders.next(), holders.count()) {
                (Some(entry), 0) => entry.grant.ticket.owner,
                (Some(_), more) => {
                    return Err(LockError::SeveralHold { lock: lock.clone(), count: more + 1 });
                }
                (None, _) => return Err(LockError::NotHeld { lock: lock.clone() }),
            }
        }
    };
    let lock = lock.clone();
    let left = until.since(locality.now());
    let within_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
    let run = HolderWish::Run { within_ms, payload: payload.to_vec() };
    match ask(conf, (&lock, owner), run, left).await? {
        Asked::Said(HolderAnswer::Done { answer }) => Ok(answer),
        Asked::Said(HolderAnswer::Refuses { reason }) => Err(LockError::Refused { lock, reason }),
        Asked::Said(HolderAnswer::Lost) => Err(LockError::LostMeanwhile { lock }),
        Asked::Said(HolderAnswer::NotHere) => Err(LockError::NotHeld { lock }),
        Asked::Said(HolderAnswer::Releases) => Err(LockError::StrangeAnswer { lock }),
        Asked::Missed(why) => Err(LockError::NoAnswer { lock, why }),
        Asked::Nobody => Err(LockError::NotCooperative { lock, owner }),
    }
}

/// What the program that holds a lock is told.
#[derive(Debug)]
#[non_exhaustive]
pub enum LockCall {
    /// Somebody wants the lock.
    Release(ReleaseCall),
    /// Somebody wants a request run under it.
    Run(RunCall),
    /// It is not held any more: it was broken, or control could not be reached for its lease. What is written with its ticket is refused.
    Lost,
}

/// Somebody wants the lock. Dropped without a word, it hears nothing, and goes on waiting.
#[derive(Debug)]
pub struct ReleaseCall {
    shared: Rc<Shared>,
    notified: Notified,
    owner: OwnerId,
    mode: LockMode,
    why: String,
}

impl ReleaseCall {
    /// Who wants it.
    #[must_use]
    pub fn owner(&self) -> OwnerId {
        self.owner
    }

    /// From where.
    #[must_use]
    pub fn from(&self) -> Endpoint {
        self.notified.from()
    }

    /// How it is wanted.
    #[must_use]
    pub fn mode(&self) -> LockMode {
        self.mode
    }

    /// What for.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.why
    }

    /// Says that the lock will be given back: finish what you do, then [`HeldLock::release`]. From now on no requests of others begin.
    /// False: nobody waits for the answer any more. Errors: control does not answer; nothing else changes by that.
    pub async fn agree(self) -> Result<bool, ConfError> {
        let action = self.shared.handle(TenureEvent::Agrees);
        answer(self.notified, action, "", &[]).await
    }

    /// Says no, and why: at most 200 bytes of it are sent. As [`ReleaseCall::agree`].
    pub async fn refuse(self, reason: &str) -> Result<bool, ConfError> {
        let action = self.shared.handle(TenureEvent::Refuses);
        answer(self.notified, action, reason, &[]).await
    }
}

/// A request of somebody else, to be run under the lock. Dropped without an answer, its sender hears that it may have been run.
#[derive(Debug)]
pub struct RunCall {
    shared: Rc<Shared>,
    notified: Option<Notified>,
    payload: Vec<u8>,
    deadline: Instant,
}

impl RunCall {
    /// The program's own.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// From where.
    #[must_use]
    pub fn from(&self) -> Option<Endpoint> {
        self.notified.as_ref().map(Notified::from)
    }

    /// Its sender waits until then.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// It was run: sends the answer, at most `limits::HOLDER_ANSWER_BYTES_MAX` bytes. False: nobody waits for it any more. What it wrote has to be
    /// durable by now: the lock may be given back from here on.
    pub async fn answer(mut self, bytes: &[u8]) -> Result<bool, LockError> {
        if bytes.len() > HOLDER_ANSWER_BYTES_MAX {
            // Its sender hears that it may have been run.
            return Err(LockError::LongAnswer { bytes: bytes.len() });
        }
        self.end(TenureEvent::Answers, "", bytes).await.map_err(LockError::from)
    }

    /// It was not run, and why: at most 200 bytes of it are sent.
    pub async fn refuse(mut self, reason: &str) -> Result<bool, ConfError> {
        self.end(TenureEvent::GivesUp, reason, &[]).await
    }

    async fn end(&mut self, event: TenureEvent, reason: &str, bytes: &[u8]) -> Result<bool, ConfError> {
        let Some(notified) = self.notified.take() else { return Ok(false) };
        let action = self.shared.handle(event);
        answer(notified, action, reason, bytes).await
    }
}

impl Drop for RunCall {
    fn drop(&mut self) {
        if self.notified.take().is_some() {
            self.shared.handle(TenureEvent::GivesUp);
        }
    }
}

/// Says what the action wants to be said. True if somebody heard it, or nothing is to be said.
async fn answer(
    notified: Notified,
    action: TenureAction,
    reason: &str,
    bytes: &[u8],
) -> Result<bool, ConfError> {
    let refuses = |reason: &str| HolderAnswer::Refuses { reason: cut(reason).to_owned() };
    let said = match action {
        TenureAction::SayReleases => HolderAnswer::Releases,
        TenureAction::SayRefuses => refuses(reason),
        TenureAction::SayLeaving => refuses("the lock is about to be free: take it"),
        TenureAction::SayDone => HolderAnswer::Done { answer: bytes.to_vec() },
        TenureAction::SayLost => HolderAnswer::Lost,
        TenureAction::SayNotHere => HolderAnswer::NotHere,
        TenureAction::Nothing | TenureAction::AskProgram | TenureAction::TellProgram => return Ok(true),
    };
    // It is shorter than an acknowledgement: `limits` proves it. Else it is told as one that makes no sense.
    let payload = codec::encode(&said).unwrap_or_default();
    notified.ack(&payload).await
}

/// As much of a text as a reason may have.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(NOTE_BYTES_MAX)]
}

struct Shared {
    conf: ConfClient,
    granted: GrantedLock,
    tenure: RefCell<Tenure>,
    /// The program knows that it is lost.
    told_lost: Cell<bool>,
    /// Those who wait for the lock, by the last answer.
    waiting: Cell<u32>,
    /// Rings when the tenure changed.
    changed: Notify,
    /// Rings when control is to be asked whether it is held.
    look: Notify,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} under {}: {:?}", self.granted.wish.lock, self.granted.ticket, self.tenure.borrow())
    }
}

impl Shared {
    fn now(&self) -> Instant {
        self.conf.rpc().locality().now()
    }

    fn handle(&self, event: TenureEvent) -> TenureAction {
        let action = self.tenure.borrow_mut().handle(event);
        self.changed.notify_waiters();
        action
    }

    fn state(&self) -> TenureState {
        self.tenure.borrow().state()
    }
}

/// What the program of a holder is asked, and what it hears of its lock.
#[derive(Debug)]
struct Cooperation {
    calls: Watch,
    /// Its id is part of what is asked.
    watcher: Watcher,
    news: Option<Task>,
}

impl Drop for Cooperation {
    fn drop(&mut self) {
        if let Some(news) = self.news.take() {
            news.cancel();
        }
    }
}

/// A lock that this program holds. It is looked after (renewed, if its holder's death means anything) as long as this value lives.
#[derive(Debug)]
pub struct HeldLock {
    shared: Rc<Shared>,
    cooperation: Option<Cooperation>,
    looks: Option<Task>,
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        if let Some(looks) = self.looks.take() {
            looks.cancel();
        }
    }
}

impl HeldLock {
    /// Keeps a lock that was granted, without being asked anything.
    #[must_use]
    pub fn keep(conf: &ConfClient, granted: GrantedLock) -> HeldLock {
        let shared = Rc::new(Shared {
            conf: conf.clone(),
            granted,
            tenure: RefCell::default(),
            told_lost: Cell::new(false),
            waiting: Cell::new(0),
            changed: Notify::new(),
            look: Notify::new(),
        });
        let looks = conf.rpc().locality().spawn("lock-holder", look_after(Rc::clone(&shared)));
        HeldLock { shared, cooperation: None, looks: Some(looks) }
    }

    /// Keeps a lock that was granted, and is asked for it by those who want it: fetch that with [`HeldLock::next`].
    ///
    /// Errors: control does not answer `within`, or refuses a watch. The lock is then still held.
    pub async fn cooperate(
        conf: &ConfClient,
        granted: GrantedLock,
        within: Duration,
    ) -> Result<HeldLock, LockError> {
        let mut held = HeldLock::keep(conf, granted);
        let shared = Rc::clone(&held.shared);
        let LockWish { lock, owner, .. } = &shared.granted.wish;
        let lease = Duration::from_millis(u64::from(WATCH_LEASE_DEFAULT_MS));
        let watcher = Watcher::start(conf, lock.name.clone(), lease);
        let deadline = shared.now() + within;
        let news = watcher.watch(of_lock(lock), deadline).await?;
        let calls = watcher.watch(of_holder(lock, *owner), deadline).await?;
        // What happened before it was watched.
        shared.look.notify_one();
        let news = conf.rpc().locality().spawn("lock-news", hear_news(Rc::clone(&shared), news));
        held.cooperation = Some(Cooperation { calls, watcher, news: Some(news) });
        Ok(held)
    }

    /// What changes under the lock carry.
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        self.shared.granted.ticket
    }

    /// The lock.
    #[must_use]
    pub fn lock(&self) -> &LockName {
        &self.shared.granted.wish.lock
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> TenureState {
        self.shared.state()
    }

    /// How many wait for the lock, by control's last answer.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        self.shared.waiting.get()
    }

    /// What comes next: a wish, a request, or that the lock is lost, which is said once. May be dropped and asked again.
    pub async fn next(&self) -> LockCall {
        loop {
            let is_lost = self.state() == TenureState::Lost;
            if is_lost && !self.shared.told_lost.replace(true) {
                return LockCall::Lost;
            }
            let changed = pin!(self.shared.changed.notified());
            let Some(cooperation) = &self.cooperation else {
                changed.await;
                continue;
            };
            let event = match select(changed, pin!(cooperation.calls.next())).await {
                Either::Left(_) => continue,
                Either::Right((event, _)) => event,
            };
            match event {
                WatchEvent::Notified(notified) => {
                    if let Some(call) = self.decide(cooperation, notified) {
                        return call;
                    }
                }
                // Whoever asked hears that we missed it.
                WatchEvent::Gap => self.shared.look.notify_one(),
            }
        }
    }

    /// What the program has to be asked; everything else is answered here.
    fn decide(&self, cooperation: &Cooperation, notified: Notified) -> Option<LockCall> {
        let shared = Rc::clone(&self.shared);
        // In a task of its own: who asks for what comes next may give up at any moment. An answer that is lost is the asker's affair.
        let say = |notified, action| {
            let answering = async move { drop(answer(notified, action, "", &[]).await) };
            drop(self.shared.conf.rpc().locality().spawn("lock-answer", answering));
        };
        let me = (cooperation.watcher.id(), cooperation.calls.cookie());
        let ask = codec::decode::<HolderAsk>(notified.payload()).ok();
        let Some(HolderAsk { wish, .. }) = ask.filter(|ask| ask.to == me && ask.lock == *self.lock()) else {
            // Not for us, or of a version that knows more.
            say(notified, TenureAction::SayNotHere);
            return None;
        };
        match wish {
            HolderWish::Release { owner, mode, why } => {
                let action = shared.handle(TenureEvent::AskedToRelease);
                if action == TenureAction::AskProgram {
                    return Some(LockCall::Release(ReleaseCall { shared, notified, owner, mode, why }));
                }
                say(notified, action);
            }
            HolderWish::Run { within_ms, payload } => {
                let deadline = notified.arrived_at() + Duration::from_millis(u64::from(within_ms));
                if shared.now() >= deadline {
                    // Its sender has given up: it must not begin now.
                    return None;
                }
                let action = shared.handle(TenureEvent::AskedToRun);
                if action == TenureAction::AskProgram {
                    let notified = Some(notified);
                    return Some(LockCall::Run(RunCall { shared, notified, payload, deadline }));
                }
                say(notified, action);
            }
        }
        None
    }

    /// Gives the lock back, once no request that [`HeldLock::next`] gave is under way: answer them, or drop them, first or beside this. Writes under the
    /// ticket have to be over. False: it was lost by then. Errors: control does not answer `within`; then the lock may be held or not.
    pub async fn release(mut self, within: Duration) -> Result<bool, ConfError> {
        let shared = Rc::clone(&self.shared);
        shared.handle(TenureEvent::Releases);
        while !shared.tenure.borrow().may_give_back() {
            if shared.state() == TenureState::Lost {
                return Ok(false);
            }
            shared.changed.notified().await;
        }
        // From here on silence of control is the release's own affair.
        if let Some(looks) = self.looks.take() {
            looks.cancel();
        }
        let GrantedLock { wish: LockWish { lock, .. }, ticket: Ticket { owner, epoch }, .. } =
            shared.granted.clone();
        let deadline = shared.now() + within;
        let reply = shared.conf.call(&LockRelease { lock, owner, epoch }, deadline).await?;
        shared.handle(TenureEvent::GivenBack);
        if let Some(Cooperation { calls, .. }) = self.cooperation.as_mut().map(|cooperation| &*cooperation) {
            // Ends with its lease, if control does not hear of this.
            let _ended = calls.leave(deadline).await;
        }
        Ok(reply.released)
    }
}

/// Renews, or looks whether it is held, until it is not.
async fn look_after(shared: Rc<Shared>) {
    let locality = shared.conf.rpc().locality().clone();
    let GrantedLock { wish: LockWish { lock, .. }, ticket, lease, asked_at } = shared.granted.clone();
    let renews = !lease.is_zero();
    let every = if renews { lease / HEARTBEATS_PER_LEASE } else { LOCK_LOOK_INTERVAL };
    let renew = LockRenew { lock, ticket };
    let mut renewed_at = asked_at;
    loop {
        let sent_at = locality.now();
        let deadline = if renews { renewed_at + lease } else { sent_at + every };
        match shared.conf.call(&renew, deadline).await {
            Ok(reply) if !reply.held => break,
            Ok(reply) => {
                renewed_at = sent_at;
                shared.waiting.set(reply.waiting);
                shared.changed.notify_waiters();
            }
            Err(_) if renews && locality.now() >= renewed_at + lease => break,
            Err(_) => {}
        }
        let _rung = locality.timeout_at(sent_at + every, shared.look.notified()).await;
    }
    shared.handle(TenureEvent::IsLost);
}

/// Looks at once when control tells of something that may concern this holder.
async fn hear_news(shared: Rc<Shared>, news: Watch) {
    loop {
        let concerns_us = match news.next().await {
            WatchEvent::Gap => true,
            WatchEvent::Notified(notified) => match codec::decode::<LockNews>(notified.payload()) {
                Ok(LockNews::Breaking { ticket, .. } | LockNews::Broken { ticket, .. }) => {
                    ticket == shared.granted.ticket
                }
                Ok(_) => false,
                // Of a later version.
                Err(_) => true,
            },
        };
        if concerns_us {
            shared.look.notify_one();
        }
    }
}
