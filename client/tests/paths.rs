//! The client's whole path against a model of control and servers (`model`): what is written is read back, whatever is lost.
#![forbid(unsafe_code)]
// Helpers of tests: a value that is missing is the test's failure, told where it happens.
#![allow(clippy::unwrap_used)]

mod model;

use std::cell::RefCell;
use std::rc::Rc;

use base::units::narrow;
use base::{ByteExtent, ObjectId};
use client::{Client, ClientError, Fault, Object, OperationState};
use faces::DeviceState;
use model::{Mode, World};
use runtime::SharedBuffer;

const UNIT: usize = 16384;
const GROUP: usize = 4 * UNIT;

fn id(lo: u64) -> ObjectId {
    ObjectId::new(12, lo).unwrap()
}

fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..count.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(count).collect()
}

fn shared(client: &Client, content: &[u8]) -> SharedBuffer {
    let mut buffer = client.locality().arena().try_alloc(content.len()).unwrap();
    buffer.copy_from_slice(content);
    buffer.freeze()
}

fn parts(client: &Client, content: &[u8], step: usize) -> Vec<SharedBuffer> {
    content.chunks(step).map(|chunk| shared(client, chunk)).collect()
}

fn extent(start: usize, count: usize) -> ByteExtent {
    ByteExtent::new(start as u64, count as u64).unwrap()
}

fn join(parts: &[SharedBuffer]) -> Vec<u8> {
    parts.iter().flat_map(|part| part.to_vec()).collect()
}

async fn put(client: Client, object: ObjectId, content: Rc<Vec<u8>>) -> Result<Object, ClientError> {
    let open = client.create_or_open(object, None).await?;
    let replacement = open.replace().await?;
    let source = |offset: u64, mut buffer: runtime::Buffer| {
        let rest = &content[narrow(offset)..];
        let count = rest.len().min(buffer.len());
        buffer.resize(count);
        buffer.copy_from_slice(&rest[..count]);
        std::future::ready(Ok(buffer))
    };
    let count = client.upload(&replacement, source, |_| ()).await?;
    replacement.commit(count).await?;
    Ok(open)
}

async fn get(client: Client, object: ObjectId) -> Result<Vec<u8>, ClientError> {
    let open = client.open(object).await?;
    let copy = RefCell::new(Vec::new());
    let sink = |offset: u64, part: SharedBuffer| {
        assert_eq!(narrow(offset), copy.borrow().len(), "in order");
        copy.borrow_mut().extend_from_slice(&part);
        std::future::ready(Ok(()))
    };
    let count = client.download(&open, ByteExtent { start: 0, count: open.size() }, sink, |_| ()).await?;
    let copy = copy.into_inner();
    assert_eq!(narrow(count), copy.len());
    Ok(copy)
}

#[test]
fn objects_of_every_size_come_back() {
    let mut world = World::new("4+2+1", 8, 16384);
    let client = world.client();
    let sizes = [0, 1, 4095, 4096, 4097, UNIT, UNIT + 1, GROUP, GROUP + 1, 10 * GROUP + 3 * UNIT + 5000];
    for (lo, size) in (0u64..).zip(sizes) {
        let content = Rc::new(bytes(lo + 1, size));
        let written = world.run(put(client.clone(), id(lo), content.clone())).unwrap();
        assert_eq!(written.size(), size as u64);
        assert!(world.run(get(client.clone(), id(lo))).unwrap() == *content, "size {size}");
        // Any alignment, and past the end.
        for (start, count) in
            [(0, 1), (size / 2, 5000), (size.saturating_sub(1), 10), (size + 5, 10), (3, size)]
        {
            let open = written.clone();
            let read = world.run(async move { open.read(extent(start, count)).await }).unwrap();
            let expected = &content[start.min(size)..(start + count).min(size)];
            assert!(join(&read) == expected, "size {size}, {count} bytes from {start}");
        }
    }
}

#[test]
fn every_pair_of_lost_devices_is_rebuilt() {
    let mut world = World::new("4+2+1", 8, 16384);
    let client = world.client();
    let content = Rc::new(bytes(3, 6 * GROUP + UNIT + 777));
    world.run(put(client.clone(), id(1), content.clone())).unwrap();
    world.services.believes_reports.set(false);
    for mode in [Mode::Eio, Mode::Silent, Mode::Lying] {
        for first in 0..8 {
            for second in 0..first {
                world.set_mode(first, mode);
                world.set_mode(second, mode);
                let read = world.run(get(client.clone(), id(1)));
                // A record's three holders are not all among two devices.
                assert!(read.unwrap() == *content, "{mode:?} on {first} and {second}");
                world.set_mode(first, Mode::Healthy);
                world.set_mode(second, Mode::Healthy);
            }
        }
    }
}

#[test]
fn three_lost_devices_give_an_error_that_names_them() {
    let mut world = World::new("4+2+1", 7, 16384);
    let client = world.client();
    let content = Rc::new(bytes(3, 4 * GROUP));
    let open = world.run(put(client.clone(), id(1), content)).unwrap();
    world.services.believes_reports.set(false);
    let records = (0..7).filter(|target| world.device(*target).borrow().records.is_empty());
    let lost: Vec<usize> = records.take(3).collect();
    for target in &lost {
        world.set_mode(*target, Mode::Eio);
    }
    let error = world.run(async move { open.read(extent(0, 4 * GROUP)).await }).unwrap_err();
    let ClientError::Read { object, failures, .. } = &error else { panic!("{error}") };
    assert_eq!((*object, failures.0.len()), (id(1), 3));
    let text = error.to_string();
    for target in lost {
        let device = world.services.configuration.borrow().pool.devices[target].device;
        assert!(text.contains(&device.to_string()) && text.contains("0@lo:12345:32:0"), "{text}");
    }
}

#[test]
fn damage_on_a_device_is_rebuilt() {
    let mut world = World::new("4+2+1", 8, 16384);
    let client = world.client();
    let content = Rc::new(bytes(4, 5 * GROUP));
    world.run(put(client.clone(), id(1), content.clone())).unwrap();
    for target in [2, 5] {
        let mut device = world.device(target).borrow_mut();
        for stored in device.stobs.values_mut() {
            for (block, _) in stored.blocks.values_mut().step_by(3) {
                block[9] ^= 0x40;
            }
        }
    }
    assert!(world.run(get(client.clone(), id(1))).unwrap() == *content);
    // Blocks that are gone, though their rows are there, are erasures too and never zeros.
    for target in [2, 5] {
        let mut device = world.device(target).borrow_mut();
        for stored in device.stobs.values_mut() {
            stored.blocks.retain(|block, _| block % 2 == 0);
        }
    }
    assert!(world.run(get(client.clone(), id(1))).unwrap() == *content);
}

#[test]
fn verifying_reads_find_parity_that_does_not_match() {
    let mut world = World::new("4+2+1", 8, 16384);
    let config = client::ClientConfig { read_verify: true, ..world.config() };
    let client = world.connect_with(config).unwrap();
    let content = Rc::new(bytes(5, 2 * GROUP + 100));
    let open = world.run(put(client.clone(), id(1), content.clone())).unwrap();
    assert!(world.run(get(client.clone(), id(1))).unwrap() == *content);
    // A block that is whole, but not the one that was written.
    let mut damaged = 0;
    for target in 0..8 {
        let mut device = world.device(target).borrow_mut();
        if let Some((block, checksum)) =
            device.stobs.values_mut().flat_map(|stored| stored.blocks.values_mut()).next()
        {
            block[0] ^= 1;
            *checksum = base::checksum::crc32c(block);
            damaged += 1;
        }
    }
    assert!(damaged > 0);
    let error = world.run(async move { open.read(extent(0, 2 * GROUP)).await }).unwrap_err();
    assert!(matches!(error, ClientError::ParityMismatch { object, .. } if object == id(1)), "{error}");
}

/// Random writes in place against a vector, read back healthy and with two devices lost after each.
#[test]
fn writes_in_place_keep_every_byte_and_the_parity() {
    for (width, devices, seed) in
        [("4+2+1", 8, 11u64), ("3+1+0", 5, 12), ("1+2+0", 4, 13), ("8+2+0", 11, 14), ("2+0+0", 3, 15)]
    {
        let mut world = World::new(width, devices, 16384);
        world.services.believes_reports.set(false);
        let client = world.client();
        let parity: usize = width[2..3].parse().unwrap();
        let group = UNIT * width[..1].parse::<usize>().unwrap();
        let opener = client.clone();
        let open = world.run(async move { opener.create(id(seed), None).await }).unwrap();
        let mut model: Vec<u8> = Vec::new();
        let mut random = bytes(seed, 4096).into_iter().cycle().skip(narrow(seed));
        let mut draw = |below: usize| {
            (0..3).fold(0usize, |sum, _| sum << 8 | usize::from(random.next().unwrap())) % below.max(1)
        };
        for step in 0..40 {
            if step == 20 {
                // From here on the object has a tail that a replacement left, with blocks beyond its end never written.
                model = bytes(seed, group + 3 * 4096 + 100);
                world.run(put(client.clone(), id(seed), Rc::new(model.clone()))).unwrap();
                let reload = open.clone();
                world.run(async move { reload.reload().await }).unwrap();
            }
            let start = draw(3 * group / 4096 + 1) * 4096;
            let count = (1 + draw(if step % 3 == 0 { 2 * group / 4096 } else { 5 })) * 4096;
            let content = bytes(seed * 1000 + step, count);
            if model.len() < start + count {
                model.resize(start + count, 0);
            }
            model[start..start + count].copy_from_slice(&content);
            // Seams that are not at blocks now and then: those blocks are copied, the others are not.
            let step_bytes = if step % 5 == 4 { 5000 } else { 8192 };
            let (writer, pieces) = (open.clone(), parts(&client, &content, step_bytes));
            world.run(async move { writer.write(extent(start, count), pieces).await }).unwrap();
            assert_eq!(narrow(open.size()), model.len());
            let all = extent(0, model.len());
            for lost in 0..2 {
                let modes = [Mode::Eio, Mode::Lying];
                let targets: Vec<usize> = (0..parity * lost).map(|_| draw(narrow(devices))).collect();
                for target in &targets {
                    world.set_mode(*target, modes[draw(2)]);
                }
                let reader = open.clone();
                let read = world.run(async move { reader.read(all).await });
                let read =
                    read.unwrap_or_else(|error| panic!("{width} step {step}, lost {targets:?}: {error}"));
                assert!(join(&read) == model, "{width} step {step}, lost {targets:?}");
                for target in targets {
                    world.set_mode(target, Mode::Healthy);
                }
            }
        }
    }
}

/// Writes that are launched together and each make the object longer: the next begins while the record of the last one is changed.
#[test]
fn writes_that_append_together_leave_every_byte_and_the_parity() {
    for (seed, unit_of_cuts) in [(1u64, 4096usize), (2, 4096), (3, 1), (4, 700), (5, GROUP)] {
        let mut world = World::new("4+2+1", 8, 16384);
        world.services.believes_reports.set(false);
        let client = world.client();
        let opener = client.clone();
        let open = world.run(async move { opener.create(id(seed), None).await }).unwrap();
        let mut random = bytes(seed, 4096).into_iter();
        let mut content = Vec::new();
        let mut writes = Vec::new();
        for number in 0..12 {
            let draw = usize::from(random.next().unwrap()) << 8 | usize::from(random.next().unwrap());
            let count = (1 + draw % (2 * GROUP / unit_of_cuts)) * unit_of_cuts;
            let piece = bytes(seed * 100 + number, count);
            let (writer, pieces) = (open.clone(), parts(&client, &piece, 8192));
            let start = content.len();
            writes.push(async move { writer.write(extent(start, count), pieces).await });
            content.extend(piece);
        }
        for done in world.run(futures_util::future::join_all(writes)) {
            done.unwrap();
        }
        assert_eq!(narrow(open.size()), content.len());
        let other = world.client();
        for lost in [&[][..], &[1, 6], &[0, 3], &[4, 5]] {
            for target in lost {
                world.set_mode(*target, Mode::Eio);
            }
            assert!(
                world.run(get(other.clone(), id(seed))).unwrap() == content,
                "seed {seed}, lost {lost:?}"
            );
            for target in lost {
                world.set_mode(*target, Mode::Healthy);
            }
        }
    }
}

#[test]
fn holes_read_as_zeros_and_stay_holes() {
    let mut world = World::new("4+2+1", 8, 16384);
    let client = world.client();
    let opener = client.clone();
    let open = world.run(async move { opener.create(id(1), None).await }).unwrap();
    let content = bytes(1, 8192);
    let (writer, piece) = (open.clone(), parts(&client, &content, 8192));
    world.run(async move { writer.write(extent(5 * GROUP + 4096, 8192), piece).await }).unwrap();
    let blocks: usize = world
        .services
        .devices
        .values()
        .flat_map(|device| {
            device.borrow().stobs.values().map(|stored| stored.blocks.len()).collect::<Vec<_>>()
        })
        .sum();
    assert_eq!(blocks, 2 * 6, "two rows, complete");
    let reader = open.clone();
    let read = join(&world.run(async move { reader.read(extent(0, 6 * GROUP)).await }).unwrap());
    assert_eq!(read.len(), 5 * GROUP + 4096 + 8192);
    assert!(read[..5 * GROUP + 4096].iter().all(|byte| *byte == 0) && read[5 * GROUP + 4096..] == content);
    for (start, count, is_written) in [
        (5 * GROUP + 4096, 8192, true),
        (0, 4096, false),
        (5 * GROUP, 8192, false),
        (5 * GROUP + 8192, 8192, false),
    ] {
        let reader = open.clone();
        let read = world.run(async move { reader.read_written(extent(start, count)).await });
        match read {
            Ok(read) => assert!(is_written && join(&read) == content, "{start}"),
            Err(error) => {
                assert!(!is_written && matches!(error, ClientError::Hole { .. }), "{start}: {error}")
            }
        }
    }
}

#[test]
fn writes_go_on_without_failed_devices_and_are_read_back() {
    let mut world = World::new("4+2+1", 8, 16384);
    let client = world.client();
    world.set_mode(1, Mode::Eio);
    // The client reports the EIO, control takes the device out, the write goes on without it.
    let content = Rc::new(bytes(6, 8 * GROUP + 9000));
    let open = world.run(put(client.clone(), id(1), content.clone())).unwrap();
    assert_eq!(world.services.configuration.borrow().pool.devices[1].state, DeviceState::Failed);
    assert_eq!(world.device(1).borrow().writes, 0);
    assert!(world.run(get(client.clone(), id(1))).unwrap() == *content);
    world.set_state(4, DeviceState::Failed);
    world.set_mode(4, Mode::Silent);
    let change = bytes(7, 3 * 4096);
    let mut expected = content.to_vec();
    expected[GROUP - 4096..GROUP + 8192].copy_from_slice(&change);
    let (writer, pieces) = (open.clone(), parts(&client, &change, 4096));
    let refresher = client.clone();
    world.run(async move { refresher.refresh_configuration().await });
    world.run(async move { writer.write(extent(GROUP - 4096, 3 * 4096), pieces).await }).unwrap();
    assert!(world.run(get(client.clone(), id(1))).unwrap() == expected);
    // A third one: some group would lack three units.
    world.set_state(6, DeviceState::Failed);
    let refresher = client.clone();
    world.run(async move { refresher.refresh_configuration().await });
    let pieces = parts(&client, &bytes(8, 8 * GROUP), GROUP);
    let error = world.run(async move { open.write(extent(0, 8 * GROUP), pieces).await }).unwrap_err();
    assert!(matches!(&error, ClientError::Write { failures, .. } if failures.0.len() == 3), "{error}");
}

#[test]
fn reads_pass_over_a_detached_device_without_asking_and_writes_need_it() {
    let mut world = World::new("4+2+1", 8, 16384);
    let client = world.client();
    let content = Rc::new(bytes(9, 8 * GROUP));
    let open = world.run(put(client.clone(), id(1), content.clone())).unwrap();
    world.set_state(1, DeviceState::Detached);
    let refresher = client.clone();
    world.run(async move { refresher.refresh_configuration().await });
    let counts = |world: &World| (world.device(1).borrow().reads, world.device(1).borrow().writes);
    let (reads, writes) = counts(&world);
    assert!(world.run(get(client.clone(), id(1))).unwrap() == *content);
    assert_eq!(counts(&world), (reads, writes), "nobody asked it");
    let pieces = parts(&client, &content, GROUP);
    let writer = open.clone();
    let error = world.run(async move { writer.write(extent(0, 8 * GROUP), pieces).await }).unwrap_err();
    let is_named = matches!(&error, ClientError::Write { failures, .. }
        if failures.0.iter().all(|one| matches!(one.fault, Fault::State(DeviceState::Detached))));
    assert!(is_named, "it waited for the device and names it: {error}");
    assert_eq!(counts(&world), (reads, writes), "nobody asked it");
    world.set_state(1, DeviceState::Online);
    let pieces = parts(&client, &content, GROUP);
    world.run(async move { open.write(extent(0, 8 * GROUP), pieces).await }).unwrap();
    assert!(counts(&world).1 > writes, "a write went past it");
}

#[test]
fn a_silent_server_fails_a_write_by_name_and_in_time() {
    let mut world = World::new("4+2+1", 8, 16384);
    let client = world.client();
    let opener = client.clone();
    let open = world.run(async move { opener.create(id(1), None).await }).unwrap();
    let target = (0..8).find(|target| world.device(*target).borrow().records.is_empty()).unwrap();
    world.set_mode(target, Mode::Silent);
    let before = world.clock.now();
    let pieces = parts(&client, &bytes(8, 8 * GROUP), GROUP);
    let error = world.run(async move { open.write(extent(0, 8 * GROUP), pieces).await }).unwrap_err();
    let ClientError::Write { failures, .. } = &error else { panic!("{error}") };
    let device = world.services.configuration.borrow().pool.devices[target].device;
    assert!(
        failures.0.iter().all(|failure| failure.device == device && matches!(failure.fault, Fault::Call(_)))
    );
    assert!(world.clock.now().since(before).as_secs() <= 21, "{error}");
}

#[test]
fn a_replacement_is_all_or_nothing() {
    let mut world = World::new("4+2+1", 8, 16384);
    let client = world.client();
    let old = Rc::new(bytes(1, 3 * GROUP + 10));
    let open = world.run(put(client.clone(), id(1), old.clone())).unwrap();
    let (replacer, new) = (open.clone(), parts(&client, &bytes(2, 2 * GROUP), GROUP));
    // Written, not committed: the object is as it was. The stale generation goes with the next one.
    world.run(async move {
        let replacement = replacer.replace().await.unwrap();
        replacement.write(0, new).await.unwrap();
    });
    assert!(world.run(get(client.clone(), id(1))).unwrap() == *old);
    assert_eq!(model::generations(&world.services).len(), 2);
    let new = Rc::new(bytes(3, GROUP + 5));
    world.run(put(client.clone(), id(1), new.clone())).unwrap();
    assert!(world.run(get(client.clone(), id(1))).unwrap() == *new);
    assert_eq!(model::generations(&world.services).len(), 1);
    // A handle from before the replacement finds the new bytes, not the holes that the old generation left.
    let read = world.run(async move { open.read(extent(0, 100 * 4096)).await }).unwrap();
    assert!(join(&read) == *new);
}

#[test]
fn pieces_of_a_replacement_have_to_fit() {
    let mut world = World::new("4+2+1", 8, 16384);
    let client = world.client();
    let content = bytes(9, 3 * GROUP);
    let maker = client.clone();
    world.run(async move {
        let open = maker.create(id(1), None).await.unwrap();
        let replacement = open.replace().await.unwrap();
        let piece = |range: std::ops::Range<usize>| parts(&maker, &content[range], GROUP);
        let misfit =
            |result: Result<(), ClientError>| assert!(matches!(result, Err(ClientError::Piece { .. })));
        misfit(replacement.write(4096, piece(0..4096)).await);
        replacement.write(2 * GROUP as u64, piece(0..5000)).await.unwrap();
        misfit(replacement.write(3 * GROUP as u64, piece(0..GROUP)).await);
        misfit(replacement.write(0, piece(0..100)).await);
        replacement.write(GROUP as u64, piece(0..GROUP)).await.unwrap();
        replacement.commit(2 * GROUP as u64 + 5000).await.unwrap();
        // The first group was never written.
        let read = join(&open.read(extent(0, 3 * GROUP)).await.unwrap());
        assert!(read[..GROUP].iter().all(|byte| *byte == 0));
        assert!(read[GROUP..2 * GROUP] == content[..GROUP] && read[2 * GROUP..] == content[..5000]);
    });
}

#[test]
fn create_open_stat_list_and_delete() {
    let mut world = World::new("4+2+1", 8, 16384);
    let client = world.client();
    let user = client.clone();
    world.run(async move {
        assert!(matches!(user.open(id(1)).await, Err(ClientError::NotFound { .. })));
        assert!(user.create(id(1), Some(4096)).await.unwrap().was_created());
        assert!(
            matches!(user.create(id(1), None).await, Err(ClientError::Exists { object }) if object == id(1))
        );
        assert!(!user.create_or_open(id(1), None).await.unwrap().was_created());
        assert_eq!(user.stat(id(1)).await.unwrap().unit_bytes, 4096);
        assert!(matches!(
            user.create(id(2), Some(5000)).await,
            Err(ClientError::UnitBytes { unit_bytes: 5000, .. })
        ));
        for lo in 2..20 {
            user.create(id(lo), None).await.unwrap();
        }
        user.delete(id(7)).await.unwrap();
        assert!(matches!(user.delete(id(7)).await, Err(ClientError::NotFound { .. })));
        let all = user.list(None, 100).await.unwrap();
        let expected: Vec<ObjectId> = (1..20).filter(|lo| *lo != 7).map(id).collect();
        assert_eq!(all.iter().map(|stat| stat.object).collect::<Vec<_>>(), expected);
        let some = user.list(Some(id(3)), 4).await.unwrap();
        assert_eq!(some.iter().map(|stat| stat.object).collect::<Vec<_>>(), [4, 5, 6, 8].map(id));
    });
    // Tombstones stay, so that versions never go back.
    let gone = |record: Option<&fops::object::ObjectRecord>| record.is_none_or(|record| record.deleted);
    assert!(world.services.devices.values().all(|device| gone(device.borrow().records.get(&id(7).fid()))));
    // Two devices away: each record has three replicas.
    world.set_mode(0, Mode::Eio);
    world.set_mode(3, Mode::Eio);
    world.services.believes_reports.set(false);
    let user = client.clone();
    assert_eq!(world.run(async move { user.list(None, 100).await }).unwrap().len(), 18);
}

/// A holder that nobody hears has the record of before: what others have instead, however much of it, is no delete that is done.
#[test]
fn a_delete_is_done_only_once_no_holder_has_what_was_before() {
    let mut world = World::new("4+2+1", 8, 16384);
    let client = world.client();
    world.run(put(client.clone(), id(1), Rc::new(bytes(1, 100)))).unwrap();
    let holds = |target: &usize| world.device(*target).borrow().records.contains_key(&id(1).fid());
    let holders: Vec<usize> = (0..8).filter(holds).collect();
    let [.., silent] = holders[..] else { panic!("three holders: {holders:?}") };
    let version = |world: &World, target: usize| {
        let record = world.device(target).borrow().records[&id(1).fid()];
        (record.version, record.deleted)
    };
    let (before, _) = version(&world, silent);
    world.set_mode(silent, Mode::Silent);

    // Overtaken: the object is made anew on top of the tombstones, where there are some.
    let (deleter, maker, locality) = (client.clone(), client.clone(), world.locality.handle());
    let delete = async move { deleter.delete(id(1)).await };
    let make = async move {
        while maker.stat(id(1)).await.is_ok() {
            locality.sleep(std::time::Duration::from_millis(1)).await;
        }
        maker.create_or_open(id(1), None).await.map(drop)
    };
    let (deleted, made) = world.run(futures_util::future::join(delete, make));
    assert!(matches!(deleted, Err(ClientError::Record { .. })), "{deleted:?}");
    assert!(matches!(made, Err(ClientError::Record { .. })), "{made:?}");
    assert_eq!(version(&world, holders[0]), (before + 2, false), "made on top of the tombstone");
    assert_eq!(version(&world, silent), (before, false));

    // A delete that is not done, found by another one.
    let deleter = client.clone();
    assert!(matches!(world.run(async move { deleter.delete(id(1)).await }), Err(ClientError::Record { .. })));
    assert_eq!(version(&world, holders[0]), (before + 3, true));
    let deleter = client.clone();
    let again = world.run(async move { deleter.delete(id(1)).await });
    assert!(matches!(again, Err(ClientError::Record { .. })), "not certain: {again:?}");

    world.set_mode(silent, Mode::Healthy);
    let again = world.run(async move { client.delete(id(1)).await });
    assert!(matches!(again, Err(ClientError::NotFound { .. })), "{again:?}");
    for target in holders {
        assert_eq!(version(&world, target), (before + 3, true));
    }
}

#[test]
fn a_replica_that_lags_behind_is_brought_up_to_date() {
    let mut world = World::new("4+2+1", 8, 16384);
    let client = world.client();
    let content = Rc::new(bytes(1, 100));
    world.run(put(client.clone(), id(1), content.clone())).unwrap();
    let holders: Vec<usize> =
        (0..8).filter(|target| world.device(*target).borrow().records.contains_key(&id(1).fid())).collect();
    assert_eq!(holders.len(), 3);
    // One lost its record, one has an old version.
    let newest = world.device(holders[2]).borrow().records[&id(1).fid()];
    world.device(holders[0]).borrow_mut().records.clear();
    world.device(holders[1]).borrow_mut().records.get_mut(&id(1).fid()).unwrap().version = 1;
    let user = client.clone();
    assert_eq!(world.run(async move { user.stat(id(1)).await }).unwrap().size_bytes, 100);
    for target in holders {
        assert_eq!(world.device(target).borrow().records[&id(1).fid()], newest);
    }
}

#[test]
fn an_aligned_transfer_copies_no_bulk_byte() {
    let mut world = World::new("4+2+1", 8, 65536);
    let client = world.client();
    let content = Rc::new(bytes(1, 8 << 20));
    let before = world.counters.copied_bytes.get();
    world.run(put(client.clone(), id(1), content.clone())).unwrap();
    assert!(world.run(get(client.clone(), id(1))).unwrap() == *content);
    // Messages may be copied, bulk may not: 16 MiB went through.
    let copied = world.counters.copied_bytes.get() - before;
    assert!(copied < 256 << 10, "{copied} bytes copied");
}

#[test]
fn wrong_arguments_are_refused() {
    let mut world = World::new("4+2+1", 8, 16384);
    let client = world.client();
    let maker = client.clone();
    world.run(async move {
        let open = maker.create(id(1), None).await.unwrap();
        let two = || parts(&maker, &[7; 8192], 4096);
        assert!(matches!(open.allocate(extent(100, 8192)).await, Err(ClientError::NotAligned { .. })));
        assert!(matches!(
            open.write(extent(0, 4096), two()).await,
            Err(ClientError::PartsLength { bytes: 8192, .. })
        ));
        assert!(matches!(open.read(extent(0, 1 << 40)).await, Err(ClientError::TooLong { .. })));
        let far = ByteExtent { start: 1 << 60, count: 8192 };
        assert!(matches!(open.write(far, two()).await, Err(ClientError::TooLong { .. })));
    });
}

#[test]
fn connecting_says_what_is_wrong() {
    let mut world = World::new("4+2+1", 8, 16384);
    let nobody = client::ClientConfig { control: model::endpoint(99), ..world.config() };
    let error = world.connect_with(nobody).err().unwrap();
    assert!(error.to_string().contains("0@lo:12345:32:99"), "{error}");
    let stranger = client::ClientConfig { security: [6; 32].into(), ..world.config() };
    let error = world.connect_with(stranger).err().unwrap();
    assert!(
        matches!(error, ClientError::WrongCredential { peer, .. } if peer == model::endpoint(0)),
        "{error}"
    );
}

#[test]
fn operations_show_their_states() {
    let mut world = World::new("4+2+1", 8, 16384);
    let client = world.client();
    let maker = client.clone();
    world.run(async move {
        let open = maker.create(id(1), None).await.unwrap();
        let mut write = open.write_operation(extent(0, 4096), parts(&maker, &[7; 4096], 4096));
        assert_eq!(write.state(), OperationState::Initialised);
        write.launch().unwrap();
        assert_eq!((write.state(), write.take_result().is_none()), (OperationState::Launched, true));
        assert!(write.launch().is_err());
        assert_eq!(
            write.reached(OperationState::Executed).await,
            OperationState::Executed,
            "before the record"
        );
        assert_eq!(write.reached(OperationState::Stable).await, OperationState::Stable);
        write.take_result().unwrap().unwrap();
        let mut read = open.read_operation(extent(0, 4096));
        read.launch().unwrap();
        assert_eq!(read.reached(OperationState::Stable).await, OperationState::Stable);
        assert_eq!(join(&read.take_result().unwrap().unwrap()), [7; 4096]);
        let mut wrong = open.read_operation(extent(0, 1 << 40));
        wrong.launch().unwrap();
        assert_eq!(wrong.reached(OperationState::Stable).await, OperationState::Failed);
    });
}
