//! Layout ids and unit sizes: id L stands for units of 2^(11 + L) bytes, L from 1 to 14. Source: the header, `m0_clovis_obj_unit_size_to_layout_id`.

use base::limits::UNIT_BYTES_MAX;

/// Largest id: 32 MiB.
pub const LAYOUT_ID_MAX: u64 = 14;

/// Unit size of an id, `None` for 0 (the default) and for what is no id.
#[must_use]
pub const fn unit_bytes(layout_id: u64) -> Option<u64> {
    if layout_id == 0 || layout_id > LAYOUT_ID_MAX { None } else { Some(1 << (11 + layout_id)) }
}

/// The id of a unit size, `None` if it is not one of the 14.
#[must_use]
pub fn layout_id(unit_bytes: u64) -> Option<u64> {
    (1..=LAYOUT_ID_MAX).find(|id| self::unit_bytes(*id) == Some(unit_bytes))
}

/// What a pool gives to whoever asks for `layout_id`: units above [`UNIT_BYTES_MAX`] become that. `None`: no such id.
#[must_use]
pub fn possible_unit_bytes(layout_id: u64) -> Option<u32> {
    u32::try_from(unit_bytes(layout_id)?.min(UNIT_BYTES_MAX)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_sizes_are_one_to_one() {
        assert_eq!((unit_bytes(1), unit_bytes(14)), (Some(4096), Some(32 << 20)));
        assert_eq!((unit_bytes(0), unit_bytes(15), unit_bytes(u64::MAX)), (None, None, None));
        for id in 1..=LAYOUT_ID_MAX {
            assert_eq!(layout_id(unit_bytes(id).unwrap()), Some(id));
        }
        assert_eq!((layout_id(0), layout_id(2048), layout_id(5000)), (None, None, None));
        assert_eq!((possible_unit_bytes(9), possible_unit_bytes(14)), (Some(1 << 20), Some(1 << 20)));
    }
}
