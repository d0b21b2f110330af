//! Devices that get another disk in the middle of a run: which of them are not whole yet, and the operator who orders and looks; the
//! servers copy. Some have their units in spare units for a while before.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use base::{Endpoint, Fid};
use client::Client;
use faces::SpareCopy;
use faces::limits::REPAIR_SETTLE;
use fops::conf::{ClusterStatus, DeviceCommand, DeviceCommandReply, DeviceOrder};
use fops::repair::RepairStatus;
use runtime::LocalityHandle;

use crate::node::OP_TIMEOUT;
use crate::operator;

/// How often the operator asks how far the order is.
const ASK_AGAIN: Duration = Duration::from_millis(100);
// No change of this simulation may be under way for longer that began before the order was heeded.
const _: () = assert!(REPAIR_SETTLE.as_secs() > OP_TIMEOUT.as_secs());
/// How often it is asked.
const ASKS: u32 = 60;
const SPARE_ASKS: u32 = 600;
/// Units stand in spare units for so long before the device gets another disk.
const IN_SPARES: Duration = Duration::from_millis(1500);

#[derive(Default)]
struct Shared {
    /// With another disk, and not whole; the number of the disk before.
    unfinished: BTreeMap<Fid, u32>,
    /// An operator is at work.
    running: BTreeSet<Fid>,
    /// Whole since the last look, and whether by way of spare units.
    restored: Vec<(Fid, bool)>,
}

/// True of a copy behind which another one comes: to spare units, or back from there.
fn is_on_its_way(repair: &RepairStatus) -> bool {
    matches!(SpareCopy::of_number(repair.replacement), Some(SpareCopy::There | SpareCopy::Back))
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

    pub fn take_restored(&self) -> Vec<(Fid, bool)> {
        std::mem::take(&mut self.0.borrow_mut().restored)
    }

    /// The operator's work, unless one is at it already or there is nothing to do.
    /// `by_spares`: first to spare units, and back from there a while later.
    pub fn repair(&self, device: Fid, by_spares: bool, client: Client, control: Endpoint) -> Option<Repair> {
        let mut shared = self.0.borrow_mut();
        let replaced_before = shared.unfinished.get(&device).copied()?;
        let is_new = shared.running.insert(device);
        let shared = Rc::clone(&self.0);
        is_new.then(|| Repair { shared, device, replaced_before, by_spares, client, control })
    }
}

/// One try of an operator. Dropped with its client when that dies.
pub struct Repair {
    shared: Rc<RefCell<Shared>>,
    device: Fid,
    replaced_before: u32,
    by_spares: bool,
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
        let is_done = known.is_some_and(|found| found.state == "done" && !is_on_its_way(&found));
        // Copies to spare units and back have numbers of their own: the last ones may be of an earlier disk.
        let is_done = is_done && !matches!(self.state().await?.as_str(), "failed" | "repaired" | "rebalance");
        if !is_done {
            if self.by_spares {
                self.go_to_spares(&locality).await?;
            }
            self.order_until_in_repair(&locality).await?;
        }
        let done = loop {
            let found = self.look().await?;
            match found.state.as_str() {
                // Back from spare units: those have to be freed.
                "done" if is_on_its_way(&found) => locality.sleep(ASK_AGAIN).await,
                "done" => break found,
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
        shared.restored.push((self.device, SpareCopy::of_number(done.replacement).is_some()));
        Ok(done.progress.bytes)
    }

    /// Until its units stand in spare units, and a while longer; or there are none for them.
    async fn go_to_spares(&self, locality: &LocalityHandle) -> Result<(), String> {
        for _ in 0..SPARE_ASKS {
            match self.state().await?.as_str() {
                "failed" => match self.order(DeviceOrder::RepairStart).await {
                    Err(refused) if refused.contains("cannot be rebuilt in spare units") => return Ok(()),
                    // Not heard, or what it had before is still being freed.
                    _ => locality.sleep(ASK_AGAIN).await,
                },
                "repaired" => {
                    locality.sleep(IN_SPARES).await;
                    return Ok(());
                }
                _ => return Ok(()),
            }
        }
        Err("its units do not come to spare units".to_owned())
    }

    async fn order_until_in_repair(&self, locality: &LocalityHandle) -> Result<(), String> {
        let mut asks = 0;
        loop {
            let reply = self.order(DeviceOrder::Replace).await?;
            if matches!(reply.state.as_str(), "repair" | "rebalance" | "online") {
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
        operator::ask(&self.client, self.control, &DeviceCommand { device: self.device, order }).await
    }

    /// Word of the device's state.
    async fn state(&self) -> Result<String, String> {
        let status = operator::ask(&self.client, self.control, &ClusterStatus).await?;
        let found = status.devices.into_iter().find(|found| found.device == self.device);
        Ok(found.map_or_else(String::new, |found| found.state))
    }

    async fn look(&self) -> Result<RepairStatus, String> {
        let found = operator::copy_of(&self.client, self.control, self.device).await?;
        found.ok_or_else(|| "control knows of no repair".to_owned())
    }
}
