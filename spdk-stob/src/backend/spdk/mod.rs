//! An NVMe namespace driven from this process, through SPDK's driver: no kernel, no copy, one queue pair per device and locality.
//!
//! Operations collect and leave with one doorbell at `flush_queue`; `poll` takes completions from memory. Nothing becomes
//! readable when one arrives, so while operations are in flight [`Backend::next_deadline`] asks for the next turn at once,
//! and when none is, once a second for the admin queue. Data goes between the locality's arena, registered at the
//! start, and the device; memory that is not of it is refused.
//!
//! What goes wrong: an operation without an answer after [`NVME_COMMAND_TIME`] is aborted; if it is not back after
//! [`NVME_ABORT_TIME`] more, or the controller is lost, the controller is stopped and each operation in flight fails with
//! [`DeviceError::Lost`] **after** it stopped, since until then the device may write to its buffers. A stopped device
//! stays so until it is opened again, like one whose log write failed.
//!
//! Order: a flush is sent when submitted, and NVMe makes it cover the commands that completed before; a controller without a
//! volatile cache needs none and is sent none. Source: NVM Command Set Specification, flush command.

mod address;
mod pci;
#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // the numbers of tests are small
pub(crate) mod tests;

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;

use base::units::{BLOCK_BYTES, narrow, wide};
use base::{BlockExtent, Instant};
use runtime::{Arena, Buffer, Counters, LocalityHandle};
use spdk_sys::{
    Command, Completion, Identity, Namespace, NvmeStatus, Queue, Refused, Spdk, SpdkError, StartOptions,
    TransportAddress,
};

pub use address::{NvmeAddress, NvmeAddressError, is_nvme_address};

use super::{
    Backend, BlockDone, BlockOp, DeviceError, Geometry, OpenOptions, Operation, UringFile, check_range,
};
use crate::error::StobError;
use crate::limits::{DEVICE_QUEUE_DEPTH, NVME_ABORT_TIME, NVME_ADMIN_TIME, NVME_COMMAND_TIME};

const _: () = assert!(DEVICE_QUEUE_DEPTH <= spdk_sys::QUEUE_DEPTH_MAX);

/// Opens what `path` names: an NVMe device (`nvme:0000:00:04.0`), or a file or block device. Errors as those of
/// [`SpdkDevice::open`] and [`UringFile::open`].
pub fn open_device(path: impl AsRef<Path>, options: OpenOptions) -> Result<Box<dyn Backend>, StobError> {
    let path = path.as_ref();
    if !is_nvme_address(path) {
        return Ok(Box::new(UringFile::open(path, options)?));
    }
    let name = path.display().to_string();
    let address = name
        .parse::<NvmeAddress>()
        .map_err(|error| StobError::Open { path: name.clone(), reason: error.to_string() })?;
    Ok(Box::new(SpdkDevice::open(&address)?))
}

struct InFlight {
    token: u64,
    /// Tells an operation from a later one in the same place.
    sequence: u64,
    operation: Operation,
    extent: BlockExtent,
    is_aborted: bool,
}

/// Whether the device works.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    /// The controller is being stopped; nothing that is in flight has failed yet.
    Stopping,
    /// Every operation fails.
    Stopped,
}

/// An NVMe namespace behind SPDK.
pub struct SpdkDevice {
    // Before the namespace: queues end first.
    queue: Queue,
    namespace: Namespace,
    spdk: &'static Spdk,
    size_blocks: u64,
    sectors_per_block: u64,
    has_volatile_cache: bool,
    deallocates: bool,
    state: State,
    in_flight: Vec<Option<InFlight>>,
    free: Vec<usize>,
    next_sequence: u64,
    /// Submitted since the last poll, which knows the time.
    unstamped: VecDeque<(usize, u64)>,
    /// Place, sequence, when to do something about it; in order of time.
    deadlines: VecDeque<(usize, u64, Instant)>,
    next_admin: Option<Instant>,
    finished: Vec<BlockDone>,
    completions: Vec<Completion>,
    counters: Option<Arc<Counters>>,
    /// Why the arena is not registered.
    memory_error: Option<SpdkError>,
}

impl SpdkDevice {
    /// Opens the namespace at `address` with the SPDK that this program is linked with. Blocks until its controller is ready.
    ///
    /// # Errors
    /// [`StobError::Open`] with the next step, [`StobError::Busy`] if another process has the controller.
    pub fn open(address: &NvmeAddress) -> Result<SpdkDevice, StobError> {
        let name = address.to_string();
        let open_error = |error: SpdkError| StobError::Open { path: name.clone(), reason: error.to_string() };
        let spdk = Spdk::linked().map_err(open_error)?;
        let TransportAddress::Pci(pci) = address.controller else {
            return SpdkDevice::open_with(spdk, address).map_err(open_error);
        };
        pci::check_bound(&name, pci)?;
        SpdkDevice::open_with(spdk, address).map_err(|error| match (&error, pci::holder(pci)) {
            (SpdkError::Connect { .. }, Some(_)) => StobError::Busy { path: name.clone() },
            (SpdkError::InUse { .. }, _) => StobError::Busy { path: name.clone() },
            _ => open_error(error),
        })
    }

    fn open_with(spdk: &'static Spdk, address: &NvmeAddress) -> Result<SpdkDevice, SpdkError> {
        let namespace =
            Namespace::open(spdk, &address.controller, address.namespace, StartOptions::default())?;
        let sector_bytes = u64::from(namespace.sector_bytes());
        Ok(SpdkDevice {
            queue: namespace.open_queue(DEVICE_QUEUE_DEPTH)?,
            spdk,
            size_blocks: namespace.sectors() / (BLOCK_BYTES / sector_bytes),
            sectors_per_block: BLOCK_BYTES / sector_bytes,
            has_volatile_cache: namespace.has_volatile_cache(),
            deallocates: namespace.deallocates(),
            state: State::Running,
            in_flight: (0..DEVICE_QUEUE_DEPTH).map(|_| None).collect(),
            free: (0..DEVICE_QUEUE_DEPTH).rev().collect(),
            next_sequence: 0,
            unstamped: VecDeque::new(),
            deadlines: VecDeque::new(),
            next_admin: None,
            finished: Vec::new(),
            completions: Vec::new(),
            counters: None,
            memory_error: None,
            namespace,
        })
    }

    /// What the controller says of itself.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.namespace.identity()
    }

    /// True if a completed write may still be lost with the power until a flush.
    #[must_use]
    pub fn has_volatile_cache(&self) -> bool {
        self.has_volatile_cache
    }

    #[cfg(test)]
    fn state_name(&self) -> &'static str {
        match self.state {
            State::Running => "running",
            State::Stopping => "stopping",
            State::Stopped => "stopped",
        }
    }

    fn count(&self) -> usize {
        self.in_flight.len() - self.free.len()
    }

    fn finish_now(&mut self, token: u64, result: Result<(), DeviceError>, buffer: Option<Buffer>) {
        self.finished.push(BlockDone { token, result, buffer });
    }

    /// Ends the operation in `place`.
    fn finish(&mut self, place: usize, status: Option<NvmeStatus>, buffer: Option<Buffer>) {
        let Some(entry) = self.in_flight.get_mut(place).and_then(Option::take) else { return };
        self.free.push(place);
        let InFlight { token, operation, extent, is_aborted, .. } = entry;
        let result = match status {
            _ if self.state != State::Running => Err(DeviceError::Lost { operation, extent }),
            None => Err(DeviceError::Lost { operation, extent }),
            Some(status) if status.is_success() => Ok(()),
            // A hint that was not taken.
            Some(_) if operation == Operation::Discard => Ok(()),
            Some(_) if is_aborted => {
                Err(DeviceError::TimedOut { operation, extent, after: NVME_COMMAND_TIME })
            }
            Some(status) => Err(DeviceError::Nvme { operation, extent, status }),
        };
        self.finish_now(token, result, buffer);
    }

    fn finish_completed(&mut self) {
        let mut completions = std::mem::take(&mut self.completions);
        for completion in completions.drain(..) {
            self.finish(narrow(completion.token), Some(completion.status), completion.buffer);
        }
        self.completions = completions;
    }

    /// Sends `command` for an operation, or says what to do instead.
    fn submit(
        &mut self,
        command: Command,
        operation: Operation,
        extent: BlockExtent,
        token: u64,
    ) -> Submitted {
        let Some(&place) = self.free.last() else { return Submitted::Full(command) };
        let (refused, command) = match self.queue.try_submit(command, wide(place)) {
            Ok(()) => {
                self.free.pop();
                let sequence = self.next_sequence;
                self.next_sequence += 1;
                self.in_flight[place] =
                    Some(InFlight { token, sequence, operation, extent, is_aborted: false });
                self.unstamped.push_back((place, sequence));
                return Submitted::Taken;
            }
            Err(refused) => refused,
        };
        let error = match refused {
            // With nothing in flight no completion would ever make room.
            Refused::Full if self.count() > 0 => return Submitted::Full(command),
            Refused::Memory => DeviceError::Memory { operation, extent, reason: self.memory_error.clone() },
            Refused::Errno(errno) => DeviceError::Errno { operation, extent, errno },
            Refused::Full => DeviceError::Errno { operation, extent, errno: ENOMEM },
            _ => {
                self.state = State::Stopping;
                DeviceError::Lost { operation, extent }
            }
        };
        let buffer = match command {
            Command::Read { buffer, .. } => Some(buffer),
            _ => None,
        };
        self.finish_now(token, Err(error), buffer);
        Submitted::Taken
    }

    /// Aborts what is late; stops the controller if an abort was late too.
    fn enforce_deadlines(&mut self, now: Instant) {
        while let Some((place, sequence)) = self.unstamped.pop_front() {
            self.deadlines.push_back((place, sequence, now + NVME_COMMAND_TIME));
        }
        while let Some(&(place, sequence, at)) = self.deadlines.front() {
            let entry = self.in_flight[place].as_mut().filter(|entry| entry.sequence == sequence);
            let Some(entry) = entry else {
                self.deadlines.pop_front();
                continue;
            };
            if at > now {
                return;
            }
            if entry.is_aborted {
                self.state = State::Stopping;
                return;
            }
            entry.is_aborted = true;
            self.queue.abort(wide(place));
            self.deadlines.pop_front();
            let at = now + NVME_ABORT_TIME;
            let index = self.deadlines.partition_point(|(_, _, other)| *other <= at);
            self.deadlines.insert(index, (place, sequence, at));
        }
    }

    fn poll_running(&mut self, now: Instant) {
        let is_lost = self.queue.poll(&mut self.completions).is_err();
        self.finish_completed();
        if is_lost {
            self.state = State::Stopping;
            return;
        }
        if self.next_admin.is_none_or(|at| at <= now) {
            self.next_admin = Some(now + NVME_ADMIN_TIME);
            if !self.namespace.poll_admin() {
                self.state = State::Stopping;
                return;
            }
        }
        self.enforce_deadlines(now);
    }

    fn poll_stopping(&mut self) {
        if !self.queue.poll_stop(&mut self.completions) {
            return;
        }
        self.finish_completed();
        // What SPDK did not give back fails all the same; its buffers stay with the device.
        for place in 0..self.in_flight.len() {
            self.finish(place, None, None);
        }
        self.deadlines.clear();
        self.unstamped.clear();
        self.state = State::Stopped;
    }
}

/// Linux error number.
const ENOMEM: i32 = 12;

enum Submitted {
    /// It is in flight, or its completion is ready.
    Taken,
    Full(Command),
}

impl Backend for SpdkDevice {
    fn geometry(&self) -> Geometry {
        Geometry { size_blocks: self.size_blocks }
    }

    fn try_submit(&mut self, op: BlockOp, token: u64) -> Result<(), BlockOp> {
        let (operation, extent) = (op.operation(), op.extent());
        if let Err(error) = check_range(&op, self.size_blocks) {
            self.finish_now(token, Err(error), op.into_buffer());
            return Ok(());
        }
        if self.state != State::Running {
            self.finish_now(token, Err(DeviceError::Lost { operation, extent }), op.into_buffer());
            return Ok(());
        }
        let is_needless = match operation {
            Operation::Flush => !self.has_volatile_cache,
            Operation::Discard => !self.deallocates || extent.count == 0,
            Operation::Read | Operation::Write => extent.count == 0,
        };
        if is_needless {
            self.finish_now(token, Ok(()), op.into_buffer());
            return Ok(());
        }
        let sector = extent.start * self.sectors_per_block;
        let is_through = matches!(op, BlockOp::WriteThrough { .. });
        let command = match op {
            BlockOp::Read { buffer, .. } => Command::Read { sector, buffer },
            BlockOp::Write { parts, .. } => Command::Write { sector, parts, force_unit_access: false },
            // Without a volatile cache every completed write is durable.
            BlockOp::WriteThrough { parts, .. } => {
                Command::Write { sector, parts, force_unit_access: self.has_volatile_cache }
            }
            BlockOp::Flush => Command::Flush,
            BlockOp::Discard { extent } => {
                // Longer than a command can say is cut: a hint may be taken in part.
                let count = u32::try_from(extent.count * self.sectors_per_block).unwrap_or(u32::MAX);
                Command::Deallocate { sector, count }
            }
        };
        match self.submit(command, operation, extent, token) {
            Submitted::Taken => Ok(()),
            Submitted::Full(command) => Err(match command {
                Command::Read { buffer, .. } => BlockOp::Read { start_block: extent.start, buffer },
                Command::Write { parts, .. } if is_through => {
                    BlockOp::WriteThrough { start_block: extent.start, parts }
                }
                Command::Write { parts, .. } => BlockOp::Write { start_block: extent.start, parts },
                Command::Flush => BlockOp::Flush,
                Command::Deallocate { .. } => BlockOp::Discard { extent },
            }),
        }
    }

    fn flush_queue(&mut self) {
        if self.queue.ring()
            && let Some(counters) = &self.counters
        {
            counters.doorbells.add(1);
        }
    }

    fn poll(&mut self, now: Instant, done: &mut Vec<BlockDone>) -> usize {
        match self.state {
            State::Running => self.poll_running(now),
            State::Stopping => self.poll_stopping(),
            State::Stopped => {}
        }
        let count = self.finished.len();
        done.append(&mut self.finished);
        count
    }

    fn next_deadline(&self) -> Option<Instant> {
        let is_busy = !self.finished.is_empty() || self.count() > 0 || self.queue.has_unsent();
        match self.state {
            State::Stopping => Some(Instant::ZERO),
            _ if is_busy => Some(Instant::ZERO),
            State::Running => Some(self.next_admin.unwrap_or(Instant::ZERO)),
            State::Stopped => None,
        }
    }

    fn wait_fd(&self) -> Option<RawFd> {
        None
    }

    fn attach(&mut self, locality: &LocalityHandle) {
        self.counters = Some(Arc::clone(locality.counters()));
    }

    fn register(&mut self, arena: &Arena) -> std::io::Result<()> {
        match self.spdk.register(arena, self.namespace.is_by_dma()) {
            Ok(registration) => {
                self.queue.add_memory(registration);
                if let Some(counters) = &self.counters {
                    counters.registrations.add(1);
                }
                Ok(())
            }
            Err(error) => {
                // Nothing can be read or written without; each operation says so, with the reason.
                self.memory_error = Some(error.clone());
                Err(std::io::Error::other(error))
            }
        }
    }
}
