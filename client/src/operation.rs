//! The states of an operation, and a handle that shows them: Initialised, Launched, Executed, then Stable or Failed.
//!
//! *Executed*: every device has answered, the result is known. *Stable*: the result survives any K failures; for a read it is
//! the same moment as Executed, for a write Stable comes once the object's record is durable too. The caller owns the
//! buffers of a read from Executed on, and gets those of a write back (drops of `SharedBuffer`) before Stable.
//!
//! [`OperationState::next`] is the whole table. [`Operation`] lets a caller hold an operation that is not launched yet, launch
//! it, look at its state from the same locality and wait for its end: the shape that the C API needs (one op, many waits).
//! Thread: the client's locality. Bound: one task for each launched operation.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use runtime::LocalityHandle;
use runtime::sync::Notify;

/// Where an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OperationState {
    /// Made, nothing sent.
    Initialised,
    /// Its requests are on their way.
    Launched,
    /// Every answer is there.
    Executed,
    /// Its effect survives any K failures.
    Stable,
    /// It ended with an error.
    Failed,
}

/// What happens to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationEvent {
    /// The caller launches it.
    Launch,
    /// The last answer came.
    Execute,
    /// Its effect is durable everywhere that it has to be.
    Settle,
    /// It cannot succeed any more.
    Fail,
}

/// The event does not fit the state: a mistake of the code that drives the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an operation that is {state:?} cannot {event:?}")]
pub struct OperationMisuse {
    /// State at that time.
    pub state: OperationState,
    /// The event.
    pub event: OperationEvent,
}

impl OperationState {
    /// The state after `event`. Errors: the event has no place in this state.
    pub const fn next(self, event: OperationEvent) -> Result<OperationState, OperationMisuse> {
        use {OperationEvent as Event, OperationState as State};
        match (self, event) {
            (State::Initialised, Event::Launch) => Ok(State::Launched),
            (State::Launched, Event::Execute) => Ok(State::Executed),
            (State::Executed, Event::Settle) => Ok(State::Stable),
            // Before the launch: a wrong argument. After it: an answer, or the lack of one. After execution: the record.
            (State::Initialised | State::Launched | State::Executed, Event::Fail) => Ok(State::Failed),
            (state, event) => Err(OperationMisuse { state, event }),
        }
    }

    /// True in Stable and Failed.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, OperationState::Stable | OperationState::Failed)
    }
}

impl fmt::Display for OperationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OperationState::Initialised => "initialised",
            OperationState::Launched => "launched",
            OperationState::Executed => "executed",
            OperationState::Stable => "stable",
            OperationState::Failed => "failed",
        })
    }
}

/// Where the body of an operation marks its progress.
#[derive(Clone)]
pub struct Progress(Rc<Shared>);

struct Shared {
    state: RefCell<OperationState>,
    changed: Notify,
}

impl Progress {
    fn new() -> Progress {
        Progress(Rc::new(Shared { state: RefCell::new(OperationState::Initialised), changed: Notify::new() }))
    }

    /// Where the operation stands.
    #[must_use]
    pub fn state(&self) -> OperationState {
        *self.0.state.borrow()
    }

    /// Moves on; a misuse is reported and leaves the state as it was.
    pub fn on(&self, event: OperationEvent) -> Result<OperationState, OperationMisuse> {
        let next = self.state().next(event)?;
        *self.0.state.borrow_mut() = next;
        self.0.changed.notify_waiters();
        Ok(next)
    }
}

type Body<T, E> = Pin<Box<dyn Future<Output = Result<T, E>>>>;

/// An operation and its result. Dropping the handle does not stop a launched operation.
pub struct Operation<T, E> {
    locality: LocalityHandle,
    progress: Progress,
    body: Option<Body<T, E>>,
    result: Rc<RefCell<Option<Result<T, E>>>>,
}

impl<T: 'static, E: 'static> Operation<T, E> {
    /// An operation that will run `body` once launched. The body marks `Execute` when its answers are there; whatever
    /// it leaves out follows from its result.
    pub fn new<F>(locality: &LocalityHandle, body: impl FnOnce(Progress) -> F) -> Operation<T, E>
    where
        F: Future<Output = Result<T, E>> + 'static,
    {
        let progress = Progress::new();
        Operation {
            locality: locality.clone(),
            body: Some(Box::pin(body(progress.clone()))),
            progress,
            result: Rc::new(RefCell::new(None)),
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> OperationState {
        self.progress.state()
    }

    /// Starts it. A second launch is refused.
    pub fn launch(&mut self) -> Result<(), OperationMisuse> {
        self.progress.on(OperationEvent::Launch)?;
        let (Some(body), progress, result) = (self.body.take(), self.progress.clone(), self.result.clone())
        else {
            return Err(OperationMisuse { state: self.state(), event: OperationEvent::Launch });
        };
        let task = self.locality.spawn("client-operation", async move {
            let outcome = body.await;
            let events: &[OperationEvent] = match &outcome {
                Ok(_) if progress.state() == OperationState::Launched => {
                    &[OperationEvent::Execute, OperationEvent::Settle]
                }
                Ok(_) => &[OperationEvent::Settle],
                Err(_) => &[OperationEvent::Fail],
            };
            // The result stands before the state says so: whoever sees Stable finds it.
            *result.borrow_mut() = Some(outcome);
            for event in events {
                let moved = progress.on(*event);
                debug_assert!(moved.is_ok(), "the body marked more than Execute: {moved:?}");
            }
        });
        drop(task); // detached: it ends by itself
        Ok(())
    }

    /// Waits until the state is at least `state` (Failed counts as reached). Launch it first: an operation that is never
    /// launched waits for ever.
    pub async fn reached(&self, state: OperationState) -> OperationState {
        loop {
            let now = self.state();
            if now >= state || now.is_over() {
                return now;
            }
            self.progress.0.changed.notified().await;
        }
    }

    /// The result, once. `None` before the operation is over and after it was taken.
    pub fn take_result(&mut self) -> Option<Result<T, E>> {
        if !self.state().is_over() {
            return None;
        }
        self.result.borrow_mut().take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_and_event() {
        use OperationEvent::{Execute, Fail, Launch, Settle};
        use OperationState::{Executed, Failed, Initialised, Launched, Stable};
        let table = [
            (Initialised, [Some(Launched), None, None, Some(Failed)]),
            (Launched, [None, Some(Executed), None, Some(Failed)]),
            (Executed, [None, None, Some(Stable), Some(Failed)]),
            (Stable, [None; 4]),
            (Failed, [None; 4]),
        ];
        for (state, expected) in table {
            for (event, next) in [Launch, Execute, Settle, Fail].into_iter().zip(expected) {
                assert_eq!(state.next(event).ok(), next, "{state} {event:?}");
            }
        }
    }
}
