//! `clovis cluster init|start|stop|status`: the daemons of one cluster on this machine, as processes over loopback.
//!
//! Starting a folder again starts the daemons that do not run: that is also how a killed server comes back.
//! Left over on failure: daemons that did start keep running and are named in `status`; `stop` ends them.

use std::fs::OpenOptions;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base::nid::NetKind;
use base::units::MIB;
use base::{Endpoint, Fid, LayoutWidth, Nid, endpoint};
use client::membership;
use faces::cluster_file::{ClusterFile, SecurityKind, Transport as FileTransport};
use fops::admin::{Ping, Shutdown};
use fops::conf::ClusterStatusReply;
use serde_json::json;
use verbs_net::VerbsFabric;

use crate::args::{
    ClusterInitArgs, ClusterShapeArgs, ClusterStartArgs, ClusterStatusArgs, ClusterStopArgs, SecurityArg,
    Transport,
};
use crate::blueprint::Blueprint;
use crate::cluster_folder::ClusterFolder;
use crate::connection::{Station, create_device, format_device, new_epoch, open_device};
use crate::credential;
use crate::daemon::{ControlSeat, server_name};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::known_cluster::KnownCluster;
use crate::output;
use crate::table::{Align, Table, bytes_text};

/// How often a condition is looked at while waiting for another process.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long a daemon may take to stop after it was asked, and again after it was told by a signal.
const STOP_WITHIN: Duration = Duration::from_secs(15);

const CONTROL_NAME: &str = "control";

/// The cluster of a folder, with the credential that its administrator's commands show.
fn known(folder: &ClusterFolder) -> Result<KnownCluster, Failure> {
    let named = std::env::var_os("CLOVIS_CREDENTIAL").map(PathBuf::from);
    KnownCluster::load(&folder.config(), named.as_deref())
}

/// `clovis cluster init`
pub fn init(args: &ClusterInitArgs) -> Result<(), Failure> {
    let folder = ClusterFolder::new(&args.shape.dir)?;
    let is_ours = folder.create_root()?;
    let _lock = folder.lock()?;
    if folder.config().exists() {
        return Err(Failure::new(format!(
            "{} holds a cluster already: start it with `clovis cluster start --dir {}`, or name another folder",
            folder.root().display(),
            folder.root().display()
        )));
    }
    folder.refuse_content()?;
    let file = make(&args.shape, &folder, is_ours)?;
    let config = folder.config();
    let has_credentials = file.cluster.security == SecurityKind::Certificates;
    let administrator = membership::credential_path(&config, membership::ADMINISTRATOR);
    if args.json {
        let mut value = json!({
            "config": config.to_string_lossy(),
            "cluster": format!("{:#018x}", file.cluster.id.0),
            "security": file.cluster.security.word(),
            "encrypt": file.cluster.encrypt,
        });
        if has_credentials {
            value["credential"] = json!(administrator.to_string_lossy());
        }
        return output::line(&value.to_string());
    }
    let dir = folder.root().display();
    output::print(&format!("The cluster {} is made in {dir}; nothing runs yet.\n", file.cluster.name))?;
    if has_credentials {
        output::print(&format!(
            "Its administrator's credential is {}; make others with `clovis credential create NAME --rights connect,read`.\n",
            administrator.display()
        ))?;
    }
    output::print(&format!("Next:\n  clovis cluster start --dir {dir}\n"))
}

/// `clovis cluster start`
pub fn start(args: &ClusterStartArgs) -> Result<(), Failure> {
    let folder = ClusterFolder::new(&args.shape.dir)?;
    let is_ours = folder.create_root()?;
    let _lock = folder.lock()?;
    if folder.config().exists() {
        let file = known(&folder)?;
        refuse_other_shape(&args.shape, &file)?;
        folder.create_for_daemons()?;
    } else {
        folder.refuse_content()?;
        make(&args.shape, &folder, is_ours)?;
    }
    let file = known(&folder)?;
    let mut station = Station::new("cluster-start")?;
    let mut daemons = Vec::new();
    let controls = ControlSeat::all(&file).into_iter().map(|seat| (seat.name, Role::Control(seat.number)));
    let servers =
        file.servers.iter().map(|server| (server_name(server.process), Role::Server(server.process)));
    for (name, role) in controls.chain(servers) {
        // Who was told to end a moment ago has its port and devices until it is gone.
        if folder.is_ending(&name) && !gone_within(&mut station, &folder, &name, STOP_WITHIN)? {
            return Err(Failure::new(format!(
                "{name} ends, and does not come to an end: look for its process"
            )));
        }
        if folder.running(&name).is_none() {
            daemons.push((name.clone(), spawn(&folder, &name, role)?));
        }
    }
    if daemons.is_empty() {
        return output::line(&format!(
            "every process of the cluster in {} runs already",
            folder.root().display()
        ));
    }
    let status = wait_until_ready(&mut station, &folder, &file, &mut daemons, Duration::from_secs(args.wait));
    let status = status.map_err(|failure| give_up(&folder, &mut daemons, &failure))?;
    output::print(&format!(
        "{}\nNext:\n  export CLOVIS_CONFIG={}\n  clovis cp FILE 12:34 && clovis cat 12:34 | cmp - FILE\n  \
         clovis cluster stop --dir {}\n",
        status_tables(&folder, &file, Some(&status)),
        folder.config().display(),
        folder.root().display()
    ))
}

/// What is left after a start that failed. Without control the servers are of no use: those just started are ended. With
/// control the cluster serves as well as it can, and the message says so.
fn give_up(folder: &ClusterFolder, daemons: &mut [(String, Child)], failure: &Failure) -> Failure {
    let dir = folder.root().display();
    if has_control(folder) {
        return Failure::new(format!(
            "{failure}; the other processes run on: look with `clovis cluster status --dir {dir}`, end them with \
             `clovis cluster stop --dir {dir}`"
        ));
    }
    for (name, child) in daemons {
        // Both fail only if it has ended already.
        let _ = child.kill();
        let _ = child.wait();
        folder.forget(name);
    }
    Failure::new(failure.to_string())
}

/// What a daemon is, by what its command line names.
#[derive(Clone, Copy)]
enum Role {
    /// The number of a control daemon.
    Control(u64),
    /// The fid of a server.
    Server(Fid),
}

/// True if a control daemon of the cluster runs.
fn has_control(folder: &ClusterFolder) -> bool {
    folder.noted().iter().any(|name| name.starts_with(CONTROL_NAME) && folder.running(name).is_some())
}

/// A folder that exists keeps its shape: flags that say otherwise are refused, not ignored.
fn refuse_other_shape(args: &ClusterShapeArgs, file: &ClusterFile) -> Result<(), Failure> {
    let servers = u32::try_from(file.servers.len()).unwrap_or(u32::MAX);
    let devices = u32::try_from(file.devices.len()).unwrap_or(u32::MAX);
    let wanted_devices = args.devices_per_server.map(|each| each * args.servers.unwrap_or(servers));
    let differs = |what: &str, have: String, wanted: String| {
        Failure::new(format!(
            "the cluster in {} has {what} {have}, not {wanted}: leave the flag out, or use another folder",
            args.dir.display()
        ))
    };
    let controls = u32::try_from(file.control.members.len() + 1).unwrap_or(u32::MAX);
    if let Some(wanted) = args.control.filter(|wanted| *wanted != controls) {
        return Err(differs("control daemons:", controls.to_string(), wanted.to_string()));
    }
    if let Some(wanted) = args.servers.filter(|wanted| *wanted != servers) {
        return Err(differs("servers:", servers.to_string(), wanted.to_string()));
    }
    let localities = file.servers.first().map_or(1, |server| server.endpoints.len());
    if let Some(wanted) = args.localities.filter(|wanted| usize::try_from(*wanted) != Ok(localities)) {
        return Err(differs("localities of a server:", localities.to_string(), wanted.to_string()));
    }
    if let Some(wanted) = wanted_devices.filter(|wanted| *wanted != devices) {
        return Err(differs("devices:", devices.to_string(), wanted.to_string()));
    }
    if let Some(wanted) = args.layout.filter(|wanted| *wanted != file.pool.layout) {
        return Err(differs("the layout", file.pool.layout.to_string(), wanted.to_string()));
    }
    let device_bytes = file.devices.first().map_or(0, |device| device.size_bytes);
    if let Some(wanted) = args.device_size.filter(|wanted| *wanted != device_bytes) {
        return Err(differs("devices of", bytes_text(device_bytes), bytes_text(wanted)));
    }
    let port = file.control.endpoint.port();
    if let Some(wanted) = args.first_port.filter(|wanted| Some(*wanted) != port) {
        return Err(differs(
            "its control daemon on port",
            port.map_or_else(|| "none".to_owned(), |port| port.to_string()),
            wanted.to_string(),
        ));
    }
    let security = args.security.map(SecurityArg::kind);
    if let Some(wanted) = security.filter(|wanted| *wanted != file.cluster.security) {
        return Err(differs(
            "the security",
            file.cluster.security.word().to_owned(),
            wanted.word().to_owned(),
        ));
    }
    if args.encrypt && !file.cluster.encrypt {
        return Err(differs("encryption", "off".to_owned(), "on (`encrypt` in the cluster file)".to_owned()));
    }
    let port = file.control.metrics.map(|address| address.port());
    if let Some(wanted) = args.metrics_port.filter(|wanted| Some(*wanted) != port) {
        return Err(differs(
            "metrics of control on port",
            port.map_or_else(|| "none".to_owned(), |port| port.to_string()),
            format!("{wanted} (`metrics` in the cluster file says where)"),
        ));
    }
    Ok(())
}

/// Fills the empty folder with a cluster. A failure, or an interruption, takes back what was made: with the folder if it
/// `is_ours`.
fn make(args: &ClusterShapeArgs, folder: &ClusterFolder, is_ours: bool) -> Result<ClusterFile, Failure> {
    let abandoned = folder.clone();
    let interrupt = Interrupt::guard(move || {
        abandoned.undo_create(is_ours);
        "no cluster was made".to_owned()
    })?;
    let made = plan(args, folder).and_then(|file| fill(folder, &file).map(|()| file));
    interrupt.release();
    if made.is_err() {
        folder.undo_create(is_ours);
    }
    made
}

fn plan(args: &ClusterShapeArgs, folder: &ClusterFolder) -> Result<ClusterFile, Failure> {
    let servers = args.servers.unwrap_or(4);
    let (transport, nid) = match args.transport {
        Transport::Tcp => (FileTransport::Tcp, Nid::tcp(Ipv4Addr::LOCALHOST)),
        Transport::Verbs => (FileTransport::O2ib, Nid::new(NetKind::O2ib, u32::from(rdma_address()?))),
    };
    let blueprint = Blueprint {
        name: folder
            .root()
            .file_name()
            .map_or_else(|| "clovis".to_owned(), |name| name.to_string_lossy().into_owned()),
        transport,
        width: args.layout.unwrap_or(LayoutWidth::DEFAULT),
        controls: args.control.unwrap_or(1),
        servers,
        localities: args.localities.unwrap_or(1),
        devices: servers * args.devices_per_server.unwrap_or(2),
        device_bytes: args.device_size.unwrap_or(512 * MIB),
        metrics_port: args.metrics_port,
        // Certificates are asked for by name: they are new.
        security: args.security.map_or(SecurityKind::Shared, SecurityArg::kind),
        encrypt: args.encrypt,
    };
    blueprint.draw(&choose_endpoints(nid, args.first_port, blueprint.endpoints_count())?)
}

/// Fills an empty folder: sub-folders, device files, and last the configuration.
fn fill(folder: &ClusterFolder, file: &ClusterFile) -> Result<(), Failure> {
    folder.create()?;
    let mut station = Station::new("format")?;
    let controls = ControlSeat::all(file);
    let founders: Vec<u64> = controls.iter().map(|seat| seat.number).collect();
    for seat in &controls {
        let path = folder.root().join(&seat.store);
        create_device(&path, file.control.store_bytes)?;
        if founders.len() > 1 {
            let store = open_device(&path)?;
            let locality = station.handle();
            let member = (seat.number, file.cluster.id.0);
            let founded = station.wait(control::found_store(&locality, store, member, &founders))?;
            founded.map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
        }
    }
    for device in &file.devices {
        let path = folder.root().join(&device.path);
        format_device(&mut station, &path, device.size_bytes, device.fid, file.cluster.id.0)?;
    }
    if file.cluster.security == SecurityKind::Certificates {
        let servers = file.servers.iter().map(|server| server_name(server.process));
        let daemons = controls.into_iter().map(|seat| seat.name).chain(servers);
        credential::make_all(folder.root(), file.cluster.id.0, daemons)?;
    }
    folder.write_config(&file.to_toml().map_err(|error| Failure::new(error.to_string()))?)
}

/// The address of this machine's first RDMA device: that of its RoCE v2 GID.
fn rdma_address() -> Result<Ipv4Addr, Failure> {
    let devices = VerbsFabric::open().and_then(|fabric| fabric.devices());
    let devices = devices.map_err(|error| Failure::new(format!("--transport verbs: {error}")))?;
    let gids = devices.iter().flat_map(|device| &device.ports).flat_map(|port| &port.gids);
    gids.filter(|gid| gid.kind == verbs_net::verbs_sys::GidKind::RoceV2)
        .find_map(|gid| gid.ipv4())
        .ok_or_else(|| {
            Failure::new("--transport verbs: no RDMA device has an IPv4 address: give its interface one")
        })
}

/// Endpoints on one address whose ports are free now (rdma-cm's ports are not TCP's, but a port free for one is as a
/// rule free for the other). Errors: a port of a row that was asked for is in use.
fn choose_endpoints(nid: Nid, first_port: Option<u16>, count: u32) -> Result<Vec<Endpoint>, Failure> {
    let address = nid.ipv4().unwrap_or(Ipv4Addr::LOCALHOST);
    let free = |port: u16| TcpListener::bind((address, port));
    let mut endpoints = Vec::new();
    if let Some(first) = first_port {
        for offset in 0..count {
            let port = u16::try_from(u32::from(first) + offset)
                .map_err(|_| Failure::new(format!("{count} ports from {first} on go beyond 65535")))?;
            free(port)
                .map_err(|error| Failure::new(format!("port {port} on {address} is in use: {error}")))?;
            endpoints.extend(Endpoint::from_port(nid, port));
        }
        return Ok(endpoints);
    }
    // Below the range from which the kernel hands out ports of its own (32768 on), so that a daemon finds its port
    // free again after a restart. Where the row starts is random: several clusters start at once on one machine.
    let (lowest, highest) = (endpoint::PORT_FIRST + 4096, 32_767);
    let start = fastrand::Rng::with_seed(new_epoch()?).u16(lowest..=highest);
    for port in (start..=highest).chain(lowest..start) {
        if endpoints.len() == usize::try_from(count).unwrap_or(usize::MAX) {
            break;
        }
        if free(port).is_ok() {
            endpoints.extend(Endpoint::from_port(nid, port));
        }
    }
    Ok(endpoints)
}

impl SecurityArg {
    fn kind(self) -> SecurityKind {
        match self {
            SecurityArg::Certificates => SecurityKind::Certificates,
            SecurityArg::Shared => SecurityKind::Shared,
        }
    }
}

/// Starts a daemon of this very binary, in a process group of its own, its output in its log.
fn spawn(folder: &ClusterFolder, name: &str, role: Role) -> Result<Child, Failure> {
    let doing = || format!("starting {name}");
    let log_path = folder.log(name);
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_path)
        .map_err(Failure::while_doing(format!("opening {}", log_path.display())))?;
    let errors = log.try_clone().map_err(Failure::while_doing(doing()))?;
    let mut command = Command::new(std::env::current_exe().map_err(Failure::while_doing(doing()))?);
    match role {
        Role::Control(number) => command.arg("control").arg("--number").arg(number.to_string()),
        Role::Server(process) => command.arg("server").arg("--process").arg(process.to_string()),
    };
    command.arg("--config").arg(folder.config());
    command.stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
    let child = command.spawn().map_err(Failure::while_doing(doing()))?;
    folder.note_running(name, child.id())?;
    Ok(child)
}

/// Waits until control reports every process alive. Errors: a daemon ended (its last words are given), or time is up.
fn wait_until_ready(
    station: &mut Station,
    folder: &ClusterFolder,
    file: &KnownCluster,
    daemons: &mut [(String, Child)],
    within: Duration,
) -> Result<ClusterStatusReply, Failure> {
    let deadline = station.now() + within;
    let mut silent = "control does not answer".to_owned();
    loop {
        for (name, child) in daemons.iter_mut() {
            if let Some(status) =
                child.try_wait().map_err(Failure::while_doing(format!("watching {name}")))?
            {
                folder.forget(name);
                return Err(Failure::new(format!("{name} ended ({status}): {}", folder.last_words(name))));
            }
        }
        if let Ok(status) = ask_status(station, file, Duration::from_secs(1)) {
            // Control may know of servers that this file does not name, on other machines: they are not started here.
            let ours = status.processes.iter().filter(|one| file.server(one.process).is_some());
            let missing: Vec<String> =
                ours.filter(|one| !one.alive).map(|one| server_name(one.process)).collect();
            // Control hears of a process by the first of its localities: each has to answer for itself.
            let unanswered = if missing.is_empty() { unanswered(station, file) } else { None };
            silent = match unanswered {
                None if missing.is_empty() => return Ok(status),
                None => format!("not registered with control: {}", missing.join(", ")),
                Some(endpoint) => format!("no answer from {endpoint}"),
            };
        }
        if station.now() > deadline {
            return Err(Failure::new(format!(
                "the cluster is not ready after {} s ({silent}); logs are in {}",
                within.as_secs(),
                folder.root().join("log").display()
            )));
        }
        station.pause(LOOK_AGAIN)?;
    }
}

/// The first endpoint of a server at which no locality answers.
fn unanswered(station: &mut Station, file: &KnownCluster) -> Option<Endpoint> {
    let endpoints = file.servers.iter().flat_map(|server| &server.endpoints).copied();
    let mut silent = endpoints
        .filter(|endpoint| station.call(file, *endpoint, &Ping::default(), Duration::from_secs(1)).is_err());
    silent.next()
}

fn ask_status(
    station: &mut Station,
    file: &KnownCluster,
    within: Duration,
) -> Result<ClusterStatusReply, Failure> {
    station.cluster_status(file, within)
}

/// `clovis cluster stop`
pub fn stop(args: &ClusterStopArgs) -> Result<(), Failure> {
    let folder = ClusterFolder::new(&args.dir)?;
    let file = known(&folder);
    // Without its configuration a cluster that runs can still be ended; one that does not has nothing to end.
    if let Err(failure) = file.as_ref()
        && !folder.noted().iter().any(|name| folder.running(name).is_some())
    {
        return Err(Failure::new(failure.to_string()));
    }
    let _lock = folder.lock()?;
    let noted = folder.noted();
    if let Some(unknown) = args.only.iter().find(|name| !noted.contains(name)) {
        return Err(Failure::new(format!(
            "no process {unknown} was started in {}: those there are {}",
            folder.root().display(),
            if noted.is_empty() { "none".to_owned() } else { noted.join(", ") }
        )));
    }
    let mut station = Station::new("cluster-stop")?;
    let mut stopped = 0;
    // Servers first: they take leave of control, which goes last.
    for name in noted {
        if !args.only.is_empty() && !args.only.contains(&name) {
            continue;
        }
        let Some(process_id) = folder.running(&name) else {
            folder.forget(&name);
            continue;
        };
        // A daemon that cannot be asked, or starts or stops just now, takes the signal: it ends in the same order.
        let asked = file.as_ref().is_ok_and(|file| match endpoint_of(file, &name) {
            Some(endpoint) => station.call_itself(file, endpoint, &Shutdown, Duration::from_secs(5)).is_ok(),
            None => false,
        });
        if !asked {
            signal(process_id, rustix::process::Signal::TERM)?;
        }
        if !gone_within(&mut station, &folder, &name, STOP_WITHIN)? {
            eprintln!("clovis: {name} (process {process_id}) still runs; sending SIGKILL");
            signal(process_id, rustix::process::Signal::KILL)?;
            if !gone_within(&mut station, &folder, &name, STOP_WITHIN)? {
                return Err(Failure::new(format!("{name} (process {process_id}) does not end")));
            }
        }
        folder.forget(&name);
        stopped += 1;
    }
    output::line(&format!("{stopped} processes stopped"))
}

/// Where the daemon of a name listens.
fn endpoint_of(file: &ClusterFile, name: &str) -> Option<Endpoint> {
    if let Some(seat) = ControlSeat::all(file).into_iter().find(|seat| seat.name == name) {
        return Some(seat.endpoint);
    }
    let server = file.servers.iter().find(|server| server_name(server.process) == name)?;
    server.endpoints.first().copied()
}

fn signal(process_id: u32, signal: rustix::process::Signal) -> Result<(), Failure> {
    let pid = i32::try_from(process_id).ok().and_then(rustix::process::Pid::from_raw);
    let Some(pid) = pid else { return Ok(()) };
    match rustix::process::kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(Failure::new(format!("signalling process {process_id}: {error}"))),
    }
}

fn gone_within(
    station: &mut Station,
    folder: &ClusterFolder,
    name: &str,
    within: Duration,
) -> Result<bool, Failure> {
    let deadline = station.now() + within;
    while folder.running(name).is_some() {
        if station.now() > deadline {
            return Ok(false);
        }
        station.pause(LOOK_AGAIN)?;
    }
    Ok(true)
}

/// `clovis cluster status`
pub fn status(args: &ClusterStatusArgs) -> Result<(), Failure> {
    let folder = ClusterFolder::new(&args.dir)?;
    let file = known(&folder)?;
    let answer = if has_control(&folder) {
        ask_status(&mut Station::new("cluster-status")?, &file, Duration::from_secs(5))
    } else {
        Err(Failure::new(format!(
            "control does not run: `clovis cluster start --dir {}` starts what does not",
            args.dir.display()
        )))
    };
    match answer {
        Ok(status) if args.json => output::line(&status_json(&folder, &file, &status).to_string()),
        Ok(status) => output::print(&status_tables(&folder, &file, Some(&status))),
        Err(failure) if args.json => Err(failure),
        Err(failure) => {
            output::print(&status_tables(&folder, &file, None))?;
            Err(failure)
        }
    }
}

fn status_tables(folder: &ClusterFolder, file: &ClusterFile, status: Option<&ClusterStatusReply>) -> String {
    let pid =
        |name: &str| folder.running(name).map_or_else(|| "-".to_owned(), |process_id| process_id.to_string());
    let mut processes = Table::new(&[
        ("process", Align::Left),
        ("fid", Align::Left),
        ("endpoint", Align::Left),
        ("pid", Align::Right),
        ("state", Align::Left),
    ]);
    for seat in ControlSeat::all(file) {
        let is_one_of_several = !file.control.members.is_empty();
        let control_state = match (status.is_some(), folder.running(&seat.name).is_some()) {
            (_, true) if is_one_of_several => "runs",
            (true, _) if !is_one_of_several => "serving",
            _ => "no answer",
        };
        let endpoint = seat.endpoint.to_string();
        processes.row([
            seat.name.clone(),
            String::new(),
            endpoint,
            pid(&seat.name),
            control_state.to_owned(),
        ]);
    }
    for server in &file.servers {
        let name = server_name(server.process);
        let seen =
            status.and_then(|status| status.processes.iter().find(|one| one.process == server.process));
        let state = match seen {
            Some(one) if one.alive => "alive",
            Some(one) if one.silent_ms.is_some() => "lease lost",
            Some(_) => "never registered",
            None => "unknown",
        };
        let endpoint = server.endpoints.first().map(Endpoint::to_string).unwrap_or_default();
        processes.row([name.clone(), server.process.to_string(), endpoint, pid(&name), state.to_owned()]);
    }
    let mut devices = Table::new(&[
        ("target", Align::Right),
        ("device", Align::Left),
        ("server", Align::Left),
        ("state", Align::Left),
        ("size", Align::Right),
        ("free", Align::Right),
        ("errors", Align::Right),
    ]);
    for (target, device) in file.devices.iter().enumerate() {
        let seen = status.and_then(|status| status.devices.iter().find(|one| one.device == device.fid));
        let mut cells = vec![target.to_string(), device.fid.to_string(), server_name(device.server)];
        match seen {
            Some(one) => cells.extend([
                one.state.clone(),
                bytes_text(one.size_blocks.saturating_mul(base::units::BLOCK_BYTES)),
                one.free_blocks.map_or_else(
                    || "-".to_owned(),
                    |blocks| bytes_text(blocks.saturating_mul(base::units::BLOCK_BYTES)),
                ),
                one.errors.to_string(),
            ]),
            None => cells.push("unknown".to_owned()),
        }
        devices.row(cells);
    }
    let version =
        status.map_or_else(String::new, |status| format!(", configuration version {}", status.version));
    format!(
        "cluster {}, layout {}{version}\n\n{}\n{}",
        file.cluster.name,
        file.pool.layout,
        processes.render(),
        devices.render()
    )
}

fn status_json(folder: &ClusterFolder, file: &ClusterFile, status: &ClusterStatusReply) -> serde_json::Value {
    let processes: Vec<_> = status
        .processes
        .iter()
        .map(|one| {
            let name = server_name(one.process);
            json!({ "name": name, "fid": one.process.to_string(), "alive": one.alive, "silent_ms": one.silent_ms,
                    "pid": folder.running(&name) })
        })
        .collect();
    let controls: Vec<_> = ControlSeat::all(file)
        .into_iter()
        .map(|seat| {
            json!({ "number": seat.number, "endpoint": seat.endpoint.to_string(), "pid": folder.running(&seat.name) })
        })
        .collect();
    let devices: Vec<_> = status
        .devices
        .iter()
        .map(|one| {
            json!({ "fid": one.device.to_string(), "state": one.state, "size_blocks": one.size_blocks,
                    "free_blocks": one.free_blocks, "errors": one.errors })
        })
        .collect();
    json!({
        "cluster": file.cluster.name,
        "layout": file.pool.layout.to_string(),
        "configuration_version": status.version,
        "control": { "endpoint": file.control.endpoint.to_string(), "pid": folder.running(CONTROL_NAME) },
        "controls": controls,
        "processes": processes,
        "devices": devices,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_named() {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = holder.local_addr().unwrap().port();
        let refusal = choose_endpoints(Nid::tcp(Ipv4Addr::LOCALHOST), Some(port), 1).unwrap_err().to_string();
        assert!(refusal.contains(&format!("port {port} on 127.0.0.1 is in use")), "{refusal}");
    }

    #[test]
    fn chosen_endpoints_are_distinct_and_below_the_kernels_range() {
        let endpoints = choose_endpoints(Nid::tcp(Ipv4Addr::LOCALHOST), None, 5).unwrap();
        let ports: std::collections::BTreeSet<_> = endpoints.iter().filter_map(Endpoint::port).collect();
        assert_eq!(ports.len(), 5);
        assert!(ports.iter().all(|port| *port < 32_768));
    }
}
