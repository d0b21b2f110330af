//! The cluster file in force and those before it: each change is one numbered transaction. Pure; `store` keeps them.
//!
//! Bound: [`TRANSACTIONS_KEPT`] transactions, and of their texts what [`text_bytes_kept`] says for the store, at most
//! [`TRANSACTION_TEXT_BYTES_MAX`] bytes; the one in force is kept
//! however long it is. **Invariant**: numbers grow by one; the last one is in force. **Invariant**: no text holds the credential.
//! Start at [`Transactions::start`] and [`Transactions::apply`].

use std::collections::VecDeque;
use std::rc::Rc;

use base::Endpoint;
use base::units::wide;
use faces::limits::{
    CLUSTER_FILE_BYTES_MAX, NOTE_BYTES_MAX, TRANSACTION_TEXT_BYTES_MAX, TRANSACTIONS_KEPT, text_bytes_kept,
};
use faces::{Change, ClusterFile, ConfigError, Credential, Effect, diff};
use fops::conf::ConfTransaction;

/// Why a cluster file does not come in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyRefusal {
    /// It is not a cluster file, or not a consistent one.
    #[error("{0}")]
    File(#[from] ConfigError),
    /// Something changed that may not.
    #[error("{change}{}", if *others > 0 { format!("; and {others} more") } else { String::new() })]
    Change {
        /// The first such change.
        change: Change,
        /// How many more there are.
        others: usize,
    },
    /// Another one came in force in between.
    #[error("transaction {in_force} is in force, and the change was planned against {base}: plan it again")]
    OtherBase {
        /// In force.
        in_force: u64,
        /// As asked.
        base: u64,
    },
    /// The note is too long.
    #[error("the note has {bytes} bytes; at most {NOTE_BYTES_MAX} are kept")]
    Note {
        /// Its length.
        bytes: usize,
    },
    /// The daemon was started with a bare configuration.
    #[error("this control daemon was started without a cluster file, so there is none to change")]
    NoFile,
}

/// A transaction with its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Number, when, who, why.
    pub record: ConfTransaction,
    /// The cluster file, its credential hidden.
    pub text: Rc<str>,
}

/// Who asks for a change, when and why.
#[derive(Clone, Debug)]
pub struct Reason {
    /// Endpoint of the requester.
    pub by: Endpoint,
    /// Seconds since 1970 by its clock, 0 if unknown.
    pub unix_s: u64,
    /// In the operator's words.
    pub note: String,
}

/// What is in force and what was.
#[derive(Clone, Debug)]
pub struct Transactions {
    credential: Option<Credential>,
    file: Rc<ClusterFile>,
    kept: VecDeque<Kept>,
    /// Mark of the file that the daemon last read when it started: the same file again says nothing new.
    seen: u64,
}

/// What tells one text from another.
fn mark_of(text: &str) -> u64 {
    (wide(text.len()) << 32) | u64::from(base::checksum::crc32c(text.as_bytes()))
}

impl Transactions {
    /// The daemon starts with the cluster file `text` (its credential hidden) beside it and with what its store kept.
    ///
    /// A file that changed since the last start is a change like any other; one that did not leaves in force what is, so that
    /// an older file does not undo what was applied since. The answer's flag says whether there is something to store.
    /// Errors: the file is wrong, or changes what may not change.
    pub fn start(
        text: &str,
        credential: Option<Credential>,
        stored: Option<(VecDeque<Kept>, u64)>,
        version: u64,
        reason: Reason,
    ) -> Result<(Transactions, bool), ApplyRefusal> {
        let (given, seen) = (ClusterFile::parse_hidden(text, credential)?, mark_of(text));
        let Some((kept, last_seen)) = stored.filter(|(kept, _)| !kept.is_empty()) else {
            let mut first = Transactions { credential, file: Rc::new(given), kept: VecDeque::new(), seen };
            first.push(text, version, 0, Reason { note: "the first".to_owned(), ..reason });
            return Ok((first, true));
        };
        let in_force = kept.back().map(|last| Rc::clone(&last.text)).unwrap_or_default();
        let file = Rc::new(ClusterFile::parse_hidden(&in_force, credential)?);
        let mut transactions = Transactions { credential, file, kept, seen };
        if seen == last_seen {
            return Ok((transactions, false));
        }
        let changes = match transactions.plan(&given) {
            Ok(changes) => changes,
            // It was in force once, and what has come since cannot be taken back (a pool version, say): it is an old copy, not a wish.
            Err(_) if transactions.kept.iter().any(|kept| *kept.text == *text) => Vec::new(),
            Err(refusal) => return Err(refusal),
        };
        if !changes.is_empty() {
            let note = "read from the cluster file when control started".to_owned();
            transactions.push(text, version + 1, changes.len(), Reason { note, ..reason });
            transactions.file = Rc::new(given);
        }
        Ok((transactions, true))
    }

    /// Puts a text in force; `version` will hold it. Answer: how many changes, 0 if it was in force already.
    ///
    /// Errors: see [`ApplyRefusal`]; nothing changed then.
    pub fn apply(
        &mut self,
        text: &str,
        base: u64,
        version: u64,
        reason: Reason,
    ) -> Result<usize, ApplyRefusal> {
        if reason.note.len() > NOTE_BYTES_MAX {
            return Err(ApplyRefusal::Note { bytes: reason.note.len() });
        }
        let given = self.parse(text)?;
        let changes = self.plan(&given)?;
        if changes.is_empty() {
            return Ok(0);
        }
        let in_force = self.in_force().number;
        if base != in_force {
            return Err(ApplyRefusal::OtherBase { in_force, base });
        }
        self.push(text, version, changes.len(), reason);
        self.file = Rc::new(given);
        Ok(changes.len())
    }

    /// A text whose credential is hidden, as a file of this cluster.
    pub fn parse(&self, text: &str) -> Result<ClusterFile, ConfigError> {
        ClusterFile::parse_hidden(text, self.credential)
    }

    fn plan(&self, given: &ClusterFile) -> Result<Vec<Change>, ApplyRefusal> {
        let changes = diff(&self.file, given);
        let mut refused = changes.iter().filter(|change| matches!(change.effect, Effect::Refused(_)));
        match refused.next() {
            None => Ok(changes),
            Some(change) => Err(ApplyRefusal::Change { change: change.clone(), others: refused.count() }),
        }
    }

    fn push(&mut self, text: &str, version: u64, changes: usize, reason: Reason) {
        let record = ConfTransaction {
            number: self.kept.back().map_or(0, |last| last.record.number) + 1,
            version,
            unix_s: reason.unix_s,
            by: reason.by,
            note: reason.note,
            changes: u32::try_from(changes).unwrap_or(u32::MAX),
            text_bytes: wide(text.len()),
        };
        self.kept.push_back(Kept { record, text: text.into() });
        let bytes_max = text_bytes_kept(self.file.control.store_bytes);
        let bytes = |kept: &VecDeque<Kept>| kept.iter().map(|one| one.text.len()).sum::<usize>();
        while self.kept.len() > TRANSACTIONS_KEPT || (self.kept.len() > 1 && bytes(&self.kept) > bytes_max) {
            self.kept.pop_front();
        }
    }

    /// The cluster file in force.
    #[must_use]
    pub fn file(&self) -> &ClusterFile {
        &self.file
    }

    /// The transaction in force.
    ///
    /// # Panics
    /// Never: there is one from the start on.
    #[must_use]
    pub fn in_force(&self) -> &ConfTransaction {
        &self.kept.back().expect("one is in force from the start on").record
    }

    /// Oldest first.
    #[must_use]
    pub fn kept(&self) -> &VecDeque<Kept> {
        &self.kept
    }

    /// The transaction of a number, 0 for the one in force; nothing if it is not kept.
    #[must_use]
    pub fn get(&self, number: u64) -> Option<&Kept> {
        match number {
            0 => self.kept.back(),
            _ => self.kept.iter().find(|one| one.record.number == number),
        }
    }

    /// Mark of the file that the daemon last read when it started.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen
    }
}

const _: () = assert!(TRANSACTION_TEXT_BYTES_MAX + CLUSTER_FILE_BYTES_MAX < 16 << 20);

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = include_str!("../../control/faces/src/cluster_file_example.toml");

    fn credential() -> Option<Credential> {
        Some(Credential::from_bytes([3; 32]))
    }

    fn reason(note: &str) -> Reason {
        Reason { by: "127.0.0.1@tcp:1:34:9".parse().unwrap(), unix_s: 1000, note: note.to_owned() }
    }

    fn text(change: &[(&str, &str)]) -> String {
        let mut text = ClusterFile::hide_credential(TEXT).unwrap();
        for (from, to) in change {
            assert_eq!(text.matches(from).count(), 1, "{from:?}");
            text = text.replace(from, to);
        }
        text
    }

    fn started() -> Transactions {
        let (transactions, changed) =
            Transactions::start(&text(&[]), credential(), None, 1, reason("")).unwrap();
        assert!(changed);
        transactions
    }

    #[test]
    fn changes_are_numbered_planned_against_a_base_and_the_same_again_is_nothing() {
        let mut transactions = started();
        assert_eq!(transactions.in_force().number, 1);
        assert!(!transactions.get(0).unwrap().text.contains("00112233"), "the credential is not kept");
        let smaller = text(&[("unit_bytes = 65536", "unit_bytes = 4096 # smaller")]);
        assert_eq!(transactions.apply(&smaller, 1, 9, reason("small files")), Ok(1));
        let record = transactions.in_force().clone();
        assert_eq!(
            (record.number, record.version, record.changes, record.note.as_str()),
            (2, 9, 1, "small files")
        );
        assert_eq!(transactions.file().pool.unit_bytes, 4096);
        assert_eq!(transactions.apply(&smaller, 1, 10, reason("again")), Ok(0), "sent twice, done once");
        let name = text(&[("name = \"demo\"", "name = \"other\"")]);
        let stale = transactions.apply(&name, 1, 10, reason(""));
        assert_eq!(stale, Err(ApplyRefusal::OtherBase { in_force: 2, base: 1 }));
        assert_eq!(transactions.apply(&name, 2, 10, reason("")), Ok(2));
        // Rolling back is applying an older text.
        let first = transactions.get(1).unwrap().text.to_string();
        assert_eq!(transactions.apply(&first, 3, 11, reason("rollback to 1")), Ok(1));
        assert_eq!(transactions.file().pool.unit_bytes, 65536);
        assert_eq!(transactions.kept().len(), 4);
    }

    #[test]
    fn wrong_files_and_forbidden_changes_are_refused_and_change_nothing() {
        let mut transactions = started();
        let mut refused = |text: &str| transactions.apply(text, 1, 9, reason("")).unwrap_err().to_string();
        assert!(
            refused(&text(&[("size_bytes = 268435456 # the fourth", "size_bytes = 0")]))
                .starts_with("line 52")
        );
        let message = refused(&text(&[
            ("id = \"0xc10715\"", "id = \"0xc10716\""),
            ("layout = \"2+1+1\"", "layout = \"1+1+1\""),
        ]));
        assert!(message.contains("cluster.id") && message.contains("and 1 more"), "{message}");
        assert!(refused("x").contains("line 1"));
        let long = transactions.apply(&text(&[]), 1, 9, reason(&"x".repeat(201)));
        assert_eq!(long, Err(ApplyRefusal::Note { bytes: 201 }));
        assert_eq!((transactions.in_force().number, transactions.kept().len()), (1, 1));
    }

    #[test]
    fn a_restart_keeps_what_was_applied_unless_the_file_changed_since() {
        let mut transactions = started();
        transactions.apply(&text(&[("name = \"demo\"", "name = \"applied\"")]), 1, 5, reason("")).unwrap();
        let stored = || Some((transactions.kept().clone(), transactions.seen()));
        // The same old file beside the daemon.
        let (again, changed) =
            Transactions::start(&text(&[]), credential(), stored(), 5, reason("")).unwrap();
        assert!(!changed && again.file().cluster.name == "applied");
        // An edited one.
        let edited = text(&[("name = \"demo\"", "name = \"edited\"")]);
        let (again, changed) = Transactions::start(&edited, credential(), stored(), 5, reason("")).unwrap();
        assert!(changed && again.file().cluster.name == "edited");
        assert_eq!((again.in_force().number, again.in_force().version), (3, 6));
        let stored_again = Some((again.kept().clone(), again.seen()));
        let (_, changed) = Transactions::start(&edited, credential(), stored_again, 6, reason("")).unwrap();
        assert!(!changed);
        // What was applied comes into the file: nothing to do but to remember that it was seen.
        let same = text(&[("name = \"demo\"", "name = \"applied\"")]);
        let (again, changed) = Transactions::start(&same, credential(), stored(), 5, reason("")).unwrap();
        assert!(changed && again.in_force().number == 2);
        let layout = text(&[("layout = \"2+1+1\"", "layout = \"1+1+1\"")]);
        let refused = Transactions::start(&layout, credential(), stored(), 5, reason("")).unwrap_err();
        assert!(refused.to_string().contains("pool.layout"), "{refused}");
    }

    #[test]
    fn an_old_copy_of_the_file_beside_control_does_not_undo_what_cannot_be_undone() {
        let mut transactions = started();
        let renamed = text(&[("name = \"demo\"", "name = \"renamed\"")]);
        transactions.apply(&renamed, 1, 5, reason("")).unwrap();
        let section = "[[pool_version]]\npool = \"0x6f00000000000001:1\"\nfid = \"0x7600000000000001:2\"\nlayout = \"2+1+1\"\n\
                       unit_bytes = 65536\ndevices = [\"0x6b00000000000001:1..0x6b00000000000001:4\"]\n";
        let expanded = format!("{renamed}\n{section}");
        assert_eq!(transactions.apply(&expanded, 2, 6, reason("pool expand")), Ok(1));
        let back = transactions.apply(&renamed, 3, 7, reason("rollback")).unwrap_err().to_string();
        assert!(back.contains("objects may lie in it"), "{back}");
        // What an operator had written before the expansion stands beside the daemon, which has not read it yet.
        let stored = || Some((transactions.kept().clone(), transactions.seen()));
        let (again, changed) = Transactions::start(&renamed, credential(), stored(), 6, reason("")).unwrap();
        assert!(changed && again.in_force().number == 3 && again.file().pool_versions.len() == 1);
        let (_, changed) = Transactions::start(
            &renamed,
            credential(),
            Some((again.kept().clone(), again.seen())),
            6,
            reason(""),
        )
        .unwrap();
        assert!(!changed, "seen once");
        // One that never was in force is a wish, and an impossible one.
        let other = text(&[("name = \"demo\"", "name = \"another\"")]);
        assert!(Transactions::start(&other, credential(), stored(), 6, reason("")).is_err());
    }

    #[test]
    fn the_history_is_bounded_by_count_and_by_bytes_and_keeps_what_is_in_force() {
        let mut transactions = started();
        for count in 0..100 {
            let next = text(&[("name = \"demo\"", &format!("name = \"n{count}\""))]);
            transactions.apply(&next, count + 1, count + 2, reason("")).unwrap();
        }
        assert_eq!(transactions.kept().len(), TRANSACTIONS_KEPT);
        assert_eq!((transactions.in_force().number, transactions.get(1)), (101, None));
        let comment = "#".repeat(400 << 10);
        for count in 0..3u64 {
            let next =
                format!("{}\n{comment}", text(&[("name = \"demo\"", &format!("name = \"long {count}\""))]));
            transactions.apply(&next, 101 + count, 200, reason("")).unwrap();
        }
        assert_eq!(transactions.kept().len(), 1, "two of them are more than so small a store is to keep");
        assert_eq!(transactions.file().cluster.name, "long 2");
    }
}
