/*
 * The interface under its later names, over the same structures and the same code: see clovis/clovis.h for what everything does.
 *
 * Functions have symbols of their own; types, fields and constants are the older ones by macro, so a program may not use a word from
 * here for something else. What differs: m0_obj_op has flags, m0_client is m0_clovis, m0_config has fields that begin with mc_.
 */
#ifndef CLOVIS_INCLUDE_MOTR_CLIENT_H
#define CLOVIS_INCLUDE_MOTR_CLIENT_H

#include "clovis/clovis.h"

/* Types. */
#define m0_client m0_clovis
#define m0_config m0_clovis_config
#define m0_client_layout m0_clovis_layout
#define m0_client_layout_ops m0_clovis_layout_ops
#define m0_client_layout_type m0_clovis_layout_type
#define m0__dtx m0_clovis_dtx
#define m0_rm_lock_req m0_clovis_rm_lock_req
#define m0_op m0_clovis_op
#define m0_op_ops m0_clovis_op_ops
#define m0_entity m0_clovis_entity
#define m0_obj m0_clovis_obj
#define m0_obj_attr m0_clovis_obj_attr
#define m0_idx m0_clovis_idx
#define m0_idx_attr m0_clovis_idx_attr
#define m0_realm m0_clovis_realm
#define m0_container m0_clovis_container
#define m0_epoch m0_clovis_epoch
#define m0_realm_type m0_clovis_realm_type
#define m0_entity_type m0_clovis_entity_type
#define m0_entity_opcode m0_clovis_entity_opcode
#define m0_obj_opcode m0_clovis_obj_opcode
#define m0_idx_opcode m0_clovis_idx_opcode
#define m0_op_state m0_clovis_op_state
#define m0_entity_states m0_clovis_entity_states
#define m0_composite_layer_idx_key m0_clovis_composite_layer_idx_key
#define m0_composite_layer_idx_val m0_clovis_composite_layer_idx_val
#define m0_op_idx m0_clovis_op_idx

/* Fields. */
#define mc_is_oostore cc_is_oostore
#define mc_is_read_verify cc_is_read_verify
#define mc_is_addb_init cc_is_addb_init
#define mc_local_addr cc_local_addr
#define mc_ha_addr cc_ha_addr
#define mc_process_fid cc_process_fid
#define mc_profile cc_profile
#define mc_tm_recv_queue_min_len cc_tm_recv_queue_min_len
#define mc_max_rpc_msg_size cc_max_rpc_msg_size
#define mc_layout_id cc_layout_id
#define mc_idx_service_id cc_idx_service_id
#define mc_idx_service_conf cc_idx_service_conf
#define mc_addb_size cc_addb_size
#define ml_entity cl_entity
#define ml_type cl_type
#define ml_obj cl_obj
#define ml_ops cl_ops

/* Constants. */
#define M0_EO_CREATE M0_CLOVIS_EO_CREATE
#define M0_EO_DELETE M0_CLOVIS_EO_DELETE
#define M0_EO_GETATTR M0_CLOVIS_EO_GETATTR
#define M0_EO_INVALID M0_CLOVIS_EO_INVALID
#define M0_EO_LAYOUT_GET M0_CLOVIS_EO_LAYOUT_GET
#define M0_EO_LAYOUT_SET M0_CLOVIS_EO_LAYOUT_SET
#define M0_EO_NR M0_CLOVIS_EO_NR
#define M0_EO_OPEN M0_CLOVIS_EO_OPEN
#define M0_EO_SETATTR M0_CLOVIS_EO_SETATTR
#define M0_EO_SYNC M0_CLOVIS_EO_SYNC
#define M0_ES_CLOSING M0_CLOVIS_ES_CLOSING
#define M0_ES_CREATING M0_CLOVIS_ES_CREATING
#define M0_ES_DELETING M0_CLOVIS_ES_DELETING
#define M0_ES_FAILED M0_CLOVIS_ES_FAILED
#define M0_ES_INIT M0_CLOVIS_ES_INIT
#define M0_ES_OPEN M0_CLOVIS_ES_OPEN
#define M0_ES_OPENING M0_CLOVIS_ES_OPENING
#define M0_ET_IDX M0_CLOVIS_ET_IDX
#define M0_ET_OBJ M0_CLOVIS_ET_OBJ
#define M0_ET_REALM M0_CLOVIS_ET_REALM
#define M0_IC_DEL M0_CLOVIS_IC_DEL
#define M0_IC_GET M0_CLOVIS_IC_GET
#define M0_IC_LIST M0_CLOVIS_IC_LIST
#define M0_IC_LOOKUP M0_CLOVIS_IC_LOOKUP
#define M0_IC_NEXT M0_CLOVIS_IC_NEXT
#define M0_IC_NR M0_CLOVIS_IC_NR
#define M0_IC_PUT M0_CLOVIS_IC_PUT
#define M0_LT_CAPTURE M0_CLOVIS_LT_CAPTURE
#define M0_LT_COMPOSITE M0_CLOVIS_LT_COMPOSITE
#define M0_LT_NR M0_CLOVIS_LT_NR
#define M0_LT_PDCLUST M0_CLOVIS_LT_PDCLUST
#define M0_OC_ALLOC M0_CLOVIS_OC_ALLOC
#define M0_OC_FREE M0_CLOVIS_OC_FREE
#define M0_OC_NR M0_CLOVIS_OC_NR
#define M0_OC_READ M0_CLOVIS_OC_READ
#define M0_OC_WRITE M0_CLOVIS_OC_WRITE
#define M0_OS_EXECUTED M0_CLOVIS_OS_EXECUTED
#define M0_OS_FAILED M0_CLOVIS_OS_FAILED
#define M0_OS_INITIALISED M0_CLOVIS_OS_INITIALISED
#define M0_OS_LAUNCHED M0_CLOVIS_OS_LAUNCHED
#define M0_OS_NR M0_CLOVIS_OS_NR
#define M0_OS_STABLE M0_CLOVIS_OS_STABLE
#define M0_OS_UNINITIALISED M0_CLOVIS_OS_UNINITIALISED
#define M0_ST_CONTAINER M0_CLOVIS_ST_CONTAINER
#define M0_ST_DTX M0_CLOVIS_ST_DTX
#define M0_ST_EPOCH M0_CLOVIS_ST_EPOCH
#define M0_ST_NR M0_CLOVIS_ST_NR
#define M0_UBER_REALM M0_CLOVIS_UBER_REALM
#define M0_ID_APP M0_CLOVIS_ID_APP
#define m0_rm_group m0_rm_clovis_group
#define M0_COMPOSITE_EXTENT_INF M0_CLOVIS_COMPOSITE_EXTENT_INF
#define M0_BLOCK_ATTR_CRC32C M0_CLOVIS_BLOCK_ATTR_CRC32C

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Flags of m0_obj_op. Reads of bytes that were never written give zeros; with M0_OOF_HOLE (first called M0_OOF_NOHOLE) they end as FAILED
 * with -ENOENT instead. The others change nothing.
 */
enum m0_op_obj_flags {
	M0_OOF_HOLE = 1 << 0,
	M0_OOF_NOHOLE = M0_OOF_HOLE,
	M0_OOF_SYNC = 1 << 1,
	M0_OOF_LAST = 1 << 2,
	M0_OOF_FULL = 1 << 3
};

/* Flags of entities, for programs that name them. */
enum m0_entity_flags {
	M0_ENF_META = 1 << 0,
	M0_ENF_NO_RMW = 1 << 1,
	M0_ENF_DI = 1 << 2,
	M0_ENF_GEN_DI = 1 << 3
};

/* Options of operations on indices, for programs that set them. */
enum m0_op_idx_option { M0_OIO_MIN_SUCCESS = 0 };
enum { M0_DIX_MIN_REPLICA_QUORUM = -1 };

int m0_obj_op(struct m0_obj *obj, enum m0_obj_opcode opcode, struct m0_indexvec *ext, struct m0_bufvec *data, struct m0_bufvec *attr,
	      uint64_t mask, uint32_t flags, struct m0_op **op);
void m0_op_setup(struct m0_op *op, const struct m0_op_ops *cbs, m0_time_t linger);
void m0_op_launch(struct m0_op **op, uint32_t nr);
int32_t m0_op_wait(struct m0_op *op, uint64_t bits, m0_time_t to);
void m0_op_kick(struct m0_op *op);
int32_t m0_rc(const struct m0_op *op);
void m0_op_fini(struct m0_op *op);
void m0_op_free(struct m0_op *op);
size_t m0_op_maxsize(void);
void m0_op_cancel(struct m0_op **op, uint32_t nr);
void m0_container_init(struct m0_container *con, struct m0_realm *parent, const struct m0_uint128 *id,
		       struct m0_client *instance);
void m0_epoch_init(struct m0_epoch *epoch, struct m0_realm *parent, const struct m0_uint128 *id);
void m0_dtx_init(struct m0__dtx *dtx, struct m0_realm *parent, const struct m0_uint128 *id);
void m0_realm_create(struct m0_realm *realm, uint64_t wcount, uint64_t rcount, struct m0_op **op);
void m0_realm_open(struct m0_realm *realm, uint64_t wcount, uint64_t rcount, struct m0_op **op);
void m0_realm_close(struct m0_realm *realm, uint64_t wcount, uint64_t rcount, struct m0_op **op);
void m0_obj_init(struct m0_obj *obj, struct m0_realm *parent, const struct m0_uint128 *id, uint64_t layout_id);
void m0_obj_fini(struct m0_obj *obj);
void m0_obj_idx_init(struct m0_idx *idx, const struct m0_obj *obj);
void m0_idx_init(struct m0_idx *idx, struct m0_realm *parent, const struct m0_uint128 *id);
void m0_idx_fini(struct m0_idx *idx);
int m0_idx_op(struct m0_idx *idx, enum m0_idx_opcode opcode, struct m0_bufvec *keys, struct m0_bufvec *vals, int32_t *rcs,
	uint32_t flags, struct m0_op **op);
int m0_idx_op_setoption(struct m0_op *op, enum m0_op_idx_option option, int64_t value);
int m0_entity_create(struct m0_fid *pool, struct m0_entity *entity, struct m0_op **op);
int m0_entity_delete(struct m0_entity *entity, struct m0_op **op);
int m0_entity_open(struct m0_entity *entity, struct m0_op **op);
void m0_entity_fini(struct m0_entity *entity);
int m0_client_init(struct m0_client **m0c, struct m0_config *conf, bool init_m0);
void m0_client_fini(struct m0_client *m0c, bool fini_m0);
void m0_process_fid(const struct m0_client *m0c, struct m0_fid *proc_fid);
int m0_sync_op_init(struct m0_op **sop);
int m0_sync_entity_add(struct m0_op *sop, struct m0_entity *ent);
int m0_sync_op_add(struct m0_op *sop, struct m0_op *op);
int m0_entity_sync(struct m0_entity *ent);
int m0_sync(struct m0_client *m0c, bool wait);
uint64_t m0_obj_unit_size_to_layout_id(int unit_size);
int m0_obj_layout_id_to_unit_size(uint64_t layout_id);
uint64_t m0_client_layout_id(const struct m0_client *instance);
enum m0_client_layout_type m0_obj_layout_type(struct m0_obj *obj);
int m0_composite_layer_add(struct m0_client_layout *layout, struct m0_obj *sub_obj, int priority);
void m0_composite_layer_del(struct m0_client_layout *layout, struct m0_uint128 subobj_id);
int m0_composite_layer_idx(struct m0_uint128 layer_id, bool write, struct m0_idx *idx);
int m0_composite_layer_idx_key_to_buf(struct m0_composite_layer_idx_key *key, void **out_kbuf, m0_bcount_t *out_klen);
void m0_composite_layer_idx_key_from_buf(struct m0_composite_layer_idx_key *key, void *kbuf);
int m0_composite_layer_idx_val_to_buf(struct m0_composite_layer_idx_val *val, void **out_vbuf, m0_bcount_t *out_vlen);
void m0_composite_layer_idx_val_from_buf(struct m0_composite_layer_idx_val *val, void *vbuf);
int m0_client_layout_op(struct m0_obj *obj, enum m0_entity_opcode opcode, struct m0_client_layout *layout,
			struct m0_op **op);
int m0_client_layout_capture(struct m0_client_layout *layout, struct m0_obj *obj, struct m0_client_layout **out);
struct m0_client_layout *m0_client_layout_alloc(enum m0_client_layout_type type);
void m0_client_layout_free(struct m0_client_layout *layout);
int m0_obj_lock_init(struct m0_obj *obj);
void m0_obj_lock_fini(struct m0_obj *obj);
int m0_obj_write_lock_get(struct m0_obj *obj, struct m0_rm_lock_req *req, struct m0_clink *clink);
int m0_obj_read_lock_get(struct m0_obj *obj, struct m0_rm_lock_req *req, struct m0_clink *clink);
int m0_obj_write_lock_get_sync(struct m0_obj *obj, struct m0_rm_lock_req *req);
int m0_obj_read_lock_get_sync(struct m0_obj *obj, struct m0_rm_lock_req *req);
void m0_obj_lock_put(struct m0_rm_lock_req *req);

#ifdef __cplusplus
}
#endif

#endif
