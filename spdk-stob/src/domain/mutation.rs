//! Bugs on purpose, in test builds only: each must be caught by the crash tests, or those tests prove nothing.

use base::BlockExtent;

use super::Shared;
use super::space::State;
use crate::format::change::Change;

/// A seeded bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// No flush reaches the device.
    SkipFlush,
    /// The caller is told before the flush.
    AnswerBeforeFlush,
    /// Blocks freed by a group are free before its record is durable.
    ReuseBeforeFlush,
    /// Recovery believes the last record without looking at its data.
    TrustTail,
    /// The log is freed, and the superblock never written, at a checkpoint.
    ReleaseLogEarly,
    /// Recovery skips the flush and the barrier that end a dropped tail.
    SkipBarrier,
    /// Recovery forgets the last durable record.
    LoseRecord,
    /// Reads are not verified.
    SkipReadVerification,
    /// The map gets a wrong checksum for the first block of each write.
    WrongChecksum,
    /// Blocks given to a write stay free.
    DoubledExtent,
    /// Blocks of a deleted stob never become free.
    LeakedExtent,
    /// Snapshots do not count as owners.
    SnapshotOwnsNothing,
    /// Recovery forgets holes.
    LosePunch,
    /// The superblock goes out before the checkpoint that it names is durable.
    CheckpointUnflushed,
    /// A checkpoint overwrites the one in use.
    CheckpointInPlace,
    /// A checkpoint says that one record more is in it.
    ReplayTooLate,
    /// A record is written without its last change.
    LostChange,
    /// Conditions are not looked at.
    SkipCondition,
    /// Freed blocks are free at once, whoever still reads them.
    SkipLimbo,
    /// A checkpoint leaves out a page that changed.
    LostPage,
    /// A checkpoint writes a page over the one that is in use.
    PageInPlace,
    /// A checkpoint leaves the bits of free space as they were.
    LostBits,
}

impl Mutation {
    /// Those that [`crate::exhaustive_tests`] have to catch.
    pub(crate) const SHOWN_BY_SHORT_WORKLOADS: [Mutation; 14] = [
        Mutation::SkipFlush,
        Mutation::AnswerBeforeFlush,
        Mutation::TrustTail,
        Mutation::LoseRecord,
        Mutation::WrongChecksum,
        Mutation::DoubledExtent,
        Mutation::LeakedExtent,
        Mutation::SnapshotOwnsNothing,
        Mutation::LosePunch,
        Mutation::CheckpointUnflushed,
        Mutation::ReplayTooLate,
        Mutation::LostChange,
        Mutation::LostPage,
        Mutation::LostBits,
    ];
}

impl Shared {
    /// What is applied instead of `change`.
    pub(super) fn mutated_change(&self, mut change: Change) -> Change {
        if let (Some(Mutation::WrongChecksum), Change::Map { checksums, .. }) = (self.mutation, &mut change) {
            checksums[0] ^= 1;
        }
        change
    }

    /// What else happens after a group was applied.
    pub(super) fn mutate_state(&self, state: &mut State, freed: &mut Vec<BlockExtent>) {
        match self.mutation {
            Some(Mutation::LeakedExtent) => freed.clear(),
            Some(Mutation::SnapshotOwnsNothing) => {
                let used = state.metadata.used_blocks();
                state.metadata.set_shared(crate::shared_blocks::SharedBlocks::default(), used);
            }
            _ => {}
        }
    }

    pub(super) fn is_mutated(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// Frees what `changes` are going to free.
    pub(super) fn free_early<'a>(&self, changes: impl Iterator<Item = &'a Change>) {
        let mut state = self.state.borrow_mut();
        let mut after = state.metadata.clone();
        let mut freed: Vec<BlockExtent> = Vec::new();
        for change in changes {
            after.apply(change.clone(), &mut freed);
        }
        // Blocks mapped by this very group are not in the free space's hands yet.
        freed.retain(|extent| is_mapped(&state.metadata, *extent));
        for extent in freed {
            let _ = state.free.release(extent);
        }
    }
}

fn is_mapped(metadata: &crate::metadata::Metadata, extent: BlockExtent) -> bool {
    metadata
        .extents_from(crate::extents::ExtentKey::default())
        .any(|(_, mapped)| mapped.device_extent().intersection(&extent).is_some())
}
