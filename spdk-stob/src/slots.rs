//! The slots of a device's region of pages: which of them hold a page, one bit each. Pure.
//!
//! A page is never written where it stands: each time it gets another slot, and the old one is free once both superblock copies name
//! the new one. Slots are given out in turn, so that pages of one checkpoint stand next to each other. Memory: 8 KiB per GiB of pages.

use base::units::{narrow, wide};

/// Slots by number, from 0.
#[derive(Clone, Debug, Default)]
pub struct Slots {
    /// A set bit is a slot in use.
    words: Vec<u64>,
    total: u64,
    free: u64,
    next: u64,
}

impl Slots {
    /// `total` slots, all free.
    #[must_use]
    pub fn new(total: u64) -> Slots {
        let mut words = vec![0; narrow(total.div_ceil(64))];
        if !total.is_multiple_of(64)
            && let Some(last) = words.last_mut()
        {
            *last = u64::MAX << (total % 64); // there are no such slots
        }
        Slots { words, total, free: total, next: 0 }
    }

    /// Slots.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Slots that hold nothing.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.free
    }

    /// Takes exactly `slot`. False, and nothing changed, if it is in use or not there.
    #[must_use]
    pub fn take(&mut self, slot: u64) -> bool {
        if slot >= self.total || self.words[narrow(slot / 64)] & (1 << (slot % 64)) != 0 {
            return false;
        }
        self.words[narrow(slot / 64)] |= 1 << (slot % 64);
        self.free -= 1;
        true
    }

    /// Takes a free slot, if there is one.
    pub fn allocate(&mut self) -> Option<u64> {
        if self.free == 0 {
            return None;
        }
        let count = self.words.len();
        let first = narrow(self.next / 64);
        for step in 0..=count {
            let index = (first + step) % count;
            // In the first word only what comes after `next`; it is looked at again in the end.
            let hidden = if step == 0 { !(u64::MAX << (self.next % 64)) } else { 0 };
            let free = !(self.words[index] | hidden);
            if free != 0 {
                let slot = wide(index) * 64 + u64::from(free.trailing_zeros());
                self.words[index] |= 1 << (slot % 64);
                self.free -= 1;
                self.next = (slot + 1) % self.total;
                return Some(slot);
            }
        }
        None
    }

    /// Gives a slot back. False, and nothing changed, if it is free or not there.
    pub fn release(&mut self, slot: u64) -> bool {
        if slot >= self.total || self.words[narrow(slot / 64)] & (1 << (slot % 64)) == 0 {
            return false;
        }
        self.words[narrow(slot / 64)] &= !(1 << (slot % 64));
        self.free += 1;
        true
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // the numbers of tests are small
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn there_may_be_no_slots() {
        let mut slots = Slots::new(0);
        assert_eq!((slots.allocate(), slots.take(0), slots.release(0)), (None, false, false));
    }

    proptest! {
        #[test]
        fn each_slot_is_given_out_once(total in 1u64..200, steps in prop::collection::vec((0u8..4, 0u64..210), 1..400)) {
            let mut slots = Slots::new(total);
            let mut model = vec![false; total as usize];
            for (step, slot) in steps {
                let used = model.get(slot as usize).copied();
                match step {
                    0 => prop_assert_eq!(slots.take(slot), used == Some(false)),
                    1 => prop_assert_eq!(slots.release(slot), used == Some(true)),
                    _ => match slots.allocate() {
                        Some(slot) => prop_assert!(!std::mem::replace(&mut model[slot as usize], true)),
                        None => prop_assert!(model.iter().all(|used| *used)),
                    },
                }
                if let (0 | 1, Some(used)) = (step, model.get_mut(slot as usize)) {
                    *used = step == 0;
                }
                prop_assert_eq!(slots.free(), model.iter().filter(|used| !**used).count() as u64);
            }
        }
    }
}
