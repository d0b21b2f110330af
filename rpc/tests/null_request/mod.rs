//! Null requests over `lo`: a ping without payload, client and server in one thread, turned in turns.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::{Endpoint, Instant, Nid};
use fops::admin::{Ping, PingReply};
use rpc::{Bulk, CallOptions, Phase, RpcConfig, RpcMachine};
use runtime::{Arena, ArenaConfig, Counters, Locality, LocalityConfig, allocations};
use verbs_net::{Fabric, LoFabric, TmConfig, Token, TransferMachine};

fn locality(index: u32) -> Locality {
    Locality::new(LocalityConfig {
        index,
        name: format!("side {index}"),
        seed: index.into(),
        counters: Arc::new(Counters::default()),
        arena: Arena::new(ArenaConfig { capacity_bytes: 16 << 20 }).unwrap(),
        crowd: None,
    })
}

fn machine(fabric: &Fabric, locality: &Locality, tmid: u16, addb_records: usize) -> RpcMachine {
    let endpoint = Endpoint { nid: Nid::LOOPBACK, pid: 12345, portal: 34, tmid };
    let config = RpcConfig { addb_records, ..RpcConfig::default() };
    let version = Rc::clone(&config.config_version);
    let tm_config = TmConfig::new(endpoint, true, 1 + u64::from(tmid), Token::new([7; 32]), version);
    let tm = TransferMachine::start(&locality.handle(), fabric, tm_config).unwrap();
    RpcMachine::start(&locality.handle(), tm, config)
}

/// Asks and answers `requests`, `depth` at a time. How many the server recorded the end of, and how often this thread allocated in the second half
/// of them, where the program counts that.
pub fn ask(requests: u64, depth: u64, addb_records: usize) -> (u64, u64) {
    let fabric = Fabric::Lo(LoFabric::new());
    let (mut server_side, mut client_side) = (locality(0), locality(1));
    let server = machine(&fabric, &server_side, 0, addb_records);
    let client = machine(&fabric, &client_side, 1, addb_records);
    server.serve(|_fom, request: Ping| {
        std::future::ready(Ok(PingReply { payload: request.payload, epoch: 1 }))
    });
    let (to, left, done) = (server.endpoint(), Rc::new(Cell::new(requests)), Rc::new(Cell::new(0)));
    for _ in 0..depth {
        let (left, answered, client) = (Rc::clone(&left), Rc::clone(&done), client.clone());
        let handle = client_side.handle();
        drop(client_side.handle().spawn("asker", async move {
            while let Some(rest) = left.get().checked_sub(1) {
                left.set(rest);
                let options = CallOptions::until(handle.now() + Duration::from_secs(10));
                client.call(to, &Ping::default(), Bulk::none(), options).await.unwrap();
                answered.set(answered.get() + 1);
            }
        }));
    }
    let mut now = Instant::ZERO;
    let mut turn_until = |count: u64| {
        while done.get() < count {
            now = now + Duration::from_micros(1);
            client_side.turn(now);
            server_side.turn(now);
        }
    };
    turn_until(requests / 2);
    let before = allocations();
    turn_until(requests);
    let counted = allocations() - before;
    assert_eq!(server.stats().executed, requests);
    (server.addb().count(Phase::Done), counted)
}
