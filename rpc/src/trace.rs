//! When each request entered each phase: a ring of fixed size per locality, always on. ADDB grows from here.
//!
//! Cost: one 40-byte store per phase. Bound: [`crate::limits::TRACE_RECORDS`]; the oldest record is overwritten. Thread: the
//! owning locality.

use base::Instant;

/// A request entered a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhaseRecord {
    /// The requester's name for the request: the same in client and servers.
    pub request_id: u64,
    /// The fop's number.
    pub opcode: u16,
    /// The phase that began.
    pub phase: &'static str,
    /// When.
    pub at: Instant,
}

/// The last phases of a locality's requests.
#[derive(Debug)]
pub struct PhaseRing {
    records: Vec<PhaseRecord>,
    next_index: usize,
    records_max: usize,
    written: u64,
}

impl PhaseRing {
    /// An empty ring; its memory is taken now.
    #[must_use]
    pub fn new(records_max: usize) -> PhaseRing {
        PhaseRing { records: Vec::with_capacity(records_max), next_index: 0, records_max, written: 0 }
    }

    /// Adds a record, over the oldest if the ring is full.
    pub fn record(&mut self, record: PhaseRecord) {
        self.written += 1;
        if self.records.len() < self.records_max {
            self.records.push(record);
        } else if let Some(oldest) = self.records.get_mut(self.next_index) {
            *oldest = record;
            self.next_index = (self.next_index + 1) % self.records_max;
        }
    }

    /// The records, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &PhaseRecord> {
        let (newer, older) = self.records.split_at(self.next_index.min(self.records.len()));
        older.iter().chain(newer)
    }

    /// Records written since the start, lost ones included.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_records_are_overwritten() {
        let mut ring = PhaseRing::new(3);
        for n in 0..5 {
            ring.record(PhaseRecord { request_id: n, opcode: 1, phase: "run", at: Instant::from_nanos(n) });
        }
        let ids: Vec<u64> = ring.iter().map(|record| record.request_id).collect();
        assert_eq!((ids, ring.written()), (vec![2, 3, 4], 5));
        assert_eq!(PhaseRing::new(0).iter().count(), 0);
        PhaseRing::new(0).record(PhaseRecord { request_id: 1, opcode: 1, phase: "run", at: Instant::ZERO });
    }
}
