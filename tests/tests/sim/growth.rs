//! A pool that grows in the middle of a run: an operator puts another version of it in force, which has the devices that were in none too, and has all objects moved there,
//! while everything else goes wrong. In most seeds the move is disturbed once on its way: it is paused, or given up, or the pool grows again.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use base::{Endpoint, Fid, FidType};
use client::Client;
use fops::conf::{DeviceCommand, DeviceOrder};
use fops::repair::RepairStatus;

use crate::cluster_file::{self, ClusterText};
use crate::operator;

/// How often the operator asks how far it is.
const ASK_AGAIN: Duration = Duration::from_millis(60);
/// A move that was paused or given up goes on after this.
const DISTURBED_FOR: Duration = Duration::from_millis(250);

/// What happens to a move on its way, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disturbance {
    Pause,
    Abort,
    /// The pool grows once more.
    Expand,
}

#[derive(Default)]
struct Shared {
    disturbance: Option<Disturbance>,
    /// Versions of the pool that are to be in force, beside the first one; 0: nobody has begun.
    wanted: usize,
    /// An operator is at work.
    is_running: bool,
    is_over: bool,
    /// Most bytes that control said were moved.
    moved_bytes: u64,
}

/// See the module head. Clones are the same.
#[derive(Clone, Default)]
pub struct Growth(Rc<RefCell<Shared>>);

/// The pool version of this number, from 1 on.
pub fn pool_version(number: usize) -> Fid {
    Fid::new(FidType::PoolVersion, 1, number as u64)
}

impl Growth {
    /// How the growth of a seed is disturbed.
    pub fn of(seed: u64) -> Growth {
        let kinds = [None, Some(Disturbance::Pause), Some(Disturbance::Abort), Some(Disturbance::Expand)];
        let disturbance = kinds[fastrand::Rng::with_seed(seed ^ 0x960).usize(0..kinds.len())];
        Growth(Rc::new(RefCell::new(Shared { disturbance, ..Shared::default() })))
    }

    /// It began, and is not over.
    pub fn is_under_way(&self) -> bool {
        let shared = self.0.borrow();
        shared.wanted > 0 && !shared.is_over
    }

    /// Bytes that were moved, as far as an operator heard.
    pub fn moved_bytes(&self) -> u64 {
        self.0.borrow().moved_bytes
    }

    /// The newest version of the pool, once everything lies there.
    pub fn reached(&self) -> Option<Fid> {
        let shared = self.0.borrow();
        shared.is_over.then(|| pool_version(1 + shared.wanted))
    }

    /// The operator's work, unless one is at it already or it is over.
    pub fn go_on(
        &self,
        client: Client,
        (control, pool): (Endpoint, Fid),
        text: Rc<ClusterText>,
        tell: impl Fn(String) + 'static,
    ) -> Option<Growing> {
        let mut shared = self.0.borrow_mut();
        let is_new = !shared.is_over && !std::mem::replace(&mut shared.is_running, true);
        shared.wanted = shared.wanted.max(1);
        let tell = Box::new(tell);
        is_new.then(|| Growing { shared: Rc::clone(&self.0), client, control, pool, text, tell })
    }
}

/// One try of an operator. Dropped with its client when that dies.
pub struct Growing {
    shared: Rc<RefCell<Shared>>,
    client: Client,
    control: Endpoint,
    pool: Fid,
    text: Rc<ClusterText>,
    /// For the loud.
    tell: Box<dyn Fn(String)>,
}

impl Drop for Growing {
    fn drop(&mut self) {
        self.shared.borrow_mut().is_running = false;
    }
}

impl Growing {
    /// Until all objects lie in the newest version: how that ended. Errors: in words, for the loud; it is tried again.
    pub async fn run(self) -> Result<RepairStatus, String> {
        self.expand().await?;
        loop {
            let found = self.look().await?;
            match found.as_ref().map(|found| (found.state.as_str(), found)) {
                None | Some(("aborted", _)) => self.order(DeviceOrder::RepairStart).await?,
                Some(("paused", _)) => self.order(DeviceOrder::RepairResume).await?,
                Some(("running", found)) if found.progress.bytes > 0 => self.disturb().await?,
                Some(("failed", found)) => {
                    // What it lacked may be there by now, though nothing says so.
                    self.order(DeviceOrder::RepairStart).await?;
                    return Err(format!("failed: {found:?}"));
                }
                Some(("done", found)) => {
                    self.shared.borrow_mut().is_over = true;
                    return Ok(found.clone());
                }
                Some(_) => {}
            }
            self.client.locality().sleep(ASK_AGAIN).await;
        }
    }

    /// What the seed has for it on its way, the first time.
    async fn disturb(&self) -> Result<(), String> {
        let Some(disturbance) = self.shared.borrow_mut().disturbance.take() else { return Ok(()) };
        match disturbance {
            Disturbance::Pause => self.order(DeviceOrder::RepairPause).await?,
            Disturbance::Abort => self.order(DeviceOrder::RepairAbort).await?,
            Disturbance::Expand => {
                self.shared.borrow_mut().wanted = 2;
                self.expand().await?;
            }
        }
        self.client.locality().sleep(DISTURBED_FOR).await;
        Ok(())
    }

    /// Puts as many versions in force as are wanted, unless they are.
    async fn expand(&self) -> Result<(), String> {
        let wanted = self.shared.borrow().wanted;
        let Some((base, in_force)) = cluster_file::text_of(&self.client, self.control, 0).await else {
            return Err("the cluster file is not told".to_owned());
        };
        if in_force.contains(&format!("\"{}\"", pool_version(1 + wanted))) {
            return Ok(());
        }
        let text = self.text.expanded(wanted);
        let note = format!("version {}", 1 + wanted);
        let answer = cluster_file::put_in_force(&self.client, self.control, base, &note, &text).await;
        (self.tell)(format!("{note}: {answer:?}"));
        answer.map(drop).map_err(|error| format!("the pool does not grow: {error}"))
    }

    async fn order(&self, order: DeviceOrder) -> Result<(), String> {
        let answer =
            operator::ask(&self.client, self.control, &DeviceCommand { device: self.pool, order }).await;
        (self.tell)(format!("{order:?}: {answer:?}"));
        answer.map(drop)
    }

    async fn look(&self) -> Result<Option<RepairStatus>, String> {
        let found = operator::copy_of(&self.client, self.control, self.pool).await?;
        let mut shared = self.shared.borrow_mut();
        shared.moved_bytes =
            found.iter().map(|found| found.progress.bytes).fold(shared.moved_bytes, u64::max);
        Ok(found)
    }
}
