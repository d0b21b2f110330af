//! Operations as C sees them: memory, states, return codes, callbacks, waiting, cancelling, giving back.
//!
//! An operation is a `struct m0_clovis_op` with a private [`Tail`] behind it in the same memory, so that a program may bring the memory and
//! an operation that is used again costs no allocation. The states are those of `client::operation`; here they move on the instance's
//! thread and are looked at by any other:
//!
//! ```text
//! obj_op, entity_..   launch       the client is done        after oop_executed   after oop_stable
//! INITIALISED ------> LAUNCHED --> EXECUTED (visible) -----> waiters of EXECUTED -> STABLE ... waiters of STABLE, fini may return
//!        \                \----> FAILED, oop_failed, waiters of FAILED
//! ```
//!
//! A state is written into `op_sm.sm_state` before its callback, and waiters are told after it. So whoever waits for a state finds the
//! callback done; and `m0_clovis_op_fini`, which waits for the last of it, may be followed by `free` at once.
//!
//! An operation that is used again is set back in place, under its lock: nothing of it is dropped or moved that the next use needs as well.
//!
//! **Invariant**: from the launch to the end of the last callback the library owns the operation's memory (`is_busy`); afterwards it
//! touches nothing of it.
//! **Invariant**: what an operation is to do ([`Tail::work`]) changes only before its launch and after its end, so whoever holds its
//! [`Launched`] reads it in place.
//! **Invariant**: an operation ends only after every buffer it lent to the network is back ([`OpRef::loans_back`]).
//! **Invariant**: every [`Launched`] ends its operation, also when it is dropped (a thread that panicked, an instance that went).

use std::cell::{Cell, UnsafeCell};
use std::future::poll_fn;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use runtime::{Buffer, Lender};

use crate::abi::{Callback, Op, OpOps, entity_opcode, entity_state, op_state};
use crate::errno::{self, Errno};
use crate::helpers::time;
use crate::instance::Shared;
use crate::request::Work;
use crate::say;
use crate::waiters::Waiters;

const LIVE: u64 = 0x6f70_2d6c_6976_6521;
const ENDED: u64 = 0x6f70_2d65_6e64_6564;

/// The private part behind a `struct m0_clovis_op`.
#[repr(C, align(16))]
pub struct Tail {
    magic: AtomicU64,
    core: Mutex<Core>,
    /// Changed under the lock while nobody runs it; read by the holder of the [`Launched`] without.
    work: UnsafeCell<Work>,
    is_cancelled: AtomicBool,
    /// Buffers of the caller's that the network has.
    loans: AtomicUsize,
    /// The operation is over but for its loans.
    awaits_loans: AtomicBool,
    /// The operation's task: woken by a cancel, and by the last loan that comes back.
    task: AtomicWaker,
}

struct Core {
    state: u32,
    /// Bits of states whose callbacks are done.
    reached: u64,
    /// The library still looks at the operation.
    is_busy: bool,
    /// Its own callback asked for fini, and for free.
    wants_fini: bool,
    wants_free: bool,
    instance: Option<Arc<Shared>>,
    /// Order of launches in the instance; 0 before.
    serial: u64,
    waiters: Waiters,
}

/// Where the tail begins.
const TAIL_AT: usize = size_of::<Op>();
const _: () = assert!(TAIL_AT.is_multiple_of(align_of::<Tail>()) && align_of::<Tail>() <= 16);

/// Bytes that every operation needs.
pub const OP_BYTES: usize = TAIL_AT + size_of::<Tail>();

thread_local! {
    /// The operation whose callback runs on this thread.
    static IN_CALLBACK: Cell<*const Op> = const { Cell::new(ptr::null()) };
}

/// An operation that is initialised: its tail is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpRef(NonNull<Op>);

// SAFETY: the public fields are written under the tail's lock or as atomics; the tail's are Sync but for the work, which is Send, and which
// nobody reads while it changes (its invariant). That the memory lives is C's part of the contract until launch, and the module's invariants
// after it.
unsafe impl Send for OpRef {}
// SAFETY: as above.
unsafe impl Sync for OpRef {}

/// How an operation came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// `op_sm.sm_rc`: could it be carried out?
    pub carried_out: Errno,
    /// `op_rc`
    pub rc: Errno,
    /// Bytes moved.
    pub bytes: u64,
}

impl Outcome {
    /// STABLE, with `rc` as what came out of it.
    #[must_use]
    pub const fn stable(rc: Errno, bytes: u64) -> Outcome {
        Outcome { carried_out: 0, rc, bytes }
    }

    /// FAILED.
    #[must_use]
    pub const fn failed(rc: Errno) -> Outcome {
        Outcome { carried_out: rc, rc, bytes: 0 }
    }
}

/// Makes `*slot` an INITIALISED operation: allocates if it is null, else uses the memory again.
///
/// # Safety
/// `slot` points to a pointer that is null or points to `op_size` bytes of an operation (or of zeros).
pub unsafe fn prepare(
    call: &str,
    slot: *mut *mut Op,
    code: u32,
    instance: Option<Arc<Shared>>,
    work: Work,
) -> Result<OpRef, Errno> {
    // SAFETY: the caller's contract.
    let op = match NonNull::new(unsafe { *slot }) {
        None => {
            // SAFETY: a size above 0; calloc aligns to 16 bytes, and zeros are valid for each public field.
            let memory = unsafe { libc::calloc(1, OP_BYTES) }.cast::<Op>();
            let op = NonNull::new(memory).ok_or(errno::ENOMEM)?;
            // SAFETY: OP_BYTES of memory that is ours, in which nothing lives.
            unsafe { tail_of(op).write(Tail::new(instance, work)) };
            op
        }
        // SAFETY: the caller's contract.
        Some(op) => unsafe { make_reusable(call, op, instance, work)? },
    };
    // SAFETY: an operation that is ours alone until this returns.
    unsafe {
        let public = op.as_ptr();
        (*public).magic = LIVE;
        (*public).code = code;
        (*public).size = OP_BYTES;
        (*public).sm.state = op_state::INITIALISED;
        (*public).sm.group = &raw mut (*public).sm_group;
        *slot = public;
    }
    Ok(OpRef(op))
}

impl Tail {
    fn new(instance: Option<Arc<Shared>>, work: Work) -> Tail {
        Tail {
            magic: AtomicU64::new(LIVE),
            core: Mutex::new(Core {
                state: op_state::INITIALISED,
                reached: 0,
                is_busy: false,
                wants_fini: false,
                wants_free: false,
                instance,
                serial: 0,
                waiters: Waiters::default(),
            }),
            work: UnsafeCell::new(work),
            is_cancelled: AtomicBool::new(false),
            loans: AtomicUsize::new(0),
            awaits_loans: AtomicBool::new(false),
            task: AtomicWaker::new(),
        }
    }

    /// Sets an operation that is at rest back to its beginning. False, and nothing is changed, if it is not at rest.
    fn try_reset(&self, instance: Option<Arc<Shared>>, work: Work) -> bool {
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        if !core.is_at_rest() {
            return false;
        }
        // Nobody waits for what has ended or was never launched (whoever does is in `sleep` and will look again), no buffer is out, and a waker of
        // the last task that is kept wakes that one for nothing if this use is cancelled before its launch.
        core.state = op_state::INITIALISED;
        core.reached = 0;
        (core.wants_fini, core.wants_free) = (false, false);
        core.instance = instance;
        core.serial = 0;
        // SAFETY: at rest: no `Launched` reads it, and the lock keeps others away.
        unsafe { *self.work.get() = work };
        self.is_cancelled.store(false, Ordering::SeqCst);
        self.awaits_loans.store(false, Ordering::SeqCst);
        true
    }
}

impl Core {
    /// Not launched yet, or over: the caller may fini it or use it again.
    fn is_at_rest(&self) -> bool {
        !self.is_busy && matches!(self.state, op_state::INITIALISED | op_state::STABLE | op_state::FAILED)
    }
}

fn tail_of(op: NonNull<Op>) -> *mut Tail {
    op.as_ptr().cast::<u8>().wrapping_add(TAIL_AT).cast()
}

/// Memory that was given: its public part zeroed, its tail alive.
///
/// # Safety
/// `op` points to `op_size` bytes of an operation, or of zeros.
unsafe fn make_reusable(
    call: &str,
    op: NonNull<Op>,
    instance: Option<Arc<Shared>>,
    work: Work,
) -> Result<NonNull<Op>, Errno> {
    // SAFETY: the caller's contract.
    let size = unsafe { (*op.as_ptr()).size };
    if size < OP_BYTES || !op.addr().get().is_multiple_of(align_of::<Tail>()) {
        say!(
            "{call}: the given operation has op_size {size}, and {OP_BYTES} bytes (m0_clovis_op_maxsize) at a multiple of 16 are needed"
        );
        return Err(errno::EMSGSIZE);
    }
    // SAFETY: `size` bytes are there, so the tail is; its magic is an integer, whatever stood there.
    let magic = unsafe { (*tail_of(op)).magic.load(Ordering::SeqCst) };
    if magic == LIVE {
        if !OpRef(op).tail().try_reset(instance, work) {
            say!("{call}: the given operation is still running");
            return Err(errno::EBUSY);
        }
    } else {
        // SAFETY: `size` bytes, in which nothing lives.
        unsafe { tail_of(op).write(Tail::new(instance, work)) };
    }
    // SAFETY: the public part of an operation that nobody runs; zeros are valid for each field.
    unsafe { ptr::write_bytes(op.as_ptr(), 0, 1) };
    Ok(op)
}

impl OpRef {
    /// The operation at `op`, if it is one that is initialised.
    ///
    /// # Safety
    /// `op` is null or points to an operation that was not freed.
    pub unsafe fn of(call: &str, op: *const Op) -> Option<OpRef> {
        let Some(op) = NonNull::new(op.cast_mut()) else {
            say!("{call}: the operation is NULL");
            return None;
        };
        // SAFETY: the caller's contract: an operation has a tail; one that was never initialised has another magic in its head.
        let is_live =
            unsafe { (*op.as_ptr()).magic == LIVE && (*tail_of(op)).magic.load(Ordering::SeqCst) == LIVE };
        if !is_live {
            say!("{call}: the operation is not initialised");
            return None;
        }
        Some(OpRef(op))
    }

    fn tail(&self) -> &Tail {
        // SAFETY: an `OpRef` is made of initialised operations only, and not used after their end.
        unsafe { &*tail_of(self.0) }
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.tail().core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The C structure.
    #[must_use]
    pub fn as_ptr(&self) -> *mut Op {
        self.0.as_ptr()
    }

    /// `op_sm.sm_rc`, which C programs read without a lock.
    #[must_use]
    pub fn sm_rc(&self) -> &AtomicI32 {
        // SAFETY: an aligned i32 of memory that lives, only ever written through atomics once the operation is initialised.
        unsafe { AtomicI32::from_ptr(&raw mut (*self.as_ptr()).sm.rc) }
    }

    fn sm_state(&self) -> &AtomicU32 {
        // SAFETY: as `sm_rc`.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.as_ptr()).sm.state) }
    }

    /// `at`: the time now ([`time::now`]).
    fn set_state(&self, core: &mut Core, state: u32, at: u64) {
        core.state = state;
        // SAFETY: written by whoever moves the state, under the lock; programs only read it.
        unsafe { (*self.as_ptr()).sm.state_epoch = at };
        self.sm_state().store(state, Ordering::Release);
    }

    /// Changes what a not yet launched operation will do.
    pub fn with_work<T>(&self, change: impl FnOnce(&mut Work, &mut Option<Arc<Shared>>) -> T) -> Option<T> {
        let core = &mut *self.core();
        if core.state != op_state::INITIALISED {
            return None;
        }
        // SAFETY: not launched, so no `Launched` reads it, and the lock keeps others away.
        let work = unsafe { &mut *self.tail().work.get() };
        Some(change(work, &mut core.instance))
    }

    /// The instance and the order of its launch, once it is launched.
    #[must_use]
    pub fn launched_as(&self) -> Option<(Arc<Shared>, u64)> {
        let core = self.core();
        (core.serial != 0).then(|| core.instance.clone().map(|instance| (instance, core.serial))).flatten()
    }

    /// `m0_clovis_op_setup`
    ///
    /// # Safety
    /// `cbs` is null or outlives the operation.
    pub unsafe fn setup(&self, cbs: *const OpOps, linger: u64) {
        let core = self.core();
        if core.state != op_state::INITIALISED {
            drop(core);
            say!("m0_clovis_op_setup: the operation was launched already");
            return;
        }
        // SAFETY: under the lock, before the launch: nobody else looks.
        unsafe {
            (*self.as_ptr()).cbs = cbs;
            (*self.as_ptr()).linger = linger;
        }
    }

    /// `m0_clovis_op_launch` of one.
    pub fn launch(self) {
        let mut core = self.core();
        if core.state != op_state::INITIALISED {
            drop(core);
            say!("m0_clovis_op_launch: the operation was launched already");
            return;
        }
        let instance = core.instance.clone();
        core.is_busy = true;
        core.serial = instance.as_ref().map_or(u64::MAX, |instance| instance.next_serial());
        let serial = core.serial;
        // SAFETY: under the lock, and from here on nobody changes it.
        unsafe { &*self.tail().work.get() }.mark_entity_launched();
        self.set_state(&mut core, op_state::LAUNCHED, time::now());
        core.reached |= 1 << op_state::LAUNCHED;
        let woken = (!core.waiters.is_empty()).then(|| core.waiters.take(1 << op_state::LAUNCHED));
        drop(core);
        if let Some(woken) = woken {
            woken.wake();
        }
        let launched = Launched { op: self, serial, is_over: false };
        match instance {
            Some(instance) => instance.post(launched),
            // Operations of no instance are those that can only be refused, and a sync of nothing.
            None => {
                let outcome = match launched.work() {
                    Work::Refuse(rc) => Outcome::failed(*rc),
                    _ => Outcome::stable(0, 0),
                };
                launched.finish(outcome);
            }
        }
    }

    /// `m0_clovis_op_wait`; `bits` are checked already.
    pub fn wait(&self, bits: u64, until: u64) -> Errno {
        let mut core = self.core();
        loop {
            if core.reached & bits != 0 {
                return 0;
            }
            if core.reached & (1 << op_state::STABLE | 1 << op_state::FAILED) != 0 {
                return errno::ESRCH;
            }
            let own = thread::current();
            if core.instance.as_ref().is_some_and(|instance| instance.is_thread(own.id())) {
                drop(core);
                say!("m0_clovis_op_wait: a callback would wait for its own thread");
                return errno::EDEADLK;
            }
            let left = (until != time::NEVER).then(|| until.saturating_sub(time::now()));
            if left == Some(0) {
                return errno::ETIMEDOUT;
            }
            core = self.sleep(core, own, bits, left);
        }
    }

    /// Sleeps without the lock until one of `bits` is reached, the operation is over, or `left` ns have passed; perhaps not so long.
    fn sleep<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core>,
        own: Thread,
        bits: u64,
        left: Option<u64>,
    ) -> MutexGuard<'a, Core> {
        let id = own.id();
        core.waiters.add(own, bits);
        drop(core);
        match left {
            Some(left) => thread::park_timeout(Duration::from_nanos(left)),
            None => thread::park(),
        }
        let mut core = self.core();
        core.waiters.remove(id);
        core
    }

    /// `m0_clovis_op_cancel` of one. An operation that was never launched will end as soon as it is.
    pub fn cancel(&self) {
        // SAFETY: a bool of memory that lives, only ever written through atomics once the operation is initialised.
        unsafe { AtomicBool::from_ptr(&raw mut (*self.as_ptr()).cancelling) }.store(true, Ordering::Release);
        self.tail().is_cancelled.store(true, Ordering::SeqCst);
        self.tail().task.wake();
    }

    /// `m0_clovis_op_fini`
    pub fn fini(self) {
        let mut core = self.core();
        if IN_CALLBACK.get() == self.as_ptr() {
            core.wants_fini = true; // done once the callback has returned
            return;
        }
        let is_over = |core: &Core| matches!(core.state, op_state::STABLE | op_state::FAILED);
        while core.is_busy && is_over(&core) {
            core = self.sleep(core, thread::current(), 0, None);
        }
        if core.is_busy {
            drop(core);
            say!("m0_clovis_op_fini: the operation is still running: wait for it, or cancel it and wait");
            return;
        }
        drop(core);
        self.end();
    }

    /// Drops what the tail holds. Nobody else may look at the operation any more.
    fn end(self) {
        self.tail().magic.store(ENDED, Ordering::SeqCst);
        self.sm_state().store(op_state::UNINITIALISED, Ordering::Release);
        // SAFETY: the tail was alive (its magic said so until now), and is dropped once.
        unsafe {
            (*self.as_ptr()).magic = ENDED;
            let tail = tail_of(self.0);
            ptr::drop_in_place(&raw mut (*tail).core);
            ptr::drop_in_place(&raw mut (*tail).work);
            ptr::drop_in_place(&raw mut (*tail).task);
        }
    }

    /// The task of `waker` is woken when somebody cancels the operation; once, and not if somebody has already.
    pub fn wake_when_cancelled(&self, waker: &Waker) {
        self.tail().task.register(waker);
    }

    /// True once somebody cancelled the operation.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.tail().is_cancelled.load(Ordering::SeqCst)
    }

    /// A buffer on the caller's memory; the operation does not end before it is back.
    ///
    /// # Safety
    /// `data` to `data + len` is the caller's for this operation, as the header says of its buffers.
    #[must_use]
    pub unsafe fn lend(self, data: NonNull<u8>, len: usize) -> Buffer {
        self.tail().loans.fetch_add(1, Ordering::SeqCst);
        // SAFETY: `loan_came_back` may run with this pointer: the operation lives until its loans are back. Buffers of a client never
        // leave its locality, so it runs on the instance's thread, and the operation's task cannot end between its two steps.
        let lender = unsafe { Lender::new(self.as_ptr().cast_const().cast(), loan_came_back) };
        // SAFETY: the header's contract for buffers of an operation, until it ends.
        unsafe { Buffer::lend(data, len, lender) }
    }

    /// Ready once every loan is back.
    pub async fn loans_back(self) {
        let tail = self.tail();
        if tail.loans.load(Ordering::SeqCst) == 0 {
            return;
        }
        tail.awaits_loans.store(true, Ordering::SeqCst);
        poll_fn(|context| {
            tail.task.register(context.waker());
            if tail.loans.load(Ordering::SeqCst) == 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Reaches a state at the time `at`, or later if callbacks came between: written, then its callback without the lock, then its waiters'
    /// turn (they are woken at the next unlocking).
    fn reach<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core>,
        state: u32,
        at: &mut u64,
        choose: impl FnOnce(&OpOps) -> Callback,
    ) -> MutexGuard<'a, Core> {
        self.set_state(&mut core, state, *at);
        // SAFETY: `setup`'s contract.
        let callback = unsafe { (*self.as_ptr()).cbs.as_ref() }.and_then(choose);
        if let Some(callback) = callback {
            let reached = core.reached;
            let woken = core.waiters.take(reached);
            drop(core);
            woken.wake();
            let outer = IN_CALLBACK.replace(self.as_ptr());
            // SAFETY: a function that the program gave for this, called with its operation, which is busy until it returns. A panic
            // cannot come out of C.
            unsafe { callback(self.as_ptr()) };
            IN_CALLBACK.set(outer);
            core = self.core();
            *at = time::now();
        }
        core.reached |= 1 << state;
        core
    }
}

/// # Safety
/// `data` is an operation that lent a buffer and has not ended.
unsafe fn loan_came_back(data: *const ()) {
    let Some(op) = NonNull::new(data.cast_mut().cast::<Op>()) else { return };
    let op = OpRef(op);
    // Before that the waker is there for a cancel, and a wake would use it up.
    if op.tail().loans.fetch_sub(1, Ordering::SeqCst) == 1 && op.tail().awaits_loans.load(Ordering::SeqCst) {
        op.tail().task.wake();
    }
}

/// An operation on its way: ends it in any case.
#[derive(Debug)]
pub struct Launched {
    op: OpRef,
    serial: u64,
    is_over: bool,
}

impl Launched {
    /// The operation.
    #[must_use]
    pub fn op(&self) -> OpRef {
        self.op
    }

    /// What it is to do.
    #[must_use]
    pub fn work(&self) -> &Work {
        // SAFETY: launched and not over (`finish` takes this away): nobody changes it (the module's invariant).
        unsafe { &*self.op.tail().work.get() }
    }

    /// Its place in the order of launches of the instance.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Ends the operation: states, callbacks, waiters. It is not touched afterwards.
    pub fn finish(mut self, outcome: Outcome) {
        self.is_over = true;
        self.end(outcome);
    }

    fn end(&self, outcome: Outcome) {
        if outcome.carried_out != 0 {
            self.work().mark_entity_idle();
        }
        finish(self.op, outcome);
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        if !self.is_over {
            self.end(Outcome::failed(errno::ESHUTDOWN));
        }
    }
}

fn finish(op: OpRef, outcome: Outcome) {
    let mut core = op.core();
    // SAFETY: busy, so these fields are the library's.
    unsafe {
        (*op.as_ptr()).rc = outcome.rc;
        (*op.as_ptr()).count = outcome.bytes;
    }
    op.sm_rc().store(outcome.carried_out, Ordering::Release);
    let mut at = time::now();
    if outcome.carried_out == 0 {
        core = op.reach(core, op_state::EXECUTED, &mut at, |cbs| cbs.executed);
        core = op.reach(core, op_state::STABLE, &mut at, |cbs| cbs.stable);
    } else {
        core = op.reach(core, op_state::FAILED, &mut at, |cbs| cbs.failed);
    }
    core.is_busy = false;
    let (wants_fini, wants_free) = (core.wants_fini, core.wants_free);
    let woken = core.waiters.take_all();
    // Whoever sees the end may free the operation as soon as the lock is free. What is left of the unlocking then is a wake-up of an
    // address, which needs no memory behind it.
    drop(core);
    woken.wake();
    if wants_fini {
        op.end();
        if wants_free {
            // SAFETY: its own callback gave it to us, and no operation that is given back is used again.
            unsafe { libc::free(op.as_ptr().cast()) };
        }
    }
}

crate::export! {
    /// `m0_clovis_op_setup`
    fn m0_clovis_op_setup(op: *mut Op, cbs: *const OpOps, linger: u64) [()] {
        // SAFETY: the header's contract.
        if let Some(op) = unsafe { OpRef::of("m0_clovis_op_setup", op) } {
            // SAFETY: the header's contract: callbacks outlive the operation.
            unsafe { op.setup(cbs, linger) };
        }
    }

    /// `m0_clovis_op_launch`
    fn m0_clovis_op_launch(op: *mut *mut Op, nr: u32) [()] {
        // SAFETY: the header's contract: `nr` pointers.
        for op in unsafe { pointers("m0_clovis_op_launch", op, nr) } {
            // SAFETY: as above.
            if let Some(op) = unsafe { OpRef::of("m0_clovis_op_launch", *op) } {
                op.launch();
            }
        }
    }

    /// `m0_clovis_op_wait`
    fn m0_clovis_op_wait(op: *mut Op, bits: u64, to: u64) -> i32 [errno::EIO] {
        const MAY: u64 =
            1 << op_state::LAUNCHED | 1 << op_state::EXECUTED | 1 << op_state::STABLE | 1 << op_state::FAILED;
        // SAFETY: the header's contract.
        let Some(op) = (unsafe { OpRef::of("m0_clovis_op_wait", op) }) else { return errno::EINVAL };
        if bits == 0 || bits & !MAY != 0 {
            say!("m0_clovis_op_wait: bits {bits:#x} are not of LAUNCHED, EXECUTED, STABLE and FAILED");
            return errno::EINVAL;
        }
        op.wait(bits, to)
    }

    /// `m0_clovis_op_kick`
    fn m0_clovis_op_kick(_op: *mut Op) [()] {}

    /// `m0_clovis_rc`
    fn m0_clovis_rc(op: *const Op) -> i32 [errno::EIO] {
        // SAFETY: the header's contract.
        match unsafe { OpRef::of("m0_clovis_rc", op) } {
            Some(op) => op.sm_rc().load(Ordering::Acquire),
            None => errno::EINVAL,
        }
    }

    /// `m0_clovis_op_fini`
    fn m0_clovis_op_fini(op: *mut Op) [()] {
        // SAFETY: the header's contract.
        if let Some(op) = unsafe { OpRef::of("m0_clovis_op_fini", op) } {
            op.fini();
        }
    }

    /// `m0_clovis_op_free`
    fn m0_clovis_op_free(op: *mut Op) [()] {
        if op.is_null() {
            return;
        }
        // SAFETY: the header's contract: an operation, or memory of one after its fini.
        let is_live = unsafe { (*op).magic } == LIVE;
        if is_live {
            // SAFETY: as above.
            let Some(live) = (unsafe { OpRef::of("m0_clovis_op_free", op) }) else { return };
            if IN_CALLBACK.get() == op.cast_const() {
                let mut core = live.core();
                core.wants_fini = true;
                core.wants_free = true;
                return;
            }
            live.fini();
            // SAFETY: as above.
            if unsafe { (*op).magic } == LIVE {
                return; // still running: fini has said so
            }
        }
        // SAFETY: memory of `prepare`, or of m0_alloc.
        unsafe { libc::free(op.cast()) };
    }

    /// `m0_clovis_op_maxsize`
    fn m0_clovis_op_maxsize() -> usize [OP_BYTES] {
        OP_BYTES
    }

    /// `m0_clovis_op_cancel`
    fn m0_clovis_op_cancel(op: *mut *mut Op, nr: u32) [()] {
        // SAFETY: the header's contract: `nr` pointers.
        for op in unsafe { pointers("m0_clovis_op_cancel", op, nr) } {
            // SAFETY: as above.
            if let Some(op) = unsafe { OpRef::of("m0_clovis_op_cancel", *op) } {
                op.cancel();
            }
        }
    }
}

/// # Safety
/// `op` is null or points to `nr` pointers that stay as they are.
unsafe fn pointers<'a>(call: &str, op: *mut *mut Op, nr: u32) -> &'a [*mut Op] {
    if op.is_null() || nr == 0 {
        if nr != 0 {
            say!("{call}: {nr} operations at NULL");
        }
        return &[];
    }
    let count = usize::try_from(nr).unwrap_or(0);
    // SAFETY: the caller's contract.
    unsafe { std::slice::from_raw_parts(op, count) }
}

/// Code and first entity state of an entity operation.
#[must_use]
pub const fn entity_state_while(code: u32) -> u32 {
    match code {
        entity_opcode::CREATE => entity_state::CREATING,
        entity_opcode::DELETE => entity_state::DELETING,
        _ => entity_state::OPENING,
    }
}
