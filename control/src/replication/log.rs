//! Where control's changes become durable: in its own store alone, or on a majority of several control daemons.
//!
//! **Invariant**: a batch that was committed is whole, and found by whoever leads later. Start at [`ReplicatedLog`].

use std::future::Future;
use std::pin::Pin;

use spdk_stob::{Domain, TreeId};

use crate::error::ControlError;
use crate::replication::batch::Batch;
use crate::replication::journal::Position;

/// This daemon does not lead, or no majority says that it does. What it was about to say may not be true any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotLeading;

/// Resolves when a batch is durable.
pub(crate) type Committing<'a> = Pin<Box<dyn Future<Output = Result<(), ControlError>> + 'a>>;
/// Resolves when it is certain that nobody else led before the question.
pub(crate) type Confirming<'a> = Pin<Box<dyn Future<Output = Result<(), NotLeading>> + 'a>>;

/// The seam between control's decisions and their durability.
pub(crate) trait ReplicatedLog {
    /// The trees of the state, at [`ReplicatedLog::place`].
    fn domain(&self) -> &Domain;

    /// Where a tree of the state stands in the domain.
    fn place(&self, tree: TreeId) -> TreeId;

    /// Makes the changes durable together. Batches take effect in the order of the calls.
    ///
    /// Errors: the store failed; [`ControlError::NotLeading`]: it may come in force or not, and is for another daemon to say.
    fn commit(&self, batch: Batch) -> Committing<'_>;

    /// The entry that the state has the effect of; 0 where there is no log.
    fn position(&self) -> Position;

    /// True if other daemons have it too.
    fn is_shared(&self) -> bool;

    /// Numbers of the daemons that have it, and of those that are fed; none where there is nobody else.
    fn members(&self) -> Vec<u64>;

    /// Asks whether anybody else may have led since the call; `None` if there is nobody else.
    fn confirm(&self) -> Option<Confirming<'_>>;
}

/// One daemon: its store is the truth.
pub(crate) struct Alone(pub(crate) Domain);

impl ReplicatedLog for Alone {
    fn domain(&self) -> &Domain {
        &self.0
    }

    fn place(&self, tree: TreeId) -> TreeId {
        tree
    }

    fn commit(&self, batch: Batch) -> Committing<'_> {
        let transaction = batch.transaction(&self.0, |tree| tree);
        Box::pin(async move { self.0.commit(transaction).await.map_err(ControlError::Store) })
    }

    fn position(&self) -> Position {
        Position::default()
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn members(&self) -> Vec<u64> {
        Vec::new()
    }

    fn confirm(&self) -> Option<Confirming<'_>> {
        None
    }
}
