//! A server's side of the load: tells control every [`LOAD_REPORT_INTERVAL`] what it did since it started.
//!
//! One request at a time. A report that fails is not sent again: the next one tells of everything. Nothing depends on it but what people
//! see. Thread: the locality of its `RpcMachine`. Start at [`LoadReporter::start`].

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use base::Fid;
use base::time::nanos;
use fops::Opcode;
use fops::load::{LoadReport, TimeBucket, Times};
use rpc::addb::{Histogram, Side};
use runtime::Task;

use crate::conf_client::ConfClient;
use crate::limits::LOAD_REPORT_INTERVAL;

/// Bytes that a server moved for others since it started.
#[derive(Debug, Default)]
pub struct MovedBytes {
    /// Read from its devices.
    pub read: Cell<u64>,
    /// Written to its devices.
    pub written: Cell<u64>,
}

/// Reports until it is dropped.
#[derive(Debug)]
pub struct LoadReporter(Option<Task>);

impl LoadReporter {
    /// Reports what the rpc machine of `conf` served, and `moved`.
    #[must_use]
    pub fn start(conf: &ConfClient, process: Fid, epoch: u64, moved: &Rc<MovedBytes>) -> LoadReporter {
        let (conf, moved) = (conf.clone(), Rc::clone(moved));
        let locality = conf.rpc().locality().clone();
        let task = locality.clone().spawn("report-load", async move {
            loop {
                locality.sleep(LOAD_REPORT_INTERVAL).await;
                let report = LoadReport {
                    process,
                    locality: locality.index(),
                    epoch,
                    read_bytes: moved.read.get(),
                    written_bytes: moved.written.get(),
                    reads: served(&conf, &[Opcode::ComponentRead]),
                    writes: served(&conf, &[Opcode::ComponentWrite, Opcode::TicketedWrite]),
                };
                // Control that does not answer has other cares; the next report tells of this time, too.
                let _told = conf.call(&report, locality.now() + LOAD_REPORT_INTERVAL).await;
            }
        });
        LoadReporter(Some(task))
    }
}

impl Drop for LoadReporter {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(Task::cancel);
    }
}

/// Times of the requests of some opcodes that this machine served.
fn served(conf: &ConfClient, opcodes: &[Opcode]) -> Times {
    let ring = conf.rpc().addb();
    let mut sum = Histogram::default();
    for histogram in opcodes.iter().filter_map(|opcode| ring.histogram(Side::Server, *opcode as u16)) {
        sum.merge(&histogram);
    }
    times_of(&sum)
}

/// A histogram as it travels.
#[must_use]
pub fn times_of(histogram: &Histogram) -> Times {
    Times {
        sum_ns: nanos(histogram.sum()),
        longest_ns: nanos(histogram.longest()),
        buckets: histogram.filled().map(|(bucket, count)| TimeBucket { bucket, count }).collect(),
    }
}

/// The other way.
#[must_use]
pub fn histogram_of(times: &Times) -> Histogram {
    let filled = times.buckets.iter().map(|one| (one.bucket, one.count));
    let (sum, longest) = (Duration::from_nanos(times.sum_ns), Duration::from_nanos(times.longest_ns));
    Histogram::of_filled(filled, sum, longest)
}
