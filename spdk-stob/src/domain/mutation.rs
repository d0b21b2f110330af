//! Bugs on purpose, in test builds only: each must be caught by the crash tests, or those tests prove nothing.

use base::BlockExtent;

use super::Shared;
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
}

impl Shared {
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
