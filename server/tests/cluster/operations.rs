//! Control and servers together, over the loopback fabric, on simulated disks and virtual time.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use base::{BlockExtent, Fid, FidType, LayoutWidth, ObjectId};
use faces::{DeviceState, Transport};
use fops::FopError;
use fops::admin::{DeviceFault, Ping, Shutdown};
use fops::component::{ComponentDelete, ComponentRead, ComponentWrite};
use fops::conf::{ClusterStatus, ConfGet, DeviceCommand, DeviceEvidence, DeviceOrder, DeviceReport};
use fops::object::{ObjectDelete, ObjectList, ObjectOpen, ObjectRecord, ObjectUpdate, OpenMode};
use rpc::{Bulk, CallError, CallOptions};
use server::{DiskSource, ServerError};
use spdk_stob::{SimDisk, SimFaults, StobError};

use crate::support::{Cluster, Shape, checksums, device_fid, lo_endpoint, process_fid, raw_client};

fn object(lo: u64) -> Fid {
    ObjectId::new(12, lo).unwrap().fid()
}

fn component(lo: u64) -> Fid {
    object(lo).with_type(FidType::Component)
}

fn record(lo: u64, version: u64, generation: u64) -> ObjectRecord {
    ObjectRecord {
        version,
        generation,
        object: object(lo),
        size_bytes: 0,
        width: LayoutWidth::new(2, 1, 1).unwrap(),
        unit_bytes: 65536,
        pool_version: Fid::new(FidType::PoolVersion, 1, 1),
        deleted: false,
    }
}

fn open(device: usize, mode: OpenMode, record: ObjectRecord) -> ObjectOpen {
    ObjectOpen { device: device_fid(device), mode, record }
}

fn write_fop(device: usize, lo: u64, extents: &[(u64, u64)], checksums: Vec<u32>) -> ComponentWrite {
    ComponentWrite {
        device: device_fid(device),
        component: component(lo),
        generation: 1,
        extents: extents.iter().map(|(start, count)| BlockExtent { start: *start, count: *count }).collect(),
        checksums,
    }
}

fn read_fop(device: usize, lo: u64, extents: &[(u64, u64)]) -> ComponentRead {
    let ComponentWrite { device, component, generation, extents, .. } =
        write_fop(device, lo, extents, vec![]);
    ComponentRead { device, component, generation, extents }
}

fn write(cluster: &mut Cluster, device: usize, lo: u64, start: u64, seed: u8) -> Result<(), CallError> {
    let parts = vec![cluster.pattern(seed, 16384)];
    let fop = write_fop(device, lo, &[(start, 4)], checksums(&parts));
    let to = cluster.endpoint(1 + device / cluster.shape.devices_per_server);
    cluster.call(to, &fop, Bulk { source: parts, sink: vec![] }).map(drop)
}

fn read(cluster: &mut Cluster, device: usize, lo: u64, start: u64) -> Result<Vec<u8>, CallError> {
    let sink = vec![cluster.sink(16384)];
    let to = cluster.endpoint(1 + device / cluster.shape.devices_per_server);
    let answer = cluster.call(to, &read_fop(device, lo, &[(start, 4)]), Bulk { source: vec![], sink })?;
    assert_eq!(answer.reply.checksums, checksums(&answer.sink));
    Ok(answer.sink[0].to_vec())
}

fn refused<T: std::fmt::Debug>(result: Result<T, CallError>) -> FopError {
    match result {
        Err(CallError::Fop(error)) => error,
        other => panic!("a refusal was expected, got {other:?}"),
    }
}

#[test]
fn a_cluster_comes_up_and_its_configuration_is_served() {
    let mut cluster = Cluster::start(1, Shape::default());
    assert_eq!(cluster.states(), "v3 online online online online");
    let reply = cluster.call(lo_endpoint(0), &ConfGet { known_version: 0 }, Bulk::none()).unwrap().reply;
    let configuration = faces::Configuration::from_bytes(&reply.configuration.unwrap()).unwrap();
    assert_eq!(configuration, *cluster.control().configuration());
    assert_eq!(configuration.pool.devices[2].size_blocks, cluster.shape.device_blocks);
    let reply = cluster.call(lo_endpoint(0), &ConfGet { known_version: 3 }, Bulk::none()).unwrap().reply;
    assert_eq!((reply.version, reply.configuration), (3, None));
    let status = cluster.call(lo_endpoint(0), &ClusterStatus, Bulk::none()).unwrap().reply;
    assert!(status.processes.iter().all(|process| process.alive));
    // Ten leases later nothing has changed.
    cluster.turner.pass(Duration::from_secs(30));
    assert_eq!(cluster.states(), "v3 online online online online");
    assert!(cluster.server(0).is_serving());
    let ping = Ping { payload: vec![1, 2, 3].into() };
    assert_eq!(cluster.ask(0, &ping).unwrap().payload[..], [1, 2, 3]);
}

#[test]
fn components_are_written_read_and_deleted() {
    let mut cluster = Cluster::start(2, Shape::default());
    write(&mut cluster, 0, 34, 8, 1).unwrap();
    let expected = cluster.pattern(1, 16384).to_vec();
    assert_eq!(read(&mut cluster, 0, 34, 8).unwrap(), expected);
    // Two segments in one request, in the request's order; the blocks between were never written.
    let sink = vec![cluster.sink(8192), cluster.sink(4096)];
    let fop = read_fop(0, 34, &[(10, 2), (7, 1)]);
    let answer = cluster.call(lo_endpoint(1), &fop, Bulk { source: vec![], sink }).unwrap();
    assert_eq!(answer.sink[0][..], expected[8192..]);
    assert_eq!(answer.sink[1][..], [0; 4096]);
    assert_eq!(answer.reply.absent, [BlockExtent { start: 7, count: 1 }]);
    // Another generation beside it; a delete that keeps one.
    let parts = vec![cluster.pattern(9, 4096)];
    let newer = ComponentWrite { generation: 2, ..write_fop(0, 34, &[(0, 1)], checksums(&parts)) };
    cluster.call(lo_endpoint(1), &newer, Bulk { source: parts, sink: vec![] }).unwrap();
    let delete_range = |from_generation, below_generation| ComponentDelete {
        device: device_fid(0),
        component: component(34),
        from_generation,
        below_generation,
    };
    let delete = |below_generation| delete_range(0, below_generation);
    assert_eq!(cluster.ask(0, &delete_range(3, u64::MAX)).unwrap().deleted, 0);
    assert_eq!(cluster.ask(0, &delete(2)).unwrap().deleted, 1);
    assert_eq!(read(&mut cluster, 0, 34, 8).unwrap(), [0; 16384], "the old generation is a hole");
    assert_eq!(cluster.ask(0, &delete(u64::MAX)).unwrap().deleted, 1);
    assert_eq!(cluster.ask(0, &delete(u64::MAX)).unwrap().deleted, 0);
}

#[test]
fn acknowledged_writes_and_records_survive_a_power_cut() {
    let mut cluster = Cluster::start(3, Shape::default());
    write(&mut cluster, 1, 34, 0, 5).unwrap();
    cluster.ask(1, &open(1, OpenMode::Create, record(34, 1, 7))).unwrap();
    cluster.kill_server(0);
    cluster.start_server(0).unwrap();
    let expected = cluster.pattern(5, 16384).to_vec();
    assert_eq!(read(&mut cluster, 1, 34, 0).unwrap(), expected);
    let reply = cluster.ask(1, &open(1, OpenMode::Open, record(34, 1, 0))).unwrap();
    assert_eq!(reply.record, record(34, 1, 7));
}

#[test]
fn records_are_made_opened_updated_listed_and_dropped() {
    let mut cluster = Cluster::start(4, Shape::default());
    let absent = cluster.ask(0, &open(0, OpenMode::Open, record(34, 1, 7)));
    assert_eq!(refused(absent), FopError::NoSuchObject { object: object(34) });
    assert!(cluster.ask(0, &open(0, OpenMode::CreateOrOpen, record(34, 1, 7))).unwrap().created);
    let again = cluster.ask(0, &open(0, OpenMode::CreateOrOpen, record(34, 1, 8))).unwrap();
    assert_eq!((again.created, again.record.generation), (false, 7));
    let exists = cluster.ask(0, &open(0, OpenMode::Create, record(34, 1, 8)));
    assert_eq!(refused(exists), FopError::ObjectExists { object: object(34) });

    let update = |expected_version, repair, record| ObjectUpdate {
        device: device_fid(0),
        expected_version,
        repair,
        record,
    };
    cluster.ask(0, &update(1, false, record(34, 2, 8))).unwrap();
    let conflict = cluster.ask(0, &update(1, false, record(34, 3, 9)));
    assert_eq!(refused(conflict), FopError::VersionConflict { object: object(34), expected: 1, found: 2 });
    let kept = cluster.ask(0, &update(0, true, record(34, 1, 9))).unwrap();
    assert_eq!(kept.record.version, 2, "a late repair is harmless");

    for lo in [5, 3, 9, 1] {
        cluster.ask(0, &open(0, OpenMode::Create, record(lo, 1, 1))).unwrap();
    }
    let list = |after, limit| ObjectList { device: device_fid(0), after, limit };
    let page = cluster.ask(0, &list(None, 2)).unwrap();
    let names = |records: &[ObjectRecord]| records.iter().map(|r| r.object.key).collect::<Vec<_>>();
    assert_eq!((names(&page.records), page.more), (vec![1, 3], true));
    let page = cluster.ask(0, &list(Some(object(3)), u32::MAX)).unwrap();
    assert_eq!((names(&page.records), page.more), (vec![5, 9, 34], false));
    assert!(
        cluster
            .ask(1, &ObjectList { device: device_fid(1), after: None, limit: 9 })
            .unwrap()
            .records
            .is_empty()
    );

    // Deleted: a tombstone that every mode respects, then nothing.
    let tombstone = ObjectRecord { deleted: true, ..record(34, 3, 8) };
    cluster.ask(0, &update(2, false, tombstone)).unwrap();
    assert!(cluster.ask(0, &open(0, OpenMode::Open, record(34, 1, 0))).unwrap().record.deleted);
    let drop = |version| ObjectDelete { device: device_fid(0), object: object(34), version };
    assert!(!cluster.ask(0, &drop(2)).unwrap().existed);
    assert!(cluster.ask(0, &drop(3)).unwrap().existed);
    assert!(!cluster.ask(0, &drop(3)).unwrap().existed);
    assert!(cluster.ask(0, &open(0, OpenMode::Open, record(34, 1, 0))).is_err());
}

#[test]
fn of_many_creates_at_once_one_makes_the_object() {
    let mut cluster = Cluster::start(5, Shape::default());
    let client = cluster.client.clone();
    let deadline = cluster.turner.clock.now() + Duration::from_secs(5);
    let fops: Vec<ObjectOpen> =
        (0..20).map(|generation| open(0, OpenMode::CreateOrOpen, record(34, 1, 100 + generation))).collect();
    let calls =
        fops.iter().map(|fop| client.call(lo_endpoint(1), fop, Bulk::none(), CallOptions::until(deadline)));
    let replies = cluster.turner.run(futures_util::future::join_all(calls));
    let replies: Vec<_> = replies.into_iter().map(|reply| reply.unwrap().reply).collect();
    assert_eq!(replies.iter().filter(|reply| reply.created).count(), 1);
    assert!(replies.iter().all(|reply| reply.record == replies[0].record));
}

#[test]
fn an_io_error_becomes_a_failed_device_and_old_clients_learn() {
    let mut cluster = Cluster::start(6, Shape::default());
    write(&mut cluster, 2, 34, 0, 5).unwrap();
    cluster.set_client_version(3);
    cluster.disks[2].fail_with_eio(true);
    assert!(matches!(refused(read(&mut cluster, 2, 34, 0)), FopError::Device { .. }));
    cluster.wait_until("device 2 is failed", |cluster| cluster.state(2) == DeviceState::Failed);
    assert_eq!(cluster.states(), "v4 online online failed online");
    cluster.wait_until("its server knows", |cluster| {
        cluster.server(1).configuration().is_some_and(|configuration| configuration.version == 4)
    });
    let error = refused(read(&mut cluster, 2, 34, 0));
    assert_eq!(error, FopError::Stale { have: 3, need: 4 });
    write(&mut cluster, 3, 34, 0, 5).expect("an old version is good enough for another device");
    cluster.set_client_version(4);
    let error = refused(read(&mut cluster, 2, 34, 0)).to_string();
    assert!(error.contains("failed since configuration 4"), "{error}");
    // Neither a working disk, nor a restart of its server, nor time brings it back.
    cluster.disks[2].fail_with_eio(false);
    cluster.kill_server(1);
    cluster.start_server(1).unwrap();
    cluster.turner.pass(Duration::from_secs(10));
    assert_eq!(cluster.state(2), DeviceState::Failed);
    assert_eq!(cluster.state(3), DeviceState::Online);
}

#[test]
fn a_fault_rule_and_a_disk_that_does_not_open_are_evidence_too() {
    let mut cluster = Cluster::start(7, Shape::default());
    cluster.ask(0, &DeviceFault { device: device_fid(0), failed: true }).unwrap();
    cluster.wait_until("device 0 is failed", |cluster| cluster.state(0) == DeviceState::Failed);
    let wrong = cluster.ask(0, &DeviceFault { device: device_fid(3), failed: true });
    assert_eq!(refused(wrong), FopError::WrongServer { device: device_fid(3) });

    cluster.kill_server(1);
    cluster.disks[2].fail_with_eio(true);
    cluster.start_server(1).unwrap();
    assert_eq!(cluster.server(1).unopened().len(), 1);
    cluster.wait_until("device 2 is failed", |cluster| cluster.state(2) == DeviceState::Failed);
    assert_eq!(cluster.state(3), DeviceState::Online, "the other disk of the server serves on");
    write(&mut cluster, 3, 34, 0, 5).unwrap();
}

#[test]
fn a_disk_that_does_not_open_while_control_is_out_of_reach_is_reported_when_it_is_back() {
    let mut cluster = Cluster::start(9, Shape { transport: Transport::Sim, ..Shape::default() });
    cluster.kill_server(1);
    cluster.disks[2].fail_flushes(true);
    cluster.start_server(1).unwrap();
    let (control, server) = (cluster.endpoint(0), cluster.endpoint(2));
    cluster.sim().partition(server, control);
    cluster.sim().partition(control, server);
    cluster.wait_until("the lease is lost", |cluster| cluster.state(2) == DeviceState::Transient);
    cluster.sim().heal_all();
    cluster.wait_until("device 2 is failed", |cluster| cluster.state(2) == DeviceState::Failed);
    cluster.wait_until("its other device is back", |cluster| cluster.state(3) == DeviceState::Online);
}

#[test]
fn reports_of_strangers_fail_nothing_and_an_operator_does() {
    let mut cluster = Cluster::start(8, Shape::default());
    let report = |evidence| DeviceReport { device: device_fid(1), evidence };
    for evidence in [DeviceEvidence::IoError, DeviceEvidence::Unreachable] {
        cluster.call(lo_endpoint(0), &report(evidence), Bulk::none()).unwrap();
        assert_eq!(cluster.states(), "v3 online online online online");
    }
    let reply = cluster.call(lo_endpoint(0), &report(DeviceEvidence::Operator), Bulk::none()).unwrap().reply;
    assert_eq!((reply.version, cluster.states().as_str()), (4, "v4 online failed online online"));
    let unknown =
        DeviceReport { device: Fid::new(FidType::Device, 9, 9), evidence: DeviceEvidence::Operator };
    let error = refused(cluster.call(lo_endpoint(0), &unknown, Bulk::none()));
    assert!(matches!(error, FopError::NotPermitted { .. }));
}

#[test]
fn a_dead_server_is_transient_after_its_lease_and_online_when_it_is_back() {
    let mut cluster = Cluster::start(9, Shape::default());
    let died_at = cluster.turner.clock.now();
    cluster.kill_server(0);
    cluster.wait_until("its devices are transient", |cluster| cluster.state(0) == DeviceState::Transient);
    let took = cluster.turner.clock.now() - died_at;
    assert!(took > Duration::from_secs(3) && took < Duration::from_millis(3800), "{took:?}");
    assert_eq!(cluster.states(), "v4 transient transient online online");
    cluster.start_server(0).unwrap();
    assert_eq!(cluster.states(), "v5 online online online online");
}

#[test]
fn a_server_that_hears_nothing_of_control_stops_serving_and_comes_back_with_it() {
    let mut cluster = Cluster::start(10, Shape::default());
    write(&mut cluster, 0, 34, 0, 5).unwrap();
    let version = cluster.control().configuration().version;
    cluster.kill_control();
    cluster.turner.pass(Duration::from_millis(2000));
    write(&mut cluster, 0, 34, 0, 6).expect("the lease holds without control");
    cluster.turner.pass(Duration::from_millis(1100));
    assert!(!cluster.server(0).is_serving() && !cluster.server(1).is_serving());
    let error = refused(write(&mut cluster, 0, 34, 0, 7));
    assert!(matches!(error, FopError::NotServing { .. }), "{error}");
    let fop = open(0, OpenMode::CreateOrOpen, record(1, 1, 1));
    assert!(matches!(refused(cluster.ask(0, &fop)), FopError::NotServing { .. }));
    cluster.start_control().unwrap();
    cluster.wait_until("both serve", |c| c.server(0).is_serving() && c.server(1).is_serving());
    assert_eq!(cluster.control().configuration().version, version, "nothing changed, so no new version");
    let expected = cluster.pattern(6, 16384).to_vec();
    assert_eq!(read(&mut cluster, 0, 34, 0).unwrap(), expected);
}

#[test]
fn a_restarted_control_keeps_versions_and_failed_states() {
    let mut cluster = Cluster::start(11, Shape::default());
    let report = DeviceReport { device: device_fid(1), evidence: DeviceEvidence::Operator };
    cluster.call(lo_endpoint(0), &report, Bulk::none()).unwrap();
    cluster.kill_control();
    cluster.start_control().unwrap();
    assert_eq!(cluster.states(), "v4 online failed online online");
    cluster.turner.pass(Duration::from_secs(10));
    assert_eq!(cluster.states(), "v4 online failed online online", "servers registered again in time");
    cluster.stop_control().unwrap();

    // A file with another device set is refused by name and changes nothing.
    let mut other = cluster.file.initial_configuration();
    other.pool.devices.swap(0, 1);
    let error = cluster.start_control_with(other).expect_err("refused").to_string();
    assert!(error.contains("device 0 is"), "{error}");
    let mut foreign = cluster.file.initial_configuration();
    foreign.cluster = 77;
    assert!(cluster.start_control_with(foreign).is_err());
    cluster.start_control().unwrap();
    assert_eq!(cluster.state(1), DeviceState::Failed);
}

#[test]
fn a_store_that_fails_stops_changes_not_answers() {
    let mut cluster = Cluster::start(12, Shape::default());
    cluster.store.fail_with_eio(true);
    let report = DeviceReport { device: device_fid(1), evidence: DeviceEvidence::Operator };
    let error = refused(cluster.call(lo_endpoint(0), &report, Bulk::none()));
    assert!(matches!(error, FopError::NotServing { .. }), "{error}");
    assert!(cluster.control().store_failure().is_some());
    let reply = cluster.call(lo_endpoint(0), &ConfGet { known_version: 0 }, Bulk::none()).unwrap().reply;
    assert_eq!(reply.version, 3, "nobody is told of a version that is not durable");
    // After a restart on a mended disk the change never happened.
    cluster.kill_control();
    cluster.store.fail_with_eio(false);
    cluster.start_control().unwrap();
    assert_eq!(cluster.state(1), DeviceState::Online);
}

#[test]
fn a_newer_requester_brings_the_server_up_to_date_first() {
    let mut cluster = Cluster::start(13, Shape::default());
    let report = DeviceReport { device: device_fid(1), evidence: DeviceEvidence::Operator };
    let version = cluster.call(lo_endpoint(0), &report, Bulk::none()).unwrap().reply.version;
    cluster.set_client_version(version);
    let error = refused(read(&mut cluster, 1, 34, 0)).to_string();
    assert!(error.contains("failed since configuration 4"), "{error}");
}

#[test]
fn hostile_requests_are_refused_and_the_server_goes_on() {
    let mut cluster = Cluster::start(14, Shape::default());
    let bad = |error: FopError| assert!(matches!(error, FopError::BadRequest { .. }), "{error}");
    let server = lo_endpoint(1);
    let send = |cluster: &mut Cluster, fop: ComponentWrite, sizes: &[usize]| {
        let source = sizes.iter().map(|bytes| cluster.pattern(1, *bytes)).collect();
        refused(cluster.call(server, &fop, Bulk { source, sink: vec![] }))
    };
    let sums = checksums(&[cluster.pattern(1, 8192)]);
    let good = write_fop(0, 34, &[(0, 2)], sums.clone());
    bad(send(&mut cluster, good.clone(), &[4096]));
    bad(send(&mut cluster, good.clone(), &[4096, 4096]));
    bad(send(&mut cluster, good.clone(), &[]));
    bad(send(&mut cluster, write_fop(0, 34, &[(0, 2)], vec![1]), &[8192]));
    bad(send(&mut cluster, write_fop(0, 34, &[(0, 1), (0, 1)], sums.clone()), &[4096, 4096]));
    bad(send(&mut cluster, write_fop(0, 34, &[(u64::MAX, 2)], sums.clone()), &[8192]));
    bad(send(&mut cluster, write_fop(0, 34, &[(0, u64::MAX)], sums.clone()), &[8192]));
    bad(send(&mut cluster, ComponentWrite { component: object(34), ..good.clone() }, &[8192]));
    let elsewhere = ComponentWrite { device: device_fid(3), ..good.clone() };
    assert_eq!(send(&mut cluster, elsewhere, &[8192]), FopError::WrongServer { device: device_fid(3) });
    let damaged = write_fop(0, 34, &[(0, 2)], vec![sums[0], !sums[1]]);
    assert_eq!(send(&mut cluster, damaged, &[8192]), FopError::DamagedInTransit { block: 1 });

    let sink = vec![cluster.sink(4096)];
    let fop = read_fop(0, 34, &[(0, 2)]);
    bad(refused(cluster.call(server, &fop, Bulk { source: vec![], sink })));
    bad(refused(cluster.ask(0, &read_fop(0, 34, &[(0, 1)]))));
    bad(refused(cluster.ask(0, &ObjectList { device: device_fid(0), after: None, limit: 0 })));
    bad(refused(
        cluster.ask(0, &open(0, OpenMode::Create, ObjectRecord { unit_bytes: 7, ..record(1, 1, 1) })),
    ));
    let other_pool = ObjectRecord { pool_version: Fid::default(), ..record(1, 1, 1) };
    bad(refused(cluster.ask(0, &open(0, OpenMode::Create, other_pool))));
    let delete = ComponentDelete {
        device: device_fid(0),
        component: object(1),
        from_generation: 0,
        below_generation: u64::MAX,
    };
    bad(refused(cluster.ask(0, &delete)));
    // Nothing of it was written, nothing is counted against the device, and the server serves.
    let untouched = read(&mut cluster, 0, 34, 0).unwrap();
    assert_eq!(untouched, [0; 16384]);
    write(&mut cluster, 0, 34, 0, 1).unwrap();
    assert_eq!(cluster.states(), "v3 online online online online");
}

#[test]
fn who_has_another_credential_gets_nothing() {
    let mut cluster = Cluster::start(15, Shape::default());
    let (_, locality) = cluster.turner.add("stranger");
    let stranger = raw_client(&locality, &cluster.fabric, lo_endpoint(101), 1, [8; 32]);
    let deadline = cluster.turner.clock.now() + Duration::from_secs(2);
    let call = stranger.call(
        lo_endpoint(0),
        &ConfGet { known_version: 0 },
        Bulk::none(),
        CallOptions::until(deadline),
    );
    let error = cluster.turner.run(call).unwrap_err();
    assert!(!matches!(error, CallError::Fop(_)), "{error}");
}

#[test]
fn servers_that_do_not_fit_the_configuration_do_not_start() {
    let mut cluster = Cluster::without_servers(16, Shape::default());
    let error = cluster.start_server_with(0, |config| config.process = Fid::new(FidType::Process, 5, 5));
    assert!(matches!(error, Err(ServerError::NotConfigured { .. })));
    let error = cluster.start_server_with(0, |config| config.devices[0].0 = device_fid(3));
    assert!(matches!(error, Err(ServerError::NotOurs { .. })));
    let error = cluster.start_server_with(0, |config| config.devices[1].0 = device_fid(0));
    assert!(matches!(error, Err(ServerError::Doubled { .. })));
    let error = cluster.start_server_with(0, |config| config.endpoint = lo_endpoint(0));
    assert!(matches!(error, Err(ServerError::Net(_))));
    // Blank devices are formatted only when told so.
    let blank = cluster.disks[2].clone();
    let error = cluster.start_server_with(1, |config| config.format = false);
    assert!(matches!(error, Err(ServerError::Device { source: StobError::NotFormatted, .. })));
    assert_eq!(blank.content(0), vec![0; 4096]);
    // The cables of two devices swapped.
    cluster.start_server(1).unwrap();
    cluster.stop_server(1).unwrap();
    cluster.disks.swap(2, 3);
    let error = cluster.start_server(1);
    assert!(matches!(error, Err(ServerError::Device { source: StobError::WrongDevice { .. }, .. })));
    cluster.disks.swap(2, 3);
    // No control: a clear error after the time given.
    cluster.kill_control();
    let error = cluster.start_server_with(1, |config| config.start_timeout = Duration::from_secs(2));
    let message = error.unwrap_err().to_string();
    assert!(message.contains("the control daemon at 0@lo:12345:34:0 does not answer"), "{message}");
}

#[test]
fn a_server_stops_in_order_and_has_nothing_to_replay() {
    let mut cluster = Cluster::start(17, Shape::default());
    write(&mut cluster, 0, 34, 0, 1).unwrap();
    cluster.ask(0, &Shutdown).unwrap();
    let asked = async { cluster.server(0).shutdown_requested().await };
    assert!(futures_util::FutureExt::now_or_never(asked).is_some(), "the process hears of it");
    cluster.stop_server(0).unwrap();
    cluster.start_server(0).unwrap();
    let expected = cluster.pattern(1, 16384).to_vec();
    assert_eq!(read(&mut cluster, 0, 34, 0).unwrap(), expected);
    assert_eq!(cluster.server(0).process(), process_fid(0));
}

#[test]
fn the_same_seed_gives_the_same_times() {
    let story = |seed| {
        let mut cluster = Cluster::start(seed, Shape::default());
        write(&mut cluster, 0, 34, 0, 1).unwrap();
        cluster.kill_server(1);
        cluster.wait_until("transient", |cluster| cluster.state(2) == DeviceState::Transient);
        write(&mut cluster, 1, 34, 0, 1).unwrap();
        cluster.turner.clock.now()
    };
    assert_eq!(story(18), story(18));
}

#[test]
fn a_full_device_refuses_and_keeps_what_it_has() {
    let mut cluster = Cluster::start(19, Shape { device_blocks: 4096, ..Shape::default() });
    write(&mut cluster, 0, 34, 0, 1).unwrap();
    let parts = || (0..16).map(|_| 65536).collect::<Vec<usize>>();
    let mut start = 1000;
    let error = loop {
        let source: Vec<_> = parts().into_iter().map(|bytes| cluster.pattern(3, bytes)).collect();
        let extents: Vec<(u64, u64)> = (0..16).map(|index| (start + index * 16, 16)).collect();
        let fop = write_fop(0, 35, &extents, checksums(&source));
        match cluster.call(lo_endpoint(1), &fop, Bulk { source, sink: vec![] }) {
            Ok(answer) => assert!(answer.reply.free_blocks < 4096),
            Err(error) => break refused::<()>(Err(error)),
        }
        start += 256;
        assert!(start < 10_000, "a device of 4096 blocks is full by now");
    };
    assert!(matches!(error, FopError::NoSpace { device, .. } if device == device_fid(0)), "{error}");
    let expected = cluster.pattern(1, 16384).to_vec();
    assert_eq!(read(&mut cluster, 0, 34, 0).unwrap(), expected);
    let drop = ComponentDelete {
        device: device_fid(0),
        component: component(35),
        from_generation: 0,
        below_generation: u64::MAX,
    };
    cluster.ask(0, &drop).unwrap();
    write(&mut cluster, 0, 36, 0, 1).expect("there is room again");
    assert_eq!(cluster.states(), "v3 online online online online", "full is not failed");
}

#[test]
fn a_server_cut_off_from_control_stops_serving_before_control_calls_it_lost() {
    let mut cluster = Cluster::start(20, Shape { transport: Transport::Sim, ..Shape::default() });
    write(&mut cluster, 0, 34, 0, 1).unwrap();
    let (control, server) = (cluster.endpoint(0), cluster.endpoint(1));
    cluster.sim().partition(control, server);
    cluster.sim().partition(server, control);
    let serving = |cluster: &Cluster| cluster.server(0).is_serving();
    // Never both: control says it is lost, and it still serves.
    while serving(&cluster) {
        assert_eq!(cluster.state(0), DeviceState::Online);
        cluster.turner.pass(Duration::from_millis(1));
    }
    assert_eq!(cluster.state(0), DeviceState::Online, "the grace is not over yet");
    let error = refused(write(&mut cluster, 0, 34, 0, 2));
    assert!(matches!(error, FopError::NotServing { .. }), "a client that still reaches it is told: {error}");
    cluster.wait_until("transient", |cluster| cluster.state(0) == DeviceState::Transient);
    assert_eq!(cluster.state(2), DeviceState::Online, "the other server is not affected");
    cluster.sim().heal_all();
    cluster.wait_until("online again", |cluster| cluster.state(0) == DeviceState::Online);
    cluster.wait_until("serving again", serving);
    let expected = cluster.pattern(1, 16384).to_vec();
    assert_eq!(read(&mut cluster, 0, 34, 0).unwrap(), expected);
}

#[test]
fn a_lossy_way_to_control_costs_resends_not_leases() {
    let mut cluster = Cluster::start(21, Shape { transport: Transport::Sim, ..Shape::default() });
    let lossy = verbs_net::SimFaults { loss_per_mille: 50, ..verbs_net::SimFaults::NONE };
    let control = cluster.endpoint(0);
    for server in [cluster.endpoint(1), cluster.endpoint(2)] {
        cluster.sim().set_link_faults(control, server, Some(lossy));
        cluster.sim().set_link_faults(server, control, Some(lossy));
    }
    cluster.turner.pass(Duration::from_secs(60));
    assert_eq!(cluster.states(), "v3 online online online online");
    assert!(cluster.sim().stats().lost > 0, "the net was lossy");
    cluster.disks[1].fail_with_eio(true);
    let _refused = refused(read(&mut cluster, 1, 34, 0).and_then(|_| write(&mut cluster, 1, 34, 0, 1)));
    cluster.wait_until("device 1 is failed", |cluster| cluster.state(1) == DeviceState::Failed);
}

/// Gives an order about device 0 until it is heeded; at most two heartbeats later.
fn order(cluster: &mut Cluster, order: DeviceOrder) -> String {
    let command = DeviceCommand { device: device_fid(0), order };
    let asked_at = cluster.turner.clock.now();
    let first = cluster.call(lo_endpoint(0), &command, Bulk::none()).unwrap().reply;
    assert!(first.is_new && !first.is_heeded, "{first:?}");
    while !cluster.call(lo_endpoint(0), &command, Bulk::none()).unwrap().reply.is_heeded {
        cluster.turner.pass(Duration::from_millis(10));
        assert!(cluster.turner.clock.now() - asked_at < Duration::from_secs(2), "not heeded");
    }
    first.state
}

#[test]
fn a_detached_device_is_refused_over_restarts_and_has_missed_nothing_when_it_is_attached() {
    let mut cluster = Cluster::start(23, Shape::default());
    write(&mut cluster, 0, 34, 0, 1).unwrap();
    assert_eq!(order(&mut cluster, DeviceOrder::Detach { force: false }), "detached");
    let out = "detached online online online";
    fn is_out(cluster: &mut Cluster, when: &str) {
        for error in [refused(write(cluster, 0, 34, 0, 2)), refused(read(cluster, 0, 34, 0))] {
            assert!(
                matches!(&error, FopError::NotServing { reason } if reason.contains("detached")),
                "{when}: {error}"
            );
        }
        write(cluster, 1, 34, 0, 1).expect("the server's other device serves on");
    }
    is_out(&mut cluster, "at once");
    cluster.kill_control();
    cluster.start_control().unwrap();
    cluster.turner.pass(Duration::from_secs(10));
    assert!(cluster.states().ends_with(out), "after a restart of control: {}", cluster.states());
    is_out(&mut cluster, "after a restart of control");
    cluster.kill_server(0);
    cluster.turner.pass(Duration::from_secs(5));
    assert!(cluster.states().ends_with("detached transient online online"), "{}", cluster.states());
    cluster.start_server(0).unwrap();
    cluster.turner.pass(Duration::from_secs(10));
    assert!(cluster.states().ends_with(out), "after a restart of its server: {}", cluster.states());
    is_out(&mut cluster, "after a restart of its server");
    assert_eq!(order(&mut cluster, DeviceOrder::Attach), "online");
    let expected = cluster.pattern(1, 16384).to_vec();
    assert_eq!(read(&mut cluster, 0, 34, 0).unwrap(), expected, "what was acknowledged before");
    write(&mut cluster, 0, 34, 0, 3).unwrap();
}

/// What a call came to, once it has.
type Outcome = Rc<RefCell<Option<Result<(), CallError>>>>;

/// The raw client makes an object's record on devices of the second server and hears nothing of it, until the changes are durable there.
struct Unheard(Vec<Outcome>);

impl Unheard {
    fn creates(cluster: &mut Cluster, devices: &[usize]) -> Unheard {
        let (server, client) = (cluster.endpoint(2), cluster.endpoint(100));
        cluster.sim().partition(server, client);
        let before = cluster.server(1).rpc().changes_durable();
        let mut unheard = Unheard(Vec::new());
        for device in devices {
            let create = open(*device, OpenMode::Create, record(34, 1, 9));
            let (rpc, outcome) = (cluster.client.clone(), Outcome::default());
            unheard.0.push(Rc::clone(&outcome));
            let options = CallOptions::until(cluster.turner.clock.now() + Duration::from_secs(60));
            drop(cluster.client.locality().spawn("create", async move {
                let answer = rpc.call(server, &create, Bulk::none(), options).await;
                *outcome.borrow_mut() = Some(answer.map(drop));
            }));
        }
        let wanted = before + base::units::wide(devices.len());
        cluster.wait_until("durable", |cluster| cluster.server(1).rpc().changes_durable() == wanted);
        unheard
    }

    fn hear(self, cluster: &mut Cluster) -> Vec<Result<(), CallError>> {
        assert!(self.0.iter().all(|outcome| outcome.borrow().is_none()), "nothing was heard so far");
        cluster.sim().heal_all();
        cluster.wait_until("answered", |_| self.0.iter().all(|outcome| outcome.borrow().is_some()));
        assert_eq!(cluster.client.stats().requester.sessions_resumed, 1);
        self.0.iter().map(|outcome| outcome.take().expect("answered")).collect()
    }
}

/// Found by seed 40438 of the simulation: the answer was that the disk is not open, as if the request had not run.
#[test]
fn who_asks_again_for_a_change_on_a_device_that_does_not_open_any_more_hears_that_it_may_have_run() {
    let mut cluster = Cluster::start(30, Shape { transport: Transport::Sim, ..Shape::default() });
    write(&mut cluster, 3, 35, 0, 5).unwrap();
    let unheard = Unheard::creates(&mut cluster, &[2, 3]);
    cluster.kill_server(1);
    cluster.disks[2].fail_flushes(true);
    cluster.start_server(1).unwrap();
    assert_eq!(cluster.server(1).unopened().len(), 1);
    let heard = unheard.hear(&mut cluster);
    heard[1].as_ref().expect("its record is on a device that opened");
    let error = heard[0].as_ref().unwrap_err();
    assert!(matches!(error, CallError::Fop(FopError::ReplyGone)) && error.may_have_executed(), "{error}");
    let server = cluster.server(1).rpc();
    assert_eq!((server.changes_durable(), server.stats().reply_cache.replays), (0, 1), "nothing ran again");
    // What was not sent before the restart is in no doubt.
    let error = refused(cluster.ask(2, &open(2, OpenMode::Create, record(36, 1, 9)))).to_string();
    assert!(error.contains("is not open here"), "{error}");
    write(&mut cluster, 3, 34, 0, 6).unwrap();
}

#[test]
fn a_change_whose_record_went_with_its_disk_does_not_run_again_on_the_next_disk() {
    let mut cluster = Cluster::start(31, Shape { transport: Transport::Sim, ..Shape::default() });
    let next = SimDisk::new(77, cluster.shape.device_blocks, SimFaults::default());
    cluster.kill_server(1);
    let disk = next.clone();
    let source: DiskSource = Rc::new(move |_, _| Ok(Box::new(disk.backend())));
    cluster.start_server_with(1, |config| config.disks = Some(source)).unwrap();
    write(&mut cluster, 3, 35, 0, 5).unwrap();
    let unheard = Unheard::creates(&mut cluster, &[2]);
    let control = cluster.endpoint(0);
    let lost = DeviceReport { device: device_fid(2), evidence: DeviceEvidence::Operator };
    cluster.call(control, &lost, Bulk::none()).unwrap();
    cluster.wait_until("given up", |cluster| cluster.state(2) == DeviceState::Failed);
    let replace = DeviceCommand { device: device_fid(2), order: DeviceOrder::Replace };
    cluster.call(control, &replace, Bulk::none()).unwrap();
    cluster.wait_until("another disk", |cluster| cluster.state(2) == DeviceState::Repair);
    cluster.kill_server(1);
    cluster.disks[2] = next;
    cluster.start_server(1).unwrap();
    // As a client that has heard of all that.
    cluster.set_client_version(cluster.control().configuration().version);
    let heard = unheard.hear(&mut cluster);
    let error = heard[0].as_ref().unwrap_err();
    assert!(matches!(error, CallError::Fop(FopError::ReplyGone)), "{error}");
    assert_eq!(cluster.server(1).rpc().changes_durable(), 0, "it did not run again");
    let made = cluster.ask(2, &open(2, OpenMode::Create, record(34, 1, 10)));
    assert!(made.expect("a new request runs").created);
}
