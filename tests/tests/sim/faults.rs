//! The fault schedule: what goes wrong when, made from the seed before the run.
//!
//! Faults stay where survival is promised: at most K devices are ever damaged (lost or rotten). Crashes may come at any time and in
//! any number, since nothing that was flushed is lost by them. Each seed draws its own mixture (some kinds often, some never), so
//! that rare combinations get whole runs of their own.

use std::time::Duration;

use verbs_net::SimFaults;

/// One thing that goes wrong, or right again.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Faults of all links from now on.
    Net(SimFaults),
    /// Messages from one node to another vanish.
    Partition { from: usize, to: usize },
    /// They arrive again.
    Heal { from: usize, to: usize },
    /// A node loses power.
    Crash { node: usize },
    /// It comes back, if it is down.
    Start { node: usize },
    /// A server is asked to stop in good order.
    Stop { node: usize },
    /// Each access of a device fails from now on.
    LoseDevice { device: usize },
    /// Some written blocks of a device are chosen to rot.
    Rot { device: usize, blocks: u32, random: u64 },
    /// They rot, once the device has committed something newer (see `World::rot`).
    RotChosen { choice: usize },
    /// A device becomes slower by a factor; 1 ends it.
    Slow { device: usize, factor: u32 },
}

/// Which nodes there are, by index.
pub struct Cast {
    pub control: usize,
    pub servers: Vec<usize>,
    pub clients: Vec<usize>,
    pub devices: usize,
    /// K.
    pub damage_max: usize,
}

/// The schedule of `length`, sorted by time since its start.
pub fn schedule(random: &mut fastrand::Rng, cast: &Cast, length: Duration) -> Vec<(Duration, Fault)> {
    let mut plan = Plan { random, length, events: Vec::new() };
    let everybody: Vec<usize> = std::iter::once(cast.control)
        .chain(cast.servers.iter().copied())
        .chain(cast.clients.iter().copied())
        .collect();
    // How often each kind comes in this seed: 0 now and then, so that kinds are also seen alone.
    let counts: [u32; 7] = std::array::from_fn(|_| match plan.random.u32(0..4) {
        0 => 0,
        1 => 1,
        more => more * 2,
    });
    let [noises, partitions, crashes, storms, clients, stops, slows] = counts;
    for _ in 0..noises {
        let faults = plan.noise();
        let (start, end) = plan.window(100, 3000);
        plan.push(start, Fault::Net(faults));
        plan.push(end, Fault::Net(SimFaults::NONE));
    }
    for _ in 0..partitions {
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
        let node = match plan.random.u32(0..6) {
            0 => cast.control,
            _ => plan.one_of(&cast.servers),
        };
        let (start, end) = plan.window(20, 3000);
        plan.push(start, Fault::Crash { node });
        plan.push(end, Fault::Start { node });
    }
    if storms > 1 {
        // Everything loses power within a moment.
        let (start, end) = plan.window(100, 2000);
        for node in std::iter::once(cast.control).chain(cast.servers.iter().copied()) {
            plan.push(start, Fault::Crash { node });
            let late = Duration::from_millis(plan.random.u64(0..800));
            plan.push(end + late, Fault::Start { node });
        }
    }
    for _ in 0..clients / 2 {
        let node = plan.one_of(&cast.clients);
        let (start, end) = plan.window(100, 2000);
        plan.push(start, Fault::Crash { node });
        plan.push(end, Fault::Start { node });
    }
    for _ in 0..stops / 3 {
        let node = plan.one_of(&cast.servers);
        let (start, end) = plan.window(300, 2500);
        plan.push(start, Fault::Stop { node });
        plan.push(end, Fault::Start { node });
    }
    for _ in 0..slows / 2 {
        let device = plan.random.usize(0..cast.devices);
        let factor = [4, 20, 200, 2000][plan.random.usize(0..4)];
        let (start, end) = plan.window(100, 2500);
        plan.push(start, Fault::Slow { device, factor });
        plan.push(end, Fault::Slow { device, factor: 1 });
    }
    for _ in 0..plan.random.u32(0..5) {
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
    let damaged = plan.random.usize(0..=cast.damage_max);
    let mut devices: Vec<usize> = (0..cast.devices).collect();
    plan.random.shuffle(&mut devices);
    for device in devices.into_iter().take(damaged) {
        if plan.random.bool() {
            let (start, _) = plan.window(1, 2);
            plan.push(start, Fault::LoseDevice { device });
        } else {
            for _ in 0..plan.random.u32(1..4) {
                let (start, _) = plan.window(1, 2);
                let (blocks, random) = (plan.random.u32(1..40), plan.random.u64(..));
                plan.push(start, Fault::Rot { device, blocks, random });
            }
        }
    }
    let mut events = plan.events;
    events.sort_by_key(|(at, _)| *at); // stable: what was planned first stays first
    events
}

struct Plan<'a> {
    random: &'a mut fastrand::Rng,
    length: Duration,
    events: Vec<(Duration, Fault)>,
}

impl Plan<'_> {
    fn push(&mut self, at: Duration, fault: Fault) {
        self.events.push((at, fault));
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
