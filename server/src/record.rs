//! What becomes of an object record on one device: pure decisions, one table per request. The caller holds the key's lock
//! from reading the record to its commit.
//!
//! **Invariant**: the version of a record never goes back, not even over a deletion: a deleted object leaves a tombstone, and
//! what is made on top of it gets a higher version. So the highest version among the replicas is the truth.

use base::limits::{UNIT_BYTES_MAX, UNIT_BYTES_MIN};
use base::units::BLOCK_BYTES;
use base::{Fid, FidType};
use fops::FopError;
use fops::object::{
    ObjectRecord, ObjectUpdate, OpenMode, RECORD_VERSION_MAX, generation_nonce, generation_of,
};

/// What to do about an open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenVerdict {
    /// Answer with the record as it is (a tombstone too: the requester has to see its version).
    Found(ObjectRecord),
    /// Make this record.
    Make(ObjectRecord),
    /// The record was made by this same request before; answer so.
    MadeBefore(ObjectRecord),
}

/// What to do about an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UpdateVerdict {
    /// Answer with the record as it is.
    Keep(ObjectRecord),
    /// Put this record in its place.
    Put(ObjectRecord),
}

/// Whether a record from the wire may stand in the tree.
pub(crate) fn check_record(record: &ObjectRecord) -> Result<(), FopError> {
    let bad = |reason: String| Err(FopError::BadRequest { reason });
    let ObjectRecord { object, version, unit_bytes, .. } = *record;
    check_object(object)?;
    let unit = u64::from(unit_bytes);
    if !(UNIT_BYTES_MIN..=UNIT_BYTES_MAX).contains(&unit) || !unit.is_multiple_of(BLOCK_BYTES) {
        return bad(format!(
            "unit size {unit_bytes} is not a multiple of {BLOCK_BYTES} up to {UNIT_BYTES_MAX}"
        ));
    }
    if version == 0 || version > RECORD_VERSION_MAX {
        return bad(format!("record version {version} is not from 1 to {RECORD_VERSION_MAX}"));
    }
    if record.size_bytes > i64::MAX.unsigned_abs() {
        return bad(format!("size {} is above 2^63-1 bytes", record.size_bytes));
    }
    Ok(())
}

/// Whether a fid names an object.
pub(crate) fn check_object(object: Fid) -> Result<(), FopError> {
    if object.is(FidType::Object) {
        Ok(())
    } else {
        Err(FopError::BadRequest { reason: format!("{object} is not the fid of an object (type byte 0x47)") })
    }
}

/// Opens or makes. `existing`: the record in the tree. `wanted`: the record to make, checked.
pub(crate) fn decide_open(
    mode: OpenMode,
    existing: Option<ObjectRecord>,
    wanted: ObjectRecord,
) -> Result<OpenVerdict, FopError> {
    let object = wanted.object;
    match (mode, existing) {
        (OpenMode::Open, None) => Err(FopError::NoSuchObject { object }),
        (OpenMode::Open | OpenMode::CreateOrOpen, Some(found)) if !found.deleted => {
            Ok(OpenVerdict::Found(found))
        }
        // The requester compares it with the other replicas, and the tombstone wins over older ones.
        (OpenMode::Open, Some(tombstone)) => Ok(OpenVerdict::Found(tombstone)),
        (_, _) if wanted.deleted => {
            Err(FopError::BadRequest { reason: "an open cannot make a tombstone".to_owned() })
        }
        (OpenMode::Create | OpenMode::CreateOrOpen, None) => Ok(OpenVerdict::Make(wanted)),
        // The nonce is a random number of the writer, so the same one means the same create, sent twice.
        (OpenMode::Create, Some(found))
            if !found.deleted
                && generation_nonce(found.generation) == generation_nonce(wanted.generation) =>
        {
            Ok(OpenVerdict::MadeBefore(found))
        }
        (OpenMode::Create, Some(found)) if !found.deleted => Err(FopError::ObjectExists { object }),
        (OpenMode::Create | OpenMode::CreateOrOpen, Some(tombstone)) => {
            match tombstone.version.checked_add(1).filter(|above| *above <= RECORD_VERSION_MAX) {
                Some(above) => {
                    let version = wanted.version.max(above);
                    // Above every generation that a late delete of the old object may still name.
                    let generation = generation_of(version, wanted.generation);
                    Ok(OpenVerdict::Make(ObjectRecord { version, generation, ..wanted }))
                }
                None => Err(FopError::BadRequest { reason: "the object's versions are used up".to_owned() }),
            }
        }
        (mode, _) => {
            Err(FopError::BadRequest { reason: format!("open mode {mode:?} is not known to this version") })
        }
    }
}

/// Updates. `existing`: the record in the tree; the request's record is checked.
pub(crate) fn decide_update(
    existing: Option<ObjectRecord>,
    request: &ObjectUpdate,
) -> Result<UpdateVerdict, FopError> {
    let ObjectUpdate { expected_version: expected, repair, record, .. } = *request;
    let object = record.object;
    match existing {
        // A replica that was lost or missed the object: any record is higher than none.
        None if repair => Ok(UpdateVerdict::Put(record)),
        None => Err(FopError::NoSuchObject { object }),
        Some(found) if repair && record > found => Ok(UpdateVerdict::Put(record)),
        // The same update again, or a repair that came too late.
        Some(found) if repair || found == record => Ok(UpdateVerdict::Keep(found)),
        Some(found) if found.version != expected => {
            Err(FopError::VersionConflict { object, expected, found: found.version })
        }
        Some(found) if record.version <= found.version => Err(FopError::BadRequest {
            reason: format!("an update from version {expected} to {} does not grow", record.version),
        }),
        // Only an open makes an object again.
        Some(found) if found.deleted && !record.deleted => Err(FopError::NoSuchObject { object }),
        Some(_) => Ok(UpdateVerdict::Put(record)),
    }
}

#[cfg(test)]
mod tests {
    use base::{LayoutWidth, ObjectId};

    use super::*;

    fn record(version: u64, generation: u64, deleted: bool) -> ObjectRecord {
        ObjectRecord {
            version,
            generation,
            object: ObjectId::new(12, 34).unwrap().fid(),
            size_bytes: 0,
            width: LayoutWidth::new(4, 2, 1).unwrap(),
            unit_bytes: 65536,
            pool_version: Fid::new(FidType::PoolVersion, 1, 1),
            deleted,
        }
    }

    fn word<T: std::fmt::Debug>(result: Result<T, FopError>, of: impl Fn(&T) -> (String, u64)) -> String {
        match result {
            Ok(verdict) => {
                let (name, version) = of(&verdict);
                format!("{name} v{version}")
            }
            Err(error) => format!("{error:?}").split([' ', '{']).next().unwrap().to_owned(),
        }
    }

    #[test]
    fn every_mode_and_record() {
        let existing = [
            ("none", None),
            ("live v3", Some(record(3, 5, false))),
            ("own v3", Some(record(3, 9, false))),
            ("tombstone v3", Some(record(3, 5, true))),
            ("tombstone max", Some(record(u64::MAX, 5, true))),
        ];
        let mut table = String::new();
        for mode in [OpenMode::Open, OpenMode::Create, OpenMode::CreateOrOpen] {
            for (name, existing) in existing {
                let verdict =
                    word(decide_open(mode, existing, record(1, 9, false)), |verdict| match verdict {
                        OpenVerdict::Found(record) => ("Found".into(), record.version),
                        OpenVerdict::Make(record) => ("Make".into(), record.version),
                        OpenVerdict::MadeBefore(record) => ("MadeBefore".into(), record.version),
                    });
                table.push_str(&format!("{mode:?}, {name}: {verdict}\n"));
            }
        }
        assert_eq!(
            table,
            "\
Open, none: NoSuchObject
Open, live v3: Found v3
Open, own v3: Found v3
Open, tombstone v3: Found v3
Open, tombstone max: Found v18446744073709551615
Create, none: Make v1
Create, live v3: ObjectExists
Create, own v3: MadeBefore v3
Create, tombstone v3: Make v4
Create, tombstone max: BadRequest
CreateOrOpen, none: Make v1
CreateOrOpen, live v3: Found v3
CreateOrOpen, own v3: Found v3
CreateOrOpen, tombstone v3: Make v4
CreateOrOpen, tombstone max: BadRequest
"
        );
        assert!(decide_open(OpenMode::Create, None, record(1, 9, true)).is_err());
    }

    #[test]
    fn every_update_and_record() {
        let existing = [
            ("none", None),
            ("live v3", Some(record(3, 5, false))),
            ("tombstone v3", Some(record(3, 5, true))),
            ("live v4", Some(record(4, 5, false))),
        ];
        let updates = [
            ("3 to 4", 3, false, record(4, 5, false)),
            ("3 to 4 deleted", 3, false, record(4, 5, true)),
            ("2 to 3", 2, false, record(3, 6, false)),
            ("3 to 3", 3, false, record(3, 6, false)),
            ("repair 4", 0, true, record(4, 5, false)),
            ("repair 1", 0, true, record(1, 5, false)),
        ];
        let mut table = String::new();
        for (update, expected_version, repair, record) in updates {
            for (name, existing) in existing {
                let request = ObjectUpdate { device: Fid::default(), expected_version, repair, record };
                let verdict = word(decide_update(existing, &request), |verdict| match verdict {
                    UpdateVerdict::Keep(record) => ("Keep".into(), record.version),
                    UpdateVerdict::Put(record) => ("Put".into(), record.version),
                });
                table.push_str(&format!("{update}, {name}: {verdict}\n"));
            }
        }
        assert_eq!(
            table,
            "\
3 to 4, none: NoSuchObject
3 to 4, live v3: Put v4
3 to 4, tombstone v3: NoSuchObject
3 to 4, live v4: Keep v4
3 to 4 deleted, none: NoSuchObject
3 to 4 deleted, live v3: Put v4
3 to 4 deleted, tombstone v3: Put v4
3 to 4 deleted, live v4: VersionConflict
2 to 3, none: NoSuchObject
2 to 3, live v3: VersionConflict
2 to 3, tombstone v3: VersionConflict
2 to 3, live v4: VersionConflict
3 to 3, none: NoSuchObject
3 to 3, live v3: BadRequest
3 to 3, tombstone v3: BadRequest
3 to 3, live v4: VersionConflict
repair 4, none: Put v4
repair 4, live v3: Put v4
repair 4, tombstone v3: Put v4
repair 4, live v4: Keep v4
repair 1, none: Put v1
repair 1, live v3: Keep v3
repair 1, tombstone v3: Keep v3
repair 1, live v4: Keep v4
"
        );
    }

    #[test]
    fn records_that_nobody_could_read_are_refused() {
        check_record(&record(1, 1, false)).unwrap();
        for (what, bad) in [
            ("unit", ObjectRecord { unit_bytes: 5000, ..record(1, 1, false) }),
            ("unit 0", ObjectRecord { unit_bytes: 0, ..record(1, 1, false) }),
            ("unit 2 MiB", ObjectRecord { unit_bytes: 2 << 20, ..record(1, 1, false) }),
            ("type", ObjectRecord { object: Fid::new(FidType::Device, 1, 1), ..record(1, 1, false) }),
            ("version", record(0, 1, false)),
            ("size", ObjectRecord { size_bytes: u64::MAX, ..record(1, 1, false) }),
        ] {
            assert!(
                matches!(check_record(&bad), Err(FopError::BadRequest { .. })),
                "{what} has to be refused"
            );
        }
    }
}
