//! Credits of the resource manager: borrowed of the control daemon, asked back by it, returned. Rules: docs/rm.md.

use std::fmt;

use base::{Endpoint, Fid};
use bincode::{Decode, Encode};

use crate::fop;
use crate::lock::LockMode;

/// A borrower: a number that a client generates for each session with the resource manager. Its writes under credits carry it
/// as the owner of their ticket. 0 is nobody's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct BorrowerId(pub u128);

impl fmt::Display for BorrowerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Something of which credits are lent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum RmResource {
    /// The bytes of an object.
    Object(Fid),
    /// The keys of an index.
    Keys(Fid),
    /// Numbers for objects that nobody else has.
    Fids,
    /// Anything with a name of 1 to 64 bytes.
    Named(String),
}

impl fmt::Display for RmResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RmResource::Object(fid) => write!(f, "object {fid}"),
            RmResource::Keys(fid) => write!(f, "keys of {fid}"),
            RmResource::Fids => f.write_str("fids"),
            RmResource::Named(name) => f.write_str(name),
        }
    }
}

/// Numbers of objects, from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct FidRange {
    /// The first; not looked at in a request.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// What may be used of a resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum RmCredit {
    /// All of it.
    Whole {
        /// Beside others, or alone.
        mode: LockMode,
    },
    /// Bytes of an object.
    Bytes {
        /// The first.
        first: u64,
        /// The first behind them.
        end: u64,
        /// Beside others, or alone.
        mode: LockMode,
    },
    /// Keys of an index.
    Keys {
        /// The first.
        first: Vec<u8>,
        /// The first behind them; `None`: all from the first on.
        end: Option<Vec<u8>>,
        /// Beside others, or alone.
        mode: LockMode,
    },
    /// Numbers of objects.
    Fids(FidRange),
}

/// Begins a session; the same again gets the same.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RmBegin {
    /// Who.
    pub borrower: BorrowerId,
    /// For people, up to 64 bytes.
    pub name: String,
}

/// It is known, durably.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RmBeginReply {
    /// Epoch of its ticket, whose owner has the borrower's number.
    pub epoch: u64,
    /// It is polled again before this much time is over, counted from the sending.
    pub lease_ms: u64,
}

/// Asks for a credit, or for the one that was asked for under this number.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RmBorrow {
    /// Who.
    pub borrower: BorrowerId,
    /// Name of the loan, one more with each of the borrower.
    pub number: u64,
    /// Of what.
    pub resource: RmResource,
    /// What.
    pub credit: RmCredit,
    /// How long control may wait for it, in milliseconds. Asking again keeps the place in the queue.
    pub wait_ms: u32,
}

/// One who has what another waits for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RmHolder {
    /// Who.
    pub borrower: BorrowerId,
    /// Its name.
    pub name: String,
    /// Where it asks from.
    pub from: Endpoint,
    /// Its lease ended, and control waits until nothing of it can have an effect any more.
    pub lost: bool,
}

/// The answer to [`RmBorrow`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum RmBorrowReply {
    /// Lent, durably.
    Lent {
        /// What exactly.
        credit: RmCredit,
    },
    /// Not now.
    Busy {
        /// Some of those who have it.
        holders: Vec<RmHolder>,
        /// Requests that wait before.
        ahead: u32,
    },
    /// Control does not know the borrower: its session is over.
    NoSession,
    /// There are no more.
    Exhausted,
}

/// Gives loans back, or no longer waits for them.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RmReturn {
    /// Who.
    pub borrower: BorrowerId,
    /// Which.
    pub numbers: Vec<u64>,
    /// All of them, and the session is over.
    pub leave: bool,
}

/// They are free, durably.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RmReturnReply;

/// The borrower lives; what does control want back?
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RmPoll {
    /// Who.
    pub borrower: BorrowerId,
    /// Version of the configuration that it has: its read credit. A newer one is told at once.
    pub version: u64,
    /// Loans that it knows to be asked back, sorted: not told again.
    pub known: Vec<u64>,
    /// How long control may wait for something to say, in milliseconds.
    pub wait_ms: u32,
}

/// The answer to [`RmPoll`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RmPollReply {
    /// False: the session is over.
    pub has_session: bool,
    /// Loans that others wait for, or that control does not expect back any more.
    pub asked_back: Vec<u64>,
    /// The newest version of the configuration.
    pub version: u64,
}

/// Loans behind a place in the list, all of a borrower together.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RmList {
    /// Borrower and number of the last one that is known.
    pub after: Option<(BorrowerId, u64)>,
}

/// A loan, for people.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RmLoanEntry {
    /// Who has it.
    pub holder: RmHolder,
    /// Which of its loans.
    pub number: u64,
    /// Of what.
    pub resource: RmResource,
    /// What.
    pub credit: RmCredit,
    /// Others wait for it.
    pub asked_back: bool,
    /// Since the holder was heard.
    pub silent_ms: u64,
}

/// The answer to [`RmList`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RmListReply {
    /// In the order of borrowers and numbers.
    pub loans: Vec<RmLoanEntry>,
    /// There are more behind the last one.
    pub more: bool,
    /// Sessions, with and without loans.
    pub borrowers: u32,
    /// Requests that wait.
    pub waiting: u32,
}

/// A session as control's store has it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct BorrowerRecord {
    /// Who.
    pub borrower: BorrowerId,
    /// For people.
    pub name: String,
    /// Epoch of its ticket.
    pub epoch: u64,
    /// Where it was last heard from.
    pub from: Endpoint,
    /// Number of the fence that has to be acknowledged before its loans are free; 0: its lease holds.
    pub fence: u64,
}

/// A loan as control's store has it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LoanRecord {
    /// Who.
    pub borrower: BorrowerId,
    /// Which of its loans.
    pub number: u64,
    /// Of what.
    pub resource: RmResource,
    /// What.
    pub credit: RmCredit,
}

fop!(RmBegin, RmBeginReply, RmBegin, "rm-begin", Idempotent);
fop!(RmBorrow, RmBorrowReply, RmBorrow, "rm-borrow", Idempotent);
fop!(RmReturn, RmReturnReply, RmReturn, "rm-return", Idempotent);
fop!(RmPoll, RmPollReply, RmPoll, "rm-poll", Idempotent);
fop!(RmList, RmListReply, RmList, "rm-list", Idempotent);
