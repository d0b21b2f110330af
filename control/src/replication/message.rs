//! Bytes of the messages between control daemons. Little endian; docs/wire.md#control-daemons; golden in the tests. Pure.
//!
//! What a peer sends is judged here once: counts and lengths against the bytes that are there, so that nothing is allocated on its word.

use base::units::{narrow, wide};
use raft_io::{
    AppendEntries, AppendEntriesReply, EntryKind, InstallSnapshot, InstallSnapshotReply, LogEntry, Message,
    PreVote, PreVoteReply, ReadProbe, ReadProbeReply, RequestVote, RequestVoteReply, Snapshot, TimeoutNow,
};

use crate::replication::journal::Position;

/// Format of the messages: another one is refused, so that members of two versions do not misread each other.
const VERSION: u8 = 1;

/// The bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of a control daemon is damaged, or of another version of this program")]
pub(crate) struct DamagedMessage;

struct Writer(Vec<u8>);

impl Writer {
    fn new(kind: u8) -> Writer {
        Writer(vec![VERSION, kind])
    }

    fn numbers<const N: usize>(mut self, numbers: [u64; N]) -> Writer {
        numbers.iter().for_each(|number| self.0.extend(number.to_le_bytes()));
        self
    }

    fn flag(mut self, flag: bool) -> Writer {
        self.0.push(flag.into());
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Writer {
        self.0.extend(wide(bytes.len()).to_le_bytes());
        self.0.extend(bytes);
        self
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8, DamagedMessage> {
        let (byte, rest) = self.0.split_first().ok_or(DamagedMessage)?;
        self.0 = rest;
        Ok(*byte)
    }

    fn flag(&mut self) -> Result<bool, DamagedMessage> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DamagedMessage),
        }
    }

    fn number(&mut self) -> Result<u64, DamagedMessage> {
        let (number, rest) = self.0.split_first_chunk::<8>().ok_or(DamagedMessage)?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*number))
    }

    fn bytes(&mut self) -> Result<&'a [u8], DamagedMessage> {
        let length = usize::try_from(self.number()?).map_err(|_| DamagedMessage)?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(DamagedMessage)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// A count of things of at least `bytes_each` bytes, which are there.
    fn count(&mut self, bytes_each: usize) -> Result<usize, DamagedMessage> {
        let count = self.number()?;
        if count > wide(self.0.len() / bytes_each) {
            return Err(DamagedMessage);
        }
        Ok(narrow(count))
    }
}

/// Number of a kind of entry in messages and in the durable log.
pub(crate) fn kind_number(kind: EntryKind) -> u8 {
    match kind {
        EntryKind::Normal => 0,
        EntryKind::Config => 1,
    }
}

/// The other way round.
pub(crate) fn kind_of(number: u8) -> Option<EntryKind> {
    match number {
        0 => Some(EntryKind::Normal),
        1 => Some(EntryKind::Config),
        _ => None,
    }
}

/// Bytes of an entry at least: term, index, kind, length.
const ENTRY_BYTES_MIN: usize = 25;

/// `None`: a kind of message that this version does not know, which the library does not make.
pub(crate) fn encode(message: &Message) -> Option<Vec<u8>> {
    let writer = match message {
        Message::PreVote(PreVote { term, candidate, last_log_index, last_log_term }) => {
            Writer::new(0).numbers([*term, *candidate, *last_log_index, *last_log_term])
        }
        Message::PreVoteReply(PreVoteReply { term, vote_granted, from }) => {
            Writer::new(1).numbers([*term, *from]).flag(*vote_granted)
        }
        Message::RequestVote(RequestVote { term, candidate, last_log_index, last_log_term, force }) => {
            Writer::new(2).numbers([*term, *candidate, *last_log_index, *last_log_term]).flag(*force)
        }
        Message::RequestVoteReply(RequestVoteReply { term, vote_granted, from }) => {
            Writer::new(3).numbers([*term, *from]).flag(*vote_granted)
        }
        Message::AppendEntries(AppendEntries {
            term,
            leader,
            prev_log_index,
            prev_log_term,
            entries,
            leader_commit,
        }) => {
            let head = [*term, *leader, *prev_log_index, *prev_log_term, *leader_commit, wide(entries.len())];
            entries.iter().fold(Writer::new(4).numbers(head), |writer, entry| {
                let mut writer = writer.numbers([entry.term, entry.index]);
                writer.0.push(kind_number(entry.kind));
                writer.bytes(&entry.command)
            })
        }
        Message::AppendEntriesReply(AppendEntriesReply {
            term,
            success,
            from,
            match_index,
            conflict_index,
            conflict_term,
        }) => Writer::new(5)
            .numbers([*term, *from, *match_index, *conflict_index, *conflict_term])
            .flag(*success),
        Message::InstallSnapshot(InstallSnapshot { term, leader, snapshot }) => {
            let head = [*term, *leader, snapshot.index, snapshot.term, wide(snapshot.config.len())];
            let writer = Writer::new(6).numbers(head);
            let writer = snapshot.config.iter().fold(writer, |writer, member| writer.numbers([*member]));
            writer.bytes(&snapshot.data)
        }
        Message::InstallSnapshotReply(InstallSnapshotReply { term, from, last_index }) => {
            Writer::new(7).numbers([*term, *from, *last_index])
        }
        Message::TimeoutNow(TimeoutNow { term, leader }) => Writer::new(8).numbers([*term, *leader]),
        Message::ReadProbe(ReadProbe { term, leader, seq }) => Writer::new(9).numbers([*term, *leader, *seq]),
        Message::ReadProbeReply(ReadProbeReply { term, from, seq }) => {
            Writer::new(10).numbers([*term, *from, *seq])
        }
        _ => return None,
    };
    Some(writer.0)
}

/// Error: cut, too long, or of a version or kind that is not known.
pub(crate) fn decode(bytes: &[u8]) -> Result<Message, DamagedMessage> {
    let mut from_peer = Reader(bytes);
    let reader = &mut from_peer;
    if reader.byte()? != VERSION {
        return Err(DamagedMessage);
    }
    let message = match reader.byte()? {
        0 => Message::PreVote(PreVote {
            term: reader.number()?,
            candidate: reader.number()?,
            last_log_index: reader.number()?,
            last_log_term: reader.number()?,
        }),
        1 => {
            let (term, from) = (reader.number()?, reader.number()?);
            Message::PreVoteReply(PreVoteReply { term, vote_granted: reader.flag()?, from })
        }
        2 => Message::RequestVote(RequestVote {
            term: reader.number()?,
            candidate: reader.number()?,
            last_log_index: reader.number()?,
            last_log_term: reader.number()?,
            force: reader.flag()?,
        }),
        3 => {
            let (term, from) = (reader.number()?, reader.number()?);
            Message::RequestVoteReply(RequestVoteReply { term, vote_granted: reader.flag()?, from })
        }
        4 => {
            let (term, leader) = (reader.number()?, reader.number()?);
            let (prev_log_index, prev_log_term) = (reader.number()?, reader.number()?);
            let leader_commit = reader.number()?;
            let mut entries = Vec::new();
            for offset in 1..=wide(reader.count(ENTRY_BYTES_MIN)?) {
                let (term, index) = (reader.number()?, reader.number()?);
                let kind = kind_of(reader.byte()?).ok_or(DamagedMessage)?;
                if prev_log_index.checked_add(offset) != Some(index) {
                    return Err(DamagedMessage);
                }
                let command = reader.bytes()?.to_vec();
                entries.push(LogEntry { term, index, kind, command });
            }
            Message::AppendEntries(AppendEntries {
                term,
                leader,
                prev_log_index,
                prev_log_term,
                entries,
                leader_commit,
            })
        }
        5 => {
            let (term, from, match_index) = (reader.number()?, reader.number()?, reader.number()?);
            let (conflict_index, conflict_term) = (reader.number()?, reader.number()?);
            let success = reader.flag()?;
            Message::AppendEntriesReply(AppendEntriesReply {
                term,
                success,
                from,
                match_index,
                conflict_index,
                conflict_term,
            })
        }
        6 => {
            let (term, leader) = (reader.number()?, reader.number()?);
            let (index, snapshot_term) = (reader.number()?, reader.number()?);
            let count = reader.count(8)?;
            let config = (0..count).map(|_| reader.number()).collect::<Result<_, _>>()?;
            let data = reader.bytes()?.to_vec();
            let snapshot = Snapshot::with_config(index, snapshot_term, config, data);
            Message::InstallSnapshot(InstallSnapshot { term, leader, snapshot })
        }
        7 => Message::InstallSnapshotReply(InstallSnapshotReply {
            term: reader.number()?,
            from: reader.number()?,
            last_index: reader.number()?,
        }),
        8 => Message::TimeoutNow(TimeoutNow { term: reader.number()?, leader: reader.number()? }),
        9 => Message::ReadProbe(ReadProbe {
            term: reader.number()?,
            leader: reader.number()?,
            seq: reader.number()?,
        }),
        10 => Message::ReadProbeReply(ReadProbeReply {
            term: reader.number()?,
            from: reader.number()?,
            seq: reader.number()?,
        }),
        _ => return Err(DamagedMessage),
    };
    if reader.0.is_empty() { Ok(message) } else { Err(DamagedMessage) }
}

/// Who says that it sent the message.
pub(crate) fn sender(message: &Message) -> Option<u64> {
    Some(match message {
        Message::PreVote(one) => one.candidate,
        Message::PreVoteReply(one) => one.from,
        Message::RequestVote(one) => one.candidate,
        Message::RequestVoteReply(one) => one.from,
        Message::AppendEntries(one) => one.leader,
        Message::AppendEntriesReply(one) => one.from,
        Message::InstallSnapshot(one) => one.leader,
        Message::InstallSnapshotReply(one) => one.from,
        Message::TimeoutNow(one) => one.leader,
        Message::ReadProbe(one) => one.leader,
        Message::ReadProbeReply(one) => one.from,
        _ => return None,
    })
}

/// True if whoever sent the message has entries that a log which ends at `own` lacks. Answers and questions do not say that.
pub(crate) fn is_ahead(message: &Message, own: Position) -> bool {
    let is_newer = |term: u64, index: u64| (term, index) > (own.term, own.index);
    match message {
        Message::PreVote(one) => is_newer(one.last_log_term, one.last_log_index),
        Message::RequestVote(one) => is_newer(one.last_log_term, one.last_log_index),
        Message::AppendEntries(one) => {
            let before = (one.prev_log_term, one.prev_log_index);
            let (term, index) = one.entries.last().map_or(before, |entry| (entry.term, entry.index));
            is_newer(term, index) || one.leader_commit > own.index
        }
        Message::InstallSnapshot(one) => is_newer(one.snapshot.term, one.snapshot.index),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Message> {
        let entry = |term, index| LogEntry::new(term, index, vec![9; 3]);
        vec![
            Message::PreVote(PreVote { term: 1, candidate: 2, last_log_index: 3, last_log_term: 4 }),
            Message::PreVoteReply(PreVoteReply { term: 1, vote_granted: true, from: 2 }),
            Message::RequestVote(RequestVote {
                term: 1,
                candidate: 2,
                last_log_index: 3,
                last_log_term: 4,
                force: true,
            }),
            Message::RequestVoteReply(RequestVoteReply { term: 1, vote_granted: false, from: 2 }),
            Message::AppendEntries(AppendEntries {
                term: 1,
                leader: 2,
                prev_log_index: 3,
                prev_log_term: 4,
                entries: vec![entry(5, 4), LogEntry::config(5, 5, &[1, 2])],
                leader_commit: 6,
            }),
            Message::AppendEntriesReply(AppendEntriesReply {
                term: 1,
                success: true,
                from: 2,
                match_index: 3,
                conflict_index: 4,
                conflict_term: 5,
            }),
            Message::InstallSnapshot(InstallSnapshot {
                term: 1,
                leader: 2,
                snapshot: Snapshot::with_config(3, 4, vec![5, 6], vec![7, 8]),
            }),
            Message::InstallSnapshotReply(InstallSnapshotReply { term: 1, from: 2, last_index: 3 }),
            Message::TimeoutNow(TimeoutNow { term: 1, leader: 2 }),
            Message::ReadProbe(ReadProbe { term: 1, leader: 2, seq: 3 }),
            Message::ReadProbeReply(ReadProbeReply { term: 1, from: 2, seq: 3 }),
        ]
    }

    #[test]
    fn who_is_ahead_shows_it_by_entries_that_the_other_lacks() {
        let own = |term, index| Position { index, term };
        for message in all() {
            // Of each kind, where the log ends that the sender shows: term and index.
            let (term, index) = match &message {
                Message::PreVote(_) | Message::RequestVote(_) => (4, 3),
                Message::AppendEntries(_) => (5, 5),
                Message::InstallSnapshot(_) => (4, 3),
                answer => {
                    assert!(!is_ahead(answer, own(0, 0)), "{answer:?}");
                    continue;
                }
            };
            assert!(is_ahead(&message, own(term, index - 1)), "{message:?}: a longer log");
            assert!(
                is_ahead(&message, own(term - 1, 100)),
                "{message:?}: a later term, though the log is shorter"
            );
            assert!(!is_ahead(&message, own(term, 6)), "{message:?}");
            assert!(!is_ahead(&message, own(term + 1, 6)), "{message:?}");
        }
        // One that only beats says where the entry before stands, and what is on a majority.
        let beat = |prev_log_index, leader_commit| {
            let (term, leader, prev_log_term, entries) = (9, 2, 4, Vec::new());
            let beat = AppendEntries { term, leader, prev_log_index, prev_log_term, entries, leader_commit };
            Message::AppendEntries(beat)
        };
        assert!(is_ahead(&beat(8, 0), own(4, 7)));
        assert!(is_ahead(&beat(3, 8), own(4, 7)));
        assert!(!is_ahead(&beat(7, 7), own(4, 7)));
    }

    #[test]
    fn each_kind_comes_back_says_its_sender_and_is_refused_when_cut_or_longer() {
        for (number, message) in all().iter().enumerate() {
            let bytes = encode(message).unwrap();
            assert_eq!((bytes[0], usize::from(bytes[1])), (VERSION, number));
            assert_eq!(decode(&bytes).as_ref(), Ok(message));
            assert_eq!(sender(message), Some(2));
            for end in 0..bytes.len() {
                assert_eq!(decode(&bytes[..end]), Err(DamagedMessage), "{message:?} cut at {end}");
            }
            assert_eq!(decode(&[&bytes[..], &[0]].concat()), Err(DamagedMessage));
        }
        assert_eq!(decode(&[VERSION, 11]), Err(DamagedMessage));
        assert_eq!(decode(&[VERSION + 1, 8]), Err(DamagedMessage));
    }

    #[test]
    fn golden_bytes() {
        let hex = |message: &Message| -> String {
            encode(message).unwrap().iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let word = |number: u8| format!("{number:02x}00000000000000");
        let words = |numbers: &[u8]| numbers.iter().map(|number| word(*number)).collect::<String>();
        let all = all();
        assert_eq!(hex(&all[2]), format!("0102{}01", words(&[1, 2, 3, 4])));
        let entries = format!(
            "{}00{}090909{}01{}{}",
            words(&[5, 4]),
            word(3),
            words(&[5, 5]),
            word(16),
            words(&[1, 2])
        );
        assert_eq!(hex(&all[4]), format!("0104{}{entries}", words(&[1, 2, 3, 4, 6, 2])));
        assert_eq!(hex(&all[6]), format!("0106{}0708", words(&[1, 2, 3, 4, 2, 5, 6, 2])));
    }

    #[test]
    fn entries_that_do_not_follow_each_other_are_refused() {
        let Message::AppendEntries(mut append) = all().swap_remove(4) else { unreachable!() };
        append.entries[1].index = 9;
        let bytes = encode(&Message::AppendEntries(append)).unwrap();
        assert_eq!(decode(&bytes), Err(DamagedMessage));
    }
}
