//! rdma-cm: connections by address, with private data, on one nonblocking event channel.
//!
//! Queue pairs are ours, not librdmacm's: it tells what to set (`rdma_init_qp_attr`) and we set it, so the receives are posted before the
//! queue pair can receive, and the device's context is the one that our memory is registered with.

use std::ffi::CStr;
use std::net::SocketAddrV4;
use std::ptr;

use rdma_mummy_sys as ffi;
use smallvec::SmallVec;

use super::nic::Nic;
use super::tables::Slots;
use super::{checked, set_nonblocking, zeroed};
use crate::error::RdmaError;
use crate::event::{ConnectionEvent, ConnectionFailure};
use crate::work::{ConnectionId, QueuePairId};

/// How long the kernel looks for an address or a route.
const RESOLVE_MS: i32 = 2000;
/// Requests that wait for us to look.
const BACKLOG: i32 = 128;
/// Transport retries, and the time per retry: 4.096 us * 2^16 = 268 ms. The software deadlines above are shorter or longer as they
/// need; this only has to outlast a switch that converges.
const RETRIES: u8 = 7;
const ACK_TIMEOUT: u8 = 16;
/// Without end: a peer whose receives are late is slow, not broken. The liveness check above ends a dead one.
const RNR_RETRIES: u8 = 7;
/// 1.28 ms between RNR retries.
const RNR_TIMER: u8 = 14;
/// Bits of the attribute mask that old kernels answer and libibverbs refuses on Ethernet (as librdmacm masks them).
const MASK_ON_ETHERNET: libc::c_int = !0x00e0_0000;

/// An event channel and the connections on it. One thread.
pub struct ConnectionManager {
    channel: *mut ffi::rdma_event_channel,
    ids: Slots<*mut ffi::rdma_cm_id>,
}

fn socket_address(address: SocketAddrV4) -> libc::sockaddr_in {
    // SAFETY: a C structure of numbers.
    let mut raw: libc::sockaddr_in = unsafe { zeroed() };
    raw.sin_family = libc::sa_family_t::try_from(libc::AF_INET).unwrap_or(2);
    raw.sin_port = address.port().to_be();
    raw.sin_addr.s_addr = u32::from(*address.ip()).to_be();
    raw
}

fn context_of(name: u64) -> *mut libc::c_void {
    // Pointers have 64 bits, asserted below.
    ptr::without_provenance_mut(usize::try_from(name).unwrap_or(0))
}

const _: () = assert!(size_of::<usize>() == 8, "names of connections are kept in pointers");

impl ConnectionManager {
    pub(super) fn new() -> Result<ConnectionManager, RdmaError> {
        // SAFETY: takes nothing.
        let channel = unsafe { ffi::rdma_create_event_channel() };
        if channel.is_null() {
            let source = std::io::Error::last_os_error();
            return Err(match source.raw_os_error() {
                Some(libc::EOPNOTSUPP) => RdmaError::NoCore { missing: "librdmacm.so.1" },
                Some(libc::ENOENT | libc::ENODEV | libc::ENOSYS) => RdmaError::NoKernel { source },
                _ => RdmaError::Call { call: "rdma_create_event_channel", source },
            });
        }
        let manager = ConnectionManager { channel, ids: Slots::new() };
        set_nonblocking(manager.fd())?;
        Ok(manager)
    }

    /// Readable when there is an event.
    #[must_use]
    pub fn fd(&self) -> i32 {
        // SAFETY: a live channel; its descriptor is a plain number in it.
        unsafe { (*self.channel).fd }
    }

    fn create(&mut self) -> Result<(u64, *mut ffi::rdma_cm_id), RdmaError> {
        let mut id = ptr::null_mut();
        // SAFETY: a live channel; writes one pointer of ours.
        let answer = unsafe {
            ffi::rdma_create_id(self.channel, &mut id, ptr::null_mut(), ffi::rdma_port_space::RDMA_PS_TCP)
        };
        checked("rdma_create_id", answer)?;
        let name = self.ids.insert(id);
        // SAFETY: the id just made; the field is for our use.
        unsafe { (*id).context = context_of(name) };
        Ok((name, id))
    }

    fn id(&self, id: ConnectionId) -> Result<*mut ffi::rdma_cm_id, RdmaError> {
        self.ids.get(id.0).copied().ok_or(RdmaError::Gone { what: "the connection" })
    }

    /// Finds the device that has `address`.
    ///
    /// # Errors
    /// None has it.
    pub fn bind_device(&mut self, address: std::net::Ipv4Addr) -> Result<String, RdmaError> {
        let (id, device) = self.watch_device(address)?;
        self.destroy(id);
        Ok(device)
    }

    /// The same, and stays with it: [`ConnectionEvent::DeviceRemoved`] comes for this id also where there is no connection.
    ///
    /// # Errors
    /// None has it.
    pub fn watch_device(&mut self, address: std::net::Ipv4Addr) -> Result<(ConnectionId, String), RdmaError> {
        let (name, id) = self.create()?;
        let mut raw = socket_address(SocketAddrV4::new(address, 0));
        // SAFETY: a live id; reads an address of ours.
        let answer = unsafe { ffi::rdma_bind_addr(id, ptr::from_mut(&mut raw).cast()) };
        let device = checked("rdma_bind_addr", answer)
            .and_then(|()| device_name(id).ok_or(RdmaError::NotOnDevice { address, known: String::new() }));
        match device {
            Ok(device) => Ok((ConnectionId(name), device)),
            Err(error) => {
                self.destroy(ConnectionId(name));
                Err(error)
            }
        }
    }

    /// Has librdmacm let go of devices that are gone. It keeps each one open that it has ever used, which keeps the kernel from
    /// removing soft-RoCE's, and looks only when asked; while another device is left, as of rdma-core 44.
    pub fn forget_removed_devices(&mut self) {
        let mut count = 0;
        // SAFETY: writes the count; gives a list that is freed below, or null.
        let list = unsafe { ffi::rdma_get_devices(&mut count) };
        if !list.is_null() {
            // SAFETY: from rdma_get_devices, freed once.
            unsafe { ffi::rdma_free_devices(list) };
        }
    }

    /// Takes connections at `address`.
    ///
    /// # Errors
    /// The port is in use; the address is on no device.
    pub fn listen(&mut self, address: SocketAddrV4) -> Result<ConnectionId, RdmaError> {
        let (name, id) = self.create()?;
        let mut raw = socket_address(address);
        // SAFETY: a live id; reads an address of ours.
        let answer = unsafe { ffi::rdma_bind_addr(id, ptr::from_mut(&mut raw).cast()) };
        let listening = checked("rdma_bind_addr", answer).and_then(|()| {
            // SAFETY: a live, bound id.
            checked("rdma_listen", unsafe { ffi::rdma_listen(id, BACKLOG) })
        });
        match listening {
            Ok(()) => Ok(ConnectionId(name)),
            Err(error) => {
                self.destroy(ConnectionId(name));
                Err(error)
            }
        }
    }

    /// Starts to look for the way from one address to another; [`ConnectionEvent::RouteResolved`] follows.
    ///
    /// # Errors
    /// No such address here.
    pub fn dial(&mut self, from: std::net::Ipv4Addr, to: SocketAddrV4) -> Result<ConnectionId, RdmaError> {
        let (name, id) = self.create()?;
        let mut source = socket_address(SocketAddrV4::new(from, 0));
        let mut target = socket_address(to);
        // SAFETY: a live id; reads two addresses of ours.
        let answer = unsafe {
            ffi::rdma_resolve_addr(
                id,
                ptr::from_mut(&mut source).cast(),
                ptr::from_mut(&mut target).cast(),
                RESOLVE_MS,
            )
        };
        match checked("rdma_resolve_addr", answer) {
            Ok(()) => Ok(ConnectionId(name)),
            Err(error) => {
                self.destroy(ConnectionId(name));
                Err(error)
            }
        }
    }

    /// The device a connection is on, once that is known.
    #[must_use]
    pub fn device(&self, id: ConnectionId) -> Option<String> {
        device_name(self.id(id).ok()?)
    }

    fn parameters(
        nic: &Nic,
        pair: QueuePairId,
        private_data: &[u8],
    ) -> Result<ffi::rdma_conn_param, RdmaError> {
        // SAFETY: a C structure of numbers and one pointer.
        let mut parameters: ffi::rdma_conn_param = unsafe { zeroed() };
        parameters.private_data = private_data.as_ptr().cast();
        parameters.private_data_len = u8::try_from(private_data.len()).unwrap_or(u8::MAX);
        parameters.responder_resources = nic.reads_max();
        parameters.initiator_depth = nic.reads_max();
        parameters.retry_count = RETRIES;
        parameters.rnr_retry_count = RNR_RETRIES;
        parameters.srq = u8::from(nic.has_shared_receives());
        parameters.qp_num = nic.number(pair).ok_or(RdmaError::Gone { what: "the queue pair" })?;
        Ok(parameters)
    }

    /// Gives a queue pair its port, so that receives can be posted: before [`ConnectionManager::connect`], when the route is known, and
    /// before [`ConnectionManager::accept`].
    ///
    /// # Errors
    /// What the device or the kernel refuses.
    pub fn prepare(&mut self, id: ConnectionId, nic: &mut Nic, pair: QueuePairId) -> Result<(), RdmaError> {
        set_states(self.id(id)?, nic, pair, &[ffi::ibv_qp_state::IBV_QPS_INIT])
    }

    /// Asks the peer for the connection. `private_data`: at most 56 bytes.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn connect(
        &mut self,
        id: ConnectionId,
        nic: &mut Nic,
        pair: QueuePairId,
        private_data: &[u8],
    ) -> Result<(), RdmaError> {
        let raw = self.id(id)?;
        let mut parameters = ConnectionManager::parameters(nic, pair, private_data)?;
        // SAFETY: a live id with a route; reads the structure and the private data, which live until it returns.
        checked("rdma_connect", unsafe { ffi::rdma_connect(raw, &mut parameters) })
    }

    /// After [`ConnectionEvent::Accepted`]: brings our queue pair up and tells the peer.
    ///
    /// # Errors
    /// What the device or the kernel refuses.
    pub fn finish(&mut self, id: ConnectionId, nic: &mut Nic, pair: QueuePairId) -> Result<(), RdmaError> {
        let raw = self.id(id)?;
        set_states(raw, nic, pair, &CONNECTED)?;
        // SAFETY: a live id whose peer has accepted.
        checked("rdma_establish", unsafe { ffi::rdma_establish(raw) })
    }

    /// Says yes to a stranger: our queue pair can receive before the answer goes out.
    ///
    /// # Errors
    /// What the device or the kernel refuses; the stranger may have gone.
    pub fn accept(
        &mut self,
        id: ConnectionId,
        nic: &mut Nic,
        pair: QueuePairId,
        private_data: &[u8],
    ) -> Result<(), RdmaError> {
        let raw = self.id(id)?;
        set_states(raw, nic, pair, &CONNECTED)?;
        let mut parameters = ConnectionManager::parameters(nic, pair, private_data)?;
        // SAFETY: a live id with a request; reads the structure and the private data, which live until it returns.
        checked("rdma_accept", unsafe { ffi::rdma_accept(raw, &mut parameters) })
    }

    /// Says no, with a reason of at most 148 bytes, and forgets the connection.
    pub fn reject(&mut self, id: ConnectionId, private_data: &[u8]) {
        let Ok(raw) = self.id(id) else { return };
        let bytes = u8::try_from(private_data.len()).unwrap_or(u8::MAX);
        // SAFETY: a live id with a request; the data live until the call returns. A stranger that has gone needs no answer.
        let _ = unsafe { ffi::rdma_reject(raw, private_data.as_ptr().cast(), bytes) };
        self.destroy(id);
    }

    /// Tells the peer that it is over. The id stays until [`ConnectionManager::destroy`].
    pub fn disconnect(&mut self, id: ConnectionId) {
        let Ok(raw) = self.id(id) else { return };
        // SAFETY: a live id; an error says that there is nothing to end.
        let _ = unsafe { ffi::rdma_disconnect(raw) };
    }

    /// Ends and forgets a connection or a listener.
    pub fn destroy(&mut self, id: ConnectionId) {
        let Some(raw) = self.ids.remove(id.0) else { return };
        // SAFETY: live, destroyed once: it has just left the table. Its queue pair is not librdmacm's, and its events are
        // acknowledged as they are read, so the call does not wait.
        let _ = unsafe { ffi::rdma_destroy_id(raw) };
    }

    /// The next event.
    pub fn poll(&mut self) -> Option<ConnectionEvent> {
        loop {
            let mut event = ptr::null_mut();
            // SAFETY: a live channel, nonblocking; writes one pointer of ours.
            let answer = unsafe { ffi::rdma_get_cm_event(self.channel, &mut event) };
            if answer != 0 || event.is_null() {
                return None;
            }
            let said = self.read(event);
            // SAFETY: from rdma_get_cm_event, acknowledged once; everything was copied out of it.
            let _ = unsafe { ffi::rdma_ack_cm_event(event) };
            if said.is_some() {
                return said;
            }
        }
    }

    /// Copies an event; `None` for kinds and ids that mean nothing to us.
    fn read(&mut self, event: *mut ffi::rdma_cm_event) -> Option<ConnectionEvent> {
        // SAFETY: a live event until it is acknowledged; plain members.
        let (kind, status, raw, listener) =
            unsafe { ((*event).event, (*event).status, (*event).id, (*event).listen_id) };
        // SAFETY: librdmacm names a live id of this channel; the field is ours.
        let name = unsafe { (*raw).context }.addr() as u64;
        let id = ConnectionId(name);
        use ffi::rdma_cm_event_type as Kind;
        if kind == Kind::RDMA_CM_EVENT_CONNECT_REQUEST {
            // SAFETY: as above: a request names the listener it came to.
            let listener = unsafe { (*listener).context }.addr() as u64;
            let name = self.ids.insert(raw);
            // SAFETY: a new id, ours from here on; it came with the listener's context.
            unsafe { (*raw).context = context_of(name) };
            let private_data = private_data(event);
            return Some(ConnectionEvent::Requested {
                listener: ConnectionId(listener),
                id: ConnectionId(name),
                private_data,
            });
        }
        self.ids.get(name)?;
        Some(match kind {
            Kind::RDMA_CM_EVENT_ADDR_RESOLVED => {
                // SAFETY: a live id whose address is known; the answer comes as an event.
                let answer = unsafe { ffi::rdma_resolve_route(raw, RESOLVE_MS) };
                if answer == 0 {
                    return None;
                }
                ConnectionEvent::Failed(id, ConnectionFailure::Route(errno()))
            }
            Kind::RDMA_CM_EVENT_ADDR_ERROR => {
                ConnectionEvent::Failed(id, ConnectionFailure::Address(status.saturating_abs()))
            }
            Kind::RDMA_CM_EVENT_ROUTE_RESOLVED => ConnectionEvent::RouteResolved(id),
            Kind::RDMA_CM_EVENT_ROUTE_ERROR => {
                ConnectionEvent::Failed(id, ConnectionFailure::Route(status.saturating_abs()))
            }
            Kind::RDMA_CM_EVENT_CONNECT_RESPONSE => {
                ConnectionEvent::Accepted { id, private_data: private_data(event) }
            }
            Kind::RDMA_CM_EVENT_CONNECT_ERROR => {
                ConnectionEvent::Failed(id, ConnectionFailure::Connect(status.saturating_abs()))
            }
            Kind::RDMA_CM_EVENT_UNREACHABLE => {
                ConnectionEvent::Failed(id, ConnectionFailure::Unreachable(status.saturating_abs()))
            }
            Kind::RDMA_CM_EVENT_REJECTED => {
                ConnectionEvent::Rejected { id, reason: status, private_data: private_data(event) }
            }
            Kind::RDMA_CM_EVENT_ESTABLISHED => ConnectionEvent::Established(id),
            Kind::RDMA_CM_EVENT_DISCONNECTED => ConnectionEvent::Disconnected(id),
            Kind::RDMA_CM_EVENT_DEVICE_REMOVAL => ConnectionEvent::DeviceRemoved(id),
            Kind::RDMA_CM_EVENT_ADDR_CHANGE => ConnectionEvent::AddressChanged(id),
            _ => return None,
        })
    }
}

impl Drop for ConnectionManager {
    fn drop(&mut self) {
        for name in self.ids.iter().map(|(name, _)| name).collect::<Vec<_>>() {
            self.destroy(ConnectionId(name));
        }
        // SAFETY: live, destroyed once; no id of it is left.
        unsafe { ffi::rdma_destroy_event_channel(self.channel) };
    }
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn device_name(id: *mut ffi::rdma_cm_id) -> Option<String> {
    // SAFETY: a live id; the context is null until it is bound to a device.
    let verbs = unsafe { (*id).verbs };
    if verbs.is_null() {
        return None;
    }
    // SAFETY: librdmacm's open context, with its device.
    let name = unsafe { ffi::ibv_get_device_name((*verbs).device) };
    if name.is_null() {
        return None;
    }
    // SAFETY: a terminated string inside the device, copied here.
    Some(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
}

/// What came with a connection event, 64 bytes of it at most: hostile bytes of a length that the kernel vouches for.
fn private_data(event: *mut ffi::rdma_cm_event) -> SmallVec<[u8; 64]> {
    // SAFETY: a live event of a connected service, so the connection member of the union is the one.
    let (data, bytes) = unsafe { ((*event).param.conn.private_data, (*event).param.conn.private_data_len) };
    if data.is_null() {
        return SmallVec::new();
    }
    // SAFETY: librdmacm gives `bytes` bytes there, which live as long as the event.
    let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), usize::from(bytes)) };
    SmallVec::from_slice(&bytes[..bytes.len().min(64)])
}

/// Ready to receive, then ready to send.
const CONNECTED: [ffi::ibv_qp_state::Type; 2] =
    [ffi::ibv_qp_state::IBV_QPS_RTR, ffi::ibv_qp_state::IBV_QPS_RTS];

/// Brings a queue pair from state to state, with what rdma-cm says about the way.
fn set_states(
    id: *mut ffi::rdma_cm_id,
    nic: &mut Nic,
    pair: QueuePairId,
    states: &[ffi::ibv_qp_state::Type],
) -> Result<(), RdmaError> {
    use ffi::ibv_qp_attr_mask as Mask;
    // SAFETY: a live id on a device; the port is a plain number in it.
    let port = unsafe { (*id).port_num };
    let is_ethernet = nic
        .info()
        .ports
        .iter()
        .any(|found| found.number == port && found.link_layer == crate::LinkLayer::Ethernet);
    for state in states.iter().copied() {
        // SAFETY: a C structure of numbers.
        let mut attributes: ffi::ibv_qp_attr = unsafe { zeroed() };
        attributes.qp_state = state;
        let mut mask = 0;
        // SAFETY: a live id; fills the structure and the mask.
        let answer = unsafe { ffi::rdma_init_qp_attr(id, &mut attributes, &mut mask) };
        checked("rdma_init_qp_attr", answer)?;
        let has = |mask: libc::c_int, bit: Mask| mask & libc::c_int::try_from(bit.0).unwrap_or(0) != 0;
        if has(mask, Mask::IBV_QP_ACCESS_FLAGS) {
            // No atomics: nothing of ours uses them.
            attributes.qp_access_flags = (ffi::ibv_access_flags::IBV_ACCESS_REMOTE_READ
                | ffi::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE)
                .0;
        }
        if has(mask, Mask::IBV_QP_MIN_RNR_TIMER) {
            attributes.min_rnr_timer = RNR_TIMER;
        }
        if has(mask, Mask::IBV_QP_TIMEOUT) {
            attributes.timeout = ACK_TIMEOUT;
        }
        if is_ethernet {
            mask &= MASK_ON_ETHERNET;
        }
        nic.modify(pair, &mut attributes, mask)?;
    }
    Ok(())
}
