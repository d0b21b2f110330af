//! Reads rows of many groups at once and rebuilds what is lost: healthy units in one round, anything else in a few more.
//!
//! Each round asks for the units that all unfinished groups need, packed into common requests. A group whose wanted units all
//! answer is done after one round. If a unit is out of service, unreachable, damaged, or has absent blocks below the size, the
//! group is looked at row by row ([`crate::rows`]): other units are asked for until each row is present, rebuilt, or a hole.
//!
//! **Invariant**: every round turns at least one unknown unit of each unfinished group into an answer or a loss, so
//! there are at most 2(N + K) rounds (a suspect may be asked once more). Bytes are handed on as slices of the buffers they arrived in; only
//! rebuilt units are new buffers.

use std::collections::BTreeMap;
use std::ops::Range;

use base::Instant;
use base::units::{BLOCK_BYTES, narrow};
use layout::{UnitSet, read_plan};
use runtime::{Buffer, SharedBuffer};

use crate::bug::Bug;
use crate::error::{ClientError, Fault, UnitFailures};
use crate::rows::{GroupAnswers, RowVerdict, UnitAnswer};
use crate::targets::{self, PieceRead};
use crate::view::View;

/// Rows of some units of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupRequest {
    pub group: u64,
    /// Unit (data or parity) and rows; not empty.
    pub wanted: Vec<(u32, Range<u64>)>,
}

/// Where bytes came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The unit's own device.
    Present,
    /// Never written, in a written row: beyond the object's size.
    Beyond,
    /// Computed from other units.
    Rebuilt,
    /// The whole row was never written.
    Hole,
}

/// Some rows of one unit.
#[derive(Clone)]
pub(crate) struct RowBytes {
    pub rows: Range<u64>,
    pub origin: Origin,
    pub bytes: SharedBuffer,
}

/// For each wanted piece of a request, in order, its rows in order.
pub(crate) type GroupBytes = Vec<Vec<RowBytes>>;

/// Reads all requests. Errors: the first group that cannot be had, with each lost unit.
pub(crate) async fn read_groups(
    view: &View,
    requests: Vec<GroupRequest>,
    deadline: Instant,
) -> Result<Vec<GroupBytes>, ClientError> {
    let mut groups: Vec<GroupState> = Vec::with_capacity(requests.len());
    for request in requests {
        groups.push(GroupState::plan(view, request)?);
    }
    loop {
        let mut pieces = Vec::new();
        for (index, group) in groups.iter_mut().enumerate() {
            for (unit, rows) in std::mem::take(&mut group.asks) {
                let tag = (index, unit, rows.clone());
                pieces.push(view.piece(group.request.group, unit, &rows, tag));
            }
        }
        if pieces.is_empty() {
            break;
        }
        for ((index, unit, rows), outcome) in targets::read(&view.store, view.name, pieces, deadline).await {
            groups[index].take(unit, rows, outcome);
        }
        for group in &mut groups {
            group.step(view)?;
        }
    }
    let mut results = Vec::with_capacity(groups.len());
    for group in groups {
        results.push(group.finish(view).await?);
    }
    Ok(results)
}

/// One unit's bytes about some rows.
struct UnitBytes {
    rows: Range<u64>,
    bytes: SharedBuffer,
    absent: Vec<bool>,
}

impl UnitBytes {
    fn slice(&self, rows: &Range<u64>) -> SharedBuffer {
        let start = narrow((rows.start - self.rows.start) * BLOCK_BYTES);
        let end = narrow((rows.end - self.rows.start) * BLOCK_BYTES);
        self.bytes.slice(start..end)
    }
    fn is_absent(&self, row: u64) -> bool {
        self.absent.get(narrow(row - self.rows.start)).copied().unwrap_or(true)
    }
}

struct GroupState {
    request: GroupRequest,
    /// All wanted rows, as one window.
    window: Range<u64>,
    /// Data positions of the group below the object's size.
    below: u64,
    /// What arrived. In the fast way only the wanted rows, in the slow way the whole window.
    have: BTreeMap<u32, UnitBytes>,
    lost: BTreeMap<u32, Fault>,
    /// Row by row. `None`: the fast way, which asked for the wanted pieces only.
    answers: Option<GroupAnswers>,
    asks: Vec<(u32, Range<u64>)>,
    done: bool,
}

impl GroupState {
    fn plan(view: &View, request: GroupRequest) -> Result<GroupState, ClientError> {
        let start = request.wanted.iter().map(|(_, rows)| rows.start).min().unwrap_or(0);
        let end = request.wanted.iter().map(|(_, rows)| rows.end).max().unwrap_or(0);
        let mut group = GroupState {
            below: view.geometry.positions_below(request.group, view.size_bytes),
            window: start..end,
            have: BTreeMap::new(),
            lost: BTreeMap::new(),
            answers: None,
            asks: Vec::new(),
            done: false,
            request,
        };
        let number = group.request.group;
        let healthy =
            group.request.wanted.iter().all(|(unit, _)| view.reads_pass_over(number, *unit).is_none());
        if healthy && !view.store.config.read_verify {
            group.asks = group.request.wanted.clone();
            return Ok(group);
        }
        group.go_slow(view);
        let wanted: Vec<u32> = group.request.wanted.iter().map(|(unit, _)| *unit).collect();
        let lost: UnitSet = group.lost.keys().copied().collect();
        match read_plan(&view.pool, &wanted, &lost) {
            Ok(plan) if !view.store.config.read_verify => {
                group.asks = plan.fetch.iter().map(|unit| (*unit, group.window.clone())).collect();
            }
            // Verifying reads everything. Too many lost: whoever is left says whether it is a hole.
            _ => group.ask_all_unknown(),
        }
        if group.asks.is_empty() {
            group.step(view)?;
        }
        Ok(group)
    }

    /// Changes to row by row; pieces that cover the whole window are kept.
    fn go_slow(&mut self, view: &View) {
        let coded = view.geometry.coded();
        let mut answers = GroupAnswers::new(view.geometry.data(), coded, self.window.clone());
        self.have.retain(|_, unit| unit.rows == self.window);
        for unit in 0..coded {
            if self.have.contains_key(&unit) || self.lost.contains_key(&unit) {
                continue;
            }
            if let Some(fault) = view.reads_pass_over(self.request.group, unit) {
                self.lost.insert(unit, fault);
            }
        }
        for (unit, answer) in (0..coded).zip(&mut answers.units) {
            if let Some(bytes) = self.have.get(&unit) {
                *answer = UnitAnswer::Answered { absent: bytes.absent.clone() };
            } else if self.lost.contains_key(&unit) {
                *answer = UnitAnswer::Lost;
            }
        }
        self.answers = Some(answers);
    }

    /// Takes one answer in.
    fn take(&mut self, unit: u32, rows: Range<u64>, outcome: PieceRead) {
        let slot = self.answers.as_mut().and_then(|answers| answers.units.get_mut(narrow(u64::from(unit))));
        match outcome {
            PieceRead::Read { bytes, absent } => {
                if let Some(slot) = slot {
                    *slot = UnitAnswer::Answered { absent: absent.clone() };
                }
                self.have.insert(unit, UnitBytes { rows, bytes, absent });
            }
            PieceRead::Lost(fault) => {
                if let Some(slot) = slot {
                    *slot = UnitAnswer::Lost;
                }
                self.lost.insert(unit, fault);
            }
            PieceRead::AskAgain => {}
        }
    }

    /// Done, or says what to ask next.
    fn step(&mut self, view: &View) -> Result<(), ClientError> {
        if self.done {
            return Ok(());
        }
        if self.answers.is_none() {
            if self.all_wanted_present(view) {
                self.done = true;
                return Ok(());
            }
            self.go_slow(view);
        }
        let verdicts = self.verdicts(view);
        let has = |kind: fn(&RowVerdict) -> bool| verdicts.iter().any(|(_, verdict)| kind(verdict));
        if has(|verdict| matches!(verdict, RowVerdict::TooManyLost { .. })) {
            return self.give_suspects_a_chance(view);
        }
        if has(|verdict| matches!(verdict, RowVerdict::AskMore)) {
            self.ask_more(view);
        } else {
            self.done = true;
        }
        Ok(())
    }

    fn all_wanted_present(&self, view: &View) -> bool {
        self.request.wanted.iter().all(|(unit, rows)| {
            self.have.get(unit).is_some_and(|bytes| {
                bytes.rows == *rows
                    && rows.clone().all(|row| !bytes.is_absent(row) || !self.must_be_there(view, *unit, row))
            })
        })
    }

    /// True if a written row has a block of this unit.
    fn must_be_there(&self, view: &View, unit: u32, row: u64) -> bool {
        if view.store.has_bug(Bug::AbsentIsZero) {
            return false;
        }
        unit >= view.geometry.data() || unit < view.geometry.units_below(row, self.below)
    }

    fn verdicts(&self, view: &View) -> Vec<(Range<u64>, RowVerdict)> {
        let Some(answers) = &self.answers else { return Vec::new() };
        answers.judge(
            self.window.clone(),
            |row| view.geometry.units_below(row, self.below),
            |row| {
                let wanted = self.request.wanted.iter().filter(|(_, rows)| rows.contains(&row));
                wanted.map(|(unit, _)| *unit).collect()
            },
        )
    }

    fn unknown(&self) -> Vec<u32> {
        let Some(answers) = &self.answers else { return Vec::new() };
        let unknown =
            (0u32..).zip(&answers.units).filter(|(_, answer)| matches!(answer, UnitAnswer::Unknown));
        unknown.map(|(unit, _)| unit).collect()
    }

    fn ask_all_unknown(&mut self) {
        self.asks = self.unknown().into_iter().map(|unit| (unit, self.window.clone())).collect();
    }

    /// First as many units as make N with those that answered, wanted ones before others; if N are not enough, all.
    fn ask_more(&mut self, view: &View) {
        let is_wanted = |unit: u32| self.request.wanted.iter().any(|(wanted, _)| *wanted == unit);
        let (wanted, others): (Vec<u32>, Vec<u32>) =
            self.unknown().into_iter().partition(|unit| is_wanted(*unit));
        let missing = narrow(u64::from(view.geometry.data())).saturating_sub(self.have.len() + wanted.len());
        if missing == 0 && wanted.is_empty() {
            self.ask_all_unknown();
            return;
        }
        let chosen = wanted.into_iter().chain(others.into_iter().take(missing));
        self.asks = chosen.map(|unit| (unit, self.window.clone())).collect();
    }

    /// Too many are lost: units that were passed over only because their server was silent a moment ago are asked after all.
    fn give_suspects_a_chance(&mut self, view: &View) -> Result<(), ClientError> {
        let suspects: Vec<u32> = self
            .lost
            .iter()
            .filter(|(_, fault)| matches!(fault, Fault::Suspect))
            .map(|(unit, _)| *unit)
            .collect();
        if suspects.is_empty() {
            let group = self.request.group;
            let mut failures: Vec<_> = self
                .lost
                .iter()
                .map(|(unit, fault)| {
                    view.store.failure(Some((group, *unit)), view.target(group, *unit), fault.clone())
                })
                .collect();
            for (unit, bytes) in &self.have {
                let gone = self
                    .window
                    .clone()
                    .any(|row| bytes.is_absent(row) && self.must_be_there(view, *unit, row));
                if gone {
                    failures.push(view.store.failure(
                        Some((group, *unit)),
                        view.target(group, *unit),
                        Fault::Absent,
                    ));
                }
            }
            return Err(ClientError::Read { object: view.object, group, failures: UnitFailures(failures) });
        }
        for unit in suspects {
            self.lost.remove(&unit);
            view.store.forgive(view.target(self.request.group, unit));
            if let Some(slot) =
                self.answers.as_mut().and_then(|answers| answers.units.get_mut(narrow(u64::from(unit))))
            {
                *slot = UnitAnswer::Unknown;
            }
        }
        self.ask_all_unknown();
        Ok(())
    }

    /// Puts the wanted pieces together; rebuilds.
    async fn finish(self, view: &View) -> Result<GroupBytes, ClientError> {
        let mut rebuilt: Vec<(Range<u64>, BTreeMap<u32, SharedBuffer>)> = Vec::new();
        let verdicts = self.verdicts(view);
        for (rows, verdict) in &verdicts {
            if let RowVerdict::Rebuild { sources, erased } = verdict {
                rebuilt.push((rows.clone(), self.rebuild(view, rows, sources, erased).await?));
            }
        }
        if view.store.config.read_verify {
            self.verify(view, &verdicts).await?;
        }
        let mut result = Vec::with_capacity(self.request.wanted.len());
        for (unit, rows) in &self.request.wanted {
            let mut pieces: Vec<RowBytes> = Vec::new();
            for (run, origin) in self.origins(*unit, rows, &verdicts) {
                let bytes = match origin {
                    Origin::Hole | Origin::Beyond => view
                        .store
                        .zeros(narrow(view.geometry.unit_bytes()))
                        .await
                        .slice(0..narrow((run.end - run.start) * BLOCK_BYTES)),
                    Origin::Present => {
                        self.have.get(unit).map(|bytes| bytes.slice(&run)).ok_or_else(|| {
                            ClientError::Internal(format!("unit {unit} was judged present without an answer"))
                        })?
                    }
                    Origin::Rebuilt => rebuilt
                        .iter()
                        .find(|(rows, _)| rows.start <= run.start && run.end <= rows.end)
                        .and_then(|(rows, units)| {
                            let start = narrow((run.start - rows.start) * BLOCK_BYTES);
                            let end = narrow((run.end - rows.start) * BLOCK_BYTES);
                            Some(units.get(unit)?.slice(start..end))
                        })
                        .ok_or_else(|| ClientError::Internal(format!("unit {unit} was not rebuilt")))?,
                };
                pieces.push(RowBytes { rows: run, origin, bytes });
            }
            result.push(pieces);
        }
        Ok(result)
    }

    /// Cuts the rows of a wanted piece where their origin changes.
    fn origins(
        &self,
        unit: u32,
        rows: &Range<u64>,
        verdicts: &[(Range<u64>, RowVerdict)],
    ) -> Vec<(Range<u64>, Origin)> {
        let own = |row: u64| match self.have.get(&unit) {
            Some(bytes) if bytes.is_absent(row) => Origin::Beyond,
            _ => Origin::Present,
        };
        // The fast way has no verdicts: everything wanted is there. A rebuilt run never joins its neighbour of another verdict.
        let origin_of = |row: u64| -> (usize, Origin) {
            let found = verdicts.iter().enumerate().find(|(_, (run, _))| run.contains(&row));
            match found {
                Some((index, (_, RowVerdict::Rebuild { erased, .. }))) if erased.contains(&unit) => {
                    (index + 1, Origin::Rebuilt)
                }
                Some((_, (_, RowVerdict::Hole))) => (0, Origin::Hole),
                _ => (0, own(row)),
            }
        };
        let mut runs: Vec<(Range<u64>, (usize, Origin))> = Vec::new();
        for row in rows.clone() {
            let origin = origin_of(row);
            match runs.last_mut() {
                Some((run, last)) if *last == origin => run.end = row + 1,
                _ => runs.push((row..row + 1, origin)),
            }
        }
        runs.into_iter().map(|(run, (_, origin))| (run, origin)).collect()
    }

    async fn rebuild(
        &self,
        view: &View,
        rows: &Range<u64>,
        sources: &[u32],
        erased: &[u32],
    ) -> Result<BTreeMap<u32, SharedBuffer>, ClientError> {
        let mut outputs: Vec<Buffer> = Vec::with_capacity(erased.len());
        for _ in erased {
            outputs
                .push(view.store.locality.arena().alloc(narrow((rows.end - rows.start) * BLOCK_BYTES)).await);
        }
        let inputs: Vec<(u32, SharedBuffer)> =
            sources.iter().filter_map(|unit| Some((*unit, self.have.get(unit)?.slice(rows)))).collect();
        let present: Vec<(u32, &[u8])> = inputs.iter().map(|(unit, bytes)| (*unit, &bytes[..])).collect();
        let mut wanted: Vec<(u32, &mut [u8])> =
            erased.iter().copied().zip(outputs.iter_mut().map(|buffer| &mut buffer[..])).collect();
        view.codec
            .rebuild(&present, &mut wanted)
            .map_err(|error| ClientError::Internal(error.to_string()))?;
        Ok(erased.iter().copied().zip(outputs.into_iter().map(Buffer::freeze)).collect())
    }

    /// Computes parity anew from the data of written rows and compares it with every parity unit that answered.
    async fn verify(&self, view: &View, verdicts: &[(Range<u64>, RowVerdict)]) -> Result<(), ClientError> {
        let (data, coded) = (view.geometry.data(), view.geometry.coded());
        for (rows, verdict) in verdicts {
            let all_data: Option<Vec<SharedBuffer>> =
                (0..data).map(|unit| self.have.get(&unit).map(|bytes| bytes.slice(rows))).collect();
            let (Some(inputs), RowVerdict::Present) = (all_data, verdict) else { continue };
            // An erasure among the unwanted units: rebuilt bytes have nothing to be compared with.
            let whole = |row: u64| {
                (0..data).all(|unit| {
                    !self.must_be_there(view, unit, row)
                        || self.have.get(&unit).is_some_and(|bytes| !bytes.is_absent(row))
                })
            };
            if !rows.clone().all(whole) {
                continue;
            }
            let mut outputs: Vec<Buffer> = Vec::new();
            for _ in data..coded {
                let bytes = narrow((rows.end - rows.start) * BLOCK_BYTES);
                outputs.push(view.store.locality.arena().alloc(bytes).await);
            }
            let data_slices: Vec<&[u8]> = inputs.iter().map(|bytes| &bytes[..]).collect();
            let mut parity: Vec<&mut [u8]> = outputs.iter_mut().map(|buffer| &mut buffer[..]).collect();
            view.codec
                .encode(&data_slices, &mut parity)
                .map_err(|error| ClientError::Internal(error.to_string()))?;
            for (unit, expected) in (data..coded).zip(&outputs) {
                let Some(found) = self.have.get(&unit) else { continue };
                for (row, block) in rows.clone().zip(expected.chunks(narrow(BLOCK_BYTES))) {
                    if !found.is_absent(row) && found.slice(&(row..row + 1))[..] != *block {
                        let (object, group) = (view.object, self.request.group);
                        return Err(ClientError::ParityMismatch { object, group, unit, row });
                    }
                }
            }
        }
        Ok(())
    }
}
