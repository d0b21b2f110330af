//! A set of units of one group.

use std::fmt;

/// Units that any layout can have: at most 255 coded ones and as many spare ones, rounded up.
const UNITS_MAX: u32 = 512;

/// A set of units of one group, in 64 bytes and without allocation.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct UnitSet {
    words: [u64; UNITS_MAX as usize / 64],
}

impl UnitSet {
    /// No unit.
    #[must_use]
    pub const fn new() -> UnitSet {
        UnitSet { words: [0; UNITS_MAX as usize / 64] }
    }

    fn slot(unit: u32) -> Option<(usize, u64)> {
        (unit < UNITS_MAX).then(|| (base::units::narrow(u64::from(unit / 64)), 1 << (unit % 64)))
    }

    /// Adds a unit; false if it was there. Panics on a number that no layout has (512 and more): a bug of the caller's.
    pub fn insert(&mut self, unit: u32) -> bool {
        let (word, bit) = UnitSet::slot(unit).expect("a layout has fewer than 512 units");
        let was_there = self.words[word] & bit != 0;
        self.words[word] |= bit;
        !was_there
    }

    /// Takes a unit out; true if it was there.
    pub fn remove(&mut self, unit: u32) -> bool {
        let was_there = self.contains(unit);
        if let Some((word, bit)) = UnitSet::slot(unit) {
            self.words[word] &= !bit;
        }
        was_there
    }

    /// True if the unit is in the set.
    #[must_use]
    pub fn contains(&self, unit: u32) -> bool {
        UnitSet::slot(unit).is_some_and(|(word, bit)| self.words[word] & bit != 0)
    }

    /// Number of units.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The units in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + use<> {
        let words = self.words;
        (0u32..).zip(words).flat_map(|(index, mut word)| {
            std::iter::from_fn(move || {
                let bit = word.trailing_zeros();
                (word != 0).then(|| {
                    word &= word - 1;
                    index * 64 + bit
                })
            })
        })
    }
}

impl FromIterator<u32> for UnitSet {
    fn from_iter<Units: IntoIterator<Item = u32>>(units: Units) -> UnitSet {
        let mut set = UnitSet::new();
        units.into_iter().for_each(|unit| {
            set.insert(unit);
        });
        set
    }
}

impl Extend<u32> for UnitSet {
    fn extend<Units: IntoIterator<Item = u32>>(&mut self, units: Units) {
        units.into_iter().for_each(|unit| {
            self.insert(unit);
        });
    }
}

impl fmt::Debug for UnitSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaves_as_a_set() {
        let mut set: UnitSet = [5, 0, 511, 64, 63].into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 5, 63, 64, 511]);
        assert_eq!(
            (set.len(), set.contains(64), set.contains(65), set.contains(9999)),
            (5, true, false, false)
        );
        assert!(!set.insert(5) && set.insert(6));
        assert!(set.remove(511) && !set.remove(511) && !set.remove(9999));
        assert_eq!(format!("{set:?}"), "{0, 5, 6, 63, 64}");
        set.extend([7]);
        assert!(!set.is_empty() && UnitSet::new().is_empty());
    }
}
