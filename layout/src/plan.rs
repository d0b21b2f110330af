//! What to read for a read or a write of one group, given the units that cannot be had.
//!
//! A plan speaks of whole units. A client that writes only some rows (blocks) of a group applies it to those rows. Units
//! that were never written count as zeros and are never fetched.

use base::errors::{Blame, Blamed};
use smallvec::SmallVec;

use crate::group::GroupSpan;
use crate::pool::PoolLayout;
use crate::unit_set::UnitSet;

/// Units of one group; sixteen fit without allocation.
pub type Units = SmallVec<[u32; 16]>;

/// More units of a group are lost than its parity replaces.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{lost} units of a parity group cannot be had, and its {parity} parity units replace no more than as many"
)]
pub struct TooManyLost {
    /// Data and parity units that cannot be had.
    pub lost: u32,
    /// K.
    pub parity: u32,
}

impl Blamed for TooManyLost {
    fn blame(&self) -> Blame {
        Blame::Environment
    }
    fn may_retry(&self) -> bool {
        true // a device that was away for a moment comes back
    }
}

/// What to fetch and what to compute to have some units of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadPlan {
    /// Units to fetch, in order: wanted ones, and others that the lost ones are computed from.
    pub fetch: Units,
    /// Units that count as zeros: wanted ones or sources beyond what was written. Give them to the codec as empty slices.
    pub zeros: Units,
    /// Wanted units that are computed from `fetch` and `zeros`; empty when all is well.
    pub rebuild: Units,
}

/// [`read_plan_within`] for a group whose data units are all written.
pub fn read_plan(pool: &PoolLayout, wanted: &[u32], unavailable: &UnitSet) -> Result<ReadPlan, TooManyLost> {
    read_plan_within(pool, wanted, unavailable, pool.width().data())
}

/// Plans to have the units `wanted` (data or parity, any order) when `unavailable` ones cannot be had.
///
/// `written_data_units`: data units from this one on were never written (the object ends before) and count as zeros even if
/// their devices are lost. Fetches only what is wanted if that can be had; else N units in all, data before parity, first
/// parity before others. Errors: too many lost. Panics on a wanted unit past N+K: a bug of the caller's.
pub fn read_plan_within(
    pool: &PoolLayout,
    wanted: &[u32],
    unavailable: &UnitSet,
    written_data_units: u32,
) -> Result<ReadPlan, TooManyLost> {
    let (data, coded) = (pool.width().data(), pool.width().coded());
    let wanted: UnitSet = wanted.iter().copied().collect();
    assert!(wanted.iter().all(|unit| unit < coded), "{wanted:?} has units past the {coded} that carry bytes");
    let is_zero = |unit: u32| unit < data && unit >= written_data_units;
    let is_lost = |unit: u32| !is_zero(unit) && unavailable.contains(unit);

    let rebuild: Units = wanted.iter().filter(|unit| is_lost(*unit)).collect();
    let mut sources: UnitSet = wanted.iter().filter(|unit| !is_lost(*unit)).collect();
    if !rebuild.is_empty() {
        let others = (0..coded).filter(|unit| !is_lost(*unit));
        // Units that are wanted anyway first, then in order.
        for unit in others {
            if sources.len() >= data {
                break;
            }
            sources.insert(unit);
        }
        if sources.len() < data {
            let lost = (0..coded).filter(|unit| is_lost(*unit)).map(|_| 1).sum();
            return Err(TooManyLost { lost, parity: pool.width().parity() });
        }
    }
    let (zeros, fetch) = sources.iter().partition(|unit| is_zero(*unit));
    Ok(ReadPlan { fetch, zeros, rebuild })
}

/// How the parity of a written group is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ParityMethod {
    /// All data is at hand (or there is no parity): nothing is read.
    Encode,
    /// The data units (or parts of them) that are not written are read; parity is encoded from all data.
    ReadRest,
    /// The old bytes of the written units and of the parity are read; parity grows by the difference.
    ReadOld,
}

/// What to read before a write of (a part of) a group, and what to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WritePlan {
    /// How parity is made.
    pub method: ParityMethod,
    /// What is read (and rebuilt) first; empty for [`ParityMethod::Encode`].
    pub read: ReadPlan,
    /// Units that are written, data then parity, those that cannot be had left out: parity stands in for them.
    pub write: Units,
}

/// Plans a write of `span` when `unavailable` units cannot be had.
///
/// Of read-old and read-rest takes the one that fetches fewer units; of equals read-rest, which needs no second operand.
/// `written_data_units` as in [`read_plan_within`]; 0 for a group that was never written: then nothing is fetched.
/// Errors: more units of the group unavailable than it has parity: a write could not be made safe.
pub fn write_plan(
    pool: &PoolLayout,
    span: &GroupSpan,
    unavailable: &UnitSet,
    written_data_units: u32,
) -> Result<WritePlan, TooManyLost> {
    let (data, coded, parity) = (pool.width().data(), pool.width().coded(), pool.width().parity());
    let lost = (0..coded).filter(|unit| unavailable.contains(*unit)).map(|_| 1).sum();
    if lost > parity {
        return Err(TooManyLost { lost, parity });
    }
    let touched: UnitSet = span.units(pool).map(|part| part.unit).collect();
    let covered: UnitSet = span.units(pool).filter(|part| part.is_full).map(|part| part.unit).collect();
    let live_parity = || (data..coded).filter(|unit| !unavailable.contains(*unit));
    let write = touched.iter().filter(|unit| !unavailable.contains(*unit)).chain(live_parity()).collect();

    let rest: Units = (0..data).filter(|unit| !covered.contains(*unit)).collect();
    if rest.is_empty() || parity == 0 {
        return Ok(WritePlan { method: ParityMethod::Encode, read: ReadPlan::default(), write });
    }
    let read_rest = read_plan_within(pool, &rest, unavailable, written_data_units)?;
    if written_data_units == 0 {
        return Ok(WritePlan { method: ParityMethod::ReadRest, read: read_rest, write });
    }
    let old: Units = touched.iter().chain(live_parity()).collect();
    let read_old = read_plan_within(pool, &old, unavailable, written_data_units)?;
    let (method, read) = if read_old.fetch.len() < read_rest.fetch.len() {
        (ParityMethod::ReadOld, read_old)
    } else {
        (ParityMethod::ReadRest, read_rest)
    };
    Ok(WritePlan { method, read, write })
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::LayoutWidth;

    fn pool(width: &str) -> PoolLayout {
        let width: LayoutWidth = width.parse().unwrap();
        PoolLayout::new(width, width.width(), 8192).unwrap()
    }

    fn set(units: &[u32]) -> UnitSet {
        units.iter().copied().collect()
    }

    fn span(start_in_group: u64, count: u64) -> GroupSpan {
        GroupSpan { group: 0, start_in_group, count, is_full: false }
    }

    #[test]
    fn a_healthy_read_fetches_what_is_wanted() {
        let plan = read_plan(&pool("4+2+0"), &[2, 1], &set(&[3, 5])).unwrap();
        assert_eq!((plan.fetch.as_slice(), plan.rebuild.as_slice()), (&[1, 2][..], &[][..]));
    }

    #[test]
    fn a_degraded_read_fetches_n_units() {
        let plan = read_plan(&pool("4+2+0"), &[0], &set(&[0])).unwrap();
        assert_eq!((plan.fetch.as_slice(), plan.rebuild.as_slice()), (&[1, 2, 3, 4][..], &[0][..]));
        let plan = read_plan(&pool("4+2+0"), &[0, 1, 2, 3], &set(&[1, 4])).unwrap();
        assert_eq!((plan.fetch.as_slice(), plan.rebuild.as_slice()), (&[0, 2, 3, 5][..], &[1][..]));
        // A copy machine wants parity too.
        let plan = read_plan(&pool("4+2+0"), &[5, 0], &set(&[5, 0])).unwrap();
        assert_eq!((plan.fetch.as_slice(), plan.rebuild.as_slice()), (&[1, 2, 3, 4][..], &[0, 5][..]));
    }

    #[test]
    fn units_never_written_are_not_fetched() {
        let plan = read_plan_within(&pool("4+2+0"), &[0, 1], &set(&[0, 2, 3]), 2).unwrap();
        assert_eq!(plan.fetch.as_slice(), [1, 4]);
        assert_eq!((plan.zeros.as_slice(), plan.rebuild.as_slice()), (&[2, 3][..], &[0][..]));
    }

    #[test]
    fn every_loss_is_planned_or_refused() {
        for width in ["1+0+0", "1+2+0", "3+2+0", "4+2+0", "5+3+0"] {
            let pool = pool(width);
            let (data, coded) = (pool.width().data(), pool.width().coded());
            for lost_bits in 0u32..1 << coded {
                let lost: UnitSet = (0..coded).filter(|unit| lost_bits >> unit & 1 == 1).collect();
                for wanted_bits in 0u32..1 << coded {
                    let wanted: Vec<u32> = (0..coded).filter(|unit| wanted_bits >> unit & 1 == 1).collect();
                    let must_rebuild = wanted.iter().any(|unit| lost.contains(*unit));
                    match read_plan(&pool, &wanted, &lost) {
                        Err(error) => {
                            assert!(must_rebuild && lost.len() > pool.width().parity(), "{width} {lost:?}");
                            assert_eq!(error.lost, lost.len());
                        }
                        Ok(plan) => {
                            assert!(!must_rebuild || lost.len() <= pool.width().parity());
                            assert!(plan.fetch.iter().all(|unit| !lost.contains(*unit)));
                            let had: UnitSet = plan.fetch.iter().chain(&plan.rebuild).copied().collect();
                            assert!(wanted.iter().all(|unit| had.contains(*unit)));
                            assert_eq!(plan.rebuild.is_empty(), !must_rebuild);
                            let count = u32::try_from(plan.fetch.len()).unwrap();
                            let healthy = u32::try_from(wanted.len() - plan.rebuild.len()).unwrap();
                            assert_eq!(count, if must_rebuild { data.max(healthy) } else { healthy });
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_write_reads_the_fewer_units() {
        let pool = pool("8+2+0");
        let plan = |start, count, lost: &[u32], written| {
            write_plan(&pool, &span(start, count), &set(lost), written).unwrap()
        };
        let full = plan(0, 65536, &[], 8);
        assert_eq!((full.method, full.read), (ParityMethod::Encode, ReadPlan::default()));
        assert_eq!(full.write.as_slice(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        // One unit of eight: 1 + 2 old ones are fewer than 7 others.
        let small = plan(8192, 8192, &[], 8);
        assert_eq!((small.method, small.read.fetch.as_slice()), (ParityMethod::ReadOld, &[1, 8, 9][..]));
        assert_eq!(small.write.as_slice(), [1, 8, 9]);
        // Six of eight: 2 others are fewer than 6 + 2 old ones.
        let large = plan(0, 6 * 8192, &[], 8);
        assert_eq!((large.method, large.read.fetch.as_slice()), (ParityMethod::ReadRest, &[6, 7][..]));
        // A part of a unit is not covered: read-rest has to read that unit too.
        let ragged = plan(0, 5 * 8192 + 4096, &[], 8);
        assert_eq!((ragged.method, ragged.read.fetch.as_slice()), (ParityMethod::ReadRest, &[5, 6, 7][..]));
        // 3 touched + 2 parity = 5 others: read-rest by the tie.
        let tie = plan(0, 3 * 8192, &[], 8);
        assert_eq!((tie.method, tie.read.fetch.as_slice()), (ParityMethod::ReadRest, &[3, 4, 5, 6, 7][..]));
        // The group ends after two units: the others are zeros.
        let short = plan(0, 8192, &[], 2);
        assert_eq!((short.method, short.read.fetch.as_slice()), (ParityMethod::ReadRest, &[1][..]));
        assert_eq!(short.read.zeros.as_slice(), [2, 3, 4, 5, 6, 7]);
        // Never written: nothing to fetch.
        assert!(plan(4096, 4096, &[], 0).read.fetch.is_empty());
    }

    #[test]
    fn a_degraded_write_leaves_out_what_is_lost_and_rebuilds_what_it_needs() {
        let pool = pool("4+2+0");
        let plan = |count, lost: &[u32]| write_plan(&pool, &span(0, count), &set(lost), 4);
        // A lost parity unit is neither read nor written.
        let one = plan(8192, &[5]).unwrap();
        assert_eq!((one.method, one.read.fetch.as_slice()), (ParityMethod::ReadOld, &[0, 4][..]));
        assert_eq!(one.write.as_slice(), [0, 4]);
        // The written unit is lost: its parity still has to say what it would hold.
        let lost = plan(8192, &[0]).unwrap();
        assert_eq!((lost.method, lost.read.fetch.as_slice()), (ParityMethod::ReadRest, &[1, 2, 3][..]));
        assert_eq!(lost.write.as_slice(), [4, 5]);
        // A unit of the rest is lost: read-rest would rebuild it from four; old bytes and parity are three.
        let rest = plan(8192, &[3]).unwrap();
        assert_eq!((rest.method, rest.read.fetch.as_slice()), (ParityMethod::ReadOld, &[0, 4, 5][..]));
        assert_eq!(plan(8192, &[0, 4, 5]), Err(TooManyLost { lost: 3, parity: 2 }));
        assert_eq!(plan(32768, &[0, 1, 2]), Err(TooManyLost { lost: 3, parity: 2 }));
    }

    #[test]
    fn without_parity_nothing_is_read() {
        let pool = pool("3+0+0");
        let plan = write_plan(&pool, &span(4096, 4096), &UnitSet::new(), 3).unwrap();
        assert_eq!((plan.method, plan.write.as_slice()), (ParityMethod::Encode, &[0][..]));
        assert_eq!(write_plan(&pool, &span(0, 4096), &set(&[2]), 3), Err(TooManyLost { lost: 1, parity: 0 }));
    }
}
