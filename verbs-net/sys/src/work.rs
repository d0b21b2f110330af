//! What is posted to a queue pair and what comes back: plain values, the same with and without RDMA.

use runtime_sys::{Arena, Buffer, SharedBuffer};
use smallvec::SmallVec;

use crate::device::Without;
use crate::error::CompletionError;

/// Names one queue pair of one [`crate::Nic`]; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueuePairId(pub(crate) u64);

/// Names one rdma-cm id of one [`crate::ConnectionManager`]; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub(crate) u64);

/// Names one exposed range of one [`crate::Nic`]; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExposureId(pub(crate) u64);

/// What a peer may do with exposed memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// RDMA READ.
    Read,
    /// RDMA WRITE.
    Write,
}

/// A peer's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Its address at the peer.
    pub address: u64,
    /// The key for it.
    pub key: u32,
}

/// An exposed range as the peer has to name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte.
    pub address: u64,
    /// Key: of this range only (a memory window), or of all remotely accessible memory of the process (a pool key).
    pub key: u32,
    /// Bytes.
    pub bytes: u32,
}

/// One operation, with everything that it needs until it completes.
#[derive(Debug)]
pub enum Work {
    /// Sends `head` and then `payload` as one message. `head` is at most [`crate::work::HEAD_BYTES_MAX`].
    Send {
        /// Copied at post: headers, not data.
        head: SmallVec<[u8; 128]>,
        /// Sent from where it lies.
        payload: Option<SharedBuffer>,
        /// A key of the peer's to invalidate with the message.
        invalidates: Option<u32>,
    },
    /// Fills `into` from the peer's memory.
    Read {
        /// Filled over its whole length.
        into: Buffer,
        /// From where.
        from: Remote,
    },
    /// Writes all of `from` to the peer's memory.
    Write {
        /// The bytes.
        from: SharedBuffer,
        /// To where.
        to: Remote,
    },
    /// Binds the memory window of an exposure that [`crate::Nic::expose`] made; before the message that tells of it.
    Bind(ExposureId),
    /// Ends the memory window of an exposure; its completion gives the memory back.
    Invalidate(ExposureId),
}

/// Bytes of `head` in [`Work::Send`] at most: a frame's header and the segments of two descriptors.
pub const HEAD_BYTES_MAX: usize = 4096;

/// What an operation held.
#[derive(Debug, Default)]
pub enum Memory {
    /// Nothing.
    #[default]
    None,
    /// A buffer that was read into.
    Own(Buffer),
    /// Bytes that were sent, written or exposed.
    Shared(SharedBuffer),
}

/// Something that completed.
#[derive(Debug)]
pub enum Completed {
    /// An operation of ours.
    Work {
        /// Where it was posted.
        queue_pair: QueuePairId,
        /// As given at post.
        tag: u64,
        /// What it held. After an error too: the hardware does not touch it any more.
        memory: Memory,
        /// How it went.
        result: Result<(), CompletionError>,
    },
    /// A message came.
    Received {
        /// From where.
        queue_pair: QueuePairId,
        /// Its bytes: `buffer[..bytes]`.
        buffer: Buffer,
        /// How many.
        bytes: usize,
    },
    /// An exposure has ended: no peer can touch its memory any more.
    Concealed {
        /// Which.
        exposure: ExposureId,
        /// Its memory.
        memory: SharedBuffer,
    },
}

/// Sizes of one [`crate::Nic`].
#[derive(Clone, Debug)]
pub struct NicConfig {
    /// The device.
    pub device: String,
    /// Queue pairs at most: the completion queue has room for all their operations.
    pub queue_pairs_max: u32,
    /// Operations in flight per queue pair.
    pub sends_per_queue_pair: u32,
    /// Receives posted for all queue pairs together (or for each, where there is no shared receive queue:
    /// [`NicConfig::receives_without_shared`]).
    pub receives: u32,
    /// Receives per queue pair where there is no shared queue.
    pub receives_without_shared: u32,
    /// Bytes to ask for to be sent inline; the device may give less.
    pub inline_bytes: u32,
    /// Memory windows at most.
    pub windows_max: u32,
    /// What to do without though the device has it.
    pub without: Without,
    /// Arena for headers of messages too long for inline: a buffer of 1 MiB is taken at the start.
    pub arena: Arena,
}

/// Counts since the start of a [`crate::Nic`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NicCounts {
    /// Memory regions registered.
    pub registrations: u64,
    /// Bytes of them.
    pub registered_bytes: u64,
    /// Batches told to the device, receives included.
    pub doorbells: u64,
    /// Operations posted, receives included.
    pub work_requests: u64,
    /// Completions taken.
    pub completions: u64,
    /// Completions asked for.
    pub signalled: u64,
    /// Bytes sent inline: copied into the work request, as headers and short messages are.
    pub inline_bytes: u64,
    /// Bytes of headers laid beside a payload.
    pub head_bytes: u64,
    /// Our own system calls: arming and draining the channel, events, rdma-cm. Not a provider's doorbell.
    pub syscalls: u64,
    /// Windows bound.
    pub binds: u64,
    /// Windows invalidated by us.
    pub invalidations: u64,
}
