//! The simulated cluster and its one thread: turns every node in a fixed order until nobody progresses, then moves the clock.
//!
//! **Invariant**: everything that happens follows from the seed: node order, the net, the disks, the clients, the faults. The trace hash
//! covers each turn that did something, each packet and each operation; the same seed gives the same hash. A node that
//! works on and on without time passing, or a run of too many turns, ends with an error instead of a hang.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use base::nid::NetKind;
use base::{Endpoint, Fid, FidType, Instant, LayoutWidth, Nid, ObjectId};
use client::Client;
use clovis_tests::sim_cut::Cut;
use control::Control;
use faces::{Configuration, DeviceConfig, DeviceState, FurtherPools, PoolConfig, ProcessConfig, SparePhase};
use fops::FopError;
use fops::conf::{DeviceCommand, DeviceOrder};
use fops::member::MemberChange;
use fops::repair::RepairStatus;
use rpc::addb::Record;
use rpc::{Bulk, CallError, CallOptions, Phase};
use runtime::LocalityHandle;
use runtime::clock::SimulatedClock;
use server::Server;
use spdk_stob::{SimDisk, TraceEvent};
use verbs_net::{SimFabric, SimFaults, SimKeys};

use crate::cluster_file::{Acknowledged, ClusterText, Operator};
use crate::faults::{Ailment, Cast, DRIFT_ALLOWED, Fault};
use crate::growth::Growth;
use crate::leases::LeaseWatch;
use crate::membership::{Membership, Step};
use crate::mutation::Mutation;
use crate::node::{LEASE, Node, Role, Seat, SimDevice, Slot, Surroundings};
use crate::operator;
use crate::oracle::Oracle;
use crate::replacement::Replacements;
use crate::shape::Shape;
use crate::sometimes::Sometimes;
use crate::workload;

/// K of the layout.
pub const PARITY: usize = 2;
const UNIT_BYTES: u32 = 8192;
const DEVICE_BLOCKS: u64 = 8192;
const CONTROL_BLOCKS: u64 = 4096;
const CLUSTER: u64 = 0xc10;
/// Rounds without time passing before a run counts as a livelock.
const ROUNDS_MAX: u32 = 200_000;
/// Events of control that are told of a run that does not come to rest.
const LAST_EVENTS: usize = 24;
/// Turns of one run.
const TURNS_MAX: u64 = 200_000_000;
/// How often it is looked whether chosen blocks may rot.
const ROT_LOOK: Duration = Duration::from_millis(30);
/// How many times slower a new disk is that is slow.
const SLOW_NEW_DISK: u32 = 100;
/// A replacement that is not done is looked at again so much later.
const REPLACE_AGAIN: Duration = Duration::from_millis(300);
/// A change of members that is not done is asked for again so much later.
const MEMBERS_AGAIN: Duration = Duration::from_millis(150);
/// A pool that has not grown is looked at again so much later.
const GROW_AGAIN: Duration = Duration::from_millis(300);
/// A control daemon that has left is retired so much later.
const RETIRED_AFTER: Duration = Duration::from_millis(1500);
/// A supervisor starts a node again so long after its start failed.
const START_AGAIN: Duration = Duration::from_millis(150);
/// A leading control daemon that was waited for comes back so long after it lost power.
const AMBUSHED_FOR: Duration = Duration::from_millis(1200);

/// See the module head.
pub struct World {
    pub clock: Rc<SimulatedClock>,
    pub shape: Shape,
    pub fabric: SimFabric,
    /// The net has RDMA's shape.
    is_remote: bool,
    pub nodes: Vec<Node>,
    pub oracle: Rc<RefCell<Oracle>>,
    pub configuration: Configuration,
    pub seed: u64,
    pub stop_work: Rc<Cell<bool>>,
    /// Faults come no more: nothing is doubtful.
    pub is_calm: bool,
    pub operations_max: u64,
    /// Draws how far each machine's clock is ahead.
    clocks: fastrand::Rng,
    leases: LeaseWatch,
    mutation: Option<Mutation>,
    epoch: u64,
    agenda: BTreeMap<(Instant, u64), Fault>,
    agenda_count: u64,
    turns: u64,
    /// A fault happened since the nodes were looked at.
    has_happened: bool,
    /// Who loses power once more was heard of locks than this.
    ambush: Option<(Ambushed, u64)>,
    /// Two control daemons believe that they lead.
    has_rivals: bool,
    /// Of several control daemons, the one that was elected in a term.
    elected: BTreeMap<u64, usize>,
    lost: BTreeSet<Fid>,
    damaged: BTreeSet<Fid>,
    /// Devices that an operator wanted out at some time.
    pub taken_out: BTreeSet<usize>,
    /// Orders about devices that have no answer yet: they may be carried out at any time.
    orders: Rc<Cell<usize>>,
    rots: Vec<Rot>,
    replacements: Replacements,
    membership: Membership,
    pub growth: Growth,
    /// What operators make the cluster file of, where they change it.
    cluster_text: Option<Rc<ClusterText>>,
    pub acknowledged: Rc<RefCell<Acknowledged>>,
}

/// Who is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ambushed {
    /// Of several control daemons, whichever leads by then.
    Control(usize),
    Controls,
}

/// Nodes that did something since they were looked at last, or that something was done to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Touched(u64);

impl Touched {
    const EVERYBODY: Touched = Touched(u64::MAX);

    fn add(&mut self, index: usize) {
        assert!(index < 64, "a simulated cluster has fewer nodes");
        self.0 |= 1 << index;
    }

    fn has(self, index: usize) -> bool {
        self.0 >> index & 1 == 1
    }
}

/// Blocks chosen to rot: each with the bit and the content that it was chosen with.
#[derive(Default)]
struct Rot {
    device: usize,
    record: Option<(u64, u64)>,
    bits: Vec<(u64, usize, Vec<u8>)>,
    /// The blocks get each other's content instead: each the one before it.
    misdirected: bool,
}

/// One of those that are counted, until it is dropped: done, or gone with its node.
struct UnderWay(Rc<Cell<usize>>);

impl UnderWay {
    fn begin(count: &Rc<Cell<usize>>) -> UnderWay {
        count.set(count.get() + 1);
        UnderWay(Rc::clone(count))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Where a device keeps bytes of stobs.
fn data_region() -> base::BlockExtent {
    spdk_stob::format::regions::Regions::for_device(DEVICE_BLOCKS).expect("the devices are large enough").data
}

/// How far a machine's clock is ahead of true time: machines start when they like.
fn ahead(random: &mut fastrand::Rng) -> Duration {
    Duration::from_nanos(random.u64(0..1_000_000_000_000_000))
}

fn endpoint(index: usize) -> Endpoint {
    let number = u16::try_from(index + 1).expect("few nodes");
    Endpoint { nid: Nid::new(NetKind::Sim, u32::from(number)), pid: 12345, portal: 34, tmid: number }
}

/// Where locality `seat` of a server at `at` listens: at another port of its machine.
fn seat_of(at: Endpoint, seat: usize) -> Endpoint {
    let ports = u16::try_from(seat * 256).expect("few localities");
    Endpoint { tmid: at.tmid + ports, ..at }
}

impl World {
    /// A cluster that is not started yet: control, servers, and the first clients of its shape.
    pub fn new(seed: u64, mutation: Option<Mutation>, shape: Shape, cut: &Cut) -> World {
        let data_units = shape.data_units;
        let mut random = fastrand::Rng::with_seed(seed);
        let control = endpoint(0);
        let mut clocks = fastrand::Rng::with_seed(seed ^ 0xc10c);
        let mut nodes = Vec::new();
        let disk = SimDisk::new(random.u64(..), CONTROL_BLOCKS, spdk_stob::SimFaults::default());
        let role = Role::Control { number: 1, disk };
        nodes.push(Node::new("control".to_owned(), control, role, ahead(&mut clocks)));
        let mut processes = Vec::new();
        let mut devices = Vec::new();
        for server in 0..shape.servers {
            let (process, at) = (Fid::new(FidType::Process, 1, server as u64 + 1), endpoint(server + 1));
            let seats: Vec<Endpoint> = (0..shape.localities).map(|seat| seat_of(at, seat)).collect();
            processes.push(ProcessConfig { process, endpoint: at, epoch: 0 });
            let mut own = Vec::new();
            for device in 0..shape.devices_per_server {
                let fid =
                    Fid::new(FidType::Device, 1, (server * shape.devices_per_server + device) as u64 + 1);
                let seat = device % shape.localities;
                devices.push(DeviceConfig {
                    device: fid,
                    process,
                    endpoint: seats[seat],
                    state: DeviceState::Unknown,
                    size_blocks: 0,
                    replaced: 0,
                });
                let disk = SimDisk::new(random.u64(..), DEVICE_BLOCKS, spdk_stob::SimFaults::default());
                own.push(SimDevice { fid, disk, seat });
            }
            let role = Role::Server { process, seats, devices: own };
            nodes.push(Node::new(format!("server {server}"), at, role, ahead(&mut clocks)));
        }
        for number in 2..=shape.control_nodes() as u64 {
            let disk = SimDisk::new(random.u64(..), CONTROL_BLOCKS, spdk_stob::SimFaults::default());
            let (at, role) = (endpoint(nodes.len()), Role::Control { number, disk });
            let mut node = Node::new(format!("control {number}"), at, role, ahead(&mut clocks));
            node.is_out = number > shape.controls as u64;
            nodes.push(node);
        }
        let configuration = Configuration {
            pools: FurtherPools::none(shape.first_devices()),
            spares: faces::Spares::default(),
            version: 1,
            cluster: CLUSTER,
            profile: Fid::new(FidType::Profile, 1, 1),
            control,
            processes,
            pool: PoolConfig {
                pool: Fid::new(FidType::Pool, 1, 1),
                pool_version: Fid::new(FidType::PoolVersion, 1, 1),
                width: LayoutWidth::new(data_units, 2, 1).expect("a valid layout"),
                unit_bytes: UNIT_BYTES,
                devices,
                awaited_disks: Vec::new(),
                changes_from: 0,
            },
        };
        // A quarter of the seeds has RDMA's shape under it; the seeded bugs are looked for without.
        let net_seed = random.u64(..);
        let fabric = match (mutation, seed % 8) {
            (None, 2) => SimFabric::with_remote_access(net_seed, SimKeys::Windows),
            (None, 4) => SimFabric::with_remote_access(net_seed, SimKeys::Pool),
            _ => SimFabric::new(net_seed),
        };
        let mut world = World {
            clock: Rc::new(SimulatedClock::new()),
            shape,
            is_remote: mutation.is_none() && matches!(seed % 8, 2 | 4),
            fabric,
            nodes,
            oracle: Rc::new(RefCell::new(Oracle::new(workload::objects(&shape)))),
            configuration,
            seed,
            stop_work: Rc::new(Cell::new(false)),
            is_calm: false,
            operations_max: cut.operations.unwrap_or(u64::MAX),
            clocks,
            leases: LeaseWatch::default(),
            mutation,
            epoch: 0,
            agenda: BTreeMap::new(),
            agenda_count: 0,
            turns: 0,
            has_happened: true,
            ambush: None,
            has_rivals: false,
            elected: BTreeMap::new(),
            lost: BTreeSet::new(),
            damaged: BTreeSet::new(),
            taken_out: BTreeSet::new(),
            orders: Rc::default(),
            rots: Vec::new(),
            replacements: Replacements::default(),
            membership: Membership::default(),
            growth: Growth::of(seed),
            cluster_text: None,
            acknowledged: Rc::default(),
        };
        let has_file = shape.has_newcomer || shape.has_growth;
        world.cluster_text = has_file.then(|| Rc::new(world.first_cluster_text()));
        world.clock.advance(Duration::from_secs(1));
        world.nodes.iter_mut().for_each(|node| node.join(&world.fabric));
        for (workers, think_ms_max) in shape.clients.iter().take(cut.clients.unwrap_or(usize::MAX)) {
            world.add_client(*workers, Duration::from_millis(*think_ms_max), false);
        }
        world
    }

    fn first_cluster_text(&self) -> ClusterText {
        let localities = self.nodes.iter().filter_map(|node| match &node.role {
            Role::Server { seats, .. } => Some(seats.clone()),
            _ => None,
        });
        let members: Vec<Endpoint> =
            self.controls().into_iter().map(|control| self.nodes[control].endpoint).collect();
        let text = ClusterText::new(&self.configuration, &localities.collect::<Vec<_>>(), &members);
        assert_eq!(
            text.configuration(self.shape.controls),
            self.configuration,
            "one cluster, said in two ways"
        );
        text
    }

    /// Adds a client node, not started.
    pub fn add_client(&mut self, workers: usize, think_max: Duration, read_verify: bool) -> usize {
        let index = self.nodes.len();
        let nid = endpoint(index).nid;
        let at = verbs_net::dynamic_endpoint(nid, 1000 + u32::try_from(index).expect("few nodes"), 7);
        let role = Role::Client { workers, think_max, read_verify };
        let mut node = Node::new(format!("client {index}"), at, role, ahead(&mut self.clocks));
        node.join(&self.fabric);
        self.nodes.push(node);
        index
    }

    pub fn cast(&self) -> Cast {
        let of = |wanted: fn(&Role) -> bool| -> Vec<usize> {
            (0..self.nodes.len()).filter(|index| wanted(&self.nodes[*index].role)).collect()
        };
        Cast {
            controls: self.controls(),
            servers: of(|role| matches!(role, Role::Server { .. })),
            clients: of(|role| matches!(role, Role::Client { .. })),
            devices: self.configuration.pool.devices.len(),
            damage_max: PARITY,
            bad_starts: self.shape.bad_starts,
            has_crowds: self.shape.has_few_sessions,
            has_newcomer: self.shape.has_newcomer,
            has_growth: self.shape.has_growth,
            has_repairs: self.shape.has_repairs,
            more_cuts: self.shape.more_cuts,
        }
    }

    /// The control daemons.
    pub fn controls(&self) -> Vec<usize> {
        let further = self.shape.servers + 1..self.shape.servers + self.shape.control_nodes();
        std::iter::once(0).chain(further).collect()
    }

    /// The control daemon that decides; of several that believe to do, the one that was elected last.
    pub fn leader(&self) -> Option<usize> {
        let decides = |index: &usize| {
            let slot = self.nodes[*index].slot()?;
            let control = slot.control.borrow();
            control.as_ref().filter(|control| control.decides())?.leads_in().or(Some(0))
        };
        self.controls()
            .into_iter()
            .filter_map(|index| Some((decides(&index)?, index)))
            .max()
            .map(|(_, index)| index)
    }

    /// True if this one of several control daemons believes that it leads.
    fn leads(&self, control: usize) -> bool {
        let slot = self.nodes[control].slot().map(|slot| slot.control.borrow());
        slot.as_ref().and_then(|slot| slot.as_ref()).is_some_and(|control| control.leads_in().is_some())
    }

    /// What the control daemon that decides says, if there is one.
    pub fn ask_control<T>(&self, question: impl FnOnce(&Control) -> T) -> Option<T> {
        let control = self.nodes[self.leader()?].slot()?.control.borrow();
        control.as_ref().map(question)
    }

    /// What happened last to whom, as control says.
    pub fn last_events(&self) -> Vec<String> {
        let events = self.ask_control(Control::events).unwrap_or_default();
        let line = |event: &fops::conf::Event| {
            let fops::conf::Event { number, version, subject, cause, from, to, .. } = event;
            format!("event {number}, version {version}: {subject} {cause}: {from} to {to}")
        };
        events.iter().skip(events.len().saturating_sub(LAST_EVENTS)).map(line).collect()
    }

    /// Slots of spare units, by device index, of devices whose units stand there.
    pub fn spares(&self) -> BTreeMap<u32, u32> {
        let slots = self.ask_control(|control| control.configuration().spares.slots.clone());
        let is_there =
            |phase| matches!(phase, SparePhase::Filling | SparePhase::Standing | SparePhase::Returning);
        let there = slots.into_iter().flatten().filter(|slot| is_there(slot.phase));
        there.map(|slot| (slot.device, slot.slot)).collect()
    }

    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    pub fn plan(&mut self, at: Instant, fault: Fault) {
        self.agenda_count += 1;
        self.agenda.insert((at, self.agenda_count), fault);
    }

    pub fn forget_plans(&mut self) {
        self.agenda.clear();
        self.ambush = None;
    }

    pub fn is_damaged(&self) -> bool {
        !self.damaged.is_empty()
    }

    /// Devices lost or rotten.
    pub fn damaged(&self) -> &BTreeSet<Fid> {
        &self.damaged
    }

    // ------------------------------------------------------------ time

    /// Runs until `done`, at most to `until`. Ok(true): done. Errors: a violation, a livelock, a hung operation.
    pub fn run_until(
        &mut self,
        until: Instant,
        mut done: impl FnMut(&World) -> bool,
    ) -> Result<bool, String> {
        loop {
            let deadline = self.settle()?;
            if done(self) {
                return Ok(true);
            }
            if self.now() >= until {
                return Ok(false);
            }
            let agenda = self.agenda.first_key_value().map(|((at, _), _)| *at);
            let next = [deadline, agenda].into_iter().flatten().min().unwrap_or(Instant::NEVER);
            self.clock.advance_to(next.min(until).max(self.now()));
            while let Some(entry) = self.agenda.first_entry() {
                if entry.key().0 > self.clock.now() {
                    break;
                }
                let fault = entry.remove();
                self.happen(fault);
            }
        }
    }

    /// Turns everybody until nobody progresses. The next deadline.
    fn settle(&mut self) -> Result<Option<Instant>, String> {
        let now = self.now();
        for _ in 0..ROUNDS_MAX {
            let mut progressed = false;
            let mut deadline = Instant::NEVER;
            let mut busy = 0;
            let mut touched = Touched::default();
            for (index, node) in self.nodes.iter_mut().enumerate() {
                for seat in 0..node.seat_count() {
                    let due = node.due(seat, now);
                    let turn = if due <= now { node.turn(seat, now) } else { None };
                    let Some(turn) = turn else {
                        deadline = deadline.min(due);
                        continue;
                    };
                    self.turns += 1;
                    if turn.progressed {
                        progressed = true;
                        touched.add(index);
                        busy = index;
                        node.held_until = now + node.rest;
                        self.oracle.borrow_mut().hash.add(&[now.as_nanos(), index as u64, seat as u64]);
                    }
                    let next = turn.next_deadline.map_or(Instant::NEVER, |at| node.clock.first_time_of(at));
                    deadline = deadline.min(next);
                }
            }
            if let Some(violation) = &self.oracle.borrow().violation {
                return Err(violation.clone());
            }
            // Where nobody did anything there is nothing new to look at.
            if std::mem::take(&mut self.has_happened) {
                touched = Touched::EVERYBODY;
            }
            if progressed || touched == Touched::EVERYBODY {
                progressed |= self.spring_ambush() | self.look_after_nodes(touched)?;
                self.look_at_leases(touched)?;
            }
            if !progressed {
                if let Some(hung) = self.oracle.borrow().hung(now) {
                    return Err(format!("at {now:?}: an operation never ends: {hung}"));
                }
                if deadline > now {
                    return Ok(Some(deadline).filter(|at| *at != Instant::NEVER));
                }
                // A deadline that is due and whose turn did nothing: a few are innocent, ROUNDS_MAX of them are not.
            }
            if self.turns > TURNS_MAX {
                return Err(format!("at {now:?}: more than {TURNS_MAX} turns: node {busy} may never rest"));
            }
        }
        let nodes: Vec<String> = self
            .nodes
            .iter_mut()
            .filter_map(|node| {
                let shown = node.clock.shows(now);
                let turns: Vec<_> = (0..node.seat_count()).filter_map(|seat| node.turn(seat, now)).collect();
                let is_due = |turn: &runtime::Turn| turn.next_deadline.is_some_and(|at| at <= shown);
                let busy = turns.iter().any(|turn| turn.progressed || is_due(turn));
                busy.then(|| format!("{} ({turns:?})", node.name))
            })
            .collect();
        Err(format!(
            "livelock: after {ROUNDS_MAX} rounds time still stands at {now:?}; busy: {}",
            nodes.join(", ")
        ))
    }

    /// True if a node that was waited for lost power.
    fn spring_ambush(&mut self) -> bool {
        let heard = self.oracle.borrow().keys.heard;
        let Some((ambushed, _)) = self.ambush.filter(|(_, before)| heard > *before) else { return false };
        self.ambush = None;
        let victims = match ambushed {
            Ambushed::Controls => self.controls(),
            Ambushed::Control(node) if self.shape.controls == 1 => vec![node],
            Ambushed::Control(_) => {
                let leader: Vec<usize> = self.leader().into_iter().collect();
                leader
                    .iter()
                    .for_each(|node| self.plan(self.now() + AMBUSHED_FOR, Fault::Start { node: *node }));
                leader
            }
        };
        for node in victims {
            if self.nodes[node].life.is_some() {
                self.note_crash(node);
                self.crash(node);
                self.oracle.borrow_mut().sometimes.reached("control lost power with an answer just gone");
            }
        }
        true
    }

    /// Starts that failed are tried again; nodes that stopped in good order are taken down. True if anything changed.
    fn look_after_nodes(&mut self, touched: Touched) -> Result<bool, String> {
        let mut changed = false;
        for index in 0..self.nodes.len() {
            let node = &self.nodes[index];
            if node.life.is_none() || !touched.has(index) {
                continue;
            }
            let failed = node.slots().find_map(|slot| slot.failed.borrow_mut().take());
            let (is_up, is_stopped) = (node.is_up(), node.slots().all(|slot| slot.is_stopped.get()));
            if let Some((reason, is_ours)) = failed {
                let text =
                    format!("at {:?}: {} does not start: {reason}", self.now(), self.nodes[index].name);
                if is_ours {
                    return Err(text);
                }
                self.nodes[index].last_failure = Some(text);
                self.crash(index);
                self.plan(self.now() + START_AGAIN, Fault::Start { node: index });
                changed = true;
            } else if is_stopped {
                self.collect(index)?;
                self.nodes[index].endpoints.iter().for_each(|at| self.fabric.crash(*at));
                self.nodes[index].life = None;
                let is_control = matches!(self.nodes[index].role, Role::Control { .. });
                let is_elected = |other: &usize| self.leads(*other);
                let is_followed = self.controls().iter().any(is_elected);
                self.oracle.borrow_mut().sometimes.reached(match (is_control, is_followed) {
                    (true, true) => "a control daemon that led handed over and stopped",
                    (true, false) => "a control daemon that led stopped, and nobody followed it yet",
                    (false, _) => "a server was stopped and started again",
                });
                changed = true;
            } else if is_up && !self.nodes[index].was_up {
                self.nodes[index].was_up = true;
            }
        }
        for (fid, by_spares) in self.replacements.take_restored() {
            let index = self.configuration.target_index(fid).expect("a device of the pool");
            self.device(index as usize).disk.slow_down(1);
            // Its bytes are all there again: another device may be damaged instead.
            self.lost.remove(&fid);
            self.damaged.remove(&fid);
            let mut oracle = self.oracle.borrow_mut();
            oracle.damaged = self.damaged.len();
            oracle.rebuild();
            oracle.sometimes.reached("a replaced device was whole again");
            if by_spares {
                oracle.sometimes.reached("units came back from spare units");
            }
            changed = true;
        }
        let down = self
            .nodes
            .iter()
            .filter(|node| matches!(node.role, Role::Server { .. }) && !node.is_up())
            .count();
        self.oracle.borrow_mut().servers_down = down;
        Ok(changed)
    }

    // ------------------------------------------------------------ what happens

    fn happen(&mut self, fault: Fault) {
        let now = self.now();
        self.has_happened = true;
        self.oracle.borrow_mut().hash.add_text(&format!("{now:?} {fault:?}"));
        self.oracle.borrow().tell(now, || format!("fault: {fault:?}"));
        if !self.is_calm {
            self.oracle.borrow_mut().registers.is_troubled = true;
        }
        let pairs = |world: &World, from: usize, to: usize| -> Vec<(Endpoint, Endpoint)> {
            let (from, to) = (&world.nodes[from].endpoints, &world.nodes[to].endpoints);
            from.iter().flat_map(|from| to.iter().map(|to| (*from, *to))).collect()
        };
        match fault {
            Fault::Net(faults) => self.fabric.set_faults(faults),
            Fault::Partition { from, to } => {
                pairs(self, from, to).into_iter().for_each(|(from, to)| self.fabric.partition(from, to));
            }
            Fault::RefuseAfter { from, to, packets } => {
                let between = pairs(self, from, to).into_iter();
                between.for_each(|(from, to)| self.fabric.refuse_after(from, to, packets));
            }
            Fault::Damage { from, to } => {
                let damaged = SimFaults {
                    corrupt_per_mille: 1000,
                    queue_pair_death_per_mille: 1000,
                    ..SimFaults::NONE
                };
                let between = pairs(self, from, to).into_iter();
                between.for_each(|(from, to)| self.fabric.set_link_faults(from, to, Some(damaged)));
            }
            Fault::Heal { from, to } => {
                for (from, to) in pairs(self, from, to) {
                    self.fabric.heal(from, to);
                    self.fabric.set_link_faults(from, to, None);
                }
            }
            Fault::Crash { node } => {
                if self.nodes[node].life.is_some() {
                    self.note_crash(node);
                    self.crash(node);
                }
            }
            Fault::Ambush { node } => {
                self.ambush = Some((Ambushed::Control(node), self.oracle.borrow().keys.heard));
            }
            Fault::AmbushControls => {
                self.ambush = Some((Ambushed::Controls, self.oracle.borrow().keys.heard))
            }
            Fault::Start { node } => {
                self.ambush = self.ambush.filter(|(ambushed, _)| *ambushed != Ambushed::Control(node));
                self.start(node);
            }
            Fault::StartControls => {
                self.ambush = self.ambush.filter(|(ambushed, _)| *ambushed != Ambushed::Controls);
                self.controls().into_iter().for_each(|node| self.start(node));
            }
            Fault::CrashLeader => {
                if let Some(node) = self.leader() {
                    self.note_crash(node);
                    self.crash(node);
                }
            }
            Fault::PauseLeader { length } => {
                if let Some(node) = self.leader() {
                    self.pause(node, length);
                }
            }
            Fault::StopLeader => {
                if let Some(node) = self.leader() {
                    self.stop_control(node);
                }
            }
            Fault::CutLeader { beside } => {
                let Some(leader) = self.leader() else { return };
                let others = (0..self.nodes.len()).filter(|node| ![leader, beside].contains(node));
                for (one, other) in others.flat_map(|other| [(leader, other), (other, leader)]) {
                    pairs(self, one, other)
                        .into_iter()
                        .for_each(|(from, to)| self.fabric.partition(from, to));
                }
                self.oracle.borrow_mut().sometimes.reached("the leading control daemon was cut off");
            }
            Fault::SplitControls { side } => {
                let controls = self.controls();
                let leader = self.leader();
                let is_here = |place: usize| match side {
                    Some(side) => side >> place & 1 == 1,
                    None => leader == Some(controls[place]),
                };
                for (one, from) in controls.iter().enumerate() {
                    for (other, to) in controls.iter().enumerate() {
                        if is_here(one) != is_here(other) {
                            let between = pairs(self, *from, *to);
                            between.into_iter().for_each(|(from, to)| self.fabric.partition(from, to));
                        }
                    }
                }
            }
            Fault::HealControls => {
                for (control, other) in self
                    .controls()
                    .into_iter()
                    .flat_map(|control| (0..self.nodes.len()).map(move |other| (control, other)))
                {
                    for (from, to) in [(control, other), (other, control)] {
                        pairs(self, from, to).into_iter().for_each(|(from, to)| self.fabric.heal(from, to));
                    }
                }
            }
            Fault::Stop { node } => self.stop(node),
            Fault::LoseDevice { device } => self.lose_device(device),
            Fault::Rot { device, blocks, random, misdirected } => {
                self.rot(device, blocks, random, misdirected)
            }
            Fault::Ail { device, ailment } => self.ail(device, ailment),
            Fault::Pause { node, length } => self.pause(node, length),
            Fault::SlowNode { node, rest } => {
                if !rest.is_zero() && self.nodes[node].life.is_some() {
                    self.oracle.borrow_mut().sometimes.reached("a node was slow");
                }
                self.nodes[node].rest = rest;
            }
            Fault::Drift { node, rate_per_mille } => self.drift(node, rate_per_mille),
            Fault::Detach { device } => self.order(device, DeviceOrder::Detach { force: false }),
            Fault::Attach { device } => self.order(device, DeviceOrder::Attach),
            Fault::Replace { device } => self.replace(device),
            Fault::ChangeMembers { is_leader, other } => self.change_members(is_leader, other),
            Fault::Grow => self.grow(),
            Fault::RotChosen { choice } => self.rot_chosen(choice),
            Fault::Slow { device, factor } => self.device(device).disk.slow_down(factor),
        }
    }

    fn note_crash(&mut self, node: usize) {
        let is_leader = self.shape.controls > 1 && self.leader() == Some(node);
        let mut oracle = self.oracle.borrow_mut();
        if self.nodes[node].seat_count() > 1 {
            oracle.sometimes.reached("a server of several localities lost power");
        }
        match &self.nodes[node].role {
            Role::Control { .. } => {
                oracle.sometimes.reached("control lost power");
                if is_leader {
                    oracle.sometimes.reached("the leading control daemon lost power");
                }
            }
            Role::Server { .. } if oracle.changes_running() > 0 => {
                oracle.sometimes.reached("a server lost power while changes were under way");
            }
            _ => {}
        }
        drop(oracle);
        let servers_up =
            self.nodes.iter().filter(|node| matches!(node.role, Role::Server { .. }) && node.life.is_some());
        if servers_up.count() == 1 && matches!(self.nodes[node].role, Role::Server { .. }) {
            self.oracle.borrow_mut().sometimes.reached("everything lost power at once");
        }
    }

    pub fn start(&mut self, index: usize) {
        if self.nodes[index].life.is_some() || self.nodes[index].is_out {
            return;
        }
        self.epoch += 1;
        let epoch = match self.mutation {
            Some(Mutation::EpochReused) => 1 + index as u64,
            _ => self.epoch,
        };
        let controls: Vec<Endpoint> =
            self.controls().into_iter().map(|control| self.nodes[control].endpoint).collect();
        let around = Surroundings {
            index,
            fabric: &self.fabric,
            oracle: &self.oracle,
            configuration: &self.configuration,
            controls: &controls,
            founders: self.shape.controls,
            cluster_text: self.cluster_text.as_ref(),
            is_file_changed: self.shape.has_newcomer,
            acknowledged: &self.acknowledged,
            sessions_max: self.shape.sessions_max(),
            mutation: self.mutation,
            seed: self.seed,
            epoch,
            stop_work: &self.stop_work,
            clock: &self.clock,
            operations_max: self.operations_max,
            rate_max: self.shape.rate_max,
            are_objects_small: self.shape.are_objects_small,
        };
        self.nodes[index].start(&around);
        self.oracle.borrow().tell(self.clock.now(), || format!("{} starts", self.nodes[index].name));
    }

    /// The node loses power.
    pub fn crash(&mut self, index: usize) {
        if self.nodes[index].life.is_none() {
            return;
        }
        if let Err(violation) = self.collect(index) {
            self.oracle.borrow_mut().violate(self.clock.now(), violation);
        }
        self.nodes[index].endpoints.iter().for_each(|at| self.fabric.crash(*at));
        for disk in self.nodes[index].disks() {
            disk.crash();
        }
        self.oracle.borrow_mut().abandon(index, self.clock.now());
        let life = self.nodes[index].life.take();
        self.nodes[index].held_until = Instant::ZERO;
        drop(life);
    }

    /// Asks a server to stop in good order: all of its localities.
    fn stop(&mut self, index: usize) {
        let node = &self.nodes[index];
        let is_whole = node.slots().all(|slot| slot.server.borrow().is_some() && !slot.is_stopping.get());
        let Some(life) = node.life.as_ref().filter(|_| is_whole) else { return };
        for seat in &life.seats {
            let Some(server) = seat.slot.server.borrow_mut().take() else { continue };
            seat.slot.is_stopping.set(true);
            seat.slot.is_up.set(false);
            let slot = Rc::clone(&seat.slot);
            let (oracle, clock) = (Rc::clone(&self.oracle), Rc::clone(&self.clock));
            seat.locality.handle().spawn("stop", async move {
                if let Err(error) = server.stop().await
                    && oracle.borrow().damaged == 0
                {
                    oracle.borrow_mut().violate(clock.now(), format!("a server does not stop: {error}"));
                }
                slot.is_stopped.set(true);
            });
        }
    }

    /// Asks a control daemon to stop in good order.
    fn stop_control(&mut self, index: usize) {
        let Some(life) = &self.nodes[index].life else { return };
        let seat = life.first();
        let Some(control) = seat.slot.control.borrow_mut().take() else { return };
        note_member(&mut self.oracle.borrow_mut().sometimes, &control);
        seat.slot.is_stopping.set(true);
        seat.slot.is_up.set(false);
        let slot = Rc::clone(&seat.slot);
        let (oracle, clock) = (Rc::clone(&self.oracle), Rc::clone(&self.clock));
        seat.locality.handle().spawn("stop", async move {
            if let Err(error) = control.stop().await {
                oracle.borrow_mut().violate(clock.now(), format!("a control daemon does not stop: {error}"));
            }
            slot.is_stopped.set(true);
        });
    }

    fn device(&mut self, index: usize) -> &mut SimDevice {
        let (server, device) =
            (index / self.shape.devices_per_server + 1, index % self.shape.devices_per_server);
        match &mut self.nodes[server].role {
            Role::Server { devices, .. } => &mut devices[device],
            _ => unreachable!("servers follow the first control daemon"),
        }
    }

    /// The node that owns a device, by fid.
    pub fn owner(&self, fid: Fid) -> Option<usize> {
        self.nodes.iter().position(|node| match &node.role {
            Role::Server { devices, .. } => devices.iter().any(|device| device.fid == fid),
            _ => false,
        })
    }

    pub fn lose_device(&mut self, index: usize) {
        let device = self.device(index);
        device.disk.fail_with_eio(true);
        let fid = device.fid;
        self.lost.insert(fid);
        self.damaged.insert(fid);
        let mut oracle = self.oracle.borrow_mut();
        oracle.damaged = self.damaged.len();
        oracle.sometimes.reached("a device was lost");
    }

    /// A device begins to fail. It counts as lost: from now on it may be out of service.
    fn ail(&mut self, index: usize, ailment: Ailment) {
        let disk = self.device(index).disk.clone();
        let what = match ailment {
            Ailment::Flushes => {
                disk.fail_flushes(true);
                "flushes of a device failed"
            }
            Ailment::WritesAfter(count) => {
                disk.fail_writes_after(Some(count));
                "writes of a device failed"
            }
            Ailment::FullAfter(count) => {
                disk.fill_up_after(Some(count));
                "a device was full"
            }
            Ailment::BadBlocks { count, random } => {
                let mut random = fastrand::Rng::with_seed(random);
                let data = data_region();
                for _ in 0..count * 4 {
                    let block = data.start + random.u64(0..data.count / 8);
                    if disk.content(block).iter().any(|byte| *byte != 0) {
                        disk.fail_block(block);
                    }
                }
                "blocks of a device could not be read"
            }
        };
        let fid = self.device(index).fid;
        self.lost.insert(fid);
        self.damaged.insert(fid);
        let mut oracle = self.oracle.borrow_mut();
        oracle.damaged = self.damaged.len();
        oracle.sometimes.reached(what);
    }

    // ------------------------------------------------------------ time of single nodes, operators

    /// The node's thread does nothing for `length`.
    fn pause(&mut self, node: usize, length: Duration) {
        let now = self.now();
        let held = &mut self.nodes[node];
        if held.life.is_none() {
            return;
        }
        held.held_until = held.held_until.max(now + length);
        let mut oracle = self.oracle.borrow_mut();
        oracle.sometimes.reached(match &held.role {
            Role::Control { .. } => "control was paused",
            Role::Server { .. } if length > LEASE => "a server was paused for longer than its lease",
            Role::Server { .. } => "a server was paused",
            Role::Client { .. } => "a client was paused",
        });
    }

    /// The node's clock runs at another rate from now on.
    fn drift(&mut self, node: usize, rate_per_mille: u32) {
        let now = self.now();
        let drifting = &mut self.nodes[node];
        drifting.set_clock(&self.fabric, drifting.clock.at_rate(now, rate_per_mille));
        let is_allowed = DRIFT_ALLOWED.contains(&rate_per_mille);
        if !is_allowed {
            self.leases.excuse(node);
        }
        let mut oracle = self.oracle.borrow_mut();
        if rate_per_mille != 1000 {
            oracle.sometimes.reached(match is_allowed {
                true => "a clock drifted within what leases allow",
                false => "a clock drifted by more than leases allow",
            });
        }
    }

    /// Everybody's time is true again, and goes on.
    pub fn end_time_faults(&mut self) {
        for node in 0..self.nodes.len() {
            self.nodes[node].held_until = Instant::ZERO;
            self.nodes[node].rest = Duration::ZERO;
            self.drift(node, 1000);
        }
    }

    /// An operator gives an order about a device, at the first client that is up; it is tried once, and its answer is counted.
    pub fn order(&mut self, device: usize, order: DeviceOrder) {
        self.taken_out.insert(device);
        let device = self.configuration.pool.devices[device].device;
        let Some((client, locality)) = self.first_client() else { return };
        let (oracle, clock, handle) = (Rc::clone(&self.oracle), Rc::clone(&self.clock), locality.clone());
        let control = self.configuration.control;
        let under_way = UnderWay::begin(&self.orders);
        locality.spawn("order", async move {
            let _under_way = under_way;
            let options = CallOptions::until(handle.now() + operator::ANSWER_TIME);
            let command = DeviceCommand { device, order };
            let began = oracle.borrow_mut().keys.begin_order();
            let result = client.rpc().call(control, &command, Bulk::none(), options).await;
            let mut oracle = oracle.borrow_mut();
            if let Ok(answer) = &result {
                oracle.keys.end_order(began, &answer.reply);
            }
            oracle.tell(clock.now(), || format!("order {order:?} of {device}: {result:?}"));
            if let Ok(answer) = result
                && answer.reply.is_new
            {
                oracle.sometimes.reached(match order {
                    DeviceOrder::Attach => "an operator took a device back",
                    _ => "an operator took a device out",
                });
            }
        });
    }

    /// A failed device gets another disk, and an operator at the first client that is up gives the order and looks until its server has copied all to it. Tried again until
    /// that is done: anything may go wrong meanwhile.
    fn replace(&mut self, index: usize) {
        self.plan(self.now() + REPLACE_AGAIN, Fault::Replace { device: index });
        let fid = self.configuration.pool.devices[index].device;
        let found = self.ask_control(|control| control.configuration().device(fid).cloned()).flatten();
        let failed = found.filter(|found| found.state == DeviceState::Failed && self.lost.contains(&fid));
        if failed.is_some_and(|found| self.replacements.begin(fid, found.replaced)) {
            let disk = SimDisk::new(self.seed ^ fid.key, DEVICE_BLOCKS, spdk_stob::SimFaults::default());
            if (self.seed ^ fid.key) & 3 != 0 {
                // Three new disks in four are slow until they are whole: what is copied is under way for longer.
                disk.slow_down(SLOW_NEW_DISK);
            }
            self.device(index).disk = disk.clone();
            let node = index / self.shape.devices_per_server + 1;
            self.nodes[node].new_disks.borrow_mut().insert(fid, disk);
        }
        let Some((client, handle)) = self.first_client() else { return };
        let (oracle, clock) = (Rc::clone(&self.oracle), Rc::clone(&self.clock));
        // Of a third of the new disks; the other seeded bugs have the schedules that they were looked for on.
        let about_spares = Mutation::Client(client::Bug::PastTheSpare);
        let by_spares = match self.mutation {
            None => (self.seed ^ fid.key).is_multiple_of(3),
            Some(mutation) => mutation == about_spares,
        };
        if let Some(repair) = self.replacements.repair(fid, by_spares, client, self.configuration.control) {
            handle.spawn("operator", async move {
                let outcome = repair.run().await;
                oracle.borrow().tell(clock.now(), || format!("replacement of device {fid}: {outcome:?}"));
            });
        }
    }

    /// The first client that is up, for an operator.
    fn first_client(&self) -> Option<(Client, LocalityHandle)> {
        let is_up = |node: &&Node| node.is_up() && matches!(node.role, Role::Client { .. });
        let seat = self.nodes.iter().find(is_up)?.life.as_ref()?.first();
        Some((seat.slot.client.borrow().clone()?, seat.locality.handle()))
    }

    /// An operator at the first client that is up lets the pool grow, and looks until everything lies in its newest version. Tried again until that is so.
    fn grow(&mut self) {
        if self.growth.reached().is_some() {
            return;
        }
        self.plan(self.now() + GROW_AGAIN, Fault::Grow);
        let (Some(text), Some((client, handle))) = (self.cluster_text.clone(), self.first_client()) else {
            return;
        };
        let (control, pool) = (self.configuration.control, self.configuration.pool.pool);
        let (oracle, clock) = (Rc::clone(&self.oracle), Rc::clone(&self.clock));
        let tell = {
            let (oracle, clock) = (Rc::clone(&oracle), Rc::clone(&clock));
            move |what| oracle.borrow().tell(clock.now(), || format!("growth: {what}"))
        };
        let Some(growing) = self.growth.go_on(client, (control, pool), text, tell) else { return };
        self.oracle.borrow_mut().keeps_half = true;
        handle.spawn("growth", async move {
            let outcome = growing.run().await;
            let mut oracle = oracle.borrow_mut();
            if outcome.is_ok() {
                // What was rebuilt of a torn row is what its object has now.
                oracle.rebuild();
                oracle.keeps_half = false;
                oracle.sometimes.reached("a pool grew, and its objects moved");
            }
            oracle.tell(clock.now(), || format!("growth: {outcome:?}"));
        });
    }

    /// A pool that began to grow goes on.
    pub fn finish_growth(&mut self) {
        if self.growth.is_under_way() {
            self.plan(self.now(), Fault::Grow);
        }
    }

    /// Devices with another disk that are not whole.
    pub fn unfinished_replacements(&self) -> Vec<Fid> {
        self.replacements.unfinished()
    }

    /// Some server's copier has a packet under way to it.
    pub fn is_copying(&self) -> bool {
        self.nodes.iter().any(Node::is_copying)
    }

    /// Whoever began to replace a disk goes on until it is done.
    pub fn finish_replacements(&mut self) {
        for fid in self.replacements.unfinished() {
            let index = self.configuration.target_index(fid).expect("a device of the pool");
            self.plan(self.now(), Fault::Replace { device: index as usize });
        }
    }

    /// A step of the change of members; planned again until it is over. `is_leader`: who leads is to leave; else, or if nobody leads, the founder at `other`.
    fn change_members(&mut self, is_leader: bool, other: u32) {
        let again = Fault::ChangeMembers { is_leader, other };
        let controls = self.controls();
        let number_of = |index: usize| (1..).zip(&controls).find(|(_, control)| **control == index);
        let mut next = MEMBERS_AGAIN;
        match self.membership.step() {
            Step::Before => {
                let Some((number, newcomer)) = (1..).zip(&controls).last() else { return };
                self.nodes[*newcomer].is_out = false;
                self.start(*newcomer);
                self.membership.set(Step::Joins { number });
            }
            Step::Joined => {
                self.oracle.borrow_mut().sometimes.reached("a control daemon joined the others");
                let leader = self.leader().filter(|_| is_leader);
                let founder = controls[other as usize % self.shape.controls];
                let (number, _) = number_of(leader.unwrap_or(founder)).expect("they are control daemons");
                if leader.is_some() {
                    self.oracle
                        .borrow_mut()
                        .sometimes
                        .reached("the leading control daemon was told to leave");
                }
                self.membership.set(Step::Leaves { number });
            }
            Step::Left { number } => {
                self.oracle.borrow_mut().sometimes.reached("a control daemon left the others");
                self.membership.set(Step::Lingers { number });
                next = RETIRED_AFTER;
            }
            Step::Lingers { number } => {
                let index = controls[usize::try_from(number - 1).expect("few daemons")];
                if self.nodes[index].life.is_some() {
                    self.oracle.borrow_mut().sometimes.reached("a control daemon that had left ran on");
                }
                self.crash(index);
                // Its machine stays, for something else.
                self.nodes[index].endpoints.iter().for_each(|at| self.fabric.power_up(*at));
                self.nodes[index].is_out = true;
                self.membership.set(Step::Over);
            }
            Step::Joins { .. } | Step::Leaves { .. } => {}
            Step::Over => return,
        }
        self.plan(self.now() + next, again);
        let step = self.membership.step();
        let Some((number, adds)) = step.order() else { return };
        let Some((client, locality)) = self.first_client() else { return };
        let (membership, oracle, clock) =
            (self.membership.clone(), Rc::clone(&self.oracle), Rc::clone(&self.clock));
        let (control, handle) = (self.configuration.control, locality.clone());
        let operator = self.cluster_text.as_ref().filter(|_| adds).map(|text| Operator {
            oracle: Rc::clone(&oracle),
            locality: locality.clone(),
            client: client.clone(),
            clock: Rc::clone(&clock),
            control,
            text: Rc::clone(text),
            acknowledged: Rc::clone(&self.acknowledged),
            name: format!("newcomer-{}", self.now().as_nanos()),
            random: fastrand::Rng::with_seed(self.seed ^ self.now().as_nanos()),
            stop: Rc::default(),
        });
        locality.spawn("members", async move {
            let options = CallOptions::until(handle.now() + operator::ANSWER_TIME);
            let result =
                client.rpc().call(control, &MemberChange { number, adds }, Bulk::none(), options).await;
            oracle.borrow().tell(clock.now(), || format!("change of members {step:?}: {result:?}"));
            // Those who change the cluster file all the time may not have come to name it there.
            if let (Err(CallError::Fop(FopError::NotPermitted { .. })), Some(operator)) = (&result, operator)
            {
                return operator.change_once().await;
            }
            if result.is_ok_and(|answer| answer.reply.is_done) {
                membership.note_done(step);
            }
        });
    }

    /// A change of members that was begun goes on.
    pub fn finish_members(&mut self) {
        if self.membership.step().is_under_way() {
            self.plan(self.now(), Fault::ChangeMembers { is_leader: false, other: 0 });
        }
    }

    /// Leases that control took as lost since the last look: whoever had one has to have stopped by then.
    fn look_at_leases(&mut self, touched: Touched) -> Result<(), String> {
        let is_control = |node: &Node| matches!(node.role, Role::Control { .. });
        if !self.nodes.iter().enumerate().any(|(index, node)| touched.has(index) && is_control(node)) {
            return Ok(());
        }
        let had_rivals = self.has_rivals;
        self.has_rivals = self.controls().iter().filter(|index| self.leads(**index)).count() > 1;
        if self.has_rivals && !had_rivals {
            self.oracle.borrow_mut().sometimes.reached("two control daemons believed that they lead");
        }
        for control in self.controls() {
            self.look_at_leases_of(control)?;
        }
        Ok(())
    }

    /// Those that this control daemon took as lost; and whether it leads by right.
    fn look_at_leases_of(&mut self, by: usize) -> Result<(), String> {
        let lost = {
            let Some(slot) = self.nodes[by].slot() else { return Ok(()) };
            let control = slot.control.borrow();
            let Some(control) = control.as_ref() else { return Ok(()) };
            if let Some(term) = control.leads_in() {
                let elected = *self.elected.entry(term).or_insert(by);
                if elected != by {
                    let (one, other) = (&self.nodes[elected].name, &self.nodes[by].name);
                    return Err(format!(
                        "at {:?}: {one} and {other} both lead in term {term}",
                        self.clock.now()
                    ));
                }
            }
            if control.decides() { self.leases.lost_since(control) } else { Vec::new() }
        };
        for subject in lost {
            let is_of = |node: &Node| match &node.role {
                Role::Server { process, devices, .. } => {
                    *process == subject || devices.iter().any(|device| device.fid == subject)
                }
                _ => false,
            };
            let Some(index) = self.nodes.iter().position(is_of) else { continue };
            let now = self.now();
            // Leases are counted by device: a locality that lost its own stops, and others of the process go on.
            let device = Some(subject).filter(|subject| subject.is(FidType::Device));
            let is_serving = self.nodes[index].is_serving(now, device);
            let node = &self.nodes[index];
            let mut oracle = self.oracle.borrow_mut();
            match (is_serving, self.leases.is_excused(index, by)) {
                (true, false) => {
                    return Err(format!(
                        "at {now:?}: {} still serves when control takes its lease as lost",
                        node.name
                    ));
                }
                (true, true) => {
                    oracle.sometimes.reached("a slow clock let a server serve after its lease was lost")
                }
                (false, _) => oracle.sometimes.reached("a server had stopped when its lease was lost"),
            }
        }
        Ok(())
    }

    // ------------------------------------------------------------ rot

    /// Chooses written blocks of the data region in which a bit will flip.
    ///
    /// They flip once the device committed two more records: until then a block may be data of the log's last record, and
    /// recovery cannot tell rot there from a write that a power cut tore (docs/simulation.md#accepted).
    fn rot(&mut self, index: usize, blocks: u32, random: u64, misdirected: bool) {
        let mut random = fastrand::Rng::with_seed(random);
        let data = data_region();
        let record = self.last_record(index);
        let device = self.device(index);
        let mut bits = Vec::new();
        // Space is handed out from the front, so most of what is written is there.
        for _ in 0..blocks * 4 {
            let reach = if random.bool() { data.count } else { data.count / 8 };
            let block = data.start + random.u64(0..reach);
            let content = device.disk.content(block);
            if content.iter().any(|byte| *byte != 0) {
                bits.push((block, random.usize(0..32768), content));
            }
        }
        let choice = self.rots.len();
        self.rots.push(Rot { device: index, record, bits, misdirected });
        self.plan(self.now() + ROT_LOOK, Fault::RotChosen { choice });
    }

    /// The newest record that the device's domain flushed since it was opened, if it is open.
    fn last_record(&self, index: usize) -> Option<(u64, u64)> {
        let node = &self.nodes[index / self.shape.devices_per_server + 1];
        let Role::Server { devices, .. } = &node.role else { return None };
        let domain = node.domain(devices[index % self.shape.devices_per_server].fid)?;
        let flushed = domain.trace().into_iter().rev().find_map(|event| match event {
            TraceEvent::Flushed { sequence } => Some(sequence),
            _ => None,
        });
        Some((node.starts, flushed?))
    }

    fn rot_chosen(&mut self, choice: usize) {
        let now = self.last_record(self.rots[choice].device);
        let is_older = match (self.rots[choice].record, now) {
            (Some((start, then)), Some((start_now, now))) => start == start_now && now >= then + 2,
            _ => false,
        };
        if !is_older {
            let known = self.rots[choice].record;
            // Opened again since, or for the first time: count from here.
            if known.map(|(start, _)| start) != now.map(|(start, _)| start) {
                self.rots[choice].record = now;
            }
            return self.plan(self.now() + ROT_LOOK, Fault::RotChosen { choice });
        }
        let Rot { device, bits, misdirected, .. } = std::mem::take(&mut self.rots[choice]);
        let device = self.device(device);
        let mut changed = 0u64;
        let mut other: Option<Vec<u8>> = None;
        for (block, bit, content) in bits {
            if device.disk.content(block) != content {
                continue;
            }
            match &other {
                _ if !misdirected => {
                    device.disk.rot(block, bit);
                    changed += 1;
                }
                Some(other) if *other != content => {
                    device.disk.set_content(block, other);
                    changed += 1;
                }
                _ => {}
            }
            other = Some(content);
        }
        let fid = device.fid;
        self.damaged.insert(fid);
        let mut oracle = self.oracle.borrow_mut();
        oracle.damaged = self.damaged.len();
        oracle
            .sometimes
            .add(if misdirected { "a block got another one's bytes" } else { "bits rotted" }, changed);
    }

    // ------------------------------------------------------------ looking

    /// Looks at a node before it goes: its domains, their traces, its figures.
    fn collect(&self, index: usize) -> Result<(), String> {
        let node = &self.nodes[index];
        let mut oracle = self.oracle.borrow_mut();
        for rpc in node.rpcs() {
            let stats = rpc.stats();
            let counters = &mut oracle.sometimes;
            counters.add("a request was sent again", stats.requester.resends);
            counters.add("a reply came when nobody waited any more", stats.requester.late_replies);
            counters.add("a call ended at its deadline", stats.requester.timeouts);
            counters.add("a session was lost", stats.requester.sessions_lost);
            counters.add("a reply came from the reply cache", stats.reply_cache.hits);
            counters.add("a session gave way to another one", stats.responder.sessions_evicted);
            counters.add("a request met its twin in progress", stats.reply_cache.in_progress_hits);
            counters.add("a session went on after its server restarted", stats.requester.sessions_resumed);
            counters.add("a request was answered from the record of its slot", stats.reply_cache.replays);
            counters.add("items shared a packet", stats.formation.packets);
            counters.add("bulk travelled inside of a request", stats.inline_requests);
            counters.add("bulk travelled inside of a reply", stats.inline_replies);
            counters.add("a requester was told that it has to wait", stats.holds_told);
            counters.add("an answer was sent again unasked", stats.answers_repeated);
            counters.add("a packet waited for credits", stats.formation.blocked);
            if let Some((peer, what)) = &stats.last_misbehaviour {
                // Everybody here is ours, and damage is caught below rpc.
                return Err(format!("{}: {} broke the protocol: {what}", node.name, peer.endpoint));
            }
            let running = rpc.running_foms().len();
            if stats.foms_running != running {
                return Err(format!(
                    "{}: {} places of foms are taken and {running} foms run",
                    node.name, stats.foms_running
                ));
            }
            let net = rpc.with_transfer_machine(verbs_net::TransferMachine::stats);
            if self.is_remote {
                counters.add("a completion came late or twice", net.stale_dropped);
            } else {
                counters.add("a peer's old incarnation was shut out", net.stale_dropped);
            }
            counters.add("bulk came for memory no longer exposed", net.bulk_bytes_late);
            let phases = rpc.records();
            // What control is asked may run twice, and does when its session had to give way to another one's.
            if !(self.shape.has_few_sessions && matches!(node.role, Role::Control { .. })) {
                ran_at_most_once(&phases).map_err(|error| format!("{}: {error}", node.name))?;
            }
            ran_not_again(&phases, &oracle.durable_requests)
                .map_err(|error| format!("{}: {error}", node.name))?;
            let doubted = phases.iter().filter(|record| record.is(Phase::Doubted)).count();
            oracle.sometimes.add("a request whose record was out of reach was told so", doubted as u64);
            let durable = phases.iter().filter(|record| record.is(Phase::Durable));
            oracle.durable_requests.extend(durable.map(|record| record.request_id));
        }
        let control = node.slot().map(|slot| slot.control.borrow());
        if let Some(control) = control.as_ref().and_then(|control| control.as_ref()) {
            if let Some(failure) = control.store_failure() {
                return Err(format!("{} takes no part any more: {failure}", node.name));
            }
            note_member(&mut oracle.sometimes, control);
            let events = control.events();
            for event in &events {
                match (event.subject.is(base::FidType::Device), event.to.as_str()) {
                    (true, "transient") => oracle.sometimes.reached("a device became transient"),
                    (true, "failed") => oracle.sometimes.reached("a device became failed"),
                    _ => {}
                }
            }
            if let Some(pair) = events.windows(2).find(|pair| pair[1].number != pair[0].number + 1) {
                return Err(format!("event {} follows {}", pair[1].number, pair[0].number));
            }
            let version = control.configuration().version;
            if let Some(event) = events.iter().find(|event| event.version > version) {
                return Err(format!(
                    "event {} is of version {}, told before {version}",
                    event.number, event.version
                ));
            }
        }
        let Role::Server { devices, .. } = &node.role else { return Ok(()) };
        for device in devices {
            let Some(domain) = node.domain(device.fid) else { continue };
            let info = domain.info();
            oracle.sometimes.add("recovery replayed the log", info.recovered_records);
            oracle.sometimes.add("recovery dropped a torn tail", u64::from(info.dropped_tail));
            oracle.sometimes.add("a checkpoint was taken", info.checkpoints);
            domain.verify().map_err(|error| format!("device {} of {}: {error}", device.fid, node.name))?;
            flushed_before_acknowledged(&domain.trace())
                .map_err(|error| format!("device {} of {}: {error}", device.fid, node.name))?;
        }
        Ok(())
    }

    /// Looks at everybody at the end.
    pub fn collect_all(&mut self) -> Result<(), String> {
        for index in 0..self.nodes.len() {
            self.collect(index)?;
        }
        let net = self.fabric.stats();
        let mut oracle = self.oracle.borrow_mut();
        oracle.sometimes.add("a message was doubled", net.duplicated);
        oracle.sometimes.add("a message was held back", net.reordered);
        oracle.sometimes.add("a packet was lost", net.lost);
        oracle.sometimes.add("a header was damaged", net.corrupted);
        oracle.sometimes.add("a card sent a packet again", net.retransmitted);
        oracle.sometimes.add("a queue pair died", net.queue_pair_deaths);
        for disk in self.nodes.iter().flat_map(Node::disks) {
            oracle.sometimes.add("a crash took back writes that were not flushed", disk.stats().lost_pieces);
            oracle.sometimes.add("a crash left a block torn", disk.stats().torn_blocks);
        }
        let fabric_hash = self.fabric.trace_hash();
        oracle.hash.add(&[fabric_hash, self.turns]);
        Ok(())
    }

    /// The end of everybody: nodes go, packets and disks forget. Error: a buffer that nobody gives back.
    pub fn end(&mut self) -> Result<(), String> {
        let mut arenas = Vec::new();
        for node in &mut self.nodes {
            let Some(life) = node.life.take() else { continue };
            let of_seat = |seat: &Seat| (node.name.clone(), seat.locality.handle().arena().clone());
            arenas.extend(life.seats.iter().map(of_seat));
            drop(life);
            node.endpoints.iter().for_each(|at| self.fabric.crash(*at));
            node.disks().into_iter().for_each(SimDisk::crash);
        }
        match arenas.iter().find(|(_, arena)| arena.in_use_bytes() > 0) {
            None => Ok(()),
            Some((name, arena)) => Err(format!(
                "{name} is gone, and {} bytes of its buffers are not given back",
                arena.in_use_bytes()
            )),
        }
    }

    /// A row that a dead client left torn cannot be computed (docs/simulation.md, Accepted): the repair of a device that held a unit of it fails, and
    /// says of which objects.
    fn lacks_only_torn_objects(&self, repair: &RepairStatus) -> bool {
        let lost = &repair.progress.lost;
        let is_torn =
            |fid: &Fid| ObjectId::from_fid(*fid).is_some_and(|id| self.oracle.borrow().may_be_torn(id));
        let are_all_named = usize::try_from(repair.progress.lost_count) == Ok(lost.len());
        repair.state == "failed" && !lost.is_empty() && are_all_named && lost.iter().all(is_torn)
    }

    /// Nothing is as it should not be; asked at every event, so what is nearly always wrong is asked first.
    pub fn is_well(&self) -> bool {
        let is_at_work = !self.oracle.borrow().is_idle() || !self.nodes.iter().all(Node::is_in_order);
        !is_at_work && self.not_converged().is_empty()
    }

    /// What is not as it should be in a cluster without faults; empty when all is well.
    pub fn not_converged(&self) -> Vec<String> {
        let mut reasons: Vec<String> = Vec::new();
        for node in &self.nodes {
            if !node.is_in_order() {
                let why = node.last_failure.clone().unwrap_or_default();
                reasons.push(format!("{} is not up; {why}", node.name));
            }
        }
        reasons.extend(self.oracle.borrow().running_lines());
        let slot = self.leader().and_then(|leader| self.nodes[leader].slot());
        let control = slot.as_ref().map(|slot| slot.control.borrow());
        let control = control.as_ref().and_then(|control| control.as_ref());
        let repairs = control.map(|control| control.repairs()).unwrap_or_default();
        let is_beyond = |device: &Fid| {
            repairs.iter().any(|repair| repair.device == *device && self.lacks_only_torn_objects(repair))
        };
        for device in self.replacements.unfinished().iter().filter(|device| !is_beyond(device)) {
            let copy = repairs.iter().find(|repair| repair.device == *device);
            let config = control.map(|control| control.configuration());
            let slot = config.and_then(|config| config.spare_slot_of(*device).copied());
            reasons.push(format!(
                "device {device} has another disk, and not everything on it: {copy:?}, {slot:?}"
            ));
        }
        let pool = self.configuration.pool.pool;
        if self.growth.is_under_way() && !is_beyond(&pool) {
            let moves = repairs.iter().find(|repair| repair.device == pool);
            reasons.push(format!("the pool grows, and its objects are not moved: {moves:?}"));
        }
        if self.orders.get() > 0 {
            reasons.push(format!("{} orders about devices have no answer", self.orders.get()));
        }
        if self.membership.step().is_under_way() {
            reasons.push(format!("the change of members is at {:?}", self.membership.step()));
        }
        let Some(control) = control else {
            reasons.push("no control daemon decides".to_owned());
            return reasons;
        };
        for process in control.status().processes.iter().filter(|process| !process.alive) {
            reasons.push(format!("process {} has no lease", process.process));
        }
        for device in &control.configuration().pool.devices {
            let is_lost = self.lost.contains(&device.device);
            if device.state != DeviceState::Online && !is_lost {
                reasons.push(format!("device {} is {:?}", device.device, device.state));
            }
        }
        for node in &self.nodes {
            let is_serving = |slot: &Slot| slot.server.borrow().as_ref().is_none_or(Server::is_serving);
            if !node.slots().all(is_serving) {
                reasons.push(format!("{} does not serve", node.name));
            }
        }
        reasons
    }
}

/// What a control daemon did as one of several.
fn note_member(counters: &mut Sometimes, control: &Control) {
    let counts = control.member_counts();
    counters.add("a control daemon came to lead", counts.leads);
    counters.add("a leading control daemon reached no majority", counts.silences);
    counters.add("a lead was lost in the middle of a change", counts.changes_lost + counts.changes_waiting);
    counters.add("an entry of a lost leader was taken back", counts.entries_withdrawn);
    counters.add("a copy of the state was sent", counts.copies_sent);
    counters.add("a copy of the state took the place of an old one", counts.copies_taken);
    counters.add("a majority vouched for an answer", counts.answers_vouched);
    counters.add("an answer was withheld, as nobody vouched for it", counts.answers_withheld);
}

/// Requests whose handlers began. One that is in doubt, as its record is out of reach, is told so before its handler looks at anything.
fn ran(phases: &[Record]) -> impl Iterator<Item = &Record> {
    phases.iter().enumerate().filter_map(|(place, record)| {
        let is_same = |later: &&Record| later.request_id == record.request_id;
        let is_doubted =
            || phases[place + 1..].iter().find(is_same).is_some_and(|next| next.is(Phase::Doubted));
        (record.is(Phase::Run) && !is_doubted()).then_some(record)
    })
}

/// No request ran twice in one life of a server, but reads: one whose bytes were lost with the connection they were pushed over is done
/// again. The ring may have lost its beginning.
fn ran_at_most_once(phases: &[Record]) -> Result<(), String> {
    let is_read = |opcode: u16| opcode == fops::Opcode::ComponentRead as u16;
    let ran = ran(phases).filter(|record| !is_read(record.opcode));
    let mut ran: Vec<(u64, u16)> = ran.map(|record| (record.request_id, record.opcode)).collect();
    ran.sort_unstable();
    match ran.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(format!("request {:#x} of opcode {} ran twice", pair[0].0, pair[0].1)),
        None => Ok(()),
    }
}

/// No request runs whose change became durable in an earlier life of its server.
fn ran_not_again(phases: &[Record], durable: &BTreeSet<u64>) -> Result<(), String> {
    match ran(phases).find(|record| durable.contains(&record.request_id)) {
        Some(record) => Err(format!(
            "request {:#x} of opcode {} ran again after its change was durable",
            record.request_id, record.opcode
        )),
        None => Ok(()),
    }
}

/// Each acknowledgement comes after a flush of its record. The trace may have lost its beginning.
fn flushed_before_acknowledged(trace: &[TraceEvent]) -> Result<(), String> {
    let mut flushed = BTreeSet::new();
    let mut is_first_seen = false;
    for event in trace {
        match event {
            TraceEvent::Flushed { sequence } => {
                flushed.insert(*sequence);
                is_first_seen = true;
            }
            TraceEvent::Acknowledged { transaction, sequence }
                if is_first_seen && !flushed.contains(sequence) =>
            {
                let older = flushed.first().is_some_and(|first| sequence < first);
                if !older {
                    return Err(format!(
                        "transaction {transaction} was acknowledged without a flush of record {sequence}"
                    ));
                }
            }
            _ => {}
        }
    }
    Ok(())
}
