//! The same items in a binary without RDMA: nothing can be opened, so nothing else can be called.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddrV4};

use runtime_sys::{Arena, Buffer, SharedBuffer};

use crate::device::{Capabilities, DeviceInfo, Without};
use crate::error::{PostError, RdmaError};
use crate::event::{AsyncEvent, ConnectionEvent};
use crate::work::{
    Access, Completed, ConnectionId, ExposureId, NicConfig, NicCounts, QueuePairId, Segment, Work,
};

/// rdma-core, which this binary cannot open.
#[derive(Clone, Debug)]
pub struct Library(Infallible);

/// A device in use.
pub struct Nic(Infallible);

/// An event channel.
pub struct ConnectionManager(Infallible);

#[allow(missing_docs, clippy::missing_errors_doc, clippy::must_use_candidate)] // as in `real`; never reached
impl Library {
    /// Always refuses.
    ///
    /// # Errors
    /// [`RdmaError::NotBuilt`].
    pub fn open() -> Result<Library, RdmaError> {
        Err(RdmaError::NotBuilt)
    }
    pub fn devices(&self, _: Without) -> Result<Vec<DeviceInfo>, RdmaError> {
        match self.0 {}
    }
    pub fn open_nic(&self, _: NicConfig) -> Result<Nic, RdmaError> {
        match self.0 {}
    }
    pub fn connection_manager(&self) -> Result<ConnectionManager, RdmaError> {
        match self.0 {}
    }
}

#[allow(missing_docs, clippy::missing_errors_doc, clippy::must_use_candidate)] // as in `real`; never reached
impl Nic {
    pub fn info(&self) -> &DeviceInfo {
        match self.0 {}
    }
    pub fn has_active_port(&self) -> bool {
        match self.0 {}
    }
    pub fn capabilities(&self) -> Capabilities {
        match self.0 {}
    }
    pub fn counts(&self) -> NicCounts {
        match self.0 {}
    }
    pub fn completion_fd(&self) -> i32 {
        match self.0 {}
    }
    pub fn async_fd(&self) -> i32 {
        match self.0 {}
    }
    pub fn close(&mut self) {
        match self.0 {}
    }
    pub fn register(&mut self, _: &Arena) -> Result<(), RdmaError> {
        match self.0 {}
    }
    pub fn create_queue_pair(&mut self) -> Result<QueuePairId, RdmaError> {
        match self.0 {}
    }
    pub fn in_flight(&self, _: QueuePairId) -> usize {
        match self.0 {}
    }
    pub fn is_failed(&self, _: QueuePairId) -> bool {
        match self.0 {}
    }
    pub fn fail(&mut self, _: QueuePairId) {
        match self.0 {}
    }
    pub fn destroy_queue_pair(&mut self, _: QueuePairId) {
        match self.0 {}
    }
    pub fn expose(
        &mut self,
        _: QueuePairId,
        _: SharedBuffer,
        _: Access,
    ) -> Result<(ExposureId, Segment), RdmaError> {
        match self.0 {}
    }
    pub fn uses_windows(&self) -> bool {
        match self.0 {}
    }
    pub fn conceal(&mut self, _: ExposureId) -> Option<SharedBuffer> {
        match self.0 {}
    }
    pub fn is_exposed(&self, _: ExposureId) -> bool {
        match self.0 {}
    }
    pub fn arm(&mut self) {
        match self.0 {}
    }
    pub fn drain_channel(&mut self) {
        match self.0 {}
    }
    pub fn poll_async(&mut self) -> Option<AsyncEvent> {
        match self.0 {}
    }
    pub fn post(&mut self, _: QueuePairId, _: &mut VecDeque<(u64, Work)>) -> Result<usize, PostError> {
        match self.0 {}
    }
    pub fn receives_wanted(&self, _: Option<QueuePairId>) -> u32 {
        match self.0 {}
    }
    pub fn shares_receives(&self) -> bool {
        match self.0 {}
    }
    pub fn post_receives(&mut self, _: Option<QueuePairId>, _: Vec<Buffer>) -> Result<(), PostError> {
        match self.0 {}
    }
    pub fn poll(&mut self, _: usize, _: &mut VecDeque<Completed>) -> usize {
        match self.0 {}
    }
}

#[allow(missing_docs, clippy::missing_errors_doc, clippy::must_use_candidate)] // as in `real`; never reached
impl ConnectionManager {
    pub fn fd(&self) -> i32 {
        match self.0 {}
    }
    pub fn bind_device(&mut self, _: Ipv4Addr) -> Result<String, RdmaError> {
        match self.0 {}
    }
    pub fn watch_device(&mut self, _: Ipv4Addr) -> Result<(ConnectionId, String), RdmaError> {
        match self.0 {}
    }
    pub fn forget_removed_devices(&mut self) {
        match self.0 {}
    }
    pub fn listen(&mut self, _: SocketAddrV4) -> Result<ConnectionId, RdmaError> {
        match self.0 {}
    }
    pub fn dial(&mut self, _: Ipv4Addr, _: SocketAddrV4) -> Result<ConnectionId, RdmaError> {
        match self.0 {}
    }
    pub fn device(&self, _: ConnectionId) -> Option<String> {
        match self.0 {}
    }
    pub fn connect(
        &mut self,
        _: ConnectionId,
        _: &mut Nic,
        _: QueuePairId,
        _: &[u8],
    ) -> Result<(), RdmaError> {
        match self.0 {}
    }
    pub fn prepare(&mut self, _: ConnectionId, _: &mut Nic, _: QueuePairId) -> Result<(), RdmaError> {
        match self.0 {}
    }
    pub fn finish(&mut self, _: ConnectionId, _: &mut Nic, _: QueuePairId) -> Result<(), RdmaError> {
        match self.0 {}
    }
    pub fn accept(
        &mut self,
        _: ConnectionId,
        _: &mut Nic,
        _: QueuePairId,
        _: &[u8],
    ) -> Result<(), RdmaError> {
        match self.0 {}
    }
    pub fn reject(&mut self, _: ConnectionId, _: &[u8]) {
        match self.0 {}
    }
    pub fn disconnect(&mut self, _: ConnectionId) {
        match self.0 {}
    }
    pub fn destroy(&mut self, _: ConnectionId) {
        match self.0 {}
    }
    pub fn poll(&mut self) -> Option<ConnectionEvent> {
        match self.0 {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_for_rdma_says_how_to_get_it() {
        let error = Library::open().unwrap_err();
        assert!(matches!(error, RdmaError::NotBuilt));
        assert!(error.to_string().contains("--features rdma"));
        assert!(!crate::is_built());
    }
}
