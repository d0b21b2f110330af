//! A stand-in for SPDK: the same C functions over a file, with the habits of the real ones that our code must withstand.
//!
//! It tests our code, not SPDK. What it does as SPDK does: completions come only from inside `process_completions` and
//! `free_io_qpair`; a command leaves the queue only at a `process_completions` and is done at a later one; commands
//! complete in any order; long transfers are cut and walked piece by piece through the caller's callbacks; a full queue
//! answers ENOMEM; memory without a registration ends a command with "invalid field"; registration answers success
//! even where no translation exists. Beside that it fails, hangs and loses what a test asks for ([`Faults`]).
//!
//! A device is a file [plugged](plug) into a bus that belongs to the process, as PCI does; each has an address of its own, so tests
//! run side by side. Misuse (another thread, a leak) panics.

mod functions;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use runtime_sys::Arena;

use crate::address::{PciAddress, TransportAddress};
use crate::status::NvmeStatus;

pub(crate) use functions::API;

/// What a device of the stand-in is.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// Bytes of a sector.
    pub sector_bytes: u32,
    /// Bytes of metadata of a sector.
    pub metadata_bytes: u32,
    /// Whether it says that it has a volatile cache.
    pub has_volatile_cache: bool,
    /// Whether it deallocates.
    pub deallocates: bool,
    /// Longer transfers are cut.
    pub max_transfer_bytes: u32,
    /// Commands that a queue pair takes.
    pub queue_requests: usize,
    /// Chooses the order of completions.
    pub seed: u64,
}

impl Default for DeviceOptions {
    fn default() -> DeviceOptions {
        DeviceOptions {
            sector_bytes: 512,
            metadata_bytes: 0,
            has_volatile_cache: true,
            deallocates: true,
            max_transfer_bytes: 128 << 10,
            queue_requests: 512,
            seed: 1,
        }
    }
}

/// A kind of command, for faults and counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Flush.
    Flush,
    /// Deallocate.
    Deallocate,
}

/// What a test asks a device to do wrong. Each applies from now on.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Commands of this kind that end with this status without being done: how many.
    pub statuses: BTreeMap<Kind, (NvmeStatus, u32)>,
    /// Commands of this kind that do not come back by themselves: how many.
    pub hangs: BTreeMap<Kind, u32>,
    /// Aborts are taken and change nothing.
    pub ignores_aborts: bool,
    /// Aborts come too late: the command is done after all.
    pub finishes_aborted: bool,
    /// The controller is dead: its queues answer ENXIO.
    pub is_lost: bool,
    /// The controller is gone from its slot: as lost, and it cannot be told to stop.
    pub is_removed: bool,
    /// The controller does not confirm that it stopped.
    pub ignores_stop: bool,
    /// Submissions that answer ENOMEM although there is room: how many.
    pub refusals: u32,
    /// It takes no connection.
    pub is_deaf: bool,
}

/// What a device did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Commands done, by kind.
    pub done: BTreeMap<Kind, u64>,
    /// Writes that forced unit access.
    pub forced_writes: u64,
    /// Calls of `process_completions` that sent something.
    pub doorbells: u64,
    /// Most commands in one queue pair at once.
    pub in_flight_max: usize,
    /// Aborts asked for.
    pub aborts: u64,
    /// Calls to handle the admin queue.
    pub admin_polls: u64,
    /// Queue pairs and controllers that are open now.
    pub open: u32,
    /// Controllers attached since it was plugged in.
    pub attached: u64,
}

struct DeviceState {
    faults: Faults,
    counts: Counts,
}

pub(crate) struct Device {
    file: File,
    options: DeviceOptions,
    state: Mutex<DeviceState>,
}

impl Device {
    fn state(&self) -> MutexGuard<'_, DeviceState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What belongs to the process: the bus, and the memory map of all devices.
#[derive(Default)]
pub(crate) struct Machine {
    bus: BTreeMap<String, Arc<Device>>,
    /// Registered ranges: start to length.
    memory: BTreeMap<usize, usize>,
    /// Starts of ranges that no device reaches, registered or not.
    unreachable: BTreeSet<usize>,
    /// Starts of ranges whose translation is another address, as without an IOMMU.
    physical: BTreeSet<usize>,
}

static MACHINE: Mutex<Machine> = Mutex::new(Machine {
    bus: BTreeMap::new(),
    memory: BTreeMap::new(),
    unreachable: BTreeSet::new(),
    physical: BTreeSet::new(),
});

fn machine() -> MutexGuard<'static, Machine> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    fn is_registered(&self, address: usize, len: usize) -> bool {
        let found = self.memory.range(..=address).next_back();
        found
            .is_some_and(|(start, bytes)| address + len <= start + bytes && !self.unreachable.contains(start))
    }
}

/// A device in the bus. Dropping it takes it out.
pub struct Plugged {
    address: TransportAddress,
    device: Arc<Device>,
}

/// Plugs `file` in as a device, at an address that nothing else in this process has.
#[must_use]
pub fn plug(file: File, options: DeviceOptions) -> Plugged {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let part = |shift: u32, mask: u32| u8::try_from((number >> shift) & mask).unwrap_or(0);
    let domain = u16::try_from(0x8000 | (number >> 13) & 0x7fff).unwrap_or(0);
    let address = PciAddress { domain, bus: part(5, 0xff), device: part(0, 0x1f), function: 0 };
    let address = TransportAddress::Pci(address);
    let state = DeviceState { faults: Faults::default(), counts: Counts::default() };
    let device = Arc::new(Device { file, options, state: Mutex::new(state) });
    machine().bus.insert(address.to_string(), Arc::clone(&device));
    Plugged { address, device }
}

impl Plugged {
    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &TransportAddress {
        &self.address
    }

    /// Changes what it does wrong.
    pub fn set_faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.device.state().faults);
    }

    /// What it did so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.device.state().counts.clone()
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        machine().bus.remove(&self.address.to_string());
        let open = self.device.state().counts.open;
        if !std::thread::panicking() {
            assert_eq!(open, 0, "queue pairs or controllers of {} leaked", self.address);
        }
    }
}

/// What a test said of an arena's memory. Dropping it takes that back, since another arena may come to lie there.
#[must_use]
pub struct MemoryFault {
    start: usize,
}

/// No device reaches the memory of `arena`, though its registration succeeds.
pub fn make_unreachable(arena: &Arena) -> MemoryFault {
    let start = arena.base_ptr().addr();
    machine().unreachable.insert(start);
    MemoryFault { start }
}

/// Devices reach the memory of `arena` by physical addresses, as without an IOMMU.
pub fn make_physical(arena: &Arena) -> MemoryFault {
    let start = arena.base_ptr().addr();
    machine().physical.insert(start);
    MemoryFault { start }
}

impl Drop for MemoryFault {
    fn drop(&mut self) {
        let mut machine = machine();
        machine.unreachable.remove(&self.start);
        machine.physical.remove(&self.start);
    }
}

/// True if the memory of `arena` is registered.
#[must_use]
pub fn is_registered(arena: &Arena) -> bool {
    machine().memory.contains_key(&arena.base_ptr().addr())
}
