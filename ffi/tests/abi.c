/* Sizes, offsets and values: the same figures as in ffi/src/abi.rs, for machines with 64-bit pointers. */
#include "clovis/clovis.h"
#include "clovis/clovis_idx.h"
#include "clovis/clovis_internal.h"
#include "clovis/clovis_layout.h"
#include "lib/buf.h"
#include "lib/semaphore.h"
#include "lib/thread.h"
#include "helpers/ufid.h"
#include <stddef.h>

#define SIZE(type, bytes) _Static_assert(sizeof(struct type) == (bytes), #type)
#define AT(type, field, offset) _Static_assert(offsetof(struct type, field) == (offset), #type "." #field)
#define IS(name, value) _Static_assert((name) == (value), #name)

SIZE(m0_uint128, 16);
SIZE(m0_fid, 16);
SIZE(m0_vec, 16);
SIZE(m0_indexvec, 24); AT(m0_indexvec, iv_index, 16);
SIZE(m0_bufvec, 24); AT(m0_bufvec, ov_buf, 16);
SIZE(m0_buf, 16);
SIZE(m0_mutex, 64);
SIZE(m0_semaphore, 64);
SIZE(m0_thread, 136);
SIZE(m0_chan, 64);
SIZE(m0_clink, 72);
SIZE(m0_tl, 16);
SIZE(m0, 128);
SIZE(m0_sm, 120); AT(m0_sm, sm_conf, 8); AT(m0_sm, sm_grp, 16); AT(m0_sm, sm_state_epoch, 24); AT(m0_sm, sm_rc, 104); AT(m0_sm, sm_id, 112);
SIZE(m0_sm_group, 240); AT(m0_sm_group, s_clink, 64); AT(m0_sm_group, s_chan, 144);
SIZE(m0_clovis_op, 768);
AT(m0_clovis_op, op_code, 8); AT(m0_clovis_op, op_rc, 12); AT(m0_clovis_op, op_sm_group, 16); AT(m0_clovis_op, op_sm, 256);
AT(m0_clovis_op, op_cbs, 376); AT(m0_clovis_op, op_entity, 384); AT(m0_clovis_op, op_linger, 392); AT(m0_clovis_op, op_size, 400);
AT(m0_clovis_op, op_gen, 408); AT(m0_clovis_op, op_parent, 416); AT(m0_clovis_op, op_parent_ast, 424); AT(m0_clovis_op, op_pending_tx, 456);
AT(m0_clovis_op, op_pending_tx_lock, 472); AT(m0_clovis_op, op_datum, 536); AT(m0_clovis_op, op_count, 544);
AT(m0_clovis_op, op_priv, 552); AT(m0_clovis_op, op_priv_lock, 560);
AT(m0_clovis_op, op_cancelling, 624); AT(m0_clovis_op, op_sema, 632);
SIZE(m0_clovis_entity, 504); AT(m0_clovis_entity, en_id, 8); AT(m0_clovis_entity, en_realm, 24); AT(m0_clovis_entity, en_sm, 32);
AT(m0_clovis_entity, en_sm_group, 152); AT(m0_clovis_entity, en_pending_tx, 392); AT(m0_clovis_entity, en_pending_tx_lock, 408);
AT(m0_clovis_entity, en_flags, 472);
SIZE(m0_clovis_obj, 608); AT(m0_clovis_obj, ob_entity, 0); AT(m0_clovis_obj, ob_attr, 504); AT(m0_clovis_obj, ob_layout, 560);
AT(m0_clovis_obj, ob_cookie, 568);
SIZE(m0_clovis_obj_attr, 56); AT(m0_clovis_obj_attr, oa_buf_size, 48); AT(m0_clovis_obj_attr, oa_layout_id, 8); AT(m0_clovis_obj_attr, oa_pool, 16); AT(m0_clovis_obj_attr, oa_pver, 32);
SIZE(m0_clovis_idx, 536); AT(m0_clovis_idx, in_entity, 0); AT(m0_clovis_idx, in_attr, 504); SIZE(m0_clovis_idx_attr, 24);
SIZE(m0_clovis_realm, 520); AT(m0_clovis_realm, re_type, 504); AT(m0_clovis_realm, re_instance, 512);
SIZE(m0_clovis_container, 520); AT(m0_clovis_container, co_realm, 0);
SIZE(m0_clovis_config, 72); AT(m0_clovis_config, cc_addb_size, 64);
AT(m0_clovis_config, cc_is_read_verify, 1); AT(m0_clovis_config, cc_is_addb_init, 2); AT(m0_clovis_config, cc_local_addr, 8);
AT(m0_clovis_config, cc_ha_addr, 16); AT(m0_clovis_config, cc_process_fid, 24); AT(m0_clovis_config, cc_profile, 32);
AT(m0_clovis_config, cc_tm_recv_queue_min_len, 40); AT(m0_clovis_config, cc_max_rpc_msg_size, 44);
AT(m0_clovis_config, cc_layout_id, 48); AT(m0_clovis_config, cc_idx_service_id, 52); AT(m0_clovis_config, cc_idx_service_conf, 56);
SIZE(m0_clovis, 128); AT(m0_clovis, m0c_mero, 0); AT(m0_clovis, m0c_motr, 8); AT(m0_clovis, m0c_config, 16); AT(m0_clovis, m0c_reqh, 24);
SIZE(m0_reqh, 40); AT(m0_reqh, rh_ldom, 8);
SIZE(m0_clovis_op_ops, 24); AT(m0_clovis_op_ops, oop_failed, 8); AT(m0_clovis_op_ops, oop_stable, 16);
SIZE(m0_clovis_rm_lock_req, 272);
SIZE(m0_ufid_generator, 112);
SIZE(m0_vec_cursor, 24);

IS(M0_CLOVIS_EO_CREATE, 1); IS(M0_CLOVIS_EO_DELETE, 2); IS(M0_CLOVIS_EO_SYNC, 3); IS(M0_CLOVIS_EO_OPEN, 4); IS(M0_CLOVIS_EO_NR, 9);
IS(M0_CLOVIS_OC_READ, 10); IS(M0_CLOVIS_OC_WRITE, 11); IS(M0_CLOVIS_OC_ALLOC, 12); IS(M0_CLOVIS_OC_FREE, 13); IS(M0_CLOVIS_OC_NR, 14);
IS(M0_CLOVIS_IC_GET, 15); IS(M0_CLOVIS_IC_PUT, 16); IS(M0_CLOVIS_IC_DEL, 17); IS(M0_CLOVIS_IC_NEXT, 18); IS(M0_CLOVIS_IC_LOOKUP, 19);
IS(M0_CLOVIS_IC_LIST, 20);
IS(M0_CLOVIS_OS_UNINITIALISED, 0); IS(M0_CLOVIS_OS_INITIALISED, 1); IS(M0_CLOVIS_OS_LAUNCHED, 2); IS(M0_CLOVIS_OS_EXECUTED, 3);
IS(M0_CLOVIS_OS_STABLE, 4); IS(M0_CLOVIS_OS_FAILED, 5); IS(M0_CLOVIS_OS_NR, 6);
IS(M0_CLOVIS_ET_REALM, 0); IS(M0_CLOVIS_ET_OBJ, 1); IS(M0_CLOVIS_ET_IDX, 2);
IS(M0_CLOVIS_ES_INIT, 1); IS(M0_CLOVIS_ES_OPEN, 5); IS(M0_CLOVIS_ES_FAILED, 7);
IS(M0_CLOVIS_LT_PDCLUST, 0); IS(M0_CLOVIS_LT_NR, 3);
IS(M0_CLOVIS_ST_CONTAINER, 0); IS(M0_CLOVIS_ST_DTX, 2);
IS(M0_CLOVIS_IDX_MOCK, 0); IS(M0_CLOVIS_IDX_DIX, 1); IS(M0_CLOVIS_IDX_CASS, 2);
IS(M0_OIF_OVERWRITE, 1); IS(M0_OIF_EXCLUDE_START_KEY, 2); IS(M0_OIF_SYNC_WAIT, 4);
IS(M0_NET_TM_RECV_QUEUE_DEF_LEN, 2); IS(M0_RPC_DEF_MAX_RPC_MSG_SIZE, 131072); IS(M0_DEFAULT_LAYOUT_ID, 1); IS(M0_0VEC_SHIFT, 12);
IS(M0_BITS(0), 1); IS(M0_BITS(4, 5), 48); IS(M0_BITS(0, 1, 2, 3, 4, 5, 6, 7, 8), 511);
IS(M0_CLOVIS_OBJ_LAYOUT_ID(M0_CLOVIS_OBJ_LAYOUT_MAKE_LID(9, M0_CLOVIS_LT_CAPTURE)), 9);
IS(M0_CLOVIS_OBJ_LAYOUT_TYPE(M0_CLOVIS_OBJ_LAYOUT_MAKE_LID(9, M0_CLOVIS_LT_CAPTURE)), M0_CLOVIS_LT_CAPTURE);
IS(M0_CLOVIS_COMPOSITE_EXTENT_INF, UINT64_MAX);

#define TRUE(condition) \
	do { \
		if (!(condition)) { \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
			return 1; \
		} \
	} while (0)

int main(void)
{
	struct m0_uint128 uber = {0, 1}, app = {0, 0x100000};

	TRUE(m0_uint128_eq(&M0_CLOVIS_UBER_REALM, &uber));
	TRUE(m0_uint128_eq(&M0_CLOVIS_ID_APP, &app));
	TRUE(M0_TIME_NEVER == UINT64_MAX && M0_TIME_IMMEDIATELY == 0);
	TRUE(m0_clovis_op_maxsize() > sizeof(struct m0_clovis_op));
	/* Layout ids and unit sizes. */
	TRUE(m0_clovis_obj_layout_id_to_unit_size(1) == 4096);
	TRUE(m0_clovis_obj_layout_id_to_unit_size(9) == 1 << 20);
	TRUE(m0_clovis_obj_layout_id_to_unit_size(14) == 32 << 20);
	TRUE(m0_clovis_obj_layout_id_to_unit_size(0) == -EINVAL && m0_clovis_obj_layout_id_to_unit_size(15) == -EINVAL);
	TRUE(m0_clovis_obj_unit_size_to_layout_id(4096) == 1 && m0_clovis_obj_unit_size_to_layout_id(32 << 20) == 14);
	TRUE(m0_clovis_obj_unit_size_to_layout_id(5000) == 0 && m0_clovis_obj_unit_size_to_layout_id(-4096) == 0);
	return 0;
}
