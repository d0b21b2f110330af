//! One side's part in a conversation, and what makes it and its transfer machine a driver of a locality.

use std::cell::RefCell;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::Instant;
use runtime::{Arena, Counters, Driver, Locality, MonotonicClock, SharedBuffer, StopFlag};
use verbs_net::{
    BulkCookie, Event, Lane, PeerId, Refused, Retract, Retraction, SendOptions, TransferMachine,
};

use super::exchange::Message;
use super::usage::Usage;
use crate::failure::Failure;

/// What a side does.
pub trait Side {
    /// Called once, before the first event.
    fn begin(&mut self, context: &mut Context<'_>) -> Result<(), Failure>;
    /// Takes an event.
    fn handle(&mut self, context: &mut Context<'_>, event: Event) -> Result<(), Failure>;
    /// Called at each turn, after the events: looks at the time.
    fn on_time(&mut self, context: &mut Context<'_>) -> Result<(), Failure>;
    /// When `on_time` has to be called at the latest.
    fn next_deadline(&self) -> Option<Instant>;
    /// True once there is nothing more to do.
    fn is_done(&self) -> bool;
}

/// What a side works with.
pub struct Context<'a> {
    /// Its transfer machine.
    pub machine: &'a mut TransferMachine,
    /// The time of this turn.
    pub now: Instant,
    /// The time itself, for what is measured within a turn.
    pub clock: MonotonicClock,
    /// Its memory.
    pub arena: &'a Arena,
    /// Its counters.
    pub counters: &'a Counters,
    /// CPU time that counts as this side's.
    pub cpu_time: fn() -> Duration,
}

impl Context<'_> {
    /// What this side has used since its start.
    pub fn usage(&self) -> Usage {
        Usage::now(self.counters, (self.cpu_time)())
    }

    /// A message's bytes, at least `bytes_min`. Errors: the arena is full, or they are more than a message may have.
    pub fn message(&self, message: &Message, bytes_min: usize) -> Result<SharedBuffer, Failure> {
        message.to_buffer(bytes_min, self.arena).ok_or_else(|| Failure::new("no memory for a message"))
    }

    /// One message to the net, unless it waits. `exposes`: memory that its receiver may touch; `invalidates`: memory of the receiver
    /// that this message ends.
    pub fn send(
        &mut self,
        to: PeerId,
        lane: Lane,
        exposes: Option<BulkCookie>,
        invalidates: Option<BulkCookie>,
        message: SharedBuffer,
    ) -> Result<(), (Refused, SharedBuffer)> {
        let options = SendOptions { exposes: exposes.as_slice(), invalidates, ..SendOptions::on(lane) };
        self.machine.try_send_with(self.now, to, options, message)
    }

    /// Ends an exposure. `None`: the memory comes later, with `Event::Retracted`. `is_answered`: the peer has said that it is done with it.
    /// Errors: there is no such exposure.
    pub fn retract(
        &mut self,
        cookie: BulkCookie,
        is_answered: bool,
    ) -> Result<Option<Vec<SharedBuffer>>, Failure> {
        let how = if is_answered { Retract::Answered } else { Retract::Abandoned };
        match self.machine.retract(self.now, cookie, how) {
            Retraction::Done(parts) => Ok(Some(parts)),
            Retraction::Pending => Ok(None),
            Retraction::Unknown => Err(Failure::new("an exposure ended by itself")),
        }
    }
}

/// A transfer machine and its side.
struct Driven<S> {
    machine: TransferMachine,
    side: S,
    is_begun: bool,
    clock: MonotonicClock,
    arena: Arena,
    counters: Arc<Counters>,
    cpu_time: fn() -> Duration,
    outcome: Option<Result<(), Failure>>,
    stop: StopFlag,
}

impl<S: Side> Driven<S> {
    fn step(&mut self, now: Instant, budget: usize) -> Result<usize, Failure> {
        let mut context = Context {
            machine: &mut self.machine,
            now,
            clock: self.clock,
            arena: &self.arena,
            counters: &self.counters,
            cpu_time: self.cpu_time,
        };
        if !self.is_begun {
            self.is_begun = true;
            self.side.begin(&mut context)?;
        }
        let handled = context.machine.poll(now, budget);
        while let Some(event) = context.machine.next_event() {
            self.side.handle(&mut context, event)?;
        }
        self.side.on_time(&mut context)?;
        Ok(handled)
    }
}

impl<S: Side> Driver for Driven<S> {
    fn poll(&mut self, now: Instant, budget: usize) -> usize {
        if self.outcome.is_some() {
            return 0;
        }
        let step = self.step(now, budget);
        if step.is_err() || self.side.is_done() {
            self.stop.stop();
        }
        match step {
            Ok(handled) => {
                self.outcome = self.side.is_done().then_some(Ok(()));
                handled
            }
            Err(failure) => {
                self.outcome = Some(Err(failure));
                1
            }
        }
    }

    fn flush(&mut self, now: Instant) {
        self.machine.flush(now);
    }

    fn next_deadline(&self) -> Option<Instant> {
        if !self.is_begun {
            return Some(Instant::ZERO);
        }
        [self.machine.next_deadline(), self.side.next_deadline()].into_iter().flatten().min()
    }

    fn wait_fd(&self) -> Option<RawFd> {
        self.machine.wait_fd()
    }

    fn before_sleep(&mut self) -> bool {
        self.machine.before_sleep()
    }
}

/// Runs a side until it is done or `stop` is set; a side that is done or fails sets it. `cpu_time`: what counts as the side's.
pub fn drive<S: Side + 'static>(
    locality: &mut Locality,
    clock: &MonotonicClock,
    stop: &StopFlag,
    machine: TransferMachine,
    side: S,
    cpu_time: fn() -> Duration,
) -> Result<S, Failure> {
    let handle = locality.handle();
    let driven = Rc::new(RefCell::new(Driven {
        machine,
        side,
        is_begun: false,
        clock: *clock,
        arena: handle.arena().clone(),
        counters: Arc::clone(handle.counters()),
        cpu_time,
        outcome: None,
        stop: stop.clone(),
    }));
    let driver: Rc<RefCell<dyn Driver>> = driven.clone();
    handle.add_driver(Rc::clone(&driver));
    locality.run(clock, stop).map_err(Failure::while_doing("waiting for events"))?;
    handle.remove_driver(&driver);
    drop(driver);
    let driven =
        Rc::try_unwrap(driven).map_err(|_| Failure::new("the locality kept the driver"))?.into_inner();
    driven.outcome.unwrap_or(Ok(())).map(|()| driven.side)
}
