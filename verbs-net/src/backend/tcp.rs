//! `tcp`: one nonblocking connection per peer, used in both directions, under one epoll set that nests in the locality's.
//!
//! Sending: all frames of a turn leave in one vectored write per peer. Receiving: while bulk may come, a read stops at
//! the next header, so each payload byte is read straight into its destination together with the header behind it;
//! else one read takes several small messages, each copied once (counted) into its buffer.
//!
//! While one socket talks and the others are silent, it is read without asking epoll first, and after a while leaves epoll's set; epoll is
//! asked for the others from time to time ([`Hot`]), and by the locality before it sleeps, for which the socket comes back.
//! **Invariant**: a socket that is out of the set is the one in [`Hot`], waits for nothing but bytes, and is read without being asked for.
//!
//! No memory for a message: that peer's socket is not read until a buffer comes free. More frames queued for a
//! peer than `OUTBOX_FRAMES_MAX`: the same, until they have left.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use base::{Endpoint, Instant};
use runtime::poller::{Interest, PollEvent, Poller};
use runtime::{Arena, ArenaConfig, Counters, LocalityHandle};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::backend::tcp::socket::{Inward, ReadEnd, Socket};
use crate::connection::{Connection, ConnectionId, Phase};
use crate::connection_table::ConnectionTable;
use crate::error::{LocalError, NetError, StartError};
use crate::limits::{LOOK_EACH, MESSAGE_MEMORY_BYTES, OUTBOX_FRAMES_MAX};
use crate::memory_wait::MemoryWait;
use crate::protocol::{Action, Protocol};
use crate::rail::ErrorClass;

mod channel;
mod socket;

/// Token of the listener; connections have their own id, whose generation is never 0.
const LISTENER: u64 = 0;
/// Connections taken from the listener in one turn.
const ACCEPTS_PER_POLL: usize = 16;

/// The tcp backend of one machine.
pub(crate) struct TcpBackend {
    poller: Poller,
    /// With several rails each connects from its own address; else the kernel chooses.
    source: Option<Ipv4Addr>,
    listener: Option<TcpListener>,
    sockets: ConnectionTable<Socket>,
    counters: Arc<Counters>,
    events: Vec<PollEvent>,
    /// Where bytes nobody wants any more are read to.
    scratch: Vec<u8>,
    /// Where messages are received to, apart from bulk (limits.rs says why).
    messages: MemoryWait,
    /// Sockets that wait for message memory.
    hungry: Vec<ConnectionId>,
    /// Sockets whose bytes are here already, sealed or not: the kernel will not tell of them.
    ready: Vec<ConnectionId>,
    hot: Hot,
}

/// The one socket that talks, while the others are silent: it is read without asking epoll first, which saves a system call on the way
/// of each message.
#[derive(Default)]
struct Hot {
    socket: Option<ConnectionId>,
    /// Reads of it since epoll was asked: those that found something, and those that have found nothing since the last one.
    reads: u32,
    empty_reads: u32,
    /// When the last read that found nothing began.
    looked: Instant,
    /// Reads that found something since there was a sleep, or another socket talked.
    caught: u32,
    /// True if it was taken out of epoll's set.
    is_out: bool,
}

impl Hot {
    /// The others wait while it is read, so epoll is asked after so many reads with something, or as soon as so many in a row found nothing.
    const READS_MAX: u32 = 8;
    const EMPTY_READS_MAX: u32 = 8;
    /// As soon as so many reads were worth it, epoll is not to watch the socket: each segment that arrives costs its sender 0.2 us in the kernel for
    /// that. To take it out and back costs as much as five such segments.
    const CAUGHT_MIN: u32 = 64;

    fn is_over(&self) -> bool {
        self.empty_reads >= Hot::EMPTY_READS_MAX || (self.empty_reads == 0 && self.reads >= Hot::READS_MAX)
    }

    fn note(&mut self, now: Instant, frames: usize) {
        if frames == 0 {
            self.empty_reads += 1;
            self.looked = now;
        } else {
            self.empty_reads = 0;
            self.reads += 1;
            self.caught = self.caught.saturating_add(1);
        }
    }
}

/// Bytes of late bulk thrown away per read.
const SCRATCH_BYTES: usize = 64 * 1024;

impl TcpBackend {
    pub(crate) fn start(
        locality: &LocalityHandle,
        endpoint: Endpoint,
        listen: bool,
        has_rails: bool,
    ) -> Result<TcpBackend, StartError> {
        let counters = Arc::clone(locality.counters());
        let failed = |what| move |source| StartError::Io { endpoint, what, source };
        let mut poller = Poller::new().map_err(failed("epoll"))?;
        poller.count_into(Arc::clone(&counters));
        let arena = Arena::new(ArenaConfig { capacity_bytes: MESSAGE_MEMORY_BYTES })
            .map_err(failed("message memory"))?;
        let listener = if listen {
            let address = endpoint.socket_address().ok_or(StartError::PortalWithoutPort { endpoint })?;
            let listener = listen_on(endpoint, address)?;
            poller.add(listener.as_raw_fd(), LISTENER, Interest::READABLE).map_err(failed("epoll add"))?;
            Some(listener)
        } else {
            None
        };
        Ok(TcpBackend {
            poller,
            source: endpoint.nid.ipv4().filter(|_| has_rails),
            listener,
            sockets: ConnectionTable::default(),
            counters,
            events: Vec::new(),
            scratch: vec![0; SCRATCH_BYTES],
            messages: MemoryWait::new(arena, locality.unparker()),
            hungry: Vec::new(),
            ready: Vec::new(),
            hot: Hot::default(),
        })
    }

    pub(crate) fn receive_bytes(&self) -> u64 {
        self.messages.in_use_bytes()
    }

    /// True if nothing is here that no event will tell of.
    pub(crate) fn before_sleep(&mut self) -> bool {
        self.put_back();
        self.ready.is_empty()
    }

    pub(crate) fn wait_fd(&self) -> RawFd {
        self.poller.as_raw_fd()
    }

    /// True for a while after a read of the socket that talks has found nothing.
    pub(crate) fn rests(&self, now: Instant) -> bool {
        self.hot.empty_reads > 0 && now < self.hot.looked + LOOK_EACH
    }

    pub(crate) fn poll(&mut self, protocol: &mut Protocol, now: Instant, budget: usize) -> usize {
        if self.listener.is_none() && self.sockets.is_empty() {
            return 0;
        }
        let mut work = 0;
        if self.messages.is_over() {
            for id in std::mem::take(&mut self.hungry) {
                work += self.read(protocol, now, id).max(1);
            }
        }
        for id in std::mem::take(&mut self.ready) {
            work += self.read(protocol, now, id).max(1);
        }
        if let Some(id) = self.hot.socket {
            let is_readable =
                |socket: &Socket| socket.interest == Interest::READABLE && !socket.channel.is_guarded();
            // Bulk that came in part would pass for no work.
            if !self.sockets.get(id).is_some_and(is_readable) || protocol.expects_bulk(id) {
                self.put_back();
            } else if !self.hot.is_over() {
                let frames = self.read(protocol, now, id);
                self.hot.note(now, frames);
                if self.hot.caught == Hot::CAUGHT_MIN {
                    self.take_out();
                }
                return work + frames;
            }
        }
        let mut events = std::mem::take(&mut self.events);
        // An error here means our own descriptor is broken: nothing arrives, deadlines end what waits.
        let _ = self.poller.wait(Some(Duration::ZERO), &mut events);
        let talks = match events[..] {
            [] => self.hot.socket,
            [only] if only.token != LISTENER => Some(ConnectionId(only.token)),
            _ => None,
        };
        if talks != self.hot.socket {
            self.put_back();
            self.hot.socket = talks;
        }
        (self.hot.reads, self.hot.empty_reads) = (0, 0);
        for event in &events {
            if event.token == LISTENER {
                work += self.accept(protocol, now);
                continue;
            }
            let id = ConnectionId(event.token);
            if event.writable || event.error {
                self.handle_writable(protocol, now, id);
            }
            // Level-triggered: what the budget leaves is there at the next poll.
            if (event.readable || event.hung_up) && work < budget.max(1) {
                work += self.read(protocol, now, id).max(1);
            }
        }
        self.events = events;
        work
    }

    /// The socket that talks leaves epoll's set.
    fn take_out(&mut self) {
        if let Some(socket) = self.hot.socket.and_then(|id| self.sockets.get(id))
            && !self.hot.is_out
        {
            self.hot.is_out = self.poller.remove(socket.channel.stream.as_raw_fd()).is_ok();
        }
    }

    /// It is watched again, with whatever is there already.
    fn put_back(&mut self) {
        self.hot.caught = 0;
        if !std::mem::take(&mut self.hot.is_out) {
            return;
        }
        if let Some(id) = self.hot.socket
            && let Some(socket) = self.sockets.get(id)
        {
            // Fails only for want of kernel memory: then deadlines end what waits.
            let _ = self.poller.add(socket.channel.stream.as_raw_fd(), id.0, socket.interest);
        }
    }

    fn accept(&mut self, protocol: &mut Protocol, now: Instant) -> usize {
        let Some(listener) = &self.listener else { return 0 };
        let mut count = 0;
        while count < ACCEPTS_PER_POLL {
            self.counters.syscalls.add(1);
            let Ok((stream, peer)) = listener.accept() else { break };
            count += 1;
            if peer.ip().is_loopback() {
                stay_simple(&stream);
            }
            // Dropping the stream turns the stranger away.
            let Some(id) = protocol.accept(now) else { continue };
            let hello = match protocol.listening_hello() {
                Ok(hello) => hello,
                Err(fault) => {
                    protocol.handle_fault(now, id, fault.reason);
                    continue;
                }
            };
            let socket = stream
                .set_nonblocking(true)
                .and_then(|()| stream.set_nodelay(true))
                .and_then(|()| self.poller.add(stream.as_raw_fd(), id.0, Interest::READABLE))
                .map(|()| Socket::accepted(stream, hello, Interest::READABLE));
            match socket {
                Ok(socket) => self.sockets.insert(id, socket),
                Err(error) => {
                    let error = LocalError::Socket { kind: error.kind() };
                    protocol.handle_closed(now, id, NetError::Local(error));
                }
            }
        }
        count
    }

    fn dial(&mut self, protocol: &mut Protocol, now: Instant, id: ConnectionId, endpoint: Endpoint) {
        let hello = match protocol.dialling_hello() {
            Ok(hello) => hello,
            Err(fault) => return protocol.handle_fault(now, id, fault.reason),
        };
        let dialled = endpoint
            .socket_address()
            .ok_or(io::ErrorKind::AddrNotAvailable.into())
            .and_then(|address| start_connect(address, self.source))
            .and_then(|stream| {
                self.poller.add(stream.as_raw_fd(), id.0, Interest::WRITABLE)?;
                Ok(Socket::dialling(stream, hello, Interest::WRITABLE))
            });
        match dialled {
            Ok(socket) => self.sockets.insert(id, socket),
            Err(error) => {
                let error = NetError::Unreachable { endpoint, cause: error.kind() };
                protocol.handle_closed(now, id, error);
            }
        }
    }

    fn handle_writable(&mut self, protocol: &mut Protocol, now: Instant, id: ConnectionId) {
        let Some(socket) = self.sockets.get_mut(id) else { return };
        if socket.is_connecting {
            if let Some(cause) = socket.take_connect_error() {
                let error = match protocol.connection(id).and_then(|found| found.endpoint) {
                    Some(endpoint) => NetError::Unreachable { endpoint, cause },
                    None => NetError::Local(LocalError::Socket { kind: cause }),
                };
                protocol.handle_closed(now, id, error);
                return;
            }
            socket.is_connecting = false;
        }
        protocol.mark_dirty(id);
    }

    /// Reads what is there. Answer: frames.
    fn read(&mut self, protocol: &mut Protocol, now: Instant, id: ConnectionId) -> usize {
        let Some(socket) = self.sockets.get_mut(id) else { return 0 };
        if socket.is_connecting {
            return 0;
        }
        let (counters, messages) = (&*self.counters, &mut self.messages);
        let mut inward = Inward { protocol: &mut *protocol, now, id, counters, messages };
        let (frames, end) = socket.read(&mut inward, &mut self.scratch);
        match end {
            ReadEnd::Drained | ReadEnd::Budget => {}
            ReadEnd::Hungry => self.hungry.push(id),
            ReadEnd::Closed => protocol.handle_closed(now, id, NetError::RemoteDropped),
            ReadEnd::Failed(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
                protocol.handle_closed(now, id, NetError::RemoteDropped);
            }
            ReadEnd::Failed(io::ErrorKind::TimedOut) => {
                protocol.handle_closed(now, id, NetError::RemoteTimeout);
            }
            ReadEnd::Failed(kind) => {
                protocol.handle_closed(now, id, NetError::Local(LocalError::Socket { kind }));
            }
            ReadEnd::Refused(reason) => protocol.handle_fault(now, id, reason),
            ReadEnd::Misbehaved(what) => protocol.handle_misbehaviour(now, id, what),
        }
        let is_open = |connection: &mut Connection| connection.phase != Phase::Ended;
        if self.sockets.get(id).is_some_and(|socket| socket.channel.is_guarded())
            && protocol.connection(id).is_some_and(is_open)
        {
            // The handshake may have an answer, or have made way for the frames that waited for it.
            protocol.mark_dirty(id);
        }
        self.update_interest(protocol, id);
        frames
    }

    pub(crate) fn flush(&mut self, protocol: &mut Protocol, now: Instant) {
        while !protocol.actions.is_empty() || !protocol.dirty.is_empty() {
            let mut closes = Vec::new();
            for action in std::mem::take(&mut protocol.actions) {
                match action {
                    Action::Dial(id, endpoint) => self.dial(protocol, now, id, endpoint),
                    Action::Close(id) => closes.push(id),
                    // Nothing of ours binds anything: remote access is for nets whose hardware moves the bytes.
                    Action::Revoke(bound, cookie) => protocol.handle_revoked(bound, cookie),
                }
            }
            while let Some(id) = protocol.dirty.pop_front() {
                self.write(protocol, now, id);
            }
            for id in closes {
                self.write(protocol, now, id);
                if let Some(mut socket) = self.sockets.remove(id) {
                    // Not one of these has left whole, so the peer has none of them.
                    for message in socket.take_unsent_messages() {
                        protocol.handle_undelivered(now, id, message, ErrorClass::LocalAborted);
                    }
                    // The set forgets a closed descriptor by itself, but only if nobody duplicated it.
                    let _ = self.poller.remove(socket.channel.stream.as_raw_fd());
                }
                self.hungry.retain(|other| *other != id);
                self.ready.retain(|other| *other != id);
                protocol.forget(id);
            }
        }
        self.messages.prepare();
    }

    fn write(&mut self, protocol: &mut Protocol, now: Instant, id: ConnectionId) {
        let Some(connection) = protocol.connection(id) else { return };
        connection.is_dirty = false;
        let Some(socket) = self.sockets.get_mut(id) else { return };
        socket.take_outbox(connection);
        if socket.is_connecting {
            return;
        }
        if socket.unsent_frames() == 0 && !socket.channel.has_leaving() {
            return;
        }
        let flushed = socket.channel.flush(&self.counters);
        let (wrote, written) = socket.write(&self.counters);
        let result = flushed.and(written);
        let is_backlogged = socket.unsent_frames() > 0 || socket.channel.has_leaving();
        for transfer in socket.take_completed() {
            protocol.handle_handed(transfer);
        }
        if let Some(connection) = protocol.connection(id) {
            if wrote {
                // The kernel took bytes, so the peer acknowledges some: a sign of life while it owes us room.
                if connection.is_backlogged {
                    connection.hear(now);
                }
            }
            if is_backlogged && !connection.is_backlogged {
                connection.start_waiting(now);
            }
            connection.is_backlogged = is_backlogged;
        }
        if is_backlogged {
            protocol.watch(now);
        }
        if let Err(error) = result {
            if self.sockets.get(id).is_some_and(|socket| socket.channel.is_guarded()) {
                // The peer may have said why before it went away.
                self.read(protocol, now, id);
            }
            let error = match error.kind() {
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => NetError::RemoteDropped,
                kind => NetError::Local(LocalError::Socket { kind }),
            };
            protocol.handle_closed(now, id, error);
        }
        self.update_interest(protocol, id);
    }

    /// What to wait for at a socket: room while bytes are queued, bytes unless it has to wait for memory or for its own answers.
    fn update_interest(&mut self, protocol: &mut Protocol, id: ConnectionId) {
        let Some(socket) = self.sockets.get_mut(id) else { return };
        let queued = protocol.connection(id).map_or(0, |connection| connection.outbox.len());
        if socket.is_at_ease() && socket.interest == Interest::READABLE && queued <= OUTBOX_FRAMES_MAX {
            return;
        }
        let can_read = !socket.is_hungry && socket.unsent_frames() + queued <= OUTBOX_FRAMES_MAX;
        let wants_room = socket.channel.has_leaving()
            || (socket.unsent_frames() > 0 && socket.channel.takes_frames())
            || socket.is_connecting;
        let interest = match (can_read && !socket.is_connecting, wants_room) {
            (true, true) => Interest::BOTH,
            (true, false) => Interest::READABLE,
            (false, true) => Interest::WRITABLE,
            (false, false) => Interest::NONE,
        };
        if can_read && !socket.is_connecting && socket.channel.has_arrived() && !self.ready.contains(&id) {
            self.ready.push(id);
        }
        if interest != socket.interest {
            socket.interest = interest;
            if self.hot.is_out && self.hot.socket == Some(id) {
                return self.put_back();
            }
            // Cannot fail for a descriptor that is open and in the set.
            let _ = self.poller.modify(socket.channel.stream.as_raw_fd(), id.0, interest);
        }
    }
}

fn listen_on(endpoint: Endpoint, address: SocketAddrV4) -> Result<TcpListener, StartError> {
    let bound = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    bound.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => StartError::PortInUse { endpoint, address: address.to_string() },
        io::ErrorKind::AddrNotAvailable => StartError::NoSuchAddress { endpoint, address },
        _ => StartError::Io { endpoint, what: "listen", source },
    })
}

/// Starts a connect; the socket turns writable when it is made or has failed.
fn start_connect(address: SocketAddrV4, source: Option<Ipv4Addr>) -> io::Result<TcpStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    if let Some(source) = source {
        rustix::net::bind(&socket, &SocketAddr::V4(SocketAddrV4::new(source, 0)))?;
    }
    if address.ip().is_loopback() {
        stay_simple(&socket);
    }
    match rustix::net::connect(&socket, &SocketAddr::V4(address)) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Between processes of one host nothing is congested, and the kernel's oldest algorithm costs least: a model of the path and pacing take
/// 5 % of the time that a small message is on its way. Who may not choose keeps the system's.
fn stay_simple(socket: &impl AsFd) {
    let _ = rustix::net::sockopt::set_tcp_congestion(socket, "reno");
}
