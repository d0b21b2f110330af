//! The life of a service: starting, running, draining, stopped. One way, one step after the other; draining may be reached from starting.
//!
//! | state | a new request | one that runs | a call of ours |
//! |---|---|---|---|
//! | starting | answered `NotServing`: come again | | goes out |
//! | running | runs | goes on | goes out |
//! | draining | answered `NotServing`: come again, or go to another server | goes on, until the deadline of the drain | goes out |
//! | stopped | answered `NotServing` | left alone: its effect may or may not come | refused (`CallError::Draining`) |
//!
//! `NotServing` may be tried again ([`base::Blamed::may_retry`]): whoever has another server to ask asks there. A request that was held for a fom is
//! new. One-way items are dropped while the service does not run: they may be lost. Requests that ran are answered from the reply cache in every state.
//! Pure. Start at [`Service::drain`].

use std::fmt;
use std::time::Duration;

use fops::FopError;

use crate::watchdog::RunningFom;

/// Where a service is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceState {
    /// Its state is being read; requests are told to come again.
    Starting,
    /// It serves.
    Running,
    /// It finishes what runs and takes nothing new.
    Draining,
    /// Nothing runs any more, or it was not waited for.
    Stopped,
}

impl fmt::Display for ServiceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ServiceState::Starting => "starting",
            ServiceState::Running => "running",
            ServiceState::Draining => "draining",
            ServiceState::Stopped => "stopped",
        })
    }
}

/// Requests that still ran when the time of a drain was over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{count} requests still run after {:.1} s, the oldest of opcode {} for {} at phase {}: their effects may or may not come", .within.as_secs_f64(), .oldest.opcode, .oldest.peer.endpoint, .oldest.phase)]
pub struct Undrained {
    /// How many, with those that wait for a fom.
    pub count: usize,
    /// The one that has been at its phase for the longest.
    pub oldest: RunningFom,
    /// How long was waited.
    pub within: Duration,
}

/// One service's life.
#[derive(Debug)]
pub struct Service {
    state: ServiceState,
}

impl Service {
    /// One that begins in `state`.
    #[must_use]
    pub const fn new(state: ServiceState) -> Service {
        Service { state }
    }

    /// Where it is.
    #[must_use]
    pub const fn state(&self) -> ServiceState {
        self.state
    }

    /// May a new request run? Error: what to answer instead.
    pub fn admit(&self) -> Result<(), FopError> {
        let reason = match self.state {
            ServiceState::Running => return Ok(()),
            ServiceState::Starting => "the service is starting: come again",
            ServiceState::Draining => "the service is shutting down: come again, or ask another server",
            ServiceState::Stopped => "the service has stopped",
        };
        Err(FopError::NotServing { reason: reason.to_owned() })
    }

    /// It has what it serves. True if it was starting; nothing brings a service back that is on its way out.
    pub fn run(&mut self) -> bool {
        let is_starting = self.state == ServiceState::Starting;
        if is_starting {
            self.state = ServiceState::Running;
        }
        is_starting
    }

    /// It takes nothing new from now on. True if this began it.
    pub fn drain(&mut self) -> bool {
        let before = self.state;
        self.state = before.max(ServiceState::Draining);
        before < ServiceState::Draining
    }

    /// It is over.
    pub fn stop(&mut self) {
        self.state = ServiceState::Stopped;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Blamed;

    #[test]
    fn a_service_lives_once_and_in_one_direction() {
        let mut service = Service::new(ServiceState::Starting);
        let refusal = service.admit().unwrap_err();
        assert!(refusal.may_retry() && refusal.to_string().contains("starting"), "{refusal}");
        assert!(service.run() && !service.run());
        assert_eq!((service.admit(), service.state()), (Ok(()), ServiceState::Running));
        assert!(service.drain() && !service.drain());
        let refusal = service.admit().unwrap_err();
        assert!(refusal.may_retry() && refusal.to_string().contains("another server"), "{refusal}");
        assert!(!service.run(), "it is on its way out");
        service.stop();
        assert!(!service.drain() && !service.run());
        assert_eq!(service.state(), ServiceState::Stopped);
        assert!(service.admit().unwrap_err().may_retry());
    }

    #[test]
    fn one_that_never_ran_can_be_drained() {
        let mut service = Service::new(ServiceState::Starting);
        assert!(service.drain());
        assert_eq!(service.state().to_string(), "draining");
    }
}
