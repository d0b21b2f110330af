//! What the data services did and how long it took: reported to the control daemon, which keeps the last hour for people.

use base::Fid;
use bincode::{Decode, Encode};

use crate::fop;

/// What a locality of a process did since it started.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LoadReport {
    /// The process.
    pub process: Fid,
    /// Which of its localities.
    pub locality: u32,
    /// Its incarnation.
    pub epoch: u64,
    /// Bytes of component objects that it read for others.
    pub read_bytes: u64,
    /// Bytes of component objects that it wrote for others.
    pub written_bytes: u64,
    /// Component reads, from the arrival of the request to its reply.
    pub reads: Times,
    /// Component writes, likewise.
    pub writes: Times,
}

/// A histogram of times, as ADDB keeps it (docs/addb.md#bytes); without the buckets that are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Times {
    /// All times together, in nanoseconds.
    pub sum_ns: u64,
    /// The longest, in nanoseconds.
    pub longest_ns: u64,
    /// The buckets with something in them, by number.
    pub buckets: Vec<TimeBucket>,
}

/// How many times fell into a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TimeBucket {
    /// Its number.
    pub bucket: u8,
    /// Times in it.
    pub count: u64,
}

/// It counts; or the process is not registered, and it does not.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LoadReportReply;
fop!(LoadReport, LoadReportReply, LoadReport, "load-report", Idempotent);

/// Asks for samples of the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LoadGet {
    /// Only those with a greater number.
    pub after: u64,
    /// At most so many, the newest.
    pub most: u32,
}

/// Samples of what the data services did, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LoadGetReply {
    /// The time that a sample covers.
    pub period_ms: u32,
    /// Whole periods only.
    pub samples: Vec<LoadSample>,
}
fop!(LoadGet, LoadGetReply, LoadGet, "load-get", Idempotent);

/// What was reported to control in one period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct LoadSample {
    /// Counts periods since control started, from 1.
    pub number: u64,
    /// When it ended, in seconds since 1970; 0 if unknown.
    pub unix_s: u64,
    /// Processes that reported.
    pub processes: u32,
    /// Component reads.
    pub reads: u64,
    /// Component writes.
    pub writes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// The time that half of the reads were not longer than, in nanoseconds; 0 without reads.
    pub read_p50_ns: u64,
    /// The same of 99 % of the reads.
    pub read_p99_ns: u64,
    /// The same of half of the writes.
    pub write_p50_ns: u64,
    /// The same of 99 % of the writes.
    pub write_p99_ns: u64,
}
