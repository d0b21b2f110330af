//! Object records on their K + 1 holders: open, create, conditional update, tombstones, lists.
//!
//! The highest (version, generation) among the answers is the truth; holders that answered with less are brought up to date
//! at once. A read needs one answer, a change needs every holder that is in service. [`settle`] is the pure part.
//! Holders are devices of the first pool version, also of objects that lie in others (docs/rfd/0013).
//!
//! Left over: two clients that change one object at the same time are told so by a version conflict, and the later one wins;
//! locks come with the resource manager.

use base::{Fid, Instant, ObjectId};
use faces::SparePhase;
use fops::FopError;
use fops::object::{ObjectList, ObjectOpen, ObjectRecord, ObjectUpdate, OpenMode, generation_nonce};
use futures_util::future::join_all;
use rpc::Bulk;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::bug::Bug;
use crate::error::{ClientError, Fault, UnitFailures};
use crate::limits;
use crate::store::{RecordHolder, Store, has_all_records, is_in_service};
use crate::view::mapped_slots;

/// What one holder said when asked to open.
#[derive(Clone, Debug)]
pub(crate) enum Held {
    /// Its record, and whether this request made it.
    Record(ObjectRecord, bool),
    /// It holds none.
    Nothing,
    /// It holds one, and must not.
    Exists,
    /// No answer that counts.
    Failed(Fault),
}

/// Whose replicas of records count in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// Those of the records' holders.
    Holders,
    /// Everybody's, also what is left behind.
    Anybody,
}

/// What the answers of all holders come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// The record, whether this request made it, and the holders that are behind it.
    Record { record: ObjectRecord, created: bool, behind: Vec<u32> },
    /// No holder that answered has one.
    NotFound,
    /// The record was to be made and is there.
    Exists,
    /// Nobody answered, or a holder that has to take part did not.
    Failed,
}

/// Settles the answers of the holders in service. `all_needed`: a change, which every one of them has to have made.
pub(crate) fn settle(answers: &[(u32, Held)], all_needed: bool) -> Settled {
    let failed = answers.iter().filter(|(_, held)| matches!(held, Held::Failed(_))).count();
    if failed == answers.len() || (all_needed && failed > 0) {
        return Settled::Failed;
    }
    if answers.iter().any(|(_, held)| matches!(held, Held::Exists)) {
        return Settled::Exists;
    }
    let records = || {
        answers.iter().filter_map(|(_, held)| match held {
            Held::Record(record, created) => Some((record, *created)),
            _ => None,
        })
    };
    let Some(record) = records().map(|(record, _)| *record).max() else { return Settled::NotFound };
    // Made now, unless some holder had it (as a tombstone it counts as not there, and its holder says created).
    let created = records().all(|(_, created)| created);
    let behind = answers
        .iter()
        .filter(|(_, held)| match held {
            Held::Record(held, _) => *held < record,
            Held::Nothing => true,
            Held::Exists | Held::Failed(_) => false,
        })
        .map(|(target, _)| *target)
        .collect();
    Settled::Record { record, created, behind }
}

impl Store {
    /// Targets that hold the object's record and are in service, and why none is if so. One that is being restored takes changes, but that it
    /// has no record means nothing: it is not asked (`all_needed` is false), and never the only one.
    fn holders(&self, object: ObjectId, all_needed: bool) -> Result<Vec<u32>, ClientError> {
        let all = self.record_holders(object)?;
        let serving = |holder: &&RecordHolder| {
            self.device(holder.device).is_ok_and(|device| is_in_service(device.state))
        };
        let knows = |holder: &&RecordHolder| {
            let found = self.device(holder.device);
            holder.filling.is_empty() && found.is_ok_and(|device| has_all_records(device.state))
        };
        let asked = all.iter().filter(|holder| if all_needed { serving(holder) } else { knows(holder) });
        let holders: Vec<u32> = asked.map(|holder| holder.device).collect();
        if !all.iter().any(|holder| knows(&holder)) {
            let failures = all.iter().map(|holder| {
                let fault = match self.device(holder.device) {
                    Ok(device) => Fault::State(device.state),
                    Err(fault) => fault,
                };
                self.failure(None, holder.device, fault)
            });
            return Err(ClientError::Record {
                object,
                verb: "read",
                failures: UnitFailures(failures.collect()),
            });
        }
        Ok(holders)
    }

    fn record_error<'a>(
        &self,
        object: ObjectId,
        verb: &'static str,
        faults: impl Iterator<Item = (u32, &'a Fault)>,
    ) -> ClientError {
        let failures = faults.map(|(target, fault)| self.failure(None, target, fault.clone())).collect();
        ClientError::Record { object, verb, failures: UnitFailures(failures) }
    }

    /// One round trip to all holders at once; repeated while too few answer, until the deadline.
    ///
    /// `Ok(None)`: there is no such object. Tombstones are returned as records: the caller looks at `deleted`.
    pub(crate) async fn open_record(
        &self,
        object: ObjectId,
        mode: OpenMode,
        wish: ObjectRecord,
    ) -> Result<Option<(ObjectRecord, bool)>, ClientError> {
        let deadline = self.deadline();
        let all_needed = !matches!(mode, OpenMode::Open);
        let must_make = matches!(mode, OpenMode::Create);
        let mut mode = mode;
        let mut wait = limits::RETRY_WAIT_MIN;
        loop {
            let holders = self.holders(object, all_needed)?;
            let answers =
                join_all(holders.iter().map(|target| self.open_at(*target, mode, wish, deadline))).await;
            let mut answers: Vec<(u32, Held)> = holders.into_iter().zip(answers).collect();
            if !all_needed && self.has_bug(Bug::FirstAnswerIsEnough) {
                let first = answers.iter().position(|(_, held)| !matches!(held, Held::Failed(_)));
                answers = first.map_or(answers.clone(), |first| vec![answers[first].clone()]);
            }
            let faults = || {
                answers.iter().filter_map(|(target, held)| match held {
                    Held::Failed(fault) => Some((*target, fault)),
                    _ => None,
                })
            };
            match settle(&answers, all_needed) {
                Settled::Record { record, created, behind } => {
                    // Nonces are random: one that is ours was made by this call, at this try or an earlier one.
                    let is_ours = generation_nonce(record.generation) == generation_nonce(wish.generation);
                    let created = created || (all_needed && is_ours);
                    if must_make && !created {
                        return Err(ClientError::Exists { object });
                    }
                    let repairs = behind.into_iter().map(|target| self.repair_at(target, record, deadline));
                    // Best effort: whoever stays behind is behind for the next reader too, and loses again.
                    join_all(repairs).await;
                    if !self.configuration().has_pool_version(record.pool_version) {
                        self.fetch().await;
                    }
                    return Ok(Some((record, created)));
                }
                Settled::NotFound => return Ok(None),
                Settled::Exists => return Err(ClientError::Exists { object }),
                Settled::Failed => {
                    for (target, fault) in faults().filter(|(_, fault)| fault.is_device_error()) {
                        self.report_fault(target, fault).await;
                    }
                    let verb = if all_needed { "written" } else { "read" };
                    let error = self.record_error(object, verb, faults());
                    let retry = faults().all(|(_, fault)| fault.may_retry() || fault.is_device_error());
                    if !retry || !self.wait_to_retry(&mut wait, deadline).await {
                        return Err(error);
                    }
                    if must_make {
                        // Some holders may have made it already: the next try has to find that out, not trip over it.
                        mode = OpenMode::CreateOrOpen;
                    }
                }
            }
        }
    }

    async fn report_fault(&self, target: u32, fault: &Fault) {
        if let Ok(device) = self.device(target)
            && fault.is_device_error()
        {
            self.report(device.device, fops::conf::DeviceEvidence::IoError).await;
        }
    }

    async fn open_at(&self, target: u32, mode: OpenMode, record: ObjectRecord, deadline: Instant) -> Held {
        let make = async |device: &faces::DeviceConfig| {
            (ObjectOpen { device: device.device, mode, record }, Bulk::none())
        };
        match self.change(target, make, self.request_deadline(deadline)).await {
            Ok(answer) if answer.reply.record.object != record.object => {
                Held::Failed(Fault::BadAnswer { reason: "it is the record of another object" })
            }
            Ok(answer) => Held::Record(answer.reply.record, answer.reply.created),
            Err(fault) => match fault.refusal() {
                Some(FopError::NoSuchObject { .. }) => Held::Nothing,
                Some(FopError::ObjectExists { .. }) => Held::Exists,
                _ => Held::Failed(fault),
            },
        }
    }

    pub(crate) async fn repair_at(
        &self,
        target: u32,
        record: ObjectRecord,
        deadline: Instant,
    ) -> Result<(), Fault> {
        self.bring_to(target, record, deadline).await.map(drop)
    }

    /// Brings a holder up to `record`; what it has now, which may be higher.
    async fn bring_to(
        &self,
        target: u32,
        record: ObjectRecord,
        deadline: Instant,
    ) -> Result<ObjectRecord, Fault> {
        let make = async |device: &faces::DeviceConfig| {
            let fop = ObjectUpdate { device: device.device, expected_version: 0, repair: true, record };
            (fop, Bulk::none())
        };
        let answer = self.change(target, make, self.request_deadline(deadline)).await?;
        Ok(answer.reply.record)
    }

    /// The highest record that any holder in service has, at least `record`; every one of them has it when this returns. Errors: one does not answer.
    pub(crate) async fn agree(
        &self,
        object: ObjectId,
        record: ObjectRecord,
    ) -> Result<ObjectRecord, ClientError> {
        let deadline = self.deadline();
        let (mut wait, mut record) = (limits::RETRY_WAIT_MIN, record);
        loop {
            let holders = self.holders(object, true)?;
            let answers =
                join_all(holders.iter().map(|target| self.bring_to(*target, record, deadline))).await;
            let highest = answers.iter().filter_map(|answer| answer.as_ref().ok()).max().copied();
            if let Some(higher) = highest.filter(|highest| *highest > record) {
                record = higher;
                continue;
            }
            let faults: Vec<(u32, Fault)> = holders
                .into_iter()
                .zip(answers)
                .filter_map(|(target, answer)| Some((target, answer.err()?)))
                .collect();
            if faults.is_empty() {
                return Ok(record);
            }
            self.rest_after_faults(object, &faults, &mut wait, deadline).await?;
        }
    }

    /// Some holders did not take a record: tells of their devices, and returns when it is time to try again. Errors: another try does not help, or
    /// there is no time for one.
    async fn rest_after_faults(
        &self,
        object: ObjectId,
        faults: &[(u32, Fault)],
        wait: &mut Duration,
        deadline: Instant,
    ) -> Result<(), ClientError> {
        for (target, fault) in faults {
            self.report_fault(*target, fault).await;
        }
        let error =
            self.record_error(object, "written", faults.iter().map(|(target, fault)| (*target, fault)));
        let retry = faults.iter().all(|(_, fault)| fault.may_retry() || fault.is_device_error());
        if retry && self.wait_to_retry(wait, deadline).await { Ok(()) } else { Err(error) }
    }

    /// True if the object's bytes of this generation were in force and are no more. Nobody to ask: as far as is known, no.
    pub(crate) async fn has_left(&self, object: Fid, generation: u64) -> bool {
        let Some(id) = ObjectId::from_fid(object) else { return false };
        self.newest_record(id)
            .await
            .is_ok_and(|record| record.is_some_and(|record| record.deleted || record.generation > generation))
    }

    /// The object's record, or its tombstone.
    async fn newest_record(&self, object: ObjectId) -> Result<Option<ObjectRecord>, ClientError> {
        let configuration = self.configuration();
        let wish = ObjectRecord {
            version: 1,
            generation: 0,
            object: object.fid(),
            size_bytes: 0,
            width: configuration.pool.width,
            unit_bytes: configuration.pool.unit_bytes,
            pool_version: configuration.pool.pool_version,
            deleted: false,
        };
        let found = self.open_record(object, OpenMode::Open, wish).await?;
        Ok(found.map(|(record, _)| record))
    }

    /// [`Store::agree`] on the highest record that can be seen; nothing if there is none.
    pub(crate) async fn agree_on_newest(&self, object: ObjectId) -> Result<(), ClientError> {
        match self.newest_record(object).await? {
            Some(record) => self.agree(object, record).await.map(drop),
            None => Ok(()),
        }
    }

    /// Writes `record` to every holder in service, in place of version `expected`. A holder that lags behind is brought up to
    /// it. `Ok(false)`: somebody else changed the record first; read it and decide anew.
    pub(crate) async fn update_record(
        &self,
        object: ObjectId,
        expected: u64,
        record: ObjectRecord,
    ) -> Result<bool, ClientError> {
        let deadline = self.deadline();
        let mut wait = limits::RETRY_WAIT_MIN;
        loop {
            let mut holders = self.holders(object, true)?;
            if self.has_bug(Bug::OneReplicaIsEnough) {
                holders.truncate(1);
            }
            let outcomes =
                join_all(holders.iter().map(|target| self.update_at(*target, expected, record, deadline)))
                    .await;
            let mut conflict = false;
            let mut faults: Vec<(u32, Fault)> = Vec::new();
            for (target, outcome) in holders.into_iter().zip(outcomes) {
                match outcome {
                    Ok(taken) => conflict |= !taken,
                    Err(fault) => faults.push((target, fault)),
                }
            }
            if conflict {
                return Ok(false);
            }
            if faults.is_empty() {
                return Ok(true);
            }
            self.rest_after_faults(object, &faults, &mut wait, deadline).await?;
        }
    }

    /// True if the holder has `record` now, false if it has another one that is not older.
    async fn update_at(
        &self,
        target: u32,
        expected: u64,
        record: ObjectRecord,
        deadline: Instant,
    ) -> Result<bool, Fault> {
        let mut repair = false;
        loop {
            let make = async |device: &faces::DeviceConfig| {
                let fop = ObjectUpdate { device: device.device, expected_version: expected, repair, record };
                (fop, Bulk::none())
            };
            match self.change(target, make, self.request_deadline(deadline)).await {
                Ok(answer) => return Ok(answer.reply.record == record),
                Err(fault) => match fault.refusal() {
                    // It missed an earlier update, or the whole object: behind, not ahead.
                    Some(FopError::VersionConflict { found, .. }) if *found < expected && !repair => {
                        repair = true;
                    }
                    Some(FopError::NoSuchObject { .. }) if !repair => repair = true,
                    // Perhaps our own record, after a try whose answer was lost: a repair says which.
                    Some(FopError::VersionConflict { found, .. }) if *found == record.version && !repair => {
                        repair = true;
                    }
                    Some(FopError::VersionConflict { .. }) => return Ok(false),
                    _ => return Err(fault),
                },
            }
        }
    }

    /// Records in fid order behind `after`, merged over all devices, the newest replica of each, tombstones left out.
    pub(crate) async fn list_records(
        &self,
        after: Option<Fid>,
        limit: usize,
    ) -> Result<Vec<ObjectRecord>, ClientError> {
        let limit = limit.min(limits::LIST_RECORDS_MAX);
        let mut found = Vec::new();
        let mut after = after;
        while found.len() < limit {
            let (records, next) = self.list_page(after, Whose::Holders).await?;
            found.extend(records.into_iter().filter(|record| !record.deleted));
            match next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        found.truncate(limit);
        Ok(found)
    }

    /// One page of every device that holds records, tombstones with it; complete up to the returned fid, or to the end. `whose`: what counts of it.
    pub(crate) async fn list_page(
        &self,
        after: Option<Fid>,
        whose: Whose,
    ) -> Result<(Vec<ObjectRecord>, Option<Fid>), ClientError> {
        let deadline = self.deadline();
        let mut wait = limits::RETRY_WAIT_MIN;
        loop {
            let slots = mapped_slots(&self.configuration().spares.slots);
            let page = self.list_page_once(after, whose, deadline).await;
            self.refresh().await;
            if mapped_slots(&self.configuration().spares.slots) != slots {
                // It asked where records do not stand any more, or was refused for that.
                continue;
            }
            let is_refused = matches!(&page, Err(ClientError::List { failures }) if failures.has_stale());
            if !is_refused || !self.wait_to_retry(&mut wait, deadline).await {
                return page;
            }
        }
    }

    /// The same by the slots of spare units that are known now.
    async fn list_page_once(
        &self,
        after: Option<Fid>,
        whose: Whose,
        deadline: Instant,
    ) -> Result<(Vec<ObjectRecord>, Option<Fid>), ClientError> {
        let configuration = self.configuration();
        // Others have the records of those that are gone for good, or are on their way back.
        let is_stood_for = |target: &u32| {
            let slot = configuration.spare_slot(*target);
            slot.is_some_and(|slot| matches!(slot.phase, SparePhase::Standing | SparePhase::Returning))
        };
        let targets: Vec<u32> =
            (0..configuration.pools.first_devices).filter(|target| !is_stood_for(target)).collect();
        // Behind units that came back replicas of records may stand that nobody changes any more.
        let is_suspect = whose == Whose::Holders && !configuration.spares.slots.is_empty();
        let pages = join_all(targets.iter().map(|target| self.list_at(*target, after, deadline))).await;
        let mut failures = Vec::new();
        let mut records: BTreeMap<Fid, ObjectRecord> = BTreeMap::new();
        let mut complete_to: Option<Fid> = None;
        for (target, page) in targets.into_iter().zip(pages) {
            match page {
                Err(fault) => failures.push(self.failure(None, target, fault)),
                Ok(page) => {
                    if page.more
                        && let Some(last) = page.records.last().map(|record| record.object)
                    {
                        complete_to = Some(complete_to.map_or(last, |so_far| so_far.min(last)));
                    }
                    for record in page.records {
                        let object = ObjectId::from_fid(record.object).filter(|_| is_suspect);
                        if let Some(object) = object
                            && !self.record_holders(object)?.iter().any(|holder| holder.device == target)
                        {
                            continue;
                        }
                        let newest = records.entry(record.object).or_insert(record);
                        *newest = (*newest).max(record);
                    }
                }
            }
        }
        // Each record is on K + 1 devices: with K of them silent one replica of each is still seen.
        if failures.len() > usize::try_from(configuration.pool.width.parity()).unwrap_or(usize::MAX) {
            return Err(ClientError::List { failures: UnitFailures(failures) });
        }
        let behind = |object: &Fid| complete_to.is_none_or(|end| *object <= end);
        Ok((records.into_values().filter(|record| behind(&record.object)).collect(), complete_to))
    }

    async fn list_at(
        &self,
        target: u32,
        after: Option<Fid>,
        deadline: Instant,
    ) -> Result<fops::object::ObjectListReply, Fault> {
        if let Some(fault) = self.reads_pass_over(target) {
            return Err(fault);
        }
        let make = async |device: &faces::DeviceConfig| {
            (ObjectList { device: device.device, after, limit: limits::LIST_PAGE_RECORDS }, Bulk::none())
        };
        let reply = self.call(target, make, self.request_deadline(deadline)).await?.reply;
        let ordered = reply.records.windows(2).all(|pair| pair[0].object < pair[1].object)
            && reply.records.iter().all(|record| after.is_none_or(|after| record.object > after))
            && (!reply.more || !reply.records.is_empty());
        // An answer out of order could keep the merge from ever ending.
        if ordered { Ok(reply) } else { Err(Fault::BadAnswer { reason: "its records are out of order" }) }
    }
}

#[cfg(test)]
mod tests {
    use base::LayoutWidth;

    use super::*;

    fn record(version: u64, generation: u64) -> ObjectRecord {
        ObjectRecord {
            version,
            generation,
            object: ObjectId::new(1, 2).unwrap().fid(),
            size_bytes: 0,
            width: LayoutWidth::new(4, 2, 1).unwrap(),
            unit_bytes: 4096,
            pool_version: Fid::default(),
            deleted: false,
        }
    }

    #[test]
    fn the_highest_replica_wins_and_the_others_are_behind() {
        let old = Held::Record(record(3, 9), false);
        let new = Held::Record(record(4, 1), false);
        let failed = Held::Failed(Fault::Suspect);
        let answers = [(5, old), (6, new), (7, Held::Nothing), (8, failed)];
        assert_eq!(
            settle(&answers, false),
            Settled::Record { record: record(4, 1), created: false, behind: vec![5, 7] }
        );
        assert_eq!(settle(&answers, true), Settled::Failed, "a change needs every holder");
    }

    #[test]
    fn created_means_made_by_this_request_everywhere() {
        let made = |version| Held::Record(record(version, 1), true);
        let Settled::Record { created, behind, record: highest } =
            settle(&[(0, made(1)), (1, made(6))], true)
        else {
            panic!("both answered");
        };
        assert!(created && highest.version == 6, "over a tombstone on one holder");
        assert_eq!(behind, [0]);
        let there = Held::Record(record(1, 1), false);
        assert!(matches!(settle(&[(0, made(1)), (1, there)], true), Settled::Record { created: false, .. }));
    }

    #[test]
    fn absence_and_silence_differ() {
        assert_eq!(
            settle(&[(0, Held::Nothing), (1, Held::Failed(Fault::Suspect))], false),
            Settled::NotFound
        );
        assert_eq!(settle(&[(0, Held::Failed(Fault::Suspect))], false), Settled::Failed);
        assert_eq!(settle(&[(0, Held::Nothing), (1, Held::Exists)], true), Settled::Exists);
    }
}
