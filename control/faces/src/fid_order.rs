//! Where a thing stands in a list of things with fids.

use base::Fid;

/// Index of the thing with this fid. Quick where the list is in the order of fids, as this program writes cluster files and configurations are
/// made from them; otherwise each is looked at.
pub(crate) fn position_of<T>(all: &[T], fid: Fid, fid_of: impl Fn(&T) -> Fid) -> Option<usize> {
    let in_order = all.binary_search_by_key(&fid, &fid_of);
    in_order.ok().or_else(|| all.iter().position(|one| fid_of(one) == fid))
}

#[cfg(test)]
mod tests {
    use base::FidType;

    use super::*;

    #[test]
    fn every_order_is_searched() {
        let fid = |key: u64| Fid::new(FidType::Device, 1, key);
        for keys in [vec![1, 2, 5, 9], vec![9, 5, 2, 1], vec![5, 1, 9, 2], vec![]] {
            for key in 0..10 {
                let found = position_of(&keys, fid(key), |key| fid(*key));
                assert_eq!(found, keys.iter().position(|other| *other == key), "{key} in {keys:?}");
            }
        }
    }
}
