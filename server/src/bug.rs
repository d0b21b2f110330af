//! Bugs on purpose, handed to a server by the simulation, which has to find each (docs/simulation.md). Nobody else has a way to set one.

/// A seeded bug of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// It serves on when its lease has ended.
    LeaseUnchecked,
    /// The buffers of one read in sixteen are never given back.
    BufferLeaked,
}
