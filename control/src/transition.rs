//! The one table of device states: state × event gives the next state, each row with its reason. Pure.
//!
//! **Invariant**: nothing leads out of `Failed` but a new disk, or spare units that have everything, and nothing out of `Repair` and `Rebalance` into service
//! but the copy of all that it missed: a device that missed writes must not be read as if it had them. docs/ha.md prints the table; the test at the bottom pins each pair.

use faces::DeviceState;

/// Something that happened to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceEvent {
    /// Its server registered it: it is open and answers.
    Registered,
    /// Its server's lease ended.
    LeaseLost,
    /// Its own server saw an access fail on the device.
    IoError,
    /// Somebody else reported an I/O error of it: hearsay, its own server says so itself if it is true.
    IoErrorHeard,
    /// Somebody cannot reach its server: the lease decides, not the report.
    Unreachable,
    /// An operator gives it up.
    Operator,
    /// An operator takes it out for a while.
    Detach,
    /// An operator takes it back.
    Attach,
    /// Its server registered it with the disk that an operator ordered it to be replaced by, formatted.
    Replaced,
    /// Everything that it missed is on it.
    Restored,
    /// An operator gives its new disk up.
    Aborted,
    /// Everything that it held stands in spare units.
    Spared,
    /// It has been away for longer than the operator wants to wait for it.
    AwayTooLong,
}

impl DeviceEvent {
    /// Every event, in the order of the table.
    pub const ALL: [DeviceEvent; 13] = [
        DeviceEvent::Registered,
        DeviceEvent::LeaseLost,
        DeviceEvent::IoError,
        DeviceEvent::IoErrorHeard,
        DeviceEvent::Unreachable,
        DeviceEvent::Operator,
        DeviceEvent::Detach,
        DeviceEvent::Attach,
        DeviceEvent::Replaced,
        DeviceEvent::Restored,
        DeviceEvent::Aborted,
        DeviceEvent::Spared,
        DeviceEvent::AwayTooLong,
    ];

    /// The word for `fops::conf::Event`, at most 16 letters.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            DeviceEvent::Registered => "registered",
            DeviceEvent::LeaseLost => "lease lost",
            DeviceEvent::IoError => "i/o error",
            DeviceEvent::IoErrorHeard => "i/o error heard",
            DeviceEvent::Unreachable => "unreachable",
            DeviceEvent::Operator => "operator",
            DeviceEvent::Detach => "operator detach",
            DeviceEvent::Attach => "operator attach",
            DeviceEvent::Replaced => "disk replaced",
            DeviceEvent::Restored => "copy complete",
            DeviceEvent::Aborted => "repair aborted",
            DeviceEvent::Spared => "in spare units",
            DeviceEvent::AwayTooLong => "away too long",
        }
    }
}

/// Every state, in the order of the table.
pub const STATES: [DeviceState; 8] = [
    DeviceState::Unknown,
    DeviceState::Online,
    DeviceState::Transient,
    DeviceState::Failed,
    DeviceState::Repair,
    DeviceState::Repaired,
    DeviceState::Rebalance,
    DeviceState::Detached,
];

/// The state of a device after an event.
#[must_use]
pub fn next_state(state: DeviceState, event: DeviceEvent) -> DeviceState {
    use DeviceEvent::{
        Aborted, Attach, AwayTooLong, Detach, IoError, IoErrorHeard, LeaseLost, Operator, Registered,
        Replaced, Restored, Spared, Unreachable,
    };
    use DeviceState::{Detached, Failed, Online, Rebalance, Repair, Repaired, Transient, Unknown};
    match (state, event) {
        // It has every acknowledged byte: a write that a Transient device missed was not acknowledged.
        (Unknown | Online | Transient, Registered) => Online,
        // Its server may come back with it.
        (Online | Transient, LeaseLost) => Transient,
        // Never seen: there is nothing to lose.
        (Unknown, LeaseLost) => Unknown,
        // Whoever set the time wants writes to go on without it. The others are here, or were never, or somebody has them in hand.
        (Transient, AwayTooLong) => Failed,
        (Unknown | Online | Detached | Repair | Rebalance, AwayTooLong) => state,
        // Bytes may be gone, or somebody wants it gone; from now on writes skip it.
        (Unknown | Online | Transient | Detached, IoError | Operator) => Failed,
        // No write goes past it while it is out, so it has every acknowledged byte when it comes back.
        (Online | Transient, Detach) => Detached,
        // Whoever took it out takes it back; whether its server is there is the next event's matter.
        (Detached, Attach) => Transient,
        // Its server, its lease and a restart of either do not count against the operator's word.
        (Detached, Registered | LeaseLost | IoErrorHeard | Unreachable | Detach) => Detached,
        // Never seen: there is nothing to take out. The others were not taken out.
        (Unknown, Detach | Attach) => Unknown,
        (Online | Transient, Attach) => state,
        // Blank: writes use it from now on, and what it missed is copied to it.
        (Failed, Replaced) => Repair,
        // Whether its server is there is the next event's matter.
        (Repair, Restored) => Transient,
        // The new disk fails too, or is given up.
        (Repair, IoError | Operator | Aborted) => Failed,
        // While its server is away, writes that need it wait, as with Transient: it misses nothing.
        (Repair, Registered | LeaseLost | IoErrorHeard | Unreachable | Detach | Attach | Replaced) => Repair,
        // Nothing is missing any more: spare units have what it had, and writes go there.
        (Failed, Spared) => Repaired,
        // Blank: writes use it beside the spare units from now on, and what those have is copied to it.
        (Repaired, Replaced) => Rebalance,
        // As after a repair.
        (Rebalance, Restored) => Transient,
        // The new disk fails too, or is given up. The spare units have everything: writes went there as well.
        (Rebalance, IoError | Operator | Aborted) => Repaired,
        // Nothing was replaced there.
        (Unknown | Online | Transient | Detached, Replaced | Restored | Aborted) => state,
        // Only what is failed has its units rebuilt elsewhere.
        (Unknown | Online | Transient | Detached | Repair | Rebalance, Spared) => state,
        // Not proof.
        (Unknown | Online | Transient | Rebalance, IoErrorHeard | Unreachable) => state,
        (Rebalance, Registered | LeaseLost | Detach | Attach | Replaced) => Rebalance,
        // No other event brings missed writes back.
        (Failed | Repaired, _) => state,
        // `DeviceState` may grow a state; it stays as it is until the table says otherwise.
        (other, _) => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each pair. A change here is a change of docs/ha.md.
    const TABLE: &str = "\
state      Registered LeaseLost  IoError    IoErrorHeard Unreachable Operator   Detach     Attach     Replaced   Restored   Aborted    Spared     AwayTooLong
unknown    online     unknown    failed     unknown      unknown     failed     unknown    unknown    unknown    unknown    unknown    unknown    unknown
online     online     transient  failed     online       online      failed     detached   online     online     online     online     online     online
transient  online     transient  failed     transient    transient   failed     detached   transient  transient  transient  transient  transient  failed
failed     failed     failed     failed     failed       failed      failed     failed     failed     repair     failed     failed     repaired   failed
repair     repair     repair     failed     repair       repair      failed     repair     repair     repair     transient  failed     repair     repair
repaired   repaired   repaired   repaired   repaired     repaired    repaired   repaired   repaired   rebalance  repaired   repaired   repaired   repaired
rebalance  rebalance  rebalance  repaired   rebalance    rebalance   repaired   rebalance  rebalance  rebalance  transient  repaired   rebalance  rebalance
detached   detached   detached   failed     detached     detached    failed     detached   transient  detached   detached   detached   detached   detached
";

    #[test]
    fn every_state_and_event() {
        let mut table = String::from("state     ");
        for event in DeviceEvent::ALL {
            table.push_str(&format!(" {:<10}", format!("{event:?}")));
        }
        table.push('\n');
        for state in STATES {
            table.push_str(&format!("{:<10}", state.word()));
            for event in DeviceEvent::ALL {
                let width = format!("{event:?}").len().max(10);
                table.push_str(&format!(" {:<width$}", next_state(state, event).word()));
            }
            table.push('\n');
        }
        let trimmed: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        assert_eq!(trimmed, TABLE);
    }

    #[test]
    fn docs_print_the_same_table() {
        let docs = include_str!("../../docs/ha.md");
        for line in TABLE.lines() {
            assert!(docs.contains(line), "docs/ha.md lacks the row {line:?}");
        }
    }
}
