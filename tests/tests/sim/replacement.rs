//! Devices that get another disk in the middle of a run: which of them are not whole yet, and the operator who copies.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use base::{Endpoint, Fid};
use client::{Client, RepairOptions};
use fops::conf::{DeviceCommand, DeviceCommandReply, DeviceOrder};
use rpc::{Bulk, CallOptions};

use crate::node::OP_TIMEOUT;

/// How often the operator asks how far the order is.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// After the order is heeded: longer than any change may be under way that began before.
const SETTLE: Duration = Duration::from_secs(5);
const _: () = assert!(SETTLE.as_secs() > OP_TIMEOUT.as_secs());
/// How long an operator waits for one answer, and how often it is asked.
const ORDER_TIME: Duration = Duration::from_secs(2);
const ASKS: u32 = 60;

#[derive(Default)]
struct Shared {
    /// With another disk, and not whole.
    unfinished: BTreeSet<Fid>,
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
    pub fn begin(&self, device: Fid) -> bool {
        self.0.borrow_mut().unfinished.insert(device)
    }

    pub fn unfinished(&self) -> Vec<Fid> {
        self.0.borrow().unfinished.iter().copied().collect()
    }

    pub fn take_restored(&self) -> Vec<Fid> {
        std::mem::take(&mut self.0.borrow_mut().restored)
    }

    /// The operator's work, unless one is at it already or there is nothing to do.
    pub fn repair(&self, device: Fid, client: Client, control: Endpoint) -> Option<Repair> {
        let mut shared = self.0.borrow_mut();
        let is_new = shared.unfinished.contains(&device) && shared.running.insert(device);
        is_new.then(|| Repair { shared: Rc::clone(&self.0), device, client, control })
    }
}

/// One try of an operator. Dropped with its client when that dies.
pub struct Repair {
    shared: Rc<RefCell<Shared>>,
    device: Fid,
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
        let mut asks = 0;
        let reply = loop {
            let reply = self.order(DeviceOrder::Replace).await?;
            if reply.is_heeded {
                break reply;
            }
            asks += 1;
            if asks == ASKS {
                return Err(format!("not heeded: {reply:?}"));
            }
            locality.sleep(ASK_AGAIN).await;
        };
        locality.sleep(SETTLE).await;
        let done = self
            .client
            .repair_device(self.device, RepairOptions::default(), |_| ())
            .await
            .map_err(|error| error.to_string())?;
        if !done.lost.is_empty() {
            return Err(format!("lost: {:?}", done.lost));
        }
        self.order(DeviceOrder::Restored { replacement: reply.replacement }).await?;
        let mut shared = self.shared.borrow_mut();
        shared.unfinished.remove(&self.device);
        shared.restored.push(self.device);
        Ok(done.bytes)
    }

    async fn order(&self, order: DeviceOrder) -> Result<DeviceCommandReply, String> {
        let options = CallOptions::until(self.client.locality().now() + ORDER_TIME);
        let command = DeviceCommand { device: self.device, order };
        let answer = self.client.rpc().call(self.control, &command, Bulk::none(), options).await;
        answer.map(|answer| answer.reply).map_err(|error| error.to_string())
    }
}
