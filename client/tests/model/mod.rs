//! A model of control and servers in a few tables: what a client may expect of them, with faults on a switch.
//!
//! One locality, simulated time, `lo`. Not the real services: those meet the client in the workspace's `tests`.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::checksum::crc32c;
use base::units::{BLOCK_BYTES, narrow};
use base::{BlockExtent, Endpoint, Fid, FidType, LayoutWidth};
use client::{Client, ClientConfig, ClientError};
use faces::{Configuration, DeviceConfig, DeviceState, FurtherPools, PoolConfig, ProcessConfig};
use fops::FopError;
use fops::component::*;
use fops::conf::*;
use fops::object::*;
use rpc::{Fom, RpcConfig, RpcMachine};
use runtime::{
    Arena, ArenaConfig, Counters, Locality, LocalityConfig, LocalityHandle, SharedBuffer, SimulatedClock,
};
use verbs_net::{Fabric, LoFabric, TmConfig, Token, TransferMachine};

/// What a device does to requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Answers.
    Healthy,
    /// Each access fails with EIO.
    Eio,
    /// No answer in time.
    Silent,
    /// Answers, but the first block of each read is damaged on the way to the client.
    Lying,
}

#[derive(Default)]
pub struct Stored {
    /// By block: bytes and the writer's checksum.
    pub blocks: BTreeMap<u64, (Vec<u8>, u32)>,
}

pub struct Device {
    pub mode: Mode,
    pub records: BTreeMap<Fid, ObjectRecord>,
    pub stobs: BTreeMap<(Fid, u64), Stored>,
    pub writes: u64,
    pub reads: u64,
}

pub struct Services {
    pub configuration: RefCell<Configuration>,
    pub devices: BTreeMap<Fid, RefCell<Device>>,
    /// True: a reported device becomes Failed.
    pub believes_reports: Cell<bool>,
    locality: LocalityHandle,
}

pub const TOKEN: [u8; 32] = [5; 32];

pub fn endpoint(tmid: u16) -> Endpoint {
    format!("0@lo:12345:32:{tmid}").parse().unwrap()
}

/// A cluster and the thread's whole world.
pub struct World {
    pub locality: Locality,
    pub clock: SimulatedClock,
    pub fabric: Fabric,
    pub services: Rc<Services>,
    pub counters: Arc<Counters>,
    _rpc: RpcMachine,
}

impl World {
    pub fn new(width: &str, devices: u64, unit_bytes: u32) -> World {
        let counters = Arc::new(Counters::new());
        let arena = Arena::new(ArenaConfig { capacity_bytes: 128 << 20 }).unwrap();
        let locality = Locality::new(LocalityConfig {
            index: 0,
            name: "world".to_owned(),
            seed: 7,
            counters: counters.clone(),
            arena,
            crowd: None,
        });
        let fabric = Fabric::Lo(LoFabric::new());
        let process = Fid::new(FidType::Process, 0, 1);
        let fids: Vec<Fid> = (0..devices).map(|key| Fid::new(FidType::Device, 0, key + 1)).collect();
        let width: LayoutWidth = width.parse().unwrap();
        let configuration = Configuration {
            pools: FurtherPools::none(fids.len()),
            spares: faces::Spares::default(),
            version: 1,
            cluster: 9,
            profile: Fid::new(FidType::Profile, 0, 1),
            control: endpoint(0),
            processes: vec![ProcessConfig { process, endpoint: endpoint(0), epoch: 1 }],
            pool: PoolConfig {
                pool: Fid::new(FidType::Pool, 0, 1),
                pool_version: Fid::new(FidType::PoolVersion, 0, 1),
                width,
                unit_bytes,
                devices: fids
                    .iter()
                    .map(|device| DeviceConfig {
                        device: *device,
                        process,
                        endpoint: endpoint(0),
                        state: DeviceState::Online,
                        size_blocks: 1 << 20,
                        replaced: 0,
                    })
                    .collect(),
                awaited_disks: Vec::new(),
                changes_from: 0,
            },
        };
        let device = || Device {
            mode: Mode::Healthy,
            records: BTreeMap::new(),
            stobs: BTreeMap::new(),
            writes: 0,
            reads: 0,
        };
        let services = Rc::new(Services {
            configuration: RefCell::new(configuration),
            devices: fids.into_iter().map(|fid| (fid, RefCell::new(device()))).collect(),
            believes_reports: Cell::new(true),
            locality: locality.handle(),
        });
        let rpc_config = RpcConfig::default();
        let tm = TmConfig::new(endpoint(0), true, 1, Token::new(TOKEN), rpc_config.config_version.clone());
        let machine = TransferMachine::start(&locality.handle(), &fabric, tm).unwrap();
        let rpc = RpcMachine::start(&locality.handle(), machine, rpc_config);
        let world =
            World { locality, clock: SimulatedClock::new(), fabric, services, counters, _rpc: rpc.clone() };
        serve(&rpc, &world.services);
        world
    }

    /// Runs `future` to its end on simulated time; panics after an hour of it.
    pub fn run<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let slot = result.clone();
        drop(self.locality.handle().spawn("test", async move {
            let value = future.await;
            *slot.borrow_mut() = Some(value);
        }));
        let end = self.clock.now() + Duration::from_secs(3600);
        loop {
            let turn = self.locality.turn(self.clock.now());
            if let Some(value) = result.borrow_mut().take() {
                return value;
            }
            if !turn.progressed {
                let next = turn.next_deadline.expect("nothing to do and nobody to wait for: the test hangs");
                assert!(next < end, "the test takes more than an hour of simulated time");
                self.clock.advance_to(next);
            }
        }
    }

    pub fn config(&self) -> ClientConfig {
        ClientConfig {
            local: None,
            control: endpoint(0),
            further_controls: Vec::new(),
            security: TOKEN.into(),
            epoch: 77,
            op_timeout: Duration::from_secs(20),
            read_verify: false,
        }
    }

    pub fn connect_with(&mut self, config: ClientConfig) -> Result<Client, ClientError> {
        let locality = self.locality.handle();
        let fabric = self.fabric.clone();
        self.run(async move { Client::connect(&locality, &fabric, config).await })
    }

    pub fn client(&mut self) -> Client {
        self.connect_with(self.config()).unwrap()
    }

    pub fn device(&self, target: usize) -> &RefCell<Device> {
        let fid = self.services.configuration.borrow().pool.devices[target].device;
        &self.services.devices[&fid]
    }

    pub fn set_mode(&self, target: usize, mode: Mode) {
        self.device(target).borrow_mut().mode = mode;
    }

    /// Control's decision, as a new configuration.
    pub fn set_state(&self, target: usize, state: DeviceState) {
        let mut configuration = self.services.configuration.borrow_mut();
        configuration.version += 1;
        configuration.pool.devices[target].state = state;
    }
}

impl Services {
    async fn enter(&self, device: Fid) -> Result<&RefCell<Device>, FopError> {
        let found = self.devices.get(&device).ok_or(FopError::WrongServer { device })?;
        let mode = found.borrow().mode;
        match mode {
            Mode::Healthy | Mode::Lying => Ok(found),
            Mode::Eio => Err(FopError::Device { device, reason: "EIO".to_owned() }),
            Mode::Silent => {
                // Longer than any request waits; then the slot of the session is free again.
                self.locality.sleep(Duration::from_secs(6)).await;
                Err(FopError::NotServing { reason: "silent".to_owned() })
            }
        }
    }

    async fn open(&self, fop: ObjectOpen) -> Result<ObjectOpenReply, FopError> {
        let mut device = self.enter(fop.device).await?.borrow_mut();
        let object = fop.record.object;
        let existing = device.records.get(&object).copied();
        let live = existing.filter(|record| !record.deleted);
        let record = match (fop.mode, existing, live) {
            (OpenMode::Open, Some(record), _) | (OpenMode::CreateOrOpen, _, Some(record)) => {
                return Ok(ObjectOpenReply { record, created: false });
            }
            (OpenMode::Open, None, _) => return Err(FopError::NoSuchObject { object }),
            (OpenMode::Create, _, Some(_)) => return Err(FopError::ObjectExists { object }),
            (_, tombstone, None) => {
                let version = tombstone.map_or(0, |record| record.version) + 1;
                ObjectRecord { version: version.max(fop.record.version), ..fop.record }
            }
            (mode, ..) => panic!("no such mode: {mode:?}"),
        };
        device.records.insert(object, record);
        Ok(ObjectOpenReply { record, created: true })
    }

    async fn update(&self, fop: ObjectUpdate) -> Result<ObjectUpdateReply, FopError> {
        let mut device = self.enter(fop.device).await?.borrow_mut();
        let object = fop.record.object;
        let record = match device.records.get(&object) {
            None if !fop.repair => return Err(FopError::NoSuchObject { object }),
            Some(found) if *found == fop.record || (fop.repair && *found > fop.record) => *found,
            Some(found) if !fop.repair && found.version != fop.expected_version => {
                let (expected, found) = (fop.expected_version, found.version);
                return Err(FopError::VersionConflict { object, expected, found });
            }
            _ => fop.record,
        };
        device.records.insert(object, record);
        Ok(ObjectUpdateReply { record })
    }

    async fn list(&self, fop: ObjectList) -> Result<ObjectListReply, FopError> {
        let device = self.enter(fop.device).await?.borrow();
        let limit = narrow(u64::from(fop.limit)).min(3);
        let mut behind =
            device.records.values().filter(|record| fop.after.is_none_or(|after| record.object > after));
        let records: Vec<ObjectRecord> = behind.by_ref().take(limit).copied().collect();
        Ok(ObjectListReply { records, more: behind.next().is_some() })
    }

    async fn write(&self, fom: Fom, fop: ComponentWrite) -> Result<ComponentWriteReply, FopError> {
        let device = self.enter(fop.device).await?;
        let parts = fom.pull().await?;
        let mut device = device.borrow_mut();
        device.writes += 1;
        let stored = device.stobs.entry((fop.component, fop.generation)).or_default();
        let mut checksums = fop.checksums.iter();
        for (extent, part) in fop.extents.iter().zip(&parts) {
            for (block, bytes) in (extent.start..extent.end()).zip(part.chunks(narrow(BLOCK_BYTES))) {
                let checksum = *checksums.next().expect("one checksum for each block");
                assert_eq!(crc32c(bytes), checksum, "damaged on the way");
                stored.blocks.insert(block, (bytes.to_vec(), checksum));
            }
        }
        assert!(checksums.next().is_none(), "a checksum too many");
        Ok(ComponentWriteReply { free_blocks: 1 })
    }

    async fn read(&self, fom: Fom, fop: ComponentRead) -> Result<ComponentReadReply, FopError> {
        let device = self.enter(fop.device).await?;
        device.borrow_mut().reads += 1;
        let (mut checksums, mut absent, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        for extent in &fop.extents {
            let mut buffer = self.locality.arena().alloc(narrow(extent.count * BLOCK_BYTES)).await;
            let device = device.borrow();
            let stored = device.stobs.get(&(fop.component, fop.generation));
            for (block, bytes) in (extent.start..extent.end()).zip(buffer.chunks_mut(narrow(BLOCK_BYTES))) {
                match stored.and_then(|stored| stored.blocks.get(&block)) {
                    Some((content, checksum)) if crc32c(content) == *checksum => {
                        bytes.copy_from_slice(content);
                        checksums.push(*checksum);
                    }
                    Some(_) => {
                        let extent = BlockExtent { start: block, count: 1 };
                        return Err(FopError::Checksum { device: fop.device, extent });
                    }
                    None => {
                        bytes.fill(0);
                        checksums.push(crc32c(bytes));
                        absent.push(BlockExtent { start: block, count: 1 });
                    }
                }
            }
            parts.push(buffer);
        }
        if device.borrow().mode == Mode::Lying {
            parts[0][17] ^= 1;
        }
        let parts: Vec<SharedBuffer> = parts.into_iter().map(runtime::Buffer::freeze).collect();
        fom.push(0, parts).await?;
        Ok(ComponentReadReply { checksums, absent })
    }

    async fn delete(&self, fop: ComponentDelete) -> Result<ComponentDeleteReply, FopError> {
        let mut device = self.enter(fop.device).await?.borrow_mut();
        let before = device.stobs.len();
        device.stobs.retain(|(component, generation), _| {
            *component != fop.component || !(fop.from_generation..fop.below_generation).contains(generation)
        });
        Ok(ComponentDeleteReply { deleted: (before - device.stobs.len()).try_into().unwrap() })
    }

    fn report(&self, fop: &DeviceReport) -> u64 {
        let mut configuration = self.configuration.borrow_mut();
        if self.believes_reports.get() {
            configuration.version += 1;
            let device = configuration.pool.devices.iter_mut().find(|device| device.device == fop.device);
            device.expect("a device of the pool").state = DeviceState::Failed;
        }
        configuration.version
    }
}

/// Generations that any device holds.
pub fn generations(services: &Services) -> BTreeSet<u64> {
    services
        .devices
        .values()
        .flat_map(|device| {
            device.borrow().stobs.keys().map(|(_, generation)| *generation).collect::<Vec<_>>()
        })
        .collect()
}

fn serve(rpc: &RpcMachine, services: &Rc<Services>) {
    macro_rules! handler {
        ($fop:ty, |$s:ident, $fom:ident, $body:ident| $answer:expr) => {
            let own = services.clone();
            rpc.serve(move |$fom, $body: $fop| {
                let $s = own.clone();
                let version = $s.configuration.borrow().version;
                $fom.machine().config_version().set(version);
                async move { $answer }
            });
        };
    }
    handler!(ConfGet, |s, _fom, body| {
        let configuration = s.configuration.borrow();
        let newer = configuration.version > body.known_version;
        let configuration_bytes = newer.then(|| configuration.to_bytes().unwrap());
        Ok(ConfGetReply { version: configuration.version, configuration: configuration_bytes })
    });
    handler!(DeviceReport, |s, _fom, body| Ok(DeviceReportReply { version: s.report(&body) }));
    handler!(ObjectOpen, |s, _fom, body| s.open(body).await);
    handler!(ObjectUpdate, |s, _fom, body| s.update(body).await);
    handler!(ObjectList, |s, _fom, body| s.list(body).await);
    handler!(ObjectDelete, |s, _fom, body| {
        let mut device = s.enter(body.device).await?.borrow_mut();
        let drops = device
            .records
            .get(&body.object)
            .is_some_and(|record| record.deleted && record.version == body.version);
        if drops {
            device.records.remove(&body.object);
        }
        Ok(ObjectDeleteReply { existed: drops })
    });
    handler!(ComponentWrite, |s, fom, body| s.write(fom, body).await);
    handler!(ComponentRead, |s, fom, body| s.read(fom, body).await);
    handler!(ComponentDelete, |s, _fom, body| s.delete(body).await);
}
