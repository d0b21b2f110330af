//! The fault schedule: what goes wrong when, made from the seed before the run.
//!
//! Faults stay where survival is promised: at most K devices are ever damaged (lost or rotten). Crashes may come at any time and in
//! any number, since nothing that was flushed is lost by them. Each seed draws its own mixture (some kinds often, some never), so
//! that rare combinations get whole runs of their own.
//!
//! **Invariant**: everything that belongs to one mishap (its beginning and its end) has one group number, and leaving a group out does
//! not change when the others happen: that is what a seed is minimised by (`clovis_tests::sim_cut`).

use std::collections::BTreeSet;
use std::time::Duration;

use verbs_net::SimFaults;

/// One thing that goes wrong, or right again.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Faults of all links from now on.
    Net(SimFaults),
    /// Messages from one node to another vanish.
    Partition { from: usize, to: usize },
    /// Once so many more packets went from one node to another, what follows is refused.
    RefuseAfter { from: usize, to: usize, packets: u64 },
    /// Headers of messages from one node to another are damaged: whoever gets one ends the connection.
    Damage { from: usize, to: usize },
    /// They arrive again, and undamaged.
    Heal { from: usize, to: usize },
    /// A node loses power.
    Crash { node: usize },
    /// A node loses power as soon as a client hears from control that it took or gave back a lock, unless it starts before that.
    Ambush { node: usize },
    /// It comes back, if it is down.
    Start { node: usize },
    /// The control daemon that leads loses power.
    CrashLeader,
    /// All control daemons lose power in one moment, as soon as a client hears from control that it took or gave back a lock.
    AmbushControls,
    /// Control daemons that are down come back.
    StartControls,
    /// The thread of the control daemon that leads stands still.
    PauseLeader { length: Duration },
    /// The control daemon that leads reaches nobody any more but one other node, nor does anybody else reach it.
    CutLeader { beside: usize },
    /// Control daemons on two sides do not reach each other: the bits of `side` say who is where; without them the one that leads is alone. Others
    /// reach all of them.
    SplitControls { side: Option<u32> },
    /// Everybody reaches every control daemon again.
    HealControls,
    /// The control daemon that leads is asked to stop in good order.
    StopLeader,
    /// A server or control daemon is asked to stop in good order.
    Stop { node: usize },
    /// Each access of a device fails from now on.
    LoseDevice { device: usize },
    /// A device begins to fail in another way, for good.
    Ail { device: usize, ailment: Ailment },
    /// Some written blocks of a device are chosen to rot. `misdirected`: they get another block's content instead of a flipped bit.
    Rot { device: usize, blocks: u32, random: u64, misdirected: bool },
    /// They rot, once the device has committed something newer (see `World::rot`).
    RotChosen { choice: usize },
    /// A device becomes slower by a factor; 1 ends it.
    Slow { device: usize, factor: u32 },
    /// A node's thread stands still for a while: its timers are late, what arrives waits.
    Pause { node: usize, length: Duration },
    /// A node rests so long after each turn in which it did something; zero ends it.
    SlowNode { node: usize, rest: Duration },
    /// A node's clock runs at so many thousandths of true time from now on.
    Drift { node: usize, rate_per_mille: u32 },
    /// An operator takes a device out.
    Detach { device: usize },
    /// And back.
    Attach { device: usize },
    /// An operator gives a failed device another disk, and has everything copied to it; as often as it takes.
    Replace { device: usize },
    /// An operator has one more control daemon taken in, and another one out: who leads, or the founder at `other`; as often as it takes.
    ChangeMembers { is_leader: bool, other: u32 },
    /// An operator lets the pool grow, and has all objects moved; as often as it takes.
    Grow,
}

impl Fault {
    /// The device that it damages for good.
    fn damages(&self) -> Option<usize> {
        match *self {
            Fault::LoseDevice { device } | Fault::Ail { device, .. } | Fault::Rot { device, .. } => {
                Some(device)
            }
            _ => None,
        }
    }

    /// The nodes that it names.
    pub fn nodes(&self) -> [Option<usize>; 2] {
        match *self {
            Fault::Partition { from, to }
            | Fault::RefuseAfter { from, to, .. }
            | Fault::Damage { from, to }
            | Fault::Heal { from, to } => [Some(from), Some(to)],
            Fault::Crash { node }
            | Fault::Ambush { node }
            | Fault::Start { node }
            | Fault::Stop { node }
            | Fault::Pause { node, .. }
            | Fault::SlowNode { node, .. }
            | Fault::Drift { node, .. } => [Some(node), None],
            _ => [None, None],
        }
    }
}

/// How a device fails that still answers.
#[derive(Clone, Copy, Debug)]
pub enum Ailment {
    /// Flushes fail.
    Flushes,
    /// After so many more writes each one fails.
    WritesAfter(u64),
    /// After so many more writes it is full.
    FullAfter(u64),
    /// Some written blocks cannot be read any more.
    BadBlocks { count: u32, random: u64 },
}

/// A fault, when it happens, and what it belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    /// Since the beginning of the schedule.
    pub after: Duration,
    pub fault: Fault,
    /// The same for a mishap's beginning and end.
    pub group: u32,
}

/// Rates of clocks that the lease allows for, whoever else drifts: the slowest is 4/5 as fast as the quickest (docs/ha.md#leases).
pub const DRIFT_ALLOWED: std::ops::RangeInclusive<u32> = 900..=1100;

/// Which nodes there are, by index.
#[derive(Clone, Debug)]
pub struct Cast {
    /// At least one.
    pub controls: Vec<usize>,
    pub servers: Vec<usize>,
    pub clients: Vec<usize>,
    pub devices: usize,
    /// K.
    pub damage_max: usize,
    /// Servers also start while what is sent again to them gets lost ([`bad_starts`]), so many times as often as usual.
    pub bad_starts: u32,
    /// A control daemon has room for few sessions, and clients come and go while another one is away ([`crowds`]).
    pub has_crowds: bool,
    /// One more control daemon waits to be taken in.
    pub has_newcomer: bool,
    /// The pool grows in the middle of the run.
    pub has_growth: bool,
    /// At least one device is lost late and gets another disk ([`late_repairs`]).
    pub has_repairs: bool,
    /// The leading control daemon is cut off from all but one node so many times more.
    pub more_cuts: u32,
}

impl Cast {
    fn everybody(&self) -> Vec<usize> {
        let (first, further) = self.controls.split_at(1);
        let parts = [first, &self.servers, &self.clients, further];
        parts.into_iter().flatten().copied().collect()
    }
}

/// The schedule of `length`, sorted by time since its start.
pub fn schedule(random: &mut fastrand::Rng, cast: &Cast, length: Duration) -> Vec<Planned> {
    // What came later draws from a stream of its own, so that the rest of a seed stays what it was.
    let mut later = fastrand::Rng::with_seed(random.clone().u64(..) ^ 0x1a7e);
    let mut plan = Plan { random, length, group: 0, events: Vec::new() };
    power_and_net(&mut plan, cast);
    damage(&mut plan, &mut later, cast);
    let Plan { group, mut events, .. } = plan;
    let mut plan = Plan { random: &mut later, length, group, events: Vec::new() };
    time_and_orders(&mut plan, cast);
    let group = plan.group;
    events.append(&mut plan.events);
    replacements(&mut later, &mut events);
    let mut newest = fastrand::Rng::with_seed(later.u64(..));
    let mut plan = Plan { random: &mut newest, length, group, events };
    control_alone(&mut plan, cast);
    if cast.controls.len() > 1 {
        several_controls(&mut plan, cast);
    }
    if cast.bad_starts > 0 {
        bad_starts(&mut plan, cast);
    }
    if cast.has_crowds {
        crowds(&mut plan, cast);
    }
    if cast.has_repairs {
        late_repairs(&mut plan, cast);
    }
    if cast.has_newcomer {
        plan.begin();
        let (start, _) = plan.window(1, 2);
        let (is_leader, other) = (plan.random.bool(), plan.random.u32(..));
        plan.push(start / 2, Fault::ChangeMembers { is_leader, other });
    }
    if cast.has_growth {
        // Early, as servers begin to move only some seconds after they were told (`faces::limits::REPAIR_SETTLE`).
        plan.begin();
        let after = Duration::from_millis(plan.random.u64(400..1000));
        plan.push(after, Fault::Grow);
    }
    let mut events = plan.events;
    events.sort_by_key(|planned| planned.after); // stable: what was planned first stays first
    events
}

/// Half of the devices that are lost get another disk, soon enough that the clients still work. It belongs to the mishap.
fn replacements(random: &mut fastrand::Rng, events: &mut Vec<Planned>) {
    let mut added = Vec::new();
    for Planned { after, fault, group } in events.iter() {
        let (Fault::LoseDevice { device } | Fault::Ail { device, .. }) = *fault else { continue };
        if random.bool() {
            let after = *after + Duration::from_millis(random.u64(20..500));
            added.push(Planned { after, fault: Fault::Replace { device }, group: *group });
        }
    }
    events.append(&mut added);
}

/// A device is lost at the end of the schedule, if no more than K are damaged then, and gets another disk: the copy to it begins when faults are over.
fn late_repairs(plan: &mut Plan<'_>, cast: &Cast) {
    let damaged: BTreeSet<usize> = plan.events.iter().filter_map(|planned| planned.fault.damages()).collect();
    let is_whole = |device: &usize| !damaged.contains(device);
    let whole: Vec<usize> = (0..cast.devices).filter(is_whole).collect();
    if damaged.len() >= cast.damage_max {
        return;
    }
    plan.begin();
    let device = plan.one_of(&whole);
    let lost = plan.length * plan.random.u32(600..900) / 1000;
    plan.push(lost, Fault::LoseDevice { device });
    plan.push(lost + Duration::from_millis(20), Fault::Replace { device });
}

/// What happens between control and one other: a server that control alone does not hear, or that does not hear control, for longer than its
/// lease; a control daemon that loses power with the answer just gone.
fn control_alone(plan: &mut Plan<'_>, cast: &Cast) {
    let [cuts, ambushes] = counts(plan.random);
    for _ in 0..cuts / 2 {
        plan.begin();
        let server = plan.one_of(&cast.servers);
        let (start, end) = plan.window(700, 3000);
        let directions = plan.random.u32(1..4);
        let control = plan.control_of(cast);
        for (bit, from, to) in [(1, server, control), (2, control, server)] {
            if directions & bit != 0 {
                plan.push(start, Fault::Partition { from, to });
                plan.push(end, Fault::Heal { from, to });
            }
        }
    }
    for _ in 0..ambushes / 2 {
        plan.begin();
        let (start, end) = plan.window(200, 1000);
        let node = plan.control_of(cast);
        plan.push(start, Fault::Ambush { node });
        plan.push(end, Fault::Start { node });
    }
}

/// A server's last words are lost, as in [`power_and_net`], and it starts while many a message gets lost and control hears of it a little later: what was
/// asked before is asked again when it begins to serve, or while it still reads what it knows of that. Or it is slow to read that, and a firewall lets clients get as far as
/// a session, and not on: what was in flight is sent again in that session, later.
fn bad_starts(plan: &mut Plan<'_>, cast: &Cast) {
    for _ in 0..cast.bad_starts * plan.random.u32(3..10) {
        plan.begin();
        let server = plan.one_of(&cast.servers);
        let (silence, crash) = plan.window(20, 300);
        let back = crash + Duration::from_micros(plan.random.u64(2_000..60_000));
        let served = back + Duration::from_micros(plan.random.u64(2_000..120_000));
        for client in &cast.clients {
            plan.push(silence, Fault::Partition { from: server, to: *client });
            plan.push(crash, Fault::Heal { from: server, to: *client });
        }
        plan.push(crash, Fault::Crash { node: server });
        for control in &cast.controls {
            plan.push(crash, Fault::Partition { from: server, to: *control });
            plan.push(served, Fault::Heal { from: server, to: *control });
        }
        let loss_per_mille = plan.random.u32(100..600);
        plan.push(back, Fault::Net(SimFaults { loss_per_mille, ..SimFaults::NONE }));
        plan.push(back, Fault::Start { node: server });
        plan.push(served + Duration::from_millis(20), Fault::Net(SimFaults::NONE));
    }
    for _ in 0..cast.bad_starts * plan.random.u32(3..10) {
        plan.begin();
        let server = plan.one_of(&cast.servers);
        // Where there are many each is short, so that what was in flight is still wanted when it is over.
        let (silence_max, heard) = if cast.bad_starts > 1 { (60, 60..350) } else { (300, 150..900) };
        let (silence, crash) = plan.window(20, silence_max);
        let back = crash + Duration::from_micros(plan.random.u64(2_000..40_000));
        let heard = back + Duration::from_millis(plan.random.u64(heard));
        // Disks that are slow to read what the server has to know before it serves.
        let factor = plan.random.u32(20..400);
        let each = cast.devices / cast.servers.len();
        for device in (server - cast.servers[0]) * each..(server - cast.servers[0] + 1) * each {
            plan.push(crash, Fault::Slow { device, factor });
            plan.push(heard, Fault::Slow { device, factor: 1 });
        }
        for client in cast.clients.iter().copied() {
            plan.push(silence, Fault::Partition { from: server, to: client });
            plan.push(crash, Fault::Heal { from: server, to: client });
            // What it takes to find out, and for a new connection and the wish for a session, or a little more or less.
            let packets = plan.random.u64(2..7);
            plan.push(back, Fault::RefuseAfter { from: client, to: server, packets });
            plan.push(heard, Fault::Heal { from: client, to: server });
        }
        plan.push(crash, Fault::Crash { node: server });
        plan.push(back, Fault::Start { node: server });
    }
}

/// A client loses its connections to control and does not get them back for a while, and others come and go meanwhile, each time as somebody new: where there is room
/// for few sessions, that of the one who is away gives way.
fn crowds(plan: &mut Plan<'_>, cast: &Cast) {
    let [away, others @ ..] = &cast.clients[..] else { return };
    for _ in 0..plan.random.u32(1..4) {
        plan.begin();
        let (start, end) = plan.window(1800, 3500);
        let broken = start + Duration::from_millis(400); // longer than one of them is silent
        for control in cast.controls.iter().copied() {
            for (from, to) in [(*away, control), (control, *away)] {
                plan.push(start, Fault::Damage { from, to });
                plan.push(broken, Fault::Partition { from, to });
                plan.push(end, Fault::Heal { from, to });
            }
        }
        let newcomers = plan.random.u32(4..12);
        for number in 1..=newcomers {
            let at = broken + (end - broken) * number / (newcomers + 1);
            for node in others.iter().copied() {
                plan.push(at, Fault::Crash { node });
                plan.push(at + Duration::from_millis(1), Fault::Start { node });
            }
        }
    }
}

/// What happens to several control daemons as a group, most of it to the one that leads.
fn several_controls(plan: &mut Plan<'_>, cast: &Cast) {
    let [crashes, pauses, cuts, splits, stops, ambushes, absences, drifts] = counts(plan.random);
    for _ in 0..crashes / 2 {
        plan.begin();
        let (start, end) = plan.window(20, 3000);
        plan.push(start, Fault::CrashLeader);
        plan.push(end, Fault::StartControls);
    }
    for _ in 0..pauses / 2 {
        plan.begin();
        let (start, end) = plan.window(200, 3500);
        plan.push(start, Fault::PauseLeader { length: end - start });
    }
    for _ in 0..cuts / 2 + cast.more_cuts {
        plan.begin();
        let others = [&cast.servers[..], &cast.clients].concat();
        let beside = plan.one_of(&others);
        // Most of them last longer than it takes the others to elect another one.
        let (start, end) = plan.window(800, 4000);
        plan.push(start, Fault::CutLeader { beside });
        plan.push(end, Fault::HealControls);
    }
    for _ in 0..splits / 2 {
        plan.begin();
        let side = plan.random.u32(..);
        let side = plan.random.bool().then_some(side);
        let (start, end) = plan.window(500, 3500);
        plan.push(start, Fault::SplitControls { side });
        plan.push(end, Fault::HealControls);
    }
    for _ in 0..stops / 2 {
        plan.begin();
        let (start, end) = plan.window(500, 3000);
        plan.push(start, Fault::StopLeader);
        plan.push(end, Fault::StartControls);
    }
    for _ in 0..ambushes / 3 {
        plan.begin();
        let (start, end) = plan.window(100, 1000);
        plan.push(start, Fault::AmbushControls);
        plan.push(end, Fault::StartControls);
    }
    for _ in 0..absences / 3 {
        plan.begin();
        // Long enough that the others cut their logs.
        let node = plan.one_of(&cast.controls);
        let (start, end) = plan.window(2000, 6000);
        plan.push(start, Fault::Crash { node });
        plan.push(end, Fault::Start { node });
    }
    for _ in 0..drifts / 2 {
        plan.begin();
        let node = plan.one_of(&cast.controls);
        let rate_per_mille = match plan.random.u32(0..4) {
            0 => plan.random.u32(400..2500),
            _ => plan.random.u32(DRIFT_ALLOWED),
        };
        let (start, end) = plan.window(200, 5000);
        plan.push(start, Fault::Drift { node, rate_per_mille });
        plan.push(end, Fault::Drift { node, rate_per_mille: 1000 });
    }
}

/// How often each kind comes in a seed: 0 now and then, so that kinds are also seen alone.
fn counts<const KINDS: usize>(random: &mut fastrand::Rng) -> [u32; KINDS] {
    std::array::from_fn(|_| match random.u32(0..4) {
        0 => 0,
        1 => 1,
        more => more * 2,
    })
}

/// Clocks, pauses, slow nodes, operators.
fn time_and_orders(plan: &mut Plan<'_>, cast: &Cast) {
    let everybody = cast.everybody();
    let [pauses, slows, drifts, orders] = counts(plan.random);
    for _ in 0..pauses {
        plan.begin();
        // Servers and control most: a paused client holds nothing up but itself.
        let node = match plan.random.u32(0..8) {
            0 | 1 => plan.control_of(cast),
            2 => plan.one_of(&cast.clients),
            _ => plan.one_of(&cast.servers),
        };
        let (start, end) = plan.window(20, 2500);
        plan.push(start, Fault::Pause { node, length: end - start });
    }
    for _ in 0..slows / 2 {
        plan.begin();
        let node = plan.one_of(&everybody);
        let rest = Duration::from_micros(plan.random.u64(50..4000));
        let (start, end) = plan.window(100, 2500);
        plan.push(start, Fault::SlowNode { node, rest });
        plan.push(end, Fault::SlowNode { node, rest: Duration::ZERO });
    }
    for _ in 0..drifts {
        plan.begin();
        let node = plan.one_of(&everybody);
        let rate_per_mille = match plan.random.u32(0..6) {
            0 => plan.random.u32(250..700),
            1 => plan.random.u32(1300..3000),
            _ => plan.random.u32(DRIFT_ALLOWED),
        };
        let (start, end) = plan.window(200, 5000);
        plan.push(start, Fault::Drift { node, rate_per_mille });
        plan.push(end, Fault::Drift { node, rate_per_mille: 1000 });
    }
    for _ in 0..orders / 2 {
        plan.begin();
        let device = plan.random.usize(0..cast.devices);
        let (start, end) = plan.window(50, 1500);
        plan.push(start, Fault::Detach { device });
        plan.push(end, Fault::Attach { device });
    }
}

/// Power, net, slow devices: the first faults there were.
fn power_and_net(plan: &mut Plan<'_>, cast: &Cast) {
    let everybody = cast.everybody();
    let [noises, partitions, crashes, storms, clients, stops, slows] = counts(plan.random);
    for _ in 0..noises {
        plan.begin();
        let faults = plan.noise();
        let (start, end) = plan.window(100, 3000);
        plan.push(start, Fault::Net(faults));
        plan.push(end, Fault::Net(SimFaults::NONE));
    }
    for _ in 0..partitions {
        plan.begin();
        let from = plan.one_of(&everybody);
        let to = plan.one_of(&everybody);
        if from == to {
            continue;
        }
        let (start, end) = plan.window(50, 2500);
        plan.push(start, Fault::Partition { from, to });
        plan.push(end, Fault::Heal { from, to });
        if plan.random.bool() {
            plan.push(start, Fault::Partition { from: to, to: from });
            plan.push(end, Fault::Heal { from: to, to: from });
        }
    }
    for _ in 0..crashes {
        plan.begin();
        let node = match plan.random.u32(0..6) {
            0 => plan.control_of(cast),
            _ => plan.one_of(&cast.servers),
        };
        let (start, end) = plan.window(20, 3000);
        plan.push(start, Fault::Crash { node });
        plan.push(end, Fault::Start { node });
    }
    if storms > 1 {
        plan.begin();
        // Everything loses power within a moment.
        let (start, end) = plan.window(100, 2000);
        for node in cast.controls.iter().chain(&cast.servers).copied() {
            plan.push(start, Fault::Crash { node });
            let late = Duration::from_millis(plan.random.u64(0..800));
            plan.push(end + late, Fault::Start { node });
        }
    }
    for _ in 0..clients / 2 {
        plan.begin();
        let node = plan.one_of(&cast.clients);
        let (start, end) = plan.window(100, 2000);
        plan.push(start, Fault::Crash { node });
        plan.push(end, Fault::Start { node });
    }
    for _ in 0..stops / 3 {
        plan.begin();
        let node = plan.one_of(&cast.servers);
        let (start, end) = plan.window(300, 2500);
        plan.push(start, Fault::Stop { node });
        plan.push(end, Fault::Start { node });
    }
    for _ in 0..slows / 2 {
        plan.begin();
        let device = plan.random.usize(0..cast.devices);
        let factor = [4, 20, 200, 2000][plan.random.usize(0..4)];
        let (start, end) = plan.window(100, 2500);
        plan.push(start, Fault::Slow { device, factor });
        plan.push(end, Fault::Slow { device, factor: 1 });
    }
    for _ in 0..plan.random.u32(0..5) {
        plan.begin();
        // A server's last words are lost: it does what it was asked, nobody hears of it, and it loses power. Only its records on
        // disk know what it did when the same is asked again.
        let server = plan.one_of(&cast.servers);
        let (silence, crash) = plan.window(20, 400);
        let back = crash + Duration::from_micros(plan.random.u64(5_000..300_000));
        for client in &cast.clients {
            plan.push(silence, Fault::Partition { from: server, to: *client });
            plan.push(crash, Fault::Heal { from: server, to: *client });
        }
        plan.push(crash, Fault::Crash { node: server });
        plan.push(back, Fault::Start { node: server });
    }
}

/// Devices that are damaged for good, K at most.
fn damage(plan: &mut Plan<'_>, later: &mut fastrand::Rng, cast: &Cast) {
    let damaged = plan.random.usize(0..=cast.damage_max);
    let mut devices: Vec<usize> = (0..cast.devices).collect();
    plan.random.shuffle(&mut devices);
    for device in devices.into_iter().take(damaged) {
        plan.begin();
        if plan.random.bool() {
            let (start, _) = plan.window(1, 2);
            let fault = match later.u32(0..8) {
                0 => Fault::Ail { device, ailment: Ailment::Flushes },
                1 => Fault::Ail { device, ailment: Ailment::WritesAfter(later.u64(0..50)) },
                2 => Fault::Ail { device, ailment: Ailment::FullAfter(later.u64(0..50)) },
                3 => {
                    let (count, random) = (later.u32(1..20), later.u64(..));
                    Fault::Ail { device, ailment: Ailment::BadBlocks { count, random } }
                }
                _ => Fault::LoseDevice { device },
            };
            plan.push(start, fault);
        } else {
            let misdirected = later.u32(0..3) == 0;
            for _ in 0..plan.random.u32(1..4) {
                let (start, _) = plan.window(1, 2);
                let (blocks, random) = (plan.random.u32(1..40), plan.random.u64(..));
                plan.push(start, Fault::Rot { device, blocks, random, misdirected });
            }
        }
    }
}

struct Plan<'a> {
    random: &'a mut fastrand::Rng,
    length: Duration,
    group: u32,
    events: Vec<Planned>,
}

impl Plan<'_> {
    /// Another mishap.
    fn begin(&mut self) {
        self.group += 1;
    }

    fn push(&mut self, after: Duration, fault: Fault) {
        self.events.push(Planned { after, fault, group: self.group });
    }

    /// One of the control daemons. One alone takes no number of the seed's.
    fn control_of(&mut self, cast: &Cast) -> usize {
        match cast.controls[..] {
            [alone] => alone,
            _ => self.one_of(&cast.controls),
        }
    }

    fn one_of(&mut self, of: &[usize]) -> usize {
        of[self.random.usize(0..of.len())]
    }

    /// A window that begins inside the schedule, in milliseconds of length.
    fn window(&mut self, shortest_ms: u64, longest_ms: u64) -> (Duration, Duration) {
        let nanos = u64::try_from(self.length.as_nanos()).unwrap_or(u64::MAX);
        let start = Duration::from_nanos(self.random.u64(0..nanos));
        let length = Duration::from_micros(self.random.u64(shortest_ms * 1000..=longest_ms * 1000));
        (start, start + length)
    }

    fn noise(&mut self) -> SimFaults {
        let mut rate = |most: u32| if self.random.bool() { self.random.u32(0..=most) } else { 0 };
        let (loss, duplicate, reorder, corrupt) = (rate(80), rate(100), rate(150), rate(4));
        SimFaults {
            latency_min: SimFaults::NONE.latency_min,
            latency_max: Duration::from_micros(self.random.u64(40..3000)),
            bytes_per_second: [0, 0, 50_000_000][self.random.usize(0..3)],
            loss_per_mille: loss,
            duplicate_per_mille: duplicate,
            reorder_per_mille: reorder,
            reorder_delay_max: Duration::from_millis(self.random.u64(1..60)),
            corrupt_per_mille: corrupt,
            // Only where hardware moves the bulk: a damaged packet is sent again there, and the queue pair dies instead.
            queue_pair_death_per_mille: corrupt,
        }
    }
}
