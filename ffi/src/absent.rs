//! What the interface declares and this system does not have yet: refused with -ENOSYS, or by an operation that fails with it. ffi/MATRIX.md
//! has a row for each; a call moves out of this file when the system behind it is there.

use std::ffi::{c_int, c_void};
use std::ptr;

use crate::abi::{BufVec, Entity, Idx, Obj, Op, Realm, Uint128, entity_opcode};
use crate::errno;
use crate::op;
use crate::request::Work;
use crate::say;

/// Says that a call is not there.
fn refuse(call: &str) -> i32 {
    say!("{call}: not there yet (ffi/MATRIX.md)");
    errno::ENOSYS
}

/// An operation that fails with -ENOSYS once it is launched.
///
/// # Safety
/// `slot` is null or as the header has it.
unsafe fn failing(call: &str, entity: *mut Entity, slot: *mut *mut Op) {
    refuse(call);
    if slot.is_null() {
        return;
    }
    let work = Work::Refuse(errno::ENOSYS);
    // SAFETY: the caller's contract.
    if let Ok(op) = unsafe { op::prepare(call, slot, entity_opcode::INVALID, None, work) } {
        // SAFETY: a new operation, not launched.
        unsafe { (*op.as_ptr()).entity = entity };
    }
}

/// `struct m0_clovis_rm_lock_req`
#[repr(C)]
pub struct LockRequest {
    obj: *mut Obj,
    rc: i32,
    flags: u32,
    opaque: [u64; 32],
}

const _: () = assert!(size_of::<LockRequest>() == 272);

crate::export! {
    /// `m0_clovis_realm_create`
    fn m0_clovis_realm_create(realm: *mut Realm, _wcount: u64, _rcount: u64, op: *mut *mut Op) [()] {
        // SAFETY: the header's contract; the entity is the first member.
        unsafe { failing("m0_clovis_realm_create", realm.cast(), op) };
    }

    /// `m0_clovis_realm_open`
    fn m0_clovis_realm_open(realm: *mut Realm, _wcount: u64, _rcount: u64, op: *mut *mut Op) [()] {
        // SAFETY: the header's contract.
        unsafe { failing("m0_clovis_realm_open", realm.cast(), op) };
    }

    /// `m0_clovis_realm_close`
    fn m0_clovis_realm_close(realm: *mut Realm, _wcount: u64, _rcount: u64, op: *mut *mut Op) [()] {
        // SAFETY: the header's contract.
        unsafe { failing("m0_clovis_realm_close", realm.cast(), op) };
    }

    /// `m0_clovis_idx_op`
    fn m0_clovis_idx_op(
        _idx: *mut Idx, _opcode: c_int, _keys: *mut BufVec, _vals: *mut BufVec, _rcs: *mut i32, _flags: u32,
        _op: *mut *mut Op,
    ) -> c_int [errno::EIO] {
        refuse("m0_clovis_idx_op")
    }

    /// `m0_idx_op_setoption`
    fn m0_idx_op_setoption(_op: *mut Op, _option: c_int, _value: i64) -> c_int [errno::EIO] {
        refuse("m0_idx_op_setoption")
    }

    /// `m0_clovis_composite_layer_add`
    fn m0_clovis_composite_layer_add(_layout: *mut c_void, _sub_obj: *mut Obj, _priority: c_int) -> c_int [errno::EIO] {
        refuse("m0_clovis_composite_layer_add")
    }

    /// `m0_clovis_composite_layer_del`
    fn m0_clovis_composite_layer_del(_layout: *mut c_void, _subobj_id: Uint128) [()] {
        refuse("m0_clovis_composite_layer_del");
    }

    /// `m0_clovis_composite_layer_idx`
    fn m0_clovis_composite_layer_idx(_layer_id: Uint128, _write: bool, _idx: *mut Idx) -> c_int [errno::EIO] {
        refuse("m0_clovis_composite_layer_idx")
    }

    /// `m0_clovis_composite_layer_idx_key_to_buf`
    fn m0_clovis_composite_layer_idx_key_to_buf(
        _key: *mut c_void, _out_kbuf: *mut *mut c_void, _out_klen: *mut u64,
    ) -> c_int [errno::EIO] {
        refuse("m0_clovis_composite_layer_idx_key_to_buf")
    }

    /// `m0_clovis_composite_layer_idx_key_from_buf`
    fn m0_clovis_composite_layer_idx_key_from_buf(_key: *mut c_void, _kbuf: *mut c_void) [()] {
        refuse("m0_clovis_composite_layer_idx_key_from_buf");
    }

    /// `m0_clovis_composite_layer_idx_val_to_buf`
    fn m0_clovis_composite_layer_idx_val_to_buf(
        _val: *mut c_void, _out_vbuf: *mut *mut c_void, _out_vlen: *mut u64,
    ) -> c_int [errno::EIO] {
        refuse("m0_clovis_composite_layer_idx_val_to_buf")
    }

    /// `m0_clovis_composite_layer_idx_val_from_buf`
    fn m0_clovis_composite_layer_idx_val_from_buf(_val: *mut c_void, _vbuf: *mut c_void) [()] {
        refuse("m0_clovis_composite_layer_idx_val_from_buf");
    }

    /// `m0_clovis_layout_op`
    fn m0_clovis_layout_op(
        _obj: *mut Obj, _opcode: c_int, _layout: *mut c_void, _op: *mut *mut Op,
    ) -> c_int [errno::EIO] {
        refuse("m0_clovis_layout_op")
    }

    /// `m0_clovis_layout_capture`
    fn m0_clovis_layout_capture(_layout: *mut c_void, _obj: *mut Obj, out: *mut *mut c_void) -> c_int [errno::EIO] {
        // SAFETY: the header's contract.
        if let Some(out) = unsafe { out.as_mut() } {
            *out = ptr::null_mut();
        }
        refuse("m0_clovis_layout_capture")
    }

    /// `m0_clovis_layout_alloc`
    fn m0_clovis_layout_alloc(_kind: c_int) -> *mut c_void [ptr::null_mut()] {
        refuse("m0_clovis_layout_alloc");
        ptr::null_mut()
    }

    /// `m0_clovis_layout_free`
    fn m0_clovis_layout_free(_layout: *mut c_void) [()] {}

    /// `m0_clovis_obj_lock_init`
    fn m0_clovis_obj_lock_init(_obj: *mut Obj, _group: *const Uint128) -> c_int [errno::EIO] {
        refuse("m0_clovis_obj_lock_init")
    }

    /// `m0_clovis_obj_lock_fini`
    fn m0_clovis_obj_lock_fini(_obj: *mut Obj) [()] {}

    /// `m0_clovis_obj_lock_get`
    fn m0_clovis_obj_lock_get(
        _obj: *mut Obj, _req: *mut LockRequest, _group: *const Uint128, _clink: *mut c_void,
    ) -> c_int [errno::EIO] {
        refuse("m0_clovis_obj_lock_get")
    }

    /// `m0_clovis_obj_lock_get_sync`
    fn m0_clovis_obj_lock_get_sync(
        _obj: *mut Obj, _req: *mut LockRequest, _group: *const Uint128,
    ) -> c_int [errno::EIO] {
        refuse("m0_clovis_obj_lock_get_sync")
    }

    /// `m0_clovis_obj_lock_put`
    fn m0_clovis_obj_lock_put(_req: *mut LockRequest) [()] {
        refuse("m0_clovis_obj_lock_put");
    }
}
