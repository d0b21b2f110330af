//! A map that is only looked up: the fast one for what every message asks.
//!
//! It has no order, so it offers none: nothing here walks the entries except by their sorted keys, and the same run stays the same run. Its hash
//! is fixed and quick, not keyed: keys that a stranger chooses freely do not belong here (those of a peer that was let in, or our own numbers, do).
//! A `BTreeMap` stays the map for everything that is walked. Memory: of the most entries there were; in steady state nothing is allocated.

use std::borrow::Borrow;
use std::fmt;
use std::hash::Hash;

use rustc_hash::FxBuildHasher;

/// A map without an order.
#[derive(Clone)]
pub struct LookupMap<K, V>(hashbrown::HashMap<K, V, FxBuildHasher>);

impl<K: Eq + Hash, V> LookupMap<K, V> {
    /// An empty map, without memory.
    #[must_use]
    pub const fn new() -> LookupMap<K, V> {
        LookupMap(hashbrown::HashMap::with_hasher(FxBuildHasher))
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True without entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of a key.
    pub fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.0.get(key)
    }

    /// The value of a key, to be changed.
    pub fn get_mut<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.0.get_mut(key)
    }

    /// True if the key is there.
    pub fn contains_key<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.0.contains_key(key)
    }

    /// Sets the value of a key; the one before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.0.insert(key, value)
    }

    /// Takes a key out.
    pub fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.0.remove(key)
    }

    /// The value of a key; without one, the default is put there.
    pub fn get_or_default(&mut self, key: K) -> &mut V
    where
        V: Default,
    {
        self.0.entry(key).or_default()
    }

    /// All keys, sorted: a copy, for what is rare.
    #[must_use]
    pub fn sorted_keys(&self) -> Vec<K>
    where
        K: Copy + Ord,
    {
        let mut keys: Vec<K> = self.0.keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    /// How many values are so. What `is_so` does beyond that must not depend on order.
    pub fn count(&self, mut is_so: impl FnMut(&V) -> bool) -> usize {
        self.0.values().filter(|value| is_so(value)).count()
    }
}

impl<K: Eq + Hash, V> Default for LookupMap<K, V> {
    fn default() -> LookupMap<K, V> {
        LookupMap::new()
    }
}

impl<K: fmt::Debug + Copy + Ord + Hash, V: fmt::Debug> fmt::Debug for LookupMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.sorted_keys().into_iter().map(|key| (key, self.0.get(&key)))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_is_found_and_walked_in_order() {
        let mut map = LookupMap::new();
        assert!(map.is_empty());
        for key in [9_u64, 2, 7, 1 << 40] {
            assert_eq!(map.insert(key, key + 1), None);
        }
        *map.get_or_default(3) += 5;
        assert_eq!((map.insert(2, 20), map.remove(&9), map.remove(&9)), (Some(3), Some(10), None));
        assert_eq!(map.sorted_keys(), [2, 3, 7, 1 << 40]);
        assert_eq!((map.len(), map.get(&3), map.contains_key(&9)), (4, Some(&5), false));
        assert_eq!(map.count(|value| *value < 10), 2);
        *map.get_mut(&7).unwrap() = 0;
        assert_eq!(
            format!("{map:?}"),
            format!("{{2: Some(20), 3: Some(5), 7: Some(0), {}: Some({})}}", 1_u64 << 40, (1_u64 << 40) + 1)
        );
    }
}
