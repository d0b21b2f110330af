//! The whole data path in one thread: a client, a control daemon and servers on memory devices, over `lo`, on simulated time.
//!
//! Every part is the real one. What is written is read back bit-exact: whole, in parts, with two devices lost, and with
//! damage on a device; what goes wrong is said by name. Bounded: an hour of simulated time for each step.
#![forbid(unsafe_code)]
// Helpers of tests: a value that is missing is the test's failure, told where it happens.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::units::narrow;
use base::{ByteExtent, Endpoint, Fid, FidType, ObjectId};
use client::{Client, ClientConfig, ClientError};
use control::{Control, ControlConfig};
use faces::{Configuration, DeviceConfig, DeviceState, FurtherPools, PoolConfig, ProcessConfig};
use fops::admin::DeviceFault;
use fops::conf::{DeviceCommand, DeviceOrder};
use rpc::{Bulk, CallOptions};
use runtime::{Arena, ArenaConfig, Buffer, Counters, Locality, LocalityConfig, SharedBuffer, SimulatedClock};
use server::{Server, ServerConfig};
use spdk_stob::{Backend, MemDevice};
use verbs_net::{Fabric, LoFabric, Token};

const UNIT: usize = 16384;
const GROUP: usize = 4 * UNIT;
const SERVERS: u16 = 4;
const DEVICES: usize = 8;

fn token() -> Token {
    Token::new([3; 32])
}

fn endpoint(tmid: u16) -> Endpoint {
    format!("0@lo:12345:32:{tmid}").parse().unwrap()
}

fn device(index: usize) -> Fid {
    Fid::new(FidType::Device, 0, index as u64 + 1)
}

fn process(index: u16) -> Fid {
    Fid::new(FidType::Process, 0, u64::from(index) + 1)
}

/// Devices go round over the servers: server of a device.
fn server_of(device: usize) -> u16 {
    u16::try_from(device).unwrap() % SERVERS
}

fn configuration() -> Configuration {
    let processes = (0..SERVERS).map(|index| ProcessConfig {
        process: process(index),
        endpoint: endpoint(index + 1),
        epoch: 0,
    });
    let devices = (0..DEVICES).map(|index| DeviceConfig {
        device: device(index),
        process: process(server_of(index)),
        endpoint: endpoint(server_of(index) + 1),
        state: DeviceState::Unknown,
        size_blocks: 0,
        replaced: 0,
    });
    Configuration {
        pools: FurtherPools::none(DEVICES),
        spares: faces::Spares::default(),
        version: 1,
        cluster: 77,
        profile: Fid::new(FidType::Profile, 0, 1),
        control: endpoint(0),
        processes: processes.collect(),
        pool: PoolConfig {
            pool: Fid::new(FidType::Pool, 0, 1),
            pool_version: Fid::new(FidType::PoolVersion, 0, 1),
            width: "4+2+1".parse().unwrap(),
            unit_bytes: u32::try_from(UNIT).unwrap(),
            devices: devices.collect(),
            awaited_disks: Vec::new(),
            changes_from: 0,
        },
    }
}

/// Localities of one thread, turned in order; the last one is the client's.
struct World {
    localities: Vec<Locality>,
    clock: SimulatedClock,
    fabric: Fabric,
    counters: Arc<Counters>,
    control: Rc<Control>,
    servers: Vec<Rc<Server>>,
}

impl World {
    fn start() -> World {
        let counters = Arc::new(Counters::new());
        let locality = |index: u16| {
            Locality::new(LocalityConfig {
                index: u32::from(index),
                name: format!("locality-{index}"),
                seed: u64::from(index) + 1,
                counters: counters.clone(),
                arena: Arena::new(ArenaConfig { capacity_bytes: 128 << 20 }).unwrap(),
                crowd: None,
            })
        };
        let localities: Vec<Locality> = (0..SERVERS + 2).map(locality).collect();
        let fabric = Fabric::Lo(LoFabric::new());
        let mut turner = Turner { localities, clock: SimulatedClock::new() };
        let store: Box<dyn Backend> = Box::new(MemDevice::new(16384));
        let config = ControlConfig::new(token(), 1, configuration(), store);
        let (handle, net) = (turner.localities[0].handle(), fabric.clone());
        let control = turner.run(0, async move { Control::start(&handle, &net, config).await.unwrap() });
        let mut servers = Vec::new();
        for index in 0..SERVERS {
            let own = (0..DEVICES).filter(|device| server_of(*device) == index);
            let devices = own
                .map(|index| (device(index), Box::new(MemDevice::new(65536)) as Box<dyn Backend>))
                .collect();
            let config = ServerConfig {
                format: true,
                ..ServerConfig::new(endpoint(index + 1), process(index), endpoint(0), token(), 1, devices)
            };
            let place = usize::from(index) + 1;
            let (handle, net) = (turner.localities[place].handle(), fabric.clone());
            servers.push(Rc::new(
                turner.run(place, async move { Server::start(&handle, &net, config).await.unwrap() }),
            ));
        }
        let Turner { localities, clock } = turner;
        World { localities, clock, fabric, counters, control: Rc::new(control), servers }
    }

    /// Runs `future` on the client's locality while everybody turns.
    fn run<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        let place = self.localities.len() - 1;
        drive(&mut self.localities, &self.clock, place, future)
    }

    fn client(&mut self, read_verify: bool) -> Client {
        let handle = self.localities[usize::from(SERVERS) + 1].handle();
        let net = self.fabric.clone();
        let config = ClientConfig {
            local: None,
            control: endpoint(0),
            further_controls: Vec::new(),
            security: token().into(),
            epoch: 5 + u64::from(read_verify),
            op_timeout: Duration::from_secs(20),
            read_verify,
        };
        self.run(async move { Client::connect(&handle, &net, config).await }).unwrap()
    }

    /// Generations of an object's bytes that stand on a device.
    fn generations(&self, index: usize, object: ObjectId) -> usize {
        let server = &self.servers[usize::from(server_of(index))];
        server.domain(device(index)).unwrap().stobs_of(object.fid().with_type(FidType::Component)).len()
    }

    /// Gives an order about a device until it is heeded.
    fn order(&mut self, client: &Client, index: usize, order: DeviceOrder) {
        let rpc = client.rpc().clone();
        let command = DeviceCommand { device: device(index), order };
        self.run(async move {
            loop {
                let options = CallOptions::until(rpc.locality().now() + Duration::from_secs(5));
                let answer = rpc.call(endpoint(0), &command, Bulk::none(), options).await.unwrap();
                if answer.reply.is_heeded {
                    return;
                }
                rpc.locality().sleep(Duration::from_millis(10)).await;
            }
        });
    }

    /// Each access of the device fails from now on, or no longer.
    fn set_failed(&mut self, client: &Client, index: usize, failed: bool) {
        let rpc = client.rpc().clone();
        let options = CallOptions::until(self.clock.now() + Duration::from_secs(5));
        let fop = DeviceFault { device: device(index), failed };
        let to = endpoint(server_of(index) + 1);
        self.run(async move { rpc.call(to, &fop, Bulk::none(), options).await.map(|_| ()) }).unwrap();
    }
}

struct Turner {
    localities: Vec<Locality>,
    clock: SimulatedClock,
}

impl Turner {
    fn run<T: 'static>(&mut self, place: usize, future: impl Future<Output = T> + 'static) -> T {
        drive(&mut self.localities, &self.clock, place, future)
    }
}

/// Turns everybody until the future that runs at `place` is done; time goes on only when nobody has anything to do.
fn drive<T: 'static>(
    localities: &mut [Locality],
    clock: &SimulatedClock,
    place: usize,
    future: impl Future<Output = T> + 'static,
) -> T {
    let result = Rc::new(RefCell::new(None));
    let slot = result.clone();
    drop(localities[place].handle().spawn("test", async move {
        let value = future.await;
        *slot.borrow_mut() = Some(value);
    }));
    let end = clock.now() + Duration::from_secs(3600);
    loop {
        let mut progressed = false;
        let mut next = None;
        for locality in localities.iter_mut() {
            let turn = locality.turn(clock.now());
            progressed |= turn.progressed;
            next = [next, turn.next_deadline].into_iter().flatten().min();
        }
        if let Some(value) = result.borrow_mut().take() {
            return value;
        }
        if !progressed {
            let next = next.expect("nothing to do and nobody to wait for: the test hangs");
            assert!(next < end, "the step takes more than an hour of simulated time");
            clock.advance_to(next);
        }
    }
}

fn id(lo: u64) -> ObjectId {
    ObjectId::new(12, lo).unwrap()
}

fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(count).collect()
}

fn parts(client: &Client, content: &[u8]) -> Vec<SharedBuffer> {
    let arena = client.locality().arena().clone();
    content
        .chunks(1 << 18)
        .map(|chunk| {
            let mut buffer = arena.try_alloc(chunk.len()).unwrap();
            buffer.copy_from_slice(chunk);
            buffer.freeze()
        })
        .collect()
}

fn extent(start: usize, count: usize) -> ByteExtent {
    ByteExtent::new(start as u64, count as u64).unwrap()
}

async fn put(client: Client, object: ObjectId, content: Rc<Vec<u8>>) -> Result<(), ClientError> {
    let replacement = client.create_or_open(object, None).await?.replace().await?;
    let source = |offset: u64, mut buffer: Buffer| {
        let rest = &content[narrow(offset)..];
        let count = rest.len().min(buffer.len());
        buffer.resize(count);
        buffer.copy_from_slice(&rest[..count]);
        std::future::ready(Ok(buffer))
    };
    let count = client.upload(&replacement, source, |_| ()).await?;
    replacement.commit(count).await
}

async fn get(client: Client, object: ObjectId) -> Result<Vec<u8>, ClientError> {
    let open = client.open(object).await?;
    let copy = RefCell::new(Vec::new());
    let sink = |_, part: SharedBuffer| {
        copy.borrow_mut().extend_from_slice(&part);
        std::future::ready(Ok(()))
    };
    client.download(&open, ByteExtent { start: 0, count: open.size() }, sink, |_| ()).await?;
    Ok(copy.into_inner())
}

#[test]
fn objects_of_every_size_come_back() {
    let mut world = World::start();
    let client = world.client(false);
    let verifying = world.client(true);
    let sizes = [0, 1, 4095, 4096, UNIT, GROUP, GROUP + 1, 10 * GROUP + 2 * UNIT + 4100];
    for (lo, size) in (1u64..).zip(sizes) {
        let content = Rc::new(bytes(lo, size));
        world.run(put(client.clone(), id(lo), content.clone())).unwrap();
        assert!(world.run(get(client.clone(), id(lo))).unwrap() == *content, "size {size}");
        assert!(world.run(get(verifying.clone(), id(lo))).unwrap() == *content, "size {size}, verified");
    }
    let lister = client.clone();
    let all = world.run(async move { lister.list(None, 100).await }).unwrap();
    let listed: Vec<(ObjectId, usize)> =
        all.iter().map(|stat| (stat.object, narrow(stat.size_bytes))).collect();
    assert_eq!(listed, (1u64..).map(id).zip(sizes).collect::<Vec<_>>());
    let user = client.clone();
    world.run(async move {
        user.delete(id(3)).await.unwrap();
        assert!(matches!(user.open(id(3)).await, Err(ClientError::NotFound { .. })));
        assert!(user.create(id(3), None).await.unwrap().was_created());
    });
}

/// One cluster for each pair: a device that is Failed stays so.
#[test]
fn every_pair_of_lost_devices_is_rebuilt() {
    let content = Rc::new(bytes(9, 5 * GROUP + 3 * 4096 + 17));
    for first in 0..DEVICES {
        for second in 0..first {
            let mut world = World::start();
            let client = world.client(false);
            world.run(put(client.clone(), id(1), content.clone())).unwrap();
            world.set_failed(&client, first, true);
            world.set_failed(&client, second, true);
            assert!(
                world.run(get(client.clone(), id(1))).unwrap() == *content,
                "without {first} and {second}"
            );
        }
    }
}

#[test]
fn writes_in_place_degraded_writes_and_holes() {
    let mut world = World::start();
    let client = world.client(false);
    let mut model = bytes(1, 3 * GROUP + UNIT + 100);
    world.run(put(client.clone(), id(1), Rc::new(model.clone()))).unwrap();
    let opener = client.clone();
    let open = world.run(async move { opener.open(id(1)).await }).unwrap();
    let mut random = fastrand::Rng::with_seed(4);
    for step in 0..24 {
        if step == 12 {
            // From here on without two devices: each access fails, control finds out by itself or is told.
            world.set_failed(&client, 2, true);
            world.set_failed(&client, 5, true);
        }
        let start = random.usize(0..6 * GROUP / 4096) * 4096;
        let count = random.usize(1..GROUP / 4096) * 4096;
        let change = bytes(step + 100, count);
        model.resize(model.len().max(start + count), 0);
        model[start..start + count].copy_from_slice(&change);
        let (writer, change) = (open.clone(), parts(&client, &change));
        world
            .run(async move { writer.write(extent(start, count), change).await })
            .unwrap_or_else(|error| panic!("step {step}: {error}"));
        let read =
            world.run(get(client.clone(), id(1))).unwrap_or_else(|error| panic!("step {step}: {error}"));
        assert!(read == model, "step {step}");
    }
    let states: Vec<DeviceState> =
        world.control.configuration().pool.devices.iter().map(|device| device.state).collect();
    assert_eq!((states[2], states[5]), (DeviceState::Failed, DeviceState::Failed));
    // A third one is more than the parity stands in for.
    world.set_failed(&client, 7, true);
    let error = world.run(get(client.clone(), id(1))).unwrap_err();
    assert!(matches!(error, ClientError::Read { .. } | ClientError::Record { .. }), "{error}");
    assert!(error.to_string().contains(&device(7).to_string()), "{error}");
}

#[test]
fn a_server_that_is_gone_is_read_around() {
    let mut world = World::start();
    let client = world.client(false);
    let content = Rc::new(bytes(2, 9 * GROUP + 5));
    world.run(put(client.clone(), id(1), content.clone())).unwrap();
    // Its locality never turns again: two devices, no answers.
    world.servers.remove(1);
    drop(world.localities.remove(2));
    assert!(world.run(get(client.clone(), id(1))).unwrap() == *content);
}

#[test]
fn a_replacement_without_commit_changes_nothing() {
    let mut world = World::start();
    let client = world.client(false);
    let old = Rc::new(bytes(1, 2 * GROUP + 9));
    world.run(put(client.clone(), id(1), old.clone())).unwrap();
    let (user, new) = (client.clone(), parts(&client, &bytes(2, 3 * GROUP)));
    world.run(async move {
        let replacement = user.open(id(1)).await.unwrap().replace().await.unwrap();
        replacement.write(0, new).await.unwrap();
    });
    assert!(world.run(get(client.clone(), id(1))).unwrap() == *old);
    // The first may keep the abandoned generation, which was made for the same version; the second is newer than both.
    for seed in [3, 4] {
        let new = Rc::new(bytes(seed, 4096));
        world.run(put(client.clone(), id(1), new.clone())).unwrap();
        assert!(world.run(get(client.clone(), id(1))).unwrap() == *new);
    }
    for index in 0..DEVICES {
        assert!(world.generations(index, id(1)) <= 1, "device {index}");
    }
}

/// The bytes of a deleted object go where somebody listens; its name is free all the same. What a device out of reach keeps is space, and never comes back as bytes.
#[test]
fn a_delete_beside_a_detached_device_leaves_bytes_there_until_the_name_is_used_again() {
    let mut world = World::start();
    let client = world.client(false);
    let content = Rc::new(bytes(6, 3 * GROUP));
    let mut left = Vec::new();
    for index in 0..DEVICES {
        let object = id(100 + index as u64);
        world.run(put(client.clone(), object, content.clone())).unwrap();
        let had = world.generations(index, object);
        world.order(&client, index, DeviceOrder::Detach { force: false });
        let user = client.clone();
        let deleted = world.run(async move { user.delete(object).await });
        world.order(&client, index, DeviceOrder::Attach);
        match deleted {
            Ok(()) => {
                assert_eq!(world.generations(index, object), had, "nobody asked it");
                let elsewhere: usize = (0..DEVICES).map(|other| world.generations(other, object)).sum();
                assert_eq!(elsewhere, had, "all others gave their bytes back");
                assert!(matches!(world.run(get(client.clone(), object)), Err(ClientError::NotFound { .. })));
                left.extend((had > 0).then_some(object));
            }
            // It holds the object's record, for which a delete waits.
            Err(ClientError::Record { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert!(!left.is_empty(), "no device had bytes and not the record");
    for object in left {
        world.run(put(client.clone(), object, content.clone())).unwrap();
        assert!(world.run(get(client.clone(), object)).unwrap() == *content);
        let user = client.clone();
        world.run(async move { user.delete(object).await }).unwrap();
        assert_eq!((0..DEVICES).map(|index| world.generations(index, object)).sum::<usize>(), 0);
    }
}

#[test]
fn an_aligned_transfer_copies_no_bulk_byte() {
    let mut world = World::start();
    let client = world.client(false);
    let content = Rc::new(bytes(1, 4 << 20));
    world.run(put(client.clone(), id(1), content.clone())).unwrap();
    let before = world.counters.copied_bytes.get();
    let maker = client.clone();
    world.run(put(maker, id(1), content.clone())).unwrap();
    assert!(world.run(get(client.clone(), id(1))).unwrap() == *content);
    let copied = world.counters.copied_bytes.get() - before;
    // 8 MiB of the object and 2 MiB of parity went through; what is copied is messages and records.
    assert!(copied < 512 << 10, "{copied} bytes copied");
}
