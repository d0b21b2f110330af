//! Errors of the transfer machine, sorted by blame, and by the one question that the rpc layer asks: may it have happened?

use std::io;
use std::net::SocketAddrV4;

use base::{Blame, Blamed, Endpoint, NetKind};

use crate::frame::FrameKind;
use crate::security::SealedOperation;

/// What to do instead of RDMA, said wherever an o2ib endpoint meets a build or host without it.
pub(crate) const NO_RDMA_ADVICE: &str = "this build of clovis has no RDMA transport; use a tcp endpoint on the same address (ADDRESS@tcp:PID:PORTAL:TMID)";

/// Why a transfer machine did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A further nid that cannot be one of this machine's.
    #[error(
        "{endpoint}: rail {nid}: all nids of a machine are of one kind of net, each named once, at most {}; list each address of this host once",
        crate::limits::NIDS_MAX
    )]
    BadRail {
        /// The endpoint asked for.
        endpoint: Endpoint,
        /// The nid.
        nid: base::Nid,
    },
    /// Another process or machine listens there.
    #[error(
        "{endpoint}: address {address} is in use: another process listens there; choose another endpoint"
    )]
    PortInUse {
        /// The endpoint asked for.
        endpoint: Endpoint,
        /// Its socket address (`host:port`), or the endpoint itself on nets without one.
        address: String,
    },
    /// The host does not have this address.
    #[error("{endpoint}: this host has no address {address}; use one of its own (ip addr), or 127.0.0.1")]
    NoSuchAddress {
        /// The endpoint asked for.
        endpoint: Endpoint,
        /// Its socket address.
        address: SocketAddrV4,
    },
    /// A listener needs a port and this portal has none.
    #[error("{endpoint}: portal {} has no port: listen on portals 32 to 46 (docs/wire.md, ports)", endpoint.portal)]
    PortalWithoutPort {
        /// The endpoint asked for.
        endpoint: Endpoint,
    },
    /// The fabric does not carry the endpoint's net.
    #[error("{endpoint}: net {} is not carried by fabric {fabric}", endpoint.nid.net)]
    NoSuchNet {
        /// The endpoint asked for.
        endpoint: Endpoint,
        /// What the fabric is.
        fabric: &'static str,
    },
    /// RDMA asked for where there is none.
    #[error("{endpoint}: {NO_RDMA_ADVICE}")]
    NoRdma {
        /// The endpoint asked for.
        endpoint: Endpoint,
    },
    /// RDMA could not be opened for it.
    #[error("{endpoint}: {message}")]
    Rdma {
        /// The endpoint asked for.
        endpoint: Endpoint,
        /// What was missing, and what to do.
        message: String,
    },
    /// A net inside one process, where there is nobody to prove anything to.
    #[error(
        "{endpoint}: certificates are shown over tcp and o2ib: write `security = \"shared\"` in the cluster file"
    )]
    NoCertificates {
        /// The endpoint.
        endpoint: Endpoint,
    },
    /// A client's credential where a daemon's is needed.
    #[error(
        "{endpoint}: the credential of {name} lacks the right `serve`: daemons take those that `clovis cluster init` made"
    )]
    NoRightToServe {
        /// The endpoint.
        endpoint: Endpoint,
        /// Whose credential.
        name: String,
    },
    /// Epoch 0 means "any incarnation" and cannot be one.
    #[error("{endpoint}: epoch 0 stands for any incarnation; start with a nonzero epoch")]
    EpochZero {
        /// The endpoint asked for.
        endpoint: Endpoint,
    },
    /// The operating system refused.
    #[error("{endpoint}: {what}: {source}")]
    Io {
        /// The endpoint asked for.
        endpoint: Endpoint,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl Blamed for StartError {
    fn blame(&self) -> Blame {
        match self {
            StartError::EpochZero { .. }
            | StartError::BadRail { .. }
            | StartError::PortalWithoutPort { .. }
            | StartError::NoSuchNet { .. } => Blame::Caller,
            _ => Blame::Environment,
        }
    }
    fn may_retry(&self) -> bool {
        matches!(self, StartError::PortInUse { .. } | StartError::Io { .. })
    }
}

/// Why a message was not taken. Never an error of the peer; the message is given back beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// The peer's window is full; `Event::Writable` follows.
    #[error("no credit at the peer: wait for Writable")]
    NoCredit,
    /// Too many messages wait for the connection; `Event::Writable` follows, or `Event::PeerLost`.
    #[error("the queue to the peer is full: wait for Writable")]
    QueueFull,
    /// Longer than `MESSAGE_BYTES_MAX`, or empty. Permanent.
    #[error("a message has 1 to 65536 bytes; larger data goes as bulk")]
    Length,
    /// The named incarnation of the peer is gone. Permanent.
    #[error("that incarnation of the peer is gone")]
    Stale,
    /// The peer is a dynamic client (it connects to us, never we to it) and is not connected. Permanent.
    #[error("the peer is a client that is not connected")]
    NotConnected,
    /// The peer's net is not carried here. Permanent.
    #[error("the peer's net is not carried by this transfer machine")]
    WrongNet,
    /// The peer's portal has no port. Permanent.
    #[error("the peer's portal has no port: it cannot be connected to")]
    PortalWithoutPort,
    /// RDMA asked for where there is none. Permanent.
    #[error("{}", NO_RDMA_ADVICE)]
    NoRdma,
    /// Too many operations wait for their acknowledgement or reply. Wait for one of them to end.
    #[error("too many operations wait for their acknowledgement or reply: wait for one to end")]
    OperationsWaiting,
    /// The descriptor is gone, spent, or has no memory for it. Permanent.
    #[error("the memory descriptor is gone, spent, or has no memory for the operation")]
    Descriptor,
    /// It follows pushes over a rail that is gone, whose bytes may be lost: it would tell of bytes that are not there. Permanent; the
    /// requester asks again.
    #[error("the rail of the pushes before it is gone: it would tell of bytes that may not be there")]
    PushesLost,
    /// The peer is this machine. Permanent.
    #[error("a transfer machine does not send to itself")]
    Myself,
}

impl Refused {
    /// True if waiting does not help: no `Writable` will follow.
    #[must_use]
    pub const fn is_permanent(self) -> bool {
        !matches!(self, Refused::NoCredit | Refused::QueueFull | Refused::OperationsWaiting)
    }
}

/// Why a peer refused our hello (or we refused its): the code on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[non_exhaustive]
#[repr(u32)]
pub enum RefuseReason {
    /// No common protocol version.
    #[error("no common protocol version: upgrade the older side")]
    Version = 1,
    /// The cluster token differs.
    #[error("the cluster token differs: give both sides the same token file")]
    Token = 2,
    /// Another incarnation lives there now.
    #[error("another incarnation lives at that endpoint now")]
    StaleEpoch = 3,
    /// Both connected at once and the other connection is kept.
    #[error("both sides connected at once; the other connection is kept")]
    Race = 4,
    /// Connection limit.
    #[error("the peer has as many connections as it allows")]
    TooMany = 5,
    /// Another endpoint answers at that address.
    #[error("another endpoint answers at that address")]
    WrongEndpoint = 6,
    /// The hello is malformed.
    #[error("the hello is malformed")]
    BadHello = 7,
    /// The endpoint does not take connections.
    #[error("the endpoint does not take connections")]
    NotListening = 8,
    /// One side wants certificates and the other shows none.
    #[error(
        "a credential is wanted and none was shown: name yours with --credential or CLOVIS_CREDENTIAL; who runs the cluster \
         makes one with `clovis credential create NAME`"
    )]
    NoCredential = 9,
    /// A certificate is not of the cluster's authority, or says nothing that is understood.
    #[error(
        "the credential is not of this cluster's authority: use one that its `clovis credential create` made"
    )]
    Untrusted = 10,
    /// A certificate has ended, or a clock is wrong.
    #[error(
        "a credential has ended (or a clock is wrong): `clovis credential show FILE` says when; `clovis credential create` \
         makes another"
    )]
    Expired = 11,
    /// The credential was revoked.
    #[error("the credential was revoked: ask who runs the cluster for another")]
    Revoked = 12,
    /// The credential does not allow connections.
    #[error("the credential lacks the right `connect`: ask for one with `--rights connect,...`")]
    NoConnectRight = 13,
    /// The certificate at the other end is not a daemon's.
    #[error("the certificate at that endpoint is not a daemon's")]
    NotDaemon = 14,
    /// TLS failed in another way.
    #[error(
        "the TLS handshake failed: the other side may share a secret instead (`security` in the cluster file), speak another version, \
         or have no room for more"
    )]
    Handshake = 15,
    /// The endpoint belongs to another holder of a credential.
    #[error("the endpoint is in use by the holder of another credential")]
    NotYours = 16,
    /// One side insists on encryption and the other cannot.
    #[error(
        "one side encrypts everything and the other cannot: bring the older one to this version, or take `encrypt` out of the cluster \
         file"
    )]
    NoEncryption = 17,
}

impl RefuseReason {
    /// True if another credential would help, and nothing else.
    #[must_use]
    pub const fn is_of_credential(self) -> bool {
        use RefuseReason as R;
        matches!(
            self,
            R::Token
                | R::NoCredential
                | R::Untrusted
                | R::Expired
                | R::Revoked
                | R::NoConnectRight
                | R::NotDaemon
                | R::NotYours
        )
    }
}

impl TryFrom<u32> for RefuseReason {
    type Error = u32;
    fn try_from(code: u32) -> Result<RefuseReason, u32> {
        use RefuseReason as R;
        [
            R::Version,
            R::Token,
            R::StaleEpoch,
            R::Race,
            R::TooMany,
            R::WrongEndpoint,
            R::BadHello,
            R::NotListening,
            R::NoCredential,
            R::Untrusted,
            R::Expired,
            R::Revoked,
            R::NoConnectRight,
            R::NotDaemon,
            R::Handshake,
            R::NotYours,
            R::NoEncryption,
        ]
        .into_iter()
        .find(|reason| *reason as u32 == code)
        .ok_or(code)
    }
}

/// Why a bulk frame was turned away by the side that exposes the memory: the code on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[non_exhaustive]
#[repr(u32)]
pub enum NakReason {
    /// No such exposure: never made, or retracted.
    #[error("the memory is not exposed (any more)")]
    NotExposed = 1,
    /// The key does not open it.
    #[error("the key does not open the memory")]
    WrongKey = 2,
    /// A pull from a sink or a push into a source.
    #[error("the memory is exposed for the other direction")]
    WrongDirection = 3,
    /// A segment or length outside of it.
    #[error("the segment or length is outside of the exposed memory")]
    OutOfRange = 4,
    /// No entry of the portal matches.
    #[error("no entry of the portal matches")]
    NoMatch = 5,
    /// The entry that matches has no room for it, and may not cut it.
    #[error("it is too long for the entry that matches")]
    TooLong = 6,
}

impl TryFrom<u32> for NakReason {
    type Error = u32;
    fn try_from(code: u32) -> Result<NakReason, u32> {
        use NakReason as R;
        [R::NotExposed, R::WrongKey, R::WrongDirection, R::OutOfRange, R::NoMatch, R::TooLong]
            .into_iter()
            .find(|reason| *reason as u32 == code)
            .ok_or(code)
    }
}

/// How a peer broke the protocol. Its connection ends and it is counted; never a panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerMisbehaved {
    /// Not our protocol at all.
    #[error("magic {got:#06x} is not ours")]
    BadMagic {
        /// The magic found.
        got: u16,
    },
    /// A version outside of what was agreed.
    #[error("protocol version {got} where {want} was agreed")]
    BadVersion {
        /// The version found.
        got: u8,
        /// The version agreed.
        want: u8,
    },
    /// Header bytes damaged.
    #[error("header checksum {got:#010x}, computed {want:#010x}")]
    HeaderChecksum {
        /// In the header.
        got: u32,
        /// Of the header.
        want: u32,
    },
    /// Unknown frame type.
    #[error("unknown frame type {got}")]
    UnknownType {
        /// The type found.
        got: u8,
    },
    /// A field that must be zero is not.
    #[error("reserved field of a {kind:?} frame is not zero")]
    ReservedField {
        /// The frame.
        kind: FrameKind,
    },
    /// A payload length that this frame type cannot have.
    #[error("{kind:?} frame with {got} payload bytes, at most {max}")]
    PayloadLength {
        /// The frame.
        kind: FrameKind,
        /// Payload bytes announced.
        got: u32,
        /// Most that it may have.
        max: u32,
    },
    /// A frame that this state of the connection does not take.
    #[error("{kind:?} frame while {state}")]
    Unexpected {
        /// The frame.
        kind: FrameKind,
        /// What the connection is doing.
        state: &'static str,
    },
    /// A malformed hello.
    #[error("malformed hello: {what}")]
    BadHello {
        /// Which part.
        what: &'static str,
    },
    /// Meant for another incarnation of us.
    #[error(
        "frame stamped {got:#x}, this connection's stamp is {want:#x}: meant for an earlier incarnation, or replayed from an earlier connection"
    )]
    WrongEpoch {
        /// In the frame.
        got: u64,
        /// Ours.
        want: u64,
    },
    /// A message beyond the window.
    #[error("message {sequence} beyond consumed {consumed} + window {window}")]
    CreditOverrun {
        /// Its number.
        sequence: u32,
        /// What we had consumed.
        consumed: u32,
        /// The window.
        window: u32,
    },
    /// Credits returned for messages never sent.
    #[error("credits up to {got} returned, sent only up to {sent}")]
    CreditInvented {
        /// In the frame.
        got: u32,
        /// Our last message.
        sent: u32,
    },
    /// Bulk outside of the segment or out of order.
    #[error(
        "bulk of {bytes} bytes at {offset_bytes} of segment {segment_index} does not fit what was asked for"
    )]
    BulkRange {
        /// Segment named.
        segment_index: u8,
        /// Offset named.
        offset_bytes: u32,
        /// Length named.
        bytes: u32,
    },
    /// Remote segments that nobody of ours writes.
    #[error("malformed extension of remote segments: {what}")]
    BadExtension {
        /// Which part.
        what: &'static str,
    },
    /// A portal beyond the last.
    #[error("{kind:?} frame for portal {portal}: there are {}", base::endpoint::PORTALS)]
    NoSuchPortal {
        /// The frame.
        kind: FrameKind,
        /// The portal named.
        portal: u8,
    },
    /// A number that this connection has carried before.
    #[error("message {sequence} comes a second time on its connection: replayed")]
    Replayed {
        /// Its number.
        sequence: u32,
    },
    /// What came is not what the peer sealed, where everything is encrypted.
    #[error(
        "{operation} {name:#x}, segment {segment_index}: the seal is broken: changed, cut short, replayed or moved on the way"
    )]
    BrokenSeal {
        /// What it was to be.
        operation: SealedOperation,
        /// The exposure; of a message its number, if it has one.
        name: u64,
        /// The segment of the exposure.
        segment_index: u8,
    },
    /// An unknown code in a Reject or Nak.
    #[error("unknown reason code {code} in a {kind:?} frame")]
    UnknownReason {
        /// The frame.
        kind: FrameKind,
        /// The code.
        code: u32,
    },
}

/// Trouble on our own side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// Table of transfers full.
    #[error("{max} transfers are in flight already")]
    TooManyTransfers {
        /// The limit.
        max: usize,
    },
    /// The connection table is full.
    #[error("{max} connections are open already")]
    TooManyConnections {
        /// The limit.
        max: usize,
    },
    /// A push whose parts do not match the segments.
    #[error("pushed part {part_index} has {part_bytes} bytes, its segment {segment_bytes}")]
    PartLength {
        /// Index of the part.
        part_index: usize,
        /// Its length.
        part_bytes: u64,
        /// Length of the segment it is for (0 = there is no such segment).
        segment_bytes: u64,
    },
    /// No remote segments of that exposure have come over the present connection (the requester's resend brings them), or they
    /// were dropped for newer ones.
    #[error("the peer's exposure {cookie:#x} is not known on this connection (yet)")]
    NoRemoteSegments {
        /// The exposure.
        cookie: u64,
    },
    /// The peer kept memory of a request that we gave up.
    #[error(
        "memory of a request that was given up is held by the peer's hardware for more than {after_ms} ms: its connection is ended"
    )]
    HeldTooLong {
        /// The limit (`NetTimes::abandoned_ms_max`).
        after_ms: u64,
    },
    /// Memory that is to be opened is not ours alone.
    #[error("segment {segment_index} of a sealed push is still held by somebody else: it cannot be opened")]
    StillShared {
        /// The segment.
        segment_index: u8,
    },
    /// A connection has sealed all that its keys may.
    #[error("the keys of the connection are used up: another connection has others")]
    KeysUsedUp,
    /// No memory came free before the deadline.
    #[error("no buffer came free before the deadline: the arena is too small for the load")]
    NoMemory,
    /// The RDMA device was taken away.
    #[error("the RDMA device was removed")]
    DeviceRemoved,
    /// A work request failed on our side.
    #[error("RDMA: {error}")]
    Completion {
        /// How.
        error: verbs_sys::CompletionError,
    },
    /// A socket call failed.
    #[error("socket: {kind}")]
    Socket {
        /// What kind of failure.
        kind: io::ErrorKind,
    },
}

/// What became of a transfer or a peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// Our own side.
    #[error("local: {0}")]
    Local(LocalError),
    /// No connection could be made.
    #[error("{endpoint} cannot be reached ({cause}): is it running, and is the address right?")]
    Unreachable {
        /// Whom we tried.
        endpoint: Endpoint,
        /// What the system said.
        cause: io::ErrorKind,
    },
    /// The connection ended: the peer closed it, died or was cut off.
    #[error("the peer dropped the connection")]
    RemoteDropped,
    /// The peer turned the transfer away.
    #[error("the peer refused the transfer: {reason}")]
    RemoteError {
        /// Why.
        reason: NakReason,
    },
    /// The deadline passed, or the peer answered no ping.
    #[error("the peer did not answer in time")]
    RemoteTimeout,
    /// Ended by our own caller.
    #[error("canceled")]
    Canceled,
    /// The named incarnation is gone: another lives there, or none.
    #[error("that incarnation of the peer is gone")]
    Stale,
    /// The peer broke the protocol.
    #[error("peer broke the protocol: {0}")]
    Protocol(PeerMisbehaved),
    /// The peer refused our hello, or we refused its answer.
    #[error("connection refused: {reason}")]
    Refused {
        /// Why.
        reason: RefuseReason,
    },
    /// It was not delivered, and could not be sent over another rail.
    #[error("not delivered ({class}), and no other rail could take it")]
    Undelivered {
        /// What kind of error.
        class: crate::rail::ErrorClass,
    },
    /// The peer's answer to a ping is not one.
    #[error(transparent)]
    BadInfo {
        /// What is wrong with it.
        error: crate::discovery::ParseInfoError,
    },
    /// RDMA asked for where there is none.
    #[error("{endpoint}: {NO_RDMA_ADVICE}")]
    NoRdma {
        /// Whom we were to reach.
        endpoint: Endpoint,
    },
}

impl NetError {
    /// True if the same message, sent again (to whichever incarnation lives there), may arrive.
    #[must_use]
    pub const fn may_resend(&self) -> bool {
        match self {
            NetError::Local(_)
            | NetError::Unreachable { .. }
            | NetError::RemoteDropped
            | NetError::RemoteTimeout
            | NetError::Stale
            | NetError::Undelivered { .. }
            | NetError::Protocol(_) => true,
            NetError::Refused { reason } => {
                use RefuseReason as R;
                matches!(reason, R::TooMany | R::Race | R::StaleEpoch | R::Handshake)
            }
            NetError::RemoteError { .. }
            | NetError::Canceled
            | NetError::NoRdma { .. }
            | NetError::BadInfo { .. } => false,
        }
    }

    /// True if the peer may have acted on what was sent before this error.
    #[must_use]
    pub const fn may_have_executed(&self) -> bool {
        match self {
            NetError::RemoteDropped
            | NetError::RemoteTimeout
            | NetError::Stale
            | NetError::RemoteError { .. }
            | NetError::Protocol(_)
            | NetError::BadInfo { .. }
            | NetError::Undelivered { .. }
            | NetError::Canceled => true,
            NetError::Local(_)
            | NetError::Unreachable { .. }
            | NetError::Refused { .. }
            | NetError::NoRdma { .. } => false,
        }
    }
}

impl Blamed for NetError {
    fn blame(&self) -> Blame {
        match self {
            NetError::Protocol(_) | NetError::BadInfo { .. } => Blame::Peer,
            NetError::Local(LocalError::PartLength { .. }) | NetError::Canceled => Blame::Caller,
            _ => Blame::Environment,
        }
    }
    fn may_retry(&self) -> bool {
        self.may_resend()
    }
}

/// True for kinds of nets that a fabric word can carry; used by start and send alike.
pub(crate) const fn fabric_word(kind: NetKind) -> &'static str {
    match kind {
        NetKind::Lo => "lo",
        NetKind::Tcp => "tcp",
        NetKind::O2ib => "o2ib",
        NetKind::Sim => "sim",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_codes_are_what_docs_wire_md_says() {
        assert_eq!(RefuseReason::try_from(2), Ok(RefuseReason::Token));
        assert_eq!(RefuseReason::try_from(8), Ok(RefuseReason::NotListening));
        assert_eq!(RefuseReason::try_from(16), Ok(RefuseReason::NotYours));
        assert_eq!(RefuseReason::try_from(17), Ok(RefuseReason::NoEncryption));
        assert_eq!(RefuseReason::try_from(18), Err(18));
        assert_eq!(NakReason::try_from(1), Ok(NakReason::NotExposed));
        assert_eq!(NakReason::try_from(0), Err(0));
    }

    #[test]
    fn what_never_left_was_not_executed() {
        let refused = NetError::Refused { reason: RefuseReason::Token };
        assert!(!refused.may_resend() && !refused.may_have_executed());
        assert!(NetError::RemoteDropped.may_resend() && NetError::RemoteDropped.may_have_executed());
    }
}
