//! Bugs on purpose, handed to a control daemon by the simulation, which has to find each (docs/simulation.md). Nobody else has a way to set one.

/// A seeded bug of control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Whoever takes, gives back or breaks a lock is told so before it is durable.
    ToldBeforeDurable,
    /// A leader takes a change as done once it is in its own log, and asks nobody before it answers.
    ToldBeforeMajority,
    /// A leader answers without asking whether somebody else leads.
    LeadNotAsked,
    /// Term and vote are not made durable.
    VoteForgotten,
    /// What the log got is made durable with the next tick, and answered before.
    EntriesLate,
    /// A reign begins without its line: entries that have no effect yet are passed over.
    ReignWithoutLine,
    /// When the log is cut, the members at its beginning stay what they were before.
    MembersForgotten,
}

impl Bug {
    /// True for those that one daemon alone cannot have.
    #[must_use]
    pub fn needs_several(self) -> bool {
        self != Bug::ToldBeforeDurable
    }
}
