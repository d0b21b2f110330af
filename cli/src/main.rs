//! The one binary `clovis`: daemons, tools of users and operators, benchmarks.
//!
//! Must not know: how anything below works. Each command is a module; [`args`] holds every flag; a command that cannot do
//! what was asked returns a [`failure::Failure`], printed as one line with exit status 1 (2 for a wrong command line).
//! Start reading at [`quickstart`]: it walks the whole road.
#![forbid(unsafe_code)]

mod addb;
mod args;
mod bench;
mod blueprint;
mod cluster;
mod cluster_folder;
mod conf;
mod connection;
mod controls;
mod credential;
mod credit;
mod daemon;
mod device;
mod doctor;
mod events;
mod failure;
mod holder;
mod in_process;
mod interrupt;
mod known_cluster;
mod lock;
mod manual;
mod metrics;
mod net;
mod objects;
mod output;
mod page;
mod pool;
mod progress;
mod quickstart;
mod rebalance;
mod repair;
mod status;
mod stob;
mod stob_bench;
mod table;
mod threads;
mod traffic;
mod watch;
mod whole_file;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use args::{Cli, ClusterCommand, Command};
use failure::Failure;

/// Version of this program, as `--version` and the running daemons say it.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Benchmarks print allocations per operation.
#[global_allocator]
static ALLOCATOR: runtime::CountingAllocator = runtime::CountingAllocator;

fn main() -> ExitCode {
    let outcome = run(parsed::<Cli>("clovis").command);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report("clovis"),
    }
}

/// The command line, parsed. A wrong one ends the program with one line on standard error and status 2; `--help` and
/// `--version` end it with their text and status 0.
fn parsed<T: Parser>(program: &'static str) -> T {
    let error = match T::try_parse() {
        Ok(parsed) => return parsed,
        Err(error) => error,
    };
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        error.exit();
    }
    // clap speaks in paragraphs: what is wrong, what is missing, hints, usage. The usage has a command of its own.
    let text = error.to_string();
    let said = text
        .split("\n\nUsage:")
        .next()
        .unwrap_or(&text)
        .split("\n\nFor more information")
        .next()
        .unwrap_or(&text);
    let said = said.strip_prefix("error: ").unwrap_or(said);
    // A list of missing arguments follows its heading: one line, no joint between them.
    let said = said.replace(":\n", ": ").replace(":   ", ": ");
    eprintln!("{program}: {} (see `{program} --help`)", Failure::new(said));
    std::process::exit(2);
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Quickstart(args) => quickstart::run(&args),
        Command::Cluster { action } => match action {
            ClusterCommand::Init(args) => cluster::init(&args),
            ClusterCommand::Start(args) => cluster::start(&args),
            ClusterCommand::Stop(args) => cluster::stop(&args),
            ClusterCommand::Status(args) => cluster::status(&args),
        },
        Command::Credential { action } => credential::run(&action),
        Command::Control(args) => controls::run(&args),
        Command::Server(args) => daemon::server(&args),
        Command::Cp(args) => objects::copy_in(&args),
        Command::Cat(args) => objects::copy_out(&args),
        Command::Stat(args) => objects::stat(&args),
        Command::Rm(args) => objects::remove(&args),
        Command::Ls(args) => objects::list(&args),
        Command::Conf { action } => conf::run(&action),
        Command::Status(args) => status::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Events(args) => events::run(&args),
        Command::Watch(args) => watch::watch(&args),
        Command::Notify(args) => watch::notify(&args),
        Command::Lock { action } => lock::run(&action),
        Command::Credit { action } => credit::run(&action),
        Command::Device { action } => device::run(&action),
        Command::Repair { action } => repair::run(&action),
        Command::Rebalance { action } => rebalance::run(&action),
        Command::Pool { action } => pool::run(&action),
        Command::Stob { action } => stob::run(&action),
        Command::Net { action } => net::run(&action),
        Command::Addb { action } => addb::run(&action),
        Command::Top(args) => addb::top::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    }
}
