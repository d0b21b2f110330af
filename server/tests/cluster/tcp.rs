//! All of it over real sockets and real time: control, a server with devices in memory, and a client, in one locality.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use base::{BlockExtent, FidType, Nid, ObjectId};
use control::{Control, ControlConfig};
use faces::{ClusterFile, Transport};
use fops::component::{ComponentRead, ComponentWrite};
use rpc::{Bulk, CallOptions, RpcConfig, RpcMachine};
use runtime::{Arena, ArenaConfig, Counters, Locality, LocalityConfig, MonotonicClock};
use server::{Server, ServerConfig};
use spdk_stob::{Backend, MemDevice};
use verbs_net::{Fabric, TmConfig, Token, TransferMachine, free_endpoint};

use crate::support::{Shape, checksums, cluster_file, device_fid, process_fid};

#[test]
fn bytes_go_over_tcp_and_come_back() {
    let endpoint = || free_endpoint(Nid::tcp(Ipv4Addr::LOCALHOST)).unwrap();
    let endpoints = [endpoint(), endpoint(), endpoint()];
    let shape = Shape { servers: 1, devices_per_server: 4, ..Shape::default() };
    let mut file: ClusterFile = cluster_file(&shape);
    file.cluster.transport = Transport::Tcp;
    file.control.endpoint = endpoints[0];
    file.servers[0].endpoints = vec![endpoints[1]];
    let file = ClusterFile::parse(&file.to_toml().unwrap()).unwrap();

    let mut locality = Locality::new(LocalityConfig {
        index: 0,
        name: "all".into(),
        seed: 1,
        counters: Arc::new(Counters::default()),
        arena: Arena::new(ArenaConfig { capacity_bytes: 64 << 20 }).unwrap(),
        crowd: None,
    });
    let handle = locality.handle();
    let clock = MonotonicClock::start();
    let token = || Token::new(file.cluster.credential.unwrap().bytes());
    let story = async {
        let store = Box::new(MemDevice::new(4096));
        let config = ControlConfig::new(token(), 1, file.initial_configuration(), store);
        let control = Control::start(&handle, &Fabric::Tcp, config).await.unwrap();
        let devices = (0..4)
            .map(|index| (device_fid(index), Box::new(MemDevice::new(8192)) as Box<dyn Backend>))
            .collect();
        let config = ServerConfig {
            format: true,
            ..ServerConfig::new(endpoints[1], process_fid(0), endpoints[0], token(), 2, devices)
        };
        let server = Server::start(&handle, &Fabric::Tcp, config).await.unwrap();
        assert_eq!(control.configuration().version, 2);

        let rpc_config = RpcConfig::default();
        let version = std::rc::Rc::clone(&rpc_config.config_version);
        let tm = TmConfig::new(endpoints[2], true, 3, token(), version);
        let tm = TransferMachine::start(&handle, &Fabric::Tcp, tm).unwrap();
        let client = RpcMachine::start(&handle, tm, rpc_config);
        let options = || CallOptions::until(handle.now() + Duration::from_secs(10));
        let mut buffer = handle.arena().try_alloc(65536).unwrap();
        buffer.iter_mut().zip(0u8..=255).for_each(|(byte, value)| *byte = value);
        let source = vec![buffer.freeze()];
        let component = ObjectId::new(12, 34).unwrap().fid().with_type(FidType::Component);
        let extents = vec![BlockExtent { start: 3, count: 16 }];
        let write = ComponentWrite {
            device: device_fid(2),
            component,
            generation: 1,
            extents: extents.clone(),
            checksums: checksums(&source),
        };
        let bulk = Bulk::from_source(source.clone());
        client.call(endpoints[1], &write, bulk, options()).await.unwrap();
        let read = ComponentRead { device: device_fid(2), component, generation: 1, extents };
        let sink = Bulk::into_sink(vec![handle.arena().try_alloc(65536).unwrap()]);
        let answer = client.call(endpoints[1], &read, sink, options()).await.unwrap();
        assert_eq!(answer.sink[0][..], source[0][..]);
        assert_eq!(answer.reply.checksums, write.checksums);
        assert_eq!(answer.config_version, 2);

        server.stop().await.unwrap();
        control.stop().await.unwrap();
    };
    locality.block_on(&clock, story).unwrap();
}
