//! Changes of trees that become durable together: what the store writes in one go, and what an entry of the replicated log says.
//!
//! Bytes (docs/configuration.md#several-daemons) are the same on the wire and in the log; golden in the tests. Pure.

use base::units::narrow;
use spdk_stob::{Domain, Transaction, TreeId};

/// Format of the encoding.
const VERSION: u8 = 1;
/// In the place of a value's length: the key goes.
const GONE: u32 = u32::MAX;
/// Tree (4), bytes of the key (4), bytes of the value (4).
const HEAD_BYTES: usize = 12;

/// One change of one tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) tree: TreeId,
    pub(crate) key: Vec<u8>,
    /// `None`: the key goes.
    pub(crate) value: Option<Vec<u8>>,
}

impl Change {
    /// Bytes that it takes in a record of the domain's log, about: head and padding included.
    pub(crate) fn record_bytes(&self) -> usize {
        32 + self.key.len() + self.value.as_ref().map_or(0, Vec::len)
    }
}

/// The bytes are no batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an entry of the replicated log is damaged at byte {at}: it is of another version of this program, or not one of ours"
)]
pub struct DamagedBatch {
    /// Where.
    pub at: usize,
}

/// Changes in their order; later ones of a key count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) changes: Vec<Change>,
}

impl Batch {
    pub(crate) fn put(&mut self, tree: TreeId, key: &[u8], value: &[u8]) {
        self.changes.push(Change { tree, key: key.to_vec(), value: Some(value.to_vec()) });
    }

    pub(crate) fn delete(&mut self, tree: TreeId, key: &[u8]) {
        self.changes.push(Change { tree, key: key.to_vec(), value: None });
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        for change in &self.changes {
            let value_bytes = change.value.as_ref().map_or(GONE, |value| short(value.len()));
            bytes.extend(change.tree.0.to_le_bytes());
            bytes.extend(short(change.key.len()).to_le_bytes());
            bytes.extend(value_bytes.to_le_bytes());
            bytes.extend(&change.key);
            bytes.extend(change.value.iter().flatten());
        }
        bytes
    }

    /// Error: the bytes end in a change, or are of another version.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Batch, DamagedBatch> {
        let mut rest = match bytes {
            [VERSION, rest @ ..] => rest,
            _ => return Err(DamagedBatch { at: 0 }),
        };
        let mut batch = Batch::default();
        while !rest.is_empty() {
            let at = bytes.len() - rest.len();
            let damaged = || DamagedBatch { at };
            let (head, behind) = rest.split_at_checked(HEAD_BYTES).ok_or_else(damaged)?;
            let field = |index: usize| {
                let four = head[4 * index..].first_chunk::<4>().copied().unwrap_or_default();
                u32::from_le_bytes(four)
            };
            let (key, behind) = behind.split_at_checked(narrow(field(1).into())).ok_or_else(damaged)?;
            let (value, behind) = match field(2) {
                GONE => (None, behind),
                bytes => {
                    let (value, behind) =
                        behind.split_at_checked(narrow(bytes.into())).ok_or_else(damaged)?;
                    (Some(value.to_vec()), behind)
                }
            };
            batch.changes.push(Change { tree: TreeId(field(0)), key: key.to_vec(), value });
            rest = behind;
        }
        Ok(batch)
    }

    /// The same as a transaction of the domain, with trees in other places.
    pub(crate) fn transaction(&self, domain: &Domain, place: impl Fn(TreeId) -> TreeId) -> Transaction {
        let mut transaction = domain.begin();
        for change in &self.changes {
            match &change.value {
                Some(value) => transaction.tree_put(place(change.tree), &change.key, value),
                None => transaction.tree_delete(place(change.tree), &change.key),
            };
        }
        transaction
    }
}

fn short(bytes: usize) -> u32 {
    // A transaction of the domain is far smaller.
    u32::try_from(bytes).expect("a change is smaller than 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        let mut batch = Batch::default();
        batch.put(TreeId(2), b"ab", b"cde");
        batch.delete(TreeId(7), b"x");
        batch.put(TreeId(1), b"y", b"");
        batch
    }

    #[test]
    fn golden_bytes() {
        let expected = b"\x01\x02\0\0\0\x02\0\0\0\x03\0\0\0abcde\x07\0\0\0\x01\0\0\0\xff\xff\xff\xffx\x01\0\0\0\x01\0\0\0\0\0\0\0y";
        assert_eq!(batch().encode(), expected);
        assert_eq!(Batch::decode(expected), Ok(batch()));
        assert_eq!(Batch::decode(&Batch::default().encode()), Ok(Batch::default()));
    }

    #[test]
    fn what_is_cut_or_of_another_version_is_damaged_and_nothing_panics() {
        let whole = batch().encode();
        let boundaries = [1, 18, 31];
        for end in (0..whole.len()).filter(|end| !boundaries.contains(end)) {
            assert!(Batch::decode(&whole[..end]).is_err(), "{end}");
        }
        let mut other = whole.clone();
        other[0] = 2;
        assert_eq!(Batch::decode(&other), Err(DamagedBatch { at: 0 }));
        let mut long = whole;
        long[9..13].copy_from_slice(&u32::to_le_bytes(GONE - 1));
        assert_eq!(Batch::decode(&long), Err(DamagedBatch { at: 1 }));
    }
}
