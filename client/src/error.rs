//! Why an operation of the client failed: one enum, sorted by blame, each failed unit with its device, server and cause.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use base::{Blame, Blamed, ByteExtent, Endpoint, Fid, LayoutWidth, ObjectId};
use faces::DeviceState;
use faces::rm::HoldError;
use fops::FopError;
use rpc::CallError;

/// Why one unit (or one replica of a record) could not be read or written.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// The configuration says that the device is out of service.
    State(DeviceState),
    /// The request failed. Shared: one request carries many units.
    Call(Arc<CallError>),
    /// The bytes that came do not match the checksum that was stored with them.
    Checksum {
        /// Block of the component object.
        block: u64,
    },
    /// The block is gone though the rest of its row is there.
    Absent,
    /// The server did not answer a moment ago, and was not asked again.
    Suspect,
    /// The answer does not fit the request.
    BadAnswer {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The pool has no such target: the object was made for another pool version.
    NoTarget,
    /// The object was moved to another pool version while this was under way.
    Moved,
    /// The credit that a copy asks for ended while the change was made: it may have come too late for whoever copies.
    CreditEnded,
    /// The change was to be made under a hold whose lease ended; it was not sent.
    HoldLost,
}

impl Fault {
    /// What the server answered, if it answered no.
    #[must_use]
    pub fn refusal(&self) -> Option<&FopError> {
        match self {
            Fault::Call(error) => match &**error {
                CallError::Fop(refusal) => Some(refusal),
                _ => None,
            },
            _ => None,
        }
    }

    /// True if the device itself failed the access.
    #[must_use]
    pub fn is_device_error(&self) -> bool {
        matches!(self.refusal(), Some(FopError::Device { .. }))
    }

    /// True if the device has no room for the bytes.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self.refusal(), Some(FopError::NoSpace { .. }))
    }

    /// True if the server could not be reached or did not answer in time.
    #[must_use]
    pub fn is_silence(&self) -> bool {
        match self {
            Fault::Call(error) => error.is_unreachable(),
            Fault::Suspect => true,
            _ => false,
        }
    }

    /// True if another try may succeed without anybody changing anything.
    #[must_use]
    pub fn may_retry(&self) -> bool {
        match self {
            // A new request for the same purpose is harmless even if the last one ran: components are written with the same bytes,
            // record updates are conditional.
            Fault::Call(error) => match &**error {
                CallError::Fop(refusal) => refusal.may_retry() || *refusal == FopError::ReplyGone,
                CallError::TimedOut { .. } | CallError::PeerLost { .. } => true,
                _ => false,
            },
            Fault::Suspect => true,
            // Whoever took it out may take it back while somebody waits for it.
            Fault::State(state) => *state == DeviceState::Detached,
            _ => false,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::State(state) => write!(f, "the device is {}", state.word()),
            Fault::Call(error) => error.fmt(f),
            Fault::Checksum { block } => write!(f, "block {block} does not match its checksum"),
            Fault::Absent => f.write_str("the block is gone though the rest of its row is there"),
            Fault::Suspect => f.write_str("the server did not answer a moment ago"),
            Fault::BadAnswer { reason } => write!(f, "the answer does not fit the request: {reason}"),
            Fault::NoTarget => f.write_str("the pool has no such target"),
            Fault::Moved => f.write_str("the object was moved to another pool version meanwhile"),
            Fault::CreditEnded => f.write_str(
                "the credit that it was written beside ended meanwhile: control did not hear this client",
            ),
            Fault::HoldLost => f.write_str("the lease on the object ended: others may use it now"),
        }
    }
}

/// One unit, or one replica of a record, that could not be read or written.
#[derive(Clone, Debug)]
pub struct UnitFailure {
    /// Group and unit; `None` for a replica of the object's record.
    pub unit: Option<(u64, u32)>,
    /// The device.
    pub device: Fid,
    /// The server in front of it.
    pub server: Endpoint,
    /// Why.
    pub fault: Fault,
}

impl fmt::Display for UnitFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.unit {
            Some((group, unit)) => write!(f, "unit {unit} of group {group}")?,
            None => write!(f, "the record's replica")?,
        }
        write!(f, " on device {} at {}: {}", self.device, self.server, self.fault)
    }
}

/// Failed units as one text: the first of each of a few devices spelled out, the others counted.
#[derive(Clone, Debug)]
pub struct UnitFailures(pub Vec<UnitFailure>);

impl fmt::Display for UnitFailures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SPELLED_OUT: usize = 3;
        let devices: BTreeSet<Fid> = self.0.iter().map(|failure| failure.device).collect();
        let mut spelled_out = BTreeSet::new();
        for failure in &self.0 {
            if spelled_out.len() == SPELLED_OUT {
                break;
            }
            if spelled_out.insert(failure.device) {
                write!(f, "{}{failure}", if spelled_out.len() == 1 { "" } else { "; " })?;
            }
        }
        let more = self.0.len() - spelled_out.len();
        let other_devices = devices.len() - spelled_out.len();
        match (more, other_devices) {
            (0, _) => Ok(()),
            (more, 0) => write!(f, "; and {more} more there"),
            (more, others) => {
                write!(f, "; and {more} more, on {} devices in all", others + spelled_out.len())
            }
        }
    }
}

impl UnitFailures {
    /// True if each of them may be gone at the next try.
    fn may_retry(&self) -> bool {
        self.0.iter().any(|failure| failure.fault.may_retry())
    }

    /// True if a server goes by a newer configuration than the request did.
    pub(crate) fn has_stale(&self) -> bool {
        let is_stale = |fault: &Fault| matches!(fault.refusal(), Some(FopError::Stale { .. }));
        self.0.iter().any(|failure| is_stale(&failure.fault))
    }
}

/// Why an operation failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The credit that the operation needs cannot be held, or no longer.
    #[error(transparent)]
    Hold(#[from] HoldError),
    /// A change carries one ticket.
    #[error(
        "object {object} is to be held by a client whose changes carry a lock's ticket, or that holds something already: connect another client"
    )]
    TwoTickets {
        /// The object.
        object: ObjectId,
    },
    /// A device is not in repair, or no longer.
    #[error("nothing is copied to a device that is not in repair: {failures}")]
    Repair {
        /// The device, and its state.
        failures: UnitFailures,
    },
    /// The local endpoint cannot be opened.
    #[error("cannot open the endpoint {endpoint}: {reason}")]
    Start {
        /// The endpoint.
        endpoint: Endpoint,
        /// What the transport said.
        reason: String,
    },
    /// The control daemon does not give the configuration.
    #[error("no configuration from the control daemon at {control}: {reason}")]
    NoConfiguration {
        /// Who was asked.
        control: Endpoint,
        /// Its answer, or that there was none.
        reason: String,
    },
    /// The peer refuses this client's credential.
    #[error("{peer} and this client's credential do not go together: {reason}")]
    WrongCredential {
        /// Who refused.
        peer: Endpoint,
        /// What it said.
        reason: String,
    },
    /// The object is there already.
    #[error("object {object} exists already")]
    Exists {
        /// The object.
        object: ObjectId,
    },
    /// There is no such object.
    #[error("object {object} does not exist")]
    NotFound {
        /// The object.
        object: ObjectId,
    },
    /// The unit size asked for is not allowed.
    #[error("a unit of {unit_bytes} bytes is not possible: {reason}")]
    UnitBytes {
        /// Bytes asked for.
        unit_bytes: u32,
        /// What is allowed.
        reason: String,
    },
    /// Start or count is not a multiple of the block.
    #[error("{extent} does not start and end at multiples of 4096")]
    NotAligned {
        /// The extent.
        extent: ByteExtent,
    },
    /// A read that asked to be refused there met bytes that were never written.
    #[error("object {object}: not every byte of {extent} was written")]
    Hole {
        /// The object.
        object: ObjectId,
        /// What was to be read.
        extent: ByteExtent,
    },
    /// The buffers hold another number of bytes than the extent.
    #[error("{extent} was given {bytes} bytes to write")]
    PartsLength {
        /// The extent.
        extent: ByteExtent,
        /// Bytes in the buffers.
        bytes: u64,
    },
    /// More than one operation may hold, or past the last byte of an object.
    #[error(
        "{extent} is too long or too far for one operation: at most {bytes_max} bytes, below {object_max}"
    )]
    TooLong {
        /// The extent.
        extent: ByteExtent,
        /// Bytes of one operation.
        bytes_max: u64,
        /// Bytes of an object.
        object_max: u64,
    },
    /// A piece of a replacement does not start at a group, or a piece that ends inside a group is not the last one.
    #[error(
        "the piece {piece} of a replacement of object {object} does not fit: pieces start at multiples of {group_bytes} \
         (a parity group), and only the last one may end inside a group"
    )]
    Piece {
        /// The object.
        object: ObjectId,
        /// The piece.
        piece: ByteExtent,
        /// Bytes of a group.
        group_bytes: u64,
    },
    /// The object lies in a pool version that the configuration does not have.
    #[error("object {object} belongs to pool version {found}, which configuration {version} does not have")]
    OtherPool {
        /// The object.
        object: ObjectId,
        /// Its pool version.
        found: Fid,
        /// Version of the configuration.
        version: u64,
    },
    /// A pool that is not, or no longer, being rebalanced.
    #[error("pool {pool} is not being rebalanced any more, or has another newest version")]
    NotMoving {
        /// The pool.
        pool: Fid,
    },
    /// A device of which nothing is to be copied to spare units, from them, or freed in them.
    #[error(
        "nothing of device {device} is on its way to spare units or back any more, or something else by now"
    )]
    NotSparing {
        /// The device.
        device: Fid,
    },
    /// An object that others went on using.
    #[error("object {object} could not be moved in {tries} tries: others went on changing it")]
    InUse {
        /// The object.
        object: ObjectId,
        /// How often.
        tries: u32,
    },
    /// A pool that is not there.
    #[error("{pool} is no pool of this cluster; `clovis pool list` shows them")]
    NoPool {
        /// As asked for.
        pool: Fid,
    },
    /// The object's record does not make sense.
    #[error("the record of object {object} has layout {width} with units of {unit_bytes} bytes: {reason}")]
    BadRecord {
        /// The object.
        object: ObjectId,
        /// Shape in the record.
        width: LayoutWidth,
        /// Unit size in the record.
        unit_bytes: u32,
        /// What is wrong.
        reason: String,
    },
    /// The record could not be read or written on the devices that it needs.
    #[error("the record of object {object} cannot be {verb}: {failures}")]
    Record {
        /// The object.
        object: ObjectId,
        /// "read" or "written".
        verb: &'static str,
        /// Each replica that failed.
        failures: UnitFailures,
    },
    /// Other writers kept changing the record.
    #[error("other writers keep changing object {object}: gave up after {tries} tries")]
    Conflict {
        /// The object.
        object: ObjectId,
        /// Tries made.
        tries: u32,
    },
    /// Somebody replaced or deleted the object's bytes while it was open.
    #[error("object {object} was replaced or deleted by another client: open it again")]
    Replaced {
        /// The object.
        object: ObjectId,
    },
    /// More units of a group are lost than its parity replaces.
    #[error("cannot read group {group} of object {object}: too many units are lost: {failures}")]
    Read {
        /// The object.
        object: ObjectId,
        /// The parity group.
        group: u64,
        /// Each lost unit.
        failures: UnitFailures,
    },
    /// Parity does not match the data (`read_verify`).
    #[error("parity unit {unit} of group {group} of object {object} does not match the data in row {row}")]
    ParityMismatch {
        /// The object.
        object: ObjectId,
        /// The parity group.
        group: u64,
        /// The parity unit.
        unit: u32,
        /// First row that differs.
        row: u64,
    },
    /// A device that has to acknowledge a write did not.
    #[error("cannot write object {object}: {failures}")]
    Write {
        /// The object.
        object: ObjectId,
        /// Each unit that failed.
        failures: UnitFailures,
    },
    /// Too many devices do not answer for a complete list.
    #[error("the list of objects would not be complete: {failures}")]
    List {
        /// Each device that failed.
        failures: UnitFailures,
    },
    /// Reading the bytes to upload failed, or taking downloaded ones.
    #[error("{doing} at byte {offset}: {reason}")]
    Local {
        /// "reading the source" or "writing the copy".
        doing: &'static str,
        /// Where.
        offset: u64,
        /// What the caller's side said.
        reason: String,
    },
    /// A broken invariant of the client.
    #[error("internal error of the client: {0}")]
    Internal(String),
}

impl Blamed for ClientError {
    fn blame(&self) -> Blame {
        match self {
            ClientError::Hold(error) => error.blame(),
            ClientError::Exists { .. }
            | ClientError::TwoTickets { .. }
            | ClientError::NotFound { .. }
            | ClientError::UnitBytes { .. }
            | ClientError::NotAligned { .. }
            | ClientError::Hole { .. }
            | ClientError::PartsLength { .. }
            | ClientError::TooLong { .. }
            | ClientError::Piece { .. }
            | ClientError::WrongCredential { .. }
            | ClientError::OtherPool { .. }
            | ClientError::NoPool { .. }
            | ClientError::Start { .. }
            | ClientError::Local { .. } => Blame::Caller,
            ClientError::BadRecord { .. } => Blame::Peer,
            ClientError::NoConfiguration { .. }
            | ClientError::Record { .. }
            | ClientError::Conflict { .. }
            | ClientError::NotMoving { .. }
            | ClientError::NotSparing { .. }
            | ClientError::InUse { .. }
            | ClientError::Replaced { .. }
            | ClientError::Read { .. }
            | ClientError::ParityMismatch { .. }
            | ClientError::Write { .. }
            | ClientError::Repair { .. }
            | ClientError::List { .. } => Blame::Environment,
            ClientError::Internal(_) => Blame::Us,
        }
    }

    fn may_retry(&self) -> bool {
        match self {
            ClientError::NoConfiguration { .. } | ClientError::Conflict { .. } => true,
            ClientError::Hold(error) => error.may_retry(),
            ClientError::Record { failures, .. }
            | ClientError::Read { failures, .. }
            | ClientError::Write { failures, .. }
            | ClientError::List { failures } => failures.may_retry(),
            _ => false,
        }
    }
}
