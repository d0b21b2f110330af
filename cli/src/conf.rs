//! `clovis conf plan|apply|show|history|rollback`: the cluster file in force at the control daemon, and how it changes.
//!
//! What a plan shows is what an apply does: both compare with the text in force, and an apply names the transaction that it was
//! planned against. Local files are never written. The credential never leaves this machine: texts travel without it.

use std::path::Path;
use std::time::Duration;

use faces::cluster_file::ClusterFile;
use faces::later_store::{LaterReason, later_file_reason};
use faces::limits::CLUSTER_UPLOAD_PART_BYTES;
use faces::{Change, Effect, diff};
use fops::Fop;
use fops::conf::{ClusterStatusReply, ConfApply, ConfApplyReply, ConfHistory, ConfText};
use fops::conf_sync::{ConfApplyUpload, ConfUpload};
use serde_json::json;

use crate::args::{ConfApplyArgs, ConfCommand, ConfPlanArgs, ConfShowArgs, ConnectArgs};
use crate::connection::{Station, find_cluster_file, new_epoch, unix_s};
use crate::controls::{SeenControl, ask_members};
use crate::failure::Failure;
use crate::known_cluster::KnownCluster;
use crate::output;
use crate::table::{Align, Table};

/// A control daemon to talk to.
pub struct Desk {
    /// Where the command runs.
    pub station: Station,
    /// The local cluster file: where control is, and the credential.
    pub local: KnownCluster,
    /// How long an answer may take.
    pub within: Duration,
}

/// A text in force at control, now or earlier.
pub struct Kept {
    /// Number of its transaction.
    pub transaction: u64,
    /// Without the credential.
    pub text: String,
    /// What it says.
    pub file: ClusterFile,
}

impl Desk {
    /// Reads the local cluster file; nothing is sent yet.
    pub fn open(args: &ConnectArgs) -> Result<Desk, Failure> {
        let local = KnownCluster::of(args)?;
        Ok(Desk { station: Station::new("conf")?, local, within: Duration::from_secs(args.timeout) })
    }

    /// One call to control.
    pub fn ask<F: Fop>(&mut self, fop: &F) -> Result<F::Reply, Failure> {
        self.ask_waiting(fop, Duration::ZERO)
    }

    /// One call to control, which may hold its answer back for `wait`.
    pub fn ask_waiting<F: Fop>(&mut self, fop: &F, wait: Duration) -> Result<F::Reply, Failure> {
        self.station.call(&self.local, self.local.control.endpoint, fop, self.within + wait)
    }

    /// What each of several control daemons says; nothing of one alone.
    pub fn controls(&mut self) -> Vec<SeenControl> {
        match self.local.control.members.is_empty() {
            true => Vec::new(),
            false => ask_members(&mut self.station, &self.local),
        }
    }

    /// The text in force, and what control says of processes and devices.
    pub fn status(&mut self) -> Result<(Kept, ClusterStatusReply), Failure> {
        Ok((self.text(0)?, self.cluster_status()?))
    }

    /// What control says of processes and devices.
    pub fn cluster_status(&mut self) -> Result<ClusterStatusReply, Failure> {
        self.station.cluster_status(&self.local, self.within)
    }

    /// The text of a transaction, 0 for the one in force.
    pub fn text(&mut self, transaction: u64) -> Result<Kept, Failure> {
        let (mut bytes, mut number) = (Vec::new(), transaction);
        loop {
            let offset = base::units::wide(bytes.len());
            let reply = self.ask(&ConfText { transaction: number, offset })?;
            // From here on the parts of this very text, also if another comes in force meanwhile.
            number = reply.transaction;
            let is_last =
                reply.part.is_empty() || offset + base::units::wide(reply.part.len()) >= reply.total_bytes;
            bytes.extend(reply.part);
            if is_last {
                break;
            }
        }
        let text = String::from_utf8(bytes)
            .map_err(|error| Failure::new(format!("control sent a cluster file that is no text: {error}")))?;
        let file = ClusterFile::parse_hidden(&text, self.local.cluster.credential).map_err(|error| {
            Failure::new(format!(
                "control sent a cluster file that this program does not understand: {error}"
            ))
        })?;
        Ok(Kept { transaction: number, text, file })
    }

    fn apply(&mut self, against: u64, text: &str, note: &str) -> Result<ConfApplyReply, Failure> {
        let to = self.local.control.endpoint;
        let (unix_s, note, bytes) = (unix_s(), note.to_owned(), text.as_bytes());
        if bytes.len() <= CLUSTER_UPLOAD_PART_BYTES {
            let ask = ConfApply { base: against, unix_s, note };
            return self.station.call_with_source(&self.local, to, &ask, bytes, self.within);
        }
        let upload = new_epoch()?;
        let total_bytes = base::units::wide(bytes.len());
        for (index, part) in bytes.chunks(CLUSTER_UPLOAD_PART_BYTES).enumerate() {
            let offset = base::units::wide(index * CLUSTER_UPLOAD_PART_BYTES);
            let ask = ConfUpload { upload, offset, total_bytes };
            self.station.call_with_source(&self.local, to, &ask, part, self.within)?;
        }
        let checksum = base::checksum::crc32c(bytes);
        self.ask(&ConfApplyUpload { upload, checksum, base: against, unix_s, note })
    }
}

/// `clovis conf`
pub fn run(command: &ConfCommand) -> Result<(), Failure> {
    match command {
        ConfCommand::Plan(args) => plan(args),
        ConfCommand::Apply(args) => apply(args),
        ConfCommand::Show(args) => show(args),
        ConfCommand::History(args) => history(&args.connect, args.json),
        ConfCommand::Rollback(args) => {
            let mut desk = Desk::open(&args.connect)?;
            let in_force = desk.text(0)?;
            let wanted = desk.text(args.transaction)?;
            let plan = Plan::of(&in_force, &wanted.text, &wanted.file);
            let note = format!("rollback to {}", wanted.transaction);
            put_in_force(&mut desk, &in_force, &plan, &wanted.text, &note, args.json)
        }
    }
}

/// The wanted cluster file: its text without the credential, and what it says.
fn wanted(
    desk: &Desk,
    named: Option<&Path>,
    connect: &ConnectArgs,
) -> Result<(String, ClusterFile), Failure> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => find_cluster_file(connect.config.as_deref())?,
    };
    let doing = || format!("reading {}", path.display());
    let text = std::fs::read_to_string(&path).map_err(Failure::while_doing(doing()))?;
    let of_file = |error: faces::ConfigError| Failure::new(format!("{}: {error}", path.display()));
    // What `conf show` printed may be edited and given back: its credential is the local one.
    let file = ClusterFile::parse_hidden(&text, desk.local.cluster.credential).map_err(of_file)?;
    let hidden = if text.contains(faces::cluster_file::HIDDEN) {
        text
    } else {
        ClusterFile::hide_credential(&text).map_err(of_file)?
    };
    Ok((hidden, file))
}

fn plan(args: &ConfPlanArgs) -> Result<(), Failure> {
    let mut desk = Desk::open(&args.connect)?;
    let (text, file) = wanted(&desk, args.file.as_deref(), &args.connect)?;
    let in_force = desk.text(0)?;
    let plan = Plan::of(&in_force, &text, &file);
    if plan.changes.is_empty() && !args.json {
        return output::line(&format!(
            "no change: the file says what transaction {} put in force",
            in_force.transaction
        ));
    }
    plan.show(&in_force, args.json)
}

/// What a text would change.
pub struct Plan {
    changes: Vec<Change>,
    /// What programs that know no format 3 of control's store would not take any more, if they take the text in force.
    no_way_back: Option<LaterReason>,
}

impl Plan {
    /// From what is in force to a text, and what that says.
    pub fn of(in_force: &Kept, text: &str, file: &ClusterFile) -> Plan {
        let before = later_file_reason(&in_force.file, in_force.text.len());
        let after = later_file_reason(file, text.len());
        Plan { changes: diff(&in_force.file, file), no_way_back: after.filter(|_| before.is_none()) }
    }

    /// Tells what it changes. Errors: one of the changes cannot be made.
    pub fn show(&self, in_force: &Kept, as_json: bool) -> Result<(), Failure> {
        if as_json {
            let changes = self.changes_json();
            let no_way_back = self.no_way_back_text();
            output::line(
                &json!({ "base": in_force.transaction, "changes": changes, "no_way_back": no_way_back })
                    .to_string(),
            )?;
        } else {
            output::print(&self.text())?;
        }
        self.refuse()
    }

    /// Errors: one of the changes cannot be made.
    fn refuse(&self) -> Result<(), Failure> {
        let is_refused = |change: &&Change| matches!(change.effect, Effect::Refused(_));
        let mut refused = self.changes.iter().filter(is_refused);
        match refused.next() {
            None => Ok(()),
            Some(first) => Err(Failure::new(format!(
                "{} of {} changes cannot be made, the first at {}",
                refused.count() + 1,
                self.changes.len(),
                first.key
            ))),
        }
    }

    fn no_way_back_text(&self) -> Option<String> {
        let reason = self.no_way_back?;
        Some(format!(
            "earlier versions of control, whose store has no format 3, do not take this: {reason} (docs/upgrade.md)"
        ))
    }

    fn text(&self) -> String {
        let mut lines: String = self.changes.iter().map(|change| format!("{change}\n")).collect();
        if let Some(told) = self.no_way_back_text() {
            lines.push_str(&format!("! {told}\n"));
        }
        lines
    }

    fn changes_json(&self) -> Vec<serde_json::Value> {
        let as_json = |change: &Change| {
            json!({ "key": change.key, "from": change.from, "to": change.to, "effect": change.effect.to_string(),
                    "refused": matches!(change.effect, Effect::Refused(_)) })
        };
        self.changes.iter().map(as_json).collect()
    }
}

fn apply(args: &ConfApplyArgs) -> Result<(), Failure> {
    let mut desk = Desk::open(&args.connect)?;
    let (text, file) = wanted(&desk, args.file.as_deref(), &args.connect)?;
    let in_force = desk.text(0)?;
    let plan = Plan::of(&in_force, &text, &file);
    put_in_force(&mut desk, &in_force, &plan, &text, &args.note, args.json)
}

/// Applies a text after showing what it changes. Errors: it changes what may not change; another text came in force meanwhile.
pub fn put_in_force(
    desk: &mut Desk,
    in_force: &Kept,
    plan: &Plan,
    text: &str,
    note: &str,
    as_json: bool,
) -> Result<(), Failure> {
    if !as_json {
        output::print(&plan.text())?;
    }
    plan.refuse()?;
    let reply = desk.apply(in_force.transaction, text, note)?;
    if as_json {
        return output::line(
            &json!({ "transaction": reply.transaction, "configuration_version": reply.version,
                     "changes": plan.changes_json(), "no_way_back": plan.no_way_back_text() })
            .to_string(),
        );
    }
    if reply.changes == 0 {
        return output::line(&format!("no change: transaction {} is in force", reply.transaction));
    }
    output::line(&format!(
        "transaction {} is in force, configuration version {}",
        reply.transaction, reply.version
    ))
}

fn show(args: &ConfShowArgs) -> Result<(), Failure> {
    let kept = Desk::open(&args.connect)?.text(args.transaction)?;
    output::print(&kept.text)
}

fn history(connect: &ConnectArgs, as_json: bool) -> Result<(), Failure> {
    let mut desk = Desk::open(connect)?;
    let reply = desk.ask(&ConfHistory)?;
    if as_json {
        let transactions: Vec<_> = reply
            .transactions
            .iter()
            .map(|one| {
                json!({ "number": one.number, "configuration_version": one.version, "unix_s": one.unix_s,
                        "by": one.by.to_string(), "changes": one.changes, "note": one.note })
            })
            .collect();
        return output::line(&json!({ "transactions": transactions }).to_string());
    }
    let mut table = Table::new(&[
        ("number", Align::Right),
        ("version", Align::Right),
        ("when (UTC)", Align::Left),
        ("changes", Align::Right),
        ("by", Align::Left),
        ("note", Align::Left),
    ]);
    for one in &reply.transactions {
        table.row([
            one.number.to_string(),
            one.version.to_string(),
            time_text(one.unix_s),
            one.changes.to_string(),
            one.by.to_string(),
            one.note.escape_debug().to_string(),
        ]);
    }
    output::print(&table.render())
}

/// Seconds since 1970 as `2026-11-21 07:00:00`; `-` for 0. Source: the civil-from-days arithmetic of the proleptic
/// Gregorian calendar, with years that begin in March so that the leap day is a year's last.
pub fn time_text(unix_s: u64) -> String {
    if unix_s == 0 {
        return "-".to_owned();
    }
    let (days, seconds) = (unix_s / 86_400, unix_s % 86_400);
    // Days since 0000-03-01; 400 years have 146,097 days.
    let day = days + 719_468;
    let (era, in_era) = (day / 146_097, day % 146_097);
    let year_of_era = (in_era - in_era / 1460 + in_era / 36_524 - in_era / 146_096) / 365;
    let in_year = in_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * in_year + 2) / 153;
    let day_of_month = in_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day_of_month:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::time_text;

    #[test]
    fn times_for_people() {
        assert_eq!(time_text(0), "-");
        assert_eq!(time_text(1), "1970-01-01 00:00:01");
        assert_eq!(time_text(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(time_text(951_868_799), "2000-02-29 23:59:59");
        assert_eq!(time_text(4_107_542_400), "2100-03-01 00:00:00");
        assert_eq!(time_text(1_798_761_599), "2026-12-31 23:59:59");
    }
}
