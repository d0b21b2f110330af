//! What of ours is bound for which connection: memory windows or pool keys, from the message that tells of them to their end.

use std::collections::BTreeMap;

use base::units::narrow;
use smallvec::SmallVec;
use verbs_sys::{Access, ExposureId, Work};

use super::sealed::Room;
use super::{Tag, VerbsBackend};
use crate::connection::ConnectionId;
use crate::descriptor::BulkCookie;
use crate::exposure::{BindingScope, ExposedPart};
use crate::protocol::Protocol;
use crate::remote::{RemoteAccess, RemoteExposure, RemoteSegment, encode_exposure};
use crate::security::{Place, Seal, SealedOperation};

struct Bound {
    exposures: Vec<ExposureId>,
    segments: Vec<RemoteSegment>,
    /// What opens the segments, on a sealed connection: they are copies then.
    seals: SmallVec<[Seal; 4]>,
    is_revoked: bool,
}

/// All bindings of one machine.
pub(super) struct Bindings {
    uses_windows: bool,
    bound: BTreeMap<(ConnectionId, BulkCookie), Bound>,
    of: BTreeMap<ExposureId, (ConnectionId, BulkCookie)>,
}

impl Bindings {
    pub(super) fn new(uses_windows: bool) -> Bindings {
        Bindings { uses_windows, bound: BTreeMap::new(), of: BTreeMap::new() }
    }

    /// One range has ended; answers the exposure if that was its last.
    pub(super) fn handle_concealed(&mut self, exposure: ExposureId) -> Option<(ConnectionId, BulkCookie)> {
        let name = self.of.remove(&exposure)?;
        let bound = self.bound.get_mut(&name)?;
        bound.exposures.retain(|other| *other != exposure);
        if !bound.exposures.is_empty() {
            return None;
        }
        self.bound.remove(&name);
        Some(name)
    }

    /// True if that exposure is bound for that connection.
    pub(super) fn knows(&self, id: ConnectionId, cookie: BulkCookie) -> bool {
        self.bound.contains_key(&(id, cookie))
    }

    /// The connection is gone.
    pub(super) fn forget(&mut self, id: ConnectionId) {
        self.bound.retain(|(connection, _), _| *connection != id);
        self.of.retain(|_, (connection, _)| *connection != id);
    }
}

impl VerbsBackend {
    /// Binds what a message exposes, and answers its extension.
    pub(super) fn bind_all(
        &mut self,
        protocol: &mut Protocol,
        id: ConnectionId,
        cookies: &[BulkCookie],
        room: &mut Room,
    ) -> Vec<u8> {
        let mut extension = Vec::new();
        for cookie in cookies {
            if let Some(exposure) = self.bind(protocol, id, *cookie, room) {
                encode_exposure(&exposure, &mut extension);
            }
        }
        extension
    }

    fn bind(
        &mut self,
        protocol: &mut Protocol,
        id: ConnectionId,
        cookie: BulkCookie,
        room: &mut Room,
    ) -> Option<RemoteExposure> {
        let pair = self.links.get(&id)?.pair?;
        let view = protocol.exposure_view(cookie)?;
        let (key, remote_access) = (view.key, view.access);
        let parts: Vec<_> = view
            .parts
            .iter()
            .filter_map(|part| match part {
                ExposedPart::Source(part) => Some((*part).clone()),
                // Sinks of this net are shared from the start (`Protocol::expose_sink`).
                ExposedPart::Sink(_) => None,
            })
            .collect();
        drop(view);
        let access = match remote_access {
            RemoteAccess::Read => Access::Read,
            RemoteAccess::Write => Access::Write,
        };
        // A resend over the same connection finds the keys of the first sending.
        if !self.bindings.bound.contains_key(&(id, cookie)) {
            let mut bound = Bound {
                exposures: Vec::new(),
                segments: Vec::new(),
                seals: SmallVec::new(),
                is_revoked: false,
            };
            let (is_sealed, operation) = (access == Access::Read && self.seals(id), SealedOperation::Pull);
            for (index, mut part) in parts.into_iter().enumerate() {
                if is_sealed {
                    // At most BULK_SEGMENTS_MAX segments.
                    let segment_index = u8::try_from(index).unwrap_or(u8::MAX);
                    let place = Place { operation, segment_index, name: cookie.0, key };
                    let copied = room.parts.pop_front();
                    let sealed = copied.and_then(|into| self.seal_copy(protocol, id, &place, &part, into));
                    let Some((copy, seal)) = sealed else {
                        self.unbind_part_way(id, bound.exposures);
                        return None;
                    };
                    part = copy;
                    bound.seals.push(seal);
                }
                let exposed = self.nic.expose(pair, part, access);
                let Ok((exposure, segment)) = exposed else {
                    // No window or no memory to pin: what was bound ends, and the message goes without.
                    self.unbind_part_way(id, bound.exposures);
                    return None;
                };
                bound.exposures.push(exposure);
                bound.segments.push(RemoteSegment {
                    address: segment.address,
                    rkey: segment.key,
                    bytes: segment.bytes,
                });
                self.bindings.of.insert(exposure, (id, cookie));
            }
            if self.bindings.uses_windows {
                for exposure in bound.exposures.clone() {
                    let tag = self.tag(Tag::Bind);
                    self.queue(id, tag, Work::Bind(exposure));
                }
            }
            self.bindings.bound.insert((id, cookie), bound);
        }
        let bound = self.bindings.bound.get(&(id, cookie))?;
        let are_windows = self.bindings.uses_windows;
        protocol.handle_bound(
            id,
            cookie,
            if are_windows { BindingScope::Window } else { BindingScope::Pool },
        );
        let (segments, seals) = (bound.segments.iter().copied().collect(), bound.seals.clone());
        debug_assert!(bound.segments.iter().all(|segment| narrow(u64::from(segment.bytes)) > 0));
        Some(RemoteExposure { cookie, key, access: remote_access, are_windows, segments, seals })
    }

    /// Not all of it could be bound: what was, ends.
    fn unbind_part_way(&mut self, id: ConnectionId, exposures: Vec<ExposureId>) {
        for exposure in exposures {
            self.bindings.of.remove(&exposure);
            if self.nic.conceal(exposure).is_none() {
                let tag = self.tag(Tag::Invalidate);
                self.queue(id, tag, Work::Invalidate(exposure));
            }
        }
    }

    /// The core wants an exposure's windows gone on that connection; the last `Concealed` tells it. Pool keys: the peer has said that it is
    /// done, and what the device holds of the memory goes at once.
    pub(super) fn revoke(&mut self, protocol: &mut Protocol, id: ConnectionId, cookie: BulkCookie) {
        if !self.bindings.uses_windows {
            for exposure in
                self.bindings.bound.remove(&(id, cookie)).map_or(Vec::new(), |bound| bound.exposures)
            {
                self.bindings.of.remove(&exposure);
                drop(self.nic.conceal(exposure));
            }
            return protocol.handle_revoked(id, cookie);
        }
        let Some(bound) = self.bindings.bound.get_mut(&(id, cookie)) else {
            return protocol.handle_revoked(id, cookie);
        };
        if std::mem::replace(&mut bound.is_revoked, true) {
            return;
        }
        for exposure in bound.exposures.clone() {
            let tag = self.tag(Tag::Invalidate);
            self.queue(id, tag, Work::Invalidate(exposure));
        }
    }

    /// Pool keys: what the core counts as done is no longer ours to hold.
    pub(super) fn conceal_settled(&mut self, protocol: &mut Protocol) {
        if self.bindings.uses_windows {
            return;
        }
        let settled: Vec<(ConnectionId, BulkCookie)> = self
            .bindings
            .bound
            .keys()
            .copied()
            .filter(|(id, cookie)| !protocol.is_bound(*cookie, *id))
            .collect();
        for name in settled {
            let Some(bound) = self.bindings.bound.remove(&name) else { continue };
            for exposure in bound.exposures {
                self.bindings.of.remove(&exposure);
                drop(self.nic.conceal(exposure));
            }
        }
    }
}
