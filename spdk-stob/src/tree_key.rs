//! Keys of a tree, ordered by their bytes, mostly without a look at them: the first 16 are kept beside as a number, where the
//! search of a node finds them. So a search meets the memory of one key, its own, instead of one for each comparison; in a tree of 32768 keys
//! that is the greater part of what a put costs.
//!
//! Memory: 32 bytes and the key's own.

use std::borrow::Borrow;
use std::cmp::Ordering;

const HEAD_BYTES: usize = 16;

/// The first bytes as a number, zeros after a shorter key: it orders as the bytes do, and leaves only equals open.
fn head_of(bytes: &[u8]) -> u128 {
    let mut head = [0; HEAD_BYTES];
    let count = bytes.len().min(HEAD_BYTES);
    head[..count].copy_from_slice(&bytes[..count]);
    u128::from_be_bytes(head)
}

/// What orders a key, owned or not.
pub(crate) trait Ordered {
    fn head(&self) -> u128;
    fn bytes(&self) -> &[u8];
}

/// A key in a tree.
#[derive(Clone, Debug)]
pub(crate) struct TreeKey {
    head: u128,
    bytes: Box<[u8]>,
}

impl From<Vec<u8>> for TreeKey {
    fn from(bytes: Vec<u8>) -> TreeKey {
        TreeKey { head: head_of(&bytes), bytes: bytes.into_boxed_slice() }
    }
}

impl Ordered for TreeKey {
    fn head(&self) -> u128 {
        self.head
    }
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// A key that is looked for.
pub(crate) struct KeyRef<'bytes> {
    head: u128,
    bytes: &'bytes [u8],
}

impl<'bytes> From<&'bytes [u8]> for KeyRef<'bytes> {
    fn from(bytes: &'bytes [u8]) -> KeyRef<'bytes> {
        KeyRef { head: head_of(bytes), bytes }
    }
}

impl Ordered for KeyRef<'_> {
    fn head(&self) -> u128 {
        self.head
    }
    fn bytes(&self) -> &[u8] {
        self.bytes
    }
}

fn order(one: &(impl Ordered + ?Sized), other: &(impl Ordered + ?Sized)) -> Ordering {
    one.head().cmp(&other.head()).then_with(|| one.bytes().cmp(other.bytes()))
}

impl Ord for TreeKey {
    fn cmp(&self, other: &TreeKey) -> Ordering {
        order(self, other)
    }
}
impl PartialOrd for TreeKey {
    fn partial_cmp(&self, other: &TreeKey) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for TreeKey {
    fn eq(&self, other: &TreeKey) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for TreeKey {}

impl<'key> Ord for dyn Ordered + 'key {
    fn cmp(&self, other: &(dyn Ordered + 'key)) -> Ordering {
        order(self, other)
    }
}
impl<'key> PartialOrd for dyn Ordered + 'key {
    fn partial_cmp(&self, other: &(dyn Ordered + 'key)) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<'key> PartialEq for dyn Ordered + 'key {
    fn eq(&self, other: &(dyn Ordered + 'key)) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for dyn Ordered + '_ {}

impl<'key> Borrow<dyn Ordered + 'key> for TreeKey {
    fn borrow(&self) -> &(dyn Ordered + 'key) {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ops::Bound;

    use super::*;

    #[test]
    fn keys_are_in_the_order_of_their_bytes_and_found_by_them() {
        let mut random = fastrand::Rng::with_seed(1);
        // Few values and lengths around the head's, so that many keys are the start of others.
        let mut key = || (0..random.usize(1..20)).map(|_| random.u8(0..2)).collect::<Vec<u8>>();
        let keys: BTreeSet<Vec<u8>> = (0..5000).map(|_| key()).collect();
        let tree: BTreeSet<TreeKey> = keys.iter().cloned().map(TreeKey::from).collect();
        assert!(tree.iter().map(Ordered::bytes).eq(keys.iter().map(Vec::as_slice)));
        for wanted in keys.iter().cloned().chain((0..5000).map(|_| key())) {
            let wanted_ref = KeyRef::from(wanted.as_slice());
            let found = tree.get::<dyn Ordered>(&wanted_ref).map(Ordered::bytes);
            assert_eq!(found, keys.get(&wanted).map(Vec::as_slice));
            let from: Bound<&dyn Ordered> = Bound::Excluded(&wanted_ref);
            let next = tree.range::<dyn Ordered, _>((from, Bound::Unbounded)).next().map(Ordered::bytes);
            let expected = keys.range::<Vec<u8>, _>((Bound::Excluded(&wanted), Bound::Unbounded)).next();
            assert_eq!(next, expected.map(Vec::as_slice));
        }
    }
}
