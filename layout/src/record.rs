//! Where an object's record lives: K + 1 targets, so that it outlives as many losses as the object's bytes.

use base::Fid;
use smallvec::SmallVec;

use crate::permutation::targets_of_tile;
use crate::pool::PoolLayout;

/// The tile number set aside for records: no tile of an object's units is likely to reach it, and nothing breaks if one does.
const RECORD_TILE: u64 = u64::MAX;

/// Targets of a record; eight fit without allocation.
pub type RecordTargets = SmallVec<[u32; 8]>;

/// The K + 1 distinct targets that hold `object`'s record: the first ones of its permutation of tile 2^64 - 1.
///
/// Depends on the fid, P and K only, so that a client that knows nothing of the object finds the record at once. Source:
/// docs/layout.md#records.
#[must_use]
pub fn record_targets(pool: &PoolLayout, object: Fid) -> RecordTargets {
    let count = base::units::narrow(u64::from(pool.width().parity() + 1));
    RecordTargets::from_vec(targets_of_tile(object, RECORD_TILE, pool.pool_width(), count))
}

/// The same K + 1 targets, and behind them S that stand in for those that are gone, as spare units do ([`crate::stand_ins`]).
///
/// There are as many: W is at most P, and N at least 1.
#[must_use]
pub fn record_and_spare_targets(pool: &PoolLayout, object: Fid) -> RecordTargets {
    let width = pool.width();
    let count = base::units::narrow(u64::from(width.parity() + 1 + width.spare()));
    RecordTargets::from_vec(targets_of_tile(object, RECORD_TILE, pool.pool_width(), count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_on_k_plus_one_distinct_targets_spread_evenly() {
        let pool = PoolLayout::new("4+2+1".parse().unwrap(), 8, 65536).unwrap();
        let mut load = [0u32; 8];
        for key in 0..8000 {
            let mut targets = record_targets(&pool, Fid { container: 0x47 << 56, key });
            assert_eq!(targets.len(), 3);
            targets.iter().for_each(|target| load[base::units::narrow(u64::from(*target))] += 1);
            targets.sort_unstable();
            targets.dedup();
            assert_eq!(targets.len(), 3);
        }
        assert!(load.iter().all(|count| count.abs_diff(3000) < 150), "{load:?}");
    }

    #[test]
    fn golden_targets_of_docs_layout() {
        let example = Fid { container: 0x4700_0000_0000_0000, key: 999 };
        let targets = |width: &str, pool_width| {
            let pool = PoolLayout::new(width.parse().unwrap(), pool_width, 4096).unwrap();
            record_targets(&pool, example).to_vec()
        };
        assert_eq!(targets("4+2+2", 11), [3, 6, 0]);
        assert_eq!(targets("4+2+1", 8), [2, 5, 0]);
        let pool = PoolLayout::new("4+2+1".parse().unwrap(), 8, 4096).unwrap();
        let with_spares = record_and_spare_targets(&pool, example);
        assert_eq!((with_spares.len(), &with_spares[..3]), (4, &[2, 5, 0][..]), "spares come behind");
        assert_eq!(targets("1+0+0", 1), [0]);
        assert_eq!(targets("1+2+0", 3).len(), 3);
    }
}
