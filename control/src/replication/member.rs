//! A control daemon as member of a group that replicates one log: drives the consensus library, makes durable what it says, carries its messages.
//!
//! The library is stepped by one thing at a time: a tick, a message, a wish of ours. What it changed is durable before anything leaves that follows
//! from it. A member that stood still does not make up for the ticks: time in which it did not run says nothing about the others.
//! It listens to members where the cluster file of its log has them, and to any daemon of the cluster whose log is ahead of its own: members may have come, and moved, while it was away.
//! **Invariant**: [`Member::commit`] returns when the entry is durable on a majority and its effect is durable here. **Invariant**:
//! [`Member::confirm`] returns when a majority has said, after it was called, that this member leads.
//! One that is to stop while it leads hands the lead over ([`Member::hand_over`]): it decides nothing more, brings another one up to date and lets it ask for votes at once.
//! Bound: [`MESSAGES_MAX`] messages wait for each member, older ones are dropped; one is under way. [`INBOX_MAX`] wait here; [`PLACES_MAX`] places of members are kept. Left over: a store that fails; the member then
//! takes no part, says why, and the others go on. Thread: one locality. Rules: docs/rfd/0012, docs/ha.md#several-control-daemons. Start at [`Member::start`].

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use base::limits::REQUEST_BULK_BYTES_MAX;
use base::units::{narrow, wide};
use base::{Endpoint, Instant};
use faces::{ClusterFile, Credential};
use fops::FopError;
use fops::member::{MemberMessage, MemberMessageReply, MemberStatus, MembersReply};
use raft_io::{Action, Event, Message, RaftConfig, RaftLog as _, RaftNode};
use rpc::{Bulk, CallOptions, Fom, RpcMachine};
use runtime::sync::{Notify, oneshot};
use runtime::{LocalityHandle, SharedBuffer, Task};
use spdk_stob::{Domain, TreeId};

use crate::bug::Bug;
use crate::error::ControlError;
use crate::replication::batch::Batch;
use crate::replication::journal::{Journal, Position};
use crate::replication::log::{Committing, Confirming, NotLeading, ReplicatedLog};
use crate::replication::message;
use crate::store;

/// The library's unit of time.
pub(crate) const TICK: Duration = Duration::from_millis(50);
/// A leader is heard at least this often.
const HEARTBEAT_TICKS: u32 = 3;
/// A member that has not heard of a leader for so long asks to be one; drawn anew each time, so that two do not ask together for ever.
const ELECTION_TICKS: (u32, u32) = (15, 30);
/// A leader that no majority has answered for this long serves nobody any more, until one does.
pub(crate) const SILENCE_MAX: Duration = Duration::from_millis(1500);
/// How long a message may be under way. Another follows sooner or later, so one that is late is worth little.
const MESSAGE_TIME: Duration = Duration::from_millis(1000);
const UNREACHABLE_MAX: Duration = Duration::from_millis(300);
/// How long a daemon that is to end tries to hand the lead over.
pub(crate) const HAND_OVER_MAX: Duration = Duration::from_secs(2);
/// Another member is asked to take the lead if nothing came of it for so long.
const HAND_OVER_AGAIN: Duration = Duration::from_millis(250);
/// One that has not been heard for so long is not asked to.
const HEARD_WITHIN: Duration = Duration::from_millis(500);
/// Messages that wait for a member.
const MESSAGES_MAX: usize = 32;
/// Messages that came and wait for their step; what comes on top is dropped, as if it had been lost.
const INBOX_MAX: usize = 256;
/// Bytes of a message put together from its parts: a copy of the state is the longest.
const MESSAGE_BYTES_MAX: u64 = 64 << 20;

/// What the driver is told to do.
enum Input {
    Message(Message),
    Propose(Vec<u8>, oneshot::Sender<Result<(), NotLeading>>),
    Change { number: u64, adds: bool },
    HandOver { to: u64 },
}

/// What a member did since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemberCounts {
    /// Times that it came to lead.
    pub leads: u64,
    /// Times that it led and reached no majority.
    pub silences: u64,
    /// Changes whose end it does not know, as it lost the lead.
    pub changes_lost: u64,
    /// Changes that wait for a majority now.
    pub changes_waiting: u64,
    /// Entries that it got from a leader, and that another one took back.
    pub entries_withdrawn: u64,
    /// Copies of the state that it sent, and that it took over.
    pub copies_sent: u64,
    /// See above.
    pub copies_taken: u64,
    /// Answers that left after a majority had said that nobody else leads.
    pub answers_vouched: u64,
    /// Answers that nobody vouched for: another one was told instead to answer.
    pub answers_withheld: u64,
    /// Times that it asked another one to take the lead.
    pub hand_overs: u64,
}

/// Members whose place is kept, those that were taken out since this daemon started included; strangers are not heard beyond.
const PLACES_MAX: usize = 1024;
/// In the place of a sender's number: one place for all whom the cluster file does not name, so that they hold no more than a member.
const STRANGER: u64 = 0;

/// A message that comes in parts.
struct Partial {
    number: u64,
    total_bytes: u64,
    bytes: Vec<u8>,
}

/// An entry that somebody waits for: its term, and who.
type Proposal = (u64, oneshot::Sender<Result<(), NotLeading>>);

/// Who wants to know whether this member leads.
#[derive(Default)]
struct Questions {
    /// Of the next question.
    next: Vec<oneshot::Sender<bool>>,
    /// Of the one that is under way.
    asked: Vec<oneshot::Sender<bool>>,
}

/// Another member, as this one deals with it.
struct Peer {
    outbox: Rc<RefCell<VecDeque<Message>>>,
    rung: Rc<Notify>,
    task: Task,
}

/// Who leads, as this member sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct View {
    term: u64,
    leads: bool,
    leader: Option<u64>,
    committed: u64,
    last: u64,
}

/// See the module.
pub(crate) struct Member {
    rpc: RpcMachine,
    locality: LocalityHandle,
    domain: Domain,
    cluster: u64,
    credential: Option<Credential>,
    journal: Journal,
    node: RefCell<RaftNode<Journal>>,
    inbox: RefCell<VecDeque<Input>>,
    rung: Notify,
    /// Entries that somebody waits for.
    proposals: RefCell<BTreeMap<u64, Proposal>>,
    /// Whether we lead.
    questions: RefCell<Questions>,
    question: Cell<u64>,
    view: Cell<View>,
    /// Since when it leads in its term; `None` if it does not, or if it has not heard of a majority for too long.
    reigns: Cell<Option<u64>>,
    /// Rings when `reigns`, `failed` or the members changed.
    pub(crate) changed: Notify,
    heard: RefCell<BTreeMap<u64, Instant>>,
    leads_since: Cell<Instant>,
    /// Newest entry of each member, while this one leads.
    lasts: RefCell<BTreeMap<u64, u64>>,
    members: RefCell<(Vec<u64>, Vec<u64>)>,
    endpoints: RefCell<BTreeMap<u64, Endpoint>>,
    peers: RefCell<BTreeMap<u64, Peer>>,
    /// By the sender's number; [`STRANGER`] has what comes from where nobody is known to listen.
    partials: RefCell<BTreeMap<u64, Partial>>,
    failed: RefCell<Option<String>>,
    /// It hands the lead over, and decides nothing meanwhile.
    is_leaving: Cell<bool>,
    counts: Cell<MemberCounts>,
    bug: Option<Bug>,
}

impl Member {
    /// Starts to take part: `journal` is that of the domain. `endpoints`: where the members listen, by their number, this one included.
    pub(crate) fn start(
        rpc: &RpcMachine,
        domain: &Domain,
        journal: Journal,
        endpoints: BTreeMap<u64, Endpoint>,
        (cluster, credential): (u64, Option<Credential>),
        bug: Option<Bug>,
    ) -> (Rc<Member>, Task) {
        let locality = rpc.locality().clone();
        // The members come from the journal: no peers are given here.
        let config = RaftConfig::new(journal.number(), [])
            .with_election_timeout(ELECTION_TICKS.0, ELECTION_TICKS.1)
            .with_heartbeat_interval(HEARTBEAT_TICKS)
            .with_seed(locality.random_u64());
        let node = RaftNode::with_log(config, journal.clone());
        let members = (node.members().to_vec(), node.learners().to_vec());
        let view = View { term: node.term(), last: journal.last_index(), ..View::default() };
        let member = Rc::new(Member {
            rpc: rpc.clone(),
            domain: domain.clone(),
            cluster,
            credential,
            journal,
            node: RefCell::new(node),
            inbox: RefCell::default(),
            rung: Notify::new(),
            proposals: RefCell::default(),
            questions: RefCell::default(),
            question: Cell::new(0),
            view: Cell::new(view),
            reigns: Cell::new(None),
            changed: Notify::new(),
            heard: RefCell::default(),
            leads_since: Cell::new(locality.now()),
            lasts: RefCell::default(),
            members: RefCell::new(members),
            endpoints: RefCell::new(endpoints),
            peers: RefCell::default(),
            partials: RefCell::default(),
            failed: RefCell::new(None),
            is_leaving: Cell::new(false),
            counts: Cell::default(),
            bug,
            locality,
        });
        member.learn_endpoints();
        let weak = Rc::downgrade(&member);
        rpc.serve(move |fom: Fom, request: MemberMessage| {
            let member = weak.upgrade();
            async move {
                let member =
                    member.ok_or_else(|| FopError::NotServing { reason: "control is stopped".to_owned() })?;
                member.receive(&fom, request).await
            }
        });
        let task = member.locality.spawn("control-member", run(Rc::clone(&member)));
        (member, task)
    }

    /// The term in which this member leads, with a majority that answers; `None` otherwise.
    pub(crate) fn reigns(&self) -> Option<u64> {
        self.reigns.get()
    }

    /// The term in which it was elected, if it leads as far as it knows.
    pub(crate) fn leads_in(&self) -> Option<u64> {
        let view = self.view.get();
        view.leads.then_some(view.term)
    }

    /// Who leads, or is about to, as far as known, if that is another one.
    pub(crate) fn other_leader(&self) -> Option<Endpoint> {
        let leader = match self.view.get() {
            View { leads: true, .. } if self.is_leaving.get() => self.heir(),
            view => view.leader.filter(|leader| *leader != self.number()),
        };
        self.endpoints.borrow().get(&leader?).copied()
    }

    /// What it did since it started.
    pub(crate) fn counts(&self) -> MemberCounts {
        MemberCounts {
            changes_waiting: wide(self.proposals.borrow().len()),
            entries_withdrawn: self.journal.withdrawn(),
            ..self.counts.get()
        }
    }

    /// Everything that its durable state has, and the entry that it has the effect of.
    pub(crate) fn copy(&self) -> (Position, Batch) {
        self.journal.copy()
    }

    fn count(&self, what: impl FnOnce(&mut MemberCounts)) {
        let mut counts = self.counts.get();
        what(&mut counts);
        self.counts.set(counts);
    }

    /// Whom it hands the lead over to: of those that were heard a moment ago, the one that has most.
    fn heir(&self) -> Option<u64> {
        let (now, own) = (self.locality.now(), self.number());
        let (heard, lasts) = (self.heard.borrow(), self.lasts.borrow());
        let is_near = |voter: &u64| heard.get(voter).is_some_and(|heard| *heard + HEARD_WITHIN > now);
        let voters = self.members.borrow().0.clone();
        let others = voters.into_iter().filter(|voter| *voter != own && is_near(voter));
        others.max_by_key(|voter| (lasts.get(voter).copied(), std::cmp::Reverse(*voter)))
    }

    /// Hands the lead over, if it has it: from now on it decides nothing. Returns when another one leads and what it said first is on a majority (until then
    /// whoever asks here is told so, instead of nothing), at once if there is nobody who could, or at `until`. One that was asked to take the lead and dies
    /// keeps this one from deciding, as the library waits for it: whoever goes on afterwards gives all the time there is, and another one is asked.
    pub(crate) async fn hand_over(&self, until: Instant) {
        let mut again = Instant::ZERO;
        let mut has_led = false;
        while self.failure().is_none() {
            let (view, now) = (self.view.get(), self.locality.now());
            has_led |= view.leads;
            let has_reached_us = || self.journal.term_at(view.committed) == Some(view.term);
            let is_led = view.leader.is_some_and(|leader| leader != self.number()) && has_reached_us();
            let is_over = !has_led || is_led;
            let heir = self.heir();
            if is_over || now >= until || (again == Instant::ZERO && heir.is_none()) {
                break;
            }
            if !self.is_leaving.replace(true) {
                self.look();
            }
            if let (true, Some(to)) = (view.leads && now >= again, heir) {
                self.tell(Input::HandOver { to });
                again = now + HAND_OVER_AGAIN;
            }
            // Either way it is looked again.
            let _rung = self.locality.timeout_at(until.min(now + TICK), self.changed.notified()).await;
        }
        if self.is_leaving.replace(false) {
            self.look();
        }
    }

    /// Number of this member.
    pub(crate) fn number(&self) -> u64 {
        self.journal.number()
    }

    /// Why it takes no part any more, if so.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failed.borrow().clone()
    }

    /// What it knows of itself and the others.
    pub(crate) fn status(&self) -> MembersReply {
        let (view, now) = (self.view.get(), self.locality.now());
        let (voters, fed) = self.members.borrow().clone();
        let mut members: Vec<MemberStatus> = voters
            .iter()
            .chain(&fed)
            .map(|number| MemberStatus {
                number: *number,
                endpoint: self.endpoints.borrow().get(number).copied(),
                is_voter: voters.contains(number),
                silent_ms: self
                    .heard
                    .borrow()
                    .get(number)
                    .map(|heard| u64::try_from(now.since(*heard).as_millis()).unwrap_or(u64::MAX)),
                last: match *number == self.number() {
                    true => Some(view.last),
                    false => self.lasts.borrow().get(number).copied().filter(|_| view.leads),
                },
            })
            .collect();
        members.sort_by_key(|member| member.number);
        MembersReply {
            own: self.number(),
            term: view.term,
            leader: view.leader.unwrap_or(0),
            committed: view.committed,
            applied: self.journal.applied().index,
            last: view.last,
            members,
        }
    }

    /// Wishes that a member comes or goes; [`Member::status`] shows what became of it. Only a leader can do it, one change after the other.
    pub(crate) fn wish_change(&self, number: u64, adds: bool) {
        self.tell(Input::Change { number, adds });
    }

    /// True if every member that has the log knows where `number` listens: the cluster file in force says so, or, if there is none, the daemon's own.
    pub(crate) fn is_named(&self, number: u64) -> bool {
        match self.newest_file(&[]) {
            Some(file) => file.control_members().any(|(named, _)| named == number),
            None => self.endpoints.borrow().contains_key(&number),
        }
    }

    /// True if everything of the log is on a majority: then the members are, too.
    pub(crate) fn is_settled(&self) -> bool {
        let view = self.view.get();
        view.committed == view.last
    }

    fn tell(&self, input: Input) {
        self.inbox.borrow_mut().push_back(input);
        self.rung.notify_one();
    }

    async fn receive(&self, fom: &Fom, request: MemberMessage) -> Result<MemberMessageReply, FopError> {
        let refuse = |reason: String| Err(FopError::NotPermitted { reason });
        if request.cluster != self.cluster || request.to != self.number() {
            let reason = format!("this is control daemon {} of cluster {:#x}", self.number(), self.cluster);
            return refuse(reason);
        }
        let endpoint = fom.peer().endpoint;
        let MemberMessage { from, message: number, offset, total_bytes, .. } = request;
        if total_bytes > MESSAGE_BYTES_MAX {
            let reason = format!("a message of {total_bytes} bytes; at most {MESSAGE_BYTES_MAX} are taken");
            return Err(FopError::BadRequest { reason });
        }
        let is_known = || self.endpoints.borrow().get(&from) == Some(&endpoint);
        let place = if is_known() { from } else { STRANGER };
        let parts = fom.pull().await?;
        let whole = {
            let mut partials = self.partials.borrow_mut();
            if offset == 0 {
                partials.insert(place, Partial { number, total_bytes, bytes: Vec::new() });
            }
            let Some(partial) = partials.get_mut(&place).filter(|partial| {
                partial.number == number
                    && partial.total_bytes == total_bytes
                    && wide(partial.bytes.len()) == offset
            }) else {
                // A part was lost or doubled: the message is, then, and another one follows.
                return Ok(MemberMessageReply);
            };
            parts.iter().for_each(|part| partial.bytes.extend_from_slice(part));
            if wide(partial.bytes.len()) < total_bytes {
                return Ok(MemberMessageReply);
            }
            partials.remove(&place).map(|partial| partial.bytes).unwrap_or_default()
        };
        let bad = |reason: String| FopError::BadRequest { reason };
        let message = message::decode(&whole).map_err(|error| bad(error.to_string()))?;
        if message::sender(&message) != Some(from) {
            return Err(bad(format!("a message of another than {from}, which brought it")));
        }
        if !is_known() {
            // Who is behind does not know the members of today, and would never hear of them if it listened to those of its own day alone.
            let has_room = self.endpoints.borrow().len() < PLACES_MAX;
            if !has_room || !message::is_ahead(&message, self.journal.last_position()) {
                let reason =
                    format!("control daemon {from} does not listen at {endpoint} by the cluster file");
                return refuse(reason);
            }
            self.endpoints.borrow_mut().insert(from, endpoint);
        }
        if let Message::InstallSnapshot(install) = &message {
            Batch::decode(&install.snapshot.data).map_err(|error| bad(error.to_string()))?;
        }
        self.heard.borrow_mut().insert(from, self.locality.now());
        if let Message::AppendEntriesReply(reply) = &message
            && reply.success
        {
            let mut lasts = self.lasts.borrow_mut();
            let last = lasts.entry(from).or_default();
            *last = reply.match_index.max(*last);
        }
        if self.inbox.borrow().len() < INBOX_MAX {
            self.tell(Input::Message(message));
        }
        Ok(MemberMessageReply)
    }

    /// One step of the library, with everything that follows from it. Error: the store failed.
    async fn step(self: &Rc<Self>, input: Option<Input>) -> Result<(), ControlError> {
        let mut waiting = None;
        let event = match input {
            None => Event::Tick,
            Some(Input::Message(message)) => Event::Message(message),
            Some(Input::Propose(command, sender)) => {
                waiting = Some(sender);
                Event::Propose(command)
            }
            Some(Input::Change { number, adds }) => match self.change(number, adds) {
                Some(event) => event,
                None => return Ok(()),
            },
            Some(Input::HandOver { to }) => {
                self.count(|counts| counts.hand_overs += 1);
                Event::TransferLeadership(to)
            }
        };
        let is_message = matches!(event, Event::Message(_));
        let is_tick = matches!(event, Event::Tick);
        let stepped = self.node.borrow_mut().step(event);
        let actions = match stepped {
            Ok(actions) => actions,
            Err(raft_io::Error::NotLeader { .. } | raft_io::Error::ConfigInProgress) => {
                if let Some(sender) = waiting {
                    let _gone = sender.send(Err(NotLeading));
                }
                return Ok(());
            }
            Err(error) => return Err(ControlError::Consensus(error.to_string())),
        };
        if let Some(sender) = waiting {
            let node = self.node.borrow();
            self.proposals.borrow_mut().insert(self.journal.last_index(), (node.term(), sender));
        }
        if is_tick || self.bug != Some(Bug::EntriesLate) {
            self.journal.persist().await?;
        }
        if self.journal.take_files_changed() {
            self.learn_endpoints();
        }
        self.look();
        if self.bug == Some(Bug::ToldBeforeMajority) {
            for (_, (_, sender)) in std::mem::take(&mut *self.proposals.borrow_mut()) {
                let _gone = sender.send(Ok(()));
            }
        }
        let mut applied = false;
        for action in actions {
            match action {
                Action::Send { to, message } => self.send(to, message),
                Action::Apply { index, term, command } => {
                    self.apply(Position { index, term }, &command).await?;
                    applied = true;
                }
                Action::RestoreSnapshot { .. } => {
                    self.count(|counts| counts.copies_taken += 1);
                    self.learn_endpoints();
                }
                Action::MembershipChanged { .. } => self.changed.notify_waiters(),
                Action::ReadReady { id, .. } => self.answer_question(id),
                // What is not asked for: the log is cut by our own measure, in bytes.
                _ => {}
            }
        }
        if applied && let Some(index) = self.journal.cut() {
            let cut = self.node.borrow_mut().step(Event::Snapshot { index, data: Vec::new() });
            cut.map_err(|error| ControlError::Consensus(error.to_string()))?;
            self.journal.persist().await?;
        }
        if is_message || applied {
            self.look();
        }
        Ok(())
    }

    /// What the library is to be told for a member to come or go; `None` if nothing is to be done now.
    fn change(&self, number: u64, adds: bool) -> Option<Event> {
        let (voters, fed) = self.members.borrow().clone();
        match (adds, voters.contains(&number), fed.contains(&number)) {
            (true, true, _) | (false, false, false) => None,
            (true, false, false) => Some(Event::AddLearner(number)),
            // One that is far behind would hold up every change as a voter.
            (true, false, true) => {
                let has = self.lasts.borrow().get(&number).copied().unwrap_or(0);
                (has >= self.view.get().committed).then_some(Event::PromoteLearner(number))
            }
            (false, ..) => Some(Event::RemoveServer(number)),
        }
    }

    async fn apply(&self, position: Position, command: &[u8]) -> Result<(), ControlError> {
        let batch = Batch::decode(command).map_err(ControlError::Entry)?;
        self.journal.apply(position, &batch).await?;
        if batch.changes.iter().any(|change| change.tree == store::TRANSACTIONS) {
            self.learn_endpoints();
        }
        let waiting = {
            let mut proposals = self.proposals.borrow_mut();
            let later = proposals.split_off(&(position.index + 1));
            std::mem::replace(&mut *proposals, later)
        };
        for (index, (term, sender)) in waiting {
            let is_it = index == position.index && term == position.term;
            let _gone = sender.send(if is_it { Ok(()) } else { Err(NotLeading) });
        }
        Ok(())
    }

    /// The members' endpoints by the cluster file in force; those that were known stay for members that it does not name. What a file says that is in the log and not in
    /// force yet counts for members that nobody knew before: they are members by the log too, and may be needed for it to come in force. Who moves is where it was until then.
    fn learn_endpoints(&self) {
        let in_force = self.newest_file(&[]);
        let ahead = self.journal.without_effect();
        let next = if ahead.is_empty() { None } else { self.newest_file(&ahead) };
        let mut endpoints = self.endpoints.borrow_mut();
        endpoints.extend(in_force.iter().flat_map(ClusterFile::control_members));
        for (number, endpoint) in next.iter().flat_map(ClusterFile::control_members) {
            endpoints.entry(number).or_insert(endpoint);
        }
    }

    /// The newest cluster file of the state and of the batches that are `ahead` of it.
    fn newest_file(&self, ahead: &[Batch]) -> Option<ClusterFile> {
        let text = store::newest_text(|tree| self.journal.place(tree), &self.domain, ahead)?;
        ClusterFile::parse_hidden(&text, self.credential).ok()
    }

    /// Notes what the library thinks now, and tells those who wait for it.
    fn look(&self) {
        let node = self.node.borrow();
        let (now, number) = (self.locality.now(), self.number());
        let before = self.view.get();
        let view = View {
            term: node.term(),
            leads: node.is_leader(),
            leader: node.leader(),
            committed: node.commit_index(),
            last: self.journal.last_index(),
        };
        self.view.set(view);
        let members = (node.members().to_vec(), node.learners().to_vec());
        drop(node);
        if *self.members.borrow() != members {
            *self.members.borrow_mut() = members;
            self.changed.notify_waiters();
        }
        if view.leads && (!before.leads || before.term != view.term) {
            self.count(|counts| counts.leads += 1);
            self.leads_since.set(now);
            self.lasts.borrow_mut().clear();
        }
        if !view.leads {
            self.give_up();
        }
        let has_majority = {
            let (voters, heard) = (&self.members.borrow().0, self.heard.borrow());
            let since = |voter: &u64| match *voter == number {
                true => now,
                false => heard.get(voter).copied().unwrap_or(Instant::ZERO).max(self.leads_since.get()),
            };
            let near = voters.iter().filter(|voter| since(voter) + SILENCE_MAX > now).count();
            near > voters.len() / 2
        };
        if self.reigns.get() == Some(view.term) && view.leads && !has_majority {
            self.count(|counts| counts.silences += 1);
        }
        let reigns = (view.leads && has_majority && !self.is_leaving.get()).then_some(view.term);
        if self.reigns.replace(reigns) != reigns || before.leader != view.leader {
            self.changed.notify_waiters();
        }
    }

    /// It does not lead: nobody gets what they wait for.
    fn give_up(&self) {
        let proposals = std::mem::take(&mut *self.proposals.borrow_mut());
        self.count(|counts| counts.changes_lost += wide(proposals.len()));
        for (_, (_, sender)) in proposals {
            let _gone = sender.send(Err(NotLeading));
        }
        let Questions { next, asked } = std::mem::take(&mut *self.questions.borrow_mut());
        for sender in next.into_iter().chain(asked) {
            let _gone = sender.send(false);
        }
    }

    /// Asks whether we lead, if somebody wants to know and no question is under way.
    async fn ask(self: &Rc<Self>) -> Result<(), ControlError> {
        {
            let mut questions = self.questions.borrow_mut();
            let Questions { next, asked } = &mut *questions;
            if next.is_empty() || !asked.is_empty() {
                return Ok(());
            }
            std::mem::swap(next, asked);
        }
        let id = self.question.get() + 1;
        self.question.set(id);
        let stepped = self.node.borrow_mut().step(Event::Read { id });
        let Ok(actions) = stepped else {
            self.give_up();
            return Ok(());
        };
        for action in actions {
            match action {
                Action::Send { to, message } => self.send(to, message),
                Action::ReadReady { id, .. } => self.answer_question(id),
                _ => {}
            }
        }
        Ok(())
    }

    fn answer_question(&self, id: u64) {
        if id != self.question.get() {
            return;
        }
        for sender in std::mem::take(&mut self.questions.borrow_mut().asked) {
            let _gone = sender.send(true);
        }
        // The next one, if somebody came meanwhile.
        self.rung.notify_one();
    }

    fn send(self: &Rc<Self>, to: u64, message: Message) {
        let mut peers = self.peers.borrow_mut();
        let peer = peers.entry(to).or_insert_with(|| {
            let (outbox, rung) = (Rc::default(), Rc::new(Notify::new()));
            let sender = deliver(Rc::clone(self), to, Rc::clone(&outbox), Rc::clone(&rung));
            Peer { outbox, rung, task: self.locality.spawn("control-messages", sender) }
        });
        let mut outbox = peer.outbox.borrow_mut();
        let is_copy = |message: &Message| matches!(message, Message::InstallSnapshot(_));
        if is_copy(&message) {
            self.count(|counts| counts.copies_sent += 1);
            // The newest copy is enough.
            outbox.retain(|waiting| !is_copy(waiting));
        }
        if outbox.len() == MESSAGES_MAX {
            outbox.pop_front();
        }
        outbox.push_back(message);
        peer.rung.notify_one();
    }

    async fn deliver_one(&self, to: u64, endpoint: Endpoint, message: &Message) -> Result<(), ()> {
        let bytes = message::encode(message).ok_or(())?;
        let number = self.locality.random_u64();
        let mut offset = 0;
        loop {
            let end = (offset + narrow(REQUEST_BULK_BYTES_MAX)).min(bytes.len());
            let (arena, counters) = (self.locality.arena(), self.locality.counters());
            let part = SharedBuffer::copy_from_slice(arena, &bytes[offset..end], counters).ok_or(())?;
            let request = MemberMessage {
                cluster: self.cluster,
                from: self.number(),
                to,
                message: number,
                offset: wide(offset),
                total_bytes: wide(bytes.len()),
            };
            let options =
                CallOptions::until(self.locality.now() + MESSAGE_TIME).unreachable_max(UNREACHABLE_MAX);
            let sent = self.rpc.call_itself(endpoint, &request, Bulk::from_source(vec![part]), options).await;
            sent.map_err(drop)?;
            offset = end;
            if offset == bytes.len() {
                return Ok(());
            }
        }
    }

    /// Ends the tasks: the member takes no part any more.
    pub(crate) fn stop(&self) {
        let peers = std::mem::take(&mut *self.peers.borrow_mut());
        peers.into_values().for_each(|peer| peer.task.cancel());
        self.give_up();
    }
}

impl ReplicatedLog for Rc<Member> {
    fn domain(&self) -> &Domain {
        &self.domain
    }

    fn place(&self, tree: TreeId) -> TreeId {
        self.journal.place(tree)
    }

    fn commit(&self, batch: Batch) -> Committing<'_> {
        let (sender, receiver) = oneshot::channel();
        self.tell(Input::Propose(batch.encode(), sender));
        Box::pin(async move {
            match receiver.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(NotLeading)) | Err(_) => Err(ControlError::NotLeading),
            }
        })
    }

    fn position(&self) -> Position {
        self.journal.applied()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn members(&self) -> Vec<u64> {
        let (voters, fed) = &*self.members.borrow();
        voters.iter().chain(fed).copied().collect()
    }

    fn confirm(&self) -> Option<Confirming<'_>> {
        if matches!(self.bug, Some(Bug::LeadNotAsked | Bug::ToldBeforeMajority)) {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        self.questions.borrow_mut().next.push(sender);
        self.rung.notify_one();
        let until = self.locality.now() + SILENCE_MAX;
        Some(Box::pin(async move {
            match self.locality.timeout_at(until, receiver).await {
                Ok(Ok(true)) => {
                    self.count(|counts| counts.answers_vouched += 1);
                    Ok(())
                }
                _ => {
                    self.count(|counts| counts.answers_withheld += 1);
                    Err(NotLeading)
                }
            }
        }))
    }
}

/// Carries the messages for one member, one after the other.
async fn deliver(member: Rc<Member>, to: u64, outbox: Rc<RefCell<VecDeque<Message>>>, rung: Rc<Notify>) {
    loop {
        let next = outbox.borrow_mut().pop_front();
        let Some(message) = next else {
            rung.notified().await;
            continue;
        };
        let endpoint = member.endpoints.borrow().get(&to).copied();
        let delivered = match endpoint {
            Some(endpoint) => member.deliver_one(to, endpoint, &message).await,
            None => Err(()),
        };
        if delivered.is_err() {
            // What waited is old by now. The consensus says it again, with what is true then.
            outbox.borrow_mut().clear();
        }
    }
}

/// Ticks and steps until the store fails.
async fn run(member: Rc<Member>) {
    let locality = member.locality.clone();
    let mut next_tick = locality.now() + TICK;
    let outcome = loop {
        if member.inbox.borrow().is_empty() {
            // Either way it is looked what is to be done.
            let _rung = locality.timeout_at(next_tick, member.rung.notified()).await;
        }
        let stepped = if locality.now() >= next_tick {
            next_tick = locality.now() + TICK;
            let stepped = member.step(None).await;
            member.look();
            stepped
        } else {
            Ok(())
        };
        let next = member.inbox.borrow_mut().pop_front();
        let stepped = match (stepped, next) {
            (Ok(()), Some(input)) => member.step(Some(input)).await,
            (stepped, _) => stepped,
        };
        let stepped = match stepped {
            Ok(()) => member.ask().await,
            Err(error) => Err(error),
        };
        if let Err(error) = stepped {
            break error;
        }
    };
    *member.failed.borrow_mut() = Some(outcome.to_string());
    member.view.set(View { leads: false, leader: None, ..member.view.get() });
    member.reigns.set(None);
    member.stop();
    member.changed.notify_waiters();
}
