//! `clovis net fault`: rules by which a process of a cluster loses, delays, doubles or damages what leaves it, for trying how a cluster bears it.
//!
//! A rule is put into words here and parsed here too, so that a mistake is told before anything is sent; the process parses it again.

use std::fmt::Write as _;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use fops::admin::{NetFault, NetFaultReply, NetFaultRequest, NetFaultStatus};
use serde_json::json;
use verbs_net::FaultRule;

use super::ping::targets;
use crate::args::ConnectArgs;
use crate::connection::Station;
use crate::failure::Failure;
use crate::known_cluster::KnownCluster;
use crate::output;
use crate::table::{Align, Table};

/// The words of `clovis net fault`.
#[derive(Debug, Subcommand)]
pub enum FaultCommand {
    /// Add a rule; the first rule that fires on a frame decides what happens to it
    Add(AddArgs),
    /// Show the rules in force, and how often each fired
    List(ListArgs),
    /// Remove one rule, or all
    Clear(ClearArgs),
}

/// Where.
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// The process whose sending is disturbed: an endpoint, or a NID, which stands for every process of the cluster there
    pub target: String,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Cluster.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// What happens.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Action {
    /// It is lost
    Drop,
    /// It leaves later, in order (--ms)
    Delay,
    /// It leaves twice (messages only)
    Duplicate,
    /// Its header is damaged, which ends the connection
    Corrupt,
}

/// To what.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum What {
    /// Everything
    All,
    /// Requests and replies
    Message,
    /// Pulls and pushes
    Bulk,
    /// Hello, credits, pings
    Control,
}

/// `clovis net fault add`
#[derive(Debug, Args)]
pub struct AddArgs {
    /// Where.
    #[command(flatten)]
    pub to: TargetArgs,
    /// What happens
    #[arg(value_enum)]
    pub action: Action,
    /// Only what goes to this peer: a NID, or *@NET for a whole network [default: all]
    #[arg(long, value_name = "NID")]
    pub peer: Option<String>,
    /// Only frames of this kind
    #[arg(long, value_enum, default_value_t = What::All)]
    pub kind: What,
    /// One in so many of those, counted [default: 1]
    #[arg(long, value_name = "N")]
    pub one_in: Option<u64>,
    /// At most so often in all [default: without end]
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// Milliseconds of a delay
    #[arg(long, value_name = "MS")]
    pub ms: Option<u64>,
}

/// `clovis net fault list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Where.
    #[command(flatten)]
    pub to: TargetArgs,
}

/// `clovis net fault clear`
#[derive(Debug, Args)]
pub struct ClearArgs {
    /// Where.
    #[command(flatten)]
    pub to: TargetArgs,
    /// The rule, as `list` numbers it [default: all]
    pub id: Option<u64>,
}

/// `clovis net fault`
pub fn run(command: &FaultCommand) -> Result<(), Failure> {
    match command {
        FaultCommand::Add(args) => ask(&args.to, &NetFaultRequest::Add { rule: rule(args)?.to_string() }),
        FaultCommand::List(args) => ask(&args.to, &NetFaultRequest::List),
        FaultCommand::Clear(args) => ask(&args.to, &NetFaultRequest::Clear { id: args.id }),
    }
}

fn rule(args: &AddArgs) -> Result<FaultRule, Failure> {
    let action = match args.action {
        Action::Drop => "drop",
        Action::Delay => "delay",
        Action::Duplicate => "duplicate",
        Action::Corrupt => "corrupt",
    };
    let kind = match args.kind {
        What::All => "all",
        What::Message => "message",
        What::Bulk => "bulk",
        What::Control => "control",
    };
    let mut line = format!("{action} kind={kind}");
    let words = [("one-in", args.one_in), ("count", args.count), ("ms", args.ms)];
    for (name, value) in words.iter().filter_map(|(name, value)| Some((name, (*value)?))) {
        let _ = write!(line, " {name}={value}"); // into a String: cannot fail
    }
    if let Some(peer) = &args.peer {
        if peer.contains(char::is_whitespace) {
            return Err(Failure::new(format!("--peer {peer:?} is no NID")));
        }
        let _ = write!(line, " peer={peer}"); // into a String: cannot fail
    }
    line.parse().map_err(|error: verbs_net::FaultError| Failure::new(error.to_string()))
}

fn ask(to: &TargetArgs, request: &NetFaultRequest) -> Result<(), Failure> {
    let file = KnownCluster::of(&to.connect)?;
    let mut station = Station::new("fault")?;
    let within = Duration::from_secs(to.connect.timeout);
    let mut all = Vec::new();
    for endpoint in targets(&file, &to.target)? {
        let NetFaultReply { rules } =
            station.call(&file, endpoint, &NetFault { request: request.clone() }, within)?;
        all.push((endpoint.to_string(), rules));
    }
    if to.json {
        let processes: Vec<_> = all
            .iter()
            .map(|(endpoint, rules)| {
                let rules: Vec<_> = rules
                    .iter()
                    .map(|NetFaultStatus { id, rule, matched, fired }| {
                        json!({ "id": id, "rule": rule, "matched": matched, "fired": fired })
                    })
                    .collect();
                json!({ "endpoint": endpoint, "rules": rules })
            })
            .collect();
        return output::line(&format!("{:#}", json!({ "processes": processes })));
    }
    let mut table = Table::new(&[
        ("process", Align::Left),
        ("id", Align::Right),
        ("rule", Align::Left),
        ("matched", Align::Right),
        ("fired", Align::Right),
    ]);
    let mut is_empty = true;
    for (endpoint, rules) in &all {
        for found in rules {
            is_empty = false;
            table.row([
                endpoint.clone(),
                found.id.to_string(),
                found.rule.clone(),
                found.matched.to_string(),
                found.fired.to_string(),
            ]);
        }
    }
    if is_empty { output::line("no fault rules") } else { output::print(&table.render()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(action: Action, ms: Option<u64>, peer: Option<&str>) -> AddArgs {
        let connect = ConnectArgs { config: None, credential: None, timeout: 5 };
        AddArgs {
            to: TargetArgs { target: String::new(), json: false, connect },
            action,
            peer: peer.map(str::to_owned),
            kind: What::Bulk,
            one_in: Some(3),
            count: Some(2),
            ms,
        }
    }

    #[test]
    fn flags_become_a_rule_and_mistakes_are_told() {
        let line = rule(&args(Action::Delay, Some(40), Some("10.0.0.5@o2ib"))).unwrap().to_string();
        for word in ["delay", "peer=10.0.0.5@o2ib", "kind=bulk", "one-in=3", "count=2", "ms=40"] {
            assert!(line.contains(word), "{line}");
        }
        assert!(rule(&args(Action::Delay, None, None)).is_err(), "a delay of nothing");
        assert!(rule(&args(Action::Drop, Some(4), None)).is_err(), "a drop with milliseconds");
        assert!(rule(&args(Action::Drop, None, Some("here"))).is_err());
        assert!(rule(&args(Action::Drop, None, Some("* kind=all"))).is_err());
    }
}
