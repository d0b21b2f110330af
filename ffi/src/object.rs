//! Realms, objects and entities: what `clovis/clovis.h` calls on them. Each call checks its pointers, makes an operation and returns.

use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use base::ObjectId;

use crate::abi::{
    BufVec, CFid, Clovis, Entity, Idx, IndexVec, M0_CLOVIS_ID_APP, M0_CLOVIS_UBER_REALM, Obj, Op, Realm,
    Uint128, entity_opcode, entity_state, entity_type,
};
use crate::errno::{self, Errno};
use crate::instance::{Shared, shared_of};
use crate::op;
use crate::request::{EntityRef, EntityWork, Io, IoArguments, Work};
use crate::{layout_id, limits, say};

/// `enum m0_clovis_realm_type`
mod realm_type {
    use std::ffi::c_int;
    pub const CONTAINER: c_int = 0;
    pub const EPOCH: c_int = 1;
    pub const DTX: c_int = 2;
}

/// The instance of an entity's realm.
///
/// # Safety
/// `entity` is one as the header has it.
pub unsafe fn instance_of(call: &str, entity: NonNull<Entity>) -> Option<Arc<Shared>> {
    // SAFETY: the caller's contract.
    let realm = unsafe { (*entity.as_ptr()).realm.as_ref() };
    let Some(realm) = realm else {
        say!("{call}: the entity has no realm: initialise it with one first");
        return None;
    };
    // SAFETY: a realm of `m0_clovis_container_init`.
    unsafe { shared_of(call, realm.instance) }
}

/// # Safety
/// `entity` is an entity that C lent.
unsafe fn state_of(entity: NonNull<Entity>) -> u32 {
    // SAFETY: an aligned u32 of it.
    unsafe { AtomicU32::from_ptr(&raw mut (*entity.as_ptr()).sm.state) }.load(Ordering::Acquire)
}

/// Zeroes an entity and makes it INIT, with `rc` as how that went.
///
/// # Safety
/// `entity` is writable.
unsafe fn init_entity(entity: *mut Entity, kind: i32, realm: *mut Realm, id: Uint128, rc: Errno) {
    // SAFETY: the caller's contract; zeros are valid for each field.
    unsafe {
        ptr::write_bytes(entity, 0, 1);
        (*entity).kind = kind;
        (*entity).id = id;
        (*entity).realm = realm;
        (*entity).sm.state = entity_state::INIT;
        (*entity).sm.rc = rc;
        (*entity).sm.group = &raw mut (*entity).sm_group;
    }
}

/// # Safety
/// The pointers are null or as the header has them.
unsafe fn init_realm(
    call: &str,
    realm: *mut Realm,
    kind: i32,
    parent: *mut Realm,
    id: *const Uint128,
    instance: *mut Clovis,
    rc: Errno,
) {
    // SAFETY: the caller's contract.
    let Some(id) = (unsafe { id.as_ref() }) else {
        say!("{call}: the id is NULL");
        if !realm.is_null() {
            // SAFETY: the caller's contract.
            unsafe {
                init_entity(
                    &raw mut (*realm).entity,
                    entity_type::REALM,
                    parent,
                    Uint128::default(),
                    errno::EINVAL,
                )
            };
        }
        return;
    };
    if realm.is_null() {
        say!("{call}: there is nothing to initialise: NULL");
        return;
    }
    // SAFETY: the caller's contract.
    unsafe {
        init_entity(&raw mut (*realm).entity, entity_type::REALM, parent, *id, rc);
        (*realm).kind = kind;
        (*realm).instance = instance;
        if rc == 0 {
            (*realm).entity.sm.state = entity_state::OPEN;
        }
    }
}

/// The user's id as ours: above `M0_CLOVIS_ID_APP`, its upper half below 2^56.
fn object_id(id: Uint128) -> Option<ObjectId> {
    let is_above = (id.hi, id.lo) > (M0_CLOVIS_ID_APP.hi, M0_CLOVIS_ID_APP.lo);
    ObjectId::new(id.hi, id.lo).filter(|_| is_above)
}

/// An object entity that may begin another operation: its id, and its instance.
///
/// # Safety
/// `entity` is null or as the header has it.
unsafe fn ready_object(
    call: &str,
    entity: *mut Entity,
    states: &[u32],
) -> Result<(NonNull<Entity>, ObjectId, Arc<Shared>), Errno> {
    let Some(entity) = NonNull::new(entity) else {
        say!("{call}: the entity is NULL");
        return Err(errno::EINVAL);
    };
    // SAFETY: the caller's contract.
    let (kind, id, state, rc) = unsafe {
        ((*entity.as_ptr()).kind, (*entity.as_ptr()).id, state_of(entity), (*entity.as_ptr()).sm.rc)
    };
    if kind == entity_type::IDX {
        say!("{call}: indices are not there yet (ffi/MATRIX.md)");
        return Err(errno::ENOSYS);
    }
    let Some(object) = object_id(id).filter(|_| kind == entity_type::OBJ && rc == 0) else {
        say!(
            "{call}: no object with an id above M0_CLOVIS_ID_APP and u_hi below 2^56 ({:#x}:{:#x})",
            id.hi,
            id.lo
        );
        return Err(errno::EINVAL);
    };
    if !states.contains(&state) {
        say!(
            "{call}: object {object} is in state {state}, and {states:?} is needed (enum m0_clovis_entity_states)"
        );
        return Err(errno::EINVAL);
    }
    // SAFETY: the caller's contract.
    let instance = unsafe { instance_of(call, entity) }.ok_or(errno::EINVAL)?;
    Ok((entity, object, instance))
}

/// # Safety
/// The pointers are null or as the header has them.
unsafe fn entity_op(
    call: &str,
    code: u32,
    states: &[u32],
    pool: *const CFid,
    entity: *mut Entity,
    op: *mut *mut Op,
) -> Result<(), Errno> {
    // SAFETY: the caller's contract.
    let (entity, id, instance) = unsafe { ready_object(call, entity, states)? };
    if op.is_null() {
        say!("{call}: nowhere to put the operation: op is NULL");
        return Err(errno::EINVAL);
    }
    // SAFETY: the caller's contract.
    if let Some(pool) = unsafe { pool.as_ref() } {
        let wanted = base::Fid::from(*pool);
        if wanted != base::Fid::default() && wanted != instance.pool {
            say!("{call}: there is no pool {wanted}: the cluster's is {}", instance.pool);
            return Err(errno::EINVAL);
        }
    }
    // SAFETY: an object's entity (its kind was checked), alive until its operations are over: the header's contract.
    let entity_ref = unsafe { EntityRef::of(entity) };
    // SAFETY: the attributes of an object that no operation is on its way for.
    let wanted = match unsafe { (*entity_ref.attr()).layout_id } {
        0 => u64::from(instance.layout_id),
        id => id,
    };
    let unit_bytes = if code != entity_opcode::CREATE || wanted == 0 {
        None
    } else {
        let Some(unit_bytes) = layout_id::possible_unit_bytes(wanted) else {
            say!("{call}: layout id {wanted} is not one of 1 to {}", layout_id::LAYOUT_ID_MAX);
            return Err(errno::EINVAL);
        };
        if layout_id::unit_bytes(wanted) != Some(u64::from(unit_bytes)) {
            say!(
                "{call}: layout id {wanted} is above the largest unit, so object {id} gets units of {unit_bytes} bytes"
            );
        }
        Some(unit_bytes)
    };
    let work = Work::Entity(EntityWork { code, id, unit_bytes, entity: entity_ref });
    // SAFETY: the caller's contract.
    let prepared = unsafe { op::prepare(call, op, code, Some(instance), work)? };
    // SAFETY: a new operation, not launched.
    unsafe { (*prepared.as_ptr()).entity = entity.as_ptr() };
    Ok(())
}

const fn number_of(done: Result<(), Errno>) -> i32 {
    match done {
        Ok(()) => 0,
        Err(number) => number,
    }
}

crate::export! {
    /// `m0_clovis_container_init`
    fn m0_clovis_container_init(con: *mut Realm, parent: *mut Realm, id: *const Uint128, instance: *mut Clovis) [()] {
        let call = "m0_clovis_container_init";
        // SAFETY: the header's contract.
        let rc = match unsafe { (id.as_ref(), shared_of(call, instance)) } {
            (Some(id), Some(_)) if *id == M0_CLOVIS_UBER_REALM => 0,
            (Some(id), Some(_)) => {
                say!("{call}: realm {:#x}:{:#x} does not exist: there is M0_CLOVIS_UBER_REALM only", id.hi, id.lo);
                errno::EINVAL
            }
            _ => errno::EINVAL,
        };
        // SAFETY: the header's contract.
        unsafe { init_realm(call, con, realm_type::CONTAINER, parent, id, instance, rc) };
    }

    /// `m0_clovis_epoch_init`
    fn m0_clovis_epoch_init(epoch: *mut Realm, parent: *mut Realm, id: *const Uint128) [()] {
        // SAFETY: the header's contract.
        unsafe { init_realm("m0_clovis_epoch_init", epoch, realm_type::EPOCH, parent, id, ptr::null_mut(), errno::ENOSYS) };
    }

    /// `m0_clovis_dtx_init`
    fn m0_clovis_dtx_init(dtx: *mut Realm, parent: *mut Realm, id: *const Uint128) [()] {
        // SAFETY: the header's contract.
        unsafe { init_realm("m0_clovis_dtx_init", dtx, realm_type::DTX, parent, id, ptr::null_mut(), errno::ENOSYS) };
    }

    /// `m0_clovis_obj_init`
    fn m0_clovis_obj_init(obj: *mut Obj, parent: *mut Realm, id: *const Uint128, layout_id: u64) [()] {
        let call = "m0_clovis_obj_init";
        if obj.is_null() {
            say!("{call}: obj is NULL");
            return;
        }
        // SAFETY: the header's contract.
        let (id, has_realm) = unsafe { (id.as_ref().copied(), !parent.is_null() && (*parent).entity.sm.rc == 0) };
        let rc = if !has_realm {
            say!("{call}: the realm is NULL, or its initialisation failed");
            errno::EINVAL
        } else if id.and_then(object_id).is_none() {
            say!("{call}: an id has to be above M0_CLOVIS_ID_APP (0:0x100000), with u_hi below 2^56");
            errno::EINVAL
        } else {
            0
        };
        // SAFETY: the header's contract: writable; zeros are valid for each field.
        unsafe {
            ptr::write_bytes(obj, 0, 1);
            init_entity(&raw mut (*obj).entity, entity_type::OBJ, parent, id.unwrap_or_default(), rc);
            (*obj).attr.bshift = limits::BLOCK_SHIFT_DEFAULT;
            (*obj).attr.layout_id = layout_id;
        }
    }

    /// `m0_clovis_obj_fini`
    fn m0_clovis_obj_fini(obj: *mut Obj) [()] {
        // SAFETY: the header's contract; the entity is the first member.
        unsafe { m0_clovis_entity_fini(obj.cast()) };
    }

    /// `m0_clovis_entity_fini`
    fn m0_clovis_entity_fini(entity: *mut Entity) [()] {
        let Some(entity) = NonNull::new(entity) else {
            say!("m0_clovis_entity_fini: the entity is NULL");
            return;
        };
        // SAFETY: the header's contract.
        unsafe {
            if matches!(state_of(entity), entity_state::CREATING | entity_state::DELETING | entity_state::OPENING) {
                say!("m0_clovis_entity_fini: an operation on the entity is still running");
                return;
            }
            (*entity.as_ptr()).sm.state = entity_state::NONE;
            (*entity.as_ptr()).realm = ptr::null_mut();
        }
    }

    /// `m0_clovis_obj_idx_init`
    fn m0_clovis_obj_idx_init(idx: *mut Idx, obj: *const Obj) [()] {
        // SAFETY: the header's contract.
        let Some(obj) = (unsafe { obj.as_ref() }) else {
            say!("m0_clovis_obj_idx_init: obj is NULL");
            return;
        };
        // SAFETY: the header's contract.
        unsafe { m0_clovis_idx_init(idx, obj.entity.realm, &raw const obj.entity.id) };
    }

    /// `m0_clovis_idx_init`
    fn m0_clovis_idx_init(idx: *mut Idx, parent: *mut Realm, id: *const Uint128) [()] {
        if idx.is_null() {
            say!("m0_clovis_idx_init: idx is NULL");
            return;
        }
        // SAFETY: the header's contract.
        unsafe {
            let id = id.as_ref().copied().unwrap_or_default();
            ptr::write_bytes(idx, 0, 1);
            init_entity(&raw mut (*idx).entity, entity_type::IDX, parent, id, 0);
        }
    }

    /// `m0_clovis_idx_fini`
    fn m0_clovis_idx_fini(idx: *mut Idx) [()] {
        // SAFETY: the header's contract; the entity is the first member.
        unsafe { m0_clovis_entity_fini(idx.cast()) };
    }

    /// `m0_clovis_entity_create`
    fn m0_clovis_entity_create(pool: *const CFid, entity: *mut Entity, op: *mut *mut Op) -> i32 [errno::EIO] {
        let states = &[entity_state::INIT];
        // SAFETY: the header's contract.
        number_of(unsafe { entity_op("m0_clovis_entity_create", entity_opcode::CREATE, states, pool, entity, op) })
    }

    /// `m0_clovis_entity_open`
    fn m0_clovis_entity_open(entity: *mut Entity, op: *mut *mut Op) -> i32 [errno::EIO] {
        let states = &[entity_state::INIT];
        // SAFETY: the header's contract.
        number_of(unsafe { entity_op("m0_clovis_entity_open", entity_opcode::OPEN, states, ptr::null(), entity, op) })
    }

    /// `m0_clovis_entity_delete`
    fn m0_clovis_entity_delete(entity: *mut Entity, op: *mut *mut Op) -> i32 [errno::EIO] {
        let states = &[entity_state::INIT, entity_state::OPEN];
        // SAFETY: the header's contract.
        number_of(unsafe { entity_op("m0_clovis_entity_delete", entity_opcode::DELETE, states, ptr::null(), entity, op) })
    }

    /// `m0_entity_type_is_valid`
    fn m0_entity_type_is_valid(ent: *mut Entity) -> i32 [0] {
        // SAFETY: the header's contract.
        let kind = unsafe { ent.as_ref() }.map(|entity| entity.kind);
        i32::from(matches!(kind, Some(entity_type::REALM | entity_type::OBJ | entity_type::IDX)))
    }

    /// `m0_clovis_obj_op`
    fn m0_clovis_obj_op(
        obj: *mut Obj, opcode: u32, ext: *mut IndexVec, data: *mut BufVec, attr: *mut BufVec, mask: u64, op: *mut *mut Op,
    ) -> i32 [errno::EIO] {
        // SAFETY: the header's contract.
        number_of(unsafe { obj_op("m0_clovis_obj_op", obj, opcode, ext, data, attr, mask, false, op) })
    }

    /// `m0_obj_op`: the later form, with flags. `M0_OOF_HOLE`: a read of bytes never written fails. Writes are durable whatever they say.
    fn m0_obj_op(
        obj: *mut Obj, opcode: u32, ext: *mut IndexVec, data: *mut BufVec, attr: *mut BufVec, mask: u64, flags: u32,
        op: *mut *mut Op,
    ) -> i32 [errno::EIO] {
        const HOLE: u32 = 1;
        const SYNC_LAST_FULL: u32 = 2 | 4 | 8;
        if flags & !(HOLE | SYNC_LAST_FULL) != 0 {
            say!("m0_obj_op: flags {flags:#x}: there are M0_OOF_HOLE, M0_OOF_SYNC, M0_OOF_LAST and M0_OOF_FULL");
            return errno::EINVAL;
        }
        // SAFETY: the header's contract.
        number_of(unsafe { obj_op("m0_obj_op", obj, opcode, ext, data, attr, mask, flags & HOLE != 0, op) })
    }

    /// `m0_clovis_obj_unit_size_to_layout_id`
    fn m0_clovis_obj_unit_size_to_layout_id(unit_size: i32) -> u64 [0] {
        u64::try_from(unit_size).ok().and_then(layout_id::layout_id).unwrap_or(0)
    }

    /// `m0_clovis_obj_layout_id_to_unit_size`
    fn m0_clovis_obj_layout_id_to_unit_size(layout_id: u64) -> i32 [errno::EIO] {
        layout_id::unit_bytes(layout_id).and_then(|bytes| i32::try_from(bytes).ok()).unwrap_or(errno::EINVAL)
    }

    /// `m0_clovis_obj_layout_type`
    fn m0_clovis_obj_layout_type(_obj: *mut Obj) -> i32 [0] {
        0 // M0_CLOVIS_LT_PDCLUST: there is no other yet
    }
}

/// # Safety
/// The pointers are null or as the header has them.
#[expect(clippy::too_many_arguments, reason = "the C interface's call")]
unsafe fn obj_op(
    call: &str,
    obj: *mut Obj,
    opcode: u32,
    extents: *mut IndexVec,
    data: *mut BufVec,
    attr: *mut BufVec,
    mask: u64,
    refuses_holes: bool,
    op: *mut *mut Op,
) -> Result<(), Errno> {
    // SAFETY: the caller's contract; the entity is the first member.
    let (entity, id, instance) = unsafe { ready_object(call, obj.cast(), &[entity_state::OPEN])? };
    if op.is_null() {
        say!("{call}: nowhere to put the operation: op is NULL");
        return Err(errno::EINVAL);
    }
    // SAFETY: an object that is OPEN.
    let block_shift = unsafe { (*obj).attr.bshift };
    let arguments = IoArguments { opcode, extents, data, attr, mask, block_shift, refuses_holes };
    // SAFETY: the caller's contract.
    let io = unsafe { Io::check(id, &arguments)? };
    // SAFETY: the caller's contract.
    let prepared = unsafe { op::prepare(call, op, opcode, Some(instance), Work::Io(io))? };
    // SAFETY: a new operation, not launched.
    unsafe { (*prepared.as_ptr()).entity = entity.as_ptr() };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_below_the_applications_are_refused() {
        let id = |hi, lo| object_id(Uint128 { hi, lo }).is_some();
        assert!(!id(0, 0) && !id(0, 1) && !id(0, 0x10_0000));
        assert!(id(0, 0x10_0001) && id(1, 0) && id(12, 34));
        assert!(id((1 << 56) - 1, 0) && !id(1 << 56, 0));
    }
}
