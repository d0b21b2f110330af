//! Bugs on purpose, handed to one client by the simulation, which has to find each (docs/simulation.md). Nobody else has a way to set one.

/// A seeded bug of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// An absent block is taken for zeros, whatever else is in its row.
    AbsentIsZero,
    /// A change of a record is acknowledged once one replica has it, and the others are not told.
    OneReplicaIsEnough,
    /// A write in place forgets the parity.
    StaleParity,
    /// A replacement drops the old bytes before its record flips.
    DropBeforeCommit,
    /// Of the replicas of a record the first that answers counts, be it old.
    FirstAnswerIsEnough,
    /// While a device is in repair, changes in place are made without the credit that keeps the copy machine off.
    RepairBesideWrites,
    /// Writes go past the spare units that stand for a repaired device's.
    PastTheSpare,
    /// While a pool is being rebalanced, changes in place of objects that may move are made without the credit that keeps the mover off.
    MoveBesideWrites,
    /// One of its rpc machine's.
    Rpc(rpc::Bug),
}
