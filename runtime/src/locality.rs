//! A locality: one thread's executor, timers and drivers, and the loop that turns them.
//!
//! [`Locality::turn`] is the whole engine and takes the time as an argument. [`Locality::run`] and [`Locality::block_on`] turn it against the
//! real clock: turn while there is work, spin a little when there is none, then sleep on one wait for all drivers.
//!
//! The spin adapts (see `spin`). Where more localities run than there are cores ([`Crowd`]) nobody spins.
//!
//! Idle costs nothing: there is no tick of ours; a sleep ends by a deadline, a driver's descriptor, or an [`Unparker`].
//!
//! Left over: dropping a locality drops its tasks first, then its drivers; handles that outlive it spawn nothing any more.
//! **Invariant**: no borrow of ours is held while a driver's or a task's code runs.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::RawFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use base::Instant;
use runtime_sys::poller::{Interest, PollEvent, Poller};
use runtime_sys::{Arena, Counters};

use crate::clock::MonotonicClock;
use crate::crowd::{Crowd, Waiting};
use crate::driver::Driver;
use crate::executor::{self, Task, TaskInfo, Tasks};
use crate::limits;
use crate::parking::{Parking, TaskId, TaskWaker, Unparker};
use crate::spin::Spin;
use crate::timers::{Elapsed, Sleep, Timers};

/// What a locality is made with.
#[derive(Clone, Debug)]
pub struct LocalityConfig {
    /// Which of its node's localities, from 0.
    pub index: u32,
    /// For messages.
    pub name: String,
    /// Seed of [`LocalityHandle::random_u64`], and with it of every name that is drawn here: in programs of [`crate::identity`].
    pub seed: u64,
    /// The node's figures.
    pub counters: Arc<Counters>,
    /// Where its buffers come from.
    pub arena: Arena,
    /// The localities of this process, if they share cores: see [`Crowd`].
    pub crowd: Option<Arc<Crowd>>,
}

/// What one turn came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// True if anything happened, so another turn may find more.
    pub progressed: bool,
    /// When the next turn is needed, if nothing else happens. `None`: only an event or another thread gives work.
    pub next_deadline: Option<Instant>,
}

/// What handles, tasks and timers share with their locality.
pub(crate) struct LocalityShared {
    pub(crate) config: LocalityConfig,
    pub(crate) now: Cell<Instant>,
    pub(crate) tasks: RefCell<Tasks>,
    pub(crate) timers: RefCell<Timers>,
    pub(crate) parking: Arc<Parking>,
    drivers: RefCell<Vec<AddedDriver>>,
    next_driver: Cell<u64>,
    random: RefCell<fastrand::Rng>,
}

/// A driver, and a number that no other driver of the locality has or had.
#[derive(Clone)]
struct AddedDriver {
    number: u64,
    driver: Rc<RefCell<dyn Driver>>,
}

impl LocalityShared {
    /// The driver at `index` of the order of adding. A copy, so that its code may add and remove drivers.
    fn driver(&self, index: usize) -> Option<AddedDriver> {
        self.drivers.borrow().get(index).cloned()
    }

    /// One more turn, so that a new driver is polled before any sleep.
    fn notice(&self) {
        Unparker { parking: Arc::clone(&self.parking) }.unpark();
    }
}

impl fmt::Debug for LocalityShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "locality {} {:?}", self.config.index, self.config.name)
    }
}

/// Executor, timers, drivers and what wakes them. See the module head.
pub struct Locality {
    shared: Rc<LocalityShared>,
    /// Woken tasks, oldest first.
    ready: VecDeque<TaskId>,
    root_generation: u64,
    sleeper: Option<Sleeper>,
    spin: Spin,
    /// When a look found work, which is the time of the turn that follows: the clock is not read again on the way of a message.
    found: Option<Instant>,
}

impl Locality {
    /// A locality with nothing to do. Takes no descriptor before it first sleeps.
    #[must_use]
    pub fn new(config: LocalityConfig) -> Locality {
        let shared = LocalityShared {
            now: Cell::new(Instant::ZERO),
            tasks: RefCell::default(),
            timers: RefCell::default(),
            parking: Parking::new(Arc::clone(&config.counters)),
            drivers: RefCell::default(),
            next_driver: Cell::new(0),
            random: RefCell::new(fastrand::Rng::with_seed(config.seed)),
            config,
        };
        Locality {
            shared: Rc::new(shared),
            ready: VecDeque::new(),
            root_generation: 0,
            sleeper: None,
            spin: Spin::default(),
            found: None,
        }
    }

    /// A handle for whoever lives in this locality.
    #[must_use]
    pub fn handle(&self) -> LocalityHandle {
        LocalityHandle { shared: Rc::clone(&self.shared) }
    }

    /// One turn at `now`, which must not be earlier than that of the last.
    ///
    /// Bounded: events, timers and polls each have a budget (limits.rs); what is left waits for the next turn, and `progressed` says so.
    pub fn turn(&mut self, now: Instant) -> Turn {
        self.turn_with_root(now, None).0
    }

    /// True if a turn has work that no deadline tells of: a task was woken since the last one, or a driver was added.
    ///
    /// Whoever turns a locality by hand and sleeps between turns asks this, the deadline of the last turn, and who brings events.
    #[must_use]
    pub fn is_woken(&self) -> bool {
        !self.ready.is_empty() || self.shared.parking.is_notified()
    }

    /// A turn; the second value is true if the root future was woken.
    fn turn_with_root(&mut self, now: Instant, root: Option<TaskId>) -> (Turn, bool) {
        let shared = &self.shared;
        let now = now.max(shared.now.get());
        shared.now.set(now);
        let mut handled = 0;
        let own = shared.parking.own_turn();

        // First: completions free the credits and buffers that all below need.
        let mut index = 0;
        while let Some(AddedDriver { driver, .. }) = shared.driver(index) {
            handled += driver.borrow_mut().poll(now, limits::DRIVER_EVENTS_PER_TURN);
            index += 1;
        }

        // After the events, so that an answer that arrived in time beats its own deadline.
        for _ in 0..limits::TIMERS_PER_TURN {
            let due = shared.timers.borrow_mut().take_due(now);
            let Some(waker) = due else { break };
            waker.wake();
            handled += 1;
        }

        // Bounded: busy tasks cannot starve the devices.
        let mut is_root_woken = false;
        handled += usize::from(shared.parking.take(&mut self.ready) | own.take(&mut self.ready));
        for _ in 0..limits::TASK_POLLS_PER_TURN {
            if self.ready.is_empty() && !own.take(&mut self.ready) && !shared.parking.take(&mut self.ready) {
                break;
            }
            let Some(id) = self.ready.pop_front() else { break };
            handled += 1;
            if id.is_root() {
                is_root_woken |= Some(id) == root;
            } else {
                executor::poll_task(shared, id);
            }
        }

        // Last: what this turn made leaves in this turn, one doorbell per device.
        let mut index = 0;
        let mut next_deadline = None;
        while let Some(AddedDriver { driver, .. }) = shared.driver(index) {
            let mut driver = driver.borrow_mut();
            driver.flush(now);
            next_deadline = earlier(next_deadline, driver.next_deadline());
            index += 1;
        }
        next_deadline = earlier(next_deadline, shared.timers.borrow().next_deadline());
        own.take(&mut self.ready);
        drop(own);
        (Turn { progressed: handled > 0 || self.is_woken(), next_deadline }, is_root_woken)
    }

    /// Turns until `stop` is set; sleeps while there is nothing to do.
    ///
    /// # Errors
    /// If no descriptor for waiting can be had (`EMFILE`), or a driver's cannot be waited for.
    pub fn run(&mut self, clock: &MonotonicClock, stop: &StopFlag) -> io::Result<()> {
        let _member = self.shared.config.crowd.as_ref().map(Crowd::join);
        let _watch = stop.watch(self.handle().unparker());
        while !stop.is_stopped() {
            let now = self.found.take().unwrap_or_else(|| clock.now());
            let (turn, _) = self.turn_with_root(now, None);
            self.rest(clock, now, turn)?;
        }
        Ok(())
    }

    /// Turns until `future` is ready. It may borrow what outlives this call; it is polled between turns.
    ///
    /// # Errors
    /// As [`Locality::run`]; the future is dropped then.
    pub fn block_on<T>(&mut self, clock: &MonotonicClock, future: impl Future<Output = T>) -> io::Result<T> {
        let _member = self.shared.config.crowd.as_ref().map(Crowd::join);
        let mut future = pin!(future);
        self.root_generation += 1;
        let root = TaskId::root(self.root_generation);
        let signal = TaskWaker::new(root, Arc::clone(&self.shared.parking));
        let waker = Waker::from(Arc::clone(&signal));
        let mut is_woken = true;
        loop {
            let now = self.found.take().unwrap_or_else(|| clock.now());
            self.shared.now.set(now.max(self.shared.now.get()));
            if is_woken {
                signal.queued.store(false, Ordering::SeqCst);
                if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                    // What it queued on its way out (a last message, say) leaves now and not with the next call.
                    self.turn_with_root(now, None);
                    return Ok(output);
                }
            }
            let turn;
            (turn, is_woken) = self.turn_with_root(now, Some(root));
            if is_woken {
                self.spin.on_work(now);
            } else {
                self.rest(clock, now, turn)?;
            }
        }
    }

    /// After a turn: nothing if there was work, else a spin, else a sleep.
    fn rest(&mut self, clock: &MonotonicClock, turn_start: Instant, turn: Turn) -> io::Result<()> {
        if turn.progressed {
            self.spin.on_work(turn_start);
            return Ok(());
        }
        if self.spins(clock, turn_start) {
            self.look_for_work(clock, turn.next_deadline);
            // Found or not: the turn that follows works, or says when the next one is needed.
            return Ok(());
        }
        if turn.next_deadline.is_some_and(|at| at <= clock.now()) {
            return Ok(());
        }
        self.sleep(clock, turn.next_deadline)
    }

    /// True if it is better to look again than to sleep.
    fn spins(&mut self, clock: &MonotonicClock, now: Instant) -> bool {
        let is_wanted = self.spin.is_wanted(now, clock.day_nanos(now));
        self.shared.config.crowd.as_ref().map_or(is_wanted, |crowd| match crowd.waiting() {
            Waiting::Adaptive => is_wanted && !crowd.is_crowded(),
            Waiting::Polling => true,
            Waiting::Sleeping => false,
        })
    }

    /// Looks at the drivers, which costs less than turns, until one of them has work, somebody gave notice, `deadline` is there, or it
    /// is better to sleep.
    fn look_for_work(&mut self, clock: &MonotonicClock, deadline: Option<Instant>) {
        // While there is no turn nobody adds or removes a driver; what a look wakes comes as a notice.
        let shared = Rc::clone(&self.shared);
        let drivers = shared.drivers.borrow();
        loop {
            std::hint::spin_loop();
            let now = clock.now();
            let is_due = deadline.is_some_and(|at| at <= now) || shared.parking.is_notified();
            if is_due || drivers.iter().any(|added| added.driver.borrow_mut().look(now)) {
                self.found = Some(now);
                return;
            }
            if !self.spins(clock, now) {
                return;
            }
        }
    }

    fn sleep(&mut self, clock: &MonotonicClock, deadline: Option<Instant>) -> io::Result<()> {
        let shared = Rc::clone(&self.shared);
        let mut index = 0;
        while let Some(AddedDriver { driver, .. }) = shared.driver(index) {
            if !driver.borrow_mut().before_sleep() {
                return Ok(());
            }
            index += 1;
        }
        if self.sleeper.is_none() {
            self.sleeper = Some(Sleeper::new(&shared)?);
        }
        let Some(sleeper) = self.sleeper.as_mut() else { return Ok(()) };
        sleeper.follow_drivers(&shared)?;
        if !shared.parking.try_sleep() {
            return Ok(());
        }
        let timeout = deadline.filter(|at| *at != Instant::NEVER).map(|at| at.since(clock.now()));
        let waited = sleeper.wait(timeout);
        shared.parking.end_sleep();
        if waited? {
            shared.parking.drain_event();
        }
        Ok(())
    }
}

impl Drop for Locality {
    fn drop(&mut self) {
        // Tasks hold handles, and handles hold tasks: the ring of references is cut here. Tasks first, as they use the drivers.
        executor::close(&self.shared);
        let drivers = std::mem::take(&mut *self.shared.drivers.borrow_mut());
        drop(drivers);
    }
}

impl fmt::Debug for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, None) => one,
        (None, other) => other,
    }
}

/// The one wait of a locality: its eventfd and the descriptors of its drivers.
struct Sleeper {
    poller: Poller,
    events: Vec<PollEvent>,
    /// By driver's number, in the order of adding: the descriptor that is waited for. Holds no driver: one that is removed goes at once.
    followed: Vec<(u64, Option<RawFd>)>,
}

const TOKEN_UNPARK: u64 = 0;
const TOKEN_DRIVER: u64 = 1;

impl Sleeper {
    fn new(shared: &LocalityShared) -> io::Result<Sleeper> {
        let mut poller = Poller::new()?;
        poller.count_into(Arc::clone(&shared.config.counters));
        poller.add(shared.parking.event_fd()?, TOKEN_UNPARK, Interest::READABLE)?;
        Ok(Sleeper { poller, events: Vec::new(), followed: Vec::new() })
    }

    /// Brings the set up to the drivers there are. A system call only for what changed.
    fn follow_drivers(&mut self, shared: &LocalityShared) -> io::Result<()> {
        {
            let (drivers, poller) = (shared.drivers.borrow(), &self.poller);
            self.followed.retain(|(number, fd)| {
                let stays = drivers.iter().any(|added| added.number == *number);
                if let Some(fd) = fd.filter(|_| !stays) {
                    // A closed descriptor has left the set already.
                    let _ = poller.remove(fd);
                }
                stays
            });
        }
        let mut index = 0;
        while let Some(AddedDriver { number, driver }) = shared.driver(index) {
            let wanted = driver.borrow().wait_fd();
            // Both lists are in the order of adding, so the same index is the same driver, and new ones come at the end.
            if index == self.followed.len() {
                self.followed.push((number, None));
            }
            let followed = &mut self.followed[index].1;
            if *followed != wanted {
                if let Some(fd) = followed.take() {
                    let _ = self.poller.remove(fd);
                }
                if let Some(fd) = wanted {
                    self.poller.add(fd, TOKEN_DRIVER, Interest::READABLE)?;
                    *followed = Some(fd);
                }
            }
            index += 1;
        }
        Ok(())
    }

    /// Waits; true if another thread signalled.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        self.poller.wait(timeout, &mut self.events)?;
        Ok(self.events.iter().any(|event| event.token == TOKEN_UNPARK))
    }
}

/// A handle of a locality, for what lives in it. Cheap to clone; `!Send`.
#[derive(Clone, Debug)]
pub struct LocalityHandle {
    shared: Rc<LocalityShared>,
}

impl LocalityHandle {
    /// The time of the current turn: it stands still while tasks run.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.shared.now.get()
    }

    /// Runs `future` as a task; `name` is for watchdogs and dumps. First polled in a coming turn, never inside this call.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + 'static) -> Task {
        executor::spawn(&self.shared, name, Box::pin(future))
    }

    /// Waits until `at`.
    pub fn sleep_until(&self, at: Instant) -> Sleep {
        Sleep::new(Rc::clone(&self.shared), at)
    }

    /// Waits for `duration` from now.
    pub fn sleep(&self, duration: Duration) -> Sleep {
        self.sleep_until(self.now() + duration)
    }

    /// Waits for `future`, until `at` at the latest. A future that is ready in the turn of its deadline wins.
    pub fn timeout_at<F: Future>(
        &self,
        at: Instant,
        future: F,
    ) -> impl Future<Output = Result<F::Output, Elapsed>> + use<F> {
        let mut sleep = self.sleep_until(at);
        async move {
            let mut future = pin!(future);
            std::future::poll_fn(move |context| {
                if let Poll::Ready(output) = future.as_mut().poll(context) {
                    return Poll::Ready(Ok(output));
                }
                Pin::new(&mut sleep).poll(context).map(|()| Err(Elapsed))
            })
            .await
        }
    }

    /// Polls `driver` in each turn from now on, after those added before.
    pub fn add_driver(&self, driver: Rc<RefCell<dyn Driver>>) {
        let number = self.shared.next_driver.get();
        self.shared.next_driver.set(number + 1);
        self.shared.drivers.borrow_mut().push(AddedDriver { number, driver });
        self.shared.notice();
    }

    /// Stops polling `driver`. Does nothing to one that was not added.
    pub fn remove_driver(&self, driver: &Rc<RefCell<dyn Driver>>) {
        let removed: Vec<_> = {
            let mut drivers = self.shared.drivers.borrow_mut();
            let (removed, kept) = drivers.drain(..).partition(|added| Rc::ptr_eq(&added.driver, driver));
            *drivers = kept;
            removed
        };
        self.shared.notice();
        drop(removed); // outside the borrow: its drop may call us
    }

    /// The next number of this locality's seeded sequence.
    #[must_use]
    pub fn random_u64(&self) -> u64 {
        self.shared.random.borrow_mut().u64(..)
    }

    /// The node's figures.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.shared.config.counters
    }

    /// Where this locality's buffers come from.
    #[must_use]
    pub fn arena(&self) -> &Arena {
        &self.shared.config.arena
    }

    /// What wakes this locality from another thread.
    #[must_use]
    pub fn unparker(&self) -> Unparker {
        Unparker { parking: Arc::clone(&self.shared.parking) }
    }

    /// Which of its node's localities, from 0.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.shared.config.index
    }

    /// The locality's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.config.name
    }

    /// The tasks there are, by place.
    #[must_use]
    pub fn tasks(&self) -> Vec<TaskInfo> {
        self.shared.tasks.borrow().info()
    }
}

/// Tells localities to stop, from any thread. Clones are one flag.
#[derive(Clone, Default)]
pub struct StopFlag {
    shared: Arc<StopShared>,
}

#[derive(Default)]
struct StopShared {
    is_stopped: AtomicBool,
    watchers: Mutex<Vec<Unparker>>,
}

impl StopFlag {
    /// A flag that is not set.
    #[must_use]
    pub fn new() -> StopFlag {
        StopFlag::default()
    }

    /// Sets it and wakes the localities that run under it.
    pub fn stop(&self) {
        self.shared.is_stopped.store(true, Ordering::SeqCst);
        let watchers = self.shared.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.iter().for_each(Unparker::unpark);
    }

    /// True once it was set.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.shared.is_stopped.load(Ordering::SeqCst)
    }

    fn watch(&self, unparker: Unparker) -> Watch {
        let mut watchers = self.shared.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.push(unparker.clone());
        Watch { shared: Arc::clone(&self.shared), unparker }
    }
}

impl fmt::Debug for StopFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StopFlag({})", self.is_stopped())
    }
}

/// A locality that wants to be woken by a flag, while it runs.
struct Watch {
    shared: Arc<StopShared>,
    unparker: Unparker,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watchers = self.shared.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = watchers.iter().position(|other| other.is_same(&self.unparker)) {
            watchers.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use runtime_sys::ArenaConfig;

    use super::*;
    use crate::sync::{Notify, oneshot};

    fn locality() -> Locality {
        Locality::new(LocalityConfig {
            index: 0,
            name: "test".to_owned(),
            seed: 7,
            counters: Arc::default(),
            arena: Arena::new(ArenaConfig { capacity_bytes: 1 << 20 }).unwrap(),
            crowd: None,
        })
    }

    /// Turns at `now` until nothing happens.
    fn settle(locality: &mut Locality, now: Instant) -> Option<Instant> {
        for _ in 0..10_000 {
            let turn = locality.turn(now);
            if !turn.progressed {
                return turn.next_deadline;
            }
        }
        panic!("the locality never comes to rest");
    }

    type Log = Rc<RefCell<Vec<String>>>;

    fn log(log: &Log, text: impl Into<String>) {
        log.borrow_mut().push(text.into());
    }

    fn millis(count: u64) -> Instant {
        Instant::from_nanos(count * 1_000_000)
    }

    #[test]
    fn tasks_run_in_the_order_of_spawning_and_waking() {
        let mut locality = locality();
        let (handle, lines, bell) = (locality.handle(), Log::default(), Notify::new());
        for name in ["a", "b", "c"] {
            let (lines, bell) = (Rc::clone(&lines), bell.clone());
            handle.spawn(name, async move {
                log(&lines, name);
                bell.notified().await;
                log(&lines, format!("{name} rung"));
            });
        }
        assert!(lines.borrow().is_empty(), "spawning polls nothing");
        assert_eq!(settle(&mut locality, Instant::ZERO), None);
        let names: Vec<_> = handle.tasks().iter().map(|task| (task.name, task.polls)).collect();
        assert_eq!(names, [("a", 1), ("b", 1), ("c", 1)]);
        bell.notify_waiters();
        settle(&mut locality, Instant::ZERO);
        assert_eq!(*lines.borrow(), ["a", "b", "c", "a rung", "b rung", "c rung"]);
        assert!(handle.tasks().is_empty());
    }

    #[test]
    fn timers_fire_by_time_then_by_order_and_leave_when_dropped() {
        let mut locality = locality();
        let (handle, lines) = (locality.handle(), Log::default());
        for (name, at) in [("late", 20), ("first", 10), ("second", 10)] {
            let (lines, inner) = (Rc::clone(&lines), handle.clone());
            handle.spawn(name, async move {
                inner.sleep_until(millis(at)).await;
                log(&lines, format!("{name} at {:?}", inner.now()));
            });
        }
        let inner = handle.clone();
        let cancelled = handle.spawn("cancelled", async move { inner.sleep_until(millis(5)).await });
        assert_eq!(settle(&mut locality, Instant::ZERO), Some(millis(5)));
        cancelled.cancel();
        assert_eq!(settle(&mut locality, millis(6)), Some(millis(10)));
        assert_eq!(settle(&mut locality, millis(10)), Some(millis(20)));
        assert_eq!(settle(&mut locality, millis(25)), None);
        assert_eq!(
            *lines.borrow(),
            ["first at 0.010000000s", "second at 0.010000000s", "late at 0.025000000s"]
        );
        assert_eq!(locality.shared.timers.borrow().len(), 0);
    }

    #[test]
    fn a_timeout_gives_the_answer_or_elapses_and_drops_the_loser() {
        let mut locality = locality();
        let (handle, lines) = (locality.handle(), Log::default());
        let (sender, receiver) = oneshot::channel::<u8>();
        let (_kept, never) = oneshot::channel::<u8>();
        let (inner, out) = (handle.clone(), Rc::clone(&lines));
        handle.spawn("timeouts", async move {
            log(&out, format!("{:?}", inner.timeout_at(millis(10), receiver).await));
            log(&out, format!("{:?}", inner.timeout_at(millis(20), never).await));
        });
        settle(&mut locality, Instant::ZERO);
        // The answer comes in the turn of the deadline: it wins.
        assert!(sender.send(3).is_ok());
        assert_eq!(settle(&mut locality, millis(10)), Some(millis(20)));
        assert_eq!(settle(&mut locality, millis(20)), None);
        assert_eq!(*lines.borrow(), ["Ok(Ok(3))", "Err(Elapsed)"]);
    }

    #[test]
    fn a_busy_task_shares_a_bounded_turn() {
        let mut locality = locality();
        let (handle, polls) = (locality.handle(), Rc::new(Cell::new(0)));
        let count = Rc::clone(&polls);
        let busy = handle.spawn("busy", async move {
            std::future::poll_fn(|context| {
                count.set(count.get() + 1);
                context.waker().wake_by_ref();
                Poll::<()>::Pending
            })
            .await;
        });
        assert!(locality.turn(Instant::ZERO).progressed);
        assert_eq!(polls.get(), limits::TASK_POLLS_PER_TURN);
        busy.cancel();
        settle(&mut locality, Instant::ZERO);
    }

    #[test]
    fn a_task_may_spawn_cancel_others_and_itself() {
        let mut locality = locality();
        let (handle, lines) = (locality.handle(), Log::default());
        struct Told(Log, LocalityHandle);
        impl Drop for Told {
            fn drop(&mut self) {
                log(&self.0, "dropped");
                let lines = Rc::clone(&self.0);
                self.1.spawn("from a drop", async move { log(&lines, "ran") });
            }
        }
        let told = Told(Rc::clone(&lines), handle.clone());
        let other = handle.spawn("other", async move {
            let _told = told;
            std::future::pending().await
        });
        let own: Rc<RefCell<Option<Task>>> = Rc::default();
        let (inner, told) = (Rc::clone(&own), Told(Rc::clone(&lines), handle.clone()));
        let task = handle.spawn("cancels", async move {
            let _told = told;
            other.cancel();
            inner.take().unwrap().cancel();
            std::future::pending().await
        });
        *own.borrow_mut() = Some(task);
        settle(&mut locality, Instant::ZERO);
        assert_eq!(*lines.borrow(), ["dropped", "dropped", "ran", "ran"]);
        assert!(handle.tasks().is_empty());
    }

    #[test]
    fn a_stale_waker_wakes_nobody() {
        let mut locality = locality();
        let (handle, wakers) = (locality.handle(), Rc::new(RefCell::new(Vec::new())));
        let kept = Rc::clone(&wakers);
        handle.spawn("short", async move {
            std::future::poll_fn(|context| {
                kept.borrow_mut().push(context.waker().clone());
                Poll::Ready(())
            })
            .await;
        });
        settle(&mut locality, Instant::ZERO);
        handle.spawn("in its place", std::future::pending());
        settle(&mut locality, Instant::ZERO);
        wakers.borrow_mut().drain(..).for_each(Waker::wake);
        settle(&mut locality, Instant::ZERO);
        assert_eq!(handle.tasks()[0].polls, 1);
    }

    #[test]
    fn dropping_a_locality_drops_its_tasks_and_drivers() {
        let locality = locality();
        let (handle, token) = (locality.handle(), Rc::new(()));
        struct Holds(
            #[expect(dead_code, reason = "held")] LocalityHandle,
            #[expect(dead_code, reason = "held")] Rc<()>,
        );
        impl Driver for Holds {
            fn poll(&mut self, _: Instant, _: usize) -> usize {
                0
            }
            fn flush(&mut self, _: Instant) {}
            fn next_deadline(&self) -> Option<Instant> {
                None
            }
            fn wait_fd(&self) -> Option<RawFd> {
                None
            }
        }
        handle.add_driver(Rc::new(RefCell::new(Holds(handle.clone(), Rc::clone(&token)))));
        let (inner, held) = (handle.clone(), Rc::clone(&token));
        let task = handle.spawn("holds", async move {
            inner.sleep(Duration::from_secs(1)).await;
            drop(held);
        });
        drop(locality);
        assert_eq!(Rc::strong_count(&token), 1);
        assert!(task.is_finished());
        let held = Rc::clone(&token);
        assert!(handle.spawn("too late", async move { drop(held) }).is_finished());
        assert_eq!(Rc::strong_count(&token), 1);
    }

    #[test]
    #[should_panic(expected = "a broken invariant")]
    fn a_panic_in_a_task_ends_the_turn() {
        let mut locality = locality();
        locality.handle().spawn("broken", async { panic!("a broken invariant") });
        locality.turn(Instant::ZERO);
    }

    struct Recorder {
        lines: Log,
        handle: LocalityHandle,
        pending: usize,
        deadline: Option<Instant>,
    }

    impl Driver for Recorder {
        fn poll(&mut self, now: Instant, budget: usize) -> usize {
            log(&self.lines, "poll");
            if self.deadline.is_some_and(|at| at <= now) {
                self.deadline = None;
            }
            let count = self.pending.min(budget);
            self.pending -= count;
            count
        }
        fn flush(&mut self, _: Instant) {
            log(&self.lines, "flush");
        }
        fn next_deadline(&self) -> Option<Instant> {
            self.deadline
        }
        fn wait_fd(&self) -> Option<RawFd> {
            let _ = self.handle.index();
            None
        }
    }

    #[test]
    fn a_turn_polls_fires_runs_and_flushes_in_that_order() {
        let mut locality = locality();
        let (handle, lines) = (locality.handle(), Log::default());
        let recorder = Recorder {
            lines: Rc::clone(&lines),
            handle: handle.clone(),
            pending: 0,
            deadline: Some(millis(3)),
        };
        let driver: Rc<RefCell<dyn Driver>> = Rc::new(RefCell::new(recorder));
        handle.add_driver(Rc::clone(&driver));
        let (inner, out) = (handle.clone(), Rc::clone(&lines));
        handle.spawn("task", async move {
            inner.sleep_until(millis(2)).await;
            log(&out, "task");
        });
        assert_eq!(settle(&mut locality, Instant::ZERO), Some(millis(2)));
        lines.borrow_mut().clear();
        assert_eq!(locality.turn(millis(2)), Turn { progressed: true, next_deadline: Some(millis(3)) });
        assert_eq!(*lines.borrow(), ["poll", "task", "flush"]);
        lines.borrow_mut().clear();
        handle.remove_driver(&driver);
        assert_eq!(settle(&mut locality, millis(3)), None);
        assert!(lines.borrow().is_empty());
    }

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let (one, other) = (locality().handle(), locality().handle());
        let numbers: Vec<u64> = (0..4).map(|_| one.random_u64()).collect();
        assert_eq!(numbers, (0..4).map(|_| other.random_u64()).collect::<Vec<_>>());
        assert_ne!(numbers[0], numbers[1]);
    }
}
