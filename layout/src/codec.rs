//! Parity of one group, and lost units of it, in the words of the layout. The arithmetic is gf256's.
//!
//! Immutable and `Send + Sync`: one codec for each width serves a whole process.

use base::LayoutWidth;
use base::errors::{Blame, Blamed};
use gf256::{Code, CodeError, Decoder, Kernel};
use smallvec::SmallVec;

/// Why units are not encoded or rebuilt: the caller gave others than the plan said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct CodecError(#[from] pub CodeError);

impl Blamed for CodecError {
    fn blame(&self) -> Blame {
        Blame::Caller
    }
}

fn index(unit: u32) -> usize {
    base::units::narrow(u64::from(unit))
}

/// Encodes and rebuilds groups of one width.
#[derive(Clone, Debug)]
pub struct GroupCodec {
    width: LayoutWidth,
    code: Code,
}

impl GroupCodec {
    /// The codec for groups of `width` with the CPU's best kernel.
    #[must_use]
    pub fn new(width: LayoutWidth) -> GroupCodec {
        GroupCodec::with_kernel(width, Kernel::best())
            .expect("a LayoutWidth has 1 to 255 coded units, and the CPU its best")
    }

    /// The same with a kernel of the caller's choice, for benchmarks. Errors: the CPU lacks it.
    pub fn with_kernel(width: LayoutWidth, kernel: Kernel) -> Result<GroupCodec, CodecError> {
        let code = Code::with_kernel(index(width.data()), index(width.parity()), kernel)?;
        Ok(GroupCodec { width, code })
    }

    /// The shape of the groups.
    #[must_use]
    pub fn width(&self) -> LayoutWidth {
        self.width
    }

    /// The kernel in use.
    #[must_use]
    pub fn kernel(&self) -> Kernel {
        self.code.kernel()
    }

    /// Computes the K parity units, overwriting `parity`, whose slices have one length.
    ///
    /// `data`: the first data units in order. Units left out at the end, and what a unit is shorter than the parity, count
    /// as zeros. Any lengths and alignments. Allocates only above 32 data units. Errors: more data units than N, parity
    /// units other than K or of unequal length, a data unit longer than them.
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<(), CodecError> {
        let needed = index(self.width.data());
        if data.len() == needed {
            return Ok(self.code.encode(data, parity)?);
        }
        if data.len() > needed {
            return Err(CodecError(CodeError::InputCount { needed, got: data.len() }));
        }
        let mut all: SmallVec<[&[u8]; 32]> = SmallVec::from_slice(data);
        all.resize(needed, &[]);
        Ok(self.code.encode(&all, parity)?)
    }

    /// Brings parity up to date: `delta` is old XOR new of data unit `unit`. Errors: as [`GroupCodec::encode`].
    ///
    /// All K parity units are needed; where one is lost give a scratch one in its place.
    pub fn update(&self, unit: u32, delta: &[u8], parity: &mut [&mut [u8]]) -> Result<(), CodecError> {
        Ok(self.code.update(index(unit), delta, parity)?)
    }

    /// Computes the units `wanted` from those `present`, once.
    ///
    /// Units are numbered as in the layout: data 0..N, parity N..N+K. `present`: N or more distinct ones, any order; empty or
    /// short slices count as followed by zeros. `wanted`: slices of one length, overwritten. Errors: too few present,
    /// unknown or doubled units, unequal lengths. For many groups that lost the same units use [`GroupCodec::rebuild_plan`].
    pub fn rebuild(
        &self,
        present: &[(u32, &[u8])],
        wanted: &mut [(u32, &mut [u8])],
    ) -> Result<(), CodecError> {
        let units: SmallVec<[u32; 32]> = present.iter().map(|(unit, _)| *unit).collect();
        let wanted_units: SmallVec<[u32; 8]> = wanted.iter().map(|(unit, _)| *unit).collect();
        let plan = self.rebuild_plan(&units, &wanted_units)?;
        let bytes: SmallVec<[&[u8]; 32]> = present.iter().map(|(_, bytes)| *bytes).collect();
        let mut outputs: SmallVec<[&mut [u8]; 8]> =
            wanted.iter_mut().map(|(_, bytes)| &mut **bytes).collect();
        plan.rebuild(&bytes, &mut outputs)
    }

    /// Works out once how the units `wanted` come from those `present`. Errors: as [`GroupCodec::rebuild`].
    pub fn rebuild_plan(&self, present: &[u32], wanted: &[u32]) -> Result<RebuildPlan, CodecError> {
        let indexes =
            |units: &[u32]| units.iter().map(|unit| index(*unit)).collect::<SmallVec<[usize; 32]>>();
        Ok(RebuildPlan { decoder: Decoder::new(&self.code, &indexes(present), &indexes(wanted))? })
    }
}

/// How some units come from others, for any number of groups that lost the same ones.
#[derive(Clone, Debug)]
pub struct RebuildPlan {
    decoder: Decoder,
}

impl RebuildPlan {
    /// Computes the wanted units. `present` and `wanted` as many, and in the order, as the plan was made for.
    pub fn rebuild(&self, present: &[&[u8]], wanted: &mut [&mut [u8]]) -> Result<(), CodecError> {
        Ok(self.decoder.decode(present, wanted)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::read_plan_within;
    use crate::pool::PoolLayout;
    use crate::unit_set::UnitSet;
    use proptest::prelude::*;

    fn unit(seed: u32, bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| (at * 31 + index(seed) * 131 + (at >> 3) * 7).to_le_bytes()[0]).collect()
    }

    fn encode(codec: &GroupCodec, data: &[Vec<u8>], bytes: usize) -> Vec<Vec<u8>> {
        let mut parity = vec![vec![0xcc; bytes]; index(codec.width().parity())];
        let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        let mut outputs: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
        codec.encode(&data, &mut outputs).unwrap();
        parity
    }

    #[test]
    fn plans_and_codec_agree_for_every_loss_and_every_end_of_the_object() {
        const BYTES: usize = 100;
        for width in ["1+2+0", "3+1+0", "4+2+0", "2+3+0"] {
            let width: LayoutWidth = width.parse().unwrap();
            let pool = PoolLayout::new(width, width.width(), 4096).unwrap();
            let codec = GroupCodec::new(width);
            for written in 1..=width.data() {
                let mut group: Vec<Vec<u8>> = (0..written).map(|seed| unit(seed, BYTES)).collect();
                let parity = encode(&codec, &group, BYTES);
                group.resize(index(width.data()), vec![0; BYTES]);
                assert_eq!(encode(&codec, &group, BYTES), parity, "units left out are zeros");
                group.extend(parity);
                let wanted: Vec<u32> = (0..width.coded()).collect();
                for lost_bits in 0u32..1 << width.coded() {
                    let lost: UnitSet =
                        (0..width.coded()).filter(|unit| lost_bits >> unit & 1 == 1).collect();
                    let Ok(plan) = read_plan_within(&pool, &wanted, &lost, written) else {
                        assert!(lost.len() > width.parity());
                        continue;
                    };
                    let mut present: Vec<(u32, &[u8])> =
                        plan.fetch.iter().map(|unit| (*unit, group[index(*unit)].as_slice())).collect();
                    present.extend(plan.zeros.iter().map(|unit| (*unit, &[][..])));
                    let mut rebuilt = vec![vec![0xdd; BYTES]; plan.rebuild.len()];
                    let mut outputs: Vec<(u32, &mut [u8])> =
                        plan.rebuild.iter().copied().zip(rebuilt.iter_mut().map(Vec::as_mut_slice)).collect();
                    codec.rebuild(&present, &mut outputs).unwrap();
                    for (unit, bytes) in plan.rebuild.iter().zip(&rebuilt) {
                        assert_eq!(bytes, &group[index(*unit)], "{width} written {written} lost {lost:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn replication_keeps_copies() {
        let codec = GroupCodec::new("1+3+0".parse().unwrap());
        let data = vec![unit(5, 77)];
        assert!(encode(&codec, &data, 77).iter().all(|copy| *copy == data[0]));
    }

    #[test]
    fn wrong_units_are_refused() {
        let codec = GroupCodec::new("2+1+0".parse().unwrap());
        let mut parity = [0; 4];
        let units: [&[u8]; 3] = [&[1; 4]; 3];
        assert_eq!(
            codec.encode(&units, &mut [&mut parity]),
            Err(CodecError(CodeError::InputCount { needed: 2, got: 3 }))
        );
        assert_eq!(
            codec.rebuild(&[(0, &[1; 4])], &mut [(1, &mut parity)]),
            Err(CodecError(CodeError::TooFewPresent { present: 1, needed: 2 }))
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn updates_and_rebuilds_round_trip(data in 1u32..12, parity in 1u32..5, bytes in 1usize..300, pick: u64) {
            let width = LayoutWidth::new(data, parity, 0).unwrap();
            let codec = GroupCodec::new(width);
            let mut group: Vec<Vec<u8>> = (0..data).map(|seed| unit(seed, bytes)).collect();
            let mut parities = encode(&codec, &group, bytes);
            let changed = u32::try_from(pick % u64::from(data)).unwrap();
            let delta = unit(77, bytes);
            group[index(changed)].iter_mut().zip(&delta).for_each(|(byte, change)| *byte ^= change);
            let mut outputs: Vec<&mut [u8]> = parities.iter_mut().map(Vec::as_mut_slice).collect();
            codec.update(changed, &delta, &mut outputs).unwrap();
            prop_assert_eq!(&parities, &encode(&codec, &group, bytes));
            // Lose the first K units from a place that depends on the pick, wrapping round.
            group.extend(parities);
            let lost: Vec<u32> = (0..parity).map(|at| (changed + at) % (data + parity)).collect();
            let present: Vec<u32> = (0..data + parity).filter(|unit| !lost.contains(unit)).collect();
            let plan = codec.rebuild_plan(&present, &lost).unwrap();
            let inputs: Vec<&[u8]> = present.iter().map(|unit| group[index(*unit)].as_slice()).collect();
            let mut rebuilt = vec![vec![0; bytes]; lost.len()];
            let mut outputs: Vec<&mut [u8]> = rebuilt.iter_mut().map(Vec::as_mut_slice).collect();
            plan.rebuild(&inputs, &mut outputs).unwrap();
            for (unit, bytes) in lost.iter().zip(&rebuilt) {
                prop_assert_eq!(bytes, &group[index(*unit)]);
            }
        }
    }
}
