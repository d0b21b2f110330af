/* A program for indices: it compiles, and every call tells it that there are none yet. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "clovis/clovis.h"
#include "clovis/clovis_idx.h"
#include "lib/memory.h"
#define CHECK(c)                                                                                                       \
	do {                                                                                                           \
		if (!(c)) {                                                                                            \
			fprintf(stderr, "%d: %s\n", __LINE__, #c);                                                     \
			exit(1);                                                                                       \
		}                                                                                                      \
	} while (0)

static struct m0_clovis *m;
static struct m0_clovis_container uber;
static struct m0_clovis_config conf;
static struct m0_idx_dix_config dix;
static int kv(struct m0_clovis_idx *idx, enum m0_clovis_idx_opcode opc, struct m0_bufvec *k, struct m0_bufvec *v,
	      int32_t *rcs, uint32_t flags)
{
	struct m0_clovis_op *ops[1] = {NULL};
	int rc = m0_clovis_idx_op(idx, opc, k, v, rcs, flags, &ops[0]);
	if (rc)
		return rc;
	m0_clovis_op_launch(ops, 1);
	rc = m0_clovis_op_wait(ops[0], M0_BITS(M0_CLOVIS_OS_FAILED, M0_CLOVIS_OS_STABLE), M0_TIME_NEVER);
	rc = rc ? rc : ops[0]->op_sm.sm_rc;
	m0_clovis_op_fini(ops[0]);
	m0_clovis_op_free(ops[0]);
	return rc;
}
int main(int argc, char **argv)
{
	struct m0_clovis_idx idx;
	struct m0_fid fid;
	struct m0_uint128 id;
	struct m0_clovis_op *op = NULL;
	struct m0_bufvec k, v;
	int32_t rcs[3] = {};
	int rc;
	conf.cc_local_addr = argv[1];
	conf.cc_ha_addr = argv[2];
	conf.cc_profile = argv[3];
	conf.cc_process_fid = argv[4];
	conf.cc_tm_recv_queue_min_len = M0_NET_TM_RECV_QUEUE_DEF_LEN;
	conf.cc_max_rpc_msg_size = M0_RPC_DEF_MAX_RPC_MSG_SIZE;
	conf.cc_idx_service_id = M0_CLOVIS_IDX_DIX;
	dix.kc_create_meta = false;
	conf.cc_idx_service_conf = &dix;
	if (m0_clovis_init(&m, &conf, true))
		return 1;
	m0_clovis_container_init(&uber, NULL, &M0_CLOVIS_UBER_REALM, m);
	m0_fid_sscanf("1:5", &fid);
	m0_fid_tassume(&fid, &(struct m0_fid_type){.ft_id = 'x', .ft_name = "index"});
	id.u_hi = fid.f_container;
	id.u_lo = fid.f_key;
	m0_clovis_idx_init(&idx, &uber.co_realm, &id);
	rc = m0_clovis_entity_create(NULL, &idx.in_entity, &op);
	CHECK(rc == -ENOSYS && op == NULL);
	m0_bufvec_alloc(&k, 3, 8);
	m0_bufvec_empty_alloc(&v, 3);
	CHECK(kv(&idx, M0_CLOVIS_IC_GET, &k, &v, rcs, 0) == -ENOSYS);
	CHECK(kv(&idx, M0_CLOVIS_IC_PUT, &k, &v, rcs, M0_OIF_OVERWRITE) == -ENOSYS);
	CHECK(kv(&idx, M0_CLOVIS_IC_DEL, &k, NULL, rcs, 0) == -ENOSYS);
	CHECK(kv(&idx, M0_CLOVIS_IC_NEXT, &k, &v, rcs, M0_OIF_EXCLUDE_START_KEY) == -ENOSYS);
	CHECK(kv(&idx, M0_CLOVIS_IC_LIST, &k, NULL, rcs, 0) == -ENOSYS);
	CHECK(kv(&idx, M0_CLOVIS_IC_LOOKUP, NULL, NULL, rcs, 0) == -ENOSYS);
	m0_bufvec_free(&k);
	m0_bufvec_free(&v);
	m0_clovis_idx_fini(&idx);
	m0_clovis_fini(m, true);
	return 0;
}
