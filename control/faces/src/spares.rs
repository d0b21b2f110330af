//! Devices whose units stand in spare units: which slot each has, and how far it is on its way there or back (docs/rfd/0014).
//!
//! A slot is a number below S of every pool version that the device is in, and its own in its pool: a unit of the device stands in spare unit
//! `N + K + slot` of its group, and on from there if that one's device has a slot too (`layout::stand_ins`).
//! **Invariant**: where no device ever had a slot the configuration encodes as it did before there were any. **Invariant**: a slot is given to
//! another device only once nothing is in its spare units, and nobody who takes them for another device's is answered: [`Spares::reads_from`].
//! Start at [`SpareSlot`] and [`SparePhase`].

use base::Fid;
use bincode::{Decode, Encode};

use crate::configuration::{Configuration, ConfigurationError, DeviceConfig};
use crate::limits::SPARE_SLOTS_MAX;

/// Numbers of copies to spare units and back have this bit, those of replacements of disks do not. The two bits below it say which way, the others count.
pub const SPARE_JOB: u32 = 1 << 31;
/// Where the two bits are.
const WAY_SHIFT: u32 = 29;

/// What a copy with a number of its own does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpareCopy {
    /// Fills spare units with what a device had.
    There,
    /// Brings it back to the device's new disk.
    Back,
    /// Frees the spare units.
    Free,
}

impl SpareCopy {
    /// What the copy of a number does; `None`: it is that of a replacement.
    #[must_use]
    pub const fn of_number(number: u32) -> Option<SpareCopy> {
        match (number & SPARE_JOB, (number >> WAY_SHIFT) & 3) {
            (0, _) => None,
            (_, 0) => Some(SpareCopy::There),
            (_, 1) => Some(SpareCopy::Back),
            _ => Some(SpareCopy::Free),
        }
    }

    /// Which copy of the cluster it is, for people.
    #[must_use]
    pub const fn count_of(number: u32) -> u32 {
        number & ((1 << WAY_SHIFT) - 1)
    }

    /// For people and programs.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            SpareCopy::There => "to spare units",
            SpareCopy::Back => "back from spare units",
            SpareCopy::Free => "freeing spare units",
        }
    }
}

/// How far a device is on the way to spare units, or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum SparePhase {
    /// The device is failed. Its units are being rebuilt in spare units: writes go there, reads rebuild.
    Filling,
    /// The device is repaired. Writes and reads go to the spare units.
    Standing,
    /// The device has another disk, and its units are being copied to it. Writes go to both, reads to the spare units.
    Returning,
    /// Everything is on its disk. Writes go to both, reads to the device: until everybody who reads the spare units would be refused.
    Leaving,
    /// Nobody uses the spare units any more: they are being freed. For reads and writes there is no slot.
    Freeing,
}

impl SparePhase {
    /// True if units of the device are looked for in spare units, or written there.
    #[must_use]
    pub const fn is_mapped(self) -> bool {
        !matches!(self, SparePhase::Freeing)
    }

    /// True if the device itself takes writes.
    #[must_use]
    pub const fn takes_writes(self) -> bool {
        matches!(self, SparePhase::Returning | SparePhase::Leaving)
    }

    /// True if a server has something to copy or to free.
    #[must_use]
    pub const fn is_job(self) -> bool {
        matches!(self, SparePhase::Filling | SparePhase::Returning | SparePhase::Freeing)
    }

    /// For people, of a device.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            SparePhase::Filling => "its units are being rebuilt in spare units",
            SparePhase::Standing => "its units stand in spare units",
            SparePhase::Returning => "its units are being copied back from spare units",
            SparePhase::Leaving => "its units are back from spare units",
            SparePhase::Freeing => "the spare units that it had are being freed",
        }
    }
}

/// One device's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SpareSlot {
    /// Device index.
    pub device: u32,
    /// Which spare unit of each group, from 0.
    pub slot: u32,
    /// How far it is.
    pub phase: SparePhase,
    /// Number of the copy that this phase is for, or the last one was; no two phases have the same.
    pub job: u32,
}

/// All slots that are taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Spares {
    /// In the order in which they were taken.
    pub slots: Vec<SpareSlot>,
    /// Reads of requesters with an older version are refused: they would look for units in spare units that may be another device's by now.
    pub reads_from: u64,
    /// Copies that were ever begun.
    pub jobs: u32,
}

/// Why a device's units cannot go to spare units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoSpare {
    /// It holds nothing.
    #[error("it is in no pool")]
    NoPool,
    /// A layout without spare units.
    #[error("the layout of pool version {pool_version} has no spare units (N+K+S with an S of 0)")]
    NoUnits {
        /// The first such version.
        pool_version: Fid,
    },
    /// They stand for others already.
    #[error("all {spares} spare units of a group stand for other devices, or are being freed of them")]
    AllTaken {
        /// S.
        spares: u32,
    },
}

impl Spares {
    /// True if it is what a cluster begins with.
    pub(crate) fn says_nothing(&self) -> bool {
        *self == Spares::default()
    }

    /// A number for the next copy.
    pub fn next_job(&mut self, copy: SpareCopy) -> u32 {
        self.jobs = SpareCopy::count_of(self.jobs.wrapping_add(1));
        let way: u32 = match copy {
            SpareCopy::There => 0,
            SpareCopy::Back => 1,
            SpareCopy::Free => 2,
        };
        SPARE_JOB | way << WAY_SHIFT | self.jobs
    }
}

impl Configuration {
    /// The slot of a device, by its index.
    #[must_use]
    pub fn spare_slot(&self, index: u32) -> Option<&SpareSlot> {
        self.spares.slots.iter().find(|slot| slot.device == index)
    }

    /// The slot of a device.
    #[must_use]
    pub fn spare_slot_of(&self, device: Fid) -> Option<&SpareSlot> {
        if self.spares.slots.is_empty() {
            return None;
        }
        self.spare_slot(self.target_index(device)?)
    }

    /// The same, to be changed.
    pub fn spare_slot_mut(&mut self, device: Fid) -> Option<&mut SpareSlot> {
        let index = self.target_index(device)?;
        self.spares.slots.iter_mut().find(|slot| slot.device == index)
    }

    /// The pool of a device, by its index.
    #[must_use]
    pub fn pool_of(&self, index: u32) -> Option<Fid> {
        self.pool_versions().find(|version| version.has_device(index)).map(|version| version.pool)
    }

    /// The device whose server copies a device's units to spare units and back, and frees those: the one that would move the pool's objects.
    #[must_use]
    pub fn spare_copier(&self, index: u32) -> Option<&DeviceConfig> {
        self.mover(self.pool_of(index)?)
    }

    /// The first slot that a device may have. Errors: there is none.
    pub fn free_spare_slot(&self, index: u32) -> Result<u32, NoSpare> {
        let pool = self.pool_of(index).ok_or(NoSpare::NoPool)?;
        let its_own = self.pool_versions().filter(|version| version.has_device(index));
        let Some((spares, pool_version)) = its_own
            .map(|version| (version.width.spare(), version.pool_version))
            .min_by_key(|(spares, _)| *spares)
        else {
            return Err(NoSpare::NoPool);
        };
        if spares == 0 {
            return Err(NoSpare::NoUnits { pool_version });
        }
        let in_pool = self.spares.slots.iter().filter(|slot| self.pool_of(slot.device) == Some(pool));
        let taken: Vec<u32> = in_pool.map(|slot| slot.slot).collect();
        (0..spares).find(|slot| !taken.contains(slot)).ok_or(NoSpare::AllTaken { spares })
    }

    /// The limits, and that no device has two slots and no slot of a pool two devices.
    pub(crate) fn check_spares(&self) -> Result<(), ConfigurationError> {
        let slots = &self.spares.slots;
        if slots.len() > SPARE_SLOTS_MAX {
            let (what, count, max) = ("devices in spare units", slots.len(), SPARE_SLOTS_MAX);
            return Err(ConfigurationError::TooMany { what, count, max });
        }
        for (index, one) in slots.iter().enumerate() {
            let pool = self.pool_of(one.device);
            let clashes = |other: &SpareSlot| {
                other.device == one.device || (other.slot == one.slot && self.pool_of(other.device) == pool)
            };
            if pool.is_none() || slots[..index].iter().any(clashes) {
                return Err(ConfigurationError::SpareSlot { device: one.device, slot: one.slot });
            }
        }
        Ok(())
    }
}

/// The most that the limits allow.
#[cfg(test)]
pub(crate) fn largest() -> Spares {
    let slot = |index| SpareSlot { device: index, slot: index, phase: SparePhase::Freeing, job: u32::MAX };
    let count = u32::try_from(SPARE_SLOTS_MAX).unwrap();
    Spares { slots: (0..count).map(slot).collect(), reads_from: u64::MAX, jobs: 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster_file::ClusterFile;

    fn example() -> Configuration {
        ClusterFile::parse(include_str!("cluster_file_example.toml")).unwrap().initial_configuration()
    }

    fn slot(device: u32, slot: u32, phase: SparePhase) -> SpareSlot {
        SpareSlot { device, slot, phase, job: SPARE_JOB | 1 }
    }

    #[test]
    fn without_a_slot_the_bytes_are_those_of_before_there_were_any() {
        let mut configuration = example();
        let plain = configuration.to_bytes().unwrap();
        configuration.spares.slots.push(slot(2, 0, SparePhase::Standing));
        configuration.spares.reads_from = 9;
        let longer = configuration.to_bytes().unwrap();
        assert_eq!(longer[..plain.len()], plain);
        assert_eq!(Configuration::from_bytes(&longer).unwrap(), configuration);
        // Pinned: what further pools would say (docs/pools.md#bytes), then one slot, the version that reads need, and copies begun.
        let tail: String = longer[plain.len()..].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            tail,
            "04000000\
             0000000000000000\
             0000000000000000\
             0000000000000000\
             0100000000000000\
             02000000000000000100000001000080\
             0900000000000000\
             00000000"
        );
        configuration.spares = Spares::default();
        assert_eq!(configuration.to_bytes().unwrap(), plain);
        assert_eq!(Configuration::from_bytes(&plain).unwrap(), configuration);
    }

    #[test]
    fn slots_are_one_for_each_device_and_below_s() {
        let mut configuration = example();
        let spares = configuration.pool.width.spare();
        assert_eq!(spares, 1, "of the example's 2+1+1");
        assert_eq!(configuration.free_spare_slot(1), Ok(0));
        configuration.spares.slots.push(slot(2, 0, SparePhase::Freeing));
        configuration.check().unwrap();
        assert_eq!(configuration.free_spare_slot(1), Err(NoSpare::AllTaken { spares: 1 }));
        assert_eq!(configuration.free_spare_slot(77), Err(NoSpare::NoPool));
        assert_eq!(configuration.spare_slot_of(configuration.pool.devices[2].device).unwrap().slot, 0);
        for wrong in [
            slot(2, 1, SparePhase::Filling),
            slot(3, 0, SparePhase::Filling),
            slot(9, 1, SparePhase::Filling),
        ] {
            let mut bad = configuration.clone();
            bad.spares.slots.push(wrong);
            assert!(matches!(bad.check(), Err(ConfigurationError::SpareSlot { .. })), "{wrong:?}");
        }
        configuration.pool.width = base::LayoutWidth::new(2, 1, 0).unwrap();
        assert!(matches!(configuration.free_spare_slot(1), Err(NoSpare::NoUnits { .. })));
    }

    #[test]
    fn no_two_copies_have_one_number() {
        let mut spares = Spares::default();
        let ways = [SpareCopy::There, SpareCopy::Back, SpareCopy::Free, SpareCopy::There];
        let jobs: Vec<u32> = ways.iter().map(|way| spares.next_job(*way)).collect();
        assert_eq!(jobs, [0x8000_0001, 0xa000_0002, 0xc000_0003, 0x8000_0004]);
        assert!(jobs.iter().zip(ways).all(|(job, way)| SpareCopy::of_number(*job) == Some(way)));
        assert_eq!((SpareCopy::of_number(7), SpareCopy::count_of(jobs[2])), (None, 3));
        spares.jobs = u32::MAX >> 3;
        assert_eq!(spares.next_job(SpareCopy::Free), 0xc000_0000, "and from the beginning");
    }
}
