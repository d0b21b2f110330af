//! The files that a command reads, and what all of them say of requests.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::units::wide;
use fops::Opcode;
use rpc::addb::histogram::Key;
use rpc::addb::{Event, Phase, Record, Side, Snapshot};
use rpc::limits::ADDB_FILE_BYTES_MAX;

use crate::addb::SourceArgs;
use crate::failure::Failure;

/// A file that was read.
pub struct Source {
    /// Which.
    pub path: PathBuf,
    /// What it says.
    pub snapshot: Snapshot,
    /// A process has it.
    pub is_live: bool,
}

impl Source {
    /// Tells this run of its process from all others.
    pub fn run(&self) -> (u32, u64, u64) {
        let origin = &self.snapshot.header.origin;
        (origin.process_id, origin.epoch, origin.boot_ns_at_zero)
    }

    /// Its process, for people: `server-1`, `client 4711`; with its locality if that is not the first.
    pub fn who(&self) -> String {
        let header = &self.snapshot.header;
        let name = &header.origin.name;
        let name =
            if name == "client" { format!("client {}", header.origin.process_id) } else { name.clone() };
        if header.locality == 0 { name } else { format!("{name}/{}", header.locality) }
    }

    /// How its process is.
    pub fn state(&self) -> &'static str {
        match (self.snapshot.has_ended, self.is_live) {
            (true, _) => "ended in order",
            (false, true) => "running",
            (false, false) => "killed",
        }
    }
}

/// All files of a command.
pub struct Sources {
    /// Those that were read, at least one.
    pub list: Vec<Source>,
    /// All were written on one machine since it was booted: their times are comparable to the nanosecond.
    pub is_one_clock: bool,
}

/// Reads the files that were named, or those of a cluster's folder.
///
/// Errors: one that was named is none; none in the folder is one. Those of a folder that are none are told on standard error.
pub fn load(args: &SourceArgs) -> Result<Sources, Failure> {
    load_telling(args, &mut |failure| eprintln!("clovis: {failure}"))
}

/// The same; files of a folder that are none are told to `tell`.
pub fn load_telling(args: &SourceArgs, tell: &mut dyn FnMut(&Failure)) -> Result<Sources, Failure> {
    let mut list = Vec::new();
    for path in &args.files {
        list.push(read(path)?);
    }
    if let Some(dir) = &args.dir {
        let folder = dir.join("addb");
        let entries = fs::read_dir(&folder).map_err(Failure::while_doing(folder.display()))?;
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "addb"));
        paths.sort();
        for path in paths {
            match read(&path) {
                Ok(source) => list.push(source),
                Err(failure) => tell(&failure),
            }
        }
        if list.is_empty() {
            return Err(Failure::new(format!("no ADDB file in {}", folder.display())));
        }
    }
    let boot = list.first().map_or(0, |source| source.snapshot.header.origin.boot);
    let is_one_clock = boot != 0 && list.iter().all(|source| source.snapshot.header.origin.boot == boot);
    Ok(Sources { list, is_one_clock })
}

fn read(path: &Path) -> Result<Source, Failure> {
    let doing = || path.display().to_string();
    // Looked at before it is opened: opening a named pipe waits for a writer.
    let metadata = fs::metadata(path).map_err(Failure::while_doing(doing()))?;
    if !metadata.is_file() {
        return Err(Failure::new(format!("{}: not a file", path.display())));
    }
    let file = File::open(path).map_err(Failure::while_doing(doing()))?;
    let most = wide(ADDB_FILE_BYTES_MAX);
    let mut bytes = Vec::new();
    (&file).take(most + 1).read_to_end(&mut bytes).map_err(Failure::while_doing(doing()))?;
    let snapshot = Snapshot::parse(&bytes).map_err(Failure::while_doing(doing()))?;
    let is_live = matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
    Ok(Source { path: path.to_owned(), snapshot, is_live })
}

impl Sources {
    /// When a record was made, on a clock that all files share as well as they can, in nanoseconds.
    pub fn time_ns(&self, source: &Source, record: &Record) -> u64 {
        let origin = &source.snapshot.header.origin;
        let zero = if self.is_one_clock { origin.boot_ns_at_zero } else { origin.unix_ns_at_zero };
        zero.saturating_add(record.at.as_nanos())
    }

    /// The steps of each request as each process saw them: a visit per process, side and request.
    pub fn visits(&self) -> Vec<Visit<'_>> {
        let mut visits: BTreeMap<(usize, Side, u64), Visit<'_>> = BTreeMap::new();
        for (index, source) in self.list.iter().enumerate() {
            for record in &source.snapshot.records {
                let Some(phase) = record.phase() else { continue };
                let side = if phase.is_at_server() { Side::Server } else { Side::Client };
                visits
                    .entry((index, side, record.request_id))
                    .or_insert_with(|| Visit { source, side, records: Vec::new() })
                    .records
                    .push(record);
            }
        }
        visits.into_values().collect()
    }
}

/// One request in one process, on one side.
pub struct Visit<'a> {
    /// Where.
    pub source: &'a Source,
    /// As what.
    pub side: Side,
    /// Its steps in order, at least one. The first may have been overwritten.
    pub records: Vec<&'a Record>,
}

impl Visit<'_> {
    /// The request.
    pub fn request_id(&self) -> u64 {
        self.records[0].request_id
    }

    /// Its fop.
    pub fn opcode(&self) -> u16 {
        self.records[0].opcode
    }

    /// The step that it is or was at.
    pub fn last(&self) -> &Record {
        self.records[self.records.len() - 1]
    }

    /// True if its end is known.
    pub fn has_ended(&self) -> bool {
        self.last().phase().is_some_and(Phase::is_last)
    }

    /// From its first step that is known to its last.
    pub fn lasted(&self) -> Duration {
        self.last().at.since(self.records[0].at)
    }

    /// Its steps with the time that each took: all but the last.
    pub fn steps(&self) -> impl Iterator<Item = (Phase, Duration)> + '_ {
        self.records
            .windows(2)
            .filter_map(|pair| pair[0].phase().map(|phase| (phase, pair[1].at.since(pair[0].at))))
    }
}

/// A fop's word: `component-write`, or its number if this program does not know it.
pub fn fop_name(opcode: u16) -> String {
    let Some(known) = Opcode::from_number(opcode) else { return format!("opcode {opcode}") };
    let mut name = String::new();
    for letter in format!("{known:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('-');
        }
        name.extend(letter.to_lowercase());
    }
    name
}

/// What a histogram is of, for people.
pub fn key_name(key: &Key) -> String {
    key.opcode.map_or_else(|| "others".to_owned(), fop_name)
}

/// How often `phases` were entered and events happened, without what never did. `count` counts by what it is given to ask a file.
pub fn troubles(
    phases: &[Phase],
    count: impl Fn(&dyn Fn(&Snapshot) -> u64) -> u64,
) -> Vec<(&'static str, u64)> {
    let phases = phases.iter().map(|phase| (phase.name(), count(&|snapshot| snapshot.count(*phase))));
    let events =
        Event::ALL.iter().map(|event| (event.name(), count(&|snapshot| snapshot.event_count(*event))));
    phases.chain(events).filter(|(_, count)| *count > 0).collect()
}

/// A time for people: `870 ns`, `12.3 us`, `4.56 ms`, `7.89 s`.
pub fn time_text(time: Duration) -> String {
    let ns = time.as_nanos();
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} us", time.as_secs_f64() * 1e6),
        1_000_000..1_000_000_000 => format!("{:.2} ms", time.as_secs_f64() * 1e3),
        _ => format!("{:.2} s", time.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fops_and_times_have_words() {
        assert_eq!(fop_name(32), "component-write");
        assert_eq!(fop_name(9999), "opcode 9999");
        let texts = [5_u64, 12_345, 4_560_000, 7_890_000_000].map(|ns| time_text(Duration::from_nanos(ns)));
        assert_eq!(texts, ["5 ns", "12.3 us", "4.56 ms", "7.89 s"]);
    }
}
