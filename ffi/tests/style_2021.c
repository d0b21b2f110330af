/* As programs were written after the names changed: motr/client.h, m0_ everywhere, flags, designated initialisers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "motr/client.h"
#include "motr/client_internal.h"
#include "motr/idx.h"
#include "motr/layout.h"

static struct m0_container uber_realm;
static struct m0_client *m0_instance;
static struct m0_idx_dix_config dix_conf = {.kc_create_meta = false};

static int op_finish(struct m0_op **op)
{
	int rc;

	m0_op_launch(op, 1);
	rc = m0_op_wait(*op, M0_BITS(M0_OS_FAILED, M0_OS_STABLE), m0_time_from_now(30, 0));
	if (rc == 0)
		rc = m0_rc(*op);
	if (rc == 0)
		rc = (*op)->op_rc;
	m0_op_fini(*op);
	m0_op_free(*op);
	*op = NULL;
	return rc;
}

int main(int argc, char **argv)
{
	struct m0_config conf = {
		.mc_is_oostore = true,
		.mc_is_read_verify = false,
		.mc_local_addr = argc > 1 ? argv[1] : NULL,
		.mc_ha_addr = argc > 2 ? argv[2] : NULL,
		.mc_profile = "<0x7000000000000001:0x0>",
		.mc_process_fid = "<0x7200000000000000:0x0>",
		.mc_tm_recv_queue_min_len = M0_NET_TM_RECV_QUEUE_DEF_LEN,
		.mc_max_rpc_msg_size = M0_RPC_DEF_MAX_RPC_MSG_SIZE,
		.mc_layout_id = 1,
		.mc_idx_service_id = M0_IDX_DIX,
		.mc_idx_service_conf = &dix_conf,
	};
	struct m0_obj obj;
	struct m0_op *op = NULL;
	struct m0_uint128 id = {.u_hi = 0x2021, .u_lo = 1};
	struct m0_indexvec ext;
	struct m0_bufvec data, attr;
	struct m0_rm_lock_req req;
	int rc;

	rc = m0_client_init(&m0_instance, &conf, true);
	if (rc != 0) {
		fprintf(stderr, "m0_client_init: %d\n", rc);
		return EXIT_FAILURE;
	}
	M0_ASSERT(m0_instance->m0c_motr != NULL && m0_client_layout_id(m0_instance) == 1);
	m0_container_init(&uber_realm, NULL, &M0_UBER_REALM, m0_instance);
	M0_ASSERT(uber_realm.co_realm.re_entity.en_sm.sm_rc == 0);
	memset(&obj, 0, sizeof obj);
	m0_obj_init(&obj, &uber_realm.co_realm, &id, m0_obj_unit_size_to_layout_id(4096));
	rc = m0_entity_open(&obj.ob_entity, &op);
	M0_ASSERT(rc == 0);
	M0_ASSERT(op_finish(&op) == -ENOENT);
	rc = m0_entity_create(NULL, &obj.ob_entity, &op);
	M0_ASSERT(rc == 0 && op_finish(&op) == 0);
	M0_ASSERT(obj.ob_entity.en_sm.sm_state == M0_ES_OPEN);
	rc = m0_indexvec_alloc(&ext, 1) || m0_bufvec_alloc(&data, 1, 65536) || m0_bufvec_alloc(&attr, 1, 1);
	M0_ASSERT(rc == 0);
	ext.iv_index[0] = 1 << 20;
	ext.iv_vec.v_count[0] = 65536;
	attr.ov_vec.v_count[0] = 0;
	memset(data.ov_buf[0], 0x21, 65536);
	M0_ASSERT(m0_obj_op(&obj, M0_OC_WRITE, &ext, &data, &attr, 0, M0_OOF_SYNC | M0_OOF_LAST, &op) == 0);
	M0_ASSERT(op_finish(&op) == 0);
	memset(data.ov_buf[0], 0, 65536);
	M0_ASSERT(m0_obj_op(&obj, M0_OC_READ, &ext, &data, &attr, 0, 0, &op) == 0);
	M0_ASSERT(op_finish(&op) == 0);
	M0_ASSERT(m0_forall(i, 65536, ((char *)data.ov_buf[0])[i] == 0x21));
	M0_ASSERT(m0_obj_op(&obj, M0_OC_READ, &ext, &data, &attr, 0, 1U << 9, &op) == -EINVAL);
	M0_ASSERT(m0_obj_read_lock_get_sync(&obj, &req) == -ENOSYS);
	M0_ASSERT(m0_entity_delete(&obj.ob_entity, &op) == 0 && op_finish(&op) == 0);
	m0_entity_fini(&obj.ob_entity);
	m0_indexvec_free(&ext);
	m0_bufvec_free(&data);
	m0_bufvec_free(&attr);
	m0_client_fini(m0_instance, true);
	return EXIT_SUCCESS;
}
