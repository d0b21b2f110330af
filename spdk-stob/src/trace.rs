//! What a domain did, in order: so a test can show a completed flush before each acknowledgement.

use std::collections::VecDeque;

use crate::limits::TRACE_EVENTS_MAX;

/// One step. Transactions are numbered from 1 since the domain was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TraceEvent {
    /// The device completed all data of the transaction (it may sit in the device's cache).
    DataWritten {
        /// Which transaction.
        transaction: u64,
    },
    /// The device completed the log record.
    RecordWritten {
        /// Sequence of the record.
        sequence: u64,
    },
    /// The record is durable: a flush that was submitted after it was written has completed, or it was written through.
    Flushed {
        /// Sequence of the record.
        sequence: u64,
    },
    /// The caller was told that its transaction is durable.
    Acknowledged {
        /// Which transaction.
        transaction: u64,
        /// Sequence of the record that holds it.
        sequence: u64,
    },
    /// A checkpoint is durable, and the log before it is free.
    Checkpoint {
        /// Sequence of the superblock that names it.
        sequence: u64,
    },
}

/// The last [`TRACE_EVENTS_MAX`] events.
#[derive(Debug, Default)]
pub struct Trace(VecDeque<TraceEvent>);

impl Trace {
    /// Appends an event, and forgets the oldest when full.
    pub fn push(&mut self, event: TraceEvent) {
        if self.0.len() >= TRACE_EVENTS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(event);
    }

    /// Oldest first.
    #[must_use]
    pub fn events(&self) -> Vec<TraceEvent> {
        self.0.iter().copied().collect()
    }
}
