//! SPDK in this process: its environment, the controllers attached through it, and the memory that devices may reach.
//!
//! SPDK's environment belongs to the process by its own design: it starts once, and its memory map and its list of
//! controllers are global. [`Spdk`] is the one home of that state on our side; everything else hangs on values. It is
//! started by the first device that is opened and lives until the process ends.
//!
//! Threads: any; one lock for opening and closing, never taken on the data path. The environment is started on a thread
//! of its own, because it binds the calling thread to one core and every thread started later would inherit that.
//! **Invariant**: memory is unregistered only when no queue and no handle uses it; a [`Registration`] keeps its arena alive.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, c_int};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use base::units::narrow;
use runtime_sys::Arena;

use crate::address::TransportAddress;
use crate::api::{Api, EINVAL, LOG_ERROR, RawEnvironmentOptions, RawPciAddress, VTOPHYS_ERROR};
use crate::controller::ControllerShared;
use crate::error::SpdkError;

/// How the environment starts, if this call is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartOptions {
    /// MiB of SPDK's own memory: queues and requests, no data. 128 serves some tens of queue pairs.
    pub memory_mib: u16,
}

impl Default for StartOptions {
    fn default() -> StartOptions {
        StartOptions { memory_mib: 128 }
    }
}

#[derive(Default)]
struct State {
    /// The device whose opening started the environment.
    first: Option<TransportAddress>,
    controllers: BTreeMap<TransportAddress, Weak<ControllerShared>>,
    registrations: BTreeMap<usize, Weak<Registration>>,
    /// Namespaces that something of this process uses.
    claims: BTreeSet<(TransportAddress, u32)>,
}

/// SPDK, or its stand-in: a table of functions and the state that SPDK keeps once per process.
pub struct Spdk {
    pub(crate) api: Api,
    state: Mutex<State>,
    /// Something was detached or unregistered.
    gone: Condvar,
}

/// The linked library's. One per process, because SPDK's own state is.
#[cfg(feature = "spdk")]
static LINKED: Spdk = Spdk::new(crate::api::linked::API);

#[cfg(feature = "stand-in")]
static STAND_IN: Spdk = Spdk::new(crate::stand_in::API);

impl Spdk {
    #[cfg(any(feature = "spdk", feature = "stand-in"))]
    const fn new(api: Api) -> Spdk {
        let state = State {
            first: None,
            controllers: BTreeMap::new(),
            registrations: BTreeMap::new(),
            claims: BTreeSet::new(),
        };
        Spdk { api, state: Mutex::new(state), gone: Condvar::new() }
    }

    /// The SPDK that this program is linked with. Error: it is linked with none.
    pub fn linked() -> Result<&'static Spdk, SpdkError> {
        #[cfg(feature = "spdk")]
        return Ok(&LINKED);
        #[cfg(not(feature = "spdk"))]
        return Err(SpdkError::NotBuilt);
    }

    /// The stand-in over files, for tests.
    #[cfg(feature = "stand-in")]
    #[must_use]
    pub fn stand_in() -> &'static Spdk {
        &STAND_IN
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two changes of the state, so a poisoned one is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the environment for a device at `address`, unless it runs already.
    ///
    /// PCI is scanned only if the first device is a PCI function, and then only this function is touched; later ones are
    /// attached by their own address. Without PCI no huge pages are needed.
    ///
    /// # Errors
    /// [`SpdkError::Environment`], [`SpdkError::StartedWithoutPci`].
    pub fn start(&'static self, address: &TransportAddress, options: StartOptions) -> Result<(), SpdkError> {
        let mut state = self.state();
        match (&state.first, address) {
            (None, _) => {}
            (Some(first @ TransportAddress::Tcp { .. }), TransportAddress::Pci(_)) => {
                return Err(SpdkError::StartedWithoutPci { first: first.clone() });
            }
            (Some(_), _) => return Ok(()),
        }
        // A thread that cannot be started has no error number of SPDK's; the kernel's is as good.
        let thread = std::thread::Builder::new().name("spdk-start".to_owned());
        let address_of_thread = address.clone();
        let result = match thread.spawn(move || self.init(&address_of_thread, options)) {
            Ok(thread) => thread.join().unwrap_or(-EINVAL),
            Err(error) => -error.raw_os_error().unwrap_or(EINVAL),
        };
        if result != 0 {
            return Err(SpdkError::Environment { errno: result.abs() });
        }
        state.first = Some(address.clone());
        Ok(())
    }

    /// Runs on a thread of its own: the environment binds it to a core.
    fn init(&self, address: &TransportAddress, options: StartOptions) -> c_int {
        // SAFETY: takes a level by value.
        unsafe { (self.api.log_set_print_level)(LOG_ERROR) };
        let core =
            runtime_sys::process::allowed_cores().ok().and_then(|cores| cores.first().copied()).unwrap_or(0);
        let (Ok(cores), Ok(name)) = (CString::new(format!("[{core}]")), CString::new("clovis")) else {
            return -EINVAL;
        };
        // SAFETY: all-zero is a valid value of every field: null pointers, zeros and false.
        let mut raw: RawEnvironmentOptions = unsafe { std::mem::zeroed() };
        raw.opts_size = size_of::<RawEnvironmentOptions>();
        // SAFETY: `raw` is ours, and `opts_size` says how much of it there is to fill.
        unsafe { (self.api.env_opts_init)(&mut raw) };
        raw.name = name.as_ptr();
        raw.core_mask = cores.as_ptr();
        raw.mem_size = c_int::from(options.memory_mib);
        let mut allowed = RawPciAddress::of(address);
        match &mut allowed {
            Some(allowed) => {
                raw.num_pci_addr = 1;
                raw.pci_allowed = allowed;
            }
            None => {
                raw.no_pci = true;
                raw.no_huge = true;
            }
        }
        // SAFETY: `raw` is whole up to `opts_size`; strings and list live until the end of this function, and SPDK copies
        // them into the arguments of DPDK.
        unsafe { (self.api.env_init)(&raw) }
    }

    /// The controller at `address`, attached now or before. Blocks for as long as a controller takes to become ready.
    pub(crate) fn controller(
        &'static self,
        address: &TransportAddress,
        options: StartOptions,
    ) -> Result<Arc<ControllerShared>, SpdkError> {
        self.start(address, options)?;
        let mut state = self.state();
        // One that is just being detached has to be gone before it can be attached again.
        while let Some(known) = state.controllers.get(address) {
            if let Some(controller) = known.upgrade() {
                return Ok(controller);
            }
            state = self.gone.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let controller = Arc::new(ControllerShared::attach(self, address)?);
        state.controllers.insert(address.clone(), Arc::downgrade(&controller));
        Ok(controller)
    }

    /// Takes a namespace for one user of this process. SPDK itself keeps other processes away from a PCI function.
    pub(crate) fn claim(
        &'static self,
        address: &TransportAddress,
        namespace: u32,
    ) -> Result<Claim, SpdkError> {
        let key = (address.clone(), namespace);
        if self.state().claims.insert(key.clone()) {
            Ok(Claim { spdk: self, key })
        } else {
            Err(SpdkError::InUse { address: key.0, namespace })
        }
    }

    /// Called by the last owner of a controller, with what detaches it.
    pub(crate) fn detach(&self, address: &TransportAddress, detach: impl FnOnce()) {
        let mut state = self.state();
        detach();
        state.controllers.remove(address);
        self.gone.notify_all();
    }

    /// Lets devices reach the memory of `arena`, whole, for as long as the result lives. Cheap if it is registered already.
    ///
    /// `by_dma`: a device of this machine will reach it by itself, so each byte needs a translation; SPDK answers success
    /// without one, so this asks again.
    ///
    /// # Errors
    /// [`SpdkError::Register`], [`SpdkError::NotReachable`], [`SpdkError::NeedsHugePages`].
    pub fn register(&'static self, arena: &Arena, by_dma: bool) -> Result<Arc<Registration>, SpdkError> {
        let base = arena.base_ptr().addr();
        let mut state = self.state();
        while let Some(known) = state.registrations.get(&base) {
            if let Some(registration) = known.upgrade() {
                if by_dma {
                    registration.check_translations()?;
                }
                return Ok(registration);
            }
            state = self.gone.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let bytes = arena.capacity_bytes();
        // SAFETY: the range is the arena's mapping, which the registration keeps alive until it is unregistered.
        let result = unsafe { (self.api.mem_register)(arena.base_ptr().cast(), narrow(bytes)) };
        if result != 0 {
            return Err(SpdkError::Register { bytes, errno: result.abs() });
        }
        let registration = Registration { spdk: self, arena: arena.clone() };
        if by_dma && let Err(error) = registration.check_translations() {
            drop(state); // the registration takes the lock when it ends
            drop(registration);
            return Err(error);
        }
        let registration = Arc::new(registration);
        state.registrations.insert(base, Arc::downgrade(&registration));
        Ok(registration)
    }
}

/// A namespace is this owner's.
pub(crate) struct Claim {
    spdk: &'static Spdk,
    key: (TransportAddress, u32),
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.spdk.state().claims.remove(&self.key);
    }
}

/// Memory that devices may reach.
pub struct Registration {
    spdk: &'static Spdk,
    arena: Arena,
}

impl Registration {
    /// The arena.
    #[must_use]
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// True if all of `[address, address + len)` is registered.
    pub(crate) fn covers(&self, address: usize, len: usize) -> bool {
        let base = self.arena.base_ptr().addr();
        address
            .checked_sub(base)
            .and_then(|offset| offset.checked_add(len))
            .is_some_and(|end| end <= narrow(self.arena.capacity_bytes()))
    }

    /// Asks for the translation of each byte, in runs as SPDK knows them.
    fn check_translations(&self) -> Result<(), SpdkError> {
        let bytes = self.arena.capacity_bytes();
        let mut offset = 0;
        while offset < bytes {
            let at = self.arena.base_ptr().wrapping_add(narrow(offset));
            let mut run = bytes - offset;
            // SAFETY: a look-up by address; `run` is ours and is lowered to what one translation covers.
            let translation = unsafe { (self.spdk.api.vtophys)(at.cast(), &mut run) };
            if translation == VTOPHYS_ERROR || run == 0 {
                return Err(SpdkError::NotReachable { offset, bytes });
            }
            // Anything but the address itself is a physical address, and the kernel may move ordinary pages.
            if translation != base::units::wide(at.addr()) && !self.arena.has_huge_pages() {
                return Err(SpdkError::NeedsHugePages { bytes });
            }
            offset = offset.saturating_add(run);
        }
        Ok(())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = self.spdk.state();
        // SAFETY: registered once, in `Spdk::register`, and unregistered once, here. No queue uses it: each holds an owner of
        // this registration until its last command came back.
        unsafe {
            (self.spdk.api.mem_unregister)(self.arena.base_ptr().cast(), narrow(self.arena.capacity_bytes()));
        }
        let base = self.arena.base_ptr().addr();
        // A registration that failed its check was never listed; another one may not exist beside it.
        state.registrations.remove(&base);
        self.spdk.gone.notify_all();
    }
}
