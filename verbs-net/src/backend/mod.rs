//! Backends: what carries frames between machines. Each drives the same protocol core and owns the I/O only.

mod guard;
pub(crate) mod lo;
pub(crate) mod packet;
pub(crate) mod sim;
pub(crate) mod sim_hardware;
pub(crate) mod tcp;
pub(crate) mod verbs;

use std::os::fd::RawFd;

use base::{Endpoint, Instant};
use runtime::LocalityHandle;

use crate::error::StartError;
use crate::machine::Fabric;
use crate::protocol::Protocol;
use lo::LoWire;
use packet::PacketBackend;
use sim::SimWire;
use sim_hardware::Hardware;
use tcp::TcpBackend;
use verbs::VerbsBackend;

/// One of the known backends: enum dispatch, the set is closed.
pub(crate) enum Backend {
    Lo(PacketBackend<LoWire>),
    Sim(PacketBackend<SimWire>),
    Tcp(Box<TcpBackend>),
    Verbs(Box<VerbsBackend>),
}

impl Backend {
    pub(crate) fn start(
        locality: &LocalityHandle,
        fabric: &Fabric,
        endpoint: Endpoint,
        listen: bool,
        has_rails: bool,
    ) -> Result<Backend, StartError> {
        Ok(match fabric {
            Fabric::Lo(fabric) => {
                let wire = fabric.attach(endpoint, listen, locality.unparker())?;
                Backend::Lo(PacketBackend::new(endpoint, wire, None))
            }
            Fabric::Sim(fabric) => {
                let wire = fabric.attach(endpoint, listen)?;
                Backend::Sim(PacketBackend::new(endpoint, wire, fabric.remote_keys().map(Hardware::new)))
            }
            Fabric::Verbs(fabric) => {
                Backend::Verbs(Box::new(VerbsBackend::start(locality, fabric, endpoint, listen)?))
            }
            Fabric::Tcp => Backend::Tcp(Box::new(TcpBackend::start(locality, endpoint, listen, has_rails)?)),
        })
    }

    pub(crate) fn poll(&mut self, protocol: &mut Protocol, now: Instant, budget: usize) -> usize {
        match self {
            Backend::Lo(backend) => backend.poll(protocol, now, budget),
            Backend::Sim(backend) => backend.poll(protocol, now, budget),
            Backend::Tcp(backend) => backend.poll(protocol, now, budget),
            Backend::Verbs(backend) => backend.poll(protocol, now, budget),
        }
    }

    /// True if it is too soon for another look.
    pub(crate) fn rests(&self, now: Instant) -> bool {
        match self {
            Backend::Tcp(backend) => backend.rests(now),
            Backend::Lo(_) | Backend::Sim(_) | Backend::Verbs(_) => false,
        }
    }

    pub(crate) fn flush(&mut self, protocol: &mut Protocol, now: Instant) {
        match self {
            Backend::Lo(backend) => backend.flush(protocol, now),
            Backend::Sim(backend) => backend.flush(protocol, now),
            Backend::Tcp(backend) => backend.flush(protocol, now),
            Backend::Verbs(backend) => backend.flush(protocol, now),
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        match self {
            Backend::Sim(backend) => backend.next_deadline(),
            Backend::Verbs(backend) => backend.next_deadline(),
            Backend::Lo(_) | Backend::Tcp(_) => None,
        }
    }

    /// What the device of this machine has counted, where there is one.
    pub(crate) fn device_counts(&self) -> Option<verbs_sys::NicCounts> {
        match self {
            Backend::Verbs(backend) => Some(backend.counts()),
            Backend::Lo(_) | Backend::Sim(_) | Backend::Tcp(_) => None,
        }
    }

    /// Bytes that receives hold in the memory of their own that a backend has for them, where it has.
    pub(crate) fn receive_bytes(&self) -> u64 {
        match self {
            Backend::Tcp(backend) => backend.receive_bytes(),
            Backend::Verbs(backend) => backend.receive_bytes(),
            Backend::Lo(_) | Backend::Sim(_) => 0,
        }
    }

    pub(crate) fn wait_fd(&self) -> Option<RawFd> {
        match self {
            Backend::Tcp(backend) => Some(backend.wait_fd()),
            Backend::Verbs(backend) => Some(backend.wait_fd()),
            Backend::Lo(_) | Backend::Sim(_) => None,
        }
    }

    pub(crate) fn before_sleep(&mut self) -> bool {
        match self {
            Backend::Lo(backend) => !backend.has_work(),
            Backend::Tcp(backend) => backend.before_sleep(),
            Backend::Verbs(backend) => backend.before_sleep(),
            Backend::Sim(_) => true,
        }
    }
}
