//! The layout of a pool: the shape of its groups, its devices and its unit size, checked once.

use base::errors::{Blame, Blamed};
use base::limits::{POOL_WIDTH_MAX, UNIT_BYTES_MAX, UNIT_BYTES_MIN};
use base::units::BLOCK_BYTES;
use base::{Fid, LayoutWidth};

/// What a unit of a group carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UnitKind {
    /// Bytes of the object: units 0..N.
    Data,
    /// Redundancy: units N..N+K.
    Parity,
    /// Room for a unit that is rebuilt: units N+K..N+K+S.
    Spare,
}

/// Why a layout is refused. All blame the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// Units of a group are on distinct devices, and there are too few.
    #[error(
        "layout {width} needs {} devices, but the pool has {pool_width}: add devices or choose fewer units",
        width.width()
    )]
    TooFewDevices {
        /// The shape asked for.
        width: LayoutWidth,
        /// Devices of the pool.
        pool_width: u32,
    },
    /// More devices than one pool version may have.
    #[error("a pool of {pool_width} devices is more than {POOL_WIDTH_MAX}: make several pools")]
    TooManyDevices {
        /// Devices of the pool.
        pool_width: u32,
    },
    /// The unit is no multiple of the block or out of bounds.
    #[error(
        "a unit of {unit_bytes} bytes is not a multiple of {BLOCK_BYTES} from {UNIT_BYTES_MIN} to {UNIT_BYTES_MAX}"
    )]
    UnitBytes {
        /// Bytes asked for.
        unit_bytes: u32,
    },
}

impl Blamed for LayoutError {
    fn blame(&self) -> Blame {
        Blame::Caller
    }
}

/// Shape of the groups, devices and unit size of a pool version. Valid by construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PoolLayout {
    width: LayoutWidth,
    pool_width: u32,
    unit_bytes: u32,
}

impl PoolLayout {
    /// The layout of groups of `width` over `pool_width` devices (P) in units of `unit_bytes`.
    ///
    /// Errors: N+K+S above P, P above [`POOL_WIDTH_MAX`], a unit that is no multiple of the block or out of
    /// [`UNIT_BYTES_MIN`]..=[`UNIT_BYTES_MAX`].
    pub fn new(width: LayoutWidth, pool_width: u32, unit_bytes: u32) -> Result<PoolLayout, LayoutError> {
        if pool_width > POOL_WIDTH_MAX {
            return Err(LayoutError::TooManyDevices { pool_width });
        }
        if width.width() > pool_width {
            return Err(LayoutError::TooFewDevices { width, pool_width });
        }
        let bytes = u64::from(unit_bytes);
        if !(UNIT_BYTES_MIN..=UNIT_BYTES_MAX).contains(&bytes) || !bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(LayoutError::UnitBytes { unit_bytes });
        }
        Ok(PoolLayout { width, pool_width, unit_bytes })
    }

    /// N, K and S.
    #[must_use]
    pub fn width(&self) -> LayoutWidth {
        self.width
    }

    /// P: devices of the pool.
    #[must_use]
    pub fn pool_width(&self) -> u32 {
        self.pool_width
    }

    /// Bytes of a unit.
    #[must_use]
    pub fn unit_bytes(&self) -> u32 {
        self.unit_bytes
    }

    /// Bytes of an object that one group holds: N units.
    #[must_use]
    pub fn group_bytes(&self) -> u64 {
        u64::from(self.width.data()) * u64::from(self.unit_bytes)
    }

    /// What unit `unit` of a group carries, or `None` past the last.
    #[must_use]
    pub fn unit_kind(&self, unit: u32) -> Option<UnitKind> {
        match unit {
            unit if unit < self.width.data() => Some(UnitKind::Data),
            unit if unit < self.width.coded() => Some(UnitKind::Parity),
            unit if unit < self.width.width() => Some(UnitKind::Spare),
            _ => None,
        }
    }

    /// The placement of one object's units.
    #[must_use]
    pub fn object(&self, object: Fid) -> crate::ObjectLayout {
        crate::ObjectLayout::new(*self, object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_a_pool() {
        let width: LayoutWidth = "4+2+1".parse().unwrap();
        assert!(PoolLayout::new(width, 7, 4096).is_ok());
        assert_eq!(PoolLayout::new(width, 6, 4096), Err(LayoutError::TooFewDevices { width, pool_width: 6 }));
        assert!(PoolLayout::new(width, POOL_WIDTH_MAX, 1 << 20).is_ok());
        let pool_width = POOL_WIDTH_MAX + 1;
        assert_eq!(PoolLayout::new(width, pool_width, 4096), Err(LayoutError::TooManyDevices { pool_width }));
        for unit_bytes in [0, 1, 4095, 4097, (1 << 20) + 4096, u32::MAX] {
            assert_eq!(PoolLayout::new(width, 7, unit_bytes), Err(LayoutError::UnitBytes { unit_bytes }));
        }
    }

    #[test]
    fn kinds_of_units() {
        let pool = PoolLayout::new("2+2+1".parse().unwrap(), 5, 8192).unwrap();
        use UnitKind::{Data, Parity, Spare};
        let kinds: Vec<_> = (0..6).map(|unit| pool.unit_kind(unit)).collect();
        assert_eq!(kinds, [Some(Data), Some(Data), Some(Parity), Some(Parity), Some(Spare), None]);
        assert_eq!(pool.group_bytes(), 16384);
    }
}
