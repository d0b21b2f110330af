//! What cluster a seed runs on: how many servers, devices and clients.

use crate::mutation::Mutation;
use crate::workload;

/// What cluster a seed runs on.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub servers: usize,
    pub devices_per_server: usize,
    /// Devices of the last server are in no pool at first, which grows in the middle of the run, and everything moves ([`crate::growth`]).
    pub has_growth: bool,
    /// Of each server, which share its devices.
    pub localities: usize,
    /// Control daemons.
    pub controls: usize,
    /// One more joins them in the middle of the run, and another one leaves.
    pub has_newcomer: bool,
    /// Servers also start while what is sent again to them gets lost: in the seeds with several control daemons, as those before keep their schedules. So
    /// many times as often as there; 0: not at all.
    pub bad_starts: u32,
    /// A control daemon has room for the sessions of those that live, and hardly more: in half of the seeds with several.
    pub has_few_sessions: bool,
    /// At least one device is lost late and gets another disk, so that clients write while it is filled.
    pub has_repairs: bool,
    /// The leading control daemon is cut off from all but one node so many times more.
    pub more_cuts: u32,
    /// N of the layout.
    pub data_units: u32,
    /// Clients: workers, and the longest pause of a worker in milliseconds.
    pub clients: &'static [(usize, u64)],
    /// All workers together begin so many operations in a second of true time, and make up for what an outage held up; `None`: each thinks for itself.
    pub rate_max: Option<u64>,
    /// Units of one block, and no more than two groups in an object.
    pub are_objects_small: bool,
}

impl Shape {
    /// The shape of a seed: mostly 4 servers of 2 devices, and everything from 3 nodes to 12. Seeded bugs are looked for on the common one.
    pub fn of(seed: u64, mutation: Option<Mutation>) -> Shape {
        let data_units = workload::data_units(seed);
        let controls = Shape::controls_of(seed, mutation);
        let is_about_starts = mutation == Some(Mutation::Rpc(rpc::Bug::ResumedTooEarly));
        let is_about_sessions =
            mutation == Some(Mutation::Client(client::Bug::Rpc(rpc::Bug::SessionNeverLost)));
        let shape = |servers, devices_per_server, clients| Shape {
            servers,
            devices_per_server,
            has_growth: false,
            // A third of the clusters has servers of two localities, where they have devices for two; the seeded bugs are looked for without.
            localities: if mutation.is_none() && seed % 3 == 1 { devices_per_server.min(2) } else { 1 },
            controls,
            has_newcomer: Shape::has_newcomer(seed, controls, mutation),
            bad_starts: if is_about_starts { 3 } else { u32::from(controls > 1 && mutation.is_none()) },
            has_repairs: mutation == Some(Mutation::Client(client::Bug::RepairBesideWrites)),
            more_cuts: if mutation == Some(Mutation::Control(control::Bug::LeadNotAsked)) { 6 } else { 0 },
            has_few_sessions: is_about_sessions || (controls > 1 && seed % 2 == 1),
            data_units,
            clients,
            rate_max: None,
            are_objects_small: false,
        };
        let is_about_moves = mutation == Some(Mutation::Client(client::Bug::MoveBesideWrites));
        match (mutation, seed % 12) {
            _ if is_about_moves => Shape { has_growth: true, ..shape(5, 2, &[(3, 40), (2, 60)]) },
            // What has operators who change the cluster file has no others.
            (None, 6 | 11) if !Shape::has_newcomer(seed, controls, mutation) => {
                Shape { has_growth: true, ..shape(5, 2, &[(3, 40), (2, 60)]) }
            }
            (None, 3) => shape(1, 8, &[(5, 40)]),
            (None, 4) => shape(8, 1, &[(2, 40), (2, 60), (1, 30)]),
            (None, 7) => shape(3, 3, &[(3, 40), (2, 60)]),
            (None, 10) => shape(6, 2, &[(3, 40), (1, 60)]),
            _ => shape(4, 2, &[(3, 40), (2, 60)]),
        }
    }

    /// One, and in two of seven seeds three or five; as many where a seeded bug needs several.
    fn controls_of(seed: u64, mutation: Option<Mutation>) -> usize {
        match (mutation, seed % 7) {
            (None, 4) => 3,
            (None, 0) => 5,
            (Some(mutation), 0) if mutation.needs_several_controls() => 5,
            (Some(mutation), _) if mutation.needs_several_controls() => 3,
            _ => 1,
        }
    }

    /// Of the seeds with several control daemons the even ones; a seeded bug is looked for with it where it is about that.
    pub fn has_newcomer(seed: u64, controls: usize, mutation: Option<Mutation>) -> bool {
        let is_about_members = mutation == Some(Mutation::Control(control::Bug::MembersForgotten));
        controls > 1 && (is_about_members || (mutation.is_none() && seed.is_multiple_of(2)))
    }

    /// How long clients work until all has to be well again, in milliseconds.
    pub fn work_for_ms(&self) -> u64 {
        8000 + self.calm_for_ms()
    }

    /// How long they do before faults happen. Servers begin to move objects so long after they were told (`faces::limits::REPAIR_SETTLE`), and again after each
    /// restart, that many a move would not begin before faults are over.
    pub fn calm_for_ms(&self) -> u64 {
        if self.has_growth { 6500 } else { 0 }
    }

    /// Devices of the first pool version.
    pub fn first_devices(&self) -> usize {
        (self.servers - usize::from(self.has_growth)) * self.devices_per_server
    }

    /// Nodes that are control daemons at some time.
    pub fn control_nodes(&self) -> usize {
        self.controls + usize::from(self.has_newcomer)
    }

    /// Sessions that a control daemon has room for, if they are few. Those of servers, their copiers and clients are in use all the time; two more clients
    /// come at the end, and one place has to be free.
    pub fn sessions_max(&self) -> Option<usize> {
        let in_use = 2 * self.servers * self.localities + self.clients.len() + self.control_nodes() - 1;
        self.has_few_sessions.then_some(in_use + 3)
    }

    /// The stated load: 4 servers, 500 operations in a simulated second of two clients, small objects (docs/simulation.md#speed).
    pub fn load(seed: u64) -> Shape {
        let clients: &'static [_] = &[(40, 60), (40, 60)];
        let data_units = workload::data_units(seed);
        Shape {
            servers: 4,
            devices_per_server: 2,
            has_growth: false,
            localities: 1,
            controls: 1,
            has_newcomer: false,
            bad_starts: 0,
            has_few_sessions: false,
            has_repairs: false,
            more_cuts: 0,
            data_units,
            clients,
            rate_max: Some(500),
            are_objects_small: true,
        }
    }
}
