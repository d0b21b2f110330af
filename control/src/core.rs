//! What control decides, without I/O: requests and time in, a new configuration and an answer out.
//!
//! **Invariant**: the configuration's version grows by one with each change and by nothing else. **Invariant**: a device is
//! Online only while its server's lease holds (plus the grace of `faces::lease`), or within one lease of a restart of control.
//! Leases are not durable: after a restart each registered process has one lease's time to be heard.
//! Thread: none of its own. Start at [`ControlCore::handle_register`] and [`ControlCore::handle_tick`].

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use base::units::BLOCK_BYTES;
use base::{Endpoint, Fid, FidType, Instant};
use faces::lease::lost_after;
use faces::limits::{
    AWAITED_DISKS_MAX, FENCE_WAITS_NAMED, FLAP_HOLD_LEASES, FLAP_WINDOW_LEASES, FLAPS_MAX, REPAIRS_PAGE,
    SPARE_REPAIR_AFTER_SECONDS, STATUS_PAGE,
};
use faces::spares::SPARE_JOB;
use faces::{
    Configuration, DeviceConfig, DeviceState, Moving, NoSpare, PoolVersionConfig, ProcessConfig, SpareCopy,
    SparePhase, SpareSlot,
};
use fops::conf::{
    ClusterStatusReply, ConfApplyReply, DeviceCommand, DeviceCommandReply, DeviceEvidence, DeviceHealth,
    DeviceOrder, DeviceReport, DeviceStatus, Heartbeat, HeartbeatReply, ProcessStatus, Register,
    RegisterReply,
};
use fops::conf_sync::{StatusGet, StatusGetReply};
use fops::lock::{FenceWait, FencesGet};
use fops::repair::{
    RepairGet, RepairGetReply, RepairOrder, RepairProgress, RepairRecord, RepairState, RepairStatus,
    RepairTurn, RepairTurnReply,
};

use crate::reconcile::take_over;
use crate::repairs::{RepairHappening, RepairRefusal, RepairTable, RepairWish, Surroundings};
use crate::transactions::{ApplyRefusal, Reason, Transactions};
use crate::transition::{DeviceEvent, next_state};

/// A request that control refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Not in the configuration.
    #[error("process {process} is not in the configuration: add it to the cluster file")]
    UnknownProcess {
        /// As it said.
        process: Fid,
    },
    /// Not in the configuration, or of another process.
    #[error("device {device} is not a device of process {process} in the configuration")]
    UnknownDevice {
        /// As it said.
        device: Fid,
        /// As it said.
        process: Fid,
    },
    /// Nobody can reach it there.
    #[error("device {device} is registered at {endpoint}, where {other} is")]
    EndpointTaken {
        /// The device.
        device: Fid,
        /// As it said.
        endpoint: Endpoint,
        /// Who is there: another process, or control.
        other: Fid,
    },
    /// Out, but not taken out by an operator: bytes passed it by.
    #[error(
        "device {device} is {}: writes went past it, so its bytes are old; `clovis device replace {device}` brings it back, with a new disk or \
         the same one formatted",
        state.word()
    )]
    OldBytes {
        /// The device.
        device: Fid,
        /// Its state.
        state: DeviceState,
    },
    /// Nothing to take out.
    #[error("device {device} is {}: only one that is online or transient can be detached", state.word())]
    NothingToDetach {
        /// The device.
        device: Fid,
        /// Its state.
        state: DeviceState,
    },
    /// Objects would not be readable.
    #[error(
        "{away} other devices are away or failed, and the layout reads without {parity}: objects could not be read with device {device} \
         detached too (--force does it all the same)"
    )]
    TooManyAway {
        /// The device.
        device: Fid,
        /// Others that are not in service.
        away: usize,
        /// K.
        parity: usize,
    },
    /// No such pool.
    #[error("{pool} is no pool of this cluster; `clovis pool list` shows them")]
    UnknownPool {
        /// As named.
        pool: Fid,
    },
    /// A pool with one version.
    #[error(
        "pool {pool} has one version, and every object of it lies there: `clovis pool expand` makes another"
    )]
    NothingToMove {
        /// The pool.
        pool: Fid,
    },
    /// A rebalance is not as the order would have it.
    #[error("pool {pool}: {}", match reason {
        RepairRefusal::None | RepairRefusal::Freeing => "it is not being rebalanced: `clovis rebalance start` begins",
        RepairRefusal::Paused => "its rebalance is paused: `clovis rebalance resume` lets it go on where it is",
        RepairRefusal::Failed => "its rebalance failed, and does not run: `clovis rebalance status` says why, `clovis rebalance start` tries it again from the first object",
    })]
    Rebalance {
        /// The pool.
        pool: Fid,
        /// Why not.
        reason: RepairRefusal,
    },
    /// Nothing to replace.
    #[error(
        "device {device} is {}: only a failed one is replaced (`clovis device fail {device}` gives it up, with all that is on it)",
        state.word()
    )]
    NotFailed {
        /// The device.
        device: Fid,
        /// Its state.
        state: DeviceState,
    },
    /// As many as can be.
    #[error(
        "{awaited} other devices await their new disks: device {device} can be replaced once one of them has it"
    )]
    TooManyAwaited {
        /// The device.
        device: Fid,
        /// How many.
        awaited: usize,
    },
    /// Nobody is there to format the new disk.
    #[error(
        "process {process}, which serves device {device}, does not run: put the new disk in its place and start it first"
    )]
    ServerAway {
        /// The device.
        device: Fid,
        /// Its server.
        process: Fid,
    },
    /// Its units cannot go to spare units.
    #[error(
        "the units of device {device} cannot be rebuilt in spare units: {reason}; `clovis device replace` brings them to another disk in its place"
    )]
    NoSpare {
        /// The device.
        device: Fid,
        /// Why not.
        reason: NoSpare,
    },
    /// Its units go to the disk that is awaited.
    #[error(
        "device {device} awaits the disk that it is to be replaced by, and everything will be copied there once it is in its place"
    )]
    AwaitsDisk {
        /// The device.
        device: Fid,
    },
    /// First one, then the other.
    #[error(
        "device {device} is {}, and {}: wait for that (`clovis repair status --follow`){}",
        state.word(),
        phase.word(),
        if *phase == SparePhase::Filling { ", or end it (`clovis repair abort`)" } else { "" }
    )]
    Sparing {
        /// The device.
        device: Fid,
        /// Its state.
        state: DeviceState,
        /// What is under way.
        phase: SparePhase,
    },
    /// What the repair of the device does not allow.
    #[error("device {device} is {}: {reason}", state.word())]
    Repair {
        /// The device.
        device: Fid,
        /// Its state.
        state: DeviceState,
        /// What is wrong.
        reason: RepairRefusal,
    },
    /// Somebody put another disk in the device's place.
    #[error(
        "device {device} has the disk of replacement {found}, and replacement {replaced} is in force: put the right disk in its place, or give the \
         device up (`clovis device fail {device}`) and replace it"
    )]
    OtherDisk {
        /// The device.
        device: Fid,
        /// Replacement that the disk was formatted for.
        found: u32,
        /// That in force.
        replaced: u32,
    },
    /// An order of a later version of this program, or of an earlier one.
    #[error(
        "this control daemon does not know that order, or does not take it any more: bring the command and control to one version"
    )]
    UnknownOrder,
}

/// A process as heard of since control started.
#[derive(Clone, Copy, Debug)]
struct Member {
    /// Incarnation that registered; `None` since a restart of control until it registers again.
    epoch: Option<u64>,
    heard_at: Instant,
    /// As last told: Unknown, Online or Transient.
    state: DeviceState,
}

/// A device as heard of since control started. A process of several localities is heard once for each, so leases are
/// counted by device.
#[derive(Clone, Debug)]
struct Seat {
    /// True once its process registered it since control started.
    registered: bool,
    heard_at: Instant,
    health: Option<DeviceHealth>,
    /// Number of the last fence that this incarnation of its process acknowledged for it.
    fenced: u64,
    /// The last times that it was lost while it was Online, oldest first, at most `FLAPS_MAX`.
    losses: VecDeque<Instant>,
    /// Since when it is heard again after the last loss.
    back_since: Option<Instant>,
    /// Configuration version with the last order about it, or the one found at the start.
    ordered_version: u64,
    /// The newest configuration version that its server is known to go by.
    server_version: u64,
    /// Since when it is failed, as far as was seen since control started.
    failed_since: Option<Instant>,
    /// Since when it is transient and its server silent, as far as was seen without a gap since control started.
    away_since: Option<Instant>,
    /// Its time is over, but it may not be given up: that has been told.
    is_kept: bool,
}

impl Seat {
    fn new(now: Instant, registered: bool) -> Seat {
        Seat {
            registered,
            heard_at: now,
            health: None,
            fenced: 0,
            losses: VecDeque::new(),
            back_since: None,
            ordered_version: 0,
            server_version: 0,
            failed_since: None,
            away_since: None,
            is_kept: false,
        }
    }

    /// It is heard. May it come back, or does it flap: was it lost `FLAPS_MAX` times in a short while, and is not back for long?
    fn may_return(&mut self, now: Instant, lease: Duration) -> bool {
        let back_since = *self.back_since.get_or_insert(now);
        self.losses.retain(|lost_at| *lost_at + lease * FLAP_WINDOW_LEASES > now);
        self.losses.len() < FLAPS_MAX || back_since + lease * FLAP_HOLD_LEASES <= now
    }

    fn lose(&mut self, now: Instant) {
        self.back_since = None;
        if self.losses.len() == FLAPS_MAX {
            self.losses.pop_front();
        }
        self.losses.push_back(now);
    }
}

/// A device or process that changed its state: for logs and subscribers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateChange {
    /// The device or process.
    pub subject: Fid,
    /// When.
    pub at: Instant,
    /// Word of what happened: of a device's event, or of its repair.
    pub cause: &'static str,
    /// From.
    pub from: DeviceState,
    /// To.
    pub to: DeviceState,
    /// Configuration version that holds it.
    pub version: u64,
}

/// The decisions of the control daemon.
#[derive(Debug)]
pub struct ControlCore {
    configuration: Configuration,
    lease: Duration,
    members: BTreeMap<Fid, Member>,
    seats: BTreeMap<Fid, Seat>,
    changes: Vec<StateChange>,
    transactions: Option<Transactions>,
    repairs: RepairTable,
    /// When leases were looked at last.
    looked_at: Option<Instant>,
}

impl ControlCore {
    /// Control starts at `now` with a configuration, fresh or recovered. `lease`: granted to each registration.
    #[must_use]
    pub fn new(now: Instant, configuration: Configuration, lease: Duration) -> ControlCore {
        // What its devices prove of a process, unless somebody knows: of a device that an operator took out, or that failed, nothing follows.
        let mut proof = BTreeMap::new();
        for device in &configuration.pool.devices {
            if device.state == DeviceState::Online {
                proof.insert(device.process, DeviceState::Online);
            } else if device.state == DeviceState::Transient {
                proof.entry(device.process).or_insert(DeviceState::Transient);
            }
        }
        let members = configuration
            .processes
            .iter()
            .filter(|process| process.epoch != 0)
            .map(|process| {
                let state = proof.get(&process.process).copied().unwrap_or(DeviceState::Unknown);
                (process.process, Member { epoch: None, heard_at: now, state })
            })
            .collect();
        let seat = || Seat { ordered_version: configuration.version, ..Seat::new(now, false) };
        let seats = configuration.pool.devices.iter().map(|device| (device.device, seat())).collect();
        ControlCore {
            configuration,
            lease,
            members,
            seats,
            changes: Vec::new(),
            transactions: None,
            repairs: RepairTable::default(),
            looked_at: None,
        }
    }

    /// The same with the states of processes that were last told: nobody hears of a change that is none.
    #[must_use]
    pub fn with_process_states(
        mut self,
        states: impl IntoIterator<Item = (Fid, DeviceState)>,
    ) -> ControlCore {
        for (process, state) in states {
            if let Some(member) = self.members.get_mut(&process) {
                member.state = state;
            }
        }
        self
    }

    /// The same with the repairs that the store had.
    #[must_use]
    pub fn with_repairs(self, records: Vec<RepairRecord>) -> ControlCore {
        ControlCore { repairs: RepairTable::new(records), ..self }
    }

    /// The repairs, for the store.
    pub fn repairs(&mut self) -> &mut RepairTable {
        &mut self.repairs
    }

    /// The same with the operator's cluster file, which may then be changed.
    #[must_use]
    pub fn with_transactions(self, transactions: Option<Transactions>) -> ControlCore {
        ControlCore { transactions, ..self }
    }

    /// The operator's cluster file, if there is one.
    #[must_use]
    pub fn transactions(&self) -> Option<&Transactions> {
        self.transactions.as_ref()
    }

    /// Puts a cluster file in force: one transaction, one new version. The answer's version has to be durable before anybody
    /// hears of it. Errors: see [`ApplyRefusal`]; nothing changed then.
    pub fn handle_apply(
        &mut self,
        text: &str,
        base: u64,
        reason: Reason,
    ) -> Result<ConfApplyReply, ApplyRefusal> {
        let next_version = self.configuration.version + 1;
        let newest_before: Vec<_> = self.newest_of_moving();
        let transactions = self.transactions.as_mut().ok_or(ApplyRefusal::NoFile)?;
        let changes = transactions.apply(text, base, next_version, reason)?;
        if changes > 0 {
            // Everything else that may change waits for a restart of somebody, who then registers it.
            let given = transactions.file().initial_configuration();
            take_over(&mut self.configuration, &given);
            self.configuration.version = next_version;
        }
        let transaction = transactions.in_force().number;
        for (pool, newest) in newest_before {
            if self.configuration.newest_version(pool) != newest {
                // What was moved so far has to be moved again: from the first object.
                self.begin_moves(pool);
            }
        }
        Ok(ConfApplyReply {
            transaction,
            version: self.configuration.version,
            changes: u32::try_from(changes).unwrap_or(u32::MAX),
        })
    }

    fn newest_of_moving(&self) -> Vec<(Fid, Option<PoolVersionConfig>)> {
        let moving = self.configuration.pools.moving.iter().filter(|moving| !moving.is_ending());
        moving.map(|moving| (moving.pool, self.configuration.newest_version(moving.pool))).collect()
    }

    /// A pool's objects are to be moved to its newest version, from the first one on. Counts from the version in force on.
    fn begin_moves(&mut self, pool: Fid) {
        let number = self.repairs.last_number(pool).wrapping_add(1);
        self.configuration.pools.moving.retain(|moving| moving.pool != pool);
        self.configuration.pools.moving.push(Moving { pool, number });
        // Whoever does not know changes objects without holding them, and makes new ones in an older version.
        self.configuration.pool.changes_from = self.configuration.version;
        self.repairs.begin(pool, number);
    }

    /// The configuration as decided so far; not yet durable, perhaps.
    #[must_use]
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// True if states changed since the last [`ControlCore::take_changes`].
    #[must_use]
    pub fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    /// States of devices and processes that changed since the last call.
    pub fn take_changes(&mut self) -> Vec<StateChange> {
        std::mem::take(&mut self.changes)
    }

    /// A process says that it runs. Answer: its lease, and the version that has to be durable before it hears of it.
    ///
    /// The same registration again changes nothing. Errors: unknown process or device, a device of another process, an
    /// endpoint of another process.
    pub fn handle_register(&mut self, now: Instant, request: &Register) -> Result<RegisterReply, Refusal> {
        self.check_register(request)?;
        let process = request.process;
        let mut changed = false;
        let same_start = self.members.get(&process).is_some_and(|member| member.epoch == Some(request.epoch));
        if let Some(found) = self.process_mut(process)
            && found.epoch != request.epoch
        {
            found.epoch = request.epoch;
            changed = true;
        }
        changed |= self.note_moved(request);
        let state = self.members.get(&process).map_or(DeviceState::Unknown, |member| member.state);
        self.members.insert(process, Member { epoch: Some(request.epoch), heard_at: now, state });
        let mut events = Vec::new();
        for registered in &request.devices {
            let seat = self.seats.entry(registered.device).or_insert_with(|| Seat::new(now, true));
            (seat.registered, seat.heard_at, seat.health) = (true, now, None);
            if !same_start {
                seat.fenced = 0;
            }
            let may_return = seat.may_return(now, self.lease);
            let next_version = self.configuration.version + 1;
            let wanted = self.configuration.replacement_of(registered.device);
            let pool = &mut self.configuration.pool;
            if let Some(device) = pool.position(registered.device).and_then(|at| pool.devices.get_mut(at)) {
                let is_new_disk = device.replaced != wanted && registered.replacement == wanted;
                if is_new_disk && is_given_up(device.state) {
                    device.replaced = wanted;
                    pool.awaited_disks.retain(|awaited| *awaited != registered.device);
                    // Whoever does not know that it takes writes again must not change anything any more.
                    pool.changes_from = next_version;
                    changed = true;
                    events.push((registered.device, DeviceEvent::Replaced));
                }
                let place = (registered.endpoint, registered.size_blocks);
                changed |= (device.endpoint, device.size_blocks) != place;
                (device.endpoint, device.size_blocks) = place;
                if may_return {
                    events.push((registered.device, DeviceEvent::Registered));
                }
            }
        }
        self.apply(now, changed, &events);
        self.note_process(now, process, DeviceEvent::Registered);
        let lease_ms = u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX);
        Ok(RegisterReply { version: self.configuration.version, lease_ms })
    }

    /// A server whose address changed in the cluster file registers there after its restart. True if this one did.
    fn note_moved(&mut self, request: &Register) -> bool {
        let section = self.transactions.as_ref().and_then(|all| all.file().server(request.process));
        let Some(first) = section.and_then(|section| section.endpoints.first().copied()) else {
            return false;
        };
        let listens = request.devices.iter().any(|device| device.endpoint == first);
        match self.process_mut(request.process) {
            Some(found) if listens && found.endpoint != first => {
                found.endpoint = first;
                true
            }
            _ => false,
        }
    }

    fn process_mut(&mut self, process: Fid) -> Option<&mut ProcessConfig> {
        let position = self.configuration.process_position(process)?;
        self.configuration.processes.get_mut(position)
    }

    fn check_register(&self, request: &Register) -> Result<(), Refusal> {
        let process = request.process;
        if self.configuration.process(process).is_none() {
            return Err(Refusal::UnknownProcess { process });
        }
        for registered in &request.devices {
            let (device, endpoint) = (registered.device, registered.endpoint);
            let ours = self.configuration.device(device).is_some_and(|found| found.process == process);
            if !ours {
                return Err(Refusal::UnknownDevice { device, process });
            }
            if let Some(DeviceConfig { replaced, state, .. }) = self.configuration.device(device) {
                let found = registered.replacement;
                // Of one that is given up it does not matter what is in its place: nobody reads it.
                if found != *replaced && !is_given_up(*state) {
                    return Err(Refusal::OtherDisk { device, found, replaced: *replaced });
                }
            }
            let others = self.configuration.pool.devices.iter().filter(|found| found.process != process);
            let mut others = others.map(|found| (found.endpoint, found.process));
            if let Some((_, other)) = others.find(|(taken, _)| *taken == endpoint) {
                return Err(Refusal::EndpointTaken { device, endpoint, other });
            }
            if self.configuration.control == endpoint {
                let other = Fid::new(FidType::Root, 0, 0);
                return Err(Refusal::EndpointTaken { device, endpoint, other });
            }
        }
        Ok(())
    }

    /// A process that goes by configuration `version` prolongs its lease. `known: false` if it, this incarnation of it, or one of the devices is not registered.
    pub fn handle_heartbeat(&mut self, now: Instant, request: &Heartbeat, version: u64) -> HeartbeatReply {
        let unknown = HeartbeatReply { version: self.configuration.version, known: false };
        let Some(member) = self.members.get_mut(&request.process) else { return unknown };
        if member.epoch != Some(request.epoch) {
            return unknown;
        }
        let ours = |health: &DeviceHealth| {
            self.configuration.device(health.device).is_some_and(|found| found.process == request.process)
                && self.seats.get(&health.device).is_some_and(|seat| seat.registered)
        };
        if !request.devices.iter().all(ours) {
            return unknown;
        }
        member.heard_at = now;
        let mut events = Vec::new();
        for health in &request.devices {
            if let Some(seat) = self.seats.get_mut(&health.device) {
                (seat.heard_at, seat.health) = (now, Some(health.clone()));
                // A heartbeat of a registered device whose lease was taken as lost in between brings it back.
                if seat.may_return(now, self.lease) {
                    events.push((health.device, DeviceEvent::Registered));
                }
            }
            let found = self.configuration.device(health.device).filter(|_| health.failed);
            if found.is_some_and(|found| self.is_of_its_disk(found, version)) {
                events.push((health.device, DeviceEvent::IoError));
            }
        }
        self.apply(now, false, &events);
        self.note_process(now, request.process, DeviceEvent::Registered);
        HeartbeatReply { version: self.configuration.version, known: true }
    }

    /// The incarnation of a process that is registered.
    #[must_use]
    pub fn incarnation(&self, process: Fid) -> Option<u64> {
        self.members.get(&process)?.epoch
    }

    /// A data service acknowledges the fences up to `request.known`. Of another incarnation than the registered one it says nothing.
    pub fn handle_fenced(&mut self, request: &FencesGet) {
        let member = self.members.get(&request.process);
        if member.is_none_or(|member| member.epoch != Some(request.epoch)) {
            return;
        }
        for device in &request.devices {
            let ours =
                self.configuration.device(*device).is_some_and(|found| found.process == request.process);
            if let Some(seat) = self.seats.get_mut(device).filter(|seat| ours && seat.registered) {
                seat.fenced = seat.fenced.max(request.known);
            }
        }
    }

    /// The targets that have not acknowledged fence `number` and whose leases run at `now`: each may still let a change in.
    ///
    /// One whose lease ended is no such target: it stops by itself, and asks for the fences before it serves again.
    /// The first [`FENCE_WAITS_NAMED`] of them.
    #[must_use]
    pub fn fence_waits(&self, now: Instant, number: u64) -> Vec<FenceWait> {
        let wait = |(device, ends_at): (&DeviceConfig, Instant)| FenceWait {
            device: device.device,
            process: device.process,
            endpoint: device.endpoint,
            lease_ends_ms: u64::try_from(ends_at.since(now).as_millis()).unwrap_or(u64::MAX),
        };
        self.unfenced(now, number).map(wait).take(FENCE_WAITS_NAMED).collect()
    }

    /// True if no target lets in what fence `number` refuses.
    #[must_use]
    pub fn is_fenced(&self, now: Instant, number: u64) -> bool {
        self.unfenced(now, number).next().is_none()
    }

    /// The targets that [`ControlCore::fence_waits`] tells of, with the end of the lease of each.
    fn unfenced(&self, now: Instant, number: u64) -> impl Iterator<Item = (&DeviceConfig, Instant)> {
        let lost_after = lost_after(self.lease);
        self.configuration.pool.devices.iter().filter_map(move |device| {
            let seat = self.seats.get(&device.device)?;
            let ends_at = seat.heard_at + lost_after;
            (seat.fenced < number && ends_at > now).then_some((device, ends_at))
        })
    }

    /// True unless whoever goes by `version` speaks of the disk that this device had before: the one that it has came later than that. What is true of this one
    /// is said again, with each heartbeat.
    fn is_of_its_disk(&self, device: &DeviceConfig, version: u64) -> bool {
        let is_new = matches!(device.state, DeviceState::Repair | DeviceState::Rebalance);
        !is_new || version >= self.configuration.pool.changes_from
    }

    /// Somebody reports what it saw of a device. `reporter`: its endpoint, and the configuration version that it goes by; only the device's own server proves an
    /// I/O error.
    pub fn handle_evidence(
        &mut self,
        now: Instant,
        report: &DeviceReport,
        (reporter, version): (Endpoint, u64),
    ) -> Result<u64, Refusal> {
        let DeviceReport { device, evidence } = *report;
        let Some(found) = self.configuration.device(device) else {
            return Err(Refusal::UnknownDevice { device, process: Fid::default() });
        };
        let event = match evidence {
            DeviceEvidence::IoError if found.endpoint == reporter && self.is_of_its_disk(found, version) => {
                DeviceEvent::IoError
            }
            DeviceEvidence::IoError => DeviceEvent::IoErrorHeard,
            DeviceEvidence::Operator => DeviceEvent::Operator,
            // Evidence of a later version proves nothing to this one.
            _ => DeviceEvent::Unreachable,
        };
        self.apply(now, false, &[(device, event)]);
        Ok(self.configuration.version)
    }

    /// A heartbeat came from a server that goes by configuration `version`: so it heeds what that version says of its devices.
    pub fn note_server_version(&mut self, request: &Heartbeat, version: u64) {
        for health in &request.devices {
            if let Some(seat) = self.seats.get_mut(&health.device) {
                seat.server_version = seat.server_version.max(version);
            }
        }
    }

    /// An operator takes a device out for a while, or back. The answer's version has to be durable before anybody hears of it.
    ///
    /// The same order again changes nothing. Errors: what the device's state does not allow; nothing changed then.
    pub fn handle_command(
        &mut self,
        now: Instant,
        command: &DeviceCommand,
    ) -> Result<DeviceCommandReply, Refusal> {
        let DeviceCommand { device, order } = *command;
        if device.is(FidType::Pool) {
            return self.handle_pool_command(now, device, order);
        }
        let state = match self.configuration.device(device) {
            Some(found) => found.state,
            None => return Err(Refusal::UnknownDevice { device, process: Fid::default() }),
        };
        let (before, repairs_before) = (self.configuration.version, self.repairs.serial());
        match order {
            DeviceOrder::Detach { force } => self.detach(now, device, state, force)?,
            DeviceOrder::Attach => self.attach(now, device, state)?,
            DeviceOrder::Replace => self.replace(now, device, state)?,
            DeviceOrder::RepairStart => self.repair(now, device, state, RepairWish::Start)?,
            DeviceOrder::RepairPause => self.repair(now, device, state, RepairWish::Pause)?,
            DeviceOrder::RepairResume => self.repair(now, device, state, RepairWish::Resume)?,
            DeviceOrder::RepairAbort => self.repair(now, device, state, RepairWish::Abort)?,
            _ => return Err(Refusal::UnknownOrder),
        }
        let version = self.configuration.version;
        let lost_after = lost_after(self.lease);
        let mut is_heeded = true;
        if let Some(seat) = self.seats.get_mut(&device) {
            if version != before {
                seat.ordered_version = version;
            }
            is_heeded = seat.server_version >= seat.ordered_version || seat.heard_at + lost_after <= now;
        }
        let found = self.configuration.device(device);
        if matches!(order, DeviceOrder::RepairPause | DeviceOrder::RepairAbort) {
            is_heeded = !self.repairs.is_copying(now, device);
        }
        if order == DeviceOrder::Replace {
            let takes_writes = |state| matches!(state, DeviceState::Repair | DeviceState::Rebalance);
            is_heeded = found.is_some_and(|found| takes_writes(found.state)) && self.all_know(now);
        }
        let job = self.configuration.spare_slot_of(device).filter(|slot| slot.phase.is_job());
        let replacement = job.map_or_else(|| self.configuration.replacement_of(device), |slot| slot.job);
        let state = found.map_or("", |found| found.state.word()).to_owned();
        let is_new = version != before || self.repairs.serial() != repairs_before;
        Ok(DeviceCommandReply { version, state, is_new, is_heeded, replacement })
    }

    /// True if every server whose lease may run refuses the requests of those who do not know the last replacement, or where units stand now.
    fn all_know(&self, now: Instant) -> bool {
        let Configuration { pool, spares, .. } = &self.configuration;
        let (from, lost_after) = (pool.changes_from.max(spares.reads_from), lost_after(self.lease));
        self.seats.values().all(|seat| seat.server_version >= from || seat.heard_at + lost_after <= now)
    }

    fn replace(&mut self, now: Instant, device: Fid, state: DeviceState) -> Result<(), Refusal> {
        match state {
            DeviceState::Repair | DeviceState::Rebalance => return Ok(()),
            DeviceState::Failed | DeviceState::Repaired => {}
            _ => return Err(Refusal::NotFailed { device, state }),
        }
        if let Some(SpareSlot { phase, .. }) = self.configuration.spare_slot_of(device)
            && *phase != SparePhase::Standing
        {
            return Err(Refusal::Sparing { device, state, phase: *phase });
        }
        let lost_after = lost_after(self.lease);
        let awaited = self.configuration.pool.awaited_disks.len();
        if self.configuration.pool.awaited_disks.contains(&device) {
            return Ok(());
        }
        if awaited >= AWAITED_DISKS_MAX {
            return Err(Refusal::TooManyAwaited { device, awaited });
        }
        let process = self.configuration.device(device).map(|found| found.process).unwrap_or_default();
        let member = self.members.get(&process);
        if member.is_none_or(|member| member.epoch.is_none() || member.heard_at + lost_after <= now) {
            return Err(Refusal::ServerAway { device, process });
        }
        self.configuration.pool.awaited_disks.push(device);
        self.apply(now, true, &[]);
        Ok(())
    }

    fn repair(
        &mut self,
        now: Instant,
        device: Fid,
        state: DeviceState,
        wish: RepairWish,
    ) -> Result<(), Refusal> {
        let slot = self.configuration.spare_slot_of(device).copied();
        if slot.is_none() && state == DeviceState::Failed && wish == RepairWish::Start {
            return self.start_sparing(now, device);
        }
        let refuse = |reason| Refusal::Repair { device, state, reason };
        let job = slot.filter(|slot| slot.phase.is_job());
        if job.is_some_and(|slot| slot.phase == SparePhase::Freeing) {
            let has_failed = self.repairs.state(device) == Some(RepairState::Failed);
            match wish {
                RepairWish::Abort => return Err(refuse(RepairRefusal::Freeing)),
                RepairWish::Start if !has_failed => {
                    return Err(Refusal::Sparing { device, state, phase: SparePhase::Freeing });
                }
                _ => {}
            }
        }
        let is_in_repair = job.is_some() || state == DeviceState::Repair;
        let happening = self.repairs.handle_order(device, is_in_repair, wish).map_err(refuse)?;
        match job {
            Some(slot) => self.note_sparing(now, slot, happening),
            None => self.note_repair(now, device, happening),
        }
        Ok(())
    }

    /// The units of a failed device are to be rebuilt in spare units. Errors: there are none for it, it awaits a disk.
    fn start_sparing(&mut self, now: Instant, device: Fid) -> Result<(), Refusal> {
        if self.configuration.pool.awaited_disks.contains(&device) {
            return Err(Refusal::AwaitsDisk { device });
        }
        let index = self.configuration.target_index(device).unwrap_or(u32::MAX);
        let slot = self.configuration.free_spare_slot(index);
        let slot = slot.map_err(|reason| Refusal::NoSpare { device, reason })?;
        let job = self.configuration.spares.next_job(SpareCopy::There);
        self.configuration.spares.slots.push(SpareSlot {
            device: index,
            slot,
            phase: SparePhase::Filling,
            job,
        });
        self.apply(now, true, &[]);
        // Whoever does not know writes past the spare units.
        self.configuration.pool.changes_from = self.configuration.version;
        self.repairs.begin(device, job);
        self.tell_of(now, device, "to spare units");
        Ok(())
    }

    /// Nobody is to use the spare units of a slot any more: they are freed once all know.
    fn start_freeing(&mut self, now: Instant, device: Fid) {
        let job = self.configuration.spares.next_job(SpareCopy::Free);
        let Some(slot) = self.configuration.spare_slot_mut(device) else { return };
        (slot.phase, slot.job) = (SparePhase::Freeing, job);
        self.apply(now, true, &[]);
        self.configuration.pool.changes_from = self.configuration.version;
        self.configuration.spares.reads_from = self.configuration.version;
        self.repairs.begin(device, job);
    }

    /// Something happened to a device that is no change of its state.
    fn tell_of(&mut self, now: Instant, device: Fid, cause: &'static str) {
        let state = self.configuration.device(device).map_or(DeviceState::Unknown, |found| found.state);
        let version = self.configuration.version;
        self.changes.push(StateChange { subject: device, at: now, cause, from: state, to: state, version });
    }

    /// What follows from what happened to a copy to spare units, from them, or to the freeing of some.
    fn note_sparing(&mut self, now: Instant, slot: SpareSlot, happening: Option<RepairHappening>) {
        let Some(device) = self.configuration.target(slot.device).map(|found| found.device) else { return };
        let enter = |core: &mut ControlCore, phase| {
            if let Some(slot) = core.configuration.spare_slot_mut(device) {
                slot.phase = phase;
            }
        };
        match (happening, slot.phase) {
            (None, _) => {}
            (Some(RepairHappening::Complete), SparePhase::Filling) => {
                enter(self, SparePhase::Standing);
                self.apply(now, true, &[(device, DeviceEvent::Spared)]);
            }
            (Some(RepairHappening::Complete), SparePhase::Returning) => {
                enter(self, SparePhase::Leaving);
                self.take_back(now, device, DeviceEvent::Restored);
                // Reads go to the device from this version on. Those that go to the spare units find the same there, until all of them are refused.
                self.configuration.spares.reads_from = self.configuration.version;
            }
            (Some(RepairHappening::Complete), _) => {
                self.configuration.spares.slots.retain(|found| found.device != slot.device);
                self.apply(now, true, &[]);
                self.tell_of(now, device, "spares freed");
            }
            (Some(RepairHappening::Aborted), SparePhase::Returning) => {
                // The state that follows takes the slot with it.
                self.apply(now, false, &[(device, DeviceEvent::Aborted)]);
            }
            (Some(RepairHappening::Aborted), _) => {
                self.start_freeing(now, device);
                self.tell_of(now, device, RepairHappening::Aborted.word());
            }
            (Some(happening), _) => self.tell_of(now, device, happening.word()),
        }
    }

    /// The server that copies to spare units or back speaks, or one that did.
    fn handle_sparing_turn(&mut self, now: Instant, turn: &RepairTurn) -> RepairTurnReply {
        let (device, number) = (turn.device, turn.replacement);
        let slot = self.configuration.spare_slot_of(device).copied();
        let slot = slot.filter(|slot| slot.phase.is_job() && slot.job == number);
        let copier = slot.and_then(|slot| self.configuration.spare_copier(slot.device));
        let copier = copier.map(|copier| copier.process);
        let (order, progress, happening) = match slot {
            None => (RepairOrder::Leave, RepairProgress::default(), None),
            _ if self.incarnation(turn.process) != Some(turn.epoch) => {
                (RepairOrder::Wait, RepairProgress::default(), None)
            }
            // Another server's turn: it may come back to this one.
            _ if copier != Some(turn.process) => (RepairOrder::Pause, RepairProgress::default(), None),
            Some(slot) => {
                let (all_know, version) = (self.all_know(now), self.configuration.version);
                let around = Surroundings { in_repair: Some(slot.job), all_know, version };
                self.repairs.handle_turn(now, (device, number), &turn.word, around)
            }
        };
        if let Some(slot) = slot {
            self.note_sparing(now, slot, happening);
        }
        let bytes_per_second = self.repair_rate();
        RepairTurnReply { order, progress, bytes_per_second, version: self.configuration.version }
    }

    /// Begins what is due: spare units that nobody reads any more are freed, and those of failed devices are filled that nobody has replaced for too long.
    /// True if something did.
    fn look_after_spares(&mut self, now: Instant) -> bool {
        let version = self.configuration.version;
        let leaving = self.configuration.spares.slots.iter().filter(|slot| slot.phase == SparePhase::Leaving);
        let leaving: Vec<u32> = leaving.map(|slot| slot.device).collect();
        if !leaving.is_empty() && self.all_know(now) {
            for index in leaving {
                if let Some(device) = self.configuration.target(index).map(|found| found.device) {
                    self.start_freeing(now, device);
                }
            }
        }
        let wait = self.sparing_wait();
        let mut due = Vec::new();
        for found in &self.configuration.pool.devices {
            let Some(seat) = self.seats.get_mut(&found.device) else { continue };
            if found.state != DeviceState::Failed {
                seat.failed_since = None;
                continue;
            }
            let since = *seat.failed_since.get_or_insert(now);
            if wait.is_some_and(|wait| since + wait <= now) {
                due.push(found.device);
            }
        }
        for device in due {
            if self.configuration.spare_slot_of(device).is_none() {
                // What cannot be done now is tried again: spare units may get free.
                let _refusal = self.start_sparing(now, device);
            }
        }
        self.configuration.version != version
    }

    /// Gives devices up that are away for too long, if the operator wants that: none of a pool version that lacks more than K already, itself included.
    /// True if something changed or is to be told.
    fn look_after_absent(&mut self, now: Instant) -> bool {
        let lost_after = lost_after(self.lease);
        // It looks once in a lease at least. What came while it stood still may wait to be heard, so the time begins again.
        let saw_all = self.looked_at.replace(now).is_some_and(|at| at + 2 * lost_after >= now);
        let limit = self.transactions.as_ref().and_then(|all| all.file().profile.absence_limit());
        let mut due = Vec::new();
        for (index, found) in (0u32..).zip(&self.configuration.pool.devices) {
            let Some(seat) = self.seats.get_mut(&found.device) else { continue };
            let is_away = found.state == DeviceState::Transient && seat.heard_at + lost_after <= now;
            if !is_away || !saw_all {
                (seat.away_since, seat.is_kept) = (None, false);
            }
            if is_away {
                let since = *seat.away_since.get_or_insert(now);
                if limit.is_some_and(|limit| since + limit <= now) {
                    due.push((index, found.device));
                }
            }
        }
        if due.is_empty() {
            return false;
        }
        // Transient or failed, it is missing: what is given up here changes none of these counts.
        let beyond = self.configuration.versions_beyond_parity();
        let (kept, lost): (Vec<_>, Vec<_>) =
            due.into_iter().partition(|(index, _)| beyond.iter().any(|version| version.has_device(*index)));
        let events: Vec<_> = lost.iter().map(|(_, device)| (*device, DeviceEvent::AwayTooLong)).collect();
        let mut changed = self.apply(now, false, &events);
        for (_, device) in kept {
            if let Some(seat) = self.seats.get_mut(&device)
                && !std::mem::replace(&mut seat.is_kept, true)
            {
                self.tell_of(now, device, "too many away");
                changed = true;
            }
        }
        changed
    }

    /// How long a failed device waits for another disk before its units are rebuilt in spare units by themselves; `None`: for ever.
    fn sparing_wait(&self) -> Option<Duration> {
        let profile = &self.transactions.as_ref()?.file().profile;
        let seconds = profile.spare_repair_after_seconds.unwrap_or(SPARE_REPAIR_AFTER_SECONDS);
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }

    /// An operator's word on the rebalance of a pool.
    fn handle_pool_command(
        &mut self,
        now: Instant,
        pool: Fid,
        order: DeviceOrder,
    ) -> Result<DeviceCommandReply, Refusal> {
        let newest = self.configuration.newest_version(pool).ok_or(Refusal::UnknownPool { pool })?;
        let (before, repairs_before) = (self.configuration.version, self.repairs.serial());
        let is_moving = self.configuration.move_number(pool).is_some();
        let wish = match order {
            DeviceOrder::RepairStart => RepairWish::Start,
            DeviceOrder::RepairPause => RepairWish::Pause,
            DeviceOrder::RepairResume => RepairWish::Resume,
            DeviceOrder::RepairAbort => RepairWish::Abort,
            _ => return Err(Refusal::UnknownOrder),
        };
        if wish == RepairWish::Start && !is_moving {
            let is_older = |version: &PoolVersionConfig| {
                version.pool == pool && version.pool_version != newest.pool_version
            };
            let has_older = self.configuration.pool_versions().any(|version| is_older(&version));
            if !has_older {
                return Err(Refusal::NothingToMove { pool });
            }
            self.apply(now, true, &[]);
            self.begin_moves(pool);
        } else {
            let happening = self.repairs.handle_order(pool, is_moving, wish);
            let happening = happening.map_err(|reason| Refusal::Rebalance { pool, reason })?;
            self.note_moves(now, pool, happening);
        }
        let is_heeded = match wish {
            RepairWish::Pause | RepairWish::Abort => !self.repairs.is_copying(now, pool),
            RepairWish::Start | RepairWish::Resume => self.all_know(now),
        };
        Ok(DeviceCommandReply {
            version: self.configuration.version,
            state: self.repairs.state(pool).map_or("", RepairState::word).to_owned(),
            is_new: self.configuration.version != before || self.repairs.serial() != repairs_before,
            is_heeded,
            replacement: self.repairs.last_number(pool),
        })
    }

    /// What follows from what happened to a rebalance.
    fn note_moves(&mut self, now: Instant, pool: Fid, happening: Option<RepairHappening>) {
        let Some(happening) = happening else { return };
        match happening {
            RepairHappening::Complete => self.end_moves(now, pool),
            RepairHappening::Aborted => {
                let mut moving = self.configuration.pools.moving.iter_mut();
                if let Some(moving) = moving.find(|moving| moving.pool == pool) {
                    moving.number |= Moving::ENDING;
                }
                self.apply(now, true, &[]);
            }
            _ => {}
        }
        let (state, version) = (DeviceState::Rebalance, self.configuration.version);
        let cause = happening.word_of_pool();
        self.changes.push(StateChange { subject: pool, at: now, cause, from: state, to: state, version });
    }

    /// Nobody is in the middle of moving an object of this pool: clients need not hold what they change any more.
    pub fn end_moves(&mut self, now: Instant, pool: Fid) {
        self.configuration.pools.moving.retain(|moving| moving.pool != pool);
        self.apply(now, true, &[]);
        // A client that slept through it all has to look where objects lie before it changes one.
        self.configuration.pool.changes_from = self.configuration.version;
    }

    /// The server that moves a pool's objects speaks, or one that did.
    fn handle_move_turn(&mut self, now: Instant, turn: &RepairTurn) -> RepairTurnReply {
        let (pool, bytes_per_second) = (turn.device, self.repair_rate());
        let number = self.configuration.move_number(pool);
        let mover = self.configuration.mover(pool).map(|device| device.process);
        let (order, progress, happening) = match (number, mover) {
            (None, _) => {
                let around = Surroundings { in_repair: None, all_know: false, version: 0 };
                self.repairs.handle_turn(now, (pool, turn.replacement), &turn.word, around)
            }
            _ if self.incarnation(turn.process) != Some(turn.epoch) => {
                (RepairOrder::Wait, RepairProgress::default(), None)
            }
            // Another server's turn: it may come back to this one.
            (Some(_), other) if other != Some(turn.process) => {
                (RepairOrder::Pause, RepairProgress::default(), None)
            }
            (in_repair, _) => {
                let (all_know, version) = (self.all_know(now), self.configuration.version);
                let around = Surroundings { in_repair, all_know, version };
                self.repairs.handle_turn(now, (pool, turn.replacement), &turn.word, around)
            }
        };
        self.note_moves(now, pool, happening);
        RepairTurnReply { order, progress, bytes_per_second, version: self.configuration.version }
    }

    /// What follows from what happened to a repair: another state of the device, or an event that changes none.
    fn note_repair(&mut self, now: Instant, device: Fid, happening: Option<RepairHappening>) {
        match happening {
            None => {}
            Some(RepairHappening::Complete) => self.take_back(now, device, DeviceEvent::Restored),
            Some(RepairHappening::Aborted) => {
                self.apply(now, false, &[(device, DeviceEvent::Aborted)]);
            }
            Some(happening) => {
                let (state, version) = (DeviceState::Repair, self.configuration.version);
                let cause = happening.word();
                self.changes.push(StateChange {
                    subject: device,
                    at: now,
                    cause,
                    from: state,
                    to: state,
                    version,
                });
            }
        }
    }

    /// The server of a device in repair speaks. The answer's version, and the repairs so far, have to be durable before it hears it.
    ///
    /// Of one that is not registered (control has just started) nothing counts; it goes on with what it does. Errors: not its device.
    pub fn handle_repair_turn(
        &mut self,
        now: Instant,
        turn: &RepairTurn,
    ) -> Result<RepairTurnReply, Refusal> {
        let RepairTurn { process, epoch, device, replacement, ref word } = *turn;
        if device.is(FidType::Pool) {
            return Ok(self.handle_move_turn(now, turn));
        }
        if replacement & SPARE_JOB != 0 {
            return Ok(self.handle_sparing_turn(now, turn));
        }
        let found = self.configuration.device(device).filter(|found| found.process == process);
        let Some(found) = found else { return Err(Refusal::UnknownDevice { device, process }) };
        let bytes_per_second = self.repair_rate();
        if self.incarnation(process) != Some(epoch) {
            let (order, progress) = (RepairOrder::Wait, RepairProgress::default());
            let version = self.configuration.version;
            return Ok(RepairTurnReply { order, progress, bytes_per_second, version });
        }
        let around = Surroundings {
            in_repair: (found.state == DeviceState::Repair).then_some(found.replaced),
            all_know: self.all_know(now),
            version: self.configuration.version,
        };
        let (order, progress, happening) = self.repairs.handle_turn(now, (device, replacement), word, around);
        self.note_repair(now, device, happening);
        let version = self.configuration.version;
        Ok(RepairTurnReply { order, progress, bytes_per_second, version })
    }

    /// Bytes in a second that the cluster file allows a repair; 0: no limit.
    fn repair_rate(&self) -> u64 {
        let file = self.transactions.as_ref().map(Transactions::file);
        file.and_then(|file| file.profile.repair_bytes_per_second).unwrap_or(0)
    }

    /// What is to be copied, about: to a device what the others of its pools hold on average, in a pool what all of its devices hold. 0: nobody said.
    fn expected_bytes(&self, subject: Fid) -> u64 {
        let is_pool = subject.is(FidType::Pool);
        let index = self.configuration.target_index(subject).unwrap_or(u32::MAX);
        let versions = self.configuration.pool_versions();
        let versions: Vec<PoolVersionConfig> =
            versions.filter(|version| version.pool == subject || version.has_device(index)).collect();
        let is_among = |index: u32| versions.iter().any(|version| version.has_device(index));
        let among = (0u32..).zip(&self.configuration.pool.devices).filter(|(index, _)| is_among(*index));
        let online = among.map(|(_, found)| found).filter(|found| found.state == DeviceState::Online);
        let used = online.filter_map(|found| {
            let health = self.seats.get(&found.device)?.health.as_ref()?;
            Some(u128::from(found.size_blocks.saturating_sub(health.free_blocks)))
        });
        let (sum, count) = used.fold((0_u128, 0_u128), |(sum, count), used| (sum + used, count + 1));
        let blocks = if is_pool { sum } else { sum / count.max(1) };
        u64::try_from(blocks).unwrap_or(u64::MAX).saturating_mul(BLOCK_BYTES)
    }

    /// A page of the repairs.
    #[must_use]
    pub fn repair_list(&self, now: Instant, request: &RepairGet) -> RepairGetReply {
        let bytes_per_second_max = self.repair_rate();
        let all_know = self.all_know(now);
        let mut behind = self.repairs.behind(now, request.after);
        let status = |(record, pace): (&RepairRecord, Option<u64>)| {
            let is_pool = record.device.is(FidType::Pool);
            let is_sparing = record.replacement & SPARE_JOB != 0;
            let index = self.configuration.target_index(record.device).unwrap_or(u32::MAX);
            let device = match (is_pool, is_sparing) {
                (true, _) => self.configuration.mover(record.device),
                (_, true) => self.configuration.spare_copier(index),
                _ => self.configuration.device(record.device),
            };
            let process = device.map(|device| device.process).unwrap_or_default();
            let (state, reason) = match (record.state, pace) {
                (RepairState::Running, None) if is_pool || is_sparing => {
                    ("waiting", self.why_nothing_moves(device.is_some(), all_know))
                }
                (RepairState::Running, None) => ("waiting", self.why_waiting(now, process, all_know)),
                (state, _) => (state.word(), record.reason.clone()),
            };
            RepairStatus {
                device: record.device,
                process,
                replacement: record.replacement,
                state: state.to_owned(),
                reason,
                progress: record.progress.clone(),
                expected_bytes: match SpareCopy::of_number(record.replacement) {
                    // It writes none.
                    Some(SpareCopy::Free) if !is_pool => 0,
                    _ => self.expected_bytes(record.device),
                },
                bytes_per_second: pace.filter(|_| record.state == RepairState::Running).unwrap_or(0),
                bytes_per_second_max,
            }
        };
        let repairs = behind.by_ref().take(REPAIRS_PAGE).map(status).collect();
        RepairGetReply { repairs, has_more: behind.next().is_some() }
    }

    fn why_waiting(&self, now: Instant, process: Fid, all_know: bool) -> String {
        let lost_after = lost_after(self.lease);
        let runs = self.members.get(&process).is_some_and(|member| member.heard_at + lost_after > now);
        match (runs, all_know) {
            (false, _) => format!("its server, process {process}, does not run"),
            (true, false) => "not every server has said that it knows of the new disk".to_owned(),
            (true, true) => "its server is about to copy, or copies to another device first".to_owned(),
        }
    }

    fn why_nothing_moves(&self, has_mover: bool, all_know: bool) -> String {
        match (has_mover, all_know) {
            (false, _) => "no device of the newest pool version is online",
            (true, false) => "not every server has said that it knows of it",
            (true, true) => "the server that copies is about to begin, or copies something else first",
        }
        .to_owned()
    }

    fn detach(&mut self, now: Instant, device: Fid, state: DeviceState, force: bool) -> Result<(), Refusal> {
        match state {
            DeviceState::Detached => return Ok(()),
            DeviceState::Online | DeviceState::Transient => {}
            _ => return Err(Refusal::NothingToDetach { device, state }),
        }
        let index = self.configuration.target_index(device).unwrap_or(u32::MAX);
        // Each pool version that it is in outlives K losses of its own.
        for version in self.configuration.pool_versions().filter(|version| version.has_device(index)) {
            let away = self.configuration.missing_in(&version) - usize::from(!state.is_whole());
            let parity = usize::try_from(version.width.parity()).unwrap_or(usize::MAX);
            if away >= parity && !force {
                return Err(Refusal::TooManyAway { device, away, parity });
            }
        }
        self.apply(now, false, &[(device, DeviceEvent::Detach)]);
        Ok(())
    }

    fn attach(&mut self, now: Instant, device: Fid, state: DeviceState) -> Result<(), Refusal> {
        match state {
            DeviceState::Detached => {}
            // It is as far in as it can be.
            DeviceState::Online | DeviceState::Transient | DeviceState::Unknown => return Ok(()),
            _ => return Err(Refusal::OldBytes { device, state }),
        }
        self.take_back(now, device, DeviceEvent::Attach);
        Ok(())
    }

    /// `event` makes the device Transient, and its server's lease Online.
    fn take_back(&mut self, now: Instant, device: Fid, event: DeviceEvent) {
        let mut events = vec![(device, event)];
        let lost_after = lost_after(self.lease);
        if let Some(seat) = self.seats.get_mut(&device) {
            // What it did before is forgiven: somebody has looked at it.
            seat.losses.clear();
            if seat.registered && seat.heard_at + lost_after > now {
                events.push((device, DeviceEvent::Registered));
            }
        }
        self.apply(now, false, &events);
    }

    /// Takes leases as lost whose time is over. True if a state changed.
    pub fn handle_tick(&mut self, now: Instant) -> bool {
        let lost_after = lost_after(self.lease);
        let events: Vec<(Fid, DeviceEvent)> = self
            .seats
            .iter()
            .filter(|(_, seat)| seat.heard_at + lost_after <= now)
            .map(|(device, _)| (*device, DeviceEvent::LeaseLost))
            .collect();
        for (device, _) in &events {
            let was_online =
                self.configuration.device(*device).is_some_and(|d| d.state == DeviceState::Online);
            if let Some(seat) = self.seats.get_mut(device) {
                if was_online {
                    seat.lose(now);
                }
                seat.back_since = None;
            }
        }
        let mut changed = self.apply(now, false, &events);
        changed |= self.look_after_absent(now);
        changed |= self.look_after_spares(now);
        let silent = self.members.iter().filter(|(_, member)| member.heard_at + lost_after <= now);
        let silent: Vec<Fid> = silent.map(|(process, _)| *process).collect();
        for process in silent {
            changed |= self.note_process(now, process, DeviceEvent::LeaseLost);
        }
        changed
    }

    /// Runs an event of a process through the same table. True if its state changed.
    fn note_process(&mut self, now: Instant, process: Fid, event: DeviceEvent) -> bool {
        let Some(member) = self.members.get_mut(&process) else { return false };
        let (from, to) = (member.state, next_state(member.state, event));
        member.state = to;
        if from != to {
            let version = self.configuration.version;
            let cause = event.word();
            self.changes.push(StateChange { subject: process, at: now, cause, from, to, version });
        }
        from != to
    }

    /// When [`ControlCore::handle_tick`] has work next: the end of the first lease of an Online device or process.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let lost_after = lost_after(self.lease);
        let online = self.configuration.pool.devices.iter().filter(|d| d.state == DeviceState::Online);
        let devices = online.filter_map(|device| Some(self.seats.get(&device.device)?.heard_at + lost_after));
        let members = self.members.values().filter(|member| member.state == DeviceState::Online);
        devices.chain(members.map(|member| member.heard_at + lost_after)).min()
    }

    /// Processes and devices as seen at `now`.
    #[must_use]
    pub fn status(&self, now: Instant) -> ClusterStatusReply {
        ClusterStatusReply {
            version: self.configuration.version,
            processes: self.process_statuses(now, 0).collect(),
            devices: self.device_statuses(0).collect(),
        }
    }

    /// A page of them.
    #[must_use]
    pub fn status_page(&self, now: Instant, request: StatusGet) -> StatusGetReply {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let from = |from: u32| usize::try_from(from).unwrap_or(usize::MAX);
        StatusGetReply {
            version: self.configuration.version,
            processes_total: count(self.configuration.processes.len()),
            devices_total: count(self.configuration.pool.devices.len()),
            processes: self.process_statuses(now, from(request.processes_from)).take(STATUS_PAGE).collect(),
            devices: self.device_statuses(from(request.devices_from)).take(STATUS_PAGE).collect(),
        }
    }

    fn process_statuses(&self, now: Instant, from: usize) -> impl Iterator<Item = ProcessStatus> {
        let lost_after = lost_after(self.lease);
        self.configuration.processes.iter().skip(from).map(move |process| {
            let member = self.members.get(&process.process).filter(|member| member.epoch.is_some());
            let silent = member.map(|member| now.since(member.heard_at));
            ProcessStatus {
                process: process.process,
                silent_ms: silent.map(|silent| u64::try_from(silent.as_millis()).unwrap_or(u64::MAX)),
                alive: silent.is_some_and(|silent| silent < lost_after),
            }
        })
    }

    fn device_statuses(&self, from: usize) -> impl Iterator<Item = DeviceStatus> {
        self.configuration.pool.devices.iter().skip(from).map(|device| {
            let health = self.seats.get(&device.device).and_then(|seat| seat.health.as_ref());
            DeviceStatus {
                device: device.device,
                state: device.state.word().to_owned(),
                size_blocks: device.size_blocks,
                free_blocks: health.map(|health| health.free_blocks),
                errors: health.map_or(0, |health| health.errors),
            }
        })
    }

    /// Runs events through the table; one new version for all that change something.
    fn apply(&mut self, now: Instant, changed_already: bool, events: &[(Fid, DeviceEvent)]) -> bool {
        let version = self.configuration.version + 1;
        let mut changed = changed_already;
        for (fid, event) in events {
            let pool = &mut self.configuration.pool;
            let Some(device) = pool.position(*fid).and_then(|at| pool.devices.get_mut(at)) else { continue };
            let (from, to) = (device.state, next_state(device.state, *event));
            if from != to {
                device.state = to;
                let cause = event.word();
                self.changes.push(StateChange { subject: *fid, at: now, cause, from, to, version });
                changed = true;
                let replaced = device.replaced;
                let slot = self.configuration.spare_slot_of(*fid).map(|slot| slot.phase);
                match to {
                    DeviceState::Repair => self.repairs.begin(*fid, replaced),
                    // What is being freed of it has nothing to do with its disk.
                    DeviceState::Failed if slot.is_none() => self.repairs.abort(*fid),
                    DeviceState::Rebalance => {
                        let job = self.configuration.spares.next_job(SpareCopy::Back);
                        if let Some(slot) = self.configuration.spare_slot_mut(*fid) {
                            (slot.phase, slot.job) = (SparePhase::Returning, job);
                        }
                        self.repairs.begin(*fid, job);
                    }
                    DeviceState::Repaired => {
                        if let Some(slot) = self.configuration.spare_slot_mut(*fid) {
                            slot.phase = SparePhase::Standing;
                        }
                        if from == DeviceState::Rebalance {
                            self.repairs.abort(*fid);
                        }
                    }
                    _ => {}
                }
            }
        }
        if changed {
            self.configuration.version = version;
        }
        changed
    }
}

/// True of a state that only another disk leads out of: nobody uses what is in the device's place.
fn is_given_up(state: DeviceState) -> bool {
    matches!(state, DeviceState::Failed | DeviceState::Repaired)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use faces::ClusterFile;
    use fops::conf::RegisteredDevice;
    use fops::repair::RepairWord;

    use super::*;

    const LEASE: Duration = Duration::from_secs(3);

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    fn initial() -> Configuration {
        ClusterFile::parse(include_str!("../faces/src/cluster_file_example.toml"))
            .unwrap()
            .initial_configuration()
    }

    fn devices_of(configuration: &Configuration, process: usize) -> Vec<(Fid, Endpoint)> {
        let process = configuration.processes[process].process;
        let devices = configuration.pool.devices.iter().filter(|device| device.process == process);
        devices.map(|device| (device.device, device.endpoint)).collect()
    }

    fn register(configuration: &Configuration, process: usize, epoch: u64) -> Register {
        let devices = devices_of(configuration, process)
            .into_iter()
            .map(|(device, endpoint)| RegisteredDevice {
                device,
                endpoint,
                size_blocks: 1000,
                replacement: 0,
            })
            .collect();
        Register { process: configuration.processes[process].process, epoch, devices }
    }

    fn heartbeat(configuration: &Configuration, process: usize, epoch: u64) -> Heartbeat {
        let devices = devices_of(configuration, process)
            .into_iter()
            .map(|(device, _)| DeviceHealth { device, free_blocks: 900, errors: 0, failed: false })
            .collect();
        Heartbeat { process: configuration.processes[process].process, epoch, devices }
    }

    fn states(core: &ControlCore) -> String {
        let configuration = core.configuration();
        let mut line = format!("v{}", configuration.version);
        for device in &configuration.pool.devices {
            let _ = write!(line, " {}", device.state.word());
        }
        line
    }

    #[test]
    fn a_pool_is_moved_by_the_server_of_its_newest_versions_first_online_device() {
        let mut initial = initial();
        let pool = initial.pool.pool;
        let command = |core: &mut ControlCore, ms, pool, order| {
            core.handle_command(at(ms), &DeviceCommand { device: pool, order })
        };
        let mut alone = ControlCore::new(at(0), initial.clone(), LEASE);
        let refused = command(&mut alone, 1, pool, DeviceOrder::RepairStart).unwrap_err();
        assert_eq!(refused, Refusal::NothingToMove { pool });
        let mut newest =
            PoolVersionConfig { devices: faces::DeviceRun::of([2, 3, 0, 1]), ..initial.first_version() };
        newest.pool_version.key = 2;
        initial.pools.versions.push(newest);
        let mut core = ControlCore::new(at(0), initial.clone(), LEASE);
        for process in 0..2 {
            core.handle_register(at(10), &register(&initial, process, 7)).unwrap();
        }
        let order = |core: &mut ControlCore, ms, order| command(core, ms, pool, order);
        let none = Refusal::Rebalance { pool, reason: RepairRefusal::None };
        assert_eq!(order(&mut core, 20, DeviceOrder::RepairPause), Err(none.clone()));
        assert_eq!(order(&mut core, 20, DeviceOrder::Attach), Err(Refusal::UnknownOrder));
        let nowhere = Fid { key: 9, ..pool };
        let unknown = command(&mut core, 20, nowhere, DeviceOrder::RepairStart);
        assert_eq!(unknown, Err(Refusal::UnknownPool { pool: nowhere }));
        let started = order(&mut core, 30, DeviceOrder::RepairStart).unwrap();
        assert_eq!(
            (started.version, started.is_new, started.is_heeded, started.replacement),
            (4, true, false, 1)
        );
        assert_eq!(
            (core.configuration().pool.changes_from, core.configuration().move_number(pool)),
            (4, Some(1))
        );
        assert!(!order(&mut core, 31, DeviceOrder::RepairStart).unwrap().is_new);

        let turn = |core: &mut ControlCore, ms, process: usize, word| {
            let process = core.configuration().processes[process].process;
            let turn = RepairTurn { process, epoch: 7, device: pool, replacement: 1, word };
            core.handle_repair_turn(at(ms), &turn).unwrap()
        };
        assert_eq!(turn(&mut core, 40, 1, RepairWord::Asks).order, RepairOrder::Wait, "not all servers know");
        for process in 0..2 {
            let beat = heartbeat(&initial, process, 7);
            core.handle_heartbeat(at(50), &beat, core.configuration().version);
            core.note_server_version(&beat, 4);
        }
        assert_eq!(
            turn(&mut core, 60, 0, RepairWord::Asks).order,
            RepairOrder::Pause,
            "it is the other's turn"
        );
        assert_eq!(turn(&mut core, 60, 1, RepairWord::Asks).order, RepairOrder::Run);
        let last = Some(Fid::new(FidType::Object, 1, 5));
        let so_far = RepairProgress { objects: 3, bytes: 4096, last, ..RepairProgress::default() };
        assert_eq!(turn(&mut core, 70, 1, RepairWord::Copies(so_far.clone())).order, RepairOrder::Run);
        let seen = core.repair_list(at(80), &RepairGet { after: None }).repairs;
        assert_eq!((seen.len(), seen[0].state.as_str(), seen[0].device), (1, "running", pool));
        assert_eq!((seen[0].process, seen[0].progress.objects), (initial.processes[1].process, 3));
        assert_eq!(seen[0].expected_bytes, 400 * BLOCK_BYTES, "what all four devices hold");
        // Its server falls silent: the other goes on where it was.
        let beat = heartbeat(&initial, 0, 7);
        core.handle_heartbeat(at(3000), &beat, core.configuration().version);
        core.handle_tick(at(4000));
        assert_eq!(states(&core), "v5 online online transient transient");
        let reply = turn(&mut core, 4010, 0, RepairWord::Asks);
        assert_eq!((reply.order, reply.progress.clone()), (RepairOrder::Run, so_far.clone()));
        assert!(order(&mut core, 4020, DeviceOrder::RepairPause).unwrap().is_new);
        assert_eq!(turn(&mut core, 4030, 0, RepairWord::Copies(so_far.clone())).order, RepairOrder::Pause);
        let paused = Refusal::Rebalance { pool, reason: RepairRefusal::Paused };
        assert_eq!(order(&mut core, 4040, DeviceOrder::RepairStart), Err(paused));
        order(&mut core, 4050, DeviceOrder::RepairResume).unwrap();
        core.take_changes();
        assert_eq!(turn(&mut core, 4060, 0, RepairWord::Ended(so_far.clone())).order, RepairOrder::Leave);
        assert_eq!((core.configuration().version, core.configuration().is_moving(pool)), (6, false));
        let causes: Vec<_> =
            core.take_changes().iter().map(|change| (change.subject, change.cause)).collect();
        assert_eq!(causes, [(pool, "moves complete")]);
        // Another one has another number, and is given up.
        assert_eq!(order(&mut core, 4070, DeviceOrder::RepairStart).unwrap().replacement, 2);
        assert_eq!(turn(&mut core, 4080, 0, RepairWord::Asks).order, RepairOrder::Leave, "number 1 is over");
        let aborted = order(&mut core, 4090, DeviceOrder::RepairAbort).unwrap();
        // For clients it is over only when nobody can be in the middle of a move.
        let moving = |core: &ControlCore| {
            (core.configuration().is_moving(pool), core.configuration().move_number(pool))
        };
        assert_eq!((aborted.state.as_str(), moving(&core)), ("aborted", (true, None)));
        let word = RepairWord::Copies(so_far.clone());
        assert_eq!(turn(&mut core, 4082, 0, word).order, RepairOrder::Leave);
        let version = core.configuration().version;
        core.end_moves(at(4083), pool);
        assert_eq!((core.configuration().version, moving(&core)), (version + 1, (false, None)));
        assert_eq!(core.configuration().pool.changes_from, version + 1);
        assert!(!order(&mut core, 4100, DeviceOrder::RepairAbort).unwrap().is_new);
    }

    #[test]
    fn a_cluster_comes_up_loses_a_server_and_gets_it_back() {
        let initial = initial();
        let mut core = ControlCore::new(at(0), initial.clone(), LEASE);
        assert_eq!(states(&core), "v1 unknown unknown unknown unknown");
        let reply = core.handle_register(at(10), &register(&initial, 0, 7)).unwrap();
        assert_eq!(reply, RegisterReply { version: 2, lease_ms: 3000 });
        core.handle_register(at(20), &register(&initial, 1, 8)).unwrap();
        assert_eq!(states(&core), "v3 online online online online");
        assert_eq!(core.next_deadline(), Some(at(3760)));
        // Server 0 goes on, server 1 falls silent.
        assert_eq!(
            core.handle_heartbeat(at(3000), &heartbeat(&initial, 0, 7), core.configuration().version),
            HeartbeatReply { version: 3, known: true }
        );
        assert!(!core.handle_tick(at(3769)), "one millisecond left of lease and grace");
        assert!(core.handle_tick(at(3770)));
        assert_eq!(states(&core), "v4 online online transient transient");
        assert!(!core.handle_tick(at(3771)), "told once");
        assert!(!core.status(at(3771)).processes[1].alive);
        // A late heartbeat of the same incarnation brings it back; so does a registration.
        assert!(
            core.handle_heartbeat(at(4000), &heartbeat(&initial, 1, 8), core.configuration().version).known
        );
        assert_eq!(states(&core), "v5 online online online online");
        core.handle_register(at(4100), &register(&initial, 1, 9)).unwrap();
        assert_eq!(states(&core), "v6 online online online online");
        assert_eq!(core.configuration().processes[1].epoch, 9);
        assert!(
            !core.handle_heartbeat(at(4200), &heartbeat(&initial, 1, 8), core.configuration().version).known,
            "an older incarnation"
        );
        let changes = core.take_changes();
        let told = |change: &StateChange| {
            format!("{} {} {} v{}", change.subject, change.cause, change.to.word(), change.version)
        };
        let told: Vec<String> = changes.iter().map(told).collect();
        assert_eq!(
            told,
            [
                "0x6b00000000000001:0x1 registered online v2",
                "0x6b00000000000001:0x2 registered online v2",
                "0x7200000000000001:0x1 registered online v2",
                "0x6b00000000000001:0x3 registered online v3",
                "0x6b00000000000001:0x4 registered online v3",
                "0x7200000000000001:0x2 registered online v3",
                "0x6b00000000000001:0x3 lease lost transient v4",
                "0x6b00000000000001:0x4 lease lost transient v4",
                "0x7200000000000001:0x2 lease lost transient v4",
                "0x6b00000000000001:0x3 registered online v5",
                "0x6b00000000000001:0x4 registered online v5",
                "0x7200000000000001:0x2 registered online v5",
            ]
        );
    }

    #[test]
    fn the_same_registration_again_changes_nothing() {
        let initial = initial();
        let mut core = ControlCore::new(at(0), initial.clone(), LEASE);
        core.handle_register(at(0), &register(&initial, 0, 7)).unwrap();
        let before = states(&core);
        core.handle_register(at(1), &register(&initial, 0, 7)).unwrap();
        assert_eq!(states(&core), before);
    }

    #[test]
    fn evidence_fails_a_device_only_from_its_own_server_or_an_operator() {
        let initial = initial();
        let mut core = ControlCore::new(at(0), initial.clone(), LEASE);
        for process in 0..2 {
            core.handle_register(at(0), &register(&initial, process, 7)).unwrap();
        }
        let own = initial.pool.devices[0].endpoint;
        let other = initial.pool.devices[2].endpoint;
        let mut report = |index: usize, evidence, reporter| {
            let device = initial.pool.devices[index].device;
            let version = core
                .handle_evidence(
                    at(0),
                    &DeviceReport { device, evidence },
                    (reporter, core.configuration().version),
                )
                .unwrap();
            assert_eq!(version, core.configuration().version);
            states(&core)
        };
        let all_online = "v3 online online online online";
        assert_eq!(report(0, DeviceEvidence::IoError, other), all_online, "hearsay");
        assert_eq!(report(0, DeviceEvidence::Unreachable, other), all_online, "the lease decides");
        assert_eq!(report(0, DeviceEvidence::Unreachable, own), all_online);
        assert_eq!(report(0, DeviceEvidence::IoError, own), "v4 failed online online online");
        assert_eq!(report(0, DeviceEvidence::IoError, own), "v4 failed online online online", "once");
        assert_eq!(report(3, DeviceEvidence::Operator, other), "v5 failed online online failed");
        // The heartbeat's word counts as the server's own; registering again does not bring it back.
        let mut sick = heartbeat(&initial, 0, 7);
        sick.devices[1].failed = true;
        sick.devices[1].errors = 3;
        assert_eq!(
            core.handle_heartbeat(at(1), &sick, core.configuration().version),
            HeartbeatReply { version: 6, known: true }
        );
        core.handle_register(at(2), &register(&initial, 0, 8)).unwrap();
        assert_eq!(states(&core), "v7 failed failed online failed");
        core.handle_tick(at(100_000));
        assert_eq!(states(&core), "v8 failed failed transient failed");
        let unknown = DeviceReport { device: Fid::default(), evidence: DeviceEvidence::Operator };
        assert!(core.handle_evidence(at(0), &unknown, (own, 0)).is_err());
    }

    /// Both servers are there.
    fn registered() -> (Configuration, ControlCore) {
        let initial = initial();
        let mut core = ControlCore::new(at(0), initial.clone(), LEASE);
        core.handle_register(at(0), &register(&initial, 0, 7)).unwrap();
        core.handle_register(at(0), &register(&initial, 1, 8)).unwrap();
        (initial, core)
    }

    fn order(core: &mut ControlCore, now: u64, device: usize, order: DeviceOrder) -> Result<String, Refusal> {
        let device = core.configuration().pool.devices[device].device;
        let reply = core.handle_command(at(now), &DeviceCommand { device, order })?;
        assert_eq!(reply.version, core.configuration().version);
        let (new, heeded) =
            (if reply.is_new { "new" } else { "old" }, if reply.is_heeded { "heeded" } else { "not heeded" });
        Ok(format!("{} {new} {heeded}: {}", reply.state, states(core)))
    }

    const DETACH: DeviceOrder = DeviceOrder::Detach { force: false };

    #[test]
    fn a_detached_device_stays_out_until_it_is_attached_whatever_its_server_and_control_do() {
        let (initial, mut core) = registered();
        let out = "detached online online online";
        assert_eq!(order(&mut core, 0, 0, DETACH).unwrap(), format!("detached new not heeded: v4 {out}"));
        assert_eq!(order(&mut core, 0, 0, DETACH).unwrap(), format!("detached old not heeded: v4 {out}"));
        // The server goes on; one heartbeat later it says that it goes by the new version.
        let beat = heartbeat(&initial, 0, 7);
        assert_eq!(
            core.handle_heartbeat(at(1), &beat, core.configuration().version),
            HeartbeatReply { version: 4, known: true }
        );
        core.note_server_version(&beat, 3);
        assert_eq!(order(&mut core, 1, 0, DETACH).unwrap(), format!("detached old not heeded: v4 {out}"));
        core.note_server_version(&beat, 4);
        assert_eq!(order(&mut core, 1, 0, DETACH).unwrap(), format!("detached old heeded: v4 {out}"));
        // Its server dies, starts again; control starts again: it stays out.
        assert!(core.handle_tick(at(4000)));
        assert_eq!(states(&core), "v5 detached transient transient transient");
        core.handle_register(at(4100), &register(&initial, 0, 9)).unwrap();
        core.handle_register(at(4100), &register(&initial, 1, 8)).unwrap();
        assert_eq!(states(&core), format!("v7 {out}"));
        let mut core = ControlCore::new(at(9000), core.configuration().clone(), LEASE);
        core.handle_register(at(9001), &register(&initial, 0, 9)).unwrap();
        core.handle_heartbeat(at(9002), &heartbeat(&initial, 0, 9), core.configuration().version);
        assert_eq!(states(&core), format!("v7 {out}"));
        let beaten = heartbeat(&initial, 0, 9);
        core.note_server_version(&beaten, 7);
        assert_eq!(order(&mut core, 9003, 0, DETACH).unwrap(), format!("detached old heeded: v7 {out}"));
        core.take_changes();
        let back = order(&mut core, 9004, 0, DeviceOrder::Attach).unwrap();
        assert_eq!(back, "online new not heeded: v8 online online online online");
        let told: Vec<String> = core
            .take_changes()
            .iter()
            .map(|change| format!("{} -> {} ({})", change.from.word(), change.to.word(), change.cause))
            .collect();
        assert_eq!(told, ["detached -> transient (operator attach)", "transient -> online (registered)"]);
        let again = order(&mut core, 9005, 0, DeviceOrder::Attach).unwrap();
        assert_eq!(again, "online old not heeded: v8 online online online online");
    }

    /// What a server said of the disk before, and comes late, is not taken for a word on the new one; what is true of that comes with every heartbeat.
    #[test]
    fn a_late_word_on_the_disk_before_says_nothing_of_the_new_one() {
        for (version, is_report) in [(5, true), (5, false), (6, true), (6, false)] {
            let (initial, mut core) = registered();
            let DeviceConfig { device, endpoint: own, .. } = initial.pool.devices[0];
            let give_up = DeviceReport { device, evidence: DeviceEvidence::Operator };
            core.handle_evidence(at(0), &give_up, (initial.control, 0)).unwrap();
            order(&mut core, 0, 0, DeviceOrder::Replace).unwrap();
            let mut formatted = register(&initial, 0, 7);
            formatted.devices[0].replacement = 1;
            core.handle_register(at(2), &formatted).unwrap();
            assert_eq!(states(&core), "v6 repair online online online");
            let mut sick = heartbeat(&initial, 0, 7);
            sick.devices[0].failed = true;
            let broken = DeviceReport { device, evidence: DeviceEvidence::IoError };
            if is_report {
                core.handle_evidence(at(3), &broken, (own, version)).unwrap();
            } else {
                assert!(core.handle_heartbeat(at(3), &sick, version).known);
            }
            let wanted = match version {
                5 => "v6 repair online online online",
                _ => "v7 failed online online online",
            };
            assert_eq!(states(&core), wanted, "by {version}, {is_report}");
        }
    }

    #[test]
    fn a_replaced_disk_takes_writes_once_it_is_formatted_and_is_online_once_everything_is_on_it() {
        let (initial, mut core) = registered();
        let refusal = order(&mut core, 0, 0, DeviceOrder::Replace).unwrap_err().to_string();
        assert!(refusal.contains("is online: only a failed one is replaced"), "{refusal}");
        let device = initial.pool.devices[0].device;
        let give_up = DeviceReport { device, evidence: DeviceEvidence::Operator };
        core.handle_evidence(at(0), &give_up, (initial.control, 0)).unwrap();
        assert_eq!(states(&core), "v4 failed online online online");
        let ordered = "failed new not heeded: v5 failed online online online";
        assert_eq!(order(&mut core, 0, 0, DeviceOrder::Replace).unwrap(), ordered);
        assert_eq!(order(&mut core, 0, 0, DeviceOrder::Replace).unwrap(), ordered.replace("new", "old"));
        // The server says the same as before: its disk is still the old one.
        core.handle_register(at(1), &register(&initial, 0, 7)).unwrap();
        assert_eq!(states(&core), "v5 failed online online online");
        let mut formatted = register(&initial, 0, 7);
        formatted.devices[0].replacement = 1;
        core.handle_register(at(2), &formatted).unwrap();
        assert_eq!(states(&core), "v6 repair online online online");
        assert_eq!(core.configuration().pool.changes_from, 6);
        // Heeded once each server whose lease runs goes by that version.
        let heeded = |core: &mut ControlCore, now| order(core, now, 0, DeviceOrder::Replace).unwrap();
        assert_eq!(heeded(&mut core, 3), "repair old not heeded: v6 repair online online online");
        core.note_server_version(&heartbeat(&initial, 0, 7), 6);
        assert_eq!(heeded(&mut core, 3), "repair old not heeded: v6 repair online online online");
        core.note_server_version(&heartbeat(&initial, 1, 8), 6);
        assert_eq!(heeded(&mut core, 3), "repair old heeded: v6 repair online online online");
        // The old disk again is refused: it would be taken for the new one.
        let refusal = core.handle_register(at(4), &register(&initial, 0, 9)).unwrap_err();
        assert!(matches!(refusal, Refusal::OtherDisk { found: 0, replaced: 1, .. }), "{refusal}");
        let wrong = order(&mut core, 5, 0, DeviceOrder::Restored { replacement: 1 }).unwrap_err();
        assert!(matches!(wrong, Refusal::UnknownOrder), "the word of a command that copied itself: {wrong}");
        let ended = || RepairWord::Ended(RepairProgress::default());
        assert_eq!(turn(&mut core, 5, (0, 7), 2, ended()), "Leave: v6 repair online online online");
        assert_eq!(
            turn(&mut core, 5, (0, 6), 1, ended()),
            "Wait: v6 repair online online online",
            "a start before"
        );
        assert!(turn(&mut core, 5, (1, 8), 1, ended()).contains("is not a device of process"));
        assert_eq!(turn(&mut core, 5, (0, 7), 1, RepairWord::Asks), "Run: v6 repair online online online");
        assert_eq!(turn(&mut core, 5, (0, 7), 1, ended()), "Leave: v7 online online online online");
        assert_eq!(turn(&mut core, 5, (0, 7), 1, ended()), "Leave: v7 online online online online");
        // It fails again: that its disk is the one of the last order does not bring it back.
        core.handle_evidence(at(6), &give_up, (initial.control, 0)).unwrap();
        core.handle_register(at(7), &formatted).unwrap();
        assert_eq!(states(&core), "v8 failed online online online");
        // Its server dies: nobody could format a disk.
        core.handle_heartbeat(at(3000), &heartbeat(&initial, 1, 8), core.configuration().version);
        core.handle_tick(at(3800));
        let refusal = order(&mut core, 3800, 0, DeviceOrder::Replace).unwrap_err();
        assert!(matches!(refusal, Refusal::ServerAway { .. }), "{refusal}");
    }

    /// What a server says of the first device, and what it is to do. (Which server, which incarnation of it.)
    fn turn(
        core: &mut ControlCore,
        ms: u64,
        (server, epoch): (usize, u64),
        replacement: u32,
        word: RepairWord,
    ) -> String {
        let device = core.configuration().pool.devices[0].device;
        let process = core.configuration().processes[server].process;
        match core.handle_repair_turn(at(ms), &RepairTurn { process, epoch, device, replacement, word }) {
            Ok(reply) => format!("{:?}: {}", reply.order, states(core)),
            Err(refusal) => refusal.to_string(),
        }
    }

    #[test]
    fn a_repair_is_paused_resumed_aborted_and_told_of() {
        let (initial, mut core) = registered();
        let device = initial.pool.devices[0].device;
        core.handle_evidence(
            at(0),
            &DeviceReport { device, evidence: DeviceEvidence::Operator },
            (initial.control, 0),
        )
        .unwrap();
        order(&mut core, 0, 0, DeviceOrder::Replace).unwrap();
        let none = order(&mut core, 0, 0, DeviceOrder::RepairPause).unwrap_err().to_string();
        assert!(none.contains("is failed: nothing is repaired there"), "{none}");
        let mut formatted = register(&initial, 0, 7);
        formatted.devices[0].replacement = 1;
        core.handle_register(at(2), &formatted).unwrap();
        let in_repair = "v6 repair online online online";
        assert_eq!(
            turn(&mut core, 3, (0, 7), 1, RepairWord::Asks),
            format!("Wait: {in_repair}"),
            "not all know"
        );
        let look = |core: &ControlCore, ms| core.repair_list(at(ms), &RepairGet { after: None }).repairs;
        assert_eq!(look(&core, 3)[0].state, "waiting");
        assert!(look(&core, 3)[0].reason.contains("not every server has said"), "{:?}", look(&core, 3));
        for server in 0..2 {
            core.note_server_version(&heartbeat(&initial, server, 7), 6);
        }
        assert_eq!(turn(&mut core, 4, (0, 7), 1, RepairWord::Asks), format!("Run: {in_repair}"));
        let last = Some(Fid::new(FidType::Object, 1, 5));
        let so_far = |bytes| RepairProgress { bytes, last, ..RepairProgress::default() };
        assert_eq!(
            turn(&mut core, 10, (0, 7), 1, RepairWord::Copies(so_far(0))),
            format!("Run: {in_repair}")
        );
        turn(&mut core, 1010, (0, 7), 1, RepairWord::Copies(so_far(5000)));
        core.handle_heartbeat(at(1010), &heartbeat(&initial, 0, 7), core.configuration().version);
        core.handle_heartbeat(at(1010), &heartbeat(&initial, 1, 8), core.configuration().version);
        let seen = &look(&core, 1010)[0];
        assert_eq!((seen.state.as_str(), seen.bytes_per_second, seen.progress.last), ("running", 1250, last));
        assert_eq!(seen.expected_bytes, 100 * BLOCK_BYTES, "the others have 1000 blocks, 900 free");
        // Heeded once the server does not copy.
        let paused = |heeded| format!("repair {heeded}: {in_repair}");
        assert_eq!(order(&mut core, 1020, 0, DeviceOrder::RepairPause).unwrap(), paused("new not heeded"));
        assert_eq!(
            turn(&mut core, 1030, (0, 7), 1, RepairWord::Copies(so_far(6000))),
            format!("Pause: {in_repair}")
        );
        assert_eq!(turn(&mut core, 1040, (0, 7), 1, RepairWord::Asks), format!("Pause: {in_repair}"));
        assert_eq!(order(&mut core, 1050, 0, DeviceOrder::RepairPause).unwrap(), paused("old heeded"));
        // A restart of control: where it was is known, and that it is paused.
        let mut again = ControlCore::new(at(1060), core.configuration().clone(), LEASE)
            .with_repairs(core.repairs().take_changes());
        assert_eq!(turn(&mut again, 1061, (0, 7), 1, RepairWord::Asks), format!("Wait: {in_repair}"));
        again.handle_register(at(1062), &formatted).unwrap();
        assert_eq!(turn(&mut again, 1063, (0, 7), 1, RepairWord::Asks), format!("Pause: {in_repair}"));
        assert_eq!(look(&again, 1063)[0].progress, so_far(6000));
        order(&mut core, 1070, 0, DeviceOrder::RepairResume).unwrap();
        assert_eq!(turn(&mut core, 1080, (0, 7), 1, RepairWord::Asks), format!("Run: {in_repair}"));
        let fails = RepairWord::Fails(so_far(6000), "no".to_owned());
        assert_eq!(turn(&mut core, 1090, (0, 7), 1, fails), format!("Pause: {in_repair}"));
        assert_eq!(
            (look(&core, 1090)[0].state.as_str(), look(&core, 1090)[0].reason.as_str()),
            ("failed", "no")
        );
        order(&mut core, 1100, 0, DeviceOrder::RepairStart).unwrap();
        assert_eq!(look(&core, 1100)[0].progress, RepairProgress::default());
        let failed = "v7 failed online online online";
        let aborted = order(&mut core, 1110, 0, DeviceOrder::RepairAbort).unwrap();
        assert_eq!(aborted, format!("failed new heeded: {failed}"));
        assert_eq!(
            order(&mut core, 1110, 0, DeviceOrder::RepairAbort).unwrap(),
            format!("failed old heeded: {failed}")
        );
        assert_eq!(
            turn(&mut core, 1120, (0, 7), 1, RepairWord::Copies(so_far(1))),
            format!("Leave: {failed}")
        );
        assert_eq!(look(&core, 1120)[0].state, "aborted");
        let told: Vec<&str> = core.take_changes().iter().map(|change| change.cause).collect();
        let since = told.iter().position(|cause| *cause == "disk replaced").unwrap();
        assert_eq!(
            told[since..],
            [
                "disk replaced",
                "repair started",
                "repair paused",
                "repair resumed",
                "repair failed",
                "repair started",
                "repair aborted"
            ]
        );
    }

    /// The slot of the first device: phase and job, or that there is none.
    fn slot(core: &ControlCore) -> String {
        match core.configuration().spare_slot(0) {
            Some(found) => {
                format!("{:?} {} {:?}", found.phase, found.slot, SpareCopy::of_number(found.job).unwrap())
            }
            None => "none".to_owned(),
        }
    }

    fn job(core: &ControlCore) -> u32 {
        core.configuration().spare_slot(0).unwrap().job
    }

    fn fail(core: &mut ControlCore, ms: u64, index: usize) {
        let device = core.configuration().pool.devices[index].device;
        let give_up = DeviceReport { device, evidence: DeviceEvidence::Operator };
        let control = core.configuration().control;
        core.handle_evidence(at(ms), &give_up, (control, 0)).unwrap();
    }

    /// Both servers are heard, and go by the version in force.
    fn all_hear(core: &mut ControlCore, initial: &Configuration, ms: u64) {
        for (process, epoch) in [(0, 7), (1, 8)] {
            let beat = heartbeat(initial, process, epoch);
            assert!(core.handle_heartbeat(at(ms), &beat, core.configuration().version).known);
            core.note_server_version(&beat, core.configuration().version);
        }
    }

    #[test]
    fn a_failed_devices_units_go_to_spare_units_and_back_and_those_are_freed() {
        let (initial, mut core) = registered();
        let refused = order(&mut core, 0, 0, DeviceOrder::RepairStart).unwrap_err().to_string();
        assert!(refused.contains("is online: nothing is repaired there"), "{refused}");
        fail(&mut core, 0, 0);
        let failed = "failed online online online";
        let begun = order(&mut core, 1, 0, DeviceOrder::RepairStart).unwrap();
        assert_eq!(
            (begun.as_str(), slot(&core).as_str()),
            (&*format!("failed new not heeded: v5 {failed}"), "Filling 0 There")
        );
        assert_eq!((core.configuration().pool.changes_from, core.configuration().spares.reads_from), (5, 0));
        assert!(order(&mut core, 1, 0, DeviceOrder::RepairStart).unwrap().contains(" old "));
        let there = job(&core);
        // Another disk now would be a second copy to another place.
        let refused = order(&mut core, 1, 0, DeviceOrder::Replace).unwrap_err();
        assert!(matches!(refused, Refusal::Sparing { phase: SparePhase::Filling, .. }), "{refused}");
        // The other spare unit of a group that there is not.
        fail(&mut core, 1, 3);
        let refused = order(&mut core, 1, 3, DeviceOrder::RepairStart).unwrap_err();
        assert!(
            matches!(refused, Refusal::NoSpare { reason: NoSpare::AllTaken { spares: 1 }, .. }),
            "{refused}"
        );
        order(&mut core, 1, 3, DeviceOrder::Replace).unwrap();
        let refused = order(&mut core, 1, 3, DeviceOrder::RepairStart).unwrap_err();
        assert!(matches!(refused, Refusal::AwaitsDisk { .. }), "{refused}");
        // The server of the first online device copies; the other one is told to stand by.
        let states = |rest: &str| format!("v7 {rest} online online failed");
        let failed = states("failed");
        assert_eq!(turn(&mut core, 2, (0, 7), there, RepairWord::Asks), format!("Wait: {failed}"));
        assert_eq!(turn(&mut core, 2, (1, 8), there, RepairWord::Asks), format!("Pause: {failed}"));
        all_hear(&mut core, &initial, 3);
        assert_eq!(turn(&mut core, 4, (0, 7), there, RepairWord::Asks), format!("Run: {failed}"));
        assert_eq!(
            turn(&mut core, 4, (0, 7), 0, RepairWord::Asks),
            format!("Leave: {failed}"),
            "a copy to its disk"
        );
        let ended = || RepairWord::Ended(RepairProgress { objects: 3, ..RepairProgress::default() });
        assert_eq!(turn(&mut core, 5, (1, 8), there, ended()), format!("Pause: {failed}"), "not its turn");
        let lost = RepairProgress { lost_count: 1, ..RepairProgress::default() };
        assert_eq!(turn(&mut core, 5, (0, 7), there, RepairWord::Ended(lost)), format!("Pause: {failed}"));
        assert_eq!(slot(&core), "Filling 0 There", "one object is not there");
        order(&mut core, 6, 0, DeviceOrder::RepairStart).unwrap();
        assert_eq!(turn(&mut core, 7, (0, 7), there, ended()), "Leave: v8 repaired online online failed");
        assert_eq!(slot(&core), "Standing 0 There");
        assert_eq!(
            turn(&mut core, 7, (0, 7), there, ended()),
            "Leave: v8 repaired online online failed",
            "told twice"
        );
        // What its server says of the old disk, and a restart of control, change nothing.
        let mut sick = heartbeat(&initial, 0, 7);
        sick.devices[0].failed = true;
        core.handle_heartbeat(at(8), &sick, core.configuration().version);
        let mut core = ControlCore::new(at(9), core.configuration().clone(), LEASE)
            .with_repairs(core.repairs().take_changes());
        core.handle_register(at(9), &register(&initial, 0, 7)).unwrap();
        core.handle_register(at(9), &register(&initial, 1, 8)).unwrap();
        assert_eq!(self::states(&core), "v8 repaired online online failed");

        // Another disk.
        assert!(
            order(&mut core, 10, 0, DeviceOrder::Replace).unwrap().starts_with("repaired new not heeded: v9")
        );
        let mut formatted = register(&initial, 0, 7);
        formatted.devices[0].replacement = 1;
        core.handle_register(at(11), &formatted).unwrap();
        assert_eq!(
            (self::states(&core).as_str(), slot(&core).as_str()),
            ("v10 rebalance online online failed", "Returning 0 Back")
        );
        assert_eq!(core.configuration().pool.changes_from, 10);
        let back = job(&core);
        // It fails too: nothing is lost, and everything as before.
        fail(&mut core, 12, 0);
        assert_eq!(
            (self::states(&core).as_str(), slot(&core).as_str()),
            ("v11 repaired online online failed", "Standing 0 Back")
        );
        assert_eq!(turn(&mut core, 12, (0, 7), back, ended()), "Leave: v11 repaired online online failed");
        order(&mut core, 13, 0, DeviceOrder::Replace).unwrap();
        formatted.devices[0].replacement = 2;
        core.handle_register(at(14), &formatted).unwrap();
        all_hear(&mut core, &initial, 15);
        let again = job(&core);
        assert_ne!(again, back);
        assert_eq!(turn(&mut core, 15, (0, 7), back, ended()), "Leave: v13 rebalance online online failed");
        assert_eq!(turn(&mut core, 15, (0, 7), again, ended()), "Leave: v14 online online online failed");
        assert_eq!(slot(&core), "Leaving 0 Back");
        assert_eq!(core.configuration().spares.reads_from, 14);
        // Freed once everybody refuses those who read there, and then once everybody refuses those who write there.
        assert!(!core.handle_tick(at(16)), "not all know");
        all_hear(&mut core, &initial, 17);
        assert!(core.handle_tick(at(18)));
        assert_eq!(slot(&core), "Freeing 0 Free");
        let free = job(&core);
        assert_eq!(
            turn(&mut core, 19, (0, 7), free, RepairWord::Asks),
            "Wait: v15 online online online failed"
        );
        let refused = order(&mut core, 19, 0, DeviceOrder::RepairAbort).unwrap_err();
        assert!(matches!(refused, Refusal::Repair { reason: RepairRefusal::Freeing, .. }), "{refused}");
        all_hear(&mut core, &initial, 20);
        assert_eq!(
            turn(&mut core, 21, (0, 7), free, RepairWord::Asks),
            "Run: v15 online online online failed"
        );
        // It fails while that is done: the two have nothing to do with each other.
        fail(&mut core, 22, 0);
        let refused = order(&mut core, 22, 0, DeviceOrder::RepairStart).unwrap_err();
        assert!(matches!(refused, Refusal::Sparing { phase: SparePhase::Freeing, .. }), "{refused}");
        assert_eq!(turn(&mut core, 23, (0, 7), free, ended()), "Leave: v17 failed online online failed");
        assert_eq!(slot(&core), "none");
        order(&mut core, 24, 0, DeviceOrder::RepairStart).unwrap();
        // Given up on the way there: freed again, and failed all along.
        assert!(order(&mut core, 25, 0, DeviceOrder::RepairAbort).unwrap().starts_with("failed new"));
        assert_eq!(slot(&core), "Freeing 0 Free");
        assert_eq!(core.configuration().pool.changes_from, core.configuration().version);
    }

    #[test]
    fn what_nobody_replaces_goes_to_spare_units_after_the_time_in_the_profile() {
        for (seconds, after) in [(None, Some(600)), (Some(5), Some(5)), (Some(0), None)] {
            let line = seconds
                .map_or_else(String::new, |seconds: u64| format!("spare_repair_after_seconds = {seconds}"));
            let (initial, core) = registered();
            let mut core = with_profile(core, &line);
            fail(&mut core, 0, 0);
            let begun = (0..2000).find(|second| {
                core.handle_heartbeat(
                    at(second * 1000),
                    &heartbeat(&initial, 0, 7),
                    core.configuration().version,
                );
                core.handle_heartbeat(
                    at(second * 1000),
                    &heartbeat(&initial, 1, 8),
                    core.configuration().version,
                );
                core.handle_tick(at(second * 1000));
                core.configuration().spare_slot(0).is_some()
            });
            assert_eq!(begun, after, "{seconds:?}");
        }
    }

    /// With lines of `[profile]` in its cluster file.
    fn with_profile(core: ControlCore, lines: &str) -> ControlCore {
        let text = include_str!("../faces/src/cluster_file_example.toml");
        let hidden = ClusterFile::hide_credential(&format!("{text}\n[profile]\n{lines}\n")).unwrap();
        let why = Reason { by: core.configuration().control, unix_s: 0, note: String::new() };
        let credential = Some(faces::Credential::from_bytes([1; 32]));
        let (transactions, _) = Transactions::start(&hidden, credential, None, 1, why).unwrap();
        core.with_transactions(Some(transactions))
    }

    /// From second to second control looks at leases; all devices but those of `silent` are heard. The seconds at which something happened, and what.
    fn listen(
        core: &mut ControlCore,
        initial: &Configuration,
        seconds: std::ops::Range<u64>,
        silent: &[usize],
    ) -> Vec<String> {
        let mut happened = Vec::new();
        core.take_changes();
        for second in seconds {
            for (process, epoch) in [(0, 7), (1, 8)] {
                let mut beat = heartbeat(initial, process, epoch);
                let is_heard = |health: &DeviceHealth| {
                    !silent.iter().any(|at| initial.pool.devices[*at].device == health.device)
                };
                beat.devices.retain(is_heard);
                core.handle_heartbeat(at(second * 1000), &beat, core.configuration().version);
            }
            core.handle_tick(at(second * 1000));
            let told = core.take_changes();
            let word = |change: &StateChange| format!("{second} {} {}", change.subject.key, change.cause);
            happened.extend(told.iter().filter(|change| change.subject.is(FidType::Device)).map(word));
        }
        happened
    }

    #[test]
    fn time_fails_a_device_that_is_away_if_the_operator_wants_it() {
        for (line, after) in [
            ("", None),
            ("fail_after_seconds = 0", None),
            ("fail_after_seconds = 60", Some("64 4 away too long")),
        ] {
            let (initial, core) = registered();
            let mut core = with_profile(core, &format!("{line}\nspare_repair_after_seconds = 0"));
            let happened = listen(&mut core, &initial, 0..2000, &[3]);
            let expected: Vec<&str> = ["4 4 lease lost"].into_iter().chain(after).collect();
            assert_eq!(happened, expected, "{line}");
        }
    }

    #[test]
    fn time_fails_nothing_beyond_what_the_layout_outlives() {
        let (initial, core) = registered();
        let mut core = with_profile(core, "fail_after_seconds = 60\nspare_repair_after_seconds = 0");
        // Two of four are away, and K is 1: both stay, which is told once of each.
        let happened = listen(&mut core, &initial, 0..500, &[2, 3]);
        assert_eq!(
            happened,
            ["4 3 lease lost", "4 4 lease lost", "64 3 too many away", "64 4 too many away"]
        );
        let refusal = order(&mut core, 500_000, 0, DETACH).unwrap_err();
        assert!(matches!(refusal, Refusal::TooManyAway { away: 2, parity: 1, .. }), "{refusal}");
        // One comes back: the time of the other one was over long ago.
        let happened = listen(&mut core, &initial, 500..1000, &[3]);
        assert_eq!(happened, ["500 3 registered", "500 4 away too long"]);
        // The next one has to wait until the units of the first are rebuilt.
        let happened = listen(&mut core, &initial, 1000..1500, &[2, 3]);
        assert_eq!(happened, ["1003 3 lease lost", "1063 3 too many away"]);
        core.apply(at(1_500_000), false, &[(initial.pool.devices[3].device, DeviceEvent::Spared)]);
        let happened = listen(&mut core, &initial, 1500..1600, &[2, 3]);
        assert_eq!(happened, ["1500 3 away too long"]);
        assert!(states(&core).ends_with("online online failed repaired"), "{}", states(&core));
    }

    #[test]
    fn time_counts_from_when_this_control_could_see() {
        let (initial, core) = registered();
        let profile = "fail_after_seconds = 60";
        let mut core = with_profile(core, profile);
        assert_eq!(listen(&mut core, &initial, 0..60, &[3]), ["4 4 lease lost"]);
        // It stands still for longer than its leases: who knows what it did not hear.
        assert_eq!(listen(&mut core, &initial, 70..120, &[3]), [""; 0]);
        let stored = core.configuration().clone();
        assert_eq!(listen(&mut core, &initial, 120..140, &[3]), ["130 4 away too long"]);
        // Another one, or the same again: the device has the lease and the grace to be heard, and the whole time after.
        let mut next = with_profile(ControlCore::new(at(120_000), stored, LEASE), profile);
        next.handle_register(at(120_000), &register(&initial, 0, 7)).unwrap();
        let mut both = register(&initial, 1, 8);
        both.devices.truncate(1);
        next.handle_register(at(120_000), &both).unwrap();
        assert_eq!(listen(&mut next, &initial, 120..300, &[3]), ["184 4 away too long"]);
        // What an operator took out stays out.
        let (initial, core) = registered();
        let mut core = with_profile(core, profile);
        order(&mut core, 0, 3, DETACH).unwrap();
        assert_eq!(listen(&mut core, &initial, 0..500, &[3]), [""; 0]);
    }

    #[test]
    fn after_a_restart_nobody_hears_of_a_change_of_a_process_that_is_none() {
        let (initial, mut core) = registered();
        let [one, other] = [0, 1].map(|index| initial.processes[index].process);
        for device in 0..2 {
            core.handle_command(
                at(0),
                &DeviceCommand {
                    device: initial.pool.devices[device].device,
                    order: DeviceOrder::Detach { force: true },
                },
            )
            .unwrap();
        }
        let stored = core.configuration().clone();
        let of_processes = |core: &mut ControlCore| {
            let changes = core.take_changes();
            let is_process = |change: &&StateChange| change.subject.is(FidType::Process);
            changes.iter().filter(is_process).map(|change| (change.subject, change.from, change.to)).collect()
        };
        let restart = |told: DeviceState| {
            let states = [(one, told), (other, DeviceState::Online)];
            ControlCore::new(at(50_000), stored.clone(), LEASE).with_process_states(states)
        };
        for told in [DeviceState::Online, DeviceState::Transient] {
            let mut core = restart(told);
            core.handle_register(at(50_001), &register(&initial, 0, 7)).unwrap();
            let back = [(one, DeviceState::Transient, DeviceState::Online)];
            let expected: &[_] = if told == DeviceState::Online { &[] } else { &back };
            let found: Vec<_> = of_processes(&mut core);
            assert_eq!(found, expected, "{told:?} and heard");
            let mut core = restart(told);
            core.handle_register(at(50_001), &register(&initial, 1, 8)).unwrap();
            core.handle_tick(at(53_750));
            let gone = [(one, DeviceState::Online, DeviceState::Transient)];
            let expected: &[_] = if told == DeviceState::Online { &gone } else { &[] };
            let found: Vec<_> = of_processes(&mut core);
            assert_eq!(found, expected, "{told:?} and silent");
        }
        // Of a store that does not say: unknown, and not transient.
        let mut core = ControlCore::new(at(50_000), stored, LEASE);
        core.handle_register(at(50_001), &register(&initial, 0, 7)).unwrap();
        let found: Vec<_> = of_processes(&mut core);
        assert_eq!(found, [(one, DeviceState::Unknown, DeviceState::Online)]);
    }

    #[test]
    fn a_device_of_a_dead_server_is_detached_at_once_and_attached_as_transient() {
        let (initial, mut core) = registered();
        core.handle_heartbeat(at(3000), &heartbeat(&initial, 1, 8), core.configuration().version);
        core.handle_tick(at(3750));
        assert_eq!(states(&core), "v4 transient transient online online");
        let refusal = order(&mut core, 3751, 0, DETACH).unwrap_err();
        assert!(matches!(refusal, Refusal::TooManyAway { away: 1, parity: 1, .. }), "{refusal}");
        assert_eq!(states(&core), "v4 transient transient online online", "a refusal changes nothing");
        let forced = order(&mut core, 3751, 0, DeviceOrder::Detach { force: true }).unwrap();
        assert_eq!(forced, "detached new heeded: v5 detached transient online online");
        let back = order(&mut core, 3752, 0, DeviceOrder::Attach).unwrap();
        assert_eq!(back, "transient new heeded: v6 transient transient online online");
    }

    #[test]
    fn what_cannot_be_detached_or_attached_is_refused_with_the_reason() {
        let initial = initial();
        let mut core = ControlCore::new(at(0), initial.clone(), LEASE);
        let refusal = order(&mut core, 0, 0, DETACH).unwrap_err().to_string();
        assert!(refusal.contains("is unknown: only one that is online"), "{refusal}");
        core.handle_register(at(0), &register(&initial, 0, 7)).unwrap();
        core.handle_register(at(0), &register(&initial, 1, 8)).unwrap();
        order(&mut core, 0, 0, DETACH).unwrap();
        let device = initial.pool.devices[0].device;
        let evidence = DeviceReport { device, evidence: DeviceEvidence::Operator };
        core.handle_evidence(at(0), &evidence, (initial.control, 0)).unwrap();
        assert_eq!(states(&core), "v5 failed online online online", "given up while it was out");
        let refusal = order(&mut core, 0, 0, DeviceOrder::Attach).unwrap_err().to_string();
        assert!(refusal.contains("is failed: writes went past it"), "{refusal}");
        let refusal = order(&mut core, 0, 0, DETACH).unwrap_err().to_string();
        assert!(refusal.contains("is failed: only one that is online"), "{refusal}");
        let unknown = DeviceCommand { device: Fid::default(), order: DeviceOrder::Attach };
        assert!(matches!(core.handle_command(at(0), &unknown), Err(Refusal::UnknownDevice { .. })));
        assert_eq!(states(&core), "v5 failed online online online");
    }

    #[test]
    fn after_a_restart_servers_have_one_lease_to_be_heard_and_failed_stays() {
        let initial = initial();
        let mut core = ControlCore::new(at(0), initial.clone(), LEASE);
        for process in 0..2 {
            core.handle_register(at(0), &register(&initial, process, 7)).unwrap();
        }
        let report =
            DeviceReport { device: initial.pool.devices[0].device, evidence: DeviceEvidence::Operator };
        core.handle_evidence(at(0), &report, (initial.control, 0)).unwrap();
        let stored = core.configuration().clone();
        let mut core = ControlCore::new(at(50_000), stored, LEASE);
        assert_eq!(states(&core), "v4 failed online online online");
        assert!(
            !core
                .handle_heartbeat(at(50_001), &heartbeat(&initial, 0, 7), core.configuration().version)
                .known,
            "register again"
        );
        core.handle_register(at(50_002), &register(&initial, 0, 7)).unwrap();
        assert_eq!(states(&core), "v4 failed online online online", "nothing changed, so no new version");
        assert!(core.handle_tick(at(53_750)));
        assert_eq!(states(&core), "v5 failed online transient transient");
        assert_eq!(core.status(at(53_750)).processes[1].silent_ms, None, "not heard since the restart");
    }

    #[test]
    fn foreign_registrations_are_refused_and_change_nothing() {
        let initial = initial();
        let mut core = ControlCore::new(at(0), initial.clone(), LEASE);
        let mut foreign = register(&initial, 0, 7);
        foreign.process = Fid::new(FidType::Process, 9, 9);
        assert!(matches!(core.handle_register(at(0), &foreign), Err(Refusal::UnknownProcess { .. })));
        let mut stolen = register(&initial, 0, 7);
        stolen.devices[0].device = initial.pool.devices[2].device;
        assert!(matches!(core.handle_register(at(0), &stolen), Err(Refusal::UnknownDevice { .. })));
        let mut taken = register(&initial, 0, 7);
        taken.devices[1].endpoint = initial.pool.devices[2].endpoint;
        assert!(matches!(core.handle_register(at(0), &taken), Err(Refusal::EndpointTaken { .. })));
        taken.devices[1].endpoint = initial.control;
        assert!(matches!(core.handle_register(at(0), &taken), Err(Refusal::EndpointTaken { .. })));
        assert!(
            !core.handle_heartbeat(at(0), &heartbeat(&initial, 0, 7), core.configuration().version).known
        );
        assert_eq!(states(&core), "v1 unknown unknown unknown unknown");
    }

    #[test]
    fn an_applied_file_is_one_version_and_a_moved_server_moves_when_it_registers() {
        let text = include_str!("../faces/src/cluster_file_example.toml");
        let hidden = ClusterFile::hide_credential(text).unwrap();
        let initial = initial();
        let why = || Reason { by: initial.control, unix_s: 0, note: String::new() };
        let credential = Some(faces::Credential::from_bytes([1; 32]));
        let mut core = ControlCore::new(at(0), initial.clone(), LEASE);
        assert_eq!(core.handle_apply(&hidden, 1, why()), Err(ApplyRefusal::NoFile));
        let (transactions, _) = Transactions::start(&hidden, credential, None, 1, why()).unwrap();
        let mut core = core.with_transactions(Some(transactions));
        core.handle_register(at(0), &register(&initial, 0, 7)).unwrap();
        assert_eq!(core.configuration().version, 2);
        let moved: Endpoint = "127.0.0.1@tcp:12345:34:77".parse().unwrap();
        let next = hidden.replace("unit_bytes = 65536", "unit_bytes = 8192").replace("34:1\"]", "34:77\"]");
        let reply = core.handle_apply(&next, 1, why()).unwrap();
        assert_eq!(reply, ConfApplyReply { transaction: 2, version: 3, changes: 2 });
        assert_eq!(core.handle_apply(&next, 1, why()).unwrap(), ConfApplyReply { changes: 0, ..reply });
        assert_eq!(core.configuration().pool.unit_bytes, 8192);
        assert_eq!(
            core.configuration().processes[0].endpoint,
            initial.processes[0].endpoint,
            "it still serves there"
        );
        let mut again = register(&initial, 0, 8);
        again.devices.iter_mut().for_each(|device| device.endpoint = moved);
        core.handle_register(at(1), &again).unwrap();
        assert_eq!((core.configuration().processes[0].endpoint, core.configuration().version), (moved, 4));
        assert_eq!(core.configuration().pool.devices[0].endpoint, moved);
        let refused = core.handle_apply(&next.replace("2+1+1", "1+1+1"), 2, why());
        assert!(matches!(refused, Err(ApplyRefusal::Change { .. })), "{refused:?}");
        assert_eq!(core.configuration().version, 4);
    }

    #[test]
    fn a_flapping_server_comes_back_at_once_twice_and_then_only_when_it_is_steady() {
        let initial = initial();
        let mut core = ControlCore::new(at(0), initial.clone(), LEASE);
        core.handle_register(at(0), &register(&initial, 0, 7)).unwrap();
        let online = |core: &ControlCore| core.configuration().pool.devices[0].state == DeviceState::Online;
        let mut now = 0;
        let mut beat = |core: &mut ControlCore, after: u64| {
            now += after;
            core.handle_tick(at(now));
            assert!(
                core.handle_heartbeat(at(now), &heartbeat(&initial, 0, 7), core.configuration().version)
                    .known
            );
            online(core)
        };
        assert!(beat(&mut core, 4000), "lost once, back at once");
        assert!(beat(&mut core, 4000), "twice");
        assert!(!beat(&mut core, 4000), "three times: held back");
        assert!(!beat(&mut core, 3000) && !beat(&mut core, 2999), "not steady for two leases yet");
        assert!(beat(&mut core, 1), "steady");
        // A loss while it is held back begins its time again.
        assert!(!beat(&mut core, 4000));
        assert!(
            !beat(&mut core, 3000)
                && !beat(&mut core, 3800)
                && !beat(&mut core, 3000)
                && beat(&mut core, 3000)
        );
        // Long quiet, and all is forgotten.
        for _ in 0..20 {
            assert!(beat(&mut core, 3000));
        }
        assert!(beat(&mut core, 4000), "lost once, back at once");
    }

    #[test]
    fn a_fence_waits_for_each_target_until_it_acknowledged_or_its_lease_ended() {
        let (initial, mut core) = registered();
        let ask = |process: usize, epoch: u64, known: u64| {
            let devices = devices_of(&initial, process).into_iter().map(|(device, _)| device).collect();
            let process = initial.processes[process].process;
            FencesGet { process, epoch, devices, known, after: known, wait_ms: 0 }
        };
        let waits = |core: &ControlCore, now: u64| {
            core.fence_waits(at(now), 5).iter().map(|wait| wait.lease_ends_ms).collect::<Vec<_>>()
        };
        assert_eq!(waits(&core, 1000), [2750; 4]);
        core.handle_fenced(&ask(0, 6, 5));
        assert_eq!(waits(&core, 1000).len(), 4, "another incarnation");
        core.handle_fenced(&ask(0, 7, 4));
        assert_eq!(waits(&core, 1000).len(), 4, "an earlier fence");
        core.handle_fenced(&ask(0, 7, 5));
        assert_eq!(waits(&core, 1000).len(), 2);
        // The same incarnation again still knows; the next one does not.
        core.handle_register(at(1000), &register(&initial, 0, 7)).unwrap();
        assert_eq!(waits(&core, 1000).len(), 2);
        core.handle_register(at(1000), &register(&initial, 0, 9)).unwrap();
        assert_eq!(waits(&core, 1000).len(), 4);
        assert_eq!(waits(&core, 3750).len(), 2, "the lease of the silent one ended");
        assert_eq!(waits(&core, 4750), [] as [u64; 0]);
    }

    #[test]
    fn one_silent_locality_of_a_living_process_loses_its_own_devices_only() {
        let initial = initial();
        let mut core = ControlCore::new(at(0), initial.clone(), LEASE);
        let both = register(&initial, 1, 7);
        for devices in [vec![both.devices[0].clone()], vec![both.devices[1].clone()]] {
            core.handle_register(at(0), &Register { devices, ..both.clone() }).unwrap();
        }
        assert_eq!(states(&core), "v3 unknown unknown online online");
        let mut first = heartbeat(&initial, 1, 7);
        first.devices.truncate(1);
        assert!(core.handle_heartbeat(at(3000), &first, core.configuration().version).known);
        core.handle_tick(at(3750));
        assert_eq!(states(&core), "v4 unknown unknown online transient");
    }
}
