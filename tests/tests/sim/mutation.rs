//! Bugs on purpose, to prove that the simulation finds bugs. Each is a value handed to a run, and off for everybody else.
//!
//! docs/simulation.md has the table with the number of seeds within which each is found; the short set checks it.

use std::os::fd::RawFd;

use base::Instant;
use spdk_stob::{Backend, BlockDone, BlockOp, Geometry, SimBackend};

/// A seeded bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// A device answers flushes and does not do them, as if the stob's commit forgot its flush.
    SkipFlush,
    /// A device answers one write in forty and does not do it.
    LoseWrite,
    /// A device writes one block in sixty to the place behind its own.
    MisplacedWrite,
    /// A node that starts again has the same incarnation as before.
    EpochReused,
    /// One of control's own.
    Control(control::Bug),
    /// One of the servers' own.
    Server(server::Bug),
    /// One of rpc's own, at every server.
    Rpc(rpc::Bug),
    /// One of the client's own, or of its rpc machine.
    Client(client::Bug),
}

impl Mutation {
    /// All, with the number of seeds from 1 on within which each has to be found.
    pub const ALL: &[(Mutation, u64)] = &[
        (Mutation::SkipFlush, 8),
        (Mutation::LoseWrite, 8),
        (Mutation::Rpc(rpc::Bug::ReplyCacheOff), 8),
        (Mutation::Rpc(rpc::Bug::SlotRecordsOff), 80),
        (Mutation::Rpc(rpc::Bug::SlotRecordNotWritten), 80),
        (Mutation::Rpc(rpc::Bug::LowestRecordWins), 80),
        (Mutation::Rpc(rpc::Bug::ResumedTooEarly), 80),
        (Mutation::Client(client::Bug::Rpc(rpc::Bug::SessionNeverLost)), 16),
        (Mutation::Rpc(rpc::Bug::FomPlaceLeaked), 16),
        (Mutation::Rpc(rpc::Bug::WakeLost), 16),
        (Mutation::Client(client::Bug::Rpc(rpc::Bug::SlotFreedEarly)), 16),
        (Mutation::Client(client::Bug::Rpc(rpc::Bug::ReplyToAnyCall)), 40),
        (Mutation::MisplacedWrite, 8),
        (Mutation::EpochReused, 8),
        (Mutation::Server(server::Bug::BufferLeaked), 8),
        (Mutation::Client(client::Bug::AbsentIsZero), 16),
        (Mutation::Client(client::Bug::OneReplicaIsEnough), 16),
        (Mutation::Client(client::Bug::StaleParity), 16),
        (Mutation::Client(client::Bug::DropBeforeCommit), 60),
        (Mutation::Control(control::Bug::ToldBeforeDurable), 40),
        (Mutation::Server(server::Bug::LeaseUnchecked), 24),
        (Mutation::Client(client::Bug::FirstAnswerIsEnough), 60),
        (Mutation::Client(client::Bug::RepairBesideWrites), 40),
        (Mutation::Client(client::Bug::PastTheSpare), 16),
        (Mutation::Client(client::Bug::MoveBesideWrites), 40),
        (Mutation::Control(control::Bug::ToldBeforeMajority), 40),
        (Mutation::Control(control::Bug::LeadNotAsked), 40),
        (Mutation::Control(control::Bug::VoteForgotten), 40),
        (Mutation::Control(control::Bug::EntriesLate), 40),
        (Mutation::Control(control::Bug::ReignWithoutLine), 40),
        (Mutation::Control(control::Bug::MembersForgotten), 40),
    ];

    /// Seeded bugs that no seed has shown yet: looked for with `CLOVIS_SIM_BUGS`, and demanded of nobody. One that is found goes to
    /// [`Mutation::ALL`]. None now.
    pub const CANDIDATES: &[(Mutation, u64)] = &[];

    /// Control's bug, if it is one.
    pub fn control_bug(self) -> Option<control::Bug> {
        match self {
            Mutation::Control(bug) => Some(bug),
            _ => None,
        }
    }

    /// True if a cluster with one control daemon cannot show it.
    pub fn needs_several_controls(self) -> bool {
        self.control_bug().is_some_and(control::Bug::needs_several)
    }

    /// The servers' bug, if it is one.
    pub fn server_bug(self) -> Option<server::Bug> {
        match self {
            Mutation::Server(bug) => Some(bug),
            _ => None,
        }
    }

    /// Rpc's bug, if it is one.
    pub fn rpc_bug(self) -> Option<rpc::Bug> {
        match self {
            Mutation::Rpc(bug) => Some(bug),
            _ => None,
        }
    }

    /// The client's bug, if it is one.
    pub fn client_bug(self) -> Option<client::Bug> {
        match self {
            Mutation::Client(bug) => Some(bug),
            _ => None,
        }
    }
}

/// A backend that may be broken.
pub struct MutatedBackend {
    inner: SimBackend,
    mutation: Option<Mutation>,
    answered: Vec<BlockDone>,
    count: u64,
}

impl MutatedBackend {
    pub fn new(inner: SimBackend, mutation: Option<Mutation>) -> MutatedBackend {
        MutatedBackend { inner, mutation, answered: Vec::new(), count: 0 }
    }
}

impl Backend for MutatedBackend {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn try_submit(&mut self, op: BlockOp, token: u64) -> Result<(), BlockOp> {
        let op = match (self.mutation, op) {
            (Some(Mutation::SkipFlush), BlockOp::Flush) => {
                self.answered.push(BlockDone { token, result: Ok(()), buffer: None });
                return Ok(());
            }
            (Some(Mutation::SkipFlush), BlockOp::WriteThrough { start_block, parts }) => {
                BlockOp::Write { start_block, parts }
            }
            (Some(Mutation::LoseWrite), BlockOp::Write { start_block, parts }) => {
                self.count += 1;
                if self.count.is_multiple_of(40) {
                    self.answered.push(BlockDone { token, result: Ok(()), buffer: None });
                    return Ok(());
                }
                BlockOp::Write { start_block, parts }
            }
            (Some(Mutation::MisplacedWrite), BlockOp::Write { start_block, parts }) => {
                self.count += 1;
                let blocks: u64 = parts.iter().map(|part| part.len() as u64 / 4096).sum();
                let has_room = start_block + blocks < self.geometry().size_blocks;
                let is_off = self.count.is_multiple_of(60) && has_room;
                BlockOp::Write { start_block: start_block + u64::from(is_off), parts }
            }
            (_, op) => op,
        };
        self.inner.try_submit(op, token)
    }

    fn flush_queue(&mut self) {
        self.inner.flush_queue();
    }

    fn poll(&mut self, now: Instant, done: &mut Vec<BlockDone>) -> usize {
        let count = self.answered.len();
        done.append(&mut self.answered);
        count + self.inner.poll(now, done)
    }

    fn next_deadline(&self) -> Option<Instant> {
        if self.answered.is_empty() { self.inner.next_deadline() } else { Some(Instant::ZERO) }
    }

    fn wait_fd(&self) -> Option<RawFd> {
        None
    }
}
