//! What changed from one encoded configuration to the next, as bytes that go and bytes that come in their place. Pure.
//!
//! It knows nothing of what the bytes mean: whatever a configuration will have more of, its changes travel the same way. The encoding has numbers
//! of fixed width, so that a device that changes its state moves nothing behind it. **Invariant**: [`apply`] of [`difference`] gives the other
//! bytes, whatever both were. That the result is what was meant is for its checksum to say, which travels beside it.
//! Bound: a result of at most `bytes_max` bytes; time and memory in proportion to it. Start at [`difference`].

use base::units::wide;
use fops::conf_sync::ConfSplice;

use crate::limits::CONF_SPLICE_BYTES;

/// Equal bytes that end a splice: fewer cost less inside of it than another one's head.
const RUN: usize = CONF_SPLICE_BYTES;
/// Equal bytes that show that something was put in or taken out, and what is behind only moved.
const RUN_MOVED: usize = 4 * RUN;

/// Why a difference does not fit what it is to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadDifference {
    /// Begins before the end of the one before, or ends behind the bytes.
    #[error(
        "a change of bytes {at} to {end} does not fit: those up to {taken} were changed, and there are {bytes}"
    )]
    Place {
        /// Where it begins.
        at: u64,
        /// Where it ends.
        end: u64,
        /// End of the one before.
        taken: u64,
        /// Bytes that there are.
        bytes: u64,
    },
    /// The result would be longer than anything that is meant.
    #[error("the changed bytes would be {bytes}, more than {max}")]
    TooLong {
        /// How many.
        bytes: u64,
        /// How many may be.
        max: u64,
    },
}

/// The splices that make `new` of `old`, by ascending offsets.
///
/// # Panics
/// If either has 4 GiB: configurations are bounded far below.
#[must_use]
pub fn difference(old: &[u8], new: &[u8]) -> Vec<ConfSplice> {
    let mut splices = Vec::new();
    let (mut from, mut to) = (0, 0);
    loop {
        let same = equal_bytes(&old[from..], &new[to..]);
        (from, to) = (from + same, to + same);
        let (old_rest, new_rest) = (&old[from..], &new[to..]);
        if old_rest.is_empty() && new_rest.is_empty() {
            return splices;
        }
        let (gone, put) = next_splice(old_rest, new_rest);
        let short = |count: usize| u32::try_from(count).expect("a configuration is below 4 GiB");
        splices.push(ConfSplice { at: short(from), gone: short(gone), put: new_rest[..put].to_vec() });
        (from, to) = (from + gone, to + put);
    }
}

/// How many bytes of each, which differ in the first one, make one splice.
fn next_splice(old: &[u8], new: &[u8]) -> (usize, usize) {
    let is_moved = |old: &[u8], new: &[u8]| {
        let run = RUN_MOVED.min(old.len());
        old[..run] == new[..run]
    };
    if let Some(more) = new.len().checked_sub(old.len()).filter(|more| *more > 0)
        && is_moved(old, &new[more..])
    {
        return (0, more);
    }
    if let Some(less) = old.len().checked_sub(new.len()).filter(|less| *less > 0)
        && is_moved(new, &old[less..])
    {
        return (less, 0);
    }
    let both = old.len().min(new.len());
    let mut run = 0;
    for at in 0..both {
        run = if old[at] == new[at] { run + 1 } else { 0 };
        if run == RUN {
            return (at + 1 - RUN, at + 1 - RUN);
        }
    }
    // All the rest but what both end with.
    let same = old.iter().rev().zip(new.iter().rev()).take_while(|(one, other)| one == other).count();
    (old.len() - same, new.len() - same)
}

/// How many bytes both begin with.
fn equal_bytes(one: &[u8], other: &[u8]) -> usize {
    const STEP: usize = 256;
    let steps = one.chunks_exact(STEP).zip(other.chunks_exact(STEP));
    let whole = steps.take_while(|(one, other)| one == other).count() * STEP;
    let rest = one[whole..].iter().zip(&other[whole..]);
    whole + rest.take_while(|(one, other)| one == other).count()
}

/// Changes `bytes`. Errors: splices that overlap, are out of order or out of bounds, or a result above `bytes_max`; `bytes` is as it was then.
pub fn apply(bytes: &mut Vec<u8>, splices: &[ConfSplice], bytes_max: usize) -> Result<(), BadDifference> {
    let (mut taken, mut result) = (0_u64, wide(bytes.len()));
    for ConfSplice { at, gone, put } in splices {
        let (at, end) = (u64::from(*at), u64::from(*at) + u64::from(*gone));
        if at < taken || end > wide(bytes.len()) {
            return Err(BadDifference::Place { at, end, taken, bytes: wide(bytes.len()) });
        }
        taken = end;
        result = result + wide(put.len()) - u64::from(*gone);
    }
    if result > wide(bytes_max) {
        return Err(BadDifference::TooLong { bytes: result, max: wide(bytes_max) });
    }
    let index = |number: u32| base::units::narrow(u64::from(number));
    if splices.iter().all(|splice| index(splice.gone) == splice.put.len()) {
        for splice in splices {
            let at = index(splice.at);
            bytes[at..at + splice.put.len()].copy_from_slice(&splice.put);
        }
        return Ok(());
    }
    let mut changed = Vec::with_capacity(base::units::narrow(result));
    let mut from = 0;
    for splice in splices {
        changed.extend_from_slice(&bytes[from..index(splice.at)]);
        changed.extend_from_slice(&splice.put);
        from = index(splice.at) + index(splice.gone);
    }
    changed.extend_from_slice(&bytes[from..]);
    *bytes = changed;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(old: &[u8], new: &[u8]) -> Vec<ConfSplice> {
        let splices = difference(old, new);
        let mut bytes = old.to_vec();
        apply(&mut bytes, &splices, new.len()).unwrap();
        assert!(bytes == new, "{splices:?}");
        splices
    }

    fn numbers(count: u32) -> Vec<u8> {
        (0..count).flat_map(u32::to_le_bytes).collect()
    }

    #[test]
    fn what_changed_in_place_is_told_byte_by_byte_and_what_is_near_in_one() {
        let old = numbers(10_000);
        assert_eq!(changed(&old, &old), []);
        let mut new = old.clone();
        new[0] = 9;
        new[20_000] ^= 255;
        new[20_003] ^= 255;
        let splices = changed(&old, &new);
        assert_eq!(splices[0], ConfSplice { at: 0, gone: 1, put: vec![9] });
        let places: Vec<_> = splices.iter().map(|one| (one.at, one.gone, one.put.len())).collect();
        assert_eq!(places, [(0, 1, 1), (20_000, 4, 4)]);
    }

    #[test]
    fn what_is_put_in_or_taken_out_moves_the_rest_for_little() {
        let old = numbers(10_000);
        let mut new = old.clone();
        new.splice(8_000..8_000, [1, 2, 3, 4, 5, 6, 7]);
        new[4] ^= 1;
        let bytes = |splices: Vec<ConfSplice>| splices.iter().map(|one| one.put.len()).sum::<usize>();
        assert_eq!(changed(&old, &new).len(), 2);
        assert!(bytes(changed(&old, &new)) <= 8 && bytes(changed(&new, &old)) <= 1);
        assert_eq!(bytes(changed(&[], &old)), old.len());
        assert_eq!(changed(&old, &[]).len(), 1);
    }

    #[test]
    fn any_two_give_each_other() {
        let mut random = 12345_u64;
        let mut next = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(random >> 40).unwrap() % below
        };
        for _ in 0..2_000 {
            // Few values, so that runs are equal by chance as well.
            let mut old: Vec<u8> = (0..next(300)).map(|_| u8::try_from(next(2)).unwrap()).collect();
            old.resize(old.len() + next(200), 7);
            let mut new = old.clone();
            for _ in 0..next(4) {
                let at = next(new.len() + 1);
                let end = (at + next(40)).min(new.len());
                let put: Vec<u8> = (0..next(40)).map(|_| u8::try_from(next(3)).unwrap()).collect();
                new.splice(at..end, put);
            }
            changed(&old, &new);
        }
    }

    #[test]
    fn splices_that_do_not_fit_are_refused_and_change_nothing() {
        let splice = |at, gone, put: &[u8]| ConfSplice { at, gone, put: put.to_vec() };
        let whole = numbers(10);
        for (wrong, what) in [
            (vec![splice(40, 1, &[])], "ends behind"),
            (vec![splice(u32::MAX, u32::MAX, &[])], "far behind"),
            (vec![splice(4, 4, &[1]), splice(7, 1, &[2])], "overlap"),
            (vec![splice(9, 1, &[1]), splice(3, 1, &[2])], "out of order"),
            (vec![splice(0, 0, &[0; 25])], "too long"),
        ] {
            let mut bytes = whole.clone();
            assert!(apply(&mut bytes, &wrong, 64).is_err(), "{what}");
            assert_eq!(bytes, whole, "{what}");
        }
        let mut bytes = whole.clone();
        apply(&mut bytes, &[splice(0, 0, &[0; 24]), splice(40, 0, &[])], 64).unwrap();
        assert_eq!(bytes.len(), 64);
    }
}
