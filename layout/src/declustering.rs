//! The mapping of one object: (group, unit) to (target, frame) and back.
//!
//! C groups of W units fill a tile of L rows and P columns; each tile's columns are permuted over the P targets, so that a
//! lost device's work spreads over all others. Source: docs/layout.md#mapping (worked example in the tests); Holland &
//! Gibson, "Parity declustering for continuous operation in redundant disk arrays", ASPLOS 1992.

use base::Fid;

use crate::permutation::targets_of_tile;
use crate::pool::PoolLayout;

/// Tiles whose permutation an object's layout remembers: a sequential writer, a reader, and the two tiles that each may
/// straddle. 8 bytes for each device and tile: at most 512 KiB at 16,384 devices.
const TILES_REMEMBERED: usize = 4;

/// A place on a target: unit-sized slot number `frame` of component object number `target`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame {
    /// Device index in the pool version, below P.
    pub target: u32,
    /// Slot of the component object, in units.
    pub frame: u64,
}

/// A unit of a parity group of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupUnit {
    /// Group of the object, from 0.
    pub group: u64,
    /// Unit of the group: data 0..N, then parity, then spare.
    pub unit: u32,
}

#[derive(Clone, Debug)]
struct Tile {
    number: u64,
    /// `[column] -> target`.
    targets: Vec<u32>,
    /// `[target] -> column`.
    columns: Vec<u32>,
}

/// The placement of one object's units, with the permutations used last. Cheap to make: allocates on first use.
#[derive(Clone, Debug)]
pub struct ObjectLayout {
    pool: PoolLayout,
    object: Fid,
    /// C.
    groups_per_tile: u64,
    /// L.
    rows_per_tile: u64,
    /// Used last at the end.
    tiles: Vec<Tile>,
}

fn index(number: u32) -> usize {
    base::units::narrow(u64::from(number))
}

fn greatest_common_divisor(mut left: u64, mut right: u64) -> u64 {
    while right != 0 {
        (left, right) = (right, left % right);
    }
    left
}

impl ObjectLayout {
    /// The placement of `object`'s units in `pool`. All 128 bits of the fid count, its type byte too.
    #[must_use]
    pub fn new(pool: PoolLayout, object: Fid) -> ObjectLayout {
        let (width, pool_width) = (u64::from(pool.width().width()), u64::from(pool.pool_width()));
        let divisor = greatest_common_divisor(pool_width, width);
        let (groups_per_tile, rows_per_tile) = (pool_width / divisor, width / divisor);
        ObjectLayout { pool, object, groups_per_tile, rows_per_tile, tiles: Vec::new() }
    }

    /// The pool's layout.
    #[must_use]
    pub fn pool(&self) -> &PoolLayout {
        &self.pool
    }

    /// The object.
    #[must_use]
    pub fn object(&self) -> Fid {
        self.object
    }

    /// C: groups of one tile.
    #[must_use]
    pub fn groups_per_tile(&self) -> u64 {
        self.groups_per_tile
    }

    /// L: frames of one tile on each target.
    #[must_use]
    pub fn frames_per_tile(&self) -> u64 {
        self.rows_per_tile
    }

    /// Where a unit lives. `unit` is below W. Panics on a unit past the group's last: a bug of the caller's.
    ///
    /// No overflow: W <= P makes the frame at most the group.
    pub fn place(&mut self, group: u64, unit: u32) -> Frame {
        let width = self.pool.width().width();
        assert!(unit < width, "unit {unit} of a group of {width}");
        let pool_width = u64::from(self.pool.pool_width());
        let (tile_number, group_in_tile) = (group / self.groups_per_tile, group % self.groups_per_tile);
        let place_in_tile = group_in_tile * u64::from(width) + u64::from(unit);
        let (row, column) = (place_in_tile / pool_width, place_in_tile % pool_width);
        let target = self.tile(tile_number).targets[base::units::narrow(column)];
        Frame { target, frame: self.rows_per_tile * tile_number + row }
    }

    /// What lives at a place: the inverse of [`ObjectLayout::place`].
    ///
    /// `None` for a target that the pool has not, or a frame so high that its group's number has no 64 bits.
    pub fn unit_at(&mut self, at: Frame) -> Option<GroupUnit> {
        if at.target >= self.pool.pool_width() {
            return None;
        }
        let (tile_number, row) = (at.frame / self.rows_per_tile, at.frame % self.rows_per_tile);
        let first_group = tile_number.checked_mul(self.groups_per_tile)?;
        let column = self.tile(tile_number).columns[index(at.target)];
        let place_in_tile = row * u64::from(self.pool.pool_width()) + u64::from(column);
        let width = u64::from(self.pool.width().width());
        let group = first_group.checked_add(place_in_tile / width)?;
        let unit = u32::try_from(place_in_tile % width).ok()?;
        Some(GroupUnit { group, unit })
    }

    fn tile(&mut self, number: u64) -> &Tile {
        match self.tiles.iter().rposition(|tile| tile.number == number) {
            // Nearly always the one used last: nothing moves.
            Some(found) => self.tiles[found..].rotate_left(1),
            None => {
                if self.tiles.len() == TILES_REMEMBERED {
                    self.tiles.remove(0);
                }
                let pool_width = self.pool.pool_width();
                let targets = targets_of_tile(self.object, number, pool_width, index(pool_width));
                let mut columns = vec![0; targets.len()];
                for (column, &target) in (0..).zip(&targets) {
                    columns[index(target)] = column;
                }
                self.tiles.push(Tile { number, targets, columns });
            }
        }
        self.tiles.last().expect("one was found or added")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::LayoutWidth;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const EXAMPLE: Fid = Fid { container: 0x4700_0000_0000_0000, key: 999 };
    const DOCS: &str = include_str!("../../docs/layout.md");

    fn object(width: &str, pool_width: u32, fid: Fid) -> ObjectLayout {
        let width: LayoutWidth = width.parse().unwrap();
        ObjectLayout::new(PoolLayout::new(width, pool_width, 4096).unwrap(), fid)
    }

    #[test]
    fn check_points_of_an_independent_implementation() {
        let mut layout = object("4+2+2", 11, EXAMPLE);
        let row: Vec<(u64, u32)> = (0..11)
            .map(|target| layout.unit_at(Frame { target, frame: 0 }).unwrap())
            .map(|at| (at.group, at.unit))
            .collect();
        assert_eq!(
            row,
            [(0, 5), (0, 2), (1, 1), (0, 6), (0, 7), (1, 2), (0, 0), (1, 0), (0, 1), (0, 3), (0, 4)]
        );
    }

    #[test]
    fn the_worked_example_of_docs_layout() {
        let mut layout = object("4+2+2", 11, EXAMPLE);
        assert_eq!((layout.groups_per_tile(), layout.frames_per_tile()), (11, 8));
        for frame in [0, 1, 7, 8] {
            let cells: Vec<String> = (0..11)
                .map(|target| layout.unit_at(Frame { target, frame }).unwrap())
                .map(|at| format!("{},{}", at.group, at.unit))
                .collect();
            let line = format!("| {frame} | {} |", cells.join(" | "));
            assert!(DOCS.contains(&line), "docs/layout.md lacks the line\n{line}");
        }
    }

    #[test]
    fn small_layouts_are_bijections_with_distinct_targets_and_even_load() {
        for (data, parity) in (1..=5).flat_map(|data| (0..=3).map(move |parity| (data, parity))) {
            for spare in 0..=parity {
                let width = LayoutWidth::new(data, parity, spare).unwrap();
                for pool_width in width.width()..=width.width() + 5 {
                    let pool = PoolLayout::new(width, pool_width, 4096).unwrap();
                    let mut layout = ObjectLayout::new(pool, Fid { container: 7 << 56, key: 12 });
                    let (groups, frames) = (layout.groups_per_tile(), layout.frames_per_tile());
                    assert_eq!(groups * u64::from(width.width()), frames * u64::from(pool_width));
                    let mut filled = BTreeSet::new();
                    for group in 0..3 * groups {
                        let mut targets = BTreeSet::new();
                        for unit in 0..width.width() {
                            let at = layout.place(group, unit);
                            assert!(at.target < pool_width);
                            assert!(targets.insert(at.target), "{width} over {pool_width}: group {group}");
                            assert!(filled.insert(at), "{width} over {pool_width}: {at:?} twice");
                            assert_eq!(layout.unit_at(at), Some(GroupUnit { group, unit }));
                        }
                        if (group + 1) % groups == 0 {
                            // Each target is filled up to the same frame, without a gap.
                            let tiles = (group + 1) / groups;
                            let all = (0..pool_width).flat_map(|target| {
                                (0..tiles * frames).map(move |frame| Frame { target, frame })
                            });
                            assert!(filled.iter().copied().eq(all), "{width} over {pool_width}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_lost_target_loads_the_others_alike() {
        // 4+1 over 10: of the groups that touch target 0, each other target should hold 4/9 of a group's other units.
        let mut layout = object("4+1+0", 10, EXAMPLE);
        let (mut touched, mut load) = (0u64, [0u64; 10]);
        for group in 0..20_000 {
            let targets: Vec<u32> = (0..5).map(|unit| layout.place(group, unit).target).collect();
            if targets.contains(&0) {
                touched += 1;
                targets.iter().for_each(|target| load[index(*target)] += 1);
            }
        }
        assert_eq!(touched, 10_000, "half of the groups have a unit on each target");
        let even = touched * 4 / 9;
        assert!(load[1..].iter().all(|count| count.abs_diff(even) < even / 20), "{load:?} around {even}");
    }

    #[test]
    fn the_ends_of_the_numbers() {
        let mut layout = object("2+1+0", 4, EXAMPLE);
        for group in [u64::MAX, u64::MAX - 1] {
            let at = layout.place(group, 2);
            assert_eq!(layout.unit_at(at), Some(GroupUnit { group, unit: 2 }));
        }
        assert_eq!(layout.unit_at(Frame { target: 0, frame: u64::MAX }), None);
        assert_eq!(layout.unit_at(Frame { target: 4, frame: 0 }), None);
    }

    #[test]
    #[should_panic(expected = "unit 3 of a group of 3")]
    fn a_unit_past_the_group_is_a_bug() {
        object("2+1+0", 4, EXAMPLE).place(0, 3);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn inverse_far_from_zero_and_in_any_order(
            data in 1u32..20, parity in 0u32..6, wider in 0u32..40, container: u64, key: u64,
            groups in proptest::collection::vec(any::<u64>(), 1..12),
        ) {
            let width = LayoutWidth::new(data, parity, parity / 2).unwrap();
            let pool = PoolLayout::new(width, width.width() + wider, 4096).unwrap();
            let mut layout = pool.object(Fid { container, key });
            for group in groups.iter().chain(groups.iter().rev()) {
                let mut targets = BTreeSet::new();
                for unit in 0..width.width() {
                    let at = layout.place(*group, unit);
                    prop_assert!(targets.insert(at.target));
                    prop_assert_eq!(layout.unit_at(at), Some(GroupUnit { group: *group, unit }));
                    prop_assert_eq!(pool.object(layout.object()).place(*group, unit), at, "with nothing remembered");
                }
            }
        }
    }
}
