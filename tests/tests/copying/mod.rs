//! What the tests of clusters whose bytes move have in common: servers that take what stands in their devices' places and copy, and clients' ways to
//! whole objects.

use std::rc::Rc;
use std::time::Duration;

use base::units::wide;
use base::{ByteExtent, Fid, FidType, ObjectId};
use client::{Client, ClientConfig, ClientError, Object};
use faces::Transport;
use faces::cluster_file::{ClusterFile, DeviceSpan, PoolVersionSection};
use fops::conf::{ConfApply, ConfApplyReply, DeviceCommand, DeviceCommandReply, DeviceOrder};
use rpc::{Bulk, CallError};
use runtime::SharedBuffer;
use server::DiskSource;
use spdk_stob::{Backend, SimDisk};
use verbs_net::Token;

use crate::support::{Cluster, Shape, device_fid, endpoint};

pub const UNIT: usize = 65536;
/// Bytes of a parity group: two data units in each layout of these tests.
pub const GROUP: usize = 2 * UNIT;

pub fn id(lo: u64) -> ObjectId {
    ObjectId::new(12, lo).unwrap()
}

pub fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(count).collect()
}

pub fn client_config(cluster: &Cluster, node: usize) -> ClientConfig {
    ClientConfig {
        local: Some(endpoint(Transport::Sim, node)),
        control: cluster.endpoint(0),
        further_controls: Vec::new(),
        security: Token::new([7; 32]).into(),
        epoch: wide(node),
        op_timeout: Duration::from_secs(20),
        read_verify: false,
    }
}

/// A simulated cluster of servers with a device each.
pub fn one_device_each(servers: usize, layout: &'static str) -> Shape {
    Shape { servers, devices_per_server: 1, layout, transport: Transport::Sim, ..Shape::default() }
}

/// A server that formats what is new to the configuration, and copies as the client `copier`. It has one device, of its own index.
pub fn start_server(cluster: &mut Cluster, index: usize, copier: usize) {
    let config = client_config(cluster, copier);
    let fabric = cluster.fabric.clone();
    let disks: Vec<SimDisk> = cluster.disks.clone();
    let source: DiskSource = Rc::new(move |fid, _| {
        let index = (0..disks.len()).find(|index| device_fid(*index) == fid).unwrap();
        Ok(Box::new(disks[index].backend()) as Box<dyn Backend>)
    });
    let started = cluster.start_server_at(index, |server, locality| {
        server.format = false;
        server.disks = Some(source);
        server.copier = Some(client::copier(locality, &fabric, config));
    });
    started.unwrap_or_else(|error| panic!("server {index}: {error}"));
}

/// An operator's word on a device, or on a pool.
pub fn order(cluster: &mut Cluster, fid: Fid, order: DeviceOrder) -> Result<DeviceCommandReply, CallError> {
    let command = DeviceCommand { device: fid, order };
    cluster.call(endpoint(Transport::Sim, 0), &command, Bulk::none()).map(|answer| answer.reply)
}

/// Puts a changed cluster file in force. `base`: number of the transaction in force, before and after.
pub fn apply(
    cluster: &mut Cluster,
    base: &mut u64,
    change: impl FnOnce(&mut ClusterFile),
) -> Result<ConfApplyReply, CallError> {
    let mut file = cluster.file.clone();
    change(&mut file);
    let before = std::mem::replace(&mut cluster.file, file);
    let text = cluster.text();
    let mut buffer = cluster.client.locality().arena().try_alloc(text.len()).unwrap();
    buffer.copy_from_slice(text.as_bytes());
    let ask = ConfApply { base: *base, unix_s: 0, note: "a test".to_owned() };
    let bulk = Bulk::from_source(vec![buffer.freeze()]);
    let answer = cluster.call(endpoint(Transport::Sim, 0), &ask, bulk).map(|answer| answer.reply);
    match &answer {
        Ok(reply) => *base = reply.transaction,
        // What stands beside control is what is in force.
        Err(_) => cluster.file = before,
    }
    answer
}

/// The pool of these tests' clusters.
pub fn pool() -> Fid {
    Fid::new(FidType::Pool, 1, 1)
}

/// A version of it with the first `devices` devices.
pub fn pool_version(key: u64, layout: &str, devices: usize) -> PoolVersionSection {
    PoolVersionSection {
        pool: pool(),
        fid: Fid::new(FidType::PoolVersion, 1, key),
        name: None,
        layout: layout.parse().unwrap(),
        unit_bytes: wide(UNIT),
        devices: vec![DeviceSpan { first: device_fid(0), last: device_fid(devices - 1) }],
    }
}

pub fn parts(client: &Client, content: &[u8]) -> Vec<SharedBuffer> {
    let arena = client.locality().arena();
    let part = |chunk: &[u8]| {
        let mut buffer = arena.try_alloc(chunk.len()).unwrap();
        buffer.copy_from_slice(chunk);
        buffer.freeze()
    };
    content.chunks(1 << 18).map(part).collect()
}

pub async fn put(client: Client, object: ObjectId, content: Vec<u8>) -> Result<(), ClientError> {
    let replacement = client.create_or_open(object, None).await?.replace().await?;
    if !content.is_empty() {
        replacement.write(0, parts(&client, &content)).await?;
    }
    replacement.commit(wide(content.len())).await
}

pub async fn get(client: Client, object: ObjectId) -> Result<Vec<u8>, ClientError> {
    read(&client.open(object).await?).await
}

pub async fn read(object: &Object) -> Result<Vec<u8>, ClientError> {
    let all = object.read(ByteExtent { start: 0, count: object.size() }).await?;
    Ok(all.iter().flat_map(|part| part.to_vec()).collect())
}

pub fn extent(start: usize, count: usize) -> ByteExtent {
    ByteExtent { start: wide(start), count: wide(count) }
}
