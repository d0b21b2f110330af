//! Copies to this server's devices whose disks are new, moves the objects of pools that are rebalanced, and brings the units of devices that are gone to
//! spare units and back (docs/rfd/0014), as control orders: start, pause, go on, end.
//!
//! For each of its devices in repair, each pool whose first online device of the newest version is its own, and each device with a slot of such a pool, there is a seat that asks control what to do, and tells how far it is, twice a second; control
//! keeps that, so a copy goes on there after a restart of anybody. What copies is the [`Copier`] that the server was given: reading, rebuilding
//! and writing groups is a client's work. Before the first run of a seat: [`REPAIR_SETTLE`], for changes that had begun before
//! every server knew.
//! **Invariant**: nothing is copied before control says that every server knows. A copy is never dropped under way but at the end of the
//! server's time to stop: it is asked to stop, and ends where nothing is half written. Left over after an error: it is tried again from the last
//! whole object, [`REPAIR_TRIES_MAX`] times without getting further; then control is told why.
//! Bounds: one copy at a time for a server. Thread: the server's locality. Start at [`CopyMachine::start`].

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use base::Fid;
use faces::limits::{REPAIR_SETTLE, REPAIR_TRIES_MAX, REPAIR_TURN_INTERVAL};
use faces::{Copier, CopyEnd, Copying, DeviceState};
use fops::repair::{RepairOrder, RepairProgress, RepairTurn, RepairTurnReply, RepairWord};
use futures_util::future;
use runtime::sync::Notify;
use runtime::{LocalityHandle, Task};

use crate::state::State;

/// How long control may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How long a copy under way may take to stop when the server does.
const STOP_WITHIN: Duration = Duration::from_secs(3);
/// Wait before the next try of a copy that failed.
const TRY_AGAIN: Duration = Duration::from_secs(1);

struct Shared {
    state: Weak<State>,
    locality: LocalityHandle,
    copier: Copier,
    /// Devices and pools with a seat, and the number of their replacement or rebalance.
    seats: RefCell<BTreeMap<Fid, (u32, Task)>>,
    /// The copy under way.
    running: RefCell<Option<Rc<Copying>>>,
    is_stopping: Cell<bool>,
    /// Rings when a copy ended.
    ended: Notify,
}

/// See the module head.
pub(crate) struct CopyMachine {
    shared: Rc<Shared>,
    following: Task,
}

impl CopyMachine {
    pub(crate) fn start(state: &Rc<State>, copier: Copier) -> CopyMachine {
        let locality = state.rpc.locality().clone();
        let shared = Rc::new(Shared {
            state: Rc::downgrade(state),
            locality: locality.clone(),
            copier,
            seats: RefCell::default(),
            running: RefCell::new(None),
            is_stopping: Cell::new(false),
            ended: Notify::new(),
        });
        let following = locality.spawn("copy-machine", follow(Rc::clone(&shared)));
        CopyMachine { shared, following }
    }

    /// Nothing is copied any more when it returns.
    pub(crate) async fn stop(self) {
        let CopyMachine { shared, following } = self;
        following.cancel();
        shared.is_stopping.set(true);
        let until = shared.locality.now() + STOP_WITHIN;
        let running = shared.running.borrow().clone();
        if let Some(running) = running {
            running.stop();
            while shared.running.borrow().is_some() && shared.locality.now() < until {
                // Either way it is looked again.
                let _ended = shared.locality.timeout_at(until, shared.ended.notified()).await;
            }
        }
        let seats = std::mem::take(&mut *shared.seats.borrow_mut());
        seats.into_values().for_each(|(_, task)| task.cancel());
    }
}

/// A seat for each device of this locality that is in repair, for each pool whose objects it moves, and for each slot of spare units of such a pool.
async fn follow(shared: Rc<Shared>) {
    loop {
        let Some(state) = shared.state.upgrade() else { return };
        let conf = state.conf.clone();
        let version = conf.version();
        if let Some(configuration) = state.configuration() {
            let devices = configuration.pool.devices.iter();
            let ours = devices.filter(|found| {
                found.state == DeviceState::Repair && state.is_ours(&configuration, found.device)
            });
            let moves = configuration.pools.moving.iter().filter(|moving| !moving.is_ending());
            let moves = moves.filter(|moving| {
                let mover = configuration.mover(moving.pool);
                mover.is_some_and(|mover| state.is_ours(&configuration, mover.device))
            });
            let moves = moves.map(|moving| (moving.pool, moving.number));
            let jobs = configuration.spares.slots.iter().filter(|slot| slot.phase.is_job());
            let jobs = jobs.filter_map(|slot| {
                let copier = configuration.spare_copier(slot.device)?;
                let device = configuration.target(slot.device)?.device;
                state.is_ours(&configuration, copier.device).then_some((device, slot.job))
            });
            let ours = ours.map(|found| (found.device, found.replaced));
            for (device, number) in ours.chain(moves).chain(jobs) {
                let has_seat = shared.seats.borrow().get(&device).is_some_and(|(of, _)| *of == number);
                if !has_seat {
                    let task = shared.locality.spawn("copy", sit(Rc::clone(&shared), device, number));
                    // That of an earlier disk, if it is still there, ends by itself.
                    drop(shared.seats.borrow_mut().insert(device, (number, task)));
                }
            }
        }
        drop(state);
        conf.newer_than(version).await;
    }
}

/// Asks and copies until control says that there is nothing more to do.
async fn sit(shared: Rc<Shared>, device: Fid, number: u32) {
    let (mut is_settled, mut tries, mut reached) = (false, 0, None);
    while !shared.is_over() {
        let Some(reply) = shared.tell(device, number, RepairWord::Asks).await else {
            shared.locality.sleep(REPAIR_TURN_INTERVAL).await;
            continue;
        };
        match reply.order {
            RepairOrder::Leave => break,
            RepairOrder::Run if !is_settled => {
                shared.locality.sleep(REPAIR_SETTLE).await;
                is_settled = true;
            }
            // One at a time.
            RepairOrder::Run if shared.running.borrow().is_none() => {
                let Err((progress, reason)) = shared.run(device, number, reply).await else {
                    (tries, reached) = (0, None);
                    continue;
                };
                tries = if progress.last > reached { 1 } else { tries + 1 };
                reached = progress.last.max(reached);
                let word = match tries {
                    REPAIR_TRIES_MAX.. => RepairWord::Fails(progress, reason),
                    _ => RepairWord::Copies(progress),
                };
                if tries >= REPAIR_TRIES_MAX {
                    (tries, reached) = (0, None);
                }
                shared.tell_surely(device, number, word).await;
                shared.locality.sleep(TRY_AGAIN).await;
            }
            _ => shared.locality.sleep(REPAIR_TURN_INTERVAL).await,
        }
    }
    let mut seats = shared.seats.borrow_mut();
    if seats.get(&device).is_some_and(|(of, _)| *of == number) {
        seats.remove(&device);
    }
}

/// The copy under way, until it is not.
struct Running<'a>(&'a Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        *self.0.running.borrow_mut() = None;
        self.0.ended.notify_waiters();
    }
}

impl Shared {
    /// True once the server stops, or is gone.
    fn is_over(&self) -> bool {
        self.is_stopping.get() || self.state.strong_count() == 0
    }

    /// Copies until all is copied, or an order stops it; control hears of it meanwhile. Error: how far it came, and why no further.
    async fn run(
        &self,
        device: Fid,
        number: u32,
        reply: RepairTurnReply,
    ) -> Result<(), (RepairProgress, String)> {
        let copying = Rc::new(Copying::new(reply.progress, reply.bytes_per_second));
        *self.running.borrow_mut() = Some(Rc::clone(&copying));
        let _running = Running(self);
        let is_done = Cell::new(false);
        let done = Notify::new();
        let copy = async {
            let end = (self.copier)(device, Rc::clone(&copying)).await;
            is_done.set(true);
            done.notify_one();
            end
        };
        let report = async {
            while !is_done.get() {
                let reply = self.tell(device, number, RepairWord::Copies(copying.progress())).await;
                // Without an answer it goes on: control may be about to come back.
                if let Some(reply) = reply {
                    copying.set_rate(reply.bytes_per_second);
                    if !matches!(reply.order, RepairOrder::Run | RepairOrder::Wait) {
                        copying.stop();
                    }
                }
                let next = self.locality.now() + REPAIR_TURN_INTERVAL;
                // Either way it is looked again.
                let _done = self.locality.timeout_at(next, done.notified()).await;
            }
        };
        let (end, ()) = future::join(copy, report).await;
        let progress = copying.progress();
        match end {
            Ok(CopyEnd::Whole) => {
                self.tell_surely(device, number, RepairWord::Ended(progress)).await;
                Ok(())
            }
            Ok(CopyEnd::Stopped) => {
                // What it copied since its last word.
                let _heard = self.tell(device, number, RepairWord::Copies(progress)).await;
                Ok(())
            }
            Err(reason) => Err((progress, reason)),
        }
    }

    /// One word to control. `None`: no answer.
    async fn tell(&self, device: Fid, replacement: u32, word: RepairWord) -> Option<RepairTurnReply> {
        let (conf, turn) = {
            let state = self.state.upgrade()?;
            let State { process, epoch, ref conf, .. } = *state;
            (conf.clone(), RepairTurn { process, epoch, device, replacement, word })
        };
        conf.repair_turn(&turn, self.locality.now() + ANSWER_WITHIN).await.ok()
    }

    /// The same until control has heard it, or the server stops. Who is told to wait may not be registered yet with a control daemon that
    /// has just started: that heard nothing.
    async fn tell_surely(&self, device: Fid, replacement: u32, word: RepairWord) {
        while !self.is_over() {
            let reply = self.tell(device, replacement, word.clone()).await;
            if reply.is_some_and(|reply| reply.order != RepairOrder::Wait) {
                return;
            }
            self.locality.sleep(REPAIR_TURN_INTERVAL).await;
        }
    }
}
