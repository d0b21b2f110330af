//! Sync: a STABLE operation is durable already, so a sync waits for what was launched before it.

use std::ptr::{self, NonNull};
use std::sync::Arc;

use base::ObjectId;

use crate::abi::{Clovis, Entity, Op, entity_opcode, op_state};
use crate::errno::{self, Errno};
use crate::helpers::time;
use crate::instance::{Shared, shared_of};
use crate::object;
use crate::op::{self, OpRef};
use crate::request::{SyncTarget, Work};
use crate::say;

/// Waits on the calling thread for everything of `target` that was launched before.
fn wait_for(call: &str, instance: Arc<Shared>, target: SyncTarget) -> Errno {
    if instance.is_own_thread() {
        say!("{call}: a callback would wait for its own thread");
        return errno::EDEADLK;
    }
    let mut slot: *mut Op = ptr::null_mut();
    let work = Work::Sync(vec![target]);
    // SAFETY: an empty slot of ours.
    let op = match unsafe { op::prepare(call, &raw mut slot, entity_opcode::SYNC, Some(instance), work) } {
        Ok(op) => op,
        Err(number) => return number,
    };
    op.launch();
    let waited = op.wait(1 << op_state::STABLE | 1 << op_state::FAILED, time::NEVER);
    // SAFETY: an operation of ours that is over.
    let rc = unsafe { op::m0_clovis_rc(slot) };
    op.fini();
    // SAFETY: memory of `prepare`, after fini.
    unsafe { op::m0_clovis_op_free(slot) };
    if waited == 0 { rc } else { waited }
}

/// Adds a target to a sync that is not launched. All targets belong to one instance.
fn add(call: &str, sop: OpRef, instance: Arc<Shared>, target: SyncTarget) -> Errno {
    let added = sop.with_work(|work, of| {
        let Work::Sync(targets) = work else {
            say!("{call}: the operation is no sync");
            return errno::EINVAL;
        };
        if of.as_ref().is_some_and(|of| !Arc::ptr_eq(of, &instance)) {
            say!("{call}: the sync waits for another instance already");
            return errno::EINVAL;
        }
        *of = Some(instance);
        targets.push(target);
        0
    });
    added.unwrap_or_else(|| {
        say!("{call}: the sync was launched already");
        errno::EINVAL
    })
}

/// # Safety
/// `entity` is null or as the header has it.
unsafe fn target_of(call: &str, entity: *mut Entity) -> Option<(Arc<Shared>, SyncTarget)> {
    let entity = NonNull::new(entity)?;
    // SAFETY: the caller's contract.
    unsafe {
        let instance = object::instance_of(call, entity)?;
        let id = ObjectId::new((*entity.as_ptr()).id.hi, (*entity.as_ptr()).id.lo)?;
        Some((instance, SyncTarget::Object(id)))
    }
}

crate::export! {
    /// `m0_clovis_sync_op_init`
    fn m0_clovis_sync_op_init(sop: *mut *mut Op) -> i32 [errno::EIO] {
        if sop.is_null() {
            say!("m0_clovis_sync_op_init: sop is NULL");
            return errno::EINVAL;
        }
        let work = Work::Sync(Vec::new());
        // SAFETY: the header's contract.
        match unsafe { op::prepare("m0_clovis_sync_op_init", sop, entity_opcode::SYNC, None, work) } {
            Ok(_) => 0,
            Err(number) => number,
        }
    }

    /// `m0_clovis_sync_entity_add`
    fn m0_clovis_sync_entity_add(sop: *mut Op, ent: *mut Entity) -> i32 [errno::EIO] {
        let call = "m0_clovis_sync_entity_add";
        // SAFETY: the header's contract.
        let (Some(sop), Some((instance, target))) = (unsafe { (OpRef::of(call, sop), target_of(call, ent)) }) else {
            say!("{call}: no sync, or no entity of an instance");
            return errno::EINVAL;
        };
        add(call, sop, instance, target)
    }

    /// `m0_clovis_sync_op_add`
    fn m0_clovis_sync_op_add(sop: *mut Op, op: *mut Op) -> i32 [errno::EIO] {
        let call = "m0_clovis_sync_op_add";
        // SAFETY: the header's contract.
        let (Some(sop), Some(op)) = (unsafe { (OpRef::of(call, sop), OpRef::of(call, op)) }) else {
            return errno::EINVAL;
        };
        let Some((instance, serial)) = op.launched_as() else {
            say!("{call}: the operation to wait for was not launched");
            return errno::EINVAL;
        };
        add(call, sop, instance, SyncTarget::Launch(serial))
    }

    /// `m0_clovis_entity_sync`
    fn m0_clovis_entity_sync(ent: *mut Entity) -> i32 [errno::EIO] {
        // SAFETY: the header's contract.
        match unsafe { target_of("m0_clovis_entity_sync", ent) } {
            Some((instance, target)) => wait_for("m0_clovis_entity_sync", instance, target),
            None => {
                say!("m0_clovis_entity_sync: no entity of an instance");
                errno::EINVAL
            }
        }
    }

    /// `m0_clovis_sync`
    fn m0_clovis_sync(m0c: *mut Clovis, wait: bool) -> i32 [errno::EIO] {
        // SAFETY: the header's contract.
        match unsafe { shared_of("m0_clovis_sync", m0c) } {
            Some(instance) if wait => wait_for("m0_clovis_sync", instance, SyncTarget::All),
            Some(_) => 0, // everything is on its way already
            None => errno::EINVAL,
        }
    }
}
