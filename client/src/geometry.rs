//! Where the bytes of an object stand inside its parity groups. Pure arithmetic; which device holds a unit is `layout`'s business.
//!
//! Words: group `g` holds the object's bytes `[g * group_bytes, (g + 1) * group_bytes)`. Inside a group a *position* counts
//! blocks: position `p` is block `p % unit_blocks` (its *row*) of data unit `p / unit_blocks`. A row is the same block of all
//! N + K units: it is written as a whole or not at all (docs/data-flow.md#rows).
//!
//! Allocates only what is returned. Start at [`Geometry::pieces`] for plain transfers, [`Geometry::runs`] for parts of a group.

use std::ops::Range;

use base::limits::{UNIT_BYTES_MAX, UNIT_BYTES_MIN};
use base::units::BLOCK_BYTES;
use base::{ByteExtent, LayoutWidth};

/// An object ends here: 1 EiB. Frame numbers times unit blocks stay far below 2^63 for every width and pool.
pub const OBJECT_BYTES_MAX: u64 = 1 << 60;

/// Shape of an object's groups. Valid by construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    width: LayoutWidth,
    unit_blocks: u64,
}

/// A run of blocks inside one unit of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitPiece {
    /// The parity group.
    pub group: u64,
    /// Unit inside the group: data from 0, then parity.
    pub unit: u32,
    /// First row (block of the unit).
    pub first_row: u64,
    /// Rows.
    pub row_count: u64,
}

/// Rows of a group that are alike: the same units covered by a write, the same units below the old and the new size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowRun {
    /// The rows.
    pub rows: Range<u64>,
    /// Data units whose blocks in these rows the write covers; may be empty.
    pub covered: Range<u32>,
    /// Data units `0..below_old` are below the object's size before the write.
    pub below_old: u32,
    /// Data units `0..below_new` are below its size after the write.
    pub below_new: u32,
}

impl Geometry {
    /// The geometry, or `None` if `unit_bytes` is not a multiple of the block between the limits.
    #[must_use]
    pub fn new(width: LayoutWidth, unit_bytes: u64) -> Option<Geometry> {
        let allowed =
            (UNIT_BYTES_MIN..=UNIT_BYTES_MAX).contains(&unit_bytes) && unit_bytes.is_multiple_of(BLOCK_BYTES);
        allowed.then_some(Geometry { width, unit_blocks: unit_bytes / BLOCK_BYTES })
    }

    /// N, K and S.
    #[must_use]
    pub const fn width(&self) -> LayoutWidth {
        self.width
    }
    /// N: data units of a group.
    #[must_use]
    pub const fn data(&self) -> u32 {
        self.width.data()
    }
    /// N + K.
    #[must_use]
    pub const fn coded(&self) -> u32 {
        self.width.coded()
    }
    /// Blocks of a unit, and so rows of a group.
    #[must_use]
    pub const fn unit_blocks(&self) -> u64 {
        self.unit_blocks
    }
    /// Bytes of a unit.
    #[must_use]
    pub const fn unit_bytes(&self) -> u64 {
        self.unit_blocks * BLOCK_BYTES
    }
    /// Data blocks of a group.
    #[must_use]
    pub const fn group_blocks(&self) -> u64 {
        self.unit_blocks * self.width.data() as u64
    }
    /// Data bytes of a group.
    #[must_use]
    pub const fn group_bytes(&self) -> u64 {
        self.group_blocks() * BLOCK_BYTES
    }

    /// The groups that hold bytes of `extent`.
    #[must_use]
    pub const fn groups(&self, extent: ByteExtent) -> Range<u64> {
        if extent.count == 0 {
            return 0..0;
        }
        extent.start / self.group_bytes()..extent.end().div_ceil(self.group_bytes())
    }

    /// Positions of `group` that stand inside `extent`, outer blocks counted whole.
    #[must_use]
    pub fn positions(&self, group: u64, extent: ByteExtent) -> Range<u64> {
        let first = group * self.group_blocks();
        let start = (extent.start / BLOCK_BYTES).saturating_sub(first).min(self.group_blocks());
        let end = extent.end().div_ceil(BLOCK_BYTES).saturating_sub(first).min(self.group_blocks());
        start..end.max(start)
    }

    /// Positions of `group` below `size_bytes`; the last block counts whole.
    #[must_use]
    pub fn positions_below(&self, group: u64, size_bytes: u64) -> u64 {
        self.positions(group, ByteExtent { start: 0, count: size_bytes }).end
    }

    /// First byte of a position of a group.
    #[must_use]
    pub const fn byte_of(&self, group: u64, position: u64) -> u64 {
        (group * self.group_blocks() + position) * BLOCK_BYTES
    }

    /// The pieces of data units that hold `positions` of `group`, in the order of the object's bytes.
    pub fn group_pieces(&self, group: u64, positions: Range<u64>) -> impl Iterator<Item = UnitPiece> + use<> {
        let unit_blocks = self.unit_blocks;
        let units = if positions.is_empty() {
            0..0
        } else {
            positions.start / unit_blocks..positions.end.div_ceil(unit_blocks)
        };
        units.map(move |unit| {
            let start = positions.start.max(unit * unit_blocks) - unit * unit_blocks;
            let end = positions.end.min((unit + 1) * unit_blocks) - unit * unit_blocks;
            UnitPiece {
                group,
                unit: u32::try_from(unit).unwrap_or(u32::MAX),
                first_row: start,
                row_count: end - start,
            }
        })
    }

    /// The pieces of data units that hold `extent`, in the order of the object's bytes; outer blocks count whole.
    pub fn pieces(&self, extent: ByteExtent) -> impl Iterator<Item = UnitPiece> + use<> {
        let this = *self;
        this.groups(extent).flat_map(move |group| this.group_pieces(group, this.positions(group, extent)))
    }

    /// Data units `0..n` whose block in `row` is below `positions` (a count of positions from the group's start).
    #[must_use]
    pub fn units_below(&self, row: u64, positions: u64) -> u32 {
        let units = positions.saturating_sub(row).div_ceil(self.unit_blocks);
        u32::try_from(units).unwrap_or(u32::MAX).min(self.data())
    }

    /// Cuts all rows of a group into runs that are alike for a write to `written` positions which takes the object's end
    /// inside this group from `below_old` to `below_new` positions.
    #[must_use]
    pub fn runs(&self, written: Range<u64>, below_old: u64, below_new: u64) -> Vec<RowRun> {
        let mut runs: Vec<RowRun> = Vec::new();
        for rows in self.cut_rows(&[written.start, written.end, below_old, below_new]) {
            let row = rows.start;
            // Units before the write's start in this row, and units before its end: between them it covers.
            let before = self.units_below(row, written.start);
            let until = self.units_below(row, written.end);
            let covered = if before < until { before..until } else { 0..0 };
            let run = RowRun {
                rows,
                covered,
                below_old: self.units_below(row, below_old),
                below_new: self.units_below(row, below_new),
            };
            match runs.last_mut() {
                Some(last)
                    if (&last.covered, last.below_old, last.below_new)
                        == (&run.covered, run.below_old, run.below_new) =>
                {
                    last.rows.end = run.rows.end;
                }
                _ => runs.push(run),
            }
        }
        runs
    }

    /// All rows of a group, cut where any of `positions` stands.
    fn cut_rows(&self, positions: &[u64]) -> Vec<Range<u64>> {
        let mut cuts: Vec<u64> = positions.iter().map(|position| position % self.unit_blocks).collect();
        cuts.extend([0, self.unit_blocks]);
        cuts.sort_unstable();
        cuts.dedup();
        cuts.windows(2).map(|pair| pair[0]..pair[1]).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn geometry(data: u32, unit_blocks: u64) -> Geometry {
        Geometry::new(LayoutWidth::new(data, 2, 0).unwrap(), unit_blocks * BLOCK_BYTES).unwrap()
    }

    #[test]
    fn unit_sizes_are_checked() {
        let width = LayoutWidth::new(4, 2, 0).unwrap();
        for wrong in [0, 1, 4095, 6144, 2 << 20] {
            assert_eq!(Geometry::new(width, wrong), None, "{wrong}");
        }
        assert_eq!(Geometry::new(width, 65536).unwrap().group_bytes(), 262_144);
    }

    #[test]
    fn a_worked_example() {
        // 4 data units of 2 blocks: positions 0..8 of group 1 are the object's blocks 8..16.
        let geometry = geometry(4, 2);
        let extent = ByteExtent { start: 11 * BLOCK_BYTES, count: 2 * BLOCK_BYTES };
        assert_eq!(geometry.positions(1, extent), 3..5);
        let pieces: Vec<_> = geometry.pieces(extent).collect();
        assert_eq!(
            pieces,
            [
                UnitPiece { group: 1, unit: 1, first_row: 1, row_count: 1 },
                UnitPiece { group: 1, unit: 2, first_row: 0, row_count: 1 },
            ]
        );
        assert_eq!(
            geometry.runs(3..5, 4, 5),
            [
                RowRun { rows: 0..1, covered: 2..3, below_old: 2, below_new: 3 },
                RowRun { rows: 1..2, covered: 1..2, below_old: 2, below_new: 2 },
            ]
        );
    }

    proptest! {
        #[test]
        fn pieces_name_each_block_once_and_in_order(data in 1u32..6, unit_blocks in 1u64..5, start in 0u64..60, count in 0u64..60) {
            let geometry = geometry(data, unit_blocks);
            let extent = ByteExtent { start: start * BLOCK_BYTES, count: count * BLOCK_BYTES };
            let mut blocks = Vec::new();
            for piece in geometry.pieces(extent) {
                for row in piece.first_row..piece.first_row + piece.row_count {
                    blocks.push(piece.group * geometry.group_blocks() + u64::from(piece.unit) * unit_blocks + row);
                }
            }
            prop_assert_eq!(blocks, (start..start + count).collect::<Vec<_>>());
        }

        #[test]
        fn runs_agree_with_each_position(data in 1u32..6, unit_blocks in 1u64..5, a in 0u64..30, b in 0u64..30, old in 0u64..30, new in 0u64..30) {
            let geometry = geometry(data, unit_blocks);
            let end = geometry.group_blocks();
            let (start, stop) = (a.min(b).min(end), a.max(b).min(end));
            let (old, new) = (old.min(end), new.min(end));
            let runs = geometry.runs(start..stop, old, new);
            prop_assert_eq!(runs.first().unwrap().rows.start, 0);
            prop_assert_eq!(runs.last().unwrap().rows.end, unit_blocks);
            prop_assert!(runs.windows(2).all(|pair| pair[0].rows.end == pair[1].rows.start));
            for run in runs {
                for row in run.rows.clone() {
                    for unit in 0..data {
                        let position = u64::from(unit) * unit_blocks + row;
                        prop_assert_eq!(run.covered.contains(&unit), (start..stop).contains(&position));
                        prop_assert_eq!(unit < run.below_old, position < old);
                        prop_assert_eq!(unit < run.below_new, position < new);
                    }
                }
            }
        }
    }
}
