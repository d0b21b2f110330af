//! Messages between requester and responder, as bytes. Version 1; both ends are this program, of one version.
//!
//! A head of 32 bytes, little endian: magic u32, version u8, word u8, check u8, status u8, number u64, seed u64, length u32 of what
//! follows, zero u32. Then a descriptor (write, read) or counts (usage); the rest of the message is padding.

use std::time::Duration;

use runtime::{Arena, SharedBuffer};
use verbs_net::BulkDescriptor;

use super::content::Check;
use super::usage::{COUNT_NAMES, Usage};

const MAGIC: u32 = 0x5453_4c43; // "CLST"
const VERSION: u8 = 1;
/// Bytes of the head.
pub const HEAD_BYTES: usize = 32;
/// Bytes of [`Said::Usage`] behind the head: CPU nanoseconds and the counts.
const USAGE_BYTES: usize = 8 * (1 + COUNT_NAMES.len());
/// Bytes of a request that names one segment, or of an answer with counts.
pub const MESSAGE_BYTES_MIN: usize = HEAD_BYTES + verbs_net::descriptor::DESCRIPTOR_HEAD_BYTES + 4;

/// How a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Well.
    Done,
    /// The content was not what the requester said it would be.
    WrongContent,
    /// The bulk did not move.
    TransferFailed,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Send this back.
    Ping,
    /// Pull this.
    Write(BulkDescriptor),
    /// Push into this.
    Read(BulkDescriptor),
    /// The answer to each of the three.
    Answer(Status),
    /// Tell what you have used since your start.
    TellUsage,
    /// The answer.
    Usage(Usage),
    /// The requester is done.
    Leave,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Number of the request.
    pub number: u64,
    /// Seed of its content.
    pub seed: u64,
    /// How much of the content counts.
    pub check: Check,
    /// The rest.
    pub said: Said,
}

/// Bytes that are no message of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes that are no message of a selftest of this version: {what}")]
pub struct BadMessage {
    bytes: usize,
    what: &'static str,
}

impl Message {
    /// What goes with it behind the head.
    fn rest(&self) -> Vec<u8> {
        match &self.said {
            Said::Write(descriptor) | Said::Read(descriptor) => descriptor.to_bytes(),
            Said::Usage(usage) => usage_bytes(usage),
            // Takes no memory.
            Said::Ping | Said::Answer(_) | Said::TellUsage | Said::Leave => Vec::new(),
        }
    }

    /// A buffer of `arena` with the bytes, padded with zeros to `bytes_min`: written where they leave from. `None`: the arena is full, or
    /// `bytes_min` above its largest buffer.
    pub fn to_buffer(&self, bytes_min: usize, arena: &Arena) -> Option<SharedBuffer> {
        let (word, status) = match &self.said {
            Said::Ping => (1, 0),
            Said::Write(_) => (2, 0),
            Said::Read(_) => (3, 0),
            Said::Answer(status) => (4, status_byte(*status)),
            Said::TellUsage => (5, 0),
            Said::Usage(_) => (6, 0),
            Said::Leave => (7, 0),
        };
        let rest = self.rest();
        let mut buffer = arena.try_alloc(bytes_min.max(HEAD_BYTES + rest.len()))?;
        let (head, padded) = buffer.split_first_chunk_mut::<HEAD_BYTES>()?;
        head[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        head[4..8].copy_from_slice(&[VERSION, word, self.check.to_byte(), status]);
        head[8..16].copy_from_slice(&self.number.to_le_bytes());
        head[16..24].copy_from_slice(&self.seed.to_le_bytes());
        head[24..28].copy_from_slice(&u32::try_from(rest.len()).unwrap_or(u32::MAX).to_le_bytes());
        head[28..32].fill(0);
        let (behind, padding) = padded.split_at_mut(rest.len());
        behind.copy_from_slice(&rest);
        padding.fill(0);
        Some(buffer.freeze())
    }

    /// Errors: anything that [`Message::to_buffer`] does not write.
    pub fn parse(bytes: &[u8]) -> Result<Message, BadMessage> {
        let bad = |what| BadMessage { bytes: bytes.len(), what };
        let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or_else(|| bad("too short"))?;
        let u64_at =
            |at: usize| head[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).unwrap_or_default();
        let u32_at =
            |at: usize| head[at..].first_chunk().map(|bytes| u32::from_le_bytes(*bytes)).unwrap_or_default();
        if u32_at(0) != MAGIC {
            return Err(bad("another magic"));
        }
        if head[4] != VERSION {
            return Err(bad("another version"));
        }
        let rest_bytes = usize::try_from(u32_at(24)).map_err(|_| bad("its length"))?;
        let rest = rest.get(..rest_bytes).ok_or_else(|| bad("its length is beyond its end"))?;
        let descriptor = || BulkDescriptor::parse(rest).map_err(|_| bad("its descriptor"));
        let said = match head[5] {
            1 => Said::Ping,
            2 => Said::Write(descriptor()?),
            3 => Said::Read(descriptor()?),
            4 => Said::Answer(status_of(head[7]).ok_or_else(|| bad("its status"))?),
            5 => Said::TellUsage,
            6 => Said::Usage(usage_of(rest).ok_or_else(|| bad("its counts"))?),
            7 => Said::Leave,
            _ => return Err(bad("its word")),
        };
        let check = Check::from_byte(head[6]).ok_or_else(|| bad("its check"))?;
        Ok(Message { number: u64_at(8), seed: u64_at(16), check, said })
    }
}

const fn status_byte(status: Status) -> u8 {
    match status {
        Status::Done => 0,
        Status::WrongContent => 1,
        Status::TransferFailed => 2,
    }
}

const fn status_of(byte: u8) -> Option<Status> {
    match byte {
        0 => Some(Status::Done),
        1 => Some(Status::WrongContent),
        2 => Some(Status::TransferFailed),
        _ => None,
    }
}

fn usage_bytes(usage: &Usage) -> Vec<u8> {
    let cpu_ns = u64::try_from(usage.cpu.as_nanos()).unwrap_or(u64::MAX);
    std::iter::once(cpu_ns).chain(usage.counts()).flat_map(u64::to_le_bytes).collect()
}

fn usage_of(bytes: &[u8]) -> Option<Usage> {
    let (words, []) = bytes.as_chunks::<8>() else { return None };
    let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
    let cpu = Duration::from_nanos(words.next()?);
    let mut counts = [0; COUNT_NAMES.len()];
    for count in &mut counts {
        *count = words.next()?;
    }
    words.next().is_none().then(|| Usage::from_counts(counts, cpu))
}

const _: () = assert!(MESSAGE_BYTES_MIN <= super::MESSAGE_BYTES_DEFAULT);
const _: () = assert!(HEAD_BYTES + USAGE_BYTES <= 256);

#[cfg(test)]
mod tests {
    use runtime::ArenaConfig;

    use super::*;

    fn message(said: Said) -> Message {
        Message { number: 7, seed: u64::MAX, check: Check::Simple, said }
    }

    /// In a buffer that held other bytes before.
    fn bytes_of(message: &Message, bytes_min: usize) -> Vec<u8> {
        let arena = Arena::new(ArenaConfig { capacity_bytes: 1 << 20 }).unwrap();
        arena.try_alloc(4096).unwrap().fill(0xa5);
        message.to_buffer(bytes_min, &arena).unwrap().to_vec()
    }

    #[test]
    fn messages_come_back_from_their_bytes_with_or_without_padding() {
        let usage = Usage::from_counts([1, 2, 3, u64::MAX, 5, 6], Duration::from_nanos(123));
        let mut raw = vec![0; 28];
        raw[16] = 2; // two segments
        raw[20..24].copy_from_slice(&4096_u32.to_le_bytes());
        raw[24..].copy_from_slice(&8192_u32.to_le_bytes());
        let descriptor = BulkDescriptor::parse(&raw).unwrap();
        for said in [
            Said::Ping,
            Said::Write(descriptor.clone()),
            Said::Read(descriptor),
            Said::Answer(Status::Done),
            Said::Answer(Status::WrongContent),
            Said::Answer(Status::TransferFailed),
            Said::TellUsage,
            Said::Usage(usage),
            Said::Leave,
        ] {
            let message = message(said);
            for bytes_min in [0, 64, 4096] {
                let bytes = bytes_of(&message, bytes_min);
                assert!(bytes.len() >= bytes_min && !bytes.contains(&0xa5));
                assert_eq!(Message::parse(&bytes), Ok(message.clone()));
            }
        }
    }

    #[test]
    fn what_we_do_not_write_is_refused() {
        let good = bytes_of(&message(Said::Answer(Status::Done)), 64);
        for at in [0, 3, 4, 5, 6, 7, 25] {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert!(Message::parse(&bad).is_err(), "byte {at}");
        }
        for end in 0..HEAD_BYTES {
            assert!(Message::parse(&good[..end]).is_err());
        }
        let usage = bytes_of(&message(Said::Usage(Usage::default())), 0);
        assert!(Message::parse(&usage[..usage.len() - 8]).is_err());
    }
}
