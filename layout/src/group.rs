//! From an extent of an object's bytes to groups, and from a part of a group to units.

use base::ByteExtent;

use crate::pool::PoolLayout;

/// The part of one group that an extent touches, in bytes of the group's data units laid end to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupSpan {
    /// Group of the object.
    pub group: u64,
    /// First byte, counted from the group's first.
    pub start_in_group: u64,
    /// Number of bytes, at least 1.
    pub count: u64,
    /// True if every data byte of the group is touched: a write then needs to read nothing.
    pub is_full: bool,
}

/// The part of one data unit that a span touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitSpan {
    /// Data unit of the group.
    pub unit: u32,
    /// First byte, counted from the unit's first.
    pub start_in_unit: u32,
    /// Number of bytes, at least 1.
    pub count: u32,
    /// True if every byte of the unit is touched.
    pub is_full: bool,
}

/// The groups that `extent` touches, in order, each with its part. An extent of no bytes touches none.
pub fn groups_of(pool: &PoolLayout, extent: ByteExtent) -> impl Iterator<Item = GroupSpan> + use<> {
    let group_bytes = pool.group_bytes();
    let end = extent.end();
    let mut at = extent.start;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let (group, start_in_group) = (at / group_bytes, at % group_bytes);
        let count = (group_bytes - start_in_group).min(end - at);
        at += count;
        Some(GroupSpan { group, start_in_group, count, is_full: count == group_bytes })
    })
}

impl GroupSpan {
    /// Where the span starts in the object, in bytes.
    #[must_use]
    pub fn start_in_object(&self, pool: &PoolLayout) -> u64 {
        self.group * pool.group_bytes() + self.start_in_group
    }

    /// The data units that the span touches, in order, each with its part.
    pub fn units(&self, pool: &PoolLayout) -> impl Iterator<Item = UnitSpan> + use<> {
        let unit_bytes = u64::from(pool.unit_bytes());
        let end = (self.start_in_group + self.count).min(pool.group_bytes());
        let mut at = self.start_in_group;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let (unit, start) = (at / unit_bytes, at % unit_bytes);
            let count = (unit_bytes - start).min(end - at);
            at += count;
            // All three are below a group's bytes over unit_bytes or below unit_bytes, which are 32-bit numbers.
            let small = |number: u64| u32::try_from(number).expect("bounded by PoolLayout");
            Some(UnitSpan {
                unit: small(unit),
                start_in_unit: small(start),
                count: small(count),
                is_full: count == unit_bytes,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> PoolLayout {
        PoolLayout::new("3+1+0".parse().unwrap(), 5, 8192).unwrap()
    }

    #[test]
    fn an_extent_is_cut_at_groups_and_units() {
        let extent = ByteExtent::new(20480, 24576 + 12288).unwrap();
        let spans: Vec<GroupSpan> = groups_of(&pool(), extent).collect();
        assert_eq!(
            spans,
            [
                GroupSpan { group: 0, start_in_group: 20480, count: 4096, is_full: false },
                GroupSpan { group: 1, start_in_group: 0, count: 24576, is_full: true },
                GroupSpan { group: 2, start_in_group: 0, count: 8192, is_full: false },
            ]
        );
        assert_eq!(spans[1].start_in_object(&pool()), 24576);
        let unit =
            |unit, start_in_unit, count| UnitSpan { unit, start_in_unit, count, is_full: count == 8192 };
        assert_eq!(spans[0].units(&pool()).collect::<Vec<_>>(), [unit(2, 4096, 4096)]);
        assert_eq!(
            spans[1].units(&pool()).collect::<Vec<_>>(),
            [unit(0, 0, 8192), unit(1, 0, 8192), unit(2, 0, 8192)]
        );
    }

    #[test]
    fn spans_cover_each_extent_exactly_once() {
        for start in (0..60_000).step_by(1777) {
            for count in [0, 1, 100, 8192, 24_576, 24_577, 100_000] {
                let mut at = start;
                for span in groups_of(&pool(), ByteExtent { start, count }) {
                    assert_eq!(span.start_in_object(&pool()), at);
                    assert_eq!(span.is_full, span.count == 24_576);
                    let units: Vec<UnitSpan> = span.units(&pool()).collect();
                    let mut in_group = span.start_in_group;
                    for unit in &units {
                        assert_eq!(u64::from(unit.unit) * 8192 + u64::from(unit.start_in_unit), in_group);
                        in_group += u64::from(unit.count);
                    }
                    assert_eq!(in_group, span.start_in_group + span.count);
                    at += span.count;
                }
                assert_eq!(at, start + count);
            }
        }
        let last = groups_of(&pool(), ByteExtent { start: u64::MAX - 1, count: 1 }).last().unwrap();
        assert_eq!(last.start_in_object(&pool()), u64::MAX - 1);
    }
}
