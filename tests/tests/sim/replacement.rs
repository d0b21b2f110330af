//! Devices that get another disk in the middle of a run: which of them are not whole yet, and the operator who orders and looks; the
//! servers copy.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use base::{Endpoint, Fid};
use client::Client;
use faces::limits::REPAIR_SETTLE;
use fops::conf::{DeviceCommand, DeviceCommandReply, DeviceOrder};
use fops::repair::{RepairGet, RepairStatus};
use rpc::{Bulk, CallOptions};
use runtime::LocalityHandle;

use crate::node::OP_TIMEOUT;

/// How often the operator asks how far the order is.
const ASK_AGAIN: Duration = Duration::from_millis(100);
// No change of this simulation may be under way for longer that began before the order was heeded.
const _: () = assert!(REPAIR_SETTLE.as_secs() > OP_TIMEOUT.as_secs());
/// How long an operator waits for one answer, and how often it is asked.
const ORDER_TIME: Duration = Duration::from_secs(2);
const ASKS: u32 = 60;

#[derive(Default)]
struct Shared {
    /// With another disk, and not whole; the number of the disk before.
    unfinished: BTreeMap<Fid, u32>,
    /// An operator is at work.
    running: BTreeSet<Fid>,
    /// Whole since the last look.
    restored: Vec<Fid>,
}

/// See the module head.
#[derive(Default)]
pub struct Replacements(Rc<RefCell<Shared>>);

impl Replacements {
    /// True the first time: the disk is put in now.
    pub fn begin(&self, device: Fid, replaced_before: u32) -> bool {
        let mut shared = self.0.borrow_mut();
        let is_new = !shared.unfinished.contains_key(&device);
        shared.unfinished.entry(device).or_insert(replaced_before);
        is_new
    }

    pub fn unfinished(&self) -> Vec<Fid> {
        self.0.borrow().unfinished.keys().copied().collect()
    }

    pub fn take_restored(&self) -> Vec<Fid> {
        std::mem::take(&mut self.0.borrow_mut().restored)
    }

    /// The operator's work, unless one is at it already or there is nothing to do.
    pub fn repair(&self, device: Fid, client: Client, control: Endpoint) -> Option<Repair> {
        let mut shared = self.0.borrow_mut();
        let replaced_before = shared.unfinished.get(&device).copied()?;
        let is_new = shared.running.insert(device);
        is_new.then(|| Repair { shared: Rc::clone(&self.0), device, replaced_before, client, control })
    }
}

/// One try of an operator. Dropped with its client when that dies.
pub struct Repair {
    shared: Rc<RefCell<Shared>>,
    device: Fid,
    replaced_before: u32,
    client: Client,
    control: Endpoint,
}

impl Drop for Repair {
    fn drop(&mut self) {
        self.shared.borrow_mut().running.remove(&self.device);
    }
}

impl Repair {
    /// Errors: in words, for the loud; it is tried again.
    pub async fn run(self) -> Result<u64, String> {
        let locality = self.client.locality().clone();
        // Whole already, and the last answer was lost?
        let known = self.look().await.ok().filter(|found| found.replacement > self.replaced_before);
        let is_done = known.is_some_and(|found| found.state == "done");
        if !is_done {
            self.order_until_in_repair(&locality).await?;
        }
        let done = loop {
            let found = self.look().await?;
            match found.state.as_str() {
                "done" => break found.progress,
                "failed" => {
                    // What it lacked may be there by now, though nothing says so.
                    self.order(DeviceOrder::RepairStart).await?;
                    return Err(format!("failed: {found:?}"));
                }
                _ => locality.sleep(ASK_AGAIN).await,
            }
        };
        let mut shared = self.shared.borrow_mut();
        shared.unfinished.remove(&self.device);
        shared.restored.push(self.device);
        Ok(done.bytes)
    }

    async fn order_until_in_repair(&self, locality: &LocalityHandle) -> Result<(), String> {
        let mut asks = 0;
        loop {
            let reply = self.order(DeviceOrder::Replace).await?;
            if reply.state == "repair" {
                return Ok(());
            }
            asks += 1;
            if asks == ASKS {
                return Err(format!("not in repair: {reply:?}"));
            }
            locality.sleep(ASK_AGAIN).await;
        }
    }

    async fn order(&self, order: DeviceOrder) -> Result<DeviceCommandReply, String> {
        self.ask(&DeviceCommand { device: self.device, order }).await
    }

    async fn look(&self) -> Result<RepairStatus, String> {
        let reply = self.ask(&RepairGet { after: None }).await?;
        let found = reply.repairs.into_iter().find(|found| found.device == self.device);
        found.ok_or_else(|| "control knows of no repair".to_owned())
    }

    async fn ask<F: fops::Fop>(&self, fop: &F) -> Result<F::Reply, String> {
        let options = CallOptions::until(self.client.locality().now() + ORDER_TIME);
        let answer = self.client.rpc().call(self.control, fop, Bulk::none(), options).await;
        answer.map(|answer| answer.reply).map_err(|error| error.to_string())
    }
}
