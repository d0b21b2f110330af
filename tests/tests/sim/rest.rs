//! What has to be true of a cluster at rest: parity of every group on the platters, every block accounted for, nothing leaked.
//!
//! A unit whose device is gone lies in the spare unit of the device's slot, if it has one. Parity is computed by `clovis_tests::sim_parity`, which shares no code with the system; where a unit lies is asked of `layout`, and its bytes of
//! the domain that holds it (which verifies their checksums). Rows that an unacknowledged write left torn are passed over, as in
//! docs/simulation.md#accepted, and a cluster with damaged devices is not looked at: groups with K units fewer are what it is for.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use base::{BlockExtent, Fid, FidType};
use client::ObjectStat;
use clovis_tests::sim_bytes::BLOCK;
use clovis_tests::sim_parity::parity;
use layout::PoolLayout;
use spdk_stob::{Domain, StobId};

use crate::node::Role;
use crate::world::World;

/// At rest no node holds more than this in buffers: kept replies, a connection's share.
const BUFFERS_AT_REST_MAX: u64 = 2 << 20;
/// And so much for each device: pages of its log and trees.
const BUFFERS_OF_A_DEVICE_MAX: u64 = 2 << 20;

/// How often it is looked whether control daemons agree.
const LOOK_AT_DAEMONS: Duration = Duration::from_millis(200);

/// A unit as read back: `None` for a block that was never written.
type Unit = Vec<Option<Vec<u8>>>;

/// Where a unit is wanted from, and what came of it.
struct Wanted {
    device: Fid,
    stob: StobId,
    extent: BlockExtent,
    found: Option<Unit>,
}

/// Checks the parity of all objects. Ok: rows that were checked.
pub fn parity_at_rest(world: &mut World, stats: &[ObjectStat]) -> Result<u64, String> {
    let mut checked = 0;
    for stat in stats {
        if world.oracle.borrow().may_be_torn(stat.object) {
            continue;
        }
        checked += parity_of(world, stat)?;
    }
    Ok(checked)
}

fn parity_of(world: &mut World, stat: &ObjectStat) -> Result<u64, String> {
    let spares = world.spares();
    let pool = &world.configuration.pool;
    let version = world.ask_control(|control| control.configuration().pool_version(stat.pool_version));
    let pool_width = version.flatten().map_or(0, |version| version.device_count());
    let layout = PoolLayout::new(stat.width, pool_width, stat.unit_bytes)
        .map_err(|error| format!("the layout of {}: {error}", stat.object))?;
    let mut object = layout.object(stat.object.fid());
    let (data, coded) = (stat.width.data(), stat.width.data() + stat.width.parity());
    let unit_blocks = u64::from(stat.unit_bytes) / BLOCK;
    let groups = stat.size_bytes.div_ceil(u64::from(data) * u64::from(stat.unit_bytes));
    let stob = StobId { fid: stat.object.fid().with_type(FidType::Component), generation: stat.generation };
    let mut wanted = Vec::new();
    for group in 0..groups {
        for unit in 0..coded {
            // By hand, and not by `layout::stand_ins`: from slot to slot, as far as there are spare units.
            let mut frame = object.place(group, unit);
            while let Some(slot) = spares.get(&frame.target) {
                frame = object.place(group, coded + slot);
            }
            let device = pool.devices[usize::try_from(frame.target).expect("few devices")].device;
            let extent = BlockExtent { start: frame.frame * unit_blocks, count: unit_blocks };
            wanted.push(Wanted { device, stob, extent, found: None });
        }
    }
    let units = read_units(world, wanted)?;
    let mut checked = 0;
    for (group, units) in (0..groups).zip(units.chunks(usize::try_from(coded).expect("few units"))) {
        for row in 0..unit_blocks {
            let blocks: Vec<Option<&Vec<u8>>> =
                units.iter().map(|unit| unit[usize::try_from(row).expect("few rows")].as_ref()).collect();
            checked += u64::from(row_is_right(stat, (group, row), &blocks, data, unit_blocks)?);
        }
    }
    Ok(checked)
}

/// True if the row was written; then its parity is right.
fn row_is_right(
    stat: &ObjectStat,
    (group, row): (u64, u64),
    blocks: &[Option<&Vec<u8>>],
    data: u32,
    unit_blocks: u64,
) -> Result<bool, String> {
    if blocks.iter().all(Option::is_none) {
        return Ok(false);
    }
    let wrong =
        |what: String| Err(format!("at rest: object {} group {group} row {row}: {what}", stat.object));
    let zeros = vec![0; 4096];
    let mut bytes: Vec<&[u8]> = Vec::new();
    for (unit, block) in (0..u64::from(data)).zip(blocks) {
        let start = ((group * u64::from(data) + unit) * unit_blocks + row) * BLOCK;
        match block {
            Some(block) => bytes.push(block),
            None if start >= stat.size_bytes => bytes.push(&zeros),
            None => return wrong(format!("data unit {unit} is absent and others are not")),
        }
    }
    for (number, block) in (0u8..).zip(&blocks[bytes.len()..]) {
        match block {
            None => return wrong(format!("parity unit {number} is absent and others are not")),
            Some(block) if **block != parity(&bytes, number) => {
                return wrong(format!("parity unit {number} is not that of the data"));
            }
            Some(_) => {}
        }
    }
    Ok(true)
}

/// Reads units from the domains that hold them, each in its own server's locality.
fn read_units(world: &mut World, wanted: Vec<Wanted>) -> Result<Vec<Unit>, String> {
    let all = Rc::new(RefCell::new(wanted));
    let missing = Rc::new(Cell::new(0usize));
    let failure: Rc<RefCell<Option<String>>> = Rc::default();
    for node in &world.nodes {
        let (Role::Server { devices, .. }, Some(life)) = (&node.role, &node.life) else { continue };
        for device in devices {
            let Some(domain) = node.domain(device.fid) else { continue };
            let (all, missing, failure) = (Rc::clone(&all), Rc::clone(&missing), Rc::clone(&failure));
            let fid = device.fid;
            missing.set(missing.get() + 1);
            life.seats[device.seat].locality.handle().spawn("look at rest", async move {
                let count = all.borrow().len();
                for index in 0..count {
                    let (device, stob, extent) = {
                        let all = all.borrow();
                        (all[index].device, all[index].stob, all[index].extent)
                    };
                    if device != fid {
                        continue;
                    }
                    match read_unit(&domain, stob, extent).await {
                        Ok(unit) => all.borrow_mut()[index].found = Some(unit),
                        Err(error) => {
                            failure
                                .borrow_mut()
                                .get_or_insert(format!("at rest: {stob} on device {fid}: {error}"));
                        }
                    }
                }
                missing.set(missing.get() - 1);
            });
        }
    }
    let until = world.now() + crate::run::START_MAX;
    if !world.run_until(until, |_| missing.get() == 0)? {
        return Err("at rest: reading the platters does not end".to_owned());
    }
    if let Some(failure) = failure.borrow_mut().take() {
        return Err(failure);
    }
    let found: Option<Vec<Unit>> = all.borrow_mut().iter_mut().map(|wanted| wanted.found.take()).collect();
    found.ok_or_else(|| "at rest: a unit's device is not there".to_owned())
}

async fn read_unit(domain: &Domain, stob: StobId, extent: BlockExtent) -> Result<Unit, String> {
    // A component that was never written to has no stob, which is as good as absent blocks.
    if domain.stob_blocks(stob).is_none() {
        return Ok((0..extent.count).map(|_| None).collect());
    }
    let outcome = domain.read(stob, &[extent]).await.map_err(|error| error.to_string())?;
    let bytes = outcome.parts.first().ok_or("no bytes came")?;
    let is_absent =
        |block: u64| outcome.absent.iter().any(|absent| (absent.start..absent.end()).contains(&block));
    Ok((extent.start..)
        .zip(bytes.chunks(4096))
        .map(|(block, bytes)| (!is_absent(block)).then(|| bytes.to_vec()))
        .collect())
}

/// Once a pool has grown and everything was moved, no object lies in an older version.
pub fn all_have_moved(world: &World, stats: &[ObjectStat]) -> Result<(), String> {
    let Some(newest) = world.growth.reached() else { return Ok(()) };
    match stats.iter().find(|stat| stat.pool_version != newest) {
        None => Ok(()),
        Some(stat) => Err(format!(
            "at rest: {} lies in pool version {}, and everything was moved to {newest}",
            stat.object, stat.pool_version
        )),
    }
}

/// Every block of every device in service is free, kept, or some stob's, and nobody's twice.
pub fn space_adds_up(world: &World) -> Result<(), String> {
    each_domain(world, |name, device, domain| {
        let info = domain.info();
        let stobs = domain.stobs(None, usize::MAX);
        let written: u64 = stobs.iter().filter_map(|stob| domain.stob_blocks(*stob)).sum();
        if written != info.blocks_used {
            return Err(format!(
                "at rest: device {device} of {name} says that {} blocks are used, and its stobs have {written}",
                info.blocks_used
            ));
        }
        if info.blocks_used + info.blocks_free + info.blocks_kept > info.blocks_total {
            return Err(format!(
                "at rest: device {device} of {name} has more blocks than there are: {info:?}"
            ));
        }
        Ok(())
    })
}

/// After everything was deleted no device in service holds a component object.
pub fn nothing_is_left(world: &World) -> Result<(), String> {
    each_domain(world, |name, device, domain| {
        let left: Vec<StobId> = domain
            .stobs(None, usize::MAX)
            .into_iter()
            .filter(|stob| stob.fid.is(FidType::Component))
            .collect();
        match left.first() {
            None => Ok(()),
            Some(first) => Err(format!(
                "everything is deleted, and device {device} of {name} still holds {} component objects, {first} for one",
                left.len()
            )),
        }
    })
}

/// What a control daemon says at rest: its newest entry, its state then, and who is a member.
#[derive(PartialEq, Eq)]
struct Told {
    entry: u64,
    state: Vec<u8>,
    members: Vec<u64>,
}

impl Told {
    fn by(control: &control::Control) -> Told {
        let (entry, state) = control.state();
        let voters = control.members().members.into_iter().filter(|member| member.is_voter);
        Told { entry, state, members: voters.map(|member| member.number).collect() }
    }
}

/// Every control daemon comes to have the same state, byte for byte, once nothing changes any more.
pub fn daemons_agree(world: &mut World) -> Result<(), String> {
    let told = |world: &World| -> Vec<Told> {
        let slots = world.controls().into_iter().filter_map(|control| world.nodes[control].slot());
        slots.filter_map(|slot| slot.control.borrow().as_ref().map(Told::by)).collect()
    };
    let running: Vec<u64> = (1..)
        .zip(world.controls())
        .filter(|(_, index)| !world.nodes[*index].is_out)
        .map(|(number, _)| number)
        .collect();
    let is_one = |all: &[Told]| {
        all.windows(2).all(|pair| pair[0] == pair[1]) && all.iter().all(|told| told.members == running)
    };
    let until = world.now() + crate::run::START_MAX;
    while world.shape.controls > 1 {
        let all = told(world);
        if all.len() == running.len() && is_one(&all) {
            world.oracle.borrow_mut().sometimes.reached("all control daemons had the same state");
            break;
        }
        if world.now() >= until {
            let tell = |Told { entry, state, members }: &Told| {
                format!("{} bytes at entry {entry} of members {members:?}", state.len())
            };
            return Err(format!(
                "at rest: control daemons {running:?} run and have different states or other members: {}",
                all.iter().map(tell).collect::<Vec<_>>().join(", ")
            ));
        }
        let later = world.now() + LOOK_AT_DAEMONS;
        world.run_until(later, |_| false)?;
    }
    Ok(())
}

fn each_domain(world: &World, look: impl Fn(&str, Fid, &Domain) -> Result<(), String>) -> Result<(), String> {
    for node in &world.nodes {
        let Role::Server { devices, .. } = &node.role else { continue };
        for device in devices.iter().filter(|device| !world.damaged().contains(&device.fid)) {
            if let Some(domain) = node.domain(device.fid) {
                look(&node.name, device.fid, &domain)?;
            }
        }
    }
    Ok(())
}

/// Nobody runs anything or holds more than a node at rest does. `is_late`: so much later that sessions of the dead and slots of calls that were
/// given up have come back too (`rpc::limits::SESSION_LIFETIME`).
pub fn nothing_leaks(world: &World, is_late: bool) -> Result<(), String> {
    // Whoever may have a session with another: each locality, and the copier of each of a server's.
    let members: u64 = world.nodes.iter().map(|node| node.endpoints.len() as u64).sum();
    let mut held_by: BTreeMap<String, u64> = BTreeMap::new();
    let seats = world.nodes.iter().flat_map(|node| {
        let seats = node.life.iter().flat_map(|life| &life.seats).enumerate();
        seats.map(move |(number, seat)| (node, number, seat))
    });
    for (node, number, seat) in seats {
        let Some(rpc) = seat.slot.rpc() else { continue };
        let name = format!("{}.{number}", node.name);
        let stats = rpc.stats();
        let held = seat.locality.handle().arena().in_use_bytes();
        held_by.insert(name.clone(), held);
        let (calls, sessions) = (stats.calls, stats.sessions as u64);
        // Servers ask control for the next fences all the time, and wait there.
        let is_control = matches!(node.role, Role::Control { .. });
        let is_client = matches!(node.role, Role::Client { .. });
        let is_quiet = is_control || (stats.foms_running, stats.foms_waiting) == (0, 0);
        let has_ended =
            !is_late || (sessions <= members && stats.sessions_parked == 0 && (!is_client || calls == 0));
        if !is_quiet || !has_ended {
            return Err(format!(
                "at rest: {name} has {calls} calls without an answer, {} foms that run, {} that wait, {sessions} sessions and {} parked, among {members} members",
                stats.foms_running, stats.foms_waiting, stats.sessions_parked
            ));
        }
        let devices = node.disks().len() as u64;
        if held > BUFFERS_AT_REST_MAX + devices * BUFFERS_OF_A_DEVICE_MAX {
            return Err(format!("at rest: {name} holds {held} bytes of buffers; all: {held_by:?}"));
        }
    }
    Ok(())
}
