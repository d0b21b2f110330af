//! Fault rules of the net, set from outside: the fop behind `clovis net fault`.
//!
//! The rules are the transfer machine's (`verbs_net::fault`); here a request's line becomes one, and a line that is none is told so.

use fops::FopError;
use fops::admin::{NetFault, NetFaultReply, NetFaultRequest, NetFaultStatus};
use verbs_net::{FaultId, FaultRule};

use crate::machine::RpcMachine;

impl RpcMachine {
    /// Serves [`NetFault`] for this machine's own net.
    pub fn serve_net_faults(&self) {
        self.serve_always(|fom, fault: NetFault| {
            let result = fom.machine().change_net_faults(&fault.request);
            async move { result }
        });
    }

    fn change_net_faults(&self, request: &NetFaultRequest) -> Result<NetFaultReply, FopError> {
        self.with_transfer_machine_mut(|machine| {
            match request {
                NetFaultRequest::Add { rule } => {
                    let bad = |reason: String| FopError::BadRequest { reason };
                    let rule: FaultRule = rule.parse().map_err(|error| bad(format!("{error}")))?;
                    machine.fault_add(rule).map_err(|error| bad(format!("{error}")))?;
                }
                NetFaultRequest::List => {}
                NetFaultRequest::Clear { id } => drop(machine.fault_clear(id.map(FaultId))),
            }
            let rules = machine.fault_list().into_iter().map(|status| NetFaultStatus {
                id: status.id.0,
                rule: status.rule.to_string(),
                matched: status.matched,
                fired: status.fired,
            });
            Ok(NetFaultReply { rules: rules.collect() })
        })
    }
}
