//! A fom: the state machine of one request at its server. Its future is the handler's; this is what the handler sees of it.
//!
//! Phases: `resources` (it waits for a place among the foms; only if it has to), `authenticate` (the transfer machine knew the
//! peer before the first byte), `authorise` (its rights), `decode`, `run`, the type's own ([`Fom::phase`]), `durable` ([`Fom::durable`],
//! where it changed something), `reply`, `done`. Each is recorded with its time in the locality's ring ([`crate::addb`]), and the watchdog
//! names the phase of a fom that stays at one for too long.
//! Thread: the owning locality.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use base::{Instant, Right};
use fops::{FopError, codec};
use runtime::{SharedBuffer, copy_counted};
use verbs_net::{BulkCookie, BulkDescriptor, LocalError, NetError, PeerId};

use crate::addb::{Phase, Steps};
use crate::inline::{Inline, inline_bytes};
use crate::limits;
use crate::machine::RpcMachine;
use crate::responder::Ticket;
use crate::slot_record::Transaction;
use crate::watchdog::FomPlace;

/// One request that runs. Clones are the same fom.
#[derive(Clone)]
pub struct Fom(pub(crate) Rc<FomInner>);

pub(crate) struct FomInner {
    pub(crate) machine: RpcMachine,
    pub(crate) peer: PeerId,
    pub(crate) deadline: Instant,
    pub(crate) config_version: u64,
    pub(crate) request_id: u64,
    pub(crate) opcode: u16,
    /// On the heap: most requests have none, and a fom is moved from hand to hand before it runs.
    pub(crate) bulk: Option<Box<RequestBulk>>,
    /// `None`: one-way.
    pub(crate) ticket: Option<Ticket>,
    /// When it arrived.
    pub(crate) since: Instant,
    /// When it got its place among the foms.
    pub(crate) begun: Instant,
    /// At the watchdog.
    pub(crate) place: FomPlace,
}

/// How far a fom came when its task began it.
#[derive(Clone, Copy)]
pub(crate) struct Begun {
    at_once: Steps,
    /// Without `authenticate`, which has a record of its own then.
    later: Steps,
}

impl Begun {
    /// It may not do that, or not now.
    pub(crate) const REFUSED: Begun = Begun {
        at_once: Steps::new(&[Phase::Authenticate], Phase::Authorise),
        later: Steps::new(&[], Phase::Authorise),
    };
    /// Its body is not one.
    pub(crate) const UNREADABLE: Begun = Begun {
        at_once: Steps::new(&[Phase::Authenticate, Phase::Authorise], Phase::Decode),
        later: Steps::new(&[Phase::Authorise], Phase::Decode),
    };
    /// Its handler begins.
    pub(crate) const RUNS: Begun = Begun {
        at_once: Steps::new(&[Phase::Authenticate, Phase::Authorise, Phase::Decode], Phase::Run),
        later: Steps::new(&[Phase::Authorise, Phase::Decode], Phase::Run),
    };
}

/// The memory of a fom that ended.
pub(crate) struct FomRoom(Rc<FomInner>);

/// What a request's bulk is, and what of it the reply brings.
pub(crate) struct RequestBulk {
    pub(crate) source: Option<BulkDescriptor>,
    /// A source that came with the request.
    pub(crate) inline: Option<InlineSource>,
    pub(crate) sink: Option<BulkDescriptor>,
    /// What the reply brings for the sink.
    pub(crate) answer: RefCell<InlineAnswer>,
}

/// Bulk that came inside of a request.
pub(crate) struct InlineSource {
    pub(crate) inline: Inline,
    pub(crate) bytes: RefCell<InlineBytes>,
}

/// Where it is.
pub(crate) enum InlineBytes {
    /// In the request, of which this is the part.
    Item(SharedBuffer),
    /// In memory of its own.
    Parts(Vec<SharedBuffer>),
}

/// Bulk that travels inside of the reply: segments in a row, from one on.
#[derive(Default)]
pub(crate) struct InlineAnswer {
    pub(crate) first_segment: usize,
    pub(crate) parts: Vec<SharedBuffer>,
}

impl InlineAnswer {
    /// Bytes in the reply; 0 for none.
    pub(crate) fn item_bytes(&self) -> usize {
        inline_bytes(self.parts.iter().map(|part| part.len())).unwrap_or(0)
    }

    /// Takes more parts if they continue those before and all are at most `bytes_max`. False: they have to be pushed.
    fn try_add(&mut self, first_segment: usize, parts: &[SharedBuffer], bytes_max: usize) -> bool {
        let all = self.parts.iter().chain(parts).map(|part| part.len());
        let is_next = self.parts.is_empty() || first_segment == self.first_segment + self.parts.len();
        if !is_next || all.clone().sum::<usize>() > bytes_max || inline_bytes(all).is_none() {
            return false;
        }
        if self.parts.is_empty() {
            self.first_segment = first_segment;
        }
        self.parts.extend_from_slice(parts);
        true
    }
}

impl Fom {
    /// A fom, in the memory of one that ended before, if there is some.
    pub(crate) fn in_room(fom: FomInner, room: Option<FomRoom>) -> Fom {
        let Some(FomRoom(mut room)) = room else { return Fom(Rc::new(fom)) };
        match Rc::get_mut(&mut room) {
            Some(inner) => {
                *inner = fom;
                Fom(room)
            }
            None => Fom(Rc::new(fom)),
        }
    }

    /// Its memory, for the next: without what it held of others' memory. `None`: somebody else still holds the fom.
    pub(crate) fn into_room(mut self) -> Option<FomRoom> {
        let inner = Rc::get_mut(&mut self.0)?;
        inner.bulk = None;
        Some(FomRoom(self.0))
    }

    fn source(&self) -> Option<&BulkDescriptor> {
        self.0.bulk.as_ref()?.source.as_ref()
    }

    fn inline(&self) -> Option<&InlineSource> {
        self.0.bulk.as_ref()?.inline.as_ref()
    }

    pub(crate) fn sink(&self) -> Option<&BulkDescriptor> {
        self.0.bulk.as_ref()?.sink.as_ref()
    }

    /// The exposure that ends with the reply: a sink before a source, as it is what the requester waits for.
    pub(crate) fn concluded(&self) -> Option<BulkCookie> {
        self.sink().or(self.source()).map(BulkDescriptor::cookie)
    }

    /// What the reply brings for the sink: taken out.
    pub(crate) fn take_answer(&self) -> InlineAnswer {
        self.0.bulk.as_ref().map(|bulk| bulk.answer.take()).unwrap_or_default()
    }

    /// Who asks: authenticated by the transfer machine.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.0.peer
    }

    /// Whether the requester has a right: services ask where a body needs more than its opcode (`Opcode::more`).
    ///
    /// # Errors
    /// `NotPermitted`, which says which right is missing.
    pub fn require(&self, right: Right) -> Result<(), FopError> {
        self.0.machine.check_right(self.0.peer, self.0.opcode, right)
    }

    /// When the requester gives up, on this side's clock.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.0.deadline
    }

    /// The configuration version that the requester holds.
    #[must_use]
    pub fn config_version(&self) -> u64 {
        self.0.config_version
    }

    /// The requester's name for the request, in traces of client and servers.
    #[must_use]
    pub fn request_id(&self) -> u64 {
        self.0.request_id
    }

    /// The machine that runs it, for calls to others.
    #[must_use]
    pub fn machine(&self) -> &RpcMachine {
        &self.0.machine
    }

    /// The request enters a phase.
    pub fn phase(&self, phase: Phase) {
        let at = self.0.machine.locality().now();
        self.0.machine.enter_phase(at, self.0.place, phase);
        self.0.machine.addb().phase(at, phase, self.0.request_id, self.0.opcode, 0);
    }

    /// The fom's task begins: `authenticate` it passed when it got its place, the other phases now. One record, unless it had to wait for its task.
    pub(crate) fn begin(&self, begun: Begun) {
        let FomInner { machine, place, request_id, opcode, begun: begun_at, .. } = &*self.0;
        let now = machine.locality().now();
        machine.enter_phase(now, *place, begun.later.last);
        let mut steps = begun.at_once;
        if now != *begun_at {
            machine.addb().phase(*begun_at, Phase::Authenticate, *request_id, *opcode, 0);
            steps = begun.later;
        }
        machine.addb().steps(now, steps, *request_id, *opcode, 0);
    }

    /// The handler holds the request back on purpose until `until` at the latest, for news or for a lock: while what this gives lives the requester
    /// is told so and does not ask again, and the watchdog does not call the fom hung. The phase is `hold`, and `go-on` after it.
    #[must_use = "the request is held while this lives"]
    pub fn hold(&self, until: Instant) -> Hold {
        self.phase(Phase::Hold);
        self.0.machine.begin_hold(self.0.ticket, self.0.place, until);
        Hold(self.clone())
    }

    /// Binds the request to the transaction of its effect: the number and `reply`, which has to be what the handler answers once the
    /// transaction is durable, go into it. After a restart of the server a resend finds them and is answered, and does
    /// not run. Nothing where slots are not durable (`RpcConfig::durable_slots`).
    ///
    /// Errors: `Internal`, if the reply does not encode.
    pub fn record_in<R: codec::Encode>(
        &self,
        transaction: &mut dyn Transaction,
        reply: &R,
    ) -> Result<(), FopError> {
        let Some(ticket) = self.0.ticket else { return Ok(()) };
        let result = codec::encode(reply)
            .map_err(|error| FopError::Internal { reason: format!("a reply does not encode: {error}") })?;
        self.0.machine.record_slot(ticket, &result, transaction);
        Ok(())
    }

    /// True if the request may have run before a restart of this process: it is the first in its slot since then, and there was no record of it among those
    /// that were read ([`RpcMachine::resume_sessions`]). A handler whose effect, and so its record, may stand where nobody can read it now answers
    /// [`Fom::doubt`] before it looks at anything else: it cannot say that the request did not run.
    #[must_use]
    pub fn may_have_run(&self) -> bool {
        self.0.ticket.is_some_and(|ticket| ticket.is_first)
    }

    /// The answer to a request of which nobody here knows whether it ran ([`Fom::may_have_run`]). It enters the phase `doubted`, and is not to run.
    #[must_use]
    pub fn doubt(&self) -> FopError {
        self.phase(Phase::Doubted);
        FopError::ReplyGone
    }

    /// The request enters the phase `durable`: its change is on the device, with its slot's record.
    pub fn durable(&self) {
        self.phase(Phase::Durable);
        self.0.machine.note_durable();
    }

    /// Bytes that [`Fom::pull`] will bring: 0 if the request has no source.
    #[must_use]
    pub fn bulk_source_bytes(&self) -> u64 {
        match self.inline() {
            Some(source) => source.inline.total_bytes(),
            None => self.source().map_or(0, BulkDescriptor::total_bytes),
        }
    }

    /// Lengths of the segments that [`Fom::pull`] will bring.
    #[must_use]
    pub fn source_segment_lengths(&self) -> &[u32] {
        match self.inline() {
            Some(source) => &source.inline.lengths,
            None => self.source().map_or(&[], BulkDescriptor::segment_lengths),
        }
    }

    /// Lengths of the segments that [`Fom::push`] can fill.
    #[must_use]
    pub fn sink_segment_lengths(&self) -> &[u32] {
        self.sink().map_or(&[], BulkDescriptor::segment_lengths)
    }

    /// Moves the request's bulk here: one buffer per segment of its source. Nothing if it has none. What came inside of the request is copied into
    /// memory of its own, aligned as a device wants it.
    ///
    /// Errors: `Bulk`, when the transfer fails or the deadline passes.
    pub async fn pull(&self) -> Result<Vec<SharedBuffer>, FopError> {
        if let Some(source) = self.inline() {
            return Ok(self.unpack(source).await);
        }
        let Some(source) = self.source() else { return Ok(Vec::new()) };
        let mut tries = Tries::new(self);
        loop {
            let transfer = self.0.machine.start_pull(self.0.peer, source, tries.try_until());
            match transfer.await {
                Ok(parts) => return Ok(parts),
                Err(error) => {
                    tries.after(error).await.map_err(|error| self.bulk_error("pull from", &error))?
                }
            }
        }
    }

    async fn unpack(&self, source: &InlineSource) -> Vec<SharedBuffer> {
        let item = match &*source.bytes.borrow() {
            InlineBytes::Item(item) => item.clone(),
            InlineBytes::Parts(parts) => return parts.clone(),
        };
        let mut parts = Vec::new();
        for (_, range) in source.inline.places() {
            let mut part = self.0.machine.alloc(range.len()).await;
            copy_counted(self.0.machine.locality().counters(), &mut part, &item[range]);
            parts.push(part.freeze());
        }
        // The item's memory goes back; a second pull gives the same.
        *source.bytes.borrow_mut() = InlineBytes::Parts(parts.clone());
        parts
    }

    /// Moves `parts` into the request's sink: part i fills segment `first_segment + i`, of the same length. Few bytes travel with the reply, if it is
    /// one of success; the others are there when this returns.
    ///
    /// Errors: `Bulk`, when the transfer fails or the deadline passes; `BadRequest` if the request has no such segments;
    /// `Internal` if lengths differ.
    pub async fn push(&self, first_segment: usize, parts: Vec<SharedBuffer>) -> Result<(), FopError> {
        if parts.is_empty() {
            return Ok(());
        }
        let lengths = self.sink_segment_lengths();
        let wanted = lengths.get(first_segment..).and_then(|rest| rest.get(..parts.len()));
        let (Some(bulk), Some(sink), Some(lengths)) = (&self.0.bulk, self.sink(), wanted) else {
            let reason = format!(
                "the request has a sink of {} segments, and segments {first_segment} to {} are to be filled",
                lengths.len(),
                first_segment + parts.len()
            );
            return Err(FopError::BadRequest { reason });
        };
        for (part, length) in parts.iter().zip(lengths) {
            if u32::try_from(part.len()) != Ok(*length) {
                let reason = format!("a part of {} bytes for a segment of {length}", part.len());
                return Err(FopError::Internal { reason });
            }
        }
        let bytes_max = self.0.machine.inline_bytes_to(self.0.peer.endpoint);
        if self.0.ticket.is_some() && bulk.answer.borrow_mut().try_add(first_segment, &parts, bytes_max) {
            return Ok(());
        }
        self.transfer(sink, first_segment, parts).await
    }

    /// The reply has no room for what was meant to travel with it.
    pub(crate) async fn push_instead(&self) -> Result<(), FopError> {
        let InlineAnswer { first_segment, parts } = self.take_answer();
        match self.sink() {
            Some(sink) if !parts.is_empty() => self.transfer(sink, first_segment, parts).await,
            _ => Ok(()),
        }
    }

    async fn transfer(
        &self,
        sink: &BulkDescriptor,
        first_segment: usize,
        parts: Vec<SharedBuffer>,
    ) -> Result<(), FopError> {
        let mut tries = Tries::new(self);
        loop {
            let until = tries.try_until();
            let transfer = self.0.machine.start_push(self.0.peer, sink, first_segment, parts.clone(), until);
            match transfer.await {
                Ok(_) => return Ok(()),
                Err(error) => tries.after(error).await.map_err(|error| self.bulk_error("push to", &error))?,
            }
        }
    }

    fn bulk_error(&self, what: &str, error: &NetError) -> FopError {
        FopError::Bulk { reason: format!("{what} {}: {error}", self.0.peer.endpoint) }
    }
}

impl fmt::Debug for Fom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fom {:#x} opcode {} of {}", self.0.request_id, self.0.opcode, self.0.peer.endpoint)
    }
}

/// A request that its handler holds back; over when this is dropped.
#[derive(Debug)]
pub struct Hold(Fom);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.0.machine.end_hold(self.0.0.ticket);
        self.0.phase(Phase::GoOn);
    }
}

/// A transfer moves the same bytes however often it is tried: it is, while that may help and the requester still waits.
struct Tries<'a> {
    fom: &'a Fom,
    time_limit: Duration,
    pause: Duration,
    lost_count: u32,
}

impl Tries<'_> {
    fn new(fom: &Fom) -> Tries<'_> {
        let time_limit = fom.0.machine.bulk_try();
        Tries { fom, time_limit, pause: limits::BULK_PAUSE, lost_count: 0 }
    }

    fn try_until(&mut self) -> Instant {
        let until = self.fom.0.machine.locality().now() + self.time_limit;
        self.time_limit *= 2;
        until.min(self.fom.0.deadline)
    }

    /// Gives the error back if another try does not help; else returns when it is time for one.
    async fn after(&mut self, error: NetError) -> Result<(), NetError> {
        let locality = self.fom.0.machine.locality();
        let may_help = match &error {
            NetError::RemoteTimeout => true, // a frame was lost
            NetError::RemoteDropped | NetError::Unreachable { .. } => {
                self.lost_count += 1;
                self.lost_count <= limits::BULK_LOST_TRIES_MAX
            }
            NetError::Local(local) => !matches!(local, LocalError::PartLength { .. }),
            _ => false,
        };
        if !may_help || locality.now() + self.pause >= self.fom.0.deadline {
            return Err(error);
        }
        if error != NetError::RemoteTimeout {
            locality.sleep(self.pause).await;
            self.pause *= 2;
        }
        Ok(())
    }
}
