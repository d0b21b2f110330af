//! Who is let in, as whom, and who has to go: the part of the core that judges what a secure hello has proved.
//!
//! **Invariant**: with certificates, no connection is up whose peer is not known by its certificate, was revoked, or has ended.
//! **Invariant**: an incarnation of an endpoint belongs to one credential: further connections and rails of it show the same one.
//! Bound: [`IDENTITIES_MAX`] identities are remembered past their connection, so that a request which came before it went is
//! judged by who sent it.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::{Endpoint, Instant, Right, Rights};

use crate::connection::{ConnectionId, Phase};
use crate::error::{NetError, RefuseReason};
use crate::hello::Hello;
use crate::limits::{CONNECTIONS_MAX, ms};
use crate::machine::PeerId;
use crate::protocol::Protocol;
use crate::rail::Rail;
use crate::security::{self, Established, HelloFault, Identity, SecureHello, Security};

/// Identities that a machine remembers: of each connection, and as many that have gone.
const IDENTITIES_MAX: usize = 2 * CONNECTIONS_MAX;

/// The incarnations that are or were here, and whose they are.
#[derive(Default)]
pub(crate) struct Admissions {
    known: BTreeMap<PeerId, Arc<Identity>>,
    /// Of the revocations that have been looked at.
    generation: u64,
}

impl Protocol {
    /// What a connection that we make begins with; `None`: a plain hello.
    pub(crate) fn dialling_hello(&self) -> Result<Option<Box<dyn SecureHello>>, HelloFault> {
        self.security.credential().map(|credential| security::dial(credential)).transpose()
    }

    /// What a connection that we take begins with.
    pub(crate) fn listening_hello(&self) -> Result<Option<Box<dyn SecureHello>>, HelloFault> {
        self.security.credential().map(|credential| security::listen(credential)).transpose()
    }

    /// The peer at the other end has proved who it is; its hello follows.
    pub(crate) fn handle_established(&mut self, id: ConnectionId, peer: &Established) {
        self.stats.secured += 1;
        self.stats.sealed += u64::from(peer.is_sealed);
        if let Some(connection) = self.connection(id) {
            connection.identity = Some(Arc::clone(&peer.identity));
        }
    }

    /// A secure hello failed: the connection ends, and one that we made says why.
    pub(crate) fn handle_fault(&mut self, now: Instant, id: ConnectionId, reason: RefuseReason) {
        let Some(connection) = self.connection(id) else { return };
        if connection.phase == Phase::Ended {
            return;
        }
        let is_dialled = connection.is_dialled;
        connection.outbox.clear();
        self.stats.hello_faults += 1;
        self.stats.last_hello_fault = Some(reason);
        if is_dialled {
            self.stats.refused_by_peer += 1;
        } else {
            self.stats.refused_by_us += 1;
        }
        self.lose(now, id, NetError::Refused { reason });
    }

    /// Judges who sent a hello: by the shared secret, or by what the certificate says.
    pub(crate) fn judge_sender(
        &mut self,
        now: Instant,
        id: ConnectionId,
        hello: &Hello,
    ) -> Result<(), RefuseReason> {
        let credential = match &self.security {
            Security::Shared(token) if token.matches(hello.token_bytes()) => return Ok(()),
            Security::Shared(_) => return Err(RefuseReason::Token),
            Security::Certificates(credential) => Arc::clone(credential),
        };
        let Some(connection) = self.connection(id) else { return Err(RefuseReason::NoCredential) };
        let identity = connection.identity.clone().ok_or(RefuseReason::NoCredential)?;
        if credential.revocations().contains(identity.id) {
            return Err(RefuseReason::Revoked);
        }
        let left_s = identity.expires_unix_s.saturating_sub(credential.now_unix_s());
        if left_s == 0 {
            return Err(RefuseReason::Expired);
        }
        if !identity.rights.has(Right::Connect) {
            return Err(RefuseReason::NoConnectRight);
        }
        connection.expires_at = now + ms(left_s.saturating_mul(1000));
        self.judge_place(&hello.endpoint, hello.epoch, &identity)
    }

    /// An endpoint that somebody else holds is not given away, except to a daemon: no client may stand in its place.
    fn judge_place(
        &mut self,
        endpoint: &Endpoint,
        epoch: u64,
        identity: &Identity,
    ) -> Result<(), RefuseReason> {
        let known = self.admissions.known.get(&PeerId { endpoint: *endpoint, epoch });
        if known.is_some_and(|known| known.id != identity.id) {
            return Err(RefuseReason::NotYours);
        }
        let up = self.peers.get(endpoint).and_then(|peer| peer.rails.iter().find_map(Rail::up));
        let holder = up.and_then(|up| self.connection(up)).and_then(|holder| holder.identity.clone());
        match holder {
            Some(holder) if holder.name != identity.name && !identity.rights.has(Right::Serve) => {
                Err(RefuseReason::NotYours)
            }
            _ => Ok(()),
        }
    }

    /// A connection is up: whose it is stays known.
    pub(crate) fn admit_peer(&mut self, id: ConnectionId, peer: PeerId) {
        let Some(identity) = self.connection(id).and_then(|connection| connection.identity.clone()) else {
            return;
        };
        let expires_at = self.connection(id).map_or(Instant::NEVER, |connection| connection.expires_at);
        self.set_timer(expires_at);
        let Admissions { known, .. } = &mut self.admissions;
        // Of the same place only the present incarnation.
        let place = PeerId::any(peer.endpoint)..=PeerId { endpoint: peer.endpoint, epoch: u64::MAX };
        let former: Vec<PeerId> = known.range(place).map(|(former, _)| *former).collect();
        former.iter().for_each(|former| drop(known.remove(former)));
        if known.len() >= IDENTITIES_MAX {
            let peers = &self.peers;
            let gone = known.keys().find(|former| !peers.contains_key(&former.endpoint)).copied();
            if let Some(gone) = gone.or_else(|| known.keys().next().copied()) {
                known.remove(&gone);
            }
        }
        known.insert(peer, identity);
    }

    /// Whose incarnation that is or was; `None` where nobody asks for certificates, and for strangers.
    pub(crate) fn identity(&self, peer: PeerId) -> Option<&Arc<Identity>> {
        self.admissions.known.get(&peer)
    }

    /// What that incarnation may do.
    pub(crate) fn rights(&self, peer: PeerId) -> Rights {
        match &self.security {
            Security::Shared(_) => Rights::ALL,
            Security::Certificates(_) => self.identity(peer).map_or(Rights::NONE, |identity| identity.rights),
        }
    }

    /// Ends the connections of credentials that were revoked since the last look. One comparison, until there are some.
    pub(crate) fn apply_revocations(&mut self, now: Instant) {
        let Some(credential) = self.security.credential() else { return };
        let generation = credential.revocations().generation();
        if generation == self.admissions.generation {
            return;
        }
        self.admissions.generation = generation;
        let revocations = Arc::clone(credential.revocations());
        self.admissions.known.retain(|_, identity| !revocations.contains(identity.id));
        for id in self.open_connections() {
            let identity = self.connection(id).and_then(|connection| connection.identity.clone());
            if identity.is_some_and(|identity| revocations.contains(identity.id)) {
                self.stats.hello_faults += 1;
                self.stats.last_hello_fault = Some(RefuseReason::Revoked);
                self.lose(now, id, NetError::Refused { reason: RefuseReason::Revoked });
            }
        }
    }
}
