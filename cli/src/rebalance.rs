//! `clovis rebalance`: moves the objects of older versions of a pool to its newest one, and shows how far that is.
//!
//! A server moves, control orders and keeps how far it is (docs/pools.md#rebalance): a command only gives an order, or looks. What it has in
//! common with a repair is there ([`crate::repair`]). Start at [`run`].

use base::Fid;
use faces::Configuration;
use fops::conf::{DeviceCommand, DeviceCommandReply, DeviceOrder};
use fops::repair::RepairStatus;
use serde_json::{Value, json};

use crate::args::{RebalanceCommand, RebalanceOrderArgs, RebalanceStartArgs, RebalanceStatusArgs};
use crate::conf::Desk;
use crate::failure::Failure;
use crate::output;
use crate::pool::named;
use crate::repair::{
    all, follow, is_of_pool, is_over, order_until, repair_json, repair_line, say_when_interrupted,
};

/// `clovis rebalance`
pub fn run(command: &RebalanceCommand) -> Result<(), Failure> {
    match command {
        RebalanceCommand::Start(args) => start(args),
        RebalanceCommand::Pause(args) => give(args, DeviceOrder::RepairPause),
        RebalanceCommand::Resume(args) => give(args, DeviceOrder::RepairResume),
        RebalanceCommand::Abort(args) => give(args, DeviceOrder::RepairAbort),
        RebalanceCommand::Status(args) => status(args),
    }
}

/// The pool that is named, or the first one, with its name.
fn chosen(desk: &mut Desk, name: Option<&str>) -> Result<(Fid, String), Failure> {
    let configuration: Configuration = desk.text(0)?.file.initial_configuration();
    let pool = name.map_or(Ok(configuration.pool.pool), |name| named(&configuration, name))?;
    Ok((pool, configuration.pool_name(pool).to_owned()))
}

fn start(args: &RebalanceStartArgs) -> Result<(), Failure> {
    let mut desk = Desk::open(&args.connect)?;
    let (pool, name) = chosen(&mut desk, args.pool.as_deref())?;
    let reply = desk.ask(&DeviceCommand { device: pool, order: DeviceOrder::RepairStart })?;
    if !args.json {
        let how = if reply.is_new { "begins, from the first object" } else { "runs already" };
        output::line(&format!("the rebalance of pool {name} {how}"))?;
    }
    if args.detach {
        return if args.json { output::line(&order_json(pool, &reply).to_string()) } else { Ok(()) };
    }
    let _interrupt = say_when_interrupted()?;
    let done = follow(&mut desk, pool, reply.replacement, args.json)?;
    print_all(&[done], args.json)
}

fn give(args: &RebalanceOrderArgs, order: DeviceOrder) -> Result<(), Failure> {
    let mut desk = Desk::open(&args.connect)?;
    let (pool, name) = chosen(&mut desk, args.pool.as_deref())?;
    let within = desk.within;
    let is_heeded = |reply: &DeviceCommandReply| reply.is_heeded || order == DeviceOrder::RepairResume;
    let (first, last) = order_until(&mut desk, DeviceCommand { device: pool, order }, within, is_heeded)?;
    let reply = DeviceCommandReply { is_new: first.is_new, ..last };
    if args.json {
        return output::line(&order_json(pool, &reply).to_string());
    }
    let already = if reply.is_new { "" } else { " already" };
    output::line(&format!("the rebalance of pool {name} is {}{already}", reply.state))?;
    if !is_heeded(&reply) {
        return Err(Failure::new(format!(
            "an object is still being moved after {} s; the order stays in force",
            within.as_secs()
        )));
    }
    Ok(())
}

fn order_json(pool: Fid, reply: &DeviceCommandReply) -> Value {
    json!({
        "pool": pool.to_string(), "state": reply.state, "configuration_version": reply.version, "rebalance": reply.replacement,
        "is_new": reply.is_new, "is_heeded": reply.is_heeded,
    })
}

fn status(args: &RebalanceStatusArgs) -> Result<(), Failure> {
    let mut desk = Desk::open(&args.connect)?;
    let named = args.pool.as_deref().map(|name| chosen(&mut desk, Some(name))).transpose()?;
    let mut found = all(&mut desk)?;
    found.retain(|one| is_of_pool(one) && named.as_ref().is_none_or(|(pool, _)| one.device == *pool));
    match found.iter().find(|one| !is_over(one)).filter(|_| args.follow) {
        Some(running) => {
            let _interrupt = say_when_interrupted()?;
            let done = follow(&mut desk, running.device, running.replacement, args.json)?;
            print_all(&[done], args.json)
        }
        None => print_all(&found, args.json),
    }
}

fn print_all(found: &[RepairStatus], as_json: bool) -> Result<(), Failure> {
    if as_json {
        let all: Vec<Value> = found.iter().map(repair_json).collect();
        return output::line(&json!({ "rebalances": all }).to_string());
    }
    if found.is_empty() {
        return output::line("no pool is rebalanced, and none was");
    }
    found.iter().try_for_each(|one| output::line(&repair_line(one)))
}
