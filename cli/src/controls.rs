//! `clovis control`: runs a control daemon, or looks after several that have one state.
//!
//! A change of the members is asked for again until it is done, so a command that was cut short, or met a change of the lead, is given again.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use control::backup::{self, Backup};
use fops::admin::Ping;
use fops::member::{BackupGet, MemberChange, MembersGet, MembersReply};
use serde_json::{Value, json};

use crate::args::{
    ControlArgs, ControlBackupArgs, ControlCommand, ControlRestoreArgs, MemberChangeArgs, MemberCommand,
    MemberListArgs,
};
use crate::connection::{Station, create_device, device_path, folder_of, open_device, unix_s};
use crate::daemon::{self, ControlSeat};
use crate::failure::Failure;
use crate::known_cluster::KnownCluster;
use crate::output;
use crate::table::{Align, Table, bytes_text};
use crate::whole_file;

/// How often it is asked whether a change is done.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// How long one daemon may take to say what it knows: one that is away must not hold up the list.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// A member that the leader has not heard for so long is not led. Those that are answer every 150 ms.
const SILENT_MIN_MS: u64 = 3000;

/// `clovis control`
pub fn run(args: &ControlArgs) -> Result<(), Failure> {
    match (&args.action, &args.run) {
        (Some(ControlCommand::Member { action }), _) => match action {
            MemberCommand::List(args) => list(args),
            MemberCommand::Add(args) => change(args, true),
            MemberCommand::Remove(args) => change(args, false),
        },
        (Some(ControlCommand::Backup(args)), _) => back_up(args),
        (Some(ControlCommand::Restore(args)), _) => restore(args),
        (None, Some(run)) => daemon::control(run),
        (None, None) => Err(Failure::new("name the cluster's configuration file with --config")),
    }
}

/// A control daemon of the cluster file and what it says; `None` if it does not answer.
pub type SeenControl = (ControlSeat, Option<MembersReply>);

/// What each control daemon of the cluster file says of them all; `None` for one that does not answer.
pub fn ask_members(station: &mut Station, file: &KnownCluster) -> Vec<SeenControl> {
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
        Some(said) if said.members.iter().any(|one| one.number == said.own && one.is_voter) => {
            if said.leader == 0 { "hears no leader" } else { "follows" }
        }
        Some(said) if said.members.iter().any(|one| one.number == said.own) => "is taken in",
        Some(_) => "not a member",
    }
}

/// Entries that a daemon lacks of those that the newest answer calls durable.
fn lag(said: &MembersReply, all: &[SeenControl]) -> u64 {
    let newest = all.iter().filter_map(|(_, said)| said.as_ref()).map(|said| said.committed).max();
    newest.unwrap_or(0).saturating_sub(said.applied)
}

/// When the one that leads heard another member last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// Milliseconds ago.
    Ago(u64),
    /// Not since the one that leads started.
    Never,
}

impl Heard {
    /// True if it is so long ago that something is wrong: a member that is led answers several times a second.
    fn is_overdue(self) -> bool {
        match self {
            Heard::Ago(ms) => ms >= SILENT_MIN_MS,
            Heard::Never => true,
        }
    }

    fn text(self) -> String {
        match self {
            Heard::Ago(ms) => format!("{:.1} s ago", Duration::from_millis(ms).as_secs_f64()),
            Heard::Never => "never".to_owned(),
        }
    }

    /// In a sentence about the one that leads.
    fn since(self) -> String {
        match self {
            Heard::Ago(ms) => format!("has not heard it for {} s", ms / 1000),
            Heard::Never => "has not heard it since it started".to_owned(),
        }
    }
}

/// By the word of whoever leads; `None` for that one, for daemons that are no members by its word, and if nobody leads.
fn heard(number: u64, all: &[SeenControl]) -> Option<Heard> {
    let leading = all.iter().filter_map(|(_, said)| said.as_ref()).filter(|said| said.leader == said.own);
    // Of two that believe that they lead, the one of the later term does.
    let leader = leading.filter(|said| said.own != 0).max_by_key(|said| said.term)?;
    let member = leader.members.iter().find(|one| one.number == number && number != leader.own)?;
    Some(member.silent_ms.map_or(Heard::Never, Heard::Ago))
}

/// A line of `clovis status`.
pub fn line((seat, said): &SeenControl, all: &[SeenControl]) -> String {
    let word = word(said.as_ref());
    let behind = said.as_ref().map_or(0, |said| lag(said, all));
    let mut where_it_is = said.as_ref().map_or_else(String::new, |said| format!(", term {}", said.term));
    if behind > 0 {
        where_it_is += &format!(", {behind} entries behind");
    }
    if let Some(heard) = heard(seat.number, all).filter(|heard| heard.is_overdue()) {
        where_it_is += &format!("; the leader {}", heard.since());
    }
    format!("{}  {word}{where_it_is}  {}", seat.name, seat.endpoint)
}

/// What is to be done about a daemon that runs and is left behind: it is not led, while another one leads.
pub fn advice((seat, said): &SeenControl, all: &[SeenControl]) -> Option<String> {
    let said = said.as_ref()?;
    let heard = heard(seat.number, all).filter(|heard| heard.is_overdue())?;
    Some(format!(
        "{} runs and is {} entries behind, as the leader {}: see whether the two machines reach each other at the endpoints of the cluster file (`clovis doctor` on each), \
         and whether {} runs with an old cluster file",
        seat.name,
        lag(said, all),
        heard.since(),
        seat.name
    ))
}

/// The table of `member list`.
fn members_table(all: &[SeenControl]) -> String {
    let mut table = Table::new(&[
        ("control", Align::Right),
        ("endpoint", Align::Left),
        ("state", Align::Left),
        ("term", Align::Right),
        ("entries", Align::Right),
        ("behind", Align::Right),
        ("heard by the leader", Align::Right),
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
            heard(seat.number, all).map_or_else(|| "-".to_owned(), Heard::text),
        ]);
    }
    table.render()
}

/// The same for machines.
pub fn members_json(all: &[SeenControl]) -> Value {
    let one = |(seat, said): &SeenControl| {
        let heard_ms = match heard(seat.number, all) {
            Some(Heard::Ago(ms)) => Some(ms),
            Some(Heard::Never) | None => None,
        };
        json!({
            "number": seat.number,
            "endpoint": seat.endpoint.to_string(),
            "state": word(said.as_ref()),
            "term": said.as_ref().map(|said| said.term),
            "leader": said.as_ref().map(|said| said.leader),
            "committed": said.as_ref().map(|said| said.committed),
            "applied": said.as_ref().map(|said| said.applied),
            "behind": said.as_ref().map(|said| lag(said, all)),
            "heard_ms": heard_ms,
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

/// How often a backup is begun anew because another one, or another leader, came in between.
const BEGIN_AGAIN: usize = 5;

fn back_up(args: &ControlBackupArgs) -> Result<(), Failure> {
    let file = KnownCluster::of(&args.connect)?;
    let mut station = Station::new("backup")?;
    let within = Duration::from_secs(args.connect.timeout);
    let mut begun = 0;
    let (bytes, backup) = loop {
        begun += 1;
        let fetched = fetch(&mut station, &file, within);
        match fetched.and_then(|bytes| {
            let backup =
                Backup::parse(&bytes).map_err(|error| Failure::new(format!("control sent: {error}")))?;
            Ok((bytes, backup))
        }) {
            Ok(fetched) => break fetched,
            Err(failure) if begun == BEGIN_AGAIN => return Err(failure),
            Err(_) => {}
        }
    };
    whole_file::replace(&args.file, &bytes)?;
    output::line(&format!(
        "configuration {} of cluster {:#x} is in {}, {}",
        backup.version(),
        backup.cluster(),
        args.file.display(),
        bytes_text(base::units::wide(bytes.len()))
    ))
}

fn fetch(station: &mut Station, file: &KnownCluster, within: Duration) -> Result<Vec<u8>, Failure> {
    let (mut copy, mut bytes) = (0, Vec::new());
    loop {
        let ask = BackupGet { copy, offset: base::units::wide(bytes.len()) };
        let reply = station.call(file, file.control.endpoint, &ask, within)?;
        copy = reply.copy;
        let is_last = reply.part.is_empty();
        bytes.extend(reply.part);
        if is_last || base::units::wide(bytes.len()) >= reply.total_bytes {
            return Ok(bytes);
        }
    }
}

fn restore(args: &ControlRestoreArgs) -> Result<(), Failure> {
    let file = KnownCluster::of(&args.connect)?;
    let doing = || format!("reading {}", args.file.display());
    let bytes = fs::read(&args.file).map_err(Failure::while_doing(doing()))?;
    let named = |what: String| Failure::new(format!("{}: {what}", args.file.display()));
    let backup = Backup::parse(&bytes).map_err(|error| named(error.to_string()))?;
    if backup.cluster() != file.cluster.id.0 {
        let (found, wanted) = (backup.cluster(), file.cluster.id.0);
        return Err(named(format!("a backup of cluster {found:#x}, and this is cluster {wanted:#x}")));
    }
    let seat = ControlSeat::of(&file, args.number.unwrap_or(file.first_control()))?;
    let mut station = Station::new("restore")?;
    for other in ControlSeat::all(&file) {
        let ping = Ping::default();
        if station.call_itself(&file, other.endpoint, &ping, ANSWER_WITHIN).is_ok() {
            return Err(Failure::new(format!(
                "{} runs, at {}: a restored daemon beside it would be a second control of this cluster. Stop every control daemon first",
                other.name, other.endpoint
            )));
        }
    }
    let path = device_path(folder_of(file.config()), &seat.store);
    let newest = newest_version(&mut station, &file)?;
    if let Some((version, whose)) = newest.filter(|(version, _)| *version > backup.version())
        && !args.force
    {
        return Err(named(format!(
            "the backup has configuration {}, and {whose} {version}: what was changed since would be lost, and a device that failed since would be \
             used with its old bytes. Detach such devices first, or take a newer backup; --force restores it all the same",
            backup.version()
        )));
    }
    let kept = set_aside(&path)?;
    create_device(&path, file.control.store_bytes)?;
    let store = open_device(&path)?;
    let number = (!file.control.members.is_empty()).then_some(seat.number);
    let handle = station.handle();
    let version = station.wait(backup::restore(&handle, store, number, &backup))?;
    let version = version.map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    if let Some(kept) = kept {
        output::line(&format!("the store that was there is {} now", kept.display()))?;
    }
    output::line(&format!("{} has configuration {} as {version}; start it", seat.name, backup.version()))?;
    match number {
        None => Ok(()),
        Some(_) => output::line(
            "it is alone until others join it: give them numbers that none had, blank stores and --first-start join, and take them in with `clovis control member add`",
        ),
    }
}

/// The newest configuration version that the old store or a server that runs knows of, and which of them.
fn newest_version(station: &mut Station, file: &KnownCluster) -> Result<Option<(u64, String)>, Failure> {
    let mut newest: Option<(u64, String)> = None;
    let mut see = |version: u64, whose: String| {
        if newest.as_ref().is_none_or(|(known, _)| version > *known) {
            newest = Some((version, whose));
        }
    };
    // Of all daemons whose stores are here: the one that is to be restored may have been behind.
    let others =
        ControlSeat::all(file).into_iter().map(|seat| device_path(folder_of(file.config()), &seat.store));
    for store in others.filter(|store| store.exists()) {
        let handle = station.handle();
        let found = station.wait(backup::stored_version(&handle, open_device(&store)?, file.cluster.id.0))?;
        // One that cannot be read says nothing; it is set aside, not lost.
        if let Ok(Some(version)) = found {
            see(version, format!("the store {} has", store.display()));
        }
    }
    for server in &file.servers {
        let Some(endpoint) = server.endpoints.first() else { continue };
        if let Ok(version) = station.version_of(file, *endpoint, ANSWER_WITHIN) {
            see(version, format!("{} goes by", daemon::server_name(server.process)));
        }
    }
    Ok(newest)
}

/// Gives the store another name, if it is a file that is there. Errors: it is no file.
fn set_aside(path: &Path) -> Result<Option<PathBuf>, Failure> {
    if !path.exists() {
        return Ok(None);
    }
    let doing = || format!("setting {} aside", path.display());
    if !path.is_file() {
        return Err(Failure::new(format!(
            "{} is no file: a backup is put into a file; name one as `store` in the cluster file",
            path.display()
        )));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let kept = path.with_file_name(format!("{name}.before-{}", unix_s()));
    fs::rename(path, &kept).map_err(Failure::while_doing(doing()))?;
    Ok(Some(kept))
}

#[cfg(test)]
mod tests {
    use fops::member::MemberStatus;

    use super::*;

    /// A daemon of a cluster file of four.
    fn seen(number: u64, said: Option<MembersReply>) -> SeenControl {
        let example = include_str!("../../control/faces/src/cluster_file_example.toml");
        let section = |number| {
            let at = endpoint(number);
            format!(
                "\n[[control.member]]\nnumber = {number}\nendpoint = \"{at}\"\nstore = \"control-{number}\"\n"
            )
        };
        let further = format!("{}{}{}\n[pool]\n", section(2), section(3), section(4));
        let text = example.replace("12345:34:0", "12345:35:1").replace("\n[pool]\n", &further);
        let file = faces::ClusterFile::parse(&text).unwrap_or_else(|error| panic!("{error}"));
        (ControlSeat::of(&file, number).unwrap_or_else(|failure| panic!("{failure:?}")), said)
    }

    fn endpoint(number: u64) -> base::Endpoint {
        format!("127.0.0.1@tcp:12345:35:{number}").parse().unwrap_or_else(|error| panic!("{error}"))
    }

    /// What daemon `own` says, which has the effect of `applied` entries and last heard each other one so many milliseconds ago.
    fn said(own: u64, leader: u64, applied: u64, silent: &[(u64, Option<u64>)]) -> MembersReply {
        let member = |(number, silent_ms): &(u64, Option<u64>)| MemberStatus {
            number: *number,
            endpoint: Some(endpoint(*number)),
            is_voter: true,
            silent_ms: *silent_ms,
            last: None,
        };
        let members = silent.iter().map(member).collect();
        MembersReply { own, term: 4, leader, committed: applied, applied, last: applied, members }
    }

    #[test]
    fn one_that_runs_and_is_not_led_is_seen_with_how_far_behind_and_since_when() {
        // The third went by the members of before, among whom nobody leads.
        let all = [
            seen(2, Some(said(2, 4, 54, &[(2, None), (3, None), (4, Some(90))]))),
            seen(3, Some(said(3, 0, 7, &[(1, Some(1)), (2, Some(8)), (3, None)]))),
            seen(4, Some(said(4, 4, 54, &[(2, Some(120)), (3, Some(42_900)), (4, None)]))),
        ];
        let lines: Vec<String> = all.iter().map(|one| line(one, &all)).collect();
        assert_eq!(
            lines,
            [
                "control-2  follows, term 4  127.0.0.1@tcp:12345:35:2",
                "control-3  hears no leader, term 4, 47 entries behind; the leader has not heard it for 42 s  127.0.0.1@tcp:12345:35:3",
                "control-4  leads, term 4  127.0.0.1@tcp:12345:35:4",
            ]
        );
        let advised: Vec<String> = all.iter().filter_map(|one| advice(one, &all)).collect();
        assert_eq!(advised.len(), 1, "{advised:?}");
        assert!(
            advised[0].starts_with("control-3 runs and is 47 entries behind, as the leader has not heard"),
            "{advised:?}"
        );
        let table = members_table(&all);
        let row = |number: u64| {
            table.lines().find(|row| row.contains(&endpoint(number).to_string())).unwrap_or_default()
        };
        assert!(
            row(3).contains("hears no leader") && row(3).contains("47") && row(3).ends_with("42.9 s ago"),
            "{table}"
        );
        assert!(row(2).ends_with("0.1 s ago") && row(4).ends_with('-'), "{table}");
        let json = members_json(&all);
        assert_eq!((&json[1]["behind"], &json[1]["heard_ms"]), (&json!(47), &json!(42_900)));
        assert_eq!(json[2]["heard_ms"], Value::Null);
    }

    #[test]
    fn one_that_is_away_was_taken_out_or_is_led_is_nobody_to_give_advice_about() {
        let leader = said(4, 4, 54, &[(2, Some(120)), (3, None), (4, None)]);
        // The first was taken out and runs on; the third gives no answer, which is told elsewhere.
        let all = [
            seen(1, Some(said(1, 0, 30, &[(2, Some(5)), (4, Some(9_000))]))),
            seen(2, Some(said(2, 4, 54, &[(2, None), (3, None), (4, Some(90))]))),
            seen(3, None),
            seen(4, Some(leader)),
        ];
        assert!(all.iter().all(|one| advice(one, &all).is_none()));
        assert_eq!(
            line(&all[0], &all),
            "control  not a member, term 4, 24 entries behind  127.0.0.1@tcp:12345:35:1"
        );
        assert_eq!(
            line(&all[2], &all),
            "control-3  no answer; the leader has not heard it since it started  127.0.0.1@tcp:12345:35:3"
        );
        // Where nobody leads nobody is left behind.
        let alike = [
            seen(2, Some(said(2, 0, 54, &[(2, None), (3, Some(9_000))]))),
            seen(3, Some(said(3, 0, 54, &[(2, None), (3, None)]))),
        ];
        assert!(
            alike.iter().all(|one| advice(one, &alike).is_none() && heard(one.0.number, &alike).is_none())
        );
    }
}
