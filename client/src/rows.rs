//! What to make of a group's answers, row by row: the rule that keeps an erasure from being taken for zeros. Pure.
//!
//! A row is the same block of all N + K units. Inside the object's size it is unwritten in all units, or written in all data
//! units below the size and in all parity units. So, of the units that answered:
//! - some block present: the row is written. An absent block below the size is an erasure; one beyond the size was never
//!   written and counts as zeros in the parity (a device that does not answer may hold one: it is an erasure).
//! - every block absent, and everybody was asked who can answer: a hole, which reads as zeros.
//!
//! **Invariant**: a verdict never invents bytes: Rebuild names at least N sources, Hole needs an answer and no more than K lost.
//! Start at [`GroupAnswers::judge`].

use std::ops::Range;

/// What one unit of a group said about the rows that it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitAnswer {
    /// Not asked yet.
    Unknown,
    /// Its bytes are there; `absent[row]` for each row asked.
    Answered {
        /// One flag for each row of the window.
        absent: Vec<bool>,
    },
    /// It cannot be had: device failed, unreachable, checksum wrong.
    Lost,
}

/// What a row's wanted units are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowVerdict {
    /// Every wanted unit answered with its bytes, or is beyond the size and zeros.
    Present,
    /// Never written: zeros.
    Hole,
    /// Wanted units have to be computed from these sources (at least N; some may be zeros beyond the size).
    Rebuild {
        /// Units to read from, in ascending order.
        sources: Vec<u32>,
        /// Wanted units that are erasures, in ascending order.
        erased: Vec<u32>,
    },
    /// More units have to be asked.
    AskMore,
    /// Fewer than N units are left.
    TooManyLost {
        /// The erasures.
        erased: Vec<u32>,
    },
}

/// Answers of a group about a window of rows.
#[derive(Clone, Debug)]
pub struct GroupAnswers {
    /// N.
    pub data: u32,
    /// By unit, N + K of them.
    pub units: Vec<UnitAnswer>,
    /// Rows of the window; answers are indexed from its start.
    pub rows: Range<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    Unknown,
    Present,
    AbsentBelow,
    AbsentBeyond,
    Lost,
}

impl GroupAnswers {
    /// Nobody asked yet.
    #[must_use]
    pub fn new(data: u32, coded: u32, rows: Range<u64>) -> GroupAnswers {
        GroupAnswers { data, units: (0..coded).map(|_| UnitAnswer::Unknown).collect(), rows }
    }

    fn block(&self, unit: u32, row: u64, units_below: u32) -> Block {
        let index = usize::try_from(row - self.rows.start).unwrap_or(usize::MAX);
        match self.units.get(usize::try_from(unit).unwrap_or(usize::MAX)) {
            None | Some(UnitAnswer::Unknown) => Block::Unknown,
            Some(UnitAnswer::Lost) => Block::Lost,
            Some(UnitAnswer::Answered { absent }) => match absent.get(index) {
                Some(false) => Block::Present,
                // Parity always has a block in a written row.
                _ if unit < units_below || unit >= self.data => Block::AbsentBelow,
                _ => Block::AbsentBeyond,
            },
        }
    }

    /// Judges one row for `wanted` units (data or parity). `units_below`: data units below the object's size in this row.
    #[must_use]
    pub fn judge_row(&self, row: u64, units_below: u32, wanted: &[u32]) -> RowVerdict {
        let coded = u32::try_from(self.units.len()).unwrap_or(u32::MAX);
        let blocks: Vec<Block> = (0..coded).map(|unit| self.block(unit, row, units_below)).collect();
        let units_where = |keep: &dyn Fn(Block) -> bool| -> Vec<u32> {
            (0..coded).zip(&blocks).filter(|(_, block)| keep(**block)).map(|(unit, _)| unit).collect()
        };
        let unknown = blocks.contains(&Block::Unknown);
        let erased = units_where(&|block| matches!(block, Block::Lost | Block::AbsentBelow));
        if !blocks.contains(&Block::Present) {
            let lost = blocks.iter().filter(|block| **block == Block::Lost).count();
            let parity = blocks.len().saturating_sub(usize::try_from(self.data).unwrap_or(usize::MAX));
            return match (unknown, lost) {
                (true, _) => RowVerdict::AskMore,
                // An acknowledged write is on every device but at most K; an absent block among more answers disproves it.
                (false, lost) if lost <= parity && lost < blocks.len() => RowVerdict::Hole,
                _ => RowVerdict::TooManyLost { erased: units_where(&|block| block == Block::Lost) },
            };
        }
        let wanted_blocks = |kind: Block| -> Vec<u32> {
            wanted
                .iter()
                .copied()
                .filter(|unit| blocks.get(usize::try_from(*unit).unwrap_or(usize::MAX)) == Some(&kind))
                .collect()
        };
        if !wanted_blocks(Block::Unknown).is_empty() {
            return RowVerdict::AskMore;
        }
        let mut wanted_erased = wanted_blocks(Block::Lost);
        wanted_erased.extend(wanted_blocks(Block::AbsentBelow));
        wanted_erased.sort_unstable();
        if wanted_erased.is_empty() {
            return RowVerdict::Present;
        }
        let sources = units_where(&|block| matches!(block, Block::Present | Block::AbsentBeyond));
        if sources.len() >= usize::try_from(self.data).unwrap_or(usize::MAX) {
            RowVerdict::Rebuild { sources, erased: wanted_erased }
        } else if unknown {
            RowVerdict::AskMore
        } else {
            RowVerdict::TooManyLost { erased }
        }
    }

    /// Judges `rows` (inside the window) and joins neighbours with equal verdicts.
    pub fn judge(
        &self,
        rows: Range<u64>,
        units_below: impl Fn(u64) -> u32,
        wanted: impl Fn(u64) -> Vec<u32>,
    ) -> Vec<(Range<u64>, RowVerdict)> {
        let mut runs: Vec<(Range<u64>, RowVerdict)> = Vec::new();
        for row in rows {
            let verdict = self.judge_row(row, units_below(row), &wanted(row));
            match runs.last_mut() {
                Some((run, last)) if *last == verdict => run.end = row + 1,
                _ => runs.push((row..row + 1, verdict)),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// p = present, a = absent, l = lost, ? = unknown; data units first, 4+2.
    fn row(pattern: &str, units_below: u32, wanted: &[u32]) -> RowVerdict {
        let units = pattern.chars().map(|kind| match kind {
            'p' => UnitAnswer::Answered { absent: vec![false] },
            'a' => UnitAnswer::Answered { absent: vec![true] },
            'l' => UnitAnswer::Lost,
            _ => UnitAnswer::Unknown,
        });
        GroupAnswers { data: 4, units: units.collect(), rows: 7..8 }.judge_row(7, units_below, wanted)
    }

    #[test]
    fn the_row_rule_case_by_case() {
        use RowVerdict::{AskMore, Hole, Present, Rebuild, TooManyLost};
        let rebuild =
            |sources: &[u32], erased: &[u32]| Rebuild { sources: sources.to_vec(), erased: erased.to_vec() };
        let cases: [(&str, u32, &[u32], RowVerdict); 13] = [
            ("pp????", 4, &[0, 1], Present),
            ("pa????", 4, &[0, 1], AskMore), // an erasure: others are needed
            ("papppp", 4, &[1], rebuild(&[0, 2, 3, 4, 5], &[1])), // never zeros beside present blocks
            ("aaaa??", 4, &[0], AskMore),    // a hole only once parity said so too
            ("aaaaaa", 4, &[0], Hole),
            ("aaaaal", 4, &[0], Hole),
            ("aaalll", 4, &[0], TooManyLost { erased: vec![3, 4, 5] }),
            ("llpppp", 4, &[0, 1, 2], rebuild(&[2, 3, 4, 5], &[0, 1])),
            ("lllppp", 4, &[0], TooManyLost { erased: vec![0, 1, 2] }),
            ("lpaap?", 2, &[0], rebuild(&[1, 2, 3, 4], &[0])), // beyond the size: zeros by answer
            ("lpl?p?", 2, &[0], AskMore),                      // beyond the size, but it may hold a block
            ("plaap?", 2, &[0], Present),
            ("pplapp", 4, &[2, 3], rebuild(&[0, 1, 4, 5], &[2, 3])),
        ];
        for (pattern, below, wanted, verdict) in cases {
            assert_eq!(row(pattern, below, wanted), verdict, "{pattern}");
        }
    }

    proptest! {
        /// A written row with at most K erasures (all units asked) is read whole, whatever the erasures are; an unwritten one is a hole.
        #[test]
        fn up_to_k_losses_never_stop_a_reader(
            data in 1u32..6, parity in 0u32..4, below in 1u32..6, losses in proptest::collection::vec((0usize..10, any::<bool>()), 0..4), written in any::<bool>(),
        ) {
            let coded = data + parity;
            let below = below.min(data);
            let mut answers = GroupAnswers::new(data, coded, 0..1);
            for (unit, answer) in (0..coded).zip(&mut answers.units) {
                let present = written && (unit < below || unit >= data);
                *answer = UnitAnswer::Answered { absent: vec![!present] };
            }
            for (index, gone) in losses.iter().take(usize::try_from(parity).unwrap()) {
                let unit = index % answers.units.len();
                answers.units[unit] = if *gone { UnitAnswer::Lost } else { UnitAnswer::Answered { absent: vec![true] } };
            }
            let any_present = answers.units.iter().any(|answer| matches!(answer, UnitAnswer::Answered { absent } if !absent[0]));
            let wanted: Vec<u32> = (0..below).collect();
            match answers.judge_row(0, below, &wanted) {
                RowVerdict::Hole => prop_assert!(!any_present && !written),
                RowVerdict::Present => prop_assert!(written),
                RowVerdict::Rebuild { sources, erased } => {
                    prop_assert!(written && sources.len() >= usize::try_from(data).unwrap());
                    prop_assert!(erased.iter().all(|unit| !sources.contains(unit)));
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
