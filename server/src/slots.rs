//! Where the slots of sessions are durable: a tree on each device, beside the effects that their requests had there.
//!
//! A slot's last number over all devices is the highest of its records. Those of a device that does not open, or whose disk was replaced, are not among
//! them: a change for it that may be one of those does not run (`State::admit`). Records go when rpc says that nobody can ask for them any
//! more; until then they are never taken away. Left over: a record whose deletion failed is read at the next start, parked, and
//! forgotten again after a session's lifetime. Thread: one locality. Start at [`read_all`].

use std::ops::Bound;
use std::rc::Weak;

use rpc::slot_record::{KEY_BYTES, SlotRecord, Transaction as SlotTransaction};
use rpc::{RpcMachine, SessionName};
use spdk_stob::{Domain, Transaction};

use crate::device::{Device, SLOTS};
use crate::state::State;

/// Records read, or deleted, in one piece.
const PAGE: usize = 256;
/// Sessions forgotten in one piece.
const FORGET_MAX: usize = 64;

/// A transaction of a domain, as rpc sees it.
pub(crate) struct SlotChange<'a>(pub(crate) &'a mut Transaction);

impl SlotTransaction for SlotChange<'_> {
    fn put_slot(&mut self, key: &[u8; KEY_BYTES], value: &[u8]) {
        self.0.tree_put(SLOTS, key, value);
    }
}

/// Every record of a device. What is no record is left alone: a later version may know it.
pub(crate) fn read_all(domain: &Domain) -> Vec<SlotRecord> {
    let mut records = Vec::new();
    let mut last: Option<Vec<u8>> = None;
    loop {
        let from = last.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(key.as_slice()));
        let page = domain.tree_range(SLOTS, from, PAGE);
        records.extend(page.iter().filter_map(|(key, value)| SlotRecord::parse(key, value)));
        match page.into_iter().last() {
            Some((key, _)) => last = Some(key),
            None => return records,
        }
    }
}

/// Takes away the records of sessions that nobody can ask for any more, for as long as the server lives.
pub(crate) async fn forget(rpc: RpcMachine, state: Weak<State>) {
    loop {
        let names = rpc.forgotten_sessions(FORGET_MAX).await;
        let Some(state) = state.upgrade() else { return };
        for device in state.devices() {
            // A device that takes no changes keeps them; see the module head.
            let _kept = forget_on(&device, &names).await;
        }
    }
}

async fn forget_on(device: &Device, names: &[SessionName]) -> Result<(), spdk_stob::StobError> {
    for name in names {
        let (first, last) = (name.key(0), name.key(u16::MAX));
        let mut from = Bound::Included(first.to_vec());
        loop {
            let page = device.domain.tree_range(SLOTS, from.as_ref().map(Vec::as_slice), PAGE);
            let mut transaction = device.domain.begin();
            let mine = page.iter().take_while(|(key, _)| key.as_slice() <= last.as_slice());
            let mut count = 0;
            for (key, _) in mine {
                transaction.tree_delete(SLOTS, key);
                count += 1;
            }
            device.domain.commit(transaction).await?;
            match page.into_iter().last() {
                Some((key, _)) if count == PAGE => from = Bound::Excluded(key),
                _ => break,
            }
        }
    }
    Ok(())
}
