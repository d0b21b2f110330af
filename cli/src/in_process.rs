//! A whole cluster in this process: the control daemon and each server on a thread of their own, over the loopback network,
//! devices as files in a folder. What `quickstart` and the benchmarks stand on; the daemons are the code of [`daemon`].

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base::{Endpoint, Fid, LayoutWidth, Nid};
use client::Client;
use faces::cluster_file::{ClusterFile, SecurityKind, Transport};
use fops::admin::DeviceFault;
use runtime::{Arena, ArenaConfig, Counters, Crowd, LocalityConfig};
use verbs_net::{Fabric, LoFabric};

use crate::blueprint::Blueprint;
use crate::connection::{ARENA_BYTES, Station, client_config, create_device, format_device, new_epoch};
use crate::daemon::{self, ControlSeat, ServerSeat};
use crate::failure::Failure;
use crate::known_cluster::KnownCluster;
use crate::threads::Threads;

/// How long one call of an administrator may take.
const CALL_WITHIN: Duration = Duration::from_secs(10);

/// How long an operation of the client may take.
const OP_TIMEOUT: Duration = Duration::from_secs(30);

/// What the cluster shall be.
pub struct Shape {
    /// N+K+S.
    pub width: LayoutWidth,
    /// Devices in all.
    pub devices: u32,
    /// Server threads at most; never more than devices.
    pub servers: u32,
    /// Bytes of each device.
    pub device_bytes: u64,
}

/// What the threads have in common: memory, how many they are, and where their figures are found.
#[derive(Clone)]
struct Shared {
    counters: Arc<Mutex<Vec<Arc<Counters>>>>,
    arena: Arena,
    crowd: Arc<Crowd>,
}

impl Shared {
    fn station(&self, index: u32, name: &str) -> Result<Station, Failure> {
        let counters = Arc::<Counters>::default();
        self.all_counters().push(Arc::clone(&counters));
        Ok(Station::of(LocalityConfig {
            index,
            name: name.to_owned(),
            seed: new_epoch()?,
            counters,
            arena: self.arena.clone(),
            crowd: Some(Arc::clone(&self.crowd)),
        }))
    }

    fn all_counters(&self) -> MutexGuard<'_, Vec<Arc<Counters>>> {
        // Whoever panicked with it had only begun to add one.
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running cluster and a client of it. End it with [`InProcess::stop`]; dropped without, its threads are stopped too.
pub struct InProcess {
    station: Station,
    client: Client,
    file: KnownCluster,
    fabric: LoFabric,
    shared: Shared,
    /// Control first; so the servers are stopped before it, which answers them until the last one has gone.
    daemons: Threads,
}

impl InProcess {
    /// Formats the devices in `folder` (which exists and is ours), starts everything, and connects a client.
    pub fn start(folder: &Path, shape: &Shape) -> Result<InProcess, Failure> {
        let servers = shape.servers.min(shape.devices);
        let endpoint = |tmid: u32| Endpoint {
            nid: Nid::LOOPBACK,
            pid: base::endpoint::PID_DEFAULT,
            portal: 34,
            tmid: u16::try_from(tmid).unwrap_or(base::endpoint::TMID_MAX),
        };
        let blueprint = Blueprint {
            name: "quickstart".to_owned(),
            transport: Transport::Lo,
            width: shape.width,
            servers,
            localities: 1,
            controls: 1,
            devices: shape.devices,
            device_bytes: shape.device_bytes,
            metrics_port: None,
            security: SecurityKind::Shared,
            encrypt: false,
        };
        let file = KnownCluster::in_memory(blueprint.draw(&(0..=servers).map(endpoint).collect::<Vec<_>>())?);
        let devices = folder.join("devices");
        std::fs::create_dir_all(&devices)
            .map_err(Failure::while_doing(format!("making the folder {}", devices.display())))?;
        let arena = Arena::new(ArenaConfig { capacity_bytes: 2 * ARENA_BYTES })
            .map_err(Failure::while_doing("reserving memory for buffers"))?;
        let shared = Shared { counters: Arc::default(), arena, crowd: Crowd::new() };
        let mut station = shared.station(0, "client")?;
        let store = folder.join(&file.control.store);
        create_device(&store, file.control.store_bytes)?;
        for device in &file.devices {
            let path = folder.join(&device.path);
            format_device(&mut station, &path, device.size_bytes, device.fid, file.cluster.id.0)?;
        }
        let fabric = LoFabric::new();
        let daemons = start_daemons(&mut station, &shared, &fabric, &file, folder)?;
        let client = station.client(&Fabric::Lo(fabric.clone()), client_config(&file, OP_TIMEOUT)?)?;
        Ok(InProcess { station, client, file, fabric, shared, daemons })
    }

    /// The client, with the locality that runs it.
    pub fn client(&mut self) -> (&mut Station, &Client) {
        (&mut self.station, &self.client)
    }

    /// The figures of all threads.
    pub fn counters(&self) -> Counters {
        Counters::sum(self.shared.all_counters().iter().map(|one| &**one))
    }

    /// The cluster's plan.
    pub fn file(&self) -> &ClusterFile {
        &self.file
    }

    /// From now on each access to the device fails with EIO.
    pub fn break_device(&mut self, device: Fid) -> Result<(), Failure> {
        let section = self.file.devices.iter().find(|section| section.fid == device);
        let endpoint = section.and_then(|section| self.file.endpoint_of(section));
        let endpoint = endpoint.ok_or_else(|| Failure::new(format!("no device {device} in this cluster")))?;
        let fault = DeviceFault { device, failed: true };
        let fabric = Fabric::Lo(self.fabric.clone());
        self.station.call_over(&fabric, &self.file, endpoint, &fault, CALL_WITHIN).map(drop)
    }

    /// Stops every thread; devices are closed in order.
    pub fn stop(mut self) -> Result<(), Failure> {
        self.daemons.stop()
    }
}

fn start_daemons(
    station: &mut Station,
    shared: &Shared,
    fabric: &LoFabric,
    file: &KnownCluster,
    folder: &Path,
) -> Result<Threads, Failure> {
    let mut daemons = Threads::default();
    let (threads, cluster, net, place) = (shared.clone(), file.clone(), fabric.clone(), folder.to_owned());
    daemons.start("control".to_owned(), move |stop, ready| {
        let text = cluster.to_toml().map_err(|error| Failure::new(error.to_string()))?;
        let mut station = threads.station(1, "control")?;
        let seat = ControlSeat::of(&cluster, cluster.first_control())?;
        daemon::serve_control(&mut station, &Fabric::Lo(net), (&text, &cluster, &seat), &place, stop, ready)
    })?;
    station.wait(daemons.ready())??;
    for (index, section) in (2u32..).zip(&file.servers) {
        let (threads, net) = (shared.clone(), fabric.clone());
        let seat = ServerSeat::first(file, section.process, folder)?;
        daemons.start(seat.name(), move |stop, ready| {
            let mut station = threads.station(index, &seat.name())?;
            daemon::serve_server(&mut station, &Fabric::Lo(net), &seat, stop, ready)
        })?;
        station.wait(daemons.ready())??;
    }
    Ok(daemons)
}
