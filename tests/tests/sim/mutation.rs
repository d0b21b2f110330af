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
    /// Servers forget what they answered: a request that is sent again runs again.
    ReplyCacheOff,
    /// A server that restarted does not look at the records of its sessions' slots.
    SlotRecordsOff,
    /// One of the client's own.
    Client(client::Bug),
}

impl Mutation {
    /// All, with the number of seeds from 1 on within which each has to be found.
    pub const ALL: &[(Mutation, u64)] = &[
        (Mutation::SkipFlush, 8),
        (Mutation::LoseWrite, 8),
        (Mutation::ReplyCacheOff, 8),
        (Mutation::SlotRecordsOff, 40),
        (Mutation::Client(client::Bug::AbsentIsZero), 8),
        (Mutation::Client(client::Bug::OneReplicaIsEnough), 8),
        (Mutation::Client(client::Bug::StaleParity), 8),
        (Mutation::Client(client::Bug::DropBeforeCommit), 24),
    ];

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
            (Some(Mutation::LoseWrite), BlockOp::Write { start_block, parts }) => {
                self.count += 1;
                if self.count.is_multiple_of(40) {
                    self.answered.push(BlockDone { token, result: Ok(()), buffer: None });
                    return Ok(());
                }
                BlockOp::Write { start_block, parts }
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
