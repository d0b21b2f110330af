//! `clovis control`: runs a control daemon, or looks after several that have one state.
//!
//! A change of the members is asked for again until it is done, so a command that was cut short, or met a change of the lead, is given again.

use std::time::Duration;

use fops::member::{MemberChange, MembersGet, MembersReply};
use serde_json::{Value, json};

use crate::args::{ControlArgs, ControlCommand, MemberChangeArgs, MemberCommand, MemberListArgs};
use crate::connection::Station;
use crate::daemon::{self, ControlSeat};
use crate::failure::Failure;
use crate::known_cluster::KnownCluster;
use crate::output;
use crate::table::{Align, Table};

/// How often it is asked whether a change is done.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// How long one daemon may take to say what it knows: one that is away must not hold up the list.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// `clovis control`
pub fn run(args: &ControlArgs) -> Result<(), Failure> {
    match (&args.action, &args.run) {
        (Some(ControlCommand::Member { action }), _) => match action {
            MemberCommand::List(args) => list(args),
            MemberCommand::Add(args) => change(args, true),
            MemberCommand::Remove(args) => change(args, false),
        },
        (None, Some(run)) => daemon::control(run),
        (None, None) => Err(Failure::new("name the cluster's configuration file with --config")),
    }
}

/// What each control daemon of the cluster file says of them all; `None` for one that does not answer.
pub fn ask_members(station: &mut Station, file: &KnownCluster) -> Vec<(ControlSeat, Option<MembersReply>)> {
    let seats = ControlSeat::all(file).into_iter();
    let ask = |seat: ControlSeat| {
        // Each is asked itself: the first one's endpoint is also the name of all of them.
        let said = station.call_itself(file, seat.endpoint, &MembersGet, ANSWER_WITHIN).ok();
        (seat, said)
    };
    seats.map(ask).collect()
}

/// The word for what a daemon is.
fn word(said: Option<&MembersReply>) -> &'static str {
    match said {
        None => "no answer",
        Some(said) if said.own == 0 => "alone",
        Some(said) if said.leader == said.own => "leads",
        Some(said) if said.members.iter().any(|one| one.number == said.own && one.is_voter) => "follows",
        Some(said) if said.members.iter().any(|one| one.number == said.own) => "is taken in",
        Some(_) => "not a member",
    }
}

/// Entries that a daemon lacks of those that the newest answer calls durable.
fn lag(said: &MembersReply, all: &[(ControlSeat, Option<MembersReply>)]) -> u64 {
    let newest = all.iter().filter_map(|(_, said)| said.as_ref()).map(|said| said.committed).max();
    newest.unwrap_or(0).saturating_sub(said.applied)
}

/// The table of `member list` and `status`.
pub fn members_table(all: &[(ControlSeat, Option<MembersReply>)]) -> String {
    let mut table = Table::new(&[
        ("control", Align::Right),
        ("endpoint", Align::Left),
        ("state", Align::Left),
        ("term", Align::Right),
        ("entries", Align::Right),
        ("behind", Align::Right),
    ]);
    for (seat, said) in all {
        let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
        table.row([
            seat.number.to_string(),
            seat.endpoint.to_string(),
            word(said.as_ref()).to_owned(),
            number(said.as_ref().map(|said| said.term)),
            number(said.as_ref().map(|said| said.applied)),
            number(said.as_ref().map(|said| lag(said, all))),
        ]);
    }
    table.render()
}

/// The same for machines.
pub fn members_json(all: &[(ControlSeat, Option<MembersReply>)]) -> Value {
    let one = |(seat, said): &(ControlSeat, Option<MembersReply>)| {
        json!({
            "number": seat.number,
            "endpoint": seat.endpoint.to_string(),
            "state": word(said.as_ref()),
            "term": said.as_ref().map(|said| said.term),
            "leader": said.as_ref().map(|said| said.leader),
            "committed": said.as_ref().map(|said| said.committed),
            "applied": said.as_ref().map(|said| said.applied),
            "behind": said.as_ref().map(|said| lag(said, all)),
        })
    };
    Value::Array(all.iter().map(one).collect())
}

fn list(args: &MemberListArgs) -> Result<(), Failure> {
    let file = KnownCluster::of(&args.connect)?;
    let all = ask_members(&mut Station::new("members")?, &file);
    if args.json {
        return output::line(&members_json(&all).to_string());
    }
    output::print(&members_table(&all))?;
    if all.iter().any(|(_, said)| said.as_ref().is_some_and(|said| said.own == 0 || said.leader == said.own))
    {
        return Ok(());
    }
    Err(Failure::new(
        "no control daemon leads: more than half of the members have to run and reach each other",
    ))
}

fn change(args: &MemberChangeArgs, adds: bool) -> Result<(), Failure> {
    let file = KnownCluster::of(&args.connect)?;
    let mut station = Station::new("members")?;
    let within = Duration::from_secs(args.connect.timeout);
    let deadline = station.now() + within;
    let change = MemberChange { number: args.number, adds };
    loop {
        let reply = station.call(&file, file.control.endpoint, &change, within)?;
        if reply.is_done {
            let word = if adds { "is a member" } else { "is no member any more" };
            return output::line(&format!("control daemon {} {word}", args.number));
        }
        if station.now() > deadline {
            return Err(Failure::new(format!(
                "control daemon {} is not {} after {} s: look with `clovis control member list`, and give the command again; it goes on",
                args.number,
                if adds { "taken in: does it run?" } else { "out" },
                within.as_secs()
            )));
        }
        station.pause(LOOK_AGAIN)?;
    }
}
