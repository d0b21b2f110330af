//! Turns written positions of groups into pieces for targets, parity included: encode, read-modify-write, complete rows.
//!
//! A row touched by a write in place is *complete* afterwards: all N data blocks (zeros where nothing was written) and all K
//! parity blocks. So a later growth of the object never turns a block that was never written into an erasure, and bytes
//! that a crashed writer left beyond the size are overwritten. A replacement writes into a fresh generation, where nothing can
//! be left over: there the blocks beyond the object's end stay unwritten.
//!
//! [`plan_group`] is the pure part: which rows need old bytes, and whether to read the rest of them or the old ones and the parity.

use std::ops::Range;

use base::units::{BLOCK_BYTES, narrow, wide};
use base::{ByteExtent, Instant};
use runtime::{Buffer, SharedBuffer, copy_counted};

use crate::batch::TargetPiece;
use crate::bug::Bug;
use crate::error::ClientError;
use crate::geometry::{Geometry, RowRun};
use crate::group_read::{GroupBytes, GroupRequest, Origin, RowBytes, read_groups};
use crate::parts::Parts;
use crate::targets::WriteBody;
use crate::view::View;

/// How old bytes come into a write of a part of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// They do not: everything below the old size is overwritten.
    Encode,
    /// The other data units of the rows are read, parity is made from scratch.
    ReadRest,
    /// The old bytes and the old parity are read, parity takes the difference.
    ReadOld,
}

/// What to do with one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupPlan {
    pub method: Method,
    /// Runs that are written without reading.
    pub fresh: Vec<RowRun>,
    /// Runs that need old bytes.
    pub partial: Vec<RowRun>,
}

/// Plans a write in place of `written` positions, with the object's end in this group moving from `below_old` to `below_new`.
pub(crate) fn plan_group(
    geometry: &Geometry,
    written: Range<u64>,
    below_old: u64,
    below_new: u64,
) -> GroupPlan {
    let mut plan = GroupPlan { method: Method::Encode, fresh: Vec::new(), partial: Vec::new() };
    let (mut rest, mut old, mut grows) = (0, 0, false);
    let width = geometry.width();
    for run in geometry.runs(written, below_old, below_new) {
        let covers_old = run.below_old == 0 || (run.covered.start == 0 && run.covered.end >= run.below_old);
        if covers_old {
            // Without parity there is nothing to keep in step, and the row is completed all the same.
            if !run.covered.is_empty() {
                plan.fresh.push(run);
            }
            continue;
        }
        let grows_here = run.below_new > run.below_old;
        if run.covered.is_empty() && !grows_here {
            continue;
        }
        let rows = run.rows.end - run.rows.start;
        let covered = u64::from(run.covered.end - run.covered.start);
        rest += rows * (u64::from(width.data()) - covered);
        old += rows * (covered + u64::from(width.parity()));
        grows |= grows_here;
        plan.partial.push(run);
    }
    if !plan.partial.is_empty() {
        // A growing row has to be completed, so the rest of it must be known.
        plan.method = if !grows && old < rest { Method::ReadOld } else { Method::ReadRest };
    }
    plan
}

/// A write to some groups of an object.
pub(crate) struct GroupWriter<'a> {
    pub view: &'a View,
    /// Object bytes that `parts` hold, block-aligned.
    pub extent: ByteExtent,
    pub parts: &'a Parts,
    /// The object's size before and after, for a write in place; `None`: a fresh generation.
    pub sizes: Option<(u64, u64)>,
    /// It was written once, and not to all places that units have by now: parity is made from all data, since old bytes may be new ones already.
    pub again: bool,
}

type Pieces = Vec<TargetPiece<WriteBody>>;
/// By data unit, its bytes for some rows as slices in order; empty: zeros.
type RowData = Vec<Vec<SharedBuffer>>;

impl GroupWriter<'_> {
    /// All pieces to send for `group`; reads what it has to.
    pub(crate) async fn pieces(&self, group: u64, deadline: Instant) -> Result<Pieces, ClientError> {
        let geometry = &self.view.geometry;
        let written = geometry.positions(group, self.extent);
        let Some((old, new)) = self.sizes else {
            let mut pieces = Vec::new();
            for run in geometry.runs(written, 0, 0) {
                if !run.covered.is_empty() {
                    self.encode_run(group, &run, false, &mut pieces).await?;
                }
            }
            return Ok(pieces);
        };
        let below = |size| geometry.positions_below(group, size);
        let plan = plan_group(geometry, written, below(old), below(new));
        let mut pieces = Vec::new();
        for run in &plan.fresh {
            self.encode_run(group, run, true, &mut pieces).await?;
        }
        if !plan.partial.is_empty()
            && (plan.method != Method::ReadOld
                || self.again
                || !self.update_parity(group, &plan.partial, deadline, &mut pieces).await?)
        {
            self.read_rest(group, &plan.partial, deadline, &mut pieces).await?;
        }
        Ok(pieces)
    }

    /// The new bytes of a unit's rows, all of which the write covers.
    fn new_bytes(&self, group: u64, unit: u32, rows: &Range<u64>) -> Vec<SharedBuffer> {
        let position = u64::from(unit) * self.view.geometry.unit_blocks() + rows.start;
        let start = self.view.geometry.byte_of(group, position) - self.extent.start;
        self.parts.slices(start..start + (rows.end - rows.start) * BLOCK_BYTES)
    }

    fn push(&self, pieces: &mut Pieces, group: u64, unit: u32, first_row: u64, slices: &[SharedBuffer]) {
        let mut row = first_row;
        for slice in slices {
            let rows = row..row + wide(slice.len()) / BLOCK_BYTES;
            row = rows.end;
            let body = WriteBody::new(slice.clone(), group, unit);
            pieces.extend(self.view.pieces_to_write(group, unit, &rows, &body));
        }
    }

    async fn zeros(&self, rows: &Range<u64>) -> SharedBuffer {
        let zeros = self.view.store.zeros(narrow(self.view.geometry.unit_bytes())).await;
        zeros.slice(0..narrow((rows.end - rows.start) * BLOCK_BYTES))
    }

    /// A run whose other units are zeros or beyond the end. `complete`: write those zeros too.
    async fn encode_run(
        &self,
        group: u64,
        run: &RowRun,
        complete: bool,
        pieces: &mut Pieces,
    ) -> Result<(), ClientError> {
        let mut data: RowData = Vec::new();
        for unit in 0..self.view.geometry.data() {
            let covered = run.covered.contains(&unit);
            data.push(if covered { self.new_bytes(group, unit, &run.rows) } else { Vec::new() });
        }
        self.push_parity(group, &run.rows, &data, pieces).await?;
        for (unit, slices) in (0u32..).zip(&data) {
            if !slices.is_empty() {
                self.push(pieces, group, unit, run.rows.start, slices);
            } else if complete {
                self.push(pieces, group, unit, run.rows.start, &[self.zeros(&run.rows).await]);
            }
        }
        Ok(())
    }

    /// Encodes parity of some rows and adds its pieces.
    async fn push_parity(
        &self,
        group: u64,
        rows: &Range<u64>,
        data: &RowData,
        pieces: &mut Pieces,
    ) -> Result<(), ClientError> {
        let geometry = &self.view.geometry;
        let bytes = narrow((rows.end - rows.start) * BLOCK_BYTES);
        let mut parity: Vec<Buffer> = Vec::new();
        for _ in geometry.data()..geometry.coded() {
            parity.push(self.view.store.locality.arena().alloc(bytes).await);
        }
        if parity.is_empty() || (self.sizes.is_some() && self.view.store.has_bug(Bug::StaleParity)) {
            return Ok(());
        }
        encode(&self.view.codec, data, &mut parity)
            .map_err(|error| ClientError::Internal(error.to_string()))?;
        for (unit, buffer) in (geometry.data()..geometry.coded()).zip(parity) {
            self.push(pieces, group, unit, rows.start, &[buffer.freeze()]);
        }
        Ok(())
    }

    /// Read-old: parity takes the difference. False: the rows are holes in part, read the rest instead.
    async fn update_parity(
        &self,
        group: u64,
        runs: &[RowRun],
        deadline: Instant,
        pieces: &mut Pieces,
    ) -> Result<bool, ClientError> {
        let geometry = &self.view.geometry;
        let touched = |run: &RowRun| run.covered.clone().chain(geometry.data()..geometry.coded());
        let wanted = runs.iter().flat_map(|run| touched(run).map(|unit| (unit, run.rows.clone()))).collect();
        let mut old = self.read_one(GroupRequest { group, wanted }, deadline).await?;
        if old.iter().flatten().any(|rows| rows.origin == Origin::Hole) {
            return Ok(false);
        }
        for run in runs {
            let rest = old.split_off(touched(run).count());
            let mut of_run = std::mem::replace(&mut old, rest);
            let parity_old = of_run.split_off(run.covered.len());
            let bytes = narrow((run.rows.end - run.rows.start) * BLOCK_BYTES);
            let mut parity = Vec::new();
            for unit in parity_old {
                parity.push(self.own_copy(unit, bytes).await);
            }
            for (unit, unit_old) in run.covered.clone().zip(of_run) {
                let new = self.new_bytes(group, unit, &run.rows);
                let mut delta = self.own_copy(unit_old, bytes).await;
                let mut at = 0;
                for slice in &new {
                    // Not a copy: each byte is combined with the old one in place.
                    delta[at..at + slice.len()].iter_mut().zip(&slice[..]).for_each(|(old, new)| *old ^= new);
                    at += slice.len();
                }
                let mut outputs: Vec<&mut [u8]> = parity.iter_mut().map(|buffer| &mut buffer[..]).collect();
                self.view
                    .codec
                    .update(unit, &delta, &mut outputs)
                    .map_err(|error| ClientError::Internal(error.to_string()))?;
                self.push(pieces, group, unit, run.rows.start, &new);
            }
            for (unit, buffer) in (geometry.data()..geometry.coded()).zip(parity) {
                self.push(pieces, group, unit, run.rows.start, &[buffer.freeze()]);
            }
        }
        Ok(true)
    }

    /// The bytes as one buffer to work in: the buffer they arrived in where nobody else holds it, else a counted copy.
    async fn own_copy(&self, mut rows: Vec<RowBytes>, bytes: usize) -> Buffer {
        let store = &self.view.store;
        if rows.len() == 1
            && let Some(only) = rows.pop()
        {
            match only.bytes.try_unshare() {
                Ok(buffer) => return buffer,
                Err(shared) => rows.push(RowBytes { bytes: shared, ..only }),
            }
        }
        let mut buffer = store.locality.arena().alloc(bytes).await;
        let mut at = 0;
        for part in rows {
            copy_counted(store.locality.counters(), &mut buffer[at..at + part.bytes.len()], &part.bytes);
            at += part.bytes.len();
        }
        buffer
    }

    /// Read-rest: all data of the rows is at hand, so parity is made from scratch and incomplete rows are completed.
    async fn read_rest(
        &self,
        group: u64,
        runs: &[RowRun],
        deadline: Instant,
        pieces: &mut Pieces,
    ) -> Result<(), ClientError> {
        let data = self.view.geometry.data();
        let rest = |run: &RowRun| {
            let covered = run.covered.clone();
            (0..data).filter(move |unit| !covered.contains(unit))
        };
        let wanted = runs.iter().flat_map(|run| rest(run).map(|unit| (unit, run.rows.clone()))).collect();
        let mut old = self.read_one(GroupRequest { group, wanted }, deadline).await?.into_iter();
        for run in runs {
            let old: Vec<(u32, Vec<RowBytes>)> = rest(run).zip(old.by_ref()).collect();
            for rows in cut(&run.rows, old.iter().flat_map(|(_, pieces)| pieces)) {
                self.rewrite_rows(group, run, &rows, &old, pieces).await?;
            }
        }
        Ok(())
    }

    /// Rows in which each old unit has one origin.
    async fn rewrite_rows(
        &self,
        group: u64,
        run: &RowRun,
        rows: &Range<u64>,
        old: &[(u32, Vec<RowBytes>)],
        pieces: &mut Pieces,
    ) -> Result<(), ClientError> {
        let old: Vec<(u32, Origin, SharedBuffer)> = old
            .iter()
            .filter_map(|(unit, parts)| part_of(parts, rows).map(|(origin, bytes)| (*unit, origin, bytes)))
            .collect();
        let hole = old.iter().any(|(_, origin, _)| *origin == Origin::Hole);
        if run.covered.is_empty() {
            // The object grows past these rows: blocks that come below its size are written, the parity has them as zeros. So are
            // those whose device did not answer just now (Rebuilt): it has none, or the same.
            for (unit, origin, bytes) in &old {
                let comes_below = (run.below_old..run.below_new).contains(unit);
                if !hole && *origin != Origin::Present && comes_below {
                    self.push(pieces, group, *unit, rows.start, std::slice::from_ref(bytes));
                }
            }
            return Ok(());
        }
        let mut data: RowData = vec![Vec::new(); narrow(u64::from(self.view.geometry.data()))];
        for unit in run.covered.clone() {
            data[narrow(u64::from(unit))] = self.new_bytes(group, unit, rows);
            self.push(pieces, group, unit, rows.start, &data[narrow(u64::from(unit))]);
        }
        for (unit, origin, bytes) in old {
            if origin != Origin::Present {
                self.push(pieces, group, unit, rows.start, std::slice::from_ref(&bytes));
            }
            data[narrow(u64::from(unit))] = vec![bytes];
        }
        self.push_parity(group, rows, &data, pieces).await
    }

    async fn read_one(&self, request: GroupRequest, deadline: Instant) -> Result<GroupBytes, ClientError> {
        let mut groups = read_groups(self.view, vec![request], deadline).await?;
        groups.pop().ok_or_else(|| ClientError::Internal("one request had no result".to_owned()))
    }
}

/// `rows`, cut where any of the parts begins or ends.
fn cut<'a>(rows: &Range<u64>, parts: impl Iterator<Item = &'a RowBytes>) -> Vec<Range<u64>> {
    let mut cuts: Vec<u64> = parts.flat_map(|part| [part.rows.start, part.rows.end]).collect();
    cuts.extend([rows.start, rows.end]);
    cuts.sort_unstable();
    cuts.dedup();
    cuts.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

/// The part that holds `rows`, cut to them.
fn part_of(parts: &[RowBytes], rows: &Range<u64>) -> Option<(Origin, SharedBuffer)> {
    let part = parts.iter().find(|part| part.rows.start <= rows.start && rows.end <= part.rows.end)?;
    let start = narrow((rows.start - part.rows.start) * BLOCK_BYTES);
    let end = narrow((rows.end - part.rows.start) * BLOCK_BYTES);
    Some((part.origin, part.bytes.slice(start..end)))
}

/// Encodes data whose units come in slices: cut where any unit's slices meet, so that each step sees contiguous bytes.
fn encode(
    codec: &layout::GroupCodec,
    data: &[Vec<SharedBuffer>],
    parity: &mut [Buffer],
) -> Result<(), layout::CodecError> {
    let bytes = parity.first().map_or(0, |buffer| buffer.len());
    let mut cuts = vec![0, bytes];
    for unit in data {
        let mut at = 0;
        for slice in unit {
            at += slice.len();
            cuts.push(at);
        }
    }
    cuts.sort_unstable();
    cuts.dedup();
    for pair in cuts.windows(2) {
        let range = pair[0]..pair[1];
        let inputs: Vec<&[u8]> = data.iter().map(|unit| contiguous(unit, &range)).collect();
        let mut outputs: Vec<&mut [u8]> =
            parity.iter_mut().map(|buffer| &mut buffer[range.clone()]).collect();
        codec.encode(&inputs, &mut outputs)?;
    }
    Ok(())
}

/// `range` of a unit, which lies inside one of its slices; empty if the unit is zeros.
fn contiguous<'a>(unit: &'a [SharedBuffer], range: &Range<usize>) -> &'a [u8] {
    let mut start = 0;
    for slice in unit {
        if range.start < start + slice.len() {
            return &slice[range.start - start..range.end - start];
        }
        start += slice.len();
    }
    &[]
}

#[cfg(test)]
mod tests {
    use base::LayoutWidth;
    use proptest::prelude::*;

    use super::*;

    fn geometry(data: u32, parity: u32, unit_blocks: u64) -> Geometry {
        Geometry::new(LayoutWidth::new(data, parity, 0).unwrap(), unit_blocks * BLOCK_BYTES).unwrap()
    }

    #[test]
    fn a_small_overwrite_reads_whichever_is_fewer() {
        let one_unit = |data, parity| {
            plan_group(&geometry(data, parity, 4), 4..8, 4 * u64::from(data), 4 * u64::from(data))
        };
        assert_eq!(one_unit(8, 2).method, Method::ReadOld, "3 units instead of 7");
        assert_eq!(one_unit(4, 2).method, Method::ReadRest, "3 units either way: no second operand");
        assert_eq!(one_unit(1, 2).method, Method::Encode, "replication overwrites");
    }

    #[test]
    fn appends_read_only_when_old_rows_are_touched() {
        let geometry = geometry(4, 2, 4);
        // The object ends with unit 1; unit 2 is appended: its rows exist in units 0 and 1.
        let plan = plan_group(&geometry, 8..12, 8, 12);
        assert_eq!((plan.method, plan.fresh.len(), plan.partial.len()), (Method::ReadRest, 0, 1));
        // The first group of an empty object, or everything that is there: nothing is read.
        assert_eq!(plan_group(&geometry, 3..9, 0, 9).method, Method::Encode);
        assert_eq!(plan_group(&geometry, 0..9, 7, 9).method, Method::Encode);
        // A write elsewhere takes the object past this group's tail: present rows have to be completed.
        let plan = plan_group(&geometry, 0..0, 6, 16);
        assert_eq!((plan.method, plan.partial.len()), (Method::ReadRest, 2));
        assert!(plan.partial.iter().all(|run| run.covered.is_empty()));
    }

    proptest! {
        /// Rows that are written without reading lose no byte below the old size, and every touched row is planned once.
        #[test]
        fn plans_keep_old_bytes(data in 1u32..6, unit_blocks in 1u64..5, a in 0u64..30, b in 0u64..30, old in 0u64..30) {
            let geometry = geometry(data, 2, unit_blocks);
            let end = geometry.group_blocks();
            let written = a.min(b).min(end)..a.max(b).min(end);
            let old = old.min(end);
            let new = if written.is_empty() { old } else { old.max(written.end) };
            let plan = plan_group(&geometry, written.clone(), old, new);
            let mut planned = vec![0; usize::try_from(unit_blocks).unwrap()];
            for run in plan.fresh.iter().chain(&plan.partial) {
                for row in run.rows.clone() {
                    planned[usize::try_from(row).unwrap()] += 1;
                }
            }
            for row in 0..unit_blocks {
                let position = |unit: u32| u64::from(unit) * unit_blocks + row;
                let touched = (0..data).any(|unit| written.contains(&position(unit)));
                let old_there = position(0) < old;
                let grows = old_there && (0..data).any(|unit| (old..new).contains(&position(unit)));
                prop_assert_eq!(planned[usize::try_from(row).unwrap()], i32::from(touched || grows));
            }
            for run in &plan.fresh {
                for row in run.rows.clone() {
                    for unit in 0..data {
                        let position = u64::from(unit) * unit_blocks + row;
                        prop_assert!(position >= old || written.contains(&position));
                    }
                }
            }
            prop_assert_eq!(plan.method == Method::Encode, plan.partial.is_empty());
        }

        /// Encoding slices equals encoding whole units, wherever the slices meet.
        #[test]
        fn encoding_in_slices_is_encoding(cuts in proptest::collection::vec(1usize..8192, 0..6), missing in 0usize..4) {
            let arena = runtime::Arena::new(runtime::ArenaConfig { capacity_bytes: 4 << 20 }).unwrap();
            let codec = layout::GroupCodec::new(LayoutWidth::new(3, 2, 0).unwrap());
            let whole: Vec<Vec<u8>> =
                (0..3usize).map(|unit| (0..8192usize).map(|at| (at * 7 + unit * 31 + at / 256).to_le_bytes()[0]).collect()).collect();
            let mut data: Vec<Vec<SharedBuffer>> = Vec::new();
            for (unit, bytes) in whole.iter().enumerate() {
                let mut buffer = arena.try_alloc(8192).unwrap();
                buffer.copy_from_slice(bytes);
                let shared = buffer.freeze();
                let mut bounds: Vec<usize> = cuts.iter().map(|cut| (cut + unit * 1000) % 8192).collect();
                bounds.extend([0, 8192]);
                bounds.sort_unstable();
                bounds.dedup();
                data.push(if unit == missing { Vec::new() } else { bounds.windows(2).map(|pair| shared.slice(pair[0]..pair[1])).collect() });
            }
            let mut parity: Vec<Buffer> = (0..2).map(|_| arena.try_alloc(8192).unwrap()).collect();
            encode(&codec, &data, &mut parity).unwrap();
            let inputs: Vec<&[u8]> = whole.iter().enumerate().map(|(unit, bytes)| if unit == missing { &[][..] } else { &bytes[..] }).collect();
            let mut expected = vec![vec![0u8; 8192]; 2];
            let mut outputs: Vec<&mut [u8]> = expected.iter_mut().map(|bytes| &mut bytes[..]).collect();
            codec.encode(&inputs, &mut outputs).unwrap();
            for (found, expected) in parity.iter().zip(&expected) {
                prop_assert_eq!(&found[..], &expected[..]);
            }
        }
    }
}
