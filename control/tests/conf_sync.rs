//! The configuration as it travels, between a client and control daemons of other versions, and ones that lie; and cluster files in parts.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // test code, helpers included

mod support;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::checksum::crc32c;
use base::{Endpoint, Instant};
use control::conf_book::{ConfBook, ConfBytes};
use control::{Control, ControlConfig, OperatorFile};
use faces::limits::{CLUSTER_FILE_BYTES_MAX, CONFIGURATION_BYTES_MAX};
use faces::{ClusterFile, ConfClient, Configuration};
use fops::conf::{ConfGet, ConfGetReply, ConfText};
use fops::conf_sync::{ConfApplyUpload, ConfSplice, ConfSync, ConfSyncReply, ConfUpload};
use fops::{Fop, FopError};
use rpc::{Bulk, CallError, CallOptions, Fom, RpcConfig, RpcMachine};
use runtime::{
    Arena, ArenaConfig, Counters, Locality, LocalityConfig, LocalityHandle, SharedBuffer, SimulatedClock,
};
use spdk_stob::{SimDisk, SimFaults as DiskFaults};
use verbs_net::{Fabric, SimFabric, TmConfig, Token, TransferMachine};

use support::World as _;

const EXAMPLE: &str = include_str!("../faces/src/cluster_file_example.toml");

fn endpoint(node: usize) -> Endpoint {
    format!("{node}@sim:12345:34:0").parse().unwrap()
}

fn example(version: u64) -> Configuration {
    let mut configuration = ClusterFile::parse(EXAMPLE).unwrap().initial_configuration();
    configuration.version = version;
    configuration.control = endpoint(0);
    configuration
}

/// Two nodes: 0 is asked, 1 asks.
struct World {
    clock: SimulatedClock,
    localities: Vec<Locality>,
    net: SimFabric,
}

impl support::World for World {
    fn clock(&self) -> &SimulatedClock {
        &self.clock
    }

    fn turn(&mut self, end: Instant) {
        let localities = &mut self.localities;
        support::turn_rounds(&self.clock, end, |now| support::turn_each(localities.iter_mut(), now));
    }
}

impl World {
    fn start() -> World {
        World { clock: SimulatedClock::default(), localities: Vec::new(), net: SimFabric::new(3) }
    }

    fn locality(&mut self) -> LocalityHandle {
        let locality = Locality::new(LocalityConfig {
            index: 0,
            name: format!("node-{}", self.localities.len()),
            seed: 5 + base::units::wide(self.localities.len()),
            counters: Arc::new(Counters::default()),
            arena: Arena::new(ArenaConfig { capacity_bytes: 64 << 20 }).unwrap(),
            crowd: None,
        });
        let handle = locality.handle();
        self.localities.push(locality);
        handle
    }

    fn machine(&mut self, listens: bool) -> RpcMachine {
        let node = self.localities.len();
        let handle = self.locality();
        let config = RpcConfig::default();
        let version = Rc::clone(&config.config_version);
        let tm = TmConfig::new(endpoint(node), listens, 1, Token::new([7; 32]), version);
        let tm = TransferMachine::start(&handle, &Fabric::Sim(self.net.clone()), tm).unwrap();
        RpcMachine::start(&handle, tm, config)
    }

    fn deadline(&self) -> Instant {
        self.clock.now() + Duration::from_secs(20)
    }

    fn fetch(&mut self, conf: &ConfClient) -> Result<Rc<Configuration>, String> {
        let deadline = self.deadline();
        self.run(conf.fetch(deadline)).map_err(|error| error.to_string())
    }
}

/// A peer that answers each `ConfSync` as `answer` says, which is told how many came before.
fn answering(
    answer: impl Fn(usize, &ConfSync) -> Result<ConfSyncReply, FopError> + 'static,
) -> (World, ConfClient, RpcMachine) {
    let mut world = World::start();
    let (peer, own) = (world.machine(true), world.machine(false));
    let count = Cell::new(0);
    let answer = Rc::new(answer);
    peer.serve(move |_fom: Fom, request: ConfSync| {
        let number = count.replace(count.get() + 1);
        std::future::ready(answer(number, &request))
    });
    let conf = ConfClient::connect(&own, endpoint(0));
    (world, conf, peer)
}

fn part(version: u64, whole: &[u8], offset: usize, end: usize) -> ConfSyncReply {
    ConfSyncReply::Part {
        version,
        newest: version,
        total_bytes: base::units::wide(whole.len()),
        checksum: crc32c(whole),
        offset: base::units::wide(offset),
        part: whole[offset..end].to_vec(),
    }
}

#[test]
fn a_control_daemon_of_before_gives_everything_in_one_message() {
    let mut world = World::start();
    let (peer, own) = (world.machine(true), world.machine(false));
    let version = Rc::new(Cell::new(4));
    let in_force = Rc::clone(&version);
    peer.serve(move |_fom: Fom, request: ConfGet| {
        let configuration = example(in_force.get());
        let bytes =
            (configuration.version > request.known_version).then(|| configuration.to_bytes().unwrap());
        std::future::ready(Ok(ConfGetReply { version: configuration.version, configuration: bytes }))
    });
    let conf = ConfClient::connect(&own, endpoint(0));
    assert_eq!(*world.fetch(&conf).unwrap(), example(4));
    assert_eq!(world.fetch(&conf).unwrap().version, 4);
    version.set(9);
    assert_eq!(*world.fetch(&conf).unwrap(), example(9));
    version.set(3);
    let older = world.fetch(&conf).unwrap_err();
    assert!(older.contains("configuration 3, older than 9"), "{older}");
}

#[test]
fn parts_that_lie_are_refused_with_what_is_wrong_and_the_cache_stays() {
    let whole = example(5).to_bytes().unwrap();
    let half = whole.len() / 2;
    let lies: Vec<(&str, Vec<ConfSyncReply>)> = vec![
        ("begins at byte 10", vec![part(5, &whole, 0, half), part(5, &whole, 10, whole.len())]),
        ("begins at byte 3", vec![part(5, &whole, 3, whole.len())]),
        ("no bytes", vec![part(5, &whole, 0, half), part(5, &whole, half, half)]),
        (
            "begins at byte",
            vec![part(5, &whole, 0, half), part(6, &example(6).to_bytes().unwrap(), half, half)],
        ),
        ("version 8 was announced, and version 5 came", vec![part(8, &whole, 0, whole.len())]),
        ("the bytes are not the body", vec![part(5, &[255; 40], 0, 40)]),
        (
            "at most",
            vec![ConfSyncReply::Part {
                version: 5,
                newest: 5,
                total_bytes: 1 << 60,
                checksum: 0,
                offset: 0,
                part: vec![],
            }],
        ),
        (
            "the checksum of what came",
            vec![ConfSyncReply::Part {
                version: 5,
                newest: 5,
                total_bytes: base::units::wide(whole.len()),
                checksum: 7,
                offset: 0,
                part: whole.clone(),
            }],
        ),
        (
            "another configuration than those before",
            vec![
                part(5, &whole, 0, half),
                ConfSyncReply::Part {
                    version: 5,
                    newest: 5,
                    total_bytes: base::units::wide(whole.len()) + 1,
                    checksum: crc32c(&whole),
                    offset: base::units::wide(half),
                    part: whole[half..].to_vec(),
                },
            ],
        ),
        ("older than", vec![ConfSyncReply::Current { version: 5 }]),
        ("older than", vec![ConfSyncReply::Changes { version: 5, newest: 5, checksum: 0, steps: vec![] }]),
        ("was not whole after 1024 messages", vec![]),
    ];
    for (said, replies) in lies {
        let short = whole.clone();
        let (mut world, conf, _peer) = answering(move |number, _| {
            // After its lies: a new version with each message.
            let next = base::units::wide(number) + 5;
            Ok(replies.get(number).cloned().unwrap_or_else(|| part(next, &short, 0, 10)))
        });
        let refused = world.fetch(&conf).unwrap_err();
        assert!(refused.contains(said), "{refused}\nwanted: {said}");
        assert_eq!(conf.version(), 0);
    }
}

#[test]
fn changes_that_do_not_fit_lead_to_everything_and_lies_twice_are_refused() {
    let base = ConfBytes::of(&example(5)).unwrap();
    let mut next = example(6);
    next.pool.devices[1].size_blocks = 77;
    let next = ConfBytes::of(&next).unwrap();
    let steps_of = |one: &ConfBytes, other: &ConfBytes| {
        vec![faces::conf_difference::difference(&one.bytes, &other.bytes)]
    };
    let good = steps_of(&base, &next);
    let splice = |at: u32, gone: u32, put: usize| vec![vec![ConfSplice { at, gone, put: vec![1; put] }]];
    let too_long = splice(0, 0, 50_000).into_iter().cycle().take(1).collect::<Vec<_>>();
    for steps in [
        splice(u32::MAX, 1, 0),                            // out of bounds
        splice(8, 1, 1),                                   // another result than announced
        vec![[good[0].clone(), good[0].clone()].concat()], // overlapping
        vec![],                                            // nothing
        too_long,
        steps_of(&ConfBytes::of(&example(4)).unwrap(), &next), // of a version that is not here
    ] {
        for is_honest_then in [true, false] {
            let (base, next, steps) = (base.clone(), next.clone(), steps.clone());
            let wanted = next.clone();
            let (mut world, conf, _peer) = answering(move |number, ask| {
                Ok(match number {
                    0 => part(5, &base.bytes, 0, base.bytes.len()),
                    _ if is_honest_then && ask.known_version == 0 => {
                        part(6, &next.bytes, 0, next.bytes.len())
                    }
                    _ => ConfSyncReply::Changes {
                        version: 6,
                        newest: 6,
                        checksum: next.checksum,
                        steps: steps.clone(),
                    },
                })
            });
            assert_eq!(world.fetch(&conf).unwrap().version, 5);
            match (world.fetch(&conf), is_honest_then) {
                (Ok(fetched), true) => assert_eq!(fetched.to_bytes().unwrap(), wanted.bytes.to_vec()),
                (Err(refused), false) => {
                    assert!(refused.contains("that cannot be used"), "{refused}");
                    assert_eq!(conf.version(), 5, "the cache stays");
                }
                // Of version 4 nothing but the version differs: what it makes is what was announced.
                (Ok(fetched), false) => assert_eq!(fetched.to_bytes().unwrap(), wanted.bytes.to_vec()),
                (Err(refused), true) => panic!("{refused}"),
            }
        }
    }
}

#[test]
fn a_reader_follows_a_book_whatever_comes_in_between() {
    let book = Rc::new(RefCell::new(ConfBook::new(ConfBytes::of(&example(1)).unwrap())));
    let told = Rc::clone(&book);
    let (mut world, conf, _peer) = answering(move |number, ask| {
        // With each message another version comes, as long as there are few.
        if number < 40 {
            let version = told.borrow().newest().version + 1;
            let mut next = example(version);
            next.pool.devices[number % 4].size_blocks = version;
            told.borrow_mut().publish(ConfBytes::of(&next).unwrap());
        }
        Ok(told.borrow_mut().answer(Instant::ZERO, ask))
    });
    let fetched = world.fetch(&conf).unwrap();
    assert!(fetched.version >= 2);
    for _ in 0..60 {
        world.fetch(&conf).unwrap();
    }
    let newest = book.borrow().newest().clone();
    assert_eq!(conf.current().unwrap().to_bytes().unwrap(), newest.bytes.to_vec());
    assert!(newest.bytes.len() <= CONFIGURATION_BYTES_MAX);
    // Nobody fetches by itself.
    world.pass(Duration::from_secs(5));
    assert_eq!(conf.version(), newest.version);
}

struct Asker {
    world: World,
    rpc: RpcMachine,
    _control: Control,
}

impl Asker {
    fn ask<F: Fop>(&mut self, fop: &F, source: &[u8]) -> Result<F::Reply, String> {
        let handle = self.rpc.locality().clone();
        let bulk = match source {
            [] => Bulk::none(),
            bytes => {
                let source = SharedBuffer::copy_from_slice(handle.arena(), bytes, handle.counters());
                Bulk::from_source(vec![source.unwrap()])
            }
        };
        let options = CallOptions::until(self.world.deadline());
        match self.world.run(self.rpc.call(endpoint(0), fop, bulk, options)) {
            Ok(answer) => Ok(answer.reply),
            Err(CallError::Fop(error)) => Err(error.to_string()),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_long_cluster_file_is_brought_in_parts_checked_as_one_and_put_in_force() {
    let mut world = World::start();
    let handle = world.locality();
    let disk = SimDisk::new(7, 262_144, DiskFaults::default());
    let small =
        ClusterFile::hide_credential(&EXAMPLE.replace("store_bytes = 16777216", "store_bytes = 1073741824"))
            .unwrap();
    let credential = Some(faces::Credential::from_bytes([1; 32]));
    let file = OperatorFile { text: small.clone(), credential, unix_s: 1000 };
    let mut config = ControlConfig::new(Token::new([7; 32]), 1, example(1), Box::new(disk.backend()));
    config.file = Some(file);
    config.endpoint = endpoint(0);
    let fabric = Fabric::Sim(world.net.clone());
    let control = world.run(Control::start(&handle, &fabric, config)).unwrap();
    let rpc = world.machine(false);
    let mut asker = Asker { world, rpc, _control: control };

    let text =
        format!("{}\n# {}\n", small.replace("name = \"demo\"", "name = \"long\""), "x".repeat(1_500_000));
    let bytes = text.as_bytes();
    let total_bytes = base::units::wide(bytes.len());
    let upload = |upload: u64, offset: u64| ConfUpload { upload, offset, total_bytes };
    let apply = |upload: u64, checksum: u32| ConfApplyUpload {
        upload,
        checksum,
        base: 1,
        unix_s: 0,
        note: "why".to_owned(),
    };
    let refused = |outcome: Result<u64, String>, said: &str| {
        let message = outcome.unwrap_err();
        assert!(message.contains(said), "{message}\nwanted: {said}");
    };
    let first = 900_000;
    let there = |reply: fops::conf_sync::ConfUploadReply| reply.bytes;
    refused(asker.ask(&upload(0, 0), &bytes[..100]).map(there), "draw another");
    refused(asker.ask(&upload(9, 100), &bytes[..100]).map(there), "begin again");
    let absurd =
        ConfUpload { upload: 9, offset: 0, total_bytes: base::units::wide(CLUSTER_FILE_BYTES_MAX) + 1 };
    refused(asker.ask(&absurd, &bytes[..100]).map(there), "at most");
    assert_eq!(asker.ask(&upload(9, 0), &bytes[..first]).map(there), Ok(900_000));
    // The same again, as a resend is; a part with a gap, one of another size, one behind the end.
    assert_eq!(asker.ask(&upload(9, 0), &bytes[..first]).map(there), Ok(900_000));
    refused(asker.ask(&upload(9, 900_001), &bytes[first..]).map(there), "where 900000 of");
    let other_size = ConfUpload { upload: 9, offset: 900_000, total_bytes: total_bytes + 5 };
    refused(asker.ask(&other_size, &bytes[first..]).map(there), "where 900000 of");
    refused(asker.ask(&upload(9, 900_000), &vec![b'x'; 1 << 20]).map(there), "where 900000 of");
    refused(asker.ask(&apply(9, crc32c(bytes)), &[]).map(|reply| reply.version), "bring it again");
    assert_eq!(asker.ask(&upload(9, 900_000), &bytes[first..]).map(there), Ok(total_bytes));
    refused(asker.ask(&apply(9, 1), &[]).map(|reply| reply.version), "checksum is another");
    refused(asker.ask(&apply(8, crc32c(bytes)), &[]).map(|reply| reply.version), "is not here");
    let reply = asker.ask(&apply(9, crc32c(bytes)), &[]).unwrap();
    assert_eq!((reply.transaction, reply.changes), (2, 1));
    // It stands as it was brought.
    let mut shown = Vec::new();
    while shown.len() < bytes.len() {
        let ask = ConfText { transaction: 2, offset: base::units::wide(shown.len()) };
        shown.extend(asker.ask(&ask, &[]).unwrap().part);
    }
    assert!(shown == bytes);
}
