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
        Some(said) if said.members.iter().any(|one| one.number == said.own && one.is_voter) => "follows",
        Some(said) if said.members.iter().any(|one| one.number == said.own) => "is taken in",
        Some(_) => "not a member",
    }
}

/// Entries that a daemon lacks of those that the newest answer calls durable.
fn lag(said: &MembersReply, all: &[SeenControl]) -> u64 {
    let newest = all.iter().filter_map(|(_, said)| said.as_ref()).map(|said| said.committed).max();
    newest.unwrap_or(0).saturating_sub(said.applied)
}

/// A line of `clovis status`.
pub fn line((seat, said): &SeenControl, all: &[SeenControl]) -> String {
    let word = word(said.as_ref());
    let where_it_is = said.as_ref().map_or_else(String::new, |said| match lag(said, all) {
        0 => format!(", term {}", said.term),
        behind => format!(", term {}, {behind} entries behind", said.term),
    });
    format!("{}  {word}{where_it_is}  {}", seat.name, seat.endpoint)
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
pub fn members_json(all: &[SeenControl]) -> Value {
    let one = |(seat, said): &SeenControl| {
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
        let ping = Ping { payload: Vec::new() };
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
