//! Bugs on purpose, handed to a machine by tests that show that tests find bugs (docs/simulation.md#seeded-bugs). Never on otherwise.

/// A seeded bug of this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The reply cache forgets everything: a resend runs.
    ReplyCacheOff,
    /// Records of slots are not looked at after a restart.
    SlotRecordsOff,
    /// A change commits without the record of its slot.
    SlotRecordNotWritten,
    /// A restarted server gives sessions back before it has read their records.
    ResumedTooEarly,
    /// Of a slot's records on several devices the lowest number counts.
    LowestRecordWins,
    /// A fom that ends with an error does not give its place back.
    FomPlaceLeaked,
    /// Of every eighth bulk transfer the end is not told to whoever waits for it.
    WakeLost,
    /// A reply is taken for the call in its slot, whatever its number.
    ReplyToAnyCall,
    /// The slot of a call that was given up is used again before the server is done with it.
    SlotFreedEarly,
    /// A client goes on with its numbers in a session that its server does not know.
    SessionNeverLost,
}
