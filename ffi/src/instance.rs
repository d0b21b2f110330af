//! Instances: one thread each, which runs a locality with a Rust client; the mailbox to it; `m0_clovis_init` and `m0_clovis_fini`.
//!
//! Bound: [`limits::LETTERS_MAX`] launched operations wait in the mailbox; a launch that finds it full waits for room, except on the
//! instance's own thread (a callback), where the letter goes into a second queue that is emptied whenever the mailbox is.
//! Left over: an instance that is given back while operations run cancels them, waits [`limits::FINI_TIMEOUT`] for their buffers, then ends them.

use std::collections::VecDeque;
use std::ffi::{CStr, c_char};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::ptr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread::{JoinHandle, ThreadId};
use std::time::Duration;

use base::nid::NetKind;
use base::{Endpoint, Fid, FidType};
use client::{Client, ClientConfig};
use faces::ClusterFile;
use runtime::{
    Arena, ArenaConfig, Counters, Crowd, Locality, LocalityConfig, MailSender, MonotonicClock, Waiting,
    identity, mailbox,
};
use verbs_net::{Fabric, Security};

use crate::abi::{Clovis, Config};
use crate::errno::{self, Errno};
use crate::helpers::{fid, thread};
use crate::op::{Launched, Outcome};
use crate::work::Face;
use crate::{limits, memory, say};

/// What goes to an instance's thread.
#[derive(Debug)]
pub enum Letter {
    /// Run this.
    Launch(Launched),
    /// End everything.
    Stop,
}

/// What all threads know of an instance.
#[derive(Debug)]
pub struct Shared {
    sender: MailSender<Letter>,
    thread: ThreadId,
    serial: AtomicU64,
    is_stopping: AtomicBool,
    /// Letters that the own thread could not put into the full box.
    own_letters: Mutex<VecDeque<Letter>>,
    has_own_letters: AtomicBool,
    waiting_for_room: AtomicUsize,
    room: Mutex<()>,
    room_came: Condvar,
    /// `cc_layout_id`
    pub layout_id: u32,
    /// `cc_process_fid`
    pub process: Fid,
    /// The pool that objects are made in.
    pub pool: Fid,
}

impl Shared {
    /// An instance that runs on the calling thread.
    fn of_this_thread(sender: MailSender<Letter>) -> Shared {
        Shared {
            sender,
            thread: std::thread::current().id(),
            serial: AtomicU64::new(0),
            is_stopping: AtomicBool::new(false),
            own_letters: Mutex::default(),
            has_own_letters: AtomicBool::new(false),
            waiting_for_room: AtomicUsize::new(0),
            room: Mutex::default(),
            room_came: Condvar::new(),
            layout_id: 0,
            process: Fid::default(),
            pool: Fid::default(),
        }
    }

    #[cfg(test)]
    pub fn for_test(sender: MailSender<Letter>) -> Shared {
        Shared::of_this_thread(sender)
    }

    #[cfg(test)]
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// The next number in the order of launches, from 1.
    pub fn next_serial(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// True on the thread that runs this instance's callbacks.
    #[must_use]
    pub fn is_own_thread(&self) -> bool {
        self.is_thread(std::thread::current().id())
    }

    /// True if that is the thread that runs this instance's callbacks.
    #[must_use]
    pub fn is_thread(&self, thread: ThreadId) -> bool {
        thread == self.thread
    }

    /// Hands an operation to the instance's thread; waits for room. An instance that has ended ends the operation.
    pub fn post(&self, launched: Launched) {
        if self.is_stopping.load(Ordering::SeqCst) {
            launched.finish(Outcome::failed(errno::ESHUTDOWN));
            return;
        }
        self.post_letter(Letter::Launch(launched));
    }

    /// [`Shared::post`] of any letter.
    pub fn post_letter(&self, mut letter: Letter) {
        loop {
            letter = match self.sender.try_send(letter) {
                Ok(()) => return,
                Err(letter) => letter,
            };
            if self.sender.is_closed() {
                return; // dropped: a launched operation ends itself
            }
            if self.is_own_thread() {
                self.own_letters.lock().unwrap_or_else(PoisonError::into_inner).push_back(letter);
                self.has_own_letters.store(true, Ordering::Release);
                return;
            }
            let room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
            self.waiting_for_room.fetch_add(1, Ordering::SeqCst);
            // Once more, now that the receiver knows of us: it looks at the count after it has made room.
            letter = match self.sender.try_send(letter) {
                Ok(()) => {
                    self.waiting_for_room.fetch_sub(1, Ordering::SeqCst);
                    return;
                }
                Err(letter) => letter,
            };
            if !self.sender.is_closed() {
                // With a limit, since a thread that dies tells nobody.
                let waited = self.room_came.wait_timeout(room, Duration::from_millis(100));
                drop(waited.unwrap_or_else(PoisonError::into_inner));
            }
            self.waiting_for_room.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// The own thread took letters out of the box.
    pub fn made_room(&self) {
        if self.waiting_for_room.load(Ordering::SeqCst) > 0 {
            drop(self.room.lock().unwrap_or_else(PoisonError::into_inner));
            self.room_came.notify_all();
        }
    }

    /// The oldest letter of the own thread to itself.
    pub fn take_own_letter(&self) -> Option<Letter> {
        // Set and looked at by one thread, so this is never older than the queue.
        if !self.has_own_letters.load(Ordering::Acquire) {
            return None;
        }
        let mut letters = self.own_letters.lock().unwrap_or_else(PoisonError::into_inner);
        let letter = letters.pop_front();
        self.has_own_letters.store(!letters.is_empty(), Ordering::Release);
        letter
    }
}

/// What `m0_clovis_init` was asked for, checked.
struct Wish {
    local: Endpoint,
    control: Endpoint,
    further_controls: Vec<Endpoint>,
    profile: Fid,
    process: Fid,
    layout_id: u32,
    read_verify: bool,
    security: Security,
    op_timeout: Duration,
    /// Keeps the endpoint's name for this client on this machine.
    name: Option<UnixDatagram>,
    is_dynamic: bool,
}

/// A wrong field of the configuration; the text says which.
struct BadConfig(String);

/// # Safety
/// `text` is null or a C string.
unsafe fn text_of<'a>(field: &str, text: *const c_char) -> Result<&'a str, BadConfig> {
    if text.is_null() {
        return Err(BadConfig(format!("{field} is NULL")));
    }
    // SAFETY: the caller's contract.
    let text = unsafe { CStr::from_ptr(text) };
    match text.to_str().map(str::trim) {
        Ok("") => Err(BadConfig(format!("{field} is empty"))),
        Ok(text) if text.len() <= limits::TEXT_BYTES_MAX => Ok(text),
        _ => Err(BadConfig(format!("{field} is longer than {} bytes or not UTF-8", limits::TEXT_BYTES_MAX))),
    }
}

fn endpoint_of(field: &str, text: &str) -> Result<Endpoint, BadConfig> {
    text.parse().map_err(|error| BadConfig(format!("{field}: {error}")))
}

fn fid_of(field: &str, text: &str) -> Result<Fid, BadConfig> {
    fid::parse(text)
        .ok_or_else(|| BadConfig(format!("{field} {text:?} is not a fid: write 0x7000000000000001:0")))
}

/// # Safety
/// `config` is null or a configuration as the header has it.
unsafe fn wish_of(config: *const Config) -> Result<Wish, BadConfig> {
    // SAFETY: the caller's contract.
    let config =
        unsafe { config.as_ref() }.ok_or_else(|| BadConfig("the configuration is NULL".to_owned()))?;
    // SAFETY: the caller's contract, for each of the four.
    let (local, control, process, profile) = unsafe {
        (
            text_of("cc_local_addr", config.local_addr)?,
            text_of("cc_ha_addr", config.ha_addr)?,
            text_of("cc_process_fid", config.process_fid)?,
            text_of("cc_profile", config.profile)?,
        )
    };
    for (field, value) in [
        ("cc_tm_recv_queue_min_len", config.tm_recv_queue_min_len),
        ("cc_max_rpc_msg_size", config.max_rpc_msg_size),
    ] {
        if value == 0 {
            return Err(BadConfig(format!("{field} is 0")));
        }
    }
    let process = fid_of("cc_process_fid", process)?;
    if !process.is(FidType::Process) {
        return Err(BadConfig(format!(
            "cc_process_fid {process} is not a process fid: those begin with 0x72, as in 0x7200000000000000:0"
        )));
    }
    let local = endpoint_of("cc_local_addr", local)?;
    let (security, path, controls) = membership()?;
    let op_timeout = match std::env::var("CLOVIS_OP_TIMEOUT") {
        Ok(text) => match text.parse::<u64>() {
            Ok(seconds) if seconds > 0 => Duration::from_secs(seconds),
            _ => return Err(BadConfig(format!("CLOVIS_OP_TIMEOUT is not a number of seconds: {text:?}"))),
        },
        Err(_) => limits::OP_TIMEOUT,
    };
    let control = endpoint_of("cc_ha_addr", control)?;
    if local == control {
        return Err(BadConfig(format!(
            "cc_local_addr {local} is the control daemon's endpoint ({}): a client takes one of its own",
            path.display()
        )));
    }
    let (name, is_dynamic) = match claim(local) {
        Claim::Ours(name) => (name, false),
        Claim::Taken => {
            say!("m0_clovis_init: {local} is another client's on this machine: this one chooses an endpoint");
            (None, true)
        }
    };
    Ok(Wish {
        local,
        control,
        // Those of the file belong together. Another one that the program names stands alone.
        further_controls: if controls.contains(&control) {
            controls.into_iter().filter(|one| *one != control).collect()
        } else {
            Vec::new()
        },
        profile: fid_of("cc_profile", profile)?,
        process,
        layout_id: config.layout_id,
        read_verify: config.is_read_verify,
        security,
        op_timeout,
        name,
        is_dynamic,
    })
}

enum Claim {
    Ours(Option<UnixDatagram>),
    Taken,
}

/// Two clients of one name would take each other for a restarted one. A socket in the system's abstract name space keeps the name as long
/// as the client lives, in this process and in all others of the machine.
fn claim(local: Endpoint) -> Claim {
    let bound = SocketAddr::from_abstract_name(format!("clovis-client-{local}"))
        .and_then(|address| UnixDatagram::bind_addr(&address));
    match bound {
        Ok(name) => Claim::Ours(Some(name)),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Claim::Taken,
        // A machine without such names: as if nobody else were there.
        Err(_) => Claim::Ours(None),
    }
}

/// How the program proves that it belongs to the cluster. The cluster file is the one that CLOVIS_CONFIG names, else clovis.toml here, else
/// that of the cluster folder in which the program lies (`D/bin/program`); the credential the one that CLOVIS_CREDENTIAL names, else the
/// administrator's beside the cluster file.
/// Third: where the control daemons of that file listen.
fn membership() -> Result<(Security, PathBuf, Vec<Endpoint>), BadConfig> {
    let path = match std::env::var_os("CLOVIS_CONFIG") {
        Some(path) => PathBuf::from(path),
        None => {
            let beside = std::env::args_os()
                .next()
                .map(PathBuf::from)
                .and_then(|program| Some(program.parent()?.parent()?.join("clovis.toml")));
            let found =
                [Some(PathBuf::from("clovis.toml")), beside].into_iter().flatten().find(|path| path.exists());
            found.ok_or_else(|| {
                BadConfig(
                    "which cluster? name its configuration, DIR/clovis.toml, in CLOVIS_CONFIG".to_owned(),
                )
            })?
        }
    };
    let text = std::fs::read_to_string(&path)
        .map_err(|error| BadConfig(format!("reading {}: {error}", path.display())))?;
    let file =
        ClusterFile::parse(&text).map_err(|error| BadConfig(format!("{}: {error}", path.display())))?;
    let named = std::env::var_os("CLOVIS_CREDENTIAL").map(PathBuf::from);
    let security = client::security_of(&file, &path, named.as_deref());
    let controls = file.control_members().map(|(_, endpoint)| endpoint).collect();
    Ok((security.map_err(|error| BadConfig(error.to_string()))?, path, controls))
}

/// One locality for each instance; programs have threads of their own. `CLOVIS_SPIN=off`: it never spins, so that counting tools see work only.
fn crowd() -> Arc<Crowd> {
    let is_off = std::env::var_os("CLOVIS_SPIN").is_some_and(|value| value == "off");
    Crowd::that_waits(if is_off { Waiting::Sleeping } else { Waiting::Adaptive })
}

/// The network that an endpoint is on, as far as this build can be on it.
fn fabric_of(endpoint: Endpoint) -> Result<Fabric, String> {
    match endpoint.nid.net.kind {
        NetKind::Tcp => Ok(Fabric::Tcp),
        NetKind::O2ib => {
            Err(format!("{endpoint} is on o2ib, and this build has no RDMA: use an endpoint @tcp"))
        }
        _ => {
            Err(format!("{endpoint} lives inside one process (@{}): use an endpoint @tcp", endpoint.nid.net))
        }
    }
}

type Started = Result<Arc<Shared>, Errno>;

fn start(wish: Wish) -> Result<(Arc<Shared>, JoinHandle<()>), Errno> {
    let (report, started) = mpsc::sync_channel::<Started>(1);
    let spawned = std::thread::Builder::new().name("clovis".to_owned()).spawn(move || {
        let failed = report.clone();
        crate::guard::guarded("the instance's thread", (), move || run(wish, &report));
        // Only matters if `run` ended before it reported.
        let _ = failed.try_send(Err(errno::EIO));
    });
    let thread = spawned.map_err(|error| {
        say!("m0_clovis_init: no thread: {error}");
        error.raw_os_error().map_or(errno::ENOMEM, |number| -number)
    })?;
    match started.recv() {
        Ok(Ok(shared)) => Ok((shared, thread)),
        Ok(Err(number)) => {
            let _ended = thread.join();
            Err(number)
        }
        Err(_) => Err(errno::EIO),
    }
}

/// The instance's thread, from connecting to the end.
fn run(wish: Wish, report: &mpsc::SyncSender<Started>) {
    let refused = |reason: &dyn std::fmt::Display, number: Errno| {
        say!("m0_clovis_init: {reason}");
        let _gone = report.send(Err(number));
    };
    let fabric = match fabric_of(wish.local).and_then(|fabric| fabric_of(wish.control).map(|_| fabric)) {
        Ok(fabric) => fabric,
        Err(reason) => return refused(&reason, -libc::EPROTONOSUPPORT),
    };
    let arena = match Arena::new(ArenaConfig { capacity_bytes: limits::ARENA_BYTES }) {
        Ok(arena) => arena,
        Err(error) => return refused(&format!("reserving memory for buffers: {error}"), errno::ENOMEM),
    };
    let (seed, epoch) = match (identity::unique_u64(), identity::unique_u64()) {
        (Ok(seed), Ok(epoch)) => (seed, epoch),
        (Err(error), _) | (_, Err(error)) => {
            return refused(&format!("asking the kernel for random numbers: {error}"), errno::EIO);
        }
    };
    let counters = Arc::new(Counters::default());
    let mut locality = Locality::new(LocalityConfig {
        index: 0,
        name: "clovis".to_owned(),
        seed,
        counters: Arc::clone(&counters),
        arena,
        crowd: Some(crowd()),
    });
    let clock = MonotonicClock::start();
    let handle = locality.handle();
    let config = ClientConfig {
        local: (!wish.is_dynamic).then_some(wish.local),
        control: wish.control,
        further_controls: wish.further_controls,
        security: wish.security,
        epoch,
        op_timeout: wish.op_timeout,
        read_verify: wish.read_verify,
    };
    let deadline = clock.now() + limits::INIT_TIMEOUT.min(wish.op_timeout);
    let connected = locality.block_on(&clock, async {
        handle.timeout_at(deadline, Client::connect(&handle, &fabric, config)).await
    });
    let client = match connected {
        Err(error) => return refused(&format!("waiting for events: {error}"), errno::EIO),
        Ok(Err(_elapsed)) => {
            let seconds = limits::INIT_TIMEOUT.min(wish.op_timeout).as_secs();
            let reason = format!("no answer from the control daemon at {} within {seconds} s", wish.control);
            return refused(&reason, errno::ETIMEDOUT);
        }
        Ok(Ok(Err(error))) => return refused(&error, errno::of(&error)),
        Ok(Ok(Ok(client))) => client,
    };
    let configuration = client.configuration();
    if wish.profile != Fid::default() && wish.profile != configuration.profile {
        let reason =
            format!("cc_profile {} is not the cluster's: that is {}", wish.profile, configuration.profile);
        return refused(&reason, errno::EINVAL);
    }
    if let Some(error) = memory::register(&client) {
        return refused(&format!("registering memory: {error}"), errno::ENOMEM);
    }
    let (sender, receiver) = mailbox(limits::LETTERS_MAX, handle.unparker());
    let shared = Arc::new(Shared {
        layout_id: wish.layout_id,
        process: wish.process,
        pool: configuration.pool.pool,
        ..Shared::of_this_thread(sender)
    });
    let face = Rc::new(Face::new(client, Arc::clone(&shared), receiver));
    if report.send(Ok(shared)).is_err() {
        return;
    }
    let served = locality.block_on(&clock, Rc::clone(&face).serve());
    if let Err(error) = served {
        say!("the instance's thread cannot wait for events any more: {error}");
    }
    face.report_figures(&counters);
    drop(face);
    drop(locality);
    drop(wish.name); // another client may have the endpoint's name now
}

crate::export! {
    /// `m0_clovis_init`
    fn m0_clovis_init(m0c: *mut *mut Clovis, conf: *mut Config, _init_m0: bool) -> i32 [errno::EIO] {
        if m0c.is_null() {
            say!("m0_clovis_init: nowhere to put the instance: m0c is NULL");
            return errno::EINVAL;
        }
        // SAFETY: the header's contract.
        unsafe { *m0c = ptr::null_mut() };
        // SAFETY: the header's contract.
        let wish = match unsafe { wish_of(conf) } {
            Ok(wish) => wish,
            Err(BadConfig(reason)) => {
                say!("m0_clovis_init: {reason}");
                return errno::EINVAL;
            }
        };
        match start(wish) {
            Ok((shared, thread)) => {
                let instance = Clovis {
                    mero: thread::process_instance(),
                    motr: thread::process_instance(),
                    config: conf,
                    reqh: [0; 5],
                    magic: Clovis::MAGIC,
                    shared: Arc::into_raw(shared).cast(),
                    thread: Box::into_raw(Box::new(thread)).cast(),
                    reserved: [0; 5],
                };
                // SAFETY: the header's contract.
                unsafe { *m0c = Box::into_raw(Box::new(instance)) };
                0
            }
            Err(number) => number,
        }
    }

    /// `m0_clovis_fini`
    fn m0_clovis_fini(m0c: *mut Clovis, _fini_m0: bool) [()] {
        // SAFETY: the header's contract: an instance of `m0_clovis_init`, or null.
        let Some(shared) = (unsafe { shared_of("m0_clovis_fini", m0c) }) else { return };
        // SAFETY: made by `m0_clovis_init`, given back once.
        let (instance, thread) = unsafe {
            (*m0c).magic = 0;
            let instance = Box::from_raw(m0c);
            drop(Arc::from_raw(instance.shared.cast::<Shared>()));
            let thread = Box::from_raw(instance.thread.cast::<JoinHandle<()>>());
            (instance, thread)
        };
        drop(instance);
        shared.is_stopping.store(true, Ordering::SeqCst);
        shared.post_letter(Letter::Stop);
        if shared.is_own_thread() {
            // A callback ends its own instance: the thread ends once the callback has returned.
            return;
        }
        let _ended = thread.join();
    }

    /// `m0_clovis_process_fid`
    fn m0_clovis_process_fid(m0c: *const Clovis, proc_fid: *mut crate::abi::CFid) [()] {
        // SAFETY: the header's contract.
        let Some(shared) = (unsafe { shared_of("m0_clovis_process_fid", m0c) }) else { return };
        if proc_fid.is_null() {
            say!("m0_clovis_process_fid: proc_fid is NULL");
            return;
        }
        // SAFETY: the header's contract.
        unsafe { *proc_fid = shared.process.into() };
    }

    /// `m0_clovis_layout_id`
    fn m0_clovis_layout_id(m0c: *const Clovis) -> u64 [0] {
        // SAFETY: the header's contract.
        unsafe { shared_of("m0_clovis_layout_id", m0c) }.map_or(0, |shared| u64::from(shared.layout_id))
    }
}

/// The shared part of an instance.
///
/// # Safety
/// `m0c` is null or an instance that was not given back.
pub unsafe fn shared_of(call: &str, m0c: *const Clovis) -> Option<Arc<Shared>> {
    // SAFETY: the caller's contract.
    let instance = unsafe { m0c.as_ref() }.filter(|instance| instance.magic == Clovis::MAGIC);
    let Some(instance) = instance else {
        say!("{call}: the instance is NULL or was given back");
        return None;
    };
    let shared = instance.shared.cast::<Shared>();
    // SAFETY: made by `Arc::into_raw` in `m0_clovis_init`, and given back by `m0_clovis_fini` only.
    unsafe {
        Arc::increment_strong_count(shared);
        Some(Arc::from_raw(shared))
    }
}
