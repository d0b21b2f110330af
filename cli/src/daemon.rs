//! `clovis control` and `clovis server`: one daemon each, in the foreground, until SIGTERM, SIGINT or a Shutdown request.
//!
//! A server has a thread for each of its localities ([`ServerSeat`]). The same functions serve the threads of [`crate::in_process`]. A daemon prints a line when it serves and one when it
//! has stopped; what keeps it from starting is its last line, which `clovis cluster start` shows.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use base::units::BLOCK_BYTES;
use base::{Endpoint, Fid};
use control::{Control, ControlConfig, FirstStart, MemberConfig, OperatorFile};
use faces::cluster_file::{ClusterFile, ServerSection};
use faces::{About, ClusterId, DeviceState};
use futures_channel::oneshot;
use futures_util::{FutureExt as _, future};
use rpc::OnDenied;
use runtime::{Crowd, LocalityConfig, StopFlag};
use server::{DiskSource, DiskWanted, Server, ServerConfig};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use spdk_stob::{OpenOptions, is_nvme_address};
use verbs_net::Fabric;

use crate::args::{ControlRunArgs, CoreList, FirstStartArg, ServerArgs};
use crate::connection::{
    ARENA_BYTES, Station, arena_for, client_config, create_device, device_path, fabric_of, folder_of,
    load_cluster_file, new_epoch, open_device, open_device_as, unix_s, unix_us,
};
use crate::failure::Failure;
use crate::known_cluster::KnownCluster;
use crate::metrics::Part;
use crate::metrics::exporter::{Answer, Exporter, Found};
use crate::output;
use crate::threads::Threads;
use crate::{metrics, page};

/// How long a stopping daemon may wait for requests that run and for its devices to close.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// How long one step of a copy to a device in repair may take, before it is tried again.
const COPY_OP_TIMEOUT: Duration = Duration::from_secs(30);

/// The name of a server, in files and messages: `server-1` for the first.
pub fn server_name(process: Fid) -> String {
    format!("server-{}", process.key)
}

/// What a daemon of this program says of itself.
fn about() -> About {
    About { version: crate::VERSION.to_owned(), unix_us: Some(Rc::new(unix_us)) }
}

/// Resolves once the process is asked to end by SIGTERM or SIGINT.
fn stop_signal() -> Result<oneshot::Receiver<()>, Failure> {
    let (sender, receiver) = oneshot::channel();
    on_signal(move || {
        // An error: nobody listens any more, the daemon is stopping already.
        let _ = sender.send(());
    })?;
    Ok(receiver)
}

/// Sets `stop` once the process is asked to end by SIGTERM or SIGINT.
pub fn stop_on_signal(stop: &StopFlag) -> Result<(), Failure> {
    let stop = stop.clone();
    on_signal(move || stop.stop())
}

fn on_signal(first: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let mut signals =
        Signals::new([SIGTERM, SIGINT]).map_err(Failure::while_doing("listening to signals"))?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut first = Some(first);
            for _ in signals.forever() {
                match first.take() {
                    Some(first) => first(),
                    // A second signal: whoever asks twice does not want to wait.
                    None => std::process::exit(130),
                }
            }
        })
        .map(drop)
        .map_err(Failure::while_doing("starting the signal thread"))
}

/// A line for the log. A daemon whose log is full, or read by nobody, serves nevertheless.
fn note(line: &str) {
    let _ = output::line(line);
}

/// What a daemon moved in its life, and what that cost: the figures of DESIGN.md section 3.5 that devices and networks count.
fn counts(parts: &[Arc<Part>]) -> String {
    let counters = metrics::sum(parts);
    format!(
        "{} bytes of bulk received, {} bytes copied, {} memory registrations, {} doorbells, {} system calls",
        counters.bulk_bytes.get(),
        counters.copied_bytes.get(),
        counters.registrations.get(),
        counters.doorbells.get(),
        counters.syscalls.get(),
    )
}

/// `clovis control`
pub fn control(args: &ControlRunArgs) -> Result<(), Failure> {
    let (text, file) = KnownCluster::of_daemon(&args.config, args.credential.as_deref(), |file| {
        control_name(file, args.number.unwrap_or(file.first_control()))
    })?;
    let seat = ControlSeat::of(&file, args.number.unwrap_or(file.first_control()))?;
    let seat = ControlSeat { first_start: args.first_start.map(FirstStartArg::kind), ..seat };
    let fabric = fabric_of(seat.endpoint)?;
    let stop = stop_signal()?;
    let mut station = Station::for_devices(&seat.name, [seat.store.as_path()])?;
    station.keep_addb_in(folder_of(&args.config));
    serve_control(&mut station, &fabric, (&text, &file, &seat), folder_of(&args.config), stop, || {
        note(&format!("{} serves at {}", seat.name, seat.endpoint));
    })?;
    note(&format!("{} has stopped", seat.name));
    Ok(())
}

impl FirstStartArg {
    fn kind(self) -> FirstStart {
        match self {
            FirstStartArg::Found => FirstStart::Found,
            FirstStartArg::Join => FirstStart::Join,
        }
    }
}

/// `control`, of which there is one in each cluster; `control-2` and so on are its further ones.
pub fn control_name(file: &ClusterFile, number: u64) -> String {
    if number == file.first_control() { "control".to_owned() } else { format!("control-{number}") }
}

/// One of the control daemons of a cluster file.
#[derive(Clone, Debug)]
pub struct ControlSeat {
    /// For people: [`control_name`].
    pub name: String,
    /// Its number.
    pub number: u64,
    /// Where it listens.
    pub endpoint: Endpoint,
    /// Its store, from the folder of the cluster file.
    pub store: PathBuf,
    metrics: Option<SocketAddr>,
    first_start: Option<FirstStart>,
}

impl ControlSeat {
    /// All of them, the first one first.
    pub fn all(file: &ClusterFile) -> Vec<ControlSeat> {
        let seat = |number, endpoint, store: &Path, metrics| ControlSeat {
            name: control_name(file, number),
            number,
            endpoint,
            store: store.to_owned(),
            metrics,
            first_start: None,
        };
        let control = &file.control;
        let first = seat(file.first_control(), control.endpoint, &control.store, control.metrics);
        let further = control.members.iter();
        let further = further.map(|one| seat(one.number, one.endpoint, &one.store, one.metrics));
        std::iter::once(first).chain(further).collect()
    }

    /// That of a number. Errors: there is none.
    pub fn of(file: &ClusterFile, number: u64) -> Result<ControlSeat, Failure> {
        let seats = ControlSeat::all(file);
        let known: Vec<String> = seats.iter().map(|seat| seat.number.to_string()).collect();
        seats.into_iter().find(|seat| seat.number == number).ok_or_else(|| {
            let known = known.join(", ");
            Failure::new(format!("the cluster file has no control daemon {number}: there are {known}"))
        })
    }
}

/// `clovis server`
pub fn server(args: &ServerArgs) -> Result<(), Failure> {
    let (_, file) =
        KnownCluster::of_daemon(&args.config, args.credential.as_deref(), |_| server_name(args.process))?;
    let Some(section) = file.server(args.process) else {
        let known: Vec<String> = file.servers.iter().map(|server| server.process.to_string()).collect();
        return Err(Failure::new(format!(
            "process {} is no server of {}: those are {}",
            args.process,
            args.config.display(),
            known.join(", ")
        )));
    };
    let seats = ServerSeat::all(&file, section, folder_of(&args.config), args.cores.as_ref())?;
    let name = server_name(section.process);
    let parts: Vec<Arc<Part>> = seats.iter().map(|seat| Arc::clone(&seat.part)).collect();
    let stop = stop_signal()?;
    let told = metrics::Process { name: name.clone(), fid: Some(section.process) };
    let exporter = exporter(section.metrics, told, parts.clone(), |_, _| None)?;
    let [first, further @ ..] = &seats[..] else {
        return Err(Failure::new(format!("{name} has no endpoint")));
    };
    let mut threads = Threads::default();
    for seat in further {
        let seat = seat.clone();
        threads.start(seat.name(), move |stop, ready| {
            let mut station = seat.station()?;
            serve_server(&mut station, &fabric_of(seat.endpoint()?)?, &seat, stop, ready)
        })?;
    }
    let mut station = first.station()?;
    file.watch_revocations(&station.handle())?;
    let server = start_server(&mut station, &fabric_of(first.endpoint()?)?, first)?;
    let mut outcome = station.wait(threads.ready())?;
    if outcome.is_ok() {
        let endpoints: Vec<String> = section.endpoints.iter().map(ToString::to_string).collect();
        note(&format!("{name} serves at {}", endpoints.join(", ")));
        // One locality that ends, because it was asked to or because it failed, ends the process.
        let (asked, ended) = (pin!(server.shutdown_requested()), pin!(threads.first_end()));
        let asked = future::select(asked, ended).map(drop);
        outcome = serve_until(&mut station, asked, stop);
    }
    drop(exporter);
    threads.tell_to_stop();
    let outcome = outcome.and(finish(&mut station, &name, server.stop())).and(threads.stop());
    if outcome.is_ok() {
        note(&format!("{name} has stopped: {}", counts(&parts)));
    }
    outcome
}

/// Denials that a daemon tells of in its log; all are counted.
const DENIALS_TOLD: usize = 256;

/// Tells the log of the first request of each kind that each peer was refused for want of a right.
fn denials_of(name: &str) -> OnDenied {
    let name = name.to_owned();
    let told = RefCell::new(BTreeSet::new());
    Rc::new(move |peer, opcode, reason| {
        let mut told = told.borrow_mut();
        if told.len() < DENIALS_TOLD && told.insert((peer, opcode)) {
            eprintln!("clovis: {name}: denied to {}: {reason}", peer.endpoint);
        }
    })
}

/// Runs until `stop` resolves (also when its sender is gone) or `asked` does.
fn serve_until(
    station: &mut Station,
    asked: impl Future<Output = ()>,
    stop: oneshot::Receiver<()>,
) -> Result<(), Failure> {
    let asked = pin!(asked);
    station.wait(future::select(asked, stop)).map(drop)
}

/// Waits for an orderly end, but not for ever.
fn finish<E: std::fmt::Display>(
    station: &mut Station,
    name: &str,
    end: impl Future<Output = Result<(), E>>,
) -> Result<(), Failure> {
    let handle = station.handle();
    let deadline = station.now() + STOP_WITHIN;
    match station.wait(handle.timeout_at(deadline, end))? {
        Ok(ended) => ended.map_err(|error| Failure::new(format!("stopping {name}: {error}"))),
        Err(_) => Err(Failure::new(format!("{name} did not finish within {} s", STOP_WITHIN.as_secs()))),
    }
}

/// Serves as the control daemon of the cluster in `folder`, whose file has this text; calls `ready` once it does.
pub fn serve_control(
    station: &mut Station,
    fabric: &Fabric,
    (text, file, seat): (&str, &KnownCluster, &ControlSeat),
    folder: &Path,
    stop: oneshot::Receiver<()>,
    ready: impl FnOnce(),
) -> Result<(), Failure> {
    let path = device_path(folder, &seat.store);
    if seat.first_start.is_some() && !path.exists() && !is_nvme_address(&path) {
        create_device(&path, file.control.store_bytes)?;
    }
    let store = open_device(&path)?;
    let credential = file.cluster.credential;
    let epoch = new_epoch()?;
    file.watch_revocations(&station.handle())?;
    let mut config = ControlConfig::new(file.security()?, epoch, file.initial_configuration(), store);
    config.endpoint = seat.endpoint;
    if !file.control.members.is_empty() {
        config.member = Some(MemberConfig {
            number: seat.number,
            members: file.control_members().collect(),
            first_start: seat.first_start,
        });
    } else if seat.first_start.is_some() {
        return Err(Failure::new(
            "--first-start is for one of several control daemons, and the cluster file has one alone",
        ));
    }
    config.about = about();
    config.rpc.addb = station.addb_of_daemon(&seat.name, Fid::default(), epoch);
    config.rpc.on_denied = Some(denials_of(&seat.name));
    let process = metrics::Process { name: seat.name.clone(), fid: None };
    let (asker, questions) = page::questions(&station.handle());
    let pages = move |path: &str, query: &str| asker.page(path, query);
    let addb = config.rpc.addb.clone().map_or_else(OnceLock::new, OnceLock::from);
    let part = Arc::new(Part { addb, counters: Arc::clone(station.handle().counters()) });
    let exporter = exporter(seat.metrics, process, vec![part], pages)?;
    let text = ClusterFile::hide_credential(text).map_err(|error| Failure::new(error.to_string()))?;
    config.file = Some(OperatorFile { text, credential, unix_s: unix_s() });
    let handle = station.handle();
    let started = station.wait(Control::start(&handle, fabric, config))?;
    let control = started.map_err(|error| Failure::new(error.to_string()))?;
    ready();
    {
        let asked = pin!(control.shutdown_requested());
        // Without an exporter nobody can ask, and the answers end at once: that is no reason to stop.
        let answers = questions.answer_all(&control, credential).then(|()| future::pending::<()>());
        serve_until(station, future::select(asked, pin!(answers)).map(drop), stop)?;
    }
    drop(exporter);
    finish(station, &seat.name, control.stop())
}

/// Tells the metrics of this process, which are those of its localities together, where the cluster file says so, and what `further` has.
fn exporter(
    address: Option<SocketAddr>,
    process: metrics::Process,
    parts: Vec<Arc<Part>>,
    further: impl Fn(&str, &str) -> Found + Send + Sync + 'static,
) -> Result<Option<Exporter>, Failure> {
    let Some(address) = address else { return Ok(None) };
    let page = move |path: &str, query: &str| match path {
        "/metrics" => Some(Ok(Answer::metrics(metrics::text(&process, &parts)))),
        _ => further(path, query),
    };
    Exporter::start(address, page).map(Some)
}

/// One locality of a server process: what its thread needs to start, on whichever thread that is.
#[derive(Clone)]
pub struct ServerSeat {
    file: KnownCluster,
    /// Where the file is, if it is one that may be read again.
    config: Option<PathBuf>,
    folder: PathBuf,
    process: Fid,
    /// Its index, into the endpoints of the process.
    locality: usize,
    /// This start of the process: the same for all of its localities.
    epoch: u64,
    crowd: Arc<Crowd>,
    /// Where its thread stays.
    core: Option<usize>,
    part: Arc<Part>,
}

impl ServerSeat {
    /// The first locality of a server. Errors: as [`new_epoch`].
    pub fn first(file: &KnownCluster, process: Fid, folder: &Path) -> Result<ServerSeat, Failure> {
        Ok(ServerSeat {
            file: file.clone(),
            config: None,
            folder: folder.to_owned(),
            process,
            locality: 0,
            epoch: new_epoch()?,
            crowd: Crowd::new(),
            core: None,
            part: Arc::default(),
        })
    }

    /// All localities of a server. Errors: fewer cores than localities; as [`ServerSeat::first`].
    fn all(
        file: &KnownCluster,
        section: &ServerSection,
        folder: &Path,
        cores: Option<&CoreList>,
    ) -> Result<Vec<ServerSeat>, Failure> {
        let count = section.endpoints.len();
        if let Some(CoreList(cores)) = cores.filter(|cores| cores.0.len() < count) {
            return Err(Failure::new(format!(
                "--cores has {} of them for the {count} localities of {}: name one for each",
                cores.len(),
                server_name(section.process)
            )));
        }
        let first = ServerSeat::first(file, section.process, folder)?;
        let seat = |locality| ServerSeat {
            config: Some(file.config().to_owned()),
            locality,
            core: cores.map(|CoreList(cores)| cores[locality]),
            part: Arc::default(),
            ..first.clone()
        };
        Ok((0..count).map(seat).collect())
    }

    /// `server-1`; of its further localities `server-1.1`, `server-1.2`.
    pub fn name(&self) -> String {
        let name = server_name(self.process);
        if self.locality == 0 { name } else { format!("{name}.{}", self.locality) }
    }

    fn section(&self) -> Result<&ServerSection, Failure> {
        let section = self.file.server(self.process);
        section.ok_or_else(|| Failure::new(format!("no server {} in the configuration", self.process)))
    }

    /// Where it listens.
    fn endpoint(&self) -> Result<Endpoint, Failure> {
        let endpoint = self.section()?.endpoints.get(self.locality).copied();
        endpoint.ok_or_else(|| Failure::new(format!("{} has no endpoint", self.name())))
    }

    /// Its devices, where they are, and their sizes in bytes.
    fn devices(&self) -> Vec<(Fid, PathBuf, u64)> {
        devices_at(&self.file, self.process, self.locality, &self.folder)
    }

    /// A place to stand on this thread, which stays on its core from now on if it has one. Errors: no such core; no memory.
    fn station(&self) -> Result<Station, Failure> {
        if let Some(core) = self.core {
            let doing = || format!("keeping {} on core {core}", self.name());
            runtime::process::pin_to_core(core).map_err(Failure::while_doing(doing()))?;
        }
        let devices = self.devices();
        let config = LocalityConfig {
            index: u32::try_from(self.locality).unwrap_or(u32::MAX),
            name: self.name(),
            seed: new_epoch()?,
            counters: Arc::clone(&self.part.counters),
            arena: arena_for(ARENA_BYTES, devices.iter().map(|(_, path, _)| path.as_path()))?,
            crowd: Some(Arc::clone(&self.crowd)),
        };
        let mut station = Station::of(config);
        station.keep_addb_in(&self.folder);
        Ok(station)
    }
}

/// A device's path, and its bytes by the cluster file.
type Place = (PathBuf, u64);

/// Where the devices of a locality are: as the cluster file said when it started, and as that says now of those that it did not name then.
struct Places {
    name: String,
    folder: PathBuf,
    process: Fid,
    cluster: ClusterId,
    locality: usize,
    /// The cluster file of this process; nothing of a cluster that has none.
    config: Option<PathBuf>,
    /// Its buffers are such that SPDK can use them.
    has_nvme: bool,
    known: RefCell<BTreeMap<Fid, Place>>,
    /// The file as it was last read, and what was wrong with it.
    read: RefCell<Option<(FileMark, Result<(), String>)>>,
}

/// Time of the last change, and bytes.
type FileMark = (Option<SystemTime>, u64);

impl Places {
    fn of(seat: &ServerSeat) -> Places {
        let known = seat.devices();
        Places {
            name: seat.name(),
            folder: seat.folder.clone(),
            process: seat.process,
            cluster: seat.file.cluster.id,
            locality: seat.locality,
            config: seat.config.clone(),
            has_nvme: known.iter().any(|(_, path, _)| is_nvme_address(path)),
            known: RefCell::new(known.into_iter().map(|(fid, path, bytes)| (fid, (path, bytes))).collect()),
            read: RefCell::default(),
        }
    }

    /// Errors: no cluster file names the device here.
    fn find(&self, device: Fid) -> Result<Place, String> {
        if let Some(place) = self.known.borrow().get(&device) {
            return Ok(place.clone());
        }
        let config = self.config.as_ref().ok_or("this cluster has no file that could name it")?;
        self.read_again(config)?;
        let place = self.known.borrow().get(&device).cloned().ok_or_else(|| {
            format!(
                "{} does not name it as one of {}: bring the cluster file in force to this machine (`clovis conf show` prints it)",
                config.display(),
                self.name
            )
        })?;
        if is_nvme_address(&place.0) && !self.has_nvme {
            return Err(format!(
                "it is at {}, which SPDK drives, and {} has no memory for SPDK before it starts again: restart it",
                place.0.display(),
                self.name
            ));
        }
        Ok(place)
    }

    /// Reads the cluster file if it is another one than last time. Errors: it cannot be read, or is of another cluster.
    fn read_again(&self, config: &Path) -> Result<(), String> {
        let about = std::fs::metadata(config).map_err(|error| format!("{}: {error}", config.display()))?;
        let mark = (about.modified().ok(), about.len());
        if let Some((_, outcome)) = self.read.borrow().as_ref().filter(|(seen, _)| *seen == mark) {
            return outcome.clone();
        }
        let outcome = self.take(config);
        *self.read.borrow_mut() = Some((mark, outcome.clone()));
        outcome
    }

    fn take(&self, config: &Path) -> Result<(), String> {
        let file = load_cluster_file(config).map_err(|failure| failure.to_string())?;
        if file.cluster.id != self.cluster {
            return Err(format!("{} is the file of another cluster", config.display()));
        }
        // Those that were known stay where they are until the process starts again.
        let mut known = self.known.borrow_mut();
        for (device, path, bytes) in devices_at(&file, self.process, self.locality, &self.folder) {
            known.entry(device).or_insert((path, bytes));
        }
        Ok(())
    }
}

/// The devices of a locality of a process, where they are, and their sizes in bytes.
fn devices_at(file: &ClusterFile, process: Fid, locality: usize, folder: &Path) -> Vec<(Fid, PathBuf, u64)> {
    let devices = file.devices_of(process);
    let devices = devices.filter(|device| usize::try_from(device.locality) == Ok(locality));
    devices.map(|device| (device.fid, device_path(folder, &device.path), device.size_bytes)).collect()
}

/// True if there is something at a device's path, or nobody can tell before it is opened.
fn is_there(path: &Path) -> bool {
    is_nvme_address(path) || path.try_exists().unwrap_or(true)
}

/// Opens what stands in the place of one of these devices now. A file that is gone is made anew, as large as it was, and that of a new
/// device as large as the cluster file says.
fn disk_source(places: Places) -> DiskSource {
    Rc::new(move |device, size_blocks| {
        let (path, size_bytes) = places.find(device)?;
        if !path.starts_with("/dev/") && !is_there(&path) {
            let size_bytes = if size_blocks > 0 { size_blocks * BLOCK_BYTES } else { size_bytes };
            create_device(&path, size_bytes).map_err(|error| error.to_string())?;
        }
        // A locality that serves waits for nobody; it asks again.
        let at_once = OpenOptions { lock_wait: Duration::ZERO, ..OpenOptions::default() };
        open_device_as(&path, at_once).map_err(|error| error.to_string())
    })
}

/// Starts a locality of a server; registered when it returns.
fn start_server(station: &mut Station, fabric: &Fabric, seat: &ServerSeat) -> Result<Server, Failure> {
    let (name, file) = (seat.name(), &seat.file);
    let places = seat.devices();
    let mut devices = Vec::new();
    // Of those that are not there some may be new: the configuration says which, once it is known.
    for (device, path, _) in places.iter().filter(|(_, path, _)| is_there(path)) {
        devices.push((*device, open_device(path)?));
    }
    let mut config = ServerConfig::new(
        seat.endpoint()?,
        seat.process,
        file.control.endpoint,
        file.security()?,
        seat.epoch,
        devices,
    );
    config.further_controls = file.further_controls();
    config.about = about();
    config.rpc.addb = station.addb_of_daemon(&name, seat.process, seat.epoch);
    if let Some(space) = config.rpc.addb.clone() {
        // Told once in the life of a seat.
        let _ = seat.part.addb.set(space);
    }
    config.rpc.on_denied = Some(denials_of(&name));
    config.rails.clone_from(&seat.section()?.rails);
    config.disks = Some(disk_source(Places::of(seat)));
    let copies = client_config(file, COPY_OP_TIMEOUT)?;
    config.copier = Some(client::copier(&station.handle(), fabric, copies));
    let teller = name.clone();
    config.on_disk = Some(Rc::new(move |device, wanted, outcome| match (wanted, outcome) {
        (DiskWanted::First, Ok(())) => note(&format!("{teller}: device {device}, which is new, is open")),
        (DiskWanted::First, Err(reason)) => {
            eprintln!(
                "clovis: {teller}: device {device}, which is new, cannot be opened: {reason}. It is tried again"
            );
        }
        (DiskWanted::Another(_), Ok(())) => {
            note(&format!("{teller}: device {device} has another disk, formatted"));
        }
        (DiskWanted::Another(_), Err(reason)) => {
            eprintln!("clovis: {teller}: device {device} awaits another disk: {reason}");
        }
    }));
    let teller = name.clone();
    config.rpc.on_hung = Some(Rc::new(move |hung: &rpc::HungFom| eprintln!("clovis: {teller}: {hung}")));
    let handle = station.handle();
    let started = station.wait(Server::start(&handle, fabric, config))?;
    let server = started.map_err(|error| Failure::new(error.to_string()))?;
    for (device, error) in server.unopened() {
        eprintln!("clovis: {name}: device {device} is left out: {error}");
    }
    let configuration = server.configuration();
    let is_failed = |device: &Fid| {
        let found = configuration.as_ref().and_then(|configuration| configuration.device(*device));
        found.is_some_and(|found| matches!(found.state, DeviceState::Failed | DeviceState::Repaired))
    };
    if let Some((device, error)) = server.unopened().iter().find(|(device, _)| !is_failed(device)) {
        let refusal = Failure::new(format!("device {device}: {error}"));
        finish(station, &name, server.stop())?;
        return Err(refusal);
    }
    Ok(server)
}

/// Serves as one locality of a server; calls `ready` once it is registered.
pub fn serve_server(
    station: &mut Station,
    fabric: &Fabric,
    seat: &ServerSeat,
    stop: oneshot::Receiver<()>,
    ready: impl FnOnce(),
) -> Result<(), Failure> {
    let server = start_server(station, fabric, seat)?;
    ready();
    serve_until(station, server.shutdown_requested(), stop)?;
    finish(station, &seat.name(), server.stop())
}
