//! A table of slots with generations: an index that comes back from the hardware is believed only if its generation is still right.

/// Slots, each empty or in use; a name is slot and generation in 63 bits, and never 0.
pub(super) struct Slots<T> {
    slots: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
    count: usize,
}

impl<T> Slots<T> {
    pub(super) fn new() -> Slots<T> {
        Slots { slots: Vec::new(), free: Vec::new(), count: 0 }
    }

    pub(super) fn insert(&mut self, value: T) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            // Bounded by the queues' sizes, far below 2^32.
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let slot = &mut self.slots[index as usize];
        slot.0 = ((slot.0 + 1) & 0x7fff_ffff).max(1);
        slot.1 = Some(value);
        self.count += 1;
        u64::from(slot.0) << 32 | u64::from(index)
    }

    fn slot(&mut self, name: u64) -> Option<&mut Option<T>> {
        let slot = self.slots.get_mut((name & 0xffff_ffff) as usize)?;
        (u64::from(slot.0) == name >> 32).then_some(&mut slot.1)
    }

    pub(super) fn get(&self, name: u64) -> Option<&T> {
        let slot = self.slots.get((name & 0xffff_ffff) as usize)?;
        if u64::from(slot.0) == name >> 32 { slot.1.as_ref() } else { None }
    }

    pub(super) fn get_mut(&mut self, name: u64) -> Option<&mut T> {
        self.slot(name)?.as_mut()
    }

    pub(super) fn remove(&mut self, name: u64) -> Option<T> {
        let value = self.slot(name)?.take()?;
        self.free.push((name & 0xffff_ffff) as u32);
        self.count -= 1;
        Some(value)
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, (generation, value))| {
            value.as_ref().map(|value| (u64::from(*generation) << 32 | index as u64, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_never_used_again_for_another() {
        let mut slots = Slots::new();
        let first = slots.insert('a');
        assert_eq!(slots.remove(first), Some('a'));
        let second = slots.insert('b');
        assert_eq!((slots.get(first), slots.get(second), slots.len()), (None, Some(&'b'), 1));
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.iter().collect::<Vec<_>>(), [(second, &'b')]);
        assert_ne!(first, second);
        assert_eq!(slots.get(12345), None);
    }
}
