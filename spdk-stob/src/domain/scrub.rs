//! Scrubbing: reads every written block in the background, slowly, and reports each one that is bad to the layer above, which has parity.
//!
//! One run of the device at a time, at most one buffer's worth, through the same verification as a read; then it sleeps as long as the
//! rate asks for, so it never holds more than one buffer and never more than one place in the device's queue. Blocks that snapshots share are read
//! once per owner: each owner has to be told. Writes and deletions go on meanwhile; what they replace is skipped.
//! It ends when it is stopped, when its [`Scrub`] is dropped, or with the domain. Thread: the domain's locality.

use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::time::Duration;

use base::BlockExtent;
use base::units::{BLOCK_BYTES, MIB, wide};

use super::paging::Look;
use super::{Domain, Guard, Shared};
use crate::error::StobError;
use crate::extents::ExtentKey;
use crate::limits::DEVICE_OPERATION_BLOCKS_MAX;
use crate::stob_id::StobId;

/// How to scrub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubConfig {
    /// Most bytes to read in a second, at least one block.
    pub bytes_per_second: u64,
    /// From the end of one pass to the start of the next. `None`: one pass only.
    pub pause: Option<Duration>,
}

impl Default for ScrubConfig {
    /// 16 MiB/s: a full TiB in 18 hours, at about 1 % of what a device reads. A day between passes.
    fn default() -> ScrubConfig {
        ScrubConfig { bytes_per_second: 16 * MIB, pause: Some(Duration::from_secs(24 * 3600)) }
    }
}

/// A block that does not read true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadBlock {
    /// The stob.
    pub stob: StobId,
    /// Block of the stob: rebuild it from parity and write it again.
    pub block: u64,
    /// [`StobError::Checksum`] or [`StobError::Device`].
    pub error: StobError,
}

/// What a scrub did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubStats {
    /// Passes over all stobs that ended.
    pub passes: u64,
    /// Blocks read.
    pub blocks: u64,
    /// Bad blocks reported.
    pub bad_blocks: u64,
}

#[derive(Default)]
struct Progress {
    stats: Cell<ScrubStats>,
    is_stopped: Cell<bool>,
}

/// A scrub under way; dropping it ends the scrub after the read under way.
#[must_use = "a scrub ends when this is dropped"]
pub struct Scrub(Rc<Progress>);

impl Scrub {
    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> ScrubStats {
        self.0.stats.get()
    }
}

impl Drop for Scrub {
    fn drop(&mut self) {
        self.0.is_stopped.set(true);
    }
}

/// A domain that does not keep its committer alive.
struct WeakDomain {
    shared: Weak<Shared>,
    guard: Weak<Guard>,
}

impl WeakDomain {
    fn upgrade(&self) -> Option<Domain> {
        Some(Domain { shared: self.shared.upgrade()?, _guard: self.guard.upgrade()? })
    }
}

impl Domain {
    /// Starts scrubbing. `report` hears of each bad block, on the domain's locality; it must not wait.
    pub fn start_scrub(&self, config: ScrubConfig, report: impl FnMut(BadBlock) + 'static) -> Scrub {
        let progress = Rc::new(Progress::default());
        let weak = WeakDomain { shared: Rc::downgrade(&self.shared), guard: Rc::downgrade(&self._guard) };
        let task = run(weak, config, Rc::clone(&progress), report);
        // Detached: `Scrub` ends it.
        drop(self.shared.locality.spawn("stob scrub", task));
        Scrub(progress)
    }

    /// The next written run at or after `from`: at most one buffer's worth. `Ok(None)`: there is none. Errors: those of reading its page.
    async fn next_run(&self, from: ExtentKey) -> Result<Option<(StobId, BlockExtent)>, StobError> {
        let shared = &self.shared;
        let look = Look::start(shared);
        look.wait_for(|missing| {
            shared.state.borrow().metadata.extents.touch_next(from, missing);
        })
        .await?;
        Ok(self.known_run(from))
    }

    fn known_run(&self, from: ExtentKey) -> Option<(StobId, BlockExtent)> {
        let state = self.shared.state.borrow();
        let inside = BlockExtent { start: from.start, count: u64::MAX - from.start };
        // The extent that `from` is in the middle of, if there is one.
        let found = state.metadata.lookup(from.stob, inside).next();
        if let Some(found) = found {
            return Some((from.stob, BlockExtent { start: found.start, count: wide(found.checksums.len()) }));
        }
        let (key, mapped) = state.metadata.extents_from(from).next()?;
        Some((key.stob, BlockExtent { start: key.start, count: mapped.blocks() }))
    }

    /// Reads `extent` (one device operation's worth), and block by block if it does not read true. Gives the bad blocks.
    async fn scrub_run(&self, stob: StobId, extent: BlockExtent) -> Vec<BadBlock> {
        if self.read(stob, &[extent]).await.is_ok() {
            return Vec::new();
        }
        let mut bad = Vec::new();
        for block in extent.start..extent.end() {
            // Anything else: it reads true by now, or the domain was closed.
            if let Err(error @ (StobError::Checksum { .. } | StobError::Device(_))) =
                self.read(stob, &[BlockExtent { start: block, count: 1 }]).await
            {
                bad.push(BadBlock { stob, block, error });
            }
        }
        bad
    }
}

async fn run(
    weak: WeakDomain,
    config: ScrubConfig,
    progress: Rc<Progress>,
    mut report: impl FnMut(BadBlock) + 'static,
) {
    let mut from = ExtentKey::default();
    loop {
        let Some(domain) = weak.upgrade() else { return };
        if progress.is_stopped.get() || domain.shared.is_closed() {
            return;
        }
        let locality = domain.shared.locality.clone();
        let next = match domain.next_run(from).await {
            Ok(next) => next,
            // A page that cannot be read: what it names cannot be scrubbed, only found by those who ask for it.
            Err(_) => match domain.shared.state.borrow().metadata.extents.bound_after(from) {
                Some(after) => {
                    from = after;
                    continue;
                }
                None => None,
            },
        };
        let wait = match next {
            Some((stob, run)) => {
                let count = run.count.min(DEVICE_OPERATION_BLOCKS_MAX);
                let extent = BlockExtent { start: run.start, count };
                let bad = domain.scrub_run(stob, extent).await;
                let mut stats = progress.stats.get();
                stats.blocks += count;
                stats.bad_blocks += wide(bad.len());
                progress.stats.set(stats);
                bad.into_iter().for_each(&mut report);
                from = ExtentKey { stob, start: extent.end() };
                let bytes_per_second = config.bytes_per_second.max(BLOCK_BYTES);
                Duration::from_nanos((count * BLOCK_BYTES).saturating_mul(1_000_000_000) / bytes_per_second)
            }
            None => {
                let mut stats = progress.stats.get();
                stats.passes += 1;
                progress.stats.set(stats);
                from = ExtentKey::default();
                let Some(pause) = config.pause else { return };
                pause.max(Duration::from_millis(1)) // an empty domain has nothing that would slow it down
            }
        };
        drop(domain);
        locality.sleep(wait).await;
    }
}
