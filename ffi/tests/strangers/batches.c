/* Many operations at a time: on entities and on bytes; waits that time out, syncs, reads behind the end, cancels,
 * operations that are used again. */
#include "clovis/clovis.h"
#include "clovis/clovis_idx.h"
#include <stdio.h>
#define N 32
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
int main(int argc, char **argv)
{
	struct m0_clovis_obj objs[N];
	struct m0_clovis_op *ops[N] = {};
	struct m0_uint128 id = M0_CLOVIS_ID_APP;
	int i, rc, tries = 0;
	struct m0_indexvec ext[N];
	struct m0_bufvec data[N], attr[N];
	struct m0_clovis_op *sop = NULL;
	char **bufs;
	conf.cc_local_addr = argv[1];
	conf.cc_ha_addr = argv[2];
	conf.cc_profile = argv[3];
	conf.cc_process_fid = argv[4];
	conf.cc_tm_recv_queue_min_len = M0_NET_TM_RECV_QUEUE_DEF_LEN;
	conf.cc_max_rpc_msg_size = M0_RPC_DEF_MAX_RPC_MSG_SIZE;
	conf.cc_layout_id = m0_clovis_obj_unit_size_to_layout_id(16384);
	conf.cc_idx_service_id = M0_CLOVIS_IDX_DIX;
	conf.cc_idx_service_conf = &dix;
	CHECK(m0_clovis_init(&m, &conf, true) == 0);
	m0_clovis_container_init(&uber, NULL, &M0_CLOVIS_UBER_REALM, m);
	CHECK(uber.co_realm.re_entity.en_sm.sm_rc == 0);
	for (i = 0; i < N; i++) {
		id.u_lo++;
		m0_clovis_obj_init(&objs[i], &uber.co_realm, &id, m0_clovis_layout_id(m));
		CHECK(m0_clovis_entity_create(NULL, &objs[i].ob_entity, &ops[i]) == 0);
	}
	m0_clovis_op_launch(ops, N);
	for (i = 0; i < N; i++) {
		while ((rc = m0_clovis_op_wait(ops[i], M0_BITS(M0_CLOVIS_OS_FAILED, M0_CLOVIS_OS_STABLE),
					       m0_time_from_now(0, 1000 * 1000))) == -ETIMEDOUT)
			tries++;
		CHECK(rc == 0 && m0_clovis_rc(ops[i]) == 0 && ops[i]->op_rc == 0);
		CHECK(ops[i]->op_entity == &objs[i].ob_entity && ops[i]->op_code == M0_CLOVIS_EO_CREATE);
		CHECK(objs[i].ob_attr.oa_layout_id == 3);
		m0_clovis_op_fini(ops[i]); /* used again below */
	}
	M0_ALLOC_ARR(bufs, N);
	for (i = 0; i < N; i++) {
		m0_indexvec_alloc(&ext[i], 1);
		m0_bufvec_empty_alloc(&data[i], 1);
		m0_bufvec_alloc(&attr[i], 1, 1);
		attr[i].ov_vec.v_count[0] = 0;
		bufs[i] = malloc(8192);
		memset(bufs[i], i, 8192);
		ext[i].iv_index[0] = 4096 * i;
		ext[i].iv_vec.v_count[0] = 8192;
		data[i].ov_buf[0] = bufs[i];
		data[i].ov_vec.v_count[0] = 8192;
		CHECK(m0_clovis_obj_op(&objs[i], M0_CLOVIS_OC_WRITE, &ext[i], &data[i], &attr[i], 0, &ops[i]) == 0);
	}
	m0_clovis_sync_op_init(&sop);
	m0_clovis_op_launch(ops, N);
	for (i = 0; i < N; i++) {
		CHECK(m0_clovis_sync_op_add(sop, ops[i]) == 0);
		CHECK(m0_clovis_sync_entity_add(sop, &objs[i].ob_entity) == 0);
	}
	m0_clovis_op_launch(&sop, 1);
	CHECK(m0_clovis_op_wait(sop, M0_BITS(M0_CLOVIS_OS_FAILED, M0_CLOVIS_OS_STABLE), M0_TIME_NEVER) == 0);
	for (i = 0; i < N; i++) {
		CHECK(m0_clovis_op_wait(ops[i], M0_BITS(M0_CLOVIS_OS_STABLE), M0_TIME_IMMEDIATELY) == 0);
		CHECK(m0_clovis_rc(ops[i]) == 0);
		m0_clovis_op_fini(ops[i]);
		m0_clovis_op_free(ops[i]);
		ops[i] = NULL;
	}
	m0_clovis_op_fini(sop);
	m0_clovis_op_free(sop);
	CHECK(m0_clovis_sync(m, 1) == 0);
	CHECK(m0_clovis_entity_sync(&objs[3].ob_entity) == 0);
	/* read past the end, cancel half */
	for (i = 0; i < N; i++) {
		ext[i].iv_index[0] = i % 2 ? 1ULL << 30 : 4096 * i;
		memset(bufs[i], 0xff, 8192);
		CHECK(m0_clovis_obj_op(&objs[i], M0_CLOVIS_OC_READ, &ext[i], &data[i], &attr[i], 0, &ops[i]) == 0);
	}
	m0_clovis_op_launch(ops, N);
	m0_clovis_op_cancel(ops + N / 2, N / 2);
	for (i = 0; i < N; i++) {
		CHECK(m0_clovis_op_wait(ops[i], M0_BITS(M0_CLOVIS_OS_FAILED, M0_CLOVIS_OS_STABLE), M0_TIME_NEVER) == 0);
		rc = m0_clovis_rc(ops[i]);
		CHECK(rc == 0 || (i >= N / 2 && rc == -ECANCELED));
		if (rc == 0)
			CHECK(bufs[i][8191] == (i % 2 ? 0 : i));
		m0_clovis_op_fini(ops[i]);
		m0_clovis_op_free(ops[i]);
		ops[i] = NULL;
		CHECK(m0_clovis_entity_delete(&objs[i].ob_entity, &ops[i]) == 0);
	}
	m0_clovis_op_launch(ops, N);
	for (i = 0; i < N; i++) {
		CHECK(m0_clovis_op_wait(ops[i], M0_BITS(M0_CLOVIS_OS_FAILED, M0_CLOVIS_OS_STABLE), M0_TIME_NEVER) == 0);
		CHECK(ops[i]->op_sm.sm_rc == 0 && ops[i]->op_rc == 0);
		m0_clovis_op_fini(ops[i]);
		m0_clovis_op_free(ops[i]);
		m0_clovis_entity_fini(&objs[i].ob_entity);
		m0_indexvec_free(&ext[i]);
		m0_bufvec_free2(&data[i]);
		m0_bufvec_free(&attr[i]);
		free(bufs[i]);
	}
	m0_free(bufs);
	m0_clovis_fini(m, true);
	printf("tries %d\n", tries);
	return 0;
}
