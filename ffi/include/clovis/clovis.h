/*
 * Clovis: objects (arrays of blocks, striped over many devices with parity) from C.
 *
 * A program makes an instance (m0_clovis_init), a realm in it (m0_clovis_container_init), objects in the realm
 * (m0_clovis_obj_init), operations on objects (m0_clovis_entity_create, m0_clovis_obj_op, ..), launches operations, waits for them,
 * looks at two return codes and gives everything back:
 *
 *     m0_clovis_rc(op)   could the operation be carried out?
 *     op->op_rc          what came out: for create, open and delete -EEXIST or -ENOENT stand here, with the state STABLE.
 *
 * Any thread may call anything. Wrong arguments give -EINVAL or a FAILED operation and a line on standard error, never an abort.
 * What each call does here, and which refuse with -ENOSYS: ffi/MATRIX.md (installed as share/doc/clovis/MATRIX.md).
 */
#ifndef CLOVIS_INCLUDE_CLOVIS_CLOVIS_H
#define CLOVIS_INCLUDE_CLOVIS_CLOVIS_H

#include "lib/vec.h"
#include "lib/types.h"
#include "lib/assert.h"
#include "lib/buf.h"
#include "lib/misc.h"
#include "lib/mutex.h"
#include "lib/semaphore.h"
#include "lib/string.h"
#include "lib/trace.h"
#include "lib/memory.h"
#include "lib/time.h"
#include "lib/thread.h"
#include "lib/errno.h"
#include "lib/cookie.h"
#include "sm/sm.h"
#include "rpc/rpc_machine.h"
#include "fid/fid.h"
#include "layout/layout.h"

#ifdef __cplusplus
extern "C" {
#endif

struct m0_clovis;
struct m0_clovis_op;
struct m0_clovis_op_ops;
struct m0_clovis_realm;
struct m0_clovis_layout_ops;
struct m0_clink;

/* What an operation does: op->op_code. */
enum m0_clovis_entity_opcode {
	M0_CLOVIS_EO_INVALID,
	M0_CLOVIS_EO_CREATE,
	M0_CLOVIS_EO_DELETE,
	M0_CLOVIS_EO_SYNC,
	M0_CLOVIS_EO_OPEN,
	M0_CLOVIS_EO_GETATTR,
	M0_CLOVIS_EO_SETATTR,
	M0_CLOVIS_EO_LAYOUT_GET,
	M0_CLOVIS_EO_LAYOUT_SET,
	M0_CLOVIS_EO_NR
};

enum m0_clovis_obj_opcode {
	/* Bytes of the object into `data`. Bytes never written are zeros. */
	M0_CLOVIS_OC_READ = M0_CLOVIS_EO_NR + 1,
	M0_CLOVIS_OC_WRITE,
	/* Extents never written become zeros that have blocks; others stay. */
	M0_CLOVIS_OC_ALLOC,
	/* Extents become zeros, and whole parity groups give their blocks back. */
	M0_CLOVIS_OC_FREE,
	M0_CLOVIS_OC_NR
};

enum m0_clovis_idx_opcode {
	M0_CLOVIS_IC_GET = M0_CLOVIS_OC_NR + 1,
	M0_CLOVIS_IC_PUT,
	M0_CLOVIS_IC_DEL,
	M0_CLOVIS_IC_NEXT,
	M0_CLOVIS_IC_LOOKUP,
	M0_CLOVIS_IC_LIST,
	M0_CLOVIS_IC_NR
};

enum m0_clovis_entity_type {
	M0_CLOVIS_ET_REALM,
	M0_CLOVIS_ET_OBJ,
	M0_CLOVIS_ET_IDX
};

/* op->op_sm.sm_state: INITIALISED, LAUNCHED, EXECUTED, STABLE in this order; FAILED from any of them. */
enum m0_clovis_op_state {
	M0_CLOVIS_OS_UNINITIALISED,
	M0_CLOVIS_OS_INITIALISED,
	M0_CLOVIS_OS_LAUNCHED,
	/* The effect is visible; bytes that were read are in their buffers. */
	M0_CLOVIS_OS_EXECUTED,
	/* The effect survives; buffers that were written are the caller's again. */
	M0_CLOVIS_OS_STABLE,
	M0_CLOVIS_OS_FAILED,
	M0_CLOVIS_OS_NR
};

/* entity->en_sm.sm_state. */
enum m0_clovis_entity_states {
	M0_CLOVIS_ES_INIT = 1,
	M0_CLOVIS_ES_CREATING,
	M0_CLOVIS_ES_DELETING,
	M0_CLOVIS_ES_OPENING,
	M0_CLOVIS_ES_OPEN,
	M0_CLOVIS_ES_CLOSING,
	M0_CLOVIS_ES_FAILED
};

enum m0_clovis_layout_type {
	M0_CLOVIS_LT_PDCLUST = 0,
	M0_CLOVIS_LT_COMPOSITE,
	M0_CLOVIS_LT_CAPTURE,
	M0_CLOVIS_LT_NR
};

enum m0_clovis_realm_type {
	M0_CLOVIS_ST_CONTAINER,
	M0_CLOVIS_ST_EPOCH,
	M0_CLOVIS_ST_DTX,
	M0_CLOVIS_ST_NR
};

/*
 * An operation. Programs read op_code, op_rc, op_sm.sm_rc, op_sm.sm_state, op_entity, op_count, op_size; op_datum is theirs to use.
 * In memory a private part follows it: see m0_clovis_op_maxsize.
 */
struct m0_clovis_op {
	uint64_t op_magic;
	unsigned int op_code;
	/* The outcome; see the head of this file. */
	int32_t op_rc;
	struct m0_sm_group op_sm_group;
	struct m0_sm op_sm;
	const struct m0_clovis_op_ops *op_cbs;
	struct m0_clovis_entity *op_entity;
	m0_time_t op_linger;
	/* Bytes of the memory that the operation stands in. */
	size_t op_size;
	uint64_t op_gen;
	struct m0_clovis_op *op_parent;
	struct m0_sm_ast op_parent_ast;
	struct m0_tl op_pending_tx;
	struct m0_mutex op_pending_tx_lock;
	void *op_datum;
	/* Bytes that the operation has moved. */
	uint64_t op_count;
	void *op_priv;
	struct m0_mutex op_priv_lock;
	/* A cancel was asked for. */
	bool op_cancelling;
	struct m0_semaphore op_sema;
	uint64_t op_reserved[9];
};

struct m0_clovis_entity {
	enum m0_clovis_entity_type en_type;
	struct m0_uint128 en_id;
	struct m0_clovis_realm *en_realm;
	/* State, and in sm_rc whether the making of the entity went well (realms: look at it after m0_clovis_container_init). */
	struct m0_sm en_sm;
	struct m0_sm_group en_sm_group;
	struct m0_tl en_pending_tx;
	struct m0_mutex en_pending_tx_lock;
	/* enum m0_entity_flags of motr/client.h. Kept; nothing depends on them. */
	uint32_t en_flags;
	uint64_t en_reserved[3];
};

struct m0_clovis_obj_attr {
	/* log2 of the block: extents are multiples of it. 12 unless set to 9 or more before the first operation. */
	m0_bcount_t oa_bshift;
	/* Layout asked for; after create or open the one that the object has. */
	uint64_t oa_layout_id;
	/* Filled in by create and open. */
	struct m0_fid oa_pool;
	struct m0_fid oa_pver;
	/* Kept; operations are of any size. */
	m0_bcount_t oa_buf_size;
};

struct m0_clovis_obj {
	struct m0_clovis_entity ob_entity;
	struct m0_clovis_obj_attr ob_attr;
	struct m0_clovis_layout *ob_layout;
	struct m0_cookie ob_cookie;
	uint64_t ob_reserved[3];
};

struct m0_clovis_layout {
	struct m0_clovis_entity cl_entity;
	enum m0_clovis_layout_type cl_type;
	struct m0_clovis_obj *cl_obj;
	const struct m0_clovis_layout_ops *cl_ops;
};

struct m0_clovis_idx_attr {
	uint32_t idx_layout_type;
	struct m0_fid idx_pver;
};

struct m0_clovis_idx {
	struct m0_clovis_entity in_entity;
	struct m0_clovis_idx_attr in_attr;
	uint64_t in_reserved;
};

#define M0_CLOVIS_COMPOSITE_EXTENT_INF (0xffffffffffffffff)

struct m0_clovis_composite_layer_idx_key {
	struct m0_uint128 cek_layer_id;
	m0_bindex_t cek_off;
};

struct m0_clovis_composite_layer_idx_val {
	m0_bcount_t cev_len;
};

struct m0_clovis_realm {
	struct m0_clovis_entity re_entity;
	enum m0_clovis_realm_type re_type;
	struct m0_clovis *re_instance;
};

struct m0_clovis_container {
	struct m0_clovis_realm co_realm;
};

struct m0_clovis_epoch {
	struct m0_clovis_realm ep_realm;
};

struct m0_clovis_dtx {
	struct m0_clovis_realm dt_realm;
};

/*
 * Called on a thread of the library, perhaps before launch has returned, each at most once. A callback may launch other operations
 * and give its own one back; a wait inside a callback is refused with -EDEADLK.
 */
struct m0_clovis_op_ops {
	void (*oop_executed)(struct m0_clovis_op *op);
	void (*oop_failed)(struct m0_clovis_op *op);
	void (*oop_stable)(struct m0_clovis_op *op);
};

/* Kept by reference: has to outlive the instance. */
struct m0_clovis_config {
	/* Accepted either way. */
	bool cc_is_oostore;
	/* Reads fetch parity too and compare. */
	bool cc_is_read_verify;
	bool cc_is_addb_init;
	/* Endpoint of this client, NID:PID:PORTAL:TMID. */
	const char *cc_local_addr;
	/* Endpoint of the control daemon. */
	const char *cc_ha_addr;
	/* A process fid ('r', 0x72 in the top byte); the configuration need not know it. */
	const char *cc_process_fid;
	/* The cluster's profile. */
	const char *cc_profile;
	/* Not 0. */
	uint32_t cc_tm_recv_queue_min_len;
	/* Not 0. */
	uint32_t cc_max_rpc_msg_size;
	/* Layout of objects that are made with layout id 0. */
	uint32_t cc_layout_id;
	int cc_idx_service_id;
	void *cc_idx_service_conf;
	/* Accepted. */
	m0_bcount_t cc_addb_size;
};

/* The realm that everything is in, and the largest id that programs leave alone. */
M0_EXTERN const struct m0_uint128 M0_CLOVIS_UBER_REALM;
M0_EXTERN const struct m0_uint128 M0_CLOVIS_ID_APP;

/*
 * Block attributes of obj_op: with this bit in `mask`, `attr` has one segment of 4 bytes for each 4096-byte block of the extents, in
 * order. A read stores the CRC-32C of each block there, a write checks that the data has these. 0: no attributes.
 */
#define M0_CLOVIS_BLOCK_ATTR_CRC32C (1ULL << 32)

/* ---- operations */

/* Sets callbacks (may be NULL; members may be NULL). Before the launch. */
void m0_clovis_op_setup(struct m0_clovis_op *op, const struct m0_clovis_op_ops *cbs, m0_time_t linger);
/* Starts `nr` operations, of any instances. One that is not INITIALISED is left as it is, with a line on standard error. */
void m0_clovis_op_launch(struct m0_clovis_op **op, uint32_t nr);
/*
 * Waits until the operation has reached one of the states in `bits` (M0_BITS of LAUNCHED, EXECUTED, STABLE, FAILED), at most until the
 * absolute time `to`. 0, -ETIMEDOUT, -ESRCH (it ended in a state that is not in `bits`), -EINVAL, -EDEADLK (called by a callback).
 * 0 says nothing about the operation's success.
 */
int32_t m0_clovis_op_wait(struct m0_clovis_op *op, uint64_t bits, m0_time_t to);
/* Operations are never held back, so this changes nothing. */
void m0_clovis_op_kick(struct m0_clovis_op *op);
int32_t m0_clovis_rc(const struct m0_clovis_op *op);
/* INITIALISED, STABLE or FAILED. Returns once no thread of the library looks at the operation any more. */
void m0_clovis_op_fini(struct m0_clovis_op *op);
/* After fini. Only for operations that the library allocated. */
void m0_clovis_op_free(struct m0_clovis_op *op);
/* Bytes that any operation needs: for programs that bring the memory (zeroed, op_size set to it). */
size_t m0_clovis_op_maxsize(void);
/* Asks `nr` operations to end. Each becomes FAILED with -ECANCELED, unless it was over already; wait for it as ever. */
void m0_clovis_op_cancel(struct m0_clovis_op **op, uint32_t nr);

/* ---- realms and entities */

/* `id` must be M0_CLOVIS_UBER_REALM; success stands in con->co_realm.re_entity.en_sm.sm_rc. */
void m0_clovis_container_init(struct m0_clovis_container *con, struct m0_clovis_realm *parent, const struct m0_uint128 *id,
			      struct m0_clovis *instance);
void m0_clovis_epoch_init(struct m0_clovis_epoch *epoch, struct m0_clovis_realm *parent, const struct m0_uint128 *id);
void m0_clovis_dtx_init(struct m0_clovis_dtx *dtx, struct m0_clovis_realm *parent, const struct m0_uint128 *id);
void m0_clovis_realm_create(struct m0_clovis_realm *realm, uint64_t wcount, uint64_t rcount, struct m0_clovis_op **op);
void m0_clovis_realm_open(struct m0_clovis_realm *realm, uint64_t wcount, uint64_t rcount, struct m0_clovis_op **op);
void m0_clovis_realm_close(struct m0_clovis_realm *realm, uint64_t wcount, uint64_t rcount, struct m0_clovis_op **op);

/* Ids are above M0_CLOVIS_ID_APP, with u_hi below 2^56. No round trip: the object is looked for by create or open. */
void m0_clovis_obj_init(struct m0_clovis_obj *obj, struct m0_clovis_realm *parent, const struct m0_uint128 *id, uint64_t layout_id);
void m0_clovis_obj_fini(struct m0_clovis_obj *obj);
void m0_clovis_obj_idx_init(struct m0_clovis_idx *idx, const struct m0_clovis_obj *obj);
/*
 * A read, write, alloc or free of any number of extents, in bytes. `data` and `ext` may be cut differently but have the same sum; buffers
 * and the vectors' arrays stay the caller's and must live until STABLE or FAILED. `attr` may be NULL, `mask` 0.
 * *op == NULL: the library allocates; else it is used again if it is over (-EBUSY) and large enough (-EMSGSIZE). 0, -EINVAL, -ENOMEM.
 */
int m0_clovis_obj_op(struct m0_clovis_obj *obj, enum m0_clovis_obj_opcode opcode, struct m0_indexvec *ext, struct m0_bufvec *data,
		     struct m0_bufvec *attr, uint64_t mask, struct m0_clovis_op **op);
void m0_clovis_idx_init(struct m0_clovis_idx *idx, struct m0_clovis_realm *parent, const struct m0_uint128 *id);
void m0_clovis_idx_fini(struct m0_clovis_idx *idx);
int m0_clovis_idx_op(struct m0_clovis_idx *idx, enum m0_clovis_idx_opcode opcode, struct m0_bufvec *keys, struct m0_bufvec *vals,
		     int32_t *rcs, uint32_t flags, struct m0_clovis_op **op);
/* `pool` NULL: the default pool. *op as in m0_clovis_obj_op. */
int m0_clovis_entity_create(struct m0_fid *pool, struct m0_clovis_entity *entity, struct m0_clovis_op **op);
int m0_clovis_entity_delete(struct m0_clovis_entity *entity, struct m0_clovis_op **op);
int m0_clovis_entity_open(struct m0_clovis_entity *entity, struct m0_clovis_op **op);
void m0_clovis_entity_fini(struct m0_clovis_entity *entity);
int m0_entity_type_is_valid(struct m0_clovis_entity *ent);

/* ---- instances */

/*
 * Connects to the cluster: -EINVAL (a field is missing or wrong), -ETIMEDOUT (the control daemon does not answer), -EACCES (the
 * credential), or what kept the endpoint from being opened; the reason is on standard error. The credential comes from the
 * cluster file that CLOVIS_CONFIG names, or from clovis.toml in the current folder.
 */
int m0_clovis_init(struct m0_clovis **m0c, struct m0_clovis_config *conf, bool init_m0);
/* Operations that still run end with -ECANCELED. */
void m0_clovis_fini(struct m0_clovis *m0c, bool fini_m0);
void m0_clovis_process_fid(const struct m0_clovis *m0c, struct m0_fid *proc_fid);

/* ---- sync: STABLE already means durable, so these wait for what was launched before */

int m0_clovis_sync_op_init(struct m0_clovis_op **sop);
int m0_clovis_sync_entity_add(struct m0_clovis_op *sop, struct m0_clovis_entity *ent);
int m0_clovis_sync_op_add(struct m0_clovis_op *sop, struct m0_clovis_op *op);
int m0_clovis_entity_sync(struct m0_clovis_entity *ent);
int m0_clovis_sync(struct m0_clovis *m0c, bool wait);

/* ---- layouts */

/* Unit sizes of 4 KiB to 32 MiB are the layout ids 1 to 14; any other size gives 0, any other id -EINVAL. */
uint64_t m0_clovis_obj_unit_size_to_layout_id(int unit_size);
int m0_clovis_obj_layout_id_to_unit_size(uint64_t layout_id);
uint64_t m0_clovis_layout_id(const struct m0_clovis *instance);
enum m0_clovis_layout_type m0_clovis_obj_layout_type(struct m0_clovis_obj *obj);
int m0_clovis_composite_layer_add(struct m0_clovis_layout *layout, struct m0_clovis_obj *sub_obj, int priority);
void m0_clovis_composite_layer_del(struct m0_clovis_layout *layout, struct m0_uint128 subobj_id);
int m0_clovis_composite_layer_idx(struct m0_uint128 layer_id, bool write, struct m0_clovis_idx *idx);
int m0_clovis_composite_layer_idx_key_to_buf(struct m0_clovis_composite_layer_idx_key *key, void **out_kbuf, m0_bcount_t *out_klen);
void m0_clovis_composite_layer_idx_key_from_buf(struct m0_clovis_composite_layer_idx_key *key, void *kbuf);
int m0_clovis_composite_layer_idx_val_to_buf(struct m0_clovis_composite_layer_idx_val *val, void **out_vbuf, m0_bcount_t *out_vlen);
void m0_clovis_composite_layer_idx_val_from_buf(struct m0_clovis_composite_layer_idx_val *val, void *vbuf);
int m0_clovis_layout_op(struct m0_clovis_obj *obj, enum m0_clovis_entity_opcode opcode, struct m0_clovis_layout *layout,
			struct m0_clovis_op **op);
int m0_clovis_layout_capture(struct m0_clovis_layout *layout, struct m0_clovis_obj *obj, struct m0_clovis_layout **out);
struct m0_clovis_layout *m0_clovis_layout_alloc(enum m0_clovis_layout_type type);
void m0_clovis_layout_free(struct m0_clovis_layout *layout);

/* ---- object locks */

M0_EXTERN const struct m0_uint128 m0_rm_clovis_group;
M0_EXTERN const struct m0_uint128 m0_rm_no_group;

struct m0_clovis_rm_lock_req {
	struct m0_clovis_obj *rlr_obj;
	int32_t rlr_rc;
	uint32_t rlr_flags;
	uint64_t rlr_opaque[32];
};

int m0_clovis_obj_lock_init(struct m0_clovis_obj *obj, const struct m0_uint128 *group);
void m0_clovis_obj_lock_fini(struct m0_clovis_obj *obj);
int m0_clovis_obj_lock_get(struct m0_clovis_obj *obj, struct m0_clovis_rm_lock_req *req, const struct m0_uint128 *group,
			   struct m0_clink *clink);
int m0_clovis_obj_lock_get_sync(struct m0_clovis_obj *obj, struct m0_clovis_rm_lock_req *req, const struct m0_uint128 *group);
void m0_clovis_obj_lock_put(struct m0_clovis_rm_lock_req *req);

/*
 * Programs of 2016 to early 2018 make entities without naming a pool, and the oldest make objects without a layout id: the calls
 * take those arguments, too. The functions themselves have all of them.
 */
#define m0_clovis_entity_create(...) M0_CAT(m0_clovis_create_, M0_COUNT_PARAMS(__VA_ARGS__))(__VA_ARGS__)
#define m0_clovis_create_2(entity, op) (m0_clovis_entity_create)(NULL, (entity), (op))
#define m0_clovis_create_3(...) (m0_clovis_entity_create)(__VA_ARGS__)
#define m0_clovis_create_4(...) (m0_clovis_entity_create)(__VA_ARGS__)
#define m0_clovis_create_5(...) (m0_clovis_entity_create)(__VA_ARGS__)
#define m0_clovis_obj_init(...) M0_CAT(m0_clovis_init_, M0_COUNT_PARAMS(__VA_ARGS__))(__VA_ARGS__)
#define m0_clovis_init_3(obj, realm, id) (m0_clovis_obj_init)((obj), (realm), (id), 0)
#define m0_clovis_init_4(...) (m0_clovis_obj_init)(__VA_ARGS__)
#define m0_clovis_init_5(...) (m0_clovis_obj_init)(__VA_ARGS__)
#define m0_clovis_init_6(...) (m0_clovis_obj_init)(__VA_ARGS__)

#ifdef __cplusplus
}
#endif

#endif
