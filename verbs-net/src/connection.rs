//! One connection: phase, credits, liveness and what waits to go out. No I/O: a backend carries the frames.
//!
//! Credits are absolute, wrapping counters. A message carries its number (`sequence`); every frame carries the number of
//! the last message consumed. So a lost frame of either kind heals with the next one, or with a ping.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::units::narrow;
use base::{Endpoint, Instant, Nid};
use runtime::SharedBuffer;
use smallvec::SmallVec;

use crate::descriptor::BulkCookie;
use crate::error::PeerMisbehaved;
use crate::frame::{CHECKSUM_AT, Frame, FrameBody, HEADER_BYTES, VERSION_MIN, counter_distance};
use crate::hello::HELLO_BYTES;
use crate::limits::{CREDIT_RESERVE, CREDIT_WINDOW, EXPOSES_MAX, NetTimes, ms};
use crate::machine::{Lane, TransferId};
use crate::remote::RemoteTable;
use crate::security::{Identity, Opener};

/// Names one connection of one machine; a closed one's name is not reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ConnectionId(pub(crate) u64);

impl ConnectionId {
    /// The connection that has `place` for the so manieth time.
    pub(crate) fn new(generation: u32, place: u32) -> ConnectionId {
        ConnectionId(u64::from(generation) << 32 | u64::from(place))
    }

    /// Its place among the machine's connections: one has it at a time.
    pub(crate) fn place(self) -> usize {
        narrow(self.0 & 0xffff_ffff)
    }

    pub(crate) fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection {}", self.0)
    }
}

/// What follows a header.
#[derive(Clone)]
pub(crate) enum Payload {
    None,
    Hello(Box<[u8; HELLO_BYTES]>),
    Bytes(SharedBuffer),
    /// A few bytes that no arena holds: seals.
    Small(Box<[u8]>),
    /// A message behind its remote segments, where the two need not lie in one buffer.
    Extended {
        extension: Box<[u8]>,
        message: SharedBuffer,
    },
}

impl Payload {
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Payload::None => &[],
            Payload::Hello(bytes) => &bytes[..],
            Payload::Bytes(bytes) => bytes,
            Payload::Small(bytes) => bytes,
            // Only backends with remote access make these, and they send both parts.
            Payload::Extended { message, .. } => message,
        }
    }

    /// Bytes on the wire.
    pub(crate) fn len(&self) -> usize {
        match self {
            Payload::Extended { extension, message } => extension.len() + message.len(),
            other => other.as_slice().len(),
        }
    }
}

/// A frame on its way out. Credits are stamped when it leaves.
pub(crate) struct Outgoing {
    pub(crate) body: FrameBody,
    pub(crate) payload: Payload,
    /// A push that is complete, as far as we are concerned, when this frame has been handed to the net.
    pub(crate) completes: Option<TransferId>,
    /// A message: what a backend with remote access binds and puts in front of it, and what it tells the peer's hardware to
    /// invalidate.
    pub(crate) exposes: Exposes,
    pub(crate) invalidates: Option<BulkCookie>,
    /// By a fault rule: its checksum goes out wrong.
    pub(crate) is_damaged: bool,
    /// An exposure of the peer: it goes over the rail that pushes into that went over.
    pub(crate) follows: Option<BulkCookie>,
    /// Times that it was sent again over another rail.
    pub(crate) resends: u8,
}

/// An ACK or REPLY, and the number of what it answers, whose credit goes back with it.
pub(crate) struct Owed {
    pub(crate) body: FrameBody,
    pub(crate) payload: Payload,
    pub(crate) answers: u32,
}

/// Exposures that one message carries.
pub(crate) type Exposes = SmallVec<[BulkCookie; EXPOSES_MAX]>;

impl Outgoing {
    /// A frame that exposes, ends and completes nothing.
    pub(crate) fn new(body: FrameBody, payload: Payload) -> Outgoing {
        Outgoing {
            body,
            payload,
            completes: None,
            exposes: Exposes::new(),
            invalidates: None,
            is_damaged: false,
            follows: None,
            resends: 0,
        }
    }

    /// The same frame once more.
    pub(crate) fn twin(&self) -> Outgoing {
        let (payload, exposes) = (self.payload.clone(), self.exposes.clone());
        Outgoing { payload, exposes, body: self.body, ..*self }
    }

    /// Puts remote segments in front of a message.
    pub(crate) fn extend(&mut self, extension: Vec<u8>) {
        if let (FrameBody::Put { extension_bytes, .. }, Payload::Bytes(message)) =
            (&mut self.body, &self.payload)
        {
            // At most EXTENSION_BYTES_MAX, by what one message may expose.
            *extension_bytes = u32::try_from(extension.len()).unwrap_or(u32::MAX);
            let message = message.clone();
            self.payload = Payload::Extended { extension: extension.into_boxed_slice(), message };
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// We connect; our hello is out or about to be.
    Dialing,
    /// Accepted; the hello has to come.
    Greeting,
    /// Hello complete.
    Up,
    /// Over. Frames are ignored; the outbox may still hold a last word.
    Ended,
}

impl Phase {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Phase::Dialing => "waiting for the answer to our hello",
            Phase::Greeting => "waiting for a hello",
            Phase::Up => "connected",
            Phase::Ended => "closing",
        }
    }
}

pub(crate) struct Connection {
    pub(crate) phase: Phase,
    /// Our interface that it is made from, or to.
    pub(crate) interface: usize,
    /// The peer's nid at its other end.
    pub(crate) rail: Nid,
    /// Whom it serves: dialled or introduced by its hello; `None` while greeting.
    pub(crate) endpoint: Option<Endpoint>,
    /// The peer's epoch; 0 until its hello.
    pub(crate) epoch: u64,
    /// Random, in our hello and in the peer's: both stamp their frames with the other's, so that frames of another connection are told apart.
    pub(crate) nonce: u64,
    pub(crate) peer_nonce: u64,
    /// Agreed version; [`VERSION_MIN`] until then.
    pub(crate) version: u8,
    /// Start of the present phase.
    pub(crate) since: Instant,
    /// We made it (the peer's endpoint was known from the start).
    pub(crate) is_dialled: bool,

    /// Number of our last message, of the last one that the peer consumed, and how far ahead we may go.
    pub(crate) sent: u32,
    acked: u32,
    pub(crate) window: u32,
    /// Number of the peer's last message that the layer above has taken, and what we last told the peer.
    consumed: u32,
    returned: u32,
    /// The highest number that has come, and which of those below it have (bit 0: itself).
    received: u32,
    received_bits: u64,

    pub(crate) outbox: VecDeque<Outgoing>,
    /// ACKs and REPLYs that wait for a credit: at most a window of them, because what they answer holds a credit until then.
    pub(crate) owed: VecDeque<Owed>,
    /// Frames that a fault rule delays, and all behind them, with the time of each.
    pub(crate) held: VecDeque<(Instant, Outgoing)>,
    /// In the protocol's list of connections to flush.
    pub(crate) is_dirty: bool,
    /// Bytes wait in the backend for a slow peer.
    pub(crate) is_backlogged: bool,
    /// Transfers of ours on it, and how many of them are pulls.
    pub(crate) transfers: u32,
    pub(crate) pulls: u32,
    /// Bytes arrived per push that wants an ack.
    pub(crate) pushed_bytes: BTreeMap<u64, u32>,
    /// What the peer has exposed to our hardware over this connection.
    pub(crate) remote: RemoteTable,

    /// Opens what the peer has sealed, where everything is encrypted and hardware moves the bulk.
    pub(crate) opener: Option<Rc<Opener>>,

    /// Since when the peer, owing us something, has been silent.
    quiet_since: Instant,
    pinged_at: Option<Instant>,
    /// The peer has said something since the hello.
    pub(crate) is_confirmed: bool,
    /// A transfer of it was not done in time: it is to be pinged until it gives a sign of life.
    pub(crate) is_doubtful: bool,
    /// Somebody was refused for want of credits.
    pub(crate) is_starved: bool,
    /// Who the peer has proved to be, where certificates are asked for, and when that ends.
    pub(crate) identity: Option<Arc<Identity>>,
    pub(crate) expires_at: Instant,
}

/// What the silence of a connection asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Liveness {
    /// Look again then (`NEVER`: nothing is outstanding).
    Fine(Instant),
    Ping,
    Dead,
}

impl Connection {
    pub(crate) fn new(phase: Phase, endpoint: Option<Endpoint>, now: Instant) -> Connection {
        Connection {
            phase,
            interface: 0,
            rail: endpoint.map_or(Nid::LOOPBACK, |endpoint| endpoint.nid),
            endpoint,
            epoch: 0,
            nonce: 0,
            peer_nonce: 0,
            version: VERSION_MIN,
            since: now,
            is_dialled: phase == Phase::Dialing,
            sent: 0,
            acked: 0,
            window: CREDIT_WINDOW,
            consumed: 0,
            returned: 0,
            received: 0,
            received_bits: 1,
            outbox: VecDeque::new(),
            owed: VecDeque::new(),
            held: VecDeque::new(),
            is_dirty: false,
            is_backlogged: false,
            transfers: 0,
            pulls: 0,
            pushed_bytes: BTreeMap::new(),
            remote: RemoteTable::default(),
            opener: None,
            quiet_since: now,
            pinged_at: None,
            is_confirmed: false,
            is_doubtful: false,
            is_starved: false,
            identity: None,
            expires_at: Instant::NEVER,
        }
    }

    /// True if a message of `lane` may go: requests leave a reserve for replies.
    pub(crate) fn has_credit(&self, lane: Lane) -> bool {
        let in_flight = self.sent.wrapping_sub(self.acked);
        let window = match lane {
            Lane::Request => self.window.saturating_sub(CREDIT_RESERVE).max(1),
            Lane::Reply => self.window,
        };
        in_flight < window
    }

    /// Takes a credit; answers the number of the message.
    pub(crate) fn take_credit(&mut self, now: Instant) -> u32 {
        self.start_waiting(now);
        self.sent = self.sent.wrapping_add(1);
        self.sent
    }

    /// Credits that a request may take.
    pub(crate) fn free_credits(&self) -> u32 {
        self.window.saturating_sub(self.in_flight())
    }

    /// Messages that the peer has not consumed.
    pub(crate) fn in_flight(&self) -> u32 {
        self.sent.wrapping_sub(self.acked)
    }

    /// The connection is over: answers how many messages are in flight for ever.
    pub(crate) fn give_up_credits(&mut self) -> u32 {
        let in_flight = self.in_flight();
        self.acked = self.sent;
        in_flight
    }

    /// The peer has consumed up to `credits`; answers how many more than before.
    pub(crate) fn handle_credits(&mut self, credits: u32) -> Result<u32, PeerMisbehaved> {
        if counter_distance(self.sent, credits) > 0 {
            return Err(PeerMisbehaved::CreditInvented { got: credits, sent: self.sent });
        }
        // An older frame that comes late says less than we know.
        let returned = counter_distance(self.acked, credits);
        if returned > 0 {
            self.acked = credits;
        }
        Ok(u32::try_from(returned).unwrap_or(0))
    }

    /// Checks a message's number against the window that we granted.
    pub(crate) fn check_sequence(&self, sequence: u32) -> Result<(), PeerMisbehaved> {
        let ahead = counter_distance(self.consumed, sequence);
        if ahead > CREDIT_WINDOW.cast_signed() {
            return Err(PeerMisbehaved::CreditOverrun {
                sequence,
                consumed: self.consumed,
                window: CREDIT_WINDOW,
            });
        }
        Ok(())
    }

    /// Notes that number `sequence` has come. False: it had come before.
    pub(crate) fn receive(&mut self, sequence: u32) -> bool {
        let ahead = counter_distance(self.received, sequence);
        if ahead > 0 {
            let ahead = ahead.unsigned_abs();
            self.received_bits = self.received_bits.checked_shl(ahead).unwrap_or(0) | 1;
            self.received = sequence;
            return true;
        }
        // Older than all that a window can hold: it has been consumed, or given up.
        let bit = 1u64.checked_shl(ahead.unsigned_abs()).unwrap_or(0);
        if bit == 0 || self.received_bits & bit != 0 {
            return false;
        }
        self.received_bits |= bit;
        true
    }

    /// The layer above has taken message `sequence`, or a ping says that it will never come. True: tell the peer.
    pub(crate) fn consume(&mut self, sequence: u32) -> bool {
        if counter_distance(self.consumed, sequence) > 0 {
            self.consumed = sequence;
        }
        self.consumed.wrapping_sub(self.returned) >= CREDIT_WINDOW / 2
    }

    /// The header of an outgoing frame, with the credits of this moment.
    pub(crate) fn stamp(&mut self, outgoing: &Outgoing) -> Frame {
        self.returned = self.consumed;
        // Readable before anything is agreed.
        let is_hello =
            matches!(outgoing.body, FrameBody::Hello | FrameBody::HelloAck | FrameBody::Reject { .. });
        Frame {
            version: if is_hello { VERSION_MIN } else { self.version },
            credits: self.consumed,
            to_epoch: self.epoch ^ self.peer_nonce,
            // Payloads are bounded by BUFFER_BYTES_MAX.
            payload_bytes: u32::try_from(outgoing.payload.len()).unwrap_or(u32::MAX),
            body: outgoing.body,
        }
    }

    /// The header's bytes as they leave.
    pub(crate) fn seal(&mut self, outgoing: &Outgoing) -> [u8; HEADER_BYTES] {
        let mut bytes = self.stamp(outgoing).encode();
        if outgoing.is_damaged {
            bytes[CHECKSUM_AT] ^= 1;
        }
        bytes
    }

    /// True if the peer owes us something: credits, transfers, or room for bytes.
    fn is_waiting(&self) -> bool {
        self.sent != self.acked || self.transfers > 0 || self.is_backlogged || self.is_doubtful
    }

    /// Called before something becomes outstanding: silence counts from here.
    pub(crate) fn start_waiting(&mut self, now: Instant) {
        if !self.is_waiting() {
            self.quiet_since = now;
            self.pinged_at = None;
        }
    }

    /// The peer gave a sign of life.
    pub(crate) fn hear(&mut self, now: Instant) {
        self.is_doubtful = false;
        self.quiet_since = now;
        self.pinged_at = None;
    }

    pub(crate) fn liveness(&mut self, now: Instant, times: &NetTimes) -> Liveness {
        if !self.is_waiting() {
            return Liveness::Fine(Instant::NEVER);
        }
        let dead_at = self.quiet_since + ms(times.idle_ping_ms + times.ping_wait_ms_max);
        if now >= dead_at {
            return Liveness::Dead;
        }
        let first = if self.is_starved { times.credit_ping_ms } else { times.idle_ping_ms };
        // Repeated, because a lossy net may eat one.
        let again = first.min((times.ping_wait_ms_max / 5).max(1));
        let due = match self.pinged_at {
            None => self.quiet_since + ms(first),
            Some(at) => at + ms(again),
        };
        if now >= due {
            self.pinged_at = Some(now);
            return Liveness::Ping;
        }
        Liveness::Fine(due.min(dead_at))
    }
}

/// Pause before a reconnect: doubled per failure, between half and all of it.
pub(crate) fn reconnect_pause(times: &NetTimes, failures: u32, random: u64) -> Duration {
    let whole = times
        .reconnect_ms_min
        .saturating_mul(1 << failures.min(16))
        .min(times.reconnect_ms_max)
        .saturating_mul(1000);
    let half = whole / 2;
    Duration::from_micros(half + random % (half + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up() -> Connection {
        Connection::new(Phase::Up, None, Instant::ZERO)
    }

    #[test]
    fn replies_keep_a_reserve_of_credits() {
        let mut connection = up();
        let mut requests = 0;
        while connection.has_credit(Lane::Request) {
            connection.take_credit(Instant::ZERO);
            requests += 1;
        }
        assert_eq!(requests, CREDIT_WINDOW - CREDIT_RESERVE);
        for _ in 0..CREDIT_RESERVE {
            assert!(connection.has_credit(Lane::Reply));
            connection.take_credit(Instant::ZERO);
        }
        assert!(!connection.has_credit(Lane::Reply));
        assert_eq!(connection.handle_credits(CREDIT_RESERVE + 1), Ok(CREDIT_RESERVE + 1));
        assert!(connection.has_credit(Lane::Request) && connection.has_credit(Lane::Reply));
    }

    #[test]
    fn counters_wrap_and_late_credits_are_ignored() {
        let mut connection = up();
        connection.sent = u32::MAX;
        connection.acked = u32::MAX;
        connection.consumed = u32::MAX - 1;
        connection.returned = u32::MAX - 1;
        assert_eq!(connection.take_credit(Instant::ZERO), 0);
        assert_eq!(connection.handle_credits(0), Ok(1));
        assert_eq!(connection.handle_credits(u32::MAX), Ok(0), "late");
        assert!(!connection.is_waiting());
        assert!(matches!(connection.handle_credits(1), Err(PeerMisbehaved::CreditInvented { .. })));
        assert_eq!(connection.check_sequence(20), Ok(()));
        assert!(matches!(connection.check_sequence(40), Err(PeerMisbehaved::CreditOverrun { .. })));
        assert!(connection.consume(20));
        connection.consume(3);
        assert_eq!(connection.consumed, 20, "a late message takes nothing back");
    }

    #[test]
    fn each_number_comes_once_in_whatever_order() {
        let mut connection = up();
        for (sequence, is_new) in [
            (1, true),
            (1, false),
            (3, true),
            (2, true),
            (2, false),
            (40, true),
            (9, true),
            (3, false),
            (200, true),
            (9, false),
        ] {
            assert_eq!(connection.receive(sequence), is_new, "{sequence}");
        }
        let mut connection = Connection { received: u32::MAX, ..up() };
        assert!(connection.receive(1) && connection.receive(0) && !connection.receive(u32::MAX));
    }

    #[test]
    fn silence_matters_only_while_something_is_owed() {
        let times = NetTimes::default();
        let mut connection = up();
        let at = |seconds| Instant::ZERO + Duration::from_secs(seconds);
        assert_eq!(connection.liveness(at(1000), &times), Liveness::Fine(Instant::NEVER));
        connection.take_credit(at(1000));
        assert_eq!(connection.liveness(at(1001), &times), Liveness::Fine(at(1005)));
        assert_eq!(connection.liveness(at(1005), &times), Liveness::Ping);
        assert_eq!(connection.liveness(at(1005), &times), Liveness::Fine(at(1006)));
        assert_eq!(connection.liveness(at(1010), &times), Liveness::Dead);
        connection.hear(at(1009));
        assert_eq!(connection.liveness(at(1010), &times), Liveness::Fine(at(1014)));
    }

    #[test]
    fn reconnect_pauses_double_up_to_a_limit() {
        let times = NetTimes::default();
        for (failures, most) in [(0, 50), (1, 100), (5, 1600), (6, 2000), (99, 2000)] {
            for random in [0, 1, 12345, u64::MAX] {
                let pause = reconnect_pause(&times, failures, random);
                assert!(pause <= ms(most) && pause >= ms(most) / 2, "{failures} {pause:?}");
            }
        }
    }
}
