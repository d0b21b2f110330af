//! Credentials that are no longer good, before their end: a set of ids that the process refreshes while it runs.
//!
//! The file has an id a line; what follows it on the line, and lines that begin with `#`, are for people. Bound: [`IDS_MAX`].
//! Threads: shared by all machines of a process; readers look at one counter until it changes.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::security::CredentialId;

/// Ids in one list: 1 MiB of file.
pub const IDS_MAX: usize = 16_384;

/// The set in force.
#[derive(Debug, Default)]
pub struct Revocations {
    /// Grows with each change.
    generation: AtomicU64,
    ids: Mutex<BTreeSet<CredentialId>>,
}

/// A line is no revocation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseRevocationsError {
    /// Not an id.
    #[error("line {line} does not begin with the 16 hexadecimal digits of a credential's id")]
    BadLine {
        /// Which, from 1.
        line: usize,
    },
    /// Too many.
    #[error("more than {IDS_MAX} revocations: make a new authority instead (docs/security.md)")]
    TooMany,
}

impl Revocations {
    /// Reads a list.
    ///
    /// # Errors
    /// A line that is none, or too many.
    pub fn parse(text: &str) -> Result<BTreeSet<CredentialId>, ParseRevocationsError> {
        let mut ids = BTreeSet::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let word = line.split_whitespace().next().unwrap_or_default();
            let id = word.parse().map_err(|_| ParseRevocationsError::BadLine { line: index + 1 })?;
            ids.insert(id);
            if ids.len() > IDS_MAX {
                return Err(ParseRevocationsError::TooMany);
            }
        }
        Ok(ids)
    }

    /// Puts a list in force.
    pub fn replace(&self, ids: BTreeSet<CredentialId>) {
        let mut held = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if *held != ids {
            *held = ids;
            self.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// Changes whenever the set does.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// True if that credential is no longer good.
    #[must_use]
    pub fn contains(&self, id: CredentialId) -> bool {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_ids_with_words_for_people() {
        let text = "# revoked\n\n00c0ffee00c0ffee reader 2026-11-21\n  0000000000000001\n";
        let ids = Revocations::parse(text).unwrap();
        assert_eq!(ids, BTreeSet::from([CredentialId(1), CredentialId(0x00c0_ffee_00c0_ffee)]));
        assert_eq!(Revocations::parse("#\nreader"), Err(ParseRevocationsError::BadLine { line: 2 }));
        let many: String = (0..=IDS_MAX).map(|id| format!("{id:016x}\n")).collect();
        assert_eq!(Revocations::parse(&many), Err(ParseRevocationsError::TooMany));
    }

    #[test]
    fn the_generation_tells_of_changes_only() {
        let revocations = Revocations::default();
        let before = revocations.generation();
        revocations.replace(BTreeSet::new());
        assert_eq!(revocations.generation(), before);
        revocations.replace(BTreeSet::from([CredentialId(7)]));
        assert_ne!(revocations.generation(), before);
        assert!(revocations.contains(CredentialId(7)) && !revocations.contains(CredentialId(8)));
    }
}
