//! What one transfer machine has seen: plain counts, for ADDB, `clovis net` and tests.

use base::Endpoint;

use crate::error::{PeerMisbehaved, RefuseReason};

/// Counts since the start of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetStats {
    /// Messages handed to the net.
    pub messages_sent: u64,
    /// Messages given to the rpc layer.
    pub messages_received: u64,
    /// PUTs and GETs placed in or answered from a descriptor with memory of its own.
    pub operations_served: u64,
    /// PUTs and GETs dropped because no entry matched.
    pub dropped_no_match: u64,
    /// PUTs and GETs dropped because they were too long for the entry that matched.
    pub dropped_too_long: u64,
    /// PUTs and GETs that lazy portals have kept for a while.
    pub kept_early: u64,
    /// Peers that have told what they are.
    pub discoveries: u64,
    /// Frames dropped because their number had come before.
    pub replayed: u64,
    /// Bulk bytes handed to the net.
    pub bulk_bytes_sent: u64,
    /// Bulk bytes that arrived in their destination.
    pub bulk_bytes_received: u64,
    /// Bulk bytes that arrived for memory no longer exposed or a transfer no longer wanted, and were thrown away.
    pub bulk_bytes_late: u64,
    /// Connections we tried to make.
    pub dials: u64,
    /// Connections taken from the listener (before any hello).
    pub accepts: u64,
    /// Hellos completed, both directions.
    pub peers_up: u64,
    /// Peers lost after a completed hello.
    pub peers_lost: u64,
    /// Further rails to peers that were up.
    pub rails_up: u64,
    /// Rails lost while their peer had another.
    pub rails_lost: u64,
    /// Messages sent again over another rail.
    pub resends: u64,
    /// Messages that a lost rail did not deliver and no other took.
    pub undelivered: u64,
    /// Replies withheld because the rail of the pushes before them was gone.
    pub replies_withheld: u64,
    /// Connections up now.
    pub peers_connected: u64,
    /// Hellos that we refused.
    pub refused_by_us: u64,
    /// Our hellos that were refused.
    pub refused_by_peer: u64,
    /// Connections whose ends proved who they are, and those of them that are encrypted as a whole.
    pub secured: u64,
    /// See `secured`.
    pub sealed: u64,
    /// Connections that a certificate ended: wrong, ended, revoked, missing.
    pub hello_faults: u64,
    /// Accepted connections that did not complete their hello in time.
    pub hello_timeouts: u64,
    /// Connections turned away because too many were half open or open.
    pub turned_away: u64,
    /// Connections ended because the peer broke the protocol (garbage from strangers included).
    pub misbehaved: u64,
    /// Messages and frames of another incarnation, dropped.
    pub stale_dropped: u64,
    /// Naks sent and received.
    pub naks: u64,
    /// Pings sent.
    pub pings: u64,
    /// Messages not taken for want of credit or queue.
    pub sends_refused: u64,
    /// Transfers that ended in an error.
    pub transfers_failed: u64,
    /// Work requests posted to a device, receives included.
    pub work_requests: u64,
    /// Completions taken from a device.
    pub completions: u64,
    /// Batches told to a device.
    pub doorbells: u64,
    /// Memory regions registered with a device.
    pub registrations: u64,
    /// Bytes that receives hold now, in the memory that the transport has for them.
    pub receive_bytes: u64,
    /// The last refusal by us: who (as claimed) and why.
    pub last_refused: Option<(Endpoint, RefuseReason)>,
    /// What was wrong with the last of `hello_faults`.
    pub last_hello_fault: Option<RefuseReason>,
    /// The last breach of protocol: who (where known) and what.
    pub last_misbehaved: Option<(Option<Endpoint>, PeerMisbehaved)>,
}
