//! Which spare unit of a group stands for a unit whose target is gone: a table of slots, followed like a chain. Pure.
//!
//! Each target that is gone has a slot, a number below S that no other one has: its unit of a group stands in spare unit `N + K + slot` of that group.
//! If that spare unit's own target is gone as well, it stands in the spare unit of *that* target's slot, and so on.
//! **Invariant**: two units of a group never share a place, and none stands on a target that is gone: a step leads from a target to the unit of its
//! slot, no two targets have one slot, and no chain begins at a spare unit; so chains neither meet nor close. **Invariant**: a slot that is
//! added moves only what stood on its target, and one that is taken away moves that back: no slot's meaning depends on the others', or on
//! an order in which targets went. Source: docs/layout.md#spare-units. Start at [`stand_ins`].

use smallvec::SmallVec;

/// Units of a group: the unit itself, then each spare unit that stood for it; it stands in the last one.
pub type StandIns = SmallVec<[u32; 4]>;

/// Where `unit` (data or parity, or replica of a record) stands. `spares`: the units that are spare. `target_of` a unit of the group, `slot_of` a target
/// that is gone.
///
/// A slot at or above S has no spare unit in this layout: then the unit is gone with its target, and the chain ends there.
pub fn stand_ins<T>(
    unit: u32,
    spares: std::ops::Range<u32>,
    mut target_of: impl FnMut(u32) -> T,
    slot_of: impl Fn(T) -> Option<u32>,
) -> StandIns {
    let mut chain = StandIns::new();
    let mut at = unit;
    chain.push(at);
    // No chain is longer, or it would have met itself: a table with one slot twice is refused where it is read.
    for _ in spares.clone() {
        let Some(slot) = slot_of(target_of(at)) else { break };
        let Some(spare) = spares.start.checked_add(slot).filter(|spare| *spare < spares.end) else { break };
        at = spare;
        chain.push(at);
    }
    chain
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use base::{Fid, LayoutWidth};
    use proptest::prelude::*;

    use crate::{ObjectLayout, PoolLayout};

    use super::*;

    fn homes(layout: &mut ObjectLayout, group: u64, slots: &BTreeMap<u32, u32>) -> Vec<u32> {
        let width = layout.pool().width();
        let units = 0..width.coded();
        units
            .map(|unit| {
                let chain = stand_ins(
                    unit,
                    width.coded()..width.width(),
                    |unit| layout.place(group, unit).target,
                    |target| slots.get(&target).copied(),
                );
                layout.place(group, *chain.last().unwrap()).target
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        /// Any set of up to S targets goes, in any order and to any free slots; some come back and others go.
        #[test]
        fn no_two_units_share_a_target_and_none_is_on_one_that_is_gone(
            data in 1u32..8, parity in 1u32..5, wider in 0u32..12, key: u64, changes in proptest::collection::vec((any::<u32>(), any::<u32>()), 1..12),
        ) {
            let width = LayoutWidth::new(data, parity, parity).unwrap();
            let pool = PoolLayout::new(width, width.width() + wider, 4096).unwrap();
            let mut layout = pool.object(Fid { container: 0x47 << 56, key });
            let mut slots: BTreeMap<u32, u32> = BTreeMap::new();
            for (who, which) in changes {
                let target = who % pool.pool_width();
                let before: Vec<Vec<u32>> = (0..40).map(|group| homes(&mut layout, group, &slots)).collect();
                let free: Vec<u32> = (0..parity).filter(|slot| !slots.values().any(|taken| taken == slot)).collect();
                let is_back = slots.remove(&target).is_some();
                if !is_back {
                    if free.is_empty() {
                        continue;
                    }
                    slots.insert(target, free[usize::try_from(which).unwrap() % free.len()]);
                }
                for (group, before) in (0..40).zip(before) {
                    let now = homes(&mut layout, group, &slots);
                    prop_assert_eq!(now.iter().collect::<BTreeSet<_>>().len(), now.len());
                    prop_assert!(now.iter().all(|target| !slots.contains_key(target)));
                    // Only what stood on it moves away, and only that comes back.
                    for (old, new) in before.iter().zip(&now).filter(|(old, new)| old != new) {
                        prop_assert_eq!(if is_back { *new } else { *old }, target);
                    }
                }
            }
        }
    }

    #[test]
    fn a_chain_by_hand() {
        // Units 0..3 coded, 3 and 4 spare, unit n on target n.
        let chain = |unit, slots: &[(u32, u32)]| {
            let slot_of = |target| slots.iter().find(|(of, _)| *of == target).map(|(_, slot)| *slot);
            stand_ins(unit, 3..5, |unit| unit, slot_of).to_vec()
        };
        assert_eq!(chain(1, &[]), [1]);
        assert_eq!(chain(1, &[(1, 0)]), [1, 3]);
        assert_eq!(chain(1, &[(1, 0), (3, 1)]), [1, 3, 4], "its spare unit went as well");
        assert_eq!(chain(0, &[(1, 0), (3, 1)]), [0]);
        assert_eq!(chain(1, &[(1, 2)]), [1], "no such spare unit in this layout");
    }

    #[test]
    fn the_worked_example_of_docs_layout() {
        let pool = PoolLayout::new("4+2+2".parse().unwrap(), 11, 4096).unwrap();
        let mut layout = pool.object(Fid { container: 0x4700_0000_0000_0000, key: 999 });
        assert_eq!((layout.place(0, 6).target, layout.place(0, 0).target), (3, 6));
        assert_eq!(homes(&mut layout, 0, &[(3, 0)].into())[0], 6, "who had only a spare unit is not missed");
        let unit_0 = |layout: &mut ObjectLayout, slots: &[(u32, u32)]| {
            homes(layout, 1, &slots.iter().copied().collect())[0]
        };
        assert_eq!(unit_0(&mut layout, &[]), 7);
        assert_eq!(unit_0(&mut layout, &[(7, 0)]), 9);
        assert_eq!(unit_0(&mut layout, &[(7, 0), (9, 1)]), 10);
    }

    #[test]
    fn what_is_rebuilt_spreads_evenly_over_the_others() {
        // 4+2+2 over 16: each other target takes a fifteenth of what target 0 had, and of what the second one had.
        let pool = PoolLayout::new("4+2+2".parse().unwrap(), 16, 4096).unwrap();
        let mut layout = pool.object(Fid { container: 0x47 << 56, key: 999 });
        for (slots, gone) in [(vec![(0, 0)], 0), (vec![(0, 0), (5, 1)], 5)] {
            let before: BTreeMap<u32, u32> = slots[..slots.len() - 1].iter().copied().collect();
            let slots: BTreeMap<u32, u32> = slots.into_iter().collect();
            let mut load = [0u64; 16];
            for group in 0..40_000 {
                let old = homes(&mut layout, group, &before);
                let new = homes(&mut layout, group, &slots);
                for (_, new) in old.iter().zip(&new).filter(|(old, _)| **old == gone) {
                    load[usize::try_from(*new).unwrap()] += 1;
                }
            }
            let others = 16 - u64::try_from(slots.len()).unwrap();
            let even = load.iter().sum::<u64>() / others;
            for (target, count) in (0u32..).zip(load) {
                let is_gone = slots.contains_key(&target);
                assert!(
                    (is_gone && count == 0) || count.abs_diff(even) < even / 10,
                    "{target}: {load:?} around {even}"
                );
            }
        }
    }
}
