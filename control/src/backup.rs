//! A backup of control's state in a file, and how it is put back.
//!
//! Bytes: docs/configuration.md#backup, golden in the tests. A backup that is put back is a state of the past: numbers that were handed out since are
//! leapt over, so that nothing is handed out twice, and what knows of them is newer than nothing. **Invariant**: what is put back is one copy, whole.
//! Left over: devices that failed since the copy was made are online in it. Whoever puts it back has to know; [`Backup::version`] tells how old it is.
//! Start at [`Backup::parse`] and [`restore`].

use base::checksum::crc32c;
use base::units::wide;
use runtime::LocalityHandle;
use spdk_stob::Backend;

use crate::error::ControlError;
use crate::replication::batch::Batch;
use crate::replication::journal::{Journal, Position, commit_in_parts};
use crate::store;

const MAGIC: &[u8; 8] = b"CLOVISCB";
const VERSION: u64 = 1;
/// Magic, then version, cluster, configuration version, index, term, seconds since 1970, bytes of the state; then their checksum and that of the state.
const HEAD_BYTES: usize = 8 + 7 * 8 + 8;

/// The bytes are no backup.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// Something else.
    #[error("this is no backup of control's state")]
    NotABackup,
    /// Made by another version of this program.
    #[error("the backup has format {found}, and this program reads {VERSION}: use the program that made it")]
    Format {
        /// As found.
        found: u64,
    },
    /// Cut or changed.
    #[error("the backup is damaged: {what}; take another copy of it")]
    Damaged {
        /// Where.
        what: &'static str,
    },
}

/// A backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    cluster: u64,
    version: u64,
    position: Position,
    unix_s: u64,
    state: Batch,
}

impl Backup {
    pub(crate) fn new(cluster: u64, unix_s: u64, copy: (Position, u64, Batch)) -> Backup {
        let (position, version, state) = copy;
        Backup { cluster, version, position, unix_s, state }
    }

    /// Id of the cluster whose state it is.
    #[must_use]
    pub fn cluster(&self) -> u64 {
        self.cluster
    }

    /// Version of the configuration in it.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// When it was made, in seconds since 1970 by the clock of the daemon that made it; 0 if unknown.
    #[must_use]
    pub fn unix_s(&self) -> u64 {
        self.unix_s
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let state = self.state.encode();
        let Position { index, term } = self.position;
        let mut bytes = MAGIC.to_vec();
        for word in [VERSION, self.cluster, self.version, index, term, self.unix_s, wide(state.len())] {
            bytes.extend(word.to_le_bytes());
        }
        let of_head = crc32c(&bytes);
        bytes.extend(of_head.to_le_bytes());
        bytes.extend(crc32c(&state).to_le_bytes());
        bytes.extend(state);
        bytes
    }

    /// Errors: see [`BackupError`].
    pub fn parse(bytes: &[u8]) -> Result<Backup, BackupError> {
        let damaged = |what| BackupError::Damaged { what };
        let (head, state) = bytes.split_at_checked(HEAD_BYTES).ok_or(BackupError::NotABackup)?;
        if !head.starts_with(MAGIC) {
            return Err(BackupError::NotABackup);
        }
        let word = |index: usize| {
            let bytes = head[8 + 8 * index..].first_chunk::<8>().copied().unwrap_or_default();
            u64::from_le_bytes(bytes)
        };
        if word(0) != VERSION {
            return Err(BackupError::Format { found: word(0) });
        }
        let (sealed, sums) = head.split_at(HEAD_BYTES - 8);
        if sums[..4] != crc32c(sealed).to_le_bytes() {
            return Err(damaged("its head"));
        }
        if word(6) != wide(state.len()) {
            return Err(damaged("it is cut, or has more behind its end"));
        }
        if sums[4..] != crc32c(state).to_le_bytes() {
            return Err(damaged("its content"));
        }
        let state = Batch::decode(state).map_err(|_| damaged("its content"))?;
        let version = word(2);
        let is_that = store::configuration_in(&state)
            .is_ok_and(|found| found.version == version && found.cluster == word(1));
        if !is_that {
            return Err(damaged("its configuration"));
        }
        let position = Position { index: word(3), term: word(4) };
        Ok(Backup { cluster: word(1), version, position, unix_s: word(5), state })
    }
}

/// Version of the configuration that a store has; `None` for a blank one, or one without a state. Errors: it is another cluster's, damaged, or fails.
pub async fn stored_version(
    locality: &LocalityHandle,
    store: Box<dyn Backend>,
    cluster: u64,
) -> Result<Option<u64>, ControlError> {
    let domain = store::open_domain(locality, store, cluster).await?;
    let found = match Journal::owner(&domain)? {
        Some((number, _)) => {
            let journal = Journal::open(&domain, number, None)?;
            // What is in the log alone may have been in force too.
            let in_log = journal.newest_first().find_map(|batch| store::version_in(&batch));
            let in_state = store::version_of(&domain, |tree| journal.place(tree));
            in_state.map(|version| version.max(in_log))
        }
        None => store::version_of(&domain, |tree| tree),
    };
    domain.close().await.map_err(ControlError::Store)?;
    found
}

/// Puts a backup into a blank store: of the control daemon `number` of several, which is then alone and takes others in, or of one alone.
/// Answer: the configuration's version from now on.
///
/// Errors: the store is not blank, of another cluster, too small, or fails.
pub async fn restore(
    locality: &LocalityHandle,
    store: Box<dyn Backend>,
    number: Option<u64>,
    backup: &Backup,
) -> Result<u64, ControlError> {
    let domain = store::open_domain(locality, store, backup.cluster).await?;
    if Journal::owner(&domain)?.is_some() || store::version_of(&domain, |tree| tree)?.is_some() {
        domain.close().await.map_err(ControlError::Store)?;
        return Err(ControlError::NotBlank);
    }
    let mut state = backup.state.clone();
    let version = store::leap(&mut state)?;
    let outcome = async {
        commit_in_parts(&domain, state.changes).await?;
        if let Some(number) = number {
            // An entry behind all that the copy has the effect of: those of the past are not looked for.
            let position =
                Position { index: backup.position.index.max(1), term: backup.position.term.max(1) };
            Journal::restore(&domain, (number, backup.cluster), position).await?;
        }
        Ok(version)
    };
    let outcome: Result<u64, ControlError> = outcome.await;
    let closed = domain.clone().close().await;
    let version = outcome?;
    closed.map_err(ControlError::Store)?;
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use spdk_stob::TreeId;

    fn backup() -> Backup {
        let file = faces::ClusterFile::parse(include_str!("../faces/src/cluster_file_example.toml")).unwrap();
        let configuration = file.initial_configuration();
        let mut state = Batch::default();
        let value = [&2u32.to_le_bytes()[..], &configuration.to_bytes().unwrap()].concat();
        state.put(TreeId(1), b"configuration", &value);
        state.put(TreeId(1), b"next-fid", &7u64.to_le_bytes());
        state.put(TreeId(3), b"e", b"event");
        Backup::new(configuration.cluster, 1000, (Position { index: 9, term: 3 }, 1, state))
    }

    #[test]
    fn golden_bytes_of_the_head() {
        let bytes = backup().to_bytes();
        assert_eq!(&bytes[..8], b"CLOVISCB");
        let word = |index: usize| u64::from_le_bytes(bytes[8 + 8 * index..][..8].try_into().unwrap());
        let words: Vec<u64> = (0..6).map(word).collect();
        assert_eq!(words, [1, 0xc10715, 1, 9, 3, 1000]);
        assert_eq!(word(6), wide(bytes.len() - HEAD_BYTES));
        assert_eq!(Backup::parse(&bytes), Ok(backup()));
    }

    #[test]
    fn what_is_cut_changed_or_something_else_is_refused() {
        let bytes = backup().to_bytes();
        for end in 0..bytes.len() {
            assert!(Backup::parse(&bytes[..end]).is_err(), "{end}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x40;
            assert!(Backup::parse(&changed).is_err(), "{at}");
        }
        assert_eq!(Backup::parse(b"something else"), Err(BackupError::NotABackup));
    }

    #[test]
    fn numbers_leap_over_those_that_were_handed_out_since() {
        let mut state = backup().state;
        let version = store::leap(&mut state).unwrap();
        assert_eq!(version, 1 + (1 << 24));
        // Three of before, and anew the configuration in format 2, fids, numbers of locks.
        assert_eq!(state.changes.len(), 6);
        let put = |key: &[u8]| {
            let found = state.changes.iter().rfind(|change| change.key == key).unwrap();
            found.value.clone().unwrap()
        };
        assert_eq!(put(b"next-fid"), (7u64 + (1 << 40)).to_le_bytes());
        assert_eq!(put(b"lock-numbers"), [(1u64 << 40).to_le_bytes(); 2].concat());
    }
}
