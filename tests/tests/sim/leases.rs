//! The promise of a lease, looked at from outside: when control takes a server's lease as lost, that server has stopped serving.
//!
//! It holds while every clock runs within [`crate::faults::DRIFT_ALLOWED`]. A node whose clock ran at another rate is excused from then on, and
//! a control daemon whose clock did excuses everybody whose lease it takes as lost: what holds then is in docs/simulation.md#clocks.

use std::collections::BTreeSet;

use base::{Fid, FidType};
use control::Control;

/// What was seen of control's events.
#[derive(Default)]
pub struct LeaseWatch {
    version: u64,
    number: u64,
    excused: BTreeSet<usize>,
}

impl LeaseWatch {
    /// This node's clock ran faster or slower than leases allow.
    pub fn excuse(&mut self, node: usize) {
        self.excused.insert(node);
    }

    /// True if nothing is promised for this node by this control daemon: a clock of theirs was too fast or too slow.
    pub fn is_excused(&self, node: usize, control: usize) -> bool {
        self.excused.contains(&node) || self.excused.contains(&control)
    }

    /// The processes and devices whose leases were taken as lost since the last look. Of several daemons each is asked: one that only believes that it
    /// leads has nothing that others have not.
    pub fn lost_since(&mut self, control: &Control) -> Vec<Fid> {
        let version = control.configuration().version;
        if version <= self.version {
            return Vec::new();
        }
        self.version = version;
        let events = control.events();
        let fresh: Vec<_> = events
            .iter()
            .filter(|event| event.number > self.number)
            .filter(|event| event.subject.is(FidType::Process) || event.subject.is(FidType::Device))
            .collect();
        // One that came back in the same moment serves by right.
        let is_last = |at: usize| fresh[at + 1..].iter().all(|later| later.subject != fresh[at].subject);
        let lost = (0..fresh.len()).filter(|at| fresh[*at].cause == "lease lost" && is_last(*at));
        let lost = lost.map(|at| fresh[at].subject).collect();
        self.number = events.last().map_or(self.number, |event| event.number.max(self.number));
        lost
    }
}
