//! The rpc machine: one per locality, client and server at once. It owns the transfer machine and is its driver.
//!
//! The rules are in [`crate::requester`] and [`crate::responder`]; here bytes are sealed and parsed, calls and foms become futures, and
//! what the transport does not take waits. Start at [`RpcMachine::call`] for the asking side and at `on_request` for the
//! answering side.
//!
//! Bounds: calls, by what the local process makes; foms and waiting requests by `RpcConfig`; items that wait for the transport
//! by [`crate::formation`]. Thread: the owning locality; nothing here is `Send`.
//! **Invariant**: no `RefCell` borrow lives across an await, or while code of a handler runs.
//! Left over: a handler that panics stops the locality (blame: us); a handler that never ends holds its slot and its place, and the
//! watchdog names its phase.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use base::limits::{BULK_SEGMENTS_MAX, MESSAGE_BYTES_MAX, REQUEST_BULK_BYTES_MAX};
use base::nid::NetKind;
use base::units::wide;
use base::{Endpoint, Instant, LookupMap, Right, Rights};
use fops::codec::{self, CodecError};
use fops::{Fop, FopError, Opcode, Repeat};
use runtime::sync::Notify;
use runtime::{Buffer, CountedCopies, Driver, LocalityHandle, SharedBuffer, copy_counted};
use smallvec::SmallVec;
use verbs_net::{
    BulkCookie, BulkDescriptor, Event, Lane, NetError, PeerId, Refused, Retract, Retraction, SendOptions,
    TransferId, TransferMachine,
};

use crate::addb::{Event as AddbEvent, Phase, Record, Ring, Steps};
use crate::afterwards::{Afterwards, Ended, Whose};
use crate::bug::Bug;
use crate::config::{Answer, Bulk, CallOptions, RpcConfig};
use crate::discovery::Discoveries;
use crate::error::{CallError, Cause};
use crate::fom::{Begun, Fom, FomInner, InlineBytes, InlineSource, RequestBulk};
use crate::fom_tasks::{Assignment, Desk, FomTasks};
use crate::formation::{Formation, FormationStats, Formed, Priority, Shape};
use crate::group::Group;
use crate::holds::Holds;
use crate::inline::{self, Inline};
use crate::item::{HEADER_BYTES, Header, Kind, SessionId, Status, Xid, reads};
use crate::limits;
use crate::misbehaviour::PeerMisbehaved;
use crate::packet::{self, PACKET_HEADER_BYTES, Packet, packet_bytes};
use crate::reply_cache::ReplyCacheStats;
use crate::requester::{
    CallId, CallSpec, Failure, FailureKind, ReplyFor, Requester, RequesterStats, Transmit, WaitedFor,
};
use crate::responder::{Decision, EstablishDecision, Responder, ResponderStats, Ticket};
use crate::service::{Service, ServiceState, Undrained};
use crate::slot_record::{SessionName, SlotRecord, Transaction, encode_value};
use crate::watchdog::{FomPlace, RunningFom, Watchdog};

/// Most bodies fit the smallest buffer of an arena.
const SMALL_ITEM_BYTES: usize = 4096;
/// The longest message.
const LARGE_ITEM_BYTES: usize = 64 * 1024;
const _: () = assert!(wide(LARGE_ITEM_BYTES) == MESSAGE_BYTES_MAX);
/// Most bodies fit behind bulk in a buffer that has this for them.
const USUAL_BODY_BYTES: usize = 2048;

/// Buffers tried for an item with `front` bytes before its body: the one that usually does, then the longest message.
fn item_sizes(front: usize) -> [usize; 2] {
    [(front + USUAL_BODY_BYTES).clamp(SMALL_ITEM_BYTES, LARGE_ITEM_BYTES), LARGE_ITEM_BYTES]
}

/// Figures of one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RpcStats {
    /// Of the asking side.
    pub requester: RequesterStats,
    /// Of the answering side.
    pub responder: ResponderStats,
    /// Of the reply cache.
    pub reply_cache: ReplyCacheStats,
    /// Of formation.
    pub formation: FormationStats,
    /// Sessions that peers have here now.
    pub sessions: usize,
    /// Sessions of before a restart whose clients have not come back yet.
    pub sessions_parked: usize,
    /// Replies kept now.
    pub replies_kept: usize,
    /// Calls without an answer now, orphans included.
    pub calls: usize,
    /// Foms that run now.
    pub foms_running: usize,
    /// Requests that wait for a fom now.
    pub foms_waiting: usize,
    /// Foms that stayed at one phase for too long, ever.
    pub foms_hung: u64,
    /// Foms that hold their request back on purpose now.
    pub foms_holding: usize,
    /// Words to requesters that theirs is held, ever.
    pub holds_told: u64,
    /// Answers sent again unasked, to requesters that were told to wait.
    pub answers_repeated: u64,
    /// Requests that ran.
    pub executed: u64,
    /// Requests whose time was over before they started.
    pub expired: u64,
    /// Requests refused because the peer's credential lacks a right.
    pub denied: u64,
    /// Breaches of the protocol by peers.
    pub misbehaved: u64,
    /// The last of them.
    pub last_misbehaviour: Option<(PeerId, PeerMisbehaved)>,
    /// Messages given up because a peer does not take them, or no buffer was free; resends make up for them.
    pub messages_dropped: u64,
    /// Requests that brought their bulk with them, and replies that brought the sink's.
    pub inline_requests: u64,
    /// See there.
    pub inline_replies: u64,
}

/// One locality's rpc. Clones are the same machine.
#[derive(Clone)]
pub struct RpcMachine(Rc<Inner>);

struct Inner {
    locality: LocalityHandle,
    endpoint: Endpoint,
    config: RpcConfig,
    request_ids: Cell<u64>,
    tm: RefCell<TransferMachine>,
    requester: RefCell<Requester>,
    responder: RefCell<Responder<SharedBuffer>>,
    calls: RefCell<LookupMap<CallId, CallRecord>>,
    transfers: RefCell<BTreeMap<TransferId, TransferRecord>>,
    /// Memory of answered calls that hardware may still touch.
    retractions: RefCell<BTreeMap<BulkCookie, RetractionRecord>>,
    /// Exposures of calls that nobody waits for any more, until their late answer or the end of their session.
    abandoned: RefCell<BTreeMap<CallId, Cookies>>,
    /// Items that leave with the end of the turn, with company, or once the transport has room.
    formation: RefCell<Formation<Parcel>>,
    /// What peers said that they read ([`reads`]).
    readers: RefCell<LookupMap<Endpoint, u64>>,
    /// Requests that handlers hold back.
    holds: RefCell<Holds>,
    /// Empty between turns; keeps its memory.
    parcels: Cell<Vec<Parcel>>,
    afterwards: Afterwards,
    troubles: RefCell<BTreeMap<Endpoint, Trouble>>,
    handlers: RefCell<LookupMap<u16, Served>>,
    queue: RefCell<VecDeque<Request>>,
    running: Cell<usize>,
    service: RefCell<Service>,
    drained: RefCell<Vec<Waker>>,
    newest_config_version: Cell<u64>,
    /// Rings when there are sessions whose records may go.
    forgotten_rung: Notify,
    watchdog: RefCell<Watchdog>,
    /// Transfers that ended, for a seeded bug.
    wakes: Cell<u64>,
    changes_durable: Cell<u64>,
    addb: Ring,
    figures: RefCell<Figures>,
    discoveries: Discoveries,
    /// Peers of which one leads, if this machine knows any.
    group: RefCell<Option<Rc<Group>>>,
}

#[derive(Default)]
struct Figures {
    executed: u64,
    expired: u64,
    denied: u64,
    misbehaved: u64,
    last_misbehaviour: Option<(PeerId, PeerMisbehaved)>,
    messages_dropped: u64,
    answers_repeated: u64,
    inline_requests: u64,
    inline_replies: u64,
}

/// Which lane a message goes on: true for what answers a peer.
type IsReply = bool;
/// How urgent an item is: among others that leave now, and when it has to leave.
type When = (Priority, Instant);
/// Exposures of one request: a source, a sink.
type Cookies = SmallVec<[BulkCookie; 2]>;

/// A message, with what has to be said of memory wherever and however often it is posted.
struct Parcel {
    message: SharedBuffer,
    /// A request's exposures: bound anew on each connection it goes over.
    exposes: Cookies,
    /// A reply: the exposure of its request that ends with it.
    invalidates: Option<BulkCookie>,
    /// The request's id, for the eyes of the net: its header data. Of a packet: its first item's.
    request_id: u64,
    /// A request: its call, and the session that it names.
    call: Option<(CallId, SessionId)>,
    /// A reply from the cache, which ends no exposure: the one that pushes before it went into. It arrives behind them, as a reply does behind
    /// those into the exposure that it ends.
    follows: Option<BulkCookie>,
}

impl From<SharedBuffer> for Parcel {
    fn from(message: SharedBuffer) -> Parcel {
        Parcel {
            message,
            exposes: Cookies::new(),
            invalidates: None,
            request_id: 0,
            call: None,
            follows: None,
        }
    }
}

/// How a fop type is served.
struct Served {
    repeat: Repeat,
    start: Start,
}

/// Gives a fom, with the request's bytes and where in them its body is, to one of the tasks that run its type.
type Start = Rc<dyn Fn(&RpcMachine, FomInner, SharedBuffer, Range<usize>)>;

/// The last thing that went wrong with a peer.
enum Trouble {
    Net(NetError),
    Refused(Refused),
}

/// The bytes of a call's request.
enum Message {
    /// Not sent yet: header not written.
    Fresh(Buffer),
    /// Sent; kept to be sent again.
    Sent(SharedBuffer),
    /// Being sealed.
    Taken,
}

/// How a call ended. The error on the heap: a record is moved, and an error is rare.
type CallEnd = Result<(Header, SharedBuffer), Box<CallError>>;

struct CallRecord {
    peer: Endpoint,
    operation: &'static str,
    header: Header,
    message: Message,
    exposes: Cookies,
    priority: Priority,
    formation_wait: Duration,
    /// When it was made.
    since: Instant,
    /// It had to wait for a slot, and ADDB has been told that it was made.
    waits: bool,
    result: Option<CallEnd>,
    waker: Option<Waker>,
}

#[derive(Default)]
struct TransferRecord {
    result: Option<Result<Vec<SharedBuffer>, NetError>>,
    waker: Option<Waker>,
}

#[derive(Default)]
struct RetractionRecord {
    parts: Option<Result<Vec<SharedBuffer>, NetError>>,
    waker: Option<Waker>,
}

/// A request on its way to a fom.
struct Request {
    /// `None`: one-way.
    ticket: Option<Ticket>,
    peer: PeerId,
    header: Header,
    /// When it arrived.
    since: Instant,
    deadline: Instant,
    bulk: Option<Box<RequestBulk>>,
    bytes: SharedBuffer,
}

impl RpcMachine {
    /// Takes over the transfer machine and becomes its driver in `locality`.
    #[must_use]
    pub fn start(locality: &LocalityHandle, tm: TransferMachine, config: RpcConfig) -> RpcMachine {
        let first_state = if config.is_starting { ServiceState::Starting } else { ServiceState::Running };
        let inner = Inner {
            locality: locality.clone(),
            endpoint: tm.endpoint(),
            request_ids: Cell::new(locality.random_u64()),
            requester: RefCell::new(Requester::new(config.requester())),
            responder: RefCell::new(Responder::new(
                tm.epoch(),
                config.responder(),
                config.bug == Some(Bug::ReplyCacheOff),
            )),
            calls: RefCell::default(),
            transfers: RefCell::default(),
            retractions: RefCell::default(),
            abandoned: RefCell::default(),
            formation: RefCell::new(Formation::new(config.formation)),
            readers: RefCell::default(),
            holds: RefCell::default(),
            parcels: Cell::default(),
            afterwards: Afterwards::default(),
            troubles: RefCell::default(),
            handlers: RefCell::default(),
            queue: RefCell::default(),
            running: Cell::new(0),
            service: RefCell::new(Service::new(first_state)),
            drained: RefCell::default(),
            newest_config_version: Cell::new(config.config_version.get()),
            forgotten_rung: Notify::new(),
            watchdog: RefCell::new(Watchdog::new(config.hung_after)),
            wakes: Cell::new(0),
            changes_durable: Cell::new(0),
            addb: Ring::new(config.addb.as_ref(), config.addb_records, locality.index(), tm.endpoint()),
            figures: RefCell::default(),
            discoveries: Discoveries::default(),
            group: RefCell::default(),
            tm: RefCell::new(tm),
            config,
        };
        if inner.config.bug == Some(Bug::ResumedTooEarly) {
            inner.responder.borrow_mut().adopt(locality.now(), []);
        }
        let machine = RpcMachine(Rc::new(inner));
        locality.add_driver(Rc::new(RefCell::new(MachineDriver {
            machine: machine.clone(),
            seen: 0,
            due: Cell::new(Instant::ZERO),
        })));
        machine
    }

    /// Address of this machine.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        self.0.endpoint
    }

    /// The locality that it lives in.
    #[must_use]
    pub fn locality(&self) -> &LocalityHandle {
        &self.0.locality
    }

    /// The configuration version that this process says it holds.
    #[must_use]
    pub fn config_version(&self) -> &Rc<Cell<u64>> {
        &self.0.config.config_version
    }

    /// The highest configuration version that any peer has spoken of: above ours, it is time to fetch it.
    #[must_use]
    pub fn newest_seen_config_version(&self) -> u64 {
        self.0.newest_config_version.get().max(self.0.config.config_version.get())
    }

    /// Figures now.
    #[must_use]
    pub fn stats(&self) -> RpcStats {
        let inner = &self.0;
        let responder = inner.responder.borrow();
        let (of_sessions, reply_cache) = responder.stats();
        let figures = inner.figures.borrow();
        let requester = inner.requester.borrow();
        let (foms_holding, holds_told) = inner.holds.borrow().counts();
        RpcStats {
            requester: requester.stats(),
            responder: of_sessions,
            reply_cache,
            formation: inner.formation.borrow().stats(),
            sessions: responder.sessions_count(),
            sessions_parked: responder.parked_count(),
            replies_kept: responder.replies_kept(),
            calls: requester.calls_count(),
            foms_running: inner.running.get(),
            foms_waiting: inner.queue.borrow().len(),
            foms_hung: inner.watchdog.borrow().hung_count(),
            foms_holding,
            holds_told,
            answers_repeated: figures.answers_repeated,
            executed: figures.executed,
            expired: figures.expired,
            denied: figures.denied,
            misbehaved: figures.misbehaved,
            last_misbehaviour: figures.last_misbehaviour.clone(),
            messages_dropped: figures.messages_dropped,
            inline_requests: figures.inline_requests,
            inline_replies: figures.inline_replies,
        }
    }

    /// Whether a peer has a right; the refusal says which is missing, and what to do.
    pub(crate) fn check_right(&self, peer: PeerId, opcode: u16, right: Right) -> Result<(), FopError> {
        let tm = self.0.tm.borrow();
        let rights = tm.rights(peer);
        if rights.has(right) {
            return Ok(());
        }
        let request =
            Opcode::from_number(opcode).map_or_else(|| opcode.to_string(), |known| format!("{known:?}"));
        let reason = match tm.identity(peer) {
            Some(identity) => format!(
                "{request} needs the right `{right}`, and the credential of {} has {rights}: who runs the cluster makes one with \
                 `clovis credential create NAME --rights {}`",
                identity.name,
                rights.with(right).without(Right::Serve)
            ),
            None => format!(
                "{request} needs the right `{right}`, and {peer} has shown no credential that is good"
            ),
        };
        drop(tm);
        self.0.figures.borrow_mut().denied += 1;
        if let Some(on_denied) = &self.0.config.on_denied {
            on_denied(peer, opcode, &reason);
        }
        Err(FopError::NotPermitted { reason })
    }

    /// Looks at the transfer machine, for its figures.
    pub fn with_transfer_machine<T>(&self, look: impl FnOnce(&TransferMachine) -> T) -> T {
        look(&self.0.tm.borrow())
    }

    pub(crate) fn with_transfer_machine_mut<T>(&self, change: impl FnOnce(&mut TransferMachine) -> T) -> T {
        change(&mut self.0.tm.borrow_mut())
    }

    /// The last records of what requests did here, oldest first.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.0.addb.records()
    }

    /// The ring of those records, with its counters and histograms.
    #[must_use]
    pub fn addb(&self) -> &Ring {
        &self.0.addb
    }

    pub(crate) fn group(&self) -> &RefCell<Option<Rc<Group>>> {
        &self.0.group
    }

    pub(crate) fn discoveries(&self) -> &Discoveries {
        &self.0.discoveries
    }

    pub(crate) fn bulk_try(&self) -> Duration {
        self.0.config.bulk_try
    }

    /// The foms that run now, each with its phase.
    #[must_use]
    pub fn running_foms(&self) -> Vec<RunningFom> {
        self.0.watchdog.borrow().running().collect()
    }

    /// Requests whose change became durable here.
    #[must_use]
    pub fn changes_durable(&self) -> u64 {
        self.0.changes_durable.get()
    }

    pub(crate) fn note_durable(&self) {
        self.0.changes_durable.set(self.0.changes_durable.get() + 1);
    }

    /// Tells of the foms that hang.
    fn watch(&self, now: Instant) {
        let hung = self.0.watchdog.borrow_mut().check(now);
        for RunningFom { request_id, opcode, phase, .. } in hung.iter().map(|hung| hung.fom) {
            self.0.addb.event(now, AddbEvent::Hung, request_id, opcode, (phase as u8).into());
        }
        if let Some(on_hung) = &self.0.config.on_hung {
            hung.iter().for_each(|hung| on_hung(hung));
        }
    }

    /// A fom is at another phase.
    pub(crate) fn enter_phase(&self, at: Instant, place: FomPlace, phase: Phase) {
        self.0.watchdog.borrow_mut().enter(at, place, phase);
    }

    /// A message was given up.
    fn note_dropped(&self) {
        self.0.figures.borrow_mut().messages_dropped += 1;
        self.0.addb.event(self.0.locality.now(), AddbEvent::Dropped, 0, 0, 0);
    }

    /// Registers the handler of a fop type. Requests of types without one are answered `BadRequest`.
    ///
    /// Panics if the type has one already: a bug of ours.
    pub fn serve<F, R>(&self, handler: impl Fn(Fom, F) -> R + 'static)
    where
        F: Fop,
        R: Future<Output = Result<F::Reply, FopError>> + 'static,
    {
        self.register(false, handler);
    }

    /// As [`RpcMachine::serve`], and also while the service starts or drains: for questions about the process itself.
    pub fn serve_always<F, R>(&self, handler: impl Fn(Fom, F) -> R + 'static)
    where
        F: Fop,
        R: Future<Output = Result<F::Reply, FopError>> + 'static,
    {
        self.register(true, handler);
    }

    fn register<F, R>(&self, is_always: bool, handler: impl Fn(Fom, F) -> R + 'static)
    where
        F: Fop,
        R: Future<Output = Result<F::Reply, FopError>> + 'static,
    {
        let (handler, tasks) = (Rc::new(handler), Rc::new(FomTasks::default()));
        let start: Start = Rc::new(move |machine, fom, item, body| {
            let Some(desk) = tasks.give(fom, item, body) else { return };
            let (machine, handler) = (machine.clone(), Rc::clone(&handler));
            let locality = machine.locality().clone();
            let work = machine.work(is_always, handler, Rc::clone(&tasks), desk);
            // Detached: it ends by itself, and a panic in it stops the locality.
            drop(locality.spawn("fom", work));
        });
        let before =
            self.0.handlers.borrow_mut().insert(F::OPCODE as u16, Served { repeat: F::REPEAT, start });
        assert!(before.is_none(), "{} has a handler already", F::NAME);
    }

    /// The task of foms of one type: runs the one on its desk, then the next.
    async fn work<F, R>(
        self,
        is_always: bool,
        handler: Rc<impl Fn(Fom, F) -> R>,
        tasks: Rc<FomTasks>,
        desk: Rc<Desk>,
    ) where
        F: Fop,
        R: Future<Output = Result<F::Reply, FopError>>,
    {
        loop {
            let Assignment { fom, item, body } = desk.next().await;
            let begun = match self.begin_fom(&fom, is_always) {
                Ok(()) => match codec::decode::<F>(&item[body]) {
                    Ok(request) => {
                        fom.begin(Begun::RUNS);
                        Ok(handler(fom.clone(), request))
                    }
                    Err(error) => {
                        fom.begin(Begun::UNREADABLE);
                        Err(FopError::BadRequest { reason: format!("{}: {error}", F::NAME) })
                    }
                },
                Err(error) => {
                    fom.begin(Begun::REFUSED);
                    Err(error)
                }
            };
            self.0.afterwards.let_go(item); // goes back in this turn, however long the request waits
            let result = match begun {
                Ok(running) => match running.await {
                    Ok(reply) => self.encode_reply(&fom, F::NAME, &reply).await,
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            };
            self.finish_fom(&fom, result).await;
            if !tasks.is_kept(&desk, fom) {
                return;
            }
        }
    }

    /// Asks `to` and waits for the answer: resends until there is one, or the deadline.
    ///
    /// `bulk` is exposed to the server while the request lives and taken back before this returns or when its future is
    /// dropped. At most once while the server lives; over a restart of the server as [`Fop::REPEAT`] allows.
    /// Waits for a slot when as many requests to that peer are in flight as its session has slots.
    /// If `to` is the name of a group ([`RpcMachine::set_group`]), the member of it that leads is asked.
    pub async fn call<F: Fop>(
        &self,
        to: Endpoint,
        fop: &F,
        bulk: Bulk,
        options: CallOptions,
    ) -> Result<Answer<F::Reply>, CallError> {
        match self.group_of(to) {
            None => self.call_itself(to, fop, bulk, options).await,
            // On the heap: a call of a single peer is not to carry what a group needs.
            Some(group) => Box::pin(self.call_group(&group, fop, bulk, options)).await,
        }
    }

    /// As [`RpcMachine::call`], of this very peer, also if its endpoint is the name of a group.
    pub async fn call_itself<F: Fop>(
        &self,
        to: Endpoint,
        fop: &F,
        bulk: Bulk,
        options: CallOptions,
    ) -> Result<Answer<F::Reply>, CallError> {
        if self.service_state() == ServiceState::Stopped {
            return Err(CallError::Draining);
        }
        let (mut inline, mut exposed) = (None, None);
        if !bulk.is_empty() {
            check_bulk(F::NAME, &bulk)?;
            inline = self.inline_source(to, &bulk);
            exposed = Some(Exposed::new(self, bulk, inline.is_some()));
        }
        let (source_bytes, sink_bytes) =
            exposed.as_ref().map_or((0, 0), |exposed| (exposed.source_bytes.len(), exposed.sink_bytes.len()));
        let source_bytes = inline.unwrap_or(source_bytes);
        let front = HEADER_BYTES + source_bytes + sink_bytes;
        let begun = self.0.locality.now();
        let encoded = match self.try_encode(front, fop) {
            Some(encoded) => encoded,
            None => {
                let waiting = self.0.locality.timeout_at(options.deadline, self.encode(front, fop));
                waiting.await.map_err(|_| CallError::TimedOut {
                    peer: to,
                    operation: F::NAME,
                    age: self.0.locality.now().since(begun),
                    resends: 0,
                    may_have_executed: false,
                    cause: Cause { waited_for: WaitedFor::Memory, net: None },
                })?
            }
        };
        let mut item = encoded.map_err(|error| CallError::BadCall {
            operation: F::NAME,
            reason: format!("the request does not encode: {error}"),
        })?;
        let mut header = Header::control(Kind::Request { opcode: F::OPCODE as u16 }, SessionId(0), 0, Xid(0));
        header.is_inline = inline.is_some();
        header.source_bytes = short(source_bytes);
        header.sink_bytes = short(sink_bytes);
        header.body_bytes = length(item.len() - front);
        header.request_id = self.next_request_id();
        let mut exposes = Cookies::new();
        if let Some(exposed) = &exposed {
            if header.is_inline {
                self.0.figures.borrow_mut().inline_requests += 1;
                self.write_inline(&mut item[header.source_range()], 0, &exposed.inline_source);
            } else {
                item[header.source_range()].copy_from_slice(&exposed.source_bytes);
            }
            item[header.sink_range()].copy_from_slice(&exposed.sink_bytes);
            exposes = exposed.cookies();
        }

        let since = self.0.locality.now();
        let submitted = self.submit(to, F::NAME, F::REPEAT, header, item, exposes, options);
        let (header, bytes) = submitted.await.map_err(|error| *error)?;
        let mut sink = Vec::new();
        if let Some(exposed) = exposed {
            // Of a push that was changed on its way nothing is left.
            sink = exposed.take_back().await.map_err(|error| CallError::Net {
                peer: to,
                operation: F::NAME,
                age: self.0.locality.now() - since,
                error,
            })?;
        }
        self.see_config_version(header.config_version);
        let body = &bytes[header.body_range()];
        let wrong = |reason: String| CallError::BadReply { peer: to, operation: F::NAME, reason };
        let bad = |error: CodecError| wrong(error.to_string());
        if header.is_inline {
            self.fill_sink(&mut sink, &bytes.slice(header.source_range())).await.map_err(wrong)?;
        }
        if header.kind == (Kind::Reply { status: Status::Failed }) {
            return Err(CallError::Fop(codec::decode::<FopError>(body).map_err(bad)?));
        }
        let reply = codec::decode::<F::Reply>(body).map_err(bad)?;
        self.0.afterwards.let_go(bytes);
        Ok(Answer { reply, sink, config_version: header.config_version })
    }

    /// Sends a fop that nobody answers: it may be lost, or run twice.
    ///
    /// Errors: `BadCall` for fops that may run at most once, or that do not fit a message.
    pub async fn send_one_way<F: Fop>(&self, to: Endpoint, fop: &F) -> Result<(), CallError> {
        if self.service_state() == ServiceState::Stopped {
            return Err(CallError::Draining);
        }
        let bad = |reason| CallError::BadCall { operation: F::NAME, reason };
        if F::REPEAT != Repeat::Idempotent {
            return Err(bad("a fop that may run at most once cannot be one-way".to_owned()));
        }
        let mut item = self.encode(HEADER_BYTES, fop).await.map_err(|error| bad(error.to_string()))?;
        let kind = Kind::OneWay { opcode: F::OPCODE as u16 };
        let header = Header {
            body_bytes: length(item.len() - HEADER_BYTES),
            request_id: self.next_request_id(),
            config_version: self.config_version().get(),
            time_left_ms: u32::MAX,
            ..Header::control(kind, SessionId(0), 0, Xid(0))
        };
        header.seal(&mut item);
        let now = self.0.locality.now();
        self.0.addb.phase(now, Phase::OneWay, header.request_id, F::OPCODE as u16, 0);
        let when = (Priority::Normal, now + limits::FORMATION_WAIT);
        let _ = self.send_at(now, PeerId::any(to), false, when, item.freeze().into()); // it may be lost
        Ok(())
    }

    /// Where the service is in its life ([`crate::service`]).
    #[must_use]
    pub fn service_state(&self) -> ServiceState {
        self.0.service.borrow().state()
    }

    /// The service has what it serves ([`RpcConfig::is_starting`]). Nothing brings one back that is on its way out.
    pub fn begin_serving(&self) {
        self.0.service.borrow_mut().run();
    }

    /// Stops taking requests (they are answered `NotServing`: come again, or ask another), waits until those that run or wait are answered or
    /// [`RpcConfig::drain_within`] is over, and from then on makes no calls either. Not to be awaited inside a handler: it would wait for itself.
    ///
    /// Errors: requests still run. What they change may or may not come; they are left to the end of their locality.
    pub async fn drain(&self) -> Result<(), Undrained> {
        self.0.service.borrow_mut().drain();
        let within = self.0.config.drain_within;
        let idle = std::future::poll_fn(|context| {
            if self.0.running.get() == 0 && self.0.queue.borrow().is_empty() {
                return Poll::Ready(());
            }
            self.0.drained.borrow_mut().push(context.waker().clone());
            Poll::Pending
        });
        let waited = self.0.locality.timeout_at(self.0.locality.now() + within, idle).await;
        self.0.service.borrow_mut().stop();
        if waited.is_ok() {
            return Ok(());
        }
        let count = self.0.running.get() + self.0.queue.borrow().len();
        let oldest = self.running_foms().into_iter().min_by_key(|fom| fom.since);
        oldest.map_or(Ok(()), |oldest| Err(Undrained { count, oldest, within }))
    }

    // ---- the asking side

    fn is_connected(&self, to: Endpoint) -> bool {
        self.with_transfer_machine(|tm| tm.rails(to).iter().any(|(_, is_up, ..)| *is_up))
    }

    fn next_request_id(&self) -> u64 {
        let id = self.0.request_ids.get();
        self.0.request_ids.set(id.wrapping_add(1));
        id
    }

    /// Encodes `body` behind `front` bytes of room, in one buffer. `None`: no buffer is free now.
    fn try_encode<T: codec::Encode>(&self, front: usize, body: &T) -> Option<Result<Buffer, CodecError>> {
        for bytes in item_sizes(front) {
            let item = self.0.locality.arena().try_alloc(bytes)?;
            if let Some(result) = encode_behind(front, body, item).transpose() {
                return Some(result);
            }
        }
        Some(Err(too_long(front, body)))
    }

    /// [`RpcMachine::try_encode`], waiting for a buffer.
    async fn encode<T: codec::Encode>(&self, front: usize, body: &T) -> Result<Buffer, CodecError> {
        for bytes in item_sizes(front) {
            if let Some(item) = encode_behind(front, body, self.alloc(bytes).await)? {
                return Ok(item);
            }
        }
        Err(too_long(front, body))
    }

    /// The bytes that a reply takes, with what travels inside of it for the sink.
    async fn encode_reply<R: codec::Encode>(
        &self,
        fom: &Fom,
        name: &'static str,
        reply: &R,
    ) -> Result<Buffer, FopError> {
        let answer = fom.0.bulk.as_ref().map(|bulk| &bulk.answer);
        let source_bytes = answer.map_or(0, |answer| answer.borrow().item_bytes());
        let internal = |error: CodecError| FopError::Internal {
            reason: format!("the reply to {name} does not encode: {error}"),
        };
        match self.encode(HEADER_BYTES + source_bytes, reply).await {
            Ok(mut item) if source_bytes > 0 => {
                if let Some(answer) = answer.map(RefCell::borrow) {
                    let room = &mut item[HEADER_BYTES..HEADER_BYTES + source_bytes];
                    self.write_inline(room, short(answer.first_segment), &answer.parts);
                }
                self.0.figures.borrow_mut().inline_replies += 1;
                Ok(item)
            }
            Err(CodecError::TooLong { .. }) if source_bytes > 0 => {
                fom.push_instead().await?;
                self.encode(HEADER_BYTES, reply).await.map_err(internal)
            }
            encoded => encoded.map_err(internal),
        }
    }

    /// The most bytes of bulk that travel inside of items to this peer: none while it has not said that it reads them.
    pub(crate) fn inline_bytes_to(&self, peer: Endpoint) -> usize {
        if self.reads(peer) < reads::INLINE {
            return 0;
        }
        self.0.config.inline_bytes.unwrap_or(inline::cut_off(peer.nid.net.kind))
    }

    /// What a request's source takes inside of it, if it travels there.
    fn inline_source(&self, to: Endpoint, bulk: &Bulk) -> Option<usize> {
        let lengths = bulk.source.iter().map(|part| part.len());
        let is_small = lengths.clone().sum::<usize>() <= self.inline_bytes_to(to);
        inline::inline_bytes(lengths).filter(|_| is_small)
    }

    fn write_inline(&self, room: &mut [u8], first_segment: u16, parts: &[SharedBuffer]) {
        let places = inline::write_head(room, first_segment, parts.iter().map(|part| part.len()));
        for (place, part) in places.into_iter().zip(parts) {
            copy_counted(self.0.locality.counters(), &mut room[place], part);
        }
    }

    /// Copies what came inside of a reply into the sink. Errors: it does not fit there.
    async fn fill_sink(&self, sink: &mut [SharedBuffer], bytes: &SharedBuffer) -> Result<(), String> {
        let inline = Inline::parse(bytes).map_err(|error| error.to_string())?;
        for (segment, place) in inline.places() {
            let length = place.len();
            let part = sink.get_mut(segment).filter(|part| part.len() == length);
            let part = part.ok_or_else(|| format!("{length} bytes for segment {segment} of the sink"))?;
            let taken = std::mem::replace(part, bytes.slice(0..0));
            let mut room = match taken.try_unshare() {
                Ok(room) => room,
                Err(_) => self.alloc(length).await,
            };
            copy_counted(self.0.locality.counters(), &mut room, &bytes[place]);
            *part = room.freeze();
        }
        Ok(())
    }

    pub(crate) async fn alloc(&self, bytes: usize) -> Buffer {
        match self.0.locality.arena().try_alloc(bytes) {
            Some(buffer) => buffer,
            None => self.0.locality.arena().alloc(bytes).await,
        }
    }

    #[allow(clippy::too_many_arguments)] // the parts of one call, each used once
    fn submit(
        &self,
        to: Endpoint,
        operation: &'static str,
        repeat: Repeat,
        header: Header,
        item: Buffer,
        exposes: Cookies,
        options: CallOptions,
    ) -> CallWait {
        let now = self.0.locality.now();
        let CallOptions { deadline, unreachable_max, connect_max, priority, formation_wait } = options;
        let spec = CallSpec { to, repeat, deadline, unreachable_max };
        let (id, waits) = self.0.requester.borrow_mut().submit(now, spec);
        if let Some(max) = connect_max.filter(|_| waits && !self.is_connected(to)) {
            self.0.requester.borrow_mut().await_connection(now, id, max);
        }
        let message = Message::Fresh(item);
        let record = CallRecord {
            peer: to,
            operation,
            header,
            message,
            exposes,
            priority,
            formation_wait,
            since: now,
            waits,
            result: None,
            waker: None,
        };
        if waits {
            self.0.addb.phase(now, Phase::Submit, header.request_id, opcode_of(header.kind), 0);
        }
        self.0.calls.borrow_mut().insert(id, record);
        CallWait { machine: self.clone(), id, is_done: false }
    }

    /// Does what is due now; how much.
    fn handle_timeouts(&self, now: Instant) -> usize {
        self.0.requester.borrow_mut().handle_timeouts(now);
        self.0.responder.borrow_mut().handle_timeouts(now);
        self.watch(now);
        // Those who waited for what is over now go on in this turn.
        self.pump(now);
        let ripened = self.0.formation.borrow_mut().handle_timeouts(now);
        ripened + self.tell_holds(now) + self.repeat_answers(now)
    }

    /// Sends what the asking side wants sent, and ends the calls that it gave up.
    fn pump(&self, now: Instant) {
        loop {
            let next = self.0.requester.borrow_mut().poll_transmit();
            let Some(transmit) = next else { break };
            match transmit {
                Transmit::Establish { to, nonce, resume } => {
                    let kind = if resume { Kind::Resume } else { Kind::Establish };
                    let header = Header::control(kind, SessionId(0), 0, nonce);
                    self.send_control(now, PeerId::any(to), header);
                }
                Transmit::Cancel { to, session, slot, xid } => {
                    self.send_control(now, to, Header::control(Kind::Cancel, session, slot, xid));
                }
                Transmit::Request { call, to, session, slot, xid, deadline } => {
                    let left = u32::try_from(deadline.since(now).as_millis()).unwrap_or(u32::MAX);
                    let place = Header { session, slot, xid, time_left_ms: left, ..EMPTY };
                    let is_sent = self
                        .seal_request(now, call, &place)
                        .is_some_and(|(when, parcel)| self.send_at(now, to, false, when, parcel));
                    if !is_sent {
                        self.0.requester.borrow_mut().handle_not_sent(call, session);
                    }
                }
            }
        }
        loop {
            let next = self.0.requester.borrow_mut().poll_failure();
            let Some((id, failure)) = next else { break };
            self.end_call(id, failure.kind.number(), |record| {
                Err(Box::new(self.call_error(record, failure)))
            });
        }
    }

    /// The request's bytes with its place and time left written into them. `None`: the call is gone, or the old bytes are
    /// still with the transport and no buffer is free for a copy (the next resend tries again).
    fn seal_request(&self, now: Instant, call: CallId, place: &Header) -> Option<(When, Parcel)> {
        let mut calls = self.0.calls.borrow_mut();
        let record = calls.get_mut(&call)?;
        let mut wait = Duration::ZERO; // a resend has waited enough
        let mut is_first = false;
        let mut item = match std::mem::replace(&mut record.message, Message::Taken) {
            Message::Fresh(item) => {
                wait = record.formation_wait;
                is_first = true;
                item
            }
            Message::Sent(shared) => match shared.try_unshare() {
                Ok(item) => item,
                Err(shared) => {
                    let copy = self.0.locality.arena().try_alloc(shared.len()).map(|mut copy| {
                        copy_counted(self.0.locality.counters(), &mut copy, &shared);
                        copy
                    });
                    let Some(copy) = copy else {
                        record.message = Message::Sent(shared);
                        self.note_dropped();
                        return None;
                    };
                    copy
                }
            },
            Message::Taken => return None,
        };
        record.header = Header {
            session: place.session,
            slot: place.slot,
            xid: place.xid,
            time_left_ms: place.time_left_ms,
            config_version: self.config_version().get(),
            ..record.header
        };
        record.header.seal(&mut item);
        let shared = item.freeze();
        record.message = Message::Sent(shared.clone());
        let (exposes, request_id) = (record.exposes.clone(), record.header.request_id);
        let opcode = opcode_of(record.header.kind);
        const SEND: Steps = Steps::new(&[Phase::Submit], Phase::Send);
        match (is_first, record.waits) {
            (true, false) => self.0.addb.steps(now, SEND, request_id, opcode, 0),
            (true, true) => self.0.addb.phase(now, Phase::Send, request_id, opcode, 0),
            (false, _) => self.0.addb.phase(now, Phase::Resend, request_id, opcode, 0),
        }
        let call = Some((call, place.session));
        let parcel = Parcel { message: shared, exposes, invalidates: None, request_id, call, follows: None };
        Some(((record.priority, now + wait), parcel))
    }

    /// `failure`: the number of what went wrong, if something did.
    fn end_call(&self, id: CallId, failure: u32, result: impl FnOnce(&CallRecord) -> CallEnd) {
        let mut calls = self.0.calls.borrow_mut();
        let Some(record) = calls.get_mut(&id) else { return };
        let result = result(record);
        let now = self.0.locality.now();
        let (request_id, opcode) = (record.header.request_id, opcode_of(record.header.kind));
        match &result {
            Ok((reply, _)) => {
                let status = match reply.kind {
                    Kind::Reply { status: Status::Failed } => 1,
                    Kind::Reply { status: Status::Dropped } => 2,
                    _ => 0,
                };
                let (since, whose) = (record.since, Whose::Call);
                self.0.afterwards.note(Ended { at: now, request_id, opcode, status, since, whose });
            }
            Err(_) => {
                self.0.addb.phase(now, Phase::Failed, request_id, opcode, failure);
                self.abandon(id, &record.exposes);
            }
        }
        record.result = Some(result);
        if let Message::Sent(bytes) = std::mem::replace(&mut record.message, Message::Taken) {
            self.0.afterwards.let_go(bytes);
        }
        if let Some(waker) = record.waker.take() {
            waker.wake();
        }
    }

    /// Nobody waits for a call any more, and its server may still be at work on its memory.
    fn abandon(&self, id: CallId, exposes: &[BulkCookie]) {
        let now = self.0.locality.now();
        for cookie in exposes {
            let retraction = self.0.tm.borrow_mut().retract(now, *cookie, Retract::Abandoned);
            if matches!(retraction, Retraction::Pending) {
                self.0.abandoned.borrow_mut().entry(id).or_default().push(*cookie);
            }
        }
    }

    fn call_error(&self, record: &CallRecord, failure: Failure) -> CallError {
        let (peer, operation) = (record.peer, record.operation);
        let Failure { kind, waited_for, age, resends, may_have_executed } = failure;
        let troubles = self.0.troubles.borrow();
        let net = match troubles.get(&peer) {
            Some(Trouble::Net(error)) => Some(error.clone()),
            _ => None,
        };
        if kind == FailureKind::Refused {
            match (troubles.get(&peer), &net) {
                (Some(Trouble::Refused(refused)), _) => {
                    return CallError::NotSendable { peer, operation, refused: *refused };
                }
                (_, Some(error)) => return CallError::Net { peer, operation, age, error: error.clone() },
                _ => {}
            }
        }
        let cause = Cause { waited_for, net };
        if kind == FailureKind::TimedOut {
            CallError::TimedOut { peer, operation, age, resends, may_have_executed, cause }
        } else {
            CallError::PeerLost { peer, operation, age, resends, may_have_executed, cause }
        }
    }

    // ---- the transport

    fn send_control(&self, now: Instant, to: PeerId, header: Header) {
        let Some(mut item) = self.0.locality.arena().try_alloc(HEADER_BYTES) else {
            self.note_dropped();
            return;
        };
        let request_id = if names_packets(header.kind) { reads::NEWEST } else { header.request_id };
        Header { config_version: self.config_version().get(), request_id, ..header }.seal(&mut item);
        let is_reply = !matches!(header.kind, Kind::Establish | Kind::Resume | Kind::Cancel);
        let when = match header.kind {
            // Nobody waits for it.
            Kind::Cancel | Kind::Held { .. } => (Priority::Normal, now + limits::FORMATION_WAIT),
            _ => (Priority::High, now),
        };
        let _ = self.send_at(now, to, is_reply, when, item.freeze().into()); // lost: resends make up for it
    }

    /// Sends an item that leaves in this turn. False if it will not leave.
    fn send(&self, now: Instant, to: PeerId, is_reply: IsReply, parcel: impl Into<Parcel>) -> bool {
        self.send_at(now, to, is_reply, (Priority::Normal, now), parcel.into())
    }

    /// Hands an item to formation. False if too many wait: it will not leave.
    fn send_at(
        &self,
        now: Instant,
        to: PeerId,
        is_reply: IsReply,
        (priority, urgent_at): When,
        parcel: Parcel,
    ) -> bool {
        let shape = Shape {
            to,
            priority,
            urgent_at,
            bytes: parcel.message.len(),
            exposes: parcel.exposes.len(),
            concludes: usize::from(parcel.invalidates.or(parcel.follows).is_some()),
        };
        let is_taken = self.0.formation.borrow_mut().push(now, is_reply, shape, parcel).is_ok();
        if !is_taken {
            self.note_dropped();
        }
        is_taken
    }

    /// Hands what has to leave now to the transport. True if it refused something for good: the asking side may have more to do.
    fn form(&self, now: Instant) -> bool {
        let mut is_refused = false;
        let mut parcels = self.0.parcels.take();
        let mut room: Option<Buffer> = None;
        loop {
            let next = self.0.formation.borrow_mut().poll(
                |peer| {
                    self.may_pack(peer) && {
                        room = room.take().or_else(|| self.0.locality.arena().try_alloc(SMALL_ITEM_BYTES));
                        room.is_some()
                    }
                },
                &mut parcels,
            );
            let Some((to, lane, formed)) = next else { break };
            let parcel = match formed {
                Formed::Held(parcel, of) => {
                    parcels = of;
                    parcel
                }
                Formed::Fresh => match (parcels.len(), room.take()) {
                    (2.., Some(room)) => self.pack(room, &parcels),
                    (_, unused) => {
                        room = unused;
                        let Some(parcel) = parcels.pop() else { break };
                        parcel
                    }
                },
            };
            match self.try_post(now, to, lane, parcel) {
                Ok(()) => parcels.clear(),
                Err((Refused::NoCredit | Refused::QueueFull, parcel)) => {
                    self.0.formation.borrow_mut().hold(to, lane, parcel, std::mem::take(&mut parcels));
                }
                Err((refused, parcel)) => {
                    parcels.push(parcel);
                    parcels.drain(..).for_each(|parcel| self.on_not_sent(&parcel));
                    self.0.formation.borrow_mut().prune(to.endpoint);
                    self.on_refused(now, to, refused);
                    is_refused = true;
                }
            }
        }
        self.0.parcels.set(parcels);
        is_refused
    }

    /// True if items to a peer may share a packet. Between machines of one process a message costs less than the copy into a packet.
    fn may_pack(&self, peer: Endpoint) -> bool {
        peer.nid.net.kind != NetKind::Lo && self.reads(peer) >= reads::PACKETS
    }

    /// What a peer said that it reads, 0 for single items.
    fn reads(&self, peer: Endpoint) -> u64 {
        self.0.readers.borrow().get(&peer).copied().unwrap_or(0)
    }

    /// A packet of all parcels, in `room`, which formation's limits keep large enough.
    fn pack(&self, mut room: Buffer, parcels: &[Parcel]) -> Parcel {
        room.resize(packet_bytes(parcels.len(), parcels.iter().map(|parcel| parcel.message.len()).sum()));
        packet::write_header(&mut room, short(parcels.len()));
        let mut at = PACKET_HEADER_BYTES;
        let mut exposes = Cookies::new();
        // Formation puts one item that concludes an exposure into a packet.
        let (mut invalidates, mut follows) = (None, None);
        let mut copies = CountedCopies::new(self.0.locality.counters());
        for parcel in parcels {
            let range = packet::write_length(&mut room, at, parcel.message.len());
            at = range.end;
            copies.copy(&mut room[range], &parcel.message);
            if !parcel.exposes.is_empty() {
                exposes.extend_from_slice(&parcel.exposes);
            }
            invalidates = invalidates.or(parcel.invalidates);
            follows = follows.or(parcel.follows);
        }
        let request_id = parcels.first().map_or(0, |parcel| parcel.request_id);
        Parcel { message: room.freeze(), exposes, invalidates, request_id, call: None, follows }
    }

    /// An item will not leave.
    fn on_not_sent(&self, parcel: &Parcel) {
        if let Some((call, session)) = parcel.call {
            self.0.requester.borrow_mut().handle_not_sent(call, session);
        }
    }

    #[allow(clippy::result_large_err)] // the parcel comes back as it was: a box would cost an allocation
    fn try_post(
        &self,
        now: Instant,
        to: PeerId,
        lane: Lane,
        parcel: Parcel,
    ) -> Result<(), (Refused, Parcel)> {
        let Parcel { message, exposes, invalidates, request_id, call, follows } = parcel;
        let options = SendOptions { exposes: &exposes, invalidates, follows, header_data: request_id, lane };
        let result = self.0.tm.borrow_mut().try_send_with(now, to, options, message);
        result.map_err(|(refused, message)| {
            (refused, Parcel { message, exposes, invalidates, request_id, call, follows })
        })
    }

    /// A peer is gone, and what waited for it.
    fn forget_pending(&self, endpoint: Endpoint) {
        self.0.readers.borrow_mut().remove(&endpoint);
        self.0.formation.borrow_mut().forget(endpoint, |parcel| self.on_not_sent(&parcel));
    }

    fn on_refused(&self, now: Instant, to: PeerId, refused: Refused) {
        self.note_dropped();
        if refused == Refused::PushesLost {
            // A reply of ours: its request will come again, and run again.
        } else if matches!(refused, Refused::Stale | Refused::NotConnected) {
            self.0.requester.borrow_mut().on_peer_lost(now, to.endpoint);
        } else {
            self.note_trouble(to.endpoint, Trouble::Refused(refused));
            self.0.requester.borrow_mut().on_peer_refused(now, to.endpoint);
        }
    }

    /// Remembered for peers that we call; clients come and go without number.
    fn note_trouble(&self, peer: Endpoint, trouble: Trouble) {
        if self.0.requester.borrow().knows(peer) {
            self.0.troubles.borrow_mut().insert(peer, trouble);
        }
    }

    fn see_config_version(&self, version: u64) {
        self.0.newest_config_version.set(self.0.newest_config_version.get().max(version));
    }

    fn handle_event(&self, now: Instant, event: Event) {
        match event {
            Event::Message { from, bytes, .. } => self.on_message(now, from, bytes),
            Event::PeerUp(peer, version) => {
                self.0.addb.event(now, AddbEvent::PeerUp, 0, 0, 0);
                self.see_config_version(version);
                self.0.troubles.borrow_mut().remove(&peer.endpoint);
                self.0.requester.borrow_mut().on_peer_up(now, peer);
            }
            Event::PeerLost { peer, error } => {
                self.0.addb.event(now, AddbEvent::PeerLost, 0, 0, 0);
                let is_final = match &error {
                    NetError::Refused { .. } | NetError::NoRdma { .. } => !error.may_resend(),
                    _ => false,
                };
                self.forget_pending(peer.endpoint);
                self.note_trouble(peer.endpoint, Trouble::Net(error));
                self.0.responder.borrow_mut().on_peer_lost(peer);
                let mut requester = self.0.requester.borrow_mut();
                if is_final {
                    requester.on_peer_refused(now, peer.endpoint);
                } else {
                    requester.on_peer_lost(now, peer.endpoint);
                }
            }
            Event::Writable(peer) => self.0.formation.borrow_mut().on_writable(peer.endpoint),
            Event::RailLost { peer, .. } => self.0.requester.borrow_mut().on_rail_lost(now, peer.endpoint),
            Event::Discovered { peer, result } => self.0.discoveries.on_discovered(peer, &result),
            // Nothing of ours is attached or bound besides messages and bulk.
            Event::Portal(_) => {}
            Event::Retracted { cookie, parts } => {
                // Nobody waits for abandoned memory: it goes back to the arena here.
                self.0.abandoned.borrow_mut().retain(|_, cookies| {
                    cookies.retain(|other| *other != cookie);
                    !cookies.is_empty()
                });
                if let Some(record) = self.0.retractions.borrow_mut().get_mut(&cookie) {
                    record.parts = Some(parts);
                    if let Some(waker) = record.waker.take() {
                        waker.wake();
                    }
                }
            }
            Event::TransferDone { id, result } => {
                if let Some(record) = self.0.transfers.borrow_mut().get_mut(&id) {
                    record.result = Some(result);
                    let is_lost = self.0.config.bug == Some(Bug::WakeLost) && self.is_eighth_wake();
                    if let Some(waker) = record.waker.take().filter(|_| !is_lost) {
                        waker.wake();
                    }
                }
            }
        }
    }

    /// For the seeded bug that loses wakes.
    fn is_eighth_wake(&self) -> bool {
        self.0.wakes.set(self.0.wakes.get() + 1);
        self.0.wakes.get().is_multiple_of(8)
    }

    fn on_message(&self, now: Instant, from: PeerId, bytes: SharedBuffer) {
        let one = |bytes: SharedBuffer| {
            let header = Header::parse(&bytes)?;
            self.on_item(now, from, header, bytes)
        };
        let result = if packet::is_packet(&bytes) {
            Packet::parse(&bytes).and_then(|mut items| items.try_for_each(|range| one(bytes.slice(range))))
        } else {
            one(bytes)
        };
        if let Err(error) = result {
            self.on_misbehaviour(now, from, error);
        }
    }

    fn on_misbehaviour(&self, now: Instant, from: PeerId, error: PeerMisbehaved) {
        let mut figures = self.0.figures.borrow_mut();
        figures.misbehaved += 1;
        figures.last_misbehaviour = Some((from, error));
        drop(figures);
        self.0.addb.event(now, AddbEvent::Misbehaved, 0, 0, 0);
        self.0.responder.borrow_mut().on_misbehaviour(now, from);
        self.forget_pending(from.endpoint);
        self.0.tm.borrow_mut().drop_peer(from);
        self.0.requester.borrow_mut().on_peer_lost(now, from.endpoint);
    }

    fn on_item(
        &self,
        now: Instant,
        from: PeerId,
        header: Header,
        bytes: SharedBuffer,
    ) -> Result<(), PeerMisbehaved> {
        if names_packets(header.kind) {
            self.0.readers.borrow_mut().insert(from.endpoint, header.request_id);
        }
        match header.kind {
            Kind::Request { .. } => return self.on_request(now, from, header, bytes),
            Kind::Cancel => return self.on_cancel(now, from, &header),
            Kind::OneWay { .. } => {
                if self.has_room() && self.service_state() == ServiceState::Running {
                    let deadline = now + Duration::from_millis(header.time_left_ms.into());
                    let (ticket, bulk) = (None, None);
                    self.start_or_queue(
                        now,
                        Request { ticket, peer: from, header, since: now, deadline, bulk, bytes },
                    );
                }
            }
            Kind::Reply { .. } => {
                let whom = self.0.requester.borrow_mut().handle_reply(now, from, &header)?;
                match whom {
                    ReplyFor::Call(id) => self.end_call(id, 0, |_| Ok((header, bytes))),
                    ReplyFor::Orphan(id) => {
                        for cookie in self.0.abandoned.borrow_mut().remove(&id).unwrap_or_default() {
                            self.0.tm.borrow_mut().settle(cookie);
                        }
                    }
                    ReplyFor::Nobody => {}
                }
            }
            Kind::Establish | Kind::Resume => self.on_wish(now, from, &header),
            Kind::Established { slots, lifetime_ms } => {
                let lifetime = Duration::from_millis(lifetime_ms.into());
                self.0.requester.borrow_mut().handle_established(now, from, &header, slots, lifetime, false);
            }
            Kind::Resumed { slots, lifetime_ms } => {
                let lifetime = Duration::from_millis(lifetime_ms.into());
                self.0.requester.borrow_mut().handle_established(now, from, &header, slots, lifetime, true);
            }
            Kind::Refused => self.0.requester.borrow_mut().handle_refused(from, &header),
            Kind::Ended => self.0.requester.borrow_mut().handle_ended(now, from, &header),
            Kind::Held { time_left_ms } => {
                let time_left = Duration::from_millis(time_left_ms.into());
                let held = self.0.requester.borrow_mut().handle_held(now, from, &header, time_left)?;
                if let Some(record) =
                    held.and_then(|id| self.0.calls.borrow().get(&id).map(|call| call.header))
                {
                    self.0.addb.phase(now, Phase::Held, record.request_id, opcode_of(record.kind), 0);
                }
            }
        }
        Ok(())
    }

    // ---- the answering side

    /// A peer wants a session, or the one back that it had.
    fn on_wish(&self, now: Instant, from: PeerId, header: &Header) {
        let mut responder = self.0.responder.borrow_mut();
        let nonce = header.xid;
        let decision = match header.kind {
            Kind::Resume => responder.handle_resume(now, from, nonce),
            _ => responder.handle_establish(now, from, nonce),
        };
        let slots = responder.slots();
        let lifetime_ms = u32::try_from(responder.session_lifetime().as_millis()).unwrap_or(u32::MAX);
        drop(responder);
        let answer = match decision {
            EstablishDecision::Established(id) => {
                Header::control(Kind::Established { slots, lifetime_ms }, id, 0, nonce)
            }
            EstablishDecision::Resumed(id) => {
                Header::control(Kind::Resumed { slots, lifetime_ms }, id, 0, nonce)
            }
            EstablishDecision::Refused => Header::control(Kind::Refused, SessionId(0), 0, nonce),
            EstablishDecision::Ignore => return,
        };
        self.send_control(now, from, answer);
        self.tell_forgotten();
    }

    /// Hands over the records of slots that were read after a restart, all at once: until then no session is resumed. For services
    /// whose handlers use [`Fom::record_in`] (`RpcConfig::durable_slots`).
    pub fn resume_sessions(&self, records: impl IntoIterator<Item = SlotRecord>) {
        let mut records: Vec<SlotRecord> = records.into_iter().collect();
        match self.0.config.bug {
            Some(Bug::SlotRecordsOff) => records.clear(),
            Some(Bug::LowestRecordWins) => {
                records.sort_by_key(|record| (record.name, record.slot, record.xid));
                records.dedup_by_key(|record| (record.name, record.slot));
            }
            _ => {}
        }
        self.0.responder.borrow_mut().adopt(self.0.locality.now(), records);
    }

    /// Waits until there are sessions whose records are of no use any more, and takes at most `count_max` of them.
    pub async fn forgotten_sessions(&self, count_max: usize) -> Vec<SessionName> {
        loop {
            let next = || self.0.responder.borrow_mut().poll_forgotten();
            let names: Vec<SessionName> = std::iter::from_fn(next).take(count_max).collect();
            if !names.is_empty() {
                return names;
            }
            self.0.forgotten_rung.notified().await;
        }
    }

    fn tell_forgotten(&self) {
        if self.0.responder.borrow().has_forgotten() {
            self.0.forgotten_rung.notify_one();
        }
    }

    /// Puts the record of a request's slot into the transaction of its effect.
    pub(crate) fn record_slot(&self, ticket: Ticket, result: &[u8], transaction: &mut dyn Transaction) {
        if self.0.config.durable_slots {
            self.0.responder.borrow_mut().on_record(self.0.locality.now(), ticket);
            if self.0.config.bug == Some(Bug::SlotRecordNotWritten) {
                return;
            }
            transaction.put_slot(&ticket.name().key(ticket.slot), &encode_value(ticket.xid, result));
        }
    }

    fn has_room(&self) -> bool {
        self.0.running.get() < self.0.config.foms_max
            || self.0.queue.borrow().len() < self.0.config.fom_queue_max
    }

    fn on_request(
        &self,
        now: Instant,
        from: PeerId,
        header: Header,
        bytes: SharedBuffer,
    ) -> Result<(), PeerMisbehaved> {
        let bulk = parse_bulk(&header, &bytes)?;
        let sink = bulk.as_ref().and_then(|bulk| bulk.sink.as_ref());
        let has_room = self.has_room();
        let mut decision = self.0.responder.borrow_mut().handle_request(now, from, &header, has_room)?;
        if matches!(decision, Decision::Resend(_)) && self.must_repeat(from, &header, sink) {
            // Without room the requester asks again.
            let ticket = has_room.then(|| self.0.responder.borrow_mut().repeat(from, &header)).flatten();
            if let (Some(_), Some(sink)) = (&ticket, sink) {
                self.0.tm.borrow_mut().forget_pushes(from, sink.cookie());
            }
            decision = ticket.map_or(Decision::Ignore, Decision::Execute);
        }
        if let Decision::Execute(ticket) = decision {
            let deadline = now + Duration::from_millis(header.time_left_ms.into());
            let ticket = Some(ticket);
            self.start_or_queue(
                now,
                Request { ticket, peer: from, header, since: now, deadline, bulk, bytes },
            );
        } else {
            let follows = sink.map(BulkDescriptor::cookie);
            self.answer_without_running(now, from, &header, decision, follows);
        }
        Ok(())
    }

    /// True if the kept reply to a request may tell of bytes that were lost with the rail they were pushed over, and the request may be
    /// run again.
    fn must_repeat(&self, from: PeerId, header: &Header, sink: Option<&BulkDescriptor>) -> bool {
        let (Some(sink), Kind::Request { opcode }) = (sink, header.kind) else { return false };
        let repeat = self.0.handlers.borrow().get(&opcode).map(|served| served.repeat);
        repeat == Some(Repeat::Idempotent) && !self.0.tm.borrow().are_pushes_intact(from, sink.cookie())
    }

    fn on_cancel(&self, now: Instant, from: PeerId, header: &Header) -> Result<(), PeerMisbehaved> {
        let decision = self.0.responder.borrow_mut().handle_cancel(now, from, header)?;
        // It may still wait for a fom: then it need not run.
        let is_it = |request: &Request| {
            request.peer == from
                && request.ticket.is_some_and(|ticket| {
                    (ticket.session, ticket.slot, ticket.xid) == (header.session, header.slot, header.xid)
                })
        };
        let mut queue = self.0.queue.borrow_mut();
        let waiting = queue.iter().position(is_it).and_then(|index| queue.remove(index));
        drop(queue);
        let decision = match waiting.and_then(|request| request.ticket) {
            Some(ticket) => {
                self.0.responder.borrow_mut().drop_request(ticket);
                self.wake_drained();
                Decision::Dropped
            }
            None => decision,
        };
        self.answer_without_running(now, from, header, decision, None);
        Ok(())
    }

    fn answer_without_running(
        &self,
        now: Instant,
        from: PeerId,
        header: &Header,
        decision: Decision<SharedBuffer>,
        follows: Option<BulkCookie>,
    ) {
        let (session, slot, xid) = (header.session, header.slot, header.xid);
        if let (Decision::Resend(_) | Decision::Replay(_) | Decision::ReplyGone, Kind::Request { opcode }) =
            (&decision, header.kind)
        {
            self.0.addb.phase(now, Phase::Answered, header.request_id, opcode, 0);
        }
        match decision {
            Decision::Resend(reply) => drop(self.send(now, from, true, Parcel { follows, ..reply.into() })),
            Decision::Replay(body) => {
                let kind = Kind::Reply { status: Status::Done };
                let reply = Header {
                    request_id: header.request_id,
                    config_version: self.config_version().get(),
                    body_bytes: length(body.len()),
                    ..Header::control(kind, session, slot, xid)
                };
                // Without a buffer the next resend tries again.
                match self.0.locality.arena().try_alloc(reply.item_bytes()) {
                    Some(mut item) => {
                        copy_counted(self.0.locality.counters(), &mut item[HEADER_BYTES..], &body);
                        reply.seal(&mut item);
                        let _ = self.send(now, from, true, item.freeze());
                    }
                    None => self.note_dropped(),
                }
            }
            Decision::Ended => {
                self.send_control(now, from, Header::control(Kind::Ended, session, slot, xid));
            }
            Decision::Dropped => {
                let kind = Kind::Reply { status: Status::Dropped };
                self.send_control(now, from, Header::control(kind, session, slot, xid));
            }
            Decision::ReplyGone => {
                let kind = Kind::Reply { status: Status::Failed };
                let reply =
                    Header { request_id: header.request_id, ..Header::control(kind, session, slot, xid) };
                let item = self.0.locality.arena().try_alloc(SMALL_ITEM_BYTES);
                match item.and_then(|item| self.seal_error(item, reply, &FopError::ReplyGone)) {
                    Some(message) => drop(self.send(now, from, true, message)),
                    None => self.note_dropped(),
                }
            }
            Decision::StillRunning => {
                let notice = self.0.holds.borrow_mut().answer_twin(now, session, slot, xid);
                if let Some(notice) = notice.filter(|_| self.reads(from.endpoint) >= reads::HELD) {
                    self.send_control(now, from, notice.header);
                }
            }
            Decision::Ignore | Decision::Execute(_) => {}
        }
    }

    /// A handler holds its request back, until `until` at the latest.
    pub(crate) fn begin_hold(&self, ticket: Option<Ticket>, place: FomPlace, until: Instant) {
        let now = self.0.locality.now();
        self.0.watchdog.borrow_mut().hold(place, until);
        if let Some(ticket) = ticket {
            self.0.holds.borrow_mut().begin(now, ticket, until);
        }
    }

    /// It does not any more.
    pub(crate) fn end_hold(&self, ticket: Option<Ticket>) {
        if let Some(ticket) = ticket {
            self.0.holds.borrow_mut().end(ticket);
        }
    }

    /// Tells those whose requests are held; how many.
    fn tell_holds(&self, now: Instant) -> usize {
        let mut told = 0;
        loop {
            let next = self.0.holds.borrow_mut().poll_notice(now);
            let Some(notice) = next else { break told };
            let peer = notice.ticket.peer;
            if self.reads(peer.endpoint) >= reads::HELD {
                told += 1;
                self.send_control(now, peer, notice.header);
            }
        }
    }

    /// Sends answers again to those who were told to wait and may have missed them; how many.
    fn repeat_answers(&self, now: Instant) -> usize {
        let mut repeated = 0;
        loop {
            let next = self.0.holds.borrow_mut().poll_repeat(now);
            let Some(repeat) = next else { break };
            let kept = self.0.responder.borrow().kept_reply(repeat.ticket);
            if let Some(reply) = kept {
                repeated += 1;
                self.0.holds.borrow_mut().repeated(now, repeat);
                let parcel = Parcel { follows: repeat.follows, ..reply.into() };
                let _ = self.send(now, repeat.ticket.peer, true, parcel); // lost: once more, later
            }
        }
        self.0.figures.borrow_mut().answers_repeated += u64::try_from(repeated).unwrap_or(u64::MAX);
        repeated
    }

    fn seal_error(&self, mut item: Buffer, reply: Header, error: &FopError) -> Option<SharedBuffer> {
        let used = codec::encode_into(error, item.get_mut(HEADER_BYTES..)?).ok()??;
        item.resize(HEADER_BYTES + used);
        let config_version = self.config_version().get();
        Header { body_bytes: length(used), config_version, ..reply }.seal(&mut item);
        Some(item.freeze())
    }

    fn start_or_queue(&self, now: Instant, request: Request) {
        if self.0.running.get() < self.0.config.foms_max {
            self.start_fom(now, request);
        } else {
            let Header { request_id, kind, .. } = request.header;
            self.0.addb.phase(now, Phase::Resources, request_id, opcode_of(kind), 0);
            self.0.queue.borrow_mut().push_back(request);
        }
    }

    /// Fills free places with waiting requests, oldest first.
    fn start_waiting(&self, now: Instant) {
        while self.0.running.get() < self.0.config.foms_max {
            let next = self.0.queue.borrow_mut().pop_front();
            let Some(request) = next else { break };
            self.start_fom(now, request);
        }
        self.wake_drained();
    }

    fn wake_drained(&self) {
        if self.0.running.get() == 0 && self.0.queue.borrow().is_empty() {
            for waker in std::mem::take(&mut *self.0.drained.borrow_mut()) {
                waker.wake();
            }
        }
    }

    fn start_fom(&self, now: Instant, request: Request) {
        let Request { ticket, peer, header, since, deadline, bulk, bytes } = request;
        if deadline <= now {
            // Nobody waits for it any more. Its slot says so to whoever asks.
            self.0.figures.borrow_mut().expired += 1;
            self.0.addb.phase(now, Phase::Expired, header.request_id, opcode_of(header.kind), 0);
            if let Some(ticket) = ticket {
                self.0.responder.borrow_mut().drop_request(ticket);
            }
            return;
        }
        let (Kind::Request { opcode } | Kind::OneWay { opcode }) = header.kind else { return };
        self.0.running.set(self.0.running.get() + 1);
        self.0.figures.borrow_mut().executed += 1;
        self.see_config_version(header.config_version);
        let phase = Phase::Authenticate;
        let running = RunningFom { request_id: header.request_id, opcode, peer, phase, since: now };
        let place = self.0.watchdog.borrow_mut().begin(running);
        let fom = FomInner {
            machine: self.clone(),
            peer,
            deadline,
            config_version: header.config_version,
            request_id: header.request_id,
            opcode,
            bulk,
            ticket,
            since,
            begun: now,
            place,
        };
        let served = self.0.handlers.borrow().get(&opcode).map(|served| Rc::clone(&served.start));
        match served {
            Some(start) => start(self, fom, bytes, header.body_range()),
            None => {
                let machine = self.clone();
                drop(self.0.locality.spawn("fom of a type that is not served", async move {
                    let fom = Fom::in_room(fom, None);
                    let reason = format!("opcode {opcode} is not served at {}", machine.endpoint());
                    fom.begin(Begun::REFUSED);
                    let refusal = match machine.begin_fom(&fom, false) {
                        Ok(()) => FopError::BadRequest { reason },
                        Err(error) => error,
                    };
                    machine.finish_fom(&fom, Err(refusal)).await;
                }));
            }
        }
    }

    /// What is asked of a fom before its body is decoded. `is_always`: its type is served while the service starts or drains, too.
    fn begin_fom(&self, fom: &Fom, is_always: bool) -> Result<(), FopError> {
        if !is_always || self.service_state() == ServiceState::Stopped {
            self.0.service.borrow().admit()?;
        }
        // Who may do everything, as all may that share a secret, is not held up by the table.
        let may_all = self.0.tm.borrow().rights(fom.peer()) == Rights::ALL;
        if !may_all && let Some(opcode) = Opcode::from_number(fom.0.opcode) {
            fom.require(opcode.needs())?;
        }
        if let Some(authorise) = &self.0.config.authorise {
            authorise(fom.peer(), fom.0.opcode)?;
        }
        let too_large = |bytes: u64| bytes > REQUEST_BULK_BYTES_MAX;
        let sink_bytes = fom.sink().map_or(0, BulkDescriptor::total_bytes);
        if too_large(fom.bulk_source_bytes()) || too_large(sink_bytes) {
            let reason = format!(
                "a request names {} bytes of source and {sink_bytes} of sink; at most {REQUEST_BULK_BYTES_MAX} each",
                fom.bulk_source_bytes()
            );
            return Err(FopError::BadRequest { reason });
        }
        Ok(())
    }

    /// Answers, keeps the answer, and lets the next request run.
    async fn finish_fom(&self, fom: &Fom, result: Result<Buffer, FopError>) {
        let is_leaked = self.0.config.bug == Some(Bug::FomPlaceLeaked) && result.is_err();
        let status = u32::from(result.is_err());
        if let Some(ticket) = fom.0.ticket {
            let kind = |status| Kind::Reply { status };
            let reply = Header {
                request_id: fom.request_id(),
                ..Header::control(kind(Status::Done), ticket.session, ticket.slot, ticket.xid)
            };
            let message = match result {
                Ok(mut item) => {
                    let config_version = self.config_version().get();
                    let source_bytes = fom.take_answer().item_bytes();
                    let body_bytes = length(item.len() - HEADER_BYTES - source_bytes);
                    let (is_inline, source_bytes) = (source_bytes > 0, short(source_bytes));
                    Header { is_inline, source_bytes, body_bytes, config_version, ..reply }.seal(&mut item);
                    Some(item.freeze())
                }
                Err(error) => {
                    fom.phase(Phase::Reply); // by itself: it may have to wait for memory
                    let failed = Header { kind: kind(Status::Failed), ..reply };
                    let small = self.seal_error(self.alloc(SMALL_ITEM_BYTES).await, failed, &error);
                    match small {
                        Some(message) => Some(message),
                        None => {
                            let reason = format!("an error too long to send: {:.200}", error.to_string());
                            let error = FopError::Internal { reason };
                            self.seal_error(self.alloc(SMALL_ITEM_BYTES).await, failed, &error)
                        }
                    }
                }
            };
            let now = self.0.locality.now();
            let follows = fom.sink().map(BulkDescriptor::cookie);
            self.0.holds.borrow_mut().answered(now, ticket, follows);
            if let Some(message) = message
                && self.0.responder.borrow_mut().finish(now, ticket, message.clone())
            {
                // A resent reply names none: the requester's own invalidation or the end of the connection takes care of that.
                let invalidates = fom.concluded();
                let (exposes, request_id) = (Cookies::new(), fom.request_id());
                let parcel = Parcel { message, exposes, invalidates, request_id, call: None, follows: None };
                let _ = self.send(now, ticket.peer, true, parcel); // lost: the resend finds it in the cache
            }
        }
        self.0.afterwards.note(Ended {
            at: self.0.locality.now(),
            request_id: fom.request_id(),
            opcode: fom.0.opcode,
            status,
            since: fom.0.since,
            whose: Whose::Fom { place: fom.0.place, is_leaked },
        });
    }

    /// This turn's messages have left: what nobody waited for.
    fn settle(&self, now: Instant) {
        self.tell_forgotten();
        self.0.responder.borrow_mut().let_go_of_spent();
        let mut foms = 0;
        let forget = |call| drop(self.0.calls.borrow_mut().remove(&call));
        self.0.afterwards.settle(forget, |ended| {
            let Ended { at, request_id, opcode, status, since, whose } = ended;
            const DONE: Steps = Steps::new(&[Phase::Reply], Phase::Done);
            match (whose, status) {
                (Whose::Call, _) => self.0.addb.phase(at, Phase::Replied, request_id, opcode, status),
                (Whose::Fom { .. }, 0) => self.0.addb.steps(at, DONE, request_id, opcode, status),
                (Whose::Fom { .. }, _) => self.0.addb.phase(at, Phase::Done, request_id, opcode, status),
            }
            self.0.addb.ended(at, ended.side(), opcode, since);
            if let Whose::Fom { place, is_leaked } = whose {
                self.0.watchdog.borrow_mut().end(place);
                self.0.running.set(self.0.running.get() - usize::from(!is_leaked));
                foms += 1;
            }
        });
        if foms > 0 {
            self.start_waiting(now);
        }
    }

    // ---- bulk, active side

    pub(crate) fn start_pull(&self, peer: PeerId, from: &BulkDescriptor, deadline: Instant) -> TransferWait {
        let id = self.0.tm.borrow_mut().start_pull(self.0.locality.now(), peer, from, deadline);
        self.transfer(id)
    }

    pub(crate) fn start_push(
        &self,
        peer: PeerId,
        to: &BulkDescriptor,
        first_segment: usize,
        parts: Vec<SharedBuffer>,
        deadline: Instant,
    ) -> TransferWait {
        let now = self.0.locality.now();
        let id = self.0.tm.borrow_mut().start_push(now, peer, to, first_segment, parts, deadline);
        self.transfer(id)
    }

    fn transfer(&self, id: TransferId) -> TransferWait {
        self.0.transfers.borrow_mut().insert(id, TransferRecord::default());
        TransferWait { machine: self.clone(), id }
    }
}

impl fmt::Debug for RpcMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rpc machine at {}", self.0.endpoint)
    }
}

const EMPTY: Header = Header {
    kind: Kind::Establish,
    session: SessionId(0),
    slot: 0,
    xid: Xid(0),
    time_left_ms: 0,
    config_version: 0,
    request_id: 0,
    is_inline: false,
    source_bytes: 0,
    sink_bytes: 0,
    body_bytes: 0,
};

/// Words of session control in which each side says what it reads, in `request id`: [`reads`].
const fn names_packets(kind: Kind) -> bool {
    matches!(kind, Kind::Establish | Kind::Resume | Kind::Established { .. } | Kind::Resumed { .. })
}

/// The number of an item's fop; 0 where it has none.
const fn opcode_of(kind: Kind) -> u16 {
    match kind {
        Kind::Request { opcode } | Kind::OneWay { opcode } => opcode,
        _ => 0,
    }
}

/// A length that fits, because no item is longer than a message.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// A descriptor's length, which fits: `verbs_net::DESCRIPTOR_BYTES_MAX` is below 64 KiB.
fn short(bytes: usize) -> u16 {
    u16::try_from(bytes).unwrap_or(u16::MAX)
}

/// `None`: the buffer is too small.
fn encode_behind<T: codec::Encode>(
    front: usize,
    body: &T,
    mut item: Buffer,
) -> Result<Option<Buffer>, CodecError> {
    let room = item.get_mut(front..).unwrap_or_default();
    Ok(codec::encode_into(body, room)?.map(|used| {
        item.resize(front + used);
        item
    }))
}

fn too_long<T: codec::Encode>(front: usize, body: &T) -> CodecError {
    match codec::encode(body) {
        Ok(bytes) => CodecError::TooLong { bytes: front + bytes.len() },
        Err(error) => error,
    }
}

/// What a request says of bulk; `None` of most.
fn parse_bulk(header: &Header, item: &SharedBuffer) -> Result<Option<Box<RequestBulk>>, PeerMisbehaved> {
    if header.source_bytes == 0 && header.sink_bytes == 0 && !header.is_inline {
        return Ok(None);
    }
    let mut bulk = RequestBulk { source: None, inline: None, sink: None, answer: RefCell::default() };
    if header.is_inline {
        let bytes = item.slice(header.source_range());
        let inline = Inline::parse(&bytes)?;
        if inline.first_segment != 0 {
            let value = wide(inline.first_segment);
            return Err(PeerMisbehaved::Field { name: "first segment of a source", value });
        }
        bulk.inline = Some(InlineSource { inline, bytes: RefCell::new(InlineBytes::Item(bytes)) });
    } else {
        bulk.source = parse_descriptor(&item[header.source_range()])?;
    }
    bulk.sink = parse_descriptor(&item[header.sink_range()])?;
    Ok(Some(Box::new(bulk)))
}

fn parse_descriptor(bytes: &[u8]) -> Result<Option<BulkDescriptor>, PeerMisbehaved> {
    if bytes.is_empty() {
        return Ok(None);
    }
    BulkDescriptor::parse(bytes)
        .map(Some)
        .map_err(|error| PeerMisbehaved::Descriptor { bytes: bytes.len(), reason: error.to_string() })
}

fn check_bulk(operation: &'static str, bulk: &Bulk) -> Result<(), CallError> {
    let source: u64 = bulk.source.iter().map(|part| wide(part.len())).sum();
    let sink: u64 = bulk.sink.iter().map(|part| wide(part.len())).sum();
    let segments = bulk.source.len().max(bulk.sink.len());
    if segments > BULK_SEGMENTS_MAX || source.max(sink) > REQUEST_BULK_BYTES_MAX {
        let reason = format!(
            "{source} bytes of source and {sink} of sink in {segments} segments; at most {REQUEST_BULK_BYTES_MAX} bytes in \
             {BULK_SEGMENTS_MAX} segments each"
        );
        return Err(CallError::BadCall { operation, reason });
    }
    if bulk.source.iter().any(|part| part.is_empty()) || bulk.sink.iter().any(|part| part.is_empty()) {
        return Err(CallError::BadCall { operation, reason: "a bulk segment is empty".to_owned() });
    }
    Ok(())
}

/// Bulk that a peer may touch; not any more once this is dropped.
struct Exposed {
    machine: RpcMachine,
    source: Option<BulkCookie>,
    sink: Option<BulkCookie>,
    source_bytes: Vec<u8>,
    sink_bytes: Vec<u8>,
    /// A source that is not exposed, because it travels in the request.
    inline_source: Vec<SharedBuffer>,
}

impl Exposed {
    fn new(machine: &RpcMachine, bulk: Bulk, is_inline: bool) -> Exposed {
        let mut exposed = Exposed {
            machine: machine.clone(),
            source: None,
            sink: None,
            source_bytes: Vec::new(),
            sink_bytes: Vec::new(),
            inline_source: Vec::new(),
        };
        let mut tm = machine.0.tm.borrow_mut();
        if is_inline {
            exposed.inline_source = bulk.source;
        } else if !bulk.source.is_empty() {
            let descriptor = tm.expose_source(&bulk.source);
            exposed.source = Some(descriptor.cookie());
            exposed.source_bytes = descriptor.to_bytes();
        }
        if !bulk.sink.is_empty() {
            let descriptor = tm.expose_sink(bulk.sink);
            exposed.sink = Some(descriptor.cookie());
            exposed.sink_bytes = descriptor.to_bytes();
        }
        drop(tm);
        exposed
    }

    fn cookies(&self) -> Cookies {
        self.source.into_iter().chain(self.sink).collect()
    }

    /// Ends the exposure of an answered call; the sink's content, once no hardware can touch it.
    async fn take_back(mut self) -> Result<Vec<SharedBuffer>, NetError> {
        if let Some(source) = self.source.take() {
            let _ = self.retract(source, Retract::Answered); // pending or not: nobody waits for a source
        }
        let Some(sink) = self.sink.take() else { return Ok(Vec::new()) };
        match self.retract(sink, Retract::Answered) {
            Retraction::Done(parts) => Ok(parts),
            Retraction::Broken(error) => Err(error),
            Retraction::Unknown => Ok(Vec::new()),
            Retraction::Pending => {
                self.machine.0.retractions.borrow_mut().insert(sink, RetractionRecord::default());
                RetractionWait { machine: self.machine.clone(), cookie: sink }.await
            }
        }
    }

    fn retract(&self, cookie: BulkCookie, how: Retract) -> Retraction {
        let now = self.machine.0.locality.now();
        self.machine.0.tm.borrow_mut().retract(now, cookie, how)
    }
}

impl Drop for Exposed {
    fn drop(&mut self) {
        for cookie in [self.source.take(), self.sink.take()].into_iter().flatten() {
            // Memory that hardware may still touch comes back by an event, to nobody.
            drop(self.retract(cookie, Retract::Abandoned));
        }
    }
}

/// Waits until no hardware can touch a sink any more.
struct RetractionWait {
    machine: RpcMachine,
    cookie: BulkCookie,
}

impl Future for RetractionWait {
    type Output = Result<Vec<SharedBuffer>, NetError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut retractions = self.machine.0.retractions.borrow_mut();
        let Some(record) = retractions.get_mut(&self.cookie) else { return Poll::Pending };
        match record.parts.take() {
            Some(parts) => Poll::Ready(parts),
            None => {
                record.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for RetractionWait {
    fn drop(&mut self) {
        let record = self.machine.0.retractions.borrow_mut().remove(&self.cookie);
        drop(record);
    }
}

/// Waits for the end of a call. Dropped before, it leaves an orphan in the slot.
struct CallWait {
    machine: RpcMachine,
    id: CallId,
    is_done: bool,
}

impl Future for CallWait {
    type Output = CallEnd;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut calls = self.machine.0.calls.borrow_mut();
        let Some(record) = calls.get_mut(&self.id) else { return Poll::Pending };
        match record.result.take() {
            Some(result) => {
                drop(calls);
                self.machine.0.afterwards.let_go_of_call(self.id);
                self.is_done = true;
                Poll::Ready(result)
            }
            None => {
                record.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for CallWait {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        let record = self.machine.0.calls.borrow_mut().remove(&self.id);
        let now = self.machine.0.locality.now();
        if let Some(record) = &record {
            let (request_id, opcode) = (record.header.request_id, opcode_of(record.header.kind));
            if record.result.is_none() {
                self.machine.0.addb.phase(now, Phase::Cancelled, request_id, opcode, 0);
            }
            self.machine.abandon(self.id, &record.exposes);
        }
        self.machine.0.requester.borrow_mut().cancel(now, self.id);
        drop(record);
    }
}

/// Waits for the end of a transfer.
pub(crate) struct TransferWait {
    machine: RpcMachine,
    id: TransferId,
}

impl Future for TransferWait {
    type Output = Result<Vec<SharedBuffer>, NetError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut transfers = self.machine.0.transfers.borrow_mut();
        let Some(record) = transfers.get_mut(&self.id) else { return Poll::Pending };
        match record.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                record.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for TransferWait {
    fn drop(&mut self) {
        let record = self.machine.0.transfers.borrow_mut().remove(&self.id);
        drop(record);
    }
}

/// The machine as its locality polls it.
struct MachineDriver {
    machine: RpcMachine,
    /// What the transfer machine took in when it was looked at between turns.
    seen: usize,
    /// When [`RpcMachine::handle_timeouts`] has to run next, as of the end of the last turn.
    due: Cell<Instant>,
}

impl Driver for MachineDriver {
    fn poll(&mut self, now: Instant, budget: usize) -> usize {
        let inner = &self.machine.0;
        let mut handled = std::mem::take(&mut self.seen);
        if handled == 0 {
            handled = inner.tm.borrow_mut().poll(now, budget);
        }
        loop {
            let next = inner.tm.borrow_mut().next_event();
            let Some(event) = next else { break };
            handled += 1;
            self.machine.handle_event(now, event);
        }
        // What came in may have brought a deadline forward; the next turn, which begins at once then, is in time for it.
        if self.due.get() <= now {
            handled += self.machine.handle_timeouts(now);
        }
        handled
    }

    fn look(&mut self, now: Instant) -> bool {
        let (seen, has_output) =
            self.machine.0.tm.borrow_mut().look(now, runtime::limits::DRIVER_EVENTS_PER_TURN);
        self.seen += seen;
        seen > 0 || has_output
    }

    fn flush(&mut self, now: Instant) {
        self.machine.pump(now); // requests and replies made in this turn leave in this turn
        while self.machine.form(now) {
            self.machine.pump(now);
        }
        self.machine.0.tm.borrow_mut().flush(now);
        self.machine.settle(now);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let inner = &self.machine.0;
        let of_transport = inner.tm.borrow().next_deadline();
        let of_calls = inner.requester.borrow().next_deadline();
        let of_sessions = inner.responder.borrow().next_deadline();
        let of_foms = inner.watchdog.borrow().next_deadline();
        let of_packets = inner.formation.borrow().next_deadline();
        let of_holds = inner.holds.borrow().next_deadline();
        let due = [of_calls, of_sessions, of_foms, of_packets, of_holds].into_iter().flatten().min();
        self.due.set(due.unwrap_or(Instant::NEVER));
        due.into_iter().chain(of_transport).min()
    }

    fn wait_fd(&self) -> Option<RawFd> {
        self.machine.0.tm.borrow().wait_fd()
    }

    fn before_sleep(&mut self) -> bool {
        self.machine.0.tm.borrow_mut().before_sleep()
    }
}

impl Drop for MachineDriver {
    fn drop(&mut self) {
        // Handlers hold what they serve, which may hold this machine: the ring of references is cut with the locality.
        let handlers = std::mem::take(&mut *self.machine.0.handlers.borrow_mut());
        let queue = std::mem::take(&mut *self.machine.0.queue.borrow_mut());
        drop((handlers, queue));
    }
}
