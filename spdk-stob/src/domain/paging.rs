//! The way of a page of extents into memory: read once for all who need it, verified, then kept until there are too many.
//!
//! A look ([`Look`]) names what it needs until nothing is missing; then it sees all of it at once, without waiting. A look whose pages are in memory
//! waits for nobody. Each page is read by a task of its own, which goes on when the one who asked has gone; the buffers are the domain's,
//! taken when it was opened: so a commit never waits for memory that writers hold who wait for it.
//!
//! **Invariant**: a page is read by one task at a time; a page is changed only in memory, and what is being read is not in memory. So no reader
//! of an old slot meets the checkpoint that gives it to somebody else.

use std::collections::BTreeMap;
use std::rc::Rc;

use base::BlockExtent;
use base::units::{BLOCK_BYTES, narrow};
use runtime::Buffer;

use super::{Domain, Shared, Status};
use crate::error::{Damage, StobError};
use crate::extents::{ExtentKey, Mapped, Missing};
use crate::format::page::{self, PageKind, PageName};
use crate::format::superblock::Superblock;
use crate::stob_id::StobId;

/// Pages on their way.
#[derive(Default)]
pub(super) struct Loads {
    /// By slot. An error stays until the page is asked for again.
    by_slot: BTreeMap<u64, Option<StobError>>,
    /// For as many reads at once.
    pub(super) buffers: Vec<Buffer>,
}

/// Reads a page's bytes: the one place where they are believed. Error: [`Damage::Page`].
pub(super) fn read_page(
    superblock: &Superblock,
    missing: Missing,
    bytes: &[u8],
) -> Result<Vec<(ExtentKey, Mapped)>, StobError> {
    let slot = missing.place.slot;
    let name = PageName { kind: PageKind::Extents, format_id: superblock.format_id, slot };
    let data = superblock.regions.data;
    let items = page::open(name, missing.place.checksum, bytes)
        .and_then(|(body, count)| page::decode_extents(body, count))
        .filter(|items| {
            items
                .iter()
                .all(|(_, mapped)| data.intersection(&mapped.device_extent()) == Some(mapped.device_extent()))
        });
    items.ok_or(StobError::Damaged { what: Damage::Page { slot } })
}

/// Keeps pages in memory that were touched since it began.
pub(super) struct Look {
    shared: Rc<Shared>,
    time: u64,
}

impl Drop for Look {
    fn drop(&mut self) {
        self.shared.state.borrow_mut().look_ends(self.time);
    }
}

impl Look {
    pub(super) fn start(shared: &Rc<Shared>) -> Look {
        let time = shared.state.borrow_mut().look_starts();
        Look { shared: Rc::clone(shared), time }
    }

    /// Waits until what `touch` touches is in memory. Errors: [`StobError::Damaged`], [`StobError::Device`], [`StobError::Closed`].
    pub(super) async fn wait_for(&self, touch: impl Fn(&mut Vec<Missing>)) -> Result<(), StobError> {
        let mut missing = Vec::new();
        let mut started = Vec::new();
        loop {
            missing.clear();
            touch(&mut missing);
            if missing.is_empty() {
                return Ok(());
            }
            let loaded = self.shared.page_loaded.notified();
            for missing in &missing {
                let slot = missing.place.slot;
                let known = self.shared.loads.borrow().by_slot.get(&slot).cloned();
                match known {
                    Some(Some(error)) if started.contains(&slot) => return Err(error),
                    Some(None) => started.push(slot),
                    _ if self.shared.is_closed() => return Err(StobError::Closed),
                    _ => {
                        let buffer = self.shared.loads.borrow_mut().buffers.pop();
                        let Some(buffer) = buffer else { break }; // one comes back with the next page
                        self.shared.loads.borrow_mut().by_slot.insert(slot, None);
                        started.push(slot);
                        let task = load(Rc::clone(&self.shared), *missing, buffer);
                        drop(self.shared.locality.spawn("stob page", task)); // detached: see the module head
                    }
                }
            }
            loaded.await;
        }
    }
}

/// Reads one page into memory and tells those who wait.
async fn load(shared: Rc<Shared>, missing: Missing, mut buffer: Buffer) {
    let superblock = shared.superblock.get();
    let extent = superblock.regions.slot(missing.place.slot);
    buffer.resize(narrow(extent.count * BLOCK_BYTES));
    let outcome = shared.device.read(extent.start, buffer).await;
    let mut error = None;
    match outcome {
        Ok(bytes) => {
            match read_page(&superblock, missing, &bytes) {
                Ok(items) => {
                    let mut state = shared.state.borrow_mut();
                    let is_owned =
                        items.iter().all(|(_, mapped)| state.free.is_owned(mapped.device_extent()));
                    if !is_owned || !state.metadata.extents.install(missing, items) {
                        error = Some(StobError::Damaged { what: Damage::Page { slot: missing.place.slot } });
                    }
                    if shared.status.get() == Status::Open {
                        state.evict(shared.page_cache_bytes);
                    }
                }
                Err(damage) => error = Some(damage),
            }
            shared.loads.borrow_mut().buffers.push(bytes);
        }
        Err(device_error) => {
            error = Some(device_error.into());
            let bytes = narrow(extent.count * BLOCK_BYTES);
            let buffer = shared.locality.arena().alloc(bytes).await; // the device kept the other
            shared.loads.borrow_mut().buffers.push(buffer);
        }
    }
    match error {
        None => shared.loads.borrow_mut().by_slot.remove(&missing.place.slot),
        error => shared.loads.borrow_mut().by_slot.insert(missing.place.slot, error),
    };
    shared.page_loaded.notify_waiters();
}

impl Domain {
    /// Waits until the pages of `extents` of `stob` are in memory. The look keeps them there; `None`: they were, and stay until the caller waits.
    pub(super) async fn look_at(
        &self,
        stob: StobId,
        extents: &[BlockExtent],
    ) -> Result<Option<Look>, StobError> {
        let shared = &self.shared;
        let touch = |missing: &mut Vec<Missing>| {
            let state = shared.state.borrow();
            extents.iter().for_each(|extent| state.metadata.touch(stob, *extent, missing));
        };
        let mut missing = Vec::new();
        touch(&mut missing);
        if missing.is_empty() {
            return Ok(None);
        }
        let look = Look::start(shared);
        look.wait_for(touch).await?;
        Ok(Some(look))
    }

    /// Reads all pages, then checks that every block has exactly one owner and every count is right. Needs memory for all
    /// extents. The error says what is wrong.
    pub async fn verify_all(&self) -> Result<(), String> {
        let shared = &self.shared;
        let look = Look::start(shared);
        let touch = |missing: &mut Vec<Missing>| {
            missing.extend(shared.state.borrow().metadata.extents.all_missing());
        };
        look.wait_for(touch).await.map_err(|error| error.to_string())?;
        let result = self.verify();
        drop(look);
        result
    }
}
