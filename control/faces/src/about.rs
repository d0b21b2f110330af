//! What a process says of itself when it is asked (`process-get`): version, incarnation, time of day.
//!
//! The time of day comes in as a function, so that logic has no clock; what is answered is for people and decides nothing.

use std::fmt;
use std::rc::Rc;

use fops::admin::{ProcessGet, ProcessGetReply};
use rpc::{Fom, RpcMachine};

/// What whoever starts a process tells it about itself.
#[derive(Clone, Default)]
pub struct About {
    /// Version of the program; empty: not said.
    pub version: String,
    /// Microseconds since 1970 by the machine's clock; `None`: there is none, as in a simulation.
    pub unix_us: Option<Rc<dyn Fn() -> u64>>,
}

impl fmt::Debug for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("About").field("version", &self.version).finish_non_exhaustive()
    }
}

impl About {
    /// The answer of the incarnation `epoch` of a process that keeps no store.
    #[must_use]
    pub fn reply(&self, epoch: u64) -> ProcessGetReply {
        let unix_us = self.unix_us.as_ref().map(|now| now());
        ProcessGetReply { version: self.version.clone(), epoch, unix_us, store: None }
    }

    /// Answers `process-get` with that.
    pub fn serve(self, rpc: &RpcMachine, epoch: u64) {
        rpc.serve_always(move |_fom: Fom, _request: ProcessGet| {
            Box::pin(std::future::ready(Ok(self.reply(epoch))))
        });
    }
}
