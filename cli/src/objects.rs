//! `clovis cp|cat|stat|rm|ls`: files in, files out, records.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use base::units::{BLOCK_BYTES, narrow};
use base::{ByteExtent, Fid, ObjectId};
use client::{Client, ClientError, Object, ObjectStat};
use futures_util::future;
use runtime::{Buffer, SharedBuffer};
use serde_json::json;

use crate::args::{CatArgs, CpArgs, LsArgs, ObjectChoice, RmArgs, StatArgs};
use crate::connection::{Station, connect};
use crate::credit;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::output;
use crate::progress::Progress;
use crate::table::{Align, Table, bytes_text};

/// A regular file to store, with its size. Errors: missing, unreadable, or something else than a file.
pub fn open_source(path: &Path) -> Result<(File, u64), Failure> {
    let doing = || format!("opening {}", path.display());
    // Looked at before it is opened: opening a named pipe waits for a writer.
    if !fs::metadata(path).map_err(Failure::while_doing(doing()))?.is_file() {
        return Err(Failure::new(format!(
            "{} is not a regular file: only those are stored, since their size is known",
            path.display()
        )));
    }
    let file = File::open(path).map_err(Failure::while_doing(doing()))?;
    let size_bytes = file.metadata().map_err(Failure::while_doing(doing()))?.len();
    Ok((file, size_bytes))
}

/// Fills `bytes` from `file` at `offset` up to the first `size_bytes` of the file; returns how many. Errors: the file shrank.
pub fn fill(file: &File, offset: u64, size_bytes: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let count = narrow(size_bytes.saturating_sub(offset)).min(bytes.len());
    file.read_exact_at(&mut bytes[..count], offset)?;
    Ok(count)
}

/// Stores what `source(offset, bytes)` gives as the whole new content of `object`; it fills the slice and returns how
/// many bytes it had, fewer than asked for only at its end. Returns the object's new size.
pub fn store(
    station: &mut Station,
    client: &Client,
    object: &Object,
    mut source: impl FnMut(u64, &mut [u8]) -> io::Result<usize>,
    progress: &Progress,
) -> Result<u64, Failure> {
    let stored = station.wait(async {
        let replacement = object.replace().await?;
        let read = |offset: u64, mut buffer: Buffer| {
            let filled = source(offset, &mut buffer).map(|count| {
                buffer.resize(count);
                buffer
            });
            future::ready(filled)
        };
        let uploaded = client.upload(&replacement, read, |done| progress.reach(done)).await;
        let size_bytes = match uploaded {
            Ok(size_bytes) => size_bytes,
            Err(error) => {
                // A store that is full stays so if what did not fit remains.
                replacement.abandon().await;
                return Err(error);
            }
        };
        replacement.commit(size_bytes).await?;
        Ok::<u64, ClientError>(size_bytes)
    })?;
    stored.map_err(|error| Failure::new(error.to_string()))
}

/// Hands the first `limit_bytes` of an object (all of it, if it is shorter) to `sink(offset, bytes)`, in order. Returns
/// how many they were.
pub fn fetch(
    station: &mut Station,
    client: &Client,
    object: &Object,
    limit_bytes: u64,
    mut sink: impl FnMut(u64, &[u8]) -> io::Result<()>,
    progress: &Progress,
) -> Result<u64, Failure> {
    let extent = ByteExtent { start: 0, count: object.size().min(limit_bytes) };
    let take = |offset: u64, bytes: SharedBuffer| future::ready(sink(offset, &bytes));
    let fetched = station.wait(client.download(object, extent, take, |done| progress.reach(done)))?;
    fetched.map_err(|error| Failure::new(error.to_string()))
}

/// `clovis cp`
pub fn copy_in(args: &CpArgs) -> Result<(), Failure> {
    let (file, size_bytes) = open_source(&args.file)?;
    let unit_bytes = args.unit.map(unit_size).transpose()?;
    let (mut station, mut client, _) = connect(&args.connect, false)?;
    let pool = args.pool.as_deref().map(|name| pool_named(&client, name)).transpose()?;
    if let Some(pool) = pool {
        let chosen = station.wait(client.in_pool(pool))?;
        client = chosen.map_err(|error| Failure::new(error.to_string()))?;
    }
    let (id, is_new) = match args.id {
        ObjectChoice::Named(id) => (id, false),
        ObjectChoice::New => {
            let found = station.wait(client.new_object_id())?;
            (found.map_err(|error| Failure::new(error.to_string()))?, true)
        }
    };
    let copied = copy_file(&mut station, &client, args, (id, unit_bytes), (&file, size_bytes));
    if is_new || args.hold.exclusive {
        credit::leave(&mut station, &client);
    }
    copied?;
    if is_new { output::line(&id.to_string()) } else { Ok(()) }
}

/// Whatever it holds is no longer used when it returns.
fn copy_file(
    station: &mut Station,
    client: &Client,
    args: &CpArgs,
    (id, unit_bytes): (ObjectId, Option<u32>),
    (file, size_bytes): (&File, u64),
) -> Result<(), Failure> {
    let client = credit::writer(station, client, id, &args.hold)?;
    let opened = if args.no_replace {
        station.wait(client.create(id, unit_bytes))?
    } else {
        station.wait(client.create_or_open(id, unit_bytes))?
    };
    let object = opened.map_err(|error| Failure::new(error.to_string()))?;
    let has = object.stat().unit_bytes;
    if let Some(wanted) = unit_bytes.filter(|wanted| *wanted != has) {
        return Err(Failure::new(format!(
            "object {id} exists with units of {has} bytes, not {wanted}: leave --unit out, or remove the object first"
        )));
    }
    let configuration = client.configuration();
    let lies_in = configuration.pool_version(object.stat().pool_version).map(|version| version.pool);
    if let (Some(name), Some(lies_in)) = (&args.pool, lies_in)
        && pool_named(&client, name)? != lies_in
    {
        return Err(Failure::new(format!(
            "object {id} exists in pool {}, not {name}: leave --pool out, or remove the object first",
            configuration.pool_name(lies_in)
        )));
    }
    let progress = Progress::start(&format!("cp {id}"), size_bytes, args.quiet);
    store(station, &client, &object, |offset, bytes| fill(file, offset, size_bytes, bytes), &progress)
        .map(drop)
}

/// The pool that a user names, by name or fid.
pub fn pool_named(client: &Client, name: &str) -> Result<Fid, Failure> {
    let configuration = client.configuration();
    let by_fid = name.parse::<Fid>().ok().filter(|pool| configuration.newest_version(*pool).is_some());
    configuration.pool_named(name).or(by_fid).ok_or_else(|| {
        Failure::new(format!("{name:?} is no pool of this cluster: `clovis pool list` shows them"))
    })
}

pub fn unit_size(bytes: u64) -> Result<u32, Failure> {
    let range = base::limits::UNIT_BYTES_MIN..=base::limits::UNIT_BYTES_MAX;
    if !bytes.is_power_of_two() || !range.contains(&bytes) {
        return Err(Failure::new(format!(
            "a unit of {bytes} bytes is not a power of two from {} to {}: blocks have {BLOCK_BYTES} bytes",
            range.start(),
            range.end()
        )));
    }
    u32::try_from(bytes).map_err(Failure::while_doing("the unit size"))
}

/// `clovis cat`
pub fn copy_out(args: &CatArgs) -> Result<(), Failure> {
    let (mut station, client, _) = connect(&args.connect, args.verify)?;
    let object = station.wait(client.open(args.id))?.map_err(|error| Failure::new(error.to_string()))?;
    write_out(&mut station, &client, &object, u64::MAX, args.output.as_deref())
}

/// Writes an object to a file, which appears only once it is whole, or to standard output. A device or a pipe that the
/// output names is written to, never replaced; through a symbolic link the file behind it is.
pub fn write_out(
    station: &mut Station,
    client: &Client,
    object: &Object,
    limit_bytes: u64,
    output: Option<&Path>,
) -> Result<(), Failure> {
    let heading = format!("cat {}", object.id());
    let Some(path) = output else {
        let progress = Progress::start(&heading, object.size(), true);
        let mut stdout = io::stdout().lock();
        return fetch_to(station, client, object, limit_bytes, &mut stdout, &progress, output::failure);
    };
    let doing = || format!("writing {}", path.display());
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let is_special = fs::metadata(&target).is_ok_and(|found| !found.is_file() && !found.is_dir());
    let progress = Progress::start(&heading, object.size(), false);
    let failed = |error: io::Error| Failure::while_doing(doing())(error);
    if is_special {
        let mut file =
            fs::OpenOptions::new().write(true).open(&target).map_err(Failure::while_doing(doing()))?;
        return fetch_to(station, client, object, limit_bytes, &mut file, &progress, failed);
    }
    if target.is_dir() {
        return Err(Failure::new(format!("{} is a folder: name a file", path.display())));
    }
    let mut draft = target.as_os_str().to_owned();
    draft.push(".clovis-part");
    let draft = PathBuf::from(draft);
    let mut file = File::create(&draft).map_err(Failure::while_doing(doing()))?;
    let half_written = draft.clone();
    let interrupt = Interrupt::guard(move || match fs::remove_file(&half_written) {
        Ok(()) => "nothing was written".to_owned(),
        Err(error) => format!("{} is left: {error}", half_written.display()),
    })?;
    let placed = fetch_to(station, client, object, limit_bytes, &mut file, &progress, failed)
        .and_then(|()| fs::rename(&draft, &target).map_err(Failure::while_doing(doing())));
    interrupt.release();
    if placed.is_err() {
        // The half-written draft is of no use; the failure that is reported is the one that counts.
        let _ = fs::remove_file(&draft);
    }
    placed
}

/// [`fetch`] into something that takes bytes; if that does not take them, `failed` says what it means.
fn fetch_to(
    station: &mut Station,
    client: &Client,
    object: &Object,
    limit_bytes: u64,
    output: &mut impl Write,
    progress: &Progress,
    failed: impl FnOnce(io::Error) -> Failure,
) -> Result<(), Failure> {
    let mut refusal = None;
    let sink = |_, bytes: &[u8]| {
        output.write_all(bytes).map_err(|error| {
            let kind = error.kind();
            refusal = Some(error);
            kind.into()
        })
    };
    let fetched = fetch(station, client, object, limit_bytes, sink, progress);
    match refusal {
        Some(error) => Err(failed(error)),
        None => {
            fetched?;
            output.flush().map_err(failed)
        }
    }
}

fn stat_json(stat: &ObjectStat) -> serde_json::Value {
    json!({
        "id": stat.object.to_string(),
        "size_bytes": stat.size_bytes,
        "layout": stat.width.to_string(),
        "unit_bytes": stat.unit_bytes,
        "record_version": stat.version,
        "generation": format!("{:#x}", stat.generation),
        "pool_version": stat.pool_version.to_string(),
    })
}

/// `clovis stat`
pub fn stat(args: &StatArgs) -> Result<(), Failure> {
    let (mut station, client, _) = connect(&args.connect, false)?;
    let stat = station.wait(client.stat(args.id))?.map_err(|error| Failure::new(error.to_string()))?;
    if args.json {
        return output::line(&stat_json(&stat).to_string());
    }
    let configuration = client.configuration();
    let version = configuration.pool_version(stat.pool_version);
    let pool = version.map_or("", |version| configuration.pool_name(version.pool));
    output::print(&format!(
        "object  {}\nsize    {} bytes ({})\nlayout  {}, units of {}\npool    {pool}, version {}\n\
         record  version {}, generation {:#x}, kept {} times\n",
        stat.object,
        stat.size_bytes,
        bytes_text(stat.size_bytes),
        stat.width,
        bytes_text(u64::from(stat.unit_bytes)),
        stat.pool_version,
        stat.version,
        stat.generation,
        configuration.pool.width.parity() + 1
    ))
}

/// `clovis rm`
pub fn remove(args: &RmArgs) -> Result<(), Failure> {
    let (mut station, client, _) = connect(&args.connect, false)?;
    let mut first_failure = None;
    for id in &args.ids {
        let failure = match credit::writer(&mut station, &client, *id, &args.hold) {
            Ok(client) => match station.wait(client.delete(*id))? {
                Ok(()) => continue,
                Err(ClientError::NotFound { .. }) if args.force => continue,
                Err(error) => Failure::new(error.to_string()),
            },
            Err(failure) => failure,
        };
        if let Some(earlier) = first_failure.replace(failure) {
            eprintln!("clovis: {earlier}");
        }
    }
    if args.hold.exclusive {
        credit::leave(&mut station, &client);
    }
    first_failure.map_or(Ok(()), Err)
}

/// How many records are asked for at once.
const LIST_PAGE: usize = 1000;

pub fn list_all(station: &mut Station, client: &Client) -> Result<Vec<ObjectStat>, Failure> {
    let mut objects: Vec<ObjectStat> = Vec::new();
    loop {
        let after = objects.last().map(|last| last.object);
        let page =
            station.wait(client.list(after, LIST_PAGE))?.map_err(|error| Failure::new(error.to_string()))?;
        let is_last = page.is_empty();
        objects.extend(page);
        if is_last {
            return Ok(objects);
        }
    }
}

/// `clovis ls`
pub fn list(args: &LsArgs) -> Result<(), Failure> {
    let (mut station, client, _) = connect(&args.connect, false)?;
    let objects = list_all(&mut station, &client)?;
    if args.json {
        let objects: Vec<_> = objects.iter().map(stat_json).collect();
        output::line(&json!({ "objects": objects }).to_string())
    } else if args.ids {
        let ids: String = objects.iter().map(|object| format!("{}\n", object.object)).collect();
        output::print(&ids)
    } else {
        let mut table = Table::new(&[
            ("object", Align::Left),
            ("bytes", Align::Right),
            ("layout", Align::Left),
            ("unit", Align::Right),
        ]);
        for object in &objects {
            let unit = bytes_text(u64::from(object.unit_bytes));
            table.row([
                object.object.to_string(),
                object.size_bytes.to_string(),
                object.width.to_string(),
                unit,
            ]);
        }
        output::print(&table.render())
    }
}
