//! The C structures, field by field as `ffi/include` has them, with their sizes and offsets asserted (ffi/tests/abi.c asserts the same in C).
//!
//! Fields that only C programs use are here so that the others stand where they should. Locks of C structures are opaque words: the
//! functions of [`crate::helpers::lock`] work on them.

use std::ffi::{c_char, c_int, c_void};

/// `struct m0_uint128`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uint128 {
    pub hi: u64,
    pub lo: u64,
}

/// `struct m0_fid`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CFid {
    pub container: u64,
    pub key: u64,
}

impl From<base::Fid> for CFid {
    fn from(fid: base::Fid) -> CFid {
        CFid { container: fid.container, key: fid.key }
    }
}

impl From<CFid> for base::Fid {
    fn from(fid: CFid) -> base::Fid {
        base::Fid { container: fid.container, key: fid.key }
    }
}

/// `struct m0_vec`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CVec {
    pub nr: u32,
    pub count: *mut u64,
}

/// `struct m0_indexvec`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct IndexVec {
    pub vec: CVec,
    pub index: *mut u64,
}

/// `struct m0_bufvec`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BufVec {
    pub vec: CVec,
    pub buf: *mut *mut c_void,
}

/// `struct m0_buf`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CBuf {
    pub nob: u64,
    pub addr: *mut c_void,
}

/// `struct m0_mutex`
pub type CMutex = [u64; 8];
/// `struct m0_semaphore`
pub type CSemaphore = [u64; 8];
/// `struct m0_chan`
pub type CChan = [u64; 8];
/// `struct m0_clink`
pub type CClink = [u64; 9];
/// `struct m0_tl`
pub type CTl = [u64; 2];
/// `struct m0_sm_ast`
pub type CAst = [u64; 4];
/// `struct m0`
pub type M0 = [u64; 16];

/// `struct m0_sm_group`
#[repr(C)]
pub struct SmGroup {
    pub lock: CMutex,
    pub clink: CClink,
    pub forkq: *mut c_void,
    pub chan: CChan,
    pub opaque: [u64; 4],
}

/// `struct m0_sm`
#[repr(C)]
pub struct Sm {
    pub state: u32,
    pub padding: u32,
    pub conf: *const c_void,
    pub group: *mut SmGroup,
    pub state_epoch: u64,
    pub addb2_stats: *mut c_void,
    pub chan: CChan,
    pub rc: i32,
    pub padding2: u32,
    pub id: u64,
}

/// A callback of `struct m0_clovis_op_ops`
pub type Callback = Option<unsafe extern "C" fn(*mut Op)>;

/// `struct m0_clovis_op_ops`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct OpOps {
    pub executed: Callback,
    pub failed: Callback,
    pub stable: Callback,
}

/// `struct m0_clovis_op`: the public part of an operation.
#[repr(C)]
pub struct Op {
    pub magic: u64,
    pub code: u32,
    pub rc: i32,
    pub sm_group: SmGroup,
    pub sm: Sm,
    pub cbs: *const OpOps,
    pub entity: *mut Entity,
    pub linger: u64,
    pub size: usize,
    pub gen_: u64,
    pub parent: *mut Op,
    pub parent_ast: CAst,
    pub pending_tx: CTl,
    pub pending_tx_lock: CMutex,
    pub datum: *mut c_void,
    pub count: u64,
    pub priv_: *mut c_void,
    pub priv_lock: CMutex,
    pub cancelling: bool,
    pub sema: CSemaphore,
    pub reserved: [u64; 9],
}

/// `struct m0_clovis_entity`
#[repr(C)]
pub struct Entity {
    /// `enum m0_clovis_entity_type`
    pub kind: c_int,
    pub id: Uint128,
    pub realm: *mut Realm,
    pub sm: Sm,
    pub sm_group: SmGroup,
    pub pending_tx: CTl,
    pub pending_tx_lock: CMutex,
    pub flags: u32,
    pub reserved: [u64; 3],
}

/// `struct m0_clovis_obj_attr`
#[repr(C)]
pub struct ObjAttr {
    pub bshift: u64,
    pub layout_id: u64,
    pub pool: CFid,
    pub pver: CFid,
    pub buf_size: u64,
}

/// `struct m0_clovis_obj`
#[repr(C)]
pub struct Obj {
    pub entity: Entity,
    pub attr: ObjAttr,
    pub layout: *mut c_void,
    pub cookie: [u64; 2],
    pub reserved: [u64; 3],
}

/// `struct m0_clovis_idx`
#[repr(C)]
pub struct Idx {
    pub entity: Entity,
    pub reserved: [u64; 4],
}

/// `struct m0_clovis_realm`, which container, epoch and dtx consist of
#[repr(C)]
pub struct Realm {
    pub entity: Entity,
    /// `enum m0_clovis_realm_type`
    pub kind: c_int,
    pub instance: *mut Clovis,
}

/// `struct m0_clovis_config`
#[repr(C)]
pub struct Config {
    pub is_oostore: bool,
    pub is_read_verify: bool,
    pub is_addb_init: bool,
    pub local_addr: *const c_char,
    pub ha_addr: *const c_char,
    pub process_fid: *const c_char,
    pub profile: *const c_char,
    pub tm_recv_queue_min_len: u32,
    pub max_rpc_msg_size: u32,
    pub layout_id: u32,
    pub idx_service_id: c_int,
    pub idx_service_conf: *mut c_void,
    pub addb_size: u64,
}

/// `struct m0_clovis`: three public pointers, then what is the library's own.
#[repr(C)]
pub struct Clovis {
    pub mero: *mut M0,
    pub motr: *mut M0,
    pub config: *mut Config,
    /// `struct m0_reqh`
    pub reqh: [u64; 5],
    /// [`Clovis::MAGIC`] while the instance lives.
    pub magic: u64,
    /// `Arc<instance::Shared>`, as a raw pointer.
    pub shared: *const c_void,
    /// `Box<JoinHandle<()>>`, as a raw pointer.
    pub thread: *mut c_void,
    pub reserved: [u64; 5],
}

impl Clovis {
    /// Says that this is an instance.
    pub const MAGIC: u64 = 0x436c_6f76_6973_3031;
}

/// `enum m0_clovis_entity_opcode`
pub mod entity_opcode {
    pub const CREATE: u32 = 1;
    pub const DELETE: u32 = 2;
    pub const SYNC: u32 = 3;
    pub const OPEN: u32 = 4;
    pub const INVALID: u32 = 0;
}

/// `enum m0_clovis_obj_opcode`
pub mod obj_opcode {
    pub const READ: u32 = 10;
    pub const WRITE: u32 = 11;
    pub const ALLOC: u32 = 12;
    pub const FREE: u32 = 13;
}

/// `enum m0_clovis_entity_type`
pub mod entity_type {
    use std::ffi::c_int;
    pub const REALM: c_int = 0;
    pub const OBJ: c_int = 1;
    pub const IDX: c_int = 2;
}

/// `enum m0_clovis_op_state`
pub mod op_state {
    pub const UNINITIALISED: u32 = 0;
    pub const INITIALISED: u32 = 1;
    pub const LAUNCHED: u32 = 2;
    pub const EXECUTED: u32 = 3;
    pub const STABLE: u32 = 4;
    pub const FAILED: u32 = 5;
}

/// `enum m0_clovis_entity_states`
pub mod entity_state {
    pub const NONE: u32 = 0;
    pub const INIT: u32 = 1;
    pub const CREATING: u32 = 2;
    pub const DELETING: u32 = 3;
    pub const OPENING: u32 = 4;
    pub const OPEN: u32 = 5;
}

/// `M0_CLOVIS_BLOCK_ATTR_CRC32C`
pub const BLOCK_ATTR_CRC32C: u64 = 1 << 32;

/// `M0_CLOVIS_UBER_REALM`
#[unsafe(no_mangle)]
pub static M0_CLOVIS_UBER_REALM: Uint128 = Uint128 { hi: 0, lo: 1 };
/// `M0_CLOVIS_ID_APP`
#[unsafe(no_mangle)]
pub static M0_CLOVIS_ID_APP: Uint128 = Uint128 { hi: 0, lo: 0x10_0000 };
/// `m0_rm_clovis_group`
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)] // the C interface's name
pub static m0_rm_clovis_group: Uint128 = Uint128 { hi: 0, lo: 1 };
/// `m0_rm_no_group`
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)] // the C interface's name
pub static m0_rm_no_group: Uint128 = Uint128 { hi: 0, lo: 0 };

/// Sizes and offsets, the same figures as in ffi/tests/abi.c.
#[cfg(target_pointer_width = "64")]
mod figures {
    use super::*;
    use std::mem::{offset_of, size_of};
    macro_rules! figures {
        ($($kind:ty: $bytes:expr, { $($field:ident: $at:expr),* $(,)? };)+) => {
            $( const _: () = assert!(size_of::<$kind>() == $bytes); $( const _: () = assert!(offset_of!($kind, $field) == $at); )* )+
        };
    }
    figures! {
        IndexVec: 24, { index: 16 };
        BufVec: 24, { buf: 16 };
        Sm: 120, { conf: 8, group: 16, state_epoch: 24, rc: 104, id: 112 };
        SmGroup: 240, { clink: 64, forkq: 136, chan: 144 };
        Op: 768, { code: 8, rc: 12, sm_group: 16, sm: 256, cbs: 376, entity: 384, linger: 392, size: 400, gen_: 408, parent: 416, parent_ast: 424, pending_tx: 456, pending_tx_lock: 472, datum: 536, count: 544, priv_: 552, priv_lock: 560, cancelling: 624, sema: 632 };
        Entity: 504, { id: 8, realm: 24, sm: 32, sm_group: 152, pending_tx: 392, pending_tx_lock: 408, flags: 472 };
        Obj: 608, { attr: 504, layout: 560, cookie: 568 };
        ObjAttr: 56, { layout_id: 8, pool: 16, pver: 32, buf_size: 48 };
        Idx: 536, {};
        Realm: 520, { kind: 504, instance: 512 };
        Config: 72, { is_read_verify: 1, is_addb_init: 2, local_addr: 8, ha_addr: 16, process_fid: 24, profile: 32, tm_recv_queue_min_len: 40, max_rpc_msg_size: 44, layout_id: 48, idx_service_id: 52, idx_service_conf: 56, addb_size: 64 };
        Clovis: 128, { motr: 8, config: 16, reqh: 24 };
        OpOps: 24, { failed: 8, stable: 16 };
    }
}
