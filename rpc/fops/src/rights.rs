//! Which right each request needs: one table, so that it can be read as a whole, and a new opcode does not compile without its row.

use base::Right;

use crate::Opcode;

impl Opcode {
    /// The right that a peer needs for it to be run at all. Some bodies need one more, which their service asks for: making an object
    /// in an open, taking a lock or a credit for oneself alone ([`Opcode::more`] names them).
    #[must_use]
    pub const fn needs(self) -> Right {
        match self {
            // What everybody who may connect has to know.
            Opcode::ConfGet
            | Opcode::ClusterStatus
            | Opcode::ConfSync
            | Opcode::StatusGet
            | Opcode::ConfText
            | Opcode::ConfHistory
            | Opcode::EventsGet
            | Opcode::Ping
            | Opcode::ProcessGet
            | Opcode::LoadGet
            | Opcode::RepairGet
            | Opcode::MembersGet => Right::Connect,
            // Looks at objects, and at who works on them.
            Opcode::ObjectOpen
            | Opcode::ObjectList
            | Opcode::ComponentRead
            | Opcode::LockTake
            | Opcode::LockRelease
            | Opcode::LockRenew
            | Opcode::LockList
            | Opcode::RmBegin
            | Opcode::RmBorrow
            | Opcode::RmReturn
            | Opcode::RmPoll
            | Opcode::RmList
            | Opcode::TicketedOpen
            | Opcode::WatchRegister
            | Opcode::WatchUnregister
            | Opcode::WatchPoll
            | Opcode::WatchAck
            | Opcode::WatchList => Right::Read,
            // Changes objects, or makes those who watch them act.
            Opcode::ObjectUpdate
            | Opcode::ObjectDelete
            | Opcode::ComponentWrite
            | Opcode::ComponentDelete
            | Opcode::TicketedWrite
            | Opcode::TicketedComponentDelete
            | Opcode::TicketedUpdate
            | Opcode::TicketedDelete
            | Opcode::Notify
            | Opcode::NotifyOutcomesGet => Right::Write,
            // Changes the cluster, or takes something from others.
            Opcode::ConfApply
            | Opcode::ConfUpload
            | Opcode::ConfApplyUpload
            | Opcode::DeviceCommand
            | Opcode::DeviceFault
            | Opcode::NetFault
            | Opcode::Shutdown
            | Opcode::LockBreak
            | Opcode::MemberChange
            | Opcode::BackupGet => Right::Administer,
            // What only a daemon of the cluster says.
            Opcode::Register
            | Opcode::Heartbeat
            | Opcode::FencesGet
            | Opcode::LoadReport
            | Opcode::RepairTurn
            | Opcode::ObjectForget
            | Opcode::ComponentPunch
            | Opcode::MemberMessage => Right::Serve,
            // Control judges devices by it: a client that may not write cannot take one out of service.
            Opcode::DeviceReport => Right::Write,
        }
    }

    /// The right that some bodies of it need beside [`Opcode::needs`], and which those are.
    #[must_use]
    pub const fn more(self) -> Option<(Right, &'static str)> {
        match self {
            Opcode::ObjectOpen | Opcode::TicketedOpen => Some((Right::Write, "an object that is to be made")),
            Opcode::LockTake => Some((Right::Write, "a lock for oneself alone")),
            Opcode::RmBorrow => Some((Right::Write, "a credit for oneself alone, and numbers of objects")),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_read_changes_nothing() {
        let of = |right: Right| Opcode::ALL.iter().filter(|opcode| opcode.needs() == right).count();
        let counts: Vec<usize> = Right::ALL.into_iter().map(of).collect();
        assert_eq!(counts, [12, 18, 11, 10, 8], "a new opcode: is its row right?");
        for opcode in
            [Opcode::ComponentWrite, Opcode::ObjectDelete, Opcode::TicketedUpdate, Opcode::DeviceReport]
        {
            assert_eq!(opcode.needs(), Right::Write);
        }
        for opcode in [Opcode::ConfApply, Opcode::DeviceCommand, Opcode::MemberChange, Opcode::Shutdown] {
            assert_eq!(opcode.needs(), Right::Administer);
        }
        assert_eq!(Opcode::Register.needs(), Right::Serve);
    }
}
