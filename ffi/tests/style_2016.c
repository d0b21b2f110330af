/* As programs of 2016 to 2017 were written: entities are made without naming a pool, the op is a local array, results in op_sm. */
#include "clovis/clovis.h"
#include "clovis/clovis_internal.h"
#include "clovis/clovis_idx.h"
#include "lib/memory.h"
#include <stdlib.h>
#include <stdio.h>

static struct m0_clovis *clovis_instance = NULL;
static struct m0_clovis_container clovis_container;
static struct m0_clovis_realm clovis_uber_realm;
static struct m0_clovis_config clovis_conf;
static struct m0_idx_dix_config dix_conf;

static int wait_and_free(struct m0_clovis_op *op[1])
{
	int rc;

	m0_clovis_op_launch(op, ARRAY_SIZE(((struct m0_clovis_op *[1]){NULL})));
	rc = m0_clovis_op_wait(op[0], M0_BITS(M0_CLOVIS_OS_FAILED, M0_CLOVIS_OS_STABLE), m0_time_from_now(30, 0));
	if (rc == 0)
		rc = op[0]->op_sm.sm_rc ?: op[0]->op_rc;
	m0_clovis_op_fini(op[0]);
	m0_clovis_op_free(op[0]);
	op[0] = NULL;
	return rc;
}

int main(int argc, char **argv)
{
	struct m0_clovis_obj obj;
	struct m0_uint128 id = M0_CLOVIS_ID_APP;
	struct m0_clovis_op *ops[1] = {NULL};
	struct m0_indexvec ext;
	struct m0_bufvec data, attr;
	int rc, i;

	if (argc < 3)
		return EXIT_FAILURE;
	clovis_conf.cc_is_oostore = false;
	clovis_conf.cc_is_read_verify = false;
	clovis_conf.cc_local_addr = argv[1];
	clovis_conf.cc_ha_addr = argv[2];
	clovis_conf.cc_profile = "<0x7000000000000001:0>";
	clovis_conf.cc_process_fid = "<0x7200000000000000:0>";
	clovis_conf.cc_tm_recv_queue_min_len = M0_NET_TM_RECV_QUEUE_DEF_LEN;
	clovis_conf.cc_max_rpc_msg_size = M0_RPC_DEF_MAX_RPC_MSG_SIZE;
	clovis_conf.cc_idx_service_id = M0_CLOVIS_IDX_DIX;
	dix_conf.kc_create_meta = false;
	clovis_conf.cc_idx_service_conf = &dix_conf;
	rc = m0_clovis_init(&clovis_instance, &clovis_conf, true);
	if (rc != 0)
		return EXIT_FAILURE;
	m0_clovis_container_init(&clovis_container, NULL, &M0_CLOVIS_UBER_REALM, clovis_instance);
	rc = clovis_container.co_realm.re_entity.en_sm.sm_rc;
	if (rc != 0)
		return EXIT_FAILURE;
	/* Programs copied the realm out of the container. */
	clovis_uber_realm = clovis_container.co_realm;

	id.u_lo += 0x2016;
	M0_SET0(&obj);
	m0_clovis_obj_init(&obj, &clovis_uber_realm, &id, m0_clovis_layout_id(clovis_instance));
	m0_clovis_entity_create(&obj.ob_entity, &ops[0]);
	rc = wait_and_free(ops);
	M0_ASSERT(rc == 0);
	rc = m0_indexvec_alloc(&ext, 2) ?: m0_bufvec_alloc(&data, 2, 4096) ?: m0_bufvec_alloc(&attr, 2, 1);
	M0_ASSERT(rc == 0);
	for (i = 0; i < 2; ++i) {
		ext.iv_index[i] = i * 4096;
		ext.iv_vec.v_count[i] = 4096;
		attr.ov_vec.v_count[i] = 0;
		memset(data.ov_buf[i], 'A' + i, 4096);
	}
	m0_clovis_obj_op(&obj, M0_CLOVIS_OC_WRITE, &ext, &data, &attr, 0, &ops[0]);
	M0_ASSERT(wait_and_free(ops) == 0);
	memset(data.ov_buf[1], 0, 4096);
	m0_clovis_obj_op(&obj, M0_CLOVIS_OC_READ, &ext, &data, &attr, 0, &ops[0]);
	M0_ASSERT(wait_and_free(ops) == 0);
	M0_ASSERT(m0_forall(k, 4096, ((char *)data.ov_buf[1])[k] == 'B'));
	m0_clovis_entity_delete(&obj.ob_entity, &ops[0]);
	M0_ASSERT(wait_and_free(ops) == 0);
	m0_clovis_entity_fini(&obj.ob_entity);
	m0_indexvec_free(&ext);
	m0_bufvec_free(&data);
	m0_bufvec_free(&attr);
	m0_clovis_fini(clovis_instance, true);
	return EXIT_SUCCESS;
}
