//! Object records: open, update, delete, list. Decisions are in [`crate::record`]; here they meet the device.
//!
//! **Invariant**: a record's lock is held from reading it to the commit of its change, so two requests on one object see
//! each other's outcome. Each change is one transaction. Start at [`open`].

use std::ops::Bound;
use std::rc::Rc;

use base::limits::MESSAGE_BYTES_MAX;
use base::units::{narrow, wide};
use base::{Fid, Right};
use fops::object::{
    ObjectDelete, ObjectDeleteReply, ObjectForget, ObjectForgetReply, ObjectList, ObjectListReply,
    ObjectOpen, ObjectOpenReply, ObjectRecord, ObjectUpdate, ObjectUpdateReply, OpenMode,
};
use fops::{FopError, codec};
use rpc::{Fom, Phase};

use crate::device::{Device, RECORDS};
use crate::record::{OpenVerdict, UpdateVerdict, check_object, check_record, decide_open, decide_update};
use crate::state::{Access, State, Writer};

/// Records of one page.
pub(crate) const LIST_RECORDS_MAX: u32 = 512;
/// Encoded bytes of a record: version, generation, fid, size, width, unit size, pool version, deleted.
const RECORD_BYTES: u64 = 8 + 8 + 16 + 8 + 12 + 4 + 16 + 1;

/// What a page adds: a length, and whether there are more. And room for the item's header.
const PAGE_BYTES: u64 = 8 + 1 + 1024;

const _: () = assert!(LIST_RECORDS_MAX as u64 * RECORD_BYTES + PAGE_BYTES <= MESSAGE_BYTES_MAX);

pub(crate) async fn open(
    state: Rc<State>,
    (fom, writer): (Fom, Writer),
    request: ObjectOpen,
) -> Result<ObjectOpenReply, FopError> {
    let access = if request.mode == OpenMode::Open { Access::Read } else { Access::Change };
    let device = state.admit(&fom, request.device, access).await?;
    let object = request.record.object;
    match request.mode {
        OpenMode::Open => check_object(object)?,
        _ => {
            fom.require(Right::Write)?;
            check_record(&request.record)?;
            check_pool_version(&state, &request.record)?;
        }
    }
    fom.phase(Phase::Lock);
    let _key = device.records.write(object).await;
    match decide_open(request.mode, device.record(object)?, request.record)? {
        OpenVerdict::Found(record) => Ok(ObjectOpenReply { record, created: false }),
        OpenVerdict::MadeBefore(record) => Ok(ObjectOpenReply { record, created: true }),
        OpenVerdict::Make(record) => {
            let reply = ObjectOpenReply { record, created: true };
            put(&state, (&fom, &writer), &device, &record, &reply).await?;
            Ok(reply)
        }
    }
}

pub(crate) async fn update(
    state: Rc<State>,
    (fom, writer): (Fom, Writer),
    request: ObjectUpdate,
) -> Result<ObjectUpdateReply, FopError> {
    let device = state.admit(&fom, request.device, Access::Change).await?;
    check_record(&request.record)?;
    check_pool_version(&state, &request.record)?;
    let object = request.record.object;
    fom.phase(Phase::Lock);
    let _key = device.records.write(object).await;
    match decide_update(device.record(object)?, &request)? {
        UpdateVerdict::Keep(record) => Ok(ObjectUpdateReply { record }),
        UpdateVerdict::Put(record) => {
            let reply = ObjectUpdateReply { record };
            put(&state, (&fom, &writer), &device, &record, &reply).await?;
            Ok(reply)
        }
    }
}

pub(crate) async fn delete(
    state: Rc<State>,
    (fom, writer): (Fom, Writer),
    request: ObjectDelete,
) -> Result<ObjectDeleteReply, FopError> {
    let device = state.admit(&fom, request.device, Access::Change).await?;
    check_object(request.object)?;
    fom.phase(Phase::Lock);
    let _key = device.records.write(request.object).await;
    let existed = device
        .record(request.object)?
        .is_some_and(|record| record.deleted && record.version == request.version);
    let reply = ObjectDeleteReply { existed };
    if existed {
        let mut transaction = device.domain.begin();
        transaction.tree_delete(RECORDS, &request.object.to_key_bytes());
        state.commit((&fom, &writer), &device, transaction, Some(&reply)).await?;
    }
    Ok(reply)
}

/// Drops a replica that stood in for one of a device that has its own again.
pub(crate) async fn forget(
    state: Rc<State>,
    fom: Fom,
    request: ObjectForget,
) -> Result<ObjectForgetReply, FopError> {
    let device = state.admit(&fom, request.device, Access::Change).await?;
    check_object(request.object)?;
    fom.phase(Phase::Lock);
    let _key = device.records.write(request.object).await;
    state.check_freeing(request.job)?;
    let reply = ObjectForgetReply { existed: device.record(request.object)?.is_some() };
    if reply.existed {
        let mut transaction = device.domain.begin();
        transaction.tree_delete(RECORDS, &request.object.to_key_bytes());
        state.commit((&fom, &Writer::FREE), &device, transaction, Some(&reply)).await?;
    }
    Ok(reply)
}

pub(crate) async fn list(
    state: Rc<State>,
    fom: Fom,
    request: ObjectList,
) -> Result<ObjectListReply, FopError> {
    let device = state.admit(&fom, request.device, Access::Read).await?;
    if request.limit == 0 {
        return Err(FopError::BadRequest { reason: "a list of at most 0 records".to_owned() });
    }
    let limit = narrow(u64::from(request.limit.min(LIST_RECORDS_MAX)));
    let after = request.after.map(Fid::to_key_bytes);
    let from = after.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(key.as_slice()));
    // One more than asked for shows whether there are more.
    let mut entries = device.domain.tree_range(RECORDS, from, limit + 1);
    let more = entries.len() > limit;
    entries.truncate(limit);
    let mut records = Vec::with_capacity(entries.len());
    for (key, value) in entries {
        let key: [u8; 16] = key.try_into().map_err(|key: Vec<u8>| FopError::Device {
            device: device.fid,
            reason: format!("a key of {} bytes stands among the records", wide(key.len())),
        })?;
        records.push(device.decode_record(Fid::from_key_bytes(key), &value)?);
    }
    Ok(ObjectListReply { records, more })
}

/// Puts a record, in one transaction with the slot of the request. The caller holds the object's lock.
async fn put<R: codec::Encode>(
    state: &Rc<State>,
    by: (&Fom, &Writer),
    device: &Device,
    record: &ObjectRecord,
    reply: &R,
) -> Result<(), FopError> {
    let value = Device::encode_record(record)?;
    let mut transaction = device.domain.begin();
    transaction.tree_put(RECORDS, &record.object.to_key_bytes(), &value);
    state.commit(by, device, transaction, Some(reply)).await
}

/// A record names a pool version of the cluster, or nobody could read what it says. Who knows a newer configuration has been let in only once it
/// is known here too.
fn check_pool_version(state: &State, record: &ObjectRecord) -> Result<(), FopError> {
    let configuration = state.configuration();
    if configuration.is_some_and(|configuration| !configuration.has_pool_version(record.pool_version)) {
        let reason = format!("there is no pool version {} in this cluster", record.pool_version);
        return Err(FopError::BadRequest { reason });
    }
    Ok(())
}
