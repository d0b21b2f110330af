//! `clovis bench`: this machine against peers and limits, as ratios.
//!
//! Each comparison is a row of interleaved A/B pairs ([`pairs`]); a peer that is not installed leaves a row without a ratio; a
//! ratio counts only by the rules of [`pairs`] and on a machine that was quiet ([`machine`]). Costs come from the counters
//! of the data path. Exit status 0 also when a target is missed: a benchmark tells, tests forbid.
//! Start reading at [`run`], then [`object`].

mod encode;
mod idle;
mod machine;
mod net;
mod object;
mod pairs;
mod peer;
mod report;
mod round_trip;
mod rpc;
mod serving;
mod stob;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::failure::Failure;
use machine::Machine;
use report::Report;

/// `clovis bench`
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What to measure
    #[arg(value_enum, default_value_t = What::All)]
    pub what: What,
    /// Print one JSON object instead of tables
    #[arg(long)]
    pub json: bool,
    /// Interleaved pairs of each comparison [default: 11, with --quick 3]; fewer than 11 do not count
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub pairs: Option<u32>,
    /// Small samples, for a first look: the result does not count
    #[arg(long)]
    pub quick: bool,
    /// Only rows whose name has this text: "random read" (stob and net)
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// Folder on a tmpfs for devices and files [default: /dev/shm]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Only asks null requests: what `bench rpc` runs under callgrind
    #[arg(long, value_name = "COUNT,RECORDS", hide = true)]
    pub null_requests: Option<String>,
    /// Only serves echoes at this endpoint, to one client: what `bench rpc` asks where a peer has two processes
    #[arg(long, value_name = "ENDPOINT", hide = true)]
    pub serve_echoes: Option<String>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Parity against ISA-L
    Encode,
    /// Bulk and messages over TCP loopback against iperf3
    Net,
    /// Writing and reading a 1 GiB object against cp
    Object,
    /// One device against fio on the same file, and its trees against redb
    Stob,
    /// Requests over lo and TCP loopback against ucx_perftest and tarpc, with formation and without
    Rpc,
    /// CPU time of an idle cluster
    Idle,
    /// Everything
    All,
}

/// How to measure.
#[derive(Clone, Debug)]
struct Plan {
    /// Pairs of each comparison.
    pairs: u32,
    /// Small samples.
    is_quick: bool,
    /// Where files go.
    folder: PathBuf,
    /// Rows are left out whose name does not have this.
    only: Option<String>,
}

impl Plan {
    /// How long a sample of what is measured by time should last: a little more than the least that counts.
    fn sample_time(&self) -> Duration {
        if self.is_quick { Duration::from_millis(500) } else { pairs::SAMPLE_TIME_MIN * 11 / 10 }
    }

    fn wants(&self, row: &str) -> bool {
        self.only.as_deref().is_none_or(|only| row.contains(only))
    }
}

/// Says what is going on, on standard error: a whole run takes a quarter of an hour.
fn announce(what: &str) {
    eprintln!("measuring {what}");
}

/// `clovis bench`
pub fn run(args: &BenchArgs) -> Result<(), Failure> {
    if let Some(order) = &args.null_requests {
        return rpc::null_requests(order);
    }
    if let Some(at) = &args.serve_echoes {
        return rpc::serve_echoes(at);
    }
    let plan = Plan {
        pairs: args.pairs.unwrap_or(if args.quick { 3 } else { 11 }),
        is_quick: args.quick,
        folder: args.dir.clone().unwrap_or_else(|| Path::new("/dev/shm").to_owned()),
        only: args.only.clone(),
    };
    let machine = Machine::look();
    let mut report = Report::default();
    let wants = |what: What| args.what == What::All || args.what == what;
    if wants(What::Encode) {
        report.comparisons.extend(encode::run(&plan)?);
    }
    if wants(What::Net) {
        let (comparisons, figures) = net::run(&plan)?;
        report.comparisons.extend(comparisons);
        report.figures.extend(figures);
    }
    if wants(What::Object) {
        report.comparisons.extend(object::run(&plan)?);
    }
    if wants(What::Stob) {
        report.comparisons.extend(stob::run(&plan, args.dir.as_deref())?);
    }
    if wants(What::Rpc) {
        let (comparisons, figures) = rpc::run(&plan)?;
        report.comparisons.extend(comparisons);
        report.figures.extend(figures);
    }
    if wants(What::Idle) {
        report.figures.extend(idle::run(&plan)?);
    }
    let load_after = machine::load_averages();
    if args.json {
        println!("{:#}", report.json(&machine, &load_after));
    } else {
        print!("{}", report.text(&machine, &load_after));
    }
    Ok(())
}
