//! Bugs on purpose, handed to a control daemon by the simulation, which has to find each (docs/simulation.md). Nobody else has a way to set one.

/// A seeded bug of control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Whoever takes, gives back or breaks a lock is told so before it is durable.
    ToldBeforeDurable,
}
