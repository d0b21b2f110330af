//! Where units live, and what a read or a write of a parity group has to touch. Pure: values in, values out.
//!
//! An object is cut into parity groups of N data, K parity and S spare units; a formula sends each unit to a target (a
//! device's component object) and a frame in it, so that no map is stored and every node agrees. docs/layout.md is the
//! format: mapping, matrix, placement of records, each with values that the tests check.
//!
//! Must not know: I/O, clocks, configuration, which device a target is. No threads; [`ObjectLayout`] is `Send` and belongs
//! to one locality, the rest is immutable.
//!
//! **Invariant**: units of one group are on distinct targets, so losing K targets loses at most K units of any group.
//! **Invariant**: the same inputs give the same answer on every node, for ever: the formula is part of the disk format.
//!
//! Start reading at [`PoolLayout`], then [`ObjectLayout::place`], [`groups_of`], [`read_plan`], [`write_plan`], [`GroupCodec`].
#![forbid(unsafe_code)]

mod codec;
mod declustering;
mod group;
mod permutation;
mod plan;
mod pool;
mod record;
mod spares;
mod unit_set;

pub use codec::{CodecError, GroupCodec, RebuildPlan};
pub use declustering::{Frame, GroupUnit, ObjectLayout};
pub use gf256::{Kernel, ParseKernelError};
pub use group::{GroupSpan, UnitSpan, groups_of};
pub use plan::{
    ParityMethod, ReadPlan, TooManyLost, Units, WritePlan, read_plan, read_plan_within, write_plan,
};
pub use pool::{LayoutError, PoolLayout, UnitKind};
pub use record::{RecordTargets, record_and_spare_targets, record_targets};
pub use spares::{StandIns, stand_ins};
pub use unit_set::UnitSet;
