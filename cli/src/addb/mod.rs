//! `clovis addb dump|report|follow` and `clovis top`: the files that processes keep of what their requests did, also of killed ones.
//!
//! The files are read as they are, nobody is asked: it works without a cluster, on copies, and while the processes run. What cannot
//! be read is named; what is damaged inside is left out and counted. Bytes and words: docs/addb.md.
//! Start at [`sources::load`]; [`place`] is where processes make the files.

mod dump;
mod follow;
pub mod place;
mod report;
pub mod sources;
pub mod top;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::failure::Failure;

/// `clovis addb ...`
#[derive(Debug, Subcommand)]
pub enum AddbCommand {
    /// Print the records of files, oldest first
    Dump(DumpArgs),
    /// Say where time went: per fop, per phase, the slowest requests, and those that did not end
    Report(ReportArgs),
    /// Show one request's way through its client and servers
    Follow(FollowArgs),
}

/// Which files.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// ADDB files
    #[arg(value_name = "FILE", required_unless_present = "dir")]
    pub files: Vec<PathBuf>,
    /// Folder of a cluster: all files in its folder `addb`
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `clovis addb dump`
#[derive(Debug, Args)]
pub struct DumpArgs {
    /// Files.
    #[command(flatten)]
    pub sources: SourceArgs,
}

/// `clovis addb report`
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Files.
    #[command(flatten)]
    pub sources: SourceArgs,
    /// How many of the slowest requests to show
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub slowest: u32,
}

/// `clovis addb follow`
#[derive(Debug, Args)]
pub struct FollowArgs {
    /// Request, as dump and report print it (0x...)
    #[arg(value_name = "REQUEST", value_parser = parse_request)]
    pub request: u64,
    /// Files.
    #[command(flatten)]
    pub sources: SourceArgs,
}

/// `clovis top`
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Files.
    #[command(flatten)]
    pub sources: SourceArgs,
    /// Seconds from one look to the next
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub interval: u32,
    /// End after so many intervals (default: go on until it is interrupted)
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub count: Option<u32>,
}

/// Errors: no number.
fn parse_request(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text:?} is no request: write it as `clovis addb dump` prints it, 0x1234"))
}

/// `clovis addb`
pub fn run(command: &AddbCommand) -> Result<(), Failure> {
    match command {
        AddbCommand::Dump(args) => dump::run(args),
        AddbCommand::Report(args) => report::run(args),
        AddbCommand::Follow(args) => follow::run(args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_they_are_printed() {
        assert_eq!(parse_request("0xff"), Ok(255));
        assert_eq!(parse_request("12"), Ok(12));
        assert!(parse_request("ff").is_err() && parse_request("0x").is_err() && parse_request("").is_err());
    }
}
